"""A raw WebSocket server that sends pre-encoded events at a fixed rate: the cheapest upstream there can be.

One event per frame, about 190 bytes, each with its own number, round robin over the keys. Frames of a 5 ms tick are written at once, as a
kernel under load would deliver them. Protocol on stdin/stdout: prints its port; on a line `blast RATE SECONDS` sends, then prints a JSON
line with what it sent; on `lone N GAP_MS` sends single events and prints their send times; on `flood COUNT [PER_FRAME]` sends the same event of
each key over and over, as fast as they are taken. Who asks without an upgrade gets server-sent events: one each chunk, or `PER_FRAME`.
"""

import asyncio
import base64
import hashlib
import json
import sys
import time
from typing import cast

TICK_S = 0.005
KEYS = 500
PAD = "x" * 92


def data(n: int) -> bytes:
    return b'{"id":"m%03d","n":%d,"pad":"%s"}' % (n % KEYS, n, PAD.encode())


def event(n: int) -> bytes:
    return b'{"event":"metric","channel":"metrics","data":%b}' % data(n)


def framed(payload: bytes) -> bytes:
    return b"\x81\x7e" + len(payload).to_bytes(2, "big") + payload


def frame(n: int) -> bytes:
    return framed(event(n))


def chunk(numbers: range) -> bytes:
    body = b"".join(b"event: metric\ndata: %b\n\n" % data(n) for n in numbers)
    return b"%x\r\n%b\r\n" % (len(body), body)


class Blaster(asyncio.Protocol):
    connected: "Blaster | None" = None

    def __init__(self) -> None:
        self.buffer = b""
        self.upgraded = False
        self.is_sse = False
        self.joined = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.upgraded:
            if data[0] & 0x0F == 9:  # a ping: answer it (frames from the client are masked)
                length, mask = data[1] & 0x7F, data[2:6]
                body = bytes(b ^ mask[i % 4] for i, b in enumerate(data[6 : 6 + length]))
                self.transport.write(b"\x8a" + bytes([len(body)]) + body)
            else:
                self.joined.set()
            return
        self.buffer += data
        if b"\r\n\r\n" not in self.buffer:
            return
        if b"upgrade: websocket" not in self.buffer.lower():
            self.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            self.is_sse = True
            self.joined.set()
            Blaster.connected = self
            return
        for line in self.buffer.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"sec-websocket-key":
                digest = hashlib.sha1(value.strip() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
                accept = base64.b64encode(digest)
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self.upgraded = True
        Blaster.connected = self

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    async def blast(self, rate: int, seconds: float, first: int) -> dict[str, float]:
        per_tick = max(1, round(rate * TICK_S))
        tick_s = per_tick / rate
        ticks = round(seconds / tick_s)
        blobs = [b"".join(frame(first + t * per_tick + i) for i in range(per_tick)) for t in range(ticks)]
        started = time.time()
        begin = time.perf_counter()
        late = 0.0
        for t, blob in enumerate(blobs):
            wait = begin + t * tick_s - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            else:
                late = max(late, -wait)
            await self.writable.wait()
            self.transport.write(blob)
        took = time.perf_counter() - begin
        sent = ticks * per_tick
        return {"sent": sent, "last": first + sent - 1, "seconds": took, "late_s": late, "started": started}

    async def lone(self, count: int, gap_ms: float, first: int) -> dict[str, list[float]]:
        times = []
        for n in range(count):
            times.append(time.time())
            self.transport.write(frame(first + n))
            # Not a multiple of the window, so that every phase of it is met.
            await asyncio.sleep((gap_ms + n % 37) / 1000.0)
        return {"times": times}

    async def flood(self, count: int, first: int, per_frame: int) -> dict[str, float]:
        groups = [range(first + at, first + at + per_frame) for at in range(0, KEYS, per_frame)]
        if self.is_sse:
            blob = b"".join(map(chunk, groups))
        elif per_frame == 1:
            blob = b"".join(frame(group[0]) for group in groups)
        else:
            blob = b"".join(framed(b"[" + b",".join(map(event, group)) + b"]") for group in groups)
        begin = time.perf_counter()
        for _ in range(count // KEYS):
            await self.writable.wait()
            self.transport.write(blob)
        return {"sent": count // KEYS * KEYS, "last": first + KEYS - 1, "seconds": time.perf_counter() - begin}


async def main() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Blaster, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    number = 10**9  # always ten digits, so that every event is as long as the next
    while line := (await reader.readline()).decode().split():
        while Blaster.connected is None:
            await asyncio.sleep(0.01)
        upstream = Blaster.connected
        await upstream.joined.wait()
        if line[0] == "blast":
            answer = await upstream.blast(int(line[1]), float(line[2]), number)
            number = int(answer["last"]) + 1
        elif line[0] == "flood":
            answer = await upstream.flood(int(line[1]), number, int(line[2]) if len(line) > 2 else 1)
        else:
            answer = await upstream.lone(int(line[1]), float(line[2]), number)
            number += int(line[1])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
