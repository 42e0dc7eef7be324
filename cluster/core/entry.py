"""The value of an entry: JSON that is kept as bytes, as the decoded object, or both, and converted when somebody needs the other."""

from typing import Any

import orjson


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

    def json(self) -> bytes:
        """Return the value as JSON text."""
        if self._json is None:
            self._json = orjson.dumps(self._object)
        return self._json

    def object(self) -> Any:
        """Return the value decoded; whoever edits it in place calls `mutated` after."""
        if self._object is _UNDECODED:
            assert self._json is not None
            self._object = orjson.loads(self._json)
        return self._object

    def mutated(self, decoded: Any) -> None:
        """The decoded value was edited, or replaced by `decoded`."""
        self._object = decoded
        self._json = None

    def size(self) -> int:
        """Bytes of JSON text."""
        return len(self.json())


class _Undecoded:
    __slots__ = ()


_UNDECODED = _Undecoded()
