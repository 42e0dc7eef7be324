"""Runs the functions that a configuration names: of queries, which fetch an entry, and of mutations; reducers, which change one; transforms.

A shard may not wait for somebody else's code. Coroutines run on a loop and a thread of their own, plain functions on a few threads;
what outlives its time is given up, and where it keeps a thread or the loop, those who come later get another. Reducers run inside a
commit, since what comes after depends on what they give, and can only be reported: by a `Watchdog`, also while they still block. So do
transforms, inside the reading of a stream.

Nothing that a function does may end its caller: whatever it raises becomes an error of ours.

What must not live here: which function belongs to what (`cluster.config`), when it is called (`shard_state`).
"""

import asyncio
import importlib
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol

import orjson

from cluster.app.function_loop import FunctionLoop
from cluster.app.function_threads import FunctionThreads
from cluster.app.watchdog import WATCHDOG_S, Call, Watchdog
from cluster.core.entry import MAX_DEPTH, compact
from cluster.errors import ErrorCode, HarborError, OperationError, UpstreamError

MAX_RESULT_BYTES = 16 * 1024 * 1024
"""As of a service's answer."""
MAX_STUCK_LOOPS = 16
"""Loops given up and not yet ended. With so many none is given up any more, and calls wait for theirs."""
IMPORT_AGAIN_S = 10.0
"""How soon a module is imported again after that failed: events may ask for its reducer thousands of times a second."""
MAX_REASON = 200
BUGS = (TypeError, ValueError, KeyError, AttributeError, NameError)
"""Errors that come again: a call that raised one is not tried again."""
RAISED = (Exception, SystemExit, asyncio.CancelledError)
"""What a function may raise."""
Function = Callable[..., Any]


class _Absent:
    """No page parameter: the query is no infinite list."""

    def __repr__(self) -> str:
        return "ABSENT"


class _Null:
    """What a reducer returns for JSON null; None leaves the data as it is."""

    def __repr__(self) -> str:
        return "NULL"


ABSENT: Final = _Absent()
NULL: Final = _Null()


