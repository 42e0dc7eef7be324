"""Each deliberate bug is found by the schedule of the seed pinned to it, which has no complaint about the code as it is."""

import re
from pathlib import Path

import pytest

from tests.simulation.mutants import MUTANTS, Mutant, finds


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_deliberate_bug_is_found(mutant: Mutant) -> None:
    is_found, what = finds(mutant, mutant.seed)
    assert is_found, f"{what or 'nothing'}\nfor another seed: python -m tests.simulation.mutants '{mutant.name}'"


@pytest.mark.parametrize(
    ("make", "seed"), sorted({(each.make, each.seed) for each in MUTANTS}, key=lambda each: (each[0].__name__, each[1]))
)
def test_without_a_bug_the_same_seeds_find_nothing(make: type, seed: int) -> None:
    make(seed).run()


def test_there_are_more_than_ten() -> None:
    assert len({each.name for each in MUTANTS}) == len(MUTANTS) > 10


def test_the_documentation_lists_them_all() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    _, _, after = text.partition("**Deliberate bugs.**")
    rows = re.findall(r"^\| (.+) \| (.+) \|$", after.partition("\n## ")[0], re.MULTILINE)
    assert rows[1:] == [(each.name, each.breaks) for each in MUTANTS]
