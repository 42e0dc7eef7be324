"""What happens when: one queue ordered by (time, number), one source of chance, and a trace of it all.

Everything in a world takes its turn here, so a seed replays exactly. What must not live here: what happens.
"""

import random
from collections.abc import Callable
from heapq import heappop, heappush

START_MS = 1_735_690_600_000.0
"""Unix ms, as machines are handed them."""


class Timeline:
    """See the module."""

    __slots__ = ("_queue", "_steps", "now_ms", "random", "trace")

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ms = START_MS
        """The true time, which nobody's clock need show."""
        self.trace: list[str] = []
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._steps = 0

    def at(self, delay_ms: float, act: Callable[[], None]) -> None:
        """Do something later."""
        self._steps += 1
        heappush(self._queue, (self.now_ms + delay_ms, self._steps, act))

    def run(self, until_ms: float) -> None:
        """Let time pass."""
        queue = self._queue
        while queue and queue[0][0] <= until_ms:
            self.now_ms, _, act = heappop(queue)
            act()
        self.now_ms = max(self.now_ms, until_ms)

    def note(self, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.now_ms - START_MS:9.1f} {text}")


def void(_: object) -> None:
    """Drop a value."""
