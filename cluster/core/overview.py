"""The cluster at a glance: what the reserved entries `overview` and `streams` say, from counters and descriptions of actors.

Rates are of the last interval between two readings (`meter`). A point of the history is noted once for each round of readings; charts
are drawn from it, so whoever opens a second page, or comes back, sees the same minutes.

What must not live here: who reads the actors, how often, for whom (`cluster.actors.observation`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from cluster.core.meter import Counted, Meter

POINTS = 120
"""Of the history, at least: four minutes, where a round takes two seconds."""
SLACK = 30
"""More than that before the oldest go, all at once: a point that is added is a short patch, points that move up are a long one."""
GAP_MS = 10_000.0
"""Between two points: after more nobody has watched meanwhile, and what was before is no part of the same line."""
ACTOR = SOURCE = SHARD = GATEWAY = 1
"""Place of that label; `component` is the first of all."""
REASON = 2
STATUS = 2
SERVICE = 2
SERIES = ("time", "events", "changes", "age_p50", "age_p99", "cores")


class Overview:
    """See the module."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: of the histograms of seconds."""
        self._meter = Meter(bounds)
        self._history: dict[str, list[Any]] = {name: [] for name in SERIES}

    def take(self, actor: str, samples: Iterable[Counted], now_ms: float) -> None:
        """An actor's counters were read."""
        self._meter.take(actor, samples, now_ms)

    def note(self, actors: Collection[str], now_ms: float) -> None:
        """All actors there are were read: add a point to the history, unless it is the first time."""
        meter = self._meter
        meter.keep(actors)
        if not meter.has_rates:
            return
        times = self._history["time"]
        if times and now_ms - times[-1] > GAP_MS:
            for series in self._history.values():
                series.clear()
        p50, p99 = (_ms(age) for age in meter.quantiles("end_to_end_seconds", 0.5, 0.99))
        point = (
            int(now_ms),
            _rate(meter.rate("events_received_total")),
            _rate(meter.rate("changes_delivered_total")),
            p50,
            p99,
            round(meter.rate("process_cpu_seconds_total"), 3),
        )
        for name, value in zip(SERIES, point, strict=True):
            series = self._history[name]
            series.append(value)
            if len(series) > POINTS + SLACK:
                del series[:-POINTS]

    def overview(self, described: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entry `overview`; `described` is as `/v1/cluster` shows it."""
        meter = self._meter
        load = meter.rates("process_cpu_seconds_total", ACTOR)
        resident = meter.values("process_resident_bytes", ACTOR)

        def row(kind: str, of: Mapping[str, Any], *members: str) -> dict[str, Any]:
            actor = f"{kind}-{of['id']}"
            return {
                "id": of["id"],
                **{name: of.get(name) for name in members},
                "load": round(load.get(actor, 0.0), 3),
                "resident_bytes": int(resident.get(actor, 0)),
            }

        held, watched = meter.values("shard_entries", SHARD), meter.values("shard_subscriptions", SHARD)
        size, waiting = meter.values("shard_bytes", SHARD), meter.values("mutations_pending", SHARD)
        shards = [
            {
                **row("shard", each, "epoch", "role", "node", "lag_ms", "store"),
                "keys": int(held.get(str(each["id"]), each.get("keys", 0))),
                "subscribers": int(watched.get(str(each["id"]), each.get("subscribers", 0))),
                "bytes": int(size.get(str(each["id"]), 0)),
                "mutations": int(waiting.get(str(each["id"]), 0)),
                "standby": None if each.get("standby") is None else bool(each["standby"]["in_sync"]),
            }
            for each in described["shards"]
        ]
        changes, sessions = meter.rates("changes_delivered_total", GATEWAY), meter.values("gateway_sessions", GATEWAY)
        degraded = meter.values("sessions_degraded", GATEWAY)
        gateways = [
            {
                **row("gateway", each, "node", "address", "draining"),
                "sessions": int(sessions.get(str(each["id"]), each.get("sessions", 0))),
                "changes_per_s": _rate(changes.get(str(each["id"]), 0.0)),
                "degraded": int(degraded.get(str(each["id"]), 0)),
            }
            for each in described["gateways"]
        ]
        return {
            "name": described["name"],
            "version": described["version"],
            "ready": described["ready"],
            "waits_for": described["waits_for"],
            "now": {name: series[-1] if series else None for name, series in self._history.items()},
            "history": {name: list(series) for name, series in self._history.items()},
            "shards": shards,
            "gateways": gateways,
            "ingestors": [row("ingestor", each, "node") for each in described["ingestors"]],
            "coordinators": [row("coordinator", each, "node") for each in described["coordinators"]],
            "sources": self.sources(described),
            "services_offline": self.offline(),
            "mutations": {
                "pending": int(sum(waiting.values())),
                "settled": _whole(meter.values("mutations_total", STATUS)),
            },
            "presence_members": int(sum(meter.values("presence_members", SHARD).values())),
        }

    def sources(self, described: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return a row for each source: its state, and what comes of it a second."""
        meter = self._meter
        events, lag = meter.rates("events_received_total", SOURCE), meter.values("source_lag_seconds", SOURCE)
        dropped = meter.rates("events_dropped_total", SOURCE)
        return [
            {
                **{name: each.get(name) for name in ("name", "state", "connections", "events", "reconnects", "reason")},
                "events_per_s": _rate(events.get(each["name"], 0.0)),
                "dropped_per_s": _rate(dropped.get(each["name"], 0.0)),
                "lag_ms": _ms(lag.get(each["name"])),
            }
            for each in described["sources"]
        ]

    def totals(self) -> dict[str, Any]:
        """Return what has come of events since actors began: operations by kind, drops by reason, and what folding saved."""
        meter = self._meter
        return {
            "operations": _whole(meter.values("operations_total", 1)),
            "operations_per_s": _rate(meter.rate("operations_total")),
            "coalesced_per_s": _rate(meter.rate("operations_coalesced_total")),
            "dropped": _whole(meter.values("events_dropped_total", REASON)),
            "undecodable": int(sum(meter.values("event_decode_errors_total", SOURCE).values())),
        }

    def offline(self) -> list[str]:
        """Return the services that some shard cannot reach."""
        seconds = self._meter.values("service_offline_seconds", SERVICE)
        return sorted(service for service, lost_s in seconds.items() if lost_s > 0)


def _rate(value: float) -> float:
    """Round what is looked at, not computed with."""
    return round(value, 1) if value < 100 else float(round(value))


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000.0, 1)


def _whole(values: Mapping[str, float]) -> dict[str, int]:
    """Leave out what there was none of: counters begin at 0."""
    return {name: int(count) for name, count in values.items() if count}
