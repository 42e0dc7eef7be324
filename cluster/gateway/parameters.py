"""Query parameters and headers of the HTTP API, read strictly: what is not understood is a 400, never ignored."""

import asyncio
from collections.abc import Mapping
from typing import Any, NoReturn

import orjson
from aiohttp import web

from cluster.core.acknowledgement import LEVELS
from cluster.core.client_message import is_too_deep
from cluster.core.limits import refuse
from cluster.core.query_key import MAX_DEPTH, CanonicalKey, depth, normalized
from cluster.errors import ErrorCode, LimitError, RequestError
from cluster.gateway.connections import Connection


def only(request: web.BaseRequest, *names: str) -> None:
    """Refuse parameters that the endpoint does not have.

    Raises:
        RequestError: `BAD_REQUEST`, naming the first.
    """
    for name in request.query:
        if name not in names:
            allowed = ", ".join(names) or "none"
            raise RequestError(ErrorCode.BAD_REQUEST, f"unknown parameter {name!r}, there are: {allowed}")


def key(request: web.BaseRequest, name: str = "key") -> CanonicalKey:
    """Return a parameter that is a query key.

    Raises:
        RequestError: it is absent (`BAD_REQUEST`) or no key (`BAD_KEY`, ...).
    """
    text = request.query.get(name)
    if text is None:
        raise RequestError(ErrorCode.BAD_REQUEST, f"the parameter {name!r} is needed, a JSON array")
    return normalized(text)


def choice(values: Mapping[str, Any], name: str, *choices: str) -> str:
    """Return a value that is one of a few, the first by default.

    Raises:
        RequestError: `BAD_REQUEST`.
    """
    value = values.get(name, choices[0])
    if value not in choices:
        raise RequestError(ErrorCode.BAD_REQUEST, f"{name} is {' or '.join(choices)}, got {value!r:.60}")
    return str(value)


def wants_dead_letters(request: web.BaseRequest) -> bool:
    """Return what `/v1/cluster` is asked for beside the description, here and on the admin port.

    Raises:
        RequestError: `BAD_REQUEST`.
    """
    only(request, "dead_letters")
    return choice(request.query, "dead_letters", "false", "true") == "true"


def flag(values: Mapping[str, Any], name: str) -> bool | None:
    """Return a value that is true or false, or None where it is absent.

    Raises:
        RequestError: `BAD_REQUEST`.
    """
    value = values.get(name)
    if name in values and not isinstance(value, bool):
        raise RequestError(ErrorCode.BAD_REQUEST, f"{name} is true or false, got {value!r:.60}")
    return value


def limit(request: web.BaseRequest, default: int, maximum: int) -> int:
    """Return the page size asked for, or the greatest there is: the cursor brings the rest.

    Raises:
        RequestError: `BAD_REQUEST`, it is no number, or 0.
    """
    text = request.query.get("limit", str(default))
    digits = text.lstrip("0")
    if not text.isascii() or not text.isdecimal() or not digits:
        raise RequestError(ErrorCode.BAD_REQUEST, f"limit is a number from 1 on, got {text!r:.60}")
    return maximum if len(digits) > 16 else min(int(digits), maximum)


def base_version(request: web.BaseRequest) -> int | None:
    """Return the version a write is conditional on, from `base_version` or `If-Match`.

    Raises:
        RequestError: `BAD_REQUEST`.
    """
    text = request.query.get("base_version")
    if text is None:
        text = request.headers.get("If-Match", "").strip().removeprefix("W/").strip('"') or None
    if text is None or text == "*":
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 16:
        raise RequestError(ErrorCode.BAD_REQUEST, f"a version is a whole number, got {text!r:.60}")
    return int(text)


def acknowledgement(request: web.BaseRequest) -> str:
    """Return how safe a write is to be when it is answered; "": nothing was said.

    Raises:
        RequestError: `BAD_REQUEST`.
    """
    return choice(request.query, "ack", *LEVELS) if "ack" in request.query else ""


def merges(request: web.BaseRequest, base_version: int | None) -> bool:
    """Return whether a write is to be merged with what became of its entry since `base_version`.

    Raises:
        RequestError: `BAD_REQUEST`, also where no version is named.
    """
    if "merge" not in request.query:
        return False
    choice(request.query, "merge", "three_way")
    if base_version is None:
        raise RequestError(ErrorCode.BAD_REQUEST, "merge needs base_version or If-Match, the version that was edited")
    return True


def request_id(request: web.BaseRequest, otherwise: str) -> str:
    """Return the caller's `Idempotency-Key`.

    Raises:
        RequestError: `BAD_REQUEST`, it is over 256 characters, or not UTF-8.
    """
    given = request.headers.get("Idempotency-Key")
    if given is None:
        return otherwise
    if len(given) > 256:
        raise RequestError(ErrorCode.BAD_REQUEST, "an Idempotency-Key has at most 256 characters")
    if any(
        "\ud800" <= each <= "\udfff" for each in given
    ):  # aiohttp keeps bytes so that are none; no message could carry them
        raise RequestError(ErrorCode.BAD_REQUEST, "an Idempotency-Key is UTF-8")
    return f"key/{given}"


async def body(request: web.BaseRequest) -> Any:
    """Return the JSON body.

    Raises:
        RequestError: `BAD_REQUEST`, it is no JSON; `TOO_LARGE`, `TOO_DEEP`.
    """
    raw = await raw_body(request)
    try:
        decoded = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if is_too_deep(error):
            _too_deep()
        raise RequestError(ErrorCode.BAD_REQUEST, f"the body is not JSON: {error}") from error
    if depth(decoded, MAX_DEPTH) > MAX_DEPTH:
        _too_deep()
    return decoded


def _too_deep() -> NoReturn:
    refuse(ErrorCode.TOO_DEEP, "depth", MAX_DEPTH, f"a value may nest {MAX_DEPTH} deep")


async def raw_body(request: web.BaseRequest) -> bytes:
    """Return the body, decompressed.

    Raises:
        LimitError: `TOO_LARGE`; `TIMEOUT`, it did not come in time.
        RequestError: `BAD_REQUEST`, it is not encoded as it says.
    """
    connection = request.protocol
    assert isinstance(connection, Connection)
    limits = connection.limits
    try:
        async with asyncio.timeout(limits.body_within_ms / 1000.0):
            return await request.read()
    except TimeoutError as error:
        within_s = limits.body_within_ms / 1000.0
        message = f"the body did not come within {within_s:g} s"
        raise LimitError(ErrorCode.TIMEOUT, "body_within", limits.body_within_ms, message) from error
    except web.HTTPRequestEntityTooLarge as error:
        most = limits.body_bytes
        raise LimitError(ErrorCode.TOO_LARGE, "body", most, f"a body has at most {most} bytes") from error
    except web.RequestPayloadError as error:
        raise RequestError(
            ErrorCode.BAD_REQUEST, "the body cannot be read: it is not encoded as its headers say"
        ) from error
