"""Hand-over: how what ingestors read passes from one to another when their number changes.

A unit (`placement.unit`) belongs to the ingestor that rendezvous hashing names. When `Members` change, the ingestor that it belongs to now
asks the one before for it (`Take`). That one takes no more events of it, waits until shards have committed those it took, and says where it
stopped (`HandOver`). In between nobody numbers the unit's events, so each takes effect once. How none is lost depends on the upstream (`Manner`).

Both messages are sent until they are heard, and may come twice. An ingestor that does not have what it is asked for says so: its last life
may have had it. Then shards tell where it stood, by a claim.

What must not live here: events and sequences (`ingestion_state`, `feed`), when members change (`supervisor_state`).
"""

from collections.abc import Callable, Iterable, Mapping
from enum import Enum

from cluster.core.feed import is_reached
from cluster.core.messages import Full, HandOver, Members, Moved, Send, Take
from cluster.core.placement import rendezvous

OVERLAP_MS = 500.0
"""For how long both ingestors have joined, before the first is asked to stop: the upstream needs some time to act on the second's joining."""
OPEN_WAIT_MS = 10_000.0
"""So long the new ingestor waits for a connection of its own; then it takes over without."""
AGAIN_MS = 1_000.0
RETRY_MS = 200.0
MAX_HELD = 100_000
"""Events kept while both have joined; with more, they are forgotten, and the upstream is asked again or the gap is told."""


class Manner(Enum):
    """How a unit passes without loss, as far as its upstream allows."""

    RESUME = "resume"
    """The upstream repeats what came after an event: joined after the last has stopped, from there on."""
    OVERLAP = "overlap"
    """Events have ids: joined before the last stops, and what both have had is left out."""
    GAP = "gap"
    """Events have none: left, then joined; what it feeds is fetched anew."""


class Taking:
    """A unit that is to be taken over."""

    __slots__ = ("ask_at", "channel", "giver", "manner", "source", "unit", "waits")

    def __init__(
        self, unit: str, source: str, channel: str | None, giver: str, manner: Manner, waits: set[str], now_ms: float
    ) -> None:
        self.unit = unit
        self.source = source
        self.channel = channel
        self.giver = giver
        self.manner = manner
        self.waits = waits
        """What the giver is not asked before, at best: open (the connection), demand (all shards have said what they need)."""
        self.ask_at = now_ms + OPEN_WAIT_MS
        self.has(None, now_ms)

    def has(self, wait: str | None, now_ms: float) -> None:
        """What was waited for has come."""
        if wait is None or wait in self.waits:
            self.waits.discard(wait or "")
            if not self.waits:
                self.ask_at = now_ms + (OVERLAP_MS if self.manner is Manner.OVERLAP else 0.0)


class _Giving:
    __slots__ = ("is_told", "life", "moved", "needs", "tell_at", "to")

    def __init__(self, to: str, life: int, needs: Mapping[str, int], moved: Moved) -> None:
        self.to = to
        self.life = life
        """Of the one it is for: the next may be told something else, as that one has gone on from here."""
        self.is_told = False
        self.needs = needs
        """Blobs, by coordinator, that must be committed before it is told."""
        self.moved = moved
        self.tell_at = 0.0


