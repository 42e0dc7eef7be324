"""The query cache: entries with the life that TanStack query-core gives a query.

An entry is pending, success or error, and beside that idle, fetching or paused. Observers keep it alive, have it fetched when they
come and it is stale, when they find it invalidated, when its service comes back, and at intervals. Without observers it is collected
after its gc time. Fetches are single-flight: who asks meanwhile joins, unless it is asked to start over. What this module does follows
query-core to the letter (`tests/conformance`); the differences that a cluster makes on purpose are listed in `docs/caching.md`.

It is one thing because every path is a step of the same small machine per entry, and each may start, join or end a fetch.

The owner is told what happens through `Owner` and tells the time by `now_ms`. What must not live here: who is told of changes and how
(`shard_state`), what operations do (`operation`), requests.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush
from math import inf
from operator import attrgetter
from typing import Any, Final, Generic, Protocol, TypeVar

from msgspec import UNSET

from cluster.core.entry import Value
from cluster.core.filters import Filter
from cluster.core.infinite import Direction, PageFetch
from cluster.core.query_key import CanonicalKey, KeyMatcher, canonical, elements
from cluster.core.query_options import QueryOptions
from cluster.core.retry import DEFAULT_RETRIES, Retryer, Step
from cluster.core.staleness import STATIC, is_stale, stale_at
from cluster.core.structural_sharing import difference, share
from cluster.errors import OperationError

SHARED_BYTES = 256 * 1024
"""Values beyond it are not compared part by part: it would hold the shard up for more than a few milliseconds."""
COLLECT_SLICE = 500
"""Entries collected per wake: about a millisecond."""
KEPT = 1_000
"""Times that may be kept in vain, beside as many as there are entries."""
LOOK_AGAIN_MS = 1_000.0
"""After which an entry whose gc time is 0 is looked at again while it is kept: at once would be all the time."""


class Cancelled(Exception):  # noqa: N818 - an outcome, as query-core's CancelledError
    """A fetch was cancelled."""

    def __init__(self) -> None:
        super().__init__("CancelledError")


CANCELLED: Final = Cancelled()


class Observer:
    """One who watches an entry."""

    __slots__ = ("entry", "options", "refetch_at", "timer_at")

    def __init__(self, options: QueryOptions) -> None:
        self.options = options
        self.entry: Entry | None = None
        self.refetch_at: float | None = None
        self.timer_at: float | None = None
        """When the one timer that it has goes off."""

    def unschedule(self) -> None:
        """Nothing is to be fetched for it by the clock; the timer that it may have is void."""
        self.refetch_at = self.timer_at = None

    def sees_stale(self, entry: "Entry", now_ms: float) -> bool:
        """Whether the entry's data is too old for this observer."""
        return self.options.enabled and entry.is_stale_by(self.options, now_ms)


class Fetch(Retryer):
    """A fetch under way for one entry."""

    __slots__ = (
        "again",
        "held_until",
        "id",
        "is_pure",
        "network_mode",
        "origin",
        "pages",
        "revert",
        "running",
        "service",
        "since_ms",
        "tries",
        "waiters",
    )

    def __init__(self, number: int, options: QueryOptions, revert: tuple[Any, ...]) -> None:
        retry = DEFAULT_RETRIES if options.retry is UNSET else options.retry
        super().__init__(retry, None if options.retry_delay is UNSET else options.retry_delay)
        self.id = number
        self.network_mode = "online" if options.network_mode is UNSET else options.network_mode
        self.service = options.own_service
        self.revert = revert
        """The entry's state before, to be put back if the fetch is cancelled."""
        self.pages: PageFetch | None = None
        self.waiters: list[Any] = []
        """Who is told when it settles."""
        self.running = False
        """A call is under way, or waits for its turn."""
        self.held_until: float | None = None
        """The first call waits for the owner (`QueryCache.release`), at most until then (Unix ms)."""
        self.again = False
        """Invalidated meanwhile: what it brings is out of date already, fetch once more."""
        self.since_ms = 0.0
        """For the owner: operations received from here on are replayed over the response."""
        self.is_pure = True
        """For the owner: the response stands as it came."""
        self.tries = 0
        """For the owner: calls whose response it threw away."""
        self.origin: Any = None


