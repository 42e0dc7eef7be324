"""Notices from the difference between two descriptions."""

from typing import Any

from cluster.core.chronicle import KEPT, Chronicle


def described(**more: Any) -> dict[str, Any]:
    return {
        "ready": True,
        "waits_for": [],
        "shards": [{"id": 0, "pid": 10, "epoch": 1, "standby": {"in_sync": True}}],
        "coordinators": [{"id": 0, "pid": 11}],
        "ingestors": [{"id": 0, "pid": 12}],
        "gateways": [{"id": 0, "pid": 13}],
        "sources": [{"name": "s", "state": "connected", "reason": None}],
        **more,
    }


def source(state: str, reason: str | None = None) -> list[dict[str, Any]]:
    return [{"name": "s", "state": state, "reason": reason}]


def codes(chronicle: Chronicle, *steps: dict[str, Any], offline: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    for at, step in enumerate(steps):
        chronicle.look(step, offline, float(at))
    return [(each["level"], each["code"]) for each in reversed(chronicle.newest())]


def test_what_stays_as_it_is_says_nothing() -> None:
    assert codes(Chronicle(), described(), described()) == []


def test_a_source_that_comes_and_goes() -> None:
    chronicle = Chronicle()
    steps = [
        described(sources=source(*state))
        for state in (("connecting",), ("connected",), ("reconnecting", "refused"), ("failed",), ("connected",))
    ]
    assert codes(chronicle, *steps) == [
        ("warning", "source_disconnected"),
        ("error", "source_failed"),
        ("success", "source_restored"),
    ]
    assert chronicle.newest()[-1] == {
        "number": 1, "time": 2, "level": "warning", "code": "source_disconnected", "message": "the stream s is interrupted: refused",
    }  # fmt: skip


def test_an_interruption_between_two_looks_is_told_too() -> None:
    once, twice = ([{**source("connected")[0], "reconnects": count}] for count in (1, 2))
    assert codes(Chronicle(), described(sources=once), described(sources=twice)) == [("success", "source_restored")]


def test_actors_that_begin_anew_come_and_go() -> None:
    gone: dict[str, Any] = {"id": 0}  # while it is made anew nothing is known of it
    steps = [
        described(gateways=[gone]),
        described(gateways=[{"id": 0, "pid": 99}, {"id": 1, "pid": 14}]),
        described(
            gateways=[{"id": 0, "pid": 99}], shards=[{"id": 0, "pid": 15, "epoch": 2, "standby": {"in_sync": False}}]
        ),
        described(
            gateways=[{"id": 0, "pid": 99}], shards=[{"id": 0, "pid": 15, "epoch": 2, "standby": {"in_sync": True}}]
        ),
    ]
    assert codes(Chronicle(), described(), *steps) == [
        ("warning", "actor_restarted"),
        ("info", "actor_added"),
        ("warning", "standby_behind"),
        ("warning", "shard_restarted"),
        ("info", "actor_removed"),
        ("success", "standby_in_sync"),
    ]


def test_services_and_the_whole() -> None:
    chronicle = Chronicle()
    assert codes(chronicle, described(), offline=("api",)) == [("warning", "service_offline")]
    assert codes(chronicle, described(ready=False, waits_for=["shard-0"]), described())[1:] == [
        ("error", "not_ready"),
        ("success", "service_online"),
        ("success", "ready"),
    ]


def test_it_is_bounded() -> None:
    chronicle = Chronicle()
    codes(chronicle, *[described(sources=source(("connected", "failed")[n % 2])) for n in range(KEPT + 50)])
    newest = chronicle.newest()
    assert (len(newest), newest[0]["number"]) == (KEPT, KEPT + 49)
