"""Feeds and sequences: how events are numbered, so that each takes effect once.

A sequence is what an upstream can repeat: the events of a source, or of one channel of it, depending on where one can say after which
event to go on. Its events are numbered as they come, in an incarnation that ends when they may no longer be in step with the upstream's.
A feed is the part of a sequence that one set of rules takes: (source, channel, batching profile). Its events bear the sequence's numbers.

Shards remember, per feed, the last number they committed. Here stands up to where a sequence is committed everywhere (`checkpoint`), with the
upstream's id of that event: where a later life begins, and which numbers it gives, so that shards know what they have.

What must not live here: sockets, what an event means, when blobs are sent (`ingestion_state`).
"""

import math
import re
from collections.abc import Mapping
from enum import Enum

from cluster.core.messages import Checkpoint, Moved
from cluster.core.rule import Envelope

MAX_MARKS = 64
"""Beyond, the newest takes the place of the one before it: a checkpoint then moves in longer steps."""
DENSE_AFTER = 100
"""Events in a row whose ids count up by one, without an exception, after which one that does not is taken for a gap."""
EventId = str | int
MAX_ID = 1024
"""Characters of an event's id that an upstream can be asked to go on after: in a URL they may take twelve times as many bytes, of 64 KiB."""
_UNASKABLE = re.compile("[\x00-\x1f\x7f]")
"""No header may hold these."""
OPENED = "!"
"""Before a sequence's name, among the cursors of a shard: the incarnation that it last heard begin."""


def feed_name(stem: str, profile: int) -> str:
    """Return the name of a feed: of a source, or `source/channel`, in a batching profile, which stands where no channel's text can."""
    source, slash, channel = stem.partition("/")
    return f"{source}#{profile}{slash}{channel}" if profile else stem


def stem(name: str) -> str:
    """Return the source, or `source/channel`, that a feed, a sequence or a cursor is named after."""
    source, slash, channel = name.removeprefix(OPENED).partition("/")
    return source.partition("#")[0] + slash + channel


def profile_of(name: str) -> int:
    """Return the batching profile of a feed."""
    return int(name.partition("/")[0].partition("#")[2] or 0)


def owner(name: str) -> str:
    """Return the source that a feed, a sequence or a cursor belongs to."""
    return stem(name).partition("/")[0]


Held = list[tuple[Envelope, EventId | None]]


class Repeats(Enum):
    """What an upstream can repeat, given an event's id."""

    NOTHING = "nothing"
    SOURCE = "source"
    """All that came after it: `Last-Event-ID`, or an endpoint that is asked for what was missed."""
    CHANNEL = "channel"
    """What came after it on its channel: the id goes with the message that joins."""


