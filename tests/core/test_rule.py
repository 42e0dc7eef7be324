"""From frames to operations: what is an event, which rules it meets, what they make of it, and why it comes to nothing."""

from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from cluster.config import compile_config, load_mapping
from cluster.core import broadcast
from cluster.core.operation import (
    Append,
    Call,
    Delete,
    Guard,
    Increment,
    Invalidate,
    Merge,
    MergeWhere,
    Missing,
    Operation,
    Prepend,
    Remove,
    Set,
    Upsert,
)
from cluster.core.query_key import parse
from cluster.core.rule import Envelope, FeedIndex, Router

ENVELOPE = {"event": "type", "data": "payload", "channel": "room", "id": "n"}


def streams(*given_streams: dict[str, Any], envelope: dict[str, str] | None = None) -> dict[str, Any]:
    source: dict[str, Any] = {"type": "websocket", "url": "ws://x"}
    if envelope is not None:
        source["envelope"] = envelope
    return {"sources": {"s": source, "other": {"type": "websocket", "url": "ws://y"}}, "streams": list(given_streams)}


def router(*given_streams: dict[str, Any], envelope: dict[str, str] | None = None) -> Router:
    return compile_config(load_mapping(streams(*given_streams, envelope=envelope), {})).router("s")


def one(rule: Any, channel: str | None = None) -> Router:
    stream: dict[str, Any] = {"source": "s", "on": {"e": rule}}
    return router(stream if channel is None else {**stream, "channel": channel})


def made(
    of: Router, data: Any, *, event: str = "e", channel: str | None = None, event_id: str | int | None = None
) -> list[tuple[Any, Operation]]:
    raw = data if isinstance(data, bytes) else orjson.dumps(data)
    return [
        (orjson.loads(key), operation)
        for route in of.route(event, channel)
        for key, operation in route.apply(Raw(raw), event_id)
    ]


class TestFrames:
    def test_the_usual_names(self) -> None:
        (envelope,), faults = router().decode([b'{"event":"e","data":{"a": 1},"channel":"c","id":5,"more":[]}'])
        assert not faults
        assert (envelope.event, bytes(envelope.data), envelope.channel, envelope.id) == ("e", b'{"a": 1}', "c", 5)

    def test_only_the_event_is_needed(self) -> None:
        (envelope,), faults = router().decode([b'{"event":"e"}'])
        assert not faults
        assert (envelope.event, bytes(envelope.data), envelope.channel, envelope.id) == ("e", b"null", None, None)

    def test_configured_names(self) -> None:
        (envelope,), faults = router(envelope=ENVELOPE).decode(
            [b'{"type":"e","payload":[1],"room":"r","n":"x","event":"no"}']
        )
        assert not faults
        assert (envelope.event, bytes(envelope.data), envelope.channel, envelope.id) == ("e", b"[1]", "r", "x")

    def test_names_that_are_not_configured_are_not_read(self) -> None:
        (envelope,), faults = router(envelope={"event": "type"}).decode([b'{"type":"e","data":1,"channel":"c","id":2}'])
        assert not faults
        assert (bytes(envelope.data), envelope.channel, envelope.id) == (b"null", None, None)

    @pytest.mark.parametrize("frame", [b'[{"event":"a"},{"event":"b"}]', b' \n[{"event":"a"},{"event":"b"}]'])
    def test_an_array_is_several(self, frame: bytes) -> None:
        events, faults = router().decode([frame])
        assert [envelope.event for envelope in events] == ["a", "b"]
        assert not faults

    def test_frames_of_a_read_are_read_at_once(self) -> None:
        frames = [
            b'{"event":"a"}',
            b'[{"event":"b"},{"event":"c"}]',
            b"{",
            b'{"event":"d"},{"event":"e"}',
            b' {"event":\n"f"} ',
        ]
        events, faults = router().decode(frames)
        assert [envelope.event for envelope in events] == ["a", "b", "c", "f"]
        assert [(fault.reason, fault.sample) for fault in faults] == [("not_json", frames[2]), ("not_json", frames[3])]
        events, faults = router().decode([frames[0], frames[4]])
        assert ([envelope.event for envelope in events], faults) == (["a", "f"], [])

    def test_a_bad_one_among_them_does_not_spoil_the_rest(self) -> None:
        (first, second), (fault,) = router().decode([b'[{"event":"a"},7,{"event":"b"}]'])
        assert (first.event, second.event) == ("a", "b")
        assert (fault.reason, bytes(fault.sample)) == ("not_object", b"7")

    @pytest.mark.parametrize(
        ("element", "reason"), [('[{"event":"a"}]', "not_object"), ("{}", "no_event"), ('{"event":5}', "no_event")]
    )
    def test_what_an_array_holds_besides(self, element: str, reason: str) -> None:
        events, (fault,) = router().decode([f"[{element}]".encode()])
        assert not events
        assert fault.reason == reason

    @pytest.mark.parametrize(
        ("frame", "reason"),
        [
            (b"", "not_json"),
            (b"hello", "not_json"),
            (b'{"event":"e"', "not_json"),
            (b'{"event":"e"} x', "not_json"),
            (b'{"event":"e","data":nope}', "not_json"),
            (b'[{"event":"e"}', "not_json"),
            (b'{"event":"\xff"}', "not_json"),
            (b'{"event":"e","data":"\xff"}', "not_json"),
            (b'{"event":"e","data":' + b"[" * 5000 + b"]" * 5000 + b"}", "not_json"),
            (b"7", "not_object"),
            (b'"e"', "not_object"),
            (b"null", "not_object"),
            (b"{}", "no_event"),
            (b'{"event":""}', "no_event"),
            (b'{"event":7}', "no_event"),
            (b'{"event":null}', "no_event"),
            (b'{"event":"e","channel":7}', "no_event"),
            (b'{"event":"e","id":[]}', "no_event"),
        ],
    )
    def test_faults(self, frame: bytes, reason: str) -> None:
        (good,), (fault,) = router().decode([frame, b'{"event":"good"}'])
        assert good.event == "good"
        assert (fault.reason, fault.sample) == (reason, frame)

    def test_server_sent_events_are_their_own_envelope(self) -> None:
        event = Envelope("e", b'{"a":1}', None, "9")
        assert router().decode_events([event, event], asks=False) == ([event, event], ["9", "9"], [])
        for bad in (b"{", b'"\xff"', b"", b"[" * 5000):
            told = router().decode_events([event, Envelope("bad", bad, None, None), event], asks=False)
            assert told[:2] == ([event, event], ["9", "9"])
            (fault,) = told[2]
            assert (fault.reason, fault.event, fault.sample) == ("not_json", "bad", bad)

    def test_or_hold_the_configured_one(self) -> None:
        events = [
            Envelope("message", b'{"type":"e","payload":1}', None, "9"),
            Envelope("message", b'{"type":"e","payload":2,"n":7}', None, None),
            Envelope("message", b'[{"type":"e"}]', None, None),
        ]
        for asks, ids in ((False, ["9", None]), (True, ["9", 7])):
            (first, second), told, (fault,) = router(envelope=ENVELOPE).decode_events(events, asks=asks)
            assert (first.event, bytes(first.data), bytes(second.data)) == ("e", b"1", b"2")
            assert (told, fault.reason) == (ids, "not_object")


