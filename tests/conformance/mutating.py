"""A whole shard with services of recorded answers, under a virtual clock, as the vectors of mutations were recorded.

A definition of a vector is declared as a user would declare it, in a configuration. What is of another kind here is put like this:

- `online` is one state there. Here each service is found to be away by what its calls come to, so all of them are away at once, and a call
  that does not arrive is no attempt. `always` is work that needs no service, a function; `offlineFirst` has a service of its own, at which
  the first attempt arrives.
- `cancel_queries` is a client's own request, before the mutation.
- A mutation is paused that waits for its scope, or for its service.
- There is no context, since nothing is put back from one, and no `gc_time`: a settled mutation is remembered for a fixed time.

Where something happens for which the cluster differs from query-core on purpose, the key or the mutation is marked with the reason. It is
one thing, and longer than most, because every operation, answer and callback has a part in what is marked.

What must not live here: the comparison with what was recorded (`mutation_family`), the rule and the reasons (`rebasing`).
"""

import heapq
from collections import defaultdict
from typing import Any, NamedTuple

import orjson

from cluster.config import compile_config, load_mapping
from cluster.core.channel_demand import ChannelDemand
from cluster.core.declared_query import FetchRequest, Response
from cluster.core.messages import (
    Act,
    Answers,
    ChangeSet,
    ChangeSetTaken,
    Header,
    Members,
    Mutate,
    MutationView,
    Read,
    Requests,
    Send,
    Watch,
    Write,
)
from cluster.core.mutation import Status
from cluster.core.mutation_queue import MutationRecord, StartMutation
from cluster.core.query_key import KeyMatcher, canonical
from cluster.core.shard_state import Commit, ShardState, StartFetch
from cluster.errors import UpstreamError
from cluster.storage.memory_store import MemoryStore
from tests.conformance.declaring import PING, document
from tests.conformance.rebasing import (
    BESIDE,
    COUNTED,
    DOUBTED,
    JOINED,
    KEPT,
    LOST,
    MARKED,
    ONLINE,
    RESENT,
    UNAWAITED,
    UNDER,
    UNDONE,
    Bases,
)
from tests.conformance.world import ABSENT, updated

UNREACHABLE = UpstreamError("no route to it")
OFFLINE_CALLS = 5
"""As many as make a service count as offline."""
CALLBACKS = {
    Status.SUCCESS: ("cache.on_success", "on_success", "cache.on_settled", "on_settled"),
    Status.ERROR: ("cache.on_error", "on_error", "cache.on_settled", "on_settled"),
}


def reduce(function: str, old: Any, event: Any) -> Any:
    """Run a recorded updater that no operation is like."""
    updater = event["data"]["updater"]
    assert function == f"recorded:{updater['kind']}"
    return updated(updater, old)


class Failure(NamedTuple):
    """A failure of a mutation that would have been rolled back to a snapshot."""

    mutation: str
    key: str
    snapshot: Any
    """What the snapshot had."""
    certain: Any
    """The key's data without any mutation that has not succeeded."""
    base: Any
    """What the shard holds of it after the failure."""
    view: Any


