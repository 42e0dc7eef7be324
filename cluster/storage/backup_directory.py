"""A backup as a directory: a file of rows for each shard, and `manifest.json`, which says what belongs to it and by which one can tell.

A directory with a manifest is a whole backup: it is written under another name (`DIR.partial`) and gets its own when all is on the disk.
One that is there already, empty, may be a volume, which nothing can take the place of: then the files are written below it and moved up,
the manifest last.
What is in it depends on no library: `core.stored_rows` says how rows lie in files.

What must not live here: where the stream comes from (`cli`), how stores are filled from it (`storage.restore`).
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import IO, BinaryIO

import msgspec
from msgspec import Struct

from cluster.core.digest import Digest
from cluster.core.placement import SLOTS
from cluster.core.stored_rows import FRAME_BYTES, MAX_ROW_BYTES, Meta, Row, gathered, read_frame
from cluster.core.transaction import SCHEMA, Stored
from cluster.errors import StoreError
from cluster.wire.backup import FORMAT, Part, Start, Whole

MANIFEST = "manifest.json"
PARTIAL = ".partial"
LOST_FOUND = "lost+found"
"""What a new ext4 volume has in it."""
_OURS = (MANIFEST, "shard-*.rows")


class ShardFile(Struct, frozen=True):
    """What the manifest says of a shard."""

    shard: int
    file: str
    epoch: int
    offset: int
    taken_ms: float
    """When it was copied."""
    rows: dict[str, int]
    """How many, by table."""
    bytes: int
    sha256: str
    digest: str
    """Of its rows (`core.digest`), as the shard counted them."""


class Manifest(Struct, frozen=True):
    """What belongs to a backup."""

    format: int
    version: str
    """Of the cluster it was made from."""
    schema: int
    cluster: str
    made_at: str
    slots_epoch: int
    owners: list[int]
    """Shard by slot."""
    shards: list[ShardFile]
    checksum: str = ""
    """SHA-256 of the manifest without it: JSON, members sorted, no blanks."""

    def checked(self) -> str:
        """Return what `checksum` is to be."""
        plain = msgspec.structs.replace(self, checksum="")
        return sha256(msgspec.json.encode(plain, order="deterministic")).hexdigest()


class _ShardWriter:
    """A shard's file while it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = _new(path)
        self.hash = sha256()
        self.digest = Digest()
        self.rows: Counter[str] = Counter()
        self.bytes = 0
        self.whole: Whole | None = None

    def write(self, frames: bytes) -> None:
        self.file.write(frames)
        self.hash.update(frames)
        self.bytes += len(frames)
        for body in _bodies_in(frames):
            read = read_frame(body)
            if isinstance(read, tuple):
                self.digest.add(*read)
                self.rows[read[0]] += 1

    def end(self, whole: Whole) -> None:
        if (whole.digest, whole.rows) != (self.digest.hex, dict(self.rows)):
            raise StoreError(f"shard-{whole.shard}: what arrived is not what was sent")
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.whole = whole


class BackupWriter:
    """Writes a backup. `finish` makes it one; until then, and after `abandon`, there is none."""

    def __init__(self, directory: Path) -> None:
        """Begin one.

        Raises:
            StoreError: there is something at the place, or it cannot be written to.
        """
        self.directory = Path(os.path.realpath(directory))
        self._moves_up = self.directory.is_dir()
        self._partial = self.directory / PARTIAL if self._moves_up else Path(f"{self.directory}{PARTIAL}")
        self._start: Start | None = None
        self._shards: dict[int, _ShardWriter] = {}
        try:
            if self._moves_up:
                is_free = all(each.name in (PARTIAL, LOST_FOUND) for each in self.directory.iterdir())
            else:
                is_free = not self.directory.exists()
            if not is_free:
                raise StoreError(f"{directory}: it is there already and not empty; a backup overwrites nothing")
            if self._partial.exists():
                if any(not any(each.match(ours) for ours in _OURS) for each in self._partial.iterdir()):
                    raise StoreError(f"{self._partial}: it holds what no backup has written there")
                shutil.rmtree(self._partial)  # of one that was killed
            self._partial.mkdir(mode=0o700, parents=True)  # it is as secret as what it will hold
        except OSError as error:
            raise StoreError(f"{self._partial}: {error.strerror}") from error

    def start(self, start: Start) -> None:
        """Take what a stream begins with.

        Raises:
            StoreError: it is of a format that this version does not know, or cannot be written.
        """
        if start.format != FORMAT or start.schema > SCHEMA:
            raise StoreError(
                f"the cluster (version {start.version}) makes backups of format {start.format} with rows of layout "
                f"{start.schema}; this version knows {FORMAT} and {SCHEMA}: use the cluster's own"
            )
        self._start = start
        try:
            self._shards = {shard: _ShardWriter(self._partial / f"shard-{shard}.rows") for shard in start.shards}
        except OSError as error:
            raise StoreError(f"{self._partial}: {error.strerror}") from error

    def part(self, part: Part) -> None:
        """Write more of a shard.

        Raises:
            StoreError: it cannot be written, or is none of a backup.
        """
        writer = self._of(part.shard)
        try:
            writer.write(part.frames)
        except OSError as error:
            raise StoreError(f"{writer.path}: {error.strerror}") from error
        except ValueError as error:
            raise StoreError(f"shard-{part.shard}: {error}") from error

    def whole(self, whole: Whole) -> None:
        """A shard is at its end.

        Raises:
            StoreError: what came is not what was sent, or cannot be written.
        """
        writer = self._of(whole.shard)
        try:
            writer.end(whole)
        except OSError as error:
            raise StoreError(f"{writer.path}: {error.strerror}") from error

    def _of(self, shard: int) -> _ShardWriter:
        writer = self._shards.get(shard)
        if writer is None or writer.whole is not None:
            raise StoreError(f"the stream speaks of shard-{shard}, which it has not announced or has ended")
        return writer

    def finish(self) -> Manifest:
        """Write the manifest, and give the directory its name. Returns the manifest.

        Raises:
            StoreError: shards are missing, or it cannot be written.
        """
        start = self._start
        missing = [f"shard-{shard}" for shard, writer in self._shards.items() if writer.whole is None]
        if start is None or missing:
            raise StoreError(f"the stream ended before its end; missing: {', '.join(missing) or 'everything'}")
        made_at = datetime.now(UTC).isoformat(timespec="seconds")
        shards = [_described(writer) for writer in self._shards.values()]
        made = Manifest(
            FORMAT, start.version, start.schema, start.cluster, made_at, start.slots_epoch, start.owners, shards
        )
        made = msgspec.structs.replace(made, checksum=made.checked())
        try:
            with _new(self._partial / MANIFEST) as file:
                file.write(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            sync_names(self._partial)
            if self._moves_up:
                self._move_up()
            else:
                self._partial.rename(self.directory)
                sync_names(self.directory.parent)
        except OSError as error:
            raise StoreError(f"{self.directory}: {error.strerror}") from error
        return made

    def _move_up(self) -> None:
        for writer in self._shards.values():
            writer.path.rename(self.directory / writer.path.name)
        sync_names(self.directory)
        (self._partial / MANIFEST).rename(self.directory / MANIFEST)
        self._partial.rmdir()
        sync_names(self.directory)

    def abandon(self) -> None:
        """Take away what was written, if it has not become a backup."""
        for writer in self._shards.values():
            writer.file.close()
            if self._moves_up and not (self.directory / MANIFEST).exists():
                (self.directory / writer.path.name).unlink(missing_ok=True)
        shutil.rmtree(self._partial, ignore_errors=True)


def _new(path: Path) -> BinaryIO:
    """Begin a file that only its owner reads."""
    return open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600))


