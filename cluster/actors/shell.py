"""What every shell does: hold a machine, run its effects, keep its timer.

The machine is synchronous and every step of it runs between two awaits, so no lock is needed. Tasks belong to one group that lives as
long as the actor; a task that fails for a reason nobody foresaw ends the process, and Ray starts it anew: a machine in an unknown
state must not go on.
"""

import asyncio
import gc
import os
from abc import abstractmethod
from collections.abc import Coroutine, Iterable
from typing import Any, Protocol

import msgspec
import ray

from cluster.actors import lives, node_link, process_end
from cluster.actors.handles import Peers, Unreachable
from cluster.actors.specification import Specification
from cluster.actors.tasks import Tasks
from cluster.clock import Millis, SystemClock
from cluster.config import concerns
from cluster.core.messages import Answer, Batch, Blob, ChangeSet, Measure, Measured, Message, Noted, Primary, Send
from cluster.errors import UnavailableError
from cluster.observability import traces
from cluster.observability.logs import Log, trace_id
from cluster.observability.logs import configure as configure_logs
from cluster.wire import blob


class Machine(Protocol):
    """What the shell needs of a state machine."""

    def answered(self, to: str, message: Any, answer: Answer, now_ms: float) -> Iterable[Any]:
        """A call was answered."""
        ...

    def unanswered(self, to: str, message: Any, now_ms: float) -> Iterable[Any]:
        """A call failed."""
        ...

    def deadline(self) -> float | None:
        """When to wake."""
        ...

    def wake(self, now_ms: float) -> Iterable[Any]:
        """Do what is due."""
        ...


STEPS: dict[type, str] = {Blob: "blob", Batch: "batch", ChangeSet: "change_set"}
"""What an actor has done with events when it sends these."""


def _received(message: Message) -> list[float]:
    """Return when the oldest events that a message folds were received, where it has any."""
    match message:
        case Blob(parts=parts):
            return [part.oldest_ms for part in parts if part.oldest_ms]
        case Batch(oldest_ms=oldest_ms) | ChangeSet(oldest_ms=oldest_ms) if oldest_ms:
            return [oldest_ms]
        case _:
            return []


