"""Each deliberate bug is found by schedules: by the seed pinned to it, which has no complaint about the code as it is."""

import pytest

from tests.lasting import lasting
from tests.simulation.mutants import MUTANTS, Mutant, find, finds

pytestmark = pytest.mark.soak
SEEDS = lasting(60, 400)
"""Tried where the pinned one finds it no longer."""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_deliberate_bug_is_found(mutant: Mutant) -> None:
    if not finds(mutant, mutant.seed):
        seed = find(mutant, range(SEEDS))
        assert seed is not None, f"{mutant.name}: none of {SEEDS} schedules finds it"


@pytest.mark.parametrize(
    ("make", "seed"), sorted({(each.make, each.seed) for each in MUTANTS}, key=lambda each: (each[0].__name__, each[1]))
)
def test_without_a_bug_the_same_seeds_find_nothing(make: type, seed: int) -> None:
    make(seed).run()


def test_there_are_more_than_ten() -> None:
    assert len({each.name for each in MUTANTS}) == len(MUTANTS) > 10
