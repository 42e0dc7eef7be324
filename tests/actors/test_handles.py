"""Calls to actors; and what Ray reports is said as commands say things."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from ray._private import worker

from cluster.actors import handles

DIED = (
    "A worker died or was killed while executing a task by an unexpected system error. To troubleshoot the problem, check the logs.\n"
    "Worker ID: 2bca98 Worker PID: 7509 Worker exit type: SYSTEM_ERROR"
)


def test_a_dead_process_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    handles._tell({"lines": [DIED], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    said = (
        "harbor: ray: A worker died or was killed while executing a task by an unexpected system error (process 7509)\n"
    )
    assert capsys.readouterr() == ("", said)


def test_ray_prints_its_reports_where_they_are_taken() -> None:
    assert "print_to_stdstream" in worker.listen_error_messages.__code__.co_names


async def test_who_is_cancelled_as_the_answer_comes_is_cancelled() -> None:
    peers = object.__new__(handles.Peers)
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    asked = asyncio.Event()

    def remote(*_: object) -> Any:
        asked.set()
        return answer

    peers._handles = {"gateway-0": SimpleNamespace(ask=SimpleNamespace(remote=remote))}
    asking = asyncio.create_task(peers._ask("gateway-0", "status", 5.0))
    await asked.wait()
    answer.set_result(b"")
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
