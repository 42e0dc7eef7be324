import asyncio

import pytest
from aiohttp import web

from cluster.core.retry import Backoff
from cluster.sources.sse import SseSource
from tests.live import free_port

QUICK = Backoff(initial_ms=5, max_ms=20, attempts=3)


class Upstream:
    """A real server; a test writes into `streams`."""

    def __init__(self):
        self.streams = []
        self.requests = []
        self.answer = None
        self.release = asyncio.Event()

    async def handle(self, request):
        self.requests.append(request.headers)
        if self.answer is not None:
            return self.answer()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        self.streams.append((request, response))
        await self.release.wait()
        return response

    async def start(self, port=None, tls=None):
        app = web.Application()
        app.add_routes([web.get("/stream", self.handle)])
        self.runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port or free_port(), ssl_context=tls).start()
        self.port = self.runner.addresses[0][1]
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}/stream"

    async def stop(self):
        self.release.set()
        await self.runner.cleanup()


@pytest.fixture
async def upstream():
    upstream = Upstream()
    await upstream.start()
    yield upstream
    await upstream.stop()


async def test_events_arrive(upstream, recorder, running):
    running(
        SseSource(
            "activity",
            upstream.url,
            recorder,
            headers={"X-Key": "k", "accept": "text/html", "user-agent": "me"},
            backoff=QUICK,
        )
    )
    await recorder.until(lambda: recorder.opens)
    await upstream.streams[0][1].write(b'id: 1\nevent: activity\ndata: {"a":1}\n\ndata: two\n')
    await upstream.streams[0][1].write(b"\n")
    await recorder.until(lambda: len(recorder.events) == 2)
    assert recorder.events == [("activity", b'{"a":1}', "1"), ("message", b"two", None)]
    assert recorder.calls[:3] == ["connecting", "opened", "connected"]
    headers = upstream.requests[0]
    assert (headers.getall("Accept"), headers["X-Key"]) == (["text/event-stream"], "k")
    assert headers.getall("User-Agent") == ["me"]
    assert "Last-Event-ID" not in headers


async def test_a_reconnect_sends_the_last_id_and_keeps_the_named_delay(upstream, recorder, running):
    delays = []

    class Noting(Backoff, frozen=True):
        def delay_ms(self, failures, random, initial_ms=None):
            delays.append(initial_ms)
            return 1.0

    source = SseSource("activity", upstream.url, recorder, backoff=Noting())
    running(source)
    await recorder.until(lambda: recorder.opens)
    await upstream.streams[0][1].write(b"retry: 7\nid: 41\ndata: a\n\nid: 42\ndata: incomplete")
    await recorder.until(lambda: recorder.events)
    recorder.positions[None] = recorder.events[0][2]
    upstream.streams[0][0].transport.abort()
    await recorder.until(lambda: recorder.opens == 2)
    assert upstream.requests[1]["Last-Event-ID"] == "41"
    assert delays == [7.0]
    assert source.reconnects == 1
    assert len(recorder.events) == 1


async def test_an_id_beyond_ascii_goes_along_in_utf_8(upstream, recorder, running):
    recorder.positions[None] = "café"
    running(SseSource("activity", upstream.url, recorder, backoff=QUICK))
    await recorder.until(lambda: recorder.opens)
    assert upstream.requests[0]["Last-Event-ID"] == "café"


async def test_the_upstream_ends_the_stream(upstream, recorder, running):
    running(SseSource("activity", upstream.url, recorder, backoff=QUICK))
    await recorder.until(lambda: recorder.opens)
    upstream.release.set()
    await recorder.until(lambda: recorder.opens >= 2)
    assert recorder.reasons[0] == "the upstream ended the stream"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda: web.Response(status=503), "http 503"),
        (lambda: web.Response(status=404), "http 404"),
        (lambda: web.Response(status=302, headers={"Location": "/stream"}), "http 302"),
        (lambda: web.json_response({}), "content type is application/json; charset=utf-8, not text/event-stream"),
    ],
)
async def test_a_wrong_answer_is_a_failure_with_its_reason(upstream, recorder, running, answer, reason):
    upstream.answer = answer
    running(SseSource("activity", upstream.url, recorder, backoff=QUICK))
    await recorder.until(lambda: "failed" in recorder.states)
    assert set(recorder.reasons) == {reason}
    assert recorder.opens == 0
    upstream.answer = None
    await recorder.until(lambda: recorder.opens)


async def test_204_ends_it(upstream, recorder):
    upstream.answer = lambda: web.Response(status=204)
    async with asyncio.timeout(60):
        await SseSource("activity", upstream.url, recorder, backoff=QUICK).run()
    assert recorder.states == ["connecting", "disconnected"]
    assert recorder.reasons[0].startswith("http 204")


