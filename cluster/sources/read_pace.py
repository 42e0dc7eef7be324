"""When a socket is read: not while its consumer holds, and a busy one only now and then.

Reads are moderated as network cards moderate interrupts. A busy upstream's messages arrive one by one, and a read costs several times
what splitting a message does; so after a read that came hard on the last one, the next waits `READ_SPACING_S`, and then takes all that
has gathered. A lone message is never delayed.

What must not live here: what was read.
"""

import asyncio

READ_SPACING_S = 0.002
"""Between two reads of a busy socket. At 100,000 messages/s of 190 bytes a read then takes 200 messages (38 KB), well inside the
kernel's buffer; longer gains little more and would show in the age of events."""
FULL_READ_BYTES = 128 * 1024
"""After a read this long (uvloop's are 256 KiB at most) the next follows at once: there is nothing to gather."""


class ReadPace:
    """Pauses and resumes the reads of one transport, which must not be paused by others."""

    def __init__(self, transport: asyncio.ReadTransport, spacing_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._spacing_s = spacing_s
        self._read_at = 0.0
        self._resting: asyncio.TimerHandle | None = None
        self._stopped = False

    def took(self, size_bytes: int) -> None:
        """A read brought so much; rest before the next where reads come thick."""
        now = self._loop.time()
        close = now - self._read_at < 2 * self._spacing_s
        if close and size_bytes < FULL_READ_BYTES and self._resting is None and not self._stopped:
            self._transport.pause_reading()
            self._resting = self._loop.call_later(self._spacing_s, self._rested)
        self._read_at = now

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
        if not self._stopped and not self._transport.is_closing():
            self._transport.resume_reading()
