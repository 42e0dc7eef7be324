"""The shard: owns the entries of its slots, applies what changes them, and tells the gateways that watch.

One instance is one life of the actor. Commits are numbered: every change of an entry's view takes the next offset of the shard and the
entry's next version; a new entry starts at its offset, so versions are never reused for a key. Without a store a life begins empty
at `epoch * 2^13` (epochs are milliseconds), which is above anything an earlier life can have reached.

It is one thing because every path below ends in the same commit, and what a commit must do may not differ between them: number the
change, note it in history, keep it for fetches under way, and pend it on the link of every watcher.

What must not live here: what operations do (`operation`), what waits for a gateway (`gateway_link`), which channels to join
(`channel_demand`), HTTP.
"""

from collections import Counter
from collections.abc import Sequence
from heapq import heappop, heappush, nsmallest
from typing import Any, Protocol

import orjson
from msgspec import Struct

from cluster.core import json_patch
from cluster.core.channel_demand import Channel, ChannelDemand
from cluster.core.declared_query import DeclaredQueries, FetchRequest
from cluster.core.entry import Value
from cluster.core.gateway_link import (
    SLICE_BYTES,
    SLICE_ENTRIES,
    GatewayLink,
    encode_pending,
)
from cluster.core.history import History
from cluster.core.link import Announcements, Foreign, Incoming, New, Repeat
from cluster.core.messages import (
    Absent,
    Announce,
    Answer,
    Answered,
    Answers,
    Batch,
    BatchCommitted,
    ChangeSet,
    ChangeSetTaken,
    Demand,
    Edit,
    EntryView,
    Erase,
    Failure,
    FeedRange,
    Full,
    InvalidateKeys,
    Item,
    KeyList,
    ListKeys,
    Matched,
    Missed,
    MissedKeys,
    Noted,
    Payload,
    Read,
    Ready,
    Refused,
    Request,
    Requests,
    Send,
    Snapshot,
    Unwatch,
    Watch,
    Write,
    Written,
)
from cluster.core.operation import (
    Append,
    Increment,
    Invalidate,
    Operation,
    Prepend,
    Set,
    apply_all,
    decode,
    identity,
)
from cluster.core.query_cache import Entry, Fetch, QueryCache, new_entry
from cluster.core.query_key import CanonicalKey, KeyMatcher, parse
from cluster.core.retry import retry_delay_ms
from cluster.errors import ErrorCode, HarborError, OperationError, UpstreamError

EPOCH_SHIFT = 13
"""Offsets per millisecond of epoch. 2^53, the largest integer a browser holds exactly, lasts until 2059; no shard commits 8 million
changes a second."""
RETRY_MS = 150.0
GATEWAY_GONE_MS = 60_000.0
"""A gateway that has not answered for this long loses its watches; should it live, it is told to start over."""
JOIN_WAIT_MS = 1_000.0
"""How long a fetch waits for its channels to be joined, should an ingestor be starting."""
REQUEST_MEMORY_MS = 600_000.0
"""Results of writes are kept this long for repeats."""
MAX_FETCH_TRIES = 3
COLLECT_SLICE = 500
"""Entries collected per wake: about a millisecond."""
COLLECT_AGAIN_MS = 1_000.0
"""An entry that is being fetched when its time is over is looked at again then."""


class StartFetch(Struct, frozen=True):
    """Effect: send `request`; feed what comes of it to `fetched` with `id`."""

    key: str
    id: int
    request: FetchRequest


Effect = Send | StartFetch


class Feeds(Protocol):
    """Knows which channels feed which keys (`rule.FeedIndex`)."""

    def channels_for(self, key: list[Any]) -> list[Channel]:
        """Return the channels to join for a key to be live."""
        ...

    def channels_under(self, prefix: list[Any]) -> list[Channel]:
        """Return the channels that may create entries under a prefix."""
        ...

    def fed_by(self, source: str, channel: str | None, key: list[Any]) -> bool:
        """Whether a source (any of its channels where `channel` is None) feeds a key."""
        ...


