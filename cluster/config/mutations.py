"""Mutations of the configuration: checked, and turned into `core.mutation.DeclaredMutation`s.

What must not live here: what a mutation does (`core.mutation`), resources that declare some (`resources`).
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from cluster.config import values
from cluster.config.model import Config, ConfirmConfig, MutationConfig, SourceConfig, StreamConfig
from cluster.config.rules import parse_rule
from cluster.config.section import NEVER, Faults, Section, listed
from cluster.config.values import shown
from cluster.core import template
from cluster.core.entity_index import EntityType
from cluster.core.mutation import Confirm, DeclaredMutation
from cluster.core.rule import RuleOperation
from cluster.core.template import Hole, Literal, Node
from cluster.core.variables import TYPES, Schema
from cluster.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
METHODS = ("POST", "PUT", "PATCH", "DELETE")
NOT_SHOWN = frozenset({"invalidate", "entity", "relation"})
"""Operations that are nothing to be seen at once in one entry."""
UNANSWERED = frozenset({"response"})
"""What has no value before the service has answered."""
_SCHEMA = frozenset(
    {
        "type",
        "enum",
        "required",
        "properties",
        "additionalProperties",
        "items",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
    }
)


class MutationReader:
    """Reads the section, and what resources make of it."""

    def __init__(
        self,
        faults: Faults,
        services: Collection[str],
        sources: Mapping[str, SourceConfig],
        streams: Sequence[StreamConfig],
        entities: Mapping[str, EntityType],
        relations: Mapping[str, Any],
    ) -> None:
        self._faults = faults
        self._services = services
        self._sources = sources
        self._streams = streams
        self._entities = entities
        self._relations = relations

    def mutations(self, path: str, value: Any) -> dict[str, MutationConfig]:
        """Read mutations by name."""
        if not isinstance(value, dict):
            self._faults.fault(path, f"expected a mapping of names, got {shown(value)}")
            return {}
        found = {}
        for name, each in value.items():
            at = f"{path}.{name}"
            if not NAME.match(name):
                self._faults.fault(at, f"expected a name of letters, digits, '.', '-' and '_', got {name!r}")
            found[name] = self.mutation(at, each)
        return found

    def mutation(self, path: str, value: Any) -> MutationConfig:
        """Read one."""
        section = Section(self._faults, path, value)
        function = section.take("function", None, values.function)
        request: dict[str, Any] = {}
        if not section.has("function") or section.has("request"):
            request = section.take("request", NEVER, self._request) or {}
        if section.has("function") and section.has("request"):
            self._faults.fault(section.at("request"), "a mutation has a function or a request, not both")
        section.known.append("request")
        confirm = section.take("confirm_on", None, self._confirm)
        made = MutationConfig(
            optimistic=section.take("optimistic", [], partial(self._rules, UNANSWERED, NOT_SHOWN)),
            result=section.take("result", [], partial(self._rules, frozenset(), frozenset())),
            confirm=confirm,
            scope=section.take("scope", None, self._scope),
            temp_id=section.take("temp_id", None, _temp_id),
            response_id=section.take("response_id", "id", values.text),
            rollback=section.take("rollback", "rebase", values.one_of("rebase", "snapshot")),
            conflict=section.take("conflict", "fail", values.one_of("fail", "overwrite", "merge")),
            invalidate=section.take("invalidate", [], self._keys),
            retry=section.take("retry", 0, values.retry),
            retry_delay_ms=section.take("retry_delay", None, values.duration),
            delay_ms=section.take("delay", 0.0, values.duration),
            max_age_ms=section.take("max_age", None, values.endless),
            variables=section.take("variables", None, self._variables),
            function=function,
            **request,
        )
        if section.has("response_id") and not section.has("temp_id"):
            self._faults.fault(section.at("response_id"), "takes the place of a temporary id: say temp_id")
        section.done()
        return made

    def _request(self, path: str, value: Any) -> dict[str, Any]:
        section = Section(self._faults, path, value)
        service = section.take("service", NEVER, values.text)
        if service is not None and service not in self._services:
            known = listed(self._services)
            self._faults.fault(section.at("service"), f"no such service, there are {known}, got {service!r}")
        found = {
            "service": service or "",
            "method": section.take("method", NEVER, values.one_of(*METHODS)) or "POST",
            "path": section.take("path", NEVER, values.path) or "/",
            "params": section.take("params", None, values.params),
            "body": section.take("body", None, values.anything),
            "omit": section.take("omit", (), values.names),
        }
        for name in ("path", "params", "body"):
            self._known(section.at(name), template.parse(found[name]))
        if section.has("omit") and ("variables",) not in template.holes(template.parse(found["body"])):
            self._faults.fault(section.at("omit"), "is left out of {variables} in the body, which has none")
        section.done()
        return found

    def _known(self, path: str, node: Node) -> None:
        for hole in template.holes(node):
            if hole[0] in UNANSWERED:
                self._faults.fault(path, f"{{{'.'.join(hole)}}} is not known yet")

    def _rules(self, unknown: Collection[str], unfit: Collection[str], path: str, value: Any) -> list[dict[str, Any]]:
        rules = value if isinstance(value, list) else [value]
        for position, rule in enumerate(rules):
            at = f"{path}.{position}" if isinstance(value, list) else path
            made = parse_rule(at, rule, frozenset(), self._faults.faults, self._entities, self._relations, unknown)
            if made is not None and made.kind in unfit:
                self._faults.fault(
                    f"{at}.{made.kind}", "nothing that could be shown at once: say it in `result` or `invalidate`"
                )
        return rules

    def _confirm(self, path: str, value: Any) -> ConfirmConfig:
        section = Section(self._faults, path, value)
        channel = section.take("stream", NEVER, values.text) or ""
        event = section.take("event", NEVER, values.text) or ""
        where = section.take("where", {}, values.anything)
        section.done()
        if not isinstance(where, dict):
            self._faults.fault(section.at("where"), f"expected an object of members to match, got {shown(where)}")
            where = {}
        node = template.parse(channel)
        self._known(section.at("stream"), node)
        self._known(section.at("where"), template.parse(where))
        if channel and not any(may_carry(stream, self._sources.get(stream.source), node) for stream in self._streams):
            known = listed({stream.channel or stream.source.partition("@")[0] for stream in self._streams})
            self._faults.fault(
                section.at("stream"), f"no stream has such a channel, there are {known}, got {channel!r}"
            )
        return ConfirmConfig(channel, event, where)

    def _scope(self, path: str, value: Any) -> str:
        self._known(path, template.parse(values.text(path, value)))
        return str(value)

    def _keys(self, path: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise ConfigError(path, f"expected a list of keys, got {shown(value)}")
        for position, each in enumerate(value):
            if not isinstance(template.parse(each), Hole) and not (isinstance(each, list) and each):
                self._faults.fault(f"{path}.{position}", f"expected a key or one placeholder, got {shown(each)}")
        return value

    def _variables(self, path: str, value: Any) -> Any:
        if isinstance(value, list):
            values.names(path, value)
        else:
            _check_schema(self._faults, path, value)
        return value


def may_carry(stream: StreamConfig, source: SourceConfig | None, wanted: Node) -> bool:
    """Whether a stream may have events of a channel that is wanted; an event of no channel counts as of one named as its source."""
    if stream.channel is not None:
        return template.overlaps(template.parse(stream.channel), wanted)
    return (source is not None and source.has_channels) or template.overlaps(
        Literal(stream.source.partition("@")[0]), wanted
    )


def _temp_id(path: str, value: Any) -> str:
    node = template.parse(value)
    if not isinstance(node, Hole) or node.path[0] in ("mutation_id", *UNANSWERED) or node.path == ("variables",):
        raise ConfigError(path, f"expected a variable such as {{variables.id}}, got {shown(value)}")
    return str(value)


def _check_schema(faults: Faults, path: str, value: Any) -> None:
    if not isinstance(value, dict):
        faults.fault(path, f"expected a schema or a list of names, got {shown(value)}")
        return
    section = Section(faults, path, value)
    checks: dict[str, Callable[[str, Any], Any]] = {
        "type": _types,
        "enum": _array,
        "required": values.names,
        "properties": _mapping,
        "additionalProperties": values.flag,
        "items": values.anything,
        "minLength": values.whole,
        "maxLength": values.whole,
        "minimum": _number,
        "maximum": _number,
    }
    assert checks.keys() == _SCHEMA
    for name, check in checks.items():
        section.take(name, None, check)
    section.done()
    properties = value.get("properties")
    for name, member in properties.items() if isinstance(properties, dict) else ():
        _check_schema(faults, f"{path}.properties.{name}", member)
    if "items" in value:
        _check_schema(faults, f"{path}.items", value["items"])


def _types(path: str, value: Any) -> None:
    given = value if isinstance(value, list) else [value]
    if not given or not all(each in TYPES for each in given):
        raise ConfigError(path, f"expected {' or '.join(TYPES)}, got {shown(value)}")


def _array(path: str, value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise ConfigError(path, f"expected a list of values, got {shown(value)}")


def _mapping(path: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise ConfigError(path, f"expected schemas by name, got {shown(value)}")


def _number(path: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(path, f"expected a number, got {shown(value)}")


def schema_of(value: Any) -> Schema | None:
    """Compile what the configuration says of variables."""
    if value is None:
        return None
    if isinstance(value, list):
        return Schema(required=tuple(value))
    types = value.get("type", [])
    return Schema(
        tuple(types) if isinstance(types, list) else (types,),
        tuple(value["enum"]) if "enum" in value else None,
        tuple(value.get("required", ())),
        tuple((name, schema_of(member) or Schema()) for name, member in value.get("properties", {}).items()),
        value.get("additionalProperties", True),
        schema_of(value.get("items")),
        (value.get("minLength", 0), value.get("maxLength")),
        (value.get("minimum"), value.get("maximum")),
    )


def declared(
    name: str, config: MutationConfig, entities: Mapping[str, EntityType], relations: Mapping[str, Any]
) -> DeclaredMutation:
    """Compile a mutation that a `MutationReader` has passed."""

    def operations(rules: list[dict[str, Any]]) -> tuple[RuleOperation, ...]:
        parsed = (parse_rule("", rule, frozenset(), [], entities, relations, ()) for rule in rules)
        return tuple(rule for rule in parsed if rule is not None)

    def node(value: Any) -> Node | None:
        return None if value is None else template.parse(value)

    confirm = None
    if config.confirm is not None:
        confirm = Confirm(
            template.parse(config.confirm.stream), config.confirm.event, template.parse(config.confirm.where)
        )
    temp_id = node(config.temp_id)
    return DeclaredMutation(
        name,
        config.service,
        config.method,
        template.parse(config.path),
        node(config.params),
        node(config.body),
        operations(config.optimistic),
        operations(config.result),
        node(config.scope),
        temp_id.path if isinstance(temp_id, Hole) else None,
        config.retry,
        config.retry_delay_ms,
        config.delay_ms,
        config.max_age_ms,
        config.response_id,
        config.omit,
        confirm,
        tuple(template.parse(key) for key in config.invalidate),
        config.rollback,
        config.conflict,
        schema_of(config.variables),
        config.function,
    )


def confirming(stream: StreamConfig, config: Config) -> dict[str, tuple[RuleOperation, ...]]:
    """Return what a stream's events may confirm, by event."""
    found: dict[str, tuple[RuleOperation, ...]] = {}
    for name, confirm in config.confirmations.items():
        if may_carry(stream, config.sources.get(stream.source), template.parse(confirm.stream)):
            told = RuleOperation("confirm", Literal([]), mutation=name, source=stream.source.partition("@")[0])
            found[confirm.event] = (*found.get(confirm.event, ()), told)
    return found
