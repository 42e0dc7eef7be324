"""A store that lasts as long as its process: for simulations, where it outlives the shard it belongs to."""

from typing import TypeVar

from cluster.core.digest import Digest, digest_of
from cluster.core.history import Life, Past, Record, Step
from cluster.core.messages import Checkpoint
from cluster.core.mutation_queue import MutationRecord
from cluster.core.placement import SlotMap
from cluster.core.transaction import Cursor, Result, Stored, StoredEntry, Transaction

T = TypeVar("T")
K = TypeVar("K")


class MemoryStore:
    """See the module."""

    def __init__(self) -> None:
        self._last: Transaction | None = None
        self._entries: dict[str, StoredEntry] = {}
        self._cursors: dict[str, Cursor] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        self._results: dict[str, Result] = {}
        self._changes: dict[int, Record] = {}
        self._lives: list[Life] = []
        self._mutations: dict[str, MutationRecord] = {}
        self._steps: list[Step] = []
        self._maps: tuple[SlotMap | None, SlotMap | None] = (None, None)
        self._pasts: dict[int, Past] = {}

    def load(self) -> Stored | None:
        """Return what was stored."""
        last = self._last
        if last is None:
            return None
        changes = [self._changes[number] for number in sorted(self._changes)]
        return Stored(
            last.epoch,
            last.offset,
            list(self._entries.values()),
            dict(self._cursors),
            dict(self._checkpoints),
            dict(self._results),
            list(self._lives),
            min(self._changes, default=last.number),
            changes,
            list(self._mutations.values()),
            list(self._steps),
            *self._maps,
            dict(self._pasts),
        )

    def commit(self, transaction: Transaction) -> None:
        """Store a transaction."""
        self._last = transaction
        _update(self._entries, transaction.entries)
        _update(self._cursors, transaction.cursors)
        _update(self._checkpoints, transaction.checkpoints)
        _update(self._results, transaction.results)
        _update(self._mutations, transaction.mutations)
        self._changes.update(enumerate(transaction.changes, transaction.number))
        for number in [number for number in self._changes if number < transaction.first]:
            del self._changes[number]
        self._lives = transaction.lives
        self._steps = transaction.steps
        if transaction.map is not None:
            self._maps = (transaction.map, transaction.next_map)
        _update(self._pasts, transaction.pasts)

    def sync(self) -> None:
        """There is no disk."""

    def size(self) -> int:
        """Return the bytes of the entries' data."""
        return sum(len(entry.data) for entry in self._entries.values())

    def content_digest(self) -> str:
        """Return the digest of all its rows."""
        stored = self.load()
        return Digest().hex if stored is None else digest_of(stored)

    def close(self) -> None:
        """What is stored stays."""


def _update(table: dict[K, T], rows: dict[K, T | None]) -> None:
    for name, row in rows.items():
        if row is None:
            table.pop(name, None)
        else:
            table[name] = row
