"""What `/metrics` says is what the documentation and the contract name, from every actor."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster import __version__
from cluster.observability import metrics
from cluster.observability.metrics import NAMES, Metrics, decode, render
from tests.live import LiveCluster, eventually

ROOT = Path(__file__).parent.parent.parent
RENAME = {
    "request": {"service": "api", "method": "PATCH", "path": "/projects/{id}", "body": "{variables}", "omit": ["id"]},
    "variables": ["id", "name"],
}
"""A mutation that the sample upstream carries out for projects that it has."""
OF_STANDBYS = {
    "failovers_total",
    "recovery_seconds",
    "shard_standby",
    "replication_lag_seconds",
    "replication_records_total",
    "replication_divergences_total",
    "lease_expirations_total",
}
"""Only where there are replicas; `tests/e2e/test_failover.py` sees them."""


def test_the_documentation_is_made_of_the_table() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics.document()


def test_every_name_is_said_somewhere_and_every_name_that_is_said_is_in_the_table() -> None:
    said: set[str] = set()
    for path in (ROOT / "cluster").rglob("*.py"):
        said.update(re.findall(r'\.(?:set|histogram)\(\s*"(\w+)"', path.read_text()))
    assert NAMES.keys() - said == set()


@pytest.mark.parametrize(
    ("name", "values", "wanted"), [("source_connected", (1, 0), 0), ("source_lag_seconds", (1, 4), 4)]
)
def test_of_several_connections_of_a_source_the_worst_counts(name: str, values: tuple[int, int], wanted: float) -> None:
    samples = []
    for value in values:
        made = Metrics(component="ingestion")
        made.set(name, value, source="events")
        samples.extend(decode(made.encode()))
    assert _series(render(samples).decode())[f"harbor_{name}"] == [
        ({"component": "ingestion", "source": "events"}, wanted)
    ]


def _series(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


@pytest.mark.cluster
def test_every_name_has_a_series_of_a_cluster_that_works(local_ray: None, upstream: Any, tmp_path: Path) -> None:
    document = {
        "storage": {"path": str(tmp_path)},
        "sources": {"events": {"type": "sse", "url": f"{upstream.url}/api/activity/stream"}},
        "streams": [{"source": "events", "on": {"activity": {"set": {"key": ["last"], "value": "{data}"}}}}],
        "services": {"api": {"base_url": upstream.url}},
        "queries": [{"key": ["projects", "{id}"], "service": "api", "path": "/projects/{id}"}],
        "mutations": {"rename": RENAME},
    }
    live = LiveCluster(document).start()
    try:
        eventually(lambda: live.supervisor.describe()["sources"][0]["state"] == "connected")
        upstream.do(lambda up: up.set_rate(50))
        eventually(lambda: live.get("last").is_success)
        live.get("projects", "1")
        body = {"name": "rename", "variables": {"id": "no such", "name": "x"}}
        assert httpx.post(f"{live.url}/v1/mutations", params={"wait": "true"}, json=body, timeout=60).status_code == 200
        gathered = [decode(encoded) for _, encoded in live.supervisor.metrics() if encoded]
        series = _series(render(sample for samples in gathered for sample in samples).decode())
        described = live.supervisor.describe()
        shards = [shard["id"] for shard in described["shards"]]
        mailboxes = {labels["shard"]: value for labels, value in series["harbor_shard_mailbox_batches"]}
        assert mailboxes.keys() == set(map(str, shards))
        ((_, lag),) = series["harbor_source_lag_seconds"]
        assert 0 <= lag < 60
        up = {labels["actor"]: value for labels, value in series["harbor_actor_up"]}
        assert up == dict.fromkeys([*(f"shard-{n}" for n in shards), "coordinator-0", "ingestor-0", "gateway-0"], 1.0)
        ((labels, _),) = series["harbor_build_info"]
        assert labels["version"] == __version__
        never = {
            "events_dropped_total",
            "evictions_total",
            "disconnects_total",
            "resumes_total",
            "reads_total",
            *OF_STANDBYS,
            "credentials_refused_total",
            "sessions_barred_total",
            "jwks_fetches_total",
            "limited_total",
        }
        missing = {name for name in NAMES if not any(each.startswith(f"harbor_{name}") for each in series)}
        assert missing <= never, "those with a reason or a result begin with the first"
        settled = [labels["status"] for labels, count in series["harbor_mutations_total"] if count]
        assert settled == ["error"]
        for name in ("mutations_pending", "mutations_oldest_seconds", "service_offline_seconds", "presence_members"):
            assert {labels["shard"]: value for labels, value in series[f"harbor_{name}"]} == dict.fromkeys(mailboxes, 0)
    finally:
        upstream.do(lambda up: up.set_rate(0))
        live.stop()
