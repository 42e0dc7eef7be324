"""Whatever a service answers, an entry keeps its data, says what was wrong, and its shard lives."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from tests.live import LiveCluster, eventually

pytestmark = pytest.mark.cluster


class Service:
    """A real server on a thread of its own that answers as it is told, and notes what it was asked."""

    def __init__(self) -> None:
        self.how = "good"
        self.headers: list[Any] = []
        self._runs = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._runs.wait(10)
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(10)

    def _run(self) -> None:
        with asyncio.Runner() as runner:  # in the end it cancels what is under way, and closes the loop
            self.loop = runner.get_loop()
            self._runs.set()
            self.loop.run_forever()

    async def _start(self) -> str:
        self.runner = web.ServerRunner(web.Server(self._answer, access_log=None), shutdown_timeout=1.0)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.headers.append(request.headers)
        match self.how:
            case "good":
                return web.json_response({"good": True})
            case "tagged":
                held = request.headers.get("If-None-Match")
                return web.Response(status=304) if held == '"t1"' else web.json_response([1], headers={"ETag": '"t1"'})
            case "no json":
                return web.Response(text="<html>")
            case "empty":
                return web.Response(text="")
            case "huge":
                return web.Response(body=b"[" + b"1," * (25 * 2**20) + b"1]", content_type="application/json")
            case "deep":
                return web.Response(body=b"[" * 10_000 + b"]" * 10_000, content_type="application/json")
            case "rather deep":
                return web.Response(body=b"[" * 500 + b"]" * 500, content_type="application/json")
            case "redirect":
                return web.Response(status=302, headers={"Location": self.url})
            case "nowhere":
                return web.Response(status=302, headers={"Location": "mailto:a:b"})
            case "never":
                return web.Response(status=429, headers={"Retry-After": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"})
            case "hang up":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            case "nothing":
                await asyncio.sleep(3_600)
                return web.Response()
            case status:
                return web.json_response({"error": 1}, status=int(status))

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.runner.cleanup(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def cluster(local_ray: None, service: Service) -> Iterator[LiveCluster]:
    live = LiveCluster(
        {
            "cluster": {"shards": 1},
            "services": {"api": {"base_url": service.url}, "hasty": {"base_url": service.url, "timeout": "700ms"}},
            "queries": [
                {"key": ["q", "{n}"], "service": "api", "path": "/q/{n}", "retry": 0},
                {"key": ["silent", "{n}"], "service": "hasty", "path": "/s/{n}", "retry": 0},
                {"key": ["patient", "{n}"], "service": "api", "path": "/p/{n}", "retry": 2, "retry_delay": "10ms"},
            ],
        }
    ).start()
    yield live
    live.stop()


@pytest.mark.parametrize(
    ("how", "reason", "tries"),
    [
        ("no json", "the body is not JSON", 1),
        ("empty", "the body is not JSON", 1),
        ("huge", "the body is over 16777216 bytes", 1),
        ("deep", "nested too deep", 1),
        ("rather deep", "nested deeper than 254 levels", 1),
        ("redirect", "http 302", 1),
        ("nowhere", "cannot be asked, or understood", 1),
        ("never", "http 429", 3),
        ("404", "http 404", 1),
        ("400", "http 400", 1),
        ("429", "http 429", 3),
        ("500", "http 500", 3),
    ],
)
def test_the_entry_keeps_its_data_and_says_what_was_wrong(
    cluster: LiveCluster, service: Service, how: str, reason: str, tries: int
) -> None:
    pid = cluster.pids()["shard-0"]
    service.how = "good"
    version = cluster.get("patient", how).json()["version"]
    service.how = how
    service.headers.clear()
    missing = cluster.get("q", how)
    assert (missing.status_code, missing.json()["error"]["code"]) == (502, "UPSTREAM_ERROR")
    assert reason in missing.json()["error"]["message"]
    assert len(service.headers) == 1
    kept = cluster.get("patient", how, fetch="force").json()
    assert (kept["data"], kept["version"], kept["status"], kept["is_stale"]) == ({"good": True}, version, "error", True)
    assert reason in kept["error"]["message"]
    assert len(service.headers) == 1 + tries
    service.how = "good"
    assert cluster.get("patient", how).json()["status"] == "success"
    assert cluster.pids()["shard-0"] == pid


@pytest.mark.parametrize(("how", "reason"), [("nothing", "no answer within 0.7 s"), ("hang up", "")])
def test_a_service_that_says_nothing(cluster: LiveCluster, service: Service, how: str, reason: str) -> None:
    service.how = how
    missing = cluster.get("silent", how)
    assert (missing.status_code, missing.json()["error"]["code"]) == (502, "UPSTREAM_ERROR")
    assert reason in missing.json()["error"]["message"]
    service.how = "good"
    eventually(lambda: cluster.get("silent", how, fetch="force").json().get("status") == "success")


def test_what_is_held_already_is_not_sent_again(cluster: LiveCluster, service: Service) -> None:
    service.how = "tagged"
    first = cluster.get("q", "tagged").json()
    again = cluster.get("q", "tagged", fetch="force").json()
    assert service.headers[-1]["If-None-Match"] == '"t1"'
    assert (again["data"], again["version"], again["status"]) == ([1], first["version"], "success")
    assert again["data_updated_at"] > first["data_updated_at"]
    cluster.put(["q", "tagged"], [2])
    assert cluster.get("q", "tagged", fetch="force").json()["version"] > first["version"]
    assert "If-None-Match" not in service.headers[-1], "it is not what the service sent any more"
