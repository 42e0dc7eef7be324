"""Attacks on a real gateway over raw sockets: it goes on answering others, and its memory stays where it was."""

import asyncio
import base64
import struct
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import cast

import httpx
import orjson
import psutil
import pytest

from cluster.observability import metrics
from tests.live import LiveCluster, eventually, text

pytestmark = pytest.mark.cluster

CONNECTIONS = 10_000
"""How many one address tries to make."""
PER_ADDRESS = 600
GROWTH_MIB = 112
"""What the gateway may have taken after an attack: the limit of its buffers, 64 MiB, and half as much beside."""
WAIT_S = 30
HOST = b"Host: localhost\r\n"


@pytest.fixture(scope="module")
def cluster(local_ray: None) -> Iterator[LiveCluster]:
    limits = {
        "connections": 2_000,
        "connections_per_address": PER_ADDRESS,
        "buffers": "64MiB",
        "head_within": "1s",
        "body_within": "2s",
        "hello_within": "1s",
        "idle": "3s",
    }
    live = LiveCluster({"cluster": {"shards": 1}, "gateway": {"limits": limits}}).start()
    yield live
    live.stop()


@pytest.fixture(scope="module")
def gateway(cluster: LiveCluster) -> psutil.Process:
    return psutil.Process(cluster.pids()["gateway-0"])


@pytest.fixture(scope="module")
def at_first(cluster: LiveCluster, gateway: psutil.Process) -> int:
    cluster.put(["big"], "x" * 900_000)
    assert cluster.get("big").status_code == 200
    return int(gateway.memory_info().rss)


@pytest.fixture(autouse=True)
async def lives(cluster: LiveCluster, gateway: psutil.Process, at_first: int) -> AsyncIterator[None]:
    """After every attack others are served, by the same process, which holds no more than it may."""
    yield
    # Until the connections of the attack are gone it may be refused, as anybody from this address.
    eventually(lambda: cluster.get("big").status_code == 200)
    assert cluster.put(["small"], 1).status_code == 200
    assert gateway.is_running()
    grown = (gateway.memory_info().rss - at_first) / 2**20
    assert grown < GROWTH_MIB, f"{grown:.0f} MiB more"


def limited(cluster: LiveCluster) -> dict[str, float]:
    """What was refused so far, by limit."""
    found: dict[str, float] = {}
    for name, encoded in cluster.supervisor.metrics():
        if name.startswith("gateway") and encoded:
            found |= {each.labels[-1]: each.value for each in metrics.decode(encoded) if each.name == "limited_total"}
    return found


class Raw:
    """A connection that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, cluster: LiveCluster) -> "Raw":
        return cls(*await asyncio.open_connection("127.0.0.1", cluster.port))

    def pause(self) -> None:
        """Read nothing any more."""
        cast(asyncio.ReadTransport, self.writer.transport).pause_reading()

    async def say(self, data: bytes) -> bool:
        """Send; return whether there was somebody to send to."""
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            return False
        return True

    async def rest(self) -> bytes:
        """Everything until the gateway ends it."""
        try:
            async with asyncio.timeout(WAIT_S):
                return await self.reader.read(-1)
        except ConnectionError:
            return b""
        finally:
            self.close()

    def close(self) -> None:
        self.writer.transport.abort()


async def answer(cluster: LiveCluster, said: bytes) -> bytes:
    raw = await Raw.to(cluster)
    await raw.say(said)
    return await raw.rest()


# --- requests --------------------------------------------------------------------------------------------------------

SMUGGLED = b"GET /v1/entries?key=%5B%22big%22%5D HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""What would be answered, were it taken for a request of its own."""
PUT = b"PUT /v1/entries?key=%5B%22small%22%5D HTTP/1.1\r\n" + HOST


