"""Gateways where nodes have places for them: which there are, how Ray is asked for more places, and how one that goes is drained.

What must not live here: how many there are to be (`core.gateway_scaling`), and how actors are made and ended (`supervisor`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from cluster.actors import handles
from cluster.actors.handles import Peers, Unreachable
from cluster.actors.tasks import Tasks
from cluster.clock import SystemClock
from cluster.core.gateway_scaling import Ask, GatewayScale, GatewayScaling, Seen
from cluster.core.supervisor_state import match_gateways
from cluster.observability.logs import Log

GATEWAY_RESOURCE = "harbor_gateway"
"""What a node offers for each gateway that is to run on it, where `cluster.gateways` is not a number."""
LEAVE_S = 30.0
"""Over how long a gateway that goes sends its clients elsewhere, as `harbor node` does by default."""
LEFT_S = 10.0
"""For calls around that."""
Status = dict[str, Any]


class GatewayPlaces:
    """The shell of `GatewayScaling`; without one there is a gateway on each place."""

    def __init__(
        self,
        peers: Peers,
        log: Log,
        ask: Callable[[str], Awaitable[Status | None]],
        statuses: Mapping[str, Status],
    ) -> None:
        """Begin without gateways.

        Args:
            peers: Who drains.
            log: Where what is done is said.
            ask: Asks an actor for its status; None where it does not answer.
            statuses: Those that were last heard.
        """
        self.names: list[str] = []
        self._peers = peers
        self._log = log
        self._ask_status = ask
        self._statuses = statuses
        self._clock = SystemClock()
        self._scaling: GatewayScaling | None = None
        self._leaves = Tasks(log)

    @property
    def wanted(self) -> int:
        """Return how many there are to be."""
        return len(self.names) if self._scaling is None else self._scaling.wanted

    async def follow(self, options: object) -> None:
        """Have other rules: a `GatewayScale`, or anything else, with which there are as many as there are places."""
        if isinstance(options, GatewayScale):
            statuses = [self._statuses.get(name, {}) for name in self.names]
            serving = sum(not status.get("draining", False) for status in statuses)
            self._scaling = GatewayScaling(options, serving, self._clock.now_ms())
        elif self._scaling is not None:
            self._scaling = None
            await self._ask(0)

    async def look(self, nodes: Sequence[Mapping[str, Any]]) -> bool:
        """Find out which there should be, given the nodes that live. Returns whether those are others than before."""
        places = sum(int(node["Resources"].get(GATEWAY_RESOURCE, 0)) for node in nodes)
        alive = {node["NodeID"] for node in nodes}
        if self._scaling is None:
            where = {name: str(self._statuses.get(name, {}).get("node")) for name in self.names}
            found = match_gateways(self.names, where, alive, places)
        else:
            # One after the other and at this moment, so that a session that moves is not counted twice.
            seen = {name: await self._seen(name) for name in tuple(self.names)}
            if self._scaling is None or list(seen) != self.names:
                return False  # another configuration has come meanwhile
            found, effects = self._scaling.step(seen, alive, places, self._clock.now_ms())
            for effect in effects:
                if isinstance(effect, Ask):
                    await self._ask(effect.places)
                else:
                    self._leaves.spawn(self._leave(effect.gateway))
        changed = found != self.names
        if changed:
            self._log.info("gateways", names=found)
        self.names = found
        return changed

    async def stop(self) -> None:
        """Leave drains to themselves, and take back what Ray was asked for."""
        await self._leaves.stop()
        await self.follow(None)

    async def _seen(self, gateway: str) -> Seen:
        status = await self._ask_status(gateway)
        if status is None:
            return Seen(node=str(self._statuses.get(gateway, {}).get("node", "")))
        return Seen(status["node"], status["sessions"], status.get("draining", False))

    async def _ask(self, places: int) -> None:
        """Ask Ray for nodes."""
        try:
            await asyncio.to_thread(handles.request_places, GATEWAY_RESOURCE, places)
        except Unreachable:
            if self._scaling is not None:
                self._scaling.unasked()
        else:
            self._log.info("places_asked", places=places)

    async def _leave(self, gateway: str) -> None:
        """Drain a gateway; it is ended when things are next looked at."""
        self._log.info("gateway_leaves", actor=gateway)
        try:
            await self._peers.leave(gateway, LEAVE_S, LEAVE_S + LEFT_S)
        finally:
            if self._scaling is not None:
                self._scaling.left(gateway)
