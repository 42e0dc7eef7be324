"""The shard: what fetches bring, page by page and again; what is done when a service is lost; where data comes from."""

from itertools import pairwise
from typing import Any

import orjson
import pytest

from cluster.core.declared_query import FetchRequest, FunctionRequest, Response
from cluster.core.messages import (
    Act,
    Answered,
    Change,
    Edit,
    EntryView,
    Failure,
    FeedRange,
    Header,
    Matched,
    Meta,
    Read,
    Removed,
    Requests,
    ServiceState,
    Unwatch,
    Write,
)
from cluster.core.operation import Append, Increment, Invalidate, Prepend, Remove, Set, Upsert
from cluster.core.service_health import MAX_PROBE_MS, OFFLINE_AFTER, PROBE_MS
from cluster.core.shard_state import MAX_FETCH_TRIES, MAX_REPLAYED, StartFetch
from cluster.errors import UpstreamError
from tests.core.shard import BASE, DOCUMENT, DOWN, REPLAY_MS, START, Shard

SERVED: dict[str, Any] = {
    **DOCUMENT,
    "services": {"api": {"base_url": "http://api"}, "other": {"base_url": "http://other", "concurrency": 2}},
    "queries": [
        {"key": ["q", "{id}"], "service": "api", "path": "/q/{id}", "stale_time": "10s", "retry": 0},
        {"key": ["r", "{id}"], "service": "api", "path": "/r/{id}", "stale_time": "10s", "retry": 5},
        {"key": ["o", "{id}"], "service": "other", "path": "/o/{id}", "retry": 0},
        {"key": ["often"], "service": "api", "path": "/often", "stale_time": "infinity", "refetch_interval": "30s"},
        {"key": ["usual", "{id}"], "service": "api", "path": "/usual/{id}"},
        {"key": ["made", "{n}"], "function": "package.module:make", "retry": 0},
        {"key": ["list"], "service": "api", "path": "/list", "params": {"sort": "age"}, "infinite": {"page_size": 2}},
    ],
}
Q, LIST = '["q","7"]', '["list"]'


@pytest.fixture
def shard() -> Shard:
    return Shard(SERVED)


def read(shard: Shard, key: str, *, fetch: str = "auto", page: str = "") -> int:
    """Ask; returns the number of the request, which waits for a fetch."""
    assert shard.ask(lambda n: Read(n, key, fetch, page)) is None
    return shard.next_id


def known(shard: Shard, key: str) -> EntryView:
    view = shard.machine.view(key)
    assert view is not None
    return view


def params(fetch: StartFetch) -> dict[str, str]:
    assert isinstance(fetch.request, FetchRequest)
    return dict(fetch.request.params)


