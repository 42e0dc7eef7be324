"""Whatever dies, joins and leaves: watchers come to see who is there, and see nobody leave who was there all along."""

from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.core import gateway_state, presence_news, presence_room, shard_state, template
from cluster.core.gateway_state import Close, GatewayState
from cluster.core.presence import GATEWAY_GRACE_MS
from cluster.core.presence_room import Pattern
from cluster.core.presence_session import GRACE_MS, identity_of
from tests.in_process import TOKENS, Client, InProcess

TOPICS = ["doc:1", "doc:2"]
TIMEOUT_MS = 75_000.0
PATTERNS = (Pattern(template.parse("doc:{id}"), 30_000.0, TIMEOUT_MS),)
GATEWAYS = 3

clients, topics = st.integers(0, 2), st.sampled_from(TOPICS)
modes = st.sampled_from([None, "members", "count"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), clients, topics, st.integers(0, 2), modes),
        st.tuples(st.just("join"), clients, topics, st.integers(0, 2), modes),
        st.tuples(st.just("watch"), clients, topics, modes),
        st.tuples(st.just("leave"), clients, topics),
        st.tuples(st.just("beat"), clients),
        st.tuples(st.just("drop"), clients),
        st.tuples(st.just("close"), clients),
        st.tuples(st.just("return"), clients, st.integers(0, GATEWAYS - 1)),
        st.tuples(st.just("return"), clients, st.integers(0, GATEWAYS - 1)),
        st.tuples(st.just("doze"), clients),
        st.tuples(st.just("kill_gateway"), st.integers(0, GATEWAYS - 1)),
        st.tuples(st.just("kill_home"), st.integers(0, 1)),
        st.tuples(st.just("pass"), st.sampled_from([1, 5, 50, 150, 1_000, 3_000, 30_000])),
        st.tuples(st.just("pass"), st.sampled_from([150, 1_000])),
        st.tuples(st.just("lose"), st.integers(0, 3)),
    ),
    min_size=25,
    max_size=60,
)


class Watched:
    """What a reader of presence messages holds, and checks of each."""

    def __init__(self) -> None:
        self.members: dict[str, Any] = {}
        self.count = -1
        self.lists = False
        """A listing is under way."""
        self.begun = False
        """What comes before the first listing is of an earlier watch."""

    def take(self, message: dict[str, Any], mode: str) -> None:
        self.begun = self.begun or message.get("snapshot", False)
        if not self.begun:
            return
        self.count = message["count"]
        if mode == "count":
            assert [message["joined"], message["updated"], message["left"]] == [[], [], []]
            return
        joined = {row["member"]: row["state"] for row in message["joined"]}
        if message.get("snapshot"):
            if not self.lists:
                self.members.clear()
            assert [message["updated"], message["left"]] == [[], []]
            self.lists = message.get("more", False)
        else:
            assert not self.lists
        assert not joined.keys() & self.members.keys()
        self.members.update(joined)
        for row in message["updated"]:
            assert row["member"] in self.members
            self.members[row["member"]] = row["state"]
        for member in message["left"]:
            del self.members[member]
        if not message.get("snapshot"):  # after its last page a listing may be behind by a diff
            assert message["count"] == len(self.members)


