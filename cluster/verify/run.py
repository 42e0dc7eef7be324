"""A run: load, watchers and faults at once, then rest, then a look at what everybody sees and what is stored.

It ends with the first violation, at its time, or when it is interrupted; in each case the entries it made are deleted.

What must not live here: judging (`contract_oracle`), printing (`cli`).
"""

import asyncio
import secrets
import time
from collections import deque
from typing import Any

from msgspec import Struct

from cluster.errors import HarborError
from cluster.verify.asker import refusal
from cluster.verify.contract_oracle import Rule, Truth, Violation, first_violation
from cluster.verify.faults import Faults, keeps_nothing, require_processes
from cluster.verify.figures import Ages, Silences
from cluster.verify.load import READERS, REST_S, Load, text
from cluster.verify.plan import ON_PROCESSES, Fault, Settings, fault_plan
from cluster.verify.watchers import Watcher, make_watcher, wanted_watchers

LOOK_S = 0.1
NO_FAULT = "load alone"
RECENT_FAULTS = 50
"""Remembered, with their times: more than there are in any silence."""


class Trace(Struct, frozen=True):
    """The first violation, with what helps to understand it."""

    rule: str
    what: str
    key: str
    expected: str
    got: str
    client: str
    recent: list[str]
    """The last messages of that client, oldest first."""
    fault: str
    """The one before it."""
    at_s: float
    seed: int


class Report(Struct):
    """What was found."""

    seconds: float
    seed: int
    is_whole: bool
    """It came to its end: neither interrupted nor ended by a violation."""
    violation: Trace | None
    counts: dict[str, int]
    faults: dict[str, int]
    ages: dict[str, float]
    """Of deliveries: from a write's begin to its arrival at a client that was listening."""
    silences_s: dict[str, float]
    """The longest of any client that listened to everything, by the fault before it."""
    notes: list[str]
    """What was not done, and why."""


