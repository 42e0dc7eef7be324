"""When to try again, and whether at all.

Two schedules: `Backoff` for connections that are tried for ever (jittered, so that a thousand of them do not return in step), and
`retry_delay_ms` for fetches (query-core's, not jittered: single flight already makes it one request per key).

What must not live here: clocks, sleeping, random numbers (they are passed in).
"""

from email.utils import parsedate_to_datetime
from typing import Literal

from msgspec import Struct

RETRY_BASE_MS = 1_000.0
RETRY_MAX_MS = 30_000.0
RETRYABLE_STATUSES = frozenset({408, 425, 429})
"""Client errors that a later try can cure: request timeout, too early, too many requests."""
MAX_DOUBLINGS = 64
"""Beyond this any schedule has reached its maximum; a larger power would overflow a float."""


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
            initial_ms: In place of the schedule's own, where the peer named one (the `retry:` of a server-sent stream).
        """
        if self.failed(failures):
            delay = self.max_ms
        else:
            base = self.initial_ms if initial_ms is None else initial_ms
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


def is_retryable_status(status: int) -> bool:
    """Tell whether a request answered with this HTTP status may succeed later, unchanged."""
    return status >= 500 or status in RETRYABLE_STATUSES


def retry_after_ms(value: str | None, now_ms: float) -> float | None:
    """Read a `Retry-After` header (RFC 9110, 10.2.3): seconds, or an HTTP date. None where there is none to be read."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), 1e9) * 1000.0
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(at.timestamp() * 1000.0 - now_ms, 0.0)
