"""Following a key or a prefix message by message, as the command line does.

What is yielded keeps the delivery contract: after a reconnect the subscription continues from its last position; if a change does not
start from the version last seen, the subscription begins anew, with a `reset`. Nothing is folded here: who is slow makes the server fold.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import count
from typing import Any

from cluster.client.answer import error_of
from cluster.client.connection import Connection
from cluster.client.gateways import Gateways
from cluster.client.subscription import Course, Fit
from cluster.client.token_source import TokenSource


async def watch(
    url: str, key: list[Any], *, prefix: bool = False, mode: str = "data", token: str | None = None
) -> AsyncGenerator[dict[str, Any], None]:
    """Yield the messages of one subscription (`snapshot`, `snapshot_end`, `change`, ...), and notices.

    Raises:
        HarborError: the cluster refuses, or the first connection cannot be made (`UNAVAILABLE`).
    """
    connection = Connection(Gateways(url), TokenSource(token))
    course = Course(key, prefix=prefix, mode=mode)
    names = count(1)
    name = 0
    async with aclosing(connection.frames()) as frames:
        async for frame in frames:
            for message in frame:
                fit = Fit.DROP
                is_refused = message["type"] == "error"
                if is_refused and not (message.get("re") == name and course.refused(message["code"])):
                    raise error_of(message)
                if message.get("sub") == name:
                    fit = course.receive(message)
                if fit is Fit.MISFIT:
                    connection.send({"type": "unsubscribe", "id": name})
                if is_refused or fit is Fit.MISFIT or message["type"] == "welcome":
                    if course.lost:
                        yield {"type": "reset"}
                    name = next(names)
                    connection.send(course.request(name))
                elif fit is Fit.TAKE or message["type"] == "notice":
                    yield message
