"""A query cache with an upstream of recorded answers, under a virtual clock, as the vectors were recorded."""

import heapq
from collections import defaultdict
from typing import Any

from msgspec import UNSET, structs

from cluster.core.entry import Value
from cluster.core.filters import Filter
from cluster.core.query_cache import CANCELLED, Entry, Fetch, Observer, QueryCache
from cluster.core.query_key import canonical
from cluster.core.query_options import DEFAULT_GC_TIME_MS, QueryDefaults, QueryOptions
from tests.conformance.vectors import Difference, key

PINNED = "reset and cancelled fetches never pin an entry"
ABSENT: Any = object()


class RecordedCache(QueryCache):
    """The cluster's cache, made to do as query-core does where the cluster differs on purpose and a setting can tell."""

    abortable: frozenset[str] = frozenset()
    """Keys whose fetch looks at its abort signal."""
    called: set[str]
    """Of those, the keys for which it has been called."""
    pinned: set[str]
    """Keys whose gc timer query-core has cleared, or let pass, for good."""

    def set_options(self, entry: Entry, options: QueryOptions) -> None:
        """Only raise the gc time; without observers never go stale by time."""
        held, given = entry.options.own_gc_time, options.own_gc_time
        longest = None if held is None or given is None else max(held, given)
        super().set_options(entry, structs.replace(options, gc_time=longest, stale_time=None))

    def _gives_up_unobserved(self, entry: Entry, fetch: Fetch) -> bool:
        return entry.key in self.called or super()._gives_up_unobserved(entry, fetch)

    def kept_until(self, entry: Entry) -> float:
        """Do not keep entries for an offline service, which query-core does not know."""
        return 0.0

    def collect(self, entry: Entry) -> None:
        if entry.key in self.pinned:
            raise Difference(PINNED)
        super().collect(entry)


