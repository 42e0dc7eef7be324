"""A gateway's mutations, before homes played by hand."""

from hashlib import sha256
from typing import Any

import orjson
import pytest

from cluster.core import gateway_mutations, gateway_state, template
from cluster.core.client_message import Command, answer, client_frame
from cluster.core.gateway_mutations import GatewayMutations, News, Said, mutation_id, statuses_of, visible
from cluster.core.gateway_state import IDS_PER_MS, REQUEST_MS, GatewayState, Respond
from cluster.core.grants import ANYBODY, Grants, Principal
from cluster.core.messages import (
    Announce,
    Answered,
    Answers,
    Change,
    ChangeSet,
    EntryView,
    Failure,
    Header,
    ListMutations,
    Mutate,
    MutationList,
    MutationView,
    Ready,
    Rebalance,
    Requests,
    Send,
    Snapshot,
    Undo,
    Watch,
)
from cluster.core.mutation import MAX_ID, DeclaredMutation
from cluster.core.placement import assign_slots
from cluster.core.query_key import CanonicalKey
from cluster.core.tenant import Tenant
from cluster.errors import ErrorCode, HarborError
from tests.in_process import TOKENS

FIRST = 9 * IDS_PER_MS
"""The ids of requests of this life come after it."""
MUTATIONS = {
    "save": DeclaredMutation("save", "api", "PUT", template.parse("/notes/{id}"), scope=template.parse("note:{id}")),
    "note": DeclaredMutation("note", "api", "POST", template.parse("/notes")),
}
KEY = '["note",1]'
ALL = Principal("p", Grants(mutate=["*"]))
OF_ALL = sha256(b"p").hexdigest()[:32]


def view(mutation: str, status: str, **more: Any) -> MutationView:
    return MutationView(mutation, more.pop("name", "note"), status, more.pop("created_at", 1000), **more)


class World:
    """A gateway before shards that do what the test says."""

    def __init__(self, shards: int = 2) -> None:
        self.now_ms = 1000.0
        self.slots = assign_slots(range(shards), 1)
        self.state = GatewayState("gateway-0", 9, slots=self.slots, shards=shards, tokens=TOKENS, mutations=MUTATIONS)
        self.lives = [20 + n for n in range(shards)]
        self.sequences = [0] * shards
        self.asked: list[list[Any]] = [[] for _ in range(shards)]
        """Requests that are not answered."""
        self.commands: dict[int, Command] = {}
        self.tickets = 0
        self.responses: dict[int, list[Any]] = {}
        self.ids = 0

    def run(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Respond):
                command = self.commands.pop(effect.ticket, None)
                if command is None:
                    self.responses[effect.ticket] = effect.payloads
                elif command.session in self.state.sessions:
                    session = self.state.sessions[command.session]
                    self.run(answer(self.state, session, command, effect.payloads, self.now_ms))
            elif isinstance(effect, Send) and isinstance(effect.message, Requests):
                shard = int(effect.to.removeprefix("shard-"))
                self.asked[shard].extend(effect.message.items)
                taken = Answers(self.lives[shard], 3, [])
                self.run(self.state.answered(effect.to, effect.message, taken, self.now_ms))

    def ticket(self, command: Command | None = None) -> int:
        self.tickets += 1
        if command is not None:
            self.commands[self.tickets] = command
        return self.tickets

    def new_id(self) -> str:
        self.ids += 1
        return f"new-{self.ids}"

    def session(self, name: str = "s", principal: Principal = ALL) -> Any:
        return self.state.open_session(name, principal=principal)

    def say(self, session: Any, **message: Any) -> None:
        frame = orjson.dumps(message)
        self.run(
            client_frame(self.state, session, frame, self.ticket, self.now_ms, self.new_id, self.commands.__delitem__)
        )

    def hear(self, session: Any) -> list[dict[str, Any]]:
        frame, effects = self.state.take(session, self.now_ms)
        self.run(effects)
        self.state.written(session, self.now_ms)
        return [] if frame is None else orjson.loads(frame)

    def begin(self, session: Any, mutation: str, name: str = "note", **more: Any) -> int:
        """Ask for a mutation; return its home."""
        self.say(session, type="mutate", id=mutation, name=name, variables={"id": 1}, mutation_id=mutation, **more)
        return self.home(f"id:{mutation}" if name == "note" else "scope:note:1")

    def home(self, scope: str) -> int:
        return self.slots.shard(CanonicalKey(scope))

    def requests(self, shard: int, kind: type) -> list[Any]:
        return [each for each in self.asked[shard] if isinstance(each, kind)]

    def reply(self, shard: int, kind: type, payload: Any) -> None:
        """Answer the oldest request of a kind."""
        request = self.requests(shard, kind)[0]
        self.asked[shard].remove(request)
        self.tell(shard, Answered(request.id, payload))

    def tell(self, shard: int, *items: Any) -> None:
        self.sequences[shard] += 1
        first = self.sequences[shard] == 1
        header = Header(f"shard-{shard}", self.lives[shard], 0 if first else 9, self.sequences[shard])
        message = ChangeSet(header, 3, 100 + self.sequences[shard], 0.0, list(items))
        _, effects = self.state.change_set(message, self.now_ms)
        self.run(effects)

    def revive(self, shard: int) -> None:
        """The shard begins a new life, and has forgotten what it was asked."""
        self.lives[shard] += 100
        self.sequences[shard] = 0
        self.asked[shard] = []
        _, effects = self.state.announce(Announce(f"shard-{shard}", self.lives[shard]), self.now_ms)
        self.run(effects)

    def wait(self, ms: float) -> None:
        self.now_ms += ms
        self.run(self.state.wake(self.now_ms))

    def all_reply(self, kind: type, payloads: dict[int, Any], otherwise: Any) -> None:
        for shard in range(len(self.lives)):
            self.reply(shard, kind, payloads.get(shard, otherwise))

    def is_idle(self) -> bool:
        return (
            not self.state.mutations._followed
            and not self.state.mutations._sessions
            and not self.state.mutations._waits
        )


