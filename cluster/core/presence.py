"""The home of presence topics: who is present, as gateways say, and what of it other gateways are told.

A topic's home is the shard that its name hashes to. Nothing here is stored. The problem: sessions come and go by the thousand, each
says every half minute that it is still there, and home, gateways and sessions may all die, yet watchers must neither see somebody
vanish for a moment who was there all along, nor keep somebody who is gone. An expiry per member at the home would cost a call per
heartbeat, and a home that began anew would know nobody. So authority is divided:

- A gateway knows its sessions: it alone says who joined, left or fell silent. Here a whole gateway expires, when its news stop coming
  for `GATEWAY_GRACE_MS`; its sessions may have been resumed elsewhere by then.
- A home that begins anew asks: each gateway says all its members again. Until all have, or as long as a gateway may be silent, the
  home adds but takes nobody away: no first listing is called whole before, and a gateway that watches drops only who is missing then.
- What watchers are told is folded per gateway: of a member is noted whether the gateway knows it, and what it is now is read when
  the diff is built, at most once a window.

What must not live here: sessions and sockets, timeouts of members (`presence_session`), what clients are sent (`presence_room`).

It is one thing since who is there, who watches and which gateways are heard of decide together what may be told.
"""

from collections.abc import Callable, Iterable, Iterator
from heapq import nsmallest

from cluster.core.messages import (
    ListMembers,
    MemberList,
    PresenceDiff,
    PresenceMember,
    PresenceNews,
    PresenceResume,
    PresenceWanted,
    Restored,
    TopicList,
)

WINDOW_MS = 100.0
"""Between two diffs to a gateway. The first after a quiet time leaves at once."""
GATEWAY_GRACE_MS = 15_000.0
"""A gateway that has members says something every 2 s. One that was killed is back within some seconds, and its clients with it; after
so long its members are gone. A home that begins anew waits as long for gateways that do not say what they have."""
MEMBER_BYTES = 64
"""Of a member on the wire beside its texts."""


class _Owner:
    """One life of a gateway, with the members it has."""

    __slots__ = ("gateway", "heard_ms", "members", "unconfirmed")

    def __init__(self, gateway: str) -> None:
        self.gateway = gateway
        self.heard_ms = 0.0
        self.members: dict[tuple[str, str], None] = {}
        """(topic, member)."""
        self.unconfirmed: dict[tuple[str, str], None] | None = None
        """While it says all it has: what it has not said yet."""


class _Present:
    """A member of a topic."""

    __slots__ = ("generation", "last_active", "owner", "state", "subject")

    def __init__(self, owner: _Owner, generation: int, said: PresenceMember) -> None:
        self.owner = owner
        self.generation = generation
        self.subject = said.subject
        self.state = said.state
        self.last_active = said.last_active

    def shown(self, member: str) -> PresenceMember:
        return PresenceMember(member, self.subject, self.state, self.last_active)


class _Watcher:
    """A gateway's watch of a topic."""

    __slots__ = ("known", "mode", "number", "outbox", "topic", "untold")

    def __init__(self, topic: "_Topic", number: int, mode: str, outbox: "PresenceOutbox") -> None:
        self.topic = topic
        self.number = number
        self.mode = mode
        self.outbox = outbox
        self.known: dict[str, bool] = {}
        """Members that changed since the last diff: whether the gateway knows them."""
        self.untold = True
        """It has not been told everybody (or the count) yet."""


class _Topic:
    __slots__ = ("members", "name", "watchers")

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: dict[str, _Present] = {}
        self.watchers: dict[str, _Watcher] = {}
        """By gateway."""

    def note(self, member: str, *, known: bool) -> None:
        """A member is about to change, or has; `known`: it was there before."""
        for watcher in self.watchers.values():
            if watcher.mode == "members":
                watcher.known.setdefault(member, known)
            watcher.outbox.dirty[self.name] = watcher


