"""What people see on a terminal."""

import io
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from cluster.cli import tables


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=200, highlight=False, no_color=True)
    monkeypatch.setattr(tables, "_console", console)
    return written


def letter(**given: Any) -> dict[str, Any]:
    known = {"time": 1_700_000_000_000, "source": "s", "channel": None, "event": "e", "reason": "bad_data"}
    return {**known, "detail": "why", "sample": "{}", "size_bytes": 2, **given}


def test_dead_letters_are_a_table(terminal: io.StringIO) -> None:
    tables.show_dead_letters([letter(event="second"), letter(event="first", sample="é[red]x")])
    head, first, second = [line for line in terminal.getvalue().splitlines() if line.strip()]
    for column in ("time", "source", "channel", "event", "reason", "detail", "sample"):
        assert column in head
    assert "second" in first
    assert "é[red]x" in second


def test_what_an_upstream_sent_cannot_steer_the_terminal(terminal: io.StringIO) -> None:
    tables.show_dead_letters([letter(event="\x1b]0;owned\x07", sample="a\x1b[2Jb\r\n\u202e")])
    shown = terminal.getvalue()
    assert [part for part in ("\x1b]", "\x07", "\x1b[2J", "\r", "\u202e") if part in shown] == []
    assert r"\x1b]0;owned\x07" in shown
    assert r"a\x1b[2Jb\r\n\u202e" in shown


def test_what_is_said_of_a_cluster_cannot_steer_the_terminal(terminal: io.StringIO) -> None:
    steers = "\x1b]0;owned\x07[/x]\x9b2J"
    kinds = ("nodes", "shards", "coordinators", "ingestors", "gateways")
    source = {"name": "s", "state": "failed", "reason": steers}
    described = {"name": steers, "version": steers, "ready": True, **{kind: [] for kind in kinds}, "sources": [source]}
    tables.show_status(described)
    row = {"key": [steers], "version": 1, "status": steers, "is_stale": False, "subscribers": steers}
    tables.show_keys([row])
    tables.show_message({"type": steers, "key": [steers], "version": steers, "data": steers, "mutations": [steers]})
    shown = terminal.getvalue()
    assert shown.count("[/x]") == 11
    assert [part for part in ("\x1b]", "\x07", "\x9b") if part in shown] == []


def test_gateways_that_are_missing_are_told_of(terminal: io.StringIO) -> None:
    kinds = ("nodes", "shards", "coordinators", "ingestors", "sources")
    gateway = {"id": 0, "pid": 7, "address": "http://a:8700", "sessions": 5}
    described: dict[str, Any] = {"name": "h", "ready": True, **{kind: [] for kind in kinds}, "gateways": [gateway]}
    tables.show_status({**described, "gateways_wanted": 1})
    assert "wanted" not in terminal.getvalue()
    assert "scaling" not in terminal.getvalue()
    tables.show_status({**described, "gateways_wanted": 3, "scaling": True})
    assert "gateways (3 wanted)" in terminal.getvalue()
    assert "scaling" in terminal.getvalue()


def test_a_shard_says_since_when_its_primary_leads(terminal: io.StringIO) -> None:
    shard = {"id": 0, "pid": 7, "role": "primary", "epoch": 86_400_000 + 5_000}  # of a day and five seconds
    kinds = ("nodes", "coordinators", "ingestors", "gateways", "sources")
    tables.show_status({"name": "h", "ready": True, **{kind: [] for kind in kinds}, "shards": [shard]})
    at = datetime(2025, 1, 2, 0, 0, 5, tzinfo=UTC).astimezone()
    assert f"{at:%Y-%m-%d %H:%M:%S}" in terminal.getvalue()


def test_mutations_are_a_table(terminal: io.StringIO) -> None:
    rows: list[dict[str, Any]] = [
        {
            "id": "m1",
            "name": "save",
            "status": "scheduled",
            "created_at": 1_700_000_000_000,
            "due_at": 1_700_000_005_000,
        },
        {
            "id": "m\x1b[2J",
            "name": "save",
            "status": "error",
            "created_at": 1_700_000_000_000,
            "error": {"code": "UPSTREAM_ERROR", "message": "\x07[red]no"},
        },
    ]
    tables.show_mutations(rows)
    head, first, second = [line for line in terminal.getvalue().splitlines() if line.strip()]
    for column in ("created", "id", "name", "status", "due", "error"):
        assert column in head
    assert first.split()[2:5] == ["m1", "save", "scheduled"]
    assert r"m\x1b[2J" in second
    assert r"UPSTREAM_ERROR: \x07[red]no" in second
    tables.show_mutations([])
    assert terminal.getvalue().endswith("no mutations\n")


def test_a_change_names_its_mutations(terminal: io.StringIO) -> None:
    tables.show_message({"type": "change", "key": ["a"], "version": 2, "data": 1, "mutations": ["m1", "m2"]})
    assert "(by m1, m2) " in terminal.getvalue()


def test_none_is_said(terminal: io.StringIO) -> None:
    tables.show_dead_letters([])
    assert terminal.getvalue() == "no dead letters\n"
