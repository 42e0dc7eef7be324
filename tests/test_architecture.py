"""The architecture, held by a walk over the syntax trees of `cluster/`: who may import whom, and what may not exist.

Rules are functions from a parsed module to complaints, so that each is also tried on sources that break it.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent / "cluster"
LAYERS = [
    {"errors", "clock"},
    {"core"},
    {"wire", "config"},
    {"app"},
    {"gateway", "sources", "services", "storage", "observability", "simulation", "client"},
    {"actors", "verify"},
    {"cli", "demo"},
]
"""From the bottom up. A package imports itself and what is below it, never a sibling."""
RANK = {package: rank for rank, packages in enumerate(LAYERS) for package in packages}
CORE_MAY_IMPORT = {
    "base64",
    "bisect",
    "collections",
    "contextlib",
    "collections.abc",
    "dataclasses",
    "email.utils",
    "enum",
    "functools",
    "hashlib",
    "hmac",
    "ipaddress",
    "heapq",
    "itertools",
    "json",
    "math",
    "msgspec",
    "operator",
    "orjson",
    "re",
    "struct",
    "typing",
    "urllib.parse",
    "zlib",
}
"""What computes from its arguments alone. Not on it, on purpose: anything that waits, reads a clock, rolls dice, logs or opens."""
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "constants"}
COMFORTABLE_LINES = 450
ONE_THING = re.compile(r"\bone thing\b")
"""A longer module's docstring says why it is "one thing"."""


class Module(NamedTuple):
    """A module as the rules see it."""

    path: str
    """Below `cluster/`, such as `core/window.py`."""
    source: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """The layer's member it belongs to; empty for `cluster/__init__.py`."""
        head = self.path.split("/", maxsplit=1)[0].removesuffix(".py")
        return "" if head == "__init__" else head


Rule = Callable[[Module], Iterator[str]]


def module(path: str, source: str) -> Module:
    return Module(path, source, ast.parse(source))


