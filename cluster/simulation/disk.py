"""A disk: a store that outlives processes, and of which a power cut leaves what was synced.

Syncs take their time: one that began covers what was committed before it began, and only once it is done.

What must not live here: when to sync (`world`).
"""

import copy
from collections.abc import Callable

from cluster.core.transaction import Store, Stored, Transaction


class Disk:
    """See the module. It is a `Store`."""

    __slots__ = ("_make", "_safe", "_store", "_unsafe")

    def __init__(self, make: Callable[[], Store]) -> None:
        """`make`: makes a store in memory, without slots, whose rows nobody changes."""
        self._make = make
        self._store = make()
        self._safe = make()
        """What a power cut leaves."""
        self._unsafe: list[Callable[[Store], object]] = []
        """What was done since."""

    def _do(self, what: Callable[[Store], object]) -> None:
        what(self._store)
        self._unsafe.append(what)

    def load(self) -> Stored | None:
        """Return what was stored."""
        return self._store.load()

    def commit(self, transaction: Transaction) -> None:
        """Store a transaction."""
        self._do(lambda store: store.commit(transaction))

    def begin_sync(self) -> Callable[[], None]:
        """Return what makes safe what is there now, to be called when it is written."""
        covered = list(self._unsafe)

        def done() -> None:
            for what in covered:
                if what in self._unsafe:  # else another sync has covered it, or a power cut was before it
                    what(self._safe)
                    self._unsafe.remove(what)

        return done

    def sync(self) -> None:
        """Make safe what is there."""
        self.begin_sync()()

    def cut_power(self) -> None:
        """Lose what was not synced."""
        self._unsafe = []
        self._store = self._make()
        for name, value in vars(self._safe).items():
            setattr(self._store, name, copy.copy(value))

    def lose(self) -> None:
        """Lose everything: the volume is gone."""
        self._unsafe = []
        self._store, self._safe = self._make(), self._make()

    def size(self) -> int:
        """Return the bytes of the entries' data."""
        return self._store.size()

    def close(self) -> None:
        """What is stored stays."""
