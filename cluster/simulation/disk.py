"""A disk: a store that outlives processes, and of which a power cut leaves what was synced. A volume: the disks that a shard has at one place.

Syncs take their time: one that began covers what was committed before it began, and only once it is done.

What must not live here: when to sync, which disk counts (`holder`).
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

from cluster.core.messages import Check
from cluster.core.role import Standing
from cluster.core.transaction import Store, Stored, Transaction


class Disk:
    """See the module. It is a `Store`."""

    __slots__ = (
        "_come_to",
        "_make",
        "_power_cuts",
        "_safe",
        "_safe_count",
        "_safe_to",
        "_store",
        "_unsafe",
        "id",
        "user",
    )

    def __init__(self, id_: str, make: Callable[[], Store]) -> None:
        """`make`: makes a store in memory, without slots, whose rows nobody changes."""
        self.id = id_
        self.user: object = None
        """The process that has it."""
        self._make = make
        self._store: Any = make()
        self._safe: Any = make()
        """What a power cut leaves."""
        self._unsafe: list[Callable[[Any], object]] = []
        """What was done since."""
        self._safe_count = self._power_cuts = 0
        self._come_to = self._safe_to = (0, 0)

    def _do(self, what: Callable[[Any], object]) -> None:
        what(self._store)
        self._unsafe.append(what)

    @property
    def store(self) -> "Disk":
        """What reads and writes it."""
        return self

    def load(self) -> Stored | None:
        """Return what was stored."""
        return self._store.load()  # type: ignore[no-any-return]

    @property
    def come_to(self) -> tuple[int, int]:
        """(epoch, offset) of the last transaction."""
        return self._come_to

    @property
    def standing(self) -> Standing:
        """In which role it was written: whole, where nobody said anything, of one who was alone."""
        told: Standing | None = self._store.standing
        return told or Standing(self._come_to[0], is_whole=self._come_to != (0, 0))

    def commit(self, transaction: Transaction) -> None:
        """Store a transaction."""
        self._do(lambda store: store.commit(transaction))
        self._come_to = (transaction.epoch, transaction.offset)

    def stand(self, standing: Standing) -> None:
        """Note in which role it is written; that, and all before, is safe at once."""
        self._do(lambda store: store.stand(standing))
        self.sync()

    def clear(self) -> None:
        """Forget everything."""
        self._do(lambda store: store.clear())
        self._come_to = (0, 0)

    def slices(self, size: int) -> Iterator[Transaction]:
        """Return all rows, some at a time."""
        return self._store.slices(size)  # type: ignore[no-any-return]

    def digest(self, table: int, after: bytes, rows: int) -> Check:
        """Return a digest of the rows that follow."""
        return self._store.digest(table, after, rows)  # type: ignore[no-any-return]

    def matches(self, check: Check) -> bool:
        """Whether it has the rows of a digest."""
        return self._store.matches(check)  # type: ignore[no-any-return]

    def begin_sync(self) -> Callable[[], None]:
        """Return what makes safe what is there now, to be called when it is written."""
        covered, come_to, power_cuts = self._safe_count + len(self._unsafe), self._come_to, self._power_cuts

        def done() -> None:
            count = covered - self._safe_count
            if power_cuts != self._power_cuts or count <= 0:
                return  # it was lost, or a later sync has covered it
            for what in self._unsafe[:count]:
                what(self._safe)
            del self._unsafe[:count]
            self._safe_count, self._safe_to = covered, come_to

        return done

    def sync(self) -> None:
        """Make safe what is there."""
        self.begin_sync()()

    def cut_power(self) -> None:
        """Lose what was not synced."""
        self._unsafe = []
        self._power_cuts += 1
        self._store = self._make()
        for name, value in vars(self._safe).items():
            setattr(self._store, name, copy.copy(value))
        self._come_to = self._safe_to

    def size(self) -> int:
        """Return the bytes of the entries' data."""
        return self._store.size()  # type: ignore[no-any-return]

    def content_digest(self) -> str:
        """Return the digest of all its rows."""
        return self._store.content_digest()  # type: ignore[no-any-return]

    def close(self) -> None:
        """What is stored stays."""


class Volume:
    """See the module."""

    def __init__(self, name: str, make: Callable[[], Store]) -> None:
        self._name = name
        self._make = make
        self._made = 0
        self.disks: list[Disk] = []

    def take(self, user: object) -> Disk | None:
        """Take the disk that is whole under the highest epoch and has come furthest; None: there is none."""
        best = max(
            self.disks, key=lambda disk: (disk.standing.is_whole, disk.standing.epoch, disk.come_to), default=None
        )
        if best is not None:
            best.user = user
        return best

    def begin(self, user: object) -> Disk:
        """Begin an empty one."""
        self._made += 1
        disk = Disk(f"{self._name}/{self._made}", self._make)
        disk.user = user
        self.disks.append(disk)
        return disk

    def tidy(self, user: object) -> None:
        """Remove what a process has not taken."""
        self.disks = [disk for disk in self.disks if disk.user is user]

    def cut_power(self) -> None:
        """Lose what was not synced."""
        for disk in self.disks:
            disk.cut_power()

    def lose(self) -> None:
        """Lose everything."""
        self.disks = []
