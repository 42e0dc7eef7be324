"""A filter matches what meets every condition that it gives."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.filters import Filter
from cluster.core.query_key import CanonicalKey, canonical, partial_match

VALUES = st.recursive(
    st.sampled_from(["a", "b", 1, 2, True, None]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)
KEYS = st.lists(VALUES, max_size=3)
NOW_MS = 1_000.0


@dataclass
class Thing:
    """What a filter looks at."""

    parsed: list[Any]
    is_active: bool = False
    fetch_status: str = "idle"
    stale_from: float = 0.0
    key: CanonicalKey = field(init=False)

    def __post_init__(self) -> None:
        self.key = canonical(self.parsed)

    def is_stale(self, now_ms: float) -> bool:
        return self.stale_from <= now_ms


THINGS = st.builds(
    Thing,
    KEYS,
    st.booleans(),
    st.sampled_from(["idle", "fetching", "paused"]),
    st.sampled_from([0.0, NOW_MS, NOW_MS + 1]),
)


@st.composite
def filters(draw: Any, things: list[Thing]) -> Filter:
    keys = KEYS | st.sampled_from([thing.parsed for thing in things])
    prefixes = keys.flatmap(lambda key: st.integers(0, len(key)).map(lambda length: key[:length]))
    return Filter(
        draw(st.none() | keys | prefixes),
        draw(st.booleans()),
        draw(st.sampled_from(["all", "active", "inactive"])),
        draw(st.none() | st.booleans()),
        draw(st.none() | st.sampled_from(["idle", "fetching", "paused"])),
        draw(st.none() | st.just(lambda thing: len(thing.parsed) > 1)),
    )


def meets(given_filter: Filter, thing: Thing) -> bool:
    """Every condition, one after the other, as query-core's `matchQuery` has them."""
    key = given_filter.key
    conditions = [
        key is None or (thing.key == canonical(key) if given_filter.exact else partial_match(thing.parsed, key)),
        given_filter.type == "all" or thing.is_active == (given_filter.type == "active"),
        given_filter.stale is None or thing.is_stale(NOW_MS) == given_filter.stale,
        given_filter.fetch_status is None or thing.fetch_status == given_filter.fetch_status,
        given_filter.predicate is None or given_filter.predicate(thing),
    ]
    return all(conditions)


@given(st.data())
def test_every_combination_of_conditions(data: Any) -> None:
    things = data.draw(st.lists(THINGS, min_size=1, max_size=6))
    wanted = data.draw(filters(things))
    compiled = wanted.compiled()
    assert [compiled.matches(thing, NOW_MS) for thing in things] == [meets(wanted, thing) for thing in things]


def test_without_conditions_everything_matches() -> None:
    compiled = Filter().compiled()
    assert all(compiled.matches(Thing(key), NOW_MS) for key in ([], ["a"], [None]))
    assert (compiled.exact, compiled.matcher) == (None, None)


@pytest.mark.parametrize(
    ("given_filter", "matching"),
    [
        (Filter(["a"]), [["a"], ["a", 1], ["a", {"x": 1, "y": 2}]]),
        (Filter(["a"], exact=True), [["a"]]),
        (Filter(["a", {"x": 1}]), [["a", {"x": 1, "y": 2}]]),
        (Filter(["a", {"y": 2, "x": 1}], exact=True), [["a", {"x": 1, "y": 2}]]),
        (Filter(["a", {"x": 1}], exact=True), []),
        (Filter([]), [["a"], ["a", 1], ["a", {"x": 1, "y": 2}], ["b"]]),
        (Filter([], exact=True), []),
        (Filter(exact=True), [["a"], ["a", 1], ["a", {"x": 1, "y": 2}], ["b"]]),
        (Filter(predicate=lambda thing: thing.parsed[0] == "b"), [["b"]]),
    ],
)
def test_keys(given_filter: Filter, matching: list[Any]) -> None:
    compiled = given_filter.compiled()
    things = [Thing(key) for key in (["a"], ["a", 1], ["a", {"x": 1, "y": 2}], ["b"])]
    assert [thing.parsed for thing in things if compiled.matches(thing, NOW_MS)] == matching
