"""Canonical keys: bounded, unambiguous and always readable again. The recorded vectors are in `tests/conformance`."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.query_key import (
    MAX_DEPTH,
    MAX_KEY_BYTES,
    KeyMatcher,
    canonical,
    checked,
    exact_match,
    normalized,
    parse,
    partial_match,
)
from cluster.errors import ErrorCode, RequestError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
KEYS = st.lists(VALUES, max_size=4)
# Few distinct values, so that prefixes often match.
SMALL = st.recursive(
    st.sampled_from(["a", "b", "1", 1, 1.0, 0, True, False, None]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
SMALL_KEYS = st.lists(SMALL, max_size=4)


def nested(levels: int) -> list[Any]:
    key: list[Any] = []
    for _ in range(levels - 1):
        key = [key]
    return key


def doubles(value: Any) -> Any:
    """The value as JavaScript holds it: every number a double."""
    if isinstance(value, list):
        return [doubles(item) for item in value]
    if isinstance(value, dict):
        return {name: doubles(item) for name, item in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def code_of(call: Any) -> ErrorCode:
    with pytest.raises(RequestError) as caught:
        call()
    return caught.value.code


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (1.0, "1"),
        (-0.0, "0"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1e21, "1e+21"),
        (123456789012345680000.0, "123456789012345680000"),
        (1e-7, "1e-7"),
        (0.000001, "0.000001"),
        (1.5e-300, "1.5e-300"),
        (5e-324, "5e-324"),
        (2**53, "9007199254740992"),
        (2**60, "1152921504606847000"),
        (10**22, "1e+22"),
        (-(10**30), "-1e+30"),
        (math.nan, "null"),
        (-math.inf, "null"),
    ],
)
def test_numbers_are_written_as_ecmascript_writes_them(number: float, text: str) -> None:
    assert canonical([number]) == f"[{text}]"


def test_members_are_sorted_as_javascript_sorts_them() -> None:
    # U+FF61 sorts after U+1F600 by code unit (the latter is a surrogate pair), before it by code point.
    members = {"b": 1, "10": 1, "2": 1, "01": 1, "4294967295": 1, "\uff61": 1, "\U0001f600": 1, "a": 1}
    names = [pair.split('"')[1] for pair in canonical([members])[2:-2].split(",")]
    assert names == ["2", "10", "01", "4294967295", "a", "b", "\U0001f600", "\uff61"]


def test_texts_are_escaped_as_json_stringify_escapes_them() -> None:
    assert canonical(['"\\/\b\n\x01\x7f\u2028é']) == '["\\"\\\\/\\b\\n\\u0001\x7f\u2028é"]'
    assert canonical(["a\ud800b"]) == '["a\\ud800b"]'
    assert canonical([{"\udc00": 1}]) == '[{"\\udc00":1}]'


@given(KEYS)
def test_a_canonical_key_reads_back_to_itself(key: list[Any]) -> None:
    text = canonical(key)
    assert canonical(parse(text)) == text
    assert doubles(parse(text)) == doubles(key)
    assert normalized(text.encode()) == text


@given(KEYS)
def test_the_fast_way_writes_what_the_thorough_one_writes(key: list[Any]) -> None:
    # A wrapping array takes the thorough way.
    assert canonical([key]) == f"[{canonical(key)}]"


def test_the_order_of_members_does_not_make_another_key() -> None:
    assert exact_match([{"a": 1, "b": {"c": 2, "d": 3}}], [{"b": {"d": 3.0, "c": 2}, "a": 1}])
    assert not exact_match([1], ["1"])
    assert not exact_match([1], [True])
    assert not exact_match(["a"], ["a", "b"])


class TestBounds:
    def test_a_key_may_have_so_many_bytes_however_it_is_made(self) -> None:
        longest = ["x" * (MAX_KEY_BYTES - 4)]
        assert parse(canonical(longest)) == longest
        for make in (canonical, lambda key: parse(canonical(key, max_bytes=10**6)), lambda key: canonical([key])):
            assert code_of(lambda make=make: make(["x" * (MAX_KEY_BYTES - 3)])) is ErrorCode.TOO_LARGE

    def test_bytes_are_counted_not_characters(self) -> None:
        text = '["' + "ü" * (MAX_KEY_BYTES // 2) + '"]'
        assert len(text) < MAX_KEY_BYTES
        assert code_of(lambda: parse(text)) is ErrorCode.TOO_LARGE
        assert code_of(lambda: parse(text.encode())) is ErrorCode.TOO_LARGE
        assert code_of(lambda: canonical(["ü" * (MAX_KEY_BYTES // 2)])) is ErrorCode.TOO_LARGE

    def test_a_short_text_may_not_grow_into_a_long_key(self) -> None:
        text = "[" + ",".join(["1e20"] * 100) + "]"
        assert code_of(lambda: normalized(text)) is ErrorCode.TOO_LARGE

    def test_depth(self) -> None:
        assert canonical(nested(MAX_DEPTH)) == "[" * MAX_DEPTH + "]" * MAX_DEPTH
        assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH) == nested(MAX_DEPTH)
        assert code_of(lambda: canonical(nested(MAX_DEPTH + 1))) is ErrorCode.TOO_DEEP
        assert code_of(lambda: parse("[" * 33 + "]" * 33)) is ErrorCode.TOO_DEEP
        assert code_of(lambda: checked(nested(MAX_DEPTH + 1))) is ErrorCode.TOO_DEEP
        assert code_of(lambda: parse("[" * 512 + "]" * 512)) is ErrorCode.TOO_DEEP

    def test_limits_can_be_set(self) -> None:
        assert code_of(lambda: parse("[1,2]", max_bytes=4)) is ErrorCode.TOO_LARGE
        assert code_of(lambda: parse("[[1]]", max_depth=1)) is ErrorCode.TOO_DEEP
        assert parse("[[1]]", max_depth=2) == [[1]]

    def test_a_number_beyond_the_doubles_is_refused(self) -> None:
        # JavaScript would write null for all of them, and they would share an entry.
        assert code_of(lambda: normalized("[" + "9" * 400 + "]")) is ErrorCode.BAD_KEY
        assert code_of(lambda: normalized("[1e400]")) is ErrorCode.BAD_KEY


@pytest.mark.parametrize(
    "text",
    ["", "{}", '"a"', "null", "7", "[1", "[1,]", "[NaN]", "[1] 2", '["\\ud800"]', b"\xff", b'["\xff"]', "nope" * 40],
)
def test_what_is_no_key_is_refused_with_a_short_reason(text: str | bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse(text)
    assert caught.value.code is ErrorCode.BAD_KEY
    assert len(caught.value.message) < 250


def test_only_json_values_make_a_key() -> None:
    assert code_of(lambda: canonical([object()])) is ErrorCode.BAD_KEY
    assert code_of(lambda: canonical([{1, 2}])) is ErrorCode.BAD_KEY
    assert code_of(lambda: checked({"a": 1})) is ErrorCode.BAD_KEY
    assert code_of(lambda: checked(("a",))) is ErrorCode.BAD_KEY


@given(SMALL_KEYS, SMALL_KEYS)
def test_the_matcher_is_the_partial_match(key: list[Any], prefix: list[Any]) -> None:
    text = canonical(key)
    matcher = KeyMatcher(prefix)
    assert matcher.key == canonical(prefix)
    assert matcher.matches(text, parse(text)) is partial_match(key, prefix)
    assert matcher.matches(text) is partial_match(key, prefix)


@given(SMALL_KEYS, st.integers(0, 4))
def test_every_beginning_matches(key: list[Any], count: int) -> None:
    assert partial_match(key, key[:count])
    assert KeyMatcher(key[:count]).matches(canonical(key))


def test_a_text_that_begins_alike_is_not_a_prefix() -> None:
    assert not KeyMatcher(["proj"]).matches(canonical(["projects", 1]))
    assert not KeyMatcher([1]).matches(canonical([12]))
    assert not KeyMatcher(["a", "b"]).matches(canonical(["a"]))
    assert KeyMatcher(["a"]).matches(canonical(["a"]))
    assert KeyMatcher([]).matches(canonical([]))


def test_the_matcher_compares_large_numbers_as_the_canonical_form_does() -> None:
    exact, rounded = 1152921504606846976, 1152921504606847000
    assert KeyMatcher([{"id": exact}]).matches(canonical([{"id": rounded}]))
    assert KeyMatcher([exact]).matches(canonical([rounded]))
