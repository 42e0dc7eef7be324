"""Branches of keys against what parsing every key finds."""

import json
from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.core.key_tree import Branch, Branches
from cluster.core.query_key import canonical

KEYS = [
    canonical(key)
    for key in (
        ["a"],
        ["a", 1],
        ["a", 1, "x"],
        ["a", {"p": [1, "]"]}, 2],
        ['b,"]'],
        ["a", '\\"'],
        ["a", [1]],
        [True],
        ["ab", "c"],
        [None],
    )
]


def branches(keys: list[str], prefix: str, after: str, limit: int) -> tuple[list[Branch], bool]:
    made = Branches(prefix, after, limit)
    for key in keys:
        made.add(key)
    return made.listed()


def test_the_elements_that_follow_with_their_counts() -> None:
    assert branches(KEYS, "[]", "", 10) == (
        [('"a"', 6, True), ('"ab"', 1, False), ('"b,\\"]"', 1, True), ("null", 1, True), ("true", 1, True)],
        False,
    )
    assert branches(KEYS, '["a"]', "", 10) == (
        [('"\\\\\\""', 1, True), ("1", 2, True), ("[1]", 1, True), ('{"p":[1,"]"]}', 1, False)],
        False,
    )
    assert branches(KEYS, '["a",1]', "", 10) == ([('"x"', 1, True)], False)


def test_pages() -> None:
    first, more = branches(KEYS, "[]", "", 2)
    assert ([each[0] for each in first], more) == (['"a"', '"ab"'], True)
    rest, more = branches(KEYS, "[]", first[-1][0], 9)
    assert ([each[0] for each in rest], more) == (['"b,\\"]"', "null", "true"], False)


ELEMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=3,
)


@given(st.lists(st.lists(ELEMENTS, max_size=3), max_size=12))
def test_any_key_is_under_its_own_elements(keys: list[list[Any]]) -> None:
    texts = {canonical(key) for key in keys}
    found = branches(texts, "[]", "", 100)[0]
    wanted = Counter(canonical([json.loads(text)[0]])[1:-1] for text in texts if text != "[]")
    assert {element: count for element, count, _ in found} == wanted
    assert {f"[{element}]" for element, _, is_entry in found if is_entry} == {
        text for text in texts if len(json.loads(text)) == 1
    }
