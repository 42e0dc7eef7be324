"""`harbor scale`, run as a command before a cluster that says what the test says."""

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.gateway.conftest import Harness


class Scaled(Harness):
    """A cluster that has come to rest with `counts`, whatever it is asked for, after `looks` at it."""

    counts: dict[str, int]
    looks = 0

    async def describe(self) -> dict[str, Any]:
        self.looks -= 1
        rows = {kind: [{"id": n} for n in range(count)] for kind, count in self.counts.items()}
        return {**await super().describe(), **rows, "wanted": self.counts, "scaling": self.looks >= 0}


@pytest.fixture
async def scaled() -> AsyncIterator[Scaled]:
    scaled = Scaled()
    await scaled.start()
    yield scaled
    await scaled.stop()


async def scale(scaled: Scaled, *counts: str) -> tuple[int | None, str, str]:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "cluster.cli", "scale", *counts, "--url", scaled.url)
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


async def test_it_ends_when_there_is_what_was_asked_for(scaled: Scaled) -> None:
    scaled.counts, scaled.looks = {"shards": 8, "ingestors": 2}, 2
    assert await scale(scaled, "shards=8", "ingestors=2") == (0, '{"shards":8,"ingestors":2}\n', "")
    assert scaled.scaled == {"shards": 8, "ingestors": 2}


@pytest.mark.timeout(60)
async def test_it_says_so_when_others_are_wanted_by_now(scaled: Scaled) -> None:
    scaled.counts, scaled.looks = {"shards": 2, "ingestors": 2}, 2
    code, out, err = await scale(scaled, "shards=8", "ingestors=2")
    assert (code != 0, out) == (True, "")
    assert "other numbers are wanted by now" in err
    assert "(CONFLICT)" in err
