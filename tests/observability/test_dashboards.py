"""The dashboards are what their source makes, are laid out and described, and show something of a cluster that works."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.observability.metrics import NAMES
from grafana import build
from tests.live import Client, eventually, free_port
from tests.observability.test_metrics import OF_STANDBYS, RENAME
from tests.observability.test_rules import needs_promtool, promtool, unknown

BOARDS = [pytest.param(json.loads(build.build(board)), id=board.uid) for board in build.BOARDS]
PROMETHEUS = build.HERE / "prometheus.yaml"
QUIET = {"harbor_jwks_fetches_total"}
"""Shown by panels, and without a series in a cluster where nothing of the kind has happened."""


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    for board in (json.loads(build.build(each)) for each in build.BOARDS):
        for panel in panels(board):
            for target in panel["targets"]:
                yield f"{board['title']} / {panel['title']}", target["expr"]


def test_what_is_committed_is_what_the_source_makes() -> None:
    for path, text in build.files().items():
        assert path.read_text() == text, f"{path}: run python -m grafana.build"


@pytest.mark.parametrize("board", BOARDS)
def test_a_dashboard_is_laid_out_and_described(board: dict[str, Any]) -> None:
    assert board["uid"].startswith("harbor-")
    assert board["description"]
    assert [link["tags"] for link in board["links"]] == [["harbor"]]
    assert {"Failovers", "Deploys"} <= {each["name"] for each in board["annotations"]["list"]}
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert {"datasource", "job", "namespace"} <= variables.keys()
    assert all(each.get("allValue") == ".+" for name, each in variables.items() if name != "datasource")
    identities = [panel["id"] for panel in board["panels"]]
    assert len(set(identities)) == len(identities)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in panels(board):
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        if panel["type"] == "timeseries":
            assert panel["options"]["legend"]["displayMode"] == "table"


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_an_expression_names_metrics_that_there_are_and_is_filtered(where: str, expression: str) -> None:
    assert not unknown(expression), where
    for labels in re.findall(r"harbor_\w+(\{[^}]*\})?", expression):
        assert 'job=~"$job",namespace=~"$namespace"' in labels, where
    if "rate(" in expression or "increase(" in expression:
        assert "[$__rate_interval]" in expression, where


def test_every_metric_is_on_a_panel() -> None:
    shown = {name for _, expression in expressions() for name in re.findall(r"harbor_(\w+)", expression)}
    assert {name for name in NAMES if not shown & {name, f"{name}_bucket"}} == set()


@needs_promtool
def test_the_local_prometheus_is_sound() -> None:
    promtool("check", "config", PROMETHEUS)


def test_grafana_is_told_of_the_datasource_and_the_dashboards() -> None:
    provisioning = build.HERE / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "harbor.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "harbor.yaml").read_text())["providers"]
    assert provider["options"]["path"] == "$HARBOR_DASHBOARDS"
    assert {path.name for path in (build.HERE / "dashboards").iterdir()} == {
        path.name for path in build.files() if path.suffix == ".json"
    }


@pytest.fixture
def working(upstream: Any, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The URL and the admin address of a cluster, as `harbor up` starts it."""
    document = {
        "cluster": {"name": f"monitored-{os.getpid()}", "shards": 2},
        "storage": {"path": str(tmp_path / "store")},
        "gateway": {"port": 0, "admin_port": free_port()},
        "sources": {"events": {"type": "sse", "url": f"{upstream.url}/api/activity/stream"}},
        "streams": [
            {
                "source": "events",
                "on": {
                    "activity": [
                        {"set": {"key": ["last"], "value": "{data}"}},
                        {"set": {"key": ["other", "{data.absent}"], "value": 1}},
                    ]
                },
            }
        ],
        "services": {"api": {"base_url": upstream.url}},
        "queries": [{"key": ["projects", "{id}"], "service": "api", "path": "/projects/{id}"}],
        "mutations": {"rename": RENAME},
    }
    path = tmp_path / "harbor.yaml"
    path.write_text(yaml.safe_dump(document))
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "cluster.cli", "up", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        try:
            ready = re.search(r"http://\S+", process.stdout.readline())
            assert ready is not None
            yield ready[0], f"127.0.0.1:{document['gateway']['admin_port']}"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.fixture
def prometheus(working: tuple[str, str], tmp_path: Path) -> Iterator[str]:
    """A Prometheus as `make monitor` has it, that scrapes the cluster every second."""
    document = yaml.safe_load(PROMETHEUS.read_text())
    document["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    document["rule_files"] = [str(PROMETHEUS.parent / name) for name in document["rule_files"]]
    document["scrape_configs"][0]["static_configs"][0]["targets"] = [working[1]]
    path = tmp_path / "prometheus.yaml"
    path.write_text(yaml.safe_dump(document))
    port = free_port()
    command = ["prometheus", f"--config.file={path}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
    with subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL) as process:
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.mark.cluster
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed (Debian: prometheus)")
async def test_every_expression_shows_something_of_a_cluster_that_works(
    working: tuple[str, str], prometheus: str, upstream: Any
) -> None:
    url, _ = working
    upstream.do(lambda up: up.set_rate(50))
    client = await Client.open(url)
    view = await client.subscribe(1, key=["last"])
    await client.subscribe(2, key=["projects", "1"])
    await client.until(lambda: view.data("last"))
    passing = await Client.open(url)
    await passing.close()
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        assert (await http.get("/v1/entries", params={"key": '["last"]'})).is_success
        assert (await http.post("/v1/invalidate", json={"key": ["projects"]})).is_success

        for project, status in (("1", "success"), ("no such", "error")):
            body = {"name": "rename", "variables": {"id": project, "name": "x"}}
            answer = await http.post("/v1/mutations", params={"wait": "true"}, json=body)
            assert answer.json()["status"] == status, answer.text

    def empty() -> list[str]:
        found = []
        for where, expression in expressions():
            names = set(re.findall(r"harbor_\w+", expression))
            later = {re.sub(r"_bucket$", "", name.removeprefix("harbor_")) for name in names} & OF_STANDBYS
            if names & QUIET or later:
                continue
            asked = re.sub(r"\$(job|namespace|shard|source|gateway)\b", ".+", expression)
            asked = asked.replace("$__rate_interval", "10s")
            answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": asked}, timeout=60).json()
            assert answer["status"] == "success", (where, answer)
            if not answer["data"]["result"]:
                found.append(f"{where}: {asked}")
        return found

    try:
        try:
            await asyncio.to_thread(eventually, lambda: not empty())
        except AssertionError:
            assert await asyncio.to_thread(empty) == []
        answer = httpx.get(f"{prometheus}/api/v1/rules", timeout=60).json()
        rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}
        assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []
    finally:
        upstream.do(lambda up: up.set_rate(0))
        await client.close()
