"""Connections of the `picows` package: the transport called `fast`.

The library connects, shakes hands and cuts frames, in C; pieces of messages, control frames and closing are ours here, and so is reading:
`_Reads` stands between the socket and the library's protocol object, counts and paces reads, and notices at once when the library gives a
connection up (it would go on buffering for a moment).

What it lacks, and the reference transport has:

- It cannot skip a message over the limit. It is refused and the connection closed (`outdone`): the reason says so, another is made.
- It sends no user and password of a URL (`lacks`).
- Of the handshake's answer it takes only HTTP/1.1, `Connection: Upgrade` and nothing beside it, known status codes, and lengths of frames
  in their shortest form. An answer that it does not take raises `OutdoneError`.

Neither uses proxies, follows redirects, offers extensions or checks UTF-8. It imports `picows`, which need not be installed: only
`transport` imports this module.

What must not live here: what a frame means, when to reconnect (`source`), joining (`websocket`).
"""

import asyncio
import logging
import socket
from collections import deque
from typing import cast
from urllib.parse import urlsplit

from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSHandshakeError,
    WSInvalidStatusError,
    WSListener,
    WSMsgType,
    WSParsedURL,
    WSTransport,
    WSUpgradeRequest,
    WSUpgradeResponse,
    ws_connect,
)

from cluster.sources.connection import (
    CLOSE_TIMEOUT_S,
    NO_CODE,
    OK,
    USER_AGENT,
    Dial,
    LostError,
    OutdoneError,
    loss_of,
    not_reached,
)
from cluster.sources.pieces import CLOSE, PING, FrameViolationError, Pieces
from cluster.sources.read_pace import ReadPace
from cluster.sources.source import ConnectionFailedError

TEXT = WSMsgType.TEXT
_SILENT = logging.getLogger("picows.harbor")
_SILENT.setLevel(logging.CRITICAL + 1)  # what the library would log of a connection is in its `loss`


class _Reads(asyncio.BufferedProtocol):
    """Reads into the library's buffer, and tells a connection of it."""

    def __init__(self, connection: "PicowsConnection", inner: asyncio.BufferedProtocol) -> None:
        self._connection = connection
        self._inner = inner

    def get_buffer(self, sizehint: int) -> memoryview:
        return cast(memoryview, self._inner.get_buffer(sizehint))

    def buffer_updated(self, nbytes: int) -> None:
        self._inner.buffer_updated(nbytes)
        self._connection.took(nbytes)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


