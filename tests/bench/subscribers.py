"""Many WebSocket clients in one process, cheap enough not to be what is measured.

Frames are split, counted and the last ones kept; they are parsed only at the end, to see that each client's final state is the upstream's.
Protocol on stdin/stdout: arguments HOST PORT COUNT MODE [KEYS_EACH] (0: the whole prefix); prints `ready` when all have their snapshot; on `times` answers with the arrival
times of every frame of the first client; on `final LAST KEYS` waits until each client has seen the last number of every key, and prints
what it found.
"""

import asyncio
import base64
import json
import os
import sys
import time
from collections import deque
from typing import cast

import orjson

from tests.bench.blaster import KEYS

KEEP = 60


class Subscriber(asyncio.Protocol):
    def __init__(self, host: str, mode: str, keys: list[str], *, timed: bool) -> None:
        self.host, self.mode, self.keys, self.timed = host, mode, keys, timed
        self.snapshots = 0
        self.buffer = bytearray()
        self.upgraded = False
        self.frames: deque[bytes] = deque(maxlen=KEEP)
        self.count = 0
        self.received_bytes = 0
        self.times: list[float] = []
        self.ready = asyncio.Event()
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self.transport.write(
            f"GET /v1/socket HTTP/1.1\r\nHost: {self.host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: harbor.v1\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.ready.set()

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self.buffer += data
        if not self.upgraded:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            del self.buffer[: end + 4]
            self.upgraded = True
            for n, key in enumerate(self.keys):
                self.subscribe(n + 1, key=["metrics", key])
            if not self.keys:
                self.subscribe(1, prefix=["metrics"])
        while len(self.buffer) >= 2:
            length, start = self.buffer[1] & 0x7F, 2
            if length == 126:
                length, start = int.from_bytes(self.buffer[2:4], "big"), 4
            elif length == 127:
                length, start = int.from_bytes(self.buffer[2:10], "big"), 10
            if len(self.buffer) < start + length:
                return
            body = bytes(self.buffer[start : start + length])
            opcode = self.buffer[0] & 0x0F
            del self.buffer[: start + length]
            if opcode == 9:
                self.send(body, 0x8A)
                continue
            self.count += 1
            self.frames.append(body)
            if self.timed:
                self.times.append(time.time())
            if not self.ready.is_set():
                self.snapshots += body.count(b'"snapshot_end"')
                if self.snapshots >= max(1, len(self.keys)):
                    self.ready.set()

    def subscribe(self, number: int, **what: list[str]) -> None:
        self.send(orjson.dumps({"type": "subscribe", "id": number, **what, "mode": self.mode}))

    def send(self, body: bytes, opcode: int = 0x81) -> None:
        head = (
            bytes([opcode, 0x80 | len(body)])
            if len(body) < 126
            else bytes([opcode, 0xFE]) + len(body).to_bytes(2, "big")
        )
        self.transport.write(head + b"\0\0\0\0" + body)

    def state(self) -> dict[str, int]:
        """The last number seen of each key."""
        seen: dict[str, int] = {}
        for body in reversed(self.frames):
            for message in reversed(orjson.loads(body)):
                if message["type"] in ("change", "snapshot") and message["key"][1] not in seen:
                    data = message["data"] if "data" in message else message["patch"][-1]["value"]
                    seen[message["key"][1]] = data["n"]
        return seen


async def main() -> None:
    host, port, count, mode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    each = int(sys.argv[5]) if len(sys.argv) > 5 else 0
    loop = asyncio.get_running_loop()
    clients = []
    for n in range(count):
        _, client = await loop.create_connection(
            lambda n=n: Subscriber(
                f"{host}:{port}", mode, [f"m{(n * each + k) % KEYS:03d}" for k in range(each)], timed=n == 0
            ),
            host,
            port,
        )
        clients.append(client)
    await asyncio.gather(*(client.ready.wait() for client in clients))
    print("ready", flush=True)
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().split():
        if line[0] == "times":
            print(json.dumps({"times": clients[0].times}), flush=True)
            clients[0].times.clear()
            continue
        last, keys = int(line[1]), int(line[2])
        wanted = {f"m{n % keys:03d}": n for n in range(last - keys + 1, last + 1)}
        deadline = time.monotonic() + 10
        wrong = clients
        while time.monotonic() < deadline:
            wrong = [
                client
                for client in wrong
                if client.state() != ({key: wanted[key] for key in client.keys} if client.keys else wanted)
            ]
            if not wrong:
                break
            await asyncio.sleep(0.2)
        print(
            json.dumps(
                {
                    "exact": count - len(wrong),
                    "clients": count,
                    "closed": sum(client.closed for client in clients),
                    "frames": clients[0].count,
                    "bytes": sum(client.received_bytes for client in clients),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    asyncio.run(main())
