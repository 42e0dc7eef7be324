"""The supervisor's part in failover: asks shards' actors how they are, and tells them what they are to be.

One call waits at each actor for news (`report`); one that does not end says within seconds that a process is stopped, or a network cut. A death is known
as soon as the kernel of its machine knows: here, or by way of an actor that is there too.

It is one thing because what is heard of an actor, kept and told is one order of effects, which roles, moves and removals of shards share.

What must not live here: who gets which role (`core.shard_roles`).
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

import msgspec
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, WorkerCrashedError

from cluster.actors import process_end, ray_head
from cluster.actors.handles import Peers, Unreachable
from cluster.actors.tasks import Tasks
from cluster.clock import SystemClock
from cluster.core import lone_shards
from cluster.core.lone_shards import AskAgain, AwaitEnd, LoneShards, Outages, Place, Recovered, Said
from cluster.core.placement import shard_at
from cluster.core.primaries import actors_of, shard_of
from cluster.core.role import Role
from cluster.core.shard_places import Move, Placed, next_move
from cluster.core.shard_roles import Ask, Effect, End, Keep, Missing, Record, Renew, Report, ShardRoles, Tell
from cluster.observability.logs import Log
from cluster.observability.metrics import Metrics

SILENT_S = 3.5
"""How long a report may take, which an actor gives after 1 s at the latest. Beyond it the process counts as stopped: by then the lease of a
primary is over as well."""
PAUSE_S = 0.1
"""Between tries to ask an actor that does not answer."""
AGAIN_S = 0.5
"""After which what was told and not done is told again."""
CONFIRM_S = 0.4
"""How long Ray may take to hear of a process that has ended, before it is not waited for to say so: then the lease is."""
CONFIRM_POLL_S = 0.01
END_S = 60.0
"""How long an actor of another node waits for the end of a process there before it is asked again."""
MAX_EFFECTS = 1_000
"""That wait while Ray's head does not answer; beyond it only what is to be kept is added. The rest is decided again with the next report."""
LEAVE_S = 2.0
MOVE_S = 120.0
"""For a move: a standby is filled with some hundred MB a second, and its process takes seconds to start."""
MOVE_POLL_S = 0.02


class _EndedError(Unreachable):
    """A peer's process has ended."""


def _read(actor: str, encoded: bytes) -> Report:
    """Return a report.

    Raises:
        Unreachable: the actor is of another version.
    """
    try:
        return msgspec.msgpack.decode(encoded, type=Report)
    except msgspec.DecodeError as error:
        raise Unreachable(f"{actor}: {type(error).__name__}") from error


def _said(status: Mapping[str, Any] | None) -> Said | None:
    if status is None:
        return None
    return Said((status["node"], status["pid"]), status["role"] == Role.PRIMARY, status["epoch"])


def _is_over(end: asyncio.Task[None]) -> bool:
    """Whether a process has ended, given the task that waits for it: one that failed has seen no end."""
    return end.done() and not end.cancelled() and end.exception() is None


