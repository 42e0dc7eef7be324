"""Operations: one change to one entry, as data, and what each does.

`apply_all` applies operations to a value in place and says, as RFC 6902 patch members, what it did, so that nobody has to compare the
value before with the value after. An operation that does not fit (a pointer to nothing, an append to an object) does nothing.

Values inside operations are JSON bytes: a whole-value `Set` passes through the cluster without ever being decoded. Upstreams send
bytes that only look like JSON (bad UTF-8, half a surrogate pair, a thousand brackets); to the others that is a mismatch, never a fault.

It is one thing because every operation is a few lines over the same ways to find a place and to say what was done there.

What must not live here: combining operations (`fold`), prefixes and refetching (`Invalidate` is carried out by the shard).
"""

import math
from bisect import bisect_left, insort
from collections.abc import Callable
from enum import IntEnum
from itertools import chain
from typing import Any, Final, get_args

import orjson
from msgspec import Struct

from cluster.core.entry import MAX_DEPTH, Value, is_too_deep
from cluster.core.json_pointer import Tokens, escape, index, resolve, step, tokens
from cluster.core.work import SHIFTED, WRITTEN, Work, check_count
from cluster.errors import ErrorCode, OperationError, RequestError


class Missing(IntEnum):
    """What an operation does when the entry is absent."""

    SKIP = 0
    CREATE = 1


class Guard(Struct, frozen=True, array_like=True):
    """Drop the operation unless `value` is greater than what the entry holds at pointer `at`."""

    at: str
    value: bytes
    """JSON."""


class Set(Struct, frozen=True, array_like=True, tag=0):
    """Replace the value at `at`."""

    value: bytes
    at: str = ""
    missing: Missing = Missing.CREATE
    default: bytes | None = None
    guard: Guard | None = None


class Merge(Struct, frozen=True, array_like=True, tag=1):
    """Shallow merge of the object `value` into the object at `at`."""

    value: bytes
    at: str = ""
    missing: Missing = Missing.SKIP
    default: bytes | None = None
    guard: Guard | None = None


class Append(Struct, frozen=True, array_like=True, tag=2):
    """Add `items` (each JSON) at the end of the array at `at`; an item whose member `by` is present replaces in place."""

    items: tuple[bytes, ...]
    at: str = ""
    max_items: int = 0
    """0: no bound."""
    by: str = "id"
    missing: Missing = Missing.SKIP
    default: bytes | None = None
    guard: Guard | None = None


class Prepend(Struct, frozen=True, array_like=True, tag=3):
    """As `Append`, at the front: the last of `items` ends up first, as if each were prepended in turn."""

    items: tuple[bytes, ...]
    at: str = ""
    max_items: int = 0
    by: str = "id"
    missing: Missing = Missing.SKIP
    default: bytes | None = None
    guard: Guard | None = None


class Upsert(Struct, frozen=True, array_like=True, tag=4):
    """Replace the array item with the same member `by` in place, else append."""

    items: tuple[bytes, ...]
    at: str = ""
    by: str = "id"
    missing: Missing = Missing.SKIP
    default: bytes | None = None
    guard: Guard | None = None


class MergeWhere(Struct, frozen=True, array_like=True, tag=5):
    """Shallow merge `value` into every array item whose members equal those of `where` (JSON object)."""

    where: bytes
    value: bytes
    at: str = ""
    missing: Missing = Missing.SKIP
    default: bytes | None = None
    guard: Guard | None = None


class Remove(Struct, frozen=True, array_like=True, tag=6):
    """Remove every array item whose members equal those of `where` (JSON object)."""

    where: bytes
    at: str = ""
    missing: Missing = Missing.SKIP
    default: bytes | None = None
    guard: Guard | None = None


class Increment(Struct, frozen=True, array_like=True, tag=7):
    """Add `by` to the number at `at`."""

    at: str
    by: int | float = 1
    missing: Missing = Missing.SKIP
    default: bytes | None = None
    guard: Guard | None = None


class Delete(Struct, frozen=True, array_like=True, tag=8):
    """Remove the entry (`at` empty) or the member or array item at `at`."""

    at: str = ""
    guard: Guard | None = None


