"""Cuts a server's WebSocket byte stream into messages (RFC 6455, section 5), synchronously.

Why not the library's own reader: it wakes a task for every message and parses in generators, 4-5 us each; this loop takes 0.3 us and
needs no task. It also sees a frame's length before its payload, so that one far over the limit is skipped as it streams by, without
memory and without losing the connection (the library closes with 1009).

Only data frames are taken here. Control frames go whole to `control`, where the library answers them. Extensions must not have been
negotiated. Text is not checked for UTF-8: what parses it does.

What must not live here: sockets, writing.
"""

from collections.abc import Callable
from struct import Struct

from cluster.sources.pieces import CLOSE, FrameViolationError, Pieces

WHOLE = (0x81, 0x82)
"""First bytes of a text and of a binary message in one frame."""
TEXT, LONG_TEXT = 0x8100, 0x817E
"""First two bytes of a text message in one frame, where it is empty, and where two bytes with its length follow."""
MOST = 0xFFFF
"""Bytes of the longest of those."""
_HEAD = Struct(">HH").unpack_from


class FrameSplitter:
    """One connection's incoming stream."""

    __slots__ = (
        "_chunks",
        "_control",
        "_deaf",
        "_deliver",
        "_have",
        "_max_bytes",
        "_need",
        "_pieces",
        "_skip",
        "closed",
        "held",
    )

    def __init__(
        self,
        deliver: Callable[[list[bytes]], bool],
        control: Callable[[bytes], None],
        refuse: Callable[[str, int], None],
        max_bytes: int,
    ) -> None:
        """Build.

        Args:
            deliver: Takes the whole messages of a read. False holds everything after them until `release`.
            control: Takes a whole control frame, header included.
            refuse: Is told (reason, size) of a message that was dropped; where it came in pieces, the size up to where that was clear.
            max_bytes: The longest message delivered, and about the most that is buffered.
        """
        self._deliver = deliver
        self._control = control
        self._max_bytes = max_bytes
        self.held = False
        self.closed = False
        """The peer sent its close frame."""
        self._chunks: list[bytes] = []
        """What waits for the rest of a frame, or for `release`."""
        self._have = 0
        self._need = 2
        self._skip = 0
        """Bytes of a refused frame still to come."""
        self._pieces = Pieces(refuse, max_bytes)
        self._deaf = False
        """Data frames are ignored."""

    def feed(self, data: bytes) -> None:
        """Take what was read.

        Raises:
            FrameViolationError: the peer broke the protocol.
        """
        if self._chunks:
            self._chunks.append(data)
            self._have += len(data)
            if self.held or self._have < self._need:
                return
            data = b"".join(self._chunks)
            self._chunks.clear()
        elif self.held:
            self._keep(data)
            return
        self._split(data)

    def hold(self) -> None:
        """Deliver nothing until `release`."""
        self.held = True

    def release(self) -> None:
        """Deliver again, what was kept first; `held` tells whether the consumer stopped it anew.

        Raises:
            FrameViolationError: as `feed`.
        """
        self.held = False
        data = b"".join(self._chunks)
        self._chunks.clear()
        if data:
            self._split(data)

    def close(self) -> None:
        """Ignore all data frames from now on; control frames still pass."""
        self._deaf = True
        self._deliver = self._discard

    @staticmethod
    def _discard(_messages: list[bytes]) -> bool:
        return True

    def _keep(self, data: bytes) -> None:
        self._chunks.append(data)
        self._have = len(data)

    def _split(self, data: bytes) -> None:
        if self.closed:
            return
        messages: list[bytes] = []
        try:
            self._cut(data, messages)
        finally:  # what came before a violation counts
            if messages and not self._deliver(messages):
                self.held = True

    def _cut(self, data: bytes, messages: list[bytes]) -> None:
        end = len(data)
        position, self._skip = self._skip, max(0, self._skip - end)
        pieces = self._pieces
        max_bytes = self._max_bytes
        need = 2
        while True:
            if max_bytes >= MOST and not pieces.inside:
                position = _take_texts(data, position, end, messages)
            if end - position < 2:
                break
            length = data[position + 1]
            start = position + 2
            if length >= 126:
                if length == 126:
                    start = position + 4
                    if start > end:
                        need = 4
                        break
                    length = data[position + 2] << 8 | data[position + 3]
                elif length == 127:
                    start = position + 10
                    if start > end:
                        need = 10
                        break
                    length = int.from_bytes(data[position + 2 : start], "big")
                else:
                    raise FrameViolationError("a server must not mask its frames")
            head = data[position]
            if length > max_bytes:
                self._oversized(head, length)
                position = start + length
                self._skip = max(0, position - end)
                continue
            stop = start + length
            if stop > end:
                need = stop - position
                break
            if head in WHOLE and not pieces.inside:
                position = stop
                messages.append(data[start:stop])
                continue
            self._other(head, data[position:stop], data[start:stop], messages)
            position = stop
            if self.closed:
                return
        if position < end:
            self._need = need
            self._keep(data[position:] if position else data)

    def _other(self, head: int, frame: bytes, payload: bytes, messages: list[bytes]) -> None:
        """Take a control frame or a piece of a message."""
        opcode = head & 0x0F
        if head & 0x70:
            raise FrameViolationError("reserved bits are set and no extension was agreed on")
        if opcode & 0x8:
            if not head & 0x80 or len(payload) > 125:
                raise FrameViolationError("a control frame is too long or in pieces")
            self._control(frame)
            if opcode == CLOSE:
                self.closed = True
            return
        if self._deaf:
            return
        message = self._pieces.add(opcode, bool(head & 0x80), payload)
        if message is not None:
            messages.append(message)

    def _oversized(self, head: int, length: int) -> None:
        opcode = head & 0x0F
        if head & 0x70 or opcode & 0x8:
            raise FrameViolationError("a control frame is too long, or reserved bits are set")
        if not self._deaf:
            self._pieces.skip(opcode, bool(head & 0x80), length)


def _take_texts(data: bytes, position: int, end: int, messages: list[bytes]) -> int:
    """Take text messages of a frame each, short of 64 KiB, as nearly all are. Returns where the first begins that is not, or not whole."""
    last = end - 4
    while position <= last:
        head, length = _HEAD(data, position)
        if head == LONG_TEXT:
            start = position + 4
        elif TEXT <= head < LONG_TEXT:
            start, length = position + 2, head & 0x7F
        else:
            break
        stop = start + length
        if stop > end:
            break
        messages.append(data[start:stop])
        position = stop
    return position
