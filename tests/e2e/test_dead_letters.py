"""Transforms and dead letters on a real cluster: ill-shaped events are shown, and the stream goes on."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from cluster.observability import metrics
from tests.app.shaping_app import app
from tests.live import Client, LiveCluster, eventually, websocket_source

pytestmark = pytest.mark.cluster
SECRET = "do-not-log-me"


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    document = app.document(
        {
            "cluster": {"shards": 1},
            "sources": {"events": websocket_source(upstream.url)},
            "streams": [
                {
                    "source": "events",
                    "channel": "readings",
                    "join": "always",
                    "on": {"reading": {"set": {"key": ["last"], "value": "{data.id}"}}},
                    "transform": {"event": {"temperature": "reading"}},
                }
            ],
        }
    )
    live = LiveCluster(document).start()
    yield live
    live.stop()


@pytest.fixture
async def client(cluster: LiveCluster) -> AsyncIterator[Client]:
    opened = await Client.open(cluster.url)
    yield opened
    await opened.close()


def status(cluster: LiveCluster, *arguments: str) -> Any:
    command = [sys.executable, "-m", "cluster.cli", "status", *arguments]
    environment = {**os.environ, "HARBOR_URL": cluster.url}
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment)
    return json.loads(run.stdout)


def dropped(cluster: LiveCluster) -> dict[str, float]:
    """Drops of the source, by reason."""
    found: dict[str, float] = {}
    for _, encoded in cluster.metrics():
        for sample in metrics.decode(encoded):
            assert SECRET not in repr(sample)
            if sample.name == "events_dropped_total" and sample.labels[1] == "events" and sample.value:
                found[sample.labels[2]] = sample.value
    return found


async def test_ill_shaped_events_are_shown_and_the_stream_goes_on(
    cluster: LiveCluster, client: Client, upstream: Any
) -> None:
    view = await client.subscribe("r", prefix=["reading"])
    eventually(lambda: upstream.do(lambda up: up.hub.joined()).get("readings"))
    reading = {"kind": "reading", "id": 1, "f": 212}
    raws = [
        "{nonsense",
        '{"event":"temperature","channel":"readings","data":{"kind":"reading","id":1}}',
    ]
    for raw in raws:
        upstream.do(lambda up, raw=raw: up.control({"emit": {"channel": "readings", "raw": raw}}))
    upstream.say("readings", "temperature", {**reading, "ask": "raise", "note": SECRET})
    upstream.say("readings", "temperature", {**reading, "ask": "no json"})
    upstream.say("readings", "temperature", {**reading, "ask": "leave out"}, {**reading, "kind": "other"})
    upstream.say("readings", "temperature", reading)
    await client.until(lambda: view.data("reading", 1))
    assert view.data("reading", 1) == {"id": 1, "celsius": 100, "by": "reading readings"}

    shown = status(cluster, "--dead-letters")["dead_letters"]
    assert [(each["reason"], each["event"]) for each in shown] == [
        ("transform_failed", "temperature"),
        ("transform_failed", "temperature"),
        ("transform_failed", "temperature"),
        ("not_json", None),
    ]
    no_json, raised, key_error, nonsense = shown
    function = "function tests.app.shaping_app:to_celsius"
    assert no_json["detail"] == f"{function} gave what is no JSON: Type is not JSON serializable: set"
    assert raised["detail"] == f"{function} raised ValueError: no thermometer"
    assert key_error["detail"] == f"{function} raised KeyError: 'f'"
    assert json.loads(raised["sample"])["note"] == SECRET
    assert (nonsense["sample"], nonsense["source"], nonsense["size_bytes"]) == ("{nonsense", "events", 9)
    assert [each["time"] for each in shown] == sorted((each["time"] for each in shown), reverse=True)
    assert dropped(cluster) == {"not_json": 1, "transform_failed": 3, "filtered": 2}

    assert "dead_letters" not in status(cluster, "--json")
    asked = httpx.get(f"{cluster.url}/v1/cluster", params={"dead_letters": "true"}, timeout=60).json()
    assert asked["dead_letters"] == shown
    refused = httpx.get(f"{cluster.url}/v1/cluster", params={"dead_letters": "yes"}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "BAD_REQUEST")


async def test_a_frame_that_is_too_large_is_shown_unread(cluster: LiveCluster, client: Client, upstream: Any) -> None:
    view = await client.subscribe("r", prefix=["reading"])
    big = {"emit": {"channel": "readings", "raw_bytes": 10 * 1024 * 1024}}
    upstream.do(lambda up: up.control(big))
    upstream.say("readings", "temperature", {"kind": "reading", "id": 2, "f": 32})
    await client.until(lambda: view.data("reading", 2))
    newest = status(cluster, "--dead-letters")["dead_letters"][0]
    assert (newest["reason"], newest["sample"], newest["detail"]) == ("too_large", "", "was not read")
    assert newest["size_bytes"] > 4 * 1024 * 1024
