"""Reading a mapping of the configuration: one member after another, each fault with its place, the reason and the value.

What must not live here: what any mapping holds (`load`, `mutations`, `resources`), single values (`values`).
"""

import difflib
from collections.abc import Callable
from typing import Any

from cluster.config.values import shown
from cluster.errors import ConfigError

LATER = "not supported by this version"
NEVER = object()


class Faults:
    """Faults found so far."""

    def __init__(self) -> None:
        self.faults: list[ConfigError] = []

    def fault(self, path: str, reason: str) -> None:
        """Add one."""
        self.faults.append(ConfigError(path, reason))


class Section:
    """One mapping of the document, whose members are taken one by one; what is left over is unknown."""

    def __init__(self, reader: Faults, path: str, value: Any) -> None:
        self.reader = reader
        self.path = path
        self.known: list[str] = []
        self.is_mapping = isinstance(value, dict)
        if not self.is_mapping:
            reader.fault(path, f"expected a mapping, got {shown(value)}")
            value = {}
        self.value: dict[Any, Any] = value

    def at(self, name: str) -> str:
        """Return the path of a member."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        """Whether there is a member."""
        return name in self.value

    def take(self, name: str, default: Any, parse: Callable[[str, Any], Any]) -> Any:
        """Return the parsed member, or `default` where it is absent or faulty."""
        self.known.append(name)
        if name not in self.value:
            if default is NEVER:
                if self.is_mapping:
                    self.reader.fault(self.at(name), "required")
                return None
            return default
        try:
            return parse(self.at(name), self.value[name])
        except ConfigError as error:
            self.reader.faults.append(error)
            return None if default is NEVER else default

    def later(self, name: str, *allowed: Any) -> None:
        """A member that only a later version understands, except for `allowed` values."""
        self.known.append(name)
        if name in self.value and not any(self.value[name] == value for value in allowed):
            self.reader.fault(self.at(name), f"{LATER}, got {shown(self.value[name])}")

    def done(self) -> None:
        """Find the members that nobody took."""
        for name in self.value:
            if name not in self.known:
                near = difflib.get_close_matches(str(name), self.known, 1)
                hint = f", did you mean {near[0]}?" if near else f", expected one of {', '.join(sorted(self.known))}"
                self.reader.fault(self.at(str(name)), f"unknown key{hint}")


def listed(names: Any) -> str:
    """Return names as a fault lists them."""
    return ", ".join(sorted(names)) or "none"