class Invalidate(Struct, frozen=True, array_like=True, tag=9):
    """Mark entries as out of date. The key it stands under is a prefix unless `exact`."""

    exact: bool = False
    refetch: str = "active"
    """active | inactive | all | none"""


class Call(Struct, frozen=True, array_like=True, tag=10):
    """Replace the data by what a Python function makes of it and the event: `(old, event) -> new`."""

    function: str
    """`module:qualified.name`."""
    event: bytes
    """JSON object: event, data, channel captures, id."""
    at: str = ""
    missing: Missing = Missing.SKIP
    default: bytes | None = None
    guard: Guard | None = None


Addition = Append | Prepend | Upsert
Operation = Set | Merge | Append | Prepend | Upsert | MergeWhere | Remove | Increment | Delete | Invalidate | Call
KINDS: dict[type, str] = {kind: kind.__name__.lower() for kind in get_args(Operation)} | {MergeWhere: "merge_where"}
"""As rules call them."""
Reducer = Callable[[str, Any, Any], Any]
"""Runs a function: (reference, old, event) -> new, `UNCHANGED`; raises `OperationError`."""


class _Unchanged:
    """What a reducer gives that leaves the data as it is."""


UNCHANGED: Final = _Unchanged()


class Outcome(Struct, frozen=True):
    """What applying operations to one entry came to."""

    value: Value | None
    """None: the entry is absent."""
    patch: list[bytes] | None
    """RFC 6902 members that lead from the old value to the new; None: there was no old value, or it was replaced whole."""
    changed: bool
    dropped: list[str]
    """Why operations did nothing: `skipped` (the entry is absent), `mismatch`, `stale` (its guard), `function` (it failed)."""


class _Dropped(Exception):  # noqa: N818 - a signal, not an error
    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def apply_all(
    operations: list[Operation],
    value: Value | None,
    reducer: Reducer | None = None,
    placed: Callable[[Operation, Value | None], list[Operation]] | None = None,
    work: Work | None = None,
) -> Outcome:
    """Apply operations in order. `value` is edited in place where that is possible, and then marked as mutated.

    `reducer` runs the functions of `Call`s; `placed` says, when its turn comes, what is applied in place of one; `work` counts.

    Raises:
        LimitError: it takes more than `work` allows; `value` may be half edited.
    """
    if len(operations) == 1 and type(only := operations[0]) is Set and not only.at and only.guard is None:
        if value is not None or only.missing is Missing.CREATE:  # the commonest, at a third of what it takes below
            return Outcome(Value.from_json(only.value), None, changed=True, dropped=[])
    patch: list[bytes] | None = []
    changed = False
    dropped: list[str] = []
    lines = _Lines(work or Work())
    turns = operations if placed is None else chain.from_iterable(placed(each, value) for each in operations)
    for operation in turns:
        try:
            match operation:
                case Set(value=json, at="", guard=None, missing=missing):
                    if value is None and missing is Missing.SKIP:
                        raise _Dropped("skipped")
                    value, patch = Value.from_json(json), None
                case Delete(at="", guard=guard):
                    if value is None:
                        raise _Dropped("skipped")
                    _check_guard(guard, value.object())
                    value, patch = None, None
                case Invalidate():
                    raise AssertionError("the shard invalidates")
                case Call():
                    made = _call(operation, value, reducer)
                    if made is None:
                        continue
                    value, patch = made, None
                case _:
                    value, members = _edit(operation, value, lines)
                    if members is None:
                        patch = None
                    elif not members:
                        continue  # it fits, and is so already
                    elif patch is not None:
                        patch.extend(members)
            changed = True
        except _Dropped as drop:
            dropped.append(drop.reason)
        except OperationError:
            dropped.append("mismatch")
    return Outcome(value, patch, changed, dropped)


def _call(operation: Call, value: Value | None, reducer: Reducer | None) -> Value | None:
    """Return what a function makes of a value; None: it leaves it as it is."""
    if value is None and operation.missing is Missing.SKIP:
        raise _Dropped("skipped")
    if reducer is None:
        raise _Dropped("function")
    if value is None:
        old = None if operation.default is None else decode(operation.default, 0)
    else:
        old = orjson.loads(value.json())  # its own copy: it may edit it and then fail
    try:
        new = reducer(operation.function, old, decode(operation.event, 0))
        if new is UNCHANGED:
            return None
        json = orjson.dumps(new)  # which writes nothing deeper than a value may be
    except (OperationError, TypeError, ValueError):
        raise _Dropped("function") from None
    return Value.from_json(json)


