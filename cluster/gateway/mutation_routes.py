"""`/v1/mutations`: begin, list, look at and undo mutations.

What must not live here: who may do what and what follows from it (`core.gateway_mutations`).
"""

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import orjson
from aiohttp import web
from msgspec import structs

from cluster.clock import Clock
from cluster.core import protocol
from cluster.core.gateway_mutations import mutation_id, page_of, place_of, statuses_of, visible
from cluster.core.gateway_state import GatewayState
from cluster.core.grants import Principal
from cluster.core.messages import ListMutations, MutationView, Payload
from cluster.errors import ErrorCode, HarborError, RequestError
from cluster.gateway import parameters

MUTATIONS = "/v1/mutations"
MUTATION = f"{MUTATIONS}/"
"""What an id follows, which may contain any character, `/` too."""
MOST = 1_000
"""Rows of a page."""
MEMBERS = ("name", "variables", "id", "delay_ms")
JSON = {"Content-Type": "application/json"}
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def new_mutation_id() -> str:
    """Return an id for a mutation whose client gave none."""
    return str(uuid4())


class MutationRoutes:
    """See the module. `answers` begins something and waits for its answer; `who` tells whose a request is."""

    def __init__(
        self,
        state: GatewayState,
        clock: Clock,
        answers: Callable[..., Awaitable[list[Payload]]],
        who: Callable[[web.BaseRequest], Principal],
    ) -> None:
        self._state = state
        self._clock = clock
        self._answers = answers
        self._who = who

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """Return the handlers by method and path."""
        return {
            ("POST", MUTATIONS): self._begin,
            ("GET", MUTATIONS): self._list,
            ("GET", f"{MUTATION}{{id}}"): self._get,
            ("DELETE", f"{MUTATION}{{id}}"): self._undo,
        }

    async def _begin(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request, "wait")
        waits = parameters.choice(request.query, "wait", "false", "true") == "true"
        body = await parameters.body(request)
        if not isinstance(body, dict):
            raise RequestError(ErrorCode.BAD_REQUEST, "the body is an object")
        for name in body:
            if name not in MEMBERS:
                raise RequestError(ErrorCode.BAD_REQUEST, f"unknown member {name!r}, there are: {', '.join(MEMBERS)}")
        mutation = body.get("id")
        key = request.headers.get("Idempotency-Key")
        if key is not None and mutation is not None and key != mutation:
            raise RequestError(ErrorCode.BAD_REQUEST, "the Idempotency-Key is the mutation's id, and differs from `id`")
        if mutation is None:
            mutation = new_mutation_id() if key is None else key
        order = self._state.mutations.order(
            self._who(request), body.get("name"), body.get("variables"), mutation, body.get("delay_ms")
        )
        (view,) = await self._answers(
            lambda ticket: self._state.mutate(ticket, order, self._clock.now_ms(), waits=waits)
        )
        assert isinstance(view, MutationView)
        tenant = self._who(request).tenant
        members = {"id": tenant.outside_id(view.mutation), **protocol.outcome(view, tenant)}
        return web.Response(body=orjson.dumps(members), headers=JSON)

    async def _list(self, request: web.BaseRequest) -> web.StreamResponse:
        parameters.only(request, "status", "limit", "cursor")
        principal = self._who(request)
        tenant = principal.tenant
        asked = ListMutations(
            0,
            statuses=statuses_of(request.query["status"]) if "status" in request.query else [],
            limit=parameters.limit(request, MOST, MOST),
            names=principal.mutations,
            tenant=tenant.inside_id(""),
        )
        if "cursor" in request.query:
            asked = structs.replace(asked, after=place_of(request.query["cursor"], tenant))
        views, cursor = page_of(await self._found(principal, asked), principal, asked.limit)
        answer: dict[str, Any] = {"mutations": [protocol.mutation(view, tenant) for view in views]}
        if cursor:
            answer["cursor"] = cursor
        return web.Response(body=orjson.dumps(answer), headers=JSON)

    async def _get(self, request: web.BaseRequest) -> web.StreamResponse:
        mutation = self._named(request)
        principal = self._who(request)
        views = visible(await self._found(principal, ListMutations(0, mutation)), principal)
        if not views:
            raise HarborError(ErrorCode.NOT_FOUND, f"no mutation {mutation}")
        return self._shown(request, views[0])

    async def _undo(self, request: web.BaseRequest) -> web.StreamResponse:
        mutation = self._named(request)
        principal = self._who(request)
        (view,) = await self._answers(
            lambda ticket: self._state.undo(ticket, principal, mutation, self._clock.now_ms())
        )
        assert isinstance(view, MutationView)
        return self._shown(request, view)

    def _shown(self, request: web.BaseRequest, view: MutationView) -> web.StreamResponse:
        body = orjson.dumps(protocol.mutation(view, self._who(request).tenant))
        return web.Response(body=body, headers=JSON)

    def _named(self, request: web.BaseRequest) -> str:
        """Return the id in the path, of a request without parameters, as the cluster has it."""
        parameters.only(request)
        return self._who(request).tenant.inside_id(mutation_id(request.path.removeprefix(MUTATION)))

    async def _found(self, principal: Principal, asked: ListMutations) -> list[Payload]:
        """Return what all homes answer; who may see nothing has them do nothing."""
        if principal.mutations == []:
            return []
        return await self._answers(
            lambda ticket: self._state.request(
                ticket, None, lambda n: structs.replace(asked, id=n), self._clock.now_ms()
            )
        )
