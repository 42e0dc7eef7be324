"""Load: requests are repeated as a careful client would, and what is refused for good is a violation."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from aiohttp import web

from cluster.errors import HarborError
from cluster.verify import asker, load
from cluster.verify.contract_oracle import Rule, Truth, Violation
from cluster.verify.load import Load
from cluster.verify.plan import Settings

Answers = Callable[[web.Request, int], web.Response]


class Gateway:
    """Answers as a test says, and notes what was asked."""

    def __init__(self) -> None:
        self.asked: list[web.Request] = []
        self.answers: Answers = lambda _, n: web.json_response({"version": 100 + n})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        await request.read()
        self.asked.append(request)
        return self.answers(request, len(self.asked))


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"  # type: ignore[attr-defined]
    yield made
    await runner.cleanup()


@pytest.fixture
async def loading(gateway: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Load]:
    monkeypatch.setattr(asker, "AGAIN_S", 0.0)
    async with Load(gateway.url, "secret", Settings(keys=4), ["v", "run"], Truth()) as made:
        yield made


async def test_a_write_is_repeated_with_its_key_until_there_is_an_answer(gateway: Gateway, loading: Load) -> None:
    gateway.answers = lambda _, n: web.Response(status=503) if n < 3 else web.json_response({"version": 7})
    await loading._act("set", 0, "x", repeats=False)
    assert len({request.headers["Idempotency-Key"] for request in gateway.asked}) == 1
    assert gateway.asked[0].headers["Authorization"] == "Bearer secret"
    assert (loading.owned[0].version, loading.counts["repeats for want of an answer"]) == (7, 2)


async def test_writes_ask_for_the_levels_in_turn(gateway: Gateway, loading: Load) -> None:
    loading._settings = Settings(keys=4, acks=("replicated", "durable"))
    for _ in range(4):
        await loading._act("set", 0, "", repeats=False)
    asked = [request.query["ack"] for request in gateway.asked]
    assert sorted(asked[:2]) == ["durable", "replicated"]
    assert asked[:2] == asked[2:]


async def test_without_an_answer_either_may_be(gateway: Gateway, loading: Load) -> None:
    gateway.answers = lambda *_: web.Response(status=503)
    loading.give_up_s = 0.0
    await loading._act("set", 0, "", repeats=False)
    assert not loading.owned[0].is_sure
    assert loading.counts["writes without an answer"] == 1


async def refused(work: Any) -> Rule:
    with pytest.raises(Violation) as raised:
        await work
    return raised.value.rule


async def test_a_write_that_is_refused_for_good_is_a_violation(gateway: Gateway, loading: Load) -> None:
    gateway.answers = lambda *_: web.json_response({"error": {"code": "FORBIDDEN", "message": "no"}}, status=403)
    assert await refused(loading._act("set", 0, "", repeats=False)) is Rule.REFUSED


async def test_a_repeat_that_is_answered_otherwise_is_one(gateway: Gateway, loading: Load) -> None:
    assert await refused(loading._act("set", 0, "", repeats=True)) is Rule.REPEAT


async def test_a_write_over_another_version_that_is_taken_is_one(gateway: Gateway, loading: Load) -> None:
    await loading._act("set", 0, "", repeats=False)
    assert await refused(loading._act("stale", 0, "", repeats=False)) is Rule.STALE_WRITE


@pytest.mark.parametrize(("current", "rule"), [(101, Rule.CONFLICT), (50, Rule.LOST_WRITE), (None, Rule.LOST_WRITE)])
async def test_a_conflict_where_nobody_else_writes_is_one(
    gateway: Gateway, loading: Load, current: int | None, rule: Rule
) -> None:
    await loading._act("set", 0, "", repeats=False)
    held = None if current is None else {"version": current, "data": 1}
    error = {"code": "VERSION_CONFLICT", "message": "", "details": {"current": held}}
    gateway.answers = lambda *_: web.json_response({"error": error}, status=409)
    assert await refused(loading._act("conditional", 0, "", repeats=False)) is rule


KEY = '["v","run","own",0]'


def holds(stored: int | None, shown: int | None = None) -> Answers:
    """Return what a gateway says where a shard has such a version of every entry, and the gateway's replicas are at `shown`."""

    def answer(request: web.Request, n: int) -> web.Response:
        if request.path == "/v1/keys":
            keys = [load.orjson.loads(KEY)] if stored else []
            return web.json_response({"keys": [{"key": key, "version": stored} for key in keys]})
        if request.method == "GET":
            return web.json_response({"version": shown, "data": {"n": 1}}, headers={"ETag": f'"{shown}"'})
        return web.Response(status=204) if request.method == "DELETE" else web.json_response({"version": 100 + n})

    return answer


async def look(loading: Load) -> None:
    await loading._look(loading.owned[0].key, [loading.owned[0].key])


