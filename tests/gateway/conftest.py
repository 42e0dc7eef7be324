"""A real server on a free port, before shard machines in the same process."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect

from cluster.clock import SystemClock
from cluster.core import template
from cluster.core.dead_letters import DeadLetter
from cluster.core.declared_query import DeclaredQuery, Response
from cluster.core.gateway_state import GatewayState
from cluster.core.infinite import OffsetPaging
from cluster.core.limits import Limits
from cluster.core.messages import ChangeSet, Requests, Send
from cluster.core.placement import assign_slots
from cluster.core.presence_room import Pattern
from cluster.core.session_state import OUTBOX_BYTES
from cluster.core.shard_state import ShardState, StartFetch
from cluster.gateway import GatewayServer
from cluster.wire.backup import Done, Piece, StepAnswer, Whole
from tests.in_process import TOKENS, new_shard
from tests.live import free_port

QUERIES = [
    DeclaredQuery(key=template.parse(["q", "{id}"]), service="api", path=template.parse("/q/{id}"), retry=0),
    DeclaredQuery(
        key=template.parse(["pages"]),
        service="api",
        path=template.parse("/pages"),
        paging=OffsetPaging(page_size=2, step=2),
    ),
]


class Harness:
    def __init__(
        self,
        shards: int = 2,
        origins: tuple[str, ...] = (),
        patterns: tuple[Pattern, ...] = (),
        limits: Limits | None = None,
        trusted_proxies: tuple[str, ...] = (),
        hsts_s: int = 0,
    ) -> None:
        self.clock = SystemClock()
        self.loop = asyncio.get_running_loop()
        now_ms = self.clock.now_ms()
        self.shards: dict[str, ShardState] = {
            f"shard-{n}": new_shard(n, 5, now_ms, QUERIES, ["gateway-0"]) for n in range(shards)
        }
        self.state = GatewayState(
            "gateway-0",
            7,
            slots=assign_slots(range(shards), 1),
            shards=shards,
            tokens=TOKENS,
            patterns=patterns,
            limits=limits,
        )
        self.shard_timers: dict[str, asyncio.TimerHandle] = {}
        self.server = GatewayServer(
            self.state,
            self.clock,
            send=self.send,
            rearm=self.rearm,
            describe=self.describe,
            scale=self.scale,
            dead_letters=self.dead_letters,
            copy=self.copy,
            origins=origins,
            trusted_proxies=trusted_proxies,
            hsts_s=hsts_s,
        )
        self.timer: asyncio.TimerHandle | None = None
        self.calls = 0
        self.steps: list[tuple[int, str, str, int]] = []
        """Of backups."""
        self.reachable = True
        self.fetches: list[tuple[ShardState, StartFetch]] = []

    async def start(self) -> "Harness":
        self.port = await self.server.start("127.0.0.1", free_port())
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = aiohttp.ClientSession(self.url)
        return self

    async def stop(self) -> None:
        await self.http.close()
        await self.server.drain()
        for timer in [self.timer, *self.shard_timers.values()]:
            if timer is not None:
                timer.cancel()

    def reconfigure(self, limits: Limits | None = None, outbox_bytes: int = OUTBOX_BYTES, **said: Any) -> None:
        """Take a configuration that says this and nothing else."""
        said = {"origins": (), "trusted_proxies": (), "hsts_s": 0, **said}
        self.server.reconfigure(limits or Limits(), outbox_bytes, **said)

    async def describe(self) -> dict[str, Any]:
        return {"name": "test", "ready": True, "waits_for": [], "shards": [{"id": n} for n in range(len(self.shards))]}

    async def scale(self, counts: dict[str, int]) -> None:
        self.scaled = counts

    async def dead_letters(self) -> list[DeadLetter]:
        return [DeadLetter(5, "s", None, "e", "not_json", "why", "\x1b[", 2)]

    async def copy(self, shard: int, step: str, backup: str, number: int) -> StepAnswer:
        """A step of a backup; a test may put another in its place."""
        self.steps.append((shard, step, backup, number))
        if step != "piece":
            return Done(1)
        return Piece(b"rows of %d" % shard, Whole(shard, 5, 1, 0.0, {}, "") if number else None)

    # --- the shards' side ---

    def send(self, effect: Send) -> None:
        self.loop.call_soon(self.call, effect)

    def call(self, effect: Send) -> None:
        if not self.reachable:
            self.server.run(self.state.unanswered(effect.to, effect.message, self.clock.now_ms()))
            return
        assert isinstance(effect.message, Requests)
        self.calls += 1
        shard = self.shards[effect.to]
        answer, effects = shard.requests(effect.message, self.clock.now_ms())
        self.server.run(self.state.answered(effect.to, effect.message, answer, self.clock.now_ms()))
        self.run(shard, effects)

    def run(self, shard: ShardState, effects: list[Any]) -> None:
        for effect in effects:
            match effect:
                case Send(to="gateway-0", message=ChangeSet() as message):
                    answer, more = self.state.change_set(message, self.clock.now_ms())
                    self.server.run(more)
                    self.run(shard, shard.answered("gateway-0", message, answer, self.clock.now_ms()))
                case StartFetch():
                    self.fetches.append((shard, effect))
        if self.state.presence.patterns:
            self.rearm_shard(shard)

    def rearm_shard(self, shard: ShardState) -> None:
        """Keep a shard's timer, for what it sends by itself."""
        if (timer := self.shard_timers.pop(shard.identity, None)) is not None:
            timer.cancel()
        if (due := shard.deadline()) is not None:
            after_s = max(0.0, due - self.clock.now_ms()) / 1000

            def wake() -> None:
                self.run(shard, shard.wake(self.clock.now_ms()))

            self.shard_timers[shard.identity] = self.loop.call_later(after_s, wake)

    def fetched(self, result: Any) -> None:
        shard, fetch = self.fetches.pop(0)
        response = Response(result) if isinstance(result, bytes) else result
        self.run(shard, shard.fetched(fetch, response, self.clock.now_ms()))

    def rearm(self) -> None:
        due = self.state.deadline()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if due is not None:
            self.timer = self.loop.call_later(max(0.0, due - self.clock.now_ms()) / 1000, self.wake)

    def wake(self) -> None:
        self.server.run(self.state.wake(self.clock.now_ms()))

    # --- the client's side ---

    async def put(self, key: str, data: Any, **more: Any) -> int:
        async with self.http.put("/v1/entries", params={"key": key}, data=orjson.dumps(data), **more) as response:
            assert response.status == 200, await response.text()
            return int((await response.json())["version"])

    async def get(self, path: str, **params: Any) -> tuple[int, Any]:
        async with self.http.get(path, params=params) as response:
            return response.status, orjson.loads(await response.read())

    def socket(self, **more: Any) -> connect:
        return connect(f"ws://127.0.0.1:{self.port}/v1/socket", subprotocols=["harbor.v1"], **more)


async def until(socket: ClientConnection, kind: str) -> list[dict[str, Any]]:
    """Receive messages up to the first of a type."""
    messages: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while True:
            frame = orjson.loads(await socket.recv())
            assert isinstance(frame, list)
            messages.extend(frame)
            if any(message["type"] == kind for message in frame):
                return messages


@pytest.fixture
async def harness() -> AsyncIterator[Harness]:
    harness = await Harness().start()
    yield harness
    await harness.stop()
