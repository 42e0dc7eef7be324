"""Tokens at a real server: over HTTP, event streams and sockets, with keys from a real URL that rotates, fails and is hammered."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cluster import clock
from cluster.config.model import AuthConfig, GatewayConfig
from cluster.core.limits import Limits
from cluster.errors import UnauthorizedError
from cluster.gateway import authority, jwks
from cluster.gateway.authority import ConfiguredAuthority
from tests.gateway.conftest import Harness, until
from tests.tokens import SECRET, JwksServer, claims, encoded, jwk, pem, rsa_key, signed

RS = ("RS256",)
NEWS, OWN = '["news"]', '["own"]'


class Guarded(Harness):
    """A gateway that recognises tokens, and keeps what it needs for that."""

    async def begin(self, auth: AuthConfig, **gateway: Any) -> "Guarded":
        await self.start()
        await self.put(NEWS, {"n": 1})
        await self.put(OWN, {"n": 1})
        self.authority = ConfiguredAuthority(GatewayConfig(auth=auth, **gateway))
        self.state.authority = self.authority
        self.server.prepare = self.authority.prepare
        self.looks = asyncio.Event()
        self.keeping = asyncio.create_task(self.authority.keep(self.looked))
        if self.authority.jwks is not None:
            await eventually(lambda: self.authority.jwks is not None and self.authority.jwks.fetches.total())
        else:
            await eventually(self.looks.is_set)
        return self

    def looked(self, is_changed: bool) -> None:
        self.looks.set()
        self.server.look_at_wall()
        if is_changed:
            self.server.run(self.state.recheck(self.clock.now_ms()))
        self.server.not_ready = self.authority.not_ready

    async def end(self) -> None:
        self.keeping.cancel()
        await asyncio.gather(self.keeping, return_exceptions=True)
        await self.stop()

    async def ask(self, token: str, path: str = "/v1/entries", key: str = NEWS) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.get(path, params={"key": key}, headers=headers) as response:
            return response.status, orjson.loads(await response.read())

    def open(self, token: str) -> Any:
        return self.socket(additional_headers={"Authorization": f"Bearer {token}"})


async def eventually(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.005)


Begin = Callable[..., Awaitable[Guarded]]


@pytest.fixture
async def begin() -> AsyncIterator[Begin]:
    begun: list[Guarded] = []

    async def make(auth: AuthConfig, limits: Limits | None = None, **gateway: Any) -> Guarded:
        begun.append(Guarded(limits=limits))
        return await begun[-1].begin(auth, **gateway)

    yield make
    for each in begun:
        await each.end()


@pytest.fixture
async def issuer() -> AsyncIterator[JwksServer]:
    server = await JwksServer(jwk(rsa_key(), "first")).start()
    yield server
    await server.stop()


def public() -> AuthConfig:
    return AuthConfig("jwt", algorithms=RS, public_key=pem(rsa_key()), audience=("harbor",), issuer="me")


def good(**more: Any) -> dict[str, Any]:
    return claims(aud="harbor", iss="me", **more)


async def say(socket: ClientConnection, *messages: dict[str, Any]) -> None:
    await socket.send(orjson.dumps(list(messages)).decode())


async def closed(socket: ClientConnection) -> tuple[int | None, str | None]:
    async with asyncio.timeout(30):
        while True:
            try:
                await socket.recv()
            except ConnectionClosed:
                return socket.close_code, socket.close_reason


# --- tokens that do not count, wherever they are brought ---

DAY_S = 86_400


def ahead(**more: Any) -> dict[str, Any]:
    """Claims of a token that is made when tests are collected, long before this one may run."""
    return good(seconds=DAY_S, **more)


START = signed(ahead())
TRICKS = {
    "alg none": f"{encoded({'alg': 'none'})}.{encoded(ahead())}.",
    "the public key as a secret": f"{encoded({'alg': 'HS256'})}.{encoded(ahead())}.{encoded(b'x' * 32)}",
    "another's key": signed(ahead(), rsa_key("other")),
    "another algorithm": signed(ahead(), algorithm="RS512"),
    "expired": signed(good(seconds=-1)),
    "not yet": signed(ahead(nbf=time.time() + 2 * DAY_S)),
    "from the future": signed(ahead(iat=time.time() + 2 * DAY_S)),
    "for others": signed({**ahead(), "aud": "others"}),
    "from others": signed({**ahead(), "iss": "others"}),
    "no exp": signed({name: value for name, value in ahead().items() if name != "exp"}),
    "no sub": signed({name: value for name, value in ahead().items() if name != "sub"}),
    "no grants": signed({**ahead(), "harbor": {"read": "all"}}),
    "twice": signed('{"sub":"ann","exp":9999999999,"exp":9999999999,"aud":"harbor","iss":"me"}'),
    "jku": signed(ahead(), rsa_key("other"), headers={"jku": "http://127.0.0.1:1/", "jwk": jwk(rsa_key("other"), "x")}),
    "kid": signed(ahead(), rsa_key("other"), kid="../../../../../../dev/null"),
    "crit": f"{encoded({'alg': 'RS256', 'crit': ['x'], 'x': 1})}.{encoded(ahead())}.{START.rpartition('.')[2]}",
    "truncated": START[:-20],
    "nothing": "a",
    "not ASCII": "ä.ö.ü",
}


@pytest.mark.parametrize("name", TRICKS)
async def test_a_trick_is_refused_everywhere_and_not_repeated(begin: Begin, name: str) -> None:
    gateway, token = await begin(public()), TRICKS[name]
    brought = token.encode() if token.isascii() else token.encode("utf-8")
    for path in ("/v1/entries", "/v1/stream", "/v1/keys", "/v1/cluster", "/v1/missed"):
        if token.isascii():
            code, body = await gateway.ask(token, path)
            assert (code, body["error"]["code"]) == (401, "UNAUTHORIZED")
            assert token not in str(body) or len(token) < 3
    if token.isascii():
        with pytest.raises(InvalidStatus) as refused:
            async with gateway.open(token):
                pass
        assert refused.value.response.status_code == 401
    async with gateway.socket() as socket:
        await say(socket, {"type": "hello", "token": token})
        code, reason = await closed(socket)
        assert (code, reason is not None and reason.startswith("bad token: ")) == (3500, True)
        assert brought.decode() not in str(reason) or len(token) < 3
    async with gateway.open(START) as socket:
        await say(socket, {"type": "auth", "id": 1, "token": token}, {"type": "ping", "id": 2})
        error = next(each for each in await until(socket, "pong") if each["type"] == "error")
        assert (error["re"], error["code"]) == (1, "UNAUTHORIZED")
    assert gateway.authority.refusals.total() >= 2


async def test_a_huge_token_is_refused(begin: Begin) -> None:
    gateway = await begin(public())
    async with gateway.socket() as socket:
        await say(socket, {"type": "hello", "token": signed(good(more="x" * 20_000))})
        assert (await closed(socket))[0] == 3500
        assert "at most 8192 bytes" in (socket.close_reason or "")


async def test_reasons_help(begin: Begin) -> None:
    gateway = await begin(public())
    for name, reason in (
        ("expired", "has expired"),
        ("for others", "(aud)"),
        ("from others", "(iss)"),
        ("no exp", "exp"),
    ):
        assert reason in (await gateway.ask(TRICKS[name]))[1]["error"]["message"]


async def test_a_token_may_what_its_claim_says(begin: Begin) -> None:
    gateway = await begin(public())
    token = signed(good(harbor={"read": [["news"]]}))
    for _ in range(2):  # checked, remembered
        assert (await gateway.ask(token))[0] == 200
        assert (await gateway.ask(token, key=OWN))[0] == 403
        assert (await gateway.ask(token, "/v1/cluster"))[0] in (400, 403)
    assert (await gateway.ask(signed(good(harbor={}))))[0] == 403
    assert (await gateway.ask(signed({name: each for name, each in good().items() if name != "harbor"})))[0] == 403


async def test_a_remembered_token_still_expires(begin: Begin) -> None:
    gateway = await begin(public())
    token = signed(good(seconds=100))
    assert (await gateway.ask(token))[0] == 200
    with pytest.raises(UnauthorizedError, match="the token has expired"):
        gateway.authority.recognise(token, gateway.clock.wall_ms() + 101_000)


async def test_a_shared_secret(begin: Begin) -> None:
    gateway = await begin(AuthConfig("jwt", algorithms=("HS256",), secret=SECRET))
    assert (await gateway.ask(signed(claims(), SECRET, "HS256")))[0] == 200
    assert (await gateway.ask(signed(claims(), SECRET + "x", "HS256")))[0] == 401


# --- keys from a URL ---


async def test_a_new_key_is_fetched_when_it_is_first_named(begin: Begin, issuer: JwksServer) -> None:
    gateway = await begin(AuthConfig("jwt", algorithms=RS, jwks_url=issuer.url))
    assert (await gateway.ask(signed(claims(), kid="first")))[0] == 200
    assert issuer.asked == 1
    issuer.keys[:] = [jwk(rsa_key("second"), "second")]
    answers = await asyncio.gather(*(gateway.ask(signed(claims(), rsa_key("second"), kid="second")) for _ in range(10)))
    assert {code for code, _ in answers} == {200}
    assert issuer.asked == 2
    assert (await gateway.ask(signed(claims(), kid="first")))[0] == 401, "what is no longer there does not count"


async def test_the_environment_names_who_vouches_for_the_issuer(
    begin: Begin, certificate: tuple[Path, Path], tls_context: ssl.SSLContext, monkeypatch: Any
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    issuer = await JwksServer(jwk(rsa_key(), "first")).start(tls_context)
    try:
        gateway = await begin(AuthConfig("jwt", algorithms=RS, jwks_url=issuer.url))
        assert (await gateway.ask(signed(claims(), kid="first")))[0] == 200
    finally:
        await issuer.stop()


async def test_a_socket_s_token_may_need_a_new_key(begin: Begin, issuer: JwksServer) -> None:
    gateway = await begin(AuthConfig("jwt", algorithms=RS, jwks_url=issuer.url))
    issuer.keys.append(jwk(rsa_key("second"), "second"))
    async with gateway.socket() as socket:
        await say(socket, {"type": "hello", "token": signed(claims(), rsa_key("second"), kid="second")})
        await until(socket, "welcome")


async def test_made_up_keys_do_not_hammer_the_url(begin: Begin, issuer: JwksServer) -> None:
    gateway = await begin(AuthConfig("jwt", algorithms=RS, jwks_url=issuer.url))
    forged = [signed(claims(), rsa_key("other"), kid=f"k{n}") for n in range(200)]
    answers = await asyncio.gather(*(gateway.ask(token) for token in forged))
    assert {code for code, _ in answers} == {401}
    assert "key that is not known" in answers[0][1]["error"]["message"]
    assert issuer.asked == 2
    assert (await gateway.ask(signed(claims(), kid="first")))[0] == 200


async def test_keys_are_kept_while_the_url_is_down(begin: Begin, issuer: JwksServer, monkeypatch: Any) -> None:
    monkeypatch.setattr(jwks, "REFRESH_S", 0.02)
    monkeypatch.setattr(jwks, "RETRY_S", 0.02)
    gateway = await begin(AuthConfig("jwt", algorithms=RS, jwks_url=issuer.url))
    made = gateway.authority.jwks
    assert made is not None
    await issuer.stop()
    await eventually(lambda: made.fetches["error"] > 2)
    assert (await gateway.ask(signed(claims(seconds=301), kid="first")))[0] == 200
    assert made.reason == f"{issuer.url}: it cannot be reached (ConnectError)"
    assert gateway.authority.not_ready == ""
    issuer.keys[:] = [jwk(rsa_key("second"), "second")]
    await issuer.start()
    await eventually(lambda: made.keys is not None and made.keys.has("second"))
    assert made.reason == ""


async def test_a_gateway_without_keys_is_not_ready_and_says_why(
    begin: Begin, issuer: JwksServer, monkeypatch: Any
) -> None:
    monkeypatch.setattr(jwks, "RETRY_S", 0.02)
    monkeypatch.setattr(authority, "CHECK_S", 0.02)
    issuer.answer = lambda: web.Response(status=500, text="no")
    url = issuer.url.replace("//", "//user:hunter2@") + "?key=hunter2"
    gateway = await begin(AuthConfig("jwt", algorithms=RS, jwks_url=url))
    await eventually(lambda: "500" in gateway.server.not_ready)
    assert gateway.server.not_ready == f"no keys: http://***@127.0.0.1:{issuer.port}/jwks?key=***: it answered with 500"
    code, body = await gateway.get("/readyz")
    assert (code, body["error"]["message"]) == (503, gateway.server.not_ready)
    code, body = await gateway.ask(signed(claims(), kid="first"))
    assert (code, body["error"]["temporary"]) == (503, True), "whoever has a token is to come again with it"
    async with gateway.socket() as socket:
        await say(socket, {"type": "hello", "token": signed(claims(), kid="first")})
        assert await closed(socket) == (3002, "credentials cannot be checked at the moment")
    issuer.answer = lambda: web.json_response({"keys": issuer.keys})
    await eventually(lambda: not gateway.server.not_ready)
    assert (await gateway.ask(signed(claims(), kid="first")))[0] == 200


@pytest.mark.parametrize("left", [[], [{"kty": "oct", "k": "AAAA", "kid": "first"}]])
async def test_a_set_from_which_the_last_key_is_taken_recognises_nobody_any_more(
    begin: Begin, issuer: JwksServer, monkeypatch: Any, left: list[Any]
) -> None:
    monkeypatch.setattr(jwks, "REFRESH_S", 0.02)
    monkeypatch.setattr(jwks, "RETRY_S", 0.02)
    gateway = await begin(AuthConfig("jwt", algorithms=RS, jwks_url=issuer.url))
    token = signed(claims(), kid="first")
    assert (await gateway.ask(token))[0] == 200
    before, issuer.keys[:] = list(issuer.keys), left
    await eventually(lambda: gateway.authority.faults == [f"{issuer.url}: there is no key for RS256"])
    code, body = await gateway.ask(token)
    assert (code, body["error"]["code"]) == (401, "UNAUTHORIZED")
    issuer.keys[:] = before
    await eventually(lambda: not gateway.authority.faults)
    assert (await gateway.ask(token))[0] == 200


BAD_ANSWERS: dict[str, Callable[[], web.StreamResponse]] = {
    "it answered with 302": lambda: web.Response(status=302, headers={"Location": "/elsewhere"}),
    "it answered with what is no JSON": lambda: web.Response(text="<html>"),
    "it answered with more than 262144 bytes": lambda: web.Response(body=b" " * 300_000),
    'expected {"keys": [...]}': lambda: web.json_response([]),
    "there is no key for RS256": lambda: web.json_response({"keys": [{"kty": "oct", "k": "AAAA", "kid": "first"}]}),
}


@pytest.mark.parametrize("reason", BAD_ANSWERS)
async def test_a_bad_answer_is_no_key_set(begin: Begin, issuer: JwksServer, reason: str) -> None:
    issuer.answer = BAD_ANSWERS[reason]
    gateway = await begin(AuthConfig("jwt", algorithms=RS, jwks_url=issuer.url))
    assert gateway.authority.faults == [f"{issuer.url}: {reason}"]
    assert issuer.asked == 1, "redirects are not followed"


async def test_a_url_that_does_not_answer(begin: Begin, issuer: JwksServer, monkeypatch: Any) -> None:
    monkeypatch.setattr(jwks, "TIMEOUT_S", 0.05)

    async def never(_: Any) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    issuer._handle = never  # type: ignore[method-assign]
    await issuer.stop()
    await issuer.start()
    gateway = await begin(AuthConfig("jwt", algorithms=RS, jwks_url=issuer.url))
    assert gateway.authority.faults == [f"{issuer.url}: it did not answer in time"]


async def test_a_url_that_cannot_be_asked_is_said_and_does_not_end_the_looks(begin: Begin) -> None:
    gateway = await begin(AuthConfig("jwt", algorithms=RS, jwks_url="https://127.0.0.1/\x01"))
    assert gateway.authority.faults == ["https://127.0.0.1/\x01: it cannot be reached (InvalidURL)"]
    assert not gateway.keeping.done()


async def test_who_said_hello_in_time_is_not_late_while_keys_are_fetched(begin: Begin, issuer: JwksServer) -> None:
    gateway = await begin(AuthConfig("jwt", algorithms=RS, jwks_url=issuer.url), Limits(hello_within_ms=100.0))
    fetched = asyncio.Event()

    async def prepare(_: str) -> None:
        await fetched.wait()

    gateway.server.prepare = prepare
    async with gateway.socket() as socket:
        await say(socket, {"type": "hello", "token": signed(claims(), kid="first")})
        (wire,) = gateway.server._wires.values()
        await eventually(lambda: wire.is_held_up)  # type: ignore[attr-defined]
        now_s = asyncio.get_running_loop().time()
        gateway.server._look_after(wire, now_s + 10.0)  # type: ignore[arg-type]
        fetched.set()
        assert (await until(socket, "welcome"))[0]["type"] == "welcome"
    async with gateway.socket() as socket:
        assert (await closed(socket))[0] == 3504


# --- the end of a token ---


async def test_a_session_is_told_before_and_closed_at_the_end(begin: Begin) -> None:
    gateway = await begin(public())
    ends = time.time() + 4.0
    async with gateway.open(signed({**good(), "exp": ends})) as socket:
        notice = next(each for each in await until(socket, "notice") if each["type"] == "notice")
        assert (notice["code"], notice["expires_at"]) == ("token_expires", int(ends * 1000))
        assert await closed(socket) == (3500, "the token has expired")
    assert gateway.state.ended == {"expired": 1}


async def test_an_event_stream_is_told_and_ends(begin: Begin) -> None:
    gateway = await begin(public())
    headers = {"Authorization": f"Bearer {signed(good(seconds=4.0))}"}
    async with gateway.http.get("/v1/stream", params={"key": NEWS}, headers=headers) as response:
        async with asyncio.timeout(30):
            text = (await response.read()).decode()
    assert text.index("token_expires") < text.index('"code":"unauthorized","message":"the token has expired"')


class Wall:
    """The `time` of `cluster.clock`, with a wall clock that is set as the gateway runs."""

    monotonic = staticmethod(time.monotonic)
    ahead_s = 0.0

    def time(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr(clock, "time", wall)
    return wall


@pytest.mark.parametrize("ahead_s", [3_600.0, -3_600.0])
async def test_a_token_counts_by_the_wall_clock_as_it_is_now(begin: Begin, wall: Wall, ahead_s: float) -> None:
    gateway = await begin(public())
    wall.ahead_s = ahead_s
    now = wall.time()
    fresh = signed(good(iat=now, exp=now + 300))
    over = signed(good(iat=now - 600, exp=now - 10))
    assert (await gateway.ask(fresh))[0] == 200
    assert (await gateway.ask(over))[0] == 401
    async with gateway.socket() as socket:
        await say(socket, {"type": "hello", "token": over})
        assert await closed(socket) == (3500, "bad token: the token has expired")
    async with gateway.socket() as socket:
        await say(socket, {"type": "hello", "token": fresh})
        assert (await until(socket, "welcome"))[0]["type"] == "welcome"


async def test_a_session_ends_when_the_wall_clock_goes_past_its_token(begin: Begin, wall: Wall) -> None:
    gateway = await begin(public())
    async with gateway.open(signed(good(seconds=3_000.0))) as socket:
        await until(socket, "welcome")
        wall.ahead_s = 3_600.0
        assert await closed(socket) == (3500, "the token has expired")
    assert gateway.state.ended == {"expired": 1}


async def test_another_token_goes_on_where_the_first_ends(begin: Begin) -> None:
    gateway = await begin(public())
    async with gateway.open(signed(good(seconds=4.0))) as socket:
        await say(
            socket, {"type": "subscribe", "id": "n", "key": ["news"]}, {"type": "subscribe", "id": "o", "key": ["own"]}
        )
        await until(socket, "notice")
        less = signed(good(harbor={"read": [["news"]]}))
        await say(socket, {"type": "auth", "id": 1, "token": less})
        told = await until(socket, "result")
        assert [(each["type"], each["re"]) for each in told if "re" in each] == [("error", "o"), ("result", 1)]
        assert not [each for each in told if each["type"] == "removed"]
        deadline = gateway.state.expiries.deadline()
        await eventually(lambda: gateway.state.expiries.deadline() != deadline)  # the first one's time is over
        gateway.state.authority = None
        await gateway.put(NEWS, {"n": 2})
        assert next(each for each in await until(socket, "change") if each["type"] == "change")["sub"] == "n"


async def test_a_session_stays_its_subject_s(begin: Begin) -> None:
    gateway = await begin(public())
    for kind in ("auth", "hello"):
        async with gateway.open(signed(good())) as socket:
            await say(socket, {"type": kind, "id": 1, "token": signed(good(subject="bob"))}, {"type": "ping"})
            error = next(each for each in await until(socket, "pong") if each["type"] == "error")
            assert (error["code"], error["re"]) == ("FORBIDDEN", 1)
            assert {session.principal.subject for session in gateway.state.sessions.values() if session.principal} == {
                "ann"
            }


# --- revocation ---


async def test_what_is_revoked_ends_its_sessions(begin: Begin, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(authority, "CHECK_S", 0.02)
    revoked = tmp_path / "revoked"
    revoked.write_text("# nobody\n")
    auth = AuthConfig("jwt", algorithms=RS, public_key=pem(rsa_key()), revoked_file=str(revoked))
    gateway = await begin(auth)
    first, second, bob = (signed(claims(jti="t1")), signed(claims(jti="t2")), signed(claims("bob")))
    async with gateway.open(first) as one, gateway.open(second) as other, gateway.open(bob) as his:
        headers = {"Authorization": f"Bearer {first}"}
        async with gateway.http.get("/v1/stream", params={"key": NEWS}, headers=headers) as stream:
            revoked.write_text("jti:t1\nsub:bob\n")
            assert await closed(one) == (3500, "the credentials were revoked")
            assert await closed(his) == (3500, "the credentials were revoked")
            async with asyncio.timeout(30):
                assert b"the credentials were revoked" in await stream.read()
        assert [(await gateway.ask(token))[0] for token in (first, second, bob)] == [401, 200, 401]
        await say(other, {"type": "auth", "id": 1, "token": first}, {"type": "ping"})
        assert next(each for each in await until(other, "pong") if each["type"] == "error")["code"] == "UNAUTHORIZED"
        revoked.write_text("nonsense")
        await eventually(lambda: gateway.authority.faults)
        assert (await gateway.ask(first))[0] == 401, "what cannot be read leaves things as they are"
        revoked.write_text("")
        await eventually(lambda: not gateway.authority.faults)
        assert (await gateway.ask(first))[0] == 200
    assert gateway.state.ended == {"revoked": 3}


async def test_without_the_list_nobody_is_let_in(begin: Begin, tmp_path: Path) -> None:
    auth = AuthConfig("jwt", algorithms=RS, public_key=pem(rsa_key()), revoked_file=str(tmp_path / "none"))
    gateway = await begin(auth)
    assert (await gateway.ask(signed(claims())))[0] == 503
    assert "no list of what was revoked" in gateway.authority.not_ready


# --- tenants ---


async def test_a_token_s_tenant(begin: Begin) -> None:
    auth = AuthConfig("jwt", algorithms=RS, public_key=pem(rsa_key()))
    gateway = await begin(auth, tenant_claim="org")
    operator = signed(claims(harbor={"read": [[]], "write": [[]], "admin": True}))
    headers = {"Authorization": f"Bearer {operator}"}
    await gateway.put('["acme","news"]', "acme's", headers=headers)
    code, body = await gateway.ask(signed(claims(org="acme")))
    assert (code, body["key"], body["data"]) == (200, ["news"], "acme's")
    assert (await gateway.ask(signed(claims(org="globex"))))[0] == 404
    for token in (signed(claims()), signed(claims(org="*")), signed(claims(org=["acme"])), signed(claims(org=""))):
        code, body = await gateway.ask(token)
        assert (code, "org" in body["error"]["message"]) == (401, True)


async def test_a_subject_is_another_one_in_each_tenant(begin: Begin) -> None:
    auth = AuthConfig("jwt", algorithms=RS, public_key=pem(rsa_key()))
    gateway = await begin(auth, Limits(sessions_per_subject=1), tenant_claim="org")
    async with gateway.open(signed(claims(org="acme"))), gateway.open(signed(claims(org="globex"))):
        for org in ("acme", "globex"):
            with pytest.raises(InvalidStatus) as refused:
                async with gateway.open(signed(claims(org=org, jti="another"))):
                    pass
            assert refused.value.response.status_code == 429


async def test_all_tokens_of_a_subject_share_its_rate(begin: Begin) -> None:
    auth = AuthConfig("jwt", algorithms=RS, public_key=pem(rsa_key()))
    gateway = await begin(auth, Limits(requests=0.001, requests_burst=2.0), tenant_claim="org")
    tokens = [signed(claims(org="acme", jti=str(n))) for n in range(3)]
    assert [(await gateway.ask(token))[0] for token in tokens] == [404, 404, 429]
    assert (await gateway.ask(signed(claims(org="globex"))))[0] == 404


async def test_a_request_id_is_another_one_for_each_subject(begin: Begin) -> None:
    gateway = await begin(public())
    for token in (
        signed(good(), kid="a"),
        signed(good(subject="bob")),
        signed(good(), kid="b"),
    ):  # the third repeats the first
        headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": "1", "Content-Type": "application/json"}
        body = {"operations": [{"increment": {"at": "/n"}}]}
        async with gateway.http.patch("/v1/entries", params={"key": NEWS}, json=body, headers=headers) as response:
            assert response.status == 200, await response.text()
    assert (await gateway.ask(signed(good())))[1]["data"] == {"n": 3}


async def test_a_backup_is_for_who_may_read_everything(begin: Begin) -> None:
    gateway = await begin(public())
    for read, status in (([], 403), ([["news"]], 403), ([[]], 200)):
        token = signed(good(harbor={"read": read, "admin": True}))
        async with gateway.http.post("/v1/backup", headers={"Authorization": f"Bearer {token}"}) as response:
            assert response.status == status, await response.text()
