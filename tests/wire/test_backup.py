"""A backup's stream: frames come whole however the bytes are cut."""

import pytest

from cluster.wire.backup import End, Failed, Frames, Part, Start, Whole, encode_frame

FRAMES = [
    Start(1, "0.1.0", 2, "harbor", [0, 1], 1, [0, 1]),
    Part(0, b"x" * 1000),
    Whole(0, 5, 7, 1.5, {"entry": 3}, "ab"),
    Failed("UNAVAILABLE", "why"),
    End(),
]


@pytest.mark.parametrize("size", [1, 3, 700, 100_000])
def test_cut_anywhere_they_are_the_same(size: int) -> None:
    stream = b"".join(map(encode_frame, FRAMES))
    reader = Frames()
    found = [frame for start in range(0, len(stream), size) for frame in reader.feed(stream[start : start + size])]
    assert found == FRAMES


@pytest.mark.parametrize("stream", [b"<!doctype html>", (5).to_bytes(4, "big") + b"hello"])
def test_something_else_is_told(stream: bytes) -> None:
    with pytest.raises(ValueError, match="what was sent is no backup"):
        list(Frames().feed(stream))
