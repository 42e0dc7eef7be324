"""What a shard holds for one gateway: its watches, and the changes that wait to be sent to it.

One change set is in flight; meanwhile changes fold per key, so a slow gateway costs at most one pending record per watched entry. A
record remembers the version the gateway holds and, while they are worth it, the patches since; what an entry is now is read when the
change set is built, so everything in one change set is of one instant.

Prefix snapshots are cut into slices, one per change set. An entry not yet sent is not watched yet, and so sends no changes.
"""

from collections import deque
from collections.abc import Iterator

import msgspec

from cluster.core.link import Outgoing
from cluster.core.messages import (
    Answered,
    BranchList,
    Change,
    EntryView,
    Failure,
    Item,
    KeyList,
    MemberList,
    Meta,
    Missed,
    MutationList,
    MutationView,
    Payload,
    Removed,
    Reset,
    ServiceState,
    TopicList,
    Verify,
    Watch,
)
from cluster.core.presence import PresenceOutbox
from cluster.core.query_key import KeyMatcher
from cluster.core.shard_entry import ShardEntry, error_of

SLICE_BYTES = 256 * 1024
"""Content of one change set, beyond which the rest waits for the next call: a few ms of work at either end."""
ANSWER_BYTES = 4 * 1024 * 1024
"""Content of what one call's requests are answered at once; what does not fit follows in change sets. A small frame of reads of one large
entry would else have an answer of gigabytes made."""
SLICE_ENTRIES = 1_000
"""Entries of a prefix looked at per change set, for the same reason."""
HEARTBEAT_MS = 1_000.0
"""How soon a gateway notices that it missed the last change."""


class PendingChange:
    """Changes of one entry since the gateway was last told."""

    __slots__ = ("coalesced", "from_version", "invalidated", "mutations", "patch_bytes", "patches", "reset")

    def __init__(self, from_version: int) -> None:
        self.from_version = from_version
        self.patches: list[bytes] | None = []
        """Patch members without the brackets; None: send the data."""
        self.patch_bytes = 0
        self.coalesced = 0
        self.invalidated = False
        self.reset = False
        self.mutations: dict[str, None] = {}
        """Whose operations came into the view, or left it."""


class _Scan:
    """A prefix snapshot on its way."""

    __slots__ = ("matcher", "offset", "remaining", "watch")

    def __init__(self, watch: int, offset: int, entries: list[ShardEntry], matcher: KeyMatcher) -> None:
        self.watch = watch
        self.offset = offset
        self.matcher = matcher
        self.remaining: Iterator[ShardEntry] = iter(entries)


