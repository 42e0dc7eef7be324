"""What mutations come to on a real cluster: how soon an author sees its own change, how many a second, and a queue that waited for a service.

The service answers at once; it, the clients and the cluster share the machine. Run as a module it is the service: it prints its port,
carries out whatever it is sent, answers what it has carried out at `/seen`, and is there or not as it is told on its standard input
(`down`, `up`).
"""

import asyncio
import itertools
import statistics
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import psutil
import ray
import uvloop
from aiohttp import web
from websockets.asyncio.client import ClientConnection, connect

from tests.live import LiveCluster

LONE = 200
"""Mutations that are begun one after the other, on a cluster that has nothing else to do."""
RATE, SECONDS = 1_000, 10
OPEN = 200
"""Requests of a client that have no answer yet; a gateway allows 256."""
QUEUED = 10_000
SCOPES = 50


def document(port: int, store: str) -> dict[str, Any]:
    """The configuration: one mutation that sets a part of an entry."""
    return {
        "storage": {"path": store},
        "services": {"api": {"base_url": f"http://127.0.0.1:{port}"}},
        "mutations": {
            "put": {
                "request": {"service": "api", "method": "PUT", "path": "/put/{scope}", "body": "{variables}"},
                "optimistic": [{"set": {"key": ["put", "{scope}"], "value": "{variables}"}}],
                "scope": "{scope}",
            }
        },
    }


def mutations(child: Any) -> dict[str, Any]:
    """Run a cluster and all measurements; `child` starts a helper process."""
    service = child("tests.bench.mutations")
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    directory = TemporaryDirectory()
    port = int(service.line())
    live = LiveCluster(document(port, str(Path(directory.name) / "store"))).start()
    try:
        return uvloop.run(_measure(live, service, port))
    finally:
        live.stop()
        ray.shutdown()
        service.stop()
        directory.cleanup()


