"""Filters: which entries an invalidation, a refetch, a cancellation is about."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

from msgspec import Struct

from cluster.core.query_key import CanonicalKey, KeyMatcher, canonical

EntryType = Literal["all", "active", "inactive"]


class Filterable(Protocol):
    """What a filter asks of an entry."""

    @property
    def key(self) -> CanonicalKey:
        """Its key."""
        ...

    @property
    def parsed(self) -> list[Any]:
        """The same, parsed."""
        ...

    @property
    def is_active(self) -> bool:
        """Whether somebody observes it who wants it live."""
        ...

    @property
    def fetch_status(self) -> str:
        """Idle | fetching | paused."""
        ...

    def is_stale(self, now_ms: float) -> bool:
        """Whether it should rather be fetched again."""
        ...


class Filter(Struct, frozen=True):
    """All conditions that are given must hold; none are given: every entry matches."""

    key: list[Any] | None = None
    exact: bool = False
    """The entry of that key only; else every one under it."""
    type: EntryType = "all"
    stale: bool | None = None
    fetch_status: str | None = None
    predicate: Callable[[Any], bool] | None = None

    def compiled(self) -> "CompiledFilter":
        """Return the filter, ready for many entries."""
        return CompiledFilter(self)


class CompiledFilter:
    """See `Filter`."""

    __slots__ = ("_filter", "_is_by_key", "exact", "matcher")

    def __init__(self, given: Filter) -> None:
        self._filter = given
        self._is_by_key = (given.type, given.stale, given.fetch_status, given.predicate) == ("all", None, None, None)
        self.exact: CanonicalKey | None = canonical(given.key) if given.key is not None and given.exact else None
        self.matcher: KeyMatcher | None = None if given.key is None or given.exact else KeyMatcher(given.key)

    def matches(self, entry: Filterable, now_ms: float) -> bool:
        """Whether an entry meets every condition."""
        given = self._filter
        if self.exact is not None and entry.key != self.exact:
            return False
        if self.matcher is not None and not self.matcher.matches(entry.key):
            return False
        if self._is_by_key:
            return True
        if given.type != "all" and entry.is_active != (given.type == "active"):
            return False
        if given.stale is not None and entry.is_stale(now_ms) != given.stale:
            return False
        if given.fetch_status is not None and entry.fetch_status != given.fetch_status:
            return False
        return given.predicate is None or given.predicate(entry)
