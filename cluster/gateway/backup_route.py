"""`POST /v1/backup`: all shards are copied, and the copies streamed to who asks (`wire.backup`).

Before the first byte a failure is an error like any other. After it the stream says `failed`, or ends without `end`.

What must not live here: how a shard is copied (`storage.store_copy`), where the stream is kept (`cli`).
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from cluster import __version__
from cluster.core.gateway_state import GatewayState
from cluster.core.grants import Principal
from cluster.core.query_key import CanonicalKey
from cluster.core.transaction import SCHEMA
from cluster.errors import ErrorCode, HarborError, UnavailableError
from cluster.gateway import parameters
from cluster.wire.backup import (
    CONTENT_TYPE,
    FORMAT,
    Done,
    End,
    Failed,
    Part,
    Piece,
    Refused,
    Start,
    Step,
    StepAnswer,
    StreamFrame,
    encode_frame,
)

BACKUP = "/v1/backup"
Copy = Callable[[int, Step, str, int], Awaitable[StepAnswer]]
"""(shard, step, backup, number of the piece) -> answer. Raises `UnavailableError`."""


class BackupRoute:
    """See the module. At most one piece of one shard is held at a time."""

    def __init__(
        self,
        state: GatewayState,
        copy: Copy,
        describe: Callable[[], Awaitable[dict[str, Any]]],
        who: Callable[[web.BaseRequest], Principal],
        dress: Callable[[web.BaseRequest, web.StreamResponse], None],
    ) -> None:
        """`dress` adds the headers that every answer has."""
        self._state = state
        self._copy = copy
        self._describe = describe
        self._who = who
        self._dress = dress

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request.

        Raises:
            HarborError: who asks may not, or a shard is not there or cannot begin; nothing was sent yet.
        """
        parameters.only(request)
        self._who(request).require_admin()
        self._who(request).require(
            "read", CanonicalKey("[]")
        )  # whoever may see the cluster need not read what is in it
        described = await self._describe()
        slots = self._state.slots
        shards = sorted({row["id"] for row in described["shards"] if row.get("role", "primary") == "primary"})
        if missing := sorted(set(slots.owners).difference(shards)):
            raise UnavailableError(
                f"not all shards are there: waiting for {', '.join(f'shard-{shard}' for shard in missing)}"
            )
        backup = secrets.token_hex(8)
        try:
            for step in ("begin", "take", "settle"):
                await self._all(shards, step, backup, slots.epoch)
            start = Start(FORMAT, __version__, SCHEMA, described["name"], shards, slots.epoch, list(slots.owners))
            return await self._streamed(request, start, backup)
        finally:
            await asyncio.gather(*(self._copy(shard, "drop", backup, 0) for shard in shards), return_exceptions=True)

    async def _all(self, shards: list[int], step: Step, backup: str, slots_epoch: int) -> None:
        """Make a step at every shard.

        Raises:
            HarborError: one has refused it, does not answer, or has its entries by another slot map.
        """
        answers = await asyncio.gather(*(self._copy(shard, step, backup, 0) for shard in shards))
        for answer in answers:
            if isinstance(answer, Refused):
                raise HarborError(ErrorCode(answer.code), answer.message)
            if isinstance(answer, Done) and answer.slots_epoch != slots_epoch:
                raise UnavailableError("slots move: begin the backup anew")

    async def _streamed(self, request: web.BaseRequest, start: Start, backup: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
        self._dress(request, response)
        await response.prepare(request)
        await response.write(encode_frame(start))
        last: StreamFrame
        try:
            await self._pieces(response, start.shards, backup)
            last = End()
        except HarborError as error:
            last = Failed(error.code, error.message)
        await response.write(encode_frame(last))
        return response

    async def _pieces(self, response: web.StreamResponse, shards: list[int], backup: str) -> None:
        """Write the copies, in turns, so that none is forgotten for want of being asked for."""
        left = dict.fromkeys(shards, 0)
        while left:
            for shard, number in list(left.items()):
                answer = await self._copy(shard, "piece", backup, number)
                if not isinstance(answer, Piece):
                    assert isinstance(answer, Refused)
                    raise HarborError(ErrorCode(answer.code), answer.message)
                await response.write(encode_frame(Part(shard, answer.frames)))
                left[shard] += 1
                if answer.whole is not None:
                    await response.write(encode_frame(answer.whole))
                    del left[shard]
