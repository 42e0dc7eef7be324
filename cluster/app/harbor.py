"""The app object: a configuration written in Python.

Decorators and methods add to a document of the same form as `harbor.yaml`, and the one loader checks it: what can be said in one can
be said in the other, and both can be joined. Only what a document cannot tell is checked here: whether a function fits what it is
declared for, and whether a shard, another process, will find it by its name.

What must not live here: joining documents (`document`), running functions (`functions`).
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, overload

from cluster.app.document import Document, copied, duration, join_transforms, merge
from cluster.app.keys import KeyFactory, keys
from cluster.config import load_mapping
from cluster.config.load import ConfigFaults, read_document
from cluster.config.model import Config
from cluster.core import template
from cluster.errors import ConfigError

F = TypeVar("F", bound=Callable[..., Any])
Rule = Mapping[str, Any] | Sequence[Mapping[str, Any]]
DURATIONS = frozenset(
    {
        "stale_time",
        "gc_time",
        "offline_time",
        "retry_delay",
        "refetch_interval",
        "timeout",
        "heartbeat",
        "delay",
        "max_age",
    }
)
"""Options that may be numbers of seconds, `timedelta`s or None."""
NESTED_DURATIONS = {"reconnect": frozenset({"initial", "max"})}
_NOT_GIVEN: Final = object()


class Harbor:
    """A configuration that is being written; `config` is where it begins: a file, or a document.

    A file is read when the document is asked for, not before: shards import the module for its functions, where the file may not be.

    ```python
    app = Harbor("harbor.yaml")

    @app.query(["projects", "detail", "{id}"], stale_time="60s")
    async def project(id): ...

    @app.mutation("rename_project", scope="project:{id}")
    async def rename_project(id, name, mutation_id): ...

    @app.on("events", "task:created", channel="project:{id}", key=["projects", "detail", "{id}"])
    def add_task(old, event): ...
    ```
    """

    def __init__(
        self, config: str | Path | Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """`env` is what `${NAME}` reads where `config()` is not told; None: the environment of the process."""
        self._base = Path(config) if isinstance(config, str) else copied(config)
        self._env = env
        self._declared: Document = {}
        self._transforms: list[tuple[str, str | None, Document]] = []
        """Of streams that may be declared later, or in a file."""
        self._functions: dict[str, Callable[..., Any]] = {}

    # --- declaring -----------------------------------------------------------------------------------------------

    def query(self, key: Sequence[Any], **options: Any) -> Callable[[F], F]:
        """Fetch the keys of a template by a function, whose parameters are the template's placeholders by name.

        The function is asynchronous or not, and returns JSON. `options` are those of a query in a file (`stale_time`, `gc_time`,
        `retry`, `retry_delay`, `refetch_interval`, `infinite`). With `infinite` the function has a parameter `page_param`, too.

        Raises:
            ConfigError: the function does not take what the key gives, or cannot be imported by its name.
        """
        declared = copied(key)

        def declare(function: F) -> F:
            reference = self._reference(function)
            names = {hole[0] for hole in template.holes(template.parse(declared))}
            _check_parameters(reference, function, names | ({"page_param"} if "infinite" in options else set()))
            self._add({"queries": [{"key": declared, "function": reference, **_plain(reference, options)}]})
            return function

        return declare

    @overload
    def mutation(self, name: str, *, request: Mapping[str, Any], **options: Any) -> None: ...

    @overload
    def mutation(self, name: str, **options: Any) -> Callable[[F], F]: ...

    def mutation(
        self, name: str, *, request: Mapping[str, Any] | None = None, **options: Any
    ) -> Callable[[F], F] | None:
        """Declare a mutation: by a function that is called with its variables by name, or by a `request` as in a file.

        The function is asynchronous or not, and returns the response, JSON; what it raises is the mutation's failure. It is given
        `mutation_id` if it has such a parameter; it is called again, with the same, when nobody knows what came of it. `options` are
        those of a mutation in a file (`optimistic`, `result`, `confirm_on`, `scope`, `temp_id`, `delay`, ...).

        Raises:
            ConfigError: the function cannot be called so, or cannot be imported by its name.
        """
        if request is not None:
            self._add({"mutations": {name: {"request": request, **_plain(f"mutations.{name}", options)}}})
            return None

        def declare(function: F) -> F:
            reference = self._reference(function)
            _check_named(reference, function, "variables")
            self._add({"mutations": {name: {"function": reference, **_plain(reference, options)}}})
            return function

        return declare

    def resource(self, name: str, *, service: str, path: str, **options: Any) -> KeyFactory:
        """Declare queries, mutations and stream rules of a kind of thing at once, and return the factory of its keys.

        `options` are those of a resource in a file: `id`, `lists`, `stream`, `stale_time`, `gc_time`, `offline_time`.

        Raises:
            ConfigError: one of that name was declared, and differently.
        """
        declared = {"service": service, "path": path, **_plain(f"resources.{name}", options)}
        self._add({"resources": {name: declared}})
        return keys(name)

    @overload
    def on(self, source: str, event: str, *, channel: str | None = None, rule: Rule) -> None: ...

    @overload
    def on(
        self,
        source: str,
        event: str,
        *,
        channel: str | None = None,
        key: Sequence[Any] | str,
        when_missing: str | None = None,
        default: Any = ...,
        each: str | None = None,
        when: Mapping[str, Any] | None = None,
    ) -> Callable[[F], F]: ...

    def on(
        self,
        source: str,
        event: str,
        *,
        channel: str | None = None,
        key: Sequence[Any] | str | None = None,
        rule: Rule | None = None,
        when_missing: str | None = None,
        default: Any = _NOT_GIVEN,
        each: str | None = None,
        when: Mapping[str, Any] | None = None,
    ) -> Callable[[F], F] | None:
        """Say what an event of a source means: by a reducer `(old, event) -> new` for a key, or by a `rule` as in a file.

        With `key` it decorates the reducer; `when_missing`, `default`, `each` and `when` are a rule's. With `rule` it is just called.

        Raises:
            ConfigError: neither or both are given, or the function is no reducer or cannot be imported by its name.
        """
        place = f"on({source!r}, {event!r})"
        if rule is not None:
            if key is not None or when_missing or default is not _NOT_GIVEN or each or when:
                raise ConfigError(place, "a rule says everything itself")
            self._add_rules(source, channel, event, rule)
            return None
        if key is None:
            raise ConfigError(place, "needs the key of what the function changes, or a rule")
        beside = {name: value for name, value in (("each", each), ("when", when)) if value is not None}
        call: Document = {"key": key}
        if when_missing is not None:
            call["when_missing"] = when_missing
        if default is not _NOT_GIVEN:
            call["default"] = default

        def declare(function: F) -> F:
            reference = self._reference(function)
            _check_called(reference, function, "old", "event")
            self._add_rules(source, channel, event, {**beside, "call": {"function": reference, **call}})
            return function

        return declare

    def transform(self, source: str, *, channel: str | None = None, **options: Any) -> Callable[[F], F]:
        """Pass the events of a stream through a function `(event) -> data` before rules see them; None leaves an event out.

        The stream, that of the same source and channel, is declared by rules, here or in a file. `options` are the other steps of a
        transform in a file (`event`, `when`, `pick`, `rename`).

        Raises:
            ConfigError: the function is none that takes an event, or cannot be imported by its name.
        """
        steps = copied(options)

        def declare(function: F) -> F:
            reference = self._reference(function)
            _check_called(reference, function, "event")
            self._transforms.append((source, channel, {"function": reference, **steps}))
            return function

        return declare

    def service(self, name: str, base_url: str, **options: Any) -> None:
        """Declare an upstream HTTP API.

        Raises:
            ConfigError: of this and the following methods: one of that name was declared, and differently.
        """
        self._add({"services": {name: {"base_url": base_url, **_plain(f"services.{name}", options)}}})

    def source(self, name: str, type: str, url: str, **options: Any) -> None:  # noqa: A002 - as in a file
        """Declare an upstream stream, of the type websocket or sse."""
        self._add({"sources": {name: {"type": type, "url": url, **_plain(f"sources.{name}", options)}}})

    def entity(self, type: str, **options: Any) -> None:  # noqa: A002 - as in a file
        """Declare a type of entity: `id`, `keys`, `objects`, `queries`."""
        self._add({"entities": {type: options}})

    def relation(self, type: str, members: Sequence[Any]) -> None:  # noqa: A002 - as in a file
        """Declare which keys depend on an entity of a type."""
        self._add({"relations": {type: members}})

    @staticmethod
    def keys(name: str) -> KeyFactory:
        """Return the factory of a kind's keys."""
        return keys(name)

    def _add(self, fragment: Document) -> None:
        self._declared = merge(self._declared, fragment)

    def _add_rules(self, source: str, channel: str | None, event: str, rules: Rule) -> None:
        listed = [rules] if isinstance(rules, Mapping) else rules
        stream = {"source": source, **({} if channel is None else {"channel": channel}), "on": {event: listed}}
        self._add({"streams": [stream]})

    def _reference(self, function: Callable[..., Any]) -> str:
        reference = reference_of(function)
        known = self._functions.setdefault(reference, function)
        # Where a module is loaded anew the same function comes again.
        if known is not function and _place(known) != _place(function):
            reason = f"is the name of two functions, at {_place(known)} and {_place(function)}; shards would find one"
            raise ConfigError(reference, reason)
        return reference

    @property
    def file(self) -> Path | None:
        """The file that it begins with; None: there is none."""
        return self._base if isinstance(self._base, Path) else None

    # --- using ---------------------------------------------------------------------------------------------------

    def document(self, *more: Mapping[str, Any]) -> Document:
        """Return what it began with, joined with `more` documents and what was declared.

        Raises:
            ConfigError: something is declared twice, and differently; or the file it begins with cannot be read.
        """
        document: Document = {}
        for each in (self._begin(), *more, self._declared):
            if not isinstance(each, Mapping):
                raise ConfigError("", f"expected a mapping, got a {type(each).__name__}")
            document = merge(document, each)
        return join_transforms(document, self._transforms)

    def config(self, env: Mapping[str, str] | None = None, *more: Mapping[str, Any]) -> Config:
        """Return the checked configuration, joined with `more` documents.

        Raises:
            ConfigError: as `document`; as `ConfigFaults` with every fault found.
        """
        given = self._env if env is None else env
        return load_mapping(self.document(*more), os.environ if given is None else given)

    def _begin(self) -> Any:
        if not isinstance(self._base, Path):
            return {} if self._base is None else self._base
        try:
            return read_document(self._base)
        except ConfigFaults as error:
            raise ConfigFaults([ConfigError(str(self._base), fault.reason) for fault in error.faults]) from error


