"""Gateways and shards together: what clients see of mutations, from the first frame to the outcome."""

from typing import Any

import orjson
import pytest
from msgspec import structs

from cluster.core import template
from cluster.core.declared_query import Response
from cluster.core.messages import (
    Answered,
    Answers,
    Batch,
    Header,
    KeyOperations,
    ListMutations,
    Overlays,
    Requests,
    Send,
)
from cluster.core.mutation import DeclaredMutation, in_data
from cluster.core.operation import Append
from cluster.core.presence_session import identity_of
from cluster.core.query_key import CanonicalKey
from cluster.core.rule import RuleOperation
from cluster.errors import UpstreamError
from tests.in_process import Client, InProcess

KEY = ["note", 1]


def node(value: Any) -> template.Node:
    return template.renamed(template.parse(value), in_data)


MERGE = RuleOperation("merge", node(["note", "{id}"]), value=node("{variables}"))
SAVE = DeclaredMutation(
    "save",
    "api",
    "PATCH",
    template.parse("/notes/{id}"),
    body=template.parse("{variables}"),
    optimistic=(MERGE,),
    scope=template.parse("note:{id}"),
)
MAKE = DeclaredMutation(
    "make",
    "api",
    "POST",
    template.parse("/notes"),
    body=template.parse("{variables}"),
    scope=template.parse("{scope}"),
    temp_id=("id",),
)
ADD = RuleOperation("append", node(["note", "all"]), value=node("{variables}"))
SLOWLY = structs.replace(SAVE, name="slowly", delay_ms=5000.0)


def world(shards: int = 2) -> InProcess:
    made = InProcess(shards=shards, gateways=2, mutations={"save": SAVE, "slowly": SLOWLY, "make": MAKE})
    made.write('["note",1]', {"id": 1, "text": "old"})
    made.settle()
    return made


def watching(made: InProcess, name: str, gateway: str, mode: str) -> Client:
    client = Client(made, name, gateway)
    client.subscribe("w", prefix=["note"], mode=mode)
    made.settle()
    client.read()
    return client


def mutate(client: Client, mutation: str, name: str = "save", **variables: Any) -> None:
    client.say(type="mutate", id=mutation, name=name, variables={"id": 1, **variables}, mutation_id=mutation)


def at_once(made: InProcess) -> None:
    """Carry out every call, at one instant."""
    while made.step():
        pass


def kinds(messages: list[dict[str, Any]]) -> list[str]:
    return [each.get("status", each["type"]) for each in messages if each["type"] != "position"]


def data(client: Client) -> Any:
    return client.views["w"].entries['["note",1]'][1]


@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("mode", ["data", "patch"])
def test_the_author_sees_it_at_once_others_soon_and_all_are_told_what_it_came_from(mode: str, shards: int) -> None:
    made = world(shards)
    author, other = watching(made, "author", "gateway-0", mode), watching(made, "other", "gateway-1", mode)
    mutate(author, "m1", text="new")
    at_once(made)
    messages = author.read()
    assert sorted(kinds(messages)) == ["change", "pending", "result"]
    assert next(each for each in messages if each["type"] == "change")["mutations"] == ["m1"]
    assert data(author) == {"id": 1, "text": "new"}
    assert other.read() == []
    made.advance(5.0)
    (change, _) = other.read()
    assert change["mutations"] == ["m1"]
    assert data(other) == {"id": 1, "text": "new"}
    call = made.answered(Response(b'{"id":1,"text":"new"}'))
    assert call.request.idempotency_key == "m1"
    made.settle()
    messages = author.read()
    assert sorted(kinds(messages)) == ["change", "success"]
    change = next(each for each in messages if each["type"] == "change")
    assert change["mutations"] == ["m1"]
    assert change.get("patch", []) == []
    assert [each["mutations"] for each in other.read() if each["type"] == "change"] == [["m1"]]
    assert not made.gateway.mutations._followed
    for client in (author, other):
        assert client.views["w"].entries == made.oracle('["note"]', prefix=True)


def test_one_that_fails_is_taken_back_and_what_others_did_stays() -> None:
    made = world()
    author = watching(made, "author", "gateway-0", "patch")
    mutate(author, "m1", text="new")
    at_once(made)
    made.write('["note",1]', {"id": 1, "text": "old", "by": "another"})
    made.settle()
    author.read()
    assert data(author) == {"id": 1, "text": "new", "by": "another"}
    made.answered(UpstreamError("no", status=422, retryable=False))
    made.settle()
    assert kinds(author.read())[-1] in ("error", "change")
    assert data(author) == {"id": 1, "text": "old", "by": "another"}


