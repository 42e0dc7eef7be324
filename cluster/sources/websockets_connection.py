"""Connections of the `websockets` package: the reference transport, and the one that lacks nothing.

The library connects, shakes hands, answers pings and closes. Incoming data frames take a shorter way: `FrameConnection` is given to the
library as its connection class and hands every message to the listener from inside `data_received`, without a queue and without a
task switch. Backpressure is the socket's: while held, nothing is read and TCP pushes back. Messages over the limit are skipped as they
stream by.

What must not live here: what a frame means, when to reconnect (`source`), joining (`websocket`).
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as library_connect
from websockets.asyncio.connection import broadcast
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import CloseCode
from websockets.protocol import State
from websockets.typing import Subprotocol

from cluster.sources.connection import CLOSE_TIMEOUT_S, USER_AGENT, Dial, LostError, loss_of, not_reached
from cluster.sources.frame_splitter import FrameSplitter
from cluster.sources.pieces import PING, FrameViolationError
from cluster.sources.read_pace import ReadPace
from cluster.sources.source import ConnectionFailedError

HEADERS_END = b"\r\n\r\n"


class FrameConnection(ClientConnection):
    """A client connection whose messages go to a callback; `recv` never returns any. See `connection.Connection`."""

    def __init__(self, protocol: ClientProtocol, dial: Dial, **options: Any) -> None:
        super().__init__(protocol, **options)
        self.heard = 0
        self.failure: Exception | None = None
        self.outdone = False
        self._violation: FrameViolationError | None = None
        self._splitter = FrameSplitter(dial.deliver, self._control, dial.refuse, dial.max_frame_bytes)
        self._splitter.hold()
        self._head = b""
        """Of the handshake's answer, until its end was seen; frames may follow it in the same read."""
        self._shaken = False
        self._pace: ReadPace
        self._read_spacing_s = dial.read_spacing_s
        self._ending: asyncio.TimerHandle | None = None
        """The peer closes the socket before this, or it is closed here (RFC 6455, 7.1.1)."""

    @property
    def held(self) -> bool:
        """Nothing is delivered and nothing read."""
        return self._splitter.held

    @property
    def loss(self) -> str:
        """Why it ended, for people."""
        return loss_of(self._violation, self.close_code, self.close_reason)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Pace its reads."""
        self._pace = ReadPace(cast(asyncio.Transport, transport), self._read_spacing_s)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Split, deliver, and rest before the next read where reads come thick."""
        if not self._shaken:
            data = self._shake(data)
            if not data:
                return
        self.heard += 1
        self._take(self._splitter.feed, data)
        if self._splitter.closed:
            self._end_soon()
        if self._splitter.held:
            self._pace.stop()
        else:
            self._pace.took(len(data))

    def release(self) -> None:
        """Deliver what was kept, then read again, unless the listener says False anew."""
        if not self._splitter.held:
            return
        self._take(self._splitter.release)
        if self._splitter.closed:
            self._end_soon()
        if not self._splitter.held:
            self._pace.go_on()

    def finish(self) -> None:
        """Deliver no more; read on for the closing handshake only."""
        self._splitter.close()
        self.release()

    def say_now(self, text: str) -> None:
        """Send without waiting; nothing happens where the connection is lost."""
        broadcast([self], text)

    async def say(self, text: str) -> None:
        """Send, at the pace the upstream reads.

        Raises:
            LostError: the connection is lost.
        """
        try:
            await self.send(text)
        except ConnectionClosed as exc:
            raise LostError from exc

    async def probe(self) -> None:
        """Send a ping, at the pace the upstream reads.

        Raises:
            LostError: the connection is lost.
        """
        try:
            await self.ping()
        except ConnectionClosed as exc:
            raise LostError from exc

    async def until_lost(self) -> None:
        """Wait for the end."""
        await self.wait_closed()

    async def hang_up(self) -> None:
        """Close politely within `CLOSE_TIMEOUT_S`, else at once."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self.close()
        except (TimeoutError, OSError):
            pass
        finally:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers, too."""
        self._pace.end()
        if self._ending is not None:
            self._ending.cancel()
        super().connection_lost(exc)

    def _shake(self, data: bytes) -> bytes:
        """Give the library the handshake's answer and nothing beyond; return what is beyond."""
        head = self._head + data
        end = head.find(HEADERS_END)
        if end < 0:
            self._head = head[-len(HEADERS_END) :]
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

    def _control(self, frame: bytes) -> None:
        if self.paused and frame[0] & 0x0F == PING:
            return  # the answers to the pings before are still unread, and must not pile up
        super().data_received(frame)
        if self.protocol.parser_exc is not None:
            raise FrameViolationError(str(self.protocol.parser_exc))

    def _take(self, step: Callable[..., None], *arguments: bytes) -> None:
        try:
            step(*arguments)
        except FrameViolationError as violation:
            self._violation = violation
            self._splitter.close()
            self.protocol.fail(CloseCode.PROTOCOL_ERROR, "")
            self.send_data()
            self.transport.close()
            self._end_soon()
        except Exception as failure:  # noqa: BLE001 - the listener's; the source raises it
            self.failure = failure
            self.transport.abort()

    def _end_soon(self) -> None:
        if self._ending is None:
            self._ending = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)


class _Connect(library_connect):
    """Follows no redirects: where an upstream is, only the configuration says."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


async def connect(dial: Dial) -> FrameConnection:
    """Connect and shake hands.

    Raises:
        ConnectionFailedError: that did not work, for the reason it names.
    """

    def create(protocol: ClientProtocol, **options: Any) -> FrameConnection:
        return FrameConnection(protocol, dial, **options)

    try:
        connection = await _Connect(
            dial.url,
            create_connection=cast(type[ClientConnection], create),
            compression=None,
            additional_headers=dict(dial.headers),
            subprotocols=[Subprotocol(each) for each in dial.subprotocols] or None,
            user_agent_header=USER_AGENT,
            proxy=None,
            open_timeout=dial.open_timeout_s,
            ping_interval=None,  # the library's would count a held connection as dead
            close_timeout=CLOSE_TIMEOUT_S,
            max_size=None,  # the splitter's is in force
        )
    except InvalidStatus as exc:
        raise ConnectionFailedError(f"http {exc.response.status_code}") from exc
    except (OSError, TimeoutError, InvalidHandshake, InvalidURI, ConnectionClosed, EOFError) as exc:
        raise not_reached(exc) from exc
    return cast(FrameConnection, connection)
