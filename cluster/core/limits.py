"""What one gateway lets clients take, and how it counts their sessions.

Every limit is a gateway's own: a count over all gateways would cost calls for each session, and a client is spread over them by a
balancer anyway. With n gateways a client may have n times as much.

What must not live here: sockets and requests (`cluster.gateway`), rates (`rate`), how the values are read (`cluster.config.limits`).
"""

from collections import Counter
from typing import NoReturn

from msgspec import Struct

from cluster.errors import ErrorCode, LimitError

KIB = 1024
MIB = 1024 * KIB
FRAME_MESSAGES = 1_024
"""In one frame of a client. Each is answered, so a frame full of the shortest messages would cost many times its size in answers."""


class Limits(Struct, frozen=True):
    """`gateway.limits`. Names are those of the configuration and of the label of `limited_total`, with the unit after them."""

    frame_bytes: int = MIB
    """A client's WebSocket message. One up to twice as long is read and refused; at more the connection ends unread (1009)."""
    body_bytes: int = MIB
    """Of a request, after decompression."""
    request_line_bytes: int = 8 * KIB
    header_bytes: int = 8 * KIB
    """One header, name and value."""
    headers_bytes: int = 32 * KIB
    """All headers of a request."""
    header_count: int = 100
    subscriptions: int = 128
    """Of a session, and keys and prefixes of an event stream."""
    connections: int = 16_384
    """At once. Fewer where the process may not open so many files."""
    connections_per_address: int = 8_192
    """Half of all, so that nobody has all. An IPv6 address counts as its /64. Trusted proxies may have any number."""
    sessions_per_address: int = 8_192
    """Sockets and event streams, by the address that trusted proxies tell."""
    sessions_per_subject: int = 8_192
    """Of one API key or token's subject; nobody is counted where no credentials are asked for."""
    streams: int = 8_192
    """Event streams."""
    commands: float = 1_000.0
    """Messages a second of a session. About a tenth of what a gateway can carry out."""
    commands_burst: float = 2_000.0
    """Messages of a session at once, after it was quiet."""
    requests: float | None = None
    """HTTP requests a second of a subject or, without one, of an address; None: any number. A server that reads for its own users has one
    address, and so has everybody behind a proxy that is not trusted: a default would meet them first."""
    requests_burst: float = 1_000.0
    presence_updates: float = 20.0
    """Joins, states and watches a second of a session. Cursors look smooth at that rate; heartbeats are free."""
    buffers_bytes: int = 256 * MIB
    """Unfinished requests and frames, and answers not taken, of all clients together."""
    hello_within_ms: float = 10_000.0
    """A socket that has not said by then whose it is is closed."""
    head_within_ms: float = 10_000.0
    """From a connection, or a request's first byte, to the end of its headers."""
    body_within_ms: float = 30_000.0
    """From the first byte of a body or a frame to its last."""
    idle_ms: float = 75_000.0
    """Between two requests. Proxies close idle connections after 60 s; who closes second never meets a closed one."""


def refuse(code: ErrorCode, limit: str, value: float, message: str) -> NoReturn:
    """Raise what a client is told that is beyond a limit.

    Raises:
        LimitError: always.
    """
    raise LimitError(code, limit, value, message)


class SessionCounts:
    """Sessions by address and by subject, and event streams."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._addresses: Counter[str] = Counter()
        self._subjects: Counter[str] = Counter()
        self._streams = 0

    def open(self, address: str, *, server_sent: bool) -> None:
        """A session begins; with "" for an address that is not known it is not counted by it.

        Raises:
            LimitError: `TOO_MANY`; nothing was counted.
        """
        limits = self.limits
        if server_sent and self._streams >= limits.streams:
            refuse(ErrorCode.TOO_MANY, "streams", limits.streams, f"this gateway has {limits.streams} event streams")
        if address and self._addresses[address] >= (most := limits.sessions_per_address):
            refuse(ErrorCode.TOO_MANY, "sessions_per_address", most, f"an address has at most {most} sessions here")
        self._streams += server_sent
        if address:
            self._addresses[address] += 1

    def close(self, address: str, subject: str | None, *, server_sent: bool) -> None:
        """A session ends; `subject` as last identified."""
        self._streams -= server_sent
        if address:
            _one_less(self._addresses, address)
        if subject is not None:
            _one_less(self._subjects, subject)

    def identify(self, before: str | None, subject: str | None) -> None:
        """A session is that subject's from now on; None: nobody's that is counted.

        Raises:
            LimitError: `TOO_MANY`; nothing was counted.
        """
        if subject == before:
            return
        if subject is not None:
            if self._subjects[subject] >= (most := self.limits.sessions_per_subject):
                refuse(ErrorCode.TOO_MANY, "sessions_per_subject", most, f"a subject has at most {most} sessions here")
            self._subjects[subject] += 1
        if before is not None:
            _one_less(self._subjects, before)


def _one_less(counts: Counter[str], name: str) -> None:
    counts[name] -= 1
    if not counts[name]:
        del counts[name]