def statuses(messages: list[dict[str, Any]]) -> list[str]:
    return [each["status"] if each["type"] == "mutation" else each["type"] for each in messages]


# --- beginning ---------------------------------------------------------------------------------------------------


def test_a_mutation_goes_to_its_home_and_its_session_is_told_the_rest() -> None:
    world = World()
    session = world.session()
    home = world.begin(session, "m1", "save", delay_ms=5)
    assert world.requests(home, Mutate) == [
        Mutate(FIRST + 1, "m1", "save", b'{"id":1}', "scope:note:1", 5.0, session.identity, OF_ALL)
    ]
    assert world.requests(1 - home, Mutate) == []
    world.reply(home, Mutate, view("m1", "pending"))
    world.tell(home, view("m1", "pending"), view("m1", "paused"), view("other", "success"))
    world.tell(home, view("m1", "success", result=b'{"id":7}'), view("m1", "success"))
    assert world.hear(session) == [
        {"type": "result", "re": "m1", "mutation_id": "m1"},
        {"type": "mutation", "mutation_id": "m1", "status": "pending"},
        {"type": "mutation", "mutation_id": "m1", "status": "paused"},
        {"type": "mutation", "mutation_id": "m1", "status": "success", "result": {"id": 7}},
    ]
    assert world.is_idle()


def test_an_id_is_made_where_there_is_none() -> None:
    world = World(1)
    session = world.session()
    world.say(session, type="mutate", id=1, name="note", variables={})
    assert world.requests(0, Mutate) == [
        Mutate(FIRST + 1, "new-1", "note", b"{}", "id:new-1", author=session.identity, account=OF_ALL)
    ]


def test_homes_know_an_account_by_a_hash_which_is_one_for_all_that_it_says() -> None:
    """Its sessions at any gateway, and its requests; where nobody is asked who they are all are one."""

    def known(principal: Principal) -> str:
        return GatewayMutations(MUTATIONS).order(principal, "note", {}, "m", None).account

    def somebody(subject: str, tenant: str = "", **more: Any) -> Principal:
        return Principal(subject, Grants(mutate=["*"]), tenant=Tenant(tenant), **more)

    assert known(somebody("p", expires_ms=5.0, token_id="a later token")) == known(ALL) == OF_ALL
    others = {known(somebody(*each)) for each in (("p",), ("q",), ("p", "acme"), ("p", "globex"), ("anonymous",))}
    assert len(others) == 5
    assert all(len(each) == 32 for each in others)
    assert known(ANYBODY) == ""


