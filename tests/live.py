"""A real cluster on a real Ray for tests, and a real WebSocket client."""

import asyncio
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import orjson
import psutil
import ray
from websockets.asyncio.client import ClientConnection, connect

from cluster.actors import handles
from cluster.actors.handles import SupervisorHandle
from cluster.actors.specification import encode
from cluster.config import load_mapping
from cluster.simulation.view import View

LOOK_S = 0.05
"""Between looks at what nobody tells of."""
PORTS = range(22_500, 32_768)
"""Ports for servers that begin later, or again: above those of Ray's workers, below those that the kernel gives to whoever connects or asks for any."""
_number = 0
_ports: set[int] = set()
"""Those that were handed out."""


def free_port() -> int:
    while True:
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            # As servers do: what a connection that has ended leaves behind is no hindrance.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port not in _ports:
                    _ports.add(port)
                    return port


class LiveCluster:
    """A cluster on the session's Ray, of its own name and on its own port where `config` has none."""

    def __init__(self, config: dict[str, Any], env: dict[str, str] | None = None) -> None:
        global _number  # noqa: PLW0603 - a name for each cluster of the session
        _number += 1
        cluster = {"shards": 2, "name": f"test-{_number}", **config.get("cluster", {})}
        gateway = {"port": free_port(), **config.get("gateway", {})}
        self.name, self.port = cluster["name"], gateway["port"]
        storage = config.get("storage", {"path": None})
        self.config = load_mapping({**config, "cluster": cluster, "gateway": gateway, "storage": storage}, env or {})
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> "LiveCluster":
        self._handle = handles.create_supervisor(self.name, encode(self.config, 1))
        self.supervisor = SupervisorHandle(self._handle)
        eventually(lambda: self.supervisor.describe()["ready"])
        return self

    def stop(self) -> None:
        self.supervisor.stop()
        ray.kill(self._handle)

    def metrics(self) -> list[tuple[str, bytes]]:
        """Return (actor, encoded metrics) of every actor, once all of them answer."""

        def all_there() -> list[tuple[str, bytes]]:
            gathered = self.supervisor.metrics()
            found = [(name, encoded) for name, encoded in gathered if encoded is not None]
            return found if len(found) == len(gathered) else []

        return eventually(all_there, "every actor says its metrics")

    def pids(self) -> dict[str, int]:
        """Process by actor."""
        described = self.supervisor.describe()
        pids = {"supervisor": described["supervisor"]["pid"]}
        for kind in ("shards", "coordinators", "ingestors", "gateways"):
            for row in described[kind]:
                pids[f"{kind[:-1]}-{row['id']}"] = row["pid"]
        return pids

    def kill(self, actor: str) -> int:
        """kill -9 of an actor's process, unless it has just ended by itself. Returns its pid."""
        pid = self.pids()[actor]
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
        return pid

    def get(self, *key: Any, **params: str) -> httpx.Response:
        return httpx.get(f"{self.url}/v1/entries", params={"key": text(*key), **params}, timeout=60)

    def put(self, key: list[Any], data: Any, **params: Any) -> httpx.Response:
        return httpx.put(f"{self.url}/v1/entries", params={"key": text(*key), **params}, json=data, timeout=60)


def websocket_source(url: str, **more: Any) -> dict[str, Any]:
    """The sample upstream's WebSocket, at its base `url`, as a configuration's source."""
    return {
        "type": "websocket",
        "url": url.replace("http", "ws", 1) + "/ws",
        "subscribe": {"action": "subscribe", "channel": "{channel}"},
        **more,
    }


def text(*key: Any) -> str:
    return orjson.dumps(list(key)).decode()


def eventually(holds: Callable[[], Any], what: str = "", *, timeout_s: float = 60.0, every_s: float = 0.02) -> Any:
    """Wait until something holds; return what it gave. Polling is for processes that cannot tell us."""
    deadline = time.monotonic() + timeout_s
    error: BaseException | None = None
    while time.monotonic() < deadline:
        try:
            found = holds()
        except Exception as raised:  # noqa: BLE001 - reported when time is up
            error = raised
        else:
            if found:
                return found
            error = None
        time.sleep(every_s)
    raise AssertionError(f"it did not come to hold within {timeout_s} s: {what}") from error


