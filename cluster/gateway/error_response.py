"""Errors as HTTP answers them.

What must not live here: which request meets which error (`server`, `mutation_routes`), the codes (`cluster.errors`).
"""

import math

import orjson
from aiohttp import web

from cluster.core import protocol
from cluster.core.grants import Principal
from cluster.errors import ErrorCode, HarborError, LimitError

STATUS = {
    ErrorCode.BAD_MESSAGE: 400,
    ErrorCode.BAD_KEY: 400,
    ErrorCode.BAD_REQUEST: 400,
    ErrorCode.TOO_DEEP: 400,
    ErrorCode.INVALID_VARIABLES: 400,
    ErrorCode.UNKNOWN_TYPE: 400,
    ErrorCode.UNKNOWN_MUTATION: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.VERSION_CONFLICT: 409,
    ErrorCode.CONFLICT: 409,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.TOO_MANY: 429,
    ErrorCode.LIMITED: 429,
    ErrorCode.UNSUPPORTED: 501,
    ErrorCode.UPSTREAM_ERROR: 502,
    ErrorCode.UPSTREAM_OFFLINE: 502,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.TIMEOUT: 504,
}
OF_LIMITS = {
    "request_line": 414,
    "header": 431,
    "headers": 431,
    "header_count": 431,
    "head_within": 408,
    "body_within": 408,
    "connections": 503,
}
"""Limits for which HTTP has a status of its own."""
REASONS = {
    408: "Request Timeout",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


def status_of(error: HarborError) -> int:
    """Return the status of an error."""
    if isinstance(error, LimitError) and error.limit in OF_LIMITS:
        return OF_LIMITS[error.limit]
    return STATUS.get(error.code, 500)


def error_body(error: HarborError, principal: Principal | None = None) -> bytes:
    """Return an error as a body, in the words of who is told."""
    members = protocol.error_of(error)
    if principal is not None:
        members["message"] = principal.tenant.text(error.message)
    return orjson.dumps({"error": members})


def error_response(error: HarborError, principal: Principal | None = None) -> web.Response:
    """Return an error as HTTP answers it, to somebody."""
    response = web.Response(
        status=status_of(error), body=error_body(error, principal), headers={"Content-Type": "application/json"}
    )
    if error.code is ErrorCode.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, LimitError) and error.retry_after_ms is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_ms / 1000)))
    return response


def last_words(error: HarborError, head: bytes) -> bytes:
    """Return an answer whole, for a connection that is closed without a request having been read; `head`: headers of every answer."""
    status, body = status_of(error), error_body(error)
    return (
        b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\n%bConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (status, REASONS.get(status, "Error").encode(), head, len(body), body)
    )
