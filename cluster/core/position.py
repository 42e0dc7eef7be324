"""Positions: how far a client has come, as a token it hands back when it returns.

A position is (epoch, offset) in one shard's change log; a token holds one for each shard a subscription concerns. Tokens are opaque
to clients; what is in them may change with the protocol's version.
"""

import re
from collections.abc import Iterable

from cluster.errors import ErrorCode, RequestError

MAX_TOKEN_BYTES = 2048
_TOKEN = re.compile(r"p1(?:\.[0-9a-f]{1,8}-[0-9a-f]{1,15}-[0-9a-f]{1,15})+")
Position = tuple[int, int]
"""(epoch, offset)."""
MAP = 0xFFFF
"""In place of a shard: its "epoch" is that of the slot map by which the shards were chosen. Where it is missing that is 1."""


def encode_token(positions: Iterable[tuple[int, Position]]) -> str:
    """Write positions, by shard, as a token."""
    return "p1." + ".".join(f"{shard:x}-{epoch:x}-{offset:x}" for shard, (epoch, offset) in positions)


def decode_token(token: str) -> dict[int, Position]:
    """Read a token.

    Raises:
        RequestError: `BAD_REQUEST`, it is none of ours.
    """
    if len(token) > MAX_TOKEN_BYTES or not _TOKEN.fullmatch(token):
        raise RequestError(ErrorCode.BAD_REQUEST, f"not a position token: {token[:40]!r}")
    positions = {}
    for part in token.split(".")[1:]:
        shard, epoch, offset = (int(number, 16) for number in part.split("-"))
        positions[shard] = (epoch, offset)
    return positions
