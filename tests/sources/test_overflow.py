"""A source and the machine that it feeds, as an ingestor wires them: what is held is let go again, whatever `overflow` says."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from websockets.asyncio.server import serve

from cluster.config import compile_config, load_mapping
from cluster.core.ingestion_state import CLAIM_WAIT_MS, IngestionState, Reconnect, Resume, SourceTraits
from cluster.core.messages import Blob, BlobTaken, Noted, Send
from cluster.core.overflow import Overflow
from cluster.core.placement import assign_slots
from cluster.sources.http_lines import HttpLinesSource
from cluster.sources.sse import SseSource
from cluster.sources.websocket import WebSocketSource
from tests.sources.conftest import QUICK, Recorder

KINDS = {"sse": SseSource, "http": HttpLinesSource, "websocket": WebSocketSource}
MUCH, MAX_BUFFER = 20, 10_000


class Ingestor(Recorder):
    """Has a machine take what a source hands over; time passes with each read, and what the machine sends is taken at once."""

    def __init__(self, kind, overflow):
        super().__init__()
        document = {
            "sources": {"s": {"type": kind, "url": "ws://x" if kind == "websocket" else "http://x"}},
            "streams": [{"source": "s", "on": {"e": {"set": {"key": ["k", "{data.n}"], "value": "{data}"}}}}],
        }
        compiled = compile_config(load_mapping(document, {}))
        self.machine = IngestionState(
            "ingestor-0",
            1,
            routers={"s": compiled.router("s")},
            always=compiled.feeds.always(),
            slots=assign_slots(range(1), 1),
            shards=1,
            coordinators=1,
            profiles=compiled.profiles,
            traits={"s": SourceTraits(overflow=overflow, max_buffer=MAX_BUFFER)},
        )
        self.source = None
        self.now = 0.0
        self.held = False
        self.taken = 0
        """Events of this connection."""
        self.wake()
        self.wake()

    def wake(self):
        self.now += CLAIM_WAIT_MS
        self.run(self.machine.wake(self.now))
        self._told.set()
        if self.held:
            asyncio.get_running_loop().call_soon(self.wake)

    def run(self, effects):
        for effect in effects:
            match effect:
                case Send(to=to, message=message):
                    is_blob = isinstance(message, Blob)
                    answer = BlobTaken(1, 100.0, message.header.sequence) if is_blob else Noted(1)
                    self.run(self.machine.answered(to, message, answer, self.now))
                case Reconnect():
                    self.calls.append("reconnect")
                    self.held, self.taken = False, 0
                    self.source.reconnect()
                case Resume():
                    self.calls.append("resume")
                    self.held = False
                    self.source.resume()

    def opened(self, source):
        self.run(self.machine.opened(source, self.now))
        super().opened(source)

    def closed(self, source, reason):
        self.machine.closed(source)
        super().closed(source, reason)

    def received(self, source, frames):
        self.taken += len(frames)
        return self.goes_on(self.machine.receive(source, frames, self.now))

    def received_events(self, source, events):
        self.taken += len(events)
        return self.goes_on(self.machine.receive_events(source, events, self.now))

    def goes_on(self, goes_on):
        self._told.set()
        if not goes_on:
            self.held = True
            asyncio.get_running_loop().call_soon(self.wake)
        return goes_on


@asynccontextmanager
async def upstream(kind):
    """An upstream that says much at once to who comes first, and little to who comes then."""
    came = 0

    def events():
        nonlocal came
        came += 1
        data = [b'{"n":%d,"text":"%b"}' % (n, b"x" * 1000) for n in range(MUCH if came == 1 else 1)]
        return b"".join(
            b"event: e\ndata: %b\n\n" % each if kind == "sse" else b'{"event":"e","data":%b}\n' % each for each in data
        )

    async def stream(request):
        content_type = "text/event-stream" if kind == "sse" else "application/x-ndjson"
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        await response.write(events())
        await asyncio.Event().wait()

    async def talk(connection):
        for line in events().splitlines():
            await connection.send(line)
        await connection.wait_closed()

    if kind == "websocket":
        async with serve(talk, "127.0.0.1", 0) as server:
            yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return
    app = web.Application()
    app.add_routes([web.get("/", stream)])
    runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    await runner.cleanup()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("overflow", "does", "events"), [(Overflow.PAUSE, "resume", MUCH), (Overflow.DISCONNECT, "reconnect", 1)]
)
async def test_a_source_that_overflows_is_read_again(running, kind, overflow, does, events):
    ingestor = Ingestor(kind, overflow)
    async with upstream(kind) as url:
        ingestor.source = KINDS[kind]("s", url, ingestor, backoff=QUICK)
        running(ingestor.source)
        await ingestor.until(lambda: does in ingestor.calls)
        await ingestor.until(lambda: ingestor.taken >= events)
