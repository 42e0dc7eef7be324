"""What two sides made of the same value, in one; or where they disagree."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.core.three_way_merge import _woven, three_way_merge
from tests.core.counted_text import CountedText

A, B, C = {"id": 1, "t": "a"}, {"id": 2, "t": "b"}, {"id": 3, "t": "c"}


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "merged"),
    [
        pytest.param({"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 1, "b": 3}, {"a": 2, "b": 3}, id="other members"),
        pytest.param({"a": 1}, {"a": 1, "b": 2}, {"a": 1, "c": 3}, {"a": 1, "c": 3, "b": 2}, id="members added"),
        pytest.param({"a": 1, "b": 1}, {"a": 1}, {"a": 2, "b": 1}, {"a": 2}, id="a member removed"),
        pytest.param({"a": 1}, {}, {}, {}, id="removed by both"),
        pytest.param({"a": {"b": 1, "c": 1}}, {"a": {"b": 2, "c": 1}}, {"a": {"b": 1}}, {"a": {"b": 2}}, id="deep"),
        pytest.param({"l": [1]}, {"l": [1, 2]}, {"l": [1], "x": 1}, {"l": [1, 2], "x": 1}, id="an array as a whole"),
        pytest.param(
            [A, B], [A, {**B, "t": "m"}], [{**A, "t": "t"}, B], [{**A, "t": "t"}, {**B, "t": "m"}], id="items"
        ),
        pytest.param([A], [A, B], [A, C], [A, C, B], id="both append"),
        pytest.param([A], [B, A], [C, A], [C, B, A], id="both prepend"),
        pytest.param([], [A], [B], [B, A], id="both begin"),
        pytest.param([A, B], [A], [A, B, C], [A, C], id="an item removed"),
        pytest.param(
            [A, B, C], [C, B, A], [A, B, {**C, "t": "t"}], [{**C, "t": "t"}, B, A], id="mine in another order"
        ),
        pytest.param([A, B], [A, C, B], [B, A], [B, A, C], id="theirs in another order, mine added"),
        pytest.param([A, B], [A, B, C], [B], [B, C], id="what it stood behind is gone"),
        pytest.param({"a": 1}, {"a": 1.0}, {"a": 2}, {"a": 2}, id="the same number"),
        pytest.param(
            [{"id": True}],
            [{"id": True, "x": 1}],
            [{"id": True}, {"id": 1}],
            [{"id": True, "x": 1}, {"id": 1}],
            id="ids",
        ),
    ],
)
def test_what_touches_other_places_is_merged(base: Any, mine: Any, theirs: Any, merged: Any) -> None:
    assert three_way_merge(base, mine, theirs) == (merged, [])


@pytest.mark.parametrize(
    ("base", "mine", "theirs", "conflicts"),
    [
        pytest.param(1, 2, 3, [""], id="a scalar"),
        pytest.param({"a": 1, "b": 1}, {"a": 2, "b": 2}, {"a": 3, "b": 3}, ["/a", "/b"], id="all of them are told"),
        pytest.param({"a": {"x/y": 1}}, {"a": {"x/y": 2}}, {"a": {"x/y": 3}}, ["/a/x~1y"], id="escaped"),
        pytest.param({"a": 1}, {}, {"a": 2}, ["/a"], id="removed and changed"),
        pytest.param({"a": 1}, {"a": 2}, {}, ["/a"], id="changed and removed"),
        pytest.param({}, {"a": {"x": 1}}, {"a": {"y": 1}}, ["/a"], id="added twice"),
        pytest.param({"a": 1}, {"a": 1, "b": True}, {"a": 1, "b": 1}, ["/b"], id="true is not 1"),
        pytest.param({"l": [1]}, {"l": [1, 2]}, {"l": [1, 3]}, ["/l"], id="arrays without ids"),
        pytest.param([A, A], [A], [A, A, B], [""], id="an id twice"),
        pytest.param([A], [{**A, "t": "m"}], [C, {**A, "t": "t"}], ["/1/t"], id="an item, where it is now"),
        pytest.param({"l": [A, B]}, {"l": [{**A, "t": 1}, {**B, "t": 1}]}, {"l": []}, ["/l"], id="items that are gone"),
        pytest.param([A, B, C], [B, A, C], [A, C, B], [""], id="two other orders"),
        pytest.param({"a": [1]}, {"a": {}}, {"a": "x"}, ["/a"], id="other kinds"),
    ],
)
def test_what_both_changed_is_a_conflict(base: Any, mine: Any, theirs: Any, conflicts: list[str]) -> None:
    assert three_way_merge(base, mine, theirs) == (None, conflicts)


def test_what_is_deep_is_looked_into_once() -> None:
    CountedText.compared = 0

    def deep(last: int) -> Any:
        value: Any = [*(CountedText(n) for n in range(100)), last]
        for _ in range(30):
            value = {"a": value}
        return value

    assert three_way_merge(deep(1), deep(2), deep(3)) == (None, ["/a" * 30])
    assert CountedText.compared == 3 * 100


def test_what_one_side_added_waits_in_one_list() -> None:
    lists: dict[int, list[Any]] = {}

    class Watched(dict[Any, Any]):
        def __iter__(self) -> Iterator[Any]:
            for name in dict.__iter__(self):
                waiting = sys._getframe(1).f_locals["waiting"]
                lists[id(waiting)] = waiting
                yield name

    first, second = Watched.fromkeys(range(-500, 0)), dict.fromkeys(range(500))
    assert _woven(first, second, {}) == [*range(-500, 0), *range(500)]
    assert sum(map(len, lists.values())) == 500
