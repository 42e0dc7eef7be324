"""Rows and frames: what a store holds, taken apart and put together."""

import random

import pytest

from cluster.core.history import Life
from cluster.core.messages import Checkpoint, Written
from cluster.core.mutation_queue import MutationRecord
from cluster.core.stored_rows import (
    BATCH,
    FRAME_BYTES,
    Meta,
    change_row,
    frame,
    gathered,
    meta_frame,
    read_frame,
    rows_of,
    transactions,
)
from cluster.core.transaction import SCHEMA, Stored, StoredEntry
from cluster.storage import MemoryStore


def entry(key: str, version: int = 1) -> StoredEntry:
    return StoredEntry(key, version, b"1", 10.5, 9.0, "fetch:api", ("api:invalidate", 11.0), ('"tag"', version))


def record(name: str) -> MutationRecord:
    return MutationRecord(name, "rename", b"{}", "scope", 1, 1.0, 1.0, "gateway-0", [])


def stored(entries: int = 3, mutations: int = 2) -> Stored:
    return Stored(
        5,
        100,
        [entry(f'["k",{n}]') for n in range(entries)],
        {"events/x": (7, 12)},
        {"events/x": Checkpoint("events/x", 7, 11, "id-11")},
        {"r1": (99.0, Written(3))},
        [Life(4, 0, 0), Life(5, 80, 17)],
        17,
        [('["k",0]', 3), ('["k",1]', 0)],
        [record(f"m{n}") for n in range(mutations)],
    )


def meta_of(held: Stored) -> Meta:
    """What stands before the rows."""
    return Meta(SCHEMA, held.epoch, held.offset, held.lives, held.first, held.steps)


def test_rows_in_any_order_are_the_store_again() -> None:
    held = stored()
    rows = list(rows_of(held))
    random.Random(1).shuffle(rows)
    again = gathered(meta_of(held), rows)
    assert sorted(each.key for each in again.entries) == sorted(each.key for each in held.entries)
    assert (again.changes, again.cursors, again.checkpoints, again.results, again.lives, again.first) == (
        held.changes,
        held.cursors,
        held.checkpoints,
        held.results,
        held.lives,
        held.first,
    )
    assert {each.id for each in again.mutations} == {"m0", "m1"}


def test_frames_say_their_length_and_their_table() -> None:
    held = stored()
    framed = b"".join([meta_frame(meta_of(held)), *(frame(*row) for row in rows_of(held))])
    found = []
    while framed:
        length = int.from_bytes(framed[:FRAME_BYTES], "big")
        found.append(read_frame(framed[FRAME_BYTES : FRAME_BYTES + length]))
        framed = framed[FRAME_BYTES + length :]
    assert found == [meta_of(held), *rows_of(held)]


@pytest.mark.parametrize("body", [b"", b"\x77row", b"\xffno meta"])
def test_other_frames_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="a frame that cannot be read"):
        read_frame(body)


def test_a_row_that_cannot_be_read_is_told_with_its_table() -> None:
    with pytest.raises(ValueError, match="a row of the table 'entry' cannot be read"):
        gathered(meta_of(stored()), [("entry", b"x")])


def test_a_gap_in_the_history_is_told() -> None:
    held = stored()
    rows = [row for row in rows_of(held) if row != ("change", change_row(17, held.changes[0]))]
    with pytest.raises(ValueError, match="the history has a gap after change 17"):
        gathered(meta_of(held), rows)


@pytest.mark.parametrize(
    "held", [stored(), stored(2 * BATCH + 1, BATCH + 1), stored(0, 0)], ids=["few", "many", "none"]
)
def test_transactions_fill_a_store(held: Stored) -> None:
    store = MemoryStore()
    for transaction in transactions(held):
        assert len(transaction.entries) <= BATCH
        store.commit(transaction)
    assert store.load() == held
