"""Metrics: counted in the actors as plain numbers, gathered by the supervisor, rendered once for the whole cluster.

Nothing in a hot path touches a metrics library: machines count integers, shells copy them into samples when asked. Labels are
component, shard, source, gateway and those of the table; never a key or a client.

It is one thing since all of it follows from the one table of names: what actors count, what it begins with, and how it is shown and documented.
"""

import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from operator import add

import msgspec
import psutil
from msgspec import Struct
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.observability.label_values import BEGUN, DROPPED

BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.11,
    0.12,
    0.13,
    0.14,
    0.15,
    0.17,
    0.2,
    0.25,
    0.3,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Seconds; dense just above the 100 ms of a window."""
SIZE_BUCKETS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 30_000.0, 100_000.0)

NAMES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "build_info": ("gauge", "Versions; always 1.", ("version", "ray_version")),
    "actor_restarts_total": ("counter", "How often the actor came back as another process.", ("actor",)),
    "nodes": ("gauge", "Nodes of the Ray cluster.", ()),
    "gateways_wanted": (
        "gauge",
        "Gateways there are to be; above those there are, nodes with a place are missing.",
        (),
    ),
    "rebalances_total": (
        "counter",
        "Moves of slots, and other changes of shards and coordinators, that were made.",
        (),
    ),
    "rebalances_given_up_total": (
        "counter",
        "Cuts that were given up since somebody did not answer or repeated events; they are tried again.",
        (),
    ),
    "rebalance_pause_seconds": (
        "histogram",
        "For how long events and requests waited while slots moved: from the hold to the release.",
        (),
    ),
    "process_cpu_seconds_total": ("counter", "CPU time of the actor's process.", ("actor",)),
    "process_resident_bytes": ("gauge", "Resident memory of the actor's process.", ("actor",)),
    "actor_up": ("gauge", "1 while the actor answers; `component` is its kind.", ("actor", "shard", "gateway")),
    "events_received_total": ("counter", "Events read from upstream streams.", ("source",)),
    "events_dropped_total": (
        "counter",
        "Events, frames or operations of events that came to nothing.",
        ("source", "reason"),
    ),
    "event_decode_errors_total": ("counter", "Frames that are no event.", ("source",)),
    "source_connected": ("gauge", "1 while the stream is connected.", ("source",)),
    "source_state": ("gauge", "Connections of the stream in that state.", ("source", "state")),
    "source_reconnects_total": ("counter", "Connections made after the first.", ("source",)),
    "source_gaps_total": (
        "counter",
        "How often events may have passed unseen, so that what they feed is fetched anew.",
        ("source",),
    ),
    "source_lag_seconds": (
        "gauge",
        "Age of the oldest event of the stream that is not committed, or since when it is not read.",
        ("source",),
    ),
    "ingest_buffer_events": ("gauge", "Operations of events, before folding, that wait to be sent or committed.", ()),
    "ingest_buffer_bytes": (
        "gauge",
        "Bytes of folded operations that wait to be sent or committed, and of frames that wait to be decoded; at 16 MiB sources are no longer read.",
        ("actor",),
    ),
    "operations_total": ("counter", "Operations made from events, before folding.", ("kind",)),
    "operations_coalesced_total": ("counter", "Operations that folding saved.", ()),
    "window_flushes_total": ("counter", "Batches sent to shards.", ()),
    "window_size_operations": ("histogram", "Operations folded into a batch.", ()),
    "window_wait_seconds": ("histogram", "From an event's receipt to its batch.", ()),
    "shard_entries": ("gauge", "Entries held.", ("shard",)),
    "shard_bytes": ("gauge", "Keys and values held, with what holding them takes.", ("shard",)),
    "shard_hot_slot_share": (
        "gauge",
        "Share of a shard's operations since the last scrape that its busiest slot had; near 1 one key has them all.",
        ("shard",),
    ),
    "shard_subscriptions": (
        "gauge",
        "Subscriptions that concern the shard; one of a prefix concerns all.",
        ("shard", "gateway"),
    ),
    "presence_members": ("gauge", "Members of the presence topics that the shard is home to.", ("shard",)),
    "mutations_total": ("counter", "Mutations that were settled.", ("shard", "status")),
    "mutations_pending": ("gauge", "Mutations that are not settled.", ("shard",)),
    "mutations_oldest_seconds": (
        "gauge",
        "Age of the oldest mutation that is not settled and was not delayed.",
        ("shard",),
    ),
    "service_offline_seconds": (
        "gauge",
        "For how long the shard could not reach the service, for fetches or for mutations; 0 while it can.",
        ("shard", "service"),
    ),
    "shard_apply_seconds": ("histogram", "To apply a batch.", ("shard",)),
    "shard_mailbox_batches": (
        "gauge",
        "Batches that the shard has not committed; above 1 it falls behind.",
        ("shard",),
    ),
    "shard_resets_total": ("counter", "Entries reset because events may have been lost.", ("shard",)),
    "history_changes": ("gauge", "Changes that a client which comes back can be told of.", ("shard",)),
    "history_bytes": ("gauge", "What they take.", ("shard",)),
    "journal_bytes": ("gauge", "The store on the disk.", ("shard",)),
    "journal_errors_total": ("counter", "Transactions that could not be stored, and were tried again.", ("shard",)),
    "journal_sync_seconds": ("histogram", "To write through what was committed.", ("shard",)),
    "failovers_total": ("counter", "Standbys that took over from a primary that was lost.", ("shard",)),
    "recovery_seconds": ("histogram", "From the end of a primary, as noticed, until the next one leads.", ()),
    "shard_moves_total": ("counter", "Moves of shards' actors between nodes.", ()),
    "stores_lost_total": ("counter", "Times that a shard began without the store that had held it.", ("shard",)),
    "shard_standby": ("gauge", "1: the shard's standby has everything; missing where none is configured.", ("shard",)),
    "replication_lag_seconds": ("gauge", "What the standby took for the last message.", ("shard",)),
    "replication_records_total": ("counter", "Records sent to standbys.", ("shard",)),
    "replication_divergences_total": (
        "counter",
        "Standbys found to differ from their primaries, and filled anew.",
        ("shard",),
    ),
    "lease_expirations_total": (
        "counter",
        "Times that a primary had to hold what its lease did not cover.",
        ("shard",),
    ),
    "evictions_total": ("counter", "Entries dropped because nobody needed them.", ("shard", "reason")),
    "fetches_total": ("counter", "Fetches from services.", ("shard", "outcome")),
    "fetch_seconds": ("histogram", "From a request to its answer.", ("shard",)),
    "invalidations_total": ("counter", "Entries marked out of date.", ("shard",)),
    "reads_total": ("counter", "Reads by where the answer came from.", ("result",)),
    "limited_total": (
        "counter",
        "Requests, messages and connections refused or ended by a limit.",
        ("gateway", "limit"),
    ),
    "changes_delivered_total": ("counter", "Changes written to clients in step.", ("gateway",)),
    "end_to_end_seconds": (
        "histogram",
        "From an event's receipt to its change being written, once a change set.",
        ("gateway",),
    ),
    "gateway_sessions": ("gauge", "Clients connected.", ("gateway",)),
    "gateway_outbox_bytes": ("gauge", "Waiting to be written.", ("gateway",)),
    "sessions_degraded": ("gauge", "Clients that read slowly, by what they get instead.", ("gateway", "level")),
    "replica_divergences_total": (
        "counter",
        "Replicas that were not what their shard holds, and were made anew; any is a fault.",
        ("gateway",),
    ),
    "disconnects_total": ("counter", "WebSocket closes by code.", ("gateway", "code")),
    "credentials_refused_total": ("counter", "Credentials that were not recognised, by why.", ("gateway", "reason")),
    "sessions_barred_total": (
        "counter",
        "Sessions closed since their credentials expired, were revoked or taken away.",
        ("gateway", "reason"),
    ),
    "jwks_fetches_total": ("counter", "Fetches of the keys that tokens are checked with.", ("gateway", "outcome")),
    "resumes_total": ("counter", "Subscriptions continued from a token.", ("gateway", "result")),
}
"""Name (without `harbor_`) -> kind, help, labels beside `component`."""


WORST: dict[str, Callable[[float, float], float]] = {"source_connected": min, "source_lag_seconds": max}


class Sample(Struct, frozen=True, array_like=True):
    """One number of one actor, or a histogram's counts."""

    name: str
    labels: tuple[str, ...]
    value: float
    buckets: tuple[int, ...] = ()
    """Counts per bucket, not cumulative, the last for what is above all; `value` is then the sum."""


