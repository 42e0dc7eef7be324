"""Degradation: what a client whose socket does not take what is due is given instead, step by step, and back.

A client that is written to in every window and reads slower than that costs the gateway memory and itself freshness: what it is handed
waits in buffers, and by the time it is read it is old. So the slower a client reads, the less often it is written to, and the more is
folded into each write:

    step    a write at most every    what waits meanwhile
    0       window (100 ms)          nothing: it is in step, all in step share one encoding
    1       250 ms                   its changes, folded
    2       1000 ms                  its changes, folded
    3       its socket drains        only that there were some: then it gets `reset` and a new snapshot, at step 2

Up: by the time in which its socket held something unwritten, less the time in which it did not: `STEP_MS` of it is a step, so one that is
blocked for half of the time or more climbs, a hiccup is forgiven. A socket from which nothing at all was taken for `DRAIN_MS`, or for which
more waits than may, goes to step 3; after `STALL_MS` without a byte it is closed (3008).

Down: one step for every `CALM_MS` in which the socket never held anything up. That is longer than it takes to climb, so a client at
the edge stays where it can be served instead of going up and down.

The shell looks every `LOOK_MS` at the sockets that are being written to, and says how much of what was handed to each is not sent yet.
What is handed out counts as taken when that falls: a message of any length may take as long as it needs while it moves.

What must not live here: what a client is sent (`gateway_state`), sockets (`cluster.gateway`).
"""

from enum import IntEnum

LOOK_MS = 250.0
"""Between looks. A hold-up that is shorter than this is not one."""
STEP_MS = 1_000.0
"""Of hold-up, net: a client on a mobile network stalls for some hundred ms now and then."""
DRAIN_MS = 5_000.0
"""Without a byte taken: by then a snapshot is likely to be shorter than what has changed, and memory is better kept for others."""
STALL_MS = 30_000.0
"""Without a byte taken: longer than a lost train connection, shorter than TCP takes to give up (15 minutes)."""
CALM_MS = 5_000.0


class Step(IntEnum):
    """How far a session has been degraded."""

    IN_STEP = 0
    WIDE = 1
    WIDER = 2
    ON_DRAIN = 3


WINDOW_MS = {Step.IN_STEP: 100.0, Step.WIDE: 250.0, Step.WIDER: 1_000.0, Step.ON_DRAIN: 1_000.0}
"""Between writes. At step 0 windows of the coordinator see to it."""
LEVELS = {Step.WIDE: "250ms", Step.WIDER: "1000ms", Step.ON_DRAIN: "drain"}
"""As metrics name them."""


class Degradation:
    """One session's; made when its socket is first seen holding something up, dropped when it has recovered."""

    __slots__ = ("_calm_ms", "_looked_ms", "_moved_ms", "_unsent", "_writes", "held_ms", "is_stalled", "step")

    def __init__(self, now_ms: float) -> None:
        self.step = Step.IN_STEP
        self.held_ms = 0.0
        """Hold-up, net, since the last step."""
        self.is_stalled = False
        """It is to be closed."""
        self._calm_ms = 0.0
        self._looked_ms = self._moved_ms = now_ms
        self._writes = 0
        self._unsent: int | None = None
        """As it was at the last look; None: it held nothing up then."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is left of it."""
        return self.step is Step.IN_STEP and not self.held_ms and self._unsent is None

    def look(self, now_ms: float, writes: int, unsent: int | None) -> None:
        """Look at the session's socket.

        Args:
            now_ms: When.
            writes: How many frames it has been handed ever.
            unsent: Bytes of the last that wait to be sent; None: it has taken all of it.
        """
        passed = min(now_ms - self._looked_ms, 2 * LOOK_MS)  # a gateway that was held up itself blames nobody for it
        self._looked_ms = now_ms
        is_same = writes == self._writes and self._unsent is not None
        if unsent is None or not is_same or unsent < (self._unsent or 0):
            self._moved_ms = now_ms
        is_held = unsent is not None and is_same
        self._writes, self._unsent = writes, unsent
        self.held_ms = max(self.held_ms + (passed if is_held else -passed), 0.0)
        if is_held:
            self._calm_ms = 0.0
        elif unsent is None:  # else whether it holds anything up is for the next look to say
            self._calm_ms += passed
        if unsent is not None and now_ms - self._moved_ms >= STALL_MS:
            self.is_stalled = True
        if unsent is not None and now_ms - self._moved_ms >= DRAIN_MS:
            self._to(Step.ON_DRAIN)
        elif self.step < Step.WIDER and self.held_ms >= STEP_MS:
            self._to(Step(self.step + 1))
        elif Step.IN_STEP < self.step < Step.ON_DRAIN and self._calm_ms >= CALM_MS:
            self._to(Step(self.step - 1))

    def overfull(self) -> None:
        """More waits for the session than may, and its socket holds it up."""
        self._to(Step.ON_DRAIN)

    def drained(self) -> None:
        """The socket has taken all it was handed: it may be sent a snapshot."""
        if self.step is Step.ON_DRAIN:
            self._to(Step.WIDER)

    def _to(self, step: Step) -> None:
        if step is not self.step:
            self.step, self.held_ms, self._calm_ms = step, 0.0, 0.0
