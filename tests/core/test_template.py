"""Templates forwards, backwards, and whether the two agree."""

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.template import (
    DictNode,
    HeadIndex,
    Hole,
    ListNode,
    Literal,
    MissingCapture,
    Path,
    Text,
    as_text,
    build,
    compatible,
    holes,
    match,
    match_text,
    overlaps,
    parse,
    renamed,
    respelled,
    substitute,
)


def captured(template: Any, value: Any) -> dict[str, Any] | None:
    captures: dict[Path, Any] = {}
    if not match(parse(template), value, captures):
        return None
    return {".".join(path): each for path, each in captures.items()}


def filled(template: Any, **values: Any) -> Any:
    return build(parse(template), lambda path: values["_".join(path)])


class TestParse:
    @pytest.mark.parametrize(
        ("template", "node"),
        [
            ("{id}", Hole(("id",))),
            ("{data.task.id}", Hole(("data", "task", "id"))),
            ("{data.0}", Hole(("data", "0"))),
            ("project:{id}", Text(("project:", ("id",), ""))),
            ("{a}{b}", Text(("", ("a",), "", ("b",), ""))),
            ("plain", Literal("plain")),
            (7, Literal(7)),
            (None, Literal(None)),
            (["a", 1, {"b": []}], Literal(["a", 1, {"b": []}])),
            (["a", "{id}"], ListNode((Literal("a"), Hole(("id",))))),
            ({"a": "{id}", "b": 1}, DictNode((("a", Hole(("id",))), ("b", Literal(1))))),
        ],
    )
    def test_nodes(self, template: Any, node: Any) -> None:
        assert parse(template) == node

    @pytest.mark.parametrize("text", ["{}", "{ id }", "{1}", "{a..b}", "{a.}", "{.a}", "{a", "a}", "${}x{", "{ä}"])
    def test_what_is_no_placeholder_is_text(self, text: str) -> None:
        assert parse(text) == Literal(text)

    def test_holes_are_found_wherever_they_are(self) -> None:
        template = ["a", "{b}", {"c": "x-{d.e}-{f}", "g": [{"h": "{b}"}]}, 1]
        assert list(holes(parse(template))) == [("b",), ("d", "e"), ("f",), ("b",)]


class TestBuild:
    def test_a_placeholder_that_stands_alone_keeps_its_type(self) -> None:
        assert filled(["m", "{id}"], id=7) == ["m", 7]
        assert filled(["m", "{id}"], id={"a": [None]}) == ["m", {"a": [None]}]
        assert filled("{id}", id=None) is None

    def test_within_text_it_is_written(self) -> None:
        assert filled("a-{x}-{y}", x=1, y="z") == "a-1-z"

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ("x", "x"),
            (True, "true"),
            (False, "false"),
            (0, "0"),
            (-12, "-12"),
            (12345678901234567890, "12345678901234567890"),
            (1.0, "1"),
            (1234567.0, "1234567"),
            (123456789012.0, "123456789012"),
            (0.1, "0.1"),
            (1e-7, "1e-7"),
            (1e21, "1e+21"),
            (-0.0, "0"),
        ],
    )
    def test_numbers_are_written_as_in_keys(self, value: Any, text: str) -> None:
        assert as_text(value) == text

    @pytest.mark.parametrize("value", [None, [], {}, ["a"]])
    def test_what_is_no_scalar_has_no_text(self, value: Any) -> None:
        with pytest.raises(MissingCapture):
            as_text(value)
        with pytest.raises(MissingCapture):
            filled("a-{x}", x=value)