class MutatingWorld:
    """Runs the operations of a case. `log`, `calls` and `settlements` gather what a step comes to."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.definitions: dict[str, dict[str, Any]] = case["mutations"]
        self.bases = Bases()
        self.now = float(case["t0"]) - 1.0
        """What is there at first was there before: it is not news to what begins at once."""
        self.plans = {canonical(each["key"]): each["plan"] for each in case.get("upstream", [])}
        self.services = ["reads", "writes", *(f"writes-{name}" for name in self.definitions)]
        self.compiled = compile_config(load_mapping(document(case, self.services), {}))
        self.counts: dict[str, int] = defaultdict(int)
        """Attempts that have arrived, by mutation, and calls, by key."""
        self.pending: list[tuple[float, int, Any]] = []
        """Heap of (when, order, what happens)."""
        self.order = 0
        self.online = True
        self.store = MemoryStore()
        self.begun: set[Any] = set()
        """Mutations, and operations, whose callers wait: those of this life."""
        self.snapshots: dict[str, Any] = {}
        """What was to be seen before a mutation: what query-core puts back should it fail."""
        self.failures: list[Failure] = []
        """Those at which a snapshot would have taken more away than the mutation's operations."""
        self.fetching: dict[str, int] = {}
        """The fetch under way, by key."""
        self.watched: list[str] = []
        self.marks: dict[str, list[str]] = defaultdict(list)
        """Why a key, or a mutation, may differ from now on."""
        self.strayed: set[str] = set()
        """Keys that were fetched otherwise than recorded."""
        self.log: dict[str, list[Any]] = {}
        self.calls: list[Any] = []
        self.settlements: list[dict[str, Any]] = []
        self.told: dict[str, MutationView] = {}
        self.life = 0
        self._begin()
        for each in case.get("queries", []):
            self.op_set_query_data(0, each)
        self.now += 1.0
        for each in case.get("observe", []):
            self.watched.append(canonical(each))
            self.ask(Watch(self._id(), canonical(each), False))

    @property
    def now(self) -> float:
        """Return the time, Unix ms."""
        return self.bases.now

    @now.setter
    def now(self, now: float) -> None:
        self.bases.now = now

    # --- the shard -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin a life, with what is stored."""
        self.life += 1
        self.asked = 0
        demand = ChannelDemand("shard-0", self.life, now_ms=self.now, members=Members(1, ["ingestor-0"]), linger_ms=0.0)
        self.machine = ShardState(
            "shard-0",
            self.life,
            epoch=self.life,
            queries=self.compiled.queries,
            feeds=self.compiled.feeds,
            demand=demand,
            gateways=[],
            replay_ms=-1.0,  # what happens in the instant in which a fetch begins is in its response
            reducer=reduce,
            keeps=True,
            mutations=self.compiled.mutations,
        )
        stored = self.store.load()
        if stored is not None:
            self.machine.restore(stored, self.now, lambda _: True)
        self.ask(Write(self._id(), f"ping-{self.life}", PING, b"0"), Watch(self._id(), PING, False))
        if not self.online:
            self._notice()

    def _id(self) -> int:
        self.order += 1
        return self.order

    def ask(self, *requests: Any) -> Any:
        """Ask the shard as a gateway does. Returns the answer to the first, if it is there at once."""
        self.asked += 1
        header = Header("gateway-0", self.life, 0 if self.asked == 1 else self.life, self.asked)
        answer, effects = self.machine.requests(Requests(header, list(requests)), self.now)
        self._take(effects)
        assert isinstance(answer, Answers)
        return dict(answer.items).get(requests[0].id)

    def _take(self, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Commit):
                self.store.commit(effect.transaction)
            elif isinstance(effect, Send) and isinstance(effect.message, ChangeSet):
                for item in effect.message.items:
                    if isinstance(item, MutationView):
                        self._tell(item)
                taken = ChangeSetTaken(self.life)
                self._take(self.machine.answered(effect.to, effect.message, taken, self.now))
        for effect in effects:  # calls come after what was settled
            if isinstance(effect, StartFetch):
                self._fetch(effect)
            elif isinstance(effect, StartMutation):
                self._attempt(effect)

    def _notice(self) -> None:
        """Let the shard find out whether services can be reached: calls of before end now."""
        services = ["reads"] if not self.online else self.services
        for service in services:
            call = StartFetch(PING, -1, FetchRequest(service, "/"))
            for _ in range(1 if self.online else OFFLINE_CALLS):
                result = Response(b"0") if self.online else UNREACHABLE
                self._take(self.machine.fetched(call, result, self.now))

    # --- services ------------------------------------------------------------------------------------------------

    def at(self, latency: float, act: Any) -> None:
        """Let something happen later."""
        heapq.heappush(self.pending, (self.now + latency, self._id(), act))

    def _fetch(self, call: StartFetch) -> None:
        life = self.life
        result: Response | UpstreamError = UNREACHABLE
        latency = 0
        if self.online and call.key == PING:
            result = Response(b"0")
        elif self.online:
            plan = self.plans.get(call.key, [{"latency": 0, "value": None}])
            step = plan[min(self.counts[call.key], len(plan) - 1)]
            self.counts[call.key] += 1
            self.calls.append((int(self.now), call.key))
            result, latency = Response(orjson.dumps(step["value"])), step["latency"]
            self.fetching[call.key] = call.id
            self.bases.since[call.key] = (self.now, [])
        self.at(latency, lambda: self._fetched(call, result, life))

    def _fetched(self, call: StartFetch, result: Response | UpstreamError, life: int) -> None:
        if life != self.life:
            return
        is_awaited = call.key != PING and self._is_awaited(call)
        effects = self.machine.fetched(call, result, self.now)
        if is_awaited and isinstance(result, Response) and not self._is_awaited(call):  # else it is repeated
            assert result.body is not None
            del self.fetching[call.key]
            self.bases.fetched(call.key, orjson.loads(result.body))
            self._moved(call.key)
        self._take(effects)
        if not self.online:
            self._notice()

    def _is_awaited(self, call: StartFetch) -> bool:
        entry = self.machine.cache.get(call.key)
        return entry is not None and entry.fetch is not None and entry.fetch.id == call.id

    def _attempt(self, call: StartMutation) -> None:
        life, name = self.life, call.mutation
        stored = self.store.load()
        assert stored is not None
        assert any(record.id == name for record in stored.mutations), "sent before it was stored"
        result: Response | UpstreamError = UNREACHABLE
        latency = 0
        mode = self.definitions[name].get("network_mode", "online")
        if self.online or mode == "always" or (mode == "offlineFirst" and call.attempt == 1):
            plan = self.definitions[name]["plan"]
            step = plan[min(self.counts[name], len(plan) - 1)]
            self.counts[name] += 1
            self._note(name, "fn")
            latency = step["latency"]
            if "error" in step:
                result = UpstreamError(step["error"], status=500)
            else:
                result = Response(orjson.dumps(step["value"]))
        self.at(latency, lambda: life == self.life and self._take(self.machine.mutated(call, result, self.now)))

    # --- mutations -----------------------------------------------------------------------------------------------

    def _note(self, name: str, *events: str) -> None:
        self.log.setdefault(name, []).extend([int(self.now), event] for event in events)

    def _tell(self, view: MutationView) -> None:
        """The gateway is told how a mutation is."""
        before = self.told.get(view.mutation)
        self.told[view.mutation] = view
        if view.status not in CALLBACKS or (before is not None and before.status == view.status):
            return
        self._note(view.mutation, *CALLBACKS[Status(view.status)])
        settled: dict[str, Any] = {"m": view.mutation}
        if view.error is None:
            assert view.result is not None
            self.settlements.append({**settled, "result": "ok", "value": orjson.loads(view.result)})
        else:
            self.settlements.append({**settled, "result": "error", "error": view.error[1]})
        self._settled(view)

    def _settled(self, view: MutationView) -> None:
        definition = self.definitions[view.mutation]
        optimistic = definition.get("optimistic")
        is_error = view.status == Status.ERROR
        keys: dict[str, bool] = {}
        if optimistic is not None:
            key = canonical(optimistic["key"])
            keys[key] = True
            del self.bases.laid[key][view.mutation]
            if is_error and not definition.get("rollback"):
                self.mark(key, KEPT)
            elif is_error and self.snapshots[view.mutation] is ABSENT:
                self.mark(key, UNDONE)
            elif is_error:
                self._survives(view.mutation, key)
            elif not is_error:
                keys[key] = not self._is_doubtful(key, view.created_at)
                self.bases.change(key, optimistic["updater"], is_repeated=keys[key])
        if "write_result" in definition and not is_error:
            key = canonical(definition["write_result"]["key"])
            assert view.result is not None
            result = {"kind": "const", "value": orjson.loads(view.result)}
            self.bases.change(key, result, is_repeated=keys.setdefault(key, True))
        for key in keys:
            self._moved(key)
            if key in self.fetching:
                self.mark(key, BESIDE)
            self._stays_marked(key)
        if "invalidate" in definition:
            self._invalidated(definition)

    def _survives(self, mutation: str, key: str) -> None:
        """A mutation failed that would have been rolled back: what came meanwhile must be there still."""
        snapshot = self.snapshots[mutation]
        if self.bases.view(key) != snapshot:
            self.mark(key, LOST)
            certain = self.bases.data.get(key, ABSENT)
            self.failures.append(Failure(mutation, key, snapshot, certain, *self.held(key)))

    def _is_doubtful(self, key: str, since: float) -> bool:
        """Whether something else has changed a key since then."""
        if not self.machine.changed_since(key, since):
            return False
        self.mark(key, DOUBTED)
        return True

    def _invalidated(self, definition: dict[str, Any]) -> None:
        matcher = KeyMatcher(definition["invalidate"]["key"])
        for key in [*self.watched, *self.fetching]:
            if matcher.matches(key):
                if key in self.fetching:
                    self.mark(key, JOINED)
                if definition["invalidate"].get("await"):
                    self.mark(definition["id"], UNAWAITED)

    def _stays_marked(self, key: str) -> None:
        entry = self.machine.cache.get(key)
        if entry is not None and entry.is_invalidated:
            self.mark(key, MARKED)

    def _moved(self, key: str) -> None:
        """What lies under, or beside, pending operations has changed."""
        if self.bases.laid[key]:
            self.mark(key, UNDER)

    def mark(self, what: str, reason: str) -> None:
        """From now on a key, or a mutation, may differ."""
        if reason not in self.marks[what]:
            self.marks[what].append(reason)

    # --- time ----------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Let everything happen that can at once."""
        while True:
            due = self.machine.deadline()
            if self.pending and self.pending[0][0] <= self.now:
                heapq.heappop(self.pending)[2]()
            elif due is not None and due <= self.now:
                self._take(self.machine.wake(self.now))
            else:
                return

    def op_advance(self, _: int, op: dict[str, Any]) -> None:
        until = self.now + op["ms"]
        while True:
            times = [self.machine.deadline(), self.pending[0][0] if self.pending else None]
            at = min((at for at in times if at is not None), default=until + 1)
            if at > until:
                break
            self.now = max(at, self.now)
            self.settle()
        self.now = until

    # --- operations ----------------------------------------------------------------------------------------------

    def run(self, number: int, op: dict[str, Any]) -> None:
        """Carry out an operation."""
        getattr(self, "op_" + op["op"])(number, op)

    def op_mutate(self, _: int, op: dict[str, Any]) -> None:
        name = op["m"]
        definition = self.definitions[name]
        optimistic = definition.get("optimistic")
        variables: dict[str, Any] = {}
        if optimistic is not None:
            key = canonical(optimistic["key"])
            if definition.get("cancel_queries"):
                self.ask(Act(self._id(), "cancel", key))
                for each in list(self.fetching):
                    if KeyMatcher(optimistic["key"]).matches(each):
                        del self.fetching[each]
                        self.bases.since.pop(each, None)
            self.snapshots[name] = self.bases.view(key)
            self.bases.laid[key][name] = optimistic["updater"]
            self._stays_marked(key)
            variables["updater"] = optimistic["updater"]
        self._note(name, "cache.on_mutate", "on_mutate")
        self.begun.add(name)
        scope = self.compiled.mutations[name].scope_of(variables, name)
        view = self.ask(Mutate(self._id(), name, name, orjson.dumps(variables), scope))
        assert isinstance(view, MutationView), view

    def op_set_online(self, _: int, op: dict[str, Any]) -> None:
        if op["online"] and any(record.status is Status.PAUSED for record in self.records()):
            for entry in self.machine.cache:
                if entry.fetch_status == "paused" or (entry.observers and entry.is_invalidated):
                    self.mark(entry.key, ONLINE)
        self.online = op["online"]
        self._notice()

    def op_resume_paused(self, number: int, _: dict[str, Any]) -> None:
        """Nothing is to be said: what can be sent, is."""
        self.settlements.append({"op": number, "result": "ok"})
        self.begun.add(number)

    def op_fetch(self, _: int, op: dict[str, Any]) -> None:
        self.ask(Read(self._id(), canonical(op["key"]), "force"))

    def op_set_query_data(self, _: int, op: dict[str, Any]) -> None:
        key = canonical(op["key"])
        if key in self.fetching:
            self.mark(key, BESIDE)
        self._moved(key)
        self.bases.change(key, {"kind": "const", "value": op["data"]})
        number = self._id()
        self.ask(Write(number, f"w{number}", key, orjson.dumps(op["data"])))

    def op_restart(self, _: int, op: dict[str, Any]) -> None:
        for record in self.records():
            if record.status is Status.PENDING:
                self.mark(record.id, RESENT)
            elif record.failures and not record.status.is_settled:
                self.mark(record.id, COUNTED)
        self.begun.clear()
        self.watched.clear()
        self.fetching.clear()
        self.bases.since.clear()
        self._begin()

    # --- what is to be seen --------------------------------------------------------------------------------------

    def records(self) -> list[MutationRecord]:
        """Return every mutation, in order."""
        return sorted(self.machine.mutations.queue.records.values(), key=lambda each: each.number)

    def excuse(self, mutation: str) -> str | None:
        """Return why a mutation may differ: for what it is, or for one of its scope."""
        scope = self.definitions[mutation].get("scope", mutation)
        marked = (name for name, each in self.definitions.items() if each.get("scope", name) == scope)
        return next((reason for name in marked for reason in self.marks[name]), None)

    def mutations(self) -> dict[str, dict[str, Any]]:
        """Return every mutation as the vectors write them, by id."""
        found: dict[str, dict[str, Any]] = {}
        for record in self.records():
            is_error = record.status is Status.ERROR
            seen = found[record.id] = {
                "id": record.id,
                "status": str(record.status) if record.status.is_settled else "pending",
                "is_paused": record.status in (Status.QUEUED, Status.PAUSED),
                "failure_count": 0 if record.status is Status.SUCCESS else record.failures + is_error,
                "submitted_at": int(record.created_ms),
            }
            if record.result is not None:
                seen["data"] = orjson.loads(record.result)
            if record.error is not None:
                seen["error"] = record.error[1]
        return found

    def queries(self) -> dict[str, dict[str, Any]]:
        """Return every entry that is more than empty, by key."""
        found: dict[str, dict[str, Any]] = {}
        for entry in self.machine.cache:
            if entry.key != PING:
                view = self.machine.view_of(entry)
                data = ABSENT if view.data is None else orjson.loads(view.data)
                found[entry.key] = seen_of(data, view.fetch_status, view.is_invalidated)
        return {key: seen for key, seen in found.items() if seen}

    def check(self, where: str) -> None:
        """The shard must hold what the rule comes to."""
        for key in {*self.bases.data, *self.bases.laid}:
            self.check_key(key, where)

    def check_key(self, key: str, where: str) -> None:
        """A key's base must hold all that is certain, and its view that under what is pending."""
        base, view = self.held(key)
        certain, wanted = self.bases.data.get(key, ABSENT), self.bases.view(key)
        assert base == certain, f"{where}: the base of {key} is {base}, not {certain}"
        assert view == wanted, f"{where}: the view of {key} is {view}, not {wanted}"

    def held(self, key: str) -> tuple[Any, Any]:
        """Return (the base, the view) of a key in the shard."""
        base, view = self.machine.base(key), self.machine.view(key)
        certain = ABSENT if base is None else orjson.loads(base.json())
        return certain, ABSENT if view is None or view.data is None else orjson.loads(view.data)

    def agreed(self, key: str) -> None:
        """A key is as recorded: where nothing is pending on it, it has no reason any more to be otherwise."""
        if not self.bases.laid[key] and key not in self.fetching and key not in self.strayed:
            self.marks.pop(key, None)


def seen_of(data: Any, fetch_status: str, is_invalidated: bool) -> dict[str, Any]:
    """Return what differs from an entry of which nothing is known."""
    seen = {} if data is ABSENT else {"data": data}
    if fetch_status != "idle":
        seen["fetch_status"] = fetch_status
    if is_invalidated:
        seen["is_invalidated"] = True
    return seen
