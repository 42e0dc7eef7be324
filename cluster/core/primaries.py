"""Which actor is a shard's primary, as those who call it know, and which lives of shards are over.

A shard has an address, as `shard-3`, and at most two actors: one is named as the shard, the other has `-b` behind it. Callers need nobody to find the
primary: one that is not says so, and then, or where a call fails, the other is tried. A new primary tells all who may call it besides, so
that calls to one that does not answer end at once.

Whoever has heard of a later life of a shard takes nothing from an earlier one: neither its messages nor its answers.

What must not live here: calls (`cluster.actors.handles`).
"""

from collections.abc import Iterator

OTHER = "-b"
"""Behind the name of a shard's second actor."""


def actors_of(shard: str) -> tuple[str, str]:
    """Return the names that a shard's actors may have."""
    return shard, shard + OTHER


def shard_of(actor: str) -> str:
    """Return the address of the shard whose actor this is."""
    return actor.removesuffix(OTHER)


class Primaries:
    """See the module."""

    __slots__ = ("_actors", "_incarnations")

    def __init__(self) -> None:
        self._actors: dict[str, str] = {}
        self._incarnations: dict[str, int] = {}

    def __iter__(self) -> Iterator[str]:
        """Iterate over the shards that were heard of."""
        return iter(self._incarnations)

    def actor(self, shard: str) -> str:
        """Return whom to call."""
        return self._actors.get(shard, shard)

    def told(self, shard: str, actor: str, incarnation: int) -> bool:
        """A primary says that it is one. Returns whether that is news."""
        if incarnation <= self._incarnations.get(shard, 0):
            return False
        self._incarnations[shard] = incarnation
        self._actors[shard] = actor
        return True

    def missed(self, shard: str, actor: str, named: str = "") -> None:
        """`actor` did not answer, or is not the primary and named another: whom to try next."""
        if self.actor(shard) == actor:
            first, second = actors_of(shard)
            self._actors[shard] = named if named in (first, second) else second if actor == first else first

    def is_over(self, shard: str, incarnation: int) -> bool:
        """Whether a later life than this one was heard of."""
        return incarnation < self._incarnations.get(shard, 0)
