"""All state machines together under seeded schedules; a failing seed replays with `python -m tests.simulation.schedule SEED`."""

import random
import re
from pathlib import Path

import pytest

from cluster.core.slot_move import FOLLOWING
from tests.lasting import lasting
from tests.simulation import moving_writes, mutations, rebalancing, replay
from tests.simulation.ledger import Ledger
from tests.simulation.schedule import Schedule, make

pytestmark = pytest.mark.soak
SEEDS = lasting(120, 1_000)
LEDGERS, LEDGERS_A_TEST = lasting(500, 2_000), 25
MUTATIONS, MUTATIONS_A_TEST = lasting(200, 2_000), 25
MOVES, MOVES_A_TEST = lasting(60, 2_000), 10
WRITES, WRITES_A_TEST = lasting(30, 1_000), 10


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_view_is_the_truth_after_quiescence(seed: int, tmp_path: Path) -> None:
    replay.run(make, seed, tmp_path)


def test_the_same_seed_takes_the_same_steps() -> None:
    traces = []
    for _ in range(2):
        schedule = Schedule(4)
        schedule.run()
        traces.append(schedule.world.trace)
    assert traces[0] == traces[1]


def test_faults_do_happen() -> None:
    seen = set()
    for seed in range(12):
        schedule = Schedule(seed)
        schedule.run()
        trace = "\n".join(schedule.world.trace)
        seen |= {
            word
            for word in ("kill shard", "kill gateway", "kill coordinator", "kill ingestor", "source cut", "reset")
            if word in trace
        }
    assert seen == {"kill shard", "kill gateway", "kill coordinator", "kill ingestor", "source cut", "reset"}


@pytest.mark.parametrize("first", range(0, LEDGERS, LEDGERS_A_TEST))
def test_every_event_counts_once_whatever_dies(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + LEDGERS_A_TEST):
        replay.run(Ledger, seed, tmp_path)


@pytest.mark.parametrize("first", range(0, MOVES, MOVES_A_TEST))
def test_slots_move_and_nobody_notices_whatever_dies(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + MOVES_A_TEST):
        replay.run(rebalancing.make, seed, tmp_path)


@pytest.mark.parametrize("first", range(0, WRITES, WRITES_A_TEST))
def test_writers_are_answered_in_time_while_slots_move_whatever_dies(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + WRITES_A_TEST):
        replay.run(moving_writes.make, seed, tmp_path)


@pytest.mark.parametrize(("seed", "struck"), [(29, "strike at what waits"), (33, "kill supervisor (release)")])
def test_somebody_dies_at_the_end_of_a_move_too(seed: int, struck: str) -> None:
    schedule = moving_writes.make(seed)
    schedule.run()
    assert struck in "\n".join(schedule.world.trace)


def test_somebody_dies_in_every_part_of_a_move() -> None:
    struck: set[str] = set()
    for seed in range(1, 120, 2):
        schedule = rebalancing.make(seed)
        schedule.run()
        trace = "\n".join(schedule.world.trace)
        struck.update(re.findall(r"(?:strike at |kill supervisor \()(\w+)", trace))
        if struck >= {phase.value for phase in FOLLOWING}:
            return
    raise AssertionError(f"only at {struck}")


@pytest.mark.parametrize("first", range(0, MUTATIONS, MUTATIONS_A_TEST))
def test_every_mutation_is_carried_out_once_and_views_end_as_the_truth(first: int) -> None:
    for seed in range(first, first + MUTATIONS_A_TEST):
        try:
            mutations.play(random.Random(seed))
        except AssertionError as error:
            raise AssertionError(f"python -m tests.simulation.mutations {seed}") from error


def test_faults_happen_to_mutations_too() -> None:
    ends = {statuses[-1] for seed in range(8) for statuses in mutations.play(random.Random(seed)).statuses.values()}
    passed = {
        each for seed in range(8) for told in mutations.play(random.Random(seed)).statuses.values() for each in told
    }
    assert ends == {"success", "error", "cancelled"}
    assert passed >= {"scheduled", "queued", "pending", "paused"}
