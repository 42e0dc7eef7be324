"""Runs the functions that a configuration names: query functions, which fetch an entry, and reducers, which change one.

A shard may not wait for somebody else's code. Coroutines run on a loop and a thread of their own, plain functions in a small pool; one
that blocks the loop is reported after `WATCHDOG_S`, and if it goes on past its time the loop is given up for a new one. Reducers run
inside a commit, since what comes after depends on what they give; they are reported, too, while they still block.

What must not live here: which function belongs to what (`cluster.config`), when it is called (`shard_state`).
"""

import asyncio
import importlib
import inspect
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol

import orjson

from cluster.core.entry import MAX_DEPTH, is_writable
from cluster.errors import ErrorCode, HarborError, OperationError, UpstreamError

WATCHDOG_S = 0.05
"""How long a function may block before it is reported by name."""
POOL_THREADS = 4
MAX_RESULT_BYTES = 16 * 1024 * 1024
BUGS = (TypeError, ValueError, KeyError, AttributeError, NameError)
"""Errors that come again: a call that raised one is not tried again."""


class _Absent:
    """No page parameter: the query is no infinite list."""


class _Null:
    """What a reducer returns for JSON null; None leaves the data as it is."""


ABSENT: Final = _Absent()
NULL: Final = _Null()


class Event(dict[str, Any]):
    """What a reducer is told of an event: `event` (its name), `data`, `captures` (of the channel), `id`, `item` (inside `each`)."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class Logger(Protocol):
    """Where faults are written."""

    def error(self, event: str, **fields: Any) -> None:
        """Write an error."""
        ...

    def warning(self, event: str, **fields: Any) -> None:
        """Write a warning."""
        ...


class PlainLog:
    """A `Logger` over the standard one."""

    def __init__(self) -> None:
        self._log = logging.getLogger(__name__)

    def error(self, event: str, **fields: Any) -> None:
        """Write an error."""
        self._log.error("%s %s", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        """Write a warning."""
        self._log.warning("%s %s", event, fields)


class _LoopThread:
    """An event loop on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="harbor-functions", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)


