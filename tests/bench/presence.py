"""What presence costs on a real cluster: heartbeats, and how soon a join reaches those who watch.

Heartbeats of 10,000 members, one every 30 s each, are 333 a second. They come here from fewer sockets that beat more often, into one
topic. Figures are CPU of the gateway and of the topic's home; delays are taken at the clients, which share this machine.
"""

import asyncio
import time
from typing import Any

import orjson
import psutil
import ray
import uvloop
from websockets.asyncio.client import ClientConnection, connect

from cluster.core.placement import assign_slots
from cluster.core.query_key import CanonicalKey
from tests.live import LiveCluster

MEMBERS = 10_000
HEARTBEAT_S = 30.0
SOCKETS = 1_000
WATCHERS = 100
JOINS = 30
TOPIC, WATCHED = "room:crowd", "room:watched"


def presence(seconds: float) -> dict[str, Any]:
    """Run a cluster and both measurements."""
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    live = LiveCluster({"presence": {"room:{id}": {"heartbeat": "30s", "timeout": "75s"}}}).start()
    try:
        return uvloop.run(_measure(live, seconds))
    finally:
        live.stop()
        ray.shutdown()


async def _measure(live: LiveCluster, seconds: float) -> dict[str, Any]:
    pids = live.pids()
    home = f"shard-{assign_slots(range(2), 1).shard(CanonicalKey(TOPIC))}"
    url = live.url.replace("http", "ws", 1) + "/v1/socket"
    crowd = [await _open(url) for _ in range(SOCKETS)]
    readers = [asyncio.create_task(_drain(socket)) for socket in crowd]
    for n, socket in enumerate(crowd):
        await _say(socket, topic=TOPIC, state={"cursor": n}, watch="count")
    await asyncio.sleep(3)
    quiet = await _cores(pids, home, 5.0)
    beats = asyncio.create_task(_beat(crowd))
    await asyncio.sleep(2)
    busy = await _cores(pids, home, seconds)
    beats.cancel()
    delays = await _joins(url)
    for task in readers:
        task.cancel()
    await asyncio.gather(*(socket.close() for socket in crowd))
    return {
        "heartbeats_per_s": round(MEMBERS / HEARTBEAT_S),
        "cores": round(sum(busy.values()) - sum(quiet.values()), 4),
        "cpu_cores": {name: round(value - quiet[name], 4) for name, value in busy.items()},
        "watchers": WATCHERS,
        "join_to_last_p50_ms": round(delays[len(delays) // 2], 1),
        "join_to_last_max_ms": round(delays[-1], 1),
    }


async def _open(url: str) -> ClientConnection:
    return await connect(url, subprotocols=["harbor.v1"], proxy=None, compression=None, ping_interval=None)  # type: ignore[list-item]


async def _say(socket: ClientConnection, **message: Any) -> None:
    await socket.send(orjson.dumps({"type": "presence", "id": 1, **message}).decode())


async def _drain(socket: ClientConnection) -> None:
    async for _ in socket:
        pass


async def _beat(crowd: list[ClientConnection]) -> None:
    """As many heartbeats a second as all members make."""
    began, sent = time.perf_counter(), 0
    while True:
        for _ in range(max(0, int((time.perf_counter() - began) * MEMBERS / HEARTBEAT_S) - sent)):
            await _say(crowd[sent % len(crowd)], topic=TOPIC)
            sent += 1
        await asyncio.sleep(0.02)


async def _cores(pids: dict[str, int], home: str, seconds: float) -> dict[str, float]:
    def used() -> dict[str, float]:
        return {name: sum(psutil.Process(pids[name]).cpu_times()[:2]) for name in ("gateway-0", home)}

    before = used()
    await asyncio.sleep(seconds)
    return {name: (value - before[name]) / seconds for name, value in used().items()}


async def _joins(url: str) -> list[float]:
    """From saying a join to the last watcher's having it, in ms, sorted."""
    watchers = [await _open(url) for _ in range(WATCHERS)]
    joiners = [await _open(url) for _ in range(JOINS)]
    for socket in watchers:
        await _say(socket, topic=WATCHED)
    await asyncio.gather(*(_told(socket, 0) for socket in watchers))
    delays = []
    for n, joiner in enumerate(joiners, 1):
        await asyncio.sleep(0.137)
        began = time.perf_counter()
        await _say(joiner, topic=WATCHED, state=n, watch="count")
        await asyncio.gather(*(_told(socket, n) for socket in watchers))
        delays.append((time.perf_counter() - began) * 1000.0)
    await asyncio.gather(*(socket.close() for socket in [*watchers, *joiners]))
    return sorted(delays)


async def _told(socket: ClientConnection, count: int) -> None:
    while True:
        for message in orjson.loads(await socket.recv()):
            if message["type"] == "presence" and message["count"] >= count:
                return
