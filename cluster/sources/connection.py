"""What a WebSocket source needs of a connection, whichever library holds it.

A connection begins held: what comes is kept until the first `release`. It hands over whole messages, text and binary alike, in order, all
those of a read at once, from inside that read. No extension is offered, so a frame with reserved bits (a compressed one) ends it, as anything does that
breaks the protocol. It reads nothing while held, answers pings (not those of a peer that leaves the answers unread), and buffers about
one message of the greatest length at most.

What must not live here: libraries (`websockets_connection`, `picows_connection`), the choice between them (`transport`), joining and
heartbeats (`websocket`).
"""

import ssl
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from cluster import __version__
from cluster.sources.source import ConnectionFailedError

CLOSE_TIMEOUT_S = 1.0
"""For the closing handshake; after it the socket is closed without one."""
USER_AGENT = f"harbor-cluster/{__version__}"
OK, NO_CODE, ABNORMAL = 1000, 1005, 1006
"""Close codes (RFC 6455, 7.4.1); the last two are never sent."""


class Dial(NamedTuple):
    """What to connect to, and who takes what comes."""

    url: str
    headers: Mapping[str, str]
    subprotocols: tuple[str, ...]
    deliver: Callable[[list[bytes]], bool]
    """Takes messages; False holds the connection. What it raises ends the connection and becomes its `failure`."""
    refuse: Callable[[str, int], None]
    """Is told (`too_large`, bytes) of a message that was not delivered."""
    max_frame_bytes: int
    read_spacing_s: float
    open_timeout_s: float


class LostError(Exception):
    """The connection is gone; `Connection.loss` says why."""


class OutdoneError(ConnectionFailedError):
    """This transport cannot connect to an upstream that others may be able to connect to."""


class Connection(Protocol):
    """One WebSocket connection, shaken hands on."""

    failure: Exception | None
    """What `Dial.deliver` raised."""
    outdone: bool
    """It ended for a reason that another transport would have coped with."""

    @property
    def heard(self) -> int:
        """Reads so far."""

    @property
    def held(self) -> bool:
        """Nothing is delivered and nothing read."""

    @property
    def loss(self) -> str:
        """Why it ended, for people."""

    def release(self) -> None:
        """Deliver what was kept, then read again, unless the listener says False anew."""

    def finish(self) -> None:
        """Deliver no more; read on for the closing handshake only."""

    def say_now(self, text: str) -> None:
        """Send without waiting; nothing happens where the connection is lost."""

    async def say(self, text: str) -> None:
        """Send, at the pace the upstream reads.

        Raises:
            LostError: it is lost.
        """

    async def probe(self) -> None:
        """Send a ping, at the pace the upstream reads; the answer shows in `heard`.

        Raises:
            LostError: it is lost.
        """

    async def until_lost(self) -> None:
        """Wait for the end. Cancelling is safe."""

    async def hang_up(self) -> None:
        """Close politely within `CLOSE_TIMEOUT_S`, else at once; when this returns the socket is closed or about to be."""


def loss_of(violation: Exception | None, code: int | None, reason: str | None) -> str:
    """Return why a connection ended: what the peer did wrong, else its close frame, else nothing that is known."""
    if violation is not None:
        return f"protocol error: {violation}"
    if code in (None, ABNORMAL):
        return "connection lost"
    return f"closed by the upstream: {code} {reason or ''}".rstrip()


def not_reached(exc: BaseException) -> ConnectionFailedError:
    """Return the reason why there is no connection, named alike for all transports."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return ConnectionFailedError(f"tls: {exc.verify_message}")
    if isinstance(exc, ssl.SSLError):
        return ConnectionFailedError(f"tls: {exc.reason or exc}")
    if isinstance(exc, TimeoutError):
        return ConnectionFailedError("no answer in time")
    return ConnectionFailedError(str(exc) or type(exc).__name__)
