"""What a client's WebSocket frames have to be beside what the library checks: masked, and messages not inside one another (RFC 6455).

A browser masks every frame with a number that a page cannot choose, so that no page can make it say something that a proxy would take for
a request. A server has to end a connection with a frame that is not masked (5.1): then nothing that lets pages choose bytes is of use here.

What must not live here: what is in the frames (`client_message`).
"""

MAX_HEAD = 14
"""Bytes before a payload: two, up to eight for the length, four of the mask."""


class ClientFrames:
    """Follows where frames begin and end. Pieces may be cut anywhere."""

    __slots__ = ("_head", "_is_open", "_left")

    def __init__(self) -> None:
        self._head = b""
        """The beginning of a frame whose head is not all there."""
        self._left = 0
        """Bytes of a payload still to come."""
        self._is_open = False
        """A message in fragments was begun."""

    def fault(self, data: bytes) -> str:
        """Take what came next; return what is wrong with it, "" where nothing is."""
        at, size = 0, len(data)
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                self._left -= step
                at += step
                continue
            before = len(self._head)
            head = self._head + data[at : at + MAX_HEAD - before]
            if len(head) < 2:
                self._head = head
                return ""
            flag = head[1] & 127
            extended = 2 if flag == 126 else 8 if flag == 127 else 0
            if not head[1] & 128:
                return "a client's frames are masked"
            if len(head) < 6 + extended:
                self._head = head
                return ""
            opcode, is_last = head[0] & 15, bool(head[0] & 128)
            if opcode < 8:
                if bool(opcode) == self._is_open:
                    return "a message begins inside another" if opcode else "a message goes on that was not begun"
                self._is_open = not is_last
            self._left = int.from_bytes(head[2 : 2 + extended], "big") if extended else flag
            self._head = b""
            at += 6 + extended - before
        return ""
