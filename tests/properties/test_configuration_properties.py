"""Configurations that are nearly right: whatever is left out of one, or is of another type in it, is named as a fault."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.config import compile_config, load_mapping, read_document
from cluster.config.load import ConfigFaults, _UniqueKeyLoader
from cluster.errors import ConfigError

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "UPSTREAM_URL": "http://127.0.0.1:1",
    "UPSTREAM_WS": "ws://127.0.0.1:1/ws",
    "API_URL": "http://127.0.0.1:1",
    "WS_URL": "ws://127.0.0.1:1",
}
SOURCES = {"events": {"type": "websocket", "url": "ws://127.0.0.1:1"}}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SHOWN = [
    yaml.load(text, Loader=_UniqueKeyLoader)
    for page in PAGES
    for text in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
]
RICH = {
    "cluster": {"ingestors": {"min": 1, "max": 2, "target": 0.5, "cool_down": "1m"}, "gateways": {"max": 2}},
    "gateway": {"origins": ["https://a.example"], "limits": {"requests": 5, "idle": "5s"}, "trusted_proxies": ["::1"]},
    "storage": {"history": {"max_bytes": "1MiB"}, "nodes": ["a"]},
    "defaults": {"stale_time": "1s", "retry": 2},
    "cache": {"max_bytes": "1MiB"},
    "services": {"api": {"base_url": "http://127.0.0.1:1", "headers": {"a": "b"}, "timeout": "1s"}},
    "sources": {
        **SOURCES,
        "ticks": {"type": "websocket", "url": "ws://127.0.0.1:1/{partition}", "partitions": 2},
        "sse": {"type": "sse", "url": "http://127.0.0.1:1", "envelope": {"event": "e", "channel": "c"}},
        "io": {
            "type": "websocket",
            "url": "ws://127.0.0.1:1",
            "dialect": "socket.io",
            "subscribe": ["join", "{channel}"],
            "envelope": {"id": "id"},
        },
    },
    "entities": {"user": {"keys": ["owner"], "queries": [["users"]]}},
    "relations": {"project": [["projects", "{id}"], {"contains": "projects"}]},
    "queries": [
        {"key": ["a", "{id}"], "service": "api", "path": "/a/{id}", "params": {"x": "{id}"}},
        {"key": ["feed"], "service": "api", "path": "/f", "infinite": {"param": "offset", "page_size": 5}},
    ],
    "streams": [
        {
            "source": "events",
            "channel": "project:{id}",
            "batching": {"mode": "debounce", "max_wait": "2s"},
            "transform": {"when": {"/a": 1}, "pick": {"id": "/id"}, "rename": {"id": "name"}, "event": {"x": "e"}},
            "on": {
                "task:created": {"append": {"key": ["a", "{id}"], "at": "/tasks", "item": "{data}", "max_items": 5}},
                "e": [
                    {"each": "{data.items}", "upsert": {"key": ["a", "{item.id}"], "item": "{item}"}},
                    {
                        "when": {"/a": 1},
                        "set": {"key": ["b"], "value": 1},
                        "version": {"at": "/v", "value": "{data.v}"},
                    },
                    {"merge_where": {"key": ["a", "{id}"], "where": {"id": "{data.id}"}, "value": {}}},
                ],
                "user": {"entity": {"type": "user", "value": "{data}"}},
                "gone": {"relation": {"type": "project", "id": "{id}"}},
                "up": {
                    "increment": {"key": ["n"], "at": "/n", "by": "{data.n}", "when_missing": "create", "default": {}}
                },
                "f": {"call": "a.b:c", "key": ["a", "{id}"]},
            },
        },
    ],
    "mutations": {
        "edit": {
            "request": {"service": "api", "method": "PATCH", "path": "/a/{id}", "body": "{variables}", "omit": ["id"]},
            "optimistic": [{"merge": {"key": ["a", "{id}"], "value": "{variables}"}}],
            "result": [{"each": "{response.items}", "set": {"key": ["a", "{item.id}"], "value": "{item}"}}],
            "confirm_on": {"stream": "project:{id}", "event": "e", "where": {"id": "{id}"}},
            "invalidate": [["a", "{id}"]],
            "variables": {"type": "object", "required": ["id"], "properties": {"id": {"type": ["string", "null"]}}},
            "temp_id": "{variables.id}",
            "scope": "a:{id}",
        },
    },
    "resources": {
        "notes": {
            "service": "api",
            "path": "/notes",
            "lists": [{}, {"owner": "{owner}"}],
            "stream": {"source": "events", "channel": "notes:{owner}", "events": {"created": "n:new"}},
        },
    },
    "presence": {"doc:{id}": {"heartbeat": "1s", "timeout": "3s"}},
}
TENANTED = {
    "gateway": {"tenant_claim": "org", "auth": {"mode": "jwt", "algorithms": ["HS256"], "secret": "x" * 32}},
    "services": RICH["services"],
    "sources": SOURCES,
    "entities": {"user": {}},
    "relations": {"project": [["{tenant}", "projects", "{id}"]]},
    "queries": [{"key": ["{tenant}", "a"], "service": "api", "path": "/{tenant}/a"}],
    "streams": [
        {
            "source": "events",
            "channel": "t:{t}",
            "on": {
                "e": {"set": {"key": ["{t}", "a"], "value": "{data}"}},
                "u": {"entity": {"type": "user", "value": "{data}", "tenant": "{t}"}},
            },
        },
    ],
}
DEMO = read_document(ROOT / "cluster" / "demo" / "harbor.yaml")
SEEDS = [RICH, TENANTED, DEMO, *SHOWN]
"""Those that are shown are parts of a configuration, some of them without what they refer to."""
DROPPED = object()
OTHERS = [
    *(None, True, 0, -1, 1.5, 10**12, "", "text", "/a", "{id}", "{data.a}", "1s", "a.b:c", "{", "\0"),
    *([], [None], ["a"], ["{id}"], [[]], [{}], {}, {"a": None}, {"id": "{id}"}, {"": {}}, {"set": None}, {"set": {}}),
]


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where there is anything in a document."""
    if path:
        yield path
    for name, each in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(each, (*path, name))


def changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The document with something else there, or without it."""
    made = at = copy.deepcopy(document)
    for name in path[:-1]:
        at = at[name]
    if value is DROPPED:
        del at[path[-1]]
    else:
        at[path[-1]] = copy.deepcopy(value)
    return made


@st.composite
def documents(draw: st.DrawFn) -> Any:
    document = draw(st.sampled_from(SEEDS))
    for _ in range(draw(st.integers(1, 3))):
        there = list(places(document))
        if there:
            document = changed(document, draw(st.sampled_from(there)), draw(st.sampled_from([DROPPED, *OTHERS])))
    return document


@pytest.mark.parametrize("document", [RICH, TENANTED, DEMO])
def test_the_seeds_are_configurations(document: Any) -> None:
    load_mapping(document, ENVIRONMENT)


def faults(document: Any) -> list[ConfigError]:
    """What is wrong with a document; one with which nothing is can be made rules of."""
    try:
        config = load_mapping(document, ENVIRONMENT)
    except ConfigFaults as caught:
        return caught.faults
    compile_config(config)
    return []


@settings(max_examples=300)
@given(documents())
@example(changed(RICH, ("streams", 0, "on"), {"task:created": None}))
@example(changed(RICH, ("gateway", "auth"), {"mode": "api_keys", "keys_file": "\0"}))
@example(changed(RICH, ("gateway", "auth"), {"mode": "api_keys", "keys_file": "none", "revoked_file": "\0"}))
def test_what_is_nearly_a_configuration_is_one_or_has_faults(document: Any) -> None:
    assert all(isinstance(fault.path, str) and fault.reason for fault in faults(document))
