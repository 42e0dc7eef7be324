"""Two tenants on one gateway: every endpoint and every message, asked by one for what is the other's.

What is told to a client never holds the name of a tenant it did not say itself, nor anything of another's; what another has is as
before. A route or a message without a row here fails.
"""

import asyncio
import inspect
import re
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection

from cluster.core import client_message, template
from cluster.core.grants import ApiKeys, Grants, line
from cluster.core.position import scope_of
from cluster.core.presence_room import Pattern
from cluster.errors import ErrorCode, RequestError
from cluster.gateway import server
from tests.gateway.conftest import until
from tests.gateway.test_mutations import Homed
from tests.in_process import TOKENS

ALL = Grants(read=[[]], write=[[]], mutate=["*"], presence=["*"], admin=True)
KEYS = "\n".join(
    [
        line("ann", "hk_acme", ALL, "acme"),
        line("gus", "hk_globex", ALL, "globex"),
        line("op", "hk_operator", ALL),
    ]
)
SECRET = "what acme alone knows"
PATTERNS = (Pattern(template.parse("doc:{id}"), 30_000.0, 75_000.0),)
MARKED = "acme\0doc:1"


def bearing(tenant: str) -> dict[str, str]:
    return {"Authorization": f"Bearer hk_{tenant}"}


class Tenants(Homed):
    """Acme has an entry, a member of a topic, a mutation."""

    async def ask(self, who: str, method: str, path: str, **more: Any) -> tuple[int, bytes]:
        headers = bearing(who) | more.pop("headers", {})
        async with self.http.request(method, path, headers=headers, **more) as response:
            if response.content_type == "text/event-stream":
                text = b""
                while b"snapshot_end" not in text:
                    text += await response.content.readany()
                return response.status, text
            return response.status, await response.read()

    async def settle(self) -> "Tenants":
        self.state.presence.patterns = PATTERNS
        self.state.authority = ApiKeys.parse(KEYS, tenants=True)
        note = {"name": "note", "variables": {}, "id": "m1", "delay_ms": 60_000}
        assert (await self.ask("acme", "PUT", "/v1/entries", params={"key": '["p",1]'}, json=SECRET))[0] == 200
        assert (await self.ask("acme", "POST", "/v1/mutations", json=note))[0] == 200
        self.member = await self.open("acme").__aenter__()
        await say(self.member, {"type": "presence", "id": 1, "topic": "doc:1", "state": SECRET})
        await until(self.member, "presence")
        return self

    def open(self, who: str) -> Any:
        return self.socket(additional_headers=bearing(who))

    async def held(self) -> list[Any]:
        """What acme has, as an operator sees it."""
        found = [
            await self.ask("operator", "GET", "/v1/keys", params={"prefix": '["acme"]'}),
            await self.ask("operator", "GET", "/v1/entries", params={"key": '["acme","p",1]', "fetch": "never"}),
            await self.ask("operator", "GET", "/v1/mutations/acme/m1"),
        ]
        assert [code for code, _ in found] == [200, 200, 200], found
        members = orjson.loads((await self.ask("operator", "GET", "/v1/presence", params={"topic": MARKED}))[1])
        return [*(body for _, body in found), [row["state"] for row in members["members"]], sorted(self.known["shard-0"] | self.known["shard-1"])]  # fmt: skip


async def say(socket: ClientConnection, *messages: dict[str, Any]) -> None:
    await socket.send(orjson.dumps(list(messages)).decode())


@pytest.fixture
async def tenants() -> AsyncIterator[Tenants]:
    harness = Tenants()
    await harness.start()
    await harness.settle()
    yield harness
    await harness.member.close()
    await harness.stop()


def token(key: str, *, prefix: bool = False) -> str:
    """A position that begins again, of a key as the cluster has it."""
    return TOKENS.position(scope_of([(key, prefix)])).decode()


