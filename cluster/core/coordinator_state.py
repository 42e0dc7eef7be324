"""The batching coordinator: folds the operations of a window per shard and key, and sends each shard one batch.

Coordinators hold nothing that must survive: ingestors keep every blob until the shards have committed all of it, which each answer to
a blob says, and send what a dead coordinator took with it to the next. A claim (`messages.Claim`) closes the windows of its shard at
once and goes with what they held, so that nothing it asks about is still on its way when it arrives.

What must not live here: when windows close (`window`), how operations fold (`fold`), which shard owns a key (`placement`).
"""

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from cluster.core.fold import Fold
from cluster.core.link import Foreign, Incoming, New, Outgoing, Repeat
from cluster.core.messages import (
    Answer,
    Batch,
    BatchCommitted,
    Blob,
    BlobTaken,
    Checkpoint,
    Claim,
    FeedRange,
    Full,
    KeyOperations,
    Part,
    Progress,
    Rebalance,
    Refused,
    Send,
)
from cluster.core.window import Profile, Window

HIGH_WATER_BYTES = 8 * 1024 * 1024
"""Folded operations waiting for one shard. A healthy window holds well under 1 MiB; beyond this a shard is far behind, blobs are
turned away, ingestors fold on their side and stop reading their sockets."""
FULL_RETRY_MS = 50.0
"""Half a window: a turned-away blob is tried again before the next one would have been due."""
Opening = tuple[str, int, int]
"""(sender, its incarnation, opening of its link)."""
Source = tuple[Opening, int]
"""(whose link, sequence) of a blob."""
RETRY_MS = 100.0
"""After a call that got no answer. Ray has retried it by then; a restarted shard takes about a second."""


class _Pending:
    """What one (shard, profile) has folded since its last batch."""

    __slots__ = ("blobs", "checkpoints", "feeds", "folds", "oldest_ms", "size", "window")

    def __init__(self, profile: Profile) -> None:
        self.window = Window(profile)
        self.blobs: list[Source] = []
        """Of which it holds a part."""
        self.checkpoints: dict[str, Checkpoint] = {}
        self.folds: dict[str, Fold] = {}
        self.feeds: dict[tuple[str, int, bool], FeedRange] = {}
        """Of one incarnation the ranges become one, but for the one that says that it begins: that is not about events."""
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
            key = (new.feed, new.incarnation, new.is_beginning)
            old = self.feeds.get(key)
            self.feeds[key] = (
                new if old is None else FeedRange(new.feed, new.incarnation, old.first, new.last, old.previous)
            )
        for checkpoint in part.checkpoints:
            self.checkpoints[checkpoint.sequence] = checkpoint
        if not self.oldest_ms or part.oldest_ms < self.oldest_ms:
            self.oldest_ms = part.oldest_ms
        self.window.offered(now_ms, part.oldest_ms)


class _Lane:
    """One shard: its link and its pending profiles."""

    __slots__ = ("blobs", "claims", "closes", "link", "pending", "shard")

    def __init__(self, shard: int, identity: str, incarnation: int, profiles: Sequence[Profile]) -> None:
        self.shard = shard
        self.link = Outgoing(identity, incarnation)
        self.pending = [_Pending(profile) for profile in profiles]
        self.claims: list[Claim] = []
        """To go with the next batch, which leaves at once."""
        self.closes = False
        """What waits leaves at once."""
        self.blobs: list[Source] = []
        """Of which a part is in the batch in flight."""

    @property
    def size(self) -> int:
        return sum(pending.size for pending in self.pending)

    @property
    def is_empty(self) -> bool:
        """Whether no operations wait, or are on their way; claims may."""
        return not self.blobs and not any(pending.blobs for pending in self.pending)

    def due(self) -> float | None:
        if not self.link.idle:
            return self.link.retry_at
        if self.claims or self.closes:
            return 0.0
        return min((due for pending in self.pending if (due := pending.window.due()) is not None), default=None)


class _Progress:
    """How much of one ingestor's link shards have committed."""

    __slots__ = ("committed", "open_parts")

    def __init__(self) -> None:
        self.committed = 0
        self.open_parts: dict[int, int] = {}
        """Parts that no shard has committed yet, by blob, oldest first."""

    def settle(self) -> None:
        for sequence, parts in list(self.open_parts.items()):
            if parts:
                return
            del self.open_parts[sequence]
            self.committed = sequence


