"""What a shard keeps on disk: a transaction for every batch of work, and what of it is not there yet.

A transaction holds everything that one step changed, so that what is stored is always the state between two steps: entries with the
cursors of the feeds that made them, results of writes with what they wrote. The store behind it is a port (`Store`).

What must not live here: files (`cluster.storage`), when a step ends (`shard_state`).
"""

from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from typing import Protocol

from msgspec import Struct, structs

from cluster.core.history import History, Life, Past, Record, Step
from cluster.core.messages import Check, Checkpoint, Payload
from cluster.core.mutation_queue import MutationRecord
from cluster.core.placement import SlotMap
from cluster.core.role import Standing

SCHEMA = 2
"""Version of the layout. A store of a later one is not read; of 1, which knew no mutations, it is."""
Cursor = tuple[int, int]
"""(incarnation, number of the last event committed) of a feed."""
Result = tuple[float, Payload]
"""(Unix ms until when it is kept, what a write came to)."""


class StoredEntry(Struct, frozen=True, array_like=True):
    """What lasts of an entry."""

    key: str
    version: int
    data: bytes
    """JSON; b"": it was known to readers, and is gone with the life of the shard."""
    data_updated_at: float
    fetched_at: float
    """Unix ms, both."""
    origin: str
    doubt: tuple[str, float] | None
    """(why, since when) it is invalidated."""
    etag: tuple[str, int] | None
    is_overlaid: bool = False
    """Clients see something else of it, of which only mutations tell."""
    shown: bytes = b""
    """That, in JSON: whoever begins with this entry goes on showing it under this version until it has heard of the mutations."""


class Transaction(Struct, frozen=True, array_like=True):
    """What to store at once. None takes something out."""

    epoch: int
    offset: int
    entries: dict[str, StoredEntry | None]
    cursors: dict[str, Cursor | None]
    """By feed."""
    checkpoints: dict[str, Checkpoint | None]
    """By sequence."""
    results: dict[str, Result | None]
    """By request id."""
    lives: list[Life]
    number: int
    """Of the first of `changes`."""
    changes: list[Record]
    first: int
    """Number of the oldest change that is kept."""
    mutations: dict[str, MutationRecord | None] = {}
    """By id."""
    steps: list[Step] = []
    map: SlotMap | None = None
    """The slot map, where it, or the next, is another than before."""
    next_map: SlotMap | None = None
    """With `map`: to which slots may have moved already."""
    pasts: dict[int, Past | None] = {}
    """Histories of shards that are no more."""


class Stored(Struct, frozen=True):
    """What a store holds."""

    epoch: int
    offset: int
    entries: list[StoredEntry]
    cursors: dict[str, Cursor]
    checkpoints: dict[str, Checkpoint]
    results: dict[str, Result]
    lives: list[Life]
    first: int
    changes: list[Record]
    mutations: list[MutationRecord] = []
    steps: list[Step] = []
    map: SlotMap | None = None
    next_map: SlotMap | None = None
    pasts: dict[int, Past] = {}


class Store(Protocol):
    """Where transactions go."""

    def load(self) -> Stored | None:
        """Return what was stored; None: nothing yet.

        Raises:
            StoreError: it cannot be read.
        """
        ...

    def commit(self, transaction: Transaction) -> None:
        """Store a transaction as a whole, or nothing of it.

        Raises:
            StoreError: it cannot be written, with the reason.
        """
        ...

    def sync(self) -> None:
        """Wait until what was committed is on the disk. May be called from another thread."""
        ...

    def slices(self, size: int) -> Iterator[Transaction]:
        """Return all rows, about `size` bytes at a time, each slice as the rows are when it is asked for.

        Rows that are put in meanwhile may be left out. Raises `StoreError`, as the others do.
        """
        ...

    def digest(self, table: int, after: bytes, rows: int) -> Check:
        """Return a digest of at most so many rows of a table (beyond the last: of the first) that follow `after`."""
        ...

    def matches(self, check: Check) -> bool:
        """Whether it has the very rows that a digest was made of."""
        ...

    def clear(self) -> None:
        """Forget everything, and not be whole from now on."""
        ...

    def stand(self, standing: Standing) -> None:
        """Note in which role it is written; that is on the disk at once."""
        ...

    def size(self) -> int:
        """Return the bytes it takes."""
        ...

    def content_digest(self) -> str:
        """Return the digest of all its rows (`core.digest`), of one moment.

        Raises:
            StoreError: it cannot be read.
        """
        ...

    def close(self) -> None:
        """Give it up."""
        ...


def empty(epoch: int, offset: int, lives: list[Life], first: int, steps: list[Step]) -> Transaction:
    """Return a transaction without rows, for those of a slice."""
    return Transaction(epoch, offset, {}, {}, {}, {}, list(lives), first, [], first, {}, list(steps))