_Edit = Set | Merge | Append | Prepend | Upsert | MergeWhere | Remove | Increment | Delete


def _edit(operation: _Edit, value: Value | None, lines: "_Lines") -> tuple[Value, list[bytes] | None]:
    if value is None:
        if isinstance(operation, Delete) or operation.missing is Missing.SKIP:
            raise _Dropped("skipped")
        document = _start(operation)
        document, _ = _APPLY[type(operation)](operation, document, tokens(operation.at), lines)
        return Value.from_object(document), None
    document = value.object()
    _check_guard(operation.guard, document)
    document, members = _APPLY[type(operation)](operation, document, tokens(operation.at), lines)
    value.mutated(document)
    return value, members


def decode(json: bytes, lead: int) -> Any:
    """Decode a value that will stand `lead` levels deep.

    Raises:
        OperationError: it is not JSON, or the whole would be deeper than can be written.
    """
    try:
        value = orjson.loads(json)
    except ValueError as error:
        raise OperationError(f"not JSON: {error}") from error
    if is_too_deep(json, value, lead):
        raise OperationError(f"deeper than {MAX_DEPTH} levels")
    return value


def fits(json: bytes, lead: int) -> bool:
    """Whether JSON may stand `lead` levels deep."""
    if len(json) < 2 * (MAX_DEPTH - lead):  # a level takes two bytes
        return True
    if json.count(b"[") + json.count(b"{") + lead <= MAX_DEPTH:
        return True
    try:
        decode(json, lead)
    except OperationError:
        return False
    return True


def _start(operation: _Edit) -> Any:
    """What an operation that creates its entry starts from: its default, else the least that its pointer needs."""
    assert not isinstance(operation, Delete)
    if operation.default is not None:
        return decode(operation.default, 0)
    path = tokens(operation.at)
    if not path:
        match operation:
            case Merge():
                return {}
            case Increment():
                return 0
            case _:
                return []
    document: dict[str, Any] = {}
    inner = document
    for token in path[:-1]:
        inner[token] = inner = {}
    return document


def _check_guard(guard: Guard | None, document: Any) -> None:
    if guard is None:
        return
    try:
        stored = resolve(document, tokens(guard.at))
    except OperationError:
        return
    wanted = decode(guard.value, 0)
    numbers = is_number(stored) and is_number(wanted)
    if (numbers or (isinstance(stored, str) and isinstance(wanted, str))) and not wanted > stored:
        raise _Dropped("stale")


