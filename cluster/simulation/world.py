"""A cluster in one process: the machines of all its actors, and what carries their effects out.

Every step comes from one seeded timeline, so a seed replays exactly; `trace` tells what happened. The rooms: `timeline`, `process` (lives,
clocks, stops), `network`, `disk`, `holder` (a shard's actor), `supervision`, `rebalancing`, `upstream`, `clients`.

It is one thing because it is what every room calls back: it builds machines, carries their effects and calls, and knows who has which copy.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from cluster.config import Compiled, Config, compile_config, load_mapping
from cluster.core.channel_demand import ChannelDemand
from cluster.core.coordinator_state import CoordinatorState
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
from cluster.core.link import next_life
from cluster.core.messages import (
    Announce,
    Batch,
    Blob,
    ChangeSet,
    Claimed,
    Demand,
    Elsewhere,
    HandOver,
    Members,
    Noted,
    Overlays,
    Primary,
    Rebalance,
    Requests,
    Send,
    SlotSlice,
    Take,
)
from cluster.core.mutation_queue import StartMutation
from cluster.core.placement import SlotMap, shard_at
from cluster.core.position import Tokens
from cluster.core.primaries import actors_of, shard_of
from cluster.core.query_key import CanonicalKey
from cluster.core.role import EPOCH_ORIGIN_MS
from cluster.core.scaling import Reported, Retire, Scaling
from cluster.core.shard_roles import Record
from cluster.core.shard_state import ShardState, StartFetch
from cluster.core.slot_move import Phase, SlotMoves
from cluster.core.transaction import Store
from cluster.simulation.clients import Clients
from cluster.simulation.disk import Volume
from cluster.simulation.holder import Holder
from cluster.simulation.network import Call, Faults, Network
from cluster.simulation.process import Machine, Process
from cluster.simulation.rebalancing import MAP_POLL_MS, Moves
from cluster.simulation.supervision import SUPERVISOR, Supervision
from cluster.simulation.timeline import Timeline, void
from cluster.simulation.upstream import Upstream
from cluster.simulation.view import Violation

LEVELS_OF_ALL = ("memory", "replicated", "durable", "")
ORDER = ("ingestor", "coordinator", "gateway", "shard", SUPERVISOR)
"""Down the stream: so they end where somebody ends them."""
STEPS: dict[type, str] = {
    Announce: "announce",
    Batch: "batch",
    Blob: "blob",
    ChangeSet: "change_set",
    Claimed: "claimed",
    Demand: "demand",
    HandOver: "hand_over",
    Members: "members",
    Overlays: "overlays",
    Rebalance: "rebalance",
    Requests: "requests",
    SlotSlice: "slot_slice",
    Take: "take",
}
"""What a machine does with a message."""


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
        has_disks: bool = True,
        replicas: int = 0,
        nodes: Mapping[str, Machine] | None = None,
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
            store: Makes what shards' disks hold; None: they store nothing.
            has_disks: What is stored outlives processes.
            replicas: How many standbys a shard has: 0 or 1.
            nodes: The machine of each actor; by default each has its own.
            is_spread: See there.
            can_leave: The upstream heeds it when a channel is left.
        """
        self.config: Config = load_mapping(document, {})
        self.compiled: Compiled = compile_config(self.config)
        self.faults = faults or Faults()
        self.timeline = Timeline(seed)
        self.random = self.timeline.random
        self.at, self.run, self.note = self.timeline.at, self.timeline.run, self.timeline.note
        self.trace = self.timeline.trace
        self.nodes: dict[str, Machine] = dict(nodes or {})
        """By actor: the computer it is on."""
        self.processes: dict[str, Process] = {}
        self.network = Network(self.timeline, self.faults, self.processes)
        source = next(iter(self.config.sources))
        self.upstream = Upstream(
            self, self.timeline, self.network, source, repeats=repeats, asks=asks, can_leave=can_leave
        )
        self._traits = SourceTraits(repeats, asks, is_spread or repeats is Repeats.CHANNEL, has_ids=True)
        self._store = store
        self.volumes: dict[str, Volume] = {}
        """By actor."""
        self.has_disks = has_disks
        self.replicas = replicas
        self.records: dict[int, Record] = {}
        self.store_wait_ms = 5_000.0
        self._copies: dict[int, set[str]] = {}
        """Actors that have all that was acknowledged, by shard, as when somebody led it last."""
        self._lost_disks: set[int] = set()
        self._successors: dict[int, str] = {}
        """Who was promoted and may not have led yet, by shard: nobody else has anything of the epoch on record."""
        self._epochs: dict[tuple[Process, str], int] = {}
        """Highest epoch of a shard that a gateway has taken anything of."""
        self.on_loss: Callable[[int, tuple[str, ...], bool], None] | None = None
        """Told of what may be lost: shard, levels of what was acknowledged by now, whether the last copy of the rest is gone too."""
        cluster = self.config.cluster
        self._moves = Moves(self, cluster.shards, cluster.coordinators)
        self.scaling = Scaling(Members(1, [f"ingestor-{n}" for n in range(cluster.ingestors)]))
        self.gateways = [f"gateway-{n}" for n in range(cluster.gateways if isinstance(cluster.gateways, int) else 1)]
        self.clients = Clients(self, self.timeline, self.gateways)
        self._ended: set[str] = set()
        """Actors that do not come back."""
        self._is_down = False
        """Nobody begins before all do."""
        self._last_life: dict[str, int] = {}
        """As Ray keeps it."""
        shards = [actor for n in range(cluster.shards) for actor in self._actors(f"shard-{n}")]
        names = [*shards, *self.gateways, *([SUPERVISOR] if replicas else [])]
        names += [f"coordinator-{n}" for n in range(cluster.coordinators)] + self.scaling.actors
        for name in names:
            self.start(name)

    @property
    def now_ms(self) -> float:
        """The true time."""
        return self.timeline.now_ms

    @property
    def machines(self) -> dict[str, Any]:
        """The machines that live, by actor."""
        return {name: process.machine for name, process in self.processes.items()}

    @property
    def slots(self) -> SlotMap:
        """Return the slot map that counts."""
        return self._moves.slots

    @property
    def moves(self) -> SlotMoves:
        """What moves slots."""
        return self._moves.machine

    # --- processes -----------------------------------------------------------------------------------------------

    def node(self, name: str) -> Machine:
        """Return the computer that an actor is on: its own, unless another was set."""
        return self.nodes.setdefault(name, Machine(f"node of {name}"))

    def start(self, name: str) -> None:
        """Begin a life of an actor."""
        kind = name.partition("-")[0]
        if self._is_down:
            return
        if kind in ("ingestor", "gateway") and not self.moves.is_settled:  # it asks for the map, and waits
            self.at(MAP_POLL_MS, lambda: self.start(name) if self._is_due(name) else None)
            return
        process = self.processes[name] = Process(name, self.node(name), self.timeline)
        process.life = self._last_life[name] = next_life(process.now_ms(), self._last_life.get(name))
        self.note(f"{name} lives as {process.life}")
        if kind == "shard":
            self._hold(process)
        elif kind == SUPERVISOR:
            shards = [shard_at(name) for name in self.existing if name.startswith("shard-")]
            process.machine = Supervision(self, process, shards, replicas=self.replicas, wait_ms=self.store_wait_ms)
        else:
            process.machine = self._machine(process)
            self.run_effects(process, ())

    def _hold(self, process: Process) -> None:
        volume = None
        if self._store is not None and self.has_disks:
            volume = self.volumes.setdefault(process.name, Volume(process.name, self._store))
        holder = process.holder = Holder(self, process, volume, self._store, replicas=self.replicas)
        if self.replicas:
            holder.wait()
        else:
            holder.begin_alone()

    def _machine(self, process: Process) -> Any:
        name, life = process.name, process.life
        slots, compiled = self.slots, self.compiled
        match name.partition("-")[0]:
            case "coordinator":
                return CoordinatorState(name, life, profiles=compiled.profiles)
            case "ingestor":
                return IngestionState(
                    name,
                    life,
                    routers={source: compiled.router(source) for source in self.config.sources},
                    always=compiled.feeds.always(),
                    slots=slots,
                    shards=slots.shards,
                    coordinators=slots.coordinators,
                    profiles=compiled.profiles,
                    traits=dict.fromkeys(self.config.sources, self._traits),
                    members=self.scaling.members,
                )
            case _:
                return GatewayState(
                    name,
                    life,
                    slots=slots,
                    shards=slots.shards,
                    tokens=Tokens("simulated", "simulation"),
                    mutations=compiled.mutations,
                )

    def made(self, process: Process, epoch: int, *, keeps: bool, on_disk: bool) -> ShardState:
        """Return a new machine for a shard."""
        name, incarnation, compiled = shard_of(process.name), epoch + EPOCH_ORIGIN_MS, self.compiled
        return ShardState(
            name,
            incarnation,
            epoch=epoch,
            queries=compiled.queries,
            feeds=compiled.feeds,
            demand=ChannelDemand(
                name,
                incarnation,
                now_ms=process.now_ms(),
                members=Members(0, []),
                spread=self.config.sources if self._traits.is_spread else (),
                linger_ms=compiled.feeds.linger_ms,
            ),
            gateways=self.gateways,
            replay_ms=max(profile.max_wait_ms for profile in compiled.profiles),
            entities=compiled.entities,
            relations=compiled.relations,
            origins=compiled.origins,
            keeps=keeps,
            undurable="" if on_disk else "off",
            mutations=compiled.mutations,
            shards=self.slots.shards,
            place=lambda key: self.slots.shard(CanonicalKey(key)),
        )

    def leads(self, process: Process) -> None:
        """A process is the primary of its shard from now on: the supervisor tells it which ingestors there are, and which slot map."""
        machine = process.machine
        self.run_effects(process, machine.members(self.scaling.members, process.now_ms())[1])
        process.later(self.network.delay(), lambda: self._moves.tell(process))

    def primary(self, shard: int) -> Process | None:
        """Return the process that leads a shard under the highest epoch, if one does."""
        held = [self.processes[actor] for actor in actors_of(f"shard-{shard}") if actor in self.processes]
        leading = [process for process in held if process.holder.state.shard is not None]
        return max(leading, key=lambda process: process.holder.state.replication.epoch, default=None)

    # --- what may be lost ----------------------------------------------------------------------------------------

    def led(self, shard: int) -> Process | None:
        """Return the process that leads a shard as the record has it, if one does."""
        process = self.primary(shard)
        if process is None or not self.replicas:
            return process
        record = self.records.get(shard)
        is_on_record = record is not None and process.name == record.primary
        return process if is_on_record and process.holder.state.replication.epoch == record.epoch else None  # type: ignore[union-attr]

    def keep(self, shard: int, record: Record) -> None:
        """Keep the roles of a shard, as Ray does. A primary that lives and is to go on alone has the only copy from now on."""
        before, self.records[shard] = self.records.get(shard), record
        process = self.processes.get(record.primary)
        if before is not None and before.primary != record.primary:
            self._successors[shard] = record.primary
        elif before is not None and process is not None and process.holder.state.shard is not None:
            self._copies[shard] = {record.primary}

    def _harmed(self, name: str, how: str) -> None:
        """Something happens to an actor: say what may be lost by it of what was acknowledged."""
        if not name.startswith("shard-"):
            return
        shard = shard_at(shard_of(name))
        process = self.led(shard)
        copies = self._copies.setdefault(shard, set())
        if process is not None:
            self._successors.pop(shard, None)
            replication = process.holder.state.replication
            standby = self.processes.get(replication.standby)
            is_whole = (
                standby is not None
                and standby.holder.state.following is not None
                and standby.holder.state.following.is_whole
            )
            has_all = replication.is_in_sync and (is_whole or replication.standby in copies)
            copies = self._copies[shard] = {process.name, *([replication.standby] if has_all else [])}
        if how == "lost disks":
            self._lost_disks.add(shard)
            if self._successors.get(shard) == name:
                copies.clear()
        if how != "kill" or not self.has_disks:
            copies.discard(name)
        if self.on_loss is None:
            return
        if copies:
            self.on_loss(shard, ("memory",), False)
        elif how == "power cut" and self.has_disks and shard not in self._lost_disks:
            self.on_loss(shard, ("memory", "replicated", ""), True)
        else:
            self.on_loss(shard, LEVELS_OF_ALL, True)

    def lets_out(self, process: Process) -> None:
        """A primary lets something out: nobody else may lead its shard.

        Raises:
            Violation: somebody does, under a later epoch.
        """
        leads = self.primary(shard_at(shard_of(process.name)))
        if leads is not None and leads.holder.state.replication.epoch > process.holder.state.replication.epoch:
            raise Violation(
                f"{process.name} lets something out as {process.holder.state.replication.epoch}, and {leads.name} leads"
            )

    def has_ended(self, observer: Process, process: Process | None) -> bool:
        """Whether a process has ended, by word of its machine, which the observer can hear."""
        if process is None or process.is_alive:
            return False
        return not (process.lost_power or self.network.heals_ms(process.name, observer.name))

    def renew(self, name: str) -> bool:
        """End a process so that another begins. Returns whether there was one."""
        is_there = name in self.processes
        self.kill(name)
        return is_there

    def kill(self, name: str) -> None:
        """End a life, if there is one; the next begins after `restart_ms`."""
        if name not in self.processes:
            return
        if not self.processes[name].lost_power:
            self._harmed(name, "kill")
        self.note(f"kill {name}")
        self._end(name)
        self.at(self.faults.restart_ms, lambda: self.start(name) if self._is_due(name) else None)

    def restart(self, shards: int, coordinators: int, for_ms: float, *, in_order: bool) -> None:
        """End everybody, down the stream or as it comes; they begin anew after a while, configured for so many shards and coordinators."""
        self.note(f"all end, to be {shards} shards, {coordinators} coordinators")
        self._is_down = True
        for name in list(self.processes):
            at = ORDER.index(name.partition("-")[0]) * for_ms / 10 if in_order else self.random.uniform(0.0, for_ms / 2)
            self.at(at, lambda name=name: self.kill(name))  # type: ignore[misc]
        self.at(for_ms, lambda: self._restarted(shards, coordinators))

    def _restarted(self, shards: int, coordinators: int) -> None:
        self._is_down = False
        self._moves.begin_configured(shards, coordinators)
        count = self.config.cluster.ingestors
        self.scaling = Scaling(Members(1, [f"ingestor-{n}" for n in range(count)]))
        names = [*self.moves.actors, *self.gateways, *([SUPERVISOR] if self.replicas else []), *self.scaling.actors]
        self._ended.update(name for name in self._last_life if shard_of(name) not in names)
        for name in names:
            self.begin(name)

    def _is_due(self, name: str) -> bool:
        return name not in self.processes and name not in self._ended

    def _end(self, name: str) -> None:
        process = self.processes.pop(name)
        process.die()
        self.clients.lost(process)
        self.upstream.ended(name)

    def cut_power(self, names: Iterable[str], *, loses_disks: bool = False) -> None:
        """End what is on a machine at once, and what was not synced; with `loses_disks` all that it stored."""
        for name in names:
            self.note(f"power cut {name}{', its disks are gone' if loses_disks else ''}")
            self._harmed(name, "lost disks" if loses_disks else "power cut")
            if name in self.volumes:
                if loses_disks:
                    self.volumes[name].lose()
                else:
                    self.volumes[name].cut_power()
            if name in self.processes:
                self.processes[name].lost_power = True
            self.kill(name)

    def cut(self, senders: Iterable[str], receivers: Iterable[str], for_ms: float, *, both: bool) -> None:
        """Cut links for a while."""
        senders, receivers = list(senders), list(receivers)
        self.note(f"cut {' '.join(senders)} {'<->' if both else '->'} {' '.join(receivers)} for {for_ms:.0f} ms")
        self.network.cut(senders, receivers, for_ms, both=both)

    def stop(self, name: str, for_ms: float) -> None:
        """Stop a process for a while."""
        process = self.processes.get(name)
        if process is not None and process.stopped_ms is None:
            self.note(f"stop {name} for {for_ms:.0f} ms")
            process.stop()
            self.at(for_ms, lambda: self._go_on(process))

    def _go_on(self, process: Process) -> None:
        if process.is_alive and process.stopped_ms is not None:
            self.note(f"{process.name} goes on")
            process.go_on()

    def go_on(self) -> None:
        """Let everybody go on who is stopped."""
        for process in list(self.processes.values()):
            self._go_on(process)

    def jump(self, name: str, by_ms: float) -> None:
        """Set the wall clock of an actor's computer to another time."""
        self.note(f"clock of {name} jumps by {by_ms:.0f} ms")
        self.node(name).skew_ms += by_ms

    # --- ingestors -----------------------------------------------------------------------------------------------

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
            if name not in self.processes and (name in self._ended or name not in self.nodes):
                self._ended.discard(name)
                self.start(name)
        machines = self.machines
        ingestors = {
            name: Reported(*machine.status())
            for name, machine in machines.items()
            if isinstance(machine, IngestionState) and self.processes[name].stopped_ms is None
        }
        shards = {
            f"shard-{n}": None if (process := self.primary(n)) is None else process.machine.demand.epoch
            for n in range(self.slots.shards)
        }
        for effect in self.scaling.step(ingestors, shards):
            if isinstance(effect, Retire):
                self.note(f"{effect.actor} retires")
                self._end(effect.actor)
                self._ended.add(effect.actor)
                self.upstream.connections.pop(effect.actor, None)
            elif self.random.random() >= self.faults.lose and (to := self.living(effect.actor)) is not None:
                to.later(self.network.delay(), lambda to=to, members=effect.members: self.receive(to, members, void))  # type: ignore[misc]
        self.at(50.0, self._supervise)

    def living(self, address: str) -> Process | None:
        """Return the process that has an address, of a shard its primary; None: there is none."""
        if address.startswith("shard-"):
            return self.primary(shard_at(address))
        return self.processes.get(address)

    # --- shards and coordinators ---------------------------------------------------------------------------------

    def rescale(self, shards: int, coordinators: int) -> None:
        """Have other numbers of shards and coordinators."""
        self.note(f"scale to {shards} shards, {coordinators} coordinators")
        self._moves.want(shards, coordinators)

    def kill_supervisor(self) -> None:
        """Let the supervisor begin anew, as to slots."""
        self.note(f"kill supervisor ({self.moves.phase.value})")
        self._moves.begin_anew()

    @property
    def existing(self) -> list[str]:
        """Return all addresses of which there is an actor, alive or about to be."""
        return list(dict.fromkeys(shard_of(name) for name in self._last_life if name not in self._ended))

    @property
    def may_move_slots(self) -> bool:
        """Whether nothing else is being changed."""
        return self.scaling.is_done

    def _actors(self, address: str) -> tuple[str, ...]:
        return actors_of(address)[: 1 + self.replicas] if address.startswith("shard-") else (address,)

    def begin(self, address: str) -> None:
        """Have an actor, or a shard's two."""
        for actor in self._actors(address):
            self._ended.discard(actor)
            self.start(actor)
        if address.startswith("shard-") and (supervisor := self.processes.get(SUPERVISOR)) is not None:
            supervisor.do(lambda: supervisor.machine.follow(shard_at(address)))

    def retire(self, address: str) -> None:
        """End an actor, or a shard's two, for good, and what they stored."""
        self.note(f"{address} retires")
        if address.startswith("shard-"):
            shard = shard_at(address)
            for kept in (self.records, self._copies, self._successors):
                kept.pop(shard, None)
            if (supervisor := self.processes.get(SUPERVISOR)) is not None:
                supervisor.do(lambda: supervisor.machine.forget(shard))
        for actor in self._actors(address):
            self._ended.add(actor)
            self.volumes.pop(actor, None)
            if actor in self.processes:
                self._end(actor)

    # --- effects -------------------------------------------------------------------------------------------------

    def run_effects(self, process: Process, effects: Iterable[Any]) -> None:
        """Run what a machine wants, and set its timer."""
        if process.holder is not None:
            process.holder.run(effects)
            return
        for effect in effects:
            if isinstance(effect, Send):
                self.carry(process, effect.to, effect.message)
            else:
                self.perform(process, effect)
        self.arm(process)

    def perform(self, process: Process, effect: Any) -> None:
        """Run an effect that is no commit, sync or call."""
        match effect:
            case Deliver(session=session):
                self.clients.deliver(process, session)
            case StartFetch():
                self.upstream.fetch(process, effect)
            case StartMutation():
                self.upstream.mutate(process, effect)
            case Start():
                self.upstream.wanted(process)
            case Stop():
                self.upstream.ended(process.name)
            case Reconnect():
                self.upstream.broken(process)
            case AskMissed():
                self.upstream.ask_missed(process, effect)
            case Join(channel=channel):
                self.upstream.join(process, channel)
            case Leave(channel=channel):
                self.upstream.leave(process, channel)
            case Respond(ticket=ticket, payloads=payloads):
                self.clients.responded(process, ticket, payloads)
            case Resume() | Close():
                pass
            case _:
                raise AssertionError(f"{process.name}: {effect!r}")

    def arm(self, process: Process) -> None:
        """Set the timer of a machine."""
        due = process.machine.deadline()
        if due is None:
            return
        in_ms = process.in_true_ms(due)
        at_ms = self.now_ms + in_ms
        if process.timer_ms is not None and process.timer_ms <= at_ms:
            return
        process.timer_ms = at_ms

        def wake() -> None:
            if process.timer_ms == at_ms:
                process.timer_ms = None
                self.run_effects(process, process.machine.wake(process.now_ms()))

        process.later(in_ms, wake)

    # --- calls, as `cluster.actors.handles` makes them -----------------------------------------------------------

    def carry(self, process: Process, to: str, message: Any) -> None:
        """Make a call by address; what comes of it goes to the machine."""
        machine = process.machine

        def done(answer: Any) -> None:
            if answer is None:
                self.run_effects(process, machine.unanswered(to, message, process.now_ms()))
            else:
                self.run_effects(process, machine.answered(to, message, answer, process.now_ms()))
                if isinstance(machine, GatewayState) and machine.diverged:
                    raise Violation(f"{process.name} has diverged: {machine.diverged}")

        self.say(process, to, message, done)

    def say(self, process: Process, to: str, message: Any, done: Callable[[Any], None]) -> None:
        """Make a call by address: to a shard's primary, as far as the caller knows."""
        if not to.startswith("shard-"):
            self.ship(process, to, message, done)
            return
        primaries = process.primaries
        actor = primaries.actor(to)
        calls = process.calls.setdefault(actor, {})

        def answered(answer: Any) -> None:
            calls.pop(call, None)
            if answer is None:
                primaries.missed(to, actor)
            elif isinstance(answer, Elsewhere):
                primaries.missed(to, actor, answer.primary)
                answer = None
            elif primaries.actor(to) != actor:
                answer = None
            done(answer)

        call = self.ship(process, actor, message, answered)
        calls[call] = None

    def ship(self, process: Process, actor: str, message: Any, done: Callable[[Any], None]) -> Call:
        """Make a call to this very actor."""
        return self.network.call(process, actor, lambda other, answer: self.receive(other, message, answer), done)

    def receive(self, process: Process, message: Any, answer: Callable[[Any], None]) -> None:
        """Have a message taken by a process."""
        if isinstance(message, Primary):
            before = process.primaries.actor(message.shard)
            if process.primaries.told(message.shard, message.actor, message.incarnation) and before != message.actor:
                for call in list(process.calls.get(before, ())):
                    call.fail()
            answer(Noted(message.incarnation))
        elif _is_over(process, message):
            answer(None)
        elif process.holder is not None:
            process.holder.take(STEPS.get(type(message), ""), message, answer)
            if process.holder.state.divergences:
                raise Violation(f"{process.name} has diverged")
        elif isinstance(process.machine, CoordinatorState) and isinstance(message, Rebalance):
            answer(process.machine.rebalance(message))
        else:
            answered, effects = getattr(process.machine, STEPS[type(message)])(message, process.now_ms())
            self.run_effects(process, effects)
            answer(answered)
            if isinstance(message, ChangeSet):
                self._shown(process, message.header.sender)

    def _shown(self, process: Process, shard: str) -> None:
        """A gateway has heard of a shard: it never goes back to an earlier epoch."""
        link = process.machine._by_address.get(shard)
        if link is None:
            return  # it is no more
        epoch = link.position[0]
        if epoch < self._epochs.get((process, shard), 0):
            raise Violation(f"{process.name} went back to epoch {epoch} of {shard}")
        self._epochs[process, shard] = epoch

    def peers(self, process: Process) -> list[str]:
        """Return all who may call a shard."""
        own = shard_of(process.name)
        return [*(name for name in self.moves.actors if name != own), *self.gateways, *self.scaling.actors]

    def disk_ms(self) -> float:
        """Return how long a sync takes."""
        return self.network.delay()


def _is_over(process: Process, message: Any) -> bool:
    """Whether a message is of a shard's life after which a later one was heard of."""
    match message:
        case Announce(sender=sender, incarnation=incarnation):
            return process.primaries.is_over(sender, incarnation)
        case Claimed(shard=shard, incarnation=incarnation):
            return process.primaries.is_over(f"shard-{shard}", incarnation)
        case ChangeSet(header=header) | Demand(header=header) | Overlays(header=header) | SlotSlice(header=header):
            return process.primaries.is_over(header.sender, header.incarnation)
        case _:
            return False
