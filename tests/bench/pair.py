"""What one writes by hand for the job of the benchmark, with FastAPI and Redis, and as cheap as that gets.

One process consumes the upstream, keeps the last event of each key for 100 ms, writes a window's values into Redis by one pipeline, which also
publishes their keys for other processes, and serves the clients: a snapshot from Redis, then what changed, in one frame per client and
window. A slow client's changes are folded until it takes them; broken events are dropped; the upstream and Redis may come and go. It is for this
job alone: one rule, no versions, no resuming, nothing on disk, no second process that could take over. It speaks as much of the cluster's
protocol as the subscribers of the benchmark need.

What keeps it cheap: of an event only its key is decoded, by msgspec, straight from the frame; the payload is cut out once per key and window. Its
upstream is read by one of three libraries, `websockets` being what most would begin with and `picows` what they would end with.

Run as `python -m tests.bench.pair UPSTREAM_PORT REDIS_PORT LIBRARY`; prints its port. `GET /ages` answers, in ms, how long before each frame was
written its oldest event was received, and forgets them.
"""

import asyncio
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aiohttp
import msgspec
import orjson
import picows
import uvicorn
import uvloop
import websockets
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from redis.asyncio import Redis
from redis.exceptions import RedisError

WINDOW_S = 0.1
RETRY_S = 1.0
HASH = "metrics"
JOIN = '{"join":"metrics"}'


class Identity(msgspec.Struct, gc=False):
    id: str


class Named(msgspec.Struct, gc=False):
    event: str
    data: Identity


class Whole(msgspec.Struct, gc=False):
    data: msgspec.Raw


named = msgspec.json.Decoder(Named).decode
whole = msgspec.json.Decoder(Whole).decode


async def by_websockets(url: str, take: Callable[[bytes], None]) -> None:
    async with websockets.connect(url, compression=None) as upstream:
        await upstream.send(JOIN)
        while True:
            take(await upstream.recv(decode=False))


async def by_aiohttp(url: str, take: Callable[[bytes], None]) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(url, decode_text=False) as upstream:
        await upstream.send_str(JOIN)
        async for message in upstream:
            take(message.data)


async def by_picows(url: str, take: Callable[[bytes], None]) -> None:
    class Listener(picows.WSListener):
        def on_ws_connected(self, transport: picows.WSTransport) -> None:
            transport.send(picows.WSMsgType.TEXT, JOIN.encode())

        def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
            if frame.msg_type == picows.WSMsgType.TEXT:
                take(frame.get_payload_as_bytes())

    transport, _ = await picows.ws_connect(Listener, url)
    await transport.wait_disconnected()


LIBRARIES = {"websockets": by_websockets, "aiohttp": by_aiohttp, "picows": by_picows}


class Client:
    def __init__(self) -> None:
        self.outbox: dict[str, str] = {}
        self.oldest = 0.0
        self.snapshots_due = 0
        """Changes must not overtake a snapshot that is read."""
        self.changed = asyncio.Event()


class Hub:
    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self.latest: dict[str, bytes] = {}
        """The last frame of each key in this window."""
        self.oldest = 0.0
        self.broken = 0
        self.watchers: dict[str, set[Client]] = {}
        self.ages: deque[float] = deque(maxlen=100_000)

    def take(self, frame: bytes) -> None:
        try:
            event = named(frame)
        except msgspec.MsgspecError:
            self.broken += 1
            return
        if event.event == "metric":
            if not self.latest:
                self.oldest = time.monotonic()
            self.latest[event.data.id] = frame

    async def consume(self, read: Callable[[str, Callable[[bytes], None]], Awaitable[None]], url: str) -> None:
        while True:
            with suppress(OSError, aiohttp.ClientError, websockets.WebSocketException, picows.WSError):
                await read(url, self.take)
            await asyncio.sleep(RETRY_S)

    async def flush(self) -> None:
        while True:
            await asyncio.sleep(WINDOW_S - time.monotonic() % WINDOW_S)
            if not self.latest:
                continue
            latest, oldest = self.latest, self.oldest
            self.latest = {}
            values = {key: bytes(whole(frame).data) for key, frame in latest.items()}
            try:
                async with self.redis.pipeline(transaction=False) as pipeline:
                    pipeline.hset(HASH, mapping=values)
                    pipeline.publish(HASH, orjson.dumps(list(values)))
                    await pipeline.execute()
            except RedisError:  # with the next window, then
                self.latest, self.oldest = latest | self.latest, oldest
                continue
            for key, value in values.items():
                if watching := self.watchers.get(key):
                    change = f'{{"type":"change","key":["metrics","{key}"],"data":{value.decode()}}}'
                    for client in watching:
                        if not client.outbox:
                            client.oldest = oldest
                            client.changed.set()
                        client.outbox[key] = change

    async def serve(self, socket: WebSocket) -> None:
        await socket.accept()
        client = Client()
        sender = asyncio.create_task(self.send(socket, client))
        keys = set()
        try:
            while True:
                _, key = orjson.loads(await socket.receive_text())["key"]
                keys.add(key)
                self.watchers.setdefault(key, set()).add(client)
                client.snapshots_due += 1
                value = await self.redis.hget(HASH, key)
                have = (
                    "" if value is None else f'{{"type":"snapshot","key":["metrics","{key}"],"data":{value.decode()}}},'
                )
                await socket.send_text(f'[{have}{{"type":"snapshot_end"}}]')
                client.snapshots_due -= 1
                if client.outbox:
                    client.changed.set()
        except WebSocketDisconnect:
            pass
        finally:
            sender.cancel()
            for key in keys:
                self.watchers[key].discard(client)

    async def send(self, socket: WebSocket, client: Client) -> None:
        with suppress(WebSocketDisconnect):
            while True:
                await client.changed.wait()
                client.changed.clear()
                if client.snapshots_due:
                    continue
                frame, oldest = f"[{','.join(client.outbox.values())}]", client.oldest
                client.outbox.clear()
                await socket.send_text(frame)
                self.ages.append(time.monotonic() - oldest)


async def main() -> None:
    upstream_port, redis_port, library = sys.argv[1:]
    hub = Hub(Redis(port=int(redis_port)))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(hub.consume(LIBRARIES[library], f"ws://127.0.0.1:{upstream_port}/")),
                tasks.create_task(hub.flush()),
            ]
            yield
            for task in running:
                task.cancel()

    app = FastAPI(lifespan=lifespan)
    app.websocket("/v1/socket")(hub.serve)

    @app.get("/ages")
    async def ages() -> list[float]:
        taken = [age * 1000 for age in hub.ages]
        hub.ages.clear()
        return taken

    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    config = uvicorn.Config(app, ws="websockets-sansio", log_level="warning", access_log=False)
    await uvicorn.Server(config).serve([listening])


if __name__ == "__main__":
    uvloop.run(main())
