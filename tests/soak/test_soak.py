"""Everything that runs is killed, stopped or burnt on a Ray of several nodes, under load: nothing is lost, nothing comes twice.

In `make soak` each fault goes on for a minute, and the figures are printed; in `make test` there is one of each, on one fleet.
"""

import asyncio
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import psutil
import pytest

from tests.lasting import SOAKS, lasting
from tests.live import eventually
from tests.soak.fleet import Fleet
from tests.soak.ledger import LedgerProcess
from tests.soak.trial import Trial, document

pytestmark = [pytest.mark.cluster, pytest.mark.soak]
SECONDS = lasting(0.0, 60.0)
"""For each trial: faults are made until these are over, one at least."""
STOPPED_S = lasting(5.0, 10.0)
EVENTS = 2_000.0
WRITES = lasting(100.0, 500.0)
BUSY_EVENTS, BUSY_WRITES = lasting(5_000.0, 20_000.0), lasting(200.0, 500.0)
ACTORS = ["primary", "standby", "coordinator", "ingestor", "gateway", "supervisor"]
Figures = dict[str, list[float]]


@pytest.fixture(scope="module")
def ledger() -> Iterator[LedgerProcess]:
    process = LedgerProcess()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def fleet(ledger: LedgerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    made = Fleet(document(ledger.url), tmp_path_factory.mktemp("stores"))
    try:
        yield made.start()
    finally:
        made.stop()


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Seconds until each client received again, by fault."""
    found: Figures = defaultdict(list)
    yield found
    if SOAKS or request.config.get_verbosity() > 0:
        reporter = request.config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None
        for fault, seconds in found.items():
            told = f"p50 {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s, {len(seconds)} times a client"
            reporter.write_line(f"\n{fault}: until a client receives again: {told}")


def trial(fleet: Fleet, ledger: LedgerProcess, seed: int) -> Trial:
    return Trial(fleet, ledger, events=EVENTS, writes=WRITES, seed=seed)


@pytest.mark.parametrize("kinds", lasting([ACTORS], [[kind] for kind in ACTORS]), ids="-".join)
async def test_an_actor_is_killed(fleet: Fleet, ledger: LedgerProcess, figures: Figures, kinds: list[str]) -> None:
    made = trial(fleet, ledger, len(kinds[0]))
    async with made.run():
        async for _ in made.rounds(SECONDS):
            for kind in kinds:
                figures[f"kill {kind}"] += await made.fault(_killed(fleet, kind))
    assert made.resets == 0


async def test_a_shard_is_stopped_and_goes_on(fleet: Fleet, ledger: LedgerProcess, figures: Figures) -> None:
    made = trial(fleet, ledger, 21)
    loop = asyncio.get_running_loop()
    async with made.run():
        async for _ in made.rounds(SECONDS):
            old: list[psutil.Process] = []

            def stop(found: dict[str, Any], old: list[psutil.Process] = old) -> None:
                old.append(fleet.process(found, "primary"))
                old[0].suspend()

            until = loop.time() + STOPPED_S
            try:
                figures["stop primary"] += await made.fault(stop)
                await asyncio.sleep(until - loop.time())  # as long as it is to be away
            finally:
                old[0].resume()
            await asyncio.to_thread(eventually, partial(_has_ended, old[0]), "it hears that another leads")
    assert made.resets == 0


def _killed(fleet: Fleet, kind: str) -> Callable[[dict[str, Any]], None]:
    def kill(found: dict[str, Any]) -> None:
        with suppress(psutil.NoSuchProcess):  # it has just ended by itself
            fleet.process(found, kind).kill()

    return kill


def _has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def _lost(fleet: Fleet, made: Trial, lose: Callable[[str, dict[str, Any]], None]) -> list[float]:
    """Lose the node of a primary, and have another for it. Returns as `Trial.fault`."""
    lost: list[str] = []

    def fault(found: dict[str, Any]) -> None:
        lost.append(found["shards"][0]["node"])
        lose(lost[0], found)

    figures = await made.fault(fault)
    await asyncio.to_thread(fleet.replace, lost[0])
    return figures


async def test_a_raylet_is_killed(fleet: Fleet, ledger: LedgerProcess, figures: Figures) -> None:
    made = trial(fleet, ledger, 22)
    async with made.run():
        async for _ in made.rounds(SECONDS):
            figures["kill raylet"] += await _lost(fleet, made, lambda node, _: fleet.kill_raylet(node))
        figures["kill raylet of the head"] += await made.fault(lambda _: fleet.kill_raylet())
    assert made.resets == 0


async def test_a_node_burns_with_its_disk(fleet: Fleet, ledger: LedgerProcess, figures: Figures) -> None:
    made = trial(fleet, ledger, 23)
    async with made.run():
        async for _ in made.rounds(SECONDS):
            figures["kill node"] += await _lost(fleet, made, fleet.burn)
    assert made.resets == 0


async def test_a_standby_leads_while_there_is_much_to_do(fleet: Fleet, ledger: LedgerProcess, figures: Figures) -> None:
    made = Trial(fleet, ledger, events=BUSY_EVENTS, writes=BUSY_WRITES, seed=24)
    async with made.run():
        async for _ in made.rounds(SECONDS):
            figures[f"kill primary, at {BUSY_EVENTS:,.0f} events/s and {BUSY_WRITES:.0f} writes/s"] += await made.fault(
                _killed(fleet, "primary")
            )
    assert made.resets == 0


async def test_everything_starts_again_while_the_upstream_is_away(
    fleet: Fleet, ledger: LedgerProcess, figures: Figures
) -> None:
    made = trial(fleet, ledger, 25)

    def ask() -> dict[str, Any]:
        answer = httpx.get(f"{fleet.url}/v1/entries", params={"key": '["asked","k0"]'}, timeout=60)
        entry: dict[str, Any] = answer.raise_for_status().json()
        return entry

    def restart(_: dict[str, Any]) -> None:
        before = ask()
        ledger.kill()
        fleet.kill_everything()
        fleet.start()
        after = ask()
        assert (after["data"], after["version"]) == (before["data"], before["version"])
        assert (after["is_stale"], after["is_offline"]) == (True, True)
        ledger.start()
        ledger.go(EVENTS)

    async with made.run():
        async for _ in made.rounds(SECONDS):
            figures["kill everything, until Ray and the upstream are back too"] += await made.fault(restart)
    assert made.resets == 0
