"""Copies of stores, the directory they are kept in, and stores filled from it: without a cluster."""

import errno
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.core.history import Life
from cluster.core.messages import Checkpoint, Written
from cluster.core.mutation import Status
from cluster.core.mutation_queue import MutationRecord
from cluster.core.placement import assign_slots
from cluster.core.query_key import CanonicalKey
from cluster.core.transaction import Stored, StoredEntry
from cluster.errors import StoreError
from cluster.storage import LmdbStore, StoreCopy
from cluster.storage.backup_directory import MANIFEST, PARTIAL, BackupWriter, Manifest, read_manifest, read_shard
from cluster.storage.lmdb_store import COPY, directory_of, stores_of
from cluster.storage.restore import CAUSE, LIFT, check, restore
from cluster.wire.backup import PIECE_BYTES, Part, Piece, Start
from tests.storage.test_stores import entry, transaction

SLOTS = assign_slots(range(2), 1)
KEYS = [f'["k",{n}]' for n in range(40)]
NOW = 50_000.0


def mutation(name: str, scope: str, status: Status = Status.PENDING) -> MutationRecord:
    return MutationRecord(name, "rename", b"{}", scope, 1, 1.0, 1.0, "gateway-0", [], status=status, settled_ms=100.0)


def filled(directory: Path, shard: int) -> LmdbStore:
    """A shard's store with something in every table."""
    store = LmdbStore(directory)
    mine = [key for key in KEYS if SLOTS.shard(CanonicalKey(key)) == shard]
    store.commit(
        transaction(
            entries={key: entry(key, b'"%b"' % (b"x" * 50_000), 7) for key in mine},
            cursors={"events": (5, 10 + shard)},
            checkpoints={"events": Checkpoint("events", 5, 10, "id-10")} if shard == 0 else {},
            results={f"r{shard}": (1_000.0, Written(7)), f"{LIFT}0/m{shard}": (1_000.0, Written(0))},
            changes=[(key, 0) for key in mine],
            mutations={f"m{shard}": mutation(f"m{shard}", mine[0])},
        )
    )
    return store


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[list[LmdbStore]]:
    opened = [filled(tmp_path / f"shard-{shard}", shard) for shard in range(2)]
    yield opened
    for store in opened:
        store.close()


def pieces(copy: StoreCopy) -> list[Piece]:
    found: list[Piece] = []
    while not found or found[-1].whole is None:
        found.append(copy.piece(len(found)))
    return found


def backed_up(stores: list[LmdbStore], directory: Path, between: Callable[[str], None] = lambda _: None) -> Manifest:
    """Make a backup as a cluster does; `between` is told each step after all shards have made it."""
    copies = [StoreCopy(store, "b", shard) for shard, store in enumerate(stores)]
    between("begin")
    for copy in copies:
        copy.take(1_000.0)
    between("take")
    for copy in copies:
        copy.settle()
    between("settle")
    writer = BackupWriter(directory)
    writer.start(Start(1, "0.1.0", 2, "harbor", list(range(len(stores))), SLOTS.epoch, list(SLOTS.owners)))
    for shard, copy in enumerate(copies):
        for piece in pieces(copy):
            writer.part(Part(shard, piece.frames))
            if piece.whole is not None:
                writer.whole(piece.whole)
        copy.drop()
    return writer.finish()


def shards_of(directory: Path) -> list[Stored]:
    return [read_shard(directory, each) for each in read_manifest(directory).shards]


def put_back(directory: Path, to: Path, shards: int = 2, **more: Any) -> Any:
    given = {"replaces": False, "now_ms": NOW, **more}
    path, cluster = str(to.parent), to.name
    return restore(
        directory,
        read_manifest(directory),
        assign_slots(range(shards), 1),
        lambda n: directory_of(path, cluster, n),
        lambda n: stores_of(path, cluster, n),
        **given,
    )


def held(directory: Path) -> Stored:
    store = LmdbStore(directory)
    stored = store.load()
    store.close()
    assert stored is not None
    return stored


