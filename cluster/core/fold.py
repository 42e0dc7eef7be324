"""Folding: many operations on one key into few with the same effect.

A window of a busy key holds hundreds of operations, of which a reader sees only the sum. Sending them all costs in every hop;
applying them here is impossible, for the value lives elsewhere. So they are combined symbolically:

- A whole-value set or a removal makes everything before it void.
- The rest is kept as lanes, one per pointer, and a lane as runs of one kind. A run takes in the next operation: list additions
  collect items, merges merge, increments add up, a set replaces what its lane held.
- Lanes that stand open together commute, so an operation may join its lane whatever came to the others in between. They commute when
  no pointer leads into another, no array of unknown length is stepped through by number (`/list/3` counts as the whole of `/list`),
  nothing is guarded, and either the entry surely exists or all behave alike where it is absent. An operation that does not commute
  with the open lanes closes them, and order is kept from there.
- A bounded list forgets: once enough items were surely added to push out whatever was stored, only the last `max_items` count
  (`_settled`), so a window carries at most twice that of a feed, at any rate.

It is one thing because what a run takes in, when lanes commute and what a bounded list forgets must agree to the letter.

The effect is the same for values that are JSON as orjson reads it; sums beyond 2^53 may round differently. Folded operations fold
again: ingestors, coordinators and gateways of any number can combine what others combined.
"""

from functools import lru_cache
from typing import Any

import orjson
from msgspec import structs

from cluster.core.json_pointer import tokens
from cluster.core.operation import (
    Append,
    Call,
    Delete,
    Increment,
    Invalidate,
    Merge,
    MergeWhere,
    Operation,
    Prepend,
    Remove,
    Set,
    Upsert,
    decode,
    fits,
    identity,
)
from cluster.errors import OperationError

OVERHEAD_BYTES = 8
"""What an operation costs on the wire beside its values."""
COMPACT_AT = 64
"""Parts a run collects before it first looks for what has become void. Looking decodes every part (about 1 us each)."""
SUM_LIMIT = 2**53
"""Increments beyond it are kept apart: floats no longer count by one there, and messages carry 64 bits."""


class Fold:
    """The folded operations of one key."""

    __slots__ = (
        "_covers",
        "_exists",
        "_head",
        "_invalidates",
        "_lanes",
        "_open",
        "_policy",
        "_prefixes",
        "count",
        "origin",
        "size",
    )

    def __init__(self) -> None:
        self._head: Set | Delete | None = None
        """The last whole-value set or removal."""
        self._lanes: list[_Lane] = []
        """In order; those of `_open` are the last."""
        self._open = _NO_LANES
        self._covers = _NO_POINTERS
        """Pointers whose whole subtree an open lane claims."""
        self._prefixes = _NO_POINTERS
        """Pointers that lead to a cover."""
        self._exists = False
        """Whether the entry surely exists where the open lanes apply."""
        self._policy: bytes | None = None
        """What all open lanes do where the entry is absent: empty for skip, else the default. None: undecided."""
        self._invalidates: tuple[Invalidate, ...] = ()
        self.count = 0
        """Operations before folding."""
        self.origin = -1
        """Number of the rule that made the last of them."""
        self.size = 0
        """Approximate bytes on the wire."""

    def add(self, operation: Operation, count: int = 1) -> int:
        """Fold one operation in, which stands for `count`. Returns by how many bytes the fold grew; less than nothing where it shrank."""
        self.count += count
        if type(operation) is Set:
            if not operation.at and operation.missing and operation.guard is None:
                size = len(operation.value) + OVERHEAD_BYTES
                grown = size - self.size
                self.size = size
                self._head = operation
                self._exists = True
                if self._lanes:
                    self._restart()
                return grown
        elif isinstance(operation, Invalidate):
            if operation not in self._invalidates:
                self._invalidates = (*self._invalidates, operation)
            return 0
        grown = self._edit(operation)
        self.size += grown
        return grown

    def _edit(self, operation: "_Edit") -> int:
        removes = type(operation) is Delete
        if operation.guard is not None or type(operation) is Call:
            self._close()
            if removes and not operation.at:
                self._exists = False
            return self._begin(operation)
        if removes and not operation.at:
            return self._remove(operation)
        lane = self._open.get(operation.at)
        if (
            lane is not None
            and (self._exists or _policy(operation) == self._policy)
            and not (removes and _footprint(operation.at)[0] != operation.at)
        ):
            return lane.take(operation)
        return self._lane(operation)

    def extend(self, operations: list[Operation], count: int) -> int:
        """Fold in what another fold of this key holds. Returns by how many bytes this one grew."""
        before = self.count
        grown = 0
        for operation in operations:
            grown += self.add(operation)
        self.count = before + count
        return grown

    def operations(self) -> list[Operation]:
        """Return the folded operations, invalidations last: an entry invalidated in a window is out of date at its end."""
        operations: list[Operation] = [] if self._head is None else [self._head]
        for lane in self._lanes:
            for run in lane.runs:
                operations.extend(run.operations())
        operations.extend(self._invalidates)
        return operations

    def _restart(self) -> None:
        self._lanes = []
        self._close()

    def _close(self) -> None:
        if self._open:
            self._open, self._covers, self._prefixes = _NO_LANES, _NO_POINTERS, _NO_POINTERS
        self._policy = None

    def _remove(self, operation: "_Edit") -> int:
        self._restart()
        assert isinstance(operation, Delete)
        self._head = operation
        self._exists = False
        return OVERHEAD_BYTES - self.size

    def _lane(self, operation: "_Edit") -> int:
        """Open a lane, closing the others first if `operation` does not commute with them."""
        cover, prefixes, foldable = _footprint(operation.at)
        kind = type(operation)
        policy = _policy(operation)
        creates = foldable and not self._exists and policy is None and _surely_fits(operation)
        if (kind is Delete and cover != operation.at) or (policy is None and not self._exists and not creates):
            foldable = False
        if (
            not foldable
            or (not self._exists and self._policy is not None and policy != self._policy)
            or cover in self._covers
            or cover in self._prefixes
            or not self._covers.isdisjoint(prefixes)
        ):
            self._close()
        grown = self._begin(operation)
        if foldable:
            if not self._open:
                self._open, self._covers, self._prefixes = {}, set(), set()
            lane = self._lanes[-1]
            lane.may_create = not self._exists and policy != b""
            self._open[operation.at] = lane
            self._covers.add(cover)
            self._prefixes.update(prefixes)
            self._policy = policy
        if creates:
            self._exists = True
        return grown

    def _begin(self, operation: "_Edit") -> int:
        lane = _Lane(operation)
        self._lanes.append(lane)
        return lane.runs[0].size


