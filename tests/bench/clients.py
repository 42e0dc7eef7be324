"""What many clients cost a gateway: slow ones, idle ones, and a thousand that come back at once.

The cluster is a real one on a local Ray; clients are sockets of this process that split frames and parse no more than they must. Ages are
taken at the clients: from the writing of a value, which holds the time, to the frame with it. They share this machine with the cluster.
"""

import asyncio
import base64
import itertools
import os
import resource
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import orjson
import psutil
import ray
import uvloop
from aiohttp import web

from tests.live import LiveCluster, free_port

CLIENTS, STOPPED = 500, 25
ROUNDS = 5
RATE, SIZE = 100, 1_000
"""Writes a second, over as many keys; bytes of each."""
IDLE = 5_000
BACK, EACH, ITEMS = 1_000, 3, 300
"""Clients that come back, entries that each watches, entries there are."""


class Peer(asyncio.Protocol):
    """A WebSocket client. `heard` is told each frame's text."""

    def __init__(self, heard: Callable[["Peer", bytes], None] = lambda peer, body: None) -> None:
        self.heard = heard
        self.buffer = bytearray()
        self.upgraded = False
        self.greeted = asyncio.Event()
        self.lost = asyncio.Event()
        self.close_code = 0
        self.tokens: dict[int, str] = {}

    @classmethod
    async def connect(cls, port: int, heard: Callable[["Peer", bytes], None] = lambda peer, body: None) -> "Peer":
        _, peer = await asyncio.get_running_loop().create_connection(lambda: cls(heard), "127.0.0.1", port)
        await peer.greeted.wait()
        return peer

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        key = base64.b64encode(os.urandom(16)).decode()
        transport.write(
            f"GET /v1/socket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: harbor.v1\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self.greeted.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.upgraded:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            del self.buffer[: end + 4]
            self.upgraded = True
        while len(self.buffer) >= 2:
            length, start = self.buffer[1] & 0x7F, 2
            if length >= 126:
                start = 4 if length == 126 else 10
                length = int.from_bytes(self.buffer[2:start], "big")
            if len(self.buffer) < start + length:
                return
            opcode, body = self.buffer[0] & 0x0F, bytes(self.buffer[start : start + length])
            del self.buffer[: start + length]
            if opcode == 8:
                self.close_code = int.from_bytes(body[:2], "big")
            elif opcode == 9:
                self.send(body, 0x8A)
            else:
                self.greeted.set()
                self.heard(self, body)

    def say(self, **message: Any) -> None:
        self.send(orjson.dumps(message))

    def send(self, body: bytes, opcode: int = 0x81) -> None:
        long = len(body) >= 126
        head = bytes([opcode, 0xFE]) + len(body).to_bytes(2, "big") if long else bytes([opcode, 0x80 | len(body)])
        self.transport.write(head + b"\0\0\0\0" + body)


def _measured(config: dict[str, Any], measure: Callable[[LiveCluster], Any]) -> dict[str, Any]:
    """Run a cluster and a measurement, in which this process and the gateway may have many sockets."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    live = LiveCluster(config).start()
    try:
        return dict(uvloop.run(measure(live)))
    finally:
        live.stop()
        ray.shutdown()


# --- slow ones ---------------------------------------------------------------------------------------------------


def slow_clients(seconds: float) -> dict[str, Any]:
    """The ages of changes at `CLIENTS` that read, with and without `STOPPED` more of them that do not."""
    return _measured({}, lambda live: _slow(live, seconds))


async def _slow(live: LiveCluster, seconds: float) -> dict[str, Any]:
    ages: list[float] = []

    def heard(_: Peer, body: bytes) -> None:
        at = body.rfind(b'"t":')
        if at >= 0:
            ages.append(time.time() - float(body[at + 4 : body.index(b",", at)]))

    peers = [await Peer.connect(live.port, heard) for _ in range(CLIENTS)]
    for peer in peers:
        peer.say(type="subscribe", id=1, prefix=["slow"])
    writer = await Peer.connect(live.port)
    writing = asyncio.create_task(_write(writer))
    gateway = psutil.Process(live.pids()["gateway-0"])
    await asyncio.sleep(3)

    async def phase() -> tuple[float, float]:
        ages.clear()
        await asyncio.sleep(seconds)
        ages.sort()
        return ages[len(ages) // 2] * 1000, ages[int(len(ages) * 0.99)] * 1000

    phases: dict[str, list[tuple[float, float]]] = {"without": [await phase()], "with": []}
    grown: list[float] = []
    for _ in range(
        ROUNDS
    ):  # in turns, and each between two without: the machine itself drifts by more than what is measured
        before = gateway.memory_info().rss
        for peer in peers[-STOPPED:]:
            peer.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            peer.transport.pause_reading()
        phases["with"].append(await phase())
        grown.append((gateway.memory_info().rss - before) / 2**20)
        for peer in peers[-STOPPED:]:
            peer.transport.abort()
        peers[-STOPPED:] = [await Peer.connect(live.port, heard) for _ in range(STOPPED)]
        for peer in peers[-STOPPED:]:
            peer.say(type="subscribe", id=1, prefix=["slow"])
        await asyncio.sleep(3)
        phases["without"].append(await phase())
    p99 = {name: [p99 for _, p99 in each] for name, each in phases.items()}
    beside = [(first + then) / 2 for first, then in itertools.pairwise(p99["without"])]
    found: dict[str, Any] = {"clients": CLIENTS, "stopped": STOPPED}
    for name, each in phases.items():
        found[f"age_p50_{name}_ms"] = round(statistics.median(p50 for p50, _ in each), 1)
        found[f"age_p99_{name}_ms"] = round(statistics.median(p99[name]), 1)
    found["p99_ratio"] = round(statistics.median(a / b for a, b in zip(p99["with"], beside, strict=True)), 3)
    found["rss_grown_with_mib"] = round(max(grown), 1)
    writing.cancel()
    return found


async def _write(writer: Peer) -> None:
    began, n = time.perf_counter(), 0
    pad = "x" * SIZE
    while True:
        while n < (time.perf_counter() - began) * RATE:
            writer.say(type="set", id=n, key=["slow", n % RATE], data={"t": time.time(), "pad": pad})
            n += 1
        await asyncio.sleep(0.01)


# --- idle ones ---------------------------------------------------------------------------------------------------


def idle_clients() -> dict[str, Any]:
    """Resident memory of a gateway for each of `IDLE` clients that say and hear nothing, and that watch one entry."""
    return _measured({}, _idle)


async def _idle(live: LiveCluster) -> dict[str, Any]:
    gateway = psutil.Process(live.pids()["gateway-0"])
    warm = [await Peer.connect(live.port) for _ in range(100)]
    await asyncio.sleep(1)
    found: dict[str, Any] = {"clients": IDLE}
    before = gateway.memory_info().rss
    peers: list[Peer] = []
    for _ in range(0, IDLE, 100):
        peers.extend(await asyncio.gather(*(Peer.connect(live.port) for _ in range(100))))
    await asyncio.sleep(2)
    found["kib_each"] = round((gateway.memory_info().rss - before) / 1024 / IDLE, 1)
    cpu = sum(gateway.cpu_times()[:2])
    await asyncio.sleep(30)
    found["cores"] = round((sum(gateway.cpu_times()[:2]) - cpu) / 30, 3)
    for peer in peers:
        peer.say(type="subscribe", id=1, key=["idle"])
    await asyncio.sleep(3)
    found["watching_kib_each"] = round((gateway.memory_info().rss - before) / 1024 / IDLE, 1)
    found["lost"] = sum(peer.lost.is_set() for peer in [*warm, *peers])
    return found


# --- those that come back ----------------------------------------------------------------------------------------


def reconnect() -> dict[str, Any]:
    """Until `BACK` clients that lost their connections at once have gone on from their tokens, and what their upstream was asked meanwhile."""
    port = free_port()
    service = {"base_url": f"http://127.0.0.1:{port}"}
    query = {"key": ["items", "{id}"], "service": "api", "path": "/items/{id}", "stale_time": "infinity"}
    return _measured({"services": {"api": service}, "queries": [query]}, lambda live: _reconnect(live, port))


async def _reconnect(live: LiveCluster, port: int) -> dict[str, Any]:
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.json_response({"path": request.path, "pad": "x" * 500})

    app = web.Application()
    app.router.add_get("/{rest:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    live_now: set[tuple[int, int]] = set()
    resets = 0

    def heard(peer: Peer, body: bytes) -> None:
        nonlocal resets
        for message in orjson.loads(body):
            resets += message["type"] == "reset"
            token = message.get("token") or message.get("position")
            if token is not None:
                peer.tokens[message["sub"]] = token
                live_now.add((peers.index(peer), message["sub"]))

    peers: list[Peer] = []
    for n in range(BACK):
        peers.append(await Peer.connect(live.port, heard))
        for each in range(EACH):
            peers[n].say(type="subscribe", id=each, key=["items", str((n * EACH + each) % ITEMS)])
    await _until(lambda: len(live_now) == BACK * EACH)
    writer = await Peer.connect(live.port)
    await asyncio.sleep(2)
    tokens = [peer.tokens for peer in peers]
    before, resets = len(asked), 0
    live_now.clear()
    for peer in peers:
        peer.transport.abort()
    for n in range(ITEMS):
        writer.say(type="set", id=n, key=["items", str(n)], data={"n": n})
    began = time.perf_counter()

    async def back(n: int) -> None:
        peers[n] = await Peer.connect(live.port, heard)
        for each, token in tokens[n].items():
            peers[n].say(type="subscribe", id=each, key=["items", str((n * EACH + each) % ITEMS)], since=token)

    await asyncio.gather(*map(back, range(BACK)))
    connected_s = time.perf_counter() - began
    await _until(lambda: len(live_now) == BACK * EACH)
    took_s = time.perf_counter() - began
    await asyncio.sleep(2)
    return {
        "clients": BACK,
        "subscriptions": BACK * EACH,
        "connected_s": round(connected_s, 2),
        "live_s": round(took_s, 2),
        "resets": resets,
        "fetches_before": before,
        "fetches_meanwhile": len(asked) - before,
    }


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not holds():
            await asyncio.sleep(0.005)
