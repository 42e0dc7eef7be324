"""A configuration that is taken while clients are there, before a real server."""

from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from cluster.core import template
from cluster.core.limits import Limits
from cluster.core.presence_room import Pattern
from tests.gateway.conftest import Harness, until
from tests.gateway.test_connections import GET, Raw, serving

APP = "https://app.example"
KEY = '["a"]'


async def answered(socket: ClientConnection, *messages: dict[str, Any]) -> list[Any]:
    """Send messages, and return what was wrong with each."""
    await socket.send(orjson.dumps([*messages, {"type": "ping", "id": "last"}]))
    said: list[dict[str, Any]] = []
    while not any(each["type"] == "pong" and each["re"] == "last" for each in said):
        frame = orjson.loads(await socket.recv())
        said += frame
    return [each["details"]["limit"] for each in said if each["type"] == "error"]


async def test_a_session_that_is_there_has_the_limits_that_are_said_now(harness: Harness) -> None:
    async with harness.socket() as socket:
        await until(socket, "welcome")
        subscribe = [{"type": "subscribe", "id": n, "key": ["a", n]} for n in range(5)]
        assert await answered(socket, *subscribe[:2]) == []
        harness.reconfigure(Limits(subscriptions=3))
        assert await answered(socket, *subscribe[2:]) == ["subscriptions"] * 2
        harness.reconfigure(Limits(frame_bytes=100))
        await socket.send(orjson.dumps({"type": "ping", "id": "x" * 100}))
        assert (await until(socket, "error"))[-1]["details"] == {"limit": "frame", "value": 100}


async def test_a_session_that_is_there_is_as_fast_as_is_said_now(harness: Harness) -> None:
    async with harness.socket() as socket:
        await until(socket, "welcome")
        pings = [{"type": "ping", "id": n} for n in range(3)]
        assert await answered(socket, *pings) == []
        harness.reconfigure(Limits(commands=0.001, commands_burst=4))
        assert await answered(socket, *pings) == []
        await socket.send(orjson.dumps(pings[0]))
        assert (await until(socket, "error"))[-1]["details"]["limit"] == "commands"


async def test_a_rate_that_is_as_it_was_goes_on(harness: Harness) -> None:
    limits = Limits(commands=0.001, commands_burst=3, requests=0.001, requests_burst=2)
    harness.reconfigure(limits)
    async with harness.socket() as socket:
        await until(socket, "welcome")
        assert await answered(socket, {"type": "ping", "id": 1}) == []
        harness.reconfigure(Limits(**{**{n: getattr(limits, n) for n in limits.__struct_fields__}, "streams": 7}))
        assert await answered(socket) == []
        await socket.send(orjson.dumps({"type": "ping", "id": 1}))
        assert (await until(socket, "error"))[-1]["details"]["limit"] == "commands"
    assert (await harness.get("/v1/keys"))[0] == 200  # the socket was the first
    assert (await harness.get("/v1/keys"))[0] == 429


async def test_presence_is_as_fast_as_is_said_now() -> None:
    harness = await Harness(patterns=(Pattern(template.parse("t"), 30_000.0, 75_000.0),)).start()
    try:
        async with harness.socket() as socket:
            await until(socket, "welcome")
            states = [{"type": "presence", "id": n, "topic": "t", "state": {"n": n}} for n in range(4)]
            assert await answered(socket, *states[:1]) == []
            harness.reconfigure(Limits(presence_updates=1.0))
            assert await answered(socket, *states[1:]) == ["presence_updates"] * 2
    finally:
        await harness.stop()


async def test_who_comes_meets_the_limits_that_are_said_now(harness: Harness) -> None:
    async with harness.socket() as socket:
        await until(socket, "welcome")
        harness.reconfigure(Limits(sessions_per_address=1, streams=0))
        with pytest.raises(InvalidStatus):
            await harness.socket()
        async with harness.http.get("/v1/stream", params={"key": KEY}) as response:
            assert (await response.json())["error"]["details"]["limit"] == "streams"
        harness.reconfigure(Limits(requests=0.001, requests_burst=1, body_bytes=10))
        assert (await harness.get("/v1/keys"))[0] == 200
        assert (await harness.get("/v1/keys"))[0] == 429
        harness.reconfigure(Limits(body_bytes=10))
        async with harness.http.put("/v1/entries", params={"key": KEY}, data=b'"01234567890"') as response:
            assert (await response.json())["error"]["details"] == {"limit": "body", "value": 10}


async def test_connections_are_as_many_and_read_as_is_said_now() -> None:
    async with serving(Limits()) as harness:
        first = await Raw.to(harness)
        await first.say(GET, b"\r\n")
        assert (await first.answer())[0] == 200
        harness.reconfigure(Limits(connections=2, header_bytes=100, headers_bytes=200, header_count=9))
        second = await Raw.to(harness)
        await second.say(GET, b"X: ", b"x" * 150, b"\r\n\r\n")
        status, _, error = await second.answer()
        assert (status, error["error"]["details"]) == (431, {"limit": "header", "value": 100})
        await second.until_closed()
        await first.say(GET, b"".join(b"X%d: %s\r\n" % (n, b"x" * 80) for n in range(3)), b"\r\n")
        status, _, error = await first.answer()
        assert (status, error["error"]["details"]) == (431, {"limit": "headers", "value": 200})
        await first.until_closed()


async def test_a_connection_that_is_made_now_idles_as_long_as_is_said_now() -> None:
    async with serving(Limits()) as harness:
        harness.reconfigure(Limits(idle_ms=50))
        raw = await Raw.to(harness)
        await raw.say(GET, b"\r\n")
        assert (await raw.answer())[0] == 200
        assert await raw.until_closed() == b""  # which does not wait as long as by default


async def test_an_outbox_holds_what_is_said_now(harness: Harness) -> None:
    harness.reconfigure(outbox_bytes=65536)
    assert harness.state.outbox_limit == 65536


async def test_pages_and_proxies_are_those_that_are_said_now(harness: Harness) -> None:
    page = {"Origin": APP, "X-Forwarded-For": "9.9.9.9"}
    async with harness.http.get("/v1/keys", headers=page) as response:
        assert response.status == 403
        assert "Strict-Transport-Security" not in response.headers
    harness.reconfigure(
        Limits(connections_per_address=1, sessions_per_address=1),
        origins=(APP,),
        trusted_proxies=("127.0.0.1",),
        hsts_s=60,
    )
    own = {"Host": "app.example"}
    async with harness.http.get("/v1/keys", headers=page | own) as response:
        assert response.status == 200
        assert response.headers["Strict-Transport-Security"] == "max-age=60"
        assert response.headers["Access-Control-Allow-Origin"] == APP
    one, other = ({"X-Forwarded-For": address} for address in ("9.9.9.9", "8.8.8.8"))
    async with harness.socket(additional_headers=one), harness.socket(additional_headers=other):
        with pytest.raises(InvalidStatus):
            await harness.socket(additional_headers=one)
