"""The way from an ingestor to one coordinator: what waits to be sent, and what was sent and is not committed yet.

Sent blobs are kept until the shards have committed them. When the coordinator begins anew (or this ingestor does), the line first claims
its feeds: the shards say what they have committed, and what they have not is sent again before anything new.
"""

from collections import deque
from collections.abc import Sequence as Many

from cluster.core.feed import Feed
from cluster.core.fold import Fold
from cluster.core.link import Outgoing
from cluster.core.messages import Checkpoint, FeedRange, KeyOperations, Part

EARLY_BYTES = 256 * 1024
"""A blob of this size leaves before its window's end. Smaller ones wait: folding here is free, a call is not (1-3 ms of CPU a side)."""
SPACING_MS = 25.0
"""Blobs to one coordinator are never closer than this, so that calls stay few at any rate."""
AIM_MS = 20.0
"""How long before a window's close its blob is sent, as a first guess. Each acknowledgement says how much was to spare."""
CLOSING_ASK_MS = 10.0
"""The same while everybody waits for that."""
ASK_MS = 200.0
"""After so long without anything to send, an empty blob asks whether what was sent is committed."""
CLAIM_AGAIN_MS = 2_000.0
"""A claim that was not answered may have been lost with a shard."""


class Pending:
    """What waits to be sent to one shard in one profile."""

    __slots__ = ("feeds", "folds", "line", "oldest_ms", "profile", "shard")

    def __init__(self, line: "Line", shard: int, profile: int) -> None:
        self.line = line
        self.shard = shard
        self.profile = profile
        self.folds: dict[str, Fold] = {}
        self.feeds: dict[Feed, list[int]] = {}
        """[first, last] number, by feed."""
        self.oldest_ms = 0.0

    def take(self, marks: Many[FeedRange]) -> Part:
        """Return what waits, after empty ranges, and begin anew."""
        ranges = []
        for feed, (first, last) in self.feeds.items():
            ranges.append(FeedRange(feed.name, feed.sequence.incarnation, first, last, feed.sent.get(self.shard, 0)))
            feed.sent[self.shard] = last
        keys = [KeyOperations(key, fold.operations(), fold.count, fold.origin) for key, fold in self.folds.items()]
        part = Part(self.shard, self.profile, [*marks, *ranges], keys, self.oldest_ms)
        self.folds, self.feeds, self.oldest_ms = {}, {}, 0.0
        return part


class Sent:
    """A blob that is not known to be committed."""

    __slots__ = ("number", "parts", "sequence", "size")

    def __init__(self, number: int, sequence: int, parts: list[Part], size: int) -> None:
        self.number = number
        """Among all blobs of the line."""
        self.sequence = sequence
        """On the link; 0: it is to be sent again."""
        self.parts = parts
        self.size = size


