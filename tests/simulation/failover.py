"""A seeded schedule of failovers: shards with or without standbys, gateways, clients that write and watch, mutations, streams, and all that can go wrong.

python -m tests.simulation.failover SEED        replays one and prints its trace
python -m tests.simulation.failover FROM TO     runs a range and prints the failing seeds
"""

import random
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import orjson

from cluster.core import replication
from cluster.core.feed import Repeats
from cluster.core.query_key import CanonicalKey
from cluster.simulation import Faults, Oracle, Violation, World, Writer
from cluster.simulation.process import Machine
from cluster.storage import MemoryStore, memory_store
from tests.simulation import replay, votes
from tests.simulation.ledger import Told, streams
from tests.simulation.votes import DECLARED

KEYS = 3
LOAD_MS = 3_500.0
SETTLE_MS = 60_000.0
"""Simulated; beyond it something is stuck."""
STEP_MS = 250.0
SMALL_FROM = 100
"""Seeds from here on fill standbys by many small messages."""


def document(mode: str, shards: int, coordinators: int, ingestors: int, gateways: int) -> dict[str, Any]:
    return {
        "cluster": {"shards": shards, "coordinators": coordinators, "ingestors": ingestors, "gateways": gateways},
        "batching": {"mode": mode},
        "sources": {"events": {"type": "websocket", "url": "ws://upstream"}},
        "streams": streams(),
        **DECLARED,
    }


class UnreadyError(Exception):
    """It never came to what was to be tried: no promise was broken yet."""


