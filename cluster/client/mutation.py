"""A mutation, as a program is told of it.

What must not live here: requests (`harbor_client`).
"""

from typing import Any
from urllib.parse import quote

import msgspec
from msgspec import Struct

from cluster.errors import ErrorCode, RequestError, UnavailableError

SETTLED = ("success", "error", "cancelled")
"""Statuses of a mutation for good: `core.mutation` has them too, and takes long to import."""


class Mutation(Struct, frozen=True, kw_only=True):
    """A mutation as it was when it was asked about.

    Attributes:
        id: Its own, also the idempotency key that its service gets.
        status: `scheduled`, `queued`, `paused`, `pending`, `success`, `error` or `cancelled`; the last three are for good.
        result: The service's answer; None where there is none.
        error: `{code, message, temporary}` where it failed.
        name: As it is declared; None where `mutate` was answered.
        created_at: Unix ms; None as `name`.
        due_at: Unix ms when it is sent, where it was delayed.
    """

    id: str
    status: str
    result: Any = None
    error: dict[str, Any] | None = None
    name: str | None = None
    created_at: int | None = None
    due_at: int | None = None

    @property
    def is_settled(self) -> bool:
        """Whether nothing comes after this."""
        return self.status in SETTLED


def path_of(mutation: str) -> str:
    """Return where a gateway has a mutation.

    Raises:
        RequestError: `BAD_REQUEST`, it is no text that can be sent.
    """
    try:
        return f"/v1/mutations/{quote(mutation, safe='')}"
    except UnicodeError as error:
        raise RequestError(ErrorCode.BAD_REQUEST, f"not the id of a mutation: {mutation!r:.80}") from error


def read_mutation(answer: Any) -> Mutation:
    """Return the mutation that a gateway has answered with.

    Raises:
        UnavailableError: it is none.
    """
    try:
        return msgspec.convert(answer, Mutation)
    except msgspec.ValidationError as error:
        raise UnavailableError(f"what answers is no mutation: {error}") from error