class Person:
    """A client that keeps its resume token."""

    def __init__(self, world: "World", number: int) -> None:
        self.world = world
        self.number = number
        self.sessions = 0
        self.forget()
        self.client: Client | None = None
        self.joined: dict[str, int] = {}
        """State by topic."""
        self.heard_ms: dict[str, float] = {}
        self.since_ms: dict[str, float] = {}
        """Since when it is present without a break."""
        self.modes: dict[str, str] = {}
        self.views: dict[str, Watched] = {}
        self.away_ms: float | None = None
        """Since when it has no connection."""
        self.is_lost = False
        """Nobody has to remember it."""
        self.dozes = False
        self.returned_ms = 0.0
        self.left_ms = -GRACE_MS

    def forget(self) -> None:
        """It has closed its connection for good; whoever comes is somebody else."""
        secret = f"secret-{self.number}-{self.sessions}"
        self.token = TOKENS.session(secret, "anonymous")
        self.member = identity_of(secret)

    def connect(self, gateway: str) -> None:
        self.sessions += 1
        self.client = Client(self.world, f"{self.number}-{self.sessions}", gateway)
        self.client.say(type="hello", resume=self.token)
        self.modes, self.views = {}, {}
        self.dozes = False
        if self.away_ms is not None and (self.is_lost or self.world.now_ms - self.away_ms > GRACE_MS - 100):
            # Whether it is remembered is open by now: it says where it is, as a client does.
            for topic, state in self.joined.items():
                self.join(topic, state, None)
                self.since_ms[topic] = self.world.now_ms
        else:
            self.heard_ms = dict.fromkeys(self.joined, self.world.now_ms)
        self.away_ms, self.is_lost = None, False
        self.returned_ms = self.world.now_ms

    def ask(self, **message: Any) -> None:
        assert self.client is not None
        self.client.say(id=1, **message)

    def join(self, topic: str, state: int, mode: str | None) -> None:
        self.ask(type="presence", topic=topic, state=state, **({"watch": mode} if mode else {}))
        if topic not in self.joined:
            self.since_ms[topic] = self.world.now_ms
        self.joined[topic] = state
        self.heard_ms[topic] = self.world.now_ms
        self.seat(topic, mode)

    def seat(self, topic: str, mode: str | None) -> None:
        before = self.modes.get(topic)
        after = mode or before or "members"
        if after != before:
            self.modes[topic], self.views[topic] = after, Watched()

    def gone(self) -> None:
        self.client = None

    def read(self) -> None:
        if self.client is None or self.dozes:
            return
        for message in self.client.read(self.world.frames):
            if message["type"] == "presence" and message["topic"] in self.modes:
                topic = message["topic"]
                self.views[topic].take(message, self.modes[topic])
                for member in message["left"]:
                    self.world.check_left(topic, member)
            assert message["type"] != "error" or message["code"] == "NOT_FOUND", message


class World(InProcess):
    def __init__(self) -> None:
        super().__init__(shards=2, gateways=GATEWAYS, patterns=PATTERNS)
        self.losses = 0
        self.people = [Person(self, n) for n in range(3)]
        self.home_killed_ms = 0.0
        self.frames = 1_000
        """That a client takes at once."""
        self.asleep_ms = 0.0
        """The last time that somebody who dozed may have been handed something."""

    def gateway_life(self, name: str) -> GatewayState:
        gateway = super().gateway_life(name)
        gateway.presence._updates_per_s = 1e6
        return gateway

    def check_left(self, topic: str, member: str) -> None:
        person = next((each for each in self.people if each.member == member), None)
        if person is None or topic not in person.joined or person.is_lost:
            return
        if self.now_ms - person.heard_ms[topic] >= TIMEOUT_MS - 100:
            return
        if person.client is None and self.now_ms - (person.away_ms or 0) >= GRACE_MS - 100:
            return
        assert person.since_ms[topic] >= self.asleep_ms - 1_000, "somebody left who was there all along"

    def expire(self) -> None:
        for person in self.people:
            for topic, heard_ms in list(person.heard_ms.items()):
                if topic in person.joined and self.now_ms - heard_ms >= TIMEOUT_MS:
                    del person.joined[topic]

    def lose(self) -> bool:
        self.losses -= 1
        return self.losses >= 0

    def run_for(self, ms: float) -> None:
        until = self.now_ms + ms
        while self.now_ms < until:
            while self.step(self.lose):
                pass
            due = min((at for at in (m.deadline() for m in self.machines()) if at is not None), default=until)
            self.advance(min(max(due - self.now_ms, 1.0), max(until - self.now_ms, 0.001), 1_000.0))
            self.expire()
            for person in self.people:
                person.read()
            if not any(person.dozes for person in self.people):
                self.asleep_ms = self.now_ms
            while self.closed:
                self.close(self.closed.pop())

    def machines(self) -> list[Any]:
        return [*self.shards.values(), *self.gateways.values()]

    def close(self, close: Close) -> None:
        for gateway in self.gateways.values():
            if close.session in gateway.sessions:
                self.run(gateway.identity, gateway.close_session(close.session, self.now_ms))

    def act(self, step: tuple[Any, ...]) -> None:
        kind, *arguments = step
        person = self.people[arguments[0]] if kind not in ("pass", "lose", "kill_gateway", "kill_home") else None
        if person is not None and person.client is None and kind != "return":
            return
        match step:
            case ("join", _, topic, state, mode):
                person.join(topic, state, mode)
            case ("watch", _, topic, mode):
                person.ask(type="presence", topic=topic, **({"watch": mode} if mode else {}))
                if topic in person.joined:
                    person.heard_ms[topic] = self.now_ms
                person.seat(topic, mode)
            case ("leave", _, topic):
                person.ask(type="leave", topic=topic)
                if person.joined.pop(topic, None) is not None:
                    person.left_ms = self.now_ms
                person.modes.pop(topic, None)
            case ("beat", _):
                for topic, state in person.joined.items():
                    person.join(topic, state, None)
            case ("drop", _) | ("close", _):
                lingers = kind == "drop"
                effects = person.client.gateway.close_session(person.client.session.id, self.now_ms, lingers=lingers)
                self.run(person.client.address, effects)
                person.client, person.away_ms = None, self.now_ms
                if not lingers:
                    person.joined.clear()
                    person.forget()
            case ("return", _, number):
                if person.client is None:
                    self.run_for(500)  # the news of its last words overtake it
                    person.connect(f"gateway-{number}")
            case ("doze", _):
                person.dozes = not person.dozes
            case ("kill_gateway", number):
                self.run_for(500)  # what was answered a moment ago may die with it, and is not counted on
                name = f"gateway-{number}"
                self.restart_gateway(name)
                for each in self.people:
                    if each.client is not None and each.client.address == name:
                        each.client, each.away_ms = None, self.now_ms
                        each.is_lost = self.now_ms - self.home_killed_ms < 2_000
            case ("kill_home", number):
                # Who has left by way of another gateway than before is in the topic again where its home dies within the grace, after which
                # the former has forgotten it, and it comes back to that. Only the home knows better.
                if any(self.now_ms - each.left_ms < GRACE_MS for each in self.people):
                    self.run_for(GRACE_MS)
                self.restart(f"shard-{number}")
                self.home_killed_ms = self.now_ms
                for each in self.people:
                    # Who was lost with a gateway, the home alone knows until the next gateway has been told.
                    each.is_lost = each.is_lost or each.client is None or self.now_ms - each.returned_ms < 500
            case ("pass", ms):
                self.run_for(ms)
            case ("lose", count):
                self.losses = count