def test_an_error_of_the_home_is_the_answer_and_nothing_is_kept() -> None:
    world = World(1)
    session = world.session()
    world.begin(session, "m1")
    world.reply(0, Mutate, Failure(ErrorCode.TOO_MANY, "enough"))
    assert world.hear(session) == [
        {"type": "error", "re": "m1", "code": "TOO_MANY", "message": "enough", "temporary": False}
    ]
    assert world.is_idle()


def test_an_error_is_told_as_errors_are() -> None:
    world = World(1)
    session = world.session()
    world.begin(session, "m1")
    world.reply(0, Mutate, view("m1", "error", error=("UPSTREAM_ERROR", "422")))
    assert world.hear(session)[1]["error"] == {"code": "UPSTREAM_ERROR", "message": "422", "temporary": True}
    assert world.is_idle()


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"name": None}, "BAD_REQUEST"),
        ({"name": "secret"}, "FORBIDDEN"),
        ({"name": "none"}, "UNKNOWN_MUTATION"),
        ({"variables": None}, "INVALID_VARIABLES"),
        ({"variables": [1]}, "INVALID_VARIABLES"),
        ({"name": "save"}, "INVALID_VARIABLES"),
        ({"mutation": ""}, "BAD_REQUEST"),
        ({"mutation": 7}, "BAD_REQUEST"),
        ({"mutation": "x" * (MAX_ID + 1)}, "BAD_REQUEST"),
        ({"mutation": "a\nb"}, "BAD_REQUEST"),
        ({"mutation": "é"}, "BAD_REQUEST"),
        ({"mutation": " a"}, "BAD_REQUEST"),
        ({"delay_ms": -1}, "BAD_REQUEST"),
        ({"delay_ms": True}, "BAD_REQUEST"),
        ({"delay_ms": "5"}, "BAD_REQUEST"),
        ({"delay_ms": 86_400_001}, "BAD_REQUEST"),
    ],
)
def test_what_may_not_begin(given: dict[str, Any], code: str) -> None:
    principal = Principal("p", Grants(mutate=["save", "n*"]))
    order = {"name": "note", "variables": {}, "mutation": "m", "delay_ms": None, **given}
    with pytest.raises(HarborError) as caught:
        World().state.mutations.order(principal, **order)
    assert caught.value.code == code
    assert len(caught.value.message) < 250


def test_ids_and_delays_at_their_limits() -> None:
    assert mutation_id("x" * MAX_ID) == "x" * MAX_ID
    assert mutation_id("a b/~") == "a b/~"
    order = World().state.mutations.order(ALL, "note", {}, "m", 86_400_000)
    assert order.delay_ms == 86_400_000.0


def test_a_session_follows_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_mutations, "FOLLOWED", 2)
    world = World(1)
    session = world.session()
    for n in range(3):
        world.begin(session, f"m{n}")
    assert [each["code"] for each in world.hear(session)] == ["TOO_MANY"]
    assert len(world.requests(0, Mutate)) == 2


# --- order and once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "answered", "told"),
    [
        ([], "queued", ["queued"]),
        (["pending"], "queued", ["queued", "pending"]),
        (["queued", "pending"], "queued", ["queued", "pending"]),
        (["pending", "success"], "pending", ["pending", "success"]),
        (["success"], "pending", ["pending", "success"]),
        (["pending"], "success", ["pending", "success"]),
        (["pending", "success"], "success", ["pending", "success"]),
    ],
)
def test_what_is_heard_before_the_answer_waits_for_it(before: list[str], answered: str, told: list[str]) -> None:
    world = World(1)
    session = world.session()
    world.begin(session, "m1")
    for status in before:
        world.tell(0, view("m1", status))
    assert world.hear(session) == []
    world.reply(0, Mutate, view("m1", answered))
    world.tell(0, view("m1", "success"))
    heard = statuses(world.hear(session))
    assert heard == ["result", *told, *([] if told[-1] == "success" else ["success"])]
    assert world.is_idle()


def test_a_flapping_service_fills_nothing() -> None:
    world = World(1)
    session = world.session()
    world.begin(session, "m1")
    for _ in range(100):
        world.tell(0, view("m1", "pending"), view("m1", "paused"))
    (ear,) = world.state.mutations._followed["m1"].ears.values()
    assert len(ear.held) == gateway_mutations.HELD


