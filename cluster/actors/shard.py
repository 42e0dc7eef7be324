"""A shard as an actor.

Crash: what was committed is in the store, and the next life begins with it; where nothing is stored, entries are lost and declared
queries fetched anew. Gateways hear of the new life and watch again. Retry: batches, requests and writes that come twice act once.
Order: per key, as committed here.
"""

import asyncio
import contextlib
import shutil
import time
from collections import Counter
from functools import partial

from cluster.actors.shard_copies import ShardCopies
from cluster.actors.shell import Shell
from cluster.actors.specification import Specification
from cluster.app import NULL, Event
from cluster.app.functions import ABSENT, Functions
from cluster.core.channel_demand import ChannelDemand
from cluster.core.declared_query import FunctionRequest, Response
from cluster.core.history import History
from cluster.core.memory import Memory
from cluster.core.messages import (
    Announce,
    Answer,
    Batch,
    Gateways,
    Members,
    Message,
    Overlays,
    Rebalance,
    Requests,
    SlotSlice,
)
from cluster.core.mutation_queue import StartMutation
from cluster.core.operation import UNCHANGED
from cluster.core.query_key import CanonicalKey
from cluster.core.shard_state import Commit, Effect, ShardState, StartFetch, Sync
from cluster.core.transaction import Stored, Transaction
from cluster.errors import HarborError, StoreError, UnavailableError, UpstreamError
from cluster.observability.metrics import Metrics
from cluster.services import ServiceClient
from cluster.storage import LmdbStore, directory_of, open_store
from cluster.wire.backup import Step, encode_answer

EPOCH_ORIGIN_MS = 1_735_689_600_000
"""2025-01-01. An epoch is the milliseconds since then at which a shard's life began: later lives have higher ones, also where nothing
of the earlier ones is left."""
SYNC_S = 0.1
"""With `sync: window`, how long what was committed may wait to be written through."""
FUNCTION_TIMEOUT_MS = 10_000.0
"""A query function that has given nothing after so long has failed, as a service would have."""


