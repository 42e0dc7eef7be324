"""Single values of the configuration: functions of (path, value) that return what is meant, or say what was expected there (`ConfigError`).

What must not live here: mappings (`section`).
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from cluster.config.model import masked_url
from cluster.config.rules import FUNCTION
from cluster.core import template
from cluster.core.json_pointer import tokens
from cluster.core.reserved import ROOT, is_reserved
from cluster.core.staleness import STATIC, StaleTime
from cluster.errors import ConfigError, OperationError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)\Z")
_SIZE = re.compile(r"(\d+)(B|KiB|MiB|GiB)\Z")
_SIZE_BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_DURATION_MS = {"ms": 1.0, "s": 1_000.0, "m": 60_000.0, "h": 3_600_000.0, "d": 86_400_000.0}


def shown(value: Any) -> str:
    """Return a value as faults show it: short, and without what may be a credential."""
    found = repr(masked_url(value) if isinstance(value, str) else value)
    return found if len(found) <= 60 else found[:57] + "..."


def text(path: str, value: Any) -> str:
    """A text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ConfigError(path, f"expected text, got {value!r}")
    return value


def place(path: str, value: Any) -> str:
    """The name of a file or directory, which need not be there."""
    if "\0" in text(path, value):
        raise ConfigError(path, f"expected the name of a place in the file system, got {shown(value)}")
    return str(value)


def names(path: str, value: Any) -> tuple[str, ...]:
    """Names of members."""
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise ConfigError(path, f"expected a list of members' names, got {shown(value)}")
    return tuple(value)


def pointer(path: str, value: Any) -> str:
    """A JSON Pointer."""
    try:
        tokens(text(path, value))
    except OperationError as error:
        raise ConfigError(path, error.message) from error
    return str(value)


def function(path: str, value: Any) -> str:
    """A Python function, `module:name`."""
    if not isinstance(value, str) or not FUNCTION.match(value):
        raise ConfigError(path, f"expected module:function, got {shown(value)}")
    return value


def flag(path: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ConfigError(path, f"expected true or false, got {value!r}")
    return value


def at_least(minimum: int, path: str, value: Any) -> int:
    """A whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(path, f"expected a whole number of at least {minimum}, got {value!r}")
    return value


whole, at_least_one = partial(at_least, 0), partial(at_least, 1)


def retry(path: str, value: Any) -> int | bool:
    """How often something is tried again; true: for ever."""
    return value if isinstance(value, bool) else whole(path, value)


def stale_time(path: str, value: Any) -> StaleTime:
    """After how long data is stale."""
    return STATIC if value == STATIC else endless(path, value)


def endless(path: str, value: Any) -> float | None:
    """A duration, or None for infinity."""
    return None if value == "infinity" else duration(path, value)


def duration(path: str, value: Any) -> float:
    """Return a duration in milliseconds.

    Raises:
        ConfigError: it is none.
    """
    match = _DURATION.match(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(path, f"expected a duration such as 100ms, 60s, 5m or 24h, got {value!r}")
    return float(match[1]) * _DURATION_MS[match[2]]


def size(path: str, value: Any) -> int:
    """Bytes, written with their unit."""
    match = _SIZE.match(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(path, f"expected a size such as 64KiB or 1MiB, got {value!r}")
    return int(match[1]) * _SIZE_BYTES[match[2]]


def shown_size(size_bytes: int) -> str:
    """Return bytes as they are written, in the largest unit that leaves a whole number."""
    unit = next(unit for unit in reversed(_SIZE_BYTES) if size_bytes % _SIZE_BYTES[unit] == 0)
    return f"{size_bytes // _SIZE_BYTES[unit]}{unit}"


def one_of(*choices: str) -> Callable[[str, Any], str]:
    """One of several texts."""

    def parse(path: str, value: Any) -> str:
        if value not in choices:
            raise ConfigError(path, f"expected {' or '.join(choices)}, got {value!r}")
        return str(value)

    return parse


def anything(_: str, value: Any) -> Any:
    """Any JSON."""
    return value


def key(path: str, value: Any) -> list[Any]:
    """A key, or the template of one."""
    if not isinstance(value, list) or not value:
        raise ConfigError(path, f"expected an array with at least one element, got {value!r}")
    if is_reserved(value):
        raise ConfigError(path, f'keys under "{ROOT}" are the cluster\'s own')
    return value


def path(path: str, value: Any) -> str:
    """The path of a request."""
    if not isinstance(value, str) or not value.startswith("/"):
        raise ConfigError(path, f"expected a path that begins with '/', got {value!r}")
    return value


def params(path: str, value: Any) -> Any:
    """Parameters of a request: a mapping, or a placeholder for one."""
    if not isinstance(value, dict) and not isinstance(template.parse(value), template.Hole):
        raise ConfigError(path, f"expected a mapping or one placeholder, got {value!r}")
    return value
