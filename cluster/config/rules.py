"""Rules of the configuration: checked, and turned into `core.rule.RuleOperation`s."""

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import orjson

from cluster.core import template
from cluster.core.entity_index import EntityType
from cluster.core.json_pointer import tokens
from cluster.core.mutation import in_data
from cluster.core.operation import Missing
from cluster.core.query_key import canonical, checked
from cluster.core.reserved import ROOT, is_reserved
from cluster.core.rule import BROADCAST, RuleOperation
from cluster.core.template import Hole, Literal, Node
from cluster.errors import ConfigError, OperationError, RequestError

REQUIRED: dict[str, frozenset[str]] = {
    "set": frozenset({"key", "value"}),
    "merge": frozenset({"key", "value"}),
    "append": frozenset({"key", "item"}),
    "prepend": frozenset({"key", "item"}),
    "upsert": frozenset({"key", "item"}),
    "merge_where": frozenset({"key", "where", "value"}),
    "remove": frozenset({"key", "where"}),
    "increment": frozenset({"key", "at"}),
    "delete": frozenset({"key"}),
    "invalidate": frozenset({"key"}),
    "entity": frozenset({"type", "value"}),
    "relation": frozenset({"type", "id"}),
    "call": frozenset({"function", "key"}),
}
_MISSING = frozenset({"when_missing", "default"})
OPTIONAL: dict[str, frozenset[str]] = {
    "set": _MISSING | {"at"},
    "merge": _MISSING | {"at"},
    "append": _MISSING | {"at", "max_items", "by"},
    "prepend": _MISSING | {"at", "max_items", "by"},
    "upsert": _MISSING | {"at", "by"},
    "merge_where": _MISSING | {"at"},
    "remove": _MISSING | {"at"},
    "increment": _MISSING | {"by"},
    "delete": frozenset({"at"}),
    "invalidate": frozenset({"exact", "refetch"}),
    "entity": frozenset({"tenant"}),
    "relation": frozenset({"refetch", "tenant"}),
    "call": _MISSING,
}
UNVERSIONED = frozenset({"invalidate", "entity", "relation", "call"})
_NONE: Mapping[str, Any] = MappingProxyType({})
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*\Z")
BESIDE = frozenset({"each", "when", "version"})
REFETCH = ("active", "inactive", "all", "none")