def _described(writer: _ShardWriter) -> ShardFile:
    whole = writer.whole
    assert whole is not None
    return ShardFile(
        whole.shard,
        writer.path.name,
        whole.epoch,
        whole.offset,
        whole.taken_ms,
        whole.rows,
        writer.bytes,
        writer.hash.hexdigest(),
        whole.digest,
    )


def read_manifest(directory: Path) -> Manifest:
    """Return a backup's manifest.

    Raises:
        StoreError: there is none, or it cannot be relied on.
    """
    path = directory / MANIFEST
    try:
        made = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise StoreError(f"{path}: there is none, so this is no backup (or one that was not finished)") from error
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise StoreError(f"{path}: it cannot be read: {error}") from error
    if made.format != FORMAT:
        raise StoreError(f"{path}: it is of format {made.format}, this version reads {FORMAT}")
    if not 1 <= made.schema <= SCHEMA:
        raise StoreError(f"{path}: its rows are of layout {made.schema}, this version reads 1 to {SCHEMA}")
    if made.checked() != made.checksum:
        raise StoreError(f"{path}: it has been changed since it was written (checksum)")
    if len(made.owners) != SLOTS or not {each.shard for each in made.shards} >= set(made.owners):
        raise StoreError(f"{path}: its slots belong to shards that are not in it")
    return made


def read_shard(directory: Path, entry: ShardFile) -> Stored:
    """Return what a shard's file holds, after looking it over: length, hash, layout, counts and digest.

    Raises:
        StoreError: it is missing, or not what the manifest says.
    """
    path = directory / Path(entry.file).name
    try:
        if (length := path.stat().st_size) != entry.bytes:
            raise StoreError(f"{path}: it has {length} bytes, the manifest says {entry.bytes}")
        hashed = sha256()
        with path.open("rb") as file:
            while block := file.read(1024 * 1024):
                hashed.update(block)
            if hashed.hexdigest() != entry.sha256:
                raise StoreError(f"{path}: it is not as it was written (SHA-256)")
            file.seek(0)
            return _read(file, entry)
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from error


def _read(file: IO[bytes], entry: ShardFile) -> Stored:
    bodies = _bodies(file)
    first = next(bodies, None)
    meta = None if first is None else read_frame(first)
    if not isinstance(meta, Meta):
        raise ValueError("it does not begin as a shard's file does")  # noqa: TRY004 - not a type somebody gave us
    digest = Digest()
    rows: Counter[str] = Counter()

    def counted() -> Iterator[Row]:
        for body in bodies:
            row = read_frame(body)
            if isinstance(row, Meta):
                raise ValueError("it begins twice")  # noqa: TRY004 - not a type somebody gave us
            digest.add(*row)
            rows[row[0]] += 1
            yield row

    stored = gathered(meta, counted())
    if (digest.hex, dict(rows), meta.epoch, meta.offset) != (entry.digest, entry.rows, entry.epoch, entry.offset):
        raise ValueError("it does not hold what the manifest says (digest)")
    return stored


def _bodies(file: IO[bytes]) -> Iterator[bytes]:
    while prefix := file.read(FRAME_BYTES):
        length = int.from_bytes(prefix, "big")
        if len(prefix) < FRAME_BYTES or not 1 <= length <= MAX_ROW_BYTES or len(body := file.read(length)) < length:
            raise ValueError("a frame has been cut short")
        yield body


def _bodies_in(frames: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(frames):
        end = start + FRAME_BYTES + int.from_bytes(frames[start : start + FRAME_BYTES], "big")
        if end > len(frames):
            raise ValueError("a frame has been cut short")
        yield frames[start + FRAME_BYTES : end]
        start = end


def sync_names(directory: Path) -> None:
    """Have names in a directory on the disk."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
