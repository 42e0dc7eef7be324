import asyncio
import json
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from types import SimpleNamespace
from typing import ClassVar

import pytest
from aiohttp import web

from cluster import clock
from cluster.clock import ManualClock
from cluster.core.declared_query import Response
from cluster.errors import ErrorCode, UpstreamError
from cluster.services import ServiceClient


@dataclass
class Ask:
    path: str
    params: list = field(default_factory=list)
    service: str = "api"
    method: str = "GET"
    etag: str | None = None


@dataclass
class Change:
    path: str = "/tasks/7"
    method: str = "PATCH"
    body: bytes | None = b'{"a":1}'
    params: list = field(default_factory=list)
    idempotency_key: str = "m-1"
    service: str = "api"
    etag: str | None = None


@pytest.fixture
async def upstream():
    """A real server that answers with `answer` and remembers what it was asked."""

    class Upstream:
        answer = staticmethod(lambda _request: web.json_response({"ok": True}))
        requests: ClassVar[list[web.Request]] = []
        url = ""

    async def handle(request):
        Upstream.requests.append(request)
        answer = Upstream.answer(request)
        return await answer if asyncio.iscoroutine(answer) else answer

    app = web.Application()
    app.add_routes([web.route("*", "/{path:.*}", handle)])
    runner = web.AppRunner(app, shutdown_timeout=0.01, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    Upstream.url = f"http://127.0.0.1:{runner.addresses[0][1]}/base"
    yield Upstream
    await runner.cleanup()


@pytest.fixture
def timeout_ms():
    """Far beyond what an answer takes on a busy machine; tests of the timeout itself give a short one."""
    return 30_000


@pytest.fixture
async def client(upstream, timeout_ms):
    client = ServiceClient(
        "api",
        upstream.url + "/",
        {"authorization": "Bearer t"},
        timeout_ms=timeout_ms,
        max_body_bytes=100_000,
        clock=ManualClock(1_445_412_480_000.0),
    )
    yield client
    await client.aclose()


async def failure(client, request=None):
    with pytest.raises(UpstreamError) as caught:
        await client.fetch(request or Ask("/x"))
    assert caught.value.code is ErrorCode.UPSTREAM_ERROR
    assert "service api" in caught.value.message
    return caught.value


async def test_asks_and_keeps_the_bytes(upstream, client):
    upstream.answer = lambda _request: web.Response(
        body=b'{"b":1, "a":12345678901234567890123}', content_type="text/plain"
    )
    fetched = await client.fetch(Ask("/projects/a%2Fb%20c", [("q", "x y&z"), ("é", "+")]))
    assert fetched.body == b'{"b":1, "a":12345678901234567890123}'
    (request,) = upstream.requests
    assert request.raw_path == "/base/projects/a%2Fb%20c?q=x%20y%26z&%C3%A9=%2B"
    assert request.query["q"] == "x y&z"
    assert request.query["é"] == "+"
    assert request.headers["Authorization"] == "Bearer t"
    assert request.headers["Accept"] == "application/json"


async def test_line_breaks_are_taken_out(upstream, client):
    upstream.answer = lambda _request: web.Response(body=b'{\r\n  "a": [1,\n 2.50, "x\\ny"]\n}\n')
    assert (await client.fetch(Ask("/x"))).body == b'{"a":[1,2.50,"x\\ny"]}'


@pytest.mark.parametrize("etag", ['"caf\xe9"', '"a\x01"'])
async def test_a_tag_that_no_header_may_hold_is_not_sent_back(upstream, client, etag):
    assert (await client.fetch(Ask("/x", etag=etag))).body == b'{"ok": true}'
    assert "If-None-Match" not in upstream.requests[0].headers


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}x", b'{"a":NaN}', b'"\xff"', b"[" * 2000 + b"]" * 2000])
async def test_what_is_not_json(upstream, client, body):
    upstream.answer = lambda _request: web.Response(body=body)
    error = await failure(client)
    assert not error.retryable
    assert "not JSON" in error.message
    assert error.status == 200, "it has answered"


async def test_headers_of_the_configuration_take_the_place_of_what_is_sent_without_them(upstream):
    own = {"accept": "application/a", "user-agent": "me", "content-type": "application/c", "x-MINE": "m"}
    client = ServiceClient("api", upstream.url, own)
    await client.send(Change())
    await client.aclose()
    (request,) = upstream.requests
    assert {name: request.headers.getall(name) for name in own} == {name: [value] for name, value in own.items()}


async def test_a_path_may_have_parameters_of_its_own(upstream, client):
    await client.fetch(Ask("/posts?feed=a%20b", [("offset", "20")]))
    await client.fetch(Ask("/posts?feed=a%20b"))
    assert [request.raw_path for request in upstream.requests] == [
        "/base/posts?feed=a%20b&offset=20",
        "/base/posts?feed=a%20b",
    ]


@pytest.mark.parametrize(
    ("status", "retryable"),
    [(302, False), (400, False), (404, False), (408, True), (425, True), (429, True), (500, True), (503, True)],
)
async def test_statuses(upstream, client, status, retryable):
    upstream.answer = lambda _request: web.Response(status=status, headers={"Location": "/base/elsewhere"})
    error = await failure(client)
    assert (error.status, error.retryable, error.retry_after_ms) == (status, retryable, None)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(("value", "expected"), [("3", 3000.0), ("Wed, 21 Oct 2015 07:28:10 GMT", 10_000.0)])
async def test_retry_after(upstream, client, value, expected):
    upstream.answer = lambda _request: web.Response(status=429, headers={"Retry-After": value})
    assert (await failure(client)).retry_after_ms == expected


