"""Pattern 3: a burst of events reaches a subscriber in order, as a handful of frames that say how many they fold."""

from typing import Any

import pytest

from tests.live import Client, LiveCluster

pytestmark = pytest.mark.cluster
EVENTS = 1000


async def test_a_thousand_events_arrive_in_order_in_a_handful_of_frames(
    cluster: LiveCluster, client: Client, upstream: Any
) -> None:
    view = await client.subscribe("n", key=["notifications"])
    assert view.entries == {}
    frames = client.frames
    upstream.say("notifications", "notification:new", *({"id": f"n{n}", "text": f"number {n}"} for n in range(EVENTS)))
    await client.until(lambda: len(view.data("notifications")) == EVENTS)
    assert [item["id"] for item in view.data("notifications")] == [f"n{n}" for n in range(EVENTS)]
    assert view.coalesced == EVENTS
    assert client.frames - frames <= 10
