"""What people see on a terminal."""

from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.cli.printable import printable, printable_json
from cluster.core.role import EPOCH_ORIGIN_MS

_console = Console(highlight=False)
_STYLES = {"snapshot": "cyan", "change": "green", "removed": "red", "invalidated": "yellow", "reset": "magenta"}


def _cell(value: Any, style: str = "") -> Text:
    """Return what a cell says; of a standby whether it has everything. What came from outside is no markup."""
    if isinstance(value, dict):
        return Text("in sync" if value.get("in_sync") else "filling")
    return Text("-", style="dim") if value is None else Text(printable(value), style=style)


def show_status(described: dict[str, Any]) -> None:
    """Print the cluster's description."""
    ready = Text("ready", style="green") if described["ready"] else Text("not ready", style="red")
    scaling = [Text("scaling", style="yellow")] if described.get("scaling") else []
    _console.print(_cell(described["name"], "bold"), _cell(described.get("version", "")), ready, *scaling)
    for kind, columns in {
        "nodes": ("id", "address"),
        "shards": ("id", "pid", "role", "since", "keys", "subscribers", "lag_ms", "standby"),
        "coordinators": ("id", "pid"),
        "ingestors": ("id", "pid"),
        "gateways": ("id", "pid", "address", "sessions"),
        "sources": ("name", "state", "transport", "events", "reconnects", "reason"),
    }.items():
        title = kind
        if kind == "gateways" and described.get("gateways_wanted", 0) != len(described[kind]):
            title = f"gateways ({described['gateways_wanted']} wanted)"
        table = Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, min_width=40)
        for row in described[kind]:
            # An epoch is when it began: for how long the primary has led, which is what a failover changes.
            since = {"since": _time(EPOCH_ORIGIN_MS + row["epoch"])} if "epoch" in row else {}
            table.add_row(*(_cell((row | since).get(column, "-")) for column in columns))
        _console.print(table)


def show_dead_letters(letters: list[dict[str, Any]]) -> None:
    """Print events that came to nothing."""
    if not letters:
        _console.print("no dead letters")
        return
    columns = ("source", "channel", "event", "reason", "detail", "sample")
    table = Table("time", *columns, box=None, pad_edge=False)
    for letter in letters:
        table.add_row(_time(letter["time"]), *(_cell(letter[column]) for column in columns))
    _console.print(table)


def show_keys(rows: list[dict[str, Any]]) -> None:
    """Print a listing of entries."""
    table = Table("key", "version", "status", "stale", "subscribers", box=None, pad_edge=False)
    for row in rows:
        stale = "yes" if row["is_stale"] else "no"
        key = Text(printable_json(row["key"]))
        table.add_row(key, *(_cell(each) for each in (row["version"], row["status"], stale, row["subscribers"])))
    _console.print(table)


def show_mutations(rows: list[dict[str, Any]]) -> None:
    """Print mutations."""
    if not rows:
        _console.print("no mutations")
        return
    table = Table("created", "id", "name", "status", "due", "error", box=None, pad_edge=False)
    for row in rows:
        due = "-" if "due_at" not in row else _time(row["due_at"])
        error = row.get("error")
        said = None if error is None else f"{error['code']}: {error['message']}"
        texts = [_cell(each) for each in (row["id"], row["name"], row["status"])]
        table.add_row(_time(row["created_at"]), *texts, due, _cell(said))
    _console.print(table)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def show_message(message: dict[str, Any]) -> None:
    """Print one message of a subscription on one line, cut at the terminal's width."""
    kind = message.pop("type")
    line = Text(f"{printable(kind):12}", style=_STYLES.get(kind, "dim"))
    if "key" in message:
        line.append(printable_json(message["key"]) + " ", style="bold")
    if "version" in message:
        line.append(f"v{printable(message['version'])} ", style="dim")
    if message.get("coalesced", 1) > 1:
        line.append(f"({message['coalesced']} folded) ", style="dim")
    if "mutations" in message:
        line.append(f"(by {printable(', '.join(message['mutations']))}) ", style="dim")
    for member in ("data", "patch"):
        if member in message:
            line.append(printable_json(message[member]))
    _console.print(line, no_wrap=True, overflow="ellipsis", crop=True)