@pytest.mark.parametrize(
    "said",
    [
        PUT + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        PUT + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + SMUGGLED,
        PUT + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n1" + SMUGGLED,
        PUT + b"Content-Length: 1, 1\r\n\r\n1" + SMUGGLED,
        PUT + b"Content-Length: +1\r\n\r\n1" + SMUGGLED,
        PUT + b"Content-Length: -1\r\n\r\n1" + SMUGGLED,
        PUT + b"Content-Length: 0x1\r\n\r\n1" + SMUGGLED,
        PUT + b"Content-Length: 99999999999999999999999\r\n\r\n1" + SMUGGLED,
        PUT + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
        PUT + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        PUT + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        PUT + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
        PUT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + SMUGGLED,
        PUT + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + SMUGGLED,
        PUT + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + SMUGGLED,
        PUT + b"Transfer-Encoding: chunked\r\n\r\n1\n1\n0\n\n" + SMUGGLED,
        PUT + b" Content-Length: 1\r\n\r\n1" + SMUGGLED,
        PUT + b"X: a\r\n\tContent-Length: 1\r\n\r\n" + SMUGGLED,
        PUT + b"X: a\rContent-Length: 1\r\n\r\n" + SMUGGLED,
        PUT + b"X: a\nContent-Length: 99\n\n" + SMUGGLED,
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: other\r\n\r\n" + SMUGGLED,
        b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\x00: 1\r\n\r\n" + SMUGGLED,
        b"GET /healthz\r\nHost: localhost\r\n\r\n" + SMUGGLED,
    ],
)
async def test_what_two_servers_could_read_in_two_ways_is_refused(cluster: LiveCluster, said: bytes) -> None:
    received = await answer(cluster, said)
    assert received == b"" or received.split()[1] == b"400", received[:200]
    assert b"}HTTP/1." not in received, "two answers"
    assert b"xxxx" not in received


@pytest.mark.parametrize(
    "target",
    [
        *(b"/../v1/cluster", b"/v1/../v1/keys", b"/v1/%2e%2e/v1/keys", b"//v1/keys", b"/v1//keys", b"/v1/keys/"),
        *(b"/v1/keys%00", b"/V1/KEYS", b"/v1/keys;x", b"/v1%2fkeys", b"/v1/mutations/%00%ff", b"/v1/mutations/../keys"),
        *(
            b"*",
            b"http://other/v1/nothing",
            b"/%",
            b"/\xff",
            b"/v1/nothing?" + b"a&" * 3_000,
            b"/v1/entries?key=%5B%22%00%22",
        ),
    ],
)
async def test_only_what_is_a_path_is_one(cluster: LiveCluster, target: bytes) -> None:
    received = await answer(cluster, b"GET " + target + b" HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
    assert received.split()[1] in (b"400", b"404"), received[:200]
    assert orjson.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] in ("BAD_REQUEST", "BAD_KEY", "NOT_FOUND")


NASTY = [
    (b"[" * 100_000, 400),
    (b"[" * 500 + b"]" * 500, 400),
    (b'{"a":' * 50_000, 400),
    (b"1" * 900_000, 400),
    (b"1e999", 400),
    (b"-0", 200),
    (b"1" + b"0" * 300, 200),
    (b"NaN", 400),
    (b'{"a":1,"a":2}', 200),
    (b'"\\ud800"', 400),
    (b'"\xed\xa0\x80"', 400),
    (b'"\\u0000\\u202e\\u05d0"', 200),
    (b'{"__proto__":{"x":1},"constructor":1,"":0}', 200),
    (b"", 400),
    (b"\xef\xbb\xbf1", 400),
]


@pytest.mark.parametrize(("body", "status"), NASTY)
async def test_bodies_that_are_trouble(cluster: LiveCluster, body: bytes, status: int) -> None:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=WAIT_S) as http:
        response = await http.put("/v1/entries", params={"key": text("nasty")}, content=body)
        assert response.status_code == status, response.text
        if status == 200:
            read = await http.get("/v1/entries", params={"key": text("nasty")})
            assert read.headers["content-type"] == "application/json"
            assert "data" in orjson.loads(read.content)
        else:
            assert response.json()["error"]["code"] in ("BAD_REQUEST", "TOO_DEEP")


@pytest.mark.parametrize(
    "key",
    [
        '["\\ud800"]',
        '["a\\u0000b"]',
        '["\u202e\u05d0"]',
        "[1e400]",
        '["' + "x" * 1_100 + '"]',
        "[" * 40 + "]" * 40,
    ],
)
async def test_keys_that_are_trouble(cluster: LiveCluster, key: str) -> None:
    async with httpx.AsyncClient(base_url=cluster.url, timeout=WAIT_S) as http:
        response = await http.put("/v1/entries", params={"key": key}, content=b"1")
        assert response.status_code in (200, 400, 413), response.text
        if response.status_code == 200:
            entry = (await http.get("/v1/entries", params={"key": key})).json()
            assert (entry["data"], entry["key"]) == (1, orjson.loads(key))


