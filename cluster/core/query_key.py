"""Query keys: JSON arrays that name queries.

The canonical form is the text that TanStack query-core's `hashKey` gives: `JSON.stringify` with object members sorted as JavaScript
sorts them (by UTF-16 code units, then integer-like names first, since that is the order a JavaScript object lists them in) and
numbers written as ECMAScript writes them. Two keys name the same entry if and only if their canonical forms are equal, and a key made
by a browser hashes to the same entry as one made here.

Every canonical key is at most `MAX_KEY_BYTES` long and `MAX_DEPTH` deep, however it was made: `canonical` refuses others. What travels
between actors as a `CanonicalKey` can therefore always be parsed again; an event that captures a long text cannot poison a shard.

What must not live here: templates with placeholders (`template`), placement (`placement`).
"""

import json
import math
import re
from typing import Any, NewType, NoReturn

import msgspec
import orjson

from cluster.errors import ErrorCode, LimitError, RequestError

CanonicalKey = NewType("CanonicalKey", str)
MAX_KEY_BYTES = 1024
"""UTF-8 bytes of the canonical form. Keys name things; longer ones are data in the wrong place and are refused."""
MAX_DEPTH = 32
"""Levels of nesting, the outer array being the first."""
_MAX_SAFE_INTEGER = 2**53
_ARRAY_INDEX = re.compile(r"(?:0|[1-9][0-9]{0,9})\Z")
_SURROGATE = re.compile("[\ud800-\udfff]")
_number = float.__repr__


def canonical(key: list[Any], *, max_bytes: int = MAX_KEY_BYTES) -> CanonicalKey:
    """Return the canonical form of a key.

    Raises:
        RequestError: `BAD_KEY` where the key holds something JSON cannot say, `TOO_DEEP` or `TOO_LARGE`.
    """
    text = _write_plain(key)
    if text is None:
        text = _write(key, 1)
    size = _size(text)
    if size > max_bytes:
        _too_large(max_bytes, size)
    return CanonicalKey(text)


def _write_plain(key: list[Any]) -> str | None:
    """Write a key of texts and safe integers, which nearly all are, in one call; None: it is not such a key."""
    for item in key:
        kind = type(item)
        if kind is not str and (kind is not int or not -_MAX_SAFE_INTEGER <= item <= _MAX_SAFE_INTEGER):
            return None
    try:
        return orjson.dumps(key).decode()
    except orjson.JSONEncodeError:  # a lone surrogate
        return None


def _size(text: str | bytes) -> int:
    return len(text) if isinstance(text, bytes) or text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _write(value: Any, depth: int) -> str:
    kind = type(value)
    if kind is str:
        return _string(value)
    if kind is int:
        return str(value) if -_MAX_SAFE_INTEGER <= value <= _MAX_SAFE_INTEGER else number_text(_as_float(value))
    if kind is bool:
        return "true" if value else "false"
    if value is None:
        return "null"
    if kind is float:
        return number_text(value)
    if depth > MAX_DEPTH:
        _too_deep(MAX_DEPTH)
    if kind is list or kind is tuple:
        return "[" + ",".join([_write(item, depth + 1) for item in value]) + "]"
    if kind is dict:
        members = (f"{_string(name)}:{_write(value[name], depth + 1)}" for name in sorted(value, key=_member_order))
        return "{" + ",".join(members) + "}"
    raise RequestError(ErrorCode.BAD_KEY, f"a query key is made of JSON values, not {kind.__name__}")


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        # JavaScript reads it as Infinity and writes null, which would give different keys one entry.
        raise RequestError(ErrorCode.BAD_KEY, "a number in a query key is out of range") from None


def _string(text: str) -> str:
    try:
        return orjson.dumps(text).decode()
    except orjson.JSONEncodeError:
        # A lone surrogate, which JSON.stringify writes as an escape.
        pieces = []
        last = 0
        for match in _SURROGATE.finditer(text):
            pieces.append(orjson.dumps(text[last : match.start()]).decode()[1:-1])
            pieces.append(f"\\u{ord(match[0]):04x}")
            last = match.end()
        pieces.append(orjson.dumps(text[last:]).decode()[1:-1])
        return '"' + "".join(pieces) + '"'


def _member_order(name: str) -> tuple[int, int, bytes]:
    if _ARRAY_INDEX.match(name) and int(name) < 2**32 - 1:
        return (0, int(name), b"")
    return (1, 0, name.encode("utf-16-be", "surrogatepass"))


def number_text(number: float) -> str:
    """Write a number as ECMAScript's Number::toString does (ECMA-262, 6.1.6.1.20)."""
    if not math.isfinite(number):
        return "null"
    if number == 0:
        return "0"
    sign = "-" if number < 0 else ""
    mantissa, _, exponent = _number(abs(number)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = "" if fraction == "0" else fraction
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0)
    if whole == "0":
        point -= 1 + len(fraction) - len(fraction.lstrip("0"))
    digits = digits.rstrip("0") or "0"
    count = len(digits)
    if count <= point <= 21:
        text = digits + "0" * (point - count)
    elif 0 < point <= 21:
        text = digits[:point] + "." + digits[point:]
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        power = point - 1
        text = digits[0] + ("." + digits[1:] if count > 1 else "") + f"e{'+' if power > 0 else '-'}{abs(power)}"
    return sign + text