class Line:
    """See the module."""

    __slots__ = (
        "address",
        "aim_ms",
        "answers",
        "claim",
        "claim_at",
        "close_at",
        "closes",
        "count",
        "early",
        "link",
        "marks",
        "pending",
        "sent",
        "sent_at",
        "shards",
        "size",
        "urgent",
    )

    def __init__(self, address: str, identity: str, incarnation: int, shards: list[int]) -> None:
        self.address = address
        self.shards = shards
        self.link = Outgoing(identity, incarnation)
        self.pending: dict[tuple[int, int], Pending] = {}
        self.marks: dict[tuple[int, int], list[FeedRange]] = {}
        """Empty ranges to go first, by shard and profile: on the way of the feed's own, or they would overtake those."""
        self.size = 0
        self.early = False
        """Enough waits to be sent before the window's end."""
        self.urgent = False
        """Something waits that the coordinator may send at once."""
        self.closes = False
        """Slots are about to move: all that waits is to be sent, and committed, as soon as can be."""
        self.sent_at = 0.0
        self.close_at = 0.0
        """A past or coming close of the coordinator's window, as last heard."""
        self.aim_ms = AIM_MS
        self.count = 0
        """Blobs sent, not counting those that only claim."""
        self.sent: deque[Sent] = deque()
        self.claim = incarnation
        """Number of the last claim; above those of earlier lives, whose answers may still be on their way."""
        self.claim_at: float | None = None
        """When to claim, or claim again; None: there is nothing to claim."""
        self.answers: dict[int, dict[str, tuple[int, int]]] = {}
        """Cursors by feed, by shard that has answered the claim."""

    # --- sending -------------------------------------------------------------------------------------------------

    def due(self, window_ms: float, gathers_ms: float = 0.0) -> float | None:
        """When to send next; None: when something comes. `gathers_ms`: receipt of what may be for this line; 0.0: nothing is."""
        if not self.link.idle:
            return self.link.retry_at
        if self.claim_at is not None:
            return self.claim_at
        if self.marks or (self.sent and not self.sent[-1].sequence):
            return 0.0
        if self.closes:
            return 0.0 if self.size or self.pending_folds else self.sent_at + CLOSING_ASK_MS if self.sent else None
        if not self.size and not gathers_ms:
            return self.sent_at + ASK_MS if self.sent else None
        soonest = self.sent_at + SPACING_MS
        if self.urgent or self.size >= EARLY_BYTES:
            return soonest
        aimed = self.close_at - self.aim_ms
        oldest_ms = self.oldest_ms() or gathers_ms
        earliest = max(soonest, min(oldest_ms, gathers_ms or oldest_ms))
        if aimed < earliest:
            aimed += -(-(earliest - aimed) // window_ms) * window_ms
        return aimed

    @property
    def pending_folds(self) -> bool:
        """Whether operations wait to be sent."""
        return any(pending.folds for pending in self.pending.values())

    @property
    def is_quiet(self) -> bool:
        """Whether nothing waits to be sent, committed or claimed."""
        return self.link.idle and self.claim_at is None and not (self.sent or self.marks or self.pending_folds)

    def oldest_ms(self) -> float:
        """Return the receipt of the oldest event that waits."""
        return min((pending.oldest_ms for pending in self.pending.values() if pending.oldest_ms), default=0.0)

    def parts(self, checkpoints: dict[int, list[Checkpoint]], now_ms: float) -> list[Part]:
        """Take all that waits, with the checkpoints for each shard."""
        parts = []
        for place, pending in self.pending.items():
            if pending.folds:
                parts.append(pending.take(self.marks.pop(place, ())))
        parts.extend(Part(*place, marks, [], now_ms) for place, marks in self.marks.items())
        parts.extend(Part(shard, 0, [], [], now_ms, each) for shard, each in checkpoints.items())
        self.marks.clear()
        self.urgent = self.early = False
        return parts

    def keep(self, sequence: int, parts: list[Part]) -> None:
        """Keep what is being sent until it is committed."""
        self.count += 1
        self.sent.append(Sent(self.count, sequence, parts, self.size))
        self.size = 0

    def again(self) -> Sent | None:
        """Return the oldest blob that is to be sent again."""
        return next((each for each in self.sent if not each.sequence), None)

    def committed(self, sequence: int) -> int:
        """Forget the blobs up to one that are committed. Returns the bytes they took."""
        freed = 0
        while self.sent and 0 < self.sent[0].sequence <= sequence:
            freed += self.sent.popleft().size
        return freed

    @property
    def reached(self) -> int:
        """The number of the last blob up to which all are committed."""
        return self.sent[0].number - 1 if self.sent else self.count

    # --- claims --------------------------------------------------------------------------------------------------

    def begin_claim(self, now_ms: float) -> None:
        """Ask the shards what they have committed, and send nothing else before they have said so."""
        self.claim += 1
        self.claim_at = now_ms
        self.answers = {}
        for each in self.sent:
            each.sequence = 0

    def unanswered_shards(self) -> list[int]:
        """Return the shards that have not answered the claim."""
        return [shard for shard in self.shards if shard not in self.answers]

    def settle_claim(self) -> int:
        """All have answered: drop what is committed, keep the rest to be sent again. Returns the bytes that were freed."""
        self.claim_at = None
        freed = 0
        kept: deque[Sent] = deque()
        for each in self.sent:
            each.parts = [part for part in each.parts if not self._has(part)]
            if each.parts:
                kept.append(each)
            else:
                freed += each.size
        self.sent = kept
        return freed

    def _has(self, part: Part) -> bool:
        """Whether a part is committed: as a whole or not at all."""
        cursors = self.answers[part.shard]
        for feed in part.feeds:
            if feed.first <= feed.last:
                return cursors.get(feed.feed, (0, 0)) >= (feed.incarnation, feed.last)
        return False
