"""What `overview` and `streams` say, of counters and descriptions played by hand."""

from typing import Any

from cluster.core.overview import POINTS, SERIES, SLACK, Overview
from tests.core.test_meter import Sample

DESCRIBED: dict[str, Any] = {
    "name": "harbor",
    "version": "1",
    "ready": True,
    "waits_for": [],
    "shards": [
        {
            "id": 0,
            "node": "n",
            "epoch": 3,
            "role": "primary",
            "keys": 4,
            "subscribers": 1,
            "lag_ms": 0,
            "standby": None,
            "store": "open",
        }
    ],
    "gateways": [{"id": 0, "node": "n", "address": "http://h", "sessions": 2, "draining": False}],
    "ingestors": [{"id": 0, "node": "n"}],
    "coordinators": [{"id": 0, "node": "n"}],
    "sources": [{"name": "s", "state": "connected", "connections": 1, "events": 50, "reconnects": 0, "reason": None}],
}


def read(overview: Overview, at_ms: float, events: float, changes: float, cpu_s: float) -> None:
    overview.take(
        "ingestor-0",
        [
            Sample("events_received_total", ("ingestor", "s"), events),
            Sample("events_dropped_total", ("ingestor", "s", "no_rule"), events / 10),
            Sample("source_lag_seconds", ("ingestor", "s"), 0.25),
            Sample("operations_total", ("ingestor", "set"), events),
        ],
        at_ms,
    )
    overview.take(
        "gateway-0",
        [
            Sample("changes_delivered_total", ("gateway", "0"), changes),
            Sample("gateway_sessions", ("gateway", "0"), 7.0),
            Sample("end_to_end_seconds", ("gateway", "0"), 0.0, (0, int(changes), 0)),
        ],
        at_ms,
    )
    overview.take(
        "shard-0",
        [
            Sample("process_cpu_seconds_total", ("shard", "shard-0"), cpu_s),
            Sample("shard_entries", ("shard", "0"), 9.0),
            Sample("service_offline_seconds", ("shard", "0", "api"), events),
        ],
        at_ms,
    )
    overview.note(["ingestor-0", "gateway-0", "shard-0"], at_ms)


def test_rates_and_ages_are_of_the_last_round() -> None:
    overview = Overview((0.1, 0.2))
    read(overview, 1_000.0, 0.0, 0.0, 5.0)
    read(overview, 2_000.0, 1_234.0, 50.0, 5.25)
    said = overview.overview(DESCRIBED)
    assert said["now"] == {
        "time": 2_000,
        "events": 1_234.0,
        "changes": 50.0,
        "age_p50": 150.0,
        "age_p99": 199.0,
        "cores": 0.25,
    }
    assert said["history"]["events"] == [1_234.0]  # of the first reading nobody knows since when
    assert said["shards"][0]["load"] == 0.25
    assert (said["shards"][0]["keys"], said["gateways"][0]["sessions"]) == (9, 7)  # newer than the description
    assert said["sources"] == overview.sources(DESCRIBED)
    assert said["sources"][0]["events_per_s"] == 1_234.0
    assert said["sources"][0]["dropped_per_s"] == 123.0
    assert said["sources"][0]["lag_ms"] == 250.0
    assert said["services_offline"] == ["api"]
    assert overview.totals()["dropped"] == {"no_rule": 123}


def test_before_anything_was_read_it_says_what_is_known() -> None:
    said = Overview(()).overview(DESCRIBED)
    assert said["now"] == dict.fromkeys(SERIES)
    assert said["shards"][0] == {
        "id": 0, "epoch": 3, "role": "primary", "node": "n", "lag_ms": 0, "store": "open", "load": 0.0, "resident_bytes": 0,
        "keys": 4, "subscribers": 1, "bytes": 0, "mutations": 0, "standby": None,
    }  # fmt: skip
    assert said["gateways"][0]["sessions"] == 2
    assert said["sources"][0]["lag_ms"] is None


def test_what_there_was_none_of_is_left_out() -> None:
    overview = Overview(())
    counters = [
        Sample("operations_total", ("ingestor", "set"), 2.0),
        Sample("operations_total", ("ingestor", "merge"), 0.0),
        Sample("events_dropped_total", ("ingestor", "s", "no_rule"), 0.0),
        Sample("mutations_total", ("shard", "0", "success"), 1.0),
        Sample("mutations_total", ("shard", "0", "error"), 0.0),
    ]
    overview.take("shard-0", counters, 0.0)
    assert overview.overview(DESCRIBED)["mutations"]["settled"] == {"success": 1}
    totals = overview.totals()
    assert (totals["operations"], totals["dropped"]) == ({"set": 2}, {})


def test_the_history_is_bounded() -> None:
    overview = Overview(())
    lengths = []
    for at in range(POINTS + SLACK + 5):
        read(overview, at * 1_000.0, at, at, at)
        history = overview.overview(DESCRIBED)["history"]
        lengths.append({len(series) for series in history.values()})
    assert lengths == [{n} for n in range(POINTS + SLACK + 1)] + [{POINTS + n} for n in range(4)]
    assert history["time"][-1] == (POINTS + SLACK + 4) * 1_000


def test_after_a_while_without_readings_the_history_begins_anew() -> None:
    overview = Overview(())
    for at in (0.0, 1_000.0, 2_000.0, 60_000.0, 61_000.0):
        read(overview, at, at, at, at)
    assert overview.overview(DESCRIBED)["history"]["time"] == [60_000, 61_000]
