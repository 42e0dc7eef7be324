"""Whatever a service answers, and whatever it is asked with: an actor that asks it meets an `UpstreamError` at the worst."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Struct

from cluster.errors import UpstreamError
from cluster.services import ServiceClient

STATUS_LINES = st.sampled_from(
    [
        *(b"HTTP/1.1 %d said" % status for status in (100, 101, 200, 204, 301, 302, 304, 409, 429, 503, 999)),
        *(b"HTTP/1.1 200 caf\xe9", b"HTTP/1.1 200", b"HTTP/1.0 200 OK", b"HTTP/9.9 200 OK", b"HTTP/1.1 2000 OK"),
    ]
)
NAMES = st.sampled_from(
    [
        *(b"Retry-After", b"Location", b"Set-Cookie", b"Content-Encoding", b"Content-Length", b"Content-Type"),
        *(b"Transfer-Encoding", b"ETag", b"Connection", b"X"),
    ]
)
DATES = st.builds(
    "Mon, {} Jan {} 00:00:{} {}".format,
    *(st.integers(0, 10**20), st.integers(0, 10**20), st.integers(0, 10**20), st.integers(-(10**20), 10**20)),
)
VALUES = st.one_of(
    st.sampled_from([b"gzip", b"deflate", b"chunked", b"close", b"mailto:a:b", b"http://[::1", b"//x:port/", b"\xff"]),
    DATES.map(str.encode),
    st.integers(-(10**20), 10**20).map(b"%d".__mod__),
    st.binary(max_size=20).filter(lambda value: not {10, 13} & set(value)),
)
HEADERS = st.lists(st.tuples(NAMES, VALUES).map(b": ".join), max_size=3)
BODIES = st.one_of(
    st.sampled_from([b"[1]", b"3\r\n[1]\r\n0\r\n\r\n", b"\x1f\x8b\x08\x00", b"\n"]), st.binary(max_size=20)
)


def answer(status: bytes, headers: list[bytes], body: bytes) -> bytes:
    return b"\r\n".join([status, *headers, b"", body])


ANSWERS = st.one_of(st.builds(answer, STATUS_LINES, HEADERS, BODIES), st.binary(max_size=50))


class Asked(Struct, frozen=True):
    """A request, and a write."""

    method: str = "GET"
    path: str = "/x"
    params: tuple[tuple[str, str], ...] = ()
    etag: str | None = None
    body: bytes | None = None
    idempotency_key: str = "m"
    service: str = "api"


TEXTS = st.one_of(st.text(max_size=20), st.characters().map(lambda each: each * 30_000))
ASKED = st.builds(
    Asked,
    st.sampled_from(["GET", "POST", "PATCH", "DELETE"]),
    TEXTS,
    st.lists(st.tuples(TEXTS, TEXTS), max_size=2).map(tuple),
    st.none() | TEXTS,
    st.none() | st.binary(max_size=20),
    TEXTS,
)
Ask = Callable[[bytes, Asked], None]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """Ask a real server that answers with the bytes it is given, and hangs up."""
    said = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.write(said)
        writer.close()

    async def both(asked: Asked) -> None:
        for way in (client.fetch, client.send):
            with suppress(UpstreamError):
                await way(asked)

    def asking(answers: bytes, asked: Asked) -> None:
        nonlocal said
        said = answers
        runner.run(both(asked))

    with asyncio.Runner() as runner:
        server = runner.run(asyncio.start_server(serve, "127.0.0.1", 0))
        client = ServiceClient("api", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout_ms=60_000)
        yield asking
        runner.run(client.aclose())
        server.close()


@example(b"HTTP/1.1 200 caf\xe9\r\n\r\n[1]")
@example(b"HTTP/1.1 302 Found\r\nLocation: mailto:a:b\r\n\r\n")
@example(b"HTTP/1.1 302 Found\r\nLocation: http://xn--a/\r\n\r\n")
@example(b"HTTP/1.1 503 x\r\nRetry-After: Mon, 01 Jan 2024 00:00:00 +99999999999999999999\r\n\r\n")
@given(ANSWERS)
def test_whatever_a_service_answers(ask: Ask, answers: bytes) -> None:
    ask(answers, Asked(etag='"1"'))


@example(Asked(path="/" + "x" * 70_000))
@example(Asked(path="/\ud800"))
@example(Asked(params=(("\ud800", ""),)))
@example(Asked(idempotency_key="é"))
@example(Asked(idempotency_key="a\nb"))
@given(ASKED)
def test_whatever_it_is_asked_with(ask: Ask, asked: Asked) -> None:
    ask(answer(b"HTTP/1.1 200 OK", [b"Content-Length: 3"], b"[1]"), asked)
