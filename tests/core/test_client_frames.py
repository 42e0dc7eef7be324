import struct

from hypothesis import given
from hypothesis import strategies as st

from cluster.core.client_frames import ClientFrames


def frame(opcode: int, size: int, *, fin: bool = True, mask: bool = True) -> bytes:
    first, masked = fin << 7 | opcode, mask << 7
    if size < 126:
        head = struct.pack("!BB", first, masked | size)
    elif size < 2**16:
        head = struct.pack("!BBH", first, masked | 126, size)
    else:
        head = struct.pack("!BBQ", first, masked | 127, size)
    return head + (b"mask" if mask else b"") + b"\x01" * size


GOOD = [
    frame(1, 0) + frame(2, 125) + frame(1, 126) + frame(1, 70_000),
    frame(1, 3, fin=False) + frame(9, 5) + frame(0, 0, fin=False) + frame(10, 0) + frame(0, 3) + frame(2, 1),
    frame(8, 2),
]
BAD = [
    (frame(1, 3, mask=False), "a client's frames are masked"),
    (frame(1, 3) + frame(9, 3, mask=False), "a client's frames are masked"),
    (frame(1, 0, fin=False) + frame(1, 3), "a message begins inside another"),
    (frame(1, 0, fin=False) + frame(0, 0) + frame(0, 1), "a message goes on that was not begun"),
    (frame(0, 3), "a message goes on that was not begun"),
]


@given(st.sampled_from([(each, "") for each in GOOD] + BAD), st.lists(st.integers(0, 71_000), max_size=8))
def test_wherever_the_pieces_are_cut(case: tuple[bytes, str], cuts: list[int]) -> None:
    said, reason = case
    frames, found, last = ClientFrames(), "", 0
    for cut in [*sorted(cuts), len(said)]:
        found = frames.fault(said[last:cut])
        last = max(last, cut)
        if found:
            break
    assert found == reason


def test_byte_by_byte() -> None:
    for said, reason in BAD:
        frames = ClientFrames()
        found = [fault for fault in (frames.fault(said[n : n + 1]) for n in range(len(said))) if fault]
        assert found[:1] == [reason]