class Client:
    """A WebSocket client: sorts messages by subscription into views."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self.views: dict[Any, View] = {}
        self.log: list[dict[str, Any]] = []
        self.times: list[float] = []
        """When each message of the log came, by the monotonic clock."""
        self.frames = 0
        self._replies: dict[Any, asyncio.Future[dict[str, Any]]] = {}
        self._news = asyncio.Event()
        self._reader = asyncio.create_task(self._read())
        self.failure: BaseException | None = None

    @classmethod
    async def open(cls, url: str) -> "Client":
        target = url.replace("http", "ws", 1) + "/v1/socket"
        return cls(await connect(target, subprotocols=["harbor.v1"], max_size=None, proxy=None))

    async def _read(self) -> None:
        try:
            async for frame in self._socket:
                self.frames += 1
                now = time.monotonic()
                for message in orjson.loads(frame):
                    self.log.append(message)
                    self.times.append(now)
                    if message.get("re") in self._replies:
                        self._replies.pop(message["re"]).set_result(message)
                    elif "sub" in message:
                        self.views[message["sub"]].take(message)
                self._news.set()
        except Exception as error:  # noqa: BLE001 - raised to whoever waits
            self.failure = error
        finally:
            self._news.set()

    async def send(self, **message: Any) -> None:
        await self._socket.send(orjson.dumps(message).decode())

    async def ask(self, **message: Any) -> dict[str, Any]:
        """Send a request and return its answer."""
        reply = self._replies[message["id"]] = asyncio.get_running_loop().create_future()
        await self.send(**message)
        return await asyncio.wait_for(reply, 20)

    async def subscribe(self, sub: Any, *, wait: bool = True, **arguments: Any) -> View:
        view = self.views.setdefault(sub, View())
        await self.send(type="subscribe", id=sub, **arguments)
        if wait:
            await self.until(lambda: view.complete)
        return view

    async def mutate(self, mutation: str, name: str, delay_ms: int | None = None, **variables: Any) -> None:
        """Begin a mutation, which the gateway takes."""
        delay = {} if delay_ms is None else {"delay_ms": delay_ms}
        asked = {"type": "mutate", "name": name, "variables": variables, "mutation_id": mutation, **delay}
        answer = await self.ask(id=mutation, **asked)
        assert answer == {"type": "result", "re": mutation, "mutation_id": mutation}, answer

    def statuses(self, mutation: str) -> list[str]:
        """Return what a mutation was, as this session was told."""
        told = [each for each in self.log if each["type"] == "mutation"]
        return [each["status"] for each in told if each["mutation_id"] == mutation]

    def shown(self, sub: Any, *key: Any) -> list[tuple[float, Any]]:
        """Return what a subscription has shown of a key, from its first data on: (when, data) at each message."""
        view, name = View(), text(*key)
        found: list[tuple[float, Any]] = []
        for at, message in zip(self.times, self.log, strict=True):
            if message.get("sub") == sub and "re" not in message:
                view.take(message)
                if message.get("key") == list(key) and message["type"] in ("snapshot", "change"):
                    found.append((at, view.entries[name][1]))
        return [each for each in found if each[1] is not None]

    async def until(self, holds: Callable[[], Any], timeout_s: float = 60.0) -> None:
        """Wait until something holds, of what was received or of what else may change meanwhile."""
        async with asyncio.timeout(timeout_s):
            while not _holds(holds):
                if self.failure is not None:
                    raise self.failure
                if self._reader.done():
                    raise ConnectionError("the gateway closed the connection")
                self._news.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), LOOK_S)

    def break_off(self) -> None:
        """Lose the connection, as a client that has left its network does."""
        self._socket.transport.abort()

    async def close(self) -> None:
        self._reader.cancel()
        await self._socket.close()
        with suppress(asyncio.CancelledError):
            await self._reader


def _holds(check: Callable[[], Any]) -> bool:
    try:
        return bool(check())
    except (KeyError, IndexError, TypeError):
        return False
