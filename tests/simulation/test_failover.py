"""Failovers under seeded schedules; a failing seed replays with `python -m tests.simulation.failover SEED`.

The long version runs 2,000 of them on two processes; how long that takes is reported, not asserted.
"""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lasting import lasting
from tests.simulation import replay
from tests.simulation.failover import Failover

pytestmark = pytest.mark.soak
SEEDS = lasting(100, 2_000)
SEEDS_AT_ONCE = 20
PROCESSES = 2


def fault(seed: int) -> str:
    """Return what a seed finds; "": nothing."""
    try:
        Failover(seed).run()
    except Exception as error:  # noqa: BLE001 - any failure is a finding
        return f"python -m tests.simulation.failover {seed}: {type(error).__name__}: {error}"[:1_000]
    return ""


def test_no_schedule_breaks_a_promise(record_property: Callable[[str, object], None]) -> None:
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        found = [each for each in pool.imap_unordered(fault, range(SEEDS), SEEDS_AT_ONCE) if each]
    seconds = time.perf_counter() - started
    record_property("seconds", round(seconds, 1))
    print(f"{SEEDS} schedules in {seconds:.1f} s on {PROCESSES} processes")
    assert not found, "\n".join(found)


def test_the_same_seed_takes_the_same_steps() -> None:
    traces = []
    for _ in range(2):
        made = Failover(5)
        made.run()
        traces.append(made.world.trace)
    assert traces[0] == traces[1]


def test_a_failing_seed_leaves_its_trace(tmp_path: Path) -> None:
    class Failing(Failover):
        def check(self) -> None:
            raise AssertionError("no")

    with pytest.raises(pytest.fail.Exception, match="replay: python -m"):
        replay.run(Failing, 5, tmp_path)
    (trace,) = tmp_path.iterdir()
    assert "peace" in trace.read_text()


def test_faults_do_happen() -> None:
    words = {
        "kill shard",
        "kill gateway",
        "power cut",
        "its disks are gone",
        "stop ",
        "cut ",
        "<->",
        "clock of",
        "source cut",
    }
    words |= {"steps down", "lost shard", "leads as", "is whole: True"}
    seen: set[str] = set()
    for seed in range(40):
        made = Failover(seed)
        made.run()
        trace = "\n".join(line for line in made.world.trace if " <- " not in line)
        seen |= {word for word in words if word in trace}
        if seen == words:
            break
    assert seen == words
