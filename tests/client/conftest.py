"""A real gateway before shard machines in the same process, and a stand-in that says what a test tells it to."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import orjson
import pytest
from aiohttp import WSMsgType, web

from cluster.client import HarborClient
from cluster.core.retry import Backoff
from cluster.gateway import GatewayServer
from tests.gateway.conftest import Harness

AT_ONCE = Backoff(initial_ms=1.0, max_ms=5.0, attempts=10_000)
NEVER = Backoff(initial_ms=1e9, max_ms=1e9)
CUT, NO_ANSWER = -1, -2
"""In place of a status: the connection is cut, or nothing ever comes."""
WELCOME = {"type": "welcome", "session": "s", "server_time": 0, "ping_interval_ms": 25000, "resume_token": "s"}


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    harness = await Harness().start()
    yield harness
    await harness.stop()


def cut(harbor: HarborClient) -> None:
    """Lose the WebSocket without a word."""
    socket = harbor._connection.socket
    assert socket is not None
    socket.transport.abort()


async def revive(harness: Harness) -> None:
    """A gateway that knows what the stopped one knew, in its place."""
    harness.server = GatewayServer(
        harness.state,
        harness.clock,
        send=harness.send,
        rearm=harness.rearm,
        describe=harness.describe,
        scale=harness.scale,
        dead_letters=harness.dead_letters,
        copy=harness.copy,
    )
    await harness.server.start("127.0.0.1", harness.port)


class Line:
    """The stand-in's side of one WebSocket."""

    def __init__(self, number: int, socket: web.WebSocketResponse[Any]) -> None:
        self.number = number
        """0: the first connection."""
        self.socket = socket

    async def say(self, *messages: dict[str, Any]) -> None:
        await self.socket.send_bytes(orjson.dumps(list(messages)))

    async def hear(self) -> dict[str, Any]:
        message = await self.socket.receive()
        assert message.type is WSMsgType.TEXT, message
        return dict(orjson.loads(message.data))

    async def until_closed(self) -> None:
        while not self.socket.closed:
            await self.socket.receive()

    def abort(self) -> None:
        assert self.socket._req is not None
        transport = self.socket._req.transport
        assert transport is not None
        transport.abort()


class StandIn:
    """A server whose WebSocket follows a script and whose HTTP answers are given."""

    def __init__(self) -> None:
        self.script: Callable[[Line], Awaitable[None]] | None = None
        self.answers: list[tuple[int, bytes]] = []
        """Given in turn, the last one for ever."""
        self.requests: list[tuple[str, str, dict[str, str], Any, Mapping[str, str]]] = []
        """Method, path, parameters, body, headers."""
        self.connections = 0
        self.refuse_next = False
        """The next handshake gets an answer instead."""
        self.failure: BaseException | None = None

    async def start(self) -> "StandIn":
        application = web.Application()
        application.router.add_get("/v1/socket", self._socket)
        application.router.add_route("*", "/{rest:.*}", self._answer)
        self.runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        await self.runner.cleanup()
        if self.failure is not None:
            raise self.failure

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if self.script is None or self.refuse_next:
            self.refuse_next = False
            return await self._answer(request)
        socket = web.WebSocketResponse(protocols=("harbor.v1",))
        await socket.prepare(request)
        self.connections += 1
        try:
            await self.script(Line(self.connections - 1, socket))
        except Exception as error:
            self.failure = error
            raise
        return socket

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        body = orjson.loads(content) if content else None
        self.requests.append((request.method, request.path, dict(request.query), body, request.headers))
        status, answer = self.answers[min(len(self.requests), len(self.answers)) - 1]
        if status == NO_ANSWER:
            await asyncio.Event().wait()
        if status == CUT:
            assert request.transport is not None
            request.transport.abort()
            status = 500
        return web.Response(status=status, body=answer)


@pytest.fixture
async def stand_in() -> AsyncIterator[StandIn]:
    stand_in = await StandIn().start()
    yield stand_in
    await stand_in.stop()


@pytest.fixture
async def nobody() -> str:
    """The URL of a port that nobody listens on."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"http://127.0.0.1:{port}"
