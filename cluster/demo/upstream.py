"""The sample upstream: a real server for demonstrations and end-to-end tests.

    python -m cluster.demo.upstream --port 8710 --seed 1 --rate 20

REST below `/`, one WebSocket at `/ws` (`{"action": "subscribe", "channel": ...}`), event streams below `/api`, switches below `/control`:

    POST /control   any of: outage {ms}, errors {status, count, path, method}, swallow {count, path, method}, latency_ms (another ends the wait of
                    those that wait), rate,
                    weights {action: weight}, ws up|down, sse up|down, drop_connections true,
                    emit {channel, event, data, count} or {channel, raw} or {channel, raw_bytes}
    GET  /control/stats   connections, requests per path, joins per channel, how often each Idempotency-Key was acted upon and sent
    GET  /control/truth   the whole state

A write with an `Idempotency-Key` acts once; it is the member `mutation_id` of what the write made, and of the event that tells of it. To
`swallow` an answer is to act, and cut the connection. During an outage every connection is cut without an answer, new ones too; traffic goes on. `/control` always answers. The process ends
when the one that started it does.

Long because it is a table of routes with a few lines behind each. What must not live here: the model (`tracker`), what happens in it
(`traffic`), who listens (`hub`).

It is one thing because every route is a few lines over the same tracker.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import orjson
import uvloop
from aiohttp import WSMsgType, web

from cluster.demo.hub import Hub, Listener, encode_event
from cluster.demo.tracker import Emission, Json, RefusedError, Tracker
from cluster.demo.traffic import Traffic

DEFAULT_PORT = 8710
DEFAULT_RATE = 14.0
"""Actions per second; with the activities that tasks and messages cause, about 20 events."""
KEEP_ALIVE_S = 10.0
PACE_S = 0.01
"""Actions of a high rate happen in bursts this far apart."""
BURST = 2_000
"""Most actions in one go; a process that was held up does not catch up beyond it."""
REMEMBERED_REQUESTS = 10_000
SHUTDOWN_S = 0.2
PARENT_CHECK_S = 0.25

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Outcome = tuple[Json, list[Emission]]


class Upstream:
    """The server. `start` and `stop` on one event loop."""

    def __init__(self, *, seed: int = 1, rate: float = DEFAULT_RATE, host: str = "127.0.0.1") -> None:
        self.tracker = Tracker(seed)
        self.traffic = Traffic(self.tracker)
        self.hub = Hub()
        self.rate = rate
        self.url = ""
        self._host = host
        self._runner: web.AppRunner | None = None
        self._pacing: asyncio.Task[None] | None = None
        self._rate_changed = asyncio.Event()
        self._requests: dict[str, int] = {}
        self._remembered: OrderedDict[tuple[str, str, str], tuple[int, bytes]] = OrderedDict()
        self._outage_until = 0.0
        self.applied: dict[str, int] = {}
        """How often each `Idempotency-Key` was acted upon: once."""
        self.keys_seen: dict[str, int] = {}
        """How often it was sent."""
        self._errors: Json = {}
        self._swallowing: Json = {}
        self._latency_s = 0.0
        self._other_latency = asyncio.Event()
        self._websockets_up = True
        self._streams_up = True

    @property
    def ws_url(self) -> str:
        """Of the WebSocket."""
        return self.url.replace("http://", "ws://", 1) + "/ws"

    async def start(self, port: int = 0) -> str:
        """Serve, let things happen, and return the base URL."""
        app = web.Application(middlewares=[self._gate], client_max_size=32 * 1024 * 1024)
        app.add_routes(self._routes())
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, port, backlog=1024)
        await site.start()
        bound = self._runner.addresses[0]
        self.url = f"http://{self._host}:{bound[1]}"
        self._pacing = asyncio.get_running_loop().create_task(self._pace())
        return self.url

    async def stop(self) -> None:
        """Cut all connections and serve no longer."""
        if self._pacing is not None:
            self._pacing.cancel()
            await asyncio.gather(self._pacing, return_exceptions=True)
            self._pacing = None
        self.hub.hang_up()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    # --- switches, for tests in this process; `/control` calls the same ------------------------------------------

    def emit(self, emissions: list[Emission]) -> None:
        """Broadcast."""
        for emission in emissions:
            self.hub.broadcast(emission)

    def outage(self, ms: float) -> None:
        """Answer nobody for so long; 0 ends it."""
        self._outage_until = asyncio.get_running_loop().time() + ms / 1000.0
        if ms:
            self.hub.hang_up()

    def fail(self, status: int, count: int = 1, path: str = "", method: str = "") -> None:
        """Answer the next `count` requests below `path` (of a method, if it is given) with an error, and do nothing else."""
        self._errors = {"status": status, "count": count, "path": path, "method": method}

    def swallow(self, count: int = 1, path: str = "", method: str = "") -> None:
        """Do what the next `count` requests below `path` ask for, and cut the connection instead of answering."""
        self._swallowing = {"count": count, "path": path, "method": method}

    def set_rate(self, rate: float) -> None:
        """Change how many actions happen per second; 0 stops them."""
        self.rate = rate
        self._rate_changed.set()

    def control(self, command: Json) -> None:
        """Turn switches.

        Raises:
            ValueError: an unknown switch or value.
        """
        for name, value in command.items():
            match name, value:
                case "outage", {"ms": int() | float() as ms}:
                    self.outage(ms)
                case "errors", {"status": int() as status}:
                    self.fail(
                        status, int(value.get("count", 1)), str(value.get("path", "")), str(value.get("method", ""))
                    )
                case "swallow", dict():
                    self.swallow(int(value.get("count", 1)), str(value.get("path", "")), str(value.get("method", "")))
                case "latency_ms", int() | float():
                    self._latency_s = value / 1000.0
                    # Those that wait go on.
                    self._other_latency.set()
                    self._other_latency = asyncio.Event()
                case "rate", int() | float():
                    self.set_rate(value)
                case "weights", dict():
                    self.traffic.weigh(value)
                case "drop_connections", True:
                    self.hub.hang_up()
                case "ws", "up" | "down":
                    self._websockets_up = value == "up"
                    self.hub.hang_up(frames=not self._websockets_up, events=False)
                case "sse", "up" | "down":
                    self._streams_up = value == "up"
                    self.hub.hang_up(frames=False, events=not self._streams_up)
                case "emit", dict():
                    self._emit_command(value)
                case _:
                    raise ValueError(f"unknown switch or value: {name}: {value!r}")

    def stats(self) -> Json:
        """What was asked of the server so far, and who is connected."""
        return {
            "connections": len(self.hub.listeners),
            "requests": self._requests,
            "joined": self.hub.joined(),
            "streaming": self.hub.streaming(),
            "subscribes": self.hub.subscribes,
            "unsubscribes": self.hub.unsubscribes,
            "emitted": self.hub.emitted,
            "rate": self.rate,
            "applied": self.applied,
            "keys_seen": self.keys_seen,
        }

    def _emit_command(self, command: Json) -> None:
        channel = str(command["channel"])
        count = int(command.get("count", 1))
        for number in range(count):
            if "raw" in command:
                self.hub.send_raw(channel, str(command["raw"]).encode())
            elif "raw_bytes" in command:
                self.hub.send_raw(channel, b"x" * int(command["raw_bytes"]))
            else:
                data = _numbered(command.get("data"), number)
                self.hub.broadcast(Emission(channel, str(command["event"]), data))

    # --- traffic -------------------------------------------------------------------------------------------------

    async def _pace(self) -> None:
        loop_time = asyncio.get_running_loop().time
        done_at = loop_time()
        while True:
            if self.rate <= 0:
                self._rate_changed.clear()
                await self._rate_changed.wait()
                done_at = loop_time()
                continue
            await asyncio.sleep(max(done_at + 1 / self.rate - loop_time(), PACE_S))
            if self.rate <= 0:
                continue
            due = min(int((loop_time() - done_at) * self.rate), BURST)
            done_at = loop_time() if due == BURST else done_at + due / self.rate
            for _ in range(due):
                self.emit(self.traffic.act())

    # --- HTTP ----------------------------------------------------------------------------------------------------

    def _routes(self) -> list[web.RouteDef]:
        tracker = self.tracker
        created, changed, removed = self._created, self._changed, self._removed
        return [
            web.get("/projects", self._projects),
            web.get("/projects/{id}", self._shown(tracker.project)),
            web.patch("/projects/{id}", changed(tracker.update_project)),
            web.get("/tasks", self._listed(tracker.task_list, "projectId")),
            web.get("/tasks/{id}", self._shown(tracker.task)),
            web.post("/tasks", created(tracker.create_task)),
            web.patch("/tasks/{id}", changed(tracker.update_task)),
            web.delete("/tasks/{id}", removed(tracker.delete_task)),
            web.get("/messages", self._listed(tracker.message_list, "channelId")),
            web.get("/messages/{id}", self._shown(tracker.message)),
            web.post("/messages", created(tracker.create_message)),
            web.patch("/messages/{id}", changed(tracker.update_message)),
            web.delete("/messages/{id}", removed(tracker.delete_message)),
            web.get("/comments", self._comments),
            web.post("/comments", created(tracker.create_comment)),
            web.patch("/comments/{id}", changed(tracker.update_comment)),
            web.delete("/comments/{id}", removed(tracker.delete_comment)),
            web.get("/documents", self._documents),
            web.get("/documents/{id}", self._shown(tracker.document)),
            web.post("/documents", created(tracker.create_document)),
            web.patch("/documents/{id}", changed(tracker.update_document)),
            web.delete("/documents/{id}", removed(tracker.delete_document)),
            web.get("/posts", self._posts),
            web.post("/posts", created(tracker.create_post)),
            web.get("/users", self._users),
            web.patch("/users/{id}", changed(tracker.update_user)),
            web.get("/api/activity", self._activity),
            web.get("/api/activity/missed", self._missed),
            web.get("/api/activity/stream", self._activity_stream),
            web.get("/api/dashboards/{id}/metrics", self._metrics),
            web.get("/api/dashboards/{id}/metrics/stream", self._metrics_stream),
            web.get("/api/dashboards/{id}/metrics/{metric}", self._metric),
            web.get("/api/dashboards/{id}/alerts", self._alerts),
            web.get("/ws", self._websocket),
            web.get("/control/stats", self._control_stats),
            web.get("/control/truth", self._control_truth),
            web.post("/control", self._control),
        ]

    @web.middleware
    async def _gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count, and be as broken as the switches say."""
        path = request.path
        if path.startswith("/control"):
            return await handler(request)
        route = f"{request.method} {path}"
        self._requests[route] = self._requests.get(route, 0) + 1
        if asyncio.get_running_loop().time() < self._outage_until:
            raise _cut(request)
        if _is_next(self._errors, request):
            return _refused(self._errors["status"], "INJECTED", "an error was asked for")
        if self._latency_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._latency_s):
                    await self._other_latency.wait()
        is_swallowed = _is_next(self._swallowing, request)
        try:
            answer = await handler(request)
        except RefusedError as refusal:
            answer = _refused(refusal.status, refusal.code, str(refusal), **refusal.details)
        if is_swallowed:
            raise _cut(request)
        return answer

    @staticmethod
    def _shown(find: Callable[[str], Json]) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            return _answer(find(request.match_info["id"]))

        return handle

    @staticmethod
    def _listed(find: Callable[[str], list[Json]], parameter: str) -> Handler:
        async def handle(request: web.Request) -> web.Response:
            return _answer(find(_parameter(request, parameter)))

        return handle

    def _created(self, create: Callable[[Json], Outcome]) -> Handler:
        def act(_request: web.Request, body: Json) -> tuple[int, bytes]:
            item, emissions = create(body)
            answer = orjson.dumps(item)
            self.emit(emissions)
            return 201, answer

        return self._once(act)

    def _changed(self, change: Callable[[str, Json], Outcome]) -> Handler:
        def act(request: web.Request, body: Json) -> tuple[int, bytes]:
            item, emissions = change(request.match_info["id"], body)
            answer = orjson.dumps(item)
            self.emit(emissions)
            return 200, answer

        return self._once(act)

    def _removed(self, remove: Callable[[str, Json], list[Emission]]) -> Handler:
        def act(request: web.Request, body: Json) -> tuple[int, bytes]:
            self.emit(remove(request.match_info["id"], body))
            return 204, b""

        return self._once(act)

    def _once(self, act: Callable[[web.Request, Json], tuple[int, bytes]]) -> Handler:
        """Answer a repeated `Idempotency-Key` with what was answered the first time."""

        async def handle(request: web.Request) -> web.Response:
            body = await _body(request)
            key = (request.method, request.path, request.headers.get("Idempotency-Key", ""))
            if key[2]:
                _count(self.keys_seen, key[2])
                body["mutation_id"] = key[2]
            remembered = self._remembered.get(key) if key[2] else None
            if remembered is None:
                remembered = act(request, body)
                if key[2]:
                    _count(self.applied, key[2])
                    self._remembered[key] = remembered
                    if len(self._remembered) > REMEMBERED_REQUESTS:
                        self._remembered.popitem(last=False)
            status, answer = remembered
            return web.Response(status=status, body=answer or None, content_type="application/json")

        return handle

    async def _projects(self, request: web.Request) -> web.Response:
        wanted = request.query
        return _answer(
            [
                project
                for project in self.tracker.project_list()
                if all(str(project.get(name)) == value for name, value in wanted.items())
            ]
        )

    async def _comments(self, request: web.Request) -> web.Response:
        post_id = _parameter(request, "postId")
        return _answer([comment for comment in self.tracker.comments.values() if comment["postId"] == post_id])

    async def _documents(self, _request: web.Request) -> web.Response:
        return _answer(list(self.tracker.documents.values()))

    async def _posts(self, request: web.Request) -> web.Response:
        offset, limit = request.query.get("offset", "0"), request.query.get("limit", "20")
        if not (offset.isdecimal() and limit.isdecimal()):
            raise RefusedError(400, "BAD_REQUEST", "offset and limit must be whole numbers")
        return _answer(self.tracker.post_list(_parameter(request, "feedId"), int(offset), int(limit)))

    async def _users(self, _request: web.Request) -> web.Response:
        return _answer(list(self.tracker.users.values()))

    async def _activity(self, _request: web.Request) -> web.Response:
        return _answer(self.tracker.activity_list())

    async def _missed(self, request: web.Request) -> web.Response:
        missed = self.tracker.activity_since(request.query.get("since", ""))
        if missed is None:
            raise RefusedError(410, "GONE", "that event is unknown, or too long ago")
        return _answer([{"id": item["id"], "event": "activity", "data": item} for item in missed])

    async def _metrics(self, request: web.Request) -> web.Response:
        return _answer(self._dashboard(request))

    async def _metric(self, request: web.Request) -> web.Response:
        metric = self._dashboard(request).get(request.match_info["metric"])
        if metric is None:
            raise RefusedError(404, "NOT_FOUND", "no such metric")
        return _answer(metric)

    async def _alerts(self, request: web.Request) -> web.Response:
        self._dashboard(request)
        return _answer(list(self.tracker.alerts[request.match_info["id"]]))

    def _dashboard(self, request: web.Request) -> dict[str, Json]:
        metrics = self.tracker.metrics.get(request.match_info["id"])
        if metrics is None:
            raise RefusedError(404, "NOT_FOUND", "no such dashboard")
        return metrics

    async def _control(self, request: web.Request) -> web.Response:
        try:
            self.control(await _body(request))
        except (ValueError, KeyError, TypeError) as exc:
            return _refused(400, "BAD_REQUEST", str(exc))
        return web.Response(status=204)

    async def _control_stats(self, _request: web.Request) -> web.Response:
        return _answer(self.stats())

    async def _control_truth(self, _request: web.Request) -> web.Response:
        return _answer(self.tracker.truth())

    # --- streams -------------------------------------------------------------------------------------------------

    async def _activity_stream(self, request: web.Request) -> web.StreamResponse:
        last = request.headers.get("Last-Event-ID", "")
        missed = self.tracker.activity_since(last) if last else []
        if missed is None:  # what is kept is all that can be said
            missed = list(self.tracker.activity)
        backlog = [encode_event("activity", item, item["id"]) for item in missed]
        return await self._stream(request, "activity", backlog)

    async def _metrics_stream(self, request: web.Request) -> web.StreamResponse:
        self._dashboard(request)
        return await self._stream(request, f"dashboard:{request.match_info['id']}", [])

    async def _stream(self, request: web.Request, channel: str, backlog: list[bytes]) -> web.StreamResponse:
        if not self._streams_up:
            raise RefusedError(503, "UNAVAILABLE", "event streams are switched off")
        listener = self._listener(request)
        self.hub.stream(listener, channel)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        try:
            await response.prepare(request)
            await response.write(b": welcome\n\n" + b"".join(backlog))
            while not listener.closed:
                waiting = await listener.take(KEEP_ALIVE_S)
                await response.write(b"".join(waiting) or b": keep-alive\n\n")
        except ConnectionError:
            pass
        finally:
            self.hub.forget(listener)
        return response

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        if not self._websockets_up:
            raise RefusedError(503, "UNAVAILABLE", "the WebSocket is switched off")
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        listener = self._listener(request)
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(self._write(socket, listener))
            try:
                async for message in socket:
                    if message.type is WSMsgType.TEXT:
                        self._told(listener, message.data)
            finally:
                self.hub.forget(listener)
                writing.cancel()
        return socket

    async def _write(self, socket: web.WebSocketResponse, listener: Listener) -> None:
        try:
            while True:
                for frame in await listener.take():
                    await socket.send_frame(frame, WSMsgType.TEXT)
        except ConnectionError:
            pass

    def _told(self, listener: Listener, text: str) -> None:
        try:
            match orjson.loads(text):
                case {"action": "subscribe", "channel": str(channel)}:
                    self.hub.subscribe(listener, channel)
                case {"action": "unsubscribe", "channel": str(channel)}:
                    self.hub.unsubscribe(listener, channel)
                case _:
                    listener.put(b'{"event":"error","data":"unknown action"}')
        except orjson.JSONDecodeError:
            listener.put(b'{"event":"error","data":"not JSON"}')

    def _listener(self, request: web.Request) -> Listener:
        transport = request.transport

        def hang_up() -> None:
            if transport is not None:
                transport.abort()

        listener = Listener(hang_up)
        self.hub.listeners.add(listener)
        return listener