async def test_a_patch_that_doubles_itself(cluster: LiveCluster) -> None:
    steps = [{"op": "add", "path": "", "value": {"a": "x" * 1_000}}]
    steps += [{"op": "copy", "from": "", "path": f"/c{n}"} for n in range(40)]
    async with httpx.AsyncClient(base_url=cluster.url, timeout=WAIT_S) as http:
        await http.put("/v1/entries", params={"key": text("doubled")}, json={})
        headers = {"Content-Type": "application/json-patch+json"}
        response = await http.patch(
            "/v1/entries", params={"key": text("doubled")}, content=orjson.dumps(steps), headers=headers
        )
    assert response.status_code == 400, response.text


async def test_a_body_that_unpacks_to_a_hundred_times_as_much(cluster: LiveCluster) -> None:
    packer = zlib.compressobj(9, wbits=31)
    packed = b"".join(packer.compress(b"x" * 2**20) for _ in range(128)) + packer.flush()
    async with httpx.AsyncClient(base_url=cluster.url, timeout=WAIT_S) as http:
        for encoding in ("gzip", "gzip, gzip", "br", "nonsense"):
            try:
                response = await http.put(
                    "/v1/entries", params={"key": text("b")}, content=packed, headers={"Content-Encoding": encoding}
                )
            except httpx.TransportError:
                continue
            assert response.status_code in (400, 413)


# --- slow, and many --------------------------------------------------------------------------------------------------


async def test_slow_peers_do_not_keep_their_places(cluster: LiveCluster) -> None:
    async def slow(first: bytes, piece: bytes) -> bytes:
        raw = await Raw.to(cluster)
        await raw.say(first)
        reading = asyncio.create_task(raw.rest())
        while not reading.done() and await raw.say(piece):
            await asyncio.wait({reading}, timeout=0.2)
        return await reading

    heads = [slow(b"GET /healthz HTTP/1.1\r\n" + HOST, b"X: y\r\n") for _ in range(100)]
    bodies = [slow(PUT + b"Content-Length: 100000\r\n\r\n", b"1") for _ in range(100)]
    silent = [slow(b"", b"") for _ in range(100)]
    shakes = [slow(b"GET /v1/socket HTTP/1.1\r\nUpgrade: websocket\r\n", b"X: y\r\n") for _ in range(100)]
    async with asyncio.timeout(WAIT_S):
        received = await asyncio.gather(*heads, *bodies, *silent, *shakes)
    assert all(each == b"" or each.split()[1] == b"408" for each in received)
    await asyncio.to_thread(eventually, lambda: limited(cluster).get("head_within", 0) >= 300)
    await asyncio.to_thread(eventually, lambda: limited(cluster).get("body_within", 0) >= 100)


