"""Seeded schedules run in a test, or replayed from the command line: with one seed it prints the trace, with two it runs the range."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from cluster.simulation import World


class Seeded(Protocol):
    """What a seed makes."""

    world: World

    def run(self) -> None:
        """Play it, and check what has come of it."""
        ...


def run(make: Callable[[int], Seeded], seed: int, directory: Path) -> None:
    """Run a seed; where it fails, leave its trace and say how to replay it."""
    made = make(seed)
    try:
        made.run()
    except Exception as error:  # noqa: BLE001 - any failure is to be replayed
        module = type(made).__module__
        trace = directory / f"{module.rpartition('.')[2]}-{seed}.txt"
        trace.write_text("\n".join(made.world.trace))
        pytest.fail(f"{type(error).__name__}: {error}\nreplay: python -m {module} {seed}\ntrace: {trace}")


def main(make: Callable[[int], Seeded]) -> None:
    if len(sys.argv) == 2:
        made = make(int(sys.argv[1]))
        try:
            made.run()
        finally:
            print("\n".join(made.world.trace))
        return
    started = time.perf_counter()
    seeds = range(int(sys.argv[1]), int(sys.argv[2]))
    for seed in seeds:
        try:
            make(seed).run()
        except Exception as error:  # noqa: BLE001 - any failure is a finding
            print(f"seed {seed}: {type(error).__name__}: {error}"[:300])
    print(f"{len(seeds)} seeds in {time.perf_counter() - started:.1f} s")
