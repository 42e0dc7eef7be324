"""What a gateway tells one home of its members: folded per member, and heartbeats as one list a period.

A call per join or heartbeat would make the home's mailbox the limit of everything. So what changes waits, as the names of members that
did; what they are is read when the news leave, with what else goes to that shard.

What must not live here: why members come and go (`presence_session`), links (`gateway_state`).
"""

from collections.abc import Mapping

from cluster.core.messages import PresenceMember, PresenceNews
from cluster.core.presence_room import Room

SPACING_MS = 20.0
"""Between news to a home, while there is any: a fifth of what the home itself waits for more."""
BEAT_MS = 2_000.0
"""Between lists of heartbeats to a home. It gives up a gateway after seven that did not come."""
NEWS_BYTES = 256 * 1024
"""Of one message; the rest follows."""
MEMBER_BYTES = 64
"""Of a member on the wire beside its texts."""


class HomeNews:
    """See the module. One home's."""

    __slots__ = ("beat_ms", "begins", "heard", "members", "pending", "sent_ms", "watched", "watches", "whole")

    def __init__(self) -> None:
        self.begins = True
        """It is to be told all there is."""
        self.whole = False
        """It is being told all there is."""
        self.pending: dict[tuple[str, str], None] = {}
        """(topic, member): joined, changed or left."""
        self.watches: dict[str, None] = {}
        """Topics of which it is to be told how they are watched."""
        self.watched: set[str] = set()
        """Topics of which it is to tell."""
        self.heard: dict[str, dict[str, None]] = {}
        """Members by topic: those that said they are there, since the last list."""
        self.members = 0
        """This gateway's, of its topics."""
        self.sent_ms = 0.0
        self.beat_ms = 0.0
        """When the last list went."""

    def take(self, rooms: Mapping[str, Room], index: int, life: int, now_ms: float) -> PresenceNews:
        """Return what is to be told now; `index`: of the home, `life`: of this gateway."""
        begins, self.begins = self.begins, False
        if begins:
            self.whole = True
            for room in rooms.values():
                if room.home == index:
                    self.pending.update(((room.name, member), None) for member in room.local)
        put: list[tuple[str, int, PresenceMember]] = []
        left: list[tuple[str, str]] = []
        size = 0
        for topic, member in list(self.pending):
            if size >= NEWS_BYTES:
                break
            del self.pending[topic, member]
            known = rooms.get(topic)
            membership = None if known is None else known.local.get(member)
            size += MEMBER_BYTES + len(topic)
            if membership is None:
                left.append((topic, member))
            else:
                # Who is connected somewhere counts for more than who may come back here, whoever says so first.
                put.append((topic, 0 if membership.lingers else membership.generation, membership.said()))
                size += len(membership.state) + len(membership.subject)
        ends = self.whole and not self.pending
        self.whole = self.whole and not ends
        heard: list[tuple[str, list[str]]] = []
        if self.beat_ms + BEAT_MS <= now_ms:
            heard = [(topic, list(members)) for topic, members in self.heard.items() if members]
            self.heard.clear()
            self.beat_ms = now_ms
        watches = []
        for topic in self.watches:
            watched = rooms.get(topic)
            watches.append((topic, 0, "") if watched is None else (topic, watched.number, watched.mode))
        self.watches.clear()
        self.sent_ms = now_ms
        return PresenceNews(0, life, begins, ends, put, left, heard, int(now_ms), watches)

    def due_at(self) -> float | None:
        """When there is something to be told."""
        if self.begins:
            return 0.0
        if self.pending or self.watches:
            return self.sent_ms + SPACING_MS
        return self.beat_ms + BEAT_MS if self.members or self.heard else None
