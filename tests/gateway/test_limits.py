"""Every limit that the documentation names: what whoever is beyond it is told, and that it is counted under that name."""

import ast
import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from websockets.exceptions import ConnectionClosed

import cluster
from cluster.core import gateway_mutations, gateway_state, mutation_shares, shard_state, template, work
from cluster.core.grants import ApiKeys, Grants, line
from cluster.core.limits import Limits
from cluster.core.mutation import DeclaredMutation
from cluster.core.presence_room import Pattern
from cluster.gateway import connections, server
from tests.gateway.conftest import Harness, until
from tests.gateway.test_connections import GET, Raw, holds, serving

DOCUMENT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
KEY = '["a"]'
ENTRY = f"/v1/entries?key={KEY}"
DOCUMENTS = (Pattern(template.parse("doc:{id}"), 30_000.0, 75_000.0),)
Told = tuple[str | int | None, dict[str, Any] | None]
"""The code of an error with its details, or that with which a socket was closed; None: the connection ended."""


def documented() -> dict[str, str]:
    """What is said of each limit, by name."""
    section = DOCUMENT.partition("### Limits")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (`[^|]+) \|[^|]+\| (.+) \|$", section, re.MULTILINE)
    named = {name: text for names, text in rows for name in re.findall("`([a-z_]+)`", names)}
    fixed = section.partition("\nFixed: ")[2]
    named.update(dict.fromkeys(re.findall(r"\(`([a-z_]+)`", fixed), ""))
    return {name: text for name, text in named.items() if not name.endswith("_burst")}  # of the limit before it


async def ask(harness: Harness, path: str, method: str = "GET", **more: Any) -> Told:
    async with harness.http.request(method, path, **more) as response:
        error = (await response.json())["error"]
        return error["code"], error["details"]


async def say(harness: Harness, *frames: Any, **more: Any) -> Told:
    """Send frames on one socket, up to an error or its end."""
    async with harness.socket(**more) as socket:
        try:
            for frame in frames:
                await socket.send(orjson.dumps(frame).decode())
            error = next(each for each in await until(socket, "error") if each["type"] == "error")
        except ConnectionClosed:
            return socket.close_code, None
        return error["code"], error["details"]


async def write(harness: Harness, *pieces: bytes) -> Told:
    """Send what is no whole request, or more; the last answer counts."""
    raw = await Raw.to(harness)
    await raw.say(*pieces)
    said = await raw.until_closed()
    if not said.rpartition(b"\r\n\r\n")[2].startswith(b"{"):
        return None, None
    error = orjson.loads(said.rpartition(b"\r\n\r\n")[2])["error"]
    return error["code"], error["details"]


async def beside_a_socket(harness: Harness, path: str = f"/v1/stream?key={KEY}", **more: Any) -> Told:
    """Ask while there is a socket."""
    async with harness.socket(additional_headers=more.get("headers")) as socket:
        await until(socket, "welcome")
        return await ask(harness, path, **more)


async def beside_a_connection(harness: Harness) -> Told:
    kept = await Raw.to(harness)
    await kept.say(GET, b"\r\n")
    await kept.answer()
    try:
        return await write(harness)
    finally:
        kept.writer.close()


async def beside_a_stream(harness: Harness) -> Told:
    async with harness.http.get("/v1/stream", params={"key": KEY}):
        return await ask(harness, f"/v1/stream?key={KEY}")


async def as_one_subject(harness: Harness) -> Told:
    harness.state.authority = ApiKeys.parse(line("a", "hk_a", Grants(read=[[]])))
    return await beside_a_socket(harness, headers={"X-API-Key": "hk_a"})


async def without_hello(harness: Harness) -> Told:
    harness.state.authority = ApiKeys.parse(line("a", "hk_a", Grants(read=[[]])))
    return await say(harness)


async def twice(harness: Harness) -> Told:
    await harness.get("/v1/keys")
    return await ask(harness, "/v1/keys")


async def unanswered(harness: Harness, *frames: Any) -> Told:
    harness.call = lambda effect: None  # type: ignore[method-assign]
    harness.state.mutations.declared = {"note": DeclaredMutation("note", "api", "POST", template.parse("/notes"))}
    return await say(harness, *frames)


async def waits(harness: Harness, *sizes: int, key: str = "") -> Told:
    """Begin mutations that wait; the last is refused."""
    path, scope = template.parse("/notes"), template.parse("one")
    declared = {"note": DeclaredMutation("note", "api", "POST", path, scope=scope, delay_ms=60_000.0)}
    harness.state.mutations.declared = declared
    for shard in harness.shards.values():
        shard.mutations.queue._declared = declared
    headers = {}
    if key:
        harness.state.authority = ApiKeys.parse(line("a", key, Grants(mutate=["*"])))
        headers["X-API-Key"] = key
    *first, last = ({"id": f"m{n}", "name": "note", "variables": {"x": "x" * size}} for n, size in enumerate(sizes))
    for body in first:
        async with harness.http.post("/v1/mutations", json=body, headers=headers) as response:
            assert response.status == 200
    return await ask(harness, "/v1/mutations", "POST", json=last, headers=headers)


async def grow(harness: Harness, operations: int = 1) -> Told:
    await harness.put(KEY, ["x" * 40])
    return await ask(harness, ENTRY, "PATCH", json={"operations": [{"append": {"item": "x" * 100}}] * operations})


def mutates(n: int) -> dict[str, Any]:
    return {"type": "mutate", "id": n, "name": "note", "variables": {}}


def is_present(n: int, state: Any = None) -> dict[str, Any]:
    return {"type": "presence", "id": n, "topic": f"doc:{n}", "state": state}


class Case(NamedTuple):
    code: str | int | None
    provoke: Callable[[Harness], Awaitable[Told]]
    limits: Limits = Limits()


DEEP = "[" * 40 + "]" * 40
CASES: dict[str, Case] = {
    "operations": Case("TOO_LARGE", lambda it: grow(it, 9)),
    "edit_steps": Case("TOO_LARGE", grow),
    "frame": Case("TOO_LARGE", lambda it: say(it, {"type": "x" * 100}), Limits(frame_bytes=100)),
    "body": Case("TOO_LARGE", lambda it: ask(it, ENTRY, "PUT", data="x" * 200), Limits(body_bytes=100)),
    "request_line": Case("TOO_LARGE", lambda it: write(it, b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\n\r\n")),
    "header": Case("TOO_LARGE", lambda it: write(it, GET + b"X: " + b"x" * 9_000 + b"\r\n\r\n")),
    "headers": Case(
        "TOO_LARGE", lambda it: write(it, GET + b"X: " + b"x" * 90 + b"\r\n\r\n"), Limits(headers_bytes=50)
    ),
    "header_count": Case("TOO_MANY", lambda it: write(it, GET + b"X: 1\r\n" * 200 + b"\r\n")),
    "subscriptions": Case(
        "TOO_MANY",
        lambda it: say(it, *({"type": "subscribe", "id": n, "key": ["k", n]} for n in range(2))),
        Limits(subscriptions=1),
    ),
    "connections": Case("UNAVAILABLE", beside_a_connection, Limits(connections=1)),
    "connections_per_address": Case("TOO_MANY", beside_a_connection, Limits(connections_per_address=1)),
    "sessions_per_address": Case("TOO_MANY", beside_a_socket, Limits(sessions_per_address=1)),
    "sessions_per_subject": Case("TOO_MANY", as_one_subject, Limits(sessions_per_subject=1)),
    "streams": Case("TOO_MANY", beside_a_stream, Limits(streams=1)),
    "commands": Case(
        "LIMITED", lambda it: say(it, {"type": "ping"}, {"type": "ping"}), Limits(commands=0.001, commands_burst=1)
    ),
    "requests": Case("LIMITED", twice, Limits(requests=0.001, requests_burst=1)),
    "presence_updates": Case("LIMITED", lambda it: say(it, *map(is_present, range(3))), Limits(presence_updates=0.001)),
    "buffers": Case(None, lambda it: write(it, GET + b"X: " + b"x" * 5_000), Limits(buffers_bytes=1_000)),
    "hello_within": Case(3504, without_hello, Limits(hello_within_ms=50)),
    "head_within": Case("TIMEOUT", lambda it: write(it, GET), Limits(head_within_ms=50)),
    "body_within": Case(
        "TIMEOUT",
        lambda it: write(it, b'PUT /v1/entries?key=["a"] HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n1'),
        Limits(body_within_ms=50),
    ),
    "idle": Case(None, lambda it: write(it, GET + b"\r\n"), Limits(idle_ms=50)),
    "key": Case("TOO_LARGE", lambda it: ask(it, f'/v1/entries?key=["{"x" * 2_000}"]')),
    "depth": Case("TOO_DEEP", lambda it: ask(it, f"/v1/entries?key={DEEP}")),
    "frame_messages": Case("TOO_MANY", lambda it: say(it, [{"type": "ping"}] * 1_025)),
    "open_requests": Case(
        "TOO_MANY", lambda it: unanswered(it, *({"type": "get", "id": n, "key": ["k", n]} for n in range(2)))
    ),
    "mutations": Case("TOO_MANY", lambda it: unanswered(it, mutates(1), mutates(2))),
    "variables": Case("TOO_LARGE", lambda it: waits(it, 300_000)),
    "waiting_mutations": Case("TOO_MANY", lambda it: waits(it, 1, 1)),
    "waiting_bytes": Case("TOO_MANY", lambda it: waits(it, 1_000)),
    "waiting_mutations_per_account": Case("TOO_MANY", lambda it: waits(it, 1, 1, key="hk_a")),
    "waiting_bytes_per_account": Case("TOO_MANY", lambda it: waits(it, 500, key="hk_a")),
    "presence_topics": Case("TOO_MANY", lambda it: say(it, *map(is_present, range(65))), Limits(presence_updates=99)),
    "topic": Case("TOO_LARGE", lambda it: ask(it, f"/v1/presence?topic={'x' * 300}")),
    "presence_state": Case("TOO_LARGE", lambda it: say(it, is_present(1, "x" * 5_000))),
    "value": Case("TOO_LARGE", grow),
    "sessions": Case("UNAVAILABLE", beside_a_socket),
}


@pytest.mark.parametrize("name", documented())
async def test_who_is_beyond_a_limit_is_told_which_and_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOOK_S", 0.01)
    monkeypatch.setattr(server, "COMMANDS", 1 if name == "open_requests" else 10)
    monkeypatch.setattr(gateway_mutations, "FOLLOWED", 1)
    monkeypatch.setattr(shard_state, "MAX_EDITED_BYTES", 50)
    monkeypatch.setattr(gateway_state, "MAX_SESSIONS", 1 if name == "sessions" else 10)
    if name.startswith("waiting_"):
        monkeypatch.setattr(mutation_shares, "MAX_UNSETTLED", 10 if "account" in name else 1)
        monkeypatch.setattr(mutation_shares, "MAX_UNSETTLED_BYTES", 1_000)
    monkeypatch.setattr(work, "MAX_OPERATIONS", 2)
    if name == "edit_steps":
        monkeypatch.setattr(shard_state, "MAX_STEPS", 0)
    case = CASES[name]
    async with serving(case.limits, patterns=DOCUMENTS) as harness:
        async with asyncio.timeout(60):
            code, details = await case.provoke(harness)
        assert code == case.code
        if isinstance(code, str):
            assert details is not None
            assert (details["limit"], set(details) - {"retry_after_ms"}) == (name, {"limit", "value"})
            assert ("retry_after_ms" in details) == (code == "LIMITED")
        if text := documented()[name]:
            assert code is None or f"`{code}`" in text or f": {code}" in text, "as it is documented"
        await holds(lambda: set(harness.state.limited) == {name})


async def test_a_frame_that_is_far_too_long_is_counted_too() -> None:
    async with serving(Limits(frame_bytes=100)) as harness:
        assert await say(harness, "x" * 300) == (1009, None)
        await holds(lambda: harness.state.limited == {"frame": 1})
        async with harness.socket() as socket:
            await until(socket, "welcome")
            await socket.close(1009)
        await holds(lambda: not harness.state.sessions)
        assert harness.state.limited == {"frame": 1}, "what the peer says alone is not"


def test_every_limit_that_is_met_is_documented() -> None:
    met: set[Any] = set()
    for path in (Path(cluster.__file__).parent / each for each in ("core", "gateway")):
        for module in path.glob("*.py"):
            for node in ast.walk(ast.parse(module.read_text())):
                name = getattr(getattr(node, "func", None), "id", "")
                if (
                    isinstance(node, ast.Call)
                    and name in ("refuse", "LimitError")
                    and isinstance(node.args[1], ast.Constant)
                ):
                    met.add(node.args[1].value)
    assert len(met) > 15
    assert met <= set(documented())
