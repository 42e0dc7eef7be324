"""Gateways follow their sessions on a Ray of several nodes, and Ray is asked for those that are missing."""

import json
import logging
import os
import subprocess
import sys

import pytest

ON_NODES_WITH_PLACES = """
import json
from contextlib import ExitStack

import orjson
import ray
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
        "drain": True,
        "code": 3001,
        "resumed": True,
        "others": True,
        "at last": [[], {"0": 2}, 1],
        "stopped": [],
    }
