"""What goes from shard to shard is divided into slices, and put together again."""

from cluster.core.history import Life, Past, Step
from cluster.core.messages import Written
from cluster.core.mutation_queue import MutationRecord
from cluster.core.operation import Increment
from cluster.core.overlay import Known, Laid
from cluster.core.slot_slice import (
    SLICE_BYTES,
    Content,
    MovedEntry,
    MovedOverlay,
    decode,
    encode,
    past_slices,
    whole_pasts,
)
from cluster.core.transaction import StoredEntry

PAST = Past(4, [Life(2, 50, 0)], 7, [(f'["{"k" * 300}",{n}]', n) for n in range(2_000)], [Step(3, 4, 9)])


def test_a_slice_is_read_as_it_was_written() -> None:
    entry = StoredEntry('["a"]', 7, b"1", 1.5, 2.5, "stream:s", ("why", 3.0), ('"tag"', 7), is_overlaid=True)
    content = Content(
        [MovedEntry(entry, [(5.0, [Increment("/n", 2)])], is_fetched=True)],
        ['["gone"]'],
        [("request", (9.0, Written(3)))],
        [("s#1/c", (4, 12))],
        mutations=[MutationRecord("m", "save", b"{}", "scope", 1, 1.0, 1.0, "gateway-0", [('["a"]', Increment("/n"))])],
        overlays=[
            MovedOverlay(
                '["a"]',
                [Laid("m", (1, 0), [Increment("/n")], creates=False)],
                [("m", Known(0, "save", {"x": 1}, 2.0, {'["a"]': None}, scope="scope"), None)],
                [("/list", 3, 8.0)],
            )
        ],
        joined=[("s", "c", 3.0)],
        offset=99,
        is_last=True,
    )
    assert decode(encode(content)) == content


def test_a_long_history_goes_in_slices_of_bounded_size() -> None:
    slices = past_slices(2, PAST)
    assert len(slices) > 5
    assert all(len(encode(each)) < 1.1 * SLICE_BYTES for each in slices)
    read = [decode(encode(each)) for each in slices]
    assert whole_pasts([Content(), *read]) == {2: PAST}


def test_an_empty_history_is_told_too() -> None:
    empty = Past(4, [Life(2, 50, 0)], 0, [], [])
    assert whole_pasts(past_slices(3, empty)) == {3: empty}
