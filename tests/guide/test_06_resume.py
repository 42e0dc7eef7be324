"""Pattern 6: a stream that is cut while its upstream goes on is taken up where it was, by header or by endpoint, each event once."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import Client, LiveCluster, eventually

pytestmark = pytest.mark.cluster
CUT_S = 3.0


@pytest.fixture(params=["Last-Event-ID", "missed"])
def cluster(request: Any, local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    url = upstream.url
    source = {"type": "sse", "url": f"{url}/api/activity/stream", "reconnect": {"initial": "50ms", "max": "500ms"}}
    if request.param == "missed":
        source["missed"] = f"{url}/api/activity/missed?since={{last_event_id}}"
    rules = [
        {"prepend": {"key": ["activity"], "item": "{data}", "max_items": 100, "when_missing": "create"}},
        {"increment": {"key": ["seen"], "at": "/n", "when_missing": "create", "default": {"n": 0}}},
    ]
    live = LiveCluster(
        {"sources": {"activity": source}, "streams": [{"source": "activity", "on": {"activity": rules}}]}
    )
    live.start()
    eventually(lambda: live.supervisor.describe()["sources"][0]["state"] == "connected")
    yield live
    upstream.do(lambda up: up.set_rate(0))
    live.stop()


def codes(client: Client) -> list[str]:
    return [message["code"] for message in client.log if message["type"] == "notice"]


async def test_a_cut_stream_ends_in_the_upstreams_truth(cluster: LiveCluster, upstream: Any) -> None:
    client = await Client.open(cluster.url)
    view = await client.subscribe("a", prefix=[])
    before = upstream.do(lambda up: int(up.tracker.activity[-1]["id"]))
    upstream.do(lambda up: up.set_rate(200))
    await client.until(lambda: view.data("seen")["n"] > 20 if '["seen"]' in view.entries else False)
    upstream.do(lambda up: up.control({"sse": "down"}))
    at_cut = upstream.do(lambda up: int(up.tracker.activity[-1]["id"]))
    await client.until(lambda: "source_disconnected" in codes(client))
    await asyncio.sleep(CUT_S)  # the upstream goes on meanwhile
    upstream.do(lambda up: up.control({"sse": "up"}))
    await client.until(lambda: "source_restored" in codes(client))
    upstream.do(lambda up: up.set_rate(0))
    last = upstream.do(lambda up: int(up.tracker.activity[-1]["id"]))
    assert last > at_cut + 50
    truth = [item["id"] for item in upstream.do(lambda up: up.tracker.activity_list())]
    await client.until(lambda: view.data("seen")["n"] == last - before)
    # Each shard's changes arrive in a frame of their own: the list may be behind the count.
    await client.until(lambda: len(shown := view.data("activity")) and [i["id"] for i in shown] == truth[: len(shown)])
    assert view.data("seen")["n"] == last - before
    assert view.resets == 0
    await client.close()
