"""Mutations as a gateway sees them: what its clients may begin, and who is told what becomes of it.

A mutation lives in its home shard, which answers the request that began it and later tells, unasked and in order, each status it comes
to. Answer and news take different ways, so that news may be here first. A session is told each status once, in order, and none before
the `result` of what it asked: while a request of its own is under way, what is heard is held. One that waits by HTTP is answered once the
mutation is settled.

Of a mutation that is settled nothing but its id is remembered, for a while, and nothing for a session that is gone: homes know which session
began what, and are asked where one comes back, to whatever gateway. When a home begins a new life, or may be another since slots moved,
what may have been lost on the way is asked for again.

It is one thing because who asks, who hears and who waits meet in one table of the mutations that are followed.

What must not live here: what a mutation does (`mutation`, `mutation_queue`), links and requests (`gateway_state`), message texts
(`protocol`).
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from hashlib import sha256
from typing import Any

import orjson
from msgspec import Struct

from cluster.core import protocol
from cluster.core.grants import ANYBODY, Principal
from cluster.core.limits import refuse
from cluster.core.messages import Mutate, MutationList, MutationPlace, MutationView, Payload, Request
from cluster.core.mutation import MAX_ID, SETTLED, DeclaredMutation, Status
from cluster.core.mutation_shares import MAX_VARIABLES_BYTES
from cluster.core.query_key import CanonicalKey
from cluster.core.tenant import VARIABLE, Tenant
from cluster.core.undo import Undoing
from cluster.errors import ErrorCode, HarborError, RequestError

MAX_DELAY_MS = 24 * 3_600_000.0
FOLLOWED = 10_000
"""Mutations that are not settled, per session; more are refused. What is kept of each is some 500 bytes."""
HELD = 16
"""Statuses held for a session until its request is answered; a service that comes and goes meanwhile makes many."""
RECENT = 1_000
"""Settled mutations of sessions here that are known as theirs, since the changes of some shards come after the outcome."""
_CURSOR = re.compile(r"([0-9]{1,16})\.([0-9]{1,16})\.(.{1,128})")
LOST = "the shard that held the mutation has lost it; it may have been sent"


class Order(Struct, frozen=True):
    """A mutation that somebody may begin."""

    mutation: str
    name: str
    variables: bytes
    scope: str
    delay_ms: float | None
    account: str = ""
    """A hash of whom its author is counted as; "": nobody is counted."""

    @property
    def home(self) -> CanonicalKey:
        """What says which shard is its home."""
        return CanonicalKey(self.scope)

    def request(self, request: int, author: str = "") -> Mutate:
        """Return what its home is asked, for a session of this identity."""
        return Mutate(
            request, self.mutation, self.name, self.variables, self.scope, self.delay_ms, author, self.account
        )


class Said(Struct, frozen=True):
    """News: a message for a session about a mutation of a name, if it may still see that."""

    session: str
    name: str
    kind: str
    members: dict[str, Any]


class Concluded(Struct, frozen=True):
    """News: the answer that somebody waits for."""

    ticket: int
    payloads: list[Payload]


News = list[Said | Concluded]


class _Ear:
    """What a session has been told of a mutation."""

    __slots__ = ("held", "pending", "told")

    def __init__(self) -> None:
        self.told = ""
        """The status; empty: nothing."""
        self.pending = 0
        """Requests of it that are not answered; meanwhile news is held."""
        self.held: list[MutationView] = []


class _Followed:
    """A mutation that somebody here wants to hear of."""

    __slots__ = ("earlier", "ears", "home", "tickets", "view")

    def __init__(self) -> None:
        self.home: int | None = None
        """The shard; None: unknown, since somebody undoes what was begun elsewhere, or slots moved."""
        self.earlier: frozenset[int] = frozenset()
        """Shards that slots left since the home was known last: late words of theirs are news, but who is the home only its answer tells."""
        self.ears: dict[str, _Ear] = {}
        """By session."""
        self.tickets: dict[int, None] = {}
        """Of those who wait for the outcome."""
        self.view: MutationView | None = None
        """As it was last heard of."""


class _Wait:
    __slots__ = ("is_answered", "mutation", "until_ms", "view")

    def __init__(self, mutation: str, until_ms: float) -> None:
        self.mutation = mutation
        self.until_ms = until_ms
        self.view: MutationView | None = None
        """As it was last heard of."""
        self.is_answered = False
        """By the home, to the request that began it."""


class GatewayMutations:
    """See the module. `GatewayState` carries out what it returns."""

    def __init__(self, declared: Mapping[str, DeclaredMutation]) -> None:
        self.declared = declared
        self._followed: dict[str, _Followed] = {}
        self._sessions: dict[str, dict[str, None]] = {}
        """Mutations by session that has an ear to them."""
        self._waits: dict[int, _Wait] = {}
        """By ticket, oldest first."""
        self._undoing: dict[int, Undoing] = {}
        self._recent: dict[str, None] = {}
        """Settled ones that sessions here heard of, the oldest first."""

    # --- what is asked for ---------------------------------------------------------------------------------------

    def order(self, principal: Principal, name: Any, variables: Any, mutation: Any, delay_ms: Any) -> Order:
        """Look over what a client wants to begin.

        Raises:
            HarborError: `FORBIDDEN`, `UNKNOWN_MUTATION`, `INVALID_VARIABLES`, `BAD_REQUEST`, `TOO_LARGE`.
        """
        if not isinstance(name, str):
            raise RequestError(ErrorCode.BAD_REQUEST, f"name is a mutation's, got {name!r:.60}")
        principal.require_mutation(name)
        declared = self.declared.get(name)
        if declared is None:
            raise RequestError(ErrorCode.UNKNOWN_MUTATION, f"no mutation {name:.100} is declared")
        declared.validate(variables)
        mutation = mutation_id(mutation)
        variables = declared.completed(variables, mutation)
        tenant = principal.tenant
        if tenant:
            if variables.setdefault(VARIABLE, tenant.name) != tenant.name:
                raise HarborError(
                    ErrorCode.FORBIDDEN, f"the variable {VARIABLE} is your own tenant, and need not be said"
                )
            mutation = tenant.inside_id(mutation)
        if delay_ms is not None:
            if isinstance(delay_ms, bool) or not isinstance(delay_ms, int | float) or not 0 <= delay_ms <= MAX_DELAY_MS:
                raise RequestError(
                    ErrorCode.BAD_REQUEST, f"delay_ms is a number from 0 to {MAX_DELAY_MS:.0f}, got {delay_ms!r:.60}"
                )
            delay_ms = float(delay_ms)
        encoded = orjson.dumps(variables)
        if len(encoded) > (most := MAX_VARIABLES_BYTES):
            refuse(ErrorCode.TOO_LARGE, "variables", most, f"variables have at most {most} bytes, these {len(encoded)}")
        scope = tenant.inside_id(declared.scope_of(variables, mutation))
        return Order(mutation, name, encoded, scope, delay_ms, _hashed(principal))

    def require_room(self, session: str) -> None:
        """Refuse a session that follows as many as it may.

        Raises:
            RequestError: `TOO_MANY`.
        """
        if len(self._sessions.get(session, ())) >= FOLLOWED:
            refuse(
                ErrorCode.TOO_MANY,
                "mutations",
                FOLLOWED,
                f"a session has at most {FOLLOWED} mutations that are not settled",
            )

    def require_home(self, mutation: str, home: int) -> None:
        """Refuse an id under which another mutation, with another home, is under way here.

        Raises:
            RequestError: `CONFLICT`.
        """
        followed = self._followed.get(mutation)
        if followed is not None and followed.home not in (None, home):
            raise RequestError(ErrorCode.CONFLICT, f"the id {mutation} is that of another mutation")

    def attach(self, session: str, mutation: str, home: int | None = None) -> None:
        """A session has asked for something about a mutation, and hears of it from now on; `answered` follows."""
        followed = self._follow(mutation, home)
        followed.ears.setdefault(session, _Ear()).pending += 1
        self._sessions.setdefault(session, {})[mutation] = None

    def wait(self, ticket: int, mutation: str, home: int, until_ms: float) -> None:
        """The answer to a ticket is to be the outcome, or at that time how it is then."""
        self._follow(mutation, home).tickets[ticket] = None
        self._waits[ticket] = _Wait(mutation, until_ms)

    def undo(self, ticket: int, undoing: Undoing) -> None:
        """A mutation is to be undone; shards have been asked for the first time."""
        self._undoing[ticket] = undoing

    def _follow(self, mutation: str, home: int | None) -> _Followed:
        followed = self._followed.get(mutation)
        if followed is None:
            followed = self._followed[mutation] = _Followed()
        if home is not None:
            followed.home = home
        return followed

    def is_own(self, mutations: list[str]) -> bool:
        """Whether a session here began one of these, and it is not settled, or was just now."""
        return any(
            each in self._recent or ((followed := self._followed.get(each)) is not None and followed.ears)
            for each in mutations
        )

    # --- what is heard -------------------------------------------------------------------------------------------

    def heard(self, view: MutationView, home: int | None = None) -> News:
        """A home says how a mutation is; None: the one that was asked."""
        followed = self._followed.get(view.mutation)
        if followed is None or (home is not None and followed.home not in (None, home)):
            return []
        if followed.home is None and followed.view is not None and followed.view.place != view.place:
            return []  # another mutation of that id, elsewhere
        news: News = []
        followed.view = view
        if followed.home is None and home not in followed.earlier:
            followed.home = home
        for session, ear in list(followed.ears.items()):
            self._hear(session, ear, view, news)
        for ticket in list(followed.tickets):
            wait = self._waits[ticket]
            wait.view = view
            if wait.is_answered and view.status in SETTLED:
                news.append(Concluded(ticket, [view]))
                self.drop(ticket)
        return news

    def found(self, mutation: str, payload: Payload, shard: int) -> News:
        """A shard says what it knows of a mutation: its home that lives anew, or one that may be its home now."""
        if not isinstance(payload, MutationList):
            return []
        followed = self._followed.get(mutation)
        if payload.mutations:
            if followed is not None:
                followed.earlier -= {shard}
            return self.heard(payload.mutations[0], shard)
        if followed is None or followed.home != shard:
            return []  # its home is another by now, which is asked too
        name = "" if followed.view is None else followed.view.name
        return self.heard(MutationView(mutation, name, Status.ERROR, 0, error=(ErrorCode.UNAVAILABLE, LOST)))

    def answered(self, session: str, mutation: str, view: MutationView | None) -> News:
        """The request of a session was answered, and it was told so; None: with an error."""
        followed = self._followed.get(mutation)
        ear = None if followed is None else followed.ears.get(session)
        if followed is None or ear is None:
            return []
        ear.pending -= 1
        if view is None and not ear.told and not ear.pending:
            self._leave(session, mutation)
            return []
        news: News = []
        if view is not None and followed.view is None:
            followed.view = view
        if view is not None or not ear.pending:
            held, ear.held = ear.held, []
            for each in _in_order(held, view):
                self._tell(session, ear, each, news)
        if ear.told in SETTLED and not ear.pending:
            self._settled(session, mutation)
        return news

    def _hear(self, session: str, ear: _Ear, view: MutationView, news: News) -> None:
        """Tell a session, or hold it until its request is answered."""
        if ear.pending:
            ear.held.append(view)
            del ear.held[:-HELD]
            return
        self._tell(session, ear, view, news)
        if view.status in SETTLED:
            self._settled(session, view.mutation)

    @staticmethod
    def _tell(session: str, ear: _Ear, view: MutationView, news: News) -> None:
        if view.status == ear.told or ear.told in SETTLED:
            return
        ear.told = view.status
        news.append(Said(session, view.name, "mutation", {"mutation_id": view.mutation, **protocol.outcome(view)}))
        if view.status == Status.SCHEDULED and view.due_at:
            news.append(Said(session, view.name, "notice", _undo_available(view)))

    def conclude(self, ticket: int, payloads: list[Payload]) -> list[Payload] | Callable[[int], Request] | None:
        """Every shard asked has answered a ticket: return its answer, what all are to be asked next, or None where it waits on."""
        undoing = self._undoing.get(ticket)
        if undoing is not None:
            following = undoing.step(payloads)
            if isinstance(following, list):
                del self._undoing[ticket]
            return following
        wait = self._waits.get(ticket)
        if wait is None:
            return payloads
        view = payloads[0]
        if isinstance(view, MutationView):
            if wait.view is not None and view.status not in SETTLED:
                view = wait.view  # told since it was answered
            if view.status not in SETTLED:
                wait.view, wait.is_answered = view, True
                self._followed[wait.mutation].view = view
                return None
        self.drop(ticket)
        return [view]

    # --- what ends -----------------------------------------------------------------------------------------------

    def drop(self, ticket: int) -> None:
        """Nobody waits for that any more."""
        self._undoing.pop(ticket, None)
        wait = self._waits.pop(ticket, None)
        if wait is not None:
            del self._followed[wait.mutation].tickets[ticket]
            self._release(wait.mutation)

    def deadline(self) -> float | None:
        """When somebody has waited long enough."""
        return next((wait.until_ms for wait in self._waits.values()), None)

    def expire(self, now_ms: float) -> News:
        """Answer those who have waited long enough with what there is; those without an answer of the home are not among them."""
        news: News = []
        for ticket, wait in list(self._waits.items()):
            if wait.until_ms > now_ms:
                break
            if wait.is_answered and wait.view is not None:
                news.append(Concluded(ticket, [wait.view]))
                self.drop(ticket)
        return news

    def forget(self, session: str) -> None:
        """A session is gone."""
        for mutation in list(self._sessions.get(session, ())):
            self._leave(session, mutation)

    def regained(self, session: str, view: MutationView, home: int) -> News:
        """A home says how a mutation is that a session had begun before its connection was lost; the session hears of it from now on."""
        followed = self._followed.get(view.mutation)
        if followed is not None and followed.home not in (None, home):
            return []  # others here follow another mutation of that id
        ear = None if followed is None else followed.ears.get(session)
        news: News = []
        if ear is None or followed is None:
            if view.status in SETTLED:
                self._tell(session, _Ear(), view, news)
                return news
            if len(self._sessions.get(session, ())) >= FOLLOWED:
                return []
            followed = self._follow(view.mutation, home)
            ear = followed.ears[session] = _Ear()
            self._sessions.setdefault(session, {})[view.mutation] = None
        followed.view = view
        self._hear(session, ear, view, news)
        return news

    def moved(self, homes: Collection[int]) -> list[str]:
        """Some of what these shards were the home of has another now. Returns the mutations whose home is to be looked for.

        What that has said before this was heard of was not believed.
        """
        for followed in self._followed.values():
            if followed.home in homes:
                followed.home, followed.earlier = None, frozenset(homes)
            elif followed.home is None:
                followed.earlier = followed.earlier.union(homes)
        return [mutation for mutation, followed in self._followed.items() if followed.home is None]

    def unsure(self, home: int) -> Iterator[str]:
        """Yield the mutations of a home that has said how they are: what came later may be lost."""
        for mutation, followed in self._followed.items():
            if followed.home == home and followed.view is not None:
                yield mutation

    def _settled(self, session: str, mutation: str) -> None:
        self._leave(session, mutation)
        self._recent[mutation] = None
        if len(self._recent) > RECENT:
            del self._recent[next(iter(self._recent))]

    def _leave(self, session: str, mutation: str) -> None:
        del self._followed[mutation].ears[session]
        mutations = self._sessions[session]
        del mutations[mutation]
        if not mutations:
            del self._sessions[session]
        self._release(mutation)

    def _release(self, mutation: str) -> None:
        followed = self._followed.get(mutation)
        if followed is not None and not followed.ears and not followed.tickets:
            del self._followed[mutation]


def mutation_id(given: Any) -> str:
    """Return a mutation's id. It is a header's value (`Idempotency-Key`), which is ASCII and loses spaces around it.

    Raises:
        RequestError: `BAD_REQUEST`.
    """
    if (
        not isinstance(given, str)
        or not 1 <= len(given) <= MAX_ID
        or not (given.isascii() and given.isprintable())
        or given != given.strip()
    ):
        raise RequestError(
            ErrorCode.BAD_REQUEST, f"a mutation's id has 1 to {MAX_ID} printable ASCII characters, got {given!r:.60}"
        )
    return given


def _hashed(principal: Principal) -> str:
    """Return what homes know an account by: subjects are names of people, of any length."""
    if principal is ANYBODY:
        return ""
    return sha256(principal.account.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def statuses_of(text: str) -> list[str]:
    """Return the statuses that a list with commas names.

    Raises:
        RequestError: `BAD_REQUEST`, there is no such status.
    """
    names = text.split(",")
    for name in names:
        if name not in {*Status}:
            raise RequestError(ErrorCode.BAD_REQUEST, f"status is of {', '.join(Status)}, got {name!r:.60}")
    return names


def visible(payloads: list[Payload], principal: Principal) -> list[MutationView]:
    """Return what a principal may see of all shards' lists, oldest first."""
    views = [view for each in payloads if isinstance(each, MutationList) for view in each.mutations]
    return sorted((view for view in views if principal.may_see(view.mutation, view.name)), key=lambda view: view.place)


