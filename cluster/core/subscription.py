"""Subscriptions as interests: which watchers, of exact keys and of prefixes, an entry concerns.

A cache with many prefixes may not try each on every change, so prefixes are filed under their first element, which nearly always is a
string; those that begin otherwise are tried on every key.

What must not live here: what a session has been sent (`session_state`).
"""

from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

from cluster.core.query_key import KeyMatcher


T = TypeVar("T", bound=Hashable)


class Interests(Generic[T]):
    """Watchers by exact key and by prefix."""

    def __init__(self) -> None:
        self._exact: dict[str, T] = {}
        self._prefixes: dict[Any, dict[T, KeyMatcher]] = {}

    def add_exact(self, key: str, watcher: T) -> None:
        """Watch one key; a key has one exact watcher."""
        self._exact[key] = watcher

    def discard_exact(self, key: str) -> None:
        """End the exact watch of a key."""
        self._exact.pop(key, None)

    def add_prefix(self, matcher: KeyMatcher, watcher: T) -> None:
        """Watch everything under a prefix."""
        self._prefixes.setdefault(_head(matcher.prefix), {})[watcher] = matcher

    def discard_prefix(self, matcher: KeyMatcher, watcher: T) -> None:
        """End the watch of a prefix."""
        head = _head(matcher.prefix)
        bucket = self._prefixes.get(head, {})
        bucket.pop(watcher, None)
        if not bucket:
            self._prefixes.pop(head, None)

    def matching(self, key: str, parsed: list[Any]) -> Iterator[T]:
        """Yield the watchers of a key."""
        exact = self._exact.get(key)
        if exact is not None:
            yield exact
        for head in {_head(parsed), None}:
            for watcher, matcher in self._prefixes.get(head, {}).items():
                if matcher.matches(key, parsed):
                    yield watcher


def _head(key: list[Any]) -> str | None:
    return key[0] if key and isinstance(key[0], str) else None
