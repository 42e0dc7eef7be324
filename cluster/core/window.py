"""Windows: when what was folded is sent on.

`window` (the default) closes on a grid of Unix time that all shards share, so that a client gets one write per window; the close is
computed from the first offer, so an idle window costs nothing. `leading` sends at once what follows a quiet window and uses the grid
only while changes keep coming. `debounce` waits for silence, at most `max_wait`.

What must not live here: what waits (`coordinator_state`).
"""

import math
from typing import Literal, assert_never

from msgspec import Struct

Mode = Literal["window", "leading", "debounce"]


class Profile(Struct, frozen=True):
    """How a stream's operations are batched."""

    mode: Mode = "window"
    window_ms: float = 100.0
    max_wait_ms: float = 1000.0
    """The longest `debounce` puts a change off."""


class Window:
    """The clockwork of one shard and profile."""

    __slots__ = ("_due", "_first_ms", "_flushed_ms", "_profile")

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._first_ms = 0.0
        self._due: float | None = None
        self._flushed_ms = -math.inf

    def offered(self, now_ms: float, oldest_ms: float | None = None) -> None:
        """Operations came in; the oldest is of an event received at `oldest_ms`.

        What comes just too late for a close would wait nearly two windows; it closes one of its own as soon as it has waited for one.
        """
        match self._profile.mode:
            case "window":
                self._due = self._sooner(self._close_for(now_ms, oldest_ms))
            case "leading":
                quiet = now_ms - self._flushed_ms >= self._profile.window_ms
                self._due = self._sooner(now_ms if quiet else self._close_for(now_ms, oldest_ms))
            case "debounce":
                if self._due is None:
                    self._first_ms = now_ms
                self._due = min(now_ms + self._profile.window_ms, self._first_ms + self._profile.max_wait_ms)
            case mode:
                assert_never(mode)

    def due(self) -> float | None:
        """When to flush; None while nothing waits."""
        return self._due

    def flushed(self, now_ms: float) -> None:
        """What waited has been taken."""
        self._due = None
        self._flushed_ms = now_ms

    def window_left_ms(self, now_ms: float) -> float:
        """Milliseconds until the grid's next close."""
        return self._next_close(now_ms) - now_ms

    def _sooner(self, due: float) -> float:
        return due if self._due is None else min(self._due, due)

    def _close_for(self, now_ms: float, oldest_ms: float | None) -> float:
        close = self._next_close(now_ms)
        return close if oldest_ms is None else min(close, max(now_ms, oldest_ms + self._profile.window_ms))

    def _next_close(self, now_ms: float) -> float:
        window_ms = self._profile.window_ms
        return (math.floor(now_ms / window_ms) + 1) * window_ms
