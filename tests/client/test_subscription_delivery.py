"""Subscriptions against real gateway and shard machines, in random schedules: writes, removals, losses, resumes, slow consumers."""

import random
from typing import Any

import orjson
import pytest

from cluster.client.subscription import Subscription
from cluster.core import gateway_state
from cluster.core.messages import Edit
from cluster.core.operation import parse_operations
from tests.client.consumer import Consumer
from tests.in_process import Client, InProcess

KEYS = [["a", 1], ["a", 2], ["a", {"b": 1}], ["b", 1]]
TARGETS: list[tuple[list[Any], bool]] = [(["a"], True), ([], True), (["a", 1], False), (["b", 1], False)]


def text(key: Any) -> str:
    return orjson.dumps(key).decode()


class Watcher:
    """A client that follows one subscription from gateway to gateway."""

    def __init__(self, world: InProcess, dice: random.Random) -> None:
        self.world = world
        self.dice = dice
        self.key, self.prefix = dice.choice(TARGETS)
        mode: Any = dice.choice(["data", "patch"])
        self.subscription = Subscription(self.key, prefix=self.prefix, mode=mode, backlog=dice.choice([1, 3, 50]))
        self.consumer = Consumer(mode)
        self.connect()

    def connect(self) -> None:
        name = f"client-{self.world.tick()}"
        self.client = Client(self.world, name, self.dice.choice(self.world.names))
        self.client.say(**self.subscription.request(1))

    def read(self, frames: int) -> None:
        for message in self.client.read(frames):
            assert message["type"] != "error", message
            if "sub" in message:
                assert self.subscription.receive(message), message

    def take(self, count: int) -> None:
        for _ in range(count):
            change = self.subscription.take()
            if change is None:
                break
            self.consumer.take(change)

    def cut(self) -> None:
        if self.dice.random() < 0.5:  # what was on its way is lost
            _, effects = self.client.gateway.take(self.client.session, self.world.now_ms)
            self.world.run(self.client.address, effects)
        self.client.close()
        self.connect()


@pytest.mark.parametrize("seed", range(60))
def test_every_consumer_ends_with_what_the_shards_hold(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_state, "CHUNK_BYTES", 120)  # snapshots in many pieces
    dice = random.Random(seed)
    world = InProcess(shards=2, gateways=2)
    for key in KEYS[:3]:
        world.write(text(key), {"list": []})
    watchers = [Watcher(world, dice) for _ in range(3)]
    for count in range(250):
        watcher = dice.choice(watchers)
        match dice.choices(
            ["write", "edit", "erase", "read", "take", "cut", "calls", "time", "restart"],
            [10, 25, 4, 30, 20, 3, 40, 25, 0.5],
        )[0]:
            case "write":
                world.write(text(dice.choice(KEYS)), {"list": [], "filler": "x" * dice.choice([0, 0, 200])})
            case "edit":
                key = text(dice.choice(KEYS))
                append = [{"append": {"at": "/list", "item": {"id": dice.randrange(4), "n": count}}}]
                world.commit(key, Edit(1, f"e{count}", key, None, parse_operations(append)))
            case "erase":
                world.erase(text(dice.choice(KEYS)))
            case "read":
                watcher.read(dice.choice([1, 1, 5]))
            case "take":
                watcher.take(dice.choice([1, 3, 10]))
            case "cut":
                watcher.cut()
            case "calls":
                for _ in range(dice.randrange(1, 6)):
                    world.step(lose=lambda: dice.random() < 0.05)
            case "time":
                world.advance(dice.choice([1, 3, 12, 40, 200, 1200]))
            case "restart":
                world.restart(dice.choice(list(world.shards)))
    for _ in range(8):
        world.settle(800)
        for watcher in watchers:
            watcher.read(1_000)
    for watcher in watchers:
        watcher.take(1_000_000)
        held = {key: entry for key, entry in watcher.consumer.entries.items() if entry[0]}
        wanted = {key: entry for key, entry in world.oracle(text(watcher.key), watcher.prefix).items() if entry[0]}
        assert held == wanted
        assert "ready" in watcher.consumer.kinds
        watcher.consumer.check_nothing_was_edited()
