"""The supervisor's reconciling."""

from cluster.core.supervisor_state import FAILURES, Create, Remove, Replace, SupervisorState


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
    for _ in range(3):
        for _ in range(FAILURES - 1):
            assert machine.silent("shard-0") == []
        machine.answered("shard-0")
    assert [machine.silent("shard-0") for _ in range(FAILURES)][-1] == [Replace("shard-0")]
    assert machine.silent("shard-0") == []
    assert machine.silent("stranger") == []