_Edit = Set | Merge | Append | Prepend | Upsert | MergeWhere | Remove | Increment | Delete | Call


def _policy(operation: _Edit) -> bytes | None:
    """What an operation does where the entry is absent, comparable; None: it creates the entry from nothing."""
    if isinstance(operation, Delete) or not operation.missing:
        return b""
    if operation.default is None and isinstance(operation, MergeWhere | Remove):
        return b""  # they find nothing to act on, so nothing is created
    return operation.default


def _surely_fits(operation: _Edit) -> bool:
    """Whether an operation that creates its entry from nothing surely does so."""
    lead = len(tokens(operation.at))
    match operation:
        case Merge(value=value):
            return value[:1] == b"{" and fits(value, lead)
        case Set(value=value):
            return fits(value, lead)
        case Append(items=items) | Prepend(items=items) | Upsert(items=items):
            return not items or fits(items[0], lead + 1)
        case Increment(by=by):
            return type(by) is int
    return False


@lru_cache(maxsize=4096)
def _footprint(at: str) -> tuple[str, frozenset[str], bool]:
    """Return (pointer whose subtree an operation at `at` may touch, what leads to it, whether such operations fold)."""
    try:
        path = tokens(at)
    except OperationError:
        return at, frozenset(), False
    cover, foldable = at, True
    if path and (path[-1] == "-" or path[-1].isdigit()):
        cover, foldable = at[: at.rfind("/")], path[-1] != "-"
    prefixes = []
    lead = cover
    while lead:
        lead = lead[: lead.rfind("/")]
        prefixes.append(lead)
    return cover, frozenset(prefixes), foldable


class _Lane:
    """The operations at one pointer, in order."""

    __slots__ = ("may_create", "runs")

    def __init__(self, operation: _Edit) -> None:
        self.runs = [_Run(operation)]
        self.may_create = False
        """Whether its operations may have created the entry, so that dropping them could lose it."""

    def take(self, operation: _Edit) -> int:
        if isinstance(operation, Set):
            if fits(operation.value, len(tokens(operation.at))):
                first = self.runs[0].first
                if _policy(first) is None and (operation.missing is not first.missing or operation.default is not None):
                    # What creates the entry must go on doing so.
                    operation = Set(operation.value, operation.at, first.missing)
                return self._replace(operation)
        elif isinstance(operation, Delete):
            if not self.may_create:
                return self._replace(operation)
        elif type(operation) is self.runs[-1].kind:
            grown = self.runs[-1].take(operation)
            if grown is not None:
                return grown
        run = _Run(operation)
        self.runs.append(run)
        return run.size

    def _replace(self, operation: _Edit) -> int:
        run = _Run(operation)
        grown = run.size - (self.runs[0].size if len(self.runs) == 1 else sum(before.size for before in self.runs))
        self.runs = [run]
        return grown


