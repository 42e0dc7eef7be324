"""One contract for every store; what only one with a directory can do stands below."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cluster.core.digest import Digest, digest_of
from cluster.core.history import Life, Past, Step
from cluster.core.messages import Checkpoint, Failure, Written
from cluster.core.placement import assign_slots
from cluster.core.transaction import Store, StoredEntry, Transaction
from cluster.errors import StoreError
from cluster.storage import LmdbStore, MemoryStore, open_store
from cluster.storage.lmdb_store import COPY


def entry(key: str, data: bytes = b"1", version: int = 1) -> StoredEntry:
    return StoredEntry(key, version, data, 10.5, 9.0, "fetch:api", ("api:invalidate", 11.0), ('"tag"', version))


def transaction(number: int = 0, **more: Any) -> Transaction:
    given = {
        "epoch": 3,
        "offset": 100 + number,
        "entries": {},
        "cursors": {},
        "checkpoints": {},
        "results": {},
        "lives": [Life(3, 100, 0)],
        "number": number,
        "changes": [],
        "first": 0,
    }
    return Transaction(**{**given, **more})


@pytest.fixture(params=["memory", "lmdb"])
def reopened(request: Any, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens the store, again too: as its next owner finds it."""
    opened: list[Store] = []
    kept = MemoryStore()

    def reopen() -> Store:
        if request.param == "memory":
            return kept
        for each in opened:
            each.close()
        opened[:] = [LmdbStore(tmp_path / "store")]
        return opened[0]

    yield reopen
    for each in opened:
        each.close()


def test_a_new_store_holds_nothing(reopened: Callable[[], Store]) -> None:
    assert reopened().load() is None


def test_what_was_committed_is_there(reopened: Callable[[], Store]) -> None:
    results = {"r1": (50.0, Written(7)), "r2": (60.0, Failure("NOT_FOUND", "no"))}
    reopened().commit(
        transaction(
            entries={'["a"]': entry('["a"]'), '["b"]': entry('["b"]')},
            cursors={"events/x": (5, 12)},
            checkpoints={"events/x": Checkpoint("events/x", 5, 11, "id-11", is_dense=True)},
            results=results,
            changes=[('["a"]', 0), ('["b"]', 0)],
        )
    )
    stored = reopened().load()
    assert stored is not None
    assert (stored.epoch, stored.offset, stored.lives, stored.first) == (3, 100, [Life(3, 100, 0)], 0)
    assert {each.key: each for each in stored.entries} == {'["a"]': entry('["a"]'), '["b"]': entry('["b"]')}
    assert stored.cursors == {"events/x": (5, 12)}
    assert stored.checkpoints == {"events/x": Checkpoint("events/x", 5, 11, "id-11", is_dense=True)}
    assert stored.results == results
    assert stored.changes == [('["a"]', 0), ('["b"]', 0)]


def test_the_last_commit_counts(reopened: Callable[[], Store]) -> None:
    store = reopened()
    store.commit(
        transaction(entries={"a": entry("a"), "b": entry("b")}, results={"r": (1.0, Written(1))}, cursors={"f": (1, 1)})
    )
    store.commit(
        transaction(4, entries={"a": entry("a", b"2", 2), "b": None}, results={"r": None}, cursors={"f": (2, 1)})
    )
    stored = reopened().load()
    assert stored is not None
    assert stored.entries == [entry("a", b"2", 2)]
    assert stored.results == {}
    assert stored.cursors == {"f": (2, 1)}
    assert stored.offset == 104


def test_the_history_keeps_its_tail(reopened: Callable[[], Store]) -> None:
    store = reopened()
    for number in range(0, 30, 10):
        changes = [(f"k{n}", n) for n in range(number, number + 10)]
        store.commit(transaction(number, changes=changes, first=max(number - 2, 0)))
    stored = reopened().load()
    assert stored is not None
    assert stored.first == 18
    assert stored.changes == [(f"k{n}", n) for n in range(18, 30)]


def test_names_may_be_long(reopened: Callable[[], Store]) -> None:
    long = "x" * 5_000
    reopened().commit(
        transaction(entries={long: entry(long)}, cursors={long: (1, 2)}, results={long: (1.0, Written(1))})
    )
    stored = reopened().load()
    assert stored is not None
    assert (stored.entries[0].key, list(stored.cursors), list(stored.results)) == (long, [long], [long])


