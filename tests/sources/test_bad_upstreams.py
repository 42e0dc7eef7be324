"""Servers that break the protocol, on raw sockets: each is named, costs no memory, and does not keep the source from what comes after."""

import asyncio
import base64
import contextlib
import hashlib
import sys
import zlib
from collections.abc import Awaitable, Callable

import psutil
import pytest
from websockets.frames import Frame, Opcode

from cluster.sources.pieces import MAX_PIECES

LIMIT = 64 * 1024
ROOM_BYTES = 48 * 1024 * 1024
"""What a process may grow by in a test, kernel and allocator included; what is thrown at it is several times as much."""
MIB = b"x" * 1024 * 1024
UPGRADE = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


def frame(opcode, payload=b"", fin=True, **bits):
    return Frame(opcode, payload, fin, **bits).serialize(mask=False)


def announcing(length, head=0x81):
    return bytes([head, 127]) + length.to_bytes(8, "big")


async def shake(reader, writer, *headers, connection=b"Upgrade"):
    head = await reader.readuntil(b"\r\n\r\n")
    key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    lines = [
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: " + connection,
        b"Sec-WebSocket-Accept: " + accept,
        *headers,
    ]
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")


class Raw:
    """A server whose first connection is a test's, and whose later ones are good: they say `after`."""

    url: str
    first: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

    def __init__(self):
        self.later = self.good
        self.accepted = 0
        self.ended = asyncio.Event()
        """The first connection's peer is gone."""

    async def serve(self, reader, writer):
        self.accepted += 1
        first = self.accepted == 1
        try:
            if first:
                await self.first(reader, writer)
            else:
                await self.later(reader, writer)
            while (said := await reader.read(65_536)) and said[0] != 0x88:
                pass  # until the end, or the frame that asks for it
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            if first:
                self.ended.set()
            writer.transport.abort()

    @staticmethod
    async def good(reader, writer):
        await shake(reader, writer)
        writer.write(frame(Opcode.TEXT, b"after"))

    def saying(self, *blobs):
        """The first connection shakes hands, then sends these."""

        async def first(reader, writer):
            await shake(reader, writer)
            for blob in blobs:
                writer.write(blob)
                await writer.drain()

        self.first = first
        return self

    def answering(self, answer):
        """The first connection's handshake is answered so."""

        async def first(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)

        self.first = first
        return self


@pytest.fixture
async def raw():
    made = Raw()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, limit=2**20)
    made.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    yield made
    server.close()


@contextlib.contextmanager
def bounded():
    process = psutil.Process()
    before = process.memory_info().rss
    yield
    assert process.memory_info().rss - before < ROOM_BYTES


async def recovers(recorder):
    """The source came back, and takes what a good connection brings."""
    await recorder.until(lambda: b"after" in recorder.frames)


@pytest.mark.parametrize(
    ("bytes_sent", "reason"),
    [
        (b"\xc1\x01x", "reserved bits"),
        (b"\xc9\x01x", "reserved bits"),
        (b"\x83\x01x", ""),
        (b"\x8b\x01x", ""),
        (b"\x09\x01x", ""),
        (b"\x89\x7e\x00\x80" + b"x" * 128, ""),
        (b"\x88\x01x", ""),
        (b"\x88\x02\x03\xe7", ""),
        (b"\x88\x04\x03\xe8\xff\xfe", ""),
        (Frame(Opcode.TEXT, b"masked").serialize(mask=True), ""),
        (frame(Opcode.CONT, b"nothing begun"), "continued without a beginning"),
        (frame(Opcode.TEXT, b"x", fin=False) + frame(Opcode.TEXT, b"y"), "begun inside another"),
    ],
    ids=[
        "rsv",
        "rsv on ping",
        "opcode 3",
        "opcode 11",
        "ping in pieces",
        "long ping",
        "close 1",
        "close 999",
        "close text",
        "masked",
        "stray",
        "nested",
    ],
)
async def test_a_broken_frame_ends_the_connection(source, raw, recorder, running, bytes_sent, reason):
    raw.saying(frame(Opcode.TEXT, b"before") + bytes_sent + frame(Opcode.TEXT, b"not taken"))
    running(source(raw.url, recorder))
    await recovers(recorder)
    assert recorder.frames == [b"before", b"after"]
    assert recorder.reasons[0].startswith("protocol error: ")
    assert reason in recorder.reasons[0]


