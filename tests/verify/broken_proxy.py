"""A proxy between clients and a gateway that breaks the contract in one way, once, after it has let some messages pass."""

import asyncio
from collections.abc import Callable
from typing import Any, Self

import aiohttp
import orjson
from aiohttp import WSMsgType, web

LET_PASS = 30
"""Changes of each connection."""
LET_WRITE = 3
Message = dict[str, Any]
Break = Callable[["Line", list[Message]], list[Message]]


class Line:
    """One connection's way back to its client."""

    def __init__(self) -> None:
        self.passed = 0
        self.is_broken = False
        self.held: Message | None = None


def _first_change(line: Line, messages: list[Message]) -> int | None:
    """Return where the first change of a frame is, once enough have passed and nothing was broken yet."""
    changes = [n for n, each in enumerate(messages) if each["type"] == "change" and each["from"]]
    line.passed += len(changes)
    return changes[0] if changes and line.passed > LET_PASS and not line.is_broken else None


def drop(line: Line, messages: list[Message]) -> list[Message]:
    """Lose a change."""
    at = _first_change(line, messages)
    if at is None:
        return messages
    line.is_broken = True
    return messages[:at] + messages[at + 1 :]


def double(line: Line, messages: list[Message]) -> list[Message]:
    """Say a change twice."""
    at = _first_change(line, messages)
    if at is None:
        return messages
    line.is_broken = True
    return [*messages[: at + 1], *messages[at:]]


def reorder(line: Line, messages: list[Message]) -> list[Message]:
    """Say a change after the next of the same entry."""
    if line.held is not None:
        after = [n for n, each in enumerate(messages) if each.get("key") == line.held["key"]]
        if after:
            held, line.held = line.held, None
            return [*messages[: after[0] + 1], held, *messages[after[0] + 1 :]]
        return messages
    at = _first_change(line, messages)
    if at is None:
        return messages
    line.is_broken, line.held = True, messages[at]
    return messages[:at] + messages[at + 1 :]


def falsify(line: Line, messages: list[Message]) -> list[Message]:
    """Say another value."""
    at = _first_change(line, messages)
    if at is None or "data" not in messages[at]:
        return messages
    line.is_broken = True
    messages[at]["data"]["t"] = 1
    return messages


def rewind(line: Line, messages: list[Message]) -> list[Message]:
    """Have an entry begin anew as it was."""
    at = _first_change(line, messages)
    if line.held is None:
        line.held = next((each for each in messages if each["type"] == "change" and "data" in each), None)
    elif at is not None and messages[at]["key"] == line.held["key"]:
        line.is_broken = True
        again = [{**line.held, "type": "reset"}, {**line.held, "type": "snapshot"}]
        return [*messages[: at + 1], *again, *messages[at + 1 :]]
    return messages


def honest(_: Line, messages: list[Message]) -> list[Message]:
    """Break nothing."""
    return messages


class BrokenProxy:
    """See the module. `loses_writes`: those of one key are answered, and not passed on, after the first few."""

    def __init__(self, to: str, breaks: Break = honest, *, loses_writes: bool = False) -> None:
        self._to = to
        self._breaks = breaks
        self._loses_writes = loses_writes
        self._writes = 0
        self._answers: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(auto_decompress=False)
        app = web.Application()
        app.router.add_get("/v1/socket", self._socket)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        if "Idempotency-Key" in request.headers and '"own",0]' in request.query.get("key", ""):
            self._writes += 1
            if self._loses_writes and self._writes > LET_WRITE and "base_version" not in request.query:
                await request.read()
                if request.method == "DELETE":
                    return web.Response(status=204)
                key = request.headers["Idempotency-Key"]
                version = self._answers.setdefault(key, 2**52 + self._writes)
                return web.json_response({"version": version})
        headers = {name: each for name, each in request.headers.items() if name.lower() not in ("host", "connection")}
        async with self._session.request(
            request.method, f"{self._to}{request.raw_path}", data=await request.read(), headers=headers
        ) as answer:
            kept = {name: each for name, each in answer.headers.items() if name.lower() in ("content-type", "etag")}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
            return response

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        here = web.WebSocketResponse(protocols=("harbor.v1",), max_msg_size=0)
        await here.prepare(request)
        line = Line()
        async with self._session.ws_connect(f"{self._to}/v1/socket", protocols=("harbor.v1",), max_msg_size=0) as there:

            async def forth() -> None:
                async for message in here:
                    await there.send_str(message.data)
                await there.close()

            async with asyncio.TaskGroup() as group:
                task = group.create_task(forth())
                async for message in there:
                    if message.type is not WSMsgType.TEXT or here.closed:
                        break
                    messages = self._breaks(line, orjson.loads(message.data))
                    try:
                        await here.send_str(orjson.dumps(messages).decode())
                    except ConnectionError:
                        break
                task.cancel()
        await here.close()
        return here
