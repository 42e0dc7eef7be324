"""An upstream that answers an HTTP request with JSON, one event or array of events a line, without end.

It begins where it is asked to: `{last_event_id}` in the URL is the id of the last event that is known, and nothing at first. Empty lines keep
the connection alive.

What must not live here: what a line means, the connection and its pace (`sse`), connecting again (`source`).
"""

from collections.abc import Callable
from urllib.parse import quote

from cluster.sources.sse import SseSource
from cluster.sources.sse_parser import EndlessEventError

ENDLESS = 16
"""A line so many times longer than one may be has no end: the connection is given up."""


class HttpLinesSource(SseSource):
    """See the module and `source.Source`. There are no channels: `join` and `leave` do nothing."""

    accepted = (
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/stream+json",
        "application/json",
    )

    def _target(self) -> tuple[str, dict[str, str]]:
        last = self._listener.position(self.name)
        return self._url.replace("{last_event_id}", "" if last is None else quote(str(last), safe="")), {}

    def _reader(self) -> Callable[[bytes], bool]:
        lines = LineSplitter(self._max_event_bytes)

        def read(chunk: bytes) -> bool:
            found = lines.feed(chunk)
            self._refuse(lines.refused)
            if lines.skipped > ENDLESS * self._max_event_bytes:
                raise EndlessEventError
            return not found or self._listener.received(self.name, found)

        return read


class LineSplitter:
    """Cuts a stream into lines, leaving out empty ones and those that are too long."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._rest: list[bytes] = []
        self._have = 0
        self.skipped = 0
        """Bytes so far of a line that is too long."""
        self.refused: list[int] = []
        """Lengths of lines that were too long; the reader empties it."""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that are whole now, without their ends."""
        end = chunk.rfind(b"\n")
        if end < 0:
            self._keep(chunk)
            return []
        whole = b"".join([*self._rest, chunk[:end]]) if not self.skipped else chunk[:end]
        self._rest, self._have = [], 0
        lines = whole.split(b"\n")
        if self.skipped:
            self.refused.append(self.skipped + len(lines[0]))
            self.skipped = 0
            lines = lines[1:]
        self._keep(chunk[end + 1 :])
        found = []
        for line in lines:
            if len(line) > self._max_bytes:
                self.refused.append(len(line))
            elif line.strip():
                found.append(line)
        return found

    def _keep(self, piece: bytes) -> None:
        if self.skipped:
            self.skipped += len(piece)
        elif piece:
            self._rest.append(piece)
            self._have += len(piece)
            if self._have > self._max_bytes:
                self.skipped, self._rest, self._have = self._have, [], 0
