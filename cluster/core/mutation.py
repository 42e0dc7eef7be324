"""Mutations as they are declared: what a client's variables come to in operations, in a request, and in an order among others.

The templates of a mutation's operations are those of rules, over its variables (`{id}`, `{variables}`), its own id (`{mutation_id}`) and,
once the service has answered, `{response}`. They are compiled as the rules of an event are whose data has these members (`in_data`).

It is one thing because all that is declared of a mutation is made of the same variables, of which a tenant's are confined alike.

What must not live here: the life of one mutation (`mutation_queue`), what its operations do to views (`overlay`), HTTP.
"""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Any
from urllib.parse import quote, urlencode

import orjson
from msgspec import Raw, Struct, structs

from cluster.core import broadcast, template
from cluster.core.declared_query import DOTS, as_parameter, as_parameters
from cluster.core.operation import Invalidate, json_equal
from cluster.core.query_key import canonical, elements
from cluster.core.reserved import is_reserved, unreserved
from cluster.core.retry import retry_delay_ms
from cluster.core.rule import Made, RuleOperation, compile_operations, template_text
from cluster.core.template import Literal, MissingCapture, Node, Path
from cluster.core.tenant import NAME_TEXT, NOBODYS, VARIABLE, Tenant, is_name
from cluster.core.transform import HeardOn
from cluster.core.variables import Schema
from cluster.errors import ErrorCode, RequestError

MAX_ID = 128
"""Characters of a mutation's id: it goes into a header and into the store."""
MAX_TEXT = 512
"""Characters of a scope and of a temporary id, which are remembered for as long as the mutation is."""
MAX_TARGET_BYTES = 8_000
"""Of the path and query of what is sent: what every server should take (RFC 9112, 3). What is much longer no HTTP library would send."""


class Status(StrEnum):
    """Where a mutation is in its life."""

    SCHEDULED = "scheduled"
    """It waits for its delay; it can be undone."""
    QUEUED = "queued"
    """It waits for those before it in its scope."""
    PAUSED = "paused"
    """Its service cannot be reached."""
    PENDING = "pending"
    """It was sent."""
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def is_settled(self) -> bool:
        """Whether nothing comes after it."""
        return self in SETTLED

    @property
    def was_sent(self) -> bool:
        """Whether the service may have it."""
        return self in (Status.PENDING, Status.SUCCESS, Status.ERROR)


SETTLED = frozenset({Status.SUCCESS, Status.ERROR, Status.CANCELLED})
NEXT: dict[Status, frozenset[Status]] = {
    Status.SCHEDULED: frozenset({Status.QUEUED, Status.CANCELLED}),
    Status.QUEUED: frozenset({Status.PENDING, Status.PAUSED, Status.CANCELLED, Status.ERROR}),
    Status.PAUSED: frozenset({Status.QUEUED, Status.PENDING, Status.CANCELLED, Status.ERROR}),
    Status.PENDING: frozenset({Status.PAUSED, Status.SUCCESS, Status.ERROR}),
    Status.SUCCESS: frozenset(),
    Status.ERROR: frozenset(),
    Status.CANCELLED: frozenset(),
}
"""What may come after what."""


class Operations:
    """Rules of a mutation, compiled."""

    __slots__ = ("_faults", "_steps")

    def __init__(self, rules: Sequence[RuleOperation]) -> None:
        self._faults: list[str] = []
        self._steps = [compile_operations([rule], _leave_out if rule.optional else self._drop) for rule in rules]

    def made(
        self, variables: dict[str, Any], mutation: str, response: Any, said: dict[str, Any] | None = None
    ) -> tuple[list[Made], list[str]]:
        """Return the operations, by key, and why others came to nothing. `said`: what `{variables}` stands for, if that is less."""
        if not self._steps:
            return [], []
        members = {**variables, "variables": variables if said is None else said, "mutation_id": mutation}
        if response is not None:
            members["response"] = response
        else:
            members.pop("response", None)
        data = orjson.dumps(members)
        made = [each for step in self._steps for each in step(("mutation",), data, None)]
        faults, self._faults[:] = list(self._faults), []
        return made, faults

    def _drop(self, reason: str, detail: str, _data: Raw | bytes, _heard: HeardOn) -> None:
        self._faults.append(detail or reason)


def _leave_out(reason: str, detail: str, data: Raw | bytes, heard: HeardOn) -> None:
    """It was optional."""


class Confirm(Struct, frozen=True):
    """Which event of a stream may say that the service has carried a mutation out, before it answers itself."""

    channel: Node
    event: str
    where: Node = Literal({})
    """An object: members that the event's data must have, with these values."""


