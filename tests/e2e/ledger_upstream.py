"""An upstream whose n-th event follows from n, so that it can say anything again and a test knows what should have come of it.

python -m tests.e2e.ledger_upstream PORT RATE [CHANNELS [LAST]]

begins after the event LAST, as one that was away does, and serves /sse, /ws (`{join, after?}`, `{leave}`; events have ids unless asked for at /ws?ids=no) and /last/KEY, the value that `set` gave last;
POST /cut drops all connections, POST /stop ends the ledger, POST /go?rate=RATE goes on with it
"""

import asyncio
import sys
import time
from contextlib import suppress
from typing import Any

import orjson
from aiohttp import WSMsgType, web

KEYS = 50
KEPT = 200
"""Items that a list keeps."""
TICK_S = 0.005
KINDS = ("append", "bump", "set", "bump")


def event(n: int, channels: int = 2) -> tuple[str, str, dict[str, Any]]:
    """Return (channel, name, data) of the n-th event, from 1 on."""
    k = n % KEYS
    return f"ledger:{k % channels}", KINDS[n // KEYS % 4], {"k": f"k{k}", "n": n}


def truth(last: int) -> dict[str, Any]:
    """Return what the entries are after the `last`-th event, by canonical key."""
    lists: dict[str, list[int]] = {}
    counts: dict[str, int] = {}
    sets: dict[str, int] = {}
    for n in range(1, last + 1):
        _, name, data = event(n)
        match name:
            case "append":
                lists.setdefault(data["k"], []).append(n)
            case "bump":
                counts[data["k"]] = counts.get(data["k"], 0) + 1
            case _:
                sets[data["k"]] = n
    return {
        **{f'["list","{k}"]': items[-KEPT:] for k, items in lists.items()},
        **{f'["count","{k}"]': {"n": count} for k, count in counts.items()},
        **{f'["last","{k}"]': n for k, n in sets.items()},
    }


class Ledger:
    def __init__(self, rate: float, channels: int = 2, last: int = 0) -> None:
        self._rate = rate
        self._before = last
        """Number of the last event before those that are told by the clock."""
        self._channels = channels
        self._began: float | None = None
        self._stopped: int | None = None
        self._cut = asyncio.Event()

    @property
    def last(self) -> int:
        """Number of the last event that has happened."""
        if self._stopped is not None:
            return self._stopped
        return self._before + (0 if self._began is None else int((time.monotonic() - self._began) * self._rate))

    async def _events(self, after: int) -> Any:
        """Yield ranges of new events, until the connection is cut."""
        cut = self._cut
        while not cut.is_set():
            last = min(self.last, after + 2_000)
            if last > after:
                yield range(after + 1, last + 1)
                after = last
            await asyncio.sleep(TICK_S)

    async def sse(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self._began = self._began or time.monotonic()
        with suppress(ConnectionError):
            async for numbers in self._events(int(request.headers.get("Last-Event-ID", self.last))):
                chunk = bytearray()
                for n in numbers:
                    _, name, data = event(n)
                    chunk += b"id: %d\nevent: %b\ndata: %b\n\n" % (n, name.encode(), orjson.dumps(data))
                await response.write(bytes(chunk))
        if request.transport is not None:
            request.transport.abort()
        return response

    async def ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        tasks: dict[str, asyncio.Task[None]] = {}
        with_ids = request.query.get("ids") != "no"
        self._began = self._began or time.monotonic()

        async def feed(channel: str, after: int) -> None:
            fed = {n for n in range(KEYS) if event(n, self._channels)[0] == channel}
            with suppress(ConnectionError):
                async for numbers in self._events(after):
                    for n in numbers:
                        if n % KEYS in fed:
                            _, name, data = event(n)
                            said = {"event": name, "channel": channel, "data": data}
                            await socket.send_bytes(orjson.dumps({**said, "id": n} if with_ids else said))
            if request.transport is not None:
                request.transport.abort()

        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    asked = orjson.loads(message.data)
                    channel = asked.get("join") or asked["leave"]
                    if channel in tasks:
                        tasks.pop(channel).cancel()
                    if "join" in asked:
                        after = asked.get("after", 0 if with_ids else self.last)
                        tasks[channel] = asyncio.create_task(feed(channel, after))
        finally:
            for task in tasks.values():
                task.cancel()
        return socket

    async def last_of(self, request: web.Request) -> web.Response:
        number = int(request.match_info["key"].removeprefix("k"))
        last = self.last
        for n in range(last - (last - number) % KEYS, 0, -KEYS):
            if event(n)[1] == "set":
                return web.json_response(n)
        return web.json_response(0)

    async def cut(self, _: web.Request) -> web.Response:
        self._cut.set()
        self._cut = asyncio.Event()
        return web.Response()

    async def stop(self, _: web.Request) -> web.Response:
        self._stopped = self.last
        return web.json_response({"last": self._stopped})

    async def go(self, request: web.Request) -> web.Response:
        self._before, self._stopped = self.last, None
        self._rate, self._began = float(request.query["rate"]), time.monotonic()
        return web.json_response({"last": self._before})


def main() -> None:
    ledger = Ledger(float(sys.argv[2]), *map(int, sys.argv[3:5]))
    app = web.Application()
    app.add_routes(
        [
            web.get("/sse", ledger.sse),
            web.get("/ws", ledger.ws),
            web.get("/last/{key}", ledger.last_of),
            web.post("/cut", ledger.cut),
            web.post("/stop", ledger.stop),
            web.post("/go", ledger.go),
        ]
    )
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
