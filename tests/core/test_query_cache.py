"""Entries are found by key and by prefix, live as long as they should, and are fetched once at a time."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.entry import Value
from cluster.core.query_cache import KEPT, LOOK_AGAIN_MS, Entry, Fetch, Observer, QueryCache
from cluster.core.query_key import KeyMatcher, canonical, partial_match
from cluster.core.query_options import QueryOptions

VALUES = st.recursive(
    st.sampled_from(["a", "b", 1, True, None]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)
KEYS = st.lists(VALUES, max_size=3)


class Recorder:
    """An owner that notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Entry, Fetch]] = []
        self.patches: list[Any] = []
        self.settlements: list[tuple[Any, Any]] = []
        self.held_until: float | None = None

    def call(self, entry: Entry, fetch: Fetch) -> None:
        self.calls.append((entry, fetch))

    def hold(self, entry: Entry) -> float | None:
        return self.held_until

    def completed(self, entry: Entry, fetch: Fetch, value: Value) -> Value:
        return value

    def changed(self, entry: Entry, fetch: Fetch, patch: list[bytes] | None) -> None:
        self.patches.append(patch)

    def touched(self, entry: Entry) -> None: ...

    def removed(self, entry: Entry) -> None: ...

    def settled(self, waiter: Any, entry: Entry, error: Any) -> None:
        self.settlements.append((waiter, error))


@given(st.lists(KEYS, max_size=8), st.sets(st.integers(0, 7)), KEYS)
def test_a_prefix_finds_what_trying_all_would(keys: list[list[Any]], gone: set[int], prefix: list[Any]) -> None:
    cache = QueryCache(Recorder())
    kept: dict[str, list[Any]] = {}
    for key in keys:
        if cache.get(canonical(key)) is None:
            cache.add(Entry(canonical(key), QueryOptions()))
            kept[canonical(key)] = key
    for number, text in enumerate(list(kept)):
        if number in gone:
            entry = cache.get(text)
            assert entry is not None
            cache.remove(entry)
            del kept[text]
    assert len(cache) == len(kept)
    assert [entry.key for entry in cache] == list(kept)
    found = [entry.key for entry in cache.matching(KeyMatcher(prefix))]
    assert found == [text for text, key in kept.items() if partial_match(key, prefix)]


def test_an_empty_cache_keeps_no_index() -> None:
    cache = QueryCache(Recorder())
    entry = Entry(canonical(["a", 1]), QueryOptions())
    cache.add(entry)
    cache.remove(entry)
    assert cache.get(entry.key) is None
    assert not cache._heads


class Played:
    """A cache with its recorder."""

    def __init__(self) -> None:
        self.owner = Recorder()
        self.cache: QueryCache[Entry] = QueryCache(self.owner)
        self.cache.now_ms = 1_000.0

    def entry(self, *key: Any, **options: Any) -> Entry:
        return self.cache.add(Entry(canonical(list(key)), QueryOptions(**options)))

    def answer(self, value: Any) -> None:
        entry, fetch = self.owner.calls.pop(0)
        self.cache.ended(fetch.service)
        awaited = self.cache.awaited(entry.key, fetch.id)
        if awaited is not None and isinstance(value, Exception):
            self.cache.failed(*awaited, value)
        elif awaited is not None:
            self.cache.received(*awaited, Value.from_object(value))


@pytest.fixture
def played() -> Played:
    return Played()


@pytest.mark.parametrize(
    ("stale_time", "invalidated", "stale_at_1999", "stale_at_2000"),
    [
        (None, False, False, False),
        (None, True, True, True),
        (1_000.0, False, False, True),
        ("static", True, False, False),
    ],
)
def test_staleness(
    played: Played, stale_time: Any, invalidated: bool, stale_at_1999: bool, stale_at_2000: bool
) -> None:
    entry = played.entry("a", stale_time=stale_time)
    assert entry.is_stale(0.0), "it has no data"
    played.cache.written(entry, Value.from_object(None))
    entry.is_invalidated = invalidated
    assert (entry.is_stale(1_999.0), entry.is_stale(2_000.0)) == (stale_at_1999, stale_at_2000)


def test_callers_join_the_fetch_under_way_and_all_are_told(played: Played) -> None:
    entry = played.entry("a")
    for waiter in range(3):
        played.cache.fetch(entry, waiter=waiter)
    assert len(played.owner.calls) == 1
    played.answer({"n": 1})
    assert played.owner.settlements == [(0, None), (1, None), (2, None)]


def test_what_was_invalidated_meanwhile_is_fetched_exactly_once_more_for_its_observers(played: Played) -> None:
    entry = played.entry("a")
    played.cache.observe(entry, Observer(QueryOptions()))
    fetch = entry.fetch
    assert fetch is not None
    fetch.again = True
    played.answer(1)
    assert entry.is_invalidated
    assert len(played.owner.calls) == 1
    played.answer(2)
    assert not entry.is_invalidated
    assert not played.owner.calls


