"""RFC 6902, its appendix A, and what a hostile patch may not do."""

from typing import Any

import orjson
import pytest

from cluster.core import json_patch
from cluster.core.work import MAX_OPERATIONS, MAX_STEPS
from cluster.errors import ErrorCode, LimitError, RequestError

APPENDIX_A: list[tuple[str, Any, list[dict[str, Any]], Any]] = [
    ("A.1", {"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
    ("A.2", {"foo": ["bar", "baz"]}, [{"op": "add", "path": "/foo/1", "value": "qux"}], {"foo": ["bar", "qux", "baz"]}),
    ("A.3", {"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
    ("A.4", {"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]}),
    (
        "A.5",
        {"baz": "qux", "foo": "bar"},
        [{"op": "replace", "path": "/baz", "value": "boo"}],
        {"baz": "boo", "foo": "bar"},
    ),
    (
        "A.6",
        {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
        [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
        {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
    ),
    (
        "A.7",
        {"foo": ["all", "grass", "cows", "eat"]},
        [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
        {"foo": ["all", "cows", "eat", "grass"]},
    ),
    (
        "A.8",
        {"baz": "qux", "foo": ["a", 2, "c"]},
        [{"op": "test", "path": "/baz", "value": "qux"}, {"op": "test", "path": "/foo/1", "value": 2}],
        {"baz": "qux", "foo": ["a", 2, "c"]},
    ),
    (
        "A.10",
        {"foo": "bar"},
        [{"op": "add", "path": "/child", "value": {"grandchild": {}}}],
        {"foo": "bar", "child": {"grandchild": {}}},
    ),
    ("A.11", {"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux", "xyz": 123}], {"foo": "bar", "baz": "qux"}),
    ("A.14", {"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    (
        "A.16",
        {"foo": ["bar"]},
        [{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}],
        {"foo": ["bar", ["abc", "def"]]},
    ),
]


@pytest.mark.parametrize(("name", "document", "patch", "expected"), APPENDIX_A, ids=[case[0] for case in APPENDIX_A])
def test_appendix_a(name: str, document: Any, patch: list[dict[str, Any]], expected: Any) -> None:
    assert json_patch.apply(document, patch) == expected


FAULTS: list[tuple[str, Any, Any, str]] = [
    ("A.9", {"baz": "qux"}, [{"op": "test", "path": "/baz", "value": "bar"}], "0: test of '/baz' failed"),
    ("A.12", {"foo": "bar"}, [{"op": "add", "path": "/baz/bat", "value": "qux"}], "0: no member 'baz'"),
    ("A.15", {"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": "10"}], "0: test of '/~01' failed"),
    ("true is not 1", [1], [{"op": "test", "path": "/0", "value": True}], "0: test of '/0' failed"),
    ("second", {}, [{"op": "add", "path": "/a", "value": 1}, {"op": "remove", "path": "/b"}], "1: no member 'b'"),
    ("leading zero", [1, 2], [{"op": "remove", "path": "/01"}], "0: '01' is not an array index"),
    ("beyond the end", [1], [{"op": "add", "path": "/2", "value": 1}], "0: index 2 is beyond"),
    ("dash names no item", [1], [{"op": "remove", "path": "/-"}], "0: no item '-'"),
    ("replace of nothing", {}, [{"op": "replace", "path": "/a", "value": 1}], "0: no member 'a'"),
    (
        "into itself",
        {"a": {}},
        [{"op": "move", "from": "/a", "path": "/a/b"}],
        "0: a value cannot be moved into itself",
    ),
    ("no value", {}, [{"op": "add", "path": "/a"}], "0: 'add' needs a 'value'"),
    ("no path", {}, [{"op": "add", "value": 1}], "0: 'path' is a JSON Pointer"),
    ("unknown op", {}, [{"op": "put", "path": ""}], "0: 'op' is add, remove"),
    ("bad pointer", {}, [{"op": "add", "path": "a", "value": 1}], "0: a JSON Pointer is empty or begins with '/'"),
    ("bad escape", {}, [{"op": "add", "path": "/~2", "value": 1}], "0: in a JSON Pointer '~' is written"),
    ("not an object", {}, [3], "0: an operation is an object"),
    ("not an array", {}, {}, "a JSON Patch is an array"),
]


@pytest.mark.parametrize(("name", "document", "patch", "message"), FAULTS, ids=[case[0] for case in FAULTS])
def test_faults_name_the_operation_and_the_reason(name: str, document: Any, patch: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        json_patch.apply(document, patch)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert caught.value.message.startswith(message)


def test_a_copy_shares_nothing_with_its_original() -> None:
    patch = [{"op": "copy", "from": "/a", "path": "/b"}, {"op": "add", "path": "/b/-", "value": 2}]
    assert json_patch.apply({"a": [1]}, patch) == {"a": [1], "b": [1, 2]}


def test_the_whole_may_be_replaced() -> None:
    assert json_patch.apply({"a": 1}, [{"op": "add", "path": "", "value": [2]}]) == [2]


def test_copies_that_double_the_document_are_stopped() -> None:
    bomb = [{"op": "copy", "from": "", "path": f"/{n}"} for n in range(40)]
    with pytest.raises(RequestError, match="the copies of a patch add up to too much"):
        json_patch.apply({"x": "1234567890"}, bomb)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "patch",
    [
        [{"op": "add", "path": "/" + "/".join("a" * (n + 1)), "value": {}} for n in range(300)],
        [{"op": "add", "path": "/b", "value": nested(254)}],
        [{"op": "replace", "path": "/a/c", "value": nested(253)}],
        [{"op": "add", "path": "/d", "value": nested(252)}, {"op": "move", "from": "/d", "path": "/a/c/e"}],
        [{"op": "add", "path": "/d", "value": nested(252)}, {"op": "copy", "from": "/d", "path": "/a/c/e"}],
    ],
    ids=["step by step", "add", "replace", "move", "copy"],
)
def test_what_could_not_be_written_again_is_refused(patch: list[dict[str, Any]]) -> None:
    with pytest.raises(RequestError, match=r"levels|tokens"):
        json_patch.apply({"a": {"c": {}}}, patch)


def test_what_is_accepted_can_be_written() -> None:
    patched = json_patch.apply({"a": {"c": {}}}, [{"op": "add", "path": "/a/b", "value": nested(252)}])
    assert orjson.loads(orjson.dumps(patched)) == patched


def test_patches_applied_before_may_copy_any_amount() -> None:
    patch = [{"op": "copy", "from": "/a", "path": f"/{n}"} for n in range(6)]
    document = {"a": "x" * 1_000_000}
    with pytest.raises(RequestError):
        json_patch.apply(dict(document), patch)
    assert len(json_patch.apply(document, patch, max_copied_bytes=None)) == 7


STEP = {"op": "test", "path": "", "value": {}}


def test_a_patch_has_so_many_operations_and_no_more() -> None:
    assert json_patch.apply({}, [STEP] * MAX_OPERATIONS) == {}
    with pytest.raises(LimitError) as caught:
        json_patch.apply({}, [STEP] * (MAX_OPERATIONS + 1))
    assert (caught.value.code, caught.value.limit, caught.value.value) == ("TOO_LARGE", "operations", MAX_OPERATIONS)
    assert json_patch.apply({}, [STEP] * (MAX_OPERATIONS + 1), max_copied_bytes=None) == {}


SHIFTS: list[Any] = [
    [{"op": "add", "path": "/0", "value": 0}],
    [{"op": "remove", "path": "/0"}],
    [{"op": "move", "from": "/0", "path": "/1"}],
]


@pytest.mark.parametrize("patch", SHIFTS, ids=["add", "remove", "move"])
def test_what_moves_all_of_a_long_array_again_and_again_is_refused(patch: list[Any]) -> None:
    array = [0] * 1_000_000
    assert len(json_patch.apply(array, patch * 50)) > 999_000
    with pytest.raises(LimitError) as caught:
        json_patch.apply(array, patch * 300)
    assert (caught.value.code, caught.value.limit, caught.value.value) == ("TOO_LARGE", "edit_steps", MAX_STEPS)


def test_what_is_moved_is_looked_into_only_where_it_comes_to_stand_deeper(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(json_patch, "written_bytes", lambda value, lead: written.append(lead) or 1)
    there, back = {"op": "move", "from": "/a", "path": "/b"}, {"op": "move", "from": "/b", "path": "/a"}
    document: Any = {"a": [[]], "c": {}}
    assert json_patch.apply(document, [there, back] * 100) == {"a": [[]], "c": {}}
    assert written == []
    deeper = [{"op": "move", "from": "/a", "path": "/c/a"}, {"op": "move", "from": "/c/a", "path": "/a"}]
    assert json_patch.apply(document, deeper * 2) == {"a": [[]], "c": {}}
    assert written == [2, 2]


def test_so_much_may_be_moved_deeper_and_no_more() -> None:
    deeper = [{"op": "move", "from": "/a", "path": "/c/a"}, {"op": "move", "from": "/c/a", "path": "/a"}]
    document = {"a": ["x" * 10_000_000], "c": {}}
    json_patch.apply(document, deeper * 5)
    with pytest.raises(LimitError):
        json_patch.apply(document, deeper * 50)
