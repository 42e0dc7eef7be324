"""What the variables of a mutation have to be: a small part of JSON Schema.

`type`, `enum`, `required`, `properties`, `additionalProperties` (true or false), `items`, `minLength`, `maxLength`, `minimum` and `maximum`
mean what they do in JSON Schema (2020-12, validation). What is not said is not asked for: unknown members are allowed.

What must not live here: reading a schema from the configuration (`cluster.config.mutations`).
"""

from typing import Any

from msgspec import Struct

from cluster.core.json_pointer import escape
from cluster.core.operation import is_number, json_equal

TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")


class Schema(Struct, frozen=True):
    """What a value has to be."""

    types: tuple[str, ...] = ()
    """Empty: any."""
    enum: tuple[Any, ...] | None = None
    required: tuple[str, ...] = ()
    properties: tuple[tuple[str, "Schema"], ...] = ()
    is_open: bool = True
    """Members beside `properties` are allowed."""
    items: "Schema | None" = None
    length: tuple[int, int | None] = (0, None)
    """Least and most characters of a text."""
    range: tuple[float | None, float | None] = (None, None)
    """Least and greatest number."""

    def fault(self, value: Any, at: str = "") -> tuple[str, str] | None:
        """Return where (a JSON Pointer) and in what a value is not what it has to be; None: it is."""
        if self.types and not any(_is(value, name) for name in self.types):
            return at, f"expected {' or '.join(self.types)}, got {value!r:.60}"
        if self.enum is not None and not any(json_equal(value, each) for each in self.enum):
            return at, f"expected one of {list(self.enum)!r:.100}, got {value!r:.60}"
        if isinstance(value, str):
            least, most = self.length
            if len(value) < least or (most is not None and len(value) > most):
                wanted = f"at least {least}" if len(value) < least else f"at most {most}"
                return at, f"expected {wanted} characters, got {len(value)}"
        elif is_number(value):
            low, high = self.range
            if (low is not None and value < low) or (high is not None and value > high):
                wanted = f"at least {low:g}" if low is not None and value < low else f"at most {high:g}"
                return at, f"expected {wanted}, got {value!r:.60}"
        elif isinstance(value, dict):
            return self._object_fault(value, at)
        elif isinstance(value, list) and self.items is not None:
            for position, item in enumerate(value):
                if (found := self.items.fault(item, f"{at}/{position}")) is not None:
                    return found
        return None

    def _object_fault(self, value: dict[str, Any], at: str) -> tuple[str, str] | None:
        for name in self.required:
            if name not in value:
                return f"{at}/{escape(name)}", "required"
        known = dict(self.properties)
        for name, member in value.items():
            schema = known.get(name)
            if schema is None:
                if not self.is_open:
                    return f"{at}/{escape(name)}", f"unknown, there are {', '.join(sorted(known)) or 'none'}"
                continue
            if (found := schema.fault(member, f"{at}/{escape(name)}")) is not None:
                return found
        return None


def _is(value: Any, name: str) -> bool:
    match name:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "integer":
            return is_number(value) and value == int(value)
        case _:
            return is_number(value)
