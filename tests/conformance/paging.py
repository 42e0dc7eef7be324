"""Infinite lists over an upstream whose ends move, as the vectors were recorded."""

from typing import Any

from cluster.core.entry import Value
from cluster.core.infinite import Direction, has_page, pages_of
from cluster.core.query_cache import Entry, Fetch, Observer
from cluster.core.query_options import QueryOptions
from tests.conformance.world import ABSENT, World, described

DIRECTIONS = {"next": "forward", "previous": "backward"}
NOT_COMPARED = (
    "key",
    "data",
    "error",
    "error_updated_at",
    "fetch_failure_reason",
    "is_stale",
    "is_active",
    "observers",
)


class RecordedPaging:
    """The paging of a case; it reads the ends as they are when it is asked."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.lo, self.hi = case["lo"], case["hi"]
        self.initial = case["initial_page_param"]
        self.max_pages = case.get("max_pages", 0)

    def next_param(self, pages: list[Any], params: list[Any], last_length: int | None) -> Any:
        step = self.case["step"]
        match self.case["next_mode"]:
            case "offset":
                return params[-1] + step if params[-1] + step <= self.hi else None
            case "from_page":
                return pages[-1].get("next")
            case "count":
                return len(pages) * step if len(pages) < self.case["max_count"] else None
        raise AssertionError(self.case)

    def previous_param(self, pages: list[Any], params: list[Any]) -> Any:
        if self.case["prev_mode"] == "none":
            return None
        before = params[0] - self.case["step"]
        return before if before >= self.lo else None

    def param_past(self, pages: list[Any], param: Any, length: int | None) -> Any:
        return None

    def length(self, page: Any) -> int | None:
        return None

    def unseen(self, page: Any, pages: list[Any]) -> Any:
        return page


class PagedWorld(World):
    """Runs the operations of a case of the family."""

    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__({"t0": case["t0"]})
        self.case = case
        self.key = case["key"]
        self.paging = RecordedPaging(case)
        self.made = 0
        self.abortable = case.get("abortable", False)

    def given(self, op: dict[str, Any]) -> QueryOptions:
        stale_time = op.get("stale_time", 0)
        return QueryOptions(
            stale_time=None if stale_time == "Infinity" else stale_time,
            gc_time=None,
            retry=self.case.get("retry", False),
            retry_delay=float(self.case.get("retry_delay", 10)),
            paging=self.paging,
            enabled=op.get("enabled", True),
        )

    @property
    def entry(self) -> Entry | None:
        return next(iter(self.cache), None)

    # --- the upstream ---

    def call(self, entry: Entry, fetch: Fetch) -> None:
        pages = fetch.pages
        assert pages is not None
        if self.abortable:
            self.cache.called.add(entry.key)
        self.ask(pages.param, pages.direction, lambda page: self.take(entry, fetch, page))

    def ask(self, param: Any, direction: Direction | None, then: Any) -> None:
        number, self.made = self.made, self.made + 1
        self.calls.append((int(self.now), param, DIRECTIONS[direction or "next"]))
        page: dict[str, Any] | None = {"p": param, "n": number}
        if number in self.case.get("fail_calls", ()):
            page = None
        elif self.case["next_mode"] == "from_page":
            following = param + self.case["step"]
            page = {"p": param, "n": number, "next": following if following <= self.paging.hi else None}
        latencies = self.case["latencies"]
        self.at(latencies[number % len(latencies)], lambda: then(page if page is not None else f"F{number}"))

    def take(self, entry: Entry, fetch: Fetch, page: Any) -> None:
        self.cache.ended(fetch.service)
        awaited = self.cache.awaited(entry.key, fetch.id)
        if awaited is None:
            self.go_on(fetch, page)
        elif isinstance(page, str):
            self.cache.failed(entry, fetch, page)
        else:
            self.cache.received(entry, fetch, Value.from_object(page))

    def go_on(self, fetch: Fetch, page: Any) -> None:
        """A fetch that was cancelled and does not look at its signal asks for its pages to the end; nobody sees them."""
        pages = fetch.pages
        assert pages is not None
        if self.abortable or isinstance(page, str):
            return
        pages.take(page)
        if not pages.done:
            self.ask(pages.param, pages.direction, lambda then: self.go_on(fetch, then))

    # --- operations ---

    def op_subscribe(self, _: int, op: dict[str, Any]) -> None:
        observer = self.observers["o"] = Observer(self.given(op))
        self.cache.observe(self.build(self.key, observer.options), observer)

    def op_unsubscribe(self, _: int, op: dict[str, Any]) -> None:
        super().op_unsubscribe(_, {**op, "id": "o"})

    def more(self, number: int, op: dict[str, Any], direction: Direction | None) -> None:
        observer = self.observers["o"]
        assert observer.entry is not None
        self.cache.fetch(
            observer.entry,
            observer.options,
            restart=op.get("cancel_refetch", True),
            direction=direction,
            waiter=(number, "nothing"),
        )

    def op_fetch_next(self, number: int, op: dict[str, Any]) -> None:
        self.more(number, op, "next")

    def op_fetch_prev(self, number: int, op: dict[str, Any]) -> None:
        self.more(number, op, "previous")

    def op_refetch(self, number: int, op: dict[str, Any]) -> None:
        self.more(number, op, None)

    def op_fetch_infinite(self, number: int, op: dict[str, Any]) -> None:
        given = self.given(op)
        entry = self.build(self.key, given)
        if entry.is_stale_by(given, self.now):
            self.cache.fetch(entry, given, pages=op.get("pages", 0), waiter=(number, "nothing"))
        else:
            self.settled((number, "nothing"), entry, None)

    def op_set_query_data(self, _: int, op: dict[str, Any]) -> dict[str, Any]:
        entry = self.build(self.key, QueryOptions())
        self.cache.written(entry, Value.from_object({"pages": op["pages"], "page_params": op["page_params"]}))
        return {}

    def op_keep_first_page(self, _: int, op: dict[str, Any]) -> None:
        entry = self.entry
        if entry is not None and entry.value is not None:
            pages, params = pages_of(entry.value.object())
            self.cache.written(entry, Value.from_object({"pages": pages[:1], "page_params": params[:1]}))

    def op_set_range(self, _: int, op: dict[str, Any]) -> None:
        self.paging.lo, self.paging.hi = op.get("lo", self.paging.lo), op.get("hi", self.paging.hi)

    # --- what is to be seen ---

    def seen(self) -> dict[str, Any]:
        entry = self.entry
        seen: dict[str, Any] = {}
        if entry is not None:
            seen = described(entry, self.now)
            for name in NOT_COMPARED:
                seen.pop(name, None)
            if entry.value is not None:
                seen["pages"], seen["page_params"] = pages_of(entry.value.object())
        observer = self.observers.get("o")
        if observer is not None and entry is not None:
            data = ABSENT if entry.value is None else entry.value.object()
            fetching = entry.fetch_status == "fetching"
            failed = entry.status == "error"
            seen["observer"] = {
                "has_next": has_page(self.paging, data, "next"),
                "has_prev": has_page(self.paging, data, "previous"),
                "is_fetching_next": fetching and entry.direction == "next",
                "is_fetching_prev": fetching and entry.direction == "previous",
                "is_fetch_next_error": failed and entry.direction == "next",
                "is_fetch_prev_error": failed and entry.direction == "previous",
                "is_refetching": fetching and entry.status != "pending" and entry.direction is None,
                "is_refetch_error": failed and entry.value is not None and entry.direction is None,
            }
        return seen
