import asyncio
import json
import socket
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from tests.live import free_port


class Upstream:
    """A real server; what clients say is in `said`, a connection at a time in `sockets`."""

    def __init__(self):
        self.sockets = []
        self.said: asyncio.Queue[object] = asyncio.Queue()
        self.headers = None

    async def handle(self, connection):
        self.headers = connection.request.headers
        self.sockets.append(connection)
        try:
            async for message in connection:
                self.said.put_nowait(json.loads(message))
        except ConnectionClosed:
            pass

    async def hear(self, count):
        async with asyncio.timeout(60):
            return [await self.said.get() for _ in range(count)]

    @asynccontextmanager
    async def serving(self, port=None, **options):
        async with serve(self.handle, "127.0.0.1", port or free_port(), close_timeout=0.1, **options) as server:
            self.port = server.sockets[0].getsockname()[1]
            self.url = f"ws://127.0.0.1:{self.port}/ws"
            yield self


@pytest.fixture
async def upstream():
    async with Upstream().serving() as upstream:
        yield upstream


async def test_messages_arrive_as_bytes_in_order(source, upstream, recorder, running):
    running(source(upstream.url, recorder, headers={"Authorization": "Bearer t", "user-agent": "me"}))
    await recorder.until(lambda: recorder.opens)
    (connection,) = upstream.sockets
    sent = [str(n) * (n % 400) for n in range(2000)]
    for text in sent:
        await connection.send(text)
    await connection.send(["in ", "pieces"])
    await connection.send(b"\x00\xff")
    await recorder.until(lambda: len(recorder.frames) == 2002)
    assert recorder.frames == [text.encode() for text in sent] + [b"in pieces", b"\x00\xff"]
    assert all(type(item) is bytes for item in recorder.frames)
    assert upstream.headers["Authorization"] == "Bearer t"
    assert upstream.headers.get_all("User-Agent") == ["me"]
    assert "Sec-WebSocket-Extensions" not in upstream.headers


