"""Taking an entry's state out of a cache and putting it into another: what query-core calls dehydrate and hydrate."""

from msgspec import Struct

from cluster.core.entry import Value
from cluster.core.query_cache import Entry, QueryCache
from cluster.core.query_key import CanonicalKey
from cluster.core.query_options import QueryOptions


class EntryState(Struct, frozen=True, array_like=True):
    """What lasts of an entry. A fetch under way does not."""

    key: CanonicalKey
    data: bytes | None
    """JSON; None: it had none."""
    data_updated_at: float
    """Unix ms."""
    data_update_count: int
    status: str
    is_invalidated: bool
    error: str | None
    error_updated_at: float
    error_update_count: int


def dehydrate(entry: Entry) -> EntryState:
    """Return an entry's state."""
    return EntryState(
        entry.key,
        None if entry.value is None else entry.value.json(),
        entry.data_updated_at,
        entry.data_update_count,
        entry.status,
        entry.is_invalidated,
        None if entry.error is None else str(entry.error),
        entry.error_updated_at,
        entry.error_update_count,
    )


def hydrate(cache: QueryCache[Entry], state: EntryState, options: QueryOptions) -> Entry:
    """Put a state into a cache, unless the entry is there with data as new. Returns the entry; `options` are for a new one."""
    entry = cache.get(state.key)
    if entry is None:
        entry = cache.add(Entry(state.key, options))
    elif state.data_updated_at <= entry.data_updated_at:
        return entry
    entry.value = None if state.data is None else Value.from_json(state.data)
    entry.data_updated_at, entry.data_update_count = state.data_updated_at, state.data_update_count
    entry.status, entry.is_invalidated, entry.error = state.status, state.is_invalidated, state.error
    entry.error_updated_at, entry.error_update_count = state.error_updated_at, state.error_update_count
    return entry
