"""How long shards are led by nobody; of those with one actor, which Ray makes anew by itself, also whether they are.

Checks are seconds apart. So between them the end of an actor's process is waited for, and after that its return is asked for again and
again. Who waits may be told of the end of another's process, and an actor that was slow looks lost: neither counts.

What must not live here: who leads where there are two (`shard_roles`), how ends are noticed (`cluster.actors.shard_keeper`).
"""

from typing import NamedTuple

from msgspec import Struct

from cluster.core.placement import shard_at
from cluster.core.primaries import shard_of

Place = tuple[str, int]
"""(node, pid) of a process."""


class Said(NamedTuple):
    """What an actor said of itself."""

    place: Place
    leads: bool
    epoch: int


class AwaitEnd(Struct, frozen=True):
    """Effect: say when the process that an actor has there has `ended`."""

    actor: str
    place: Place


class AskAgain(Struct, frozen=True):
    """Effect: ask an actor how it is as long as it `is_away`, and say what it `answered`."""

    actor: str
    place: Place


class Recovered(Struct, frozen=True):
    """Effect: a shard that was lost is led again, after so long."""

    actor: str
    epoch: int
    took_ms: float


Effect = AwaitEnd | AskAgain | Recovered


class Outages:
    """Since when shards have nobody to lead them."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def begin(self, shard: int, now_ms: float) -> None:
        """Nobody leads it, now or since before."""
        self._since.setdefault(shard, now_ms)

    def void(self, shard: int) -> None:
        """It was led all the time, or is no more."""
        self._since.pop(shard, None)

    def end(self, actor: str, epoch: int, now_ms: float) -> list[Recovered]:
        """An actor leads its shard, as it did unless the shard was lost."""
        since = self._since.pop(shard_at(shard_of(actor)), None)
        return [] if since is None else [Recovered(actor, epoch, now_ms - since)]


class LoneShards:
    """The actors of shards that have one."""

    def __init__(self, outages: Outages) -> None:
        """`outages`: where it is noted that nobody leads."""
        self._outages = outages
        self._places: dict[str, Place] = {}
        self._ended: set[str] = set()
        """Those whose process there has ended, as was said."""

    def checked(self, actor: str, said: Said | None, now_ms: float) -> list[Effect]:
        """An actor was asked how it is, and has said so or not (None)."""
        shard, place = shard_at(shard_of(actor)), self._places.get(actor)
        if said is None:
            if place is not None:
                self._outages.begin(shard, now_ms)
            return []
        if said.place == place:
            if actor not in self._ended:
                self._outages.void(shard)  # it was slow
            return []
        if not said.leads:
            return []
        self._places[actor] = said.place
        self._ended.discard(actor)
        return [*self._outages.end(actor, said.epoch, now_ms), AwaitEnd(actor, said.place)]

    def ended(self, actor: str, place: Place, now_ms: float) -> list[Effect]:
        """The process that an actor had there has ended, as was said."""
        if self._places.get(actor) != place:
            return []
        self._ended.add(actor)
        self._outages.begin(shard_at(shard_of(actor)), now_ms)
        return [AskAgain(actor, place)]

    def is_away(self, actor: str, place: Place) -> bool:
        """Whether an actor is to return from the end of the process that it had there. Not if a check has found it, or it is forgotten."""
        return actor in self._ended and self._places.get(actor) == place

    def answered(self, actor: str, place: Place, said: Said | None, now_ms: float) -> list[Effect]:
        """An actor that `is_away` was asked how it is, and has said so or not (None)."""
        if not self.is_away(actor, place):
            return []
        if said is None or said.place != place:
            return [] if said is None else self.checked(actor, said, now_ms)
        # It was asked after its end: that was another's.
        self._ended.discard(actor)
        self._outages.void(shard_at(shard_of(actor)))
        return [AwaitEnd(actor, place)]

    def forget(self, actor: str) -> Place | None:
        """It is one of two from now on, or no more. Returns where it was."""
        self._ended.discard(actor)
        return self._places.pop(actor, None)