def reference_of(function: Callable[..., Any]) -> str:
    """Return the name by which shards import a function.

    Raises:
        ConfigError: they could not.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not module or not name or "<" in name:
        shown = name if isinstance(name, str) else repr(function)
        raise ConfigError(shown, "shards import functions by name: it has to be a named one at the top of a module")
    if module == "__main__":
        raise ConfigError(name, "shards import functions by name: put it into a module of its own, not the main one")
    return f"{module}:{name}"


def _place(function: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return "a place unknown" if code is None else f"{code.co_filename}:{code.co_firstlineno}"


def _check_parameters(reference: str, function: Callable[..., Any], names: set[str]) -> None:
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
    named = {each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    _check_named(reference, function, "placeholders")
    for each in parameters:
        is_asked_for = each.default is each.empty and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
        if is_asked_for and each.name not in names:
            there = ", ".join(f"{{{name}}}" for name in sorted(names)) or "none"
            raise ConfigError(
                reference, f"has a parameter {each.name!r} that is no placeholder of its key, there are {there}"
            )
    for name in sorted(names - named if not takes_all else ()):
        raise ConfigError(reference, f"has no parameter for {_meaning(name)}")


def _check_named(reference: str, function: Callable[..., Any], what: str) -> None:
    for each in inspect.signature(function).parameters.values():
        if each.default is each.empty and each.kind is each.POSITIONAL_ONLY:
            raise ConfigError(reference, f"takes {each.name!r} by position only, and {what} come by name")


def _meaning(name: str) -> str:
    return "the page, 'page_param'" if name == "page_param" else f"the placeholder {{{name}}}"


def _check_called(reference: str, function: Callable[..., Any], *names: str) -> None:
    """Check a function that is called in place: a reducer, or a transform."""
    if inspect.iscoroutinefunction(function):
        place = (
            "a reducer: it is called inside a commit" if "old" in names else "a transform: a stream is read through it"
        )
        raise ConfigError(reference, f"is asynchronous, and nothing may wait for {place}")
    try:
        inspect.signature(function).bind(*({} for _ in names))
    except TypeError as error:
        raise ConfigError(reference, f"cannot be called with ({', '.join(names)}): {error}") from error


def _plain(path: str, options: Mapping[str, Any]) -> Document:
    return {name: _option(f"{path}.{name}", name, value) for name, value in options.items()}


def _option(path: str, name: str, value: Any) -> Any:
    if name in DURATIONS:
        return duration(path, value)
    nested = NESTED_DURATIONS.get(name, frozenset())
    if nested and isinstance(value, Mapping):
        return {each: duration(f"{path}.{each}", given) if each in nested else given for each, given in value.items()}
    return value
