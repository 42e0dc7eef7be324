"""What an ingestor holds back while slots move: nothing it takes may be made into operations before it is known whose they are.

From `hold` on what is read waits as it was read, and sources are read no further; what was made before is sent at once, and when shards have
committed all of it the ingestor is quiet. Then every feed is committed in every shard up to the same event, so that one number a feed is
still enough to tell what a shard has, whichever slots it will have.

It holds what one read of each source brings, and of those that cannot stop at once what comes meanwhile.

What must not live here: what becomes of what was held (`ingestion_state`).
"""

from collections.abc import Callable, Iterable, Mapping

from cluster.core.feed import Feed


class IngestionCut:
    """See the module."""

    __slots__ = ("attempt", "is_held", "is_quiet", "later", "marks", "over")

    def __init__(self) -> None:
        self.is_held = False
        self.is_quiet = False
        """All that was made is committed; nothing is sent until things go on."""
        self.later: list[tuple[str, Callable[[float], object]]] = []
        """What is to be done then, in order, with its source: reads are to be taken."""
        self.attempt = 0
        """For which it is held, the last one."""
        self.over = 0
        """The last attempt to move slots that is over."""
        self.marks: list[tuple[str, int]] = []
        """(source, or a channel of it, incarnation) that began anew meanwhile."""

    def forget(self, source: str) -> None:
        """What was read of a source comes again."""
        self.later = [each for each in self.later if each[0] != source]

    def end(self) -> tuple[list[Callable[[float], object]], list[tuple[str, int]]]:
        """Things go on. Returns what was to be done later, and what began anew."""
        later, marks = [act for _, act in self.later], self.marks
        self.is_held = self.is_quiet = False
        self.later, self.marks = [], []
        return later, marks


def inherit(feeds: Iterable[Feed], pairs: Iterable[tuple[int, int]]) -> None:
    """Shards have, with the slots of others, what those had committed: what is sent to them next follows on that.

    So does what is repeated, where an ingestor that has only just begun has asked by the map of before.
    """
    pairs = list(pairs)
    for feed in feeds:
        feed.sent, feed.committed = _inherited(feed.sent, pairs), _inherited(feed.committed, pairs)


def _inherited(numbers: Mapping[int, int], pairs: list[tuple[int, int]]) -> dict[int, int]:
    found = dict(numbers)
    for sender, receiver in pairs:
        if (last := numbers.get(sender, 0)) > found.get(receiver, 0):
            found[receiver] = last
    return found
