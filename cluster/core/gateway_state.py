"""The gateway: replicas of what its sessions watch, and the delivery of their changes.

Delivery contract, per subscription: a snapshot of every matching entry, `snapshot_end`, then every change, per entry in version order,
each from the version last sent; or `reset` and a new snapshot. How each path keeps it:

- Replicas change only by change sets, in link order. A change set that a shard had to split is applied when its last part is here, so
  replicas always stand at one offset per shard, and that is the position clients are told.
- A tick flushes each dirty topic once: changes folded since the last tick, encoded once per mode, the same bytes for every subscriber
  in step. Before a subscription comes into step its topic is flushed, so that it is at exactly the replicas' versions.
- Others (snapshot under way, paused, socket full) fold into an outbox of their own; when that is written they are in step.
- After a shard's new life, or where a link lost its thread, subscriptions go on from what they were told if the shard has that still;
  who is in the middle of a snapshot is reset.

It is one thing because these paths meet in the same few fields of replicas, topics and subscriptions.

What must not live here: HTTP and sockets (`cluster.gateway`), message texts (`protocol`), what a client may send (`client_message`).
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import orjson
from msgspec import Struct

from cluster.core import protocol
from cluster.core.anti_entropy import AntiEntropy
from cluster.core.degradation import LEVELS, WINDOW_MS, Degradation, Step
from cluster.core.gateway_mutations import Concluded, GatewayMutations, News, Order, Said, visible
from cluster.core.grants import ANYBODY, Authority, Principal
from cluster.core.limits import Limits, SessionCounts, refuse
from cluster.core.link import Foreign, Incoming, New, Outgoing, Repeat
from cluster.core.messages import (
    Absent,
    Act,
    Announce,
    Answer,
    Answered,
    Answers,
    Change,
    ChangeSet,
    ChangeSetTaken,
    Edit,
    EntryView,
    Erase,
    Failure,
    Full,
    Item,
    KeyInfo,
    ListMutations,
    Mend,
    Meta,
    Missed,
    MissedKeys,
    Mutate,
    MutationView,
    Noted,
    Outdated,
    Payload,
    PresenceDiff,
    PresenceResume,
    PresenceWanted,
    Progress,
    Ready,
    Rebalance,
    Refused,
    Removed,
    Request,
    Requests,
    Reset,
    Rest,
    Restored,
    Send,
    ServiceState,
    Snapshot,
    SourceStates,
    Unwatch,
    Verified,
    Verify,
    Watch,
    Write,
    Written,
)
from cluster.core.mutation import DeclaredMutation
from cluster.core.outbox import Outbox, Pending, encode
from cluster.core.owner import owner
from cluster.core.placement import SlotMap
from cluster.core.position import MAP, Position, Scope, Tokens, scope_of
from cluster.core.presence_room import Mode, Pattern
from cluster.core.presence_session import PresenceSessions
from cluster.core.query_key import CanonicalKey, KeyMatcher, parse
from cluster.core.rate import RateLimits
from cluster.core.replica import Replica
from cluster.core.reserved import KEYS, OWN, reserved
from cluster.core.session_expiry import Expiries, expiry_notice
from cluster.core.session_state import OUTBOX_BYTES, SessionState
from cluster.core.structural_sharing import difference, share
from cluster.core.subscription import Interests
from cluster.core.tenant import Tenant
from cluster.core.topic import Phase, Subscription, Topic
from cluster.core.undo import Undoing
from cluster.errors import ErrorCode, HarborError, LimitError, RequestError, UnauthorizedError, UnavailableError

SETTLE_MS = 2.0
"""From the first change to the flush after a quiet time: the change sets of one window's shards arrive within it, a lone event hardly
notices it."""
SPACING_MS = 5.0
"""Between flushes while changes keep coming: room for the change sets that come a little later, while a client still gets
one or two writes a window."""
RETRY_MS = 150.0
CHUNK_BYTES = 64 * 1024
"""Of a snapshot, in one frame. The socket asks for the next when this one is written."""
NOWHERE: Position = (-1, 0)
"""No shard has ever been there."""
PIECE_BYTES = 256 * 1024
"""Of what has folded, in one frame: it is mostly all of it, and a client that has it all can go on from there."""
AT_ONCE = 4
"""Times as much as may wait for a client may for one that keeps up, as it takes it at once: many entries may change in one window."""
SILENCE_MS = 3_000.0
"""A shard with watches sends a heartbeat every second. One that has said nothing for so long is asked whether it still knows this
gateway; if not it refuses, and the links start over."""
REQUEST_MS = 60_000.0
"""A read of a missing entry waits for its fetch and the retries of it; after so long its caller gets `TIMEOUT`."""
IDS_PER_MS = 1_000_000
"""Of requests and watches: the ids of a life begin where no earlier life has come to, as a shard may still answer what that asked."""
MAX_REQUESTS = 10_000
"""Of callers, without an answer, per shard; beyond it they get `UNAVAILABLE` at once. A healthy shard answers as many in a second."""
MAX_SESSIONS = 20_000
"""An idle socket costs about 16 KB here."""


class Deliver(Struct, frozen=True):
    """Effect: `session` has output; take it when its socket can be written to."""

    session: str


class Respond(Struct, frozen=True):
    """Effect: the answers to a one-shot request, one from each shard asked."""

    ticket: int
    payloads: list[Payload]


class Close(Struct, frozen=True):
    """Effect: close a session's connection."""

    session: str
    code: int
    reason: str


Effect = Send | Deliver | Respond | Close


class Concerns(Protocol):
    """Knows which keys depend on which upstreams."""

    def source(self, source: str, key: list[Any], *, prefix: bool) -> bool:
        """Whether a source feeds a key, or keys under a prefix."""
        ...

    def service(self, service: str, key: list[Any], *, prefix: bool) -> bool:
        """Whether a service is asked for a key, or for keys under a prefix."""
        ...


class _Gather:
    """A one-shot request, sent to one or more shards."""

    __slots__ = ("make", "payloads", "ticket", "until_ms", "waiting")

    def __init__(
        self, ticket: int, waiting: int, until_ms: float, make: Callable[[int], Request] | None = None
    ) -> None:
        self.ticket = ticket
        self.make = make
        """Makes the request anew, where every shard is asked."""
        self.waiting = waiting
        self.until_ms = until_ms
        self.payloads: list[Payload] = []


class _Shard:
    """The links to and from one shard."""

    __slots__ = (
        "address",
        "heard_ms",
        "incoming",
        "index",
        "offline",
        "out",
        "outstanding",
        "partial",
        "partial_oldest_ms",
        "position",
        "presumed",
        "queue",
        "reopening",
        "sets",
        "watching",
    )

    def __init__(self, index: int, identity: str, incarnation: int) -> None:
        self.index = index
        self.address = f"shard-{index}"
        self.out = Outgoing(identity, incarnation)
        self.incoming = Incoming(incarnation)
        self.queue: list[Request] = []
        self.outstanding: dict[int, Request] = {}
        """Requests without an answer, to be asked again of a new life."""
        self.watching: dict[int, Topic] = {}
        """Topic by watch id."""
        self.position: Position = (0, 0)
        self.partial: list[Item] = []
        """Items of a split change set whose last part is yet to come."""
        self.partial_oldest_ms = 0.0
        self.reopening = True
        """Its link to here is to start over; what still comes on the old one is void."""
        self.offline: set[str] = set()
        """Services that it cannot reach."""
        self.presumed: set[str] = set()
        """Of those, what it said before its link started over, and has not said again yet."""
        self.sets = 0
        """Change sets applied, heartbeats included."""
        self.heard_ms = 0.0

    def ask(self, request: Request) -> None:
        """Have a request sent with what goes next, and again until it is answered."""
        self.outstanding[request.id] = request
        self.queue.append(request)


