"""A shard that begins with what its last life stored."""

from typing import Any

import pytest

from cluster.core.messages import EntryView, Erase, FeedRange, Lay, Missed, MissedKeys, Read, Write, Written
from cluster.core.operation import Append, Increment, Set
from cluster.core.shard_state import EPOCH_SHIFT, JOIN_WAIT_MS, UNLAID_MS, Commit
from cluster.storage import MemoryStore
from tests.core.shard import DOCUMENT, DOWN, EPOCH, Shard


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def missed(shard: Shard, epoch: int, offset: int) -> MissedKeys:
    shard.ask(lambda n: Missed(n, "[]", prefix=True, epoch=epoch, offset=offset))
    (answer,) = (item for item in shard.items() if isinstance(item, MissedKeys))
    return answer


def test_entries_are_as_they_were(store: MemoryStore) -> None:
    first = Shard(store=store)
    first.ask(lambda n: Write(n, "r1", '["w"]', b'{"a":1}'))
    first.put('["q","1"]', [1, 2])
    first.batch(('["q","1"]', [Append((b"3",))]))
    before = first.machine.view('["w"]')
    second = Shard(store=store, life=4)
    after = second.machine.view('["w"]')
    assert before is not None
    assert after is not None
    assert (after.data, after.version, after.data_updated_at) == (before.data, before.version, before.data_updated_at)
    assert after.origin == "restored:write:"
    assert second.data('["q","1"]') == [1, 2, 3]
    assert len(second.machine.cache) == 2


def test_what_mutations_of_others_showed_is_shown_under_its_version_until_they_are_heard_of(store: MemoryStore) -> None:
    first = Shard(store=store)
    first.put('["q","1"]', {"n": 3})
    first.machine.mutations.laid.lay(Lay("vote-1", 1, [('["q","1"]', Increment("/n"))]), 7, {})
    first.machine.show('["q","1"]', "vote-1")
    first.wake(first.now)
    before = first.machine.view('["q","1"]')
    assert before is not None
    assert before.data == b'{"n":4}'
    second = Shard(store=store, life=4)
    watch = second.watch('["q","1"]')
    assert (second.held['["q","1"]'].version, second.data('["q","1"]')) == (before.version, {"n": 4})
    second.wake(second.now + UNLAID_MS)
    assert second.data('["q","1"]') == {"n": 3}, "nobody knows of it any more"
    assert second.held['["q","1"]'].version > before.version
    second.unwatch(watch)


def test_what_was_removed_stays_so(store: MemoryStore) -> None:
    first = Shard(store=store)
    first.ask(lambda n: Write(n, "r1", '["w"]', b"1"))
    first.ask(lambda n: Erase(n, "r2", '["w"]'))
    assert Shard(store=store, life=4).machine.view('["w"]') is None


def test_a_doubt_outlives_its_shard(store: MemoryStore) -> None:
    first = Shard(store=store)
    first.put('["q","1"]', 1)
    entry = first.machine.cache.get('["q","1"]')
    assert entry is not None
    first.machine._doubt(entry, "api:invalidate")
    first.settle()
    first.wake(first.now)
    view = Shard(store=store, life=4).machine.view('["q","1"]')
    assert view is not None
    assert view.is_invalidated
    assert view.doubt == ("api:invalidate", int(first.now))


def test_a_service_is_known_to_be_gone_by_the_first_call_that_does_not_reach_it(store: MemoryStore) -> None:
    first = Shard(store=store)
    first.put('["q","1"]', 1)
    second = Shard(store=store, life=4)
    assert second.ask(lambda n: Read(n, '["q","1"]', "force")) is None
    second.wake(second.now + JOIN_WAIT_MS)
    second.fetched(DOWN)
    second.wake(second.now + 1_000.0)  # when it would have been tried again
    (answer,) = second.answers().values()
    assert isinstance(answer, EntryView)
    assert (answer.data, answer.is_offline) == (b"1", True)


def test_what_a_query_does_not_persist_is_not_stored(store: MemoryStore) -> None:
    document = {**DOCUMENT, "queries": [{**DOCUMENT["queries"][0], "persist": False}]}
    first = Shard(document, store=store)
    first.put('["q","1"]', 1)
    first.ask(lambda n: Write(n, "r1", '["w"]', b"1"))
    assert [entry.key for entry in Shard(document, store=store, life=4).machine.cache] == ['["w"]']


def test_who_knew_what_is_not_persisted_is_told_that_it_is_gone(store: MemoryStore) -> None:
    document = {**DOCUMENT, "queries": [{**DOCUMENT["queries"][0], "persist": False}]}
    first = Shard(document, store=store)
    first.put('["q","1"]', 1)
    held = first.machine.view('["q","1"]')
    at = first.machine.offset
    assert held is not None
    second = Shard(document, store=store, life=4)
    assert missed(second, EPOCH, at) == MissedKeys(1, reset=False, keys=[('["q","1"]', held.version)])
    second.put('["q","1"]', 2)
    assert missed(second, EPOCH, at).keys == [('["q","1"]', held.version)]
    third = Shard(document, store=store, life=9)
    assert third.machine.view('["q","1"]') is None
    assert missed(third, EPOCH, at).keys == [('["q","1"]', held.version)]


