"""Typed handles: the only place where actors are called, by a socket where the other is on the same node, else by Ray.

A call carries one blob and returns one; what can go wrong (the peer is starting, restarting, unreachable, or slower than
`CALL_TIMEOUT_S`) is one exception, `Unreachable`, after which the caller may send the same message again.

It is one thing since who calls an actor needs nothing else of Ray: the calls, and how a driver comes to it.
"""

import asyncio
import contextlib
import functools
import logging
import re
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
import ray
from ray._private import worker as ray_worker
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray.exceptions import RayError

from cluster.actors import ray_start
from cluster.actors.node_link import Lost, NodeLink
from cluster.actors.ray_actor import RayActor
from cluster.core.dead_letters import DeadLetter
from cluster.core.messages import (
    Announce,
    Answer,
    ChangeSet,
    Claimed,
    Demand,
    Elsewhere,
    Measure,
    Measured,
    Members,
    Message,
    Overlays,
    Primary,
    SlotSlice,
)
from cluster.core.placement import SlotMap
from cluster.core.primaries import Primaries
from cluster.errors import ErrorCode, RequestError, UnavailableError
from cluster.wire import blob
from cluster.wire.backup import Step, StepAnswer, decode_answer

CALL_TIMEOUT_S = 10.0
"""A stopped process neither answers nor fails. Sending again after this is safe: repeats are recognised."""
COPY_TIMEOUT_S = 600.0
"""For a step of a backup: a disk that writes 100 MB/s copies 60 GB meanwhile."""
SPECTATORS = ("start_monitor", "start_api_server", "start_log_monitor")
"""What `ray.init` has no option to leave out: the autoscaler's monitor, the dashboard's server without its dashboard, and what copies logs to drivers
that ask for them. On a machine of one's own nobody does, and together they take 260 MB, a second and more of CPU at the start, a hundredth of a core after it."""
RETIRE_TIMEOUT_S = 30.0
"""An actor that was killed is back by then, and removes what it stored."""
SUPERVISOR_PAUSE_S = 0.2
SUPERVISOR = "supervisor"
CPU_SHARE = 0.01
"""The Ray resource each actor holds: explicit, so that a scheduler may count them, and small, so that all fit on a laptop."""
ACTOR_OPTIONS: dict[str, Any] = {
    "lifetime": "detached",
    "get_if_exists": True,
    "max_restarts": -1,
    "max_task_retries": -1,
    "num_cpus": CPU_SHARE,
    "scheduling_strategy": "SPREAD",  # else Ray fills one node to the half first, which takes a hundred actors
    "max_concurrency": 1000,
    "enable_task_events": False,
}
NAMESPACE = "harbor-"


class Unreachable(Exception):  # noqa: N818 - it is an outcome
    """A peer did not answer."""


def namespace(cluster: str) -> str:
    """Return the Ray namespace of a cluster."""
    return NAMESPACE + cluster


