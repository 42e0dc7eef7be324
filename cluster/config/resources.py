"""Resources: a kind of thing that a service lists, shows, creates, changes and deletes, and a stream tells about.

One declaration stands for two queries, three mutations and the rules of a stream, which it is expanded into: what comes after reading
the configuration knows of queries, mutations and streams only.

**Which lists an edit reaches.** A list's key ends in its filters, of which there are any number, and an operation changes one key. So
`lists` says which filters lists have, with the members of a thing as placeholders; those are edited in place, at once. Without it only the
list of no filters is, and every list is marked as out of date by an edit, so that watched ones are fetched anew.

What must not live here: what queries, mutations and streams are (`load`, `mutations`).
"""

import re
from collections.abc import Collection
from functools import partial
from typing import Any

from msgspec import Struct

from cluster.config import values
from cluster.config.section import NEVER, Faults, Section, listed
from cluster.config.values import shown
from cluster.core import template
from cluster.core.template import Path
from cluster.errors import ConfigError

Document = dict[str, Any]
EVENTS = ("created", "updated", "deleted")
_MEMBER = re.compile(r"[A-Za-z0-9_-]+\Z")


class Resource(Struct, frozen=True):
    """What one comes to, in the form that the sections `queries`, `mutations` and `streams` have."""

    name: str
    path: str
    """In the configuration."""
    queries: list[Document]
    mutations: dict[str, Document]
    stream: Document | None


def read_resource(faults: Faults, path: str, name: str, value: Any, services: Collection[str]) -> Resource | None:
    """Check one; None where it is faulty."""
    before = len(faults.faults)
    section = Section(faults, path, value)
    service = section.take("service", NEVER, values.text)
    if service is not None and service not in services:
        faults.fault(section.at("service"), f"no such service, there are {listed(services)}, got {service!r}")
    base = section.take("path", NEVER, _path)
    member = section.take("id", "id", _member)
    lists = section.take("lists", None, _lists)
    stream = section.take("stream", None, partial(_stream, faults))
    options = {each: section.value[each] for each in ("stale_time", "gc_time", "offline_time") if section.has(each)}
    section.take("stale_time", None, values.stale_time)
    section.take("gc_time", None, values.endless)
    section.take("offline_time", None, values.endless)
    section.done()
    if len(faults.faults) > before:
        return None
    return _Expansion(name, service, base, member, lists, stream, options).resource(path)


