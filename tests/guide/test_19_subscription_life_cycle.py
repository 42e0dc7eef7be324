"""Pattern 19: upstream channels are joined once, on first interest over all gateways, left after the last who listens, and resumed gap-free."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from tests.live import Client, LiveCluster, eventually, websocket_source

pytestmark = pytest.mark.cluster
KEY = ["projects", "detail", "1"]
CHANNEL = "project:1"
CLIENTS = 6


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    config = {
        "cluster": {"gateways": 2},
        "services": {"api": {"base_url": upstream.url}},
        "queries": [
            {
                "key": ["projects", "detail", "{id}"],
                "service": "api",
                "path": "/projects/{id}",
                "stale_time": "infinity",
            }
        ],
        "sources": {
            "events": websocket_source(upstream.url, unsubscribe={"action": "unsubscribe", "channel": "{channel}"})
        },
        "streams": [
            {
                "source": "events",
                "channel": "project:{id}",
                "linger": "300ms",
                "on": {"project:renamed": {"merge": {"key": ["projects", "detail", "{id}"], "value": "{data}"}}},
            },
            {
                "source": "events",
                "channel": "news",
                "join": "always",
                "on": {"news": {"set": {"key": ["news"], "value": "{data}"}}},
            },
        ],
    }
    live = LiveCluster(config).start()
    eventually(lambda: live.supervisor.describe()["sources"][0]["state"] == "connected")
    yield live
    live.stop()


@pytest.fixture
async def clients(cluster: LiveCluster) -> AsyncIterator[list[Client]]:
    """Clients of both gateways, which share the port."""
    async with AsyncExitStack() as stack:
        opened: list[Client] = []

        def sessions() -> list[int]:
            return [gateway["sessions"] for gateway in cluster.supervisor.describe()["gateways"]]

        while len(opened) < CLIENTS or not all(sessions()):
            client = await Client.open(cluster.url)
            stack.push_async_callback(client.close)
            opened.append(client)
        yield opened


def joined(upstream: Any) -> int:
    return int(upstream.do(lambda up: up.hub.joined()).get(CHANNEL, 0))


async def test_one_join_however_many_watch_and_a_leave_after_the_last(clients: list[Client], upstream: Any) -> None:
    assert joined(upstream) == 0
    views = [await client.subscribe("p", key=KEY) for client in clients]
    eventually(lambda: joined(upstream) == 1)
    upstream.say(CHANNEL, "project:renamed", {"name": "once"})
    for client, view in zip(clients, views, strict=True):
        await client.until(lambda view=view: view.data(*KEY)["name"] == "once")
    for client in clients[1:]:
        await client.send(type="unsubscribe", id="p")
    upstream.say(CHANNEL, "project:renamed", {"name": "twice"})
    await clients[0].until(lambda: views[0].data(*KEY)["name"] == "twice")
    assert joined(upstream) == 1
    await clients[0].send(type="unsubscribe", id="p")
    eventually(lambda: joined(upstream) == 0)


async def test_pausing_counts_as_leaving_and_resuming_misses_nothing(clients: list[Client], upstream: Any) -> None:
    views = [await client.subscribe("p", key=KEY) for client in clients]
    eventually(lambda: joined(upstream) == 1)
    for client in clients[1:]:
        await client.send(type="pause", id="p")
    upstream.say(CHANNEL, "project:renamed", {"name": "seen by one"})
    await clients[0].until(lambda: views[0].data(*KEY)["name"] == "seen by one")
    assert joined(upstream) == 1
    await clients[0].send(type="pause", id="p")
    eventually(lambda: joined(upstream) == 0)
    httpx.patch(f"{upstream.url}/projects/1", json={"progress": 77}).raise_for_status()
    for client, view in zip(clients, views, strict=True):
        await client.send(type="resume", id="p")
        await client.until(lambda view=view: view.data(*KEY)["progress"] == 77)
    eventually(lambda: joined(upstream) == 1)
    upstream.say(CHANNEL, "project:renamed", {"name": "live again"})
    for client, view in zip(clients, views, strict=True):
        await client.until(lambda view=view: view.data(*KEY)["name"] == "live again")
        assert view.resets == 0
        await client.send(type="unsubscribe", id="p")
    eventually(lambda: joined(upstream) == 0)


async def test_an_event_stream_that_is_closed_counts_as_leaving(cluster: LiveCluster, upstream: Any) -> None:
    with httpx.stream("GET", f"{cluster.url}/v1/stream", params={"key": '["projects","detail","1"]'}) as stream:
        next(stream.iter_lines())
        eventually(lambda: joined(upstream) == 1)
    eventually(lambda: joined(upstream) == 0)


async def test_who_comes_back_at_once_finds_it_joined(clients: list[Client], upstream: Any) -> None:
    view = await clients[0].subscribe("p", key=KEY)
    eventually(lambda: joined(upstream) == 1)
    await clients[0].send(type="pause", id="p")
    await clients[0].send(type="resume", id="p")
    upstream.say(CHANNEL, "project:renamed", {"name": "still here"})
    await clients[0].until(lambda: view.data(*KEY)["name"] == "still here")


def test_what_is_always_joined_is(cluster: LiveCluster, upstream: Any) -> None:
    assert upstream.do(lambda up: up.hub.joined()).get("news") == 1
