"""Dead letters: events that came to nothing because something was wrong with them, kept for somebody to look at.

A list per source holds the newest. At a flood of faults making letters would cost more than taking events does, and the list would show one
instant of one fault, so of each reason only a few a second are kept. All are counted, but elsewhere (`harbor_events_dropped_total`).

What must not live here: events that are left out on purpose (`filtered`, `no_rule`), who asks for the list.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from msgspec import Raw, Struct

KEPT = 100
"""Letters of a source; the oldest makes room. With texts clipped as below that is at most about 150 KB a source."""
PER_SECOND = 10
"""Letters of a source and a reason in a second: enough to see a pattern, and nothing to the cost of 100,000 faults a second."""
SAMPLE_BYTES = 256
TEXT_CHARACTERS = 200
"""Of names and of details; an upstream can make them as long as a frame."""


class Fault(NamedTuple):
    """What was wrong with an event, as whoever found it says; not yet worth the making of a letter."""

    reason: str
    event: str
    channel: str | None
    detail: str
    data: Raw | bytes


class DeadLetter(Struct, frozen=True):
    """One event that came to nothing. Its texts are Unicode; bytes that are no UTF-8 are written in hexadecimal."""

    time: int
    """Unix ms."""
    source: str
    channel: str | None
    event: str | None
    """None where not even that could be read."""
    reason: str
    detail: str
    sample: str
    """The beginning of its data, or of the frame."""
    size_bytes: int
    """What the sample is the beginning of has so many; of what was refused unread, as far as known."""


class DeadLetters:
    """See the module."""

    def __init__(self) -> None:
        self._kept: dict[str, deque[DeadLetter]] = {}
        self._second: dict[tuple[str, str], list[int]] = {}
        """(second, letters in it), by source and reason: both are few."""

    def add(
        self,
        source: str,
        reason: str,
        now_ms: float,
        *,
        event: str | None = None,
        channel: str | None = None,
        detail: str = "",
        sample: Raw | bytes = b"",
        size_bytes: int | None = None,
    ) -> None:
        """Keep a letter, unless there were enough of its kind in this second.

        `sample` may be the whole event; only its beginning is looked at. `size_bytes`: where that is not the length of `sample`.
        """
        second = int(now_ms // 1000)
        seen = self._second.get((source, reason))
        if seen is None or seen[0] != second:
            self._second[source, reason] = [second, 1]
        elif seen[1] >= PER_SECOND:
            return
        else:
            seen[1] += 1
        view = memoryview(sample)
        kept = self._kept.get(source)
        if kept is None:
            kept = self._kept[source] = deque(maxlen=KEPT)
        kept.append(
            DeadLetter(
                int(now_ms),
                source,
                None if channel is None else _text(channel),
                None if event is None else _text(event),
                reason,
                _text(detail),
                _shown(view[:SAMPLE_BYTES].tobytes(), is_whole=len(view) <= SAMPLE_BYTES),
                len(view) if size_bytes is None else size_bytes,
            )
        )

    def take(self, source: str, faults: list[Fault], now_ms: float) -> None:
        """Keep letters of faults, and empty the list."""
        for fault in faults:
            self.add(
                source,
                fault.reason,
                now_ms,
                event=fault.event,
                channel=fault.channel,
                detail=fault.detail,
                sample=fault.data,
            )
        faults.clear()

    def newest(self) -> list[DeadLetter]:
        """Return what is kept of all sources, newest first."""
        return newest_first([letter for kept in self._kept.values() for letter in reversed(kept)])


def newest_first(letters: Sequence[DeadLetter]) -> list[DeadLetter]:
    """Sort by time; of one time, those that come first stay first."""
    return sorted(letters, key=lambda letter: letter.time, reverse=True)


def _shown(sample: bytes, *, is_whole: bool) -> str:
    """Return bytes as text. A character that clipping has cut in two is left out."""
    if not is_whole:
        for cut in range(1, 4):  # a character has at most four bytes, of which at most three are left
            lead = sample[-cut]
            if lead >= 0xC0:
                needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
                sample = sample[:-cut] if cut < needed else sample
                break
            if lead < 0x80:
                break
    return sample.decode("utf-8", "backslashreplace")


def _text(text: str) -> str:
    clipped = text if len(text) <= TEXT_CHARACTERS else text[: TEXT_CHARACTERS - 3] + "..."
    return clipped.encode("utf-8", "backslashreplace").decode()  # a lone surrogate could not be written as JSON
