"""A schema says where variables are not what they have to be, and why."""

from typing import Any

import pytest

from cluster.core.variables import TYPES, Schema

TASK = Schema(
    ("object",),
    required=("title",),
    properties=(
        ("title", Schema(("string",), length=(1, 5))),
        ("points", Schema(("integer", "null"), range=(0, 10))),
        ("status", Schema(enum=("todo", "done", 1))),
        ("tags", Schema(("array",), items=Schema(("string",)))),
        ("a/b", Schema(("object",), properties=(("x", Schema(("boolean",))),), is_open=False)),
    ),
)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ({"title": "T"}, None),
        ({"title": "T", "points": 10.0, "status": 1.0, "tags": [], "a/b": {"x": True}, "more": [1]}, None),
        ({"title": "T", "points": None}, None),
        ([], ("", "expected object, got []")),
        ({}, ("/title", "required")),
        ({"title": ""}, ("/title", "expected at least 1 characters, got 0")),
        ({"title": "sixsix"}, ("/title", "expected at most 5 characters, got 6")),
        ({"title": 5}, ("/title", "expected string, got 5")),
        ({"title": "T", "points": 1.5}, ("/points", "expected integer or null, got 1.5")),
        ({"title": "T", "points": True}, ("/points", "expected integer or null, got True")),
        ({"title": "T", "points": -1}, ("/points", "expected at least 0, got -1")),
        ({"title": "T", "points": 11}, ("/points", "expected at most 10, got 11")),
        ({"title": "T", "status": True}, ("/status", "expected one of ['todo', 'done', 1], got True")),
        ({"title": "T", "tags": ["a", 1]}, ("/tags/1", "expected string, got 1")),
        ({"title": "T", "a/b": {"x": 1}}, ("/a~1b/x", "expected boolean, got 1")),
        ({"title": "T", "a/b": {"y": 1}}, ("/a~1b/y", "unknown, there are x")),
    ],
)
def test_what_fits_and_what_does_not(value: Any, fault: Any) -> None:
    assert TASK.fault(value) == fault


SAMPLES: dict[str, list[Any]] = {
    "object": [{}],
    "array": [[]],
    "string": [""],
    "number": [1, 1.5],
    "integer": [1, 1.0],
    "boolean": [True],
    "null": [None],
}


@pytest.mark.parametrize("name", TYPES)
def test_types(name: str) -> None:
    fitting = [each for other in SAMPLES for each in SAMPLES[other] if Schema((name,)).fault(each) is None]
    assert (
        fitting == SAMPLES[name]
        if name not in ("number", "integer")
        else all(isinstance(each, int | float) and not isinstance(each, bool) for each in fitting)
    )
    assert Schema().fault(SAMPLES[name][0]) is None
