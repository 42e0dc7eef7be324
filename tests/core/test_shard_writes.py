"""Direct writes to a shard: conditions, merges, and when they are acknowledged."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from cluster.core import shard_state
from cluster.core.messages import Change, Edit, Erase, Failure, Write, Written
from cluster.core.operation import Append, MergeWhere, Operation, Set
from cluster.core.recent_values import MAX_VALUES
from cluster.core.work import MAX_OPERATIONS, MAX_STEPS
from cluster.errors import ErrorCode, StoreError
from cluster.storage import MemoryStore
from tests.core.shard import Shard

K = '["doc"]'
Make = Callable[[int, int | None], Any]
WRITES: list[Any] = [
    pytest.param(lambda n, base: Write(n, f"r{n}", K, b'"new"', base), id="write"),
    pytest.param(
        lambda n, base: Edit(n, f"r{n}", K, b'[{"op":"replace","path":"","value":1}]', None, base), id="patch"
    ),
    pytest.param(lambda n, base: Edit(n, f"r{n}", K, None, [Set(b"1")], base), id="operations"),
    pytest.param(lambda n, base: Erase(n, f"r{n}", K, base), id="erase"),
]


def write(shard: Shard, data: Any, base: int | None = None, *, merges: bool = False) -> Any:
    return shard.ask(lambda n: Write(n, f"w{n}", K, orjson.dumps(data), base, merges=merges))


def version(shard: Shard) -> int:
    view = shard.machine.view(K)
    assert view is not None
    return view.version


# --- conditions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", WRITES)
def test_every_write_that_loses_is_told_what_won(make: Make) -> None:
    shard = Shard()
    first = write(shard, 1).version
    write(shard, 2)
    lost = shard.ask(lambda n: make(n, first))
    assert isinstance(lost, Failure)
    assert lost.code == ErrorCode.VERSION_CONFLICT
    assert lost.current == shard.machine.view(K)
    assert lost.current is not None
    assert (lost.current.data, lost.conflicts) == (b"2", None)
    assert isinstance(shard.ask(lambda n: make(n, lost.current.version)), Written)


def test_a_loser_that_repeats_itself_is_told_what_is_there_now() -> None:
    store = MemoryStore()
    shard = Shard(store=store)
    base = write(shard, 1).version
    write(shard, 2)
    first = shard.ask(lambda n: Write(n, "same", K, b"0", base))
    write(shard, 3)
    again = shard.ask(lambda n: Write(n, "same", K, b"0", base))
    assert (first.code, first.message) == (again.code, again.message)
    assert (first.current.data, again.current.data) == (b"2", b"3")
    stored = store.load()
    assert stored is not None
    (kept,) = (result for _, result in stored.results.values() if isinstance(result, Failure))
    assert kept.current is None, "a copy for each loser would be much"


@pytest.mark.parametrize("make", WRITES)
def test_of_an_entry_that_is_gone_nothing_is_told(make: Make) -> None:
    shard = Shard()
    lost = shard.ask(lambda n: make(n, 7))
    assert isinstance(lost, Failure)
    assert (lost.code, lost.current) == (ErrorCode.VERSION_CONFLICT, None)


# --- merges ------------------------------------------------------------------------------------------------------


def test_an_edit_of_an_earlier_version_is_merged() -> None:
    shard = Shard()
    shard.watch(K)
    long = "of a title " * 10
    base = write(shard, {"title": "a", "body": "b"}).version
    write(shard, {"title": long, "body": "b"}, base)
    before = version(shard)
    shard.items()
    answer = write(shard, {"title": "a", "body": "B"}, base, merges=True)
    assert answer == Written(version(shard), is_merged=True)
    assert shard.data(K) == {"title": long, "body": "B"}
    (change,) = (item for item in shard.items() if isinstance(item, Change))
    assert (change.from_version, change.patch) == (before, b'[{"op":"replace","path":"/body","value":"B"}]')
    assert shard.held[K].version == answer.version


def test_what_streams_did_is_merged_with() -> None:
    shard = Shard()
    shard.put(K, {"items": [{"id": 1}], "n": 0})
    base = version(shard)
    write(shard, {"items": [{"id": 1}], "n": 1}, base)
    shard.batch((K, [Append((b'{"id":2}',), "/items")]))
    assert isinstance(write(shard, {"items": [{"id": 1}, {"id": 3}], "n": 0}, base, merges=True), Written)
    assert shard.data(K) == {"items": [{"id": 1}, {"id": 2}, {"id": 3}], "n": 1}


def test_what_a_stream_made_of_a_written_entry_can_be_merged_with() -> None:
    shard = Shard()
    write(shard, {"items": []})
    shard.batch((K, [Append((b'{"id":1}',), "/items")]))
    base = version(shard)
    shard.batch((K, [Append((b'{"id":2}',), "/items")]))
    assert isinstance(write(shard, {"items": [{"id": 1, "mine": 1}]}, base, merges=True), Written)
    assert shard.data(K) == {"items": [{"id": 1, "mine": 1}, {"id": 2}]}


def test_an_edit_of_the_present_version_is_not_merged() -> None:
    shard = Shard()
    base = write(shard, {"a": 1}).version
    assert write(shard, {"b": 1}, base, merges=True) == Written(base + 1)
    assert shard.data(K) == {"b": 1}


def test_where_both_changed_the_same_nothing_is_written() -> None:
    shard = Shard()
    base = write(shard, {"a": 1, "b": 1, "c": 1}).version
    write(shard, {"a": 2, "b": 2, "c": 1}, base)
    before = version(shard)
    lost = write(shard, {"a": 3, "b": 3, "c": 3}, base, merges=True)
    assert isinstance(lost, Failure)
    assert (lost.code, lost.conflicts) == (ErrorCode.VERSION_CONFLICT, ["/a", "/b"])
    assert lost.current == shard.machine.view(K)
    assert version(shard) == before
    assert shard.data(K) == {"a": 2, "b": 2, "c": 1}


def test_with_an_entry_that_was_removed_nothing_is_merged() -> None:
    shard = Shard()
    base = write(shard, {"a": 1}).version
    shard.ask(lambda n: Erase(n, "gone", K))
    lost = write(shard, {"a": 2}, base, merges=True)
    assert (lost.code, lost.current, lost.conflicts) == (ErrorCode.VERSION_CONFLICT, None, [""])
    write(shard, {"a": 1, "b": 1})
    lost = write(shard, {"a": 2}, base, merges=True)
    assert lost.code == ErrorCode.VERSION_CONFLICT
    assert shard.data(K) == {"a": 1, "b": 1}, "it is another entry"


def test_what_is_not_kept_is_not_merged_with() -> None:
    shard = Shard()
    base = write(shard, {"n": 0}).version
    for number in range(1, MAX_VALUES + 2):
        write(shard, {"n": number})
    lost = write(shard, {"n": 0, "mine": 1}, base, merges=True)
    assert (lost.code, lost.conflicts) == (ErrorCode.VERSION_CONFLICT, None)
    assert "not known" in lost.message
    assert isinstance(write(shard, {"n": 64, "mine": 1}, version(shard) - 1, merges=True), Written)
    assert shard.data(K) == {"n": MAX_VALUES + 1, "mine": 1}


def test_a_repeated_merge_acts_once() -> None:
    shard = Shard()
    base = write(shard, {"a": 1}).version
    write(shard, {"a": 1, "b": 1}, base)
    told = [shard.ask(lambda n: Write(n, "same", K, b'{"a":2}', base, merges=True)) for _ in range(2)]
    assert told[0] == told[1]
    assert version(shard) == told[0].version


# --- how much they may be ----------------------------------------------------------------------------------------

PATCHED: list[Any] = [
    pytest.param(None, [MergeWhere(b'{"n":[1]}', b"{}")] * 1_000, ("edit_steps", MAX_STEPS), id="steps"),
    pytest.param(None, [Append((b"1",))] * 1_001, ("operations", MAX_OPERATIONS), id="operations"),
    pytest.param([{"op": "add", "path": "/0", "value": 0}] * 1_001, None, ("operations", MAX_OPERATIONS), id="patch"),
]


@pytest.mark.parametrize(("patch", "operations", "limit"), PATCHED)
def test_an_edit_that_is_too_much_work_does_nothing(
    patch: Any, operations: list[Operation] | None, limit: tuple[str, float]
) -> None:
    shard = Shard()
    items = [{"id": number} for number in range(10_000)]
    before = write(shard, items).version
    refused = shard.ask(lambda n: Edit(n, "r", K, None if patch is None else orjson.dumps(patch), operations))
    assert isinstance(refused, Failure)
    assert (refused.code, refused.limit) == (ErrorCode.TOO_LARGE, limit)
    view = shard.machine.view(K)
    assert view is not None
    assert (view.version, orjson.loads(view.data or b"")) == (before, items)


# --- acknowledgement ---------------------------------------------------------------------------------------------


def durable(shard: Shard, request: str, data: bytes = b"1", ack: str = "durable") -> Any:
    return shard.ask(lambda n: Write(n, request, K, data, None, ack))


def test_a_durable_write_is_answered_when_it_is_synced() -> None:
    shard = Shard(store=MemoryStore())
    assert durable(shard, "r1") is None
    number = shard.next_id
    assert shard.data(K) == 1, "it is applied at once"
    assert shard.synced() == {number: Written(version(shard))}
    assert not shard.syncing


def test_writes_share_a_sync_and_who_comes_later_waits_for_the_next() -> None:
    shard = Shard(store=MemoryStore())
    durable(shard, "r1")
    first = shard.next_id
    durable(shard, "r2")
    durable(shard, "r3", ack="")
    assert set(shard.synced()) == {first}
    assert set(shard.synced()) == {first + 1, first + 2}
    assert not shard.syncing


def test_memory_does_not_wait_for_the_disk() -> None:
    shard = Shard(store=MemoryStore())
    assert isinstance(durable(shard, "r1", ack="memory"), Written)
    assert not shard.syncing


def test_without_a_store_a_durable_write_is_refused_and_not_done() -> None:
    shard = Shard()
    refused = durable(shard, "r1")
    assert isinstance(refused, Failure)
    assert refused.code == ErrorCode.UNSUPPORTED
    assert shard.machine.view(K) is None
    assert isinstance(durable(shard, "r1", ack=""), Written), "the same request, for less"


def test_a_write_that_fails_waits_for_nothing() -> None:
    shard = Shard(store=MemoryStore())
    assert isinstance(shard.ask(lambda n: Write(n, "r1", K, b"1", 5, "durable")), Failure)
    assert not shard.syncing


def test_a_repeat_is_not_acknowledged_before_the_sync() -> None:
    shard = Shard(store=MemoryStore())
    durable(shard, "r1")
    assert durable(shard, "r1", b"2") is None
    shard.synced()
    assert shard.synced() == {shard.next_id: Written(version(shard))}
    assert shard.data(K) == 1


def test_a_write_asked_again_of_the_next_life_is_acknowledged_by_that() -> None:
    store = MemoryStore()
    first = Shard(store=store)
    durable(first, "r1")
    told = version(first)
    second = Shard(store=store, life=4)
    assert durable(second, "r1") is None
    assert list(second.synced().values()) == [Written(told)]


def test_what_the_store_did_not_take_is_not_acknowledged() -> None:
    class Full(MemoryStore):
        is_full = True

        def commit(self, transaction: Any) -> None:
            if self.is_full:
                raise StoreError("no space")
            super().commit(transaction)

    store = Full()
    shard = Shard(store=store)
    durable(shard, "r1")
    (lost,) = shard.synced().values()
    assert (lost.code, shard.data(K)) == (ErrorCode.UNAVAILABLE, 1)
    store.is_full = False
    assert durable(shard, "r1") is None
    assert list(shard.synced().values()) == [Written(version(shard))]
    assert Shard(store=store, life=4).data(K) == 1


def test_a_sync_that_fails_acknowledges_nothing() -> None:
    shard = Shard(store=MemoryStore())
    durable(shard, "r1")
    (lost,) = shard.synced(failed=True).values()
    assert lost.code == ErrorCode.UNAVAILABLE


def test_a_write_costs_the_same_however_many_are_remembered() -> None:
    shard = Shard()

    def peak(writes: int) -> int:
        for number in range(writes):
            write(shard, number)
        tracemalloc.start()
        write(shard, 0)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few = peak(100)
    assert peak(5_000) < few + 10_000, "bytes: of a list of them all there would be 40,000 and more"


def test_no_more_than_so_many_are_remembered_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_state, "MOST_RESULTS", 3)
    store = MemoryStore()
    shard = Shard(store=store)
    for number in range(9):
        shard.ask(lambda n, number=number: Write(n, f"same{number}", K, b"%d" % number, None))  # type: ignore[misc]
    stored = store.load()
    assert stored is not None
    assert len(stored.results) <= 4
    newest = version(shard)
    assert shard.ask(lambda n: Write(n, "same8", K, b"8", None)).version == newest, "it is remembered"
    assert shard.ask(lambda n: Write(n, "same0", K, b"0", None)).version > newest, "it is not"
