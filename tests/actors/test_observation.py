"""The supervisor's rounds: whoever asks is told something, also where an actor says nothing or a round fails."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from cluster.actors import observation
from cluster.actors.observation import Observation
from cluster.actors.specification import Specification, encode
from cluster.clock import ManualClock
from cluster.config import load_mapping
from cluster.observability.logs import Log
from cluster.observability.metrics import Metrics

DESCRIBED: dict[str, Any] = {
    **{kind: [] for kind in ("shards", "coordinators", "ingestors", "gateways", "sources")},
    "ready": True,
    "waits_for": [],
}


def unused() -> Any:
    raise AssertionError("nobody asks for streams")


def observing(
    measure: Any, actors: Callable[[], list[str]], spec: Any = unused, dead_letters: Any = unused
) -> Observation:
    return Observation(
        ManualClock(),
        Log(),
        spec=spec,
        actors=actors,
        measure=measure,
        describe=lambda: DESCRIBED,
        offline=list,
        dead_letters=dead_letters,
    )


async def test_an_actor_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "MEASURE_S", 0.01)
    asked = []

    async def measure(actor: str) -> bytes:
        asked.append(actor)
        if actor == "shard-0":
            await asyncio.Future()
        return Metrics(component="shard").encode()

    made = observing(measure, lambda: ["shard-0", "shard-1"])
    async with asyncio.timeout(5.0):
        said = await made.observed(["notices"])
    made.stop()
    assert asked == ["shard-0", "shard-1"]
    assert orjson.loads(said) == {"notices": {"notices": []}}


async def test_a_round_that_fails_leaves_nobody_waiting_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def measure(actor: str) -> bytes:
        raise ValueError(actor)

    made = observing(measure, lambda: ["shard-0"])
    async with asyncio.timeout(5.0):
        await made.observed(["notices"])
    assert made._rounds is not None
    await made._rounds
    (said,) = caplog.records
    assert said.getMessage() == "observation_failed"
    assert said.fields == {"error": "ValueError('shard-0')"}  # type: ignore[attr-defined]


async def test_dead_letters_are_asked_for_seldom() -> None:
    asked = []

    async def measure(actor: str) -> bytes:
        return Metrics(component="ingestor").encode()

    async def dead_letters() -> list[Any]:
        asked.append(True)
        return []

    spec = Specification.decode(encode(load_mapping({}, {}), 1))
    made = observing(measure, lambda: ["ingestor-0"], lambda: spec, dead_letters)
    first, second = [await made.observed(["streams"]) for _ in range(2)]
    made.stop()
    assert first == second
    assert len(asked) == 1