# --- a copy ----------------------------------------------------------------------------------------------------------


def test_it_comes_in_pieces_of_some_size_and_again_if_asked(stores: list[LmdbStore]) -> None:
    copy = StoreCopy(stores[0], "b", 0)
    copy.take(1_000.0)
    copy.settle()
    first = copy.piece(0)
    assert copy.piece(0) is first
    assert PIECE_BYTES <= len(first.frames) < PIECE_BYTES + 60_000
    with pytest.raises(StoreError, match="piece 5 is not the next"):
        copy.piece(5)
    copy.drop()
    assert not (stores[0].directory / COPY).exists()


def test_a_copy_that_is_to_be_made_again_is_the_one_that_was_made(stores: list[LmdbStore]) -> None:
    copy = StoreCopy(stores[0], "b", 0)
    copy.take(1_000.0)
    first = copy.piece(0)
    copy.take(2_000.0)
    assert copy.piece(0) is first
    assert pieces(copy)[-1].whole.taken_ms == 1_000.0  # type: ignore[union-attr]
    copy.drop()


def test_checkpoints_are_of_before_the_copies_and_mutations_of_after(tmp_path: Path, stores: list[LmdbStore]) -> None:
    def between(step: str) -> None:
        if step == "begin":
            stores[0].commit(
                transaction(
                    1,
                    checkpoints={"events": Checkpoint("events", 5, 99, "id-99")},
                    entries={"late": entry("late")},
                )
            )
        if step == "take":
            stores[0].commit(transaction(1, mutations={"late": mutation("late", "x")}, entries={"later": entry("l")}))

    backed_up(stores, tmp_path / "backup", between)
    first, _ = shards_of(tmp_path / "backup")
    assert first.checkpoints == {"events": Checkpoint("events", 5, 10, "id-10")}
    assert {each.id for each in first.mutations} == {"m0", "late"}
    keys = {each.key for each in first.entries}
    assert "late" in keys
    assert "l" not in keys


@pytest.mark.parametrize("now", [None, Checkpoint("events", 6, 3, "id-3")], ids=["ended", "begun anew"])
def test_a_checkpoint_whose_sequence_is_over_is_left_out(
    tmp_path: Path, stores: list[LmdbStore], now: Checkpoint | None
) -> None:
    def between(step: str) -> None:
        if step == "begin":
            stores[0].commit(transaction(1, checkpoints={"events": now}))

    backed_up(stores, tmp_path / "backup", between)
    assert shards_of(tmp_path / "backup")[0].checkpoints == {}


# --- a directory -----------------------------------------------------------------------------------------------------


def test_it_holds_what_the_stores_hold(tmp_path: Path, stores: list[LmdbStore]) -> None:
    made = backed_up(stores, tmp_path / "deep" / "backup")
    assert not (tmp_path / "deep" / f"backup{PARTIAL}").exists()
    assert stat.S_IMODE((tmp_path / "deep" / "backup").stat().st_mode) == 0o700
    assert [each.digest for each in made.shards] == [store.content_digest() for store in stores]
    assert check(tmp_path / "deep" / "backup", read_manifest(tmp_path / "deep" / "backup")) == len(KEYS)
    for shard, store in zip(shards_of(tmp_path / "deep" / "backup"), stores, strict=True):
        stored = store.load()
        assert stored is not None
        assert sorted(shard.entries, key=lambda each: each.key) == sorted(stored.entries, key=lambda each: each.key)
        assert shard.changes == stored.changes


def test_it_overwrites_nothing(tmp_path: Path, stores: list[LmdbStore]) -> None:
    (tmp_path / "backup" / "lost+found").mkdir(parents=True)
    backed_up(stores, tmp_path / "backup")  # an empty one will do
    with pytest.raises(StoreError, match="a backup overwrites nothing"):
        BackupWriter(tmp_path / "backup")
    (tmp_path / f"mine{PARTIAL}").mkdir()
    (tmp_path / f"mine{PARTIAL}" / "novel.txt").write_text("chapter one")
    with pytest.raises(StoreError, match="it holds what no backup has written there"):
        BackupWriter(tmp_path / "mine")


