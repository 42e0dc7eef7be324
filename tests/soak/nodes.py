"""The nodes of a fleet: `ray.cluster_utils.Cluster` in a process of its own, since Ray takes that process's signals.

python -m tests.soak.nodes     takes commands on standard input, each a JSON array, and answers each with a line of JSON; at its end ends all
"""

import os
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import orjson
import psutil
import ray._common.utils
from ray.cluster_utils import Cluster

from cluster.actors.node import ENVIRONMENT

CPUS = 2
"""Of a node that actors run on; the head has none, as the Helm chart's."""
END_S = 10.0
HEAD = "head"


class Nodes:
    """Each public method is a command. Nodes are named by Ray's ids, or `HEAD`."""

    def __init__(self) -> None:
        self._ray: Any = None

    def start(self, count: int) -> str:
        """Start a head and so many nodes, as `harbor node` does. Returns Ray's address."""
        os.environ.update(ENVIRONMENT)
        self._ray = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        for _ in range(count):
            self.add()
        return str(self._ray.address)

    def add(self) -> None:
        """Have another node."""
        self._ray.add_node(num_cpus=CPUS)

    def kill_raylet(self, name: str) -> None:
        """kill -9 of a node's raylet; what it has started sees that and ends."""
        self._node(name).kill_raylet()

    def replace(self, name: str) -> None:
        """Take what is left of a node, and have another, as whoever runs the machines would."""
        self._ray.remove_node(self._node(name), allow_graceful=False)
        self.add()

    def burn(self, name: str) -> None:
        """kill -9 of all processes of a node at once."""
        _kill(_processes(self._node(name)))

    def burn_all(self) -> None:
        """kill -9 of all processes of all nodes, Ray's head among them."""
        if self._ray is None:
            return
        nodes = self._ray.list_all_nodes()
        _kill([each for node in nodes for each in _processes(node)])
        for node in nodes:
            node.kill_all_processes(check_alive=False, wait=True)
        self._ray = None
        ray._common.utils.reset_ray_address()

    def _node(self, name: str) -> Any:
        if name == HEAD:
            return self._ray.head_node
        return next(node for node in self._ray.worker_nodes if node.node_id == name)


def _processes(node: Any) -> list[psutil.Process]:
    """Return the processes of a node: Ray's own and those they have started."""
    own = []
    for infos in node.all_processes.values():
        for info in infos:
            with suppress(psutil.NoSuchProcess):
                own.append(psutil.Process(info.process.pid))
    return [*own, *(child for each in own for child in each.children(recursive=True))]


def _kill(processes: Iterable[psutil.Process]) -> None:
    found = list(processes)
    for process in found:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    psutil.wait_procs(found, timeout=END_S)


def main() -> None:
    nodes = Nodes()
    try:
        for line in sys.stdin.buffer:
            command, *arguments = orjson.loads(line)
            answer = getattr(nodes, command)(*arguments)
            sys.stdout.write(orjson.dumps(answer).decode() + "\n")
            sys.stdout.flush()
    finally:
        nodes.burn_all()


if __name__ == "__main__":
    main()
