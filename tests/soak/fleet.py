"""A cluster on a Ray of several nodes on this machine, of which every process may be killed.

Whoever starts the cluster leaves at once, as `harbor up` on a Ray of others may: no process here is one that Ray ends with a raylet.

python -m tests.soak.fleet ADDRESS     makes the cluster of the configuration on standard input (JSON) and returns when it serves
"""

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import ray

from tests.live import LiveCluster, eventually, free_port
from tests.soak.nodes import HEAD

NODES = 2
"""That actors run on: a standby is on another than its primary, and each has room for all of them."""
START_S = 120.0
ASK_S = 10.0
KINDS = {"coordinator": "coordinators", "ingestor": "ingestors", "gateway": "gateways"}


class Fleet:
    """See the module."""

    def __init__(self, document: dict[str, Any], directory: Path) -> None:
        """`directory`: for what shards store, the same for all nodes; `burn` takes what was a node's own."""
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._document = {
            **document,
            "cluster": {**document["cluster"], "name": "soak"},
            "gateway": {"port": self._port},
            "storage": {"path": str(directory)},
        }
        command = [sys.executable, "-m", "tests.soak.nodes"]
        self._nodes = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def start(self) -> "Fleet":
        """Start Ray and the cluster, anew or from what is stored."""
        address = self._do("start", NODES)
        subprocess.run(
            [sys.executable, "-m", "tests.soak.fleet", address],
            input=orjson.dumps(self._document),
            check=True,
            timeout=START_S,
        )
        return self

    def stop(self) -> None:
        """End it all."""
        self._nodes.communicate()

    def _do(self, command: str, *arguments: Any) -> Any:
        assert self._nodes.stdin is not None
        assert self._nodes.stdout is not None
        self._nodes.stdin.write(orjson.dumps([command, *arguments]) + b"\n")
        self._nodes.stdin.flush()
        return orjson.loads(self._nodes.stdout.readline())

    def describe(self) -> dict[str, Any]:
        """Return what `/v1/cluster` shows."""
        described: dict[str, Any] = httpx.get(f"{self.url}/v1/cluster", timeout=ASK_S).raise_for_status().json()
        return described

    def whole(self) -> dict[str, Any]:
        """Wait until everything is there, the upstream is heard, and each shard has a standby on another node that has everything.

        Returns the description.
        """
        found: dict[str, Any] = {}

        def look() -> bool:
            found.update(self.describe())
            is_heard = bool(found["sources"]) and all(row["state"] == "connected" for row in found["sources"])
            return (
                found["ready"]
                and is_heard
                and all(psutil.pid_exists(row["pid"]) for kind in KINDS.values() for row in found[kind])
                and all(
                    row["role"] == "primary" and row["standby"]["in_sync"] and row["standby"]["node"] != row["node"]
                    for row in found["shards"]
                )
            )

        try:
            eventually(look, timeout_s=START_S, every_s=0.1)
        except AssertionError as error:
            raise AssertionError(f"some shard has no standby in sync, or nothing is heard: {found}") from error
        return found

    @staticmethod
    def process(described: dict[str, Any], kind: str) -> psutil.Process:
        """Return the process of a kind of actor: `primary`, `standby`, `supervisor` or one of `KINDS`."""
        match kind:
            case "primary":
                pid = described["shards"][0]["pid"]
            case "standby":
                pid = described["shards"][0]["standby"]["pid"]
            case "supervisor":
                pid = described["supervisor"]["pid"]
            case _:
                pid = described[KINDS[kind]][0]["pid"]
        return psutil.Process(pid)

    # --- of nodes, named by their ids: what goes wrong, and is made good ------------------------------------------

    def kill_raylet(self, node: str = HEAD) -> None:
        """kill -9 of a node's raylet."""
        self._do("kill_raylet", node)

    def burn(self, node: str, described: dict[str, Any]) -> None:
        """kill -9 of all processes of a node at once; what its shards have stored is gone with it."""
        rows = [each for row in described["shards"] for each in (row, row["standby"])]
        stores = {store for row in rows if row["node"] == node for store in _stores(row["pid"])}
        self._do("burn", node)
        for store in stores:
            shutil.rmtree(store)

    def replace(self, node: str) -> None:
        """Have another node for one that is lost."""
        self._do("replace", node)

    def kill_everything(self) -> None:
        """kill -9 of all processes of all nodes."""
        self._do("burn_all")


def _stores(pid: int) -> set[Path]:
    """Return the directories of the stores that a process has open."""
    return {Path(each.path).parent for each in psutil.Process(pid).open_files() if each.path.endswith("data.mdb")}


def main() -> None:
    ray.init(address=sys.argv[1], logging_level=logging.ERROR, log_to_driver=False)
    LiveCluster(orjson.loads(sys.stdin.buffer.read())).start()


if __name__ == "__main__":
    main()
