"""The supervisor's part in failover, as `cluster.actors.shard_keeper` does it: it asks shards' actors how they are, and tells them what they are to be.

What must not live here: who gets which role (`core.shard_roles`), what an actor makes of it (`holder`).
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from cluster.core.placement import shard_at
from cluster.core.primaries import actors_of, shard_of
from cluster.core.role import Grant
from cluster.core.shard_roles import Ask, Effect, Keep, Missing, Record, Renew, Report, ShardRoles, Tell
from cluster.simulation.network import Network
from cluster.simulation.process import Process
from cluster.simulation.timeline import Timeline

SUPERVISOR = "supervisor"
SILENT_MS = 3_200.0
PAUSE_MS = 100.0
AGAIN_MS = 500.0
CONFIRM_MS = 400.0


class Host(Protocol):
    """What the supervisor needs of its world."""

    timeline: Timeline
    network: Network
    records: dict[int, Record]
    """Roles of shards, as Ray keeps them."""

    def keep(self, shard: int, record: Record) -> None:
        """Keep the roles of a shard, as Ray does."""
        ...

    def has_ended(self, observer: Process, process: Process | None) -> bool:
        """Whether a process has ended, by word of its machine, which the observer can hear."""
        ...

    def renew(self, name: str) -> bool:
        """End a process so that another begins. Returns whether there was one."""
        ...


class Supervision:
    """One life of the supervisor."""

    def __init__(self, host: Host, process: Process, shards: Iterable[int], *, replicas: int, wait_ms: float) -> None:
        self._host = host
        self._process = process
        self._effects: deque[Effect] = deque()
        self._is_working = False
        self._told: dict[str, tuple[Tell, float]] = {}
        self._is_heard: dict[str, Process] = {}
        self._replicas = replicas
        self._wait_ms = wait_ms
        self.shards: dict[int, ShardRoles] = {}
        for shard in shards:
            self.follow(shard)

    def follow(self, shard: int) -> None:
        """Give roles to a shard's actors, which exist or are about to."""
        if shard in self.shards:
            return
        now_ms = self._process.now_ms()
        roles = ShardRoles(shard, self._host.records.get(shard), wait_ms=self._wait_ms, now_ms=now_ms)
        self.shards[shard] = roles
        actors = actors_of(f"shard-{shard}")[: 1 + self._replicas]
        self._put(roles.want(actors, now_ms))
        for actor in actors:
            self._watch(roles, actor, None)

    def forget(self, shard: int) -> None:
        """A shard is no more."""
        self.shards.pop(shard, None)
        for actor in actors_of(f"shard-{shard}"):
            self._told.pop(actor, None)
            self._is_heard.pop(actor, None)

    def _watch(self, roles: ShardRoles, actor: str, known: Report | None) -> None:
        """Wait for news of an actor, for as long as there is the shard."""
        if self.shards.get(roles.shard) is not roles:
            return
        process = self._process
        heard: list[Process] = []

        def done(report: Report | None) -> None:
            if self.shards.get(roles.shard) is not roles:
                return
            if report is None:
                if actor in self._is_heard:
                    lost = self._is_heard.pop(actor)
                    if not self._host.has_ended(process, lost):
                        process.later(CONFIRM_MS, lambda: self._confirm(roles, actor, lost))
                        return
                    self._died(roles, actor, is_certain=True)
                process.later(PAUSE_MS, lambda: self._watch(roles, actor, None))
                return
            self._is_heard[actor] = heard[0]
            self._put(roles.reported(actor, report, process.now_ms()))
            self._watch(roles, actor, report)

        def receive(asked: Process, answer: Callable[[Any], None]) -> None:
            heard.append(asked)
            asked.holder.ask(known, answer)

        self._host.network.call(process, actor, receive, done, SILENT_MS)

    def _confirm(self, roles: ShardRoles, actor: str, lost: Process) -> None:
        self._died(roles, actor, is_certain=self._host.has_ended(self._process, lost))
        self._process.later(PAUSE_MS, lambda: self._watch(roles, actor, None))

    def _ask(self, actor: str) -> None:
        """Ask an actor how it is now."""
        roles = self.shards.get(shard_at(shard_of(actor)))
        if roles is None:
            return

        def done(report: Report | None) -> None:
            if report is not None:
                self._put(roles.reported(actor, report, self._process.now_ms()))

        self._host.network.call(
            self._process, actor, lambda asked, answer: asked.holder.ask(None, answer), done, SILENT_MS
        )

    def _died(self, roles: ShardRoles, actor: str, *, is_certain: bool) -> None:
        if self.shards.get(roles.shard) is not roles:
            return
        self._host.timeline.note(f"supervisor lost {actor}, certainly: {is_certain}")
        self._put(roles.died(actor, self._process.now_ms(), is_certain=is_certain))

    def _put(self, effects: Iterable[Effect]) -> None:
        self._effects.extend(effects)
        if not self._is_working:
            self._work()

    def _work(self) -> None:
        """Carry out effects, in order: what is to be kept is, before anybody is told."""
        self._is_working = False
        while self._effects:
            match self._effects.popleft():
                case Keep(shard=shard, record=record):
                    self._is_working = True
                    self._process.later(self._host.network.delay(), lambda s=shard, r=record: self._keep(s, r))  # type: ignore[misc]
                    return
                case Tell() as tell:
                    self._tell(tell)
                case Ask(actor=actor):
                    self._ask(actor)
                case Renew(shard=shard, actor=actor):
                    self._process.later(self._host.network.delay(), lambda s=shard, a=actor: self._renew(s, a))  # type: ignore[misc]
                case Missing(shard=shard, store=store):
                    self._host.timeline.note(f"store {store} of shard-{shard} is missing")
                case effect:
                    raise AssertionError(f"supervisor: {effect!r}")

    def _renew(self, shard: int, actor: str) -> None:
        roles = self.shards.get(shard)
        if roles is not None and actor not in roles.reports:
            was_there = self._host.renew(actor)
            self._put(roles.replaced(actor, self._process.now_ms(), was_there=was_there))

    def _keep(self, shard: int, record: Record) -> None:
        if shard in self.shards:
            self._host.timeline.note(f"shard-{shard} is {record.primary}'s as {record.epoch}, in {record.store}")
            self._host.keep(shard, record)
        self._work()

    def _tell(self, tell: Tell) -> None:
        """Tell an actor, unless it has just been told the same."""
        before = self._told.get(tell.actor)
        now_ms = self._host.timeline.now_ms
        if before is not None and before[0] == tell and now_ms - before[1] < AGAIN_MS:
            return
        self._told[tell.actor] = (tell, now_ms)
        life: int = tell.life
        grant: Grant = tell.grant

        def receive(process: Process, answer: Callable[[Any], None]) -> None:
            process.holder.grant(life, grant)
            answer(True)

        self._host.network.call(self._process, tell.actor, receive, lambda _: None)