class TestAgain:
    def test_what_is_identical_is_no_change(self, shard: Shard) -> None:
        shard.watch(Q)
        shard.fetched({"a": [1, 2], "b": None})
        version = known(shard, Q).version
        shard.items()
        shard.now += 5_000
        read(shard, Q, fetch="force")
        shard.fetched({"b": None, "a": [1, 2]})
        items = shard.items()
        assert [type(item) for item in items if not isinstance(item, Answered)] == [Meta] * (len(items) - 1)
        assert known(shard, Q).version == version
        assert shard.held[Q].data_updated_at == int(START + 5_000)

    def test_what_differs_is_sent_as_a_patch(self, shard: Shard) -> None:
        shard.watch(Q)
        shard.fetched({"title": "x" * 100, "rows": [{"id": 1}, {"id": 2}]})
        shard.items()
        read(shard, Q, fetch="force")
        shard.fetched({"title": "x" * 100, "rows": [{"id": 1}, {"id": 2, "n": 1}]})
        (change,) = [item for item in shard.items() if isinstance(item, Change)]
        assert change.patch == b'[{"op":"add","path":"/rows/1/n","value":1}]'

    def test_a_service_may_say_that_nothing_has_changed(self, shard: Shard) -> None:
        shard.watch(Q)
        shard.fetched(Response(b'{"n":1}', '"v1"'))
        version = known(shard, Q).version
        shard.now += 20_000
        asked = read(shard, Q)
        assert shard.fetches[0].request == FetchRequest("api", "/q/7", (), '"v1"')
        shard.items()
        shard.fetched(Response(None, '"v1"'))
        assert shard.answers()[asked].data == b'{"n":1}'
        view = known(shard, Q)
        assert (view.version, view.data_updated_at, view.fetched_at) == (version, int(shard.now), int(shard.now))
        assert shard.machine.fetches["not_modified"] == 1
        read(shard, Q, fetch="force")
        assert shard.fetches[0].request.etag == '"v1"'

    def test_what_was_changed_here_is_not_the_services_version_any_more(self, shard: Shard) -> None:
        for number, change in enumerate(
            (
                lambda: shard.ask(lambda n: Write(n, "w", '["q",0]', b"2")),
                lambda: shard.batch(('["q",1]', [Set(b"2")])),
                lambda: shard.ask(lambda n: Edit(n, "e", '["q",2]', b'[{"op":"replace","path":"","value":2}]', None)),
            )
        ):
            key = f'["q",{number}]'
            read(shard, key)
            shard.fetched(Response(b"1", '"v1"'), key)
            change()
            shard.now += 2 * REPLAY_MS
            read(shard, key, fetch="force")
            assert shard.fetches[-1].request.etag is None
            shard.fetched(Response(b"1", '"v1"'), key)
            read(shard, key, fetch="force")
            assert shard.fetches[-1].request.etag == '"v1"'

    def test_nor_is_what_came_of_its_version_and_a_write(self, shard: Shard) -> None:
        read(shard, Q)
        shard.fetched(Response(b"1", '"v1"'))
        shard.ask(lambda n: Write(n, "w", Q, b"2"))
        read(shard, Q, fetch="force")
        shard.fetched(Response(b"1", '"v1"'))
        assert shard.data(Q) == 2, "the response may be from before the write"
        shard.now += 2 * REPLAY_MS
        read(shard, Q, fetch="force")
        assert shard.fetches[0].request.etag is None

    def test_pages_are_never_asked_for_by_version(self, shard: Shard) -> None:
        read(shard, LIST)
        shard.fetched(Response(b"[1,2]", '"v1"'))
        read(shard, LIST, fetch="force")
        assert shard.fetches[0].request.etag is None

    @pytest.mark.parametrize("json", [b"[" * 300 + b"]" * 300, b"1" + b"0" * 400, b'"\\ud800"'])
    def test_what_only_looked_like_json_gives_way_to_the_response(self, shard: Shard, json: bytes) -> None:
        shard.watch(Q)
        shard.fetched(1)
        shard.batch((Q, [Set(json)]))
        shard.now += 2 * REPLAY_MS
        asked = read(shard, Q, fetch="force")
        shard.fetched(2)
        assert (shard.data(Q), known(shard, Q).version) == (2, BASE + 3)
        assert shard.answers()[asked].data == b"2"

    def test_what_is_kept_for_a_response_does_not_grow_with_the_tries_before(self, shard: Shard) -> None:
        shard.watch('["r",1]')
        for _ in range(4):
            for _ in range(20):
                shard.now += 1
                shard.batch(('["r",1]', [Append((b"1",), missing=1)]))
            shard.fetched(DOWN)
            until_asked(shard)
        recent = shard.machine.cache.get('["r",1]').recent
        assert len(recent) <= 20

    def test_intervals_count_while_somebody_watches(self, shard: Shard) -> None:
        watch = shard.watch('["often"]')
        shard.fetched(1)
        shard.wake(START + 29_999)
        assert shard.fetches == []
        shard.wake(START + 30_000)
        shard.fetched(2)
        assert shard.held['["often"]'].view().data == b"2"
        shard.unwatch(watch)
        shard.wake(START + 60_000)
        assert shard.fetches == []

    def test_calls_beyond_what_a_service_takes_at_once_wait(self, shard: Shard) -> None:
        for number in range(4):
            read(shard, f'["o",{number}]')
        read(shard, Q)
        assert [fetch.key for fetch in shard.fetches] == ['["o",0]', '["o",1]', Q]
        shard.fetched(DOWN, '["o",1]')
        assert [fetch.key for fetch in shard.fetches] == ['["o",0]', Q, '["o",2]']

    def test_a_function_is_called_with_what_the_key_captures(self, shard: Shard) -> None:
        asked = read(shard, '["made",5]')
        (call,) = shard.fetches
        assert call.request == FunctionRequest("package.module:make", {"n": 5})
        shard.fetched({"n": 5})
        assert shard.answers()[asked].origin == "fetch:package.module:make"


