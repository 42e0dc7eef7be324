"""`harbor backup` and `harbor restore`: what stands between a cluster's stream, a directory and stores."""

import time
from pathlib import Path

from cluster.client import HttpClient
from cluster.config import Config
from cluster.core.placement import assign_slots
from cluster.errors import ErrorCode, HarborError, RequestError, StoreError
from cluster.storage.backup_directory import BackupWriter, Manifest, read_manifest
from cluster.storage.lmdb_store import directory_of, stores_of
from cluster.storage.restore import Restored, check, restore
from cluster.wire.backup import End, Failed, Frames, Part, Start, Whole


def make(client: HttpClient, directory: Path) -> Manifest:
    """Have a cluster make a backup, and write it to a directory.

    Raises:
        HarborError: it cannot be made; nothing is left behind.
    """
    writer = BackupWriter(directory)
    try:
        frames = Frames()
        is_whole = False
        for data in client.backup():
            for frame in frames.feed(data):
                match frame:
                    case Start():
                        writer.start(frame)
                    case Part():
                        writer.part(frame)
                    case Whole():
                        writer.whole(frame)
                    case Failed(code=code, message=message):
                        raise HarborError(ErrorCode(code), message)
                    case End():
                        is_whole = True
        if not is_whole:
            raise StoreError("the gateway ended the stream before its end")
        return writer.finish()
    except ValueError as error:
        raise StoreError(str(error)) from error
    finally:
        writer.abandon()


def look_over(directory: Path) -> dict[str, object]:
    """Check a backup. Returns what is to be said of it.

    Raises:
        StoreError: it is not whole.
    """
    manifest = read_manifest(directory)
    entries = check(directory, manifest)
    return {**told(manifest), "entries": entries}


def put_back(directory: Path, config: Config, *, shards: list[int], replaces: bool) -> Restored:
    """Fill a configuration's stores from a backup.

    Raises:
        HarborError: it is not whole, or the stores cannot be filled.
    """
    manifest = read_manifest(directory)
    storage, cluster = config.storage, config.cluster
    if storage.path is None:
        raise RequestError(ErrorCode.BAD_REQUEST, "storage.path: this cluster keeps nothing (null)")
    unknown = [shard for shard in shards if not 0 <= shard < cluster.shards]
    if unknown:
        raise RequestError(ErrorCode.BAD_REQUEST, f"--shard {unknown[0]}: there are 0 to {cluster.shards - 1}")
    path = storage.path
    return restore(
        directory,
        manifest,
        assign_slots(range(cluster.shards), 1),
        lambda shard: directory_of(path, cluster.name, shard),
        lambda shard: stores_of(path, cluster.name, shard),
        only=shards,
        replaces=replaces,
        now_ms=time.time() * 1000,
    )


def told(manifest: Manifest) -> dict[str, object]:
    """Return what is to be said of a backup."""
    return {
        "cluster": manifest.cluster,
        "made_at": manifest.made_at,
        "shards": len(manifest.shards),
        "entries": sum(each.rows.get("entry", 0) for each in manifest.shards),
        "mutations": sum(each.rows.get("mutation", 0) for each in manifest.shards),
        "bytes": sum(each.bytes for each in manifest.shards),
    }
