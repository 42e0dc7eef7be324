"""What connections may take, before a real server, with raw sockets."""

import asyncio
import io
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import orjson
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cluster.core.grants import ApiKeys, Grants, Principal, line
from cluster.core.limits import Limits
from tests.gateway.conftest import Harness, until

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
KEY = '["a"]'


@asynccontextmanager
async def serving(limits: Limits, **more: Any) -> AsyncIterator[Harness]:
    harness = await Harness(limits=limits, **more).start()
    try:
        yield harness
    finally:
        await harness.stop()


class Raw:
    """A client that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def to(cls, harness: Harness) -> "Raw":
        return cls(*await asyncio.open_connection("127.0.0.1", harness.port))

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def pause(self) -> None:
        """Read nothing any more."""
        cast(asyncio.ReadTransport, self.writer.transport).pause_reading()

    async def trickle(self, piece: bytes, every_s: float) -> None:
        """Say it again and again."""
        while True:
            await self.say(piece)
            await asyncio.sleep(every_s)

    async def until_closed(self) -> bytes:
        async with asyncio.timeout(30):
            try:
                return await self.reader.read(-1)
            except ConnectionError:
                return b""
            finally:
                self.writer.close()

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        """One answer of a connection that may go on."""
        async with asyncio.timeout(30):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in head[1:] if each)}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        is_json = headers.get("content-type", "").startswith("application/json")
        return int(head[0].split()[1]), headers, orjson.loads(body) if is_json else body


async def holds(check: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not check():
            await asyncio.sleep(0.01)


async def refused(raw: Raw) -> tuple[int, str, str]:
    """The status, code and limit of an answer after which the connection ends."""
    status, headers, body = await raw.answer()
    assert headers["x-content-type-options"] == "nosniff"
    assert await raw.until_closed() == b""
    error = body["error"]
    return status, error["code"], error["details"]["limit"]


# --- how many --------------------------------------------------------------------------------------------------------


async def test_connections_of_one_address_and_of_all_are_counted() -> None:
    async with serving(Limits(connections=3, connections_per_address=2)) as harness:
        kept = [await Raw.to(harness) for _ in range(2)]
        for raw in kept:
            await raw.say(GET, b"\r\n")
            assert (await raw.answer())[0] == 200
        assert await refused(await Raw.to(harness)) == (429, "TOO_MANY", "connections_per_address")
        await kept[0].say(GET, b"Connection: close\r\n\r\n")
        await kept[0].until_closed()
        await holds(lambda: sum(server_of(harness)._by_client.values()) == 1)
        again = await Raw.to(harness)
        await again.say(GET, b"\r\n")
        assert (await again.answer())[0] == 200
        assert harness.state.limited == {"connections_per_address": 1}
        again.writer.close()
        kept[1].writer.close()


async def test_a_trusted_proxy_may_have_all() -> None:
    async with serving(Limits(connections=3, connections_per_address=1), trusted_proxies=("127.0.0.0/8",)) as harness:
        kept = [await Raw.to(harness) for _ in range(3)]
        for raw in kept:
            await raw.say(GET, b"\r\n")
            assert (await raw.answer())[0] == 200
        assert await refused(await Raw.to(harness)) == (503, "UNAVAILABLE", "connections")
        for raw in kept:
            raw.writer.close()


def server_of(harness: Harness) -> Any:
    assert harness.server._runner is not None
    return harness.server._runner.server


async def test_sessions_are_counted_by_the_address_that_a_trusted_proxy_tells() -> None:
    async with serving(Limits(sessions_per_address=1), trusted_proxies=("127.0.0.1",)) as harness:
        a, b = ({"X-Forwarded-For": address} for address in ("9.9.9.9", "8.8.8.8"))
        async with harness.socket(additional_headers=a) as first, harness.socket(additional_headers=b) as second:
            await until(first, "welcome")
            await until(second, "welcome")
            with pytest.raises(InvalidStatus) as raised:
                await harness.socket(additional_headers=a)
            assert raised.value.response.status_code == 429
            async with harness.http.get("/v1/stream", params={"key": KEY}, headers=a) as response:
                assert (await response.json())["error"]["details"] == {"limit": "sessions_per_address", "value": 1}
        await holds(lambda: not harness.state.sessions)
        async with harness.socket(additional_headers=a) as first:
            await until(first, "welcome")


async def test_sessions_are_counted_by_subject_also_where_it_says_hello() -> None:
    async with serving(Limits(sessions_per_subject=1)) as harness:
        harness.state.authority = ApiKeys.parse("\n".join(line(name, f"hk_{name}", Grants(read=[[]])) for name in "ab"))
        async with harness.socket(additional_headers={"X-API-Key": "hk_a"}) as first, harness.socket() as second:
            await until(first, "welcome")
            await second.send(b'{"type":"hello","token":"hk_a"}')
            (error,) = await until(second, "error")
            assert (error["code"], error["details"]["limit"]) == ("TOO_MANY", "sessions_per_subject")
            await second.send(b'{"type":"hello","token":"hk_b"}')
            await until(second, "welcome")
            await second.send(b'{"type":"auth","id":1,"token":"hk_a"}')
            assert (await until(second, "error"))[0]["code"] == "TOO_MANY"
            await second.send(b'{"type":"subscribe","id":2,"key":["a"]}')
            await until(second, "snapshot_end")
        async with harness.http.get("/v1/keys", headers={"X-API-Key": "hk_a"}) as response:
            assert response.status == 200


async def test_event_streams_are_counted() -> None:
    async with serving(Limits(streams=1)) as harness, harness.http.get("/v1/stream", params={"key": KEY}) as response:
        assert response.status == 200
        async with harness.http.get("/v1/stream", params={"key": KEY}) as second:
            assert (second.status, (await second.json())["error"]["details"]["limit"]) == (429, "streams")


# --- how fast --------------------------------------------------------------------------------------------------------


async def test_commands_beyond_the_rate_are_refused_with_the_time_to_wait() -> None:
    async with serving(Limits(commands=5, commands_burst=3)) as harness, harness.socket() as socket:
        await until(socket, "welcome")
        await socket.send(orjson.dumps([{"type": "ping", "id": n} for n in range(4)]))
        (error,) = [each for each in await until(socket, "error") if each["type"] == "error"]
        assert (error["re"], error["code"], error["temporary"]) == (3, "LIMITED", True)
        assert error["details"]["limit"] == "commands"
        assert 0 < error["details"]["retry_after_ms"] <= 200
        await asyncio.sleep(error["details"]["retry_after_ms"] / 1000)
        await socket.send(b'{"type":"ping","id":9}')
        await until(socket, "pong")


async def test_a_flood_is_read_at_the_rate() -> None:
    async with serving(Limits(commands=50, commands_burst=10)) as harness, harness.socket() as socket:
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while True:
                await socket.send(b'{"type":"ping"}' + b" " * 60_000)
                sent += 1

        async def listen() -> None:
            async for _ in socket:
                pass

        tasks = [asyncio.create_task(flood()), asyncio.create_task(listen())]
        await holds(lambda: harness.state.limited["commands"] >= 20)
        async with harness.http.get("/healthz") as response:
            assert response.status == 200
        assert harness.state.limited["commands"] < 100
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sent < 1_000, "what is not read is not sent for long"


async def test_requests_beyond_the_rate_get_429_with_retry_after() -> None:
    async with serving(Limits(requests=1, requests_burst=2)) as harness:
        await harness.put(KEY, 1)
        statuses = []
        for _ in range(3):
            async with harness.http.get("/v1/entries", params={"key": KEY}) as response:
                statuses.append(response.status)
                last = dict(response.headers), await response.json()
        assert statuses == [200, 429, 429]
        assert last[0]["Retry-After"] == "1"
        assert last[1]["error"]["details"]["limit"] == "requests"
        async with harness.http.get("/readyz") as response:
            assert response.status == 200, "whoever looks after it is never refused"


async def test_credentials_that_are_refused_count_by_address_and_then_nobody_looks_at_them() -> None:
    looked: list[str] = []

    class Watched(ApiKeys):
        def recognise(self, credentials: str, wall_ms: float) -> Principal:
            looked.append(credentials)
            return super().recognise(credentials, wall_ms)

    async with serving(Limits(requests=0.001, requests_burst=3), trusted_proxies=("127.0.0.1/32",)) as harness:
        harness.state.authority = Watched.parse(line("a", "hk_a", Grants(read=[[]])))
        said: list[dict[str, str]] = [{"X-API-Key": "guess"}, {}, {"Authorization": "Basic x"}, {"X-API-Key": "guess"}]
        statuses = []
        for headers in said:
            async with harness.http.get("/v1/keys", headers={**headers, "X-Forwarded-For": "192.0.2.1"}) as response:
                statuses.append(response.status)
                answer = await response.json()
        assert statuses == [401, 401, 401, 429]
        assert answer["error"]["details"]["limit"] == "requests"
        assert looked == ["guess"], "the last was refused unseen"
        assert harness.state.limited == {"requests": 1}
        for address, status in [("192.0.2.1", 429), ("192.0.2.2", 200)]:
            headers = {"X-API-Key": "hk_a", "X-Forwarded-For": address}
            async with harness.http.get("/v1/keys", headers=headers) as response:
                assert response.status == status


async def test_credentials_that_are_refused_on_sockets_count_with_those_of_requests() -> None:
    async with serving(Limits(requests=0.001, requests_burst=2)) as harness:
        harness.state.authority = ApiKeys.parse(line("a", "hk_a", Grants(read=[[]])))
        async with harness.socket() as first, harness.socket() as second:
            for socket, code in ((first, 3500), (second, 3002)):
                await socket.send(orjson.dumps([{"type": "hello", "token": f"guess{n}"} for n in range(1000)]))
                with pytest.raises(ConnectionClosed):
                    await until(socket, "never")
                assert socket.close_code == code
                if code == 3500:
                    async with harness.http.get("/v1/keys", headers={"X-API-Key": "guess"}) as response:
                        assert response.status == 401
        async with harness.http.get("/v1/keys", headers={"X-API-Key": "hk_a"}) as response:
            assert response.status == 429


async def test_requests_are_counted_by_subject_where_there_is_one() -> None:
    async with serving(Limits(requests=0.001, requests_burst=1)) as harness:
        harness.state.authority = ApiKeys.parse("\n".join(line(name, f"hk_{name}", Grants(read=[[]])) for name in "ab"))
        for name, status in [("a", 200), ("a", 429), ("b", 200)]:
            async with harness.http.get("/v1/keys", headers={"X-API-Key": f"hk_{name}"}) as response:
                assert response.status == status


# --- how large -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", (414, "TOO_LARGE", "request_line")),
        (GET + b"X: " + b"x" * 9_000 + b"\r\n\r\n", (431, "TOO_LARGE", "header")),
        (GET + b"x" * 9_000 + b": 1\r\n\r\n", (431, "TOO_LARGE", "header")),
        (GET + b"".join(b"X-%d: 1\r\n" % n for n in range(101)) + b"\r\n", (431, "TOO_MANY", "header_count")),
        (
            GET + b"".join(b"X-%d: %b\r\n" % (n, b"x" * 8_000) for n in range(9)) + b"\r\n",
            (431, "TOO_LARGE", "headers"),
        ),
        (GET + b"".join(b"X-%d: %b\r\n" % (n, b"x" * 8_000) for n in range(20)), (431, "TOO_LARGE", "headers")),
    ],
)
async def test_a_head_that_is_too_large_is_refused(
    harness: Harness, head: bytes, expected: tuple[int, str, str]
) -> None:
    for step in (len(head), 4_000):
        raw = await Raw.to(harness)
        try:
            for start in range(0, len(head), step):
                await raw.say(head[start : start + step])
                await asyncio.sleep(0)
        except ConnectionError:
            pass
        with suppress(ConnectionError, asyncio.IncompleteReadError):  # a reset by what was still on its way
            assert await refused(raw) == expected
    assert harness.state.limited[expected[2]] == 2


async def test_headers_that_fit_are_read(harness: Harness) -> None:
    raw = await Raw.to(harness)
    await raw.say(GET, b"".join(b"X-%d: %b\r\n" % (n, b"x" * 7_000) for n in range(4)), b"\r\n")
    assert (await raw.answer())[0] == 200
    raw.writer.close()


async def test_a_body_is_measured_unpacked(harness: Harness) -> None:
    most = harness.state.limits.body_bytes
    await harness.put(KEY, "x" * (most - 2))
    bomb = zlib.compressobj(9, wbits=31)
    packed = bomb.compress(b'"' + b"x" * (64 * most) + b'"') + bomb.flush()
    for body, headers in [(b'"' + b"x" * most + b'"', {}), (packed, {"Content-Encoding": "gzip"})]:
        async with harness.http.put(
            "/v1/entries", params={"key": KEY}, data=io.BytesIO(body), headers=headers
        ) as response:
            assert (response.status, (await response.json())["error"]["details"]) == (
                413,
                {"limit": "body", "value": most},
            )


async def test_a_frame_has_so_many_messages(harness: Harness) -> None:
    async with harness.socket() as socket:
        await socket.send(orjson.dumps([{"type": "ping"}] * 1_025))
        (error,) = (await until(socket, "error"))[1:]
        assert (error["code"], error["details"]["limit"]) == ("TOO_MANY", "frame_messages")
        assert "re" not in error


async def test_edits_do_not_grow_an_entry_without_end(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.core import shard_state

    monkeypatch.setattr(shard_state, "MAX_EDITED_BYTES", 10_000)
    await harness.put(KEY, [])
    statuses = []
    for _ in range(4):
        edit = {"operations": [{"append": {"item": "x" * 3_000}}]}
        async with harness.http.patch("/v1/entries", params={"key": KEY}, json=edit) as response:
            statuses.append(response.status)
    assert statuses == [200, 200, 200, 413]
    assert harness.state.limited["value"] == 1
    assert len((await harness.get("/v1/entries", key=KEY))[1]["data"]) == 3


# --- how long --------------------------------------------------------------------------------------------------------

HASTY = Limits(head_within_ms=300, body_within_ms=300, idle_ms=100_000)


@pytest.mark.parametrize("said", [b"", b"GET", GET, GET + b"X: y"])
async def test_headers_that_do_not_come_end_the_connection(said: bytes) -> None:
    async with serving(HASTY) as harness:
        raw = await Raw.to(harness)
        if said:
            await raw.say(said)
        assert await refused(raw) == (408, "TIMEOUT", "head_within")


async def test_headers_that_trickle_in_end_it_too() -> None:
    async with serving(HASTY) as harness:
        raw = await Raw.to(harness)
        await raw.say(GET)
        trickle = asyncio.create_task(raw.trickle(b"X: y\r\n", 0.05))
        with pytest.raises(ConnectionError):
            await trickle
        assert harness.state.limited["head_within"] == 1


async def test_a_connection_that_was_of_use_may_be_idle_for_longer() -> None:
    async with serving(HASTY) as harness:
        raw = await Raw.to(harness)
        for _ in range(2):
            await raw.say(
                b"PUT /v1/entries?key=[] HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n", b"1", b"23"
            )
            assert (await raw.answer())[0] == 200
            connection = next(iter(server_of(harness).connections))
            connection.late(harness.loop.time() + 3600)
            assert (connection.since, connection.held) == (0.0, 0)
        raw.writer.close()


async def test_a_body_that_does_not_come_is_answered_with_408() -> None:
    async with serving(HASTY) as harness:
        raw = await Raw.to(harness)
        await raw.say(b"PUT /v1/entries?key=[] HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n1")
        status, _, body = await raw.answer()
        assert (status, body["error"]["details"]["limit"]) == (408, "body_within")
        await raw.until_closed()


async def test_a_frame_that_does_not_come_ends_the_socket() -> None:
    async with serving(HASTY) as harness, harness.socket() as socket:
        await until(socket, "welcome")
        socket.transport.write(b"\x81\xfe\x00\xff\x00\x00\x00\x00{")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 3008
        assert harness.state.limited["body_within"] == 1


async def test_an_idle_socket_is_not_late() -> None:
    async with serving(HASTY) as harness, harness.socket() as socket:
        await until(socket, "welcome")
        await socket.send(b'{"type":"ping"}')
        await until(socket, "pong")
        (connection,) = [each for each in server_of(harness).connections if each.on_late]
        assert (connection.since, connection.held) == (0.0, 0)


# --- how much together -----------------------------------------------------------------------------------------------


async def test_unfinished_frames_and_bodies_share_what_there_is() -> None:
    limits = Limits(buffers_bytes=3_000_000)
    async with serving(limits) as harness:
        raws = []
        for n in range(8):
            raw = await Raw.to(harness)
            raws.append(raw)
            await raw.say(b"PUT /v1/entries?key=[] HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
            await raw.say(b"x" * (600_000 + n))
        await holds(lambda: harness.state.limited["buffers"] >= 3)
        assert server_of(harness).held <= limits.buffers_bytes
        async with harness.http.get("/healthz") as response:
            assert response.status == 200
        for raw in raws:
            raw.writer.close()
        await holds(lambda: server_of(harness).held == 0)


async def test_answers_that_are_not_taken_count_too() -> None:
    limits = Limits(buffers_bytes=8_000_000)
    async with serving(limits) as harness:
        await harness.put(KEY, "x" * 1_000_000)
        raws = []
        for _ in range(24):
            raw = await Raw.to(harness)
            raw.pause()
            raws.append(raw)
            await raw.say(*[b'GET /v1/entries?key=["a"] HTTP/1.1\r\nHost: localhost\r\n\r\n'] * 10)
        await holds(lambda: server_of(harness).held > 0 or harness.state.limited["buffers"])
        async with harness.http.get("/healthz") as response:
            assert response.status == 200
        assert server_of(harness).held <= limits.buffers_bytes
        for raw in raws:
            raw.writer.transport.abort()
        await holds(lambda: server_of(harness).held == 0)


@pytest.mark.parametrize(
    "said",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \xff\xfe\x00\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_and_not_logged(
    harness: Harness, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    raw = await Raw.to(harness)
    await raw.say(said)
    received = await raw.until_closed()
    assert received.startswith(b"HTTP/1.0 400 "), received
    assert orjson.loads(received.partition(b"\r\n\r\n")[2])["error"]["code"] == "BAD_REQUEST"
    assert b"X-Content-Type-Options: nosniff" in received
    assert not caplog.records