class Histogram:
    """Counts observations by bucket."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Metrics:
    """The numbers of one actor, with the labels it always bears; `actor` among them makes it tell of its process, too.

    It has what `BEGUN` says of its component from the beginning.
    """

    def __init__(self, **labels: str) -> None:
        self._labels = labels
        self._process = psutil.Process()
        self._values: dict[tuple[str, tuple[str, ...]], float] = {}
        self._histograms: dict[str, Histogram] = {}
        for name, (label, values) in BEGUN.get(labels.get("component", ""), {}).items():
            self.begin(name, label, values)

    def begin(self, name: str, label: str, values: Iterable[str], **labels: str) -> None:
        """Have a counter be 0 for each value of a label of which nothing was counted yet."""
        for value in values:
            self._values.setdefault((name, self._place(name, {**labels, label: value})), 0.0)

    def forget(self, name: str) -> None:
        """Have no series of a counter or gauge."""
        self._values = {at: value for at, value in self._values.items() if at[0] != name}

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a counter or gauge."""
        self._values[name, self._place(name, labels)] = value

    def histogram(self, name: str) -> Histogram:
        """Return the histogram of that name."""
        bounds = BUCKETS if name.endswith("_seconds") else SIZE_BUCKETS
        return self._histograms.setdefault(name, Histogram(bounds))

    def encode(self) -> bytes:
        """Return all numbers, encoded."""
        if "actor" in self._labels:
            self.set("process_cpu_seconds_total", time.process_time())
            self.set("process_resident_bytes", self._process.memory_info().rss)
        samples = [Sample(name, labels, value) for (name, labels), value in self._values.items()]
        for name, histogram in self._histograms.items():
            samples.append(Sample(name, self._place(name, {}), histogram.total, tuple(histogram.counts)))
        return msgspec.msgpack.encode(samples)

    def _place(self, name: str, labels: dict[str, str]) -> tuple[str, ...]:
        given = {**self._labels, **labels}
        return (given.get("component", ""), *(given.get(label, "") for label in NAMES[name][2]))


