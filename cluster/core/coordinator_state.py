"""The batching coordinator: folds the operations of a window per shard and key, and sends each shard one batch.

Coordinators hold nothing that must survive: what a dead one had folded is missing from the feed numbers the shards see next, and
they reset what those feeds feed.

What must not live here: when windows close (`window`), how operations fold (`fold`), which shard owns a key (`placement`).
"""

from collections.abc import Sequence
from typing import Any

from cluster.core.fold import Fold
from cluster.core.link import Announcements, Foreign, Incoming, Outgoing, Repeat
from cluster.core.messages import (
    Announce,
    Answer,
    Batch,
    BatchCommitted,
    Blob,
    BlobTaken,
    FeedRange,
    Full,
    KeyOperations,
    Noted,
    Part,
    Refused,
    Send,
)
from cluster.core.window import Profile, Window

HIGH_WATER_BYTES = 8 * 1024 * 1024
"""Folded operations waiting for one shard. A healthy window holds well under 1 MiB; beyond this a shard is far behind, blobs are
turned away, ingestors fold on their side and stop reading their sockets."""
FULL_RETRY_MS = 50.0
"""Half a window: a turned-away blob is tried again before the next one would have been due."""
RETRY_MS = 100.0
"""After a call that got no answer. Ray has retried it by then; a restarted shard takes about a second."""


class _Pending:
    """What one (shard, profile) has folded since its last batch."""

    __slots__ = ("feeds", "folds", "oldest_ms", "size", "window")

    def __init__(self, profile: Profile) -> None:
        self.window = Window(profile)
        self.folds: dict[str, Fold] = {}
        self.feeds: dict[tuple[str, int], FeedRange] = {}
        self.oldest_ms = 0.0
        self.size = 0

    def add(self, part: Part, now_ms: float) -> None:
        for key_operations in part.keys:
            fold = self.folds.get(key_operations.key)
            if fold is None:
                fold = self.folds[key_operations.key] = Fold()
                self.size += len(key_operations.key)
            self.size += fold.extend(key_operations.operations, key_operations.count)
            fold.origin = key_operations.origin
        for new in part.feeds:
            key = (new.feed, new.incarnation)
            old = self.feeds.get(key)
            self.feeds[key] = (
                new if old is None else FeedRange(new.feed, new.incarnation, old.first, new.last, old.previous)
            )
        if not self.oldest_ms or part.oldest_ms < self.oldest_ms:
            self.oldest_ms = part.oldest_ms
        self.window.offered(now_ms, part.oldest_ms)


class _Lane:
    """One shard: its link and its pending profiles."""

    __slots__ = ("link", "pending", "shard")

    def __init__(self, shard: int, identity: str, incarnation: int, profiles: Sequence[Profile]) -> None:
        self.shard = shard
        self.link = Outgoing(identity, incarnation)
        self.pending = [_Pending(profile) for profile in profiles]

    @property
    def size(self) -> int:
        return sum(pending.size for pending in self.pending)

    def due(self) -> float | None:
        if not self.link.idle:
            return self.link.retry_at
        return min((due for pending in self.pending if (due := pending.window.due()) is not None), default=None)


