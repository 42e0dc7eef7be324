"""Rates: at most so many events a second, with so many at once.

`TokenBucket` is one rate; `RateLimit` what a client is told that sends faster; `RateLimits` one for each of many.
"""

from cluster.errors import ErrorCode, LimitError


class TokenBucket:
    """Tokens that come back steadily, up to `burst`; without one, a second's worth."""

    __slots__ = ("_at", "_per_ms", "_size", "tokens")

    def __init__(self, per_second: float, now_ms: float, burst: float | None = None) -> None:
        self._per_ms = per_second / 1000.0
        self._size = max(per_second if burst is None else burst, 1.0)
        self.tokens = self._size
        self._at = now_ms

    def take(self, count: int, now_ms: float) -> bool:
        """Take tokens if there is any left, down to debt. Returns whether there was."""
        self._refill(now_ms)
        if self.tokens <= 0.0:
            return False
        self.tokens -= count
        return True

    def debt_ms(self, now_ms: float) -> float:
        """Return how long it takes until there is a token; 0: there is."""
        self._refill(now_ms)
        return max(0.0, (1.0 - self.tokens) / self._per_ms) if self.tokens <= 0.0 else 0.0

    def wait_ms(self, now_ms: float) -> float:
        """Return how long it takes until there is a whole token; 0: there is. Who asks this before `take` never gets into debt."""
        self._refill(now_ms)
        return max(0.0, (1.0 - self.tokens) / self._per_ms)

    def _refill(self, now_ms: float) -> None:
        self.tokens = min(self._size, self.tokens + max(0.0, now_ms - self._at) * self._per_ms)
        self._at = max(self._at, now_ms)


class RateLimit:
    """One client's rate. What is too much is refused, and what is refused is counted by a second bucket of the same kind.

    A refusal costs nearly as much as many a command. So once there were too many of them the client is not to be read for a while,
    which it feels as a slow network; what it sends in time is still carried out at the full rate.
    """

    __slots__ = ("_accepted", "_limit", "_per_second", "_refused", "_what")

    def __init__(self, limit: str, what: str, per_second: float, burst: float, now_ms: float) -> None:
        self._limit = limit
        self._what = what
        self._per_second = per_second
        self._accepted = TokenBucket(per_second, now_ms, burst)
        self._refused = TokenBucket(per_second, now_ms, burst)

    def take(self, now_ms: float) -> None:
        """Count one.

        Raises:
            LimitError: `LIMITED`, with the time after which it would not have been.
        """
        wait_ms = self._accepted.wait_ms(now_ms)
        if wait_ms:
            self._refused.take(1, now_ms)
            raise self._refusal(wait_ms)
        self._accepted.take(1, now_ms)

    def require(self, now_ms: float) -> None:
        """Refuse as `take` would, and count nothing.

        Raises:
            LimitError: `LIMITED`, with the time after which it would not have been.
        """
        if wait_ms := self._accepted.wait_ms(now_ms):
            raise self._refusal(wait_ms)

    def _refusal(self, wait_ms: float) -> LimitError:
        rate = self._per_second
        return LimitError(
            ErrorCode.LIMITED,
            self._limit,
            rate,
            f"at most {rate:g} {self._what} a second",
            retry_after_ms=wait_ms,
        )

    def pause_ms(self, now_ms: float) -> float:
        """Return for how long nothing more is to be read; 0: go on."""
        return self._refused.debt_ms(now_ms)


class RateLimits:
    """A `RateLimit` for each of the `REMEMBERED` last seen; one that was forgotten may have a burst again."""

    REMEMBERED = 10_000

    def __init__(self, limit: str, what: str, per_second: float, burst: float) -> None:
        self._arguments = (limit, what, per_second, burst)
        self._by_name: dict[str, RateLimit] = {}

    def take(self, name: str, now_ms: float) -> None:
        """Count one.

        Raises:
            LimitError: `LIMITED`.
        """
        rate = self._by_name.pop(name, None) or RateLimit(*self._arguments, now_ms)
        self._by_name[name] = rate
        if len(self._by_name) > self.REMEMBERED:
            del self._by_name[next(iter(self._by_name))]
        rate.take(now_ms)

    def require(self, name: str, now_ms: float) -> None:
        """Refuse as `take` would, and count nothing.

        Raises:
            LimitError: `LIMITED`.
        """
        if name in self._by_name:
            self._by_name[name].require(now_ms)
