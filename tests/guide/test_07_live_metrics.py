"""Pattern 7: metrics at 50 Hz, one by one and in batches: every history is exact and within its bound, and so are the alerts."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import Client, LiveCluster, websocket_source

pytestmark = pytest.mark.cluster
METRICS, ROUNDS, HISTORY, ALERTS = 200, 500, 100, 50


@pytest.fixture(scope="module")
def dashboard(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    point = {"value": "{item.value}", "at": "{item.timestamp}"}
    made = {"when_missing": "create", "default": {"value": None, "history": []}}
    live = LiveCluster(
        {
            "sources": {"events": websocket_source(upstream.url)},
            "streams": [
                {
                    "source": "events",
                    "channel": "dashboard:{id}",
                    "on": {
                        "metrics:batch": [
                            {
                                "each": "{data}",
                                "merge": {
                                    "key": ["metrics", "{id}", "{item.id}"],
                                    "value": {"value": "{item.value}"},
                                    **made,
                                },
                            },
                            {
                                "each": "{data}",
                                "append": {
                                    "key": ["metrics", "{id}", "{item.id}"],
                                    "at": "/history",
                                    "item": point,
                                    "by": "at",
                                    "max_items": HISTORY,
                                },
                            },
                        ],
                        "metric:alert": {
                            "prepend": {
                                "key": ["alerts", "{id}"],
                                "item": "{data}",
                                "max_items": ALERTS,
                                "when_missing": "create",
                            }
                        },
                    },
                }
            ],
        }
    ).start()
    yield live
    live.stop()


async def test_every_history_is_exact_and_bounded(dashboard: LiveCluster, upstream: Any) -> None:
    client = await Client.open(dashboard.url)
    names = [f"m{n}" for n in range(METRICS)]
    for name in names[:100]:
        await client.subscribe(name, key=["metrics", "1", name])
    rest = await client.subscribe("rest", prefix=["metrics", "1"])
    alerts = await client.subscribe("alerts", key=["alerts", "1"])
    await client.until(lambda: upstream.do(lambda up: up.hub.joined().get("dashboard:1", 0)))
    for number in range(ROUNDS):  # 50 rounds a second
        batch = [{"id": name, "value": number * 1000 + n, "timestamp": number} for n, name in enumerate(names)]
        upstream.say("dashboard:1", "metrics:batch", batch)
        if number % 5 == 0:
            upstream.say("dashboard:1", "metric:alert", {"id": f"alert {number}"})
        await asyncio.sleep(0.02)  # the pace of the metrics, not a wait for anything
    last = range(ROUNDS - HISTORY, ROUNDS)
    await client.until(
        lambda: all(rest.data("metrics", "1", name)["history"][-1]["at"] == ROUNDS - 1 for name in names)
    )
    for n, name in enumerate(names):
        wanted = {"value": (ROUNDS - 1) * 1000 + n, "history": [{"value": at * 1000 + n, "at": at} for at in last]}
        assert rest.data("metrics", "1", name) == wanted
        if n < 100:
            await client.until(lambda name=name, wanted=wanted: client.views[name].data("metrics", "1", name) == wanted)
    await client.until(lambda: alerts.data("alerts", "1")[0]["id"] == f"alert {ROUNDS - 5}")
    newest_first = [{"id": f"alert {number}"} for number in range(ROUNDS - 5, -1, -5)]
    assert alerts.data("alerts", "1") == newest_first[:ALERTS]
    await client.close()
