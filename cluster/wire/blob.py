"""Blobs: messages between actors as bytes.

Ray carries an argument inside the call itself up to 100 KB and by way of shared memory above, which is slowest just above the limit
(a copy, two lookups and a reference to release). So a long message is cut into pieces that each stay below it.

Its first byte is the version of the wire between actors. Nodes may run different releases while they are upgraded one by one; of another
version nothing is read, since arrays of another shape could look like ours.
"""

import msgspec

from cluster.core.messages import Answer, Message

VERSION = 9
"""Raised with every change of a message that actors exchange."""
PIECE_BYTES = 90_000
"""Below Ray's inline limit with room for its own framing. One call carries up to 10 MB of pieces."""

_MARK = bytes([VERSION])
_encoder = msgspec.msgpack.Encoder()
_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


class WireVersionError(Exception):
    """The peer speaks another version; nothing was read."""

    def __init__(self, version: int) -> None:
        super().__init__(f"the peer speaks version {version} of the wire between actors, this is version {VERSION}")


def _checked(blob: bytes) -> memoryview:
    if blob[:1] != _MARK:
        raise WireVersionError(blob[0] if blob else 0)
    return memoryview(blob)[1:]


def encode_answer(answer: Answer) -> bytes:
    """Encode an answer, which a call returns in one piece."""
    return _MARK + _encoder.encode(answer)


def encode(message: Message) -> list[bytes]:
    """Encode a message into pieces."""
    blob = _MARK + _encoder.encode(message)
    if len(blob) <= PIECE_BYTES:
        return [blob]
    return [blob[start : start + PIECE_BYTES] for start in range(0, len(blob), PIECE_BYTES)]


def decode_message(pieces: tuple[bytes, ...]) -> Message:
    """Put a message together again.

    Raises:
        WireVersionError: the sender speaks another version.
        msgspec.DecodeError: it is no message.
    """
    return _messages.decode(_checked(pieces[0] if len(pieces) == 1 else b"".join(pieces)))


def decode_answer(blob: bytes) -> Answer:
    """Read an answer.

    Raises:
        WireVersionError: the receiver speaks another version.
        msgspec.DecodeError: it is no answer.
    """
    return _answers.decode(_checked(blob))