class TestRoutes:
    SET = {"set": {"key": ["k", "{id}"], "value": "{data}"}}  # noqa: RUF012 - read only

    def test_a_channels_captures_are_constants(self) -> None:
        of = one(self.SET, "c:{id}")
        assert made(of, 1, channel="c:7") == [(["k", "7"], Set(b"1"))]
        assert made(of, 1, channel="c:a/b") == [(["k", "a/b"], Set(b"1"))]

    def test_other_channels_and_events_have_no_route(self) -> None:
        of = one(self.SET, "c:{id}")
        assert of.route("e", "d:7") == ()
        assert of.route("e", "c:") == ()
        assert of.route("e", None) == ()
        assert of.route("other", "c:7") == ()

    def test_a_stream_without_channel_takes_any(self) -> None:
        of = one({"set": {"key": ["k"], "value": 1}})
        assert len(of.route("e", None)) == len(of.route("e", "whatever")) == 1

    def test_every_stream_that_fits_has_one(self) -> None:
        of = router(
            {"source": "s", "channel": "c:{id}", "on": {"e": {"set": {"key": ["a", "{id}"], "value": 1}}}},
            {"source": "s", "channel": "{all}", "on": {"e": {"set": {"key": ["b", "{all}"], "value": 1}}}},
            {"source": "other", "channel": "{all}", "on": {"e": {"set": {"key": ["no"], "value": 1}}}},
        )
        assert [key for key, _ in made(of, 1, channel="c:7")] == [["a", "7"], ["b", "c:7"]]

    def test_feeds_are_channels_and_profiles_are_the_streams(self) -> None:
        of = router(
            {"source": "s", "channel": "c:{id}", "on": {"e": self.SET}, "batching": {"window": "50ms"}},
            {"source": "s", "on": {"e": {"set": {"key": ["k"], "value": 1}}}},
        )
        assert [(route.feed, route.profile) for route in of.route("e", "c:7")] == [("s/c:7", 1), ("s", 0)]

    def test_captures_inside_pointers_are_escaped(self) -> None:
        of = one({"set": {"key": ["k"], "at": "/x/{id}/{data.m}", "value": 1}}, "c:{id}")
        assert made(of, {"m": "p/q~"}, channel="c:a/b") == [(["k"], Set(b"1", "/x/a~1b/p~1q~0"))]
        of = one({"set": {"key": ["k"], "at": "/x/{id}", "value": 1}}, "c:{id}")
        assert made(of, {}, channel="c:a/b") == [(["k"], Set(b"1", "/x/a~1b"))]

    def test_a_channel_that_makes_too_long_a_key_is_counted(self) -> None:
        of = one(self.SET, "c:{id}")
        assert made(of, 1, channel="c:" + "x" * 2000) == []
        assert of.dropped == {"bad_key": 1}