def test_what_names_a_temporary_id_waits_for_it_at_every_home() -> None:
    """However late the other home is told of the id: its author has no answer before, and so nothing that could name it."""
    made = world()
    author = watching(made, "author", "gateway-0", "data")
    first, other = (next(n for n in range(9) if made.shard_of(f"scope:{n}").identity == f"shard-{s}") for s in (0, 1))
    author.say(type="mutate", id="a", name="make", variables={"id": "temp", "scope": str(first)}, mutation_id="a")
    late = []
    while made.calls:
        if isinstance(made.calls[0][1].message, Overlays):
            late.append(made.calls.popleft())
        else:
            made.step()
    assert author.read() == []
    made.calls.extend(late)
    at_once(made)
    assert kinds(author.read()) == ["result", "pending"]
    author.say(
        type="mutate", id="b", name="make", variables={"id": "next", "scope": str(other), "of": "temp"}, mutation_id="b"
    )
    at_once(made)
    assert kinds(author.read()) == ["result", "queued"]
    assert made.answered(Response(b'{"id":"real"}')).mutation == "a"
    made.settle()
    assert orjson.loads(made.answered(Response(b'{"id":"more"}')).request.body)["of"] == "real"


def test_a_home_that_cannot_be_reached_is_not_waited_for() -> None:
    made = world()
    author = watching(made, "author", "gateway-0", "data")
    author.say(type="mutate", id="a", name="make", variables={"id": "temp", "scope": "1"}, mutation_id="a")
    while made.calls:
        is_lost = isinstance(made.calls[0][1].message, Overlays)
        made.step(lose=lambda is_lost=is_lost: is_lost)
    made.advance(200.0)  # the loss is followed by another try
    at_once(made)
    assert "result" in kinds(author.read())


def test_undo_takes_it_back_and_nothing_is_sent() -> None:
    made = world()
    author = watching(made, "author", "gateway-0", "data")
    mutate(author, "m1", "slowly", text="new")
    at_once(made)
    messages = author.read()
    assert sorted(kinds(messages)) == ["change", "notice", "result", "scheduled"]
    notice = next(each for each in messages if each["type"] == "notice")
    assert notice["until_ms"] == made.now_ms + 5000
    author.say(type="undo", id="u", mutation_id="m1")
    at_once(made)
    messages = author.read()
    assert sorted(kinds(messages)) == ["cancelled", "change", "result"]
    assert data(author) == {"id": 1, "text": "old"}
    made.advance(6000.0)
    made.settle()
    assert not made.sent


def test_what_is_undone_too_late_says_its_status() -> None:
    made = world()
    author = watching(made, "author", "gateway-0", "data")
    mutate(author, "m1", text="new")
    at_once(made)
    author.read()
    author.say(type="undo", id="u", mutation_id="m1")
    at_once(made)
    (error,) = author.read()
    assert (error["code"], error["details"]) == ("CONFLICT", {"status": "pending"})


def test_a_client_that_comes_back_elsewhere_attaches_to_it_again() -> None:
    made = world()
    first = watching(made, "author", "gateway-0", "data")
    mutate(first, "m1", text="new")
    at_once(made)
    first.close()
    second = watching(made, "again", "gateway-1", "data")
    mutate(second, "m1", text="new")
    at_once(made)
    assert kinds(second.read()) == ["result", "pending"]
    made.answered(Response(b"{}"))
    made.settle()
    assert "success" in kinds(second.read())
    assert not made.sent


@pytest.mark.parametrize("scopes", [("1", "1"), ("1", "2")])
@pytest.mark.parametrize("shards", [1, 2])
def test_what_was_created_is_in_every_view_though_another_is_still_being_created(
    scopes: tuple[str, str], shards: int
) -> None:
    key = '["note","all"]'
    made = InProcess(shards=shards, gateways=2, mutations={"make": structs.replace(MAKE, optimistic=(ADD,))})
    made.write(key, [{"id": 1}])
    author = watching(made, "author", "gateway-0", "data")
    for name, scope in zip("ab", scopes, strict=True):
        author.say(type="mutate", id=name, name="make", variables={"id": name, "scope": scope}, mutation_id=name)
        made.settle()

    def ids() -> list[Any]:
        author.read()
        return [item["id"] for item in author.views["w"].entries[key][1]]

    shard = made.shard_of(key)
    event = KeyOperations(key, [Append((b'{"id":41}',))], 1)
    _, effects = shard.batch(Batch(Header("coordinator-0", 2, 0, 1), [], [event], made.now_ms), made.now_ms)
    made.run(shard.identity, effects)
    made.settle()
    assert ids() == [1, "a", "b"], "it is not known whose the item is"
    made.answered(Response(b'{"id":41}'))
    made.settle()
    assert ids() == [1, 41, "b"]


