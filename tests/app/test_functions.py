"""Functions of users: what they give, what they raise, and that one that blocks holds nobody up."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.app.functions import ABSENT, NULL, Event, Functions
from cluster.errors import HarborError, OperationError, UpstreamError
from tests.app import sample_app

HERE = "tests.app.sample_app:"


class Log:
    """A log to be looked at."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.written = threading.Event()

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))
        self.written.set()

    warning = error

    def names(self) -> list[str]:
        return [event for event, _ in self.lines]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def functions(log: Log) -> Iterator[Functions]:
    made = Functions(log)
    yield made
    sample_app.RELEASE.set()
    made.close()


async def test_coroutines_and_plain_functions_give_json(functions: Functions) -> None:
    assert await functions.fetch(HERE + "total", {"a": 1, "b": 2}, ABSENT, 5_000) == b'{"total":3}'
    assert await functions.fetch(HERE + "plain", {"name": "you"}) == b'{"hello":"you"}'
    assert await functions.fetch(HERE + "numbers", {"upto": 5}, 3) == b'[{"id":3},{"id":4}]'


@pytest.mark.parametrize(
    ("name", "reason"),
    [("raises", "raised ValueError: no such thing"), ("no json", "no JSON"), ("deep", "")],
)
async def test_what_goes_wrong_is_the_entrys_error(functions: Functions, log: Log, name: str, reason: str) -> None:
    with pytest.raises(UpstreamError) as raised:
        await functions.fetch(HERE + "plain", {"name": name})
    assert reason in raised.value.message
    assert HERE + "plain" in raised.value.message
    assert not raised.value.retryable
    assert log.names() == (["function_raised"] if name == "raises" else [])


async def test_a_function_that_is_not_there(functions: Functions) -> None:
    for reference in ("no.such:f", HERE + "nothing", HERE + "RELEASE"):
        with pytest.raises(UpstreamError) as raised:
            await functions.fetch(reference, {})
        assert reference in raised.value.message
        with pytest.raises(HarborError):
            functions.resolve(reference)


async def test_a_coroutine_that_blocks_is_reported_by_name_and_holds_nobody_up(functions: Functions, log: Log) -> None:
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.005)
            beats += 1

    beating = asyncio.create_task(beat())
    assert await functions.fetch(HERE + "blocks", {}) == b"1"
    beating.cancel()
    assert beats > 10
    assert ("function_blocks", {"function": HERE + "blocks", "ms": 50}) in log.lines


async def test_a_coroutine_that_never_ends_times_out_and_others_run_on(functions: Functions, log: Log) -> None:
    sample_app.RELEASE.clear()
    with pytest.raises(UpstreamError, match=r"no answer within 0\.1 s") as raised:
        await functions.fetch(HERE + "stuck", {}, ABSENT, 100)
    assert raised.value.retryable
    assert await functions.fetch(HERE + "total", {"a": 1, "b": 1}, ABSENT, 5_000) == b'{"total":2}'
    assert "function_stuck" in log.names()


def test_reducers(functions: Functions, log: Log) -> None:
    event = Event(event="count:up", data={})
    assert functions.reduce(HERE + "count", {"n": 1}, event) == {"n": 2, "last": "count:up"}
    assert functions.reduce(HERE + "count", None, Event(event="e", data={"nothing": True})) is None
    assert functions.reduce(HERE + "count", None, Event(event="e", data={"null": True})) is NULL
    with pytest.raises(OperationError, match="raised RuntimeError: cannot count"):
        functions.reduce(HERE + "count", None, Event(event="e", data={"fail": True}))
    assert log.names() == ["function_raised"]
    with pytest.raises(AttributeError):
        _ = event.nothing


def test_a_reducer_that_blocks_is_reported_while_it_does(functions: Functions, log: Log) -> None:
    functions._resolved["t:blocks"] = lambda old, event: log.written.wait(5)
    assert functions.reduce("t:blocks", None, Event(event="e", data={})) is True
    assert log.lines[0] == ("function_blocks", {"function": "t:blocks", "ms": 50.0})