OPERATIONS: list[tuple[dict[str, Any], Any, Operation]] = [
    ({"set": {"key": ["k"], "value": "{data}"}}, {"a": 1}, Set(b'{"a":1}')),
    ({"set": {"key": ["k"], "value": "{data.a}"}}, {"a": [1, None]}, Set(b"[1,null]")),
    ({"set": {"key": ["k"], "value": {"n": "{data.a}", "e": "{event}"}}}, {"a": 1}, Set(b'{"n":1,"e":"e"}')),
    ({"set": {"key": ["k"], "value": "got {data.a}"}}, {"a": 1.0}, Set(b'"got 1"')),
    ({"set": {"key": ["k"], "value": None}}, {}, Set(b"null")),
    ({"set": {"key": ["k"], "at": "/v", "value": 1, "when_missing": "skip"}}, {}, Set(b"1", "/v", Missing.SKIP)),
    ({"set": {"key": ["k"], "at": "/v", "value": 1, "default": {}}}, {}, Set(b"1", "/v", default=b"{}")),
    ({"merge": {"key": ["k"], "value": "{data}"}}, {"a": 1}, Merge(b'{"a":1}')),
    (
        {"merge": {"key": ["k"], "at": "/m", "value": "{data}", "when_missing": "create", "default": {"m": {}}}},
        {"a": 1},
        Merge(b'{"a":1}', "/m", Missing.CREATE, b'{"m":{}}'),
    ),
    (
        {"append": {"key": ["k"], "at": "/l", "item": "{data}", "max_items": 5, "by": "n"}},
        1,
        Append((b"1",), "/l", 5, "n"),
    ),
    ({"prepend": {"key": ["k"], "item": "{data.x}"}}, {"x": "y"}, Prepend((b'"y"',))),
    ({"upsert": {"key": ["k"], "item": "{data}", "by": "n"}}, {"n": 1}, Upsert((b'{"n":1}',), by="n")),
    (
        {"merge_where": {"key": ["k"], "at": "/l", "where": {"id": "{data.id}"}, "value": "{data}"}},
        {"id": 7, "t": "x"},
        MergeWhere(b'{"id":7}', b'{"id":7,"t":"x"}', "/l"),
    ),
    ({"remove": {"key": ["k"], "where": {"id": "{data.id}", "g": 1}}}, {"id": 7}, Remove(b'{"id":7,"g":1}')),
    ({"increment": {"key": ["k"], "at": "/n"}}, {}, Increment("/n", 1)),
    ({"increment": {"key": ["k"], "at": "/n", "by": -2.5}}, {}, Increment("/n", -2.5)),
    ({"increment": {"key": ["k"], "at": "/n/{data.m}", "by": "{data.by}"}}, {"m": "x", "by": 3}, Increment("/n/x", 3)),
    ({"delete": {"key": ["k"]}}, {}, Delete()),
    ({"delete": {"key": ["k"], "at": "/m/{data.id}"}}, {"id": 7}, Delete("/m/7")),
    ({"invalidate": {"key": ["k"], "exact": True, "refetch": "none"}}, {}, Invalidate(exact=True, refetch="none")),
]


@pytest.mark.parametrize(
    ("rule", "data", "operation"),
    OPERATIONS,
    ids=lambda value: next(iter(value), None) if isinstance(value, dict) else None,
)
def test_operations(rule: dict[str, Any], data: Any, operation: Operation) -> None:
    of = one(rule)
    assert made(of, data) == [(["k"], operation)]
    assert of.dropped == {}