class CoordinatorState:
    """See the module. Built anew after every restart, with a higher incarnation."""

    def __init__(
        self,
        identity: str,
        incarnation: int,
        *,
        shards: Sequence[int],
        ingestors: Sequence[str],
        profiles: Sequence[Profile],
    ) -> None:
        self.identity = identity
        self.incarnation = incarnation
        self._lanes = {shard: _Lane(shard, identity, incarnation, profiles) for shard in shards}
        self._by_address = {f"shard-{shard}": lane for shard, lane in self._lanes.items()}
        self._profiles = profiles
        self._incoming: dict[str, Incoming] = {}
        self._announcements = Announcements(identity, incarnation, list(ingestors))
        self.blobs_turned_away = 0
        self.operations_in = 0
        self.operations_out = 0
        self.flushes = 0
        self.flushed: list[tuple[int, float]] = []
        """(operations, ms the oldest waited) of each batch since the shell last took them for its histograms."""

    def blob(self, blob: Blob, now_ms: float) -> tuple[Answer, list[Send]]:
        """Fold a blob into the windows of its shards."""
        incoming = self._incoming.get(blob.header.sender)
        if incoming is None:
            incoming = self._incoming[blob.header.sender] = Incoming(self.incarnation)
        if any(self._lanes[part.shard].size > HIGH_WATER_BYTES for part in blob.parts if part.shard in self._lanes):
            self.blobs_turned_away += 1
            return Full(FULL_RETRY_MS), []
        match incoming.admit(blob.header):
            case Foreign():
                return Refused(self.incarnation), []
            case Repeat(answer):
                return answer, []
        for part in blob.parts:
            lane = self._lanes.get(part.shard)
            assert lane is not None, f"{self.identity} does not serve shard {part.shard}"
            lane.pending[part.profile].add(part, now_ms)
            self.operations_in += sum(key.count for key in part.keys)
        effects = self.wake(now_ms)
        left = self._lanes_window_left(now_ms)
        return incoming.answered(BlobTaken(self.incarnation, left)), effects

    def _lanes_window_left(self, now_ms: float) -> float:
        for lane in self._lanes.values():
            return lane.pending[0].window.window_left_ms(now_ms)
        return 0.0

    def deadline(self) -> float | None:
        """When the next window closes or the next resend is due."""
        times = [self._announcements.deadline(), *(lane.due() for lane in self._lanes.values())]
        return min((at for at in times if at is not None), default=None)

    def wake(self, now_ms: float) -> list[Send]:
        """Send the batches of windows that have closed."""
        effects = self._announcements.wake(now_ms)
        for lane in self._lanes.values():
            if not lane.link.idle:
                batch = lane.link.resend(now_ms)
                if batch is not None:
                    effects.append(Send(f"shard-{lane.shard}", batch))
            elif (due := lane.due()) is not None and due <= now_ms:
                effects.append(self._flush(lane, now_ms))
        return effects

    def answered(self, to: str, message: Any, answer: Answer, now_ms: float) -> list[Send]:
        """A peer answered `message`."""
        if isinstance(answer, Noted):
            self._announcements.answered(to)
            return []
        lane = self._by_address[to]
        if lane.link.in_flight is not message:
            return []
        match answer:
            case BatchCommitted(incarnation=incarnation):
                lane.link.acknowledged(incarnation)
                return self.wake(now_ms)
            case Full(retry_ms=retry_ms):
                lane.link.failed(now_ms, retry_ms)
                return []
            case Refused():
                batch: Batch = lane.link.in_flight
                lane.link.relink()
                return [self._send(lane, Batch(lane.link.header(), batch.feeds, batch.keys, batch.oldest_ms))]
            case _:
                raise AssertionError(f"{to} answered a batch with {answer!r}")

    def unanswered(self, to: str, message: Any, now_ms: float) -> list[Send]:
        """The call failed; what it carried is kept and sent again."""
        if isinstance(message, Announce):
            self._announcements.unanswered(to, now_ms, RETRY_MS)
        elif self._by_address[to].link.in_flight is message:
            self._by_address[to].link.failed(now_ms, RETRY_MS)
        return []

    def _flush(self, lane: _Lane, now_ms: float) -> Send:
        feeds: list[FeedRange] = []
        keys: list[KeyOperations] = []
        oldest_ms = 0.0
        before = 0
        for index, pending in enumerate(lane.pending):
            due = pending.window.due()
            if due is None or due > now_ms:
                continue
            feeds.extend(pending.feeds.values())
            for key, fold in pending.folds.items():
                operations = fold.operations()
                keys.append(KeyOperations(key, operations, fold.count, fold.origin))
                before += fold.count
                self.operations_out += len(operations)
            if not oldest_ms or pending.oldest_ms < oldest_ms:
                oldest_ms = pending.oldest_ms
            pending.window.flushed(now_ms)
            fresh = _Pending(self._profiles[index])
            fresh.window = pending.window
            lane.pending[index] = fresh
        self.flushes += 1
        self.flushed.append((before, now_ms - oldest_ms))
        return self._send(lane, Batch(lane.link.header(), feeds, keys, oldest_ms))

    def _send(self, lane: _Lane, batch: Batch) -> Send:
        lane.link.sent(batch)
        return Send(f"shard-{lane.shard}", batch)
