"""The shard: owns the entries of its slots, applies what changes them, and tells the gateways that watch.

One instance is one life of the actor. Commits are numbered: every change of an entry's view takes the next offset of the shard and the
entry's next version; a new entry starts at its offset, so versions are never reused for a key. Without a store a life begins empty
at `epoch * 2^13` (epochs are milliseconds), which is above anything an earlier life can have reached. With one it has what that held, and
an entry's first change goes to a version of the new life: should the last commits not have reached the disk, what readers have of them
is not taken for what comes now.

It is one thing because every path below ends in the same commit, and what a commit must do may not differ between them: number the
change, note it in history, keep it for fetches under way, and pend it on the link of every watcher.

Fetches run beside streams. One starts only after the key's channels are joined; operations received since then, and for the longest
they may have been under way before, are applied at once and replayed over the response.

What must not live here: what operations do (`operation`), the life of an entry (`query_cache`), what waits for a gateway
(`gateway_link`), which channels to join (`channel_demand`), where entities occur (`entity_index`), HTTP.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from heapq import nsmallest
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

import orjson
from msgspec import Struct, structs

from cluster.core import broadcast, json_patch
from cluster.core.acknowledgement import Acknowledgements, Held, Undurable
from cluster.core.channel_demand import Channel, ChannelDemand
from cluster.core.committed_feeds import CommittedFeeds
from cluster.core.declared_query import DeclaredQueries, FetchRequest, FunctionRequest, Response
from cluster.core.entity_index import EntityIndex, EntityType, Occurrences, Place
from cluster.core.entry import Value, compact
from cluster.core.feed import stem
from cluster.core.filters import Filter
from cluster.core.gateway_link import (
    ANSWER_BYTES,
    SLICE_BYTES,
    SLICE_ENTRIES,
    GatewayLink,
    content_bytes,
    encode_pending,
)
from cluster.core.history import History, Past
from cluster.core.infinite import Direction, where_held
from cluster.core.key_tree import Branches
from cluster.core.link import Announcements, Foreign, Incoming, New, Repeat
from cluster.core.memory import Memory
from cluster.core.messages import (
    Absent,
    Act,
    Announce,
    Answer,
    Answered,
    Answers,
    Batch,
    BatchCommitted,
    BranchList,
    ChangeSet,
    ChangeSetTaken,
    Claimed,
    Demand,
    Edit,
    EntryView,
    Erase,
    Failure,
    FeedRange,
    Full,
    Gateways,
    Item,
    KeyList,
    ListBranches,
    ListKeys,
    ListMembers,
    ListMutations,
    ListTopics,
    Matched,
    Members,
    Mend,
    Missed,
    MissedKeys,
    Mutate,
    MutationView,
    Noted,
    Outdated,
    Overlays,
    Payload,
    Ping,
    PresenceNews,
    PresenceResume,
    Progress,
    Read,
    Ready,
    Rebalance,
    Refused,
    Request,
    Requests,
    Rest,
    Send,
    ServiceState,
    SlotSlice,
    Snapshot,
    Undo,
    Unwatch,
    Verified,
    Verify,
    Watch,
    Write,
    Written,
)
from cluster.core.mutation import DeclaredMutation
from cluster.core.mutation_queue import MutationRecord, StartMutation
from cluster.core.operation import (
    Append,
    Invalidate,
    Merge,
    Operation,
    Reducer,
    Set,
    apply_all,
    is_unrepeatable,
)
from cluster.core.overlay import Remembered
from cluster.core.owner import owner
from cluster.core.placement import SlotMap, shard_at, slot
from cluster.core.presence import PresenceTopics
from cluster.core.query_cache import CANCELLED, Fetch, Observer, QueryCache, head
from cluster.core.query_key import CanonicalKey, KeyMatcher, elements, parse
from cluster.core.recent_values import RecentValues
from cluster.core.relation import Relations
from cluster.core.replay import Replay
from cluster.core.service_health import OFFLINE_AFTER, UNREACHABLE, ServiceHealth
from cluster.core.shard_entry import RESTORED, UNCERTAIN, WRITE, ShardEntry, error_of
from cluster.core.shard_mutations import ORIGIN, ShardMutations
from cluster.core.shard_slots import ShardSlots
from cluster.core.slot_slice import SLICE_BYTES as MOVED_BYTES
from cluster.core.slot_slice import Content, MovedEntry, MovedOverlay, past_slices, whole_pasts
from cluster.core.structural_sharing import difference, share
from cluster.core.sweep import SLICE, Sweeps
from cluster.core.tenant import NOBODYS, Tenant
from cluster.core.three_way_merge import three_way_merge
from cluster.core.transaction import Result, Stored, StoredEntry, Transaction, Unstored
from cluster.core.work import MAX_STEPS, Work, check_count
from cluster.errors import ErrorCode, HarborError, LimitError, OperationError, UpstreamError

EPOCH_SHIFT = 13
"""Offsets per millisecond of epoch. 2^53, the largest integer a browser holds exactly, lasts until 2059; no shard commits 8 million
changes a second."""
RETRY_MS = 150.0
SEALED_MS = 20.0
"""Between tries of what comes while slots move: a cut takes some tens of milliseconds from here."""
DRAIN_MS = 500.0
"""How long a cut waits, at most, for gateways to take what they were to be told: it is made good by what they are told after it."""
GATEWAY_GONE_MS = 60_000.0
"""A gateway that has not answered for this long loses its watches; should it live, it is told to start over."""
JOIN_WAIT_MS = 1_000.0
"""How long a fetch waits for its channels to be joined, should an ingestor be starting."""
REQUEST_MEMORY_MS = 600_000.0
"""Results of writes are kept this long for repeats."""
MOST_RESULTS = 250_000
"""Beyond it the oldest are forgotten earlier: some 90 MB, and a minute and a half of as many writes as a shard can take."""
MAX_EDITED_BYTES = 16 * 1024 * 1024
"""What clients' edits may make of an entry: as much as a service may answer with. A write in one piece is no longer than its frame."""
MAX_FETCH_TRIES = 3
UNLAID_MS = 5_000.0
"""How long a life waits to hear of what lay over an entry in the one before: until homes of mutations have found out about it."""
EVICT_SLICE = 500
"""Entries evicted per wake."""
EVICT_LOOKS = 5_000
"""Entries looked at for it: those that are being fetched do not give way."""
MAX_REPLAYED = 16
"""Operations of a client's edit that are applied again over a fetch's response; what a longer one made takes its place, and one more follows."""
MAX_RECENT = 1_000
"""Groups of operations kept for a response; with more, another fetch follows it."""
MAX_RECENT_ENTITIES = 10_000
KNOWN_HEADS = 10_000
"""First elements of keys of which it is remembered whether channels may feed them: clients choose them. Beyond it they are learnt anew."""
TOO_LARGE: Final = Failure(
    ErrorCode.TOO_LARGE,
    f"an edit may make an entry of at most {MAX_EDITED_BYTES} bytes",
    limit=("value", MAX_EDITED_BYTES),
)
FORGOTTEN: Final[deque[tuple[float, list[Operation]]]] = deque(maxlen=0)
"""Of an entry whose recent operations may not be replayed, nor what made it."""


class StartFetch(Struct, frozen=True):
    """Effect: send `request`; feed what comes of it to `fetched`, with this."""

    key: str
    id: int
    request: FetchRequest | FunctionRequest


class Commit(Struct, frozen=True):
    """Effect: store `transaction`, before any effect after it; where that fails, say so to `not_stored`."""

    transaction: Transaction


class Sync(Struct, frozen=True):
    """Effect: write through what was committed by now, then say so to `synced`. None other comes before that."""


Effect = Send | StartFetch | StartMutation | Commit | Sync
T = TypeVar("T")


class Feeds(Protocol):
    """Knows which channels feed which keys (`rule.FeedIndex`)."""

    def channels_for(self, key: list[Any]) -> list[Channel]:
        """Return the channels to join for a key to be live."""
        ...

    def joins_for(self, first: str | None) -> bool:
        """Whether any channel may be to be joined for keys that begin with a text; None: with something else."""
        ...

    def channels_under(self, prefix: list[Any]) -> list[Channel]:
        """Return the channels that may create entries under a prefix."""
        ...

    def fed_by(self, source: str, channel: str | None, key: list[Any]) -> bool:
        """Whether a source (any of its channels where `channel` is None) feeds a key."""
        ...

    def heads_fed_by(self, source: str, channel: str | None) -> list[str] | None:
        """Return first elements of which every key has one that a source feeds; None: it may feed any key."""
        ...

    def entities_fed_by(self, source: str, channel: str | None) -> set[str] | None:
        """Return the types of entities that a source's events change; None: any."""
        ...


class _Waiter(Struct, frozen=True):
    """A reader that waits for a fetch: request `id` of a gateway."""

    gateway: str
    id: int
    page: Direction | None = None
    """What it wants is one more page, which is to be fetched when the present fetch is over."""


class _Then(Struct, frozen=True):
    """A reader that waits for a fetch to end before its own can begin."""

    waiter: _Waiter