def test_calls_to_a_service_wait_for_their_turn(played: Played) -> None:
    played.cache.limit("api", 2)
    entries = [played.entry("a", n, service="api") for n in range(5)]
    for entry in entries:
        played.cache.fetch(entry)
    assert len(played.owner.calls) == 2
    for n in range(3):
        played.answer(n)
        assert len(played.owner.calls) == 2
    played.cache.cancel(entries[4])
    played.answer(3)
    played.answer(4)
    assert not played.owner.calls
    assert [entry.status for entry in entries] == ["success"] * 4 + ["pending"]


def test_a_service_that_is_lost_pauses_its_own_fetches_only(played: Played) -> None:
    lost, other = played.entry("a", service="lost"), played.entry("b", service="other")
    played.cache.set_online("lost", online=False)
    played.cache.fetch(lost)
    played.cache.fetch(other)
    assert (lost.fetch_status, other.fetch_status) == ("paused", "fetching")
    assert played.cache.paused("lost") is lost
    played.cache.set_online("lost", online=True)
    assert lost.fetch_status == "fetching"
    assert len(played.owner.calls) == 2


def test_entries_of_a_lost_service_are_not_collected_and_their_time_starts_anew_when_it_is_back(played: Played) -> None:
    entry = played.entry("a", service="api", gc_time=100.0)
    played.cache.set_online("api", online=False)
    played.cache.now_ms = 1_100.0
    played.cache.wake()
    assert played.cache.get(entry.key) is entry
    played.cache.set_online("api", online=True)
    played.cache.now_ms = 1_199.0
    played.cache.wake()
    assert played.cache.get(entry.key) is entry
    played.cache.now_ms = 1_200.0
    played.cache.wake()
    assert played.cache.get(entry.key) is None
    assert played.cache.collected == 1


def test_an_entry_outlives_its_service_by_its_offline_time_from_when_both_were_gone(played: Played) -> None:
    early = played.entry("a", service="api", gc_time=100.0, offline_time=1_000.0)
    played.cache.now_ms = 1_050.0
    played.cache.set_online("api", online=False)
    late = played.entry("b", service="api", gc_time=100.0, offline_time=1_000.0)
    observer = Observer(late.options)
    played.cache.observe(late, observer, mount=False)
    played.cache.now_ms = 1_500.0
    played.cache.wake()
    played.cache.unobserve(observer)
    for now_ms, kept in ((2_049.0, [early, late]), (2_050.0, [late]), (2_499.0, [late]), (2_500.0, [])):
        while (due := played.cache.deadline()) is not None and due <= now_ms:
            played.cache.now_ms = due
            played.cache.wake()
        played.cache.now_ms = now_ms
        assert list(played.cache) == kept, now_ms


def test_an_offline_time_may_last_until_the_service_is_back(played: Played) -> None:
    entry = played.entry("a", service="api", gc_time=100.0, offline_time=None)
    played.cache.set_online("api", online=False)
    played.cache.now_ms = 10**12
    played.cache.wake()
    assert list(played.cache) == [entry]
    assert played.cache.deadline() == 10**12 + 100.0


def test_an_entry_without_a_gc_time_that_is_kept_is_not_looked_at_all_the_time(played: Played) -> None:
    entry = played.entry("a", service="api", gc_time=0.0, offline_time=None)
    played.cache.set_online("api", online=False)
    played.cache.wake()
    assert (list(played.cache), played.cache.deadline()) == ([entry], 1_000.0 + LOOK_AGAIN_MS)
    played.cache.set_online("api", online=True)
    played.cache.now_ms = 1_000.0 + LOOK_AGAIN_MS
    played.cache.wake()
    assert list(played.cache) == []


def test_of_a_service_nobody_knows_one_entry_is_fetched_before_any_is_dropped(played: Played) -> None:
    first, second = (played.entry(name, service="api", gc_time=100.0) for name in "ab")
    other = played.entry("c", service="other", gc_time=100.0)
    played.cache.unheard("api")
    played.cache.now_ms = 1_100.0
    played.cache.wake()
    assert list(played.cache) == [first, second]
    assert [entry for entry, _ in played.owner.calls] == [first], other.key
    played.answer("new")
    played.cache.heard("api")
    played.cache.now_ms = 1_200.0
    played.cache.wake()
    assert list(played.cache) == []
    assert played.owner.calls == []


def test_a_service_nobody_knows_that_is_found_offline_keeps_its_entries(played: Played) -> None:
    first, second = (played.entry(name, service="api", gc_time=100.0, offline_time=500.0) for name in "ab")
    played.cache.unheard("api")
    assert played.cache.is_unheard("api")
    played.cache.set_online("api", online=False)
    assert not played.cache.is_unheard("api")
    played.cache.now_ms = 1_400.0
    played.cache.wake()
    assert list(played.cache) == [first, second]
    assert played.owner.calls == []


