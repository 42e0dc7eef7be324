"""Load on a fleet while something goes wrong, and what must hold of it in the end.

Events of the ledger make lists, counters and last values; writers write with request ids, at every level of acknowledgement, and repeat
until they are answered; clients watch all of it over connections that they make again with their tokens. `cluster.verify` makes the writes
and judges them, and judges what each client is told, message by message.

In the end, when all has come to rest: the entries are what the ledger makes them, each client sees them as they are stored, at the same
version, and each acknowledged write is there once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson

from cluster.verify.contract_oracle import Seen, Truth, Violation, first_violation
from cluster.verify.figures import Ages
from cluster.verify.load import Load
from cluster.verify.plan import Settings
from cluster.verify.run import Run
from cluster.verify.watchers import Wanted, Watcher, make_watcher
from tests.e2e.ledger_upstream import KEYS, truth
from tests.e2e.test_exactly_once import RULES
from tests.soak.fleet import Fleet
from tests.soak.ledger import LedgerProcess

LOOK_S = 0.02
BACK_S = 60.0
"""Until every client receives again: seconds on a quiet machine, and a figure that is asserted would be one of whatever else runs."""
REST_S = 120.0
"""For what has piled up while nobody took it, and for any write to be answered."""
SILENCE_S = 90.0
"""Longer than any start of everything takes."""
MARK_S = 0.25
"""Events of so much later than the last that anybody has seen were sent after the fault."""
WATCHED = (
    ("list", "data", False),
    ("list", "patch", False),
    ("count", "patch", False),
    ("count", "data", True),
    ("last", "patch", False),
    ("last", "data", False),
)
"""Prefix, mode, and whether as an event stream."""


def document(ledger: str) -> dict[str, Any]:
    """Return the configuration of what a trial is made on. `ledger`: its URL."""
    return {
        "cluster": {"shards": 2, "replicas": 1, "gateways": 2},
        "sources": {
            "ledger": {"type": "sse", "url": f"{ledger}/sse", "reconnect": {"initial": "50ms", "max": "500ms"}}
        },
        "services": {"api": {"base_url": ledger}},
        "queries": [{"key": ["asked", "{k}"], "service": "api", "path": "/last/{k}", "stale_time": "0s", "retry": 1}],
        "streams": [{"source": "ledger", "on": RULES}],
    }


class Writes(Run):
    """A run without faults of its own, that goes on until it is enough."""

    def __init__(self, url: str, settings: Settings) -> None:
        super().__init__(url, None, settings)
        self.begun = asyncio.Event()
        self.enough = asyncio.Event()

    async def _end(self, load: Load) -> None:
        load.give_up_s = REST_S
        self.begun.set()
        await self.enough.wait()
        load.is_stopped = True


class Trial:
    """See the module."""

    def __init__(self, fleet: Fleet, ledger: LedgerProcess, *, events: float, writes: float, seed: int) -> None:
        """`events` and `writes`: a second."""
        self.fleet = fleet
        self._ledger = ledger
        self._events = events
        settings = Settings(
            faults=(),
            rate=writes,
            keys=100,
            acks=("replicated", "durable"),
            clients=6,
            seed=seed,
            max_silence_s=SILENCE_S,
        )
        self._writes = Writes(fleet.url, settings)
        facts, ages = Truth(), Ages()
        self._watchers: list[Watcher] = [
            make_watcher(Wanted(n, [root], True, mode, is_stream, "stay"), fleet.url, None, facts, ages, seed)
            for n, (root, mode, is_stream) in enumerate(WATCHED)
        ]

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Have load, meanwhile; then judge.

        Raises:
            AssertionError: something did not hold.
        """
        await asyncio.to_thread(self.fleet.whole)
        await asyncio.to_thread(self._ledger.go, self._events)
        try:
            async with asyncio.TaskGroup() as group:
                for watcher in self._watchers:
                    group.create_task(watcher.run())
                writes = group.create_task(self._writes.run())
                async with asyncio.timeout(BACK_S):
                    await self._writes.begun.wait()
                await self._goes_on()
                yield
                await self._goes_on()
                assert not writes.done(), writes.result().violation
                self._writes.enough.set()
                report = await writes
                assert report.violation is None, report.violation
                assert report.is_whole
                assert report.counts["acknowledged writes"] > 0
                assert report.counts.get("writes without an answer", 0) == 0, report.counts
                await self._rest(await asyncio.to_thread(self._ledger.stand))
                for watcher in self._watchers:
                    watcher.stop()
        except BaseExceptionGroup as raised:
            violation = first_violation(raised)
            if violation is None:
                raise
            shown = "\n".join([f"{violation.client}: {violation}", *violation.recent])
            raise AssertionError(shown) from raised

    @property
    def resets(self) -> int:
        """How often clients were told to begin anew."""
        return sum(watcher.course.resets for watcher in self._watchers)

    @staticmethod
    async def rounds(seconds: float) -> AsyncIterator[None]:
        """Go on for so long, once at least."""
        until = time.monotonic() + seconds
        yield
        while time.monotonic() < until:
            yield

    async def fault(self, make: Callable[[dict[str, Any]], object]) -> list[float]:
        """Make a fault once all is whole, and wait until every client has news of every entry. Returns after how many seconds each had.

        `make` is given the description of the cluster, and may take its time on a thread of its own.
        """
        described = await asyncio.to_thread(self.fleet.whole)
        mark = self._mark()
        began = time.monotonic()
        await asyncio.to_thread(make, described)
        return await self._heard_of(mark, began)

    async def _goes_on(self) -> None:
        await self._heard_of(self._mark(), time.monotonic())

    def _mark(self) -> float:
        newest = max((_number(seen.data) for seen in self._seen()), default=0)
        return newest + self._events * MARK_S

    def _seen(self) -> list[Seen]:
        return [each for watcher in self._watchers for each in watcher.course.entries.values()]

    async def _heard_of(self, mark: float, began: float) -> list[float]:
        """Wait until each client has heard of a later event than `mark` of every entry. Returns after how many seconds each had."""
        took: dict[int, float] = {}
        async with asyncio.timeout(BACK_S):
            while len(took) < len(self._watchers):
                await asyncio.sleep(LOOK_S)
                for n, watcher in enumerate(self._watchers):
                    entries = watcher.course.entries
                    if n not in took and len(entries) == KEYS:
                        if all(_number(seen.data) > mark for seen in entries.values()):
                            took[n] = time.monotonic() - began
        return list(took.values())

    async def _rest(self, last: int) -> None:
        """Compare what is stored with what the ledger says, and what each client sees with what is stored."""
        wanted = truth(last)
        stored: dict[str, Seen] = {}
        try:
            async with asyncio.timeout(REST_S), httpx.AsyncClient(base_url=self.fleet.url, timeout=REST_S) as http:
                while wrong := [key for key in wanted if key not in stored or stored[key].data != wanted[key]]:
                    for key in wrong:
                        answer = (await http.get("/v1/entries", params={"key": key})).json()
                        stored[key] = Seen(answer["version"], answer["data"])
        except TimeoutError:
            told = [f"{key}: {stored.get(key)} and not {wanted[key]}" for key in wrong[:3]]
            raise AssertionError(f"{len(wrong)} of {len(wanted)} entries differ from the ledger: {told}") from None
        for watcher in self._watchers:
            await self._sees(watcher, stored)

    async def _sees(self, watcher: Watcher, stored: dict[str, Seen]) -> None:
        root = watcher.wanted.root[0]
        deadline = time.monotonic() + REST_S
        while True:
            try:
                for key, seen in stored.items():
                    if orjson.loads(key)[0] == root:
                        watcher.course.rest(key, seen)
            except Violation:
                if time.monotonic() > deadline:
                    raise
            else:
                return
            await asyncio.sleep(LOOK_S)


def _number(data: Any) -> int:
    """Return about which event an entry tells of: within `2 * KEYS`."""
    match data:
        case None:
            return 0
        case [*_, newest]:
            return int(newest)
        case {"n": count}:
            return int(count) * 2 * KEYS
        case _:
            return int(data)