class Author:
    """A client that begins mutations and notes when what comes of them is here."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.seen: dict[int, float] = {}
        """When the change with a number came, by that."""
        self.settled: dict[str, float] = {}
        self.refused = 0
        self.room = asyncio.Semaphore(OPEN)
        self.begun: dict[str, float] = {}
        self.reading = asyncio.create_task(self._read())
        self.wanted = 0
        self.done = asyncio.Event()

    async def _read(self) -> None:
        async for frame in self.socket:
            now = time.perf_counter()
            for message in orjson.loads(frame):
                match message["type"]:
                    case "change":
                        self.seen.setdefault(message["data"]["n"], now)
                    case "mutation" if message["status"] in ("success", "error", "cancelled"):
                        self.settled.setdefault(message["mutation_id"], now)
                        self.refused += message["status"] != "success"
                        if len(self.settled) >= self.wanted:
                            self.done.set()
                    case "result" if message["re"]:
                        self.room.release()
                    case "error":
                        raise AssertionError(message)
                    case _:
                        pass

    async def begin(self, n: int, scope: int) -> None:
        """Begin a mutation."""
        await self.room.acquire()
        self.begun[f"m{n}"] = time.perf_counter()
        message = {
            "type": "mutate",
            "id": n,
            "name": "put",
            "mutation_id": f"m{n}",
            "variables": {"scope": scope, "n": n},
        }
        await self.socket.send(orjson.dumps(message).decode())

    async def all_settled(self, count: int) -> None:
        """Wait for as many to be settled."""
        self.wanted = count
        self.done.clear()
        waiting = asyncio.create_task(self.done.wait())
        if len(self.settled) < count:
            await asyncio.wait({waiting, self.reading}, timeout=120, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self.reading.done():
            await self.reading  # which failed
        assert len(self.settled) >= count, f"{len(self.settled)} of {count}"


async def _open(url: str, *, watches: bool) -> Author:
    socket = await connect(url, subprotocols=["harbor.v1"], proxy=None, compression=None, max_size=None)  # type: ignore[list-item]
    author = Author(socket)
    if watches:
        await socket.send('{"type":"subscribe","id":0,"prefix":["put"]}')
    return author


async def _measure(live: LiveCluster, service: Any, port: int) -> dict[str, Any]:
    url = live.url.replace("http", "ws", 1) + "/v1/socket"
    numbers = itertools.count(1)
    author, other = await _open(url, watches=True), await _open(url, watches=True)
    await asyncio.sleep(1)
    own, others = [], []
    for n in itertools.islice(numbers, LONE):
        await author.begin(n, n % SCOPES)
        while n not in author.seen or n not in other.seen:
            await asyncio.sleep(0.0005)
        own.append((author.seen[n] - author.begun[f"m{n}"]) * 1000)
        others.append((other.seen[n] - author.begun[f"m{n}"]) * 1000)
        await asyncio.sleep(0.02)
    await author.all_settled(LONE)
    await other.socket.close()
    pids = live.pids()
    before = _cpu(pids)
    busy = await _open(url, watches=False)
    started = time.perf_counter()
    for n in itertools.islice(numbers, RATE * SECONDS):
        await busy.begin(n, n % (10 * SCOPES))
        ahead = started + len(busy.begun) / RATE - time.perf_counter()
        if ahead > 0.002:
            await asyncio.sleep(ahead)
    await busy.all_settled(RATE * SECONDS)
    took = time.perf_counter() - started
    used = _cpu(pids)
    delays = sorted((busy.settled[name] - at) * 1000 for name, at in busy.begun.items())
    offline = await _offline(await _open(url, watches=False), service, port, numbers, pids)
    return {
        "author_p50_ms": round(statistics.median(own), 1),
        "author_p99_ms": round(sorted(own)[int(len(own) * 0.99)], 1),
        "others_p50_ms": round(statistics.median(others), 1),
        "others_p99_ms": round(sorted(others)[int(len(others) * 0.99)], 1),
        "mutations_per_s": round(RATE * SECONDS / took),
        "refused": busy.refused,
        "outcome_p50_ms": round(statistics.median(delays), 1),
        "outcome_p99_ms": round(delays[int(len(delays) * 0.99)], 1),
        "cores": round(sum(used[name] - before[name] for name in used) / took, 2),
        **offline,
    }


async def _offline(author: Author, service: Any, port: int, numbers: Any, pids: dict[str, int]) -> dict[str, Any]:
    """Queue mutations while the service is away, and see it come back."""
    assert service.ask("down") == "down"
    rss = {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}
    first = next(numbers)
    await author.begin(first, 0)
    for n in itertools.islice(numbers, QUEUED - 1):
        await author.begin(n, n % SCOPES)
    await asyncio.sleep(3)
    queued = {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()}
    assert service.ask("up") == "up"
    started = time.perf_counter()
    peaks = dict(queued)
    waiting = asyncio.create_task(author.all_settled(QUEUED))
    while not waiting.done():
        await asyncio.sleep(0.05)
        for name, pid in pids.items():
            peaks[name] = max(peaks[name], psutil.Process(pid).memory_info().rss)
    await waiting
    took = time.perf_counter() - started
    seen: list[list[int]] = orjson.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/seen").read())
    mine = [[n for n in scope if n >= first] for scope in seen]
    return {
        "queued": QUEUED,
        "drained_s": round(took, 1),
        "drained_in_order": sum(map(len, mine)) == QUEUED and all(scope == sorted(scope) for scope in mine),
        "queue_mib": round(sum(queued[name] - rss[name] for name in pids) / 2**20, 1),
        "peak_over_queue_mib": round(sum(peaks[name] - queued[name] for name in pids) / 2**20, 1),
    }


def _cpu(pids: dict[str, int]) -> dict[str, float]:
    times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    return {name: each.user + each.system for name, each in times.items()}


async def serve() -> None:
    """Be the service."""
    seen: dict[str, dict[str, int]] = {}

    async def put(request: web.Request) -> web.Response:
        body = await request.json()
        seen.setdefault(request.match_info["scope"], {})[request.headers["Idempotency-Key"]] = body["n"]
        return web.json_response(body)

    async def tell(_: web.Request) -> web.Response:
        return web.json_response([list(scope.values()) for scope in seen.values()])

    async def listen(port: int) -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_put("/put/{scope}", put)
        app.router.add_get("/seen", tell)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True, shutdown_timeout=0.1).start()
        return runner, runner.addresses[0][1]

    runner, port = await listen(0)
    print(port, flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        if line == "down":
            await runner.cleanup()
        else:
            runner, _ = await listen(port)
        print(f'"{line}"', flush=True)


if __name__ == "__main__":
    uvloop.run(serve())
