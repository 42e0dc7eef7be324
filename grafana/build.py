"""The dashboards, as `grafana/dashboards/*.json` and the list of their panels in `docs/monitoring.md`: `python -m grafana.build`.

Names of metrics are those of `cluster.observability.metrics`. What is written depends on nothing but this file, so a test can compare.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import dashboard, heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import ReduceDataOptions, VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.heatmap import HeatmapColorOptions
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, SortOrder, TooltipDisplayMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    GridPos,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

HERE = Path(__file__).parent
ROOT = HERE.parent
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH, HEIGHT = 24, 8
RATE = "$__rate_interval"
BASE = 'job=~"$job",namespace=~"$namespace"'


class Query(NamedTuple):
    """One expression. `@` in it stands for the matchers of the dashboard's variables."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """One panel; `kind` is `lines`, `number` or `heatmap`."""

    title: str
    text: str
    unit: str
    queries: Sequence[Query]
    kind: str = "lines"
    width: int = 8


class Board(NamedTuple):
    """One dashboard; `variables` are labels to choose from, beside job and namespace, with the metric that knows them."""

    uid: str
    title: str
    text: str
    rows: Sequence[tuple[str, Sequence[Panel]]]
    variables: Sequence[tuple[str, str]] = ()


def rate(name: str, *by: str, more: str = "") -> str:
    """Return the sum of a counter's rates."""
    return f"sum by ({', '.join(by)}) (rate({name}{{@{more}}}[{RATE}]))"


def level(name: str, *by: str, more: str = "", of: str = "sum") -> str:
    """Return a gauge, added up, or the greatest."""
    return f"{of} by ({', '.join(by)}) ({name}{{@{more}}})"


def quantiles(name: str, more: str = "") -> list[Query]:
    """Return the median and the 99th percentile of a histogram."""
    buckets = rate(f"{name}_bucket", "le", more=more)
    return [Query(f"histogram_quantile({q}, {buckets})", text) for q, text in ((0.5, "p50"), (0.99, "p99"))]


AGE = "harbor_end_to_end_seconds"
SHARD, OF_SOURCE, GATEWAY = ',shard=~"$shard"', ',source=~"$source"', ',gateway=~"$gateway"'