async def test_nothing_is_handed_over_before_opened(source, recorder, running):
    async def greet(connection):
        for number in range(50):
            await connection.send(str(number))
        await connection.wait_closed()

    async with serve(greet, "127.0.0.1", 0, close_timeout=0.1) as server:
        running(source(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", recorder))
        await recorder.until(lambda: len(recorder.frames) == 50)
    assert recorder.calls[:3] == ["connecting", "opened", "connected"]
    assert recorder.frames == [str(n).encode() for n in range(50)]


async def test_joins_before_after_and_again_after_a_reconnect(source, upstream, recorder, running):
    events = source(upstream.url, recorder)
    events.join("a")
    events.join("b")
    events.leave("b")
    running(events)
    await recorder.until(lambda: recorder.opens == 1)
    events.join("c")
    events.join("c")
    events.leave("a")
    events.leave("never")
    events.join("d")
    assert await upstream.hear(4) == [{"+": "a"}, {"+": "c"}, {"-": "a"}, {"+": "d"}]
    upstream.sockets[0].transport.abort()
    await recorder.until(lambda: recorder.opens == 2)
    assert await upstream.hear(2) == [{"+": "c"}, {"+": "d"}]
    assert upstream.said.empty()
    assert (events.reconnects, recorder.reasons) == (1, ["connection lost"])
    await upstream.sockets[1].send("x")
    await recorder.until(lambda: recorder.frames)


async def test_a_held_source_stops_reading_so_that_the_upstream_blocks(source, upstream, recorder, running):
    recorder.accept = lambda: len(recorder.frames) < 3
    events = source(upstream.url, recorder)
    running(events)
    await recorder.until(lambda: recorder.opens)
    (connection,) = upstream.sockets
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    sent = 0

    async def blast():
        nonlocal sent
        for number in range(400):
            await connection.send(b"%06d" % number + b"x" * 65_536)
            sent += 1

    task = asyncio.create_task(blast())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await asyncio.shield(task)
    assert sent < 350
    assert 3 <= len(recorder.frames) < 8, "those of the read that was refused, and no more"
    recorder.accept = lambda: True
    events.resume()
    await task
    await recorder.until(lambda: len(recorder.frames) == 400)
    assert [int(frame[:6]) for frame in recorder.frames] == list(range(400))


async def test_holding_again_while_resuming(source, upstream, recorder, running):
    recorder.accept = lambda: False
    events = source(upstream.url, recorder)
    running(events)
    await recorder.until(lambda: recorder.opens)
    (connection,) = upstream.sockets
    await connection.send("0")
    for count in range(1, 5):
        await recorder.until(lambda count=count: len(recorder.frames) >= count)
        await connection.send(str(count))
        await connection.ping()
        assert len(recorder.frames) == count
        events.resume()
    await recorder.until(lambda: len(recorder.frames) == 5)
    assert recorder.frames == [b"0", b"1", b"2", b"3", b"4"]


async def test_the_server_is_killed_and_comes_back(source, recorder, running):
    upstream = Upstream()
    async with upstream.serving():
        events = source(upstream.url, recorder)
        events.join("a")
        running(events)
        await recorder.until(lambda: recorder.opens == 1)
        await upstream.hear(1)
    await recorder.until(lambda: "failed" in recorder.states)
    assert "1001" in recorder.reasons[0]
    async with upstream.serving(port=upstream.port):
        await recorder.until(lambda: recorder.opens == 2)
        assert await upstream.hear(1) == [{"+": "a"}]
    assert recorder.states[:5] == ["connecting", "connected", "reconnecting", "failed", "connected"]


async def test_a_refused_handshake_says_why(source, recorder, running):
    def refuse(connection, request):
        return connection.respond(503, "later\n")

    async with Upstream().serving(process_request=refuse) as upstream:
        running(source(upstream.url, recorder))
        await recorder.until(lambda: recorder.reasons)
    assert recorder.reasons[0] == "http 503"
    assert recorder.opens == 0


async def test_redirects_are_not_followed(source, upstream, recorder, running):
    def redirect(connection, request):
        response = connection.respond(302, "")
        response.headers["Location"] = upstream.url
        return response

    async with Upstream().serving(process_request=redirect) as detour:
        running(source(detour.url, recorder))
        await recorder.until(lambda: recorder.reasons)
    assert recorder.reasons[0] == "http 302"
    assert upstream.sockets == []


@pytest.fixture
async def silent():
    """A server that shakes hands and then neither reads nor answers."""
    import base64
    import hashlib

    accepted = []

    async def shake(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(
            line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
        )
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n\x81\x05hel"
        )
        accepted.append(writer)

    server = await asyncio.start_server(shake, "127.0.0.1", 0)
    yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", accepted
    for writer in accepted:
        writer.transport.abort()
    server.close()


async def test_a_frame_begun_in_the_handshakes_packet(source, silent, recorder, running):
    url, accepted = silent
    running(source(url, recorder))
    await recorder.until(lambda: recorder.opens)
    accepted[0].write(b"lo\x81\x01!")
    await recorder.until(lambda: len(recorder.frames) == 2)
    assert recorder.frames == [b"hello", b"!"]


async def test_a_silent_connection_is_dropped(source, silent, recorder, running):
    url, _accepted = silent
    running(source(url, recorder, heartbeat_ms=50))
    await recorder.until(lambda: recorder.reasons)
    assert recorder.reasons[0] == "nothing heard for 0.1 s"


async def test_pongs_keep_a_quiet_connection(source, recorder, running):
    pings, seen = asyncio.Event(), 0

    class Counting(ServerConnection):
        def data_received(self, data):
            nonlocal seen
            seen += data[0] == 0x89
            if seen == 8:
                pings.set()
            super().data_received(data)

    async with Upstream().serving(create_connection=Counting) as upstream:
        running(source(upstream.url, recorder, heartbeat_ms=20))
        async with asyncio.timeout(60):
            await pings.wait()
        assert (recorder.opens, recorder.reasons) == (1, [])


async def test_a_held_connection_is_not_taken_for_dead(source, upstream, recorder, running):
    recorder.accept = lambda: False
    events = source(upstream.url, recorder, heartbeat_ms=20)
    running(events)
    await recorder.until(lambda: recorder.opens)
    await upstream.sockets[0].send("1")
    await recorder.until(lambda: recorder.frames)
    with pytest.raises(TimeoutError):
        await recorder.until(lambda: recorder.reasons, timeout_s=0.3)
    recorder.accept = lambda: True
    events.resume()
    await upstream.sockets[0].send("2")
    await recorder.until(lambda: len(recorder.frames) == 2)


async def test_a_protocol_violation_ends_the_connection(source, silent, recorder, running):
    url, accepted = silent
    running(source(url, recorder))
    await recorder.until(lambda: recorder.opens)
    accepted[0].write(b"lo\xf1\x01!")
    await recorder.until(lambda: recorder.reasons)
    assert recorder.frames == [b"hello"]
    assert recorder.reasons[0].startswith("protocol error: reserved bits")


async def test_a_close_without_an_end_is_ended_here(source, silent, recorder, running):
    url, accepted = silent
    running(source(url, recorder))
    await recorder.until(lambda: recorder.opens)
    accepted[0].write(b"lo\x88\x02\x03\xe9")
    await recorder.until(lambda: recorder.reasons, timeout_s=5)
    assert recorder.reasons[0] == "closed by the upstream: 1001"


async def test_what_the_listener_raises_ends_the_run(source, upstream, recorder):
    def refuse():
        raise ZeroDivisionError

    recorder.accept = refuse
    task = asyncio.create_task(source(upstream.url, recorder).run())
    await recorder.until(lambda: recorder.opens)
    await upstream.sockets[0].send("x")
    with pytest.raises(ZeroDivisionError):
        async with asyncio.timeout(60):
            await task
    assert recorder.states[-1] == "disconnected"


async def test_cancelling_says_goodbye(source, upstream, recorder, running):
    task = running(source(upstream.url, recorder))
    await recorder.until(lambda: recorder.opens)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await upstream.sockets[0].wait_closed()
    assert upstream.sockets[0].close_code == 1000
    assert recorder.states[-1] == "disconnected"


async def test_asked_to_reconnect_it_does_at_once_and_joins_anew(source, upstream, recorder, running):
    stream = source(upstream.url, recorder)
    stream.join("a")
    running(stream)
    await recorder.until(lambda: recorder.opens == 1)
    recorder.positions["b"] = 7
    stream.reconnect()
    stream.join("b")
    await recorder.until(lambda: recorder.opens == 2)
    assert await upstream.hear(3) == [{"+": "a"}, {"+": "a"}, {"+": "b", "after": 7}]
    assert recorder.states == ["connecting", "connected"], "it was not lost"
    assert stream.reconnects == 1
    await upstream.sockets[1].send("x")
    await recorder.until(lambda: recorder.frames)


async def test_cancelled_while_it_reconnects_it_ends(source, upstream, recorder, running):
    stream = source(upstream.url, recorder)
    task = running(stream)
    await recorder.until(lambda: recorder.opens == 1)
    stream.reconnect()
    task.cancel()
    async with asyncio.timeout(60):
        await asyncio.wait([task])
    assert recorder.states[-1] == "disconnected"


async def test_asked_to_reconnect_while_it_joins_it_does_at_once(source, recorder, running):
    upstream, deaf = Upstream(), asyncio.Event()

    async def handle(connection):
        if not deaf.is_set():  # as an upstream that is busy, and reads on when it was given up
            deaf.set()
            connection.transport.pause_reading()
            await asked.wait()
            connection.transport.resume_reading()
        await upstream.handle(connection)

    asked = asyncio.Event()
    async with serve(handle, "127.0.0.1", 0, close_timeout=0.1) as server:
        stream = source(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", recorder)
        long = "x" * 500_000
        for number in range(40):
            stream.join(f"{number} {long}")
        joined = []
        recorder.position = lambda _source, channel: joined.append(channel) or recorder._told.set()
        task = running(stream)
        await deaf.wait()
        await recorder.until(lambda: joined)
        stream.reconnect()
        for channel in joined[:1] + [f"{number} {long}" for number in range(40)]:
            stream.leave(channel)
        stream.join("a")
        asked.set()
        await recorder.until(lambda: recorder.opens)
        stream.join("b")
        said = [None]
        while said[-1] != {"+": "b"}:
            said.extend(await upstream.hear(1))
        assert said[-2] == {"+": "a"}
        assert not task.done()
        recorder.accept = lambda: False
        await upstream.sockets[-1].send("1")
        await recorder.until(lambda: recorder.frames)
        stream.resume()
        await upstream.sockets[-1].send("2")
        await recorder.until(lambda: len(recorder.frames) == 2)
