"""Frames gather, counted, until there are enough."""

import pytest

from cluster.core.gathering import MOST_BYTES, MOST_FRAMES, Gathering


def test_frames_are_kept_in_order_with_the_receipt_of_the_first() -> None:
    gathering = Gathering()
    assert not gathering
    assert gathering.add("s", [b"one", b"two"], 10.0) == 6
    assert gathering.add("s", [b"three"], 20.0) == 5
    assert (bool(gathering), gathering.source, gathering.size, gathering.since_ms) == (True, "s", 11, 10.0)
    assert gathering.take() == [b"one", b"two", b"three"]
    assert (bool(gathering), gathering.size, gathering.since_ms) == (False, 0, 0.0)
    gathering.add("other", [b"four"], 30.0)
    assert (gathering.source, gathering.since_ms, gathering.take()) == ("other", 30.0, [b"four"])


def test_the_list_that_came_is_left_alone() -> None:
    gathering, read = Gathering(), [b"one"]
    gathering.add("s", read, 10.0)
    gathering.add("s", [b"two"], 10.0)
    assert read == [b"one"]


@pytest.mark.parametrize("frame", [b"x", b"x" * (MOST_BYTES // 10)])
def test_it_is_full_at_a_number_of_frames_or_of_bytes(frame: bytes) -> None:
    gathering = Gathering()
    most = min(MOST_FRAMES, -(-MOST_BYTES // len(frame)))
    gathering.add("s", [frame] * (most - 1), 10.0)
    assert not gathering.is_full
    gathering.add("s", [frame], 10.0)
    assert gathering.is_full
