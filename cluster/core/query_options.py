"""Options of queries and of those who observe them, and defaults by key.

What must not live here: what the options do (`query_cache`, `retry`, `staleness`).
"""

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType, structs

from cluster.core.entry import Value
from cluster.core.infinite import Paging
from cluster.core.query_key import CanonicalKey, KeyMatcher, canonical
from cluster.core.retry import Retry, RetryDelay
from cluster.core.staleness import StaleTime

DEFAULT_GC_TIME_MS = 300_000.0
DEFAULT_OFFLINE_TIME_MS = 86_400_000.0
NetworkMode = Literal["online", "always", "offline_first"]
"""Whether a fetch waits while its service is offline: always; never; or only to be tried again."""
RefetchOn = Literal["always"] | bool
"""Refetch if stale (True), never, or in any case."""


class QueryOptions(Struct, frozen=True):
    """Options of a query, or of one who observes it; what is unset is inherited."""

    stale_time: StaleTime | UnsetType = UNSET
    """See `staleness`; 0 by default."""
    gc_time: float | UnsetType | None = UNSET
    """Milliseconds for which an entry is kept that nobody observes; None: for good. `DEFAULT_GC_TIME_MS` by default."""
    offline_time: float | UnsetType | None = UNSET
    """Milliseconds for which an entry that is over its gc time is kept while its service is offline; None: until that is back.
    `DEFAULT_OFFLINE_TIME_MS` by default."""
    retry: Retry | UnsetType = UNSET
    retry_delay: RetryDelay | UnsetType = UNSET
    network_mode: NetworkMode | UnsetType = UNSET
    service: str | UnsetType = UNSET
    """Whose being offline pauses the fetch; empty by default."""
    paging: Paging | UnsetType | None = UNSET
    """How an infinite list is paged; None (the default): it is none."""
    initial_data: Value | UnsetType = UNSET
    initial_data_updated_at: float | UnsetType = UNSET
    # What follows concerns observers.
    enabled: bool = True
    refetch_on_mount: RefetchOn = True
    refetch_on_reconnect: RefetchOn | UnsetType = UNSET
    """True by default, but where the network mode is `always`."""
    retry_on_mount: bool = True
    refetch_interval: float = 0.0
    """Milliseconds; 0: none."""

    @property
    def own_stale_time(self) -> StaleTime:
        """The stale time, or its default."""
        return 0.0 if self.stale_time is UNSET else self.stale_time

    @property
    def own_gc_time(self) -> float | None:
        """The gc time, or its default."""
        return DEFAULT_GC_TIME_MS if self.gc_time is UNSET else self.gc_time

    @property
    def own_offline_time(self) -> float | None:
        """The offline time, or its default."""
        return DEFAULT_OFFLINE_TIME_MS if self.offline_time is UNSET else self.offline_time

    @property
    def own_service(self) -> str:
        """The service, or the empty name of the only one."""
        return "" if self.service is UNSET else self.service

    @property
    def own_refetch_on_reconnect(self) -> RefetchOn:
        """Whether to refetch when the service is back, or the default."""
        return self.network_mode != "always" if self.refetch_on_reconnect is UNSET else self.refetch_on_reconnect

    def over(self, *defaults: "QueryOptions") -> "QueryOptions":
        """Return these options on top of others, of which later ones go over earlier ones."""
        merged: dict[str, Any] = {}
        for options in (*defaults, self):
            for name in _INHERITED:
                value = getattr(options, name)
                if value is not UNSET:
                    merged[name] = value
        return structs.replace(self, **merged)


_INHERITED = (
    "stale_time",
    "gc_time",
    "offline_time",
    "retry",
    "retry_delay",
    "network_mode",
    "service",
    "paging",
    "initial_data",
    "initial_data_updated_at",
)


class QueryDefaults:
    """Options registered for key prefixes; as with query-core's `setQueryDefaults`, every one that matches counts, in order.

    The cluster declares queries instead; it is there for the vectors of query-core (`tests/conformance`).
    """

    def __init__(self, base: QueryOptions | None = None) -> None:
        """`base` is under all of them."""
        self._base = base or QueryOptions()
        self._registered: dict[CanonicalKey, tuple[KeyMatcher, QueryOptions]] = {}

    def register(self, key: list[Any], options: QueryOptions) -> None:
        """Set the options of every key under `key`; the same key again takes the place of what was registered for it."""
        self._registered[canonical(key)] = (KeyMatcher(key), options)

    def registered(self, key: list[Any]) -> QueryOptions:
        """Return the registered options of a key, merged."""
        text = canonical(key)
        return QueryOptions().over(
            *(options for matcher, options in self._registered.values() if matcher.matches(text, key))
        )

    def effective(self, key: list[Any], explicit: QueryOptions | None = None) -> QueryOptions:
        """Return the options of a key: the base, what is registered, and what is given, each over the one before."""
        return (explicit or QueryOptions()).over(self._base, self.registered(key))
