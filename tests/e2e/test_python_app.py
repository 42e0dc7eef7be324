"""An app written in Python runs as a cluster: functions fetch, reducers change, and one that fails harms nobody."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from cluster.app import Harbor
from tests.app.sample_app import app
from tests.live import Client, LiveCluster, eventually

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    events = Harbor()
    events.source(
        "events",
        "websocket",
        upstream.url.replace("http", "ws", 1) + "/ws",
        subscribe={"action": "subscribe", "channel": "{channel}"},
    )
    live = LiveCluster(app.document(events.document(), {"defaults": {"retry": 0}})).start()
    yield live
    live.stop()


@pytest.fixture
async def client(cluster: LiveCluster) -> Any:
    opened = await Client.open(cluster.url)
    yield opened
    await opened.close()


def test_query_functions(cluster: LiveCluster) -> None:
    entry = cluster.get("sums", 2, 3).json()
    assert entry["data"] == {"total": 5}
    assert (entry["origin"]["kind"], entry["origin"]["from"]) == ("fetch", "tests.app.sample_app:total")
    pages = [cluster.get("numbers", 7).json()["data"]["pages"]]
    pages.append(cluster.get("numbers", 7, page="next").json()["data"]["pages"])
    assert [[item["id"] for item in page] for page in pages[1]] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("name", "reason"), [("raises", "ValueError"), ("no json", "no JSON"), ("deep", "sample_app")])
def test_a_function_that_fails_is_the_entrys_error_and_the_shard_lives(
    cluster: LiveCluster, name: str, reason: str
) -> None:
    pids = cluster.pids()
    refused = cluster.get("plain", name)
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "UPSTREAM_ERROR")
    assert reason in refused.json()["error"]["message"]
    assert cluster.get("plain", "you").json()["data"] == {"hello": "you"}
    assert cluster.pids() == pids


def test_a_function_carries_a_mutation_out(cluster: LiveCluster) -> None:
    def greet(mutation: str, **variables: Any) -> Any:
        asked = {"id": mutation, "name": "greet", "variables": variables}
        return httpx.post(f"{cluster.url}/v1/mutations?wait=true", json=asked, timeout=60).json()

    done = greet("m-1", name="you", polite=True)
    assert (done["status"], done["result"]) == ("success", {"text": "Good day, you", "by": "m-1"})
    assert cluster.get("greetings", "you").json()["data"] == {"text": "Good day, you", "by": "m-1"}
    assert greet("m-1", name="you", polite=True)["result"] == done["result"], "it is done already"
    failed = greet("m-2", name="nobody")
    assert (failed["status"], failed["error"]["code"]) == ("error", "UPSTREAM_ERROR")
    assert "ValueError: who?" in failed["error"]["message"]
    assert cluster.get("greetings", "nobody").status_code == 404
    wrong = greet("m-3", name="x", colour="red")
    assert "unexpected keyword argument 'colour'" in wrong["error"]["message"]


async def test_reducers(cluster: LiveCluster, client: Client, upstream: Any) -> None:
    view = await client.subscribe("c", key=["counters", "a"])
    say = upstream.say
    eventually(lambda: upstream.do(lambda up: up.hub.joined().get("counters", 0)))
    say(
        "counters",
        "count:up",
        {"name": "a"},
        {"name": "a"},
        {"name": "a", "fail": True},
        {"name": "a", "nothing": True},
    )
    say("counters", "count:up", {"name": "a"})
    await client.until(lambda: view.data("counters", "a") == {"n": 3, "last": "count:up"})
    assert cluster.get("counters", "a").json()["origin"]["from"] == "events/counters count:up"