class ShardState:
    """See the module."""

    def __init__(
        self,
        identity: str,
        incarnation: int,
        *,
        epoch: int,
        queries: DeclaredQueries,
        feeds: Feeds,
        demand: ChannelDemand,
        gateways: Sequence[str],
        ingestors: Sequence[str],
        replay_ms: float,
    ) -> None:
        """`replay_ms`: the longest an operation may have been under way (the largest `max_wait`)."""
        self.identity = identity
        self.incarnation = incarnation
        self.epoch = epoch
        self.offset = epoch << EPOCH_SHIFT
        self.cache = QueryCache()
        self.history = History(self.offset)
        self.demand = demand
        self._queries = queries
        self._feeds = feeds
        self._replay_ms = replay_ms
        self._links: dict[str, GatewayLink] = {}
        self._incoming: dict[str, Incoming] = {}
        self._watchers: dict[str, list[GatewayLink]] = {}
        """Gateways by watched key."""
        self._channels: dict[str, list[Channel]] = {}
        """Channels needed, by watched key."""
        self._prefix_channels: dict[tuple[str, int], list[Channel]] = {}
        self._opened: dict[str, int] = {}
        """Incarnation by source, as last heard."""
        self._cursors: dict[str, tuple[int, int]] = {}
        """(incarnation, last number) by feed."""
        self._results: dict[str, tuple[float, Payload]] = {}
        """(kept until, result) by request id, oldest first."""
        self._fetching: dict[str, Entry] = {}
        self._idle: list[tuple[float, str]] = []
        """Heap of (when to look, key) of entries that nobody watches."""
        self._next_fetch = 0
        self._announcements = Announcements(identity, incarnation, [*gateways, *ingestors])
        self._now_ms = 0.0
        self.collected = 0
        self.operations_dropped: Counter[str] = Counter()
        self.invalidations = 0
        self.resets = 0
        self.reads: Counter[str] = Counter()
        self.fetches: Counter[str] = Counter()
        self.lag_ms = 0.0
        """How old the oldest event of the last batch was when it was committed."""

    # --- batches -------------------------------------------------------------------------------------------------

    def batch(self, message: Batch, now_ms: float) -> tuple[Answer, list[Effect]]:
        """Commit what a window folded."""
        self._now_ms = now_ms
        incoming = self._incoming.setdefault(message.header.sender, Incoming(self.incarnation))
        match incoming.admit(message.header):
            case Foreign():
                return Refused(self.incarnation), []
            case Repeat(answer):
                return answer, []
        effects: list[Effect] = []
        if message.keys:
            self.lag_ms = now_ms - message.oldest_ms
        invalidations: list[tuple[str, Invalidate]] = []
        for item in message.keys:
            operations: list[Operation] = [
                operation for operation in item.operations if not isinstance(operation, Invalidate)
            ]
            invalidations.extend((item.key, each) for each in item.operations if isinstance(each, Invalidate))
            if operations:
                self._operate(item.key, operations, item.count, message.oldest_ms)
        for key, invalidation in invalidations:
            self._invalidate(key, exact=invalidation.exact, which="all", refetch=invalidation.refetch, effects=effects)
        for feed in message.feeds:
            self._advance(feed, effects)
        self._flush(effects)
        return incoming.answered(BatchCommitted(self.incarnation, self.offset)), effects

    def _operate(self, key: str, operations: list[Operation], count: int, oldest_ms: float) -> None:
        entry = self.cache.get(key)
        if entry is not None and entry.query is not None:
            self._remember(entry, operations)
        outcome = apply_all(operations, None if entry is None else entry.value)
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
        self._commit(entry, outcome.value, outcome.patch, count, oldest_ms)
        if is_new and entry.query is not None and not isinstance(operations[0], Set):
            entry.is_invalidated = True  # it holds what came since now; the first reader has the rest fetched
            self._remember(entry, operations)

    def _remember(self, entry: Entry, operations: list[Operation]) -> None:
        """Keep what a fetch's response may not hold yet."""
        keep_from = self._now_ms - self._replay_ms
        if entry.fetch is not None:
            keep_from = min(keep_from, entry.fetch.since_ms)
        while entry.recent and entry.recent[0][0] < keep_from:
            entry.recent.popleft()
        entry.recent.append((self._now_ms, operations))

    # --- feeds ---------------------------------------------------------------------------------------------------

    def _advance(self, feed: FeedRange, effects: list[Effect]) -> None:
        """Move a feed's cursor; where numbers are missing, reset what the feed feeds."""
        empty = feed.first > feed.last
        if empty and not feed.previous:
            if feed.incarnation > self._opened.get(feed.feed, 0):
                self._opened[feed.feed] = feed.incarnation
                self._gap(feed.feed, None, effects)
            return
        incarnation, last = self._cursors.get(feed.feed, (0, 0))
        if feed.incarnation < incarnation:
            return
        source, _, channel = feed.feed.partition("#")[0].partition("/")
        if feed.incarnation > incarnation:
            lost = feed.previous > 0 and (incarnation > 0 or empty)
        else:
            lost = feed.previous > last
        self._cursors[feed.feed] = (feed.incarnation, max(feed.last, feed.previous))
        if lost:
            self._gap(source, channel or None, effects)

    def _gap(self, source: str, channel: str | None, effects: list[Effect]) -> None:
        """Events may have been lost: tell watchers, and fetch anew what can be fetched."""
        for entry in list(self.cache):
            if not self._feeds.fed_by(source, channel, entry.parsed):
                continue
            self.resets += 1
            # What was received before the gap may be older than what was lost in it: replayed over a response, it would undo that.
            entry.recent.clear()
            if entry.query is not None:
                entry.is_invalidated = True
            for link in self._watchers.get(entry.key, ()):
                pending = link.pend(entry.key, entry.version)
                pending.reset = True
            if entry.query is not None and entry.key in self._watchers:
                self._fetch(entry, effects, again=True)

    # --- commits -------------------------------------------------------------------------------------------------

    def _create(self, key: str) -> Entry:
        canonical = CanonicalKey(key)
        entry = new_entry(canonical, self._queries.find(parse(canonical)))
        self.cache.add(entry)
        for link in self._links.values():
            if key not in link.watched and link.wants(entry):
                self._add_watcher(link, key)
        if key not in self._watchers:
            self._rest(entry)
        return entry

    def _rest(self, entry: Entry) -> None:
        """Nobody watches an entry (any longer)."""
        entry.idle_since = self._now_ms
        collect_at = entry.collect_at
        if collect_at is not None and not entry.queued:
            entry.queued = True
            heappush(self._idle, (collect_at, entry.key))

    def _collect(self) -> None:
        """Drop entries that nobody has watched or changed for their `gc_time`."""
        for _ in range(COLLECT_SLICE):
            if not self._idle or self._idle[0][0] > self._now_ms:
                return
            entry = self.cache.get(heappop(self._idle)[1])
            if entry is None or not entry.queued:
                continue
            entry.queued = False
            collect_at = entry.collect_at
            if entry.key in self._watchers or collect_at is None:
                continue
            if entry.fetch is not None or collect_at > self._now_ms:
                entry.queued = True
                heappush(self._idle, (max(collect_at, self._now_ms + COLLECT_AGAIN_MS), entry.key))
                continue
            self.collected += 1
            self._remove(entry)

    def _commit(self, entry: Entry, value: Value, patch: list[bytes] | None, count: int, oldest_ms: float) -> None:
        from_version = entry.version
        self.offset += 1
        entry.version = from_version + 1 if from_version else self.offset
        entry.value = value
        entry.data_updated_at = self._now_ms
        entry.status = "success"
        entry.error = None
        self.history.record(entry.key, from_version)
        size = sum(map(len, patch)) + len(patch) if patch is not None else 0
        for link in self._watchers.get(entry.key, ()):
            pending = link.pend(entry.key, from_version)
            pending.coalesced += count
            if patch is None or pending.patches is None:
                pending.patches = None
            else:
                pending.patches.extend(patch)
                pending.patch_bytes += size
            if oldest_ms and (not link.oldest_ms or oldest_ms < link.oldest_ms):
                link.oldest_ms = oldest_ms

    def _remove(self, entry: Entry) -> int:
        """Drop an entry. Returns a version greater than its last."""
        self.offset += 1
        self.history.record(entry.key, entry.version)
        self.cache.remove(entry)
        for link in self._watchers.get(entry.key, ()):
            pending = link.pend(entry.key, entry.version)
            pending.patches = None
            pending.reset = False
        if entry.fetch is not None:
            self._settle(entry, Failure(ErrorCode.NOT_FOUND, "the entry was removed while it was fetched"))
        return self.offset

    def _meta(self, entry: Entry, *, invalidated: bool = False) -> None:
        for link in self._watchers.get(entry.key, ()):
            pending = link.pend(entry.key, entry.version)
            pending.invalidated = pending.invalidated or invalidated

    # --- invalidation and fetches --------------------------------------------------------------------------------

    def _invalidate(self, key: str, *, exact: bool, which: str, refetch: str, effects: list[Effect]) -> int:
        if exact:
            found = self.cache.get(key)
            entries = [] if found is None else [found]
        else:
            entries = self.cache.matching(KeyMatcher(parse(key)))
        matched = 0
        for entry in entries:
            active = entry.key in self._watchers
            if which != "all" and active != (which == "active"):
                continue
            matched += 1
            self.invalidations += 1
            entry.is_invalidated = True
            self._meta(entry, invalidated=True)
            wanted = refetch == "all" or (refetch == "active" and active) or (refetch == "inactive" and not active)
            if entry.query is not None and (wanted or entry.fetch is not None):
                self._fetch(entry, effects, again=True)
        return matched

    def _fetch(self, entry: Entry, effects: list[Effect], *, again: bool = False) -> Fetch:
        """Start a fetch, or join the one under way; `again`: what that one returns is already out of date."""
        fetch = entry.fetch
        if fetch is not None:
            fetch.again = fetch.again or (again and fetch.running)
            return fetch
        self._next_fetch += 1
        fetch = entry.fetch = Fetch(self._next_fetch, self._now_ms - self._replay_ms)
        self._fetching[entry.key] = entry
        self._meta(entry)
        channels = self._channels.get(entry.key, [])
        if self.demand.settled(channels):
            self._start(entry, fetch, effects)
        else:
            fetch.start_by = self._now_ms + JOIN_WAIT_MS
        return fetch

    def _start(self, entry: Entry, fetch: Fetch, effects: list[Effect]) -> None:
        assert entry.query is not None
        fetch.start_by = fetch.retry_at = None
        fetch.running = True
        effects.append(StartFetch(entry.key, fetch.id, entry.query.request_for(entry.parsed)))

    def fetched(self, key: str, fetch_id: int, result: bytes | UpstreamError, now_ms: float) -> list[Effect]:
        """A request ended: with the JSON body, or not."""
        self._now_ms = now_ms
        effects: list[Effect] = []
        entry = self._fetching.get(key)
        fetch = None if entry is None else entry.fetch
        if entry is None or fetch is None or fetch.id != fetch_id:
            return effects
        fetch.running = False
        if isinstance(result, bytes):
            self._received(entry, fetch, result, effects)
        else:
            self._failed(entry, fetch, result)
        self._flush(effects)
        return effects

    def _received(self, entry: Entry, fetch: Fetch, body: bytes, effects: list[Effect]) -> None:
        replay = [operation for at, operations in entry.recent if at >= fetch.since_ms for operation in operations]
        unrepeatable = any(map(_is_unrepeatable, replay))
        if unrepeatable and fetch.tries < MAX_FETCH_TRIES - 1:
            fetch.tries += 1
            fetch.since_ms = self._now_ms
            self._start(entry, fetch, effects)
            return
        value: Value | None = Value.from_json(body)
        if replay:
            value = apply_all(replay, value).value
        self.fetches["success"] += 1
        entry.is_invalidated = fetch.again
        if value is None:
            self._settle(entry, Failure(ErrorCode.NOT_FOUND, "the entry was removed while it was fetched"))
            self._remove(entry)
            return
        if entry.value is not None and entry.value.json() == value.json():
            entry.status, entry.error, entry.data_updated_at = "success", None, self._now_ms
        else:
            self._commit(entry, value, None, 1, 0.0)
        again = fetch.again
        self._settle(entry, None)
        if again and entry.key in self._watchers:
            self._fetch(entry, effects)

    def _failed(self, entry: Entry, fetch: Fetch, error: UpstreamError) -> None:
        assert entry.query is not None
        if error.retryable and fetch.attempt < entry.query.retry:
            delay = retry_delay_ms(fetch.attempt, entry.query.retry_delay_ms)
            fetch.retry_at = self._now_ms + max(delay, error.retry_after_ms or 0.0)
            fetch.attempt += 1
            self.fetches["retry"] += 1
            return
        self.fetches["error"] += 1
        entry.status = "error"
        entry.error = (error.code, error.message)
        self._settle(entry, Failure(error.code, error.message) if entry.value is None else None)

    def _settle(self, entry: Entry, failure: Failure | None) -> None:
        """End a fetch: answer its callers, with the entry or a failure."""
        fetch = entry.fetch
        assert fetch is not None
        entry.fetch = None
        del self._fetching[entry.key]
        self._meta(entry)
        for gateway, request in fetch.waiters:
            link = self._links.get(gateway)
            if link is not None:
                link.answer(request, failure or entry.view())

    # --- requests ------------------------------------------------------------------------------------------------

    def requests(self, message: Requests, now_ms: float) -> tuple[Answer, list[Effect]]:
        """Carry out what a gateway asks."""
        self._now_ms = now_ms
        sender = message.header.sender
        incoming = self._incoming.setdefault(sender, Incoming(self.incarnation))
        effects: list[Effect] = []
        match incoming.admit(message.header):
            case Foreign():
                return Refused(self.incarnation), []
            case Repeat(answer):
                return answer, []
            case New(opened=True):
                self._open(sender)
        link = self._links[sender]
        answers: list[tuple[int, Payload]] = []
        for request in message.items:
            try:
                payload = self._request(link, request, effects)
            except HarborError as error:
                payload = Failure(error.code, error.message)
            if payload is not None:
                answers.append((request.id, payload))
        self._flush(effects)
        return incoming.answered(Answers(self.incarnation, self.epoch, answers)), effects

    def _open(self, gateway: str) -> None:
        link = self._links.get(gateway)
        if link is None:
            self._links[gateway] = GatewayLink(gateway, self.identity, self.incarnation)
        else:
            self._close(link)

    def _close(self, link: GatewayLink) -> None:
        for (address, watch), channels in list(self._prefix_channels.items()):
            if address == link.address:
                self.demand.release(channels, self._now_ms)
                del self._prefix_channels[address, watch]
        for key in link.clear():
            self._drop_watcher(link, key)

    def _request(self, link: GatewayLink, request: Request, effects: list[Effect]) -> Payload | None:
        match request:
            case Watch():
                self._watch(link, request, effects)
                return None
            case Unwatch(id=watch):
                self._unwatch(link, watch)
                return None
            case Missed():
                link.tasks.append(request)
                return None
            case Read():
                return self._read(link, request, effects)
            case InvalidateKeys(key=key, exact=exact, which=which, refetch=refetch):
                return Matched(self._invalidate(key, exact=exact, which=which, refetch=refetch, effects=effects))
            case ListKeys():
                return self._list(request)
            case Write() | Edit() | Erase():
                return self._write(request)

    def _read(self, link: GatewayLink, request: Read, effects: list[Effect]) -> Payload | None:
        entry = self.cache.get(request.key)
        query = entry.query if entry is not None else self._queries.find(parse(request.key))
        wanted = request.fetch == "force" or entry is None or entry.is_stale(self._now_ms)
        if query is not None and wanted and request.fetch != "never":
            if entry is None:
                entry = self._create(request.key)
            fetch = self._fetch(entry, effects)
            fetch.waiters.append((link.address, request.id))
            self.reads["fetch"] += 1
            return None
        if entry is None:
            self.reads["miss"] += 1
            return Failure(ErrorCode.NOT_FOUND, f"no entry {request.key}, and no query is declared for it")
        self.reads["hit"] += 1
        return entry.view()

    def _list(self, request: ListKeys) -> KeyList:
        matching = self.cache.matching(KeyMatcher(parse(request.prefix)))
        found = nsmallest(
            request.limit + 1, (entry for entry in matching if entry.key > request.after), key=lambda entry: entry.key
        )
        rows = [entry.info(self._now_ms, len(self._watchers.get(entry.key, ()))) for entry in found[: request.limit]]
        return KeyList(rows, len(found) > request.limit)

    def _write(self, request: Write | Edit | Erase) -> Payload:
        self._forget_results()
        known = self._results.get(request.request_id)
        if known is not None:
            return known[1]
        payload = self._carry_out(request)
        self._results[request.request_id] = (self._now_ms + REQUEST_MEMORY_MS, payload)
        return payload

    def _carry_out(self, request: Write | Edit | Erase) -> Payload:
        entry = self.cache.get(request.key)
        version = 0 if entry is None else entry.version
        if request.base_version is not None and request.base_version != version:
            current = None if entry is None else entry.view()
            return Failure(ErrorCode.VERSION_CONFLICT, f"the entry is at version {version}", current)
        if isinstance(request, Write):
            entry = entry or self._create(request.key)
            if entry.query is not None:
                self._remember(entry, [Set(request.data)])
            entry.is_invalidated = False
            self._commit(entry, Value.from_json(request.data), None, 1, 0.0)
            return Written(entry.version)
        if entry is None or (entry.value is None and isinstance(request, Edit) and request.operations is None):
            if isinstance(request, Erase) or request.operations is None:
                return Failure(ErrorCode.NOT_FOUND, f"no entry {request.key}")
        if isinstance(request, Erase):
            assert entry is not None
            return Written(self._remove(entry))
        return self._edit(request, entry)

    def _edit(self, request: Edit, entry: Entry | None) -> Payload:
        held = None if entry is None or entry.value is None else entry.value.json()
        if request.operations is not None:
            operations = request.operations
            outcome = apply_all(operations, None if held is None else Value.from_json(held))
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
        entry = entry or self._create(request.key)
        if entry.query is not None:
            self._remember(entry, operations)
        self._commit(entry, value, patch, len(operations), 0.0)
        return Written(entry.version)

    def _forget_results(self) -> None:
        for request_id, (until, _) in list(self._results.items())[:8]:
            if until <= self._now_ms:
                del self._results[request_id]

    # --- watches -------------------------------------------------------------------------------------------------

    def _watch(self, link: GatewayLink, request: Watch, effects: list[Effect]) -> None:
        link.watches[request.id] = request.key
        if not request.prefix:
            self._unwatch_exact(link, request.key)
            link.exact[request.key] = request.id
            self._add_watcher(link, request.key)
            entry = self.cache.get(request.key)
            if entry is None and self._queries.find(parse(request.key)) is not None:
                entry = self._create(request.key)
            if entry is not None and entry.query is not None and entry.is_stale(self._now_ms):
                self._fetch(entry, effects)
            link.tasks.append(request)
            return
        matcher = KeyMatcher(parse(request.key))
        link.prefixes[request.id] = matcher
        channels = self._feeds.channels_under(matcher.prefix)
        self._prefix_channels[link.address, request.id] = channels
        self.demand.need(channels)
        link.scan(request.id, self.offset, self.cache.matching(matcher))

    def _unwatch_exact(self, link: GatewayLink, key: str) -> None:
        """A second exact watch of a key takes the place of the first."""
        previous = link.exact.pop(key, None)
        if previous is not None:
            link.watches.pop(previous, None)

    def _unwatch(self, link: GatewayLink, watch: int) -> None:
        name = link.watches.pop(watch, None)
        if name is None:
            return
        matcher = link.prefixes.pop(watch, None)
        if matcher is None:
            del link.exact[name]
            keys = [name]
        else:
            self.demand.release(self._prefix_channels.pop((link.address, watch)), self._now_ms)
            keys = [key for key in link.watched if matcher.matches(key)]
        for key in keys:
            if key in link.exact or any(other.matches(key) for other in link.prefixes.values()):
                continue
            link.watched.discard(key)
            link.pending.pop(key, None)
            self._drop_watcher(link, key)

    def _add_watcher(self, link: GatewayLink, key: str) -> None:
        if key in link.watched:
            return
        link.watched.add(key)
        links = self._watchers.setdefault(key, [])
        links.append(link)
        if len(links) == 1:
            channels = self._channels[key] = self._feeds.channels_for(parse(key))
            self.demand.need(channels)

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

    # --- sending -------------------------------------------------------------------------------------------------

    def _flush(self, effects: list[Effect]) -> None:
        """Send what can be sent: change sets on idle links, channel demands, fetches whose channels are joined."""
        for entry in list(self._fetching.values()):
            fetch = entry.fetch
            assert fetch is not None
            if fetch.start_by is not None and self.demand.settled(self._channels.get(entry.key, [])):
                self._start(entry, fetch, effects)
        effects.extend(self.demand.sends(self._now_ms))
        for link in self._links.values():
            if link.link.idle and link.busy:
                effects.append(self._change_set(link))

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
            for item in encode_pending(pending, key, entry, self.offset):
                items.append(item)
                size += 64 + len(getattr(item, "data", None) or b"") + len(getattr(item, "patch", None) or b"")
        looked_at = 0
        while not link.pending and link.tasks and size < SLICE_BYTES and looked_at < SLICE_ENTRIES:
            task = link.tasks[0]
            match task:
                case Answered():
                    items.append(task)
                case Missed():
                    items.append(self._missed(task))
                case Watch(id=watch, key=key):
                    if link.exact.get(key) == watch:
                        entry = self.cache.get(key)
                        items.append(Absent(watch) if entry is None else Snapshot(watch, entry.view()))
                        size += 0 if entry is None or entry.value is None else entry.value.size()
                case scan:
                    entry = next(scan.remaining, None) if scan.watch in link.prefixes else None
                    looked_at += 1
                    if entry is not None:
                        if self.cache.get(entry.key) is entry:
                            self._add_watcher(link, entry.key)
                            items.append(Snapshot(scan.watch, entry.view()))
                            size += 64 + (0 if entry.value is None else entry.value.size())
                        continue
                    if scan.watch in link.prefixes:
                        items.append(Ready(scan.watch, scan.offset))
            link.tasks.popleft()
        complete = not link.pending
        message = ChangeSet(link.link.header(), self.epoch, self.offset if complete else -1, link.oldest_ms, items)
        link.oldest_ms = 0.0
        link.sent_at = self._now_ms
        link.link.sent(message)
        return Send(link.address, message)

    def _missed(self, request: Missed) -> MissedKeys:
        missed = self.history.since(request.offset) if request.epoch == self.epoch else None
        if missed is None:
            return MissedKeys(request.id, reset=True, keys=[])
        if not request.prefix:
            keys = [(request.key, missed[request.key])] if request.key in missed else []
        else:
            matcher = KeyMatcher(parse(request.key))
            keys = [(key, version) for key, version in missed.items() if matcher.matches(key)]
        return MissedKeys(request.id, reset=False, keys=keys)

    # --- time and answers ----------------------------------------------------------------------------------------

    def announce(self, message: Announce, now_ms: float) -> tuple[Answer, list[Effect]]:
        """An ingestor lives anew."""
        self._now_ms = now_ms
        if self.demand.knows(message.sender):
            self.demand.announced(message.sender, message.incarnation)
        effects: list[Effect] = []
        self._flush(effects)
        return Noted(self.incarnation), effects

    def answered(self, to: str, message: Any, answer: Answer, now_ms: float) -> list[Effect]:
        """A peer answered `message`."""
        self._now_ms = now_ms
        if isinstance(answer, Noted):
            self._announcements.answered(to)
        elif isinstance(message, Demand):
            self.demand.answered(to, message, answer, now_ms)
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
        effects: list[Effect] = []
        self._flush(effects)
        return effects

    def unanswered(self, to: str, message: Any, now_ms: float) -> list[Effect]:
        """The call failed; what it carried is kept and sent again."""
        self._now_ms = now_ms
        if isinstance(message, Announce):
            self._announcements.unanswered(to, now_ms, RETRY_MS)
        elif isinstance(message, Demand):
            self.demand.unanswered(to, message, now_ms)
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
        times = [self._announcements.deadline(), self.demand.deadline(), self._idle[0][0] if self._idle else None]
        times.extend(link.deadline() for link in self._links.values())
        for entry in self._fetching.values():
            fetch = entry.fetch
            assert fetch is not None
            times.append(fetch.due)
        return min((at for at in times if at is not None), default=None)

    def wake(self, now_ms: float) -> list[Effect]:
        """Do what is due."""
        self._now_ms = now_ms
        effects: list[Effect] = [*self._announcements.wake(now_ms)]
        for entry in list(self._fetching.values()):
            fetch = entry.fetch
            assert fetch is not None
            if fetch.due is not None and fetch.due <= now_ms:
                self._start(entry, fetch, effects)
        self._collect()
        for source, channel in self.demand.expired(now_ms):
            for entry in self.cache:
                if entry.key not in self._watchers and self._feeds.fed_by(source, channel, entry.parsed):
                    entry.is_invalidated = True
        self._flush(effects)
        for link in self._links.values():
            if not link.link.idle:
                message = link.link.resend(now_ms)
                if message is not None:
                    effects.append(Send(link.address, message))
            elif (due := link.deadline()) is not None and due <= now_ms:
                effects.append(self._change_set(link))
        return effects

    # --- figures -------------------------------------------------------------------------------------------------

    @property
    def subscriptions(self) -> int:
        """Watches of all gateways."""
        return sum(len(link.watches) for link in self._links.values())

    def bytes_held(self) -> int:
        """Bytes of JSON in the cache."""
        return sum(entry.value.size() for entry in self.cache if entry.value is not None)

    def view(self, key: str) -> EntryView | None:
        """Return an entry as readers see it."""
        entry = self.cache.get(key)
        return None if entry is None else entry.view()


def _is_unrepeatable(operation: Operation) -> bool:
    """Whether applying an operation to a value that already holds its effect changes the value again."""
    if isinstance(operation, Increment):
        return True
    if isinstance(operation, Append | Prepend):
        try:
            return any(identity(decode(item, 0), operation.by) is None for item in operation.items)
        except OperationError:
            return False  # it will not be applied at all
    return False
