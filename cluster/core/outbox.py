"""The outbox: what waits to be written to a client, at most one pending change per key.

Queueing every change for a slow reader grows without bound and ends in a reader that is always behind. Here a second change of a key
folds into the first: the version the reader holds stays, patches join while they are shorter than the value, and the value itself is
read from the replica when the outbox is written. So an outbox is bounded by the keys a client watches; what it takes is counted as it
goes, since those may be many.
"""

from collections.abc import Sequence

from cluster.core import protocol
from cluster.core.replica import Replica
from cluster.core.tenant import NOBODYS, Tenant

MAX_MUTATIONS = 100
"""Named by one change; where more are folded into it, the last count: of the others their authors hear all the same."""


PENDING_BYTES = 300
"""Of a pending change beside its patches: the record, its list, its place in the dictionary."""


class Pending:
    """What became of one key since the reader was last told."""

    __slots__ = (
        "coalesced",
        "from_version",
        "gone_version",
        "invalidated",
        "mutations",
        "patch_bytes",
        "patches",
        "reset",
        "retold",
    )

    def __init__(self, from_version: int) -> None:
        self.from_version = from_version
        """The version the reader holds; 0: none."""
        self.gone_version = 0
        self.patches: list[bytes] | None = []
        """Patches since then, without brackets; None: the reader gets the data."""
        self.patch_bytes = 0
        self.coalesced = 0
        self.mutations: tuple[str, ...] = ()
        """Whose operations came into the entry since then, or left it."""
        self.invalidated = False
        self.reset = False
        self.retold = False
        """Its state changed though it has no data: the reader gets a new snapshot."""

    def add_patch(self, patch: bytes | None) -> None:
        """Note a change, as a patch or (None) whole."""
        if patch is None or self.patches is None:
            self.patches, self.patch_bytes = None, 0
        else:
            inner = patch[1:-1]
            self.patches.append(inner)
            self.patch_bytes += len(inner)

    def add_mutations(self, mutations: Sequence[str]) -> None:
        """Note which mutations a change is about."""
        if mutations:
            self.mutations = tuple(dict.fromkeys((*self.mutations, *mutations)))[-MAX_MUTATIONS:]

    def fold(self, later: "Pending") -> None:
        """Take in what came after."""
        if later.patches is None or self.patches is None:
            self.patches, self.patch_bytes = None, 0
        else:
            self.patches.extend(later.patches)
            self.patch_bytes += later.patch_bytes
        self.gone_version = later.gone_version or self.gone_version
        self.coalesced += later.coalesced
        self.add_mutations(later.mutations)
        self.invalidated = self.invalidated or later.invalidated
        self.reset = self.reset or later.reset
        self.retold = self.retold or later.retold


class Outbox(dict[str, Pending]):
    """Pending changes by key. Those of one session are changed by its methods alone, which count."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0
        """What it takes, about."""

    def at(self, key: str, from_version: int) -> Pending:
        """Return the pending change of a key, begun at `from_version` if there was none."""
        pending = self.get(key)
        if pending is None:
            pending = self[key] = Pending(from_version)
            self.bytes += PENDING_BYTES
        return pending

    def fold(self, key: str, later: Pending) -> None:
        """Take in what became of a key after what is pending of it."""
        pending = self.at(key, later.from_version)
        before = pending.patch_bytes
        pending.fold(later)
        self.bytes += pending.patch_bytes - before

    def whole(self, key: str, from_version: int) -> None:
        """The reader is to get the data of a key: patches do not lead there from what it holds."""
        pending = self.at(key, from_version)
        self.bytes -= pending.patch_bytes
        pending.patches, pending.patch_bytes = None, 0

    def drop(self, key: str) -> Pending:
        """Take out what is pending of a key."""
        pending = self.pop(key)
        self.bytes -= PENDING_BYTES + pending.patch_bytes
        return pending

    def empty(self) -> None:
        """Forget everything."""
        self.clear()
        self.bytes = 0

    def missed(self, key: str, version: int) -> None:
        """The reader holds `version` of a key that has changed since; what is pending already came after that."""
        self.whole(key, version)
        pending = self[key]
        pending.from_version = version
        pending.gone_version = pending.gone_version or version + 1


def encode(
    key: str, pending: Pending, replica: Replica | None, mode: str, now_ms: float, tenant: Tenant = NOBODYS
) -> list[protocol.Typed]:
    """Return the messages that bring a reader, of `tenant`, from `pending.from_version` to what the replica is now."""
    shown = tenant.outside(key).encode() if tenant or replica is None else replica.key_json
    if replica is None or (replica.value is None and pending.from_version):
        gone = pending.gone_version or pending.from_version + 1
        removed = [protocol.removed(shown, gone)] if pending.from_version else []
        return removed if replica is None else [*removed, protocol.snapshot(replica.view(), now_ms, tenant)]
    if pending.reset:
        return [protocol.reset(shown), protocol.snapshot(replica.view(), now_ms, tenant)]
    messages: list[protocol.Typed] = []
    if pending.invalidated:
        messages.append(protocol.invalidated(shown))
    if replica.value is None:
        if pending.retold:
            messages.append(protocol.snapshot(replica.view(), now_ms, tenant))
    elif replica.version != pending.from_version:
        patch = None
        if mode == "patch" and pending.from_version:
            if pending.patches and pending.patch_bytes <= replica.value.size():
                patch = (
                    b"[" + b",".join(filter(None, pending.patches)) + b"]"
                )  # a change may be empty but for mutations
            else:
                patch = b'[{"op":"replace","path":"","value":' + replica.value.json() + b"}]"
        messages.append(
            protocol.change(
                shown,
                pending.from_version,
                replica.version,
                replica.value.json() if patch is None else None,
                patch,
                max(pending.coalesced, 1),
                [tenant.outside_id(each) for each in pending.mutations if tenant.has_id(each)],
            )
        )
    return messages
