"""Who may do what, on every endpoint of a real server."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cluster.core.grants import ApiKeys, Grants, line
from cluster.core.limits import Limits
from cluster.core.position import scope_of
from cluster.gateway.access import WatchedFile
from cluster.gateway.mutation_routes import MUTATIONS
from tests.gateway.conftest import Harness, until
from tests.in_process import TOKENS

WHO = {
    "all": Grants(read=[[]], write=[[]], presence=["*"], admin=True),
    "reader": Grants(read=[["projects", "*", "public"], ["news"]]),
    "writer": Grants(write=[["projects"]], presence=["doc:*"]),
    "nobody": Grants(),
}


def keys(**who: Grants) -> ApiKeys:
    return ApiKeys.parse("\n".join(line(name, f"hk_{name}", grants) for name, grants in who.items()))


def bearing(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer hk_{name}"}


@pytest.fixture
async def guarded() -> AsyncIterator[Harness]:
    harness = await Harness(origins=("https://app.example",)).start()
    await harness.put('["projects","1","public"]', {"n": 1})
    await harness.put('["news"]', {"n": 1})
    await harness.put('["secret"]', {"n": 1})
    harness.state.authority = keys(**WHO)
    yield harness
    await harness.stop()


PUBLIC, NEWS, SECRET, PROJECTS = '["projects","1","public"]', '["news"]', '["secret"]', '["projects"]'


async def status(harness: Harness, method: str, path: str, headers: dict[str, str], **more: Any) -> tuple[int, Any]:
    async with harness.http.request(method, path, headers=headers, **more) as response:
        if response.content_type == "text/event-stream":
            return response.status, None
        body = await response.read()
        return response.status, orjson.loads(body) if body[:1] in b"{[" and body else body


def token(key: str, *, prefix: bool) -> str:
    """A position that begins again."""
    return TOKENS.position(scope_of([(key, prefix)])).decode()


REQUESTS: list[tuple[str, str, dict[str, Any], dict[str, bool]]] = [
    ("GET", "/v1/entries", {"params": {"key": PUBLIC}}, {"reader": True, "writer": False}),
    ("GET", "/v1/entries", {"params": {"key": SECRET}}, {"reader": False, "writer": False}),
    ("GET", "/v1/entries", {"params": {"key": PROJECTS}}, {"reader": False, "writer": False}),
    ("PUT", "/v1/entries", {"params": {"key": PUBLIC}, "data": b"1"}, {"reader": False, "writer": True}),
    ("PUT", "/v1/entries", {"params": {"key": SECRET}, "data": b"1"}, {"reader": False, "writer": False}),
    (
        "PATCH",
        "/v1/entries",
        {"params": {"key": PUBLIC}, "data": b'{"operations":[{"set":{"at":"/m","value":1}}]}'},
        {"reader": False, "writer": True},
    ),
    ("DELETE", "/v1/entries", {"params": {"key": PUBLIC}}, {"reader": False, "writer": True}),
    ("GET", "/v1/keys", {"params": {"prefix": NEWS}}, {"reader": True, "writer": False}),
    ("GET", "/v1/keys", {}, {"reader": False, "writer": False}),
    ("POST", "/v1/invalidate", {"data": b'{"key":["projects"]}'}, {"reader": False, "writer": True}),
    ("POST", "/v1/invalidate", {"data": b"{}"}, {"reader": False, "writer": False}),
    ("POST", "/v1/refetch", {"data": b'{"key":["projects"]}'}, {"reader": False, "writer": True}),
    ("POST", "/v1/reset", {"data": b'{"key":["projects"]}'}, {"reader": False, "writer": True}),
    ("POST", "/v1/cancel", {"data": b'{"key":["projects"]}'}, {"reader": False, "writer": True}),
    ("POST", "/v1/remove", {"data": b'{"key":["projects"]}'}, {"reader": False, "writer": True}),
    ("GET", "/v1/stream", {"params": {"key": NEWS}}, {"reader": True, "writer": False}),
    ("GET", "/v1/stream", {"params": [("key", NEWS), ("prefix", PROJECTS)]}, {"reader": False, "writer": False}),
    (
        "GET",
        "/v1/missed",
        {"params": {"key": NEWS, "since": token(NEWS, prefix=False)}},
        {"reader": True, "writer": False},
    ),
    (
        "GET",
        "/v1/missed",
        {"params": {"prefix": "[]", "since": token("[]", prefix=True)}},
        {"reader": False, "writer": False},
    ),
    ("GET", "/v1/presence", {"params": {"topic": "doc:1"}}, {"reader": False, "writer": True}),
    ("GET", "/v1/presence", {"params": {"topic": "room:1"}}, {"reader": False, "writer": False}),
    ("GET", "/v1/cluster", {}, {"reader": False, "writer": False}),
    ("POST", "/v1/backup", {}, {"reader": False, "writer": False}),
    ("POST", "/v1/scale", {"data": b'{"ingestors":2}'}, {"reader": False, "writer": False}),
]


@pytest.mark.parametrize(("method", "path", "more", "allowed"), REQUESTS)
async def test_every_endpoint_asks_for_its_grant(guarded, method, path, more, allowed):
    for who, is_allowed in {**allowed, "nobody": False, "all": True}.items():
        code, body = await status(guarded, method, path, bearing(who), **more)
        assert (code not in (401, 403)) == is_allowed, (who, code, body)
        if not is_allowed:
            assert (code, body["error"]["code"]) == (403, "FORBIDDEN")
    for headers in ({}, bearing("unknown"), {"X-API-Key": "hk_unknown"}, {"Authorization": "Basic YQ=="}):
        code, body = await status(guarded, method, path, headers, **more)
        assert (code, body["error"]["code"]) == (401, "UNAUTHORIZED"), headers


async def test_every_route_is_in_the_table_or_open(guarded):
    harness_routes = {(method, path) for method, path, _, _ in REQUESTS} | {
        ("GET", path) for path in guarded.server.open
    }
    other = {route for route in set(guarded.server._routes) - harness_routes if not route[1].startswith(MUTATIONS)}
    assert other == {("GET", "/v1/socket")}, "those of mutations need homes: test_mutations"


async def test_health_is_for_anybody(guarded):
    for path in guarded.server.open:
        assert (await status(guarded, "GET", path, {}))[0] == 200


async def test_a_remembered_target_still_asks_for_the_grant(guarded):
    async with guarded.socket(additional_headers=bearing("all")) as socket:
        await socket.send(orjson.dumps({"type": "subscribe", "id": 1, "key": ["secret"]}).decode())
        await until(socket, "snapshot_end")
        for _ in range(3):
            code, _ = await status(guarded, "GET", "/v1/entries", bearing("all"), params={"key": SECRET})
            assert code == 200
        assert guarded.server._hot
        for headers, expected in ((bearing("reader"), 403), ({}, 401), (bearing("all"), 200)):
            assert (await status(guarded, "GET", "/v1/entries", headers, params={"key": SECRET}))[0] == expected


async def test_401_names_the_scheme(guarded):
    async with guarded.http.get("/v1/keys") as response:
        assert response.headers["WWW-Authenticate"] == "Bearer"


# --- sockets ---


async def say(socket: ClientConnection, *messages: dict[str, Any]) -> None:
    await socket.send(orjson.dumps(list(messages)).decode())


async def errors(socket: ClientConnection) -> dict[str, Any]:
    return next(message for message in await until(socket, "error") if message["type"] == "error")


async def test_a_socket_may_bring_its_key_in_the_handshake(guarded):
    async with guarded.socket(additional_headers=bearing("reader")) as socket:
        await until(socket, "welcome")
        await say(socket, {"type": "subscribe", "id": 1, "key": ["news"]})
        await until(socket, "snapshot_end")
        await say(socket, {"type": "subscribe", "id": 2, "key": ["secret"]})
        assert (await errors(socket))["code"] == "FORBIDDEN"
        await say(socket, {"type": "subscribe", "id": 3, "prefix": ["projects"]})
        assert (await errors(socket))["re"] == 3
        await say(socket, {"type": "get", "id": 4, "key": ["secret"]})
        assert (await errors(socket))["code"] == "FORBIDDEN"
        await say(socket, {"type": "set", "id": 5, "key": ["news"], "data": 1})
        assert (await errors(socket))["code"] == "FORBIDDEN"
        await say(socket, {"type": "invalidate", "id": 6, "key": ["news"]})
        assert (await errors(socket))["code"] == "FORBIDDEN"


async def test_a_wrong_key_is_refused_before_the_upgrade(guarded):
    with pytest.raises(InvalidStatus) as refused:
        async with guarded.socket(additional_headers=bearing("unknown")):
            pass
    assert refused.value.response.status_code == 401


async def test_or_say_hello_with_it_and_nothing_before(guarded):
    async with guarded.socket() as socket:
        await say(socket, {"type": "subscribe", "id": 1, "key": ["news"]})
        assert await errors(socket) == {
            "type": "error",
            "re": 1,
            "code": "UNAUTHORIZED",
            "message": "say hello with a token first",
            "temporary": False,
        }
        await say(socket, {"type": "hello"})
        assert (await errors(socket))["code"] == "UNAUTHORIZED"
        await say(socket, {"type": "hello", "token": "hk_reader"}, {"type": "subscribe", "id": 1, "key": ["news"]})
        assert [message["type"] for message in await until(socket, "snapshot_end")][:2] == ["welcome", "snapshot"]


async def test_hello_with_a_bad_token_closes_with_3500(guarded):
    async with guarded.socket() as socket:
        await say(socket, {"type": "hello", "token": "hk_unknown"})
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 3500


async def test_no_hello_closes_with_3504(guarded):
    guarded.reconfigure(Limits(hello_within_ms=50))
    async with guarded.socket() as socket:
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 3504


async def test_auth_changes_the_key_in_place(guarded):
    async with guarded.socket(additional_headers=bearing("all")) as socket:
        await say(
            socket,
            {"type": "subscribe", "id": "s", "key": ["secret"]},
            {"type": "subscribe", "id": "n", "key": ["news"]},
        )
        await until(socket, "snapshot_end")
        await say(socket, {"type": "auth", "id": 1, "token": "hk_unknown"})
        assert (await errors(socket))["code"] == "UNAUTHORIZED"
        await say(socket, {"type": "auth", "id": 2, "token": "hk_reader"})
        messages = await until(socket, "result")
        assert [(each["type"], each["re"]) for each in messages if each["type"] in ("error", "result")] == [
            ("error", "s"),
            ("result", 2),
        ]
        guarded.state.authority = None
        await guarded.put(SECRET, {"n": 2})
        await guarded.put(NEWS, {"n": 2})
        change = next(each for each in await until(socket, "change") if each["type"] == "change")
        assert (change["sub"], change["key"]) == ("n", ["news"])


async def test_a_key_that_is_taken_away_ends_its_sessions_and_one_with_less_its_subscriptions(guarded):
    async with (
        guarded.socket(additional_headers=bearing("reader")) as reader,
        guarded.socket(additional_headers=bearing("all")) as everything,
        guarded.http.get("/v1/stream", params={"key": NEWS}, headers=bearing("all")) as stream,
    ):
        await say(reader, {"type": "subscribe", "id": 1, "key": ["news"]})
        await until(reader, "snapshot_end")
        await say(everything, {"type": "subscribe", "id": 1, "key": ["news"]})
        await until(everything, "snapshot_end")
        less = keys(all=Grants(read=[["secret"]]))
        guarded.state.authority = less
        guarded.server.run(guarded.state.recheck(guarded.clock.now_ms()))
        with pytest.raises(ConnectionClosed):
            await until(reader, "never")
        assert reader.close_code == 3500
        assert (await errors(everything))["code"] == "FORBIDDEN"
        async with asyncio.timeout(60):
            await stream.read()  # it ends


# --- cookies ---


@pytest.mark.parametrize(
    ("origin", "expected"),
    [(None, 200), ("https://app.example", 200), ("SELF", 200), ("https://evil.example", 403)],
)
async def test_a_cookie_counts_for_own_pages_only(guarded, origin, expected):
    guarded.reconfigure(origins=("https://app.example",) if origin == "https://app.example" else ())
    own = f"http://127.0.0.1:{guarded.port}"
    headers = {"Cookie": "harbor_token=hk_reader"} | ({"Origin": own if origin == "SELF" else origin} if origin else {})
    assert (await status(guarded, "GET", "/v1/stream", headers, params={"key": NEWS}))[0] == expected
    if expected == 200:
        async with connect(f"ws://127.0.0.1:{guarded.port}/v1/socket", additional_headers=headers) as socket:
            await until(socket, "welcome")
    else:
        with pytest.raises(InvalidStatus):
            async with connect(f"ws://127.0.0.1:{guarded.port}/v1/socket", additional_headers=headers):
                pass


async def test_a_cookie_counts_nowhere_else(guarded):
    headers = {"Cookie": "harbor_token=hk_all"}
    assert (await status(guarded, "GET", "/v1/entries", headers, params={"key": NEWS}))[0] == 401


# --- the file ---


def test_a_keys_file_is_read_when_it_changes(tmp_path: Path):
    path = tmp_path / "keys"
    file = WatchedFile(str(path), ApiKeys.parse)
    assert file.look() is None
    assert "No such file" in file.reason
    path.write_text("# nobody yet\n" + line("a", "hk_a", Grants(admin=True)))
    found = file.look()
    assert found is not None
    assert (len(found), file.reason) == (1, "")
    assert file.look() is None
    path.write_text("nonsense, longer than before" * 20)
    assert file.look() is None
    assert "line 1: " in file.reason
    other = tmp_path / "new"
    other.write_text(line("b", "hk_b", Grants()))
    other.replace(path)  # as a mounted secret changes
    found = file.look()
    assert found is not None
    assert (found.principal("hk_a"), file.reason) == (None, "")
    path.unlink()
    assert file.look() is None
    assert "No such file" in file.reason


AFTER = [
    (keys(all=WHO["all"]), 401, "UNAUTHORIZED"),
    (keys(waiting=Grants(read=[["news"]])), 403, "FORBIDDEN"),
    (keys(waiting=Grants(read=[["q"], ["news"]])), 200, None),
]
"""Who counts when the answer comes, and what who had waited for it is answered."""


async def asked(harness: Harness, path: str, **params: str) -> "asyncio.Task[tuple[int, Any]]":
    """Have somebody ask for something that does not come yet."""
    harness.state.authority = keys(waiting=Grants(read=[["q"]]))
    before = len(harness.fetches) + len(harness.state.sessions)
    task = asyncio.create_task(status(harness, "GET", path, bearing("waiting"), params=params))
    async with asyncio.timeout(30):
        while len(harness.fetches) + len(harness.state.sessions) == before:
            await asyncio.sleep(0)
    return task


@pytest.mark.parametrize(("authority", "code", "error"), AFTER)
async def test_an_answer_that_was_waited_for_is_for_who_may_still_read_it(guarded, authority, code, error):
    waiting = await asked(guarded, "/v1/entries", key='["q","1"]')
    guarded.state.authority = authority
    guarded.fetched(b'{"secret":1}')
    answered, body = await waiting
    assert (answered, body.get("error", {}).get("code")) == (code, error)
    assert (b"secret" in orjson.dumps(body)) == (code == 200)


@pytest.mark.parametrize(("authority", "code", "error"), AFTER)
async def test_missed_changes_are_for_who_may_still_read_them(guarded, authority, code, error):
    await guarded.put('["q","2"]', {"secret": 1}, headers=bearing("all"))
    guarded.reachable = False
    waiting = await asked(guarded, "/v1/missed", key='["q","2"]', since=token('["q","2"]', prefix=False))
    guarded.state.authority = authority
    guarded.server.run(guarded.state.recheck(guarded.clock.now_ms()))
    if code == 200:
        guarded.reachable = True
    answered, body = await waiting
    assert (answered, body.get("error", {}).get("code")) == (code, error)
    assert (b"secret" in orjson.dumps(body)) == (code == 200)
