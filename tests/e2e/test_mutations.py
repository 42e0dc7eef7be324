"""Mutations of a running cluster: what their author sees, who waits for them, and that kill -9 of a shard loses neither."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from aiohttp import web

from cluster.client import HarborClient
from cluster.errors import ErrorCode, HarborError
from tests.live import Client, LiveCluster, eventually

pytestmark = pytest.mark.cluster
KEY = ["note", 1]


class Service:
    """A real server on a thread of its own that notes what it is asked, and answers while it is `open`."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        """(idempotency key, body)."""
        self.open = threading.Event()
        self.open.set()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(10)

    async def _start(self) -> str:
        runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        self.asked.append((request.headers["Idempotency-Key"], body))
        while not self.open.is_set():
            await asyncio.sleep(0.01)
        return web.json_response({**body, "saved": True})


@pytest.fixture(scope="module")
def service() -> Service:
    return Service()


@pytest.fixture(scope="module")
def cluster(local_ray: None, service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    save = {
        "request": {"service": "api", "method": "PATCH", "path": "/notes/{id}", "body": "{variables}"},
        "optimistic": [{"merge": {"key": ["note", "{id}"], "value": "{variables}"}}],
        "scope": "note:{id}",
    }
    live = LiveCluster(
        {
            "services": {"api": {"base_url": service.url}},
            "mutations": {"save": save},
            "storage": {"path": str(tmp_path_factory.mktemp("store"))},
        }
    ).start()
    yield live
    live.stop()


async def test_the_author_sees_it_before_its_service_has_answered(cluster: LiveCluster, service: Service) -> None:
    service.open.clear()
    client = await Client.open(cluster.url)
    async with HarborClient(cluster.url) as harbor:
        await harbor.set(KEY, {"id": 1, "text": "old"})
    view = await client.subscribe("w", key=KEY)
    variables = {"id": 1, "text": "new"}
    answer = await client.ask(type="mutate", id=1, name="save", variables=variables, mutation_id="m1")
    assert answer == {"type": "result", "re": 1, "mutation_id": "m1"}
    await client.until(lambda: view.entries[orjson.dumps(KEY).decode()][1] == {"id": 1, "text": "new"})
    service.open.set()
    await client.until(lambda: [each["status"] for each in client.log if each["type"] == "mutation"][-1] == "success")
    told = [each for each in client.log if each["type"] == "mutation"]
    assert [each["status"] for each in told] == ["pending", "success"]
    assert told[-1]["result"] == {"id": 1, "text": "new", "saved": True}
    named = [each["mutations"] for each in client.log if each["type"] == "change"]
    assert named == [["m1"], ["m1"]]
    await client.close()


@pytest.mark.parametrize("actor", ["gateway", "shard"])
async def test_an_author_that_comes_back_after_a_death_is_told_the_outcome(
    cluster: LiveCluster, service: Service, actor: str
) -> None:
    service.open.clear()
    author = await Client.open(cluster.url)
    await author.mutate(f"lost with {actor}", "save", id=actor, text="new")
    await author.until(lambda: author.statuses(f"lost with {actor}") == ["pending"])
    (welcome,) = [each for each in author.log if each["type"] == "welcome"]
    author.break_off()
    before = await asyncio.to_thread(cluster.pids)
    victims = [each for each in before if each.startswith(actor)]
    for victim in victims:
        await asyncio.to_thread(cluster.kill, victim)
    await asyncio.to_thread(
        eventually, lambda: all(cluster.pids().get(each) not in (None, before[each]) for each in victims)
    )
    await asyncio.to_thread(eventually, lambda: httpx.get(f"{cluster.url}/readyz", timeout=60).status_code == 200)

    back = await Client.open(cluster.url)
    await back.send(type="hello", resume=welcome["resume_token"])
    await back.until(lambda: back.statuses(f"lost with {actor}"))
    service.open.set()
    await back.until(lambda: back.statuses(f"lost with {actor}")[-1] == "success")
    assert back.statuses(f"lost with {actor}").count("success") == 1
    await back.close()


def harbor(cluster: LiveCluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", *arguments, "--url", cluster.url]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


async def test_undo_by_command(cluster: LiveCluster, service: Service) -> None:
    async with HarborClient(cluster.url) as client:
        begun = await client.mutate("save", {"id": 2}, id="m2", delay_ms=60_000)
        assert begun.status == "scheduled"
        listed = await asyncio.to_thread(harbor, cluster, "mutations", "--pending")
        assert [orjson.loads(row)["id"] for row in listed.stdout.splitlines()] == ["m2"]
        done = await asyncio.to_thread(harbor, cluster, "undo", "m2")
        assert (done.returncode, orjson.loads(done.stdout)["status"]) == (0, "cancelled")
        assert (await client.mutation("m2")).status == "cancelled"
        with pytest.raises(HarborError) as caught:
            await client.undo("m1")
        assert (caught.value.code, caught.value.details) == (ErrorCode.CONFLICT, {"status": "success"})
    assert "m2" not in dict(service.asked)


async def test_who_waits_hears_of_the_outcome_over_a_kill_of_its_home(cluster: LiveCluster, service: Service) -> None:
    service.open.clear()
    async with HarborClient(cluster.url) as harbor:
        wait = asyncio.ensure_future(harbor.mutate("save", {"id": 3}, id="m3", wait=True))
        await asyncio.to_thread(eventually, lambda: "m3" in dict(service.asked))
        for shard in ("shard-0", "shard-1"):  # whichever its home is
            old = await asyncio.to_thread(cluster.kill, shard)
            await asyncio.to_thread(eventually, lambda s=shard, o=old: cluster.pids().get(s) not in (None, o))
        service.open.set()
        outcome = await wait
    assert (outcome.status, outcome.result) == ("success", {"id": 3, "saved": True})
