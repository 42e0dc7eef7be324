"""Shards on a Ray of several nodes: standbys are elsewhere, nodes may come, go, and burn."""

import json
import subprocess
import sys

import pytest

ON_NODES = """
import json
import tempfile
import threading

import psutil
import ray
from ray.cluster_utils import Cluster

from tests.live import LiveCluster, eventually

head = {"num_cpus": 2, "include_dashboard": False, "resources": {"harbor_store:a": 1}}
nodes = Cluster(initialize_head=True, head_node_args=head)
second = nodes.add_node(num_cpus=2, resources={"harbor_store:b": 1})
ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
live = LiveCluster({"cluster": {"shards": 2, "replicas": %(replicas)s, "gateways": 1}, "storage": {"path": tempfile.mkdtemp(), "nodes": %(stores)s}}).start()


def rows():
    return live.supervisor.describe()["shards"]


def settled(nodes_of):
    def look():
        found = rows()
        if not all(row.get("role") == "primary" for row in found):
            return None
        return found if nodes_of(found) else None
    return eventually(look, timeout_s=100)


def is_in_sync(found):
    return all(row["standby"]["in_sync"] for row in found)


def apart(found):
    return all(row["standby"]["node"] != row["node"] for row in found)


def scaled(shards):
    live.supervisor.scale({"shards": shards})
    eventually(lambda: not live.supervisor.describe()["scaling"] and len(rows()) == shards, timeout_s=100)
    return [live.get("k", n).json()["data"] for n in range(8)]


def reached(ask):  # whatever the answer says; the gateway may have to be made anew on another node first
    return eventually(ask, timeout_s=100)


said = {}
%(body)s
live.stop()
print(json.dumps(said))
ray.shutdown()
nodes.shutdown()
"""
A_NODE_BURNS = """
found = settled(lambda found: is_in_sync(found) and apart(found))
version = {n: live.put(["k", n], n, ack="replicated").json()["version"] for n in range(8)}
head = ray.get_runtime_context().get_node_id()
burning = nodes.add_node(num_cpus=2)  # room for what comes back
nodes.remove_node(second, allow_graceful=False)
entries = {n: reached(lambda: live.get("k", n)).json() for n in range(8)}
said["kept"] = all(entries[n]["data"] == n and entries[n]["version"] == version[n] for n in range(8))
said["written"] = [reached(lambda: live.put(["k", n], -n)).status_code for n in range(8)]
settled(lambda found: is_in_sync(found) and apart(found) and not any(row["node"] == second.node_id for row in found))
said["standbys are back"] = True
said["scaled"] = [scaled(3), scaled(1)]  # with standbys on another node than their primaries
settled(lambda found: is_in_sync(found) and apart(found))
"""
NODES_COME_AND_GO = """
found = settled(lambda found: len({row["node"] for row in found}) == 2)
first = {row["id"]: row["pid"] for row in found}
for n in range(8):
    assert live.put(["k", n], n).status_code == 200
thread = threading.Thread(target=lambda: [live.put(["w"], n) for n in range(200)])
thread.start()
third = nodes.add_node(num_cpus=2)
ray.get(live._handle.ask.remote("drain", second.node_id, 60.0), timeout=70)
found = settled(lambda found: second.node_id not in {row["node"] for row in found})
said["left"] = True
found = settled(lambda found: len({row["node"] for row in found} - {second.node_id}) == 2)
thread.join()
said["kept"] = [live.get("k", n).json()["data"] for n in range(8)] + [live.get("w").json()["data"]]
said["spread"] = len({row["node"] for row in found})
for row in found:
    if row["pid"] != first[row["id"]]:
        psutil.Process(row["pid"]).kill()  # it comes back where, and as what, it is
said["after a kill"] = [live.get("k", n).json()["data"] for n in range(8)]
said["scaled"] = [scaled(3), scaled(1)]  # from shards that have got to their other names
"""


A_NODE_WITH_STORES_IS_DRAINED = """
settled(lambda found: is_in_sync(found) and apart(found))
for n in range(8):
    live.put(["k", n], n, ack="replicated")
ray.get(live._handle.ask.remote("drain", second.node_id, 60.0), timeout=70)
said["left"] = second.node_id not in {row["node"] for row in rows()}
said["kept"] = [live.get("k", n).json()["data"] for n in range(8)]
said["standbys are back"] = is_in_sync(settled(lambda found: is_in_sync(found) and apart(found)))
"""


def ran(body: str, replicas: int, stores: tuple[str, ...] = ()) -> dict[str, object]:
    script = ON_NODES % {"body": body, "replicas": replicas, "stores": list(stores)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, object] = json.loads(
        next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
    )
    return said


@pytest.mark.cluster
@pytest.mark.timeout(420)
def test_a_node_burns_and_nothing_that_was_replicated_is_lost() -> None:
    assert ran(A_NODE_BURNS, 1) == {
        "kept": True,
        "written": [200] * 8,
        "standbys are back": True,
        "scaled": [[-n for n in range(8)]] * 2,
    }


@pytest.mark.cluster
@pytest.mark.timeout(420)
def test_shards_leave_a_drained_node_without_replicas_too() -> None:
    assert ran(NODES_COME_AND_GO, 0) == {
        "left": True,
        "kept": [*range(8), 199],
        "spread": 2,
        "after a kill": [*range(8)],
        "scaled": [[*range(8)]] * 2,
    }


@pytest.mark.cluster
@pytest.mark.timeout(420)
def test_a_drained_node_that_keeps_stores_is_led_by_nobody_any_more() -> None:
    said = ran(A_NODE_WITH_STORES_IS_DRAINED, 1, ("a", "b"))
    assert said == {"left": True, "kept": [*range(8)], "standbys are back": True}
