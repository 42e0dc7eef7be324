"""Filling the stores of a cluster that does not run from a backup.

Everything is looked over before anything is touched; the new stores are made beside the old ones and take their places when all are whole.

Where the shards are as they were, each gets its own back: entries with the cursors of the feeds that made them, so that upstreams which can
repeat go on exactly where the copies were. Where slots had ever moved, histories are left out: they mean something by the maps of then
alone, and the cluster begins with its first. Where the shards are others, entries go by their keys. Cursors cannot: two
shards' entries, which have seen different events, may end up in one. So feeds begin anew, all entries are out of date until they were
fetched, and positions of clients are reset. Versions go on in either case: a shard's next life has a higher epoch, and begins its
versions there.

What must not live here: how a backup lies on the disk (`backup_directory`).
"""

import shutil
from collections.abc import Callable, Collection
from pathlib import Path

from msgspec import Struct, structs

from cluster.core.placement import SlotMap
from cluster.core.query_key import CanonicalKey
from cluster.core.slot_move import MAX_SHARDS
from cluster.core.stored_rows import transactions
from cluster.core.transaction import Stored, StoredEntry
from cluster.errors import StoreError
from cluster.storage.backup_directory import Manifest, read_shard, sync_names
from cluster.storage.lmdb_store import LmdbStore

CAUSE = "restored from a backup"
"""Why an entry is out of date that a mutation may have changed, or whose events may be missing."""
RESTORING = ".restoring"
REPLACED = ".replaced"
"""What stood in a store's place is kept under its name with this behind it; of a shard the last only."""
LIFT = "lift/"
"""Results under such names are of shards' numbers."""


class Restored(Struct, frozen=True):
    """What was done."""

    entries: int
    mutations: int
    shards: list[int]
    """Whose stores were filled."""
    is_exact: bool
    """Feeds go on where they were; else the shards are others than those of the backup."""
    replaced: list[str]
    """Where what was there before is kept."""
    directory: str
    """Which the stores are in; a relative `storage.path` is another one wherever the command runs."""


def check(directory: Path, manifest: Manifest) -> int:
    """Look a whole backup over. Returns the number of its entries.

    Raises:
        StoreError: something is not as it should be.
    """
    return sum(len(read_shard(directory, entry).entries) for entry in manifest.shards)


def restore(
    directory: Path,
    manifest: Manifest,
    slots: SlotMap,
    place: Callable[[int], Path],
    present: Callable[[int], list[Path]],
    *,
    only: Collection[int] = (),
    replaces: bool,
    now_ms: float,
) -> Restored:
    """Fill the stores.

    Args:
        directory: The backup.
        manifest: Of it.
        slots: Of the cluster whose stores they are.
        place: Shard -> where its store is to be.
        present: Shard -> the stores of it that are there, whatever their names.
        only: Of which shards; none: of all.
        replaces: What is stored there may be set aside.
        now_ms: The time.

    Raises:
        StoreError: the backup is not whole, a store is open or not empty, or cannot be written. Nothing has changed then, but for the shards
            before the one that the message names where what failed was to rename, the last step.
    """
    check(directory, manifest)
    is_exact = list(slots.owners) == manifest.owners
    shards = sorted(only or set(slots.owners))
    # Of a cluster that was scaled: its shards would be taken for such as know a later slot map.
    surplus = [] if only else [shard for shard in range(max(shards) + 1, MAX_SHARDS) if present(shard)]
    for shard in [*shards, *surplus]:
        for there in present(shard):
            _require_free(there, replaces=replaces)
    entries = mutations = 0
    try:
        for shard in shards:
            made = _for_shard(directory, manifest, slots, shard, is_exact=is_exact, now_ms=now_ms)
            entries, mutations = entries + len(made.entries), mutations + len(made.mutations)
            _fill(_beside(place(shard), RESTORING), made)
    except StoreError:
        for shard in shards:
            shutil.rmtree(_beside(place(shard), RESTORING), ignore_errors=True)
        raise
    replaced = [str(aside) for shard in surplus for aside in _set_aside(place(shard), present(shard))]
    replaced += [str(aside) for shard in shards for aside in _swap(place(shard), present(shard))]
    return Restored(entries, mutations, shards, is_exact, replaced, str(place(shards[0]).parent.absolute()))


def _beside(directory: Path, suffix: str) -> Path:
    return directory.with_name(directory.name + suffix)