NOTE = {"name": "note", "variables": {}, "delay_ms": 60_000}
ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/v1/entries", {"params": {"key": "KEY", "fetch": "never"}}),
    ("PUT", "/v1/entries", {"params": {"key": "KEY"}, "json": 1, "headers": {"Idempotency-Key": "same"}}),
    ("PUT", "/v1/entries", {"params": {"key": "KEY", "base_version": "7"}, "json": 1}),
    ("PATCH", "/v1/entries", {"params": {"key": "KEY"}, "json": {"operations": [{"set": {"at": "/m", "value": 1}}]}}),
    ("DELETE", "/v1/entries", {"params": {"key": "KEY"}}),
    ("GET", "/v1/keys", {}),
    ("GET", "/v1/keys", {"params": {"prefix": "PREFIX"}}),
    ("GET", "/v1/keys", {"params": {"cursor": '["acme","o"]'}}),
    *[("POST", f"/v1/{action}", {"json": {"key": ["PREFIX"]}}) for action in server.ACTIONS],
    *[("POST", f"/v1/{action}", {"json": {}}) for action in server.ACTIONS],
    ("GET", "/v1/presence", {"params": {"topic": "TOPIC"}}),
    ("GET", "/v1/stream", {"params": {"prefix": "PREFIX"}}),
    ("GET", "/v1/stream", {"params": {"prefix": "[]"}}),
    ("GET", "/v1/stream", {"params": {"key": "KEY"}}),
    ("GET", "/v1/missed", {"params": {"key": "KEY", "since": token('["globex","p",1]')}}),
    ("GET", "/v1/missed", {"params": {"prefix": "[]", "since": token('["globex"]', prefix=True)}}),
    ("POST", "/v1/mutations", {"json": {**NOTE, "id": "MUTATION"}}),
    ("POST", "/v1/mutations", {"json": {**NOTE, "variables": {"tenant": "acme"}}}),
    ("GET", "/v1/mutations", {}),
    ("GET", "/v1/mutations/{id}", {}),
    ("DELETE", "/v1/mutations/{id}", {}),
    ("GET", "/v1/cluster", {}),
    ("GET", "/v1/cluster", {"params": {"dead_letters": "true"}}),
    ("POST", "/v1/scale", {"json": {"ingestors": 2}}),
    ("POST", "/v1/backup", {}),
]
SAME = {"KEY": '["p",1]', "PREFIX": '["p"]', "TOPIC": "doc:1", "MUTATION": "m1"}
"""What acme calls its own."""
ROOTED = {"KEY": '["acme","p",1]', "PREFIX": '["acme"]', "TOPIC": MARKED, "MUTATION": "acme/m1"}
"""What the cluster does."""


def filled(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: filled(each, names) for name, each in value.items()}
    if isinstance(value, list):
        return (
            orjson.loads(names[value[0]]) if value in (["KEY"], ["PREFIX"]) else [filled(each, names) for each in value]
        )
    return names.get(value, value) if isinstance(value, str) else value


@pytest.mark.parametrize("names", [SAME, ROOTED], ids=["as acme says it", "as the cluster does"])
async def test_no_route_reaches_another_tenant(tenants: Tenants, names: dict[str, str]) -> None:
    before = await tenants.held()
    for method, path, more in ROUTES:
        asked = path.replace("{id}", names["MUTATION"])
        code, body = await tenants.ask("globex", method, asked, **filled(more, names))
        assert code < 500, (method, asked, body)
        assert SECRET.encode() not in body, (method, asked)
        if names is SAME:
            assert b"acme" not in body or b"your own tenant" in body, (method, asked, body)
        assert b"globex" not in body, (method, asked, body)
        if path in ("/v1/cluster", "/v1/scale", "/v1/backup"):
            assert code == 403, "an admin of a tenant is none of the cluster"
        after = await tenants.held()
        assert after[:4] == before[:4], (method, asked)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json", "/"])
async def test_what_anybody_may_ask_tells_nothing(tenants: Tenants, path: str) -> None:
    _, body = await tenants.ask("globex", "GET", path)
    assert SECRET.encode() not in body
    assert b"acme" not in body


