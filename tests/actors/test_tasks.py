"""A task that nobody can do without ends the process with a reason when it fails, and no other way."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from cluster.actors.tasks import FAILED, Tasks, finish
from cluster.observability.logs import Log

ACTOR = """
import asyncio
from cluster.actors.tasks import Tasks
from cluster.observability.logs import Log, configure

async def fails():
    1 / 0

async def main():
    configure()
    tasks = Tasks(Log(component="actor"))
    tasks.{begins}
    await asyncio.Future()

asyncio.run(main())
"""


@pytest.mark.parametrize("begins", ["spawn(fails())", "later(0.0, lambda: 1 / 0)"])
def test_what_fails_ends_the_process(begins: str) -> None:
    source = ACTOR.format(begins=begins)
    actor = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert actor.returncode == FAILED
    assert "task_failed" in actor.stderr
    assert "ZeroDivisionError" in actor.stderr


async def test_what_ends_or_is_cancelled_does_not() -> None:
    tasks = Tasks(Log())
    done: list[Any] = []

    async def ends() -> None:
        done.append("ends")

    async def waits() -> None:
        try:
            await asyncio.Future()
        finally:
            await asyncio.sleep(0)
            done.append("waits")

    await tasks.spawn(ends())
    waiting = tasks.spawn(waits())
    tasks.later(0.0, lambda: done.append("later"))
    while "later" not in done:
        await asyncio.sleep(0)
    await tasks.stop()
    assert waiting.cancelled()
    assert done == ["ends", "later", "waits"], "it is waited for"
    late = tasks.spawn(waits())
    await asyncio.wait([late])
    assert late.cancelled()
    assert done == ["ends", "later", "waits"], "from then on nothing begins"


async def test_what_is_to_be_done_whole_is_when_its_task_is_cancelled() -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()
    done: list[str] = []

    async def work() -> None:
        begun.set()
        await may_end.wait()
        done.append("work")

    async def waits() -> None:
        try:
            await finish(work())
        finally:
            done.append("waits")

    waiting = asyncio.create_task(waits())
    await begun.wait()
    waiting.cancel()
    asyncio.get_running_loop().call_soon(may_end.set)
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert done == ["work", "waits"]
