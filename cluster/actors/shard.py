"""A shard's actor, primary or standby.

Crash: what was committed is in the store, and the next life begins with it; with a standby that takes over, and the next life is its standby.
Where nothing is stored and there is no standby, entries are lost and declared queries fetched anew. Gateways hear of the new life and
watch again. Retry: batches, requests and writes that come twice act once. Order: per key, as committed here.

Without replicas the actor named as its shard is its primary and needs nobody to say so. All others wait for a role (`grant`); one that
loses it ends its process, since what it holds in memory may be what nobody else has.

What it makes of a role, and lets out of a step, `ShardHolder` says. It is one thing because all here is what that one machine wants done, and
tells it what came of it.
"""

import asyncio
import contextlib
import importlib
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cluster.actors import ray_head
from cluster.actors.handles import Unreachable
from cluster.actors.shard_copies import ShardCopies
from cluster.actors.shell import Machine, Shell
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
    Primary,
    Rebalance,
    Replicate,
    Requests,
    Send,
    SlotSlice,
)
from cluster.core.mutation_queue import StartMutation
from cluster.core.operation import UNCHANGED
from cluster.core.placement import SlotMap
from cluster.core.primaries import actors_of
from cluster.core.query_key import CanonicalKey
from cluster.core.replication import Reply
from cluster.core.role import EPOCH_ORIGIN_MS, Grant, Role, Roleless
from cluster.core.shard_holder import (
    Committed,
    Diverged,
    Filled,
    Follow,
    Lead,
    News,
    ShardHolder,
    StandbyIs,
    StepDown,
    StoreFailed,
    StoreLost,
)
from cluster.core.shard_roles import Record
from cluster.core.shard_state import ShardState, StartFetch, Sync
from cluster.core.transaction import Store, Stored
from cluster.errors import ErrorCode, HarborError, StoreError, UnavailableError, UpstreamError
from cluster.observability.metrics import Metrics
from cluster.storage import LmdbStore, MemoryStore, ShardStores, Taken
from cluster.wire.backup import Done, Refused, Step, encode_answer

if TYPE_CHECKING:
    from cluster.services import ServiceClient

SYNC_S = 0.1
"""With `sync: window`, how long what was committed may wait to be written through."""
REPORT_S = 1.0
"""How long a report waits for news. The supervisor misses an actor that says nothing for much longer."""
STORE_POLL_S = 0.2
PROCLAIM_TRIES = 20
PROCLAIM_PAUSE_S = 0.2
STEPPED_DOWN = 71
"""Exit code: the actor is to begin anew without a role."""
FUNCTION_TIMEOUT_MS = 10_000.0
"""A query function that has given nothing after so long has failed, as a service would have."""


