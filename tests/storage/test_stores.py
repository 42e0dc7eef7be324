"""One contract for every store; what only one with a directory can do stands below."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cluster.core.digest import Digest, digest_of
from cluster.core.history import Life, Past, Step
from cluster.core.messages import Checkpoint, Failure, Written
from cluster.core.mutation_queue import MutationRecord
from cluster.core.placement import assign_slots
from cluster.core.role import Standing
from cluster.core.transaction import Store, StoredEntry, Transaction
from cluster.errors import StoreError
from cluster.storage import LmdbStore, MemoryStore
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


def whole(number: int = 0) -> Transaction:
    """Something in every table."""
    return transaction(
        number,
        entries={f'["a",{number}]': entry(f'["a",{number}]')},
        cursors={f"events/{number}": (5, 12)},
        checkpoints={f"events/{number}": Checkpoint(f"events/{number}", 5, 11, "id-11", is_dense=True)},
        results={f"r{number}": (50.0, Written(7))},
        changes=[(f'["a",{number}]', 0)],
        mutations={f"m{number}": MutationRecord(f"m{number}", "name", b"{}", "", number, 1.0, 1.0, "gateway-0", [])},
    )


def test_slices_are_all_there_is(reopened: Callable[[], Store]) -> None:
    store, copy = reopened(), MemoryStore()
    assert list(store.slices(100)) == []
    for number in range(40):
        store.commit(whole(number))
    slices = list(store.slices(100))
    assert len(slices) > 5
    for each in slices:
        copy.commit(each)
    stored, copied = store.load(), copy.load()
    assert stored is not None
    assert copied is not None
    assert sorted(copied.entries, key=attrgetter("key")) == sorted(stored.entries, key=attrgetter("key"))
    assert sorted(copied.mutations, key=attrgetter("id")) == sorted(stored.mutations, key=attrgetter("id"))
    assert replace(copied, entries=[], mutations=[]) == replace(stored, entries=[], mutations=[])


def test_slices_and_digests_know_slot_maps_and_the_histories_of_shards_that_are_no_more(
    reopened: Callable[[], Store],
) -> None:
    present, following = assign_slots(range(2), 4), assign_slots(range(3), 5)
    pasts: dict[int, Past | None] = {n: Past(4, [Life(2, 50, 0)], 0, [('["a"]', n)], [Step(3, 4, 1)]) for n in (2, 3)}
    store, copy = reopened(), MemoryStore()
    store.commit(transaction(map=present, next_map=following, pasts=pasts, steps=[Step(3, 4, 0)]))
    slices = list(store.slices(100))
    assert [set(each.pasts) for each in slices] == [set(), {2}, {3}], "each may be long"
    for each in slices:
        copy.commit(each)
    assert copy.load() == store.load()
    checks = [store.digest(table, b"", 30) for table in range(6, 9)]
    store.commit(transaction(map=following, pasts={2: None}))
    checked = [check for check in checks if check.table]  # beyond the last table comes the first
    assert checked
    assert not any(map(store.matches, checked))


def test_a_digest_is_of_rows_and_goes_round(reopened: Callable[[], Store]) -> None:
    store = reopened()
    for number in range(40):
        store.commit(whole(number))
    table, after, rounds = 0, b"", []
    while len(rounds) < 30:
        check = store.digest(table, after, 30)
        assert store.matches(check)
        rounds.append((check.table, check.until == b""))
        table, after = (check.table, check.until) if check.until else (check.table + 1, b"")
    assert rounds[:4] == [(0, False), (0, True), (1, False), (1, True)]
    assert rounds.count((0, False)) >= 2, "behind the last comes the first"
    first = store.digest(0, b"", 30)
    store.commit(whole(0) if first.until else whole())
    assert store.matches(first), "the same again is no difference"
    for number in range(40):
        store.commit(transaction(40, entries={f'["a",{number}]': entry(f'["a",{number}]', version=2)}))
    assert not store.matches(first)


def test_a_store_that_is_cleared_holds_nothing_and_is_not_whole(reopened: Callable[[], Store]) -> None:
    store: Any = reopened()
    store.stand(Standing(9, is_whole=True))
    store.commit(whole())
    store.clear()
    assert store.load() is None
    standing = store.standing if isinstance(store, MemoryStore) else store.standing()[0]
    assert standing == Standing(0, is_whole=False)


def test_in_which_role_it_was_written_outlives_the_process(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "store")
    assert store.standing() is None
    store.commit(whole(2))
    assert store.standing() == (Standing(3, is_whole=True), (3, 102)), "of one who was alone"
    store.stand(Standing(9, is_whole=True))
    store.close()
    again = LmdbStore(tmp_path / "store")
    assert again.standing() == (Standing(9, is_whole=True), (3, 102))
    again.close()


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
    again = LmdbStore(tmp_path)
    stored = again.load()
    assert stored is not None
    assert len(stored.entries) == 50
    again.close()


def test_the_map_grows_for_what_takes_away_too(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path, sync="never", map_bytes=16 * 1024 * 1024)  # pages are used again at once
    page, size = store._env.stat()["psize"], store._env.info()["map_size"]
    number = 0

    def left() -> int:
        return size // page - 1 - int(store._env.info()["last_pgno"])

    while left() > 3:
        rows = 60 if left() > 150 else 1
        entries = {f"k{n}": entry(f"k{n}", b'"' + b"x" * 900 + b'"') for n in range(number, number + rows)}
        store.commit(transaction(entries=entries))
        number += rows
    assert store._env.info()["map_size"] == size
    store.stand(Standing(5, is_whole=True))
    store.clear()
    assert store.standing() == (Standing(0, is_whole=False), (0, 0))
    assert store._env.info()["map_size"] > size
    store.close()


def test_one_process_owns_it(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    with pytest.raises(StoreError, match="another process has it open"):
        LmdbStore(tmp_path)
    store.close()
    LmdbStore(tmp_path).close()


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
