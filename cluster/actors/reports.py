"""A gateway's reserved entries: it asks for what somebody watches there, every two seconds, and hands it to its machine.

What is of the whole cluster it asks the supervisor; lists of mutations and topics come from shards, on its links to them.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from cluster.actors.handles import Peers
from cluster.clock import Clock
from cluster.core import protocol
from cluster.core.gateway_state import GatewayState
from cluster.core.messages import ListMutations, ListTopics, MutationList, MutationView, Payload, Request, TopicList
from cluster.core.mutation import SETTLED, Status
from cluster.core.tenant import of_topic
from cluster.errors import HarborError
from cluster.gateway import GatewayServer
from cluster.observability.logs import Log

LOOK_S = 0.1
"""Between looks whether somebody has begun to watch: what they wait at most before they are asked for."""
EVERY_S = 2.0
"""As often as the supervisor has read every actor (`observation`)."""
SHOWN = 100
"""Mutations and topics; the rest is counted."""
OF_SUPERVISOR = ("overview", "streams", "notices")
OPEN = [status.value for status in Status if status not in SETTLED or status is Status.ERROR]
"""Statuses of mutations that are worth a look: what waits, and what has failed."""


class Reports:
    """See the module."""

    def __init__(self, machine: GatewayState, server: GatewayServer, peers: Peers, clock: Clock, log: Log) -> None:
        self._machine = machine
        self._server = server
        self._peers = peers
        self._clock = clock
        self._log = log

    async def keep(self) -> None:
        """Report for as long as the gateway lives."""
        loop = asyncio.get_running_loop()
        known: set[str] = set()
        due_s = 0.0
        while True:
            await asyncio.sleep(LOOK_S)
            watched = self._machine.reported()
            fresh = [name for name in watched if name not in known]
            known = set(watched)
            if loop.time() >= due_s:
                fresh, due_s = watched, loop.time() + EVERY_S
            if fresh:
                await asyncio.gather(
                    self._ask_supervisor([name for name in OF_SUPERVISOR if name in fresh]),
                    *(self._ask_shards(name) for name in fresh if name not in OF_SUPERVISOR),
                )

    async def _ask_supervisor(self, names: list[str]) -> None:
        if not names:
            return
        try:
            observed = await self._peers.observed(names)
        except HarborError as error:
            self._log.sampled("not_observed", "supervisor", reason=error.message)
            return
        for name, data in observed.items():
            self._report(name, data)

    async def _ask_shards(self, name: str) -> None:
        try:
            self._report(name, await (self._mutations() if name == "mutations" else self._presence()))
        except HarborError as error:
            self._log.sampled("not_observed", "shards", reason=error.message)

    def _report(self, name: str, data: Any) -> None:
        self._server.run(self._machine.report(name, data, self._clock.now_ms()))

    async def _asked(self, make: Callable[[int], Request]) -> list[Payload]:
        return await self._server.answers(
            lambda ticket: self._machine.request(ticket, None, make, self._clock.now_ms())
        )

    async def _mutations(self) -> dict[str, Any]:
        payloads = await self._asked(lambda request: ListMutations(request, "", OPEN, SHOWN + 1))
        views = [view for each in payloads if isinstance(each, MutationList) for view in each.mutations]
        views.sort(key=lambda view: (-view.created_at, view.mutation))
        return {
            "mutations": [_row(view) for view in views[:SHOWN]],
            "has_more": len(views) > SHOWN,
            "declared": sorted(self._machine.mutations.declared),
        }

    async def _presence(self) -> dict[str, Any]:
        payloads = await self._asked(lambda request: ListTopics(request, SHOWN))
        lists = [each for each in payloads if isinstance(each, TopicList)]
        topics = sorted((topic for each in lists for topic in each.topics), key=lambda topic: (-topic[1], topic[0]))
        rows = [
            dict(zip(("tenant", "topic"), of_topic(name), strict=True), members=count) for name, count in topics[:SHOWN]
        ]
        return {"topics": rows, "count": sum(each.count for each in lists)}


def _row(view: MutationView) -> dict[str, Any]:
    due = {"due_at": view.due_at} if view.due_at else {}
    error = {} if view.error is None else {"error": protocol.error_body(*view.error)}
    return {
        "id": view.mutation,
        "name": view.name,
        "status": view.status,
        "created_at": view.created_at,
        **due,
        **error,
    }
