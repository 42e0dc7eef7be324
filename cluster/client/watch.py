"""Following a key or a prefix over WebSocket, across reconnects.

What is yielded keeps the delivery contract: after a reconnect the subscription continues from its last position; if a change does not
start from the version last seen, the subscription begins anew, with a `reset`.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.typing import Subprotocol

from cluster.core.protocol import SUBPROTOCOL
from cluster.core.retry import Backoff
from cluster.errors import ErrorCode, HarborError, UnavailableError

SUBSCRIPTION = "watch"


def _socket_url(url: str) -> str:
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        raise HarborError(ErrorCode.BAD_REQUEST, f"not an http:// or https:// URL: {url!r}")
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + "/v1/socket", "", ""))


async def watch(
    url: str, key: list[Any], *, prefix: bool = False, mode: str = "data", token: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    """Yield the messages of one subscription (`snapshot`, `snapshot_end`, `change`, ...).

    Raises:
        HarborError: the cluster refuses, or the first connection cannot be made (`UNAVAILABLE`).
    """
    target = _socket_url(url)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    backoff = Backoff(initial_ms=200.0, max_ms=10_000.0, attempts=10_000)
    since: str | None = None
    versions: dict[bytes, int] = {}
    failures = 0
    connected = False
    while True:
        try:
            async with connect(
                target,
                subprotocols=[Subprotocol(SUBPROTOCOL)],
                additional_headers=headers,
                max_size=None,
                proxy=None,
            ) as socket:
                subscribe = {"type": "subscribe", "id": SUBSCRIPTION, "prefix" if prefix else "key": key, "mode": mode}
                await socket.send(orjson.dumps({**subscribe, **({"since": since} if since else {})}).decode())
                connected = True
                failures = 0
                async for frame in socket:
                    for message in orjson.loads(frame):
                        if message["type"] == "error":
                            raise HarborError(ErrorCode(message["code"]), message["message"])
                        if message.get("sub") != SUBSCRIPTION:
                            continue
                        since = message.get("token") or message.get("position") or since
                        if not _follows(message, versions):
                            since = None
                            versions.clear()
                            yield {"type": "reset"}
                            raise ConnectionResetError
                        yield message
        except (ConnectionClosed, ConnectionError, OSError, InvalidHandshake, TimeoutError) as error:
            if not connected:
                raise UnavailableError(f"no cluster answers at {url}: {error or type(error).__name__}") from error
            code = getattr(getattr(error, "rcvd", None), "code", 0)
            if 3500 <= code < 4000:
                raise UnavailableError(f"the cluster closed the connection: {code}") from error
        except InvalidURI as error:
            raise HarborError(ErrorCode.BAD_REQUEST, f"not a URL: {url!r}") from error
        failures += 1
        await asyncio.sleep(backoff.delay_ms(failures, random.random()) / 1000.0)


def _follows(message: dict[str, Any], versions: dict[bytes, int]) -> bool:
    """Note a message's version; False where it does not start from the one last seen."""
    key = orjson.dumps(message.get("key"))
    match message["type"]:
        case "snapshot":
            versions[key] = message["version"]
        case "change":
            if versions.get(key, 0) != message["from"]:
                return False
            versions[key] = message["version"]
        case "removed":
            versions.pop(key, None)
        case "reset":
            if "key" in message:
                versions.pop(key, None)
            else:
                versions.clear()
    return True