def test_a_gc_time_can_be_lowered(played: Played) -> None:
    entry = played.entry("a", gc_time=10_000.0)
    played.cache.set_options(entry, QueryOptions(gc_time=50.0))
    assert played.cache.deadline() == 1_050.0
    played.cache.now_ms = 1_050.0
    played.cache.wake()
    assert played.cache.get(entry.key) is None


def test_gc_times_of_what_went_otherwise_are_not_kept(played: Played) -> None:
    stays = played.entry("stays", gc_time=10_000.0)
    for n in range(3 * KEPT):
        played.cache.remove(played.entry("gone", n, gc_time=20_000.0))
    assert len(played.cache._idle) <= KEPT + 2
    played.cache.now_ms = 11_000.0
    played.cache.wake()
    assert played.cache.get(stays.key) is None


def test_intervals_of_observers_that_are_gone_are_not_kept(played: Played) -> None:
    options = QueryOptions(refetch_interval=10_000.0)
    stays, other = played.entry("stays"), played.entry("other")
    played.cache.observe(stays, Observer(options), mount=False)
    for _ in range(3 * KEPT):
        played.cache.now_ms += 1.0
        gone = Observer(options)
        played.cache.observe(other, gone, mount=False)
        played.cache.unobserve(gone)
    assert len(played.cache._timers) <= KEPT + 2
    assert played.cache.deadline() == 11_000.0


def test_a_read_starts_the_gc_time_anew(played: Played) -> None:
    entry = played.entry("a", gc_time=100.0)
    played.cache.now_ms = 1_090.0
    played.cache.use(entry)
    played.cache.now_ms = 1_100.0
    played.cache.wake()
    assert played.cache.get(entry.key) is entry
    assert played.cache.deadline() == 1_190.0


def test_an_identical_response_changes_nothing_and_another_says_only_what_differs(played: Played) -> None:
    entry = played.entry("a")
    for value in ({"a": [1, {"b": 2}], "c": 3}, {"c": 3, "a": [1, {"b": 2}]}, {"a": [1, {"b": 9}], "c": 3}):
        played.cache.fetch(entry)
        played.answer(value)
    assert played.owner.patches == [None, [b'{"op":"replace","path":"/a/1/b","value":9}']]
    assert entry.data_update_count == 3


def test_a_held_fetch_begins_when_it_is_released_or_late(played: Played) -> None:
    played.owner.held_until = 1_500.0
    entry, late = played.entry("a", gc_time=None), played.entry("b", gc_time=None)
    played.cache.fetch(entry)
    played.cache.fetch(late)
    assert not played.owner.calls
    played.cache.release(entry)
    assert [called.key for called, _ in played.owner.calls] == [entry.key]
    assert played.cache.deadline() == 1_500.0
    played.cache.now_ms = 1_500.0
    played.cache.wake()
    assert [called.key for called, _ in played.owner.calls] == [entry.key, late.key]


def test_a_cancelled_fetch_that_was_overtaken_keeps_the_invalidation(played: Played) -> None:
    entry = played.entry("a")
    played.cache.written(entry, Value.from_object(1))
    fetch = played.cache.fetch(entry)
    entry.is_invalidated = fetch.again = True
    played.cache.cancel(entry, revert=True)
    assert entry.is_invalidated
    played.answer(2)
    assert entry.value is not None
    assert entry.value.object() == 1


def test_observers_refetch_at_intervals_counted_from_the_last_news(played: Played) -> None:
    entry = played.entry("a")
    observer = Observer(QueryOptions(refetch_interval=100.0, stale_time=None))
    played.cache.observe(entry, observer)
    played.answer(1)
    played.cache.now_ms = 1_060.0
    played.cache.written(entry, Value.from_object(2))
    played.cache.now_ms = 1_100.0
    played.cache.wake()
    assert not played.owner.calls
    played.cache.now_ms = 1_160.0
    played.cache.wake()
    assert len(played.owner.calls) == 1
    played.answer(3)
    played.cache.unobserve(observer)
    played.cache.now_ms = 9_000.0
    played.cache.wake()
    assert not played.owner.calls


@pytest.mark.parametrize("key", [["a"], ['a"b', 1], ["a\\", 1], ['a\\"', 2], ["ü", 1], [], [1, "a"], [None], [["a"]]])
def test_a_key_is_found_under_its_first_element_however_that_is_written(played: Played, key: list[Any]) -> None:
    entry = played.entry(*key)
    assert played.cache.matching(KeyMatcher(key)) == [entry]
    assert played.cache.matching(KeyMatcher(key[:1])) == [entry]
