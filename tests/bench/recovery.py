"""How long clients hear nothing when a process dies, and how soon a cluster that starts again serves what it had.

Events come at 2,000 a second, so that there is news of some key in every window, and what a client misses is the cluster's doing. A process
is killed; the silence ends with the first change, at a client of a key that the process had to do with, of an event sent after the kill.
"""

import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import psutil
import ray
import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from cluster.core.placement import assign_slots
from cluster.core.query_key import CanonicalKey
from tests.live import LiveCluster, eventually, free_port

RATE = 2_000
KILLS = 5
"""Of each kind of actor."""
ENTRIES, ENTRY_BYTES = 100_000, 1_024
LOT = 250
"""Writes under way at once."""
VICTIMS = ("shard-0", "coordinator-0", "ingestor-0", "gateway-0")


@contextmanager
def _ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    try:
        yield
    finally:
        ray.shutdown()


def kills(replicas: int) -> dict[str, Any]:
    """Kill each kind of actor `KILLS` times."""
    port = free_port()
    command = [sys.executable, "-m", "tests.e2e.ledger_upstream", str(port), str(RATE)]
    with subprocess.Popen(command) as upstream, _ray(), TemporaryDirectory() as directory:
        live = LiveCluster(
            {
                "cluster": {"replicas": replicas},
                "storage": {"path": directory},
                "sources": {
                    "ledger": {
                        "type": "websocket",
                        "url": f"ws://127.0.0.1:{port}/ws",
                        "subscribe": {"join": "{channel}", "after": "{last_event_id}"},
                        "reconnect": {"initial": "50ms", "max": "200ms"},
                    }
                },
                "streams": [
                    {
                        "source": "ledger",
                        "channel": f"ledger:{n}",
                        "join": "always",
                        "on": {"set": {"set": {"key": ["last", "{data.k}"], "value": "{data.n}"}}},
                    }
                    for n in range(2)
                ],
            }
        ).start()
        try:
            return uvloop.run(_kill_each(live))
        finally:
            live.stop()
            upstream.kill()


async def _kill_each(live: LiveCluster) -> dict[str, Any]:
    client = _Client(live)
    reading = asyncio.create_task(client.read())
    try:
        found: dict[str, Any] = {}
        for victim in VICTIMS:
            silences = [await _silence(live, client, victim) for _ in range(KILLS)]
            found[f"{victim.partition('-')[0]}_p50_s"] = round(statistics.median(silences), 2)
            found[f"{victim.partition('-')[0]}_max_s"] = round(max(silences), 2)
        return found
    finally:
        reading.cancel()


async def _silence(live: LiveCluster, client: "_Client", victim: str) -> float:
    await client.heard_of(victim, client.last)  # it runs well
    pid = (await asyncio.to_thread(live.pids))[victim]
    last = client.last
    os.kill(pid, signal.SIGKILL)
    began = time.perf_counter()
    # Events were under way: those that count were sent later, a window's worth and more.
    await client.heard_of(victim, last + RATE // 4)
    silence = time.perf_counter() - began
    await asyncio.to_thread(eventually, lambda: live.pids().get(victim) not in (None, pid), "it lives again")
    await asyncio.to_thread(eventually, lambda: live.supervisor.describe()["ready"])
    return silence


class _Client:
    """Watches everything, and comes back with its token."""

    def __init__(self, live: LiveCluster) -> None:
        self._url = live.url
        self._slots = assign_slots(range(live.config.cluster.shards), 1)
        self.last = 0
        """Number of the latest event."""
        self._news = asyncio.Event()
        self._heard: dict[int, int] = {}
        """The same by shard."""

    async def read(self) -> None:
        token: str | None = None
        while True:
            with suppress(OSError, WebSocketException):
                async with _socket(self._url) as socket:
                    since = {} if token is None else {"since": token}
                    message = {"type": "subscribe", "id": 1, "prefix": ["last"], **since}
                    await socket.send(orjson.dumps(message).decode())
                    async for frame in socket:
                        for said in orjson.loads(frame):
                            if said["type"] == "position":
                                token = said["token"]
                            elif "data" in said:
                                self._hear(said)
                        self._news.set()
            await asyncio.sleep(0.02)  # a client's pause before it tries again

    def _hear(self, said: dict[str, Any]) -> None:
        number = int(said["data"])
        shard = self._slots.shard(CanonicalKey(orjson.dumps(said["key"]).decode()))
        self._heard[shard] = max(number, self._heard.get(shard, 0))
        self.last = max(self.last, number)

    async def heard_of(self, actor: str, number: int) -> None:
        """Wait for an event later than `number`, of a shard's own keys where the actor is one."""
        shard = int(actor.partition("-")[2]) if actor.startswith("shard") else None
        while (self.last if shard is None else self._heard.get(shard, 0)) <= number:
            self._news.clear()
            await self._news.wait()


def restart() -> dict[str, Any]:
    """Fill a cluster, end its Ray, start both anew: how long from Ray's being up until all shards serve."""
    with TemporaryDirectory() as directory:
        with _ray():
            live = LiveCluster({"cluster": {"shards": 4}, "storage": {"path": directory}}).start()
            uvloop.run(_fill(live.url))
            live.stop()
        with _ray():
            began = time.perf_counter()
            live.start()
            ready_s = time.perf_counter() - began
            shards = live.supervisor.describe()["shards"]
            rss = sum(psutil.Process(shard["pid"]).memory_info().rss for shard in shards)
            live.stop()
    count = sum(int(shard["keys"]) for shard in shards)
    assert count == ENTRIES, f"{count} entries of {ENTRIES}"
    return {"entries": count, "serving_s": round(ready_s, 2), "shards_rss_mib": round(rss / 2**20)}


async def _fill(url: str) -> None:
    pad = random.Random(1).randbytes(ENTRY_BYTES // 2).hex()[: ENTRY_BYTES - 16]
    async with _socket(url) as socket:
        for first in range(0, ENTRIES, LOT):
            lot = [
                {"type": "set", "id": n, "key": ["entry", n], "data": {"n": n, "pad": pad}}
                for n in range(first, first + LOT)
            ]
            await socket.send(orjson.dumps(lot).decode())
            open_ = {message["id"] for message in lot}
            while open_:
                for said in orjson.loads(await socket.recv()):
                    assert said["type"] in ("welcome", "result"), said
                    open_.discard(said.get("re"))


def _socket(url: str) -> connect:
    address = url.replace("http", "ws", 1) + "/v1/socket"
    return connect(address, subprotocols=["harbor.v1"], proxy=None, max_size=None)  # type: ignore[list-item]
