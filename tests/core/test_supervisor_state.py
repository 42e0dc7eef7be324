"""The supervisor's reconciling."""

import pytest

from cluster.core.supervisor_state import (
    CHECK_MS,
    FAILURES,
    SILENT_MS,
    Create,
    Remove,
    Replace,
    SupervisorState,
    match_gateways,
)


def test_what_is_wanted_is_created_and_what_is_not_any_more_removed() -> None:
    machine = SupervisorState()
    assert machine.want(["shard-0", "shard-1"]) == [Create("shard-0"), Create("shard-1")]
    assert machine.want(["shard-0"]) == [Remove("shard-1"), Create("shard-0")]


def test_ready_is_when_every_actor_has_answered() -> None:
    machine = SupervisorState()
    assert not machine.ready
    machine.want(["shard-0", "gateway-0"])
    machine.answered("shard-0")
    assert not machine.ready
    machine.answered("gateway-0")
    assert machine.ready


def test_an_actor_is_replaced_after_silence_in_a_row() -> None:
    machine = SupervisorState()
    machine.want(["shard-0"])
    times = [CHECK_MS * n for n in range(FAILURES)]
    for _ in range(3):
        assert [machine.silent("shard-0", now_ms) for now_ms in times[:-1]] == [[]] * (FAILURES - 1)
        machine.answered("shard-0")
    assert [machine.silent("shard-0", now_ms) for now_ms in times] == [[], [], [Replace("shard-0")]]
    assert machine.silent("shard-0", times[-1] + SILENT_MS) == []
    assert machine.silent("stranger", 0.0) == []


def test_however_often_an_actor_is_checked_it_has_been_silent_for_a_while_before_it_is_replaced() -> None:
    machine = SupervisorState()
    machine.want(["shard-0", "shard-1"])
    found = [now_ms for now_ms in range(0, 20_000, 100) if machine.silent("shard-0", float(now_ms))]
    assert found == [SILENT_MS, SILENT_MS * 2 + 100], (
        "it is given as long again, also where others have not answered yet"
    )


@pytest.mark.parametrize(
    ("current", "where", "alive", "count", "expected"),
    [
        ([], {}, {"a"}, 1, ["gateway-0"]),
        (["gateway-0"], {"gateway-0": "a"}, {"a", "b"}, 2, ["gateway-0", "gateway-1"]),
        (["gateway-0", "gateway-1"], {"gateway-0": "a", "gateway-1": "b"}, {"b"}, 1, ["gateway-1"]),
        (["gateway-1"], {"gateway-1": "b"}, {"b", "c"}, 2, ["gateway-0", "gateway-1"]),
        (["gateway-0", "gateway-1"], {"gateway-0": "a", "gateway-1": "b"}, {"a", "b"}, 1, ["gateway-0"]),
        (["gateway-0", "gateway-1"], {"gateway-0": "a", "gateway-1": "b"}, {"b", "c"}, 2, ["gateway-0", "gateway-1"]),
        (["gateway-2", "gateway-10"], {}, set(), 2, ["gateway-2", "gateway-10"]),
        (["gateway-0"], {}, set(), 0, []),
    ],
)
def test_gateways_follow_the_places_that_nodes_offer(current, where, alive, count, expected):
    assert match_gateways(current, where, alive, count) == expected


def test_of_gateways_whose_node_is_there_those_with_the_fewest_sessions_go():
    where = {"gateway-0": "a", "gateway-1": "b", "gateway-2": "gone", "gateway-3": "a"}
    sessions = {"gateway-0": 4, "gateway-1": 7, "gateway-2": 9, "gateway-3": 4}
    left = [match_gateways(list(where), where, {"a", "b"}, count, sessions) for count in (3, 2, 1)]
    assert left == [["gateway-0", "gateway-1", "gateway-3"], ["gateway-0", "gateway-1"], ["gateway-1"]]
