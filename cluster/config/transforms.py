"""Transforms of the configuration: checked, and turned into `core.transform.Transform`s."""

import difflib
from collections.abc import Callable, Collection
from typing import Any

from cluster.config.rules import FUNCTION
from cluster.core import template
from cluster.core.json_pointer import tokens
from cluster.core.transform import Transform
from cluster.errors import ConfigError, OperationError

STEPS = ("event", "when", "function", "pick", "rename")
"""In the order in which they are done."""


def parse_transform(events: Collection[str], faults: list[ConfigError], path: str, value: Any) -> Transform | None:
    """Check a stream's transform; `events` are those that its rules name. Faults are added to `faults`.

    Raises:
        ConfigError: it is no transform at all.
    """
    if not isinstance(value, dict) or not value:
        raise ConfigError(path, f"expected one or more of {', '.join(STEPS)}, got {value!r:.60}")
    before = len(faults)

    def fault(at: str, reason: str) -> None:
        faults.append(ConfigError(f"{path}.{at}", reason))

    for name in value:
        if name not in STEPS:
            near = difflib.get_close_matches(str(name), STEPS, 1)
            fault(str(name), "unknown key, " + (f"did you mean {near[0]}?" if near else f"expected {', '.join(STEPS)}"))
    function = value.get("function", "")
    if "function" in value and not (isinstance(function, str) and FUNCTION.match(function)):
        fault("function", f"expected module:function, got {function!r:.60}")
    made = Transform(
        _when(value["when"], fault) if "when" in value else {},
        function,
        _pick(value["pick"], fault) if "pick" in value else None,
        _renamed("rename", value["rename"], fault) if "rename" in value else {},
        _renamed("event", value["event"], fault) if "event" in value else {},
    )
    if len(faults) > before:
        return None
    for theirs, ours in made.event.items():
        if ours not in events:
            fault(f"event.{theirs}", f"there are no rules for the event {ours!r}")
        if theirs in events and theirs not in made.event.values():
            fault(f"event.{theirs}", f"its rules would never be used, since its name becomes {ours!r}")
    picked = made.rename.keys() if made.pick is None else made.pick
    for theirs, ours in made.rename.items():
        if theirs not in picked:
            fault(f"rename.{theirs}", f"'pick' leaves no member {theirs!r}")
        if ours in picked and ours not in made.rename:
            fault(f"rename.{theirs}", f"'pick' leaves a member {ours!r} already")
    return made if len(faults) == before else None


_Fault = Callable[[str, str], None]


def _when(value: Any, fault: _Fault) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        fault("when", f"expected {{pointer: value}}, got {value!r:.60}")
        return {}
    for pointer, wanted in value.items():
        _pointer(f"when.{pointer}", pointer, fault)
        for hole in template.holes(template.parse([pointer, wanted])):
            fault(f"when.{pointer}", f"takes no placeholders, got {{{'.'.join(hole)}}}")
    return value


def _pick(value: Any, fault: _Fault) -> tuple[str, ...] | dict[str, str]:
    if isinstance(value, dict) and value:
        for name, pointer in value.items():
            _pointer(f"pick.{name}", pointer, fault)
        return value
    if not isinstance(value, list) or not value:
        fault("pick", f"expected a list of members or {{name: pointer}}, got {value!r:.60}")
        return ()
    for position, name in enumerate(value):
        if not isinstance(name, str) or not name:
            fault(f"pick.{position}", f"expected a member's name, got {name!r:.60}")
        elif name in value[:position]:
            fault(f"pick.{position}", f"the member {name!r} is named twice")
    return tuple(value)


def _renamed(step: str, value: Any, fault: _Fault) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        fault(step, f"expected {{theirs: ours}}, got {value!r:.60}")
        return {}
    taken: dict[str, str] = {}
    for theirs, ours in value.items():
        if not isinstance(ours, str) or not ours:
            fault(f"{step}.{theirs}", f"expected a name, got {ours!r:.60}")
        elif step == "rename" and ours in taken:
            fault(f"{step}.{theirs}", f"{taken[ours]!r} becomes {ours!r} already")
        else:
            taken[ours] = theirs
    return value


def _pointer(at: str, pointer: Any, fault: _Fault) -> None:
    try:
        if not isinstance(pointer, str):
            raise OperationError(f"a JSON Pointer is a string, got {pointer!r:.60}")
        tokens(pointer)
    except OperationError as error:
        fault(at, error.message)