class Peers:
    """Calls to the other actors of one cluster, by address."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster
        self._namespace = namespace(cluster)
        self._node = ray.get_runtime_context().get_node_id()
        self._handles: dict[str, Any] = {}
        self._links: dict[str, NodeLink] = {}
        self._by_ray: set[str] = set()
        """Whose socket failed; a call that Ray has carried makes it worth another try."""
        self._primaries = Primaries()
        self._under_way: dict[str, set[asyncio.Timeout]] = {}
        """Limits of calls to shards, by actor."""

    def told(self, message: Primary) -> bool:
        """A shard has another primary: calls to the one before end now. Returns whether that is news."""
        before = self._primaries.actor(message.shard)
        is_news = self._primaries.told(message.shard, message.actor, message.incarnation)
        if is_news and before != message.actor:
            for limit in self._under_way.get(before, ()):
                if not limit.expired():
                    limit.reschedule(0.0)
        return is_news

    def is_over(self, message: Message) -> bool:
        """Whether a message is of a shard's life after which a later one was heard of."""
        match message:
            case Announce(sender=sender, incarnation=incarnation):
                return self._primaries.is_over(sender, incarnation)
            case Claimed(shard=shard, incarnation=incarnation):
                return self._primaries.is_over(f"shard-{shard}", incarnation)
            case ChangeSet(header=header) | Demand(header=header) | Overlays(header=header) | SlotSlice(header=header):
                return self._primaries.is_over(header.sender, header.incarnation)
            case _:
                return False

    async def call(self, to: str, message: Message) -> Answer:
        """Deliver a message to an actor, of a shard to its primary, and return the answer.

        Cancelling is safe: the message may or may not have arrived, as with `Unreachable`.

        Raises:
            Unreachable: no answer came.
        """
        if not to.startswith("shard-"):
            return await self.call_actor(to, message)
        actor = self._primaries.actor(to)
        try:
            answer = await self.call_actor(actor, message, self._under_way.setdefault(actor, set()))
        except Unreachable:
            self._primaries.missed(to, actor)
            raise
        if isinstance(answer, Elsewhere):
            self._primaries.missed(to, actor, answer.primary)
            raise Unreachable(f"{actor}: it is not the primary")
        if self._primaries.actor(to) != actor:
            raise Unreachable(f"{actor}: it is not the primary any longer")
        return answer

    async def call_actor(self, to: str, message: Message, limits: set[asyncio.Timeout] | None = None) -> Answer:
        """Deliver a message to this very actor and return the answer.

        Args:
            to: Its name.
            message: What to deliver.
            limits: The call's limit is among these while it is under way.

        Raises:
            Unreachable: no answer came.
        """
        pieces = blob.encode(message)
        limit = asyncio.timeout(CALL_TIMEOUT_S)
        if limits is not None:
            limits.add(limit)
        try:
            async with limit:
                answer = await self._call_here(to, pieces)
                if answer is None:
                    handle = await self._handle(to)
                    answer = await handle.call.remote(*pieces)
                    self._by_ray.discard(to)
            return blob.decode_answer(answer)
        except (RayError, TimeoutError, ValueError, msgspec.DecodeError, blob.WireVersionError) as error:
            self._handles.pop(to, None)
            self._drop_link(to)
            raise Unreachable(f"{to}: {type(error).__name__}") from error
        finally:
            if limits is not None:
                limits.discard(limit)

    async def _call_here(self, to: str, pieces: list[bytes]) -> bytes | None:
        """Return the answer of an actor of this node, or None where Ray is to carry the call."""
        if to in self._by_ray:
            return None
        try:
            link = self._links.get(to)
            if link is None:
                made = await NodeLink.connect(self._node, self._cluster, to)
                link = self._links.setdefault(to, made)
                if link is not made:
                    made.close()
            return await link.call(pieces)
        except Lost:
            self._drop_link(to)
            return None

    def _drop_link(self, to: str) -> None:
        link = self._links.pop(to, None)
        if link is not None:
            link.close()
            self._by_ray.add(to)

    async def status(self, to: str, timeout_s: float = 2.0) -> dict[str, Any]:
        """Return what an actor says of itself.

        Raises:
            Unreachable: no answer came.
        """
        status: dict[str, Any] = await self._ask(to, "status", timeout_s)
        return status

    async def samples(self, to: str, timeout_s: float = 2.0) -> bytes:
        """Return an actor's metrics, encoded.

        Raises:
            Unreachable: no answer came.
        """
        samples: bytes = await self._ask(to, "samples", timeout_s)
        return samples

    async def measure(self, to: str) -> tuple[bytes, dict[str, Any]]:
        """Return an actor's metrics, encoded, and what it says of itself: by a socket, where it is on this node, for a tenth of what Ray takes.

        Raises:
            Unreachable: no answer came.
        """
        answer = await self.call_actor(to, Measure())
        assert isinstance(answer, Measured)
        status: dict[str, Any] = msgspec.msgpack.decode(answer.status)
        return answer.samples, status

    async def report(self, to: str, known: bytes, timeout_s: float) -> bytes:
        """Return a shard actor's `Report`, encoded, as soon as it is another than `known`, or after a while.

        Raises:
            Unreachable: no answer came; its cause says more.
        """
        report: bytes = await self._ask(to, "report", timeout_s, known)
        return report

    async def ended(self, to: str, node: str, pid: int, within_s: float) -> bool:
        """Have an actor wait for the end of a process of its node. Returns whether it has ended; not within that time, or it is on another node, if not.

        Raises:
            Unreachable: no answer came; its next life, which may be on another node, is not asked.
        """
        return bool(await self._ask(to, "ended", within_s + 2.0, node, pid, within_s, is_repeated=False))

    async def grant(self, to: str, life: int, grant: bytes) -> None:
        """Tell a shard's actor its role, in this life of it.

        Raises:
            Unreachable: no answer came.
        """
        await self._ask(to, "grant", 5.0, life, grant)

    async def describe(self) -> dict[str, Any]:
        """Return the supervisor's description of the whole cluster.

        Raises:
            UnavailableError: the supervisor does not answer.
        """
        try:
            described: dict[str, Any] = await self._ask(SUPERVISOR, "describe", 5.0)
        except Unreachable as error:
            raise UnavailableError("the supervisor does not answer") from error
        return described

    async def members(self) -> Members:
        """Return which ingestors there are, as soon as the supervisor says so."""
        return msgspec.msgpack.decode(await self._told("members"), type=Members)

    async def scale(self, counts: dict[str, int]) -> None:
        """Have another number of actors, by kind.

        Raises:
            UnavailableError: the supervisor does not answer.
            RequestError: `BAD_REQUEST`, that cannot be.
        """
        try:
            reason = await self._ask(SUPERVISOR, "scale", 5.0, counts)
        except Unreachable as error:
            raise UnavailableError("the supervisor does not answer") from error
        if reason:
            raise RequestError(ErrorCode.BAD_REQUEST, reason)

    async def dead_letters(self, to: str, timeout_s: float = 3.0) -> list[DeadLetter]:
        """Return the dead letters of an ingestor, newest first.

        Raises:
            Unreachable: no answer came.
        """
        return _letters(await self._ask(to, "dead_letters", timeout_s))

    async def all_dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters of the whole cluster, newest first.

        Raises:
            UnavailableError: the supervisor does not answer.
        """
        try:
            return await self.dead_letters(SUPERVISOR, 5.0)
        except Unreachable as error:
            raise UnavailableError("the supervisor does not answer") from error

    async def observed(self, names: list[str]) -> dict[str, Any]:
        """Return what some of the reserved entries say, those that the supervisor knows of, by name.

        Raises:
            UnavailableError: the supervisor does not answer.
        """
        try:
            observed: dict[str, Any] = orjson.loads(await self._ask(SUPERVISOR, "observed", 5.0, names))
        except Unreachable as error:
            raise UnavailableError("the supervisor does not answer") from error
        return observed

    async def drain(self, node: str, timeout_s: float) -> None:
        """Have shards leave a node; errors do not matter, it is about to go."""
        with contextlib.suppress(Unreachable):
            await self._ask(SUPERVISOR, "drain", timeout_s, node, timeout_s)

    async def copy(self, shard: int, step: Step, backup: str, number: int) -> StepAnswer:
        """Make a step of a backup at a shard.

        Raises:
            UnavailableError: it does not answer.
        """
        try:
            answer = await self._ask(
                self._primaries.actor(f"shard-{shard}"), "copy", COPY_TIMEOUT_S, step, backup, number
            )
            return decode_answer(answer)
        except (Unreachable, msgspec.MsgspecError) as error:
            raise UnavailableError(f"shard-{shard} does not answer") from error

    async def leave(self, to: str, grace_s: float = 0.0, timeout_s: float = 5.0) -> bool:
        """Have an actor finish what it owes others. Returns whether it has; if not, it is about to be stopped all the same."""
        try:
            await self._ask(to, "leave", timeout_s, grace_s)
        except Unreachable:
            return False
        return True

    async def reconfigure(self, to: str, specification: bytes) -> bool:
        """Give an actor another configuration. Returns False where it has to be made anew for it.

        Raises:
            Unreachable: no answer came.
        """
        return bool(await self._ask(to, "reconfigure", 10.0, specification))

    async def current(self, to: str) -> bytes:
        """Return the configuration an actor works by, encoded.

        Raises:
            Unreachable: no answer came.
        """
        encoded: bytes = await self._ask(to, "current", 5.0)
        return encoded

    async def slot_map(self) -> SlotMap:
        """Return the slot map that counts, as soon as the supervisor says so: not while slots are about to move."""
        return msgspec.msgpack.decode(await self._told("slot_map"), type=SlotMap)

    async def retire(self, to: str) -> None:
        """Have a shard that nothing is left of remove its store, for it is about to be ended. One that was killed is waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETIRE_TIMEOUT_S):
                while True:
                    try:
                        await self._ask(to, "retire", RETIRE_TIMEOUT_S)
                    except Unreachable as error:
                        if not isinstance(error.__cause__, ValueError):  # else there is none of this name
                            await asyncio.sleep(SUPERVISOR_PAUSE_S)
                            continue
                    return

    async def gateways(self) -> list[str]:
        """Return which gateways there are, as soon as the supervisor says so."""
        names: list[str] = await self._told("gateways")
        return names

    async def _told(self, method: str) -> Any:
        """Ask the supervisor until it answers."""
        while True:
            try:
                return await self._ask(SUPERVISOR, method, 5.0)
            except Unreachable:
                await asyncio.sleep(SUPERVISOR_PAUSE_S)

    async def _ask(self, to: str, method: str, timeout_s: float, *arguments: Any, is_repeated: bool = True) -> Any:
        """`is_repeated`: where the actor ends before it has answered, Ray may ask its next life."""
        try:
            handle = await self._handle(to)
            ask = handle.ask if is_repeated else handle.ask.options(max_task_retries=0)
            # `wait_for` loses a cancellation that comes with the answer (Python 3.11).
            async with asyncio.timeout(timeout_s):
                return await ask.remote(method, *arguments)
        except (RayError, TimeoutError, ValueError, AttributeError) as error:  # the last: it is of another version
            self._handles.pop(to, None)
            raise Unreachable(f"{to}: {type(error).__name__}") from error

    async def _handle(self, to: str) -> Any:
        handle = self._handles.get(to)
        if handle is None:
            # A lookup asks the head node and blocks meanwhile: not on this loop.
            handle = await asyncio.to_thread(ray.get_actor, to, self._namespace)
            self._handles[to] = handle
        return handle


