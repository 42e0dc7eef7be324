"""Watching through real sockets: a real gateway, and a stand-in for what a gateway rarely does."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from cluster.client import Change, HarborClient, Watch, connection
from cluster.core import gateway_state
from cluster.core.limits import Limits
from cluster.errors import ErrorCode, HarborError, UnavailableError
from tests.client.conftest import AT_ONCE, NEVER, WELCOME, Line, StandIn, cut, revive
from tests.client.consumer import Consumer
from tests.gateway.conftest import Harness
from tests.in_process import new_shard

A: list[Any] = ["a", 1]
MODES = pytest.mark.parametrize("mode", ["data", "patch"])


def client(url: str | list[str], **more: Any) -> HarborClient:
    return HarborClient(url, backoff=AT_ONCE, **more)


async def until(watch: Watch, holds: Callable[[Change], Any], consumer: Consumer | None = None) -> list[Change]:
    """Take changes up to the first of which something holds."""
    changes: list[Change] = []
    async with asyncio.timeout(60):
        async for change in watch:
            changes.append(change)
            if consumer is not None:
                consumer.take(change)
            if holds(change):
                return changes
    raise AssertionError(f"it ended with {changes}")


async def first(watch: Watch) -> Change:
    async with asyncio.timeout(60):
        return await anext(watch)


def ready(change: Change) -> bool:
    return change.kind == "ready"


def at(version: int) -> Callable[[Change], bool]:
    return lambda change: change.version == version and change.kind in ("change", "removed")


def sockets(harness: Harness) -> int:
    return len(harness.state.sessions)


def subscriptions(harness: Harness) -> int:
    return sum(len(session.subscriptions) for session in harness.state.sessions.values())


# --- what is told ------------------------------------------------------------------------------------------------


@MODES
async def test_a_key_from_snapshot_to_removal(harness: Harness, mode: Any) -> None:
    first = await harness.put('["a",1]', {"list": list(range(20))})
    async with client(harness.url) as harbor:
        assert harbor.state == "closed"
        watch = harbor.watch(A, mode=mode)
        consumer = Consumer(mode)
        begun = await until(watch, ready, consumer)
        assert [(each.kind, each.key, each.version) for each in begun] == [
            ("snapshot", A, first),
            ("ready", None, 0),
        ]
        assert harbor.state == "connected"
        second = await harbor.edit(A, operations=[{"append": {"at": "/list", "item": "x"}}])
        (changed,) = await until(watch, at(second), consumer)
        patch = [{"op": "add", "path": "/list/-", "value": "x"}]
        assert changed.patch == (patch if mode == "patch" else None)
        assert changed.data == {"list": [*range(20), "x"]}
        await harbor.invalidate(A)
        (outdated,) = await until(watch, lambda change: change.kind == "invalidated", consumer)
        assert outdated.is_stale
        await harbor.delete(A)
        (gone,) = await until(watch, lambda change: change.kind == "removed", consumer)
        third = await harbor.set(A, None)
        (back,) = await until(watch, at(third), consumer)
        assert (back.kind, back.from_version, back.data, back.status) == ("change", 0, None, "success")
        assert second < gone.version < third
        consumer.check_nothing_was_edited()


@MODES
async def test_a_prefix(harness: Harness, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_state, "CHUNK_BYTES", 200)  # the snapshot in many pieces
    for n in range(30):
        await harness.put(f'["p",{n}]', {"n": n})
    await harness.put('["other"]', 0)
    async with client(harness.url) as harbor:
        watch = harbor.watch(["p"], prefix=True, mode=mode)
        consumer = Consumer(mode)
        await until(watch, ready, consumer)
        assert {key: data["n"] for key, (_, data) in consumer.entries.items()} == {f'["p",{n}]': n for n in range(30)}
        await harbor.set(["other"], 1)
        await harbor.set(["p", 30], {"n": 30})
        await harbor.delete(["p", 0])
        await until(watch, lambda _: '["p",30]' in consumer.entries and '["p",0]' not in consumer.entries, consumer)
        assert len(consumer.entries) == 30


async def test_an_entry_being_fetched_is_pending_then_changes(harness: Harness) -> None:
    async with client(harness.url) as harbor:
        watch = harbor.watch(["q", 1])
        pending = await until(watch, lambda change: change.kind == "snapshot")
        assert (pending[0].status, pending[0].version, pending[0].data) == ("pending", 0, None)
        await until(watch, ready)
        async with asyncio.timeout(60):
            while not harness.fetches:
                await asyncio.sleep(0)
        harness.fetched(b'{"n":1}')
        (fetched,) = await until(watch, lambda change: change.kind == "change")
        assert (fetched.from_version, fetched.data) == (0, {"n": 1})


async def test_watches_share_one_socket_and_go_on_side_by_side(harness: Harness) -> None:
    async with client(harness.url) as harbor:
        watches = [harbor.watch(["s", n]) for n in range(5)] + [harbor.watch(["s"], prefix=True, mode="patch")]
        for watch in watches:
            await until(watch, ready)
        assert (sockets(harness), subscriptions(harness)) == (1, 6)
        versions = [await harbor.set(["s", n], n) for n in range(5)]
        for watch, version in zip(watches, versions, strict=False):
            assert len(await until(watch, at(version))) == 1
        consumer = Consumer("patch")
        await until(watches[-1], lambda _: len(consumer.entries) == 5, consumer)


# --- leaving -----------------------------------------------------------------------------------------------------


async def test_leaving_a_loop_unsubscribes(harness: Harness) -> None:
    async with client(harness.url) as harbor:
        last = harbor.watch(["last"])
        await until(last, ready)
        assert subscriptions(harness) == 1
        async for change in harbor.watch(A):
            if change.kind == "ready":
                assert subscriptions(harness) == 2
                break
        closed = harbor.watch(A)
        await until(closed, ready)
        await closed.aclose()
        await closed.aclose()
        with pytest.raises(StopAsyncIteration):
            await first(closed)
        async with harbor.watching(A) as watch:
            await until(watch, ready)
        # What is told to the gateway is told in order: when this is ready, it has heard of the others' end.
        await until(harbor.watch(["end"]), ready)
        assert subscriptions(harness) == 2
        assert sockets(harness) == 1


async def test_a_wait_that_is_cancelled_loses_nothing(harness: Harness) -> None:
    async with client(harness.url) as harbor:
        watch = harbor.watch(A)
        consumer = Consumer("data")
        await until(watch, ready, consumer)
        versions = []
        for n in range(5):
            waiting = asyncio.create_task(anext(watch))
            versions.append(await harbor.set(A, n))
            waiting.cancel()
            done = (await asyncio.gather(waiting, return_exceptions=True))[0]
            if isinstance(done, Change):
                consumer.take(done)
        await harbor.set(A, "end")
        await until(watch, lambda change: change.data == "end", consumer)
        assert consumer.coalesced == 6


async def test_closing_the_client_ends_its_watches(harness: Harness) -> None:
    async with client(harness.url) as harbor:
        watch = harbor.watch(A)
        waiting = asyncio.create_task(until(watch, lambda change: False))
        await until(harbor.watch(A), ready)
    with pytest.raises(AssertionError, match="it ended"):
        await waiting
    assert harbor.state == "closed"


async def test_a_connection_nobody_needs_is_not_made_again(harness: Harness) -> None:
    async with client(harness.url) as harbor:
        await until(harbor.watch(A), ready)
        await until(harbor.watch(["b"]), ready)
        cut(harbor)
        async with asyncio.timeout(60):
            while harbor.state != "closed":
                await asyncio.sleep(0)
        await until(harbor.watch(A), ready)
        assert harbor.state == "connected"


# --- a slow consumer ---------------------------------------------------------------------------------------------


@MODES
async def test_a_slow_consumer_gets_the_latest_and_holds_nobody_up(harness: Harness, mode: Any) -> None:
    async with client(harness.url, backlog=4) as harbor:
        slow = harbor.watch(["w"], prefix=True, mode=mode)
        fast = harbor.watch(["w"], prefix=True)
        consumer = Consumer(mode)
        await until(slow, ready, consumer)
        await until(fast, ready)
        for n in range(60):
            version = await harbor.set(["w", n % 3], {"n": n})
            await until(fast, at(version))
        assert len(slow._seat.subscription) <= 4 + 3
        last = {'["w",0]': 57, '["w",1]': 58, '["w",2]': 59}
        taken = await until(
            slow, lambda _: {key: data["n"] for key, (_, data) in consumer.entries.items()} == last, consumer
        )
        assert len(taken) <= 4 + 3
        assert consumer.coalesced == 60
        consumer.check_nothing_was_edited()


# --- reconnecting ------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("prefix", [False, True])
async def test_cut_again_and_again_without_gap_or_duplicate(harness: Harness, mode: Any, prefix: bool) -> None:
    async with client(harness.url) as harbor:
        watch = harbor.watch(["c"] if prefix else ["c", 0], prefix=prefix, mode=mode)
        consumer = Consumer(mode)
        await until(watch, ready, consumer)
        writes = 120

        async def write() -> None:
            for n in range(writes):
                append = [{"append": {"item": n}}] if n else None
                await (harbor.edit(["c", 0], operations=append) if append else harbor.set(["c", 0], [0]))
                if n % 10 == 5 and harbor.state == "connected":
                    cut(harbor)
            await harbor.edit(["c", 0], operations=[{"append": {"item": "end"}}])

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            await until(watch, lambda change: change.data is not None and change.data[-1] == "end", consumer)
        assert set(consumer.kinds) == {"ready", "change"}
        assert consumer.entries['["c",0]'][1] == [*range(writes), "end"]
        assert harness.state.resumes["resumed"] >= 3
        assert harness.state.resumes["reset"] == 0
        consumer.check_nothing_was_edited()


async def test_a_shard_that_lost_its_data_resets(harness: Harness) -> None:
    await harness.put('["a",1]', "old")
    async with client(harness.url) as harbor:
        watch = harbor.watch([], prefix=True)
        consumer = Consumer("data")
        await until(watch, ready, consumer)
        for index, name in enumerate(harness.shards):
            harness.shards[name] = new_shard(index, 9, harness.clock.now_ms(), [], ["gateway-0"])
        with pytest.raises(HarborError):
            await harbor.get(A, fetch="force")  # its refusal tells the gateway
        await until(watch, ready, consumer)
        assert "reset" in consumer.kinds
        assert not consumer.entries
        version = await harbor.set(A, "new")
        await until(watch, at(version), consumer)


async def test_a_drained_gateway_is_left_and_what_was_missed_is_told(harness: Harness) -> None:
    async with client(harness.url) as harbor:
        watch = harbor.watch(A, mode="patch")
        consumer = Consumer("patch")
        await harbor.set(A, [])
        await until(watch, lambda change: change.data == [], consumer)
        await harness.server.drain()
        assert harbor.state == "reconnecting"
        await revive(harness)
        for n in range(3):
            await harbor.edit(A, operations=[{"append": {"item": n}}])
        await until(watch, lambda change: change.data == [0, 1, 2], consumer)
        assert "reset" not in consumer.kinds


async def test_a_drain_says_when_to_come_back(stand_in: StandIn) -> None:
    async def script(line: Line) -> None:
        await line.say(WELCOME)
        name = (await line.hear())["id"]
        if line.number == 0:
            await line.say({"type": "drain", "reconnect_after_ms": 60})
            await line.socket.close(code=3001)
        else:
            await line.say({"type": "snapshot_end", "sub": name, "position": "t"})
            await line.until_closed()

    stand_in.script = script
    async with HarborClient(stand_in.url, backoff=NEVER) as harbor:  # of itself it would not come back
        await until(harbor.watch(A), ready)


async def test_the_next_gateway_takes_over(harness: Harness, stand_in: StandIn, nobody: str) -> None:
    async def script(line: Line) -> None:
        await line.say(WELCOME)
        line.abort()

    stand_in.script = script
    version = await harness.put('["a",1]', 1)
    async with client([stand_in.url, nobody, harness.url]) as harbor:
        while harbor._gateways.all()[0] != stand_in.url:
            harbor._gateways.failed(harbor._gateways.all()[0])
        changes = await until(harbor.watch(A), ready)
    assert [(each.kind, each.version) for each in changes] == [("snapshot", version), ("ready", 0)]
    assert stand_in.connections == 1


# --- what a gateway rarely does ----------------------------------------------------------------------------------


def snapshot(name: Any, version: int, data: Any) -> dict[str, Any]:
    return {"type": "snapshot", "sub": name, "key": A, "version": version, "data": data, "status": "success"}


async def test_a_snapshot_cut_short_is_reset_and_comes_anew(stand_in: StandIn) -> None:
    async def script(line: Line) -> None:
        await line.say(WELCOME)
        asked = await line.hear()
        assert "since" not in asked
        await line.say(snapshot(asked["id"], 5 + line.number, line.number))
        if line.number == 0:
            line.abort()
        else:
            await line.say({"type": "snapshot_end", "sub": asked["id"], "position": "t"})
            await line.until_closed()

    stand_in.script = script
    async with client(stand_in.url) as harbor:
        changes = await until(harbor.watch(["a"], prefix=True), ready)
    # Taken or not by then, the first piece is not part of what is shown.
    kinds = [(each.kind, each.version) for each in changes]
    assert kinds[-3:] == [("reset", 0), ("snapshot", 6), ("ready", 0)]


@MODES
async def test_a_change_that_does_not_fit_makes_it_begin_anew(stand_in: StandIn, mode: str) -> None:
    heard: list[Any] = []
    taken = asyncio.Event()

    async def script(line: Line) -> None:
        await line.say(WELCOME)
        name = (await line.hear())["id"]
        await line.say(snapshot(name, 5, 1), {"type": "snapshot_end", "sub": name, "position": "t"})
        await taken.wait()
        gap = {"type": "change", "sub": name, "key": A, "from": 6, "version": 7, "data": 2, "coalesced": 1}
        late = {**gap, "from": 7, "version": 8}
        await line.say(gap, late, {"type": "position", "sub": name, "token": "t2"})
        heard.extend([await line.hear(), await line.hear()])
        again = heard[1]["id"]
        await line.say(late, snapshot(again, 8, 3), {"type": "snapshot_end", "sub": again, "position": "t3"})
        await line.until_closed()

    stand_in.script = script
    async with client(stand_in.url) as harbor:
        watch = harbor.watch(A, mode=mode)  # type: ignore[arg-type]
        changes = await until(watch, ready)
        taken.set()
        changes += await until(watch, ready)
    assert [(each.kind, each.version) for each in changes] == [
        ("snapshot", 5),
        ("ready", 0),
        ("reset", 0),
        ("snapshot", 8),
        ("ready", 0),
    ]
    assert heard[0]["type"] == "unsubscribe"
    assert heard[1] == {"type": "subscribe", "id": heard[1]["id"], "key": A, "mode": mode}
    assert heard[1]["id"] != heard[0]["id"]


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("close_code", "code"),
    [
        (3500, ErrorCode.UNAUTHORIZED),
        (3501, ErrorCode.BAD_MESSAGE),
        (3503, ErrorCode.FORBIDDEN),
        (3999, ErrorCode.INTERNAL),
    ],
)
async def test_a_refusal_for_good_is_raised_by_every_watch(harness: Harness, close_code: int, code: ErrorCode) -> None:
    async with client(harness.url, wait=True) as harbor:
        watches = [harbor.watch(A), harbor.watch(["b"]), harbor.watch(["b"])]
        for watch in watches:
            await until(watch, ready)
        version = await harbor.set(["b"], 1)
        await until(watches[2], at(version))
        for wire in list(harness.server._wires.values()):
            harness.server._close(wire, close_code, "bad token")
        with pytest.raises(HarborError) as caught:
            await until(watches[0], lambda change: False)
        assert (caught.value.code, caught.value.details) == (code, {"close_code": close_code})
        assert f"{close_code} bad token" in caught.value.message
        assert harbor.state == "closed"
        # What came before is told first.
        assert len(await until(watches[1], at(version))) == 1
        with pytest.raises(HarborError):
            await first(watches[1])
        with pytest.raises(StopAsyncIteration):
            await first(watches[1])


async def test_other_close_codes_are_not_the_end(harness: Harness) -> None:
    async with client(harness.url) as harbor:
        watch = harbor.watch(A)
        await until(watch, ready)
        for code in (3008, 3012, 3499):
            for wire in list(harness.server._wires.values()):
                harness.server._close(wire, code, "")
            version = await harbor.set(A, code)
            await until(watch, at(version))


async def test_nobody_at_the_first_connection_is_unavailable(nobody: str) -> None:
    async with client(nobody) as harbor:
        watches = [harbor.watch(A), harbor.watch(["b"])]
        assert harbor.state == "closed"
        for watch in watches:
            with pytest.raises(UnavailableError, match=f"no cluster answers at {nobody}"):
                await first(watch)
        assert harbor.state == "closed"


async def test_who_would_rather_wait_waits(harness: Harness) -> None:
    tried = asyncio.Event()

    def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tried.set()
        writer.transport.abort()

    await harness.server.drain()
    server = await asyncio.start_server(refuse, "127.0.0.1", harness.port)
    async with client(harness.url, wait=True) as harbor, asyncio.timeout(60):
        watch = harbor.watch(A)
        await tried.wait()
        assert harbor.state == "connecting"
        server.close()
        await server.wait_closed()
        await revive(harness)
        await until(watch, ready)


@pytest.mark.parametrize("wait", [False, True])
async def test_a_refused_handshake_says_why_and_is_not_repeated(stand_in: StandIn, wait: bool) -> None:
    stand_in.answers = [(401, b'{"error":{"code":"UNAUTHORIZED","message":"unknown token","temporary":false}}')]
    async with client(stand_in.url, token="secret", wait=wait) as harbor:
        with pytest.raises(HarborError, match="unknown token") as caught:
            await first(harbor.watch(A))
        assert caught.value.code is ErrorCode.UNAUTHORIZED
    ((_, path, _, _, headers),) = stand_in.requests
    assert path == "/v1/socket"
    assert headers["Authorization"] == "Bearer secret"
    assert headers["Sec-WebSocket-Protocol"] == "harbor.v1"


async def test_a_gateway_that_fails_once_is_tried_again(stand_in: StandIn) -> None:
    async def script(line: Line) -> None:
        await line.say(WELCOME)
        name = (await line.hear())["id"]
        if line.number == 0:
            stand_in.refuse_next = True
            line.abort()
        else:
            await line.say({"type": "snapshot_end", "sub": name, "position": "t"})
            await line.until_closed()

    stand_in.script = script
    stand_in.answers = [(500, b'{"error":{"code":"INTERNAL","message":"it has logged why","temporary":false}}')]
    async with client(stand_in.url) as harbor:
        await until(harbor.watch(A), ready)
    assert (len(stand_in.requests), stand_in.connections) == (1, 2)


async def test_what_one_gateway_refuses_for_good_is_not_asked_of_the_next(stand_in: StandIn) -> None:
    other = await StandIn().start()
    refusal = (403, b'{"error":{"code":"FORBIDDEN","message":"not yours","temporary":false}}')
    stand_in.answers = other.answers = [refusal]
    async with client([stand_in.url, other.url]) as harbor:
        with pytest.raises(HarborError, match="not yours"):
            await first(harbor.watch(A))
    assert len([*stand_in.requests, *other.requests]) == 1
    await other.stop()


async def test_what_speaks_something_else_is_no_cluster(stand_in: StandIn) -> None:
    async def script(line: Line) -> None:
        await line.socket.send_str("hello" if line.number == 0 else '[{"type":"pong"}]')
        await line.until_closed()

    stand_in.script = script
    for _ in range(2):
        async with client(stand_in.url) as harbor:
            with pytest.raises(UnavailableError, match=r"does not speak harbor\.v1"):
                await first(harbor.watch(A))
    stand_in.script = None
    stand_in.answers = [(404, b"<html>")]
    async with client(stand_in.url) as harbor:
        with pytest.raises(UnavailableError, match="is no Harbor Cluster: HTTP 404"):
            await first(harbor.watch(A))


async def test_a_token_that_is_not_taken_any_more_makes_it_begin_anew(stand_in: StandIn) -> None:
    since: list[str | None] = []

    async def script(line: Line) -> None:
        await line.say(WELCOME)
        while not line.socket.closed:
            asked = await line.hear()
            since.append(asked.get("since"))
            if "since" in asked:
                refusal = {"code": "BAD_REQUEST", "message": "not a position token", "temporary": False}
                await line.say({"type": "error", "re": asked["id"], **refusal})
                continue
            await line.say({"type": "snapshot_end", "sub": asked["id"], "position": "t"})
            if line.number:
                await line.until_closed()
            line.abort()
            return

    stand_in.script = script
    async with client(stand_in.url) as harbor:
        watch = harbor.watch(A)
        kinds = [(await anext(watch)).kind for _ in range(3)]
    assert kinds == ["ready", "reset", "ready"]
    assert since == [None, "t", None]


async def test_a_client_that_is_closed_as_too_slow_is_told_and_goes_on_from_its_token(
    stand_in: StandIn,
) -> None:
    since: list[str | None] = []
    notice = {"type": "notice", "level": "warning", "code": "degraded", "message": "m", "window_ms": 250, "step": 1}

    async def script(line: Line) -> None:
        await line.say(WELCOME)
        asked = await line.hear()
        since.append(asked.get("since"))
        if line.number == 0:
            await line.say({"type": "snapshot_end", "sub": asked["id"], "position": "t"}, notice)
            await line.socket.close(code=3008, message=b"too slow")
            return
        await line.say(
            {"type": "change", "sub": asked["id"], "key": A, "from": 0, "version": 1, "data": 1, "coalesced": 1}
        )
        await line.until_closed()

    stand_in.script = script
    notices: list[dict[str, Any]] = []
    async with HarborClient(stand_in.url, backoff=AT_ONCE, on_notice=notices.append) as harbor:
        watch = harbor.watch(A)
        assert [(await anext(watch)).kind for _ in range(2)] == ["ready", "change"]
    assert (since, notices) == ([None, "t"], [notice])


async def test_one_watch_refused_leaves_the_others_alone(harness: Harness) -> None:
    harness.state.limits = Limits(subscriptions=1)
    async with client(harness.url) as harbor:
        kept = harbor.watch(A)
        await until(kept, ready)
        with pytest.raises(HarborError) as caught:
            await first(harbor.watch(["b"]))
        assert caught.value.code is ErrorCode.TOO_MANY
        version = await harbor.set(A, 1)
        await until(kept, at(version))
        await kept.aclose()
        await until(harbor.watch(["b"]), ready)


async def test_a_fault_of_the_client_is_raised_not_swallowed(
    stand_in: StandIn,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def script(line: Line) -> None:
        await line.say(WELCOME)
        name = (await line.hear())["id"]
        await line.say({"type": "snapshot", "sub": name})
        await line.until_closed()

    stand_in.script = script
    async with client(stand_in.url) as harbor:
        with pytest.raises(HarborError) as caught:
            await first(harbor.watch(A))
        assert caught.value.code is ErrorCode.INTERNAL
    assert "watching_failed" in caplog.text


def test_the_delays_grow_and_are_jittered() -> None:
    delays = [connection.RECONNECT.delay_ms(failures, 1.0) for failures in (1, 2, 3, 20, 10**6)]
    assert delays == [200.0, 400.0, 800.0, 10_000.0, 10_000.0]
    assert connection.RECONNECT.delay_ms(1, 0.0) == 100.0


async def test_a_client_that_leaves_does_not_wait_for_another_token(stand_in: StandIn) -> None:
    asked: list[None] = []
    waits = asyncio.Event()

    async def token() -> str:
        asked.append(None)
        if len(asked) > 1:
            waits.set()
            await asyncio.Event().wait()
        return "one"

    async def expiring(line: Line) -> None:
        notice = {"type": "notice", "level": "warning", "code": "token_expires", "message": "", "expires_at": 0}
        await line.say(WELCOME, notice, notice)
        await line.until_closed()

    stand_in.script = expiring
    async with asyncio.timeout(10):
        async with HarborClient(stand_in.url, token) as harbor, harbor.watching(A):
            await waits.wait()
    assert len(asked) == 2
