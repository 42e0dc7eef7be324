"""A presence topic as one gateway has it: who its home says is present, and the sessions here that watch.

Replicas change only by the home's diffs, those of members of this gateway too, so that what watchers are told is what the home holds. A
diff is encoded once per mode and the same bytes go to everybody in step. Who is not (its listing is under way, its socket is full) has
one pending change for the topic: of each member that changed, whether the reader was told of it; what it is now is read when the change
is written. So a slow client costs at most one record per member of what it watches, whatever happens meanwhile.

A listing is cut into pages. A member not yet listed sends no changes: the page will show it as it is then.

What must not live here: who may watch (`presence_session`), what of it leaves the home (`presence`).
"""

from typing import Any, Literal, Protocol

from msgspec import Struct

from cluster.core import protocol, template
from cluster.core.limits import refuse
from cluster.core.messages import PresenceDiff, PresenceMember
from cluster.core.rate import TokenBucket
from cluster.core.tenant import Tenant, of_topic
from cluster.errors import ErrorCode, RequestError

MAX_TOPIC = 256
"""Characters of a topic's name."""
MAX_STATE_BYTES = 4 * 1024
"""As JSON. A cursor and a selection take some hundred; everybody who watches gets each."""
PAGE_MEMBERS = 1_000
PAGE_BYTES = 64 * 1024
"""Of a listing, in one message: what a client takes in at once. The next page is made when this one is written."""
Mode = Literal["members", "count"]


def topic_of(given: Any) -> str:
    """Return a topic's name.

    Raises:
        RequestError: `BAD_REQUEST`, it is none; `TOO_LARGE`.
    """
    if not isinstance(given, str) or not given:
        raise RequestError(ErrorCode.BAD_REQUEST, f"topic is text, got {given!r:.60}")
    if len(given) > MAX_TOPIC:
        refuse(ErrorCode.TOO_LARGE, "topic", MAX_TOPIC, f"a topic has at most {MAX_TOPIC} characters, got {len(given)}")
    try:
        given.encode()
    except UnicodeEncodeError:
        raise RequestError(ErrorCode.BAD_REQUEST, "topic is text, got what is no Unicode") from None
    return given


def check_state(said: bytes) -> None:
    """Look at what a member says of itself, as JSON.

    Raises:
        LimitError: `TOO_LARGE`.
    """
    if len(said) > MAX_STATE_BYTES:
        refuse(
            ErrorCode.TOO_LARGE,
            "presence_state",
            MAX_STATE_BYTES,
            f"a presence state has at most {MAX_STATE_BYTES} bytes, got {len(said)}",
        )


class Pattern(Struct, frozen=True):
    """Declared topics."""

    template: template.Node
    heartbeat_ms: float
    """How often a member is to say that it is there."""
    timeout_ms: float
    """After how long a silent one is gone."""

    def matches(self, topic: str) -> bool:
        """Whether a topic, whosever it is, is declared by it."""
        return template.match_text(self.template, of_topic(topic)[1], {})


class Reader(Protocol):
    """A session, as far as it is written to."""

    id: str
    out: list[bytes]
    out_bytes: int

    @property
    def tenant(self) -> Tenant:
        """Whose client it is."""
        ...

    @property
    def in_step(self) -> bool:
        """Whether it can be handed changes now."""
        ...


class Membership:
    """A session of this gateway, present in a topic."""

    __slots__ = ("generation", "heard_ms", "last_active", "lingers", "member", "returned", "room", "state", "subject")

    def __init__(self, room: "Room", member: str, subject: str, state: bytes, now_ms: float) -> None:
        self.room = room
        self.member = member
        self.subject = subject
        self.state = state
        self.generation = 1
        self.lingers = False
        """Its session is gone and may come back, perhaps to another gateway."""
        self.returned = False
        """Its session has come back and not said since that it is there: it may have left meanwhile, at another gateway."""
        self.heard_ms = now_ms
        self.last_active = int(now_ms)

    def said(self) -> PresenceMember:
        """Return it as the home is told."""
        return PresenceMember(self.member, self.subject, self.state, self.last_active)


