"""Infinite lists: pages fetched one after the other, kept together as `{"pages": [...], "page_params": [...]}`.

Streams edit pages by pointer. An item that another page holds already is replaced there: none is shown twice.

What must not live here: when pages are fetched (`query_cache`), requests (`declared_query`).
"""

from typing import Any, Literal, Protocol

from msgspec import Struct, structs

from cluster.core.entry import Value
from cluster.core.json_pointer import resolve, tokens
from cluster.core.operation import (
    Addition,
    Operation,
    Upsert,
    array_at,
    identity,
    identity_in,
    is_number,
)
from cluster.errors import OperationError

MAX_REPEATS = 100
"""Pages in a row that were shown before as a whole, after which a list counts as ended: so many items were added that it had better be
fetched anew."""
Direction = Literal["next", "previous"]


class Paging(Protocol):
    """How a list is paged. Parameters are JSON; None: there is no such page."""

    @property
    def initial(self) -> Any:
        """The parameter of the first page of a list that has none yet."""
        ...

    @property
    def max_pages(self) -> int:
        """Pages kept, of which those at the far end are dropped; 0: all."""
        ...

    def next_param(self, pages: list[Any], params: list[Any], last_length: int | None) -> Any:
        """Return the parameter of the page after the last of `pages`, of which there is at least one.

        `last_length`: how many items that page had when it came, as far as is known.
        """
        ...

    def previous_param(self, pages: list[Any], params: list[Any]) -> Any:
        """Return the parameter of the page before the first of `pages`, of which there is at least one."""
        ...

    def param_past(self, pages: list[Any], param: Any, length: int | None) -> Any:
        """Return what to ask for after a page of `length` items, at `param`, all of which `pages` hold; None: nothing."""
        ...

    def length(self, page: Any) -> int | None:
        """Return how many items a page has."""
        ...

    def unseen(self, page: Any, pages: list[Any]) -> Any:
        """Return a page that has come without the items that `pages` hold already; None: none are left of some."""
        ...


def pages_of(data: Any) -> tuple[list[Any], list[Any]]:
    """Return (pages, parameters) of a value; none where it is no infinite list."""
    if isinstance(data, dict):
        pages, params = data.get("pages"), data.get("page_params")
        if isinstance(pages, list) and isinstance(params, list):
            return pages, params
    return [], []


def places(data: Any, at: str) -> list[str]:
    """Return where, in each page of a list, the array is to which a pointer leads in one; elsewhere that pointer alone."""
    _, *path = at.split("/", 3)
    if len(path) < 2 or path[0] != "pages" or not path[1].isdigit():
        return [at]
    return ["/".join(("", "pages", str(number), *path[2:])) for number in range(len(pages_of(data)[0]))]


def where_held(operation: Operation, value: Value | None) -> list[Operation]:
    """Return what is done to a list in place of an operation: an addition to one page replaces items where another page holds them."""
    if not isinstance(operation, Addition):
        return [operation]
    at, by = operation.at, operation.by
    try:
        data = None if value is None else value.object()
    except OperationError:
        return [operation]
    others = [place for place in places(data, at) if place != at]
    wanted = {identity_in(item, by) for item in operation.items} - {None} if others else set()
    if wanted:
        wanted -= {identity(item, by) for item in array_at(data, at)}
    held: dict[Any, str] = {}
    for place in others:
        if len(held) == len(wanted):
            break
        for item in array_at(data, place):
            if (known := identity(item, by)) in wanted:
                held.setdefault(known, place)
    if not held:
        return [operation]
    by_place: dict[str, list[bytes]] = {}
    for json in operation.items:
        by_place.setdefault(held.get(identity_in(json, by), at), []).append(json)
    made: list[Operation] = []
    for place, items in by_place.items():
        if place == at:
            made.append(structs.replace(operation, items=tuple(items)))
        else:
            made.append(Upsert(tuple(items), place, by, operation.missing, operation.default, operation.guard))
    return made


