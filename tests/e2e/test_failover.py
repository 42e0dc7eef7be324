"""Standbys on a real cluster: what was acknowledged is there, clients see neither gap nor duplicate, and old primaries do nothing."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psutil
import pytest

from cluster.actors.specification import encode
from cluster.client import HarborClient
from cluster.config.model import CacheConfig
from cluster.errors import HarborError
from cluster.observability.metrics import decode
from tests.lasting import lasting
from tests.live import Client, LiveCluster, eventually, websocket_source

pytestmark = pytest.mark.cluster
LIMIT_S = 60.0
"""Some seconds on a quiet machine; figures are measured elsewhere."""


def rows(cluster: LiveCluster) -> list[dict[str, Any]]:
    shards: list[dict[str, Any]] = cluster.supervisor.describe()["shards"]
    return shards


def in_sync(cluster: LiveCluster) -> list[dict[str, Any]]:
    """Wait until every shard has a standby that has everything. Returns the shards."""

    def look() -> list[dict[str, Any]]:
        found = rows(cluster)
        return found if all(row["role"] == "primary" and row["standby"]["in_sync"] for row in found) else []

    return list(eventually(look, "a standby in sync"))


def figure(cluster: LiveCluster, name: str) -> float:
    return sum(sample.value for _, encoded in cluster.metrics() for sample in decode(encoded) if sample.name == name)


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    live = LiveCluster(
        {
            "cluster": {"shards": 1, "replicas": 1},
            "storage": {"path": str(tmp_path_factory.mktemp("store"))},
            "sources": {"events": websocket_source(upstream.url, reconnect={"initial": "100ms", "max": "1s"})},
            "streams": [
                {
                    "source": "events",
                    "channel": "load",
                    "join": "always",
                    "on": {
                        "tick": {
                            "append": {
                                "key": ["load", "{data.of}"],
                                "item": "{data}",
                                "when_missing": "create",
                                "max_items": 10000,
                            }
                        }
                    },
                }
            ],
        }
    ).start()
    yield live
    live.stop()


class Load:
    """Events, each with a number, and writers that ask for `replicated`, while something goes wrong."""

    def __init__(self, cluster: LiveCluster, upstream: Any, of: str) -> None:
        """`of`: what its events and entries are named after."""
        self.cluster = cluster
        self.of = of
        self.upstream = upstream
        self.said = 0
        self.acknowledged: dict[str, int] = {}
        self._stop = asyncio.Event()

    async def events(self) -> None:
        while not self._stop.is_set():
            numbers = range(self.said, self.said + 5)
            self.said += 5
            await asyncio.to_thread(self.upstream.say, "load", "tick", *({"id": n, "of": self.of} for n in numbers))
            await asyncio.sleep(0.02)

    async def writes(self, harbor: HarborClient, name: str) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                await harbor.set(["note", self.of, name], number, ack="replicated")
            except HarborError as error:
                if not error.temporary:
                    raise
                await asyncio.sleep(0.05)
            else:
                self.acknowledged[name] = number

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Client]:
        client = await Client.open(self.cluster.url)
        await client.subscribe("events", key=["load", self.of])
        await client.subscribe("notes", prefix=["note", self.of])
        async with HarborClient(self.cluster.url) as harbor:
            tasks = [asyncio.create_task(self.events())]
            tasks += [asyncio.create_task(self.writes(harbor, f"w{n}")) for n in range(4)]
            try:
                await self.goes_on(client)
                yield client
                await self.goes_on(client)
            finally:
                self._stop.set()
                await asyncio.gather(*tasks)
            for name, number in self.acknowledged.items():
                assert (await harbor.get(["note", self.of, name])).data >= number, "an acknowledged write is lost"
        await client.until(lambda: self.seen(client)[-1]["id"] == self.said - 1)
        view = client.views["events"]
        # `View` itself complains of a change that does not start where the last one ended.
        ids = [item["id"] for item in self.seen(client)]
        assert ids == list(range(ids[0], self.said))
        assert ids[0] == 0
        assert view.resets == client.views["notes"].resets == 0
        await client.close()

    def seen(self, client: Client) -> list[dict[str, int]]:
        return list(list(client.views["events"].entries.values())[0][1])  # noqa: RUF015 - where there is none yet it is an IndexError

    async def goes_on(self, client: Client, *, writes: bool = True) -> None:
        """Wait until events and writes arrive that are newer than now; while no standby is there no write is replicated."""
        said, written = self.said, dict(self.acknowledged)
        await client.until(lambda: self.seen(client)[-1]["id"] > said, LIMIT_S)
        if writes:
            await client.until(
                lambda: (
                    len(self.acknowledged) == 4 and all(n > written.get(w, 0) for w, n in self.acknowledged.items())
                ),
                LIMIT_S,
            )


@pytest.mark.soak
async def test_a_killed_primary_is_followed_by_its_standby(cluster: LiveCluster, upstream: Any) -> None:
    failovers = await asyncio.to_thread(figure, cluster, "failovers_total")
    await asyncio.to_thread(in_sync, cluster)
    load = Load(cluster, upstream, "killed")
    kills = lasting(1, 20)
    async with load.run() as client:
        for _ in range(kills):
            (before,) = await asyncio.to_thread(in_sync, cluster)
            psutil.Process(before["pid"]).kill()
            await load.goes_on(client)
            (after,) = await asyncio.to_thread(in_sync, cluster)
            assert after["pid"] == before["standby"]["pid"], "the standby leads"
            assert after["epoch"] > before["epoch"]
            assert after["standby"]["pid"] not in (before["pid"], after["pid"]), "and another was built"
    assert await asyncio.to_thread(figure, cluster, "failovers_total") == failovers + kills
    assert await asyncio.to_thread(figure, cluster, "replication_divergences_total") == 0


async def test_a_stopped_primary_that_goes_on_acknowledges_nothing(cluster: LiveCluster, upstream: Any) -> None:
    (before,) = await asyncio.to_thread(in_sync, cluster)
    old = psutil.Process(before["pid"])
    load = Load(cluster, upstream, "stopped")
    async with load.run() as client:
        old.suspend()
        try:
            await asyncio.to_thread(
                eventually, lambda: rows(cluster)[0]["pid"] == before["standby"]["pid"], "another leads"
            )
            await load.goes_on(client, writes=False)
        finally:
            old.resume()
        # It finds out that it is not the primary any longer, and becomes the standby, in another process.
        await asyncio.to_thread(eventually, lambda: not old.is_running() or old.status() == psutil.STATUS_ZOMBIE)
        await load.goes_on(client)
        (after,) = await asyncio.to_thread(in_sync, cluster)
        assert after["pid"] == before["standby"]["pid"]


async def test_it_fails_over_while_the_supervisor_is_away_as_soon_as_that_is_back(
    cluster: LiveCluster, upstream: Any
) -> None:
    (before,) = await asyncio.to_thread(in_sync, cluster)
    load = Load(cluster, upstream, "unwatched")
    async with load.run() as client:
        supervisor = psutil.Process((await asyncio.to_thread(cluster.pids))["supervisor"])
        supervisor.kill()
        await load.goes_on(client)
        psutil.Process(before["pid"]).kill()
        await load.goes_on(client)
        (after,) = await asyncio.to_thread(in_sync, cluster)
        assert after["pid"] == before["standby"]["pid"]
        assert after["epoch"] > before["epoch"]


async def test_a_killed_standby_is_replaced_and_the_primary_goes_on(cluster: LiveCluster, upstream: Any) -> None:
    (before,) = await asyncio.to_thread(in_sync, cluster)
    load = Load(cluster, upstream, "alone")
    async with load.run() as client:
        psutil.Process(before["standby"]["pid"]).kill()
        await load.goes_on(client)
        (after,) = await asyncio.to_thread(in_sync, cluster)
        assert after["pid"] == before["pid"]
        assert after["standby"]["pid"] != before["standby"]["pid"]
        assert after["epoch"] > before["epoch"], "it was removed by an epoch"


def test_everything_restarts_with_what_it_had(cluster: LiveCluster) -> None:
    in_sync(cluster)
    version = cluster.put(["kept"], {"n": 1}, ack="replicated").json()["version"]
    cluster.stop()
    cluster.start()
    entry = cluster.get("kept").json()
    assert (entry["data"], entry["version"]) == ({"n": 1}, version)


def test_without_a_directory_the_standby_has_it_in_memory(local_ray: None) -> None:
    live = LiveCluster({"cluster": {"shards": 1, "replicas": 1}}).start()
    try:
        (before,) = in_sync(live)
        assert live.put(["a"], 1, ack="replicated").status_code == 200
        assert live.put(["a"], 2, ack="durable").json()["error"]["code"] == "UNSUPPORTED"
        psutil.Process(before["pid"]).kill()
        assert live.get("a").json()["data"] == 1
        (before,) = in_sync(live)
        more = msgspec.structs.replace(live.config, cache=CacheConfig(max_entries=1000))  # shards are made anew for it
        live.supervisor.apply(encode(more, 2))
        eventually(lambda: not live.supervisor.describe()["reconfiguring"], "reconfigured")
        (after,) = in_sync(live)
        assert not {after["pid"], after["standby"]["pid"]} & {before["pid"], before["standby"]["pid"]}
        assert live.get("a").json()["data"] == 1, "one after the other, each when the other had everything"
        names = {sample.name for _, encoded in live.metrics() for sample in decode(encoded)}
        assert {"failovers_total", "shard_standby", "replication_lag_seconds", "lease_expirations_total"} <= names
    finally:
        live.stop()