class Seat:
    """A session's watch of a topic."""

    __slots__ = ("is_new", "is_stale", "known", "mode", "reader", "remaining", "room")

    def __init__(self, room: "Room", reader: Reader, mode: Mode) -> None:
        self.room = room
        self.reader = reader
        self.mode: Mode = mode
        self.is_new = True
        """It has been told nothing yet."""
        self.is_stale = False
        """Mode count: it has been told another count."""
        self.remaining: dict[str, None] | None = None
        """While its listing is under way: members not yet listed."""
        self.known: dict[str, bool] = {}
        """Members that changed since it was last told: whether it was told of them."""

    def fold(self, known: dict[str, bool]) -> None:
        """Note what changed, for a reader that cannot be handed it now."""
        for member, was_there in known.items():
            if self.remaining and member in self.remaining:
                if member not in self.room.members:
                    del self.remaining[member]
            else:
                self.known.setdefault(member, was_there)


class Attendance:
    """What one session has joined and watches."""

    __slots__ = ("declined", "due", "joined", "restoring", "seats", "updates")

    def __init__(self, now_ms: float, updates_per_s: float) -> None:
        self.joined: dict[str, Membership] = {}
        """By topic."""
        self.seats: dict[str, Seat] = {}
        """By topic."""
        self.due: dict[Seat, None] = {}
        """Those with something to write that was not handed out."""
        self.updates = TokenBucket(updates_per_s, now_ms)
        self.restoring: set[int] = set()
        """Requests to homes, not answered yet, to say what an earlier session, which it was, has joined."""
        self.declined: set[str] = set()
        """Topics that it has left meanwhile."""


class _Row(Struct, frozen=True):
    """A member, and how clients see it."""

    said: PresenceMember
    text: bytes


