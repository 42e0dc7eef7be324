"""Canonical keys are query-core's, to the letter."""

from collections import defaultdict
from typing import Any

import pytest

from cluster.core.query_key import canonical, parse
from tests.conformance.vectors import SKIPPED, cases, key

CASES = cases("hash_key")


@pytest.mark.parametrize("case", CASES)
def test_the_canonical_form_is_the_hash(case: dict[str, Any]) -> None:
    assert canonical(key(case["key"])) == case["hash"]


@pytest.mark.parametrize("case", CASES)
def test_a_canonical_key_is_its_own_canonical_form(case: dict[str, Any]) -> None:
    if "surrogate" in case["tags"]:
        pytest.skip("surrogate: a lone surrogate is no Unicode text, the JSON decoder refuses it")
    assert canonical(parse(case["hash"])) == case["hash"]


def test_keys_are_the_same_entry_exactly_within_a_class() -> None:
    hashes: dict[int, set[str]] = defaultdict(set)
    for parameter in CASES:
        (case,) = parameter.values
        if not SKIPPED.keys() & set(case["tags"]):
            hashes[case["class"]].add(canonical(key(case["key"])))
    assert len(hashes) > 200
    assert all(len(same) == 1 for same in hashes.values())
    assert len(set[str]().union(*hashes.values())) == len(hashes)