@pytest.mark.parametrize("gateway", ["gateway-0", "gateway-1"])
@pytest.mark.parametrize("shards", [1, 4])
def test_a_session_that_comes_back_hears_of_its_own_mutations(gateway: str, shards: int) -> None:
    made = world(shards)
    first = Client(made, identity_of("a secret"))
    first.session.secret = "a secret"
    other = Client(made, "other")
    for mutation in ("settles", "goes-on"):
        mutate(first, mutation, id=mutation, text="new")
    mutate(other, "others", id="others", text="newer")
    at_once(made)
    token = made.gateways["gateway-0"].tokens.session(first.session.secret, first.session.owner)
    first.close()
    while made.sent[0][1].mutation != "settles":
        made.sent.rotate()
    made.answered(Response(b"{}"))
    made.settle()

    second = Client(made, "again", gateway)
    second.say(type="hello", id=1, resume=token)
    made.settle()
    outcomes = [(each["mutation_id"], each["status"]) for each in second.read() if each["type"] == "mutation"]
    assert sorted(outcomes) == [("goes-on", "pending"), ("settles", "success")]
    made.answered(Response(b"{}"))
    made.answered(Response(b"{}"))
    made.settle()
    outcomes = [(each["mutation_id"], each["status"]) for each in second.read() if each["type"] == "mutation"]
    assert outcomes == [("goes-on", "success")]


def unsettled(made: InProcess, count: int = 1) -> Client:
    """Have an author begin mutations, and lose its connection. Returns who comes back for them, at the other gateway."""
    first = Client(made, identity_of("a secret"))
    first.session.secret = "a secret"
    for n in range(count):
        mutate(first, f"m{n}", id=f"note-{n}", text="new")
    at_once(made)
    token = made.gateways["gateway-0"].tokens.session(first.session.secret, first.session.owner)
    first.close()
    second = Client(made, "again", "gateway-1")
    second.say(type="hello", id=1, resume=token)
    return second


@pytest.mark.parametrize("steps", range(8))
def test_no_outcome_is_lost_between_coming_back_and_being_told(steps: int) -> None:
    made = world(1)
    second = unsettled(made)
    for _ in range(steps):
        made.step()
    made.answered(Response(b"{}"))
    made.settle()
    statuses = [each["status"] for each in second.read() if each["type"] == "mutation"]
    assert statuses in (["success"], ["pending", "success"])


def test_what_a_home_says_to_who_comes_back_goes_the_way_of_its_news() -> None:
    made = world(1)
    unsettled(made)
    asked = Requests(Header("gateway-9", 4, 0, 1), [ListMutations(1, author=identity_of("a secret"))])
    answer, effects = made.shards["shard-0"].requests(asked, made.now_ms)
    assert isinstance(answer, Answers)
    assert answer.items == [], "which another call might overtake"
    (sent,) = [each.message for each in effects if isinstance(each, Send) and each.to == "gateway-9"]
    (said,) = [each.payload for each in sent.items if isinstance(each, Answered)]
    assert [view.mutation for view in said.mutations] == ["m0"]


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 5])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1), (2, 4)])
def test_who_comes_back_while_slots_move_is_told_as_well(before: int, after: int, steps: int) -> None:
    made = world(before)
    second = unsettled(made, 12)
    for _ in range(steps):
        made.step()
    made.move(after)
    while made.sent:
        if made.sent[0][0] in made.shards:
            made.answered(Response(b"{}"))
        else:
            made.sent.popleft()  # its process has ended
    made.settle(1_000)
    outcomes = [(each["mutation_id"], each["status"]) for each in second.read() if each["type"] == "mutation"]
    assert sorted(name for name, status in outcomes if status == "success") == sorted(f"m{n}" for n in range(12))
    assert not made.gateways["gateway-1"]._regains