class GatewayState:
    """See the module."""

    def __init__(  # noqa: PLR0915 - it has many parts, named here one by one
        self,
        identity: str,
        incarnation: int,
        *,
        slots: SlotMap,
        shards: int,
        tokens: Tokens,
        concerns: Concerns | None = None,
        authority: Authority | None = None,
        mutations: Mapping[str, DeclaredMutation] | None = None,
        patterns: Sequence[Pattern] = (),
        limits: Limits | None = None,
        outbox_bytes: int = OUTBOX_BYTES,
    ) -> None:
        """`outbox_bytes`: how much may wait for one session."""
        self.outbox_limit = outbox_bytes
        self._writing: dict[str, SessionState] = {}
        """Sessions whose sockets are taking a frame."""
        self._degraded: dict[str, SessionState] = {}
        """Those with a `degradation`."""
        self._held: dict[str, float] = {}
        """When what waits for a degraded session is due."""
        self.identity = identity
        self.tokens = tokens
        self.authority = authority
        """Says who may do what; None: anybody everything."""
        self.expiries = Expiries()
        self.limits = limits or Limits()
        self.counts = SessionCounts(self.limits)
        self.request_rates = _request_rates(self.limits)
        """Of HTTP requests by who asks, and of refused credentials by address; None: any."""
        self.limited: Counter[str] = Counter()
        """What was refused, by limit."""
        self.mutations = GatewayMutations(mutations or {})
        self.concerns = concerns
        self._sources: dict[str, str | None] = {}
        """Condition by source: up | down | failed; None: it has not been up yet."""
        self._connections: dict[str, dict[str, str | None]] = {}
        """The same, as ingestors last said of their own connections."""
        self._heard: dict[str, int] = {}
        """Number of the last word, by ingestor."""
        self.incarnation = incarnation
        self._slots = slots
        self._shards = [_Shard(n, identity, incarnation) for n in range(shards)]
        self._by_address = {shard.address: shard for shard in self._shards}
        self.sessions: dict[str, SessionState] = {}
        self.replicas: dict[str, Replica] = {}
        self._topics: dict[tuple[str, bool], Topic] = {}
        self._subscribed: Counter[int] = Counter()
        """Subscriptions by shard that their topics watch."""
        self._regains: dict[str, set[int]] = {}
        """By session that came back: the requests for its mutations that are not answered."""
        self._interests: Interests[Topic] = Interests()
        self._dirty: list[Topic] = []
        self._flush_at: float | None = None
        self._flushed_ms = 0.0
        self._next_id = incarnation * IDS_PER_MS
        self._gathers: dict[int, _Gather] = {}
        self._resuming: dict[int, Subscription] = {}
        self._oldest: list[float] = []
        self.flushed: list[tuple[float, float]] = []
        """(receipt of the oldest event, its age at the flush) of each change set, since the shell last took them."""
        self.changes_delivered = 0
        self.ended: Counter[str] = Counter()
        """Sessions that were closed since their credentials no longer count, by why."""
        self.anti_entropy = AntiEntropy()
        self._regained: set[str] = set()
        """Keys of which there was no replica though there should have been, until there is."""
        self.diverged: list[tuple[str, str, int, int]] = []
        """(shard, a key, its version here, how many) of replicas that were found wrong, since the shell last took them."""
        self.resumes: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        """By where the answer came from; the shell counts."""
        self._now_ms = 0.0
        self.presence = PresenceSessions(
            incarnation,
            self._home_of,
            shards,
            patterns,
            updates_per_s=self.limits.presence_updates,
        )

    def bound(self, limits: Limits, outbox_bytes: int, now_ms: float) -> None:
        """Take other limits. They count from now on, also for sessions that are there; who has more already keeps it."""
        before = self.limits
        self.limits = self.counts.limits = limits
        self.outbox_limit = outbox_bytes
        if (limits.commands, limits.commands_burst) != (before.commands, before.commands_burst):
            for session in self.sessions.values():
                session.pace = None
        if (limits.requests, limits.requests_burst) != (before.requests, before.requests_burst):
            self.request_rates = _request_rates(limits)
        if limits.presence_updates != before.presence_updates:
            self.presence.bound(limits.presence_updates, now_ms)

    @property
    def slots(self) -> SlotMap:
        """Return which shard has which slot, as far as this gateway knows."""
        return self._slots

    # --- shards --------------------------------------------------------------------------------------------------

    def change_set(self, message: ChangeSet, now_ms: float) -> tuple[Answer, list[Effect]]:
        """Apply what a shard sends to the replicas."""
        self._now_ms = now_ms
        shard = self._by_address.get(message.header.sender)
        effects: list[Effect] = []
        if shard is None:
            return Refused(self.incarnation), []  # it is about to end, or of a slot map that is yet to come
        match shard.incoming.admit(message.header):
            case Foreign():
                return Refused(self.incarnation), []
            case Repeat(answer):
                return answer, []
            case New(opened=opened):
                if opened and shard.reopening:
                    shard.reopening = False
                elif opened:
                    self._relink(shard, effects)  # it started over unasked: what was on its way is lost
        shard.heard_ms = now_ms
        if shard.reopening or message.epoch < shard.position[0]:
            return shard.incoming.answered(ChangeSetTaken(self.incarnation)), effects
        if message.oldest_ms and (not shard.partial_oldest_ms or message.oldest_ms < shard.partial_oldest_ms):
            shard.partial_oldest_ms = message.oldest_ms
        shard.partial.extend(message.items)
        if message.offset >= 0:
            items, shard.partial = shard.partial, []
            shard.position = (message.epoch, message.offset)
            shard.sets += 1
            own = [
                item.key
                for item in items
                if isinstance(item, Change) and item.mutations and self.mutations.is_own(item.mutations)
            ]
            for item in items:
                self._apply(shard, item, effects)
            for key in own:  # who began a mutation sees it at once
                replica = self.replicas.get(key)
                for topic in () if replica is None else replica.topics:
                    self._flush_topic(topic, effects)
            for service in sorted(shard.presumed):  # the first set after an opening says which are lost
                self._toggle(shard, service, is_offline=False, effects=effects)
            if shard.partial_oldest_ms:
                self._oldest.append(shard.partial_oldest_ms)
                shard.partial_oldest_ms = 0.0
        effects.extend(self._pump(shard))
        return shard.incoming.answered(ChangeSetTaken(self.incarnation)), effects

    def _apply(self, shard: _Shard, item: Item, effects: list[Effect]) -> None:
        match item:
            case Change():
                self._change(shard, item, effects)
            case Meta():
                self._meta(item)
            case Removed(key=key, version=version):
                self._removed(key, version)
            case Snapshot(watch=watch, entry=view):
                topic = shard.watching.get(watch)
                if topic is not None:
                    self._snapshot(shard, topic, view)
                    if topic.prefix:
                        topic.seen[shard.index].add(view.key)
                    else:
                        self._complete(shard, topic, effects)
            case Absent(watch=watch):
                topic = shard.watching.get(watch)
                if topic is not None:
                    self._sweep(list(topic.replicas.values()))
                    self._complete(shard, topic, effects)
            case Ready(watch=watch, offset=offset):
                topic = shard.watching.get(watch)
                if topic is not None:
                    seen = topic.seen.pop(shard.index)
                    ghosts = [
                        replica
                        for replica in topic.replicas.values()
                        if replica.shard == shard.index and 0 < replica.version <= offset and replica.key not in seen
                    ]
                    self._sweep(ghosts)
                    self._complete(shard, topic, effects)
            case Reset(entry=view):
                replica = self.replicas.get(view.key)
                if replica is not None:
                    before = replica.version
                    replica.replace(view)
                    for topic in replica.topics:
                        self._pending(topic, view.key, before).reset = True
            case MissedKeys():
                self._missed(shard, item, effects)
            case Verified(keys=keys):
                self._compare(shard, keys, effects)
            case ServiceState(service=service, is_offline=is_offline):
                self._toggle(shard, service, is_offline=is_offline, effects=effects)
            case Answered(id=request, payload=payload):
                self._settle(shard, request, payload, effects)
            case MutationView():
                self._pass_on(self.mutations.heard(item, shard.index), effects)
            case PresenceDiff():
                self.presence.diff(item)
                effects.extend(map(Deliver, self.presence.woken()))
            case PresenceWanted():
                self.presence.wanted(shard.index)

    def _change(self, shard: _Shard, change: Change, effects: list[Effect]) -> None:
        replica = self.replicas.get(change.key)
        if replica is None:
            topics = list(self._interests.matching(change.key, parse(change.key)))
            if not topics or change.data is None:
                return  # no longer watched
            replica = self._replica(change.key, shard)
            if change.key in self._regained:  # nobody knows what was passed on of it
                self._regained.discard(change.key)
                for topic in replica.topics:
                    self._pending(topic, change.key, 0).reset = True
        elif change.version <= replica.version:
            return
        elif change.from_version != replica.version and change.data is None:
            self._relink(shard, effects)
            return
        before = replica.version
        replica.take(change)
        for topic in replica.topics:
            pending = self._pending(topic, change.key, before)
            pending.add_patch(change.patch)
            pending.add_mutations(change.mutations)
            pending.coalesced += change.coalesced

    def _replica(self, key: str, shard: _Shard) -> Replica:
        self.anti_entropy.begin(self._now_ms)
        replica = self.replicas[key] = Replica(key, shard.index)
        for topic in self._interests.matching(key, replica.parsed):
            replica.topics.append(topic)
            topic.replicas[key] = replica
        return replica

    def _meta(self, meta: Meta) -> None:
        replica = self.replicas.get(meta.key)
        if replica is None:
            return
        failed = meta.error is not None and meta.error != replica.error and replica.value is None
        replica.heed(meta)
        if meta.invalidated or failed:
            for topic in replica.topics:
                pending = self._pending(topic, meta.key, replica.version)
                pending.invalidated = pending.invalidated or meta.invalidated
                pending.retold = pending.retold or failed

    def _removed(self, key: str, version: int) -> None:
        replica = self.replicas.pop(key, None)
        if replica is None:
            return
        for topic in replica.topics:
            del topic.replicas[key]
            pending = self._pending(topic, key, replica.version)
            pending.patches = None
            pending.gone_version = version

    def _sweep(self, ghosts: list[Replica]) -> None:
        """Drop replicas of entries that are gone.

        They come of changes that were on their way for a watch that has ended; the removal that followed was for nobody any more.
        """
        for replica in ghosts:
            self._removed(replica.key, replica.version + 1)

    def _snapshot(self, shard: _Shard, topic: Topic, view: EntryView) -> None:
        replica = self.replicas.get(view.key)
        if replica is not None and not view.version and replica.version:
            self._sweep([replica])
            replica = None
        if replica is None:
            replica = self._replica(view.key, shard)
            replica.replace(view)
            for each in replica.topics if view.version else ():
                if each.is_watched_anew:  # it came to be after slots had moved, and before that shard was asked
                    pending = self._pending(each, view.key, 0)
                    pending.patches = None
                    pending.coalesced += 1
            return
        if topic not in replica.topics:
            replica.topics.append(topic)
            topic.replicas[view.key] = replica
        before = replica.version
        if view.version >= before:
            replica.replace(view)
        if view.version > before:
            for each in replica.topics:
                pending = self._pending(each, view.key, before)
                pending.patches = None
                pending.coalesced += 1

    def _pending(self, topic: Topic, key: str, from_version: int) -> Pending:
        if not topic.dirty:
            topic.dirty = True
            self._dirty.append(topic)
            if self._flush_at is None:
                self._flush_at = max(self._now_ms + SETTLE_MS, self._flushed_ms + SPACING_MS)
        return topic.outbox.at(key, from_version)

    def _complete(self, shard: _Shard, topic: Topic, effects: list[Effect]) -> None:
        """A shard's part of a topic is here."""
        topic.awaited.discard(shard.index)
        if not topic.ready:
            return
        topic.is_watched_anew = False
        self._flush_topic(topic, effects)
        moved = _moved(topic)
        for subscription in list(topic.subscriptions):
            if subscription.phase in (Phase.LAGGING, Phase.SNAPSHOT):
                self._attend(subscription, effects)
            if subscription.phase is Phase.REJOINING:
                self._rejoin(subscription, moved, effects)
            elif subscription.phase is Phase.AWAITING:
                self._begin(subscription, effects)
        topic.held.clear()

    def _rejoin(self, subscription: Subscription, moved: dict[str, int] | None, effects: list[Effect]) -> None:
        """Go on where a subscription stood; where its shard lost what had been passed on, start it over."""
        if moved is None:
            self._start_over(subscription, effects)
            return
        for key, pending in subscription.outbox.items():
            if self._slots.shard(CanonicalKey(key)) in subscription.topic.held:
                subscription.outbox.whole(key, pending.from_version)  # patches lead to what the last life had
        for key, version in moved.items():
            subscription.outbox.whole(key, version)
        subscription.phase = Phase.LAGGING
        self._attend(subscription, effects)
        self._weigh(subscription, effects)

    def _start_over(self, subscription: Subscription, effects: list[Effect]) -> None:
        """Have a `reset` told, and everything anew."""
        concerned = _reset_with(subscription, self.sessions[subscription.topic.subscriptions[subscription]])
        for each in concerned:
            each.resets, each.since = True, None
            each.phase = Phase.AWAITING
            each.remaining = {}
            each.outbox.empty()
        for each in concerned:
            if each.phase is Phase.AWAITING and each.topic.ready:
                self._begin(each, effects)

    def announce(self, message: Announce, now_ms: float) -> tuple[Answer, list[Effect]]:
        """A shard lives anew: what this gateway watches there is void until it says so again."""
        self._now_ms = now_ms
        effects: list[Effect] = []
        shard = self._by_address.get(message.sender)
        if shard is not None and shard.out.peer not in (0, message.incarnation):
            self._relink(shard, effects)
        return Noted(self.incarnation), effects

    def _relink(self, shard: _Shard, effects: list[Effect]) -> None:
        """Start the links to a shard over; subscriptions go on once it has said what it holds now."""
        shard.out.relink()
        self._ask_elsewhere(shard, effects)  # slots may have moved while something was on its way to it
        shard.reopening = True
        shard.presumed |= shard.offline
        shard.heard_ms = self._now_ms
        shard.partial.clear()
        shard.partial_oldest_ms = 0.0
        shard.queue = []
        self.anti_entropy.forget(shard.index)
        self._regained.clear()
        self.presence.relinked(shard.index)
        topics = list(shard.watching.values())
        shard.watching.clear()
        for topic in topics:
            self._flush_topic(topic, effects, at_once=True)
            held = {key: replica.version for key, replica in topic.replicas.items() if replica.shard == shard.index}
            for key in held:
                del topic.replicas[key]
                self.replicas.pop(key, None)
            topic.held.setdefault(shard.index, held)
            self._watch(shard, topic)
            for subscription in topic.subscriptions:
                if subscription.phase in (Phase.LIVE, Phase.LAGGING):
                    subscription.phase = Phase.REJOINING
                elif subscription.phase is Phase.RESUMING:
                    self._stop_resuming(subscription)  # it was told nothing yet, and the next life knows what it missed
                elif subscription.phase is Phase.SNAPSHOT:
                    self._start_over(subscription, effects)
                    self._attend(subscription, effects)
        self._ask_again(shard)
        shard.queue.extend(shard.outstanding.values())
        effects.extend(self._pump(shard))

    def _watch(self, shard: _Shard, topic: Topic) -> None:
        if not shard.watching:
            shard.heard_ms = self._now_ms
        watch = self._id()
        topic.watches[shard.index] = watch
        topic.awaited.add(shard.index)
        topic.seen[shard.index] = set()
        shard.watching[watch] = topic
        shard.queue.append(Watch(watch, topic.key, topic.prefix))
        if topic.rests:
            shard.queue.append(Rest(watch, True))

    def _settle_rest(self, topic: Topic, effects: list[Effect]) -> None:
        """Tell shards whether anybody listens: who has paused does not keep upstream channels joined."""
        rests = all(subscription.paused for subscription in topic.subscriptions)
        if rests == topic.rests:
            return
        topic.rests = rests
        for index, watch in topic.watches.items():
            self._shards[index].queue.append(Rest(watch, rests))
            effects.extend(self._pump(self._shards[index]))

    def _id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _pump(self, shard: _Shard) -> list[Effect]:
        """Send what waits for a shard, if nothing is in flight."""
        if not shard.out.idle:
            return []
        shard.queue[:0] = self.presence.news(shard.index, self._now_ms)
        if not shard.queue:
            return []
        message = Requests(shard.out.header(), shard.queue, self._slots.epoch)
        shard.queue = []
        shard.out.sent(message)
        return [Send(shard.address, message)]

    @staticmethod
    def _greet(shard: _Shard) -> Send:
        """Let a shard know of this gateway, or say that it knows it no longer."""
        message = Requests(shard.out.header(), [])
        shard.out.sent(message)
        return Send(shard.address, message)

    def answered(self, to: str, message: Any, answer: Answer, now_ms: float) -> list[Effect]:
        """A shard answered `message`."""
        self._now_ms = now_ms
        shard = self._by_address.get(to)
        effects: list[Effect] = []
        if shard is None or shard.out.in_flight is not message:
            return effects
        match answer:
            case Answers(incarnation=incarnation, items=items):
                shard.out.acknowledged(incarnation)
                for request, payload in items:
                    self._settle(shard, request, payload, effects)
                if message.map != self._slots.epoch:
                    self._ask_elsewhere(shard, effects)
                effects.extend(self._pump(shard))
            case Full(retry_ms=retry_ms):
                shard.out.failed(now_ms, retry_ms)
            case Outdated(map=slots):
                self._take_map(slots, effects)
                self._send_rest(shard, message, effects)
            case Refused():
                self._relink(shard, effects)
            case _:
                raise AssertionError(f"{to} answered requests with {answer!r}")
        return effects

    def unanswered(self, to: str, message: Any, now_ms: float) -> list[Effect]:
        """The call failed; what it carried is kept and sent again."""
        shard = self._by_address.get(to)
        if shard is not None and shard.out.in_flight is message:
            shard.out.failed(now_ms, RETRY_MS)
        return []

    # --- moves of slots ------------------------------------------------------------------------------------------

    def _home_of(self, topic: str) -> int:
        return self._slots.shard(CanonicalKey(topic))

    def rebalance(self, message: Rebalance, now_ms: float) -> tuple[Progress, list[Effect]]:
        """Take a slot map, if it is a newer one; a gateway has no other part in a move."""
        self._now_ms = now_ms
        effects: list[Effect] = []
        if message.phase == "release":
            self._take_map(message.map, effects)
        return Progress(self._slots, True), effects

    def _take_map(self, slots: SlotMap, effects: list[Effect]) -> None:
        """Slots are elsewhere from now on. Entries are what they were, so subscribers are told nothing of it.

        What is watched of the shards to which slots have come is watched anew: their snapshots hold the versions that are known here,
        or later ones, which subscribers get as changes.
        """
        before = self._slots
        if slots.epoch <= before.epoch:
            return
        pairs = before.moves(slots)
        for index in range(len(self._shards), slots.shards):
            shard = _Shard(index, self.identity, self.incarnation)
            self._shards.append(shard)
            self._by_address[shard.address] = shard
        gone = self._shards[slots.shards :]
        senders, receivers = {sender for sender, _ in pairs}, {to for _, to in pairs}
        receivers |= {shard.index for shard in self._shards if shard.index >= before.shards} | ({0} if gone else set())
        self._slots = slots
        self.presence.rehome(slots.shards)
        homeless = self.mutations.moved(senders)
        for replica in self.replicas.values():
            index = slots.shard(CanonicalKey(replica.key))
            if index != replica.shard:
                replica.shard = index
                replica.doubted_until = self._shards[index].sets + 2 if replica.doubted_until else 0
        for topic in self._topics.values():
            self._watch_elsewhere(topic, receivers, effects)
        for shard in gone:  # nothing is under way to them any more: what they did of it, the next owners know
            shard.out.relink()
            self.anti_entropy.forget(shard.index)
            for service in sorted(shard.offline):
                self._toggle(shard, service, is_offline=False, effects=effects)
            for each in shard.outstanding.values():
                if isinstance(each, PresenceResume):  # what it knew is with others, which are asked too
                    self.presence.restored(each.id, shard.index, each.member, Restored([]), self._now_ms)
        for shard in [*self._shards]:
            self._ask_elsewhere(shard, effects)
        del self._shards[slots.shards :]
        for shard in gone:
            del self._by_address[shard.address]
        for topic in self._topics.values():
            for subscription in topic.subscriptions if topic.ready else ():
                if subscription.phase is Phase.AWAITING:
                    self._begin(subscription, effects)
        for gather in {id(each): each for each in self._gathers.values() if each.make is not None}.values():
            self._gather_anew(gather)
        for session_id in list(self._regains):
            self._ask_for_own(self.sessions[session_id])
        for shard in self._shards:
            for mutation in homeless:
                shard.ask(ListMutations(self._id(), mutation))
            effects.extend(self._pump(shard))

    def _watch_elsewhere(self, topic: Topic, receivers: set[int], effects: list[Effect]) -> None:
        """Watch what a topic is about where it is now."""
        old = dict(topic.watches)
        if not old:
            return  # a reserved entry, which no shard has
        home = self._slots.shard(CanonicalKey(topic.key))
        shards = self._slots.shards
        wanted = {each for each in receivers if each < shards} if topic.prefix else {home} - old.keys()
        ended = {index for index in old if index >= shards or (not topic.prefix and index != home)} | (
            wanted & old.keys()
        )
        for subscription in topic.subscriptions:
            if subscription.phase is Phase.RESUMING:  # who was asked may be no more, and others are to be asked too
                self._stop_resuming(subscription)
        if not wanted and not ended:
            return
        topic.is_watched_anew = topic.is_watched_anew or topic.ready
        is_rejoining = bool(topic.held)
        for index in sorted(wanted):
            self._watch(self._shards[index], topic)
        for index in ended:
            shard = self._shards[index]
            shard.watching.pop(old[index], None)
            shard.queue.append(Unwatch(old[index]))
            if topic.watches[index] == old[index]:
                del topic.watches[index]
                topic.awaited.discard(index)
                topic.seen.pop(index, None)
        for index in old.keys() ^ topic.watches.keys():
            self._subscribed[index] += len(topic.subscriptions) * (1 if index in topic.watches else -1)
        if is_rejoining:  # what was held of one shard would have to be looked for in several
            topic.held.clear()
        for subscription in topic.subscriptions:
            if subscription.phase is Phase.REJOINING:
                self._start_over(subscription, effects)

    def _stop_resuming(self, subscription: Subscription) -> None:
        """Let no answer count any more of what it missed; where it goes on, all are asked anew when its topic is ready."""
        for request in subscription.asked:
            self._resuming.pop(request, None)
        subscription.asked.clear()
        subscription.phase = Phase.AWAITING
        subscription.outbox.empty()

    def _ask_elsewhere(self, shard: _Shard, effects: list[Effect]) -> None:
        """Ask other shards what this one would no longer answer, but for what is on its way to it."""
        message = shard.out.in_flight
        under_way = set() if message is None else {request.id for request in message.items}
        for request in list(shard.outstanding.values()):
            index = owner(request, self._slots)
            if index is not None and index != shard.index and request.id not in under_way:
                del shard.outstanding[request.id]
                other = self._shards[index]
                other.ask(request)
                effects.extend(self._pump(other))
        shard.queue = [each for each in shard.queue if owner(each, self._slots) in (None, shard.index)]

    def _send_rest(self, shard: _Shard, message: Requests, effects: list[Effect]) -> None:
        """A message was not taken since another map counts: send what of it is for this shard still."""
        if shard.out.in_flight is not message:
            return
        items = [request for request in message.items if owner(request, self._slots) in (None, shard.index)]
        rest = Requests(message.header, items, self._slots.epoch)
        shard.out.sent(rest)
        self._ask_elsewhere(shard, effects)
        effects.append(Send(shard.address, rest))

    def _gather_anew(self, gather: _Gather) -> None:
        """Ask every shard again: between two answers entries may have passed from one that had yet to be asked to one that had been."""
        for asked in [request for request, each in self._gathers.items() if each is gather]:
            self._drop_request(asked)
        assert gather.make is not None
        gather.payloads, gather.waiting = [], len(self._shards)
        for shard in self._shards:
            request = gather.make(self._id())
            self._gathers[request.id] = gather
            shard.ask(request)

    # --- upstreams -----------------------------------------------------------------------------------------------

    def source_states(self, message: SourceStates, now_ms: float) -> tuple[Answer, list[Effect]]:
        """An ingestor says how its sources are."""
        self._now_ms = now_ms
        effects: list[Effect] = []
        if message.number > self._heard.get(message.sender, 0):
            self._heard[message.sender] = message.number
            known = self._connections.get(message.sender, {})
            self._connections[message.sender] = {
                source: _condition(known.get(source), state) for source, state in message.states
            }
            for source in {**known, **dict(message.states)}:
                before = self._sources.get(source)
                after = self._condition_of(source)
                if after is None or after == before:
                    continue  # it is on its way to another ingestor
                self._sources[source] = after
                if not (before is None and after in ("up", "down")):
                    if (members := _source_notice(source, after)) is not None:
                        self._tell("source", source, members, effects)
        return Noted(self.incarnation), effects

    def _condition_of(self, source: str) -> str | None:
        """Return how a source is, of which several ingestors may read a part: as the worst of them has it."""
        told = {states[source] for states in self._connections.values() if source in states}
        return next((each for each in ("failed", "down", "up") if each in told), None)

    def _toggle(self, shard: _Shard, service: str, *, is_offline: bool, effects: list[Effect]) -> None:
        """A shard has lost a service, or has it back; clients hear of the first that loses it and of the last that has it back."""
        before = any(service in each.offline for each in self._shards)
        shard.presumed.discard(service)
        if is_offline:
            shard.offline.add(service)
        else:
            shard.offline.discard(service)
        if before != any(service in each.offline for each in self._shards):
            self._tell("service", service, _service_notice(service, is_offline=is_offline), effects)

    def _tell(self, kind: str, upstream: str, members: dict[str, Any], effects: list[Effect]) -> None:
        """Send a notice to the sessions whose subscriptions an upstream concerns."""
        told: set[str] = set()
        for topic in self._topics.values():
            if self._depends(topic, kind, upstream):
                for session_id in topic.subscriptions.values():
                    if session_id not in told:
                        told.add(session_id)
                        effects.extend(self._notify(self.sessions[session_id], members))

    def _depends(self, topic: Topic, kind: str, upstream: str) -> bool:
        if self.concerns is None:
            return False
        ask = self.concerns.source if kind == "source" else self.concerns.service
        return ask(upstream, parse(topic.key), prefix=topic.prefix)

    def _notify(self, session: SessionState, members: dict[str, Any]) -> list[Effect]:
        if not session.server_sent:
            return self.say(session, protocol.message("notice", **members))
        return self._first(session, *protocol.events([(b"notice", orjson.dumps(members)[1:-1])]))

    def _warn(self, session: SessionState, topic: Topic, effects: list[Effect]) -> None:
        """Tell a new subscriber of what it depends on and cannot be reached."""
        for source, state in self._sources.items():
            members = None if state == "up" else _source_notice(source, state)
            if members is not None and self._depends(topic, "source", source):
                effects.extend(self._notify(session, members))
        for service in sorted({service for shard in self._shards for service in shard.offline}):
            if self._depends(topic, "service", service):
                effects.extend(self._notify(session, _service_notice(service, is_offline=True)))

    # --- reserved entries ----------------------------------------------------------------------------------------

    def reported(self) -> list[str]:
        """Return the names of reserved entries that somebody here watches, and has not paused."""
        return [name for name, key in KEYS.items() if (topic := self._topics.get((key, False))) and not topic.rests]

    def report(self, name: str, data: Any, now_ms: float) -> list[Effect]:
        """Say what a reserved entry is now, where somebody watches it."""
        self._now_ms = now_ms
        effects: list[Effect] = []
        key = KEYS[name]
        topic = self._topics.get((key, False))
        if topic is None:
            return effects
        replica = topic.replicas.get(key)
        if replica is None:
            replica = topic.replicas[key] = Replica(key, OWN)
            replica.topics.append(topic)
            encoded = orjson.dumps(data)
            replica.replace(EntryView(key, int(now_ms), encoded, int(now_ms), "success", "idle", False, None))
            topic.awaited.clear()
            for subscription in list(topic.subscriptions):
                self._begin(subscription, effects)
            return effects
        assert replica.value is not None
        held = replica.value.object()
        members = difference(held, share(held, data))
        if members == []:
            return effects
        before = replica.version
        patch = None if members is None else b"[" + b",".join(members) + b"]"
        version = max(before + 1, int(now_ms))  # also after what another gateway, or an earlier life, has said
        whole = orjson.dumps(data) if patch is None else None
        replica.take(Change(key, before, version, whole, patch, 1, int(now_ms)))
        pending = self._pending(topic, key, before)
        pending.add_patch(patch)
        pending.coalesced += 1
        return effects

    # --- one-shot requests ---------------------------------------------------------------------------------------

    def _is_full(self, shard: _Shard) -> bool:
        """Whether as many callers wait for a shard as may; what a gateway asks on its own account does not count."""
        waiting = shard.outstanding
        return len(waiting) >= MAX_REQUESTS and sum(each in self._gathers for each in waiting) >= MAX_REQUESTS

    def request(
        self, ticket: int, key: CanonicalKey | None, make: Callable[[int], Request], now_ms: float
    ) -> list[Effect]:
        """Ask the shard of `key`, or (None) every shard; `make` builds the request from its id.

        Raises:
            UnavailableError: too many requests wait for a shard.
        """
        self._now_ms = now_ms
        shards = self._shards if key is None else [self._shards[self._slots.shard(key)]]
        if any(map(self._is_full, shards)):
            raise UnavailableError("too many requests wait for a shard")
        gather = _Gather(ticket, len(shards), now_ms + REQUEST_MS, make if key is None else None)
        effects: list[Effect] = []
        for shard in shards:
            request = make(self._id())
            self._gathers[request.id] = gather
            shard.ask(request)
            effects.extend(self._pump(shard))
        return effects

    def _settle(self, shard: _Shard, request: int, payload: Payload, effects: list[Effect]) -> None:
        asked = shard.outstanding.pop(request, None)
        match asked:
            case Write(key=key) | Edit(key=key) | Erase(key=key) if isinstance(payload, Written):
                replica = self.replicas.get(key)
                if replica is not None:
                    replica.awaited_version = max(replica.awaited_version, payload.version)
            case Act():
                self._doubt(shard, asked)
            case ListMutations(author=author) if author:
                self._regain(shard, author, request, payload, effects)
            case ListMutations(mutation=mutation) if request not in self._gathers:
                self._pass_on(self.mutations.found(mutation, payload, shard.index), effects)
            case PresenceResume(member=member) if isinstance(payload, Restored):
                self.presence.restored(request, shard.index, member, payload, self._now_ms)
            case _:
                pass
        gather = self._gathers.pop(request, None)
        if gather is None:
            return
        gather.payloads.append(payload)
        gather.waiting -= 1
        if not gather.waiting:
            self._conclude(gather, effects)

    def _doubt(self, shard: _Shard, asked: Act) -> None:
        """Answer no reads from replicas that an action may have met until they have heard of it.

        The set after the one that may be on its way says so; a heartbeat follows within a second.
        """
        matcher = None if asked.exact else KeyMatcher(parse(asked.key))
        for key in [asked.key] if matcher is None else list(self.replicas):
            replica = self.replicas.get(key)
            if replica is not None and replica.shard == shard.index:
                if matcher is None or matcher.matches(key, replica.parsed):
                    replica.doubted_until = shard.sets + 2

    def _conclude(self, gather: _Gather, effects: list[Effect]) -> None:
        """Every shard has answered: so is the request, unless a mutation's needs more."""
        following = self.mutations.conclude(gather.ticket, gather.payloads)
        if callable(following):
            try:
                effects.extend(self.request(gather.ticket, None, following, self._now_ms))
            except UnavailableError as error:
                self.mutations.drop(gather.ticket)
                following = [Failure(error.code, error.message)]
        if isinstance(following, list):
            effects.append(Respond(gather.ticket, following))

    def abandon(self, ticket: int) -> None:
        """Nobody waits for these answers any more."""
        self.mutations.drop(ticket)
        for request, gather in list(self._gathers.items()):
            if gather.ticket == ticket:
                self._drop_request(request)

    def _drop_request(self, request: int) -> None:
        del self._gathers[request]
        for shard in self._shards:
            shard.outstanding.pop(request, None)

    def _expire(self, effects: list[Effect]) -> None:
        """Fail the requests that have waited too long; the oldest come first."""
        for request, gather in list(self._gathers.items()):
            if gather.until_ms > self._now_ms:
                break
            self._drop_request(request)
            if gather.waiting:
                gather.waiting = 0
                self.mutations.drop(gather.ticket)
                late = Failure(ErrorCode.TIMEOUT, "the shard did not answer in time")
                effects.append(Respond(gather.ticket, [late]))
        self._pass_on(self.mutations.expire(self._now_ms), effects)

    def local(self, key: str, now_ms: float) -> Replica | None:
        """Return the replica a read may be answered from: it has fresh data, and every write this gateway acknowledged."""
        replica = self.replicas.get(key)
        if replica is None or replica.version < replica.awaited_version or replica.is_stale(now_ms):
            return None
        if replica.doubted_until and replica.doubted_until > self._shards[replica.shard].sets:
            return None
        return replica

    def subscribers(self, row: KeyInfo) -> int:
        """Return how many subscriptions an entry has, given how many gateways watch it: exactly of those here, of each other gateway one."""
        replica = self.replicas.get(row.key)
        own = 0 if replica is None else sum(len(topic.subscriptions) for topic in replica.topics)
        return own + max(row.gateways - bool(own), 0)

    def subscriptions(self) -> dict[int, int]:
        """Return how many subscriptions concern each shard; one of a prefix concerns all."""
        return {shard.index: self._subscribed[shard.index] for shard in self._shards}

    # --- mutations -----------------------------------------------------------------------------------------------

    def mutate(
        self, ticket: int, order: Order, now_ms: float, *, session: SessionState | None = None, waits: bool = False
    ) -> list[Effect]:
        """Begin a mutation, of whose statuses `session` is to hear; with `waits` it is answered once it is settled, or with how it is then.

        Raises:
            HarborError: `UNAVAILABLE` (too many requests wait for its home), `CONFLICT` (the id is that of another mutation).
        """
        home = self._slots.shard(order.home)
        self.mutations.require_home(order.mutation, home)
        author = "" if session is None else session.identity
        effects = self.request(ticket, order.home, partial(order.request, author=author), now_ms)
        if session is not None:
            self.mutations.attach(session.id, order.mutation, home)
        if waits:
            self.mutations.wait(ticket, order.mutation, home, now_ms + REQUEST_MS)
        return effects

    def undo(
        self, ticket: int, principal: Principal, mutation: str, now_ms: float, *, session: SessionState | None = None
    ) -> list[Effect]:
        """Cancel a mutation that was not sent yet.

        Raises:
            UnavailableError: too many requests wait for a shard.
        """
        undoing = Undoing(mutation, principal)
        effects = self.request(ticket, None, undoing.find, now_ms)
        self.mutations.undo(ticket, undoing)
        if session is not None:
            self.mutations.attach(session.id, mutation)
        return effects

    def mutation_answered(self, session: SessionState, mutation: str, view: MutationView | None) -> list[Effect]:
        """The session was told what its request about a mutation came to (None: an error); news of it may follow now."""
        effects: list[Effect] = []
        self._pass_on(self.mutations.answered(session.id, mutation, view), effects)
        return effects

    def _pass_on(self, news: News, effects: list[Effect]) -> None:
        for each in news:
            match each:
                case Said(session=session_id, name=name, kind=kind, members=members):
                    session = self.sessions.get(session_id)
                    principal = None if session is None else session.principal
                    if (
                        session is not None
                        and principal is not None
                        and principal.may_see(members["mutation_id"], name)
                    ):
                        effects.extend(self.say(session, protocol.message(kind, **_told(members, session.tenant))))
                case Concluded(ticket=ticket, payloads=payloads):
                    effects.append(Respond(ticket, payloads))

    def _ask_for_own(self, session: SessionState) -> None:
        """Ask every shard which mutations a session began before it came back."""
        self._stop_regaining(session.id)
        for shard in self._shards if self.mutations.declared else ():
            request = ListMutations(self._id(), author=session.identity)
            shard.ask(request)
            self._regains.setdefault(session.id, set()).add(request.id)

    def _stop_regaining(self, session_id: str) -> None:
        for request in self._regains.pop(session_id, ()):
            for shard in self._shards:
                shard.outstanding.pop(request, None)

    def _regain(self, shard: _Shard, author: str, request: int, payload: Payload, effects: list[Effect]) -> None:
        """A shard says which mutations a session had begun; the session hears of those it may, as who lists them does."""
        session = self.presence.session_of(author)
        asked = set() if session is None else self._regains.get(session.id, set())
        if session is None or session.principal is None or request not in asked:
            return
        asked.discard(request)
        if not asked:
            del self._regains[session.id]
        for view in visible([payload], session.principal):
            self._pass_on(self.mutations.regained(session.id, view, shard.index), effects)

    def _ask_again(self, shard: _Shard) -> None:
        """Ask a shard that began anew how its mutations are: what it told last may have been lost."""
        asked = {each.mutation for each in shard.outstanding.values() if isinstance(each, Mutate | ListMutations)}
        for mutation in self.mutations.unsure(shard.index):
            if mutation not in asked:
                request = ListMutations(self._id(), mutation)
                shard.outstanding[request.id] = request

    # --- sessions ------------------------------------------------------------------------------------------------

    def set_wall(self, wall_ms: float, now_ms: float) -> list[Effect]:
        """The wall clock shows this now, however it was set before: by it tokens have ended, or have not."""
        self._now_ms = now_ms
        self.expiries.ahead_ms = wall_ms - now_ms
        effects: list[Effect] = []
        self._expire_sessions(effects)
        return effects

    def recognise(self, credentials: str, wall_ms: float) -> Principal:
        """Return who bears credentials.

        Raises:
            UnauthorizedError: nobody does, and why.
            UnavailableError: that cannot be said at the moment.
        """
        return ANYBODY if self.authority is None else self.authority.recognise(credentials, wall_ms)

    @contextmanager
    def refusals_counted(self, address: str, now_ms: float) -> Iterator[None]:
        """Count it by address if credentials are refused within; where too many were they are not looked at.

        Raises:
            LimitError: `LIMITED`.
        """
        rates = None if self.authority is None else self.request_rates
        guesser = f"refused {address}"  # whose bucket no request of who was recognised is taken from
        if rates is not None:
            rates.require(guesser, now_ms)
        try:
            yield
        except HarborError as error:
            if rates is not None and error.code == ErrorCode.UNAUTHORIZED:
                rates.take(guesser, now_ms)
            raise

    def open_session(
        self,
        session_id: str,
        *,
        server_sent: bool = False,
        principal: Principal | None = ANYBODY,
        secret: str = "",
        scope: Scope = b"",
        address: str = "",
        now_ms: float | None = None,
    ) -> SessionState:
        """A client has connected; with no `principal` it has yet to say whose it is. `scope`: of all that an event stream carries.

        Raises:
            LimitError: too many have, of its address or of its subject too, or too many event streams.
        """
        if len(self.sessions) >= MAX_SESSIONS:
            refuse(ErrorCode.UNAVAILABLE, "sessions", MAX_SESSIONS, f"this gateway has its {MAX_SESSIONS} sessions")
        session = SessionState(
            session_id, server_sent=server_sent, principal=None, secret=secret, scope=scope, address=address
        )
        self.counts.open(address, server_sent=server_sent)
        try:
            self.identify(session, principal)
        except LimitError:
            self.counts.close(address, None, server_sent=server_sent)
            raise
        self.sessions[session_id] = session
        self.presence.opened(session)
        self.expiries.begin(session, self._now_ms if now_ms is None else now_ms)
        return session

    def identify(self, session: SessionState, principal: Principal | None) -> None:
        """A session is this principal's from now on.

        Raises:
            LimitError: that subject has as many as it may; the session is as it was.
        """
        self.counts.identify(_counted(session.principal), _counted(principal))
        session.principal = principal

    def admit(self, session: SessionState, principal: Principal, now_ms: float) -> list[Effect]:
        """A session is this principal's from now on; what it watches and may not goes.

        Raises:
            HarborError: `FORBIDDEN`, it is somebody else's.
            LimitError: that subject has as many as it may; the session is as it was.
        """
        if session.principal is not None:
            session.principal.require_follower(principal)
        self._now_ms = now_ms
        effects: list[Effect] = []
        self.identify(session, principal)
        self.expiries.begin(session, now_ms)
        for subscription in list(session.subscriptions.values()):
            topic = subscription.topic
            if principal.may("read", CanonicalKey(topic.key)):
                continue
            if session.server_sent:
                return [Close(session.id, protocol.CLOSE_FORBIDDEN, "no grant to read any more")]
            self._end(session, subscription, effects)
            name = orjson.Fragment(subscription.name)
            members = protocol.error_body(ErrorCode.FORBIDDEN, "no grant to read any more")
            effects.extend(self.say(session, protocol.message("error", re=name, **members)))
        for left in self.presence.admitted(session):
            shown = principal.tenant.outside_topic(left)
            members = protocol.error_body(ErrorCode.FORBIDDEN, f"no grant of the presence topic {shown} any more")
            effects.extend(self.say(session, protocol.message("error", **members)))
        return [*effects, *self._told()]

    def recheck(self, now_ms: float) -> list[Effect]:
        """Others count from now on: sessions of those who do not are closed, the rest have the grants of today."""
        assert self.authority is not None
        effects: list[Effect] = []
        for session in list(self.sessions.values()):
            if session.principal is None:
                continue
            try:
                principal = self.authority.current(session.principal, self.expiries.wall_ms(now_ms))
            except UnauthorizedError as error:
                self._bar(session, error.why, error.message, effects)
                continue
            if principal is not session.principal:
                effects.extend(self.admit(session, principal, now_ms))
        return effects

    def _expire_sessions(self, effects: list[Effect]) -> None:
        """Tell those whose credentials end soon, and close those whose have ended."""
        for session, is_over in self.expiries.due(self._now_ms):
            assert session.principal is not None
            if is_over:
                self._bar(session, "expired", "the token has expired", effects)
            else:
                effects.extend(self._notify(session, expiry_notice(session.principal)))

    def _bar(self, session: SessionState, why: str, reason: str, effects: list[Effect]) -> None:
        """Close a session whose credentials no longer count; an event stream, which has no close codes, is told in a notice."""
        self.ended[why] += 1
        if session.server_sent:
            effects.extend(self._notify(session, {"level": "error", "code": "unauthorized", "message": reason}))
        effects.append(Close(session.id, protocol.CLOSE_BAD_TOKEN, reason))

    def close_session(self, session_id: str, now_ms: float, *, lingers: bool = False) -> list[Effect]:
        """A client is gone. `lingers`: its connection broke off, so where it was present it is for a while, should it come back."""
        self._now_ms = now_ms
        effects: list[Effect] = []
        session = self.sessions.pop(session_id, None)
        for collection in (self._writing, self._degraded, self._held):
            collection.pop(session_id, None)
        self.mutations.forget(session_id)
        self._stop_regaining(session_id)
        if session is not None:
            self.expiries.end(session)
            self.counts.close(session.address, _counted(session.principal), server_sent=session.server_sent)
            for subscription in list(session.subscriptions.values()):
                self._end(session, subscription, effects)
            self.presence.gone(session, now_ms, lingers=lingers)
        return [*effects, *self._told()]

    # --- presence ------------------------------------------------------------------------------------------------

    def present(
        self, session: SessionState, topic: str, state: bytes | None, watch: Mode | None, now_ms: float
    ) -> tuple[Pattern, list[Effect]]:
        """A session is in a topic, or watches it; see `PresenceSessions`.

        Raises:
            HarborError: it may not, there is no such topic, or it is too much.
        """
        self._now_ms = now_ms
        pattern = self.presence.present(session, topic, state, watch, now_ms)
        return pattern, self._told()

    def leave(self, session: SessionState, topic: str, now_ms: float) -> list[Effect]:
        """A session leaves a topic.

        Raises:
            RequestError: `NOT_FOUND`.
        """
        self._now_ms = now_ms
        self.presence.leave(session, topic)
        return self._told()

    def resume_session(self, session: SessionState, token: str, now_ms: float) -> list[Effect]:
        """A session is the one that was given this token.

        Raises:
            RequestError: `CONFLICT`; `BAD_REQUEST`, it was not given to whose this session is.
        """
        assert session.principal is not None
        self._now_ms = now_ms
        secret = self.tokens.read_session(token, session.owner)
        earlier = self.presence.resume(session, secret, now_ms)
        assert session.attendance is not None
        effects: list[Effect] = []
        if earlier is not None:
            effects.append(Close(earlier.id, protocol.CLOSE_RESUMED, "resumed by another connection"))
        for shard in self._shards if self.presence.patterns else ():
            request = PresenceResume(self._id(), self.incarnation, session.identity)
            session.attendance.restoring.add(request.id)
            shard.ask(request)
        self._ask_for_own(session)
        return [*effects, *self._told()]

    def declare(self, patterns: Sequence[Pattern], now_ms: float) -> list[Effect]:
        """Other presence topics are declared; who is in one that is no longer is told so."""
        self._now_ms = now_ms
        effects: list[Effect] = []
        for session, topic in self.presence.declare(patterns):
            shown = session.tenant.outside_topic(topic)
            members = protocol.error_body(ErrorCode.NOT_FOUND, f"the topic {shown} is declared no longer")
            effects.extend(self.say(session, protocol.message("error", **members)))
        return [*effects, *self._told()]

    def _told(self) -> list[Effect]:
        """Tell homes, and those who watch, what became of presence."""
        effects: list[Effect] = [Deliver(session) for session in self.presence.woken()]
        for shard in self._shards:
            effects.extend(self._pump(shard))
        return effects

    def say(self, session: SessionState, message: bytes) -> list[Effect]:
        """Queue a whole message; event streams have none but those about their keys, and notices."""
        return [] if session.server_sent else self._first(session, message)

    @staticmethod
    def _first(session: SessionState, text: bytes) -> list[Effect]:
        """Queue what goes before changes, and does not wait for their time."""
        session.control.append(text)
        session.control_bytes += len(text)
        return [Deliver(session.id)]

    def subscribe(
        self,
        session: SessionState,
        name: bytes,
        key: CanonicalKey,
        *,
        prefix: bool,
        mode: str,
        since: str | None,
        now_ms: float,
    ) -> list[Effect]:
        """Begin a subscription, where `since` is a token after the position that tells.

        Raises:
            HarborError: the session may not read that, the name is taken, there are too many, or the token is not for that.
        """
        assert session.principal is not None
        session.principal.require("read", key)
        scope = scope_of([(key, prefix)])
        positions = None if since is None else self.tokens.read(since, session.scope or scope)
        parsed = parse(key)
        is_own = reserved(key, parsed, prefix=prefix)
        self._now_ms = now_ms
        if name in session.subscriptions:
            raise RequestError(ErrorCode.CONFLICT, f"the subscription {name.decode()} exists already")
        if len(session.subscriptions) >= (most := self.limits.subscriptions):
            refuse(ErrorCode.TOO_MANY, "subscriptions", most, f"a session has at most {most} subscriptions")
        effects: list[Effect] = []
        topic = self._topics.get((key, prefix))
        if topic is None:
            topic = self._topics[key, prefix] = Topic(key, KeyMatcher(parsed) if prefix else None, scope)
            if is_own:
                topic.awaited.add(OWN)
            else:
                self._add_interest(topic)
                for shard in self._shards if prefix else [self._shards[self._slots.shard(key)]]:
                    self._watch(shard, topic)
        subscription = Subscription(name, topic, mode)
        subscription.since = positions
        session.subscriptions[name] = subscription
        topic.subscriptions[subscription] = session.id
        self._settle_rest(topic, effects)
        self._warn(session, topic, effects)
        if topic.ready:
            self._begin(subscription, effects)
        for index in topic.watches:
            self._subscribed[index] += 1
            effects.extend(self._pump(self._shards[index]))
        return effects

    def _add_interest(self, topic: Topic) -> None:
        if topic.matcher is not None:
            self._interests.add_prefix(topic.matcher, topic)
        else:
            self._interests.add_exact(topic.key, topic)
        for replica in list(self.replicas.values()) if topic.prefix else [self.replicas.get(topic.key)]:
            if replica is not None and (topic.matcher is None or topic.matcher.matches(replica.key, replica.parsed)):
                replica.topics.append(topic)
                topic.replicas[replica.key] = replica

    def _begin(self, subscription: Subscription, effects: list[Effect]) -> None:
        """The topic is ready: begin the snapshot, or find out what was missed."""
        topic = subscription.topic
        if self.sessions[topic.subscriptions[subscription]].step is Step.ON_DRAIN:
            return  # it begins when its socket has drained
        self._flush_topic(topic, effects)  # while it is still awaiting: its snapshot holds what is pending now
        if subscription.since is not None and not topic.watches:  # nobody knows what was said before
            self._start_over(subscription, effects)
            return
        if subscription.since is None:
            subscription.phase = Phase.SNAPSHOT
            subscription.remaining = dict.fromkeys(topic.replicas)
            self._attend(subscription, effects)
            return
        subscription.phase = Phase.RESUMING
        subscription.asked.clear()
        subscription.listed.clear()
        since = {index: each if each[0] else NOWHERE for index, each in subscription.since.items()}
        unnamed = (0, 0) if since else NOWHERE
        map_epoch = since.pop(MAP, (1, 0))[0]
        if map_epoch == self._slots.epoch:
            asked = [
                (index, Missed(self._id(), topic.key, topic.prefix, *since.get(index, NOWHERE)))
                for index in topic.watches
            ]
        else:
            # Whoever has the entries now, others had them since, and know what changed there.
            asked = [
                (index, Missed(self._id(), topic.key, topic.prefix, *since.get(index, unnamed), map_epoch))
                for index in range(len(self._shards))
            ]
            gone = [(index, *position) for index, position in since.items() if index >= len(self._shards)]
            asked.append((0, Missed(self._id(), topic.key, topic.prefix, 0, 0, map_epoch, gone)))
        for index, request in asked:
            shard = self._shards[index]
            self._resuming[request.id] = subscription
            subscription.asked.add(request.id)
            shard.ask(request)
        for index in dict(asked):
            effects.extend(self._pump(self._shards[index]))

    def _verify(self, effects: list[Effect]) -> None:
        """Ask shards whether replicas, and keys that are known to have none, are what they hold."""
        keys = self.anti_entropy.due(
            (*self.replicas, *(topic.key for topic in self._topics.values() if topic.watches and not topic.prefix)),
            self._now_ms,
        )
        checked: dict[int, list[str]] = {}
        for key in keys:
            checked.setdefault(self._slots.shard(CanonicalKey(key)), []).append(key)
        for index, mine in checked.items():
            shard = self._shards[index]
            if not shard.reopening and self.anti_entropy.asks(index, mine):
                shard.queue.append(Verify(self._id(), [(key, self._version(key)) for key in mine]))
                effects.extend(self._pump(shard))

    def _version(self, key: str) -> int:
        replica = self.replicas.get(key)
        return 0 if replica is None or replica.value is None else replica.version

    def _compare(self, shard: _Shard, said: list[tuple[str, int]], effects: list[Effect]) -> None:
        """A shard says what it holds where that is not what it was asked about: all that came to be before is here by now."""

        def held(key: str) -> int | None:
            replica, topic = self.replicas.get(key), self._topics.get((key, False))
            topics = replica.topics if replica is not None else [] if topic is None else [topic]
            is_elsewhere = self._slots.shard(CanonicalKey(key)) != shard.index  # since it was asked
            if is_elsewhere or not topics or any(shard.index in each.awaited for each in topics):
                return None  # it is no longer watched, or is on its way
            return self._version(key)

        differing, again = self.anti_entropy.compare(shard.index, said, held)
        if not differing:
            return
        self.diverged.append((shard.address, *differing[0], len(differing)))
        if again:
            self._relink(shard, effects)
            return
        self._regained.update(key for key, version in differing if not version)
        shard.queue.append(Mend(self._id(), differing))
        effects.extend(self._pump(shard))

    def _missed(self, shard: _Shard, missed: MissedKeys, effects: list[Effect]) -> None:
        shard.outstanding.pop(missed.id, None)
        subscription = self._resuming.pop(missed.id, None)
        if subscription is None or subscription.phase is not Phase.RESUMING or missed.id not in subscription.asked:
            return
        subscription.asked.discard(missed.id)
        if missed.reset:
            self.resumes["reset"] += 1
            self._start_over(subscription, effects)
            return
        self._flush_topic(subscription.topic, effects)
        changed, listed = dict(missed.keys), subscription.listed
        for key in list(subscription.outbox):
            # The client may come from a gateway that was ahead of this one: what the shard does not list, it has.
            if key not in changed and key not in listed and self._slots.shard(CanonicalKey(key)) == shard.index:
                subscription.outbox.drop(key)
        for (
            key,
            version,
        ) in changed.items():  # of shards that had an entry one after the other, the first knows what was held
            listed[key] = min(version, listed.get(key, version))
            subscription.outbox.missed(key, listed[key])
        if not subscription.asked:
            self.resumes["resumed"] += 1
            subscription.phase = Phase.LAGGING
            self._attend(subscription, effects)
        self._weigh(subscription, effects)

    def unsubscribe(self, session: SessionState, name: bytes, now_ms: float) -> list[Effect]:
        """End a subscription.

        Raises:
            RequestError: `NOT_FOUND`.
        """
        self._now_ms = now_ms
        effects: list[Effect] = []
        self._end(session, self._subscription(session, name), effects)
        return effects

    def _subscription(self, session: SessionState, name: bytes) -> Subscription:
        subscription = session.subscriptions.get(name)
        if subscription is None:
            raise RequestError(ErrorCode.NOT_FOUND, f"no subscription {name.decode()}")
        return subscription

    def _end(self, session: SessionState, subscription: Subscription, effects: list[Effect]) -> None:
        del session.subscriptions[subscription.name]
        session.attention.pop(subscription, None)
        topic = subscription.topic
        del topic.subscriptions[subscription]
        self._subscribed.subtract(topic.watches.keys())
        self._stop_resuming(subscription)
        if topic.subscriptions:
            self._settle_rest(topic, effects)
            return
        del self._topics[topic.key, topic.prefix]
        if topic.matcher is not None:
            self._interests.discard_prefix(topic.matcher, topic)
        else:
            self._interests.discard_exact(topic.key)
        if topic.dirty:
            self._dirty.remove(topic)
        for key, replica in topic.replicas.items():
            replica.topics.remove(topic)
            if not replica.topics:
                self.replicas.pop(key, None)
        for index, watch in topic.watches.items():
            shard = self._shards[index]
            shard.watching.pop(watch, None)
            shard.queue.append(Unwatch(watch))
            effects.extend(self._pump(shard))

    def pause(self, session: SessionState, name: bytes, now_ms: float) -> list[Effect]:
        """Stop writing a subscription's changes; they fold. Upstream channels that nobody else needs are left after their linger.

        Raises:
            RequestError: `NOT_FOUND`.
        """
        self._now_ms = now_ms
        effects: list[Effect] = []
        subscription = self._subscription(session, name)
        if not subscription.paused:
            self._flush_topic(subscription.topic, effects)
            subscription.paused = True
            if subscription.phase is Phase.LIVE:
                subscription.phase = Phase.LAGGING
            session.attention.pop(subscription, None)
            self._settle_rest(subscription.topic, effects)
        return effects

    def resume(self, session: SessionState, name: bytes, now_ms: float) -> list[Effect]:
        """Write what changed since `pause`, folded, and go on.

        Raises:
            RequestError: `NOT_FOUND`.
        """
        self._now_ms = now_ms
        effects: list[Effect] = []
        subscription = self._subscription(session, name)
        if subscription.paused:
            subscription.paused = False
            self._settle_rest(subscription.topic, effects)
            if subscription.resets or subscription.phase in (Phase.LAGGING, Phase.SNAPSHOT):
                self._attend(subscription, effects)
        return effects

    # --- delivery ------------------------------------------------------------------------------------------------

    def _attend(self, subscription: Subscription, effects: list[Effect]) -> None:
        if subscription.paused:
            return
        session = self.sessions.get(subscription.topic.subscriptions[subscription])
        if session is not None:
            session.attention[subscription] = None
            effects.append(Deliver(session.id))

    def _flush_topic(self, topic: Topic, effects: list[Effect], *, at_once: bool = False) -> None:
        """Hand what changed in a topic to its subscribers; `at_once`: even where it waits."""
        if not topic.dirty or (topic.waits and not at_once):
            return
        topic.dirty = False
        self._dirty.remove(topic)
        outbox, topic.outbox = topic.outbox, Outbox()
        is_long = self._size(topic, outbox) > self.outbox_limit  # each then pulls it in pieces
        encoded: dict[tuple[str, bool, str], list[bytes]] = {}
        texts: dict[tuple[str, bytes, bool, str], bytes] = {}
        token = self._token(topic)
        for subscription, session_id in topic.subscriptions.items():
            session = self.sessions[session_id]
            if subscription.phase is not Phase.LIVE or is_long or not session.in_step:
                self._lag(subscription, outbox, effects)
                continue
            tenant = session.tenant
            how = (subscription.mode, session.server_sent, tenant.name)
            bodies = encoded.get(how)
            if bodies is None:
                bodies = encoded[how] = _bodies(self._encode(topic, outbox, subscription.mode, tenant), session)
            if not bodies:
                continue
            place = (
                subscription.mode,
                b"" if session.server_sent else subscription.name,
                session.server_sent,
                tenant.name,
            )
            text = texts.get(place)
            if text is None:
                text = texts[place] = _text(subscription, bodies, token, session)
            self.changes_delivered += len(bodies)
            session.out.append(text)
            session.out_bytes += len(text)
            effects.append(Deliver(session_id))

    def _lag(self, subscription: Subscription, outbox: Outbox, effects: list[Effect]) -> None:
        """A subscriber that cannot be handed changes now folds them."""
        match subscription.phase:
            case Phase.AWAITING:
                return  # its snapshot will hold them
            case Phase.LIVE:
                subscription.phase = Phase.LAGGING
            case _:
                pass
        # While a shard rejoins, versions will tell what became of its entries.
        held = subscription.topic.held if subscription.phase is Phase.REJOINING else ()
        for key, pending in outbox.items():
            if key not in subscription.remaining and not (held and self._slots.shard(CanonicalKey(key)) in held):
                subscription.outbox.fold(key, pending)
        if subscription.phase is Phase.LAGGING:
            self._attend(subscription, effects)
        self._weigh(subscription, effects)

    def _size(self, topic: Topic, outbox: Outbox) -> int:
        """Return about how long what is pending is when it is written."""
        size = 0
        for key, pending in outbox.items():
            replica = topic.replicas.get(key)
            if replica is not None and replica.value is not None:
                size += pending.patch_bytes or replica.value.size()
        return size

    def _weigh(self, subscription: Subscription, effects: list[Effect]) -> None:
        """Where more waits for a session than may, keep only that there was something: it gets a reset and a new snapshot.

        Of a session whose socket holds it up that goes for all it watches. Else what waits is paused, or waits for a shard.
        """
        session = self.sessions[subscription.topic.subscriptions[subscription]]
        if subscription.outbox.bytes * len(session.subscriptions) <= self.outbox_limit:
            return  # the larger ones are looked at in their turn, so the sum is less than twice as much
        waiting = session.waiting_bytes()
        if waiting <= self.outbox_limit:
            return
        if session.busy:
            degradation = self._observe(session)
            if degradation.held_ms or waiting > AT_ONCE * self.outbox_limit:
                degradation.overfull()
                self._let_go(session, effects)
        elif subscription.paused or subscription.phase is not Phase.LAGGING or waiting > AT_ONCE * self.outbox_limit:
            self._start_over(subscription, effects)

    def _observe(self, session: SessionState) -> Degradation:
        if session.degradation is None:
            session.degradation = Degradation(self._now_ms)
            self._degraded[session.id] = session
        return session.degradation

    def _let_go(self, session: SessionState, effects: list[Effect]) -> None:
        """Keep nothing for a session until its socket has drained."""
        session.out = []
        session.out_bytes = 0
        session.attention.clear()
        for subscription in session.subscriptions.values():
            if subscription.phase is not Phase.AWAITING:
                self._start_over(subscription, effects)

    def _encode(self, topic: Topic, outbox: Outbox, mode: str, tenant: Tenant) -> list[protocol.Typed]:
        replicas, now_ms = topic.replicas, self._now_ms
        messages: list[protocol.Typed] = []
        for key, pending in outbox.items():
            messages.extend(encode(key, pending, replicas.get(key), mode, now_ms, tenant))
        return messages

    def _token(self, topic: Topic) -> bytes:
        if topic.waits:
            return self.tokens.position(topic.scope)
        return self._position(topic.scope, sorted(topic.watches))

    def _position(self, scope: Scope, shards: Sequence[int]) -> bytes:
        positions = [(index, self._shards[index].position) for index in shards]
        if self._slots.epoch > 1:
            positions.append((MAP, (self._slots.epoch, 0)))
        return self.tokens.position(scope, positions)

    def _event_id(self, session: SessionState) -> bytes | None:
        """Return the token for all of an event stream's subscriptions, if what is being written brings them all up to it."""
        topics = [each.topic for each in session.subscriptions.values()]
        if any(each.phase is not Phase.LIVE for each in session.subscriptions.values()) or any(
            topic.dirty or topic.waits for topic in topics
        ):
            return None
        return self._position(session.scope, sorted({index for topic in topics for index in topic.watches}))

    def flush(self, effects: list[Effect]) -> None:
        """The tick: hand out what changed."""
        self._flush_at = None
        self._flushed_ms = self._now_ms
        for topic in list(self._dirty):
            self._flush_topic(topic, effects)
        self.flushed.extend((oldest_ms, self._now_ms - oldest_ms) for oldest_ms in self._oldest)
        self._oldest.clear()

    def take(self, session: SessionState, now_ms: float) -> tuple[bytes | None, list[Effect]]:
        """Return one frame (or a piece of the event stream) to write now, None where nothing waits; and effects for others.

        The shell calls `written` when the socket has taken it.
        """
        self._now_ms = now_ms
        parts: list[bytes] = []
        effects: list[Effect] = []
        if session.step is not session.told:
            session.told = session.step
            parts.append(_degraded_notice(session))
        is_held = session.step is not Step.IN_STEP and now_ms < session.due_ms
        if session.server_sent and not is_held:
            for subscription in session.subscriptions.values():
                self._flush_topic(subscription.topic, effects)  # the event id speaks for all of them
        parts.extend(session.control)
        session.control.clear()
        session.control_bytes = 0
        if is_held:
            if session.out or session.attention or (session.attendance is not None and session.attendance.due):
                self._held[session.id] = session.due_ms
        else:
            parts.extend(session.out)
            session.out = []
            session.out_bytes = 0
            self._changes_of(session, parts, effects)
        if not parts:
            return None, effects
        session.busy = True
        session.writes += 1
        self._writing[session.id] = session
        if not session.server_sent:
            frame = b"[" + b",".join(parts) + b"]"
        else:
            token = self.tokens.position(session.scope) if session.voided else self._event_id(session)
            session.voided = False
            frame = protocol.event_stream(parts, None if is_held else token)
        session.frame_bytes = len(frame)
        return frame, effects

    def _changes_of(self, session: SessionState, parts: list[bytes], effects: list[Effect]) -> None:
        """Add what those subscriptions of a session are owed that are not in step, and its presence topics."""
        size = sum(map(len, parts))
        had = len(parts)
        while session.attention and size < CHUNK_BYTES:
            subscription = next(iter(session.attention))
            del session.attention[subscription]
            text = self._catch_up(session, subscription, CHUNK_BYTES - size, effects)
            if text:
                parts.append(text)
                size += len(text)
        if session.attendance is not None and session.attendance.due:
            parts.extend(self.presence.write(session.attendance, CHUNK_BYTES - size))
        if session.step is not Step.IN_STEP and len(parts) > had and not session.attention:
            session.due_ms = self._now_ms + WINDOW_MS[session.step]  # pieces of a whole follow each other

    def written(self, session: SessionState, now_ms: float) -> list[Effect]:
        """The socket has taken what `take` returned."""
        self._now_ms = now_ms
        effects: list[Effect] = []
        session.busy = False
        session.frame_bytes = 0
        self._writing.pop(session.id, None)
        if session.step is Step.ON_DRAIN and session.degradation is not None:
            session.degradation.drained()
            session.due_ms = 0.0
            for subscription in list(session.subscriptions.values()):
                if subscription.phase is Phase.AWAITING and subscription.topic.ready:
                    self._begin(subscription, effects)
        return effects

    def look(self, now_ms: float, unsent: Callable[[str], int]) -> list[Effect]:
        """Look at the sockets that are being written to (`degradation`); `unsent` says how much of it one has not sent, by session."""
        self._now_ms = now_ms
        effects: list[Effect] = []
        for session in list({**self._writing, **self._degraded}.values()):
            degradation = self._observe(session)
            before = degradation.step
            degradation.look(now_ms, session.writes, unsent(session.id) if session.busy else None)
            if degradation.is_stalled:
                effects.append(Close(session.id, protocol.CLOSE_TOO_SLOW, "too slow"))
            elif degradation.step is not before:
                if degradation.step is Step.ON_DRAIN:
                    self._let_go(session, effects)
                effects.append(Deliver(session.id))
            if degradation.is_over:
                session.degradation = None
                del self._degraded[session.id]
        return effects

    @property
    def is_slowed(self) -> bool:
        """Whether `look` is to be called."""
        return bool(self._writing or self._degraded)

    def degraded(self) -> dict[str, int]:
        """Return how many sessions are at each level below being in step."""
        counts = Counter(session.step for session in self._degraded.values())
        return {name: counts[step] for step, name in LEVELS.items()}

    def _catch_up(self, session: SessionState, subscription: Subscription, budget: int, effects: list[Effect]) -> bytes:
        """Write what a subscription that is not in step is owed."""
        messages: list[protocol.Typed] = []
        token: bytes | None = None
        self._flush_topic(subscription.topic, effects)  # which may be too much for it, so that it begins anew
        session.attention.pop(subscription, None)
        if subscription.resets:
            for each in _reset_with(subscription, session):
                each.resets = False
            messages.append(protocol.reset(None))
            # Until it has been sent everything anew, a client that comes back has to begin again.
            token = self.tokens.position(subscription.topic.scope)
        if subscription.topic.waits:
            pass
        elif not subscription.paused and subscription.phase is Phase.SNAPSHOT:
            token = self._snapshot_chunk(session, subscription, budget, messages) or token
        elif not subscription.paused and subscription.phase is Phase.LAGGING:
            self._unfold(subscription, PIECE_BYTES, messages, session.tenant)
            if subscription.outbox:  # one that breaks off here has to begin again, as it has some of it
                session.attention[subscription] = None
                token = self.tokens.position(subscription.topic.scope)
            else:
                subscription.phase = Phase.LIVE
                resumed, subscription.since = subscription.since is not None, None
                if messages or resumed:
                    token = self._token(subscription.topic)
        self.changes_delivered += len(messages)
        if subscription.phase is not Phase.LIVE and token is not None:
            session.voided = True
        if messages and messages[-1][0] == b"snapshot_end":
            token = None
        if not messages and token is None:
            return b""
        return _text(subscription, _bodies(messages, session), token, session)

    def _snapshot_chunk(
        self,
        session: SessionState,
        subscription: Subscription,
        budget: int,
        messages: list[protocol.Typed],
    ) -> bytes | None:
        """Add the next entries of a snapshot, after the changes of those sent before; return the token once it is whole."""
        topic = subscription.topic
        size = self._unfold(subscription, budget, messages, session.tenant)
        while subscription.remaining or subscription.outbox:
            if size >= budget:
                session.attention[subscription] = None
                return None
            key = next(iter(subscription.remaining))
            del subscription.remaining[key]
            replica = topic.replicas.get(key)
            if replica is not None:
                messages.append(protocol.snapshot(replica.view(), self._now_ms, session.tenant))
                size += len(messages[-1][1])
        token = self._token(topic)
        messages.append(protocol.snapshot_end(token))
        subscription.phase = Phase.LIVE
        return token

    def _unfold(self, subscription: Subscription, budget: int, messages: list[protocol.Typed], tenant: Tenant) -> int:
        """Add what a subscription's outbox holds, until that is about so many bytes. Returns how many."""
        size = 0
        while subscription.outbox and size < budget:
            key = next(iter(subscription.outbox))
            pending = subscription.outbox.drop(key)
            replica = subscription.topic.replicas.get(key)
            for each in encode(key, pending, replica, subscription.mode, self._now_ms, tenant):
                messages.append(each)
                size += len(each[1])
        return size

    # --- time ----------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When a flush or a resend is due."""
        times = [self._flush_at, self.presence.deadline(), self.expiries.deadline()]
        for shard in self._shards:
            times.append(shard.out.retry_at)
            if shard.out.idle:
                times.append(self.presence.due_at(shard.index))
            if (shard.watching or self.presence.watches(shard.index)) and shard.out.idle:
                times.append(shard.heard_ms + SILENCE_MS)
        for gather in self._gathers.values():
            times.append(gather.until_ms)
            break
        times.append(self.mutations.deadline())
        times.append(self.anti_entropy.due_ms)
        times.append(min(self._held.values(), default=None))
        return min((at for at in times if at is not None), default=None)

    def wake(self, now_ms: float) -> list[Effect]:
        """Do what is due."""
        self._now_ms = now_ms
        effects: list[Effect] = []
        if self._flush_at is not None and self._flush_at <= now_ms:
            self.flush(effects)
        self._expire_sessions(effects)
        self.presence.wake(now_ms)
        effects.extend(self._told())
        for shard in self._shards:
            again = shard.out.resend(now_ms)
            if again is not None:
                effects.append(Send(shard.address, again))
            is_watched = shard.watching or self.presence.watches(shard.index)
            if is_watched and shard.out.idle and shard.heard_ms + SILENCE_MS <= now_ms:
                shard.heard_ms = now_ms
                effects.append(self._greet(shard))
        for session_id, due_ms in list(self._held.items()):
            if due_ms <= now_ms:
                del self._held[session_id]
                effects.append(Deliver(session_id))
        self._expire(effects)
        self._verify(effects)
        return effects

    def outbox_bytes(self) -> int:
        """Return what waits for all sessions, and what their sockets have not taken yet."""
        return sum(session.waiting_bytes() for session in self.sessions.values())


