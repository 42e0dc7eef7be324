"""A shard with its coordinator's link and a gateway's, driven by hand."""

from collections.abc import Callable
from typing import Any

import orjson

from cluster.config import compile_config, load_mapping
from cluster.core.channel_demand import ChannelDemand
from cluster.core.declared_query import Response
from cluster.core.memory import Memory
from cluster.core.messages import (
    Absent,
    Answered,
    Answers,
    Batch,
    Change,
    ChangeSet,
    ChangeSetTaken,
    FeedRange,
    Header,
    KeyOperations,
    Members,
    Meta,
    Ready,
    Removed,
    Requests,
    Reset,
    Send,
    Snapshot,
    Unwatch,
    Watch,
)
from cluster.core.operation import Operation, Set
from cluster.core.query_key import KeyMatcher, parse
from cluster.core.replica import Replica
from cluster.core.shard_state import EPOCH_SHIFT, Commit, ShardState, StartFetch, Sync
from cluster.core.transaction import Store
from cluster.errors import StoreError, UpstreamError

START = 1_000_000.0
EPOCH = 5
BASE = EPOCH << EPOCH_SHIFT
GC_MS = 60_000.0
REPLAY_MS = 1_000.0
DOCUMENT: dict[str, Any] = {
    "services": {"api": {"base_url": "http://api"}},
    "queries": [
        {"key": ["q", "{id}"], "service": "api", "path": "/q/{id}", "gc_time": "60s", "stale_time": "10s", "retry": 1}
    ],
    "sources": {"events": {"type": "websocket", "url": "ws://upstream"}},
    "streams": [
        {
            "source": "events",
            "channel": "all",
            "join": "always",
            "on": {"e": {"set": {"key": ["q", "{data.id}"], "value": 1}}},
        }
    ],
}
DOWN = UpstreamError("it is down", status=503)


