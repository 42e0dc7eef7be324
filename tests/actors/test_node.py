"""A machine's Ray processes, begun and ended for real."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live import eventually, free_port

pytestmark = pytest.mark.cluster
AS_PROCESS_1 = """
import ctypes, os, signal, sys
from cluster.actors.node import RayNode

assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER: orphans fall to this process, as to a container's first
node = RayNode(sys.argv[1:])
print("began", flush=True)
sys.stdin.readline()
sent, send = [], os.killpg
os.killpg = lambda group, number: (sent.append(number), send(group, number))
node.stop()
print(signal.SIGKILL in sent)
"""


def test_the_first_process_of_a_container_ends_its_node_without_waiting_for_orphans(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "ray.log"
    arguments = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=1", "--include-dashboard=false"]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", AS_PROCESS_1, *arguments, "--object-store-memory=80000000"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
            text=True,
        )
        # The raylet begins agents, whose parent it is.
        eventually(lambda: "Ray runtime started" in _said(process), "Ray does not start")
        output, _ = process.communicate("stop\n", timeout=60)
    assert process.returncode == 0, log.read_text()
    assert output.split()[-1] == "False", "it waited until the time was up"


def _said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()
