"""A shard's store in a directory of its own, in LMDB: one transaction of ours is one of LMDB's.

What a killed process has committed is in the system's page cache and survives it in every mode; `sync` decides what a machine that
loses power keeps: `always` writes through at each commit, `window` within a window (the owner calls `sync`), and what was synced last is found
whole (`synced_state`); `never` when the system pleases: pages reach the disk in any order, so such a machine may find a store that it cannot
read, or one that lacks rows.

The directory is one process's alone (`flock`, which ends with the process). Within it LMDB's own lock table lets a copy be read on one thread
while another commits: without it pages would be written over that the reader has still to come to. A store that cannot be read, or is of another layout, is
set aside under a name of its own and a new one begun.

It is one thing because whatever is done, storing, copying, comparing, sending on, is done to the same tables of one environment.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from cluster.core.digest import Digest
from cluster.core.history import Past, Record
from cluster.core.messages import Check
from cluster.core.placement import SlotMap
from cluster.core.role import Standing
from cluster.core.stored_rows import (
    Meta,
    Row,
    Table,
    change_row,
    read_checkpoint,
    read_cursor,
    read_entry,
    read_meta,
    read_mutation,
    read_result,
)
from cluster.core.transaction import SCHEMA, Stored, StoredEntry, Transaction, empty, row_key
from cluster.errors import StoreError
from cluster.storage.backup_directory import sync_names
from cluster.storage.synced_state import DATA, KNOWN, META_BYTES, SYNCED, Synced, SyncedState, boot_id, txnid_of

FIRST_MAP_BYTES = 16 * 1024 * 1024
"""Address space to begin with; it doubles when it is used up."""
LOCK_POLL_S = 0.05
_ENCODE = msgspec.msgpack.Encoder().encode
_HOT_ROWS = 16_384
"""Entries whose row's key is remembered, since what changes in one window mostly does in the next: 3 MB with keys of 60 characters."""
_RECORD = msgspec.msgpack.Decoder(Record).decode


_STANDING = msgspec.msgpack.Decoder(Standing).decode
_MAPS = msgspec.msgpack.Decoder(tuple[SlotMap | None, SlotMap | None]).decode
_PAST = msgspec.msgpack.Decoder(Past).decode
_PASTS = b"past/"
"""Before the number of a shard that is no more, in the table of what is kept once."""
UNREADABLE = ".unreadable"
READING = "reading"
"""A file that is there while it is found out what a store holds."""
RENEW_S = 60.0
"""Between tries to write a store anew whose disk did not take what was to be synced: while one is made nothing is committed."""
COPY = "copy"
"""Directory within a store's where a copy of it is made; what a killed process leaves there goes when the store is opened next."""


RENEWED = "renewed"
"""Likewise one where its file is written anew."""


