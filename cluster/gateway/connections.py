"""The connections of a gateway, below its requests: how many there are, how long each may take, and what they hold together.

aiohttp bounds a request's line and headers and the queues of one connection. What it leaves open is here:

- the number of connections, of all and of one address;
- the time for headers and for what was begun of a frame. A peer that sends a byte now and then (Slowloris) would keep its place for ever;
- what all hold together. Each may hold a frame of a mebibyte that is never finished, or an answer of a few that it never reads; ten
  thousand of them must not end the process. Beyond `buffers` the connection that holds the most goes, until the rest fits.

A refusal is an answer where a request is still to come, else the end of the connection. It relies on the inside of aiohttp's
`RequestHandler` (the queue of parsed heads, the waiter for the next, its timer between requests), whose version is pinned; `tests/attack` notices if that changes.

What must not live here: what a request means (`server`), whose address counts behind a proxy (`core.addresses`).
"""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, cast

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from cluster.core.addresses import Addresses, site
from cluster.core.client_frames import ClientFrames
from cluster.core.limits import Limits, refuse
from cluster.errors import ErrorCode, HarborError, LimitError, RequestError
from cluster.gateway.browsers import Browsers
from cluster.gateway.error_response import error_response, last_words

LOOK_S = 0.5
"""Between looks at what takes long; deadlines are that much later than they say."""
LINGER_S = 2.0
"""After an answer the rest of a refused body is still read for so long, so that the peer reads the answer rather than a reset."""
UNACKNOWLEDGED_MS = 90_000
"""A peer that acknowledges nothing, or takes nothing, for so long is gone; the system's own patience is a quarter of an hour."""


