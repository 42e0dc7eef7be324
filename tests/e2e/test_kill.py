"""kill -9 of each actor process under load: clients receive again, and what may have been lost is said.

How soon, `tests.bench` measures: here it would be a figure of whatever else the machine does.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from websockets.exceptions import WebSocketException

from cluster.observability.metrics import decode
from cluster.simulation.view import View
from tests.live import Client, LiveCluster, eventually, websocket_source

pytestmark = pytest.mark.cluster
LIMIT_S = 60.0
"""One or two on a quiet machine: longer waits are for something that did not notice."""


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    url = upstream.url
    live = LiveCluster(
        {
            "storage": {"path": str(tmp_path_factory.mktemp("store"))},
            "sources": {"events": websocket_source(url, reconnect={"initial": "100ms", "max": "1s"})},
            "streams": [
                {
                    "source": "events",
                    "channel": "load",
                    "join": "always",
                    "on": {"tick": {"set": {"key": ["load", "{data.k}"], "value": "{data}"}}},
                }
            ],
        }
    ).start()
    yield live
    live.stop()


async def _load(upstream: Any, stop: asyncio.Event) -> None:
    """Two hundred events a second over twenty keys, each with its own number."""
    number = 0
    while not stop.is_set():
        number += 10
        ticks = ({"k": f"k{n % 20}", "n": n} for n in range(number - 10, number))
        await asyncio.to_thread(upstream.say, "load", "tick", *ticks)
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("actor", ["shard-0", "coordinator-0", "ingestor-0", "gateway-0", "supervisor"])
async def test_clients_receive_again_and_losses_are_said(cluster: LiveCluster, upstream: Any, actor: str) -> None:
    stop = asyncio.Event()
    load = asyncio.create_task(_load(upstream, stop))
    client = await Client.open(cluster.url)
    try:
        view = await client.subscribe("all", prefix=["load"])
        await client.until(lambda: len(view.entries) == 20)
        newest = max(data["n"] for _, data in view.entries.values())
        old = await asyncio.to_thread(cluster.kill, actor)
        if actor == "gateway-0":
            token, entries = view.token, dict(view.entries)
            client, view = await _come_back(cluster.url, token, entries)
        # Everything is live again when every key has moved on from where it stood.
        await client.until(
            lambda: len(view.entries) == 20 and all(data["n"] > newest + 20 for _, data in view.entries.values()),
            LIMIT_S,
        )
        assert (view.resets > 0) == (actor == "ingestor-0"), "its upstream cannot say again what was lost"
        await asyncio.to_thread(eventually, lambda: cluster.pids().get(actor) not in (None, old))
    finally:
        stop.set()
        await load
        await client.close()


def test_how_long_a_shard_without_a_standby_was_away_is_counted(cluster: LiveCluster) -> None:
    def recoveries() -> tuple[int, float]:
        samples = [sample for _, encoded in cluster.metrics() for sample in decode(encoded)]
        (of,) = [sample for sample in samples if sample.name == "recovery_seconds"]
        return sum(of.buckets), of.value

    eventually(lambda: cluster.supervisor.describe()["ready"])
    before, away_s = recoveries()
    cluster.kill("shard-1")
    eventually(lambda: recoveries()[0] > before)
    assert 0.1 < recoveries()[1] - away_s < LIMIT_S, "a process takes a while to start"


async def _come_back(url: str, token: str, entries: dict[str, Any]) -> tuple[Client, Any]:
    """Reconnect as a browser would, with the token of the last position."""
    while True:
        try:
            client = await Client.open(url)
        except (OSError, WebSocketException):
            await asyncio.sleep(0.05)
            continue
        break
    view = client.views["all"] = View()
    view.entries, view.complete = entries, True
    await client.subscribe("all", prefix=["load"], since=token, wait=False)
    return client, view


def test_a_supervisor_that_starts_anew_forgets_no_gateway_that_is_silent(local_ray: None) -> None:
    live = LiveCluster({"cluster": {"gateways": 2}}).start()
    try:
        silent = psutil.Process(live.pids()["gateway-1"])
        silent.suspend()
        try:
            before = live.kill("supervisor")
            eventually(lambda: live.supervisor.describe()["supervisor"]["pid"] != before)
        finally:
            silent.resume()
        eventually(lambda: {"gateway-0", "gateway-1"} <= live.pids().keys() and live.supervisor.describe()["ready"])
    finally:
        live.stop()
