"""Ingestion: from frames of upstream streams to folded operations per shard.

`receive` is the hottest path of the cluster (100,000 frames a second and more), so it takes the frames of a read at once, and breaks the
pattern of the other machines: it returns no effects, only whether to go on reading. What it collects leaves through `wake`. Frames of reads that
are all of one kind gather (`gathering`): they count as pending, and are taken before anything looks that could tell the difference.

Pending operations fold by key, so what waits is bounded by the distinct keys and by list operations; with what was sent and is not
committed yet it counts towards the high-water mark, at which sources are told to stop reading, until the low-water mark.

A life begins with a claim (`ingestion_line`): what have the shards committed, and at which checkpoints do sequences go on? Then sources are
started. Where an upstream repeats what came after an event (`Repeats`), its sequence goes on as if nothing had happened, and shards are
not sent what they have. Where it cannot, or has forgotten, the sequence begins a new incarnation, and shards invalidate what it feeds.

Several ingestors divide the units (`placement.unit`): sources, or the channels of a source one by one where each is joined by a message of
its own. A unit's events are one sequence. When the ingestors change, units are handed over (`hand_over`).

It is one thing because the hot path, the marks that make loss visible and the timing of blobs share the numbering of feeds.

What must not live here: sockets and reconnecting (`cluster.sources`), what an event means (`rule`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

from msgspec import Raw, Struct

from cluster.core.broadcast import is_broadcast
from cluster.core.dead_letters import DeadLetters
from cluster.core.feed import OPENED, EventId, Feed, Held, Repeats, feed_name, follows, owner, stem
from cluster.core.feed import Sequence as EventSequence
from cluster.core.fold import Fold
from cluster.core.gathering import Gathering
from cluster.core.hand_over import MAX_HELD, HandOvers, Manner, Taking
from cluster.core.ingestion_cut import IngestionCut, inherit
from cluster.core.ingestion_line import CLAIM_AGAIN_MS, EARLY_BYTES, Line, Pending
from cluster.core.link import Announcements, Foreign, Incoming, Repeat
from cluster.core.messages import (
    Announce,
    Answer,
    Blob,
    BlobTaken,
    Checkpoint,
    Claim,
    Claimed,
    Demand,
    DemandMet,
    FeedRange,
    Full,
    Gateways,
    HandOver,
    Members,
    Moved,
    Noted,
    Part,
    Progress,
    Rebalance,
    Refused,
    Send,
    SourceStates,
    Take,
)
from cluster.core.operation import KINDS, Operation, Set
from cluster.core.overflow import Overflow, Waiting
from cluster.core.placement import SlotMap, coordinator_of, unit
from cluster.core.query_key import CanonicalKey
from cluster.core.rate import TokenBucket
from cluster.core.rule import Envelope, FrameFault, Head, Made, Route, Router, kept
from cluster.core.source_news import SourceNews
from cluster.core.transform import HeardOn
from cluster.core.unasked_channels import UnaskedChannels
from cluster.core.window import Profile

HIGH_WATER_BYTES = 16 * 1024 * 1024
"""Pending and uncommitted operations at which sockets are no longer read: several windows of a 100,000 events/s list stream. Sources that
have made less than their share of them are read on, until there is twice as much."""
LOW_WATER_BYTES = 4 * 1024 * 1024
SHARES_MS = 1_000.0
"""How often it is measured how much each source makes."""
AIM_MIN_MS, AIM_MAX_MS = 8.0, 60.0
"""Bounds of how long before a window's close its blob is sent."""
SPARE_MS = 6.0
"""Aimed-for time between a blob's arrival and the window's close."""
RETRY_MS = 100.0
KNOWN_KEYS = 200_000
"""Memoised key -> shard; beyond it the memo starts over (about 40 MB). Of a source, (channel, event) -> routes; beyond it the channels that
were heard first are looked up anew when they are heard again. And channels whose rates are limited, of which all may have a burst again."""
KNOWN_NAMES = 1_000
"""Of those, events of one channel: an upstream that makes up names costs itself the memo of that channel, and others nothing."""
FORGET_ROUTES = 1_000
"""So many are forgotten at once, or a channel's more: some milliseconds at most, and finding the oldest channel is paid for once."""
CLAIM_WAIT_MS = 15_000.0
"""A shard that has not answered the first claim by then does not keep the sources waiting; what they feed counts as lost. Unless said otherwise: a
shard may have to wait for its store."""
MANY_CHANNELS = 256
"""When so many channels of a source may have missed events, the whole source counts as having: one mark in place of thousands."""
LIMITED_MS = 1_000.0
"""How often shards are told, at most, that events of a channel were left out since there were too many."""
MANY = 16
"""Events of one read from which on it is worth looking whether they can be taken at once."""
TELL_MS = 1_000.0
"""A checkpoint waits for a blob to go with for at most so long."""


class Start(Struct, frozen=True):
    """Effect: begin to read `source`."""

    source: str


class Stop(Struct, frozen=True):
    """Effect: read `source` no longer, and close its connection."""

    source: str


class Reconnect(Struct, frozen=True):
    """Effect: take nothing more from the connection of `source`, and open another at once."""

    source: str


class AskMissed(Struct, frozen=True):
    """Effect: ask what came after event `since`; feed the answer to `missed`, with this."""

    source: str
    number: int
    since: EventId


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


Effect = Send | Start | Stop | Reconnect | Join | Leave | Resume | AskMissed


_HEAD, _DATA = attrgetter("channel", "event"), attrgetter("data")
_Routes = tuple[EventSequence, tuple[tuple[Route, Feed], ...]]
"""The sequence that events of one name on one channel count in, and what to do with them."""


class _Source:
    __slots__ = (
        "asked",
        "asks",
        "awaiting",
        "bucket",
        "buckets",
        "decode",
        "dropped",
        "elsewhere",
        "faults",
        "feeds",
        "gathers",
        "has_ids",
        "head",
        "high_water",
        "is_home",
        "is_open",
        "is_running",
        "is_spread",
        "joined",
        "kept",
        "left",
        "limited",
        "made",
        "max_buffer",
        "memo",
        "name",
        "names",
        "overflow",
        "paused",
        "paused_at",
        "received",
        "refused",
        "remembered",
        "repeats",
        "resume_at",
        "router",
        "seen",
        "sequences",
        "unasked",
        "waiting",
    )

    def __init__(  # noqa: PLR0915 - what is known of a source, in one place
        self, name: str, router: Router, traits: "SourceTraits"
    ) -> None:
        self.name = name
        self.router = router
        self.decode = router.decode
        self.faults = router.faults
        self.repeats = traits.repeats
        self.asks = traits.asks
        self.is_spread = traits.is_spread or traits.repeats is Repeats.CHANNEL
        self.has_ids = traits.has_ids
        self.overflow = traits.overflow
        self.max_buffer = traits.max_buffer
        self.received = 0
        """Events."""
        self.head: Head | None = None
        """The kind of all events of the last read, if they were of one."""
        self.gathers = False
        """And a third of them folded, at least, and need not leave at once: such reads are taken several at a time."""
        self.made = 0
        """Bytes of operations that its events have made, lately."""
        self.high_water = float(traits.max_buffer)
        """Bytes pending, of all sources, at which this one is no longer read."""
        self.bucket = None if traits.max_rate is None else TokenBucket(traits.max_rate, 0.0)
        self.resume_at: float | None = None
        """When it may be read again, having been faster than it may be."""
        self.buckets: dict[str | None, dict[int, TokenBucket]] = {}
        """By channel and stream, where that has a limit for each."""
        self.limited: dict[str | None, float] = {}
        """Channels of which events were left out, and when to say so."""
        self.waiting: Waiting | None = None
        """Events that come while too much is on its way, where they may not be paused."""
        self.dropped = False
        """Some of those were given up, or the connection is to be."""
        self.memo: dict[str | None, dict[str, _Routes]] = {}
        """By channel and event."""
        self.remembered = 0
        """Routes in it."""
        self.names: dict[str, str] = {}
        """Names of events in it, each held once."""
        self.feeds: dict[str, Feed] = {}
        self.sequences: dict[str, EventSequence] = {}
        """By name."""
        self.joined: dict[str, None] = {}
        """Channels."""
        self.unasked = UnaskedChannels()
        self.refused = Feed(name, EventSequence(name, 0))
        """Stands for the feeds of channels that there are too many of: nothing of it is sent."""
        self.elsewhere = EventSequence(name, 0)
        """Stands for all sequences that another ingestor has, or will."""
        self.elsewhere.is_elsewhere = self.elsewhere.guarded = True
        self.left: set[str] = set()
        """Channels left on this connection, of which something may still come."""
        self.is_home = False
        """The source itself is this ingestor's unit: it is read here whether channels of it are joined or not."""
        self.is_running = False
        """This ingestor reads it, or tries to."""
        self.is_open = False
        """It was connected, since it was started."""
        self.asked = 0
        self.awaiting = False
        """What was missed is being asked for; meanwhile nothing is taken."""
        self.kept: Held = []
        """Events that came meanwhile: those of a frame or two, since reading stops."""
        self.seen: set[str] = set()
        """Ids that came with what was missed, and may come again."""
        self.paused = False
        self.paused_at = 0.0

    def unit(self, channel: str | None) -> str:
        """Return the unit, which is also the sequence, that the events of a channel belong to."""
        return unit(self.name, channel, is_spread=self.is_spread)

    def unit_of(self, feed: str) -> str:
        """Return the unit that a feed of this source belongs to."""
        return stem(feed) if self.is_spread else self.name

    def join(self, channel: str) -> None:
        """A channel is to be joined."""
        self.joined[channel] = None
        self.unasked.discard(channel)

    def is_asked(self, sequence: str) -> bool:
        """Whether the upstream can be asked to go on with a sequence: as the whole source is, or since somebody has joined the channel."""
        _, slash, channel = sequence.partition("/")
        return channel in self.joined if slash else self.repeats is not Repeats.CHANNEL

    def remember(self, channel: str | None, event: str, routes: "_Routes") -> None:
        """Remember where events of a name go on a channel, within bounds."""
        if self.remembered >= KNOWN_KEYS:
            for oldest in list(islice(self.memo, FORGET_ROUTES)):
                self.remembered -= len(self.memo.pop(oldest))
                if self.remembered <= KNOWN_KEYS - FORGET_ROUTES:
                    break
        known = self.memo.setdefault(channel, {})
        if len(known) >= KNOWN_NAMES:
            self.remembered -= len(known)
            known.clear()
        if len(self.names) >= KNOWN_NAMES:
            self.names.clear()
        self.remembered += event not in known
        known[self.names.setdefault(event, event)] = routes

    def forget_routes(self, sequence: str) -> None:
        """A sequence ends: what is remembered of where its events go leads to it."""
        _, slash, channel = sequence.partition("/")
        if slash:
            self.remembered -= len(self.memo.pop(channel, ()))
        else:
            self.memo.clear()
            self.names.clear()
            self.remembered = 0