def decode(encoded: bytes) -> list[Sample]:
    """Read what `Metrics.encode` wrote."""
    return msgspec.msgpack.decode(encoded, type=list[Sample])


def _merged(samples: Iterable[Sample]) -> Iterable[Sample]:
    """Add up what several actors say under the same labels; of a source the one that is worst off counts."""
    merged: dict[tuple[str, tuple[str, ...]], Sample] = {}
    for sample in samples:
        place = (sample.name, sample.labels)
        other = merged.get(place)
        if other is None:
            merged[place] = sample
        elif sample.name in WORST:
            merged[place] = Sample(sample.name, sample.labels, WORST[sample.name](sample.value, other.value))
        else:
            buckets = tuple(map(add, sample.buckets, other.buckets))
            merged[place] = Sample(sample.name, sample.labels, sample.value + other.value, buckets)
    return merged.values()


def _family(name: str) -> CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily:
    kind, text, labels = NAMES[name]
    full, names = f"harbor_{name}", ("component", *labels)
    match kind:
        case "counter":
            return CounterMetricFamily(full, text, labels=names)
        case "gauge":
            return GaugeMetricFamily(full, text, labels=names)
        case _:
            return HistogramMetricFamily(full, text, labels=names)


class _Gathered(Collector):
    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = list(samples)

    def collect(self) -> Iterator[Metric]:
        families = {
            name: _family(name) for name in NAMES
        }  # also those without a series: they are known, and nothing happened
        for sample in _merged(self._samples):
            family = families[sample.name]
            if isinstance(family, HistogramMetricFamily):
                bounds = BUCKETS if sample.name.endswith("_seconds") else SIZE_BUCKETS
                total = 0
                buckets: list[tuple[str, float]] = []
                for bound, count in zip((*bounds, float("inf")), sample.buckets, strict=True):
                    total += count
                    buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
                family.add_metric(sample.labels, buckets, sum_value=sample.value)
            else:
                family.add_metric(sample.labels, sample.value)
        yield from families.values()


def document() -> str:
    """Return `docs/metrics.md`."""
    rows = [
        f"| `harbor_{name}` | {kind} | {', '.join(f'`{label}`' for label in ('component', *labels))} | {text} |"
        for name, (kind, text, labels) in sorted(NAMES.items())
    ]
    bounds = [", ".join(f"{bound:g}" for bound in bounds) for bounds in (BUCKETS, SIZE_BUCKETS)]
    begun = [(name, component, *of) for component, counters in BEGUN.items() for name, of in counters.items()]
    begun.append(("events_dropped_total", "ingestor", "reason", DROPPED))
    values = [
        f"| `harbor_{name}` | `{component}` | `{label}` | {', '.join(f'`{value}`' for value in values)} |"
        for name, component, label, values in sorted(begun)
    ]
    head = HEAD.format(seconds=bounds[0], operations=bounds[1])
    return head + "\n".join(rows) + "\n" + BEGIN + "\n".join(values) + "\n"


HEAD = """# Metrics

`GET /metrics` on the admin port is the whole cluster as one Prometheus target. Labels never hold a key or a client. An actor that does not answer is
`harbor_actor_up` 0, and its other series are missing meanwhile. What several actors say under the same labels is added up; of `harbor_source_connected` and
`harbor_source_lag_seconds` the worst counts, and they and `harbor_source_state` are missing while no ingestor reads the source. Every name is there with its help and type, also where it has no series: what is counted by source, for one,
has none in a cluster without sources.

Histograms of seconds have the bounds {seconds}; those of operations {operations}.

Made by `python -m cluster.observability.metrics` from the table that the actors use; a test compares.

| name | kind | labels | |
|---|---|---|---|
"""


BEGIN = """
## Values from the beginning
Of these labels every value is there at 0 before anything is counted, so that `rate` and `increase` see the first of a kind; those of an ingestor for each
source that it reads. What the reasons mean: [ingestion.md](ingestion.md#dead-letters). Other values may come.

| name | component | label | values |
|---|---|---|---|
"""


def render(samples: Iterable[Sample]) -> bytes:
    """Return the samples in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Gathered(samples))
    return generate_latest(registry)


if __name__ == "__main__":
    sys.stdout.write(document())
