"""History: which entries changed since a position, for clients that come back.

It keeps no values. A client that resumes needs each entry it missed once, at its present version, whatever happened in between; so a
record is (key, version before the change), and the first record of a key after a position says what a client there holds.

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
    """The last `max_changes` changes of a shard."""

    __slots__ = ("_changes", "_max_changes", "first", "lives", "steps")

    def __init__(self, epoch: int, offset: int, max_changes: int = MAX_CHANGES) -> None:
        """Start empty after `offset`."""
        self._changes: deque[Record] = deque()
        self.first = 0
        """Number of the oldest change that is kept."""
        self.lives = [Life(epoch, offset, 0)]
        """The last is the present one."""
        self.steps: list[Step] = []
        self._max_changes = max_changes

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

    def restore(self, lives: list[Life], first: int, changes: list[Record], steps: list[Step] | None = None) -> None:
        """Put what earlier lives left before this one, which has changed nothing yet."""
        self.steps = [*(steps or []), *self.steps]
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

    def since(self, epoch: int, offset: int) -> dict[str, int] | None:
        """Return key -> version held at a position, of every entry that changed after it.

        None where that is not known: the history does not reach back so far, or that life has not come so far.
        """
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
