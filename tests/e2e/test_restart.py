"""What a cluster has stored is there when it starts again, all of it or one shard."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.observability.metrics import decode
from tests.live import Client, LiveCluster, eventually

pytestmark = pytest.mark.cluster
KEYS = [["note", str(n)] for n in range(40)]


@pytest.fixture
def cluster(local_ray: None, tmp_path: Path) -> Iterator[LiveCluster]:
    live = LiveCluster({"storage": {"path": str(tmp_path), "sync": "always"}}).start()
    yield live
    live.stop()


def write(cluster: LiveCluster) -> dict[str, Any]:
    with httpx.Client(base_url=cluster.url) as http:
        for n, key in enumerate(KEYS):
            http.put("/v1/entries", params={"key": _json(key)}, json={"n": n}).raise_for_status()
        return read(cluster)


def read(cluster: LiveCluster) -> dict[str, Any]:
    with httpx.Client(base_url=cluster.url, timeout=60) as http:
        answers = {_json(key): http.get("/v1/entries", params={"key": _json(key)}) for key in KEYS}
    return {key: (answer.json().get("data"), answer.json().get("version")) for key, answer in answers.items()}


def _json(key: list[str]) -> str:
    return '["' + '","'.join(key) + '"]'


def test_a_cluster_that_starts_again_serves_what_it_had(cluster: LiveCluster) -> None:
    before = write(cluster)
    cluster.stop()
    cluster.start()
    assert read(cluster) == before
    with httpx.Client(base_url=cluster.url) as http:
        entry = http.get("/v1/entries", params={"key": _json(KEYS[0])}).json()
    assert entry["origin"]["kind"] == "restored"


async def test_a_killed_shard_comes_back_and_its_watchers_notice_nothing(cluster: LiveCluster) -> None:
    before = await asyncio.to_thread(write, cluster)
    client = await Client.open(cluster.url)
    view = await client.subscribe("all", prefix=["note"])
    assert len(view.entries) == len(KEYS)
    old = await asyncio.to_thread(cluster.kill, "shard-0")
    await asyncio.to_thread(eventually, lambda: cluster.pids().get("shard-0") not in (None, old), 30)
    assert await asyncio.to_thread(read, cluster) == before
    async with httpx.AsyncClient(base_url=cluster.url) as http:
        for key in KEYS:
            (await http.put("/v1/entries", params={"key": _json(key)}, json="after")).raise_for_status()
    await client.until(lambda: all(data == "after" for _, data in view.entries.values()))
    assert view.resets == 0
    await client.close()


async def test_a_shard_that_is_stopped_for_good_is_made_anew_by_a_supervisor_that_never_heard_it(
    cluster: LiveCluster,
) -> None:
    before = await asyncio.to_thread(write, cluster)
    pids = await asyncio.to_thread(cluster.pids)
    stopped, supervisor = psutil.Process(pids["shard-0"]), psutil.Process(pids["supervisor"])
    stopped.suspend()
    try:
        supervisor.kill()
        await asyncio.to_thread(eventually, lambda: cluster.pids().get("shard-0") not in (None, stopped.pid), 60)
    finally:
        if stopped.is_running():
            stopped.resume()
    assert await asyncio.to_thread(read, cluster) == before


@pytest.mark.soak
def test_a_shard_whose_store_is_gone_begins_without_it_however_long_that_is_waited_for(
    local_ray: None, tmp_path: Path
) -> None:
    storage = {"path": str(tmp_path), "wait": "30s"}
    live = LiveCluster({"cluster": {"shards": 1}, "storage": storage}).start()
    try:
        live.put(["a"], 1)
        process = psutil.Process(live.pids()["shard-0"])
        process.suspend()
        (store,) = tmp_path.glob("*/shard-0-*")
        store.rename(tmp_path / "gone")
        process.kill()
        eventually(lambda: live.pids().get("shard-0") not in (None, process.pid))
        assert live.get("a").status_code == 404
        live.put(["a"], 2)
        assert live.get("a").json()["data"] == 2
    finally:
        live.stop()


def test_a_store_that_cannot_be_read_is_set_aside(cluster: LiveCluster, tmp_path: Path) -> None:
    write(cluster)
    cluster.stop()
    (spoiled,) = tmp_path.glob("*/shard-0-*/data.mdb")
    spoiled.write_bytes(b"no database" * 10_000)
    cluster.start()
    assert len([data for data, _ in read(cluster).values() if data is None]) > 0
    assert {shard["store"] for shard in cluster.supervisor.describe()["shards"]} == {"set_aside", "open"}
    assert spoiled.parent.with_name(f"{spoiled.parent.name}.unreadable").is_dir()
    assert len(list(tmp_path.glob("*/shard-0-*"))) == 2


def test_a_store_that_is_gone_is_waited_for_and_not_used_when_it_comes_too_late(
    local_ray: None, tmp_path: Path
) -> None:
    """As when the shard starts on another node, and later on the first again."""
    storage = {"path": str(tmp_path / "here"), "sync": "always", "wait": "1s"}
    live = LiveCluster({"cluster": {"shards": 1}, "storage": storage}).start()
    try:
        for n in (1, 2):
            live.put(["a"], n)
        live.stop()
        (store,) = tmp_path.glob("here/*/shard-0-*")
        store.rename(tmp_path / "away")
        live.start()
        assert live.get("a").status_code == 404
        samples = [sample for _, encoded in live.metrics() for sample in decode(encoded)]
        assert sum(sample.value for sample in samples if sample.name == "stores_lost_total") == 1
        live.put(["b"], 1)
        live.stop()
        (tmp_path / "away").rename(store)
        live.start()
        assert (live.get("a").status_code, live.get("b").json()["data"]) == (404, 1)
    finally:
        live.stop()
