"""Structural sharing: what a refetch left unchanged stays the same object, and what it changed is said as a patch.

`share` is query-core's `replaceEqualDeep`; `difference` turns its result into RFC 6902 members, skipping what is shared.
"""

from typing import Any

import orjson

from cluster.core.equality import Equality
from cluster.core.json_pointer import MAX_TOKENS, escape
from cluster.core.operation import json_equal, patch_member

MAX_SHARED_DEPTH = 500
"""Levels below which nothing is compared any more: what is deeper counts as changed."""


def share(old: Any, new: Any, depth: int = 0) -> Any:
    """Return a value equal to `new` whose parts that equal those of `old` are those of `old`; `old` itself if all do.

    Containers of `new` that differ are copied, so that `new` is never written to.
    """
    if old is new:
        return old
    if isinstance(old, list) and isinstance(new, list):
        if depth > MAX_SHARED_DEPTH:
            return new
        count = len(old)
        items: list[Any] = []
        same = 0
        for position, item in enumerate(new):
            if position >= count:
                items.append(item)
                continue
            held = old[position]
            merged = share(held, item, depth + 1)
            items.append(merged)
            same += merged is held
        return old if same == count == len(new) else items
    if isinstance(old, dict) and isinstance(new, dict):
        if depth > MAX_SHARED_DEPTH:
            return new
        members: dict[str, Any] = {}
        same = 0
        for name, item in new.items():
            if name not in old:
                members[name] = item
                continue
            held = old[name]
            merged = share(held, item, depth + 1)
            members[name] = merged
            same += merged is held
        return old if same == len(old) == len(new) else members
    return old if json_equal(old, new) else new


def difference(old: Any, merged: Any) -> list[bytes] | None:
    """Return the RFC 6902 members that lead from `old` to what `share` made of it; None: it is another value altogether."""
    if not (isinstance(old, list) and isinstance(merged, list)) and not (
        isinstance(old, dict) and isinstance(merged, dict)
    ):
        return None
    members: list[bytes] = []
    _differ(old, merged, "", members, 0, Equality())
    return members


def _differ(old: Any, new: Any, at: str, members: list[bytes], depth: int, equal: Equality) -> None:
    if old is new:
        return
    if depth == MAX_TOKENS:
        members.append(patch_member(b"replace", at, orjson.dumps(new)))
    elif isinstance(old, dict) and isinstance(new, dict):
        for name in old:
            if name not in new:
                members.append(patch_member(b"remove", f"{at}/{escape(name)}"))
        for name, item in new.items():
            path = f"{at}/{escape(name)}"
            if name in old:
                _differ(old[name], item, path, members, depth + 1, equal)
            else:
                members.append(patch_member(b"add", path, orjson.dumps(item)))
    elif isinstance(old, list) and isinstance(new, list):
        _differ_lists(old, new, at, members, depth, equal)
    elif not equal(old, new):
        members.append(patch_member(b"replace", at, orjson.dumps(new)))


def _differ_lists(old: list[Any], new: list[Any], at: str, members: list[bytes], depth: int, equal: Equality) -> None:
    """Items at both ends that stayed are left out; of what is between, pairs are compared, the rest removed or added."""
    first = 0
    shorter = min(len(old), len(new))
    while first < shorter and equal(old[first], new[first]):
        first += 1
    last = 0
    while last < shorter - first and equal(old[-1 - last], new[-1 - last]):
        last += 1
    gone, come = len(old) - first - last, len(new) - first - last
    pairs = min(gone, come)
    for position in range(first, first + pairs):
        _differ(old[position], new[position], f"{at}/{position}", members, depth + 1, equal)
    for position in range(first + gone - 1, first + pairs - 1, -1):
        members.append(patch_member(b"remove", f"{at}/{position}"))
    for position in range(first + pairs, first + come):
        members.append(patch_member(b"add", f"{at}/{position}", orjson.dumps(new[position])))