class World:
    """Runs the operations of a case."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.cache = RecordedCache(self)
        self.cache.called, self.cache.pinned = set(), set()
        self.cache.now_ms = float(case.get("t0", 0))
        self.defaults = QueryDefaults(options(case.get("defaults", {})))
        for each in case.get("query_defaults", []):
            self.defaults.register(each["key"], options(each["options"]))
        upstream = case.get("upstream", [])
        self.plans = {canonical(each["key"]): each["plan"] for each in upstream}
        self.cache.abortable = frozenset(canonical(each["key"]) for each in upstream if each.get("abortable"))
        self.counts: dict[str, int] = defaultdict(int)
        self.pending: list[tuple[float, int, Any]] = []
        """Heap of (when, order, what answers)."""
        self.order = 0
        self.observers: dict[Any, Observer] = {}
        self.calls: list[Any] = []
        self.settlements: list[dict[str, Any]] = []
        self.joint: dict[int, list[Any]] = {}
        """By operation that waits for several fetches: [how many are left, error, whether errors count]."""

    @property
    def now(self) -> float:
        return self.cache.now_ms

    # --- what the cache asks for ---

    def call(self, entry: Entry, fetch: Fetch) -> None:
        if entry.key in self.cache.abortable:
            self.cache.called.add(entry.key)
        self.calls.append((int(self.now), entry.key))
        plan = self.plans.get(entry.key, [{"latency": 0, "value": None}])
        step = plan[min(self.counts[entry.key], len(plan) - 1)]
        self.counts[entry.key] += 1
        self.at(step["latency"], lambda: self.answer(entry.key, fetch, step))

    def at(self, latency: float, act: Any) -> None:
        self.order += 1
        heapq.heappush(self.pending, (self.now + latency, self.order, act))

    def answer(self, key: str, fetch: Fetch, step: dict[str, Any]) -> None:
        self.cache.ended(fetch.service)
        awaited = self.cache.awaited(key, fetch.id)
        if awaited is None:
            return
        if "error" in step:
            self.cache.failed(*awaited, step["error"])
        else:
            self.cache.received(*awaited, Value.from_object(step["value"]))

    def hold(self, entry: Entry) -> float | None:
        return None

    def completed(self, entry: Entry, fetch: Fetch, value: Value) -> Value:
        return value

    def changed(self, entry: Entry, fetch: Fetch, patch: list[bytes] | None) -> None:
        """Nobody is told here."""

    def touched(self, entry: Entry) -> None:
        """As above."""

    def removed(self, entry: Entry) -> None:
        self.cache.pinned.discard(entry.key)
        self.cache.called.discard(entry.key)

    def settled(self, waiter: Any, entry: Entry, error: Any) -> None:
        number, kind = waiter
        if kind == "joint":
            joint = self.joint[number]
            joint[0] -= 1
            if error is not None and joint[1] is None and joint[2]:
                joint[1] = error
                self.report(number, error)
            elif not joint[0] and joint[1] is None:
                self.report(number, None)
        elif kind == "silent":
            self.report(number, None)
        else:
            self.report(number, error, entry.value.object() if kind == "value" and error is None else ABSENT)

    def report(self, number: int, error: Any, value: Any = ABSENT) -> None:
        settled: dict[str, Any] = {"op": number, "result": "ok"}
        if error is CANCELLED:
            settled["result"] = "cancelled"
        elif error is not None:
            settled.update(result="error", error=str(error))
        elif value is not ABSENT:
            settled["value"] = value
        self.settlements.append(settled)

    # --- time ---

    def settle(self) -> None:
        while True:
            due = self.cache.deadline()
            if self.pending and self.pending[0][0] <= self.now:
                heapq.heappop(self.pending)[2]()
            elif due is not None and due <= self.now:
                self.cache.wake()
            else:
                return

    def advance(self, ms: float) -> None:
        until = self.now + ms
        while True:
            times = [
                at for at in (self.cache.deadline(), self.pending[0][0] if self.pending else None) if at is not None
            ]
            at = min(times, default=until + 1)
            if at > until:
                break
            self.cache.now_ms = max(at, self.now)
            self.settle()
        self.cache.now_ms = until

    # --- operations ---

    def options(self, op: dict[str, Any]) -> QueryOptions:
        return self.defaults.effective(op["key"], options(op))

    def build(self, parsed: list[Any], given: QueryOptions) -> Entry:
        name = canonical(parsed)
        entry = self.cache.get(name)
        if entry is None:
            entry = self.cache.add(Entry(name, structs.replace(given, stale_time=None)))
        return entry

    def run(self, number: int, op: dict[str, Any]) -> dict[str, Any] | None:
        return getattr(self, "op_" + op["op"])(number, op)

    def write(self, parsed: list[Any], op: dict[str, Any]) -> dict[str, Any]:
        entry = self.cache.get(canonical(parsed))
        held = ABSENT if entry is None or entry.value is None else entry.value.object()
        data = op["data"] if "data" in op else updated(op["updater"], held)
        if data is ABSENT:
            return {"returned": False}
        entry = self.build(parsed, self.options({"key": parsed}))
        at = op.get("updated_at")
        self.cache.written(entry, Value.from_object(data), at)
        return {"returned": True, "value": data}

    def op_set_query_data(self, _: int, op: dict[str, Any]) -> dict[str, Any]:
        return self.write(op["key"], op)

    def op_set_queries_data(self, _: int, op: dict[str, Any]) -> dict[str, Any]:
        matched = []
        for entry in self.cache.find(filter_of(op.get("filters"))):
            returned = self.write(entry.parsed, op)
            matched.append([entry.parsed, returned["value"]] if returned["returned"] else [entry.parsed])
        return {"matched": matched}

    def op_fetch(self, number: int, op: dict[str, Any], kind: str = "value") -> None:
        given = self.options(op)
        if given.retry is UNSET:
            given = structs.replace(given, retry=False)
        entry = self.build(op["key"], given)
        if entry.is_stale_by(given, self.now):
            self.cache.fetch(entry, given, waiter=(number, kind))
        else:
            self.settled((number, kind), entry, None)

    def op_prefetch(self, number: int, op: dict[str, Any]) -> None:
        self.op_fetch(number, op, "silent")

    def op_ensure(self, number: int, op: dict[str, Any]) -> None:
        given = self.options(op)
        entry = self.build(op["key"], given)
        if entry.value is None:
            self.op_fetch(number, op)
            return
        self.settled((number, "value"), entry, None)
        if op.get("revalidate_if_stale") and entry.is_stale_by(given, self.now):
            if given.retry is UNSET:
                given = structs.replace(given, retry=False)
            self.cache.fetch(entry, given)

    def op_subscribe(self, _: int, op: dict[str, Any]) -> None:
        given = self.defaults.effective(op["key"], options(op.get("options", op)))
        observer = self.observers[op["id"]] = Observer(given)
        self.cache.observe(self.build(op["key"], given), observer)

    def op_update_subscription(self, _: int, op: dict[str, Any]) -> None:
        given = self.defaults.effective(op["key"], options(op.get("options", op)))
        self.cache.reobserve(self.build(op["key"], given), self.observers[op["id"]], given)

    def op_unsubscribe(self, _: int, op: dict[str, Any]) -> None:
        observer = self.observers.pop(op["id"])
        fetching = None if observer.entry is None else observer.entry.fetch
        entry = observer.entry
        self.cache.unobserve(observer)
        assert entry is None or fetching is None or entry.fetch is None or entry.fetch is fetching

    def op_observer_refetch(self, number: int, op: dict[str, Any]) -> None:
        observer = self.observers[op["id"]]
        assert observer.entry is not None
        self.cache.fetch(
            observer.entry, observer.options, restart=op.get("cancel_refetch", True), waiter=(number, "nothing")
        )

    def op_invalidate(self, number: int, op: dict[str, Any]) -> None:
        filters = op.get("filters") or {}
        for entry in self.cache.find(filter_of(filters)):
            self.cache.invalidate(entry)
        refetch = op.get("refetch_type") or filters.get("refetch_type") or filters.get("type") or "active"
        if refetch == "none":
            self.report(number, None)
        else:
            self.refetch(number, self.cache.refetchable(filter_of({**filters, "type": refetch})), op)

    def op_refetch(self, number: int, op: dict[str, Any]) -> None:
        self.refetch(number, self.cache.refetchable(filter_of(op.get("filters"))), op)

    def op_reset(self, number: int, op: dict[str, Any]) -> None:
        entries = self.cache.find(filter_of(op.get("filters")))
        self.cache.pinned.update(entry.key for entry in entries if not entry.observers)
        self.refetch(number, [e for e in self.cache.reset(entries) if not e.is_static], op)

    def refetch(self, number: int, entries: list[Entry], op: dict[str, Any]) -> None:
        restart = op.get("cancel_refetch", True)
        joint = self.joint[number] = [0, None, op.get("throw_on_error", False)]
        waiting = []
        for entry in entries:
            fetch = self.cache.fetch(entry, restart=restart)
            if entry.fetch_status != "paused" and entry.fetch is fetch:
                joint[0] += 1
                fetch.waiters.append((number, "joint"))
                waiting.append(fetch)
        if not waiting:
            self.report(number, None)

    def op_remove(self, _: int, op: dict[str, Any]) -> None:
        for entry in self.cache.find(filter_of(op.get("filters"))):
            self.cache.remove(entry)

    def op_cancel(self, number: int, op: dict[str, Any]) -> None:
        revert, silent = op.get("revert", True), op.get("silent", False)
        for entry in self.cache.find(filter_of(op.get("filters"))):
            if silent and not revert and entry.fetch is not None:
                raise Difference(PINNED)
            self.cache.cancel(entry, revert=revert, silent=silent)
        self.report(number, None)

    def op_set_online(self, _: int, op: dict[str, Any]) -> None:
        self.cache.set_online("", online=op["online"])

    def op_advance(self, _: int, op: dict[str, Any]) -> None:
        self.advance(op["ms"])

    # --- what is to be seen ---

    def entries(self) -> list[dict[str, Any]]:
        return [described(entry, self.now) for entry in self.cache]

    def watched(self) -> dict[str, Any]:
        return {name: self.watch(observer) for name, observer in self.observers.items()}

    def watch(self, observer: Observer) -> dict[str, Any]:
        entry = observer.entry
        assert entry is not None
        seen = {
            "key": entry.parsed,
            "status": entry.status,
            "fetch_status": entry.fetch_status,
            "is_stale": observer.sees_stale(entry, self.now),
            "is_enabled": observer.options.enabled,
        }
        if entry.value is not None:
            seen["data"] = entry.value.object()
        return seen


def described(entry: Entry, now: float) -> dict[str, Any]:
    """An entry as the vectors write it."""
    seen: dict[str, Any] = {
        "key": entry.parsed,
        "status": entry.status,
        "fetch_status": entry.fetch_status,
        "is_invalidated": entry.is_invalidated,
        "data_updated_at": int(entry.data_updated_at),
        "data_update_count": entry.data_update_count,
        "error_update_count": entry.error_update_count,
        "error_updated_at": int(entry.error_updated_at),
        "fetch_failure_count": entry.fetch_failure_count,
        "is_stale": entry.is_stale(now),
        "is_active": entry.is_active,
        "observers": len(entry.observers),
    }
    if entry.value is not None:
        seen["data"] = entry.value.object()
    if entry.error is not None:
        seen["error"] = str(entry.error)
    if entry.fetch_failure_reason is not None:
        seen["fetch_failure_reason"] = str(entry.fetch_failure_reason)
    return seen


def options(recorded: dict[str, Any]) -> QueryOptions:
    """Recorded options as ours."""
    given: dict[str, Any] = {}
    for name in ("stale_time", "gc_time"):
        if name in recorded:
            value = recorded[name]
            given[name] = None if value == "Infinity" else value if value == "static" else float(value)
    for name in ("retry", "retry_delay", "enabled", "refetch_on_mount", "refetch_on_reconnect", "retry_on_mount"):
        if name in recorded:
            given[name] = recorded[name]
    if recorded.get("refetch_interval"):
        given["refetch_interval"] = float(recorded["refetch_interval"])
    if "network_mode" in recorded:
        given["network_mode"] = (
            "offline_first" if recorded["network_mode"] == "offlineFirst" else recorded["network_mode"]
        )
    if "initial_data" in recorded:
        given["initial_data"] = Value.from_object(recorded["initial_data"])
    if "initial_data_updated_at" in recorded:
        given["initial_data_updated_at"] = float(recorded["initial_data_updated_at"])
    return QueryOptions(**given)


def filter_of(recorded: dict[str, Any] | None) -> Filter:
    """A recorded filter as ours."""
    recorded = recorded or {}
    return Filter(
        key(recorded["key"]) if "key" in recorded else None,
        recorded.get("exact", False),
        recorded.get("type", "all"),
        recorded.get("stale"),
        recorded.get("fetch_status"),
        predicate(recorded["predicate"]) if "predicate" in recorded else None,
    )


def predicate(recorded: dict[str, Any]) -> Any:
    """A recorded predicate as a function of an entry."""
    match recorded:
        case {"kind": "key_len_gt", "n": n}:
            return lambda entry: len(entry.parsed) > n
        case {"kind": "status_eq", "value": value}:
            return lambda entry: entry.status == value
        case {"kind": "has_data"}:
            return lambda entry: entry.value is not None
        case {"kind": "key_contains", "value": value}:
            return lambda entry: any(item == value and type(item) is type(value) for item in entry.parsed)
        case {"kind": "invalidated"}:
            return lambda entry: entry.is_invalidated
    raise AssertionError(recorded)


def updated(updater: dict[str, Any], held: Any) -> Any:
    """What a recorded updater makes of data; `ABSENT`: nothing."""
    match updater:
        case {"kind": "inc", "by": by}:
            number = isinstance(held, int | float) and not isinstance(held, bool)
            return (held if number else 0) + by
        case {"kind": "append", "value": value}:
            return [*held, value] if isinstance(held, list) else ABSENT
        case {"kind": "append_or_new", "value": value}:
            return [*held, value] if isinstance(held, list) else [value]
        case {"kind": "merge", "value": value}:
            return {**(held if isinstance(held, dict) else {}), **value}
        case {"kind": "identity"}:
            return held
        case {"kind": "bail"}:
            return ABSENT
        case {"kind": "const", "value": value}:
            return value
    raise AssertionError(updater)


__all__ = ["ABSENT", "DEFAULT_GC_TIME_MS", "World", "described", "filter_of", "options"]
