"""Slots that move between shards, as clients, gateways and services see it: mutations, writes, presence, positions."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from msgspec.structs import replace

from cluster.core import shard_slots, shard_state
from cluster.core.declared_query import Response
from cluster.core.grants import ANYBODY
from cluster.core.history import Life
from cluster.core.messages import (
    Act,
    Answers,
    Edit,
    EntryView,
    Erase,
    Failure,
    Full,
    Matched,
    Mutate,
    MutationView,
    Outdated,
    Read,
    Rebalance,
    Refused,
    Requests,
    SliceTaken,
    Write,
    Written,
)
from cluster.core.placement import SlotMap, assign_slots, slot
from cluster.core.position import scope_of
from cluster.core.query_key import CanonicalKey
from cluster.core.shard_state import EPOCH_SHIFT, Commit
from cluster.core.slot_move import Phase
from cluster.core.transaction import Stored
from cluster.storage import MemoryStore
from tests.core.test_gateway_presence import PATTERNS
from tests.core.test_mutations_whole import MAKE, SAVE, SLOWLY, mutate
from tests.in_process import Client, InProcess, new_shard

KEYS = [f'["note",{n}]' for n in range(12)]


@pytest.fixture(autouse=True, params=["at once", "step by step"])
def steps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "step by step":
        monkeypatch.setattr(shard_slots, "STEP_BYTES", 1)
        monkeypatch.setattr(shard_slots, "STEP_ROWS", 1)
        monkeypatch.setattr(shard_slots, "SORT_ROWS", 1)


def world(shards: int) -> InProcess:
    made = InProcess(
        shards=shards,
        gateways=2,
        mutations={"save": SAVE, "slowly": SLOWLY, "make": MAKE},
    )
    for n, key in enumerate(KEYS):
        made.write(key, {"id": n, "text": "old"})
    made.settle()
    return made


def watching(made: InProcess, name: str, gateway: str = "gateway-0") -> Client:
    client = Client(made, name, gateway)
    client.subscribe("w", prefix=["note"], mode="patch")
    client.subscribe("one", key=["note", 1])
    made.settle()
    client.read()
    return client


def kinds(messages: list[dict[str, Any]]) -> set[str]:
    return {each["type"] for each in messages}


def in_step(made: InProcess, client: Client) -> None:
    assert client.views["w"].entries == made.oracle('["note"]', prefix=True)
    assert client.views["one"].entries == made.oracle('["note",1]', prefix=False)


MOVES = [(1, 3), (3, 1), (2, 4), (4, 2)]


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_who_watches_is_told_nothing_of_a_move_and_all_of_what_comes_after(before: int, after: int) -> None:
    made = world(before)
    clients = [watching(made, "a"), watching(made, "b", "gateway-1")]
    made.move(after)
    made.settle(2_000.0)
    assert [each for client in clients for each in client.read()] == []
    for number, key in enumerate(KEYS):
        assert [shard.identity for shard in made.shards.values() if shard.cache.get(key)] == [
            made.shard_of(key).identity
        ]
        made.write(key, {"text": f"new{number}"})
    made.write('["note","another"]', 1)
    made.settle()
    for client in clients:
        assert kinds(client.read()) == {"change", "position"}
        in_step(made, client)


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_mutations_move_with_their_scope_and_views_stay_as_they_are(before: int, after: int) -> None:
    made = world(before)
    client = watching(made, "a")
    for n in range(12):
        mutate(client, f"m{n}", id=n, text="mine")
    mutate(client, "late", "slowly", id=3, text="later")
    made.settle()
    client.read()
    shown = dict(client.views["w"].entries)
    assert {data["text"] for _, data in shown.values()} == {"mine", "later"}
    made.move(after)
    made.settle(500.0)
    messages = client.read()
    assert messages == [], messages
    for shard in made.shards.values():
        for record in shard.mutations.queue.records.values():
            assert made.slots.shard(CanonicalKey(record.scope)) == shard.mutations.shard
    settled = set()
    while made.sent:  # what was under way is sent again by the next home, with the key it had
        call = made.sent[0][1]
        settled.add(call.request.idempotency_key)
        if made.sent[0][0] not in made.shards:
            made.sent.popleft()
            continue
        made.answered(Response(orjson.dumps({"id": int(call.mutation[1:] or 0) if call.mutation != "late" else 3})))
        made.settle()
    made.settle(6_000.0)
    while made.sent:
        made.answered(Response(b"{}"))
        made.settle()
    messages = client.read()
    told = {each["mutation_id"]: each["status"] for each in messages if each["type"] == "mutation"}
    assert told == {**{f"m{n}": "success" for n in range(12)}, "late": "success"}
    assert "reset" not in kinds(messages)
    assert client.views["w"].entries['["note",5]'][1]["text"] == "mine"
    assert client.views["w"].entries['["note",3]'][1]["text"] == "later"
    assert all(not shard.mutations.laid.mutations for shard in made.shards.values())
    assert {f"m{n}" for n in range(12)} <= settled


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_an_outcome_that_comes_before_the_gateway_has_heard_of_the_move_is_told_after_it(
    before: int, after: int
) -> None:
    made = world(before)
    client = watching(made, "a")
    tickets = [made.tick() for _ in range(12)]
    for n, ticket in enumerate(tickets):
        order = made.gateway.mutations.order(ANYBODY, "save", {"id": n, "text": "mine"}, f"m{n}", None)
        made.run("gateway-0", made.gateway.mutate(ticket, order, made.now_ms, session=client.session, waits=True))
        made.settle()
        made.run("gateway-0", made.gateway.mutation_answered(client.session, f"m{n}", view_of(made, f"m{n}")))
    client.read()
    made.names.remove("gateway-0")
    made.move(after)
    while made.sent:
        if made.sent[0][0] in made.shards:
            made.answered(Response(b"{}"))
        else:
            made.sent.popleft()
        made.settle()
    made.receive("gateway-0", Rebalance("release", made.slots, 1))
    made.settle(1_000.0)
    told = {each["mutation_id"]: each["status"] for each in client.read() if each["type"] == "mutation"}
    assert told == {f"m{n}": "success" for n in range(12)}
    assert [made.responses[ticket][0].status for ticket in tickets] == ["success"] * 12


def view_of(made: InProcess, mutation: str) -> MutationView:
    """Return how a mutation is at its home."""
    records = (shard.mutations.queue.records.get(mutation) for shard in made.shards.values())
    return next(record.view() for record in records if record is not None)


def test_what_comes_back_at_the_end_of_a_cut_is_stored_in_one_transaction_with_it() -> None:
    made = world(2)
    client = watching(made, "a")
    for n in range(12):
        mutate(client, f"m{n}", id=n, text="mine")
    made.settle()
    shard = made.shards["shard-0"]
    calls = [call for name, call in made.sent if name == "shard-0"]
    assert len(calls) > 1
    next_map = assign_slots(range(2), 2)
    shard.rebalance(Rebalance("release", made.slots, 1), made.now_ms)
    shard.rebalance(Rebalance("seal", next_map, 2), made.now_ms)
    shard._unstored.keeps = True
    for call in calls:
        assert shard.mutated(call, Response(b"{}"), made.now_ms) == []
    _, effects = shard.rebalance(Rebalance("release", made.slots, 2), made.now_ms)
    (commit,) = [effect for effect in effects if isinstance(effect, Commit)]
    assert commit.transaction.mutations.keys() >= {call.mutation for call in calls}


def test_a_write_that_is_repeated_after_a_move_has_the_answer_of_before() -> None:
    made = world(1)
    first = made.shards["shard-0"]._write(Write(1, "once", KEYS[0], b"1"))
    assert isinstance(first, Written)
    made.move(3)
    for shard in made.shards.values():
        assert shard._write(Write(2, "once", KEYS[0], b"2")) == first


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_what_comes_during_a_cut_is_turned_away_and_after_it_asked_for_elsewhere(before: int, after: int) -> None:
    made = world(before)
    client = watching(made, "a")
    ticket = made.tick()
    seen: list[Any] = []

    def meanwhile(phase: Phase) -> None:
        if phase is Phase.SEND and not seen:
            for number, key in enumerate(KEYS):
                canonical = CanonicalKey(key)
                effects = made.gateway.request(
                    ticket + number, canonical, lambda n, key=key: Write(n, f"cut{n}", key, b'"cut"'), made.now_ms
                )
                made.run("gateway-0", effects)
            seen.extend(made.receive(shard.address, shard.out.in_flight) for shard in made.gateway._shards)

    made.move(after, meanwhile)
    made.settle(1_000.0)
    assert all(isinstance(each, Full) for each in seen)
    assert all(isinstance(made.responses[ticket + number][0], Written) for number in range(len(KEYS)))
    assert {entry.value.object() for shard in made.shards.values() for entry in shard.cache} == {"cut"}
    client.read()
    in_step(made, client)


def asked(number: int, version: int) -> dict[str, tuple[Callable[[int], Any], type]]:
    """What may be under way about an entry at a version, and what it comes to."""
    key, scope = KEYS[number], f"scope:note:{number}"
    edits = b'[{"op":"test","path":"/text","value":"old"},{"op":"replace","path":"/text","value":"new"}]'
    variables = orjson.dumps({"id": number, "text": "new"})
    return {
        "put": (lambda n: Write(n, "once", key, b'"new"', version), Written),
        "edit": (lambda n: Edit(n, "once", key, edits, None), Written),
        "erase": (lambda n: Erase(n, "once", key, version), Written),
        "read": (lambda n: Read(n, key), EntryView),
        "invalidate": (lambda n: Act(n, "invalidate", key, True), Matched),
        "mutate": (lambda n: Mutate(n, "once", "save", variables, scope), MutationView),
    }


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("kind", asked(0, 0))
def test_what_is_under_way_to_a_shard_that_ends_is_done_once(kind: str, is_done: bool) -> None:
    """`is_done`: by the shard that ends, whose answer was lost."""
    made = world(4)
    about = "scope:note:{}" if kind == "mutate" else '["note",{}]'
    number = next(n for n in range(len(KEYS)) if made.slots.shard(CanonicalKey(about.format(n))) == 3)
    entry = made.shard_of(KEYS[number]).cache.get(KEYS[number])
    assert entry is not None
    make, expected = asked(number, entry.version)[kind]
    ticket, sent = made.tick(), []

    def meanwhile(phase: Phase) -> None:
        if not sent and phase is (Phase.COPY if is_done else Phase.SEND):
            sent.extend(made.gateway.request(ticket, CanonicalKey(about.format(number)), make, made.now_ms))
            (send,) = sent
            assert isinstance(made.receive(send.to, send.message), Answers if is_done else Full)
            made.gateway.unanswered(send.to, send.message, made.now_ms + 60_000.0)

    made.move(2, meanwhile)
    made.settle(1_000.0)
    assert isinstance(made.responses[ticket][0], expected)


@pytest.mark.parametrize("word", ["announced", "refused"])
def test_what_waited_for_a_shard_that_is_killed_after_a_move_is_asked_of_the_next_owner(word: str) -> None:
    made = world(1)
    watching(made, "a")
    key = next(key for key in KEYS if assign_slots(range(2), 2).shard(CanonicalKey(key)) == 1)
    ticket, sent = made.tick(), []

    def meanwhile(phase: Phase) -> None:
        if not sent and phase is Phase.SEND:
            sent.extend(
                made.gateway.request(ticket, CanonicalKey(key), lambda n: Write(n, "once", key, b'"new"'), made.now_ms)
            )
            (send,) = sent
            assert isinstance(made.receive(send.to, send.message), Full)
            made.gateway.unanswered(send.to, send.message, made.now_ms + 60_000.0)

    made.move(2, meanwhile)
    made.restart("shard-0")
    made.receive("shard-0", Rebalance("release", made.slots, 0))
    if word == "announced":
        made.settle(200.0)
    else:
        made.run("gateway-0", made.gateway.answered("shard-0", sent[0].message, Refused(made.incarnation), made.now_ms))
    made.settle(1_000.0)
    assert isinstance(made.responses[ticket][0], Written)
    assert [shard.identity for shard in made.shards.values() if shard.cache.get(key)] == ["shard-1"]


def test_a_shard_takes_nothing_in_that_is_anothers_by_the_map_both_know() -> None:
    made = world(2)
    made.receive("shard-0", Rebalance("release", made.slots, 0))
    foreign = next(key for key in KEYS if made.slots.shard(CanonicalKey(key)) == 1)
    out = made.gateway._shards[0].out
    wrong = Requests(out.header(), [Write(1, "once", foreign, b"1"), Read(2, '["none"]', "never")], made.slots.epoch)
    assert made.receive("shard-0", wrong) == Outdated(made.slots)
    assert made.shards["shard-0"].cache.get(foreign) is None


def test_entries_of_a_shard_that_is_made_again_are_checked_as_ever() -> None:
    made = world(2)
    checks = made.gateway.anti_entropy
    assert checks.asks(1, [KEYS[0]])
    made.move(1)
    assert checks.asks(1, [KEYS[0]])


def test_a_life_that_begins_in_a_cut_lays_nothing_over_what_is_anothers_after_it() -> None:
    made = world(1)
    client = watching(made, "a")
    for n in range(12):
        mutate(client, f"m{n}", id=n, text="mine")
    made.settle()
    shard, next_map = made.shards["shard-0"], assign_slots(range(2), 2)
    entries = [stored for entry in shard.cache if (stored := shard._stored(entry.key)) is not None]
    records = list(shard.mutations.queue.records.values())
    stored = Stored(1, shard.offset, entries, {}, {}, {}, [Life(1, shard.offset, 0)], 0, [])
    again = made.shards["shard-0"] = made.shard_life(0)
    again.restore(replace(stored, mutations=records, map=made.slots, next_map=next_map), made.now_ms, lambda _: True)
    again.slots.await_word(made.now_ms)
    while again.slots.map != next_map:
        again.rebalance(Rebalance("drop", next_map, 7), made.now_ms)
    again.rebalance(Rebalance("release", next_map, 7), made.now_ms)
    assert again.mutations.laid.by_key
    assert {
        next_map.shard(CanonicalKey(key))
        for key in [*again.mutations.laid.by_key, *(entry.key for entry in again.cache)]
    } == {0}


def test_a_request_made_by_an_older_map_is_answered_with_the_newer() -> None:
    made = world(1)
    made.move(2)
    link = made.gateway._shards[0].out
    late = Requests(link.header(), [Read(1, KEYS[0])], 1)
    assert made.receive("shard-0", late) == Outdated(made.slots)


def test_a_gateway_that_was_not_told_learns_it_from_a_shard() -> None:
    made = world(1)
    gateway = made.gateways["gateway-1"]
    client = watching(made, "b", "gateway-1")
    made.names.remove("gateway-1")
    made.move(3)
    made.names.append("gateway-1")
    assert gateway._slots.epoch == 1
    made.write(KEYS[1], {"text": "after"})
    for number, key in enumerate(KEYS):
        effects = gateway.request(100 + number, CanonicalKey(key), lambda n, key=key: Read(n, key), made.now_ms)
        made.run("gateway-1", effects)
    made.settle(500.0)
    assert gateway._slots == made.slots
    assert not any(isinstance(made.responses[100 + number][0], Failure) for number in range(len(KEYS)))
    client.read()
    in_step(made, client)


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_tokens_of_before_go_on_exactly_where_they_were(before: int, after: int) -> None:
    made = world(before)
    client = watching(made, "a")
    for key in KEYS[:4]:
        made.write(key, {"text": "missed before"})
    tokens = {sub: client.views[sub].token for sub in ("w", "one")}
    held = {sub: dict(client.views[sub].entries) for sub in ("w", "one")}
    made.move(after)
    for key in KEYS[2:6]:
        made.write(key, {"text": "missed after"})
    made.move(before)
    for key in KEYS[5:8]:
        made.write(key, {"text": "missed at last"})
    made.settle()
    other = Client(made, "c", "gateway-1")
    for sub, more in (("w", {"prefix": ["note"]}), ("one", {"key": ["note", 1]})):
        other.subscribe(sub, since=tokens[sub], **more)
        other.views[sub].entries = dict(held[sub])
        other.views[sub].complete = True
    made.settle()
    messages = other.read()
    assert kinds(messages) == {"change", "position"}
    changed = [
        orjson.dumps(each["key"]).decode() for each in messages if each["type"] == "change" and each["sub"] == "w"
    ]
    assert sorted(changed) == sorted(KEYS[:8])
    in_step(made, other)


def test_a_token_that_says_nothing_is_reset_after_a_move_too() -> None:
    made = world(1)
    made.move(3)
    other = Client(made, "c")
    nothing = made.gateway.tokens.position(scope_of([('["note"]', True)])).decode()
    other.subscribe("w", prefix=["note"], since=nothing)
    made.settle()
    assert other.read()[0]["type"] == "reset"


def test_entries_are_looked_at_once_for_all_receivers_and_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = world(1)
    shard = made.shards["shard-0"]
    looked: list[str] = []

    def note(key: CanonicalKey) -> int:
        looked.append(key)
        return slot(key)

    for module in (shard_slots, shard_state):
        monkeypatch.setattr(module, "slot", note)
    made.receive("shard-0", Rebalance("release", made.slots, 0))
    next_map = assign_slots(range(16), 2)
    most = 0
    while not made.receive("shard-0", Rebalance("copy", next_map, 7)).is_done:
        before = len(looked)
        shard.slots.sends(made.now_ms)
        most = max(most, len(looked) - before)
        for number, outward in shard.slots._out.items():
            if (message := outward.link.in_flight) is not None:
                shard.slots.answered(f"shard-{number}", message, SliceTaken(1), made.now_ms)
    assert sorted(looked) == sorted(KEYS)
    assert most <= shard_slots.SORT_ROWS
    sent = {number: outward.entries for number, outward in shard.slots._out.items() if outward.entries}
    assert sent == Counter(owner for key in KEYS if (owner := next_map.shard(CanonicalKey(key))))


def test_a_move_that_is_given_up_changes_nothing() -> None:
    made = world(1)
    client = watching(made, "a")
    made.shards["shard-1"] = made.shard_life(1)
    next_map = assign_slots([0, 1], 2)
    for phase in ("copy", "seal", "send"):
        for name in ("shard-0", "shard-1"):
            made.receive(name, Rebalance("release", made.slots, 0)) if phase == "copy" else None
            made.receive(name, Rebalance(phase, next_map, 7))
        made.settle()
    assert made.shards["shard-0"].slots.is_closed
    for name in ("shard-0", "shard-1"):
        made.receive(name, Rebalance("release", made.slots, 7))
    late = made.receive("shard-1", Rebalance("adopt", next_map, 7))
    assert not late.is_done
    assert not made.shards["shard-1"].slots.is_sealed
    assert len(made.shards["shard-1"].cache) == 0
    made.write(KEYS[1], {"text": "goes on"})
    made.settle()
    assert kinds(client.read()) == {"change", "position"}


def test_what_has_arrived_is_others_until_the_map_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_slots, "STEP_BYTES", 1)
    made = world(1)
    client = watching(made, "a")
    mutate(client, "m1", id=1, text="mine")
    made.settle()
    shard = made.shards["shard-1"] = made.shard_life(1)
    shard._unstored.keeps = True
    store, next_map = MemoryStore(), assign_slots([0, 1], 2)

    def told(phase: str, slots: SlotMap, attempt: int) -> None:
        for effect in shard.rebalance(Rebalance(phase, slots, attempt), made.now_ms)[1]:
            if isinstance(effect, Commit):
                store.commit(effect.transaction)

    made.receive("shard-0", Rebalance("release", made.slots, 0))
    told("release", made.slots, 0)
    for attempt in (7, 8):
        for phase in ("copy", "seal", "send"):
            made.receive("shard-0", Rebalance(phase, next_map, attempt))
            told(phase, next_map, attempt)
            made.settle()
        told("adopt", next_map, attempt)
        told("adopt", next_map, attempt)
        assert len(shard.cache) == 2
        assert shard.mutations.laid.by_key.keys() <= {KEYS[1]}
        stored = store.load()
        assert stored is not None
        assert len(stored.entries) == 2
        again = new_shard(1, 9, 1.0, [], [])
        again.restore(stored, 1.0, lambda _: True)
        assert (again.slots.map, len(again.cache)) == (made.slots, 0)
        made.receive("shard-0", Rebalance("release", made.slots, attempt))
        told("release", made.slots, attempt)
        assert (len(shard.cache), shard.mutations.laid.by_key) == (0, {})
        stored = store.load()
        assert stored is not None
        assert stored.entries == []


def test_what_an_earlier_life_of_the_supervisor_has_said_comes_late() -> None:
    made = world(1)
    made.shards["shard-1"] = made.shard_life(1)
    next_map = assign_slots([0, 1], 2)
    for name in ("shard-0", "shard-1"):
        made.receive(name, Rebalance("release", made.slots, 0))
    for phase in ("copy", "seal", "send"):
        for name in ("shard-0", "shard-1"):
            made.receive(name, Rebalance(phase, next_map, 7))
        made.settle()
    looked = made.receive("shard-1", Rebalance("look", SlotMap(0, ()), 9))
    assert looked.map == made.slots
    for _ in range(2 * len(KEYS)):
        late = made.receive("shard-1", Rebalance("adopt", next_map, 7))
    assert (late.map, late.is_done, len(made.shards["shard-1"].cache)) == (made.slots, False, 0)


@pytest.mark.parametrize("phase", ["copy", "seal", "send"])
def test_a_late_word_of_an_earlier_attempt_does_not_begin_that_again(phase: str) -> None:
    made = world(1)
    next_map = assign_slots([0, 1], 2)
    made.receive("shard-0", Rebalance("release", made.slots, 0))
    for attempt in (7, 8):  # senders begin anew where a receiver has lost what it was sent
        made.receive("shard-0", Rebalance("send", next_map, attempt))
    late = made.receive("shard-0", Rebalance(phase, next_map, 7))
    assert (late.is_done, late.is_held, late.attempt) == (False, True, 8)


@pytest.mark.parametrize("attempt", [0, 6])
def test_a_late_word_of_an_earlier_attempt_does_not_end_a_cut(attempt: int) -> None:
    made = world(1)
    next_map = assign_slots([0, 1], 2)
    made.receive("shard-0", Rebalance("release", made.slots, 0))
    made.receive("shard-0", Rebalance("seal", next_map, 7))
    late = made.receive("shard-0", Rebalance("release", made.slots, attempt))
    assert (late.is_done, late.is_held, late.attempt) == (False, True, 7)
    assert made.receive("shard-0", Rebalance("release", made.slots, 7)).is_held is False


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_nobody_is_seen_to_leave_when_the_home_of_a_topic_is_another(before: int, after: int) -> None:
    made = InProcess(shards=before, gateways=2, patterns=PATTERNS)
    made.settle()
    topics = [f"doc:{n}" for n in range(12)]
    clients = [Client(made, f"c{n}", f"gateway-{n}") for n in range(2)]
    for client in clients:
        for topic in topics:
            client.say(type="presence", id=1, topic=topic, state=0)
            made.settle(100.0)
    made.settle(500.0)
    for client in clients:
        client.read()
    made.move(after)
    made.settle(20_000.0)
    assert [each for client in clients for each in client.read() if each["type"] == "presence"] == []
    assert sum(shard.presence.member_count for shard in made.shards.values()) == 2 * len(topics)
    made.settle(1_000.0)
    for number, topic in enumerate(topics):
        clients[0].say(type="presence", id=1, topic=topic, state=number + 1)
        made.settle(200.0)
    clients[0].say(type="leave", id=2, topic=topics[0])
    made.settle(300.0)
    told = [each for each in clients[1].read() if each["type"] == "presence"]
    assert {each["topic"] for each in told if each["updated"]} == set(topics)
    assert [each["topic"] for each in told if each["left"]] == [topics[0]]


def test_a_version_is_not_used_again_for_a_key_that_was_removed_before_it_moved() -> None:
    made = world(3)
    client = watching(made, "a")
    for key in KEYS:
        for number in range(20):
            made.write(key, number)
        made.erase(key)
    made.settle()
    removed = {
        each["key"][1]: each["version"] for each in client.read() if each["type"] == "removed" and each["sub"] == "w"
    }
    assert len(removed) == len(KEYS)
    made.move(1)
    for key in KEYS:
        made.write(key, "again")
    made.settle()
    client.read()
    again = {orjson.loads(key)[1]: version for key, (version, _) in client.views["w"].entries.items()}
    assert all(again[key] > version for key, version in removed.items())


def test_a_life_begins_above_what_slots_have_raised_the_last_one_to() -> None:
    shard = new_shard(0, 7, 1.0, [], [])
    ahead = (9 << EPOCH_SHIFT) + 5
    shard.restore(Stored(6, ahead, [], {}, {}, {}, [Life(6, ahead, 0)], 0, [('["a"]', 0)]), 1.0, lambda _: True)
    assert shard.history.since(6, ahead, 1.0) == {'["a"]': 0}
    written = shard._write(Write(1, "once", '["b"]', b"1"))
    assert isinstance(written, Written)
    assert written.version == shard.offset == ahead + 1
    assert shard.history.since(7, ahead, 1.0) == {'["b"]': 0}
