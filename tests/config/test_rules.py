"""Rules are checked against the argument table, and what passes runs."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.rules import OPTIONAL, REQUIRED, parse_rule
from cluster.core import broadcast
from cluster.core.entity_index import EntityType
from cluster.core.operation import Missing
from cluster.core.rule import Router, RuleOperation, Stream
from cluster.core.template import Hole, ListNode, Literal, Text, parse
from cluster.errors import ConfigError

KEY = ["k", "{id}"]
ENTITIES = {"user": EntityType("user"), "order": EntityType("order", "no")}
RELATIONS: dict[str, list[Any]] = {"user": [["users", "{id}"]]}


def parsed(rule: Any, *captures: str) -> RuleOperation:
    faults: list[ConfigError] = []
    operation = parse_rule("r", rule, frozenset(captures), faults, ENTITIES, RELATIONS)
    assert faults == []
    assert operation is not None
    return operation


def faults_of(rule: Any) -> list[str]:
    faults: list[ConfigError] = []
    assert (parse_rule("r", rule, frozenset({"id"}), faults, ENTITIES, RELATIONS) is None) == bool(faults)
    return [fault.message for fault in faults]


class TestGood:
    def test_defaults(self) -> None:
        assert parsed({"append": {"key": KEY, "item": "{data}"}}, "id") == RuleOperation(
            "append", ListNode((Literal("k"), Hole(("id",)))), value=Hole(("data",))
        )

    def test_every_option(self) -> None:
        operation = parsed(
            {
                "each": "{data.items}",
                "when": {"/type": "a", "": {}},
                "version": {"at": "/v", "value": "{item.v}"},
                "prepend": {
                    "key": ["k"],
                    "at": "/l/{item.id}",
                    "item": {"x": "{item.x}"},
                    "max_items": 5,
                    "by": "n",
                    "when_missing": "create",
                    "default": {"l": {}},
                },
            }
        )
        assert operation.each == Hole(("data", "items"))
        assert operation.when == (("/type", "a"), ("", {}))
        assert operation.guard == ("/v", Hole(("item", "v")))
        assert operation.at == Text(("/l/", ("item", "id"), ""))
        assert (operation.max_items, operation.by, operation.missing) == (5, "n", Missing.CREATE)
        assert operation.default == b'{"l":{}}'

    @pytest.mark.parametrize("kind", REQUIRED)
    def test_the_least_each_operation_needs(self, kind: str) -> None:
        least: dict[str, Any] = {"key": ["k"], "value": 1, "item": 1, "where": {"id": 1}, "at": "/n"}
        least |= {"type": "user", "id": "{data.id}", "function": "module:function"}
        operation = parsed({kind: {name: least[name] for name in REQUIRED[kind]}})
        assert operation.kind == kind
        assert operation.missing is None

    def test_null_is_a_value(self) -> None:
        assert parsed({"set": {"key": ["k"], "value": None}}).value == Literal(None)
        assert parsed({"delete": {"key": ["k"]}}).value is None

    def test_the_key_may_be_one_placeholder(self) -> None:
        assert parsed({"delete": {"key": "{data.key}"}}).key == Hole(("data", "key"))

    def test_invalidate(self) -> None:
        operation = parsed({"invalidate": {"key": [], "exact": True, "refetch": "all"}})
        assert (operation.exact, operation.refetch) == (True, "all")

    def test_an_entity_knows_the_members_that_identify(self) -> None:
        operation = parsed({"entity": {"type": "{data.kind}", "value": "{data.value}"}})
        assert operation.type == Hole(("data", "kind"))
        assert dict(operation.identities) == {"user": "id", "order": "no"}

    def test_a_relation(self) -> None:
        operation = parsed({"relation": {"type": "user", "id": "{data.id}", "refetch": "none"}})
        assert (operation.type, operation.identity) == (Literal("user"), Hole(("data", "id")))
        assert operation.refetch == "none"

    def test_a_call_may_be_written_flat(self) -> None:
        deep = {"call": {"function": "a.b:c.d", "key": KEY, "when_missing": "create", "default": []}}
        flat = {"call": "a.b:c.d", "key": KEY, "when_missing": "create", "default": []}
        assert parsed(flat, "id") == parsed(deep, "id")
        assert parsed(flat, "id").function == "a.b:c.d"


FAULTS: list[tuple[Any, str]] = [
    ([], "r: expected a rule such as {set: {key: [...], value: ...}}, got []"),
    ({"each": "{data}"}, "r: a rule has one operation, got 0"),
    ({"set": {"key": ["k"], "value": 1}, "delete": {"key": ["k"]}}, "r: a rule has one operation, got 2"),
    ({"entity": {"type": "user"}}, "r.entity.value: required"),
    ({"entity": {"type": "task", "value": "{data}"}}, "r.entity.type: no such entity, there are order, user, got 'task'"),
    ({"entity": {"type": 5, "value": "{data}"}}, "r.entity.type: no such entity, there are order, user, got 5"),
    ({"entity": {"type": "{x}", "value": "{data}"}}, "r.entity.type: no such placeholder {x}, there are data, event, event_id, id"),
    ({"entity": {"type": "user", "value": 1, "key": ["k"]}}, "r.entity.key: unknown key, expected one of tenant, type, value"),
    ({"relation": {"type": "user"}}, "r.relation.id: required"),
    ({"relation": {"type": "order", "id": 1}}, "r.relation.type: no such relation, there are user, got 'order'"),
    ({"relation": {"type": "user", "id": "{x}"}}, "r.relation.id: no such placeholder {x}, there are data, event, event_id, id"),
    ({"relation": {"type": "user", "id": 1, "refetch": "some"}}, "r.relation.refetch: expected one of active, inactive, all, none, got 'some'"),
    ({"call": "a:b"}, "r.call.key: required"),
    ({"call": {"key": ["k"]}}, "r.call.function: required"),
    ({"call": "a.b", "key": ["k"]}, "r.call.function: expected module:function, got 'a.b'"),
    ({"call": "a:b", "key": ["k"], "at": "/x"}, "r.at: unknown operation, expected one of"),
    ({"call": "a:b", "key": ["k"], "version": {"at": "/v", "value": 1}}, "r.version: an operation of the kind call has no version"),
    ({"put": {}}, f"r.put: unknown operation, expected one of {', '.join(REQUIRED)}"),
    ({"delete": None}, "r.delete: expected the operation's arguments, got None"),
    ({"delete": {}}, "r.delete.key: required"),
    ({"set": {"key": ["k"]}}, "r.set.value: required"),
    ({"append": {"key": ["k"]}}, "r.append.item: required"),
    ({"increment": {"key": ["k"]}}, "r.increment.at: required"),
    ({"delete": {"key": ["k"], "value": 1}}, "r.delete.value: unknown key, expected one of at, key"),
    ({"upsert": {"key": ["k"], "item": 1, "max_items": 5}}, "r.upsert.max_items: unknown key, expected one of at, by, default, item, key, when_missing"),
    ({"delete": {"key": ["$harbor", "{id}"]}}, "r.delete.key: keys under \"$harbor\" are the cluster's own"),
    ({"delete": {"key": "k"}}, "r.delete.key: expected an array or one placeholder, got 'k'"),
    ({"delete": {"key": "k-{id}"}}, "r.delete.key: expected an array or one placeholder, got 'k-{id}'"),
    ({"delete": {"key": ["x" * 2000]}}, "r.delete.key: a query key may have 1024 bytes, this one has 2004"),
    ({"delete": {"key": ["k", "{name}"]}}, "r.delete.key: no such placeholder {name}, there are data, event, event_id, id"),
    ({"delete": {"key": ["k", "{item}"]}}, "r.delete.key: no such placeholder {item}, there are data, event, event_id, id"),
    ({"delete": {"key": ["k", "{id.x}"]}}, "r.delete.key: {id} has no members, got {id.x}"),
    ({"delete": {"key": ["k"], "at": "a"}}, "r.delete.at: a JSON Pointer is empty or begins with '/', got 'a'"),
    ({"delete": {"key": ["k"], "at": 5}}, "r.delete.at: a JSON Pointer is a string, got 5"),
    ({"delete": {"key": ["k"], "at": "{data}"}}, "r.delete.at: a JSON Pointer is empty or begins with '/', got '{data}'"),
    ({"set": {"key": ["k"], "value": "{x}"}}, "r.set.value: no such placeholder {x}, there are data, event, event_id, id"),
    ({"append": {"key": ["k"], "item": "{x}"}}, "r.append.item: no such placeholder {x}, there are data, event, event_id, id"),
    ({"remove": {"key": ["k"], "where": {}}}, "r.remove.where: expected an object of members to match, got {}"),
    ({"remove": {"key": ["k"], "where": "{data}"}}, "r.remove.where: expected an object of members to match, got '{data}'"),
    ({"increment": {"key": ["k"], "at": "", "by": "1"}}, "r.increment.by: expected a number or one placeholder, got '1'"),
    ({"increment": {"key": ["k"], "at": "", "by": True}}, "r.increment.by: expected a number or one placeholder, got True"),
    ({"increment": {"key": ["k"], "at": "", "by": "{id}"}}, "r.increment.by: {id} is text, expected a number"),
    ({"increment": {"key": ["k"], "at": "", "by": "{event}"}}, "r.increment.by: {event} is text, expected a number"),
    ({"upsert": {"key": ["k"], "item": 1, "by": 5}}, "r.upsert.by: expected a member name, got 5"),
    ({"append": {"key": ["k"], "item": 1, "max_items": 0}}, "r.append.max_items: expected a whole number above 0, got 0"),
    ({"set": {"key": ["k"], "value": 1, "when_missing": "no"}}, "r.set.when_missing: expected skip or create, got 'no'"),
    ({"merge": {"key": ["k"], "value": {}, "default": {}}}, "r.merge.default: takes effect only with when_missing: create"),
    ({"set": {"key": ["k"], "value": {}, "when_missing": "skip", "default": {}}}, "r.set.default: takes effect only with when_missing: create"),
    ({"set": {"key": ["k"], "at": "/a", "value": 1, "default": ["{data}"]}}, "r.set.default: takes no placeholders, got {data}"),
    ({"invalidate": {"key": ["k"], "exact": 1}}, "r.invalidate.exact: expected true or false, got 1"),
    ({"invalidate": {"key": ["k"], "refetch": "some"}}, "r.invalidate.refetch: expected one of active, inactive, all, none, got 'some'"),
    ({"each": "{id}", "delete": {"key": ["k"]}}, "r.each: expected a placeholder of the event's data, got '{id}'"),
    ({"each": ["{data}"], "delete": {"key": ["k"]}}, "r.each: expected a placeholder of the event's data, got ['{data}']"),
    ({"each": "{item}", "delete": {"key": ["k"]}}, "r.each: no such placeholder {item}, there are data, event, event_id, id"),
    ({"when": [], "delete": {"key": ["k"]}}, "r.when: expected {pointer: value}, got []"),
    ({"when": {"a": 1}, "delete": {"key": ["k"]}}, "r.when.a: a JSON Pointer is empty or begins with '/', got 'a'"),
    ({"when": {"/a": "{id}"}, "delete": {"key": ["k"]}}, "r.when./a: takes no placeholders, got {id}"),
    ({"version": 5, "delete": {"key": ["k"]}}, "r.version: expected {at, value}, got 5"),
    ({"version": {"at": "/v"}, "delete": {"key": ["k"]}}, "r.version: expected {at, value}, got {'at': '/v'}"),
    ({"version": {"at": "v", "value": 1}, "delete": {"key": ["k"]}}, "r.version.at: a JSON Pointer is empty or begins with '/', got 'v'"),
    ({"version": {"at": "/{id}", "value": 1}, "delete": {"key": ["k"]}}, "r.version.at: takes no placeholders, got {id}"),
    ({"version": {"at": "/v", "value": "{no}"}, "delete": {"key": ["k"]}}, "r.version.value: no such placeholder {no}, there are data, event, event_id, id"),
    ({"version": {"at": "/v", "value": 1}, "invalidate": {"key": ["k"]}}, "r.version: an operation of the kind invalidate has no version"),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "message"), FAULTS, ids=[str(number) for number in range(len(FAULTS))])
def test_a_fault_says_where_and_why(rule: Any, message: str) -> None:
    assert any(found.startswith(message) for found in faults_of(rule))
    assert len(faults_of(rule)) <= 2


scalars = st.sampled_from([None, True, 0, -1, 2.5, "", "a", "/a", "/a/{id}", "{id}", "{data}", "{data.a}", "{item.x}", "x{event}", "skip", "create"])  # fmt: skip
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["id", "/a", "/", "{id}"]), inner, max_size=2)
)  # fmt: skip


@st.composite
def rules(draw: Any) -> Any:
    kind = draw(st.sampled_from(sorted(REQUIRED)))
    usual: dict[str, Any] = {
        "key": st.sampled_from([["k"], ["k", "{id}"], ["k", "{data.a}"], "{data}"]),
        "at": st.sampled_from(["", "/a", "/{data.a}"]),
        "type": st.sampled_from(["user", "order", "{data.a}"]),
        "id": st.sampled_from(["{data.a}", "{data}", 7]),
        "function": st.just("module:function"),
    }
    optional = sorted(OPTIONAL[kind])
    names = [*sorted(REQUIRED[kind]), *(draw(st.lists(st.sampled_from(optional), unique=True)) if optional else [])]
    rule = {kind: {name: draw(values | usual.get(name, values)) for name in names}}
    for beside, usually in (("each", "{data}"), ("when", {"/a": 1}), ("version", {"at": "/v", "value": "{data.a}"})):
        if draw(st.booleans()):
            rule[beside] = draw(values | st.just(usually))
    return rule


BROADCASTS = {"invalidate": "under", "entity": "entity", "relation": "relation"}
DATA = [b"{}", b"[]", b"1", b'{"a":1}', b'{"a":"x"}', b'[{"x":1},2]', b'{"a":{"x":null}}', b'{"a":[]}', b'{"a":"user"}']


@given(rules(), st.sampled_from(DATA))
def test_what_passes_runs(rule: Any, data: bytes) -> None:
    faults: list[ConfigError] = []
    operation = parse_rule("r", rule, frozenset({"id"}), faults, ENTITIES, RELATIONS)
    if operation is None:
        assert faults
        return
    router = Router("s", None, [Stream("s", parse("c:{id}"), {"e": (operation,)})])
    for route in router.route("e", "c:7"):
        for key, _ in route.apply(data, "9"):
            assert key.startswith("[") or broadcast.read(key)[0] == BROADCASTS[operation.kind]