def _by_head(envelopes: Sequence[Envelope]) -> dict[Head, list[Raw | bytes]]:
    """Return the data of events by what they have in common."""
    heads = list(map(_HEAD, envelopes))
    if heads.count(heads[0]) == len(heads):
        return {heads[0]: list(map(_DATA, envelopes))}
    found: dict[Head, list[Raw | bytes]] = {}
    for head, envelope in zip(heads, envelopes, strict=True):
        found.setdefault(head, []).append(envelope.data)
    return found


class SourceTraits(Struct, frozen=True):
    """What matters here of how a source is configured."""

    repeats: Repeats = Repeats.NOTHING
    asks: bool = False
    """There is an endpoint to be asked for what was missed."""
    is_spread: bool = False
    """Channels are joined one by one, so that each can be read by another ingestor. Always so where each can be repeated by itself."""
    has_ids: bool = False
    """Events may have ids."""
    overflow: Overflow = Overflow.PAUSE
    max_buffer: int = HIGH_WATER_BYTES
    """Bytes of operations that may be on their way; beyond, the source is no longer read."""
    max_rate: float | None = None
    """Events a second beyond which it is not read for a while."""


class _Cursor(NamedTuple):
    """What a shard has committed of a feed."""

    feed: str
    shard: int
    incarnation: int
    last: int