class TestMatch:
    @pytest.mark.parametrize(
        ("template", "value", "captures"),
        [
            (["p", "{id}"], ["p", 7], {"id": 7}),
            (["p", "{id}"], ["p", None], {"id": None}),
            (["p", "{f}"], ["p", {"a": 1}], {"f": {"a": 1}}),
            (["p", "{id}"], ["q", 7], None),
            (["p", "{id}"], ["p"], None),
            (["p", "{id}"], ["p", 7, 8], None),
            (["p"], ["p"], {}),
            ("{key}", ["any", 1], {"key": ["any", 1]}),
            (["{a}", "{a}"], [1, 1.0], {"a": 1}),
            (["{a}", "{a}"], [1, 2], None),
            (["{a}", "{a}"], [1, True], None),
            ([{"id": "{x}", "k": 1}], [{"k": 1, "id": 2}], {"x": 2}),
            ([{"id": "{x}"}], [{"id": 2, "k": 1}], None),
            ([{"id": "{x}"}], [{"no": 2}], None),
            ([{"id": "{x}"}], [[2]], None),
            (["a-{x}"], ["a-b"], {"x": "b"}),
            (["a-{x}"], [5], None),
            (["a", 1], ["a", 1.0], {}),
            (["a", 1], ["a", True], None),
            (["a", 1, "{x}"], ["a", True, 0], None),
            (["a", False, "{x}"], ["a", 0, 0], None),
        ],
    )
    def test_cases(self, template: Any, value: Any, captures: dict[str, Any] | None) -> None:
        assert captured(template, value) == captures

    @pytest.mark.parametrize(
        ("template", "value", "under"),
        [
            ([], ["p"], True),
            (["p", "{id}"], ["p", 7], True),
            (["p", "{id}"], ["p", 7, 8], True),
            (["p", "{id}"], ["p"], False),
            ([{"id": "{x}"}], [{"id": 2, "k": 1}, 3], True),
            ([{"id": "{x}"}], [{"k": 1}], False),
            ([{"id": {"a": "{x}"}}], [{"id": {"a": 1, "b": 2}}], True),
            ([["{x}"]], [[1, 2]], True),
            ([{"k": 1}], [{"id": 2, "k": 1}], True),
            ([{"k": 1}], [{"id": 2, "k": 2}], False),
        ],
    )
    def test_under_what_it_can_have_given(self, template: Any, value: Any, under: bool) -> None:
        assert match(parse(template), value, {}, under=True) is under

    @pytest.mark.parametrize(
        ("template", "text", "captures"),
        [
            ("project:{id}", "project:7", {"id": "7"}),
            ("project:{id}", "project:", None),
            ("project:{id}", "projects:7", None),
            ("project:{id}", "project:a:b", {"id": "a:b"}),
            ("{a}:{b}", "x:y:z", {"a": "x", "b": "y:z"}),
            ("a.c:{x}", "abc:1", None),
            ("c:{x}:m", "c:one\ntwo:m", {"x": "one\ntwo"}),
            ("{x}", "all", {"x": "all"}),
            ("fixed", "fixed", {}),
            ("fixed", "fixed2", None),
        ],
    )
    def test_channels(self, template: str, text: str, captures: dict[str, str] | None) -> None:
        found: dict[Path, Any] = {}
        matched = match_text(parse(template), text, found)
        assert matched == (captures is not None)
        if captures is not None:
            assert {path[0]: value for path, value in found.items()} == captures

    @given(
        st.recursive(
            st.sampled_from(["a", "{x}", "{y}", 1, True, None, 1.5]),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            max_leaves=6,
        ),
        st.fixed_dictionaries({}, optional={"x": st.sampled_from([1, "t", None, [1], {"a": 2}]), "y": st.booleans()}),
    )
    def test_what_a_template_gives_it_recognises(self, template: Any, values: dict[str, Any]) -> None:
        node = parse(template)
        given_values = {"x": 0, "y": "y", **values}
        value = build(node, lambda path: given_values[path[0]])
        captures: dict[Path, Any] = {}
        assert match(node, value, captures)
        assert captures == {path: given_values[path[0]] for path in holes(node)}
        assert compatible(node, value)
        assert substitute(node, given_values) == Literal(value)


class TestSubstitute:
    def test_what_is_known_is_filled_in_and_the_rest_stays(self) -> None:
        node = parse(["m", "{id}", "{data.id}", {"t": "{id}/{data.x}/{id}"}])
        assert substitute(node, {"id": "7"}) == ListNode(
            (
                Literal("m"),
                Literal("7"),
                Hole(("data", "id")),
                DictNode((("t", Text(("7/", ("data", "x"), "/7"))),)),
            )
        )

    def test_members_of_what_is_known(self) -> None:
        assert substitute(parse("{a.b}"), {"a": {"b": [1]}}) == Literal([1])
        with pytest.raises(MissingCapture):
            substitute(parse("{a.b}"), {"a": {}})

    def test_it_substitutes_once(self) -> None:
        assert substitute(parse("x-{id}"), {"id": "{data}"}) == Literal("x-{data}")


