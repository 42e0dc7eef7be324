"""Pattern 20: a service that fails is tried again on schedule, clients hear of what they depend on, and it is fetched when it is back."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.live import Client, LiveCluster, websocket_source

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    live = LiveCluster(
        {
            "services": {"api": {"base_url": upstream.url}},
            "queries": [
                {"key": ["projects", "detail", "{id}"], "service": "api", "path": "/projects/{id}"},
                {
                    "key": ["quick", "{id}"],
                    "service": "api",
                    "path": "/projects/{id}",
                    "retry": 5,
                    "retry_delay": "20ms",
                },
            ],
            "sources": {
                "events": websocket_source(upstream.url, reconnect={"attempts": 3, "initial": "100ms", "max": "200ms"})
            },
            "streams": [
                {
                    "source": "events",
                    "channel": "project:{id}",
                    "on": {"project:updated": {"invalidate": {"key": ["projects", "detail", "{id}"]}}},
                }
            ],
        }
    ).start()
    yield live
    live.stop()


def notices(client: Client) -> list[tuple[str, str]]:
    return [(message["level"], message["code"]) for message in client.log if message["type"] == "notice"]


async def test_500s_are_tried_again_after_one_and_two_seconds(cluster: LiveCluster, upstream: Any) -> None:
    times: list[float] = []
    upstream.do(lambda up: up.fail(500, 2, "/projects/1"))
    watch_requests(upstream, "/projects/1", times)
    entry = cluster.get("projects", "detail", "1").json()
    assert (entry["status"], entry["data"]["id"]) == ("success", "1")
    delays = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(delays) == 2
    assert delays[0] > 0.9
    assert delays[1] > 1.9


def watch_requests(upstream: Any, path: str, times: list[float]) -> None:
    """Note when requests for a path arrive."""

    def spy(up: Any) -> None:
        counted = up._requests

        class Noting(dict[str, int]):
            def __setitem__(self, name: str, count: int) -> None:
                if name == f"GET {path}":
                    times.append(upstream.loop.time())
                super().__setitem__(name, count)

        up._requests = Noting(counted)

    upstream.do(spy)


def test_after_the_last_try_it_is_an_error_and_old_data_stays(cluster: LiveCluster, upstream: Any) -> None:
    upstream.do(lambda up: up.fail(500, 100, "/projects"))
    refused = cluster.get("quick", "2")
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "UPSTREAM_ERROR")
    assert "http 500" in refused.json()["error"]["message"]
    upstream.do(lambda up: up.fail(500, 0))
    fresh = cluster.get("quick", "2").json()
    assert fresh["status"] == "success"
    upstream.do(lambda up: up.fail(404, 1, "/projects"))
    kept = cluster.get("quick", "2", fetch="force").json()
    assert (kept["status"], kept["data"], kept["is_stale"]) == ("error", fresh["data"], True)
    assert kept["origin"]["invalidated"]["by"] == "fetch:api failed"
    assert cluster.get("quick", "2").json()["status"] == "success"


async def test_a_stream_that_drops_and_returns_is_told_and_refetched(
    cluster: LiveCluster, client: Client, upstream: Any
) -> None:
    view = await client.subscribe("p", key=["projects", "detail", "3"])
    await client.until(lambda: view.data("projects", "detail", "3")["id"] == "3")
    asked = upstream.do(lambda up: up._requests["GET /projects/3"])
    upstream.do(lambda up: up.control({"ws": "down"}))
    await client.until(lambda: ("warning", "source_disconnected") in notices(client))
    await client.until(lambda: ("error", "source_failed") in notices(client))
    late = await Client.open(cluster.url)
    await late.subscribe("p", key=["projects", "detail", "3"])
    await late.until(lambda: notices(late) == [("error", "source_failed")])
    await late.close()
    upstream.do(lambda up: up.tracker.update_project("3", {"name": "renamed unheard"}))
    upstream.do(lambda up: up.control({"ws": "up"}))
    await client.until(lambda: notices(client)[-1] == ("success", "source_restored"))
    await client.until(lambda: view.data("projects", "detail", "3")["name"] == "renamed unheard")
    assert notices(client) == [
        ("warning", "source_disconnected"),
        ("error", "source_failed"),
        ("success", "source_restored"),
    ]
    assert upstream.do(lambda up: up._requests["GET /projects/3"]) > asked


async def test_a_service_that_cannot_be_reached_is_told_its_readers_do_not_wait_and_it_is_noticed_when_it_is_back(
    cluster: LiveCluster, client: Client, upstream: Any
) -> None:
    view = await client.subscribe("q", key=["quick", "4"])
    await client.until(lambda: view.data("quick", "4")["id"] == "4")
    upstream.do(lambda up: up.fail(503, 10_000, "/projects"))
    cluster.get("quick", "4", fetch="force")
    await client.until(lambda: ("warning", "service_offline") in notices(client))
    offline = cluster.get("quick", "4", fetch="force").json()
    assert (offline["is_offline"], offline["data"]["id"]) == (True, "4")
    upstream.do(lambda up: up.fail(503, 0))
    await client.until(lambda: ("success", "service_online") in notices(client))
    assert cluster.get("quick", "4", fetch="force").json()["is_offline"] is False
