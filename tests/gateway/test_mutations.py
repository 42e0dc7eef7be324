"""`/v1/mutations`, `mutate` and `undo` over real sockets, before homes that do what the test says."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from aiohttp import ClientTimeout
from msgspec import structs

from cluster.core import gateway_state, template
from cluster.core.grants import ApiKeys, Grants, line
from cluster.core.messages import (
    Answers,
    Failure,
    ListMutations,
    Mutate,
    MutationList,
    MutationView,
    Requests,
    Send,
    Undo,
)
from cluster.core.mutation import DeclaredMutation, Status
from cluster.errors import ErrorCode
from tests.gateway.conftest import Harness, until

NOTE = {"note": DeclaredMutation("note", "api", "POST", template.parse("/notes"))}
ODD = "a/b ?#%2F"


class Homed(Harness):
    """Shards that know mutations as their homes tell them, and do nothing about them."""

    def __init__(self) -> None:
        super().__init__()
        self.state.mutations.declared = NOTE
        self.known: dict[str, dict[str, MutationView]] = {name: {} for name in self.shards}
        self.mutates: list[Mutate] = []
        self.begins_as: Any = "pending"
        self.lookups = 0

    def call(self, effect: Send) -> None:
        assert isinstance(effect.message, Requests)
        mine = [each for each in effect.message.items if isinstance(each, Mutate | Undo | ListMutations)]
        if not mine:
            super().call(effect)
            return
        rest = [each for each in effect.message.items if each not in mine]
        now_ms = self.clock.now_ms()
        shard = self.shards[effect.to]
        answer, effects = shard.requests(structs.replace(effect.message, items=rest), now_ms)
        assert isinstance(answer, Answers)
        answers = [*answer.items, *((each.id, self.answer(effect.to, each)) for each in mine)]
        answered = structs.replace(answer, items=answers)
        self.server.run(self.state.answered(effect.to, effect.message, answered, now_ms))
        self.run(shard, effects)

    def answer(self, home: str, asked: Mutate | Undo | ListMutations) -> Any:
        known = self.known[home]
        self.lookups += isinstance(asked, ListMutations)
        match asked:
            case Mutate():
                self.mutates.append(asked)
                if isinstance(self.begins_as, Failure):
                    return self.begins_as
                due = 99_000 if asked.delay_ms else 0
                status = "scheduled" if asked.delay_ms else self.begins_as
                return known.setdefault(asked.mutation, MutationView(asked.mutation, asked.name, status, 5, due))
            case ListMutations(mutation=mutation) if mutation:
                return MutationList([known[mutation]] if mutation in known else [])
            case ListMutations(statuses=statuses, limit=limit, after=after):
                views = sorted(known.values(), key=lambda view: view.place)
                views = [view for view in views if view.place > after and (not statuses or view.status in statuses)]
                return MutationList(views[:limit], len(views) > limit)
            case Undo(mutation=mutation) if mutation not in known:
                return Failure(ErrorCode.NOT_FOUND, "no")
            case Undo(mutation=mutation):
                known[mutation] = structs.replace(known[mutation], status="cancelled")
                return known[mutation]

    def tell(self, mutation: str, status: Status, **more: Any) -> None:
        """A home tells how a mutation is now."""
        home = next(known for known in self.known.values() if mutation in known)
        view = home[mutation] = structs.replace(home[mutation], status=status, **more)
        effects: list[Any] = []
        self.state._pass_on(self.state.mutations.heard(view), effects)
        self.server.run(effects)

    async def begin(self, query: dict[str, str] | None = None, **body: Any) -> tuple[int, Any]:
        headers = {"Idempotency-Key": body.pop("key")} if "key" in body else {}
        body = {"name": "note", "variables": {"n": 1}, **body}
        async with self.http.post("/v1/mutations", params=query or {}, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def delete(self, mutation: str) -> tuple[int, Any]:
        async with self.http.delete(f"/v1/mutations/{mutation}") as response:
            return response.status, await response.json()

    async def until_known(self, count: int = 1) -> None:
        while len(self.mutates) < count:
            await asyncio.sleep(0.001)


@pytest.fixture
async def homed() -> AsyncIterator[Homed]:
    homed = Homed()
    await homed.start()
    yield homed
    await homed.stop()


async def test_a_mutation_begins_by_http(homed: Homed) -> None:
    status, made = await homed.begin()
    assert (status, made["status"], len(made["id"])) == (200, "pending", 36)
    assert await homed.begin(id="m1") == (200, {"id": "m1", "status": "pending"})
    assert await homed.begin(key="m2") == (200, {"id": "m2", "status": "pending"})
    assert await homed.begin(id="m3", key="m3", delay_ms=0.5) == (200, {"id": "m3", "status": "scheduled"})
    assert [each.delay_ms for each in homed.mutates] == [None, None, None, 0.5]
    assert not homed.state.mutations._followed


@pytest.mark.parametrize(
    ("body", "query", "status", "code"),
    [
        ({"id": "a", "key": "b"}, {}, 400, "BAD_REQUEST"),
        ({"wait": True}, {}, 400, "BAD_REQUEST"),
        ({}, {"wait": "yes"}, 400, "BAD_REQUEST"),
        ({}, {"ack": "memory"}, 400, "BAD_REQUEST"),
        ({"id": 7}, {}, 400, "BAD_REQUEST"),
        ({"delay_ms": -1}, {}, 400, "BAD_REQUEST"),
        ({"variables": 7}, {}, 400, "INVALID_VARIABLES"),
        ({"name": "none"}, {}, 404, "UNKNOWN_MUTATION"),
    ],
)
async def test_what_is_wrong_with_it(
    homed: Homed, body: dict[str, Any], query: dict[str, str], status: int, code: str
) -> None:
    got, answer = await homed.begin(query, **body)
    assert (got, answer["error"]["code"]) == (status, code)
    assert homed.mutates == []


async def test_a_body_that_is_no_object(homed: Homed) -> None:
    for text in (b"[]", b"{", b""):
        async with homed.http.post("/v1/mutations", data=text) as response:
            assert response.status == 400


async def test_who_waits_gets_the_outcome(homed: Homed) -> None:
    wait = asyncio.ensure_future(homed.begin({"wait": "true"}, id="m1"))
    await homed.until_known()
    assert (await homed.begin(id="another"))[1]["status"] == "pending"  # what was answered before it has come by now
    assert not wait.done()
    homed.tell("m1", Status.SUCCESS, result=b'{"id":[1e999]}')
    with pytest.raises(orjson.JSONDecodeError):  # what a service answers is passed on as it is
        orjson.loads(b"1e999")
    assert (await wait)[1]["result"] == {"id": [float("inf")]}
    wait = asyncio.ensure_future(homed.begin({"wait": "true"}, id="m2"))
    await homed.until_known(3)
    homed.tell("m2", Status.ERROR, error=("UPSTREAM_ERROR", "422"))
    assert await wait == (
        200,
        {"id": "m2", "status": "error", "error": {"code": "UPSTREAM_ERROR", "message": "422", "temporary": True}},
    )
    assert not homed.state.mutations._followed


async def test_who_waits_too_long_gets_the_status(homed: Homed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_state, "REQUEST_MS", 50.0)
    assert await homed.begin({"wait": "true"}, id="m1") == (200, {"id": "m1", "status": "pending"})
    assert not homed.state.mutations._followed


async def test_who_hangs_up_frees_what_waited(homed: Homed) -> None:
    with pytest.raises(TimeoutError):
        async with homed.http.post(
            "/v1/mutations",
            params={"wait": "true"},
            json={"name": "note", "variables": {}},
            timeout=ClientTimeout(total=0.1),
        ):
            pass
    async with asyncio.timeout(5):
        while homed.state.mutations._followed:
            await asyncio.sleep(0.005)
    assert homed.server._futures == {}


async def test_an_error_of_the_home(homed: Homed) -> None:
    homed.begins_as = Failure(ErrorCode.CONFLICT, "the temporary id t was used before")
    status, answer = await homed.begin({"wait": "true"})
    assert (status, answer["error"]["code"]) == (409, "CONFLICT")
    assert not homed.state.mutations._followed


async def test_listing_and_looking(homed: Homed) -> None:
    for name in ("m1", ODD):
        await homed.begin(id=name)
    await homed.begin(id="later", delay_ms=10)
    homed.tell("m1", Status.SUCCESS, result=b"7")
    first = {"id": "m1", "name": "note", "created_at": 5, "status": "success", "result": 7}
    later = {"id": "later", "name": "note", "created_at": 5, "due_at": 99_000, "status": "scheduled"}
    status, listed = await homed.get("/v1/mutations")
    assert status == 200
    assert len(listed["mutations"]) == 3
    assert await homed.get("/v1/mutations", status="success,scheduled") in [
        (200, {"mutations": [first, later]}),
        (200, {"mutations": [later, first]}),
    ]
    assert await homed.get("/v1/mutations", status="error") == (200, {"mutations": []})
    assert await homed.get("/v1/mutations/m1") == (200, first)
    assert (await homed.get("/v1/mutations/a%2Fb%20%3F%23%252F"))[1]["id"] == ODD
    for path, query, code in [
        ("/v1/mutations", {"status": "done"}, 400),
        ("/v1/mutations", {"id": "m1"}, 400),
        ("/v1/mutations/m1", {"status": "success"}, 400),
        ("/v1/mutations/none", {}, 404),
        ("/v1/mutations/", {}, 400),
    ]:
        assert (await homed.get(path, **query))[0] == code


async def test_a_listing_comes_page_by_page(homed: Homed) -> None:
    names = [f"m{n}" for n in range(7)]
    for name in names:
        await homed.begin(id=name)
    assert min(map(len, homed.known.values())) > 0, "of several homes"
    found: list[str] = []
    cursor: dict[str, Any] = {}
    pages = 0
    while cursor or not pages:
        _, page = await homed.get("/v1/mutations", limit=2, **cursor)
        assert len(page["mutations"]) <= 2
        found += [each["id"] for each in page["mutations"]]
        cursor = {"cursor": page["cursor"]} if "cursor" in page else {}
        pages += 1
    assert (found, pages) == (names, 4)
    for query in ({"limit": "0"}, {"cursor": "m1"}, {"cursor": "-1.2.m"}):
        assert (await homed.get("/v1/mutations", **query))[0] == 400


async def test_homes_list_nothing_for_who_may_see_nothing(homed: Homed) -> None:
    await homed.begin(id="m1")
    homed.state.authority = ApiKeys.parse(line("none", "hk_none", Grants(read=[[]], write=[[]])))
    for path, answer in [("", (200, {"mutations": []})), ("/m1", (404, None))]:
        async with homed.http.get(f"/v1/mutations{path}", headers={"X-API-Key": "hk_none"}) as response:
            said = await response.json() if response.status == 200 else None
        assert (response.status, said) == answer
    assert homed.lookups == 0


async def test_undo_by_http(homed: Homed) -> None:
    await homed.begin(id="m1", delay_ms=10)
    status, answer = await homed.delete("m1")
    assert (status, answer["id"], answer["status"]) == (200, "m1", "cancelled")
    assert (await homed.delete("m1"))[0] == 200
    await homed.begin(id="m2")
    status, answer = await homed.delete("m2")
    assert (status, answer["error"]["code"], answer["error"]["details"]) == (409, "CONFLICT", {"status": "pending"})
    assert (await homed.delete("none"))[0] == 404


async def test_a_socket_is_told_all_in_order(homed: Homed) -> None:
    async with homed.socket() as socket:
        await until(socket, "welcome")
        await socket.send(
            orjson.dumps(
                {"type": "mutate", "id": 1, "name": "note", "variables": {}, "mutation_id": "m", "delay_ms": 9}
            )
        )
        result, first, notice = await until(socket, "notice")
        assert result == {"type": "result", "re": 1, "mutation_id": "m"}
        assert first == {"type": "mutation", "mutation_id": "m", "status": "scheduled"}
        assert (notice["code"], notice["until_ms"]) == ("undo_available", 99_000)
        homed.tell("m", Status.QUEUED)
        assert (await until(socket, "mutation"))[0]["status"] == "queued"
        await socket.send(orjson.dumps({"type": "undo", "id": 2, "mutation_id": "m"}))
        messages = await until(socket, "mutation")
        assert messages == [
            {"type": "result", "re": 2},
            {"type": "mutation", "mutation_id": "m", "status": "cancelled"},
        ]
        await socket.send(orjson.dumps({"type": "mutate", "id": 3, "name": "note", "variables": {}}))
        messages = await until(socket, "mutation")
        assert len(messages[0]["mutation_id"]) == 36
    async with asyncio.timeout(5):
        while homed.state.sessions:
            await asyncio.sleep(0.005)
    assert not homed.state.mutations._followed


async def test_grants(homed: Homed) -> None:
    grants = {
        "noter": Grants(mutate=["no*"]),
        "other": Grants(mutate=["other"], read=[[]], write=[[]]),
        "admin": Grants(admin=True),
    }
    homed.state.authority = ApiKeys.parse("\n".join(line(name, f"hk_{name}", given) for name, given in grants.items()))

    async def ask(who: str, method: str, path: str, **more: Any) -> tuple[int, Any]:
        headers = {"X-API-Key": f"hk_{who}"}
        async with homed.http.request(method, path, headers=headers, **more) as response:
            return response.status, await response.json()

    for method, path in [("POST", ""), ("GET", ""), ("GET", "/m1"), ("DELETE", "/m1")]:
        assert (await ask("unknown", method, f"/v1/mutations{path}"))[0] == 401
    begin = {"name": "note", "variables": {}, "id": "m1", "delay_ms": 5}
    assert [(await ask(who, "POST", "/v1/mutations", json=begin))[0] for who in grants] == [200, 403, 403]
    assert [len((await ask(who, "GET", "/v1/mutations"))[1]["mutations"]) for who in grants] == [1, 0, 1]
    assert [(await ask(who, "GET", "/v1/mutations/m1"))[0] for who in grants] == [200, 404, 200]
    assert (await ask("other", "DELETE", "/v1/mutations/m1"))[0] == 403
    assert (await ask("admin", "DELETE", "/v1/mutations/m1"))[1]["status"] == "cancelled"


async def test_of_one_key_sessions_and_requests_are_one_account(homed: Homed) -> None:
    grants = Grants(mutate=["note"])
    homed.state.authority = ApiKeys.parse("\n".join(line(name, f"hk_{name}", grants) for name in ("ann", "bob")))
    for name in ("ann", "bob"):
        headers = {"X-API-Key": f"hk_{name}"}
        body = {"id": f"{name}-1", "name": "note", "variables": {}}
        async with homed.http.post("/v1/mutations", json=body, headers=headers) as response:
            assert response.status == 200
        async with homed.socket(additional_headers=headers) as socket:
            said = {"type": "mutate", "id": 1, "mutation_id": f"{name}-2", "name": "note", "variables": {}}
            await socket.send(orjson.dumps(said).decode())
            await until(socket, "result")
    ann, ann_too, bob, bob_too = (each.account for each in homed.mutates)
    assert "" != ann == ann_too != bob == bob_too != ""
