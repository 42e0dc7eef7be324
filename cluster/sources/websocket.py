"""A WebSocket upstream, on the `websockets` package.

The library connects, shakes hands, answers pings and closes. Incoming data frames take a shorter way: `FrameConnection` is given to the
library as its connection class and hands every message to the listener from inside `data_received`, without a queue and without a
task switch. Backpressure is the transport's: while held, nothing is read and TCP pushes back.

Reads are moderated as network cards moderate interrupts. A busy upstream's messages arrive one by one, and a read costs several times
what splitting a message does; so after a read that came hard on the last one, the next waits `READ_SPACING_S`, and then takes all that
has gathered. A lone message is never delayed.

What must not live here: what a frame means, when to reconnect (`source`).
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import broadcast
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import CloseCode
from websockets.protocol import State

from cluster import __version__
from cluster.core.retry import Backoff
from cluster.sources.frame_splitter import FrameSplitter, FrameViolationError
from cluster.sources.source import OPEN_TIMEOUT_S, ConnectionFailedError, ReconnectingSource, SourceListener

READ_SPACING_S = 0.002
"""Between two reads of a busy socket. At 100,000 messages/s of 190 bytes a read then takes 200 messages (38 KB), well inside the
kernel's buffer; longer gains little more and would show in the age of events."""
FULL_READ_BYTES = 128 * 1024
"""After a read this long (uvloop's are 256 KiB at most) the next follows at once: there is nothing to gather."""
CLOSE_TIMEOUT_S = 1.0
"""For the closing handshake; after it the socket is closed without one."""
MAX_FRAME_BYTES = 1024 * 1024
HEADERS_END = b"\r\n\r\n"


class FrameConnection(ClientConnection):
    """A client connection whose messages go to a callback; `recv` never returns any."""

    def __init__(
        self,
        protocol: ClientProtocol,
        *,
        deliver: Callable[[bytes], bool],
        refuse: Callable[[str, int], None],
        max_frame_bytes: int,
        read_spacing_s: float,
        **options: Any,
    ) -> None:
        super().__init__(protocol, **options)
        self.heard = 0
        """Reads so far."""
        self.violation: FrameViolationError | None = None
        self.failure: Exception | None = None
        """What the listener raised."""
        self._splitter = FrameSplitter(deliver, super().data_received, refuse, max_frame_bytes)
        self._splitter.hold()
        self._head = b""
        """Of the handshake's answer, until its end was seen; frames may follow it in the same read."""
        self._shaken = False
        self._read_spacing_s = read_spacing_s
        self._read_at = 0.0
        self._resting: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None
        """The peer closes the socket before this, or it is closed here (RFC 6455, 7.1.1)."""
        self._stopped = False

    @property
    def held(self) -> bool:
        """Nothing is delivered and nothing read."""
        return self._splitter.held

    def data_received(self, data: bytes) -> None:
        """Split, deliver, and rest before the next read where reads come thick."""
        if not self._shaken:
            data = self._shake(data)
            if not data:
                return
        self.heard += 1
        self._take(self._splitter.feed, data)
        if self._splitter.closed and self._ending is None:
            self._ending = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)
        if self._splitter.held:
            self._stop()
            return
        now = self.loop.time()
        close = now - self._read_at < 2 * self._read_spacing_s
        if close and len(data) < FULL_READ_BYTES and self._resting is None and not self._stopped:
            self.transport.pause_reading()
            self._resting = self.loop.call_later(self._read_spacing_s, self._rested)
        self._read_at = now

    def release(self) -> None:
        """Deliver what was kept, then read again, unless the listener says False anew."""
        if not self._splitter.held:
            return
        self._take(self._splitter.release)
        if not self._splitter.held and self._stopped:
            self._stopped = False
            if self._resting is None and not self.transport.is_closing():
                self.transport.resume_reading()

    def finish(self) -> None:
        """Deliver no more; read on for the closing handshake only."""
        self._splitter.close()
        self.release()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers, too."""
        for timer in (self._resting, self._ending):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _shake(self, data: bytes) -> bytes:
        """Give the library the handshake's answer and nothing beyond; return what is beyond."""
        head = self._head + data
        end = head.find(HEADERS_END)
        if end < 0:
            self._head = head
            super().data_received(data)
            return b""
        end += len(HEADERS_END) - (len(head) - len(data))
        self._head = b""
        super().data_received(data[:end])
        if self.protocol.state is State.CONNECTING or self.protocol.handshake_exc is not None:
            if data[end:]:
                super().data_received(data[end:])
            return b""
        self._shaken = True
        return data[end:]

    def _take(self, step: Callable[..., None], *arguments: bytes) -> None:
        try:
            step(*arguments)
        except FrameViolationError as violation:
            self.violation = violation
            self._splitter.close()
            self.protocol.fail(CloseCode.PROTOCOL_ERROR, "")
            self.send_data()
            self.transport.close()
        except Exception as failure:  # noqa: BLE001 - the listener's; `run` raises it
            self.failure = failure
            self.transport.abort()

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self.transport.pause_reading()

    def _rested(self) -> None:
        self._resting = None
        if not self._stopped and not self.transport.is_closing():
            self.transport.resume_reading()