class PresenceOutbox:
    """What waits to be told to one gateway."""

    __slots__ = ("dirty", "fresh", "sent_ms", "wanted", "watching")

    def __init__(self) -> None:
        self.watching = 0
        self.dirty: dict[str, _Watcher] = {}
        """By topic: it changed; told once a window."""
        self.fresh: dict[str, _Watcher] = {}
        """By topic: its listing is to begin or to go on, at once."""
        self.sent_ms = 0.0
        self.wanted = False
        """The gateway is to say all it has."""

    def clear(self) -> None:
        """The gateway starts over."""
        self.watching = 0
        self.dirty.clear()
        self.fresh.clear()
        self.wanted = False

    def due_at(self) -> float | None:
        """When something is to be sent."""
        if self.wanted or self.fresh:
            return 0.0
        return self.sent_ms + WINDOW_MS if self.dirty else None

    def items(self, now_ms: float, budget: int, *, settled: bool) -> list[PresenceDiff | PresenceWanted]:
        """Return what is to be told now, in about so many bytes; what is left is due at once."""
        items: list[PresenceDiff | PresenceWanted] = []
        if self.wanted:
            self.wanted = False
            items.append(PresenceWanted())
        due = dict(self.fresh)
        if self.dirty and self.sent_ms + WINDOW_MS <= now_ms:
            due.update(self.dirty)
            self.sent_ms = now_ms
        for name, watcher in due.items():
            if budget <= 0:
                self.fresh[name] = watcher
                continue
            self.fresh.pop(name, None)
            self.dirty.pop(name, None)
            diff, size = _diff(watcher, budget, settled=settled)
            budget -= size
            if watcher.known:
                self.fresh[name] = watcher
            if diff is not None:
                items.append(diff)
        return items


def _diff(watcher: _Watcher, budget: int, *, settled: bool) -> tuple[PresenceDiff | None, int]:
    """Return what a gateway is to be told of a topic, None where nothing came of it, and its size."""
    topic = watcher.topic
    count = len(topic.members)
    if watcher.mode == "count":
        if not settled:
            return None, 0  # it is told when that is over
        watcher.untold = False
        return PresenceDiff(topic.name, watcher.number, [], [], count, False), MEMBER_BYTES
    members: list[PresenceMember] = []
    left: list[str] = []
    size = MEMBER_BYTES
    for member in list(watcher.known):
        if size >= budget:
            break
        known = watcher.known.pop(member)
        present = topic.members.get(member)
        if present is not None:
            members.append(present.shown(member))
            size += MEMBER_BYTES + len(present.state) + len(present.subject)
        elif known:
            left.append(member)
            size += MEMBER_BYTES
    whole = watcher.untold and settled and not watcher.known
    if whole:
        watcher.untold = False
    if not (members or left or whole):
        return None, 0
    return PresenceDiff(topic.name, watcher.number, members, left, count, whole), size