class ShardActor(Shell):
    """Shell of `ShardHolder`, and of the `ShardState` that this has as the primary."""

    async def __init__(self, specification: bytes, index: int, is_second: bool = False) -> None:  # type: ignore[misc]
        spec = Specification.decode(specification)
        super().__init__(f"shard-{index}", spec, actors_of(f"shard-{index}")[is_second])
        self._index = index
        self._may_be_alone = not spec.config.cluster.replicas
        """It needs nobody to tell it that it is the primary, unless the shard has gone to the other name, or is just going there."""
        storage = spec.config.storage
        self._stores = (
            None
            if storage.path is None
            else ShardStores(
                Path(storage.path) / spec.name,
                self.identity,
                lambda: secrets.token_hex(4),
                sync=storage.sync,
            )
        )
        self.machine: Machine = Roleless()
        self._holder: ShardHolder[Taken] = ShardHolder(
            self.address,
            int(self.now()),
            self,
            memory_id=secrets.token_hex(4),
            is_stored=self._stores is not None,
            is_replicated=spec.config.cluster.replicas > 0,
        )
        self._news = asyncio.Event()
        self._proclaimed: set[str] = set()
        """Who has been told, or is, that this actor is the primary."""
        self._members: Members | None = None
        """The last that was heard of, as a standby."""
        self._sync = storage.sync
        self._syncing = self._closed = self._unsynced = False
        """`_syncing`: a sync is to come within the window; `_unsynced`: something was committed since the last began."""
        self._sync_lock = asyncio.Lock()
        self._store_state = "none"
        self._beat: asyncio.TimerHandle | None = None
        self._copies = ShardCopies(index, self.log, self.now, lambda: self._holder.replication.is_behind)
        self._functions = Functions(self.log)
        self._services = spec.config.services
        self._clients: dict[str, ServiceClient] = {}
        self._metrics = Metrics(component="shard", actor=self.address, shard=str(index))
        self._apply = self._metrics.histogram("shard_apply_seconds")
        self._fetch = self._metrics.histogram("fetch_seconds")
        self._synced = self._metrics.histogram("journal_sync_seconds")
        self._store_errors = self._stores_lost = 0
        record = await self._kept() if self._may_be_alone else None
        leads = self.identity if record is None or not record.primary else record.primary
        if self._may_be_alone and leads == self.address and not (record is not None and record.is_shared):
            await self._begin_alone(record)
        else:
            self._may_be_alone = False
            await self._take_store()
            if self._taken is None and self._stores is not None:
                self.spawn(self._seek_store(self._stores))
        await self.listen()

    # --- roles ---------------------------------------------------------------------------------------------------

    @property
    def _shard(self) -> ShardState | None:
        """The primary's machine."""
        return self._holder.shard

    @property
    def _taken(self) -> Taken | None:
        """The store on the disk that this actor has."""
        return self._holder.taken

    async def _kept(self) -> Record | None:
        """Return what Ray keeps of this shard's roles."""
        while True:
            try:
                return await asyncio.to_thread(ray_head.kept, self.specification.name, self._index)
            except Unreachable as error:
                self.log.sampled("role_unknown", "kept", reason=str(error))
                await asyncio.sleep(STORE_POLL_S)

    async def _begin_alone(self, record: Record | None) -> None:
        """Be the primary without asking: there is no other actor, and Ray sees to it that there is but one of this name.

        The store on record is waited for, and then done without.
        """
        wait_s = self.specification.config.storage.wait_ms / 1000.0
        wanted = self._holder.wanted(record)
        until = self._loop.time() + wait_s
        while not await self._take_store(wanted, wait_s) and wanted and self._loop.time() < until:
            if self._store_state == "set_aside":
                break  # it was here
            self.log.sampled("store_awaited", "store", store=wanted)
            await asyncio.sleep(STORE_POLL_S)
        made, effects = self._holder.begin_alone(record, self.now(), is_told=self._store_state != "none")
        self._carry_out(effects)
        while True:  # with another store on record the next life would not take this one
            try:
                await asyncio.to_thread(ray_head.keep, self.specification.name, self._index, made)
            except Unreachable as error:
                self.log.sampled("role_not_kept", "keep", reason=str(error))
                await asyncio.sleep(STORE_POLL_S)
            else:
                self._recorded()
                return

    def _recorded(self) -> None:
        """The store that is taken is the one on record."""
        if self._stores is not None and self._taken is not None and self._taken.id == self._holder.adopted:
            try:
                self._stores.recorded(self._taken.id)
            except StoreError as error:  # the next life says so again
                self._store_failed(error.message)

    async def _take_store(self, wanted: str = "", wait_s: float = 0.0) -> bool:
        """Take a store of this shard, if one is here. Returns whether it is the one that is wanted."""
        if self._stores is None or self._taken is not None:
            return not wanted or (self._taken is not None and self._taken.id == wanted)
        try:
            # What was put there from outside counts, whatever is on record.
            self._holder.adopted = await asyncio.to_thread(self._stores.adopt) or self._holder.adopted
            wanted = self._holder.adopted or wanted
            if wanted and wanted not in self._stores.ids():
                return False
            taken = await asyncio.to_thread(self._stores.take, wanted, wait_s)
        except StoreError as error:
            # Better a cache that forgets than none.
            self._store_state = "unavailable"
            self.log.error("store_unavailable", reason=error.message)  # noqa: TRY400 - the reason is enough
            return True
        if taken is not None:
            self._carry_out(self._holder.found(taken))
        self._tell_unreadable()
        return not wanted or (self._taken is not None and self._taken.id == wanted)

    async def _seek_store(self, stores: ShardStores) -> None:
        """Take a store that comes late, or that an earlier process has not let go of yet, as long as there is no role."""
        while self._holder.role is Role.NONE and self._store_state == "none" and not self._closed:
            await asyncio.sleep(STORE_POLL_S)
            try:
                taken = await asyncio.to_thread(stores.take, self._holder.adopted)
            except StoreError:
                return  # to begin one will say why
            if taken is None:
                continue
            if self._closed:
                taken.store.close()
            else:
                self._carry_out(self._holder.found(taken))
            return

    def _tell_unreadable(self) -> None:
        if self._stores is not None and self._stores.unreadable:
            self._store_state = "set_aside"
            self.log.error("store_set_aside", reason=self._stores.unreadable)
            self._stores.unreadable = ""

    def begin_store(self) -> Taken | None:
        """Begin an empty store on the disk; None: nothing is to be stored there, or it cannot be."""
        if self._stores is None or self._store_state == "unavailable":
            return None
        try:
            return self._stores.begin()
        except StoreError as error:
            self._store_state = "unavailable"
            self.log.error("store_unavailable", reason=error.message)  # noqa: TRY400 - as above
            return None

    def load_store(self, taken: Taken) -> Stored | None:
        """Return what a store holds; None: nothing yet.

        Raises:
            StoreError: it cannot be read, and was set aside.
        """
        assert self._stores is not None
        stored = self._stores.load(taken)
        if stored is None and (reason := self._stores.unreadable):
            self._tell_unreadable()
            raise StoreError(reason)
        return stored

    def memory_store(self) -> Store:
        """Return an empty store that ends with the process."""
        return MemoryStore()

    def owns(self, key: str) -> bool:
        """Whether the shard is, by configuration, where a key belongs."""
        return self.specification.slots.shard(CanonicalKey(key)) == self._index

    async def report(self, known: bytes) -> bytes:
        """Return this actor's `Report`, encoded, as soon as it is another than `known`, or after a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REPORT_S):
                while (encoded := msgspec.msgpack.encode(self._holder.report())) == known:
                    self._news.clear()
                    await self._news.wait()
        return encoded

    async def grant(self, life: int, encoded: bytes) -> None:
        """Take a role, if it is meant for this life of the actor."""
        grant = msgspec.msgpack.decode(encoded, type=Grant)
        if self._closed:
            return
        if life == self._holder.life:
            self.log.info("role_granted", role=grant.role, epoch=grant.epoch, other=grant.other)
            if self._holder.role is Role.NONE:
                self._recorded()  # before anybody was told who leads
        self._carry_out(self._holder.grant(life, grant, self.now()))

    def _step_down(self, reason: str) -> None:
        """End the process: what it has in memory is of a role that is over. Ray starts it anew, and it asks for another."""
        self.log.warning("stepped_down", reason=reason, epoch=self._holder.replication.epoch)
        os._exit(STEPPED_DOWN)

    async def _tidy(self, stores: ShardStores, since: int) -> None:
        try:
            tidied = await asyncio.to_thread(stores.tidy, since)
        except StoreError as error:
            self._store_failed(error.message)
            return
        self._tell_unreadable()
        for directory in tidied.left:
            self.log.warning("store_left", directory=str(directory))
        if tidied.removed:
            self.log.info("stores_removed", stores=tidied.removed)

    async def _tidy_what_is_held(self, stores: ShardStores) -> None:
        """Tidy, as a standby that has everything."""
        if (record := await self._kept()) is not None:
            await self._tidy(stores, record.since)

    def _leads(self, effect: Lead) -> None:
        """Be the primary from now on."""
        if self._taken is not None and self._store_state == "none":
            self._store_state = "open"
        self.machine = self._primary
        if effect.entries is not None:
            self.log.info("store_restored", entries=effect.entries, ms=round(self.now() - effect.since_ms))
        self.log.info("leading", epoch=effect.epoch)
        self.spawn(self._learn_slots())
        self.spawn(self._learn_members())

    def made(self, epoch: int, *, keeps: bool, on_disk: bool) -> ShardState:
        """Return a new machine of the shard."""
        spec = self.specification
        incarnation = epoch + EPOCH_ORIGIN_MS
        feeds = spec.compiled.feeds
        demand = ChannelDemand(
            self.identity,
            incarnation,
            now_ms=self.now(),
            members=Members(0, []),
            spread=spec.spread,
            linger_ms=feeds.linger_ms,
        )
        for reference in spec.compiled.reducers:
            with contextlib.suppress(HarborError):  # it is logged, and tried again with the first event
                self._functions.resolve(reference)
        return ShardState(
            self.identity,
            incarnation,
            epoch=epoch,
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
            keeps=keeps,
            undurable="" if on_disk else "unavailable" if self._store_state == "unavailable" else "off",
            mutations=spec.compiled.mutations,
            place=lambda key: spec.slots.shard(CanonicalKey(key)),
            history=partial(
                History,
                max_bytes=spec.config.storage.history.max_bytes,
                max_age_ms=spec.config.storage.history.max_age_ms,
            ),
        )

    async def _warm_up(self) -> None:
        """Learn as a standby what a primary has to know at once, and find those that tell it."""
        self._members = await self.peers.members()

    async def _learn_members(self) -> None:
        members, slots = self._members, self._primary.slots.map or self.specification.slots
        if members is not None:
            self._hear(members)
        self._proclaim(slots, self.specification.gateways, [] if members is None else members.ingestors)
        members = await self.peers.members()
        self._proclaim(slots, [], members.ingestors)
        self._hear(members)
        gateways = await self.peers.gateways()
        self._proclaim(slots, gateways, [])
        self._hear(Gateways(gateways))

    async def _learn_slots(self) -> None:
        """Ask which slot map counts, before which nothing is taken in where there was one; while slots move, the supervisor says more."""
        slots = await self.peers.slot_map()
        self._proclaim(slots, [], [])
        self._hear(Rebalance("release", slots, 0))

    def _hear(self, message: Message) -> None:
        """Take what the supervisor says, unless this actor has left meanwhile."""
        if not self._closed:
            self.take(message)

    def _proclaim(self, slots: SlotMap, gateways: list[str], ingestors: list[str]) -> None:
        """Tell actors who leads, each once: their calls to the one before need not run into their limits."""
        if self._may_be_alone:
            return
        coordinators = [f"coordinator-{n}" for n in range(slots.coordinators)]
        shards = [f"shard-{n}" for n in range(slots.shards) if n != self._index]
        message = Primary(self.identity, self.address, self._primary.incarnation)
        for actor in [*coordinators, *shards, *gateways, *ingestors]:
            if actor not in self._proclaimed:
                self._proclaimed.add(actor)
                self.spawn(self._tell_primary(actor, message))

    async def _tell_primary(self, actor: str, message: Primary) -> None:
        for _ in range(PROCLAIM_TRIES):
            try:
                await self.peers.call(actor, message)
            except Unreachable:
                await asyncio.sleep(PROCLAIM_PAUSE_S)
            else:
                return

    @property
    def _primary(self) -> ShardState:
        assert self._shard is not None, "only the primary has a machine"
        return self._shard

    async def retire(self) -> None:
        """Remove what is stored here: the shard's slots are others', who have stored them, and the actor is about to be ended."""
        was_closed, self._closed = self._closed, True
        if self._taken is not None and not was_closed:
            async with self._sync_lock:
                await asyncio.to_thread(self._taken.store.close)  # a copy that is being made is waited for
        if self._stores is not None:
            await self._tidy(self._stores, 0)

    async def leave(self, _grace_s: float) -> None:
        """Write everything through and close the store: the node is about to go. Nothing is taken from now on."""
        if self._closed:
            return
        self._closed = True
        if self._taken is not None:
            async with self._sync_lock:
                try:
                    await asyncio.to_thread(self._taken.store.sync)
                except StoreError as error:
                    self.log.sampled("store_failed", "store", reason=error.message)
                await asyncio.to_thread(self._taken.store.close)  # a copy that is being made is waited for
            self.log.info("store_closed")

    # --- steps ---------------------------------------------------------------------------------------------------

    def take(self, message: Message) -> Answer | asyncio.Future[Answer]:
        """Take a message from another actor."""
        if self._closed:
            raise UnavailableError("the shard's node is going")
        if isinstance(message, Replicate):
            answer, effects = self._holder.replicate(message, self.now())
            self._carry_out(effects)
            return answer
        if (refusal := self._holder.refusal(message)) is not None:
            return refusal
        machine = self._primary
        match message:
            case Batch():
                started = time.perf_counter()
                answer, effects = machine.batch(message, self.now())
                self._apply.observe(time.perf_counter() - started)
            case Requests():
                answer, effects = machine.requests(message, self.now())
            case Announce():
                answer, effects = machine.announce(message, self.now())
            case Gateways():
                answer, effects = machine.gateways(message, self.now())
            case Members():
                answer, effects = machine.members(message, self.now())
            case Overlays():
                answer, effects = machine.overlays(message, self.now())
            case SlotSlice():
                answer, effects = machine.slot_slice(message, self.now())
            case Rebalance():
                answer, effects = machine.rebalance(message, self.now())
            case _:
                raise AssertionError(f"a shard does not take {type(message).__name__}")
        later: asyncio.Future[Answer] = self._loop.create_future()
        self._carry_out(self._holder.step(effects, self.now(), ticket=later, answer=answer))
        return later.result() if later.done() else later

    def run(self, effects: Iterable[Any]) -> None:
        """Commit what the machine has done, and let out what may leave. One that has left lets nothing out."""
        if not self._closed:
            self._carry_out(self._holder.step(effects, self.now()))

    def _carry_out(self, effects: Iterable[Any]) -> None:
        """Do what the holder wants, and keep its time."""
        if self._closed:
            return
        for effect in effects:
            match effect:
                case Reply(ticket=later, answer=answer):
                    if not later.done():  # its caller may have given up
                        later.set_result(answer)
                case Send(message=Replicate()):
                    self.spawn(self._ship(effect))
                case Send():
                    self.send(effect)
                case Committed():
                    self._written()
                case _:
                    self.effect(effect)
        self.arm()
        self._arm_beat()

    async def _ship(self, effect: Send) -> None:
        answer: Answer | None = None
        with contextlib.suppress(Unreachable):
            answer = await self.peers.call_actor(effect.to, effect.message)
        if not self._closed:
            self._carry_out(self._holder.shipped(effect.message, answer, self.now()))

    def _arm_beat(self) -> None:
        due = self._holder.deadline()
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None
        if due is not None:
            self._beat = self.tasks.later(max(due - self.now(), 0.0) / 1000.0, self._beats)

    def _beats(self) -> None:
        self._beat = None
        if not self._closed:
            self._carry_out(self._holder.wake(self.now()))

    def effect(self, effect: Any) -> None:
        """Start a call, write through, or say what has become of the role or the store."""
        match effect:
            case StartFetch():
                self.spawn(self._fetched(effect))
            case StartMutation():
                self.spawn(self._mutated(effect))
            case Sync():
                self._sync_now()
            case News():
                self._news.set()
            case Lead():
                self._leads(effect)
            case Follow():
                self.spawn(self._warm_up())
            case StepDown(reason=reason):
                self._step_down(reason)
            case Diverged(reason=reason):
                self.log.error("standby_diverged", reason=reason)
            case Filled(records=records):
                self.log.info("standby_whole", records=records)
                if self._stores is not None:
                    self.spawn(self._tidy_what_is_held(self._stores))
            case StandbyIs(actor=actor, is_in_sync=True):
                self.log.info("standby_in_sync", actor=actor)
            case StandbyIs(actor=actor, lost=lost):
                if lost:
                    self.log.warning("standby_lost", actor=actor, reason=lost)
            case StoreFailed(reason=reason):
                self._store_failed(reason)
            case StoreLost(store=store):
                self._stores_lost += 1
                if store:  # otherwise the supervisor has said so
                    wait_s = self.specification.config.storage.wait_ms / 1000.0
                    self.log.error("store_lost", store=store, waited_s=wait_s)
            case _:
                raise AssertionError(f"a shard has no such effect: {effect!r}")

    # --- the store -----------------------------------------------------------------------------------------------

    def _store_failed(self, reason: str) -> None:
        self._store_errors += 1
        self.log.sampled("store_failed", "store", reason=reason)

    def _written(self) -> None:
        """Something was committed: sync it in time."""
        if self._taken is None:
            return
        self._unsynced = self._sync != "always"
        if self._sync == "window" and not self._syncing:
            self._syncing = True
            self.spawn(self._sync_later(self._taken.store))

    async def _sync_later(self, store: LmdbStore) -> None:
        """Write through what waits no longer than a window, unless writes that wait for it were quicker."""
        await asyncio.sleep(SYNC_S)
        self._syncing = False
        if self._unsynced:
            await self._write_through(store)

    def _sync_now(self) -> None:
        if self._closed:
            return  # who waits asks the next life
        if self._taken is not None and (self._unsynced or self._sync_lock.locked()):
            self.spawn(self._acknowledge(self._taken.store))
        else:
            self.run(self._primary.synced(self.now()))

    async def _acknowledge(self, store: LmdbStore) -> None:
        failed = not await self._write_through(store)
        if not self._closed:
            self.run(self._primary.synced(self.now(), failed=failed))

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
                self._store_failed(error.message)
                return False
        self._synced.observe(time.perf_counter() - started)
        return True

    async def _client(self, name: str) -> "ServiceClient":
        """Return the client of a service. Its libraries take a fifth of a start to load: on a thread, when one is first asked."""
        if name not in self._clients:
            services = await asyncio.to_thread(importlib.import_module, "cluster.services")
            service = self._services[name]
            client = services.ServiceClient(
                name, service.base_url, service.headers, service.timeout_ms, max_connections=service.concurrency
            )
            self._clients.setdefault(name, client)
        return self._clients[name]

    async def _fetched(self, call: StartFetch) -> None:
        started = time.perf_counter()
        request = call.request
        result: Response | UpstreamError
        try:
            if isinstance(request, FunctionRequest):
                result = Response(await self._run_function(request))
            else:
                result = await (await self._client(request.service)).fetch(request)
        except UpstreamError as error:
            result = error
            self.log.sampled("fetch_failed", request.service or "function", reason=error.message)
        self._fetch.observe(time.perf_counter() - started)
        self.run(self._primary.fetched(call, result, self.now()))

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
                result = await (await self._client(request.service)).send(request)
        except UpstreamError as error:
            result = error
            self.log.sampled("mutation_failed", request.service or "function", reason=error.message)
        self.run(self._primary.mutated(call, result, self.now()))

    async def _run_function(self, request: FunctionRequest) -> bytes:
        page_param = request.page_param if request.is_paged else ABSENT
        return await self._functions.fetch(request.function, request.captures, page_param, FUNCTION_TIMEOUT_MS)

    def _reduce(self, reference: str, old: object, event: dict[str, object]) -> object:
        new = self._functions.reduce(reference, old, Event(event))
        return UNCHANGED if new is None else None if new is NULL else new

    async def copy(self, step: Step, backup: str, number: int) -> bytes:
        """Make a step of a backup (`wire.backup`)."""
        if self._closed or self._shard is None:
            return encode_answer(Refused(ErrorCode.UNAVAILABLE, f"{self.address} is not the primary"))
        store = None if self._taken is None else self._taken.store
        answer = await self._copies.step(store, step, backup, number)
        if isinstance(answer, Done) and (slots := self._shard.slots.map) is not None:
            answer = Done(slots.epoch)
        return encode_answer(answer)

    async def status(self) -> dict[str, object]:
        """Say what `/v1/cluster` shows of this actor."""
        machine, replication, following = self._shard, self._holder.replication, self._holder.following
        standby = {"actor": replication.standby, "life": replication.life, "in_sync": replication.is_in_sync}
        return {
            **self.about(),
            "life": self._holder.life,
            "epoch": replication.epoch if following is None else following.epoch,
            "role": str(self._holder.role),
            "keys": 0 if machine is None else len(machine.cache),
            "lag_ms": 0 if machine is None else round(machine.lag_ms),
            "members_epoch": None if machine is None else machine.demand.epoch,
            "store": self._store_state,
            "standby": standby if replication.standby else None,
            "offline": []
            if machine is None
            else [service for service in self._services if machine.offline_ms(service, self.now())],
        }

    async def samples(self) -> bytes:
        """Return the metrics, encoded."""
        metrics = self._metrics
        if not self._closed:
            metrics.set("journal_bytes", 0 if self._taken is None else self._taken.store.size())
            metrics.set("journal_errors_total", self._store_errors)
        metrics.set("stores_lost_total", self._stores_lost)
        metrics.set("replication_divergences_total", self._holder.divergences)
        if self._shard is not None:
            self._sample(self._shard)
        return metrics.encode()

    def _sample(self, machine: ShardState) -> None:
        metrics, replication = self._metrics, self._holder.replication
        if self.specification.config.cluster.replicas or not replication.is_alone:
            metrics.set("shard_standby", float(replication.is_in_sync))
            metrics.set("replication_lag_seconds", replication.lag_ms / 1000.0)
            metrics.set("replication_records_total", replication.records_sent)
            metrics.set("lease_expirations_total", replication.expirations)
        metrics.set("shard_entries", len(machine.cache))
        metrics.set("shard_bytes", machine.memory.bytes())
        busy, machine.slot_operations = machine.slot_operations, Counter()
        metrics.set("shard_hot_slot_share", max(busy.values()) / busy.total() if busy else 0.0)
        metrics.set("presence_members", machine.presence.member_count)
        metrics.set("evictions_total", machine.cache.collected, reason="collected")
        for reason, count in machine.evictions.items():
            metrics.set("evictions_total", count, reason=reason)
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
