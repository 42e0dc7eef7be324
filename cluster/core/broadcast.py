"""Operations that are for every shard: on what is under a prefix, on an entity, on what is related to one, on a mutation.

They travel beside operations on keys, under names that no key has: a mark before the JSON of what they are about. So they fold per
prefix, entity, relation or mutation, as operations on a key do, and a storm of them costs one per window.
"""

from typing import Any, Literal

from cluster.core.query_key import CanonicalKey, canonical, parse

Kind = Literal["under", "entity", "relation", "confirm"]
MARK = "#"
_MARKS: dict[Kind, str] = {"under": "#u", "entity": "#e", "relation": "#r", "confirm": "#c"}
_KINDS: dict[str, Kind] = {mark: kind for kind, mark in _MARKS.items()}


def name(kind: Kind, about: list[Any]) -> CanonicalKey:
    """Return the name under which an operation on `about` travels: a prefix, [type, id], or [mutation's name].

    Raises:
        RequestError: `about` cannot be a key.
    """
    return CanonicalKey(_MARKS[kind] + canonical(about))


def under(prefix: CanonicalKey) -> CanonicalKey:
    """Return the name under which an operation on everything under a prefix travels."""
    return CanonicalKey(_MARKS["under"] + prefix)


def is_broadcast(key: str) -> bool:
    """Whether a name is not that of an entry."""
    return key[0] == MARK


def read(key: str) -> tuple[Kind, list[Any]]:
    """Return what a name is about."""
    return _KINDS[key[:2]], parse(key[2:])