def page_of(payloads: list[Payload], principal: Principal, limit: int) -> tuple[list[MutationView], str]:
    """Return a page of what a principal may see of all shards' pages, and the cursor of the next; "": there is none."""
    lists = [each for each in payloads if isinstance(each, MutationList)]
    ends = [
        each.mutations[-1].place for each in lists if each.more
    ]  # of a shard's own, beyond which it may have others
    views = visible(payloads, principal)
    page = [view for view in views if not ends or view.place <= min(ends)][:limit]
    if not page or (not ends and len(views) == len(page)):
        return page, ""
    created_at, number, mutation = page[-1].place
    return page, f"{created_at}.{number}.{principal.tenant.outside_id(mutation)}"


def place_of(cursor: str, tenant: Tenant) -> MutationPlace:
    """Return where a cursor stands.

    Raises:
        RequestError: `BAD_REQUEST`, it is none.
    """
    match = _CURSOR.fullmatch(cursor)
    if match is None:
        raise RequestError(ErrorCode.BAD_REQUEST, f"cursor is of an earlier answer, got {cursor!r:.60}")
    return int(match[1]), int(match[2]), tenant.inside_id(match[3])


def _in_order(held: list[MutationView], answer: MutationView | None) -> list[MutationView]:
    """Put what a home answered among what it told meanwhile, which may have been before or after."""
    if answer is None or any(view.status == answer.status for view in held):
        return held
    return [*held, answer] if answer.status in SETTLED else [answer, *held]


def _undo_available(view: MutationView) -> dict[str, Any]:
    return {
        "level": "info",
        "code": "undo_available",
        "message": f"{view.name} can be undone until it is sent",
        "mutation_id": view.mutation,
        "until_ms": view.due_at,
    }
