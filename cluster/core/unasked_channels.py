"""Channels of a source that nobody has joined, and on which events come all the same.

Some upstreams push what nobody asked for, and rules may well take it: it changes entries that nobody watches now. Each such channel costs
a feed here and a cursor in a store, and an upstream can make up ever new ones. So there are at most so many of them; those that have
been silent for long make room, and where none has, a new one is refused until one has. Channels that are joined are none of these.

What must not live here: what is remembered of a channel, and what becomes of events of those that are refused (`ingestion_state`).
"""

from collections import OrderedDict
from collections.abc import Callable

MAX_CHANNELS = 100_000
"""Of a source. Each takes 1.5 KB (routes, a feed, what was sent of it), so all of them some 150 MB; watched channels of a busy cluster are
fewer. Beyond it events of new ones are dropped (`too_many_channels`)."""
SILENT_MS = 600_000.0
"""A channel that was silent for so long makes room. What was sent of it is committed by then, or waits in blobs of its own."""
LOOKS = 2
"""Channels that are looked at for one that is refused: finding room must not cost more than taking the event."""


class UnaskedChannels:
    """See the module."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since: OrderedDict[str, float] = OrderedDict()
        """When each was first heard; the one to be looked at next comes first."""

    def __contains__(self, channel: str) -> bool:
        return channel in self._since

    def __len__(self) -> int:
        return len(self._since)

    @property
    def is_full(self) -> bool:
        """Whether another has to take the place of one that is silent."""
        return len(self._since) >= MAX_CHANNELS

    def add(self, channel: str, now_ms: float) -> None:
        """An event came on it."""
        self._since[channel] = now_ms

    def discard(self, channel: str) -> None:
        """It is joined, or read no longer."""
        self._since.pop(channel, None)

    def silent(self, used_ms: Callable[[str], float], now_ms: float) -> str | None:
        """Take out one that has been silent for long, and return it. `used_ms`: when something of it was sent last."""
        latest_ms = now_ms - SILENT_MS
        for _ in range(min(LOOKS, len(self._since))):
            channel, since_ms = self._since.popitem(last=False)
            if since_ms <= latest_ms and used_ms(channel) <= latest_ms:
                return channel
            self._since[channel] = since_ms
        return None
