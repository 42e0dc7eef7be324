"""One seeded schedule of load and faults, and the check after it.

python -m tests.simulation.schedule SEED        replays one and prints its trace
python -m tests.simulation.schedule FROM TO     runs a range and prints the failing seeds
"""

import random
from typing import Any

from cluster.simulation import Faults, World
from cluster.simulation.clients import Client
from tests.simulation import replay
from tests.simulation.ledger import require

KEYS = 8
LOAD_MS = 4_000.0
QUIET_MS = 25_000.0


def document(mode: str, shards: int, coordinators: int, *, is_whole: bool) -> dict[str, Any]:
    """`is_whole`: rules take the events of any channel, and what may be lost is told of the source itself."""
    return {
        "cluster": {"shards": shards, "coordinators": coordinators},
        "batching": {"mode": mode},
        "services": {"api": {"base_url": "http://upstream"}},
        "queries": [{"key": ["item", "{n}"], "service": "api", "path": "/{n}", "retry": 20, "retry_delay": "100ms"}],
        "sources": {"events": {"type": "websocket", "url": "ws://upstream"}},
        "streams": [
            {
                "source": "events",
                "channel": "items:{half}",
                "linger": "300ms",
                "on": {"never": {"set": {"key": ["never", "{half}"], "value": 1}}},
            },
            {"source": "events", "channel": "items", "join": "always", "on": {"never": {"delete": {"key": ["never"]}}}},
            {
                "source": "events",
                **({} if is_whole else {"channel": "items"}),
                "on": {
                    "set": {"set": {"key": ["item", "{data.n}"], "value": "{data.value}"}},
                    "append": {
                        "append": {"key": ["item", "{data.n}"], "at": "/list", "item": "{data.item}", "max_items": 50}
                    },
                    "merge": {"merge": {"key": ["item", "{data.n}"], "value": "{data.value}"}},
                    "remove": {"remove": {"key": ["item", "{data.n}"], "at": "/list", "where": {"id": "{data.id}"}}},
                    "bump": {"increment": {"key": ["item", "{data.n}"], "at": "/count", "by": "{data.by}"}},
                },
            },
        ],
    }