@example(  # a session whose last words at another gateway are told to a new home after its newer ones
    [
        *[("join", 0, "doc:1", 0, None)] * 5,
        *[("watch", 0, "doc:1", None)] * 2,
        ("join", 0, "doc:1", 0, None),
        *[("beat", 0)] * 3,
        ("drop", 2),
        ("return", 2, 0),
        *[("join", 0, "doc:1", 0, None)] * 2,
        ("kill_home", 1),
        *[("join", 0, "doc:1", 0, None)] * 8,
        ("join", 2, "doc:1", 1, None),
    ],
    False,
)
@example(  # a session that has left at another gateway, and comes back to where it was
    [("drop", 1), ("return", 1, 0), ("leave", 1, "doc:1"), ("drop", 1), ("return", 1, 1), ("kill_home", 1)], False
)
@example([("leave", 2, "doc:1"), ("kill_home", 0), ("kill_home", 1)], False)  # nobody is there to be told
@given(STEPS, st.booleans())
@settings(max_examples=200, deadline=None)
def test_watchers_see_who_is_there(steps: list[tuple[Any, ...]], in_pieces: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if in_pieces:
            patch.setattr(presence_room, "PAGE_MEMBERS", 1)
            patch.setattr(gateway_state, "CHUNK_BYTES", 1)
            patch.setattr(presence_news, "NEWS_BYTES", 80)
            patch.setattr(shard_state, "SLICE_BYTES", 200)
        play(steps, frames=1 if in_pieces else 1_000)


def play(steps: list[tuple[Any, ...]], frames: int = 1_000) -> None:
    world = World()
    world.frames = frames
    for person in world.people:
        person.connect(f"gateway-{person.number % GATEWAYS}")
        person.join("doc:1", 0, None)
    world.run_for(300)
    for step in steps:
        world.act(step)
    for person in world.people:
        person.dozes = False
        if person.client is None:
            person.joined.clear()
        else:
            for topic, state in list(person.joined.items()):
                person.join(topic, state, None)  # as it would every half minute
    world.losses = 0
    world.run_for(1_500)
    for person in world.people:
        for topic, state in list(person.joined.items()):
            person.join(topic, state, None)
    world.run_for(GATEWAY_GRACE_MS + GRACE_MS + 2_000)
    for topic in TOPICS:
        live = {each.member: each.joined[topic] for each in world.people if each.client and topic in each.joined}
        for person in world.people:
            view = person.views.get(topic)
            if person.client is None or topic not in person.modes or view is None:
                continue
            if person.modes[topic] == "members":
                assert view.members == live
            assert view.count == len(live)
    total = sum(len(person.joined) for person in world.people)
    assert sum(shard.presence.member_count for shard in world.shards.values()) == total
    for gateway in world.gateways.values():
        assert orjson.dumps(sorted(gateway.presence._lingering)) == b"[]"
