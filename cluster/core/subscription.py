"""Subscriptions as interests: which watchers, of exact keys and of prefixes, an entry concerns.

A gateway may hold thousands of prefixes that all begin alike (`["projects", "detail", <id>]`), and may not try each on every change. So
a prefix is filed under all the scalars it begins with, and a key is looked up once per length of such a beginning that occurs: one to
three lookups, however many prefixes there are. What is found is still tried, since a prefix may go on with objects or arrays.

What must not live here: what a session has been sent (`session_state`).
"""

from collections.abc import Hashable, Iterator
from typing import Any, Generic, TypeVar

from cluster.core.query_key import KeyMatcher

T = TypeVar("T", bound=Hashable)


class Interests(Generic[T]):
    """Watchers by exact key and by prefix."""

    __slots__ = ("_exact", "_lengths", "_prefixes")

    def __init__(self) -> None:
        self._exact: dict[str, T] = {}
        self._prefixes: dict[tuple[Any, ...], dict[T, KeyMatcher]] = {}
        self._lengths: dict[int, int] = {}
        """How many of the filed beginnings have each length."""

    def add_exact(self, key: str, watcher: T) -> None:
        """Watch one key; a key has one exact watcher."""
        self._exact[key] = watcher

    def discard_exact(self, key: str) -> None:
        """End the exact watch of a key."""
        self._exact.pop(key, None)

    def add_prefix(self, matcher: KeyMatcher, watcher: T) -> None:
        """Watch everything under a prefix."""
        beginning = _scalars(matcher.prefix)
        bucket = self._prefixes.get(beginning)
        if bucket is None:
            bucket = self._prefixes[beginning] = {}
            self._lengths[len(beginning)] = self._lengths.get(len(beginning), 0) + 1
        bucket[watcher] = matcher

    def discard_prefix(self, matcher: KeyMatcher, watcher: T) -> None:
        """End the watch of a prefix."""
        beginning = _scalars(matcher.prefix)
        bucket = self._prefixes.get(beginning)
        if bucket is None:
            return
        bucket.pop(watcher, None)
        if not bucket:
            del self._prefixes[beginning]
            self._lengths[len(beginning)] -= 1
            if not self._lengths[len(beginning)]:
                del self._lengths[len(beginning)]

    def matching(self, key: str, parsed: list[Any]) -> Iterator[T]:
        """Yield the watchers of an entry, given its canonical key and that key parsed; nothing may be added meanwhile."""
        exact = self._exact.get(key)
        if exact is not None:
            yield exact
        if not self._prefixes:
            return
        scalars = _scalars(parsed)
        for length in self._lengths:
            if length <= len(scalars):
                for watcher, matcher in self._prefixes.get(scalars[:length], {}).items():
                    if matcher.matches(key, parsed):
                        yield watcher


def _scalars(key: list[Any]) -> tuple[Any, ...]:
    """The scalars a key begins with. True and 1 are equal here, as dictionaries see them: they share a bucket, the matcher decides."""
    for index, item in enumerate(key):
        if isinstance(item, dict | list):
            return tuple(key[:index])
    return tuple(key)
