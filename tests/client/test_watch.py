"""The command line's messages."""

import asyncio
from typing import Any

import pytest

from cluster.client import watch
from cluster.errors import ErrorCode, HarborError, UnavailableError
from tests.client.conftest import WELCOME, Line, StandIn
from tests.gateway.conftest import Harness

A: list[Any] = ["a", 1]


async def test_messages_as_they_come(harness: Harness) -> None:
    messages = watch(harness.url, ["a"], prefix=True, mode="patch")
    async with asyncio.timeout(60):
        assert (await anext(messages))["type"] == "snapshot_end"
        version = await harness.put('["a",1]', {"n": 1})
        change = await anext(messages)
        assert (change["type"], change["key"], change["from"], change["version"]) == ("change", A, 0, version)
        assert (await anext(messages))["type"] == "position"
        await messages.aclose()  # type: ignore[attr-defined]


async def test_it_continues_after_a_cut_and_resets_where_it_cannot(stand_in: StandIn) -> None:
    heard: list[dict[str, Any]] = []

    async def script(line: Line) -> None:
        await line.say(WELCOME)
        heard.append(await line.hear())
        name = heard[-1]["id"]
        change = {"type": "change", "sub": name, "key": A, "coalesced": 1}
        if line.number == 0:
            await line.say({"type": "snapshot_end", "sub": name, "position": "t1"})
            await line.say(
                {**change, "from": 0, "version": 3, "data": 1}, {"type": "position", "sub": name, "token": "t2"}
            )
            line.abort()
            return
        await line.say({**change, "from": 0, "version": 3, "data": 1}, {**change, "from": 3, "version": 4, "data": 2})
        await line.say({**change, "from": 9, "version": 10, "data": 3})
        heard.extend([await line.hear(), await line.hear()])
        await line.say({"type": "snapshot_end", "sub": heard[-1]["id"], "position": "t3"})
        await line.until_closed()

    stand_in.script = script
    seen = []
    async with asyncio.timeout(60):
        async for message in watch(stand_in.url, A):
            seen.append((message["type"], message.get("version")))
            if message.get("position") == "t3":
                break
    assert seen == [
        ("snapshot_end", None),
        ("change", 3),
        ("position", None),
        ("change", 4),
        ("reset", None),
        ("snapshot_end", None),
    ]
    assert [each.get("since") for each in heard] == [None, "t2", None, None]
    assert heard[2]["type"] == "unsubscribe"


async def test_it_begins_anew_where_its_token_is_not_taken_any_more(stand_in: StandIn) -> None:
    async def script(line: Line) -> None:
        await line.say(WELCOME)
        asked = await line.hear()
        if "since" in asked:
            await line.say(
                {"type": "error", "re": asked["id"], "code": "BAD_REQUEST", "message": "m", "temporary": False}
            )
            asked = await line.hear()
            assert "since" not in asked
        await line.say({"type": "snapshot_end", "sub": asked["id"], "position": "t"})
        if line.number:
            await line.until_closed()
        line.abort()

    stand_in.script = script
    messages = watch(stand_in.url, A)
    async with asyncio.timeout(60):
        assert [(await anext(messages))["type"] for _ in range(3)] == ["snapshot_end", "reset", "snapshot_end"]
    await messages.aclose()


async def test_errors(harness: Harness, nobody: str) -> None:
    async def first(*arguments: Any, **more: Any) -> None:
        async with asyncio.timeout(60):
            await anext(watch(*arguments, **more))

    with pytest.raises(UnavailableError, match=f"no cluster answers at {nobody}"):
        await first(nobody, A)
    with pytest.raises(HarborError, match="not an http:// or https:// URL: 'nonsense'"):
        await first("nonsense", A)
    with pytest.raises(HarborError) as caught:
        await first(harness.url, A, mode="both")
    assert caught.value.code is ErrorCode.BAD_REQUEST
