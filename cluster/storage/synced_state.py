"""What of a store's file is on the disk for certain, and the way back to that after a loss of power.

LMDB that does not write through at each commit has its pages reach the disk in any order. So after a loss of power its newest meta page may
count on pages that never came, and what stands in their place are good pages of an earlier time: the store opens, with rows missing.
LMDB itself keeps two meta pages, of the last two commits, and neither may be one that was synced.

So the meta page of the state that was synced last is kept in a file beside the store's, and the pages of that state are kept as they are by a
reading of it, which LMDB writes no page over for. Whoever opens the store after the machine has begun anew puts that meta page back. Where only the
process has ended, the system has all its pages, and the newest state counts.

It is told by the id of the machine's life whether it has begun anew. A store whose volume goes to another machine is taken back as well, by at most
what was not synced there.
"""

import os
import struct
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import lmdb
import msgspec

from cluster.storage.backup_directory import sync_names

DATA = "data.mdb"
"""What LMDB calls its file."""
SYNCED = "synced"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SLOT_BYTES = 4096
"""Two of them, which are written by turns: one is always whole."""
_HEADER = struct.Struct("<I16s")
"""Length and digest of what follows."""
META_BYTES = 152
"""Of a page with LMDB 0.9's `MDB_meta`, on machines of 64 bits; the rest of the page is unused."""
_TXNID = struct.Struct("@144xQ")
_MAGIC = struct.Struct("@16xI")
KNOWN = lmdb.version()[:2] == (0, 9) and struct.calcsize("P") == 8
"""Whether this LMDB's meta pages are as they are here. With another its pages are written through at each commit."""
_sync = getattr(os, "fdatasync", os.fsync)


class Synced(NamedTuple):
    """A state of the file."""

    boot: str
    """Of which life of the machine; "": not known."""
    txnid: int
    """LMDB's number of it; 0: nothing was synced yet."""
    page_bytes: int
    meta: bytes


def boot_id() -> str:
    """Return the id of this life of the machine; "": the system tells none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def txnid_of(meta: bytes) -> int:
    """Return the number of the state that a meta page is of; 0: it is none."""
    if len(meta) < META_BYTES or _MAGIC.unpack_from(meta)[0] != 0xBEEFC0DE:
        return 0
    return int(_TXNID.unpack_from(meta)[0])


class SyncedState:
    """The file beside a store's. One thread at a time uses it."""

    def __init__(self, directory: Path) -> None:
        """Open or begin the file, and take the store back to what was synced where the machine has begun anew.

        Raises:
            OSError: it cannot be read or written.
        """
        is_new = not (directory / DATA).exists()
        self._path = directory / SYNCED
        is_begun = self._path.exists()
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not is_begun:
                sync_names(directory)
            self._next = 0
            last = self._last()
            if is_new:
                os.ftruncate(self._handle, 0)
                os.posix_fallocate(self._handle, 0, 2 * _SLOT_BYTES)  # a note has room on a full disk
                self.note(Synced(boot_id(), 0, 0, b""))
            elif last is not None and last.boot != boot_id():
                _take_back(directory, last)
        except OSError:
            self.close()
            raise

    def _last(self) -> Synced | None:
        found = {number: synced for number in (0, 1) if (synced := self._read(number)) is not None}
        if not found:
            return None
        newest = max(found, key=lambda number: found[number].txnid)
        self._next = 1 - newest
        return found[newest]

    def _read(self, number: int) -> Synced | None:
        raw = os.pread(self._handle, _SLOT_BYTES, number * _SLOT_BYTES)
        if len(raw) < _HEADER.size:
            return None
        size, digest = _HEADER.unpack_from(raw)
        encoded = raw[_HEADER.size : _HEADER.size + size]
        return msgspec.msgpack.decode(encoded, type=Synced) if _digest(encoded) == digest else None

    def note(self, synced: Synced) -> None:
        """Note what is on the disk now; the note is, too, when this returns.

        Raises:
            OSError: it may not be.
        """
        encoded = msgspec.msgpack.encode(synced)
        os.pwrite(self._handle, _HEADER.pack(len(encoded), _digest(encoded)) + encoded, self._next * _SLOT_BYTES)
        _sync(self._handle)
        self._next = 1 - self._next

    def close(self, *, is_over: bool = False) -> None:
        """Give it up; `is_over`: and the file, as the store is not written like that any more."""
        if is_over:
            self._path.unlink()
            sync_names(self._path.parent)  # were it there again, it would take back what is committed from now on
        os.close(self._handle)


def _digest(encoded: bytes) -> bytes:
    return blake2b(encoded, digest_size=16).digest()


def _take_back(directory: Path, synced: Synced) -> None:
    """Make the state that was synced the newest."""
    if not synced.txnid:
        (directory / DATA).unlink()  # nothing in it was promised to anybody
        return
    handle = os.open(directory / DATA, os.O_RDWR)
    try:
        pages = [number * synced.page_bytes for number in (0, 1)]
        if max(txnid_of(os.pread(handle, META_BYTES, page)) for page in pages) <= synced.txnid:
            return
        own = synced.txnid % 2
        os.pwrite(handle, synced.meta, pages[own])
        older = struct.pack("@Q", 1 - own) + synced.meta[8:-8] + bytes(8)  # its page number, the same, state 0
        os.pwrite(handle, older, pages[1 - own])
        os.fsync(handle)
    finally:
        os.close(handle)
