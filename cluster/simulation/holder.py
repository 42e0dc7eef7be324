"""A shard's actor: what carries out the effects of `ShardHolder`, and keeps its time, as `cluster.actors.shard` does.

What must not live here: what an actor makes of its role (`core.shard_holder`), who gets which (`supervision`), how calls travel (`network`).
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from cluster.core.messages import Primary, Replicate, Send
from cluster.core.placement import shard_at
from cluster.core.primaries import shard_of
from cluster.core.replication import Reply
from cluster.core.role import EPOCH_ORIGIN_MS, Grant, Roleless
from cluster.core.shard_holder import (
    Committed,
    Diverged,
    Filled,
    Follow,
    Lead,
    News,
    ShardHolder,
    StandbyIs,
    StepDown,
    StoreLost,
)
from cluster.core.shard_roles import Record, Report
from cluster.core.shard_state import ShardState, Sync
from cluster.core.transaction import Store, Stored
from cluster.simulation.disk import Disk, Volume
from cluster.simulation.process import Process
from cluster.simulation.timeline import Timeline, void

SYNC_MS = 100.0
"""How long what was committed may wait to be synced."""
REPORT_MS = 2_000.0
"""How long a report waits for news."""
PROCLAIM_MS = 200.0
Answerer = Callable[[Any], None]


class Host(Protocol):
    """What holders need of their world."""

    timeline: Timeline
    records: dict[int, Record]
    """Roles of shards, as Ray keeps them."""

    def made(self, process: Process, epoch: int, *, keeps: bool, on_disk: bool) -> ShardState:
        """Return a new machine for a shard."""
        ...

    def leads(self, process: Process) -> None:
        """A process is the primary of its shard from now on: tell it what the supervisor knows."""
        ...

    def perform(self, process: Process, effect: Any) -> None:
        """Run an effect of the machine that is no sync or call."""
        ...

    def carry(self, process: Process, to: str, message: Any) -> None:
        """Make a call by address; what comes of it goes to the machine."""
        ...

    def ship(self, process: Process, actor: str, message: Any, done: Callable[[Any], None]) -> Any:
        """Make a call to this very actor."""
        ...

    def say(self, process: Process, to: str, message: Any, done: Callable[[Any], None]) -> None:
        """Make a call by address."""
        ...

    def lets_out(self, process: Process) -> None:
        """A primary lets something out."""
        ...

    def arm(self, process: Process) -> None:
        """Set the timer of the machine."""
        ...

    def kill(self, name: str) -> None:
        """End a process; another begins."""
        ...

    def disk_ms(self) -> float:
        """Return how long a sync takes."""
        ...

    def peers(self, process: Process) -> list[str]:
        """Return all who may call a shard."""
        ...


class Holder:
    """See the module."""

    def __init__(
        self,
        host: Host,
        process: Process,
        volume: Volume | None,
        make_store: Callable[[], Store] | None,
        *,
        replicas: int,
    ) -> None:
        """`volume`: where its disks are; None: what it stores, if anything, ends with the process; `replicas`: how many standbys there are to be."""
        self._host = host
        self._process = process
        self._volume = volume
        self._make_store = make_store
        self._replicas = replicas
        self.state = ShardHolder(
            process.name,
            int(process.now_ms()),
            self,
            memory_id=f"{process.name}/memory/{process.life}",
            is_stored=volume is not None,
            is_replicated=replicas > 0,
        )
        self._waiting: list[tuple[Report | None, Answerer]] = []
        """Who waits for a report other than this one."""
        self._beat_ms: float | None = None
        self._is_sync_due = False
        process.machine = Roleless()

    # --- what the machine needs at once --------------------------------------------------------------------------

    def begin_store(self) -> Disk | None:
        """Begin an empty disk."""
        return None if self._volume is None else self._volume.begin(self._process)

    def load_store(self, taken: Disk) -> Stored | None:
        """Return what a disk holds."""
        return taken.load()

    def memory_store(self) -> Store:
        """Return an empty store that ends with the process."""
        assert self._make_store is not None
        return self._make_store()

    def made(self, epoch: int, *, keeps: bool, on_disk: bool) -> ShardState:
        """Return a new machine."""
        return self._host.made(self._process, epoch, keeps=keeps, on_disk=on_disk)

    def owns(self, _key: str) -> bool:
        """Whatever is stored is here since it belongs here."""
        return True

    # --- roles ---------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Begin without a role."""
        if self._volume is not None and (disk := self._volume.take(self._process)) is not None:
            self._carry_out(self.state.found(disk))

    def begin_alone(self) -> None:
        """Begin as the primary, whom nobody need tell."""
        self.wait()
        shard, records = shard_at(shard_of(self._process.name)), self._host.records
        records[shard], effects = self.state.begin_alone(records.get(shard), self._process.now_ms())
        self._carry_out(effects)

    def ask(self, known: Report | None, answer: Answerer) -> None:
        """Answer with the report as soon as it is another than `known`, or after a while."""
        if self.state.report() != known:
            answer(self.state.report())
            return
        waiter = (known, answer)
        self._waiting.append(waiter)

        def tire() -> None:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                answer(self.state.report())

        self._process.later(REPORT_MS, tire)

    def _tell(self) -> None:
        report = self.state.report()
        waiting, self._waiting = self._waiting, []
        for known, answer in waiting:
            if report != known:
                answer(report)
            else:
                self._waiting.append((known, answer))

    def grant(self, life: int, grant: Grant) -> None:
        """Take a role, if it is meant for this life of the actor."""
        if life == self.state.life:
            self._note(f"is granted {grant.role} {grant.epoch} {grant.other}")
        self._carry_out(self.state.grant(life, grant, self._process.now_ms()))

    def _note(self, text: str) -> None:
        self._host.timeline.note(f"{self._process.name} {text}")

    def _leads(self, epoch: int) -> None:
        process = self._process
        process.machine = self.state.shard
        self._note(f"leads as {epoch}")
        if self._replicas:
            message = Primary(shard_of(process.name), process.name, epoch + EPOCH_ORIGIN_MS)
            for actor in self._host.peers(process):
                self._proclaim(actor, message)
        self._host.leads(process)

    def _proclaim(self, actor: str, message: Primary) -> None:
        """Tell an actor who leads, until it has heard."""

        def done(answer: Any) -> None:
            if answer is None:
                self._process.later(PROCLAIM_MS, lambda: self._proclaim(actor, message))

        self._host.say(self._process, actor, message, done)

    # --- steps ---------------------------------------------------------------------------------------------------

    def take(self, step: str, message: Any, answer: Answerer) -> None:
        """Take a message."""
        state, now_ms = self.state, self._process.now_ms()
        if isinstance(message, Replicate):
            replicated, effects = state.replicate(message, now_ms)
            self._carry_out(effects)
            answer(replicated)
        elif (refusal := state.refusal(message)) is not None:
            answer(refusal)
        else:
            answered, effects = getattr(state.shard, step)(message, now_ms)
            self._carry_out(state.step(effects, now_ms, ticket=answer, answer=answered))

    def run(self, effects: Iterable[Any]) -> None:
        """Run what a step wants."""
        self._carry_out(self.state.step(effects, self._process.now_ms()))

    def _carry_out(self, effects: Iterable[Any]) -> None:
        process, host = self._process, self._host
        for effect in effects:
            match effect:
                case Reply(ticket=reply, answer=answer):
                    host.lets_out(process)
                    reply(answer)
                case Send(to=to, message=Replicate() as message):
                    host.ship(process, to, message, lambda answer, message=message: self._shipped(message, answer))  # type: ignore[misc]
                case Send(to=to, message=message):
                    host.lets_out(process)
                    host.carry(process, to, message)
                case Committed():
                    self._written()
                case Sync():
                    self._sync()
                case News():
                    self._tell()
                case Lead(epoch=epoch):
                    self._leads(epoch)
                case Filled():
                    self._note("is whole: True")
                    if self._volume is not None:
                        self._volume.tidy(process)
                case Diverged(reason=reason):
                    self._note(f"is whole: False {reason}")
                case StandbyIs(is_in_sync=is_in_sync, lost=lost):
                    host.timeline.note(f"{process.name}'s standby: {is_in_sync} {lost}")
                case StoreLost(store=store):
                    self._note(f"begins without its disk {store}")
                case StepDown(reason=reason):
                    self._note(f"steps down: {reason}")
                    host.kill(process.name)
                case Follow():
                    pass
                case _:
                    host.perform(process, effect)
        host.arm(process)
        self._arm_beat()

    def _shipped(self, message: Replicate, answer: Any) -> None:
        self._carry_out(self.state.shipped(message, answer, self._process.now_ms()))

    def _arm_beat(self) -> None:
        due = self.state.deadline()
        if due is None:
            return
        in_ms = self._process.in_true_ms(due)
        at_ms = self._host.timeline.now_ms + in_ms
        if self._beat_ms is not None and self._beat_ms <= at_ms:
            return
        self._beat_ms = at_ms

        def beat() -> None:
            if self._beat_ms == at_ms:
                self._beat_ms = None
                self._carry_out(self.state.wake(self._process.now_ms()))

        self._process.later(in_ms, beat)

    # --- the store -----------------------------------------------------------------------------------------------

    def _written(self) -> None:
        """Something was committed: sync it in time."""
        if self.state.taken is not None and not self._is_sync_due:
            self._is_sync_due = True
            self._process.later(SYNC_MS, self._sync_window)

    def _sync_window(self) -> None:
        self._is_sync_due = False
        if self.state.taken is not None:
            self._process.later(self._host.disk_ms(), self.state.taken.begin_sync())

    def _sync(self) -> None:
        disk, shard = self.state.taken, self.state.shard
        safe = void if disk is None else disk.begin_sync()

        def done() -> None:
            if disk is not None:
                safe()  # type: ignore[call-arg]
            assert shard is not None
            self.run(shard.synced(self._process.now_ms()))

        self._process.later(self._host.disk_ms(), done)