def imports(of: Module) -> Iterator[tuple[int, str, list[str]]]:
    """Every import wherever it stands, as (line, absolute module, names taken from it)."""
    here = ["cluster", *of.path.split("/")[:-1]]
    for node in ast.walk(of.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            names = [alias.name for alias in node.names]
            if name == "cluster":  # `from cluster import core`: each name is a module
                yield from ((node.lineno, f"cluster.{taken}", []) for taken in names)
            else:
                yield node.lineno, name, names


def imports_run_downward(of: Module) -> Iterator[str]:
    for line, name, _ in imports(of):
        root, _, rest = name.partition(".")
        target = rest.split(".", maxsplit=1)[0]
        if root != "cluster" or target == of.package or target.startswith("__"):
            continue
        if target not in RANK:
            yield f"{of.path}:{line} imports {name}, which is in no layer"
        elif of.package not in RANK:
            yield f"{of.path}:{line} imports {name}, but is itself in no layer"
        elif RANK[target] == RANK[of.package]:
            yield f"{of.path}:{line} imports its sibling {name}"
        elif RANK[target] > RANK[of.package]:
            yield f"{of.path}:{line} imports {name}, which is above it"


def everything_is_in_a_layer(of: Module) -> Iterator[str]:
    if of.package and of.package not in RANK:
        yield f"{of.path}: {of.package} is in no layer"


def core_is_pure(of: Module) -> Iterator[str]:
    if of.package != "core":
        return
    for line, name, names in imports(of):
        if name == "cluster.clock" and set(names) <= {"Millis"}:
            continue
        if name.startswith("cluster.") and name != "cluster.clock":
            continue
        if name not in CORE_MAY_IMPORT:
            yield f"{of.path}:{line} imports {name}"


def only_actors_import_ray(of: Module) -> Iterator[str]:
    if of.package == "actors":
        return
    for line, name, _ in imports(of):
        if name.split(".")[0] == "ray":
            yield f"{of.path}:{line} imports {name}"


def remote_calls_stand_behind_handles(of: Module) -> Iterator[str]:
    if of.path == "actors/handles.py":
        return
    for node in ast.walk(of.tree):
        # `ray.remote(...)`, `@ray.remote` and `handle.call.remote(...)` alike.
        if isinstance(node, ast.Attribute) and node.attr == "remote":
            yield f"{of.path}:{node.lineno} uses .remote"


def modules_are_named_for_what_they_hold(of: Module) -> Iterator[str]:
    for part in of.path.removesuffix(".py").split("/"):
        if part in VAGUE:
            yield f"{of.path}: {part} names nothing"


def modules_say_what_they_are_for(of: Module) -> Iterator[str]:
    docstring = ast.get_docstring(of.tree)
    if docstring is None:
        yield f"{of.path} has no docstring"
        return
    lines = len(of.source.splitlines())
    if lines > COMFORTABLE_LINES and not ONE_THING.search(" ".join(docstring.split())):
        yield f"{of.path} has {lines} lines, and its docstring does not say why it is one thing"


RULES: list[Rule] = [
    imports_run_downward,
    everything_is_in_a_layer,
    core_is_pure,
    only_actors_import_ray,
    remote_calls_stand_behind_handles,
    modules_are_named_for_what_they_hold,
    modules_say_what_they_are_for,
]


@pytest.fixture(scope="module")
def modules() -> list[Module]:
    return [
        module(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in sorted(ROOT.rglob("*.py"))
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_architecture_holds(rule: Rule, modules: list[Module]) -> None:
    assert len(modules) > 50
    complaints = [complaint for each in modules for complaint in rule(each)]
    assert not complaints, "\n" + "\n".join(complaints)


BREAKS: list[tuple[Rule, str, str]] = [
    (imports_run_downward, "core/window.py", "from cluster.wire.blob import encode_message"),
    (imports_run_downward, "core/window.py", "from cluster import actors"),
    (imports_run_downward, "core/window.py", "from ..gateway import server"),
    (imports_run_downward, "gateway/server.py", "def f():\n    import cluster.sources.sse"),
    (imports_run_downward, "wire/blob.py", "from cluster.config import load"),
    (imports_run_downward, "errors.py", "from cluster.clock import Millis"),
    (imports_run_downward, "gateway/server.py", "from cluster.elsewhere import x"),
    (everything_is_in_a_layer, "elsewhere/thing.py", ""),
    (core_is_pure, "core/window.py", "import time"),
    (core_is_pure, "core/window.py", "def f():\n    from random import random"),
    (core_is_pure, "core/window.py", "import logging"),
    (core_is_pure, "core/window.py", "import asyncio"),
    (core_is_pure, "core/window.py", "import urllib.request"),
    (core_is_pure, "core/window.py", "from datetime import datetime"),
    (core_is_pure, "core/window.py", "from cluster.clock import SystemClock"),
    (only_actors_import_ray, "cli/up.py", "import ray"),
    (only_actors_import_ray, "gateway/server.py", "def f():\n    from ray.exceptions import RayError"),
    (remote_calls_stand_behind_handles, "actors/shard.py", "handle.call.remote(1)"),
    (remote_calls_stand_behind_handles, "actors/shard.py", "@ray.remote\nclass Shard: ..."),
    (modules_are_named_for_what_they_hold, "core/utils.py", ""),
    (modules_are_named_for_what_they_hold, "gateway/common/json.py", ""),
    (modules_say_what_they_are_for, "core/window.py", "import math"),
    (modules_say_what_they_are_for, "core/window.py", '"""Windows."""\n' + "x = 1\n" * 450),
]


@pytest.mark.parametrize(("rule", "path", "source"), BREAKS)
def test_each_rule_sees_what_breaks_it(rule: Rule, path: str, source: str) -> None:
    assert list(rule(module(path, source)))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "core/window.py",
            '"""Windows."""\nimport math\nfrom cluster.clock import Millis\nfrom cluster.core.fold import Fold',
        ),
        ("cli/up.py", '"""Up."""\nfrom cluster import __version__\nfrom cluster.actors import deploy'),
        ("actors/handles.py", '"""Handles."""\nimport ray\nray.get(handle.call.remote())'),
        ("core/window.py", '"""Windows. It is one\nthing because."""\n' + "x = 1\n" * 450),
    ],
)
def test_no_rule_minds_what_is_right(path: str, source: str) -> None:
    assert [complaint for rule in RULES for complaint in rule(module(path, source))] == []