@pytest.mark.parametrize("place", ["there", "link", "."])
def test_an_empty_directory_is_written_in(
    tmp_path: Path, stores: list[LmdbStore], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "link").symlink_to(there)
    monkeypatch.chdir(there if place == "." else tmp_path)
    inode = there.stat().st_ino
    writer = BackupWriter(Path(place))
    writer.start(Start(1, "0.1.0", 2, "harbor", [0, 1], 1, list(SLOTS.owners)))
    for shard in writer._shards.values():
        shard.file.close()  # as the kernel does when it is killed
    with pytest.raises(StoreError, match="this is no backup"):
        read_manifest(there)
    backed_up(stores, Path(place))
    assert check(there, read_manifest(there)) == len(KEYS)
    assert there.stat().st_ino == inode  # it may be a volume, which cannot be replaced
    assert sorted(each.name for each in there.iterdir()) == [MANIFEST, "shard-0.rows", "shard-1.rows"]
    assert {stat.S_IMODE(each.stat().st_mode) for each in there.iterdir()} == {0o600}


@pytest.mark.parametrize("refused", ["shard-1.rows", MANIFEST])
def test_an_empty_directory_is_left_empty_where_it_fails(
    tmp_path: Path, stores: list[LmdbStore], monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    rename = Path.rename

    def broken(path: Path, target: Path) -> Path:
        if path.name == refused:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", broken)
    (tmp_path / "there").mkdir()
    begin, writer = BackupWriter.start, list[BackupWriter]()
    monkeypatch.setattr(BackupWriter, "start", lambda self, start: (writer.append(self), begin(self, start))[1])
    with pytest.raises(StoreError, match="there: Input/output error"):
        backed_up(stores, tmp_path / "there")
    writer[0].abandon()
    assert list((tmp_path / "there").iterdir()) == []


def test_what_a_killed_one_left_does_not_stand_in_the_way(tmp_path: Path, stores: list[LmdbStore]) -> None:
    left = BackupWriter(tmp_path / "backup")
    left.start(Start(1, "0.1.0", 2, "harbor", [0, 1], 1, list(SLOTS.owners)))
    for shard in left._shards.values():
        shard.file.close()  # as the kernel does
    assert not (tmp_path / "backup").exists()
    backed_up(stores, tmp_path / "backup")


def test_one_that_is_not_whole_is_none(tmp_path: Path) -> None:
    writer = BackupWriter(tmp_path / "backup")
    writer.start(Start(1, "0.1.0", 2, "harbor", [0, 1], 1, list(SLOTS.owners)))
    with pytest.raises(StoreError, match="missing: shard-0, shard-1"):
        writer.finish()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path, stores: list[LmdbStore], monkeypatch: pytest.MonkeyPatch) -> None:
    copy = StoreCopy(stores[0], "b", 0)
    copy.take(1.0)
    writer = BackupWriter(tmp_path / "backup")
    writer.start(Start(1, "0.1.0", 2, "harbor", [0, 1], 1, list(SLOTS.owners)))

    def full(_: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer._shards[0], "write", full)
    with pytest.raises(StoreError, match=r"backup\.partial/shard-0\.rows: No space left on device"):
        writer.part(Part(0, copy.piece(0).frames))
    writer.abandon()
    copy.drop()
    assert not list(tmp_path.glob("backup*"))


def test_what_arrives_changed_is_found_out(tmp_path: Path, stores: list[LmdbStore]) -> None:
    copy = StoreCopy(stores[0], "b", 0)
    copy.take(1.0)
    writer = BackupWriter(tmp_path / "backup")
    writer.start(Start(1, "0.1.0", 2, "harbor", [0, 1], 1, list(SLOTS.owners)))
    last = None
    for piece in pieces(copy):
        writer.part(Part(0, piece.frames.replace(b"xxxx", b"xyxx", 1)))
        last = piece.whole
    assert last is not None
    with pytest.raises(StoreError, match="shard-0: what arrived is not what was sent"):
        writer.whole(last)
    writer.abandon()
    copy.drop()


