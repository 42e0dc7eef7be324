"""Relations: which keys depend on an entity of a type.

A member of a relation is a key template, under which everything is related that the filled-in key is a prefix of (partially inside
objects), or something that a related key contains as one of its elements.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from cluster.core import template
from cluster.core.operation import json_equal
from cluster.core.query_key import KeyMatcher, elements
from cluster.core.template import MissingCapture, Node, Path
from cluster.core.tenant import NOBODYS, VARIABLE, Tenant


class Contains(Struct, frozen=True):
    """Keys of which one element is this."""

    element: Node


Member = Node | Contains


class Relations:
    """All declared relations, by type."""

    def __init__(self, members: Mapping[str, Sequence[Member]]) -> None:
        self._members = {type_: tuple(of_type) for type_, of_type in members.items()}

    def __contains__(self, type_: object) -> bool:
        return isinstance(type_, str) and type_ in self._members

    @property
    def types(self) -> list[str]:
        """All types."""
        return list(self._members)

    def members(self, type_: str) -> tuple[Member, ...]:
        """Return the members of a type."""
        return self._members.get(type_, ())

    def related(self, type_: str, identity: Any, tenant: str = "") -> "Related":
        """Return what decides whether a key, of a tenant where one is named, is related to an entity."""

        def lookup(path: Path) -> Any:
            if path != (VARIABLE,):
                return identity
            if not tenant:
                raise MissingCapture
            return tenant

        matchers: list[KeyMatcher] = []
        elements: list[Any] = []
        for member in self.members(type_):
            try:
                if isinstance(member, Contains):
                    elements.append(template.build(member.element, lookup))
                else:
                    matchers.append(KeyMatcher(template.build(member, lookup)))
            except MissingCapture:  # an identity that is no text, inside a longer one
                continue
        return Related(matchers, elements, Tenant(tenant))


class Related:
    """Decides whether a key is related to one entity."""

    __slots__ = ("_tenant", "elements", "matchers")

    def __init__(self, matchers: list[KeyMatcher], elements: list[Any], tenant: Tenant = NOBODYS) -> None:
        self._tenant = tenant
        self.matchers = matchers
        self.elements = elements

    @property
    def heads(self) -> list[str] | None:
        """First elements that every related key has one of; None: any key may be related."""
        if self._tenant:
            return [self._tenant.name]
        if self.elements:
            return None
        heads = [matcher.prefix[0] if matcher.prefix else None for matcher in self.matchers]
        texts = [head for head in heads if isinstance(head, str)]
        return list(dict.fromkeys(texts)) if len(texts) == len(heads) else None

    def matches(self, key: str) -> bool:
        """Whether a canonical key is related."""
        if not self._tenant.holds(key):
            return False
        if any(matcher.matches(key) for matcher in self.matchers):
            return True
        return bool(self.elements) and any(
            json_equal(element, wanted) for element in elements(key) for wanted in self.elements
        )
