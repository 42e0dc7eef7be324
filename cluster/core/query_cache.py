"""The query cache of one shard: its entries, found by key and by prefix.

What must not live here: how entries change (`operation`), who is told (`gateway_link`), when they are fetched (`shard_state`).
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.core.declared_query import DeclaredQuery
from cluster.core.entry import Value
from cluster.core.messages import EntryView, KeyInfo
from cluster.core.operation import Operation
from cluster.core.query_key import CanonicalKey, KeyMatcher, parse


@dataclass(slots=True)
class Fetch:
    """A fetch under way for one entry."""

    id: int
    since_ms: float
    """Operations received from here on are replayed over the response."""
    attempt: int = 0
    """Failures so far."""
    running: bool = False
    start_by: float | None = None
    """Waiting for channels to be joined, at most until then."""
    retry_at: float | None = None
    again: bool = False
    """Invalidated meanwhile: fetch once more when done."""
    tries: int = 0
    """Fetches thrown away because operations that cannot be repeated came in between."""
    waiters: list[tuple[str, int]] = field(default_factory=list)
    """(gateway, request id) to be answered when it settles."""

    @property
    def due(self) -> float | None:
        """When it is to be started, for the first time or again; None while it runs."""
        return self.retry_at if self.start_by is None else self.start_by


class Entry:
    """One cached query result."""

    __slots__ = (
        "data_updated_at",
        "error",
        "fetch",
        "idle_since",
        "is_invalidated",
        "key",
        "parsed",
        "query",
        "queued",
        "recent",
        "status",
        "value",
        "version",
    )

    def __init__(self, key: CanonicalKey, parsed: list[Any], query: DeclaredQuery | None) -> None:
        self.key = key
        self.parsed = parsed
        self.query = query
        self.value: Value | None = None
        """None while it has no data."""
        self.version = 0
        self.data_updated_at = 0.0
        self.status = "pending"
        self.is_invalidated = False
        self.error: tuple[str, str] | None = None
        self.fetch: Fetch | None = None
        self.idle_since = 0.0
        """Since when nobody watches it."""
        self.queued = False
        """It stands in the queue of those to be collected."""
        self.recent: deque[tuple[float, list[Operation]]] = deque()
        """(receipt, operations), kept only for entries that are fetched."""

    @property
    def fetch_status(self) -> str:
        """Whether a fetch is under way: idle | fetching."""
        return "fetching" if self.fetch is not None else "idle"

    @property
    def stale_at(self) -> float | None:
        """Unix ms from when the data counts as stale; None: never."""
        if self.is_invalidated:
            return self.data_updated_at
        if self.query is None or self.query.stale_time_ms is None:
            return None
        return self.data_updated_at + self.query.stale_time_ms

    @property
    def collect_at(self) -> float | None:
        """Unix ms from when it may be dropped if nobody watches it; None: never, for it could not be fetched again, or so it is declared."""
        if self.query is None or self.query.gc_time_ms is None:
            return None
        return max(self.idle_since, self.data_updated_at) + self.query.gc_time_ms

    def is_stale(self, now_ms: float) -> bool:
        """Whether a reader should rather have it fetched."""
        if self.value is None:
            return True
        stale_at = self.stale_at
        return stale_at is not None and stale_at <= now_ms

    def view(self) -> EntryView:
        """Return the entry as readers see it."""
        return EntryView(
            self.key,
            self.version,
            None if self.value is None else self.value.json(),
            int(self.data_updated_at),
            self.status,
            self.fetch_status,
            self.is_invalidated,
            self.stale_at,
            self.error,
        )

    def info(self, now_ms: float, subscribers: int) -> KeyInfo:
        """Return the entry's row in a key listing."""
        return KeyInfo(self.key, self.version, self.status, self.is_stale(now_ms), subscribers)


class QueryCache:
    """Entries by canonical key, with an index by first element so that most prefixes touch only their own."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._heads: dict[Any, dict[str, Entry]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, key: str) -> Entry | None:
        """Return the entry of `key`, if there is one."""
        return self._entries.get(key)

    def add(self, entry: Entry) -> None:
        """Take a new entry."""
        self._entries[entry.key] = entry
        self._heads.setdefault(_head(entry.parsed), {})[entry.key] = entry

    def remove(self, entry: Entry) -> None:
        """Drop an entry."""
        del self._entries[entry.key]
        head = _head(entry.parsed)
        bucket = self._heads[head]
        del bucket[entry.key]
        if not bucket:
            del self._heads[head]

    def matching(self, matcher: KeyMatcher) -> list[Entry]:
        """Return the entries a prefix matches, in the order they came."""
        head = _head(matcher.prefix)
        candidates = self._entries if head is None else self._heads.get(head, {})
        return [entry for entry in candidates.values() if matcher.matches(entry.key, entry.parsed)]


def _head(key: list[Any]) -> Any:
    """The index under which a key stands: its first element where that is a string, else None."""
    return key[0] if key and isinstance(key[0], str) else None


def new_entry(key: CanonicalKey, query: DeclaredQuery | None) -> Entry:
    """Build an entry that has no data yet."""
    return Entry(key, parse(key), query)
