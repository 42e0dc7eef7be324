"""A client that writes: one thing at a time, again and again under the same request id until it knows what came of it, at any gateway.

    log    an array to which everybody appends numbers
    cell   a number of the writer's own, put and deleted
    steps  a count that everybody raises by one, from the version at which they have seen it

What must not live here: what may come of it (`oracle`).
"""

from collections.abc import Callable
from typing import Any

import orjson

from cluster.core.grants import ANYBODY
from cluster.core.messages import Edit, EntryView, Erase, Failure, MutationView, Payload, Read, Write, Written
from cluster.core.mutation import SETTLED
from cluster.core.operation import Append, Missing, Operation
from cluster.core.query_key import CanonicalKey
from cluster.errors import ErrorCode, HarborError
from cluster.simulation.clients import Clients
from cluster.simulation.oracle import Oracle, Wrote
from cluster.simulation.process import Process
from cluster.simulation.timeline import Timeline
from cluster.simulation.view import Violation

PATIENCE_MS = 700.0
"""How long it waits for an answer before it asks again."""
AGAIN_MS = 40.0
UNSURE = (ErrorCode.UNAVAILABLE, ErrorCode.TIMEOUT)
"""After these it is not known whether it was written."""
Make = Callable[[int], Any]


class Writer:
    """See the module."""

    def __init__(
        self,
        name: str,
        clients: Clients,
        timeline: Timeline,
        oracle: Oracle,
        *,
        levels: tuple[str, ...],
        keys: int,
        mutations: dict[str, tuple[str, bool]],
        within_ms: float | None = None,
    ) -> None:
        """Build.

        Args:
            name: Its own.
            clients: Where gateways are found.
            timeline: Of the world.
            oracle: Told of everything.
            levels: At which it writes.
            keys: How many logs and counts there are.
            mutations: Put here by id: what each is about, and whether its beginning was acknowledged.
            within_ms: It asks again only where its gateway has died, waits for the outcome of mutations, and is promised every answer in
                this time; None: it asks again soon, and mutations need only begin.
        """
        self._name = name
        self._clients = clients
        self._timeline = timeline
        self._oracle = oracle
        self._levels = levels
        self._keys = keys
        self._mutations = mutations
        self._within_ms = within_ms
        self._number = 0
        self.is_done = False
        """It has stopped, and knows what came of everything."""
        self.until_ms = 0.0
        self.pace_ms = 30.0
        self._known: dict[str, tuple[int | None, int]] = {}
        """(version, count) of the counts, as last seen."""

    def begin(self, until_ms: float) -> None:
        """Write until then."""
        self.until_ms = until_ms
        self._next()

    def _next(self) -> None:
        choose = self._timeline.random
        if self._timeline.now_ms >= self.until_ms:
            self.is_done = True
            return
        self._number += 1
        level = choose.choice(self._levels)
        request = f"{self._name}/{self._number}"
        match choose.choice(("log", "log", "cell", "steps", "mutate")):
            case "log":
                self._append(request, level)
            case "cell":
                self._put(request, level)
            case "steps":
                self._step(request, level)
            case _:
                self._mutate(request)

    def _rest(self) -> None:
        self._timeline.at(self._timeline.random.expovariate(1.0 / self.pace_ms), self._next)

    @property
    def _unique(self) -> int:
        return int(self._name.rpartition("-")[2]) * 1_000_000 + self._number

    def _append(self, request: str, level: str) -> None:
        key = f'["log",{self._timeline.random.randrange(self._keys)}]'
        item = orjson.dumps(self._unique)
        patch: bytes | None = None
        operations: list[Operation] | None = None
        if self._timeline.random.random() < 0.5:
            patch = b'[{"op":"add","path":"/-","value":' + item + b"}]"
        else:
            operations = [Append((item,), missing=Missing.CREATE, default=b"[]")]
        self._write(
            Wrote(key, self._unique, "append", level),
            lambda id_: Edit(id_, request, key, patch, operations, None, level),
        )

    def _put(self, request: str, level: str) -> None:
        key = f'["cell","{self._name}"]'
        if self._timeline.random.random() < 0.2:
            write = Wrote(key, self._unique, "delete", level)
            self._write(write, lambda id_: Erase(id_, request, key, None, level))
        else:
            data = orjson.dumps(self._unique)
            write = Wrote(key, self._unique, "put", level)
            self._write(write, lambda id_: Write(id_, request, key, data, None, level))

    def _step(self, request: str, level: str) -> None:
        key = f'["steps",{self._timeline.random.randrange(self._keys)}]'
        version, count = self._known.get(key, (None, 0))
        if version is None:
            self._look(key)
            return
        write = Wrote(key, self._unique, "step", level)
        data = orjson.dumps(count + 1)
        self._write(write, lambda id_: Write(id_, request, key, data, version, level))

    def _look(self, key: str) -> None:
        def answered(payload: Payload) -> None:
            if isinstance(payload, EntryView) and payload.data is not None:
                self._known[key] = payload.version, orjson.loads(payload.data)
            elif isinstance(payload, Failure) and payload.code == ErrorCode.NOT_FOUND:
                self._known[key] = 0, 0
            self._rest()

        self._ask(key, lambda id_: Read(id_, key), answered)

    def _write(self, write: Wrote, make: Make) -> None:
        self._oracle.asked(write)

        def answered(payload: Payload) -> None:
            self._timeline.note(f"{self._name}: {write.kind} {write.number} {write.key} {write.level}: {payload}")
            match payload:
                case Written(version=version):
                    self._oracle.wrote(write, version)
                    if write.kind == "step":
                        self._known[write.key] = version, self._known[write.key][1] + 1
                case Failure(code=code) if code in UNSURE:
                    pass  # it stays unknown
                case Failure(current=current):
                    self._oracle.refused(write)
                    if write.kind == "step":
                        self._known.pop(write.key)
                        if current is not None and current.data is not None:
                            self._known[write.key] = current.version, orjson.loads(current.data)
                case _:
                    raise AssertionError(f"{write}: {payload}")
            self._rest()

        self._ask(write.key, make, answered)

    def _ask(self, key: str, make: Make, answered: Callable[[Payload], None]) -> None:
        """Ask until it is known what came of it, or for too long: under the same request id, so that it is done once."""

        def ask(gateway: Process, ticket: int) -> Any:
            try:
                return gateway.machine.request(ticket, CanonicalKey(key), make, gateway.now_ms())
            except HarborError:
                return []

        self._until_known(ask, answered)

    def _mutate(self, mutation: str) -> None:
        mutation = mutation.replace("/", "-")
        place = str(self._timeline.random.randrange(self._keys))
        variables = {"place": place, "voter": mutation}
        self._mutations[mutation] = place, False

        def ask(gateway: Process, ticket: int) -> Any:
            machine, now_ms = gateway.machine, gateway.now_ms()
            order = machine.mutations.order(ANYBODY, "vote", variables, mutation, None)
            try:
                return machine.mutate(ticket, order, now_ms, waits=self._within_ms is not None)
            except HarborError:
                return []

        def answered(payload: Payload) -> None:
            self._timeline.note(f"{self._name}: mutation {mutation}: {payload}")
            if isinstance(payload, MutationView):
                if self._within_ms is not None and payload.status not in SETTLED:
                    raise Violation(f"{self._name}: the outcome of {mutation} is {payload.status}")
                self._mutations[mutation] = place, True
            self._rest()

        self._until_known(ask, answered)

    def _until_known(self, ask: Callable[[Process, int], Any], answered: Callable[[Payload], None]) -> None:
        tries = 0
        is_known = False

        def again() -> None:
            nonlocal tries
            tries += 1
            number = tries

            def told(payloads: list[Payload] | None) -> None:
                nonlocal is_known
                if is_known or number != tries:
                    return
                if payloads is None or (isinstance(payloads[0], Failure) and payloads[0].code in UNSURE):
                    if tries > 60:
                        is_known = True
                        answered(Failure(ErrorCode.TIMEOUT, "given up"))
                    else:
                        self._timeline.at(AGAIN_MS, lambda: again() if number == tries and not is_known else None)
                else:
                    is_known = True
                    answered(payloads[0])

            self._clients.request(ask, told)
            if self._within_ms is None:
                self._timeline.at(PATIENCE_MS, lambda: told(None) if number == tries else None)

        def late() -> None:
            if not is_known:
                raise Violation(f"{self._name}: no answer to {self._number} in {self._within_ms} ms")

        if self._within_ms is not None:
            self._timeline.at(self._within_ms, late)
        again()
