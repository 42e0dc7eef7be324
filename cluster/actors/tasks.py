"""Tasks that an actor cannot do without: one that fails for a reason nobody foresaw ends the process, and Ray starts it anew.

Otherwise its failure would be seen by nobody: the actor would answer as before and never again do what the task was for, or go on with
a machine in an unknown state.

What must not live here: tasks that may fail, which handle that themselves.
"""

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine
from typing import Any, NoReturn

from cluster.observability.logs import Log

FAILED = 70
"""Exit code: an error of ours."""


async def cancel(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def finish(work: Coroutine[Any, Any, None]) -> None:
    """Do something to the end, also where whoever waits for it is cancelled meanwhile: only then is that."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class Tasks:
    """The tasks of one actor, which end with it."""

    def __init__(self, log: Log) -> None:
        """Begin without any. `log`: where the reason is said."""
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._held: set[asyncio.Task[None]] = set()
        self._are_over = False

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task for as long as it takes."""
        return self.hold(self._loop.create_task(work))

    def hold(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Take in a task that runs."""
        self._held.add(task)
        task.add_done_callback(self._ended)
        if self._are_over:
            task.cancel()
        return task

    def later(self, delay_s: float, work: Callable[[], None]) -> asyncio.TimerHandle:
        """Do something after a while."""
        return self._loop.call_later(delay_s, self._do, work)

    async def stop(self) -> None:
        """Cancel all, and what is begun from now on, and wait until they have ended."""
        self._are_over = True
        await cancel(set(self._held))

    def failed(self, error: BaseException) -> NoReturn:
        """End the process."""
        self._log.error("task_failed", error=repr(error), exc_info=error)
        os._exit(FAILED)

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever it is
            self.failed(error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._held.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)
