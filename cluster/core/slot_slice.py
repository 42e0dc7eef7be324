"""What goes from shard to shard when slots move, in slices.

While slots are copied these hold entries only, and results of writes; at the cut the last ones hold what has changed since, and all that has
to be of one moment: what lies over entries, mutations, how far feeds were committed, the offset, histories.

What must not live here: when what is sent (`shard_slots`).
"""

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from cluster.core.history import Past, Record
from cluster.core.messages import Checkpoint
from cluster.core.mutation_queue import MutationRecord
from cluster.core.operation import Operation
from cluster.core.overlay import Known, Laid
from cluster.core.transaction import Cursor, Result, StoredEntry

SLICE_BYTES = 80_000
"""Of one slice, about: with what is around it one call that Ray carries inside (`wire.blob`). A longer entry goes alone."""
ROW_BYTES = 20
"""Of a change in a history beside its key, about."""


class MovedEntry(Struct, frozen=True, array_like=True):
    """An entry, with what a fetch of it would need to know."""

    stored: StoredEntry
    recent: list[tuple[float, list[Operation]]] | None = None
    """Operations that a response may not hold yet, with their receipt."""
    is_fetched: bool = False
    """A fetch of it was under way."""


class MovedOverlay(Struct, frozen=True, array_like=True):
    """What lies over one entry."""

    key: str
    laid: list[Laid]
    known: list[tuple[str, Known, float | None]]
    """(mutation, what is known of it, until when it lies if it is an echo)."""
    hidden: list[tuple[str, Any, float]]
    """(pointer, identity, until) of items that are kept out of the view."""


class Content(Struct, array_like=True):
    """A slice."""

    entries: list[MovedEntry] = []
    gone: list[str] = []
    """Keys of entries that were sent before, and are no more."""
    results: list[tuple[str, Result]] = []
    cursors: list[tuple[str, Cursor]] = []
    checkpoints: list[Checkpoint] = []
    mutations: list[MutationRecord] = []
    overlays: list[MovedOverlay] = []
    joined: list[tuple[str, str, float]] = []
    """(source, channel, since when) of the channels that are joined."""
    offset: int = 0
    pasts: list[tuple[int, Past]] = []
    """Histories of shards that are no more, by shard."""
    is_last: bool = False


def past_slices(shard: int, past: Past) -> list[Content]:
    """Return the history of a shard that is no more, in slices: the changes are divided among them."""
    slices, changes, size = [], list[Record](), 0
    for change in past.changes:
        changes.append(change)
        size += ROW_BYTES + len(change[0])
        if size >= SLICE_BYTES:
            slices.append(changes)
            changes, size = [], 0
    return [Content(pasts=[(shard, msgspec.structs.replace(past, changes=each))]) for each in [*slices, changes]]


def whole_pasts(contents: Iterable[Content]) -> dict[int, Past]:
    """Put together, by shard, what `past_slices` has divided."""
    pasts: dict[int, Past] = {}
    for shard, past in (each for content in contents for each in content.pasts):
        pasts.setdefault(shard, msgspec.structs.replace(past, changes=[])).changes.extend(past.changes)
    return pasts


encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Content).decode
