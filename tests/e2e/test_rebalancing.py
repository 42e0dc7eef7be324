"""Shards, coordinators and gateways come and go under load: nothing is lost or doubled, and clients notice nothing."""

import asyncio
import copy
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.actors import ray_head
from cluster.cli.backup import make, put_back
from cluster.client import HttpClient
from cluster.observability import metrics
from cluster.simulation.view import View
from tests.e2e.ledger_upstream import truth
from tests.e2e.test_exactly_once import RULES, _entry, _last, by_socket
from tests.e2e.test_failover import in_sync
from tests.live import Client, LiveCluster, eventually, free_port

pytestmark = pytest.mark.cluster
RATE = 2_000
CHANNELS = 4
KILL_AFTER_S = 0.15
"""Into a move, which takes some tenths of a second once its actors are there; which part it hits is left to chance."""
SUBSCRIPTIONS: dict[str, dict[str, Any]] = {
    "lists": {"prefix": ["list"], "mode": "patch"},
    "counts": {"prefix": ["count"], "mode": "data"},
    "last": {"key": ["last", "k0"]},
    "written": {"prefix": ["written"]},
}


@pytest.fixture
def ledger() -> Iterator[str]:
    port = free_port()
    arguments = [sys.executable, "-m", "tests.e2e.ledger_upstream", str(port), str(RATE), str(CHANNELS)]
    with subprocess.Popen(arguments) as upstream:
        yield f"127.0.0.1:{port}"
        upstream.kill()


def document(ledger: str, store: Path, **counts: int) -> dict[str, Any]:
    return {
        "cluster": counts,
        "storage": {"path": str(store)},
        "sources": {"ledger": by_socket(ledger)},
        "streams": [
            {"source": "ledger", "channel": f"ledger:{n}", "join": "always", "on": RULES} for n in range(CHANNELS)
        ],
    }


class Writer:
    """Writes numbers to some keys, one after the other, each until it is acknowledged."""

    def __init__(self, cluster: LiveCluster) -> None:
        self._cluster = cluster
        self.acknowledged: dict[str, int] = {}
        self._goes_on = True
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        number = 0
        async with httpx.AsyncClient(base_url=self._cluster.url, timeout=30) as http:
            while self._goes_on:
                number += 1
                key = f'["written",{number % 20}]'
                headers = {"Idempotency-Key": f"write-{number}"}
                while True:
                    try:
                        answer = await http.put("/v1/entries", params={"key": key}, json=number, headers=headers)
                    except httpx.HTTPError:
                        await asyncio.sleep(0.02)  # its gateway is on its way
                        continue
                    if answer.is_success:
                        break
                    await asyncio.sleep(0.02)
                self.acknowledged[key] = number

    async def stop(self) -> dict[str, int]:
        self._goes_on = False
        await self._task
        return self.acknowledged


async def subscribed(cluster: LiveCluster) -> Client:
    client = await Client.open(cluster.url)
    for sub, what in SUBSCRIPTIONS.items():
        await client.subscribe(sub, **what)
    return client


class Traveller:
    """A client that goes with its tokens and comes back later."""

    def __init__(self, views: dict[Any, View]) -> None:
        self._views = views

    @classmethod
    async def leave(cls, cluster: LiveCluster) -> "Traveller":
        client = await subscribed(cluster)
        await client.until(lambda: all(view.changes for sub, view in client.views.items() if sub != "written"))
        await client.close()
        return cls(client.views)

    async def returns(self, cluster: LiveCluster) -> None:
        """Come back and catch up: an exact continuation, or the view raises."""
        client = await Client.open(cluster.url)
        for sub, view in self._views.items():
            client.views[sub] = copy.deepcopy(view)
            changes = view.changes
            await client.subscribe(sub, wait=False, since=view.token, **SUBSCRIPTIONS[sub])
            if sub != "written":
                await client.until(lambda sub=sub, changes=changes: client.views[sub].changes > changes)
        assert not any(view.resets for view in client.views.values()), "a token did not last"
        await client.close()