class TestBroadcasts:
    """What is not about one key is made under a name that no key has."""

    TYPES: ClassVar[dict[str, Any]] = {
        "entities": {"user": {"keys": ["userId"]}, "order": {"id": "no"}},
        "relations": {"user": [["users", "{id}"]]},
    }

    def made(self, rule: Any, data: Any, **more: Any) -> list[tuple[str, Operation]]:
        document = {**streams({"source": "s", "on": {"e": rule}}), **self.TYPES}
        self.router = compile_config(load_mapping(document, {})).router("s")
        (route,) = self.router.route("e", None)
        return route.apply(Raw(orjson.dumps(data)), None)

    def test_an_invalidation_of_what_is_under_a_key(self) -> None:
        rule = {"invalidate": {"key": ["k", "{data.id}"], "refetch": "none"}}
        assert self.made(rule, {"id": 7}) == [('#u["k",7]', Invalidate(exact=False, refetch="none"))]

    def test_an_entity_goes_by_its_type_and_its_own_id(self) -> None:
        rule = {"entity": {"type": "user", "value": "{data.user}"}}
        value = {"id": 7, "name": "a"}
        assert self.made(rule, {"user": value}) == [('#e["user",7]', Merge(orjson.dumps(value)))]
        rule = {"each": "{data}", "entity": {"type": "order", "value": "{item}"}}
        names = [name for name, _ in self.made(rule, [{"no": 1}, {"no": "1"}, {"no": True}, {"id": 1}, 5])]
        assert names == ['#e["order",1]', '#e["order","1"]', '#e["order",true]']
        assert self.router.dropped == {"missing_capture": 2}

    def test_the_type_may_be_in_the_event(self) -> None:
        rule = {"entity": {"type": "{data.type}", "value": "{data.value}"}}
        assert self.made(rule, {"type": "order", "value": {"no": 3}}) == [('#e["order",3]', Merge(b'{"no":3}'))]
        for unknown in ("none", None, 5, [], {"no": 1}):
            assert self.made(rule, {"type": unknown, "value": {"no": 3}}) == []
            assert self.router.dropped.total() == 1

    def test_a_relation(self) -> None:
        rule = {"relation": {"type": "user", "id": "{data.id}", "refetch": "all"}}
        assert self.made(rule, {"id": "x"}) == [('#r["user","x"]', Invalidate(exact=False, refetch="all"))]


def test_a_call_takes_the_event_along() -> None:
    rule = {"call": "module:function", "key": ["k", "{data.id}"], "when_missing": "create", "default": []}
    ((key, operation),) = made(one(rule, "c:{room}"), {"id": 7}, channel="c:1", event_id="x")
    assert key == ["k", 7]
    assert isinstance(operation, Call)
    assert (operation.function, operation.missing, operation.default) == ("module:function", Missing.CREATE, b"[]")
    assert orjson.loads(operation.event) == {"event": "e", "captures": {"room": "1"}, "data": {"id": 7}, "id": "x"}


def test_a_call_takes_the_element_along() -> None:
    rule = {"each": "{data}", "call": "module:function", "key": ["k", "{item.id}"]}
    told = [orjson.loads(operation.event)["item"] for _, operation in made(one(rule), [{"id": 1}, {"id": 2}])]
    assert told == [{"id": 1}, {"id": 2}]


class TestKeys:
    def key(self, template: Any, data: Any, **more: Any) -> Any:
        ((key, _),) = made(one({"set": {"key": template, "value": 1}}), data, **more)
        return key

    def test_captures_keep_their_types(self) -> None:
        assert self.key(["k", "{data.a}", "{data.b.c}"], {"a": 1, "b": {"c": True}}) == ["k", 1, True]
        assert self.key(["k", {"f": "{data.f}"}], {"f": {"b": 1, "a": 2}}) == ["k", {"f": {"a": 2, "b": 1}}]
        assert self.key(["k", "{data.a}"], {"a": None}) == ["k", None]
        assert self.key(["k", "{data}"], "x") == ["k", "x"]

    def test_equal_numbers_are_one_key_and_true_is_none(self) -> None:
        of = one({"set": {"key": ["k", "{data.a}", "x"], "value": 1}})
        ones = [
            route.apply(Raw(b'{"a":%b}' % a), None)[0][0]
            for route in of.route("e", None)
            for a in (b"1", b"1.0", b"true")
        ]
        assert ones == ['["k",1,"x"]', '["k",1,"x"]', '["k",true,"x"]']

    def test_and_so_in_the_commonest_rule(self) -> None:
        of = one({"set": {"key": ["k", "{data.a}"], "value": "{data}"}})
        (route,) = of.route("e", None)
        keys = [route.apply(Raw(b'{"a":%b}' % a), None)[0][0] for a in (b"1", b"1.0", b"true", b'"1"', b"[1]", b"1")]
        assert keys == ['["k",1]', '["k",1]', '["k",true]', '["k","1"]', '["k",[1]]', '["k",1]']

    def test_one_placeholder_may_be_the_key(self) -> None:
        assert self.key("{data.key}", {"key": ["a", 1]}) == ["a", 1]

    def test_the_events_name_and_id(self) -> None:
        assert self.key(["k", "{event}", "{event_id}"], {}, event_id=9) == ["k", "e", 9]

    def test_a_member_within_another(self) -> None:
        of = one({"set": {"key": ["k", "{data.a.id}"], "value": "{data.a}"}})
        assert made(of, {"a": {"id": 1, "t": 2}}) == [(["k", 1], Set(b'{"id":1,"t":2}'))]

    def test_names_that_are_no_identifiers(self) -> None:
        of = one({"set": {"key": ["k", "{data.a-b.0}"], "value": "{data.class}"}})
        assert made(of, {"a-b": {"0": 1}, "class": 2}) == [(["k", 1], Set(b"2"))]


