"""What a shard has committed of each feed: so that nothing is applied twice, and nothing is lost unnoticed.

A cursor is the last number of a feed that was committed; it moves in the transaction that commits the operations. Checkpoints are kept for
the ingestors (`core.feed`), which ask for both when they begin anew or their coordinator does (`messages.Claim`).

Cursors of channels that nobody joins are bounded: each ingestor's life has so many of them at most (`unasked_channels`), and here those that
moved longest ago give way. Such a cursor tells repeats from news, and only what was sent in the last seconds is repeated.

What must not live here: what to do about a gap (`shard_state`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable

from cluster.core.feed import OPENED, feed_name, owner, profile_of, stem
from cluster.core.messages import Checkpoint, Claim, Claimed, FeedRange, Send
from cluster.core.transaction import Cursor, Stored, Unstored

RETRY_MS = 150.0
NONE: Cursor = (0, 0)
MAX_CURSORS = 200_000
"""Of a shard, some 60 MB. Beyond it those of channels that the shard does not need go: twice what one source may have at one time
(`unasked_channels.MAX_CHANNELS`), so that what goes has not moved for minutes."""
LOOKS = 2
"""Cursors that are looked at for one to go, with each that moves."""


class CommittedFeeds:
    """See the module."""

    __slots__ = ("_claims", "_incarnation", "_is_needed", "_profiles", "_unstored", "checkpoints", "cursors", "shard")

    def __init__(
        self, shard: int, incarnation: int, unstored: Unstored, is_needed: Callable[[tuple[str, str]], bool]
    ) -> None:
        """`is_needed`: whether a channel, as (source, channel), is."""
        self.shard = shard
        self._incarnation = incarnation
        self._unstored = unstored
        self._is_needed = is_needed
        self._profiles: set[int] = {0}
        """Batching profiles that there are feeds of."""
        self.cursors: OrderedDict[str, Cursor] = OrderedDict()
        """By feed, the one that moved last at the end; under `OPENED` and the name of a sequence, the incarnation that was last heard to
        begin; under `OPENED` and the name of a feed that there is not, a number of when events were left out."""
        self.checkpoints: dict[str, Checkpoint] = {}
        """By sequence."""
        self._claims: dict[str, tuple[Claimed, float | None]] = {}
        """What an ingestor is to be told, and when; None: it is being told."""

    def restore(self, stored: Stored) -> None:
        """Begin with what was stored."""
        self.cursors.update(stored.cursors)
        self._profiles.update(map(profile_of, stored.cursors))
        self.checkpoints.update(stored.checkpoints)

    # --- ranges --------------------------------------------------------------------------------------------------

    def has(self, feed: FeedRange) -> bool:
        """Whether a range was committed before, perhaps by an earlier life."""
        incarnation, last = self.cursors.get(feed.feed, NONE)
        return feed.first <= feed.last <= last and feed.incarnation == incarnation

    def advance(self, feed: FeedRange) -> bool:
        """Move a feed's cursor. Returns whether events are missing before it, or may be."""
        if feed.is_beginning:
            if feed.incarnation <= self.cursors.get(OPENED + feed.feed, NONE)[0]:
                return False
            self._move(OPENED + feed.feed, (feed.incarnation, 0))
            return True
        incarnation, last = self.cursors.get(feed.feed, NONE)
        if feed.incarnation < incarnation:
            return False
        self._move(feed.feed, (feed.incarnation, max(feed.last, feed.previous)))
        if feed.incarnation > incarnation:
            return feed.previous > 0 and (incarnation > 0 or feed.first > feed.last)
        return feed.previous > last

    def inherit(self, cursors: Iterable[tuple[str, Cursor]]) -> None:
        """Another shard has committed so much, of slots that are here now; of the shard's own nothing is missing either at such a cut."""
        for feed, cursor in cursors:
            if cursor > self.cursors.get(feed, NONE):
                self._move(feed, cursor)

    def give_away(self, sequences: Iterable[str]) -> None:
        """Checkpoints are kept elsewhere now."""
        for name in list(sequences):
            if self.checkpoints.pop(name, None) is not None:
                self._unstored.checkpoint(name)

    def forget(self, channels: Iterable[tuple[str, str]]) -> None:
        """Channels, as (source, channel), are no longer joined: should they be again, their feeds begin anew."""
        for source, channel in channels:
            name = f"{source}/{channel}"
            feeds = [feed_name(name, profile) for profile in self._profiles]
            for feed in (*feeds, *(OPENED + each for each in feeds)):
                if feed in self.cursors:
                    self._drop(feed)

    def _move(self, feed: str, cursor: Cursor) -> None:
        if feed not in self.cursors:
            self._profiles.add(profile_of(feed))
        self.cursors[feed] = cursor
        self.cursors.move_to_end(feed)
        self._unstored.cursor(feed)
        for _ in range(LOOKS):
            if len(self.cursors) <= MAX_CURSORS:
                break
            oldest = next(iter(self.cursors))
            source, slash, channel = stem(oldest).partition("/")
            if slash and not self._is_needed((source, channel)):
                self._drop(oldest)
            else:
                self.cursors.move_to_end(oldest)

    def _drop(self, feed: str) -> None:
        del self.cursors[feed]
        self._unstored.cursor(feed)

    # --- checkpoints and claims ----------------------------------------------------------------------------------

    def check(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, or forget it where it has no id."""
        name = checkpoint.sequence
        if checkpoint.id is not None:
            self.checkpoints[name] = checkpoint
        elif self.checkpoints.pop(name, None) is None:
            return
        self._unstored.checkpoint(name)

    def claim(self, claim: Claim, now_ms: float) -> None:
        """Tell an ingestor what is committed of its sources."""
        sources = set(claim.sources)
        cursors = [
            (feed, incarnation, last) for feed, (incarnation, last) in self.cursors.items() if owner(feed) in sources
        ]
        checkpoints = [each for each in self.checkpoints.values() if owner(each.sequence) in sources]
        self._claims[claim.ingestor] = (
            Claimed(self.shard, claim.number, cursors, checkpoints, self._incarnation),
            now_ms,
        )

    def deadline(self) -> float | None:
        """When an ingestor is to be told."""
        return min((at for _, at in self._claims.values() if at is not None), default=None)

    def wake(self, now_ms: float) -> list[Send]:
        """Tell the ingestors that are due."""
        sends = []
        for ingestor, (claimed, at) in self._claims.items():
            if at is not None and at <= now_ms:
                self._claims[ingestor] = (claimed, None)
                sends.append(Send(ingestor, claimed))
        return sends

    def answered(self, ingestor: str, message: Claimed) -> None:
        """An ingestor was told."""
        if ingestor in self._claims and self._claims[ingestor][0] is message:
            del self._claims[ingestor]

    def unanswered(self, ingestor: str, message: Claimed, now_ms: float) -> None:
        """An ingestor could not be told."""
        if ingestor in self._claims and self._claims[ingestor][0] is message:
            self._claims[ingestor] = (message, now_ms + RETRY_MS)