def _letters(encoded: bytes) -> list[DeadLetter]:
    return msgspec.msgpack.decode(encoded, type=list[DeadLetter])


class SupervisorHandle:
    """The supervisor as a driver (no event loop) calls it."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def apply(self, config: bytes) -> None:
        """Make the cluster be what `config` (encoded) says."""
        self._ask("apply", 60, config)

    def describe(self) -> dict[str, Any]:
        """Return the description of the whole cluster."""
        described: dict[str, Any] = self._ask("describe", 10)
        return described

    def scale(self, counts: dict[str, int]) -> None:
        """Have another number of actors.

        Raises:
            RequestError: `BAD_REQUEST`, that cannot be.
        """
        reason = self._ask("scale", 10, counts)
        if reason:
            raise RequestError(ErrorCode.BAD_REQUEST, reason)

    def dead_letters(self) -> list[DeadLetter]:
        """Return the dead letters of the whole cluster, newest first."""
        return _letters(self._ask("dead_letters", 10))

    def metrics(self) -> list[tuple[str, bytes | None]]:
        """Return (actor, encoded metrics or None where it did not answer) of every actor."""
        gathered: list[tuple[str, bytes | None]] = self._ask("metrics", 10)
        return gathered

    def stop(self) -> None:
        """Drain the gateways and end every actor but the supervisor."""
        self._ask("stop", 20)

    def _ask(self, method: str, timeout_s: float, *arguments: Any) -> Any:
        """Call a method.

        Raises:
            UnavailableError: the cluster that runs is of a version with other calls.
            RayError: no answer came.
        """
        try:
            ask = self._handle.ask
        except AttributeError as error:
            raise UnavailableError(
                "the cluster that runs is of another version: end it with that, then start it with this one"
            ) from error
        return ray.get(ask.remote(method, *arguments), timeout=timeout_s)


def _tell(data: Any, ignore_prefix: bool) -> None:  # noqa: ARG001 - as Ray calls it
    """Print what Ray reports as commands say things: the first sentence, on standard error; the rest is in Ray's logs."""
    for text in data["lines"]:
        sentence = " ".join(text.split()).partition(". ")[0]
        pid = re.search(r"Worker PID: (\d+)", text)
        sys.stderr.write(f"harbor: ray: {sentence}{f' (process {pid[1]})' if pid else ''}\n")


