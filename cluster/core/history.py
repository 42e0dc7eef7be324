"""History: which entries changed since a position, for clients that come back.

It keeps no values. A client that resumes needs each entry it missed once, at its present version, whatever happened in between; so a
record is (key, version before the change), and the first record of a key after a position says what a client there holds.

Changes are numbered through all lives of a shard. A life (epoch) counts its own offsets, so it says at which number they begin; a
position is one of an offset that its life has reached, and of no later one.

What must not live here: positions of several shards (`position`).
"""

from collections import deque
from itertools import islice

from msgspec import Struct

MAX_CHANGES = 100_000
"""About 10 MB of records; at 5,000 changes/s (500 keys, every window) it reaches back 20 s, at 100/s a quarter of an hour."""
Record = tuple[str, int]
"""(key, version before the change); 0: there was no data."""


class Life(Struct, frozen=True, array_like=True):
    """One epoch: the change at offset `offset + 1` has number `number`."""

    epoch: int
    offset: int
    number: int


class History:
    """The last `max_changes` changes of a shard."""

    __slots__ = ("_changes", "_max_changes", "first", "lives")

    def __init__(self, epoch: int, offset: int, max_changes: int = MAX_CHANGES) -> None:
        """Start empty after `offset`."""
        self._changes: deque[Record] = deque()
        self.first = 0
        """Number of the oldest change that is kept."""
        self.lives = [Life(epoch, offset, 0)]
        """The last is the present one."""
        self._max_changes = max_changes

    def restore(self, lives: list[Life], first: int, changes: list[Record]) -> None:
        """Put what earlier lives left before this one, which has changed nothing yet."""
        present = self.lives[-1]
        self.first = first
        self._changes.extend(changes)
        self.lives = [*lives, Life(present.epoch, present.offset, self.next)]
        self._trim()

    def record(self, key: str, from_version: int) -> None:
        """Note the change at the next offset."""
        self._changes.append((key, from_version))
        if len(self._changes) > self._max_changes:
            self._trim()

    def _trim(self) -> None:
        while len(self._changes) > self._max_changes:
            self._changes.popleft()
            self.first += 1
        while len(self.lives) > 1 and self.lives[1].number < self.first:
            del self.lives[0]

    @property
    def next(self) -> int:
        """The number that the next change will have."""
        return self.first + len(self._changes)

    def numbered(self, number: int) -> list[Record]:
        """Return the changes from `number` on."""
        found = list(islice(reversed(self._changes), max(self.next - number, 0)))
        found.reverse()
        return found

    def since(self, epoch: int, offset: int) -> dict[str, int] | None:
        """Return key -> version held at a position, of every entry that changed after it.

        None where that is not known: the history does not reach back so far, or that life has not come so far.
        """
        ends = [*(life.number for life in self.lives[1:]), self.next]
        for life, end in zip(self.lives, ends, strict=True):
            if life.epoch == epoch:
                number = life.number + offset - life.offset
                if not max(life.number, self.first) <= number <= end:
                    return None
                # Going back in time, the last that is put in counts: the first change after the position.
                return dict(islice(reversed(self._changes), self.next - number))
        return None