def _require_free(directory: Path, *, replaces: bool) -> None:
    try:
        store = LmdbStore(directory)
    except StoreError as error:
        if replaces and not isinstance(error.__cause__, BlockingIOError):
            return  # it cannot be read, which is what it is replaced for
        raise
    try:
        is_empty = store.meta() is None
    finally:
        store.close()
    if not (is_empty or replaces):
        raise StoreError(f"{directory}: a store is there already; --replace sets it aside")


def _for_shard(
    directory: Path, manifest: Manifest, slots: SlotMap, shard: int, *, is_exact: bool, now_ms: float
) -> Stored:
    """Return what a shard is to hold."""
    if is_exact:
        entry = next(each for each in manifest.shards if each.shard == shard)
        whole = read_shard(directory, entry)
        if manifest.slots_epoch > 1:
            own = [each for each in whole.entries if _owner(manifest, each) == shard]
            whole = structs.replace(whole, entries=own, lives=[], first=0, changes=[], steps=[])
        return _later(whole, now_ms - entry.taken_ms, now_ms)
    found = Stored(0, 0, [], {}, {}, {}, [], 0, [], [])
    epoch = offset = 0
    for entry in manifest.shards:
        whole = read_shard(directory, entry)
        epoch, offset = max(epoch, whole.epoch), max(offset, whole.offset)
        # What was left where a slot had been is nobody's.
        stored = structs.replace(
            whole, entries=[each for each in whole.entries if _owner(manifest, each) == entry.shard]
        )
        part = _later(stored, now_ms - entry.taken_ms, now_ms)
        found.entries.extend(
            structs.replace(each, doubt=each.doubt or (CAUSE, now_ms))
            for each in part.entries
            if slots.shard(CanonicalKey(each.key)) == shard
        )
        # A request is repeated to the shard of its key, which its result does not say: all have it.
        found.results.update({name: each for name, each in part.results.items() if not name.startswith(LIFT)})
        for record in part.mutations:
            if slots.shard(CanonicalKey(record.scope)) == shard:
                if record.status.is_settled:
                    record.lift, record.unlifted = None, []
                found.mutations.append(record)
    return structs.replace(found, epoch=epoch, offset=offset)


def _owner(manifest: Manifest, entry: StoredEntry) -> int:
    return SlotMap(manifest.slots_epoch, tuple(manifest.owners)).shard(CanonicalKey(entry.key))


def _later(stored: Stored, passed_ms: float, now_ms: float) -> Stored:
    """Return what was stored as if the time since had not passed where repeats are waited for.

    What a mutation lay over may be before or after it was lifted, in a copy that is older than that of its home: it is fetched anew.
    """
    for record in stored.mutations:
        if record.status.is_settled:
            record.settled_ms += passed_ms
    return structs.replace(
        stored,
        entries=[
            structs.replace(each, doubt=(CAUSE, now_ms)) if each.is_overlaid and each.doubt is None else each
            for each in stored.entries
        ],
        results={name: (until_ms + passed_ms, what) for name, (until_ms, what) in stored.results.items()},
    )


def _fill(directory: Path, stored: Stored) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    store = LmdbStore(directory)
    try:
        for transaction in transactions(stored):
            store.commit(transaction)
        store.sync()
    finally:
        store.close()


def _forget_replaced(directory: Path) -> None:
    for old in (_beside(directory, REPLACED), *directory.parent.glob(f"{directory.name}-*{REPLACED}")):
        shutil.rmtree(old, ignore_errors=True)


def _set_aside(directory: Path, present: list[Path]) -> list[Path]:
    """Have no store where one was. Returns where what was there is kept."""
    _forget_replaced(directory)
    try:
        return [each.rename(_beside(each, REPLACED)) for each in present]
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror}") from error


def _swap(directory: Path, present: list[Path]) -> list[Path]:
    """Put a new store in its place. Returns where what was there is kept."""
    _forget_replaced(directory)
    kept = {each: _beside(each, REPLACED) for each in present}
    try:
        if directory in kept:
            directory.rename(kept[directory])
        _beside(directory, RESTORING).rename(directory)
        for each, aside in kept.items():
            if each != directory:  # not before: the new one counts, whatever is beside it
                each.rename(aside)
        sync_names(directory.parent)
    except OSError as error:
        raise StoreError(f"{directory}: {error.strerror}") from error
    return list(kept.values())