@pytest.mark.parametrize("stored", [100, None])
async def test_a_shard_that_is_behind_what_was_acknowledged_has_lost_it(
    gateway: Gateway, loading: Load, stored: int | None
) -> None:
    gateway.answers = holds(stored)
    await look(loading)
    await loading._act("set", 0, "", repeats=False)
    assert await refused(look(loading)) is Rule.LOST_WRITE
    gateway.answers = holds(loading.owned[0].version)
    await look(loading)


@pytest.mark.parametrize(("stored", "rule"), [(100, Rule.LOST_WRITE), (101, None)])
async def test_a_gateway_that_is_behind_has_its_shard_asked(
    gateway: Gateway, loading: Load, monkeypatch: pytest.MonkeyPatch, stored: int, rule: Rule | None
) -> None:
    monkeypatch.setattr(load, "READ_PAUSE_S", 0.0)
    loading.owned, loading.give_up_s = loading.owned[:1], 0.0
    await loading._act("set", 0, "", repeats=False)

    def answer(request: web.Request, n: int) -> web.Response:
        loading.is_stopped = request.path == "/v1/keys"
        return holds(stored, 90)(request, n)

    gateway.answers = answer
    if rule is None:
        await loading.reader(0)
    else:
        assert await refused(loading.reader(0)) is rule
    assert gateway.asked[-1].query["prefix"] == KEY


async def test_a_deleted_entry_may_be_gone_and_may_not_come_back(gateway: Gateway, loading: Load) -> None:
    gateway.answers = holds(None)
    await loading._act("set", 0, "", repeats=False)
    await loading._act("delete", 0, "", repeats=False)
    await look(loading)
    gateway.answers = holds(101)
    assert await refused(look(loading)) is Rule.LOST_WRITE


async def test_what_memory_alone_acknowledged_may_be_lost(gateway: Gateway, loading: Load) -> None:
    loading._settings = Settings(keys=4, acks=("memory",))
    await loading._act("set", 0, "", repeats=False)
    gateway.answers = holds(None)
    await look(loading)


async def test_a_write_that_met_less_than_was_acknowledged_says_so(gateway: Gateway, loading: Load) -> None:
    await loading._act("set", 0, "", repeats=False)
    gateway.answers = lambda *_: web.json_response({"version": 101})
    assert await refused(loading._act("merge", 0, "", repeats=False)) is Rule.LOST_WRITE


async def test_edits_leave_a_trace_that_edits_of_the_other_kind_keep(gateway: Gateway, loading: Load) -> None:
    for act in ("set", "patch", "merge"):
        await loading._act(act, 0, "", repeats=False)  # type: ignore[arg-type]
    value = loading.owned[0].value
    assert (value["n"], value["patch"], value["merge"]) == (3, 2, 3)
    await loading._act("set", 0, "", repeats=False)
    assert loading.owned[0].value.keys() == {"n", "t", "pad"}


async def test_everything_is_listed(gateway: Gateway, loading: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "LIST_PAUSE_S", 0.0)
    gateway.answers = holds(101)
    await loading._act("set", 1, "", repeats=False)
    with pytest.raises(Violation) as raised:
        await loading.lister()
    assert (raised.value.rule, raised.value.key) == (Rule.LOST_WRITE, loading.owned[1].key)
    assert gateway.asked[-1].query["prefix"] == '["v","run"]'


async def test_an_etag_is_of_the_version(gateway: Gateway, loading: Load) -> None:
    gateway.answers = lambda *_: web.json_response({"version": 5, "data": 1}, headers={"ETag": '"4"'})
    assert await refused(loading._read("k")) is Rule.VALUE


async def test_who_may_not_write_learns_it_at_once(gateway: Gateway, loading: Load) -> None:
    gateway.answers = lambda *_: web.json_response({"error": {"code": "FORBIDDEN", "message": "not yours"}}, status=403)
    with pytest.raises(HarborError, match="cannot be written: not yours") as raised:
        await loading.begin()
    assert raised.value.code == "FORBIDDEN"
    assert not loading.has_written


async def test_what_was_made_is_deleted_page_by_page(gateway: Gateway, loading: Load, monkeypatch: Any) -> None:
    monkeypatch.setattr(load, "CLEAN_PAUSE_S", 0.0)
    present = [["v", "run", n] for n in range(3)]

    def answer(request: web.Request, _: int) -> web.Response:
        if request.method == "DELETE":
            present.remove(load.orjson.loads(request.query["key"]))
            return web.Response(status=204)
        more = {"cursor": "c"} if len(present) > 2 else {}
        return web.json_response({"keys": [{"key": key} for key in present[:2]], **more})

    gateway.answers = answer
    assert await loading.clean_up(["v", "run"]) == 0
    assert present == []
