"""The network between processes: calls that are late, lost or repeated, and links that are cut, in one direction or both.

Losing a call means what it means under Ray: either it did not arrive, or its answer did not; the caller cannot tell which. What is sent
over a cut link is lost, or arrives when the link heals and nobody waits for it any more. The caller is told at once or after
`timeout_ms`, as connections break or just say nothing.

What must not live here: what messages do (`world`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cluster.simulation.process import Process
from cluster.simulation.timeline import Timeline, void

LOST_MS = 200.0
"""Until a caller hears that a call failed, where its connection broke."""
LEAVES_MS = 0.3
"""Until what a process has decided to send is out of its hands."""


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad the network is. Probabilities are per call."""

    delay_ms: float = 3.0
    """Mean one-way delay; delays are exponential, so calls of different links overtake each other."""
    lose: float = 0.0
    repeat: float = 0.0
    restart_ms: float = 400.0
    """From a kill to the next life."""
    timeout_ms: float = 1_500.0
    """How long a caller waits for an answer (ten seconds in clusters: nothing rests on how long)."""


class Network:
    """See the module."""

    def __init__(self, timeline: Timeline, faults: Faults, processes: dict[str, Process]) -> None:
        self.faults = faults
        self._timeline = timeline
        self._processes = processes
        self._cut: dict[tuple[str, str], float] = {}
        """By (from, to): true time when it heals."""

    def delay(self) -> float:
        """Return a delay, one way."""
        return self._timeline.random.expovariate(1.0 / self.faults.delay_ms)

    # --- cuts ----------------------------------------------------------------------------------------------------

    def cut(self, senders: Iterable[str], receivers: Iterable[str], for_ms: float, *, both: bool = True) -> None:
        """Cut the links from some to others, and with `both` those back, for a while."""
        until = self._timeline.now_ms + for_ms
        receivers = list(receivers)
        for a in senders:
            for b in receivers:
                if a != b:
                    self._cut[a, b] = max(until, self._cut.get((a, b), 0.0))
                    if both:
                        self._cut[b, a] = max(until, self._cut.get((b, a), 0.0))

    def heal(self) -> None:
        """Make every link good."""
        self._cut.clear()

    def heals_ms(self, sender: str, receiver: str) -> float:
        """Return in how long a link heals; 0: it is good."""
        until = self._cut.get((sender, receiver)) if self._cut else None
        return 0.0 if until is None else max(until - self._timeline.now_ms, 0.0)

    # --- calls ---------------------------------------------------------------------------------------------------

    def call(
        self,
        sender: Process,
        to: str,
        receive: Callable[[Process, Callable[[Any], None]], None],
        done: Callable[[Any], None],
    ) -> None:
        """Carry a call: `receive` in the process that has the name then, with what takes its answer, then `done` with that; None: it failed."""
        timeline, faults, choose = self._timeline, self.faults, self._timeline.random
        lost = choose.random() < faults.lose
        arrives = not lost or choose.random() < 0.5
        left_ms = timeline.now_ms + LEAVES_MS
        is_over = False

        def finish(answer: Any) -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                sender.do(lambda: done(answer))

        def answer(value: Any) -> None:
            if lost or self.heals_ms(to, sender.name):
                timeline.at(LOST_MS if lost else faults.timeout_ms, lambda: finish(None))
            else:
                timeline.at(self.delay(), lambda: finish(value))

        def arrive() -> None:
            if sender.stopped_ms is not None and sender.stopped_ms < left_ms:
                sender.waiting.append(arrive)  # it has not left yet
                return
            if not arrives:
                timeline.at(self.delay() + LOST_MS, lambda: finish(None))
                return
            if heals_ms := self.heals_ms(sender.name, to):
                timeline.at(faults.timeout_ms, lambda: finish(None))
                if choose.random() < 0.5:
                    timeline.at(heals_ms + self.delay(), lambda: void(self._deliver(to, receive, void)))
                return
            if self._deliver(to, receive, answer):
                timeline.at(faults.timeout_ms, lambda: finish(None))

        timeline.at(self.delay(), arrive)
        if choose.random() < faults.repeat:
            timeline.at(self.delay() * 20, lambda: self._again(sender.name, to, receive))

    def _again(self, sender: str, to: str, receive: Callable[[Process, Callable[[Any], None]], None]) -> None:
        if not self.heals_ms(sender, to):
            self._deliver(to, receive, void)

    def _deliver(
        self,
        to: str,
        receive: Callable[[Process, Callable[[Any], None]], None],
        answer: Callable[[Any], None],
    ) -> bool:
        """Hand a call over. Returns whether its answer is still to come, if it does at all."""
        process = self._processes.get(to)
        if process is None:
            answer(None)
            return False
        is_answered = False

        def answered(value: Any) -> None:
            nonlocal is_answered
            is_answered = True
            answer(value)

        process.do(lambda: receive(process, answered))
        return not is_answered
