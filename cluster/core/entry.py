"""The value of an entry: JSON that is kept as bytes, as the decoded object, or both, and converted when somebody needs the other."""

from typing import Any

import orjson

from cluster.errors import OperationError

MAX_DEPTH = 254
"""Levels of nesting. orjson reads 1024 but writes no more than this, so what is deeper could be kept but never edited."""


def written_bytes(decoded: Any, lead: int = 0) -> int:
    """Return how long a value that stands `lead` levels deep is as JSON, all levels included; 0: it cannot be written."""
    for _ in range(lead):
        decoded = [decoded]
    try:
        return len(orjson.dumps(decoded))
    except TypeError:
        return 0


def is_too_deep(json: bytes, decoded: Any, lead: int = 0) -> bool:
    """Whether a value, given as text and decoded, that stands `lead` levels deep cannot be written; most are told by their text."""
    return (
        len(json) >= 2 * (MAX_DEPTH - lead)  # a level takes two bytes
        and json.count(b"[") + json.count(b"{") + lead > MAX_DEPTH
        and not written_bytes(decoded, lead)
    )


def compact(json: bytes) -> bytes:
    """Return a copy of what orjson wrote, to be kept: orjson's own keeps the room it was written in, 4 KiB at least (3.13)."""
    return bytes(memoryview(json))


class Value:
    """A JSON value. Whole-value writes never decode it, edits never encode it until a reader comes."""

    __slots__ = ("_json", "_object")

    def __init__(self, json: bytes | None, decoded: Any) -> None:
        self._json = json
        self._object = decoded

    @classmethod
    def from_json(cls, json: bytes) -> "Value":
        """Wrap JSON text, which must be valid."""
        return cls(json, _UNDECODED)

    @classmethod
    def from_object(cls, decoded: Any) -> "Value":
        """Wrap a decoded value."""
        return cls(None, decoded)

    @property
    def is_decoded(self) -> bool:
        """Whether it takes the memory of a decoded value."""
        return self._object is not _UNDECODED

    def json(self) -> bytes:
        """Return the value as JSON text."""
        if self._json is None:
            self._json = compact(orjson.dumps(self._object))
        return self._json

    def object(self) -> Any:
        """Return the value decoded; whoever edits it in place calls `mutated` after.

        Raises:
            OperationError: it is not JSON after all, or deeper than can be written again.
        """
        if self._object is _UNDECODED:
            assert self._json is not None
            try:
                decoded = orjson.loads(self._json)
            except ValueError as error:
                raise OperationError(f"not JSON: {error}") from error
            if is_too_deep(self._json, decoded):
                raise OperationError(f"deeper than {MAX_DEPTH} levels")
            self._object = decoded
        return self._object

    def mutated(self, decoded: Any) -> None:
        """The decoded value was edited, or replaced by `decoded`."""
        self._object = decoded
        self._json = None

    def size(self) -> int:
        """Bytes of JSON text."""
        return len(self._json if self._json is not None else self.json())


class _Undecoded:
    __slots__ = ()


_UNDECODED = _Undecoded()
