"""The supervisor's observing: counters of all actors, read every two seconds while somebody watches.

Nobody watches, nothing is read: what is said then is what the checks that the supervisor makes anyway have found. Actors are read one
after the other, spread over that time: all at once their answers would delay a window's work by tens of milliseconds.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import orjson

from cluster.actors.specification import Specification
from cluster.clock import Clock
from cluster.core.chronicle import Chronicle
from cluster.core.dead_letters import DeadLetter
from cluster.core.overview import Overview
from cluster.observability.logs import Log
from cluster.observability.metrics import BUCKETS, decode

ROUND_S = 2.0
"""In which every actor is read once. What a console takes of the cluster goes with it (docs/benchmarks.md)."""
MEASURE_S = 1.0
"""For one actor's answer. Rounds in which many do not answer are long; points more than ten seconds apart would be no line."""
LASTS_S = 5.0
"""For how long a question keeps rounds going; gateways ask as often as there is a round."""
LETTERS_S = 10.0
"""Between two questions for dead letters, which go to every ingestor by way of Ray; how many there are is known sooner."""
LETTERS = 50
RULES = 500
"""Shown of each; more are for the configuration's readers."""


class Observation:
    """See the module. `measure` reads an actor (None: it does not answer); `describe` and `offline` say what is known of all by then."""

    def __init__(
        self,
        clock: Clock,
        log: Log,
        *,
        spec: Callable[[], Specification],
        actors: Callable[[], Sequence[str]],
        measure: Callable[[str], Awaitable[bytes | None]],
        describe: Callable[[], dict[str, Any]],
        offline: Callable[[], Sequence[str]],
        dead_letters: Callable[[], Awaitable[list[DeadLetter]]],
    ) -> None:
        self._clock = clock
        self._log = log
        self._spec = spec
        self._actors = actors
        self._measure = measure
        self._describe = describe
        self._offline = offline
        self._dead_letters = dead_letters
        self._overview = Overview(BUCKETS)
        self._chronicle = Chronicle()
        self._letters: list[DeadLetter] = []
        self._letters_due_s = 0.0
        self._until_s = 0.0
        self._rounds: asyncio.Task[None] | None = None
        self._has_read = asyncio.Event()
        """Every actor has been read once, or has not answered, so that there is something to say."""

    async def observed(self, names: Sequence[str]) -> bytes:
        """Return what these of the reserved entries say (JSON, by name)."""
        loop = asyncio.get_running_loop()
        self._until_s = loop.time() + LASTS_S
        if self._rounds is None or self._rounds.done():
            self._has_read.clear()
            self._rounds = loop.create_task(self._observe())
        await self._has_read.wait()
        described = self._describe()
        said: dict[str, Any] = {}
        if "overview" in names:
            said["overview"] = self._overview.overview(described)
        if "notices" in names:
            said["notices"] = {"notices": self._chronicle.newest()}
        if "streams" in names:
            if loop.time() >= self._letters_due_s:
                self._letters = await self._dead_letters()
                self._letters_due_s = loop.time() + LETTERS_S
            letters = self._letters
            said["streams"] = {
                "sources": self._overview.sources(described),
                "totals": self._overview.totals(),
                "rules": rules_of(self._spec()),
                "dead_letters": msgspec.to_builtins(letters[:LETTERS]),
                "dead_letters_kept": len(letters),
            }
        return orjson.dumps(said)

    def look(self) -> None:
        """Every actor was asked anew: note what is different."""
        self._chronicle.look(self._describe(), self._offline(), self._clock.now_ms())

    async def _observe(self) -> None:
        try:
            await self._go_round()
        except Exception as error:  # noqa: BLE001 - whatever it is: with the next question another begins
            self._log.error("observation_failed", error=repr(error), exc_info=error)
        finally:
            self._has_read.set()  # whoever waits is told what is known, also where this has failed

    async def _go_round(self) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < self._until_s:
            actors = list(self._actors())
            for actor in actors:
                if self._has_read.is_set():
                    await asyncio.sleep(ROUND_S / len(actors))
                encoded = None
                with suppress(TimeoutError):
                    async with asyncio.timeout(MEASURE_S):
                        encoded = await self._measure(actor)
                if encoded is not None:
                    self._overview.take(actor, decode(encoded), self._clock.now_ms())
            self._overview.note(actors, self._clock.now_ms())
            self.look()
            self._has_read.set()
            if not actors:
                await asyncio.sleep(ROUND_S)

    def stop(self) -> None:
        """Stop observing."""
        if self._rounds is not None:
            self._rounds.cancel()


def rules_of(spec: Specification) -> list[dict[str, Any]]:
    """Return a row for each event of each stream, as configured."""
    rows = [
        {"source": stream.source, "channel": stream.channel, "event": event, "rules": rules}
        for stream in spec.config.redacted().streams
        for event, rules in stream.on.items()
    ]
    return rows[:RULES]
