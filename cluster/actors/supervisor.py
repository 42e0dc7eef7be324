"""The supervisor as an actor: makes the others, watches them, describes the cluster.

Crash: the data plane goes on; the new life finds the others by name, takes the configuration from where Ray keeps it, and asks which
ingestors there are. Retry: applying a configuration twice does nothing the second time.
"""

import asyncio
import contextlib
import os
from typing import Any

import msgspec
import ray

from cluster import __version__
from cluster.actors import handles
from cluster.actors.coordinator import CoordinatorActor
from cluster.actors.gateway import GatewayActor
from cluster.actors.handles import Peers, Unreachable
from cluster.actors.ingestion import IngestionActor
from cluster.actors.shard import ShardActor
from cluster.actors.specification import Specification
from cluster.clock import SystemClock
from cluster.core.dead_letters import DeadLetter, newest_first
from cluster.core.messages import Members
from cluster.core.scaling import Autoscaler, Reported, Retire, Scaling
from cluster.core.supervisor_state import CHECK_MS, Create, Effect, Remove, Replace, SupervisorState
from cluster.observability.logs import Log
from cluster.observability.logs import configure as configure_logs
from cluster.observability.metrics import Metrics

INTERNAL = ("units", "members_epoch", "paused")
"""Parts of actors' statuses that are the supervisor's business."""
WORSE = ("connected", "connecting", "reconnecting", "failed", "disconnected")
"""States of a source, worst last."""
KINDS: dict[str, type] = {
    "shard": ShardActor,
    "coordinator": CoordinatorActor,
    "ingestor": IngestionActor,
    "gateway": GatewayActor,
}
STEP_S = 0.2
"""Between steps while ingestors are added or taken away."""
SETTLE_S = 0.1
"""For calls under way to end, while stopping."""
CPU_SHARE = 0.01
"""The Ray resource each actor holds: explicit, so that a scheduler may count them, and small, so that all fit on a laptop."""
ACTOR_OPTIONS: dict[str, Any] = {
    "lifetime": "detached",
    "max_restarts": -1,
    "max_task_retries": -1,
    "num_cpus": CPU_SHARE,
    "max_concurrency": 1000,
    "enable_task_events": False,
}


