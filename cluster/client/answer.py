"""What a gateway answers, as values and exceptions: the one reading of errors for HTTP bodies, WebSocket messages and refused handshakes.

What must not live here: requests, sockets.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from cluster.errors import ConflictError, ErrorCode, HarborError, UnavailableError

BEHIND = frozenset({502, 503, 504})
"""What a proxy says where no gateway answers behind it."""


def error_of(body: Mapping[str, Any]) -> HarborError:
    """Return the exception for an error as the cluster tells it: `code`, `message`, `temporary`, `details`.

    `VERSION_CONFLICT` becomes a `ConflictError`, `UNAVAILABLE` an `UnavailableError`. A code of a later version is `INTERNAL` here and
    stands in the message.
    """
    code, message, details = body.get("code"), str(body.get("message") or "no reason given"), body.get("details")
    error: HarborError
    match code:
        case ErrorCode.VERSION_CONFLICT:
            error = ConflictError(message, details=details)
        case ErrorCode.UNAVAILABLE:
            error = UnavailableError(message)
            error.details = details
        case str() if code in ErrorCode.__members__:
            error = HarborError(ErrorCode(code), message, details=details)
        case _:
            error = HarborError(ErrorCode.INTERNAL, f"{code}: {message}", details=details)
    if isinstance(body.get("temporary"), bool):
        error.temporary = body["temporary"]
    return error


def read_answer(url: str, status: int, content: bytes) -> dict[str, Any]:
    """Return the JSON object a request was answered with, empty where the answer has no body. `url` names the gateway in errors.

    Raises:
        HarborError: the cluster's own, whatever the status.
        UnavailableError: something else answered, such as a proxy.
    """
    if 200 <= status < 300 and not content:
        return {}
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        body = None
    if isinstance(body, dict):
        if 200 <= status < 300:
            return body
        error = body.get("error")
        if isinstance(error, dict) and "code" in error:
            raise error_of(error)
    if status in BEHIND:
        raise UnavailableError(f"no cluster answers at {url}: HTTP {status}")
    raise UnavailableError(f"{url} is no Harbor Cluster: HTTP {status}")