async def test_a_compressed_bomb_is_not_unpacked(source, raw, recorder, running):
    deflate = zlib.compressobj(wbits=-15)
    bomb = deflate.compress(bytes(50_000_000)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    assert len(bomb) < LIMIT
    raw.saying(b"\xc1\x7e" + len(bomb).to_bytes(2, "big") + bomb)
    with bounded():
        running(source(raw.url, recorder, max_frame_bytes=LIMIT))
        await recovers(recorder)
    assert recorder.reasons[0] == "protocol error: reserved bits are set and no extension was agreed on"


@pytest.mark.parametrize("announced", [2**40, 2**62])
async def test_a_frame_longer_than_can_be_skipped(source, raw, recorder, running, announced):
    raw.saying(announcing(announced), *[MIB] * 200)
    with bounded():
        running(source(raw.url, recorder, max_frame_bytes=LIMIT))
        await recovers(recorder)
    assert recorder.frames == [b"after"]
    assert "too long even to be skipped" in recorder.reasons[0] or "cannot skip" in recorder.reasons[0]


async def test_a_frame_over_the_limit(source, transport, raw, recorder, running):
    raw.saying(announcing(50 * len(MIB)), *[MIB] * 50, frame(Opcode.TEXT, b"behind it"))
    events = source(raw.url, recorder, max_frame_bytes=LIMIT)
    with bounded():
        running(events)
        await recorder.until(lambda: recorder.frames)
    if transport == "websockets":
        assert (recorder.frames, events.reconnects) == ([b"behind it"], 0)
        assert recorder.refusals == [("too_large", 50 * len(MIB))]
    else:
        assert recorder.frames == [b"after"]
        assert recorder.refusals == [("too_large", LIMIT + 1)]
        assert recorder.reasons == [f"a message of over {LIMIT} bytes came, which the fast transport cannot skip"]


async def test_a_message_over_the_limit_in_pieces_is_skipped(source, raw, recorder, running):
    pieces = [frame(Opcode.TEXT, b"x" * LIMIT, fin=False), *[frame(Opcode.CONT, b"x" * LIMIT, fin=False)] * 500]
    raw.saying(*pieces, frame(Opcode.CONT, b"end"), frame(Opcode.TEXT, b"behind it"))
    events = source(raw.url, recorder, max_frame_bytes=LIMIT)
    with bounded():
        running(events)
        await recorder.until(lambda: recorder.frames)
    assert (recorder.frames, recorder.refusals, events.reconnects) == ([b"behind it"], [("too_large", 2 * LIMIT)], 0)


@pytest.mark.parametrize("size", [0, LIMIT])
async def test_a_message_in_endless_pieces(source, raw, recorder, running, size):
    piece = frame(Opcode.CONT, b"x" * size, fin=False)
    flood = piece * (len(MIB) // len(piece))
    raw.saying(frame(Opcode.TEXT, fin=False), *[flood] * 200)
    with bounded():
        running(source(raw.url, recorder, max_frame_bytes=LIMIT))
        await recovers(recorder)
    assert recorder.frames == [b"after"]
    expected = "too long even to be skipped" if size else f"a message in more than {MAX_PIECES} pieces"
    assert expected in recorder.reasons[0]


async def test_a_frame_that_never_ends_is_noticed_by_silence(source, raw, recorder, running):
    raw.saying(announcing(1000, 0x81)[:2] + (60_000).to_bytes(8, "big")[:3])
    running(source(raw.url, recorder, heartbeat_ms=50))
    await recovers(recorder)
    assert recorder.reasons[0] == "nothing heard for 0.1 s"


async def test_text_that_is_no_utf8_is_the_listeners_to_judge(source, raw, recorder, running):
    raw.saying(frame(Opcode.TEXT, b"\xff\xfe") + frame(Opcode.TEXT, b"next"))
    running(source(raw.url, recorder))
    await recorder.until(lambda: len(recorder.frames) == 2)
    assert recorder.frames == [b"\xff\xfe", b"next"]
    assert recorder.reasons == []


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Switching Proto", b"HTTP/1.1 101 Switching Protocols\r\nUpgra"])
async def test_half_a_handshake_and_silence(source, raw, recorder, running, answer):
    raw.answering(answer)
    running(source(raw.url, recorder, open_timeout_s=0.2))
    await recovers(recorder)
    assert recorder.reasons[0] == "no answer in time"
    async with asyncio.timeout(60):
        await raw.ended.wait()


async def test_half_a_handshake_and_the_end(source, raw, recorder, running):
    async def first(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 101 Switching")
        writer.close()

    raw.first = first
    running(source(raw.url, recorder))
    await recovers(recorder)
    assert recorder.reasons[0]
    assert (recorder.opens, recorder.reasons[1:]) == (1, [])


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"302 Found", b"200 OK", b"503 Later"])
async def test_an_answer_that_is_no_handshake(source, raw, recorder, running, status):
    raw.answering(b"HTTP/1.1 " + status + b"\r\nLocation: ws://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    running(source(raw.url, recorder))
    await recovers(recorder)
    assert recorder.reasons[0] == f"http {status[:3].decode()}"
    assert recorder.opens == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x00\xff" * 4 + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        UPGRADE + b"Sec-WebSocket-Accept: AAAA\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nnonsense\r\n\r\n",
        MIB,
        b"HTTP/1.1 101 Switching Protocols\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
    ],
    ids=["ssh", "binary", "bare 101", "wrong accept", "bad header", "endless line", "many headers"],
)
async def test_garbage_in_place_of_a_handshake(source, raw, recorder, running, answer):
    raw.answering(answer)
    with bounded():
        running(source(raw.url, recorder))
        await recovers(recorder)
    assert recorder.reasons[0]
    assert recorder.opens == 1