OVERVIEW = Board(
    "harbor-overview",
    "Harbor / Overview",
    "Is it alive, what comes and goes, how late, what fails, what is full.",
    [
        (
            "Alive",
            [
                Panel(
                    "Actors down",
                    "Actors that do not answer the supervisor.",
                    "none",
                    [Query("count(harbor_actor_up{@} == 0) or vector(0)", "down")],
                    "number",
                    6,
                ),
                Panel(
                    "Streams not connected",
                    "Sources without a connection.",
                    "none",
                    [Query("count(harbor_source_connected{@} == 0) or vector(0)", "not connected")],
                    "number",
                    6,
                ),
                Panel(
                    "Clients",
                    "Sessions of all gateways.",
                    "none",
                    [Query("sum(harbor_gateway_sessions{@})", "sessions")],
                    "number",
                    6,
                ),
                Panel(
                    "Entries",
                    "Entries that shards hold.",
                    "none",
                    [Query("sum(harbor_shard_entries{@})", "entries")],
                    "number",
                    6,
                ),
            ],
        ),
        (
            "Traffic and latency",
            [
                Panel(
                    "Events",
                    "Events read from streams, a second.",
                    "eps",
                    [Query(rate("harbor_events_received_total", "source"), "{{source}}")],
                ),
                Panel(
                    "Changes",
                    "Changes written to clients, a second.",
                    "cps",
                    [Query(rate("harbor_changes_delivered_total", "gateway"), "gateway {{gateway}}")],
                ),
                Panel(
                    "Age of changes",
                    "From an event's receipt to its change being written; a window of 100 ms is part of it.",
                    "s",
                    quantiles(AGE),
                ),
            ],
        ),
        (
            "Errors and saturation",
            [
                Panel(
                    "Events that came to nothing",
                    "By reason; `elsewhere`, `filtered`, `no_rule`, `repeated`, `operation_skipped` and `operation_stale` are as configured.",
                    "eps",
                    [Query(rate("harbor_events_dropped_total", "reason") + " > 0", "{{reason}}")],
                ),
                Panel(
                    "On the way to shards",
                    "Folded operations that are not committed; at 16 MiB of an ingestor streams are no longer read.",
                    "bytes",
                    [Query(level("harbor_ingest_buffer_bytes", "actor"), "{{actor}}")],
                ),
                Panel(
                    "Outboxes",
                    "What waits to be written to clients.",
                    "bytes",
                    [Query(level("harbor_gateway_outbox_bytes", "gateway"), "gateway {{gateway}}")],
                ),
            ],
        ),
    ],
)
INGESTION = Board(
    "harbor-ingestion",
    "Harbor / Ingestion",
    "Streams: how fast, how late, what is lost on the way.",
    [
        (
            "Streams",
            [
                Panel(
                    "Events",
                    "Events read, a second.",
                    "eps",
                    [Query(rate("harbor_events_received_total", "source", more=OF_SOURCE), "{{source}}")],
                ),
                Panel(
                    "Lag",
                    "Age of the oldest event that is not committed, or since when the stream is not read.",
                    "s",
                    [Query(level("harbor_source_lag_seconds", "source", more=OF_SOURCE, of="max"), "{{source}}")],
                ),
                Panel(
                    "State",
                    "Connections by state.",
                    "none",
                    [
                        Query(
                            level("harbor_source_state", "source", "state", more=OF_SOURCE) + " > 0",
                            "{{source}} {{state}}",
                        )
                    ],
                ),
                Panel(
                    "Reconnects",
                    "Connections made after the first, a second.",
                    "cps",
                    [Query(rate("harbor_source_reconnects_total", "source", more=OF_SOURCE), "{{source}}")],
                ),
                Panel(
                    "Gaps",
                    "How often events may have passed unseen, a second; what they feed is fetched anew.",
                    "cps",
                    [Query(rate("harbor_source_gaps_total", "source", more=OF_SOURCE), "{{source}}")],
                ),
                Panel(
                    "Drops",
                    "Events that came to nothing, by reason.",
                    "eps",
                    [
                        Query(
                            rate("harbor_events_dropped_total", "source", "reason", more=OF_SOURCE) + " > 0",
                            "{{source}} {{reason}}",
                        )
                    ],
                ),
            ],
        ),
        (
            "On the way",
            [
                Panel(
                    "Operations",
                    "Made of events, by kind, before folding.",
                    "ops",
                    [Query(rate("harbor_operations_total", "kind") + " > 0", "{{kind}}")],
                ),
                Panel(
                    "Folded away",
                    "Operations that folding saved, a second.",
                    "ops",
                    [Query(rate("harbor_operations_coalesced_total"), "saved")],
                ),
                Panel(
                    "Waiting",
                    "Operations, before folding, that are not committed.",
                    "none",
                    [Query("sum(harbor_ingest_buffer_events{@})", "operations")],
                ),
                Panel(
                    "Frames that are no event",
                    "A second.",
                    "eps",
                    [Query(rate("harbor_event_decode_errors_total", "source", more=OF_SOURCE), "{{source}}")],
                ),
                Panel(
                    "Batches",
                    "Sent to shards, a second.",
                    "ops",
                    [Query(f"sum(rate(harbor_window_flushes_total{{@}}[{RATE}]))", "batches")],
                ),
                Panel(
                    "Batch size", "Operations folded into a batch.", "none", quantiles("harbor_window_size_operations")
                ),
                Panel(
                    "Wait for the window",
                    "From an event's receipt to its batch.",
                    "s",
                    quantiles("harbor_window_wait_seconds"),
                ),
            ],
        ),
    ],
    (("source", "harbor_events_received_total"),),
)
SHARDS = Board(
    "harbor-shards",
    "Harbor / Shards",
    "What shards hold, and how long they take.",
    [
        (
            "What they hold",
            [
                Panel(
                    "Entries",
                    "Entries held.",
                    "none",
                    [Query(level("harbor_shard_entries", "shard", more=SHARD), "shard {{shard}}")],
                ),
                Panel(
                    "Bytes",
                    "Keys and values held, with what holding them takes.",
                    "bytes",
                    [Query(level("harbor_shard_bytes", "shard", more=SHARD), "shard {{shard}}")],
                ),
                Panel(
                    "Store",
                    "The store on the disk.",
                    "bytes",
                    [Query(level("harbor_journal_bytes", "shard", more=SHARD), "shard {{shard}}")],
                ),
                Panel(
                    "Subscriptions",
                    "Subscriptions that concern the shard; one of a prefix concerns all.",
                    "none",
                    [Query(level("harbor_shard_subscriptions", "shard", more=SHARD), "shard {{shard}}")],
                ),
                Panel(
                    "Evictions",
                    "Entries dropped because nobody needed them, a second.",
                    "ops",
                    [Query(rate("harbor_evictions_total", "reason", more=SHARD), "{{reason}}")],
                ),
                Panel(
                    "Invalidations",
                    "Entries marked out of date, a second.",
                    "ops",
                    [Query(rate("harbor_invalidations_total", "shard", more=SHARD), "shard {{shard}}")],
                ),
            ],
        ),
        (
            "How long they take",
            [
                Panel(
                    "To apply a batch",
                    "From taking a batch to its commit.",
                    "s",
                    quantiles("harbor_shard_apply_seconds", SHARD),
                ),
                Panel(
                    "Mailboxes",
                    "Batches that a shard has not committed; above 1 it falls behind.",
                    "none",
                    [Query(level("harbor_shard_mailbox_batches", "shard", more=SHARD, of="max"), "shard {{shard}}")],
                ),
                Panel(
                    "Hot slots",
                    "Share of a shard's operations that its busiest slot has: near 1 one key has them all, and more shards would not help.",
                    "percentunit",
                    [Query(level("harbor_shard_hot_slot_share", "shard", more=SHARD, of="max"), "shard {{shard}}")],
                ),
                Panel(
                    "To write through",
                    "From a commit to the disk.",
                    "s",
                    quantiles("harbor_journal_sync_seconds", SHARD),
                ),
                Panel(
                    "Fetches",
                    "From services, by outcome.",
                    "reqps",
                    [Query(rate("harbor_fetches_total", "outcome", more=SHARD), "{{outcome}}")],
                ),
                Panel("To fetch", "From a request to its answer.", "s", quantiles("harbor_fetch_seconds", SHARD)),
                Panel(
                    "History",
                    "What holds the changes that clients which come back can be told of; it is bounded by storage.history.",
                    "bytes",
                    [Query(level("harbor_history_bytes", "shard", more=SHARD), "shard {{shard}}")],
                ),
                Panel(
                    "Changes in the history",
                    "How many of them there are.",
                    "none",
                    [Query(level("harbor_history_changes", "shard", more=SHARD), "shard {{shard}}")],
                ),
                Panel(
                    "Stores lost",
                    "Times that a shard began without the store that had held it: what is not fetched or streamed again is gone.",
                    "none",
                    [Query(level("harbor_stores_lost_total", "shard", more=SHARD), "shard {{shard}}")],
                ),
                Panel(
                    "Resets and store errors",
                    "Entries reset because events may have been lost; transactions that could not be stored.",
                    "ops",
                    [
                        Query(rate("harbor_shard_resets_total", more=SHARD), "resets"),
                        Query(rate("harbor_journal_errors_total", more=SHARD), "store errors"),
                    ],
                ),
            ],
        ),
    ],
    (("shard", "harbor_shard_entries"),),
)
DELIVERY = Board(
    "harbor-delivery",
    "Harbor / Delivery",
    "Clients: how many, how late, who does not keep up.",
    [
        (
            "Clients",
            [
                Panel(
                    "Sessions",
                    "Clients connected.",
                    "none",
                    [Query(level("harbor_gateway_sessions", "gateway", more=GATEWAY), "gateway {{gateway}}")],
                ),
                Panel(
                    "Changes",
                    "Written to clients in step, a second.",
                    "cps",
                    [Query(rate("harbor_changes_delivered_total", "gateway", more=GATEWAY), "gateway {{gateway}}")],
                ),
                Panel(
                    "Reads",
                    "By where the answer came from.",
                    "reqps",
                    [Query(rate("harbor_reads_total", "result"), "{{result}}")],
                ),
            ],
        ),
        (
            "Age",
            [
                Panel(
                    "Age of changes",
                    "From an event's receipt to its change being written.",
                    "s",
                    [Query(f"sum by (le) (increase({AGE}_bucket{{@{GATEWAY}}}[{RATE}]))", "{{le}}")],
                    "heatmap",
                    16,
                ),
                Panel("Quantiles of age", "Of all gateways chosen.", "s", quantiles(AGE, GATEWAY)),
            ],
        ),
        (
            "Who does not keep up",
            [
                Panel(
                    "Outboxes",
                    "Waiting to be written.",
                    "bytes",
                    [Query(level("harbor_gateway_outbox_bytes", "gateway", more=GATEWAY), "gateway {{gateway}}")],
                ),
                Panel(
                    "Degraded",
                    "Sessions by level of the degradation ladder.",
                    "none",
                    [Query(level("harbor_sessions_degraded", "level", more=GATEWAY), "level {{level}}")],
                ),
                Panel(
                    "Replicas that diverged",
                    "Entries that were not what their shard holds, and were repaired: any is a fault.",
                    "none",
                    [Query(rate("harbor_replica_divergences_total", "gateway", more=GATEWAY), "gateway {{gateway}}")],
                ),
                Panel(
                    "Disconnects",
                    "WebSocket closes by code, a second: 3001 drain, 3008 too slow, 3012 no pong.",
                    "cps",
                    [Query(rate("harbor_disconnects_total", "code", more=GATEWAY), "{{code}}")],
                ),
                Panel(
                    "Resumes",
                    "Subscriptions continued from a token, by result.",
                    "cps",
                    [Query(rate("harbor_resumes_total", "result", more=GATEWAY), "{{result}}")],
                ),
            ],
        ),
        (
            "Access",
            [
                Panel(
                    "Limited",
                    "Requests, messages and connections refused or ended by a limit, a second.",
                    "cps",
                    [Query(rate("harbor_limited_total", "limit", more=GATEWAY), "{{limit}}")],
                ),
                Panel(
                    "Credentials refused",
                    "Tokens and keys that were not recognised, a second, by why.",
                    "cps",
                    [Query(rate("harbor_credentials_refused_total", "reason", more=GATEWAY), "{{reason}}")],
                ),
                Panel(
                    "Sessions barred",
                    "Sessions closed since their credentials expired, were revoked or taken away, a second.",
                    "cps",
                    [Query(rate("harbor_sessions_barred_total", "reason", more=GATEWAY), "{{reason}}")],
                ),
                Panel(
                    "Fetches of keys",
                    "Of the keys that tokens are checked with, a second, by outcome.",
                    "cps",
                    [Query(rate("harbor_jwks_fetches_total", "outcome", more=GATEWAY), "{{outcome}}")],
                ),
            ],
        ),
        (
            "Presence",
            [
                Panel(
                    "Present",
                    "Members of presence topics.",
                    "none",
                    [Query("sum(harbor_presence_members{@})", "members")],
                ),
            ],
        ),
    ],
    (("gateway", "harbor_gateway_sessions"),),
)
WRITES = Board(
    "harbor-writes",
    "Harbor / Writes",
    "Mutations: what becomes of them, what waits and for how long, and services that cannot be reached.",
    [
        (
            "Mutations",
            [
                Panel(
                    "Mutations",
                    "Settled ones, by status, a second.",
                    "ops",
                    [Query(rate("harbor_mutations_total", "status", more=SHARD), "{{status}}")],
                ),
                Panel(
                    "Failed",
                    "Share of the settled ones that failed; those that were undone are none of them.",
                    "percentunit",
                    [
                        Query(
                            f'sum(rate(harbor_mutations_total{{@{SHARD},status="error"}}[{RATE}])) '
                            f"/ sum(rate(harbor_mutations_total{{@{SHARD}}}[{RATE}]))",
                            "failed",
                        )
                    ],
                ),
                Panel(
                    "Pending",
                    "Mutations that are not settled: on their way, delayed, or waiting for a service or for others of their scope.",
                    "none",
                    [Query(level("harbor_mutations_pending", "shard", more=SHARD), "shard {{shard}}")],
                ),
                Panel(
                    "Age of the oldest",
                    "For how long the oldest that is not settled could have been sent.",
                    "s",
                    [Query(level("harbor_mutations_oldest_seconds", "shard", more=SHARD, of="max"), "shard {{shard}}")],
                ),
                Panel(
                    "Offline services",
                    "For how long shards could not reach a service; mutations and fetches of it wait.",
                    "s",
                    [Query(level("harbor_service_offline_seconds", "service", more=SHARD, of="max"), "{{service}}")],
                ),
            ],
        )
    ],
    [("shard", "harbor_mutations_pending")],
)
NODES = Board(
    "harbor-nodes",
    "Harbor / Ray and nodes",
    "Processes and nodes: what they use, and which were lost.",
    [
        (
            "Processes",
            [
                Panel(
                    "CPU",
                    "Cores that each actor's process uses.",
                    "none",
                    [Query(rate("harbor_process_cpu_seconds_total", "actor"), "{{actor}}")],
                ),
                Panel(
                    "Memory",
                    "Resident memory of each actor's process.",
                    "bytes",
                    [Query(level("harbor_process_resident_bytes", "actor"), "{{actor}}")],
                ),
                Panel(
                    "Restarts",
                    "Actors that came back as another process, by actor.",
                    "none",
                    [Query(f"sum by (actor) (increase(harbor_actor_restarts_total{{@}}[{RATE}]))", "{{actor}}")],
                ),
            ],
        ),
        (
            "Ray",
            [
                Panel(
                    "Nodes",
                    "Nodes of the Ray cluster, those without actors too.",
                    "none",
                    [Query("max(harbor_nodes{@})", "nodes")],
                    "number",
                    4,
                ),
                Panel(
                    "Gateways wanted",
                    "Above those that there are, nodes with a place are missing.",
                    "none",
                    [Query("max(harbor_gateways_wanted{@})", "gateways")],
                    "number",
                    4,
                ),
                Panel(
                    "Actors that answer",
                    "Of those that there should be.",
                    "percentunit",
                    [Query("avg(harbor_actor_up{@})", "actors")],
                    "number",
                    4,
                ),
                Panel(
                    "Versions",
                    "Actors' code and Ray, as the supervisor has them.",
                    "none",
                    [
                        Query(
                            "count by (version, ray_version) (harbor_build_info{@})",
                            "{{version}}, Ray {{ray_version}}",
                        )
                    ],
                    "number",
                    8,
                ),
            ],
        ),
        (
            "Replication",
            [
                Panel(
                    "Failovers",
                    "Shards taken over by their standbys.",
                    "none",
                    [Query(f"sum by (shard) (increase(harbor_failovers_total{{@}}[{RATE}]))", "shard {{shard}}")],
                ),
                Panel(
                    "Recovery",
                    "From the loss of a shard until it serves again.",
                    "s",
                    quantiles("harbor_recovery_seconds"),
                ),
                Panel(
                    "Rebalances",
                    "Moves of slots between shards, and cuts that were given up and are tried again.",
                    "none",
                    [
                        Query(f"sum(increase(harbor_rebalances_total{{@}}[{RATE}]))", "rebalances"),
                        Query(f"sum(increase(harbor_rebalances_given_up_total{{@}}[{RATE}]))", "given up"),
                    ],
                ),
                Panel(
                    "Pause",
                    "For how long events and requests waited for a move of slots.",
                    "s",
                    quantiles("harbor_rebalance_pause_seconds"),
                ),
                Panel(
                    "Moves",
                    "Shards' actors that went to another node.",
                    "none",
                    [Query(f"sum(increase(harbor_shard_moves_total{{@}}[{RATE}]))", "moves")],
                ),
                Panel(
                    "Replication",
                    "What standbys took for the last message; every change waits for it.",
                    "s",
                    [Query(level("harbor_replication_lag_seconds", "shard", of="max"), "shard {{shard}}")],
                ),
                Panel(
                    "Standbys",
                    "1 where a shard's standby has all that the shard has.",
                    "none",
                    [Query(level("harbor_shard_standby", "shard", of="min"), "shard {{shard}}")],
                ),
                Panel(
                    "Records",
                    "Sent to standbys, a second.",
                    "ops",
                    [Query(rate("harbor_replication_records_total", "shard"), "shard {{shard}}")],
                ),
                Panel(
                    "Standbys diverged",
                    "Found to differ from their primaries, and filled anew; any is a fault.",
                    "none",
                    [
                        Query(
                            f"sum by (shard) (increase(harbor_replication_divergences_total{{@}}[{RATE}]))",
                            "shard {{shard}}",
                        )
                    ],
                ),
                Panel(
                    "Leases over",
                    "Times that a primary had to hold what its lease did not cover: its standby answers too late.",
                    "none",
                    [
                        Query(
                            f"sum by (shard) (increase(harbor_lease_expirations_total{{@}}[{RATE}]))",
                            "shard {{shard}}",
                        )
                    ],
                ),
            ],
        ),
    ],
)
BOARDS = (OVERVIEW, INGESTION, SHARDS, DELIVERY, WRITES, NODES)


