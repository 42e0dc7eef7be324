"""The admin port's errors and limits are those of the gateway's port; its health says what is waited for; who asks costs others nothing."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import msgspec
import pytest

from cluster import clock
from cluster.actors.admin import CONNECTIONS, _Paced, serving
from cluster.actors.handles import SupervisorHandle
from cluster.config import Config, load_mapping
from cluster.config.model import AuthConfig, GatewayConfig
from cluster.core.grants import Grants, line
from cluster.core.limits import Limits
from cluster.errors import HarborError
from cluster.observability.metrics import Metrics
from tests.live import free_port
from tests.tokens import SECRET, claims, signed


class Supervisor:
    """What is said of a cluster."""

    waits_for: list[str] = []  # noqa: RUF012 - a test sets its own

    def __init__(self) -> None:
        self.may_answer = threading.Event()
        self.may_answer.set()

    def describe(self) -> dict[str, Any]:
        return {"ready": not self.waits_for, "waits_for": self.waits_for}

    def dead_letters(self) -> list[Any]:
        return []

    def metrics(self) -> list[tuple[str, bytes | None]]:
        assert self.may_answer.wait(10.0)
        return [("shard-0", Metrics(component="shard", shard="0").encode()), ("shard-1", None)]


@pytest.fixture
def supervisor() -> Supervisor:
    return Supervisor()


@pytest.fixture
def config() -> Config:
    return load_mapping({"gateway": {"admin_port": free_port()}}, {})


@pytest.fixture
def admin(config: Config, supervisor: Supervisor) -> Iterator[httpx.Client]:
    url = f"http://127.0.0.1:{config.gateway.admin_port}"
    with serving(config, cast(SupervisorHandle, supervisor), shared=False), httpx.Client(base_url=url) as client:
        yield client


def test_pages_of_the_origins_that_are_said_now_may_ask(admin: httpx.Client, supervisor: Supervisor) -> None:
    document = {"admin_port": free_port()}
    config = load_mapping({"gateway": document}, {})
    other = load_mapping({"gateway": {**document, "origins": ["https://app.example"], "hsts": "60s"}}, {})
    url, page = f"http://127.0.0.1:{config.gateway.admin_port}/healthz", {"Origin": "https://app.example"}
    with serving(config, cast(SupervisorHandle, supervisor), shared=False) as reconfigure:
        assert admin.get(url, headers=page).status_code == 403
        reconfigure(other)
        answer = admin.get(url, headers=page)
        assert (answer.status_code, answer.headers["Strict-Transport-Security"]) == (200, "max-age=60")


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


def test_who_asks_in_numbers_holds_up_nobody(admin: httpx.Client, supervisor: Supervisor) -> None:
    supervisor.may_answer.clear()
    with ThreadPoolExecutor(40) as pool:
        asking = [pool.submit(admin.get, "/metrics") for _ in range(40)]
        try:
            assert admin.get("/readyz").text == "ready\n"
        finally:
            supervisor.may_answer.set()
        assert {each.result().status_code for each in asking} == {200}


async def test_calls_are_one_at_a_time_and_for_all_who_asked_before() -> None:
    begun, may_answer = threading.Event(), threading.Event()
    made: list[int] = []

    def call() -> int:
        made.append(len(made))
        begun.set()
        assert may_answer.wait(10.0)
        return made[-1]

    paced = _Paced(call)
    first = asyncio.create_task(paced())
    await asyncio.to_thread(begun.wait, 10.0)
    gone, *others = [asyncio.create_task(paced()) for _ in range(20)]
    await asyncio.sleep(0)
    gone.cancel()
    may_answer.set()
    assert [await first, *[await each for each in others]] == [0, *[1] * 19]
    assert made == [0, 1]


def test_what_is_said_is_as_of_the_question(admin: httpx.Client, supervisor: Supervisor) -> None:
    for waits_for, status in (([], 200), (["shard-0"], 503), ([], 200)):
        supervisor.waits_for = waits_for
        assert admin.get("/readyz").status_code == status


def test_a_head_is_to_come_in_time(config: Config, supervisor: Supervisor) -> None:
    gateway = msgspec.structs.replace(config.gateway, limits=Limits(head_within_ms=1.0))
    limited = msgspec.structs.replace(config, gateway=gateway)
    with (
        serving(limited, cast(SupervisorHandle, supervisor), shared=False),
        socket.create_connection(("127.0.0.1", gateway.admin_port), 10.0) as slow,
    ):
        slow.sendall(b"GET /metr")
        assert b"408" in slow.recv(1_000).split(b"\r\n")[0]


def test_an_address_has_some_connections(admin: httpx.Client, config: Config) -> None:
    assert admin.get("/healthz").text == "alive\n"
    with ExitStack() as stack:
        connect = lambda: stack.enter_context(  # noqa: E731
            socket.create_connection(("127.0.0.1", config.gateway.admin_port), 10.0)
        )
        for _ in range(CONNECTIONS // 2 - 1):
            connect()
        assert b"connections_per_address" in connect().recv(1_000)
        assert admin.get("/healthz").text == "alive\n"


def test_a_head_alone_can_be_asked_for(admin: httpx.Client) -> None:
    answer = admin.head("/healthz")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize("shared", [False, True])
def test_a_place_that_is_none_is_said(supervisor: Supervisor, shared: bool) -> None:
    auth = AuthConfig(mode="jwt", secret="s" * 40, algorithms=("HS256",))
    gateway = GatewayConfig(admin_host="a..b", admin_port=free_port(), auth=auth)
    nowhere = msgspec.structs.replace(load_mapping({}, {}), gateway=gateway)
    with (
        pytest.raises(HarborError, match=r"^gateway.admin_port: a..b:\d+ cannot be listened on: "),
        serving(nowhere, cast(SupervisorHandle, supervisor), shared=shared),
    ):
        pass


def test_a_place_that_is_taken_is_said_or_does(config: Config, admin: httpx.Client, supervisor: Supervisor) -> None:
    handle = cast(SupervisorHandle, supervisor)
    with pytest.raises(HarborError, match="cannot be listened on: "), serving(config, handle, shared=False):
        pass
    with serving(config, handle, shared=True):
        assert admin.get("/healthz").text == "alive\n"
    assert admin.get("/healthz").text == "alive\n", "the other goes on"


def test_a_key_without_the_admin_grant_does_not_see_the_cluster(supervisor: Supervisor, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    everything = Grants(read=[[]], write=[[]], mutate=["*"], presence=["*"])
    keys.write_text(f"{line('user', 'hk_user', everything)}\n{line('admin', 'hk_admin', Grants(admin=True))}\n")
    auth = {"mode": "api_keys", "keys_file": str(keys)}
    config = load_mapping({"gateway": {"admin_port": free_port(), "auth": auth}}, {})
    url = f"http://127.0.0.1:{config.gateway.admin_port}/v1/cluster"

    def answer(key: str) -> httpx.Response:
        return httpx.get(url, headers={"Authorization": f"Bearer {key}"})

    with serving(config, cast(SupervisorHandle, supervisor), shared=False):
        assert answer("hk_admin").json() == supervisor.describe()
        for key, status, code in (("hk_user", 403, "FORBIDDEN"), ("hk_nobody", 401, "UNAUTHORIZED")):
            refused = answer(key)
            assert (refused.status_code, error(refused)["code"]) == (status, code)


def test_a_token_counts_by_the_wall_clock_as_it_is_now(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = {"mode": "jwt", "secret": SECRET, "algorithms": ["HS256"]}
    config = load_mapping({"gateway": {"admin_port": free_port(), "auth": auth}}, {})
    url = f"http://127.0.0.1:{config.gateway.admin_port}/v1/cluster"

    def status(**more: Any) -> int:
        token = signed({**claims(harbor={"admin": True}), **more}, SECRET, "HS256")
        return httpx.get(url, headers={"Authorization": f"Bearer {token}"}).status_code

    with serving(config, cast(SupervisorHandle, supervisor), shared=False):
        assert status() == 200
        now = time.time() + 3_600.0
        wall = SimpleNamespace(time=lambda: now, monotonic=time.monotonic)
        monkeypatch.setattr(clock, "time", wall)
        assert status(iat=now, exp=now + 60) == 200
        assert status(exp=now - 60) == 401
