"""`gateway.limits`, and what else of `gateway` is about whom to let in: origins and networks of proxies.

What reads a value raises `ConfigError` where it is none, as in `values`.

What must not live here: what the limits are for (`core.limits`).
"""

import math
from collections.abc import Callable
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

from cluster.config import values
from cluster.config.section import Section
from cluster.core.limits import KIB, MIB, Limits
from cluster.errors import ConfigError

MAX_BYTES = 1024 * MIB
"""Of any size. What is measured against one is held in memory."""


def limits(section: Section) -> Limits:
    """Read the section."""
    default = Limits()
    made = Limits(
        frame_bytes=section.take("frame", default.frame_bytes, _size(KIB)),
        body_bytes=section.take("body", default.body_bytes, _size(KIB)),
        request_line_bytes=section.take("request_line", default.request_line_bytes, _size(KIB)),
        header_bytes=section.take("header", default.header_bytes, _size(KIB)),
        headers_bytes=section.take("headers", default.headers_bytes, _size(KIB)),
        header_count=section.take("header_count", default.header_count, _count(16)),
        subscriptions=section.take("subscriptions", default.subscriptions, _count(1)),
        connections=section.take("connections", default.connections, _count(1)),
        connections_per_address=section.take("connections_per_address", default.connections_per_address, _count(1)),
        sessions_per_address=section.take("sessions_per_address", default.sessions_per_address, _count(1)),
        sessions_per_subject=section.take("sessions_per_subject", default.sessions_per_subject, _count(1)),
        streams=section.take("streams", default.streams, _count(1)),
        commands=section.take("commands", default.commands, _rate),
        commands_burst=section.take("commands_burst", default.commands_burst, _rate),
        requests=section.take("requests", default.requests, _rate_or_none),
        requests_burst=section.take("requests_burst", default.requests_burst, _rate),
        presence_updates=section.take("presence_updates", default.presence_updates, _rate),
        buffers_bytes=section.take("buffers", default.buffers_bytes, _size(MIB)),
        hello_within_ms=section.take("hello_within", default.hello_within_ms, _within),
        head_within_ms=section.take("head_within", default.head_within_ms, _within),
        body_within_ms=section.take("body_within", default.body_within_ms, _within),
        idle_ms=section.take("idle", default.idle_ms, _within),
    )
    largest = max(made.frame_bytes, made.body_bytes)
    if made.buffers_bytes < 4 * largest:
        least = values.shown_size(4 * largest)
        section.reader.fault(section.at("buffers"), f"expected at least four times the largest frame or body ({least})")
    if made.headers_bytes < made.header_bytes:
        section.reader.fault(
            section.at("headers"), f"expected at least one header ({values.shown_size(made.header_bytes)})"
        )
    section.done()
    return made


def origin(path: str, value: Any) -> str:
    """An origin as browsers send it: scheme, host and, if it is another than the scheme's, port."""
    wrong = ConfigError(path, f"expected an origin such as https://app.example.com, got {values.shown(value)}")
    if not isinstance(value, str):
        raise wrong
    try:
        parts = urlsplit(value)
        name, port = parts.hostname, parts.port
    except ValueError:
        raise wrong from None
    if (
        parts.scheme not in ("http", "https")
        or not name
        or f"{parts.scheme}://{parts.netloc}" != value
        or parts.username
    ):
        raise wrong
    if "*" in value or value != value.lower() or port == {"http": 80, "https": 443}[parts.scheme]:
        raise wrong
    return value


def network(path: str, value: Any) -> str:
    """A network, or one address."""
    try:
        return str(ip_network(value if isinstance(value, str) else ""))
    except ValueError:
        raise ConfigError(
            path, f"expected a network such as 10.0.0.0/8, or an address, got {values.shown(value)}"
        ) from None


def _size(least: int) -> Callable[[str, Any], int]:
    def parse(path: str, value: Any) -> int:
        made = values.size(path, value)
        if not least <= made <= MAX_BYTES:
            raise ConfigError(path, f"expected a size from {values.shown_size(least)} to 1GiB, got {value!r}")
        return made

    return parse


def _count(least: int) -> Callable[[str, Any], int]:
    def parse(path: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= 1_000_000:
            raise ConfigError(path, f"expected a whole number from {least} to 1000000, got {value!r}")
        return value

    return parse


def _rate(path: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(path, f"expected a number above 0, got {value!r}")
    return float(value)


def _rate_or_none(path: str, value: Any) -> float | None:
    return None if value is None else _rate(path, value)


def _within(path: str, value: Any) -> float:
    made = values.duration(path, value)
    if not 100 <= made <= 3_600_000:
        raise ConfigError(path, f"expected a duration from 100ms to 1h, got {value!r}")
    return made
