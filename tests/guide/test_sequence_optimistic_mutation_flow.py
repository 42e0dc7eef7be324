"""The guide's sequence, end to end: click, instant update, POST, broadcast, 200, event, reconcile, in this order."""

import asyncio
import time
from collections.abc import Iterator
from threading import Thread
from typing import Any

import httpx
import pytest
from aiohttp import web

from cluster.config import read_document
from cluster.demo.hub import Listener
from tests.guide.conftest import DEMO, LATENCY_MS
from tests.live import Client, LiveCluster

pytestmark = pytest.mark.cluster
PROJECT = "3"
PASSED_ON = ("content-type", "idempotency-key")


class Wire:
    """What a cluster's service is reached over: a real server that passes requests on to another, and notes when."""

    def __init__(self, target: str) -> None:
        self.noted: list[tuple[float, str]] = []
        """(monotonic time, "POST /tasks" as it comes, "201 POST /tasks" as its answer leaves)."""
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    async def _start(self) -> str:
        self._http = httpx.AsyncClient(base_url=self._target, timeout=20)
        self._runner = web.ServerRunner(web.Server(self._pass_on, access_log=None), shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _pass_on(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = f"{request.method} {request.path}"
        self.noted.append((time.monotonic(), asked))
        headers = {name: request.headers[name] for name in PASSED_ON if name in request.headers}
        answer = await self._http.request(
            request.method, request.raw_path, content=await request.read(), headers=headers
        )
        self.noted.append((time.monotonic(), f"{answer.status_code} {asked}"))
        return web.Response(status=answer.status_code, body=answer.content, content_type="application/json")

    def when(self, what: str) -> float:
        """When something passed, which is once."""
        (at,) = [at for at, noted in self.noted if noted == what]
        return at

    def stop(self) -> None:
        async def end() -> None:
            await self._runner.cleanup()
            await self._http.aclose()

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


class Antenna(Listener):
    """Notes when the server broadcasts to a channel."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.heard: list[tuple[float, bytes]] = []

    def put(self, encoded: bytes) -> None:
        self.heard.append((time.monotonic(), encoded))


@pytest.fixture
def wire(upstream: Any) -> Iterator[Wire]:
    wire = Wire(upstream.url)
    yield wire
    wire.stop()


@pytest.fixture
def cluster(local_ray: None, upstream: Any, wire: Wire) -> Iterator[LiveCluster]:
    """The demonstration, where what the server adds to a task (its version, its time) comes by its event alone."""
    document = read_document(DEMO)
    document["mutations"]["create_task"].pop("result")
    document["mutations"]["create_task"].pop("confirm_on")
    document["services"]["api"]["base_url"] = wire.url
    events = document["streams"][0]["on"]
    events["task:created"] = [
        *events["task:created"],
        {"append": {"key": ["heard"], "item": "{data.id}", "when_missing": "create"}},
    ]
    live = LiveCluster(document, {"UPSTREAM_URL": upstream.url, "UPSTREAM_WS": upstream.ws_url}).start()
    yield live
    live.stop()


async def test_the_sequence(cluster: LiveCluster, upstream: Any, wire: Wire) -> None:
    key = ["tasks", PROJECT]
    truth = lambda: upstream.do(lambda up: [dict(each) for each in up.tracker.task_list(PROJECT)])  # noqa: E731
    author, other = [await Client.open(cluster.url) for _ in range(2)]
    for client in (author, other):
        view = await client.subscribe("tasks", key=key)
        await client.until(lambda view=view: view.data(*key) == truth())
    await author.subscribe("heard", key=["heard"])
    antenna = Antenna()
    upstream.do(lambda up: up.hub.subscribe(antenna, f"project:{PROJECT}"))
    upstream.do(lambda up: up.control({"latency_ms": LATENCY_MS}))

    click = time.monotonic()
    await author.mutate("flow", "create_task", id="temp", projectId=PROJECT, title="Ship it")
    for client in (author, other):
        await client.until(lambda client=client: client.views["tasks"].data(*key)[-1]["id"] == "temp")
    upstream.do(lambda up: up.control({"latency_ms": 0}))
    for client in (author, other):
        await client.until(lambda client=client: client.views["tasks"].data(*key) == truth())
        await client.until(lambda client=client: "version" in client.views["tasks"].data(*key)[-1])
    await author.until(lambda: author.statuses("flow") == ["pending", "success"])
    await author.until(lambda: author.shown("heard", "heard"))

    def first(client: Client, holds: Any) -> float:
        """When a client was first shown the new task as `holds` says."""
        shown = ((at, data[-1]) for at, data in client.shown("tasks", *key))
        return next(at for at, task in shown if task["title"] == "Ship it" and holds(task))

    real = truth()[-1]["id"]
    (broadcast,) = [at for at, encoded in antenna.heard if b"Ship it" in encoded]
    named = [
        (at, each["data"][-1]["id"])
        for at, each in zip(author.times, author.log, strict=True)
        if each["type"] == "change" and "flow" in each.get("mutations", [])
    ]
    instant = first(author, lambda task: task["id"] == "temp")
    confirmed = first(author, lambda task: task["id"] == real)
    event = author.shown("heard", "heard")[0][0]
    assert click < instant < broadcast < wire.when("201 POST /tasks") < confirmed
    # The answer and the event come by ways of their own; both are in what is reconciled.
    assert broadcast < event
    assert max(confirmed, event) <= first(author, lambda task: task == truth()[-1])
    assert click < wire.when("POST /tasks") < broadcast
    seen = first(other, lambda task: task["id"] == "temp")
    assert click < seen < broadcast, "others see it, too, before the server has acted"
    assert [shown for _, shown in named] == ["temp", real], "the change that confirms it names the mutation"
    assert all(sum(task["title"] == "Ship it" for task in data) <= 1 for _, data in other.shown("tasks", *key))
    for client in (author, other):
        await client.close()
