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
        self._failures: dict[str, int] = {}
        self._present: set[str] = set()

    def want(self, actors: Sequence[str]) -> list[Effect]:
        """Set what should be."""
        unwanted = [actor for actor in self.desired if actor not in actors]
        self._present.difference_update(unwanted)
        for actor in unwanted:
            self._failures.pop(actor, None)
        self.desired = tuple(actors)
        return [*(Remove(actor) for actor in unwanted), *(Create(actor) for actor in actors)]

    def answered(self, actor: str) -> None:
        """The actor lives."""
        self._present.add(actor)
        self._failures.pop(actor, None)

    def silent(self, actor: str) -> list[Effect]:
        """The actor did not answer a check."""
        if actor not in self.desired:
            return []
        failures = self._failures[actor] = self._failures.get(actor, 0) + 1
        if failures < FAILURES:
            return []
        del self._failures[actor]
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
