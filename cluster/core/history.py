"""History: which entries changed since an offset, for clients that come back.

It keeps no values. A client that resumes needs each entry it missed once, at its present version, whatever happened in between; so a
record is (key, version before the change), and the first record of a key after an offset says what a client at that offset holds.
What must not live here: positions of several shards (`position`).
"""

from collections import deque
from itertools import islice

MAX_CHANGES = 100_000
"""About 10 MB of records; at 5,000 changes/s (500 keys, every window) it reaches back 20 s, at 100/s a quarter of an hour."""


class History:
    """The last `max_changes` changes of a shard, by offset."""

    __slots__ = ("_changes", "_first", "_max_changes")

    def __init__(self, offset: int, max_changes: int = MAX_CHANGES) -> None:
        """Start empty after `offset`."""
        self._changes: deque[tuple[str, int]] = deque()
        self._first = offset + 1
        self._max_changes = max_changes

    def record(self, key: str, from_version: int) -> None:
        """Note the change at the next offset."""
        self._changes.append((key, from_version))
        if len(self._changes) > self._max_changes:
            self._changes.popleft()
            self._first += 1

    @property
    def offset(self) -> int:
        """The offset of the last change."""
        return self._first + len(self._changes) - 1

    def since(self, offset: int) -> dict[str, int] | None:
        """Return key -> version held at `offset`, of every entry that changed after it.

        None where that is not known: the history does not reach back so far, or has not come so far.
        """
        if offset < self._first - 1 or offset > self.offset:
            return None
        # Going back in time, the last that is put in counts: the first change after `offset`.
        return dict(islice(reversed(self._changes), self.offset - offset))
