"""Ingestors are added and taken away under load; where events have ids nothing is lost or doubled, elsewhere the gap is told."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.observability import metrics
from tests.e2e.ledger_upstream import KEYS, truth
from tests.e2e.test_exactly_once import RATE, RECONNECT, RULES, _entry, _last, by_socket, equals
from tests.live import Client, LiveCluster, eventually, free_port

pytestmark = pytest.mark.cluster


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> Iterator[str]:
    """Parameter: events a second."""
    port = free_port()
    rate = str(getattr(request, "param", RATE))
    with subprocess.Popen([sys.executable, "-m", "tests.e2e.ledger_upstream", str(port), rate, "8"]) as upstream:
        yield f"127.0.0.1:{port}"
        upstream.kill()


def scale(cluster: LiveCluster, ingestors: int) -> dict[str, Any]:
    """Scale and wait until it is so."""
    assert httpx.post(f"{cluster.url}/v1/scale", json={"ingestors": ingestors}).json() == {"ingestors": ingestors}

    def is_done() -> Any:
        described = cluster.supervisor.describe()
        return not described["scaling"] and len(described["ingestors"]) == ingestors and described

    described: dict[str, Any] = eventually(is_done)
    return described


def with_ids(ledger: str, store: Path, ingestors: Any = 1) -> dict[str, Any]:
    return {
        "cluster": {"shards": 2, "ingestors": ingestors},
        "storage": {"path": str(store)},
        "sources": {"ledger": by_socket(ledger)},
        "streams": [{"source": "ledger", "channel": f"ledger:{n}", "join": "always", "on": RULES} for n in range(8)],
    }


@pytest.mark.timeout(300)
async def test_lists_and_counters_equal_the_ledger_while_ingestors_come_and_go(
    local_ray: None, tmp_path: Path, ledger: str
) -> None:
    await asyncio.to_thread(eventually, lambda: httpx.post(f"http://{ledger}/cut").is_success)
    cluster = await asyncio.to_thread(LiveCluster(with_ids(ledger, tmp_path)).start)
    try:
        await asyncio.to_thread(eventually, lambda: _last(cluster, "k0") > RATE)
        for ingestors in (4, 2, 1):
            described = await asyncio.to_thread(scale, cluster, ingestors)
            (source,) = described["sources"]
            assert source["state"] == "connected"
            assert 1 < source["connections"] <= ingestors or ingestors == 1
            heard = _last(cluster, "k0")
            await asyncio.to_thread(eventually, lambda heard=heard: _last(cluster, "k0") > heard)
        await asyncio.to_thread(equals, cluster, ledger)
    finally:
        await asyncio.to_thread(cluster.stop)


@pytest.mark.timeout(400)
async def test_load_brings_ingestors_and_quiet_takes_them_away(local_ray: None, tmp_path: Path, ledger: str) -> None:
    await asyncio.to_thread(eventually, lambda: httpx.post(f"http://{ledger}/cut").is_success)
    ingestors = {"min": 1, "max": 2, "target": 0.1, "cool_down": "1s"}
    cluster = await asyncio.to_thread(LiveCluster(with_ids(ledger, tmp_path, ingestors)).start)

    def is_divided(count: int) -> bool:
        described = cluster.supervisor.describe()
        return not described["scaling"] and len(described["ingestors"]) == count

    def loaded() -> None:
        """Raise the rate until the load is more than one ingestor is to have: how much that takes is the machine's."""
        for rate, timeout_s in ((15_000, 10), (30_000, 10), (60_000, 60)):
            httpx.post(f"http://{ledger}/go?rate={rate}")
            with suppress(AssertionError):
                eventually(
                    lambda: cluster.supervisor.describe()["wanted"]["ingestors"] == 2, timeout_s=timeout_s, every_s=0.5
                )
                eventually(lambda: is_divided(2), every_s=0.5)
                return
        pytest.fail("no ingestor was added")

    try:  # asking is load too, so it is done now and then
        await asyncio.to_thread(loaded)
        last = httpx.post(f"http://{ledger}/stop").json()["last"]
        await asyncio.to_thread(eventually, lambda: is_divided(1), every_s=0.5, timeout_s=120)
        wanted = truth(last)
        await asyncio.to_thread(
            eventually, lambda: all(_entry(cluster, key) == wanted[key] for key in wanted), timeout_s=120
        )
    finally:
        await asyncio.to_thread(cluster.stop)


def gaps(cluster: LiveCluster) -> Counter[str]:
    """Gaps by ingestor."""
    found: Counter[str] = Counter()
    for actor, encoded in cluster.metrics():
        samples = metrics.decode(encoded)
        found[actor] = sum(int(each.value) for each in samples if each.name == "source_gaps_total")
    return found


@pytest.mark.timeout(300)
async def test_without_ids_what_may_be_missing_is_counted_and_fetched(local_ray: None, ledger: str) -> None:
    await asyncio.to_thread(eventually, lambda: httpx.post(f"http://{ledger}/cut").is_success)
    document = {
        "cluster": {"shards": 2},
        "sources": {
            "ledger": {
                "type": "websocket",
                "url": f"ws://{ledger}/ws?ids=no",
                "envelope": {"event": "event", "data": "data", "channel": "channel"},
                "subscribe": {"join": "{channel}"},
                "unsubscribe": {"leave": "{channel}"},
                "reconnect": RECONNECT,
            }
        },
        "services": {"ledger": {"base_url": f"http://{ledger}"}},
        "queries": [{"key": ["last", "{k}"], "service": "ledger", "path": "/last/{k}", "stale_time": "infinity"}],
        "streams": [
            {"source": "ledger", "channel": f"ledger:{n}", "join": "always", "on": {"set": RULES["set"]}}
            for n in range(8)
        ],
    }
    cluster = await asyncio.to_thread(LiveCluster(document).start)
    try:
        client = await Client.open(cluster.url)
        try:
            for k in range(KEYS):
                await client.subscribe(k, key=["last", f"k{k}"])
            await asyncio.to_thread(eventually, lambda: _last(cluster, "k0") > RATE)
            for ingestors in (3, 1):
                before = gaps(cluster)
                await asyncio.to_thread(scale, cluster, ingestors)
                assert gaps(cluster) - before, "of channels that have moved"
            last = httpx.post(f"http://{ledger}/stop").json()["last"]
            wanted = {k: truth(last)[f'["last","k{k}"]'] for k in range(KEYS)}
            await client.until(lambda: all(client.views[k].data("last", f"k{k}") == n for k, n in wanted.items()))
        finally:
            await client.close()
    finally:
        await asyncio.to_thread(cluster.stop)
