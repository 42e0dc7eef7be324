"""Who listens to the sample upstream, and what waits for each of them.

An emission is encoded once per form (WebSocket frame, server-sent event) and put into the queue of every listener of its channel. A
listener that lets its queue fill up is hung up on.

What must not live here: HTTP, the model.
"""

import asyncio
from collections import deque
from collections.abc import Callable

import orjson

from cluster.demo.tracker import Emission

QUEUE_EVENTS = 50_000
"""Per listener; some 10 MB. One that is further behind is not coming back."""


class Listener:
    """One connection that is written to."""

    __slots__ = ("_ready", "channels", "closed", "hang_up", "queue")

    def __init__(self, hang_up: Callable[[], None]) -> None:
        self.hang_up = hang_up
        """Ends the connection at once, without goodbye."""
        self.queue: deque[bytes] = deque()
        self.channels: set[str] = set()
        self.closed = False
        self._ready = asyncio.Event()

    def put(self, encoded: bytes) -> None:
        """Queue for writing."""
        if self.closed:
            return
        if len(self.queue) >= QUEUE_EVENTS:
            self.closed = True
            self.hang_up()
            return
        self.queue.append(encoded)
        self._ready.set()

    async def take(self, timeout_s: float | None = None) -> list[bytes]:
        """Wait for something to write; empty after `timeout_s`. Cancelling is safe: nothing is lost."""
        if not self.queue:
            self._ready.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._ready.wait()
            except TimeoutError:
                return []
        taken = list(self.queue)
        self.queue.clear()
        return taken


class Hub:
    """All listeners, by channel."""

    def __init__(self) -> None:
        self._frames: dict[str, set[Listener]] = {}
        self._events: dict[str, set[Listener]] = {}
        self.listeners: set[Listener] = set()
        self._sequence = 0
        self.subscribes: dict[str, int] = {}
        """Subscribe messages so far, by channel."""
        self.unsubscribes: dict[str, int] = {}
        self.emitted = 0

    def subscribe(self, listener: Listener, channel: str) -> None:
        """Send a channel's frames to a WebSocket listener."""
        self.subscribes[channel] = self.subscribes.get(channel, 0) + 1
        self._frames.setdefault(channel, set()).add(listener)
        listener.channels.add(channel)

    def unsubscribe(self, listener: Listener, channel: str) -> None:
        """Send them no longer."""
        self.unsubscribes[channel] = self.unsubscribes.get(channel, 0) + 1
        listener.channels.discard(channel)
        self._drop(self._frames, channel, listener)

    def stream(self, listener: Listener, channel: str) -> None:
        """Send a channel as server-sent events."""
        self._events.setdefault(channel, set()).add(listener)
        listener.channels.add(channel)

    def forget(self, listener: Listener) -> None:
        """The connection ended."""
        listener.closed = True
        self.listeners.discard(listener)
        for channel in listener.channels:
            self._drop(self._frames, channel, listener)
            self._drop(self._events, channel, listener)

    def broadcast(self, emission: Emission) -> None:
        """Send to all who listen to the channel."""
        self.emitted += 1
        self._sequence += 1
        channel, event, data = emission
        if listeners := self._frames.get(channel):
            frame = orjson.dumps({"event": event, "channel": channel, "data": data, "id": str(self._sequence)})
            for listener in listeners:
                listener.put(frame)
        if listeners := self._events.get(channel):
            encoded = encode_event(event, data, data["id"] if channel == "activity" else str(self._sequence))
            for listener in listeners:
                listener.put(encoded)

    def send_raw(self, channel: str, frame: bytes) -> None:
        """Send bytes as a text frame, whatever they are."""
        for listener in self._frames.get(channel, ()):
            listener.put(frame)

    def hang_up(self, *, frames: bool = True, events: bool = True) -> None:
        """Cut connections: those of WebSockets, those of event streams."""
        streaming: set[Listener] = set().union(*self._events.values())
        for listener in list(self.listeners):
            if events if listener in streaming else frames:
                self.forget(listener)
                listener.hang_up()

    def joined(self) -> dict[str, int]:
        """WebSocket listeners now, by channel."""
        return {channel: len(listeners) for channel, listeners in self._frames.items()}

    def streaming(self) -> dict[str, int]:
        """Event stream listeners now, by channel."""
        return {channel: len(listeners) for channel, listeners in self._events.items()}

    @staticmethod
    def _drop(table: dict[str, set[Listener]], channel: str, listener: Listener) -> None:
        listeners = table.get(channel)
        if listeners is not None:
            listeners.discard(listener)
            if not listeners:
                del table[channel]


def encode_event(event: str, data: object, event_id: str) -> bytes:
    """One server-sent event."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event_id.encode(), event.encode(), orjson.dumps(data))