def _moved(topic: Topic) -> dict[str, int] | None:
    """Return the version passed on before (0: none) of every entry that is at another now; None: a shard is behind that."""
    moved: dict[str, int] = {}
    for held in topic.held.values():
        for key, version in held.items():
            replica = topic.replicas.get(key)
            if replica is None or replica.version < version:
                return None
            if replica.version > version:
                moved[key] = version
    for key, replica in topic.replicas.items():
        if replica.version and replica.shard in topic.held and key not in topic.held[replica.shard]:
            moved[key] = 0
    return moved


def _request_rates(limits: Limits) -> RateLimits | None:
    per_second = limits.requests
    return None if per_second is None else RateLimits("requests", "requests", per_second, limits.requests_burst)


def _counted(principal: Principal | None) -> str | None:
    """Return whom a session is counted by; None: by none."""
    return None if principal is None or principal is ANYBODY else principal.account


def _condition(before: str | None, state: str) -> str | None:
    """Return how a source is for those who depend on it, given how it was."""
    match state:
        case "connected":
            return "up"
        case "reconnecting" | "disconnected":  # the latter for good: the upstream asked not to be connected to again
            return "failed" if before == "failed" else "down"
        case "failed":
            return "failed"
        case _:
            return before


def _source_notice(source: str, condition: str | None) -> dict[str, Any] | None:
    """Return what clients are told of a source's condition."""
    match condition:
        case "failed":
            level, code, text = "error", "source_failed", f"the stream {source} cannot be reached; it is tried again"
        case "down":
            level, code, text = "warning", "source_disconnected", f"the stream {source} is interrupted"
        case "up":
            level, code, text = "success", "source_restored", f"the stream {source} is back"
        case _:
            return None
    return {"level": level, "code": code, "message": text, "source": source}


