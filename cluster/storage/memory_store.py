"""A store that lasts as long as its process: for shards with a standby and no directory, and for simulations, where it outlives its shard."""

from collections.abc import Iterator
from hashlib import blake2b
from heapq import nsmallest
from itertools import islice
from typing import Any, TypeVar

import msgspec

from cluster.core.digest import Digest, digest_of
from cluster.core.history import Life, Past, Record, Step
from cluster.core.messages import Check, Checkpoint
from cluster.core.mutation_queue import MutationRecord
from cluster.core.placement import SlotMap
from cluster.core.role import Standing
from cluster.core.transaction import Cursor, Result, Stored, StoredEntry, Transaction, empty

T = TypeVar("T")
K = TypeVar("K")
_ENCODE = msgspec.msgpack.Encoder().encode
MAPS = "maps"
SLICE_ROWS = 250
"""Rows in a slice, of whatever size: they are not copied."""


class MemoryStore:
    """See the module."""

    def __init__(self) -> None:
        self.standing: Standing | None = None
        self._last: Transaction | None = None
        self._entries: dict[str, StoredEntry] = {}
        self._cursors: dict[str, Cursor] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        self._results: dict[str, Result] = {}
        self._changes: dict[int, Record] = {}
        self._lives: list[Life] = []
        self._mutations: dict[str, MutationRecord] = {}
        self._steps: list[Step] = []
        self._maps: dict[str, tuple[SlotMap | None, SlotMap | None]] = {}
        """Under `MAPS`: the one that counts, and the next."""
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
            *self._maps.get(MAPS, (None, None)),
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
            self._maps[MAPS] = (transaction.map, transaction.next_map)
        _update(self._pasts, transaction.pasts)

    def stand(self, standing: Standing) -> None:
        """Note in which role it is written."""
        self.standing = standing

    def clear(self) -> None:
        """Forget everything, and not be whole from now on."""
        self.standing, self._last, self._lives, self._steps = Standing(0, is_whole=False), None, [], []
        for table in self._tables:
            table.clear()

    @property
    def _tables(self) -> tuple[dict[Any, Any], ...]:
        """As digests name them."""
        return (
            self._entries,
            self._cursors,
            self._checkpoints,
            self._results,
            self._mutations,
            self._changes,
            self._maps,
            self._pasts,
        )

    def slices(self, _size: int) -> Iterator[Transaction]:
        """Return all rows, some at a time whatever their size, each slice as the rows are when it is asked for."""
        if (made := self._sliced()) is not None:  # of a store without rows, too
            slot_map, next_map = self._maps.get(MAPS, (None, None))
            yield msgspec.structs.replace(made, map=slot_map, next_map=next_map)
        for shard in list(self._pasts):
            if shard in self._pasts and (made := self._sliced()) is not None:
                yield msgspec.structs.replace(made, pasts={shard: self._pasts[shard]})
        for name in ("entries", "cursors", "checkpoints", "results", "mutations"):
            table: dict[str, Any] = getattr(self, f"_{name}")
            remaining = iter(list(table))
            while names := list(islice(remaining, SLICE_ROWS)):
                if (made := self._sliced()) is not None:
                    rows = {each: table[each] for each in names if each in table}
                    yield msgspec.structs.replace(made, **{name: rows})
        for number in range(min(self._changes, default=0), max(self._changes, default=-1) + 1, SLICE_ROWS):
            made = self._sliced()
            kept = (
                [self._changes[n] for n in range(max(number, made.first), number + SLICE_ROWS) if n in self._changes]
                if made
                else []
            )
            if made is not None and kept:
                yield msgspec.structs.replace(made, number=max(number, made.first), changes=kept)

    def _sliced(self) -> Transaction | None:
        last = self._last
        return None if last is None else empty(last.epoch, last.offset, self._lives, last.first, self._steps)

    def digest(self, table: int, after: bytes, rows: int) -> Check:
        """Return a digest of at most so many rows of a table (beyond the last: of the first) that follow `after`."""
        table = table if table < len(self._tables) else 0
        found = nsmallest(rows + 1, self._keyed(table, after, b""))
        until = found[rows - 1][0] if len(found) > rows else b""
        return self._digest(table, after, until, found[:rows])

    def matches(self, check: Check) -> bool:
        """Whether it has the very rows that a digest was made of."""
        rows = sorted(self._keyed(check.table, check.after, check.until))
        return self._digest(check.table, check.after, check.until, rows) == check

    def _digest(self, table: int, after: bytes, until: bytes, rows: list[tuple[bytes, Any]]) -> Check:
        digest = blake2b(digest_size=16)
        for key, name in rows:
            digest.update(key)
            digest.update(_ENCODE(self._tables[table][name]))
        return Check(table, after, until, digest.digest())

    def _keyed(self, table: int, after: bytes, until: bytes) -> Iterator[tuple[bytes, Any]]:
        for name in self._tables[table]:
            key = name.to_bytes(8, "big") if isinstance(name, int) else name.encode()
            if key > after and not (until and key > until):
                yield key, name

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
