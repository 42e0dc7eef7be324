"""A seeded schedule in which nothing can be fetched: lists and counters are what the events made them, each counted once.

python -m tests.simulation.ledger SEED        replays one and prints its trace
python -m tests.simulation.ledger FROM TO     runs a range and prints the failing seeds
"""

import random
from collections.abc import Mapping
from typing import Any

from cluster.core.feed import Repeats
from cluster.simulation import Faults, Violation, World
from cluster.simulation.upstream import Upstream
from cluster.storage import MemoryStore
from tests.simulation import replay

KEYS = 6
HEADS = ("list", "count", "last")
"""Of the keys that events are about."""
LOAD_MS = 3_000.0
QUIET_MS = 12_000.0


def document(mode: str, shards: int, coordinators: int, ingestors: int) -> dict[str, Any]:
    return {
        "cluster": {"shards": shards, "coordinators": coordinators, "ingestors": ingestors},
        "batching": {"mode": mode},
        "sources": {"events": {"type": "websocket", "url": "ws://upstream"}},
        "streams": streams(),
    }


def streams() -> list[dict[str, Any]]:
    """Three channels whose events count: lists, counters and last values."""
    return [
        {
            "source": "events",
            "channel": channel,
            "join": "always",
            **more,
            "on": {
                "append": {
                    "append": {
                        "key": ["list", "{data.k}"],
                        "item": "{data.n}",
                        "when_missing": "create",
                        "default": [],
                    }
                },
                "bump": {
                    "increment": {
                        "key": ["count", "{data.k}"],
                        "at": "/n",
                        "when_missing": "create",
                        "default": {"n": 0},
                    }
                },
                "set": {"set": {"key": ["last", "{data.k}"], "value": "{data.n}"}},
            },
        }
        for channel, more in [("a", {}), ("b", {}), ("c", {"batching": {"mode": "leading"}})]
    ]


class Told:
    """An upstream that says things, and what has to be true of entries when it has."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._said = 0
        self.truth: dict[str, Any] = {}

    def say(self, channel: str, event: str, k: str) -> None:
        """Send an event, which is the next number's."""
        self._said += 1
        k, n = f"{channel}{k}", self._said
        match event:
            case "append":
                self.truth.setdefault(f'["list","{k}"]', []).append(n)
            case "bump":
                self.truth.setdefault(f'["count","{k}"]', {"n": 0})["n"] += 1
            case _:
                self.truth[f'["last","{k}"]'] = n
        self._upstream.emit(channel, event, {"k": k, "n": n}, lambda _: None)


class Ledger:
    """A world whose upstream can repeat, and faults of every kind."""

    declared: Mapping[str, Any] = {}
    """Beside what events are about."""

    def __init__(self, seed: int, *, replicas: int = 0) -> None:
        pick = random.Random(seed)
        faults = Faults(
            delay_ms=pick.choice([1.0, 4.0, 12.0]),
            lose=pick.choice([0.0, 0.02, 0.1]),
            repeat=pick.choice([0.0, 0.1, 0.3]),
        )
        shards = pick.choice([1, 2, 3])
        repeats = pick.choice([Repeats.SOURCE, Repeats.CHANNEL])
        self.world = World(
            seed,
            {
                **document(
                    pick.choice(["window", "leading", "debounce"]),
                    shards,
                    pick.randint(1, shards),
                    pick.choice([1, 1, 2, 4]),
                ),
                **self.declared,
            },
            faults,
            repeats=repeats,
            asks=repeats is Repeats.SOURCE and pick.random() < 0.4,
            store=MemoryStore,
            replicas=replicas,
            can_leave=pick.random() < 0.7,
        )
        self.told = Told(self.world.upstream)

    def run(self) -> None:
        world = self.world
        while not (world.upstream.joined == {*"abc"} and world.upstream.connected):
            world.run(world.now_ms + 50)
        for channel in "abc":  # what a sequence begins with is what it can go on from
            self.told.say(channel, "set", "k0")
        world.run(world.now_ms + 4_000)
        end = world.now_ms + LOAD_MS
        self._load(end)
        self._faults(end)
        self._scale(end)
        world.run(end)
        world.go_on()
        world.network.heal()
        if not world.upstream.connected:
            world.upstream.connect()
        world.run(end + QUIET_MS)
        self.check()

    def _scale(self, end: float) -> None:
        """Have other numbers of ingestors, while everything else goes on."""
        world, choose = self.world, self.world.random
        for _ in range(choose.choice([0, 1, 3])):
            at = choose.uniform(100.0, end - world.now_ms - 300)
            world.at(at, lambda: world.scale(choose.choice([1, 2, 3, 4])))

    def _load(self, end: float) -> None:
        choose = self.world.random

        def one() -> None:
            if self.world.now_ms < end:
                for _ in range(choose.choice([1, 1, 5])):
                    event = choose.choice(["append", "append", "bump", "set"])
                    self.told.say(choose.choice("abc"), event, f"k{choose.randrange(KEYS)}")
                self.world.at(choose.expovariate(1 / 20), one)

        one()

    def _faults(self, end: float) -> None:
        world, choose = self.world, self.world.random
        names = [*world.machines]
        for _ in range(choose.randint(1, 7)):
            at = choose.uniform(100.0, end - world.now_ms - 300)
            name = choose.choice([each for each in names if not each.startswith("gateway")])
            match choose.choice(["drop", "kill", "kill", "kill", "stop", "cut", "jump"]):
                case "drop":
                    world.at(
                        at, lambda: world.upstream.drop(choose.uniform(50, 600)) if world.upstream.connected else None
                    )
                case "stop":
                    world.at(at, lambda name=name: world.stop(name, choose.uniform(50, 4_000)))
                case "cut":
                    others = choose.sample(names, choose.randint(1, len(names)))
                    both, ms = choose.random() < 0.5, choose.uniform(50, 3_000)
                    world.at(at, lambda n=name, o=others, b=both, ms=ms: world.cut([n], o, ms, both=b))
                case "jump":
                    by_ms = choose.choice([-60_000.0, -2_000.0, 2_000.0, 60_000.0])
                    world.at(at, lambda name=name, by_ms=by_ms: world.jump(name, by_ms))
                case _:
                    world.at(at, lambda name=name: world.kill(name))

    def check(self) -> None:
        held: dict[str, Any] = {}
        for name, machine in self.world.machines.items():
            if name.startswith("shard-") and self.world.processes[name].holder.state.shard is not None:
                held.update(
                    {
                        entry.key: entry.value.object()
                        for entry in machine.cache
                        if entry.value is not None and entry.parsed[0] in HEADS
                    }
                )
        wrong = {
            key: (held.get(key), self.told.truth.get(key))
            for key in held.keys() | self.told.truth.keys()
            if held.get(key) != self.told.truth.get(key)
        }
        require(not wrong, f"held and true: {wrong}")


def require(is_so: bool, otherwise: str) -> None:
    """Have a promise kept.

    Raises:
        Violation: it is not.
    """
    if not is_so:
        raise Violation(otherwise)


if __name__ == "__main__":
    replay.main(Ledger)