def row_key(name: str) -> bytes:
    """Return under which key the row of a name stands."""
    return blake2b(name.encode(), digest_size=16).digest()


class Unstored:
    """What has changed since the last transaction; nothing, where nothing is stored."""

    __slots__ = (
        "_checkpoints",
        "_cursors",
        "_entries",
        "_map",
        "_mutations",
        "_next_map",
        "_pasts",
        "_results",
        "changes",
        "is_new",
        "keeps",
        "moving",
        "new_results",
    )

    def __init__(self, *, keeps: bool) -> None:
        self.keeps = keeps
        """Anything is stored."""
        self._entries: dict[str, None] = {}
        self._cursors: dict[str, None] = {}
        self._checkpoints: dict[str, None] = {}
        self._results: dict[str, None] = {}
        self._mutations: dict[str, None] = {}
        self.changes = 0
        """Number of the first change of the history that is not stored."""
        self._map: SlotMap | None = None
        self._next_map: SlotMap | None = None
        self._pasts: dict[int, Past | None] = {}
        self.moving: dict[str, None] | None = None
        """While slots move: entries that have changed, or are gone."""
        self.new_results: dict[str, None] = {}
        """The same of results that have come."""
        self.is_new = True
        """Nothing of this life is stored: were it to end so, the next would not know positions that clients have of it."""

    def entry(self, key: str) -> None:
        """An entry has changed, or is gone."""
        if self.moving is not None:
            self.moving[key] = None
        if self.keeps:
            self._entries[key] = None

    def cursor(self, feed: str) -> None:
        """A feed's cursor has moved, or is gone."""
        if self.keeps:
            self._cursors[feed] = None

    def checkpoint(self, sequence: str) -> None:
        """A sequence's checkpoint has moved, or is gone."""
        if self.keeps:
            self._checkpoints[sequence] = None

    def result(self, request: str) -> None:
        """The result of a write has come, or is forgotten."""
        if self.moving is not None:
            self.new_results[request] = None
        if self.keeps:
            self._results[request] = None

    def mutation(self, mutation: str) -> None:
        """A mutation has moved on, or is forgotten."""
        if self.keeps:
            self._mutations[mutation] = None

    def map(self, slot_map: SlotMap, next_map: SlotMap | None = None) -> None:
        """There is another slot map, or one to which slots are about to move."""
        if self.keeps:
            self._map, self._next_map = slot_map, next_map

    def past(self, shard: int, past: Past | None) -> None:
        """The history of another shard, which is no more, is kept here, or no longer."""
        if self.keeps:
            self._pasts[shard] = past

    @property
    def has_map(self) -> bool:
        """Whether there is a slot map to be stored."""
        return self._map is not None

    def taken(
        self,
        epoch: int,
        offset: int,
        entry: Callable[[str], StoredEntry | None],
        cursors: dict[str, Cursor],
        checkpoints: dict[str, Checkpoint],
        results: dict[str, Result],
        history: History,
        mutations: Mapping[str, MutationRecord],
    ) -> Transaction | None:
        """Return what is to be stored now; None: nothing has changed."""
        rows = self._entries or self._cursors or self._checkpoints or self._results or self._mutations
        changed = self.is_new or rows or self._pasts or self._map is not None
        if not (self.keeps and (changed or self.changes < history.next)):
            return None
        number = max(self.changes, history.first)
        made = Transaction(
            epoch,
            offset,
            {key: entry(key) for key in self._entries},
            {feed: cursors.get(feed) for feed in self._cursors},
            {sequence: checkpoints.get(sequence) for sequence in self._checkpoints},
            {request: results.get(request) for request in self._results},
            history.lives,
            number,
            history.numbered(number),
            history.first,
            {mutation: _copied(mutations.get(mutation)) for mutation in self._mutations},
            history.steps,
            self._map,
            self._next_map,
            self._pasts,
        )
        self._map, self._next_map, self._pasts = None, None, {}
        self._entries, self._cursors, self._checkpoints, self._results, self._mutations = {}, {}, {}, {}, {}
        self.changes = history.next
        self.is_new = False
        return made

    def failed(self, transaction: Transaction) -> None:
        """`transaction` could not be stored: what it held goes with the next one."""
        self._entries.update(dict.fromkeys(transaction.entries))
        self._cursors.update(dict.fromkeys(transaction.cursors))
        self._checkpoints.update(dict.fromkeys(transaction.checkpoints))
        self._results.update(dict.fromkeys(transaction.results))
        self._mutations.update(dict.fromkeys(transaction.mutations))
        if self._map is None:
            self._map, self._next_map = transaction.map, transaction.next_map
        self._pasts = {**transaction.pasts, **self._pasts}
        self.changes = min(self.changes, transaction.number)


def _copied(record: MutationRecord | None) -> MutationRecord | None:
    """Return a mutation as it is now; it goes on while the transaction is kept."""
    return None if record is None else structs.replace(record, unlifted=list(record.unlifted))
