"""Folding: many operations on one key into few with the same effect.

A window of a busy key holds hundreds of operations, of which a reader sees only the sum. Sending them all costs in every hop;
applying them here is impossible, for the value lives elsewhere. So they are combined symbolically:

- a whole-value set or a removal makes everything before it void;
- list additions of one kind to one array join into one with more items; increments add up; merges merge; a set replaces a set;
- across operations in between only where the two commute: pointers that part at a member name, the same behaviour towards an absent
  entry, no guards, no removals. What does not commute is kept in order.

Folded operations fold again: ingestors, coordinators and gateways of any number can combine what others combined.
"""

from typing import Any

import orjson

from cluster.core.json_pointer import tokens
from cluster.core.operation import (
    Append,
    Delete,
    Increment,
    Invalidate,
    Merge,
    Missing,
    Operation,
    Prepend,
    Set,
    Upsert,
)

LOOK_BACK = 8
"""How far back a partner is sought. Rules make a handful of operations per key and event, so the partner is near or absent."""
OVERHEAD_BYTES = 8
"""What an operation costs on the wire beside its values."""


class Fold:
    """The folded operations of one key."""

    __slots__ = ("_cells", "_invalidates", "count", "size")

    def __init__(self) -> None:
        self._cells: list[Any] = []
        """Operations, or for those still growing `_Growing`."""
        self._invalidates: tuple[Invalidate, ...] = ()
        self.count = 0
        """Operations before folding."""
        self.size = 0
        """Approximate bytes on the wire."""

    def add(self, operation: Operation) -> int:
        """Fold one operation in. Returns by how many bytes the fold grew."""
        self.count += 1
        if type(operation) is Set:
            if not operation.at and operation.guard is None and operation.missing:
                size = len(operation.value) + OVERHEAD_BYTES
                grown = size - self.size
                self._cells = [operation]
                self.size = size
                return grown
        elif type(operation) is Delete:
            if not operation.at and operation.guard is None:
                grown = OVERHEAD_BYTES - self.size
                self._cells = [operation]
                self.size = OVERHEAD_BYTES
                return grown
        elif type(operation) is Invalidate:
            if operation not in self._invalidates:
                self._invalidates = (*self._invalidates, operation)
            return 0
        grown = self._combine(operation)
        self.size += grown
        return grown

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
        return [
            *(cell.operation() if isinstance(cell, _Growing) else cell for cell in self._cells),
            *self._invalidates,
        ]

    def _combine(self, operation: Operation) -> int:
        key = _fold_key(operation)
        if key is not None:
            cells = self._cells
            for position in range(len(cells) - 1, max(-1, len(cells) - 1 - LOOK_BACK), -1):
                cell = cells[position]
                if _fold_key(cell) == key:
                    if not isinstance(cell, _Growing):
                        cell = cells[position] = _Growing(cell)
                    return cell.take(operation)
                if not _commute(cell, operation):
                    break
        self._cells.append(operation)
        return _size(operation)


class _Growing:
    """An operation that others are being folded into."""

    __slots__ = ("at", "default", "first", "guard", "items", "kind", "members", "missing", "total")

    def __init__(self, first: Any) -> None:
        self.first = first
        self.kind = type(first)
        self.at = first.at
        self.missing = first.missing
        self.default = first.default
        self.guard = None
        self.items: list[bytes] = list(first.items) if self.kind in _ADDING else []
        self.members: dict[str, Any] = orjson.loads(first.value) if self.kind is Merge else {}
        self.total: int | float = first.by if self.kind is Increment else 0

    def take(self, operation: Any) -> int:
        if self.kind in _ADDING:
            self.items.extend(operation.items)
            return sum(map(len, operation.items)) + len(operation.items)
        if self.kind is Increment:
            self.total += operation.by
            return 0
        if self.kind is Merge:
            self.members.update(orjson.loads(operation.value))
            return len(operation.value)
        grown = len(operation.value) - len(self.first.value)
        self.first = operation
        return grown

    def operation(self) -> Operation:
        first = self.first
        if self.kind is Append or self.kind is Prepend:
            rebuilt: Operation = self.kind(
                tuple(self.items), self.at, first.max_items, first.by, self.missing, self.default
            )
            return rebuilt
        if self.kind is Upsert:
            return Upsert(tuple(self.items), self.at, first.by, self.missing, self.default)
        if self.kind is Increment:
            return Increment(self.at, self.total, self.missing, self.default)
        if self.kind is Merge:
            return Merge(orjson.dumps(self.members), self.at, self.missing, self.default)
        folded: Operation = first
        return folded


_ADDING = frozenset({Append, Prepend, Upsert})


def _fold_key(cell: Any) -> tuple[Any, ...] | None:
    """What must be equal for two operations to fold into one; None: this one folds with nothing."""
    kind = cell.kind if isinstance(cell, _Growing) else type(cell)
    if cell.guard is not None:
        return None
    if kind is Append or kind is Prepend:
        source = cell.first if isinstance(cell, _Growing) else cell
        return (kind, cell.at, cell.missing, cell.default, source.by, source.max_items)
    if kind is Upsert:
        source = cell.first if isinstance(cell, _Growing) else cell
        return (kind, cell.at, cell.missing, cell.default, source.by)
    if kind is Increment:
        source = cell.first if isinstance(cell, _Growing) else cell
        # Floats do not add up the same in another order, and an integer may not silently become one.
        return (kind, cell.at, cell.missing, cell.default) if isinstance(source.by, int) else None
    if kind is Merge:
        source = cell.first if isinstance(cell, _Growing) else cell
        return (kind, cell.at, cell.missing, cell.default) if source.value[:1] == b"{" else None
    if kind is Set:
        # Setting an array's index may append, and then the same again replaces: not the same as setting once.
        last = tokens(cell.at)[-1:]
        return (kind, cell.at, cell.missing, cell.default) if not last or _is_name(last[0]) else None
    return None


def _commute(left: Any, right: Any) -> bool:
    """Whether two operations may change places."""
    if isinstance(left, Delete) or isinstance(right, Delete) or left.guard is not None or right.guard is not None:
        return False
    if left.missing != right.missing or left.default != right.default:
        return False
    one, other = tokens(left.at), tokens(right.at)
    if left.missing is Missing.CREATE and left.default is None and (len(one) > 1 or len(other) > 1):
        return False  # whichever comes first creates the containers on its way, and only those
    for token, counterpart in zip(one, other, strict=False):
        if token != counterpart:
            return _is_name(token) and _is_name(counterpart)
    return False


def _is_name(token: str) -> bool:
    """Whether a token cannot name an array's item."""
    return token != "-" and not token.isdigit()


def _size(operation: Any) -> int:
    size = OVERHEAD_BYTES + len(operation.at)
    if type(operation) in _ADDING:
        return size + sum(map(len, operation.items))
    value = getattr(operation, "value", b"")
    where = getattr(operation, "where", b"")
    return size + len(value) + len(where)