class ShardActor(Shell):
    """Shell of `ShardState`."""

    machine: ShardState

    async def __init__(self, specification: bytes, index: int) -> None:  # type: ignore[misc]  # Ray awaits it
        spec = Specification.decode(specification)
        super().__init__(f"shard-{index}", spec)
        self._sync = spec.config.storage.sync
        self._syncing = self._closed = self._unsynced = False
        """`_syncing`: a sync is to come within the window; `_unsynced`: something was committed since the last began."""
        self._sync_lock = asyncio.Lock()
        self._store_state = "none"
        self._store, stored = self._open_store(spec, index)
        now_ms = self.now()
        incarnation = int(now_ms)
        feeds = spec.compiled.feeds
        demand = ChannelDemand(
            self.identity,
            incarnation,
            now_ms=now_ms,
            members=Members(0, []),
            spread=spec.spread,
            linger_ms=feeds.linger_ms,
        )
        self.machine = ShardState(
            self.identity,
            incarnation,
            epoch=incarnation - EPOCH_ORIGIN_MS,
            queries=spec.compiled.queries,
            feeds=feeds,
            demand=demand,
            gateways=spec.gateways,
            replay_ms=max(profile.max_wait_ms for profile in spec.compiled.profiles),
            entities=spec.compiled.entities,
            relations=spec.compiled.relations,
            origins=spec.compiled.origins,
            memory=Memory(spec.config.cache.max_bytes, spec.config.cache.max_entries),
            limits={name: service.concurrency for name, service in spec.config.services.items()},
            reducer=self._reduce,
            keeps=self._store is not None,
            lost_store=self._store_state == "unavailable",
            mutations=spec.compiled.mutations,
            place=lambda key: spec.slots.shard(CanonicalKey(key)),
            history=partial(
                History,
                max_bytes=spec.config.storage.history.max_bytes,
                max_age_ms=spec.config.storage.history.max_age_ms,
            ),
        )
        self._copies = ShardCopies(index, self.log, self.now)
        self._functions = Functions(self.log)
        for reference in spec.compiled.reducers:
            with contextlib.suppress(HarborError):  # it is logged, and tried again with the first event
                self._functions.resolve(reference)
        self._services = {
            name: ServiceClient(
                name, service.base_url, service.headers, service.timeout_ms, max_connections=service.concurrency
            )
            for name, service in spec.config.services.items()
        }
        self._metrics = Metrics(component="shard", actor=self.identity, shard=str(index))
        self._apply = self._metrics.histogram("shard_apply_seconds")
        self._fetch = self._metrics.histogram("fetch_seconds")
        self._synced = self._metrics.histogram("journal_sync_seconds")
        self._store_errors = 0
        if stored is not None:
            self.machine.restore(stored, now_ms, lambda key: spec.slots.shard(CanonicalKey(key)) == index)
            if stored.map is not None:
                self.machine.slots.await_word(now_ms)
            self.log.info("store_restored", entries=len(self.machine.cache), ms=round(self.now() - now_ms))
        self.run(())
        await self.listen()
        self.spawn(self._learn_members())

    async def _learn_members(self) -> None:
        self.take(await self.peers.members())
        # While slots move, the supervisor says more.
        self.take(Rebalance("release", await self.peers.slot_map(), 0))
        self.take(Gateways(await self.peers.gateways()))

    async def retire(self) -> None:
        """Remove the store: the shard's slots are others', who have stored them, and it is about to be ended."""
        self._closed = True
        if self._store is not None:
            self._store.close()
            await asyncio.to_thread(shutil.rmtree, self._store.directory, ignore_errors=True)
            self.log.info("store_removed")

    async def leave(self, _grace_s: float) -> None:
        """Write everything through and close the store: the node is about to go. Nothing is taken from now on."""
        self._closed = True
        if self._store is not None:
            async with self._sync_lock:
                await asyncio.to_thread(self._store.sync)
                self._store.close()
            self.log.info("store_closed")

    def _open_store(self, spec: Specification, index: int) -> tuple[LmdbStore | None, Stored | None]:
        storage = spec.config.storage
        if storage.path is None:
            return None, None
        directory = directory_of(storage.path, spec.name, index)
        try:
            store, stored, reason = open_store(
                directory, always=storage.sync == "always", wait_s=storage.wait_ms / 1000.0
            )
        except StoreError as error:
            # Better a cache that forgets than none.
            self._store_state = "unavailable"
            self.log.error("store_unavailable", reason=error.message)  # noqa: TRY400 - the reason is enough
            return None, None
        self._store_state = "open"
        if reason:
            self._store_state = "set_aside"
            self.log.error("store_set_aside", reason=reason, kept_as=f"{directory}.unreadable")
        return store, stored

    def take(self, message: Message) -> Answer:
        """Take a message from another actor."""
        if self._closed:
            raise UnavailableError("the shard's node is going")
        match message:
            case Batch():
                started = time.perf_counter()
                answer, effects = self.machine.batch(message, self.now())
                self._apply.observe(time.perf_counter() - started)
            case Requests():
                answer, effects = self.machine.requests(message, self.now())
            case Announce():
                answer, effects = self.machine.announce(message, self.now())
            case Gateways():
                answer, effects = self.machine.gateways(message, self.now())
            case Members():
                answer, effects = self.machine.members(message, self.now())
            case Overlays():
                answer, effects = self.machine.overlays(message, self.now())
            case SlotSlice():
                answer, effects = self.machine.slot_slice(message, self.now())
            case Rebalance():
                answer, effects = self.machine.rebalance(message, self.now())
            case _:
                raise AssertionError(f"a shard does not take {type(message).__name__}")
        self.run(effects)
        return answer

    def effect(self, effect: Effect) -> None:
        """Start a fetch, store what changed, or write it through."""
        match effect:
            case Commit(transaction=transaction):
                self._commit(transaction)
            case Sync():
                self._sync_now()
            case StartFetch():
                self.spawn(self._fetched(effect))
            case StartMutation():
                if self.machine.may_send(effect):
                    self.spawn(self._mutated(effect))
                else:
                    self.run(self.machine.unsent(effect, self.now()))
            case _:
                raise AssertionError(f"a shard has no such effect: {effect!r}")

    def _commit(self, transaction: Transaction) -> None:
        if self._closed:
            return
        assert self._store is not None
        try:
            self._store.commit(transaction)
        except StoreError as error:
            self.machine.not_stored(transaction)
            self._store_errors += 1
            self.log.sampled("store_failed", "store", reason=error.message)
            return
        self._unsynced = self._sync != "always"
        if self._sync == "window" and not self._syncing:
            self._syncing = True
            self.spawn(self._sync_later(self._store))

    async def _sync_later(self, store: LmdbStore) -> None:
        """Write through what waits no longer than a window, unless writes that wait for it were quicker."""
        await asyncio.sleep(SYNC_S)
        self._syncing = False
        if self._unsynced:
            await self._write_through(store)

    def _sync_now(self) -> None:
        if self._closed:
            return  # who waits asks the next life
        assert self._store is not None
        if self._unsynced or self._sync_lock.locked():
            self.spawn(self._acknowledge(self._store))
        else:
            self.run(self.machine.synced(self.now()))

    async def _acknowledge(self, store: LmdbStore) -> None:
        failed = not await self._write_through(store)
        if not self._closed:
            self.run(self.machine.synced(self.now(), failed=failed))

    async def _write_through(self, store: LmdbStore) -> bool:
        """Sync on another thread. Returns whether what was committed before is on the disk now."""
        started = time.perf_counter()
        async with self._sync_lock:
            if self._closed:
                return False
            self._unsynced = False  # what is committed from now on may not be part of it
            try:
                await asyncio.to_thread(store.sync)
            except StoreError as error:
                self._unsynced = True
                self._store_errors += 1
                self.log.sampled("store_failed", "store", reason=error.message)
                return False
        self._synced.observe(time.perf_counter() - started)
        return True

    async def _fetched(self, call: StartFetch) -> None:
        started = time.perf_counter()
        request = call.request
        result: Response | UpstreamError
        try:
            if isinstance(request, FunctionRequest):
                result = Response(await self._run_function(request))
            else:
                result = await self._services[request.service].fetch(request)
        except UpstreamError as error:
            result = error
            self.log.sampled("fetch_failed", request.service or "function", reason=error.message)
        self._fetch.observe(time.perf_counter() - started)
        self.run(self.machine.fetched(call, result, self.now()))

    async def _mutated(self, call: StartMutation) -> None:
        request = call.request
        result: Response | UpstreamError
        try:
            if request.function:
                body = await self._functions.mutate(request.function, request.arguments, request.idempotency_key)
                result = Response(None if body == b"null" else body)
            elif request.service not in self._services:
                result = UpstreamError(f"service {request.service}: it is not configured any more", retryable=False)
            else:
                result = await self._services[request.service].send(request)
        except UpstreamError as error:
            result = error
            self.log.sampled("mutation_failed", request.service or "function", reason=error.message)
        self.run(self.machine.mutated(call, result, self.now()))

    async def _run_function(self, request: FunctionRequest) -> bytes:
        page_param = request.page_param if request.is_paged else ABSENT
        return await self._functions.fetch(request.function, request.captures, page_param, FUNCTION_TIMEOUT_MS)

    def _reduce(self, reference: str, old: object, event: dict[str, object]) -> object:
        new = self._functions.reduce(reference, old, Event(event))
        return UNCHANGED if new is None else None if new is NULL else new

    async def copy(self, step: Step, backup: str, number: int) -> bytes:
        """Make a step of a backup (`wire.backup`)."""
        return encode_answer(await self._copies.step(None if self._closed else self._store, step, backup, number))

    async def status(self) -> dict[str, object]:
        """Say what `/v1/cluster` shows of this actor."""
        machine = self.machine
        return {
            **self.about(),
            "epoch": machine.epoch,
            "role": "primary",
            "keys": len(machine.cache),
            "subscribers": machine.subscriptions,
            "lag_ms": round(machine.lag_ms),
            "members_epoch": machine.demand.epoch,
            "store": self._store_state,
        }

    async def samples(self) -> bytes:
        """Return the metrics, encoded."""
        machine, metrics = self.machine, self._metrics
        metrics.set("shard_entries", len(machine.cache))
        metrics.set("shard_bytes", machine.memory.bytes())
        busy, machine.slot_operations = machine.slot_operations, Counter()
        metrics.set("shard_hot_slot_share", max(busy.values()) / busy.total() if busy else 0.0)
        metrics.set("shard_subscriptions", machine.subscriptions)
        metrics.set("presence_members", machine.presence.member_count)
        metrics.set("evictions_total", machine.cache.collected, reason="collected")
        for reason, count in machine.evictions.items():
            metrics.set("evictions_total", count, reason=reason)
        if self._store is not None and not self._closed:
            metrics.set("journal_bytes", self._store.size())
            metrics.set("journal_errors_total", self._store_errors)
        metrics.set("history_changes", len(machine.history))
        metrics.set("history_bytes", machine.history.bytes)
        metrics.set("shard_resets_total", machine.resets)
        metrics.set("mutations_pending", machine.mutations.queue.unsettled)
        metrics.set("mutations_oldest_seconds", machine.mutations.queue.oldest_ms(self.now()) / 1000.0)
        for status, count in machine.mutations.queue.settled.items():
            metrics.set("mutations_total", count, status=status)
        for service in self._services:
            metrics.set("service_offline_seconds", machine.offline_ms(service, self.now()) / 1000.0, service=service)
        metrics.set("invalidations_total", machine.invalidations)
        for outcome, count in machine.fetches.items():
            metrics.set("fetches_total", count, outcome=outcome)
        for result, count in machine.reads.items():
            metrics.set("reads_total", count, result=result)
        for reason, count in machine.operations_dropped.items():
            metrics.set("events_dropped_total", count, reason=f"operation_{reason}")
        return metrics.encode()
