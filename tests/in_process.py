"""A gateway and its shards in one process: real machines, calls carried out by hand, time passed in.

Clients are models: they keep what a client would keep, and check on every message what a client may rely on.
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from cluster import simulation
from cluster.core.channel_demand import ChannelDemand
from cluster.core.client_message import Command, answer, client_frame
from cluster.core.declared_query import DeclaredQueries, DeclaredQuery
from cluster.core.gateway_state import Close, Deliver, GatewayState, Respond
from cluster.core.messages import (
    Announce,
    ChangeSet,
    Erase,
    Members,
    Overlays,
    Rebalance,
    Requests,
    Send,
    SlotSlice,
    Write,
)
from cluster.core.mutation import DeclaredMutation
from cluster.core.mutation_queue import StartMutation
from cluster.core.placement import assign_slots, shard_at
from cluster.core.position import Tokens
from cluster.core.presence_room import Pattern
from cluster.core.query_key import CanonicalKey, KeyMatcher, parse
from cluster.core.session_state import SessionState
from cluster.core.shard_state import ShardState, StartFetch
from cluster.core.slot_move import Phase, SlotMoves

START_MS = 1_000_000.0
TOKENS = Tokens("a secret of the tests", "harbor")


class NoFeeds:
    """Nothing is fed by streams here."""

    def channels_for(self, key: list[Any]) -> list[tuple[str, str]]:
        return []

    def channels_under(self, prefix: list[Any]) -> list[tuple[str, str]]:
        return []

    def fed_by(self, source: str, channel: str | None, key: list[Any]) -> bool:
        return True

    def joins_for(self, first: str | None) -> bool:
        return False

    def heads_fed_by(self, source: str, channel: str | None) -> list[str] | None:
        return None

    def entities_fed_by(self, source: str, channel: str | None) -> set[str] | None:
        return set()


def new_shard(
    index: int, incarnation: int, now_ms: float, queries: list[DeclaredQuery], gateways: list[str], **more: Any
) -> ShardState:
    name = f"shard-{index}"
    demand = ChannelDemand(name, incarnation, now_ms=now_ms, members=Members(1, []), linger_ms=lambda s, c: 0.0)
    return ShardState(
        name,
        incarnation,
        epoch=incarnation,
        queries=DeclaredQueries(queries),
        feeds=NoFeeds(),
        demand=demand,
        gateways=gateways,
        replay_ms=0.0,
        **more,
    )


class InProcess:
    """Calls between machines wait in `calls` until `step` or `settle` carries them out."""

    def __init__(
        self,
        shards: int = 1,
        queries: list[DeclaredQuery] | None = None,
        gateways: int = 1,
        mutations: Mapping[str, DeclaredMutation] | None = None,
        patterns: tuple[Pattern, ...] = (),
    ) -> None:
        self.now_ms = START_MS
        self.queries = queries or []
        self.mutations = mutations or {}
        self.incarnation = 1000
        self.slots = assign_slots(range(shards), 1)
        self.names = [f"gateway-{n}" for n in range(gateways)]
        self.shard_count = shards
        self.shards = {f"shard-{n}": self.shard_life(n) for n in range(shards)}
        self.patterns = patterns
        self.gateways = {name: self.gateway_life(name) for name in self.names}
        self.calls: deque[tuple[str, Send]] = deque()
        self.delivered: list[str] = []
        self.responses: dict[int, list[Any]] = {}
        self.closed: list[Close] = []
        self.commands: dict[int, Command] = {}
        self.fetches: deque[tuple[str, StartFetch]] = deque()
        self.sent: deque[tuple[str, StartMutation]] = deque()
        """Mutations' requests that services have not answered."""
        self.tickets = 0

    @property
    def gateway(self) -> GatewayState:
        return self.gateways["gateway-0"]

    def life(self) -> int:
        self.incarnation += 10
        return self.incarnation

    def new_id(self) -> str:
        return f"m-{self.life()}"

    def shard_life(self, index: int) -> ShardState:
        return new_shard(
            index,
            self.life(),
            self.now_ms,
            self.queries,
            self.names,
            mutations=self.mutations,
            shards=self.shard_count,
            place=self.slots.shard,
        )

    def gateway_life(self, name: str) -> GatewayState:
        return GatewayState(
            name,
            self.life(),
            slots=self.slots,
            shards=len(self.shards),
            tokens=TOKENS,
            mutations=self.mutations,
            patterns=self.patterns,
        )

    def shard_of(self, key: str) -> ShardState:
        return self.shards[f"shard-{self.slots.shard(CanonicalKey(key))}"]

    # --- effects and calls ---

    def run(self, actor: str, effects: Any) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.calls.append((actor, effect))
                case Deliver(session=session):
                    self.delivered.append(session)
                case Respond(ticket=ticket, payloads=payloads):
                    command = self.commands.pop(ticket, None)
                    if command is None:
                        self.responses[ticket] = payloads
                    else:
                        gateway = self.gateways[actor]
                        session = gateway.sessions.get(command.session)
                        if session is not None:
                            self.run(actor, answer(gateway, session, command, payloads, self.now_ms))
                case Close():
                    self.closed.append(effect)
                case StartFetch():
                    self.fetches.append((actor, effect))
                case StartMutation():
                    self.sent.append((actor, effect))
                case _:
                    raise AssertionError(effect)

    def machine(self, name: str) -> Any:
        return self.shards.get(name) or self.gateways[name]

    def receive(self, to: str, message: Any) -> Any:
        machine = self.machine(to)
        match message:
            case Requests():
                answer, effects = machine.requests(message, self.now_ms)
            case ChangeSet():
                answer, effects = machine.change_set(message, self.now_ms)
            case Overlays():
                answer, effects = machine.overlays(message, self.now_ms)
            case Announce():
                answer, effects = machine.announce(message, self.now_ms)
            case SlotSlice():
                answer, effects = machine.slot_slice(message, self.now_ms)
            case Rebalance():
                answer, effects = machine.rebalance(message, self.now_ms)
            case _:
                raise AssertionError(message)
        self.run(to, effects)
        return answer

    def step(self, lose: Callable[[], bool] = lambda: False) -> bool:
        """Carry out the oldest call. `lose`: its answer is lost."""
        if not self.calls:
            return False
        sender, send = self.calls.popleft()
        answer = self.receive(send.to, send.message)
        machine = self.machine(sender)
        if lose():
            self.run(sender, machine.unanswered(send.to, send.message, self.now_ms))
        else:
            self.run(sender, machine.answered(send.to, send.message, answer, self.now_ms))
        return True

    def wake(self) -> None:
        for name in [*self.shards, *self.gateways]:
            machine = self.machine(name)
            due = machine.deadline()
            if due is not None and due <= self.now_ms:
                self.run(name, machine.wake(self.now_ms))

    def advance(self, ms: float) -> None:
        self.now_ms += ms
        self.wake()

    def settle(self, ms: float = 60.0) -> None:
        """Let everything under way arrive."""
        until = self.now_ms + ms
        while self.now_ms < until:
            while self.step():
                pass
            self.advance(5.0)
        while self.step():
            pass

    def answered(self, result: Any) -> StartMutation:
        """A service answers the oldest request of a mutation."""
        name, call = self.sent.popleft()
        self.run(name, self.shards[name].mutated(call, result, self.now_ms))
        return call

    def move(self, shards: int, meanwhile: Callable[[Phase], None] = lambda _: None) -> None:
        """Have so many shards. `meanwhile` is called with each part of the move, before it is said."""
        moves = SlotMoves(shards, 1, self.now_ms)
        moves.map, moves.phase = self.slots, Phase.IDLE
        for n in range(len(self.shards), shards):
            self.shards[f"shard-{n}"] = self.shard_life(n)
        for name in self.shards:
            self.receive(name, Rebalance("release", self.slots, 0))
        moves.begin([*self.shards, "coordinator-0"], self.now_ms)
        while moves.phase is not Phase.IDLE:
            meanwhile(moves.phase)
            asks = {name: ask for name, ask in moves.asks([], self.names).items() if name != "coordinator-0"}
            said = {name: self.receive(name, ask) for name, ask in asks.items()}
            moves.heard(asks, said, self.now_ms)
            self.settle(5.0)
        assert moves.map is not None
        self.slots = moves.map
        for name in [name for name in self.shards if shard_at(name) >= shards]:
            del self.shards[name]
            self.calls = deque(call for call in self.calls if name not in (call[0], call[1].to))

    def restart(self, name: str) -> None:
        """Kill a shard and start it anew, empty."""
        self.shards[name] = self.shard_life(int(name.split("-")[1]))
        self.calls = deque((sender, send) for sender, send in self.calls if sender != name)

    def restart_gateway(self, name: str) -> None:
        """Kill a gateway and start it anew, without its sessions."""
        self.gateways[name] = self.gateway_life(name)
        self.calls = deque((sender, send) for sender, send in self.calls if sender != name)

    # --- writing, past any gateway ---

    def write(self, key: str, data: Any) -> None:
        self._apply(key, Write(1, f"w{self.now_ms}-{self.tick()}", key, orjson.dumps(data)))

    def erase(self, key: str) -> None:
        self._apply(key, Erase(1, f"w{self.now_ms}-{self.tick()}", key))

    def commit(self, key: str, request: Any) -> None:
        self._apply(key, request)

    def _apply(self, key: str, request: Any) -> None:
        shard = self.shard_of(key)
        shard._now_ms = self.now_ms
        shard._write(request)
        shard._flush()
        self.run(shard.identity, shard._taken())

    def tick(self) -> int:
        self.tickets += 1
        return self.tickets

    def oracle(self, key: str, prefix: bool) -> dict[str, Any]:
        """What a subscriber should hold."""
        entries = [entry for shard in self.shards.values() for entry in shard.cache]
        matcher = KeyMatcher(parse(key))
        return {
            entry.key: (entry.version, None if entry.value is None else orjson.loads(entry.value.json()))
            for entry in entries
            if (matcher.matches(entry.key, entry.parsed) if prefix else entry.key == key)
        }


