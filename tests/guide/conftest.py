"""One real cluster for the guide's patterns, on the sample upstream."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.config import read_document
from tests.live import Client, LiveCluster, eventually, websocket_source

DEMO = Path(__file__).parents[2] / "cluster" / "demo" / "harbor.yaml"
LATENCY_MS = 8_000
"""Of a server that acts when the test has seen what is to be seen before: below what a service is waited for; another latency ends the wait."""


def config(url: str) -> dict[str, Any]:
    """The guide's front end, as a cluster's configuration."""
    return {
        "services": {"api": {"base_url": url}},
        "queries": [
            {"key": ["projects", "detail", "{id}"], "service": "api", "path": "/projects/{id}"},
            {
                "key": ["messages", "{channel}"],
                "service": "api",
                "path": "/messages",
                "params": {"channelId": "{channel}"},
                "stale_time": "infinity",
            },
        ],
        "sources": {
            "events": websocket_source(
                url,
                unsubscribe={"action": "unsubscribe", "channel": "{channel}"},
                reconnect={"attempts": 5, "initial": "100ms", "max": "1s"},
            ),
            "activity": {"type": "sse", "url": url + "/api/activity/stream"},
        },
        "streams": [
            {
                "source": "events",
                "channel": "project:{id}",
                "linger": "1s",
                "on": {
                    "project:updated": {"invalidate": {"key": ["projects", "detail", "{id}"]}},
                    "task:created": {
                        "append": {"key": ["projects", "detail", "{id}"], "at": "/tasks", "item": "{data}"}
                    },
                    "task:deleted": {
                        "remove": {
                            "key": ["projects", "detail", "{id}"],
                            "at": "/tasks",
                            "where": {"id": "{data.taskId}"},
                        }
                    },
                },
            },
            {
                "source": "events",
                "channel": "channel:{id}:messages",
                "on": {
                    "message:new": {"append": {"key": ["messages", "{id}"], "item": "{data}"}},
                    "message:edited": {
                        "merge_where": {"key": ["messages", "{id}"], "where": {"id": "{data.id}"}, "value": "{data}"}
                    },
                    "message:deleted": {"remove": {"key": ["messages", "{id}"], "where": {"id": "{data.id}"}}},
                },
            },
            {
                "source": "events",
                "channel": "notifications",
                "join": "always",
                "on": {
                    "notification:new": {
                        "append": {"key": ["notifications"], "item": "{data}", "when_missing": "create"}
                    }
                },
            },
            {
                "source": "activity",
                "on": {
                    "activity": {
                        "prepend": {"key": ["activity"], "item": "{data}", "max_items": 100, "when_missing": "create"}
                    }
                },
            },
        ],
    }


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    live = LiveCluster(config(upstream.url)).start()
    # What was fetched before the stream opened is fetched again; these tests count requests, so they begin after that.
    eventually(lambda: upstream.do(lambda up: up.hub.joined().get("notifications", 0)))
    upstream.say("notifications", "notification:new", {"id": "first"})
    eventually(lambda: live.get("notifications").status_code == 200)
    httpx.delete(f"{live.url}/v1/entries", params={"key": '["notifications"]'})
    yield live
    live.stop()


@pytest.fixture(scope="module")
def demonstration(local_ray: None, upstream: Any, request: pytest.FixtureRequest) -> Iterator[LiveCluster]:
    """The demonstration as it is shipped, but without traffic of its own, and with what a test's module has as MUTATIONS."""
    env = {"UPSTREAM_URL": upstream.url, "UPSTREAM_WS": upstream.ws_url}
    document = read_document(DEMO)
    document["mutations"] |= getattr(request.module, "MUTATIONS", {})
    live = LiveCluster(document, env).start()
    yield live
    live.stop()


@pytest.fixture
async def clients(demonstration: LiveCluster) -> AsyncIterator[list[Client]]:
    """Sessions of the demonstration: an author, and two others."""
    opened = [await Client.open(demonstration.url) for _ in range(3)]
    yield opened
    for each in opened:
        await each.close()


@pytest.fixture
async def client(cluster: LiveCluster) -> AsyncIterator[Client]:
    opened = await Client.open(cluster.url)
    yield opened
    await opened.close()
