"""What entries that people edit were at their last versions, so that an edit of an earlier one can be merged into the present one.

The history keeps no values (ADR 3), and for most entries nobody asks for earlier ones. An entry is followed from the first direct write
that meets it; from then on each of its values is kept as the JSON text, which is mostly at hand. Three limits bound it: so many values of an
entry, so many bytes of an entry, and so many of all together; what was kept longest goes first, and what is gone cannot be merged with, so
that the writer gets the plain conflict. It is not stored: a new life begins without.

What must not live here: merging (`three_way_merge`), when an entry changes (`shard_state`).
"""

from collections import OrderedDict

from cluster.core.entry import Value

MAX_VALUES = 64
"""Of one entry: an editor that lags by more than 64 changes should look at the entry anew."""
ENTRY_BYTES = 1024 * 1024
"""As much as one body may have, so any value that can be written can be kept."""
MAX_BYTES = 16 * 1024 * 1024
"""Of a shard: 64 values each of 16 documents of 16 KB, or the last values of 10,000 small entries."""
FOLLOWED_BYTES = 1_000
"""What an entry takes beside its values, about, with a key of some length, so that many small ones count too."""
ROW_BYTES = 100
"""What a value takes beside its text, about."""


class _Followed:
    __slots__ = ("size", "values")

    def __init__(self) -> None:
        self.values: dict[int, bytes] = {}
        """By version, oldest first."""
        self.size = 0
        """Bytes of the values."""

    def put(self, version: int, data: bytes) -> None:
        if version in self.values:
            return
        self.values[version] = data
        self.size += len(data) + ROW_BYTES
        while len(self.values) > MAX_VALUES or (self.size > ENTRY_BYTES and len(self.values) > 1):
            gone = self.values.pop(next(iter(self.values)))
            self.size -= len(gone) + ROW_BYTES


class RecentValues:
    """See the module."""

    __slots__ = ("_followed", "bytes_held")

    def __init__(self) -> None:
        self._followed: OrderedDict[str, _Followed] = OrderedDict()
        """By key; who was written directly last stands last."""
        self.bytes_held = 0

    def follow(self, key: str, version: int, data: bytes) -> None:
        """A direct write meets an entry that is at a version."""
        if key not in self._followed:
            self._followed[key] = _Followed()
            self.bytes_held += FOLLOWED_BYTES
        self._followed.move_to_end(key)
        self._put(key, version, data)

    def changed(self, key: str, version: int, value: Value) -> None:
        """An entry is at another version."""
        if key in self._followed:
            self._put(key, version, value.json())

    def _put(self, key: str, version: int, data: bytes) -> None:
        followed = self._followed[key]
        self.bytes_held -= followed.size
        followed.put(version, data)
        self.bytes_held += followed.size
        while self.bytes_held > MAX_BYTES:
            _, gone = self._followed.popitem(last=False)
            self.bytes_held -= gone.size + FOLLOWED_BYTES

    def removed(self, key: str) -> None:
        """An entry is gone."""
        followed = self._followed.pop(key, None)
        if followed is not None:
            self.bytes_held -= followed.size + FOLLOWED_BYTES

    def at(self, key: str, version: int) -> bytes | None:
        """Return what an entry was at a version; None: that is not known."""
        followed = self._followed.get(key)
        return None if followed is None else followed.values.get(version)
