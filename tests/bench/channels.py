"""What many channels on one connection cost the process that reads them: until all are joined, and in memory, before and after events.

Run as a module it is that process: `python -m tests.bench.channels COUNT` prints a JSON line. The upstream is another process.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil
import uvloop
from websockets.asyncio.server import ServerConnection, serve

from cluster.config import compile_config, load_mapping
from cluster.core.feed import Repeats
from cluster.core.ingestion_state import Effect, IngestionState, Join, SourceTraits
from cluster.core.messages import Blob, BlobTaken, Claimed, Demand, Header, Send
from cluster.core.placement import assign_slots
from cluster.sources.websocket import WebSocketSource
from tests.bench.transport import Undisturbed

SHARDS = 4
WINDOW = 500
"""Channels that are heard of in one window."""
RULES = {"set": {"key": ["room", "{id}"], "value": "{data}"}}


class Listener(Undisturbed):
    """An ingestor's machine, fed by a source."""

    def __init__(self) -> None:
        streams = [{"source": "s", "channel": "room:{id}", "on": {"said": RULES}}]
        document = {"sources": {"s": {"type": "websocket", "url": "ws://s"}}, "streams": streams}
        compiled = compile_config(load_mapping(document, {}))
        self.machine = IngestionState(
            "ingestor-0",
            1,
            routers={"s": compiled.router("s")},
            always=[],
            slots=assign_slots(range(SHARDS), 1),
            shards=SHARDS,
            coordinators=1,
            profiles=compiled.profiles,
            traits={"s": SourceTraits(Repeats.CHANNEL, has_ids=True)},
        )
        self.now_ms = 1e6
        self.run(self.machine.wake(self.now_ms))
        for shard in range(SHARDS):
            self.run(self.machine.claimed(Claimed(shard, 2, [], []), self.now_ms)[1])
        self.is_open, self.is_joined = asyncio.Event(), asyncio.Event()

    def run(self, effects: Sequence[Effect]) -> list[str]:
        """Have what is sent committed at once. Returns the channels to join."""
        joins = [effect.channel for effect in effects if isinstance(effect, Join)]
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Blob):
                taken = BlobTaken(1, 90.0, effect.message.header.sequence)
                joins += self.run(self.machine.answered("coordinator-0", effect.message, taken, self.now_ms))
        return joins

    def position(self, source: str, channel: str | None = None) -> str | int | None:
        return self.machine.resume_id(source, channel)

    def opened(self, source: str) -> None:
        self.run(self.machine.opened(source, self.now_ms))
        self.is_open.set()

    def received(self, source: str, frames: Sequence[bytes]) -> bool:
        self.is_joined.set()
        return True


def resident() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


async def measure(count: int) -> dict[str, Any]:
    upstream = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.channels", str(count), "upstream", stdout=asyncio.subprocess.PIPE
    )
    assert upstream.stdout is not None
    url = f"ws://127.0.0.1:{int(await upstream.stdout.readline())}"
    listener = Listener()
    machine = listener.machine
    source = WebSocketSource("s", url, listener, subscribe_message=lambda channel, _: json.dumps({"join": channel}))
    running = asyncio.create_task(source.run())
    await listener.is_open.wait()
    before, began = resident(), time.perf_counter()
    rooms = [("s", f"room:{n}") for n in range(count)]
    _, effects = machine.demand(Demand(Header("shard-0", 1, 0, 1), 1, False, rooms, []), listener.now_ms)
    for channel in listener.run(effects):
        source.join(channel)
    await listener.is_joined.wait()
    joined_s, joined = time.perf_counter() - began, resident()
    for n in range(count):
        machine.receive("s", [b'{"event":"said","channel":"room:%d","data":{"n":1},"id":%d}' % (n, n)], listener.now_ms)
        if n % WINDOW == 0 or n == count - 1:
            listener.now_ms += 200
            listener.run(machine.wake(listener.now_ms))
    assert not machine.bytes_pending
    heard = resident()
    running.cancel()
    upstream.kill()
    await upstream.wait()
    return {
        "channels": count,
        "joined_s": round(joined_s, 2),
        "bytes_per_channel": round((joined - before) / count),
        "bytes_per_channel_heard": round((heard - before) / count),
    }


async def answer(count: int) -> None:
    """Be an upstream that says something when it was asked for so many channels."""

    async def hear(connection: ServerConnection) -> None:
        asked = 0
        async for _ in connection:
            asked += 1
            if asked == count:
                await connection.send('{"event":"joined"}')

    async with serve(hear, "127.0.0.1", 0, ping_interval=None) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await asyncio.Future()


if __name__ == "__main__":
    number = int(sys.argv[1])
    if sys.argv[2:] == ["upstream"]:
        uvloop.run(answer(number))
    else:
        print(json.dumps(uvloop.run(measure(number))), flush=True)
