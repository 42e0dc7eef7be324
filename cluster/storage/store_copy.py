"""A copy of a shard's store, made on the node's own disk and handed over piece by piece.

Whoever asks may be slow; the store's own pages must not be held meanwhile, or its file would grow with every commit. So a copy is made at
the speed of the disk, beside the store and in its directory, and read from there. It takes as much room as what it holds.

What must not live here: who asks (`actors`), in which order shards are asked (`wire.backup`).
"""

import shutil
from collections import Counter
from collections.abc import Iterator

from cluster.core.digest import Digest
from cluster.core.stored_rows import Meta, Row, checkpoint_row, frame, meta_frame
from cluster.errors import StoreError
from cluster.storage.lmdb_store import COPY, LmdbStore
from cluster.wire.backup import PIECE_BYTES, Piece, Whole


class StoreCopy:
    """See the module. `take`, `settle`, then `piece` until the last, and `drop` in any case.

    All of it blocks, and is to be called on a thread of its own, the first three after `LmdbStore.make_room`.
    """

    def __init__(self, store: LmdbStore, backup: str, shard: int) -> None:
        """Note the checkpoints as they are now.

        Raises:
            StoreError: the store cannot be read.
        """
        self.backup = backup
        self._store = store
        self._shard = shard
        self._checkpoints = [row for _, row in store.rows_beside("checkpoint")]
        self._mutations: list[Row] = []
        self._directory = store.directory / COPY
        self._copy: LmdbStore | None = None
        self._taken_ms = 0.0
        self._frames: Iterator[bytes] | None = None
        self._meta = Meta(0, 0, 0, [], 0)
        self._digest = Digest()
        self._rows: Counter[str] = Counter()
        self._last: tuple[int, Piece] | None = None

    def take(self, now_ms: float) -> None:
        """Copy the store, once.

        Raises:
            StoreError: it cannot be written, for want of space as well.
        """
        if self._copy is not None:
            return
        shutil.rmtree(self._directory, ignore_errors=True)
        self._taken_ms = now_ms
        self._store.copy_to(self._directory)
        self._copy = LmdbStore(self._directory, sync="never")

    def settle(self) -> None:
        """Note the mutations as they are now.

        Raises:
            StoreError: the store cannot be read.
        """
        self._mutations = self._store.rows_beside("mutation")

    def piece(self, number: int) -> Piece:
        """Return a piece; the one asked for last may be asked for again.

        Raises:
            StoreError: it cannot be read, or is not the next.
        """
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        if self._copy is None or number != (0 if self._last is None else self._last[0] + 1):
            raise StoreError(f"{self._directory}: piece {number} is not the next")
        if self._frames is None:
            self._meta = self._copy.meta() or self._meta
            self._frames = self._framed(self._copy)
        pieces = bytearray() if number else bytearray(meta_frame(self._meta))
        whole: Whole | None = None
        while len(pieces) < PIECE_BYTES:
            framed = next(self._frames, None)
            if framed is None:
                epoch, offset = self._meta.epoch, self._meta.offset
                whole = Whole(self._shard, epoch, offset, self._taken_ms, dict(self._rows), self._digest.hex)
                break
            pieces += framed
        self._last = (number, Piece(bytes(pieces), whole))
        return self._last[1]

    def _framed(self, copy: LmdbStore) -> Iterator[bytes]:
        for table, row in self._wanted(copy):
            self._digest.add(table, row)
            self._rows[table] += 1
            yield frame(table, row)

    def _wanted(self, copy: LmdbStore) -> Iterator[Row]:
        now = {made.sequence: made for made in (checkpoint_row(row) for _, row in copy.rows("checkpoint"))}
        for row in self._checkpoints:
            made = checkpoint_row(row)
            # A sequence that began anew meanwhile has no use for it: without one it begins anew after the restore, too.
            if made.sequence in now and now[made.sequence].incarnation == made.incarnation:
                yield "checkpoint", row
        yield from self._mutations
        yield from copy.rows("entry", "cursor", "result", "change")

    def drop(self) -> None:
        """Take the copy away."""
        self._frames = None
        if self._copy is not None:
            self._copy.close()
            self._copy = None
        shutil.rmtree(self._directory, ignore_errors=True)
