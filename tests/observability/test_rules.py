"""Prometheus' rules: each alert fires when it should and not otherwise, and its section of the runbook says what to do."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.observability.metrics import NAMES
from tests.observability.test_metrics import ROOT

RULES = ROOT / "grafana" / "rules" / "harbor.yaml"
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
FOREIGN = {"kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}
"""Of Kubernetes."""

Series = dict[str, str]
CASES: dict[str, tuple[Series, Series]] = {
    "HarborScrapeMissing": ({"other": "1x60"}, {"harbor_build_info": "1x60"}),
    "HarborActorDown": ({'harbor_actor_up{actor="shard-0"}': "1x9 0x50"}, {'harbor_actor_up{actor="shard-0"}': "1x60"}),
    "HarborFailover": ({"harbor_failovers_total": "0x28 1x31"}, {"harbor_failovers_total": "3x60"}),
    "HarborShardWithoutStandby": (
        {'harbor_shard_standby{shard="1"}': "1x9 0x50"},
        {'harbor_shard_standby{shard="1"}': "1x27 0 1x31"},
    ),
    "HarborRebalanceStuck": (
        {"harbor_rebalances_given_up_total": "0+0.3x60"},
        {"harbor_rebalances_given_up_total": "0x25 3x35"},
    ),
    "HarborRebalanceSlow": (
        {"harbor_rebalance_pause_seconds_sum": "0x26 3x34", "harbor_rebalance_pause_seconds_count": "0x26 1x34"},
        {"harbor_rebalance_pause_seconds_sum": "0x26 0.3x34", "harbor_rebalance_pause_seconds_count": "0x26 1x34"},
    ),
    "HarborChangesLate": (
        {
            'harbor_end_to_end_seconds_bucket{le="0.5"}': "0+1x60",
            'harbor_end_to_end_seconds_bucket{le="1.0"}': "0+100x60",
            'harbor_end_to_end_seconds_bucket{le="+Inf"}': "0+100x60",
        },
        {
            'harbor_end_to_end_seconds_bucket{le="0.2"}': "0+100x60",
            'harbor_end_to_end_seconds_bucket{le="0.5"}': "0+100x60",
            'harbor_end_to_end_seconds_bucket{le="+Inf"}': "0+100x60",
        },
    ),
    "HarborShardBehind": (
        {'harbor_shard_mailbox_batches{shard="1"}': "2x60"},
        {'harbor_shard_mailbox_batches{shard="1"}': "1x27 2 1x31"},
    ),
    "HarborOutboxesLarge": (
        {'harbor_gateway_outbox_bytes{gateway="0"}': "3e8x60"},
        {'harbor_gateway_outbox_bytes{gateway="0"}': "1e6x60"},
    ),
    "HarborClientsTooSlow": (
        {'harbor_disconnects_total{gateway="0",code="3008"}': "0+30x60"},
        {'harbor_disconnects_total{gateway="0",code="1000"}': "0+30x60"},
    ),
    "HarborKeysNotFetched": (
        {'harbor_jwks_fetches_total{gateway="0",outcome="error"}': "0x5 1+1x55"},
        {
            'harbor_jwks_fetches_total{gateway="0",outcome="error"}': "0x5 1+1x55",
            'harbor_jwks_fetches_total{gateway="0",outcome="success"}': "0+1x60",
        },
    ),
    "HarborCredentialsRefused": (
        {
            'harbor_credentials_refused_total{gateway="0",reason="expired"}': "0+50x60",
            'harbor_credentials_refused_total{gateway="0",reason="unknown_key"}': "0+50x60",
        },
        {
            'harbor_credentials_refused_total{gateway="0",reason="expired"}': "0+30x60",
            'harbor_credentials_refused_total{gateway="1",reason="expired"}': "0+50x60",
        },
    ),
    "HarborLimitsMet": (
        {'harbor_limited_total{gateway="0",limit="commands"}': "0+1200x60"},
        {
            'harbor_limited_total{gateway="0",limit="commands"}': "0+400x60",
            'harbor_limited_total{gateway="0",limit="frame"}': "0+400x60",
        },
    ),
    "HarborSourceDisconnected": (
        {'harbor_source_connected{source="events"}': "1x9 0x50"},
        {'harbor_source_connected{source="events"}': "1x27 0 1x31"},
    ),
    "HarborSourceLate": (
        {'harbor_source_lag_seconds{source="events"}': "30x60"},
        {'harbor_source_lag_seconds{source="events"}': "0.2x60"},
    ),
    "HarborIngestBufferFull": (
        {'harbor_ingest_buffer_bytes{actor="ingestor-0"}': "16e6 5e6 " * 30},
        {
            'harbor_ingest_buffer_bytes{actor="ingestor-0"}': "6e6x60",
            'harbor_ingest_buffer_bytes{actor="ingestor-1"}': "6e6x60",
            'harbor_ingest_buffer_bytes{actor="ingestor-2"}': "6e6x27 16e6 6e6x31",
        },
    ),
    "HarborEventsDropped": (
        {'harbor_events_dropped_total{source="events",reason="missing_capture"}': "0+5x60"},
        {
            f'harbor_events_dropped_total{{source="{source}",reason="{reason}"}}': "0+5x60"
            for source, reasons in (
                ("events", ("elsewhere", "filtered", "no_rule", "repeated")),
                ("", ("operation_skipped", "operation_stale")),
            )
            for reason in reasons
        },
    ),
    "HarborEventsMissed": (
        {'harbor_source_gaps_total{source="events"}': "0+1x60"},
        {'harbor_source_gaps_total{source="events"}': "0x20 1x39"},
    ),
    "HarborFetchesFail": (
        {
            'harbor_fetches_total{outcome="error"}': "0+2x60",
            'harbor_fetches_total{outcome="retry"}': "0+20x60",
            'harbor_fetches_total{outcome="success"}': "0+8x60",
        },
        {
            'harbor_fetches_total{outcome="error"}': "0+1x60",
            'harbor_fetches_total{outcome="retry"}': "0+20x60",
            'harbor_fetches_total{outcome="success"}': "0+99x60",
        },
    ),
    "HarborStoreLost": (
        {'harbor_stores_lost_total{shard="1"}': "_x28 1x31"},
        {'harbor_stores_lost_total{shard="1"}': "0x60"},
    ),
    "HarborReplicasDiverged": (
        {'harbor_replica_divergences_total{gateway="0"}': "0x28 1x31"},
        {'harbor_replica_divergences_total{gateway="0"}': "1x60"},
    ),
    "HarborStandbyDiverged": (
        {'harbor_replication_divergences_total{shard="0"}': "0x28 1x31"},
        {'harbor_replication_divergences_total{shard="0"}': "1x60"},
    ),
    "HarborStoreFails": (
        {'harbor_journal_errors_total{shard="0"}': "0x28 4x31"},
        {'harbor_journal_errors_total{shard="0"}': "4x60"},
    ),
    "HarborDiskFilling": (
        {
            'kubelet_volume_stats_available_bytes{persistentvolumeclaim="data-harbor-0"}': "2e9-3e7x60",
            'kubelet_volume_stats_capacity_bytes{persistentvolumeclaim="data-harbor-0"}': "1e10x60",
        },
        {
            'kubelet_volume_stats_available_bytes{persistentvolumeclaim="data-harbor-0"}': "2e9x60",
            'kubelet_volume_stats_capacity_bytes{persistentvolumeclaim="data-harbor-0"}': "1e10x60",
        },
    ),
    "HarborServiceOffline": (
        {'harbor_service_offline_seconds{service="api",shard="0"}': "0x20 60+60x39"},
        {
            'harbor_service_offline_seconds{service="api",shard="0"}': "0x26 60+60x33",
            'harbor_service_offline_seconds{service="other",shard="0"}': "0+60x9 0x50",
        },
    ),
    "HarborMutationsWait": (
        {
            'harbor_mutations_oldest_seconds{shard="0"}': "0x9 60+60x50",
            'harbor_mutations_oldest_seconds{shard="1"}': "0x60",
        },
        {
            'harbor_mutations_oldest_seconds{shard="0"}': "0+60x14 0x45",
            'harbor_mutations_oldest_seconds{shard="1"}': "5x60",
            'harbor_mutations_pending{shard="1"}': "3x60",
        },
    ),
}
"""By alert: series, a minute a value, that make it fire after 30 minutes, and such that do not."""
AT = {"HarborDiskFilling": "45m"}
"""Where it takes longer."""


needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def promtool(*arguments: str | Path) -> None:
    """Run it; it must be content."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def unknown(expression: str) -> set[str]:
    """Return the metrics that an expression names and nobody has."""
    names = set(re.findall(r"\b(?:harbor|kubelet)[_:][\w:]+", re.sub(r'"[^"]*"', "", expression)))
    bases = {name: re.sub(r"_(bucket|count|sum)$", "", name.removeprefix("harbor_")) for name in names}
    return {name for name in names - RECORDED - FOREIGN if bases[name] not in NAMES}


