"""The supervisor as an actor: makes the others, watches them, describes the cluster.

Crash: the data plane goes on; the new life finds the others by name, takes the configuration from where Ray keeps it, and asks which
ingestors there are. Retry: applying a configuration twice does nothing the second time.

It is one thing because whatever is begun (a configuration, a scale request, a repair) changes the one list of actors that there should be.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import ray
from ray.exceptions import RayError

from cluster import __version__
from cluster.actors import handles, ray_head
from cluster.actors.gateway_places import GATEWAY_RESOURCE, LEAVE_S, LEFT_S, GatewayPlaces
from cluster.actors.handles import SUPERVISOR, Peers, Unreachable
from cluster.actors.observation import Observation
from cluster.actors.rebalancing import Rebalancing
from cluster.actors.shard_keeper import ShardKeeper
from cluster.actors.specification import Specification
from cluster.actors.tasks import Tasks, cancel, finish
from cluster.clock import SystemClock
from cluster.config import refusals
from cluster.core.dead_letters import DeadLetter, newest_first
from cluster.core.gateway_scaling import Drain, NumberedGateways, Renew
from cluster.core.messages import Gateways, Members
from cluster.core.placement import shard_at
from cluster.core.primaries import actors_of, shard_of
from cluster.core.scaling import Autoscaler, Reported, Retire, Scaling
from cluster.core.shard_places import Placed, place
from cluster.core.slot_move import Phase
from cluster.core.supervisor_state import CHECK_MS, Create, Effect, Remove, Replace, SupervisorState
from cluster.observability.logs import Log
from cluster.observability.logs import configure as configure_logs
from cluster.observability.metrics import Metrics

INTERNAL = ("units", "members_epoch", "paused", "revision", "offline", "subscriptions", "life")
"""Parts of actors' statuses that are the supervisor's business."""
WORSE = ("connected", "connecting", "reconnecting", "failed", "disconnected")
"""States of a source, worst last."""
KINDS = {
    "shard": "cluster.actors.shard:ShardActor",
    "coordinator": "cluster.actors.coordinator:CoordinatorActor",
    "ingestor": "cluster.actors.ingestion:IngestionActor",
    "gateway": "cluster.actors.gateway:GatewayActor",
}
STEP_S = 0.2
"""Between steps while ingestors are added or taken away."""
SETTLE_S = 0.1
"""For calls under way to end, while stopping."""
STORE_RESOURCE = "harbor_store:"
"""With a name from `storage.nodes` behind it: what the node offers that keeps stores under that name."""
STORE_SHARE = 0.001
RESTART_TIMEOUT_S = 60.0
"""For an actor that was made anew for another configuration, before the next."""


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _shards_among(actors: list[str]) -> int:
    """Return how many shards there are, at least, given who is there."""
    return 1 + max((shard_at(shard_of(actor)) for actor in actors if actor.startswith("shard-")), default=-1)


def standby_row(actor: str, status: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `/v1/cluster` shows of a standby, given its own status and what its primary's says of one.

    It is in sync only if both speak of the same life: a primary may have answered before its standby ended, and that when it had begun anew.
    """
    is_same = (said.get("actor"), said.get("life")) == (actor, status.get("life"))
    return {"node": status.get("node"), "pid": status.get("pid"), "in_sync": is_same and said["in_sync"]}


