"""An entry as a shard holds it: with its version, where its data came from, and its place in the shard's memory.

Origins are texts, `kind:detail`: `fetch:api`, `stream:events/project:{id} task:created`, `write:`, `restored:`; clients get them as
an object (`protocol.origin_of`).
"""

from collections import deque
from typing import Any

from cluster.core.declared_query import DeclaredQuery
from cluster.core.entity_index import EntityType
from cluster.core.entry import Value
from cluster.core.memory import DECODED, ENTRY_BYTES
from cluster.core.messages import EntryView, KeyInfo
from cluster.core.operation import Operation
from cluster.core.overlay import Overlay, Remembered
from cluster.core.query_cache import Entry
from cluster.core.query_key import CanonicalKey
from cluster.core.query_options import QueryOptions
from cluster.core.transaction import StoredEntry
from cluster.errors import ErrorCode, HarborError

UNDECLARED = QueryOptions(stale_time=None, gc_time=None)
"""Options of an entry that no query declares: it cannot be fetched, and stays until somebody removes it."""
WRITE = "write:"
RESTORED = "restored:"
"""Before the origin that the data had when it was stored."""
UNCERTAIN = "?"
"""After an origin: operations that cannot be repeated came while it was fetched, every time."""


class ShardEntry(Entry):
    """See the module."""

    __slots__ = (
        "after",
        "before",
        "cause",
        "cause_at",
        "counts_decoded",
        "covering",
        "etag",
        "fetched_at",
        "may_give_way",
        "moved_at",
        "origin",
        "overlay",
        "query",
        "recent",
        "shown",
        "size",
        "version",
    )

    def __init__(self, key: CanonicalKey, query: DeclaredQuery | None, covering: tuple[EntityType, ...] = ()) -> None:
        super().__init__(key, UNDECLARED if query is None else query.options)
        self.query = query
        self.version = 0
        self.origin = ""
        """Where its data came from last."""
        self.fetched_at = 0.0
        """When it was last fetched with success; Unix ms, 0: never."""
        self.cause = ""
        """Why it is invalidated."""
        self.cause_at = 0.0
        self.etag: tuple[str, int] | None = None
        """(the upstream's, of which of its versions it is)."""
        self.recent: deque[tuple[float, list[Operation]]] | None = None
        """(receipt, operations), kept only for entries that are fetched."""
        self.covering = covering
        """Entity types its data consists of."""
        self.size = 0
        self.counts_decoded = False
        self.may_give_way = False
        self.moved_at = 0.0
        """When anything but a mutation last changed its data."""
        self.overlay: Overlay | Remembered | None = None
        """What lies over its data."""
        self.shown: Value | None = None
        """What clients see instead, where something does."""
        self.before: Any = None
        self.after: Any = None

    @property
    def is_refetchable(self) -> bool:
        """Whether it could be had again."""
        return self.query is not None

    @property
    def visible(self) -> Value | None:
        """What clients see of its data."""
        return self.value if self.overlay is None else self.shown

    @property
    def is_decoded(self) -> bool:
        """Whether it takes the memory of a decoded value."""
        return self.value is not None and self.value.is_decoded

    def bytes_held(self) -> int:
        """Return the bytes it takes."""
        value = self.value
        if value is None:
            return ENTRY_BYTES + len(self.key)
        size = value.size()
        return ENTRY_BYTES + len(self.key) + (size * (1 + DECODED) if value.is_decoded else size)

    def view(self, *, is_offline: bool) -> EntryView:
        """Return the entry as readers see it."""
        visible = self.visible
        return EntryView(
            self.key,
            self.version,
            None if visible is None else visible.json(),
            int(self.data_updated_at),
            self.status if self.overlay is None else "pending" if visible is None else "success",
            self.fetch_status,
            self.is_invalidated,
            self.stale_at,
            None if self.error is None else error_of(self.error),
            is_offline,
            self.origin,
            int(self.fetched_at),
            self.doubt if self.is_invalidated else None,
        )

    @property
    def doubt(self) -> tuple[str, int] | None:
        """Why, and since when, it is invalidated; None: it is not."""
        return (self.cause, int(self.cause_at)) if self.is_invalidated else None

    def stored(self) -> StoredEntry | None:
        """Return what lasts of it; None: nobody knows it. Of one that is not to be kept, that it was known lasts, and at which version."""
        if self.visible is None:
            return None
        lasts = self.value is not None and (self.query is None or self.query.persist)
        return self._row(self.value.json() if lasts and self.value is not None else b"")

    def moved(self) -> StoredEntry | None:
        """Return what of it goes along to another shard, whether or not it lasts; None: it has no data."""
        return None if self.value is None else self._row(self.value.json())

    def _row(self, data: bytes) -> StoredEntry:
        return StoredEntry(
            self.key,
            self.version,
            data,
            self.data_updated_at,
            self.fetched_at,
            self.origin.removeprefix(RESTORED),
            (self.cause, self.cause_at) if self.is_invalidated else None,
            self.etag,
            self.overlay is not None,
            self.shown.json() if self.overlay is not None and self.shown is not None else b"",
        )

    def info(self, now_ms: float, gateways: int) -> KeyInfo:
        """Return the entry's row in a key listing."""
        return KeyInfo(self.key, self.version, self.status, self.is_stale(now_ms), gateways)


def error_of(error: Any) -> tuple[str, str] | None:
    """Return (code, message) of what a fetch failed with."""
    if error is None:
        return None
    if isinstance(error, HarborError):
        return (str(error.code), error.message)
    return (str(ErrorCode.UPSTREAM_ERROR), "the fetch was cancelled")