def is_number(value: Any) -> bool:
    """Whether a value is a JSON number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Nothing:
    """What stands at a pointer whose last member is missing."""


_NOTHING = _Nothing()


def _target(document: Any, path: Tokens) -> tuple[Any, Any]:
    """Return (parent, what is at `path` or `_NOTHING`); the parent of the root is None."""
    if not path:
        return None, document
    parent = resolve(document, path[:-1])
    token = path[-1]
    if isinstance(parent, dict):
        return parent, parent.get(token, _NOTHING)
    if isinstance(parent, list):
        position = index(token, len(parent))
        return parent, parent[position] if position < len(parent) else _NOTHING
    raise OperationError(f"{token!r} leads into a value that is neither object nor array")


def _place(document: Any, parent: Any, path: Tokens, value: Any, *, is_new: bool) -> Any:
    """Put `value` at `path` and return the document."""
    if parent is None:
        return value
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif is_new:
        parent.append(value)
    else:
        parent[index(path[-1], len(parent))] = value
    return document


def patch_member(op: bytes, at: str, value: bytes | None = None) -> bytes:
    """Return a member of an RFC 6902 patch; `value` is JSON."""
    if value is None:
        return b'{"op":"%b","path":%b}' % (op, orjson.dumps(at))
    return b'{"op":"%b","path":%b,"value":%b}' % (op, orjson.dumps(at), value)


def _set(operation: Set, document: Any, path: Tokens, lines: "_Lines") -> tuple[Any, list[bytes] | None]:
    lines.crossed(document, path)
    parent, target = _target(document, path)
    is_new = target is _NOTHING
    document = _place(document, parent, path, decode(operation.value, len(path)), is_new=is_new)
    if not path:
        return document, None
    return document, [patch_member(b"add" if is_new else b"replace", operation.at, operation.value)]


def _merge(operation: Merge, document: Any, path: Tokens, lines: "_Lines") -> tuple[Any, list[bytes] | None]:
    lines.crossed(document, path)
    parent, target = _target(document, path)
    new = decode(operation.value, len(path))
    if not isinstance(new, dict):
        raise OperationError("merge takes an object")
    if target is _NOTHING:
        return _place(document, parent, path, new, is_new=True), [patch_member(b"add", operation.at, operation.value)]
    if not isinstance(target, dict):
        raise OperationError("merge needs an object to merge into")
    return document, _merge_into(target, new, operation.at, lines.work)


def _merge_into(target: dict[str, Any], new: dict[str, Any], at: str, work: Work) -> list[bytes]:
    work.spend(len(new) * (1 + len(at) // WRITTEN))
    members = []
    for name, value in new.items():
        verb = b"replace" if name in target else b"add"
        if verb == b"replace" and json_equal(target[name], value):
            continue
        target[name] = value
        members.append(patch_member(verb, f"{at}/{escape(name)}", orjson.dumps(value)))
    return members


def _array(operation: Addition, document: Any, path: Tokens) -> tuple[Any, list[Any], bool, Any]:
    parent, target = _target(document, path)
    if target is _NOTHING:
        array: list[Any] = []
        return _place(document, parent, path, array, is_new=True), array, True, parent
    if not isinstance(target, list):
        raise OperationError(f"{KINDS[type(operation)]} needs an array")
    return document, target, False, parent


def identity(item: Any, by: str) -> Any:
    """Return a hashable that is equal for items with equal `by` members; None where the item has no such scalar."""
    if not isinstance(item, dict):
        return None
    value = item.get(by)
    if value is None or isinstance(value, dict | list):
        return None
    return (value,) if isinstance(value, bool) else value


def identity_in(json: bytes, by: str) -> Any:
    """Return the `identity` of an item that is JSON; None where it is not."""
    try:
        return identity(decode(json, 0), by)
    except OperationError:
        return None


def array_at(document: Any, at: str) -> list[Any]:
    """Return the array at a pointer; an empty one where there is none."""
    try:
        found = resolve(document, tokens(at))
    except OperationError:
        return []
    return found if isinstance(found, list) else []


MAX_SHIFTED = 2**27
"""Items that those who apply a patch move up or down, one removal after another; beyond it an array is told as a whole."""


class _Line:
    """An array whose items are found by their `identity`, and which is added to at one end and trimmed at the other.

    Items have coordinates that stay put: the array's own indexes when it was looked through, going on past its end for appended items and
    below zero for prepended ones. So it is of use to any number of operations.
    """

    def __init__(self, array: list[Any], by: str, *, is_indexed: bool = True) -> None:
        self.array = array
        self.by = by
        self.low = 0
        self.high = len(array)
        self.places: dict[Any, int | list[int]] = {}
        """Where items are, in order where there are several; those that were trimmed are still among them."""
        self.gone: list[int] = []
        """Where between both ends none is any more."""
        self.trimmed_by: bool | None = None
        """What it was trimmed by: additions at the front, or at the end."""
        if is_indexed:
            for position, item in enumerate(array):
                known = item.get(by) if isinstance(item, dict) else None
                if type(known) not in (int, str):  # which are their own, and the most by far
                    known = identity(item, by)
                if known is None:
                    continue
                held = self.places.setdefault(known, position)
                if isinstance(held, list):
                    held.append(position)
                elif held != position:
                    self.places[known] = [held, position]

    def takes(self, *, front: bool, is_bounded: bool) -> bool:
        """Whether an addition can go on from here: coordinates of what was trimmed are not given out again."""
        return self.trimmed_by in (None, front) and not (is_bounded and self.gone)

    def begin(self, max_items: int, *, front: bool) -> None:
        """An addition begins."""
        self.max_items = max_items
        self.front = front
        self.start, self.end = self.low, self.high
        self.added: list[Any] = []

    def put(self, item: Any) -> tuple[int | None, int]:
        """Add one item. Returns (index at which it replaced another, or None; how many were trimmed)."""
        known = identity(item, self.by)
        found = [] if known is None else self._places_of(known, 1)
        replaced = None
        if found:
            self._store(found[0], item)
            replaced = self._index(found[0])
        else:
            self.added.append(item)
            if self.front:
                self.low -= 1
            else:
                self.high += 1
            if known is not None:
                place = self.low if self.front else self.high - 1
                held = self._held(known)
                self.places[known] = place if not held else [place, *held] if self.front else [*held, place]
        trimmed = 0
        if self.max_items and self.high - self.low > self.max_items:
            trimmed = self.high - self.low - self.max_items
            self.trimmed_by = self.front
            if self.front:
                self.high -= trimmed
            else:
                self.low += trimmed
        return replaced, trimmed

    def finish(self) -> int:
        """Bring the array itself up to date. Returns how many items were moved for it."""
        count = self.high - self.low - len(self.gone)
        if self.front:
            self.array[0:0] = reversed(self.added)
            del self.array[count:]
            return count if self.added else 0
        self.array.extend(self.added)
        surplus = len(self.array) - count
        del self.array[:surplus]
        return count if surplus else 0

    def positions(self, known: Any) -> list[int]:
        """Return the indexes of the items with an identity, in order."""
        return [self._index(place) for place in self._places_of(known)]

    def removed(self, known: Any, positions: list[int]) -> None:
        """Items were removed that all had an identity: `positions` are the indexes they had."""
        held = self._places_of(known)
        taken = set(positions)
        gone = {place for place in held if self._index(place) in taken}
        self.places[known] = [place for place in held if place not in gone]
        for place in gone:
            insort(self.gone, place)

    def _held(self, known: Any) -> list[int]:
        held = self.places.get(known, [])
        return [held] if isinstance(held, int) else held

    def _places_of(self, known: Any, most: int | None = None) -> list[int]:
        places = self._held(known)
        first = bisect_left(places, self.low)
        last = bisect_left(places, self.high)
        return places[first : last if most is None else min(last, first + most)]

    def _index(self, place: int) -> int:
        return place - self.low - bisect_left(self.gone, place)

    def _store(self, place: int, item: Any) -> None:
        if self.front and place < self.start:
            self.added[self.start - place - 1] = item
        elif not self.front and place >= self.end:
            self.added[place - self.end] = item
        else:
            self.array[place - self.start - bisect_left(self.gone, place)] = item


MAX_GONE = 1_000
"""Items that are removed at once before the array is looked through anew."""


class _Lines:
    """The arrays that the operations of one edit have looked through, each once as long as what was found stays true."""

    __slots__ = ("_lines", "_walked", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self._lines: dict[int, _Line] = {}
        """By where their arrays are in memory, which they keep there."""
        self._walked: dict[int, list[Any]] = {}
        """Arrays that were looked through once, for conditions, without keeping what was found: most never are again."""

    def adding(self, array: list[Any], items: list[Any], by: str, max_items: int, *, front: bool) -> _Line:
        """Return the line by which items are added to an array."""
        line = self._lines.get(id(array))
        if line is None or line.by != by or not line.takes(front=front, is_bounded=max_items > 0):
            self.forget(array)
            if any(identity(item, by) is not None for item in items):
                line = self._look_through(array, by)
            else:
                line = _Line(array, by, is_indexed=False)
        line.begin(max_items, front=front)
        return line

    def matching(self, array: Any, where: dict[str, Any], where_bytes: int) -> list[int]:
        """Return the indexes of the items whose members equal those of `where`.

        Raises:
            OperationError: it is no array.
        """
        if not isinstance(array, list):
            raise OperationError("an array is needed")
        each = max(1, _nodes(where) - 1) + where_bytes // SHIFTED
        line = self._line_for(array, where)
        candidates = range(len(array)) if line is None else line.positions(identity(where, line.by))
        self.work.spend(len(candidates) * each)
        members = list(where.items())
        found = []
        for position in candidates:
            item = array[position]
            if isinstance(item, dict):
                for name, want in members:
                    if name not in item or not json_equal(item[name], want):
                        break
                else:
                    found.append(position)
        return found

    def _line_for(self, array: list[Any], where: dict[str, Any]) -> _Line | None:
        """Return the line by which a condition finds items; None: they are to be looked at one by one."""
        line = self._lines.get(id(array))
        if line is not None and identity(where, line.by) is not None:
            return line
        names = [name for name in where if identity(where, name) is not None]
        if not names:
            return None
        if id(array) not in self._walked:
            self._walked[id(array)] = array
            return None
        return self._look_through(array, "id" if "id" in names else names[0])

    def _look_through(self, array: list[Any], by: str) -> _Line:
        self.work.spend(len(array))
        line = self._lines[id(array)] = _Line(array, by)
        return line

    def merged(self, array: list[Any], where: dict[str, Any], new: dict[str, Any]) -> None:
        """Members were merged into items of an array."""
        line = self._lines.get(id(array))
        if line is not None and line.by in new:
            known = identity(new, line.by)
            if known is None or known != identity(where, line.by):
                self.forget(array)

    def removed(self, array: list[Any], where: dict[str, Any], positions: list[int]) -> None:
        """Items of an array were removed."""
        line = self._lines.get(id(array))
        if line is None:
            return
        known = identity(where, line.by)
        if known is None or len(positions) > MAX_GONE:
            self.forget(array)
        else:
            line.removed(known, positions)

    def crossed(self, document: Any, path: Tokens) -> None:
        """Something at `path` is about to change, and with it what may be known of arrays on the way."""
        if not self._lines:
            return
        for left, token in zip(range(len(path), 0, -1), path, strict=True):
            line = self._lines.get(id(document))
            if line is not None and (left == 1 or (left == 2 and path[-1] == line.by)):
                self.forget(line.array)
            try:
                document = step(document, token)
            except OperationError:
                return

    def forget(self, array: list[Any]) -> None:
        """What is known of an array is not true any more."""
        self._lines.pop(id(array), None)


def _usable(jsons: tuple[bytes, ...], lead: int) -> tuple[list[bytes], list[Any]]:
    """Return (the items that decode, decoded), for one bad item must not take those it was folded with along.

    Raises:
        OperationError: none of them does.
    """
    good, items = [], []
    failure = None
    for json in jsons:
        try:
            items.append(decode(json, lead))
        except OperationError as error:
            failure = error
        else:
            good.append(json)
    if failure is not None and not good:
        raise failure
    return good, items


def _add(operation: Addition, document: Any, path: Tokens, lines: _Lines) -> tuple[Any, list[bytes] | None]:
    jsons, items = _usable(operation.items, len(path) + 1)
    document, array, is_new, _ = _array(operation, document, path)
    if is_new:
        lines.crossed(document, path)
    front = isinstance(operation, Prepend)
    max_items = 0 if isinstance(operation, Upsert) else operation.max_items
    line = lines.adding(array, items, operation.by, max_items, front=front)
    end = operation.at + ("/0" if front else "/-")
    surplus = len(array) + len(items) - max_items if max_items else 0
    wordy = is_new or len(items) > len(array) + 32 or surplus * len(array) > MAX_SHIFTED
    if surplus > 0 and not wordy:
        lines.work.spend(surplus * (1 + len(operation.at) // WRITTEN + len(array) // SHIFTED))
    members = []
    for json, item in zip(jsons, items, strict=True):
        length = line.high - line.low
        replaced, trimmed = line.put(item)
        if wordy:
            continue
        if replaced is None:
            members.append(patch_member(b"add", end, json))
            length += 1
        else:
            members.append(patch_member(b"replace", f"{operation.at}/{replaced}", json))
        for gone in range(trimmed):
            members.append(patch_member(b"remove", f"{operation.at}/{length - 1 - gone if front else 0}"))
    lines.work.spend(1 + line.finish() // SHIFTED)
    if wordy:
        return document, _whole(operation.at, array, lines.work, is_new=is_new)
    return document, members


def _whole(at: str, array: list[Any], work: Work, *, is_new: bool = False) -> list[bytes] | None:
    """Say what became of an array by all that it is now."""
    if not at:
        return None
    json = orjson.dumps(array)
    work.spend(len(json) // SHIFTED)
    return [patch_member(b"add" if is_new else b"replace", at, json)]


def json_equal(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(json_equal(left[name], right[name]) for name in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(json_equal, left, right))
    return bool(left == right)


def _condition(json: bytes) -> dict[str, Any]:
    condition = decode(json, 0)
    if not isinstance(condition, dict):
        raise OperationError("'where' is an object")
    return condition


def _nodes(value: Any) -> int:
    """Count what a value consists of: no comparison with it takes more."""
    if isinstance(value, dict | list):
        return 1 + sum(map(_nodes, value.values() if isinstance(value, dict) else value))
    return 1


def _merge_where(operation: MergeWhere, document: Any, path: Tokens, lines: _Lines) -> tuple[Any, list[bytes] | None]:
    array = resolve(document, path)
    new = decode(operation.value, len(path) + 1)
    if not isinstance(new, dict):
        raise OperationError("merge_where takes an object")
    where = _condition(operation.where)
    positions = lines.matching(array, where, len(operation.where))
    if not positions:
        raise _Dropped("mismatch")
    lines.work.spend(len(positions) * (1 + len(operation.value) // WRITTEN))
    members: list[bytes] = []
    for position in positions:
        members.extend(_merge_into(array[position], new, f"{operation.at}/{position}", lines.work))
        new = orjson.loads(operation.value)  # items may not share what is edited in place later
    lines.merged(array, where, new)
    return document, members


def _remove(operation: Remove, document: Any, path: Tokens, lines: _Lines) -> tuple[Any, list[bytes] | None]:
    array = resolve(document, path)
    where = _condition(operation.where)
    positions = lines.matching(array, where, len(operation.where))
    if not positions:
        raise _Dropped("mismatch")
    lines.removed(array, where, positions)
    shifted = len(positions) * len(array)
    if shifted > MAX_SHIFTED:
        lines.work.spend(len(array))
        gone = set(positions)
        array[:] = [item for position, item in enumerate(array) if position not in gone]
        return document, _whole(operation.at, array, lines.work)
    lines.work.spend(shifted // SHIFTED + len(positions) * (1 + len(operation.at) // WRITTEN))
    for position in reversed(positions):
        del array[position]
    return document, [patch_member(b"remove", f"{operation.at}/{position}") for position in reversed(positions)]


def _increment(operation: Increment, document: Any, path: Tokens, lines: _Lines) -> tuple[Any, list[bytes] | None]:
    lines.crossed(document, path)
    parent, target = _target(document, path)
    is_new = target is _NOTHING
    if not is_new and not is_number(target):
        raise OperationError("increment needs a number")
    total = (0 if is_new else target) + operation.by
    if not math.isfinite(total):
        raise OperationError("increment leads beyond all numbers")
    if isinstance(total, int) and not -(2**63) <= total < 2**63:
        total = float(total)
    document = _place(document, parent, path, total, is_new=is_new)
    if not path:
        return document, [patch_member(b"replace", "", orjson.dumps(total))]
    return document, [patch_member(b"add" if is_new else b"replace", operation.at, orjson.dumps(total))]


def _delete(operation: Delete, document: Any, path: Tokens, lines: _Lines) -> tuple[Any, list[bytes] | None]:
    lines.crossed(document, path)
    parent = resolve(document, path[:-1])
    step(parent, path[-1])
    if isinstance(parent, dict):
        del parent[path[-1]]
    else:
        lines.work.spend(len(parent) // SHIFTED)
        del parent[index(path[-1], len(parent))]
    return document, [patch_member(b"remove", operation.at)]


_APPLY: dict[type, Callable[[Any, Any, Tokens, _Lines], tuple[Any, list[bytes] | None]]] = {
    Set: _set,
    Merge: _merge,
    Append: _add,
    Prepend: _add,
    Upsert: _add,
    MergeWhere: _merge_where,
    Remove: _remove,
    Increment: _increment,
    Delete: _delete,
}


_ARGUMENTS: dict[str, tuple[type, tuple[str, ...], tuple[str, ...]]] = {
    "set": (Set, ("value",), ("at",)),
    "merge": (Merge, ("value",), ("at",)),
    "append": (Append, ("item",), ("at", "max_items", "by")),
    "prepend": (Prepend, ("item",), ("at", "max_items", "by")),
    "upsert": (Upsert, ("item",), ("at", "by")),
    "merge_where": (MergeWhere, ("where", "value"), ("at",)),
    "remove": (Remove, ("where",), ("at",)),
    "increment": (Increment, ("at",), ("by",)),
    "delete": (Delete, (), ("at",)),
}
"""Struct, required and optional arguments of each operation a client may send; beside them `when_missing` and `default`."""


def parse_operations(specifications: Any) -> list[Operation]:
    """Read operations as a client sends them: `[{"append": {"at": "/tasks", "item": {}}}]`.

    Raises:
        RequestError: `BAD_REQUEST`, with path, reason and value.
        LimitError: `TOO_LARGE`, there are too many.
    """
    if not isinstance(specifications, list) or not specifications:
        raise RequestError(
            ErrorCode.BAD_REQUEST, f"operations: expected a list of operations, got {specifications!r:.60}"
        )
    check_count(len(specifications))
    return [_parse(f"operations.{position}", each) for position, each in enumerate(specifications)]


def _parse(path: str, specification: Any) -> Operation:
    def fault(at: str, reason: str) -> RequestError:
        return RequestError(ErrorCode.BAD_REQUEST, f"{path}{at}: {reason}")

    if not isinstance(specification, dict) or len(specification) != 1:
        raise fault("", f"expected one operation, got {specification!r:.60}")
    ((kind, arguments),) = specification.items()
    if kind not in _ARGUMENTS:
        raise fault(f".{kind}", f"unknown operation, expected one of {', '.join(_ARGUMENTS)}")
    if not isinstance(arguments, dict):
        raise fault(f".{kind}", f"expected the operation's arguments, got {arguments!r:.60}")
    struct, required, optional = _ARGUMENTS[kind]
    creating = () if kind == "delete" else ("when_missing", "default")
    for name in required:
        if name not in arguments:
            raise fault(f".{kind}.{name}", "required")
    made: dict[str, Any] = {}
    for name, value in arguments.items():
        at = f".{kind}.{name}"
        if name not in (*required, *optional, *creating):
            raise fault(at, f"unknown argument, expected one of {', '.join((*required, *optional, *creating))}")
        match name:
            case "value" | "where" | "default":
                if name == "where" and not (isinstance(value, dict) and value):
                    raise fault(at, f"expected an object of members to match, got {value!r:.60}")
                made[name] = orjson.dumps(value)
            case "item":
                made["items"] = (orjson.dumps(value),)
            case "at":
                try:
                    tokens(value if isinstance(value, str) else "no pointer")
                except OperationError:
                    raise fault(at, f"expected a JSON Pointer, got {value!r:.60}") from None
                made["at"] = value
            case "max_items":
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise fault(at, f"expected a whole number above 0, got {value!r:.60}")
                made["max_items"] = value
            case "by":
                good = is_number(value) if kind == "increment" else isinstance(value, str) and value
                if not good:
                    raise fault(
                        at, f"expected {'a number' if kind == 'increment' else 'a member name'}, got {value!r:.60}"
                    )
                made["by"] = value
            case _:
                if value not in ("skip", "create"):
                    raise fault(at, f"expected skip or create, got {value!r:.60}")
                made["missing"] = Missing[value.upper()]
    operation: Operation = struct(**made)
    return operation


def held_bytes(operation: Operation) -> int:
    """Return how long the texts and the JSON are that an operation holds."""
    held = 0
    for name in operation.__struct_fields__:
        member = getattr(operation, name)
        if isinstance(member, bytes | str):
            held += len(member)
        elif isinstance(member, tuple):
            held += sum(map(len, member))
        elif isinstance(member, Guard):
            held += len(member.at) + len(member.value)
    return held


def is_unrepeatable(operation: Operation) -> bool:
    """Whether applying an operation to a value that already holds its effect changes the value again."""
    if isinstance(operation, Increment | Call):
        return True
    if isinstance(operation, Append | Prepend):
        try:
            return any(identity(decode(item, 0), operation.by) is None for item in operation.items)
        except OperationError:
            return False  # it will not be applied at all
    return False
