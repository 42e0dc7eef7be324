"""Presence at a gateway: what its sessions have joined and watch, and what the homes of those topics are told of it.

The gateway is the authority on its sessions. It ends those that fall silent (`timeout` of the pattern) or leave, and those whose socket
is gone, the latter after `GRACE_MS`, so that a client that comes back with its resume token has never been away.

A session's public identity is its member id. It is the hash of the secret in its resume token, so any gateway recognises who bears a
token, and whoever reads member ids cannot bear one.

A session that comes back to another gateway is asked for at all homes (`PresenceResume`): they move what they know of it here. Of two
gateways that claim a member the one with the higher generation has it.

It is one thing because what a session says, what it is shown and what homes are told of it meet in the same memberships.

What must not live here: who is present (`presence`), how homes are told (`presence_news`), what watchers are written (`presence_room`),
parsing (`presence_message`).
"""

from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from operator import attrgetter

import msgspec

from cluster.core.limits import refuse
from cluster.core.messages import PresenceDiff, PresenceMember, PresenceNews, Restored
from cluster.core.presence_news import HomeNews
from cluster.core.presence_room import Attendance, Membership, Mode, Pattern, Room, Seat
from cluster.core.rate import TokenBucket
from cluster.core.session_state import SessionState
from cluster.core.tenant import of_topic
from cluster.errors import ErrorCode, HarborError, LimitError, RequestError

GRACE_MS = 5_000.0
"""A lost connection is made again within a second or two, by a client whose gateway goes on."""
TOPICS = 64
"""A session may join or watch."""


def identity_of(secret: str) -> str:
    """Return the public identity of the session that is resumed by a secret: 96 bits of its hash."""
    return urlsafe_b64encode(sha256(secret.encode()).digest()[:12]).decode()


