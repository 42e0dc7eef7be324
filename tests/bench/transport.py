"""What a frame costs on each transport, from the socket to a listener: one stream, one event of about 165 bytes per frame, sent as fast as taken.

Two listeners: one that counts, which leaves the transport alone, and an `IngestionState`, which is what it feeds. Run as a module it is
the process that receives: `python -m tests.bench.transport PORT TRANSPORT LISTENER COUNT` prints a JSON line.
"""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import uvloop

from cluster.config import compile_config, load_mapping
from cluster.core.ingestion_state import IngestionState
from cluster.core.placement import assign_slots
from cluster.core.rule import Envelope
from cluster.sources import SourceState
from cluster.sources.websocket import WebSocketSource

SET = {"set": {"key": ["metrics", "{data.id}"], "value": "{data}"}}


def ingestion() -> IngestionState:
    """A machine whose source is open."""
    document = {
        "sources": {"blaster": {"type": "websocket", "url": "ws://blaster"}},
        "streams": [{"source": "blaster", "channel": "metrics", "join": "always", "on": {"metric": SET}}],
    }
    compiled = compile_config(load_mapping(document, {}))
    machine = IngestionState(
        "ingestor-0",
        1,
        routers={"blaster": compiled.router("blaster")},
        always=[("blaster", "metrics")],
        slots=assign_slots(range(4), 1),
        shards=4,
        coordinators=1,
        profiles=compiled.profiles,
    )
    machine.opened("blaster", time.time() * 1000)
    return machine


class Undisturbed:
    """What is no measurement's business, of a listener to a WebSocket: it comes to nothing, or must not come."""

    def position(self, source: str, channel: str | None = None) -> str | int | None:
        return None

    def opened(self, source: str) -> None: ...

    def received_events(self, source: str, events: Sequence[Envelope]) -> bool:
        raise AssertionError("a WebSocket has no server-sent events")

    def refused(self, source: str, reason: str, size_bytes: int, detail: str = "") -> None:
        raise AssertionError(reason)

    def closed(self, source: str, reason: str) -> None:
        raise AssertionError(reason)

    def state_changed(self, source: str, state: SourceState) -> None: ...


class Counter(Undisturbed):
    """A listener that stops the clock at the last frame."""

    def __init__(self, count: int, machine: IngestionState | None) -> None:
        self.left = count
        self.machine = machine
        self.done = asyncio.Event()
        self.refusals = 0
        self.began: tuple[float, float] | None = None
        self.took = (0.0, 0.0)

    def received(self, source: str, frames: Sequence[bytes]) -> bool:
        if self.began is None:
            self.began = time.perf_counter(), time.process_time()
        if self.machine is not None:
            self.machine.receive(source, frames, time.time() * 1000)
        self.left -= len(frames)
        if not self.left:
            self.took = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
            self.done.set()
        return True


async def receive(port: int, transport: str, listener: str, count: int) -> dict[str, float]:
    counter = Counter(count, ingestion() if listener == "ingestion" else None)
    source = WebSocketSource(
        "blaster",
        f"ws://127.0.0.1:{port}/",
        counter,
        subscribe_message=lambda channel, _last: json.dumps({"join": channel}),
        transport=transport,
    )
    source.join("metrics")
    task = asyncio.create_task(source.run())
    ended = asyncio.create_task(counter.done.wait())
    await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        await task
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    seconds, cpu = counter.took
    return {"frames_per_s": round(count / seconds), "cpu_us_per_frame": round(cpu / count * 1e6, 3)}


def transports(child: Any, count: int = 1_000_000) -> dict[str, Any]:
    """Each transport with each listener, one after the other; `child` starts a helper process."""
    found = {}
    for listener in ("counting", "ingestion"):
        for transport in ("websockets", "fast"):
            blaster = child("tests.bench.blaster")
            receiver = child("tests.bench.transport", blaster.line(), transport, listener, count)
            try:
                blaster.ask(f"flood {count}")
                found[f"{transport}, {listener}"] = json.loads(receiver.line())
            finally:
                receiver.stop()
                blaster.stop()
    return found


if __name__ == "__main__":
    print(json.dumps(uvloop.run(receive(int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])))), flush=True)
