"""Declared queries: keys the cluster can fetch, and how.

What must not live here: sending requests (`cluster.services`), when to fetch (`shard_state`).
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any
from urllib.parse import quote

import orjson
from msgspec import Struct, structs

from cluster.core import template
from cluster.core.infinite import OffsetPaging, PageFetch
from cluster.core.query_options import DEFAULT_OFFLINE_TIME_MS, QueryOptions
from cluster.core.reserved import is_reserved
from cluster.core.retry import retry_delay_ms
from cluster.core.staleness import StaleTime
from cluster.core.template import HeadIndex, Hole, MissingCapture, Node, Path, Text

DOTS = frozenset({".", ".."})


class FetchRequest(Struct, frozen=True):
    """A GET to a service."""

    service: str
    path: str
    """Percent-encoded, below the service's base URL."""
    params: tuple[tuple[str, str], ...] = ()
    etag: str | None = None
    """What is held already: the service may answer that it still is so."""
    method: str = "GET"


class Response(Struct, frozen=True):
    """What a request came to."""

    body: bytes | None
    """JSON on one line; None: what is held already still is so."""
    etag: str | None = None


class FunctionRequest(Struct, frozen=True):
    """A call of a Python function."""

    function: str
    """`module:qualified.name`."""
    captures: dict[str, Any]
    is_paged: bool = False
    page_param: Any = None
    service: str = ""


class DeclaredQuery(Struct, frozen=True):
    """A query of the configuration: a GET to a service, or a Python function."""

    key: Node
    service: str
    path: Node
    params: Node | None = None
    stale_time: StaleTime = 60_000.0
    gc_time_ms: float | None = 300_000.0
    offline_time_ms: float | None = DEFAULT_OFFLINE_TIME_MS
    retry: int | bool = 3
    retry_delay_ms: float | None = None
    """None: doubling from a second, see `retry`."""
    refetch_interval_ms: float = 0.0
    paging: OffsetPaging | None = None
    function: str | None = None
    persist: bool = True
    """Whether its entries are stored."""
    options: QueryOptions = QueryOptions()
    """What the cache does with its entries; made from the rest."""
    segments: tuple[Path, ...] = ()
    """Placeholders of its path, without those of parameters there; made from the rest."""

    def __post_init__(self) -> None:
        structs.force_setattr(self, "options", _options(self))
        structs.force_setattr(self, "segments", _segments(self.path))

    def captures(self, key: list[Any]) -> dict[Path, Any] | None:
        """Return what the key template's placeholders are in `key`, or None where it does not match.

        A key that would lead elsewhere does not: no encoding keeps a path's segment `..` from being taken for the way up, and an empty
        one asks for what is above, all of a collection in place of one.
        """
        captures: dict[Path, Any] = {}
        if not template.match(self.key, key, captures) or any(captures[each] == "" for each in self.segments):
            return None
        return captures if DOTS.isdisjoint(self._path(captures).split("/")) else None

    def request_for(
        self, key: list[Any], pages: PageFetch | None = None, etag: str | None = None
    ) -> FetchRequest | FunctionRequest:
        """Return the request that fetches `key`, which must match, or the page of it that `pages` asks for."""
        captures = self.captures(key)
        assert captures is not None
        if self.function is not None:
            named = {path[0]: value for path, value in captures.items()}
            param = None if pages is None else pages.param
            return FunctionRequest(self.function, named, pages is not None, param)

        def lookup(path: Path) -> Any:
            return captures[path]

        pairs = as_parameters(None if self.params is None else template.build(self.params, lookup))
        if pages is not None and self.paging is not None and pages.param is not None:
            pairs.append((self.paging.param, as_parameter(pages.param)))
        return FetchRequest(self.service, self._path(captures), tuple(pairs), etag)

    def _path(self, captures: dict[Path, Any]) -> str:
        return str(template.build(self.path, lambda path: quote(as_parameter(captures[path]), safe="")))


def _segments(path: Node) -> tuple[Path, ...]:
    parts = path.parts if isinstance(path, Text) else (path.path,) if isinstance(path, Hole) else ()
    before = takewhile(lambda part: isinstance(part, tuple) or "?" not in part, parts)
    return tuple(part for part in before if isinstance(part, tuple))


def _options(query: DeclaredQuery) -> QueryOptions:
    retries, configured = query.retry, query.retry_delay_ms

    def retry(failures: int, error: Any) -> bool:
        return bool(getattr(error, "retryable", False)) and (retries is True or failures < retries)

    def delay(failures: int, error: Any) -> float:
        return max(retry_delay_ms(failures, configured), getattr(error, "retry_after_ms", None) or 0.0)

    return QueryOptions(
        stale_time=query.stale_time,
        gc_time=query.gc_time_ms,
        offline_time=query.offline_time_ms,
        retry=retry,
        retry_delay=delay,
        service=query.service,
        paging=query.paging,
        refetch_interval=query.refetch_interval_ms,
    )


def as_parameter(value: Any) -> str:
    """Return a value as it is written in a path or a query."""
    try:
        return template.as_text(value)
    except MissingCapture:
        return orjson.dumps(value).decode()


def as_parameters(params: Any) -> list[tuple[str, str]]:
    """Return the parameters of a request: a list repeats one, None leaves one out. What is no object has none."""
    pairs: list[tuple[str, str]] = []
    for name, value in params.items() if isinstance(params, dict) else ():
        values = value if isinstance(value, list) else [] if value is None else [value]
        pairs.extend((name, as_parameter(each)) for each in values)
    return pairs


class DeclaredQueries:
    """All declared queries; the first whose key template matches counts."""

    def __init__(self, queries: Sequence[DeclaredQuery]) -> None:
        self._queries = queries
        self._index = HeadIndex((query.key, query) for query in queries)

    def find(self, key: list[Any]) -> DeclaredQuery | None:
        """Return the query that `key` belongs to; none has what the cluster says of itself."""
        if is_reserved(key):
            return None
        for query in self._index.candidates(key):
            if query.captures(key) is not None:
                return query
        return None

    def concerns(self, service: str, key: list[Any], *, prefix: bool) -> bool:
        """Whether a service is asked for a key, or for keys under a prefix."""
        if not prefix:
            query = self.find(key)
            return query is not None and query.service == service
        return any(query.service == service and template.compatible(query.key, key) for query in self._queries)