def matchers(expr: str) -> str:
    """Put the variables' matchers in."""
    return expr.replace("@", BASE)


def _variable(name: str, metric: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name)
        .datasource(SOURCE)
        .query({"query": f"label_values({metric}, {name})", "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def _target(query: Query, position: int, *, is_heatmap: bool = False) -> prometheus.Dataquery:
    made = prometheus.Dataquery().datasource(SOURCE).expr(matchers(query.expr)).legend_format(query.legend)
    made = made.ref_id(chr(ord("A") + position)).range()
    return made.format(PromQueryFormat.HEATMAP) if is_heatmap else made


def _panel(panel: Panel, identity: int, place: GridPos) -> Any:
    targets = [_target(query, n, is_heatmap=panel.kind == "heatmap") for n, query in enumerate(panel.queries)]
    made: Any
    if panel.kind == "number":
        made = stat.Panel().reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    elif panel.kind == "heatmap":
        color = HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges")
        made = heatmap.Panel().color(color).calculate(False)
    else:
        legend = VizLegendOptions().display_mode(LegendDisplayMode.TABLE).placement(LegendPlacement.BOTTOM)
        tooltip = VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        made = timeseries.Panel().legend(legend.calcs(["lastNotNull", "max"]).show_legend(True)).tooltip(tooltip).min(0)
    return (
        made.id(identity)
        .title(panel.title)
        .description(panel.text)
        .unit(panel.unit)
        .datasource(SOURCE)
        .targets(targets)
        .grid_pos(place)
    )


def build(board: Board) -> str:
    """Return a dashboard as JSON."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.text)
        .tags(["harbor"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .readonly()
        .link(
            dashboard.DashboardLink("Harbor")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["harbor"])
            .as_dropdown(True)
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("data source").type("prometheus"))
        .with_variable(_variable("job", "harbor_build_info"))
        .with_variable(_variable("namespace", 'harbor_build_info{job=~"$job"}'))
    )
    for name, metric in board.variables:
        made = made.with_variable(_variable(name, f"{metric}{{{BASE}}}"))
    for name, expr, color in (
        ("Failovers", "sum(changes(harbor_failovers_total{@}[1m])) > 0", "red"),
        (
            "Deploys",
            "count by (version) (harbor_build_info{@}) unless count by (version) (harbor_build_info{@} offset 1m)",
            "blue",
        ),
    ):
        made = made.annotation(
            dashboard.AnnotationQuery()
            .name(name)
            .datasource(SOURCE)
            .expr(matchers(expr))
            .enable(True)
            .icon_color(color)
        )
    identity, y = 0, 0
    for title, panels in board.rows:
        identity += 1
        made = made.with_row(dashboard.Row(title).id(identity).grid_pos(GridPos(x=0, y=y, w=WIDTH, h=1)))
        y, x = y + 1, 0
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            identity += 1
            made = made.with_panel(_panel(panel, identity, GridPos(x=x, y=y, w=panel.width, h=HEIGHT)))
            x += panel.width
        y += HEIGHT
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def document() -> str:
    """Return `docs/monitoring.md`."""
    parts = [HEAD]
    for board in BOARDS:
        parts.append(f"\n## {board.title}\n{board.text}\n\n| panel | shows | expressions |\n|---|---|---|\n")
        for _, panels in board.rows:
            for panel in panels:
                shown = (re.sub(r"\{@[^}]*\}", "", query.expr).replace(RATE, "5m") for query in panel.queries)
                expressions = "<br>".join(f"`{each}`" for each in shown)
                parts.append(f"| {panel.title} | {panel.text} | {expressions} |\n")
    return "".join(parts)


HEAD = """# Monitoring

Prometheus scrapes the admin port (`/metrics`); [`grafana/rules/harbor.yaml`](../grafana/rules/harbor.yaml) are its rules, with a [runbook](runbook.md); the dashboards
are in [`grafana/dashboards`](../grafana/dashboards). They choose by the labels `job` and `namespace`, so targets need both. Metrics: [metrics.md](metrics.md).

On your machine, beside `make up`: `make monitor` runs a Prometheus with the rules at http://127.0.0.1:9090. A Grafana finds it and the dashboards by
`HARBOR_DASHBOARDS=$PWD/grafana/dashboards GF_PATHS_PROVISIONING=$PWD/grafana/provisioning grafana-server`, started with its own `--homepath`.

Made by `python -m grafana.build`, like the dashboards; a test compares. Expressions are shown without the matchers of the dashboards' variables.
"""


def files() -> dict[Path, str]:
    """Return what is to be written, by path."""
    boards = {HERE / "dashboards" / f"{board.uid.removeprefix('harbor-')}.json": build(board) for board in BOARDS}
    return {**boards, ROOT / "docs" / "monitoring.md": document()}


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
