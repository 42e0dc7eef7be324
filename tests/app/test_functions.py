"""Functions of users: what they give, what they raise, and that one that blocks holds nobody up."""

import asyncio
import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.app import NULL, Event
from cluster.app import function_loop as function_loop_module
from cluster.app import functions as functions_module
from cluster.app.function_threads import MAX_LOST, THREADS, FunctionThreads, Job
from cluster.app.functions import ABSENT, Functions
from cluster.app.watchdog import WATCHDOG_S
from cluster.core.entry import Value
from cluster.core.operation import Call, apply_all
from cluster.errors import ErrorCode, HarborError, OperationError, UpstreamError
from tests.app import awkward, sample_app
from tests.app.awkward import Gate

SAMPLE = "tests.app.sample_app:"
AWKWARD = "tests.app.awkward:"
TIME_OUT_MS = 600.0
"""Long enough for a thread to start and a loop to count as blocked, on a machine with better things to do."""


class Log:
    """A log that can be waited for."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self._changed = threading.Condition()

    def error(self, event: str, *, exc_info: BaseException | None = None, **fields: Any) -> None:
        self._write(event, {"level": "error", "exc_info": exc_info, **fields})

    def warning(self, event: str, **fields: Any) -> None:
        self._write(event, {"level": "warning", **fields})

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        with self._changed:
            self.lines.append((event, fields))
            self._changed.notify_all()

    def of(self, event: str) -> list[dict[str, Any]]:
        with self._changed:
            return [fields for name, fields in self.lines if name == event]

    def faults(self) -> list[dict[str, Any]]:
        """Errors. Warnings may come of a machine that has better things to do than tests."""
        with self._changed:
            return [{"event": name, **fields} for name, fields in self.lines if fields["level"] == "error"]

    def wait_for(self, event: str, function: str) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [fields for name, fields in self.lines if (name, fields["function"]) == (event, function)]

        with self._changed:
            assert self._changed.wait_for(found, 30)
            return found()[0]

    async def told(self, event: str, function: str) -> dict[str, Any]:
        """Wait without holding up the test's loop, which stands for the shard's."""
        return await asyncio.to_thread(self.wait_for, event, function)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def functions(log: Log) -> Iterator[Functions]:
    made = Functions(log)
    yield made
    made.close()


@pytest.fixture
def gate() -> Iterator[Callable[[str], Gate]]:
    """Makes gates, which stand open after the test."""

    def make(name: str) -> Gate:
        return awkward.gates.setdefault(name, Gate())

    yield make
    for made in awkward.gates.values():
        made.open()
    awkward.gates.clear()


async def passed(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, 30)


def ended(thread: threading.Thread) -> bool:
    thread.join(30)
    return not thread.is_alive()


# --- finding them ----------------------------------------------------------------------------------------------------


def test_a_function_is_found_by_name_once(functions: Functions, monkeypatch: pytest.MonkeyPatch) -> None:
    assert functions.resolve(SAMPLE + "total") is sample_app.total
    assert functions.resolve(AWKWARD + "Callable.method") is awkward.Callable.method
    monkeypatch.setattr(importlib, "import_module", None)
    assert functions.resolve(SAMPLE + "total") is sample_app.total


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("no.such:f", "ModuleNotFoundError: No module named 'no'"),
        (SAMPLE + "nothing", "AttributeError: module 'tests.app.sample_app' has no attribute 'nothing'"),
        (AWKWARD + "nothing_to_call", "TypeError: expected a function, got int"),
        ("tests.app.broken_app:f", "ZeroDivisionError: division by zero"),
    ],
)
async def test_a_function_that_is_not_there(functions: Functions, log: Log, reference: str, reason: str) -> None:
    message = f"function {reference} cannot be imported: {reason}"
    with pytest.raises(HarborError) as raised:
        functions.resolve(reference)
    assert (raised.value.code, raised.value.message) == (ErrorCode.INTERNAL, message)
    with pytest.raises(UpstreamError) as refused:
        await functions.fetch(reference, {})
    assert (refused.value.message, refused.value.retryable) == (message, False)
    with pytest.raises(OperationError) as dropped:
        functions.reduce(reference, None, Event())
    assert dropped.value.message == message
    (fault,) = log.faults()
    assert (fault["event"], fault["function"]) == ("function_missing", reference)
    assert fault["exc_info"] is not None


def test_a_module_that_fails_is_not_imported_for_every_event(
    functions: Functions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record"
    source = f"with open({str(record)!r}, 'a') as file: file.write('.')\nraise SystemExit('not today')"
    (tmp_path / "failing_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    for _ in range(3):
        with pytest.raises(HarborError, match="SystemExit: not today"):
            functions.resolve("failing_module:f")
    assert record.read_text() == "."
    functions._unresolved.update(dict.fromkeys(functions._unresolved, (0.0, "")))  # time goes by
    (tmp_path / "failing_module.py").write_text("f = len")
    monkeypatch.syspath_prepend(tmp_path)  # forgets what it knew of the file
    assert functions.resolve("failing_module:f") is len


# --- what they give --------------------------------------------------------------------------------------------------


async def test_coroutines_and_plain_functions_give_json(functions: Functions) -> None:
    assert await functions.fetch(SAMPLE + "total", {"a": 1, "b": 2}) == b'{"total":3}'
    assert await functions.fetch(SAMPLE + "plain", {"name": "you"}) == b'{"hello":"you"}'
    assert await functions.fetch(AWKWARD + "gives", {"name": "null"}) == b"null"
    assert await functions.fetch(AWKWARD + "Callable.method", {}) == b'"method"'


async def test_a_page_is_asked_for_by_its_parameter(functions: Functions) -> None:
    captures = {"upto": 5}
    assert await functions.fetch(SAMPLE + "numbers", captures, 3) == b'[{"id":3},{"id":4}]'
    assert captures == {"upto": 5}
    with pytest.raises(UpstreamError, match="missing 1 required positional argument: 'page_param'"):
        await functions.fetch(SAMPLE + "numbers", captures, ABSENT)
    assert await functions.fetch(AWKWARD + "in_disguise", {"value": 0}) == b"0"


@pytest.mark.parametrize(
    ("name", "arguments", "given"),
    [("in_disguise", {"value": [1]}, b"[1]"), ("part", {}, b"7"), ("instance", {}, b'"called"')],
)
async def test_what_only_gives_a_coroutine_is_waited_for(
    functions: Functions, name: str, arguments: Any, given: bytes
) -> None:
    assert await functions.fetch(AWKWARD + name, arguments) == given


@pytest.mark.parametrize("function", ["gives", "gives_on_the_loop"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("set", "what is no JSON: Type is not JSON serializable: set"),
        ("surrogate", "what is no JSON: str is not valid UTF-8: surrogates not allowed"),
        ("deep", "a value deeper than 254 levels"),
        ("circle", "a value deeper than 254 levels"),
        ("large", "over 64 bytes"),
    ],
)
async def test_what_is_no_json_is_refused(
    functions: Functions, log: Log, monkeypatch: pytest.MonkeyPatch, function: str, name: str, reason: str
) -> None:
    if name == "large":
        monkeypatch.setattr(functions_module, "MAX_RESULT_BYTES", 64)
    with pytest.raises(UpstreamError) as raised:
        await functions.fetch(AWKWARD + function, {"name": name})
    assert raised.value.message == f"function {AWKWARD}{function} gave {reason}"
    assert not raised.value.retryable
    assert log.faults() == []


async def test_the_deepest_that_can_be_kept_is_taken(functions: Functions) -> None:
    assert await functions.fetch(AWKWARD + "gives", {"name": "deepest"}) == b"[" * 254 + b"]" * 254


# --- what they raise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["raises", "raises_in_a_thread", "raises_in_a_task"])
@pytest.mark.parametrize(
    ("name", "said", "retryable"),
    [
        ("ValueError", "ValueError: too bad", False),
        ("KeyError", "KeyError: 'name'", False),
        ("RuntimeError", "RuntimeError: down", True),
        ("TimeoutError", "TimeoutError: theirs", True),
        ("CancelledError", "CancelledError", True),
        ("SystemExit", "SystemExit: 3", True),
        ("WordlessError", "WordlessError", True),
    ],
)
async def test_what_a_function_raises_is_an_error_of_its_entry(
    functions: Functions, log: Log, function: str, name: str, said: str, retryable: bool
) -> None:
    for _ in range(2):
        with pytest.raises(UpstreamError) as raised:
            await functions.fetch(AWKWARD + function, {"name": name}, timeout_ms=30_000)
        assert raised.value.message == f"function {AWKWARD}{function} raised {said}"
        assert raised.value.retryable is retryable
    (noted,) = log.of("function_raised")
    assert (noted["level"], noted["function"], noted["error"]) == ("error", AWKWARD + function, said)
    assert type(noted["exc_info"]).__name__ == name
    # Nobody else suffers: not the loop, and not the threads.
    assert await functions.fetch(SAMPLE + "total", {"a": 1, "b": 1}) == b'{"total":2}'
    assert await functions.fetch(SAMPLE + "plain", {"name": "you"}) == b'{"hello":"you"}'


async def test_a_stop_iteration_is_an_error_like_others(functions: Functions) -> None:
    with pytest.raises(UpstreamError, match="raised StopIteration: 3"):
        await functions.fetch(AWKWARD + "raises_in_a_thread", {"name": "StopIteration"})
    with pytest.raises(UpstreamError, match="raised RuntimeError: coroutine raised StopIteration"):
        await functions.fetch(AWKWARD + "raises", {"name": "StopIteration"})


async def test_the_same_again_is_not_logged_again_but_another_is(functions: Functions, log: Log) -> None:
    for name in ("ValueError", "KeyError", "ValueError"):
        with pytest.raises(UpstreamError):
            await functions.fetch(AWKWARD + "raises", {"name": name})
    with pytest.raises(UpstreamError):
        await functions.fetch(AWKWARD + "raises_in_a_thread", {"name": "ValueError"})
    assert [(fields["function"], fields["error"].split(":")[0]) for fields in log.of("function_raised")] == [
        (AWKWARD + "raises", "ValueError"),
        (AWKWARD + "raises", "KeyError"),
        (AWKWARD + "raises_in_a_thread", "ValueError"),
    ]


async def test_an_upstream_error_of_its_own_says_itself_whether_to_try_again(functions: Functions, log: Log) -> None:
    with pytest.raises(UpstreamError) as raised:
        await functions.fetch(AWKWARD + "raises", {"name": "UpstreamError"})
    assert (raised.value.message, raised.value.status) == (f"function {AWKWARD}raises: gone", 410)
    assert not raised.value.retryable
    with pytest.raises(UpstreamError) as raised:
        await functions.fetch(AWKWARD + "raises", {"name": "Busy"})
    assert (raised.value.retryable, raised.value.retry_after_ms) == (True, 1500.0)
    assert log.faults() == []


async def test_a_function_that_cancels_itself_does_not_cancel_its_caller(functions: Functions) -> None:
    with pytest.raises(UpstreamError, match="raised CancelledError"):
        await functions.fetch(AWKWARD + "cancels_itself", {})
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


# --- mutations -------------------------------------------------------------------------------------------------------


async def test_a_mutation_is_given_its_variables_and_its_id_if_it_takes_it(functions: Functions) -> None:
    variables = {"id": 7, "name": "n"}
    for function, given in (
        ("renames", b'{"id":7,"name":"n","by":"m-1"}'),
        ("renames_without", b'{"id":7,"name":"n"}'),
        ("renames_whatever", b'{"id":7,"name":"n","mutation_id":"m-1"}'),
    ):
        for _ in range(2):
            assert await functions.mutate(AWKWARD + function, variables, "m-1") == given


@pytest.mark.parametrize(
    ("name", "status", "retryable"),
    [("ValueError", 500, False), ("RuntimeError", 500, True), ("UpstreamError", 410, False), ("Offline", None, True)],
)
async def test_what_a_mutation_raises_is_its_failure_and_only_an_own_error_says_that_nobody_answered(
    functions: Functions, name: str, status: int | None, retryable: bool
) -> None:
    with pytest.raises(UpstreamError) as raised:
        await functions.mutate(AWKWARD + "raises", {"name": name}, "m-1")
    assert (raised.value.status, raised.value.retryable) == (status, retryable)


async def test_a_mutation_whose_variables_do_not_fit_or_that_takes_too_long_has_failed(
    functions: Functions, gate: Callable[[str], Gate]
) -> None:
    with pytest.raises(UpstreamError, match="unexpected keyword argument 'colour'") as raised:
        await functions.mutate(AWKWARD + "renames", {"id": 7, "name": "n", "colour": "red"}, "m-1")
    assert (raised.value.status, raised.value.retryable) == (500, False)
    gate("slow")
    with pytest.raises(UpstreamError, match="no answer within") as raised:
        await functions.mutate(AWKWARD + "waits", {"gate": "slow"}, "m-1", timeout_ms=50)
    assert (raised.value.status, raised.value.retryable) == (500, True)


# --- those that block ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["blocks", "blocks_in_a_task"])
async def test_a_coroutine_that_blocks_is_reported_while_it_does_and_holds_nobody_up(
    functions: Functions, log: Log, gate: Callable[[str], Gate], function: str
) -> None:
    first = gate("first")
    running = asyncio.create_task(functions.fetch(AWKWARD + function, {"gate": "first"}))
    report = await log.told("function_blocks", AWKWARD + function)  # this loop runs
    assert report["level"] == "warning"
    assert report["ms"] >= WATCHDOG_S * 1000
    assert not running.done()
    first.open()
    assert await running == b'"blocked"'
    assert len(log.of("function_blocks")) == 1
    assert log.faults() == []


async def test_a_call_is_reported_once(functions: Functions, log: Log, gate: Callable[[str], Gate]) -> None:
    first, second, other = gate("first"), gate("second"), gate("other")
    function = AWKWARD + "blocks_twice"
    running = asyncio.create_task(functions.fetch(function, {"first": "first", "second": "second"}))
    await log.told("function_blocks", function)
    first.open()
    await passed(second.reached)
    reducing = asyncio.to_thread(functions.reduce, AWKWARD + "waits_at_a_gate", None, Event(data="other"))
    reduced = asyncio.create_task(reducing)
    await log.told(
        "function_blocks", AWKWARD + "waits_at_a_gate"
    )  # began later: the second would have been told before
    second.open()
    other.open()
    await asyncio.gather(running, reduced)
    assert len([line for line in log.of("function_blocks") if line["function"] == function]) == 1


async def test_one_that_has_stopped_blocking_when_somebody_looks_is_reported_too(
    functions: Functions, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions._watchdog, "wake", lambda: None)
    monkeypatch.setattr(function_loop_module, "WATCHDOG_S", 0.0)
    assert await functions.fetch(SAMPLE + "total", {"a": 1, "b": 1}) == b'{"total":2}'
    assert [line["function"] for line in log.of("function_blocks")] == [SAMPLE + "total"]


async def test_one_that_waits_or_has_a_thread_is_not_reported(
    functions: Functions, log: Log, gate: Callable[[str], Gate]
) -> None:
    waiting, threaded, blocking = gate("waiting"), gate("threaded"), gate("blocking")
    tasks = [
        asyncio.create_task(functions.fetch(AWKWARD + "waits", {"gate": "waiting"})),
        asyncio.create_task(functions.fetch(AWKWARD + "blocks_a_thread", {"gate": "threaded"})),
    ]
    await passed(waiting.reached)
    await passed(threaded.reached)
    tasks.append(asyncio.create_task(functions.fetch(AWKWARD + "blocks", {"gate": "blocking"})))
    await log.told("function_blocks", AWKWARD + "blocks")
    for each in (waiting, threaded, blocking):
        each.open()
    assert [orjson.loads(json) for json in await asyncio.gather(*tasks)] == ["waited", "harbor-function", "blocked"]
    assert [fields["function"] for fields in log.of("function_blocks")] == [AWKWARD + "blocks"]


async def test_one_that_takes_too_long_is_cancelled(
    functions: Functions, log: Log, gate: Callable[[str], Gate]
) -> None:
    first = gate("first")
    with pytest.raises(UpstreamError) as raised:
        await functions.fetch(AWKWARD + "waits", {"gate": "first"}, timeout_ms=50)
    assert raised.value.message == f"function {AWKWARD}waits: no answer within 0.05 s"
    assert raised.value.retryable
    if first.reached.is_set():
        await passed(first.left)
    assert log.faults() == []


async def test_cancelling_a_fetch_cancels_its_function(
    functions: Functions, log: Log, gate: Callable[[str], Gate]
) -> None:
    first = gate("first")
    running = asyncio.create_task(functions.fetch(AWKWARD + "waits", {"gate": "first"}))
    await passed(first.reached)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await passed(first.left)
    assert log.faults() == []


async def test_a_loop_that_is_stuck_is_replaced(functions: Functions, log: Log, gate: Callable[[str], Gate]) -> None:
    first, second = gate("first"), gate("second")
    before = await functions.fetch(AWKWARD + "loop_thread", {})
    thread = functions._loop.thread  # type: ignore[union-attr]
    waiting = asyncio.create_task(functions.fetch(AWKWARD + "waits", {"gate": "second"}))
    await passed(second.reached)
    with pytest.raises(UpstreamError, match="no answer within") as raised:
        await functions.fetch(AWKWARD + "blocks", {"gate": "first"}, timeout_ms=TIME_OUT_MS)
    assert raised.value.retryable
    assert await functions.fetch(AWKWARD + "loop_thread", {}) != before
    assert log.of("function_stuck") == [
        {"level": "error", "exc_info": None, "function": AWKWARD + "blocks", "stuck": 1},
    ]
    # What was on the old loop goes on when it can, and the old loop ends with it.
    assert thread.is_alive()
    first.open()
    second.open()
    assert await waiting == b'"waited"'
    assert await asyncio.to_thread(ended, thread)


async def test_a_loop_stuck_outside_of_tasks_is_found_when_it_does_not_hear(
    functions: Functions, log: Log, gate: Callable[[str], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = gate("first")
    with pytest.raises(UpstreamError):
        await functions.fetch(AWKWARD + "blocks_in_a_callback", {"gate": "first"}, timeout_ms=TIME_OUT_MS)
    assert first.reached.is_set()
    monkeypatch.setattr(function_loop_module, "DEAF_S", 0.0)
    assert await functions.fetch(SAMPLE + "total", {"a": 1, "b": 1}) == b'{"total":2}'
    assert [fault["event"] for fault in log.faults()] == ["function_stuck"]


async def test_no_more_loops_are_given_up_than_can_be_borne(
    functions: Functions, log: Log, gate: Callable[[str], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions_module, "MAX_STUCK_LOOPS", 1)
    first, second = gate("first"), gate("second")
    for name in ("first", "second"):
        await functions.fetch(SAMPLE + "total", {"a": 1, "b": 1})
        with pytest.raises(UpstreamError):
            await functions.fetch(AWKWARD + "blocks", {"gate": name}, timeout_ms=TIME_OUT_MS)
    waiting = asyncio.create_task(functions.fetch(SAMPLE + "total", {"a": 1, "b": 1}, timeout_ms=30_000))
    assert [line["stuck"] for line in log.of("function_stuck")] == [1, 2]
    assert functions._loop is not None
    assert functions._loop.blocker() == AWKWARD + "blocks"  # in spite of that, it is the one that is kept
    first.open()
    second.open()
    assert await waiting == b'{"total":2}'


async def test_threads_that_are_stuck_are_replaced(functions: Functions, log: Log, gate: Callable[[str], Gate]) -> None:
    first = gate("first")
    function = AWKWARD + "blocks_a_thread"
    lost = THREADS + 2
    refused = await asyncio.gather(
        *[functions.fetch(function, {"gate": "first"}, timeout_ms=TIME_OUT_MS) for _ in range(THREADS)],
        return_exceptions=True,
    )
    refused += await asyncio.gather(
        *[functions.fetch(function, {"gate": "first"}, timeout_ms=TIME_OUT_MS) for _ in range(lost - THREADS)],
        return_exceptions=True,
    )
    assert {str(error) for error in refused} == {f"function {function}: no answer within {TIME_OUT_MS / 1000:g} s"}
    assert functions._threads.lost == lost
    assert [line["stuck"] for line in log.of("function_stuck")] == list(range(1, lost + 1))
    assert await functions.fetch(AWKWARD + "thread_name", {}) == b'"harbor-function"'
    stuck = [thread for thread in threading.enumerate() if thread.name == "harbor-function"]
    first.open()
    functions.close()
    assert all(await asyncio.gather(*[asyncio.to_thread(ended, thread) for thread in stuck]))
    assert functions._threads.lost == 0


async def test_who_waits_for_a_thread_too_long_never_gets_one(
    functions: Functions, log: Log, gate: Callable[[str], Gate]
) -> None:
    late = gate("late")
    names = [f"busy {n}" for n in range(THREADS)]
    gates = [gate(name) for name in names]
    busy = [asyncio.create_task(functions.fetch(AWKWARD + "blocks_a_thread", {"gate": name})) for name in names]
    for each in gates:
        await passed(each.reached)
    with pytest.raises(UpstreamError, match=r"no answer within 0\.05 s"):
        await functions.fetch(AWKWARD + "blocks_a_thread", {"gate": "late"}, timeout_ms=50)
    for each in gates:
        each.open()
    await asyncio.gather(*busy)
    assert await functions.fetch(AWKWARD + "thread_name", {}) == b'"harbor-function"'
    assert not late.reached.is_set()
    assert functions._threads.lost == 0
    assert log.faults() == []


async def test_who_waits_for_a_thread_gets_that_of_one_that_is_given_up(
    functions: Functions, gate: Callable[[str], Gate]
) -> None:
    names = [f"busy {n}" for n in range(THREADS)]
    gates = [gate(name) for name in names]
    busy = [functions.fetch(AWKWARD + "blocks_a_thread", {"gate": name}, timeout_ms=TIME_OUT_MS) for name in names]
    stuck = asyncio.gather(*busy, return_exceptions=True)
    for each in gates:
        await passed(each.reached)
    assert await functions.fetch(AWKWARD + "thread_name", {}) == b'"harbor-function"'
    assert {type(error) for error in await stuck} == {UpstreamError}


def lose_all(threads: FunctionThreads, gate: Gate) -> list[Job[None]]:
    jobs = []
    for _ in range(THREADS + MAX_LOST):
        gate.reached.clear()
        jobs.append(threads.start(gate.block))
        assert gate.reached.wait(30)
        assert threads.give_up(jobs[-1])
        assert not threads.give_up(jobs[-1])
    assert (threads.lost, threads._serving) == (THREADS + MAX_LOST, 0)
    return jobs


def test_no_more_threads_are_replaced_than_can_be_borne(gate: Callable[[str], Gate]) -> None:
    threads, first = FunctionThreads(), gate("first")
    jobs = lose_all(threads, first)
    late, too_late = threads.start(lambda: 1), threads.start(lambda: 2)
    assert not threads.give_up(too_late)
    assert threads._serving == 0
    first.open()
    for job in jobs:
        job.future.result(30)
    assert late.future.result(30) == 1
    assert too_late.future.cancelled()
    with threads._lock:
        assert (threads.lost, threads._serving) == (0, THREADS)
    threads.close()


def test_threads_that_come_back_after_closing_end(gate: Callable[[str], Gate]) -> None:
    threads, first, before = FunctionThreads(), gate("first"), set(threading.enumerate())
    lose_all(threads, first)
    lost = set(threading.enumerate()) - before
    assert len(lost) == THREADS + MAX_LOST
    threads.close()
    first.open()
    assert all(ended(thread) for thread in lost)


async def test_closing_cancels_what_runs_and_ends_the_threads(log: Log, gate: Callable[[str], Gate]) -> None:
    functions, first = Functions(log), gate("first")
    await functions.fetch(AWKWARD + "thread_name", {})
    running = asyncio.create_task(functions.fetch(AWKWARD + "waits", {"gate": "first"}))
    await passed(first.reached)
    threads = [functions._loop.thread, functions._watchdog._thread]  # type: ignore[union-attr]
    threads += [thread for thread in threading.enumerate() if thread.name == "harbor-function"]
    functions.close()
    with pytest.raises(UpstreamError, match="raised CancelledError"):
        await running
    for thread in threads:
        assert thread is not None
        assert await asyncio.to_thread(ended, thread)


# --- reducers --------------------------------------------------------------------------------------------------------


def test_reducers(functions: Functions, log: Log) -> None:
    event = Event(event="count:up", data={})
    assert functions.reduce(SAMPLE + "count", {"n": 1}, event) == {"n": 2, "last": "count:up"}
    assert functions.reduce(SAMPLE + "count", None, Event(event="e", data={"nothing": True})) is None
    assert functions.reduce(SAMPLE + "count", None, Event(event="e", data={"null": True})) is NULL
    assert log.faults() == []


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("edits_and_fails", "raised KeyError: 'id'"),
        ("exits", "raised SystemExit: 1"),
        ("gives_a_set", "gave what is no JSON: Type is not JSON serializable: set"),
        ("is_a_coroutine_after_all", "gave what would have to be awaited"),
        ("too_few", "raised TypeError: too_few() takes 1 positional argument but 2 were given"),
    ],
)
def test_a_reducer_that_fails_is_logged_and_changes_nothing(
    functions: Functions, log: Log, function: str, reason: str
) -> None:
    reference = AWKWARD + function
    for _ in range(2):
        with pytest.raises(OperationError) as raised:
            functions.reduce(reference, {"tasks": [1]}, Event(data={}))
        assert raised.value.message == f"function {reference} {reason}"
    (fault,) = log.faults()
    assert (fault["event"], fault["function"]) == ("function_raised", reference)
    assert fault["exc_info"] is not None


SHAPING = "tests.app.shaping_app:to_celsius"


def test_transforms(functions: Functions, log: Log) -> None:
    told = {"event": "reading", "channel": "readings", "captures": {}, "id": None}
    assert functions.transform(SHAPING, {**told, "data": {"id": 1, "f": 212}}) == (
        b'{"id":1,"c":100,"by":"reading readings"}'
    )
    assert functions.transform(SHAPING, {**told, "data": {"ask": "leave out"}}) is None
    assert functions.transform(SHAPING, {**told, "data": {"ask": "null"}}) == b"null"
    assert log.faults() == []


@pytest.mark.parametrize(
    ("ask", "reason"),
    [
        ("raise", "raised ValueError: no thermometer"),
        ("steer", "raised SystemExit: 1"),
        ("no json", "gave what is no JSON: Type is not JSON serializable: set"),
    ],
)
def test_a_transform_that_fails_says_why(functions: Functions, ask: str, reason: str) -> None:
    with pytest.raises(OperationError) as raised:
        functions.transform(SHAPING, {"event": "e", "data": {"ask": ask}})
    assert raised.value.message == f"function {SHAPING} {reason}"


def test_a_transform_that_is_not_there_says_so(functions: Functions) -> None:
    with pytest.raises(OperationError, match=r"function tests\.app\.shaping_app:nothing cannot be imported"):
        functions.transform("tests.app.shaping_app:nothing", {"event": "e", "data": 1})


def test_a_reducer_that_edits_and_fails_leaves_the_entry_as_it_was(functions: Functions) -> None:
    def reduce(reference: str, old: Any, event: dict[str, Any]) -> Any:
        return functions.reduce(reference, old, Event(event))

    value = Value.from_object({"tasks": [1, 2]})
    failing = Call(AWKWARD + "edits_and_fails", b'{"event":"e","data":{"id":1},"captures":{},"id":null}')
    outcome = apply_all([failing, failing], value, reduce)
    assert outcome.dropped == ["function", "function"]
    assert not outcome.changed
    assert outcome.value is value
    assert value.object() == {"tasks": [1, 2]}


def test_a_reducer_that_blocks_is_reported_while_it_does_and_measured(
    functions: Functions, log: Log, gate: Callable[[str], Gate]
) -> None:
    reference = AWKWARD + "waits_at_a_gate"
    first = gate("first")

    def open_when_told() -> None:
        log.wait_for("function_blocks", reference)
        first.open()

    opener = threading.Thread(target=open_when_told)
    opener.start()
    assert functions.reduce(reference, {"n": 1}, Event(data="first")) == {"n": 1}
    opener.join(30)
    (blocks, slow) = log.lines
    assert (blocks[0], slow[0]) == ("function_blocks", "function_slow")
    assert blocks[1]["level"] == slow[1]["level"] == "warning"
    assert slow[1]["function"] == reference
    assert slow[1]["ms"] >= blocks[1]["ms"] >= WATCHDOG_S * 1000


def test_an_event_is_read_by_names_or_attributes() -> None:
    event = Event(event="task:created", data={"id": 1}, captures={"id": "7"}, id=None)
    assert (event.event, event.data["id"], event.captures, event.id) == ("task:created", 1, {"id": "7"}, None)
    assert event["data"] is event.data
    with pytest.raises(AttributeError, match="an event has no 'item'"):
        _ = event.item
    assert (repr(NULL), repr(ABSENT)) == ("NULL", "ABSENT")