class _Connect(connect):
    """Follows no redirects: where an upstream is, only the configuration says."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class WebSocketSource(ReconnectingSource):
    """See the module and `source.Source`."""

    def __init__(
        self,
        name: str,
        url: str,
        listener: SourceListener,
        *,
        headers: Mapping[str, str] | None = None,
        subscribe_message: Callable[[str, str | int | None], str] | None = None,
        unsubscribe_message: Callable[[str], str] | None = None,
        backoff: Backoff | None = None,
        heartbeat_ms: float | None = 30_000.0,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        read_spacing_s: float = READ_SPACING_S,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Build; nothing is connected before `run`.

        Args:
            name: Given to the listener with everything.
            url: `ws://` or `wss://`.
            listener: Consumes the messages.
            headers: Of the handshake.
            subscribe_message: (channel, id of the last event that is known of it) -> text message that asks for it. Without one,
                `join` only remembers.
            unsubscribe_message: Channel -> text message that ends it.
            backoff: Between attempts.
            heartbeat_ms: A ping is sent this often; a connection on which nothing was read for two of them is dropped. None: never.
            max_frame_bytes: Longer messages are skipped and refused.
            read_spacing_s: See the module.
            jitter: Uniform in 0..1.
        """
        super().__init__(name, listener, backoff or Backoff(), jitter)
        self._url = url
        self._headers = dict(headers or {})
        self._subscribe = subscribe_message
        self._unsubscribe = unsubscribe_message
        self._heartbeat_s = None if heartbeat_ms is None else heartbeat_ms / 1000.0
        self._max_frame_bytes = max_frame_bytes
        self._read_spacing_s = read_spacing_s
        self._joined: dict[str, None] = {}
        self._asked: set[str] = set()
        """Channels asked for on this connection."""
        self._connection: FrameConnection | None = None

    def join(self, channel: str) -> None:
        """Ask for a channel now, and after every reconnect. Repeats do nothing."""
        self._joined[channel] = None
        if self._subscribe is not None and self._connection is not None and channel not in self._asked:
            self._asked.add(channel)
            broadcast([self._connection], self._subscribe(channel, self._listener.position(self.name, channel)))

    def leave(self, channel: str) -> None:
        """Ask no longer for a channel."""
        self._joined.pop(channel, None)
        if channel in self._asked:
            self._asked.remove(channel)
            if self._unsubscribe is not None and self._connection is not None:
                broadcast([self._connection], self._unsubscribe(channel))

    def resume(self) -> None:
        """Hand over and read again, after the listener said False."""
        if self._connection is not None:
            self._connection.release()

    def reconnect(self) -> None:
        """Hand over nothing more of this connection, and open another at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._is_reconnecting = True
            self._asked.clear()
            connection.finish()
            connection.transport.abort()

    async def _converse(self) -> None:
        connection = await self._connect()
        self._connection = connection
        try:
            await self._ask_all(connection)
            self._opened()
            connection.release()
            await self._until_lost(connection)
        except ConnectionClosed:
            pass
        finally:
            self._connection = None
            self._asked.clear()
            connection.finish()
            await self._close(connection)
        if connection.failure is not None:
            raise connection.failure
        raise ConnectionFailedError(self._reason(connection))

    async def _connect(self) -> FrameConnection:
        name = self.name
        received = self._listener.received
        refused = self._listener.refused

        def create(protocol: ClientProtocol, **options: Any) -> FrameConnection:
            return FrameConnection(
                protocol,
                deliver=lambda frame: received(name, frame),
                refuse=lambda reason, size_bytes: refused(name, reason, size_bytes),
                max_frame_bytes=self._max_frame_bytes,
                read_spacing_s=self._read_spacing_s,
                **options,
            )

        try:
            connection = await _Connect(
                self._url,
                create_connection=cast(type[ClientConnection], create),
                compression=None,
                additional_headers=self._headers,
                user_agent_header=f"harbor-cluster/{__version__}",
                proxy=None,
                open_timeout=OPEN_TIMEOUT_S,
                ping_interval=None,  # the library's would count a held connection as dead
                close_timeout=CLOSE_TIMEOUT_S,
                max_size=None,  # the splitter's is in force
            )
        except InvalidStatus as exc:
            raise ConnectionFailedError(f"http {exc.response.status_code}") from exc
        except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed, EOFError) as exc:
            raise ConnectionFailedError(str(exc) or type(exc).__name__) from exc
        return cast(FrameConnection, connection)

    async def _ask_all(self, connection: FrameConnection) -> None:
        """Ask for the joined channels at the pace the upstream takes the messages."""
        if self._subscribe is None:
            return
        for channel in list(self._joined):
            if channel in self._joined and channel not in self._asked:
                self._asked.add(channel)
                await connection.send(self._subscribe(channel, self._listener.position(self.name, channel)))

    async def _until_lost(self, connection: FrameConnection) -> None:
        if self._heartbeat_s is None:
            await connection.wait_closed()
            return
        heard = -1
        while True:
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await connection.wait_closed()
                return
            except TimeoutError:
                if connection.held:
                    heard = -1
                    continue
            if connection.heard == heard:
                raise ConnectionFailedError(f"nothing heard for {2 * self._heartbeat_s:g} s")
            heard = connection.heard
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await connection.ping()
            except TimeoutError as exc:
                raise ConnectionFailedError("the upstream reads nothing") from exc

    async def _close(self, connection: FrameConnection) -> None:
        """Close politely within `CLOSE_TIMEOUT_S`, else at once."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await connection.close()
        except (TimeoutError, OSError):
            pass
        finally:
            connection.transport.abort()

    @staticmethod
    def _reason(connection: FrameConnection) -> str:
        if connection.violation is not None:
            return f"protocol error: {connection.violation}"
        if connection.close_code in (None, CloseCode.ABNORMAL_CLOSURE):
            return "connection lost"
        return f"closed by the upstream: {connection.close_code} {connection.close_reason or ''}".rstrip()
