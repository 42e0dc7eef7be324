"""An event loop on a thread of its own, for coroutines whose author may have forgotten that others wait.

To say which function blocks, and for how long, every step of every task (what runs between two awaits) is entered in a `Lane`; tasks
that a function makes count as that function. A loop that is stuck for good cannot be freed, nor its thread ended: it is retired, and
ends when what blocks it does.

What must not live here: what a function gave (`functions`), when a loop counts as stuck beyond help.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, TypeVar

from cluster.app.watchdog import WATCHDOG_S, Call, Lane, Watchdog

T = TypeVar("T")
DEAF_S = 1.0
"""How long a loop may leave a request unheard, after a call on it went past its time, before calls are made elsewhere. Long, because
what functions keep that belongs to the loop, such as open connections, is lost to them then."""
_CALL: ContextVar[Call] = ContextVar("call")


class FunctionLoop:
    """See the module. Its methods are for one thread, which is another than the loop's."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._lane = watchdog.lane()
        self._loop = asyncio.new_event_loop()
        self._loop.set_task_factory(self._task)
        self._calls: set[asyncio.Task[Any]] = set()
        self._unheard_since_s: float | None = None
        self._is_over = False
        self._ending: Future[None] | None = None
        self.thread = threading.Thread(target=self._run, name="harbor-functions", daemon=True)
        self.thread.start()

    def start(self, call: Call, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine as part of a call. Cancelling what is returned cancels it."""
        return asyncio.run_coroutine_threadsafe(self._start(call, work), self._loop)

    def is_stuck_in(self, call: Call) -> bool:
        """Whether a call has had the thread to itself for long."""
        stretch = self._lane.stretch
        return stretch is not None and stretch.call is call and stretch.length_s >= WATCHDOG_S

    def blocker(self) -> str | None:
        """Return the function that the thread is in."""
        stretch = self._lane.stretch
        return None if stretch is None else stretch.call.function

    def ask(self) -> None:
        """See whether the loop still hears; `is_deaf` tells."""
        if self._unheard_since_s is None:
            self._unheard_since_s = time.monotonic()
            self._loop.call_soon_threadsafe(self._hear)

    def is_deaf(self) -> bool:
        """Whether the loop has not heard for long that it was asked."""
        asked_s = self._unheard_since_s
        return asked_s is not None and time.monotonic() - asked_s >= DEAF_S

    def retire(self) -> None:
        """End when the calls that are under way have."""
        self._watchdog.forget(self._lane)
        self._end(cancel=False)

    def close(self) -> None:
        """Cancel what is under way, and end."""
        self._end(cancel=True)

    def _hear(self) -> None:
        self._unheard_since_s = None

    def _end(self, *, cancel: bool) -> None:
        if self._ending is None:
            self._ending = asyncio.run_coroutine_threadsafe(self._finish(cancel=cancel), self._loop)

    async def _finish(self, *, cancel: bool) -> None:
        own = asyncio.current_task()
        while calls := self._calls - {own}:
            if cancel:
                for task in calls:
                    task.cancel()
            await asyncio.wait(calls)
        if left_over := asyncio.all_tasks() - {own}:  # which functions started and did not wait for
            for task in left_over:
                task.cancel()
            await asyncio.wait(left_over, timeout=DEAF_S)
        self._is_over = True
        self._loop.call_soon(self._loop.stop)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._is_over:
            try:
                self._loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                continue  # the task that raised it has ended with it, the others go on
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()
        self._watchdog.forget(self._lane)

    async def _start(self, call: Call, work: Coroutine[Any, Any, T]) -> T:
        _CALL.set(call)
        return await _Steps(work, call, self._lane)

    def _task(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> asyncio.Task[Any]:
        call = _CALL.get(None)
        if call is None:
            task = asyncio.Task(work, loop=loop, **options)
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
            return task
        return asyncio.Task(_stepwise(work, call, self._lane), loop=loop, **options)


async def _stepwise(work: Any, call: Call, lane: Lane) -> Any:
    return await _Steps(work, call, lane)


class _Steps(Awaitable[T]):
    """Awaits a coroutine, and notes in a lane when it runs."""

    __slots__ = ("_call", "_lane", "_work")

    def __init__(self, work: Coroutine[Any, Any, T], call: Call, lane: Lane) -> None:
        self._work = work
        self._call = call
        self._lane = lane

    def __await__(self) -> Generator[Any, Any, T]:
        """What `yield from` does, by hand (PEP 380), since it gives no say between two steps."""
        resume: Callable[[Any], Any] = self._work.send
        argument: Any = None
        while True:
            self._lane.enter(self._call)
            try:
                waits_for = resume(argument)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            finally:
                length_s = self._lane.leave()
                if length_s >= WATCHDOG_S:
                    self._lane.watchdog.report(self._call, length_s)
            try:
                argument = yield waits_for
                resume = self._work.send
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is for the coroutine
                resume, argument = self._work.throw, error
