"""A backup on its way: what shards answer while they are copied, and what a gateway streams to who keeps it.

A backup has three steps, each for all shards before the next begins:

1. `begin`: each shard notes the checkpoints it keeps. A checkpoint says that *every* shard has committed the events up to it, so it may
   not be newer than any copy: the events between would never come again.
2. `take`: each shard copies its store, as it is between two of its own steps.
3. `settle`: each shard notes the mutations whose home it is. They may not be older than any copy: what a copy has applied of a mutation
   that is still pending in its home would be applied again.

Slots may not move from the first step to the last: entries would be in two copies, or in none.

Then the copies are fetched piece by piece, and dropped. What must not live here: files (`storage`), who asks whom (`gateway`, `actors`).
"""

from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import Struct

from cluster.core.stored_rows import FRAME_BYTES

FORMAT = 1
"""Of the stream and of the directory; raised where what reads 1 could not read it."""
CONTENT_TYPE = "application/vnd.harbor.backup"
PIECE_BYTES = 512 * 1024
"""A shard hands over as much at a time; the most that lies in a gateway is one piece of one shard."""
MAX_FRAME_BYTES = 512 * 1024 * 1024
Step = Literal["begin", "take", "settle", "piece", "drop"]


class Done(Struct, frozen=True, tag="done"):
    """A step was made."""

    slots_epoch: int = 0
    """Of the slot map by which the shard has its entries; 0: it does not know yet."""


class Refused(Struct, frozen=True, tag="refused"):
    """It could not be, and the backup cannot be made."""

    code: str
    message: str


class Piece(Struct, frozen=True, tag="piece"):
    """Part of a copy: whole frames of rows."""

    frames: bytes
    whole: "Whole | None" = None
    """It was the last."""


class Whole(Struct, frozen=True, tag="whole"):
    """A shard's copy is at its end: what it has held."""

    shard: int
    epoch: int
    offset: int
    taken_ms: float
    rows: dict[str, int]
    """How many, by table."""
    digest: str


class Start(Struct, frozen=True, tag="start"):
    """A stream begins: which cluster it is of."""

    format: int
    version: str
    """Of the cluster that makes it."""
    schema: int
    cluster: str
    shards: list[int]
    slots_epoch: int
    owners: list[int]
    """Shard by slot."""


class Part(Struct, frozen=True, tag="part"):
    """More of a shard's rows."""

    shard: int
    frames: bytes


class Failed(Struct, frozen=True, tag="failed"):
    """It came to an end before its end."""

    code: str
    message: str


class End(Struct, frozen=True, tag="end"):
    """Everything was said. A stream without it is not whole."""


StepAnswer = Done | Piece | Refused
StreamFrame = Start | Part | Whole | Failed | End
_encode = msgspec.msgpack.Encoder().encode
_ANSWER: msgspec.msgpack.Decoder[StepAnswer] = msgspec.msgpack.Decoder(StepAnswer)
_FRAME: msgspec.msgpack.Decoder[StreamFrame] = msgspec.msgpack.Decoder(StreamFrame)


def encode_answer(answer: StepAnswer) -> bytes:
    """Encode what a shard answers."""
    return _encode(answer)


def decode_answer(answer: bytes) -> StepAnswer:
    """Decode it.

    Raises:
        msgspec.MsgspecError: it is of another version.
    """
    return _ANSWER.decode(answer)


def encode_frame(frame: StreamFrame) -> bytes:
    """Encode a frame of a stream, its length before it."""
    encoded = _encode(frame)
    return len(encoded).to_bytes(FRAME_BYTES, "big") + encoded


class Frames:
    """A stream's bytes as they come, frames as they are whole. Holds one frame that is not whole yet."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[StreamFrame]:
        """Yield the frames that are whole with `data`.

        Raises:
            ValueError: this is no stream of a backup.
        """
        held = self._held
        held += data
        start = 0
        while len(held) - start >= FRAME_BYTES:
            length = int.from_bytes(held[start : start + FRAME_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                raise ValueError("what was sent is no backup")
            end = start + FRAME_BYTES + length
            if len(held) < end:
                break
            try:
                yield _FRAME.decode(held[start + FRAME_BYTES : end])
            except msgspec.MsgspecError as error:
                raise ValueError(f"what was sent is no backup: {error}") from error
            start = end
        del held[:start]