class Failover:
    """A world, its load and its faults, all from one seed."""

    load_ms = LOAD_MS

    def __init__(self, seed: int) -> None:
        self.seed = seed
        pick = random.Random(seed)
        faults = Faults(
            delay_ms=pick.choice([0.5, 2.0, 6.0]),
            lose=pick.choice([0.0, 0.01, 0.05]),
            repeat=pick.choice([0.0, 0.05, 0.2]),
            restart_ms=pick.choice([200.0, 600.0, 1_500.0]),
        )
        shards = pick.choice([1, 1, 2])
        self.replicas = pick.choice([0, 1, 1, 1])
        has_disks = pick.random() < 0.75
        repeats = pick.choice([Repeats.SOURCE, Repeats.CHANNEL])
        self.sequences = 3 if repeats is Repeats.CHANNEL else 1
        gateways, coordinators, ingestors = pick.choice([1, 2, 2]), pick.randint(1, shards), pick.choice([1, 2])
        self.machines = [Machine(f"node-{n}") for n in range(3)]
        for machine in self.machines:
            machine.rate = pick.choice([1.0, 1.0, 0.985, 1.015])
            machine.skew_ms = pick.choice([0.0, 0.0, -30_000.0, 30_000.0])
        nodes = {
            "supervisor": self.machines[2],
            **{f"shard-{n}": self.machines[n % 2] for n in range(shards)},
            **{f"shard-{n}-b": self.machines[(n + 1) % 2] for n in range(shards)},
            **{f"gateway-{n}": self.machines[(n + 1) % 3] for n in range(gateways)},
            **{f"coordinator-{n}": self.machines[(n + 2) % 3] for n in range(coordinators)},
            **{f"ingestor-{n}": self.machines[n % 3] for n in range(ingestors)},
        }
        mode = pick.choice(["window", "leading", "debounce"])
        self.world = World(
            seed,
            document(mode, shards, coordinators, ingestors, gateways),
            faults,
            repeats=repeats,
            asks=repeats is Repeats.SOURCE and pick.random() < 0.4,
            store=MemoryStore if has_disks or self.replicas else None,
            has_disks=has_disks,
            replicas=self.replicas,
            nodes=nodes,
        )
        self.shards = shards
        self.oracle = Oracle(self.shard_of_key)
        self.world.on_loss = lambda shard, levels, is_tainted: self.oracle.lost(shard, levels, is_tainted=is_tainted)
        self.world.clients.saw = self.oracle.saw
        self.told = Told(self.world.upstream)
        self.mutations: dict[str, tuple[str, bool]] = {}
        levels = ("memory", "replicated", "durable", "") if self.replicas else ("memory", "durable", "")
        self.writers = [
            Writer(
                f"writer-{n}",
                self.world.clients,
                self.world.timeline,
                self.oracle,
                levels=levels,
                keys=KEYS,
                mutations=self.mutations,
            )
            for n in range(3)
        ]

    def shard_of_key(self, key: str) -> int:
        return self.world.slots.shard(CanonicalKey(key))

    # --- load and faults -----------------------------------------------------------------------------------------

    def run(self) -> None:
        with ExitStack() as small:
            if self.seed >= SMALL_FROM:
                small.enter_context(patch.object(replication, "MESSAGE_BYTES", 1_500))
                small.enter_context(patch.object(memory_store, "SLICE_ROWS", 3))
            self._run()

    def _run(self) -> None:
        world, choose = self.world, self.world.random
        self._begin(lambda: "" if world.upstream.joined == {*"abc"} and world.upstream.connected else "joining")
        self._begin(self._unled)
        for channel in "abc":  # what a sequence begins with is what it can go on from
            self.told.say(channel, "set", "k0")
        for n in range(2):
            client = world.clients.enter(f"client-{n}")
            client.slow_ms = choose.choice([1.0, 20.0, 200.0])
            for sub, prefix in enumerate(("log", "cell", "steps", "list", "count", "last", "votes")):
                world.clients.subscribe(client, sub, prefix=[prefix], mode=choose.choice(["data", "patch"]))
        world.run(world.now_ms + 1_500)
        self._begin(self._unrepeatable)
        end = world.now_ms + self.load_ms
        for writer in self.writers:
            writer.begin(end)
        self._load(end)
        self._faults(end)
        world.run(end)
        world.note("peace")
        world.go_on()
        world.network.heal()
        world.upstream.connect()
        self._until(self._unsettled)
        world.run(world.now_ms + 2_500)
        self._until(self._unsettled)
        self.check()

    def _load(self, end: float) -> None:
        choose = self.world.random

        def one() -> None:
            if self.world.now_ms < end:
                event = choose.choice(["append", "append", "bump", "set"])
                self.told.say(choose.choice("abc"), event, f"k{choose.randrange(KEYS)}")
                self.world.at(choose.expovariate(1 / 40), one)

        one()

    def _faults(self, end: float) -> None:
        world, choose = self.world, self.world.random
        names = sorted(world.processes)
        holders = [name for name in names if name.startswith("shard")]
        for _ in range(choose.randint(1, 6)):
            at = choose.uniform(100.0, end - world.now_ms - 100)
            name = choose.choice(names + holders * 2)
            kind = choose.choice(
                [
                    "kill",
                    "kill",
                    "stop",
                    "stop",
                    "cut",
                    "cut",
                    "isolate",
                    "power",
                    "node",
                    "disks",
                    "jump",
                    "drop",
                    "leave",
                ]
            )
            world.at(at, lambda kind=kind, name=name: self._fault(kind, name, names))

    def _fault(self, kind: str, name: str, names: list[str]) -> None:
        world, choose = self.world, self.world.random
        machine = choose.choice(self.machines)
        on_machine = [each for each in names if world.node(each) is machine]
        match kind:
            case "kill":
                world.kill(name)
            case "stop":
                world.stop(name, choose.choice([30.0, 300.0, 2_500.0, 5_000.0]))
            case "cut":
                others = choose.sample([*names, "upstream"], choose.randint(1, 3))
                world.cut([name], others, choose.choice([100.0, 1_000.0, 4_000.0]), both=choose.random() < 0.5)
            case "isolate":
                others = [each for each in names if each not in on_machine]
                world.cut(on_machine, others, choose.choice([500.0, 3_000.0]), both=choose.random() < 0.6)
            case "power" if name.startswith("shard"):
                world.cut_power([name])
            case "node":
                world.cut_power(on_machine)
            case "disks" if name.startswith("shard"):
                world.cut_power([name], loses_disks=True)
            case "jump":
                world.jump(name, choose.choice([-60_000.0, -3_000.0, 3_000.0, 60_000.0]))
            case "drop":
                world.upstream.drop(choose.uniform(50, 600))
            case "leave":
                world.clients.disconnect(world.clients.by_name[f"client-{choose.randrange(2)}"])
            case _:
                world.kill(name)

    # --- coming to rest ------------------------------------------------------------------------------------------

    def _begin(self, unready: Any) -> None:
        try:
            self._until(unready)
        except Violation as error:
            raise UnreadyError(str(error)) from error

    def _until(self, unsettled: Any) -> None:
        world = self.world
        give_up = world.now_ms + SETTLE_MS
        while reason := unsettled():
            if world.now_ms > give_up:
                raise Violation(f"it does not come to rest: {reason}")
            world.run(world.now_ms + STEP_MS)

    def _unled(self) -> str:
        for shard in range(self.shards):
            process = self.world.led(shard)
            if process is None:
                return f"shard-{shard}: nobody leads"
            if self.replicas and not process.holder.state.replication.is_in_sync:
                return f"shard-{shard}: no standby in sync"
        return ""

    def _unrepeatable(self) -> str:
        """Until an event's id is stored of it, a sequence whose ingestor ends begins anew, and what it fed is invalidated."""
        led = [self.world.led(shard) for shard in range(self.shards)]
        known = {name for each in led if each is not None for name in each.machine._committed.checkpoints}
        return "" if len(known) >= self.sequences else f"ids are stored of {sorted(known)}"

    def _unsettled(self) -> str:
        world = self.world
        if reason := self._unled():
            return reason
        if not all(writer.is_done for writer in self.writers):
            return "writers wait"
        if not world.upstream.connected:
            return "the upstream is not connected"
        held = self._held()
        for shard in range(self.shards):
            queue = world.led(shard).machine.mutations.queue  # type: ignore[union-attr]
            if queue.unsettled:
                return "mutations are not settled"
        wrong = [
            f"{key}: held {held.get(key)}, in truth {value}"
            for key, value in self.told.truth.items()
            if held.get(key, (0, None))[1] != value
        ]
        if (
            wrong and not self.oracle.tainted
        ):  # with a shard its checkpoints may be lost, of channels that others feed on
            return "; ".join(wrong)
        for client in world.clients.by_name.values():
            for sub, message in client.wanted.items():
                view, prefix = client.views[sub], f'["{message["prefix"][0]}"'
                if not view.complete:
                    return f"{client.name}/{sub} is not complete"
                wanted = {key: each for key, each in held.items() if key.startswith(prefix)}
                if view.entries != wanted:
                    keys = [key for key in {*view.entries, *wanted} if view.entries.get(key) != wanted.get(key)]
                    return f"{client.name}/{sub}: {[(key, view.entries.get(key), wanted.get(key)) for key in keys]}"
        return ""

    def _held(self) -> dict[str, tuple[int, Any]]:
        """Return what shards hold, as (version, data)."""
        held: dict[str, tuple[int, Any]] = {}
        for shard in range(self.shards):
            process = self.world.led(shard)
            assert process is not None
            for entry in process.machine.cache:
                if entry.visible is not None:
                    held[entry.key] = entry.version, orjson.loads(entry.visible.json())
        return held

    def check(self) -> None:
        held = self._held()
        self.oracle.judge(held.get)
        self._check_mutations(held)

    def _check_mutations(self, held: dict[str, tuple[int, Any]]) -> None:
        """Each mutation that succeeded was carried out, and counts once; what was carried out is known."""
        if self.oracle.tainted:
            return  # homes may have forgotten
        queues = [self.world.led(shard).machine.mutations.queue for shard in range(self.shards)]  # type: ignore[union-attr]
        votes.check(queues, self.mutations, self.world.upstream.carried_out, held, KEYS)


class Removal(Failover):
    """A standby is away until it is removed, and comes back as the primary is gone: it was whole, and lacks what came since."""

    load_ms = 9_000.0
    AWAY_MS = 6_000.0

    def _faults(self, end: float) -> None:
        world, choose = self.world, self.world.random
        primary = world.led(0)
        assert primary is not None
        if self.replicas:
            world.at(100.0, lambda: world.stop(primary.holder.state.replication.standby, self.AWAY_MS))
        world.at(choose.uniform(0.75, 1.0) * self.AWAY_MS, lambda: world.kill(primary.name))


if __name__ == "__main__":
    replay.main(Failover)