def test_a_write_repeated_to_the_next_life_gets_its_answer(store: MemoryStore) -> None:
    first = Shard(store=store)
    told = first.ask(lambda n: Write(n, "r1", '["w"]', b"1"))
    second = Shard(store=store, life=4)
    assert second.ask(lambda n: Write(n, "r1", '["w"]', b"2")) == told
    assert isinstance(told, Written)
    assert second.data('["w"]') == 1


def test_versions_go_on_above_all_that_may_have_been_lost(store: MemoryStore) -> None:
    first = Shard(store=store)
    first.put('["w"]', 1)
    second = Shard(store=store, life=4)
    second.put('["w"]', 2)
    view = second.machine.view('["w"]')
    assert view is not None
    assert view.version > (EPOCH + 1) << EPOCH_SHIFT
    second.put('["w"]', 3)
    again = second.machine.view('["w"]')
    assert again is not None
    assert again.version == view.version + 1


def test_a_client_continues_over_a_restart(store: MemoryStore) -> None:
    first = Shard(store=store)
    first.put('["a"]', 1)
    at = first.machine.offset
    first.put('["b"]', 1)
    held = first.machine.view('["a"]')
    assert held is not None
    second = Shard(store=store, life=4)
    second.put('["a"]', 2)
    assert missed(second, EPOCH, at) == MissedKeys(1, reset=False, keys=[('["a"]', held.version), ('["b"]', 0)])
    assert missed(second, EPOCH, at + 2).reset, "the first life never came so far"


def test_a_client_continues_over_lives_in_which_nothing_changed(store: MemoryStore) -> None:
    first = Shard(store=store)
    first.wake(first.now)
    at = first.machine.offset
    second = Shard(store=store, life=4)
    second.wake(second.now)
    third = Shard(store=store, life=5)
    third.ask(lambda n: Write(n, "r", '["a"]', b"1"))
    assert missed(third, EPOCH, at) == MissedKeys(2, reset=False, keys=[('["a"]', 0)])
    assert missed(third, EPOCH, at + 1).reset, "which that life never came to"


@pytest.mark.parametrize("again", [True, False])
def test_events_count_once_over_a_restart(store: MemoryStore, again: bool) -> None:
    first = Shard(store=store)
    first.put('["l"]', [])
    feeds = (FeedRange("events/all", 9, 1, 4, 0),)
    first.batch(('["l"]', [Append((b"1",))]), feeds=feeds)
    second = Shard(store=store, life=4)
    if again:  # it was committed, but the coordinator has not heard
        second.batch(('["l"]', [Append((b"1",))]), feeds=feeds)
        assert second.data('["l"]') == [1]
    second.batch(('["l"]', [Append((b"2",))]), feeds=(FeedRange("events/all", 9, 5, 6, 4),))
    assert second.data('["l"]') == [1, 2]
    assert second.machine.resets == 0


def test_events_lost_with_a_restart_are_missed(store: MemoryStore) -> None:
    first = Shard(store=store)
    first.batch(('["q","1"]', [Set(b"1")]), feeds=(FeedRange("events/all", 9, 1, 4, 0),))
    second = Shard(store=store, life=4)
    second.batch(('["q","1"]', [Set(b"2")]), feeds=(FeedRange("events/all", 9, 8, 9, 7),))
    view = second.machine.view('["q","1"]')
    assert view is not None
    assert view.is_invalidated


def test_keys_of_other_shards_are_left_out(store: MemoryStore) -> None:
    Shard(store=store).put('["foreign"]', 1)
    second = Shard(store=store, life=4)
    assert second.machine.view('["foreign"]') is None
    second.put('["w"]', 1)
    stored = store.load()
    assert stored is not None
    assert [each.key for each in stored.entries] == ['["w"]']


def test_what_could_not_be_stored_goes_with_the_next(store: MemoryStore) -> None:
    shard = Shard(store=store)
    shard.put('["a"]', 1)
    taken: list[Any] = []
    shard._take = taken.extend  # type: ignore[method-assign]
    shard.put('["b"]', 2)
    (commit,) = (effect for effect in taken if isinstance(effect, Commit))
    shard.machine.not_stored(commit.transaction)
    taken.clear()
    shard.put('["c"]', 3)
    (commit,) = (effect for effect in taken if isinstance(effect, Commit))
    store.commit(commit.transaction)
    second = Shard(store=store, life=4)
    assert [second.data(f'["{name}"]') for name in "abc"] == [1, 2, 3]
    assert sorted(missed(second, EPOCH, EPOCH << EPOCH_SHIFT).keys) == [('["a"]', 0), ('["b"]', 0), ('["c"]', 0)]
