"""The commands of the chart's pods, run for real: readiness, a client, drains, restarts, changed configurations and keys."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.deploy.pods import EVERYTHING, MAY_UNSHARE, Deployment, eventually

pytestmark = pytest.mark.cluster
NOTE = {"key": '["note"]'}


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    made = Deployment(tmp_path_factory.mktemp("deploy"), {"cluster": {"name": "pods", "shards": 2}})
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def running(deployment: Deployment) -> Deployment:
    """All pods ready; those that a test has ended are made anew."""
    for pod in deployment.pods.values():
        if pod.process is None or pod.process.poll() is not None:
            pod.start()
    await_ready(deployment)
    return deployment


def await_ready(deployment: Deployment) -> None:
    for pod in deployment.pods.values():
        eventually(
            lambda pod=pod: pod.probe("readinessProbe"), f"{pod.name} is not ready: {pod.log.read_text()[-2000:]}"
        )


def socket(deployment: Deployment, key: str | None = None) -> ClientConnection:
    return connect(
        f"ws://127.0.0.1:{deployment.http}/v1/socket",
        subprotocols=["harbor.v1"],  # type: ignore[list-item]
        additional_headers={"Authorization": f"Bearer {key or deployment.key}"},
    )


def say(to: ClientConnection, **message: Any) -> None:
    to.send(orjson.dumps(message).decode())


def until(of: ClientConnection, kind: str) -> dict[str, Any]:
    while True:
        for message in orjson.loads(of.recv(60)):
            if message["type"] == kind:
                found: dict[str, Any] = message
                return found


def test_half_a_deployment_lives_and_is_not_ready(deployment: Deployment) -> None:
    head, controller = deployment.pods["head"], deployment.pods["controller"]
    controller.start()
    head.start()
    eventually(lambda: controller.probe("livenessProbe"), "the controller does not live")
    assert not controller.probe("readinessProbe")
    deployment.pods["gateway"].start()
    eventually(lambda: deployment.pods["gateway"].probe("startupProbe"), "the gateway's node does not live")
    assert not deployment.pods["gateway"].probe("readinessProbe")
    assert not controller.probe("readinessProbe")
    deployment.pods["worker"].start()
    await_ready(deployment)


@pytest.mark.skipif(
    MAY_UNSHARE.returncode != 0, reason="mount namespaces are not allowed here: pods run on writable files"
)
def test_the_pods_run_on_read_only_files(running: Deployment) -> None:
    for pod in running.pods.values():
        assert pod.process is not None
        mounts = Path(f"/proc/{pod.process.pid}/mountinfo").read_text().splitlines()
        root = next(fields for fields in map(str.split, mounts) if fields[4] == "/")
        assert "ro" in root[5].split(",")


def test_a_client_is_served_through_the_gateway(running: Deployment) -> None:
    with socket(running) as client:
        say(client, type="subscribe", id=1, key=["live"])
        until(client, "snapshot_end")
        assert running.request("PUT", "/v1/entries", params={"key": '["live"]'}, content=b'{"n":1}').status_code == 200
        assert until(client, "change")["data"] == {"n": 1}
    described = running.request("GET", "/v1/cluster").json()
    assert (described["ready"], len(described["nodes"]), len(described["shards"])) == (True, 4, 2)
    where = {kind: {each["node"] for each in described[kind]} for kind in ("shards", "ingestors", "gateways")}
    assert where["shards"] == where["ingestors"]
    assert where["gateways"].isdisjoint(where["shards"])


def test_a_gateway_that_ends_sends_its_clients_elsewhere(running: Deployment) -> None:
    gateway, controller = running.pods["gateway"], running.pods["controller"]
    with socket(running) as client:
        say(client, type="subscribe", id=1, key=["drained"])
        position = until(client, "snapshot_end")["position"]
        assert gateway.terminate() == 0
        assert until(client, "drain")["reconnect_after_ms"] >= 1000
        with pytest.raises(ConnectionClosed):
            client.recv(60)
        assert client.protocol.close_code == 3001
    assert not gateway.probe("readinessProbe")
    eventually(lambda: not controller.probe("readinessProbe"), "without a gateway it is still ready")
    gateway.start()
    await_ready(running)
    with socket(running) as client:
        say(client, type="subscribe", id=1, key=["drained"], since=position)
        assert until(client, "position")["token"]  # it went on: no snapshot


def test_a_worker_that_ends_closes_its_stores_and_has_them_again(running: Deployment) -> None:
    worker = running.pods["worker"]
    version = running.request("PUT", "/v1/entries", params=NOTE, content=b'"kept"').json()["version"]
    assert worker.terminate() == 0
    assert "drained shard-" in worker.log.read_text()
    worker.start()

    def is_served() -> bool:
        answer = running.request("GET", "/v1/entries", params=NOTE)
        return answer.status_code == 200 and answer.json()["origin"]["kind"] == "restored"

    eventually(is_served, "the entry is not served again")
    entry = running.request("GET", "/v1/entries", params=NOTE).json()
    assert (entry["data"], entry["version"]) == ("kept", version)


def test_the_cluster_goes_on_without_its_controller(running: Deployment) -> None:
    controller = running.pods["controller"]
    pids = {each["pid"] for each in running.request("GET", "/v1/cluster").json()["shards"]}
    assert controller.terminate() == 0
    assert running.request("PUT", "/v1/entries", params=NOTE, content=b"1").status_code == 200
    controller.start()
    await_ready(running)
    assert {each["pid"] for each in running.request("GET", "/v1/cluster").json()["shards"]} == pids


def test_a_changed_configuration_is_applied_as_it_runs(running: Deployment) -> None:
    log = running.pods["controller"].log
    assert running.request("PUT", "/v1/entries", params=NOTE, content=b'"before"').status_code == 200
    running.write_config(storage={"sync": "never"})
    eventually(lambda: "storage: cannot change while the cluster runs" in log.read_text(), "not refused")
    running.write_config(storage={"sync": "window"}, queries=[{"key": ["q"], "service": "nowhere", "path": "/q"}])
    eventually(lambda: "queries.0.service: no such service" in log.read_text(), log.read_text()[-500:])
    with socket(running) as client:
        say(client, type="subscribe", id=1, key=["note"])
        until(client, "snapshot_end")
        running.write_config(
            services={"api": {"base_url": "http://127.0.0.1:9"}},
            queries=[{"key": ["q", "{id}"], "service": "api", "path": "/q", "retry": 0}],
            gateway={"origins": ["https://app.example"]},
        )

        def is_applied() -> bool:
            answer = running.request("GET", "/v1/entries", params={"key": '["q","1"]'})
            return bool(answer.json()["error"]["code"] == "UPSTREAM_ERROR")  # before: NOT_FOUND

        eventually(is_applied, "the query is not declared")
        eventually(lambda: not running.request("GET", "/v1/cluster").json()["reconfiguring"], "it goes on and on")
        refused = running.request("GET", "/v1/keys", headers={"Origin": "https://other.example"})
        assert refused.status_code == 403
        assert running.request("PUT", "/v1/entries", params=NOTE, content=b'"after"').status_code == 200
        # The same socket, over the shards' new lives, without a reset.
        messages: list[dict[str, Any]] = []
        while not any(each["type"] == "change" for each in messages):
            messages.extend(orjson.loads(client.recv(60)))
        assert "reset" not in {each["type"] for each in messages}
        assert messages[-1]["type"] in ("change", "position")


def test_keys_are_read_again_when_their_file_changes(running: Deployment) -> None:
    running.write_keys(everything=EVERYTHING, second=EVERYTHING)
    eventually(
        lambda: running.request("GET", "/v1/keys", headers={"Authorization": "Bearer hk_second"}).status_code == 200,
        "the new key is not known",
    )
    with socket(running, "hk_second") as client:
        until(client, "welcome")
        running.write_keys(everything=EVERYTHING)
        with pytest.raises(ConnectionClosed):
            client.recv(60)
        assert client.protocol.close_code == 3500
    assert running.request("GET", "/v1/keys", headers={"Authorization": "Bearer hk_second"}).status_code == 401


def test_the_admin_port_shows_metrics_to_anybody_and_the_cluster_to_admins(running: Deployment) -> None:
    import httpx

    admin = f"http://127.0.0.1:{running.admin}"
    assert "harbor_actor_up" in httpx.get(f"{admin}/metrics", timeout=30).text
    assert httpx.get(f"{admin}/v1/cluster", timeout=30).status_code == 401
    shown = httpx.get(f"{admin}/v1/cluster", headers={"X-API-Key": running.key}, timeout=30)
    assert shown.json()["ready"]
    assert running.key not in shown.text


def test_a_faulty_configuration_ends_the_controller_with_the_key_and_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "harbor.yaml"
    path.write_text("cluster: {shard: 4}\n")
    harbor = Path(sys.executable).parent / "harbor"
    command = [str(harbor), "up", str(path), "--address", "127.0.0.1:1", "--join", "--keep"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (2, f"{path}: cluster.shard: unknown key, did you mean shards?\n")
