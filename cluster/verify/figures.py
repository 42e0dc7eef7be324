"""What a run measures: ages of deliveries, silences, counts. Bounded however long it takes.

What must not live here: judging (`contract_oracle`), printing (`cli`).
"""

import math
from collections import Counter

GROWTH = 1.02
"""Between two classes of ages: percentiles are right within 2 %."""


class Ages:
    """Ages in milliseconds, counted in classes."""

    def __init__(self) -> None:
        self._classes: Counter[int] = Counter()
        self.count = 0
        self.max_ms = 0.0

    def add(self, age_ms: float) -> None:
        """Count one."""
        self._classes[math.ceil(math.log(max(age_ms, 0.1)) / math.log(GROWTH))] += 1
        self.count += 1
        self.max_ms = max(self.max_ms, age_ms)

    def percentile(self, share: float) -> float:
        """Return the age that `share` of all do not pass; 0: there are none."""
        wanted, passed = share * self.count, 0
        for number in sorted(self._classes):
            passed += self._classes[number]
            if passed >= wanted:
                return min(GROWTH**number, self.max_ms)
        return 0.0

    def told(self) -> dict[str, float]:
        """Return the figures."""
        return {
            "count": self.count,
            "p50_ms": round(self.percentile(0.5), 1),
            "p99_ms": round(self.percentile(0.99), 1),
            "max_ms": round(self.max_ms, 1),
        }


class Silences:
    """The longest time in which a client that listened was told nothing, by the fault that was last."""

    def __init__(self) -> None:
        self.longest_s: dict[str, float] = {}

    def add(self, fault: str, seconds: float) -> None:
        """A client was told something after so long."""
        self.longest_s[fault] = max(self.longest_s.get(fault, 0.0), seconds)

    def told(self) -> dict[str, float]:
        """Return the figures."""
        return {fault: round(seconds, 2) for fault, seconds in self.longest_s.items()}
