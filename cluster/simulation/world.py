"""A cluster in one process: the machines of all its actors, and what carries their effects out.

Every step comes from one seeded timeline, so a seed replays exactly; `trace` tells what happened. The rooms: `timeline`, `process` (lives,
clocks, stops), `network`, `disk`, `upstream`, `clients`.
"""

from collections.abc import Callable, Iterable
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
    HandOver,
    Members,
    Overlays,
    Requests,
    Send,
    Take,
)
from cluster.core.mutation_queue import StartMutation
from cluster.core.placement import assign_slots
from cluster.core.query_key import CanonicalKey
from cluster.core.scaling import Reported, Retire, Scaling
from cluster.core.shard_state import Commit, ShardState, StartFetch, Sync
from cluster.core.transaction import Store
from cluster.simulation.clients import Clients
from cluster.simulation.disk import Disk
from cluster.simulation.network import Faults, Network
from cluster.simulation.process import Machine, Process
from cluster.simulation.timeline import Timeline, void
from cluster.simulation.upstream import Upstream

EPOCH_ORIGIN_MS = 1_735_689_600_000
SYNC_MS = 100.0
"""How long what was committed may wait to be synced."""
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
    Requests: "requests",
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
            store: Makes what shards' disks hold; None: they have none.
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
        self.nodes: dict[str, Machine] = {}
        """By actor: the computer it is on."""
        self.processes: dict[str, Process] = {}
        self.network = Network(self.timeline, self.faults, self.processes)
        source = next(iter(self.config.sources))
        self.upstream = Upstream(
            self, self.timeline, self.network, source, repeats=repeats, asks=asks, can_leave=can_leave
        )
        self._traits = SourceTraits(repeats, asks, is_spread or repeats is Repeats.CHANNEL, has_ids=True)
        self._store = store
        self.disks: dict[str, Disk] = {}
        self._syncing: set[str] = set()
        """Whose disk is to be synced soon."""
        cluster = self.config.cluster
        self.slots = assign_slots(range(cluster.shards), 1)
        self.scaling = Scaling(Members(1, [f"ingestor-{n}" for n in range(cluster.ingestors)]))
        self.gateways = [f"gateway-{n}" for n in range(cluster.gateways if isinstance(cluster.gateways, int) else 1)]
        self.clients = Clients(self, self.timeline, self.gateways)
        self._ended: set[str] = set()
        """Actors that do not come back."""
        self._last_life: dict[str, int] = {}
        """As Ray keeps it."""
        names = [*(f"shard-{n}" for n in range(cluster.shards)), *self.gateways]
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

    # --- processes -----------------------------------------------------------------------------------------------

    def node(self, name: str) -> Machine:
        """Return the computer that an actor is on: its own, unless another was set."""
        return self.nodes.setdefault(name, Machine(f"node of {name}"))

    def start(self, name: str) -> None:
        """Begin a life of an actor."""
        process = self.processes[name] = Process(name, self.node(name), self.timeline)
        process.life = self._last_life[name] = next_life(process.now_ms(), self._last_life.get(name))
        process.machine = self._machine(process)
        self.note(f"{name} lives as {process.life}")
        if name.startswith("shard"):
            self.run_effects(process, process.machine.members(self.scaling.members, process.now_ms())[1])
        self.run_effects(process, ())

    def _machine(self, process: Process) -> Any:
        name, life = process.name, process.life
        kind, _, index = name.partition("-")
        cluster, compiled = self.config.cluster, self.compiled
        match kind:
            case "shard":
                return self._shard(process)
            case "coordinator":
                shards = [n for n in range(cluster.shards) if n % cluster.coordinators == int(index)]
                return CoordinatorState(name, life, shards=shards, profiles=compiled.profiles)
            case "ingestor":
                return IngestionState(
                    name,
                    life,
                    routers={source: compiled.router(source) for source in self.config.sources},
                    always=compiled.feeds.always(),
                    slots=self.slots,
                    shards=cluster.shards,
                    coordinators=cluster.coordinators,
                    profiles=compiled.profiles,
                    traits=dict.fromkeys(self.config.sources, self._traits),
                    members=self.scaling.members,
                )
            case _:
                return GatewayState(name, life, slots=self.slots, shards=cluster.shards, mutations=compiled.mutations)

    def _shard(self, process: Process) -> ShardState:
        name, life, compiled = process.name, process.life, self.compiled
        machine = ShardState(
            name,
            life,
            epoch=life - EPOCH_ORIGIN_MS,
            queries=compiled.queries,
            feeds=compiled.feeds,
            demand=ChannelDemand(
                name,
                life,
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
            keeps=self._store is not None,
            mutations=compiled.mutations,
            shards=self.config.cluster.shards,
            place=lambda key: self.slots.shard(CanonicalKey(key)),
        )
        if self._store is not None:
            stored = self.disks.setdefault(name, Disk(self._store)).load()
            if stored is not None:
                machine.restore(stored, process.now_ms(), lambda _: True)
        return machine

    def kill(self, name: str) -> None:
        """End a life, if there is one; the next begins after `restart_ms`."""
        if name not in self.processes:
            return
        self.note(f"kill {name}")
        self._end(name)
        self.at(self.faults.restart_ms, lambda: self.start(name) if self._is_due(name) else None)

    def _is_due(self, name: str) -> bool:
        return name not in self.processes and name not in self._ended

    def _end(self, name: str) -> None:
        process = self.processes.pop(name)
        process.die()
        self.clients.lost(process)
        self.upstream.ended(name)

    def cut_power(self, name: str) -> None:
        """End a life of a shard, and of what it has stored what was not synced."""
        self.note(f"power cut {name}")
        if name in self.disks:
            self.disks[name].cut_power()
        self.kill(name)

    def stop(self, name: str, for_ms: float) -> None:
        """Stop a process for a while."""
        process = self.processes.get(name)
        if process is not None and process.stopped_ms is None:
            self.note(f"stop {name}")
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
            f"shard-{n}": machine.demand.epoch if (machine := machines.get(f"shard-{n}")) is not None else None
            for n in range(self.config.cluster.shards)
        }
        for effect in self.scaling.step(ingestors, shards):
            if isinstance(effect, Retire):
                self.note(f"{effect.actor} retires")
                self._end(effect.actor)
                self._ended.add(effect.actor)
                self.upstream.connections.pop(effect.actor, None)
            elif self.random.random() >= self.faults.lose and effect.actor in self.processes:
                process, members = self.processes[effect.actor], effect.members
                process.later(self.network.delay(), lambda p=process, m=members: self._receive(p, m, void))  # type: ignore[misc]
        self.at(50.0, self._supervise)

    # --- effects -------------------------------------------------------------------------------------------------

    def run_effects(self, process: Process, effects: Iterable[Any]) -> None:
        """Run what a machine wants, and set its timer."""
        for effect in effects:
            match effect:
                case Send(to=to, message=message):
                    self._call(process, to, message)
                case Deliver(session=session):
                    self.clients.deliver(process, session)
                case Commit(transaction=transaction):
                    self._disk(process).commit(transaction)
                    self._sync_soon(process)
                case Sync():
                    self._sync(process)
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
                case Resume() | Respond() | Close():
                    pass
                case _:
                    raise AssertionError(f"{process.name}: {effect!r}")
        self._arm(process)

    def _arm(self, process: Process) -> None:
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

    def _call(self, process: Process, to: str, message: Any) -> None:
        def done(answer: Any) -> None:
            machine, now_ms = process.machine, process.now_ms()
            if answer is None:
                self.run_effects(process, machine.unanswered(to, message, now_ms))
            else:
                self.run_effects(process, machine.answered(to, message, answer, now_ms))

        self.network.call(process, to, lambda other, answer: self._receive(other, message, answer), done)

    def _receive(self, process: Process, message: Any, answer: Callable[[Any], None]) -> None:
        step = getattr(process.machine, STEPS[type(message)])
        answered, effects = step(message, process.now_ms())
        self.run_effects(process, effects)
        answer(answered)

    # --- disks ---------------------------------------------------------------------------------------------------

    def _disk(self, process: Process) -> Disk:
        return self.disks[process.name]

    def _sync_soon(self, process: Process) -> None:
        if process.name not in self._syncing:
            self._syncing.add(process.name)
            self.at(SYNC_MS, lambda: self._sync_window(process))

    def _sync_window(self, process: Process) -> None:
        self._syncing.discard(process.name)
        process.do(lambda: process.later(self.network.delay(), self._disk(process).begin_sync()))

    def _sync(self, process: Process) -> None:
        safe = self._disk(process).begin_sync()

        def done() -> None:
            safe()
            self.run_effects(process, process.machine.synced(process.now_ms()))

        process.later(self.network.delay(), done)
