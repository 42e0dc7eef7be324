"""Blobs: messages between actors as bytes.

Ray carries an argument inside the call itself up to 100 KB and by way of shared memory above, which is slowest just above the limit
(a copy, two lookups and a reference to release). So a long message is cut into pieces that each stay below it.
"""

import msgspec

from cluster.core.messages import Answer, Message

PIECE_BYTES = 90_000
"""Below Ray's inline limit with room for its own framing. One call carries up to 10 MB of pieces."""

_encoder = msgspec.msgpack.Encoder()
_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode_answer(answer: Answer) -> bytes:
    """Encode an answer, which a call returns in one piece."""
    return _encoder.encode(answer)


def encode(message: Message) -> list[bytes]:
    """Encode a message into pieces."""
    blob = _encoder.encode(message)
    if len(blob) <= PIECE_BYTES:
        return [blob]
    return [blob[start : start + PIECE_BYTES] for start in range(0, len(blob), PIECE_BYTES)]


def decode_message(pieces: tuple[bytes, ...]) -> Message:
    """Put a message together again.

    Raises:
        msgspec.DecodeError: the sender speaks another version.
    """
    return _messages.decode(pieces[0] if len(pieces) == 1 else b"".join(pieces))


def decode_answer(blob: bytes) -> Answer:
    """Read an answer.

    Raises:
        msgspec.DecodeError: the receiver speaks another version.
    """
    return _answers.decode(blob)
