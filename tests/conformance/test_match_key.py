"""Prefixes match as in query-core, by the plain function and by the prepared matcher."""

from typing import Any

import pytest

from cluster.core.query_key import KeyMatcher, canonical, exact_match, parse, partial_match
from tests.conformance.vectors import cases, key

CASES = cases("match_key")


@pytest.mark.parametrize("case", CASES)
def test_match(case: dict[str, Any]) -> None:
    match = exact_match if case["exact"] else partial_match
    assert match(key(case["query_key"]), key(case["filter_key"])) is case["match"]


@pytest.mark.parametrize("case", [case for case in CASES if not case.values[0]["exact"]])
def test_the_matcher_agrees(case: dict[str, Any]) -> None:
    entry = canonical(key(case["query_key"]))
    matcher = KeyMatcher(key(case["filter_key"]))
    assert matcher.matches(entry, parse(entry)) is case["match"]
    assert matcher.matches(entry) is case["match"]