class LmdbStore:
    """See the module. One thread uses it; `sync`, `copy_to` and `rows_beside` may be called from others."""

    def __init__(self, directory: Path, *, sync: str = "window", map_bytes: int = FIRST_MAP_BYTES) -> None:
        """Open or begin a store; `sync` as `storage.sync` of the configuration.

        Raises:
            StoreError: another process has it, or the directory cannot be used.
        """
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / "owner", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StoreError(f"{directory}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise StoreError(f"{directory}: another process has it open") from error
        self._copying = threading.Lock()
        """Held while another thread makes a copy or reads: the map may not move under it."""
        self._committing = threading.Lock()
        """Held while a meta page is written."""
        self._syncing = threading.Lock()
        self._failed = ""
        """Why the disk did not take what was to be synced: what the system could not write it takes for written, so that no sync counts any more."""
        self._renew_at = 0.0
        """When the file may be written anew for that, by the steady clock (s)."""
        self._is_open = False
        self._opened_as = sync, map_bytes
        self._synced: SyncedState | None = None
        self._kept: Any = None
        """A reading of the state that was synced last, so that its pages stay as they are."""
        try:
            with self._reading():
                self._open(directory, sync, map_bytes)
            shutil.rmtree(directory / COPY, ignore_errors=True)
        except (lmdb.Error, OSError) as error:
            if self._synced is not None:
                self._synced.close()
            os.close(self._lock)
            raise StoreError(f"{directory}: {error}") from error

    def _open(self, directory: Path, sync: str, map_bytes: int) -> None:
        held = directory / DATA
        if sync == "window" or (directory / SYNCED).exists():
            self._synced = SyncedState(directory)
        if self._synced is not None and (sync != "window" or not KNOWN):
            self._synced.close(is_over=True)
            self._synced = None
        is_new = not held.exists()
        is_through = sync == "always" or (sync == "window" and not KNOWN)
        size = max(map_bytes, 2 * held.stat().st_size if held.exists() else 0)
        self._env = lmdb.open(
            str(directory), map_size=size, max_dbs=8, sync=is_through, metasync=sync == "always", readahead=False
        )
        try:
            shutil.rmtree(directory / RENEWED, ignore_errors=True)
            self._is_padded = self._pad(held)
            self._open_tables()
            if is_new:
                sync_names(directory)
                sync_names(directory.parent)
            self._file = os.open(held, os.O_RDONLY)
            self._is_open = True
        except (lmdb.Error, OSError):
            self._env.close()
            raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Leave a mark where LMDB ends the process, as it does at some pages that are damaged: the next life reads it in another first."""
        mark = self.directory / READING
        with suppress(OSError):
            mark.touch()
        try:
            yield
        finally:
            with suppress(OSError):
                mark.unlink()

    def _pad(self, held: Path) -> bool:
        """Lengthen a file that is shorter than its pages take. Returns whether it was.

        To read a page that the file does not hold ends the process (SIGBUS). A file may be short and whole, since LMDB does not write pages
        that one transaction both took and gave up; or it has been cut. What is read of the latter now is zeros, which are found out.
        """
        needs = self.size()
        if held.stat().st_size >= needs:
            return False
        os.truncate(held, needs)
        return True

    def _open_tables(self) -> None:
        self._entries = self._env.open_db(b"entries")
        self._cursors = self._env.open_db(b"cursors")
        self._checkpoints = self._env.open_db(b"checkpoints")
        self._results = self._env.open_db(b"results")
        self._changes = self._env.open_db(b"changes")
        self._mutations = self._env.open_db(b"mutations")
        self._meta = self._env.open_db(b"meta")
        self._tables: dict[Table, Any] = {
            "entry": self._entries,
            "cursor": self._cursors,
            "checkpoint": self._checkpoints,
            "result": self._results,
            "change": self._changes,
            "mutation": self._mutations,
        }
        self._checked = (*self._tables.values(), self._meta)
        """As checks name them."""

    def load(self) -> Stored | None:
        """Return what was stored; None: nothing yet.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            with self._reading(), self._env.begin() as reading:
                raw = reading.get(b"state", db=self._meta)
                if raw is None:
                    return None
                meta = read_meta(raw)
                if not 1 <= meta.schema <= SCHEMA:
                    raise StoreError(f"{self.directory}: it is of layout {meta.schema}, this version reads {SCHEMA}")
                return Stored(
                    meta.epoch,
                    meta.offset,
                    [self._whole(read_entry(value)) for _, value in reading.cursor(self._entries)],
                    dict(read_cursor(value) for _, value in reading.cursor(self._cursors)),
                    {
                        made.sequence: made
                        for made in (read_checkpoint(value) for _, value in reading.cursor(self._checkpoints))
                    },
                    dict(read_result(value) for _, value in reading.cursor(self._results)),
                    meta.lives,
                    meta.first,
                    [_RECORD(value) for _, value in reading.cursor(self._changes)],
                    [read_mutation(value) for _, value in reading.cursor(self._mutations)],
                    meta.steps,
                    *((None, None) if (kept := reading.get(b"maps", db=self._meta)) is None else _MAPS(kept)),
                    {
                        int(name.removeprefix(_PASTS)): _PAST(value)
                        for name, value in reading.cursor(self._meta)
                        if name.startswith(_PASTS)
                    },
                )
        except (lmdb.Error, msgspec.MsgspecError) as error:
            raise StoreError(f"{self.directory}: {error}") from error

    def _whole(self, entry: StoredEntry) -> StoredEntry:
        if self._is_padded and b"\0" in entry.data:  # never in JSON: these were pages within a long value
            raise StoreError(f"{self.directory}: {DATA} has been cut short")
        return entry

    def commit(self, transaction: Transaction) -> None:
        """Store a transaction as a whole, or nothing of it.

        Raises:
            StoreError: it cannot be written, with the reason.
        """
        self._transact(lambda writing: self._write(writing, transaction))

    def _transact(self, write: Callable[[Any], None]) -> None:
        """Write in a transaction, with more room where there is too little: also what only takes away needs some."""
        if self._failed and time.monotonic() >= self._renew_at:
            self._renew()
        while True:
            try:
                if (
                    self._synced is not None and self._kept is None
                ):  # the first might write over pages of what was synced last
                    with self._syncing:
                        self._write_through()
                with self._committing, self._env.begin(write=True) as writing:
                    write(writing)
                return
            except lmdb.MapFullError:
                self._grow()
            except (lmdb.Error, OSError) as error:
                raise StoreError(f"{self.directory}: {error}") from error

    def _grow(self) -> None:
        try:
            with self._copying, self._syncing:
                if self._synced is not None:
                    self._sync()  # to move the map ends all readings
                self._kept = None
                self._env.set_mapsize(2 * self._env.info()["map_size"])
                if self._synced is not None:
                    self._kept = self._env.begin()
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"{self.directory}: {error}") from error

    def _renew(self) -> None:
        """Have every page written, to a file that takes the place of this one: what the disk did not take is whole in the system's memory.

        Where that fails too nothing is durable still, and commits go on as long as there is room.
        """
        self._renew_at = time.monotonic() + RENEW_S
        if not self._copying.acquire(blocking=False):
            return  # somebody reads, who may take long
        beside = self.directory / RENEWED
        try:
            with self._syncing:
                if self._is_open:
                    shutil.rmtree(beside, ignore_errors=True)
                    beside.mkdir()
                    self._env.copy(str(beside))
                    with (beside / DATA).open("rb") as copied:
                        os.fsync(copied.fileno())
                    self._give_up()
                try:
                    if (beside / DATA).exists():
                        (beside / DATA).replace(self.directory / DATA)
                    sync_names(self.directory)
                finally:
                    self._open(self.directory, *self._opened_as)
                self._failed = ""
        except (lmdb.Error, OSError) as error:
            self._failed = f"{self.directory}: {error}"
            if self._is_open:
                shutil.rmtree(beside, ignore_errors=True)
            elif self._synced is not None:
                self._synced.close()
                self._synced = None
        finally:
            self._copying.release()

    def _write(self, writing: Any, transaction: Transaction) -> None:
        _put(writing, self._entries, transaction.entries, key=_hot_row_key)
        _put(writing, self._cursors, transaction.cursors, is_named=True)
        _put(writing, self._checkpoints, transaction.checkpoints)
        _put(writing, self._results, transaction.results, is_named=True)
        _put(writing, self._mutations, transaction.mutations)
        with writing.cursor(self._changes) as changes:
            numbered = enumerate(transaction.changes, transaction.number)
            changes.putmulti((number.to_bytes(8, "big"), _ENCODE(change)) for number, change in numbered)
            while changes.first() and int.from_bytes(changes.key(), "big") < transaction.first:
                changes.delete()
        if transaction.map is not None:
            writing.put(b"maps", _ENCODE((transaction.map, transaction.next_map)), db=self._meta)
        for shard, past in transaction.pasts.items():
            name = _PASTS + str(shard).encode()
            if past is None:
                writing.delete(name, db=self._meta)
            else:
                writing.put(name, _ENCODE(past), db=self._meta)
        meta = Meta(
            SCHEMA, transaction.epoch, transaction.offset, transaction.lives, transaction.first, transaction.steps
        )
        writing.put(b"state", _ENCODE(meta), db=self._meta)

    def standing(self) -> tuple[Standing, tuple[int, int]] | None:
        """Return in which role it was written, and the (epoch, offset) it has come to; None: nothing was written yet.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            with self._reading(), self._env.begin() as reading:
                role, raw = reading.get(b"role", db=self._meta), reading.get(b"state", db=self._meta)
                if raw is None and role is None:
                    return None
                meta = None if raw is None else read_meta(raw)
                come_to = (0, 0) if meta is None else (meta.epoch, meta.offset)
                # Before there were roles whoever had the store was alone.
                return (Standing(come_to[0], is_whole=True) if role is None else _STANDING(role)), come_to
        except (lmdb.Error, msgspec.MsgspecError) as error:
            raise StoreError(f"{self.directory}: {error}") from error

    def stand(self, standing: Standing) -> None:
        """Note in which role it is written; that is on the disk at once.

        Raises:
            StoreError: it is not on the disk.
        """
        self._transact(lambda writing: writing.put(b"role", _ENCODE(standing), db=self._meta))
        self.sync()

    def clear(self) -> None:
        """Forget everything, and not be whole from now on.

        Raises:
            StoreError: it has all it had.
        """

        def write(writing: Any) -> None:
            for table in self._checked:
                writing.drop(table, delete=False)
            writing.put(b"role", _ENCODE(Standing(0, is_whole=False)), db=self._meta)

        self._transact(write)

    def slices(self, size: int) -> Iterator[Transaction]:
        """Return all rows, about `size` bytes at a time, each slice as the rows are when it is asked for."""
        # Each in a reading of its own: one that stayed open would keep pages from being used again, and the file from growing.
        yield from self._slices_kept_once()  # of a store without rows, too
        for table in self._tables.values():
            after: bytes | None = b""
            while after is not None:
                made, after = self._slice(table, after, size)
                if made is not None:
                    yield made

    def _slices_kept_once(self) -> Iterator[Transaction]:
        """Return what stands beside the rows: slot maps, and one by one, as they may be long, the histories of shards that are no more."""
        try:
            with self._env.begin() as reading:
                raw, maps = reading.get(b"state", db=self._meta), reading.get(b"maps", db=self._meta)
                pasts = [name for name in reading.cursor(self._meta).iternext(values=False) if name.startswith(_PASTS)]
            if raw is None:
                return
            slot_map, next_map = (None, None) if maps is None else _MAPS(maps)
            yield msgspec.structs.replace(self._empty(read_meta(raw)), map=slot_map, next_map=next_map)
            for name in pasts:
                with self._env.begin() as reading:
                    raw, past = reading.get(b"state", db=self._meta), reading.get(name, db=self._meta)
                if raw is not None and past is not None:
                    kept = {int(name.removeprefix(_PASTS)): _PAST(past)}
                    yield msgspec.structs.replace(self._empty(read_meta(raw)), pasts=kept)
        except (lmdb.Error, msgspec.MsgspecError) as error:
            raise StoreError(f"{self.directory}: {error}") from error

    @staticmethod
    def _empty(meta: Meta) -> Transaction:
        return empty(meta.epoch, meta.offset, meta.lives, meta.first, meta.steps)

    def _slice(self, table: Any, after: bytes, size: int) -> tuple[Transaction | None, bytes | None]:
        """Return the rows behind a key, and the last one's; None: there are none, there are no more."""
        try:
            with self._env.begin() as reading, reading.cursor(table) as cursor:
                raw = reading.get(b"state", db=self._meta)
                if raw is None or not (cursor.set_range(after + b"\0") if after else cursor.first()):
                    return None, None
                rows: list[tuple[bytes, bytes]] = []
                taken = 0
                for key, value in cursor:
                    rows.append((key, value))
                    taken += len(value)
                    if taken >= size:
                        break
                return self._sliced(table, read_meta(raw), rows), rows[-1][0]
        except (lmdb.Error, msgspec.MsgspecError) as error:
            raise StoreError(f"{self.directory}: {error}") from error

    def _sliced(self, table: Any, meta: Meta, rows: list[tuple[bytes, bytes]]) -> Transaction:
        made = self._empty(meta)
        if table is self._entries:
            made.entries.update((entry.key, entry) for entry in (read_entry(value) for _, value in rows))
        elif table is self._cursors:
            made.cursors.update(read_cursor(value) for _, value in rows)
        elif table is self._checkpoints:
            made.checkpoints.update((each.sequence, each) for each in (read_checkpoint(value) for _, value in rows))
        elif table is self._results:
            made.results.update(read_result(value) for _, value in rows)
        elif table is self._mutations:
            made.mutations.update((record.id, record) for record in (read_mutation(value) for _, value in rows))
        else:
            number = int.from_bytes(rows[0][0], "big")
            return msgspec.structs.replace(made, number=number, changes=[_RECORD(value) for _, value in rows])
        return made

    def digest(self, table: int, after: bytes, rows: int) -> Check:
        """Return a digest of at most so many rows of a table (beyond the last: of the first) that follow `after`."""
        return self._digest(table if table < len(self._checked) else 0, after, rows, b"")

    def matches(self, check: Check) -> bool:
        """Whether it has the very rows that a digest was made of."""
        return self._digest(check.table, check.after, None, check.until) == check

    def _digest(self, table: int, after: bytes, rows: int | None, until: bytes) -> Check:
        digest = blake2b(digest_size=16)
        last = b""
        try:
            with self._env.begin() as reading, reading.cursor(self._checked[table]) as cursor:
                found = cursor.set_range(after + b"\0") if after else cursor.first()
                for key, value in cursor if found else ():
                    if until and key > until:
                        break
                    if rows == 0:
                        return Check(table, after, last, digest.digest())
                    if key != b"role":  # that differs
                        digest.update(key)
                        digest.update(value)
                    last = key
                    rows = None if rows is None else rows - 1
        except lmdb.Error as error:
            raise StoreError(f"{self.directory}: {error}") from error
        return Check(table, after, until, digest.digest())

    def sync(self) -> None:
        """Wait until what was committed is on the disk.

        Raises:
            StoreError: it may not be, and will not be again: what the system could not write it takes for written.
        """
        with self._syncing:
            self._sync()

    def _sync(self) -> None:
        if self._failed:
            raise StoreError(self._failed)
        try:
            self._write_through()
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"{self.directory}: {error}") from error

    def _write_through(self) -> None:
        if self._synced is None:
            self._sync_pages()
            return
        keeping, state = self._newest()
        try:
            self._sync_pages()
            self._synced.note(state)  # should that fail it is written anew with the next
        except (lmdb.Error, OSError):
            keeping.abort()
            raise
        if self._kept is not None:
            self._kept.abort()
        self._kept = keeping

    def _sync_pages(self) -> None:
        try:
            self._env.sync(True)
        except (lmdb.Error, OSError) as error:
            self._failed = f"{self.directory}: {error}"
            raise

    def _newest(self) -> tuple[Any, Synced]:
        """Return a reading of the newest state, which keeps its pages, and what brings it back."""
        page_bytes = int(self._env.stat()["psize"])
        with self._committing:
            reading = self._env.begin()
            meta = os.pread(self._file, META_BYTES, reading.id() % 2 * page_bytes)
        assert txnid_of(meta) == reading.id(), "LMDB's meta pages are not where they are in version 0.9"
        return reading, Synced(boot_id(), reading.id(), page_bytes, meta)

    def size(self) -> int:
        """Return the bytes it takes on the disk."""
        return int(self._env.info()["last_pgno"] + 1) * int(self._env.stat()["psize"])

    def meta(self) -> Meta | None:
        """Return what stands beside the rows; None: nothing was stored yet.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            with self._env.begin() as reading:
                raw = reading.get(b"state", db=self._meta)
            return None if raw is None else read_meta(raw)
        except (lmdb.Error, msgspec.MsgspecError) as error:
            raise StoreError(f"{self.directory}: {error}") from error

    def rows(self, *tables: Table) -> Iterator[Row]:
        """Yield the rows of some tables (none named: of all), of one moment. They are to be read to the end before the next commit, which may move the map.

        Raises:
            StoreError: it cannot be read.
        """
        try:
            with self._env.begin() as reading:
                for table in tables or self._tables:
                    for key, row in reading.cursor(self._tables[table]):
                        number = int.from_bytes(key, "big")
                        yield table, change_row(number, _RECORD(row)) if table == "change" else row
        except (lmdb.Error, msgspec.MsgspecError) as error:
            raise StoreError(f"{self.directory}: {error}") from error

    def rows_beside(self, table: Table) -> list[Row]:
        """Return the rows of a table, of one moment. On a thread of its own, while others commit; best after `make_room`.

        Raises:
            StoreError: it cannot be read.
        """
        with self._copying:
            return list(self.rows(table))

    def content_digest(self) -> str:
        """Return the digest of all its rows, of one moment.

        Raises:
            StoreError: it cannot be read.
        """
        return Digest(self.rows()).hex

    def make_room(self) -> None:
        """Before a copy, or reading beside: have room for as much again as is stored, so that commits meanwhile hardly ever wait for its end to get more."""
        if 2 * self.size() > self._env.info()["map_size"]:
            self._grow()

    def copy_to(self, directory: Path) -> None:
        """Write a store that holds what this one does at this moment, without what its file has unused. On a thread of its own, while others commit.

        Raises:
            StoreError: it cannot be written; nothing is left of it.
        """
        try:
            directory.mkdir(parents=True)
            with self._copying:
                self._env.copy(str(directory), compact=True)
        except (lmdb.Error, OSError) as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise StoreError(f"{directory}: {getattr(error, 'strerror', None) or error}") from error

    def close(self) -> None:
        """Give it up, after a copy that is being made."""
        with self._copying, self._syncing:
            self._give_up()
        os.close(self._lock)

    def _give_up(self) -> None:
        if not self._is_open:
            return
        self._is_open = False
        if self._kept is not None:
            self._kept.abort()
            self._kept = None
        self._env.close()
        os.close(self._file)
        if self._synced is not None:
            self._synced.close()
            self._synced = None


_hot_row_key = lru_cache(_HOT_ROWS)(row_key)


def _put(
    writing: Any,
    table: Any,
    rows: Mapping[str, Any],
    *,
    is_named: bool = False,
    key: Callable[[str], bytes] = row_key,
) -> None:
    """Put rows, or take out those that are None. `is_named`: a row does not say its name itself."""
    if not rows:
        return
    # Names may be longer than the 511 bytes that LMDB takes.
    for name, row in rows.items():
        if row is None:
            writing.delete(key(name), db=table)
    with writing.cursor(table) as cursor:
        cursor.putmulti(
            (key(name), _ENCODE((name, row) if is_named else row)) for name, row in rows.items() if row is not None
        )


def directory_of(path: str, cluster: str, shard: int) -> Path:
    """Return where a shard's store is, below `storage.path`."""
    return Path(path) / cluster / f"shard-{shard}"