def test_the_digest_is_of_what_is_held_and_not_of_how_it_came(reopened: Callable[[], Store]) -> None:
    store = reopened()
    assert store.content_digest() == Digest().hex
    store.commit(transaction(entries={"a": entry("a"), "b": entry("b")}, changes=[("a", 0)], cursors={"f": (1, 1)}))
    first = store.content_digest()
    stored = store.load()
    assert stored is not None
    assert first == digest_of(stored)
    store.commit(transaction(1, entries={"a": entry("a", b"2", 2)}))
    assert store.content_digest() != first
    store.commit(transaction(1, entries={"a": entry("a")}))
    assert reopened().content_digest() == first


# --- with a directory ------------------------------------------------------------------------------------------------


def test_the_map_grows(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, map_bytes=256 * 1024)
    data = b'"' + b"x" * 100_000 + b'"'
    for number in range(50):
        store.commit(transaction(entries={f"k{number}": entry(f"k{number}", data)}))
    assert store.size() > 5_000_000
    store.close()
    again, stored, reason = open_store(tmp_path)
    assert stored is not None
    assert (len(stored.entries), reason) == (50, "")
    again.close()


def test_one_process_owns_it(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    with pytest.raises(StoreError, match="another process has it open"):
        open_store(tmp_path)
    store.close()
    open_store(tmp_path)[0].close()


def test_it_waits_for_its_owner_to_end(tmp_path: Path) -> None:
    holds = f"import sys; from cluster.storage import LmdbStore; from pathlib import Path; s = LmdbStore(Path({str(tmp_path)!r})); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        with pytest.raises(StoreError):
            open_store(tmp_path)
        owner.kill()
        open_store(tmp_path, wait_s=10.0)[0].close()


@pytest.mark.parametrize("spoil", ["garbage", "schema", "entry", "cut", "half"])
def test_what_cannot_be_read_is_set_aside(tmp_path: Path, spoil: str) -> None:
    directory = tmp_path / "shard-0"
    store = LmdbStore(directory)
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
    fresh, stored, reason = open_store(directory)
    assert stored is None
    assert str(directory) in reason
    assert (tmp_path / "shard-0.unreadable" / "data.mdb").exists()
    fresh.commit(transaction(entries={"b": entry("b")}))
    fresh.close()
    again, stored, reason = open_store(directory)
    assert stored is not None
    assert [each.key for each in stored.entries] == ["b"]
    assert not reason
    again.close()


def test_a_copy_holds_one_moment_while_others_commit(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store", map_bytes=256 * 1024)
    data = b'"' + b"x" * 50_000 + b'"'
    store.commit(transaction(entries={f"k{number}": entry(f"k{number}", data) for number in range(200)}))
    store.make_room()
    with ThreadPoolExecutor(1) as thread:
        copying = thread.submit(store.copy_to, tmp_path / "copy")
        number = 0
        while not copying.done():  # each frees pages that the copy may have to read yet
            number += 1
            together = [f"k{n}" for n in range(0, 200, 20)]
            store.commit(transaction(number, entries={key: entry(key, data, number) for key in together}))
        copying.result()
    copy = LmdbStore(tmp_path / "copy")
    stored = copy.load()
    assert stored is not None
    assert [each.data for each in stored.entries] == [data] * 200
    assert len({each.version for each in stored.entries if int(each.key[1:]) % 20 == 0}) == 1
    assert copy.content_digest() == digest_of(stored)
    copy.close()
    store.close()


def test_a_copy_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store")
    store.commit(transaction(entries={"a": entry("a")}))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        store.copy_to(tmp_path / "file" / "copy")
    store.copy_to(tmp_path / "store" / COPY)
    store.close()
    LmdbStore(tmp_path / "store").close()
    assert not (tmp_path / "store" / COPY).exists()


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file/shard-0: Not a directory"):
        open_store(tmp_path / "file" / "shard-0")


def test_slot_maps_and_the_histories_of_shards_that_are_no_more_are_kept(reopened: Callable[[], Store]) -> None:
    present, following = assign_slots(range(2), 4), assign_slots(range(3), 5)
    past = Past(4, [Life(2, 50, 0)], 0, [('["a"]', 3)], [Step(3, 4, 1)])
    reopened().commit(transaction(map=present, next_map=following, pasts={2: past, 3: past}, steps=[Step(3, 4, 0)]))
    reopened().commit(transaction(1, steps=[Step(3, 4, 0)]))
    stored = reopened().load()
    assert stored is not None
    assert (stored.map, stored.next_map, stored.pasts) == (present, following, {2: past, 3: past})
    assert stored.steps == [Step(3, 4, 0)]
    reopened().commit(transaction(2, map=following, pasts={2: None}))
    stored = reopened().load()
    assert stored is not None
    assert (stored.map, stored.next_map, stored.pasts) == (following, None, {3: past})
