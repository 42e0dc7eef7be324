"""Ingestion: from frames of upstream streams to folded operations per shard.

`receive` is the hottest path of the cluster (100,000 calls a second and more), so it breaks the pattern of the other machines: it
returns no effects, only whether to go on reading. What it collects leaves through `wake`.

Pending operations fold by key, so what waits is bounded by the distinct keys and by list operations; with what was sent and is not
committed yet it counts towards the high-water mark, at which sources are told to stop reading, until the low-water mark.

A life begins with a claim (`ingestion_line`): what have the shards committed, and at which checkpoints do sequences go on? Then sources are
started. Where an upstream repeats what came after an event (`Repeats`), its sequence goes on as if nothing had happened, and shards are
not sent what they have. Where it cannot, or has forgotten, the sequence begins a new incarnation, and shards invalidate what it feeds.

It is one thing because the hot path, the marks that make loss visible and the timing of blobs share the numbering of feeds.

What must not live here: sockets and reconnecting (`cluster.sources`), what an event means (`rule`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from cluster.core.broadcast import is_broadcast
from cluster.core.dead_letters import DeadLetters
from cluster.core.feed import OPENED, EventId, Feed, Repeats, feed_name, follows, owner, stem
from cluster.core.feed import Sequence as EventSequence
from cluster.core.fold import Fold
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

HIGH_WATER_BYTES = 16 * 1024 * 1024
"""Pending and uncommitted operations at which sockets are no longer read: several windows of a 100,000 events/s list stream."""
LOW_WATER_BYTES = 4 * 1024 * 1024
AIM_MIN_MS, AIM_MAX_MS = 8.0, 60.0
"""Bounds of how long before a window's close its blob is sent."""
SPARE_MS = 6.0
"""Aimed-for time between a blob's arrival and the window's close."""
RETRY_MS = 100.0
KNOWN_KEYS = 200_000
"""Memoised key -> shard; beyond it the memo starts over (about 40 MB)."""
CLAIM_WAIT_MS = 15_000.0
"""A shard that has not answered the first claim by then does not keep the sources waiting; what they feed counts as lost."""
TELL_MS = 1_000.0
"""A checkpoint waits for a blob to go with for at most so long."""


class Start(Struct, frozen=True):
    """Effect: begin to read `source`."""

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


Effect = Send | Start | Join | Leave | Resume | AskMissed


_Routes = tuple[EventSequence, tuple[tuple[Route, Feed], ...]]
"""The sequence that events of one name on one channel count in, and what to do with them."""


class _Source:
    __slots__ = (
        "asked",
        "asks",
        "awaiting",
        "decode",
        "feeds",
        "is_open",
        "joined",
        "kept",
        "memo",
        "name",
        "paused",
        "remembered",
        "repeats",
        "router",
        "seen",
        "sequences",
    )

    def __init__(self, name: str, router: Router, repeats: Repeats, *, asks: bool) -> None:
        self.name = name
        self.router = router
        self.decode = router.decode
        self.repeats = repeats
        self.asks = asks
        """There is an endpoint to be asked for what was missed."""
        self.memo: dict[str | None, dict[str, _Routes]] = {}
        """By channel and event."""
        self.remembered = 0
        """Routes in it."""
        self.feeds: dict[str, Feed] = {}
        self.sequences: dict[str, EventSequence] = {}
        """By name."""
        self.joined: dict[str, None] = {}
        """Channels."""
        self.is_open = False
        """It was connected, in this life."""
        self.asked = 0
        self.awaiting = False
        """What was missed is being asked for; meanwhile nothing is taken."""
        self.kept: list[tuple[Envelope, EventId | None]] = []
        """Events that came meanwhile: those of a frame or two, since reading stops."""
        self.seen: set[str] = set()
        """Ids that came with what was missed, and may come again."""
        self.paused = False

    def sequence_name(self, channel: str | None) -> str:
        by_channel = self.repeats is Repeats.CHANNEL and channel is not None
        return f"{self.name}/{channel}" if by_channel else self.name

    def sequence_of(self, feed: str) -> str:
        """Return the name of the sequence that a feed of this source belongs to."""
        return stem(feed) if self.repeats is Repeats.CHANNEL else self.name

    def forget_routes(self, sequence: str) -> None:
        """A sequence ends: what is remembered of where its events go leads to it."""
        _, slash, channel = sequence.partition("/")
        if slash:
            self.remembered -= len(self.memo.pop(channel, ()))
        else:
            self.memo.clear()
            self.remembered = 0