async def scale(cluster: LiveCluster, **counts: int) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=30) as http:
        assert (await http.post(f"{cluster.url}/v1/scale", json=counts)).json() == counts

    def is_done() -> Any:
        described = cluster.supervisor.describe()
        there = all(len(described[kind]) == number for kind, number in counts.items())
        return not described["scaling"] and described["ready"] and there and described

    described: dict[str, Any] = await asyncio.to_thread(eventually, is_done, str(counts), timeout_s=150.0, every_s=0.5)
    return described


def keep(cluster: LiveCluster) -> dict[str, int]:
    """Write some entries; return them."""
    for number in range(50):
        assert cluster.put(["kept", number], number).is_success
    return {f'["kept",{number}]': number for number in range(50)}


async def check(cluster: LiveCluster, ledger: str, written: dict[str, int]) -> dict[str, Any]:
    last = httpx.post(f"http://{ledger}/stop").json()["last"]
    wanted = truth(last) | written
    held: dict[str, Any] = {}

    def is_there() -> bool:
        held.update({key: _entry(cluster, key) for key in wanted if held.get(key) != wanted[key]})
        return held == wanted

    try:
        await asyncio.to_thread(eventually, is_there, timeout_s=30.0)
    except AssertionError:
        wrong = {key: (held.get(key), wanted[key]) for key in wanted if held.get(key) != wanted[key]}
        pytest.fail(f"{len(wrong)} of {len(wanted)} entries, such as {str(dict(list(wrong.items())[:3]))[:900]}")
    return wanted


def pauses(cluster: LiveCluster) -> tuple[int, float]:
    """(moves, seconds of pause in all)."""
    for _, encoded in cluster.metrics():
        for sample in metrics.decode(encoded):
            if sample.name == "rebalance_pause_seconds":
                return sum(sample.buckets), sample.value
    raise AssertionError("no such metric")


@asynccontextmanager
async def running(ledger: str, store: Path, **counts: int) -> AsyncIterator[LiveCluster]:
    await asyncio.to_thread(eventually, lambda: httpx.post(f"http://{ledger}/cut").is_success)
    cluster = await asyncio.to_thread(LiveCluster(document(ledger, store, **counts)).start)
    try:
        await asyncio.to_thread(eventually, lambda: _last(cluster, "k0") > RATE)
        yield cluster
    finally:
        await asyncio.to_thread(cluster.stop)


@pytest.mark.timeout(400)
async def test_clients_notice_nothing_while_shards_come_and_go(local_ray: None, tmp_path: Path, ledger: str) -> None:
    async with running(ledger, tmp_path, shards=2) as cluster:
        client = await subscribed(cluster)
        writer = Writer(cluster)
        traveller = await Traveller.leave(cluster)
        for counts in (
            {"shards": 4, "coordinators": 2},
            {"gateways": 2},
            {"shards": 1, "coordinators": 1, "gateways": 1},
        ):
            before = await Traveller.leave(cluster)
            described = await scale(cluster, **counts)
            assert described["ready"]
            await before.returns(cluster)
        await traveller.returns(cluster)
        wanted = await check(cluster, ledger, await writer.stop())
        seen = {
            sub: {key: value for key, value in wanted.items() if key.startswith(f'["{name}"')}
            for sub, name in (("lists", "list"), ("counts", "count"), ("written", "written"))
        }

        def held(sub: str) -> dict[str, Any]:
            return {key: data for key, (_, data) in client.views[sub].entries.items()}

        await client.until(lambda: all(held(sub) == each for sub, each in seen.items()))
        ends = {
            sub: next(
                place for place, each in enumerate(client.log) if each["type"] == "snapshot_end" and each["sub"] == sub
            )
            for sub in SUBSCRIPTIONS
        }
        later = {
            each["type"] for place, each in enumerate(client.log) if place > ends.get(each.get("sub"), len(client.log))
        }
        assert later == {"change", "position"}
        moves, paused_s = pauses(cluster)
        print(f"{moves} moves, {paused_s:.3f} s of pause")
        assert moves == 2
        assert not list((tmp_path / cluster.name).glob("shard-1*"))
        await client.close()


