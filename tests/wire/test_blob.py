import msgspec
import pytest

from cluster.core.messages import Announce, Noted
from cluster.wire import blob

MESSAGE = Announce("shard-0", 7)


def test_messages_and_answers_come_back():
    assert blob.decode_message(tuple(blob.encode(MESSAGE))) == MESSAGE
    assert blob.decode_answer(blob.encode_answer(Noted(3))) == Noted(3)


def test_long_messages_travel_in_pieces():
    message = Announce("x" * (3 * blob.PIECE_BYTES), 7)
    pieces = blob.encode(message)
    assert len(pieces) == 4
    assert max(map(len, pieces)) <= blob.PIECE_BYTES
    assert blob.decode_message(tuple(pieces)) == message


@pytest.mark.parametrize("mark", [b"", bytes([blob.VERSION + 1]), b"\x00"])
def test_another_version_is_refused_and_not_read(mark):
    for read in (lambda of: blob.decode_message((of,)), blob.decode_answer):
        with pytest.raises(blob.WireVersionError, match=f"of the wire between actors, this is version {blob.VERSION}"):
            read(mark + blob.encode(MESSAGE)[0][1:] if mark else b"")


def test_what_is_no_message_is_said():
    with pytest.raises(msgspec.DecodeError):
        blob.decode_message((bytes([blob.VERSION]) + b"\xc1",))
