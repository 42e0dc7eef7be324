"""`harbor get KEY --why`: an entry's provenance in sentences."""

from datetime import UTC, datetime
from typing import Any

import orjson

KINDS = {
    "fetch": "fetched from",
    "stream": "changed by an event of",
    "write": "written by a client",
    "mutation": "changed by a mutation",
    "restored": "restored from the store",
}


def explain(entry: dict[str, Any], now_ms: float) -> list[str]:
    """Return what is known of where an entry's data came from, and of its freshness; a line for each."""
    origin = entry.get("origin") or {}
    lines = [f"{orjson.dumps(entry['key']).decode()} is at version {entry['version']}, {entry['status']}"]
    if origin.get("kind"):
        source = f" {origin['from']}" if "from" in origin else ""
        lines.append(f"value: {KINDS.get(origin['kind'], origin['kind'])}{source}, {_when(origin['at'], now_ms)}")
    else:
        lines.append("value: none yet")
    if origin.get("kind") != "fetch" and "fetched_at" in origin:
        lines.append(f"last fetched: {_when(origin['fetched_at'], now_ms)}")
    if origin.get("uncertain"):
        lines.append("uncertain: events that cannot be repeated came during every fetch")
    if entry["is_stale"]:
        doubt = origin.get("invalidated")
        if doubt is not None:
            lines.append(f"stale: invalidated by {doubt['by']}, {_when(doubt['at'], now_ms)}")
        elif "stale_at" in origin:
            lines.append(f"stale: its stale time was over {_when(origin['stale_at'], now_ms)}")
        else:
            lines.append("stale: it has no data")
    elif "stale_at" in origin:
        lines.append(f"fresh: until {_when(origin['stale_at'], now_ms)}")
    else:
        lines.append("fresh: for good, unless it is invalidated")
    if entry["fetch_status"] != "idle":
        lines.append(f"fetch: {entry['fetch_status']}")
    if entry["is_offline"]:
        lines.append("service: it cannot be reached now")
    if "error" in entry:
        lines.append(f"last error: {entry['error']['code']}: {entry['error']['message']}")
    return lines


def _when(at_ms: float, now_ms: float) -> str:
    seconds = abs(now_ms - at_ms) / 1000.0
    size, unit = next(((n, u) for n, u in ((86400, "d"), (3600, "h"), (60, "m")) if seconds >= n), (1, "s"))
    stamp = datetime.fromtimestamp(at_ms / 1000.0, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{stamp} ({'in ' if at_ms > now_ms else ''}{seconds / size:.1f} {unit}{'' if at_ms > now_ms else ' ago'})"