def has_page(paging: Paging, data: Any, direction: Direction, last_length: int | None = None) -> bool:
    """Whether a list can be continued, as query-core's `hasNextPage` and `hasPreviousPage`, for whose vectors it is there."""
    pages, params = pages_of(data)
    if not pages:
        return False
    if direction == "previous":
        return paging.previous_param(pages, params) is not None
    return paging.next_param(pages, params, last_length) is not None


class OffsetPaging(Struct, frozen=True):
    """Paging by a number that grows from page to page, or by what each page says of the next.

    Items that clients were shown before do not come again: a list to which items are added at the top moves on under its readers, and
    the next page begins with what the last one ended with.
    """

    param: str = "offset"
    """Name of the request's parameter."""
    initial: Any = 0
    page_size: int = 20
    step: int = 20
    """From one page's parameter to the next: the page size for offsets, 1 for page numbers."""
    max_pages: int = 0
    by: str = "id"
    """Member that identifies an item."""
    items: str | None = None
    """JSON Pointer to the array of items in a page; None: the page itself, or the only array in it."""
    next: str | None = None
    """JSON Pointer to the next page's parameter in a page; None: counted."""
    previous: str | None = None

    def next_param(self, pages: list[Any], params: list[Any], last_length: int | None) -> Any:
        """Return the parameter of the next page; a page that was not full is the last."""
        if self.next is not None:
            return _member(pages[-1], self.next)
        length = self.length(pages[-1]) if last_length is None else last_length
        if length is None or length < self.page_size or not is_number(params[-1]):
            return None
        following = params[-1] + self.step
        if self.step != self.page_size or not is_number(self.initial):
            return following
        # Items were taken away: what followed them has moved up, and would be jumped over.
        held = self._held(pages) + (params[0] if is_number(params[0]) else self.initial)
        return min(following, held)

    def param_past(self, pages: list[Any], param: Any, length: int | None) -> Any:
        """Return the parameter of what follows the items held, or the next page's where pages are numbered."""
        if self.next is not None or not is_number(param) or length is None or length < self.page_size:
            return None
        following = param + self.step
        return following if self.step != self.page_size else max(following, self._held(pages))

    def _held(self, pages: list[Any]) -> int:
        return sum(self.length(page) or 0 for page in pages)

    def previous_param(self, pages: list[Any], params: list[Any]) -> Any:
        """Return the parameter of the previous page; the first one has none."""
        if self.next is not None or self.previous is not None:
            return None if self.previous is None else _member(pages[0], self.previous)
        if not is_number(params[0]) or not is_number(self.initial) or params[0] <= self.initial:
            return None
        return max(params[0] - self.step, self.initial)

    def length(self, page: Any) -> int | None:
        """Return how many items a page has."""
        items = self._items(page)
        return None if items is None else len(items)

    def unseen(self, page: Any, pages: list[Any]) -> Any:
        """Return a page without the items, by identity, that `pages` hold; None: none are left of some."""
        items = self._items(page)
        if not items:
            return page
        seen = {
            known
            for each in pages
            for item in self._items(each) or ()
            if (known := identity(item, self.by)) is not None
        }
        left = []
        for item in items:
            known = identity(item, self.by)
            if known is None or known not in seen:
                left.append(item)
                seen.add(known)
        if len(left) == len(items):
            return page
        if not left:
            return None
        items[:] = left
        return page

    def _items(self, page: Any) -> list[Any] | None:
        if self.items is not None:
            found = _member(page, self.items)
            return found if isinstance(found, list) else None
        if isinstance(page, list):
            return page
        arrays = [value for value in page.values() if isinstance(value, list)] if isinstance(page, dict) else []
        return arrays[0] if len(arrays) == 1 else None


def _member(page: Any, pointer: str) -> Any:
    try:
        return resolve(page, tokens(pointer))
    except OperationError:
        return None


