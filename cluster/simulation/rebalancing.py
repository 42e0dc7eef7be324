"""The supervisor's part in moves of slots: it asks everybody, and has shards and coordinators made and ended.

It does what `cluster.actors.rebalancing` and `cluster.actors.supervisor` do.

What must not live here: what is said when (`core.slot_move`), what a life of an actor begins with (`world`).
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from cluster.core.messages import Progress, Rebalance
from cluster.core.placement import SlotMap, assign_slots
from cluster.core.slot_move import Phase, SlotMoves
from cluster.simulation.network import Faults, Network
from cluster.simulation.process import Process
from cluster.simulation.timeline import Timeline, void

MAP_POLL_MS = 20.0
"""While somebody who begins waits for a cut to be over."""
LATE_MS = 2_500.0
PATIENCE = 8
"""Mean delays for which answers are waited for."""


class Host(Protocol):
    """What moves need of their world."""

    timeline: Timeline
    network: Network
    faults: Faults
    gateways: list[str]

    @property
    def existing(self) -> list[str]:
        """Return all addresses of which there is an actor, alive or about to be."""
        ...

    @property
    def may_move_slots(self) -> bool:
        """Whether nothing else is being changed."""
        ...

    def living(self, address: str) -> Process | None:
        """Return the process that has an address, of a shard its primary; None: there is none."""
        ...

    def begin(self, address: str) -> None:
        """Have an actor, or a shard's two."""
        ...

    def retire(self, address: str) -> None:
        """End an actor, or a shard's two, for good, and what they stored."""
        ...

    def receive(self, process: Process, message: Any, answer: Callable[[Any], None]) -> None:
        """Have a message taken by a process."""
        ...


class Moves:
    """The shell of `SlotMoves`."""

    def __init__(self, host: Host, shards: int, coordinators: int) -> None:
        self._host = host
        self.machine = SlotMoves(shards, coordinators, host.timeline.now_ms)
        self._configured = self.machine.map = assign_slots(range(shards), 1, coordinators)
        self.machine.phase = Phase.IDLE
        self._is_moving = False

    @property
    def slots(self) -> SlotMap:
        """Return the slot map that counts; while that is looked for, what the configuration would make."""
        return self._configured if self.machine.map is None else self.machine.map

    def want(self, shards: int, coordinators: int) -> None:
        """Have other numbers of shards and coordinators."""
        self.machine.want(shards, coordinators)
        self._begin()

    def begin_anew(self) -> None:
        """The supervisor has died, and begins anew."""
        map_then = self.machine.map
        found = sum(name.startswith("shard-") for name in self._host.existing)
        self.machine = SlotMoves(1, 1, self._host.timeline.now_ms, found=found, keeps=True)
        self.machine.map = map_then  # for who begins while it looks, as who asks it then waits
        self._begin()

    def begin_configured(self, shards: int, coordinators: int) -> None:
        """The whole cluster begins anew: only what shards have stored says which map counts."""
        self.machine = SlotMoves(shards, coordinators, self._host.timeline.now_ms)
        self._configured = assign_slots(range(shards), 1, coordinators)
        self._begin()

    def tell(self, process: Process) -> None:
        """A shard's new primary asks which map there is; while slots are about to move it waits for what it is told of that."""
        if self.machine.is_settled:
            answer = Rebalance("release", self.slots, 0)
            process.later(self._delay(), lambda: self._host.receive(process, answer, void))
        else:
            process.later(MAP_POLL_MS, lambda: self.tell(process))

    def _begin(self) -> None:
        if not self._is_moving:
            self._is_moving = True
            self._host.timeline.at(1.0, self._step)

    def _step(self) -> None:
        host, machine = self._host, self.machine
        existing = host.existing
        for name in machine.actors:
            if name not in existing:
                host.begin(name)
        existing = host.existing
        if host.may_move_slots:
            machine.begin([name for name in existing if host.living(name) is not None], host.timeline.now_ms)
        asks = machine.asks([name for name in existing if name.startswith("ingestor")], host.gateways)
        said: dict[str, Progress | None] = dict.fromkeys(asks)
        for name, ask in asks.items():
            self._ask(name, ask, said)
        host.timeline.at(PATIENCE * host.faults.delay_ms, lambda: self._heard(machine, asks, said))

    def _ask(self, name: str, ask: Rebalance, said: dict[str, Progress | None]) -> None:
        host = self._host
        timeline, faults = host.timeline, host.faults
        process = host.living(name)
        if process is None or timeline.random.random() < faults.lose:
            return

        def answered(answer: Any) -> None:
            if isinstance(answer, Progress) and timeline.random.random() >= faults.lose:
                timeline.at(host.network.delay(), lambda: said.update({name: answer}))

        process.later(self._delay(), lambda: host.receive(process, ask, answered))

    def _delay(self) -> float:
        """Return how long a word is on its way: as a message, but for some that somebody busy hears late."""
        host = self._host
        is_late = host.timeline.random.random() < host.faults.repeat / 10
        return host.network.delay() + (host.timeline.random.uniform(0.0, LATE_MS) if is_late else 0.0)

    def _heard(self, machine: SlotMoves, asks: dict[str, Rebalance], said: dict[str, Progress | None]) -> None:
        host = self._host
        if machine is self.machine:
            before = machine.phase
            machine.heard(asks, said, host.timeline.now_ms)
            if machine.phase is not before:
                host.timeline.note(f"slots: {before.value} -> {machine.phase.value}")
        if self.machine.phase is Phase.IDLE:
            wanted = self.machine.actors
            for name in _shards_and_coordinators(host.existing):
                if name not in wanted:
                    host.retire(name)
        if self.machine.is_done:
            self._is_moving = False
        else:
            self._step()


def _shards_and_coordinators(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(("shard-", "coordinator-"))]
