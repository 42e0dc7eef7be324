"""What work over many entries costs: 100,000 of 200 bytes in 4 shards.

The shards' part is timed on the machines alone, one shard after the other, so that each has a core to itself as its actor would: the sum
is what one core needs for all four, `slowest_slice_ms` the longest that an event loop is blocked. The whole is timed on a running
cluster, from request to answer, with everything on this machine.
"""

import asyncio
import gc
import itertools
import logging
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import ray

from cluster.core.channel_demand import ChannelDemand
from cluster.core.declared_query import DeclaredQueries, DeclaredQuery
from cluster.core.entity_index import EntityType
from cluster.core.entry import compact
from cluster.core.messages import (
    Act,
    Batch,
    ChangeSet,
    ChangeSetTaken,
    Header,
    KeyOperations,
    Members,
    Requests,
    Send,
    Unwatch,
    Watch,
)
from cluster.core.operation import Invalidate, Merge, Operation, Set
from cluster.core.query_key import canonical
from cluster.core.rule import FeedIndex
from cluster.core.shard_state import ShardState
from cluster.core.template import parse
from cluster.wire import blob
from tests.conftest import ServedUpstream
from tests.live import Client, LiveCluster, eventually, websocket_source

ENTRIES, SHARDS, USERS = 100_000, 4, 1_000
NOW = 1_000_000.0


def value(number: int) -> bytes:
    """About 200 bytes that name one of a thousand users."""
    data = {
        "id": number,
        "title": f"item {number}",
        "author": {"id": f"u{number % USERS}", "name": "name"},
        "pad": "x" * 110,
    }
    return compact(orjson.dumps(data))


class Shard:
    """One shard's machine, with a gateway that takes every change set at once."""

    def __init__(self) -> None:
        demand = ChannelDemand("shard-0", 3, now_ms=NOW, members=Members(1, []), linger_ms=lambda _s, _c: 0.0)
        query = DeclaredQuery(parse(["items", "{id}"]), "api", parse("/items/{id}"))
        self.machine = ShardState(
            "shard-0",
            3,
            epoch=5,
            queries=DeclaredQueries([query]),
            feeds=FeedIndex([]),
            demand=demand,
            gateways=[],
            replay_ms=1_000.0,
            entities={"user": EntityType("user", "id", ("userId",), ("author",))},
        )
        self.batches = itertools.count(1)
        self.requests = itertools.count(1)
        self.slices: list[float] = []

    def step(self, act: Callable[[], Any]) -> list[Any]:
        started = time.perf_counter()
        effects: list[Any] = act()
        for effect in effects:
            if isinstance(effect, Send):
                blob.encode(effect.message)
        self.slices.append((time.perf_counter() - started) * 1_000)
        return effects

    def run(self, act: Callable[[], Any]) -> tuple[float, float]:
        """Do something and all that follows of it. Returns (ms in all, ms of the longest step)."""
        self.slices = []
        waiting = [self.step(act)]
        while waiting:
            for effect in waiting.pop():
                if isinstance(effect, Send) and isinstance(effect.message, ChangeSet):
                    sent = effect
                    waiting.append(
                        self.step(lambda s=sent: self.machine.answered(s.to, s.message, ChangeSetTaken(8), NOW))
                    )
            due = self.machine.deadline()
            if not waiting and due is not None and due <= NOW:
                waiting.append(self.step(lambda: self.machine.wake(NOW)))
        return sum(self.slices), max(self.slices)

    def batch(self, *keys: tuple[str, list[Operation]]) -> tuple[float, float]:
        number = next(self.batches)
        header = Header("coordinator-0", 2, 0 if number == 1 else 3, number)
        message = Batch(header, [], [KeyOperations(key, operations, 1) for key, operations in keys], NOW)
        return self.run(lambda: self.machine.batch(message, NOW)[1])

    def ask(self, request: Any) -> tuple[float, float]:
        number = next(self.requests)
        header = Header("gateway-0", 8, 0 if number == 1 else 3, number)
        return self.run(lambda: self.machine.requests(Requests(header, [request]), NOW)[1])