_NO_LANES: dict[str, _Lane] = {}
_NO_POINTERS: set[str] = set()
"""Most folds open no lane; these stand in until one does, and are never written."""


class _Run:
    """Operations of one kind at one pointer in a row."""

    __slots__ = ("by", "first", "kind", "limit", "max_items", "parts", "size", "total")

    def __init__(self, first: Any) -> None:
        self.first = first
        self.kind = kind = type(first)
        self.parts: Any = None
        """What was collected, from the second operation on: items, objects, pairs or conditions, by kind."""
        self.by: Any = None
        self.max_items = 0
        self.total = 0
        self.limit = COMPACT_AT
        size = OVERHEAD_BYTES + len(first.at)
        if kind is Append or kind is Prepend or kind is Upsert:
            self.by = first.by
            size += sum(map(len, first.items)) + len(first.items)
            if kind is not Upsert:
                self.max_items = first.max_items
                self.limit = max(COMPACT_AT, 3 * first.max_items)
        elif kind is Increment:
            self.total = first.by
        elif kind is MergeWhere or kind is Remove:
            size += len(first.where) + (len(first.value) if kind is MergeWhere else 0)
        elif kind is Call:
            size += len(first.function) + len(first.event)
        elif kind is not Delete:
            size += len(first.value) + (1 if kind is Merge else 0)
        self.size = size

    def take(self, operation: Any) -> int | None:
        """Take in an operation of the same kind. Returns by how many bytes the run grew; None: it does not fit."""
        kind = self.kind
        if kind is Append or kind is Prepend or kind is Upsert:
            if operation.by != self.by or (kind is not Upsert and operation.max_items != self.max_items):
                return None
            if self.parts is None:
                self.parts = list(self.first.items)
            items = operation.items
            self.parts += items
            grown = len(items[0]) + 1 if len(items) == 1 else sum(map(len, items)) + len(items)
        elif kind is Merge:
            if operation.value[:1] != b"{" or self.first.value[:1] != b"{":
                return None
            if self.parts is None:
                self.parts = [self.first.value]
            self.parts.append(operation.value)
            grown = len(operation.value) + 1
        elif kind is Increment:
            if type(operation.by) is not int or type(self.total) is not int:
                return None
            total = self.total + operation.by
            if abs(total) > SUM_LIMIT:
                return None
            self.total = total
            return 0
        elif kind is MergeWhere:
            if self.parts is None:
                self.parts = [(self.first.where, self.first.value)]
            self.parts.append((operation.where, operation.value))
            grown = len(operation.where) + len(operation.value) + OVERHEAD_BYTES
        elif kind is Remove:
            if self.parts is None:
                self.parts = {self.first.where: None}
            if operation.where in self.parts:
                return 0
            self.parts[operation.where] = None
            grown = len(operation.where) + OVERHEAD_BYTES
            self.size += grown
            return grown
        else:
            return None
        self.size += grown
        if len(self.parts) > self.limit and (self.max_items or self.by is None or kind is Upsert):
            grown += self._compact()
        return grown

    def operations(self) -> list[Any]:
        """Return the run as operations."""
        first = self.first
        if self.kind is Increment:
            return [first if self.total == first.by else structs.replace(first, by=self.total)]
        if self.parts is None:
            return [first]
        if self.kind is Remove:
            return [structs.replace(first, where=where) for where in self.parts]
        parts = self._compacted()
        if self.kind is MergeWhere:
            return [structs.replace(first, where=where, value=value) for where, value in parts]
        if self.kind is Merge:
            return [structs.replace(first, value=part) for part in parts]
        return [structs.replace(first, items=tuple(parts))]

    def _compacted(self) -> list[Any]:
        """Return the parts without those that have become void."""
        lead = len(tokens(self.first.at))
        if self.kind is Merge:
            return _merged(self.parts, lead)
        if self.kind is MergeWhere:
            return _merged_where(self.parts, lead + 1)
        if self.kind is Upsert:
            return _latest(self.parts, self.by, lead + 1)
        if self.max_items and len(self.parts) > 2 * self.max_items:
            return _settled(self.parts, self.by, self.max_items, lead + 1)
        parts: list[Any] = self.parts
        return parts

    def _compact(self) -> int:
        """Drop what has become void. Returns by how many bytes the run grew, which is negative.

        The next look comes after about as many more parts as there are now, so that each is decoded a constant number of times.
        """
        parts = self._compacted()
        self.limit = COMPACT_AT + max(2 * len(parts), 6 * self.max_items)
        grown = sum(map(_weight, parts)) - sum(map(_weight, self.parts))
        self.parts = parts
        self.size += grown
        return grown


