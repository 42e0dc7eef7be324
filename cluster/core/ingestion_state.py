"""Ingestion: from frames of upstream streams to folded operations per shard.

`receive` is the hottest path of the cluster (100,000 calls a second and more), so it breaks the pattern of the other machines: it
returns no effects, only whether to go on reading. What it collects leaves through `wake`.

Pending operations fold by key, so what waits is bounded by the distinct keys and by list operations; when it passes the high-water
mark sources are told to stop reading, and to go on at the low-water mark. A coordinator that dies takes an open window with it; this
end then says to the next one, per feed and shard, what should have arrived (`FeedRange`), and shards reset what missed some.

It is one thing because the hot path, the marks that make loss visible and the timing of blobs share the numbering of feeds.

What must not live here: sockets and reconnecting (`cluster.sources`), what an event means (`rule`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from cluster.core.broadcast import is_broadcast
from cluster.core.fold import Fold
from cluster.core.link import Announcements, Foreign, Incoming, Outgoing, Repeat
from cluster.core.messages import (
    Announce,
    Answer,
    Blob,
    BlobTaken,
    Demand,
    DemandMet,
    FeedRange,
    Full,
    KeyOperations,
    Noted,
    Part,
    Refused,
    Send,
    SourceStates,
)
from cluster.core.operation import Operation
from cluster.core.placement import SlotMap, coordinator_of
from cluster.core.query_key import CanonicalKey
from cluster.core.rule import Envelope, FrameFault, Route, Router
from cluster.core.source_news import SourceNews
from cluster.core.window import Profile

HIGH_WATER_BYTES = 4 * 1024 * 1024
"""Pending operations at which sockets are no longer read: about two windows of a 100,000 events/s list stream."""
LOW_WATER_BYTES = 1024 * 1024
EARLY_BYTES = 256 * 1024
"""A blob of this size leaves before its window's end. Smaller ones wait: folding here is free, a call is not (1-3 ms of CPU a side)."""
SPACING_MS = 25.0
"""Blobs to one coordinator are never closer than this, so that calls stay few at any rate."""
AIM_MS, AIM_MIN_MS, AIM_MAX_MS = 20.0, 8.0, 60.0
"""How long before a window's close its blob is sent: first guess and bounds. Each acknowledgement says how much was to spare."""
SPARE_MS = 6.0
"""Aimed-for time between a blob's arrival and the window's close."""
RETRY_MS = 100.0
KNOWN_KEYS = 200_000
"""Memoised key -> shard; beyond it the memo starts over (about 40 MB)."""


class Join(Struct, frozen=True):
    """Effect: join `channel` on `source`."""

    source: str
    channel: str


class Leave(Struct, frozen=True):
    """Effect: leave `channel` on `source`."""

    source: str
    channel: str


class Resume(Struct, frozen=True):
    """Effect: read `source` again."""

    source: str


Effect = Send | Join | Leave | Resume


class _Feed:
    """One ordered sequence of events, in one incarnation."""

    __slots__ = ("incarnation", "name", "number", "sent")

    def __init__(self, name: str, incarnation: int) -> None:
        self.name = name
        self.incarnation = incarnation
        self.number = 0
        self.sent: dict[int, int] = {}
        """Last number sent, by shard."""


class _Pending:
    """What waits to be sent to one shard in one profile."""

    __slots__ = ("feeds", "folds", "line", "oldest_ms", "profile", "shard")

    def __init__(self, line: "_Line", shard: int, profile: int) -> None:
        self.line = line
        self.shard = shard
        self.profile = profile
        self.folds: dict[str, Fold] = {}
        self.feeds: dict[_Feed, list[int]] = {}
        """[first, last] number, by feed."""
        self.oldest_ms = 0.0

    def take(self, marks: Sequence[FeedRange]) -> Part:
        ranges = []
        for feed, (first, last) in self.feeds.items():
            ranges.append(FeedRange(feed.name, feed.incarnation, first, last, feed.sent.get(self.shard, 0)))
            feed.sent[self.shard] = last
        keys = [KeyOperations(key, fold.operations(), fold.count, fold.origin) for key, fold in self.folds.items()]
        part = Part(self.shard, self.profile, [*marks, *ranges], keys, self.oldest_ms)
        self.folds, self.feeds, self.oldest_ms = {}, {}, 0.0
        return part