def parse(text: str | bytes, *, max_bytes: int = MAX_KEY_BYTES, max_depth: int = MAX_DEPTH) -> list[Any]:
    """Read a key from JSON text; a canonical key always can be read.

    Raises:
        RequestError: `BAD_KEY`, `TOO_LARGE` or `TOO_DEEP`, with the reason.
    """
    size = _size(text)
    if size > max_bytes:
        _too_large(max_bytes, size)
    try:
        key = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise RequestError(ErrorCode.BAD_KEY, f"a query key is a JSON array, got {_shown(text)}: {error}") from error
    return checked(key, max_depth=max_depth)


def elements(key: str) -> list[Any]:
    """Return the elements of a canonical key, which need no check."""
    parsed: list[Any] = msgspec.json.decode(key)
    return parsed


def checked(key: Any, *, max_depth: int = MAX_DEPTH) -> list[Any]:
    """Return `key` if it can be a query key.

    Raises:
        RequestError: `BAD_KEY` or `TOO_DEEP`.
    """
    if not isinstance(key, list):
        raise RequestError(ErrorCode.BAD_KEY, f"a query key is a JSON array, got {_shown(repr(key))}")
    if depth(key, max_depth) > max_depth:
        _too_deep(max_depth)
    return key


def normalized(text: str | bytes) -> CanonicalKey:
    """Return the canonical form of a key given as JSON text.

    Raises:
        RequestError: as `parse`.
    """
    return canonical(parse(text))


def _too_large(most: int, size: int) -> NoReturn:
    raise LimitError(ErrorCode.TOO_LARGE, "key", most, f"a query key may have {most} bytes, this one has {size}")


def _too_deep(most: int) -> NoReturn:
    raise LimitError(ErrorCode.TOO_DEEP, "depth", most, f"a query key may nest {most} deep")


def _shown(text: str | bytes) -> str:
    shown = text.decode(errors="replace") if isinstance(text, bytes) else text
    return shown if len(shown) <= 80 else shown[:77] + "..."


def depth(value: Any, limit: float = math.inf) -> int:
    """Levels of nesting, found without recursion and given up just past `limit`."""
    level, levels = [value], 0
    while levels <= limit:
        containers = [item for item in level if isinstance(item, dict | list)]
        if not containers:
            break
        levels += 1
        level = [child for item in containers for child in (item.values() if isinstance(item, dict) else item)]
    return levels


def partial_match(key: Any, prefix: Any) -> bool:
    """Whether `key` is under `prefix`, as query-core's `partialMatchKey`: element by element, partially inside objects too.

    Integers beyond 2^53 compare exactly here, as doubles in the canonical form; `KeyMatcher` evens that out.
    """
    if isinstance(prefix, str) or prefix is None:
        return bool(key == prefix)
    if isinstance(key, bool) or isinstance(prefix, bool):
        return key is prefix
    if isinstance(prefix, list) and isinstance(key, list):
        if len(prefix) > len(key):
            return False
        return all(partial_match(item, wanted) for item, wanted in zip(key, prefix, strict=False))
    if isinstance(prefix, dict | list):
        if not isinstance(key, dict | list):
            return False
        # As in JavaScript, an array is an object whose names are its indexes.
        held, asked = _members(key), _members(prefix)
        return all(name in held and partial_match(held[name], wanted) for name, wanted in asked.items())
    if isinstance(key, int | float) and isinstance(prefix, int | float):
        return key == prefix
    return False


def _members(value: dict[str, Any] | list[Any]) -> dict[str, Any]:
    return value if isinstance(value, dict) else {str(position): item for position, item in enumerate(value)}


def exact_match(key: list[Any], wanted: list[Any]) -> bool:
    """Whether both name the same entry. It is there for the vectors of query-core (`tests/conformance`): the cluster has canonical keys."""
    return canonical(key) == canonical(wanted)


class KeyMatcher:
    """A prefix, prepared for being tried on many entries.

    Where it holds neither object nor array, a key matches exactly when its canonical text begins with the prefix's; only others need
    the parsed key.
    """

    __slots__ = ("_head", "_textual", "key", "prefix")

    def __init__(self, prefix: list[Any]) -> None:
        self.key = canonical(prefix)
        # Read back, so that its numbers are those of entries' keys, which are read from the canonical form too. `json` because it
        # alone reads lone surrogates.
        self.prefix: list[Any] = json.loads(self.key)
        self._textual = all(not isinstance(item, dict | list) for item in prefix)
        self._head = self.key[:-1] + ("," if prefix else "")

    def matches(self, key: str, parsed: list[Any] | None = None) -> bool:
        """Whether the entry with this canonical key is under the prefix; `parsed` is the same key, if the caller has it."""
        if self._textual:
            return key.startswith(self._head) or key == self.key
        return partial_match(parse(key) if parsed is None else parsed, self.prefix)