class PresenceSessions:
    """See the module."""

    def __init__(
        self,
        incarnation: int,
        home_of: Callable[[str], int],
        homes: int,
        patterns: Sequence[Pattern] = (),
        *,
        updates_per_s: float = 20.0,
    ) -> None:
        """`updates_per_s`: joins, states and watches of one session."""
        self._incarnation = incarnation
        self._updates_per_s = updates_per_s
        self._home_of = home_of
        self._homes = [HomeNews() for _ in range(homes)]
        self.patterns = tuple(patterns)
        self._rooms: dict[str, Room] = {}
        self._silent: dict[float, OrderedDict[Membership, None]] = {}
        """By timeout: memberships, the one heard longest ago first."""
        self._lingering: OrderedDict[str, tuple[float, dict[str, Membership], set[str]]] = OrderedDict()
        """By identity of a session whose socket is gone: when its memberships (by topic) end; topics it had declined."""
        self._here: dict[str, SessionState] = {}
        """By identity: every session. No two have the same."""
        self._number = 0
        self._woken: dict[str, None] = {}
        """Sessions that have something to be written."""

    def bound(self, updates_per_s: float, now_ms: float) -> None:
        """Take another number of joins, states and watches of one session, for those that are there too."""
        self._updates_per_s = updates_per_s
        for session in self._here.values():
            if session.attendance is not None:
                session.attendance.updates = TokenBucket(updates_per_s, now_ms)

    def woken(self) -> list[str]:
        """Return, once, the sessions that have something to be written."""
        woken, self._woken = list(self._woken), {}
        return woken

    # --- sessions ------------------------------------------------------------------------------------------------

    def pattern(self, topic: str) -> Pattern:
        """Return how a topic is declared.

        Raises:
            RequestError: `NOT_FOUND`.
        """
        for pattern in self.patterns:
            if pattern.matches(topic):
                return pattern
        raise RequestError(ErrorCode.NOT_FOUND, f"no presence is declared for the topic {of_topic(topic)[1]!r}")

    def present(
        self, session: SessionState, topic: str, state: bytes | None, watch: Mode | None, now_ms: float
    ) -> Pattern:
        """A session says that it is in a topic, as `state`, or (None) watches it, or is still there.

        Raises:
            HarborError: it may not, there is no such topic, or it is too much.
        """
        assert session.principal is not None
        session.principal.require_presence(topic)
        room = self._rooms.get(topic)
        pattern = self.pattern(topic) if room is None else room.pattern
        attendance = session.attendance
        if attendance is None:
            attendance = Attendance(now_ms, self._updates_per_s)
        membership, seat = attendance.joined.get(topic), attendance.seats.get(topic)
        mode: Mode = watch or ("members" if seat is None else seat.mode)
        is_seated = seat is not None and seat.mode == mode
        is_known = state is None or (membership is not None and membership.state == state)
        if not (is_seated and is_known):
            if membership is None and seat is None and len({*attendance.joined, *attendance.seats}) >= TOPICS:
                refuse(ErrorCode.TOO_MANY, "presence_topics", TOPICS, f"a session is in at most {TOPICS} topics")
            if not attendance.updates.take(1, now_ms):
                rate = self._updates_per_s
                raise LimitError(
                    ErrorCode.LIMITED,
                    "presence_updates",
                    rate,
                    f"a session may change what it is present in {rate:g} times a second",
                    retry_after_ms=attendance.updates.debt_ms(now_ms),
                )
        session.attendance = attendance
        if room is None:
            room = self._rooms[topic] = Room(topic, self._home_of(topic), pattern)
        if state is not None:
            attendance.declined.discard(topic)
        is_new = membership is None and state is not None
        if membership is not None:
            self._hear(membership, now_ms)
            if state is not None and (not is_known or membership.returned):
                membership.state, membership.returned = state, False
                self._homes[room.home].pending[topic, membership.member] = None
        elif state is not None:
            membership = Membership(room, session.identity, session.principal.subject, state, now_ms)
            self._join(attendance.joined, membership)
        if not is_seated:
            # Who has just joined is listed with the others: the home's next word is of it.
            self._seat(session, attendance, room, mode, waits=is_new and session.identity not in room.members)
        return pattern

    def _hear(self, membership: Membership, now_ms: float) -> None:
        membership.heard_ms = now_ms
        membership.last_active = int(now_ms)
        self._silent[membership.room.pattern.timeout_ms].move_to_end(membership)
        room = membership.room
        self._homes[room.home].heard.setdefault(room.name, {})[membership.member] = None

    def _join(self, joined: dict[str, Membership], membership: Membership) -> None:
        room = membership.room
        joined[room.name] = membership
        room.local[membership.member] = membership
        self._silent.setdefault(room.pattern.timeout_ms, OrderedDict())[membership] = None
        home = self._homes[room.home]
        home.members += 1
        home.pending[room.name, membership.member] = None

    def _seat(self, session: SessionState, attendance: Attendance, room: Room, mode: Mode, *, waits: bool) -> None:
        before = attendance.seats.get(room.name)
        if before is not None:
            attendance.due.pop(before, None)
        seat = attendance.seats[room.name] = room.seats[session.id] = Seat(room, session, mode)
        self._settle_watch(room)
        if not room.awaiting and not waits:
            self._owe(seat)

    def _settle_watch(self, room: Room) -> None:
        if room.wanted != room.mode:
            self._number += 1
            room.watch(self._number)
            home = self._homes[room.home]
            home.watches[room.name] = None
            if room.mode:
                home.watched.add(room.name)
            else:
                home.watched.discard(room.name)

    def _owe(self, seat: Seat) -> None:
        session = seat.reader
        assert isinstance(session, SessionState)
        assert session.attendance is not None
        session.attendance.due[seat] = None
        self._woken[session.id] = None

    def leave(self, session: SessionState, topic: str) -> None:
        """A session leaves a topic, and watches it no more.

        Raises:
            RequestError: `NOT_FOUND`.
        """
        attendance = session.attendance
        if attendance is not None and attendance.restoring and len(attendance.declined) < TOPICS:
            attendance.declined.add(topic)
        elif attendance is None or not (topic in attendance.joined or topic in attendance.seats):
            raise RequestError(ErrorCode.NOT_FOUND, f"this session is not in the topic {of_topic(topic)[1]!r}")
        self._part(session, attendance, topic)

    def _part(self, session: SessionState, attendance: Attendance, topic: str) -> None:
        membership = attendance.joined.get(topic)
        if membership is not None:
            self._end(membership)
        self._rise(session, attendance, topic)

    def _rise(self, session: SessionState, attendance: Attendance, topic: str) -> None:
        seat = attendance.seats.pop(topic, None)
        if seat is not None:
            attendance.due.pop(seat, None)
            del seat.room.seats[session.id]
            self._settle_watch(seat.room)
            self._tidy(seat.room)

    def _end(self, membership: Membership) -> None:
        """A membership is over, whoever has it."""
        room, member = membership.room, membership.member
        del room.local[member]
        del self._silent[room.pattern.timeout_ms][membership]
        home = self._homes[room.home]
        home.members -= 1
        home.pending[room.name, member] = None
        heard = home.heard.get(room.name)
        if heard is not None:
            heard.pop(member, None)
        session = self._here.get(member)
        if session is not None and session.attendance is not None:
            session.attendance.joined.pop(room.name, None)
        lingering = self._lingering.get(member)
        if lingering is not None:
            lingering[1].pop(room.name, None)
        self._tidy(room)

    def _tidy(self, room: Room) -> None:
        if not room.local and not room.seats:
            self._rooms.pop(room.name, None)

    def opened(self, session: SessionState) -> None:
        """There is another session."""
        self._here[session.identity] = session

    def session_of(self, identity: str) -> SessionState | None:
        """Return the session that has an identity, if it is here."""
        return self._here.get(identity)

    def gone(self, session: SessionState, now_ms: float, *, lingers: bool) -> None:
        """A session's socket is gone. `lingers`: it may come back, so its memberships last a little longer."""
        self._here.pop(session.identity, None)
        attendance = session.attendance
        if attendance is None:
            return
        for topic in list(attendance.seats):
            self._rise(session, attendance, topic)
        session.attendance = None
        joined = attendance.joined
        if lingers and (joined or session.identity != session.id):  # in the latter case homes may yet say what it has
            self._lingering[session.identity] = (now_ms + GRACE_MS, dict(joined), attendance.declined)
            for membership in joined.values():
                membership.lingers = True
            return
        for membership in list(joined.values()):
            self._end(membership)

    def admitted(self, session: SessionState) -> list[str]:
        """A session is another principal's: it leaves the topics that this one may not be in, which are returned."""
        attendance, principal = session.attendance, session.principal
        if attendance is None or principal is None:
            return []
        lost = [topic for topic in {**attendance.joined, **attendance.seats} if not principal.may_be_present(topic)]
        for topic in lost:
            self._part(session, attendance, topic)
        for topic, membership in attendance.joined.items():
            if membership.subject != principal.subject:
                membership.subject = principal.subject
                self._homes[membership.room.home].pending[topic, membership.member] = None
        return lost

    def declare(self, patterns: Iterable[Pattern]) -> list[tuple[SessionState, str]]:
        """Other topics are declared. Returns (session, topic) of those that are no longer in one."""
        self.patterns = tuple(patterns)
        lost = []
        kept: list[Membership] = []
        for room in list(self._rooms.values()):
            pattern = next((each for each in self.patterns if each.matches(room.name)), None)
            if pattern is not None:
                for membership in room.local.values():
                    del self._silent[room.pattern.timeout_ms][membership]
                    kept.append(membership)
                room.pattern = pattern
                continue
            for session in list(self._here.values()):
                attendance = session.attendance
                if attendance is not None and (room.name in attendance.joined or room.name in attendance.seats):
                    lost.append((session, room.name))
                    self._part(session, attendance, room.name)
            for membership in list(room.local.values()):
                self._end(membership)
        for membership in sorted(kept, key=attrgetter("heard_ms")):
            self._silent.setdefault(membership.room.pattern.timeout_ms, OrderedDict())[membership] = None
        return lost

    # --- coming back ---------------------------------------------------------------------------------------------

    def resume(self, session: SessionState, secret: str, now_ms: float) -> SessionState | None:
        """A session bears the secret of an earlier one: it is that one from now on. Returns one that had the identity till now.

        Raises:
            HarborError: `CONFLICT`, it has said who it is already; `FORBIDDEN`, it was somebody else's.
        """
        if session.attendance is not None or session.identity != session.id:
            raise RequestError(ErrorCode.CONFLICT, "a session resumes once, before it is present anywhere")
        identity = identity_of(secret)
        earlier = self._here.get(identity)
        assert session.principal is not None
        if earlier is not None and earlier.principal is not None:
            earlier.principal.require_follower(session.principal)
        for topic in self._lingering.get(identity, (0.0, {}, set()))[1]:
            if of_topic(topic)[0] != session.tenant.name and session.tenant:
                raise HarborError(ErrorCode.FORBIDDEN, "that session was of another tenant")
        joined: dict[str, Membership] = {}
        declined: set[str] = set()
        if earlier is not None:
            if earlier.attendance is not None:
                joined, earlier.attendance.joined = earlier.attendance.joined, {}
                declined, earlier.attendance.declined = earlier.attendance.declined, set()
            earlier.identity = f"{earlier.id}-resumed"  # until it is closed it is somebody else
            self._here[earlier.identity] = earlier
        else:
            _, joined, declined = self._lingering.pop(identity, (0.0, joined, declined))
        self._here.pop(session.identity, None)
        session.identity, session.secret = identity, secret
        session.attendance = Attendance(now_ms, self._updates_per_s)
        session.attendance.joined, session.attendance.declined = joined, declined
        self._here[identity] = session
        for membership in joined.values():
            membership.lingers = False
            membership.returned = (membership.room.name, identity) not in self._homes[membership.room.home].pending
            self._hear(membership, now_ms)
        self.admitted(session)
        return earlier

    def restored(self, request: int, index: int, member: str, answer: Restored, now_ms: float) -> None:
        """A home says what it knew of a session that came back, and has moved here. What it does not know was left elsewhere."""
        session = self._here.get(member)
        attendance = None if session is None else session.attendance
        if attendance is not None:
            attendance.restoring.discard(request)
            known = {topic for topic, _, _ in answer.memberships}
            for topic, each in list(attendance.joined.items()):
                home = self._homes[each.room.home]
                if each.returned and each.room.home == index and not (topic in known or home.begins or home.whole):
                    self._end(each)  # else the home knows of it, or is about to
        for topic, generation, said in answer.memberships:
            home = self._homes[self._home_of(topic)]
            room = self._rooms.get(topic)
            membership = None if room is None else room.local.get(member)
            home.pending[topic, member] = None  # should it not be taken up, it has left
            if membership is not None:
                membership.generation, membership.returned = generation, False
                continue
            if session is not None and attendance is not None:
                principal = session.principal
                if principal is not None and principal.may_be_present(topic) and topic not in attendance.declined:
                    own = msgspec.structs.replace(said, subject=principal.subject)
                    self._take_up(attendance.joined, topic, generation, own, now_ms)
            elif member in self._lingering and topic not in self._lingering[member][2]:  # it is gone again
                self._take_up(self._lingering[member][1], topic, generation, said, now_ms)
        if attendance is not None and not attendance.restoring:
            attendance.declined.clear()

    def _take_up(
        self, joined: dict[str, Membership], topic: str, generation: int, said: PresenceMember, now_ms: float
    ) -> None:
        pattern = next((each for each in self.patterns if each.matches(topic)), None)
        if pattern is None:
            return
        room = self._rooms.get(topic)
        if room is None:
            room = self._rooms[topic] = Room(topic, self._home_of(topic), pattern)
        membership = Membership(room, said.member, said.subject, said.state, now_ms)
        membership.generation = generation
        self._join(joined, membership)

    # --- homes ---------------------------------------------------------------------------------------------------

    def diff(self, diff: PresenceDiff) -> None:
        """A home says what became of a topic."""
        room = self._rooms.get(diff.topic)
        if room is None:
            return
        due = room.take(diff)
        for seat in due:
            self._owe(seat)
        for session in room.seats:
            self._woken[session] = None

    def relinked(self, index: int) -> None:
        """The link to a home starts over: it is told all there is, and watched anew."""
        home = self._homes[index]
        home.begins, home.whole = True, False
        for topic in home.watched:
            self._number += 1
            self._rooms[topic].watch(self._number)
            home.watches[topic] = None

    def wanted(self, index: int) -> None:
        """A home wants to be told all there is."""
        self._homes[index].begins = True

    def watches(self, index: int) -> bool:
        """Whether a home is to tell of anything."""
        return bool(self._homes[index].watched)

    def news(self, index: int, now_ms: float) -> list[PresenceNews]:
        """Return what is to be told to a home now."""
        due = self.due_at(index)
        if due is None or due > now_ms:
            return []
        return [self._homes[index].take(self._rooms, index, self._incarnation, now_ms)]

    def due_at(self, index: int) -> float | None:
        """When there is something to be told to a home."""
        home = self._homes[index]
        if home.begins and not (self.patterns or self._rooms):
            return None
        return home.due_at()

    def rehome(self, homes: int) -> None:
        """Topics have other homes. All are told all there is: those that had topics have forgotten them, the others ask for it."""
        self._homes = [HomeNews() for _ in range(homes)]
        for room in self._rooms.values():
            room.home = self._home_of(room.name)
            self._homes[room.home].members += len(room.local)
            if room.mode:
                self._homes[room.home].watched.add(room.name)
        for index in range(homes):
            self.relinked(index)

    # --- delivery and time ---------------------------------------------------------------------------------------

    def write(self, attendance: Attendance, budget: int) -> list[bytes]:
        """Return what a session's watches are owed, in about so many bytes."""
        parts: list[bytes] = []
        while attendance.due and budget > 0:
            seat = next(iter(attendance.due))
            del attendance.due[seat]
            text, is_more = seat.room.write(seat)
            if is_more:
                attendance.due[seat] = None
            if text:
                parts.append(text)
                budget -= len(text)
        return parts

    def deadline(self) -> float | None:
        """When a member will have been silent, or away, for too long."""
        times = [next(iter(silent)).heard_ms + timeout_ms for timeout_ms, silent in self._silent.items() if silent]
        if self._lingering:
            times.append(next(iter(self._lingering.values()))[0])
        return min(times, default=None)

    def wake(self, now_ms: float) -> None:
        """End the memberships of those that are silent, or away, for too long."""
        for timeout_ms, silent in self._silent.items():
            while silent:
                membership = next(iter(silent))
                if membership.heard_ms + timeout_ms > now_ms:
                    break
                self._end(membership)
        while self._lingering:
            identity, (until_ms, joined, _) = next(iter(self._lingering.items()))
            if until_ms > now_ms:
                break
            del self._lingering[identity]
            for membership in list(joined.values()):
                self._end(membership)