class ShardKeeper:
    """The shell of `ShardRoles`, one of each shard that may have two actors, and of `LoneShards`."""

    def __init__(
        self,
        cluster: str,
        peers: Peers,
        log: Log,
        *,
        wait_ms: float,
        end: Callable[[str], Awaitable[None]],
        make: Callable[[str, str], Awaitable[None]],
        changed: Callable[[], None],
        neighbour: Callable[[str, str], str],
    ) -> None:
        """Begin without shards.

        Args:
            cluster: Its name.
            peers: Who asks and tells.
            log: Where what is done is said.
            wait_ms: How long a store is waited for.
            end: Ends an actor for good.
            make: Makes an actor, on a node if that is possible.
            changed: Is told that a shard has other actors than before.
            neighbour: Names an actor on a node, another than this one; "": there is none.
        """
        self.shards: dict[int, ShardRoles] = {}
        self.metrics = Metrics(component="supervisor")
        self._recovery = self.metrics.histogram("recovery_seconds")
        self._cluster = cluster
        self._node = ray.get_runtime_context().get_node_id()
        self._peers = peers
        self._log = log
        self._wait_ms = wait_ms
        self._end = end
        self._make = make
        self._changed = changed
        self._neighbour = neighbour
        self._move: asyncio.Task[None] | None = None
        self.moves = 0
        self._clock = SystemClock()
        self._loop = asyncio.get_running_loop()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Task[None]] = {}
        """Each is done when the process that an actor was last heard from has ended."""
        self._effects: asyncio.Queue[tuple[ShardRoles, Effect]] = asyncio.Queue()
        self._told: dict[str, tuple[Tell | None, float]] = {}
        self._keeping = asyncio.Lock()
        """One record is written at a time: the last word counts."""
        self._tasks = Tasks(log)
        self._tasks.spawn(self._work())
        self._renewing: set[str] = set()
        """Actors that are being ended and made anew."""
        self._ending: set[str] = set()
        """Actors that were ended so that their standbys take over."""
        self._outages = Outages()
        self._lone = LoneShards(self._outages)
        self.keeps_two = False
        """Shards have standbys for good, not only to move."""
        self.places: dict[str, Place] = {}
        """Of each actor of shards that have roles, as last heard."""

    async def follow(self, shard: int, actors: tuple[str, ...]) -> None:
        """Have a shard be held by these actors, which exist or are about to."""
        roles = self.shards.get(shard)
        if roles is None:
            record = await self._kept(shard)
            now_ms = self._clock.now_ms()
            roles = self.shards[shard] = ShardRoles(shard, record, wait_ms=self._wait_ms, now_ms=now_ms)
            for actor in actors_of(f"shard-{shard}"):
                if (place := self._lone.forget(actor)) is not None:
                    self.places[actor] = place
        self._put(roles, roles.want(actors, self._clock.now_ms()))
        for actor in actors_of(f"shard-{shard}"):
            watch = self._watches.get(actor)
            if actor in actors and (watch is None or watch.done()):
                self._watches[actor] = self._tasks.spawn(self._watch(roles, actor))
            elif actor not in actors and watch is not None:
                self._watches.pop(actor).cancel()
                if (end := self._ends.pop(actor, None)) is not None:
                    end.cancel()

    async def recover(self, found: Collection[str], shards: int) -> None:
        """Go on where an earlier life stood, given the actors that there are: shards without replicas may have moved, or be moving."""
        for shard in range(shards):
            names = actors_of(f"shard-{shard}")
            record = await self._kept(shard)
            there = tuple(name for name in names if name in found)
            if record is None or (record.primary in ("", names[0]) and not record.is_shared):
                continue
            await self.follow(shard, there or names[:1])
            self.shards[shard].is_handing_over = len(there) > 1

    async def forget(self, shard: int) -> None:
        """A shard is no more: its actors are about to be ended, and should it be made again, it has no store to wait for."""
        roles = self.shards.pop(shard, None)
        self._outages.void(shard)
        for actor in actors_of(f"shard-{shard}"):
            self._told.pop(actor, None)
            self.places.pop(actor, None)
            self._lone.forget(actor)
            for tasks in (self._watches, self._ends):
                if (task := tasks.pop(actor, None)) is not None:
                    task.cancel()
        async with self._keeping:
            record = await self._kept(shard)
            if record is None or not (record.store or record.primary):
                return
            with contextlib.suppress(Unreachable):  # then its next life waits for the store for nothing
                await asyncio.to_thread(ray_head.keep, self._cluster, shard, Record(record.epoch, "", ""))
        self._log.info("shard_removed", shard=shard, had_roles=roles is not None)

    async def _kept(self, shard: int) -> Record | None:
        while True:
            try:
                return await asyncio.to_thread(ray_head.kept, self._cluster, shard)
            except Unreachable:
                await asyncio.sleep(PAUSE_S)

    def actors(self, shard: int) -> tuple[str, ...]:
        """Return the actors that a shard is to have."""
        roles = self.shards.get(shard)
        return (f"shard-{shard}",) if roles is None else roles.actors

    def primary(self, shard: int) -> str:
        """Return which actor is the primary, as far as known."""
        roles = self.shards.get(shard)
        return f"shard-{shard}" if roles is None or roles.primary is None else roles.primary

    def leads(self, shard: int) -> bool:
        """Whether a shard has a primary that has said so."""
        roles = self.shards.get(shard)
        if roles is None:
            return True
        report = roles.reports.get(roles.primary or "")
        return report is not None and report.role is Role.PRIMARY

    def _roles_of(self, actor: str) -> ShardRoles | None:
        """Return the roles of an actor's shard; None: it has none, or is no shard's."""
        return self.shards.get(shard_at(shard_of(actor))) if actor.startswith("shard-") else None

    def is_beginning(self, actor: str) -> bool:
        """Whether an actor was told to lead and has not said yet that it does."""
        roles = self._roles_of(actor)
        return roles is not None and roles.is_beginning(actor)

    # --- shards with one actor, which Ray makes anew by itself ----------------------------------------------------

    def checked(self, actor: str, status: Mapping[str, Any] | None) -> None:
        """An actor of a shard was asked how it is, and has said so or not (None)."""
        if shard_at(shard_of(actor)) not in self.shards:
            self._do(self._lone.checked(actor, _said(status), self._clock.now_ms()))

    def _do(self, effects: Iterable[lone_shards.Effect]) -> None:
        for effect in effects:
            match effect:
                case AwaitEnd(actor=actor, place=place):
                    end = self._await_end(actor, place)
                    end.add_done_callback(partial(self._ended_alone, actor, place))
                case AskAgain(actor=actor, place=place):
                    self._tasks.spawn(self._await_return(actor, place))
                case Recovered(actor=actor, epoch=epoch, took_ms=took_ms):
                    shard, took_s = shard_at(shard_of(actor)), took_ms / 1000.0
                    self._recovery.observe(took_s)
                    self._log.info("shard_recovered", shard=shard, actor=actor, epoch=epoch, seconds=round(took_s, 3))

    def _await_end(self, actor: str, place: Place) -> asyncio.Task[None]:
        if (before := self._ends.pop(actor, None)) is not None:
            before.cancel()
        end = self._ends[actor] = self._tasks.spawn(self._end_of(actor, *place))
        return end

    def _ended_alone(self, actor: str, place: Place, end: asyncio.Task[None]) -> None:
        if _is_over(end):
            self._do(self._lone.ended(actor, place, self._clock.now_ms()))

    async def _await_return(self, actor: str, place: Place) -> None:
        while self._lone.is_away(actor, place):
            status = None
            with contextlib.suppress(Unreachable):
                status = await self._peers.status(actor, SILENT_S)
            self._do(self._lone.answered(actor, place, _said(status), self._clock.now_ms()))
            await asyncio.sleep(PAUSE_S)

    # --- moving --------------------------------------------------------------------------------------------------

    @property
    def is_moving(self) -> bool:
        """Whether an actor is on its way to another node."""
        return self._move is not None and not self._move.done()

    def look(self, placed: Mapping[str, Placed], nodes: Collection[str], leaving: Collection[str]) -> None:
        """Begin the move that is most needed, unless one is under way, or a shard lacks something."""
        if self.is_moving:
            return
        half = next((roles for roles in self.shards.values() if self._has_moved(roles)), None)
        if half is None and any(not self._is_well(roles) for roles in self.shards.values()):
            return
        half = half or next((roles for roles in self.shards.values() if roles.is_handing_over), None)
        if half is not None and half.primary is not None:
            self._move = self._tasks.spawn(self._moved(Move(half.shard, half.primary, "")))
        elif (move := next_move(placed, nodes, leaving)) is not None:
            self._move = self._tasks.spawn(self._moved(move))

    def _is_well(self, roles: ShardRoles) -> bool:
        return self.leads(roles.shard) and (len(roles.actors) == 1 or roles.standby is not None)

    def _has_moved(self, roles: ShardRoles) -> bool:
        """Whether a shard still has the standby of a move that came to its end when nobody waited for it any more."""
        is_left = len(roles.actors) > 1 and not self.keeps_two and not roles.is_handing_over
        return is_left and self.leads(roles.shard)

    async def _moved(self, move: Move) -> None:
        self._log.info("move_begins", shard=move.shard, actor=move.actor, to=move.node[:12])
        started = self._loop.time()
        try:
            async with asyncio.timeout(MOVE_S):
                if len(self.actors(move.shard)) > 1 and self.keeps_two:
                    await self._move_one(move)
                else:
                    await self._move_all(move)
        except (TimeoutError, RayError) as error:  # it is tried again
            self._log.error("move_failed", shard=move.shard, actor=move.actor, reason=type(error).__name__)
            return
        self.moves += 1
        self._log.info("moved", shard=move.shard, actor=move.actor, seconds=round(self._loop.time() - started, 3))

    async def _move_one(self, move: Move) -> None:
        """Move one of a shard's two actors: a standby as it is, a primary when the other leads."""
        roles, life = self.shards[move.shard], self.life(move.actor)
        if roles.primary == move.actor:
            await self._hand_over(roles)
        else:
            await self._end(move.actor)
        await self._make(move.actor, move.node)
        await self.settled(move.actor, life)

    async def _move_all(self, move: Move) -> None:
        """Move a shard that has one actor: another takes over from it, on the other node. Or do what is left of that."""
        shard = move.shard
        is_new = len(self.actors(shard)) == 1
        if is_new:
            (other,) = (each for each in actors_of(f"shard-{shard}") if each != move.actor)
            await self._make(other, move.node)
            await self.follow(shard, (move.actor, other))
        roles = self.shards[shard]
        if is_new or roles.is_handing_over:
            await self._hand_over(roles)
        await self._until(lambda: self.leads(shard))
        assert roles.primary is not None
        for actor in roles.actors:
            if actor != roles.primary and not self.keeps_two:  # it may have been made anew since it was ended
                await self._end(actor)
        if not self.keeps_two:  # else that was configured meanwhile
            await self.follow(shard, (roles.primary,))
            self._changed()

    async def hand_over(self, actors: Collection[str]) -> None:
        """Have those of the actors that lead hand over to their standbys, each as soon as that has everything. They are ended for good; cancelling is safe."""

        async def leave(roles: ShardRoles) -> None:
            await self._until(lambda: self._is_well(roles))
            if roles.primary in actors:
                try:
                    await self._hand_over(roles)
                finally:
                    roles.is_handing_over = False  # nobody goes on with it

        await asyncio.gather(*(leave(roles) for roles in self.shards.values() if roles.primary in actors))

    async def _hand_over(self, roles: ShardRoles) -> None:
        before = roles.primary
        roles.is_handing_over = True
        self._put(roles, roles.decide(self._clock.now_ms()))
        await self._until(lambda: roles.primary != before and self.leads(roles.shard))

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():  # noqa: ASYNC110 - reports come to others than who waits here
            await asyncio.sleep(MOVE_POLL_S)

    def sample(self, shards: Iterable[int]) -> None:
        """Put the figures into `metrics`; `shards`: those that there are, also without roles."""
        self.metrics.set("shard_moves_total", self.moves)
        for shard in {*shards, *self.shards}:
            roles = self.shards.get(shard)
            self.metrics.set("failovers_total", 0 if roles is None else roles.promotions, shard=str(shard))

    async def stop(self) -> None:
        """Ask and tell no more."""
        await self._tasks.stop()

    def life(self, actor: str) -> int:
        """Return the life of an actor that was last heard of; 0: of none."""
        roles = self._roles_of(actor)
        report = None if roles is None else roles.reports.get(actor)
        return 0 if report is None else report.life

    async def settled(self, actor: str, life: int) -> None:
        """Wait until an actor has begun anew after a life, and its shard has all that it is to have."""
        roles = self._roles_of(actor)
        if roles is not None:
            await self._until(lambda: self.life(actor) not in (0, life) and self._is_well(roles))

    def lacks_standby(self, actor: str) -> bool:
        """Whether the shard of an actor is to have two, and has not both: what one holds may be nowhere else."""
        roles = self._roles_of(actor)
        return roles is not None and not self._is_well(roles)

    def is_filled(self, actor: str) -> bool:
        """Whether the shard of an actor has a primary that fills a standby."""
        roles = self._roles_of(actor)
        led = None if roles is None else roles.reports.get(roles.primary or "")
        return led is not None and bool(led.standby) and not led.is_in_sync

    async def _watch(self, roles: ShardRoles, actor: str) -> None:
        known = b""
        is_heard = is_missed = False
        while True:
            try:
                encoded = await self._heard(actor, known)
                report = _read(actor, encoded)
            except Unreachable as error:
                known = b""
                if not is_missed:
                    was_heard, is_heard, is_missed = is_heard, False, True
                    died_ms = self._clock.now_ms()
                    if actor == roles.primary:
                        self._outages.begin(roles.shard, died_ms)
                    is_certain = isinstance(error, _EndedError) or await self._is_certain(actor, error.__cause__)
                    if was_heard:
                        self._log.warning("shard_actor_lost", actor=actor, certain=is_certain, reason=str(error))
                    else:  # as of every one at the start of a cluster
                        self._log.info("shard_actor_awaited", actor=actor, reason=str(error))
                    self._put(roles, roles.died(actor, self._clock.now_ms(), is_certain=is_certain))
                elif isinstance(error, _EndedError):
                    self._put(roles, roles.died(actor, self._clock.now_ms(), is_certain=True))
                else:
                    self._put(roles, roles.decide(self._clock.now_ms()))  # it may have been waited for long enough
                await asyncio.sleep(PAUSE_S)
                continue
            if not is_heard:
                await self._find(actor)
            known, is_heard, is_missed = encoded, True, False
            self._reported(roles, actor, report)

    async def _heard(self, actor: str, known: bytes) -> bytes:
        """Return an actor's next report.

        Raises:
            Unreachable: none came, or its process has ended.
        """
        report = self._loop.create_task(self._peers.report(actor, known, SILENT_S))
        end = self._ends.get(actor)
        try:
            await asyncio.wait({report} if end is None else {report, end}, return_when=asyncio.FIRST_COMPLETED)
            if end is not None and _is_over(end):
                del self._ends[actor]
                raise _EndedError(f"{actor}: its process has ended")
            return await report
        finally:
            if not report.cancel() and not report.cancelled():
                report.exception()  # it failed as the process ended, and is heard of by that

    async def _ask(self, roles: ShardRoles, actor: str) -> None:
        with contextlib.suppress(Unreachable):  # then the watch finds out
            encoded = await self._peers.report(actor, b"", SILENT_S)
            self._reported(roles, actor, _read(actor, encoded))

    def _reported(self, roles: ShardRoles, actor: str, report: Report) -> None:
        self._note(roles, actor, report)
        self._put(roles, roles.reported(actor, report, self._clock.now_ms()))

    async def _find(self, actor: str) -> None:
        """Find out where an actor is; how its end is confirmed depends on that."""
        try:
            status = await self._peers.status(actor)
        except Unreachable:
            self.places.pop(actor, None)
        else:
            self.places[actor] = (status["node"], status["pid"])
            self._await_end(actor, self.places[actor])

    async def _end_of(self, actor: str, node: str, pid: int) -> None:
        """Return when an actor's process has ended."""
        if node == self._node:
            try:
                await process_end.ended(pid)
            except OSError as error:
                self._log.sampled("ends_not_told", "end", reason=str(error))
                await asyncio.Future()  # then Ray says so
            return
        while True:
            neighbour = self._neighbour(node, actor)
            try:
                if neighbour and await self._peers.ended(neighbour, node, pid, END_S):
                    return
            except Unreachable:  # it may have ended itself
                pass
            await asyncio.sleep(PAUSE_S)

    def _note(self, roles: ShardRoles, actor: str, report: Report) -> None:
        """Measure how long a shard was without a primary."""
        if report.role is Role.PRIMARY and roles.record is not None and report.epoch == roles.record.epoch:
            self._do(self._outages.end(actor, report.epoch, self._clock.now_ms()))
        elif actor == roles.primary and report.role is Role.NONE:
            self._outages.begin(roles.shard, self._clock.now_ms())

    async def _is_certain(self, actor: str, cause: BaseException | None) -> bool:
        """Whether an actor's process has ended: this machine's kernel says so, or the node it was on, by way of Ray's head."""
        if not isinstance(cause, ActorDiedError | ActorUnavailableError | WorkerCrashedError):
            return False
        node, pid = self.places.get(actor, ("", 0))
        end = self._ends.get(actor)
        until = self._loop.time() + CONFIRM_S
        while self._loop.time() < until:
            if end is not None and _is_over(end):
                return True
            if node != self._node and await asyncio.to_thread(ray_head.has_ended, self._cluster, actor, node, pid):
                return True
            await asyncio.sleep(CONFIRM_POLL_S)
        return False

    def _put(self, roles: ShardRoles, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if self._effects.qsize() < MAX_EFFECTS or isinstance(effect, Keep | Missing):
                self._effects.put_nowait((roles, effect))

    async def _work(self) -> None:
        """Carry out effects, in order: what is to be kept is, before anybody is told."""
        while True:
            roles, effect = await self._effects.get()
            match effect:
                case Keep(record=record):
                    await self._keep(roles, record)
                case Tell():
                    self._tell(effect)
                case Ask(actor=actor):
                    self._tasks.spawn(self._ask(roles, actor))
                case Missing(store=store):
                    self._log.error("store_lost", shard=roles.shard, store=store, waited_s=self._wait_ms / 1000.0)
                case Renew(actor=actor):
                    if actor not in self._renewing:
                        self._renewing.add(actor)
                        self._tasks.spawn(self._renew(roles, actor))
                case End(actor=actor):
                    if actor not in self._ending:
                        self._ending.add(actor)
                        self._tasks.spawn(self._end_primary(roles, actor))

    async def _renew(self, roles: ShardRoles, actor: str) -> None:
        """End an actor for good and make it anew, unless Ray has no process of it, and makes one when it can."""
        try:
            was_there = await asyncio.to_thread(ray_head.is_there, self._cluster, actor)
            if was_there:
                self._log.warning("actor_replaced", actor=actor)
                await self._end(actor)
                await self._make(actor, "")
            self._put(roles, roles.replaced(actor, self._clock.now_ms(), was_there=was_there))
        except (Unreachable, RayError) as error:  # it is decided again
            self._log.sampled("actor_not_replaced", "replace", actor=actor, reason=str(error))
        finally:
            self._renewing.discard(actor)

    async def _end_primary(self, roles: ShardRoles, actor: str) -> None:
        """End a primary whose standby has everything. When it has left it lets nothing out any more, so there is no lease to wait for."""
        self._outages.begin(roles.shard, self._clock.now_ms())
        self._log.info("handing_over", shard=roles.shard, actor=actor)
        try:
            has_left = await self._peers.leave(actor, 0.0, LEAVE_S)
            self._put(roles, roles.died(actor, self._clock.now_ms(), is_certain=has_left))
            await self._end(actor)
        finally:
            self._ending.discard(actor)  # another try ends it again

    async def _keep(self, roles: ShardRoles, record: Record) -> None:
        self._log.info("role_kept", shard=roles.shard, epoch=record.epoch, primary=record.primary)
        async with self._keeping:
            while self.shards.get(roles.shard) is roles:  # else the shard is no more
                try:
                    await asyncio.to_thread(ray_head.keep, self._cluster, roles.shard, record)
                except Unreachable as error:
                    self._log.sampled("role_not_kept", "keep", reason=str(error))
                    await asyncio.sleep(PAUSE_S)
                else:
                    return

    def _tell(self, tell: Tell) -> None:
        """Tell an actor, unless it has just been told the same."""
        before, at = self._told.get(tell.actor, (None, 0.0))
        now = self._loop.time()
        if before == tell and now - at < AGAIN_S:
            return
        self._told[tell.actor] = (tell, now)
        self._tasks.spawn(self._grant(tell))

    async def _grant(self, tell: Tell) -> None:
        try:
            await self._peers.grant(tell.actor, tell.life, msgspec.msgpack.encode(tell.grant))
        except Unreachable as error:
            self._log.sampled("role_not_told", "grant", actor=tell.actor, reason=str(error))