class _Expansion(Struct, frozen=True):
    """See the module."""

    name: str
    service: str
    base: str
    id: str
    lists: list[Document] | None
    stream: Document | None
    options: Document

    def resource(self, path: str) -> Resource:
        one = f"{self.base}/{{id}}"
        return Resource(
            self.name,
            path,
            [
                {
                    "key": [self.name, "list", "{filters}"],
                    "service": self.service,
                    "path": self.base or "/",
                    "params": "{filters}",
                    **self.options,
                },
                {"key": self.detail("{id}"), "service": self.service, "path": one, **self.options},
            ],
            {
                f"{self.name}.create": self.create(),
                f"{self.name}.update": self.update(),
                f"{self.name}.delete": self.delete(),
            },
            None if self.stream is None else self.rules(self.stream),
        )

    def detail(self, identity: str) -> list[Any]:
        return [self.name, "detail", identity]

    def keys(self, at: Path = (), captured: Collection[str] = ()) -> list[list[Any]]:
        """Return the keys of lists, with the members of a thing that is found at a placeholder."""

        def found(path: Path) -> Path:
            return path if path[0] in captured else (*at, *path)

        return [[self.name, "list", template.respelled(filters, found)] for filters in self.lists or [{}]]

    @property
    def variable(self) -> str:
        return f"{{variables.{self.id}}}"

    def mutation(self, method: str, event: str, **more: Any) -> Document:
        """Return what the three have in common: those of one thing are sent one after another."""
        made: Document = {
            "request": {"service": self.service, "method": method, "path": f"{self.base}/{self.variable}"},
            "scope": f"{self.name}:{self.variable}",
            **more,
        }
        if method != "DELETE":
            made["request"] |= {"body": "{variables}", "omit": [self.id]}
        if method != "POST":
            made["variables"] = [self.id]
        if self.lists is None:
            made["invalidate"] = [[self.name, "list"]]
        if self.stream is not None and event in self.stream["events"]:
            channel = self.stream.get("channel", self.stream["source"])
            made["confirm_on"] = {"stream": channel, "event": self.stream["events"][event]}
            if method != "POST":
                made["confirm_on"]["where"] = {self.id: self.variable}
        return made

    def create(self) -> Document:
        optimistic = [
            {"append": {"key": key, "item": "{variables}", "by": self.id}, "optional": True}
            for key in self.keys(("variables",))
        ]
        result: list[Document] = [
            {"upsert": {"key": key, "item": "{response}", "by": self.id}} for key in self.keys(("response",))
        ]
        shown_at = {"key": self.detail(f"{{response.{self.id}}}"), "value": "{response}"}
        made = self.mutation(
            "POST", "created", optimistic=optimistic, result=[*result, {"set": shown_at}], temp_id=self.variable
        )
        made["request"]["path"] = self.base or "/"
        return {**made, "response_id": self.id}

    def update(self) -> Document:
        where = {self.id: self.variable}
        detail = self.detail(self.variable)
        edits: dict[str, list[Document]] = {}
        for of in ("variables", "response"):
            value = f"{{{of}}}"
            edits[of] = [{"merge": {"key": detail, "value": value}}]
            edits[of] += [
                {"merge_where": {"key": key, "where": where, "value": value}, "optional": True}
                for key in self.keys((of,))
            ]
        return self.mutation("PATCH", "updated", optimistic=edits["variables"], result=edits["response"])

    def delete(self) -> Document:
        optimistic: list[Document] = [{"delete": {"key": self.detail(self.variable)}}]
        optimistic += [
            {"remove": {"key": key, "where": {self.id: self.variable}}, "optional": True}
            for key in self.keys(("variables",))
        ]
        return self.mutation("DELETE", "deleted", optimistic=optimistic)

    def rules(self, stream: Document) -> Document:
        captured = {hole[0] for hole in template.holes(template.parse(stream.get("channel", "")))}
        keys = self.keys(("data",), captured)
        identity = f"{{data.{self.id}}}"
        where, detail = {self.id: identity}, self.detail(identity)
        meant: dict[str, list[Document]] = {
            "created": [{"append": {"key": key, "item": "{data}", "by": self.id}} for key in keys],
            "updated": [
                {"merge": {"key": detail, "value": "{data}"}},
                *({"merge_where": {"key": key, "where": where, "value": "{data}"}} for key in keys),
            ],
            "deleted": [
                {"delete": {"key": detail}},
                *({"remove": {"key": key, "where": where}} for key in keys),
            ],
        }
        others: list[Document] = [] if self.lists is not None else [{"invalidate": {"key": [self.name, "list"]}}]
        on: dict[str, list[Document]] = {}
        for event, name in stream["events"].items():
            on.setdefault(name, []).extend((*meant[event], *others))
        return {**{each: stream[each] for each in ("source", "channel") if each in stream}, "on": on}


def _path(path: str, value: Any) -> str:
    base = values.path(path, value).rstrip("/")
    if list(template.holes(template.parse(base))):
        raise ConfigError(path, f"takes no placeholders, got {value!r}")
    return base


def _member(path: str, value: Any) -> str:
    if not isinstance(value, str) or not _MEMBER.match(value):
        raise ConfigError(path, f"expected a member's name of letters, digits, '-' and '_', got {value!r}")
    return value


def _lists(path: str, value: Any) -> list[Document]:
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise ConfigError(
            path, f"expected a list of filters such as {{}} or {{owner: '{{owner}}'}}, got {shown(value)}"
        )
    return value


def _stream(faults: Faults, path: str, value: Any) -> Document:
    section = Section(faults, path, value)
    section.take("source", NEVER, values.text)
    section.take("channel", None, values.text)
    section.take("events", NEVER, partial(_events, faults))
    section.done()
    return section.value


def _events(faults: Faults, path: str, value: Any) -> Document:
    section = Section(faults, path, value)
    for each in EVENTS:
        section.take(each, None, values.text)
    section.done()
    if section.is_mapping and not value:
        faults.fault(path, f"expected the names of {listed(EVENTS)}")
    return section.value
