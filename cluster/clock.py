"""Time as a value: the only module below the shells that may read a clock.

State machines never call a clock; they are handed `now_ms`. Shells own one `SystemClock`, tests own a `ManualClock`.
What must not live here: timers, scheduling, formatting.
"""

import time
from typing import NewType, Protocol

Millis = NewType("Millis", float)
"""Milliseconds since the Unix epoch."""


class Clock(Protocol):
    """Tells the time."""

    def now_ms(self) -> Millis:
        """Return the current time; never less than an earlier answer."""
        ...

    def wall_ms(self) -> Millis:
        """Return what the wall clock shows, which may be set: for dates that others wrote, such as a token's. Nothing is timed by it."""
        ...


class SystemClock:
    """Wall time at creation, advanced by the monotonic clock.

    Steps of the wall clock (NTP, suspended machines) therefore never fire a timer early or run a window backwards;
    the price is that a process keeps the wall-clock error it started with. Where that counts there is `wall_ms`.
    """

    __slots__ = ("_base_ms",)

    def __init__(self) -> None:
        self._base_ms = (time.time() - time.monotonic()) * 1000.0

    def now_ms(self) -> Millis:
        """Return the current time."""
        return Millis(self._base_ms + time.monotonic() * 1000.0)

    def wall_ms(self) -> Millis:
        """Return what the wall clock shows."""
        return Millis(time.time() * 1000.0)


class ManualClock:
    """A clock that moves only when told to."""

    __slots__ = ("_now_ms",)

    def __init__(self, now_ms: float = 0.0) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> Millis:
        """Return the current time."""
        return Millis(self._now_ms)

    def wall_ms(self) -> Millis:
        """Return the same: nobody sets it."""
        return Millis(self._now_ms)

    def advance(self, ms: float) -> Millis:
        """Move forward by `ms` milliseconds and return the new time.

        Raises:
            ValueError: `ms` is negative.
        """
        if ms < 0:
            raise ValueError(f"a clock cannot move back: {ms}")
        self._now_ms += ms
        return Millis(self._now_ms)
