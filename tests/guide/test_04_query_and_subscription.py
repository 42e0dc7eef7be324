"""Pattern 4: the first subscriber has the query fetched, and then it stays live: no gap and no duplicate, whatever comes meanwhile."""

from typing import Any

import pytest

from tests.live import Client, LiveCluster

pytestmark = pytest.mark.cluster
CHANNEL = "channel:2:messages"


async def test_events_that_arrive_during_the_fetch_are_neither_lost_nor_doubled(
    cluster: LiveCluster, client: Client, upstream: Any
) -> None:
    upstream.do(lambda up: up.control({"latency_ms": 400}))
    view = await client.subscribe("m", wait=False, key=["messages", "2"])
    await client.until(lambda: upstream.do(lambda up: up.hub.joined().get(CHANNEL, 0)))
    sent = [upstream.do(lambda up, n=n: _created(up, f"during {n}")) for n in range(20)]
    upstream.do(lambda up: up.control({"latency_ms": 0}))
    await client.until(lambda: len(view.data("messages", "2")) >= 20)
    edited = upstream.do(lambda up: _emitted(up, up.tracker.update_message(sent[3], {"content": "edited"})))
    upstream.do(lambda up: up.emit(up.tracker.delete_message(sent[5])))
    sent.append(upstream.do(lambda up: _created(up, "after")))
    truth = upstream.do(lambda up: up.tracker.message_list("2"))
    await client.until(lambda: view.data("messages", "2") == truth)
    ids = [message["id"] for message in truth]
    assert len(ids) == len(set(ids))
    assert edited["content"] == "edited"


def _created(up: Any, text: str) -> str:
    return str(_emitted(up, up.tracker.create_message({"channelId": "2", "content": text}))["id"])


def _emitted(up: Any, made: Any) -> Any:
    shown, emissions = made
    up.emit(emissions)
    return shown
