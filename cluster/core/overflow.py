"""Overflow: what happens to the events of a source of which too much is on its way to shards.

A source that may be paused is not read. One that may not has its events wait here, within bounds: with `drop_oldest` the ones that have
waited longest are given up for new ones, with `keep_latest` only the last of those that change the same entries waits. With `disconnect` it
is not read either, and what has piled up at the upstream by then is given up: when there is room, another connection takes its place.

What must not live here: when too much is on its way, and what follows from loss (`ingestion_state`).
"""

from collections.abc import Hashable
from enum import Enum

from cluster.core.feed import EventId
from cluster.core.rule import Envelope

MAX_WAITING_BYTES = 16 * 1024 * 1024
EVENT_BYTES = 200
"""What an event that waits takes beside its data."""


class Overflow(Enum):
    """What to do with a source of which too much is on its way."""

    PAUSE = "pause"
    DROP_OLDEST = "drop_oldest"
    KEEP_LATEST = "keep_latest"
    DISCONNECT = "disconnect"


class Waiting:
    """Events that wait, oldest first."""

    __slots__ = ("_bytes", "_events", "_max_bytes", "_number")

    def __init__(self, max_bytes: int = MAX_WAITING_BYTES) -> None:
        self._events: dict[Hashable, tuple[Envelope, EventId | None]] = {}
        self._bytes = 0
        self._max_bytes = max_bytes
        self._number = 0

    def __bool__(self) -> bool:
        return bool(self._events)

    def add(self, envelope: Envelope, event_id: EventId | None, what: Hashable = None) -> int:
        """Have an event wait, in place of one that was about the same (`what`; None: nothing is). Returns how many were given up."""
        self._number += 1
        place = self._number if what is None else what
        dropped = self._drop(place) if place in self._events else 0
        self._events[place] = (envelope, event_id)
        self._bytes += EVENT_BYTES + len(bytes(envelope.data))
        while self._bytes > self._max_bytes and len(self._events) > 1:
            dropped += self._drop(next(iter(self._events)))
        return dropped

    def pop(self) -> tuple[Envelope, EventId | None]:
        """Return the event that has waited longest."""
        place = next(iter(self._events))
        event = self._events[place]
        self._drop(place)
        return event

    def _drop(self, place: Hashable) -> int:
        envelope, _ = self._events.pop(place)
        self._bytes -= EVENT_BYTES + len(bytes(envelope.data))
        return 1