def test_a_format_from_the_future_is_refused(tmp_path: Path) -> None:
    writer = BackupWriter(tmp_path / "backup")
    with pytest.raises(StoreError, match="makes backups of format 2 with rows of layout 2; this version knows 1 and 2"):
        writer.start(Start(2, "9.0", 2, "harbor", [0], 1, []))


def corrupt_byte(directory: Path) -> None:
    path = directory / "shard-1.rows"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def rewritten(directory: Path, **changes: Any) -> None:
    """Change the manifest, and have it vouch for itself."""
    made = msgspec.structs.replace(read_manifest(directory), **changes)
    made = msgspec.structs.replace(made, checksum=made.checked())
    (directory / MANIFEST).write_bytes(msgspec.json.encode(made))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (corrupt_byte, r"shard-1\.rows: it is not as it was written \(SHA-256\)"),
        (lambda at: (at / "shard-1.rows").unlink(), r"shard-1\.rows: No such file"),
        (lambda at: (at / MANIFEST).unlink(), "there is none, so this is no backup"),
        (lambda at: (at / MANIFEST).write_text("{"), "it cannot be read"),
        (
            lambda at: (at / MANIFEST).write_text((at / MANIFEST).read_text().replace("harbor", "harbour")),
            "it has been changed since it was written",
        ),
        (lambda at: rewritten(at, schema=9), "its rows are of layout 9, this version reads 1 to 2"),
        (lambda at: rewritten(at, format=9), "it is of format 9, this version reads 1"),
        (lambda at: rewritten(at, owners=[7] * 1024), "its slots belong to shards that are not in it"),
        (lambda at: (at / "shard-0.rows").write_bytes(b""), r"shard-0\.rows: it has 0 bytes, the manifest says"),
    ],
    ids=["byte", "file", "no manifest", "no JSON", "edited", "layout", "format", "slots", "length"],
)
def test_what_is_not_whole_is_refused_before_anything_is_touched(
    tmp_path: Path, stores: list[LmdbStore], spoil: Callable[[Path], None], says: str
) -> None:
    backed_up(stores, tmp_path / "backup")
    spoil(tmp_path / "backup")
    with pytest.raises(StoreError, match=says):
        put_back(tmp_path / "backup", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# --- and back --------------------------------------------------------------------------------------------------------


def test_the_same_shards_get_their_own_back(tmp_path: Path, stores: list[LmdbStore]) -> None:
    backed_up(stores, tmp_path / "backup")
    done = put_back(tmp_path / "backup", tmp_path / "new")
    assert (done.entries, done.mutations, done.shards, done.is_exact) == (len(KEYS), 2, [0, 1], True)
    for shard, store in enumerate(stores):
        was, now = store.load(), held(tmp_path / "new" / f"shard-{shard}")
        assert was is not None
        assert (now.entries, now.cursors, now.checkpoints, now.changes, now.lives, now.mutations) == (
            was.entries,
            was.cursors,
            was.checkpoints,
            was.changes,
            was.lives,
            was.mutations,
        )


def test_repeats_are_waited_for_as_long_again(tmp_path: Path, stores: list[LmdbStore]) -> None:
    stores[0].commit(transaction(1, mutations={"done": mutation("done", KEYS[0], Status.SUCCESS)}))
    backed_up(stores, tmp_path / "backup")
    put_back(tmp_path / "backup", tmp_path / "new")
    now = held(tmp_path / "new" / "shard-0")
    assert now.results["r0"][0] == 1_000.0 + NOW - 1_000.0
    assert {each.id: each.settled_ms for each in now.mutations}["done"] == 100.0 + NOW - 1_000.0


def test_what_a_mutation_lay_over_is_out_of_date(tmp_path: Path, stores: list[LmdbStore]) -> None:
    plain = StoredEntry("laid", 1, b"1", 1.0, 1.0, "write", None, None, is_overlaid=True)
    stores[0].commit(transaction(1, entries={"laid": plain}))
    backed_up(stores, tmp_path / "backup")
    put_back(tmp_path / "backup", tmp_path / "new")
    (laid,) = (each for each in held(tmp_path / "new" / "shard-0").entries if each.key == "laid")
    assert laid.doubt == (CAUSE, NOW)


def test_of_shards_that_slots_have_moved_to_all_is_as_it_was_but_positions(
    tmp_path: Path, stores: list[LmdbStore]
) -> None:
    other = next(key for key in KEYS if SLOTS.shard(CanonicalKey(key)) == 1)
    stores[0].commit(transaction(1, entries={other: entry(other, b'"left behind"')}))
    backed_up(stores, tmp_path / "backup")
    rewritten(tmp_path / "backup", slots_epoch=3)
    done = put_back(tmp_path / "backup", tmp_path / "new")
    assert (done.entries, done.is_exact) == (len(KEYS), True)
    for shard, store in enumerate(stores):
        was, now = store.load(), held(tmp_path / "new" / f"shard-{shard}")
        assert was is not None
        assert now.entries == [each for each in was.entries if SLOTS.shard(CanonicalKey(each.key)) == shard]
        assert (now.cursors, now.checkpoints) == (was.cursors, was.checkpoints)
        assert (now.changes, now.lives, now.steps, now.map) == ([], [], [], None)


def test_stores_of_shards_that_are_not_configured_are_set_aside(tmp_path: Path, stores: list[LmdbStore]) -> None:
    backed_up(stores, tmp_path / "backup")
    surplus = LmdbStore(tmp_path / "new" / "shard-5-ab")
    surplus.commit(transaction(1))
    surplus.close()
    with pytest.raises(StoreError, match="--replace sets it aside"):
        put_back(tmp_path / "backup", tmp_path / "new")
    put_back(tmp_path / "backup", tmp_path / "new", only=[0])
    assert (tmp_path / "new" / "shard-5-ab").exists()
    done = put_back(tmp_path / "backup", tmp_path / "new", replaces=True)
    assert str(tmp_path / "new" / "shard-5-ab.replaced") in done.replaced
    assert not (tmp_path / "new" / "shard-5-ab").exists()


@pytest.mark.parametrize("shards", [1, 3])
def test_other_shards_get_what_is_theirs_by_key(tmp_path: Path, stores: list[LmdbStore], shards: int) -> None:
    other = next(key for key in KEYS if SLOTS.shard(CanonicalKey(key)) == 1)
    stores[0].commit(transaction(1, entries={other: entry(other, b'"left behind"')}))
    backed_up(stores, tmp_path / "backup")
    done = put_back(tmp_path / "backup", tmp_path / "new", shards)
    assert (done.entries, done.mutations, done.is_exact) == (len(KEYS), 2, False)
    slots = assign_slots(range(shards), 1)
    for shard in range(shards):
        now = held(tmp_path / "new" / f"shard-{shard}")
        assert sorted(each.key for each in now.entries) == sorted(
            key for key in KEYS if slots.shard(CanonicalKey(key)) == shard
        )
        assert (now.cursors, now.checkpoints, now.changes, now.lives) == ({}, {}, [], []), "positions are void"
        assert all(each.doubt for each in now.entries), "events may be missing"
        assert all(each.data != b'"left behind"' for each in now.entries)
        assert set(now.results) == {"r0", "r1"}
        assert all(slots.shard(CanonicalKey(each.scope)) == shard for each in now.mutations)


def test_stores_in_use_or_not_empty_are_not_touched(tmp_path: Path, stores: list[LmdbStore]) -> None:
    backed_up(stores, tmp_path / "backup")
    with pytest.raises(StoreError, match="another process has it open"):
        put_back(tmp_path / "backup", tmp_path, replaces=True)
    for store in stores:
        store.close()
    with pytest.raises(StoreError, match="a store is there already; --replace sets it aside"):
        put_back(tmp_path / "backup", tmp_path)
    done = put_back(tmp_path / "backup", tmp_path, replaces=True)
    assert [Path(each).name for each in done.replaced] == ["shard-0.replaced", "shard-1.replaced"]
    assert len(held(tmp_path / "shard-0").entries) == len(held(tmp_path / "shard-0.replaced").entries)
    stores[:] = []


def test_stores_with_ids_of_their_own_are_set_aside_too(tmp_path: Path, stores: list[LmdbStore]) -> None:
    backed_up(stores, tmp_path / "backup")
    filled(tmp_path / "new" / "shard-1-ab12", 1).close()
    filled(tmp_path / "new" / "shard-100", 1).close()
    with pytest.raises(StoreError, match="shard-1-ab12: a store is there already"):
        put_back(tmp_path / "backup", tmp_path / "new")
    done = put_back(tmp_path / "backup", tmp_path / "new", replaces=True)
    assert [Path(each).name for each in done.replaced] == ["shard-1-ab12.replaced"]
    assert {each.name for each in (tmp_path / "new").iterdir()} == {
        "shard-0",
        "shard-1",
        "shard-100",
        "shard-1-ab12.replaced",
    }
    filled(tmp_path / "new" / "shard-1-cd34", 1).close()
    done = put_back(tmp_path / "backup", tmp_path / "new", replaces=True)
    assert {each.name for each in (tmp_path / "new").glob("*.replaced")} == {Path(each).name for each in done.replaced}


def test_a_store_that_cannot_be_read_may_be_replaced(tmp_path: Path, stores: list[LmdbStore]) -> None:
    backed_up(stores, tmp_path / "backup")
    (tmp_path / "new" / "shard-0").mkdir(parents=True)
    (tmp_path / "new" / "shard-0" / "data.mdb").write_bytes(b"no database" * 10_000)
    with pytest.raises(StoreError, match="shard-0"):
        put_back(tmp_path / "backup", tmp_path / "new")
    put_back(tmp_path / "backup", tmp_path / "new", replaces=True)
    assert held(tmp_path / "new" / "shard-0").entries
    assert (tmp_path / "new" / "shard-0.replaced" / "data.mdb").exists()


def test_an_empty_store_does_not_stand_in_the_way(tmp_path: Path, stores: list[LmdbStore]) -> None:
    backed_up(stores, tmp_path / "backup")
    LmdbStore(tmp_path / "new" / "shard-0").close()
    put_back(tmp_path / "backup", tmp_path / "new")
    assert held(tmp_path / "new" / "shard-0").entries


def test_one_shard_alone(tmp_path: Path, stores: list[LmdbStore]) -> None:
    backed_up(stores, tmp_path / "backup")
    put_back(tmp_path / "backup", tmp_path / "new", only=[1])
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["shard-1"]


def test_a_restore_that_fails_changes_nothing(tmp_path: Path, stores: list[LmdbStore]) -> None:
    backed_up(stores, tmp_path / "backup")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "shard-1.restoring").write_text("in the way")
    with pytest.raises(StoreError, match=r"shard-1\.restoring"):
        put_back(tmp_path / "backup", tmp_path / "new")
    shutil.rmtree(tmp_path / "backup")
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["shard-1.restoring"]


def test_lives_go_on(tmp_path: Path, stores: list[LmdbStore]) -> None:
    stores[0].commit(transaction(1, lives=[Life(2, 0, 0), Life(3, 100, 0)]))
    backed_up(stores, tmp_path / "backup")
    put_back(tmp_path / "backup", tmp_path / "new")
    assert held(tmp_path / "new" / "shard-0").lives == [Life(2, 0, 0), Life(3, 100, 0)]
