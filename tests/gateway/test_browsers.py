"""Pages in browsers, before a real server."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from websockets.exceptions import InvalidStatus

from cluster.core.grants import ApiKeys, Grants, line
from cluster.core.limits import Limits
from cluster.gateway import connections
from cluster.gateway.browsers import Browsers
from tests.gateway.conftest import Harness, until
from tests.gateway.test_connections import Raw, serving

APP = "https://app.example"
EVIL = "https://evil.example"
KEY = '["a"]'
ROUTES = [
    *(("GET", path) for path in ("/", "/healthz", "/readyz", "/openapi.json", "/v1/cluster", "/v1/keys", "/v1/mutations")),
    *((method, "/v1/entries") for method in ("GET", "PUT", "PATCH", "DELETE")),
    *(("GET", path) for path in ("/v1/stream", "/v1/missed", "/v1/socket", "/v1/presence", "/nothing")),
    *(("POST", path) for path in ("/v1/invalidate", "/v1/mutations", "/v1/scale", "/v1/backup")),
]  # fmt: skip


@pytest.fixture
async def listed() -> AsyncIterator[Harness]:
    harness = await Harness(origins=(APP,), hsts_s=300).start()
    yield harness
    await harness.stop()


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_another_page_is_refused_on_every_route(listed: Harness, method: str, path: str) -> None:
    for origin in (
        EVIL,
        "null",
        APP + ".evil.example",
        APP.upper(),
        "http://app.example",
        f"http://127.0.0.1:{listed.port}",
    ):
        async with listed.http.request(method, path, headers={"Origin": origin}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "FORBIDDEN"), origin
            assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize(("method", "path"), [each for each in ROUTES if each != ("GET", "/")])
async def test_every_answer_has_the_headers(listed: Harness, method: str, path: str) -> None:
    async with listed.http.request(method, path, headers={"Origin": APP}) as response:
        headers = response.headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Content-Security-Policy"].startswith("default-src 'none';")
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["Strict-Transport-Security"] == "max-age=300"
        assert headers["Vary"] == "Origin"
        assert headers["Access-Control-Allow-Origin"] == APP
        assert ("Cross-Origin-Opener-Policy" in headers) == (response.content_type == "text/html")
        assert "Access-Control-Allow-Credentials" not in headers


@pytest.mark.parametrize(
    ("status", "said", "limits"),
    [
        (400, b"nonsense\r\n\r\n", Limits()),
        (408, b"GET / HTTP/1.1\r\n", Limits(head_within_ms=20)),
        (429, b"", Limits(connections_per_address=0)),
        (431, b"GET / HTTP/1.1\r\nX: " + b"x" * 60_000, Limits(header_bytes=100_000)),
        (503, b"", Limits(connections=0)),
    ],
)
async def test_an_answer_to_no_request_has_the_headers_too(
    monkeypatch: pytest.MonkeyPatch, status: int, said: bytes, limits: Limits
) -> None:
    monkeypatch.setattr(connections, "LOOK_S", 0.01)
    async with serving(limits, origins=(APP,), hsts_s=300) as harness:
        raw = await Raw.to(harness)
        await raw.say(said)
        found, headers, _ = await raw.answer()
        await raw.until_closed()
        assert found == status
        wanted = {name.lower(): value for name, value in harness.server._browsers.data.items()}
        assert headers.items() >= wanted.items()


async def test_a_backup_has_the_headers(listed: Harness) -> None:
    async with listed.http.post("/v1/backup", headers={"Origin": APP}) as response:
        assert response.status == 200
        assert response.headers.items() >= listed.server._browsers.data.items()
        assert response.headers["Access-Control-Allow-Origin"] == APP
        assert response.content_type == "application/vnd.harbor.backup"


async def test_the_short_way_to_an_entry_has_the_same_headers(harness: Harness) -> None:
    await harness.put(KEY, "<script>alert(1)</script>")
    async with harness.socket() as socket:
        await socket.send(b'{"type":"subscribe","id":1,"key":["a"]}')
        await until(socket, "snapshot_end")
        seen = []
        for _ in range(3):
            async with harness.http.get("/v1/entries", params={"key": KEY}) as response:
                assert response.content_type == "application/json"
                seen.append({name: value for name, value in response.headers.items() if name != "Date"})
    assert seen[0] == seen[1] == seen[2]
    assert "Strict-Transport-Security" not in seen[0]


async def test_a_stream_is_for_listed_pages_with_their_cookies(listed: Harness) -> None:
    async with listed.http.get("/v1/stream", params={"key": KEY}, headers={"Origin": APP}) as response:
        assert response.status == 200
        assert response.headers["Access-Control-Allow-Origin"] == APP
        assert response.headers["Access-Control-Allow-Credentials"] == "true"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
    async with listed.http.get("/v1/stream", params={"key": KEY}) as response:
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_a_preflight_names_what_the_endpoint_has(listed: Harness) -> None:
    for path, methods, cookies in [
        ("/v1/entries", "GET, PUT, PATCH, DELETE", False),
        ("/v1/invalidate", "POST", False),
        ("/v1/mutations/a/b", "GET, DELETE", False),
        ("/v1/stream", "GET", True),
    ]:
        asks = {"Origin": APP, "Access-Control-Request-Method": "PUT"}
        async with listed.http.options(path, headers=asks) as response:
            assert response.status == 204
            assert response.headers["Access-Control-Allow-Origin"] == APP
            assert response.headers["Access-Control-Allow-Methods"] == methods
            assert "*" not in response.headers["Access-Control-Allow-Headers"]
            assert response.headers["Access-Control-Max-Age"] == "600"
            assert response.headers["Vary"] == "Origin"
            assert ("Access-Control-Allow-Credentials" in response.headers) == cookies
    for path, origin, status in [("/v1/nothing", APP, 404), ("/v1/entries", EVIL, 403), ("/v1/entries", None, 403)]:
        async with listed.http.options(path, headers={"Origin": origin} if origin else {}) as response:
            assert response.status == status


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),
        ("SELF", True),
        ("http://localhost:3000", True),
        ("http://app.localhost", True),
        ("http://[::1]:3000", True),
        (EVIL, False),
        ("null", False),
        ("http://localhost.evil.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("file://", False),
        ("http://[", False),
    ],
)
async def test_where_anybody_may_do_everything_only_pages_of_this_machine_may(
    harness: Harness, origin: str | None, allowed: bool
) -> None:
    headers = {} if origin is None else {"Origin": harness.url if origin == "SELF" else origin}
    async with harness.http.get("/v1/keys", headers=headers) as response:
        assert response.status == (200 if allowed else 403)
    if allowed:
        async with harness.socket(additional_headers=headers) as socket:
            await until(socket, "welcome")
    else:
        with pytest.raises(InvalidStatus):
            async with harness.socket(additional_headers=headers):
                pass


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("localhost:80", True),
        ("harbor.localhost", True),
        ("[::1]:8700", True),
        ("10.1.2.3:8700", True),
        ("harbor:8700", True),  # nobody can register a name without a dot
        ("evil.example", False),
        ("evil.example:8700", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.", True),
        ("evil.example.", False),
        ("a@127.0.0.1.evil.example", False),
        ("[", False),
        (":8700", False),
    ],
)
async def test_a_rebound_name_reads_nothing(harness: Harness, host: str, allowed: bool) -> None:
    await harness.put(KEY, 1)
    async with harness.socket() as socket:  # so that the short way is tried too
        await socket.send(b'{"type":"subscribe","id":1,"key":["a"]}')
        await until(socket, "snapshot_end")
        for _ in range(3):
            async with harness.http.get("/v1/entries", params={"key": KEY}) as response:
                assert response.status == 200
            async with harness.http.get("/v1/entries", params={"key": KEY}, headers={"Host": host}) as response:
                assert (response.status, response.status == 403) == (200 if allowed else 403, not allowed), host


async def test_a_name_of_a_listed_origin_is_a_proxy_in_front(listed: Harness) -> None:
    for host, status in [("app.example", 200), ("app.example:443", 200), ("evil.example", 403)]:
        async with listed.http.get("/v1/keys", headers={"Host": host}) as response:
            assert response.status == status


async def test_with_credentials_neither_the_name_nor_an_unlisted_origin_matters(harness: Harness) -> None:
    harness.state.authority = ApiKeys.parse(line("a", "hk_a", Grants(read=[[]])))
    headers = {"Host": "harbor.example", "Origin": EVIL, "X-API-Key": "hk_a"}
    async with harness.http.get("/v1/keys", headers=headers) as response:
        assert response.status == 200
        assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": EVIL}, 403),
        ({"Origin": "null"}, 403),
    ],
)
async def test_a_cookie_is_no_use_to_other_pages(harness: Harness, headers: dict[str, str], status: int) -> None:
    harness.state.authority = ApiKeys.parse(line("a", "hk_a", Grants(read=[[]], write=[[]])))
    sent = {"Cookie": "harbor_token=hk_a", **headers}
    async with harness.http.get("/v1/stream", params={"key": KEY}, headers=sent) as response:
        assert response.status == status
    async with harness.http.put("/v1/entries", params={"key": KEY}, data=b"1", headers=sent) as response:
        assert response.status == 401, "a write with a cookie"


def test_hosts_that_were_good_are_remembered_up_to_a_number() -> None:
    browsers = Browsers()
    for n in range(1000):
        assert browsers.is_own(f"localhost:{n}")
    assert len(browsers._good) <= 256


def test_a_page_gets_the_headers_of_a_page() -> None:
    page = web.Response(text="x", content_type="text/html")
    Browsers().guard(page)
    assert page.headers["Cross-Origin-Opener-Policy"] == "same-origin"
