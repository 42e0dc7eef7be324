"""Scaling: the way from the ingestors there are to those there are to be, and how many those are.

Steps: the new ones are made; all are told (`Members` with `previous`), and shards too; what belongs to others now is handed over
(`hand_over`); when all say that they are settled, all are told so (`Members` without `previous`); those that have nothing left to do are ended.
One change at a time: a wish that comes meanwhile waits.

What must not live here: how actors are made, asked and told (`cluster.actors.supervisor`).
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from cluster.core.messages import Members

MAX_INGESTORS = 64
LOW = 0.6
"""Ingestors are taken away only where the rest would stay below this share of the target: else they would come back at once."""


class Autoscale(Struct, frozen=True):
    """How many ingestors there may be, and when there are to be more or fewer."""

    min: int = 1
    max: int = 4
    target: float = 0.7
    """Share of one core that an ingestor is to use."""
    cool_down_ms: float = 60_000.0
    """At least so long between two changes."""


class Autoscaler:
    """Asks for ingestors as their load wants it."""

    def __init__(self, options: Autoscale, now_ms: float) -> None:
        self._options = options
        self._changed_at = now_ms

    def wanted(self, count: int, loads: Sequence[tuple[float, bool]], now_ms: float) -> int:
        """Return how many ingestors there should be.

        Args:
            count: How many there are.
            loads: Of each: the share of a core it has used since it was last asked, and whether it had to stop reading meanwhile.
            now_ms: The time.
        """
        options = self._options
        within = min(max(count, options.min), options.max)
        if within == count and len(loads) == count and now_ms - self._changed_at >= options.cool_down_ms:
            total = sum(load for load, _ in loads)
            needed = -(-total // options.target)
            if needed > count or any(paused for _, paused in loads):
                within = min(int(max(needed, count + 1)), options.max)
            elif total < LOW * options.target * (count - 1):
                within = max(count - 1, options.min)
        if within != count:
            self._changed_at = now_ms
        return within


class Reported(Struct, frozen=True):
    """What an ingestor says of itself (`IngestionState.status`)."""

    members: Members
    is_settled: bool
    is_idle: bool


class Tell(Struct, frozen=True):
    """Effect: tell an actor who the members are."""

    actor: str
    members: Members


class Retire(Struct, frozen=True):
    """Effect: end an ingestor that has nothing left to do."""

    actor: str


class Scaling:
    """See the module."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.wanted = len(members.ingestors)
        self._retiring: dict[str, None] = {}

    def recover(self, found: Mapping[str, Members]) -> None:
        """Go on from what ingestors know, after the supervisor's last life.

        What that life began with does not count, however late its epoch: it is a configuration's, and ingestors may have been scaled.
        """
        if not found:
            return
        self.members = max(found.values(), key=lambda members: (members.epoch, not members.previous))
        self.wanted = len(self.members.ingestors)
        self._retiring = dict.fromkeys(
            each for each in (*self.members.previous, *found) if each not in self.members.ingestors
        )

    @property
    def actors(self) -> list[str]:
        """Return the ingestors that should exist now."""
        names = dict.fromkeys([*self._names, *self.members.ingestors, *self.members.previous, *self._retiring])
        return list(names)

    @property
    def is_done(self) -> bool:
        """Whether there is what is wanted, and everything is where it belongs."""
        return self.members.ingestors == self._names and not self.members.previous and not self._retiring

    @property
    def _names(self) -> list[str]:
        return [f"ingestor-{n}" for n in range(self.wanted)]

    def step(self, ingestors: Mapping[str, Reported], shards: Mapping[str, int | None]) -> list[Tell | Retire]:
        """Go on, given what ingestors say and the epoch that each shard knows (None: it does not say)."""
        members = self.members
        if members.previous:
            reports = [ingestors.get(name) for name in {*members.ingestors, *members.previous}]
            are_settled = all(each is not None and each.members == members and each.is_settled for each in reports)
            if are_settled and all(epoch == members.epoch for epoch in shards.values()):
                self.members = Members(members.epoch, members.ingestors)
        elif not self._retiring and members.ingestors != self._names and all(name in ingestors for name in self._names):
            self._retiring = dict.fromkeys(each for each in members.ingestors if each not in self._names)
            self.members = Members(members.epoch + 1, self._names, members.ingestors)
        members = self.members
        effects: list[Tell | Retire] = []
        for name, report in ingestors.items():
            if report.members != members:
                effects.append(Tell(name, members))
            elif name in self._retiring and not members.previous and report.is_idle:
                del self._retiring[name]
                effects.append(Retire(name))
        effects.extend(Tell(name, members) for name, epoch in shards.items() if epoch not in (None, members.epoch))
        return effects
