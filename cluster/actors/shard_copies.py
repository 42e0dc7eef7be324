"""The copies that a shard makes of its store for backups: one at a time, and none for longer than somebody asks for it."""

import asyncio
from collections.abc import Callable

from cluster.actors.handles import COPY_TIMEOUT_S
from cluster.errors import ErrorCode, StoreError
from cluster.observability.logs import Log
from cluster.storage import LmdbStore, StoreCopy
from cluster.wire.backup import Done, Refused, Step, StepAnswer

IDLE_S = COPY_TIMEOUT_S + 60.0
"""A copy that nobody asks for any more so long goes: its gateway has died. Until then no other is begun. Of all shards the slowest may take `COPY_TIMEOUT_S`."""


class ShardCopies:
    """See the module. Steps are those of `wire.backup`; a step that comes twice does the same."""

    def __init__(self, shard: int, log: Log, now: Callable[[], float], is_behind: Callable[[], bool]) -> None:
        """`is_behind`: whether the store lacks something that was committed, since it could not be written."""
        self._is_behind = is_behind
        self._shard = shard
        self._log = log
        self._now = now
        self._copy: StoreCopy | None = None
        self._taking = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None

    async def step(self, store: LmdbStore | None, step: Step, backup: str, number: int) -> StepAnswer:
        """Make a step of a backup."""
        if store is None:
            return Refused(ErrorCode.UNSUPPORTED, f"shard-{self._shard} keeps nothing on a disk (storage.path)")
        if step in ("begin", "take", "settle") and self._is_behind():
            return Refused(
                ErrorCode.UNAVAILABLE,
                f"shard-{self._shard}: its store lacks what could not be written, and what was acknowledged may be among that: see store_failed in its log",
            )
        try:
            return await self._step(store, step, backup, number)
        except StoreError as error:
            self._log.error("backup_failed", reason=error.message)
            await self._drop()
            return Refused(ErrorCode.UNAVAILABLE, f"shard-{self._shard}: {error.message}")

    async def _step(self, store: LmdbStore, step: Step, backup: str, number: int) -> StepAnswer:
        if step == "begin":
            async with self._taking:
                if self._copy is None:
                    store.make_room()
                    self._copy = await asyncio.to_thread(StoreCopy, store, backup, self._shard)
            if self._copy.backup != backup:
                return Refused(ErrorCode.CONFLICT, f"shard-{self._shard} is being copied for another backup")
            self._touch()
            return Done()
        held = self._copy
        if held is None or held.backup != backup:
            if step == "drop":
                return Done()
            return Refused(ErrorCode.UNAVAILABLE, f"shard-{self._shard} has begun anew since the backup began")
        self._touch()
        match step:
            case "take":
                async with self._taking:
                    store.make_room()
                    await asyncio.to_thread(held.take, self._now())
                    self._log.info("store_copied", backup=backup)
            case "settle":
                async with self._taking:
                    store.make_room()
                    await asyncio.to_thread(held.settle)
            case "piece":
                async with self._taking:
                    return await asyncio.to_thread(held.piece, number)
            case "drop":
                await self._drop()
        return Done()

    def _touch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE_S, self._forget)

    def _forget(self) -> None:
        if self._taking.locked():
            self._touch()
        elif self._copy is not None:
            self._copy.drop()
            self._copy = None

    async def _drop(self) -> None:
        async with self._taking:
            held, self._copy = self._copy, None
            if held is not None:
                await asyncio.to_thread(held.drop)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
