"""A cluster in one process: machines, a network that delays, repeats and loses, an upstream, clients, a clock.

Every step comes from one seeded random source and one queue ordered by (time, number), so a seed replays exactly; `trace` tells what
happened. Losing a call means what it means under Ray: either it did not arrive, or its answer did not; the caller cannot tell which.

The upstream keeps the truth: values of keys, changed by events it sends to whoever is joined. It can say it again from an event on, as
`repeats` tells, if it is to. Shards may have stores, which outlive them.

It is one thing because every part of it takes its turn in the one queue.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

import orjson

from cluster.config import Compiled, Config, compile_config, load_mapping
from cluster.core.channel_demand import ChannelDemand
from cluster.core.client_message import client_frame
from cluster.core.coordinator_state import CoordinatorState
from cluster.core.declared_query import Response
from cluster.core.feed import Repeats
from cluster.core.gateway_state import Close, Deliver, GatewayState, Respond
from cluster.core.ingestion_state import (
    AskMissed,
    IngestionState,
    Join,
    Leave,
    Reconnect,
    Resume,
    SourceTraits,
    Start,
    Stop,
)
from cluster.core.messages import (
    Announce,
    Batch,
    Blob,
    ChangeSet,
    Claimed,
    Demand,
    HandOver,
    Members,
    Rebalance,
    Requests,
    Send,
    SlotSlice,
    Standing,
    Take,
)
from cluster.core.placement import SlotMap, assign_slots
from cluster.core.position import Tokens
from cluster.core.rule import Envelope
from cluster.core.scaling import Reported, Retire, Scaling
from cluster.core.session_state import SessionState
from cluster.core.shard_state import Commit, ShardState, StartFetch, Sync
from cluster.core.slot_move import Phase, SlotMoves
from cluster.core.transaction import Store
from cluster.errors import UpstreamError
from cluster.simulation.view import View

START_MS = 1_000_000.0
GATEWAY = "gateway-0"


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad the network is. Probabilities are per call."""

    delay_ms: float = 3.0
    """Mean one-way delay; delays are exponential, so calls of different links overtake each other."""
    lose: float = 0.0
    repeat: float = 0.0
    restart_ms: float = 400.0
    """From a kill to the next life."""


@dataclass(slots=True)
class Connection:
    """An ingestor's to the upstream."""

    joined: set[str] = field(default_factory=set)
    sent: set[str] = field(default_factory=set)
    """Channels whose events are sent: those joined, and where the upstream is deaf to leaving, those that were."""
    is_wanted: bool = False
    """The ingestor has begun to read."""
    is_open: bool = False
    number: int = 0
    """Of the connection: what was sent on an earlier one does not arrive."""


@dataclass(slots=True)
class Upstream:
    """The service and the stream in one: the truth, and who hears of its changes."""

    truth: dict[str, Any] = field(default_factory=dict)
    connections: dict[str, Connection] = field(default_factory=dict)
    """By ingestor."""
    number: int = 0
    fetches: int = 0
    log: list[tuple[int, str, str, Any]] = field(default_factory=list)
    """(id, channel, event, data)."""

    @property
    def joined(self) -> set[str]:
        """Return what anybody has joined."""
        return {channel for connection in self.connections.values() for channel in connection.joined}

    @property
    def connected(self) -> bool:
        """Whether everybody who wants to is connected."""
        return all(each.is_open for each in self.connections.values() if each.is_wanted)


