"""The admin port's errors are those of the gateway's port; its health says what is waited for."""

from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest

from cluster.actors.admin import serving
from cluster.actors.handles import SupervisorHandle
from cluster.config import load_mapping
from cluster.observability.metrics import Metrics
from tests.live import free_port


class Supervisor:
    """What is said of a cluster."""

    waits_for: list[str] = []  # noqa: RUF012 - a test sets its own

    def describe(self) -> dict[str, Any]:
        return {"ready": not self.waits_for, "waits_for": self.waits_for}

    def metrics(self) -> list[tuple[str, bytes | None]]:
        return [("shard-0", Metrics(component="shard", shard="0").encode()), ("shard-1", None)]


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture
def admin(supervisor: Supervisor) -> Iterator[httpx.Client]:
    config = load_mapping({"gateway": {"admin_port": free_port()}}, {})
    url = f"http://127.0.0.1:{config.gateway.admin_port}"
    with serving(config, cast(SupervisorHandle, supervisor), shared=False), httpx.Client(base_url=url) as client:
        yield client


def error(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    (said,) = answer.json().values()
    assert said.keys() == {"code", "message", "temporary"}
    return dict(said)


def test_an_unknown_path_is_an_error_as_at_the_gateway(admin: httpx.Client) -> None:
    answer = admin.get("/nowhere")
    assert answer.status_code == 404
    assert error(answer) == {"code": "NOT_FOUND", "message": "no such endpoint: GET /nowhere", "temporary": False}


@pytest.mark.parametrize("path", ["/metrics", "/v1/cluster", "/healthz", "/readyz"])
def test_a_wrong_method_is_an_error_as_at_the_gateway(admin: httpx.Client, path: str) -> None:
    answer = admin.post(path)
    assert answer.status_code == 405
    assert error(answer) == {"code": "NOT_FOUND", "message": f"no such endpoint: POST {path}", "temporary": False}
    assert answer.headers["Allow"] == "GET,HEAD"


def test_what_is_not_ready_says_what_it_waits_for(admin: httpx.Client, supervisor: Supervisor) -> None:
    assert admin.get("/readyz").text == "ready\n"
    supervisor.waits_for = ["shard-0", "gateway-1"]
    answer = admin.get("/readyz")
    assert answer.status_code == 503
    said = {"code": "UNAVAILABLE", "message": "not ready: waiting for shard-0, gateway-1", "temporary": True}
    assert error(answer) == said


def test_metrics_are_those_of_actors_that_answer(admin: httpx.Client) -> None:
    answer = admin.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert 'harbor_fetches_total{component="shard",outcome="error",shard="0"} 0.0' in answer.text
