"""Presence over real sockets: what is refused, what is read page by page, who leaves how."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection

from cluster.core import presence_session, template
from cluster.core.presence_room import Pattern
from tests.gateway.conftest import Harness, until
from tests.in_process import TOKENS

PATTERNS = (
    Pattern(template.parse("doc:{id}"), 30_000.0, 75_000.0),
    Pattern(template.parse("quick:{id}"), 100.0, 300.0),
)


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    harness = await Harness(patterns=PATTERNS).start()
    yield harness
    await harness.stop()


async def say(socket: ClientConnection, **message: Any) -> None:
    await socket.send(orjson.dumps(message))


async def told(socket: ClientConnection, topic: str = "doc:1") -> dict[str, Any]:
    """The next presence message of a topic."""
    while True:
        for message in await until(socket, "presence"):
            if message["type"] == "presence" and message["topic"] == topic:
                return message


async def answer(socket: ClientConnection, name: Any) -> dict[str, Any]:
    async with asyncio.timeout(20):
        while True:
            for message in orjson.loads(await socket.recv()):
                if message.get("re") == name:
                    return dict(message)


async def welcomed(socket: ClientConnection) -> dict[str, Any]:
    return next(each for each in await until(socket, "welcome") if each["type"] == "welcome")


async def test_two_meet_and_one_leaves(harness: Harness) -> None:
    async with harness.socket() as a, harness.socket() as b:
        first, second = (await welcomed(a))["session"], (await welcomed(b))["session"]
        await say(a, type="presence", id=1, topic="doc:1", state={"cursor": 3})
        assert await answer(a, 1) == {"type": "result", "re": 1, "heartbeat_ms": 30_000, "timeout_ms": 75_000}
        mine = await told(a)
        (row,) = mine["joined"]
        assert abs(row.pop("last_active") - harness.clock.now_ms()) < 5_000
        assert row == {"member": first, "subject": "anonymous", "state": {"cursor": 3}}
        assert (mine["updated"], mine["left"], mine["count"], mine["snapshot"]) == ([], [], 1, True)
        await say(b, type="presence", id=1, topic="doc:1", state=None)
        assert {each["member"] for each in (await told(b))["joined"]} == {first, second}
        joined = await told(a)
        assert ([each["member"] for each in joined["joined"]], joined["count"]) == ([second], 2)
        assert "snapshot" not in joined
        await say(b, type="leave", id="bye", topic="doc:1")
        assert await answer(b, "bye") == {"type": "result", "re": "bye"}
        assert (await told(a))["left"] == [second]


async def test_a_closed_socket_leaves_at_once_and_one_that_broke_off_after_the_grace(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence_session, "GRACE_MS", 400.0)
    async with harness.socket() as watcher:
        await say(watcher, type="presence", id=1, topic="doc:1", watch="count")
        assert ((await told(watcher))["count"], harness.clock.now_ms() > 0) == (0, True)
        for breaks, least_ms in ((False, 0.0), (True, 400.0)):
            socket = await harness.socket()
            await say(socket, type="presence", id=1, topic="doc:1", state=1, watch="count")
            assert (await told(watcher))["count"] == 1
            before_ms = harness.clock.now_ms()
            if breaks:
                socket.transport.abort()
            else:
                await socket.close()
            assert await told(watcher) == {
                "type": "presence",
                "topic": "doc:1",
                "joined": [],
                "updated": [],
                "left": [],
                "count": 0,
            }
            assert harness.clock.now_ms() - before_ms >= least_ms


async def test_the_silent_are_gone_and_hear_it_themselves(harness: Harness) -> None:
    async with harness.socket() as a:
        me = (await welcomed(a))["session"]
        await say(a, type="presence", id=1, topic="quick:1", state=1)
        assert (await told(a, "quick:1"))["count"] == 1
        assert (await told(a, "quick:1"))["left"] == [me]


async def test_a_client_that_comes_back_is_who_it_was(harness: Harness) -> None:
    async with harness.socket() as watcher:
        await say(watcher, type="presence", id=1, topic="doc:1")
        assert (await told(watcher))["joined"] == []
        a = await harness.socket()
        greeted = await welcomed(a)
        await say(a, type="presence", id=1, topic="doc:1", state=1)
        assert (await told(watcher))["count"] == 1
        a.transport.abort()
        b = await harness.socket()
        assert (await welcomed(b))["session"] != greeted["session"]
        await say(b, type="hello", resume=greeted["resume_token"])
        again = await welcomed(b)
        assert (again["session"], again["resume_token"]) == (greeted["session"], greeted["resume_token"])
        await say(b, type="presence", id=2, topic="doc:1", state=2)
        change = await told(watcher)
        assert [(each["member"], each["state"]) for each in change["updated"]] == [(greeted["session"], 2)]
        assert change["joined"] == change["left"] == []
        # a second one with the token ends the first
        async with harness.socket() as c:
            await say(c, type="hello", resume=greeted["resume_token"])
            await asyncio.wait_for(b.wait_closed(), 20)
            assert b.close_code == 3505
            await say(c, type="leave", id=1, topic="doc:1")
            assert (await told(watcher))["left"] == [greeted["session"]]


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    ({"type": "presence", "topic": "doc:1", "state": "x" * 4096}, "TOO_LARGE", "4096 bytes"),
    ({"type": "presence", "topic": "doc:" + "x" * 300}, "TOO_LARGE", "256"),
    ({"type": "presence", "topic": 7}, "BAD_REQUEST", "topic is text"),
    ({"type": "presence", "topic": ""}, "BAD_REQUEST", "topic is text"),
    ({"type": "presence"}, "BAD_REQUEST", "topic is text"),
    ({"type": "presence", "topic": "doc:1", "watch": "all"}, "BAD_REQUEST", "members or count"),
    ({"type": "presence", "topic": "doc:1", "state": 1, "member": "somebody"}, "BAD_REQUEST", "'member'"),
    ({"type": "presence", "topic": "doc:1", "subject": "root"}, "BAD_REQUEST", "'subject'"),
    ({"type": "presence", "topic": "nowhere"}, "NOT_FOUND", "nowhere"),
    ({"type": "leave", "topic": "doc:1"}, "NOT_FOUND", "doc:1"),
    ({"type": "leave", "topic": "doc:1", "state": 1}, "BAD_REQUEST", "'state'"),
    ({"type": "leave", "topic": None}, "BAD_REQUEST", "topic is text"),
]


async def test_what_is_wrong_is_answered_by_a_code_and_changes_nothing(harness: Harness) -> None:
    async with harness.socket() as socket:
        for number, (message, code, part) in enumerate(FAULTS):
            await say(socket, id=number, **message)
            error = await answer(socket, number)
            assert (error["type"], error["code"]) == ("error", code), message
            assert part in error["message"]
        deep: Any = 1
        for _ in range(40):
            deep = [deep]
        await say(socket, type="presence", id="deep", topic="doc:1", state=deep)
        assert (await answer(socket, "deep"))["code"] == "TOO_DEEP"
        await say(socket, type="presence", topic="doc:1", state=1)
        assert any(each.get("code") == "BAD_MESSAGE" for each in await until(socket, "error"))
        for token in (7, "", "x" * 200, "é"):
            await say(socket, type="hello", resume=token)
            assert any(each.get("code") == "BAD_REQUEST" for each in await until(socket, "error"))
        await say(socket, type="presence", id="good", topic="doc:1", state=1)
        assert (await told(socket))["count"] == 1
        await say(socket, type="hello", resume=TOKENS.session("late", "anonymous"))
        assert any(each.get("code") == "CONFLICT" for each in await until(socket, "error"))
        assert sum(shard.presence.member_count for shard in harness.shards.values()) == 1


async def test_too_many_updates_are_refused(harness: Harness) -> None:
    async with harness.socket() as socket:
        for number in range(30):
            await say(socket, type="presence", id=number, topic="doc:1", state=number)
        codes: list[str | None] = []
        async with asyncio.timeout(20):
            while len(codes) < 30:
                codes += [each.get("code") for each in orjson.loads(await socket.recv()) if "re" in each]
        assert codes[:20] == [None] * 20
        assert "LIMITED" in codes[20:]


async def test_members_are_read_by_pages(harness: Harness) -> None:
    async with harness.socket() as a, harness.socket() as b, harness.socket() as c:
        ids = sorted([(await welcomed(socket))["session"] for socket in (a, b, c)])
        for socket in (a, b, c):
            await say(socket, type="presence", id=1, topic="doc:1", state={"é": 1})
        while (await told(a))["count"] < 3:
            pass
        status, first = await harness.get("/v1/presence", topic="doc:1", limit="2")
        assert (status, first["topic"], first["count"], first["cursor"]) == (200, "doc:1", 3, ids[1])
        _, second = await harness.get("/v1/presence", topic="doc:1", limit="2", cursor=first["cursor"])
        assert [each["member"] for each in first["members"] + second["members"]] == ids
        assert "cursor" not in second
        assert second["members"][0]["state"] == {"é": 1}
        _, all_of_them = await harness.get("/v1/presence", topic="doc:1", limit="1001")
        assert [each["member"] for each in all_of_them["members"]] == ids
        assert (await harness.get("/v1/presence", topic="doc:2"))[1] == {"topic": "doc:2", "count": 0, "members": []}
    for params, status, code in (
        ({}, 400, "BAD_REQUEST"),
        ({"topic": "x" * 300}, 413, "TOO_LARGE"),
        ({"topic": "nowhere"}, 404, "NOT_FOUND"),
        ({"topic": "doc:1", "limit": "0"}, 400, "BAD_REQUEST"),
        ({"topic": "doc:1", "all": "1"}, 400, "BAD_REQUEST"),
    ):
        found = await harness.get("/v1/presence", **params)
        assert (found[0], found[1]["error"]["code"]) == (status, code)
