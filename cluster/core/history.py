"""History: which entries changed since a position, for clients that come back.

It keeps no values. A client that resumes needs each entry it missed once, at its present version, whatever happened in between; so a
record is (key, version before the change), and the first record of a key after a position says what a client there holds.

It is bounded three ways, since each alone fails somewhere: by changes, as what answers a client goes through them; by bytes, as keys may
be long; by age, since who was away for longer is as well served by a snapshot.

Changes are numbered through all lives of a shard. A life (epoch) counts its own offsets, so it says at which number they begin; a
position is one of an offset that its life has reached, and of no later one. Where slots come from a shard with a higher offset, the life
goes on at that: it has two entries then, each with offsets of its own.

When slots move, a position may name shards that had them and not the one that has them. So each step from one slot map to the next is
noted with the number at which it was taken, in every shard: a position of an earlier map means there, in a shard that it does not name.

What must not live here: positions of several shards (`position`).
"""

from collections import deque
from itertools import islice

from msgspec import Struct

MAX_CHANGES = 100_000
"""About 10 MB of records; at 5,000 changes/s (500 keys, every window) it reaches back 20 s, at 100/s a quarter of an hour."""
MAX_BYTES = 16 * 1024 * 1024
"""With keys of 60 characters 100,000 changes take as much, so that the number of changes is what counts; with keys of 1 KiB, 15,000."""
MAX_AGE_MS = 3_600_000.0
"""An hour: a laptop that was shut for a meeting goes on; a page of yesterday begins anew."""
RECORD_BYTES = 100
"""Of a record beside its key, which an entry that is gone has left to it."""
MARK_MS = 1_000.0
"""How exactly the age of changes is known: a mark is kept for each second in which there was one."""
Record = tuple[str, int]
"""(key, version before the change); 0: there was no data."""


class Step(Struct, frozen=True, array_like=True):
    """The change of number `number` was the first under the slot map `later`, which followed on `earlier`."""

    earlier: int
    """Its epoch; -1: the shard was made for the move, and had nothing before."""
    later: int
    number: int


class Life(Struct, frozen=True, array_like=True):
    """One epoch: the change at offset `offset + 1` has number `number`."""

    epoch: int
    offset: int
    number: int


class Past(Struct, frozen=True, array_like=True):
    """The history of a shard that is no more."""

    ended: int
    """Epoch of the slot map without it."""
    lives: list[Life]
    first: int
    changes: list[Record]
    steps: list[Step]


class History:
    """The last changes of a shard, within bounds."""

    __slots__ = ("_changes", "_marks", "_max_age_ms", "_max_bytes", "_max_changes", "bytes", "first", "lives", "steps")

    def __init__(
        self,
        epoch: int,
        offset: int,
        max_changes: int = MAX_CHANGES,
        *,
        max_bytes: int = MAX_BYTES,
        max_age_ms: float | None = MAX_AGE_MS,
    ) -> None:
        """Start empty after `offset`. `max_age_ms` None: changes are kept whatever their age."""
        self._changes: deque[Record] = deque()
        self.first = 0
        """Number of the oldest change that is kept."""
        self.lives = [Life(epoch, offset, 0)]
        """The last is the present one."""
        self.steps: list[Step] = []
        self._max_changes = max_changes
        self._max_bytes = max_bytes
        self._max_age_ms = max_age_ms
        self._marks: deque[tuple[float, int]] = deque()
        """(since when, number of the first change since then)."""
        self.bytes = 0
        """What is kept takes, about."""

    def __len__(self) -> int:
        """Changes that are kept."""
        return len(self._changes)

    @classmethod
    def of(cls, past: Past) -> "History":
        """Return the history of a shard that is no more, to be asked."""
        made = cls(0, 0)
        made.lives, made.first, made.steps = past.lives, past.first, past.steps
        made._changes.extend(past.changes)
        return made

    def past(self, ended: int) -> Past:
        """Return what is kept for others of a shard that is about to end."""
        last = Step(ended - 1, ended, self.next)
        return Past(ended, self.lives, self.first, list(self._changes), [*self.steps, last])

    def restore(
        self, lives: list[Life], first: int, changes: list[Record], now_ms: float, steps: list[Step] | None = None
    ) -> None:
        """Put what earlier lives left before this one, which has changed nothing yet. Their age counts from now."""
        self.steps = [*(steps or []), *self.steps]
        present = self.lives[-1]
        self.first = first
        self._changes.extend(changes)
        self.bytes = sum(len(key) + RECORD_BYTES for key, _ in changes)
        self._marks.append((now_ms, first))
        self.lives = [*lives, Life(present.epoch, present.offset, self.next)]
        self._trim(now_ms)

    def record(self, key: str, from_version: int, now_ms: float) -> None:
        """Note the change at the next offset."""
        if not self._marks or now_ms - self._marks[-1][0] >= MARK_MS:
            self._marks.append((now_ms, self.next))
            self._trim(now_ms)
        self._changes.append((key, from_version))
        self.bytes += len(key) + RECORD_BYTES
        if len(self._changes) > self._max_changes or self.bytes > self._max_bytes:
            self._trim(now_ms)

    def _trim(self, now_ms: float) -> None:
        oldest = self.first
        if self._max_age_ms is not None:
            while self._marks and self._marks[0][0] + MARK_MS <= now_ms - self._max_age_ms:
                self._marks.popleft()
                oldest = self._marks[0][1] if self._marks else self.next
        while self._changes and (
            self.first < oldest or len(self._changes) > self._max_changes or self.bytes > self._max_bytes
        ):
            key, _ = self._changes.popleft()
            self.bytes -= len(key) + RECORD_BYTES
            self.first += 1
        while len(self.lives) > 1 and self.lives[1].number < self.first:
            del self.lives[0]
        while self.steps and self.steps[0].number < self.first:
            self.steps = self.steps[1:]

    def rise(self, offset: int) -> None:
        """The life goes on at a higher offset."""
        self.lives = [*self.lives, Life(self.lives[-1].epoch, offset, self.next)]

    def step(self, earlier: int, later: int) -> None:
        """Another slot map counts from the next change on."""
        self.steps = [*self.steps, Step(earlier, later, self.next)]

    @property
    def next(self) -> int:
        """The number that the next change will have."""
        return self.first + len(self._changes)

    def numbered(self, number: int) -> list[Record]:
        """Return the changes from `number` on."""
        found = list(islice(reversed(self._changes), max(self.next - number, 0)))
        found.reverse()
        return found

    def since(self, epoch: int, offset: int, now_ms: float) -> dict[str, int] | None:
        """Return key -> version held at a position, of every entry that changed after it.

        None where that is not known: the history does not reach back so far, or that life has not come so far.
        """
        self._trim(now_ms)
        ends = [*(life.number for life in self.lives[1:]), self.next]
        for life, end in zip(self.lives, ends, strict=True):
            number = life.number + offset - life.offset
            if life.epoch == epoch and max(life.number, self.first) <= number <= end:
                return self._after(number)
        return None

    def since_map(self, map_epoch: int) -> dict[str, int] | None:
        """As `since`, for a position of an earlier slot map that does not name this shard."""
        for step in self.steps:
            if step.earlier <= map_epoch < step.later and step.number >= self.first:
                return self._after(step.number)
        return None

    def _after(self, number: int) -> dict[str, int]:
        # Going back in time, the last that is put in counts: the first change after the position.
        return dict(islice(reversed(self._changes), self.next - number))