async def test_one_address_does_not_get_all(cluster: LiveCluster, gateway: psutil.Process) -> None:
    files = gateway.num_fds()
    for _ in range(CONNECTIONS // 1_000):
        before = limited(cluster).get("connections_per_address", 0)
        raws = await asyncio.gather(*(Raw.to(cluster) for _ in range(1_000)))
        wanted = before + 1_000 - PER_ADDRESS
        # On another thread: what is refused is read and closed here meanwhile.
        await asyncio.to_thread(eventually, lambda: limited(cluster).get("connections_per_address", 0) >= wanted)  # noqa: B023
        assert gateway.num_fds() - files <= PER_ADDRESS + 100
        for raw in raws:
            raw.close()


async def test_frames_that_are_never_finished_share_what_there_is(cluster: LiveCluster) -> None:
    raws = [await socket(cluster) for _ in range(200)]
    piece = frame(1, b"", length=900_000) + b"x" * 800_000
    results = await asyncio.gather(*(raw.say(piece) for raw in raws))
    assert len(results) == 200
    eventually(lambda: limited(cluster).get("buffers"))
    for raw in raws:
        raw.close()


async def test_answers_that_nobody_reads_share_it_too(cluster: LiveCluster) -> None:
    before = limited(cluster).get("buffers", 0.0)
    raws = [await Raw.to(cluster) for _ in range(200)]
    for raw in raws:
        raw.pause()
        await raw.say(SMUGGLED * 20)
    # On another thread: what is refused is closed here meanwhile.
    await asyncio.to_thread(eventually, lambda: limited(cluster).get("buffers", 0.0) > before)
    for raw in raws:
        raw.close()


# --- sockets ---------------------------------------------------------------------------------------------------------

SHAKE = b"GET /v1/socket HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n" + HOST
KEY = b"Sec-WebSocket-Key: " + base64.b64encode(b"0123456789abcdef") + b"\r\n"


def frame(
    opcode: int, payload: bytes, *, fin: bool = True, reserved: int = 0, mask: bool = True, length: int = -1
) -> bytes:
    """A frame, right or wrong; the mask is zeros, so that the payload stays as it is."""
    size = len(payload) if length < 0 else length
    first, masked = fin << 7 | reserved << 4 | opcode, mask << 7
    if size < 126:
        head = struct.pack("!BB", first, masked | size)
    elif size < 2**16:
        head = struct.pack("!BBH", first, masked | 126, size)
    else:
        head = struct.pack("!BBQ", first, masked | 127, size)
    return head + (bytes(4) if mask else b"") + payload


async def socket(cluster: LiveCluster) -> Raw:
    raw = await Raw.to(cluster)
    await raw.say(SHAKE + KEY + b"\r\n")
    async with asyncio.timeout(WAIT_S):
        assert b" 101 " in await raw.reader.readuntil(b"\r\n\r\n")
    return raw


def close_code(received: bytes) -> int | None:
    """The code of the close frame at the end of what a gateway said."""
    at = 0
    while at + 2 <= len(received):
        opcode, size = received[at] & 15, received[at + 1] & 127
        at += 2
        if size == 126:
            size = int.from_bytes(received[at : at + 2], "big")
            at += 2
        elif size == 127:
            size = int.from_bytes(received[at : at + 8], "big")
            at += 8
        if opcode == 8:
            return int.from_bytes(received[at : at + 2], "big")
        at += size
    return None


@pytest.mark.parametrize(
    "said",
    [
        SHAKE + b"\r\n",
        SHAKE + b"Sec-WebSocket-Key: short\r\n\r\n",
        SHAKE + b"Sec-WebSocket-Key: !!!\r\n\r\n",
        SHAKE.replace(b": 13", b": 12") + KEY + b"\r\n",
        SHAKE.replace(b": websocket", b": h2c") + KEY + b"\r\n",
        SHAKE.replace(b"Connection: Upgrade\r\n", b"") + KEY + b"\r\n",
        SHAKE.replace(b"GET", b"POST") + KEY + b"\r\n",
        SHAKE.replace(b"HTTP/1.1", b"HTTP/1.0") + KEY + b"\r\n",
        SHAKE + KEY + KEY + b"\r\n",
        SHAKE.replace(b"/v1/socket", b"/v1/nothing") + KEY + b"\r\n",
    ],
)
async def test_bad_handshakes(cluster: LiveCluster, said: bytes) -> None:
    raw = await Raw.to(cluster)
    await raw.say(said)
    async with asyncio.timeout(WAIT_S):
        head = await raw.reader.readuntil(b"\r\n\r\n")
    raw.close()
    assert head.split()[1] in (b"400", b"404"), head


BOMB = zlib.compressobj(9, wbits=-15)
PACKED = BOMB.compress(b"[" + b" " * 2**24) + BOMB.flush(zlib.Z_SYNC_FLUSH)


@pytest.mark.parametrize(
    ("said", "codes"),
    [
        (frame(1, b"\xff\xfe"), {3501, 1007}),
        (frame(1, b'"\xed\xa0\x80"'), {3501, 1007}),
        (frame(1, b"{"), {3501}),
        (frame(2, b"\x00"), {3501}),
        (frame(1, b'{"type":"ping"}', mask=False), {1002}),
        (frame(1, b"{}", reserved=4), {1002}),
        (frame(1, b"{}", reserved=2), {1002}),
        (frame(1, b"{}", reserved=1), {1002}),
        (frame(1, PACKED[:10_000], reserved=4), {1002}),
        *((frame(opcode, b"x"), {1002}) for opcode in (3, 7, 11, 15)),
        (frame(9, b"x" * 126), {1002}),
        (frame(9, b"x", fin=False), {1002}),
        (frame(8, b"x"), {1002}),
        (frame(8, struct.pack("!H", 999)), {1002}),
        (frame(8, struct.pack("!H", 3000) + b"\xff"), {1002, 1007}),
        (frame(0, b"x"), {1002}),
        (frame(1, b"a", fin=False) + frame(1, b"b"), {1002}),
        (frame(1, b"", fin=False) + frame(1, b"{}"), {1002}),
        (frame(1, b"", length=2**63 - 1), {1009}),
        (frame(1, b"", length=2**64 - 1), {1009, 1002}),
        (frame(1, b"", length=3 * 2**20), {1009}),
        (frame(1, b"x" * 2**20, fin=False) + frame(0, b"x" * 2**20, fin=False) + frame(0, b"x" * 2**20), {1009, None}),
        (frame(1, b'{"type"'), {3501}),
        (frame(1, b'{"type"', length=100), {3008}),
    ],
)
async def test_bad_frames(cluster: LiveCluster, said: bytes, codes: set[int | None]) -> None:
    raw = await socket(cluster)
    await raw.say(said)
    # None: what was still on its way reset the connection before the code was read.
    assert close_code(await raw.rest()) in codes


@pytest.mark.parametrize(
    ("said", "limit"),
    [
        (frame(1, b"", fin=False) + frame(0, b"", fin=False) * 200_000, ""),
        (frame(1, b"[", fin=False) + frame(0, b" ", fin=False) * 200_000, ""),
        (frame(9, b"x" * 125) * 20_000, ""),
        (frame(10, b"x" * 125) * 20_000, ""),
        (frame(1, b'{"type":"ping"}') * 20_000, "commands"),
        (frame(1, b"[" + b'{"type":"ping"},' * 1_000 + b"1]") * 50, "commands"),
        (frame(1, b'{"type":"dance"}') * 20_000, "commands"),
        (frame(1, b"[" * 500_000), "depth"),
        (frame(1, b'{"type":"get","id":' + b"9" * 900_000 + b',"key":["a"]}'), ""),
    ],
)
async def test_floods(cluster: LiveCluster, said: bytes, limit: str) -> None:
    """Others are served meanwhile, and where a limit is met the flooder meets it."""
    before = limited(cluster).get(limit, 0)
    raw = await socket(cluster)
    saying = asyncio.create_task(raw.say(said))
    async with httpx.AsyncClient(base_url=cluster.url, timeout=WAIT_S) as http:
        for _ in range(5):
            assert (await http.get("/healthz")).status_code == 200
    if limit:
        await asyncio.to_thread(eventually, lambda: limited(cluster).get(limit, 0) > before)
    raw.close()
    saying.cancel()
    await asyncio.gather(saying, return_exceptions=True)


async def test_ten_thousand_subscriptions(cluster: LiveCluster) -> None:
    raw = await socket(cluster)
    said = b"".join(
        frame(1, orjson.dumps([{"type": "subscribe", "id": n, "key": ["k", n]} for n in range(start, start + 500)]))
        for start in range(0, 10_000, 500)
    )
    saying = asyncio.create_task(raw.say(said))
    async with asyncio.timeout(WAIT_S):
        received = b""
        while received.count(b'"TOO_MANY"') < 500:
            received += await raw.reader.read(2**16)
    (shard,) = cluster.supervisor.describe()["shards"]
    assert shard["subscribers"] <= 128
    raw.close()
    saying.cancel()
    await asyncio.gather(saying, return_exceptions=True)


async def test_peers_that_vanish(cluster: LiveCluster) -> None:
    """Half of a handshake, half of a close, and the end of the sending side alone."""
    for said in (SHAKE + KEY, SHAKE + KEY + b"\r\n" + frame(8, b"")[:3], b"GET / HT"):
        raw = await Raw.to(cluster)
        await raw.say(said)
        raw.writer.write_eof()
        await raw.rest()