class Client:
    """A modelled client: subscriptions, views, a socket that may be slow or gone."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lives = 0
        self.session: SessionState | None = None
        self.wanted: dict[int, dict[str, Any]] = {}
        """Subscribe messages, by id."""
        self.views: dict[int, View] = {}
        self.taking = False
        self.slow_ms = 1.0


class World:
    """See the module."""

    def __init__(
        self,
        seed: int,
        document: dict[str, Any],
        faults: Faults | None = None,
        *,
        repeats: Repeats = Repeats.NOTHING,
        asks: bool = False,
        store: Callable[[], Store] | None = None,
        is_spread: bool = False,
        can_leave: bool = True,
    ) -> None:
        """Build.

        Args:
            seed: Of everything that is left to chance.
            document: The configuration.
            faults: Of the network.
            repeats: As `asks` and `is_spread`, of the source, see `SourceTraits`.
            asks: See there.
            store: Makes what outlives a shard.
            is_spread: See there.
            can_leave: The upstream heeds it when a channel is left.
        """
        self.can_leave = can_leave
        self.repeats = repeats
        self.asks = asks
        self.is_spread = is_spread or repeats is Repeats.CHANNEL
        self._store = store
        self.stores: dict[str, Store] = {}
        self.random = random.Random(seed)
        self.faults = faults or Faults()
        self.now_ms = START_MS
        self.trace: list[str] = []
        self.config: Config = load_mapping(document, {})
        self.compiled: Compiled = compile_config(self.config)
        self.upstream = Upstream()
        self.machines: dict[str, Any] = {}
        self.clients: dict[str, Client] = {}
        self._lives: dict[str, int] = {}
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._steps = 0
        self._last = int(START_MS)
        self._timers: dict[str, float] = {}
        cluster = self.config.cluster
        self.moves = SlotMoves(cluster.shards, cluster.coordinators, self.now_ms)
        self.moves.map = assign_slots(range(cluster.shards), 1, cluster.coordinators)
        self.moves.phase = Phase.IDLE
        self._is_rebalancing = False
        self.scaling = Scaling(Members(1, [f"ingestor-{n}" for n in range(cluster.ingestors)]))
        names = [*(f"shard-{n}" for n in range(cluster.shards)), GATEWAY]
        names += [f"coordinator-{n}" for n in range(cluster.coordinators)] + self.scaling.actors
        for name in names:
            self.start(name)

    def scale(self, ingestors: int) -> None:
        """Have another number of ingestors."""
        self.note(f"scale to {ingestors} ingestors")
        self.scaling.wanted = ingestors
        self._supervise()

    def _supervise(self) -> None:
        """Act as the supervisor does, until there is what is wanted."""
        if self.scaling.is_done:
            return
        if self.moves.phase is not Phase.IDLE:
            self.at(50.0, self._supervise)
            return
        for name in self.scaling.actors:
            if name not in self._lives:
                self.start(name)
        ingestors = {
            name: Reported(*machine.status())
            for name, machine in self.machines.items()
            if isinstance(machine, IngestionState)
        }
        shards = {
            f"shard-{n}": machine.demand.epoch if (machine := self.machines.get(f"shard-{n}")) is not None else None
            for n in range(self.slots.shards)
        }
        for effect in self.scaling.step(ingestors, shards):
            if isinstance(effect, Retire):
                self.note(f"{effect.actor} retires")
                del self.machines[effect.actor], self._lives[effect.actor]
                self._timers.pop(effect.actor, None)
                self.upstream.connections.pop(effect.actor, None)
            elif self.random.random() >= self.faults.lose:
                self.at(self.delay(), lambda effect=effect: void(self._receive(effect.actor, effect.members)))  # type: ignore[misc]
        self.at(50.0, self._supervise)

    @property
    def slots(self) -> SlotMap:
        """Return the slot map that counts."""
        assert self.moves.map is not None
        return self.moves.map

    def rescale(self, shards: int, coordinators: int) -> None:
        """Have other numbers of shards and coordinators."""
        self.note(f"scale to {shards} shards, {coordinators} coordinators")
        self.moves.want(shards, coordinators)
        self._begin_rebalancing()

    def kill_supervisor(self) -> None:
        """Let the supervisor begin anew, as to slots."""
        self.note(f"kill supervisor ({self.moves.phase.value})")
        map_then = self.moves.map
        found = sum(name.startswith("shard") for name in self._lives)
        self.moves = SlotMoves(1, 1, self.now_ms, found=found, keeps=True)
        self.moves.map = map_then  # for who begins while it looks, as who asks it then waits
        self._begin_rebalancing()

    def _begin_rebalancing(self) -> None:
        if not self._is_rebalancing:
            self._is_rebalancing = True
            self.at(1.0, self._rebalance)

    def _rebalance(self) -> None:
        """Act as the supervisor does while slots move."""
        moves = self.moves
        names = moves.actors
        for name in names:
            if name not in self._lives:
                self.start(name)
        if self.scaling.is_done:
            moves.begin([*self.machines], self.now_ms)
        asks = moves.asks([each for each in self._lives if each.startswith("ingestor")], [GATEWAY])
        said: dict[str, Standing | None] = dict.fromkeys(asks)
        for name, ask in asks.items():
            if self.random.random() >= self.faults.lose:
                self.at(self.delay(), lambda name=name, ask=ask: self._told(name, ask, said))  # type: ignore[misc]
        self.at(8 * self.faults.delay_ms, lambda: self._heard(moves, asks, said))

    def _told(self, name: str, ask: Rebalance, said: dict[str, Standing | None]) -> None:
        standing = self._receive(name, ask)
        if self.random.random() >= self.faults.lose:
            self.at(self.delay(), lambda: said.update({name: standing}))

    def _heard(self, moves: SlotMoves, asks: dict[str, Rebalance], said: dict[str, Standing | None]) -> None:
        if moves is self.moves:
            before = moves.phase
            moves.heard(asks, said, self.now_ms)
            if moves.phase is not before:
                self.note(f"slots: {before.value} -> {moves.phase.value}")
        if self.moves.phase is Phase.IDLE:
            wanted = self.moves.actors
            for name in [each for each in self._lives if each.startswith(("shard", "coordinator"))]:
                if name not in wanted:
                    self._retire(name)
        if self.moves.is_done:
            self._is_rebalancing = False
            return
        self._rebalance()

    def _retire(self, name: str) -> None:
        self.note(f"{name} retires")
        self.machines.pop(name, None)
        del self._lives[name]
        self._timers.pop(name, None)
        self.stores.pop(name, None)

    def _tell_map(self, name: str, life: int) -> None:
        """A shard asks which map there is; while slots are about to move it waits for what it is told of that."""
        if self._lives.get(name) != life or name not in self.machines:
            return
        if not self.moves.is_settled:
            self.at(20.0, lambda: self._tell_map(name, life))
            return
        void(self._receive(name, Rebalance("release", self.slots, 0)))

    # --- the clock -----------------------------------------------------------------------------------------------

    def at(self, delay_ms: float, act: Callable[[], None]) -> None:
        """Do something later."""
        self._steps += 1
        heappush(self._queue, (self.now_ms + delay_ms, self._steps, act))

    def run(self, until_ms: float) -> None:
        """Let time pass."""
        while self._queue and self._queue[0][0] <= until_ms:
            self.now_ms, _, act = heappop(self._queue)
            act()
        self.now_ms = max(self.now_ms, until_ms)

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.now_ms - START_MS:9.1f} {text}")

    def delay(self) -> float:
        """Return a network delay."""
        return self.random.expovariate(1.0 / self.faults.delay_ms)

    # --- actors --------------------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """Begin a life of an actor."""
        self._last = max(self._last + 10, int(self.now_ms))
        incarnation = self._last
        kind, _, _index = name.partition("-")
        profiles = self.compiled.profiles
        match kind:
            case "shard":
                demand = ChannelDemand(
                    name,
                    incarnation,
                    now_ms=self.now_ms,
                    members=Members(0, []),
                    spread=self.config.sources if self.is_spread else (),
                    linger_ms=self.compiled.feeds.linger_ms,
                )
                machine: Any = ShardState(
                    name,
                    incarnation,
                    epoch=incarnation,
                    queries=self.compiled.queries,
                    feeds=self.compiled.feeds,
                    demand=demand,
                    gateways=[GATEWAY],
                    replay_ms=max(profile.max_wait_ms for profile in profiles),
                    entities=self.compiled.entities,
                    relations=self.compiled.relations,
                    origins=self.compiled.origins,
                    keeps=self._store is not None,
                )
                if self._store is not None:
                    if name not in self.stores:
                        self.stores[name] = self._store()
                    stored = self.stores[name].load()
                    if stored is not None:
                        machine.restore(stored, self.now_ms, lambda _: True)
                        machine.slots.await_word(self.now_ms)
            case "coordinator":
                machine = CoordinatorState(name, incarnation, profiles=profiles)
            case "ingestor":
                machine = IngestionState(
                    name,
                    incarnation,
                    routers={source: self.compiled.router(source) for source in self.config.sources},
                    always=self.compiled.feeds.always(),
                    slots=self.slots,
                    shards=self.slots.shards,
                    coordinators=self.slots.coordinators,
                    profiles=profiles,
                    traits=dict.fromkeys(
                        self.config.sources, SourceTraits(self.repeats, self.asks, self.is_spread, has_ids=True)
                    ),
                    members=self.scaling.members,
                )
            case _:
                tokens = Tokens("simulated", "simulation")
                machine = GatewayState(name, incarnation, slots=self.slots, shards=self.slots.shards, tokens=tokens)
        self.machines[name] = machine
        self._lives[name] = self._lives.get(name, 0) + 1
        self.note(f"{name} lives as {incarnation}")
        if kind == "shard":
            self._effects(name, machine.members(self.scaling.members, self.now_ms)[1])
            life = self._lives[name]
            self.at(self.delay(), lambda: self._tell_map(name, life))
        self._arm(name)

    def kill(self, name: str) -> None:
        """End a life; the next begins after `restart_ms`."""
        self.note(f"kill {name}")
        del self.machines[name]
        self._timers.pop(name, None)
        if name == GATEWAY:
            for client in self.clients.values():
                self._hang_up(client)
        if name in self.upstream.connections:
            number = self.upstream.connections[name].number
            self.upstream.connections[name] = Connection(number=number + 1)
        self.at(self.faults.restart_ms, lambda: self.start(name) if name in self._lives else None)

    def _synced(self, name: str, life: int) -> None:
        if name in self.machines and self._lives[name] == life:
            self._effects(name, self.machines[name].synced(self.now_ms))
            self._arm(name)

    def _effects(self, name: str, effects: Iterable[Any]) -> None:
        for effect in effects:
            match effect:
                case Send(to=to, message=message):
                    self._call(name, to, message)
                case StartFetch():
                    self._fetch(name, effect)
                case Deliver(session=session):
                    self._deliver(session)
                case Commit(transaction=transaction):
                    self.stores[name].commit(transaction)
                case Sync():
                    self.at(self.delay(), lambda: self._synced(name, self._lives[name]))
                case Start():
                    self._connection(name).is_wanted = True
                    self.at(self.delay(), lambda: self.connect(name))
                case Stop():
                    number = self._connection(name).number
                    self.upstream.connections[name] = Connection(number=number + 1)
                case Reconnect():
                    connection = self._connection(name)
                    connection.is_open = False
                    connection.number += 1
                    self.at(self.delay(), lambda: self.connect(name))
                case AskMissed():
                    self._ask_missed(name, effect)
                case Join(channel=channel):
                    connection = self._connection(name)
                    connection.joined.add(channel)
                    connection.sent.add(channel)
                    self.note(f"{name} joins {channel}")
                    if connection.is_open and self.repeats is Repeats.CHANNEL:
                        self._repeat(name, channel)
                case Leave(channel=channel):
                    self._connection(name).joined.discard(channel)
                    if self.can_leave:
                        self._connection(name).sent.discard(channel)
                    self.note(f"{name} leaves {channel}")
                case Resume() | Respond() | Close():
                    pass
                case _:
                    raise AssertionError(f"{name}: {effect!r}")
        self._arm(name)

    def _arm(self, name: str) -> None:
        machine = self.machines.get(name)
        due = None if machine is None else machine.deadline()
        if due is None:
            return
        due = max(due, self.now_ms)
        if self._timers.get(name, float("inf")) <= due:
            return
        self._timers[name] = due
        life = self._lives[name]

        def wake() -> None:
            if self._lives.get(name) != life or name not in self.machines or self._timers.get(name) != due:
                return
            del self._timers[name]
            self._effects(name, self.machines[name].wake(self.now_ms))

        self.at(due - self.now_ms, wake)

    # --- the network ---------------------------------------------------------------------------------------------

    def _call(self, sender: str, to: str, message: Any) -> None:
        life = self._lives.get(sender)
        lost = self.random.random() < self.faults.lose
        arrives = not lost or self.random.random() < 0.5

        def answer(reply: Any) -> None:
            if self._lives.get(sender) != life or sender not in self.machines:
                return
            machine = self.machines[sender]
            if lost or reply is None:
                self._effects(sender, machine.unanswered(to, message, self.now_ms))
            else:
                self._effects(sender, machine.answered(to, message, reply, self.now_ms))

        def deliver() -> None:
            reply = self._receive(to, message) if arrives else None
            self.at(self.delay() + (200.0 if lost else 0.0), lambda: answer(reply))

        self.at(self.delay(), deliver)
        if self.random.random() < self.faults.repeat:
            self.at(self.delay() * 20, lambda: void(self._receive(to, message)))

    def _receive(self, to: str, message: Any) -> Any:
        machine = self.machines.get(to)
        if machine is None:
            return None
        now_ms = self.now_ms
        match message:
            case Blob():
                answer, effects = machine.blob(message, now_ms)
            case Batch():
                answer, effects = machine.batch(message, now_ms)
            case Requests():
                answer, effects = machine.requests(message, now_ms)
            case ChangeSet():
                answer, effects = machine.change_set(message, now_ms)
            case Demand():
                answer, effects = machine.demand(message, now_ms)
            case Claimed():
                answer, effects = machine.claimed(message, now_ms)
            case Members():
                answer, effects = machine.members(message, now_ms)
            case Take():
                answer, effects = machine.take(message, now_ms)
            case HandOver():
                answer, effects = machine.hand_over(message, now_ms)
            case Announce():
                answer, effects = machine.announce(message, now_ms)
            case SlotSlice():
                answer, effects = machine.slot_slice(message, now_ms)
            case Rebalance():
                if isinstance(machine, CoordinatorState):
                    return machine.rebalance(message)
                answer, effects = machine.rebalance(message, now_ms)
            case _:
                raise AssertionError(f"{to}: {message!r}")
        self._effects(to, effects)
        return answer

    # --- the upstream --------------------------------------------------------------------------------------------

    def connect_upstream(self) -> None:
        """Connect every ingestor that wants to be."""
        for name in list(self.upstream.connections):
            self.connect(name)

    def _connection(self, name: str) -> Connection:
        return self.upstream.connections.setdefault(name, Connection())

    def connect(self, name: str) -> None:
        """Connect an ingestor's source."""
        machine, connection = self.machines.get(name), self._connection(name)
        if machine is None or connection.is_open or not connection.is_wanted:
            return
        connection.is_open = True
        connection.sent = set(connection.joined)
        self.note(f"{name} connected")
        since = machine.resume_id(self._source)
        channels = sorted(connection.joined)
        resumed = {channel: machine.resume_id(self._source, channel) for channel in channels}
        self._effects(name, machine.opened(self._source, self.now_ms))
        if self.repeats is Repeats.SOURCE and since is not None and not self.asks:
            self._say_again(name, lambda number, channel: number > since and channel in connection.joined)
        if self.repeats is Repeats.CHANNEL:
            for channel in channels:
                self._repeat(name, channel, resumed[channel])

    @property
    def _source(self) -> str:
        return next(iter(self.config.sources))

    def _repeat(self, name: str, channel: str, since: Any = None) -> None:
        """A channel is joined: say what came after the event that the ingestor names."""
        since = since if since is not None else self.machines[name].resume_id(self._source, channel)
        if since is not None:
            self._say_again(name, lambda number, on: on == channel and number > since)

    def _say_again(self, name: str, wanted: Callable[[int, str], bool]) -> None:
        for number, channel, event, data in self.upstream.log:
            if wanted(number, channel):
                self._say(name, number, channel, event, data)

    def _ask_missed(self, name: str, asked: AskMissed) -> None:
        life = self._lives[name]

        def answer() -> None:
            found = [
                Envelope(event, orjson.dumps(data), channel, number)
                for number, channel, event, data in self.upstream.log
                if number > int(asked.since)
            ]
            self.at(self.delay() * 3, lambda: hear(found))

        def hear(found: list[Any]) -> None:
            if self._lives[name] == life and name in self.machines:
                self._effects(name, self.machines[name].missed(asked, found, self.now_ms))

        self.at(self.delay() * 3, answer)

    def drop_upstream(self, for_ms: float) -> None:
        """Cut the source's connections; what is emitted meanwhile is not heard."""
        self.note("source cut")
        for connection in self.upstream.connections.values():
            connection.is_open = False
            connection.number += 1
        self.at(for_ms, self.connect_upstream)

    def emit(self, channel: str, event: str, data: Any, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the truth and say so on a channel, to the connections that have joined it."""
        upstream = self.upstream
        change(upstream.truth)
        upstream.number += 1
        self.note(f"event {upstream.number} {event} {data}")
        upstream.log.append((upstream.number, channel, event, data))
        for name, connection in upstream.connections.items():
            if connection.is_open and channel in connection.sent:
                self._say(name, upstream.number, channel, event, data)

    def _say(self, name: str, number: int, channel: str, event: str, data: Any) -> None:
        frame = orjson.dumps({"event": event, "channel": channel, "data": data, "id": number})
        connection = self.upstream.connections[name].number

        def arrive() -> None:
            machine = self.machines.get(name)
            known = self.upstream.connections.get(name)
            if machine is not None and known is not None and known.number == connection:
                machine.receive(self._source, [frame], self.now_ms)
                self._arm(name)

        self.at(1.0, arrive)  # one connection: in order

    def _fetch(self, name: str, fetch: StartFetch) -> None:
        life = self._lives[name]
        self.upstream.fetches += 1

        def serve() -> None:
            body = orjson.dumps(self.upstream.truth.get(fetch.key, {"missing": True}))
            failed = self.random.random() < self.faults.lose
            result: Response | UpstreamError = UpstreamError("unlucky", status=503) if failed else Response(body)
            self.at(self.delay() * 5, lambda: done(result))

        def done(result: Response | UpstreamError) -> None:
            if self._lives[name] == life and name in self.machines:
                effects = self.machines[name].fetched(fetch, result, self.now_ms)
                self._effects(name, effects)

        self.at(self.delay() * 5, serve)

    # --- clients -------------------------------------------------------------------------------------------------

    def enter(self, name: str) -> Client:
        """Connect a client, for the first time or again; its subscriptions continue from their tokens."""
        client = self.clients.setdefault(name, Client(name))
        gateway = self.machines.get(GATEWAY)
        if gateway is None:
            self.at(50.0, lambda: void(self.enter(name)))
            return client
        if client.session is not None:
            return client
        client.lives += 1
        client.session = gateway.open_session(f"{name}/{client.lives}")
        self.note(f"{name} connects as {client.session.id}")
        for sub, message in client.wanted.items():
            token = client.views[sub].token if client.views[sub].complete else None
            if token is None:
                client.views[sub] = View()
            self.say(client, {**message, **({"since": token} if token else {})})
        return client

    def _new_id(self) -> str:
        return f"{self.random.getrandbits(128):032x}"

    def subscribe(self, client: Client, sub: int, **arguments: Any) -> None:
        """Subscribe, now and after each reconnect."""
        client.wanted[sub] = {"type": "subscribe", "id": sub, **arguments}
        client.views[sub] = View()
        self.say(client, client.wanted[sub])

    def say(self, client: Client, message: dict[str, Any]) -> None:
        """Send a client's message."""
        gateway: GatewayState | None = self.machines.get(GATEWAY)
        if gateway is None or client.session is None:
            return
        frame = orjson.dumps(message)
        effects = client_frame(gateway, client.session, frame, lambda _: 0, self.now_ms, self._new_id, lambda _: None)
        self._effects(GATEWAY, effects)

    def disconnect(self, client: Client) -> None:
        """Cut a client's connection; what was on its way is lost."""
        gateway: GatewayState | None = self.machines.get(GATEWAY)
        if client.session is None:
            return
        self.note(f"{client.name} disconnects")
        session_id = client.session.id
        self._hang_up(client, back_ms=self.random.uniform(1, 500))
        if gateway is not None:
            self._effects(GATEWAY, gateway.close_session(session_id, self.now_ms))

    def _hang_up(self, client: Client, back_ms: float = 100.0) -> None:
        client.session = None
        client.taking = False
        self.at(back_ms, lambda: void(self.enter(client.name)))

    def _deliver(self, session_id: str) -> None:
        client = self.clients.get(session_id.partition("/")[0])
        if client is None or client.session is None or client.session.id != session_id or client.taking:
            return
        client.taking = True
        self.at(0.0, lambda: self._take(client, session_id))

    def _take(self, client: Client, session_id: str) -> None:
        gateway: GatewayState | None = self.machines.get(GATEWAY)
        session = client.session
        if gateway is None or session is None or session.id != session_id:
            return
        frame, effects = gateway.take(session, self.now_ms)
        self._effects(GATEWAY, effects)
        if frame is None:
            client.taking = False
            return

        def received() -> None:
            if client.session is not session:
                return
            self.note(f"{client.name} <- {frame.decode()}")
            for message in orjson.loads(frame):
                if "sub" in message:
                    client.views[message["sub"]].take(message)
            gateway.written(session, self.now_ms)
            self._take(client, session_id)

        self.at(self.random.expovariate(1.0 / client.slow_ms), received)


def void(_: object) -> None:
    """Drop a value."""
