"""The mutations whose home a shard is: when each is sent, what comes of it, and what the views of all shards are to show meanwhile.

A client's change goes to a service that may be slow, may answer twice or not at all, and may be gone for hours; meanwhile everybody is to
see it, and nobody may see it twice. So one shard, the mutation's home, is its authority: it stores the mutation before it sends it,
sends it with an idempotency key until there is an answer, and only then says, once, what lasts. Shards that hold entries it is about
show its operations as overlays over their bases; they keep nothing of it, and are told again whenever either end starts anew.

Mutations of one scope are sent one after another, in order. One whose service cannot be reached is paused, and with it those after it in
its scope; one of the paused is sent now and then to see whether the service is back, and then all go on in order. One that names the
temporary id of something that is still being created waits for that, wherever its home is.

An event of a stream that carries the mutation's id, or every value of its variables, confirms it as an answer does; whichever comes first
counts. Only an event that does not have the real id of what was created under a temporary one lets the answer say that, if one is under way.
It is one thing because every end of a mutation (an answer, an event, a cancellation, an age) must settle it once and alike.

What must not live here: what a mutation is made of (`mutation`), how views come about (`overlay`, `shard_state`), HTTP.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from heapq import heapify, heappop, heappush, nlargest, nsmallest
from itertools import islice
from typing import Any

import orjson
from msgspec import Struct

from cluster.core import broadcast
from cluster.core.declared_query import Response
from cluster.core.grants import names
from cluster.core.messages import Failure, Lay, Lift, ListMutations, Mutate, MutationList, MutationPlace, MutationView
from cluster.core.mutation import NEXT, DeclaredMutation, MutationRequest, Status
from cluster.core.mutation_shares import MutationShares
from cluster.core.operation import Invalidate, Operation, held_bytes
from cluster.core.service_health import MAX_PROBE_MS, PROBE_MS, UNREACHABLE
from cluster.core.tenant import NOBODYS, TOPIC_MARK, Tenant, of_topic
from cluster.errors import ErrorCode, HarborError, UpstreamError

PARALLEL = 32
"""Requests under way at once, from one shard: as many as it has connections to one service."""
MEMORY_MS = 600_000.0
"""How long a settled mutation is remembered: for who asks what came of it, and for who sends it again."""
MAX_SETTLED = 100_000
"""Settled mutations that are remembered: ten minutes of 160 a second. Beyond it the oldest is forgotten earlier, unless
a shard is still to hear of it: where it cannot be, and as many wait, more mutations are refused."""
MAX_RESULT_BYTES = 64 * 1024 * 1024
"""What services have answered to all that are remembered: 640 bytes each, or four of the longest answers. Beyond it as above."""
MAX_REGAINED = 100
"""Settled mutations of which a session that comes back is told, of each home. Of some it may have heard before."""
MAX_REGAINED_BYTES = 1024 * 1024
"""What services have answered to those, in all."""
MAX_LISTED_BYTES = 1024 * 1024
"""The same of a page of a listing, but for a longer answer that is alone on it."""
UNSTORED_MS = 1_000.0
"""How long a mutation waits that could not be stored, and so was not sent."""
MAX_CONFLICTS = 3
"""How often a mutation that may go over a conflict is sent again for one."""
KEPT = 1_000
"""Times that may be kept in vain, beside as many as mutations wait for theirs."""
LATE = "\0late"
"""Behind the id of a mutation, in the second lift of one that a stream confirmed and its service then refused. No id of a client has it."""
VERSIONS = ("version", "base_version")
"""Variables that say what a change is based on."""

Keyed = tuple[str, Operation]


class MutationRecord(Struct, array_like=True):
    """What lasts of a mutation."""

    id: str
    name: str
    variables: bytes
    scope: str
    number: int
    created_ms: float
    due_ms: float
    """When it may be sent."""
    owner: str
    """The gateway that began it."""
    laid: list[Keyed]
    """What views show of it, by key."""
    status: Status = Status.QUEUED
    attempts: int = 0
    """How often it was sent."""
    failures: int = 0
    """Answers after which it is sent again."""
    conflicts: int = 0
    etag: str | None = None
    """What it is to be sent with, after a conflict."""
    temporary: str = ""
    """The temporary id of what it creates, as `_spaces` has them."""
    result: bytes | None = None
    error: tuple[str, str] | None = None
    settled_ms: float = 0.0
    lift: Lift | None = None
    unlifted: list[int] = []
    """Shards that have not said yet that they have it."""
    others: list[str] = []
    """Gateways that have asked for it since."""
    awaits: list[str] = []
    """Temporary ids of what was still being created when it was looked at."""
    author: str = ""
    """The session that began it, by its public identity; "": none that could come back."""
    digest: bytes = b""
    """Of the variables as they were sent, by which a repeat is told from another; empty: an earlier release took it in."""
    account: str = ""
    """A hash of whom its author is counted as; "": everybody is one, or an earlier release took it in."""

    def view(self) -> MutationView:
        """Return it as clients see it."""
        return MutationView(
            self.id,
            self.name,
            self.status,
            int(self.created_ms),
            int(self.due_ms) if self.due_ms > self.created_ms else 0,
            self.result,
            self.error,
            self.number,
        )


class StartMutation(Struct, frozen=True):
    """Effect: send `request`; feed what comes of it to `mutated`, with this."""

    mutation: str
    attempt: int
    request: MutationRequest


class _Outage(Struct):
    since_ms: float
    probe_at: float
    delay_ms: float = PROBE_MS
    is_probed: bool = False
    """One is under way to see whether the service is back."""


class MutationQueue:
    """See the module. What is to be done gathers in `calls`, `told` and `items` for its shard to take."""

    def __init__(
        self,
        shard: int,
        shards: int,
        place: Callable[[str], int],
        declared: Mapping[str, DeclaredMutation],
        changed: Callable[[str], None],
    ) -> None:
        """`place`: shard of a key; `changed`: is told the id of a record that is to be stored, or was forgotten."""
        self.shard = shard
        self._shards = shards
        self._place = place
        self._declared = declared
        self._changed = changed
        self.records: dict[str, MutationRecord] = {}
        """By id."""
        self._authors: dict[str, dict[str, None]] = {}
        """Their ids, by the session that began them."""
        self._scopes: dict[str, deque[MutationRecord]] = {}
        """Those that are not settled, in order."""
        self._settled: deque[MutationRecord] = deque()
        """Oldest first."""
        self._result_bytes = 0
        """Of those."""
        self._shares = MutationShares()
        self.settled: Counter[str] = Counter()
        """By status, in this life."""
        self._ready: dict[str, None] = {}
        """To be sent as soon as there is a connection."""
        self._waiting: dict[str, float] = {}
        """When a delay or a wait for another try ends, by id."""
        self._due: list[tuple[float, str]] = []
        """The same as a heap, with some that wait no longer."""
        self._blocked: dict[str, dict[str, None]] = {}
        """Mutations that wait for something to be created, by its temporary id."""
        self._outages: dict[str, _Outage] = {}
        """Services that cannot be reached."""
        self._paused: dict[str, dict[str, None]] = {}
        """Paused mutations, by service, in order."""
        self._under_way: set[str] = set()
        self._sent: dict[str, dict[str, MutationRecord]] = {}
        """Those that a service may have, by name and id."""
        self._confirmed: dict[str, bytes] = {}
        """Events, by id, of those whose answer is still to say what they have created."""
        self._temporaries: dict[str, str] = {}
        """The mutation that creates what has a temporary id, of all shards."""
        self._creations: dict[str, bytes] = {}
        """The variables of those, by temporary id."""
        self._renamed: dict[str, tuple[Any, float]] = {}
        """(the id it has now; None: it came to nothing, until when that is remembered), by temporary id."""
        self._number = 0
        self._is_sending = False
        self._now_ms = 0.0
        self.calls: list[StartMutation] = []
        self.told: dict[str, MutationRecord] = {}
        """Records whose status has changed."""
        self.items: dict[int, list[Lay | Lift]] = {}
        """What shards are to be told."""

    @property
    def unsettled(self) -> int:
        """How many are not settled."""
        return len(self._shares)

    # --- what is stored ------------------------------------------------------------------------------------------

    def restore(self, records: Iterable[MutationRecord], now_ms: float) -> None:
        """Begin with what was stored: what was under way is sent again, with the same idempotency key."""
        self._now_ms = now_ms
        for record in sorted(records, key=lambda each: each.number):
            self._number = max(self._number, record.number)
            self._keep(record)
            if record.status.is_settled:
                self._remember(record)
                if not record.unlifted:
                    self._close(record)
                if record.temporary:
                    renamed = None if record.lift is None else record.lift.renamed
                    self._renamed[record.temporary] = (renamed, record.settled_ms + MEMORY_MS)
                continue
            self._reenter(record)
        self._settled = deque(sorted(self._settled, key=lambda each: each.settled_ms))
        for shard in range(self._shards):
            self.items[shard] = self.outstanding(shard)
        for scope in list(self._scopes):
            self._advance(scope)

    def _reenter(self, record: MutationRecord) -> None:
        """Go on with what was not settled in an earlier life, or in another shard."""
        if record.name not in self._declared:  # the configuration has changed
            record.status = Status.QUEUED  # from which it may fail, and which belongs to no service
            self._enter(record)
            self._fail(record, ErrorCode.UNKNOWN_MUTATION, f"no mutation {record.name} is declared any more")
            return
        self._enter(record)
        if record.temporary:
            self._create(record.temporary, record.id, record.variables)
        if record.status is Status.SCHEDULED:
            self._wait(record.id, record.due_ms)
        else:
            record.status = Status.QUEUED
        for old in record.awaits:  # its home, which may be another, will say what became of it
            if orjson.dumps(of_topic(old)[1]) in record.variables:
                self._temporaries.setdefault(old, "")

    # --- moves of slots ------------------------------------------------------------------------------------------

    def take_in(self, records: list[MutationRecord], now_ms: float) -> None:
        """Be the home of what was another shard's: as after a restart."""
        self._now_ms = now_ms
        for record in sorted(records, key=lambda each: each.number):
            if record.id in self.records:
                continue  # a client gave two mutations one id: that of this home counts
            self._number = max(
                self._number, record.number
            )  # of one scope all were of one home, so their order is theirs still
            self._keep(record)
            self._changed(record.id)
            self.told[record.id] = record
            if record.status.is_settled:
                self._remember(record)
                if record.temporary:
                    renamed = None if record.lift is None else record.lift.renamed
                    self._renamed[record.temporary] = (renamed, record.settled_ms + MEMORY_MS)
                continue
            self._reenter(record)
            if not record.status.is_settled:
                self._lay(record)
        self._settled = deque(sorted(self._settled, key=lambda each: each.settled_ms))
        for scope in {record.scope for record in records}:
            self._advance(scope)

    def let_go(self, records: Iterable[MutationRecord]) -> None:
        """Their home is another shard now: whole scopes, of which nothing is told here any more."""
        for record in records:
            self._drop(record)
            self._changed(record.id)
            self.told.pop(record.id, None)
            if record.status.is_settled:
                self._result_bytes -= len(record.result or b"")
                continue
            if record.status is Status.PAUSED:
                self._resume(record)
            self._shares.give_back(record.id)
            self._scopes.pop(record.scope, None)
            self._ready.pop(record.id, None)
            self._waiting.pop(record.id, None)
            self._under_way.discard(record.id)
            self._sent.get(record.name, {}).pop(record.id, None)
            self._confirmed.pop(record.id, None)
            for blocked in self._blocked.values():
                blocked.pop(record.id, None)
        self.calls = [call for call in self.calls if call.mutation in self.records]
        self._settled = deque(each for each in self._settled if each.id in self.records)

    def count_shards(self, shards: int) -> None:
        """There are so many shards now; others have nothing to be told, and this one nothing of what is theirs."""
        self._shards = shards
        if own := self.items.pop(self.shard, None):  # it waits while slots move, and may be of before
            self.items[self.shard] = [
                self._lay_for(self.shard, self.records[each.mutation]) if isinstance(each, Lay) else each
                for each in own
                if isinstance(each, Lift) or each.mutation in self.records
            ]
        for gone in [shard for shard in self.items if shard >= shards]:
            del self.items[gone]
        for record in list(self._settled):
            for gone in [shard for shard in record.unlifted if shard >= shards]:
                self.lifted(gone, record.id)

    def outstanding(self, shard: int) -> list[Lay | Lift]:
        """Return all that a shard is to know."""
        found: list[Lay | Lift] = []
        for waiting in self._scopes.values():
            for record in waiting:
                lay = self._lay_for(shard, record)
                if lay.operations or lay.temporary:
                    found.append(lay)
        found.extend(self._lift_for(shard, record) for record in self._settled if shard in record.unlifted)
        return found

    # --- clients -------------------------------------------------------------------------------------------------

    def begin(self, request: Mutate, owner: str, now_ms: float) -> MutationView:
        """Take a mutation in, or say how it is where it is known.

        Raises:
            HarborError: `UNKNOWN_MUTATION`, `INVALID_VARIABLES`, `CONFLICT` (a temporary id is used twice, or the id is that of a
                mutation of another name or with other variables), `TOO_MANY` (see `MutationShares`).
        """
        self._now_ms = now_ms
        self._forget()
        record = self.records.get(request.mutation)
        if record is not None:
            if record.name != request.name:  # of which the client may have no right to know
                raise HarborError(ErrorCode.CONFLICT, f"the id {request.mutation:.128} is that of another mutation")
            if record.digest not in (b"", _digest(request.variables)):
                raise HarborError(
                    ErrorCode.CONFLICT, f"the id {request.mutation:.128} is that of a mutation with other variables"
                )
            self._also_tell(record, owner)
            return record.view()
        declared = self._declared.get(request.name)
        if declared is None:
            raise HarborError(ErrorCode.UNKNOWN_MUTATION, f"no mutation {request.name:.100} is declared")
        if len(self._settled) > MAX_SETTLED and self._settled[0].unlifted:
            raise HarborError(ErrorCode.TOO_MANY, f"shards are to hear yet of the outcome of {MAX_SETTLED} mutations")
        variables = declared.completed(orjson.loads(request.variables), request.mutation)
        spaces = _spaces(request.account, declared.tenant_of(variables))
        given = declared.temporary(variables)
        temporary = "" if given is None else spaces[0] + given
        if given is not None and any(
            space + given in known for space in spaces for known in (self._renamed, self._temporaries)
        ):
            raise HarborError(ErrorCode.CONFLICT, f"the temporary id {given:.100} was used before")
        named = self._named(variables, request.account)
        for old in named & self._renamed.keys():
            new, said = self._renamed[old][0], of_topic(old)[1]
            if new is None:
                raise HarborError(ErrorCode.CONFLICT, f"what has the temporary id {said:.100} was not created")
            variables = declared.renamed(variables, said, new)
        laid: list[Keyed] = list(declared.optimistic_operations(variables, request.mutation))
        declared.request(variables, request.mutation)
        held = orjson.dumps(variables)
        self._shares.require(request.account, _size(held, laid))
        delay_ms = declared.delay_ms if request.delay_ms is None else request.delay_ms
        self._number += 1
        record = MutationRecord(
            request.mutation,
            request.name,
            held,
            request.scope,
            self._number,
            now_ms,
            now_ms + delay_ms,
            owner,
            laid,
            temporary=temporary,
            awaits=sorted(named & self._temporaries.keys()),
            author=request.author,
            digest=_digest(request.variables),
            account=request.account,
        )
        self._keep(record)
        self._enter(record)
        if temporary:
            self._create(temporary, record.id, record.variables)
        if delay_ms > 0:
            record.status = Status.SCHEDULED
            self._wait(record.id, record.due_ms)
        self._changed(record.id)
        self._lay(record)
        self._advance(record.scope)
        return record.view()

    def undo(self, mutation: str, now_ms: float) -> MutationView | Failure:
        """Cancel what was not sent yet."""
        self._now_ms = now_ms
        record = self.records.get(mutation)
        if record is None:
            return Failure(ErrorCode.NOT_FOUND, f"no mutation {mutation:.128}")
        if record.status is Status.CANCELLED:
            return record.view()
        if record.status.was_sent:
            return Failure(ErrorCode.CONFLICT, f"the mutation cannot be undone any more: it is {record.status}")
        # What could not be reached may have got it all the same: what it is about is to be looked at again.
        self._settle(record, Status.CANCELLED, result=_doubts(record) if record.attempts else [])
        return record.view()

    def listed(self, asked: ListMutations) -> MutationList:
        """Return the mutation of an id, or a page of those that are asked for: the newest, or the oldest; the oldest first."""
        if asked.mutation:
            record = self.records.get(asked.mutation)
            return MutationList([] if record is None else [record.view()])
        found = (
            each
            for each in self.records.values()
            if (not asked.statuses or each.status in asked.statuses)
            and each.id.startswith(asked.tenant)
            and (asked.names is None or names(asked.names, each.name))
        )
        if asked.newest:
            return MutationList([each.view() for each in nlargest(asked.newest, found, key=_place)][::-1])
        first = nsmallest(asked.limit + 1, (each for each in found if _place(each) > asked.after), key=_place)
        page: list[MutationView] = []
        size = 0
        for record in first[: asked.limit]:
            size += len(record.result or b"")
            if page and size > MAX_LISTED_BYTES:
                break
            page.append(record.view())
        return MutationList(page, len(first) > len(page))

    def regained(self, author: str, owner: str) -> list[MutationView]:
        """Return what a session began that has come back to a gateway, the oldest first; of what is settled the latest.

        That gateway is told of them from now on.
        """
        records = sorted(
            (self.records[each] for each in self._authors.get(author, ())),
            key=lambda each: (each.settled_ms, each.number),
        )
        settled = [each for each in records if each.status.is_settled]
        shown = [each for each in records if not each.status.is_settled]
        for record in shown:
            self._also_tell(record, owner)
        size = 0
        for record in settled[: -MAX_REGAINED - 1 : -1]:
            size += len(record.result or b"")
            if size > MAX_REGAINED_BYTES:
                break
            shown.append(record)
        return [each.view() for each in sorted(shown, key=lambda each: each.number)]

    def _also_tell(self, record: MutationRecord, owner: str) -> None:
        if owner != record.owner and owner not in record.others:
            record.others.append(owner)
            self._changed(record.id)

    def _keep(self, record: MutationRecord) -> None:
        self.records[record.id] = record
        if record.author:
            self._authors.setdefault(record.author, {})[record.id] = None

    def _drop(self, record: MutationRecord) -> None:
        del self.records[record.id]
        if record.author:
            ids = self._authors[record.author]
            del ids[record.id]
            if not ids:
                del self._authors[record.author]

    def oldest_ms(self, now_ms: float) -> float:
        """Return for how long the oldest that is not settled could have been sent; 0: there is none."""
        heads = [waiting[0].due_ms for waiting in self._scopes.values()]
        return max(0.0, now_ms - min(heads, default=now_ms))

    # --- services ------------------------------------------------------------------------------------------------

    def offline_ms(self, service: str, now_ms: float) -> float:
        """Return for how long mutations have waited for a service that cannot be reached; 0: none does."""
        outage = self._outages.get(service)
        return 0.0 if outage is None else max(0.0, now_ms - outage.since_ms)

    def responded(self, call: StartMutation, answer: Response | UpstreamError, now_ms: float) -> None:
        """A request ended: with a response, or not."""
        self._now_ms = now_ms
        self._under_way.discard(call.mutation)
        record = self.records.get(call.mutation)
        service = call.request.service
        is_missed = (
            isinstance(answer, UpstreamError)
            and answer.retryable
            and (answer.status is None or answer.status in UNREACHABLE)
            and bool(service)
        )
        if is_missed:
            self._missed(service)
        else:
            self.reached(service, now_ms)
        if record is not None and record.status is Status.PENDING and record.attempts == call.attempt:
            if isinstance(answer, UpstreamError) and record.id in self._confirmed:
                self._succeed(record, self._confirmed[record.id], by_stream=True)
                self._gainsaid(record, answer)
            elif is_missed:
                self._pause(record)
            elif isinstance(answer, UpstreamError):
                self._refused(record, answer)
            else:
                self._succeed(record, answer.body)
        elif record is not None and record.status is Status.SUCCESS and isinstance(answer, UpstreamError):
            self._gainsaid(record, answer)
        if record is not None and record.status.is_settled and not record.unlifted:
            self._close(record)
            self._changed(record.id)
        self._send_ready()

    def _gainsaid(self, record: MutationRecord, answer: UpstreamError) -> None:
        """A service's error comes for what a stream says was carried out."""
        if not answer.retryable:
            self._tell(record, Lift(f"{record.id}{LATE}", [], _doubts(record)), again=False)

    def unsent(self, call: StartMutation, now_ms: float) -> None:
        """A request must not be sent yet, since what was to be stored before it could not be: try both again in a while."""
        self._now_ms = now_ms
        self._under_way.discard(call.mutation)
        record = self.records.get(call.mutation)
        if record is not None and record.status is Status.PENDING and record.attempts == call.attempt:
            self._wait(record.id, now_ms + UNSTORED_MS)
        self._send_ready()

    def _refused(self, record: MutationRecord, answer: UpstreamError) -> None:
        declared = self._declared[record.name]
        if answer.is_conflict and declared.conflict != "fail" and record.conflicts < MAX_CONFLICTS:
            record.conflicts += 1
            record.etag = "*" if declared.conflict == "overwrite" else answer.etag
            if declared.conflict == "merge":
                record.variables = orjson.dumps(_brought_up(orjson.loads(record.variables), answer.body))
                self._weigh(record)
            self._changed(record.id)
            self._ready[record.id] = None
            return
        wait = declared.retry_after(record.failures, answer)
        limit = declared.max_age_ms
        if wait is not None and (limit is None or self._now_ms + wait - record.due_ms <= limit):
            record.failures += 1
            self._wait(record.id, self._now_ms + wait)
            self._changed(record.id)
            return
        code = ErrorCode.CONFLICT if answer.is_conflict else answer.code
        self._fail(record, code, answer.message)

    def _succeed(self, record: MutationRecord, body: bytes | None, *, by_stream: bool = False) -> None:
        declared = self._declared[record.name]
        variables = orjson.loads(record.variables)
        response = None if body is None else orjson.loads(body)
        renamed = declared.assigned(response) if record.temporary else None
        if renamed is not None:
            variables = declared.renamed(variables, of_topic(record.temporary)[1], renamed)
        try:
            lasting = declared.optimistic_operations(variables, record.id)
        except HarborError:  # the id that it was given does not fit where the temporary one did
            lasting = []
        result = [] if by_stream else declared.result_operations(variables, record.id, response)
        result = [*result, *declared.invalidations(variables, record.id, response)]
        record.result = body
        self._settle(record, Status.SUCCESS, lasting=list(lasting), result=list(result), renamed=renamed)

    def heard(self, name: str, channel: str, data: Any, now_ms: float) -> None:
        """A stream has an event that may confirm mutations of a name."""
        self._now_ms = now_ms
        sent = self._sent.get(name)
        declared = self._declared.get(name)
        if not sent or declared is None or declared.confirm is None:
            return
        for record in list(sent.values()):
            if record.id in self._confirmed or not declared.confirms(
                orjson.loads(record.variables), record.id, channel, data
            ):
                continue
            if record.temporary and record.id in self._under_way and declared.assigned(data) is None:
                self._confirmed[record.id] = orjson.dumps(data)
                return
            if record.status is not Status.PENDING:
                if record.status is Status.PAUSED:
                    self._resume(record)
                self._move(record, Status.PENDING)
            self._succeed(record, orjson.dumps(data), by_stream=True)
            return

    def _missed(self, service: str) -> None:
        outage = self._outages.get(service)
        if outage is None:
            self._outages[service] = _Outage(self._now_ms, self._now_ms + PROBE_MS)
        elif outage.is_probed:
            outage.is_probed = False
            outage.delay_ms = min(2 * outage.delay_ms, MAX_PROBE_MS)
            outage.probe_at = self._now_ms + outage.delay_ms

    def reached(self, service: str, now_ms: float) -> None:
        """A service has answered: what waits for it goes on."""
        self._now_ms = now_ms
        if self._outages.pop(service, None) is None:
            return
        for mutation in self._paused.pop(service, {}):
            record = self.records[mutation]
            self._move(record, Status.QUEUED)
            self._ready[mutation] = None
        self._send_ready()

    def _pause(self, record: MutationRecord) -> None:
        self._move(record, Status.PAUSED)
        self._paused.setdefault(self._declared[record.name].service, {})[record.id] = None

    def _resume(self, record: MutationRecord) -> None:
        """Paused no longer, whatever it is then."""
        self._paused.get(self._declared[record.name].service, {}).pop(record.id, None)

    # --- time ----------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When anything is due."""
        while self._due and self._waiting.get(self._due[0][1]) != self._due[0][0]:
            heappop(self._due)
        times = [outage.probe_at for outage in self._outages.values()]
        if self._due:
            times.append(self._due[0][0])
        return min(times, default=None)

    def _wait(self, mutation: str, until_ms: float) -> None:
        self._waiting[mutation] = until_ms
        heappush(self._due, (until_ms, mutation))
        if len(self._due) > KEPT + 2 * len(self._waiting):
            # Those that were undone would stay until their time.
            self._due = [(at, each) for each, at in self._waiting.items()]
            heapify(self._due)

    def wake(self, now_ms: float) -> None:
        """Send what is due, and try services that could not be reached."""
        self._now_ms = now_ms
        while self._due and self._due[0][0] <= now_ms:
            at, mutation = heappop(self._due)
            if self._waiting.get(mutation) != at:
                continue
            del self._waiting[mutation]
            record = self.records[mutation]
            if record.status is Status.SCHEDULED:
                self._move(record, Status.QUEUED)
                self._advance(record.scope)
            elif record.status is Status.PENDING:
                self._ready[mutation] = None
        for service, outage in list(self._outages.items()):
            if outage.probe_at <= now_ms:
                self._probe(service, outage)
        self._send_ready()

    def _probe(self, service: str, outage: _Outage) -> None:
        for mutation in list(self._paused.get(service, ())):
            self._is_too_old(self.records[mutation])
        head = next(iter(self._paused.get(service, ())), None)
        if head is None:
            del self._outages[service]
            return
        outage.probe_at = self._now_ms + MAX_PROBE_MS  # should there be no answer at all
        if head not in self._under_way:
            outage.is_probed = True
            record = self.records[head]
            self._resume(record)
            self._send(record)

    # --- the life of one -----------------------------------------------------------------------------------------

    def _enter(self, record: MutationRecord) -> None:
        self._weigh(record)
        self._scopes.setdefault(record.scope, deque()).append(record)
        if record.attempts:
            self._sent.setdefault(record.name, {})[record.id] = record

    def _weigh(self, record: MutationRecord) -> None:
        self._shares.take(record.id, record.account, _size(record.variables, record.laid))

    def _move(self, record: MutationRecord, status: Status) -> None:
        assert status in NEXT[record.status], f"{record.status} -> {status}"
        record.status = status
        self._changed(record.id)
        self.told[record.id] = record

    def _advance(self, scope: str) -> None:
        """Send the first of a scope, if it is its turn."""
        waiting = self._scopes.get(scope)
        if waiting and waiting[0].status is Status.QUEUED and waiting[0].id not in self._waiting:
            self._ready[waiting[0].id] = None
            self._send_ready()

    def _send_ready(self) -> None:
        if self._is_sending:
            return  # what is ready now is sent by the loop that is under way
        self._is_sending = True
        try:
            self._send_all_ready()
        finally:
            self._is_sending = False

    def _send_all_ready(self) -> None:
        while self._ready and len(self._under_way) < PARALLEL:
            mutation = next(iter(self._ready))
            del self._ready[mutation]
            record = self.records.get(mutation)
            if record is None or record.status not in (Status.QUEUED, Status.PENDING):
                continue
            if self._is_too_old(record):
                continue
            if record.status is Status.QUEUED:
                temporary = self._awaits(record)
                if temporary is not None and self._waits_for(temporary, record.temporary):
                    self._fail(
                        record,
                        ErrorCode.CONFLICT,
                        f"it and what has the temporary id {of_topic(temporary)[1]:.100} wait for each other",
                    )
                    continue
                if temporary is not None:
                    self._blocked.setdefault(temporary, {})[mutation] = None
                    if temporary not in record.awaits:
                        record.awaits.append(temporary)
                        self._changed(mutation)
                    continue
                if self._declared[record.name].service in self._outages:
                    self._pause(record)
                    continue
            self._send(record)

    def _is_too_old(self, record: MutationRecord) -> bool:
        """Give up a mutation that has waited for its service longer than it may. Returns whether it was one."""
        declared = self._declared[record.name]
        limit = declared.max_age_ms
        if limit is None or record.status is Status.PENDING or self._now_ms - record.due_ms <= limit:
            return False
        message = f"it has waited for over {limit / 1000:g} s" + (
            f" for service {declared.service}" if declared.service else ""
        )
        self._fail(record, ErrorCode.UPSTREAM_OFFLINE, message)
        return True

    def _named(self, variables: dict[str, Any], account: str) -> set[str]:
        """Return all texts among what somebody of an account gave as variables, as temporary ids are kept."""
        declared = next(iter(self._declared.values()), None)  # where one is confined all are
        try:
            tenant = NOBODYS if declared is None else declared.tenant_of(variables)
        except HarborError:
            return set()
        texts = set(_walk(variables if declared is None else declared.said(variables)))
        return {space + text for space in _spaces(account, tenant) for text in texts}

    def _awaits(self, record: MutationRecord) -> str | None:
        """Return the temporary id of something that is still to be created, if the mutation names one."""
        if not self._temporaries:
            return None
        named = self._named(orjson.loads(record.variables), record.account) & self._temporaries.keys()
        return next((each for each in named if self._temporaries[each] != record.id), None)

    def _waits_for(self, waiting: str, wanted: str) -> bool:
        """Whether what has one temporary id waits, itself or by others, for what has another."""
        seen, open_ = {waiting}, [waiting]
        while wanted and open_:
            temporary = open_.pop()
            variables = orjson.loads(self._creations.get(temporary, b"{}"))
            named = self._named(variables, _account_of(temporary)) & self._temporaries.keys()
            if wanted in named:
                return True
            open_.extend(named - seen)
            seen |= named
        return False

    def _send(self, record: MutationRecord) -> None:
        declared = self._declared[record.name]
        try:
            request = declared.request(orjson.loads(record.variables), record.id, record.etag)
        except HarborError as error:  # the configuration has changed since it was taken in
            self._fail(record, error.code, error.message)
            return
        record.attempts += 1
        if record.status is Status.PENDING:
            self._changed(record.id)
        else:
            self._move(record, Status.PENDING)
        self._sent.setdefault(record.name, {})[record.id] = record
        self._under_way.add(record.id)
        self.calls.append(StartMutation(record.id, record.attempts, request))

    def _fail(self, record: MutationRecord, code: str, message: str) -> None:
        record.error = (str(code), message)
        declared = self._declared.get(record.name)
        doubts: list[Keyed] = []
        if declared is not None and declared.invalidate:
            doubts = list(declared.invalidations(orjson.loads(record.variables), record.id, None))
        self._settle(record, Status.ERROR, result=doubts)

    def _settle(
        self,
        record: MutationRecord,
        status: Status,
        *,
        lasting: list[Keyed] | None = None,
        result: list[Keyed] | None = None,
        renamed: Any = None,
    ) -> None:
        if record.status is Status.PAUSED:
            self._resume(record)
        self._move(record, status)
        record.settled_ms = self._now_ms
        self.settled[status] += 1
        self._shares.give_back(record.id)
        self._remember(record)
        self._waiting.pop(record.id, None)
        self._ready.pop(record.id, None)
        self._sent.get(record.name, {}).pop(record.id, None)
        self._confirmed.pop(record.id, None)
        lift = Lift(
            record.id,
            lasting or [],
            result or [],
            record.temporary,
            renamed,
            failed=status is Status.ERROR,
            created_ms=record.created_ms,
        )
        self._tell(record, lift)
        waiting = self._scopes[record.scope]
        waiting.remove(record)
        if waiting:
            self._advance(record.scope)
        else:
            del self._scopes[record.scope]

    def _tell(self, record: MutationRecord, lift: Lift, *, again: bool = True) -> None:
        """Tell the shards that a mutation concerns what comes of it; `again`: until they have said that they know."""
        touched = [*record.laid, *lift.lasting, *lift.result]
        shards: Iterable[int] = range(self._shards)
        if not lift.temporary and not any(broadcast.is_broadcast(key) for key, _ in touched):
            shards = sorted({self._place(key) for key, _ in touched})
        if again:
            record.lift, record.unlifted = lift, list(shards)
        for shard in shards:
            self.items.setdefault(shard, []).append(self._part(shard, lift))
        if again and not record.unlifted:
            self._close(record)

    def lifted(self, shard: int, mutation: str) -> None:
        """A shard has what lasts of a mutation."""
        record = self.records.get(mutation)
        if record is not None and shard in record.unlifted:
            record.unlifted.remove(shard)
            self._changed(mutation)
            if not record.unlifted:
                self._close(record)
                self._forget()

    def _close(self, record: MutationRecord) -> None:
        """Everybody knows: what it was made of is of no use any more, unless an answer is to come that may say otherwise."""
        if record.id in self._under_way:
            return
        record.laid, record.variables = [], b"{}"
        if record.lift is not None:
            record.lift = Lift(record.id, [], [], record.lift.temporary, record.lift.renamed)

    def laid(self, lay: Lay) -> None:
        """Any shard's mutation is to create something."""
        if lay.temporary and lay.temporary not in self._renamed:
            self._create(lay.temporary, lay.mutation, lay.variables)

    def _create(self, temporary: str, mutation: str, variables: bytes) -> None:
        self._temporaries[temporary], self._creations[temporary] = mutation, variables

    def rename(self, lift: Lift, now_ms: float) -> None:
        """What had a temporary id has another, or will never be: that counts here too, in what waits."""
        self._now_ms = now_ms
        old, new = lift.temporary, lift.renamed
        if not old or (old in self._renamed and self._renamed[old][0] == new):
            return
        self._temporaries.pop(old, None)
        self._creations.pop(old, None)
        self._renamed[old] = (new, now_ms + MEMORY_MS)
        is_sending, self._is_sending = self._is_sending, True  # none of those that go on for it, before all know
        for record in [each for waiting in self._scopes.values() for each in waiting]:
            self._rename(record, old, new)
        self._is_sending = is_sending
        for mutation in self._blocked.pop(old, {}):
            self._ready[mutation] = None
        self._send_ready()

    def _rename(self, record: MutationRecord, old: str, new: Any) -> None:
        """Put what something is called now into a mutation that names it; give one up that cannot be without it."""
        said = of_topic(old)[1]
        if orjson.dumps(said) not in record.variables:  # to decode all that wait takes long
            return
        variables = orjson.loads(record.variables)
        if old not in self._named(variables, record.account):
            return
        try:
            if new is None:
                raise HarborError(ErrorCode.CONFLICT, f"what has the temporary id {said:.100} was not created")
            declared = self._declared[record.name]
            changed = declared.renamed(variables, said, new)
            made: list[Keyed] = list(declared.optimistic_operations(changed, record.id))
        except HarborError as error:  # or the id that it was given does not fit where the temporary one did
            if record.status is Status.SCHEDULED:
                record.error = (error.code, error.message)
                self._settle(record, Status.CANCELLED)
            elif record.status is not Status.PENDING:
                self._fail(record, error.code, error.message)
            return
        before = {self._place(key) for key, _ in record.laid}
        record.variables = orjson.dumps(changed)
        record.laid = made
        self._weigh(record)
        self._changed(record.id)
        self._lay(record, before)

    def _lay(self, record: MutationRecord, before: Iterable[int] = ()) -> None:
        shards: Iterable[int] = {*before, *(self._place(key) for key, _ in record.laid)}
        for shard in range(self._shards) if record.temporary else sorted(shards):
            self.items.setdefault(shard, []).append(self._lay_for(shard, record))

    def _lay_for(self, shard: int, record: MutationRecord) -> Lay:
        declared = self._declared.get(record.name)
        restores = declared is not None and declared.rollback == "snapshot"
        return Lay(
            record.id,
            record.number,
            self._of(shard, record.laid),
            record.temporary,
            restores,
            record.name,
            record.variables,
            record.created_ms,
            record.scope,
        )

    def _lift_for(self, shard: int, record: MutationRecord) -> Lift:
        assert record.lift is not None
        return self._part(shard, record.lift)

    def _part(self, shard: int, lift: Lift) -> Lift:
        return Lift(
            lift.mutation,
            self._of(shard, lift.lasting),
            self._of(shard, lift.result),
            lift.temporary,
            lift.renamed,
            lift.failed,
            lift.created_ms,
        )

    def _of(self, shard: int, operations: list[Keyed]) -> list[Keyed]:
        return [
            (key, operation)
            for key, operation in operations
            if broadcast.is_broadcast(key) or self._place(key) == shard
        ]

    def _remember(self, record: MutationRecord) -> None:
        self._settled.append(record)
        self._result_bytes += len(record.result or b"")

    def _forget(self) -> None:
        """Forget the oldest of what was settled long ago, or takes too much."""
        settled = self._settled
        for _ in range(8):
            if not settled or settled[0].unlifted:
                break
            is_too_much = len(settled) > MAX_SETTLED or self._result_bytes > MAX_RESULT_BYTES
            if settled[0].settled_ms + MEMORY_MS > self._now_ms and not is_too_much:
                break
            record = settled.popleft()
            self._result_bytes -= len(record.result or b"")
            self._drop(record)
            self._changed(record.id)
        for old, (_, until) in list(islice(self._renamed.items(), 8)):
            if until <= self._now_ms:
                del self._renamed[old]


