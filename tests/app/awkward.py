"""Functions that do what functions should not; tests run them by name."""

import asyncio
import threading
from collections.abc import Awaitable
from functools import partial
from typing import Any

from cluster.app import Event
from cluster.errors import UpstreamError


class Gate:
    """What a function waits at until the test opens it, in every way there is to wait."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.left = threading.Event()
        self._open = threading.Event()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def block(self) -> None:
        self.reached.set()
        assert self._open.wait(30)

    async def wait(self) -> None:
        event = asyncio.Event()
        self._waiting.append((asyncio.get_running_loop(), event))
        self.reached.set()
        try:
            await event.wait()
        finally:
            self.left.set()

    def open(self) -> None:
        self._open.set()
        for loop, event in self._waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)


gates: dict[str, Gate] = {}


async def blocks(gate):
    gates[gate].block()
    return "blocked"


async def blocks_twice(first, second):
    gates[first].block()
    await asyncio.sleep(0)
    gates[second].block()
    return "blocked"


async def blocks_in_a_task(gate):
    async def child():
        gates[gate].block()

    await asyncio.gather(child(), asyncio.sleep(0))
    return "blocked"


async def blocks_in_a_callback(gate):
    asyncio.get_running_loop().call_soon(gates[gate].block)
    await asyncio.Event().wait()


async def waits(gate):
    await gates[gate].wait()
    return "waited"


def blocks_a_thread(gate):
    gates[gate].block()
    return threading.current_thread().name


def thread_name():
    return threading.current_thread().name


async def loop_thread():
    return str(id(threading.current_thread()))


async def _later(value):
    await asyncio.sleep(0)
    return value


def in_disguise(value) -> Awaitable[Any]:
    return _later(value)


part = partial(_later, 7)


class Callable:
    @staticmethod
    async def method():
        return "method"

    async def __call__(self):
        return "called"


instance = Callable()
nothing_to_call = 7


class WordlessError(Exception):
    def __str__(self):
        raise RuntimeError("no words")


ERRORS: dict[str, BaseException] = {
    "ValueError": ValueError("too\nbad"),
    "KeyError": KeyError("name"),
    "RuntimeError": RuntimeError("down"),
    "TimeoutError": TimeoutError("theirs"),
    "StopIteration": StopIteration(3),
    "CancelledError": asyncio.CancelledError(),
    "SystemExit": SystemExit(3),
    "WordlessError": WordlessError(),
    "UpstreamError": UpstreamError("gone", status=410, retryable=False),
    "Busy": UpstreamError("busy", status=429, retry_after_ms=1500.0),
    "Offline": UpstreamError("nobody there"),
}


async def raises(name):
    raise ERRORS[name]


def raises_in_a_thread(name):
    raise ERRORS[name]


async def raises_in_a_task(name):
    await asyncio.gather(raises(name))


async def renames(id, name, mutation_id):
    return {"id": id, "name": name, "by": mutation_id}


def renames_without(id, name):
    return {"id": id, "name": name}


def renames_whatever(**given):
    return given


async def cancels_itself():
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


def _nested(levels):
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


_circle: list[Any] = []
_circle.append(_circle)
RESULTS: dict[str, Any] = {
    "set": {1},
    "deep": _nested(255),
    "deepest": _nested(254),
    "circle": _circle,
    "large": "x" * 100,
    "surrogate": "\ud800",
    "null": None,
}


def gives(name):
    return RESULTS[name]


async def gives_on_the_loop(name):
    return RESULTS[name]


# --- reducers that tests run -----------------------------------------------------------------------------------------


def edits_and_fails(old, event):
    old["tasks"].clear()
    event["data"] = None
    raise KeyError("id")


def gives_a_set(old, event):
    return {"tags": {1}}


def is_a_coroutine_after_all(old, event):
    return _later(old)


def exits(old, event):
    raise SystemExit(1)


def waits_at_a_gate(old, event: Event):
    gates[event.data].block()
    return old


def too_few(old):
    return old
