"""What streams said shortly before a response, and while it was on its way, over that response.

Which of it the response has is not known. Applied again, most of it changes nothing that is there already; but an item that was added,
and that the response lacks, would be added as the newest of all. That is right where the response is older than the item, and wrong
where so many came after it that a service which gives only the newest leaves it out. The list as it stands here tells the two apart,
for in it every item has its place: if what the response ends with, where the oldest stands, is newer than the item, it was left out.

What must not live here: which operations are to be applied again (`shard_state`), what they do (`operation`).
"""

from math import inf
from typing import Any

from msgspec import structs

from cluster.core.entry import Value
from cluster.core.infinite import places, where_held
from cluster.core.operation import Addition, Operation, Prepend, array_at, identity, identity_in
from cluster.errors import OperationError


class Replay:
    """See the module. One is for one response."""

    __slots__ = ("_is_paged", "_live", "_orders")

    def __init__(self, live: Value | None, *, is_paged: bool) -> None:
        """`live`: the entry as it is, with all that streams said; `is_paged`: it is a list of pages."""
        self._live = live
        self._is_paged = is_paged
        self._orders: dict[tuple[str, str], dict[Any, int]] = {}
        """Where items stand in the entry, by identity, for (pointer, member that identifies them)."""

    def lacking(self, operation: Operation, response: Value | None) -> list[Operation]:
        """Return what of an operation a response, with all before it, is still to be given."""
        if not isinstance(operation, Addition) or response is None:
            return [operation]
        by = operation.by
        try:
            order = self._order(operation.at, by)
            items = self._items(response, operation.at)
        except OperationError:
            return [operation]
        is_newest_first = isinstance(operation, Prepend)

        def age(known: Any) -> float:
            """Greater is newer; what is not in the entry any more was the oldest."""
            place = order.get(known, inf if is_newest_first else -inf)
            return -place if is_newest_first else place

        end = age(identity(items[-1 if is_newest_first else 0], by)) if items else -inf
        held = {None, *(identity(item, by) for item in items)}
        left = tuple(item for item in operation.items if (known := identity_in(item, by)) in held or age(known) >= end)
        if not left:
            return []
        kept = structs.replace(operation, items=left)
        return where_held(kept, response) if self._is_paged else [kept]

    def _items(self, value: Value | None, at: str) -> list[Any]:
        """Return the items of a list: those of all pages where it has some."""
        data = None if value is None else value.object()
        found = places(data, at) if self._is_paged else [at]
        return [item for place in found for item in array_at(data, place)]

    def _order(self, at: str, by: str) -> dict[Any, int]:
        if (at, by) not in self._orders:
            order = {identity(item, by): place for place, item in enumerate(self._items(self._live, at))}
            order.pop(None, None)
            self._orders[at, by] = order
        return self._orders[at, by]
