"""Server-sent events from a byte stream, incrementally (WHATWG HTML, 9.2.5-9.2.6).

Bytes in, events out; chunks may be cut anywhere. Lines end with LF, CR or CRLF. Line ends are made LF first (one C call per chunk, and
none where there is no CR), then whole chunks are cut into lines at once: the cost per event is a few comparisons per line.

Memory is bounded: an event whose lines together pass `max_event_bytes` is dropped and counted, its bytes skipped as they come.

Beside the standard: an event has an id only if it carried one of its own. The standard's `lastEventId` sticks to later events, which are
not repeats, and is what a browser sends when it reconnects; whoever consumes a source says what is sent instead (`SourceListener.position`).

What must not live here: connections, what an event means.
"""

from cluster.core.rule import Envelope

BOM = b"\xef\xbb\xbf"
MAX_EVENT_BYTES = 1024 * 1024
ENDLESS_BYTES = 64 * 1024 * 1024
"""A line or event longer than this is taken to have no end: skipping on would look like a quiet stream."""


class EndlessEventError(Exception):
    """A line, or an event, does not end; the stream is of no more use."""


class SseParser:
    """One connection's stream. What it holds at the end of the stream is an incomplete event, to be discarded."""

    __slots__ = (
        "_after_cr",
        "_data",
        "_event",
        "_oversized",
        "_own_id",
        "_size",
        "_skipped",
        "_started",
        "_tail",
        "_tail_bytes",
        "max_event_bytes",
        "refused",
        "retry_ms",
    )

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.retry_ms: int | None = None
        """The reconnection time, where the stream set one."""
        self.refused: list[int] = []
        """Sizes of events dropped as too large, until the caller takes them."""
        self.max_event_bytes = max_event_bytes
        self._started = False
        self._after_cr = False
        self._tail: list[bytes] = []
        """Pieces of the line that has not ended."""
        self._tail_bytes = 0
        self._skipped = 0
        """Bytes of the unfinished line that were dropped; it belongs to an event too large."""
        self._data: list[bytes] = []
        self._size = 0
        self._event = b""
        self._own_id: str | None = None
        self._oversized = 0

    def feed(self, chunk: bytes) -> list[Envelope]:
        """Take a chunk; return the events it completes.

        Their name is `message` where the stream named none; their data is as sent, lines joined by LF; their id is their own, where they
        carried one that is not empty.

        Raises:
            EndlessEventError: the parser must not be used any more.
        """
        if not self._started:
            chunk = self._start(chunk)
        if not chunk:
            return []
        if self._after_cr:
            self._after_cr = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        end = chunk.rfind(b"\n")
        if end < 0:
            self._keep(chunk)
            return []
        lines = chunk[:end].split(b"\n")
        if self._tail:
            self._tail.append(lines[0])
            lines[0] = b"".join(self._tail)
            self._tail.clear()
            self._tail_bytes = 0
        if self._skipped:
            self._oversized += self._skipped + len(lines.pop(0))
            self._skipped = 0
        events = self._lines(lines)
        if end + 1 < len(chunk):
            self._keep(chunk[end + 1 :])
        return events

    def _start(self, chunk: bytes) -> bytes:
        """Drop a byte order mark, which may come in pieces."""
        head = b"".join(self._tail) + chunk
        self._tail.clear()
        if len(head) < len(BOM) and BOM.startswith(head):
            self._tail.append(head)
            return b""
        self._started = True
        return head.removeprefix(BOM)

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        if self._skipped:
            self._skipped += len(piece)
            if self._skipped > ENDLESS_BYTES:
                raise EndlessEventError
            return
        self._tail.append(piece)
        self._tail_bytes += len(piece)
        if self._size + self._tail_bytes > self.max_event_bytes:
            self._skipped = self._tail_bytes
            self._tail.clear()
            self._tail_bytes = 0
            self._drop()

    def _drop(self) -> None:
        """The event under way is too large."""
        self._oversized += self._size
        self._size = 0
        self._data.clear()
        if self._oversized > ENDLESS_BYTES:
            raise EndlessEventError

    def _lines(self, lines: list[bytes]) -> list[Envelope]:
        events: list[Envelope] = []
        data = self._data
        max_bytes = self.max_event_bytes
        for line in lines:
            if line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                self._size += len(line)
                if self._oversized or self._size > max_bytes:
                    self._drop()
                else:
                    data.append(value)
            elif not line:
                if self._oversized:
                    self.refused.append(self._oversized + self._size)
                    self._oversized = 0
                elif data:
                    whole = data[0] if len(data) == 1 else b"\n".join(data)
                    name = self._event
                    events.append(
                        Envelope(name.decode("utf-8", "replace") if name else "message", whole, None, self._own_id)
                    )
                data.clear()
                self._size = 0
                self._event = b""
                self._own_id = None
            elif line.startswith(b"event:"):
                self._event = line[7:] if line[6:7] == b" " else line[6:]
            elif not line.startswith(b":"):
                name, _, value = line.partition(b":")
                self._field(name, value.removeprefix(b" "))
        return events

    def _field(self, name: bytes, value: bytes) -> None:
        if name == b"event":  # alone on its line
            self._event = value
        elif name == b"id":
            if b"\x00" not in value:
                self._own_id = value.decode("utf-8", "replace") or None
        elif name == b"data":
            self._size += len(value) + 4
            if self._oversized or self._size > self.max_event_bytes:
                self._drop()
            else:
                self._data.append(value)
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value[:12])