class TestActs:
    def act(self, shard: Shard, action: str, key: str = "[]", **more: Any) -> Any:
        return shard.ask(lambda n: Act(n, action, key, **more))

    def filled(self, shard: Shard) -> None:
        """One watched query, one that is not, one never fetched, and one entry of no query."""
        shard.watch('["q","watched"]')
        shard.fetched(1)
        read(shard, '["q","idle"]')
        shard.fetched(1)
        shard.batch(('["q","begun"]', [Append((b"1",), missing=1)]), ('["plain"]', [Set(b"1")]))
        shard.items()

    def test_refetch(self, shard: Shard) -> None:
        self.filled(shard)
        assert self.act(shard, "refetch") == Matched(4)
        assert {fetch.key for fetch in shard.fetches} == {'["q","watched"]', '["q","idle"]', '["q","begun"]'}
        assert self.act(shard, "refetch") == Matched(4)
        assert len(shard.fetches) == 3, "the fetches under way are joined"
        for _ in range(3):
            shard.fetched(2)
        assert shard.held['["q","watched"]'].view().data == b"2"

    @pytest.mark.parametrize(
        ("more", "matched"),
        [
            ({"which": "active"}, ['["q","watched"]']),
            ({"which": "inactive"}, ['["q","idle"]', '["q","begun"]', '["plain"]']),
            ({"stale": True}, ['["q","begun"]']),
            ({"stale": False}, ['["q","watched"]', '["q","idle"]', '["plain"]']),
            ({"fetch_status": "fetching"}, []),
            ({"key": '["q","idle"]', "exact": True}, ['["q","idle"]']),
            ({"key": '["q"]', "exact": True}, []),
            ({"key": '["q"]', "which": "inactive", "stale": False}, ['["q","idle"]']),
        ],
    )
    def test_what_a_filter_meets(self, shard: Shard, more: dict[str, Any], matched: list[str]) -> None:
        self.filled(shard)
        before = {entry.key for entry in shard.machine.cache}
        assert self.act(shard, "remove", **more) == Matched(len(matched))
        assert before - {entry.key for entry in shard.machine.cache} == set(matched)

    def test_refetch_leaves_out_what_nobody_ever_fetched_and_what_is_static(self) -> None:
        static = {"key": ["s"], "service": "api", "path": "/s", "stale_time": "static"}
        shard = Shard({**SERVED, "queries": [*SERVED["queries"], static]})
        shard.watch('["s"]')
        shard.fetched(1)
        read(shard, Q)
        self.act(shard, "cancel")
        shard.fetches.clear()
        assert self.act(shard, "refetch") == Matched(2)
        assert shard.fetches == []

    def test_what_is_fetched_just_now_is_met_by_its_fetch_status(self, shard: Shard) -> None:
        self.filled(shard)
        read(shard, '["q","idle"]', fetch="force")
        assert self.act(shard, "cancel", fetch_status="fetching") == Matched(1)
        assert self.act(shard, "cancel", fetch_status="fetching") == Matched(0)

    def test_reset_begins_what_is_watched_anew_and_drops_the_rest(self, shard: Shard) -> None:
        self.filled(shard)
        version = known(shard, '["q","watched"]').version
        assert self.act(shard, "reset") == Matched(4)
        assert [entry.key for entry in shard.machine.cache] == ['["q","watched"]']
        view = known(shard, '["q","watched"]')
        assert (view.data, view.status, view.fetch_status, view.version) == (None, "pending", "fetching", 0)
        assert isinstance(shard.items()[0], Removed)
        shard.fetched(2)
        assert known(shard, '["q","watched"]').version > version
        assert shard.held['["q","watched"]'].view().data == b"2"

    def test_reset_while_it_is_fetched(self, shard: Shard) -> None:
        shard.watch(Q)
        asked = read(shard, Q)
        old = shard.fetches[0]
        assert self.act(shard, "reset") == Matched(1)
        shard.fetched("old")
        assert shard.data(Q) is None, "that was the fetch before"
        assert (old.key, len(shard.fetches)) == (Q, 1)
        assert isinstance(shard.answers()[asked], Failure)
        shard.fetched("new")
        assert shard.data(Q) == "new"

    def test_cancel_leaves_what_there_was(self, shard: Shard) -> None:
        shard.watch(Q)
        shard.fetched(1)
        before = known(shard, Q)
        asked = read(shard, Q, fetch="force")
        assert self.act(shard, "cancel") == Matched(1)
        assert known(shard, Q) == before
        assert shard.answers()[asked] == before
        shard.fetched(2)
        assert known(shard, Q) == before
        assert shard.held[Q].fetch_status == "idle"

    def test_cancel_where_there_was_nothing(self, shard: Shard) -> None:
        asked = read(shard, Q)
        assert self.act(shard, "cancel") == Matched(1)
        assert isinstance(shard.answers()[asked], Failure)
        assert (known(shard, Q).status, known(shard, Q).fetch_status) == ("pending", "idle")
        read(shard, Q)
        shard.fetched(1)
        shard.fetched(2)
        assert shard.data(Q) == 2

    def test_cancel_keeps_an_invalidation_that_came_meanwhile(self, shard: Shard) -> None:
        shard.watch(Q)
        shard.fetched(1)
        read(shard, Q, fetch="force")
        shard.batch(('#u["q"]', [Invalidate()]))
        self.act(shard, "cancel")
        assert known(shard, Q).is_invalidated

    def test_remove_tells_watchers_and_readers(self, shard: Shard) -> None:
        self.filled(shard)
        asked = read(shard, '["q","watched"]', fetch="force")
        assert self.act(shard, "remove") == Matched(4)
        items = shard.items()
        assert [item.key for item in items if isinstance(item, Removed)] == ['["q","watched"]']
        (answer,) = [item for item in items if isinstance(item, Answered)]
        assert (answer.id, answer.payload.code) == (asked, "NOT_FOUND")
        assert shard.held == {}
        shard.fetched(2)
        assert list(shard.machine.cache) == []

    def test_invalidate_leaves_what_was_removed_from_under_it(self, shard: Shard) -> None:
        self.filled(shard)
        assert self.act(shard, "invalidate", refetch="all") == Matched(4)
        assert {fetch.key for fetch in shard.fetches} == {'["q","watched"]', '["q","idle"]', '["q","begun"]'}
        assert self.act(shard, "invalidate", stale=False) == Matched(0)

    def test_an_unknown_one_is_refused(self, shard: Shard) -> None:
        self.filled(shard)
        assert self.act(shard, "dance").code == "BAD_REQUEST"


