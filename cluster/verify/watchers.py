"""Clients that watch: over WebSocket or as an event stream, exactly or by prefix, in either mode; they lose connections and come back.

Each tells its `Course` everything, in frames as they came. What of an event stream has no id behind it yet may come again after a cut,
so it is held back until one comes; a socket's frames are whole.

What must not live here: judging (`contract_oracle`), when connections are cut (`faults`).
"""

import asyncio
import random
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import orjson
from msgspec import Struct
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from cluster.core.protocol import SUBPROTOCOL
from cluster.verify.contract_oracle import Course, Rule, Truth, Violation, first_violation
from cluster.verify.figures import Ages

CONNECT_S = 10.0
BACK_S = (0.05, 0.3)
"""Before a lost connection is made again."""
STEADY_S = 1.0
"""After a connection is made, or reading goes on, what comes is news of the time before: its age says nothing of the cluster."""
HABIT_S = (2.0, 4.0)
"""Between what a client does by itself."""
HABIT_PAUSE_S = 1.0
FINAL = range(3500, 4000)
LOST = (OSError, TimeoutError, aiohttp.ClientError, ConnectionClosed, InvalidHandshake)
"""What the end of a connection looks like."""
MAX_EVENT_BYTES = 64 * 1024 * 1024


class Wanted(Struct, frozen=True):
    """What a watcher watches, and how."""

    number: int
    root: list[Any]
    prefix: bool
    mode: str
    server_sent: bool
    habit: str
    """`stay`, `pause` (and resume) or `return` (leave and come back with the token)."""
    more: list[list[Any]] = []
    """Other keys that an event stream has with it."""

    @property
    def roots(self) -> list[list[Any]]:
        """Return all that is watched."""
        return [self.root, *self.more]

    @property
    def name(self) -> str:
        """Return what it is called in reports."""
        what = "prefix" if self.prefix else "keys" if self.more else "key"
        return (
            f"client {self.number} ({'sse' if self.server_sent else 'websocket'}, {what}, {self.mode}, {self.habit}s)"
        )


