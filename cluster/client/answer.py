"""What a gateway answers, as values and exceptions: the one reading of errors for HTTP bodies, WebSocket messages and refused handshakes.

What must not live here: requests, sockets.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import orjson

from cluster.errors import ConflictError, ErrorCode, HarborError, UnavailableError

T = TypeVar("T")
BEHIND = frozenset({502, 503, 504})
"""What a proxy says where no gateway answers behind it."""


class Answer(dict[str, Any]):
    """The members of an answer. One that every gateway's has and this one has not tells that it is no gateway's."""

    def __init__(self, url: str, members: Mapping[str, Any]) -> None:
        super().__init__(members)
        self.url = url

    def __missing__(self, name: str) -> Any:
        raise UnavailableError(f"{self.url} is no Harbor Cluster: its answer has no {name!r}")

    def member(self, name: str, kind: type[T]) -> T:
        """Return a member.

        Raises:
            UnavailableError: there is none of that type.
        """
        found = self[name]
        if not isinstance(found, kind):
            raise UnavailableError(
                f"{self.url} is no Harbor Cluster: {name!r} of its answer is a {type(found).__name__}"
            )
        return found


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


def read_answer(url: str, status: int, content: bytes) -> Answer:
    """Return the JSON object a request was answered with, empty where the answer has no body. `url` names the gateway in errors.

    Raises:
        HarborError: the cluster's own, whatever the status.
        UnavailableError: something else answered, such as a proxy.
    """
    if 200 <= status < 300 and not content:
        return Answer(url, {})
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        body = None
    if isinstance(body, dict):
        if 200 <= status < 300:
            return Answer(url, body)
        error = body.get("error")
        if isinstance(error, dict) and "code" in error:
            raise error_of(error)
    if status in BEHIND:
        raise UnavailableError(f"no cluster answers at {url}: HTTP {status}")
    raise UnavailableError(f"{url} is no Harbor Cluster: HTTP {status}")
