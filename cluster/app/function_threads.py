"""A few threads for plain functions, which block by nature.

`concurrent.futures` has such a pool, but one whose threads are waited for when the process ends, and in which a function that never
returns takes a thread away for good. Here threads are daemons, and a call that is given up has its thread replaced: the old one ends
when the function does.

What must not live here: what a function gave (`functions`).
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
THREADS = 4
MAX_LOST = 16
"""Threads in functions that were given up. With so many none is replaced any more, and calls wait for a thread to come back."""


class Job(Generic[T]):
    """A call that waits for a thread, or has one."""

    __slots__ = ("future", "is_given_up", "work")

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.future: Future[T] = Future()
        self.is_given_up = False


_END: Final = None


class FunctionThreads:
    """See the module."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._is_closed = False
        self._serving = 0
        """Threads that take jobs."""
        self.lost = 0
        """Threads in jobs that were given up."""

    def start(self, work: Callable[[], T]) -> Job[T]:
        """Run `work`, which must not raise, when a thread is free."""
        job = Job(work)
        with self._lock:
            self._serve()
        self._jobs.put(job)
        return job

    def give_up(self, job: Job[Any]) -> bool:
        """Wait for a job no longer: one that has no thread never runs. Returns whether one that runs lost us its thread."""
        if job.future.cancel():
            return False
        with self._lock:
            if job.future.done() or job.is_given_up:
                return False
            job.is_given_up = True
            self.lost += 1
            self._serving -= 1
            self._serve()
        return True

    def close(self) -> None:
        """End the threads that are idle, and the others after what they do."""
        with self._lock:
            self._is_closed = True
            for _ in range(self._serving):
                self._jobs.put(_END)

    def _serve(self) -> None:
        if self._serving < THREADS and self._serving + self.lost < THREADS + MAX_LOST:
            self._serving += 1
            threading.Thread(target=self._run, name="harbor-function", daemon=True).start()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not _END:
            if job.future.set_running_or_notify_cancel() and not self._carry_out(job):
                return
            del job  # and what it gave, which may be large

    def _carry_out(self, job: Job[Any]) -> bool:
        """Run a job. Returns whether its thread takes others: one that was lost does where it was not replaced."""
        given = job.work()
        with self._lock:
            job.future.set_result(given)
            if not job.is_given_up:
                return True
            self.lost -= 1
            if self._is_closed or self._serving == THREADS:
                return False
            self._serving += 1
            return True
