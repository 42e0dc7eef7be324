"""Rows: what a store holds, one by one, in the form in which stores, backups and digests know it.

A row is (table, bytes): the msgpack of the struct that a transaction stores, with its name before it where it does not say it itself.
A file of rows is a `Meta` and then rows, each with its length before it; it depends on no library and no machine.

What must not live here: files (`storage`), the order of shards in a backup (`wire.backup`).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeVar, get_args

import msgspec
from msgspec import Struct

from cluster.core.history import Life, Record, Step
from cluster.core.messages import Checkpoint
from cluster.core.mutation_queue import MutationRecord
from cluster.core.transaction import Cursor, Result, Stored, StoredEntry, Transaction

Table = Literal["entry", "cursor", "checkpoint", "result", "change", "mutation"]
TABLES: tuple[Table, ...] = get_args(Table)
Row = tuple[Table, bytes]
T = TypeVar("T")
FRAME_BYTES = 4
"""Before each frame of a file: its length, big-endian. A frame is the number of a table, one byte, and the row; 255 stands for `Meta`."""
META = 255
MAX_ROW_BYTES = 256 * 1024 * 1024
"""No row is longer; a length beyond it means that a file is none of rows, and nothing is read to find that out."""
BATCH = 1_000
"""Rows to a transaction, where a store is filled."""

_encode = msgspec.msgpack.Encoder().encode
read_entry = msgspec.msgpack.Decoder(StoredEntry).decode
read_cursor = msgspec.msgpack.Decoder(tuple[str, Cursor]).decode
read_checkpoint = msgspec.msgpack.Decoder(Checkpoint).decode
read_result = msgspec.msgpack.Decoder(tuple[str, Result]).decode
_CHANGE = msgspec.msgpack.Decoder(tuple[int, Record]).decode
read_mutation = msgspec.msgpack.Decoder(MutationRecord).decode


class Meta(Struct, frozen=True, array_like=True):
    """What a store holds once."""

    schema: int
    epoch: int
    offset: int
    lives: list[Life]
    first: int
    """Number of the oldest change."""
    steps: list[Step] = []


read_meta = msgspec.msgpack.Decoder(Meta).decode


def rows_of(stored: Stored) -> Iterator[Row]:
    """Yield the rows of what a store holds."""
    yield from (("entry", _encode(each)) for each in stored.entries)
    yield from (("cursor", _encode(each)) for each in stored.cursors.items())
    yield from (("checkpoint", _encode(each)) for each in stored.checkpoints.values())
    yield from (("result", _encode(each)) for each in stored.results.items())
    yield from (("change", change_row(number, each)) for number, each in enumerate(stored.changes, stored.first))
    yield from (("mutation", _encode(each)) for each in stored.mutations)


def change_row(number: int, change: Record) -> bytes:
    """Return a change of the history as a row."""
    return _encode((number, change))


def checkpoint_row(row: bytes) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    return read_checkpoint(row)


def frame(table: Table, row: bytes) -> bytes:
    """Return a row as it stands in a file."""
    return b"%b%c%b" % ((len(row) + 1).to_bytes(FRAME_BYTES, "big"), TABLES.index(table), row)


def meta_frame(meta: Meta) -> bytes:
    """Return what a file begins with."""
    encoded = _encode(meta)
    return b"%b%c%b" % ((len(encoded) + 1).to_bytes(FRAME_BYTES, "big"), META, encoded)


def read_frame(body: bytes) -> Meta | Row:
    """Read a frame without its length.

    Raises:
        ValueError: it is none of this layout.
    """
    try:
        if body[:1] == b"\xff":
            return read_meta(body[1:])
        return TABLES[body[0]], body[1:]
    except (IndexError, msgspec.MsgspecError) as error:
        raise ValueError(f"a frame that cannot be read: {error}") from error


def gathered(meta: Meta, rows: Iterable[Row]) -> Stored:
    """Return what rows say together: the reverse of `rows_of`.

    Raises:
        ValueError: a row cannot be read.
    """
    found = Stored(meta.epoch, meta.offset, [], {}, {}, {}, meta.lives, meta.first, [], [], meta.steps)
    changes: list[tuple[int, Record]] = []
    try:
        for table, row in rows:
            match table:
                case "entry":
                    found.entries.append(read_entry(row))
                case "cursor":
                    found.cursors.update([read_cursor(row)])
                case "checkpoint":
                    checkpoint = read_checkpoint(row)
                    found.checkpoints[checkpoint.sequence] = checkpoint
                case "result":
                    found.results.update([read_result(row)])
                case "change":
                    changes.append(_CHANGE(row))
                case "mutation":
                    found.mutations.append(read_mutation(row))
    except msgspec.MsgspecError as error:
        raise ValueError(f"a row of the table {table!r} cannot be read: {error}") from error
    changes.sort()
    if [number for number, _ in changes] != list(range(meta.first, meta.first + len(changes))):
        raise ValueError(f"the history has a gap after change {meta.first}")
    found.changes.extend(change for _, change in changes)
    return found


def transactions(stored: Stored) -> Iterator[Transaction]:
    """Yield what fills an empty store with this, in steps of some size; there is one at least."""
    entries = list(_steps(stored.entries)) or [[]]
    mutations = list(_steps(stored.mutations))
    for number, step in enumerate(entries):
        is_first = number == 0
        yield Transaction(
            stored.epoch,
            stored.offset,
            {each.key: each for each in step},
            dict(stored.cursors) if is_first else {},
            dict(stored.checkpoints) if is_first else {},
            dict(stored.results) if is_first else {},
            stored.lives,
            stored.first,
            stored.changes if is_first else [],
            stored.first,
        )
    for records in mutations:
        yield Transaction(
            stored.epoch,
            stored.offset,
            {},
            {},
            {},
            {},
            stored.lives,
            stored.first,
            [],
            stored.first,
            {each.id: each for each in records},
        )


def _steps(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(rows), BATCH):
        yield rows[start : start + BATCH]