async def test_every_route_has_a_row(tenants: Tenants) -> None:
    rows = {(method, path) for method, path, _ in ROUTES} | {("GET", path) for path in tenants.server.open}
    assert set(tenants.server._routes) - rows == {("GET", "/v1/socket")}, "that is what the messages below are for"


MESSAGES: list[dict[str, Any]] = [
    {"type": "hello", "token": "hk_globex"},
    {"type": "auth", "token": "hk_globex"},
    {"type": "ping"},
    {"type": "get", "key": ["KEY"]},
    {"type": "subscribe", "key": ["KEY"], "mode": "patch"},
    {"type": "subscribe", "prefix": ["PREFIX"]},
    {"type": "subscribe", "prefix": [], "since": token('["globex"]', prefix=True)},
    {"type": "pause"},
    {"type": "resume"},
    {"type": "unsubscribe"},
    {"type": "set", "key": ["KEY"], "data": 1},
    {"type": "set", "key": ["KEY"], "data": 1, "base_version": 7},
    {"type": "invalidate", "key": ["PREFIX"]},
    {"type": "invalidate", "key": [], "exact": False},
    {"type": "mutate", **NOTE, "mutation_id": "MUTATION"},
    {"type": "undo", "mutation_id": "MUTATION"},
    {"type": "presence", "topic": "TOPIC", "state": 1},
    {"type": "presence", "topic": "TOPIC", "watch": "count"},
    {"type": "leave", "topic": "TOPIC"},
]


def test_every_message_has_a_row() -> None:
    kinds = set(re.findall(r'case "(\w+)"', inspect.getsource(client_message._carry_out))) | {"hello"}
    assert kinds == {each["type"] for each in MESSAGES}


@pytest.mark.parametrize("names", [SAME, ROOTED], ids=["as acme says it", "as the cluster does"])
async def test_no_message_reaches_another_tenant(tenants: Tenants, names: dict[str, str]) -> None:
    before = await tenants.held()
    async with tenants.open("globex") as socket:
        for number, message in enumerate(MESSAGES, 1):
            await say(socket, {"id": number, **filled(message, names)}, {"type": "ping", "id": "end"})
            heard = await until(socket, "pong")
            text = orjson.dumps(heard).decode()
            assert SECRET not in text, message
            assert "globex" not in text, (message, text)
            assert names is ROOTED or "acme" not in text, (message, text)
            assert (await tenants.held())[:4] == before[:4], message


async def test_what_changes_is_told_within_a_tenant_only(tenants: Tenants) -> None:
    async with tenants.open("globex") as globex, tenants.open("acme") as acme, tenants.open("operator") as operator:
        for socket in (globex, acme, operator):
            for mode in ("data", "patch"):
                await say(socket, {"type": "subscribe", "id": mode, "prefix": [], "mode": mode})
                await until(socket, "snapshot_end")
            await say(socket, {"type": "presence", "id": 1, "topic": "doc:1" if socket is not operator else MARKED})
            await until(socket, "presence")
        await tenants.ask("acme", "PUT", "/v1/entries", params={"key": '["p",2]'}, json=SECRET)
        # Once told: an entry that comes and goes while a client's outbox waits is not told at all.
        seen = {id(socket): await until(socket, "change") for socket in (acme, operator)}
        await tenants.ask("acme", "POST", "/v1/invalidate", json={"key": ["p"]})
        await tenants.ask("acme", "DELETE", "/v1/entries", params={"key": '["p",2]'})
        await tenants.ask("globex", "PUT", "/v1/entries", params={"key": '["own"]'}, json=1)
        for socket in (acme, operator):
            seen[id(socket)] += await until(socket, "removed")
        heard = await until(globex, "change")
    assert {orjson.dumps(each["key"]) for each in heard if "key" in each} == {b'["own"]'}
    assert SECRET not in str(heard)
    keys = {
        orjson.dumps(each["key"]) for each in seen[id(acme)] if each.get("type") in ("change", "removed", "invalidated")
    }
    assert keys <= {b'["p",1]', b'["p",2]'}
    assert b'["p",2]' in keys
    assert "acme" not in str(seen[id(acme)]).replace(SECRET, "")
    operators = {orjson.dumps(each["key"]) for each in seen[id(operator)] if each.get("type") in ("change", "removed")}
    assert b'["acme","p",2]' in operators


