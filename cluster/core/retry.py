"""When to try again, and whether at all.

Two schedules: `Backoff` for connections that are tried for ever (jittered, so that a thousand of them do not return in step), and
`Retryer` for fetches (query-core's, not jittered: single flight already makes it one request per key).

What must not live here: clocks, sleeping, random numbers (they are passed in).
"""

from collections.abc import Callable
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, Literal

from msgspec import Struct

RETRY_BASE_MS = 1_000.0
RETRY_MAX_MS = 30_000.0
NAMED_MIN_MS = 100.0
"""The shortest first delay that a peer can name: one that names none, and ends each connection at once, would have thousands a second."""
RETRYABLE_STATUSES = frozenset({408, 425, 429})
"""Client errors that a later try can cure: request timeout, too early, too many requests."""
MAX_DOUBLINGS = 64
"""Beyond this any schedule has reached its maximum; a larger power would overflow a float."""


DEFAULT_RETRIES = 3
Retry = int | bool | Callable[[int, Any], bool]
"""How often to try again, whether at all or for ever, or a function of (failures before this one, error)."""
RetryDelay = float | None | Callable[[int, Any], float]
"""Milliseconds before the next try, or a function of (failures before this one, error); None: `retry_delay_ms`."""


class Backoff(Struct, frozen=True):
    """The delays between attempts to connect.

    `jitter` full: between 0 and the delay. equal: between half of it and all of it, so that a lone client never hammers.
    """

    initial_ms: float = 1_000.0
    max_ms: float = 30_000.0
    attempts: int = 5
    """After so many failures in a row the peer counts as failed, and is tried every `max_ms`."""
    factor: float = 2.0
    jitter: Literal["full", "equal", "none"] = "equal"

    def failed(self, failures: int) -> bool:
        """Tell whether that many failures in a row make the peer failed."""
        return failures >= self.attempts

    def delay_ms(self, failures: int, random: float, initial_ms: float | None = None) -> float:
        """Return how long to wait after the `failures`-th failure in a row (1 is the first).

        Args:
            failures: At least 1.
            random: Uniform in 0..1.
            initial_ms: In place of the schedule's own, where the peer named one (the `retry:` of a server-sent stream); `NAMED_MIN_MS` at least.
        """
        if self.failed(failures):
            delay = self.max_ms
        else:
            base = self.initial_ms if initial_ms is None else max(initial_ms, NAMED_MIN_MS)
            delay = min(base * self.factor ** min(failures - 1, MAX_DOUBLINGS), self.max_ms)
        match self.jitter:
            case "full":
                return delay * random
            case "equal":
                return delay * (0.5 + random / 2)
            case "none":
                return delay


def retry_delay_ms(failure_count: int, configured: float | None = None) -> float:
    """Return how long a fetch waits before it is tried again: `configured`, or min(1000 * 2^n, 30000).

    Args:
        failure_count: Failures before this one: 0 after the first (query-core's `retryDelay`).
        configured: Milliseconds, from the query's declaration.
    """
    if configured is not None:
        return configured
    return float(min(RETRY_BASE_MS * 2 ** min(failure_count, MAX_DOUBLINGS), RETRY_MAX_MS))


class Step(Enum):
    """What is next for a `Retryer`."""

    RUN = "run"
    """Make an attempt."""
    WAIT = "wait"
    """For `due`, when the next attempt is."""
    PAUSE = "pause"
    """Until `resume`: the service is offline."""
    GIVE_UP = "give up"
    """With the last error."""


class Retryer:
    """The attempts of one piece of work, as query-core's retryer makes them."""

    __slots__ = ("_delay", "_retry", "_started", "abandoned", "due", "failure_count", "paused")

    def __init__(self, retry: Retry, delay: RetryDelay) -> None:
        self._retry = retry
        self._delay = delay
        self._started = False
        self.failure_count = 0
        """Failures after which it was, or will be, tried again."""
        self.due: float | None = None
        """Unix ms of the next attempt, while it waits for it."""
        self.paused = False
        self.abandoned = False
        """Nobody wants it tried again; an attempt under way may still succeed."""

    def start(self, *, online: bool) -> Step:
        """Begin."""
        self._started = online
        self.paused = not online
        return Step.RUN if online else Step.PAUSE

    def failed(self, error: Any, now_ms: float) -> Step:
        """The attempt under way failed."""
        failures = self.failure_count
        retry = self._retry
        again = (
            retry if isinstance(retry, bool) else failures < retry if isinstance(retry, int) else retry(failures, error)
        )
        if self.abandoned or not again:
            return Step.GIVE_UP
        delay = self._delay(failures, error) if callable(self._delay) else retry_delay_ms(failures, self._delay)
        self.failure_count += 1
        self.due = now_ms + delay
        return Step.WAIT

    def wake(self, *, online: bool) -> Step:
        """The time of the next attempt has come."""
        self.due = None
        if not online:
            self.paused = True
            return Step.PAUSE
        return Step.GIVE_UP if self.abandoned else Step.RUN

    def resume(self) -> Step:
        """The service is online again."""
        self.paused = False
        if self._started and self.abandoned:
            return Step.GIVE_UP
        self._started = True
        return Step.RUN


def is_retryable_status(status: int) -> bool:
    """Tell whether a request answered with this HTTP status may succeed later, unchanged."""
    return status >= 500 or status in RETRYABLE_STATUSES


MAX_RETRY_AFTER_MS = 300_000.0
"""A fetch that waits keeps its entry and its readers; nobody should have to wait longer for a service that is there again."""


def retry_after_ms(value: str | None, now_ms: float) -> float | None:
    """Read a `Retry-After` header (RFC 9110, 10.2.3): seconds, or an HTTP date. None where there is none to be read."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]) * 1000.0, MAX_RETRY_AFTER_MS)
    try:
        at_ms = parsedate_to_datetime(text).timestamp() * 1000.0
    except (ValueError, OverflowError):  # the latter where a year or a zone has twenty digits
        return None
    return min(max(at_ms - now_ms, 0.0), MAX_RETRY_AFTER_MS)
