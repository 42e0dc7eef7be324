"""The end of a process is told as it happens, of children and of others, reaped or not."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.actors.process_end import ended


@pytest.fixture
def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])


async def test_it_returns_when_the_process_is_killed_though_nobody_has_reaped_it(
    sleeper: subprocess.Popen[bytes],
) -> None:
    async with asyncio.TaskGroup() as group:
        wait = group.create_task(ended(sleeper.pid))
        done, _ = await asyncio.wait({wait}, timeout=0.05)
        assert not done, "it runs"
        os.kill(sleeper.pid, signal.SIGKILL)
        await asyncio.wait_for(asyncio.shield(wait), 5.0)
    assert sleeper.poll() == -signal.SIGKILL
    await ended(sleeper.pid)  # there is none any more


async def test_a_stopped_process_has_not_ended_and_cancelling_leaves_nothing_open(
    sleeper: subprocess.Popen[bytes],
) -> None:
    open_before = len([*Path("/proc/self/fd").iterdir()])
    os.kill(sleeper.pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ended(sleeper.pid), 0.05)
    assert len([*Path("/proc/self/fd").iterdir()]) == open_before
    sleeper.kill()
    sleeper.wait()
