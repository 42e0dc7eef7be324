"""Keys as a tree: which elements follow a prefix, and how many entries are under each.

A listing of 100,000 keys shows nobody what there is. Elements are read off the canonical text, since parsing every key would cost ten
times as much: after the text of the prefix one stands up to the comma or bracket that ends it.

What must not live here: which entries there are (`query_cache`), pages of them (`shard_state`).
"""

import re
from heapq import nsmallest

from cluster.core.query_key import canonical, elements

_ELEMENT = re.compile(r'"(?:[^"\\]|\\.)*"|[^,\[\]{}"]+')
"""A scalar, from where it begins."""
Branch = tuple[str, int, bool]
"""(element as JSON, entries whose key begins with prefix and element, whether one is exactly that)."""


class Branches:
    """The elements that follow a prefix. Keys are added one by one, since there may be too many for one step of a shard."""

    def __init__(self, prefix: str, after: str, limit: int) -> None:
        """`prefix`: canonical; `after`: elements whose text follows this one; `limit`: so many at most."""
        self._prefix = prefix
        self._head = prefix[:-1] + ("," if prefix != "[]" else "")
        self._after = after
        self._limit = limit
        self._found: dict[str, list[int]] = {}

    def add(self, key: str) -> None:
        """Add a canonical key that is under the prefix, partially inside objects too (`partial_match`).

        One that only matches so, and the prefix itself, are not under an element.
        """
        if not key.startswith(self._head) or key == self._prefix:
            return
        start = len(self._head)
        match = _ELEMENT.match(key, start)
        text = match[0] if match is not None else _container(key, self._prefix)
        counts = self._found.setdefault(text, [0, 0])
        counts[0] += 1
        counts[1] += start + len(text) + 1 == len(key)

    def listed(self) -> tuple[list[Branch], bool]:
        """Return the elements, in order of their text; and whether there are more."""
        texts = nsmallest(self._limit + 1, (text for text in self._found if text > self._after))
        found = [(text, self._found[text][0], bool(self._found[text][1])) for text in texts[: self._limit]]
        return found, len(texts) > self._limit


def _container(key: str, prefix: str) -> str:
    """Return the text of an array or an object that follows a prefix."""
    return canonical([elements(key)[len(elements(prefix))]])[1:-1]