def _service_notice(service: str, *, is_offline: bool) -> dict[str, Any]:
    if is_offline:
        level, code, text = "warning", "service_offline", f"the service {service} cannot be reached"
    else:
        level, code, text = "success", "service_online", f"the service {service} is back"
    return {"level": level, "code": code, "message": text, "service": service}


def _told(members: dict[str, Any], tenant: Tenant) -> dict[str, Any]:
    """Return what is said of a mutation as a client of a tenant is told."""
    if not tenant:
        return members
    error = members.get("error")
    shown = {} if error is None else {"error": {**error, "message": tenant.text(error["message"])}}
    return {**members, **shown, "mutation_id": tenant.outside_id(members["mutation_id"])}


def _degraded_notice(session: SessionState) -> bytes:
    """Tell a session how far it is degraded."""
    step = session.step
    text = (
        "changes come in every window again"
        if step is Step.IN_STEP
        else "this client reads slowly: changes come less often"
    )
    level = "success" if step is Step.IN_STEP else "warning"
    members = {
        "level": level,
        "code": "degraded",
        "message": text,
        "window_ms": int(WINDOW_MS[step]),
        "step": int(step),
    }
    if session.server_sent:
        return b"".join(protocol.events([(b"notice", orjson.dumps(members)[1:-1])]))
    return protocol.message("notice", **members)


def _bodies(messages: list[protocol.Typed], session: SessionState) -> list[bytes]:
    return protocol.events(messages) if session.server_sent else protocol.bodies(messages)


def _reset_with(subscription: Subscription, session: SessionState) -> list[Subscription]:
    """Return what a `reset` is about: on an event stream it names no subscription, so all that is watched there."""
    return list(session.subscriptions.values()) if session.server_sent else [subscription]


def _text(subscription: Subscription, bodies: list[bytes], token: bytes | None, session: SessionState) -> bytes:
    """Put messages about a subscription together; an event stream's token is added to what is written as a whole."""
    return b"".join(bodies) if session.server_sent else protocol.websocket(subscription.name, bodies, token)