def test_those_of_two_gateways_who_asked_for_the_same_are_both_told() -> None:
    made = world()
    clients = [watching(made, f"c{n}", f"gateway-{n}", "data") for n in range(2)]
    for client in clients:
        mutate(client, "m1", text="new")
        at_once(made)
    made.answered(Response(b"{}"))
    made.settle()
    for client in clients:
        assert [each for each in kinds(client.read()) if each != "change"] == ["result", "pending", "success"]


@pytest.mark.parametrize("gateway", ["gateway-0", "gateway-1"])
def test_another_mutation_of_the_same_id_takes_nothing_from_the_first(gateway: str) -> None:
    made = world()
    author, other = watching(made, "author", "gateway-0", "patch"), watching(made, "other", gateway, "patch")
    mutate(author, "m1", text="new")
    at_once(made)
    for note in range(2, 6):  # some with another home
        other.say(type="mutate", id=note, name="save", variables={"id": note}, mutation_id="m1")
        at_once(made)
    told = kinds(author.read())
    assert data(author) == {"id": 1, "text": "new"}
    first, *others = made.sent
    for each in others:
        made.sent.remove(each)
        made.sent.appendleft(each)
        made.answered(UpstreamError("no", status=422, retryable=False))
        made.settle()
    assert list(made.sent) == [first]
    told += kinds(author.read())
    assert data(author) == {"id": 1, "text": "new"}
    assert {"error", "success"}.isdisjoint(told)
    made.answered(Response(b"{}"))
    made.settle()
    assert "success" in kinds(author.read())
    assert data(author) == {"id": 1, "text": "new"}


@pytest.mark.parametrize("is_home", [True, False])
def test_a_shard_that_comes_back_without_a_store_has_lost_those_whose_home_it_was(is_home: bool) -> None:
    made = world()
    author = watching(made, "author", "gateway-0", "data")
    home = made.slots.shard(CanonicalKey("scope:note:1"))
    mutate(author, "m1", text="new")
    made.settle()
    assert kinds(author.read())[0] == "result"
    made.restart(f"shard-{home if is_home else 1 - home}")
    made.settle(2000.0)
    told = [each for each in author.read() if each["type"] == "mutation"]
    assert [(each["status"], each["error"]["code"]) for each in told] == ([("error", "UNAVAILABLE")] if is_home else [])
    if not is_home:
        made.answered(Response(b"{}"))
        made.settle(2000.0)
        assert "success" in kinds(author.read())


def test_who_waits_is_answered_with_what_the_service_said() -> None:
    made = world()
    gateway = made.gateway
    principal = gateway.recognise("", 0.0)
    assert principal is not None
    order = gateway.mutations.order(principal, "save", {"id": 1}, "m1", None)
    ticket = made.tick()
    made.run("gateway-0", gateway.mutate(ticket, order, made.now_ms, waits=True))
    made.settle()
    assert made.responses == {}
    made.answered(Response(orjson.dumps({"id": 1, "at": 5})))
    made.settle()
    (view,) = made.responses[ticket]
    assert (view.status, view.result) == ("success", b'{"id":1,"at":5}')


def test_fifty_of_one_scope_are_told_in_order() -> None:
    made = world()
    author = watching(made, "author", "gateway-0", "data")
    for n in range(50):
        mutate(author, f"m{n}", n=n)
    made.settle()
    for n in range(50):
        call = made.answered(Response(b"{}"))
        assert call.mutation == f"m{n}"
        made.settle(10.0)
    messages = [each for each in author.read() if each["type"] == "mutation"]
    for n in range(50):
        told = [each["status"] for each in messages if each["mutation_id"] == f"m{n}"]
        assert told == (["pending", "success"] if n == 0 else ["queued", "pending", "success"]), n
    assert not made.gateway.mutations._followed


def test_it_is_known_for_how_long_mutations_have_waited_for_a_service() -> None:
    made = world(shards=1)
    shard = made.shards["shard-0"]
    mutate(watching(made, "author", "gateway-0", "data"), "m1", text="new")
    at_once(made)
    began = made.now_ms
    made.answered(UpstreamError("no route to it"))
    at_once(made)
    assert shard.mutations.queue.records["m1"].status == "paused"
    for later in (700.0, 1_500.0):
        assert shard.offline_ms("api", began + later) == later
        assert shard.mutations.queue.oldest_ms(began + later) >= later
    assert shard.offline_ms("other", began + 700) == 0
    made.advance(1_500.0)
    made.answered(Response(b'{"id":1,"text":"new"}'))
    made.settle()
    assert shard.offline_ms("api", made.now_ms) == 0
    assert shard.mutations.queue.oldest_ms(made.now_ms) == 0
