"""How much memory a shard's entries take, and which of them give way when it is too much.

Entries that nobody watches stand in two lines in the order of their last use: those that can be fetched again, which go first, and the
others. A watched entry is in neither. Sizes of entries that were edited are found when they matter: until then what was added to them
counts, so the sum is never too small.

What must not live here: removing entries (`shard_state`).
"""

from collections.abc import Iterator
from typing import Protocol

ENTRY_BYTES = 750
"""What an entry takes beside its key and its data, with the indexes it stands in (`tests/core/test_memory.py` measures it)."""
DECODED = 4
"""How much more than its text a decoded value takes, about."""


class Sized(Protocol):
    """An entry, as its memory sees it."""

    size: int
    """Bytes accounted for it."""
    may_give_way: bool
    """It stands in a line."""
    counts_decoded: bool
    """They hold the decoded value, too."""

    @property
    def is_decoded(self) -> bool:
        """Whether it takes the memory of a decoded value."""
        ...

    before: "Sized | None"
    after: "Sized | None"
    """Its neighbours in a line."""

    @property
    def is_refetchable(self) -> bool:
        """Whether it could be had again."""
        ...

    def bytes_held(self) -> int:
        """Return the bytes it takes."""
        ...


class _Line:
    """Entries in the order of their last use; the entries themselves are the links."""

    __slots__ = ("first", "last")

    def __init__(self) -> None:
        self.first: Sized | None = None
        self.last: Sized | None = None

    def append(self, entry: Sized) -> None:
        entry.before, entry.after = self.last, None
        if self.last is None:
            self.first = entry
        else:
            self.last.after = entry
        self.last = entry

    def remove(self, entry: Sized) -> None:
        if entry.before is None:
            self.first = entry.after
        else:
            entry.before.after = entry.after
        if entry.after is None:
            self.last = entry.before
        else:
            entry.after.before = entry.before
        entry.before = entry.after = None


class Memory:
    """See the module."""

    def __init__(self, max_bytes: int | None = None, max_entries: int | None = None) -> None:
        self.max_bytes = max_bytes
        self.max_entries = max_entries
        self.entries = 0
        self._bytes = 0
        self._edited: dict[int, Sized] = {}
        self._lines = (_Line(), _Line())
        """Of entries that nobody watches: those that can be fetched again, and the others."""

    def added(self, entry: Sized) -> None:
        """An entry has come, which nobody watches yet."""
        self.entries += 1
        entry.size = 0
        self.replaced(entry)
        self.rest(entry)

    def removed(self, entry: Sized) -> None:
        """An entry is gone."""
        self.watch(entry)
        self.entries -= 1
        self._bytes -= entry.size
        self._edited.pop(id(entry), None)

    def replaced(self, entry: Sized) -> None:
        """An entry's data is new, and its text is at hand."""
        if self._edited:
            self._edited.pop(id(entry), None)
        size = entry.bytes_held()
        self._bytes += size - entry.size
        entry.size, entry.counts_decoded = size, entry.is_decoded

    def edited(self, entry: Sized, added: int) -> None:
        """An entry was edited; `added` bytes at most have come to it."""
        self._edited[id(entry)] = entry
        grown = added * (1 + DECODED)
        if not entry.counts_decoded:
            entry.counts_decoded = True
            grown += DECODED * max(entry.size - ENTRY_BYTES, 0)
        self._bytes += grown
        entry.size += grown

    def rest(self, entry: Sized) -> None:
        """Nobody watches an entry (any longer)."""
        if not entry.may_give_way:
            entry.may_give_way = True
            self._lines[not entry.is_refetchable].append(entry)

    def watch(self, entry: Sized) -> None:
        """Somebody watches an entry."""
        if entry.may_give_way:
            entry.may_give_way = False
            self._lines[not entry.is_refetchable].remove(entry)

    def use(self, entry: Sized) -> None:
        """An entry was read."""
        if entry.may_give_way:
            line = self._lines[not entry.is_refetchable]
            line.remove(entry)
            line.append(entry)

    def bytes(self) -> int:
        """Return the bytes all entries take, exactly as far as their sizes are known."""
        for entry in list(self._edited.values()):
            self.replaced(entry)
        return self._bytes

    def excess(self) -> str | None:
        """Return which limit is passed, if one is: bytes | entries."""
        if self.max_entries is not None and self.entries > self.max_entries:
            return "entries"
        if self.max_bytes is not None and self._bytes > self.max_bytes and self.bytes() > self.max_bytes:
            return "bytes"
        return None

    def candidates(self) -> Iterator[Sized]:
        """Yield entries that may give way, in the order in which they should; each may be removed meanwhile."""
        for line in self._lines:
            entry = line.first
            while entry is not None:
                following = entry.after
                yield entry
                entry = following
