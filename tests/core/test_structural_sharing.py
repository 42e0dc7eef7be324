"""What a refetch left as it was stays the same object, and what it changed is said as a patch."""

from copy import deepcopy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core import json_patch
from cluster.core.entry import MAX_DEPTH
from cluster.core.operation import json_equal
from cluster.core.structural_sharing import MAX_SHARED_DEPTH, difference, share
from tests.core.counted_text import CountedText

NAMES = st.sampled_from(["a", "b", "c", "", "a/b", "m~n", 'q"'])
SCALARS = st.sampled_from([None, True, False, 0, 1, 1.0, 1.5, -1, 2**53 + 1, "", "1", "a", "ü"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)


@st.composite
def versions(draw: Any) -> tuple[Any, Any]:
    """Two values of which the second is another, or the first with something put elsewhere."""
    old = draw(VALUES)
    if draw(st.booleans()):
        return old, draw(VALUES)
    new = deepcopy(old)
    for _ in range(draw(st.integers(0, 3))):
        new = draw(edited(new))
    return old, new


@st.composite
def edited(draw: Any, value: Any) -> Any:
    if isinstance(value, dict) and value and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(value)))
        return {**value, name: draw(edited(value[name]))}
    if isinstance(value, list) and value and draw(st.booleans()):
        position = draw(st.integers(0, len(value) - 1))
        match draw(st.sampled_from(["edit", "remove", "insert"])):
            case "edit":
                return [*value[:position], draw(edited(value[position])), *value[position + 1 :]]
            case "remove":
                return value[:position] + value[position + 1 :]
            case _:
                return [*value[:position], draw(VALUES), *value[position:]]
    return draw(VALUES)


def parts(value: Any, at: str = "") -> dict[str, Any]:
    """Every container in a value, by where it stands."""
    found: dict[str, Any] = {}
    if isinstance(value, list | dict):
        found[at] = value
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            found.update(parts(item, f"{at}/{name}"))
    return found


@given(versions())
def test_what_comes_of_it_is_what_is_new(pair: tuple[Any, Any]) -> None:
    old, new = pair
    before_old, before_new = deepcopy(old), deepcopy(new)
    merged = share(old, new)
    assert json_equal(merged, before_new)
    assert json_equal(old, before_old), "the old value was written to"
    assert json_equal(new, before_new), "the new value was written to"
    assert [type(part) for part in parts(new).values()] == [type(part) for part in parts(before_new).values()]


@given(VALUES)
def test_a_copy_is_the_original(value: Any) -> None:
    assert share(value, deepcopy(value)) is value
    assert share(value, value) is value


@given(versions())
def test_every_part_that_is_equal_is_kept_and_no_other(pair: tuple[Any, Any]) -> None:
    old, new = pair
    held, merged = parts(old), parts(share(old, new))
    for at, part in merged.items():
        path_matches = all(at[:end] in held for end in range(len(at)) if end == 0 or at[end] == "/")
        same_kinds = all(
            type(held[at[:end]]) is type(merged[at[:end]])
            for end in [*(end for end in range(len(at)) if end == 0 or at[end] == "/"), len(at)]
            if at[:end] in held and at[:end] in merged
        )
        if at in held and path_matches and same_kinds:
            assert (part is held[at]) == json_equal(part, held[at])


@given(versions())
def test_the_difference_leads_from_the_old_value_to_the_new(pair: tuple[Any, Any]) -> None:
    old, new = pair
    merged = share(old, new)
    steps = difference(old, merged)
    if not isinstance(old, list | dict) or type(old) is not type(merged):
        assert steps is None
        return
    assert steps is not None
    patched = json_patch.apply(deepcopy(old), [orjson.loads(step) for step in steps])
    assert json_equal(patched, new)
    if merged is old:
        assert steps == []


@given(VALUES, st.data())
def test_a_part_that_moved_is_not_taken_for_the_one_that_stood_there(value: Any, data: Any) -> None:
    items = data.draw(st.lists(st.dictionaries(NAMES, VALUES, max_size=2), min_size=1, max_size=4))
    merged = share(items, [{"new": value}, *deepcopy(items)])
    assert json_equal(merged, [{"new": value}, *items])
    assert difference(items, merged) is not None


@pytest.mark.parametrize(
    ("old", "new", "steps"),
    [
        ({"a": 1, "b": {"c": [1, 2]}}, {"b": {"c": [1, 3]}, "a": 1}, ['{"op":"replace","path":"/b/c/1","value":3}']),
        ({"a": 1}, {"b": 1}, ['{"op":"remove","path":"/a"}', '{"op":"add","path":"/b","value":1}']),
        ([1, 2, 3], [2, 3], ['{"op":"remove","path":"/0"}']),
        ([1, 2, 3], [0, 1, 2, 3], ['{"op":"add","path":"/0","value":0}']),
        ([1, 2, 3, 4], [1, 4], ['{"op":"remove","path":"/2"}', '{"op":"remove","path":"/1"}']),
        ([1, 9], [1, 2, 3, 9], ['{"op":"add","path":"/1","value":2}', '{"op":"add","path":"/2","value":3}']),
        ({"x/y": {"~": 1}}, {"x/y": {"~": 2}}, ['{"op":"replace","path":"/x~1y/~0","value":2}']),
        ({"a": []}, {"a": {}}, ['{"op":"replace","path":"/a","value":{}}']),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": 1}, {"a": True}, ['{"op":"replace","path":"/a","value":true}']),
        ({"a": None}, {}, ['{"op":"remove","path":"/a"}']),
        ({"a": 1}, [1], None),
        (1, 2, None),
    ],
)
def test_differences(old: Any, new: Any, steps: list[str] | None) -> None:
    said = difference(old, share(old, new))
    assert (None if said is None else [step.decode() for step in said]) == steps


def nested(inner: Any, levels: int) -> Any:
    for level in range(levels):
        inner = [inner] if level % 2 else {"a": inner}
    return inner


def test_what_is_as_deep_as_a_value_may_be_is_compared() -> None:
    old, new = nested([1, 2], MAX_DEPTH - 1), nested([1, 3], MAX_DEPTH - 1)
    merged = share(old, new)
    assert json_equal(merged, new)
    steps = difference(old, merged)
    assert steps is not None
    (step,) = steps
    assert json_patch.apply(old, [orjson.loads(step)]) == new
    assert share(old, nested([1, 3], MAX_DEPTH - 1)) is old


def test_what_is_too_deep_to_compare_counts_as_changed() -> None:
    shallow = nested([1], MAX_SHARED_DEPTH)
    assert share(shallow, nested([1], MAX_SHARED_DEPTH)) is shallow
    deep = nested([1], MAX_SHARED_DEPTH + 1)
    assert share(deep, nested([1], MAX_SHARED_DEPTH + 1)) is not deep


def test_what_is_deep_is_looked_into_once() -> None:
    def deep(last: int) -> Any:
        value: Any = [*(CountedText(n) for n in range(100)), last]
        for _ in range(30):
            value = [value]
        return value

    old, new = deep(1), deep(2)
    shared = share(old, new)
    CountedText.compared = 0
    path = "/0" * 30 + "/100"
    assert difference(old, shared) == [b'{"op":"replace","path":"%b","value":2}' % path.encode()]
    assert CountedText.compared == 0
    assert difference(old, new) is not None
    assert CountedText.compared <= 2 * 100