class TestPages:
    def shown(self, shard: Shard) -> list[Any]:
        return shard.data(LIST)["pages"]

    def begun(self, shard: Shard, *pages: list[Any]) -> None:
        for number, page in enumerate(pages):
            read(shard, LIST, page="next" if number else "")
            shard.fetched(page)
        shard.items()

    def test_each_is_asked_for_by_where_it_begins(self, shard: Shard) -> None:
        read(shard, LIST)
        assert params(shard.fetches[0]) == {"sort": "age", "offset": "0"}
        shard.fetched([1, 2])
        asked = read(shard, LIST, page="next")
        assert params(shard.fetches[0]) == {"sort": "age", "offset": "2"}
        shard.items()
        shard.fetched([3])
        assert orjson.loads(shard.answers()[asked].data) == {"pages": [[1, 2], [3]], "page_params": [0, 2]}

    def test_watchers_are_sent_the_page_alone(self, shard: Shard) -> None:
        shard.watch(LIST)
        shard.fetched(["x" * 100, "y" * 100])
        shard.items()
        read(shard, LIST, page="next")
        shard.fetched(["z" * 100])
        (change,) = [item for item in shard.items() if isinstance(item, Change)]
        assert change.patch is not None
        steps = orjson.loads(change.patch)
        assert [(step["op"], step["path"]) for step in steps] == [("add", "/pages/1"), ("add", "/page_params/1")]
        assert orjson.loads(shard.held[LIST].view().data)["pages"] == self.shown(shard)

    def test_the_first_is_what_a_reader_gets_who_asks_for_one_more_of_none(self, shard: Shard) -> None:
        asked = read(shard, LIST, page="next")
        other = read(shard, LIST)
        shard.fetched([1, 2])
        answers = shard.answers()
        assert orjson.loads(answers[asked].data) == orjson.loads(answers[other].data) == shard.data(LIST)
        assert (self.shown(shard), shard.fetches) == ([[1, 2]], [])

    def test_readers_who_ask_for_the_same_join(self, shard: Shard) -> None:
        self.begun(shard, [1, 2])
        asked = [read(shard, LIST, page="next") for _ in range(3)]
        assert len(shard.fetches) == 1
        shard.fetched([3, 4])
        assert set(shard.answers()) == set(asked)
        assert self.shown(shard) == [[1, 2], [3, 4]]

    def test_one_more_follows_a_fetch_of_all(self, shard: Shard) -> None:
        self.begun(shard, [1, 2])
        everything = read(shard, LIST, fetch="force")
        one_more = read(shard, LIST, page="next")
        again = read(shard, LIST, page="next")
        assert [params(fetch)["offset"] for fetch in shard.fetches] == ["0"]
        shard.fetched([5, 6])
        assert set(shard.answers()) == {everything}
        assert [params(fetch)["offset"] for fetch in shard.fetches] == ["2"]
        shard.fetched([7])
        assert set(shard.answers()) == {one_more, again}
        assert self.shown(shard) == [[5, 6], [7]]

    def test_a_fetch_of_all_that_fails_fails_those_that_would_follow(self, shard: Shard) -> None:
        self.begun(shard, [1, 2])
        read(shard, LIST, fetch="force")
        one_more = read(shard, LIST, page="next")
        shard.fetched(UpstreamError("gone", status=404, retryable=False))
        answer = shard.answers()[one_more]
        assert (answer.status, answer.error) == ("error", ("UPSTREAM_ERROR", "gone"))
        assert shard.fetches == []

    def test_the_other_end_follows_this_one(self, shard: Shard) -> None:
        self.begun(shard, [1, 2])
        shard.ask(lambda n: Write(n, "w", LIST, b'{"pages":[[3,4]],"page_params":[2]}'))
        shard.now += 2 * REPLAY_MS
        read(shard, LIST, page="next")
        read(shard, LIST, page="previous")
        assert [params(fetch)["offset"] for fetch in shard.fetches] == ["4"]
        shard.fetched([5, 6])
        assert [params(fetch)["offset"] for fetch in shard.fetches] == ["0"]
        shard.fetched([1, 2])
        assert shard.data(LIST) == {"pages": [[1, 2], [3, 4], [5, 6]], "page_params": [0, 2, 4]}

    def test_where_there_is_none_the_answer_is_what_there_is(self, shard: Shard) -> None:
        self.begun(shard, [1, 2], [3])
        asked = read(shard, LIST, page="next")
        assert orjson.loads(shard.answers()[asked].data)["pages"] == [[1, 2], [3]]
        assert shard.fetches == []

    def test_all_are_fetched_in_turn_and_shown_together(self, shard: Shard) -> None:
        self.begun(shard, [1, 2], [3, 4], [5])
        read(shard, LIST, fetch="force")
        for offset, page in (("0", [0, 1]), ("2", [2, 3]), ("4", [4, 5])):
            assert [params(fetch)["offset"] for fetch in shard.fetches] == [offset]
            assert self.shown(shard) == [[1, 2], [3, 4], [5]]
            shard.fetched(page)
        assert self.shown(shard) == [[0, 1], [2, 3], [4, 5]]

    def test_a_failure_among_them_is_tried_again_from_there(self, shard: Shard) -> None:
        self.begun(shard, [1, 2], [3, 4])
        read(shard, LIST, fetch="force")
        shard.fetched([5, 6])
        shard.fetched(UpstreamError("no", status=500))
        assert shard.fetches == []
        shard.wake(shard.now + 1_000)
        assert [params(fetch)["offset"] for fetch in shard.fetches] == ["2"]
        shard.fetched([7, 8])
        assert self.shown(shard) == [[5, 6], [7, 8]]

    def test_what_streams_do_meanwhile_stays(self, shard: Shard) -> None:
        self.begun(shard, [{"id": 1}, {"id": 2}])
        read(shard, LIST, page="next")
        shard.batch((LIST, [Prepend((b'{"id":0}',), "/pages/0")]))
        shard.fetched([{"id": 2}, {"id": 3}])
        assert self.shown(shard) == [[{"id": 0}, {"id": 1}, {"id": 2}], [{"id": 3}]]

    def test_so_does_what_writes_do(self, shard: Shard) -> None:
        self.begun(shard, [1, 2])
        read(shard, LIST, page="next")
        shard.ask(lambda n: Write(n, "w", LIST, b'{"pages":[[9,1,2]],"page_params":[0]}'))
        shard.fetched([3])
        assert shard.data(LIST) == {"pages": [[9, 1, 2], [3]], "page_params": [0, 2]}

    def test_one_more_page_of_what_was_in_doubt_before_leaves_it_so(self, shard: Shard) -> None:
        self.begun(shard, [1, 2])
        shard.ask(lambda n: Act(n, "invalidate", LIST, refetch="none"))
        read(shard, LIST, page="next")
        shard.fetched([3])
        assert self.shown(shard) == [[1, 2], [3]]
        assert known(shard, LIST).doubt == ("api:invalidate", int(START))

    def test_one_more_page_does_not_settle_a_doubt_about_the_others(self, shard: Shard) -> None:
        shard.watch(LIST)
        shard.fetched([1, 2])
        read(shard, LIST, page="next")
        shard.batch(('#u["list"]', [Invalidate()]))
        shard.fetched([3, 4])
        assert known(shard, LIST).is_invalidated
        assert [params(fetch)["offset"] for fetch in shard.fetches] == ["0"]
        shard.fetched([1, 2])
        shard.fetched([3, 4])
        assert not known(shard, LIST).is_invalidated

    @pytest.mark.parametrize("key", [Q, '["plain"]'])
    def test_what_has_none_is_refused(self, shard: Shard, key: str) -> None:
        assert shard.ask(lambda n: Read(n, key, "auto", "next")).code == "BAD_REQUEST"