def stores_of(path: str, cluster: str, shard: int) -> list[Path]:
    """Return the stores of a shard that are there: of this name, or with an id of their own behind it."""
    named = directory_of(path, cluster, shard)
    found = [
        each for each in named.parent.glob(f"{named.name}-*") if each.name.removeprefix(f"{named.name}-").isalnum()
    ]
    return [each for each in (named, *sorted(found)) if each.is_dir()]


def require_readable(directory: Path) -> None:
    """Where reading a store has ended a process, have another read it first.

    Raises:
        StoreError: that was ended too.
    """
    if not (directory / READING).exists():
        return
    read = "import sys; from pathlib import Path; from cluster.storage import LmdbStore; s = LmdbStore(Path(sys.argv[1])); s.load(); s.close()"
    ended = subprocess.run(  # noqa: S603 - ourselves
        [sys.executable, "-c", read, str(directory)], capture_output=True, check=False
    ).returncode
    if -ended in (signal.SIGABRT, signal.SIGBUS, signal.SIGSEGV):
        raise StoreError(f"{directory}: it is damaged: who reads it is ended by {signal.Signals(-ended).name}")


def set_aside(directory: Path, suffix: str = UNREADABLE) -> Path:
    """Keep a store under a name that is none of a store's, for somebody to look at. Returns where.

    Raises:
        StoreError: it cannot be renamed.
    """
    aside = directory.with_name(directory.name + suffix)
    with suppress(FileNotFoundError):
        shutil.rmtree(aside)
    try:
        directory.rename(aside)
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror}") from error
    return aside