class Entry:
    """One cached query result."""

    __slots__ = (
        "data_update_count",
        "data_updated_at",
        "direction",
        "error",
        "error_update_count",
        "error_updated_at",
        "fetch",
        "fetch_failure_count",
        "fetch_failure_reason",
        "fetch_status",
        "idle_since",
        "initial",
        "is_invalidated",
        "key",
        "last_length",
        "observers",
        "options",
        "queued_at",
        "status",
        "value",
    )

    def __init__(self, key: CanonicalKey, options: QueryOptions) -> None:
        self.key = key
        self.options = options
        self.value: Value | None = None
        """None while it has no data."""
        self.data_updated_at = 0.0
        self.data_update_count = 0
        self.status = "pending"
        self.fetch_status = "idle"
        self.is_invalidated = False
        self.error: Any = None
        self.error_updated_at = 0.0
        self.error_update_count = 0
        self.fetch_failure_count = 0
        self.fetch_failure_reason: Any = None
        self.direction: Direction | None = None
        """Of the last fetch, where it was for one more page."""
        self.last_length: int | None = None
        """Items that the last page of an infinite list had when it came, where that is known."""
        self.initial: tuple[Value, float] | None = None
        """What it was created with, and goes back to when it is reset."""
        self.observers: tuple[Observer, ...] = ()
        self.fetch: Fetch | None = None
        self.idle_since: float | None = None
        """From when its gc time counts; None: it does not."""
        self.queued_at: float | None = None
        """When the collector next looks at it."""

    @property
    def parsed(self) -> list[Any]:
        """The key, parsed."""
        return elements(self.key)

    @property
    def is_active(self) -> bool:
        """Whether somebody observes it who wants it live."""
        return any(observer.options.enabled for observer in self.observers)

    @property
    def is_fetched(self) -> bool:
        """Whether it ever had data or an error."""
        return self.data_update_count + self.error_update_count > 0

    @property
    def is_static(self) -> bool:
        """Whether it has data that never goes stale."""
        if self.value is None:
            return False
        return any(observer.options.own_stale_time == STATIC for observer in self.observers)

    def is_stale_by(self, options: QueryOptions, now_ms: float) -> bool:
        """Whether its data is stale for somebody with these options."""
        updated_at = None if self.value is None else self.data_updated_at
        return is_stale(updated_at, options.own_stale_time, is_invalidated=self.is_invalidated, now_ms=now_ms)

    def is_stale(self, now_ms: float) -> bool:
        """Whether it is stale for any observer; without observers, by its own stale time, if it has one."""
        if self.observers:
            return any(observer.sees_stale(self, now_ms) for observer in self.observers)
        at = self.stale_at
        return at is not None and at <= now_ms

    @property
    def stale_at(self) -> float | None:
        """Unix ms from when its data is stale by its own stale time; None: not by itself."""
        stale_time = self.options.stale_time
        if self.value is not None and not self.is_invalidated and isinstance(stale_time, float):
            return self.data_updated_at + stale_time  # the commonest case, for every entry of a snapshot
        updated_at = None if self.value is None else self.data_updated_at
        given = None if stale_time is UNSET else stale_time
        return stale_at(updated_at, given, is_invalidated=self.is_invalidated)

    @property
    def collect_at(self) -> float | None:
        """Unix ms from when it may be dropped if nobody observes it; None: never."""
        gc_time = self.options.own_gc_time
        return None if gc_time is None or self.idle_since is None else self.idle_since + gc_time

    def state(self) -> tuple[Any, ...]:
        """Return what a fetch that is cancelled puts back. Data is not part of it: only writes change it during a fetch, and they stay."""
        state: tuple[Any, ...] = _STATE(self)
        return state

    def put_back(self, state: tuple[Any, ...]) -> None:
        """Go back to a `state`."""
        for name, value in zip(_STATE_NAMES, state, strict=True):
            setattr(self, name, value)


_STATE_NAMES = (
    "status",
    "is_invalidated",
    "error",
    "error_updated_at",
    "error_update_count",
    "fetch_failure_count",
    "fetch_failure_reason",
    "direction",
)
_STATE = attrgetter(*_STATE_NAMES)


E = TypeVar("E", bound=Entry)
E_contra = TypeVar("E_contra", bound=Entry, contravariant=True)


class Owner(Protocol[E_contra]):
    """Who holds a cache, and carries out what it asks for."""

    def call(self, entry: E_contra, fetch: Fetch) -> None:
        """Ask the upstream for the entry, or for the page `fetch.pages.param` of it; then `received` or `failed`."""
        ...

    def hold(self, entry: E_contra) -> float | None:
        """Return until when a fetch's first call is to be held back at most (Unix ms), unless `release`d; None: not at all."""
        ...

    def completed(self, entry: E_contra, fetch: Fetch, value: Value) -> Value | None:
        """Return what a fetch comes to, given its response; None: the owner has the call `repeat`ed, or has removed the entry."""
        ...

    def changed(self, entry: E_contra, fetch: Fetch, patch: list[bytes] | None) -> None:
        """A fetch changed the data: by the RFC 6902 members of `patch`, or as a whole."""
        ...

    def touched(self, entry: E_contra) -> None:
        """Something other than the data changed."""
        ...

    def removed(self, entry: E_contra) -> None:
        """The entry is being removed; it is still in the cache."""
        ...

    def settled(self, waiter: Any, entry: E_contra, error: Any) -> None:
        """What `waiter` waited for is over: the entry has it, or there is an error (`CANCELLED`, or what `failed` was given)."""
        ...