async def test_a_date_in_retry_after_is_one_of_the_wall_clock_as_it_is_now(upstream, monkeypatch):
    client = ServiceClient("api", upstream.url)
    ahead_s = 3_600.0
    monkeypatch.setattr(clock, "time", SimpleNamespace(time=lambda: time.time() + ahead_s, monotonic=time.monotonic))
    date = formatdate(time.time() + ahead_s + 60.0, usegmt=True)
    upstream.answer = lambda _request: web.Response(status=429, headers={"Retry-After": date})
    assert (await failure(client)).retry_after_ms <= 60_000.0
    await client.aclose()


async def test_a_body_over_the_limit(upstream, client):
    upstream.answer = lambda _request: web.Response(body=b'"' + b"x" * 200_000 + b'"')
    error = await failure(client)
    assert not error.retryable
    assert "100000 bytes" in error.message


@pytest.mark.parametrize("timeout_ms", [300])
async def test_no_answer_in_time(upstream, client):
    async def never(_request):
        await asyncio.Event().wait()

    upstream.answer = never
    error = await failure(client)
    assert error.retryable
    assert "0.3 s" in error.message


@pytest.mark.parametrize("timeout_ms", [300])
async def test_a_body_that_trickles_is_cut_off_too(upstream, client):
    async def trickle(request):
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.01)

    upstream.answer = trickle
    assert (await failure(client)).retryable


async def test_a_connection_cut(upstream, client):
    async def cut(request):
        request.transport.abort()
        await asyncio.sleep(0)
        return web.Response()

    upstream.answer = cut
    assert (await failure(client)).retryable


async def test_nobody_there():
    client = ServiceClient("api", "http://127.0.0.1:1", timeout_ms=2000)
    assert (await failure(client)).retryable
    await client.aclose()


@pytest.mark.parametrize("path", ["/projects/../admin", "/projects/%2e%2E/admin", "/./x", "/projects/.."])
async def test_a_path_cannot_climb(upstream, client, path):
    error = await failure(client, Ask(path))
    assert not error.retryable
    assert upstream.requests == []


async def test_connections_are_kept_and_closed(upstream, client):
    ports = set()

    def note(request):
        ports.add(request.transport.get_extra_info("peername")[1])
        return web.json_response(1)

    upstream.answer = note
    for _ in range(3):
        assert (await client.fetch(Ask("/x"))).body == b"1"
    assert len(ports) == 1
    await client.aclose()
    await client.aclose()
    assert (await client.fetch(Ask("/x"))).body == b"1"
    assert len(ports) == 2


async def refusal(client, write=None):
    with pytest.raises(UpstreamError) as caught:
        await client.send(write or Change())
    return caught.value


async def test_a_write_is_sent_with_its_key(upstream, client):
    async def echo(request):
        heard = {name: request.headers.get(name) for name in ("Idempotency-Key", "If-Match", "Content-Type")}
        said = {"method": request.method, "at": request.raw_path, "body": (await request.read()).decode()}
        return web.json_response({**heard, **said}, status=201, headers={"ETag": '"2"'})

    upstream.answer = echo
    sent = await client.send(Change(params=[("q", "x y")], etag='"1"'))
    assert sent.etag == '"2"'
    assert json.loads(sent.body) == {
        "Idempotency-Key": "m-1",
        "If-Match": '"1"',
        "Content-Type": "application/json",
        "method": "PATCH",
        "at": "/base/tasks/7?q=x%20y",
        "body": '{"a":1}',
    }
    without = json.loads((await client.send(Change(method="DELETE", body=None))).body)
    assert (without["method"], without["body"], without["If-Match"]) == ("DELETE", "", None)
    assert without["Content-Type"] != "application/json"


@pytest.mark.parametrize(
    ("status", "body"), [(204, b""), (200, b""), (200, b"OK"), (200, b"[" * 2000), (201, b'"' + b"x" * 200_000 + b'"')]
)
async def test_a_write_is_done_whatever_the_answer_says(upstream, client, status, body):
    upstream.answer = lambda _request: web.Response(status=status, body=body)
    assert await client.send(Change()) == Response(None)


async def test_why_a_write_is_refused(upstream, client):
    upstream.answer = lambda _request: web.json_response({"why": "old"}, status=409, headers={"Retry-After": "3"})
    error = await refusal(client)
    assert (error.status, error.is_conflict, error.retryable, error.retry_after_ms) == (409, True, False, 3000.0)
    assert error.details == {"status": 409, "body": {"why": "old"}}
    upstream.answer = lambda _request: web.json_response({"why": "x" * 5_000}, status=503)
    error = await refusal(client)
    assert (error.is_conflict, error.retryable, error.details) == (False, True, {"status": 503})
    for body in (b"<html>", b"", b"[" * 2000):
        upstream.answer = lambda _request, body=body: web.Response(status=412, body=body)
        error = await refusal(client)
        assert (error.is_conflict, error.details) == (True, {"status": 412})


async def test_a_write_that_nobody_answers(upstream, client):
    async def cut(request):
        request.transport.abort()
        await asyncio.sleep(0)
        return web.Response()

    upstream.answer = cut
    error = await refusal(client)
    assert (error.status, error.retryable) == (None, True)
    error = await refusal(client, Change(path="/x/../y"))
    assert not error.retryable


async def test_the_environment_names_who_vouches_for_certificates(certificate, tls_context, monkeypatch):
    async def answer(_request):
        return web.json_response(1)

    app = web.Application()
    app.add_routes([web.get("/x", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls_context).start()
    client = ServiceClient("api", f"https://127.0.0.1:{runner.addresses[0][1]}", timeout_ms=30_000)
    try:
        assert "self-signed certificate" in (await failure(client)).message
        await client.aclose()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        assert (await client.fetch(Ask("/x"))).body == b"1"
    finally:
        await client.aclose()
        await runner.cleanup()
