"""Interests find exactly the watchers that trying all of them would find."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.core.query_key import KeyMatcher, canonical, parse, partial_match
from cluster.core.subscription import Interests

VALUES = st.recursive(
    st.sampled_from(["a", "b", 1, 0, True, False, None]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)
KEYS = st.lists(VALUES, max_size=3)


def found(interests: Interests[Any], key: list[Any]) -> list[Any]:
    text = canonical(key)
    return list(interests.matching(text, parse(text)))


@given(exact=st.lists(KEYS, max_size=4), prefixes=st.lists(KEYS, max_size=8), gone=st.sets(st.integers(0, 7)), key=KEYS)
def test_interests_are_the_brute_force(
    exact: list[list[Any]], prefixes: list[list[Any]], gone: set[int], key: list[Any]
) -> None:
    interests: Interests[Any] = Interests()
    for item in exact:
        interests.add_exact(canonical(item), canonical(item))
    for number, prefix in enumerate(prefixes):
        interests.add_prefix(KeyMatcher(prefix), number)
    for number, prefix in enumerate(prefixes):
        if number in gone:
            interests.discard_prefix(KeyMatcher(prefix), number)
    expected: list[Any] = [text for text in {canonical(item) for item in exact} if text == canonical(key)]
    expected += [n for n, prefix in enumerate(prefixes) if n not in gone and partial_match(key, prefix)]
    assert sorted(found(interests, key), key=str) == sorted(expected, key=str)


@given(st.lists(KEYS, max_size=6))
def test_what_is_discarded_leaves_nothing_behind(keys: list[list[Any]]) -> None:
    interests: Interests[int] = Interests()
    for number, key in enumerate(keys):
        interests.add_exact(canonical(key), number)
        interests.add_prefix(KeyMatcher(key), number)
    for number, key in enumerate(keys):
        interests.discard_exact(canonical(key))
        interests.discard_prefix(KeyMatcher(key), number)
    assert not interests._exact
    assert not interests._prefixes
    assert not interests._lengths


def test_several_watchers_share_a_prefix() -> None:
    interests: Interests[str] = Interests()
    interests.add_prefix(KeyMatcher(["a"]), "one")
    interests.add_prefix(KeyMatcher(["a"]), "two")
    interests.add_prefix(KeyMatcher(["a", {"x": 1}]), "partly")
    assert found(interests, ["a", {"x": 1, "y": 2}]) == ["one", "two", "partly"]
    interests.discard_prefix(KeyMatcher(["a"]), "one")
    assert found(interests, ["a", 7]) == ["two"]


def test_ending_what_was_never_begun_is_harmless() -> None:
    interests: Interests[str] = Interests()
    interests.add_prefix(KeyMatcher(["a"]), "kept")
    interests.discard_exact(canonical(["a"]))
    interests.discard_prefix(KeyMatcher(["b"]), "other")
    interests.discard_prefix(KeyMatcher(["a"]), "other")
    assert found(interests, ["a"]) == ["kept"]


def test_true_and_one_are_not_confused() -> None:
    interests: Interests[str] = Interests()
    interests.add_prefix(KeyMatcher(["a", 1]), "number")
    interests.add_prefix(KeyMatcher(["a", True]), "truth")
    assert found(interests, ["a", 1, "x"]) == ["number"]
    assert found(interests, ["a", True]) == ["truth"]


def test_many_prefixes_that_begin_alike_are_not_tried_one_by_one() -> None:
    tried = 0

    class Counting(KeyMatcher):
        def matches(self, key: str, parsed: list[Any] | None = None) -> bool:
            nonlocal tried
            tried += 1
            return super().matches(key, parsed)

    interests: Interests[int] = Interests()
    for number in range(1000):
        interests.add_prefix(Counting(["projects", "detail", number]), number)
    assert found(interests, ["projects", "detail", 7, "tasks"]) == [7]
    assert tried == 1
