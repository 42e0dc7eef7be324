"""Lives of actors, which have to be told apart by rising numbers (incarnations) that their clocks alone do not give.

A life that began lower than the last one would be taken for that: its messages are refused as late, until it has started every link over
often enough. A clock that was set back, or a node whose clock is behind, would do that. So Ray keeps with which number each actor began last.

What must not live here: what incarnations are for (`core.link`).
"""

import asyncio

from ray.exceptions import RayError
from ray.experimental import internal_kv

from cluster.core.link import next_life
from cluster.observability.logs import Log


async def begin(cluster: str, actor: str, now_ms: float, log: Log) -> int:
    """Return the incarnation of a life that begins, and have it kept.

    Where Ray's head does not answer it is the clock's; Ray starts no actor without its head, so that is for moments.
    """
    try:
        return await asyncio.to_thread(_begin, f"harbor/{cluster}/lives/{actor}".encode(), now_ms)
    except (RayError, RuntimeError, OSError) as error:
        log.error("life_not_kept", reason=repr(error))  # noqa: TRY400 - the reason is enough
        return int(now_ms)


def _begin(key: bytes, now_ms: float) -> int:
    last = internal_kv._internal_kv_get(key)
    life = next_life(now_ms, None if last is None else int(last))
    internal_kv._internal_kv_put(key, str(life).encode())
    return life
