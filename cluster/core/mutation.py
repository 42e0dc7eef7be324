"""Mutations as they are declared: what a client's variables come to in operations, in a request, and in an order among others.

The templates of a mutation's operations are those of rules, over its variables (`{id}`, `{variables}`), its own id (`{mutation_id}`) and,
once the service has answered, `{response}`. They are compiled as the rules of an event are whose data has these members.

What must not live here: the life of one mutation (`mutation_queue`), what its operations do to views (`overlay`), HTTP.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from urllib.parse import quote

import orjson
from msgspec import Raw, Struct, structs

from cluster.core import template
from cluster.core.declared_query import DOTS, as_parameter
from cluster.core.retry import retry_delay_ms
from cluster.core.rule import Made, RuleOperation, compile_operations
from cluster.core.template import MissingCapture, Node, Path
from cluster.core.transform import HeardOn
from cluster.errors import ErrorCode, RequestError

MAX_ID = 128
"""Characters of a mutation's id: it goes into a header and into the store."""


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

    __slots__ = ("_faults", "_step")

    def __init__(self, rules: Sequence[RuleOperation]) -> None:
        self._faults: list[str] = []
        self._step = compile_operations(rules, self._drop) if rules else None

    def made(self, variables: dict[str, Any], mutation: str, response: Any) -> tuple[list[Made], list[str]]:
        """Return the operations, by key, and why others came to nothing."""
        if self._step is None:
            return [], []
        data = orjson.dumps({**variables, "variables": variables, "mutation_id": mutation, "response": response})
        made = self._step(("mutation",), data, None)
        faults, self._faults[:] = list(self._faults), []
        return made, faults

    def _drop(self, reason: str, detail: str, _data: Raw | bytes, _heard: HeardOn) -> None:
        self._faults.append(detail or reason)


class MutationRequest(Struct, frozen=True):
    """A write to a service."""

    service: str
    method: str
    path: str
    """Percent-encoded, below the service's base URL."""
    params: tuple[tuple[str, str], ...]
    body: bytes | None
    """JSON; None: there is none."""
    idempotency_key: str
    etag: str | None = None


class DeclaredMutation(Struct, frozen=True):
    """A mutation of the configuration."""

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
    """The variable that is a temporary id, to be replaced by the member `id` of the response."""
    retry: int | bool = 0
    retry_delay_ms: float | None = None
    delay_ms: float = 0.0
    max_age_ms: float | None = None
    """How long it may wait for its service; None: for ever."""
    steps: "tuple[Operations, Operations] | None" = None
    """The operations, compiled; made from the rest."""

    def __post_init__(self) -> None:
        structs.force_setattr(self, "steps", (Operations(self.optimistic), Operations(self.result)))

    def scope_of(self, variables: dict[str, Any], mutation: str) -> str:
        """Return the scope of a mutation, which also says which shard is its home.

        Raises:
            RequestError: `INVALID_VARIABLES`.
        """
        if self.scope is None:
            return f"id:{mutation}"
        return f"scope:{self._fill('scope', self.scope, variables, mutation)}"

    def request(self, variables: dict[str, Any], mutation: str) -> MutationRequest:
        """Return what is sent to the service.

        Raises:
            RequestError: `INVALID_VARIABLES`.
        """

        def segment(path: Path) -> str:
            return quote(as_parameter(_look_up(variables, mutation, path)), safe="")

        try:
            path = str(template.build(self.path, segment))
        except MissingCapture as error:
            raise _missing("path", self.path, variables, mutation) from error
        if not DOTS.isdisjoint(path.split("/")):
            raise RequestError(ErrorCode.INVALID_VARIABLES, f"the path {path:.200} has a dot segment")
        params: list[tuple[str, str]] = []
        if self.params is not None:
            filled = self._fill("params", self.params, variables, mutation)
            if isinstance(filled, dict):
                params = [(name, as_parameter(value)) for name, value in filled.items() if value is not None]
        body = None if self.body is None else orjson.dumps(self._fill("body", self.body, variables, mutation))
        return MutationRequest(self.service, self.method, path, tuple(params), body, mutation)

    def temporary(self, variables: dict[str, Any]) -> str | None:
        """Return the temporary id among the variables; only texts are ones.

        Raises:
            RequestError: `INVALID_VARIABLES`: it is declared and not there.
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
        return given

    def optimistic_operations(self, variables: dict[str, Any], mutation: str) -> list[Made]:
        """Return what a client sees at once, by key.

        Raises:
            RequestError: `INVALID_VARIABLES`.
        """
        assert self.steps is not None
        made, faults = self.steps[0].made(variables, mutation, None)
        if faults:
            raise RequestError(ErrorCode.INVALID_VARIABLES, f"optimistic: {faults[0].replace('{data.', '{')}")
        return made

    def result_operations(self, variables: dict[str, Any], mutation: str, response: Any) -> list[Made]:
        """Return what a response does; operations for which it has too little are left out."""
        assert self.steps is not None
        return self.steps[1].made(variables, mutation, response)[0]

    def retry_after(self, failures: int, error: Any) -> float | None:
        """Return the wait before the next try after so many failures before this one; None: it has failed."""
        again = self.retry is True or failures < self.retry
        if not (again and getattr(error, "retryable", False)):
            return None
        return max(retry_delay_ms(failures, self.retry_delay_ms), getattr(error, "retry_after_ms", None) or 0.0)

    def _fill(self, what: str, node: Node, variables: dict[str, Any], mutation: str) -> Any:
        try:
            return template.build(node, lambda path: _look_up(variables, mutation, path))
        except MissingCapture as error:
            raise _missing(what, node, variables, mutation) from error


def _look_up(variables: dict[str, Any], mutation: str, path: Path) -> Any:
    value: Any = variables
    if path[0] == "variables":
        path = path[1:]
    elif path == ("mutation_id",):
        return mutation
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

