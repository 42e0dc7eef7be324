"""Channel demand: which upstream channels a shard's watched keys need, told to the ingestors that own their sources.

A channel is needed from the first watched key it feeds until `linger` after the last; keys come and go with page views, and
joining costs the upstream more than staying. Each ingestor has a link of its own; changes wait on it folded, so a key watched and
dropped between two calls costs nothing. When the ingestors change, each is told the whole of what is now its own; those that have channels
which are no longer theirs keep them until they are taken over (`hand_over`), so what is joined stays joined here.

What must not live here: which channels feed a key (`rule`), sockets.
"""

from collections.abc import Callable, Collection

from cluster.core.link import Outgoing
from cluster.core.messages import Answer, Demand, DemandMet, Full, Members, Refused, Send
from cluster.core.placement import rendezvous, unit

RETRY_MS = 200.0
GREET_MS = 10_000.0
"""A restarted shard says the whole of what it needs only after gateways have had time to watch again. Sooner, ingestors would leave
channels that are about to be wanted, and events would be lost between leaving and joining."""
INHERITED_MS = 5_000.0
"""How long a shard that slots have come to keeps their channels, at least: until gateways watch what has moved here."""
Channel = tuple[str, str]
"""(source, channel)."""


class _IngestorLine:
    __slots__ = ("address", "dirty", "kept", "link", "told", "whole")

    def __init__(self, address: str, identity: str, incarnation: int) -> None:
        self.address = address
        self.link = Outgoing(identity, incarnation)
        self.told: set[Channel] = set()
        """What the ingestor knows, or will once the call in flight is answered."""
        self.dirty: dict[Channel, None] = {}
        """Channels that may differ from `told`, in the order they were touched."""
        self.whole = False
        """The next message says everything this shard needs."""
        self.kept = False
        """The ingestors have changed: the next message is sent even if it says nothing, and what is joined stays so, by whomever."""


