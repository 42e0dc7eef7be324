"""The mutations whose home a shard is: when each is sent, what comes of it, and what the views of all shards are to show meanwhile.

A client's change goes to a service that may be slow, may answer twice or not at all, and may be gone for hours; meanwhile everybody is to
see it, and nobody may see it twice. So one shard, the mutation's home, is its authority: it stores the mutation before it sends it,
sends it with an idempotency key until there is an answer, and only then says, once, what lasts. Shards that hold entries it is about
show its operations as overlays over their bases; they keep nothing of it, and are told again whenever either end starts anew.

Mutations of one scope are sent one after another, in order. One whose service cannot be reached is paused, and with it those after it in
its scope; one of the paused is sent now and then to see whether the service is back, and then all go on in order.

What must not live here: what a mutation is made of (`mutation`), how views come about (`overlay`, `shard_state`), HTTP.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import orjson
from msgspec import Struct

from cluster.core import broadcast
from cluster.core.declared_query import Response
from cluster.core.messages import Failure, Lay, Lift, Mutate, MutationView
from cluster.core.mutation import NEXT, DeclaredMutation, MutationRequest, Status, replaced
from cluster.core.operation import Invalidate, Operation
from cluster.core.query_key import CanonicalKey
from cluster.core.service_health import MAX_PROBE_MS, PROBE_MS, UNREACHABLE
from cluster.errors import ErrorCode, HarborError, UpstreamError

PARALLEL = 32
"""Requests under way at once, from one shard: as many as it has connections to one service."""
MAX_UNSETTLED = 100_000
"""Mutations of one home that wait; more are refused."""
MEMORY_MS = 600_000.0
"""How long a settled mutation is remembered: for who asks what came of it, and for who sends it again."""


class Record(Struct, array_like=True):
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
    laid: list[tuple[str, Operation]]
    """What views show of it, by key."""
    status: Status = Status.QUEUED
    attempts: int = 0
    """How often it was sent."""
    failures: int = 0
    """Answers after which it is sent again."""
    temporary: str | None = None
    result: bytes | None = None
    error: tuple[str, str] | None = None
    settled_ms: float = 0.0
    lift: Lift | None = None
    unlifted: list[int] = []
    """Shards that have not said yet that they have it."""

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
        )


class StartMutation(Struct, frozen=True):
    """Effect: send `request`; feed what comes of it to `mutated`, with this."""

    mutation: str
    attempt: int
    request: MutationRequest


class _Outage(Struct):
    probe_at: float
    delay_ms: float = PROBE_MS


class MutationQueue:
    """See the module. What is to be done gathers in `calls`, `told` and `items` for its shard to take."""

    def __init__(
        self,
        shard: int,
        shards: int,
        place: Callable[[CanonicalKey], int],
        declared: Mapping[str, DeclaredMutation],
        changed: Callable[[str], None],
    ) -> None:
        """`place`: shard of a key; `changed`: is told the id of a record that is to be stored, or was forgotten."""
        self.shard = shard
        self._shards = shards
        self._place = place
        self._declared = declared
        self._changed = changed
        self.records: dict[str, Record] = {}
        """By id, oldest first."""
        self._scopes: dict[str, deque[Record]] = {}
        """Those that are not settled, in order."""
        self._ready: dict[str, None] = {}
        """To be sent as soon as there is a connection."""
        self._waiting: dict[str, float] = {}
        """When a delay or a wait for another try ends, by id."""
        self._outages: dict[str, _Outage] = {}
        """Services that cannot be reached."""
        self._under_way: set[str] = set()
        self._renamed: dict[str, tuple[Any, float]] = {}
        """(the id it has now, until when that is remembered), by temporary id."""
        self._number = 0
        self._now_ms = 0.0
        self.calls: list[StartMutation] = []
        self.told: dict[str, Record] = {}
        """Records whose status has changed."""
        self.items: dict[int, list[Lay | Lift]] = {}
        """What shards are to be told."""

    # --- what is stored ------------------------------------------------------------------------------------------

    def restore(self, records: Iterable[Record], now_ms: float) -> None:
        """Begin with what was stored: what was under way is sent again, with the same idempotency key."""
        self._now_ms = now_ms
        for record in sorted(records, key=lambda each: each.number):
            self._number = max(self._number, record.number)
            self.records[record.id] = record
            if record.lift is not None and record.lift.renamed is not None:
                self._renamed[record.lift.renamed[0]] = (record.lift.renamed[1], record.settled_ms + MEMORY_MS)
            if record.status.is_settled:
                continue
            self._scopes.setdefault(record.scope, deque()).append(record)
            if record.status is Status.SCHEDULED:
                self._waiting[record.id] = record.due_ms
            else:
                record.status = Status.QUEUED
        for shard in range(self._shards):
            if outstanding := self.outstanding(shard):
                self.items[shard] = outstanding
        for scope in list(self._scopes):
            self._advance(scope)

    def outstanding(self, shard: int) -> list[Lay | Lift]:
        """Return all that a shard is to know."""
        found: list[Lay | Lift] = []
        for record in self.records.values():
            if not record.status.is_settled:
                if laid := self._of(shard, record.laid):
                    found.append(Lay(record.id, record.number, laid))
            elif shard in record.unlifted:
                found.append(self._lift_for(shard, record))
        return found

    # --- clients -------------------------------------------------------------------------------------------------

    def begin(self, request: Mutate, owner: str, now_ms: float) -> MutationView:
        """Take a mutation in, or say how it is where it is known.

        Raises:
            HarborError: `UNKNOWN_MUTATION`, `INVALID_VARIABLES`, `CONFLICT` (a temporary id is used twice), `TOO_MANY`.
        """
        self._now_ms = now_ms
        self._forget()
        record = self.records.get(request.mutation)
        if record is not None:
            record.owner = owner
            return record.view()
        declared = self._declared.get(request.name)
        if declared is None:
            raise HarborError(ErrorCode.UNKNOWN_MUTATION, f"no mutation {request.name:.100} is declared")
        if len(self._scopes) >= MAX_UNSETTLED or len(self._scopes.get(request.scope, ())) >= MAX_UNSETTLED:
            raise HarborError(ErrorCode.TOO_MANY, f"{MAX_UNSETTLED} mutations wait already")
        variables = orjson.loads(request.variables)
        temporary = declared.temporary(variables)
        if temporary is not None and (temporary in self._renamed or temporary in self._temporaries()):
            raise HarborError(ErrorCode.CONFLICT, f"the temporary id {temporary:.100} was used before")
        for old, (new, _) in self._renamed.items():
            variables = replaced(variables, old, new)
        laid = declared.optimistic_operations(variables, request.mutation)
        declared.request(variables, request.mutation)
        delay_ms = declared.delay_ms if request.delay_ms is None else request.delay_ms
        self._number += 1
        record = Record(
            request.mutation,
            request.name,
            orjson.dumps(variables),
            request.scope,
            self._number,
            now_ms,
            now_ms + delay_ms,
            owner,
            [(key, operation) for key, operation in laid],
            temporary=temporary,
        )
        self.records[record.id] = record
        self._scopes.setdefault(record.scope, deque()).append(record)
        if delay_ms > 0:
            record.status = Status.SCHEDULED
            self._waiting[record.id] = record.due_ms
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
        result = [(key, Invalidate(exact=True)) for key, _ in record.laid] if record.attempts else []
        self._settle(record, Status.CANCELLED, Lift(record.id, [], list(result)))
        return record.view()

    def listed(self, mutation: str, statuses: list[str]) -> list[MutationView]:
        """Return the mutations of some statuses, or the one of an id."""
        if mutation:
            record = self.records.get(mutation)
            return [] if record is None else [record.view()]
        return [each.view() for each in self.records.values() if not statuses or each.status in statuses]

    @property
    def unsettled(self) -> int:
        """How many are not settled."""
        return sum(map(len, self._scopes.values()))

    # --- services ------------------------------------------------------------------------------------------------

    def responded(self, call: StartMutation, answer: Response | UpstreamError, now_ms: float) -> None:
        """A request ended: with a response, or not."""
        self._now_ms = now_ms
        self._under_way.discard(call.mutation)
        record = self.records.get(call.mutation)
        if record is None or record.status is not Status.PENDING or record.attempts != call.attempt:
            self._send_ready()
            return
        service = call.request.service
        if isinstance(answer, UpstreamError):
            if answer.retryable and (answer.status is None or answer.status in UNREACHABLE):
                self._missed(service)
                self._move(record, Status.PAUSED)
                self._send_ready()
                return
            self._reached(service)
            wait = self._declared[record.name].retry_after(record.failures, answer)
            if wait is not None:
                record.failures += 1
                self._waiting[record.id] = now_ms + wait
                self._changed(record.id)
            else:
                record.error = (str(answer.code), answer.message)
                self._settle(record, Status.ERROR, Lift(record.id, [], []))
        else:
            self._reached(service)
            self._succeed(record, answer)
        self._send_ready()

    def _succeed(self, record: Record, answer: Response) -> None:
        declared = self._declared[record.name]
        variables = orjson.loads(record.variables)
        response = None if answer.body is None else orjson.loads(answer.body)
        renamed = None
        known = response.get("id") if isinstance(response, dict) else None
        if record.temporary is not None and known is not None:
            renamed = (record.temporary, known)
            variables = replaced(variables, *renamed)
            self._renamed[record.temporary] = (known, self._now_ms + MEMORY_MS)
        try:
            lasting = declared.optimistic_operations(variables, record.id)
        except HarborError:  # the id that it was given does not fit where the temporary one did
            lasting = []
        result = declared.result_operations(variables, record.id, response)
        record.result = answer.body
        self._settle(record, Status.SUCCESS, Lift(record.id, list(lasting), list(result), renamed))

    def _missed(self, service: str) -> None:
        outage = self._outages.get(service)
        if outage is None:
            self._outages[service] = _Outage(self._now_ms + PROBE_MS)
        elif outage.probe_at <= self._now_ms:
            outage.delay_ms = min(2 * outage.delay_ms, MAX_PROBE_MS)
            outage.probe_at = self._now_ms + outage.delay_ms

    def _reached(self, service: str) -> None:
        if self._outages.pop(service, None) is None:
            return
        for record in self.records.values():
            if record.status is Status.PAUSED and self._declared[record.name].service == service:
                self._move(record, Status.QUEUED)
                self._ready[record.id] = None

    # --- time ----------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When anything is due."""
        times = list(self._waiting.values())
        times.extend(outage.probe_at for outage in self._outages.values())
        return min(times, default=None)

    def wake(self, now_ms: float) -> None:
        """Send what is due, and try services that could not be reached."""
        self._now_ms = now_ms
        for mutation, at in list(self._waiting.items()):
            if at > now_ms:
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
        paused = [
            record
            for record in self.records.values()
            if record.status is Status.PAUSED and self._declared[record.name].service == service
        ]
        for record in paused:
            limit = self._declared[record.name].max_age_ms
            if limit is not None and self._now_ms - record.created_ms > limit:
                record.error = (ErrorCode.UPSTREAM_OFFLINE, f"service {service} could not be reached for {limit:g} ms")
                self._settle(record, Status.ERROR, Lift(record.id, [], []))
        head = next((record for record in paused if record.status is Status.PAUSED), None)
        if head is None:
            self._outages.pop(service)
            return
        if head.id not in self._under_way:
            outage.probe_at = self._now_ms
            self._send(head)
        outage.probe_at = max(outage.probe_at, self._now_ms)

    # --- the life of one -----------------------------------------------------------------------------------------

    def _move(self, record: Record, status: Status) -> None:
        assert status in NEXT[record.status], f"{record.status} -> {status}"
        record.status = status
        self._changed(record.id)
        self.told[record.id] = record

    def _advance(self, scope: str) -> None:
        """Send the first of a scope, if it is its turn."""
        waiting = self._scopes.get(scope)
        if waiting and waiting[0].status is Status.QUEUED:
            self._ready[waiting[0].id] = None
            self._send_ready()

    def _send_ready(self) -> None:
        while self._ready and len(self._under_way) < PARALLEL:
            mutation = next(iter(self._ready))
            del self._ready[mutation]
            record = self.records.get(mutation)
            if record is None or record.status not in (Status.QUEUED, Status.PENDING):
                continue
            if record.status is Status.QUEUED and self._declared[record.name].service in self._outages:
                self._move(record, Status.PAUSED)
                continue
            self._send(record)

    def _send(self, record: Record) -> None:
        declared = self._declared[record.name]
        try:
            request = declared.request(orjson.loads(record.variables), record.id)
        except HarborError as error:  # the configuration has changed since it was taken in
            record.error = (str(error.code), error.message)
            self._settle(record, Status.ERROR, Lift(record.id, [], []))
            return
        record.attempts += 1
        if record.status is Status.PENDING:
            self._changed(record.id)
        else:
            self._move(record, Status.PENDING)
        self._under_way.add(record.id)
        self.calls.append(StartMutation(record.id, record.attempts, request))

    def _settle(self, record: Record, status: Status, lift: Lift) -> None:
        self._move(record, status)
        record.settled_ms = self._now_ms
        record.lift = lift
        self._waiting.pop(record.id, None)
        self._ready.pop(record.id, None)
        touched = [*record.laid, *lift.lasting, *lift.result]
        everywhere = lift.renamed is not None or any(broadcast.is_broadcast(key) for key, _ in touched)
        shards = range(self._shards) if everywhere else sorted({self._place(CanonicalKey(key)) for key, _ in touched})
        record.unlifted = list(shards)
        for shard in record.unlifted:
            self.items.setdefault(shard, []).append(self._lift_for(shard, record))
        waiting = self._scopes[record.scope]
        waiting.remove(record)
        if waiting:
            self._advance(record.scope)
        else:
            del self._scopes[record.scope]

    def lifted(self, shard: int, mutation: str) -> None:
        """A shard has what lasts of a mutation."""
        record = self.records.get(mutation)
        if record is not None and shard in record.unlifted:
            record.unlifted.remove(shard)
            self._changed(mutation)

    def rename(self, old: str, new: Any, now_ms: float) -> None:
        """A temporary id has become another: here too, in what waits."""
        self._now_ms = now_ms
        self._renamed[old] = (new, now_ms + MEMORY_MS)
        for record in self.records.values():
            if record.status.is_settled:
                continue
            variables = orjson.loads(record.variables)
            changed = replaced(variables, old, new)
            if changed == variables:
                continue
            before = {self._place(CanonicalKey(key)) for key, _ in record.laid}
            record.variables = orjson.dumps(changed)
            record.laid = [*self._declared[record.name].optimistic_operations(changed, record.id)]
            self._changed(record.id)
            self._lay(record, before)

    def _lay(self, record: Record, before: Iterable[int] = ()) -> None:
        for shard in sorted({*before, *(self._place(CanonicalKey(key)) for key, _ in record.laid)}):
            self.items.setdefault(shard, []).append(Lay(record.id, record.number, self._of(shard, record.laid)))

    def _lift_for(self, shard: int, record: Record) -> Lift:
        lift = record.lift
        assert lift is not None
        return Lift(record.id, self._of(shard, lift.lasting), self._of(shard, lift.result), lift.renamed)

    def _of(self, shard: int, operations: list[tuple[str, Operation]]) -> list[tuple[str, Operation]]:
        return [
            (key, operation)
            for key, operation in operations
            if broadcast.is_broadcast(key) or self._place(CanonicalKey(key)) == shard
        ]

    def _temporaries(self) -> set[str]:
        return {
            record.temporary for waiting in self._scopes.values() for record in waiting if record.temporary is not None
        }

    def _forget(self) -> None:
        """Forget the oldest of what was settled long ago."""
        for record in list(self.records.values())[:8]:
            if record.status.is_settled and not record.unlifted and record.settled_ms + MEMORY_MS <= self._now_ms:
                del self.records[record.id]
                self._changed(record.id)
        for old, (_, until) in list(self._renamed.items())[:8]:
            if until <= self._now_ms:
                del self._renamed[old]
