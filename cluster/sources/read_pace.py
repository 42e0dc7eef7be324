"""When a socket is read: not while its consumer holds, and a busy one only now and then.

Reads are moderated as network cards moderate interrupts. A busy upstream's messages arrive one by one, and a read costs several times
what splitting a message does; many at once are decoded and folded for half of what they cost in small lots. So after a read that came
hard on the last one, the next waits, and then takes all that has gathered. A lone message is never delayed.

What must not live here: what was read.
"""

import asyncio
import socket

READ_SPACING_S = 0.002
"""Between two reads of a busy socket, at first."""
MAX_READ_SPACING_S = 0.01
"""Between two reads that bring much. At 100,000 messages/s of 190 bytes a read then takes 1,000 messages; longer would show in the age of
events, and reads at the latest possible time would find the kernel's buffer full."""
MUCH_BYTES, ENOUGH_BYTES = 8 * 1024, 96 * 1024
"""A read between these is followed by a longer rest."""
MOST_READ_BYTES = 250_000
"""uvloop takes 256,000 in one read, at most."""


class ReadPace:
    """Pauses and resumes the reads of one transport, which must not be paused by others."""

    def __init__(self, transport: asyncio.ReadTransport, spacing_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._socket: socket.socket | None = transport.get_extra_info("socket")
        self._spacing_s = spacing_s
        self._rest_s = spacing_s
        self._ready_at = 0.0
        """Since when it could be read."""
        self._resting: asyncio.TimerHandle | None = None
        self._stopped = False

    def took(self, size_bytes: int) -> None:
        """A read brought so much; rest before the next where reads come thick."""
        now = self._loop.time()
        is_close = now - self._ready_at < 2 * self._spacing_s
        self._ready_at = now
        if self._was_full(size_bytes):
            self._rest_s = self._spacing_s
        elif is_close and self._resting is None and not self._stopped:
            self._transport.pause_reading()
            self._resting = self._loop.call_later(self._rest_s, self._rested)
            if size_bytes < MUCH_BYTES:
                self._rest_s = self._spacing_s
            elif size_bytes < ENOUGH_BYTES:
                self._rest_s = min(2 * self._rest_s, MAX_READ_SPACING_S)

    def _was_full(self, size_bytes: int) -> bool:
        """Whether more was waiting than could be read, or than the kernel would take from the peer: a rest would only slow it down."""
        if size_bytes < ENOUGH_BYTES // 2 or self._socket is None:
            return False
        held_bytes = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        return size_bytes >= min(held_bytes // 3, MOST_READ_BYTES)  # half of the buffer, or more, is for overhead

    def stop(self) -> None:
        """Read no more until `go_on`."""
        if not self._stopped:
            self._stopped = True
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Read again, after a rest where one is due."""
        if self._stopped:
            self._stopped = False
            if self._resting is None and not self._transport.is_closing():
                self._transport.resume_reading()

    def end(self) -> None:
        """Forget the timer: the connection is lost."""
        if self._resting is not None:
            self._resting.cancel()

    def _rested(self) -> None:
        self._resting = None
        self._ready_at = self._loop.time()
        if not self._stopped and not self._transport.is_closing():
            self._transport.resume_reading()