class ShardState:
    """See the module. It owns a `QueryCache` and carries out what that asks for."""

    def __init__(  # noqa: PLR0915 - it has many parts, named here one by one
        self,
        identity: str,
        incarnation: int,
        *,
        epoch: int,
        queries: DeclaredQueries,
        feeds: Feeds,
        demand: ChannelDemand,
        gateways: Sequence[str],
        replay_ms: float,
        entities: Mapping[str, EntityType] | None = None,
        relations: Relations | None = None,
        origins: Sequence[str] = (),
        memory: Memory | None = None,
        limits: Mapping[str, int] | None = None,
        reducer: Reducer | None = None,
        keeps: bool = False,
        undurable: Undurable | None = None,
        mutations: Mapping[str, DeclaredMutation] | None = None,
        shards: int = 1,
        place: Callable[[str], int] = lambda _: 0,
        history: Callable[[int, int], History] = History,
    ) -> None:
        """`replay_ms`: the longest an operation may have been under way (the largest `max_wait`); `limits`: calls at once, by service.

        `keeps`: it has a store; `undurable`: why nothing is on a disk, "": what is kept is. `place`: which of the `shards` has a key.
        `history` makes it, from the epoch and the offset at which it begins.
        """
        self.identity = identity
        self.incarnation = incarnation
        self.epoch = epoch
        self.offset = self._begun = epoch << EPOCH_SHIFT
        """`_begun`: versions of this life are greater."""
        self.cache: QueryCache[ShardEntry] = QueryCache(self)
        for service, calls in (limits or {}).items():
            self.cache.limit(service, calls)
        self.history = history(epoch, self.offset)
        self.demand = demand
        self.memory = memory or Memory()
        self.entities = EntityIndex(entities or {})
        self._relations = relations or Relations({})
        self._origins = origins
        self._reducer = reducer
        self._health = ServiceHealth()
        self._sweeps = Sweeps()
        self._queries = queries
        self._feeds = feeds
        self._replay_ms = replay_ms
        self._links: dict[str, GatewayLink] = {}
        self._incoming: dict[str, Incoming] = {}
        self._watchers: dict[str, list[GatewayLink]] = {}
        """Gateways by watched key."""
        self._channels: dict[str, list[Channel]] = {}
        """Channels needed, by watched key."""
        self._joins: dict[str | None, bool] = {}
        """Whether channels may be to be joined, by the head of a key."""
        self._prefix_channels: dict[tuple[str, int], list[Channel]] = {}
        self._results: OrderedDict[str, Result] = OrderedDict()
        """By request id, oldest first."""
        self._unstored = Unstored(keeps=keeps)
        self.acknowledgements = Acknowledgements(("" if keeps else "off") if undurable is None else undurable)
        self.slots = ShardSlots(identity, incarnation, self, self._unstored)
        self._place = place
        self.pasts: dict[int, Past] = {}
        """Histories of shards that are no more."""
        self._late: list[Callable[[float], list[Effect]]] = []
        """What came while nothing is taken in."""
        self._is_late = False
        """That is being made good, in one step."""
        self._lets_go = False
        self._recent_values = RecentValues()
        self._committed = CommittedFeeds(shard_at(identity), incarnation, self._unstored, self._is_needed)
        self.mutations = ShardMutations(
            identity,
            incarnation,
            shards=shards,
            place=self._shard_of,
            declared=mutations or {},
            bases=self,
            changed=self._unstored.mutation,
        )
        self._unsendable: set[str] = set()
        """Mutations of the last transaction, if it could not be stored."""
        self._unlaid: dict[str, float] = {}
        """Entries over which something lay in the life before, of which nothing was heard yet, and until when that is waited for."""
        self._uncovered: dict[str, None] = {}
        """Keys of entries that were dropped while something lay over them."""
        self._evicting = False
        """Entries are still too many, or too large."""
        self._held: dict[str, ShardEntry] = {}
        """Entries whose fetch waits for channels to be joined."""
        self._recent_entities: deque[tuple[float, str, Any, Tenant, bytes]] = deque()
        """(receipt, type, id, whose, value), for responses that may not hold them yet."""
        self._effects: list[Effect] = []
        self._gateways = list(gateways)
        self._announcements = Announcements(identity, incarnation, [*self._gateways, *self.mutations.peers])
        self.presence = PresenceTopics(self._gateways)
        self.operations_dropped: Counter[str] = Counter()
        self.slot_operations: Counter[int] = Counter()
        """Operations of batches, before folding, by slot, since the shell last took them."""
        self.evictions: Counter[str] = Counter()
        self.invalidations = 0
        self.resets = 0
        self.reads: Counter[str] = Counter()
        self.fetches: Counter[str] = Counter()
        self.lag_ms = 0.0
        """How old the oldest event of the last batch was when it was committed."""

    @property
    def _now_ms(self) -> float:
        return self.cache.now_ms

    @_now_ms.setter
    def _now_ms(self, now_ms: float) -> None:
        self.cache.now_ms = now_ms

    # --- what is stored ------------------------------------------------------------------------------------------

    def restore(self, stored: Stored, now_ms: float, owns: Callable[[str], bool]) -> None:
        """Begin with what a store holds; to be called before anything else. `owns`: whether a key belongs to this shard."""
        self._now_ms = now_ms
        self.slots.restore(stored)
        self.pasts.update(stored.pasts)
        gone: list[StoredEntry] = []
        for each in stored.entries:
            if not (owns(each.key) if stored.map is None else self._shard_of(each.key) == self._committed.shard):
                self._unstored.entry(each.key)
                continue
            if not each.data:
                gone.append(each)
                continue
            entry = self._restored(each, RESTORED + each.origin)
            if each.doubt is None and (channels := self._channels_for(entry.key)):
                # They were joined: what is left unjoined goes out of date, as ever, after its linger.
                self.demand.need(channels, 0.0)
                self.demand.release(channels, now_ms)
        self._committed.restore(stored)
        self._results.update(stored.results)
        self.history.restore(stored.lives, stored.first, stored.changes, now_ms, stored.steps)
        self._unstored.changes = self.history.next
        if stored.offset > self.offset:  # slots came from a shard whose epoch ran ahead, where clocks disagree
            self.offset = stored.offset
            self.history.rise(stored.offset)
        for each in gone:  # who comes back is told; what lay over it may come to lie there again
            self.offset += 1
            self._unstored.entry(each.key)
            self.history.record(each.key, each.version, now_ms)
        self.mutations.restore(stored.mutations, now_ms)
        if stored.map is not None:
            self._count_shards(stored.map.shards)

    def _restored(self, stored: StoredEntry, origin: str) -> ShardEntry:
        """Make an entry of what lasts of it."""
        entry = self._create(stored.key)
        self.cache.written(entry, Value.from_json(stored.data), stored.data_updated_at)
        entry.version, entry.origin, entry.fetched_at = stored.version, origin, stored.fetched_at
        entry.etag, entry.moved_at = stored.etag, self._now_ms
        if entry.options.own_service:
            self.cache.unheard(entry.options.own_service)
        if stored.is_overlaid and stored.shown and entry.overlay is None:
            entry.shown = Value.from_json(stored.shown)
            entry.overlay = Remembered(entry.shown)
            self._unlaid[entry.key] = self._now_ms + UNLAID_MS
        self.memory.replaced(entry)
        if self.entities.types:
            self.entities.replaced(entry.key, entry.covering, stored.data)
        if stored.doubt is not None:
            entry.is_invalidated = True
            entry.cause, entry.cause_at = stored.doubt
        return entry

    def not_stored(self, transaction: Transaction) -> None:
        """A transaction could not be stored; what was in it goes with the next.

        Mutations in it are not sent by this step: `may_send` says so.
        """
        self._unsendable = set(transaction.mutations)
        self._unstored.failed(transaction)
        self.acknowledgements.not_stored(transaction.results)

    def synced(self, now_ms: float, *, failed: bool = False) -> list[Effect]:
        """What `Sync` asked for is done, or could not be: acknowledge the writes that waited for it."""
        self._now_ms = now_ms
        for held in self.acknowledgements.synced(failed=failed):
            if not held.gateway and self.slots.synced(failed=failed):
                self.sync()
            link = self._links.get(held.gateway)
            if link is not None:
                link.answer(held.id, held.payload)
        self._flush()
        return self._taken()

    def _stored(self, key: str) -> StoredEntry | None:
        entry = self.cache.get(key)
        return None if entry is None else entry.stored()

    # --- batches -------------------------------------------------------------------------------------------------

    def batch(self, message: Batch, now_ms: float) -> tuple[Answer, list[Effect]]:
        """Commit what a window folded."""
        self._now_ms = now_ms
        incoming = self._incoming.setdefault(message.header.sender, Incoming(self.incarnation))
        if self.slots.is_sealed and not incoming.is_repeat(message.header):
            return Full(SEALED_MS), []
        match incoming.admit(message.header):
            case Foreign():
                return Refused(self.incarnation), []
            case Repeat(answer):
                return answer, []
        # Batches are repeated as they were, so what has one of its ranges has all of it.
        if not any(self._committed.has(feed) for feed in message.feeds):
            self._apply(message)
        for checkpoint in message.checkpoints:
            self._committed.check(checkpoint)
        for claim in message.claims:
            self._committed.claim(claim, now_ms)
        self._flush()
        return incoming.answered(BatchCommitted(self.incarnation, self.offset)), self._taken()

    def _apply(self, message: Batch) -> None:
        if message.keys:
            self.lag_ms = self._now_ms - message.oldest_ms
        late: list[tuple[str, str, list[Operation], int]] = []
        for item in message.keys:
            origin = self._origins[item.origin] if 0 <= item.origin < len(self._origins) else "stream:"
            if broadcast.is_broadcast(item.key):
                late.append((item.key, origin, item.operations, item.count))
                continue
            self.slot_operations[slot(CanonicalKey(item.key))] += item.count
            operations = item.operations
            if Invalidate in map(type, operations):
                late.append((item.key, origin, [each for each in operations if isinstance(each, Invalidate)], 0))
                operations = [operation for operation in operations if not isinstance(operation, Invalidate)]
            if operations:
                self._operate(item.key, operations, item.count, message.oldest_ms, origin)
        for key, origin, operations, count in late:
            self._broadcast(key, origin, operations, count, message.oldest_ms)
        for feed in message.feeds:
            self._advance(feed)

    def _operate(
        self,
        key: str,
        operations: list[Operation],
        count: int,
        oldest_ms: float,
        origin: str,
        *,
        remember: bool = True,
    ) -> None:
        entry = self.cache.get(key)
        if remember and entry is not None and entry.query is not None:
            self._remember(entry, operations)
        is_paged = entry is not None and entry.query is not None and entry.query.paging is not None
        self.mutations.laid.came(key, operations, None if entry is None else entry.value, self._now_ms)
        placed = where_held if is_paged else None
        outcome = apply_all(operations, None if entry is None else entry.value, self._reducer, placed)
        if outcome.dropped:
            self.operations_dropped.update(outcome.dropped)
        if not outcome.changed:
            return
        if outcome.value is None:
            if entry is not None:
                self._remove(entry)
            return
        is_new = entry is None
        if entry is None:
            entry = self._create(key)
        is_whole = outcome.patch is None and entry.query is None
        self.cache.written(entry, outcome.value, is_edit=not is_whole)
        self._commit(entry, outcome.patch, count, oldest_ms, origin)
        if is_new and entry.query is not None and not _is_whole(operations[0]):
            # It holds what came since now; the first reader has the rest fetched.
            self._doubt(entry, "created by events")
            self._remember(entry, operations)

    def _remember(self, entry: ShardEntry, operations: list[Operation]) -> None:
        """Keep what a fetch's response may not hold yet."""
        keep_from = self._now_ms - self._replay_ms
        fetch = entry.fetch
        if fetch is not None and _waits_for_response(fetch):
            keep_from = min(keep_from, fetch.since_ms)
        recent = entry.recent
        if recent is None or recent is FORGOTTEN:
            recent = entry.recent = deque()
        while recent and recent[0][0] < keep_from:
            recent.popleft()
        recent.append((self._now_ms, operations))
        if len(recent) > MAX_RECENT:
            recent.popleft()
            if fetch is not None:
                fetch.again = True

    def _broadcast(self, name: str, origin: str, operations: list[Operation], count: int, oldest_ms: float) -> None:
        """Carry out what is not about one key, and invalidations of one."""
        if not broadcast.is_broadcast(name):
            entry = self.cache.get(name)
            for operation in operations:
                assert isinstance(operation, Invalidate)
                if entry is not None:
                    self._invalidate(entry, operation.refetch, origin, self._now_ms)
            return
        kind, about = broadcast.read(name)
        for operation in operations:
            match kind, operation:
                case "under", Invalidate(refetch=refetch):
                    matcher = KeyMatcher(about)
                    self._sweep_invalid(self.cache.under(about), matcher.matches, refetch, origin)
                case "relation", Invalidate(refetch=refetch):
                    if about[0] not in self._relations:
                        self.operations_dropped["unknown_relation"] += 1
                        continue
                    related = self._relations.related(*about)
                    self._sweep_invalid(self._under_any(related.heads), related.matches, refetch, origin)
                case "entity", Merge(value=value):
                    tenant = Tenant(about[2]) if len(about) > 2 else NOBODYS
                    self._entity(about[0], about[1], tenant, value, count, oldest_ms, origin)
                case "confirm", Append():
                    self.mutations.heard(about[0], [operation], self._now_ms)
                case _:
                    raise AssertionError(f"{operation!r} is not for {name}")

    def _entity(
        self, type_: str, known: Any, tenant: Tenant, value: bytes, count: int, oldest_ms: float, origin: str
    ) -> None:
        """Update every occurrence of an entity, in what is a tenant's."""
        by = (known,) if isinstance(known, bool) else known
        self._remember_entity(type_, by, tenant, value)
        for key in self.entities.entries(type_, by):
            entry = self.cache.get(key) if tenant.holds(key) else None
            if entry is None or entry.value is None:
                continue
            try:
                places = self.entities.places(key, entry.covering, entry.value.object(), type_, by)
            except OperationError:
                continue
            self._count_decoded(entry)
            operations = _updates(places, value)
            if operations:
                self._operate(key, operations, count, oldest_ms, origin, remember=False)

    def _remember_entity(self, type_: str, known: Any, tenant: Tenant, value: bytes) -> None:
        """Keep what responses on their way may not hold yet, wherever they hold the entity."""
        waiting = [fetch for fetch in self.cache.fetches() if _waits_for_response(fetch)]
        keep_from = min((fetch.since_ms for fetch in waiting), default=self._now_ms)
        keep_from = min(keep_from, self._now_ms - self._replay_ms)
        while self._recent_entities and self._recent_entities[0][0] < keep_from:
            self._recent_entities.popleft()
        self._recent_entities.append((self._now_ms, type_, known, tenant, value))
        if len(self._recent_entities) > MAX_RECENT_ENTITIES:
            self._recent_entities.popleft()
            for fetch in waiting:
                fetch.again = True

    def offline_ms(self, service: str, now_ms: float) -> float:
        """Return for how long a service could not be reached for fetches, or for mutations; 0: it can be, as far as known."""
        return max(self._health.offline_ms(service, now_ms), self.mutations.queue.offline_ms(service, now_ms))

    # --- feeds ---------------------------------------------------------------------------------------------------

    def _is_needed(self, channel: Channel) -> bool:
        return self.demand.needs(channel)

    def _advance(self, feed: FeedRange) -> None:
        """Move a feed's cursor; where numbers are missing, reset what the feed feeds."""
        if self._committed.advance(feed):
            source, _, channel = stem(feed.feed).partition("/")
            self._gap(source, channel or None)

    def _gap(self, source: str, channel: str | None) -> None:
        """Events may have been lost: tell watchers, and fetch anew what can be fetched."""
        since_ms = self._now_ms
        cause = f"stream:{source}{'' if channel is None else f'/{channel}'} may have lost events"

        def reset(entry: ShardEntry) -> None:
            if self.cache.get(entry.key) is not entry:
                return
            self.resets += 1
            # What was received before the gap may be older than what was lost in it: replayed over a response, it would undo that.
            while entry.recent and entry.recent[0][0] <= since_ms:
                entry.recent.popleft()
            entry.recent = entry.recent or FORGOTTEN
            for link in self._watchers.get(entry.key, ()):
                link.pend(entry.key, entry.version).reset = True
            if entry.query is not None:
                self._doubt(entry, cause, since_ms)
                if entry.observers:
                    self._fetch(entry, again=True)
                elif entry.fetch is not None:
                    entry.fetch.again = True

        types = self._feeds.entities_fed_by(source, channel)
        self._recent_entities = deque(
            each for each in self._recent_entities if types is not None and each[1] not in types
        )
        held = set(self.entities.holders(set(self.entities.types) if types is None else types))
        holders = [entry for key in held if (entry := self.cache.get(key)) is not None]

        def reset_if_fed(entry: ShardEntry) -> None:
            if entry.key in held or self._feeds.fed_by(source, channel, entry.parsed):
                reset(entry)

        self._sweep(dict.fromkeys([*self._fed(source, channel), *holders]), reset_if_fed)

    def _sweep(self, items: Iterable[T], step: Callable[[T], None], late: Callable[[], None] | None = None) -> bool:
        """Take a step with every item: now if they are few, else in slices and then call `late`. Returns whether it is done."""
        items = list(items)
        if len(items) > SLICE:
            self._sweeps.begin(items, step, late)
            return False
        for item in items:
            step(item)
        return True

    # --- commits -------------------------------------------------------------------------------------------------

    def _create(self, key: str) -> ShardEntry:
        canonical = CanonicalKey(key)
        parsed = elements(canonical)
        covering = self.entities.covering(parsed) if self.entities.types else ()
        entry = ShardEntry(canonical, self._queries.find(parsed), covering)
        entry.overlay = self.mutations.laid.of(canonical)
        self.cache.add(entry)
        self.memory.added(entry)
        for link in self._links.values():
            if key not in link.watched and link.wants(entry):
                self._add_watcher(link, key)
        if key in self._watchers:
            self._observe(entry)
        return entry

    def _observe(self, entry: ShardEntry) -> None:
        """An entry is watched from now on."""
        if not entry.observers:
            self.memory.watch(entry)
            self.cache.observe(entry, Observer(entry.options), mount=False)

    def _rest(self, entry: ShardEntry) -> None:
        """Nobody watches an entry any longer."""
        for observer in entry.observers:
            self.cache.unobserve(observer)
        if entry.fetch is not None and entry.fetch.waiters:
            entry.fetch.abandoned = False  # readers wait for it
        self.memory.rest(entry)

    def _commit(self, entry: ShardEntry, patch: list[bytes] | None, count: int, oldest_ms: float, origin: str) -> None:
        """An entry's data has changed: by RFC 6902 members, or as a whole."""
        self._based(entry, patch, origin)
        entry.moved_at = self._now_ms
        if origin == WRITE:
            self.mutations.laid.silence(entry.key)
        if entry.overlay is None:
            self._number(entry, patch, entry.version, count, oldest_ms)
        else:
            self._show(entry, entry.shown, count=count, oldest_ms=oldest_ms, is_new=True)
        assert entry.value is not None
        self._recent_values.changed(entry.key, entry.version, entry.value)

    def _based(self, entry: ShardEntry, patch: list[bytes] | None, origin: str) -> None:
        """The base of an entry has changed: what is known of it."""
        assert entry.value is not None
        entry.origin = origin
        if patch is None:
            self.memory.replaced(entry)
        else:
            self.memory.edited(entry, sum(map(len, patch)) + len(patch))
        if self.entities.types:
            if patch is None or self.entities.edited(entry.key, entry.covering, patch):
                self.entities.replaced(entry.key, entry.covering, entry.value.json())

    def _show(
        self,
        entry: ShardEntry,
        before: Value | None,
        *,
        mutation: str = "",
        count: int = 1,
        oldest_ms: float = 0.0,
        is_new: bool = False,
    ) -> None:
        """Make an entry's view anew, which was `before`; `is_new`: it is a step whatever that comes to."""
        was_unlaid = self._unlaid.pop(entry.key, None) is not None
        overlay = entry.overlay = self.mutations.laid.of(entry.key)
        entry.shown = None if overlay is None else overlay.shown(entry.value, self._reducer)
        after = entry.visible
        if before is None and after is None:
            return
        patch = _patch(before, after)
        if patch == [] and not is_new:
            return
        if was_unlaid:
            patch = None  # so early in a life those who watch may have nothing yet that a patch would start from
        from_version = 0 if before is None else entry.version
        self._number(entry, patch, from_version, count, oldest_ms, mutation)

    def _number(
        self,
        entry: ShardEntry,
        patch: list[bytes] | None,
        from_version: int,
        count: int,
        oldest_ms: float,
        mutation: str = "",
    ) -> None:
        """The view of an entry takes a step: number it, and tell who watches."""
        self.offset += 1
        entry.version = from_version + 1 if from_version > self._begun else self.offset
        self._unstored.entry(entry.key)
        self.history.record(entry.key, from_version, self._now_ms)
        size = sum(map(len, patch)) + len(patch) if patch is not None else 0
        for link in self._watchers.get(entry.key, ()):
            pending = link.pend(entry.key, from_version)
            pending.coalesced += count
            if mutation:
                pending.mutations[mutation] = None
            if patch is None or pending.patches is None:
                pending.patches = None
            else:
                pending.patches.extend(patch)
                pending.patch_bytes += size
            if oldest_ms and (not link.oldest_ms or oldest_ms < link.oldest_ms):
                link.oldest_ms = oldest_ms

    def _count_decoded(self, entry: ShardEntry) -> None:
        """An entry's value may have been decoded only to be looked at."""
        if entry.is_decoded and not entry.counts_decoded and self.cache.get(entry.key) is entry:
            self.memory.edited(entry, 0)

    def _remove(self, entry: ShardEntry) -> int:
        """Drop an entry. Returns a version greater than its last."""
        self.cache.remove(entry)
        return self.offset

    def removed(self, entry: ShardEntry) -> None:
        """The cache drops an entry."""
        self._unstored.entry(entry.key)
        if not self._lets_go:
            self.offset += 1
            self.history.record(entry.key, entry.version, self._now_ms)
        self.memory.removed(entry)
        self.entities.removed(entry.key)
        self._recent_values.removed(entry.key)
        self._held.pop(entry.key, None)
        self._unlaid.pop(entry.key, None)
        if entry.overlay is not None:
            self._uncovered[entry.key] = None
        for observer in entry.observers:
            observer.entry = None
            observer.unschedule()
        for link in () if self._lets_go else self._watchers.get(entry.key, ()):
            pending = link.pend(entry.key, entry.version)
            pending.patches = None
            pending.reset = False

    def _meta(self, entry: ShardEntry, *, invalidated: bool = False) -> None:
        for link in self._watchers.get(entry.key, ()):
            pending = link.pend(entry.key, entry.version)
            pending.invalidated = pending.invalidated or invalidated

    def _evict(self) -> None:
        """Drop entries that nobody watches until the rest fit."""
        self._evicting = False
        reason = self.memory.excess()
        if reason is None:
            return
        evicted = 0
        for looked_at, entry in enumerate(self.memory.candidates()):
            if evicted >= EVICT_SLICE or looked_at >= EVICT_LOOKS:
                self._evicting = evicted > 0
                return
            assert isinstance(entry, ShardEntry)
            if entry.fetch is not None and (entry.fetch.waiters or not entry.fetch.paused):
                continue
            evicted += 1
            self.evictions[reason] += 1
            self._remove(entry)
            reason = self.memory.excess()
            if reason is None:
                return

    # --- mutations -----------------------------------------------------------------------------------------------

    def base(self, key: str) -> Value | None:
        """Return an entry without what lies over it."""
        entry = self.cache.get(key)
        return None if entry is None else entry.value

    def changed_since(self, key: str, at_ms: float) -> bool:
        """Whether anything but a mutation has changed an entry's base since."""
        entry = self.cache.get(key)
        return entry is not None and entry.moved_at >= at_ms

    def show(self, key: str, mutation: str) -> None:
        """What lies over an entry is another."""
        entry = self.cache.get(key)
        if entry is None:
            overlay = self.mutations.laid.of(key)
            if overlay is None or overlay.shown(None, self._reducer) is None:
                return
            entry = self._create(key)
        self._show(entry, entry.visible, mutation=mutation)
        self._drop_if_nothing(entry)

    def settle(self, key: str, operations: list[Operation], mutation: str, *, is_doubtful: bool) -> None:
        """A mutation is settled: apply what lasts of it, and show that in the same step."""
        invalidates = [each for each in operations if isinstance(each, Invalidate)]
        operations = [each for each in operations if not isinstance(each, Invalidate)]
        entry = self.cache.get(key)
        before = None if entry is None else entry.visible
        if before is not None and entry is not None and entry.overlay is None:
            before = Value.from_json(before.json())  # the base is edited in place
        outcome = apply_all(operations, None if entry is None else entry.value, self._reducer)
        self.operations_dropped.update(outcome.dropped)
        if outcome.changed and outcome.value is None and entry is not None:
            self._remove(entry)
            entry = None
        elif outcome.changed and outcome.value is not None:
            if entry is None:
                entry = self._create(key)
            if entry.query is not None and not is_doubtful:  # else what is fetched now is to be believed
                self._remember(entry, operations)
            self.cache.written(entry, outcome.value, is_edit=True)
            self._based(entry, outcome.patch, f"{ORIGIN}{mutation}")
        if entry is None:
            return
        self._show(entry, before, mutation=mutation, is_new=True)
        if entry.value is not None:
            self._recent_values.changed(entry.key, entry.version, entry.value)
        self._drop_if_nothing(entry)
        if entry.fetch is not None:
            entry.fetch.again = True  # what it brings may be older
        if is_doubtful and outcome.changed:
            invalidates.append(Invalidate(exact=True))
        for each in invalidates:
            self._invalidate(entry, each.refetch, f"{ORIGIN}{mutation}", self._now_ms)

    def _drop_if_nothing(self, entry: ShardEntry) -> None:
        """Drop an entry that was there only for what lay over it."""
        if entry.visible is None and entry.value is None and entry.query is None and entry.overlay is None:
            if self.cache.get(entry.key) is entry:
                self._remove(entry)

    def broadcast(self, name: str, operations: list[Operation]) -> None:
        """Carry out what is not about one key."""
        self._broadcast(name, ORIGIN, operations, 1, 0.0)

    def answer(self, gateway: str, request: int, payload: Payload) -> None:
        """Answer a gateway's request of before."""
        link = self._links.get(gateway)
        if link is not None:
            link.answer(request, payload)

    def tell(self, gateway: str, view: MutationView) -> None:
        """Tell a gateway that asked for a mutation how it is."""
        link = self._links.get(gateway)
        if link is not None:
            link.tasks.append(view)

    def has_lifted(self, lift: str) -> bool:
        """Note that a mutation's lift was applied. Returns whether it had been before."""
        self._forget_results()
        name = f"lift/{lift}"
        known = name in self._results
        self._results[name] = (self._now_ms + REQUEST_MEMORY_MS, Matched(0))
        self._unstored.result(name)
        return known

    def forget_lift(self, lift: str) -> None:
        """A mutation's lift will not come again."""
        if self._results.pop(f"lift/{lift}", None) is not None:
            self._unstored.result(f"lift/{lift}")

    def overlays(self, message: Overlays, now_ms: float) -> tuple[Answer, list[Effect]]:
        """Take what another shard, the home of mutations, says of them."""
        self._now_ms = now_ms
        if self.slots.is_closed:
            return Full(SEALED_MS), []
        answer = self.mutations.overlays(message, now_ms)
        self._flush()
        return answer, self._taken()

    def may_send(self, call: StartMutation) -> bool:
        """Whether a mutation's request may go out: only once it is stored, where there is a store."""
        return call.mutation not in self._unsendable

    def unsent(self, call: StartMutation, now_ms: float) -> list[Effect]:
        """A request was not sent since `may_send` said so."""
        self._now_ms = now_ms
        self.mutations.queue.unsent(call, now_ms)
        self._flush()
        return self._taken()

    def mutated(self, call: StartMutation, result: Response | UpstreamError, now_ms: float) -> list[Effect]:
        """A mutation's request ended: with a response, or not."""
        self._now_ms = now_ms
        if self.slots.is_sealed:
            self._late.append(lambda now_ms: self.mutated(call, result, now_ms))
            return []
        service = call.request.service
        if service and isinstance(result, UpstreamError):
            self._heard(service, result)
        elif service and self._health.reached(service):
            self._toggle(service, offline=False)
        self.mutations.responded(call, result, now_ms)
        self._flush()
        return self._taken()

    # --- invalidation --------------------------------------------------------------------------------------------

    def _doubt(self, entry: ShardEntry, cause: str, since_ms: float | None = None) -> None:
        """Mark an entry as out of date, and say why."""
        if not entry.is_invalidated:
            entry.is_invalidated = True
            entry.cause, entry.cause_at = cause, self._now_ms if since_ms is None else since_ms
            self._unstored.entry(entry.key)

    def _invalidate(self, entry: ShardEntry, refetch: str, cause: str, asked_ms: float) -> None:
        if self.cache.get(entry.key) is not entry:
            return
        active = bool(entry.observers)
        self.invalidations += 1
        if active and entry.is_static:
            return
        if entry.query is not None or entry.data_updated_at <= asked_ms:  # else it was written since
            self._doubt(entry, cause, asked_ms)
            if active:
                self._meta(entry, invalidated=True)
        if entry.query is None:
            return
        if entry.fetch is not None or refetch in ("all", "active" if active else "inactive"):
            self._fetch(entry, again=True)

    def _sweep_invalid(
        self, entries: Iterable[ShardEntry], matches: Callable[[str], bool], refetch: str, cause: str
    ) -> None:
        asked_ms = self._now_ms

        def step(entry: ShardEntry) -> None:
            if matches(entry.key):
                self._invalidate(entry, refetch, cause, asked_ms)

        self._sweep(entries, step)

    def _act(self, link: GatewayLink, request: Act) -> Payload | None:
        """Do something with every entry that a filter matches; the answer may come late."""
        which = request.which
        key = parse(request.key)
        given = Filter(
            key,
            request.exact,
            "active" if which == "active" else "inactive" if which == "inactive" else "all",
            request.stale,
            request.fetch_status,
        ).compiled()
        asked_ms = self._now_ms
        matched = 0

        def step(entry: ShardEntry) -> None:
            nonlocal matched
            if self.cache.get(entry.key) is entry and given.matches(entry, self._now_ms):
                matched += 1
                self._act_on(entry, request, asked_ms)

        candidates: Iterable[ShardEntry] = self.cache.under(key)
        if given.exact is not None:
            entry = self.cache.get(given.exact)
            candidates = () if entry is None else (entry,)
        is_done = self._sweep(candidates, step, lambda: link.answer(request.id, Matched(matched)))
        return Matched(matched) if is_done else None

    def _act_on(self, entry: ShardEntry, request: Act, asked_ms: float) -> None:
        match request.action:
            case "invalidate":
                self._invalidate(entry, request.refetch, "api:invalidate", asked_ms)
            case "refetch":
                if entry.query is not None and self.cache.refetches(entry):
                    self._fetch(entry)
            case "cancel":
                self.cache.cancel(entry, revert=True)
            case "remove":
                self._remove(entry)
            case "reset":
                key = entry.key
                self._remove(entry)
                if key in self._watchers and entry.query is not None:
                    self._fetch(self._create(key))
            case action:
                raise HarborError(ErrorCode.BAD_REQUEST, f"no such action: {action}")

    # --- fetches -------------------------------------------------------------------------------------------------

    def _fetch(self, entry: ShardEntry, *, again: bool = False, waiter: _Waiter | None = None) -> None:
        """Start a fetch, or join the one under way; `again`: what that one returns is already out of date."""
        fetch = entry.fetch
        if fetch is None:
            page = None if waiter is None else waiter.page
            fetch = self.cache.fetch(entry, direction=page)
            if fetch.paused and self._health.may_probe(fetch.service, self._now_ms):
                self.cache.resume(entry)
        elif again and (fetch.running or fetch.failure_count):
            fetch.again = True
        if waiter is None:
            return
        if entry.fetch is not fetch:
            self.settled(waiter, entry, None)  # it needed no call
        elif entry.fetch_status == "paused":
            self._tell_offline(waiter, entry)
        else:
            fetch.abandoned = False
            fetch.waiters.append(waiter)

    def hold(self, entry: ShardEntry) -> float | None:
        """Hold a fetch until the channels of its key are joined."""
        fetch = entry.fetch
        assert fetch is not None
        fetch.since_ms = fetch.since_ms or self._now_ms - self._replay_ms
        is_made = entry.recent is None and entry.data_update_count == 1 and entry.origin.startswith("stream:")
        if is_made and entry.data_updated_at >= fetch.since_ms:
            assert (
                entry.value is not None
            )  # an event has just given it, as a whole: that is not kept where nothing is fetched
            entry.recent = deque([(entry.data_updated_at, [Set(entry.value.json())])])
        if self.demand.settled(self._channels.get(entry.key, [])):
            return None
        self._held[entry.key] = entry
        return self._now_ms + JOIN_WAIT_MS

    def call(self, entry: ShardEntry, fetch: Fetch) -> None:
        """Ask the upstream."""
        assert entry.query is not None
        self._held.pop(entry.key, None)
        if fetch.pages is None and fetch.failure_count and not fetch.tries:
            fetch.since_ms = self._now_ms - self._replay_ms  # this call's response is all there will be
        etag = None
        if entry.etag is not None and entry.etag[1] == entry.version and fetch.pages is None:
            etag = entry.etag[0]
        self._effects.append(StartFetch(entry.key, fetch.id, entry.query.request_for(entry.parsed, fetch.pages, etag)))

    def fetched(self, call: StartFetch, result: Response | UpstreamError, now_ms: float) -> list[Effect]:
        """A request ended: with a response, or not."""
        self._now_ms = now_ms
        if self.slots.is_sealed:
            self._late.append(lambda now_ms: self.fetched(call, result, now_ms))
            return []
        service = call.request.service
        if isinstance(result, UpstreamError):
            if service:
                self._heard(service, result)
        else:
            self.cache.heard(service)
            self.mutations.queue.reached(service, now_ms)
            if self._health.reached(service):
                self._toggle(service, offline=False)
        self.cache.ended(service)
        awaited = self.cache.awaited(call.key, call.id)
        if awaited is not None:
            entry, fetch = awaited
            if isinstance(result, UpstreamError):
                again = self.cache.failed(entry, fetch, result)
                self.fetches["retry" if again else "error"] += 1
            elif result.body is None:
                self.fetches["not_modified"] += 1
                entry.fetched_at = now_ms
                self._unstored.entry(entry.key)
                self.cache.unchanged(entry, fetch)
            else:
                self.cache.received(entry, fetch, Value.from_json(result.body))
                self._count_decoded(entry)
                if fetch.pages is None and self.cache.get(call.key) is entry and entry.fetch is not fetch:
                    entry.etag = (result.etag, entry.version) if result.etag is not None and fetch.is_pure else None
        self._flush()
        return self._taken()

    def _heard(self, service: str, error: UpstreamError) -> None:
        """Learn from an error whether its service can be reached."""
        if error.retryable and (error.status is None or error.status in UNREACHABLE):
            # Readers have what the store gave as soon as the service is found to be gone; there is no need to be sure of it first.
            if self._health.missed(service, self._now_ms, 1 if self.cache.is_unheard(service) else OFFLINE_AFTER):
                self._toggle(service, offline=True)
        elif error.status is not None:
            self.cache.heard(service)
            if self._health.reached(service):
                self._toggle(service, offline=False)

    def _toggle(self, service: str, *, offline: bool) -> None:
        """A service was lost, or is back: those who watch are told."""
        self.cache.set_online(service, online=not offline)
        for link in self._links.values():
            link.tasks.append(ServiceState(service, offline))
        observed = [entry for entry in self.cache.observed.values() if entry.options.own_service == service]
        self._sweep(observed, self._meta)

    def completed(self, entry: ShardEntry, fetch: Fetch, value: Value) -> Value | None:
        """Bring a response together with what streams said meanwhile."""
        assert entry.query is not None
        fetch.origin = f"fetch:{entry.query.service or entry.query.function}"
        if fetch.pages is not None and fetch.pages.direction is not None and entry.value is not None:
            # Operations have changed the list as it is; only the page is new.
            entry.fetched_at = self._now_ms
            fetch.again = fetch.again or entry.is_invalidated  # the other pages are as they were
            self.fetches["success"] += 1
            return Value.from_object(fetch.pages.extended(entry.value.object()))
        replay = [(at, operations) for at, operations in entry.recent or () if at >= fetch.since_ms]
        if any(is_unrepeatable(operation) for _, operations in replay for operation in operations):
            if fetch.tries < MAX_FETCH_TRIES - 1:
                fetch.tries += 1
                fetch.since_ms = self._now_ms
                self.cache.repeat(entry, fetch)
                return None
            fetch.origin += UNCERTAIN
        updates = [
            update for update in self._recent_entities if update[0] >= fetch.since_ms and update[3].holds(entry.key)
        ]
        fetch.is_pure = not replay and not updates
        completed = value if fetch.is_pure else self._replayed(entry, value, replay, updates)
        self.fetches["success"] += 1
        entry.fetched_at = self._now_ms
        self._unstored.entry(entry.key)
        if completed is None:
            self._remove(entry)
        elif not replay and not fetch.again:
            entry.cause = ""
        return completed

    def _replayed(
        self,
        entry: ShardEntry,
        value: Value,
        replay: list[tuple[float, list[Operation]]],
        updates: list[tuple[float, str, Any, Tenant, bytes]],
    ) -> Value | None:
        """Return a response with what came meanwhile, in the order in which it came."""
        made: Value | None = value
        over = Replay(entry.value, is_paged=entry.query is not None and entry.query.paging is not None)
        found: Occurrences | None = None
        steps: list[tuple[float, Any]] = [*replay, *((update[0], update[1:]) for update in updates)]
        steps.sort(key=lambda step: step[0])  # of one instant, operations on keys went first, as here
        for _, what in steps:
            operations = what
            if isinstance(what, tuple):
                if made is None:
                    continue
                type_, known, _, update = what
                if found is None:
                    found = self.entities.scan(entry.covering, made.object())
                operations = _updates(found.get((type_, known), []), update)
            for operation in operations:
                made, found = apply_all(over.lacking(operation, made), made, self._reducer).value, None
        return made

    def touched(self, entry: ShardEntry) -> None:
        """Something about an entry changed that is not its data."""
        fetch = entry.fetch
        if fetch is not None and entry.fetch_status == "paused" and fetch.waiters:
            waiters, fetch.waiters = fetch.waiters, []
            for waiter in waiters:
                self._tell_offline(waiter, entry)
        if not entry.is_invalidated:
            entry.cause = ""
        elif not entry.cause:
            entry.cause = f"fetch:{entry.options.own_service or 'function'} failed"
            entry.cause_at = self._now_ms
        self._meta(entry)

    def changed(self, entry: ShardEntry, fetch: Fetch, patch: list[bytes] | None) -> None:
        """A fetch changed an entry's data."""
        self._commit(entry, patch, 1, 0.0, fetch.origin)

    def settled(self, waiter: Any, entry: ShardEntry, error: Any) -> None:
        """What a reader waited for is over."""
        if isinstance(waiter, _Then):
            if error is None:
                self._fetch_for(entry, waiter.waiter)
                return
            waiter = waiter.waiter
        link = self._links.get(waiter.gateway)
        if link is None:
            return
        payload: Payload
        if error is CANCELLED:
            gone = self.cache.get(entry.key) is not entry or entry.value is None
            payload = (
                Failure(ErrorCode.NOT_FOUND, "the entry was removed while it was fetched")
                if gone
                else self.view_of(entry)
            )
        elif error is None or entry.value is not None:
            payload = self.view_of(entry)
        else:
            code, message = error_of(error) or ("", "")
            payload = Failure(code, message)
        link.answer(waiter.id, payload)

    def _tell_offline(self, waiter: _Waiter | _Then, entry: ShardEntry) -> None:
        """A reader cannot be made to wait for a service to come back."""
        if isinstance(waiter, _Then):
            waiter = waiter.waiter
        link = self._links.get(waiter.gateway)
        if link is None:
            return
        payload: Payload = self.view_of(entry)
        if entry.value is None:
            service = entry.options.own_service
            payload = Failure(ErrorCode.UPSTREAM_OFFLINE, f"service {service}: it cannot be reached now")
        link.answer(waiter.id, payload)

    # --- requests ------------------------------------------------------------------------------------------------

    def requests(self, message: Requests, now_ms: float) -> tuple[Answer, list[Effect]]:
        """Carry out what a gateway asks."""
        self._now_ms = now_ms
        sender = message.header.sender
        incoming = self._incoming.setdefault(sender, Incoming(self.incarnation))
        if not incoming.is_repeat(message.header):
            if self.slots.is_sealed:
                return Full(SEALED_MS), []
            slots = self.slots.map
            if slots is not None and (self.slots.is_outdated(message.map) or self._is_for_others(message, slots)):
                return Outdated(slots), []
        match incoming.admit(message.header):
            case Foreign():
                return Refused(self.incarnation), []
            case Repeat(answer):
                return answer, []
            case New(opened=True):
                self._open(sender)
        link = self._links[sender]
        answers: list[tuple[int, Payload]] = []
        room = ANSWER_BYTES
        for request in message.items:
            try:
                payload = self._request(link, request)
            except HarborError as error:
                limit = (error.limit, error.value) if isinstance(error, LimitError) else None
                payload = Failure(error.code, error.message, limit=limit)
            if payload is None:
                continue
            size = content_bytes(payload)
            if size <= room:
                room -= size
                answers.append((request.id, payload))
            else:
                link.answer(request.id, payload)
        self._flush()
        return incoming.answered(Answers(self.incarnation, self.epoch, answers)), self._taken()

    def _is_for_others(self, message: Requests, slots: SlotMap) -> bool:
        """Whether a gateway that knows no later map asks for what is another shard's."""
        own = (None, self._committed.shard)
        return message.map <= slots.epoch and any(owner(request, slots) not in own for request in message.items)

    def _open(self, gateway: str) -> None:
        link = self._links.get(gateway)
        if link is None:
            link = self._links[gateway] = GatewayLink(gateway, self.identity, self.incarnation)
        else:
            self._close(link)
        link.tasks.extend(ServiceState(service, True) for service, _ in self._health.offline())

    def _close(self, link: GatewayLink) -> None:
        for (address, watch), channels in list(self._prefix_channels.items()):
            if address == link.address:
                self.demand.release(channels, self._now_ms)
                del self._prefix_channels[address, watch]
        self.presence.closed(link.address)
        for key in link.clear():
            self._drop_watcher(link, key)

    def _request(self, link: GatewayLink, request: Request) -> Payload | None:
        match request:
            case Watch():
                self._watch(link, request)
                return None
            case Unwatch(id=watch):
                self._unwatch(link, watch)
                return None
            case Rest(id=watch, rests=rests):
                self._rest_watch(link, watch, rests=rests)
                return None
            case Missed() | Verify():
                link.tasks.append(request)
                return None
            case Mend(held=held):
                self._mend(link, held)
                return None
            case Read():
                return self._read(link, request)
            case Act():
                return self._act(link, request)
            case Ping():
                return Matched(len(self.cache))
            case ListKeys():
                return self._list(link, request)
            case ListBranches(id=asked, prefix=prefix, after=after, limit=limit):
                found = Branches(prefix, after, limit)
                is_done = self._sweep(
                    self.cache.under(parse(prefix)),
                    lambda entry: found.add(entry.key),
                    lambda: link.answer(asked, BranchList(*found.listed())),
                )
                return BranchList(*found.listed()) if is_done else None
            case ListTopics(limit=limit):
                return self.presence.listed(limit)
            case Mutate() | Undo() | ListMutations():
                return self.mutations.request(link.address, request, self._now_ms)
            case Write() | Edit() | Erase():
                is_durable = self.acknowledgements.is_durable(request.ack)
                payload = self._write(request)
                if isinstance(payload, Written):
                    self.acknowledgements.promise(request.ack, request.id)
                if not is_durable or not isinstance(payload, Written):
                    return payload
                self.acknowledgements.hold(Held(link.address, request.id, request.request_id, payload))
                return None
            case PresenceNews():
                self.presence.news(link.address, link.presence, request, self._now_ms)
                return None
            case PresenceResume() | ListMembers():
                return self.presence.ask(link.address, request, self._now_ms)

    def _read(self, link: GatewayLink, request: Read) -> Payload | None:
        entry = self.cache.get(request.key)
        query = entry.query if entry is not None else self._queries.find(parse(request.key))
        page: Direction | None = (
            "next" if request.page == "next" else "previous" if request.page == "previous" else None
        )
        if page is not None and (query is None or query.paging is None):
            raise HarborError(ErrorCode.BAD_REQUEST, f"{request.key} is no infinite list")
        wanted = page is not None or request.fetch == "force" or entry is None or entry.is_stale(self._now_ms)
        if query is not None and wanted and request.fetch != "never":
            if entry is None:
                entry = self._create(request.key)
            else:
                self._use(entry)
            self.reads["fetch"] += 1
            self._fetch_for(entry, _Waiter(link.address, request.id, page))
            return None
        if entry is None:
            self.reads["miss"] += 1
            why = "no query is declared for it" if query is None else "its query is fetched by the first who reads it"
            return Failure(ErrorCode.NOT_FOUND, f"no entry {request.key}, and {why}")
        self.reads["hit"] += 1
        self._use(entry)
        return self.view_of(entry)

    def _fetch_for(self, entry: ShardEntry, waiter: _Waiter) -> None:
        """Fetch for a reader; one more page is not what a fetch of another kind brings, so that has to end first."""
        fetch = entry.fetch
        if fetch is not None and fetch.again and entry.fetch_status != "paused":
            fetch.waiters.append(_Then(waiter))  # what it brings was out of date before this reader came
            return
        if fetch is not None and waiter.page is not None and entry.direction != waiter.page and entry.value is not None:
            if entry.fetch_status == "paused":
                self._tell_offline(waiter, entry)
            else:
                fetch.waiters.append(_Then(waiter))
            return
        self._fetch(entry, waiter=waiter)

    def _use(self, entry: ShardEntry) -> None:
        self.cache.use(entry)
        self.memory.use(entry)

    def _list(self, link: GatewayLink, request: ListKeys) -> KeyList | None:
        """List entries; where there are many to be looked through the answer comes later."""
        matcher = KeyMatcher(parse(request.prefix))
        found: list[ShardEntry] = []

        def first() -> list[ShardEntry]:
            return nsmallest(request.limit + 1, found, key=lambda entry: entry.key)

        def step(entry: ShardEntry) -> None:
            key = entry.key
            if (
                key > request.after
                and request.contains in key
                and matcher.matches(key)
                and self.cache.get(key) is entry
            ):
                found.append(entry)
                if len(found) > request.limit + SLICE:
                    found[:] = first()

        def listed() -> KeyList:
            rows = [entry.info(self._now_ms, len(self._watchers.get(entry.key, ()))) for entry in first()]
            return KeyList(rows[: request.limit], len(rows) > request.limit)

        is_done = self._sweep(self.cache.under(matcher.prefix), step, lambda: link.answer(request.id, listed()))
        return listed() if is_done else None

    def _write(self, request: Write | Edit | Erase) -> Payload:
        self._forget_results()
        known = self._results.get(request.request_id)
        if known is not None:
            return self._recalled(known[1], request.key)
        payload = self._carry_out(request)
        if isinstance(payload, Written):
            self._follow(request.key)
        # Without the entry: losers of a race for a large one would each keep a copy of it.
        kept = structs.replace(payload, current=None) if isinstance(payload, Failure) else payload
        self._results[request.request_id] = (self._now_ms + REQUEST_MEMORY_MS, kept)
        self._unstored.result(request.request_id)
        return payload

    def _recalled(self, payload: Payload, key: str) -> Payload:
        """Return what a write came to before; a loser is told what the entry is now."""
        if isinstance(payload, Failure) and payload.code == ErrorCode.VERSION_CONFLICT:
            return Failure(payload.code, payload.message, self.view(key), payload.conflicts)
        return payload

    def _carry_out(self, request: Write | Edit | Erase) -> Payload:
        entry = self.cache.get(request.key)
        version = 0 if entry is None else entry.version
        if not isinstance(request, Erase):
            self._follow(request.key)
        if request.base_version is not None and request.base_version != version:
            if isinstance(request, Write) and request.merges:
                return self._merge(request, request.base_version, entry)
            return self._conflict(f"the entry is at version {version}", entry)
        if isinstance(request, Write):
            entry = entry or self._create(request.key)
            if entry.query is not None:
                self._remember(entry, [Set(request.data)])
            self.cache.written(entry, Value.from_json(request.data))
            self._commit(entry, None, 1, 0.0, WRITE)
            return Written(entry.version)
        if entry is None or (entry.value is None and isinstance(request, Edit) and request.operations is None):
            if isinstance(request, Erase) or request.operations is None:
                return Failure(ErrorCode.NOT_FOUND, f"no entry {request.key}")
        if isinstance(request, Erase):
            assert entry is not None
            self.mutations.laid.silence(entry.key)
            return Written(self._remove(entry))
        return self._edit(request, entry)

    def _follow(self, key: str) -> None:
        """Keep what an entry is, and will be, to merge with."""
        entry = self.cache.get(key)
        if entry is not None and entry.value is not None:
            self._recent_values.follow(key, entry.version, entry.value.json())

    def _conflict(self, reason: str, entry: ShardEntry | None, conflicts: list[str] | None = None) -> Failure:
        current = None if entry is None else self.view_of(entry)
        return Failure(ErrorCode.VERSION_CONFLICT, reason, current, conflicts)

    def _merge(self, request: Write, base_version: int, entry: ShardEntry | None) -> Payload:
        """Merge an edit of an earlier version into what the entry is now."""
        if entry is None or entry.value is None:
            return self._conflict("the entry is gone", entry, [""])
        base = self._recent_values.at(request.key, base_version)
        if base is None:
            reason = f"what the entry was at version {base_version} is not known (any more), it is at {entry.version}"
            return self._conflict(reason, entry)
        texts = base, request.data, entry.value.json()
        before, mine, theirs = (Value.from_json(text).object() for text in texts)
        merged, conflicts = three_way_merge(before, mine, theirs)
        if conflicts:
            return self._conflict(f"version {entry.version} changed the same places", entry, conflicts)
        shared = share(theirs, merged)
        patch = difference(theirs, shared)
        value = Value.from_json(compact(orjson.dumps(shared)))
        if len(value.json()) > MAX_EDITED_BYTES:
            return TOO_LARGE
        if entry.query is not None:
            self._remember(entry, [Set(value.json())])
        self.cache.written(entry, value, is_edit=True)
        self._commit(entry, patch, 1, 0.0, WRITE)
        return Written(entry.version, is_merged=True)

    def _edit(self, request: Edit, entry: ShardEntry | None) -> Payload:
        held = None if entry is None or entry.value is None else entry.value.json()
        if request.operations is not None:
            check_count(len(request.operations))
            operations = request.operations
            outcome = apply_all(operations, None if held is None else Value.from_json(held), work=Work(MAX_STEPS))
            if outcome.dropped:
                reason = (
                    "the entry is absent" if "skipped" in outcome.dropped else "an operation does not fit the value"
                )
                return Failure(ErrorCode.NOT_FOUND if "skipped" in outcome.dropped else ErrorCode.BAD_REQUEST, reason)
            value, patch = outcome.value, outcome.patch
            if value is None:
                return Written(self.offset if entry is None else self._remove(entry))
        else:
            assert held is not None
            assert request.patch is not None
            steps = orjson.loads(request.patch)
            value = Value.from_object(json_patch.apply(Value.from_json(held).object(), steps))
            patch = [orjson.dumps(step) for step in steps if step["op"] != "test"]
            operations = [Set(value.json())]
        if held is not None and len(held) > MAX_EDITED_BYTES // 2 and len(value.json()) > MAX_EDITED_BYTES:
            return TOO_LARGE
        is_new = entry is None
        entry = entry or self._create(request.key)
        if entry.query is not None:
            is_long = len(operations) > MAX_REPLAYED
            self._remember(entry, [Set(value.json())] if is_long else operations)
            if is_long and entry.fetch is not None:
                entry.fetch.again = True
        self.cache.written(entry, value, is_edit=True)
        copies = any(b'"op":"copy"' in step or b'"op":"move"' in step for step in patch or ())
        if copies:
            self.entities.replaced(entry.key, entry.covering, value.json())
        self._commit(entry, patch, len(operations), 0.0, WRITE)
        if copies:
            self.memory.replaced(entry)  # a short step may have made much
        if is_new and entry.query is not None and not _is_whole(operations[0]):
            self._doubt(entry, "created by a write of a part")
        return Written(entry.version)

    def _forget_results(self) -> None:
        for request_id, (until, _) in list(islice(self._results.items(), 8)):
            if until <= self._now_ms or len(self._results) > MOST_RESULTS:
                del self._results[request_id]
                self._unstored.result(request_id)

    # --- watches -------------------------------------------------------------------------------------------------

    def _watch(self, link: GatewayLink, request: Watch) -> None:
        link.watches[request.id] = request.key
        if not request.prefix:
            self._unwatch_exact(link, request.key)
            link.exact[request.key] = request.id
            self._add_watcher(link, request.key)
            entry = self.cache.get(request.key)
            if entry is None and self._queries.find(parse(request.key)) is not None:
                entry = self._create(request.key)
            if entry is not None and entry.query is not None and entry.is_stale(self._now_ms):
                self._fetch(entry)
            link.tasks.append(request)
            return
        matcher = KeyMatcher(parse(request.key))
        link.prefixes[request.id] = matcher
        channels = self._feeds.channels_under(matcher.prefix)
        self._prefix_channels[link.address, request.id] = channels
        self.demand.need(channels, self._now_ms)
        link.scan(request.id, self.offset, list(self.cache.under(matcher.prefix)), matcher)

    def _unwatch_exact(self, link: GatewayLink, key: str) -> None:
        """A second exact watch of a key takes the place of the first."""
        previous = link.exact.pop(key, None)
        if previous is not None:
            link.watches.pop(previous, None)
            link.resting.discard(previous)

    def _rest_watch(self, link: GatewayLink, watch: int, *, rests: bool) -> None:
        """Everybody behind a watch has paused, or somebody has come back: channels follow, as if watchers had left and come."""
        name = link.watches.get(watch)
        if name is None or rests == (watch in link.resting):
            return
        if rests:
            link.resting.add(watch)
        else:
            link.resting.discard(watch)
        matcher = link.prefixes.get(watch)
        if matcher is None:
            self._listen_again(name)
            return
        place = (link.address, watch)
        if rests:
            self.demand.release(self._prefix_channels.pop(place, []), self._now_ms)
        else:
            self._prefix_channels[place] = self._feeds.channels_under(matcher.prefix)
            self.demand.need(self._prefix_channels[place], self._now_ms)
        self._sweep([key for key in link.watched if matcher.matches(key)], self._listen_again)

    def _listen(self, key: str) -> None:
        """Have the channels of a key joined if somebody listens, and only then."""
        if not any(link.listens(key) for link in self._watchers.get(key, ())):
            self.demand.release(self._channels.pop(key, []), self._now_ms)
            return
        if key in self._channels:
            return
        channels = self._channels_for(key)
        if channels:
            self._channels[key] = channels
            self.demand.need(channels, self._now_ms)
            entry = self.cache.get(key)
            if entry is not None and entry.query is not None and entry.value is not None:
                had_ms = entry.fetched_at or entry.data_updated_at
                if had_ms < self.demand.joined_since(channels):
                    self._doubt(entry, "a channel of it that was not joined")

    def _listen_again(self, key: str) -> None:
        """As `_listen`, and what was missed meanwhile is fetched."""
        self._listen(key)
        entry = self.cache.get(key)
        if key in self._channels and entry is not None and entry.query is not None and entry.is_stale(self._now_ms):
            self._fetch(entry)

    def _unwatch(self, link: GatewayLink, watch: int) -> None:
        name = link.watches.pop(watch, None)
        if name is None:
            return
        link.resting.discard(watch)
        matcher = link.prefixes.pop(watch, None)
        if matcher is None:
            del link.exact[name]
            self._unwatch_key(link, name)
            return
        self.demand.release(self._prefix_channels.pop((link.address, watch), []), self._now_ms)
        keys = [key for key in link.watched if matcher.matches(key)]
        self._sweep(keys, lambda key: self._unwatch_key(link, key))

    def _unwatch_key(self, link: GatewayLink, key: str) -> None:
        if key not in link.watched:
            return
        if key in link.exact or any(each.matches(key) for each in link.prefixes.values()):
            self._listen(key)
            return
        link.watched.discard(key)
        link.pending.pop(key, None)
        self._drop_watcher(link, key)

    def _add_watcher(self, link: GatewayLink, key: str) -> None:
        if key in link.watched:
            return
        link.watched.add(key)
        links = self._watchers.get(key)
        if links is not None:
            links.append(link)
            self._listen(key)
        else:
            self._watchers[key] = [link]
            self._listen(key)
            entry = self.cache.get(key)
            if entry is not None:
                self._observe(entry)

    def _channels_for(self, key: str) -> list[Channel]:
        first = head(key)
        joins = self._joins.get(first)
        if joins is None:
            if len(self._joins) >= KNOWN_HEADS:
                self._joins.clear()
            parsed = elements(key)
            joins = self._joins[first] = self._feeds.joins_for(parsed[0] if first is not None else None)
        return self._feeds.channels_for(elements(key)) if joins else []

    def _drop_watcher(self, link: GatewayLink, key: str) -> None:
        links = self._watchers.get(key, [])
        if link in links:
            links.remove(link)
        if not links:
            self._watchers.pop(key, None)
            self.demand.release(self._channels.pop(key, []), self._now_ms)
            entry = self.cache.get(key)
            if entry is not None:
                self._rest(entry)
        else:
            self._listen(key)

    # --- sending -------------------------------------------------------------------------------------------------

    def _taken(self) -> list[Effect]:
        if self._is_late:
            return []  # a step has one transaction
        effects, self._effects = self._effects, []
        transaction = self._unstored.taken(
            self.epoch,
            self.offset,
            self._stored,
            self._committed.cursors,
            self._committed.checkpoints,
            self._results,
            self.history,
            self.mutations.queue.records,
        )
        if transaction is not None:
            self._unsendable = set()
            effects.insert(0, Commit(transaction))
        if self.acknowledgements.begin():
            effects.append(Sync())
        return effects

    def _flush(self) -> None:
        """Send what can be sent: change sets on idle links, channel demands, fetches whose channels are joined."""
        self._sweeps.advance()
        if not self.slots.is_sealed:
            self._evict()
            self._effects.extend(self.mutations.flush(self._now_ms))
            while self._uncovered:
                self.show(self._uncovered.popitem()[0], "")
            for entry in list(self._held.values()):
                if self.demand.settled(self._channels.get(entry.key, [])):
                    self._held.pop(entry.key, None)
                    self.cache.release(entry)
        self._effects.extend(self.slots.sends(self._now_ms))
        self._effects.extend(self._committed.wake(self._now_ms))
        self._effects.extend(self.demand.sends(self._now_ms))
        for gateway, request, payload in self.presence.answers(self._now_ms):
            self._links[gateway].answer(request, payload)
        for link in self._links.values():
            if link.link.idle and link.busy:
                self._effects.append(self._change_set(link))

    def _change_set(self, link: GatewayLink) -> Send:
        items: list[Item] = []
        size = 0
        while link.pending and size < SLICE_BYTES:
            key = next(iter(link.pending))
            pending = link.pending.pop(key)
            entry = self.cache.get(key)
            if entry is None and key not in link.exact:
                link.watched.discard(key)
                self._drop_watcher(link, key)
            is_offline = entry is not None and not self.cache.is_online(entry.options.own_service)
            is_exact = key in link.exact
            for item in encode_pending(pending, key, entry, self.offset, is_offline=is_offline, is_exact=is_exact):
                items.append(item)
                size += 64 + len(getattr(item, "data", None) or b"") + len(getattr(item, "patch", None) or b"")
        looked_at = 0
        while not link.pending and link.tasks and size < SLICE_BYTES and looked_at < SLICE_ENTRIES:
            task = link.tasks[0]
            match task:
                case Answered() | ServiceState() | MutationView():
                    items.append(task)
                    size += content_bytes(task)
                case Missed():
                    items.append(self._missed(task))
                case Verify(id=request, held=held):
                    differing = [(key, here) for key, version in held if (here := self._version(key)) != version]
                    items.append(Verified(request, differing))
                case Watch(id=watch, key=key):
                    if link.exact.get(key) == watch:
                        entry = self.cache.get(key)
                        items.append(Absent(watch) if entry is None else Snapshot(watch, self.view_of(entry)))
                        size += 0 if entry is None else _size(entry.visible)
                case scan:
                    entry = next(scan.remaining, None) if scan.watch in link.prefixes else None
                    looked_at += 1
                    if entry is not None:
                        if scan.matcher.matches(entry.key) and self.cache.get(entry.key) is entry:
                            self._add_watcher(link, entry.key)
                            items.append(Snapshot(scan.watch, self.view_of(entry)))
                            size += 64 + _size(entry.visible)
                        continue
                    if scan.watch in link.prefixes:
                        items.append(Ready(scan.watch, scan.offset))
            link.tasks.popleft()
        items.extend(link.presence.items(self._now_ms, SLICE_BYTES - size, settled=self.presence.settled))
        complete = not link.pending
        message = ChangeSet(link.link.header(), self.epoch, self.offset if complete else -1, link.oldest_ms, items)
        link.oldest_ms = 0.0
        link.sent_at = self._now_ms
        link.link.sent(message)
        return Send(link.address, message)

    def view_of(self, entry: ShardEntry) -> EntryView:
        """Return an entry as readers see it."""
        return entry.view(is_offline=not self.cache.is_online(entry.options.own_service))

    def _missed(self, request: Missed) -> MissedKeys:
        if request.gone is not None:
            missed = self._missed_of_others(request.map, {shard: each for shard, *each in request.gone})
        elif request.epoch:
            missed = self.history.since(request.epoch, request.offset, self._now_ms)
        else:
            missed = self.history.since_map(request.map)
        if missed is None:
            return MissedKeys(request.id, reset=True, keys=[])
        if not request.prefix:
            keys = [(request.key, missed[request.key])] if request.key in missed else []
        else:
            matcher = KeyMatcher(parse(request.key))
            keys = [(key, version) for key, version in missed.items() if matcher.matches(key)]
        return MissedKeys(request.id, reset=False, keys=keys)

    def _version(self, key: str) -> int:
        """Return the version of what readers see of an entry; 0: nothing."""
        entry = self.cache.get(key)
        return 0 if entry is None or entry.visible is None else entry.version

    def _mend(self, link: GatewayLink, held: list[tuple[str, int]]) -> None:
        """Send a gateway anew what it holds wrongly."""
        for key, version in held:
            if self.slots.map is not None and self._shard_of(key) != self._committed.shard:
                continue  # it has moved since, and another shard says what it is
            entry = self.cache.get(key)
            if key in link.exact or any(matcher.matches(key) for matcher in link.prefixes.values()):
                self._add_watcher(link, key)
                pending = link.pend(key, version)
                pending.from_version, pending.patches = version, None
                pending.reset = entry is not None and entry.visible is not None

    def _missed_of_others(self, map_epoch: int, positions: dict[int, list[int]]) -> dict[str, int] | None:
        """As `History.since`, of all shards that are no more and were there under a map, or are named."""
        found: dict[str, int] = {}
        if not positions.keys() <= self.pasts.keys():
            return None
        for shard, past in self.pasts.items():
            if past.ended <= map_epoch:
                continue
            history = History.of(past)
            position = positions.get(shard)
            missed = (
                history.since_map(map_epoch)
                if position is None
                else history.since(position[0], position[1], self._now_ms)
            )
            if missed is None:
                return None
            for key, version in missed.items():
                found[key] = min(version, found.get(key, version))
        return found

    # --- moves of slots ------------------------------------------------------------------------------------------

    def _shard_of(self, key: str) -> int:
        return self._place(key) if self.slots.map is None else self.slots.map.shard(CanonicalKey(key))

    def rebalance(self, message: Rebalance, now_ms: float) -> tuple[Progress, list[Effect]]:
        """Do a part of a move, as the supervisor says."""
        self._now_ms = now_ms
        if message.phase == "seal" and not self.slots.is_sealed:
            self._flush()  # what is to be said to other shards is, once more
        progress = self.slots.rebalance(message, now_ms)
        late, self._late = ([], self._late) if self.slots.is_sealed else (self._late, [])
        self._is_late = True
        for each in late:
            each(now_ms)
        self._is_late = False
        if self.slots.map is not None:
            self._count_shards(self.slots.map.shards)
        self._flush()
        return progress, self._taken()

    def slot_slice(self, message: SlotSlice, now_ms: float) -> tuple[Answer, list[Effect]]:
        """Keep what another shard sends of slots that move here."""
        self._now_ms = now_ms
        return self.slots.slice(message), []

    def _count_shards(self, shards: int) -> None:
        self._announcements.exchange(*self.mutations.count_shards(self.identity, self.incarnation, shards))

    def is_quiet(self, sealed_ms: float) -> bool:
        """Whether nothing is under way that changes entries, or that a gateway waits for."""
        links = (link.link.idle and not link.busy for link in self._links.values())
        return (
            not self._sweeps
            and self.mutations.is_quiet
            and self.acknowledgements.is_idle
            and (self._now_ms - sealed_ms >= DRAIN_MS or all(links))
        )

    def all_keys(self) -> list[str]:
        """Return the keys of all entries."""
        return [entry.key for entry in self.cache]

    def moved_keys(self, slots: frozenset[int]) -> Iterable[str]:
        """Return the keys of all entries in some slots."""
        return [entry.key for entry in self.cache if slot(entry.key) in slots]

    def moved_entry(self, key: str) -> MovedEntry | None:
        """Return an entry as it goes to another shard; None: there is none, or it has no data."""
        entry = self.cache.get(key)
        stored = None if entry is None else entry.moved()
        if entry is None or stored is None:
            return None
        return MovedEntry(stored, None if entry.recent is None else list(entry.recent), entry.fetch is not None)

    def moved_results(self) -> dict[str, Result]:
        """Return the results of writes."""
        return self._results

    def last_content(self, slots: frozenset[int], to: int, next_map: SlotMap) -> list[Content]:
        """Return what has to be of one moment, in parts; the last one says so."""
        contents = [Content(offset=self.offset, joined=self.demand.needed)]
        if slots:
            laid = [key for key in self.mutations.laid.by_key if slot(CanonicalKey(key)) in slots]
            contents[0].overlays = [MovedOverlay(key, *self.mutations.laid.moved(key)) for key in laid]
            contents[0].checkpoints = [
                each for each in self._committed.checkpoints.values() if slot(CanonicalKey(each.sequence)) in slots
            ]
            cursors = list(self._committed.cursors.items())
            rows = MOVED_BYTES // 100
            contents += [Content(cursors=cursors[start : start + rows]) for start in range(0, len(cursors), rows)]
            mutations, rows = self._moved_mutations(slots), MOVED_BYTES // 1_000
            contents += [Content(mutations=mutations[start : start + rows]) for start in range(0, len(mutations), rows)]
        if to == 0 and self._committed.shard >= next_map.shards:
            contents += past_slices(self._committed.shard, self.history.past(next_map.epoch))
        if to in self.pasts:
            contents += past_slices(to, self.pasts[to])
        contents[-1].is_last = True
        return contents

    def _moved_mutations(self, slots: frozenset[int]) -> list[MutationRecord]:
        return [each for each in self.mutations.queue.records.values() if slot(CanonicalKey(each.scope)) in slots]

    def lay(self, overlays: list[MovedOverlay]) -> None:
        """Have lie here what lay over entries that are about to move in."""
        self.mutations.take_in(overlays)

    def adopt(self, contents: dict[int, list[Content]], next_map: SlotMap) -> None:
        """Make what others have sent beside the entries this shard's own: for those who watch nothing has changed."""
        earlier = -1 if self.slots.map is None or self.slots.is_new else self.slots.map.epoch
        for content in (content for each in contents.values() for content in each):
            self._results.update(content.results)
            for request, _ in content.results:
                self._unstored.result(request)
            self._committed.inherit(content.cursors)
            for checkpoint in content.checkpoints:
                self._committed.check(checkpoint)
            self.demand.inherit(content.joined, self._now_ms)
        for shard, past in whole_pasts(content for each in contents.values() for content in each).items():
            if shard != self._committed.shard:
                self.pasts[shard] = past
                self._unstored.past(shard, past)
                continue
            earlier = past.ended
            if not self.history.next:  # else it was about to end, and has it still
                self.history.restore(past.lives, past.first, past.changes, self._now_ms, past.steps)
                self._unstored.changes = past.first
        offset = max((content.offset for each in contents.values() for content in each), default=0)
        if offset > self.offset:
            self.offset = offset
            self.history.rise(offset)
        self.history.step(earlier, next_map.epoch)
        self.presence.begin_anew()
        self.slots.map = next_map  # by which is placed what follows
        self.mutations.laid.rehome(self._shard_of)
        for each in contents.values():
            self.mutations.queue.take_in([record for content in each for record in content.mutations], self._now_ms)

    def sync(self) -> None:
        """Write through what changes with this step."""
        if self._unstored.keeps:
            self.acknowledgements.hold(Held("", 0, "", Matched(0)))

    def move_in(self, moved: MovedEntry) -> None:
        """Take in an entry that another shard has sent."""
        stored = moved.stored
        if (stale := self.cache.get(stored.key)) is not None:
            self._drop_unsaid(stale)
        entry = self._restored(stored, stored.origin)
        self._unstored.entry(entry.key)
        if moved.recent is not None:
            entry.recent = deque(moved.recent) or FORGOTTEN
        if entry.overlay is not None:
            entry.shown = entry.overlay.shown(entry.value, self._reducer)
        if moved.is_fetched and entry.query is not None:
            self._doubt(entry, "it was being fetched when it moved here")

    def move_out(self, keys: Iterable[str]) -> None:
        """Drop entries, and what lies over them, that are another shard's: for those who watch nothing has changed."""
        keys = list(keys)
        for key in keys:
            if (entry := self.cache.get(key)) is not None:
                self._drop_unsaid(entry)
        self.mutations.laid.let_go(keys)

    def empty(self, slots: frozenset[int]) -> None:
        """Drop all that there is in slots that are another shard's."""
        laid = [key for key in self.mutations.laid.by_key if slot(CanonicalKey(key)) in slots]
        self.move_out([*self.moved_keys(slots), *laid])

    def let_go(self, next_map: SlotMap) -> None:
        """Drop what is others' by a map: for those who watch nothing has changed."""
        before, own = self.slots.map, self._committed.shard
        assert before is not None
        leaving = frozenset(
            number for (sender, _), slots in before.moves(next_map).items() if sender == own for number in slots
        )
        if leaving:
            self.empty(leaving)
            self.mutations.queue.let_go(self._moved_mutations(leaving))
            self._committed.give_away(
                [name for name in self._committed.checkpoints if slot(CanonicalKey(name)) in leaving]
            )
            self.presence.let_go(lambda topic: slot(CanonicalKey(topic)) in leaving)
        self.mutations.laid.rehome(lambda scope: next_map.shard(CanonicalKey(scope)))
        for made in [shard for shard in self.pasts if shard < next_map.shards]:
            del self.pasts[made]
            self._unstored.past(made, None)
        if own < max(before.shards, next_map.shards):  # else it is yet to be one of them
            self.history.step(-1 if self.slots.is_new else before.epoch, next_map.epoch)

    def _drop_unsaid(self, entry: ShardEntry) -> None:
        """Drop an entry that is another shard's now."""
        self._lets_go = True
        self.cache.remove(entry)
        self._lets_go = False
        self._uncovered.pop(entry.key, None)
        for link in list(self._watchers.get(entry.key, ())):
            link.pending.pop(entry.key, None)
            if entry.key not in link.exact:
                link.watched.discard(entry.key)
                self._drop_watcher(link, entry.key)

    # --- time and answers ----------------------------------------------------------------------------------------

    def members(self, message: Members, now_ms: float) -> tuple[Answer, list[Effect]]:
        """The supervisor says which ingestors there are."""
        self._now_ms = now_ms
        before = self.demand.ingestors
        if self.demand.members(message):
            self._announcements.exchange(before, message.ingestors)
        self._flush()
        return Noted(self.incarnation), self._taken()

    def gateways(self, message: Gateways, now_ms: float) -> tuple[Answer, list[Effect]]:
        """The supervisor says which gateways there are: those not known yet are told of this life. Who is gone falls silent."""
        self._now_ms = now_ms
        self._announcements.exchange(self._gateways, message.names)
        self._gateways = message.names
        self.presence.gateways(message.names, now_ms)
        return Noted(self.incarnation), self._taken()

    def announce(self, message: Announce, now_ms: float) -> tuple[Answer, list[Effect]]:
        """An ingestor lives anew."""
        self._now_ms = now_ms
        if self.demand.knows(message.sender):
            self.demand.announced(message.sender, message.incarnation)
        self.mutations.announced(message.sender, message.incarnation)
        self._flush()
        return Noted(self.incarnation), self._taken()

    def answered(self, to: str, message: Any, answer: Answer, now_ms: float) -> list[Effect]:
        """A peer answered `message`."""
        self._now_ms = now_ms
        if isinstance(message, Claimed):
            self._committed.answered(to, message)
        elif isinstance(answer, Noted):
            self._announcements.answered(to)
        elif isinstance(message, Demand):
            self.demand.answered(to, message, answer, now_ms)
        elif isinstance(message, Overlays):
            self.mutations.answered(to, message, answer, now_ms)
        elif isinstance(message, SlotSlice):
            self.slots.answered(to, message, answer, now_ms)
        else:
            link = self._links.get(to)
            if link is None or link.link.in_flight is not message:
                return []  # the gateway has started over, or was forgotten
            link.silent_since = None
            match answer:
                case ChangeSetTaken(incarnation=incarnation):
                    link.link.acknowledged(incarnation)
                case Full(retry_ms=retry_ms):
                    link.link.failed(now_ms, retry_ms)
                case Refused():
                    self._forget(link)  # it lives anew: what it watched is void until it says so again
                case _:
                    raise AssertionError(f"{to} answered a change set with {answer!r}")
        self._flush()
        return self._taken()

    def unanswered(self, to: str, message: Any, now_ms: float) -> list[Effect]:
        """The call failed; what it carried is kept and sent again."""
        self._now_ms = now_ms
        if isinstance(message, Announce):
            self._announcements.unanswered(to, now_ms, RETRY_MS)
        elif isinstance(message, Claimed):
            self._committed.unanswered(to, message, now_ms)
        elif isinstance(message, Demand):
            self.demand.unanswered(to, message, now_ms)
        elif isinstance(message, Overlays):
            self.mutations.unanswered(to, message, now_ms)
        elif isinstance(message, SlotSlice):
            self.slots.unanswered(to, message, now_ms)
        else:
            link = self._links.get(to)
            if link is not None and link.link.in_flight is message:
                link.link.failed(now_ms, RETRY_MS)
                link.silent_since = link.silent_since or now_ms
                if now_ms - link.silent_since > GATEWAY_GONE_MS:
                    self._forget(link)
        return []

    def _forget(self, link: GatewayLink) -> None:
        self._close(link)
        del self._links[link.address]
        self._incoming.pop(link.address, None)

    def deadline(self) -> float | None:
        """When anything is due."""
        if self._sweeps or (self._evicting and not self.slots.is_sealed):
            return self._now_ms
        times = [self._announcements.deadline(), self.demand.deadline(), self.slots.deadline()]
        times.extend(link.deadline() for link in self._links.values())
        if self.slots.is_sealed:
            times.append(self.mutations.resends_at())
            return min((at for at in times if at is not None), default=None)
        times.extend((self.cache.deadline(), self.presence.deadline()))
        times.extend((self._committed.deadline(), self.mutations.deadline(), min(self._unlaid.values(), default=None)))
        times.extend(at for _, at in self._health.offline())
        return min((at for at in times if at is not None), default=None)

    def wake(self, now_ms: float) -> list[Effect]:
        """Do what is due."""
        self._now_ms = now_ms
        self._effects.extend(self._announcements.wake(now_ms))
        if self.slots.is_sealed:
            self._effects.extend(self.mutations.resends(now_ms))
            return self._wake_links(now_ms)
        self.presence.wake(now_ms)
        self.cache.wake()
        for service, at in list(self._health.offline()):
            entry = self._probing(service) if at <= now_ms else None
            if entry is not None and entry.fetch is None:
                self.cache.fetch(entry)
            if self._health.may_probe(service, now_ms) and entry is not None:
                self.cache.resume(entry)
        gone = self.demand.expired(now_ms)
        self._committed.forget(gone)
        self._effects.extend(self.mutations.wake(now_ms))
        for key in [key for key, until in self._unlaid.items() if until <= now_ms]:
            if (entry := self.cache.get(key)) is not None:
                self._show(entry, entry.shown)
        for source, channel in gone:
            self._left(source, channel)
        return self._wake_links(now_ms)

    def _wake_links(self, now_ms: float) -> list[Effect]:
        self._flush()
        for link in self._links.values():
            if not link.link.idle:
                message = link.link.resend(now_ms)
                if message is not None:
                    self._effects.append(Send(link.address, message))
            elif (due := link.deadline()) is not None and due <= now_ms:
                self._effects.append(self._change_set(link))
        return self._taken()

    def _probing(self, service: str) -> ShardEntry | None:
        """Return an entry to try an offline service with: one that waits for it, one that is watched, or any."""
        candidates = (entry for entries in (self.cache.observed.values(), self.cache) for entry in entries)
        return self.cache.paused(service) or next(
            (entry for entry in candidates if entry.options.own_service == service), None
        )

    def _left(self, source: str, channel: str) -> None:
        """A channel is no longer joined: what it feeds goes out of date unnoticed."""

        def doubt(entry: ShardEntry) -> None:
            if not entry.observers and self._feeds.fed_by(source, channel, entry.parsed):
                self._doubt(entry, f"stream:{source}/{channel} is no longer joined")

        self._sweep(self._fed(source, channel), doubt)

    def _fed(self, source: str, channel: str | None) -> list[ShardEntry]:
        """Return entries among which are all that a source feeds."""
        return self._under_any(self._feeds.heads_fed_by(source, channel))

    def _under_any(self, heads: list[str] | None) -> list[ShardEntry]:
        """Return the entries whose keys begin with one of `heads`; None: all."""
        return list(self.cache) if heads is None else [entry for first in heads for entry in self.cache.under([first])]

    # --- figures -------------------------------------------------------------------------------------------------

    def view(self, key: str) -> EntryView | None:
        """Return an entry as readers see it."""
        entry = self.cache.get(key)
        return None if entry is None else self.view_of(entry)


def _patch(before: Value | None, after: Value | None) -> list[bytes] | None:
    """Return RFC 6902 members that lead from one view to another; None: there are none worth it."""
    if before is None or after is None:
        return None
    try:
        old, new = before.object(), after.object()
    except OperationError:
        return None
    shared = share(old, new)
    return [] if shared is old else difference(old, shared)


def _size(value: Value | None) -> int:
    return 0 if value is None else value.size()


def _updates(places: list[Place], value: bytes) -> list[Operation]:
    """Return what brings an entity up to date where it occurs."""
    return [Merge(value, at) if is_there else Set(value, at) for at, is_there in places]


def _is_whole(operation: Operation) -> bool:
    """Whether an operation gives an entry all its data."""
    return isinstance(operation, Set) and not operation.at


def _waits_for_response(fetch: Fetch) -> bool:
    """Whether what is received by now is to be replayed over a response; a fetch that is paused asks anew, unless it is of pages."""
    return fetch.since_ms > 0 and (fetch.pages is not None or not fetch.paused)
