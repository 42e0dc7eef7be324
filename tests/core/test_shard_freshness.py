"""What a shard takes for fresh, and what it does not: channels that were not joined, parts, what came while a fetch was under way."""

from typing import Any

import orjson
import pytest

from cluster.core.messages import Act, Edit, FeedRange, Read, Removed
from cluster.core.operation import UNCHANGED, Append, Call, Merge, Missing, Set
from cluster.core.service_health import OFFLINE_AFTER, PROBE_MS, ServiceHealth
from cluster.errors import UpstreamError
from tests.core.shard import DOCUMENT, DOWN, START, Shard

Q = '["q","1"]'
LIVE: dict[str, Any] = {
    **DOCUMENT,
    "queries": [{"key": ["q", "{id}"], "service": "api", "path": "/q/{id}", "stale_time": "infinity", "retry": 5}],
    "streams": [
        {
            "source": "events",
            "channel": "q:{id}",
            "linger": "1s",
            "on": {"e": {"set": {"key": ["q", "{id}"], "value": "{data}"}}},
        }
    ],
}
ENTITIES: dict[str, Any] = {
    **DOCUMENT,
    "entities": {"user": {"id": "id", "objects": ["author"]}},
    "streams": [
        *DOCUMENT["streams"],
        {"source": "events", "on": {"user": {"entity": {"type": "user", "value": "{data}"}}}},
    ],
}


def read(shard: Shard, fetch: str = "auto", key: str = Q, page: str = "") -> Any:
    return shard.ask(lambda n: Read(n, key, fetch, page))


class TestChannels:
    def test_what_was_fetched_before_its_channel_was_joined_is_fetched_again(self) -> None:
        shard = Shard(LIVE)
        read(shard)
        shard.wake(shard.now + 2_000)
        shard.fetched(1)
        shard.now += 60_000
        shard.watch(Q)
        shard.settle()
        shard.wake(shard.now + 2_000)
        assert [each.key for each in shard.fetches] == [Q]

    def test_what_was_fetched_while_its_channel_was_joined_is_not(self) -> None:
        shard = Shard(LIVE)
        watch = shard.watch(Q)
        shard.wake(shard.now + 2_000)
        shard.fetched(1)
        shard.unwatch(watch)
        shard.now += 500
        shard.watch(Q)
        shard.settle()
        assert shard.fetches == []


class TestParts:
    def test_a_part_set_by_an_event_is_not_the_whole(self) -> None:
        shard = Shard()
        shard.batch((Q, [Set(b"5", "/value", missing=Missing.CREATE, default=b"{}")]))
        read(shard)
        assert len(shard.fetches) == 1

    def test_a_part_written_by_a_client_is_not_the_whole(self) -> None:
        shard = Shard()
        shard.ask(lambda n: Edit(n, "r", Q, None, [Append((b"1",), missing=Missing.CREATE, default=b"[]")]))
        read(shard)
        assert len(shard.fetches) == 1

    def test_an_event_that_makes_an_entry_is_replayed_over_an_older_response(self) -> None:
        shard = Shard()
        shard.put(Q, "new")
        read(shard, "force")
        shard.fetched("old")
        assert shard.data(Q) == "new"


class TestWhileFetching:
    def test_a_reader_after_an_invalidation_gets_what_comes_after_it(self) -> None:
        shard = Shard()
        read(shard, "force")
        shard.ask(lambda n: Act(n, "invalidate", Q))
        assert read(shard) is None
        late = shard.next_id
        shard.fetched("before")
        assert late not in shard.answers()
        shard.fetched("after")
        assert shard.answers()[late].data == b'"after"'

    def test_a_reader_of_the_next_page_is_told_when_the_service_is_lost(self) -> None:
        document = {
            **DOCUMENT,
            "queries": [
                {
                    "key": ["p"],
                    "service": "api",
                    "path": "/p",
                    "retry": 20,
                    "retry_delay": "1ms",
                    "infinite": {"param": "offset", "page_size": 1},
                }
            ],
        }
        shard = Shard(document)
        read(shard, key='["p"]')
        shard.fetched([{"id": 1}])
        read(shard, "force", key='["p"]')
        read(shard, key='["p"]', page="next")
        waiting = shard.next_id
        for _ in range(OFFLINE_AFTER):
            shard.fetched(DOWN)
            shard.wake(shard.now + 1_000)
        assert shard.answers()[waiting].is_offline

    def test_what_came_is_replayed_in_its_order(self) -> None:
        shard = Shard(ENTITIES)
        shard.put(Q, {"author": {"id": 1, "name": "first"}})
        read(shard, "force")
        shard.now += 1
        shard.batch(('#e["user",1]', [Merge(b'{"id":1,"name":"A"}')]))
        shard.now += 1
        shard.batch((Q, [Set(b'{"id":1,"name":"B"}', "/author")]))
        shard.fetched({"author": {"id": 1, "name": "first"}})
        assert shard.data(Q) == {"author": {"id": 1, "name": "B"}}

    def test_an_entity_from_before_a_gap_is_not_replayed(self) -> None:
        shard = Shard(ENTITIES)
        shard.put(Q, {"author": {"id": 1, "name": "first"}})
        shard.batch(('#e["user",1]', [Merge(b'{"id":1,"name":"A"}')]))
        shard.batch(feeds=(FeedRange("events", 9, 1, 0, 0),))
        read(shard, "force")
        shard.fetched({"author": {"id": 1, "name": "newer"}})
        assert shard.data(Q)["author"]["name"] == "newer"

    def test_a_reducer_is_not_run_again_over_a_response(self) -> None:
        shard = Shard(reducer=lambda _, old, __: UNCHANGED if old is None else old + 1)
        shard.put(Q, 0)
        shard.now += 60_000
        read(shard, "force")
        shard.batch((Q, [Call("m:f", b"{}")]))
        shard.fetched(1)
        assert len(shard.fetches) == 1, "whether the response has it cannot be told"
        shard.now += 60_000
        shard.fetched(1)
        assert shard.data(Q) == 1