class IngestionState:
    """See the module."""

    def __init__(  # noqa: PLR0915 - what an ingestor knows, in one place
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
        traits: Mapping[str, SourceTraits] | None = None,
        members: Members | None = None,
        claim_wait_ms: float = CLAIM_WAIT_MS,
    ) -> None:
        """Build.

        Args:
            identity: Its name.
            incarnation: Of its life.
            routers: Of all sources, whoever reads them; so are `traits`.
            always: (source, channel) that are joined whoever asks for them.
            slots: Which shard has which slot.
            shards: How many there are.
            coordinators: How many there are.
            profiles: How events are batched.
            gateways: Who is told how sources are.
            traits: By source; what is not named is as the default.
            members: The ingestors; None: this is the only one.
            claim_wait_ms: How long all shards' answers to the first claim are waited for. Without one of them no sequence goes on where it was.
        """
        self.identity = identity
        self.incarnation = incarnation
        self._news = SourceNews(identity, incarnation, gateways)
        self._sources = {
            name: _Source(name, router, (traits or {}).get(name, SourceTraits())) for name, router in routers.items()
        }
        self._moves = HandOvers(identity, incarnation, members or Members(1, [identity]))
        self._told_by: set[int] = set()
        """Shards that have said what they need of these members."""
        self._unclaimed: set[str] = set()
        """Units that shards are asked about, since their last ingestor could not say."""
        self._slots = slots
        self._cut = IngestionCut()
        self._reached_before: dict[str, int] = {}
        """Blobs of lines to coordinators that are no more, all committed."""
        self._shards = range(shards)
        self._lines = [
            Line(
                f"coordinator-{n}",
                identity,
                incarnation,
                [shard for shard in self._shards if coordinator_of(shard, coordinators) == n],
            )
            for n in range(coordinators)
        ]
        for line in self._lines:
            line.begin_claim(0.0)
        self._claim_wait_ms = claim_wait_ms
        self._started = False
        self._start_at: float | None = None
        """When sources are started though a shard has not answered."""
        self._untold: dict[EventSequence, None] = {}
        """Sequences whose checkpoint has moved, or may."""
        self._tell_at: float | None = None
        self._shares_at = 0.0
        self._now_ms = 0.0
        """Of the event that is being taken."""
        self._restored: dict[str, Checkpoint] = {}
        """The newest that shards have told, by sequence."""
        self._last_incarnation = incarnation
        self._by_address = {line.address: line for line in self._lines}
        self._line_of = [self._lines[coordinator_of(shard, coordinators)] for shard in self._shards]
        self._window_ms = profiles[0].window_ms
        self._leading = [profile.mode == "leading" for profile in profiles]
        self._targets: list[dict[str, Pending]] = [{} for _ in profiles]
        self._always = frozenset(always)
        self._demanded: dict[tuple[str, str], tuple[str, ...]] = {}
        """Shards, by (source, channel) that they need."""
        self._incoming: dict[str, Incoming] = {}
        self._announcements = Announcements(identity, incarnation, [f"shard-{shard}" for shard in self._shards])
        self.bytes_pending = 0
        """Bytes of operations that are not committed, and of frames that gather."""
        self._gathering = Gathering()
        self.pauses = 0
        """How often a source had to stop reading since too much waited."""
        self.rearm = False
        """The deadline may have come nearer since the shell last looked; it takes this back when it has."""
        self.events_dropped: Counter[tuple[str, str]] = Counter()
        """By (source, reason)."""
        self.gaps: Counter[str] = Counter()
        """How often events of a source, or of a channel of it, may have passed unseen."""
        self.frame_faults: list[tuple[str, FrameFault]] = []
        """By source: what was wrong with frames, until the shell takes it."""
        self.dead_letters = DeadLetters()
        self.operations: Counter[str] = Counter()
        """By operation kind."""

    @property
    def events_received(self) -> dict[str, int]:
        """Return the number of events of each source."""
        self._settle()
        return {source.name: source.received for source in self._sources.values()}

    def backlog(self, now_ms: float) -> tuple[int, dict[str, float]]:
        """Return the events (operations, before folding) that wait to be sent or committed, and how old, in ms, the oldest is by source.

        A source that is not read is as late as it has not been read, at least.
        """
        self._settle()
        events = 0
        since: dict[str, float] = {source.name: source.paused_at for source in self._sources.values() if source.paused}

        def waits(name: str, at_ms: float) -> None:
            since[name] = min(since.get(name, at_ms), at_ms)

        for line in self._lines:
            for pending in line.pending.values():
                events += sum(fold.count for fold in pending.folds.values())
                for feed in pending.feeds:
                    waits(owner(feed.name), pending.oldest_ms)
            for part in (part for sent in line.sent for part in sent.parts):
                events += sum(key.count for key in part.keys)
                if part.keys:
                    for each in part.feeds:
                        waits(owner(each.feed), part.oldest_ms)
        return events, {name: max(0.0, now_ms - since[name]) if name in since else 0.0 for name in self._sources}

    # --- the hot path --------------------------------------------------------------------------------------------

    def receive(self, source_name: str, frames: Sequence[bytes], now_ms: float) -> bool:
        """Take the frames of one read. Returns False when the source must stop reading until it is told to `Resume`.

        A frame that is unusable is counted, goes to `frame_faults`, and the stream goes on.
        """
        source = self._sources[source_name]
        gathering = self._gathering
        if gathering and gathering.source != source_name:
            self._settle()
        if not source.gathers or self._cut.is_held:
            return self._goes_on(source, self._take_frames(source, frames, now_ms), now_ms)
        self.rearm = self.rearm or not gathering
        self.bytes_pending += gathering.add(source_name, frames, now_ms)
        if gathering.is_full or self.bytes_pending > source.high_water:
            self._settle()
        return self._goes_on(source, 0, now_ms)

    def _take_frames(self, source: _Source, frames: Sequence[bytes], now_ms: float) -> int:
        """Take frames that came together. Returns the number of events."""
        head, source.head, source.gathers = source.head, None, False
        if head is not None and len(frames) >= MANY:
            alike = source.router.decode_alike(frames, head)
            if alike is not None:
                source.head = head
                return self._take_read(source, alike, [event.id for event in alike], [], now_ms, head)
        events, faults = source.decode(frames)
        return self._take_read(source, events, [event.id for event in events], faults, now_ms)

    def _settle(self) -> None:
        """Take the frames that have gathered."""
        gathering = self._gathering
        if gathering:
            self.bytes_pending -= gathering.size
            source, since_ms = self._sources[gathering.source], gathering.since_ms
            self._take_frames(source, gathering.take(), since_ms)

    def receive_events(self, source_name: str, events: Sequence[Envelope], now_ms: float) -> bool:
        """As `receive`, for events whose name and data the transport or the dialect has read."""
        source = self._sources[source_name]
        self._settle()
        envelopes, ids, faults = source.router.decode_events(events, asks=source.asks)
        return self._goes_on(source, self._take_read(source, envelopes, ids, faults, now_ms), now_ms)

    def _take_read(
        self,
        source: _Source,
        events: Sequence[Envelope],
        ids: Sequence[EventId | None],
        faults: list[FrameFault],
        now_ms: float,
        head: Head | None = None,
    ) -> int:
        """`head`: of all events, where it is known that they have the same. Returns the number of events."""
        if self._cut.is_held:
            self._cut.later.append((source.name, lambda now_ms: self._take_later(source, events, ids, faults, now_ms)))
            return 0
        for fault in faults:
            self.events_dropped[source.name, fault.reason] += 1
            self.dead_letters.add(
                source.name, fault.reason, now_ms, event=fault.event, detail=fault.detail, sample=fault.sample
            )
            self.frame_faults.append((source.name, fault))
        if source.waiting is not None:
            for envelope, event_id in zip(events, ids, strict=True):
                self._wait(source, source.waiting, envelope, event_id)
            return len(events)
        self._take(source, events, ids, now_ms, head)
        if source.faults:
            self.dead_letters.take(source.name, source.faults, now_ms)
        return len(events)

    def _take_later(
        self,
        source: _Source,
        events: Sequence[Envelope],
        ids: Sequence[EventId | None],
        faults: list[FrameFault],
        now_ms: float,
    ) -> None:
        """Take what was read while things were held."""
        self._goes_on(source, self._take_read(source, events, ids, faults, now_ms), now_ms)

    def _goes_on(self, source: _Source, count: int, now_ms: float) -> bool:
        """Whether a source is to be read on, after `count` events."""
        if self._cut.is_held:
            source.paused, source.paused_at = True, now_ms
            return False
        if source.waiting is not None:
            return True
        if self.bytes_pending > source.high_water and not source.awaiting and source.overflow is not Overflow.PAUSE:
            return self._overflows(source, now_ms)
        if source.bucket is not None and not source.bucket.take(count, now_ms):
            source.resume_at = now_ms + source.bucket.debt_ms(now_ms)
            self.rearm = True
        elif self.bytes_pending <= source.high_water and not source.awaiting:
            return True
        source.paused, source.paused_at = True, now_ms
        self.pauses += not source.awaiting
        return False

    def _overflows(self, source: _Source, now_ms: float) -> bool:
        """Too much is on its way of a source that may not be paused."""
        if source.overflow is Overflow.DISCONNECT:
            self.events_dropped[source.name, "overflow_disconnect"] += 1
            source.paused = source.dropped = True
            source.paused_at = now_ms
            return False
        source.waiting = Waiting()
        return True

    def _wait(self, source: _Source, waiting: Waiting, envelope: Envelope, event_id: EventId | None) -> None:
        what = None
        if source.overflow is Overflow.KEEP_LATEST:
            _, routes = self._routes(source, envelope.event, envelope.channel)
            what = tuple(
                key
                for route, feed in routes
                if feed is not source.refused  # which tells of it, when it is taken
                for key, _ in route.apply(envelope.data, envelope.id)
            )
        dropped = waiting.add(kept(envelope), event_id, what)
        if dropped:
            source.dropped = True
            self.events_dropped[source.name, f"overflow_{source.overflow.value}"] += dropped

    def _drain(self, source: _Source, waiting: Waiting, now_ms: float) -> None:
        """Take events that have waited, as many as may be on their way."""
        if source.dropped and (source.overflow is Overflow.DROP_OLDEST or source.repeats is not Repeats.NOTHING):
            for name in list(source.sequences) or [source.name]:
                self._lost(source, name, now_ms)
        source.dropped = False
        while waiting and self.bytes_pending <= source.high_water:
            envelope, event_id = waiting.pop()
            self._take(source, (envelope,), (event_id,), now_ms)
        if not waiting:
            source.waiting = None

    def _take_held(self, source: _Source, held: Held, now_ms: float) -> None:
        self._take(source, [envelope for envelope, _ in held], [event_id for _, event_id in held], now_ms)

    def _take(
        self,
        source: _Source,
        envelopes: Sequence[Envelope],
        ids: Sequence[EventId | None],
        now_ms: float,
        head: Head | None = None,
    ) -> None:
        """`ids`: what the upstream would go on after, for each."""
        self._now_ms = now_ms
        if len(envelopes) >= MANY and self._take_latest(source, envelopes, ids, head):
            return
        source.received += len(envelopes)
        memo = source.memo
        profiles = self._targets
        for envelope, event_id in zip(envelopes, ids, strict=True):
            try:
                sequence, routes = memo[envelope.channel][envelope.event]
            except KeyError:
                sequence, routes = self._routes(source, envelope.event, envelope.channel)
            if sequence.guarded:
                if not self._admits(source, sequence, envelope, event_id, now_ms):
                    continue
                if source.sequences.get(sequence.name) is not sequence:
                    sequence, routes = self._routes(source, envelope.event, envelope.channel)
            number = sequence.number + 1
            if event_id is not None:
                if number <= sequence.taken:
                    number = sequence.taken + 1  # all that was taken after the last id had none: this is new
                sequence.id = event_id
                sequence.id_number = number
            elif not routes:
                self.events_dropped[source.name, "no_rule"] += 1
                continue  # uncounted: upstreams do not repeat what keeps connections alive
            sequence.number = number
            if number <= sequence.taken:
                continue
            if not routes:
                self.events_dropped[source.name, "no_rule"] += 1
                continue
            is_repeat = number <= sequence.replay_until
            for route, feed in routes:
                targets = profiles[route.profile]
                for key, operation in route.step(route.heard, envelope.data, envelope.id):
                    pending = targets.get(key)
                    if pending is None:
                        if is_broadcast(key):
                            self._everywhere(route, feed, number, key, operation, now_ms)
                            continue
                        pending = self._target(route.profile, key)
                    if is_repeat and number <= feed.committed.get(pending.shard, 0):
                        continue
                    self._fold(source, route, feed, pending, key, operation, number, number)

    def _take_latest(
        self, source: _Source, envelopes: Sequence[Envelope], ids: Sequence[EventId | None], head: Head | None
    ) -> bool:
        """Take events that each set a key to their data, all at once: of those of one key only the last counts.

        One by one they cost twice as much. Returns False, and has taken nothing, where they are not such, or few of them are alike.
        """
        without_id = ids.count(None)
        if without_id not in (0, len(ids)):
            return False
        by_head = _by_head(envelopes) if head is None else {head: list(map(_DATA, envelopes))}
        if len(by_head) * 4 > len(envelopes):
            return False
        source.head = next(iter(by_head)) if len(by_head) == 1 else None
        plan = []
        keys_seen, keys_count = set[CanonicalKey](), 0
        events: dict[EventSequence, int] = {}
        for (channel, event), data in by_head.items():
            sequence, routes = source.memo.get(channel, {}).get(event, (None, ()))
            if sequence is None or len(routes) != 1 or sequence.guarded or sequence.is_replaying:
                return False
            route, feed = routes[0]
            keys = None if route.keys is None else route.keys(route.heard, data)
            if keys is None:
                return False
            latest = dict(zip(keys, data, strict=True))
            keys_seen |= latest.keys()
            keys_count += len(latest)
            plan.append((route, feed, latest, Counter(keys)))
            events[sequence] = events.get(sequence, 0) + len(data)
        if keys_count > len(keys_seen) or (len(events) > 1 and not without_id):
            return False  # their order matters
        source.received += len(envelopes)
        made = source.made
        for sequence, count in events.items():
            sequence.number += count
            if not without_id:
                sequence.id, sequence.id_number = ids[-1], sequence.number
        for route, feed, latest, counts in plan:
            last = feed.sequence.number
            first = last - events[feed.sequence] + 1
            targets = self._targets[route.profile]
            for key, value in latest.items():
                pending = targets.get(key) or self._target(route.profile, key)
                self._fold(source, route, feed, pending, key, Set(bytes(value)), first, last, counts[key])
        # What does not fold gains nothing by waiting, and might fill a blob unseen.
        folds = 3 * (source.made - made) <= 2 * len(envelopes) * len(value)
        source.gathers = (
            folds and source.head is not None and source.bucket is None and not self._leading[route.profile]
        )
        return True

    def _fold(
        self,
        source: _Source,
        route: Route,
        feed: Feed,
        pending: Pending,
        key: CanonicalKey,
        operation: Operation,
        first: int,
        last: int,
        count: int = 1,
    ) -> None:
        """Add to what waits an operation that stands for `count`; `first` and `last` are numbers of events that it and others came with."""
        fold = pending.folds.get(key)
        if fold is None:
            fold = pending.folds[key] = Fold()
            size = len(key) + fold.add(operation, count)
            if not pending.oldest_ms:
                pending.oldest_ms = self._now_ms
                self.rearm = True
                if self._leading[route.profile]:
                    pending.line.urgent = True
        else:
            size = fold.add(operation, count)
        fold.origin = route.origin
        if size:  # what replaces a value of its own length, as most do, changes nothing
            line = pending.line
            line.size += size
            source.made += size
            self.bytes_pending += size
            if line.size >= EARLY_BYTES and not line.early:
                line.early = self.rearm = True
        span = pending.feeds.get(feed)
        if span is None:
            pending.feeds[feed] = [first, last]
        else:
            span[1] = last

    def _routes(self, source: _Source, event: str, channel: str | None) -> _Routes:
        found = source.router.route(event, channel)
        unit_name = source.unit(channel)
        is_mine = unit_name in source.sequences or self._moves.is_mine(unit_name)
        is_refused = is_mine and channel is not None and not self._has_room(source, channel, found)
        if is_refused and source.is_spread:
            return source.refused.sequence, (self._refusal(source, event, channel),)
        sequence = self._sequence(source, unit_name)
        routes = []
        for route in found if is_mine else ():
            if is_refused and route.feed != source.name:
                continue
            name = feed_name(route.feed, route.profile)
            feed = source.feeds.get(name)
            if feed is None or feed.sequence is not sequence:
                feed = source.feeds[name] = Feed(name, sequence)
            routes.append((self._limited(source, channel, route), feed))
        if is_refused:
            return sequence, (*routes, self._refusal(source, event, channel))
        source.remember(channel, event, (sequence, tuple(routes)))
        return sequence, tuple(routes)

    def _has_room(self, source: _Source, channel: str, routes: Sequence[Route]) -> bool:
        """Whether what is to be known of a channel may be: somebody has joined it, or there are not too many others."""
        if channel in source.joined or channel in source.unasked:
            return True
        if not source.is_spread and all(route.feed == source.name for route in routes):
            return True  # nothing is: its events count among the source's
        if source.unasked.is_full:

            def used_ms(channel: str) -> float:
                stem = f"{source.name}/{channel}"
                feeds = (source.feeds.get(feed_name(stem, profile)) for profile in range(len(self._targets)))
                return max((feed.used_ms for feed in feeds if feed is not None), default=0.0)

            silent = source.unasked.silent(used_ms, self._now_ms)
            if silent is None:
                return False
            self._forget(source, f"{source.name}/{silent}")
        source.unasked.add(channel, self._now_ms)
        return True

    def _refusal(self, source: _Source, event: str, channel: str | None) -> tuple[Route, Feed]:
        """Return what is done with events of a channel that there are too many of."""

        def step(_: HeardOn, data: Raw | bytes, __: EventId | None) -> list[Made]:
            self.events_dropped[source.name, "too_many_channels"] += 1
            self.dead_letters.add(
                source.name, "too_many_channels", self._now_ms, event=event, channel=channel, sample=data
            )
            return []

        return Route(source.name, 0, step, (channel,), -1), source.refused

    def _limited(self, source: _Source, channel: str | None, route: Route) -> Route:
        """Return a route that takes only so many events a second of a channel as it may, and says what it left out."""
        max_rate = route.max_rate
        if max_rate is None:
            return route
        if channel not in source.buckets and len(source.buckets) >= KNOWN_KEYS:
            source.buckets.clear()
        buckets = source.buckets.setdefault(channel, {})
        bucket = buckets.get(route.stream)
        if bucket is None:
            bucket = buckets[route.stream] = TokenBucket(max_rate, self._now_ms)

        def step(heard: HeardOn, data: Raw | bytes, event_id: EventId | None) -> list[Made]:
            if bucket.take(1, self._now_ms):
                return route.step(heard, data, event_id)
            self.events_dropped[source.name, "rate_limited"] += 1
            source.limited.setdefault(channel, self._now_ms + LIMITED_MS)
            return []

        return Route(route.feed, route.profile, step, route.heard, route.origin)

    def _sequence(self, source: _Source, name: str) -> EventSequence:
        sequence = source.sequences.get(name)
        if sequence is None:
            if not self._moves.is_mine(name):
                return source.elsewhere
            sequence = source.sequences[name] = EventSequence(name, self._next_incarnation())
        return sequence

    def _admits(
        self, source: _Source, sequence: EventSequence, envelope: Envelope, event_id: EventId | None, now_ms: float
    ) -> bool:
        """Judge an event that comes after a new beginning: is it what should come next?"""
        if sequence.is_elsewhere:
            source.received -= 1  # another ingestor has it
            if source.is_home and envelope.channel not in source.left:  # if it is connected: not for what nobody joins
                self.events_dropped[source.name, "elsewhere"] += 1
            return False
        if sequence.held is not None:
            source.received -= 1  # it will be
            if len(sequence.held) <= MAX_HELD:
                sequence.held.append((kept(envelope), event_id))
            return False
        if source.awaiting:
            source.kept.append((kept(envelope), event_id))
            source.received -= 1  # it will be
            return False
        if event_id is not None and source.seen:
            if str(event_id) in source.seen:
                self.events_dropped[source.name, "repeated"] += 1
                return False
            source.seen = set()  # what was missed is over
        last = sequence.follows
        if last is not None and event_id is not None:
            if str(event_id) == str(last):
                self.events_dropped[source.name, "repeated"] += 1
                return False
            sequence.follows = None
            if not follows(last, event_id, is_dense=sequence.is_dense):
                self.events_dropped[source.name, "id_out_of_order"] += 1
                self._lost(source, sequence.name, now_ms)
        sequence.guarded = sequence.follows is not None or bool(source.seen)
        return True

    def _target(self, profile: int, key: str) -> Pending:
        targets = self._targets[profile]
        if len(targets) > KNOWN_KEYS:
            targets.clear()
        pending = targets[key] = self._pending(profile, self._slots.shard(CanonicalKey(key)))
        return pending

    def _pending(self, profile: int, shard: int) -> Pending:
        line = self._line_of[shard]
        pending = line.pending.get((shard, profile))
        if pending is None:
            pending = line.pending[shard, profile] = Pending(line, shard, profile)
        return pending

    def _everywhere(self, route: Route, feed: Feed, number: int, key: str, operation: Operation, now_ms: float) -> None:
        """What is not about one key concerns every shard."""
        profile = route.profile
        for shard in self._shards:
            if number <= feed.committed.get(shard, 0):
                continue
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
        """The connection of a source is up, for the first time or again."""
        self._settle()
        source = self._sources[source_name]
        if not source.is_running:
            return []
        effects: list[Effect] = []
        is_first, source.is_open = not source.is_open, True
        source.left.clear()
        for taking in self._moves.taking.values():
            if taking.source == source_name:
                taking.has("open", now_ms)
                source.sequences[taking.unit].held = []  # what comes now does not follow what came before
        if source.is_spread:
            is_alone = len(self._moves.members.ingestors) == 1 and not self._moves.members.previous
            is_unknown = is_first and is_alone and not source.sequences
            is_many = source.repeats is Repeats.NOTHING and (is_alone or len(source.joined) > MANY_CHANNELS)
            if is_unknown or is_many:
                self._lost(source, source_name, now_ms)
            else:
                # Before the first connection there are those of the last life, which shards are about to ask for.
                unasked = [] if is_first else [name for name in source.sequences if not source.is_asked(name)]
                if source.router.takes_any_channel and self._moves.is_mine(source_name):
                    unasked.append(source_name)
                if is_alone and len(unasked) > MANY_CHANNELS:
                    unasked = [source_name]
                for name in dict.fromkeys([*map(source.unit, source.joined), *unasked]):
                    self._rejoined(source, name, now_ms)
        elif source_name not in self._moves.taking:
            effects.extend(self._reopened(source, now_ms))
        return [*effects, *self.wake(now_ms)]

    def closed(self, source_name: str) -> None:
        """The connection of a source is lost."""
        self._settle()
        self._ended(self._sources[source_name])

    def _ended(self, source: _Source) -> None:
        """A connection of a source is no more: where the upstream repeats, the next begins after what was taken, and what waits comes again."""
        if source.repeats is not Repeats.NOTHING:
            source.waiting = None
            self._cut.forget(source.name)
        source.dropped = source.dropped and source.waiting is not None

    def _reopened(self, source: _Source, now_ms: float) -> list[Effect]:
        """A source is open that is one sequence: go on with it, if the upstream does."""
        sequence = source.sequences.get(source.name)
        if source.repeats is Repeats.NOTHING or sequence is None or sequence.after is None:
            self._lost(source, source.name, now_ms)
            return []
        sequence.resume()
        return self._ask_missed(source, sequence.after, []) if source.asks else []

    def _ask_missed(self, source: _Source, since: EventId, kept: Held) -> list[Effect]:
        source.awaiting, source.kept = True, kept
        source.asked += 1
        return [AskMissed(source.name, source.asked, since)]

    def _rejoined(self, source: _Source, name: str, now_ms: float) -> None:
        """A sequence is heard again, after its last event where one is known and can be asked for."""
        sequence = source.sequences.get(name)
        if name in self._moves.taking:
            return
        repeats = source.repeats is not Repeats.NOTHING and source.is_asked(name)
        if not repeats or sequence is None or sequence.after is None:
            self._lost(source, name, now_ms)
        else:
            sequence.resume()

    def resume_id(self, source_name: str, channel: str | None = None) -> EventId | None:
        """Return the event after which a source, or one of its channels, is to go on; None: where it is."""
        self._settle()
        source = self._sources[source_name]
        if source.repeats is Repeats.NOTHING:
            return None
        sequence = source.sequences.get(source.unit(channel))
        return None if sequence is None else sequence.after

    def _lost(self, source: _Source, name: str, now_ms: float) -> None:
        """Events of a sequence may have passed unseen: it begins anew, and shards invalidate what it feeds."""
        old = source.sequences.get(name)
        sequence = EventSequence(name, self._next_incarnation())
        if old is not None:
            self._untold.pop(old, None)
            if old.checkpoint is not None:  # it must not be gone back to
                sequence.checkpoint = Checkpoint(name, sequence.incarnation, 0, None)
                self._moved(sequence, now_ms)
        sequence.guarded = bool(source.seen)
        source.sequences[name] = sequence
        source.forget_routes(name)
        self._mark(source, name, sequence.incarnation)

    def _mark(self, source: _Source, name: str, incarnation: int) -> None:
        """Tell shards that events of a source, or of a channel of it, may have passed unseen."""
        if self._cut.is_held:
            self._cut.marks.append((name, incarnation))
            return
        self.gaps[source.name] += 1
        mark = FeedRange(name, incarnation, 1, 0, 0)
        for shard in self._shards:
            self._line_of[shard].marks.setdefault((shard, 0), []).append(mark)
        self.rearm = True

    def _next_incarnation(self) -> int:
        """Return an incarnation greater than any before."""
        self._last_incarnation += 1
        return self._last_incarnation

    def awaits(self, asked: AskMissed) -> bool:
        """Whether the answer to a question is waited for."""
        source = self._sources[asked.source]
        return source.awaiting and asked.number == source.asked

    def missed(self, asked: AskMissed, events: Sequence[Envelope] | None, now_ms: float) -> list[Effect]:
        """What was missed, oldest first; None: the upstream does not know, or does not say."""
        self._settle()
        source_name = asked.source
        source = self._sources[source_name]
        if not self.awaits(asked):
            return []  # it is asked again already
        if self._cut.is_held:
            self._cut.later.append((source_name, lambda now_ms: self.missed(asked, events, now_ms)))
            return []
        source.awaiting = False
        source.seen = {str(each.id) for each in events or () if each.id is not None}
        held, source.kept = source.kept, []
        if events is None:
            self.events_dropped[source_name, "history_gone"] += 1
            self._lost(source, source_name, now_ms)
        else:
            source.seen, seen = set(), source.seen
            self._take(source, events, [envelope.id for envelope in events], now_ms)
            source.seen = seen
            sequence = self._sequence(source, source_name)
            if not sequence.is_elsewhere:
                sequence.follows, sequence.guarded = sequence.id, True
        self._take_held(source, held, now_ms)
        self.dead_letters.take(source_name, source.router.faults, now_ms)
        return self.wake(now_ms)

    def state_changed(self, source_name: str, state: str, now_ms: float) -> list[Effect]:
        """A source is in another state: gateways are told."""
        if self._sources[source_name].is_running:
            self._news.changed(source_name, state)
        return self.wake(now_ms)

    def demand(self, message: Demand, now_ms: float) -> tuple[Answer, list[Effect]]:
        """A shard says which channels its watched entries need."""
        self._settle()
        sender = message.header.sender
        if message.epoch != self._moves.members.epoch or not self._started:
            return Full(RETRY_MS), []
        incoming = self._incoming.setdefault(sender, Incoming(self.incarnation))
        match incoming.admit(message.header):
            case Foreign():
                return Refused(self.incarnation), []
            case Repeat(answer):
                return answer, []
        self._heard(sender, now_ms)
        effects: list[Effect] = []
        wanted = set(message.add)
        if message.whole:
            held = {channel for channel, shards in self._demanded.items() if sender in shards}
            dropped = held - wanted
        else:
            dropped = set(message.drop)
        for channel in message.add:
            source = self._sources.get(channel[0])
            if source is None or not self._moves.is_mine(source.unit(channel[1])):
                continue
            shards = self._demanded.get(channel, ())
            if not shards and channel not in self._always:
                effects.extend(self._join(source, channel[1], is_known=message.whole, now_ms=now_ms))
            if sender not in shards:
                self._demanded[channel] = (*shards, sender)
        for channel in sorted(dropped):
            shards = self._demanded.pop(channel, ())
            left = tuple(shard for shard in shards if shard != sender)
            if left:
                self._demanded[channel] = left
            elif shards and channel not in self._always:
                effects.extend(self._leave(self._sources[channel[0]], channel[1], now_ms))
        joined = [channel for channel in message.add if self._is_live(*channel)]
        return incoming.answered(DemandMet(self.incarnation, joined)), [*effects, *self.wake(now_ms)]

    def _join(self, source: _Source, channel: str, *, is_known: bool, now_ms: float) -> list[Effect]:
        """A channel is wanted. `is_known`: a shard has had it joined before, and may have missed events."""
        if source.is_spread:
            effects = self._begin(source, channel, now_ms)
            if source.is_open and (is_known or source.unit(channel) in source.sequences):
                if source.repeats is Repeats.CHANNEL:
                    self._rejoined(source, source.unit(channel), now_ms)
            return effects
        source.join(channel)
        return [Join(source.name, channel)]

    def _leave(self, source: _Source, channel: str, now_ms: float) -> list[Effect]:
        """A channel is no longer wanted: should it be again, it begins anew."""
        name = source.unit(channel)
        if not self._moves.is_mine(name) and channel in source.joined:
            return []  # until the ingestor that it belongs to takes it
        if source.joined.pop(channel, "") == "":
            return []
        if source.is_spread:
            self._moves.taking.pop(name, None)
            sequence = self._forget(source, name)
            if sequence is not None and sequence.end():
                self._moved(sequence, now_ms)
        else:
            self._forget_feeds(source, f"{source.name}/{channel}")
        return [Leave(source.name, channel), *self._rest(source)]

    def _forget(self, source: _Source, name: str) -> EventSequence | None:
        """A unit is read no longer. Returns its sequence."""
        self._forget_feeds(source, name)
        if name == source.name:
            for feed in [each for each in source.feeds if source.unit_of(each) == name]:
                del source.feeds[feed]
        sequence = source.sequences.pop(name, None)
        if sequence is not None:
            self._untold.pop(sequence, None)
        return sequence

    def _forget_feeds(self, source: _Source, name: str) -> None:
        source.forget_routes(name)
        _, slash, channel = name.partition("/")
        if slash:
            source.unasked.discard(channel)
            source.buckets.pop(channel, None)
        for profile in range(len(self._targets)):
            source.feeds.pop(feed_name(name, profile), None)

    def _is_live(self, source_name: str, channel: str) -> bool:
        """Whether a channel's events come: to this ingestor, or as yet to the one that has it still."""
        source = self._sources.get(source_name)
        return source is not None and (source.is_open or source.unit(channel) in self._moves.taking)

    # --- units and hand-over -------------------------------------------------------------------------------------

    def members(self, message: Members, now_ms: float) -> tuple[Answer, list[Effect]]:
        """The supervisor says which ingestors there are."""
        self._settle()
        before = self._moves.members
        effects: list[Effect] = []
        if message.epoch >= before.epoch and message != before:
            self._moves.members = message
            if message.epoch > before.epoch:
                self._told_by.clear()
                for source in self._sources.values():
                    source.forget_routes(source.name)
                if self._started:
                    effects.extend(self._take_up(now_ms))
            if not message.previous and self._started:
                effects.extend(self._tidy())
        return Noted(self.incarnation), [*effects, *self.wake(now_ms)]

    def gateways(self, message: Gateways, now_ms: float) -> tuple[Answer, list[Effect]]:
        """The supervisor says which gateways there are."""
        self._news.gateways(message.names)
        return Noted(self.incarnation), self.wake(now_ms)

    def reads(self, source_name: str) -> bool:
        """Whether this ingestor reads a source, or a part of it."""
        return self._sources[source_name].is_running

    def status(self) -> tuple[Members, bool, bool]:
        """Return the members that are known, `is_settled` and `is_idle`."""
        return self._moves.members, self.is_settled, self.is_idle

    @property
    def is_settled(self) -> bool:
        """Whether what the members divide among them is where it belongs, as far as this one knows."""
        moves = self._moves
        waits_for_shards = self.identity in moves.members.ingestors and len(self._told_by) < len(self._shards)
        return (
            self._started
            and moves.is_settled
            and not self._unclaimed
            and not (moves.members.previous and waits_for_shards)
        )

    @property
    def is_idle(self) -> bool:
        """Whether nothing is read, and nothing waits to be sent, committed or told: the ingestor can be ended."""
        return (
            self.is_settled
            and not any(source.is_running for source in self._sources.values())
            and not any(line.size or line.sent for line in self._lines)
            and not self._gathering
            and not self._untold
            and self._news.is_told
        )

    def _take_up(self, now_ms: float) -> list[Effect]:
        """Begin with the units that are this ingestor's whatever is demanded, and that it does not read yet."""
        effects: list[Effect] = []
        for source in self._sources.values():
            is_mine = source.is_home = self._moves.is_mine(source.name)
            for name, channel in self._always:
                if name == source.name and channel not in source.joined and self._moves.is_mine(source.unit(channel)):
                    if source.is_spread:
                        effects.extend(self._begin(source, channel, now_ms))
                    else:
                        source.join(channel)
                        effects.append(Join(name, channel))
            if is_mine and not source.is_spread and not source.is_running:
                effects.extend(self._begin(source, None, now_ms))
            elif is_mine:
                effects.extend(self._run(source))
            elif source.is_spread:
                self._forget(source, source.name)  # what comes without a channel is the new home's to take
        return effects

    def _begin(self, source: _Source, channel: str | None, now_ms: float) -> list[Effect]:
        """Read a unit, or prepare to take it over from the ingestor that has it still."""
        name = source.unit(channel)
        if channel is not None:
            source.join(channel)
        joins: list[Effect] = [] if channel is None else [Join(source.name, channel)]
        giver = self._moves.giver(name)
        if giver is None or name in source.sequences or name in self._moves.taking:
            return [*joins, *self._run(source)]
        if source.asks or (source.has_ids and source.repeats is Repeats.NOTHING):
            manner = Manner.OVERLAP
        else:
            manner = Manner.GAP if source.repeats is Repeats.NOTHING else Manner.RESUME
        waits = set() if source.is_open else {"open"}
        if channel is None and manner is not Manner.OVERLAP:
            waits = set()
        elif channel is None and len(self._told_by) < len(self._shards):
            waits.add("demand")
        self._moves.taking[name] = Taking(name, source.name, channel, giver, manner, waits, now_ms)
        sequence = self._sequence(source, name)
        sequence.guarded, sequence.held = True, []
        if manner is not Manner.OVERLAP:
            return [] if channel is None else self._run(source)
        return [*joins, *self._run(source)]

    def _run(self, source: _Source) -> list[Effect]:
        if source.is_running:
            return []
        source.is_running = True
        return [Start(source.name)]

    def _rest(self, source: _Source) -> list[Effect]:
        """Close the connection of a source of which nothing is read here."""
        is_needed = self._moves.is_mine(source.name) or (source.is_spread and source.joined)
        if is_needed or not source.is_running:
            return []
        source.is_running = source.is_open = source.awaiting = source.paused = False
        source.waiting = source.resume_at = None
        source.kept = []
        self._news.gone(source.name)
        return [Stop(source.name)]

    def _heard(self, sender: str, now_ms: float) -> None:
        """A shard has said what it needs of these members."""
        shard = int(sender.removeprefix("shard-"))
        if shard in self._shards:
            self._told_by.add(shard)
        if len(self._told_by) == len(self._shards):
            for taking in self._moves.taking.values():
                taking.has("demand", now_ms)

    def take(self, message: Take, now_ms: float) -> tuple[Answer, list[Effect]]:
        """Another ingestor asks for units that are its own now."""
        self._settle()
        if message.epoch != self._moves.members.epoch or not self._started:
            return Full(RETRY_MS), []
        effects: list[Effect] = []
        for name in message.units:
            if self._moves.gives(name):
                self._moves.asked_again(name, message.sender, message.life)
            else:
                effects.extend(self._give(name, message.sender, message.life))
        return Noted(self.incarnation), [*effects, *self.wake(now_ms)]

    def _give(self, name: str, to: str, life: int) -> list[Effect]:
        source = self._sources[owner(name)]
        channel = name.partition("/")[2] or None
        sequence = source.sequences.get(name)
        is_read = source.is_running if channel is None else channel in source.joined
        if not is_read and sequence is None:
            self._moves.give(to, life, Moved(name, False), {})
            return []
        if sequence is None:
            sequence = EventSequence(name, self._next_incarnation())
        taken = max(sequence.taken, sequence.number)
        moved = Moved(name, True, sequence.incarnation, taken, sequence.id_number, sequence.id, sequence.is_dense)
        if taken < sequence.replay_until:  # shards have different parts of what is to come: they will say which
            moved = Moved(name, False)
        needs = {line.address: line.count + (1 if line.size else 0) for line in self._lines}
        self._moves.give(to, life, moved, needs)
        left = list(source.joined) if channel is None else [channel]
        for each in left:
            source.joined.pop(each, None)
        self._demanded = {
            channel: shards
            for channel, shards in self._demanded.items()
            if channel[0] != source.name or source.unit(channel[1]) != name
        }
        self._forget(source, name)
        source.left.update(left)
        return [*(Leave(source.name, each) for each in left), *self._rest(source)]

    def hand_over(self, message: HandOver, now_ms: float) -> tuple[Answer, list[Effect]]:
        """Another ingestor says where units stand that it had."""
        self._settle()
        effects: list[Effect] = []
        is_meant = message.epoch == self._moves.members.epoch and message.life == self.incarnation
        for moved in message.moved if is_meant else ():
            taking = self._moves.taking.get(moved.unit)
            if taking is None or taking.giver != message.sender or moved.unit in self._unclaimed:
                continue
            if moved.is_known:
                effects.extend(self._taken_over(taking, EventSequence.handed_over(moved), now_ms))
            else:
                self._unclaimed.add(moved.unit)
                for line in self._lines:
                    line.begin_claim(now_ms)
        return Noted(self.incarnation), [*effects, *self.wake(now_ms)]

    def _taken_over(self, taking: Taking, sequence: EventSequence | None, now_ms: float) -> list[Effect]:
        """A unit is this ingestor's from here on; None: nobody knows where it stands."""
        del self._moves.taking[taking.unit]
        source, name = self._sources[taking.source], taking.unit
        held = source.sequences.pop(name).held or []
        source.forget_routes(name)
        if sequence is not None:
            self._last_incarnation = max(self._last_incarnation, sequence.incarnation)
            source.sequences[name] = sequence
        since = None if sequence is None else sequence.after
        joins: list[Effect] = [] if taking.channel is None else [Join(source.name, taking.channel)]
        if taking.manner is not Manner.OVERLAP:
            if sequence is None or since is None or taking.manner is Manner.GAP:
                self._lost(source, name, now_ms)
            elif source.is_open:
                sequence.resume()
                if taking.channel in source.left:
                    # What still comes of the first joining could not be told from what is repeated after the second.
                    source.is_open = False
                    self._ended(source)
                    joins.insert(0, Reconnect(source.name))
            return [*joins, *self._run(source)]
        place = None if sequence is None or len(held) > MAX_HELD else _after(sequence, held)
        if place is None and source.asks and sequence is not None and since is not None:
            if not source.is_open:
                return []
            sequence.resume()
            return self._ask_missed(source, since, [])
        if place is None:
            self._lost(source, name, now_ms)
        self._take_held(source, held[place or 0 :], now_ms)
        return []

    def _tidy(self) -> list[Effect]:
        """Everything is where it belongs: leave what is still read here and nobody has asked for."""
        effects: list[Effect] = []
        for source in self._sources.values():
            for channel in list(source.joined):
                name = source.unit(channel)
                if source.is_spread and not self._moves.is_mine(name):
                    del source.joined[channel]
                    self._demanded.pop((source.name, channel), None)
                    self._forget(source, name)
                    effects.append(Leave(source.name, channel))
            if not self._moves.is_mine(source.name):
                self._forget(source, source.name)
            effects.extend(self._rest(source))
        return effects

    # --- claims and checkpoints ----------------------------------------------------------------------------------

    def claimed(self, message: Claimed, now_ms: float) -> tuple[Answer, list[Effect]]:
        """A shard says what it has committed."""
        self._settle()
        if message.shard not in self._shards:
            return Noted(self.incarnation), self.wake(now_ms)
        line = self._line_of[message.shard]
        if message.number == line.claim and line.claim_at is not None:
            line.answers[message.shard] = {feed: (incarnation, last) for feed, incarnation, last in message.cursors}
            for new in message.checkpoints if self._unclaimed or not self._started else ():
                old = self._restored.get(new.sequence)
                if old is None or (old.incarnation, old.number) < (new.incarnation, new.number):
                    self._restored[new.sequence] = new
            effects: list[Effect] = []
            if not line.unanswered_shards() and self._started:
                self.bytes_pending -= line.settle_claim()
                if self._unclaimed and all(each.claim_at is None for each in self._lines):
                    effects = self._claimed_units(now_ms)
            return Noted(self.incarnation), [*effects, *self.wake(now_ms)]
        return Noted(self.incarnation), self.wake(now_ms)

    def _start(self, now_ms: float) -> list[Effect]:
        """Begin to read, where the last life stood."""
        self._started = True
        self._start_at = None
        cursors = self._cursors()
        if not any(line.unanswered_shards() for line in self._lines):
            for name, checkpoint in self._restored.items():
                if self._moves.is_mine(name) and self._moves.giver(name) is None:
                    self._restore(checkpoint, cursors.get(name, []), now_ms)
        self._restored.clear()
        for line in self._lines:
            line.claim_at = None
        return self._take_up(now_ms)

    def _claimed_units(self, now_ms: float) -> list[Effect]:
        """Shards have said where units stand that no ingestor had."""
        effects: list[Effect] = []
        cursors = self._cursors()
        for name in self._unclaimed:
            taking = self._moves.taking.get(name)
            if taking is None:
                continue
            source = self._sources[taking.source]
            waiting = source.sequences.pop(name)
            checkpoint = self._restored.get(name)
            if checkpoint is not None:
                self._restore(checkpoint, cursors.get(name, []), now_ms)
            restored, source.sequences[name] = source.sequences.get(name), waiting
            effects.extend(self._taken_over(taking, restored, now_ms))
        self._unclaimed.clear()
        self._restored.clear()
        return effects

    def _cursors(self) -> dict[str, list[_Cursor]]:
        """Return what shards have said is committed, by unit."""
        cursors: dict[str, list[_Cursor]] = {}
        for line in self._lines:
            for shard, told in line.answers.items():
                for feed, (incarnation, last) in told.items():
                    source = self._sources.get(owner(feed))
                    if source is not None:
                        self._last_incarnation = max(self._last_incarnation, incarnation)
                        cursors.setdefault(source.unit_of(feed), []).append(_Cursor(feed, shard, incarnation, last))
        return cursors

    def _restore(self, checkpoint: Checkpoint, cursors: list[_Cursor], now_ms: float) -> None:
        """Take up a sequence at its checkpoint, unless it has begun anew since."""
        name = checkpoint.sequence
        source = self._sources[owner(name)]
        if checkpoint.id is None or source.unit_of(name) != name:
            return
        if any(
            cursor.incarnation > checkpoint.incarnation
            and (cursor.feed == OPENED + name or not cursor.feed.startswith(OPENED))  # not a part of it, by itself
            for cursor in cursors
        ):
            return
        sequence = source.sequences[name] = EventSequence.restored(checkpoint)
        for cursor in cursors:
            if cursor.incarnation < checkpoint.incarnation or cursor.feed.startswith(OPENED):
                continue
            feed = source.feeds.get(cursor.feed)
            if feed is None or feed.sequence is not sequence:
                feed = source.feeds[cursor.feed] = Feed(cursor.feed, sequence)
                channel = stem(cursor.feed).partition("/")[2]
                if channel and channel not in source.joined:
                    source.unasked.add(channel, now_ms)  # until it is joined, or was silent for long
            feed.committed = {**feed.committed, cursor.shard: cursor.last}
            feed.sent[cursor.shard] = cursor.last
            sequence.replay_until = max(sequence.replay_until, cursor.last)

    def _moved(self, sequence: EventSequence, now_ms: float) -> None:
        """A checkpoint is to be told, by and by."""
        self._untold[sequence] = None
        if self._tell_at is None:
            self._tell_at = now_ms + TELL_MS

    def _reached(self) -> dict[str, int]:
        """Return, by coordinator, up to which all blobs are committed."""
        return {**self._reached_before, **{each.address: each.reached for each in self._lines}}

    def _checkpoints(self, line: Line) -> dict[int, list[Checkpoint]]:
        """Return the checkpoints that have moved, by the shard of a line that keeps them."""
        found: dict[int, list[Checkpoint]] = {}
        reached = self._reached()
        for sequence in list(self._untold):
            sequence.committed(reached)
            shard = self._slots.shard(CanonicalKey(sequence.name))
            if self._line_of[shard] is not line:
                continue
            if sequence.checkpoint is not None and sequence.checkpoint is not sequence.told:
                sequence.told = sequence.checkpoint
                found.setdefault(shard, []).append(sequence.checkpoint)
            if sequence.is_settled:
                del self._untold[sequence]
        return found

    # --- moves of slots ------------------------------------------------------------------------------------------

    def rebalance(self, message: Rebalance, now_ms: float) -> tuple[Progress, list[Effect]]:
        """Hold back what is taken while slots move, or go on, by the map that counts then."""
        is_done, effects = True, list[Effect]()
        if message.phase == "hold" and message.map.epoch > self._slots.epoch:
            is_done = message.attempt > self._cut.over and self._hold()
            self._cut.attempt = max(self._cut.attempt, message.attempt)
        elif self._cut.is_held and message.attempt < self._cut.attempt and message.map.epoch <= self._slots.epoch:
            is_done = False  # of an earlier attempt: this one goes on
        elif message.phase == "release":
            self._cut.over = max(self._cut.over, message.attempt)
            if message.map.epoch > self._slots.epoch:
                effects = self._take_map(message.map, now_ms)
            effects.extend(self._go_on(now_ms))
        return Progress(self._slots, is_done, self._cut.is_held), [*effects, *self.wake(now_ms)]

    def _hold(self) -> bool:
        """Hold back what is taken from now on. Returns whether all that was taken before is committed.

        Not while sequences repeat what shards have in part: then each shard has got to another number, and that has to pass first.
        """
        if not self._cut.is_held:
            self._settle()
            sequences = [each for source in self._sources.values() for each in source.sequences.values()]
            is_repeating = any(each.number < each.replay_until for each in sequences)
            asks = any(source.awaiting for source in self._sources.values())
            if not self._started or not self._moves.is_settled or self._unclaimed or is_repeating or asks:
                return False
            self._cut.is_held = True
            for line in self._lines:
                line.closes = True
        self._cut.is_quiet = self._cut.is_quiet or all(line.is_quiet for line in self._lines)
        return self._cut.is_quiet

    def _take_map(self, slots: SlotMap, now_ms: float) -> list[Effect]:
        """Another map counts: everything made by the one before is committed, unless this ingestor has only just begun."""
        before, self._slots = self._slots, slots
        self._shards = range(slots.shards)
        marks = {place: each for line in self._lines for place, each in line.marks.items() if place[0] < slots.shards}
        self._reached_before = self._reached()
        known = self._by_address
        self._lines = []
        for n in range(slots.coordinators):
            line = known.get(f"coordinator-{n}")
            if line is None:
                line = Line(f"coordinator-{n}", self.identity, self.incarnation, [])
                line.count = self._reached_before.get(line.address, 0)
            if not self._started:
                line.begin_claim(now_ms)
            line.shards = [shard for shard in self._shards if coordinator_of(shard, slots.coordinators) == n]
            line.marks.clear()
            line.pending.clear()
            self._lines.append(line)
        self._by_address = {line.address: line for line in self._lines}
        self._line_of = [self._lines[coordinator_of(shard, slots.coordinators)] for shard in self._shards]
        for (shard, profile), each in marks.items():
            self._line_of[shard].marks[shard, profile] = each
        self._targets = [{} for _ in self._targets]
        feeds = [feed for source in self._sources.values() for feed in source.feeds.values()]
        inherit(feeds, before.moves(slots))
        for feed in feeds:
            for gone in [shard for shard in feed.sent if shard >= slots.shards]:
                del feed.sent[gone]
        self._told_by &= set(self._shards)
        effects: list[Effect] = []
        names = {f"shard-{shard}" for shard in self._shards}
        for channel, shards in list(self._demanded.items()):
            if left := tuple(shard for shard in shards if shard in names):
                self._demanded[channel] = left
                continue
            del self._demanded[channel]
            if channel not in self._always:
                effects.extend(self._leave(self._sources[channel[0]], channel[1], now_ms))
        return effects

    def _go_on(self, now_ms: float) -> list[Effect]:
        """Take what was held back."""
        effects: list[Effect] = []
        later, marks = self._cut.end()
        for line in self._lines:
            line.closes = False
        for name, incarnation in marks:
            self._mark(self._sources[owner(name)], name, incarnation)
        for each in later:
            made = each(now_ms)
            effects.extend(made if isinstance(made, list) else ())
        return effects

    # --- sending -------------------------------------------------------------------------------------------------

    def announce(self, message: Announce, now_ms: float) -> tuple[Answer, list[Effect]]:
        """A shard lives anew."""
        self._settle()
        shard = int(message.sender.removeprefix("shard-"))
        if shard in self._shards:
            self._remind(shard)
        return Noted(self.incarnation), self.wake(now_ms)

    def _relink(self, line: Line, now_ms: float) -> None:
        """A coordinator's last life may have taken with it what shards have not committed."""
        line.link.relink()
        line.begin_claim(now_ms)

    def _remind(self, shard: int) -> None:
        """A shard lives anew: say what it should have, in case its store has not."""
        marks = self._line_of[shard].marks
        for source in self._sources.values():
            for feed in source.feeds.values():
                last = feed.sent.get(shard, 0)
                if last:
                    mark = FeedRange(feed.name, feed.sequence.incarnation, last + 1, last, last)
                    marks.setdefault((shard, feed.profile), []).append(mark)

    def deadline(self) -> float | None:
        """When the next blob or announcement is due."""
        due = min(
            (
                at
                for at in (
                    self._announcements.deadline(),
                    self._news.deadline(),
                    self._start_at,
                    self._moves.deadline(),
                    *(source.resume_at for source in self._sources.values()),
                    *(at for source in self._sources.values() for at in source.limited.values()),
                )
                if at is not None
            ),
            default=None,
        )
        for line in self._lines:
            at = self._due(line)
            if at is not None and (due is None or at < due):
                due = at
        return due

    def _due(self, line: Line) -> float | None:
        """When to send something on a line, if only checkpoints."""
        if self._cut.is_quiet:
            return line.link.retry_at
        due = line.due(self._window_ms, self._gathering.since_ms)
        return self._tell_at if due is None and line.link.idle else due

    def _is_due(self, line: Line, now_ms: float) -> bool:
        due = self._due(line)
        return due is not None and due <= now_ms

    def wake(self, now_ms: float) -> list[Effect]:
        """Send what is due."""
        effects: list[Effect] = [*self._announcements.wake(now_ms), *self._news.wake(now_ms)]
        if not self._started:
            if self._start_at is None:
                self._start_at = now_ms + self._claim_wait_ms
            if now_ms >= self._start_at or not any(line.unanswered_shards() for line in self._lines):
                effects.extend(self._start(now_ms))
        effects.extend(self._moves.wake(now_ms, self._reached))
        for line in self._lines:
            if not line.link.idle:
                blob = line.link.resend(now_ms)
                if blob is not None:
                    effects.append(Send(line.address, blob))
            elif self._is_due(line, now_ms):
                self._settle()
                if self._is_due(line, now_ms):  # what has gathered was for others, maybe
                    effects.append(self._send(line, now_ms))
        if self._tell_at is not None and self._tell_at <= now_ms:
            self._tell_at = now_ms + TELL_MS if self._untold else None
        if self._shares_at <= now_ms:
            self._shares_at = now_ms + SHARES_MS
            self._share()
        for source in self._sources.values() if not self._cut.is_held else ():
            if source.paused or source.waiting is not None or source.limited:
                effects.extend(self._relieve(source, now_ms))
        return effects

    def _relieve(self, source: _Source, now_ms: float) -> list[Effect]:
        """Read a source again that had to stop, take what has waited, say what was left out; if it is time."""
        for channel in [channel for channel, at in source.limited.items() if at <= now_ms]:
            del source.limited[channel]
            left_out = feed_name(source.name if channel is None else f"{source.name}/{channel}", len(self._targets))
            self._mark(source, left_out, self._next_incarnation())  # of no profile: no sequence begins anew
        if source.resume_at is not None and source.resume_at <= now_ms:
            source.resume_at = None
        if self.bytes_pending > min(LOW_WATER_BYTES, source.high_water / 4):
            return []
        if source.waiting is not None:
            self._drain(source, source.waiting, now_ms)
        if source.paused and not source.awaiting and source.resume_at is None:
            source.paused = False
            if source.dropped and source.overflow is Overflow.DISCONNECT:
                source.dropped = False
                return [Reconnect(source.name)]
            return [Resume(source.name)]
        return []

    def _share(self) -> None:
        """Work out from which amount on its way each source is to stop: the more it makes of it, the sooner."""
        running = [source for source in self._sources.values() if source.is_running]
        total = sum(source.made for source in running)
        for source in running:
            share = source.made / total if total else 1.0
            fair = max(1.0, 1.0 / (len(running) * share)) if share else 2.0
            allowed = min(fair, 2.0) * HIGH_WATER_BYTES
            source.high_water = min(allowed, source.max_buffer / share if share else allowed)
            source.made //= 2

    def _send(self, line: Line, now_ms: float) -> Send:
        header = line.link.header()
        again = line.again()
        if line.claim_at is not None:
            claim = Claim(self.identity, line.claim, list(self._sources))
            line.claim_at = now_ms + CLAIM_AGAIN_MS
            parts = [Part(shard, 0, [], [], now_ms, [], claim) for shard in line.unanswered_shards()]
        elif again is not None:
            again.sequence, parts = header.sequence, again.parts
        else:
            checkpoints = self._checkpoints(line)
            touched: dict[EventSequence, None] = {}
            for feed in (feed for pending in line.pending.values() for feed in pending.feeds):
                feed.used_ms = now_ms
                touched[feed.sequence] = None
            parts = line.parts(checkpoints, now_ms)
            for part in parts:
                self._count(part)
            if parts:
                line.keep(header.sequence, parts)
                needs = {
                    each.address: each.count + (1 if each is not line and each.size else 0) for each in self._lines
                }
                for sequence in touched:
                    source = self._sources[owner(sequence.name)]
                    if source.repeats is Repeats.NOTHING or not source.is_asked(sequence.name):
                        continue
                    if source.sequences.get(sequence.name) is sequence:
                        sequence.mark(needs)
                        self._moved(sequence, now_ms)
        line.sent_at = now_ms
        blob = Blob(header, parts, line.closes)
        line.link.sent(blob)
        return Send(line.address, blob)

    def _count(self, part: Part) -> None:
        """Count operations by kind; what was folded away counts as the kind it was folded into."""
        for key in part.keys:
            folded_away = key.count - len(key.operations)
            for operation in key.operations:
                kind = KINDS[type(operation)]
                self.operations[kind] += 1 + folded_away
                folded_away = 0

    def answered(self, to: str, message: Any, answer: Answer, now_ms: float) -> list[Effect]:
        """A peer answered `message`."""
        if isinstance(message, SourceStates):
            self._news.answered(to, message)
            return self.wake(now_ms)
        if isinstance(message, Take | HandOver):
            self._moves.answered(to, message, answer, now_ms)
            return self.wake(now_ms)
        if isinstance(answer, Noted):
            self._announcements.answered(to)
            return []
        line = self._by_address.get(to)
        if line is None or line.link.in_flight is not message:
            return []
        match answer:
            case BlobTaken(incarnation=incarnation, window_left_ms=left, committed=committed):
                line.link.acknowledged(incarnation)
                self.bytes_pending -= line.committed(committed)
                line.close_at = now_ms + left
                spare = left if left < self._window_ms / 2 else left - self._window_ms
                if now_ms - line.sent_at < self._window_ms and not line.urgent:
                    line.aim_ms = min(max(line.aim_ms + (SPARE_MS - spare) / 4, AIM_MIN_MS), AIM_MAX_MS)
            case Full(retry_ms=retry_ms):
                line.link.failed(now_ms, retry_ms)
            case Refused():
                self._relink(line, now_ms)
            case _:
                raise AssertionError(f"{to} answered ingestion with {answer!r}")
        return self.wake(now_ms)

    def unanswered(self, to: str, message: Any, now_ms: float) -> list[Effect]:
        """The call failed; what it carried is kept and sent again."""
        if isinstance(message, Announce):
            self._announcements.unanswered(to, now_ms, RETRY_MS)
        elif isinstance(message, SourceStates):
            self._news.unanswered(to, now_ms)
        elif isinstance(message, Take | HandOver):
            self._moves.unanswered(to, message, now_ms)
        elif (line := self._by_address.get(to)) is not None and line.link.in_flight is message:
            line.link.failed(now_ms, RETRY_MS)
        return []


def _after(sequence: EventSequence, held: Held) -> int | None:
    """Return from where on events come after what a sequence has had; None: some may be missing."""
    last = sequence.id
    for place, (_, event_id) in enumerate(held):
        if last is not None and str(event_id) == str(last):
            return place + 1
    if not held or last is None or not sequence.is_dense:
        return None
    first = held[0][1]
    return 0 if first is not None and follows(last, first, is_dense=True) else None