class PresenceTopics:
    """See the module. All topics whose home one shard is."""

    def __init__(self, gateways: Iterable[str]) -> None:
        self._gateways = set(gateways)
        """Those there are; empty while that is not known."""
        self._topics: dict[str, _Topic] = {}
        self._owners: dict[tuple[str, int], _Owner] = {}
        """By gateway and its life."""
        self._places: dict[str, dict[str, None]] = {}
        """Topics by member."""
        self._outboxes: dict[str, PresenceOutbox] = {}
        """By gateway, while its link is open."""
        self._said: set[str] = set()
        """Gateways that have said all they have to this life."""
        self._settles_ms: float | None = None
        """When everybody there is counts as known; None: nobody has asked or said anything yet."""
        self.settled = False
        self._held: list[tuple[str, ListMembers | PresenceResume]] = []
        """(gateway, request): what waits for that."""
        self.member_count = 0

    # --- what gateways say ---------------------------------------------------------------------------------------

    def news(self, gateway: str, outbox: PresenceOutbox, news: PresenceNews, now_ms: float) -> None:
        """Take a gateway's news."""
        self._begin(now_ms)
        self._outboxes[gateway] = outbox
        if (gateway, news.life) not in self._owners and not news.begins:
            outbox.wanted = True
        owner = self._owner(gateway, news.life, now_ms)
        if news.begins:
            owner.unconfirmed = dict(owner.members)
        for topic, generation, said in news.put:
            self._put(owner, topic, generation, said)
        for topic, member in news.left:
            self._leave(owner, topic, member)
        for topic, members in news.heard:
            self._hear(owner, topic, members, news.heard_at)
        if news.ends and owner.unconfirmed is not None:
            gone, owner.unconfirmed = owner.unconfirmed, None
            for topic, member in gone:
                self._leave(owner, topic, member)
            self._said.add(gateway)
        for topic, number, mode in news.watches:
            self._watch(gateway, outbox, topic, number, mode)
        self._settle(now_ms)

    def _resume(self, gateway: str, request: PresenceResume, now_ms: float) -> Restored:
        """A session has come back to a gateway: what it is a member of moves there, unseen."""
        owner = self._owner(gateway, request.life, now_ms)
        restored = []
        for name in self._places.get(request.member, ()):
            present = self._topics[name].members[request.member]
            self._own(owner, name, request.member, present)
            present.generation += 1
            restored.append((name, present.generation, present.shown(request.member)))
        return Restored(restored)

    def _owner(self, gateway: str, life: int, now_ms: float) -> _Owner:
        owner = self._owners.get((gateway, life))
        if owner is None:
            for key, other in list(self._owners.items()):
                if key[0] == gateway and not other.members:
                    del self._owners[key]  # an earlier life's, of whom nobody is left
            owner = self._owners[gateway, life] = _Owner(gateway)
        owner.heard_ms = now_ms
        return owner

    def _put(self, owner: _Owner, name: str, generation: int, said: PresenceMember) -> None:
        member = said.member
        topic = self._topic(name)
        present = topic.members.get(member)
        if owner.unconfirmed is not None:
            owner.unconfirmed.pop((name, member), None)
            if present is not None and present.owner is not owner and present.generation > generation:
                return  # it was resumed elsewhere
        if present is None:
            topic.note(member, known=False)
            present = topic.members[member] = _Present(owner, generation, said)
            owner.members[name, member] = None
            self._places.setdefault(member, {})[name] = None
            self.member_count += 1
            return
        if present.owner is not owner:
            if not generation:
                return  # it may come back there, and is here
            self._own(owner, name, member, present)
            present.generation = max(present.generation + 1, generation)
        if (present.state, present.subject) != (said.state, said.subject):
            topic.note(member, known=True)
        present.state, present.subject, present.last_active = said.state, said.subject, said.last_active

    @staticmethod
    def _own(owner: _Owner, name: str, member: str, present: _Present) -> None:
        present.owner.members.pop((name, member), None)
        if present.owner.unconfirmed is not None:
            present.owner.unconfirmed.pop((name, member), None)
        present.owner = owner
        owner.members[name, member] = None

    def _leave(self, owner: _Owner, name: str, member: str) -> None:
        """A member is gone, unless it is another gateway's by now."""
        topic = self._topics.get(name)
        present = None if topic is None else topic.members.get(member)
        if topic is None or present is None or present.owner is not owner:
            return
        topic.note(member, known=True)
        del topic.members[member]
        owner.members.pop((name, member), None)
        if owner.unconfirmed is not None:
            owner.unconfirmed.pop((name, member), None)
        places = self._places[member]
        del places[name]
        if not places:
            del self._places[member]
        self.member_count -= 1
        self._tidy(topic)

    def _hear(self, owner: _Owner, name: str, members: list[str], at: int) -> None:
        topic = self._topics.get(name)
        if topic is None:
            return
        for member in members:
            present = topic.members.get(member)
            if present is not None and present.owner is owner:
                present.last_active = max(present.last_active, at)

    # --- watches -------------------------------------------------------------------------------------------------

    def _watch(self, gateway: str, outbox: PresenceOutbox, name: str, number: int, mode: str) -> None:
        self._unwatch(gateway, name)
        if not mode:
            return
        topic = self._topic(name)
        watcher = topic.watchers[gateway] = _Watcher(topic, number, mode, outbox)
        outbox.watching += 1
        if mode == "members":
            watcher.known = dict.fromkeys(topic.members, False)
        outbox.fresh[name] = watcher

    def _unwatch(self, gateway: str, name: str) -> None:
        topic = self._topics.get(name)
        watcher = None if topic is None else topic.watchers.pop(gateway, None)
        if topic is None or watcher is None:
            return
        watcher.outbox.watching -= 1
        watcher.outbox.fresh.pop(name, None)
        watcher.outbox.dirty.pop(name, None)
        self._tidy(topic)

    def closed(self, gateway: str) -> None:
        """A gateway's link is no more: neither are its watches. Its members stay until it says, or is silent for too long."""
        self._outboxes.pop(gateway, None)
        self._held = [each for each in self._held if each[0] != gateway]  # it will ask again
        for topic in list(self._topics.values()):
            if gateway in topic.watchers:
                self._unwatch(gateway, topic.name)

    def _topic(self, name: str) -> _Topic:
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = _Topic(name)
        return topic

    def _tidy(self, topic: _Topic) -> None:
        if not topic.members and not topic.watchers:
            self._topics.pop(topic.name, None)

    # --- listings ------------------------------------------------------------------------------------------------

    def ask(self, gateway: str, request: ListMembers | PresenceResume, now_ms: float) -> MemberList | Restored | None:
        """Return the answer to a request, or None where not everybody is known yet: `answers` will have it."""
        self._begin(now_ms)
        if not self.settled:
            self._held.append((gateway, request))
            return None
        return self._answer(gateway, request, now_ms)

    def _answer(self, gateway: str, request: ListMembers | PresenceResume, now_ms: float) -> MemberList | Restored:
        return self._list(request) if isinstance(request, ListMembers) else self._resume(gateway, request, now_ms)

    def _list(self, request: ListMembers) -> MemberList:
        topic = self._topics.get(request.topic)
        members = {} if topic is None else topic.members
        found = nsmallest(request.limit + 1, (member for member in members if member > request.after))
        rows = [members[member].shown(member) for member in found[: request.limit]]
        return MemberList(len(members), rows, len(found) > request.limit)

    def listed(self, limit: int) -> TopicList:
        """Return the topics with the most members, of those that are known."""
        counts = [(topic.name, len(topic.members)) for topic in self._topics.values() if topic.members]
        return TopicList(nsmallest(limit, counts, key=lambda each: (-each[1], each[0])), len(counts))

    def answers(self, now_ms: float) -> Iterator[tuple[str, int, MemberList | Restored]]:
        """Yield (gateway, request id, answer) of what had to wait and no longer does."""
        if self.settled and self._held:
            held, self._held = self._held, []
            for gateway, request in held:
                yield gateway, request.id, self._answer(gateway, request, now_ms)

    # --- moves of slots ------------------------------------------------------------------------------------------

    def let_go(self, leaves: Callable[[str], bool]) -> None:
        """The home of some topics is another shard from now on, which gateways tell all they have: here they are forgotten, unsaid."""
        for name in [name for name in self._topics if leaves(name)]:
            topic = self._topics.pop(name)
            for watcher in topic.watchers.values():
                watcher.outbox.watching -= 1
                watcher.outbox.fresh.pop(name, None)
                watcher.outbox.dirty.pop(name, None)
            for member, present in topic.members.items():
                present.owner.members.pop((name, member), None)
                if present.owner.unconfirmed is not None:
                    present.owner.unconfirmed.pop((name, member), None)
                places = self._places[member]
                del places[name]
                if not places:
                    del self._places[member]
                self.member_count -= 1

    def begin_anew(self) -> None:
        """Topics have come here: nobody is missing before all gateways have said whom they have."""
        self.settled, self._settles_ms = False, None
        self._said.clear()

    # --- time ----------------------------------------------------------------------------------------------------

    def gateways(self, names: Iterable[str], now_ms: float) -> None:
        """There are other gateways."""
        self._gateways = set(names)
        self._settle(now_ms)

    def _begin(self, now_ms: float) -> None:
        if self._settles_ms is None:
            self._settles_ms = now_ms + GATEWAY_GRACE_MS

    def _settle(self, now_ms: float) -> None:
        """See whether everybody there is must be known by now; then listings are whole."""
        if self.settled or self._settles_ms is None:
            return
        if now_ms >= self._settles_ms or (self._gateways and self._gateways <= self._said):
            self.settled = True
            for topic in self._topics.values():
                for watcher in topic.watchers.values():
                    if watcher.untold:
                        watcher.outbox.fresh[topic.name] = watcher

    def deadline(self) -> float | None:
        """When anything is due here."""
        times = [owner.heard_ms + GATEWAY_GRACE_MS for owner in self._owners.values() if owner.members]
        if self._settles_ms is not None and not self.settled:
            times.append(self._settles_ms)
        return min(times, default=None)

    def wake(self, now_ms: float) -> None:
        """Drop the members of gateways that have been silent for too long."""
        self._settle(now_ms)
        for (gateway, life), owner in list(self._owners.items()):
            if owner.heard_ms + GATEWAY_GRACE_MS > now_ms or not owner.members:
                continue
            del self._owners[gateway, life]
            for topic, member in list(owner.members):
                self._leave(owner, topic, member)
            outbox = self._outboxes.get(gateway)
            if outbox is not None:
                outbox.wanted = True  # should it live, it has them still
