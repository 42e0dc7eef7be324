"""What the documentation shows works: Python and shell examples run on the demonstration, YAML examples pass the check."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.config import load_mapping, read_document
from cluster.config.load import _UniqueKeyLoader
from tests.live import LiveCluster, free_port

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "cluster" / "demo" / "harbor.yaml"
PAGES = [
    "docs/caching.md",
    "docs/client.md",
    "docs/configuration.md",
    "docs/ingestion.md",
    "docs/mutations.md",
    "docs/python.md",
    "README.md",
]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def examples() -> Iterator[Any]:
    for page in PAGES:
        for number, code in enumerate(blocks(page, "python"), 1):
            if "asyncio.run(" in code or "assert" in code:
                yield pytest.param(code, id=f"{Path(page).name}-{number}")


@pytest.fixture(scope="module")
def demonstration(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    """The demonstration's configuration, with its upstream made to act."""
    env = {"UPSTREAM_URL": upstream.url, "UPSTREAM_WS": upstream.url.replace("http", "ws", 1) + "/ws"}
    live = LiveCluster(read_document(DEMO), env).start()
    upstream.do(lambda up: up.set_rate(20))
    yield live
    upstream.do(lambda up: up.set_rate(0))
    live.stop()


@pytest.mark.cluster
@pytest.mark.parametrize("code", list(examples()))
def test_an_example_runs(demonstration: LiveCluster, code: str) -> None:
    if "async for frame in socket" in code:  # it goes on until somebody stops it
        code = code.replace('print(message["type"]', 'exit() if message["type"] == "change" else print(message["type"]')
    code = code.replace("127.0.0.1:8700", f"127.0.0.1:{demonstration.port}")
    environment = {**os.environ, "HARBOR_URL": demonstration.url}
    run = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60, env=environment, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr


def shell(code: str, directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell's commands as somebody types them who has installed the project."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "HARBOR_URL")}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
        env={**given, "PATH": path, **variables},
        cwd=directory,
    )


@pytest.mark.cluster
@pytest.mark.parametrize("code", [code for code in blocks("docs/mutations.md", "sh") if "harbor up" not in code])
def test_commands_run(demonstration: LiveCluster, code: str) -> None:
    run = shell(code, ROOT, HARBOR_URL=demonstration.url)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.cluster
def test_an_offline_spell_goes_as_it_is_told(tmp_path: Path) -> None:
    (code,) = [code for code in blocks("docs/mutations.md", "sh") if "harbor up" in code]
    (service,) = [code for code in blocks("docs/mutations.md", "python") if "http.server" in code]
    (config,) = [text for text in blocks("docs/mutations.md", "yaml") if "offline" in text]
    for port in ("8720", "8721", "8730"):
        free = str(free_port())
        code, service, config = (text.replace(port, free) for text in (code, service, config))
    name = f"offline-{os.getpid()}"
    (tmp_path / "notes.py").write_text(service)
    (tmp_path / "offline.yaml").write_text(config.replace("name: offline", f"name: {name}"))
    run = shell(code.replace("--name offline", f"--name {name}"), tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    settled = [each for each in lines if each.get("status") == "success" and "name" in each]
    assert [each["id"] for each in settled] == ["spell-1", "spell-2", "spell-3"], run.stdout
    waited, read = [each for each in lines if each.get("key") == ["note", "1"]]
    assert (waited["data"]["text"], "version" in waited["data"]) == ("edit 3", False)
    assert (read["data"]["text"], read["data"]["version"]) == ("edit 3", 3)
    (late,) = [each for each in lines if each.get("id") == "late"]
    assert (late["status"], late["result"]) == ("success", {"version": 4, "text": "edit 3", "by": "me"})


@pytest.mark.parametrize("code", [code for page in PAGES for code in blocks(page, "python") if "= Harbor(" in code])
def test_an_app_that_is_shown_loads(code: str, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(code)
    (tmp_path / "harbor.yaml").write_text("cluster: {shards: 2}")
    loads = "from cluster.app import load_app; load_app('shown:app')"
    run = subprocess.run(
        [sys.executable, "-c", loads], check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("text", [text for page in PAGES for text in blocks(page, "yaml")])
def test_a_configuration_that_is_shown_is_one(text: str) -> None:
    shown = yaml.load(text, Loader=_UniqueKeyLoader)
    sources = {"events": {"type": "websocket", "url": "ws://127.0.0.1:1"}}
    shown.setdefault("sources", sources)
    load_mapping(shown, {"API_URL": "http://127.0.0.1:1", "WS_URL": "ws://127.0.0.1:1"})
