"""The supervisor's reconciling: which actors should be, which are, and what to do about the difference.

What must not live here: how actors are made or asked (`cluster.actors.supervisor`).
"""

import itertools
from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

CHECK_MS = 5_000.0
"""Between checks of one actor. Ray restarts a dead process by itself within a second; this finds what Ray has given up on."""
FAILURES = 3
"""Checks in a row that an actor may leave unanswered before it is made anew: a stopped process is dead for its clients."""
SILENT_MS = 9_000.0
"""And for how long it says nothing at least: while others are waited for, checks follow each other sooner."""


class Create(Struct, frozen=True):
    """Effect: make sure the actor exists."""

    actor: str


class Replace(Struct, frozen=True):
    """Effect: end the actor and make it anew."""

    actor: str


class Remove(Struct, frozen=True):
    """Effect: end an actor that is no longer wanted."""

    actor: str


Effect = Create | Replace | Remove


class SupervisorState:
    """Desired against actual. Idempotent: the same observation asks for the same again."""

    def __init__(self) -> None:
        self.desired: tuple[str, ...] = ()
        self._silent: dict[str, tuple[int, float]] = {}
        """Who has left checks unanswered: how many in a row, and when the first was."""
        self._present: set[str] = set()

    def want(self, actors: Sequence[str]) -> list[Effect]:
        """Set what should be."""
        unwanted = [actor for actor in self.desired if actor not in actors]
        self._present.difference_update(unwanted)
        for actor in unwanted:
            self._silent.pop(actor, None)
        self.desired = tuple(actors)
        return [*(Remove(actor) for actor in unwanted), *(Create(actor) for actor in actors)]

    def answered(self, actor: str) -> None:
        """The actor lives."""
        self._present.add(actor)
        self._silent.pop(actor, None)

    def silent(self, actor: str, now_ms: float) -> list[Effect]:
        """The actor did not answer a check. Whether it is just being started is to be seen before it is replaced; then it is given as long again."""
        if actor not in self.desired:
            return []
        failures, since_ms = self._silent.get(actor, (0, now_ms))
        self._silent[actor] = (failures + 1, since_ms)
        if failures + 1 < FAILURES or now_ms - since_ms < SILENT_MS:
            return []
        del self._silent[actor]
        return [Replace(actor)]

    @property
    def ready(self) -> bool:
        """Whether every desired actor has answered at least once."""
        return bool(self.desired) and not self.missing

    @property
    def missing(self) -> list[str]:
        """The desired actors that have not answered yet."""
        return [actor for actor in self.desired if actor not in self._present]


def match_gateways(
    current: Sequence[str],
    where: Mapping[str, str],
    alive: Collection[str],
    count: int,
    sessions: Mapping[str, int] | None = None,
) -> list[str]:
    """Return which gateways there should be.

    Args:
        current: Those there are.
        where: The node each was last seen on.
        alive: The nodes there are now.
        count: How many there should be. Where that is fewer than before, gateways whose node is gone go first.
        sessions: What each has: of those whose node is there, who has the fewest goes first.
    """

    def number(name: str) -> int:
        return int(name.rpartition("-")[2])

    has = sessions or {}
    kept = sorted(current, key=lambda name: (where.get(name) not in alive, -has.get(name, 0), number(name)))[:count]
    taken = set(map(number, kept))
    free = (n for n in itertools.count() if n not in taken)
    added = [f"gateway-{n}" for n in itertools.islice(free, count - len(kept))]
    return sorted([*kept, *added], key=number)
