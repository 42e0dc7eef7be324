"""An entry's state leaves one cache and arrives in another, where it is no older than what is there."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.core.entry import Value
from cluster.core.hydration import dehydrate, hydrate
from cluster.core.query_cache import Entry, QueryCache
from cluster.core.query_key import CanonicalKey, canonical
from cluster.core.query_options import QueryOptions

KEY = canonical(["a", {"b": 1}])
OPTIONS = QueryOptions(gc_time=1_000.0, stale_time=500.0, retry=False)


class Silent:
    """An owner whose fetches are answered by hand."""

    def call(self, entry: Entry, fetch: Any) -> None: ...

    def hold(self, entry: Entry) -> None:
        return None

    def completed(self, entry: Entry, fetch: Any, value: Value) -> Value:
        return value

    def changed(self, entry: Entry, fetch: Any, patch: Any) -> None: ...

    def touched(self, entry: Entry) -> None: ...

    def removed(self, entry: Entry) -> None: ...

    def settled(self, waiter: Any, entry: Entry, error: Any) -> None: ...


def cache(now_ms: float = 1_000.0) -> QueryCache[Entry]:
    owner: Any = Silent()
    made: QueryCache[Entry] = QueryCache(owner)
    made.now_ms = now_ms
    return made


def written(of: QueryCache[Entry], json: bytes, key: CanonicalKey = KEY) -> Entry:
    entry = of.get(key) or of.add(Entry(key, OPTIONS))
    of.written(entry, Value.from_json(json))
    return entry


def seen(entry: Entry) -> tuple[Any, ...]:
    return (
        None if entry.value is None else entry.value.json(),
        entry.data_updated_at,
        entry.data_update_count,
        entry.status,
        entry.is_invalidated,
        None if entry.error is None else str(entry.error),
        entry.error_updated_at,
        entry.error_update_count,
    )


def test_state_survives_the_way() -> None:
    entry = written(cache(), b'{"n":1}')
    entry.is_invalidated = True
    there = cache(9_000.0)
    arrived = hydrate(there, dehydrate(entry), OPTIONS)
    assert seen(arrived) == seen(entry)
    assert there.get(KEY) is arrived
    assert arrived.fetch_status == "idle"


def test_so_does_a_failure_as_text() -> None:
    here = cache()
    entry = here.add(Entry(KEY, OPTIONS))
    fetch = here.fetch(entry)
    here.failed(entry, fetch, ValueError("no"))
    arrived = hydrate(cache(), dehydrate(entry), OPTIONS)
    assert (arrived.status, arrived.error, arrived.error_updated_at, arrived.error_update_count) == (
        "error",
        "no",
        1_000.0,
        1,
    )
    assert arrived.value is None


def test_a_fetch_under_way_stays_behind() -> None:
    here = cache()
    entry = written(here, b"1")
    here.fetch(entry)
    arrived = hydrate(cache(), dehydrate(entry), OPTIONS)
    assert (arrived.fetch_status, arrived.fetch, arrived.status) == ("idle", None, "success")


def test_a_new_entry_has_the_options_given_and_one_that_was_there_keeps_its_own() -> None:
    state = dehydrate(written(cache(5_000.0), b"1"))
    there = cache()
    assert hydrate(there, state, OPTIONS).options is OPTIONS
    own = QueryOptions()
    there = cache()
    held = there.add(Entry(KEY, own))
    assert hydrate(there, state, OPTIONS) is held
    assert held.options is own
    assert held.value is not None


def test_what_arrives_is_collected_like_everything_else() -> None:
    there = cache(9_000.0)
    hydrate(there, dehydrate(written(cache(), b"1")), OPTIONS)
    there.now_ms = 9_999.0
    there.wake()
    assert there.get(KEY) is not None
    there.now_ms = 10_000.0
    there.wake()
    assert there.get(KEY) is None


def test_a_fetch_that_is_under_way_there_goes_on() -> None:
    there = cache()
    entry = there.add(Entry(KEY, OPTIONS))
    fetch = there.fetch(entry)
    hydrate(there, dehydrate(written(cache(5_000.0), b"1")), OPTIONS)
    assert entry.fetch is fetch
    there.received(entry, fetch, Value.from_json(b"2"))
    assert entry.value is not None
    assert (entry.value.json(), entry.status) == (b"2", "success")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=1, max_size=6))
def test_the_newest_wins_and_the_first_of_equals(arrivals: list[tuple[int, int]]) -> None:
    there = cache()
    for at, data in arrivals:
        hydrate(there, dehydrate(written(cache(float(at)), b"%d" % data)), OPTIONS)
    newest = max(at for at, _ in arrivals)
    entry = there.get(KEY)
    assert entry is not None
    assert entry.value is not None
    assert entry.data_updated_at == newest
    assert entry.value.json() == b"%d" % next(data for at, data in arrivals if at == newest)
    assert len(there) == 1