class TestAdditionsOverResponses:
    """What came shortly before a response may be in it already, wherever it stands there, and may be past it."""

    def items(self, *names: str) -> list[dict[str, str]]:
        return [{"id": name} for name in names]

    def prepend(self, shard: Shard, key: str, *names: str, at: str = "", max_items: int = 0) -> None:
        for name in names:
            shard.batch((key, [Prepend((orjson.dumps({"id": name}),), at, max_items)]))

    def ids(self, shard: Shard, key: str = Q) -> list[str]:
        return [item["id"] for item in shard.data(key)]

    def pages(self, shard: Shard) -> list[list[str]]:
        assert orjson.loads(shard.held[LIST].view().data) == shard.data(LIST)
        return [[item["id"] for item in page] for page in shard.data(LIST)["pages"]]

    def begun(self, shard: Shard, *pages: tuple[str, ...]) -> None:
        shard.watch(LIST)
        for number, page in enumerate(pages):
            if number:
                read(shard, LIST, page="next")
            shard.fetched(self.items(*page))
        shard.now += 2 * REPLAY_MS

    def test_none_is_on_two_pages(self, shard: Shard) -> None:
        self.begun(shard, ("o1", "o2"), ("o3", "o4"), ("o5", "o6"))
        self.prepend(shard, LIST, "n1", "n2", "n3", "n4", "n5", at="/pages/0")
        read(shard, LIST, fetch="force")
        for page in (("n5", "n4"), ("n3", "n2"), ("n1", "o1")):
            shard.fetched(self.items(*page))
        assert self.pages(shard) == [["n5", "n4"], ["n3", "n2"], ["n1", "o1"]]

    def test_those_of_which_more_came_than_there_are_pages_for_stay_away(self, shard: Shard) -> None:
        self.begun(shard, ("o1", "o2"), ("o3", "o4"))
        self.prepend(shard, LIST, "n1", "n2", "n3", "n4", "n5", at="/pages/0")
        read(shard, LIST, fetch="force")
        for page in (("n4", "n3"), ("n2", "n1")):
            shard.fetched(self.items(*page))
        assert self.pages(shard) == [["n5", "n4", "n3"], ["n2", "n1"]], "the service had not seen the last"
        read(shard, LIST, fetch="force")
        for page in (("n5", "n4"), ("n3", "n2")):
            shard.fetched(self.items(*page))
        assert self.pages(shard) == [["n5", "n4"], ["n3", "n2"]]

    @pytest.mark.parametrize("max_items", [0, 4])
    @pytest.mark.parametrize(
        ("response", "shown"),
        [
            (("a6", "a5", "a4"), ["a6", "a5", "a4"]),
            (("a7", "a6", "a5"), ["a7", "a6", "a5"]),
            (("a5", "a4", "a3"), ["a6", "a5", "a4", "a3"]),
            (("a3", "a2", "a1"), ["a6", "a5", "a4", "a3", "a2", "a1"]),
        ],
    )
    def test_a_service_that_gives_the_newest_is_believed(
        self, shard: Shard, response: tuple[str, ...], shown: list[str], max_items: int
    ) -> None:
        shard.watch(Q)
        shard.fetched(self.items("a3", "a2", "a1"))
        shard.now += 2 * REPLAY_MS
        self.prepend(shard, Q, "a4", "a5", "a6", max_items=max_items)
        read(shard, Q, fetch="force")
        shard.fetched(self.items(*response))
        assert self.ids(shard) == shown[: max_items or None]

    def test_so_is_one_that_gives_the_newest_last(self, shard: Shard) -> None:
        shard.watch(Q)
        shard.fetched(self.items("a1", "a2"))
        shard.now += 2 * REPLAY_MS
        for name in ("a3", "a4", "a5"):
            shard.batch((Q, [Append((orjson.dumps({"id": name}),))]))
        read(shard, Q, fetch="force")
        shard.fetched(self.items("a4", "a5"))
        assert self.ids(shard) == ["a4", "a5"]

    def test_one_that_has_an_edit_may_lack_what_was_added_before_it(self, shard: Shard) -> None:
        shard.watch(Q)
        shard.fetched([{"id": "old"}])
        shard.now += 2 * REPLAY_MS
        shard.batch((Q, [Upsert((b'{"id":"new"}',))]), (Q, [Upsert((b'{"id":"old","n":1}',))]))
        read(shard, Q, fetch="force")
        shard.fetched([{"id": "old"}])
        assert shard.data(Q) == [{"id": "old", "n": 1}, {"id": "new"}]

    @pytest.mark.parametrize(("operations", "seen"), [(MAX_REPLAYED, {"a": 1, "b": 2}), (MAX_REPLAYED + 1, {"a": 1})])
    def test_what_a_long_edit_made_takes_its_place(self, shard: Shard, operations: int, seen: dict[str, int]) -> None:
        read(shard, Q)
        shard.fetched({"a": 0})
        read(shard, Q, fetch="force")
        shard.ask(lambda n: Edit(n, "e", Q, None, [Set(b"1", "/a")] * operations))
        shard.fetched({"a": 0, "b": 2})
        assert shard.data(Q) == seen

    def test_what_a_page_brought_before_its_event_is_not_added_to_another(self, shard: Shard) -> None:
        self.begun(shard, ("o1", "o2"))
        read(shard, LIST, page="next")
        shard.fetched(self.items("n1", "o1"))
        operations = [Prepend(tuple(orjson.dumps({"id": name, "t": 1}) for name in ("n1", "n2", "n3")), "/pages/0")]
        shard.batch((LIST, operations))
        assert self.pages(shard) == [["n3", "n2", "o1", "o2"], ["n1"]]
        assert shard.data(LIST)["pages"][1] == [{"id": "n1", "t": 1}]

    def test_nor_is_it_after_other_operations_of_its_window(self, shard: Shard) -> None:
        self.begun(shard, ("o1", "o2"), ("o3", "o4"))
        gone, moved = Remove(b'{"id":"o2"}', "/pages/0"), Prepend((b'{"id":"o3","t":1}',), "/pages/0")
        shard.batch((LIST, [gone, moved]))
        assert self.pages(shard) == [["o1"], ["o3", "o4"]]
        assert shard.data(LIST)["pages"][1][0] == {"id": "o3", "t": 1}


