"""A topic: one watched key or prefix, with everybody on this gateway who subscribes to it.

Subscribers that are in step share one fold and one encoding of what changed. Who cannot be written to, is paused, or is still being
sent its snapshot has an outbox of its own until it has caught up.
"""

from enum import Enum

from cluster.core.outbox import Outbox
from cluster.core.position import Scope
from cluster.core.query_key import KeyMatcher
from cluster.core.replica import Replica


class Phase(Enum):
    """Where a subscription stands."""

    AWAITING = "awaiting"
    """The topic has not all its replicas yet."""
    REJOINING = "rejoining"
    """A shard began anew and is being asked again; it goes on where it stood."""
    RESUMING = "resuming"
    """Shards are being asked what it missed."""
    SNAPSHOT = "snapshot"
    """Its snapshot is being written, chunk by chunk."""
    LAGGING = "lagging"
    """It has an outbox to be written."""
    LIVE = "live"
    """In step."""


class Subscription:
    """One session's interest in a topic."""

    __slots__ = (
        "asked",
        "listed",
        "mode",
        "name",
        "outbox",
        "paused",
        "phase",
        "remaining",
        "resets",
        "since",
        "topic",
    )

    def __init__(self, name: bytes, topic: "Topic", mode: str) -> None:
        self.name = name
        """The client's id of it, JSON."""
        self.topic = topic
        self.mode = mode
        """data | patch."""
        self.phase = Phase.AWAITING
        self.paused = False
        self.outbox = Outbox()
        """Used in every phase but LIVE."""
        self.remaining: dict[str, None] = {}
        """SNAPSHOT: keys not yet sent; their changes are not told, the snapshot will hold them."""
        self.resets = False
        """The client is to be told to start over before its snapshot."""
        self.since: dict[int, tuple[int, int]] | None = None
        """The position it came back with, by shard."""
        self.asked: set[int] = set()
        """RESUMING: requests of shards that are yet to answer."""
        self.listed: dict[str, int] = {}
        """RESUMING: the version that was held of what shards have said was missed."""


class Topic:
    """See the module."""

    __slots__ = (
        "awaited",
        "dirty",
        "held",
        "is_watched_anew",
        "key",
        "matcher",
        "outbox",
        "prefix",
        "replicas",
        "rests",
        "scope",
        "seen",
        "subscriptions",
        "watches",
    )

    def __init__(self, key: str, matcher: KeyMatcher | None, scope: Scope) -> None:
        self.key = key
        self.scope = scope
        """Of the tokens of its subscriptions."""
        self.matcher = matcher
        self.prefix = matcher is not None
        self.watches: dict[int, int] = {}
        """Watch id by shard."""
        self.awaited: set[int] = set()
        """Shards whose snapshot is not complete."""
        self.is_watched_anew = False
        """It awaits shards to which slots have moved."""
        self.seen: dict[int, set[str]] = {}
        """Keys whose snapshots an awaited shard has sent."""
        self.held: dict[int, dict[str, int]] = {}
        """By shard that began anew: the version of each of its entries that had been passed on before."""
        self.replicas: dict[str, Replica] = {}
        self.subscriptions: dict[Subscription, str] = {}
        """Session by subscription."""
        self.outbox = Outbox()
        """What subscribers in step have yet to be told."""
        self.dirty = False
        self.rests = False
        """All subscribers have paused."""

    @property
    def waits(self) -> bool:
        """Whether subscribers are told nothing: until shards to which slots have moved have said what they have, there is no position of it."""
        return self.is_watched_anew and bool(self.awaited)

    @property
    def ready(self) -> bool:
        """Whether its replicas are all here."""
        return not self.awaited
