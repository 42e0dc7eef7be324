"""Gateways follow their sessions on a Ray of several nodes, and Ray is asked for those that are missing."""

import json
import os
import subprocess
import sys
from importlib import import_module
from typing import Any

import pytest
from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.schema import AutoscalerInstance
from ray.autoscaler.v2.utils import ResourceRequestUtil

autoscaler: Any = import_module("ray.core.generated.autoscaler_pb2")  # made by protoc, without types
manager: Any = import_module("ray.core.generated.instance_manager_pb2")
PLACE = {"harbor_gateway": 1.0}

ON_NODES_WITH_PLACES = """
import json
from contextlib import ExitStack

import orjson
import ray
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from ray.cluster_utils import Cluster
from ray._raylet import GcsClient
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.live import LiveCluster, eventually

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
nodes.add_node(num_cpus=0, resources={"harbor_gateway": 1})
ray.init(address=nodes.address, logging_level="ERROR")
gcs = GcsClient(address=nodes.address)
scale = {"min": 1, "max": 2, "sessions": 2, "cool_down": "1s"}
live = LiveCluster({"cluster": {"shards": 1, "gateways": scale}}).start()


def asked():
    constraints = get_cluster_resource_state(gcs).cluster_resource_constraints
    return [(dict(each.request.resources_bundle), each.count) for of in constraints for each in of.resource_requests]


def gateways():
    return {each["id"]: each["sessions"] for each in live.supervisor.describe()["gateways"]}


def session():
    return connect(live.url.replace("http", "ws") + "/v1/socket", subprotocols=["harbor.v1"], proxy=None)


def say(to, **message):
    to.send(orjson.dumps(message).decode())


def until(of, kind):
    while True:
        for message in orjson.loads(of.recv(60)):
            if message["type"] == kind:
                return message


said = {"at first": [asked(), gateways(), live.supervisor.describe()["gateways_wanted"]]}
assert live.put(["note"], 1).status_code == 200
with ExitStack() as clients:
    first = [clients.enter_context(session()) for _ in range(3)]
    said["while a place is missing"] = [eventually(asked), list(gateways()), live.supervisor.describe()["gateways_wanted"]]
    request_resources(bundles=[])
    live.kill("supervisor")
    said["by the next life"] = eventually(asked)
    node = nodes.add_node(num_cpus=0, resources={"harbor_gateway": 1})
    eventually(lambda: gateways().get(1) == 0)
    eventually(lambda: not asked())
    for _ in range(200):  # the kernel gives a connection to either
        client = clients.enter_context(session())
        until(client, "welcome")
        if gateways()[1]:
            break
        client.close()
    say(client, type="subscribe", id=1, key=["note"])
    position = until(client, "snapshot_end")["position"]
    for each in first[1:]:
        each.close()
    say(client, type="ping", id=2)
    said["drain"] = until(client, "drain")["reconnect_after_ms"] >= 1000
    try:
        client.recv(60)
    except ConnectionClosed:
        said["code"] = client.protocol.close_code
    eventually(lambda: list(gateways()) == [0])
    again = clients.enter_context(session())
    say(again, type="subscribe", id=1, key=["note"], since=position)
    said["resumed"] = bool(until(again, "position")["token"])  # it went on: no snapshot
    said["others"] = bool(first[0].ping().wait(10))
    eventually(lambda: ray.available_resources().get("harbor_gateway") == 1)
    nodes.remove_node(node)
    said["at last"] = [asked(), gateways(), live.supervisor.describe()["gateways_wanted"]]
    more = clients.enter_context(session())
    eventually(asked)
live.stop()
said["stopped"] = asked()
print(json.dumps(said))
ray.shutdown()
nodes.shutdown()
"""


@pytest.mark.cluster
@pytest.mark.timeout(240)
def test_sessions_bring_a_gateway_and_quiet_drains_it() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ON_NODES_WITH_PLACES],
        env={**os.environ, "RAY_enable_autoscaler_v2": "1"},
        capture_output=True,
        text=True,
        timeout=230,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout.splitlines()[-1]) == {
        "at first": [[], {"0": 0}, 1],
        "while a place is missing": [[[{"harbor_gateway": 1.0}, 2]], [0], 2],
        "by the next life": [[{"harbor_gateway": 1.0}, 2]],
        "drain": True,
        "code": 3001,
        "resumed": True,
        "others": True,
        "at last": [[], {"0": 2}, 1],
        "stopped": [],
    }


def node(name: str, is_idle: bool) -> AutoscalerInstance:
    state = autoscaler.NodeState(
        node_id=name.encode(),
        ray_node_type_name="gateway",
        total_resources=PLACE,
        available_resources={"harbor_gateway": float(is_idle)},
        idle_duration_ms=400_000 if is_idle else 0,
        status=autoscaler.NodeStatus.IDLE if is_idle else autoscaler.NodeStatus.RUNNING,
    )
    instance = manager.Instance(
        instance_id=name,
        instance_type="gateway",
        status=manager.Instance.RAY_RUNNING,
        node_kind=manager.NodeKind.WORKER,
        node_id=name,
    )
    return AutoscalerInstance(ray_node=state, im_instance=instance, cloud_instance_id=name)


def decided(nodes: list[AutoscalerInstance], asked: int, most: int = 4) -> tuple[list[str], int]:
    """(nodes to end, number to begin) as Ray's own scheduler has it."""
    bundles = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(PLACE)] * asked)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            node_type_configs={
                "gateway": NodeTypeConfig(
                    name="gateway", min_worker_nodes=1, max_worker_nodes=most, resources={"harbor_gateway": 1}
                )
            },
            max_num_nodes=20,
            idle_timeout_s=300,
            disable_launch_config_check=True,
            current_instances=nodes,
            cluster_resource_constraints=[autoscaler.ClusterResourceConstraint(resource_requests=bundles)]
            if asked
            else [],
        )
    )
    return [each.instance_id for each in reply.to_terminate], sum(each.count for each in reply.to_launch)


def test_why_ray_is_asked_only_while_places_are_missing() -> None:
    """Asked for as many as are in use it may keep an idle node in their place; not asked it ends just that one."""
    nodes = [node("idle", is_idle=True), node("a", is_idle=False), node("b", is_idle=False)]
    assert decided(nodes, 2) == ([], 0)
    assert decided(nodes, 0) == (["idle"], 0)
    assert decided(nodes, 4) == ([], 1)
    assert decided(nodes, 5)[1] == 0, "what it cannot do wholly it does not do in part"