def _by_source(connections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each source, of which several ingestors may have connections: as the worst of them has it."""
    rows: dict[str, dict[str, Any]] = {}
    for connection in connections:
        row = rows.setdefault(connection["name"], {**connection, "connections": 0, "events": 0, "reconnects": 0})
        row["connections"] += 1
        row["events"] += connection["events"]
        row["reconnects"] += connection["reconnects"]
        row["reason"] = row["reason"] or connection["reason"]
        row["state"] = max(row["state"], connection["state"], key=WORSE.index)
    return [rows[name] for name in sorted(rows)]


class SupervisorActor:
    """Shell of `SupervisorState`."""

    async def __init__(self, cluster: str, specification: bytes) -> None:  # type: ignore[misc]  # it is awaited, as Ray has it
        self._namespace = handles.namespace(cluster)
        self._state = SupervisorState()
        self._peers = Peers(cluster)
        configure_logs()
        self._log = Log(cluster=cluster, component="supervisor")
        self._tasks = Tasks(self._log)
        self._has_applied = self._is_over = False
        """`_is_over`: this cluster is being ended, nothing is applied any more."""
        self._spec = Specification.decode(specification)
        self._statuses: dict[str, dict[str, Any]] = {}
        self._pids: dict[str, int] = {}
        self._restarts: Counter[str] = Counter()
        self._clock = SystemClock()
        self._scaling = Scaling(Members(int(self._clock.now_ms()), self._initial_ingestors()))
        self._autoscaler: Autoscaler | None = None
        self._places = GatewayPlaces(self._peers, self._log, self._status, self._statuses)
        self._shards = ShardKeeper(
            cluster,
            self._peers,
            self._log,
            wait_ms=self._spec.config.storage.wait_ms,
            end=self._end,
            make=self._create,
            changed=self._shards_changed,
            neighbour=self._neighbour,
        )
        self._observation = Observation(
            self._clock,
            self._log,
            spec=lambda: self._spec,
            actors=lambda: self._state.desired,
            measure=self._measure,
            describe=self._described,
            offline=lambda: self._offline,
            dead_letters=self._letters,
        )
        self._made: dict[str, Placed] = {}
        """Where shards' actors were put that have not said yet where they are."""
        self._gcs = ray.get_runtime_context().gcs_address
        self._leaving: set[str] = set()
        """Nodes that shards are to leave, by word of those who stop them."""
        self._gateways = NumberedGateways(())
        """Where they are a number."""
        self._gateway_tasks: dict[str, asyncio.Task[None]] = {}
        """Gateways that are being drained to be ended, or made anew."""
        self._applying = asyncio.Lock()
        self._is_adjusting = False
        self._loop = asyncio.get_running_loop()
        self._reconfiguring: asyncio.Task[None] | None = None
        specification, found = await self._recover(specification)
        cluster_config = Specification.decode(specification).config.cluster
        self._gateways = NumberedGateways(
            [name for name in found if name.startswith("gateway-")]
            or self._numbered_gateways(Specification.decode(specification))
        )
        self._rebalancing = Rebalancing(
            self._peers,
            self._log,
            cluster_config.shards,
            cluster_config.coordinators,
            found=_shards_among(found),
            keeps=bool(found),
        )
        await self.apply(specification)
        for work in (self._watch(), self._scale(), self._move_slots()):
            self._tasks.spawn(work)

    async def apply(self, specification: bytes) -> None:
        """Make the cluster be what the configuration says.

        What can change while it runs does, behind this call: actors that have to be made anew for it are, one after the other. Where
        something else has changed all are.
        """
        async with self._applying:
            if self._is_over:
                return
            before, is_first, self._has_applied = self._spec, not self._has_applied, True
            spec = self._spec = Specification.decode(specification).following(before).after(before)
            specification = spec.encoded
            is_live = not refusals(before.config, spec.config)
            if not is_first and before.config == spec.config:
                return  # of the revision actors hear when they are next checked
            await self._stop_reconfiguring()
            autoscale = spec.config.cluster.autoscale
            self._autoscaler = None if autoscale is None else Autoscaler(autoscale, self._clock.now_ms())
            gateways = spec.config.cluster.gateways
            if is_first or gateways != before.config.cluster.gateways:
                await self._places.follow(gateways)
            if is_first or not is_live:
                if not is_first:
                    await cancel(self._gateway_tasks.values())
                    self._gateway_tasks.clear()  # gateways are made anew, or ended, without being drained
                    self._gateways = NumberedGateways(self._numbered_gateways(spec))
                    self._rebalancing.moves.want(spec.config.cluster.shards, spec.config.cluster.coordinators)
                    self._scaling = Scaling(Members(self._scaling.members.epoch + 1, self._initial_ingestors()))
                await self._find_gateways()
                await self._follow_shards()
                for effect in self._state.want(self._actors()):
                    await self._run(effect if is_first or not isinstance(effect, Create) else Replace(effect.actor))
                return
            old, new = before.config.cluster, spec.config.cluster
            if (old.ingestors, old.autoscale) != (new.ingestors, new.autoscale):
                self._scaling.wanted = len(self._initial_ingestors())
            if (old.shards, old.coordinators) != (new.shards, new.coordinators):
                self._rebalancing.moves.want(new.shards, new.coordinators)
            if old.gateways != new.gateways and isinstance(new.gateways, int):
                self._tend_gateways(self._gateways.want(new.gateways))
            self._reconfiguring = self._tasks.spawn(self._reconfigure(specification))

    async def _reconfigure(self, specification: bytes) -> None:
        """Give every actor the configuration: gateways first, shards one by one, then ingestors and coordinators at once.

        The last two name batching profiles to each other by number, so no new one may talk to an old one.
        """
        kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for actor in self._state.desired:
            kinds[actor.partition("-")[0]].append(actor)
        for actor in kinds["gateway"] + kinds["shard"]:
            if not await self._takes(actor, specification):
                if self._is_only_copy(actor):
                    self._log.warning("standby_awaited", actor=actor)
                    continue  # it is made anew when it is checked, and has one
                life = self._shards.life(actor)
                await self._run(Replace(actor))
                await self._returned(actor)
                await self._settled(actor, life)
        anew = [each for each in kinds["ingestor"] + kinds["coordinator"] if not await self._takes(each, specification)]
        await finish(self._replace(anew))
        for actor in anew:
            await self._returned(actor)
        self._log.info("reconfigured", revision=self._spec.revision)

    async def _settled(self, actor: str, life: int) -> None:
        """Wait until an actor's shard has all that it is to have: not both of its actors are to be away at once.

        As long as that takes while the one is filled.
        """
        while actor in self._state.desired:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESTART_TIMEOUT_S):
                    await self._shards.settled(actor, life)
                    return
            if not self._shards.is_filled(actor):
                return
            self._log.warning("standby_awaited", actor=actor)

    def _is_only_copy(self, actor: str) -> bool:
        """Whether what an actor has in memory may be nowhere else."""
        return self._spec.config.storage.path is None and self._shards.lacks_standby(actor)

    async def _stop_reconfiguring(self) -> None:
        """Give nobody an earlier configuration any more."""
        if self._reconfiguring is not None:
            await cancel([self._reconfiguring])

    async def _takes(self, actor: str, specification: bytes) -> bool:
        """Whether an actor has taken the configuration, or will: one that does not answer is given it when it does."""
        try:
            return await self._peers.reconfigure(actor, specification)
        except Unreachable:
            return True

    async def _returned(self, actor: str) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESTART_TIMEOUT_S):
                while await self._status(actor) is None:  # noqa: ASYNC110 - it is asked, it does not tell
                    await asyncio.sleep(STEP_S)

    @property
    def _is_reconfiguring(self) -> bool:
        return self._reconfiguring is not None and not self._reconfiguring.done()

    def _neighbour(self, node: str, actor: str) -> str:
        there = (name for name, status in self._statuses.items() if status["node"] == node and name != actor)
        return next(there, "")

    def _shards_changed(self) -> None:
        """A shard has moved to its other name. Nothing else that is wanted by now counts as made."""
        actors: dict[str, None] = {}
        for actor in self._state.desired:
            is_shard = actor.startswith("shard-")
            actors.update(dict.fromkeys(self._shards.actors(shard_at(shard_of(actor))) if is_shard else [actor]))
        for effect in self._state.want(list(actors)):
            if isinstance(effect, Remove):
                self._statuses.pop(effect.actor, None)

    async def drain(self, node: str, within_s: float) -> None:
        """Have shards leave a node that is about to go; returns when they have, or after so long.

        Where their stores are there they stay, but standbys that are elsewhere take over.
        """
        self._leaving.add(node)
        self._log.info("node_drains", node=node[:12])
        if self._spec.config.storage.nodes:
            placed = self._placed()
            here = {
                actor
                for actor, each in placed.items()
                if each.node == node
                and any(placed[other].node != node for other in self._shards.actors(each.shard) if other in placed)
            }
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._shards.hand_over(here)
            return
        until = self._loop.time() + within_s
        while self._loop.time() < until and any(each.node == node for each in self._placed().values()):
            if not await self._look_at_places():
                return
            await asyncio.sleep(STEP_S)

    def _placed(self) -> dict[str, Placed]:
        """Return where shards' actors are, of those that have said so."""
        placed = {}
        for shard in self._shard_numbers:
            for actor in self._shards.actors(shard):
                status = self._statuses.get(actor)
                if status is not None:
                    placed[actor] = Placed(shard, status["node"], actor == self._shards.primary(shard))
        return placed

    async def _look_at_places(self) -> bool:
        """Move a shard's actor to another node, if that is due. Returns whether there is another."""
        config = self._spec.config
        if config.storage.nodes:
            return False  # where their stores are
        if config.storage.path is None and not config.cluster.replicas:
            return False  # they keep nothing that a standby could be filled from
        if self._shards.is_moving or self._is_reconfiguring:
            return True
        nodes = {node["NodeID"] for node in await self._nodes() if node["Resources"].get("CPU")}
        if len(nodes) < 2:
            return False
        for shard in self._shard_numbers:
            for actor in self._shards.actors(shard):
                if await self._status(actor) is None:
                    return True  # first it has to be found
        leaving = self._leaving & nodes
        with contextlib.suppress(Unreachable):
            leaving |= await asyncio.to_thread(ray_head.draining, self._gcs) & nodes
        if self._rebalancing.moves.phase is Phase.IDLE:  # else slots move, and shards stay where they are
            self._shards.look(self._placed(), nodes - leaving, leaving)
        return True

    async def _find_gateways(self) -> bool:
        """Look which gateways there should be. Returns whether those are others than before; not where a number is configured."""
        if not self._spec.has_places:
            return False
        nodes = await self._nodes()
        # Where the head does not answer things stay as they are.
        return bool(nodes) and await self._places.look(nodes)

    async def _nodes(self) -> list[dict[str, Any]]:
        """Return the living nodes; none where Ray's head does not answer."""
        try:
            return await asyncio.to_thread(_alive)
        except RayError:
            return []

    async def gateways(self) -> list[str]:
        """Say which gateways there are."""
        return self._gateway_names

    @property
    def _gateway_names(self) -> list[str]:
        return self._places.names if self._spec.has_places else self._gateways.names

    @property
    def _gateways_wanted(self) -> int:
        return self._places.wanted if self._spec.has_places else self._gateways.wanted

    @staticmethod
    def _numbered_gateways(spec: Specification) -> list[str]:
        count = spec.config.cluster.gateways
        return [f"gateway-{n}" for n in range(count)] if isinstance(count, int) else []

    def _tend_gateways(self, effects: Sequence[Drain | Renew]) -> None:
        for effect in effects:
            if (before := self._gateway_tasks.pop(effect.gateway, None)) is not None:
                before.cancel()
            work = self._leave(effect.gateway) if isinstance(effect, Drain) else self._renew(effect.gateway)
            self._gateway_tasks[effect.gateway] = self._tasks.spawn(work)

    async def _renew(self, gateway: str) -> None:
        try:
            await self._run(Replace(gateway))
        except Exception as error:  # noqa: BLE001 - such as of Ray: what is silent is made anew when it is next looked at
            self._log.error("gateway_not_renewed", actor=gateway, error=repr(error), exc_info=error)
        self._gateway_tasks.pop(gateway, None)
        self._tend_gateways(self._gateways.renewed(gateway))

    async def _leave(self, gateway: str) -> None:
        self._log.info("gateway_leaves", actor=gateway)
        status = await self._status(gateway)
        grace_s = 0.0 if status is not None and not status["sessions"] else LEAVE_S
        await self._peers.leave(gateway, grace_s, grace_s + LEFT_S)
        self._gateway_tasks.pop(gateway, None)
        self._gateways.left(gateway)

    def _initial_ingestors(self) -> list[str]:
        return [f"ingestor-{n}" for n in range(self._spec.config.cluster.ingestors)]

    def _actors(self) -> list[str]:
        """Return what should be, in the order in which it is made: first what readers wait for, and of that what takes longest to start."""
        shards = [actor for n in self._shard_numbers for actor in self._shards.actors(n)]
        coordinators = [name for name in self._rebalancing.moves.actors if not name.startswith("shard-")]
        return [*self._gateway_names, *shards, *coordinators, *self._scaling.actors]

    @property
    def _shard_numbers(self) -> list[int]:
        """Return the shards that there should be."""
        return [shard_at(name) for name in self._rebalancing.moves.actors if name.startswith("shard-")]

    async def _follow_shards(self) -> None:
        """Have roles given to shards that have two actors."""
        self._shards.keeps_two = self._spec.config.cluster.replicas > 0
        if self._shards.keeps_two:
            for shard in self._shard_numbers:
                await self._shards.follow(shard, actors_of(f"shard-{shard}"))

    async def _recover(self, specification: bytes) -> tuple[bytes, list[str]]:
        """Find out how things are, from actors that an earlier life has made.

        Returns the newest configuration among theirs and `specification`, and who there is.
        """
        names = await self._named()
        statuses = dict(zip(names, await asyncio.gather(*map(self._status, names)), strict=True))
        found = {name: status for name, status in statuses.items() if status is not None}
        units = {name: status["units"] for name, status in found.items() if name.startswith("ingestor-")}
        self._scaling.recover({name: Reported(*each).members for name, each in units.items()})
        self._places.names = [name for name in found if name.startswith("gateway-")]
        if not self._spec.config.cluster.replicas:
            await self._shards.recover(names, max(self._spec.config.cluster.shards, _shards_among(names)))
        newest = max(found, key=lambda name: int(found[name]["revision"]), default=None)
        if newest is not None:
            with contextlib.suppress(Unreachable):
                current = await self._peers.current(newest)
                self._spec = self._spec.following(Specification.decode(current))
                if found[newest]["revision"] > self._spec.revision:
                    specification = current
        return specification, names

    async def _named(self) -> list[str]:
        """Return who there is, whoever made it."""
        named = await asyncio.to_thread(ray.util.list_named_actors, True)  # of all namespaces
        return [each["name"] for each in named if each["namespace"] == self._namespace and each["name"] != SUPERVISOR]

    async def members(self) -> bytes:
        """Say which ingestors there are (msgpack)."""
        return msgspec.msgpack.encode(self._scaling.members)

    async def slot_map(self) -> bytes:
        """Say which slot map counts (msgpack), as soon as that is settled."""
        return msgspec.msgpack.encode(await self._rebalancing.slot_map())

    async def scale(self, counts: dict[str, int]) -> str:
        """Have other numbers of actors, by kind; `describe` shows when it is so. Returns why that cannot be, if so."""
        moves = self._rebalancing.moves
        shards, coordinators = counts.get("shards", moves.wanted[0]), counts.get("coordinators", moves.wanted[1])
        if coordinators > shards:
            return f"coordinators: expected at most one per shard ({shards}), got {coordinators}"
        if "gateways" in counts and self._spec.has_places:
            return "gateways: there are as many as nodes have places for, see cluster.gateways"
        if "ingestors" in counts:
            self._scaling.wanted = counts["ingestors"]
        if (shards, coordinators) != moves.wanted:
            moves.want(shards, coordinators)
        if "gateways" in counts:
            self._tend_gateways(self._gateways.want(counts["gateways"]))
        self._log.info("scaling", **counts)
        return ""

    async def _move_slots(self) -> None:
        """Move slots, step by step, and have the shards, coordinators and gateways that this needs."""
        told = list(self._gateway_names)
        while True:
            pause_s = STEP_S
            try:
                pause_s, told = await self._move_on(told)
            except Exception as error:  # noqa: BLE001 - such as of Ray: a cut that nobody goes on with would hold everything for ever
                self._log.error("slots_failed", error=repr(error), exc_info=error)
            await asyncio.sleep(pause_s)

    async def _move_on(self, told: list[str]) -> tuple[float, list[str]]:
        """Make one step. Returns how long to wait before the next, and which gateways others were told of."""
        moves = self._rebalancing.moves
        pause_s = STEP_S
        may_begin = (
            self._scaling.is_done
            and not self._is_reconfiguring
            and not self._shards.is_moving
            and all(map(self._shards.leads, self._shard_numbers))
        )
        if not moves.is_done and (may_begin or moves.phase is not Phase.IDLE):
            missing = self._state.missing
            present = [shard_of(actor) for actor in self._state.desired if actor not in missing]
            pause_s = await self._rebalancing.step(present, self._scaling.actors, self._gateway_names)
        if moves.may_adjust(map(shard_of, self._state.desired)):
            if set(self._actors()) != set(self._state.desired) and self._scaling.is_done:
                async with self._applying:
                    await self._adjust()
            if not self._spec.has_places and told != (names := list(self._gateway_names)):
                await self._tell_gateways()
                told = names
        return pause_s, told

    async def _scale(self) -> None:
        """Add and take away ingestors, step by step."""
        while True:
            await asyncio.sleep(STEP_S)
            if not self._state.ready:
                continue
            if self._scaling.is_done:
                await self._autoscale()
                continue
            slots = self._rebalancing.moves.map
            if slots is None or self._rebalancing.moves.phase is not Phase.IDLE:
                continue
            shards = [f"shard-{n}" for n in range(slots.shards)]
            names = [*shards, *self._scaling.actors]
            asked = [self._shards.primary(n) for n in range(len(shards))] + self._scaling.actors
            statuses = dict(zip(names, await asyncio.gather(*map(self._status, asked)), strict=True))
            ingestors = {
                name: Reported(*status["units"])
                for name, status in statuses.items()
                if status is not None and name not in shards
            }
            epochs = {name: None if (of := statuses[name]) is None else int(of["members_epoch"]) for name in shards}
            for step in self._scaling.step(ingestors, epochs):
                if isinstance(step, Retire):
                    self._log.info("ingestor_retired", actor=step.actor)
                else:
                    with contextlib.suppress(Unreachable):
                        await self._peers.call(step.actor, step.members)
            async with self._applying:
                await self._adjust()

    async def _adjust(self) -> None:
        """End actors that are no longer needed, make others, and count on those as soon as they answer."""
        self._is_adjusting = True
        try:
            await self._make_as_wanted()
        finally:
            self._is_adjusting = False

    @property
    def _has_too_many(self) -> bool:
        """Whether there are actors that are to be ended, and what shards among them have stored removed."""
        wanted = set(self._actors())
        return self._is_adjusting or any(actor not in wanted for actor in self._state.desired)

    async def _make_as_wanted(self) -> None:
        await self._follow_shards()
        wanted, desired = self._actors(), self._state.desired
        for actor in wanted:
            if actor not in desired:
                await self._run(Create(actor))
        answering = [actor for actor in wanted if actor in desired or await self._status(actor) is not None]
        if tuple(answering) != desired:
            for effect in self._state.want(answering):
                if isinstance(effect, Remove):
                    await self._run(effect)
            for actor in answering:
                if actor not in desired:
                    self._state.answered(actor)

    async def _autoscale(self) -> None:
        """Compare how busy ingestors are with how busy they are to be."""
        if self._autoscaler is None:
            return
        names = self._scaling.actors
        statuses = [status for name in names if (status := self._statuses.get(name)) is not None]
        loads = [(float(status["load"]), bool(status["paused"])) for status in statuses]
        wanted = self._autoscaler.wanted(len(names), loads, self._clock.now_ms())
        if wanted != len(names):
            await self.scale({"ingestors": wanted})

    async def _run(self, effect: Effect) -> None:
        match effect:
            case Create(actor=actor):
                await self._create(actor)
            case Replace(actor=actor):
                self._log.warning("actor_replaced", actor=actor)
                await finish(self._replace([actor]))
            case Remove(actor=actor):
                if actor.startswith("shard-") and shard_at(shard_of(actor)) not in self._shard_numbers:
                    shard = shard_of(actor)
                    await self._shards.forget(shard_at(shard))
                    # The other's store is free to be removed when the other has closed it.
                    await asyncio.gather(*(self._peers.retire(each) for each in actors_of(shard)))
                    await self._peers.retire(actor)
                await self._end(actor)

    async def _replace(self, actors: Sequence[str]) -> None:
        for actor in actors:
            await self._end(actor)
        for actor in reversed(actors):
            await self._create(actor)

    async def _create(self, actor: str, node: str = "") -> None:
        """Make an actor, on `node` if it is named and there."""
        shard = shard_of(actor)
        kind, _, index = shard.rpartition("-")
        options: dict[str, Any] = {}
        config = self._spec.config
        arguments: list[Any] = [self._spec.encoded, int(index)]
        if kind == "shard" and config.cluster.replicas:
            # A call to one that has died is to fail: another may be the primary by now.
            options["max_task_retries"] = 0
        if shard != actor:
            arguments.append(True)
        if kind == "gateway" and self._spec.has_places:
            options |= {"num_cpus": 0, "resources": {GATEWAY_RESOURCE: 1}}
        elif kind == "shard" and config.storage.nodes:
            nodes = config.storage.nodes
            at = (int(index) + (shard != actor)) % len(nodes)
            options["resources"] = {f"{STORE_RESOURCE}{nodes[at]}": STORE_SHARE}
        elif kind == "shard" and (node := node or await self._free_node(actor)):
            options["scheduling_strategy"] = ray_head.on_node(node)
        work = asyncio.to_thread(handles.create, KINDS[kind], self._spec.name, actor, *arguments, **options)
        await finish(work)  # a thread goes on where its task is cancelled

    async def _free_node(self, actor: str) -> str:
        """Return the node for a shard's actor: not that of its other; "": where Ray likes."""
        if not self._spec.config.cluster.replicas:
            return ""
        nodes = {node["NodeID"] for node in await self._nodes() if node["Resources"].get("CPU")} - self._leaving
        if not nodes:
            return ""
        shard = int(shard_of(actor).rpartition("-")[2])
        placed = {name: each for name, each in {**self._made, **self._placed()}.items() if each.node in nodes}
        node = place(shard, placed, nodes, actor) or ""
        self._made[actor] = Placed(shard, node, actor == shard_of(actor))
        return node

    async def _end(self, actor: str) -> None:
        self._statuses.pop(actor, None)
        await asyncio.to_thread(self._kill, actor)

    def _kill(self, actor: str) -> None:
        with contextlib.suppress(ValueError):  # there is none
            handles.kill(ray.get_actor(actor, self._namespace))

    async def _watch(self) -> None:
        while True:
            if self._state.ready:
                await self._look_at_places()
            if await self._find_gateways():
                await self._exchange_gateways()
            if not self._state.ready:
                await asyncio.sleep(0.1)
                await self._check_all()
                continue
            # One after the other: asked all at once, the answers would delay a window's work by tens of milliseconds.
            for actor in self._state.desired:
                await asyncio.sleep(CHECK_MS / 1000.0 / len(self._state.desired))
                await self._check(actor)
            self._observation.look()

    async def _check_all(self) -> None:
        await asyncio.gather(*map(self._check, self._state.desired))

    async def _exchange_gateways(self) -> None:
        """Make gateways, end those without a place, and tell the others who there is."""
        async with self._applying:
            for effect in self._state.want(self._actors()):
                await self._run(effect)
        await self._tell_gateways()

    async def _tell_gateways(self) -> None:
        message = Gateways(list(self._gateway_names))
        for actor in [*(f"shard-{n}" for n in self._shard_numbers), *self._scaling.actors]:
            with contextlib.suppress(Unreachable):  # it asks when it starts
                await self._peers.call(actor, message)

    async def _check(self, actor: str) -> None:
        status = await self._status(actor)
        if status is not None:
            self._state.answered(actor)
            if status["revision"] < self._spec.revision and not self._is_reconfiguring:
                if not await self._takes(actor, self._spec.encoded) and not self._is_only_copy(actor):
                    await self._run(Replace(actor))
        elif not self._shards.is_beginning(actor):
            for effect in self._state.silent(actor, self._clock.now_ms()):
                if not await self._is_starting(
                    actor
                ):  # only now: as a cluster starts, Ray's head has other things to do
                    await self._run(effect)

    async def _is_starting(self, actor: str) -> bool:
        return await asyncio.to_thread(ray_head.is_starting, self._spec.name, actor)

    async def _status(self, actor: str) -> dict[str, Any] | None:
        try:
            status = await self._peers.status(actor, 3.0)
        except Unreachable:
            self._checked(actor, None)
            return None
        return self._heard(actor, status)

    async def _measure(self, actor: str) -> bytes | None:
        """Return an actor's metrics, encoded, and take note of its status; None: it does not answer."""
        try:
            samples, status = await self._peers.measure(actor)
        except Unreachable:
            return None
        self._heard(actor, status)
        return samples

    def _heard(self, actor: str, status: dict[str, Any]) -> dict[str, Any]:
        self._statuses[actor] = status
        self._restarts[actor] += self._pids.get(actor, status["pid"]) != status["pid"]
        self._pids[actor] = status["pid"]
        self._checked(actor, status)
        return status

    def _checked(self, actor: str, status: dict[str, Any] | None) -> None:
        if actor.startswith("shard-") and actor in self._state.desired:  # else it is about to be no more
            self._shards.checked(actor, status)

    async def describe(self) -> dict[str, Any]:
        """Return what `/v1/cluster` and `harbor status` show."""
        # Silence counts only at the pace of `_watch`: who is asked ten times a second would be taken for dead while it starts.
        for actor, status in zip(
            desired := self._state.desired, await asyncio.gather(*map(self._status, desired)), strict=True
        ):
            if status is not None:
                self._state.answered(actor)
        nodes = [{"id": node["NodeID"], "address": node["NodeManagerAddress"]} for node in await self._nodes()]
        return {**self._described(), "nodes": nodes}

    @property
    def _offline(self) -> list[str]:
        """Return the services that shards could not reach when they were last asked."""
        return sorted({service for status in self._statuses.values() for service in status.get("offline", ())})

    def _subscribers(self, shard: int) -> int:
        """Return how many subscriptions concern a shard, as gateways said last."""
        said = (self._statuses.get(name, {}).get("subscriptions", {}) for name in self._gateway_names)
        return sum(each.get(shard, 0) for each in said)

    def _described(self) -> dict[str, Any]:
        """Return the description but for the nodes, as actors said last."""
        spec = self._spec
        kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        sources: list[dict[str, Any]] = []
        for actor in self._state.desired:
            kind, _, index = shard_of(actor).rpartition("-")
            if kind == "shard" and actor != self._shards.primary(int(index)):
                continue
            status = {name: each for name, each in self._statuses.get(actor, {}).items() if name not in INTERNAL}
            sources.extend(status.pop("sources", []))
            kinds[kind].append({"id": int(index), **status})
        missing = self._state.missing
        waits_for = [actor for actor in self._state.desired if actor in missing or actor not in self._statuses]
        for row in kinds["shard"]:
            row["standby"] = self._standby(row["id"], row.get("standby"))
            row["subscribers"] = self._subscribers(row["id"])
            if not self._shards.leads(row["id"]):
                waits_for.append(f"a primary of shard-{row['id']}")
        if not kinds["gateway"]:
            waits_for.append(f"a node that offers the Ray resource {GATEWAY_RESOURCE}")
        return {
            "name": spec.name,
            "version": __version__,
            "ready": not waits_for,
            "waits_for": waits_for,
            "nodes": [],
            "shards": kinds["shard"],
            "coordinators": kinds["coordinator"],
            "ingestors": kinds["ingestor"],
            "gateways": kinds["gateway"],
            "gateways_wanted": self._gateways_wanted,
            "wanted": {
                "shards": self._rebalancing.moves.wanted[0],
                "coordinators": self._rebalancing.moves.wanted[1],
                "ingestors": self._scaling.wanted,
                "gateways": self._gateways_wanted,
            },
            "supervisor": {"pid": os.getpid()},
            "sources": _by_source(sources),
            "scaling": not (self._scaling.is_done and self._rebalancing.moves.is_done)
            or not self._gateways.is_done
            or self._has_too_many,
            "reconfiguring": self._is_reconfiguring,
        }

    def _standby(self, shard: int, of: Any) -> dict[str, Any] | None:
        """Return how a shard's standby is, given what its primary says; None: there is none and need not be."""
        actors = [actor for actor in self._shards.actors(shard) if actor != self._shards.primary(shard)]
        return standby_row(actors[0], self._statuses.get(actors[0], {}), of or {}) if actors else None

    async def dead_letters(self) -> bytes:
        """Return the events that came to nothing, of all ingestors that answer, newest first, encoded."""
        return msgspec.msgpack.encode(await self._letters())

    async def _letters(self) -> list[DeadLetter]:
        ingestors = [actor for actor in self._state.desired if actor.startswith("ingestor")]
        found = await asyncio.gather(*map(self._dead_letters, ingestors))
        return newest_first([letter for letters in found for letter in letters])

    async def observed(self, names: list[str]) -> bytes:
        """Return what some of the reserved entries say (JSON, by name), and go on observing for a while."""
        return await self._observation.observed(names)

    async def _dead_letters(self, ingestor: str) -> list[DeadLetter]:
        try:
            return await self._peers.dead_letters(ingestor)
        except Unreachable:
            return []

    async def metrics(self) -> list[tuple[str, bytes | None]]:
        """Return (actor, encoded metrics or None) of every actor."""
        own = Metrics(component="supervisor", actor=SUPERVISOR)
        own.set("nodes", len(await self._nodes()))
        own.set("gateways_wanted", self._gateways_wanted)
        own.set("build_info", 1, version=__version__, ray_version=ray.__version__)
        self._shards.sample(self._shard_numbers)
        actors = self._state.desired
        gathered = list(zip(actors, await asyncio.gather(*map(self._samples, actors)), strict=True))
        for actor, samples in gathered:
            kind, _, index = shard_of(actor).rpartition("-")
            place = {kind: index} if kind in ("shard", "gateway") else {}
            own.set("actor_up", float(samples is not None), component=kind, actor=actor, **place)
            own.set("actor_restarts_total", self._restarts[actor], actor=actor)
        moves = [("supervisor", self._rebalancing.samples()), ("shards", self._shards.metrics.encode())]
        return [("supervisor", own.encode()), *moves, *gathered]

    async def _samples(self, actor: str) -> bytes | None:
        try:
            return await self._peers.samples(actor)
        except Unreachable:
            return None

    async def stop(self) -> None:
        """Drain the gateways and end every actor but this one."""
        self._is_over = True
        await self._tasks.stop()
        self._observation.stop()
        await self._places.stop()
        await self._shards.stop()
        async with self._applying:
            await self._end_all()

    async def _end_all(self) -> None:
        actors, self._state.desired = self._state.desired, ()
        with contextlib.suppress(RayError):  # also those that were made and not yet counted on
            actors = tuple(dict.fromkeys([*actors, *await self._named()]))
        await asyncio.gather(*(self._peers.leave(actor) for actor in actors if actor.startswith("gateway")))
        for kind in ("ingestor", "coordinator", "gateway", "shard"):  # down the stream, so that nobody calls the dead
            for actor in actors:
                if actor.startswith(kind):
                    await self._end(actor)
            await asyncio.sleep(SETTLE_S)