class Shard:
    """See the module. Change sets are acknowledged at once; what they say is kept in `held` as a gateway would."""

    def __init__(
        self, document: dict[str, Any] = DOCUMENT, *, store: Store | None = None, life: int = 3, **more: Any
    ) -> None:
        """`store`: where it keeps what it has, and begins with; `life`: its incarnation."""
        self.store = store
        self.life = life
        config = load_mapping(document, {})
        compiled = compile_config(config)
        demand = ChannelDemand(
            "shard-0",
            life,
            now_ms=START,
            members=Members(1, ["ingestor-0"]),
            linger_ms=compiled.feeds.linger_ms,
        )
        self.machine = ShardState(
            "shard-0",
            life,
            epoch=EPOCH + life - 3,
            queries=compiled.queries,
            feeds=compiled.feeds,
            demand=demand,
            gateways=[],
            replay_ms=REPLAY_MS,
            entities=compiled.entities,
            relations=compiled.relations,
            origins=compiled.origins,
            memory=Memory(config.cache.max_bytes, config.cache.max_entries),
            limits={name: service.concurrency for name, service in config.services.items()},
            keeps=store is not None,
            **more,
        )
        self.now = START
        if store is not None and (stored := store.load()) is not None:
            self.machine.restore(stored, START, lambda key: "foreign" not in key)
        self.batches = 0
        self.asked = 0
        self.next_id = 0
        self.syncing = False
        """It waits for a sync."""
        self.fetches: list[StartFetch] = []
        self.sets: list[ChangeSet] = []
        self.held: dict[str, Replica] = {}
        self.watches: dict[int, tuple[str, bool]] = {}

    def _take(self, effects: Any) -> None:
        """Note effects."""
        for effect in effects:
            if isinstance(effect, Commit):
                assert self.store is not None
                try:
                    self.store.commit(effect.transaction)
                except StoreError:
                    self.machine.not_stored(effect.transaction)
            elif isinstance(effect, Sync):
                assert not self.syncing, "one sync at a time"
                self.syncing = True
            elif isinstance(effect, StartFetch):
                self.fetches.append(effect)
            elif isinstance(effect, Send) and isinstance(effect.message, ChangeSet):
                self.sets.append(effect.message)
                for item in effect.message.items:
                    self._hold(item)
                self._take(self.machine.answered(effect.to, effect.message, ChangeSetTaken(8), self.now))

    def _hold(self, item: Any) -> None:
        match item:
            case Snapshot(watch=watch, entry=view) if watch in self.watches:
                replica = self.held.setdefault(view.key, Replica(view.key, 0))
                if view.version >= replica.version:
                    replica.replace(view)
            case Change(key=key) if self.wants(key):
                replica = self.held.setdefault(key, Replica(key, 0))
                if item.version > replica.version:
                    assert item.data is not None or item.from_version == replica.version, "a change is missing"
                    replica.take(item)
            case Meta(key=key) if key in self.held:
                self.held[key].heed(item)
            case Removed(key=key):
                self.held.pop(key, None)
            case Reset(entry=view) if self.wants(view.key):
                self.held.setdefault(view.key, Replica(view.key, 0)).replace(view)
            case Absent(watch=watch) if watch in self.watches:
                self.held.pop(self.watches[watch][0], None)
            case Ready() | Answered():
                pass

    def wants(self, key: str) -> bool:
        """Whether the gateway watches a key."""
        return any(
            KeyMatcher(parse(name)).matches(key) if prefix else name == key for name, prefix in self.watches.values()
        )

    def items(self) -> list[Any]:
        """The items sent since the last look."""
        items = [item for message in self.sets for item in message.items]
        self.sets.clear()
        return items

    def answers(self) -> dict[int, Any]:
        """The late answers among the items sent since the last look."""
        return {item.id: item.payload for item in self.items() if isinstance(item, Answered)}

    def batch(
        self,
        *keys: tuple[str, list[Operation]],
        feeds: tuple[FeedRange, ...] = (),
        count: int = 1,
        origin: int = -1,
    ) -> Any:
        self.batches += 1
        header = Header("coordinator-0", 2, 0 if self.batches == 1 else self.life, self.batches)
        listed = [KeyOperations(key, operations, count, origin) for key, operations in keys]
        answer, effects = self.machine.batch(Batch(header, list(feeds), listed, self.now - 100), self.now)
        self._take(effects)
        return answer

    def ask(self, make: Callable[[int], Any]) -> Any:
        """Send one request; its answer, if it is there at once."""
        self.asked += 1
        self.next_id += 1
        header = Header("gateway-0", 8, 0 if self.asked == 1 else self.life, self.asked)
        answer, effects = self.machine.requests(Requests(header, [make(self.next_id)]), self.now)
        self._take(effects)
        assert isinstance(answer, Answers)
        return answer.items[0][1] if answer.items else None

    def synced(self, *, failed: bool = False) -> dict[int, Any]:
        """End the sync under way; the answers that waited for it."""
        assert self.syncing
        self.syncing = False
        self.sets.clear()
        self._take(self.machine.synced(self.now, failed=failed))
        return self.answers()

    def fetched(self, result: Any, key: str | None = None) -> None:
        """Answer the oldest fetch, or that of a key."""
        body = result if isinstance(result, UpstreamError | Response) else Response(orjson.dumps(result))
        self.answer(next(each for each in self.fetches if key is None or each.key == key), body)

    def answer(self, fetch: StartFetch, result: Response | UpstreamError) -> None:
        """Answer a fetch."""
        self.fetches.remove(fetch)
        self._take(self.machine.fetched(fetch, result, self.now))

    def watch(self, key: str, *, prefix: bool = False) -> int:
        """Watch from here on; returns the watch's number."""
        self.watches[self.next_id + 1] = (key, prefix)
        self.ask(lambda n: Watch(n, key, prefix))
        return self.next_id

    def unwatch(self, watch: int) -> None:
        del self.watches[watch]
        self.ask(lambda n: Unwatch(watch))
        self.held = {key: replica for key, replica in self.held.items() if self.wants(key)}

    def wake(self, at: float) -> None:
        self.now = at
        self._take(self.machine.wake(at))

    def settle(self) -> None:
        """Do all that is due by now."""
        for _ in range(1_000):
            due = self.machine.deadline()
            if due is None or due > self.now:
                return
            self.wake(self.now)
        raise AssertionError("it does not come to rest")

    def put(self, key: str, data: Any) -> None:
        """Have a stream set an entry."""
        self.batch((key, [Set(orjson.dumps(data))]))

    def data(self, key: str) -> Any:
        view = self.machine.view(key)
        return None if view is None or view.data is None else orjson.loads(view.data)