def shards_part() -> dict[str, Any]:
    """The machines alone."""
    keys: list[list[tuple[str, list[Operation]]]] = [[] for _ in range(SHARDS)]
    for number in range(ENTRIES):
        keys[number % SHARDS].append((canonical(["items", number]), [Set(value(number))]))
    held = sum(len(key) + len(operations[0].value) for of_shard in keys for key, operations in of_shard)  # type: ignore[union-attr]
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    shards = [Shard() for _ in range(SHARDS)]
    for shard, of_shard in zip(shards, keys, strict=True):
        for start in range(0, len(of_shard), 500):
            shard.batch(*of_shard[start : start + 500])
    gc.collect()
    # The values and keys themselves were there before; what was traced is what holding them takes.
    overhead = (tracemalloc.get_traced_memory()[0] - before) / ENTRIES
    tracemalloc.stop()
    accounted = sum(shard.machine.memory.bytes() for shard in shards)
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)  # as the actors have it
    figures: dict[str, Any] = {
        "overhead_bytes_per_entry": round(overhead),
        "accounted_overhead_bytes_per_entry": round((accounted - held) / ENTRIES),
    }

    def measure(name: str, act: Callable[[Shard], tuple[float, float]]) -> None:
        times = [act(shard) for shard in shards]
        figures[name] = {
            "all_shards_ms": round(sum(total for total, _ in times), 1),
            "slowest_slice_ms": round(max(slowest for _, slowest in times), 1),
        }

    update = orjson.dumps({"id": "u7", "name": "another"})
    measure("entity event, 100 occurrences", lambda shard: shard.batch(('#e["user","u7"]', [Merge(update)])))
    measure("prefix invalidation, unwatched", lambda shard: shard.ask(Act(1, "invalidate", '["items"]')))
    measure("prefix invalidation by a rule", lambda shard: shard.batch(('#u["items"]', [Invalidate()])))
    measure("prefix snapshot", lambda shard: shard.ask(Watch(2, '["items"]', True)))
    measure("prefix invalidation, watched", lambda shard: shard.ask(Act(3, "invalidate", '["items"]', refetch="none")))
    measure("end of the watch", lambda shard: shard.ask(Unwatch(2)))
    gc.unfreeze()
    return figures


def whole() -> dict[str, Any]:
    """A running cluster."""
    ray.init(address="local", num_cpus=8, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    upstream = ServedUpstream(seed=7, rate=0)
    live = LiveCluster(
        {
            "cluster": {"shards": SHARDS},
            "sources": {"events": websocket_source(upstream.url)},
            "entities": {"user": {"objects": ["author"]}},
            "streams": [
                {
                    "source": "events",
                    "channel": "items",
                    "join": "always",
                    "on": {
                        "item": {"set": {"key": ["items", "{data.id}"], "value": "{data}"}},
                        "user": {"entity": {"type": "user", "value": "{data}"}},
                    },
                }
            ],
        }
    ).start()
    try:
        eventually(lambda: upstream.do(lambda up: up.hub.joined().get("items", 0)))
        for start in range(0, ENTRIES, 1_000):
            upstream.say("items", "item", *(orjson.loads(value(number)) for number in range(start, start + 1_000)))
            eventually(lambda n=start + 1_000: _keys(live) == n)
        return asyncio.run(_timed(live, upstream))
    finally:
        live.stop()
        upstream.stop()
        ray.shutdown()


def _keys(live: LiveCluster) -> int:
    return sum(shard["keys"] for shard in live.supervisor.describe()["shards"])


async def _timed(live: LiveCluster, upstream: ServedUpstream) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    async with httpx.AsyncClient(base_url=live.url, timeout=60) as http:
        started = time.perf_counter()
        answer = await http.post("/v1/invalidate", json={"key": ["items"]})
        figures["prefix invalidation, request to answer, ms"] = round((time.perf_counter() - started) * 1_000)
        assert answer.json() == {"matched": ENTRIES}
    client = await Client.open(live.url)
    watched = await client.subscribe("u", key=["items", 7])
    started = time.perf_counter()
    upstream.say("items", "user", {"id": "u7", "name": "another"})
    await client.until(lambda: watched.data("items", 7)["author"]["name"] == "another")
    figures["entity event to client, a window included, ms"] = round((time.perf_counter() - started) * 1_000)
    started = time.perf_counter()
    view = await client.subscribe("all", prefix=["items"], wait=False)
    await client.until(lambda: view.complete, 60)
    figures["prefix snapshot, subscribe to end at the client, ms"] = round((time.perf_counter() - started) * 1_000)
    assert len(view.entries) == ENTRIES
    await client.close()
    return figures
