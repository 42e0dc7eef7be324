"""Which keys depend on an entity: those under a filled-in key, and those that contain an element."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core import template
from cluster.core.operation import json_equal
from cluster.core.query_key import canonical, parse, partial_match
from cluster.core.relation import Contains, Member, Relations
from cluster.core.template import MissingCapture

IDS = st.sampled_from([1, 2, "1", "x", True, None, 1.5, [1], {"a": 1}])
PLAIN = st.sampled_from(["users", "posts", "user:1", "user:x", 1, 2, "1", True, None])
WITH_HOLES = PLAIN | st.sampled_from(["{id}", "user:{id}"])
ELEMENTS = st.recursive(
    WITH_HOLES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=3,
)
VALUES = st.recursive(
    PLAIN | IDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=3,
)
MEMBERS = st.lists(ELEMENTS, max_size=3).map(lambda key: ("under", key)) | ELEMENTS.map(lambda of: ("contains", of))


def member(kind: str, of: Any) -> Member:
    parsed = template.parse(of)
    return Contains(parsed) if kind == "contains" else parsed


def filled(value: Any, identity: Any) -> Any:
    """Put the identity in, by hand; raises `MissingCapture` where it is to be part of a text and is none."""
    if value == "{id}":
        return identity
    if value == "user:{id}":
        return f"user:{template.as_text(identity)}"
    if isinstance(value, list):
        return [filled(item, identity) for item in value]
    if isinstance(value, dict):
        return {name: filled(item, identity) for name, item in value.items()}
    return value


def depends(key: list[Any], members: list[tuple[str, Any]], identity: Any) -> bool:
    for kind, of in members:
        try:
            wanted = filled(of, identity)
        except MissingCapture:
            continue
        if partial_match(key, wanted) if kind == "under" else any(json_equal(element, wanted) for element in key):
            return True
    return False


@st.composite
def keys(draw: Any, members: list[tuple[str, Any]], identity: Any) -> list[Any]:
    """Any key, or one made from a member so that it is likely to be related."""
    if members and draw(st.booleans()):
        kind, of = draw(st.sampled_from(members))
        try:
            wanted = filled(of, identity)
        except MissingCapture:
            wanted = []
        more = draw(st.lists(VALUES, max_size=2))
        return [*wanted, *more] if kind == "under" and isinstance(wanted, list) else [*more, wanted]
    return draw(st.lists(VALUES, max_size=3))


@given(st.lists(MEMBERS, max_size=4), IDS, st.data())
def test_related_is_what_any_member_says(members: list[tuple[str, Any]], identity: Any, data: Any) -> None:
    relations = Relations({"user": [member(*each) for each in members], "other": [member("under", ["posts"])]})
    related = relations.related("user", identity)
    for key in data.draw(st.lists(keys(members, identity), max_size=5)):
        canonical_key = canonical(key)
        expected = depends(parse(canonical_key), members, identity)
        assert related.matches(canonical_key) is expected
        heads = related.heads
        if expected and heads is not None:
            assert key
            assert key[0] in heads, "a related key is not looked at"


def relations() -> Relations:
    return Relations(
        {
            "user": [
                template.parse(["users", "{id}"]),
                template.parse(["posts", {"author": "{id}"}]),
                template.parse(["feed", "user:{id}"]),
            ],
            "tag": [template.parse(["tags"]), Contains(template.parse("tag:{id}"))],
            "all": [template.parse([])],
            "none": [],
        }
    )


@pytest.mark.parametrize(
    ("key", "is_related"),
    [
        (["users", 7], True),
        (["users", 7, "posts"], True),
        (["users", "7"], False),
        (["users"], False),
        (["posts", {"author": 7, "page": 2}], True),
        (["posts", {"author": 8}], False),
        (["posts"], False),
        (["feed", "user:7"], True),
        (["other", 7], False),
    ],
)
def test_keys_under_the_filled_in_ones(key: list[Any], is_related: bool) -> None:
    related = relations().related("user", 7)
    assert related.matches(canonical(key)) is is_related
    assert related.heads == ["users", "posts", "feed"]


@pytest.mark.parametrize(
    ("key", "is_related"),
    [(["tags", 1], True), (["any", 1, "tag:x"], True), (["tag:x"], True), (["any", ["tag:x"]], False), ([], False)],
)
def test_keys_that_contain_an_element_may_begin_with_anything(key: list[Any], is_related: bool) -> None:
    related = relations().related("tag", "x")
    assert related.matches(canonical(key)) is is_related
    assert related.heads is None


def test_elements_are_compared_as_json() -> None:
    related = Relations({"user": [Contains(template.parse("{id}"))]}).related("user", 1)
    keys = (["a", 1], ["a", 1.0], ["a", True], ["a", "1"], [[1]])
    assert [related.matches(canonical(key)) for key in keys] == [True, True, False, False, False]


def test_an_identity_that_is_no_text_leaves_out_what_it_would_be_part_of() -> None:
    related = relations().related("user", {"a": 1})
    assert related.heads == ["users", "posts"]
    assert related.matches(canonical(["users", {"a": 1}]))


def test_everything_may_be_related_and_nothing() -> None:
    everything, nothing = relations().related("all", 1), relations().related("none", 1)
    assert (everything.heads, everything.matches("[]"), everything.matches('["a"]')) == (None, True, True)
    assert (nothing.heads, nothing.matches("[]"), nothing.matches('["a"]')) == ([], False, False)


def test_which_types_there_are() -> None:
    known = relations()
    assert known.types == ["user", "tag", "all", "none"]
    assert "user" in known
    assert "order" not in known
    assert len(known.members("user")) == 3
    assert known.members("order") == ()
