"""When data is too old to be shown without being fetched again."""

from typing import Final, Literal

STATIC: Final = "static"
"""A stale time: data never goes stale, not even when it is invalidated."""
StaleTime = float | Literal["static"] | None
"""Milliseconds since the data was updated; None: never by itself, though it can be invalidated; or `STATIC`."""


def is_stale(updated_at: float | None, stale_time: StaleTime, *, is_invalidated: bool, now_ms: float) -> bool:
    """Whether data is stale. `updated_at`: Unix ms; None: there is no data, which is always stale."""
    at = stale_at(updated_at, stale_time, is_invalidated=is_invalidated)
    return at is not None and at <= now_ms


def stale_at(updated_at: float | None, stale_time: StaleTime, *, is_invalidated: bool) -> float | None:
    """Return the Unix ms from which data is stale; 0: it is already; None: it never will be by itself."""
    if updated_at is None:
        return 0.0
    if stale_time == STATIC:
        return None
    if is_invalidated:
        return 0.0
    return None if stale_time is None else updated_at + stale_time
