"""Equality of the parts of JSON values, where it is asked on every level above them as well.

They are looked into once: 32 levels over 400 KB took 14 s else.

Of numbers, texts and truth values `operation.json_equal` says what is equal.
"""

from typing import Any

from cluster.core.operation import json_equal


class Equality:
    """See the module. What it is asked about outlives it, and is not written to meanwhile."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], bool] = {}
        """Of objects and arrays, by where they are in memory."""

    def __call__(self, left: Any, right: Any) -> bool:
        """Whether two parts are equal, as `json_equal` has it."""
        if left is right:
            return True
        if type(left) is not type(right) or not isinstance(left, dict | list):
            return json_equal(left, right)
        pair = id(left), id(right)
        known = self._known.get(pair)
        if known is None:
            if isinstance(left, dict):
                known = left.keys() == right.keys() and all(self(left[name], right[name]) for name in left)
            else:
                known = len(left) == len(right) and all(map(self, left, right))
            self._known[pair] = known
        return known