async def test_what_a_tenant_is_told_is_in_its_own_words(tenants: Tenants) -> None:
    code, body = await tenants.ask("acme", "GET", "/v1/entries", params={"key": '["p",1]'})
    assert (code, orjson.loads(body)["key"], orjson.loads(body)["data"]) == (200, ["p", 1], SECRET)
    (row,) = orjson.loads((await tenants.ask("acme", "GET", "/v1/keys"))[1])["keys"]
    assert row["key"] == ["p", 1]
    (mutation,) = orjson.loads((await tenants.ask("acme", "GET", "/v1/mutations"))[1])["mutations"]
    assert mutation["id"] == "m1"
    code, body = await tenants.ask("acme", "PUT", "/v1/entries", params={"key": '["p",1]', "base_version": "7"}, json=1)
    assert (code, orjson.loads(body)["error"]["details"]["current"]["key"]) == (409, ["p", 1])
    code, body = await tenants.ask("acme", "GET", "/v1/entries", params={"key": '["none"]', "fetch": "never"})
    assert (code, b"acme" in body, b'[\\"none\\"]' in body) == (404, False, True)
    members = orjson.loads((await tenants.ask("acme", "GET", "/v1/presence", params={"topic": "doc:1"}))[1])
    assert (members["topic"], members["members"][0]["state"]) == ("doc:1", SECRET)
    code, text = await tenants.ask("acme", "GET", "/v1/stream", params={"prefix": "[]"})
    assert b'data: {"key":["p",1],' in text
    assert b"acme" not in text.replace(SECRET.encode(), b"")


async def test_an_error_on_a_socket_is_in_its_own_words(tenants: Tenants) -> None:
    tenants.state.mutations.require_home = refuse  # type: ignore[method-assign]
    async with tenants.open("acme") as socket:
        await say(socket, {"type": "mutate", "id": 1, **NOTE, "mutation_id": "m2"}, {"type": "ping"})
        error = next(each for each in await until(socket, "pong") if each["type"] == "error")
        assert error["message"] == "the id m2 is that of another mutation"


def refuse(mutation: str, _: int) -> None:
    raise RequestError(ErrorCode.CONFLICT, f"the id {mutation} is that of another mutation")


async def test_keys_are_listed_page_by_page(tenants: Tenants) -> None:
    for number in range(2, 6):
        await tenants.ask("acme", "PUT", "/v1/entries", params={"key": f'["p",{number}]'}, json=number)
    found, params = [], {"limit": "2"}
    while True:
        answer = orjson.loads((await tenants.ask("acme", "GET", "/v1/keys", params=params))[1])
        found.extend(row["key"] for row in answer["keys"])
        if "cursor" not in answer:
            break
        assert "acme" not in answer["cursor"]
        params["cursor"] = answer["cursor"]
    assert found == [["p", number] for number in range(1, 6)]


async def test_the_same_names_are_other_things_in_each_tenant(tenants: Tenants) -> None:
    for who in ("acme", "globex"):
        headers = {"Idempotency-Key": "once"}
        code, _ = await tenants.ask(who, "PUT", "/v1/entries", params={"key": '["k"]'}, json=who, headers=headers)
        assert code == 200
    for who in ("acme", "globex"):
        for _ in range(2):  # from a shard, and as it was remembered
            _, body = await tenants.ask(who, "GET", "/v1/entries", params={"key": '["k"]'})
            assert orjson.loads(body)["data"] == who
    code, body = await tenants.ask("globex", "POST", "/v1/mutations", json={**NOTE, "id": "m1"})
    assert orjson.loads(body)["id"] == "m1"
    assert {"acme/m1", "globex/m1"} <= {each.mutation for each in tenants.mutates}
    assert {each.scope for each in tenants.mutates} == {"acme/id:acme/m1", "globex/id:globex/m1"}
    assert [orjson.loads(each.variables) for each in tenants.mutates] == [{"tenant": "acme"}, {"tenant": "globex"}]


