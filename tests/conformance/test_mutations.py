"""What recordings of query-core cannot show of mutations, on the cases that are skipped for it."""

import pytest

from tests.conformance.mutation_family import mutated
from tests.conformance.rebasing import LOST, RESENT
from tests.conformance.vectors import cases

CASES = {case["id"]: case for case in cases("mutations")}
LOSING = [
    "u5",
    "u7",
    "u21",
    "u26",
    "u27",
    "u29",
    "u30",
    "u41",
    "u45",
    "u50",
    "u53",
    "u54",
    "u61",
    "u65",
    "u71",
    "u78",
    "u79",
    "u83",
    "u85",
    "u91",
    "u98",
    "u99",
    "u100",
    "u101",
    "u114",
    "u115",
    "u117",
]
"""Those in which a mutation fails, and what came since it began would be lost by putting a snapshot back."""
CUT_OFF = ("u17", "u40", "u76", "u100")
"""Those in which a restart comes while a mutation is under way, which query-core then forgets."""


@pytest.mark.parametrize("case", LOSING)
def test_a_failure_leaves_what_came_meanwhile(case: str) -> None:
    world, _ = mutated(CASES[case])
    assert world.failures
    for failure in world.failures:
        assert failure.base == failure.certain, failure
        assert failure.view != failure.snapshot, failure


def test_every_case_that_is_skipped_for_a_lost_write_is_among_them() -> None:
    losing = {name for name, case in CASES.items() if LOST in mutated(case)[1]}
    assert losing <= set(LOSING)
    assert len(losing) > 20


def test_a_snapshot_would_lose_what_succeeded_meanwhile() -> None:
    world, _ = mutated(CASES["u5"])
    (failure,) = world.failures
    recorded = CASES["u5"]["steps"][-1]["after"]["queries"][0]["data"]
    assert failure.snapshot == recorded == []
    assert failure.base == failure.view == ["b"]


@pytest.mark.parametrize("case", CUT_OFF)
def test_what_was_under_way_at_a_restart_is_sent_again_and_settled(case: str) -> None:
    world, _ = mutated(CASES[case])
    cut_off = [record for record in world.records() if RESENT in world.marks[record.id]]
    assert cut_off
    for record in cut_off:
        assert record.attempts > 1
        assert record.status.is_settled
