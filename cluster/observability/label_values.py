"""Values of labels that are known before anything is counted under them.

A counter of which the first sample is a 1 has not risen, for whoever computes rates; and where there is no sample, nobody can tell that
nothing has happened from that nobody counts. So what can be counted begins at 0.

What must not live here: names of metrics and of their labels (`metrics`), values that a configuration or a client brings.
"""

BEGUN: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {
    "shard": {
        "mutations_total": ("status", ("success", "error", "cancelled")),
        "evictions_total": ("reason", ("collected", "entries", "bytes")),
        "fetches_total": ("outcome", ("success", "not_modified", "retry", "error")),
        "reads_total": ("result", ("hit", "fetch", "miss")),
        "events_dropped_total": (
            "reason",
            (
                "operation_skipped",
                "operation_mismatch",
                "operation_stale",
                "operation_function",
                "operation_unknown_relation",
            ),
        ),
    },
    "ingestor": {
        "operations_total": (
            "kind",
            (
                "set",
                "merge",
                "append",
                "prepend",
                "upsert",
                "merge_where",
                "remove",
                "increment",
                "delete",
                "invalidate",
                "call",
            ),
        ),
    },
    "gateway": {
        "reads_total": ("result", ("replica", "shard")),
        "disconnects_total": (
            "code",
            (
                "1000",
                "1001",
                "1002",
                "1006",
                "1009",
                "1011",
                "3001",
                "3002",
                "3008",
                "3012",
                "3500",
                "3501",
                "3503",
                "3504",
                "3505",
                "other",
            ),
        ),
        "resumes_total": ("result", ("resumed", "reset")),
    },
}
"""By component and counter: a label, and its values."""
DROPPED = (
    "bad_data",
    "bad_key",
    "binary",
    "filtered",
    "history_gone",
    "id_out_of_order",
    "missing_capture",
    "no_event",
    "no_rule",
    "not_a_packet",
    "not_json",
    "not_object",
    "overflow_disconnect",
    "overflow_drop_oldest",
    "overflow_keep_latest",
    "rate_limited",
    "repeated",
    "subscribe_refused",
    "too_large",
    "too_many_channels",
    "transform_failed",
)
"""Reasons of `events_dropped_total` for each source that an ingestor reads."""
