"""A store that lasts as long as its process: for shards with a standby and no directory, and for simulations, where it outlives its shard."""

from collections.abc import Iterator
from hashlib import blake2b
from heapq import nsmallest
from itertools import islice
from typing import Any, TypeVar

import msgspec

from cluster.core.digest import Digest, digest_of
from cluster.core.history import Life, Record
from cluster.core.messages import Check, Checkpoint
from cluster.core.mutation_queue import MutationRecord
from cluster.core.role import Standing
from cluster.core.transaction import Cursor, Result, Stored, StoredEntry, Transaction, empty

T = TypeVar("T")
_ENCODE = msgspec.msgpack.Encoder().encode
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

    def stand(self, standing: Standing) -> None:
        """Note in which role it is written."""
        self.standing = standing

    def clear(self) -> None:
        """Forget everything, and not be whole from now on."""
        self.standing, self._last, self._lives = Standing(0, is_whole=False), None, []
        for table in self._tables:
            table.clear()

    @property
    def _tables(self) -> tuple[dict[Any, Any], ...]:
        """As digests name them."""
        return (self._entries, self._cursors, self._checkpoints, self._results, self._mutations, self._changes)

    def slices(self, _size: int) -> Iterator[Transaction]:
        """Return all rows, some at a time whatever their size, each slice as the rows are when it is asked for."""
        if (made := self._sliced()) is not None:  # of a store without rows, too
            yield made
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
        return None if last is None else empty(last.epoch, last.offset, self._lives, last.first)

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


def _update(table: dict[str, T], rows: dict[str, T | None]) -> None:
    for name, row in rows.items():
        if row is None:
            table.pop(name, None)
        else:
            table[name] = row
