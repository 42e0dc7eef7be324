"""Echoes: what a mutation did lies over the base until its event has come."""

import random
from typing import Any

import orjson

from cluster.core.messages import Header, Overlays, Send, Write
from tests.simulation.mutations import KEYS, PROJECTS, SHARDS, World

PROJECT, KEY = PROJECTS[0], KEYS[0]


class Smooth(random.Random):
    """No call is lost."""

    def random(self) -> float:
        return 0.99


class Shop(World):
    """A world with one task, in which nothing goes wrong."""

    def __init__(self) -> None:
        super().__init__(Smooth())
        self.service.change("created", self.task(rank=0))
        self.events()

    @staticmethod
    def task(**members: Any) -> dict[str, Any]:
        return {"id": "t", "project_id": PROJECT, **members}

    def update(self, mutation: str, **members: Any) -> None:
        """An update that its service answers; its event is not heard yet."""
        self.mutate("update", self.task(**members), mutation)
        self.run()
        assert self.statuses[mutation][-1] == "success"

    def run(self) -> None:
        while self.calls:
            self.call(0)

    def event(self) -> None:
        """Every shard hears of the next event."""
        for shard in range(SHARDS):
            self.stream(shard)
        self.run()

    def events(self) -> None:
        while self.heard[0] < len(self.service.events):
            self.event()

    def later(self, ms: float) -> None:
        self.now += ms
        for shard in range(SHARDS):
            self.wake(shard)
        self.run()

    @property
    def is_quiet(self) -> bool:
        """Whether nothing lies over anything, and no event is looked out for."""
        parts = [machine.mutations for machine in self.machines]
        return not any(part.laid.by_key or part.laid.mutations or part._unconfirmed for part in parts)

    @property
    def shown(self) -> Any:
        """The task, as everybody sees it."""
        entry = self.machines[self.home(KEY)].cache.get(KEY)
        assert entry is not None
        assert entry.visible is not None
        (task,) = entry.visible.object()
        return task


def test_events_that_come_after_the_answers_of_later_mutations_are_not_seen_as_steps_back() -> None:
    shop = Shop()
    for rank in (1, 2, 3):
        shop.update(f"m{rank}", rank=rank)
    shown = []
    for _ in range(3):
        shop.event()
        shown.append(shop.shown["rank"])
    assert shown == [3, 3, 3]
    assert not any(machine.mutations.laid.by_key for machine in shop.machines), "nothing is left of them"


def test_what_others_do_after_it_is_seen_with_their_event() -> None:
    shop = Shop()
    shop.update("m1", rank=1)
    shop.service.change("updated", shop.task(rank=7))
    shop.event()
    assert shop.shown["rank"] == 1
    shop.event()
    assert shop.shown["rank"] == 7


def test_where_no_event_comes_it_lies_for_a_second() -> None:
    shop = Shop()
    shop.update("m1", rank=1)
    shop.service.events[-1] = ("updated", PROJECT, shop.task(rank=7))  # of somebody else
    shop.event()
    assert shop.shown["rank"] == 1
    shop.later(1_001)
    assert shop.shown["rank"] == 7
    assert shop.is_quiet


def test_a_client_that_writes_the_entry_sees_what_it_wrote() -> None:
    shop = Shop()
    shop.update("m1", rank=1)
    shop.ask(shop.home(KEY), Write(99, "w", KEY, orjson.dumps([shop.task(rank=5)])))
    assert shop.shown["rank"] == 5
    shop.later(1_001)
    assert shop.is_quiet


def test_nothing_is_looked_out_for_that_a_home_has_laid_in_a_life_before() -> None:
    shop = Shop()
    home = shop.home(f"scope:project:{PROJECT}")
    shop.mutate("update", shop.task(rank=1), "m1")
    shop.wake(home)
    while any(isinstance(asked, Send) for _, asked in shop.calls):
        shop.call(next(n for n, (_, asked) in enumerate(shop.calls) if isinstance(asked, Send)))
    assert not shop.is_quiet
    place = shop.machines[shop.home(KEY)].mutations
    place.overlays(Overlays(Header(f"shard-{home}", 99, 0, 1), []), shop.now)
    assert shop.is_quiet
