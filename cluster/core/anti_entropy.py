"""Anti-entropy: finding replicas that are not what their shard holds.

Links number every message and replicas take a change only onto the version it starts from, so replicas cannot diverge; unless there is a
fault in any of that, which nobody would ever notice: a client that is told nothing has no reason to doubt what it shows. So gateways ask
shards, entry by entry, whether what they hold is what is held there.

Asking for versions and comparing them when the answer comes would find every entry that changes meanwhile. Instead the shard answers on the
link on which changes come, after all that is pending there, with what it holds then. When the answer is read every change before it has
been taken and none after it, so any difference is a fault.

Costs are bounded: of all entries held a fifth is checked every `CHECK_MS`, so that each is within 25 s, but no more than `CHECKED` at once:
some 10 ms of work here and as much at the shards. A gateway with more than 25,000 entries goes round them more slowly.

What must not live here: how a replica is made anew (`gateway_state`, `shard_state`).
"""

from collections.abc import Callable, Iterable

CHECK_MS = 5_000.0
SLICES = 5
"""Checks in which a round goes through everything."""
CHECKED = 5_000
"""Entries in one check, of all shards together."""


class AntiEntropy:
    """Which replicas to check when, and what became of it."""

    __slots__ = ("_asked", "_mended", "_round", "_slice", "divergences", "due_ms")

    def __init__(self) -> None:
        self.due_ms: float | None = None
        """When to check; None: there is nothing to be checked."""
        self.divergences = 0
        self._round: list[str] = []
        """Keys yet to be checked, the last first."""
        self._slice = 0
        self._asked: dict[int, list[str]] = {}
        """By shard that has not answered yet: what it was asked about."""
        self._mended: set[str] = set()
        """What differed when it was checked last."""

    def begin(self, now_ms: float) -> None:
        """There is something to be checked from now on."""
        if self.due_ms is None:
            self.due_ms = now_ms + CHECK_MS

    def due(self, held: Iterable[str], now_ms: float) -> list[str]:
        """Return the keys to check now, given those of all that is held; none where nothing is due."""
        if self.due_ms is None or self.due_ms > now_ms:
            return []
        if not self._round:
            self._round = list(dict.fromkeys(held))
            self._round.reverse()
            self._slice = min(-(-len(self._round) // SLICES), CHECKED)
        self.due_ms = now_ms + CHECK_MS if self._round else None
        keys = self._round[-self._slice :] if self._slice else []
        del self._round[-self._slice :]
        keys.reverse()
        return keys

    def asks(self, shard: int, keys: list[str]) -> bool:
        """Whether a shard is to be asked about these keys: not where it has yet to answer what it was asked before."""
        if shard in self._asked:
            return False
        self._asked[shard] = keys
        return True

    def forget(self, shard: int) -> None:
        """The link to a shard starts over: it answers nothing that it was asked before."""
        self._asked.pop(shard, None)

    def compare(
        self, shard: int, said: Iterable[tuple[str, int]], held: Callable[[str], int | None]
    ) -> tuple[list[tuple[str, int]], bool]:
        """Compare what a shard said of the keys that are not at the version it was asked about with what is held (None: it does not count).

        Returns:
            (key, version held) of those that differ, and whether one differs again that was mended: then more is wrong than an entry.
        """
        asked = self._asked.pop(shard, [])
        versions = [(key, version, held(key)) for key, version in said]
        differing = {key: here for key, version, here in versions if here is not None and here != version}
        again = not self._mended.isdisjoint(differing)
        self._mended.difference_update(asked)
        self._mended.update(differing)
        self.divergences += len(differing)
        return list(differing.items()), again
