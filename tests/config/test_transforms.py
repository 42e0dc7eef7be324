"""Transforms of streams, as a file says them: what they become, and each fault with path, reason and value."""

from typing import Any

import msgspec
import pytest

from cluster.config import load_mapping
from cluster.config.load import ConfigFaults
from cluster.config.model import Config
from cluster.core.transform import Transform

AT = "streams.0.transform"


def load(transform: Any, events: tuple[str, ...] = ("e",)) -> Config:
    rules = {event: {"set": {"key": ["k"], "value": "{data}"}} for event in events}
    stream = {"source": "s", "on": rules, "transform": transform}
    return load_mapping({"sources": {"s": {"type": "websocket", "url": "ws://x"}}, "streams": [stream]}, {})


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"when": {"/a": 1, "": None}}, Transform(when={"/a": 1, "": None})),
        ({"function": "a.b:c"}, Transform(function="a.b:c")),
        ({"pick": ["a", "b"]}, Transform(pick=("a", "b"))),
        ({"pick": {"a": "/x/0", "b": ""}}, Transform(pick={"a": "/x/0", "b": ""})),
        ({"rename": {"a": "b", "b": "a"}}, Transform(rename={"a": "b", "b": "a"})),
        ({"pick": ["a", "b"], "rename": {"a": "b", "b": "a"}}, Transform(pick=("a", "b"), rename={"a": "b", "b": "a"})),
        ({"pick": {"a": "/x"}, "rename": {"a": "x"}}, Transform(pick={"a": "/x"}, rename={"a": "x"})),
        ({"event": {"E": "e", "F": "e"}}, Transform(event={"E": "e", "F": "e"})),
    ],
)
def test_a_transform(given: Any, made: Transform) -> None:
    config = load(given)
    assert config.streams[0].transform == made
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=Config) == config


def test_events_may_change_names_among_each_other() -> None:
    assert load({"event": {"e": "f", "f": "e"}}, ("e", "f")).streams[0].transform is not None


@pytest.mark.parametrize(
    ("given", "path", "reason"),
    [
        (5, "", "expected one or more of event, when, function, pick, rename, got 5"),
        ({}, "", "expected one or more of event, when, function, pick, rename, got {}"),
        (None, "", "expected one or more of event, when, function, pick, rename, got None"),
        ({"pik": ["a"]}, ".pik", "unknown key, did you mean pick?"),
        ({"zzz": 1}, ".zzz", "unknown key, expected event, when, function, pick, rename"),
        ({"when": ["/a"]}, ".when", "expected {pointer: value}, got ['/a']"),
        ({"when": {}}, ".when", "expected {pointer: value}, got {}"),
        ({"when": {"a": 1}}, ".when.a", "a JSON Pointer is empty or begins with '/', got 'a'"),
        ({"when": {"/a~2": 1}}, ".when./a~2", "in a JSON Pointer '~' is written '~0', got '/a~2'"),
        ({"when": {"/a": "{id}"}}, ".when./a", "takes no placeholders, got {id}"),
        ({"function": "f"}, ".function", "expected module:function, got 'f'"),
        ({"function": None}, ".function", "expected module:function, got None"),
        ({"pick": "a"}, ".pick", "expected a list of members or {name: pointer}, got 'a'"),
        ({"pick": []}, ".pick", "expected a list of members or {name: pointer}, got []"),
        ({"pick": {}}, ".pick", "expected a list of members or {name: pointer}, got {}"),
        ({"pick": ["a", 1]}, ".pick.1", "expected a member's name, got 1"),
        ({"pick": ["a", [1]]}, ".pick.1", "expected a member's name, got [1]"),
        ({"pick": [""]}, ".pick.0", "expected a member's name, got ''"),
        ({"pick": ["a", "a"]}, ".pick.1", "the member 'a' is named twice"),
        ({"pick": {"a": "b"}}, ".pick.a", "a JSON Pointer is empty or begins with '/', got 'b'"),
        ({"pick": {"a": 5}}, ".pick.a", "a JSON Pointer is a string, got 5"),
        ({"rename": ["a"]}, ".rename", "expected {theirs: ours}, got ['a']"),
        ({"rename": {"a": 5}}, ".rename.a", "expected a name, got 5"),
        ({"rename": {"a": ""}}, ".rename.a", "expected a name, got ''"),
        ({"rename": {"a": "c", "b": "c"}}, ".rename.b", "'a' becomes 'c' already"),
        ({"pick": ["a"], "rename": {"b": "c"}}, ".rename.b", "'pick' leaves no member 'b'"),
        ({"pick": {"a": "/b"}, "rename": {"b": "c"}}, ".rename.b", "'pick' leaves no member 'b'"),
        ({"pick": ["a", "b"], "rename": {"a": "b"}}, ".rename.a", "'pick' leaves a member 'b' already"),
        ({"event": []}, ".event", "expected {theirs: ours}, got []"),
        ({"event": {"E": 1}}, ".event.E", "expected a name, got 1"),
        ({"event": {"E": "f"}}, ".event.E", "there are no rules for the event 'f'"),
        ({"event": {"f": "e"}}, ".event.f", "its rules would never be used, since its name becomes 'e'"),
    ],
)
def test_a_fault(given: Any, path: str, reason: str) -> None:
    events = ("e", "f") if path == ".event.f" else ("e",)
    with pytest.raises(ConfigFaults) as raised:
        load(given, events)
    assert [(fault.path, fault.message) for fault in raised.value.faults] == [(AT + path, f"{AT}{path}: {reason}")]


def test_all_faults_are_found_at_once() -> None:
    with pytest.raises(ConfigFaults) as raised:
        load({"when": 1, "pick": 2, "function": 3})
    assert [fault.path for fault in raised.value.faults] == [f"{AT}.function", f"{AT}.when", f"{AT}.pick"]
