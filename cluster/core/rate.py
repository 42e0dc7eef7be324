"""Rates: at most so many events a second, with as many at once as a second allows."""


class TokenBucket:
    """Tokens that come back steadily, up to a second's worth."""

    __slots__ = ("_at", "_per_ms", "_size", "tokens")

    def __init__(self, per_second: float, now_ms: float) -> None:
        self._per_ms = per_second / 1000.0
        self._size = max(per_second, 1.0)
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

    def _refill(self, now_ms: float) -> None:
        self.tokens = min(self._size, self.tokens + max(0.0, now_ms - self._at) * self._per_ms)
        self._at = max(self._at, now_ms)
