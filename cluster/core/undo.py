"""Undoing a mutation from a gateway that does not know it.

Only its home knows what a mutation is called, whose right to undo it is to be looked at, and only its home can cancel it; and nothing
in an id says which shard that is. So all shards are asked what it is, then all are asked to cancel it. Where it was sent in between, they
are asked once more what it is, to say so.

What must not live here: who waits for it (`gateway_mutations`), how it is cancelled (`mutation_queue`).
"""

from collections.abc import Callable

from cluster.core.grants import Principal
from cluster.core.messages import Failure, ListMutations, MutationList, MutationView, Payload, Request, Undo
from cluster.core.mutation import Status
from cluster.errors import ErrorCode, HarborError

Ask = Callable[[int], Request]
"""Makes what every shard is asked, from the request's id."""


class Undoing:
    """See the module."""

    __slots__ = ("_is_repeat", "_is_sent", "_mutation", "_principal")

    def __init__(self, mutation: str, principal: Principal) -> None:
        self._mutation = mutation
        self._principal = principal
        self._is_sent = False
        """Its home was asked to cancel it."""
        self._is_repeat = False

    def find(self, request: int) -> ListMutations:
        """Return what shards are asked first."""
        return ListMutations(request, self._mutation)

    def step(self, payloads: list[Payload]) -> list[Payload] | Ask:
        """Every shard has answered: return what comes of it, or what they are asked next."""
        failures = [each for each in payloads if isinstance(each, Failure) and each.code != ErrorCode.NOT_FOUND]
        if self._is_sent:
            views = [each for each in payloads if isinstance(each, MutationView)]
            if views or not failures:
                return [views[0] if views else self._missing()]
            if failures[0].code != ErrorCode.CONFLICT or failures[0].status or self._is_repeat:
                return [failures[0]]
            self._is_sent, self._is_repeat = False, True
            return self.find
        if failures:
            return [failures[0]]
        found = [view for each in payloads if isinstance(each, MutationList) for view in each.mutations]
        return self._cancel(found[0]) if found else [self._missing()]

    def _cancel(self, view: MutationView) -> list[Payload] | Ask:
        if not self._principal.grants.admin:
            try:
                self._principal.require_mutation(view.name)
            except HarborError as error:
                return [Failure(error.code, error.message)]
        if view.status == Status.CANCELLED:
            return [view]
        if Status(view.status).was_sent:
            message = f"the mutation cannot be undone any more: it is {view.status}"
            return [Failure(ErrorCode.CONFLICT, message, status=view.status)]
        self._is_sent = True
        return lambda request: Undo(request, self._mutation)

    def _missing(self) -> Failure:
        return Failure(ErrorCode.NOT_FOUND, f"no mutation {self._mutation}")
