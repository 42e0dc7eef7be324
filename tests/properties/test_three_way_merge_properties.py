"""A merge keeps what either side did, or says that it cannot."""

from copy import deepcopy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.operation import json_equal
from cluster.core.three_way_merge import three_way_merge

ITEMS = st.lists(
    st.fixed_dictionaries({"id": st.integers(0, 5)}, optional={"a": st.integers(0, 2), "b": st.integers(0, 2)}),
    max_size=5,
    unique_by=lambda item: item["id"],
)
SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["", "x"])
VALUES = st.recursive(
    SCALARS | ITEMS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "id", "c/d"]), inner, max_size=4)
    ),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), VALUES, max_size=4)
ABSENT = "absent"


@settings(deadline=None)
@given(VALUES, VALUES)
def test_one_side_alone_has_its_way(base: Any, changed: Any) -> None:
    assert json_equal(three_way_merge(base, base, changed)[0], changed)
    assert json_equal(three_way_merge(base, changed, base)[0], changed)
    assert json_equal(three_way_merge(base, changed, changed)[0], changed)
    for sides in ((base, base, changed), (base, changed, base), (base, changed, changed)):
        assert three_way_merge(*sides)[1] == []


@settings(deadline=None)
@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_nothing_is_lost(base: Any, mine: Any, theirs: Any) -> None:
    """Of every member the merge has what the side that changed it made of it; where both did, differently, it is looked into."""
    merged, conflicts = three_way_merge(base, mine, theirs)
    for name in base.keys() | mine.keys() | theirs.keys():
        was, own, other = (side.get(name, ABSENT) for side in (base, mine, theirs))
        told = any(each == f"/{name}" or each.startswith(f"/{name}/") for each in conflicts)
        is_mine, is_theirs = not json_equal(was, own), not json_equal(was, other)
        if is_mine and is_theirs and not json_equal(own, other):
            inner = None if ABSENT in (was, own, other) else three_way_merge(was, own, other)
            assert told == (inner is None or bool(inner[1]))
            if not conflicts:
                assert inner is not None
                assert json_equal(merged.get(name, ABSENT), inner[0])
        else:
            assert not told
            if not conflicts:
                assert json_equal(merged.get(name, ABSENT), own if is_mine else other)


@settings(deadline=None)
@given(ITEMS, ITEMS, ITEMS)
def test_no_item_is_lost_nor_made_up(base: Any, mine: Any, theirs: Any) -> None:
    merged, conflicts = three_way_merge(base, mine, theirs)
    if conflicts:
        return
    sides = [{item["id"]: item for item in side} for side in (base, mine, theirs)]
    found = {item["id"]: item for item in merged}
    assert len(found) == len(merged)
    for name in set().union(*sides):
        was, own, other = (side.get(name) for side in sides)
        if own is None or other is None:
            kept = was is None
            assert (name in found) == kept
        elif was is None:
            assert found[name] == own == other
        else:
            assert (found[name], []) == three_way_merge(was, own, other)


@settings(deadline=None)
@given(VALUES, VALUES, VALUES)
def test_both_sides_see_the_same_conflicts(base: Any, mine: Any, theirs: Any) -> None:
    before = deepcopy((base, mine, theirs))
    assert bool(three_way_merge(base, mine, theirs)[1]) == bool(three_way_merge(base, theirs, mine)[1])
    assert (base, mine, theirs) == before


@settings(deadline=None)
@given(ITEMS, st.data())
def test_disjoint_edits_both_survive(base: Any, data: Any) -> None:
    """One side edits items, removes some and adds one; the other adds one and puts all in another order."""
    removed = data.draw(st.sets(st.sampled_from([item["id"] for item in base]), max_size=2)) if base else set()
    mine = [{**item, "a": 7} for item in base if item["id"] not in removed] + [{"id": 10}]
    theirs = data.draw(st.permutations([*base, {"id": 20}]))
    merged, conflicts = three_way_merge(base, mine, theirs)
    assert conflicts == []
    kept = {item["id"]: item for item in base if item["id"] not in removed}
    assert {item["id"]: item for item in merged} == {
        **{name: {**item, "a": 7} for name, item in kept.items()},
        10: {"id": 10},
        20: {"id": 20},
    }
    order = [item["id"] for item in merged if item["id"] != 10]
    assert order == [item["id"] for item in theirs if item["id"] not in removed]