class TestEach:
    RULE = {  # noqa: RUF012 - read only
        "each": "{data.list}",
        "set": {"key": ["m", "{data.d}", "{item.id}"], "at": "/value", "value": "{item.value}"},
    }

    def test_one_operation_per_element(self) -> None:
        assert made(one(self.RULE), {"d": 1, "list": [{"id": "a", "value": 1}, {"id": "b", "value": [2]}]}) == [
            (["m", 1, "a"], Set(b"1", "/value")),
            (["m", 1, "b"], Set(b"[2]", "/value")),
        ]

    def test_an_element_whole(self) -> None:
        of = one({"each": "{data}", "append": {"key": ["k"], "item": "{item}"}})
        assert made(of, [1, {"a": 2}]) == [(["k"], Append((b"1",))), (["k"], Append((b'{"a":2}',)))]

    def test_the_list_may_be_read_besides(self) -> None:
        of = one({"each": "{data}", "set": {"key": ["k", "{data}", "{item}"], "value": "{item}"}})
        assert made(of, [1, 2]) == [(["k", [1, 2], 1], Set(b"1")), (["k", [1, 2], 2], Set(b"2"))]
        of = one({"each": "{data.l}", "set": {"key": ["k", "{data.l}"], "value": "{item.x}"}})
        assert made(of, {"l": [{"x": 1}]}) == [(["k", [{"x": 1}]], Set(b"1"))]

    def test_a_bad_element_does_not_spoil_the_others(self) -> None:
        of = one(self.RULE)
        good = {"id": "a", "value": 1}
        assert (
            made(of, {"d": 1, "list": [good, {"id": "b"}, 7, {"id": "x" * 2000, "value": 1}, good]})
            == [(["m", 1, "a"], Set(b"1", "/value"))] * 2
        )
        assert of.dropped == {"missing_capture": 1, "bad_data": 1, "bad_key": 1}

    @pytest.mark.parametrize(
        ("data", "reason"), [({"d": 1}, "missing_capture"), ({"d": 1, "list": 7}, "bad_data"), ([], "bad_data")]
    )
    def test_no_list(self, data: Any, reason: str) -> None:
        of = one(self.RULE)
        assert made(of, data) == []
        assert of.dropped == {reason: 1}

    def test_an_empty_list_makes_nothing(self) -> None:
        of = one(self.RULE)
        assert made(of, {"d": 1, "list": []}) == []
        assert of.dropped == {}


class TestWhen:
    def count(self, when: dict[str, Any], data: Any) -> int:
        return len(made(one({"when": when, "set": {"key": ["k"], "value": "{data}"}}), data))

    @pytest.mark.parametrize(
        ("when", "data", "holds"),
        [
            ({"/a": 1}, {"a": 1}, True),
            ({"/a": 1}, {"a": 1.0}, True),
            ({"/a": 1}, {"a": True}, False),
            ({"/a": 1}, {"b": 1}, False),
            ({"/a": None}, {}, False),
            ({"/a": None}, {"a": None}, True),
            ({"/a/b": "x"}, {"a": {"b": "x"}}, True),
            ({"/a/b": "x"}, {"a": {}}, False),
            ({"/a": 1, "/b": 2}, {"a": 1, "b": 2}, True),
            ({"/a": 1, "/b": 2}, {"a": 1, "b": 3}, False),
            ({"/l/1": "x"}, {"l": ["w", "x"]}, True),
            ({"/l/1": "x"}, {"l": ["w"]}, False),
            ({"/l/1": "x"}, {"l": {"1": "x"}}, True),
            ({"": 5}, 5, True),
            ({"": 5}, 6, False),
            ({"/a": {"b": [1]}}, {"a": {"b": [1]}}, True),
            ({"/a~1b": 1}, {"a/b": 1}, True),
            ({'/a"\\b\n': 1}, {'a"\\b\n': 1}, True),
            ({"/": 1}, {"": 1}, True),
        ],
    )
    def test_conditions(self, when: dict[str, Any], data: Any, holds: bool) -> None:
        assert self.count(when, data) == holds

    def test_what_does_not_hold_is_not_dropped(self) -> None:
        of = one({"when": {"/a": 1}, "set": {"key": ["k"], "value": "{data.b}"}})
        assert made(of, {"a": 2}) == []
        assert of.dropped == {}

    def test_before_each(self) -> None:
        of = one({"when": {"/on": True}, "each": "{data.l}", "append": {"key": ["k"], "item": "{item}"}})
        assert len(made(of, {"on": True, "l": [1, 2]})) == 2
        assert made(of, {"on": False, "l": [1, 2]}) == []