class GatewayLink:
    """See the module."""

    def __init__(self, address: str, identity: str, incarnation: int) -> None:
        self.address = address
        self.link = Outgoing(identity, incarnation)
        self.exact: dict[str, int] = {}
        """Watch id by key."""
        self.prefixes: dict[int, KeyMatcher] = {}
        self.watches: dict[int, str] = {}
        """Key or prefix by watch id."""
        self.resting: set[int] = set()
        """Watches behind which everybody has paused."""
        self.watched: set[str] = set()
        """Keys whose changes are sent: snapshot sent, or known to be absent."""
        self.pending: dict[str, PendingChange] = {}
        self.tasks: deque[Watch | _Scan | Missed | Verify | ServiceState | Answered | MutationView] = deque()
        """What goes out in order, after pending changes."""
        self.presence = PresenceOutbox()
        self.oldest_ms = 0.0
        self.sent_at = 0.0
        self.silent_since: float | None = None
        """Since when calls have failed."""

    def clear(self) -> list[str]:
        """Forget everything: the gateway starts the link over. Returns the keys that were watched."""
        keys = list(self.watched)
        self.link.relink()
        self.presence.clear()
        for collection in (
            self.exact,
            self.prefixes,
            self.watches,
            self.resting,
            self.watched,
            self.pending,
            self.tasks,
        ):
            collection.clear()
        self.oldest_ms = 0.0
        self.silent_since = None
        return keys

    def wants(self, entry: ShardEntry) -> bool:
        """Whether changes of an entry that just came to be are for this gateway."""
        return entry.key in self.exact or any(
            matcher.matches(entry.key, entry.parsed) for matcher in self.prefixes.values()
        )

    def listens(self, key: str) -> bool:
        """Whether anybody behind the watches of a key has not paused."""
        if not self.resting:
            return True
        watch = self.exact.get(key)
        if watch is not None and watch not in self.resting:
            return True
        return any(watch not in self.resting and matcher.matches(key) for watch, matcher in self.prefixes.items())

    def pend(self, key: str, from_version: int) -> PendingChange:
        """Return the pending record of a watched key, new if there was none."""
        pending = self.pending.get(key)
        if pending is None:
            pending = self.pending[key] = PendingChange(from_version)
        return pending

    def scan(self, watch: int, offset: int, entries: list[ShardEntry], matcher: KeyMatcher) -> None:
        """Queue the snapshot of a prefix: of the entries there are at this offset, those that match."""
        self.tasks.append(_Scan(watch, offset, entries, matcher))

    def answer(self, request: int, payload: Payload) -> None:
        """Queue a late answer."""
        self.tasks.append(Answered(request, payload))

    @property
    def busy(self) -> bool:
        """Whether anything waits."""
        return bool(self.pending or self.tasks)

    def deadline(self) -> float | None:
        """When a resend or a heartbeat is due."""
        if not self.link.idle:
            return self.link.retry_at
        if self.busy:
            return 0.0
        beat = self.sent_at + HEARTBEAT_MS if self.watches or self.presence.watching else None
        return min((at for at in (beat, self.presence.due_at()) if at is not None), default=None)


def content_bytes(said: Payload | Answered | ServiceState) -> int:
    """Return about how many bytes an answer takes; what takes few is not counted, so it never has to wait for what takes many."""
    match said:
        case Answered(payload=payload):
            return content_bytes(payload)
        case EntryView(data=content) | MutationView(result=content):
            return 0 if content is None else len(content)
        case Failure(current=EntryView() as current):
            return content_bytes(current)
        case KeyList() | BranchList() | MemberList() | TopicList() | MutationList():
            return len(msgspec.msgpack.encode(said))
        case _:
            return 0


def encode_pending(
    pending: PendingChange,
    key: str,
    entry: ShardEntry | None,
    gone_version: int,
    *,
    is_offline: bool = False,
    is_exact: bool = True,
) -> list[Item]:
    """Return the items that bring a replica from `pending.from_version` to what the entry is now."""
    visible = None if entry is None else entry.visible
    if entry is None or (visible is None and pending.from_version):
        # In the latter case it is there again already, waiting for its data, which will come as a change from 0.
        # Who watches the key itself was told of it even without data.
        is_told = pending.from_version or (entry is None and is_exact)
        return [Removed(key, gone_version)] if is_told else []
    if pending.reset and pending.from_version:  # what the gateway never had needs no reset
        return [Reset(entry.view(is_offline=is_offline))]
    items: list[Item] = []
    if visible is not None and entry.version != pending.from_version:
        patch = None
        if pending.patches is not None and pending.from_version and pending.patch_bytes <= visible.size():
            patch = b"[" + b",".join(pending.patches) + b"]"
        items.append(
            Change(
                key,
                pending.from_version,
                entry.version,
                visible.json() if patch is None else None,
                patch,
                pending.coalesced,
                int(entry.data_updated_at),
                entry.stale_at,
                entry.origin,
                int(entry.fetched_at),
                list(pending.mutations),
            )
        )
    unusual = entry.is_invalidated or entry.error is not None or entry.fetch is not None or is_offline
    if pending.invalidated or not items or unusual:
        items.append(
            Meta(
                key,
                entry.status,
                entry.fetch_status,
                entry.is_invalidated,
                entry.stale_at,
                error_of(entry.error),
                pending.invalidated,
                is_offline,
                entry.doubt,
                int(entry.data_updated_at),
                int(entry.fetched_at),
                entry.origin,
            )
        )
    return items