def test_two_sessions_and_a_repeat_attach() -> None:
    world = World(1)
    first, second = world.session("a"), world.session("b")
    world.begin(first, "m1")
    world.reply(0, Mutate, view("m1", "pending"))
    for session in (second, first):
        world.begin(session, "m1")
    world.tell(0, view("m1", "success"))
    world.reply(0, Mutate, view("m1", "pending"))
    assert statuses(world.hear(second)) == ["result", "pending", "success"]
    assert statuses(world.hear(first)) == ["result", "pending"]
    world.reply(0, Mutate, view("m1", "success"))
    assert statuses(world.hear(first)) == ["result", "success"]
    assert world.is_idle()


def test_a_session_that_is_gone_costs_nothing() -> None:
    world = World(1)
    session = world.session()
    world.begin(session, "m1")
    world.begin(session, "m2")
    world.reply(0, Mutate, view("m1", "pending"))
    world.run(world.state.close_session("s", world.now_ms))
    assert world.is_idle()
    world.reply(0, Mutate, view("m2", "pending"))
    world.tell(0, view("m1", "success"), view("m2", "success"))
    assert world.is_idle()


def come_back(world: World, session: Any) -> None:
    world.state._ask_for_own(session)
    world.run(world.state._told())


def test_who_comes_back_is_told_what_it_may_be_told() -> None:
    world = World(2)
    session = world.session("back", Principal("p", Grants(mutate=["note"])))
    come_back(world, session)
    assert [request.author for request in world.requests(0, ListMutations)] == ["back"]
    said = [view("open", "pending"), view("hidden", "pending", name="save"), view("over", "success")]
    world.reply(0, ListMutations, MutationList(said))
    world.reply(1, ListMutations, MutationList([]))
    assert [(each["mutation_id"], each["status"]) for each in world.hear(session)] == [
        ("open", "pending"),
        ("over", "success"),
    ]
    world.tell(0, view("open", "success"), view("hidden", "success", name="save"), view("over", "success"))
    assert [each["mutation_id"] for each in world.hear(session)] == ["open"]
    assert world.is_idle()
    assert not world.state._regains


def test_who_comes_back_takes_nothing_of_another_mutation_with_the_id_of_one_of_its_own() -> None:
    world = World(2)
    first, back = world.session("first"), world.session("back")
    home = world.begin(first, "m1")
    world.reply(home, Mutate, view("m1", "pending"))
    world.hear(first)
    come_back(world, back)
    world.reply(1 - home, ListMutations, MutationList([view("m1", "paused")]))
    world.reply(home, ListMutations, MutationList([]))
    assert (world.hear(first), world.hear(back)) == ([], [])
    world.tell(home, view("m1", "success"))
    assert (statuses(world.hear(first)), world.hear(back)) == (["success"], [])


def test_who_comes_back_and_asks_again_is_told_after_its_answer() -> None:
    world = World(1)
    session = world.session("back")
    come_back(world, session)
    world.begin(session, "m1")
    world.reply(0, ListMutations, MutationList([view("m1", "pending")]))
    assert world.hear(session) == []
    world.reply(0, Mutate, view("m1", "pending"))
    assert statuses(world.hear(session)) == ["result", "pending"]


def test_who_is_gone_again_is_asked_for_no_longer() -> None:
    world = World(1)
    session = world.session("back")
    come_back(world, session)
    world.run(world.state.close_session("back", world.now_ms))
    assert not world.state._shards[0].outstanding
    world.reply(0, ListMutations, MutationList([view("m1", "pending")]))
    assert world.is_idle()


def test_the_author_of_a_delayed_one_is_told_until_when_it_can_be_undone() -> None:
    world = World(1)
    session = world.session()
    world.begin(session, "m1", delay_ms=5000)
    world.reply(0, Mutate, view("m1", "scheduled", due_at=6000))
    messages = world.hear(session)
    assert statuses(messages) == ["result", "scheduled", "notice"]
    assert messages[2] == {
        "type": "notice",
        "level": "info",
        "code": "undo_available",
        "message": "note can be undone until it is sent",
        "mutation_id": "m1",
        "until_ms": 6000,
    }


# --- waiting -----------------------------------------------------------------------------------------------------


def waiting(world: World, mutation: str = "m1") -> int:
    order = world.state.mutations.order(ALL, "note", {}, mutation, None)
    ticket = world.ticket()
    world.run(world.state.mutate(ticket, order, world.now_ms, waits=True))
    return ticket