def _answer(value: Any) -> web.Response:
    return web.Response(body=orjson.dumps(value), content_type="application/json")


def _count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
    if len(counts) > REMEMBERED_REQUESTS:
        del counts[next(iter(counts))]


def _is_next(switch: Json, request: web.Request) -> bool:
    """Whether a request is one of those that a switch is about, of which it then counts one less."""
    if switch.get("count", 0) <= 0 or not request.path.startswith(switch["path"]):
        return False
    if switch["method"] not in ("", request.method):
        return False
    switch["count"] -= 1
    return True


def _cut(request: web.Request) -> asyncio.CancelledError:
    if request.transport is not None:
        request.transport.abort()
    return asyncio.CancelledError()


def _refused(status: int, code: str, message: str, **details: Any) -> web.Response:
    body = orjson.dumps({"code": code, "message": message, **details})
    return web.Response(status=status, body=body, content_type="application/json")


def _parameter(request: web.Request, name: str) -> str:
    value = request.query.get(name)
    if value is None:
        raise RefusedError(400, "BAD_REQUEST", f"the parameter {name} is missing")
    return value


async def _body(request: web.Request) -> Json:
    raw = await request.read()
    if not raw:
        return {}
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        raise RefusedError(400, "BAD_REQUEST", "the body is not JSON") from exc
    if not isinstance(body, dict):
        raise RefusedError(400, "BAD_REQUEST", "the body is not an object")
    return body