class Client:
    """A WebSocket client."""

    def __init__(self, world: InProcess, name: str, gateway: str = "gateway-0", **more: Any) -> None:
        self.world = world
        self.gateway = world.gateways[gateway]
        self.address = gateway
        self.session: SessionState = self.gateway.open_session(name, **more)
        self.frames: list[list[dict[str, Any]]] = []
        self.views: dict[Any, View] = {}

    def say(self, **message: Any) -> None:
        self.say_raw(orjson.dumps(message))

    def say_raw(self, frame: bytes) -> None:
        def command(command: Command) -> int:
            ticket = self.world.tick()
            self.world.commands[ticket] = command
            return ticket

        effects = client_frame(
            self.gateway, self.session, frame, command, self.world.now_ms, self.world.new_id, self.world.commands.pop
        )
        self.world.run(self.address, effects)

    def subscribe(self, id: Any, **members: Any) -> "View":
        previous = self.views.get(id)
        view = View(prefix="prefix" in members, mode=members.get("mode", "data"), wanted=members)
        if "since" in members and previous is not None:
            view.entries, view.token = previous.entries, previous.token
            view.complete = True
        self.views[id] = view
        self.say(type="subscribe", id=id, **members)
        return view

    def read(self, frames: int = 1_000) -> list[dict[str, Any]]:
        """Take up to so many frames, as a socket that has taken each at once; return their messages."""
        messages = []
        for _ in range(frames):
            frame, effects = self.gateway.take(self.session, self.world.now_ms)
            self.world.run(self.address, effects)
            if frame is None:
                break
            messages.extend(self.got(frame))
            self.gateway.written(self.session, self.world.now_ms)
        return messages

    def got(self, frame: bytes) -> list[dict[str, Any]]:
        decoded = orjson.loads(frame)
        self.frames.append(decoded)
        last: dict[Any, str] = {}
        for message in decoded:
            if "sub" in message:
                last[message["sub"]] = message["type"]
                if message["sub"] in self.views:
                    self.views[message["sub"]].take(message)
        for sub, kind in last.items():
            view = self.views.get(sub)
            assert view is None or not view.complete or kind in ("position", "snapshot_end"), decoded
        return decoded

    def close(self) -> None:
        self.world.run(self.address, self.gateway.close_session(self.session.id, self.world.now_ms))


class View(simulation.View):
    """A view that also knows how its subscription was made."""

    def __init__(self, *, prefix: bool, mode: str, wanted: dict[str, Any]) -> None:
        super().__init__()
        self.prefix = prefix
        self.mode = mode
        self.wanted = wanted

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] == "change":
            assert "data" in message if self.mode == "data" or not message["from"] else "patch" in message, message
        super().take(message)
