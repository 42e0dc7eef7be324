"""Where actors come to be, on a Ray of several nodes."""

import json
import subprocess
import sys
from collections import Counter

import pytest

pytestmark = pytest.mark.cluster
ON_TWO_WORKERS = """
import json
import ray
from ray.cluster_utils import Cluster
from tests.live import LiveCluster

nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(2):
    nodes.add_node(num_cpus=2)
ray.init(address=nodes.address, logging_level="ERROR")
live = LiveCluster({"cluster": {"shards": 4}}).start()
print(json.dumps([shard["node"] for shard in live.supervisor.describe()["shards"]]))
live.stop()
ray.shutdown()
nodes.shutdown()
"""


def test_shards_are_spread_over_the_workers() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", ON_TWO_WORKERS], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    (said,) = [line for line in ran.stdout.splitlines() if line.startswith("[")]  # Ray may have something to say, too
    found = Counter(json.loads(said))
    assert len(found) == 2
    assert min(found.values()) >= 1