def _numbered(data: Any, number: int) -> Any:
    """Replace members that are the text `{n}` by the emission's number."""
    if isinstance(data, dict):
        return {name: _numbered(value, number) for name, value in data.items()}
    return number if data == "{n}" else data


async def serve(port: int, seed: int, rate: float, host: str, *, outlive_parent: bool) -> None:
    """Serve until SIGTERM, SIGINT, or the end of the process that started this one."""
    loop = asyncio.get_running_loop()
    parent = os.getppid()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    upstream = Upstream(seed=seed, rate=rate, host=host)
    url = await upstream.start(port)
    print(f"upstream ready: {url}", flush=True)  # noqa: T201 - the line its starter waits for
    while not ended.is_set() and (outlive_parent or os.getppid() == parent):
        try:
            async with asyncio.timeout(PARENT_CHECK_S):
                await ended.wait()
        except TimeoutError:
            continue
    await upstream.stop()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m cluster.demo.upstream", description="The sample upstream.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes any free one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--rate", type=float, default=DEFAULT_RATE, help="actions per second; 0: only what is asked for"
    )
    parser.add_argument("--outlive-parent", action="store_true", help="go on when the process that started this ends")
    options = parser.parse_args(arguments)
    try:
        uvloop.run(serve(options.port, options.seed, options.rate, options.host, outlive_parent=options.outlive_parent))
    except OSError as exc:
        print(f"upstream: {exc}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
