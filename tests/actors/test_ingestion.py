"""What an ingestor's actor says of its sources: only of those it reads, since the worst that any ingestor says is what counts."""

import pytest

from cluster.actors.ingestion import IngestionActor
from cluster.actors.specification import encode
from cluster.config import load_mapping
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
