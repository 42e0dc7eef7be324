"""The WebSocket to a cluster, made anew when it is lost.

What a lost connection means is decided here alone: close codes 3500-3999 and refusals that are not temporary end it for good, unless
it is the token that does not count any more and there may be another; a drain is waited out; anything else is tried again, at the next gateway, after a jittered delay that grows. The first connection is different:
where it cannot be made the caller is told at once, unless it would rather wait.

What must not live here: subscriptions (`subscription`), who watches (`watches`).
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.connection import broadcast
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Subprotocol

from cluster.client.answer import read_answer
from cluster.client.gateways import Gateways
from cluster.client.token_source import TokenSource
from cluster.core.protocol import SUBPROTOCOL
from cluster.core.retry import Backoff
from cluster.errors import ErrorCode, HarborError, RequestError, UnavailableError

RECONNECT = Backoff(initial_ms=200.0, max_ms=10_000.0, attempts=10_000)
"""Tried for ever: a client has nothing better to do. The first delay is short, since most losses are one gateway's restart."""
CLOSE_S = 1.0
"""For the closing handshake; after it the socket is closed without one."""
FINAL = range(3500, 4000)
"""Close codes after which a client does not come back."""
CLOSED = {
    3500: ErrorCode.UNAUTHORIZED,
    3501: ErrorCode.BAD_MESSAGE,
    3503: ErrorCode.FORBIDDEN,
    3504: ErrorCode.UNAUTHORIZED,
}
"""What the known ones mean; others are `INTERNAL`."""


class ConnectionState(StrEnum):
    """Where a connection stands."""

    CONNECTING = "connecting"
    """The first one is being made."""
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    """It was lost, and is being made again."""
    CLOSED = "closed"
    """There is none and none is being made: nobody watches yet or any more, or it was refused."""