class Run:
    """One run. `stop` may be set at any time; it then ends early, without the comparison at the end."""

    def __init__(self, url: str, token: str | None, settings: Settings) -> None:
        self._url = url
        self._token = token
        self._settings = settings
        self._root = [*settings.prefix, f"{settings.seed}-{secrets.token_hex(4)}"]
        self._truth = Truth(is_frail="memory" in settings.acks)
        self._ages = Ages()
        self._silences = Silences()
        self._notes: list[str] = []
        self._made: dict[str, int] = {}
        self._fault = NO_FAULT
        self._begun: deque[tuple[float, str]] = deque(maxlen=RECENT_FAULTS)
        self._watchers: list[Watcher] = []
        self._began = time.monotonic()
        self._described: dict[str, Any] | None = None
        self.stop = asyncio.Event()

    async def run(self) -> Report:
        """Do it.

        Raises:
            HarborError: it cannot begin: nobody answers, the token does not suffice, there is nothing to kill.
        """
        settings = self._settings
        violation: Trace | None = None
        is_whole = False
        async with Load(self._url, self._token, settings, self._root, self._truth) as load:
            try:
                if ON_PROCESSES & set(settings.faults):
                    self._described = await self._describe(load)
                    require_processes(self._described)
                    if keeps_nothing(self._described):
                        self._note(
                            "shards are not killed: one that keeps nothing (storage.path) loses what was written"
                        )
                await load.begin()
                is_whole = await self._judged(load)
            except Violation as found:
                violation = self._trace(found)
            finally:
                if load.has_written:
                    await asyncio.shield(self._clean_up(load))
            return self._report(load, violation, is_whole=is_whole and violation is None)

    async def _clean_up(self, load: Load) -> None:
        left = await load.clean_up(self._root)
        if left:
            self._note(
                f"{left} entries or more are left under {text(self._root)}: delete them when the cluster is back"
            )

    async def _judged(self, load: Load) -> bool:
        """Run everything. Returns whether it came to its end.

        Raises:
            Violation: the first.
            HarborError: a fault could not be made.
        """
        settings = self._settings
        wanted = wanted_watchers(settings.clients, self._root, load.keys)
        for each in wanted:
            made = make_watcher(each, self._url, self._token, self._truth, self._ages, settings.seed)
            if each.prefix:
                made.on_told = self._told
            self._watchers.append(made)
        faults = Faults(self._watchers)
        try:
            async with asyncio.TaskGroup() as watching:
                for watcher in self._watchers:
                    watching.create_task(watcher.run())
                try:
                    return await self._under_load(load, faults)
                finally:
                    for watcher in self._watchers:
                        watcher.stop()
        except BaseExceptionGroup as raised:
            raise (first_violation(raised) or _first(raised)) from raised

    async def _under_load(self, load: Load, faults: Faults) -> bool:
        self._began = time.monotonic()
        try:
            async with asyncio.TaskGroup() as working:
                for n in range(self._settings.writers):
                    working.create_task(load.writer(n))
                for n in range(READERS):
                    working.create_task(load.reader(n))
                working.create_task(load.lister())
                if self._settings.mutation:
                    working.create_task(load.mutator())
                working.create_task(self._make_faults(load, faults))
                working.create_task(self._look(load))
                working.create_task(self._end(load))
        finally:
            faults.end()
        if self.stop.is_set():
            return False
        await self._come_to_rest(load)
        return True

    async def _end(self, load: Load) -> None:
        """End the load when it is time."""
        try:
            async with asyncio.timeout(self._settings.seconds):
                await self.stop.wait()
        except TimeoutError:
            pass
        load.is_stopped = True
        if self.stop.is_set():
            load.give_up_s = 0.0

    async def _make_faults(self, load: Load, faults: Faults) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for fault in fault_plan(self._settings):
            while loop.time() < began + fault.at_s and not load.is_stopped:  # noqa: ASYNC110 - two things end it
                await asyncio.sleep(LOOK_S)
            if load.is_stopped:
                return
            if fault.kind == "kill" and fault.actors == "shards" and self._described and keeps_nothing(self._described):
                continue
            await self._make(fault, load, faults)

    async def _make(self, fault: Fault, load: Load, faults: Faults) -> None:
        described = await self._fresh(load) if fault.kind in ON_PROCESSES else None
        self._fault = f"{fault.kind} {fault.actors}".rstrip()
        self._begun.append((time.monotonic(), self._fault))
        done = await faults.make(fault, described)
        if done is None:
            self._note(f"{self._fault}: not made, since none of them ran on this host at that time")
            return
        self._made[self._fault] = self._made.get(self._fault, 0) + 1

    async def _fresh(self, load: Load) -> dict[str, Any] | None:
        """Return what runs now; as it was before, where the supervisor does not answer."""
        try:
            self._described = await self._describe(load)
        except HarborError:
            return self._described
        return self._described

    @staticmethod
    async def _describe(load: Load) -> dict[str, Any]:
        answer = await load.once("GET", "/v1/cluster")
        if answer.status != 200:
            raise refusal(answer, "kill and pause need to see the cluster")
        described: dict[str, Any] = answer.body
        return described

    def _told(self, seconds: float) -> None:
        """A client that listens to everything was told something after so long: put it down to the first fault in that time, else to the last."""
        since = time.monotonic() - seconds
        fault = next((fault for at, fault in self._begun if at >= since), self._fault)
        self._silences.add(fault, seconds)

    async def _look(self, load: Load) -> None:
        """Keep to the user's limit of silence while there is load.

        Raises:
            Violation: `SILENCE`.
        """
        limit = self._settings.max_silence_s
        while not load.is_stopped:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            for watcher in self._watchers:
                since = self._began if watcher.told_at is None else watcher.told_at
                if watcher.wanted.prefix and not watcher.is_deaf and now - since > limit:
                    raise self._seen_by(
                        watcher,
                        Violation(Rule.SILENCE, text(self._root), f"{limit:g} s at most", f"{now - since:.1f} s"),
                    )

    @staticmethod
    def _seen_by(watcher: Watcher, violation: Violation) -> Violation:
        violation.client, violation.recent = watcher.wanted.name, list(watcher.course.recent)
        return violation

    async def _come_to_rest(self, load: Load) -> None:
        """Compare what is stored with what was acknowledged, and what everybody sees with what is stored.

        Raises:
            Violation: they differ.
        """
        stored = await load.stored()
        deadline = time.monotonic() + max(self._settings.max_silence_s, REST_S)
        for watcher in self._watchers:
            while True:
                try:
                    for key, seen in stored.items():
                        if watcher.wanted.prefix or key in map(text, watcher.wanted.roots):
                            watcher.course.rest(key, seen)
                    break
                except Violation as violation:
                    if time.monotonic() > deadline:
                        raise self._seen_by(watcher, violation) from None
                await asyncio.sleep(LOOK_S)
        limit = self._settings.max_age_p99_ms
        age_ms = self._ages.percentile(0.99)
        if limit is not None and age_ms > limit:
            raise Violation(Rule.AGE, text(self._root), f"p99 of {limit:g} ms at most", f"{age_ms:.1f} ms")

    def _note(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)

    def _trace(self, found: Violation) -> Trace:
        return Trace(
            found.rule.name.lower(),
            found.rule.value,
            found.key,
            found.expected,
            found.got,
            found.client,
            found.recent,
            self._fault,
            round(time.monotonic() - self._began, 2),
            self._settings.seed,
        )

    def _report(self, load: Load, violation: Trace | None, *, is_whole: bool) -> Report:
        courses = [watcher.course for watcher in self._watchers]
        counts = {
            **dict(sorted(load.counts.items())),
            "deliveries": sum(each.deliveries for each in courses),
            "values compared": self._truth.compared,
            "connections": sum(each.connections for each in self._watchers),
            "resumed with a token": sum(each.resumes for each in self._watchers),
            "resets": sum(each.resets for each in courses),
        }
        return Report(
            round(time.monotonic() - self._began, 2),
            self._settings.seed,
            is_whole,
            violation,
            counts,
            self._made,
            self._ages.told(),
            self._silences.told(),
            self._notes,
        )


def _first(raised: BaseException) -> BaseException:
    while isinstance(raised, BaseExceptionGroup):
        raised = raised.exceptions[0]
    return raised