def until_asked(shard: Shard) -> None:
    """Let time pass until something is fetched."""
    for _ in range(1_000):
        if shard.fetches:
            return
        due = shard.machine.deadline()
        assert due is not None, "nothing will ever be fetched"
        shard.wake(max(due, shard.now))
    raise AssertionError("nothing is fetched")


def lose(shard: Shard) -> None:
    """Have calls fail until the service counts as lost."""
    for number in range(OFFLINE_AFTER):
        read(shard, f'["q","lost {number}"]')
        shard.fetched(DOWN)
    assert not shard.machine.cache.is_online("api")


class TestLostServices:
    def test_gateways_are_told_once(self, shard: Shard) -> None:
        for number in range(OFFLINE_AFTER - 1):
            read(shard, f'["q",{number}]')
            shard.fetched(DOWN)
        assert not [item for item in shard.items() if isinstance(item, ServiceState)]
        for number in range(3):
            read(shard, f'["q",{number}]')
            if shard.fetches:
                shard.fetched(DOWN)
        assert [item for item in shard.items() if isinstance(item, ServiceState)] == [ServiceState("api", True)]

    def test_readers_without_data_are_refused_at_once(self, shard: Shard) -> None:
        lose(shard)
        shard.items()
        asked = read(shard, Q)
        answer = shard.answers()[asked]
        assert (answer.code, shard.fetches) == ("UPSTREAM_OFFLINE", [])
        assert (known(shard, Q).fetch_status, known(shard, Q).is_offline) == ("paused", True)

    def test_others_get_what_there_is(self, shard: Shard) -> None:
        read(shard, Q)
        shard.fetched(1)
        read(shard, '["o",1]')
        shard.fetched(1)
        lose(shard)
        shard.items()
        asked = read(shard, Q, fetch="force")
        answer = shard.answers()[asked]
        assert (answer.data, answer.is_offline, answer.fetch_status) == (b"1", True, "paused")
        assert not known(shard, '["o",1]').is_offline

    def test_watchers_are_told_of_their_entries(self, shard: Shard) -> None:
        shard.watch(Q)
        shard.fetched(1)
        shard.watch('["o",1]')
        shard.fetched(1)
        lose(shard)
        assert (shard.held[Q].is_offline, shard.held['["o",1]'].is_offline) == (True, False)
        read(shard, Q, fetch="force")
        shard.wake(shard.now + PROBE_MS)
        shard.fetched(2)
        assert (shard.held[Q].is_offline, shard.held[Q].view().data) == (False, b"2")

    def test_one_that_was_paused_tries_and_brings_the_others_back(self, shard: Shard) -> None:
        lose(shard)
        for number in range(3):
            read(shard, f'["q",{number}]')
        shard.items()
        assert shard.machine.deadline() == START + PROBE_MS
        shard.wake(START + PROBE_MS)
        assert [fetch.key for fetch in shard.fetches] == ['["q",0]']
        shard.fetched("back")
        assert [item for item in shard.items() if isinstance(item, ServiceState)] == [ServiceState("api", False)]
        assert [fetch.key for fetch in shard.fetches] == ['["q",1]', '["q",2]']
        for _ in range(2):
            shard.fetched("back")
        assert [shard.data(f'["q",{number}]') for number in range(3)] == ["back"] * 3
        assert not known(shard, '["q",2]').is_offline

    def test_tries_grow_apart_while_they_fail(self, shard: Shard) -> None:
        lose(shard)
        read(shard, '["r",1]')
        tries = []
        for _ in range(8):
            due = shard.machine.deadline()
            assert due is not None
            shard.wake(due)
            if shard.fetches:
                tries.append(shard.now)
                shard.fetched(DOWN)
        gaps = [later - earlier for earlier, later in pairwise(tries)]
        assert gaps == sorted(gaps)
        assert gaps[0] >= 2 * PROBE_MS
        assert max(gaps) <= MAX_PROBE_MS

    def test_a_read_may_be_the_try(self, shard: Shard) -> None:
        lose(shard)
        shard.now += PROBE_MS
        asked = read(shard, Q)
        assert [fetch.key for fetch in shard.fetches] == [Q]
        refused = read(shard, '["q","8"]')
        shard.items()
        shard.fetched(1)
        assert shard.answers()[asked].data == b"1"
        assert refused != asked

    def test_a_fetch_between_tries_is_paused_and_its_readers_are_told(self, shard: Shard) -> None:
        asked = read(shard, '["r",1]')
        for _ in range(OFFLINE_AFTER):
            until_asked(shard)
            shard.fetched(DOWN)
        assert shard.answers() == {}
        until_asked(shard)
        assert shard.answers()[asked].code == "UPSTREAM_OFFLINE"
        shard.fetched(1)
        assert shard.data('["r",1]') == 1
        assert shard.machine.cache.is_online("api")

    def test_one_fetch_with_the_usual_tries_is_enough_and_what_failed_is_fetched_when_the_service_is_back(
        self, shard: Shard
    ) -> None:
        key = '["usual",1]'
        shard.watch(key)
        asked = read(shard, key)
        for _ in range(4):  # the first call and three retries
            until_asked(shard)
            shard.fetched(DOWN)
        assert (shard.answers()[asked].code, known(shard, key).is_offline) == ("UPSTREAM_ERROR", True)
        until_asked(shard)
        shard.fetched("back")
        assert (shard.held[key].view().data, known(shard, key).is_offline) == (b'"back"', False)

    def test_a_gateway_that_comes_later_is_told(self, shard: Shard) -> None:
        lose(shard)
        shard.items()
        _, effects = shard.machine.requests(Requests(Header("gateway-9", 4, 0, 1), []), shard.now)
        sent = [item for effect in effects for item in getattr(effect.message, "items", [])]
        assert sent == [ServiceState("api", True)]

    @pytest.mark.parametrize(
        "error",
        [
            UpstreamError("no", status=404, retryable=False),
            UpstreamError("no", status=500),
            UpstreamError("not json", retryable=False),
        ],
    )
    def test_an_answer_of_whatever_kind_is_no_miss(self, shard: Shard, error: UpstreamError) -> None:
        for number in range(3 * OFFLINE_AFTER):
            read(shard, f'["q",{number}]')
            shard.fetched(error)
        assert shard.machine.cache.is_online("api")

    @pytest.mark.parametrize("status", [None, 502, 503, 504])
    def test_what_is_a_miss(self, shard: Shard, status: int | None) -> None:
        for number in range(OFFLINE_AFTER):
            read(shard, f'["q",{number}]')
            shard.fetched(UpstreamError("no", status=status))
        assert not shard.machine.cache.is_online("api")

    def test_functions_are_of_no_service(self, shard: Shard) -> None:
        for number in range(2 * OFFLINE_AFTER):
            read(shard, f'["made",{number}]')
            shard.fetched(UpstreamError("it raised"))
        read(shard, '["made","x"]')
        assert len(shard.fetches) == 1

    def test_what_failed_while_it_was_watched_is_fetched_when_the_service_is_back(self, shard: Shard) -> None:
        for number in range(OFFLINE_AFTER):
            shard.watch(f'["q",{number}]')
            shard.fetched(DOWN)
        assert not shard.machine.cache.is_online("api")
        until_asked(shard)
        while shard.fetches:
            shard.fetched("back")
        assert {replica.view().data for replica in shard.held.values()} == {b'"back"'}