class Connection:
    """See the module. One reader iterates `frames`; while it is `CONNECTED` anybody may `send`."""

    def __init__(
        self,
        gateways: Gateways,
        tokens: TokenSource | None = None,
        *,
        wait: bool = False,
        backoff: Backoff = RECONNECT,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """Build; nothing is connected before `frames`.

        Args:
            gateways: Tried in turn.
            tokens: Gives what is sent as a bearer token. Where it can give another, one that is refused is asked for anew, once.
            wait: Keep trying even if no connection was ever made.
            backoff: Between rounds of attempts.
            jitter: Uniform in 0..1.
        """
        self._gateways = gateways
        self.tokens = tokens or TokenSource(None)
        self._wait = wait
        self._backoff = backoff
        self._jitter = jitter
        self.socket: ClientConnection | None = None
        self.state = ConnectionState.CLOSED

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, or drop it where the connection is going: what is to be said is said again after the next `welcome`."""
        if self.socket is not None:
            broadcast([self.socket], orjson.dumps(message).decode())

    async def frames(self, wanted: Callable[[], bool] = lambda: True) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Yield what the server says, a frame's messages at a time; a `welcome` begins each connection.

        It ends where a connection is lost and none is `wanted` any more. Closing it closes the connection.

        Raises:
            UnavailableError: the first connection cannot be made.
            HarborError: the cluster refuses for good; `details.close_code` where it did so by closing.
        """
        welcomed = False
        failures = 0
        self.state = ConnectionState.CONNECTING
        try:
            while True:
                drain_ms: float | None = None
                try:
                    url, socket = await self._connect()
                    try:
                        async for data in socket:
                            frame = _messages(url, data)
                            if self.socket is None:
                                _expect_welcome(url, frame)
                                self.socket, self.state = socket, ConnectionState.CONNECTED
                                welcomed, failures = True, 0
                            for message in frame:
                                if message["type"] == "drain":
                                    drain_ms = message.get("reconnect_after_ms")
                            yield frame
                    except ConnectionClosed:
                        pass
                    finally:
                        if welcomed:
                            self.state = ConnectionState.RECONNECTING
                        self.socket = None
                        self._gateways.failed(url)
                        await _end(socket)
                    raise _closed(url, socket)
                except HarborError as error:
                    is_ended = error.code is ErrorCode.UNAUTHORIZED and self.tokens.is_renewable and failures == 0
                    if is_ended and welcomed:
                        with suppress(UnavailableError):  # whoever connects asks again
                            await self.tokens.renewed(await self.tokens.current())
                    elif not error.temporary or not (welcomed or self._wait):
                        raise
                if not wanted():
                    return
                failures += 1
                delay_ms = self._backoff.delay_ms(failures, self._jitter()) if drain_ms is None else drain_ms
                await asyncio.sleep(delay_ms / 1000.0)
        finally:
            self.state = ConnectionState.CLOSED

    async def _connect(self) -> tuple[str, ClientConnection]:
        """Try each gateway once; where a token is refused that can be renewed, that gateway twice.

        Raises:
            HarborError: what the last one said, or the first that refuses for good.
        """
        failure: HarborError | None = None
        is_renewed = not self.tokens.is_renewable
        urls = list(self._gateways.all())
        while urls:
            url = urls.pop(0)
            token = await self.tokens.current()
            try:
                return url, await connect(
                    "ws" + url.removeprefix("http") + "/v1/socket",
                    subprotocols=[Subprotocol(SUBPROTOCOL)],
                    additional_headers=await self.tokens.headers(),
                    compression=None,
                    close_timeout=CLOSE_S,
                    max_size=None,
                    proxy=None,
                )
            except (InvalidURI, UnicodeError) as error:
                raise RequestError(ErrorCode.BAD_REQUEST, f"not a URL: {url!r}") from error
            except InvalidStatus as error:
                failure = _refusal(url, error)
            except (OSError, TimeoutError, EOFError, InvalidHandshake, ConnectionClosed) as error:
                failure = UnavailableError(f"no cluster answers at {url}: {_reason(error)}")
            if failure.code is ErrorCode.UNAUTHORIZED and not is_renewed:
                is_renewed = True
                await self.tokens.renewed(token)
                urls.insert(0, url)
                continue
            if not failure.temporary:
                raise failure
            self._gateways.failed(url)
        assert failure is not None
        raise failure


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _refusal(url: str, error: InvalidStatus) -> HarborError:
    status = error.response.status_code
    try:
        read_answer(url, status, bytes(error.response.body or b""))
    except HarborError as refused:
        # A gateway that fails may do better later, whatever it says.
        return UnavailableError(refused.message) if status >= 500 else refused
    return UnavailableError(f"{url} is no Harbor Cluster: HTTP {status}")


def _messages(url: str, data: str | bytes) -> list[dict[str, Any]]:
    """Read a frame.

    Raises:
        UnavailableError: it is none of `harbor.v1`.
    """
    try:
        frame = orjson.loads(data)
    except orjson.JSONDecodeError:
        frame = None
    if isinstance(frame, list) and all(isinstance(each, dict) and isinstance(each.get("type"), str) for each in frame):
        return frame
    raise UnavailableError(f"{url} does not speak {SUBPROTOCOL}")


def _expect_welcome(url: str, frame: list[dict[str, Any]]) -> None:
    if not frame or frame[0]["type"] != "welcome":
        raise UnavailableError(f"{url} does not speak {SUBPROTOCOL}")


async def _end(socket: ClientConnection) -> None:
    """Close politely within `CLOSE_S`, else at once."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await socket.close()
    except (TimeoutError, OSError):
        pass
    finally:
        socket.transport.abort()


def _closed(url: str, socket: ClientConnection) -> HarborError:
    code = socket.close_code or 1006
    said = f"{code} {socket.close_reason or ''}".rstrip()
    if code not in FINAL:
        return UnavailableError(f"{url} closed the connection: {said}")
    error_code = CLOSED.get(code, ErrorCode.INTERNAL)
    return HarborError(error_code, f"{url} closed the connection: {said}", details={"close_code": code})
