"""Pattern 11: an unreachable upstream: mutations wait, in order, and are carried out once when it is back.

They wait over a kill -9 of the shard that holds them, and over a full restart.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.actors import admin
from cluster.config import read_document
from cluster.core.placement import assign_slots
from cluster.core.query_key import CanonicalKey
from tests.guide.conftest import DEMO
from tests.live import Client, LiveCluster, eventually, free_port

pytestmark = pytest.mark.cluster
CREATES, EDITS = 10, 4
"""Fifty mutations: ten tasks, and four edits of each under its temporary id."""
FOR_LONG_MS = 600_000
PROJECT, ANOTHER = "7", "8"


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    """The demonstration with a store and its admin port."""
    env = {"UPSTREAM_URL": upstream.url, "UPSTREAM_WS": upstream.ws_url}
    document = read_document(DEMO)
    document["storage"] = {"path": str(tmp_path_factory.mktemp("store"))}
    document["gateway"]["admin_port"] = free_port()
    live = LiveCluster(document, env).start()
    with admin.serving(live.config, live.supervisor, shared=False):
        yield live
    live.stop()


def home(cluster: LiveCluster) -> str:
    """The shard of the project's scope."""
    shards = cluster.config.cluster.shards
    return f"shard-{assign_slots(range(shards), 1).shard(CanonicalKey(f'scope:project:{PROJECT}'))}"


def by_http(cluster: LiveCluster, *statuses: str) -> list[dict[str, Any]]:
    asked = {"status": ",".join(statuses)} if statuses else {}
    answer = httpx.get(f"{cluster.url}/v1/mutations", params=asked, timeout=60)
    return list(answer.raise_for_status().json()["mutations"])


def by_command(cluster: LiveCluster) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "cluster.cli", "mutations", "--pending", "--url", cluster.url]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [orjson.loads(line) for line in run.stdout.splitlines()]


def by_metrics(cluster: LiveCluster, name: str = "harbor_mutations_pending", **labels: str) -> float:
    port = cluster.config.gateway.admin_port
    families = text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text)
    samples = (each for family in families for each in family.samples if each.name == name)
    return sum(each.value for each in samples if labels.items() <= each.labels.items())


def asked(project: str = PROJECT, mark: str = "") -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(id, name, variables) of fifty mutations of one scope."""
    for number in range(CREATES):
        task = {"id": f"temp-{mark}{number}", "projectId": project}
        yield f"create-{mark}{number}", "create_task", {**task, "title": f"task {number}", "rank": 0}
        for rank in range(1, EDITS + 1):
            yield f"edit-{mark}{number}-{rank}", "update_task", {**task, "rank": rank}


async def test_fifty_mutations_survive_an_outage_and_the_death_of_their_home(
    cluster: LiveCluster, upstream: Any
) -> None:
    key = ["tasks", PROJECT]
    truth = lambda: upstream.do(lambda up: [dict(each) for each in up.tracker.task_list(PROJECT)])  # noqa: E731
    author, other = [await Client.open(cluster.url) for _ in range(2)]
    for client in (author, other):
        view = await client.subscribe("tasks", key=key)
        await client.until(lambda view=view: view.data(*key) == truth())
    before = truth()
    ids = [mutation for mutation, _, _ in asked()]
    assert len(ids) == 50

    upstream.do(lambda up: up.outage(FOR_LONG_MS))
    for mutation, name, variables in asked():
        await author.mutate(mutation, name, **variables)
    optimistic = [(f"task {number}", EDITS) for number in range(CREATES)]

    def added(client: Client) -> list[tuple[str, int]]:
        return [(each["title"], each["rank"]) for each in client.views["tasks"].data(*key)[len(before) :]]

    for client in (author, other):
        await client.until(lambda client=client: added(client) == optimistic)

    async def waiting() -> None:
        """Fifty are waiting, whoever is asked."""
        await asyncio.to_thread(eventually, lambda: by_metrics(cluster) == 50, "the metric")
        pending = await asyncio.to_thread(by_http, cluster, "queued", "paused", "pending")
        assert [each["id"] for each in pending] == ids, "in order"
        assert [each["id"] for each in await asyncio.to_thread(by_command, cluster)] == ids

    await waiting()
    await author.until(lambda: author.statuses("create-0")[-1] == "paused")
    await asyncio.to_thread(eventually, lambda: by_metrics(cluster, "harbor_mutations_oldest_seconds") > 0)

    shard = home(cluster)
    pid = await asyncio.to_thread(cluster.kill, shard)
    await asyncio.to_thread(eventually, lambda: cluster.pids().get(shard) not in (None, pid))
    await waiting()
    entry = await asyncio.to_thread(cluster.get, *key)
    assert [(each["title"], each["rank"]) for each in entry.json()["data"][len(before) :]] == optimistic
    assert upstream.do(lambda up: dict(up.applied)) == {}

    upstream.do(lambda up: up.outage(0))
    await asyncio.to_thread(eventually, lambda: len(by_http(cluster, "success")) == 50, "carried out")
    applied = upstream.do(lambda up: dict(up.applied))
    assert list(applied) == ids, "in order"
    assert set(applied.values()) == {1}, "once"
    assert [(each["title"], each["rank"]) for each in truth()[len(before) :]] == optimistic
    for client in (author, other):
        await client.until(lambda client=client: client.views["tasks"].data(*key) == truth())
    for mutation in ids:
        await author.until(lambda mutation=mutation: author.statuses(mutation)[-1] == "success")
    await asyncio.to_thread(eventually, lambda: by_metrics(cluster) == 0)
    assert await asyncio.to_thread(by_command, cluster) == []
    assert await asyncio.to_thread(by_metrics, cluster, "harbor_mutations_total", status="success") == 50
    for client in (author, other):
        await client.close()


async def test_fifty_mutations_survive_a_full_restart(cluster: LiveCluster, upstream: Any) -> None:
    ids = [mutation for mutation, _, _ in asked(ANOTHER, "later-")]
    before = upstream.do(lambda up: list(up.applied))

    def wait() -> bool:
        return [each["id"] for each in by_http(cluster, "queued", "paused", "pending")] == ids

    upstream.do(lambda up: up.outage(FOR_LONG_MS))
    author = await Client.open(cluster.url)
    for mutation, name, variables in asked(ANOTHER, "later-"):
        await author.mutate(mutation, name, **variables)
    await author.close()
    await asyncio.to_thread(eventually, wait, "in order")

    await asyncio.to_thread(cluster.stop)
    await asyncio.to_thread(cluster.start)
    await asyncio.to_thread(eventually, wait, "in order, after the restart")
    assert upstream.do(lambda up: list(up.applied)) == before

    upstream.do(lambda up: up.outage(0))
    await asyncio.to_thread(eventually, lambda: {*ids} <= {each["id"] for each in by_http(cluster, "success")})
    applied = upstream.do(lambda up: dict(up.applied))
    assert [each for each in applied if each not in before] == ids, "in order"
    assert {applied[mutation] for mutation in ids} == {1}, "once"
    tasks = upstream.do(lambda up: up.tracker.task_list(ANOTHER)[-CREATES:])
    assert [(each["title"], each["rank"]) for each in tasks] == [(f"task {number}", EDITS) for number in range(CREATES)]