def test_who_waits_is_answered_once_it_is_settled() -> None:
    world = World(1)
    ticket = waiting(world)
    world.reply(0, Mutate, view("m1", "queued"))
    world.tell(0, view("m1", "pending"))
    assert world.responses == {}
    world.tell(0, view("m1", "success"))
    assert world.responses == {ticket: [view("m1", "success")]}
    assert world.is_idle()


@pytest.mark.parametrize(("before", "answered"), [("success", "pending"), ("pending", "success")])
def test_the_outcome_may_be_here_before_the_answer(before: str, answered: str) -> None:
    world = World(1)
    ticket = waiting(world)
    world.tell(0, view("m1", before))
    assert world.responses == {}
    world.reply(0, Mutate, view("m1", answered))
    assert world.responses == {ticket: [view("m1", "success")]}
    assert world.is_idle()


def test_who_has_waited_long_enough_is_told_how_it_is() -> None:
    world = World(1)
    ticket = waiting(world)
    world.reply(0, Mutate, view("m1", "queued"))
    world.tell(0, view("m1", "paused"))
    assert world.state.deadline() == 1000.0 + REQUEST_MS
    world.wait(REQUEST_MS - 1)
    assert world.responses == {}
    world.wait(1)
    assert world.responses == {ticket: [view("m1", "paused")]}
    assert world.is_idle()
    assert world.state.deadline() is None


def test_a_home_that_says_nothing_is_a_timeout() -> None:
    world = World(1)
    ticket = waiting(world)
    world.tell(0, view("m1", "pending"))
    world.wait(REQUEST_MS)
    assert [each.code for each in world.responses[ticket]] == ["TIMEOUT"]
    assert world.is_idle()


def test_who_hangs_up_frees_what_waited() -> None:
    world = World(1)
    answered, unanswered = waiting(world, "m1"), waiting(world, "m2")
    world.reply(0, Mutate, view("m1", "pending"))
    for ticket in (answered, unanswered):
        world.state.abandon(ticket)
    assert world.is_idle()
    world.tell(0, view("m1", "success"))
    assert world.responses == {}


def test_a_refused_one_is_not_waited_for() -> None:
    world = World(1)
    ticket = waiting(world)
    world.reply(0, Mutate, Failure(ErrorCode.INVALID_VARIABLES, "no"))
    assert world.responses == {ticket: [Failure(ErrorCode.INVALID_VARIABLES, "no")]}
    assert world.is_idle()


# --- a home's new life -------------------------------------------------------------------------------------------


def test_a_home_that_lives_anew_is_asked_what_became_of_it() -> None:
    world = World(1)
    session = world.session()
    world.begin(session, "m1")
    ticket = waiting(world, "m2")
    world.reply(0, Mutate, view("m1", "pending"))
    world.reply(0, Mutate, view("m2", "pending"))
    world.begin(session, "m3")
    world.revive(0)
    assert [each.mutation for each in world.requests(0, ListMutations)] == ["m1", "m2"]
    assert [each.mutation for each in world.requests(0, Mutate)] == ["m3"], "asked again as it was"
    world.reply(0, ListMutations, MutationList([view("m1", "success")]))
    assert statuses(world.hear(session)) == ["result", "pending", "success"]
    world.reply(0, ListMutations, MutationList([view("m2", "queued")]))
    assert world.responses == {}
    world.tell(0, view("m2", "success"))
    assert world.responses == {ticket: [view("m2", "success")]}


def test_a_session_hears_nothing_more_of_what_it_may_not_begin_any_more() -> None:
    world = World(1)
    session = world.session(principal=Principal("p", Grants(mutate=["*"])))
    for mutation, name in [("m1", "note"), ("m2", "save"), ("m3", "note")]:
        world.begin(session, mutation, name)
    world.reply(0, Mutate, view("m1", "pending"))
    world.reply(0, Mutate, view("m2", "pending", name="save"))
    assert statuses(world.hear(session)) == ["result", "pending"] * 2
    world.run(world.state.admit(session, Principal("p", Grants(mutate=["save"])), world.now_ms))
    world.reply(0, Mutate, view("m3", "pending"))
    world.tell(0, view("m1", "success"), view("m2", "success", name="save"), view("m3", "success"))
    assert [each["mutation_id"] for each in world.hear(session)] == ["m3", "m2"], "the result of m3, and nothing of it"
    assert world.is_idle()


