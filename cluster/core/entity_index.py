"""Normalized entities: where in cached data an object with an identity occurs.

An entity occurs where a member named in `objects` holds it (`author: {id: ...}`), or an array with it; where a member named in `keys`
refers to it (`userId: ...`), and then the member named like the type holds it; and where an entry's key says that its data is such
entities: a list of them, or one.

Keeping every path up to date with every change would cost more than all changes together, for one insertion moves what follows it. So
the index keeps, by entity, the entries it may occur in, which is cheap: only what a change adds is looked at. Where in an entry it
occurs is found when somebody asks, by looking through that entry, and remembered until it changes.

What must not live here: what happens to occurrences (`shard_state`).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from msgspec import Struct

from cluster.core.json_pointer import escape
from cluster.core.operation import identity as scalar

Identity = tuple[str, Any]
"""(type, id as `operation.identity` makes it comparable)."""
Place = tuple[str, bool]
"""(JSON Pointer, whether the entity is there; it is not where an object refers to it by key and does not hold it yet)."""
Occurrences = dict[Identity, list[Place]]


class EntityType(Struct, frozen=True):
    """A declared type."""

    name: str
    id: str = "id"
    """Member that identifies."""
    keys: tuple[str, ...] = ()
    """Members that hold the id of one."""
    objects: tuple[str, ...] = ()
    """Members that hold one, or an array of them."""
    queries: tuple[tuple[Any, ...], ...] = ()
    is_rooted: bool = False
    """Keys have a tenant before what `queries` are the beginning of."""
    """Beginnings of keys whose data is entities of this type."""

    def covers(self, key: list[Any]) -> bool:
        """Whether the data of a key is entities of this type: the key has at most one element more than a beginning."""
        if self.is_rooted:
            key = key[1:]
        return any(
            len(key) <= len(beginning) + 1 and tuple(key[: len(beginning)]) == beginning for beginning in self.queries
        )


GROWTH = 64
"""Entities that edits may add to an entry, beside half of those it has, before it is looked through for which are still there."""


class EntityIndex:
    """See the module. Entries are named by their canonical keys."""

    def __init__(self, types: Mapping[str, EntityType]) -> None:
        self.types = dict(types)
        self._keys = {name: of_type for of_type in self.types.values() for name in of_type.keys}
        self._objects = {name: of_type for of_type in self.types.values() for name in of_type.objects}
        names = sorted({*self._keys, *self._objects})
        pattern = b"|".join(re.escape(orjson.dumps(name)) for name in names)
        self._mentions = re.compile(rb"(?:" + pattern + rb")\s*:").search if names else None
        self._texts = [name.encode() for name in {*names, *(of_type.id for of_type in self.types.values())}]
        self._entries: dict[Identity, dict[str, None]] = {}
        """Entries an entity may occur in."""
        self._held: dict[str, list[Identity]] = {}
        """The same, the other way round."""
        self._grown: dict[str, int] = {}
        """Entities that edits have added to an entry since it was looked through."""
        self._known: dict[Identity, Identity] = {}
        """Every identity once, so that entries share it."""
        self._places: dict[str, Occurrences] = {}
        """Where what occurs in an entry that was asked for, as long as it has not changed."""

    def covering(self, key: list[Any]) -> tuple[EntityType, ...]:
        """Return the types of which a key's data consists, to be passed on with each change."""
        return tuple(of_type for of_type in self.types.values() if of_type.covers(key))

    # --- keeping it up -------------------------------------------------------------------------------------------

    def replaced(self, entry: str, covering: tuple[EntityType, ...], json: bytes) -> None:
        """An entry's data is new as a whole."""
        self._places.pop(entry, None)
        if not covering and not self._may_mention(json):
            if entry in self._held:
                self._forget(entry)
            return
        try:
            data = orjson.loads(json)
        except ValueError:  # what upstreams send can look like JSON and be none
            data = None
        self._hold(entry, set(self.scan(covering, data)))

    def _may_mention(self, json: bytes) -> bool:
        """Whether JSON text may have a member of a declared name; escapes may stand for anything."""
        return self._mentions is not None and (self._mentions(json) is not None or b"\\u" in json or b"\\/" in json)

    def edited(self, entry: str, covering: tuple[EntityType, ...], patch: list[bytes]) -> bool:
        """An entry's data was changed by RFC 6902 members.

        What is taken out is not noticed. Returns whether so much has come since that the entry should be looked through (`replaced`).
        """
        self._places.pop(entry, None)
        come = 0
        for member in patch:
            if not covering and not self._may_add(member):
                continue
            step = orjson.loads(member)
            if "value" in step:
                come += self._add(entry, self._added(covering, step["path"], step["value"]))
        if not come:
            return False
        grown = self._grown[entry] = self._grown.get(entry, 0) + come
        return grown > GROWTH + len(self._held[entry]) // 2

    def removed(self, entry: str) -> None:
        """An entry is gone."""
        self._places.pop(entry, None)
        if entry in self._held:
            self._forget(entry)

    def _may_add(self, member: bytes) -> bool:
        """Whether a patch member mentions a declared name at all, in its path or in its value."""
        return b"\\u" in member or b"\\/" in member or any(name in member for name in self._texts)

    def _added(self, covering: tuple[EntityType, ...], path: str, value: Any) -> set[Identity]:
        """Return what may occur in an entry because of a value that was put at `path`; rather too much than too little."""
        last = ["", *path.rsplit("/", 2)][-2:]
        holder, name = (token.replace("~1", "/").replace("~0", "~") for token in last)
        found: Occurrences = self.scan((), {name: value})
        if holder in self._objects:
            _note_held(self._objects[holder], value, "", found)
        for of_type in covering:
            for part in [value, *value] if isinstance(value, list) else [value]:  # all pages may have come at once
                _cover(of_type, part, found)
        known = scalar({name: value}, name)
        if known is not None:  # perhaps the id of an object that is there already
            return {*found, *((of_type.name, known) for of_type in self.types.values() if of_type.id == name)}
        return set(found)

    def _hold(self, entry: str, found: set[Identity]) -> None:
        self._grown.pop(entry, None)
        before = self._held.pop(entry, [])
        for gone in before:
            if gone not in found:
                self._drop(entry, gone)
        if found:
            self._held[entry] = [each for each in before if each in found]
            self._add(entry, found)

    def _add(self, entry: str, found: set[Identity]) -> int:
        """Note that entities may occur in an entry. Returns how many were not known to."""
        come = [each for each in found if entry not in self._entries.get(each, ())]
        for each in come:
            self._entries.setdefault(self._known.setdefault(each, each), {})[entry] = None
        if come:
            self._held.setdefault(entry, []).extend([self._known[each] for each in come])
        return len(come)

    def _forget(self, entry: str) -> None:
        self._grown.pop(entry, None)
        for gone in self._held.pop(entry):
            self._drop(entry, gone)

    def _drop(self, entry: str, gone: Identity) -> None:
        entries = self._entries[gone]
        del entries[entry]
        if not entries:
            del self._entries[gone]
            del self._known[gone]

    # --- asking --------------------------------------------------------------------------------------------------

    def entries(self, type_: str, identity: Any) -> list[str]:
        """Return the entries an entity may occur in."""
        return list(self._entries.get((type_, identity), ()))

    def holders(self, types: set[str]) -> Iterator[str]:
        """Yield the entries in which entities of some types may occur."""
        for entry, held in self._held.items():
            if any(type_ in types for type_, _ in held):
                yield entry

    def places(self, entry: str, covering: tuple[EntityType, ...], data: Any, type_: str, identity: Any) -> list[Place]:
        """Return where in an entry, whose data is `data`, an entity occurs."""
        places = self._places.get(entry)
        if places is None:
            places = self._places[entry] = self.scan(covering, data)
            self._hold(entry, set(places))
        return places.get((type_, identity), [])

    def scan(self, covering: tuple[EntityType, ...], data: Any) -> Occurrences:
        """Return everything that occurs in a value, and where."""
        found: Occurrences = {}
        for of_type in covering:
            _cover(of_type, data, found)
        stack: list[tuple[Any, str]] = [(data, "")]
        while stack:
            value, at = stack.pop()
            if isinstance(value, list):
                stack.extend(
                    (item, f"{at}/{position}") for position, item in enumerate(value) if isinstance(item, dict | list)
                )
                continue
            if not isinstance(value, dict):
                continue
            for name, item in value.items():
                if isinstance(item, dict | list):
                    path = f"{at}/{escape(name)}"
                    stack.append((item, path))
                    if name in self._objects:
                        _note_held(self._objects[name], item, path, found)
                else:
                    referred = self._keys.get(name)
                    if referred is not None and (known := scalar(value, name)) is not None:
                        is_there = scalar(value.get(referred.name), referred.id) == known
                        if not is_there or referred.name not in referred.objects:
                            path = f"{at}/{escape(referred.name)}"
                            _note(found, (referred.name, known), (path, is_there))
        for places in found.values():
            places.sort()
        return found


def _cover(of_type: EntityType, data: Any, found: Occurrences) -> None:
    """Find the entities that the data of an entry consists of: one, a list, or an infinite list of them."""
    if isinstance(data, dict) and isinstance(data.get("pages"), list) and isinstance(data.get("page_params"), list):
        for number, page in enumerate(data["pages"]):
            _note_held(of_type, page, f"/pages/{number}", found)
    else:
        _note_held(of_type, data, "", found)


def _note_held(of_type: EntityType, value: Any, at: str, found: Occurrences) -> None:
    """Find the entities that stand at a pointer: one, or a list of them."""
    if isinstance(value, list):
        for position, item in enumerate(value):
            if (known := scalar(item, of_type.id)) is not None:
                _note(found, (of_type.name, known), (f"{at}/{position}", True))
    elif (known := scalar(value, of_type.id)) is not None:
        _note(found, (of_type.name, known), (at, True))


def _note(found: Occurrences, identity: Identity, place: Place) -> None:
    places = found.setdefault(identity, [])
    if place not in places:
        places.append(place)
