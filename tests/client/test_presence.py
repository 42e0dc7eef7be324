"""Presence as a client has it: views without sockets, then a real gateway."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.client import HarborClient, Presence, PresenceChange
from cluster.client import presence as client_presence
from cluster.client.presence import Member, PresenceView
from cluster.core import presence_session, template
from cluster.core.presence_room import Pattern
from cluster.errors import ErrorCode, HarborError, LimitError, RequestError
from tests.client.conftest import AT_ONCE, WELCOME, Line, StandIn, cut
from tests.gateway.conftest import Harness
from tests.gateway.test_jwt import eventually

TIMEOUT_S = 2.0
PATTERNS = (
    Pattern(template.parse("doc:{id}"), 30_000.0, 75_000.0),
    Pattern(template.parse("quick:{id}"), 100.0, TIMEOUT_S * 1000),
)


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    harness = await Harness(patterns=PATTERNS).start()
    yield harness
    await harness.stop()


def member(name: str, state: Any = 1, at: int = 5) -> Member:
    return Member(member=name, subject="s", state=state, last_active=at)


def row(name: str, state: Any = 1, at: int = 5) -> dict[str, Any]:
    return {"member": name, "subject": "s", "state": state, "last_active": at}


def message(count: int, joined: Any = (), updated: Any = (), left: Any = (), **more: Any) -> dict[str, Any]:
    return {"joined": list(joined), "updated": list(updated), "left": list(left), "count": count, **more}


def change(count: int, joined: Any = (), updated: Any = (), left: Any = (), **more: Any) -> PresenceChange:
    return PresenceChange(joined=list(joined), updated=list(updated), left=list(left), count=count, **more)


def test_a_listing_in_pages_is_one_change_and_what_follows_folds() -> None:
    view = PresenceView()
    view.receive(message(9, [row("old")]))
    view.receive(message(2, [row("a")], snapshot=True, more=True))
    assert view.take() is None
    view.receive(message(2, [row("b")], snapshot=True))
    assert view.take() == change(2, [member("a"), member("b")], is_first=True)
    assert view.take() is None
    view.receive(message(2, [row("c")], [row("a", 2)], ["b"]))
    view.receive(message(1, [], [row("a", 3)], ["c"]))
    assert view.take() == change(1, [], [member("a", 3)], [member("b")])
    view.receive(message(2, [row("d")]))
    view.receive(message(1, [], [], ["d"]))
    assert view.take() is None


def test_over_a_reconnect_only_what_differs_is_told() -> None:
    view = PresenceView()
    view.receive(message(3, [row("a"), row("b"), row("c")], snapshot=True))
    view.take()
    view.begin()
    view.receive(message(1, [], [], ["a"]))
    assert view.take() is None, "of the connection before"
    view.receive(message(3, [row("a", 1, 99), row("b", 2), row("d")], snapshot=True))
    assert view.take() == change(3, [member("d")], [member("b", 2)], [member("c")])
    assert view.members["a"].last_active == 99


def test_counts() -> None:
    view = PresenceView()
    view.receive(message(0, snapshot=True))
    assert view.take() == change(0, is_first=True)
    view.receive(message(4))
    view.receive(message(5))
    assert view.take() == change(5)
    view.receive(message(5))
    assert view.take() is None


async def until(room: Presence, count: int) -> PresenceChange:
    async with asyncio.timeout(30):
        while True:
            got = await anext(room)
            if got.count == count:
                return got


async def test_two_clients_meet(harness: Harness) -> None:
    async with HarborClient(harness.url) as one, HarborClient(harness.url) as two, one.join("doc:1", {"n": 1}) as first:
        got = await until(first, 1)
        assert (got.is_first, [each.state for each in got.joined]) == (True, [{"n": 1}])
        assert [each.member for each in got.joined] == [first.me]
        async with two.join("doc:1", {"n": 2}) as second:
            assert [each.state for each in (await until(first, 2)).joined] == [{"n": 2}]
            second.update({"n": 3})
            assert [each.state for each in (await anext(first)).updated] == [{"n": 3}]
            assert {each.member async for each in two.members("doc:1")} == {first.me, second.me}
            with pytest.raises(RequestError, match="already"):
                two.watch_presence("doc:1")
        assert [each.state for each in (await until(first, 1)).left] == [{"n": 3}]
        async with two.watch_presence("doc:1", watch="count") as third:
            assert await anext(third) == change(1, is_first=True)
        assert first.members.keys() == {first.me}


async def test_heartbeats_are_sent_and_a_lost_connection_is_not_seen(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_session, "GRACE_MS", 10_000.0)
    async with (
        HarborClient(harness.url, backoff=AT_ONCE) as one,
        HarborClient(harness.url) as two,
        one.join("quick:1", 1) as first,
        two.watch_presence("quick:1") as second,
    ):
        await until(second, 1)
        me = first.me
        heard: set[float] = set()

        def is_heard_again() -> bool:
            (session,) = (each for each in harness.state.sessions.values() if each.identity == me)
            assert session.attendance is not None
            heard.update(each.heard_ms for each in session.attendance.joined.values())
            return len(heard) > 3

        await eventually(is_heard_again)
        before = one._connection.socket
        cut(one)
        await eventually(lambda: one._connection.socket not in (None, before))
        first.update(2)
        got = await anext(second)
        assert [(each.member, each.state) for each in got.updated] == [(me, 2)]
        assert (got.joined, got.left, first.me) == ([], [], me)
        assert await until(first, 1) is not None


async def test_what_is_refused_is_raised_where_it_is_followed(harness: Harness) -> None:
    async with HarborClient(harness.url) as harbor:
        room = harbor.join("nowhere")
        with pytest.raises(HarborError, match="nowhere"):
            await anext(room)
        with pytest.raises(RequestError):
            harbor.join("doc:1", {1: object()})
        with pytest.raises(RequestError):
            harbor.join("doc:1", watch="all")  # type: ignore[arg-type]
        with pytest.raises(RequestError):
            harbor.watch_presence("")
        with pytest.raises(HarborError, match="nowhere"):
            [each async for each in harbor.members("nowhere")]
        async with harbor.join("doc:1") as room:
            await until(room, 1)
    with pytest.raises(StopAsyncIteration):
        await anext(room)


async def test_what_is_too_large_is_not_sent(harness: Harness) -> None:
    async with HarborClient(harness.url) as harbor, harbor.join("doc:1", "x" * 4_000) as room:
        for refused in (
            lambda: harbor.join("doc:2", "x" * 1_100_000),
            lambda: harbor.watch_presence("x" * 257),
            lambda: room.update("x" * 4_095),
        ):
            with pytest.raises(LimitError) as error:
                refused()
            assert error.value.code is ErrorCode.TOO_LARGE
        assert [each.state for each in (await until(room, 1)).joined] == ["x" * 4_000]


async def test_a_change_that_came_too_soon_is_said_again(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_presence, "LIMITED_S", 0.1)
    async with HarborClient(harness.url) as harbor, harbor.join("doc:1", 0) as room:
        for n in range(40):
            room.update(n)
        async with asyncio.timeout(30):
            while not (room.members and room.members[room.me or ""].state == 39):
                await anext(room)


async def test_a_client_resumes_with_the_token_it_was_given_and_only_what_it_had_joined(stand_in: StandIn) -> None:
    said: list[list[dict[str, Any]]] = []

    async def script(line: Line) -> None:
        await line.say({**WELCOME, "session": f"s{line.number}", "resume_token": f"t{line.number}"})
        heard = [await line.hear() for _ in range(1 if line.number == 0 else 2)]
        said.append(heard)
        if line.number == 0:
            line.abort()
            return
        await line.say({**WELCOME, "session": "s0", "resume_token": "t0"})
        await line.say({"type": "presence", "topic": "doc:1", **message(1, [row("s0")], snapshot=True)})
        await line.until_closed()

    stand_in.script = script
    async with HarborClient(stand_in.url, backoff=AT_ONCE) as harbor, harbor.join("doc:1", 7) as room:
        await until(room, 1)
        assert room.me == "s0"
    joins = {"type": "presence", "topic": "doc:1", "watch": "members", "state": 7}
    assert [{k: v for k, v in each.items() if k != "id"} for heard in said for each in heard] == [
        joins,
        {"type": "hello", "resume": "t0"},
        joins,
    ]


async def test_a_session_that_is_not_known_any_more_goes_on_as_another(stand_in: StandIn) -> None:
    async def script(line: Line) -> None:
        await line.say({**WELCOME, "session": f"s{line.number}", "resume_token": f"t{line.number}"})
        hello = await line.hear()
        if line.number == 0:
            line.abort()
            return
        assert hello["type"] == "hello"
        await line.say({"type": "error", "re": hello["id"], "code": "BAD_REQUEST", "message": "m", "temporary": False})
        await line.hear()
        await line.say({"type": "presence", "topic": "doc:1", **message(1, [row("s1")], snapshot=True)})
        await line.until_closed()

    stand_in.script = script
    async with HarborClient(stand_in.url, backoff=AT_ONCE) as harbor, harbor.join("doc:1", 7) as room:
        await until(room, 1)
        assert room.me == "s1"