class _Line:
    """The link to one coordinator and what waits for it."""

    __slots__ = ("address", "aim_ms", "close_at", "early", "link", "marks", "pending", "sent_at", "size", "urgent")

    def __init__(self, address: str, identity: str, incarnation: int) -> None:
        self.address = address
        self.link = Outgoing(identity, incarnation)
        self.pending: dict[tuple[int, int], _Pending] = {}
        self.marks: dict[int, list[FeedRange]] = {}
        """Empty ranges to go first, by shard."""
        self.size = 0
        self.early = False
        """Enough waits to be sent before the window's end."""
        self.urgent = False
        """Something waits that the coordinator may send at once."""
        self.sent_at = 0.0
        self.close_at = 0.0
        """A past or coming close of the coordinator's window, as last heard."""
        self.aim_ms = AIM_MS

    def due(self, window_ms: float) -> float | None:
        if not self.link.idle:
            return self.link.retry_at
        if self.marks:
            return 0.0
        if not self.size:
            return None
        soonest = self.sent_at + SPACING_MS
        if self.urgent or self.size >= EARLY_BYTES:
            return soonest
        aimed = self.close_at - self.aim_ms
        earliest = max(soonest, self.oldest_ms())
        if aimed < earliest:
            aimed += -(-(earliest - aimed) // window_ms) * window_ms
        return aimed

    def oldest_ms(self) -> float:
        return min((pending.oldest_ms for pending in self.pending.values() if pending.oldest_ms), default=0.0)


class _Source:
    __slots__ = ("decode", "feeds", "incarnation", "memo", "name", "paused", "router")

    def __init__(self, name: str, router: Router) -> None:
        self.name = name
        self.router = router
        self.decode = router.decode
        self.memo: dict[tuple[str, str | None], tuple[tuple[Route, _Feed], ...]] = {}
        self.feeds: dict[str, _Feed] = {}
        self.incarnation = 0
        self.paused = False


class IngestionState:
    """See the module."""

    def __init__(
        self,
        identity: str,
        incarnation: int,
        *,
        routers: Mapping[str, Router],
        always: Sequence[tuple[str, str]],
        slots: SlotMap,
        shards: int,
        coordinators: int,
        profiles: Sequence[Profile],
        gateways: Sequence[str] = (),
    ) -> None:
        self.identity = identity
        self.incarnation = incarnation
        self._news = SourceNews(identity, incarnation, gateways)
        self._sources = {name: _Source(name, router) for name, router in routers.items()}
        self._slots = slots
        self._shards = range(shards)
        self._lines = [_Line(f"coordinator-{n}", identity, incarnation) for n in range(coordinators)]
        self._by_address = {line.address: line for line in self._lines}
        self._line_of = [self._lines[coordinator_of(shard, coordinators)] for shard in self._shards]
        self._window_ms = profiles[0].window_ms
        self._leading = [profile.mode == "leading" for profile in profiles]
        self._targets: list[dict[str, _Pending]] = [{} for _ in profiles]
        self._always = frozenset(always)
        self._demanded: dict[tuple[str, str], set[str]] = {}
        self._incoming: dict[str, Incoming] = {}
        self._announcements = Announcements(identity, incarnation, [f"shard-{shard}" for shard in self._shards])
        self.bytes_pending = 0
        self.rearm = False
        """The deadline may have come nearer since the shell last looked; it takes this back when it has."""
        self.events_received: dict[str, int] = dict.fromkeys(routers, 0)
        self.events_dropped: Counter[tuple[str, str]] = Counter()
        """By (source, reason)."""
        self.operations: Counter[str] = Counter()
        """By operation kind."""

    # --- the hot path --------------------------------------------------------------------------------------------

    def receive(self, source_name: str, frame: bytes, now_ms: float) -> bool:
        """Take one frame. Returns False when the source must stop reading until it is told to `Resume`.

        Raises:
            FrameFault: the frame is unusable; it is counted, and the stream may go on.
        """
        source = self._sources[source_name]
        try:
            decoded = source.decode(frame)
        except FrameFault as fault:
            self.events_dropped[source_name, fault.reason] += 1
            raise
        if isinstance(decoded, list):
            for envelope in decoded:
                if isinstance(envelope, FrameFault):
                    self.events_dropped[source_name, envelope.reason] += 1
                else:
                    self._take(source, envelope, now_ms)
        else:
            self._take(source, decoded, now_ms)
        if self.bytes_pending > HIGH_WATER_BYTES:
            source.paused = True
            return False
        return True

    def receive_event(self, source_name: str, event: str, data: bytes, event_id: str | None, now_ms: float) -> bool:
        """As `receive`, for an event of a server-sent stream.

        Raises:
            FrameFault: the data is unusable.
        """
        source = self._sources[source_name]
        try:
            envelope = source.router.decode_sse(event, data, event_id)
        except FrameFault as fault:
            self.events_dropped[source_name, fault.reason] += 1
            raise
        self._take(source, envelope, now_ms)
        if self.bytes_pending > HIGH_WATER_BYTES:
            source.paused = True
            return False
        return True

    def _take(self, source: _Source, envelope: Envelope, now_ms: float) -> None:
        self.events_received[source.name] += 1
        try:
            routes = source.memo[envelope.event, envelope.channel]
        except KeyError:
            routes = self._routes(source, envelope.event, envelope.channel)
        if not routes:
            self.events_dropped[source.name, "no_rule"] += 1
            return
        for route, feed in routes:
            number = feed.number = feed.number + 1
            targets = self._targets[route.profile]
            for key, operation in route.apply(envelope.data, envelope.id):
                pending = targets.get(key)
                if pending is None:
                    if is_broadcast(key):
                        self._everywhere(route, feed, number, key, operation, now_ms)
                        continue
                    pending = self._target(route.profile, key)
                fold = pending.folds.get(key)
                if fold is None:
                    fold = pending.folds[key] = Fold()
                    size = len(key) + fold.add(operation)
                    if not pending.oldest_ms:
                        pending.oldest_ms = now_ms
                        self.rearm = True
                        if self._leading[route.profile]:
                            pending.line.urgent = True
                else:
                    size = fold.add(operation)
                fold.origin = route.origin
                line = pending.line
                line.size += size
                self.bytes_pending += size
                if line.size >= EARLY_BYTES and not line.early:
                    line.early = self.rearm = True
                span = pending.feeds.get(feed)
                if span is None:
                    pending.feeds[feed] = [number, number]
                else:
                    span[1] = number

    def _routes(self, source: _Source, event: str, channel: str | None) -> tuple[tuple[Route, _Feed], ...]:
        if len(source.memo) > KNOWN_KEYS:
            source.memo.clear()
        routes = []
        for route in source.router.route(event, channel):
            name = route.feed if not route.profile else f"{route.feed}#{route.profile}"
            feed = source.feeds.get(name)
            if feed is None:
                feed = source.feeds[name] = _Feed(name, source.incarnation)
            routes.append((route, feed))
        source.memo[event, channel] = found = tuple(routes)
        return found

    def _target(self, profile: int, key: str) -> _Pending:
        targets = self._targets[profile]
        if len(targets) > KNOWN_KEYS:
            targets.clear()
        pending = targets[key] = self._pending(profile, self._slots.shard(CanonicalKey(key)))
        return pending

    def _pending(self, profile: int, shard: int) -> _Pending:
        line = self._line_of[shard]
        pending = line.pending.get((shard, profile))
        if pending is None:
            pending = line.pending[shard, profile] = _Pending(line, shard, profile)
        return pending

    def _everywhere(
        self, route: Route, feed: _Feed, number: int, key: str, operation: Operation, now_ms: float
    ) -> None:
        """What is not about one key concerns every shard."""
        profile = route.profile
        for shard in self._shards:
            pending = self._pending(profile, shard)
            fold = pending.folds.setdefault(key, Fold())
            fold.origin = route.origin
            size = len(key) + fold.add(operation)
            pending.line.size += size
            self.bytes_pending += size
            pending.oldest_ms = pending.oldest_ms or now_ms
            self.rearm = True
            pending.line.urgent = pending.line.urgent or self._leading[profile]
            pending.feeds.setdefault(feed, [number, number])[1] = number

    # --- connections and channels --------------------------------------------------------------------------------

    def opened(self, source_name: str, now_ms: float) -> list[Effect]:
        """The connection of a source is up, for the first time or again: its feeds begin a new incarnation."""
        source = self._sources[source_name]
        source.incarnation = max(source.incarnation + 1, int(now_ms))
        source.feeds.clear()
        source.memo.clear()
        mark = FeedRange(source_name, source.incarnation, 1, 0, 0)
        for shard in self._shards:
            self._line_of[shard].marks.setdefault(shard, []).append(mark)
        return self.wake(now_ms)

    def state_changed(self, source_name: str, state: str, now_ms: float) -> list[Effect]:
        """A source is in another state: gateways are told."""
        self._news.changed(source_name, state)
        return self.wake(now_ms)

    def demand(self, message: Demand) -> tuple[Answer, list[Effect]]:
        """A shard says which channels its watched entries need."""
        sender = message.header.sender
        incoming = self._incoming.setdefault(sender, Incoming(self.incarnation))
        match incoming.admit(message.header):
            case Foreign():
                return Refused(self.incarnation), []
            case Repeat(answer):
                return answer, []
        effects: list[Effect] = []
        wanted = set(message.add)
        if message.whole:
            held = {channel for channel, shards in self._demanded.items() if sender in shards}
            dropped = held - wanted
        else:
            dropped = set(message.drop)
        for channel in message.add:
            shards = self._demanded.setdefault(channel, set())
            if not shards and channel not in self._always:
                effects.append(Join(*channel))
            shards.add(sender)
        for channel in sorted(dropped):
            shards = self._demanded.get(channel, set())
            shards.discard(sender)
            if not shards and self._demanded.pop(channel, None) is not None and channel not in self._always:
                effects.append(Leave(*channel))
        joined = [channel for channel in message.add if self._open(channel[0])]
        return incoming.answered(DemandMet(self.incarnation, joined)), effects

    def _open(self, source: str) -> bool:
        known = self._sources.get(source)
        return known is not None and known.incarnation > 0

    # --- sending -------------------------------------------------------------------------------------------------

    def announce(self, message: Announce, now_ms: float) -> tuple[Answer, list[Effect]]:
        """A coordinator lives anew: what the old life had not passed on is lost, and shards must learn of it."""
        line = self._by_address.get(message.sender)
        if line is not None and line.link.peer not in (0, message.incarnation):
            self._relink(line)
        return Noted(self.incarnation), self.wake(now_ms)

    def _relink(self, line: _Line) -> None:
        line.link.relink()
        for source in self._sources.values():
            for feed in source.feeds.values():
                for shard, last in feed.sent.items():
                    if self._line_of[shard] is line:
                        mark = FeedRange(feed.name, feed.incarnation, last + 1, last, last)
                        line.marks.setdefault(shard, []).append(mark)
            if source.incarnation:
                opened = FeedRange(source.name, source.incarnation, 1, 0, 0)
                for shard in self._shards:
                    if self._line_of[shard] is line:
                        line.marks.setdefault(shard, []).append(opened)

    def deadline(self) -> float | None:
        """When the next blob or announcement is due."""
        due = min(
            (at for at in (self._announcements.deadline(), self._news.deadline()) if at is not None), default=None
        )
        for line in self._lines:
            at = line.due(self._window_ms)
            if at is not None and (due is None or at < due):
                due = at
        return due

    def wake(self, now_ms: float) -> list[Effect]:
        """Send what is due."""
        effects: list[Effect] = [*self._announcements.wake(now_ms), *self._news.wake(now_ms)]
        for line in self._lines:
            if not line.link.idle:
                blob = line.link.resend(now_ms)
                if blob is not None:
                    effects.append(Send(line.address, blob))
            elif (due := line.due(self._window_ms)) is not None and due <= now_ms:
                effects.append(self._send(line, now_ms))
        if self.bytes_pending <= LOW_WATER_BYTES:
            for source in self._sources.values():
                if source.paused:
                    source.paused = False
                    effects.append(Resume(source.name))
        return effects

    def _send(self, line: _Line, now_ms: float) -> Send:
        parts = []
        for (shard, _profile), pending in line.pending.items():
            if pending.folds:
                part = pending.take(line.marks.pop(shard, ()))
                self._count(part)
                parts.append(part)
        parts.extend(Part(shard, 0, marks, [], now_ms) for shard, marks in line.marks.items())
        line.marks.clear()
        self.bytes_pending -= line.size
        line.size = 0
        line.urgent = line.early = False
        line.sent_at = now_ms
        blob = Blob(line.link.header(), parts)
        line.link.sent(blob)
        return Send(line.address, blob)

    def _count(self, part: Part) -> None:
        """Count operations by kind; what was folded away counts as the kind it was folded into."""
        for key in part.keys:
            folded_away = key.count - len(key.operations)
            for operation in key.operations:
                kind = type(operation).__name__.lower()
                self.operations[kind] += 1 + folded_away
                folded_away = 0

    def answered(self, to: str, message: Any, answer: Answer, now_ms: float) -> list[Effect]:
        """A peer answered `message`."""
        if isinstance(message, SourceStates):
            self._news.answered(to)
            return self.wake(now_ms)
        if isinstance(answer, Noted):
            self._announcements.answered(to)
            return []
        line = self._by_address[to]
        if line.link.in_flight is not message:
            return []
        match answer:
            case BlobTaken(incarnation=incarnation, window_left_ms=left):
                line.link.acknowledged(incarnation)
                line.close_at = now_ms + left
                spare = left if left < self._window_ms / 2 else left - self._window_ms
                if now_ms - line.sent_at < self._window_ms and not line.urgent:
                    line.aim_ms = min(max(line.aim_ms + (SPARE_MS - spare) / 4, AIM_MIN_MS), AIM_MAX_MS)
            case Full(retry_ms=retry_ms):
                line.link.failed(now_ms, retry_ms)
            case Refused():
                self._relink(line)
            case _:
                raise AssertionError(f"{to} answered ingestion with {answer!r}")
        return self.wake(now_ms)

    def unanswered(self, to: str, message: Any, now_ms: float) -> list[Effect]:
        """The call failed; what it carried is kept and sent again."""
        if isinstance(message, Announce):
            self._announcements.unanswered(to, now_ms, RETRY_MS)
        elif isinstance(message, SourceStates):
            self._news.unanswered(to, now_ms)
        elif self._by_address[to].link.in_flight is message:
            self._by_address[to].link.failed(now_ms, RETRY_MS)
        return []
