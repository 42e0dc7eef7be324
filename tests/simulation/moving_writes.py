"""Clients write and mutate while slots move, and everybody may die: each is answered in time, nothing acknowledged is lost, all is done once.

python -m tests.simulation.moving_writes SEED        replays one and prints its trace
python -m tests.simulation.moving_writes FROM TO     runs a range and prints the failing seeds

Nobody asks again but where its gateway has died, so what a gateway forgets of what it was asked is seen.
"""

from typing import Any

from cluster.core.owner import owner
from cluster.core.slot_move import FOLLOWING, Phase
from cluster.simulation import Oracle, Writer
from tests.simulation import replay, votes
from tests.simulation.rebalancing import Rebalancing

KEYS = 6
WITHIN_MS = 20_000.0
"""A third of what a gateway waits for an answer itself; cuts that are given up, and lives that begin anew, come before it."""


class MovingWrites(Rebalancing):
    """See the module."""

    declared = votes.DECLARED
    struck = (*FOLLOWING, Phase.RELEASE)

    def __init__(self, seed: int, *, kills: bool = True, replicas: int = 0) -> None:
        super().__init__(seed, kills=kills, replicas=replicas)
        self.oracle = Oracle(lambda _: 0)  # keys move: what a shard loses, any may have been about
        self.world.on_loss = lambda shard, levels, is_tainted: self.oracle.lost(0, ("memory",))
        self.mutations: dict[str, tuple[str, bool]] = {}
        self.writers = [
            Writer(
                f"writer-{n}",
                self.world.clients,
                self.world.timeline,
                self.oracle,
                levels=("memory", "durable", ""),
                keys=KEYS,
                mutations=self.mutations,
                within_ms=WITHIN_MS,
            )
            for n in range(6)
        ]

    def _faults(self, end: float) -> None:
        super()._faults(end)
        self._strike_at_the_release(end)

    def _strike_at_the_release(self, end: float) -> None:
        """Kill a shard to which something is on its way that is another's by now, as the gateway knows already."""
        world = self.world

        def look() -> None:
            if world.now_ms > end:
                return
            for name in world.gateways:
                machine = world.machines.get(name)
                for link in [] if machine is None else machine._shards:
                    asked = [] if link.out.in_flight is None else link.out.in_flight.items
                    process = world.primary(link.index)
                    if process and any(owner(each, machine.slots) not in (None, link.index) for each in asked):
                        world.note("strike at what waits")
                        world.kill(process.name)
                        return
            world.at(1.0, look)

        look()

    def _rebalance(self, end: float) -> None:
        super()._rebalance(end)
        for writer in self.writers:
            writer.pace_ms = 5.0
            writer.begin(end)

    def _settle(self) -> None:
        world = self.world
        while not all(writer.is_done for writer in self.writers):
            world.run(world.now_ms + 500)

    def check(self) -> None:
        super().check()
        led = [self.world.primary(shard) for shard in range(self.world.slots.shards)]
        held: dict[str, tuple[int, Any]] = {
            entry.key: (entry.version, entry.visible.object())
            for process in led
            for entry in process.machine.cache  # type: ignore[union-attr]
            if entry.visible is not None
        }
        self.oracle.judge(held.get)
        queues = [process.machine.mutations.queue for process in led]  # type: ignore[union-attr]
        votes.check(queues, self.mutations, self.world.upstream.carried_out, held, KEYS)


def make(seed: int) -> MovingWrites:
    return MovingWrites(seed, kills=seed % 4 != 0, replicas=seed // 2 % 2)


if __name__ == "__main__":
    replay.main(make)