@pytest.mark.timeout(180)
async def test_a_move_is_completed_or_given_up_whoever_dies(local_ray: None, tmp_path: Path, ledger: str) -> None:
    async with running(ledger, tmp_path, shards=2) as cluster:
        writer = Writer(cluster)
        for victim, shards in (("shard-0", 4), ("supervisor", 1), ("shard-2", 3)):  # who gives, who decides, who takes
            pids = await asyncio.to_thread(cluster.pids)

            def strike(victim: str = victim, shards: int = shards, pids: dict[str, int] = pids) -> bool:
                """Ask for it, and kill as soon as it has begun; a supervisor that dies at once has to be asked again."""
                httpx.post(f"{cluster.url}/v1/scale", json={"shards": shards}, timeout=30)
                pid = pids.get(victim) or cluster.pids().get(victim)
                if pid is None:
                    return False
                time.sleep(KILL_AFTER_S)
                psutil.Process(pid).kill()
                return True

            await asyncio.to_thread(eventually, strike)
            await asyncio.to_thread(eventually, lambda: cluster.supervisor.describe()["ready"])
            await scale(cluster, shards=shards)
        await check(cluster, ledger, await writer.stop())


@pytest.mark.timeout(180)
async def test_a_cluster_that_was_scaled_begins_anew_as_it_was_and_goes_to_what_is_configured(
    local_ray: None, tmp_path: Path, ledger: str
) -> None:
    async with running(ledger, tmp_path, shards=1) as cluster:
        await scale(cluster, shards=3)
        kept = await asyncio.to_thread(keep, cluster)
        await asyncio.to_thread(cluster.stop)
        await asyncio.to_thread(cluster.start)

        def is_there() -> bool:
            described = cluster.supervisor.describe()
            return not described["scaling"] and len(described["shards"]) == 1

        await asyncio.to_thread(eventually, is_there, every_s=0.1)
        await check(cluster, ledger, kept)


@pytest.mark.timeout(300)
async def test_shards_that_have_standbys_come_and_go(local_ray: None, tmp_path: Path, ledger: str) -> None:
    async with running(ledger, tmp_path, shards=1, replicas=1) as cluster:
        writer = Writer(cluster)
        await scale(cluster, shards=3)
        await asyncio.to_thread(in_sync, cluster)
        await asyncio.to_thread(cluster.kill, "shard-1")  # its standby has what has moved
        await scale(cluster, shards=1)
        for shard in (1, 2):
            record = await asyncio.to_thread(ray_head.kept, cluster.name, shard)
            assert record is not None
            assert (record.store, record.primary) == ("", ""), "its next life would wait for what is no more"
            assert not list((tmp_path / cluster.name).glob(f"shard-{shard}*"))
        await scale(cluster, shards=2)
        await asyncio.to_thread(in_sync, cluster)
        await check(cluster, ledger, await writer.stop())


@pytest.mark.timeout(300)
async def test_a_cluster_that_was_scaled_is_backed_up_and_restored_as_it_was(
    local_ray: None, tmp_path: Path, ledger: str
) -> None:
    async with running(ledger, tmp_path / "store", shards=1) as cluster:
        await scale(cluster, shards=3)
        kept = await asyncio.to_thread(keep, cluster)
        made = await asyncio.to_thread(make, HttpClient(cluster.url), tmp_path / "backup")
        assert (len(made.shards), made.slots_epoch) == (3, 2)
    shutil.rmtree(tmp_path / "store")
    again = LiveCluster(document(ledger, tmp_path / "store", shards=3))
    assert put_back(tmp_path / "backup", again.config, shards=[], replaces=False).is_exact
    await asyncio.to_thread(again.start)
    try:
        await scale(again, shards=2)  # what was restored moves as anything
        await check(again, ledger, kept)
    finally:
        await asyncio.to_thread(again.stop)
