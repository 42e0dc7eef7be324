"""JSON Pointers (RFC 6901): `/tasks/0/title`."""

from functools import lru_cache
from typing import Any

from cluster.errors import OperationError

Tokens = tuple[str, ...]
MAX_TOKENS = 100
"""Deeper pointers would create values deeper than can be written."""


@lru_cache(maxsize=4096)
def tokens(pointer: str) -> Tokens:
    """Split a pointer.

    Raises:
        OperationError: it neither is empty nor begins with a slash, has a bad escape, or too many tokens.
    """
    if not pointer:
        return ()
    if pointer[0] != "/":
        raise OperationError(f"a JSON Pointer is empty or begins with '/', got {pointer!r}")
    parts = pointer[1:].split("/")
    if len(parts) > MAX_TOKENS:
        raise OperationError(f"a JSON Pointer has at most {MAX_TOKENS} tokens, got {len(parts)}")
    for part in parts:
        rest = part.replace("~0", "").replace("~1", "")
        if "~" in rest:
            raise OperationError(f"in a JSON Pointer '~' is written '~0', got {pointer!r}")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)


def escape(token: str) -> str:
    """Write one member name as a pointer's token."""
    return token.replace("~", "~0").replace("/", "~1")


def index(token: str, length: int) -> int:
    """Return the array index a token names, at most `length`; `-` is `length`.

    Raises:
        OperationError: not an index, or beyond the end.
    """
    if token == "-":
        return length
    if not token.isascii() or not token.isdigit() or (token[0] == "0" and len(token) > 1) or len(token) > 15:
        raise OperationError(f"{token!r} is not an array index")
    position = int(token)
    if position > length:
        raise OperationError(f"index {position} is beyond the array's {length} items")
    return position


def step(value: Any, token: str) -> Any:
    """Return the child a token names.

    Raises:
        OperationError: there is none.
    """
    if isinstance(value, dict):
        if token in value:
            return value[token]
        raise OperationError(f"no member {token!r}")
    if isinstance(value, list):
        position = index(token, len(value))
        if position < len(value):
            return value[position]
        raise OperationError(f"no item {token!r} in an array of {len(value)}")
    raise OperationError(f"{token!r} leads into a value that is neither object nor array")


def resolve(value: Any, path: Tokens) -> Any:
    """Return what a pointer names.

    Raises:
        OperationError: nothing is there.
    """
    for token in path:
        value = step(value, token)
    return value