async def test_a_watched_key_is_read_from_its_replica_by_its_tenant_alone(tenants: Tenants) -> None:
    async with tenants.open("acme") as socket, tenants.open("operator") as operator:
        await say(socket, {"type": "subscribe", "id": 1, "key": ["p", 1]})
        await until(socket, "snapshot_end")
        await say(operator, {"type": "subscribe", "id": 1, "key": ["acme", "p", 1]})
        await until(operator, "snapshot_end")
        for _ in range(3):
            for who, key, expected in (
                ("operator", '["acme","p",1]', 200),
                ("acme", '["p",1]', 200),
                ("acme", '["acme","p",1]', 404),
                ("globex", '["p",1]', 404),
                ("globex", '["acme","p",1]', 404),
            ):
                code, body = await tenants.ask(who, "GET", "/v1/entries", params={"key": key, "fetch": "auto"})
                assert code == expected, (who, key, body)


async def test_a_session_stays_with_its_tenant(tenants: Tenants) -> None:
    async with tenants.open("acme") as socket:
        await say(
            socket, {"type": "auth", "id": 1, "token": "hk_globex"}, {"type": "auth", "id": 2, "token": "hk_acme"}
        )
        heard = await until(socket, "result")
        error = next(each for each in heard if each["type"] == "error")
        assert (error["re"], error["code"]) == (1, "FORBIDDEN")


async def test_another_tenant_s_session_is_not_taken_over(tenants: Tenants) -> None:
    async with tenants.open("acme") as socket:
        token = next(each for each in await until(socket, "welcome") if each["type"] == "welcome")["resume_token"]
        await say(socket, {"type": "presence", "id": 1, "topic": "doc:2", "state": SECRET})
        await until(socket, "presence")
        async with tenants.open("globex") as thief:
            await until(thief, "welcome")
            await say(thief, {"type": "hello", "resume": token}, {"type": "ping", "id": 9})
            heard = await until(thief, "pong")
            assert next(each for each in heard if each["type"] == "error")["code"] == "BAD_REQUEST"
        await say(socket, {"type": "ping", "id": 1})
        await until(socket, "pong")
        await asyncio.sleep(0)
        _, body = await tenants.ask("acme", "GET", "/v1/presence", params={"topic": "doc:2"})
        assert orjson.loads(body)["count"] == 1


async def test_another_tenant_s_position_is_not_gone_on_from(tenants: Tenants) -> None:
    """A key that both call the same is another for each."""
    own = {"type": "subscribe", "id": 1, "key": ["p", 1]}
    async with tenants.open("acme") as socket:
        await say(socket, own)
        position = next(each for each in await until(socket, "snapshot_end") if each["type"] == "snapshot_end")[
            "position"
        ]
        await say(socket, {**own, "id": 2, "since": position})
        assert not [each for each in await until(socket, "position") if each["type"] in ("error", "reset", "snapshot")]
    async with tenants.open("globex") as thief:
        await until(thief, "welcome")
        await say(thief, {**own, "since": position})
        error = next(each for each in await until(thief, "error") if each["type"] == "error")
        assert (error["re"], error["code"]) == (1, "BAD_REQUEST")
    stream = {"params": {"key": '["p",1]'}, "headers": {"Last-Event-ID": position}}
    code, body = await tenants.ask("globex", "GET", "/v1/stream", **stream)
    assert code == 400
    assert SECRET.encode() not in body
    assert b"acme" not in body
    code, _ = await tenants.ask("globex", "GET", "/v1/missed", params={"key": '["p",1]', "since": position})
    assert code == 400
