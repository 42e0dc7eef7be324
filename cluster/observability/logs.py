"""Structured logs: a constant event name and fields. Lines on a terminal, JSON objects elsewhere.

`HARBOR_LOG_FORMAT` (json | text) and `HARBOR_LOG_LEVEL` (debug | info | warning | error) say otherwise. Credentials are masked in
whatever is logged. Hot places log through `Log.sampled`: the first few of a kind, then one a minute with how many were left out.

At `debug` the way of an event to clients can be followed by `trace` (`trace_id`): it is made of the receipt of the oldest event folded into
what travels, which travels anyway, so it is the same from the ingestor's read to the gateway's frame and costs nothing where nobody looks.
"""

import hashlib
import json
import logging
import os
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any

from cluster.config.model import MASK, masked_url

FORMATS = ("json", "text")
LEVELS = ("debug", "info", "warning", "error")
BURST = 5
"""Of a kind, before sampling begins."""
EVERY_S = 60.0
KINDS = 1_000
"""Kinds remembered at once; with more they are all new again."""
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>\\]+", re.IGNORECASE)
_CREDENTIALS = re.compile(r"((?:bearer|basic)\s+)[^\s\"'\\]+|\bhk_[\w-]{8,}", re.IGNORECASE)


def redacted(text: str) -> str:
    """Return a text without what looks like a credential: in URLs, after `Bearer` and `Basic`, and API keys of ours."""
    text = _URL.sub(lambda found: masked_url(found[0]), text)
    return _CREDENTIALS.sub(lambda found: f"{found[1] or ''}{MASK}", text)


def trace_id(received_ms: float) -> str:
    """Return what events received at a time are followed by: 32 hexadecimal digits, as the W3C's trace context has it."""
    return hashlib.blake2b(repr(float(received_ms)).encode(), digest_size=16).hexdigest()


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {
            "time": at,
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return redacted(json.dumps(line, default=str))


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in getattr(record, "fields", {}).items())
        text = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {record.getMessage()} {fields}"
        return redacted(f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text)


def _chosen(name: str, choices: tuple[str, ...], default: str) -> str:
    value = os.environ.get(name, default)
    if value not in choices:
        sys.stderr.write(f"harbor: {name} is {' or '.join(choices)}, not {value!r:.40}: it is {default}\n")
        return default
    return value


def configure() -> None:
    """Send logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    style = _chosen("HARBOR_LOG_FORMAT", FORMATS, "text" if sys.stderr.isatty() else "json")
    handler.setFormatter(_JsonFormatter() if style == "json" else _TextFormatter())
    for name in ("harbor", "cluster"):  # the latter's are plain loggers of modules
        root = logging.getLogger(name)
        root.handlers[:] = [handler]
        root.setLevel(_chosen("HARBOR_LOG_LEVEL", LEVELS, "info").upper())
        root.propagate = False
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every request


class _Kind:
    """What was logged of one kind."""

    __slots__ = ("count", "left_out", "quiet_until")

    def __init__(self) -> None:
        self.count = 0
        self.left_out = 0
        self.quiet_until = 0.0


class Log:
    """A logger with fields bound."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields
        self._logger = logging.getLogger("harbor")
        self._kinds: dict[tuple[str, str], _Kind] = {}

    @property
    def is_debug(self) -> bool:
        """Whether anybody looks."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **fields: Any) -> None:
        """Log what only somebody looking for a fault wants."""
        if self.is_debug:
            self._logger.debug(event, extra={"fields": {**self._fields, **fields}})

    def info(self, event: str, **fields: Any) -> None:
        """Log what happened."""
        self._logger.info(event, extra={"fields": {**self._fields, **fields}})

    def warning(self, event: str, **fields: Any) -> None:
        """Log what somebody should look at."""
        self._logger.warning(event, extra={"fields": {**self._fields, **fields}})

    def error(self, event: str, *, exc_info: BaseException | None = None, **fields: Any) -> None:
        """Log what went wrong."""
        self._logger.error(event, extra={"fields": {**self._fields, **fields}}, exc_info=exc_info)

    def sampled(self, event: str, kind: str, **fields: Any) -> None:
        """Warn of something that may happen very often: `kind` tells like from like."""
        seen = self._kinds.get((event, kind))
        if seen is None:
            if len(self._kinds) >= KINDS:
                self._kinds.clear()
            seen = self._kinds[event, kind] = _Kind()
        now = time.monotonic()
        seen.count += 1
        if seen.count > BURST and now < seen.quiet_until:
            seen.left_out += 1
            return
        left_out, seen.left_out = seen.left_out, 0
        seen.quiet_until = now + EVERY_S
        self.warning(event, kind=kind, left_out=left_out, **fields)
