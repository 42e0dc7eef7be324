"""Documents: configurations as plain data, of the form that `harbor.yaml` has, joined and copied.

Joining knows just enough of the form to tell what is one thing said twice: a service by its name, a query by its key, a stream by its
source and channel. Whether what is said makes sense is for `cluster.config` to tell.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from cluster.config.model import MASK, masked_url
from cluster.core.operation import json_equal
from cluster.errors import ConfigError

Document = dict[str, Any]
Duration = str | float | timedelta | None
"""As in a file; or seconds, a `timedelta`, or None for infinity."""
CONFIDENTIAL = frozenset({"headers", "params", "body", "subscribe", "unsubscribe"})
"""Members that may hold credentials, of which faults show nothing."""
MAX_SHOWN = 60
_ABSENT = object()


def merge(document: Mapping[str, Any], other: Mapping[str, Any]) -> Document:
    """Join two documents; neither is changed.

    Settings and what has a name are joined by name. Lists are joined end to end, but queries and rules that both have count once, and a
    stream that says nothing beside its rules adds them to one of its source and channel, whichever settings that has.

    Raises:
        ConfigError: both say something different of the same thing. It names the path, and what they say.
    """
    merged: Document = copied(document)
    for section, more in copied(other).items():
        held = merged.setdefault(section, more)
        if held is more:
            continue
        if section == "queries" and isinstance(held, list) and isinstance(more, list):
            _join_queries(held, more)
        elif section == "streams" and isinstance(held, list) and isinstance(more, list):
            _join_streams(held, more)
        elif isinstance(held, dict) and isinstance(more, dict):
            _join_named(section, held, more)
        elif not json_equal(held, more):
            raise _twice(section, held, more)
    return merged


def join_transforms(document: Document, transforms: Sequence[tuple[str, str | None, Document]]) -> Document:
    """Add steps of transforms to every stream of a source and channel; the document is changed, and returned.

    Raises:
        ConfigError: there is no such stream, or one has such a step already, and differently.
    """
    listed = document.get("streams")
    for source, channel, steps in transforms:
        found = False
        for position, stream in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(stream, dict) and (stream.get("source"), stream.get("channel")) == (source, channel):
                found = True
                held = stream.setdefault("transform", {})
                if isinstance(held, dict):  # the loader says what is wrong with it otherwise
                    _join_named(f"streams.{position}.transform", held, steps)
        if not found:
            of_channel = "without a channel" if channel is None else f"of the channel {channel!r}"
            reason = f"there is no stream of the source {source!r} {of_channel}, whose events it could be given"
            raise ConfigError(steps["function"], reason)
    return document


def copied(value: Any) -> Any:
    """Return a copy that shares nothing, with tuples as lists and every `timedelta` as a duration's text."""
    if isinstance(value, Mapping):
        return {name: copied(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [copied(each) for each in value]
    return duration("", value) if isinstance(value, timedelta) else value


def duration(path: str, value: Duration) -> str:
    """Return a duration as a file has it.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, str):
        return value  # the loader knows how to read it, or what is wrong with it
    seconds = value.total_seconds() if isinstance(value, timedelta) else math.inf if value is None else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise ConfigError(path, f"expected a duration: text such as '60s', seconds, a timedelta or None, got {value!r}")
    if seconds == math.inf:
        return "infinity"
    if seconds == int(seconds):
        return f"{int(seconds)}s"
    return f"{seconds * 1000:.3f}".rstrip("0").rstrip(".") + "ms"


def _join_named(section: str, held: Document, more: Document) -> None:
    for name, value in more.items():
        if name not in held:
            held[name] = value
        elif not json_equal(held[name], value):
            raise _twice(f"{section}.{name}", held[name], value)


def _join_queries(held: list[Any], more: list[Any]) -> None:
    known = list(held)
    for query in more:
        if any(json_equal(query, each) for each in known):
            continue
        for position, each in enumerate(known):
            if _is_of_key(each, query):
                raise _twice(f"queries.{position}", each, query)
        held.append(query)


def _is_of_key(query: Any, other: Any) -> bool:
    if not isinstance(query, dict) or not isinstance(other, dict):
        return False
    return "key" in query and "key" in other and json_equal(query["key"], other["key"])


def _join_streams(held: list[Any], more: list[Any]) -> None:
    known = list(held)
    for stream in more:
        there = _streams_for(known, stream)
        if not there:
            held.append(stream)
            continue
        for event, rules in stream["on"].items():
            present = [rule for each in there for rule in _listed(each["on"].get(event, []))]
            added = [rule for rule in _listed(rules) if not any(json_equal(rule, each) for each in present)]
            on = there[0]["on"]
            if event in on and added:
                on[event] = [*_listed(on[event]), *added]
            elif added or not any(event in each["on"] for each in there):
                on[event] = rules if len(added) == len(_listed(rules)) else added


def _streams_for(held: list[Any], stream: Any) -> list[Document]:
    """Return the streams among whose rules another one's may be: to those of the first they can be added, and mean the same there."""
    if not _has_rules(stream):
        return []
    of_channel = [
        each
        for each in held
        if _has_rules(each)
        and each.get("source") == stream.get("source")
        and each.get("channel") == stream.get("channel")
    ]
    settings = _settings(stream)
    same = [each for each in of_channel if json_equal(_settings(each), settings)]
    return same if settings else [*same, *(each for each in of_channel if each not in same)]


def _has_rules(stream: Any) -> bool:
    return isinstance(stream, dict) and isinstance(stream.get("on"), dict)


def _settings(stream: Document) -> Document:
    return {name: value for name, value in stream.items() if name not in ("source", "channel", "on")}


def _listed(rules: Any) -> list[Any]:
    return rules if isinstance(rules, list) else [rules]


def _twice(path: str, one: Any, other: Any) -> ConfigError:
    """Say in what two differ, of mappings only the members in which they do."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return ConfigError(path, f"is declared twice: as {_shown('', one)} and as {_shown('', other)}")
    differing = [
        f"{name} is {_shown(name, one.get(name, _ABSENT))} and {_shown(name, other.get(name, _ABSENT))}"
        for name in dict.fromkeys((*one, *other))
        if not json_equal(one.get(name, _ABSENT), other.get(name, _ABSENT))
    ]
    return ConfigError(path, f"is declared twice: {'; '.join(differing)}")


def _shown(name: str, value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    shown = repr(_masked(name, value))
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 3] + "..."


def _masked(name: str, value: Any) -> Any:
    if name in CONFIDENTIAL:
        return MASK
    if isinstance(value, dict):
        return {each: _masked(each, member) for each, member in value.items()}
    if isinstance(value, list):
        return [_masked("", item) for item in value]
    return masked_url(value) if isinstance(value, str) else value
