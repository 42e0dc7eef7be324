"""Which of a shard's stores is taken, and what becomes of those that cannot be read or are no longer needed."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.core.role import Standing
from cluster.errors import StoreError
from cluster.storage import ShardStores, Taken
from cluster.storage.lmdb_store import READING
from cluster.storage.shard_stores import ADOPTED, LEFT, Tidied
from tests.storage.test_stores import entry, transaction


def stores(root: Path, shard: str = "shard-1") -> ShardStores:
    numbers = itertools.count()
    return ShardStores(root, shard, lambda: f"id{next(numbers)}")


def made(of: ShardStores, epoch: int, number: int, *, is_whole: bool = True, rows: int = 1) -> str:
    """Make a store; return its id."""
    taken = of.begin()
    names = ["a", *(f"a{n}" for n in range(1, rows))]
    taken.store.commit(transaction(number, entries={name: entry(name, b"1" * 900) for name in names}))
    taken.store.stand(Standing(epoch, is_whole))
    taken.store.close()
    return taken.id


def taken_of(of: ShardStores, wanted: str = "") -> Taken:
    taken = of.take(wanted)
    assert taken is not None
    return taken


def test_where_nothing_is_nothing_is_taken(tmp_path: Path) -> None:
    assert stores(tmp_path / "none").take() is None


def test_a_shard_s_stores_are_its_own(tmp_path: Path) -> None:
    made(stores(tmp_path, "shard-1"), 5, 0)
    (tmp_path / "shard-1-id7.unreadable").mkdir()
    assert stores(tmp_path, "shard-1").ids() == ["id0"]
    assert stores(tmp_path, "shard-10").ids() == []


def test_the_whole_one_of_the_highest_epoch_that_has_come_furthest_is_taken(tmp_path: Path) -> None:
    of = stores(tmp_path)
    made(of, 5, 90)
    made(of, 6, 1)
    best = made(of, 6, 2)
    made(of, 7, 99, is_whole=False)
    taken = taken_of(of)
    assert (taken.id, taken.standing, taken.come_to) == (best, Standing(6, is_whole=True), (3, 102))
    taken.store.close()


def test_the_one_that_is_wanted_is_taken_whatever_the_others_are(tmp_path: Path) -> None:
    of = stores(tmp_path)
    wanted = made(of, 5, 0)
    made(of, 6, 0)
    taken = taken_of(of, wanted)
    assert taken.id == wanted
    taken.store.close()


def test_two_actors_take_two(tmp_path: Path) -> None:
    of = stores(tmp_path)
    made(of, 5, 0)
    made(of, 6, 0)
    first, second = taken_of(of), taken_of(of)
    assert (first.id, second.id) == ("id1", "id0")
    assert of.take() is None
    first.store.close()
    second.store.close()


def test_it_waits_for_its_owner_to_end(tmp_path: Path) -> None:
    of = stores(tmp_path)
    directory = of.directory(made(of, 5, 0))
    holds = f"import sys; from cluster.storage import LmdbStore; from pathlib import Path; s = LmdbStore(Path({str(directory)!r})); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        assert of.take() is None
        owner.kill()
        taken = of.take(wait_s=10.0)
        assert taken is not None
        taken.store.close()


def test_a_store_of_an_earlier_version_is_given_an_id(tmp_path: Path) -> None:
    of = stores(tmp_path)
    of.directory(made(of, 5, 0)).rename(tmp_path / "shard-1")
    assert of.adopt() == "id1"
    taken = taken_of(of)
    assert [each.key for each in (taken.store.load() or pytest.fail("it is lost")).entries] == ["a"]
    taken.store.close()


@pytest.mark.parametrize("dies", ["as it is marked", "as it is renamed", "as it leads", "never"])
def test_a_store_that_was_put_there_counts_in_each_life_until_it_is_on_record(tmp_path: Path, dies: str) -> None:
    numbers = itertools.count()

    def life() -> ShardStores:
        return ShardStores(tmp_path, "shard-1", lambda: f"id{next(numbers)}")

    life().directory(made(life(), 5, 0)).rename(tmp_path / "shard-1")
    made(life(), 9, 0)
    match dies:
        case "as it is marked":
            (tmp_path / "shard-1" / ADOPTED).touch()
        case "as it is renamed":
            assert life().adopt() == "id2"
        case "as it leads":
            taken = taken_of(life(), life().adopt())
            taken.store.stand(Standing(10, is_whole=True))
            taken.store.close()
    of = life()
    adopted = of.adopt()
    taken = taken_of(of, adopted)
    assert (adopted, taken.id) == ("id2", "id2")
    of.recorded(adopted)
    of.recorded(adopted)
    taken.store.close()
    assert life().adopt() == ""


def test_of_stores_that_were_put_there_the_last_counts(tmp_path: Path) -> None:
    of = stores(tmp_path)
    for number in (0, 2):
        of.directory(made(of, 5, 0)).rename(tmp_path / "shard-1")
        assert of.adopt() == f"id{number + 1}"
    assert stores(tmp_path).adopt() == "id3"
    (of.directory("id1") / ADOPTED).touch()
    os.utime(of.directory("id1") / ADOPTED, ns=(1, 1))
    assert of.adopt() == "id3", "it died before it had taken the mark of the other"
    of.recorded("id3")
    of.recorded("id1")
    assert of.adopt() == ""


def test_a_mark_that_cannot_be_removed_is_said(tmp_path: Path) -> None:
    of = stores(tmp_path)
    (of.directory(made(of, 5, 0)) / ADOPTED).mkdir()
    with pytest.raises(StoreError, match="shard-1-id0/adopted: Is a directory"):
        of.recorded("id0")


def left(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.glob(f"*{LEFT}"))


def test_what_nobody_has_and_the_shard_has_is_tidied_away(tmp_path: Path) -> None:
    of = stores(tmp_path)
    whole, partial = made(of, 5, 0), made(of, 4, 0, is_whole=False)
    kept, others = of.begin(), made(stores(tmp_path, "shard-2"), 5, 0)
    assert of.tidy(5) == Tidied([whole, partial], [])
    assert of.ids() == [kept.id]
    assert stores(tmp_path, "shard-2").ids() == [others]
    kept.store.close()


def test_what_ends_who_reads_it_ends_one_life_only(tmp_path: Path) -> None:
    of = stores(tmp_path)
    directory = of.directory(made(of, 5, 0, rows=300))
    spoilt = bytearray((directory / "data.mdb").read_bytes())
    leaves = [page for page in range(2 * 4096, len(spoilt), 4096) if spoilt[page + 10] == 2]
    spoilt[leaves[len(leaves) // 2] + 10] = 1  # a branch, it says: LMDB aborts
    (directory / "data.mdb").write_bytes(spoilt)
    life = f"from cluster.storage.shard_stores import *; of = ShardStores(Path({str(tmp_path)!r}), 'shard-1', str); of.load(of.take())"
    first = subprocess.run([sys.executable, "-c", life], capture_output=True, check=False)
    assert first.returncode == -signal.SIGABRT
    assert of.ids() == ["id0"]
    assert of.take() is None
    assert "is ended by SIGABRT" in of.unreadable
    assert of.ids() == []


def test_who_was_killed_while_it_read_finds_its_store_again(tmp_path: Path) -> None:
    of = stores(tmp_path)
    directory = of.directory(made(of, 5, 0))
    (directory / READING).touch()
    taken = taken_of(of)
    assert of.load(taken) is not None
    assert not (directory / READING).exists()
    taken.store.close()


def test_what_the_shard_may_have_gone_on_without_is_set_aside(tmp_path: Path) -> None:
    of = stores(tmp_path)
    store = made(of, 5, 0)
    assert of.tidy(6) == Tidied([], [tmp_path / f"shard-1-{store}{LEFT}"])
    assert (of.ids(), left(tmp_path)) == ([], ["shard-1-id0.left"])
    assert of.tidy(6) == Tidied([], [])
    (tmp_path / "shard-1-id0.left").rename(tmp_path / "shard-1")
    taken = taken_of(of, of.adopt())
    assert [each.key for each in (taken.store.load() or pytest.fail("it is lost")).entries] == ["a"]
    taken.store.close()


def test_a_store_that_holds_nothing_is_removed_whatever_it_says(tmp_path: Path) -> None:
    of = stores(tmp_path)
    begun = of.begin()
    begun.store.stand(Standing(5, is_whole=True))
    begun.store.close()
    assert of.tidy(6) == Tidied([begun.id], [])


def test_a_store_that_was_put_there_too_late_is_set_aside(tmp_path: Path) -> None:
    of = stores(tmp_path)
    of.directory(made(of, 5, 0)).rename(tmp_path / "shard-1")
    of.adopt()
    assert of.tidy(0) == Tidied([], [tmp_path / "shard-1-id1.left"])


def test_what_cannot_be_read_is_not_tidied_away(tmp_path: Path) -> None:
    of = stores(tmp_path)
    for store in (made(of, 5, 0), made(of, 5, 1)):
        (of.directory(store) / "data.mdb").write_bytes(b"no database" * 10_000)
    assert of.tidy(0) == Tidied([], [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard-1-id0.unreadable", "shard-1-id1.unreadable"]


def test_of_what_is_set_aside_the_last_is_kept(tmp_path: Path) -> None:
    for life in range(3):
        of = ShardStores(tmp_path, "shard-1", lambda life=life: f"id{life}")  # type: ignore[misc]
        made(of, 5, 0)
        of.tidy(6)
    made(stores(tmp_path, "shard-10"), 5, 0)
    assert left(tmp_path) == ["shard-1-id2.left"]


@pytest.mark.parametrize("spoil", ["garbage", "schema", "entry", "cut", "half"])
def test_what_cannot_be_read_is_set_aside(tmp_path: Path, spoil: str) -> None:
    of = stores(tmp_path)
    begun = of.begin()
    directory, store = of.directory(begun.id), begun.store
    store.commit(transaction(entries={"a": entry("a", data=b'"%b"' % (b"x" * 100_000))}))
    length = store.size()
    match spoil:
        case "schema":
            with store._env.begin(write=True) as writing:
                writing.put(b"state", b"\x95\xcd\x03\xe7\x01\x01\x90\x00", db=store._meta)
        case "entry":
            with store._env.begin(write=True) as writing:
                writing.put(b"0" * 16, b"no entry", db=store._entries)
    store.close()
    if spoil == "garbage":
        (directory / "data.mdb").write_bytes(b"no database" * 10_000)
    if spoil == "cut":
        os.truncate(directory / "data.mdb", 2 * os.sysconf("SC_PAGE_SIZE"))
    if spoil == "half":
        with (directory / "data.mdb").open("r+b") as file:  # pages of the value are lost, what says where it is is not
            length = file.read().index(b"x" * 50_000) + 10_000
            file.truncate(length)
    taken = of.take()
    assert taken is None or of.load(taken) is None
    assert str(directory) in of.unreadable
    assert (tmp_path / f"{directory.name}.unreadable" / "data.mdb").exists()
    assert of.ids() == []


def test_a_new_store_that_somebody_else_took_is_left_to_him(tmp_path: Path) -> None:
    theirs, ours = stores(tmp_path).begin(), stores(tmp_path).begin()
    assert (theirs.id, ours.id) == ("id0", "id1")
    theirs.store.close()
    ours.store.close()


def test_of_what_cannot_be_read_the_last_is_kept(tmp_path: Path) -> None:
    for store in ("a", "b"):
        life = ShardStores(tmp_path, "shard-1", lambda store=store: store)  # type: ignore[misc]
        life.begin().store.close()
        (life.directory(store) / "data.mdb").write_bytes(b"no database" * 10_000)
        assert life.take() is None
    assert [path.name for path in tmp_path.iterdir()] == ["shard-1-b.unreadable"]


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    of = stores(tmp_path / "file")
    assert of.take() is None
    with pytest.raises(StoreError, match="file/shard-1-id0: Not a directory"):
        of.begin()
