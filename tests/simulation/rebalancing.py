"""A ledger whose shards and coordinators come and go while events come, and everybody may die, the supervisor too.

python -m tests.simulation.rebalancing SEED        replays one and prints its trace
python -m tests.simulation.rebalancing FROM TO     runs a range and prints the failing seeds

With `kills` clients may be told to start over, as always when a shard or gateway dies; without, they must notice nothing.
Every second pair of seeds has standbys; every second four take entries in and let them go a few at a time.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

from cluster.core import shard_slots
from cluster.core.slot_move import FOLLOWING, Phase
from cluster.simulation import Violation
from tests.simulation import replay
from tests.simulation.ledger import Ledger, require

SETTLE_MS = 60_000.0
"""A cut takes tens of seconds where a third of all calls is lost, and every one of a round has to come through."""


class Rebalancing(Ledger):
    """See the module."""

    struck: Sequence[Phase] = tuple(FOLLOWING)
    """Parts of a move in which somebody is killed."""

    def __init__(self, seed: int, *, kills: bool = True, replicas: int = 0) -> None:
        super().__init__(seed, replicas=replicas)
        self.kills = kills
        self.has_small_steps = seed // 4 % 2 == 1

    def run(self) -> None:
        small = {"STEP_BYTES": 150, "STEP_ROWS": 2} if self.has_small_steps else {}
        with patch.multiple(shard_slots, **small) if small else nullcontext():
            self._run()

    def _run(self) -> None:
        world, choose = self.world, self.world.random
        while not (world.upstream.joined == {*"abc"} and world.upstream.connected):
            world.run(world.now_ms + 50)
        for channel in "abc":
            self.told.say(channel, "set", "k0")
        world.run(world.now_ms + 4_000)
        for number in range(2):
            client = world.clients.enter(f"client-{number}")
            client.slow_ms = choose.choice([1.0, 20.0, 200.0])
            mode = choose.choice(["data", "patch"])
            world.clients.subscribe(client, 1, prefix=["list"], mode=mode)
            world.clients.subscribe(client, 2, prefix=["count"], mode=mode)
            world.clients.subscribe(client, 3, key=["last", f"{choose.choice('abc')}k0"], mode=mode)
        world.run(world.now_ms + 500)
        end = world.now_ms + 5_000.0
        self._load(end)
        if self.kills:
            self._faults(end)
            self._scale(end)
        self._rebalance(end)
        if self.kills and choose.random() < 0.35:
            self._restart(end)
        self._visits(end)
        world.run(end)
        if not world.upstream.connected:
            world.upstream.connect()
        until = world.now_ms + SETTLE_MS
        while not (world.moves.is_done and world.scaling.is_done) and world.now_ms < until:
            world.run(world.now_ms + 500)
        require(world.moves.is_done, f"slots still move: {world.moves.phase}")
        self._settle()
        world.run(world.now_ms + 12_000)
        self.check()

    def _settle(self) -> None:
        """Let end what else there is."""

    def _rebalance(self, end: float) -> None:
        world, choose = self.world, self.world.random

        def once() -> None:
            shards = choose.randint(1, 4)
            world.rescale(shards, choose.randint(1, shards))

        for _ in range(choose.randint(1, 4)):
            world.at(choose.uniform(100.0, end - world.now_ms - 300), once)

    def _visits(self, end: float) -> None:
        """Clients go and come back with their tokens."""
        world, choose = self.world, self.world.random
        for _ in range(choose.randint(0, 6)):
            client = world.clients.by_name[f"client-{choose.randrange(2)}"]
            world.at(choose.uniform(100.0, end - world.now_ms), lambda client=client: world.clients.disconnect(client))

    def _faults(self, end: float) -> None:
        world, choose = self.world, self.world.random

        def one() -> None:
            kind = choose.random()
            if kind < 0.15:
                world.kill_supervisor()
            elif kind < 0.3:
                if world.upstream.connected:
                    world.upstream.drop(choose.uniform(50, 600))
            elif names := sorted(world.machines):  # else everybody has ended
                world.kill(choose.choice(names))

        for _ in range(choose.randint(0, 4)):
            world.at(choose.uniform(100.0, end - world.now_ms - 300), one)
        for _ in range(choose.randint(0, 2)):
            self._strike(choose.choice(self.struck), choose.choice(["supervisor", "shard", "ingestor", "gateway"]), end)

    def _restart(self, end: float) -> None:
        """Let everybody end, and begin anew with numbers of their own, to which slots move at once."""
        world, choose = self.world, self.world.random
        shards, for_ms = choose.randint(1, 4), choose.uniform(100.0, 1_500.0)
        coordinators, in_order = choose.randint(1, shards), choose.random() < 0.5
        world.at(
            choose.uniform(500.0, end - world.now_ms - 300),
            lambda: world.restart(shards, coordinators, for_ms, in_order=in_order),
        )

    def _strike(self, phase: Phase, kind: str, end: float) -> None:
        """Kill somebody in a part of a move."""
        world = self.world

        def look() -> None:
            if world.now_ms > end:
                return
            if world.moves.phase is not phase:
                world.at(2.0, look)
            elif kind == "supervisor":
                world.kill_supervisor()
            else:
                victims = sorted(name for name in world.machines if name.startswith(kind))
                if victims:
                    world.note(f"strike at {phase.value}")
                    world.kill(world.random.choice(victims))

        look()

    def check(self) -> None:
        world = self.world
        placed: dict[str, list[str]] = {}
        for shard in range(world.slots.shards):
            process = world.primary(shard)
            if process is None:
                raise Violation(f"nobody leads shard-{shard}")
            for entry in process.machine.cache:
                placed.setdefault(entry.key, []).append(process.name)
                require(shard == world.slots.shard(entry.key), f"{entry.key} is at {process.name}")
        require(all(len(each) == 1 for each in placed.values()), f"some are at two shards: {placed}")
        super().check()
        # Where much is lost, the supervisor may take a primary for dead.
        has_failed_over = any(" supervisor lost shard-" in line for line in world.trace)
        for client in world.clients.by_name.values():
            for sub, view in client.views.items():
                require(view.complete, f"{client.name}/{sub}: no snapshot_end")
                require(self.kills or has_failed_over or not view.resets, f"{client.name}/{sub}: was reset")
                wanted = self._seen(client.wanted[sub])
                held = {key: data for key, (version, data) in view.entries.items() if version}
                wrong = {
                    key: (held.get(key), wanted.get(key))
                    for key in held.keys() | wanted
                    if held.get(key) != wanted.get(key)
                }
                require(not wrong, f"{client.name}/{sub}: held and true: {wrong}")
        require(all(name in world.machines for name in world.gateways), "a gateway is gone")

    def _seen(self, message: dict[str, Any]) -> dict[str, Any]:
        if "prefix" in message:
            return {
                key: value for key, value in self.told.truth.items() if key.startswith(f'["{message["prefix"][0]}"')
            }
        key = f'["last","{message["key"][1]}"]'
        return {key: self.told.truth[key]} if key in self.told.truth else {}


def make(seed: int) -> Rebalancing:
    return Rebalancing(seed, kills=seed % 2 == 1, replicas=seed // 2 % 2)


if __name__ == "__main__":
    replay.main(make)