def test_what_a_home_has_lost_is_an_error() -> None:
    world = World(1)
    session = world.session(principal=Principal("p", Grants(mutate=["note"])))
    world.begin(session, "m1")
    world.reply(0, Mutate, view("m1", "pending"))
    world.revive(0)
    world.revive(0)
    assert len(world.requests(0, ListMutations)) == 1
    world.reply(0, ListMutations, MutationList([]))
    last = world.hear(session)[-1]
    assert (last["status"], last["error"]["code"]) == ("error", "UNAVAILABLE")
    assert world.is_idle()


def move(world: World, shards: int) -> None:
    """There are more shards, and slots are elsewhere from now on."""
    for shard in range(len(world.lives), shards):
        world.lives.append(20 + shard)
        world.sequences.append(0)
        world.asked.append([])
    world.slots = assign_slots(range(shards), world.slots.epoch + 1)
    _, effects = world.state.rebalance(Rebalance("release", world.slots, 1), world.now_ms)
    world.run(effects)


def test_all_are_asked_for_what_may_have_another_home_and_only_the_home_can_have_lost_it() -> None:
    world = World(2)
    session = world.session()
    mutation = next(f"m{n}" for n in range(50) if world.home(f"id:m{n}") == 1)
    world.begin(session, mutation)
    world.reply(1, Mutate, view(mutation, "pending", number=7))
    world.revive(1)  # it asks the home that was
    move(world, 3)
    world.hear(session)
    assert [[each.mutation for each in world.requests(shard, ListMutations)] for shard in (0, 1)] == [
        [mutation],
        [mutation, mutation],
    ]
    world.reply(1, ListMutations, MutationList([]))
    world.reply(0, ListMutations, MutationList([view(mutation, "success", number=3)]))
    assert world.hear(session) == [], "one is not the home any more, the other has another mutation of that id"
    world.tell(0, view(mutation, "success", number=7))
    assert statuses(world.hear(session)) == ["success"]
    assert world.is_idle()


# --- undo --------------------------------------------------------------------------------------------------------

EMPTY, MISSING = MutationList([]), Failure(ErrorCode.NOT_FOUND, "no")


def undone(world: World, session: Any, mutation: str = "m1") -> None:
    world.say(session, type="undo", id="u", mutation_id=mutation)


def test_undo_finds_the_home() -> None:
    world = World()
    session = world.session()
    home = world.begin(session, "m1", delay_ms=50)
    world.reply(home, Mutate, view("m1", "scheduled"))
    assert statuses(world.hear(session)) == ["result", "scheduled"]
    undone(world, session)
    world.all_reply(ListMutations, {home: MutationList([view("m1", "scheduled")])}, EMPTY)
    assert [len(world.requests(n, Undo)) for n in range(2)] == [1, 1]
    world.tell(home, view("m1", "cancelled"))
    assert world.hear(session) == [], "not before the result"
    world.all_reply(Undo, {home: view("m1", "cancelled")}, MISSING)
    assert world.hear(session) == [
        {"type": "result", "re": "u"},
        {"type": "mutation", "mutation_id": "m1", "status": "cancelled"},
    ]
    world.tell(home, view("m1", "cancelled"))
    assert world.hear(session) == []
    assert world.is_idle()


def test_another_session_may_undo_and_the_author_hears_of_it() -> None:
    world = World()
    author, other = world.session("author"), world.session("other")
    home = world.begin(author, "m1")
    world.reply(home, Mutate, view("m1", "queued"))
    undone(world, other)
    world.all_reply(ListMutations, {home: MutationList([view("m1", "queued")])}, EMPTY)
    world.all_reply(Undo, {home: view("m1", "cancelled")}, MISSING)
    world.tell(home, view("m1", "cancelled"))
    assert statuses(world.hear(author)) == ["result", "queued", "cancelled"]
    assert statuses(world.hear(other)) == ["result", "cancelled"]
    assert world.is_idle()


