"""Operations for every shard travel under names that no key has, and that say what they are about."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core import broadcast
from cluster.core.query_key import canonical, parse
from cluster.errors import RequestError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.lists(VALUES, max_size=4)


@given(st.sampled_from(["under", "entity", "relation", "confirm"]), KEYS)
def test_a_name_says_what_it_is_about(kind: Any, about: list[Any]) -> None:
    name = broadcast.name(kind, about)
    assert broadcast.is_broadcast(name)
    assert broadcast.read(name) == (kind, parse(canonical(about)))


@given(KEYS)
def test_a_key_is_no_such_name(key: list[Any]) -> None:
    assert not broadcast.is_broadcast(canonical(key))


@given(KEYS, KEYS)
def test_names_differ_where_what_they_are_about_does(one: list[Any], other: list[Any]) -> None:
    names = [
        broadcast.name(kind, about) for kind in ("under", "entity", "relation", "confirm") for about in (one, other)
    ]
    assert len(set(names)) == (4 if canonical(one) == canonical(other) else 8)


def test_how_they_look() -> None:
    assert broadcast.name("under", ["a", {"c": 1, "b": 2}]) == '#u["a",{"b":2,"c":1}]'
    assert broadcast.name("entity", ["user", 7]) == '#e["user",7]'
    assert broadcast.name("relation", ["user", "7"]) == '#r["user","7"]'
    assert broadcast.name("confirm", ["update_task"]) == '#c["update_task"]'
    assert broadcast.under(canonical(["a"])) == broadcast.name("under", ["a"])


@pytest.mark.parametrize("about", [["x" * 2_000], ["user", {1, 2}], [float("1e400")] * 300])
def test_what_cannot_be_a_key_has_no_name(about: list[Any]) -> None:
    with pytest.raises(RequestError):
        broadcast.name("entity", about)