class QueryCache(Generic[E]):
    """Entries by canonical key, with an index by first element so that most prefixes touch only their own."""

    def __init__(self, owner: Owner[E]) -> None:
        self.now_ms = 0.0
        """Unix ms, set by the owner before anything else is called."""
        self._owner = owner
        self._entries: dict[str, E] = {}
        self._heads: dict[Any, dict[str, E]] = {}
        self._fetching: dict[str, E] = {}
        self.observed: dict[str, E] = {}
        """Entries that have observers, by key."""
        self._timers: list[tuple[float, int, Fetch | Observer, E | None]] = []
        """Heap of (when, order, what is due, its entry); some have become void."""
        self._timers_kept = KEPT
        """How many there may be before those that are void are left out."""
        self._next_timer = 0
        self._idle: list[tuple[float, str]] = []
        """Heap of (when to look, key) of entries that nobody observes."""
        self.collected = 0
        """Entries dropped because their time was over."""
        self._offline: dict[str, float] = {}
        """Services that cannot be reached, and since when (Unix ms)."""
        self._back_at: dict[str, float] = {}
        """When services that had been offline came back (Unix ms)."""
        self._unheard: set[str] = set()
        """Services of which nothing is known, as they have not been called since the cache was filled with what it held before."""
        self._limits: dict[str, int] = {}
        self._running: dict[str, int] = {}
        self._queues: dict[str, deque[tuple[E, Fetch]]] = {}
        self._next_fetch = 0
        self._stranded: dict[str, list[Any]] = {}
        """Waiters of fetches that were cancelled silently, by key: whatever replaces those takes them on."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[E]:
        return iter(self._entries.values())

    def get(self, key: str) -> E | None:
        """Return the entry of `key`, if there is one."""
        return self._entries.get(key)

    # --- entries -------------------------------------------------------------------------------------------------

    def add(self, entry: E) -> E:
        """Take a new entry, of which `key` and `options` are set."""
        self._entries[entry.key] = entry
        self._heads.setdefault(head(entry.key), {})[entry.key] = entry
        self._rest(entry)
        self._initialise(entry)
        return entry

    def _initialise(self, entry: E) -> None:
        data = entry.options.initial_data
        if entry.value is None and data is not UNSET:
            updated_at = entry.options.initial_data_updated_at
            entry.initial = (data, self.now_ms if updated_at is UNSET else updated_at)
            self._to_initial(entry)

    def _to_initial(self, entry: E) -> None:
        assert entry.initial is not None
        entry.value, entry.data_updated_at = entry.initial
        entry.status, entry.error, entry.is_invalidated = "success", None, False

    def set_options(self, entry: E, options: QueryOptions) -> None:
        """Replace an entry's options; its gc time counts anew from when nobody observed it, and may be shorter."""
        entry.options = options
        if not entry.observers:
            self._queue(entry)
        if entry.value is None and options.initial_data is not UNSET:
            self._initialise(entry)
            self._touched(entry)

    def remove(self, entry: E) -> None:
        """Drop an entry; who waits for its fetch is told that it was cancelled."""
        self._owner.removed(entry)
        entry.idle_since = None
        self._stop(entry)
        entry.fetch_status = "idle"
        del self._entries[entry.key]
        self.observed.pop(entry.key, None)
        first = head(entry.key)
        bucket = self._heads[first]
        del bucket[entry.key]
        if not bucket:
            del self._heads[first]
        self._abandon(entry)

    def under(self, prefix: list[Any]) -> Iterable[E]:
        """Return the entries that can be under a prefix, in the order they came; nothing may be added or removed meanwhile."""
        first = prefix[0] if prefix and isinstance(prefix[0], str) else None
        return self._entries.values() if first is None else self._heads.get(canonical([first])[1:-1], {}).values()

    def matching(self, matcher: KeyMatcher) -> list[E]:
        """Return the entries a prefix matches, in the order they came."""
        matches = matcher.matches
        return [entry for entry in self.under(matcher.prefix) if matches(entry.key)]

    def find(self, given: Filter) -> list[E]:
        """Return the entries that a filter matches, in the order they came."""
        compiled = given.compiled()
        if compiled.exact is not None:
            entry = self._entries.get(compiled.exact)
            candidates: Iterable[E] = () if entry is None else (entry,)
        else:
            candidates = self._entries.values() if given.key is None else self.under(given.key)
        return [entry for entry in candidates if compiled.matches(entry, self.now_ms)]

    # --- observers -----------------------------------------------------------------------------------------------

    def observe(self, entry: E, observer: Observer, *, mount: bool = True) -> None:
        """Somebody watches an entry; with `mount` it is fetched if the observer's options say so."""
        if observer.options is not entry.options:
            self.set_options(entry, observer.options)
        self._attach(entry, observer)
        if mount and self._fetches_on_mount(entry, observer.options):
            self.fetch(entry, observer.options)
        if observer.options.refetch_interval:
            self._schedule(observer)

    def _attach(self, entry: E, observer: Observer) -> None:
        observer.entry = entry
        entry.observers = (*entry.observers, observer)
        entry.idle_since = None
        self.observed[entry.key] = entry

    def unobserve(self, observer: Observer) -> None:
        """They no longer do."""
        observer.unschedule()
        watched, observer.entry = observer.entry, None
        entry = None if watched is None else self._entries.get(watched.key)
        if entry is None or entry is not watched:
            return
        entry.observers = tuple(each for each in entry.observers if each is not observer)
        if entry.observers:
            return
        del self.observed[entry.key]
        fetch = entry.fetch
        if fetch is not None:
            if self._gives_up_unobserved(entry, fetch):
                self.cancel(entry, revert=True)
            else:
                fetch.abandoned = True
        self._rest(entry)

    def _gives_up_unobserved(self, entry: E, fetch: Fetch) -> bool:  # noqa: ARG002 - for subclasses
        """Whether a fetch that nobody watches any more is dropped: one that has not even begun. Others are let finish, for the cache."""
        return entry.fetch_status == "paused" and entry.status == "pending"

    def reobserve(self, entry: E, observer: Observer, options: QueryOptions) -> None:
        """An observer's options change, or the entry it watches. Those of the cluster do not: it is there for the vectors."""
        before, was_enabled = observer.entry, observer.options.enabled
        interval = observer.options.refetch_interval
        observer.options = options
        if entry is not before:
            self.unobserve(observer)
            self._attach(entry, observer)
        self.set_options(entry, options)
        if (entry is not before or not was_enabled) and observer.sees_stale(entry, self.now_ms):
            self.fetch(entry, options)
        if entry is not before or options.enabled != was_enabled or options.refetch_interval != interval:
            self._schedule(observer)

    def _fetches_on_mount(self, entry: E, options: QueryOptions) -> bool:
        if entry.value is None:
            return options.enabled and not (entry.status == "error" and not options.retry_on_mount)
        return self._wants(entry, options, options.refetch_on_mount)

    def _wants(self, entry: E, options: QueryOptions, when: Any) -> bool:
        if not options.enabled or options.own_stale_time == STATIC:
            return False
        return when == "always" or (when is not False and entry.is_stale_by(options, self.now_ms))

    def _schedule(self, observer: Observer) -> None:
        """Set the time of an observer's next refetch, counted from now."""
        if observer.options.refetch_interval > 0 and observer.options.enabled and observer.entry is not None:
            self._refetch_at(observer, self.now_ms + observer.options.refetch_interval)
        else:
            observer.unschedule()

    def _refetch_at(self, observer: Observer, at: float) -> None:
        observer.refetch_at = at
        if observer.timer_at is None or at < observer.timer_at:  # else the timer there is comes first, and is set anew
            observer.timer_at = at
            self._due(at, observer)

    def _touched(self, entry: E) -> None:
        for observer in entry.observers:
            if observer.options.refetch_interval:
                self._schedule(observer)
        self._owner.touched(entry)

    # --- fetches -------------------------------------------------------------------------------------------------

    def fetch(
        self,
        entry: E,
        options: QueryOptions | None = None,
        *,
        restart: bool = False,
        direction: Direction | None = None,
        pages: int = 0,
        waiter: Any = None,
    ) -> Fetch:
        """Fetch an entry, or join the fetch under way; with `restart` that is cancelled first if there is data.

        `options` replace the entry's, unless a fetch is joined. `direction`: one more page of an infinite list, at that end; `pages`: so
        many from the beginning. `restart` and `pages` are there for the vectors.
        """
        fetch = entry.fetch
        if fetch is not None:
            if not (restart and entry.value is not None):
                fetch.abandoned = False
                if waiter is not None:
                    fetch.waiters.append(waiter)
                return fetch
            self._stop(entry)
        if options is not None:
            self.set_options(entry, options)
        self._next_fetch += 1
        fetch = entry.fetch = Fetch(self._next_fetch, entry.options, entry.state())
        fetch.waiters.extend(self._stranded.pop(entry.key, ()))
        if waiter is not None:
            fetch.waiters.append(waiter)
        self._fetching[entry.key] = entry
        fetch.pages = _pages(entry, direction, pages)
        online = self._online(fetch, starting=True)
        entry.fetch_failure_count, entry.fetch_failure_reason = 0, None
        entry.fetch_status = "fetching"
        entry.direction = direction
        if entry.value is None:
            entry.status, entry.error = "pending", None
        if fetch.start(online=online) is Step.PAUSE:
            entry.fetch_status = "paused"
        else:
            self._begin(entry, fetch)
        self._touched(entry)
        return fetch

    def _online(self, fetch: Fetch, *, starting: bool) -> bool:
        if fetch.network_mode == "always" or (starting and fetch.network_mode == "offline_first"):
            return True
        return self.is_online(fetch.service)

    def _begin(self, entry: E, fetch: Fetch) -> None:
        """Make the first call, once the owner lets it."""
        fetch.held_until = self._owner.hold(entry)
        if fetch.held_until is None:
            self._attempt(entry, fetch)
        else:
            self._due(fetch.held_until, fetch, entry)

    def release(self, entry: E) -> None:
        """Let go of a fetch's first call that was held back."""
        fetch = entry.fetch
        if fetch is not None and fetch.held_until is not None:
            fetch.held_until = None
            self._attempt(entry, fetch)

    def _attempt(self, entry: E, fetch: Fetch) -> None:
        """Make a call, or stand in line for one."""
        if fetch.pages is not None and fetch.pages.done:
            self._complete(entry, fetch, Value.from_object(fetch.pages.data()))
            return
        fetch.running = True
        limit = self._limits.get(fetch.service, 0)
        if limit and self._running.get(fetch.service, 0) >= limit:
            self._queues.setdefault(fetch.service, deque()).append((entry, fetch))
            return
        self._running[fetch.service] = self._running.get(fetch.service, 0) + 1
        self._owner.call(entry, fetch)

    def repeat(self, entry: E, fetch: Fetch) -> None:
        """Fetch again, from the beginning, what the owner has thrown away."""
        fetch.pages = _pages(entry)
        self._attempt(entry, fetch)

    def ended(self, service: str) -> None:
        """A call to a service is over, whatever came of it: the next in line may be made. To be called once for each."""
        self._running[service] = max(self._running.get(service, 0) - 1, 0)
        queue = self._queues.get(service)
        while queue:
            entry, fetch = queue.popleft()
            if entry.fetch is fetch and fetch.running:
                self._running[service] += 1
                self._owner.call(entry, fetch)
                return

    def limit(self, service: str, calls: int) -> None:
        """Make at most so many calls to a service at once; 0: any number."""
        self._limits[service] = calls

    def awaited(self, key: str, fetch_id: int) -> tuple[E, Fetch] | None:
        """Return the entry and fetch that a response is for, unless it was cancelled."""
        entry = self._fetching.get(key)
        if entry is None or entry.fetch is None or entry.fetch.id != fetch_id:
            return None
        entry.fetch.running = False
        return entry, entry.fetch

    def received(self, entry: E, fetch: Fetch, value: Value) -> None:
        """A call was answered with the data, or with a page of it."""
        pages = fetch.pages
        if pages is None:
            self._complete(entry, fetch, value)
            return
        pages.take(value.object())
        self._attempt(entry, fetch)

    def _complete(self, entry: E, fetch: Fetch, value: Value) -> None:
        """All of the data is here."""
        completed = self._owner.completed(entry, fetch, value)
        if completed is not None and entry.fetch is fetch:
            self._succeed(entry, fetch, completed)

    def unchanged(self, entry: E, fetch: Fetch) -> None:
        """A call was answered: the data is what is cached."""
        assert entry.value is not None
        self._succeed(entry, fetch, entry.value)

    def failed(self, entry: E, fetch: Fetch, error: Any) -> bool:
        """A call failed. Returns whether it is tried again."""
        if fetch.failed(error, self.now_ms) is Step.GIVE_UP:
            self._give_up(entry, fetch, error)
            return False
        entry.fetch_failure_count, entry.fetch_failure_reason = fetch.failure_count, error
        assert fetch.due is not None
        self._due(fetch.due, fetch, entry)
        self._touched(entry)
        return True

    def _give_up(self, entry: E, fetch: Fetch, error: Any) -> None:
        self._end(entry)
        entry.error = entry.fetch_failure_reason = error
        entry.error_updated_at = self.now_ms
        entry.error_update_count += 1
        entry.fetch_failure_count += 1
        entry.status = "error"
        entry.is_invalidated = True
        self._touched(entry)
        self._settle(entry, fetch.waiters, error)

    def _succeed(self, entry: E, fetch: Fetch, value: Value) -> None:
        self._end(entry)
        entry.fetch_failure_count, entry.fetch_failure_reason = 0, None
        changed, patch = self._shared(entry, value)
        if fetch.pages is not None:
            if fetch.pages.direction != "previous":
                entry.last_length = fetch.pages.last_length
            elif fetch.pages.is_cut:
                entry.last_length = None
        entry.data_updated_at = self.now_ms
        entry.data_update_count += 1
        entry.status, entry.error = "success", None
        entry.is_invalidated = fetch.again
        if changed:
            self._owner.changed(entry, fetch, patch)
        self._touched(entry)
        if fetch.again and entry.observers and self._entries.get(entry.key) is entry:
            self.fetch(entry)
        self._settle(entry, fetch.waiters, None)

    def _shared(self, entry: E, value: Value) -> tuple[bool, list[bytes] | None]:
        """Put a response in place of the data, keeping what is equal. Returns whether anything differs, and how."""
        held = entry.value
        if held is value:
            return False, None
        entry.value = value
        if held is None:
            return True, None
        is_large = max(held.size(), value.size()) > SHARED_BYTES
        if held.json() == value.json():
            entry.value = held
            return False, None
        if is_large:
            return True, None
        try:
            old = held.object()
            merged = share(old, value.object())
        except OperationError:  # what is held, of upstream's making, only looks like JSON
            return True, None
        if merged is old:
            entry.value = held
            return False, None
        entry.value = Value.from_object(merged)
        return True, difference(old, merged)

    def _end(self, entry: E) -> None:
        """A fetch is over."""
        entry.fetch = None
        self._fetching.pop(entry.key, None)
        entry.fetch_status = "idle"
        if not entry.observers:
            self._rest(entry)

    def _settle(self, entry: E, waiters: Iterable[Any], error: Any) -> None:
        for waiter in waiters:
            self._owner.settled(waiter, entry, error)

    def cancel(self, entry: E, *, revert: bool = True, silent: bool = False) -> None:
        """Drop the fetch under way. With `revert` the entry is as it was before; without, it has failed, unless `silent`.

        Both are there for the vectors: the cluster reverts.
        """
        fetch = entry.fetch
        if fetch is None:
            return
        if not revert and not silent:
            self._give_up(entry, fetch, CANCELLED)
            return
        self._end(entry)
        if revert:
            entry.put_back(fetch.revert)
            entry.is_invalidated = entry.is_invalidated or fetch.again
        self._touched(entry)
        self._settle(entry, fetch.waiters, CANCELLED if silent or entry.value is None else None)

    def _stop(self, entry: E) -> None:
        """Drop the fetch under way without a trace; who waited for it waits for the one that replaces it."""
        fetch, entry.fetch = entry.fetch, None
        if fetch is not None:
            self._fetching.pop(entry.key, None)
            if fetch.waiters:
                self._stranded.setdefault(entry.key, []).extend(fetch.waiters)

    def _abandon(self, entry: E) -> None:
        """Nothing has replaced what was stopped."""
        self._settle(entry, self._stranded.pop(entry.key, ()), CANCELLED)

    # --- data ----------------------------------------------------------------------------------------------------

    def written(self, entry: E, value: Value, updated_at: float | None = None, *, is_edit: bool = False) -> None:
        """The data was written from outside; a fetch under way goes on.

        `is_edit`: only part of it, so that what was known of the rest still holds: it may be out of date, or have another page.
        """
        entry.value = value
        entry.data_updated_at = self.now_ms if updated_at is None else updated_at
        entry.data_update_count += 1
        entry.status, entry.error = "success", None
        if not is_edit:
            entry.last_length, entry.is_invalidated = None, False
        if entry.fetch is not None:
            entry.fetch.revert = entry.state()
        for observer in entry.observers:
            if observer.options.refetch_interval:
                self._schedule(observer)

    def invalidate(self, entry: E) -> None:
        """Mark an entry as out of date."""
        if not entry.is_invalidated:
            entry.is_invalidated = True
            self._touched(entry)

    def reset(self, entries: Iterable[E]) -> list[E]:
        """Bring entries back to what they were created with. Returns those that are observed and are now fetched again."""
        entries = list(entries)
        for entry in entries:
            self._stop(entry)
            entry.value, entry.data_updated_at, entry.status = None, 0.0, "pending"
            entry.fetch_status, entry.is_invalidated, entry.error = "idle", False, None
            entry.data_update_count = entry.error_update_count = entry.fetch_failure_count = 0
            entry.error_updated_at, entry.fetch_failure_reason, entry.direction = 0.0, None, None
            if entry.initial is not None:
                self._to_initial(entry)
            if not entry.observers:
                self._rest(entry)
            self._touched(entry)
        refetched = [entry for entry in entries if entry.is_active]
        for entry in entries:
            if entry not in refetched:
                self._abandon(entry)
        return refetched

    def is_disabled(self, entry: E) -> bool:
        """Whether a refetch leaves an entry out: all who observe it are disabled; or nobody does, and it was never fetched."""
        return not entry.is_active if entry.observers else not entry.is_fetched

    def refetchable(self, given: Filter) -> list[E]:
        """Return the entries a refetch of everything that a filter matches is about. It is there for the vectors: shards go in slices."""
        return [entry for entry in self.find(given) if self.refetches(entry)]

    def refetches(self, entry: E) -> bool:
        """Whether a refetch that is about an entry fetches it."""
        return not self.is_disabled(entry) and not entry.is_static

    # --- services ------------------------------------------------------------------------------------------------

    def is_online(self, service: str) -> bool:
        """Whether a service can be reached, as far as is known."""
        return service not in self._offline

    def unheard(self, service: str) -> None:
        """Nothing is known of a service: no entry of it is dropped before it has been asked (`heard`, `set_online`)."""
        self._unheard.add(service)

    def is_unheard(self, service: str) -> bool:
        """Whether nothing is known of a service."""
        return service in self._unheard

    def heard(self, service: str) -> None:
        """A service has answered."""
        self._unheard.discard(service)

    def set_online(self, service: str, *, online: bool) -> None:
        """A service was lost, or is back: what was paused goes on, and observers have refetched what went stale meanwhile."""
        self._unheard.discard(service)
        if online == self.is_online(service):
            return
        if not online:
            self._offline[service] = self.now_ms
            return
        del self._offline[service]
        self._back_at[service] = self.now_ms
        for entry in list({**self.observed, **self._fetching}.values()):
            if entry.options.own_service != service:
                continue
            for observer in entry.observers:
                if self._wants(entry, observer.options, observer.options.own_refetch_on_reconnect):
                    self.fetch(entry, observer.options)
                    break
            self.resume(entry)

    def fetches(self) -> Iterator[Fetch]:
        """Yield the fetches under way."""
        for entry in self._fetching.values():
            if entry.fetch is not None:
                yield entry.fetch

    def paused(self, service: str) -> E | None:
        """Return an entry whose fetch waits for an offline service, if there is one."""
        for entry in self._fetching.values():
            if entry.fetch is not None and entry.fetch.paused and entry.fetch.service == service:
                return entry
        return None

    def resume(self, entry: E) -> None:
        """Let a paused fetch go on: its service is back, or is tried, to see whether it is."""
        fetch = entry.fetch
        if fetch is None or not fetch.paused:
            return
        error = entry.fetch_failure_reason
        step = fetch.resume()
        entry.fetch_status = "fetching"
        self._touched(entry)
        if step is Step.GIVE_UP:
            self._give_up(entry, fetch, error)
        else:
            self._retry(entry, fetch)

    def _retry(self, entry: E, fetch: Fetch) -> None:
        if not fetch.failure_count:
            self._begin(entry, fetch)
            return
        if fetch.pages is not None:
            fetch.pages.retry()
        self._attempt(entry, fetch)

    # --- time ----------------------------------------------------------------------------------------------------

    def _rest(self, entry: E) -> None:
        """Nobody observes an entry (any longer), and it is not being fetched: its gc time counts from now."""
        entry.idle_since = self.now_ms
        self._queue(entry)

    def use(self, entry: E) -> None:
        """Somebody has read an entry, as if they had observed it for a moment."""
        if entry.idle_since is not None:
            entry.idle_since = self.now_ms

    def _queue(self, entry: E) -> None:
        collect_at = entry.collect_at
        if collect_at is not None and (entry.queued_at is None or collect_at < entry.queued_at):
            self._look_at(entry, collect_at)

    def _look_at(self, entry: E, at: float) -> None:
        entry.queued_at = at
        heappush(self._idle, (at, entry.key))
        if len(self._idle) > KEPT + 2 * len(self._entries):
            # Entries that went otherwise would stay until their gc time.
            self._idle = [(each.queued_at, each.key) for each in self._entries.values() if each.queued_at is not None]
            heapify(self._idle)

    def _collect(self) -> None:
        for _ in range(COLLECT_SLICE):
            if not self._idle or self._idle[0][0] > self.now_ms:
                return
            at, key = heappop(self._idle)
            entry = self._entries.get(key)
            if entry is None or entry.queued_at != at:
                continue
            entry.queued_at = None
            collect_at = entry.collect_at
            fetch = entry.fetch
            if entry.observers or collect_at is None or (fetch is not None and (fetch.waiters or not fetch.paused)):
                continue  # it is queued again when that is over
            if collect_at > self.now_ms:
                self._queue(entry)
            elif (kept_until := self.kept_until(entry)) > self.now_ms:
                # The service may be back sooner: then its gc time counts anew.
                self._look_at(entry, min(kept_until, self.now_ms + (entry.options.own_gc_time or LOOK_AGAIN_MS)))
            else:
                self.collect(entry)

    def kept_until(self, entry: E) -> float:
        """Return until when an entry whose gc time is over is kept, since it could not be had again (Unix ms); in the past: it is not.

        While its service is offline that is its offline time, from when the service was lost or from when nobody wanted it any longer; then
        another gc time. Of a service that nothing is known of, the entry is fetched to find out.
        """
        options = entry.options
        service = options.own_service
        idle_since = entry.idle_since or 0.0
        if service in self._unheard:
            if entry.fetch is None and not any(fetch.service == service for fetch in self.fetches()):
                self.fetch(entry)
            return inf
        if service in self._offline:
            offline_time = options.own_offline_time
            return inf if offline_time is None else max(idle_since, self._offline[service]) + offline_time
        return self._back_at.get(service, -inf) + (options.own_gc_time or 0.0)

    def collect(self, entry: E) -> None:
        """Drop an entry whose time is over."""
        self.collected += 1
        self.remove(entry)

    def _due(self, at: float, what: Fetch | Observer, entry: E | None = None) -> None:
        self._next_timer += 1
        heappush(self._timers, (at, self._next_timer, what, entry))
        if len(self._timers) > self._timers_kept:  # else what is over would stay until its time
            self._timers = [timer for timer in self._timers if not _is_void(*timer)]
            heapify(self._timers)
            self._timers_kept = KEPT + 2 * len(self._timers)

    def deadline(self) -> float | None:
        """When anything is due (Unix ms)."""
        while self._timers and _is_void(*self._timers[0]):
            heappop(self._timers)
        timer = self._timers[0][0] if self._timers else None
        idle = self._idle[0][0] if self._idle else None
        return min((at for at in (timer, idle) if at is not None), default=None)

    def wake(self) -> None:
        """Do what is due."""
        while self._timers and self._timers[0][0] <= self.now_ms:
            timer = heappop(self._timers)
            if _is_void(*timer):
                continue
            _, _, what, entry = timer
            if isinstance(what, Observer):
                self._interval(what)
            elif entry is not None and what.held_until is not None:
                self.release(entry)
            elif entry is not None:
                self._next_try(entry, what)
        self._collect()

    def _interval(self, observer: Observer) -> None:
        assert observer.refetch_at is not None
        observer.timer_at = None
        if observer.refetch_at > self.now_ms:
            self._refetch_at(observer, observer.refetch_at)
            return
        self._refetch_at(observer, observer.refetch_at + observer.options.refetch_interval)
        entry = None if observer.entry is None else self._entries.get(observer.entry.key)
        if entry is not None:
            self.fetch(entry, observer.options)

    def _next_try(self, entry: E, fetch: Fetch) -> None:
        error = entry.fetch_failure_reason
        match fetch.wake(online=self._online(fetch, starting=False)):
            case Step.RUN:
                self._retry(entry, fetch)
            case Step.PAUSE:
                entry.fetch_status = "paused"
                self._touched(entry)
            case Step.GIVE_UP:
                self._give_up(entry, fetch, error)


def _pages(entry: Entry, direction: Direction | None = None, pages: int = 0) -> PageFetch | None:
    """Return the pages that a fetch asks for; None: the entry is no infinite list."""
    paging = entry.options.paging
    if paging is UNSET or paging is None:
        return None
    held = None if entry.value is None else entry.value.object()
    return PageFetch(paging, held, direction, pages, entry.last_length)


def _is_void(at: float, _: int, what: Fetch | Observer, entry: Entry | None) -> bool:
    """Whether a timer is for something that is over."""
    if isinstance(what, Observer):
        return what.timer_at != at
    return entry is None or entry.fetch is not what or at not in (what.held_until, what.due)


def head(key: str) -> str | None:
    """Return the index under which a key stands: the text of its first element where that is a string, else None."""
    if not key.startswith('["'):
        return None
    end = key.find('"', 2)
    while key[end - 1] == "\\" and _escaped(key, end):
        end = key.find('"', end + 1)
    return key[1 : end + 1]


def _escaped(key: str, at: int) -> bool:
    """Whether the quote at `at` is part of the string: an odd number of backslashes stands before it."""
    slashes = at - 1
    while key[slashes] == "\\":
        slashes -= 1
    return (at - 1 - slashes) % 2 == 1