def test_what_was_sent_cannot_be_undone_and_goes_on() -> None:
    world = World()
    session = world.session()
    home = world.begin(session, "m1")
    world.reply(home, Mutate, view("m1", "pending"))
    world.hear(session)
    undone(world, session)
    world.tell(home, view("m1", "success"))
    world.all_reply(ListMutations, {home: MutationList([view("m1", "success")])}, EMPTY)
    error, last = world.hear(session)
    assert (error["code"], error["details"]) == ("CONFLICT", {"status": "success"})
    assert last["status"] == "success"
    assert world.is_idle()


def test_what_is_sent_meanwhile_is_looked_at_once_more() -> None:
    world = World()
    session = world.session()
    undone(world, session)
    conflict = Failure(ErrorCode.CONFLICT, "too late")
    world.all_reply(ListMutations, {1: MutationList([view("m1", "queued")])}, EMPTY)
    world.all_reply(Undo, {1: conflict}, MISSING)
    world.all_reply(ListMutations, {1: MutationList([view("m1", "pending")])}, EMPTY)
    (error,) = world.hear(session)
    assert (error["code"], error["details"]) == ("CONFLICT", {"status": "pending"})
    assert world.is_idle()


def test_but_not_for_ever() -> None:
    world = World(1)
    session = world.session()
    undone(world, session)
    for _ in range(2):
        world.reply(0, ListMutations, MutationList([view("m1", "paused")]))
        world.reply(0, Undo, Failure(ErrorCode.CONFLICT, "too late"))
    (error,) = world.hear(session)
    assert (error["code"], world.asked) == ("CONFLICT", [[]])


def test_an_undo_repeated_is_answered_as_the_first() -> None:
    world = World(1)
    session = world.session()
    undone(world, session)
    world.reply(0, ListMutations, MutationList([view("m1", "cancelled")]))
    assert statuses(world.hear(session)) == ["result", "cancelled"]
    assert world.requests(0, Undo) == []


@pytest.mark.parametrize(
    ("grants", "found", "code"),
    [
        (Grants(mutate=["*"]), EMPTY, "NOT_FOUND"),
        (Grants(mutate=["save"]), MutationList([view("m1", "queued")]), "FORBIDDEN"),
        (Grants(mutate=["*"]), Failure(ErrorCode.TIMEOUT, "late"), "TIMEOUT"),
    ],
)
def test_what_is_not_there_or_not_the_callers(grants: Grants, found: Any, code: str) -> None:
    world = World()
    session = world.session(principal=Principal("p", grants))
    undone(world, session)
    world.all_reply(ListMutations, {1: found}, EMPTY)
    assert [each["code"] for each in world.hear(session)] == [code]
    assert world.requests(1, Undo) == []
    assert world.is_idle()


def test_an_admin_may_undo_anything() -> None:
    world = World(1)
    session = world.session(principal=Principal("p", Grants(admin=True)))
    undone(world, session)
    world.reply(0, ListMutations, MutationList([view("m1", "queued")]))
    assert len(world.requests(0, Undo)) == 1


def test_an_undo_without_an_id_is_refused() -> None:
    world = World()
    session = world.session()
    world.say(session, type="undo", id=1)
    world.say(session, type="undo", mutation_id="m")
    assert [each["code"] for each in world.hear(session)] == ["BAD_REQUEST", "BAD_MESSAGE"]
    assert world.asked == [[], []]


# --- listing -----------------------------------------------------------------------------------------------------


def test_lists_are_joined_oldest_first_and_show_what_one_may_begin() -> None:
    lists: list[Any] = [
        MutationList([view("b", "queued", created_at=2), view("d", "queued", created_at=4, name="secret")]),
        MutationList([view("a", "queued", created_at=1), view("c", "queued", created_at=3)]),
    ]
    assert [each.mutation for each in visible(lists, Principal("p", Grants(mutate=["no*"])))] == ["a", "b", "c"]
    assert [each.mutation for each in visible(lists, Principal("p", Grants(admin=True)))] == ["a", "b", "c", "d"]
    assert visible(lists, Principal("p", Grants(read=[[]]))) == []


def test_statuses() -> None:
    assert statuses_of("queued,success") == ["queued", "success"]
    for text in ("", "queued,", "done", "Queued"):
        with pytest.raises(HarborError, match="status is of"):
            statuses_of(text)


# --- what the author sees ----------------------------------------------------------------------------------------


def step(version: int, *mutations: str, patch: bytes = b"[]") -> Change:
    return Change(KEY, version - 1, version, None, patch, 1, 60, mutations=list(mutations))