def parse_rule(  # noqa: PLR0915 - one check after another
    path: str,
    rule: Any,
    captures: frozenset[str],
    faults: list[ConfigError],
    entities: Mapping[str, EntityType] = _NONE,
    relations: Mapping[str, Any] = _NONE,
    unknown: Collection[str] | None = None,
) -> RuleOperation | None:
    """Check one rule. Faults are added to `faults`; None where there were any.

    With `unknown` it is one of a mutation, whose placeholders are variables of any name but those, which have no value yet.
    """
    before = len(faults)

    def fault(at: str, reason: str) -> None:
        faults.append(ConfigError(f"{path}.{at}" if at else path, reason))

    if not isinstance(rule, dict):
        fault("", f"expected a rule such as {{set: {{key: [...], value: ...}}}}, got {rule!r}")
        return None
    beside_call = {"key"} | OPTIONAL["call"] if isinstance(rule.get("call"), str) else frozenset()
    beside = BESIDE if unknown is None else BESIDE | {"optional"}
    kinds = [name for name in rule if name not in beside and name not in beside_call]
    for name in kinds:
        if name not in REQUIRED:
            fault(str(name), f"unknown operation, expected one of {', '.join(REQUIRED)}")
    if len(kinds) != 1:
        fault("", f"a rule has one operation, got {len(kinds)}")
    if len(faults) > before:
        return None
    kind = kinds[0]
    arguments = rule[kind]
    if kind == "call" and isinstance(arguments, str):  # `call: "module:function"` with `key` and the rest beside it
        arguments = {"function": arguments, **{name: value for name, value in rule.items() if name in beside_call}}
    if not isinstance(arguments, dict):
        fault(kind, f"expected the operation's arguments, got {arguments!r}")
        return None
    for name in sorted(REQUIRED[kind] - arguments.keys()):
        fault(f"{kind}.{name}", "required")
    for name in arguments:
        if name not in REQUIRED[kind] | OPTIONAL[kind]:
            allowed = ", ".join(sorted(REQUIRED[kind] | OPTIONAL[kind]))
            fault(f"{kind}.{name}", f"unknown key, expected one of {allowed}")
    if len(faults) > before:
        return None

    names = captures | {"data", "event", "event_id"} | ({"item"} if "each" in rule else set())

    def node(at: str, value: Any, allowed: frozenset[str] | set[str] = names) -> Node:
        parsed = template.parse(value)
        if unknown is not None:
            for hole in template.holes(parsed):
                if hole[0] in unknown:
                    fault(at, f"{{{'.'.join(hole)}}} is not known yet")
            return template.renamed(parsed, lambda hole: hole if hole[0] == "item" in allowed else in_data(hole))
        for hole in template.holes(parsed):
            if hole[0] not in allowed:
                known = ", ".join(sorted(allowed))
                fault(at, f"no such placeholder {{{'.'.join(hole)}}}, there are {known}")
            elif len(hole) > 1 and hole[0] not in ("data", "item"):
                fault(at, f"{{{hole[0]}}} has no members, got {{{'.'.join(hole)}}}")
        return parsed

    def fixed(at: str, value: Any) -> None:
        """What is read as it stands, so that a placeholder in it would be taken for text."""
        for hole in template.holes(template.parse(value)):
            fault(at, f"takes no placeholders, got {{{'.'.join(hole)}}}")

    def pointed(at: str, pointer: Any) -> None:
        try:
            if not isinstance(pointer, str):
                raise OperationError(f"a JSON Pointer is a string, got {pointer!r}")
            tokens(pointer)
        except OperationError as error:
            fault(at, error.message)

    given_key = [] if kind in BROADCAST else arguments["key"]
    key = node(f"{kind}.key", given_key)
    if not isinstance(given_key, list) and not isinstance(key, Hole):
        fault(f"{kind}.key", f"expected an array or one placeholder, got {given_key!r}")
    elif isinstance(given_key, list) and is_reserved(given_key):
        fault(f"{kind}.key", f'keys under "{ROOT}" are the cluster\'s own')
    elif isinstance(key, Literal):
        try:
            canonical(checked(key.value))
        except RequestError as error:
            fault(f"{kind}.key", error.message)
    pointer = arguments.get("at", "")
    at = node(f"{kind}.at", pointer)
    pointed(f"{kind}.at", pointer)
    value = arguments.get("value", arguments.get("item"))
    value_node = node(f"{kind}.{'item' if 'item' in arguments else 'value'}", value)
    where = arguments.get("where")
    if "where" in arguments and not (isinstance(where, dict) and where):
        fault(f"{kind}.where", f"expected an object of members to match, got {where!r}")
    where_node = node(f"{kind}.where", where) if "where" in arguments else None
    by = arguments.get("by")
    if kind == "increment" and by is not None:
        by_node = node(f"{kind}.by", by)
        if isinstance(by_node, Hole):
            by = by_node
            if by.path[0] not in ("data", "item", "event_id"):
                fault(f"{kind}.by", f"{{{by.path[0]}}} is text, expected a number")
        elif isinstance(by, bool) or not isinstance(by, int | float):
            fault(f"{kind}.by", f"expected a number or one placeholder, got {by!r}")
    elif by is not None and not (isinstance(by, str) and by):
        fault(f"{kind}.by", f"expected a member name, got {by!r}")
    max_items = arguments.get("max_items", 0)
    if "max_items" in arguments and (isinstance(max_items, bool) or not isinstance(max_items, int) or max_items < 1):
        fault(f"{kind}.max_items", f"expected a whole number above 0, got {max_items!r}")
    when_missing = arguments.get("when_missing")
    if when_missing not in (None, "skip", "create"):
        fault(f"{kind}.when_missing", f"expected skip or create, got {when_missing!r}")
    if "default" in arguments:
        fixed(f"{kind}.default", arguments["default"])
        if when_missing != "create" and not (kind == "set" and when_missing is None):
            fault(f"{kind}.default", "takes effect only with when_missing: create")
    exact = arguments.get("exact", False)
    if not isinstance(exact, bool):
        fault(f"{kind}.exact", f"expected true or false, got {exact!r}")
    refetch = arguments.get("refetch", "active")
    if refetch not in REFETCH:
        fault(f"{kind}.refetch", f"expected one of {', '.join(REFETCH)}, got {refetch!r}")

    type_node = identity_node = tenant_node = None
    if kind in BROADCAST:
        known = entities if kind == "entity" else relations
        type_node = node(f"{kind}.type", arguments["type"])
        if isinstance(type_node, Literal) and not (isinstance(type_node.value, str) and type_node.value in known):
            declared = ", ".join(sorted(known)) or "none"
            fault(f"{kind}.type", f"no such {kind}, there are {declared}, got {arguments['type']!r}")
        if "tenant" in arguments:
            tenant_node = node(f"{kind}.tenant", arguments["tenant"])
        if kind == "relation":
            identity_node = node(f"{kind}.id", arguments["id"])
    function = arguments.get("function", "")
    if kind == "call" and not (isinstance(function, str) and FUNCTION.match(function)):
        fault(f"{kind}.function", f"expected module:function, got {function!r}")

    each = None
    if "each" in rule:
        each = node("each", rule["each"], names - {"item"})
        if not isinstance(each, Hole) or each.path[0] != "data":
            what = "of the event's data" if unknown is None else "that is an array"
            fault("each", f"expected a placeholder {what}, got {rule['each']!r}")
    when = rule.get("when", {})
    if not isinstance(when, dict):
        fault("when", f"expected {{pointer: value}}, got {when!r}")
        when = {}
    for name, wanted in when.items():
        pointed(f"when.{name}", name)
        fixed(f"when.{name}", [name, wanted])
    optional = rule.get("optional", False)
    if not isinstance(optional, bool):
        fault("optional", f"expected true or false, got {optional!r}")
    guard = None
    if "version" in rule:
        version = rule["version"]
        if not isinstance(version, dict) or set(version) != {"at", "value"} or not isinstance(version["at"], str):
            fault("version", f"expected {{at, value}}, got {version!r}")
        elif kind in UNVERSIONED:
            fault("version", f"an operation of the kind {kind} has no version")
        else:
            pointed("version.at", version["at"])
            fixed("version.at", version["at"])
            guard = (version["at"], node("version.value", version["value"]))
    if len(faults) > before:
        return None
    return RuleOperation(
        kind,
        key,
        at,
        value_node if "value" in arguments or "item" in arguments else None,
        where_node,
        by,
        max_items,
        None if when_missing is None else Missing[when_missing.upper()],
        orjson.dumps(arguments["default"]) if "default" in arguments else None,
        exact,
        refetch,
        each,
        tuple(when.items()),
        guard,
        type_node,
        identity_node,
        tenant_node,
        tuple((name, of_type.id) for name, of_type in entities.items()) if kind == "entity" else (),
        function,
        optional=optional,
    )
