"""What an ingestor's actor says of its sources: only of those it reads, since the worst that any ingestor says is what counts.

And how it asks for what was missed.
"""

import asyncio
import itertools
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.actors import ingestion
from cluster.actors.ingestion import IngestionActor
from cluster.actors.specification import encode
from cluster.config import load_mapping
from cluster.core.declared_query import Response
from cluster.core.ingestion_state import AskMissed, Stop
from cluster.core.rule import Envelope
from cluster.errors import UpstreamError
from cluster.observability.metrics import decode
from cluster.sources import SourceState
from tests.core.test_hand_over import CHANNEL, DOCUMENT, WHOLE, Ingestor, asked, joined

GAUGES = {"source_connected", "source_state", "source_lag_seconds"}


@pytest.fixture
async def actor(without_ray: None) -> IngestionActor:
    made = object.__new__(IngestionActor)
    await made.__init__(encode(load_mapping(DOCUMENT, {}), 2), 0)
    return made


async def said(actor: IngestionActor, by: Ingestor, state: SourceState) -> dict[str, float]:
    """Return the numbers of the source, with a machine and a source as they are."""
    actor.machine, actor._sources["events"].state = by.machine, state
    return {each.name: each.value for each in decode(await actor.samples()) if "events" in each.labels}


async def test_a_source_that_was_handed_over_is_its_new_readers(actor: IngestionActor) -> None:
    first, second = joined(WHOLE)
    before = await said(actor, first, SourceState.CONNECTED)
    assert before.keys() >= GAUGES
    assert before["source_connected"] == 1
    second.demand(1, 2, CHANNEL)
    asked(second, first)
    assert not first.machine.reads("events")
    after = await said(actor, first, SourceState.DISCONNECTED)
    assert not after.keys() & GAUGES
    assert after["events_received_total"] == before["events_received_total"] == 2, "what was counted stays"


# --- what was missed ---

ASKED = AskMissed("events", 1, 5)
LATER, NEVER = UpstreamError("http 503", retryable=True), UpstreamError("http 410", retryable=False)
ANSWER = Response(b'[{"event":"add","data":6,"id":6}]')


class Endpoint:
    """Answers one after the other, and for ever as it did last."""

    name = "events.missed"

    def __init__(self, *answers: Response | UpstreamError) -> None:
        self.answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.asked = 0

    async def fetch(self, _: object) -> Response:
        self.asked += 1
        answer = next(self.answers)
        if isinstance(answer, UpstreamError):
            raise answer
        return answer


class Asking:
    """The part of a machine that waits for answers, as long as `waits`."""

    def __init__(self) -> None:
        self.waits = True
        self.told: list[Any] = []

    def awaits(self, _: AskMissed) -> bool:
        return self.waits

    def missed(self, _: AskMissed, events: Sequence[Envelope] | None, __: float) -> list[Any]:
        self.told.append(None if events is None else [each.id for each in events])
        return []


async def asking(without_ray: None, *answers: Response | UpstreamError) -> tuple[Any, Endpoint, Asking]:
    source = {
        **DOCUMENT["sources"]["events"],
        "missed": "http://upstream/{last_event_id}",
        "envelope": {"event": "event", "data": "data", "channel": "channel", "id": "id"},
    }  # type: ignore[index]
    actor: Any = object.__new__(IngestionActor)
    await actor.__init__(encode(load_mapping({**DOCUMENT, "sources": {"events": source}}, {}), 2), 0)
    endpoint, machine = Endpoint(*answers), Asking()
    _, *others = actor._missed["events"]
    actor._missed["events"] = (endpoint, *others)
    actor.machine.awaits, actor.machine.missed = machine.awaits, machine.missed
    return actor, endpoint, machine


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses, which are over at once."""
    found: list[float] = []
    sleep = asyncio.sleep

    async def pause(delay_s: float) -> None:
        found.append(delay_s)
        await sleep(0)

    monkeypatch.setattr(ingestion.asyncio, "sleep", pause)
    return found


async def test_what_was_missed_is_asked_for_until_the_endpoint_is_there_again(
    without_ray: None, pauses: list[float]
) -> None:
    actor, endpoint, machine = await asking(without_ray, *[LATER] * 40, ANSWER)
    await actor._ask_missed(ASKED)
    assert machine.told == [[6]]
    assert endpoint.asked == 41
    for least, pause in zip([0.5, 1.0, 2.0, 4.0, *[15.0] * 36], pauses, strict=True):
        assert least <= pause <= 2 * least
    assert len(set(pauses)) > 30, "no two ingestors in step"


@pytest.mark.parametrize("answer", [NEVER, Response(b'{"no":"list"}')])
async def test_what_an_endpoint_does_not_say_is_lost_at_once(
    without_ray: None, pauses: list[float], answer: Response | UpstreamError
) -> None:
    actor, endpoint, machine = await asking(without_ray, answer, ANSWER)
    await actor._ask_missed(ASKED)
    assert (machine.told, endpoint.asked, pauses) == ([None], 1, [])


async def test_nobody_asks_on_where_the_answer_is_not_waited_for(without_ray: None, pauses: list[float]) -> None:
    actor, endpoint, machine = await asking(without_ray, LATER)
    actor.effect(ASKED)
    (first,) = actor._asking.values()
    while endpoint.asked < 3:
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)
    assert actor._unanswered == {"events": "what was missed is not known yet: http 503"}
    machine.waits = False
    await first
    machine.waits = True
    actor.effect(ASKED)
    (second,) = actor._asking.values()
    actor.effect(AskMissed("events", 2, 5))
    (third,) = actor._asking.values()
    await asyncio.wait([second])
    assert (second.cancelled(), third.done()) == (True, False)
    actor._running["events"] = actor.spawn(asyncio.Event().wait())
    actor.effect(Stop("events"))
    await asyncio.wait([third])
    assert (third.cancelled(), actor._unanswered) == (True, {})