def watching(world: World, session: Any, mode: str) -> int:
    world.say(session, type="subscribe", id="w", prefix=["note"], mode=mode)
    home = world.slots.shard(CanonicalKey(KEY))
    for shard in range(2):
        (watch,) = world.requests(shard, Watch)
        entry = EntryView(KEY, 5, b'{"n":5}', 50, "success", "idle")
        world.tell(shard, *([Snapshot(watch.id, entry)] if shard == home else []), Ready(watch.id, 100))
    world.hear(session)
    return home


@pytest.mark.parametrize("mode", ["data", "patch"])
def test_the_author_sees_its_own_at_once_and_an_empty_change_too(mode: str) -> None:
    world = World()
    session = world.session(principal=Principal("p", Grants(read=[[]], mutate=["*"])))
    shard = watching(world, session, mode)
    home = world.begin(session, "m1")
    world.tell(shard, step(6, "others"))
    assert world.hear(session) == []
    world.tell(shard, step(7, "m1", patch=b'[{"op":"replace","path":"/n","value":7}]'))
    seen, position = world.hear(session)
    assert (seen["from"], seen["version"], seen["mutations"]) == (5, 7, ["others", "m1"])
    assert seen.get("data") == (None if mode == "patch" else {"n": 7})
    assert position["type"] == "position"
    world.reply(home, Mutate, view("m1", "pending"))
    world.tell(shard, step(8, "m1"))
    seen = next(each for each in world.hear(session) if each["type"] == "change")
    assert (seen["version"], seen["mutations"]) == (8, ["m1"])
    assert seen.get("patch") == ([] if mode == "patch" else None)


def test_what_is_settled_is_known_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_mutations, "RECENT", 2)
    world = World(1)
    session = world.session()
    for n in range(3):
        world.begin(session, f"m{n}")
        world.reply(0, Mutate, view(f"m{n}", "success"))
    assert [world.state.mutations.is_own([f"m{n}"]) for n in range(3)] == [False, True, True]


def test_others_see_it_with_the_next_flush() -> None:
    world = World()
    session = world.session(principal=Principal("p", Grants(read=[[]])))
    shard = watching(world, session, "patch")
    world.tell(shard, step(6, "m1"))
    assert world.hear(session) == []
    world.wait(20)
    assert world.hear(session)[0]["mutations"] == ["m1"]


@pytest.mark.parametrize("kind", ["mutate", "undo"])
def test_what_homes_have_no_room_for_leaves_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    session = world.session()
    with monkeypatch.context() as full:
        full.setattr(gateway_state, "MAX_REQUESTS", 0)
        world.say(session, type=kind, id=1, name="note", variables={"id": 1}, mutation_id="m1")
    assert [(each["re"], each["code"]) for each in world.hear(session)] == [(1, "UNAVAILABLE")]
    assert world.commands == {}
    assert not world.state.mutations._followed


def test_who_speaks_late_after_a_move_is_not_taken_for_the_home() -> None:
    mutations = GatewayMutations({})
    mutations.attach("s", "m1", 2)
    mutations.answered("s", "m1", view("m1", "queued"))
    assert mutations.moved({2}) == ["m1"]
    assert said(mutations.heard(view("m1", "pending"), 2)) == ["pending"]
    assert mutations.moved({1}) == ["m1"]
    assert said(mutations.heard(view("m1", "queued"), 1)) == ["queued"]
    assert [mutations.found("m1", MutationList([]), shard) for shard in (1, 2)] == [[], []]
    assert said(mutations.found("m1", MutationList([view("m1", "pending")]), 0)) == ["pending"]
    assert mutations.heard(view("m1", "success"), 2) == []
    assert said(mutations.found("m1", MutationList([]), 0)) == ["error"]


def test_what_did_not_move_has_the_home_it_had() -> None:
    mutations = GatewayMutations({})
    mutations.attach("s", "m1", 2)
    mutations.answered("s", "m1", view("m1", "queued"))
    mutations.moved({2})
    assert mutations.found("m1", MutationList([view("m1", "queued")]), 2) == []
    assert said(mutations.heard(view("m1", "pending"), 2)) == ["pending"]
    assert said(mutations.found("m1", MutationList([]), 2)) == ["error"]


def said(news: News) -> list[Any]:
    return [each.members["status"] for each in news if isinstance(each, Said)]