class _Cursor(NamedTuple):
    """What a shard has committed of a feed."""

    feed: str
    shard: int
    incarnation: int
    last: int


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
        repeats: Mapping[str, Repeats] | None = None,
        asks: frozenset[str] = frozenset(),
    ) -> None:
        """`repeats`: what upstreams can repeat, by source; `asks`: sources with an endpoint that tells what was missed."""
        self.identity = identity
        self.incarnation = incarnation
        self._news = SourceNews(identity, incarnation, gateways)
        self._sources = {
            name: _Source(name, router, (repeats or {}).get(name, Repeats.NOTHING), asks=name in asks)
            for name, router in routers.items()
        }
        self._slots = slots
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
        self._started = False
        self._start_at: float | None = None
        """When sources are started though a shard has not answered."""
        self._untold: dict[EventSequence, None] = {}
        """Sequences whose checkpoint has moved, or may."""
        self._tell_at: float | None = None
        self._restored: dict[str, Checkpoint] = {}
        """The newest that shards have told, by sequence."""
        self._last_incarnation = incarnation
        self._by_address = {line.address: line for line in self._lines}
        self._line_of = [self._lines[coordinator_of(shard, coordinators)] for shard in self._shards]
        self._window_ms = profiles[0].window_ms
        self._leading = [profile.mode == "leading" for profile in profiles]
        self._targets: list[dict[str, Pending]] = [{} for _ in profiles]
        self._always = frozenset(always)
        for name, channel in always:
            if name in self._sources:
                self._sources[name].joined[channel] = None
        self._demanded: dict[tuple[str, str], set[str]] = {}
        self._incoming: dict[str, Incoming] = {}
        self._announcements = Announcements(identity, incarnation, [f"shard-{shard}" for shard in self._shards])
        self.bytes_pending = 0
        self.rearm = False
        """The deadline may have come nearer since the shell last looked; it takes this back when it has."""
        self.events_received: dict[str, int] = dict.fromkeys(routers, 0)
        self.events_dropped: Counter[tuple[str, str]] = Counter()
        """By (source, reason)."""
        self.dead_letters = DeadLetters()
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
            self.dead_letters.add(source_name, fault.reason, now_ms, detail=fault.detail, sample=frame)
            raise
        if isinstance(decoded, list):
            for envelope in decoded:
                if isinstance(envelope, FrameFault):
                    self.events_dropped[source_name, envelope.reason] += 1
                    self.dead_letters.add(
                        source_name, envelope.reason, now_ms, detail=envelope.detail, sample=envelope.element
                    )
                else:
                    self._take(source, envelope, envelope.id, now_ms)
        else:
            self._take(source, decoded, decoded.id, now_ms)
        if source.router.faults:
            self.dead_letters.take(source_name, source.router.faults, now_ms)
        source.paused = self.bytes_pending > HIGH_WATER_BYTES or source.awaiting
        return not source.paused

    def receive_event(self, source_name: str, event: str, data: bytes, event_id: str | None, now_ms: float) -> bool:
        """As `receive`, for an event of a server-sent stream.

        Raises:
            FrameFault: the data is unusable.
        """
        source = self._sources[source_name]
        try:
            envelope = source.router.decode_sse(event, data, event_id)
            if event_id is None and source.asks:
                event_id = envelope.id
        except FrameFault as fault:
            self.events_dropped[source_name, fault.reason] += 1
            self.dead_letters.add(source_name, fault.reason, now_ms, event=event, detail=fault.detail, sample=data)
            raise
        self._take(source, envelope, event_id, now_ms)
        if source.router.faults:
            self.dead_letters.take(source_name, source.router.faults, now_ms)
        source.paused = self.bytes_pending > HIGH_WATER_BYTES or source.awaiting
        return not source.paused

    def _take(self, source: _Source, envelope: Envelope, event_id: EventId | None, now_ms: float) -> None:
        """`event_id`: what the upstream would go on after."""
        self.events_received[source.name] += 1
        try:
            sequence, routes = source.memo[envelope.channel][envelope.event]
        except KeyError:
            sequence, routes = self._routes(source, envelope.event, envelope.channel)
        if sequence.guarded:
            if not self._admits(source, sequence, envelope, event_id, now_ms):
                return
            if source.sequences.get(sequence.name) is not sequence:
                sequence, routes = self._routes(source, envelope.event, envelope.channel)
        number = sequence.number = sequence.number + 1
        if event_id is not None:
            sequence.id = event_id
            sequence.id_number = number
        if number <= sequence.taken:
            return
        if not routes:
            self.events_dropped[source.name, "no_rule"] += 1
            return
        is_repeat = number <= sequence.replay_until
        for route, feed in routes:
            targets = self._targets[route.profile]
            for key, operation in route.apply(envelope.data, envelope.id):
                pending = targets.get(key)
                if pending is None:
                    if is_broadcast(key):
                        self._everywhere(route, feed, number, key, operation, now_ms)
                        continue
                    pending = self._target(route.profile, key)
                if is_repeat and number <= feed.committed.get(pending.shard, 0):
                    continue
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

    def _routes(self, source: _Source, event: str, channel: str | None) -> _Routes:
        if source.remembered > KNOWN_KEYS:
            source.forget_routes(source.name)
        sequence = self._sequence(source, source.sequence_name(channel))
        routes = []
        for route in source.router.route(event, channel):
            name = feed_name(route.feed, route.profile)
            feed = source.feeds.get(name)
            if feed is None or feed.sequence is not sequence:
                feed = source.feeds[name] = Feed(name, sequence)
            routes.append((route, feed))
        known = source.memo.setdefault(channel, {})
        source.remembered += event not in known
        known[event] = found = (sequence, tuple(routes))
        return found

    def _sequence(self, source: _Source, name: str) -> EventSequence:
        sequence = source.sequences.get(name)
        if sequence is None:
            sequence = source.sequences[name] = EventSequence(name, self._next_incarnation())
        return sequence

    def _admits(
        self, source: _Source, sequence: EventSequence, envelope: Envelope, event_id: EventId | None, now_ms: float
    ) -> bool:
        """Judge an event that comes after a new beginning: is it what should come next?"""
        if source.awaiting:
            source.kept.append((envelope, event_id))
            self.events_received[source.name] -= 1  # it will be
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
        source = self._sources[source_name]
        effects: list[Effect] = []
        if source.repeats is Repeats.CHANNEL:
            if not source.is_open and not source.sequences:
                self._lost(source, source_name, now_ms)
            else:
                for channel in source.joined:
                    self._rejoined(source, channel, now_ms)
        else:
            sequence = source.sequences.get(source_name)
            if source.repeats is Repeats.NOTHING or sequence is None or sequence.id is None:
                self._lost(source, source_name, now_ms)
            else:
                sequence.resume()
                if source.asks:
                    source.awaiting, source.kept = True, []
                    source.asked += 1
                    effects.append(AskMissed(source_name, source.asked, sequence.id))
        source.is_open = True
        return [*effects, *self.wake(now_ms)]

    def _rejoined(self, source: _Source, channel: str, now_ms: float) -> None:
        """A channel is joined again, after its last event where one is known."""
        name = source.sequence_name(channel)
        sequence = source.sequences.get(name)
        if sequence is None or sequence.id is None:
            self._lost(source, name, now_ms)
        else:
            sequence.resume()

    def resume_id(self, source_name: str, channel: str | None = None) -> EventId | None:
        """Return the event after which a source, or one of its channels, is to go on; None: where it is."""
        source = self._sources[source_name]
        if source.repeats is Repeats.NOTHING:
            return None
        sequence = source.sequences.get(source.sequence_name(channel))
        return None if sequence is None else sequence.id

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
        mark = FeedRange(name, sequence.incarnation, 1, 0, 0)
        for shard in self._shards:
            self._line_of[shard].marks.setdefault((shard, 0), []).append(mark)
        self.rearm = True

    def _next_incarnation(self) -> int:
        """Return an incarnation greater than any before."""
        self._last_incarnation += 1
        return self._last_incarnation

    def missed(self, asked: AskMissed, events: Sequence[Envelope] | None, now_ms: float) -> list[Effect]:
        """What was missed, oldest first; None: the upstream does not know, or does not say."""
        source_name = asked.source
        source = self._sources[source_name]
        if not source.awaiting or asked.number != source.asked:
            return []  # it is asked again already
        source.awaiting = False
        source.seen = {str(each.id) for each in events or () if each.id is not None}
        kept, source.kept = source.kept, []
        if events is None:
            self.events_dropped[source_name, "history_gone"] += 1
            self._lost(source, source_name, now_ms)
        else:
            source.seen, seen = set(), source.seen
            for envelope in events:
                self._take(source, envelope, envelope.id, now_ms)
            source.seen = seen
            self._sequence(source, source_name).guarded = bool(seen)
        for envelope, event_id in kept:
            self._take(source, envelope, event_id, now_ms)
        self.dead_letters.take(source_name, source.router.faults, now_ms)
        return self.wake(now_ms)

    def state_changed(self, source_name: str, state: str, now_ms: float) -> list[Effect]:
        """A source is in another state: gateways are told."""
        self._news.changed(source_name, state)
        return self.wake(now_ms)

    def demand(self, message: Demand, now_ms: float) -> tuple[Answer, list[Effect]]:
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
                self._joined(*channel, is_known=message.whole, now_ms=now_ms)
            shards.add(sender)
        for channel in sorted(dropped):
            shards = self._demanded.get(channel, set())
            shards.discard(sender)
            if not shards and self._demanded.pop(channel, None) is not None and channel not in self._always:
                effects.append(Leave(*channel))
                self._left(*channel, now_ms)
        joined = [channel for channel in message.add if self._open(channel[0])]
        return incoming.answered(DemandMet(self.incarnation, joined)), effects

    def _joined(self, source_name: str, channel: str, *, is_known: bool, now_ms: float) -> None:
        """A channel is wanted. `is_known`: a shard has had it joined before, and may have missed events."""
        source = self._sources.get(source_name)
        if source is None:
            return
        source.joined[channel] = None
        if source.repeats is Repeats.CHANNEL and source.is_open:
            name = source.sequence_name(channel)
            if is_known or name in source.sequences:
                self._rejoined(source, channel, now_ms)

    def _left(self, source_name: str, channel: str, now_ms: float) -> None:
        """A channel is no longer wanted: should it be again, it begins anew."""
        source = self._sources.get(source_name)
        if source is None:
            return
        source.joined.pop(channel, None)
        name = f"{source_name}/{channel}"
        for profile in range(len(self._targets)):
            source.feeds.pop(feed_name(name, profile), None)
        source.forget_routes(name)
        sequence = source.sequences.pop(name, None)
        if sequence is not None:
            sequence.checkpoint = Checkpoint(name, sequence.incarnation, sequence.number, None)
            self._moved(sequence, now_ms)

    def _open(self, source: str) -> bool:
        known = self._sources.get(source)
        return known is not None and known.is_open

    # --- claims and checkpoints ----------------------------------------------------------------------------------

    def claimed(self, message: Claimed, now_ms: float) -> tuple[Answer, list[Effect]]:
        """A shard says what it has committed."""
        line = self._line_of[message.shard]
        if message.number == line.claim and line.claim_at is not None:
            line.answers[message.shard] = {feed: (incarnation, last) for feed, incarnation, last in message.cursors}
            for new in message.checkpoints if not self._started else ():
                old = self._restored.get(new.sequence)
                if old is None or (old.incarnation, old.number) < (new.incarnation, new.number):
                    self._restored[new.sequence] = new
            if not line.unanswered_shards() and self._started:
                self.bytes_pending -= line.settle_claim()
        return Noted(self.incarnation), self.wake(now_ms)

    def _start(self) -> list[Effect]:
        """Begin to read, where the last life stood."""
        self._started = True
        self._start_at = None
        cursors: dict[str, list[_Cursor]] = {}
        for line in self._lines:
            for shard, told in line.answers.items():
                for feed, (incarnation, last) in told.items():
                    self._last_incarnation = max(self._last_incarnation, incarnation)
                    sequence = self._sources[owner(feed)].sequence_of(feed)
                    cursors.setdefault(sequence, []).append(_Cursor(feed, shard, incarnation, last))
        if not any(line.unanswered_shards() for line in self._lines):
            for checkpoint in self._restored.values():
                self._restore(checkpoint, cursors.get(checkpoint.sequence, []))
        self._restored.clear()
        for line in self._lines:
            line.claim_at = None
        return [Start(name) for name in self._sources]

    def _restore(self, checkpoint: Checkpoint, cursors: list[_Cursor]) -> None:
        """Take up a sequence at its checkpoint, unless it has begun anew since."""
        name = checkpoint.sequence
        source = self._sources[owner(name)]
        if checkpoint.id is None or source.sequence_of(name) != name:
            return
        if any(cursor.incarnation > checkpoint.incarnation for cursor in cursors):
            return
        sequence = source.sequences[name] = EventSequence.restored(checkpoint)
        for cursor in cursors:
            if cursor.incarnation < checkpoint.incarnation or cursor.feed.startswith(OPENED):
                continue
            feed = source.feeds.get(cursor.feed)
            if feed is None:
                feed = source.feeds[cursor.feed] = Feed(cursor.feed, sequence)
            feed.committed[cursor.shard] = feed.sent[cursor.shard] = cursor.last
            sequence.replay_until = max(sequence.replay_until, cursor.last)

    def _moved(self, sequence: EventSequence, now_ms: float) -> None:
        """A checkpoint is to be told, by and by."""
        self._untold[sequence] = None
        if self._tell_at is None:
            self._tell_at = now_ms + TELL_MS

    def _checkpoints(self, line: Line) -> dict[int, list[Checkpoint]]:
        """Return the checkpoints that have moved, by the shard of a line that keeps them."""
        found: dict[int, list[Checkpoint]] = {}
        reached = {each.address: each.reached for each in self._lines}
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

    # --- sending -------------------------------------------------------------------------------------------------

    def announce(self, message: Announce, now_ms: float) -> tuple[Answer, list[Effect]]:
        """A coordinator lives anew, or a shard."""
        line = self._by_address.get(message.sender)
        if line is not None and line.link.peer not in (0, message.incarnation):
            self._relink(line, now_ms)
        elif message.sender.startswith("shard-"):
            self._remind(int(message.sender.removeprefix("shard-")))
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
            (at for at in (self._announcements.deadline(), self._news.deadline(), self._start_at) if at is not None),
            default=None,
        )
        for line in self._lines:
            at = self._due(line)
            if at is not None and (due is None or at < due):
                due = at
        return due

    def _due(self, line: Line) -> float | None:
        """When to send something on a line, if only checkpoints."""
        due = line.due(self._window_ms)
        return self._tell_at if due is None and line.link.idle else due

    def wake(self, now_ms: float) -> list[Effect]:
        """Send what is due."""
        effects: list[Effect] = [*self._announcements.wake(now_ms), *self._news.wake(now_ms)]
        if not self._started:
            if self._start_at is None:
                self._start_at = now_ms + CLAIM_WAIT_MS
            if now_ms >= self._start_at or not any(line.unanswered_shards() for line in self._lines):
                effects.extend(self._start())
        for line in self._lines:
            if not line.link.idle:
                blob = line.link.resend(now_ms)
                if blob is not None:
                    effects.append(Send(line.address, blob))
            elif (due := self._due(line)) is not None and due <= now_ms:
                effects.append(self._send(line, now_ms))
        if self._tell_at is not None and self._tell_at <= now_ms:
            self._tell_at = now_ms + TELL_MS if self._untold else None
        if self.bytes_pending <= LOW_WATER_BYTES:
            for source in self._sources.values():
                if source.paused and not source.awaiting:
                    source.paused = False
                    effects.append(Resume(source.name))
        return effects

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
            touched = {feed.sequence: None for pending in line.pending.values() for feed in pending.feeds}
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
                    if source.repeats is not Repeats.NOTHING and source.sequences.get(sequence.name) is sequence:
                        sequence.mark(needs)
                        self._moved(sequence, now_ms)
        line.sent_at = now_ms
        blob = Blob(header, parts)
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
        elif self._by_address[to].link.in_flight is message:
            self._by_address[to].link.failed(now_ms, RETRY_MS)
        return []
