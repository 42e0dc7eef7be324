"""What `/metrics` says is what the documentation and the contract name, from every actor."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster import __version__
from cluster.core import protocol
from cluster.core.mutation import SETTLED
from cluster.core.operation import KINDS
from cluster.core.overflow import Overflow
from cluster.core.rule import _reason
from cluster.errors import ErrorCode, HarborError, OperationError
from cluster.gateway.server import STANDARD
from cluster.observability import metrics
from cluster.observability.label_values import BEGUN, DROPPED
from cluster.observability.metrics import NAMES, Metrics, decode, render
from tests.gateway.test_limits import documented
from tests.live import LiveCluster, eventually

ROOT = Path(__file__).parent.parent.parent
CONTRACT = {
    "build_info",
    "actor_up",
    "events_received_total",
    "events_dropped_total",
    "event_decode_errors_total",
    "source_connected",
    "source_reconnects_total",
    "source_lag_seconds",
    "ingest_buffer_events",
    "operations_total",
    "operations_coalesced_total",
    "window_flushes_total",
    "window_size_operations",
    "window_wait_seconds",
    "shard_entries",
    "shard_bytes",
    "shard_subscriptions",
    "shard_apply_seconds",
    "shard_mailbox_batches",
    "fetches_total",
    "fetch_seconds",
    "invalidations_total",
    "evictions_total",
    "reads_total",
    "changes_delivered_total",
    "end_to_end_seconds",
    "gateway_sessions",
    "gateway_outbox_bytes",
    "sessions_degraded",
    "disconnects_total",
    "resumes_total",
    "mutations_total",
    "mutations_pending",
    "presence_members",
    "journal_bytes",
    "journal_sync_seconds",
    "failovers_total",
    "recovery_seconds",
    "rebalances_total",
}
"""What whoever scrapes can rely on."""
RENAME = {
    "request": {"service": "api", "method": "PATCH", "path": "/projects/{id}", "body": "{variables}", "omit": ["id"]},
    "variables": ["id", "name"],
}
"""A mutation that the sample upstream carries out for projects that it has."""
OF_STANDBYS = {
    "shard_standby",
    "replication_lag_seconds",
    "replication_records_total",
    "lease_expirations_total",
}
"""Only where there are replicas; `tests/e2e/test_failover.py` sees them."""
NEVER = {*OF_STANDBYS, "jwks_fetches_total"}
"""Names without a series where there are neither standbys nor tokens."""


def test_the_documentation_is_made_of_the_table() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics.document()


def test_every_name_is_said_somewhere_and_every_name_that_is_said_is_in_the_table() -> None:
    said: set[str] = set()
    for path in (ROOT / "cluster").rglob("*.py"):
        said.update(re.findall(r'\.(?:set|histogram)\(\s*"(\w+)"', path.read_text()))
    assert NAMES.keys() - said == set()


def test_the_contract_names_nothing_that_there_is_not() -> None:
    assert NAMES.keys() >= CONTRACT


def test_every_name_is_there_though_nobody_says_anything() -> None:
    families = {family.name: family for family in text_string_to_metric_families(render([]).decode())}
    for name, (kind, text, _) in NAMES.items():
        family = families[f"harbor_{name.removesuffix('_total') if kind == 'counter' else name}"]
        assert (family.type, family.documentation) == (kind, text)
        assert family.samples == []


@pytest.mark.parametrize(
    ("name", "values"), [(name, values) for of in BEGUN.values() for name, (_, values) in of.items()]
)
def test_what_can_be_counted_begins_at_0(name: str, values: tuple[str, ...]) -> None:
    begun = [(component, of[name]) for component, of in BEGUN.items() if of.get(name, ("", ()))[1] == values]
    ((component, (label, _)),) = begun
    made = Metrics(component=component, actor="a", shard="7", gateway="7")
    made.set(name, 5, **{label: values[0]})
    made.begin(name, label, [*values, "another"])
    series = _series(render(decode(made.encode())).decode())[f"harbor_{name}"]
    assert {labels[label]: value for labels, value in series} == {
        **dict.fromkeys((*values, "another"), 0),
        values[0]: 5,
    }
    own = set(NAMES[name][2]) & {"shard", "gateway"}
    assert all({labels[each] for each in own} <= {"7"} for labels, _ in series)
    fresh = decode(Metrics(component=component).encode())
    assert [(sample.name, sample.value) for sample in fresh if sample.name == name] == [(name, 0)] * len(values)


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / "cluster" / path).read_text())


def _texts(*nodes: ast.AST) -> Iterator[str]:
    for each in (each for node in nodes for each in ast.walk(node)):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and re.fullmatch(r"[a-z_]*[a-z]", each.value):
            yield each.value


def _counted(path: str, counter: str) -> set[str]:
    """Return what a module counts under, as text, with `self.<counter>[...] += 1`."""
    found = [
        node.target.slice
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.AugAssign)
        and isinstance(node.target, ast.Subscript)
        and isinstance(node.target.value, ast.Attribute)
        and node.target.value.attr == counter
    ]
    return set(_texts(*found))


def _given(path: str, function: str, place: int = 0) -> set[str]:
    """Return what a module calls a function with, as text, at a place among the arguments."""
    calls = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call) and len(node.args) > place]
    names = [(call, getattr(call.func, "id", getattr(call.func, "attr", ""))) for call in calls]
    return set(_texts(*(call.args[place] for call, name in names if name == function)))


def _returned(path: str, function: str) -> set[str]:
    (made,) = [each for each in ast.walk(_tree(path)) if isinstance(each, ast.FunctionDef) and each.name == function]
    return set(_texts(*(node for node in ast.walk(made) if isinstance(node, ast.Return))))


def _refused() -> set[str]:
    keywords = [node for node in ast.walk(_tree("core/dialect.py")) if isinstance(node, ast.keyword)]
    return set(
        _texts(
            *(each.value.elts[0] for each in keywords if each.arg == "refused" and isinstance(each.value, ast.Tuple))
        )
    )


def test_all_that_is_counted_begins_at_0() -> None:
    shard, gateway = "core/shard_state.py", "core/gateway_state.py"
    drops = _given("core/operation.py", "_Dropped") | _given("core/operation.py", "append")
    drops |= _counted(shard, "operations_dropped")
    codes = {value for name, value in vars(protocol).items() if name.startswith("CLOSE_")}
    grants = ("core/grants.py", "core/revocation.py", "gateway/authority.py")
    counted = {
        ("shard", "mutations_total"): set(SETTLED),
        ("shard", "evictions_total"): {"collected"} | _returned("core/memory.py", "excess"),
        ("shard", "fetches_total"): _counted(shard, "fetches"),
        ("shard", "reads_total"): _counted(shard, "reads"),
        ("shard", "events_dropped_total"): {f"operation_{reason}" for reason in drops},
        ("ingestor", "operations_total"): set(KINDS.values()),
        ("gateway", "reads_total"): _counted("gateway/server.py", "reads"),
        ("gateway", "resumes_total"): _counted(gateway, "resumes"),
        ("gateway", "limited_total"): set(documented()),
        ("gateway", "credentials_refused_total"): set().union(
            *(_given(path, "UnauthorizedError") for path in (*grants, "core/claims.py", "gateway/web_token.py"))
        ),
        ("gateway", "sessions_barred_total"): _given(gateway, "_bar", 1).union(
            *(_given(path, "UnauthorizedError") for path in grants)
        ),
        ("gateway", "disconnects_total"): {*map(str, codes | STANDARD), "other"},
    }
    assert {place: set(values) for place, values in counted.items()} == {
        (component, name): set(values) for component, of in BEGUN.items() for name, (_, values) in of.items()
    }
    faults = (AttributeError(), HarborError(ErrorCode.BAD_KEY, ""), OperationError(""))
    assert set(DROPPED) == {
        *_counted("core/ingestion_state.py", "events_dropped"),
        *(f"overflow_{each.value}" for each in Overflow if each is not Overflow.PAUSE),
        *_given("core/rule.py", "FrameFault"),
        *_given("core/rule.py", "drop"),
        *_counted("core/rule.py", "dropped"),
        *map(_reason, faults),
        *_refused(),
        *_given("sources/sse.py", "refused", 1),
    }


@pytest.mark.parametrize(
    ("name", "values", "wanted"), [("source_connected", (1, 0), 0), ("source_lag_seconds", (1, 4), 4)]
)
def test_of_several_connections_of_a_source_the_worst_counts(name: str, values: tuple[int, int], wanted: float) -> None:
    samples = []
    for value in values:
        made = Metrics(component="ingestor")
        made.set(name, value, source="events")
        samples.extend(decode(made.encode()))
    assert _series(render(samples).decode())[f"harbor_{name}"] == [
        ({"component": "ingestor", "source": "events"}, wanted)
    ]


def _series(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def _scraped(live: LiveCluster) -> dict[str, list[tuple[dict[str, str], float]]]:
    gathered = [decode(encoded) for _, encoded in live.metrics()]
    return _series(render(sample for samples in gathered for sample in samples).decode())


def _without_a_series(series: dict[str, list[tuple[dict[str, str], float]]]) -> set[str]:
    names = {name: [name, f"{name}_bucket"][kind == "histogram"] for name, (kind, _, _) in NAMES.items()}
    return {name for name, full in names.items() if f"harbor_{full}" not in series}


@pytest.mark.cluster
def test_every_name_has_a_series_before_anything_has_happened(local_ray: None, upstream: Any) -> None:
    live = LiveCluster(
        {
            "sources": {"events": {"type": "sse", "url": f"{upstream.url}/api/activity/stream"}},
            "streams": [{"source": "events", "on": {"activity": {"set": {"key": ["last"], "value": "{data}"}}}}],
            "services": {"api": {"base_url": upstream.url}},
        }
    ).start()
    try:
        eventually(lambda: live.supervisor.describe()["sources"][0]["state"] == "connected")
        eventually(lambda: "harbor_shard_mailbox_batches" in _scraped(live))
        series = _scraped(live)
        assert _without_a_series(series) == NEVER
        for name in ("failovers_total", "journal_bytes"):
            assert {(labels["shard"], value) for labels, value in series[f"harbor_{name}"]} == {("0", 0), ("1", 0)}
        dropped = {
            labels["reason"]: value for labels, value in series["harbor_events_dropped_total"] if labels["source"]
        }
        assert dropped == dict.fromkeys(DROPPED, 0)
        statuses = {(labels["shard"], labels["status"]) for labels, _ in series["harbor_mutations_total"]}
        assert statuses == {(shard, status) for shard in "01" for status in SETTLED}
    finally:
        live.stop()


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
        series = _scraped(live)
        described = live.supervisor.describe()
        shards = [shard["id"] for shard in described["shards"]]
        mailboxes = {labels["shard"]: value for labels, value in series["harbor_shard_mailbox_batches"]}
        assert mailboxes.keys() == set(map(str, shards))
        ((_, lag),) = series["harbor_source_lag_seconds"]
        assert 0 <= lag < 60
        alone = {"shard": "", "gateway": ""}
        up = [
            *({"component": "shard", "actor": f"shard-{n}", **alone, "shard": str(n)} for n in shards),
            {"component": "coordinator", "actor": "coordinator-0", **alone},
            {"component": "ingestor", "actor": "ingestor-0", **alone},
            {"component": "gateway", "actor": "gateway-0", **alone, "gateway": "0"},
        ]
        said = sorted(series["harbor_actor_up"], key=lambda each: each[0]["actor"])
        assert said == sorted(((labels, 1.0) for labels in up), key=lambda each: each[0]["actor"])
        ((labels, _),) = series["harbor_build_info"]
        assert labels["version"] == __version__
        assert _without_a_series(series) == NEVER
        settled = [labels["status"] for labels, count in series["harbor_mutations_total"] if count]
        assert settled == ["error"]
        for name in ("mutations_pending", "mutations_oldest_seconds", "service_offline_seconds", "presence_members"):
            assert {labels["shard"]: value for labels, value in series[f"harbor_{name}"]} == dict.fromkeys(mailboxes, 0)
    finally:
        upstream.do(lambda up: up.set_rate(0))
        live.stop()