class HandOvers:
    """What an ingestor takes over from others, and hands over to them."""

    __slots__ = ("_giving", "_identity", "_life", "_told", "members", "taking")

    def __init__(self, identity: str, life: int, members: Members) -> None:
        self._identity = identity
        self._life = life
        self.members = members
        self.taking: dict[str, Taking] = {}
        """By unit."""
        self._giving: dict[str, _Giving] = {}
        self._told: set[str] = set()
        """Ingestors that are being told."""

    def is_mine(self, unit: str) -> bool:
        """Whether a unit belongs to this ingestor."""
        return rendezvous(unit, self.members.ingestors) == self._identity

    def giver(self, unit: str) -> str | None:
        """Return the other ingestor that may still have a unit."""
        if not self.members.previous:
            return None
        before = rendezvous(unit, self.members.previous)
        return None if before == self._identity else before

    @property
    def is_settled(self) -> bool:
        """Whether nothing is to be taken or handed over."""
        return not self.taking and not self._giving

    # --- handing over --------------------------------------------------------------------------------------------

    def gives(self, unit: str) -> bool:
        """Whether a unit is being handed over."""
        return unit in self._giving

    def give(self, to: str, life: int, moved: Moved, needs: Mapping[str, int]) -> None:
        """Tell `to`, in this life of it, where a unit stopped, once blobs up to `needs` are committed."""
        self._giving[moved.unit] = _Giving(to, life, needs, moved)

    def asked_again(self, unit: str, to: str, life: int) -> None:
        """A unit that is being handed over is asked for again. Where another life was told, that may have gone on: shards know how far."""
        giving = self._giving[unit]
        if giving.to == to and life > giving.life:
            moved = Moved(unit, False) if giving.is_told else giving.moved
            self._giving[unit] = _Giving(to, life, giving.needs, moved)

    # --- messages ------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When to ask or tell; what waits for commits comes up with those."""
        times = [taking.ask_at for taking in self.taking.values()]
        # What was told and is neither heard nor missed yet is due when that is known: a receiver that is cut off may say nothing for seconds.
        times += [each.tell_at for each in self._giving.values() if each.tell_at and each.to not in self._told]
        return min(times, default=None)

    def wake(self, now_ms: float, reached: Callable[[], Mapping[str, int]]) -> list[Send]:
        """Ask and tell what is due; `reached` gives, by coordinator, up to which all blobs are committed."""
        sends: list[Send] = []
        asks: dict[str, list[str]] = {}
        for taking in self.taking.values():
            if taking.ask_at <= now_ms:
                taking.ask_at = now_ms + AGAIN_MS
                asks.setdefault(taking.giver, []).append(taking.unit)
        sends.extend(
            Send(giver, Take(self._identity, self.members.epoch, units, self._life)) for giver, units in asks.items()
        )
        if self._giving:
            by_line = reached()
            tells: dict[tuple[str, int], list[Moved]] = {}
            for giving in self._giving.values():
                if giving.tell_at > now_ms or giving.to in self._told:
                    continue
                if is_reached(giving.needs, by_line):
                    giving.tell_at, giving.is_told = now_ms + AGAIN_MS, True
                    tells.setdefault((giving.to, giving.life), []).append(giving.moved)
                else:
                    giving.tell_at = 0.0
            self._told.update(to for to, _ in tells)
            epoch = self.members.epoch
            sends.extend(Send(to, HandOver(self._identity, epoch, moved, life)) for (to, life), moved in tells.items())
        return sends

    def answered(self, to: str, message: Take | HandOver, answer: object, now_ms: float) -> None:
        """A message was heard, or is to be sent again soon."""
        if isinstance(message, HandOver):
            self._told.discard(to)
        if isinstance(answer, Full):
            self.unanswered(to, message, now_ms)
        elif isinstance(message, HandOver):
            for moved in message.moved:
                giving = self._giving.get(moved.unit)
                if giving is not None and giving.moved is moved:
                    del self._giving[moved.unit]

    def unanswered(self, to: str, message: Take | HandOver, now_ms: float) -> None:
        """A message was not heard."""
        if isinstance(message, Take):
            self._each(message.units, now_ms + RETRY_MS)
            return
        self._told.discard(to)
        for moved in message.moved:
            giving = self._giving.get(moved.unit)
            if giving is not None:
                giving.tell_at = now_ms + RETRY_MS

    def _each(self, units: Iterable[str], at: float) -> None:
        for unit in units:
            taking = self.taking.get(unit)
            if taking is not None:
                taking.ask_at = min(taking.ask_at, at)