class Sequence:
    """The events of one source, or of one channel of it, in one incarnation."""

    __slots__ = (
        "_dense_run",
        "_marks",
        "checkpoint",
        "follows",
        "guarded",
        "held",
        "id",
        "id_number",
        "incarnation",
        "is_elsewhere",
        "name",
        "number",
        "replay_until",
        "taken",
        "told",
    )

    def __init__(self, name: str, incarnation: int) -> None:
        self.name = name
        self.incarnation = incarnation
        self.number = 0
        """Of the last event."""
        self.id: EventId | None = None
        """The upstream's of the last event that had one."""
        self.id_number = 0
        self._dense_run = 0.0
        """Events whose ids have counted up by one; below 0: they do not."""
        self.taken = 0
        """Events up to here are repeats of what this life has taken."""
        self.replay_until = 0
        """Events up to here may be repeats of what shards have committed; each shard's cursor says."""
        self.follows: EventId | None = None
        """The next event should be the one after this."""
        self.guarded = False
        """The next event is not taken unseen: see `ingestion_state`."""
        self.held: Held | None = None
        """Another ingestor has the sequence still: what comes is kept until it says where it stopped."""
        self.is_elsewhere = False
        """Another ingestor has it, or will: what comes is not taken."""
        self.checkpoint: Checkpoint | None = None
        self.told: Checkpoint | None = None
        """The checkpoint that was last sent."""
        self._marks: tuple[tuple[int, EventId, dict[str, int]], ...] = ()
        """(number, id, blob by coordinator up to which all must be committed), oldest first."""

    @classmethod
    def restored(cls, checkpoint: Checkpoint) -> "Sequence":
        """Return the sequence as it stood at a checkpoint."""
        made = cls(checkpoint.sequence, checkpoint.incarnation)
        made.number = made.id_number = checkpoint.number
        made.id, made._dense_run = checkpoint.id, DENSE_AFTER if checkpoint.is_dense else 0.0
        made.checkpoint = made.told = checkpoint
        return made

    @classmethod
    def handed_over(cls, moved: Moved) -> "Sequence":
        """Return the sequence as another ingestor left it."""
        checkpoint = Checkpoint(moved.unit, moved.incarnation, moved.number, moved.id, moved.is_dense)
        made = cls.restored(checkpoint)
        made.taken = moved.taken
        return made

    @property
    def after(self) -> EventId | None:
        """Return the id that the upstream can be asked to go on after; None: there is none, or no request can hold it."""
        last = self.id
        return None if isinstance(last, str) and (len(last) > MAX_ID or _UNASKABLE.search(last)) else last

    @property
    def is_dense(self) -> bool:
        """Whether the upstream's ids count up by one."""
        return self._dense_run >= DENSE_AFTER

    @property
    def is_replaying(self) -> bool:
        """Whether the next event may be a repeat."""
        return self.number < max(self.taken, self.replay_until)

    def resume(self) -> None:
        """The upstream begins again after the event `id`."""
        self.taken = max(self.taken, self.number)
        self.number = self.id_number
        self.follows = self.id
        self.guarded = True

    def mark(self, needs: dict[str, int]) -> None:
        """Everything up to the last id is sent, or will be, with those blobs."""
        if self.id is None or self.number < self.taken:
            return
        last = self._marks[-1] if self._marks else None
        if last is not None and last[0] == self.id_number:
            return
        before = (last[0], last[1]) if last is not None else (self.id_number, self.id)
        if last is None and self.checkpoint is not None and self.checkpoint.id is not None:
            before = (self.checkpoint.number, self.checkpoint.id)
        events = self.id_number - before[0]
        if events:
            self._dense_run += events if _distance(before[1], self.id) == events else -math.inf
        self._marks = (*self._marks[: MAX_MARKS - 1], (self.id_number, self.id, needs))

    def committed(self, by_line: Mapping[str, int]) -> None:
        """Blobs up to these, by coordinator, are committed: move the checkpoint."""
        marks = self._marks
        passed = 0
        while passed < len(marks) and is_reached(marks[passed][2], by_line):
            passed += 1
        if passed:
            number, id_, _ = marks[passed - 1]
            self._marks = marks[passed:]
            self.checkpoint = Checkpoint(self.name, self.incarnation, number, id_, self.is_dense)

    def end(self) -> bool:
        """It must not be gone back to. Returns whether shards are to be told so."""
        self._marks = ()
        if self.checkpoint is None:
            return False
        self.checkpoint = Checkpoint(self.name, self.incarnation, self.number, None)
        return True

    @property
    def is_settled(self) -> bool:
        """Whether nothing of it waits to be committed or told."""
        return not self._marks and self.told is self.checkpoint


def is_reached(needs: Mapping[str, int], by_line: Mapping[str, int]) -> bool:
    """Whether blobs up to those that are needed, by coordinator, are committed."""
    return all(by_line.get(line, 0) >= blob for line, blob in needs.items())


def follows(last: EventId, now: EventId, *, is_dense: bool) -> bool:
    """Whether an event may be the one after another, as far as ids can tell."""
    return not is_dense or _distance(last, now) in (1, None)


def _distance(first: EventId, second: EventId) -> int | None:
    try:
        return int(second) - int(first)
    except ValueError:
        return None


_NOTHING: Mapping[int, int] = {}


class Feed:
    """What one set of rules takes of a sequence."""

    __slots__ = ("committed", "name", "profile", "sent", "sequence", "used_ms")

    def __init__(self, name: str, sequence: Sequence) -> None:
        self.name = name
        self.profile = profile_of(name)
        self.sequence = sequence
        self.sent: dict[int, int] = {}
        """Last number sent, by shard."""
        self.used_ms = 0.0
        """When something of it was sent last."""
        self.committed: Mapping[int, int] = _NOTHING
        """Last number committed before this life, by shard."""
