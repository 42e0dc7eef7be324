"""A process: one life of an actor, on a machine with a clock of its own, which may be stopped and go on (SIGSTOP, SIGCONT).

While it is stopped nothing happens in it: what comes waits, as in a socket's buffer, timers fire late, and what had been handed to
the system before is on its way already, but what had only been decided leaves afterwards.

Its clock is `cluster.clock.SystemClock`: the wall clock as it was when the process began, advanced by the monotonic clock. So a jump of
a machine's wall clock shows in the processes that begin after it, and the monotonic clock of a machine may run a little fast or slow.

What must not live here: how calls travel (`network`), what a life of an actor begins with (`world`).
"""

from collections.abc import Callable
from typing import Any

from cluster.core.primaries import Primaries
from cluster.simulation.timeline import Timeline


class Machine:
    """A computer."""

    __slots__ = ("name", "rate", "skew_ms")

    def __init__(self, name: str) -> None:
        self.name = name
        self.skew_ms = 0.0
        """Wall clock less true time."""
        self.rate = 1.0
        """Of its monotonic clock."""


class Process:
    """See the module."""

    __slots__ = (
        "_base_ms",
        "_began_ms",
        "_rate",
        "_timeline",
        "callers",
        "calls",
        "holder",
        "is_alive",
        "life",
        "lost_power",
        "machine",
        "name",
        "node",
        "primaries",
        "stopped_ms",
        "timer_ms",
        "waiting",
    )

    def __init__(self, name: str, node: Machine, timeline: Timeline) -> None:
        self.name = name
        self.node = node
        self.machine: Any = None
        """The state machine, once it has begun."""
        self._timeline = timeline
        self._began_ms = timeline.now_ms
        self._base_ms = timeline.now_ms + node.skew_ms
        self._rate = node.rate
        self.life = 0
        """As the process calls it: its wall time when it began, or more."""
        self.is_alive = True
        self.lost_power = False
        self.stopped_ms: float | None = None
        """True time since when it is stopped."""
        self.waiting: list[Callable[[], None]] = []
        self.callers: dict[Any, None] = {}
        """Calls that wait for an answer of it."""
        self.primaries = Primaries()
        self.calls: dict[str, dict[Any, None]] = {}
        """Of its own to shards, that are under way, by actor."""
        self.holder: Any = None
        """What makes it a shard's actor."""
        self.timer_ms: float | None = None

    def now_ms(self) -> float:
        """Return the time by its clock."""
        return self._base_ms + (self._timeline.now_ms - self._began_ms) * self._rate

    def in_true_ms(self, until_ms: float) -> float:
        """Return how long it is until its clock shows a time: a little more than nothing where that is not now."""
        left = (until_ms - self.now_ms()) / self._rate
        return max(left, 0.001) if left > 0 else 0.0

    def do(self, act: Callable[[], None]) -> None:
        """Do something in it: now, when it goes on, or never where it is dead."""
        if not self.is_alive:
            return
        if self.stopped_ms is None:
            act()
        else:
            self.waiting.append(act)

    def later(self, delay_ms: float, act: Callable[[], None]) -> None:
        """Do something in it later."""
        self._timeline.at(delay_ms, lambda: self.do(act))

    def stop(self) -> None:
        """Nothing happens in it from now on."""
        if self.stopped_ms is None:
            self.stopped_ms = self._timeline.now_ms

    def go_on(self) -> None:
        """It goes on, and finds what has come meanwhile."""
        self.stopped_ms = None
        waiting, self.waiting = self.waiting, []
        for act in waiting:
            self.do(act)

    def die(self) -> None:
        """It has ended."""
        self.is_alive = False
        self.waiting = []
        callers, self.callers = self.callers, {}
        for call in callers:
            call.broken()
