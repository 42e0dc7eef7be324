"""What an actor's process loads, and what Ray sees of it."""

import subprocess
import sys

import pytest
import ray

from cluster.actors.supervisor import KINDS
from tests.live import LiveCluster

NOT_LOADED = ("httpx", "jwt", "pydantic", "websockets", "cluster.web")
"""Libraries for what a configuration may ask for: each costs every process a part of its start."""
LOOK = """
import sys
from importlib import import_module
import_module(sys.argv[1])
print(*(name for name in sys.argv[2:] if name in sys.modules))
"""


@pytest.mark.parametrize("place", [*KINDS.values(), "cluster.actors.supervisor:SupervisorActor"])
def test_an_actor_loads_what_it_needs(place: str) -> None:
    module = place.partition(":")[0]
    command = [sys.executable, "-c", LOOK, module, *NOT_LOADED]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []


@pytest.mark.cluster
def test_ray_wraps_nothing_of_an_actor_but_its_two_methods(local_ray: None) -> None:
    live = LiveCluster({"cluster": {"shards": 1}}).start()
    try:
        handle = ray.get_actor("shard-0", f"harbor-{live.name}")
        methods = {name for name in handle._ray_method_signatures if not name.startswith("__")}
        assert methods == {"call", "ask"}
        assert ray.get(handle.ask.remote("status"), timeout=30)["role"] == "primary"
        with pytest.raises(AttributeError, match="no_such"):
            ray.get(handle.ask.remote("no_such"), timeout=30)
        assert live.pids()["shard-0"] == ray.get(handle.ask.remote("status"), timeout=30)["pid"], "it lives"
    finally:
        live.stop()