@contextlib.contextmanager
def _lean() -> Iterator[None]:
    """Have Ray start, of the processes beside its head, only those that somebody uses here (`SPECTATORS`), and actors by our script (`ray_start`)."""
    others: list[tuple[type, str, Any]] = [(Node, name, lambda *_, **__: None) for name in SPECTATORS]
    others.append((RayParams, "__init__", ray_start.OURS))
    were = [(of, name, getattr(of, name)) for of, name, _ in others]
    for of, name, other in others:
        setattr(of, name, other)
    try:
        yield
    finally:
        for of, name, method in were:
            setattr(of, name, method)


def connect(*, address: str, **options: Any) -> None:
    """Connect to Ray as a driver, or start one (`local`). Signals stay with those who have them: Ray would end the process at a SIGTERM."""
    held = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    # Ray prints what its processes report, such as a worker's death, on a driver's standard output, whatever `log_to_driver` says.
    ray_worker.print_to_stdstream = _tell
    with _lean() if address == "local" else contextlib.nullcontext():
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **options)
    if threading.current_thread() is threading.main_thread():
        for number, handler in held.items():
            signal.signal(number, handler)


def kill(handle: Any) -> None:
    """End an actor for good."""
    ray.kill(handle, no_restart=True)


def request_places(resource: str, count: int) -> None:
    """Ask Ray's autoscaler for nodes with so many of a resource in all; that holds until the next such request of anybody on this Ray.

    Raises:
        Unreachable: Ray's head does not answer.
    """
    from ray.autoscaler.sdk import request_resources  # noqa: PLC0415 - a second of imports that one actor needs, seldom

    try:
        request_resources(bundles=[{resource: 1}] * count)
    except (RayError, RuntimeError, OSError) as error:
        raise Unreachable(f"autoscaler: {type(error).__name__}") from error


def create(kind: str, cluster: str, name: str, *arguments: Any, **options: Any) -> Any:
    """Make an actor of a class (`module:Class`), or find the one that has its name; `options` are Ray's, over `ACTOR_OPTIONS`."""
    options = {**ACTOR_OPTIONS, "name": name, "namespace": namespace(cluster), **options}
    return _class_for_ray(kind).options(**options).remote(*arguments)


def create_supervisor(cluster: str, specification: bytes) -> Any:
    """Make the supervisor of a cluster, or find it."""
    return create("cluster.actors.supervisor:SupervisorActor", cluster, SUPERVISOR, cluster, specification)


@functools.cache
def _class_for_ray(kind: str) -> Any:
    """Return the class that Ray makes actors of: one for all of a kind, since it is sent to Ray's head."""
    module, name = kind.split(":")
    return ray.remote(type(name, (RayActor,), {"MODULE": module}))