class PicowsConnection(WSListener):
    """A connection whose frames the library brings. See `connection.Connection`."""

    __slots__ = (
        "_apart",
        "_closed",
        "_deaf",
        "_deliver",
        "_ending",
        "_gave_up",
        "_goodbye",
        "_kept",
        "_lost",
        "_max_bytes",
        "_messages",
        "_pace",
        "_pieces",
        "_read_spacing_s",
        "_refuse",
        "_transport",
        "_violation",
        "_writable",
        "failure",
        "heard",
        "held",
        "outdone",
    )

    def __init__(self, dial: Dial) -> None:
        super().__init__()
        self.heard = 0
        self.held = True
        self.failure: Exception | None = None
        self.outdone = False
        self._deliver = dial.deliver
        self._refuse = dial.refuse
        self._max_bytes = dial.max_frame_bytes
        self._read_spacing_s = dial.read_spacing_s
        self._pieces = Pieces(dial.refuse, dial.max_frame_bytes)
        self._messages: list[bytes] = []
        """Of the read under way, not delivered yet."""
        self._kept: deque[tuple[int, bytes]] = deque()
        """First bytes and payloads of what came while held: one read's frames at most, since no other follows it."""
        self._apart = True
        """Frames do not go straight to the listener: held, inside a message in pieces, or at an end."""
        self._deaf = False
        """Data frames are ignored: finished, failed or broken."""
        self._violation: Exception | None = None
        self._gave_up = ""
        """Why the connection was ended here although the peer kept to the protocol."""
        self._closed: tuple[int, str] | None = None
        """The peer's close frame."""
        self._goodbye = False
        """Our close frame was sent."""
        self._lost = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._ending: asyncio.TimerHandle | None = None
        """As of the reference's: the peer closes the socket before this, or it is closed here."""
        self._transport: WSTransport
        self._pace: ReadPace

    @property
    def loss(self) -> str:
        """Why it ended, for people."""
        return self._gave_up or loss_of(self._violation, *(self._closed or (None, "")))

    # --- what the library calls ----------------------------------------------------------------------------------

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Stand between the socket and the library."""
        self._transport = transport
        underlying = transport.underlying_transport
        self._pace = ReadPace(underlying, self._read_spacing_s)
        underlying.set_protocol(_Reads(self, cast(asyncio.BufferedProtocol, underlying.get_protocol())))

    def on_ws_frame(self, _transport: WSTransport, frame: WSFrame) -> None:
        """Take a frame; the hot path."""
        if frame.msg_type is TEXT and frame.fin and not (self._apart or frame.rsv1 or frame.rsv2 or frame.rsv3):
            self._messages.append(frame.get_payload_as_bytes())
            return
        bits = frame.fin << 7 | frame.rsv1 << 6 | frame.rsv2 << 5 | frame.rsv3 << 4
        head, payload = bits | frame.msg_type.value, frame.get_payload_as_bytes()
        if self.held:
            self._kept.append((head, payload))
        else:
            self._take(head, payload)

    def on_ws_disconnected(self, _transport: WSTransport) -> None:
        """Let go of timers and of who waits to write."""
        self._lost = True
        self._writable.set()
        self._pace.end()
        if self._ending is not None:
            self._ending.cancel()

    def pause_writing(self) -> None:
        """The peer does not read."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._writable.set()

    def took(self, size_bytes: int) -> None:
        """A read brought so much, and its frames were taken."""
        self.heard += 1
        self._hand_over()
        self.notice()
        if self.held:
            self._pace.stop()
        else:
            self._pace.took(size_bytes)

    def notice(self) -> None:
        """See whether the library has given the connection up: it alone says goodbye by `send_close`."""
        goodbye = self._transport.close_handshake and self._transport.close_handshake.sent
        if not self._transport.is_close_frame_sent or self._goodbye or not goodbye:
            return
        self._goodbye = True
        if goodbye.code == WSCloseCode.MESSAGE_TOO_BIG:
            if not self._deaf:
                self._refuse("too_large", self._max_bytes + 1)
            self._gave_up = f"a message of over {self._max_bytes} bytes came, which the fast transport cannot skip"
            self.outdone = True
        else:
            self._violation = FrameViolationError(goodbye.reason)
        self._end()  # what came before is still delivered; nothing follows

    # --- what the source calls -----------------------------------------------------------------------------------

    def release(self) -> None:
        """Deliver what was kept, then read again, unless the listener says False anew."""
        if not self.held:
            return
        self.held = False
        while self._kept:
            self._take(*self._kept.popleft())
        self._hand_over()
        if not self.held:
            self._apart = self._deaf or self._pieces.inside
            self._pace.go_on()

    def finish(self) -> None:
        """Deliver no more; read on for the closing handshake only."""
        self._deaf = self._apart = True
        self.release()

    def say_now(self, text: str) -> None:
        """Send without waiting; nothing happens where the connection is lost."""
        if not self._goodbye:
            self._transport.send(TEXT, text)

    async def say(self, text: str) -> None:
        """Send, at the pace the upstream reads."""
        self.say_now(text)
        await self._drained()

    async def probe(self) -> None:
        """Send a ping, at the pace the upstream reads."""
        self._transport.send_ping()
        await self._drained()

    async def until_lost(self) -> None:
        """Wait for the end."""
        try:
            await self._transport.wait_disconnected()
        except Exception:  # noqa: BLE001 - what the library found wrong is in `loss`
            return

    async def hang_up(self) -> None:
        """Close politely within `CLOSE_TIMEOUT_S`, else at once."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                self._say_goodbye(OK.to_bytes(2, "big"))
                await self.until_lost()
        except TimeoutError:
            pass
        finally:
            self._transport.disconnect(graceful=False)

    # --- frames --------------------------------------------------------------------------------------------------

    def _take(self, head: int, payload: bytes) -> None:
        """Take what is not a whole text message, or was kept."""
        opcode = head & 0x0F
        try:
            if head & 0x70:
                raise FrameViolationError("reserved bits are set and no extension was agreed on")
            if opcode & 0x8:
                self._control(opcode, payload)
                return
            if self._deaf:
                return
            message = self._pieces.add(opcode, bool(head & 0x80), payload)
            self._apart = self._pieces.inside
            if message is not None:
                self._messages.append(message)
        except FrameViolationError as violation:
            self._violation = violation
            self._deaf = self._apart = True
            self._say_goodbye(WSCloseCode.PROTOCOL_ERROR.value.to_bytes(2, "big"))
            self._end()

    def _hand_over(self) -> None:
        """Deliver what a read brought, as far as it was sound."""
        messages, self._messages = self._messages, []
        try:
            if messages and not self._deliver(messages):
                self.held = self._apart = True
        except Exception as failure:  # noqa: BLE001 - the listener's; the source raises it
            self._fail(failure)

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            # Where the answers to the pings before are still unread, no more are piled up.
            if self._writable.is_set():
                self._transport.send_pong(payload)
        elif opcode == CLOSE and self._closed is None:
            code = int.from_bytes(payload[:2], "big") if payload else NO_CODE
            self._closed = code, payload[2:].decode()
            self._say_goodbye(payload[:2])
            self._deaf = self._apart = True
            self._end_soon()

    def _fail(self, failure: Exception) -> None:
        if self.failure is None:
            self.failure = failure
        self._deaf = self._apart = True
        self._transport.disconnect(graceful=False)

    def _end(self) -> None:
        self._transport.disconnect(graceful=True)
        self._end_soon()

    def _end_soon(self) -> None:
        if self._ending is None and not self._lost:
            loop = asyncio.get_running_loop()
            self._ending = loop.call_later(CLOSE_TIMEOUT_S, self._transport.disconnect, False)

    def _say_goodbye(self, payload: bytes) -> None:
        if not self._goodbye:
            self._goodbye = True
            self._transport.send(WSMsgType.CLOSE, payload)

    async def _drained(self) -> None:
        await self._writable.wait()
        if self._lost:
            raise LostError


def lacks(url: str) -> str | None:
    """Return what a URL needs and this transport lacks."""
    return "it sends no user and password of a URL" if "@" in urlsplit(url).netloc else None


async def connect(dial: Dial) -> PicowsConnection:
    """Connect and shake hands.

    Raises:
        OutdoneError: another transport may do better.
        ConnectionFailedError: that did not work, for the reason it names.
    """
    reached: socket.socket | None = None
    shaken = False

    async def reach(parsed: WSParsedURL) -> socket.socket:
        nonlocal reached
        reached = await _reach(parsed.host, parsed.port)
        return reached

    def listen(_request: WSUpgradeRequest, response: WSUpgradeResponse) -> PicowsConnection:
        _check_offers(dial, response)
        return PicowsConnection(dial)

    headers = dict(dial.headers)
    if not any(name.lower() == "user-agent" for name in headers):
        headers["User-Agent"] = USER_AGENT
    if dial.subprotocols:
        headers["Sec-WebSocket-Protocol"] = ", ".join(dial.subprotocols)
    try:
        async with asyncio.timeout(dial.open_timeout_s):
            _transport, listener = await ws_connect(
                listen,
                dial.url,
                websocket_handshake_timeout=None,  # ours covers names, connecting and TLS too
                logger_name=_SILENT,
                enable_auto_pong=False,
                max_frame_size=dial.max_frame_bytes,
                extra_headers=headers,
                max_redirects=0,
                socket_factory=reach,
                use_aiofastnet=False,  # no faster here than uvloop, which the reference transport runs on
            )
            shaken = listener is not None
    except WSInvalidStatusError as exc:
        status = exc.response.status.value if exc.response is not None else "without a status"
        raise ConnectionFailedError(f"http {status}") from exc
    except WSHandshakeError as exc:
        raise OutdoneError(str(exc)) from exc
    except (OSError, TimeoutError, WSError, EOFError) as exc:
        raise not_reached(exc) from exc
    finally:
        # The library waits on for a handshake that nobody waits for any more; the end of the stream tells it.
        if reached is not None and not shaken:
            _shut(reached)
    if not shaken:
        raise ConnectionFailedError("the upstream hung up during the handshake")
    connection = cast(PicowsConnection, listener)
    connection.notice()
    return connection


def _check_offers(dial: Dial, response: WSUpgradeResponse) -> None:
    """Check that a handshake agreed to nothing that was not offered.

    Raises:
        WSHandshakeError: it did.
    """
    if "Sec-WebSocket-Extensions" in response.headers:
        raise WSHandshakeError("an extension was agreed to that was not offered")
    spoken = response.headers.get("Sec-WebSocket-Protocol")
    if spoken is not None and spoken not in dial.subprotocols:
        raise WSHandshakeError("a subprotocol was agreed to that was not offered")


async def _reach(host: str, port: int) -> socket.socket:
    """Return a socket connected to the first address that answers.

    Raises:
        OSError: none does.
    """
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, kind, protocol, _name, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        reached = socket.socket(family, kind, protocol)
        try:
            reached.setblocking(False)
            await loop.sock_connect(reached, address)
        except OSError as exc:
            reached.close()
            failure = exc
        except BaseException:
            reached.close()
            raise
        else:
            return reached
    raise failure or OSError(f"{host} has no address")


def _shut(reached: socket.socket) -> None:
    try:
        reached.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed already