@pytest.mark.parametrize("header", [b"Sec-WebSocket-Extensions: permessage-deflate", b"Sec-WebSocket-Protocol: chat"])
async def test_what_was_not_offered_is_not_agreed_to(source, raw, recorder, running, header):
    async def first(reader, writer):
        await shake(reader, writer, header)

    raw.first = first
    running(source(raw.url, recorder))
    await recovers(recorder)
    assert recorder.opens == 1


async def test_a_close_frame_says_why(source, raw, recorder, running):
    raw.saying(frame(Opcode.TEXT, b"1"), frame(Opcode.CLOSE, (4001).to_bytes(2, "big") + "zu spät".encode()))
    running(source(raw.url, recorder))
    await recovers(recorder)
    assert recorder.reasons[0] == "closed by the upstream: 4001 zu spät"


async def test_a_close_frame_without_a_code(source, raw, recorder, running):
    raw.saying(frame(Opcode.CLOSE))
    running(source(raw.url, recorder))
    await recovers(recorder)
    assert recorder.reasons[0].startswith("closed by the upstream: 1005")


async def test_the_socket_ends_inside_a_frame(source, raw, recorder, running):
    async def first(reader, writer):
        await shake(reader, writer)
        writer.write(frame(Opcode.TEXT, b"whole") + frame(Opcode.TEXT, b"cut off")[:4])
        writer.close()

    raw.first = first
    running(source(raw.url, recorder))
    await recovers(recorder)
    assert (recorder.frames, recorder.reasons) == ([b"whole", b"after"], ["connection lost"])


async def test_pings_are_answered_in_order(source, raw, recorder, running):
    answers: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()

    async def first(reader, writer):
        await shake(reader, writer)
        for number in range(100):
            writer.write(frame(Opcode.PING, b"%03d" % number))
        for _ in range(100):
            header = await reader.readexactly(2 + 4)
            body = await reader.readexactly(header[1] & 0x7F)
            answers.put_nowait((header[0], bytes(b ^ header[2 + i % 4] for i, b in enumerate(body))))

    raw.first = first
    running(source(raw.url, recorder))
    async with asyncio.timeout(60):
        assert [await answers.get() for _ in range(100)] == [(0x8A, b"%03d" % number) for number in range(100)]


async def test_a_flood_of_pings_whose_answers_nobody_reads(source, raw, recorder, running):
    flood = frame(Opcode.PING, b"p" * 125) * 8000
    done = asyncio.Event()

    async def first(reader, writer):
        await shake(reader, writer)
        writer.transport.pause_reading()
        for _ in range(150):
            writer.write(flood)
            await writer.drain()
        writer.write(frame(Opcode.TEXT, b"still here"))
        await done.wait()

    raw.first = first
    with bounded():
        running(source(raw.url, recorder))
        await recorder.until(lambda: recorder.frames)
    assert (recorder.frames, recorder.reasons) == ([b"still here"], [])
    done.set()