class Functions:
    """See the module."""

    def __init__(self, log: Logger | None = None) -> None:
        self._log = log or PlainLog()
        self._resolved: dict[str, Callable[..., Any]] = {}
        self._loop: _LoopThread | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._raised: set[tuple[str, str]] = set()
        """(function, error) of which the traceback was logged."""

    def resolve(self, reference: str) -> Callable[..., Any]:
        """Return the function named `module:qualified.name`.

        Raises:
            HarborError: it cannot be imported, with the reason.
        """
        found = self._resolved.get(reference)
        if found is not None:
            return found
        module, _, name = reference.partition(":")
        try:
            target: Any = importlib.import_module(module)
            for part in name.split("."):
                target = getattr(target, part)
        except Exception as error:
            raise HarborError(
                ErrorCode.INTERNAL, f"function {reference} cannot be imported: {type(error).__name__}: {error}"
            ) from error
        if not callable(target):
            raise HarborError(ErrorCode.INTERNAL, f"function {reference} is no function")
        function: Callable[..., Any] = target
        self._resolved[reference] = function
        return function

    # --- query functions -----------------------------------------------------------------------------------------

    async def fetch(
        self, reference: str, captures: dict[str, Any], page_param: Any = ABSENT, timeout_ms: float = 10_000.0
    ) -> bytes:
        """Run a query function and return what it gives, as JSON.

        Raises:
            UpstreamError: it cannot be imported, raised, took longer than `timeout_ms`, or gave what is no JSON.
        """
        try:
            function = self.resolve(reference)
        except HarborError as error:
            raise UpstreamError(error.message, retryable=False) from error
        arguments = dict(captures) if page_param is ABSENT else {**captures, "page_param": page_param}
        try:
            async with asyncio.timeout(timeout_ms / 1000.0):
                if inspect.iscoroutinefunction(function):
                    result = await self._on_loop(reference, function, arguments)
                else:
                    result = await self._in_pool(function, arguments)
        except TimeoutError as error:
            raise UpstreamError(f"function {reference}: no answer within {timeout_ms / 1000.0:g} s") from error
        except UpstreamError:
            raise
        except Exception as error:
            self._note(reference, error)
            reason = f"function {reference} raised {type(error).__name__}: {str(error)[:200]}"
            raise UpstreamError(reason, retryable=not isinstance(error, BUGS)) from error
        return _json(reference, result)

    async def _on_loop(self, reference: str, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        thread = self._loop
        if thread is None:
            thread = self._loop = _LoopThread()
        running: Future[Any] = asyncio.run_coroutine_threadsafe(function(**arguments), thread.loop)
        work = asyncio.wrap_future(running)
        watchdog = asyncio.get_running_loop().create_task(self._watch(reference, thread))
        try:
            return await work
        except asyncio.CancelledError:
            if not await _responds(thread):
                self._loop = None if self._loop is thread else self._loop  # a new one serves those who come later
                self._log.error("function_stuck", function=reference)
            raise
        finally:
            watchdog.cancel()

    async def _watch(self, reference: str, thread: _LoopThread) -> None:
        """Report a function whose loop does not answer for `WATCHDOG_S`."""
        while True:
            await asyncio.sleep(WATCHDOG_S)
            if not await _responds(thread):
                self._log.warning("function_blocks", function=reference, ms=round(WATCHDOG_S * 1000))
                return

    async def _in_pool(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="harbor-function")
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: function(**arguments))

    # --- reducers ------------------------------------------------------------------------------------------------

    def reduce(self, reference: str, old: Any, event: Event) -> Any:
        """Run a reducer: `(old, event) -> new`; None: it leaves the data as it is, `NULL`: the data is null.

        Raises:
            OperationError: it cannot be imported, or raised.
        """
        try:
            function = self.resolve(reference)
        except HarborError as error:
            raise OperationError(error.message) from error
        alarm = threading.Timer(
            WATCHDOG_S, self._log.warning, ("function_blocks",), {"function": reference, "ms": WATCHDOG_S * 1000}
        )
        alarm.daemon = True
        alarm.start()
        started = time.perf_counter()
        try:
            return function(old, event)
        except Exception as error:
            self._note(reference, error)
            raise OperationError(f"function {reference} raised {type(error).__name__}: {str(error)[:200]}") from error
        finally:
            alarm.cancel()
            elapsed = time.perf_counter() - started
            if elapsed > WATCHDOG_S:
                self._log.warning("function_slow", function=reference, ms=round(elapsed * 1000))

    def _note(self, reference: str, error: Exception) -> None:
        """Log what a function raised; with its traceback the first time."""
        known = (reference, type(error).__name__)
        if known not in self._raised:
            self._raised.add(known)
            self._log.error("function_raised", function=reference, error=repr(error)[:200], exc_info=error)

    def close(self) -> None:
        """End the threads that are idle; one that is stuck is left behind."""
        if self._loop is not None:
            self._loop.stop()
            self._loop = None
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


async def _responds(thread: _LoopThread) -> bool:
    """Whether a loop runs something within `WATCHDOG_S`."""
    answered: Future[None] = Future()
    thread.loop.call_soon_threadsafe(answered.set_result, None)
    try:
        async with asyncio.timeout(WATCHDOG_S):
            await asyncio.wrap_future(answered)
    except TimeoutError:
        return False
    return True


def _json(reference: str, result: Any) -> bytes:
    try:
        json = orjson.dumps(result)
    except TypeError as error:
        raise UpstreamError(f"function {reference} gave what is no JSON: {error}", retryable=False) from error
    if len(json) > MAX_RESULT_BYTES:
        raise UpstreamError(f"function {reference} gave over {MAX_RESULT_BYTES} bytes", retryable=False)
    if json.count(b"[") + json.count(b"{") > MAX_DEPTH and not is_writable(orjson.loads(json)):
        raise UpstreamError(f"function {reference} gave a value deeper than {MAX_DEPTH} levels", retryable=False)
    return json
