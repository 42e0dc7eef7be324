"""Pattern 17: five pages are scrolled while posts arrive: no item is missing, and none is there twice."""

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
                {
                    "key": ["posts", "{feed}"],
                    "service": "api",
                    "path": "/posts",
                    "params": {"feedId": "{feed}"},
                    "infinite": {"param": "offset", "initial": 0, "page_size": 20},
                    "stale_time": "infinity",
                },
            ],
            "sources": {"events": websocket_source(upstream.url)},
            "streams": [
                {
                    "source": "events",
                    "channel": "feed:{feed}",
                    "on": {"post:new": {"prepend": {"key": ["posts", "{feed}"], "at": "/pages/0", "item": "{data}"}}},
                }
            ],
        }
    ).start()
    yield live
    live.stop()


def _post(up: Any, text: str) -> None:
    _, emissions = up.tracker.create_post({"feedId": "1", "content": text})
    up.emit(emissions)


async def test_scrolling_while_posts_arrive(cluster: LiveCluster, client: Client, upstream: Any) -> None:
    for number in range(100):
        upstream.do(lambda up, n=number: up.tracker.create_post({"feedId": "1", "content": f"old {n}"}))
    view = await client.subscribe("feed", key=["posts", "1"], mode="patch")
    await client.until(lambda: len(view.data("posts", "1")["pages"]) == 1)
    first = view.data("posts", "1")
    assert first["page_params"] == [0]
    assert len(first["pages"][0]) == 20
    for number in range(4):
        for more in range(number + 1):
            upstream.do(lambda up, n=number, m=more: _post(up, f"new {n}.{m}"))
        entry = cluster.get("posts", "1", page="next").json()
        assert len(entry["data"]["pages"]) == number + 2
        upstream.do(lambda up, n=number: _post(up, f"after {n}"))
    truth = upstream.do(lambda up: up.tracker.post_list("1", 0, 1_000))
    new = [post["id"] for post in truth if post["content"].startswith(("new", "after"))]
    await client.until(lambda: [item["id"] for item in view.data("posts", "1")["pages"][0]][: len(new)] == new)
    shown = [item for page in view.data("posts", "1")["pages"] for item in page]
    assert shown == truth[: len(shown)], "in order, none missing, none twice"
    assert len(shown) > 4 * 20

    refetched = cluster.get("posts", "1", fetch="force").json()["data"]
    assert [item["id"] for page in refetched["pages"] for item in page] == [post["id"] for post in truth[: 5 * 20]]
    assert refetched["page_params"] == [0, 20, 40, 60, 80]


def test_the_end_of_a_list_is_known_and_a_page_of_something_else_refused(cluster: LiveCluster, upstream: Any) -> None:
    upstream.do(lambda up: up.tracker.posts["2"].clear())
    for number in range(25):
        upstream.do(lambda up, n=number: up.tracker.create_post({"feedId": "2", "content": f"{n}"}))
    assert len(cluster.get("posts", "2").json()["data"]["pages"]) == 1
    assert [len(page) for page in cluster.get("posts", "2", page="next").json()["data"]["pages"]] == [20, 5]
    asked = upstream.do(lambda up: up._requests["GET /posts"])
    assert [len(page) for page in cluster.get("posts", "2", page="next").json()["data"]["pages"]] == [20, 5]
    assert upstream.do(lambda up: up._requests["GET /posts"]) == asked
    cluster.put(["note"], 1)
    refused = cluster.get("note", page="next")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "BAD_REQUEST")
