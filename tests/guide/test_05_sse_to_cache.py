"""Pattern 5: a server-sent stream fills a bounded feed, newest first."""

from typing import Any

import httpx
import orjson
import pytest

from tests.live import Client, LiveCluster

pytestmark = pytest.mark.cluster


async def test_the_feed_is_newest_first_and_never_longer_than_its_bound(
    cluster: LiveCluster, client: Client, upstream: Any
) -> None:
    view = await client.subscribe("a", key=["activity"], mode="patch")
    lengths = []
    for round_number in range(3):
        upstream.say("activity", "activity", *({"id": f"a{round_number}-{n}", "text": "x"} for n in range(60)))
        newest = f"a{round_number}-59"
        await client.until(lambda newest=newest: view.data("activity")[0]["id"] == newest)
        lengths.append(len(view.data("activity")))
    assert lengths == [60, 100, 100]
    wanted = [f"a2-{n}" for n in range(59, -1, -1)] + [f"a1-{n}" for n in range(59, 19, -1)]
    assert [item["id"] for item in view.data("activity")] == wanted


async def test_a_server_sent_client_sees_the_same(cluster: LiveCluster, upstream: Any) -> None:
    lines: list[str] = []
    params = {"key": '["activity"]', "mode": "patch"}
    async with (
        httpx.AsyncClient(timeout=60) as http,
        http.stream("GET", f"{cluster.url}/v1/stream", params=params) as response,
    ):
        assert response.headers["content-type"] == "text/event-stream"
        async for line in response.aiter_lines():
            lines.append(line)
            if line.startswith("event: snapshot_end"):
                upstream.say("activity", "activity", {"id": "for-sse"})
            if line.startswith("data: ") and "for-sse" in line:
                break
    events = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
    assert events[0] == "snapshot"
    assert events[-1] == "change"
    change = orjson.loads(lines[-1].removeprefix("data: "))
    assert change["patch"][0] == {"op": "add", "path": "/0", "value": {"id": "for-sse"}}
    assert any(line.startswith("id: p3.") for line in lines)
