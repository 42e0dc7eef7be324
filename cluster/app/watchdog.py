"""Tells which functions keep a thread busy for too long, while they still do.

A function that never returns says nothing by itself, so somebody else has to look. Arming a timer for each call would cost more than
most calls take; instead a thread notes in its `Lane` what it is in, two assignments, and one thread looks at all lanes: at the moment
at which what it saw is due, else every `WATCHDOG_S`, and not at all while nothing is called.

What must not live here: running functions (`function_loop`, `function_threads`), logging.
"""

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

WATCHDOG_S = 0.05
"""How long a function may keep a thread to itself before it is reported by name. Half a batching window: what blocks for longer is seen
by clients."""


class Call:
    """One call of a function."""

    __slots__ = ("function", "is_reported")

    def __init__(self, function: str) -> None:
        self.function = function
        """`module:qualified.name`."""
        self.is_reported = False


class Stretch(NamedTuple):
    """A call that has a thread to itself."""

    call: Call
    began_s: float

    @property
    def length_s(self) -> float:
        """How long it has been so."""
        return time.monotonic() - self.began_s


class Lane:
    """What one thread is in: one call at a time, or none. Only that thread enters and leaves; anybody may look at `stretch`."""

    __slots__ = ("entered", "stretch", "watchdog")

    def __init__(self, watchdog: "Watchdog") -> None:
        self.watchdog = watchdog
        self.stretch: Stretch | None = None
        self.entered = 0
        """How often it was; the watchdog sleeps while this stands still."""

    def enter(self, call: Call) -> None:
        """The thread is in `call` from now on."""
        self.entered += 1
        self.stretch = Stretch(call, time.monotonic())
        if self.watchdog.is_asleep:
            self.watchdog.wake()

    def leave(self) -> float:
        """The thread does something else again. Returns the seconds that the call had it."""
        stretch, self.stretch = self.stretch, None
        return 0.0 if stretch is None else stretch.length_s


class Watchdog:
    """Reports each call at most once, as (function, seconds so far), from whichever thread notices."""

    def __init__(self, report: Callable[[str, float], None]) -> None:
        self._report = report
        self._lanes: tuple[Lane, ...] = ()
        """Replaced as a whole, never edited: the watchdog's thread reads it."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._roused = threading.Event()
        self._is_closed = False
        self.is_asleep = True
        """Whether it looks at nothing until somebody wakes it."""

    def lane(self) -> Lane:
        """Return a lane for a thread."""
        made = Lane(self)
        with self._lock:
            self._lanes = (*self._lanes, made)
        return made

    def forget(self, lane: Lane) -> None:
        """Look at a lane no more."""
        with self._lock:
            self._lanes = tuple(each for each in self._lanes if each is not lane)

    def wake(self) -> None:
        """Look at the lanes again."""
        with self._lock:
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="harbor-watchdog", daemon=True)
                self._thread.start()
        self._roused.set()

    def report(self, call: Call, seconds: float) -> None:
        """Report a call, unless that was done."""
        with self._lock:
            if call.is_reported:
                return
            call.is_reported = True
        self._report(call.function, seconds)

    def close(self) -> None:
        """End the thread."""
        self._is_closed = True
        self._roused.set()

    def _run(self) -> None:
        seen = -1
        while not self._is_closed:
            stretches = [stretch for lane in self._lanes if (stretch := lane.stretch) is not None]
            due_s = WATCHDOG_S
            for stretch in stretches:
                if stretch.call.is_reported:
                    continue
                left_s = WATCHDOG_S - stretch.length_s
                if left_s <= 0:
                    self.report(stretch.call, stretch.length_s)
                else:
                    due_s = min(due_s, left_s)
            entered = sum(lane.entered for lane in self._lanes)
            if stretches or entered != seen:
                seen = entered
                self.is_asleep = False
                self._roused.wait(due_s)
            else:
                # Whoever enters after this line sees a sleeper to wake; who entered before it is seen by the last look.
                self.is_asleep = True
                if not any(lane.stretch for lane in self._lanes):
                    self._roused.wait()
            self._roused.clear()