class Room:
    """See the module."""

    __slots__ = (
        "awaiting",
        "count",
        "home",
        "local",
        "members",
        "mode",
        "name",
        "number",
        "pattern",
        "seats",
        "seen",
    )

    def __init__(self, name: str, home: int, pattern: Pattern) -> None:
        self.name = name
        self.home = home
        """The shard."""
        self.pattern = pattern
        self.local: dict[str, Membership] = {}
        """Members of this gateway."""
        self.seats: dict[str, Seat] = {}
        """By session."""
        self.members: dict[str, _Row] = {}
        self.count = 0
        self.mode: Mode | Literal[""] = ""
        """What the home is to tell."""
        self.number = 0
        """Of the watch at the home."""
        self.awaiting = False
        """The home has yet to list everybody, or to tell the count."""
        self.seen: set[str] = set()
        """Members it has listed meanwhile."""

    @property
    def wanted(self) -> Mode | Literal[""]:
        """What the home should tell, given who watches."""
        if any(seat.mode == "members" for seat in self.seats.values()):
            return "members"
        return "count" if self.seats else ""

    def watch(self, number: int) -> None:
        """Watch anew, as is wanted. What watchers were told stays until the home has listed everybody."""
        self.number = number
        self.mode = self.wanted
        self.awaiting = self.mode != ""
        self.seen.clear()
        if self.mode != "members":
            self.members.clear()

    def take(self, diff: PresenceDiff) -> list[Seat]:
        """Take the home's word and hand it to the watchers in step. Returns those that have something to write beside."""
        if diff.number != self.number or not self.mode:
            return []
        if self.mode == "count":
            if not self.awaiting and diff.count == self.count:
                return [seat for seat in self.seats.values() if seat.is_new]
            self.awaiting = False
            self.count = diff.count
            return self._tell([], [], {}, is_counted=True)
        joined: list[bytes] = []
        updated: list[bytes] = []
        known: dict[str, bool] = {}
        for said in diff.members:
            if self.awaiting:
                self.seen.add(said.member)
            held = self.members.get(said.member)
            is_change = held is None or (held.said.state, held.said.subject) != (said.state, said.subject)
            if is_change or held is None or held.said.last_active != said.last_active:
                row = self.members[said.member] = _Row(said, protocol.presence_member(said))
                if is_change:
                    (joined if held is None else updated).append(row.text)
                    known[said.member] = held is not None
        left = [member for member in diff.left if self.members.pop(member, None) is not None]
        if diff.whole:
            ghosts = [member for member in self.members if member not in self.seen] if self.awaiting else []
            for member in ghosts:
                del self.members[member]
            left.extend(ghosts)
            self.awaiting = False
            self.seen.clear()
        known.update(dict.fromkeys(left, True))
        before = self.count
        if not self.awaiting:
            self.count = len(self.members)
        return self._tell(joined, updated, known, is_counted=self.count != before) if known or diff.whole else []

    def _tell(
        self, joined: list[bytes], updated: list[bytes], known: dict[str, bool], *, is_counted: bool
    ) -> list[Seat]:
        left = [member for member in known if member not in self.members]
        texts: dict[tuple[str, str], bytes] = {}
        due: list[Seat] = []
        for seat in self.seats.values():
            if seat.is_new:
                if not self.awaiting:
                    due.append(seat)
                continue
            if not (is_counted or seat.is_stale if seat.mode == "count" else known):
                continue
            if seat.known or seat.remaining is not None or not seat.reader.in_step:
                if seat.mode == "members":
                    seat.fold(known)
                seat.is_stale = seat.mode == "count"
                due.append(seat)
                continue
            seat.is_stale = False
            place = (seat.mode, seat.reader.tenant.name)
            text = texts.get(place)
            if text is None:
                text = self._count_text(seat) if seat.mode == "count" else self._diff_text(seat, joined, updated, left)
                texts[place] = text
            seat.reader.out.append(text)
            seat.reader.out_bytes += len(text)
        return due

    def write(self, seat: Seat) -> tuple[bytes, bool]:
        """Return the next message a watcher is owed (empty: none), and whether more is owed after it."""
        if self.awaiting and (seat.is_new or seat.mode == "count"):
            return b"", False  # it is told when the home has said all
        is_new, seat.is_new = seat.is_new, False
        seat.is_stale = False
        if seat.mode == "count":
            return self._count_text(seat, is_snapshot=is_new), False
        if is_new:
            seat.remaining = dict.fromkeys(self.members)
            seat.known.clear()
        if seat.remaining is not None:
            return self._page(seat, seat.remaining), seat.remaining is not None or bool(seat.known)
        joined: list[bytes] = []
        updated: list[bytes] = []
        left: list[str] = []
        for member, was_there in seat.known.items():
            row = self.members.get(member)
            if row is not None:
                (updated if was_there else joined).append(row.text)
            elif was_there:
                left.append(member)
        seat.known.clear()
        return (self._diff_text(seat, joined, updated, left) if joined or updated or left else b""), False

    def _page(self, seat: Seat, remaining: dict[str, None]) -> bytes:
        page: list[bytes] = []
        size = 0
        while remaining and len(page) < PAGE_MEMBERS and size < PAGE_BYTES:
            member = next(iter(remaining))
            del remaining[member]
            page.append(self.members[member].text)
            size += len(page[-1])
        if not remaining:
            seat.remaining = None
        return protocol.presence(
            self._shown(seat), page, [], [], len(self.members), is_snapshot=True, is_more=seat.remaining is not None
        )

    def _shown(self, seat: Seat) -> str:
        return seat.reader.tenant.outside_topic(self.name)

    def _diff_text(self, seat: Seat, joined: list[bytes], updated: list[bytes], left: list[str]) -> bytes:
        return protocol.presence(self._shown(seat), joined, updated, left, len(self.members))

    def _count_text(self, seat: Seat, *, is_snapshot: bool = False) -> bytes:
        return protocol.presence(self._shown(seat), [], [], [], self.count, is_snapshot=is_snapshot)