@pytest.mark.parametrize(
    ("template", "prefix", "expected"),
    [
        (["p", "{id}"], ["p"], True),
        (["p", "{id}"], [], True),
        (["p", "{id}"], ["p", 7], True),
        (["p", "{id}"], ["p", 7, 8], False),
        (["p", "{id}"], ["q"], False),
        (["p", {"a": "{x}", "b": 1}], ["p", {"a": 5}], True),
        (["p", {"a": "{x}", "b": 1}], ["p", {"b": 2}], False),
        (["p", {"a": "{x}"}], ["p", {"c": 2}], False),
        (["p", {"a": 1}], ["p", {"a": 1}], True),
        (["p", "a-{x}"], ["p", "b"], True),
        (["p", "a-{x}"], ["p", 1], False),
        (["p", 1], ["p", True], False),
        (["p", 1], ["p", 1.0], True),
        ("{key}", ["anything"], True),
    ],
)
def test_whether_a_template_may_give_keys_under_a_prefix(template: Any, prefix: list[Any], expected: bool) -> None:
    assert compatible(parse(template), prefix) is expected


heads = st.sampled_from(["a", "b", "{x}", "a{x}", 1, None, ["a"]])


@given(
    st.lists(st.lists(heads, max_size=2), max_size=6), st.lists(st.sampled_from(["a", "b", "aa", 1, ["a"]]), max_size=2)
)
def test_an_index_leaves_out_none_that_match_and_keeps_their_order(templates: list[list[Any]], key: list[Any]) -> None:
    nodes = [parse(template) for template in templates]
    candidates = HeadIndex((node, number) for number, node in enumerate(nodes)).candidates(key)
    assert candidates == sorted(candidates)
    for under in (False, True):
        assert {number for number, node in enumerate(nodes) if match(node, key, {}, under=under)} <= set(candidates)


def test_an_index_passes_over_other_heads() -> None:
    index = HeadIndex((parse(template), template) for template in (["a", 1], ["b", "{x}"], ["{y}"], ["a"]))
    assert index.candidates(["a"]) == [["a", 1], ["{y}"], ["a"]]
    assert index.candidates(["c"]) == index.candidates([7]) == index.candidates([]) == [["{y}"]]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("project:{id}", "project:{project_id}", True),
        ("project:{id}", "project:7", True),
        ("project:{id}", "projects:{id}", False),
        ("project:{id}", "project:", False),
        ("channel:{id}:messages", "channel:{room}", True),
        ("channel:{id}:messages", "channel:{room}:typing", False),
        ("{any}", "x", True),
        ("{any}", "", False),
        ("a", "a", True),
        ("a", "b", False),
        ("{x}b", "a{y}", True),
        ("{x}b{y}", "ab", False),
    ],
)
def test_whether_some_text_fits_two_templates(one: str, other: str, expected: bool) -> None:
    assert overlaps(parse(one), parse(other)) is expected
    assert overlaps(parse(other), parse(one)) is expected


channels = st.lists(st.sampled_from(["a", "b", "{x}"]), min_size=1, max_size=4).map(
    lambda parts: "".join(part if part != "{x}" else f"{{x{position}}}" for position, part in enumerate(parts))
)
texts = [text for length in range(1, 9) for text in map("".join, itertools.product("ab", repeat=length))]


@given(channels, channels)
def test_that_is_so_if_there_is_one(one: str, other: str) -> None:
    def fits(channel: str, text: str) -> bool:
        return match_text(parse(channel), text, {})

    assert overlaps(parse(one), parse(other)) is any(fits(one, text) and fits(other, text) for text in texts)


def test_placeholders_with_other_names() -> None:
    template = {"a": ["{x.y}", "p:{x}:{z}", 5], "b": "{z}"}

    def rename(path: Path) -> Path:
        return ("data", *path) if path[0] == "x" else path

    expected = {"a": ["{data.x.y}", "p:{data.x}:{z}", 5], "b": "{z}"}
    assert respelled(template, rename) == expected
    assert renamed(parse(template), rename) == parse(expected)