class Shell:
    """Base of the actors. Subclasses set `machine` and take their own effects in `effect`."""

    machine: Machine

    def __init__(self, identity: str, specification: Specification, address: str = "") -> None:
        self.identity = identity
        self.address = address or identity
        """The actor's name."""
        self.specification = specification
        self.clock = SystemClock()
        self.peers = Peers(specification.name)
        configure_logs()
        self.node = ray.get_runtime_context().get_node_id()
        self.log = Log(cluster=specification.name, component=self.address, node=self.node[:12])
        self.traces = traces.configured(identity, specification.name, self.log)
        self._loop = asyncio.get_running_loop()
        self.tasks = Tasks(self.log)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: float | None = None
        # Modules and configuration live as long as the process: collecting need not look at them again, not even now. What messages
        # are made of dies by reference count; collecting 700 objects at a time would only interrupt a batch several times over.
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    @property
    def is_traced(self) -> bool:
        """Whether anybody wants to follow events."""
        return self.traces is not None or self.log.is_debug

    def trace(self, event: str, step: str, received_ms: float, **fields: str | float) -> None:
        """Log a step of the events received at a time, and record its span."""
        self.log.debug(event, trace=trace_id(received_ms), step=step, **fields)
        if self.traces is not None:
            self.traces.step(step, received_ms, self.now(), component=self.identity, **fields)

    def about(self) -> dict[str, object]:
        """Say what the status of every actor says."""
        return {"pid": os.getpid(), "node": self.node, "revision": self.specification.revision}

    async def reconfigure(self, encoded: bytes) -> bool:
        """Take another configuration, unless it has a later one, or has to be made anew for it: then it returns False."""
        specification = Specification.decode(encoded)
        if specification.revision < self.specification.revision:
            return True  # it has a later one
        kind = self.identity.partition("-")[0]
        if concerns(kind, self.specification.config, specification.config):
            return False
        self.specification = specification
        self.reconfigured()
        return True

    async def ended(self, node: str, pid: int, within_s: float) -> bool:
        """Return True as soon as a process of this node has ended; False after a while, where the kernel does not tell, or this is not the node."""
        if node != self.node:
            return False
        try:
            async with asyncio.timeout(within_s):
                await process_end.ended(pid)
        except OSError:  # a TimeoutError is one
            return False
        return True

    async def current(self) -> bytes:
        """Return the configuration the actor works by, encoded."""
        return self.specification.encoded

    def reconfigured(self) -> None:
        """Take from `specification` what is taken as the actor runs."""

    def now(self) -> Millis:
        """Return the time."""
        return self.clock.now_ms()

    async def begin_life(self) -> int:
        """Return the incarnation of this life: above those before, whatever the clock says."""
        return await lives.begin(self.specification.name, self.identity, self.now(), self.log)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task for as long as it takes."""
        return self.tasks.spawn(work)

    async def listen(self) -> None:
        """Take calls of actors of this node without Ray; those by Ray come when `__init__` has ended, these from now on."""
        await node_link.listen(self.node, self.specification.name, self.address, self._take_here)

    @abstractmethod
    def take(self, message: Message) -> Answer | asyncio.Future[Answer]:
        """Take a message from another actor. Returns the answer, or what will be it.

        Raises:
            UnavailableError: nothing is taken any more. Any other error ends the process: its sender would be told, when it says it
                again, that it was taken.
        """

    async def call(self, *pieces: bytes) -> bytes:
        """Take a message that Ray has carried."""
        answer = self._answer(pieces)
        return blob.encode_answer(await answer if isinstance(answer, asyncio.Future) else answer)

    def _answer(self, pieces: tuple[bytes, ...]) -> Answer | asyncio.Future[Answer]:
        """Take a message.

        Raises:
            UnavailableError: it cannot be taken, and nothing has come of it.
        """
        try:
            message = blob.decode_message(pieces)
        except (blob.WireVersionError, msgspec.DecodeError) as error:
            self.log.sampled("wire_version_refused", str(error))
            raise UnavailableError(str(error)) from error
        if isinstance(message, Primary):
            if self.peers.told(message):
                self.log.info("primary_changed", shard=message.shard, actor=message.actor)
            return Noted(message.incarnation)
        if isinstance(message, Measure):
            measured: asyncio.Future[Answer] = self._loop.create_future()
            self.spawn(self._measure(measured))
            return measured
        if self.peers.is_over(message):
            self.log.sampled("old_primary_refused", "shard")
            raise UnavailableError("a later life of the shard has been heard")
        try:
            return self.take(message)
        except UnavailableError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.tasks.failed(error)

    async def _measure(self, measured: asyncio.Future[Answer]) -> None:
        try:
            answer = Measured(await self.samples(), msgspec.msgpack.encode(await self.status()))
        except Exception as error:  # whatever it is, the machine is as it was
            self.log.error("measuring_failed", error=repr(error), exc_info=error)  # noqa: TRY400 - a Log has no `exception`
            if not measured.done():
                measured.set_exception(UnavailableError("it could not be measured"))
        else:
            if not measured.done():  # whoever asked may have given up
                measured.set_result(answer)

    @abstractmethod
    async def status(self) -> dict[str, object]:
        """Say what `/v1/cluster` shows of this actor."""

    @abstractmethod
    async def samples(self) -> bytes:
        """Return the metrics, encoded."""

    def _take_here(self, message: bytes) -> bytes | asyncio.Future[bytes]:
        try:
            answer = self._answer((message,))
        except UnavailableError:
            return b""
        if not isinstance(answer, asyncio.Future):
            return blob.encode_answer(answer)
        later: asyncio.Future[bytes] = self._loop.create_future()

        def answered(of: asyncio.Future[Answer]) -> None:
            if not later.done():
                is_none = of.cancelled() or of.exception() is not None
                later.set_result(b"" if is_none else blob.encode_answer(of.result()))

        answer.add_done_callback(answered)
        return later

    def run(self, effects: Iterable[Any]) -> None:
        """Run effects, then set the timer for what the machine wants next."""
        for effect in effects:
            if isinstance(effect, Send):
                self.send(effect)
            else:
                self.effect(effect)
        self.arm()

    def send(self, effect: Send) -> None:
        """Make a call; its outcome goes to the machine."""
        if self.is_traced:
            for received_ms in _received(effect.message):
                self.trace("sent", STEPS[type(effect.message)], received_ms, to=effect.to)
        self.spawn(self._send(effect.to, effect.message))

    def effect(self, effect: Any) -> None:
        """Run an effect that is not a call."""
        raise AssertionError(f"{self.identity} has no such effect: {effect!r}")

    async def _send(self, to: str, message: Message) -> None:
        try:
            answer = await self.peers.call(to, message)
        except Unreachable as error:
            self.log.debug("call_unanswered", to=to, reason=str(error))
            self.run(self.machine.unanswered(to, message, self.now()))
        else:
            self.run(self.machine.answered(to, message, answer, self.now()))

    def arm(self) -> None:
        """Keep exactly one timer, at the machine's deadline."""
        due = self.machine.deadline()
        if self._timer is not None:
            if due is not None and self._timer_at is not None and due >= self._timer_at:
                return  # waking early is harmless, and cheaper than moving the timer
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer_at = due
            self._timer = self.tasks.later(max(0.0, due - self.now()) / 1000.0, self._wake)

    def _wake(self) -> None:
        self._timer = None
        self.run(self.machine.wake(self.now()))