def test_every_alert_has_its_case() -> None:
    assert CASES.keys() == ALERTS.keys()


@needs_promtool
def test_the_rules_are_sound() -> None:
    promtool("check", "rules", RULES)


@needs_promtool
@pytest.mark.parametrize("alert", list(CASES))
def test_an_alert_fires_and_does_not(alert: str, tmp_path: Path) -> None:
    tests = []
    for series, firing in zip(CASES[alert], ("1", "0"), strict=True):
        expression = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)'
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": [
                    {
                        "expr": expression,
                        "eval_time": AT.get(alert, "30m"),
                        "exp_samples": [{"labels": "{}", "value": int(firing)}],
                    }
                ],
            }
        )
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", path)


@needs_promtool
@pytest.mark.parametrize(
    ("labels", "of"),
    [({"source": "events", "reason": "bad_data"}, " of events"), ({"reason": "operation_mismatch"}, "")],
)
def test_drops_of_a_shard_are_of_no_source(labels: dict[str, str], of: str, tmp_path: Path) -> None:
    series = ",".join(f'{name}="{value}"' for name, value in labels.items())
    annotations = {
        "summary": f"Events{of} come to nothing",
        "description": f"2 events a second{of} are dropped: {labels['reason']}.",
        "runbook_url": "docs/runbook.md#harboreventsdropped",
    }
    expected = {"exp_labels": {"severity": "warning", **labels}, "exp_annotations": annotations}
    test = {
        "interval": "1m",
        "input_series": [{"series": f"harbor_events_dropped_total{{{series}}}", "values": "0+120x60"}],
        "alert_rule_test": [{"alertname": "HarborEventsDropped", "eval_time": "30m", "exp_alerts": [expected]}],
    }
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", path)


@pytest.mark.parametrize("alert", list(ALERTS))
def test_an_alert_says_what_is_wrong_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert {"summary", "description", "runbook_url"} == rule["annotations"].keys()
    page, anchor = rule["annotations"]["runbook_url"].split("#")
    headings = [line[3:].strip().lower() for line in (ROOT / page).read_text().splitlines() if line.startswith("## ")]
    assert anchor == alert.lower()
    assert anchor in headings


def test_the_rules_name_metrics_that_there_are() -> None:
    for rule in (rule for group in GROUPS for rule in group["rules"]):
        assert not unknown(rule["expr"])
