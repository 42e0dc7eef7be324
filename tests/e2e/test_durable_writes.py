"""A write that was acknowledged as durable is there after kill -9, whatever `storage.sync` says, and many share a sync."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.client import HarborClient
from cluster.errors import ErrorCode, HarborError
from cluster.observability.metrics import decode
from tests.live import Client, LiveCluster, eventually

pytestmark = pytest.mark.cluster
WRITES = 400


@pytest.fixture(scope="module")
def cluster(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """Its stores are never synced but for who asks."""
    storage = {"path": str(tmp_path_factory.mktemp("store")), "sync": "never"}
    live = LiveCluster({"cluster": {"shards": 1}, "storage": storage}).start()
    yield live
    live.stop()


def syncs(cluster: LiveCluster) -> int:
    """How often the shard has synced in this life."""
    encoded = dict(cluster.metrics())["shard-0"]
    return sum(sum(sample.buckets) for sample in decode(encoded) if sample.name == "journal_sync_seconds")


def kill(cluster: LiveCluster) -> Callable[[], None]:
    """Return what kills the shard, found beforehand so that nothing comes between an answer and the end."""
    process = psutil.Process(cluster.pids()["shard-0"])
    return process.kill


async def comes_back(cluster: LiveCluster, old: int) -> None:
    await asyncio.to_thread(eventually, lambda: cluster.pids().get("shard-0") not in (None, old))


@pytest.mark.parametrize("by", ["put", "default", "patch", "delete", "socket"])
async def test_it_outlives_the_shard(cluster: LiveCluster, by: str) -> None:
    key = ["note", by]
    old = (await asyncio.to_thread(cluster.pids))["shard-0"]
    async with HarborClient(cluster.url) as harbor:
        version = await harbor.set(key, {"n": 1}, ack="memory")
        before = await asyncio.to_thread(syncs, cluster)
        end = await asyncio.to_thread(kill, cluster)
        match by:
            case "put":
                version = await harbor.set(key, {"n": 2}, ack="durable")
            case "default":
                version = await harbor.set(key, {"n": 2})
            case "patch":
                version = await harbor.edit(key, patch=[{"op": "replace", "path": "/n", "value": 2}], ack="durable")
            case "delete":
                await harbor.delete(key, ack="durable")
            case "socket":
                client = await Client.open(cluster.url)
                message = {"type": "set", "id": 1, "key": key, "data": {"n": 2}, "ack": "durable"}
                version = (await client.ask(**message))["version"]
                await client.close()
        after = await asyncio.to_thread(syncs, cluster)
        assert after == before + 1, "it has been written through, and nothing else has"
        end()
        await comes_back(cluster, old)
        if by == "delete":
            with pytest.raises(HarborError) as gone:
                await harbor.get(key)
            assert gone.value.code is ErrorCode.NOT_FOUND
            return
        entry = await harbor.get(key)
    assert (entry.data, entry.version) == ({"n": 2}, version)


async def test_killed_at_the_instant_of_the_answer(cluster: LiveCluster) -> None:
    """Writers go on until the shard dies under them: what was acknowledged to any of them is there."""
    old = (await asyncio.to_thread(cluster.pids))["shard-0"]
    end = await asyncio.to_thread(kill, cluster)
    acknowledged: dict[str, int] = {}

    async def write(name: str) -> None:
        for number in range(60):
            await harbor.set(["race", name], number, ack="durable")
            acknowledged[name] = number
            if sum(acknowledged.values()) == 200:
                end()

    async with HarborClient(cluster.url) as harbor:
        await asyncio.gather(*(write(f"w{n}") for n in range(8)))
        await comes_back(cluster, old)
        assert {name: (await harbor.get(["race", name])).data for name in acknowledged} == acknowledged
        assert set(acknowledged.values()) == {59}, "who was not answered by the one life was answered by the next"


async def test_many_writes_share_a_sync(cluster: LiveCluster) -> None:
    before = await asyncio.to_thread(syncs, cluster)
    async with HarborClient(cluster.url) as harbor:
        await asyncio.gather(*(harbor.set(["many", n], n, ack="durable") for n in range(WRITES)))
        shared = await asyncio.to_thread(syncs, cluster) - before
        assert 0 < shared < WRITES / 4
        await asyncio.gather(*(harbor.set(["many", n], -n, ack="memory") for n in range(WRITES)))
    assert await asyncio.to_thread(syncs, cluster) == before + shared, "who does not ask does not wait"


async def test_what_there_is_not_is_refused(cluster: LiveCluster) -> None:
    refused: list[Any] = [cluster.put(["no"], 1, ack="replicated"), cluster.put(["no"], 1, ack="paper")]
    assert [answer.status_code for answer in refused] == [501, 400]
    assert cluster.get("no").status_code == 404


async def test_with_no_store_the_reason_is_said(local_ray: None, tmp_path: Path) -> None:
    live = LiveCluster({"cluster": {"shards": 1}}).start()
    try:
        answer = live.put(["a"], 1, ack="durable")
        assert (answer.status_code, answer.json()["error"]["code"]) == (501, "UNSUPPORTED")
        assert "storage.path is null" in answer.json()["error"]["message"]
        assert live.put(["a"], 1).status_code == 200
    finally:
        live.stop()
