"""Pattern 1: one configuration serves queries and streams together; a bad one names the path and the reason."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from tests.guide.conftest import config
from tests.live import Client, eventually, free_port

HARBOR = [sys.executable, "-m", "cluster.cli"]


@pytest.mark.cluster
async def test_up_serves_queries_and_streams_and_leaves_nothing_behind(upstream: Any, tmp_path: Path) -> None:
    document = {
        "cluster": {"name": f"guide-1-{os.getpid()}", "shards": 2},
        "defaults": {"stale_time": "1m", "gc_time": "5m", "retry": 3},
        **config(upstream.url),
        "storage": {"path": str(tmp_path / "store")},
        "gateway": {"port": 0, "admin_port": free_port()},
    }
    path = tmp_path / "harbor.yaml"
    path.write_text(yaml.safe_dump(document))
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [*HARBOR, "up", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(
            r"harbor ready: (http://127\.0\.0\.1:\d+) \(2 shards, 1 coordinator, 1 ingestor, 1 gateway\)\n", line
        )
        assert found is not None, line + process.stderr.read()
        family = psutil.Process(process.pid).children(recursive=True)
        client = await Client.open(found[1])
        view = await client.subscribe(1, key=["projects", "detail", "1"])
        await client.until(lambda: view.data("projects", "detail", "1")["id"] == "1")
        feed = await client.subscribe(2, key=["activity"])
        upstream.say("activity", "activity", {"id": "a"})
        await client.until(lambda: feed.data("activity")[0]["id"] == "a")
        admin = f"http://127.0.0.1:{document['gateway']['admin_port']}"
        assert "harbor_actor_up" in httpx.get(f"{admin}/metrics").text
        upstream.do(lambda up: up.control({"emit": {"channel": "notifications", "raw": "{nonsense"}}))
        asking = f"{admin}/v1/cluster?dead_letters=true"
        (letter,) = eventually(lambda: httpx.get(asking, timeout=60).json()["dead_letters"])
        assert (letter["reason"], letter["sample"]) == ("not_json", "{nonsense")
        assert "dead_letters" not in httpx.get(f"{admin}/v1/cluster", timeout=60).json()
        refused = httpx.get(f"{admin}/v1/cluster?dead_letters=1", timeout=60)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "BAD_REQUEST")
        await client.close()
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    _, alive = psutil.wait_procs(family, timeout=60)
    assert alive == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"sources": {"e": {"type": "websocket", "url": "htp://x"}}},
            "sources.e.url: expected a ws:// or wss:// URL, got 'htp://x'",
        ),
        ({"clster": {}}, "clster: unknown key, did you mean cluster?"),
        (
            {"batching": {"window": "fast"}},
            "batching.window: expected a duration such as 100ms, 60s, 5m or 24h, got 'fast'",
        ),
        ({"mutations": {"m": {}}}, "mutations.m.request: required"),
        ({"cluster": {"replicas": 2}}, "cluster.replicas: expected 0 or 1, got 2"),
    ],
)
def test_a_bad_configuration_names_path_reason_and_value(change: dict[str, Any], line: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "harbor.yaml"
        path.write_text(yaml.safe_dump(change))
        done = subprocess.run([*HARBOR, "check", str(path)], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert done.stderr == f"{path}: {line}\n"
        started = subprocess.run([*HARBOR, "up", str(path)], capture_output=True, text=True, timeout=60, check=False)
        assert started.returncode == 2
        assert started.stderr == f"{path}: {line}\n"