class ChannelDemand:
    """Counts watched keys per channel and keeps the ingestors informed."""

    def __init__(
        self,
        identity: str,
        incarnation: int,
        *,
        now_ms: float,
        members: Members,
        linger_ms: Callable[[str, str], float],
        spread: Collection[str] = (),
    ) -> None:
        """`spread`: sources whose channels are divided among the ingestors one by one."""
        self._identity = identity
        self._incarnation = incarnation
        self._members = members
        self._spread = frozenset(spread)
        self._linger_ms = linger_ms
        self._counts: dict[Channel, int] = {}
        self._since: dict[Channel, float] = {}
        """From when each has been needed without a break."""
        self._leaving: dict[Channel, float] = {}
        self._joined: set[Channel] = set()
        self._lines = {address: _IngestorLine(address, identity, incarnation) for address in members.ingestors}
        self._ended: dict[str, _IngestorLine] = {}
        """To ingestors that are no more: another of such a name is to be told under a later incarnation, but none that the shard's next primary,
        whose incarnation follows from the time, would have to catch up with."""
        self._greet_at: float | None = now_ms + GREET_MS

    @property
    def epoch(self) -> int:
        """The members' that are known."""
        return self._members.epoch

    @property
    def ingestors(self) -> list[str]:
        """Those that are known."""
        return self._members.ingestors

    def members(self, message: Members) -> bool:
        """The supervisor says which ingestors there are. Returns whether that is news."""
        if message.epoch <= self._members.epoch:
            return False
        self._members = message
        lines = {}
        for address in message.ingestors:
            line = self._lines.get(address) or self._ended.pop(address, None)
            if line is None:
                line = _IngestorLine(address, self._identity, self._incarnation)
            else:
                line.link.relink()
            lines[address] = line
        self._ended.update((address, line) for address, line in self._lines.items() if address not in lines)
        self._lines = lines
        for line in lines.values():
            line.told.clear()
            line.dirty = self._all_of(line)
            line.kept = True
            line.whole = self._greet_at is None
        return True

    def _ingestor_of(self, channel: Channel) -> str:
        source, name = channel
        return rendezvous(unit(source, name, is_spread=source in self._spread), self._members.ingestors)

    def needs(self, channel: Channel) -> bool:
        """Whether a watched key needs a channel, or did lately."""
        return channel in self._counts

    def need(self, channels: list[Channel], now_ms: float) -> None:
        """One more watched key needs `channels`."""
        for channel in channels:
            self._since.setdefault(channel, now_ms)
            self._counts[channel] = self._counts.get(channel, 0) + 1
            self._leaving.pop(channel, None)
            self._touch(channel)

    def release(self, channels: list[Channel], now_ms: float) -> None:
        """A watched key no longer needs `channels`."""
        for channel in channels:
            count = self._counts[channel] = self._counts[channel] - 1
            if not count:
                self._leaving[channel] = now_ms + self._linger_ms(*channel)

    @property
    def needed(self) -> list[tuple[str, str, float]]:
        """Return (source, channel, since when) of all that are needed, or were lately."""
        return [(*channel, since) for channel, since in self._since.items()]

    def inherit(self, joined: list[tuple[str, str, float]], now_ms: float) -> None:
        """Channels were needed without a break where entries come from that are about to be watched here."""
        for source, name, since_ms in joined:
            channel = (source, name)
            if channel not in self._counts:
                self.need([channel], since_ms)
                self._counts[channel] = 0
                self._leaving[channel] = now_ms + max(self._linger_ms(*channel), INHERITED_MS)

    def joined_since(self, channels: list[Channel]) -> float:
        """Return from when all of `channels`, which are needed, have been joined, or were to be (Unix ms)."""
        return max(self._since[channel] for channel in channels)

    def settled(self, channels: list[Channel]) -> bool:
        """Whether the ingestors have answered for all of `channels`: joined, or known not to be connected."""
        return all(channel in self._joined for channel in channels)

    def expired(self, now_ms: float) -> list[Channel]:
        """Give up channels whose linger is over, and return them."""
        gone = [channel for channel, at in self._leaving.items() if at <= now_ms]
        for channel in gone:
            del self._leaving[channel]
            del self._counts[channel]
            del self._since[channel]
            self._touch(channel)
        return gone

    def deadline(self) -> float | None:
        """When a linger ends or a call is to be made."""
        times = list(self._leaving.values())
        if self._greet_at is not None:
            times.append(self._greet_at)
        for line in self._lines.values():
            if line.link.idle and (line.dirty or line.whole or line.kept):
                times.append(0.0)
            elif line.link.retry_at is not None:
                times.append(line.link.retry_at)
        return min(times, default=None)

    def sends(self, now_ms: float) -> list[Send]:
        """Return the calls that are due."""
        effects = []
        if self._greet_at is not None and self._greet_at <= now_ms:
            self._greet_at = None
            for line in self._lines.values():
                line.whole = True
                line.told.clear()
                line.dirty = self._all_of(line)
        for line in self._lines.values():
            if not line.link.idle:
                message = line.link.resend(now_ms)
            elif (message := self._next(line)) is not None:
                line.link.sent(message)
            if message is not None:
                effects.append(Send(line.address, message))
        return effects

    def answered(self, address: str, message: Demand, answer: Answer, now_ms: float) -> None:
        """An ingestor answered `message`."""
        line = self._lines.get(address)
        if line is None or line.link.in_flight is not message:
            return
        match answer:
            case DemandMet(incarnation=incarnation):
                line.link.acknowledged(incarnation)
                self._joined.update(message.add)
            case Full(retry_ms=retry_ms):
                line.link.failed(now_ms, retry_ms)
            case Refused():
                self._restart(line)
            case _:
                raise AssertionError(f"{address} answered a demand with {answer!r}")

    def unanswered(self, address: str, message: Demand, now_ms: float) -> None:
        """The call failed; it is made again."""
        line = self._lines.get(address)
        if line is not None and line.link.in_flight is message:
            line.link.failed(now_ms, RETRY_MS)

    def announced(self, address: str, incarnation: int) -> None:
        """An ingestor lives anew and knows nothing."""
        line = self._lines[address]
        if line.link.peer != incarnation:
            self._restart(line)

    def knows(self, address: str) -> bool:
        """Whether `address` is an ingestor this shard talks to."""
        return address in self._lines

    def _restart(self, line: _IngestorLine) -> None:
        line.link.relink()
        line.told.clear()
        line.dirty = self._all_of(line)
        line.whole = True
        self._forget(line)

    def _next(self, line: _IngestorLine) -> Demand | None:
        add = [channel for channel in line.dirty if channel in self._counts and channel not in line.told]
        drop = [channel for channel in line.dirty if channel not in self._counts and channel in line.told]
        line.dirty = {}
        if not (add or drop or line.whole or line.kept):
            return None
        line.told.update(add)
        line.told.difference_update(drop)
        self._joined.difference_update(drop)
        if line.whole and not line.kept:
            self._forget(line)
        whole, line.whole, line.kept = line.whole, False, False
        return Demand(line.link.header(), self._members.epoch, whole, add, drop)

    def _forget(self, line: _IngestorLine) -> None:
        """Take for joined only what the ingestor was told."""
        self._joined = {
            channel for channel in self._joined if channel in line.told or self._ingestor_of(channel) != line.address
        }

    def _all_of(self, line: _IngestorLine) -> dict[Channel, None]:
        return {channel: None for channel in self._counts if self._ingestor_of(channel) == line.address}

    def _touch(self, channel: Channel) -> None:
        if self._members.ingestors:
            self._lines[self._ingestor_of(channel)].dirty[channel] = None
