"""Shards and coordinators come and go: the calls of a move of slots.

What must not live here: what is said when (`core.slot_move`), how actors are made and ended (`supervisor`).
"""

import asyncio
from collections.abc import Iterable

from cluster.actors.handles import Peers, Unreachable
from cluster.clock import SystemClock
from cluster.core.messages import Progress, Rebalance
from cluster.core.placement import SlotMap
from cluster.core.slot_move import Phase, SlotMoves
from cluster.observability.logs import Log
from cluster.observability.metrics import Metrics

ASK_S = 1.0
"""For one answer. Who does not answer so soon is asked again; a cut that takes long is given up."""
CUT_PAUSE_S = 0.003
"""Between questions while the cluster pauses: short against what the answers take."""
COPY_PAUSE_S = 0.1
MAP_POLL_S = 0.02
"""While somebody who begins waits for a cut to be over."""


class Rebalancing:
    """The shell of `SlotMoves`."""

    def __init__(self, peers: Peers, log: Log, shards: int, coordinators: int, *, found: int, keeps: bool) -> None:
        """Begin; see `SlotMoves`."""
        self._peers = peers
        self._log = log
        self._clock = SystemClock()
        self.moves = SlotMoves(shards, coordinators, self._clock.now_ms(), found=found, keeps=keeps)
        self._metrics = Metrics(component="supervisor")
        self._pause = self._metrics.histogram("rebalance_pause_seconds")

    async def slot_map(self) -> SlotMap:
        """Return the map that counts, once that is settled."""
        while not self.moves.is_settled or self.moves.map is None:  # noqa: ASYNC110 - a machine is asked, it does not tell
            await asyncio.sleep(MAP_POLL_S)
        return self.moves.map

    async def step(self, present: list[str], ingestors: Iterable[str], gateways: Iterable[str]) -> float:
        """Go on with what is to be done, given who is there. Returns how long to wait before the next step."""
        moves = self.moves
        before = moves.phase
        moves.begin(present, self._clock.now_ms())
        asks = moves.asks(ingestors, gateways)
        answers = await asyncio.gather(*(self._ask(name, ask) for name, ask in asks.items()))
        moves.heard(asks, dict(zip(asks, answers, strict=True)), self._clock.now_ms())
        if moves.phase is not before:
            self._log.debug("slots", phase=moves.phase.value, before=before.value)
        for moved in moves.finished:
            self._pause.observe(moved.pause_ms / 1000.0)
            self._log.info(
                "rebalanced",
                shards=moved.map.shards,
                coordinators=moved.map.coordinators,
                slots=moved.slots,
                entries=moved.entries,
                bytes=moved.bytes,
                pause_ms=round(moved.pause_ms),
            )
        moves.finished.clear()
        return COPY_PAUSE_S if moves.phase in (Phase.COPY, Phase.IDLE, Phase.LOOK) else CUT_PAUSE_S

    async def _ask(self, name: str, ask: Rebalance) -> Progress | None:
        try:
            async with asyncio.timeout(ASK_S):
                answer = await self._peers.call(name, ask)
        except (Unreachable, TimeoutError):
            return None
        return answer if isinstance(answer, Progress) else None

    def samples(self) -> bytes:
        """Return the metrics, encoded."""
        self._metrics.set("rebalances_total", self.moves.moves)
        self._metrics.set("rebalances_given_up_total", self.moves.given_up)
        return self._metrics.encode()
