"""Three-way merge of JSON: what two sides made of the same value, in one.

The problem: a client edited the value of one version and meanwhile the entry went on to another. Taking the last write loses the other's
edit; refusing it makes people do again what did not touch what the other did. Comparing only the two results cannot tell a member that one
side added from one that the other removed.

The method: the value both began with says, for every place, which side changed it. A place changed by one side is taken from that side; by
both alike, from either; by both differently it is a conflict, unless it can be looked into:

- objects, member by member;
- arrays of objects that have an `id` each, no two the same, on all three sides: by id. Items that were added stand behind what they
  were added behind. An array is a conflict where both sides put the items they share in another order, not the same;
- other arrays are compared as a whole: an index says nothing about which item it was.

Nothing is merged in part: with a conflict there is no result. A conflict is told as a JSON Pointer into their value (`theirs`); of an item
that is no longer there, as that of its array.

What must not live here: versions, and where the earlier value comes from (`recent_values`).
"""

from typing import Any

from cluster.core.equality import Equality
from cluster.core.json_pointer import escape
from cluster.core.operation import identity

BY = "id"
"""The member that tells items of an array apart."""


class _Absent:
    __slots__ = ()


_ABSENT: Any = _Absent()


def three_way_merge(base: Any, mine: Any, theirs: Any) -> tuple[Any, list[str]]:
    """Return (the merged value, no conflicts), or (None, pointers to where both changed the same place differently).

    What is merged consists of parts of the three, which are not written to.
    """
    merging = _Merging()
    merged = merging.merge(base, mine, theirs, "")
    conflicts = list(dict.fromkeys(merging.conflicts))
    return (None, conflicts) if conflicts else (merged, [])


class _Merging:
    """One merge."""

    __slots__ = ("_equal", "conflicts")

    def __init__(self) -> None:
        self.conflicts: list[str] = []
        self._equal = Equality()

    def merge(self, base: Any, mine: Any, theirs: Any, at: str) -> Any:
        """Merge one place; what is `_ABSENT` is not there."""
        if self._equal(base, mine) or self._equal(mine, theirs):
            return theirs
        if self._equal(base, theirs):
            return mine
        if isinstance(base, dict) and isinstance(mine, dict) and isinstance(theirs, dict):
            return self._merge_objects(base, mine, theirs, at)
        if isinstance(base, list) and isinstance(mine, list) and isinstance(theirs, list):
            sides = _by_id(base), _by_id(mine), _by_id(theirs)
            if None not in sides:
                return self._merge_arrays(*sides, at)  # type: ignore[arg-type]  # none of them is None
        self.conflicts.append(at)
        return theirs

    def _merge_objects(
        self, base: dict[str, Any], mine: dict[str, Any], theirs: dict[str, Any], at: str
    ) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for name in [*theirs, *(name for name in mine if name not in theirs)]:
            value = self.merge(
                base.get(name, _ABSENT),
                mine.get(name, _ABSENT),
                theirs.get(name, _ABSENT),
                f"{at}/{escape(name)}",
            )
            if value is not _ABSENT:
                merged[name] = value
        return merged

    def _merge_arrays(self, base: dict[Any, Any], mine: dict[Any, Any], theirs: dict[Any, Any], at: str) -> list[Any]:
        places = {name: f"{at}/{position}" for position, name in enumerate(theirs)}
        merged: dict[Any, Any] = {}
        for name in {**theirs, **mine}:
            value = self.merge(
                base.get(name, _ABSENT),
                mine.get(name, _ABSENT),
                theirs.get(name, _ABSENT),
                places.get(name, at),
            )
            if value is not _ABSENT:
                merged[name] = value
        shared = base.keys() & mine.keys() & theirs.keys()
        orders = [[name for name in side if name in shared] for side in (base, mine, theirs)]
        if orders[0] == orders[1] or orders[1] == orders[2]:
            order = _woven(theirs, mine, base)
        elif orders[0] == orders[2]:
            order = _woven(mine, theirs, base)
        else:
            self.conflicts.append(at)
            order = list(theirs)
        return [merged[name] for name in order if name in merged]


def _by_id(items: list[Any]) -> dict[Any, Any] | None:
    """Return an array's items by id; None: they do not all have one, or share one."""
    found = {identity(item, BY): item for item in items}
    return None if None in found or len(found) < len(items) else found


def _woven(first: dict[Any, Any], second: dict[Any, Any], base: dict[Any, Any]) -> list[Any]:
    """Return the ids of `first`, and between them those that only `second` has added, each behind the one it stands behind there.

    Where both added something behind the same item, that of `first` comes first.
    """
    behind: dict[Any, list[Any]] = {}
    anchor: Any = _ABSENT
    for name in second:
        if name in first:
            anchor = name
        elif name not in base:
            behind.setdefault(anchor, []).append(name)
    order: list[Any] = []
    waiting = behind.get(_ABSENT, [])
    for name in first:
        if name in base or name in second:
            order.extend(waiting)
            waiting = []
        order.append(name)
        if name in behind:  # so `second` has it, and nothing waits
            waiting = behind[name]
    return order + waiting