class PageFetch:
    """The pages of one fetch, asked for in turn: one more at an end, or all there are from the first on.

    After a failure it goes on at the page that failed.
    """

    __slots__ = (
        "_paging",
        "_repeated",
        "_repeats",
        "_wanted",
        "added",
        "direction",
        "done",
        "is_cut",
        "last_length",
        "page_params",
        "pages",
        "param",
    )

    def __init__(
        self, paging: Paging, data: Any, direction: Direction | None, pages: int = 0, last_length: int | None = None
    ) -> None:
        """`data`: what is cached, with the length its last page had; `pages`: how many to fetch, if not as many as there are."""
        held, params = pages_of(data)
        self._paging = paging
        self._repeats = 0
        """Pages that were shown before as a whole."""
        self._repeated: Any = None
        """The last of them; the same once more means that the service does not know pages."""
        self.direction: Direction | None = direction if held else None
        """At which end a page is added; None: all are fetched."""
        self.added: tuple[Any, Any] | None = None
        """(page, its parameter) that was added at an end."""
        self.last_length = last_length
        """Items the last page had when it came."""
        self.is_cut = False
        """Pages at the end have given way to one before."""
        self.done = False
        """Nothing (more) is to be asked for."""
        self.pages: list[Any] = list(held) if self.direction is not None else []
        self.page_params: list[Any] = list(params) if self.direction is not None else []
        self._wanted = 1
        if self.direction is None:
            self._wanted = max(pages or len(held), 1)
            self.param: Any = params[0] if params else paging.initial
            """What to ask for."""
        else:
            self._turn()

    def _turn(self) -> None:
        if self.direction == "previous":
            self.param = self._paging.previous_param(self.pages, self.page_params)
        else:
            self.param = self._paging.next_param(self.pages, self.page_params, self.last_length)
        self.done = self.param is None

    def take(self, page: Any) -> None:
        """Take the page that was asked for."""
        limit = self._paging.max_pages
        length = self._paging.length(page)
        unseen = self._paging.unseen(page, self.pages)
        if self.direction == "previous":
            if unseen is not None:
                self.added = (unseen, self.param)
                self.pages.insert(0, unseen)
                self.page_params.insert(0, self.param)
            if limit:
                self.is_cut = len(self.pages) > limit
                del self.pages[limit:], self.page_params[limit:]
        else:
            self.last_length = length
            if unseen is None:  # all of it was shown before: what is new comes after it
                self._repeats += 1
                is_same, self._repeated = page == self._repeated, page
                if self._repeats < MAX_REPEATS and not is_same:
                    self.param = self._paging.param_past(self.pages, self.param, length)
                else:
                    self.param, self.last_length = None, 0
                self.done = self.param is None
                return
            self.added = (unseen, self.param)
            self.pages.append(unseen)
            self.page_params.append(self.param)
            if limit:
                del self.pages[:-limit], self.page_params[:-limit]
        self._wanted -= 1
        if self.direction is None and self._wanted > 0:
            self._turn()
        else:
            self.param, self.done = None, True

    def retry(self) -> None:
        """Ask again for the page that failed; what is there now may have made it the end."""
        if self.pages and not self._repeats:
            self._turn()

    def extended(self, data: Any) -> dict[str, Any]:
        """Return `data`, a list that may have been edited meanwhile, with the page that was added."""
        pages, params = pages_of(data)
        if self.added is None:
            return {"pages": pages, "page_params": params}
        page, param = self.added
        unseen = self._paging.unseen(page, pages)
        limit = self._paging.max_pages or len(pages) + 1
        if unseen is None:
            return {"pages": pages, "page_params": params}
        if self.direction == "previous":
            return {"pages": [unseen, *pages][:limit], "page_params": [param, *params][:limit]}
        return {"pages": [*pages, unseen][-limit:], "page_params": [*params, param][-limit:]}

    def data(self) -> dict[str, Any]:
        """Return the list."""
        return {"pages": self.pages, "page_params": self.page_params}
