"""`POST /v1/backup`: the order of its steps, what it streams, and how it fails."""

from typing import Any

import pytest

from cluster.core.placement import assign_slots
from cluster.errors import ErrorCode, UnavailableError
from cluster.wire.backup import Done, End, Failed, Frames, Part, Refused, Start, Whole


async def streamed(harness: Any) -> list[Any]:
    async with harness.http.post("/v1/backup") as response:
        assert response.status == 200, await response.text()
        return list(Frames().feed(await response.read()))


async def refusal(harness: Any) -> tuple[int, str, str]:
    async with harness.http.post("/v1/backup") as response:
        body = await response.json()
        return response.status, body["error"]["code"], body["error"]["message"]


async def test_each_step_is_made_by_all_shards_before_the_next(harness: Any) -> None:
    frames = await streamed(harness)
    start, *parts, end = frames
    assert isinstance(start, Start)
    assert (start.cluster, start.shards, end) == ("test", [0, 1], End())
    assert start.owners == list(assign_slots(range(2), 1).owners)
    assert parts == [
        Part(0, b"rows of 0"),
        Part(1, b"rows of 1"),
        Part(0, b"rows of 0"),
        Whole(0, 5, 1, 0.0, {}, ""),
        Part(1, b"rows of 1"),
        Whole(1, 5, 1, 0.0, {}, ""),
    ]
    steps = [(step, shard) for shard, step, _, _ in harness.steps if step != "piece"]
    assert [step for step, _ in steps] == ["begin", "begin", "take", "take", "settle", "settle", "drop", "drop"]
    assert len({backup for _, _, backup, _ in harness.steps}) == 1


@pytest.mark.parametrize("failing", ["begin", "take", "settle"])
async def test_a_shard_that_cannot_fails_it_before_the_first_byte(harness: Any, failing: str) -> None:
    async def copy(shard: int, step: str, backup: str, number: int) -> Any:
        harness.steps.append((shard, step, backup, number))
        if (shard, step) == (1, failing):
            return Refused(ErrorCode.UNAVAILABLE, "shard-1: No space left on device")
        return Done(1)

    harness.server._routes["POST", "/v1/backup"].__self__._copy = copy
    assert await refusal(harness) == (503, "UNAVAILABLE", "shard-1: No space left on device")
    assert [shard for shard, step, _, _ in harness.steps if step == "drop"] == [0, 1]


async def test_a_shard_that_dies_meanwhile_ends_the_stream_with_a_word(harness: Any) -> None:
    async def copy(shard: int, step: str, backup: str, number: int) -> Any:
        if (shard, step) == (1, "piece"):
            raise UnavailableError("shard-1 does not answer")
        return await harness.copy(shard, step, backup, number)

    harness.server._routes["POST", "/v1/backup"].__self__._copy = copy
    frames = await streamed(harness)
    assert frames[-1] == Failed("UNAVAILABLE", "shard-1 does not answer")


@pytest.mark.parametrize("moved", ["begin", "take", "settle"])
async def test_slots_that_move_meanwhile_fail_it(harness: Any, moved: str) -> None:
    async def copy(shard: int, step: str, backup: str, number: int) -> Any:
        answer = await harness.copy(shard, step, backup, number)
        return Done(2) if (shard, step) == (1, moved) else answer

    harness.server._routes["POST", "/v1/backup"].__self__._copy = copy
    assert (await refusal(harness))[1:] == ("UNAVAILABLE", "slots move: begin the backup anew")


@pytest.mark.parametrize("roles", [[], ["none"], ["standby"]])
async def test_a_shard_that_nobody_leads_is_waited_for(harness: Any, roles: list[str]) -> None:
    async def describe() -> dict[str, Any]:
        shards = [{"id": 0, "role": "primary"}, *({"id": 1, "role": role} for role in roles)]
        return {"name": "test", "ready": False, "waits_for": ["ingestor-0"], "shards": shards}

    harness.server._routes["POST", "/v1/backup"].__self__._describe = describe
    assert await refusal(harness) == (503, "UNAVAILABLE", "not all shards are there: waiting for shard-1")
    assert harness.steps == []


async def test_a_standby_that_is_not_there_is_not_waited_for(harness: Any) -> None:
    async def describe() -> dict[str, Any]:
        shards = [{"id": 0, "role": "primary"}, {"id": 1, "role": "primary"}]
        return {"name": "test", "ready": False, "waits_for": ["shard-1-b"], "shards": shards}

    harness.server._routes["POST", "/v1/backup"].__self__._describe = describe
    assert (await streamed(harness))[-1] == End()