def test_a_version_is_a_guard() -> None:
    of = one({"set": {"key": ["k"], "value": "{data}"}, "version": {"at": "/v", "value": "{data.v}"}})
    assert made(of, {"v": 3}) == [(["k"], Set(b'{"v":3}', guard=Guard("/v", b"3")))]
    of = one({"delete": {"key": ["k"]}, "version": {"at": "/v", "value": "{event_id}"}})
    assert made(of, {}, event_id=12) == [(["k"], Delete(guard=Guard("/v", b"12")))]


class TestDrops:
    @pytest.mark.parametrize(
        ("rule", "data", "reason"),
        [
            ({"set": {"key": ["k", "{data.id}"], "value": 1}}, {}, "missing_capture"),
            ({"set": {"key": ["k", "{data.a.b}"], "value": 1}}, {"a": {}}, "missing_capture"),
            ({"set": {"key": ["k", "{data.a.b}"], "value": 1}}, {}, "missing_capture"),
            ({"set": {"key": ["k", "{data.a.b}"], "value": 1}}, {"a": None}, "bad_data"),
            ({"set": {"key": ["k", "x{data.a}"], "value": 1}}, {"a": None}, "missing_capture"),
            ({"set": {"key": ["k", "x{data.a}"], "value": 1}}, {"a": []}, "missing_capture"),
            ({"set": {"key": ["k"], "value": "{data.a}"}}, {}, "missing_capture"),
            ({"set": {"key": ["k"], "value": ["{data.a}"]}}, {}, "missing_capture"),
            ({"set": {"key": ["k"], "at": "/{data.a}", "value": 1}}, {}, "missing_capture"),
            ({"set": {"key": ["k", "{event_id}"], "value": 1}}, {}, "missing_capture"),
            ({"remove": {"key": ["k"], "where": {"id": "{data.a}"}}}, {}, "missing_capture"),
            ({"set": {"key": ["k", "{data.id}"], "value": "{data}"}}, {}, "missing_capture"),
            ({"set": {"key": ["k", "{data.id}"], "value": "{data}"}}, [], "bad_data"),
            ({"set": {"key": "{data.key}", "value": 1}}, {"key": "text"}, "bad_key"),
            ({"set": {"key": ["k", "{data.id}"], "value": "{data}"}}, {"id": "x" * 2000}, "bad_key"),
            ({"set": {"key": ["{data.id}", "overview"], "value": "{data}"}}, {"id": "$harbor"}, "bad_key"),
            ({"append": {"key": ["{data.id}", "overview"], "item": 1}}, {"id": "$harbor"}, "bad_key"),
            ({"set": {"key": "{data.key}", "value": 1}}, {"key": ["$harbor", "overview"]}, "bad_key"),
            ({"increment": {"key": ["k"], "at": "", "by": "{data.n}"}}, {"n": "1"}, "bad_data"),
            ({"increment": {"key": ["k"], "at": "", "by": "{data.n}"}}, {"n": True}, "bad_data"),
            ({"increment": {"key": ["k"], "at": "", "by": "{data.n}"}}, b'{"n":%b}' % (b"9" * 30), "bad_data"),
            ({"set": {"key": ["k"], "value": ["{data.n}"]}}, b'{"n":%b}' % (b"9" * 30), "bad_data"),
            ({"set": {"key": ["k"], "value": ["{data.n}"]}}, b'{"n":%b}' % (b"[" * 300 + b"]" * 300), "bad_data"),
            ({"set": {"key": ["k", "{data.n}"], "value": 1}}, b'{"n":%b}' % (b"[" * 300 + b"]" * 300), "bad_key"),
            ({"set": {"key": ["k", "{data.n}"], "value": 1}}, b'{"n":%b}' % (b"9" * 400), "bad_key"),
            ({"set": {"key": ["k", "{data.n}"], "value": 1}}, b'{"n":"\\ud800"}', "bad_data"),
            ({"set": {"key": ["k", "{data.n}"], "value": 1}}, b'{"n":', "bad_data"),
        ],
    )
    def test_are_counted_by_reason(self, rule: dict[str, Any], data: Any, reason: str) -> None:
        of = one(rule)
        assert made(of, data) == []
        assert of.dropped == {reason: 1}

    def test_of_one_rule_leave_the_others_of_the_event(self) -> None:
        of = one([{"set": {"key": ["a", "{data.no}"], "value": 1}}, {"set": {"key": ["b"], "value": 1}}])
        assert made(of, {}) == [(["b"], Set(b"1"))]
        assert of.dropped == {"missing_capture": 1}

    RULES = [  # noqa: RUF012 - read only
        {"set": {"key": ["k", "{data.a}"], "value": "{data}"}},
        {"set": {"key": ["k", "x-{data.a}", {"n": "{data.b}"}], "value": {"v": "{data.b}", "t": "{data.a.c}!"}}},
        {"each": "{data.l}", "append": {"key": ["k", "{item.a}"], "item": ["{item.b}"], "at": "/{item.a}"}},
        {"when": {"/a/0": 1}, "increment": {"key": ["k"], "at": "/n", "by": "{data.b}"}},
        {"when": {"/a/b": 1}, "remove": {"key": ["k"], "where": {"x": "{data.b}"}}},
        {"merge_where": {"key": "{data.a}", "where": {"x": "{data}"}, "value": "{data.a}"}},
        {"set": {"key": ["k"], "value": "{data.b}"}, "version": {"at": "/v", "value": ["{data.a}"]}},
        {"invalidate": {"key": ["k", "{data.a}"]}},
        {"entity": {"type": "{data.a}", "value": "{data.b}"}},
        {"each": "{data.l}", "entity": {"type": "user", "value": "{item}"}},
        {"relation": {"type": "user", "id": "{data.b}"}},
        {"call": "module:function", "key": ["k", "{data.a}"]},
    ]

    @given(
        st.one_of(
            st.binary(max_size=30),
            st.recursive(
                st.sampled_from(
                    [
                        b"1",
                        b"null",
                        b"true",
                        b'"x"',
                        b"1e400",
                        b"9" * 25,
                        b"9" * 5000,
                        b'"\\ud800"',
                        b'"\xff"',
                        b"-",
                        b"1.5",
                    ]
                ),
                lambda inner: (
                    st.lists(inner, max_size=3).map(lambda items: b"[" + b",".join(items) + b"]")
                    | st.lists(st.tuples(st.sampled_from([b"a", b"b", b"l", b"c"]), inner), max_size=4).map(
                        lambda members: b"{" + b",".join(b'"%b":%b' % member for member in members) + b"}"
                    )
                ),
                max_leaves=12,
            ),
        )
    )
    def test_nothing_an_upstream_sends_is_fatal(self, data: bytes) -> None:
        document = {**streams({"source": "s", "on": {"e": self.RULES}}), **TestBroadcasts.TYPES}
        of = compile_config(load_mapping(document, {})).router("s")
        for route in of.route("e", None):
            for key, _ in route.apply(data, None):
                assert isinstance(broadcast.read(key)[1] if broadcast.is_broadcast(key) else parse(key), list)


