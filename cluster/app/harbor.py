"""The app object: a configuration written in Python.

Decorators and methods add to a document of the same form as `harbor.yaml`, and the one loader checks it: what can be said in one can
be said in the other, and both can be joined.
"""

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from cluster.app.keys import KeyFactory
from cluster.config import load_mapping
from cluster.config.load import ConfigFaults, read_document
from cluster.config.model import Config
from cluster.core import template
from cluster.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
Document = dict[str, Any]
Duration = str | float | timedelta | None
"""As in a file; or seconds, a `timedelta`, or None for infinity."""
DURATIONS = frozenset({"stale_time", "gc_time", "retry_delay", "refetch_interval", "timeout", "heartbeat", "linger"})


class Harbor:
    """See the module. `config` is where it begins: a file, or a document."""

    def __init__(self, config: str | Path | Mapping[str, Any] | None = None) -> None:
        """Raises `ConfigFaults` where a file cannot be read."""
        if config is None:
            self._document: Document = {}
        elif isinstance(config, Mapping):
            self._document = merge({}, dict(config))
        else:
            self._document = read_document(config)

    # --- declaring -----------------------------------------------------------------------------------------------

    def query(self, key: list[Any], **options: Any) -> Callable[[F], F]:
        """Fetch the keys of a template by a function, whose parameters are the template's placeholders.

        `options` are those of a query in a file (`stale_time`, `gc_time`, `retry`, `infinite`, ...). With `infinite` the function
        has a parameter `page_param`, too.

        Raises:
            ConfigError: the function does not take what the key gives, or cannot be imported by its name.
        """

        def declare(function: F) -> F:
            reference = reference_of(function)
            names = {hole[0] for hole in template.holes(template.parse(key))}
            _check_parameters(reference, function, names | ({"page_param"} if "infinite" in options else set()))
            self._section("queries", []).append({"key": key, "function": reference, **_plain(options)})
            return function

        return declare

    def on(
        self,
        source: str,
        event: str,
        *,
        channel: str | None = None,
        key: list[Any] | str | None = None,
        rule: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Callable[[F], F]:
        """Say what an event of a source means: by a reducer `(old, event) -> new` for a key, or by a `rule` as in a file.

        `options` stand beside the call: `when_missing`, `default`, `each`, `when`.

        Raises:
            ConfigError: neither `key` nor `rule` is given, or the function cannot be imported by its name.
        """
        if rule is not None:
            self._rule(source, channel, event, dict(rule))
            return lambda function: function
        if key is None:
            raise ConfigError(f"on({source!r}, {event!r})", "needs the key of what the function changes, or a rule")

        def declare(function: F) -> F:
            beside: Document = {name: options[name] for name in ("each", "when") if name in options}
            arguments = {name: value for name, value in options.items() if name not in beside}
            call = {"function": reference_of(function), "key": key, **arguments}
            self._rule(source, channel, event, {**beside, "call": call})
            return function

        return declare

    def _rule(self, source: str, channel: str | None, event: str, rule: Document) -> None:
        streams = self._section("streams", [])
        for stream in streams:
            if stream.get("source") == source and stream.get("channel") == channel:
                break
        else:
            stream = {"source": source, "on": {}, **({} if channel is None else {"channel": channel})}
            streams.append(stream)
        present = stream["on"].get(event, [])
        stream["on"][event] = [*(present if isinstance(present, list) else [present]), rule]

    def service(self, name: str, base_url: str, **options: Any) -> None:
        """Declare an upstream HTTP API."""
        self._named("services", name, {"base_url": base_url, **_plain(options)})

    def source(self, name: str, type: str, url: str, **options: Any) -> None:  # noqa: A002 - as in a file
        """Declare an upstream stream, of the type websocket or sse."""
        self._named("sources", name, {"type": type, "url": url, **_plain(options)})

    def entity(self, type: str, **options: Any) -> None:  # noqa: A002
        """Declare a type of entity: `id`, `keys`, `objects`, `queries`."""
        self._named("entities", type, {name: _listed(value) for name, value in options.items()})

    def relation(self, type: str, members: list[Any]) -> None:  # noqa: A002
        """Declare which keys depend on an entity of a type."""
        self._named("relations", type, members)

    @staticmethod
    def keys(name: str) -> KeyFactory:
        """Return the factory of a kind's keys."""
        return KeyFactory(name)

    def _section(self, name: str, empty: Any) -> Any:
        return self._document.setdefault(name, empty)

    def _named(self, section: str, name: str, content: Any) -> None:
        self._document = merge(self._document, {section: {name: content}})

    # --- using ---------------------------------------------------------------------------------------------------

    def document(self, *more: Mapping[str, Any]) -> Document:
        """Return what was declared, joined with other documents.

        Raises:
            ConfigError: something is declared twice, and differently.
        """
        document = merge({}, self._document)
        for other in more:
            document = merge(document, dict(other))
        return document

    def config(self, env: Mapping[str, str] | None = None, *more: Mapping[str, Any]) -> Config:
        """Return the checked configuration.

        Raises:
            ConfigFaults: with every fault.
        """
        return load_mapping(self.document(*more), os.environ if env is None else env)


def merge(document: Mapping[str, Any], other: Mapping[str, Any], path: str = "") -> Document:
    """Join two documents: mappings member by member, lists one after the other.

    Raises:
        ConfigError: both say something different of the same thing, with its path.
    """
    merged: Document = {name: _copied(value) for name, value in document.items()}
    for name, value in other.items():
        at = f"{path}.{name}" if path else str(name)
        held = merged.get(name)
        if name not in merged or held == value:
            merged[name] = _copied(value)
        elif isinstance(held, dict) and isinstance(value, Mapping):
            merged[name] = merge(held, value, at)
        elif isinstance(held, list) and isinstance(value, list) and path == "":
            merged[name] = [*held, *_copied(value)]
        else:
            raise ConfigError(at, f"is declared twice: as {held!r:.60} and as {value!r:.60}")
    return merged


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copied(each) for name, each in value.items()}
    return [_copied(each) for each in value] if isinstance(value, list | tuple) else value