class CoordinatorState:
    """See the module. Built anew after every restart, with a higher incarnation."""

    def __init__(
        self,
        identity: str,
        incarnation: int,
        *,
        profiles: Sequence[Profile],
        shards: Sequence[int] = (),
    ) -> None:
        """`shards`: those it is known to serve; of others ingestors say so, with what they send."""
        self.identity = identity
        self.incarnation = incarnation
        self._lanes: dict[int, _Lane] = {}
        self._by_address: dict[str, _Lane] = {}
        self._profiles = profiles
        self._ended: dict[int, Outgoing] = {}
        """To shards that are no more, by word that may have come late."""
        for shard in shards:
            self._open(shard)
        self._incoming: dict[str, Incoming] = {}
        self._progress: dict[Opening, _Progress] = {}
        """By sender and its incarnation."""
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
            case New(opened=True):
                for key in [key for key in self._progress if key[0] == blob.header.sender]:
                    del self._progress[key]
        sender = (blob.header.sender, blob.header.incarnation, blob.header.opening)
        source: Source = (sender, blob.header.sequence)
        progress = self._progress.setdefault(sender, _Progress())
        progress.open_parts[blob.header.sequence] = 0
        for part in blob.parts:
            lane = self._lanes.get(part.shard) or self._open(part.shard)
            if part.claim is not None:
                lane.claims.append(part.claim)
                continue
            progress.open_parts[blob.header.sequence] += 1
            pending = lane.pending[part.profile]
            pending.add(part, now_ms)
            pending.blobs.append(source)
            self.operations_in += sum(key.count for key in part.keys)
        progress.settle()
        for lane in self._lanes.values() if blob.closes else ():
            lane.closes = any(pending.window.due() is not None for pending in lane.pending)
        effects = self.wake(now_ms)
        left = self._lanes_window_left(now_ms)
        return incoming.answered(BlobTaken(self.incarnation, left, progress.committed)), effects

    def _open(self, shard: int) -> _Lane:
        lane = self._lanes[shard] = _Lane(shard, self.identity, self.incarnation, self._profiles)
        if (link := self._ended.pop(shard, None)) is not None:
            link.relink()  # else the shard would take the first batch for a repeat, if it is the one of before
            lane.link = link
        self._by_address[f"shard-{shard}"] = lane
        return lane

    def rebalance(self, message: Rebalance) -> Progress:
        """Slots have moved, or nothing has: forget the shards that are no more. A coordinator needs no map.

        Nothing waits for those. What does is for shards of a later map, where this word comes late.
        """
        for lane in [lane for lane in self._lanes.values() if lane.shard >= message.map.shards and lane.is_empty]:
            del self._lanes[lane.shard], self._by_address[f"shard-{lane.shard}"]
            self._ended[lane.shard] = lane.link
        return Progress(message.map, True)

    def _committed(self, lane: _Lane) -> None:
        """What was in flight to a shard is committed there."""
        for sender, sequence in lane.blobs:
            progress = self._progress.get(sender)
            if progress is not None:
                progress.open_parts[sequence] -= 1
                progress.settle()
        lane.blobs = []

    def _lanes_window_left(self, now_ms: float) -> float:
        return Window(self._profiles[0]).window_left_ms(now_ms)

    def mailboxes(self, now_ms: float) -> dict[int, int]:
        """Return, by shard, the batches that it has not committed: the one on its way, and those whose windows have closed meanwhile."""
        return {
            shard: (not lane.link.idle)
            + sum((due := pending.window.due()) is not None and due <= now_ms for pending in lane.pending)
            for shard, lane in self._lanes.items()
        }

    def deadline(self) -> float | None:
        """When the next window closes or the next resend is due."""
        times = [lane.due() for lane in self._lanes.values()]
        return min((at for at in times if at is not None), default=None)

    def wake(self, now_ms: float) -> list[Send]:
        """Send the batches of windows that have closed."""
        effects: list[Send] = []
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
        lane = self._by_address.get(to)
        if lane is None or lane.link.in_flight is not message:
            return []
        match answer:
            case BatchCommitted(incarnation=incarnation):
                lane.link.acknowledged(incarnation)
                self._committed(lane)
                return self.wake(now_ms)
            case Full(retry_ms=retry_ms):
                lane.link.failed(now_ms, retry_ms)
                return []
            case Refused():
                batch: Batch = lane.link.in_flight
                lane.link.relink()
                return [self._send(lane, structs.replace(batch, header=lane.link.header()))]
            case _:
                raise AssertionError(f"{to} answered a batch with {answer!r}")

    def unanswered(self, to: str, message: Any, now_ms: float) -> list[Send]:
        """The call failed; what it carried is kept and sent again."""
        lane = self._by_address.get(to)
        if lane is not None and lane.link.in_flight is message:
            lane.link.failed(now_ms, RETRY_MS)
        return []

    def _flush(self, lane: _Lane, now_ms: float) -> Send:
        feeds: list[FeedRange] = []
        keys: list[KeyOperations] = []
        checkpoints: list[Checkpoint] = []
        oldest_ms = 0.0
        before = 0
        claims, lane.claims = lane.claims, []
        closes, lane.closes = lane.closes or bool(claims), False
        for index, pending in enumerate(lane.pending):
            due = pending.window.due()
            if due is None or (due > now_ms and not closes):
                continue
            lane.blobs.extend(pending.blobs)
            checkpoints.extend(pending.checkpoints.values())
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
        if keys:
            self.flushes += 1
            self.flushed.append((before, now_ms - oldest_ms))
        return self._send(lane, Batch(lane.link.header(), feeds, keys, oldest_ms, checkpoints, claims))

    def _send(self, lane: _Lane, batch: Batch) -> Send:
        lane.link.sent(batch)
        return Send(f"shard-{lane.shard}", batch)