def index(*given_streams: dict[str, Any]) -> FeedIndex:
    return compile_config(load_mapping(streams(*given_streams), {})).feeds


PROJECT = {
    "source": "s",
    "channel": "project:{id}",
    "on": {
        "u": [
            {"invalidate": {"key": ["projects", "detail", "{id}"]}},
            {"invalidate": {"key": ["lists", {"project": "{id}"}]}},
            {"invalidate": {"key": ["one", {"project": "{id}"}], "exact": True}},
        ],
        "c": [
            {"append": {"key": ["tasks", "{id}"], "item": "{data}"}},
            {"set": {"key": ["k", "{data.x}"], "value": 1}},
        ],
    },
}
NEWS = {"source": "s", "channel": "news", "on": {"e": {"set": {"key": ["news", "{data.id}"], "value": 1}}}}
HOME = {"source": "s", "channel": "home", "on": {"e": {"invalidate": {"key": ["home"]}}}, "linger": "5s"}
ALWAYS = {"source": "s", "channel": "alerts", "join": "always", "on": {"e": {"set": {"key": ["al"], "value": 1}}}}
WILD = {"source": "other", "on": {"e": {"set": {"key": ["w", "{data.id}"], "value": 1}}}}


class TestFeedIndex:
    @pytest.mark.parametrize(
        ("key", "channels"),
        [
            (["projects", "detail", "7"], ["project:7"]),
            (["projects", "detail", 7], ["project:7"]),
            (["projects", "detail", "7", "members"], ["project:7"]),
            (["projects", "detail"], []),
            (["projects", "detail", None], []),
            (["projects", "detail", {"a": 1}], []),
            (["tasks", "7"], ["project:7"]),
            (["tasks", "7", "x"], []),
            (["k", 1], []),
            (["news", 3], ["news"]),
            (["home"], ["home"]),
            (["home", "page", 2], ["home"]),
            (["al"], []),
            (["w", 1], []),
            (["lists", {"project": 7}], ["project:7"]),
            (["lists", {"project": "7", "status": "open"}, 1], ["project:7"]),
            (["lists", {"status": "open"}], []),
            (["one", {"project": "7"}], ["project:7"]),
            (["one", {"project": "7", "status": "open"}], []),
        ],
    )
    def test_which_channels_keep_a_key_live(self, key: list[Any], channels: list[str]) -> None:
        assert index(PROJECT, NEWS, HOME, ALWAYS, WILD).channels_for(key) == [("s", channel) for channel in channels]

    def test_which_channels_may_create_under_a_prefix(self) -> None:
        feeds = index(PROJECT, NEWS, HOME, ALWAYS, WILD)
        assert feeds.channels_under(["news"]) == [("s", "news")]
        assert feeds.channels_under([]) == [("s", "news"), ("s", "home")]
        assert feeds.channels_under(["projects"]) == []

    @pytest.mark.parametrize(
        ("source", "channel", "key", "fed"),
        [
            ("s", "project:7", ["tasks", "7"], True),
            ("s", "project:7", ["tasks", 7], True),
            ("s", "project:7", ["tasks", "8"], False),
            ("s", "project:7", ["projects", "detail", "7", "x"], True),
            ("s", "project:7", ["k", "any"], True),
            ("s", "elsewhere", ["tasks", "7"], False),
            ("s", None, ["tasks", "8"], True),
            ("s", None, ["other"], False),
            ("s", "home", ["home", 1], True),
            ("other", None, ["w", 1], True),
            ("other", "any", ["w", 1], True),
            ("other", None, ["tasks", "7"], False),
            ("s", "project:7", ["lists", {"project": "7", "status": "open"}], True),
            ("s", "project:7", ["lists", {"project": "8", "status": "open"}], False),
            ("s", "project:7", ["one", {"project": "7", "status": "open"}], False),
        ],
    )
    def test_what_a_gap_concerns(self, source: str, channel: str | None, key: list[Any], fed: bool) -> None:
        assert index(PROJECT, NEWS, HOME, ALWAYS, WILD).fed_by(source, channel, key) is fed

    def test_a_key_that_is_one_placeholder_may_be_any(self) -> None:
        feeds = index(HOME, {"source": "s", "channel": "c:{id}", "on": {"e": {"delete": {"key": "{data.key}"}}}})
        assert feeds.fed_by("s", "c:1", ["whatever", 1])
        assert feeds.fed_by("s", "c:1", [])
        assert feeds.channels_for(["whatever", 1]) == []

    def test_one_that_may_be_any_has_a_channel_without_captures_joined_for_every_key(self) -> None:
        exactly = {"invalidate": {"key": "{data.queryKey}", "exact": True}}
        feeds = index(NEWS, {"source": "s", "channel": "cache:invalidate", "on": {"invalidate:exact": exactly}})
        assert feeds.channels_for(["whatever", 1]) == [("s", "cache:invalidate")]
        assert feeds.channels_for(["news", 1]) == [("s", "news"), ("s", "cache:invalidate")]
        assert feeds.channels_under(["whatever"]) == [("s", "cache:invalidate")]
        assert feeds.joins_for("whatever")
        assert feeds.joins_for(None)

    def test_an_invalidation_of_everything_reaches_everything(self) -> None:
        feeds = index(NEWS, {"source": "s", "channel": "all", "on": {"e": {"invalidate": {"key": []}}}})
        assert feeds.channels_for(["news", 1]) == [("s", "news"), ("s", "all")]
        assert feeds.channels_for([5]) == [("s", "all")]
        assert feeds.fed_by("s", "all", [5])

    def test_what_it_remembers_of_channels_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cluster.core.rule.KNOWN_CHANNELS", 2)
        feeds = index(PROJECT)
        for _ in range(2):
            for number in range(5):
                assert feeds.fed_by("s", f"project:{number}", ["tasks", str(number)])
                assert not feeds.fed_by("s", f"project:{number}", ["tasks", "x"])
                assert feeds.fed_by("s", None, ["tasks", "x"])

    def test_always_joined(self) -> None:
        assert index(PROJECT, ALWAYS, WILD).always() == [("s", "alerts")]

    def test_linger(self) -> None:
        feeds = index(PROJECT, HOME)
        assert feeds.linger_ms("s", "home") == 5_000
        assert feeds.linger_ms("s", "project:1") == 30_000
