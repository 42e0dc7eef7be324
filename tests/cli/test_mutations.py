"""`harbor mutations` and `harbor undo`, run as a command before homes that do what the test says."""

import asyncio
import sys
from collections.abc import AsyncIterator

import orjson
import pytest

from cluster.cli import commands
from cluster.core.mutation import SETTLED, Status
from tests.gateway.test_mutations import Homed


@pytest.fixture
async def homed() -> AsyncIterator[Homed]:
    homed = Homed()
    await homed.start()
    yield homed
    await homed.stop()


async def harbor(homed: Homed, *arguments: str) -> tuple[int, str, str]:
    """Run a command; return its exit code and what it wrote, its output being a pipe."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cluster.cli",
        *arguments,
        "--url",
        homed.url,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def test_pending_are_those_that_are_not_settled() -> None:
    assert set(commands.UNSETTLED) == set(Status) - set(SETTLED)


async def test_mutations_are_lines_in_a_pipe(homed: Homed) -> None:
    assert await harbor(homed, "mutations") == (0, "", "")
    await homed.begin(id="m1")
    await homed.begin(id="m2")
    homed.tell("m1", Status.SUCCESS)
    _, out, _ = await harbor(homed, "mutations", "--json")
    assert {orjson.loads(row)["id"] for row in out.splitlines()} == {"m1", "m2"}
    assert await harbor(homed, "mutations", "--pending") == (
        0,
        '{"id":"m2","name":"note","created_at":5,"status":"pending"}\n',
        "",
    )


async def test_undo(homed: Homed) -> None:
    await homed.begin(id="a/b", delay_ms=5)
    code, out, _ = await harbor(homed, "undo", "a/b")
    assert (code, orjson.loads(out)["status"]) == (0, "cancelled")
    assert await harbor(homed, "undo", "none") == (1, "", "harbor: no mutation none (NOT_FOUND)\n")
    await homed.begin(id="sent")
    assert await harbor(homed, "undo", "sent") == (
        1,
        "",
        "harbor: the mutation cannot be undone any more: it is pending (CONFLICT)\n",
    )
