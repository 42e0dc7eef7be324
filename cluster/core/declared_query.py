"""Declared queries: keys the cluster can fetch, and how.

What must not live here: sending requests (`cluster.services`), when to fetch (`shard_state`).
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import orjson
from msgspec import Struct

from cluster.core import template
from cluster.core.template import HeadIndex, MissingCapture, Node, Path

_DOTS = frozenset({".", ".."})


class FetchRequest(Struct, frozen=True):
    """A GET to a service."""

    service: str
    path: str
    """Percent-encoded, below the service's base URL."""
    params: tuple[tuple[str, str], ...] = ()
    method: str = "GET"


class DeclaredQuery(Struct, frozen=True):
    """A query of the configuration."""

    key: Node
    service: str
    path: Node
    params: Node | None = None
    stale_time_ms: float | None = 60_000.0
    """None: data never goes stale by itself."""
    gc_time_ms: float | None = 300_000.0
    retry: int = 3
    retry_delay_ms: float | None = None
    """None: doubling from a second, see `retry`."""

    def captures(self, key: list[Any]) -> dict[Path, Any] | None:
        """Return what the key template's placeholders are in `key`, or None where it does not match.

        A key that would lead elsewhere does not: no encoding keeps a path's segment `..` from being taken for the way up.
        """
        captures: dict[Path, Any] = {}
        if not template.match(self.key, key, captures):
            return None
        return captures if _DOTS.isdisjoint(self._path(captures).split("/")) else None

    def request_for(self, key: list[Any]) -> FetchRequest:
        """Return the request that fetches `key`, which must match."""
        captures = self.captures(key)
        assert captures is not None

        def lookup(path: Path) -> Any:
            return captures[path]

        params = None if self.params is None else template.build(self.params, lookup)
        pairs: list[tuple[str, str]] = []
        if isinstance(params, dict):
            for name, value in params.items():
                if isinstance(value, list):
                    pairs.extend((name, _param(item)) for item in value)
                elif value is not None:
                    pairs.append((name, _param(value)))
        return FetchRequest(self.service, self._path(captures), tuple(pairs))

    def _path(self, captures: dict[Path, Any]) -> str:
        return str(template.build(self.path, lambda path: quote(_param(captures[path]), safe="")))


def _param(value: Any) -> str:
    try:
        return template.as_text(value)
    except MissingCapture:
        return orjson.dumps(value).decode()


class DeclaredQueries:
    """All declared queries; the first whose key template matches counts."""

    def __init__(self, queries: Sequence[DeclaredQuery]) -> None:
        self._index = HeadIndex((query.key, query) for query in queries)

    def find(self, key: list[Any]) -> DeclaredQuery | None:
        """Return the query that `key` belongs to."""
        for query in self._index.candidates(key):
            if query.captures(key) is not None:
                return query
        return None
