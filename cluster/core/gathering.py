"""Frames that are counted as waiting and not decoded yet: those of reads that go on as the last one was, until it pays or somebody looks.

Of events that each set a key only the last of each key counts, so decoding those of several reads together, and folding once, takes less
than read by read. How long that may take (all of it is taken at once, and the loop stands still) and how much may wait is bounded here.
They are of one source: what two sources say about a key keeps its order.

What must not live here: what frames mean, when blobs are sent (`ingestion_state`).
"""

from collections.abc import Sequence

MOST_FRAMES = 2_000
"""Frames at which they are taken: that takes 2 ms, and of 500 keys each has four. Four times as many would gain a twentieth."""
MOST_BYTES = 1024 * 1024
"""Bytes of frames at which they are taken, however few they are."""


class Gathering:
    """See the module."""

    __slots__ = ("_frames", "since_ms", "size", "source")

    def __init__(self) -> None:
        self._frames: list[bytes] = []
        self.source = ""
        self.size = 0
        """Bytes."""
        self.since_ms = 0.0
        """Receipt of the oldest; 0.0: there is none."""

    def __bool__(self) -> bool:
        return bool(self._frames)

    def add(self, source: str, frames: Sequence[bytes], now_ms: float) -> int:
        """Keep the frames of a read; those that are here must be of the same source. Returns their bytes."""
        if not self._frames:
            self.source, self.since_ms = source, now_ms
        assert source == self.source
        self._frames += frames
        size = sum(map(len, frames))
        self.size += size
        return size

    @property
    def is_full(self) -> bool:
        """Whether no more is to gather."""
        return len(self._frames) >= MOST_FRAMES or self.size >= MOST_BYTES

    def take(self) -> list[bytes]:
        """Return the frames, and begin anew."""
        frames = self._frames
        self._frames, self.source, self.size, self.since_ms = [], "", 0, 0.0
        return frames