class MutationRequest(Struct, frozen=True):
    """A write to a service, or a call of a Python function."""

    service: str
    """Empty: it is a call."""
    method: str
    path: str
    """Percent-encoded, below the service's base URL."""
    params: tuple[tuple[str, str], ...]
    body: bytes | None
    """JSON; None: there is none."""
    idempotency_key: str
    etag: str | None = None
    function: str = ""
    """What is called: `module:qualified.name`."""
    arguments: dict[str, Any] = {}
    """Of the function, by name; it is told the mutation's id beside them if it takes one."""


class DeclaredMutation(Struct, frozen=True):
    """A mutation of the configuration: a write to a service, or a Python function."""

    name: str
    service: str
    method: str
    path: Node
    params: Node | None = None
    body: Node | None = None
    optimistic: tuple[RuleOperation, ...] = ()
    result: tuple[RuleOperation, ...] = ()
    """What its success does beside making the optimistic operations lasting."""
    scope: Node | None = None
    """Those of one scope are sent one after another; None: it has one of its own."""
    temp_id: Path | None = None
    """The variable that is a temporary id, to be replaced by the member `response_id` of the response."""
    retry: int | bool = 0
    retry_delay_ms: float | None = None
    delay_ms: float = 0.0
    max_age_ms: float | None = None
    """How long it may wait for its service; None: for ever."""
    response_id: str = "id"
    omit: tuple[str, ...] = ()
    """Variables that are left out of `{variables}` in the body."""
    confirm: Confirm | None = None
    invalidate: tuple[Node, ...] = ()
    """Templates of keys under which everything is out of date once it is settled."""
    rollback: str = "rebase"
    """What its failure does: rebase (its operations go, what came since stays) | snapshot (what was there before is put back)."""
    conflict: str = "fail"
    """When the service says that what it changes has changed (409, 412): fail | overwrite | merge."""
    schema: Schema | None = None
    """What its variables have to be."""
    function: str | None = None
    """In place of a service."""
    is_confined: bool = False
    """What it does for a tenant stays under the tenant's name."""
    steps: "tuple[Operations, Operations] | None" = None
    """The operations, compiled; made from the rest."""

    def __post_init__(self) -> None:
        structs.force_setattr(self, "steps", (Operations(self.optimistic), Operations(self.result)))

    def validate(self, variables: Any) -> None:
        """Check what a client gave as variables.

        Raises:
            RequestError: `INVALID_VARIABLES`, with the JSON `pointer` and the `reason` as details.
        """
        fault = None if isinstance(variables, dict) else ("", f"expected an object, got {variables!r:.60}")
        if fault is None and self.schema is not None:
            fault = self.schema.fault(variables)
        if fault is not None:
            pointer, reason = fault
            details = {"pointer": pointer, "reason": reason}
            raise RequestError(ErrorCode.INVALID_VARIABLES, f"variables{pointer}: {reason}", details=details)

    def completed(self, variables: dict[str, Any], mutation: str) -> dict[str, Any]:
        """Return the variables with a temporary id: where the client gave none, the mutation's own id is it."""
        if self.temp_id is None:
            return variables
        name = self.temp_id[1:] if self.temp_id[0] == "variables" else self.temp_id
        return {**variables, name[0]: mutation} if len(name) == 1 and name[0] not in variables else variables

    def scope_of(self, variables: dict[str, Any], mutation: str) -> str:
        """Return the scope of a mutation, which also says which shard is its home.

        Raises:
            RequestError: `INVALID_VARIABLES`.
        """
        if self.scope is None:
            return f"id:{mutation}"
        scope = f"scope:{self._fill('scope', self.scope, self.completed(variables, mutation), mutation)}"
        if len(scope) > MAX_TEXT:
            raise RequestError(ErrorCode.INVALID_VARIABLES, f"a scope has at most {MAX_TEXT} characters")
        return scope

    def request(self, variables: dict[str, Any], mutation: str, etag: str | None = None) -> MutationRequest:
        """Return what is sent to the service; `etag`: of what it is to change.

        Raises:
            RequestError: `INVALID_VARIABLES`.
        """
        self.tenant_of(variables)
        if self.function is not None:
            return MutationRequest("", "", "", (), None, mutation, function=self.function, arguments=variables)

        def segment(path: Path) -> str:
            text = as_parameter(_look_up(variables, mutation, path))
            if not text:  # it would change what is above: all of a collection in place of one
                raise RequestError(ErrorCode.INVALID_VARIABLES, f"the path needs more than an empty {'.'.join(path)}")
            return quote(text, safe="")

        try:
            path = str(template.build(self.path, segment))
        except MissingCapture as error:
            raise _missing("path", self.path, variables, mutation) from error
        if not DOTS.isdisjoint(path.split("/")):
            raise RequestError(ErrorCode.INVALID_VARIABLES, f"the path {path:.200} has a dot segment")
        params = as_parameters(None if self.params is None else self._fill("params", self.params, variables, mutation))
        target_bytes = len(path) + (len(urlencode(params, quote_via=quote)) + 1 if params else 0)
        if target_bytes > MAX_TARGET_BYTES:
            reason = f"path and query are {target_bytes} bytes, at most {MAX_TARGET_BYTES} are sent"
            raise RequestError(ErrorCode.INVALID_VARIABLES, reason)
        sent = {name: value for name, value in self.said(variables).items() if name not in self.omit}
        body = None if self.body is None else orjson.dumps(self._fill("body", self.body, variables, mutation, sent))
        return MutationRequest(self.service, self.method, path, tuple(params), body, mutation, etag)

    def temporary(self, variables: dict[str, Any]) -> str | None:
        """Return the temporary id among the variables; only texts are ones.

        Raises:
            RequestError: `INVALID_VARIABLES`: it is declared and not there, or too long.
        """
        if self.temp_id is None:
            return None
        try:
            given = _look_up(variables, "", self.temp_id)
        except MissingCapture as error:
            name = ".".join(self.temp_id)
            raise RequestError(ErrorCode.INVALID_VARIABLES, f"the temporary id {{{name}}} is missing") from error
        if not isinstance(given, str) or not given:
            raise RequestError(ErrorCode.INVALID_VARIABLES, f"a temporary id is a text, got {given!r:.60}")
        if len(given) > MAX_TEXT:
            raise RequestError(ErrorCode.INVALID_VARIABLES, f"a temporary id has at most {MAX_TEXT} characters")
        return given

    def optimistic_operations(self, variables: dict[str, Any], mutation: str) -> list[Made]:
        """Return what a client sees at once, by key.

        Raises:
            RequestError: `INVALID_VARIABLES`.
        """
        assert self.steps is not None
        made, faults = self.steps[0].made(variables, mutation, None, self.said(variables))
        if faults:
            raise RequestError(ErrorCode.INVALID_VARIABLES, f"optimistic: {faults[0].replace('{data.', '{')}")
        tenant = self.tenant_of(variables)
        if not all(_is_at_home(key, tenant) for key, _ in made):
            raise RequestError(ErrorCode.INVALID_VARIABLES, f"optimistic: a key is not under the {VARIABLE}")
        return made

    def result_operations(self, variables: dict[str, Any], mutation: str, response: Any) -> list[Made]:
        """Return what a response does; operations for which it has too little, or on what is not the tenant's, are left out."""
        assert self.steps is not None
        return self._confined(variables, self.steps[1].made(variables, mutation, response, self.said(variables))[0])

    def said(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Return the variables without the one that the gateway adds."""
        return {name: value for name, value in variables.items() if not (self.is_confined and name == VARIABLE)}

    def renamed(self, variables: dict[str, Any], old: str, new: Any) -> dict[str, Any]:
        """Return the variables with what they call `old` called `new`; the one that the gateway adds stays as it is."""
        return {**variables, **replaced(self.said(variables), old, new)}

    def tenant_of(self, variables: dict[str, Any]) -> Tenant:
        """Return whose a mutation is: nobody's where there are no tenants, and where an operator names none.

        Raises:
            RequestError: `INVALID_VARIABLES`, what is said is no tenant's name.
        """
        if not self.is_confined or VARIABLE not in variables:
            return NOBODYS
        name = variables[VARIABLE]
        if not is_name(name):
            raise RequestError(
                ErrorCode.INVALID_VARIABLES,
                f"the variable {VARIABLE} is a tenant's name ({NAME_TEXT}), got {name!r:.60}",
            )
        return Tenant(name)

    def _confined(self, variables: dict[str, Any], made: list[Made]) -> list[Made]:
        """Return the operations on what is the tenant's; those for every entry of an entity or a relation are narrowed to that."""
        try:
            tenant = self.tenant_of(variables)
        except RequestError:
            return []
        if not tenant:
            return made
        kept: list[Made] = []
        for key, operation in made:
            if not broadcast.is_broadcast(key):
                if _is_at_home(key, tenant):
                    kept.append((key, operation))
                continue
            kind, about = broadcast.read(key)
            if kind in ("entity", "relation"):
                kept.append((broadcast.name(kind, [*about[:2], tenant.name]), operation))
            elif tenant.holds(canonical(about)):
                kept.append((key, operation))
        return kept

    def retry_after(self, failures: int, error: Any) -> float | None:
        """Return the wait before the next try after so many failures before this one; None: it has failed."""
        again = self.retry is True or failures < self.retry
        if not (again and getattr(error, "retryable", False)):
            return None
        return max(retry_delay_ms(failures, self.retry_delay_ms), getattr(error, "retry_after_ms", None) or 0.0)

    def assigned(self, response: Any) -> Any:
        """Return the id that a response gives to what had a temporary one; None: none."""
        known = response.get(self.response_id) if isinstance(response, dict) else None
        return None if isinstance(known, dict | list) else known

    def invalidations(self, variables: dict[str, Any], mutation: str, response: Any) -> list[Made]:
        """Return what is out of date once it is settled; keys for which there is too little, as without a response, are left out."""
        made: list[Made] = []
        for node in self.invalidate:
            try:
                key = template.build(node, lambda path: _look_up(variables, mutation, path, response))
                made.append((broadcast.under(unreserved(key)), Invalidate()))
            except (MissingCapture, RequestError):
                continue
        return self._confined(variables, made)

    def confirm_channel(self, variables: dict[str, Any], mutation: str) -> str | None:
        """Return the channel on which an event may confirm it; None: there is none."""
        if self.confirm is None:
            return None
        try:
            return template_text(template.build(self.confirm.channel, lambda path: _look_up(variables, mutation, path)))
        except MissingCapture:
            return None

    def confirms(self, variables: dict[str, Any], mutation: str, channel: str, data: Any) -> bool:
        """Whether an event is about a mutation, and tells that it was carried out.

        `channel` and `data` are those of an item of the list that travels under the broadcast name `confirm`. An event is about it if
        it has the members of `where`, and tells if it carries the mutation's id, or the values of all variables but a temporary id.
        """
        if self.confirm is None:
            return False
        try:
            wanted = template.build(self.confirm.channel, lambda path: _look_up(variables, mutation, path))
            where = template.build(self.confirm.where, lambda path: _look_up(variables, mutation, path))
        except MissingCapture:
            return False
        if wanted != channel or not isinstance(data, dict):
            return False
        if not all(name in data and _same(data[name], value) for name, value in where.items()):
            return False
        scalars = set(_scalars(data))
        if _mark(mutation) in scalars:
            return True
        temporary = None if self.temp_id is None else self.temp_id[-1]
        return all(
            _same(data[name], value) if name in data else set(_scalars(value)) <= scalars
            for name, value in variables.items()
            if name != temporary
        )

    def _fill(
        self, what: str, node: Node, variables: dict[str, Any], mutation: str, sent: dict[str, Any] | None = None
    ) -> Any:
        """Fill a template in; `sent` is what `{variables}` stands for, if that is less."""

        def lookup(path: Path) -> Any:
            return sent if path == ("variables",) and sent is not None else _look_up(variables, mutation, path)

        try:
            return template.build(node, lookup)
        except MissingCapture as error:
            raise _missing(what, node, variables, mutation) from error


def in_data(path: Path) -> Path:
    """Return where a placeholder of a mutation's operation is, in the data of the event as which the operation is compiled."""
    return ("data", *path)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one: a channel's captures are text, so a number equals its digits."""
    if json_equal(one, other):
        return True
    scalar = not isinstance(one, dict | list | None) and not isinstance(other, dict | list | None)
    return scalar and template_text(one) == template_text(other)


def _scalars(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _scalars(each)
    else:
        yield _mark(value)


def _mark(value: Any) -> Any:
    """Return a hashable that is equal for equal scalars: true is not 1."""
    return (value,) if isinstance(value, bool) else value


def _is_at_home(key: str, tenant: Tenant) -> bool:
    """Whether a mutation of a tenant may be about a key: not where the tenant's console would take it for what the cluster says."""
    return tenant.holds(key) and not (tenant and is_reserved(elements(key)[1:]))


def _look_up(variables: dict[str, Any], mutation: str, path: Path, response: Any = None) -> Any:
    value: Any = variables
    if path[0] == "variables":
        path = path[1:]
    elif path == ("mutation_id",):
        return mutation
    elif path[0] == "response":
        if response is None:
            raise MissingCapture
        value, path = response, path[1:]
    for token in path:
        if not isinstance(value, dict) or token not in value:
            raise MissingCapture
        value = value[token]
    return value


def _missing(what: str, node: Node, variables: dict[str, Any], mutation: str) -> RequestError:
    """Return the error that names the first placeholder without a value."""
    for path in template.holes(node):
        try:
            _look_up(variables, mutation, path)
        except MissingCapture:
            return RequestError(ErrorCode.INVALID_VARIABLES, f"{what} needs the variable {'.'.join(path)}")
    return RequestError(ErrorCode.INVALID_VARIABLES, f"{what} needs texts or numbers where it has placeholders")


def replaced(value: Any, old: str, new: Any) -> Any:
    """Return JSON with every text that is `old` replaced."""
    if isinstance(value, dict):
        return {name: replaced(member, old, new) for name, member in value.items()}
    if isinstance(value, list):
        return [replaced(item, old, new) for item in value]
    return new if value == old and isinstance(value, str) else value
