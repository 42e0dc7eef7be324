"""The answer to a read of a watched entry, written in one piece.

aiohttp builds a response of a header multidict, a writer and several awaits; for a read that takes no other work that is most of the
cost. This one speaks to the transport itself, for the case that needs nothing else: HTTP/1.1 with keep-alive, status 200.
"""

from email.utils import formatdate

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

HEAD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n%bDate: %b\r\nETag: "%d"\r\nContent-Length: %d\r\n\r\n%b'


class DateHeader:
    """The `Date` header, made once a second."""

    __slots__ = ("_second", "_text")

    def __init__(self) -> None:
        self._second = 0
        self._text = b""

    def at(self, now_ms: float) -> bytes:
        """Return the header's value."""
        second = int(now_ms) // 1000
        if second != self._second:
            self._second = second
            self._text = formatdate(second, usegmt=True).encode()
        return self._text


class EntryResponse(web.StreamResponse):
    """See the module. Its state is not that of its base class; only what a server asks of a response is here."""

    def __init__(self, date: bytes, version: int, body: bytes, head: bytes) -> None:
        """`head`: headers that every answer has, in lines."""
        self._head_and_body = HEAD % (
            head,
            date,
            version,
            len(body),
            body,
        )  # the base class would make headers and cookies

    @property
    def prepared(self) -> bool:
        """It needs no preparing."""
        return True

    @property
    def keep_alive(self) -> bool:
        """It is given only where the connection is kept."""
        return True

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write it; a peer that does not read is held up by its next request not being read either.

        Raises:
            ConnectionResetError: the connection is gone.
        """
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the connection is gone")
        transport.write(self._head_and_body)
        await request.protocol._drain_helper()  # what aiohttp's own writer waits for
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """All is written."""
        assert not data