class Connection(RequestHandler):
    """One connection. `held`: bytes received that have not become a message; `unsent`: of answers that the peer has not taken."""

    __slots__ = ("_frames", "client", "held", "is_held_up", "on_fault", "on_late", "peer", "since", "unsent")

    _manager: "Connections | None"

    def __init__(self, manager: "Connections", **more: Any) -> None:
        super().__init__(manager, **more)
        self.peer = ""
        """The address it comes from."""
        self.client = ""
        """What its address counts as; "": it does not."""
        self.held = 0
        self.unsent = 0
        self.since = 0.0
        """When what it is to finish began; 0: nothing is."""
        self.is_held_up = False
        """It is not read at the moment, which is none of its doing."""
        self.on_late: Callable[[LimitError], None] | None = None
        """What is called where a socket is late with a frame."""
        self.on_fault: Callable[[str], None] | None = None
        """What is called where a socket's frames are not as they have to be; nothing more of it is read."""
        self._frames: ClientFrames | None = None

    @property
    def limits(self) -> Limits:
        """Return what it may take."""
        assert self._manager is not None
        return self._manager.limits

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        super().connection_made(transport)
        self.since = self._loop.time()
        assert self._manager is not None
        self._manager.arrived(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is gone."""
        if self._manager is not None:
            self._manager.left(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Something came."""
        if self._payload_parser is not None and self._is_faulty(data):
            return
        before = self._request_count
        super().data_received(data)
        if self._manager is None or not data:
            return
        if self._request_count == before or self._payload_parser is not None:
            if not self.since:
                self.since = self._loop.time()
            self._manager.hold(self, len(data))
            if self._waits and self.held > self._manager.head_bytes:
                self.end(_headers_too_large(self.limits.headers_bytes))
            return
        if len(data) + self.held > self._manager.limits.headers_bytes:
            self._weigh(self._request_count - before)
        self.finished()
        if self._messages and not self._messages[-1][1].is_eof():  # the rest of it is of a body
            self._manager.hold(self, len(data))

    def set_parser(self, parser: Any, data_received_cb: Callable[[], None] | None = None) -> None:
        """It is a socket from now on."""
        self._frames = ClientFrames()
        if self._is_faulty(self._message_tail):  # what came right behind the handshake
            self._message_tail = b""
        super().set_parser(parser, data_received_cb)

    def _is_faulty(self, data: bytes) -> bool:
        if self._frames is not None:
            reason = self._frames.fault(data)
            if not reason:
                return False
            self._frames = None
            if self.on_fault is not None:
                self.on_fault(reason)
        return True

    def _weigh(self, count: int) -> None:
        """Refuse those of the last heads whose headers are too large together."""
        most = self.limits.headers_bytes
        for place in range(-min(count, len(self._messages)), 0):
            head = self._messages[place][0]
            if not isinstance(head, _ErrInfo) and sum(len(n) + len(v) for n, v in head.raw_headers) > most:
                self._messages[place] = (_ErrInfo(431, _headers_too_large(most), ""), EMPTY_PAYLOAD)

    @property
    def _waits(self) -> bool:
        """Whether it waits for a request."""
        return self._waiter is not None and not self._waiter.done()

    def finished(self) -> None:
        """All that was held has become a message."""
        self.since = 0.0
        if self.held and self._manager is not None:
            self._manager.hold(self, -self.held)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Answer, and be done with the request's body."""
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            self.finished()

    def pause_writing(self) -> None:
        """The peer takes less than it is sent."""
        super().pause_writing()
        if self._manager is not None and self.transport is not None:
            self._manager.keep(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """It has taken nearly all."""
        super().resume_writing()
        if self._manager is not None:
            self._manager.keep(self, 0)

    def hold_up(self) -> None:
        """It is not read until `go_on`."""
        self.is_held_up = True

    def go_on(self) -> None:
        """It is read again; what has begun to come meanwhile has its time from now on."""
        self.is_held_up = False
        if self.since:
            self.since = self._loop.time()

    def _process_keepalive(self) -> None:
        """Close it if it has been idle for too long."""
        was_over = self._force_close
        super()._process_keepalive()
        if self._force_close and not was_over and self._manager is not None:
            self._manager.limited["idle"] += 1

    def late(self, now_s: float) -> None:
        """Look whether it takes too long."""
        if not self.since or self.is_held_up or self._manager is None:  # the last: it is gone, but its request is not
            return
        limits = self.limits
        if self._payload_parser is not None:
            if self.held and self.on_late is not None and now_s - self.since > limits.body_within_ms / 1000:
                self.on_late(_late("body_within", limits.body_within_ms, "a frame"))
        elif self._waits and now_s - self.since > limits.head_within_ms / 1000:
            self.end(_late("head_within", limits.head_within_ms, "a request's headers"))

    def end(self, error: LimitError) -> None:
        """Say why, and close. It waits for a request; what is being answered is not cut into."""
        if self._manager is not None:
            self._manager.limited[error.limit] += 1
        if self.transport is not None and not self.transport.is_closing():
            head = b"" if self._manager is None else self._manager.browsers().head
            self.transport.write(last_words(error, head))
            self.transport.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no request that could be read. That is the peer's doing, so it is nothing to log.

        Raises:
            ConnectionError: an answer has begun already, as aiohttp has it.
        """
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        error = self._fault(exc, message)
        if self._manager is not None and isinstance(error, LimitError):
            self._manager.limited[error.limit] += 1
        response = error_response(error)
        if self._manager is not None:
            self._manager.browsers().guard(response)
        response.force_close()
        return response

    def _fault(self, exc: BaseException | None, message: str | None) -> HarborError:
        """Return what is wrong with what could not be read."""
        if isinstance(exc, HarborError):
            return exc
        if isinstance(exc, LineTooLong):
            if exc.args[1] == self.max_line_size:
                limit, most, what = "request_line", self.max_line_size, "a request line"
            else:
                limit, most, what = "header", self.limits.header_bytes, "a header"
            return LimitError(ErrorCode.TOO_LARGE, limit, most, f"{what} has at most {most} bytes")
        said = " ".join((message or str(exc)).split())
        if said.startswith("Too many headers"):
            most = self.limits.header_count
            return LimitError(ErrorCode.TOO_MANY, "header_count", most, f"a request has at most {most} headers")
        # It quotes what was sent, which need not be text.
        return RequestError(
            ErrorCode.BAD_REQUEST, f"not HTTP: {said[:160].encode('ascii', 'backslashreplace').decode()}"
        )


class Connections(web.Server):
    """All of them. `limited` counts what was refused, by limit; `browsers` knows the headers of answers, as they are now."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        limits: Limits,
        limited: Counter[str],
        addresses: Addresses,
        browsers: Callable[[], Browsers],
    ) -> None:
        super().__init__(
            handler,
            access_log=None,
            handler_cancellation=True,  # the only way to learn that an idle event stream's client is gone
            lingering_time=LINGER_S,
        )
        self.limited = limited
        self.browsers = browsers
        self.bound(limits, addresses)
        self.held = 0
        """Of all."""
        self._by_client: Counter[str] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    def bound(self, limits: Limits, addresses: Addresses) -> None:
        """Take limits, and who is a trusted proxy. A connection that is there keeps how it reads heads, and may idle."""
        self.limits = limits
        self.addresses = addresses
        self.head_bytes = limits.request_line_bytes + limits.headers_bytes + 4 * limits.header_count + 1024
        """A head that is not finished by then is too large: line, headers, and what stands between those."""
        self._kwargs |= {
            "keepalive_timeout": limits.idle_ms / 1000,
            "max_line_size": limits.request_line_bytes,
            # Which of the two was too long shows only by the number in aiohttp's exception.
            "max_field_size": limits.header_bytes + (limits.header_bytes == limits.request_line_bytes),
            "max_headers": limits.header_count,
        }

    def __call__(self) -> RequestHandler:
        """Make one."""
        return Connection(self, loop=self._loop, **self._kwargs)

    def _make_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        most = self.limits.body_bytes
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=most)

    def arrived(self, connection: Connection) -> None:
        """Let a connection in, or say why not and close it."""
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._look)
        transport = connection.transport
        assert transport is not None
        peer = transport.get_extra_info("peername")
        address = connection.peer = str(peer[0]) if isinstance(peer, tuple) else ""
        try:
            if len(self._connections) > (most := self.limits.connections):
                refuse(ErrorCode.UNAVAILABLE, "connections", most, f"this gateway has its {most} connections")
            if address and not self.addresses.is_trusted(address):
                client = site(address)
                if self._by_client[client] >= (most := self.limits.connections_per_address):
                    message = f"an address has at most {most} connections here"
                    refuse(ErrorCode.TOO_MANY, "connections_per_address", most, message)
                self._by_client[client] += 1
                connection.client = client
        except LimitError as error:
            connection.end(error)
            return
        raw = transport.get_extra_info("socket")
        if raw is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            with suppress(OSError):  # a peer may be gone already
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)

    def left(self, connection: Connection) -> None:
        """Forget a connection."""
        self.held -= connection.held + connection.unsent
        connection.held = connection.unsent = 0
        if connection.client:
            self._by_client[connection.client] -= 1
            if not self._by_client[connection.client]:
                del self._by_client[connection.client]
            connection.client = ""

    def hold(self, connection: Connection, more: int) -> None:
        """A connection holds more, or less, of what is not finished."""
        connection.held += more
        self.held += more
        self._make_room()

    def keep(self, connection: Connection, unsent: int) -> None:
        """A connection keeps that much of what its peer has not taken."""
        self.held += unsent - connection.unsent
        connection.unsent = unsent
        self._make_room()

    def _make_room(self) -> None:
        while self.held > self.limits.buffers_bytes:
            connections = cast("list[Connection]", list(self._connections))
            largest = max(connections, key=lambda each: each.held + each.unsent)
            self.limited["buffers"] += 1
            transport = largest.transport
            self.left(largest)
            if transport is not None:
                transport.abort()

    def _look(self) -> None:
        self._timer = self._loop.call_later(LOOK_S, self._look) if self._connections else None
        now_s = self._loop.time()
        for connection in cast("list[Connection]", list(self._connections)):
            connection.late(now_s)

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """Close all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await super().shutdown(timeout)


def _headers_too_large(most: int) -> LimitError:
    return LimitError(ErrorCode.TOO_LARGE, "headers", most, f"a request has at most {most} bytes of headers")


def _late(limit: str, within_ms: float, what: str) -> LimitError:
    return LimitError(ErrorCode.TIMEOUT, limit, within_ms, f"{what} did not come within {within_ms / 1000:g} s")