async def test_the_server_is_killed_and_comes_back(recorder, running):
    upstream = Upstream()
    await upstream.start()
    running(SseSource("activity", upstream.url, recorder, backoff=QUICK))
    await recorder.until(lambda: recorder.opens)
    await upstream.stop()
    await recorder.until(lambda: "failed" in recorder.states)
    upstream.release = asyncio.Event()
    await upstream.start(upstream.port)
    await recorder.until(lambda: recorder.opens >= 2)
    await upstream.streams[-1][1].write(b"data: again\n\n")
    await recorder.until(lambda: recorder.events)
    await upstream.stop()


async def test_a_held_source_stops_reading_so_that_the_upstream_blocks(upstream, recorder, running):
    recorder.accept = lambda: len(recorder.events) != 3
    source = SseSource("activity", upstream.url, recorder, backoff=QUICK)
    running(source)
    await recorder.until(lambda: recorder.opens)
    sent = 0

    async def blast():
        nonlocal sent
        for number in range(600):
            await upstream.streams[0][1].write(b"data: %06d%b\n\n" % (number, b"x" * 65_536))
            sent += 1

    task = asyncio.create_task(blast())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await asyncio.shield(task)
    assert sent < 550
    assert len(recorder.events) == 3
    recorder.accept = lambda: True
    source.resume()
    await task
    await recorder.until(lambda: len(recorder.events) == 600)
    assert [int(data[:6]) for _event, data, _id in recorder.events] == list(range(600))


async def test_a_huge_event_is_refused_and_the_stream_goes_on(upstream, recorder, running):
    source = SseSource("activity", upstream.url, recorder, backoff=QUICK, max_event_bytes=1000)
    running(source)
    await recorder.until(lambda: recorder.opens)
    await upstream.streams[0][1].write(b"data: %b\n\ndata: after\n\n" % (b"x" * 10 * 1024 * 1024))
    await recorder.until(lambda: recorder.events and recorder.refusals)
    assert recorder.events == [("message", b"after", None)]
    assert recorder.refusals == [("too_large", 10 * 1024 * 1024 + len("data: "))]
    assert source.reconnects == 0


async def test_a_line_without_end_drops_the_connection(upstream, recorder, running, monkeypatch):
    monkeypatch.setattr("cluster.sources.sse_parser.ENDLESS_BYTES", 100_000)
    running(SseSource("activity", upstream.url, recorder, backoff=QUICK, max_event_bytes=1000))
    await recorder.until(lambda: recorder.opens)
    await upstream.streams[0][1].write(b"x" * 300_000)
    await recorder.until(lambda: recorder.reasons)
    assert recorder.reasons[0] == "line_too_long"


async def test_a_silent_stream_is_dropped_after_two_heartbeats(upstream, recorder, running):
    running(SseSource("activity", upstream.url, recorder, backoff=QUICK, heartbeat_ms=50))
    await recorder.until(lambda: recorder.opens == 2)
    assert "imeout" in recorder.reasons[0]


async def test_cancelling_closes(upstream, recorder, running):
    source = SseSource("activity", upstream.url, recorder, backoff=QUICK)
    task = running(source)
    await recorder.until(lambda: recorder.opens)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert recorder.states[-1] == "disconnected"


async def test_asked_to_reconnect_it_does_at_once_though_it_is_held(upstream, recorder, running):
    recorder.accept = lambda: False
    source = SseSource("activity", upstream.url, recorder, backoff=QUICK)
    running(source)
    await recorder.until(lambda: recorder.opens)
    await upstream.streams[0][1].write(b"id: 1\ndata: a\n\n")
    await recorder.until(lambda: recorder.events)
    recorder.positions[None] = "1"
    recorder.accept = lambda: True
    source.reconnect()
    source.reconnect()
    await recorder.until(lambda: recorder.opens == 2)
    await upstream.streams[1][1].write(b"data: b\n\n")
    await recorder.until(lambda: len(recorder.events) == 2)
    assert upstream.requests[1]["Last-Event-ID"] == "1"
    assert recorder.states == ["connecting", "connected"], "it was not lost"
    assert (source.reconnects, recorder.reasons) == (1, [])


@pytest.mark.parametrize("head", [b"302 Found\r\nLocation: mailto:a:b", b"200 caf\xe9\r\nContent-Length: 0"])
async def test_an_answer_that_cannot_be_read_is_a_failure(recorder, running, head):
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 " + head + b"\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        running(SseSource("activity", f"http://127.0.0.1:{port}/", recorder, backoff=QUICK))
        await recorder.until(lambda: "failed" in recorder.states)


async def test_the_environment_names_who_vouches_for_certificates(
    certificate, tls_context, recorder, running, monkeypatch
):
    upstream = Upstream()
    await upstream.start(tls=tls_context)
    try:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        running(SseSource("activity", upstream.url, recorder, backoff=QUICK))
        await recorder.until(lambda: recorder.opens or recorder.reasons)
        assert recorder.reasons == []
    finally:
        await upstream.stop()