def _nodes() -> list[dict[str, str]]:
    return [{"id": node["NodeID"], "address": node["NodeManagerAddress"]} for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


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

    async def __init__(self, cluster: str, specification: bytes) -> None:  # type: ignore[misc]  # Ray awaits it
        self._namespace = handles.namespace(cluster)
        self._state = SupervisorState()
        self._peers = Peers(cluster)
        configure_logs()
        self._log = Log(component="supervisor")
        self._encoded = b""
        self._spec = Specification.decode(specification)
        self._statuses: dict[str, dict[str, Any]] = {}
        self._clock = SystemClock()
        self._scaling = Scaling(Members(int(self._clock.now_ms()), self._initial_ingestors()))
        self._autoscaler: Autoscaler | None = None
        self._applying = asyncio.Lock()
        await self._recover()
        await self.apply(specification)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch()), loop.create_task(self._scale())]

    async def apply(self, specification: bytes) -> None:
        """Make the cluster be what the configuration says; actors built from another one are made anew."""
        async with self._applying:
            if specification == self._encoded:
                return
            replacing = self._encoded != b""
            self._encoded = specification
            self._spec = Specification.decode(specification)
            if replacing:
                self._scaling = Scaling(Members(self._scaling.members.epoch + 1, self._initial_ingestors()))
            autoscale = self._spec.config.cluster.autoscale
            self._autoscaler = None if autoscale is None else Autoscaler(autoscale, self._clock.now_ms())
            for effect in self._state.want(self._actors()):
                await self._run(Replace(effect.actor) if replacing and isinstance(effect, Create) else effect)

    def _initial_ingestors(self) -> list[str]:
        return [f"ingestor-{n}" for n in range(self._spec.config.cluster.ingestors)]

    def _actors(self) -> list[str]:
        """Return what should be, in the order in which it is made."""
        cluster = self._spec.config.cluster
        counts = {"shard": cluster.shards, "coordinator": cluster.coordinators, "gateway": cluster.gateways}
        return [f"{kind}-{n}" for kind, count in counts.items() for n in range(count)] + self._scaling.actors

    async def _recover(self) -> None:
        """Find out which ingestors there are, from those that an earlier life has made."""
        prefix = "ingestor-"
        named = await asyncio.to_thread(ray.util.list_named_actors, True)  # of all namespaces
        names = [each["name"] for each in named if each["namespace"] == self._namespace]
        found = await asyncio.gather(*(self._status(name) for name in names if name.startswith(prefix)))
        self._scaling.recover([Reported(*status["units"]).members for status in found if status is not None])

    async def members(self) -> bytes:
        """Say which ingestors there are (msgpack)."""
        return msgspec.msgpack.encode(self._scaling.members)

    async def scale(self, counts: dict[str, int]) -> None:
        """Have another number of ingestors; `describe` shows when it is so."""
        self._scaling.wanted = counts["ingestors"]
        self._log.info("scaling", **counts)

    async def _scale(self) -> None:
        """Add and take away ingestors, step by step."""
        while True:
            await asyncio.sleep(STEP_S)
            if not self._state.ready:
                continue
            if self._scaling.is_done:
                await self._autoscale()
                continue
            shards = [f"shard-{n}" for n in range(self._spec.config.cluster.shards)]
            names = [*shards, *self._scaling.actors]
            statuses = dict(zip(names, await asyncio.gather(*map(self._status, names)), strict=True))
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
        """End ingestors that are no longer needed, make others, and count on those as soon as they answer."""
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
                await asyncio.to_thread(self._create, actor)
            case Replace(actor=actor):
                self._log.warning("actor_replaced", actor=actor)
                await asyncio.to_thread(self._end, actor)
                await asyncio.to_thread(self._create, actor)
            case Remove(actor=actor):
                await asyncio.to_thread(self._end, actor)

    def _create(self, actor: str) -> None:
        kind, _, index = actor.rpartition("-")
        options = {**ACTOR_OPTIONS, "name": actor, "namespace": self._namespace, "get_if_exists": True}
        handles.create(KINDS[kind], options, self._encoded, int(index))

    def _end(self, actor: str) -> None:
        self._statuses.pop(actor, None)
        try:
            handles.kill(ray.get_actor(actor, self._namespace))
        except ValueError:
            return

    async def _watch(self) -> None:
        while True:
            if not self._state.ready:
                await asyncio.sleep(0.1)
                await self._check_all()
                continue
            # One after the other: asked all at once, the answers would delay a window's work by tens of milliseconds.
            for actor in self._state.desired:
                await asyncio.sleep(CHECK_MS / 1000.0 / len(self._state.desired))
                await self._check(actor)

    async def _check_all(self) -> None:
        await asyncio.gather(*map(self._check, self._state.desired))

    async def _check(self, actor: str) -> None:
        if await self._status(actor) is not None:
            self._state.answered(actor)
        elif self._state.ready:
            for effect in self._state.silent(actor):
                await self._run(effect)

    async def _status(self, actor: str) -> dict[str, Any] | None:
        try:
            status = await self._peers.status(actor, 3.0)
        except Unreachable:
            return None
        self._statuses[actor] = status
        return status

    async def describe(self) -> dict[str, Any]:
        """Return what `/v1/cluster` and `harbor status` show."""
        await self._check_all()
        spec = self._spec
        kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
        sources: list[dict[str, Any]] = []
        for actor in self._state.desired:
            kind, _, index = actor.rpartition("-")
            status = {name: each for name, each in self._statuses.get(actor, {}).items() if name not in INTERNAL}
            sources.extend(status.pop("sources", []))
            kinds[kind].append({"id": int(index), **status})
        return {
            "name": spec.name,
            "version": __version__,
            "ready": self._state.ready and all(actor in self._statuses for actor in self._state.desired),
            "nodes": await asyncio.to_thread(_nodes),
            "shards": kinds["shard"],
            "coordinators": kinds["coordinator"],
            "ingestors": kinds["ingestor"],
            "gateways": kinds["gateway"],
            "supervisor": {"pid": os.getpid()},
            "sources": _by_source(sources),
            "scaling": not self._scaling.is_done,
        }

    async def dead_letters(self) -> bytes:
        """Return the events that came to nothing, of all ingestors that answer, newest first, encoded."""
        ingestors = [actor for actor in self._state.desired if actor.startswith("ingestor")]
        found = await asyncio.gather(*map(self._dead_letters, ingestors))
        return msgspec.msgpack.encode(newest_first([letter for letters in found for letter in letters]))

    async def _dead_letters(self, ingestor: str) -> list[DeadLetter]:
        try:
            return await self._peers.dead_letters(ingestor)
        except Unreachable:
            return []

    async def metrics(self) -> list[tuple[str, bytes | None]]:
        """Return (actor, encoded metrics or None) of every actor."""
        own = Metrics(component="supervisor")
        own.set("build_info", 1, version=__version__, ray_version=ray.__version__)
        actors = self._state.desired
        gathered = list(zip(actors, await asyncio.gather(*map(self._samples, actors)), strict=True))
        for actor, samples in gathered:
            own.set("actor_up", float(samples is not None), actor=actor)
        return [("supervisor", own.encode()), *gathered]

    async def _samples(self, actor: str) -> bytes | None:
        try:
            return await self._peers.samples(actor)
        except Unreachable:
            return None

    async def stop(self) -> None:
        """Drain the gateways and end every actor but this one."""
        for task in self._tasks:
            task.cancel()
        actors, self._state.desired = self._state.desired, ()
        await asyncio.gather(*(self._peers.drain(actor) for actor in actors if actor.startswith("gateway")))
        for kind in ("ingestor", "coordinator", "gateway", "shard"):  # down the stream, so that nobody calls the dead
            for actor in actors:
                if actor.startswith(kind):
                    await asyncio.to_thread(self._end, actor)
            await asyncio.sleep(SETTLE_S)