async def test_stopping_while_it_connects_lets_go_of_the_socket(source, raw, recorder, running):
    begun = asyncio.Event()

    async def first(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        begun.set()

    raw.first = first
    task = running(source(raw.url, recorder))
    async with asyncio.timeout(60):
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await raw.ended.wait()
    assert recorder.states[-1] == "disconnected"


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def tls(tls_context):
    made = Raw().saying(frame(Opcode.TEXT, b"secret"))
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=tls_context)
    made.url = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    yield made
    server.close()


async def test_tls(source, tls, certificate, recorder, running, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    running(source(tls.url, recorder))
    await recorder.until(lambda: recorder.frames)
    assert recorder.frames == [b"secret"]


async def test_a_certificate_that_nobody_vouches_for(source, tls, recorder, running):
    running(source(tls.url, recorder))
    await recorder.until(lambda: len(recorder.reasons) == 3)
    assert set(recorder.reasons) == {"tls: self-signed certificate"}
    assert recorder.states[-1] == "failed"


async def test_tls_where_none_is_spoken(source, raw, recorder, running):
    async def first(reader, writer):
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    raw.first = first
    running(source(raw.url.replace("ws:", "wss:"), recorder))
    await recorder.until(lambda: recorder.reasons)
    assert recorder.reasons[0].startswith("tls: ")


async def test_an_upstream_that_never_speaks_tls(source, raw, recorder, running):
    async def first(reader, writer):
        await asyncio.sleep(0)

    raw.first = first
    running(source(raw.url.replace("ws:", "wss:"), recorder, open_timeout_s=0.2))
    await recorder.until(lambda: recorder.reasons)
    assert recorder.reasons[0] == "no answer in time"


# --- what the fast transport lacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["fast"], indirect=True)
async def test_auto_is_fast_until_a_message_is_too_long_for_it(source, raw, recorder, running):
    huge = frame(Opcode.TEXT, b"x" * (LIMIT + 1))
    raw.saying(huge)
    events = source(raw.url, recorder, max_frame_bytes=LIMIT, transport="auto")
    assert events.transport == "fast"
    running(events)
    await recovers(recorder)
    assert events.transport == "websockets"
    assert recorder.refusals == [("too_large", LIMIT + 1)]


@pytest.mark.parametrize("transport", ["fast"], indirect=True)
async def test_auto_turns_to_the_reference_for_a_handshake_it_cannot_take(source, raw, recorder, running):
    async def keep_alive(reader, writer):
        await shake(reader, writer, connection=b"keep-alive, Upgrade")
        writer.write(frame(Opcode.TEXT, b"after"))

    raw.first = raw.later = keep_alive
    events = source(raw.url, recorder, transport="auto")
    assert events.transport == "fast"
    running(events)
    await recovers(recorder)
    assert events.transport == "websockets"


@pytest.mark.parametrize("transport", ["fast"], indirect=True)
async def test_credentials_in_the_url_need_the_reference(source, raw, recorder, running):
    url = raw.url.replace("//", "//user:secret@")
    assert source(url, recorder, transport="auto").transport == "websockets"
    running(source(url, recorder))
    await recorder.until(lambda: recorder.reasons)
    assert recorder.reasons[0] == "the fast transport cannot be used: it sends no user and password of a URL"
    assert raw.accepted == 0


@pytest.mark.parametrize("transport", ["fast"], indirect=True)
async def test_without_picows(source, raw, recorder, running, monkeypatch):
    monkeypatch.delitem(sys.modules, "cluster.sources.picows_connection", raising=False)
    monkeypatch.setitem(sys.modules, "picows", None)
    raw.saying(frame(Opcode.TEXT, b"after"))
    events = source(raw.url, recorder, transport="auto")
    assert events.transport == "websockets"
    running(events)
    await recovers(recorder)
    stubborn = source(raw.url, recorder, transport="fast")
    assert stubborn.transport == "fast"
    running(stubborn)
    await recorder.until(lambda: recorder.reasons)
    assert recorder.reasons[0].startswith("the fast transport cannot be used: picows cannot be imported")