def reference_of(function: Callable[..., Any]) -> str:
    """Return the name by which shards import a function.

    Raises:
        ConfigError: they could not.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module is None or not name or "<" in name:
        raise ConfigError(str(name or function), "shards import functions by name: it has to be at the top of a module")
    if module == "__main__":
        raise ConfigError(name, "shards import functions by name: put it into a module of its own, not the main one")
    return f"{module}:{name}"


def _check_parameters(reference: str, function: Callable[..., Any], names: set[str]) -> None:
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    taken = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    needed = {each.name for each in parameters if each.name in taken and each.default is inspect.Parameter.empty}
    for name in sorted(needed - names):
        raise ConfigError(reference, f"has a parameter {name!r} that is no placeholder of its key")
    for name in sorted(names - taken if not takes_all else ()):
        raise ConfigError(reference, f"has no parameter for the placeholder {{{name}}}")


def _plain(options: Mapping[str, Any]) -> Document:
    return {name: duration(value) if name in DURATIONS else value for name, value in options.items()}


def duration(value: Duration) -> str:
    """Return a duration as a file has it."""
    if isinstance(value, str):
        return value
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds is None or math.isinf(seconds):
        return "infinity"
    return f"{round(seconds * 1000)}ms"


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def load_app(reference: str) -> Harbor:
    """Import an app by `module:name`.

    Raises:
        ConfigFaults: it cannot be, with the reason.
    """

    def fault(reason: str) -> ConfigFaults:
        return ConfigFaults([ConfigError(reference, reason)])

    module, colon, name = reference.partition(":")
    if not colon or not module or not name:
        raise fault("expected MODULE:NAME, as in shop.cache:app")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
    except ConfigError as error:
        raise ConfigFaults([error]) from error
    except ModuleNotFoundError as error:
        raise fault(f"no module {error.name}") from error
    except Exception as error:
        frame = inspect.trace()[-1]
        place = f"{frame.filename}:{frame.lineno}"
        raise fault(f"importing it raised {type(error).__name__}: {error} ({place})") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise fault(f"the module {module} has no {name}")
        found = getattr(found, part)
    if not isinstance(found, Harbor):
        raise fault(f"expected a Harbor, got a {type(found).__name__}")
    return found