class TestWatchers:
    def test_of_an_entry_without_data_are_told_that_it_is_gone(self) -> None:
        shard = Shard()
        shard.watch(Q)
        shard.items()
        shard.ask(lambda n: Act(n, "remove", Q))
        assert [type(item) for item in shard.items()] == [Removed]

    def test_intervals_leave_one_timer_however_often_an_entry_is_reset_or_written(self) -> None:
        document = {
            **DOCUMENT,
            "queries": [{"key": ["q", "{id}"], "service": "api", "path": "/q", "refetch_interval": "5s"}],
        }
        shard = Shard(document)
        shard.watch(Q)
        for _ in range(20):
            shard.ask(lambda n: Act(n, "reset", Q))
            shard.now += 6_000
            shard.put(Q, 1)
        for _ in range(3):
            shard.fetches.clear()
            shard.wake(shard.now + 6_000)
        assert len(shard.machine.cache._timers) <= 3


def test_calls_that_were_under_way_do_not_put_off_the_first_try() -> None:
    health = ServiceHealth()
    for _ in range(OFFLINE_AFTER + 20):
        health.missed("api", START)
    assert list(health.offline()) == [("api", START + PROBE_MS)]
    assert health.may_probe("api", START + PROBE_MS)
    health.missed("api", START + PROBE_MS)
    assert list(health.offline()) == [("api", START + 3 * PROBE_MS)]


def test_entities_that_left_an_entry_are_forgotten_by_and_by() -> None:
    shard = Shard(ENTITIES)
    shard.put('["feed"]', [])
    for n in range(2_000):
        item = orjson.dumps({"author": {"id": n}})
        shard.batch(('["feed"]', [Append((item,), max_items=100)]))
    held = shard.machine.entities._held['["feed"]']
    assert len(held) < 400


def test_looking_through_many_entities_again_takes_no_longer_than_once() -> None:
    shard = Shard(ENTITIES)
    users = [{"author": {"id": n}} for n in range(20_000)]
    for _ in range(3):
        shard.put('["all"]', users)  # quadratic, this would take minutes
    assert shard.machine.entities.entries("user", 19_999) == ['["all"]']


@pytest.mark.parametrize("given", ["copied", "decoded"])
def test_memory_counts_what_is_held(given: str) -> None:
    shard = Shard(ENTITIES)
    shard.put('["w"]', {"author": {"id": 1}, "text": "x" * 50_000})
    if given == "copied":
        patch = b'[{"op":"copy","from":"/text","path":"/again"}]'
        shard.ask(lambda n: Edit(n, "r", '["w"]', patch, None))
    else:
        shard.batch(('#e["user",1]', [Merge(b'{"id":1}')]))
    held = sum(entry.bytes_held() for entry in shard.machine.cache)
    assert shard.machine.memory._bytes >= held, "the sum that limits are held against"


def test_a_page_that_pushes_others_off_the_end_leaves_more_to_come_there() -> None:
    document = {
        **DOCUMENT,
        "queries": [
            {
                "key": ["p"],
                "service": "api",
                "path": "/p",
                "infinite": {"param": "offset", "page_size": 2, "max_pages": 2},
            }
        ],
    }
    shard = Shard(document)
    items = [{"id": n} for n in range(5)]
    for page in ("", "next", "next", "previous", "next"):
        read(shard, key='["p"]', page=page)
        asked = dict(shard.fetches[0].request.params)  # type: ignore[union-attr]
        offset = int(asked["offset"])
        shard.fetched(items[offset : offset + 2])
    assert shard.data('["p"]')["page_params"] == [2, 4]


def test_a_service_that_answers_what_is_no_json_can_be_reached() -> None:
    shard = Shard({**DOCUMENT, "queries": [{**DOCUMENT["queries"][0], "retry": 0}]})
    for n in range(OFFLINE_AFTER):
        read(shard, key=f'["q","{n}"]')
        shard.fetched(DOWN)
    shard.now += 2 * PROBE_MS
    read(shard, key='["q","x"]')
    shard.fetched(UpstreamError("the body is not JSON", status=200, retryable=False), '["q","x"]')
    view = shard.machine.view('["q","x"]')
    assert view is not None
    assert not view.is_offline
