"""Every error the cluster raises or sends.

    HarborError                 code, message, temporary, details
    ├── ConfigError             a fault of the configuration: path, reason, value
    ├── RequestError            the caller's fault: a bad key, message, parameter
    │   └── LimitError          more than a limit allows: limit, value, retry_after_ms
    ├── ConflictError           a conditional write lost
    ├── UpstreamError           a service answered badly, or not at all
    ├── UnavailableError        a part of the cluster cannot answer now
    ├── UnauthorizedError       credentials that are not recognised: why, for a counter
    ├── StoreError              a shard's store cannot be read or written
    └── OperationError          an operation does not fit the value it meets

`ErrorCode` is the one list of codes: HTTP bodies, WebSocket `error` messages, log fields and metric labels share it.
What must not live here: HTTP statuses (the gateway maps them), logging.
"""

from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """Stable codes, part of the protocol."""

    BAD_MESSAGE = "BAD_MESSAGE"
    BAD_KEY = "BAD_KEY"
    BAD_REQUEST = "BAD_REQUEST"
    NOT_FOUND = "NOT_FOUND"
    UNKNOWN_TYPE = "UNKNOWN_TYPE"
    UNKNOWN_MUTATION = "UNKNOWN_MUTATION"
    INVALID_VARIABLES = "INVALID_VARIABLES"
    VERSION_CONFLICT = "VERSION_CONFLICT"
    CONFLICT = "CONFLICT"
    FORBIDDEN = "FORBIDDEN"
    UNAUTHORIZED = "UNAUTHORIZED"
    TOO_LARGE = "TOO_LARGE"
    TOO_DEEP = "TOO_DEEP"
    TOO_MANY = "TOO_MANY"
    LIMITED = "LIMITED"
    UPSTREAM_ERROR = "UPSTREAM_ERROR"
    UPSTREAM_OFFLINE = "UPSTREAM_OFFLINE"
    TIMEOUT = "TIMEOUT"
    UNAVAILABLE = "UNAVAILABLE"
    UNSUPPORTED = "UNSUPPORTED"
    INTERNAL = "INTERNAL"


TEMPORARY = frozenset(
    {
        ErrorCode.LIMITED,
        ErrorCode.UPSTREAM_ERROR,
        ErrorCode.UPSTREAM_OFFLINE,
        ErrorCode.TIMEOUT,
        ErrorCode.UNAVAILABLE,
    }
)
"""Codes for which the same request may succeed later, unchanged."""


class HarborError(Exception):
    """Base of all errors: a stable code, a reason for people, and whether trying again can help."""

    def __init__(self, code: ErrorCode, message: str, *, details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.temporary = code in TEMPORARY
        self.details = details


class ConfigError(HarborError):
    """A fault of the configuration. `path` is dotted, e.g. `queries.0.key`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(ErrorCode.BAD_REQUEST, f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


class RequestError(HarborError):
    """The caller sent something that cannot be done; nothing was changed."""


class LimitError(RequestError):
    """More than a limit allows. `limit` is its name in `gateway.limits` and in metrics, `value` what it allows."""

    def __init__(
        self, code: ErrorCode, limit: str, value: float, message: str, *, retry_after_ms: float | None = None
    ) -> None:
        details: dict[str, Any] = {"limit": limit, "value": value}
        if retry_after_ms is not None:
            details["retry_after_ms"] = max(1, round(retry_after_ms))
        super().__init__(code, message, details=details)
        self.limit = limit
        self.value = value
        self.retry_after_ms = retry_after_ms


class ConflictError(HarborError):
    """A conditional write lost; `details` holds `current` and, where a merge failed, `conflicts`."""

    def __init__(self, message: str, *, details: dict[str, Any] | None = None) -> None:
        super().__init__(ErrorCode.VERSION_CONFLICT, message, details=details)

    @property
    def current(self) -> dict[str, Any] | None:
        """The entry that the write met, as `/v1/entries` gives it; None: there is none."""
        return None if self.details is None else self.details.get("current")

    @property
    def conflicts(self) -> list[str]:
        """Where a merge failed, as JSON Pointers into the data of `current`; empty where none was tried."""
        return [] if self.details is None else list(self.details.get("conflicts") or ())


class UpstreamError(HarborError):
    """A service failed; `status` is its HTTP status, if it answered, `body` what it said of a write, if that is short JSON."""

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retryable: bool = True,
        retry_after_ms: float | None = None,
        body: Any = None,
        etag: str | None = None,
    ) -> None:
        """`etag`: of what the service has instead of what was to be changed."""
        details = {name: value for name, value in (("status", status), ("body", body)) if value is not None}
        super().__init__(ErrorCode.UPSTREAM_ERROR, message, details=details or None)
        self.status = status
        self.etag = etag
        self.retryable = retryable
        self.retry_after_ms = retry_after_ms
        self.body = body

    @property
    def is_conflict(self) -> bool:
        """Whether what was to be changed has changed meanwhile, as the service says."""
        return self.status in (409, 412)


class UnavailableError(HarborError):
    """A part of the cluster cannot answer now; trying again is safe."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.UNAVAILABLE, message)


class UnauthorizedError(HarborError):
    """Credentials that are not recognised. `why` is one word for a counter; the message never holds the credentials."""

    def __init__(self, why: str, message: str) -> None:
        super().__init__(ErrorCode.UNAUTHORIZED, message)
        self.why = why


class StoreError(HarborError):
    """A shard's store cannot be read or written, with the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INTERNAL, message)


class OperationError(HarborError):
    """An operation does not fit the value it meets (a pointer to nothing, an append to an object)."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.BAD_REQUEST, message)
