"""`harbor verify`: what a report says, to people."""

import sys
from typing import Any

import pytest

from cluster.cli.verify import lines, settings_of
from cluster.errors import RequestError
from cluster.verify.run import Report, Trace

TRACE = Trace(
    "gap",
    "a change starts after the version last sent: something was lost",
    '["v","a"]',
    "a change from 5",
    "6 to 7",
    "client 3 (sse, prefix, patch, stays)",
    ["(connected)", '{"type":"change"}'],
    "kill shards",
    7.5,
    99,
)


def report(**more: Any) -> Report:
    given: dict[str, Any] = {
        "seconds": 30.04,
        "seed": 99,
        "is_whole": True,
        "violation": None,
        "counts": {"acknowledged writes": 10, "deliveries": 20},
        "faults": {"flap": 2, "kill shards": 1},
        "ages": {"count": 20, "p50_ms": 5.0, "p99_ms": 50.0, "max_ms": 60.0},
        "silences_s": {"kill shards": 1.25},
        "notes": [],
    }
    return Report(**{**given, **more})


def test_a_report_has_its_figures() -> None:
    assert lines(report(notes=["shards are not killed"])) == [
        "delivery contract: held; 30.0 s, seed 99",
        "checked: 10 acknowledged writes, 20 deliveries",
        "ages of 20 deliveries: p50 5.0 ms, p99 50.0 ms, max 60.0 ms",
        "faults: 2 x flap, 1 x kill shards",
        "longest silence after kill shards: 1.25 s",
        "note: shards are not killed",
    ]


def test_a_violation_comes_first_with_its_trace() -> None:
    said = lines(report(violation=TRACE, is_whole=False))
    assert said[:9] == [
        "violation: gap: a change starts after the version last sent: something was lost",
        '  key: ["v","a"]',
        "  expected: a change from 5",
        "  got: 6 to 7",
        "  at: 7.5 s, last fault: kill shards, seed 99",
        "  seen by: client 3 (sse, prefix, patch, stays), whose last messages were",
        "    (connected)",
        '    {"type":"change"}',
        "delivery contract: VIOLATED; 30.0 s, seed 99",
    ]


def test_an_interrupted_one_says_so() -> None:
    assert "delivery contract: held until it was interrupted; 30.0 s, seed 99" in lines(report(is_whole=False))


@pytest.mark.parametrize(
    ("faults", "yes", "refused"), [("kill", False, True), ("kill", True, False), ("flap", False, False)]
)
def test_on_a_terminal_processes_are_killed_on_request(
    monkeypatch: pytest.MonkeyPatch, faults: str, yes: bool, refused: bool
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    if refused:
        with pytest.raises(RequestError, match="say --yes if you mean it"):
            settings_of(faults=faults, prefix=["v"], seed=None, yes=yes)
    else:
        assert settings_of(faults=faults, prefix=["v"], seed=None, yes=yes).faults == (faults,)


def test_levels_are_what_the_option_names() -> None:
    made = settings_of(faults="", prefix=["v"], seed=None, yes=False, ack="replicated,durable")
    assert made.acks == ("replicated", "durable")