class Schedule:
    """A world, its load and its faults, all from one seed."""

    def __init__(self, seed: int, *, kills: bool = True) -> None:
        pick = random.Random(seed)
        faults = Faults(
            delay_ms=pick.choice([1.0, 4.0, 12.0]),
            lose=pick.choice([0.0, 0.02, 0.1]),
            repeat=pick.choice([0.0, 0.1, 0.3]),
        )
        mode = pick.choice(["window", "window", "leading", "debounce"])
        self.world = World(seed, document(mode, pick.choice([1, 2, 3]), 1, is_whole=pick.random() < 0.5), faults)
        self.kills = kills
        self.names = sorted(self.world.machines)
        self.items = 0
        self.bump_safe = faults.lose == 0.0 and faults.repeat == 0.0 and not kills

    def run(self) -> None:
        world = self.world
        for n in range(KEYS):
            world.upstream.truth[key(n)] = {"v": 0, "list": [], "count": 0}
        world.run(world.now_ms + 200)
        for c in range(3):
            client = world.clients.enter(f"client-{c}")
            client.slow_ms = world.random.choice([1.0, 20.0, 300.0])
            mode = world.random.choice(["data", "patch"])
            world.clients.subscribe(client, 1, prefix=["item"], mode=mode)
            world.clients.subscribe(client, 2, key=["item", c], mode=mode)
        end = world.now_ms + LOAD_MS
        self._load(end)
        self._faults(end)
        world.run(end)
        world.go_on()
        world.network.heal()
        world.run(end + QUIET_MS)
        self.check()

    def _load(self, end: float) -> None:
        world = self.world

        def act() -> None:
            if world.now_ms >= end:
                return
            self._event(world.random.randrange(KEYS))
            world.at(world.random.expovariate(1 / 15.0), act)

        world.at(0.0, act)

    def _event(self, n: int) -> None:
        world, pick = self.world, self.world.random
        self.items += 1
        number = self.items
        match pick.choice(["set", "append", "append", "merge", "remove", "bump"]):
            case "set":
                value = {"v": number, "list": [], "count": 0}
                world.upstream.emit(
                    "items", "set", {"n": n, "value": value}, lambda truth: truth.update({key(n): value})
                )
            case "append":
                # A new item, or an edit of one; what was removed never returns under its id, or its place would depend on
                # whether a fetch saw it go.
                present = [each["id"] for each in world.upstream.truth[key(n)]["list"]]
                item = {"id": pick.choice([number, number, *present]), "n": number}

                def append(truth: dict[str, Any]) -> None:
                    items = truth[key(n)]["list"]
                    place = next((i for i, each in enumerate(items) if each["id"] == item["id"]), None)
                    truth[key(n)] = {
                        **truth[key(n)],
                        "list": (
                            [*items[:place], item, *items[place + 1 :]] if place is not None else [*items, item][-50:]
                        ),
                    }

                world.upstream.emit("items", "append", {"n": n, "item": item}, append)
            case "merge":
                world.upstream.emit(
                    "items",
                    "merge",
                    {"n": n, "value": {"v": number}},
                    lambda truth: truth.update({key(n): {**truth[key(n)], "v": number}}),
                )
            case "remove":
                present = [each["id"] for each in world.upstream.truth[key(n)]["list"]]
                gone = pick.choice([0, *present])

                def remove(truth: dict[str, Any]) -> None:
                    kept = [each for each in truth[key(n)]["list"] if each["id"] != gone]
                    truth[key(n)] = {**truth[key(n)], "list": kept}

                world.upstream.emit("items", "remove", {"n": n, "id": gone}, remove)
            case _:
                if not self.bump_safe:
                    return
                world.upstream.emit(
                    "items",
                    "bump",
                    {"n": n, "by": 2},
                    lambda truth: truth.update({key(n): {**truth[key(n)], "count": truth[key(n)]["count"] + 2}}),
                )

    def _faults(self, end: float) -> None:
        world = self.world

        def act() -> None:
            if world.now_ms >= end:
                return
            kind = world.random.choice(
                ["kill", "disconnect", "disconnect", "pause", "invalidate", "drop", "stop", "cut", "jump"]
            )
            client: Client = world.clients.by_name[f"client-{world.random.randrange(3)}"]
            match kind:
                case "kill" if self.kills:
                    world.kill(world.random.choice(self.names))
                case "drop" if self.kills:
                    world.upstream.drop(world.random.uniform(10, 600))
                case "stop" if self.kills:
                    world.stop(world.random.choice(self.names), world.random.uniform(10, 4_000))
                case "cut" if self.kills:
                    others = world.random.sample([*self.names, "upstream"], world.random.randint(1, 4))
                    for_ms = world.random.uniform(10, 3_000)
                    world.cut([world.random.choice(self.names)], others, for_ms, both=world.random.random() < 0.5)
                case "jump" if self.kills:
                    world.jump(
                        world.random.choice(self.names), world.random.choice([-60_000.0, -2_000.0, 2_000.0, 60_000.0])
                    )
                case "disconnect":
                    world.clients.disconnect(client)
                case "pause":
                    world.clients.say(client, {"type": "pause", "id": 1})
                    world.at(
                        world.random.uniform(1, 800), lambda: world.clients.say(client, {"type": "resume", "id": 1})
                    )
                # An increment that meets a fetch three times over is counted once too often or too rarely, and says so.
                case "invalidate" if not self.bump_safe:
                    world.clients.say(
                        client, {"type": "invalidate", "id": 9, "key": ["item", world.random.randrange(KEYS)]}
                    )
                case _:
                    pass
            world.at(world.random.uniform(50, 900), act)

        world.at(300.0, act)

    def check(self) -> None:
        world = self.world
        truth = world.upstream.truth
        doubtful = {
            entry.key
            for name, machine in world.machines.items()
            if name.startswith("shard")
            for entry in machine.cache
            if entry.is_invalidated
        }
        for client in world.clients.by_name.values():
            for sub, view in client.views.items():
                assert view.complete, f"{client.name}/{sub}: no snapshot_end"
                for held, (version, data) in view.entries.items():
                    assert version, f"{client.name}/{sub}: {held} has no data"
                    if sub == 1 and held in doubtful:
                        continue  # nobody reads it, so nobody has it fetched; it says that it is out of date
                    require(data == truth[held], f"{client.name}/{sub}: {held} is {data}, in truth {truth[held]}")
            own = int(client.name[-1])
            assert key(own) in client.views[2].entries
            shard_keys = {
                entry.key
                for name, machine in world.machines.items()
                if name.startswith("shard")
                for entry in machine.cache
                if entry.value is not None
            }
            assert set(client.views[1].entries) == shard_keys


def key(n: int) -> str:
    return f'["item",{n}]'


def make(seed: int) -> Schedule:
    return Schedule(seed, kills=seed % 3 != 0)


if __name__ == "__main__":
    replay.main(make)
