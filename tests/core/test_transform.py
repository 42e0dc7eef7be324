"""What a transform makes of an event: taken or not, which members, under which names; without changing what it does not touch."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import DecodeError, Raw

from cluster.config import compile_config, load_mapping
from cluster.core.operation import Set
from cluster.core.rule import Router
from cluster.core.transform import Transform, TransformFunction, compile_transform
from cluster.errors import OperationError

TOLD = {"event": "e", "channel": "c", "captures": {}}


def uncalled(reference: str, event: dict[str, Any]) -> bytes | None:
    raise AssertionError(f"{reference} was called with {event}")


def shaped(transform: Transform, data: Any, *, call: TransformFunction = uncalled) -> bytes | None:
    """What becomes of data, given as a value or as JSON."""
    raw = data if isinstance(data, bytes) else orjson.dumps(data)
    made = compile_transform(transform, lambda _: TOLD, call)((), Raw(raw), "7")
    return None if made is None else bytes(made)


class TestWhen:
    @pytest.mark.parametrize(
        ("when", "data", "taken"),
        [
            ({"/a": 1}, {"a": 1}, True),
            ({"/a": 1}, {"a": 1.0}, True),
            ({"/a": 1}, {"a": True}, False),
            ({"/a": True}, {"a": 1}, False),
            ({"/a": 1}, {"a": 2}, False),
            ({"/a": 1}, {}, False),
            ({"/a": None}, {"a": None}, True),
            ({"/a": None}, {}, False),
            ({"/a": 1, "/b": 2}, {"a": 1, "b": 2}, True),
            ({"/a": 1, "/b": 2}, {"a": 1, "b": 3}, False),
            ({"/a/b": "x"}, {"a": {"b": "x"}}, True),
            ({"/a/b": "x"}, {"a": "x"}, False),
            ({"/a/b": "x"}, {"a": None}, False),
            ({"/a/b/c": [1, {"d": 2}]}, {"a": {"b": {"c": [1, {"d": 2}]}}}, True),
            ({"/0": "x"}, ["x"], True),
            ({"/0": "x"}, {"0": "x"}, True),
            ({"/1": "x"}, ["x"], False),
            ({"/-": "x"}, ["x"], False),
            ({"/-": "x"}, {"-": "x"}, True),
            ({"/01": "x"}, ["x", "x"], False),
            ({"/a": "x"}, ["x"], False),
            ({"/a/1": "x"}, {"a": ["", "x"]}, True),
            ({"": 5}, 5, True),
            ({"": {"a": 1}}, {"a": 1}, True),
            ({"/a": 1}, 5, False),
            ({"/a": 1}, None, False),
            ({"/a": 1}, "a", False),
            ({"/a~1b": 1}, {"a/b": 1}, True),
            ({"/a~0b": 1}, {"a~b": 1}, True),
            ({'/a"b': 1}, {'a"b': 1}, True),
            ({"/a\\b": 1}, {"a\\b": 1}, True),
            ({"/é": "ü"}, {"é": "ü"}, True),
            ({"/é": "ü"}, rb'{"\u00e9":"\u00fc"}', True),
            ({"/": 1}, {"": 1}, True),
        ],
    )
    def test_an_event_is_taken_where_members_equal(self, when: dict[str, Any], data: Any, taken: bool) -> None:
        raw = data if isinstance(data, bytes) else orjson.dumps(data)
        assert shaped(Transform(when=when), raw) == (raw if taken else None)


class TestPick:
    @pytest.mark.parametrize(
        ("pick", "data", "made"),
        [
            (("a",), {"a": 1, "b": 2}, {"a": 1}),
            (("b", "a"), {"a": 1, "b": 2, "c": 3}, {"b": 2, "a": 1}),
            (("a", "b"), {"a": None}, {"a": None}),
            (("a",), {}, {}),
            (("a.b",), {"a.b": 1, "a": {"b": 2}}, {"a.b": 1}),
            (("/a",), {"/a": 1, "a": 2}, {"/a": 1}),
            (("0",), {"0": 1, "1": 2}, {"0": 1}),
            (('a"b', "c\\d"), {'a"b': 1, "c\\d": 2, "e": 3}, {'a"b': 1, "c\\d": 2}),
            (("é", "日"), {"é": "ü", "日": "本", "a": 1}, {"é": "ü", "日": "本"}),
            ({"id": "/user/id"}, {"user": {"id": 5, "more": 6}}, {"id": 5}),
            ({"id": "/user/id", "name": "/user/name"}, {"user": {"id": 5}}, {"id": 5}),
            ({"id": "/user/id"}, {"user": None}, {}),
            ({"first": "/0", "last": "/-"}, ["x", "y"], {"first": "x"}),
            ({"first": "/items/0/id"}, {"items": [{"id": 5}]}, {"first": 5}),
            ({"a": "/b", "b": "/a"}, {"a": 1, "b": 2}, {"a": 2, "b": 1}),
            ({"value": ""}, 5, {"value": 5}),
            ({"value": "", "a": "/a"}, {"a": 1}, {"value": {"a": 1}, "a": 1}),
            ({"a": "/a"}, 5, {}),
            ({"a": "/a"}, [1], {}),
            ({"x": "/a~1b", "y": "/c~0d"}, {"a/b": 1, "c~d": 2}, {"x": 1, "y": 2}),
        ],
    )
    def test_only_what_is_picked_stays(self, pick: Any, data: Any, made: dict[str, Any]) -> None:
        result = shaped(Transform(pick=pick), data)
        assert result is not None
        assert list(orjson.loads(result).items()) == list(made.items())

    @pytest.mark.parametrize("pick", [("a",), ('"',)])
    @pytest.mark.parametrize("data", [[1], 5, None, "text"])
    def test_members_of_what_is_no_object_cannot_be_picked(self, pick: tuple[str, ...], data: Any) -> None:
        with pytest.raises(DecodeError, match="Expected `object`"):
            shaped(Transform(pick=pick), data)

    @pytest.mark.parametrize("pick", [("n",), {"n": "/n"}, {"n": "/deep/n"}, {"n": "/list/0"}])
    @pytest.mark.parametrize("number", [b"123456789012345678901234567890", b"1.10", b"1e400", b"-0"])
    def test_a_number_stays_as_it_was_written(self, pick: Any, number: bytes) -> None:
        data = b'{"n":%b,"deep":{"n":%b},"list":[%b]}' % (number, number, number)
        assert shaped(Transform(pick=pick), data) == b'{"n":%b}' % number


class TestRename:
    @pytest.mark.parametrize(
        ("rename", "data", "made"),
        [
            ({"a": "b"}, {"a": 1, "c": 2}, {"c": 2, "b": 1}),
            ({"a": "b"}, {"a": 1, "b": 2}, {"b": 1}),
            ({"a": "b", "b": "a"}, {"a": 1, "b": 2}, {"b": 1, "a": 2}),
            ({"a": "b"}, {"c": 2}, {"c": 2}),
            ({"a": "b"}, {"a": None}, {"b": None}),
            ({"a": "a/b"}, {"a": {"a": 1}}, {"a/b": {"a": 1}}),
            ({"é": "e"}, {"é": 1}, {"e": 1}),
        ],
    )
    def test_members_get_our_names(self, rename: dict[str, str], data: Any, made: dict[str, Any]) -> None:
        result = shaped(Transform(rename=rename), data)
        assert result is not None
        assert orjson.loads(result) == made

    def test_it_is_of_what_was_picked(self) -> None:
        for pick in (("a", "b"), {"a": "/x", "b": "/b"}):
            result = shaped(Transform(pick=pick, rename={"a": "c"}), {"a": 1, "x": 1, "b": 2})
            assert result == b'{"c":1,"b":2}'

    @pytest.mark.parametrize("data", [[1], 5, None])
    def test_what_is_no_object_has_no_members(self, data: Any) -> None:
        with pytest.raises(DecodeError, match="Expected `object`"):
            shaped(Transform(rename={"a": "b"}), data)


class TestFunction:
    def test_it_is_told_of_the_event(self) -> None:
        told: list[Any] = []

        def call(reference: str, event: dict[str, Any]) -> bytes | None:
            told.append((reference, event))
            return b"5"

        assert shaped(Transform(function="m:f"), {"a": [1]}, call=call) == b"5"
        assert told == [("m:f", {**TOLD, "data": {"a": [1]}, "id": "7"})]

    def test_it_comes_after_when_and_before_pick_and_rename(self) -> None:
        transform = Transform(when={"/a": 1}, function="m:f", pick=("b",), rename={"b": "c"})
        assert shaped(transform, {"a": 2}) is None
        assert shaped(transform, {"a": 1}, call=lambda _, event: orjson.dumps({"b": event["data"], "d": 1})) == (
            b'{"c":{"a":1}}'
        )

    def test_it_may_leave_an_event_out(self) -> None:
        assert shaped(Transform(function="m:f", pick=("b",)), {"b": 1}, call=lambda *_: None) is None


def test_names_of_events_are_no_step() -> None:
    transform = Transform(event={"theirs": "ours"})
    assert not transform.shapes
    assert (transform.heard_as("theirs"), transform.heard_as("other")) == ("ours", "other")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values), st.lists(st.text(min_size=1), min_size=1, unique=True))
def test_picking_is_choosing_members_of_any_object(data: dict[str, Any], pick: list[str]) -> None:
    names = [*pick, *list(data)[:2]]
    wanted = {name: data[name] for name in names if name in data}
    result = shaped(Transform(pick=tuple(dict.fromkeys(names))), data)
    assert result is not None
    assert orjson.loads(result) == wanted


@given(json_values, st.lists(st.text(alphabet='a01/~-é"', max_size=2), min_size=1, max_size=3))
def test_any_pointer_into_anything_finds_what_is_there(data: Any, place: list[str]) -> None:
    pointer = "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in place)
    at: Any = data
    for token in place:
        is_index = isinstance(at, list) and token.isascii() and token.isdigit() and str(int(token)) == token
        at = (
            at[int(token)] if is_index and int(token) < len(at) else at.get(token, ...) if isinstance(at, dict) else ...
        )
    result = shaped(Transform(pick={"x": pointer}), data)
    assert result is not None
    assert orjson.loads(result) == ({} if at is ... else {"x": at})


# --- in a router -------------------------------------------------------------------------------------------------


def router(transform: dict[str, Any], call: TransformFunction | None = None, **stream: Any) -> Router:
    rules = {"e": {"set": {"key": ["k", "{data.id}"], "value": "{data}"}}}
    document = {
        "sources": {"s": {"type": "websocket", "url": "ws://x"}},
        "streams": [{"source": "s", "on": rules, "transform": transform, **stream}],
    }
    return compile_config(load_mapping(document, {})).router("s", call)


def run(of: Router, data: Any, *, event: str = "e", channel: str | None = None) -> list[Any]:
    raw = Raw(data if isinstance(data, bytes) else orjson.dumps(data))
    return [
        (orjson.loads(key), orjson.loads(operation.value))
        for route in of.route(event, channel)
        for key, operation in route.apply(raw, None)
        if isinstance(operation, Set)
    ]


def test_rules_see_what_a_transform_made() -> None:
    of = router({"when": {"/kind": "x"}, "pick": {"id": "/user/id", "n": "/n"}, "rename": {"n": "name"}})
    assert run(of, {"kind": "x", "user": {"id": 5}, "n": "N", "more": 1}) == [(["k", 5], {"id": 5, "name": "N"})]
    assert run(of, {"kind": "y", "user": {"id": 5}}) == []
    assert of.dropped == {"filtered": 1}
    assert of.faults == []


def test_what_a_rule_needs_and_a_transform_has_taken_away_is_missing() -> None:
    of = router({"pick": ["name"]})
    assert run(of, {"id": 5, "name": "N"}) == []
    assert of.dropped == {"missing_capture": 1}
    assert [(fault.reason, fault.detail, bytes(fault.data)) for fault in of.faults] == [
        ("missing_capture", "set needs {data.id}", b'{"name":"N"}')
    ]


def test_an_event_that_has_another_name_upstream() -> None:
    of = router({"event": {"E2": "e"}})
    assert run(of, {"id": 1}, event="E2") == run(of, {"id": 1}, event="e") == [(["k", 1], {"id": 1})]
    assert of.route("other", None) == ()
    assert [route.origin for route in of.route("E2", None)] == [route.origin for route in of.route("e", None)] == [0]


def test_a_transform_that_only_names_events_costs_events_nothing() -> None:
    plain, named = router({"event": {"E2": "e"}}), router({"rename": {"a": "b"}})
    (route,) = plain.route("E2", None)
    (shaping,) = named.route("e", None)
    assert "_transformed" not in route.step.__qualname__
    assert "_transformed" in shaping.step.__qualname__


@pytest.mark.parametrize("data", [[1], None, 5])
def test_data_of_another_kind_is_a_fault(data: Any) -> None:
    of = router({"pick": ["id"]})
    assert run(of, data) == []
    assert of.dropped == {"transform_failed": 1}
    (fault,) = of.faults
    assert (fault.reason, fault.event, fault.channel, bytes(fault.data)) == (
        "transform_failed",
        "e",
        None,
        orjson.dumps(data),
    )
    assert fault.detail.startswith("Expected `object`")


def test_a_function_that_fails_loses_its_event_only() -> None:
    told = []

    def call(reference: str, event: dict[str, Any]) -> bytes | None:
        told.append(event)
        if event["data"]["id"] == 1:
            raise OperationError("function m:f raised ValueError: no")
        return orjson.dumps({**event["data"], "room": event["captures"]["room"]})

    of = router({"function": "m:f", "event": {"E2": "e"}}, call, channel="room:{room}")
    assert run(of, {"id": 1}, event="E2", channel="room:9") == []
    assert run(of, {"id": 2}, event="E2", channel="room:9") == [(["k", 2], {"id": 2, "room": "9"})]
    assert told[0] == {"event": "e", "channel": "room:9", "captures": {"room": "9"}, "data": {"id": 1}, "id": None}
    assert [(fault.event, fault.channel, fault.detail) for fault in of.faults] == [
        ("E2", "room:9", "function m:f raised ValueError: no")
    ]


@pytest.mark.parametrize("data", [b'{"id":' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"id":' + b"9" * 400 + b"}"])
def test_no_data_gets_through_as_an_error(data: bytes) -> None:
    of = router({"when": {"/id": 1}, "function": "m:f"})
    assert run(of, data) == []
    assert of.dropped.total() == 1


def test_without_anybody_to_run_functions_events_are_faults() -> None:
    of = router({"function": "m:f"})
    assert run(of, {"id": 1}) == []
    assert of.faults[0].detail == "function m:f cannot be run here"


def test_other_streams_of_the_source_see_the_event_as_it_was() -> None:
    rule = {"e": {"set": {"key": ["k"], "value": "{data}"}}}
    document = {
        "sources": {"s": {"type": "websocket", "url": "ws://x"}},
        "streams": [
            {"source": "s", "on": rule, "transform": {"pick": ["a"]}},
            {"source": "s", "on": {"e": {"set": {"key": ["whole"], "value": "{data}"}}}},
        ],
    }
    of = compile_config(load_mapping(document, {})).router("s")
    assert run(of, {"a": 1, "b": 2}) == [(["k"], {"a": 1}), (["whole"], {"a": 1, "b": 2})]


def test_faults_wait_in_bounded_number() -> None:
    of = router({"pick": ["id"]})
    for _ in range(1000):
        run(of, 5)
    assert (len(of.faults), of.dropped["transform_failed"]) == (100, 1000)