class Event(dict[str, Any]):
    """What a reducer or a transform is told of an event: `event` (its name), `data`, `captures` (of the channel), `id`.

    A reducer inside `each` is told `item`, too, a transform `channel`.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(f"an event has no {name!r}") from error


class Logger(Protocol):
    """Where faults are written, from any thread."""

    def error(self, event: str, *, exc_info: BaseException | None = None, **fields: Any) -> None:
        """Write an error."""
        ...

    def warning(self, event: str, **fields: Any) -> None:
        """Write a warning."""
        ...


class _Raised(NamedTuple):
    """What a call came to. A value, since asyncio has its own ideas of a `CancelledError` or `StopIteration` that is raised."""

    error: BaseException


class _NotJson(Exception):  # noqa: N818 - an outcome
    """Why what a function gave cannot be stored."""


_Outcome = bytes | _Raised


class Functions:
    """See the module. Its methods are for one thread, the shard's or the ingestor's."""

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._resolved: dict[str, Function] = {}
        self._unresolved: dict[str, tuple[float, str]] = {}
        """Reason why a function could not be imported, and until when nobody tries again."""
        self._raised: set[tuple[str, str]] = set()
        """(function, error) of which the traceback was logged."""
        self._watchdog = Watchdog(self._blocks)
        self._in_place = self._watchdog.lane()
        self._threads = FunctionThreads()
        self._loop: FunctionLoop | None = None
        self._stuck_loops: list[FunctionLoop] = []

    def resolve(self, reference: str) -> Function:
        """Return the function named `module:qualified.name`. May be called from any thread.

        Raises:
            HarborError: it cannot be imported, with the reason.
        """
        found = self._resolved.get(reference)
        if found is not None:
            return found
        until_s, reason = self._unresolved.get(reference, (0.0, ""))
        if time.monotonic() < until_s:
            raise HarborError(ErrorCode.INTERNAL, reason)
        module, _, name = reference.partition(":")
        try:
            target: Any = importlib.import_module(module)
            for part in name.split("."):
                target = getattr(target, part)
            if not callable(target):
                raise TypeError(f"expected a function, got {type(target).__name__}")
        except RAISED as error:
            reason = f"function {reference} cannot be imported: {_shown(error)}"
            self._unresolved[reference] = (time.monotonic() + IMPORT_AGAIN_S, reason)
            self._note("function_missing", reference, error)
            raise HarborError(ErrorCode.INTERNAL, reason) from error
        function: Function = target
        self._resolved[reference] = function
        return function

    # --- functions of queries and mutations ----------------------------------------------------------------------

    async def fetch(
        self, reference: str, captures: dict[str, Any], page_param: Any = ABSENT, timeout_ms: float = 10_000.0
    ) -> bytes:
        """Run a query function and return what it gives, as JSON. Cancelling is safe.

        Raises:
            UpstreamError: it cannot be imported, raised, took longer than `timeout_ms`, or gave what is no JSON. `retryable` says
                whether the same call may succeed later; an `UpstreamError` of the function's own says so itself.
        """
        arguments = captures if page_param is ABSENT else {**captures, "page_param": page_param}
        try:
            async with asyncio.timeout(timeout_ms / 1000.0):
                outcome = await self._outcome(reference, arguments)
        except TimeoutError as error:
            raise UpstreamError(f"function {reference}: no answer within {timeout_ms / 1000.0:g} s") from error
        if isinstance(outcome, _Raised):
            raise self._failed(reference, outcome.error) from outcome.error
        return outcome

    async def mutate(
        self, reference: str, variables: dict[str, Any], mutation: str, timeout_ms: float = 10_000.0
    ) -> bytes:
        """Run a mutation's function with its variables by name, and `mutation_id` if it takes one; return its response, as JSON.

        Raises:
            UpstreamError: as `fetch`, and where the variables are not those it takes. The function has answered, badly: it counts as
                a status 500, so that only a function that says so itself, by an `UpstreamError` without status, is waited for.
        """
        try:
            async with asyncio.timeout(timeout_ms / 1000.0):
                outcome = await self._outcome(reference, variables, {"mutation_id": mutation})
        except TimeoutError as error:
            message = f"function {reference}: no answer within {timeout_ms / 1000.0:g} s"
            raise UpstreamError(message, status=500) from error
        if isinstance(outcome, _Raised):
            failed = self._failed(reference, outcome.error)
            if not isinstance(outcome.error, UpstreamError):
                failed = UpstreamError(failed.message, status=500, retryable=failed.retryable)
            raise failed from outcome.error
        return outcome

    async def _outcome(
        self, reference: str, arguments: dict[str, Any], offered: dict[str, Any] | None = None
    ) -> _Outcome:
        """Call a function; `offered` are arguments that it need not take."""
        function = self._resolved.get(reference)
        if function is None:  # importing may take its time
            found = await self._in_thread(reference, lambda: _attempt(lambda: self.resolve(reference)))
            if isinstance(found, _Raised):
                message = found.error.message if isinstance(found.error, HarborError) else _shown(found.error)
                raise UpstreamError(message, retryable=False) from found.error
            function = found
        if offered:
            arguments = {**arguments, **{name: value for name, value in offered.items() if _takes(function, name)}}
        if inspect.iscoroutinefunction(function):
            return await self._on_loop(reference, function, arguments)
        outcome = await self._in_thread(reference, lambda: _attempt(lambda: _result(function(**arguments))))
        if isinstance(outcome, bytes | _Raised):
            return outcome
        awaitable = outcome  # a coroutine function in some other guise
        return await self._on_loop(reference, lambda: awaitable, {})

    async def _on_loop(self, reference: str, function: Function, arguments: dict[str, Any]) -> _Outcome:
        loop = self._listening_loop()
        call = Call(reference)
        running = loop.start(call, _settled(function, arguments))
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:  # out of time; the call is cancelled with it, if the loop hears
            if loop is self._loop:
                loop.ask()
                if loop.is_stuck_in(call):
                    self._replace(loop)
            raise

    def _listening_loop(self) -> FunctionLoop:
        if self._loop is not None and self._loop.is_deaf():
            self._replace(self._loop)
        if self._loop is None:
            self._loop = FunctionLoop(self._watchdog)
        return self._loop

    def _replace(self, loop: FunctionLoop) -> None:
        """Give a loop up for a new one, which serves those who come later."""
        self._stuck_loops = [each for each in self._stuck_loops if each.thread.is_alive()]
        self._log.error("function_stuck", function=loop.blocker(), stuck=len(self._stuck_loops) + 1)
        if len(self._stuck_loops) < MAX_STUCK_LOOPS:
            loop.retire()
            self._stuck_loops.append(loop)
            self._loop = None

    async def _in_thread(self, reference: str, work: Callable[[], Any]) -> Any:
        job = self._threads.start(work)
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            if self._threads.give_up(job):
                self._log.error("function_stuck", function=reference, stuck=self._threads.lost)
            raise

    def _failed(self, reference: str, error: BaseException) -> UpstreamError:
        if isinstance(error, _NotJson):
            return UpstreamError(f"function {reference} gave {error}", retryable=False)
        if isinstance(error, UpstreamError):
            return UpstreamError(
                f"function {reference}: {error.message}",
                status=error.status,
                retryable=error.retryable,
                retry_after_ms=error.retry_after_ms,
                body=error.body,
            )
        self._note("function_raised", reference, error)
        return UpstreamError(f"function {reference} raised {_shown(error)}", retryable=not isinstance(error, BUGS))

    # --- reducers ------------------------------------------------------------------------------------------------

    def reduce(self, reference: str, old: Any, event: Event) -> Any:
        """Run a reducer: `(old, event) -> new`; None: it leaves the data as it is, `NULL`: the data is null.

        `old` and `event` are the reducer's to edit: they must have been decoded for it alone, so that one that edits and then fails
        leaves nothing behind.

        Raises:
            OperationError: it cannot be imported, raised, or gave what is no JSON. The reason is logged.
        """
        return self._call(reference, old, event)[0]

    def _call(self, reference: str, *arguments: Any) -> tuple[Any, bytes | None]:
        """Call a function here and now. Returns what it gives, and that as JSON; None: it gave None.

        Raises:
            OperationError: as `reduce`.
        """
        self._in_place.enter(Call(reference))
        try:
            new = self.resolve(reference)(*arguments)
            if inspect.isawaitable(new):
                if inspect.iscoroutine(new):
                    new.close()
                raise _NotJson("what would have to be awaited")
            return new, None if new is None else b"null" if new is NULL else _encoded(new)
        except _NotJson as error:
            self._note("function_raised", reference, error)
            raise OperationError(f"function {reference} gave {error}") from error
        except RAISED as error:
            if reference not in self._resolved:
                raise OperationError(_text(error)) from error
            self._note("function_raised", reference, error)
            raise OperationError(f"function {reference} raised {_shown(error)}") from error
        finally:
            length_s = self._in_place.leave()
            if length_s > WATCHDOG_S:
                self._log.warning("function_slow", function=reference, ms=round(length_s * 1000))

    # --- transforms ----------------------------------------------------------------------------------------------

    def transform(self, reference: str, event: dict[str, Any]) -> bytes | None:
        """Run a transform: `(event) -> data`, as JSON; None: it leaves the event out. `NULL`: the data is null.

        Raises:
            OperationError: as `reduce`.
        """
        return self._call(reference, Event(event))[1]

    # --- reports -------------------------------------------------------------------------------------------------

    def _blocks(self, reference: str, length_s: float) -> None:
        self._log.warning("function_blocks", function=reference, ms=round(length_s * 1000))

    def _note(self, event: str, reference: str, error: BaseException) -> None:
        """Log what went wrong, with its traceback, the first time that it does."""
        known = (reference, type(error).__name__)
        if known not in self._raised:
            self._raised.add(known)
            self._log.error(event, function=reference, error=_shown(error), exc_info=error)

    def close(self) -> None:
        """Cancel what runs and end the threads; one that is stuck is left behind. Nothing may be called afterwards."""
        if self._loop is not None:
            self._loop.close()
        self._threads.close()
        self._watchdog.close()


async def _settled(function: Function, arguments: dict[str, Any]) -> _Outcome:
    """Call a coroutine function to its end, on the loop."""
    try:
        return _json(await function(**arguments))
    except BaseException as error:  # noqa: BLE001 - a value from here on
        return _Raised(error)


def _attempt(work: Callable[[], Any]) -> Any:
    """Call a function, on a thread."""
    try:
        return work()
    except BaseException as error:  # noqa: BLE001 - a value from here on
        return _Raised(error)


def _takes(function: Function, name: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of something built in
        return False
    return any(each.name == name or each.kind is each.VAR_KEYWORD for each in parameters)


def _result(given: Any) -> bytes | Awaitable[Any]:
    return given if inspect.isawaitable(given) else _json(given)


def _json(given: Any) -> bytes:
    return compact(_encoded(given))


def _encoded(given: Any) -> bytes:
    """Return what a function gave as JSON; orjson writes at most `MAX_DEPTH` levels.

    Raises:
        _NotJson: with the reason.
    """
    try:
        json = orjson.dumps(given)
    except TypeError as error:
        if "recursion" in str(error).lower():
            raise _NotJson(f"a value deeper than {MAX_DEPTH} levels") from error
        raise _NotJson(f"what is no JSON: {error}") from error
    if len(json) > MAX_RESULT_BYTES:
        raise _NotJson(f"over {MAX_RESULT_BYTES} bytes")
    return json


def _shown(error: BaseException) -> str:
    """Return an error's type and text on one line."""
    text = _text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _text(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - an error that cannot even say what it is
        return ""
    return text if len(text) <= MAX_REASON else text[: MAX_REASON - 3] + "..."
