"""What every source does: stay connected, say what happens to the connection, begin again after a failure.

A source never gives up. Failures in a row lengthen the delay; after `Backoff.attempts` of them the source says `failed` and goes on
trying. A connection that lasted longer than the delay before it ends the row, so an upstream that accepts and hangs up at once is
backed off from like one that does not answer.

What must not live here: what a frame means, channels' templates, the wire formats (`websocket`, `sse`).
"""

import asyncio
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

from cluster.core.retry import Backoff
from cluster.core.rule import Envelope

OPEN_TIMEOUT_S = 10.0
"""For name, connection, TLS and handshake together; an upstream that takes longer is tried again."""


class SourceState(StrEnum):
    """Where a source stands. `failed` still tries; only `disconnected` is final."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    FAILED = "failed"
    DISCONNECTED = "disconnected"


EDGES = {
    SourceState.CONNECTING: {
        SourceState.CONNECTED,
        SourceState.RECONNECTING,
        SourceState.FAILED,
        SourceState.DISCONNECTED,
    },
    SourceState.CONNECTED: {SourceState.RECONNECTING, SourceState.FAILED, SourceState.DISCONNECTED},
    SourceState.RECONNECTING: {SourceState.CONNECTED, SourceState.FAILED, SourceState.DISCONNECTED},
    SourceState.FAILED: {SourceState.CONNECTED, SourceState.DISCONNECTED},
    SourceState.DISCONNECTED: {SourceState.CONNECTING},
}


class SourceListener(Protocol):
    """Who consumes a source. All methods are called on the source's loop and must not block or raise; a raise ends `run`."""

    def position(self, source: str, channel: str | None = None) -> str | int | None:
        """Return the id of the event after which a source, or one of its channels, is to go on; None: none is known."""
        ...

    def opened(self, source: str) -> None:
        """The connection is up and the joined channels were asked for; nothing of it was handed over yet."""
        ...

    def received(self, source: str, frames: Sequence[bytes]) -> bool:
        """Take the messages, or lines, of one read. False: hand over no more, and read no more, until `Source.resume`."""
        ...

    def received_events(self, source: str, events: Sequence[Envelope]) -> bool:
        """Take the events of one read, where the transport or dialect has read their name and data. Returns as `received`."""
        ...

    def refused(self, source: str, reason: str, size_bytes: int, detail: str = "") -> None:
        """Something was dropped unread, and the stream goes on: `too_large`."""
        ...

    def closed(self, source: str, reason: str) -> None:
        """The connection was lost, or an attempt to open one failed; another will be made."""
        ...

    def state_changed(self, source: str, state: SourceState) -> None:
        """The state is now `state`, and was another."""
        ...


class Source(Protocol):
    """One upstream stream."""

    name: str
    state: SourceState
    reconnects: int
    """How often the connection came up after the first time."""

    @property
    def transport(self) -> str:
        """Return what carries it: `fast`, `websockets` or `http`."""
        ...

    async def run(self) -> None:
        """Keep connected until cancelled (or told by the upstream not to return); then the connection is closed.

        A run begins when those before it have closed theirs, however many of them were cancelled as they waited for that.
        """
        ...

    def join(self, channel: str) -> None:
        """Ask for a channel now, and after every reconnect. Repeats do nothing."""
        ...

    def leave(self, channel: str) -> None:
        """Ask no longer for a channel."""
        ...

    def resume(self) -> None:
        """Hand over and read again, after the listener said False."""
        ...

    def reconnect(self) -> None:
        """Hand over nothing more of this connection, and open another at once."""
        ...


class GoneError(Exception):
    """The upstream asks not to be connected to again."""


class ConnectionFailedError(Exception):
    """No connection, or no longer; the message is the reason."""


class ReconnectingSource(ABC):
    """The part of a source that is the same for every transport."""

    def __init__(
        self, name: str, listener: SourceListener, backoff: Backoff, jitter: Callable[[], float] = random.random
    ) -> None:
        self.name = name
        self.state = SourceState.DISCONNECTED
        self.reconnects = 0
        self._listener = listener
        self._backoff = backoff
        self._jitter = jitter
        self._initial_ms: float | None = None
        """The first delay, where the upstream named one."""
        self._opened_at: float | None = None
        self._was_open = False
        self._turn = asyncio.Lock()
        """Held by the run that has the connection."""
        self._conversing: asyncio.Task[None] | None = None
        self._is_reconnecting = False
        """The connection is being closed to open another."""

    async def run(self) -> None:
        """Keep connected until cancelled; cancelling closes the connection first.

        Raises:
            Exception: whatever the listener raised.
        """
        async with self._turn:
            await self._run()

    def reconnect(self) -> None:
        """Hand over nothing more of this connection, and open another at once."""
        if self._conversing is not None and not self._is_reconnecting:
            self._is_reconnecting = True
            self._conversing.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        last_delay_s = 0.0
        self._enter(SourceState.CONNECTING)
        try:
            while True:
                self._opened_at = None
                self._is_reconnecting = False
                self._conversing = loop.create_task(self._converse())
                try:
                    await self._conversing
                except GoneError as gone:
                    self._listener.closed(self.name, str(gone))
                    return
                except ConnectionFailedError as failed:
                    reason = str(failed)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if not self._is_reconnecting or (task is not None and task.cancelling()):
                        raise
                finally:
                    self._conversing = None
                if self._is_reconnecting:
                    continue
                if self._opened_at is not None and loop.time() - self._opened_at > last_delay_s:
                    failures = 0
                failures += 1
                self._listener.closed(self.name, reason)
                if self._backoff.failed(failures):
                    self._enter(SourceState.FAILED)
                elif self.state is not SourceState.FAILED:
                    self._enter(SourceState.RECONNECTING)
                last_delay_s = self._backoff.delay_ms(failures, self._jitter(), self._initial_ms) / 1000.0
                await asyncio.sleep(last_delay_s)
        finally:
            self._enter(SourceState.DISCONNECTED)

    @abstractmethod
    async def _converse(self) -> None:
        """Open a connection, call `_opened`, and hand over what comes until it ends.

        Raises:
            ConnectionFailedError: always, in the end.
            GoneError: the upstream asks not to be connected to again.
        """

    def _opened(self) -> None:
        self._opened_at = asyncio.get_running_loop().time()
        if self._was_open:
            self.reconnects += 1
        self._was_open = True
        self._listener.opened(self.name)
        self._enter(SourceState.CONNECTED)

    def _enter(self, state: SourceState) -> None:
        if state is self.state:
            return
        if state not in EDGES[self.state]:
            raise AssertionError(f"a source cannot go from {self.state} to {state}")
        self.state = state
        self._listener.state_changed(self.name, state)