def wanted_watchers(clients: int, root: list[Any], keys: list[list[Any]]) -> list[Wanted]:
    """Return so many watchers, of every kind in turn; the first watches everything on a socket."""
    habits = ("stay", "pause", "stay", "return")
    made = []
    for n in range(clients):
        server_sent = n % 3 == 2
        habit = habits[n // 2 % len(habits)] if n else "stay"
        if server_sent and habit == "pause":
            habit = "return"  # an event stream cannot be paused
        prefix = n % 4 != 3
        at = n * 7 % len(keys)
        watched = root if prefix else keys[at]
        more = (keys[at:] + keys[:at])[1:3] if server_sent and not prefix else []
        made.append(Wanted(n, watched, prefix, "patch" if n % 2 else "data", server_sent, habit, more))
    return made


class Watcher:
    """See the module. `run` until `stop`."""

    def __init__(self, wanted: Wanted, url: str, token: str | None, truth: Truth, ages: Ages, seed: int) -> None:
        self.wanted = wanted
        self.course = Course(truth, *wanted.roots, prefix=wanted.prefix, mode=wanted.mode)
        self.connections = 0
        self.resumes = 0
        self.is_stopped = False
        self.told_at: float | None = None
        """When it was last told something, or could not expect to be; by the monotonic clock."""
        self.is_deaf = False
        """It does not listen, on purpose."""
        self.on_told: Callable[[float], None] = lambda _: None
        """Called with the seconds since it was last told something."""
        self._url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._ages = ages
        self._rng = random.Random(f"{seed}/{wanted.number}")
        self._reads = asyncio.Event()
        self._reads.set()
        self._steady_at = 0.0

    async def run(self) -> None:
        """Watch, until stopped.

        Raises:
            Violation: the contract did not hold.
        """
        while not self.is_stopped:
            try:
                async with asyncio.TaskGroup() as group:
                    habits = group.create_task(self._live_by_habit())
                    try:
                        await self._connection()
                    finally:
                        habits.cancel()
            except BaseExceptionGroup as raised:
                violation = first_violation(raised)
                if violation is not None:
                    violation.client = self.wanted.name
                    raise violation from None
                if raised.split(LOST)[1] is not None:
                    raise
            if not self.is_stopped:
                self.course.note("(lost)")
                await asyncio.sleep(self._rng.uniform(*BACK_S))

    @abstractmethod
    async def _connection(self) -> None:
        """Connect, subscribe, and take what comes until the connection ends."""

    @abstractmethod
    def cut(self) -> None:
        """Lose the connection without a word, as a network would."""

    def stop(self) -> None:
        """Leave."""
        self.is_stopped = True
        self._reads.set()
        self.cut()

    async def be_slow(self, seconds: float) -> None:
        """Read nothing for so long."""
        self.is_deaf = True
        self._reads.clear()
        self.course.note("(stops reading)")
        try:
            await asyncio.sleep(seconds)
        finally:
            self.course.note("(reads again)")
            self._hears()

    def _hears(self) -> None:
        self._reads.set()
        self.is_deaf = False
        self.told_at = time.monotonic()
        self._steady_at = self.told_at + STEADY_S

    async def _live_by_habit(self) -> None:
        while self.wanted.habit != "stay":
            await asyncio.sleep(self._rng.uniform(*HABIT_S))
            if self.wanted.habit == "return":
                self.cut()
                return
            await self._pause()

    async def _pause(self) -> None:
        """Stop delivery for a while."""

    def _opened(self) -> str | None:
        self.connections += 1
        self._steady_at = time.monotonic() + STEADY_S
        if self.told_at is None:
            self.told_at = time.monotonic()
        token = self.course.opened()
        self.resumes += token is not None
        return token

    def _took(self, messages: list[dict[str, Any]]) -> None:
        """Hand on what one frame said of the subscription."""
        if not messages:
            return
        now, wall_ms = time.monotonic(), time.time() * 1000.0
        if any(each["type"] not in ("position", "notice") for each in messages):
            if not self.is_deaf and self.told_at is not None:
                self.on_told(now - self.told_at)
            self.told_at = now
        self.course.frame(messages)
        if now < self._steady_at or self.is_deaf:
            return
        for message in messages:
            if message["type"] == "change":
                held = self.course.entries[orjson.dumps(message["key"]).decode()].data
                if isinstance(held, dict) and isinstance(held.get("t"), (int, float)):
                    self._ages.add(wall_ms - held["t"])

    def _refused(self, why: object) -> Violation:
        return Violation(Rule.ENDED, str(self.wanted.root), "a connection", why, list(self.course.recent))


class SocketWatcher(Watcher):
    """On a WebSocket."""

    _socket: ClientConnection | None = None
    _name = 0

    async def _connection(self) -> None:
        try:
            socket = await connect(
                "ws" + self._url.removeprefix("http") + "/v1/socket",
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                additional_headers=self._headers,
                compression=None,
                max_size=None,
                proxy=None,
                open_timeout=CONNECT_S,
                close_timeout=1.0,
            )
        except InvalidStatus as error:
            if _is_final(error.response.status_code):
                raise self._refused(f"HTTP {error.response.status_code}") from error
            raise
        self._socket = socket
        try:
            since = self._opened()
            self._name += 1
            what = "prefix" if self.wanted.prefix else "key"
            asked = {"type": "subscribe", "id": self._name, what: self.wanted.root, "mode": self.wanted.mode}
            await self._say(asked | ({} if since is None else {"since": since}))
            while True:
                await self._reads.wait()
                self._frame(await socket.recv())
        except ConnectionClosed:
            if socket.close_code in FINAL and not self.is_stopped:
                raise self._refused(f"close code {socket.close_code} {socket.close_reason}") from None
        finally:
            self._socket = None
            socket.transport.abort()

    def _frame(self, data: str | bytes) -> None:
        messages = orjson.loads(data)
        for message in messages:
            if message["type"] == "error" and message.get("re") == self._name:
                if message.get("temporary"):
                    raise ConnectionError(message["message"])  # it is asked for again, on a new connection
                raise self._refused(message)
        self._took([each for each in messages if each.get("sub") == self._name])

    async def _say(self, message: dict[str, Any]) -> None:
        if self._socket is not None:
            await self._socket.send(orjson.dumps(message).decode())

    async def _pause(self) -> None:
        self.is_deaf = True
        self.course.note("(pauses)")
        await self._say({"type": "pause", "id": self._name})
        await asyncio.sleep(HABIT_PAUSE_S)
        self.course.note("(resumes)")
        await self._say({"type": "resume", "id": self._name})
        self._hears()

    def cut(self) -> None:
        """Lose the connection."""
        if self._socket is not None:
            self._socket.transport.abort()


class StreamWatcher(Watcher):
    """On an event stream."""

    _response: aiohttp.ClientResponse | None = None

    async def _connection(self) -> None:
        since = self._opened()
        headers = self._headers | ({} if since is None else {"Last-Event-ID": since})
        what = "prefix" if self.wanted.prefix else "key"
        params = [(what, orjson.dumps(root).decode()) for root in self.wanted.roots] + [("mode", self.wanted.mode)]
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.get(f"{self._url}/v1/stream", params=params, headers=headers) as response,
        ):
            if _is_final(response.status):
                raise self._refused(f"HTTP {response.status}: {(await response.text())[:200]}")
            if response.status != 200:
                return
            self._response = response
            try:
                await self._read(response)
            finally:
                self._response = None

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        waiting: list[dict[str, Any]] = []
        async for kind, event_id, data in self._events(response):
            message = {"type": kind, **orjson.loads(data)}
            if event_id and kind not in ("position", "snapshot_end"):
                waiting += [message, {"type": "position", "token": event_id}]
            elif event_id:
                waiting.append(message | {"position" if kind == "snapshot_end" else "token": event_id})
            else:
                waiting.append(message)
            if event_id:
                self._took(waiting)
                waiting = []

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str, bytes]]:
        """Yield (event, id, data). Lines end with LF, and an event's data is one line: this is no reader of any stream."""
        held = b""
        while True:
            await self._reads.wait()
            chunk = await response.content.readany()
            if not chunk:
                return
            held += chunk
            if len(held) > MAX_EVENT_BYTES:
                raise self._refused("an event that does not end")
            *whole, held = held.split(b"\n\n")
            for block in whole:
                fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if b": " in line and line[:1] != b":")
                if b"data" in fields:
                    yield fields.get(b"event", b"message").decode(), fields.get(b"id", b"").decode(), fields[b"data"]

    def cut(self) -> None:
        """Lose the connection."""
        if self._response is not None and self._response.connection is not None:
            transport = self._response.connection.transport
            if transport is not None:
                transport.abort()


def _is_final(status: int) -> bool:
    """Whether an HTTP status says that there is no use in coming back; 429 says that there will be."""
    return 400 <= status < 500 and status != 429


def make_watcher(wanted: Wanted, url: str, token: str | None, truth: Truth, ages: Ages, seed: int) -> Watcher:
    """Return a watcher of the kind that is wanted."""
    kind = StreamWatcher if wanted.server_sent else SocketWatcher
    return kind(wanted, url, token, truth, ages, seed)