def _weight(part: Any) -> int:
    return len(part) + 1 if type(part) is bytes else len(part[0]) + len(part[1]) + OVERHEAD_BYTES


def _merged(values: list[bytes], lead: int) -> list[bytes]:
    """Merge objects into one; what is not an object, or does not fit, would change nothing and is left out."""
    members: dict[str, Any] = {}
    found = False
    for value in values:
        try:
            one = decode(value, lead)
        except OperationError:
            continue
        if isinstance(one, dict):
            members.update(one)
            found = True
    return [orjson.dumps(members)] if found else values[:1]


def _merged_where(pairs: list[tuple[bytes, bytes]], lead: int) -> list[tuple[bytes, bytes]]:
    """Merge the values of equal conditions where that cannot show.

    Conditions on one member with different values meet different items, as long as no merge writes that member: they commute.
    Anything else ends the stretch within which pairs are combined.
    """
    done: list[tuple[bytes, bytes]] = []
    stretch: dict[Any, tuple[bytes, dict[str, Any]]] = {}
    member: str | None = None

    def end() -> None:
        done.extend((where, orjson.dumps(members)) for where, members in stretch.values())
        stretch.clear()

    for where, value in pairs:
        try:
            condition, members = decode(where, 0), decode(value, lead)
        except OperationError:
            continue
        if not isinstance(condition, dict) or not isinstance(members, dict):
            continue
        name = next(iter(condition)) if len(condition) == 1 else None
        wanted = None if name is None else identity(condition, name)
        if name is None or wanted is None or name in members:
            end()
            done.append((where, value))
            continue
        if name != member:
            end()
            member = name
        if wanted in stretch:
            stretch[wanted][1].update(members)
        else:
            stretch[wanted] = (where, members)
    end()
    return done or pairs[:1]


def _latest(items: list[bytes], by: str, lead: int) -> list[bytes]:
    """Keep, of items with equal identity, the place of the first and the content of the last."""
    kept: list[bytes] = []
    places: dict[Any, int] = {}
    for item in items:
        try:
            known = identity(decode(item, lead), by)
        except OperationError:
            continue
        if known is None:
            kept.append(item)
        elif known in places:
            kept[places[known]] = item
        else:
            places[known] = len(kept)
            kept.append(item)
    return kept or items[:1]


def _settled(items: list[bytes], by: str, max_items: int, lead: int) -> list[bytes]:
    """Reduce additions to a bounded list to twice the bound, where they determine what the list holds afterwards.

    An item may replace a stored one in place, so the last `max_items` alone do not say what the list holds: which of them replace
    depends on the list. But an item without identity always adds, and of items with different identities at most `max_items` + 1 meet
    stored ones. Once `max_items` were surely added, nothing stored is left; if the next `max_items` differ from those and from one
    another they are all added, and then they are the list. From there on it is known and later items are applied to it. It is told
    as `max_items` nulls, which push out whatever is there, and its items.
    """
    known: list[Any] = []
    raw: list[bytes] = []
    for item in items:
        try:
            known.append(identity(decode(item, lead), by))
        except OperationError:
            continue
        raw.append(item)
    start = 0
    plain = 0
    for position, one in enumerate(known, 1):
        plain = plain + 1 if one is None else 0
        if plain >= max_items:
            start = position
    for end in range(len(known), max(start, 2 * max_items - 1), -max_items):
        if _forgets(known, end, max_items):
            start = end
            break
    if not start:
        return items
    slots: dict[Any, bytes] = {}
    """By identity, or for those without by position; in the list's order."""
    for position in range(start - max_items, len(known)):
        one = known[position]
        name = (position, None) if one is None else one
        if name not in slots and len(slots) == max_items:
            del slots[next(iter(slots))]
        slots[name] = raw[position]
    settled = list(slots.values())
    if all(known[position] is None for position in range(start - max_items, len(known))):
        return settled
    return [b"null"] * max_items + settled


def _forgets(known: list[Any], end: int, max_items: int) -> bool:
    """Whether after `end` items the list holds exactly the last `max_items` of them, whatever it held before."""
    last = [one for one in known[end - max_items : end] if one is not None]
    names = set(last)
    if len(names) < len(last):
        return False
    plain = 0
    seen: set[Any] = set()
    for position in range(end - max_items - 1, -1, -1):
        one = known[position]
        if one is None:
            plain += 1
        elif one in names:
            return False
        else:
            seen.add(one)
        if plain + max(0, len(seen) - max_items - 1) >= max_items:
            return True
    return False
