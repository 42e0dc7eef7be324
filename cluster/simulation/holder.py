"""What a shard's actor holds: nothing, the standby, or the primary. It puts the machines together as `cluster.actors.shard` does.

Every step ends in one commit, here and at the standby, whatever began it; what the step lets out leaves when `Replication` says so.

What must not live here: who gets which role (`supervision`), how calls travel (`network`).
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from cluster.core.messages import (
    Answer,
    Batch,
    Elsewhere,
    Full,
    Primary,
    Replicate,
    Requests,
    Send,
)
from cluster.core.primaries import shard_of
from cluster.core.replication import Following, Replication, Reply
from cluster.core.role import EPOCH_ORIGIN_MS, Grant, Role, Roleless, Standing, next_epoch
from cluster.core.shard_roles import Report
from cluster.core.shard_state import Commit, ShardState, Sync
from cluster.core.transaction import Transaction
from cluster.simulation.disk import Disk, Volume
from cluster.simulation.process import Process
from cluster.simulation.timeline import Timeline, void

SYNC_MS = 100.0
"""How long what was committed may wait to be synced."""
REPORT_MS = 2_000.0
"""How long a report waits for news."""
FULL_RETRY_MS = 100.0
PROCLAIM_MS = 200.0
Answerer = Callable[[Any], None]


class Host(Protocol):
    """What holders need of their world."""

    timeline: Timeline

    def made(self, process: Process, epoch: int, *, keeps: bool, on_disk: bool) -> ShardState:
        """Return a new machine for a shard."""
        ...

    def leads(self, process: Process) -> None:
        """A process is the primary of its shard from now on: tell it what the supervisor knows."""
        ...

    def perform(self, process: Process, effect: Any) -> None:
        """Run an effect that is no commit, sync or call."""
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
        make_store: Callable[[], Any] | None,
        *,
        replicas: int,
    ) -> None:
        """`volume`: where its disks are; None: what it stores, if anything, ends with the process; `replicas`: how many standbys there are to be."""
        self._host = host
        self._process = process
        self._volume = volume
        self._make_store = make_store
        self._replicas = replicas
        self.shard: ShardState | None = None
        self.replication = Replication(0, None)
        self.following: Following | None = None
        self.disk: Disk | None = None
        self._store: Any = None
        self._memory_id = f"{process.name}/memory/{process.life}"
        self._life = int(process.now_ms())
        self._waiting: list[tuple[Report | None, Answerer]] = []
        """Who waits for a report other than this one."""
        self._beat_ms: float | None = None
        self._is_sync_due = False
        process.machine = Roleless()

    @property
    def role(self) -> Role:
        """What this actor is."""
        if self.shard is not None:
            return Role.PRIMARY
        return Role.NONE if self.following is None else Role.STANDBY

    # --- roles ---------------------------------------------------------------------------------------------------

    def wait(self) -> None:
        """Begin without a role."""
        if self._volume is not None:
            self.disk = self._volume.take(self._process)

    def begin_alone(self, life: int) -> None:
        """Begin as the primary, whom nobody need tell; `life` is above those before."""
        self.wait()
        before = () if self.disk is None else (self.disk.standing.epoch, self.disk.come_to[0])
        self.lead(next_epoch(life, *before))

    def report(self) -> Report:
        """Say what it is."""
        disk, replication = self.disk, self.replication
        store = disk.id if disk is not None else self._memory_id if self._store is not None else ""
        if self.following is not None:
            return Report(self.following.life, Role.STANDBY, self.following.epoch, store, self.following.is_whole)
        if self.shard is not None:
            return Report(
                self._life,
                Role.PRIMARY,
                replication.epoch,
                store,
                True,
                standby=replication.standby,
                standby_life=replication.life,
                is_in_sync=replication.is_in_sync,
                is_lost=bool(replication.lost),
            )
        if disk is None:
            return Report(self._life, Role.NONE, 0)
        return Report(self._life, Role.NONE, disk.standing.epoch, disk.id, disk.standing.is_whole, disk.come_to)

    def ask(self, known: Report | None, answer: Answerer) -> None:
        """Answer with the report as soon as it is another than `known`, or after a while."""
        if self.report() != known:
            answer(self.report())
            return
        waiter = (known, answer)
        self._waiting.append(waiter)

        def tire() -> None:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
                answer(self.report())

        self._process.later(REPORT_MS, tire)

    def _tell(self) -> None:
        """What the supervisor is told may have changed."""
        replication = self.replication
        if self.shard is not None and replication.epoch:
            self.shard.acknowledgements.standby = (
                "in_sync" if replication.is_in_sync else "missing" if self._replicas else "off"
            )
        report = self.report()
        waiting, self._waiting = self._waiting, []
        for known, answer in waiting:
            if report != known:
                answer(report)
            else:
                self._waiting.append((known, answer))

    def grant(self, life: int, grant: Grant) -> None:
        """Take a role, if it is meant for this life of the actor."""
        if life != self.report().life:
            return
        process, replication, following = self._process, self.replication, self.following
        self._host.timeline.note(f"{process.name} is granted {grant.role} {grant.epoch} {grant.other}")
        now_ms = process.now_ms()
        match self.role, grant.role:
            case Role.PRIMARY, Role.PRIMARY:
                if grant.epoch > replication.epoch:
                    self._let_out(replication.detach(grant.epoch))
                elif grant.epoch == replication.epoch and grant.other and replication.is_alone:
                    self._let_out(replication.attach(grant.other, grant.other_life, now_ms))
                self._tell()
            case Role.PRIMARY, _:
                if grant.epoch > replication.epoch:
                    self._step_down()
            case Role.NONE, Role.PRIMARY:
                if grant.begins_empty:
                    self._begin_store()
                self.lead(grant.epoch)
            case Role.STANDBY, Role.PRIMARY:
                assert following is not None
                if not following.is_whole:
                    self._step_down()
                    return
                if following.may_lead_at is None or grant.is_dead:
                    lead_at = following.lead(now_ms, is_dead=grant.is_dead)
                    process.later(process.in_true_ms(lead_at), lambda: self._succeed(following, grant.epoch))
            case _, Role.STANDBY:
                if following is None or grant.epoch > following.epoch or grant.other != following.primary:
                    self._follow(grant)

    def _step_down(self) -> None:
        self._host.timeline.note(f"{self._process.name} steps down")
        self._host.kill(self._process.name)

    def _begin_store(self) -> None:
        self.disk = None if self._volume is None else self._volume.begin(self._process)

    def _follow(self, grant: Grant) -> None:
        """Be the standby, with an empty store; what else is here is kept until that has everything."""
        if self.following is None:
            self._begin_store()
            assert self._make_store is not None
            self._store = self._make_store() if self.disk is None else self.disk
        self._life += 1
        self.following = Following(grant.other, grant.epoch, self._life, self._store)
        self._tell()

    def _replicate(self, message: Replicate) -> Answer:
        following = self.following
        if following is None:
            return Elsewhere(self._process.name if self.shard is not None else "")
        was_whole, life = following.is_whole, following.life
        answer = following.replicate(message, self._process.now_ms())
        self._written()
        if (following.is_whole, following.life) != (was_whole, life):
            self._life = following.life
            self._host.timeline.note(f"{self._process.name} is whole: {following.is_whole} {following.failure}")
            self._tell()
        if following.is_whole and not was_whole and self._volume is not None:
            self._volume.tidy(self._process)
        return answer

    def _succeed(self, following: Following, epoch: int) -> None:
        if self.following is following:
            self.following = None
            self._life += 1
            self.lead(epoch)

    def lead(self, epoch: int) -> None:
        """Be the primary, with what the store holds."""
        process = self._process
        if self.disk is None and self._store is None:
            self._begin_store()
        if self.disk is not None:
            self._store = self.disk
        elif self._store is None and self._make_store is not None:
            self._store = self._make_store()
        stored = None if self._store is None else self._store.load()
        if self._store is not None:
            self._store.stand(Standing(epoch, is_whole=True))
        self.replication = Replication(epoch, self._store)
        shard = self.shard = process.machine = self._host.made(
            process, epoch, keeps=self._store is not None, on_disk=self.disk is not None
        )
        if stored is not None:
            shard.restore(stored, process.now_ms(), lambda _: True)
            if stored.map is not None:
                shard.slots.await_word(process.now_ms())
        self._host.timeline.note(f"{process.name} leads as {epoch}")
        self._tell()
        self.run(())
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
        if isinstance(message, Replicate):
            answer(self._replicate(message))
            return
        machine, replication = self.shard, self.replication
        if machine is None:
            answer(Elsewhere("" if self.following is None else self.following.primary))
            return
        if replication.is_full and isinstance(message, Batch | Requests):
            answer(Full(FULL_RETRY_MS))
            return
        answered, effects = getattr(machine, step)(message, self._process.now_ms())
        promised, machine.acknowledgements.promised = machine.acknowledgements.promised, {}
        self._step(effects, ticket=answer, answer=answered, promised=promised)

    def run(self, effects: Iterable[Any]) -> None:
        """Run what a step wants."""
        self._step(effects)

    def _step(self, effects: Iterable[Any], **answer: Any) -> None:
        """Commit, here and to the standby, and let out what may leave."""
        transaction: Transaction | None = None
        held: list[Any] = []
        syncs = False
        for effect in effects:
            match effect:
                case Commit():
                    transaction = effect.transaction
                    self._store.commit(transaction)
                    self._written()
                case Sync():
                    syncs = True
                case _:
                    held.append(effect)
        self._let_out(self.replication.step(held, self._process.now_ms(), transaction=transaction, **answer))
        if syncs:
            self._sync()

    def _let_out(self, effects: Iterable[Any]) -> None:
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
                case _:
                    host.perform(process, effect)
        host.arm(process)
        self._arm_beat()

    def _shipped(self, message: Replicate, answer: Any) -> None:
        replication, now_ms = self.replication, self._process.now_ms()
        before = (replication.is_in_sync, replication.lost)
        if answer is None:
            self._let_out(replication.unanswered(message, now_ms))
        else:
            self._let_out(replication.answered(message, answer, now_ms))
        if (replication.is_in_sync, replication.lost) != before:
            self._host.timeline.note(f"{self._process.name}'s standby: {replication.is_in_sync} {replication.lost}")
            self._tell()

    def _arm_beat(self) -> None:
        due = self.replication.deadline()
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
                self._let_out(self.replication.wake(self._process.now_ms()))

        self._process.later(in_ms, beat)

    # --- the store -----------------------------------------------------------------------------------------------

    def _written(self) -> None:
        """Something was committed: sync it in time."""
        if self.disk is not None and not self._is_sync_due:
            self._is_sync_due = True
            self._process.later(SYNC_MS, self._sync_window)

    def _sync_window(self) -> None:
        self._is_sync_due = False
        if self.disk is not None:
            self._process.later(self._host.disk_ms(), self.disk.begin_sync())

    def _sync(self) -> None:
        safe = void if self.disk is None else self.disk.begin_sync()

        def done() -> None:
            if self.disk is not None:
                safe()  # type: ignore[call-arg]
            assert self.shard is not None
            self.run(self.shard.synced(self._process.now_ms()))

        self._process.later(self._host.disk_ms(), done)
