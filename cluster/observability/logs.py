"""Structured logs: a constant event name and fields. Lines on a terminal, JSON objects elsewhere.

Hot places log through `Log.sampled`: the first few of a kind, then one a minute with how many were left out.
"""

import json
import logging
import sys
import time
from typing import Any

_BURST = 5
_EVERY_S = 60.0


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{name}={value}" for name, value in getattr(record, "fields", {}).items())
        text = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {record.getMessage()} {fields}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure(level: str = "INFO") -> None:
    """Send logs to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_TextFormatter() if sys.stderr.isatty() else _JsonFormatter())
    root = logging.getLogger("harbor")
    root.handlers[:] = [handler]
    root.setLevel(level)
    root.propagate = False
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells of every request


class Log:
    """A logger with fields bound."""

    def __init__(self, **fields: Any) -> None:
        self._fields = fields
        self._logger = logging.getLogger("harbor")
        self._seen: dict[tuple[str, str], tuple[int, float]] = {}

    def debug(self, event: str, **fields: Any) -> None:
        """Log what only somebody looking for a fault wants."""
        if self._logger.isEnabledFor(logging.DEBUG):
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
        count, quiet_until = self._seen.get((event, kind), (0, 0.0))
        count += 1
        now = time.monotonic()
        if count <= _BURST or now >= quiet_until:
            left_out = max(0, count - _BURST - 1)
            self._seen[event, kind] = (_BURST, now + _EVERY_S)
            if count <= _BURST:
                self._seen[event, kind] = (count, now + _EVERY_S)
            self.warning(event, kind=kind, left_out=left_out, **fields)
        else:
            self._seen[event, kind] = (count, quiet_until)
