import pytest

from cluster.sources.pieces import BINARY, CONTINUATION, MAX_PIECES, SKIP_BYTES, TEXT, FrameViolationError, Pieces


@pytest.fixture
def refusals():
    return []


@pytest.fixture
def pieces(refusals):
    return Pieces(lambda reason, size: refusals.append((reason, size)), 10)


def test_a_message_is_put_together(pieces, refusals):
    assert pieces.add(TEXT, False, b"in ") is None
    assert pieces.inside
    assert pieces.add(CONTINUATION, False, b"") is None
    assert pieces.add(CONTINUATION, True, b"pieces") == b"in pieces"
    assert not pieces.inside
    assert pieces.add(BINARY, True, b"whole") == b"whole"
    assert refusals == []


def test_one_too_long_is_refused_once_and_the_next_is_taken(pieces, refusals):
    pieces.add(TEXT, False, b"123456")
    assert pieces.add(CONTINUATION, False, b"789012") is None
    assert pieces.add(CONTINUATION, False, b"x" * 100) is None
    assert pieces.add(CONTINUATION, True, b"x") is None
    assert refusals == [("too_large", 12)]
    assert pieces.add(TEXT, True, b"next") == b"next"


def test_one_skipped_in_the_middle(pieces, refusals):
    pieces.add(TEXT, False, b"1")
    pieces.skip(CONTINUATION, False, 1000)
    assert pieces.add(CONTINUATION, True, b"2") is None
    assert refusals == [("too_large", 1001)]
    assert not pieces.inside


def test_only_so_much_is_skipped(pieces, refusals):
    with pytest.raises(FrameViolationError, match="too long even to be skipped"):
        pieces.skip(TEXT, True, 2**40)
    assert refusals == []


def test_only_so_much_is_skipped_in_pieces(pieces, refusals):
    pieces.skip(TEXT, False, SKIP_BYTES)
    with pytest.raises(FrameViolationError, match="too long even to be skipped"):
        pieces.add(CONTINUATION, False, b"x" * 11)
    assert refusals == [("too_large", SKIP_BYTES)]


def test_empty_pieces_do_not_go_on_for_ever(pieces):
    pieces.add(TEXT, False, b"")
    for _ in range(MAX_PIECES - 1):
        pieces.add(CONTINUATION, False, b"")
    with pytest.raises(FrameViolationError, match="pieces"):
        pieces.add(CONTINUATION, False, b"")


@pytest.mark.parametrize("frames", [[(CONTINUATION, True)], [(TEXT, False), (BINARY, True)], [(3, True)]])
def test_out_of_order(pieces, frames):
    *before, (opcode, final) = frames
    for each in before:
        pieces.add(*each, b"")
    with pytest.raises(FrameViolationError):
        pieces.add(opcode, final, b"")
