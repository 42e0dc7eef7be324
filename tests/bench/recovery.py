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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http import HTTPStatus
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import orjson
import psutil
import ray
import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from cluster.actors.handles import connect as connect_to_ray
from cluster.core.placement import assign_slots
from cluster.core.query_key import CanonicalKey
from tests.live import LiveCluster, eventually, free_port, text

RATE = 2_000
KILLS = 5
"""Of each kind of actor."""
ENTRIES, ENTRY_BYTES = 100_000, 1_024
SAMPLE = range(0, ENTRIES, ENTRIES // 16)
"""Entries that are read, of every shard some."""
LOT = 250
"""Writes under way at once."""
VICTIMS = ("shard-0", "coordinator-0", "ingestor-0", "gateway-0")


@contextmanager
def _ray() -> Iterator[None]:
    connect_to_ray(address="local", num_cpus=8, include_dashboard=False, object_store_memory=2**27)
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
    await asyncio.to_thread(eventually, lambda: _is_whole(live.supervisor.describe()))
    return silence


def _is_whole(described: dict[str, Any]) -> bool:
    """Whether everything is there, standbys with all they are to have."""
    standbys = [shard["standby"] for shard in described["shards"]]
    return described["ready"] and all(each is None or each["in_sync"] for each in standbys)


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


def restart(shards: int) -> dict[str, Any]:
    """Fill a cluster, end its Ray, start both anew: how long from Ray's being up until entries of all shards can be read, and all is there."""
    with TemporaryDirectory() as directory:
        with _ray():
            limits = {"commands": 1e6, "commands_burst": 1e6}
            config = {"cluster": {"shards": shards}, "storage": {"path": directory}, "gateway": {"limits": limits}}
            live = LiveCluster(config).start()
            began = time.perf_counter()
            uvloop.run(_fill(live.url))
            writes_per_s = ENTRIES / (time.perf_counter() - began)
            live.stop()
        with _ray():
            began = time.perf_counter()
            with ThreadPoolExecutor() as threads:
                starting = threads.submit(live.start)
                eventually(lambda: all(_reads(live, n) for n in SAMPLE), every_s=0.05)
                serving_s = time.perf_counter() - began
                starting.result()
            ready_s = time.perf_counter() - began
            rows = live.supervisor.describe()["shards"]
            rss = sum(psutil.Process(row["pid"]).memory_info().rss for row in rows)
            live.stop()
    count = sum(int(row["keys"]) for row in rows)
    assert count == ENTRIES, f"{count} entries of {ENTRIES}"
    return {
        "entries": count,
        "writes_per_s": round(writes_per_s),
        "serving_s": round(serving_s, 2),
        "ready_s": round(ready_s, 2),
        "shards_rss_mib": round(rss / 2**20),
    }


def _reads(live: LiveCluster, number: int) -> bool:
    """Whether an entry can be read, asked in a way that takes little of what the cluster starts with."""
    with urlopen(f"{live.url}/v1/entries?key={quote(text('entry', number))}", timeout=5) as response:
        return bool(response.status == HTTPStatus.OK)


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
