"""Puts messages together that a server sends in several frames (RFC 6455, section 5.4), within a bound.

A peer decides how many pieces a message has and when it ends. So their bytes are limited, and their number too, since pieces may be empty;
what is over the limit is refused once and its other pieces are thrown away as they come, up to a point where nothing sensible can follow.

What must not live here: the frames of a byte stream (`frame_splitter`), control frames.
"""

from collections.abc import Callable

TEXT, BINARY, CONTINUATION, CLOSE, PING = 0x1, 0x2, 0x0, 0x8, 0x9
SKIP_BYTES = 64 * 1024 * 1024
"""Beyond the longest message, so much of one is thrown away to keep the connection; more than that is a broken peer, or one whose header
was misread, and what hides in the rest would be lost in silence."""
MAX_PIECES = 65_536
"""Of one message. At 16 bytes a piece that is 1 MiB; who sends more of them never ends."""


class FrameViolationError(Exception):
    """The peer broke the protocol; the connection is of no more use."""


class Pieces:
    """The message in several frames of one connection, if there is one."""

    __slots__ = ("_bytes", "_count", "_dropping", "_max_bytes", "_message", "_refuse", "inside")

    def __init__(self, refuse: Callable[[str, int], None], max_bytes: int) -> None:
        """Build.

        Args:
            refuse: Is told (`too_large`, size up to where that was clear), once a message.
            max_bytes: The longest message that is put together.
        """
        self._refuse = refuse
        self._max_bytes = max_bytes
        self.inside = False
        """A message was begun and not ended."""
        self._message = bytearray()
        self._bytes = 0
        self._count = 0
        self._dropping = False
        """It was refused; its other pieces follow."""

    def add(self, opcode: int, final: bool, payload: bytes) -> bytes | None:
        """Take a frame's payload; return the message that it ends.

        Raises:
            FrameViolationError: out of order, or the message never ends.
        """
        if not self._dropping and self._bytes + len(payload) > self._max_bytes:
            self.skip(opcode, final, len(payload))
            return None
        self._count_in(opcode, len(payload))
        if not self._dropping:
            self._message += payload
        if not final:
            return None
        message = None if self._dropping else bytes(self._message)
        self._end()
        return message

    def skip(self, opcode: int, final: bool, length: int) -> None:
        """Take note of a frame that makes its message too long; its payload is not needed.

        Raises:
            FrameViolationError: as `add`, or there is too much to skip.
        """
        self._count_in(opcode, length)
        if not self._dropping:
            self._dropping = True
            self._message.clear()
            self._refuse("too_large", self._bytes)
        if final:
            self._end()

    def _count_in(self, opcode: int, length: int) -> None:
        if opcode not in (TEXT, BINARY, CONTINUATION):
            raise FrameViolationError(f"opcode {opcode} does not exist")
        if self.inside != (opcode == CONTINUATION):
            raise FrameViolationError("a message was begun inside another, or continued without a beginning")
        self.inside = True
        self._bytes += length
        self._count += 1
        if self._bytes > self._max_bytes + SKIP_BYTES:
            raise FrameViolationError(f"a message of {self._bytes} bytes is too long even to be skipped")
        if self._count > MAX_PIECES:
            raise FrameViolationError(f"a message in more than {MAX_PIECES} pieces")

    def _end(self) -> None:
        self.inside = self._dropping = False
        self._message.clear()
        self._bytes = self._count = 0
