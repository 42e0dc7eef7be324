"""A replica: what a gateway knows of an entry that its sessions watch."""

from typing import TYPE_CHECKING, Any

import orjson

from cluster.core import json_patch
from cluster.core.entry import Value
from cluster.core.messages import Change, EntryView, Meta
from cluster.core.query_key import elements

if TYPE_CHECKING:
    from cluster.core.topic import Topic


class Replica:
    """One entry. A change is taken only onto the version it starts from (`Change.from_version`)."""

    __slots__ = (
        "awaited_version",
        "body",
        "data_updated_at",
        "doubt",
        "doubted_until",
        "error",
        "fetch_status",
        "fetched_at",
        "is_invalidated",
        "is_offline",
        "key",
        "key_json",
        "origin",
        "parsed",
        "shard",
        "stale_at",
        "status",
        "topics",
        "value",
        "version",
    )

    def __init__(self, key: str, shard: int) -> None:
        self.key = key
        self.key_json = key.encode()
        self.parsed: list[Any] = elements(key)
        self.shard = shard
        self.topics: list[Topic] = []
        self.version = 0
        self.value: Value | None = None
        self.data_updated_at = 0
        self.status = "pending"
        self.fetch_status = "idle"
        self.is_invalidated = False
        self.stale_at: float | None = None
        self.error: tuple[str, str] | None = None
        self.is_offline = False
        self.origin = ""
        self.fetched_at = 0
        self.doubt: tuple[str, int] | None = None
        self.awaited_version = 0
        """A write that was acknowledged through this gateway made at least this version; reads may not go back behind it."""
        self.doubted_until = 0
        """Count of its shard's change sets from which an invalidation asked for here is known to have arrived."""
        self.body: bytes | None = None
        """The HTTP body last made from it, while it still holds."""

    def replace(self, view: EntryView) -> None:
        """Become what a snapshot says."""
        self.version = view.version
        self.value = None if view.data is None else Value.from_json(view.data)
        self.data_updated_at = view.data_updated_at
        self.status = view.status
        self.fetch_status = view.fetch_status
        self.is_invalidated = view.is_invalidated
        self.stale_at = view.stale_at
        self.error = view.error
        self.is_offline = view.is_offline
        self.origin = view.origin
        self.fetched_at = view.fetched_at
        self.doubt = view.doubt
        self.body = None

    def take(self, change: Change) -> None:
        """Apply a change that starts from this version."""
        if change.data is not None:
            self.value = Value.from_json(change.data)
        else:
            assert change.patch is not None
            assert self.value is not None
            self.value.mutated(json_patch.apply(self.value.object(), orjson.loads(change.patch), max_copied_bytes=None))
        self.version = change.version
        self.data_updated_at = change.data_updated_at
        self.status, self.fetch_status, self.is_invalidated, self.error = "success", "idle", False, None
        self.is_offline, self.doubt = False, None  # a `Meta` follows where it is otherwise
        self.stale_at = change.stale_at
        self.origin = change.origin
        self.fetched_at = change.fetched_at
        self.body = None

    def heed(self, meta: Meta) -> None:
        """Take a change of state."""
        self.status = meta.status
        self.fetch_status = meta.fetch_status
        self.is_invalidated = meta.is_invalidated
        self.stale_at = meta.stale_at
        self.error = meta.error
        self.is_offline = meta.is_offline
        self.doubt = meta.doubt
        self.data_updated_at = meta.data_updated_at
        self.fetched_at = meta.fetched_at
        self.origin = meta.origin
        self.body = None

    def is_stale(self, now_ms: float) -> bool:
        """Whether a reader should rather have it fetched."""
        return self.value is None or (self.stale_at is not None and self.stale_at <= now_ms)

    def view(self) -> EntryView:
        """Return it as readers see it."""
        return EntryView(
            self.key,
            self.version,
            None if self.value is None else self.value.json(),
            self.data_updated_at,
            self.status,
            self.fetch_status,
            self.is_invalidated,
            self.stale_at,
            self.error,
            self.is_offline,
            self.origin,
            self.fetched_at,
            self.doubt,
        )