def _digest(variables: bytes) -> bytes:
    return sha256(orjson.dumps(orjson.loads(variables), option=orjson.OPT_SORT_KEYS)).digest()[:16]


def _size(variables: bytes, laid: list[Keyed]) -> int:
    return len(variables) + sum(len(key) + held_bytes(operation) for key, operation in laid)


def _spaces(account: str, tenant: Tenant) -> list[str]:
    """Return what stands before temporary ids, which clients choose: in each account and tenant they are others.

    The second, before those of whom no account was known, is that of earlier releases.
    """
    shared = tenant.inside_topic("")
    return [f"{account}\n{tenant.name}{TOPIC_MARK}", shared] if account else [shared]


def _account_of(temporary: str) -> str:
    space, mark, _ = temporary.partition(TOPIC_MARK)
    return space.partition("\n")[0] if mark and "\n" in space else ""


def _place(record: MutationRecord) -> MutationPlace:
    return int(record.created_ms), record.number, record.id


def _doubts(record: MutationRecord) -> list[Keyed]:
    """Return what has the keys that a mutation is about looked at again."""
    keys = dict.fromkeys(key for key, _ in record.laid)
    return [(key, Invalidate(exact=True)) for key in keys if not broadcast.is_broadcast(key)]


def _brought_up(variables: dict[str, Any], body: Any) -> dict[str, Any]:
    """Return variables that name the version which a service says, in its refusal, that it has."""
    said = body.get("current", body) if isinstance(body, dict) else None
    version = said.get("version") if isinstance(said, dict) else None
    return variables if version is None else {**variables, **{name: version for name in VERSIONS if name in variables}}


def _walk(value: Any) -> Iterator[str]:
    """Yield every text within JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _walk(member)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)