class TestOrigins:
    def seen(self, shard: Shard, key: str = Q) -> tuple[str, float, Any]:
        view = known(shard, key)
        return view.origin, view.fetched_at, view.doubt

    def test_a_fetch(self, shard: Shard) -> None:
        read(shard, Q)
        shard.fetched(1)
        assert self.seen(shard) == ("fetch:api", START, None)

    def test_a_rule_of_a_stream(self, shard: Shard) -> None:
        read(shard, Q)
        shard.fetched(1)
        shard.now += 5_000
        shard.batch((Q, [Set(b"2")]), origin=0)
        assert self.seen(shard) == ("stream:events/all e", START, None)

    def test_a_write(self, shard: Shard) -> None:
        shard.ask(lambda n: Write(n, "w", Q, b"1"))
        assert self.seen(shard) == ("write:", 0, None)
        shard.ask(lambda n: Edit(n, "e", Q, None, [Increment("", 1)]))
        assert self.seen(shard) == ("write:", 0, None)

    def test_events_that_began_it(self, shard: Shard) -> None:
        shard.batch((Q, [Append((b"1",), missing=1)]), origin=0)
        assert self.seen(shard) == ("stream:events/all e", 0, ("created by events", START))
        shard.batch(('["plain"]', [Append((b"1",), missing=1)]))
        assert self.seen(shard, '["plain"]')[2] is None

    def test_a_failed_fetch_leaves_the_data_in_doubt(self, shard: Shard) -> None:
        read(shard, Q)
        shard.fetched(1)
        shard.now += 20_000
        read(shard, Q)
        shard.fetched(DOWN)
        assert self.seen(shard) == ("fetch:api", START, ("fetch:api failed", START + 20_000))
        read(shard, Q)
        shard.fetched(2)
        assert self.seen(shard) == ("fetch:api", START + 20_000, None)

    def test_an_invalidation(self, shard: Shard) -> None:
        read(shard, Q)
        shard.fetched(1)
        shard.now += 5_000
        shard.ask(lambda n: Act(n, "invalidate", '["q"]'))
        assert self.seen(shard)[2] == ("api:invalidate", START + 5_000)
        shard.batch(('#u["q"]', [Invalidate()]), origin=0)
        assert self.seen(shard)[2] == ("api:invalidate", START + 5_000), "the first is why"
        shard.ask(lambda n: Write(n, "w", Q, b"2"))
        assert self.seen(shard) == ("write:", START, None)

    def test_an_invalidation_by_a_rule(self, shard: Shard) -> None:
        read(shard, Q)
        shard.fetched(1)
        shard.batch(('#u["q"]', [Invalidate(refetch="none")]), origin=0)
        assert self.seen(shard)[2] == ("stream:events/all e", START)

    def test_one_that_comes_while_it_is_fetched_outlasts_the_response(self, shard: Shard) -> None:
        read(shard, Q)
        shard.now += 10
        shard.ask(lambda n: Act(n, "invalidate", '["q"]'))
        shard.now += 10
        shard.fetched(1)
        assert self.seen(shard) == ("fetch:api", START + 20, ("api:invalidate", START + 10))

    def test_a_gap(self, shard: Shard) -> None:
        read(shard, Q)
        shard.fetched(1)
        shard.batch(feeds=(FeedRange("events/all", 1, 1, 5, 0),))
        shard.now += 500
        shard.batch(feeds=(FeedRange("events/all", 1, 9, 9, 8),))
        assert self.seen(shard)[2] == ("stream:events/all may have lost events", START + 500)
        shard.batch(feeds=(FeedRange("events", 7, 1, 0, 0),))
        assert self.seen(shard)[2] == ("stream:events/all may have lost events", START + 500)

    def test_a_failure_after_a_doubt_does_not_explain_it_anew(self, shard: Shard) -> None:
        read(shard, Q)
        shard.fetched(1)
        shard.ask(lambda n: Act(n, "invalidate", '["q"]'))
        shard.now += 50
        read(shard, Q)
        shard.fetched(DOWN)
        assert self.seen(shard)[2] == ("api:invalidate", START)

    def test_what_could_never_be_brought_together_is_uncertain(self, shard: Shard) -> None:
        shard.watch(Q)
        for _ in range(MAX_FETCH_TRIES):
            shard.now += 10
            shard.batch((Q, [Increment("/n", 1)]))
            shard.now += 10
            shard.fetched({"n": 5})
        assert self.seen(shard)[0] == "fetch:api?"
        assert shard.fetches == []
        assert shard.data(Q) == {"n": 6}

    def test_watchers_are_told_what_readers_see(self, shard: Shard) -> None:
        watch = shard.watch(Q)
        shard.fetched(1)
        for act in (
            lambda: shard.ask(lambda n: Act(n, "invalidate", '["q"]', refetch="none")),
            lambda: shard.batch((Q, [Set(b"2")]), origin=0),
            lambda: shard.ask(lambda n: Write(n, "w", Q, b"3")),
        ):
            shard.now += 10
            act()
            assert shard.held[Q].view() == known(shard, Q)
        shard.ask(lambda n: Unwatch(watch))
