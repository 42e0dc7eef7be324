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

Receive = Callable[[Process, Callable[[Any], None]], None]


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
        self, sender: Process, to: str, receive: Receive, done: Callable[[Any], None], timeout_ms: float | None = None
    ) -> "Call":
        """Carry a call: `receive` in the process that has the name then, with what takes its answer, then `done` with that; None: it failed."""
        return Call(self, self._timeline, sender, to, receive, done, timeout_ms or self.faults.timeout_ms)

    def process(self, name: str) -> Process | None:
        """Return the process that has a name."""
        return self._processes.get(name)


class Call:
    """A call under way."""

    __slots__ = (
        "_done",
        "_is_lost",
        "_is_over",
        "_left_ms",
        "_network",
        "_receive",
        "_receiver",
        "_timeline",
        "_timeout_ms",
        "sender",
        "to",
    )

    def __init__(
        self,
        network: Network,
        timeline: Timeline,
        sender: Process,
        to: str,
        receive: Receive,
        done: Callable[[Any], None],
        timeout_ms: float,
    ) -> None:
        choose, faults = timeline.random, network.faults
        self.sender = sender
        self.to = to
        self._network = network
        self._timeline = timeline
        self._receive = receive
        self._done = done
        self._timeout_ms = timeout_ms
        self._is_lost = choose.random() < faults.lose
        self._is_over = False
        self._receiver: Process | None = None
        self._left_ms = timeline.now_ms + LEAVES_MS
        timeline.at(network.delay(), self._arrive)
        if choose.random() < faults.repeat:
            timeline.at(network.delay() * 20, self._arrive_again)

    def _arrive(self) -> None:
        timeline, network, sender = self._timeline, self._network, self.sender
        if sender.stopped_ms is not None and sender.stopped_ms < self._left_ms:
            sender.waiting.append(self._arrive)  # it has not left yet
        elif self._is_lost and timeline.random.random() < 0.5:
            self.fail(network.delay() + LOST_MS)
        elif heals_ms := network.heals_ms(sender.name, self.to):
            self.fail(self._timeout_ms)
            if timeline.random.random() < 0.5:
                timeline.at(heals_ms + network.delay(), self._arrive_again)
        elif (process := network.process(self.to)) is None:
            self.fail(network.delay())
        else:
            self._receiver = process
            process.do(lambda: self._receive(process, self._answer))
            if self._receiver is not None:
                process.callers[self] = None
                timeline.at(self._timeout_ms, self.fail)

    def _arrive_again(self) -> None:
        process = self._network.process(self.to)
        if process is not None and not self._network.heals_ms(self.sender.name, self.to):
            process.do(lambda: self._receive(process, void))

    def _answer(self, answer: Any) -> None:
        self._forget()
        network = self._network
        if self._is_lost:
            self.fail(LOST_MS)
        elif network.heals_ms(self.to, self.sender.name):
            self.fail(self._timeout_ms)
        else:
            self._timeline.at(network.delay(), lambda: self._finish(answer))

    def broken(self) -> None:
        """The process that was to answer has ended: its end of the connection says so, unless that cannot be heard."""
        cut = self._network.heals_ms(self.to, self.sender.name)
        self.fail(self._timeout_ms if cut else self._network.delay())

    def fail(self, in_ms: float = 0.0) -> None:
        """No answer comes."""
        if in_ms:
            self._timeline.at(in_ms, self.fail)
            return
        self._forget()
        self._finish(None)

    def _forget(self) -> None:
        if self._receiver is not None:
            self._receiver.callers.pop(self, None)
            self._receiver = None

    def _finish(self, answer: Any) -> None:
        if not self._is_over:
            self._is_over = True
            self.sender.do(lambda: self._done(answer))
