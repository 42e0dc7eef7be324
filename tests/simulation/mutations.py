"""Mutations in one process: shards, a gateway that watches, a service with a stream, and all that can go wrong between them.

The service knows the truth: it carries a write out once per idempotency key and tells what it did on its stream, in order. Requests and
answers are lost, delayed and repeated, messages between shards too, and shards are killed at any step. After the world has come to rest, the
bases must be what the service has, the views what the bases are, and every mutation that succeeded was carried out once.

`python -m tests.simulation.mutations SEED` replays a seed.
"""

import random
import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import orjson

from cluster.config import compile_config, load_mapping
from cluster.core.channel_demand import ChannelDemand
from cluster.core.declared_query import Response
from cluster.core.messages import (
    Announce,
    Answers,
    Batch,
    Change,
    ChangeSet,
    ChangeSetTaken,
    Header,
    KeyOperations,
    Members,
    Mutate,
    MutationView,
    Overlays,
    Removed,
    Requests,
    Reset,
    Send,
    Snapshot,
    Undo,
    Watch,
)
from cluster.core.mutation_queue import StartMutation
from cluster.core.operation import Operation
from cluster.core.placement import assign_slots
from cluster.core.query_key import CanonicalKey
from cluster.core.replica import Replica
from cluster.core.rule import Router
from cluster.core.shard_state import Commit, ShardState, StartFetch
from cluster.errors import StoreError, UpstreamError
from cluster.storage.memory_store import MemoryStore

SHARDS = 3
START = 1_000_000.0
PROJECTS = ("1", "2", "3")
VOTES = tuple(CanonicalKey(f'["votes","{project}"]') for project in PROJECTS)
KEYS = tuple(CanonicalKey(f'["tasks","{project}"]') for project in PROJECTS)
REFUSED = UpstreamError("http 422", status=422, retryable=False)
FAILED = UpstreamError("http 500", status=500)
UNREACHABLE = UpstreamError("no route to it")

_TASKS = {"key": ["tasks", "{project_id}"]}
_REQUEST = {"service": "api", "path": "/tasks/{id}"}


def _confirmed_by(event: str) -> dict[str, Any]:
    return {"stream": "project:{project_id}", "event": event}


DOCUMENT: dict[str, Any] = {
    "services": {"api": {"base_url": "http://api"}},
    "queries": [{"key": ["tasks", "{project_id}"], "service": "api", "path": "/tasks/{project_id}"}],
    "sources": {"events": {"type": "websocket", "url": "ws://upstream"}},
    "streams": [
        {
            "source": "events",
            "channel": "project:{project_id}",
            "on": {
                "created": {"append": {**_TASKS, "item": "{data}", "when_missing": "create"}},
                "updated": {"merge_where": {**_TASKS, "where": {"id": "{data.id}"}, "value": "{data}"}},
                "deleted": {"remove": {**_TASKS, "where": {"id": "{data.id}"}}},
            },
        }
    ],
    "mutations": {
        "create": {
            "request": {"service": "api", "method": "POST", "path": "/tasks", "body": "{variables}"},
            "temp_id": "{variables.id}",
            "optimistic": [{"append": {**_TASKS, "item": "{variables}", "when_missing": "create"}}],
            "confirm_on": _confirmed_by("created"),
            "retry": 2,
        },
        "update": {
            "request": {**_REQUEST, "method": "PATCH", "body": "{variables}"},
            "optimistic": [{"merge_where": {**_TASKS, "where": {"id": "{id}"}, "value": "{variables}"}}],
            "confirm_on": _confirmed_by("updated"),
            "scope": "project:{project_id}",
            "retry": 2,
        },
        "delete": {
            "request": {**_REQUEST, "method": "DELETE", "body": "{variables}"},
            "optimistic": [{"remove": {**_TASKS, "where": {"id": "{id}"}}}],
            "confirm_on": _confirmed_by("deleted"),
            "scope": "project:{project_id}",
            "delay": "500ms",
        },
        "vote": {
            "request": {"service": "api", "method": "POST", "path": "/votes", "body": "{variables}"},
            "optimistic": [
                {
                    "increment": {
                        "key": ["votes", "{project_id}"],
                        "at": "/n",
                        "when_missing": "create",
                        "default": {"n": 0},
                    }
                }
            ],
        },
    },
}
COMPILED = compile_config(load_mapping(DOCUMENT, {}))
SLOTS = assign_slots(range(SHARDS), 1)


class Service:
    """The truth."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, dict[str, Any]]] = {project: {} for project in PROJECTS}
        self.events: list[tuple[str, str, dict[str, Any]]] = []
        """(event, project, data), in order."""
        self.answers: dict[str, Any] = {}
        """By idempotency key."""
        self.carried_out: Counter[str] = Counter()
        self._created = 0

    def carry_out(self, mutation: str, method: str, variables: dict[str, Any]) -> Any:
        """Act once for an idempotency key; returns the response, or why there is none."""
        if mutation in self.answers:
            return self.answers[mutation]
        answer = self.answers[mutation] = self._act(mutation, method, variables)
        return answer

    def _act(self, mutation: str, method: str, variables: dict[str, Any]) -> Any:
        if "voter" in variables:
            self.carried_out[mutation] += 1
            return {"counted": True}
        tasks = self.tasks[variables["project_id"]]
        if method == "POST":
            self._created += 1
            task = {**variables, "id": f"t{self._created}"}
        elif variables["id"] not in tasks or variables.get("title") == "refused":
            return REFUSED
        else:
            task = {**tasks[variables["id"]], **variables}
        self.carried_out[mutation] += 1
        self.change({"POST": "created", "PATCH": "updated", "DELETE": "deleted"}[method], task)
        return task

    def change(self, event: str, task: dict[str, Any]) -> None:
        """Change a task, and say so."""
        if event == "deleted":
            del self.tasks[task["project_id"]][task["id"]]
        else:
            self.tasks[task["project_id"]][task["id"]] = task
        self.events.append((event, task["project_id"], task))


class World:
    """See the module."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.now = START
        self.service = Service()
        self.router: Router = COMPILED.router("events")
        self.stores = [MemoryStore() for _ in range(SHARDS)]
        self.lives = [3] * SHARDS
        self.batches = [0] * SHARDS
        self.asked = [0] * SHARDS
        self.heard = [0] * SHARDS
        """Events of the stream that each shard has."""
        self.machines: list[ShardState] = []
        self.calls: list[tuple[int, Any]] = []
        """(shard that waits for it, what it asked)."""
        self.held: dict[str, Replica] = {}
        """What the gateway knows."""
        self.statuses: dict[str, list[str]] = {}
        self.begun: dict[str, tuple[int, str, dict[str, Any]]] = {}
        """(home, name, variables) by mutation."""
        self.named: set[str] = set()
        """Mutations that changes have named."""
        self.requests = 0
        for shard in range(SHARDS):
            self.machines.append(self._machine(shard))
            self._begin(shard)

    def _machine(self, shard: int) -> ShardState:
        life = self.lives[shard]
        machine = ShardState(
            f"shard-{shard}",
            life,
            epoch=5 + life,
            queries=COMPILED.queries,
            feeds=COMPILED.feeds,
            demand=ChannelDemand(
                f"shard-{shard}",
                life,
                now_ms=self.now,
                members=Members(1, ["ingestor-0"]),
                linger_ms=COMPILED.feeds.linger_ms,
            ),
            gateways=[],
            replay_ms=1_000.0,
            keeps=True,
            mutations=COMPILED.mutations,
            shards=SHARDS,
            place=self.home,
        )
        stored = self.stores[shard].load()
        if stored is not None:
            machine.restore(stored, self.now, lambda _: True)
        return machine

    def _begin(self, shard: int) -> None:
        self.batches[shard] = self.asked[shard] = 0
        self.ask(shard, *(Watch(n, key, False) for n, key in enumerate((*KEYS, *VOTES)) if self.home(key) == shard))

    @staticmethod
    def home(key: str) -> int:
        """Return the shard of a key, or of a scope."""
        return SLOTS.shard(CanonicalKey(key))

    # --- what happens --------------------------------------------------------------------------------------------

    def ask(self, shard: int, *requests: Any) -> list[Any]:
        """Ask a shard as the gateway does."""
        self.asked[shard] += 1
        first = self.asked[shard] == 1
        header = Header("gateway-0", self.lives[shard], 0 if first else self.lives[shard], self.asked[shard])
        answer, effects = self.machines[shard].requests(Requests(header, list(requests)), self.now)
        self._take(shard, effects)
        assert isinstance(answer, Answers)
        return [payload for _, payload in answer.items]

    def mutate(self, name: str, variables: dict[str, Any], mutation: str) -> Any:
        """Begin a mutation, or begin it again."""
        declared = COMPILED.mutations[name]
        scope = declared.scope_of(variables, mutation)
        shard = self.home(scope)
        self.requests += 1
        request = Mutate(self.requests, mutation, name, orjson.dumps(variables), scope, account="one")
        answers = self.ask(shard, request)
        # What creates something is answered when every shard knows its temporary id; how it is then is known here.
        payload = answers[0] if answers else self.machines[shard].mutations.queue.records[mutation].view()
        if isinstance(payload, MutationView):
            self.begun[mutation] = (shard, name, variables)
            self._note(payload)
        return payload

    def undo(self, mutation: str) -> Any:
        """Undo a mutation, if that is possible still."""
        self.requests += 1
        (payload,) = self.ask(self.begun[mutation][0], Undo(self.requests, mutation))
        return payload

    def stream(self, shard: int) -> None:
        """Give a shard the next event, in a batch of its own."""
        event, project, data = self.service.events[self.heard[shard]]
        self.heard[shard] += 1
        by_key: dict[str, list[Operation]] = {}
        for route in self.router.route(event, f"project:{project}"):
            for key, operation in route.apply(orjson.dumps(data), None):
                if key.startswith("#") or self.home(key) == shard:
                    by_key.setdefault(key, []).append(operation)
        self.batches[shard] += 1
        life = self.lives[shard]
        header = Header("coordinator-0", life, 0 if self.batches[shard] == 1 else life, self.batches[shard])
        keys = [KeyOperations(key, operations, len(operations), -1) for key, operations in by_key.items()]
        _, effects = self.machines[shard].batch(Batch(header, [], keys, self.now), self.now)
        self._take(shard, effects)

    def call(self, position: int) -> None:
        """Let a call happen, or not, and its answer come, or not."""
        shard, asked = self.calls.pop(position)
        fate = self.dice.random()
        if isinstance(asked, StartMutation):
            self._request(shard, asked, fate)
            return
        if isinstance(asked, StartFetch):
            tasks = list(self.service.tasks[orjson.loads(asked.key)[1]].values())
            result = FAILED if fate < 0.1 else Response(orjson.dumps(tasks))
            self._take(shard, self.machines[shard].fetched(asked, result, self.now))
            return
        to, message = asked.to, asked.message
        other = int(to.partition("-")[2])
        if fate < 0.15:
            self._take(shard, self.machines[shard].unanswered(to, message, self.now))
            return
        machine = self.machines[other]
        answer, effects = (
            machine.announce(message, self.now)
            if isinstance(message, Announce)
            else machine.overlays(message, self.now)
        )
        self._take(other, effects)
        if fate < 0.3:
            self._take(shard, self.machines[shard].unanswered(to, message, self.now))
        else:
            self._take(shard, self.machines[shard].answered(to, message, answer, self.now))

    def _request(self, shard: int, call: StartMutation, fate: float) -> None:
        result: Response | UpstreamError = UNREACHABLE if fate < 0.2 else FAILED
        if fate >= 0.25:
            assert call.request.body is not None
            answer = self.service.carry_out(call.mutation, call.request.method, orjson.loads(call.request.body))
            result = answer if isinstance(answer, UpstreamError) else Response(orjson.dumps(answer))
            if fate < 0.4:
                result = UNREACHABLE  # it was carried out, and nobody hears of it
        self._take(shard, self.machines[shard].mutated(call, result, self.now))

    def kill(self, shard: int) -> None:
        """End a shard; the next life begins with its store."""
        self.lives[shard] += 1_000  # as far apart as milliseconds are: links count on from a life
        self.calls = [
            (waits, asked)
            for waits, asked in self.calls
            if waits != shard or (isinstance(asked, StartMutation) and self._orphan(asked))
        ]
        self.machines[shard] = self._machine(shard)
        for key in (*KEYS, *VOTES):
            if self.home(key) == shard:
                self.held.pop(key, None)
        self._begin(shard)

    def _orphan(self, call: StartMutation) -> bool:
        """A request of a dead shard may still arrive at the service, now; its answer is for nobody."""
        if self.dice.random() < 0.5:
            assert call.request.body is not None
            self.service.carry_out(call.mutation, call.request.method, orjson.loads(call.request.body))
        return False

    def wake(self, shard: int) -> None:
        """Let a shard do what is due."""
        self._take(shard, self.machines[shard].wake(self.now))

    # --- what comes of it ----------------------------------------------------------------------------------------

    def _take(self, shard: int, effects: Iterable[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Commit):
                try:
                    self.stores[shard].commit(effect.transaction)
                except StoreError:
                    self.machines[shard].not_stored(effect.transaction)
            elif isinstance(effect, StartMutation):
                if not self.machines[shard].may_send(effect):
                    self._take(shard, self.machines[shard].unsent(effect, self.now))
                    continue
                stored = self.stores[shard].load()
                assert stored is not None
                assert any(record.id == effect.mutation for record in stored.mutations), "sent before it was stored"
                self.calls.append((shard, effect))
            elif isinstance(effect, StartFetch):
                self.calls.append((shard, effect))
            elif isinstance(effect, Send) and isinstance(effect.message, ChangeSet):
                for item in effect.message.items:
                    self._hold(item)
                taken = ChangeSetTaken(self.lives[shard])
                self._take(shard, self.machines[shard].answered(effect.to, effect.message, taken, self.now))
            elif isinstance(effect, Send) and isinstance(effect.message, Overlays | Announce):
                self.calls.append((shard, effect))

    def _hold(self, item: Any) -> None:
        match item:
            case Snapshot(entry=view):
                self.held.setdefault(view.key, Replica(view.key, 0)).replace(view)
            case Change(key=key):
                replica = self.held.setdefault(key, Replica(key, 0))
                assert item.version > replica.version
                assert item.data is not None or item.from_version == replica.version, "a change is missing"
                replica.take(item)
                self.named.update(item.mutations)
            case Removed(key=key):
                self.held.pop(key, None)
            case Reset(entry=view):
                self.held.setdefault(view.key, Replica(view.key, 0)).replace(view)
            case MutationView():
                self._note(item)
            case _:
                pass

    def _note(self, view: MutationView) -> None:
        told = self.statuses.setdefault(view.mutation, [])
        if not told or told[-1] != view.status:
            assert not told or told[-1] not in ("success", "error", "cancelled"), (
                f"{view.mutation}: {told} -> {view.status}"
            )
            told.append(view.status)

    def rest(self) -> None:
        """Come to rest: everything arrives, the service can be reached."""
        self.dice = _Kind()  # type: ignore[assignment]
        for _ in range(5_000):
            if self.calls:
                self.call(0)
                continue
            late = [shard for shard in range(SHARDS) if self.heard[shard] < len(self.service.events)]
            if late:
                self.stream(late[0])
                continue
            due = [(at, shard) for shard in range(SHARDS) if (at := self._deadline(shard)) is not None]
            at, shard = min(due, default=(START + 10**9, 0))
            if at > self.now + 120_000.0:
                return
            self.now = max(self.now, at)
            self.wake(shard)
            if not self._busy():
                return
        raise AssertionError("it does not come to rest")

    def _deadline(self, shard: int) -> float | None:
        return self.machines[shard].deadline()

    def _busy(self) -> bool:
        queues = [machine.mutations.queue for machine in self.machines]
        return (
            bool(self.calls)
            or any(
                entry.query is not None and (entry.fetch is not None or entry.is_stale(self.now))
                for machine in self.machines
                for entry in machine.cache
            )
            or any(queue.unsettled or any(record.unlifted for record in queue.records.values()) for queue in queues)
            or any(machine.mutations.laid.by_key for machine in self.machines)
            or any(self.heard[shard] < len(self.service.events) for shard in range(SHARDS))
        )

    def data(self, key: str) -> Any:
        """Return a key's base."""
        value = self.machines[self.home(key)].base(key)
        return None if value is None else orjson.loads(value.json())

    def check(self) -> None:
        """Hold what must hold once all has come to rest."""
        for key, project in zip(KEYS, PROJECTS, strict=True):
            truth = self.service.tasks[project]
            base = self.data(key) or []
            assert sorted(base, key=lambda task: task["id"]) == sorted(truth.values(), key=lambda task: task["id"]), key
            replica = self.held.get(key)
            shown = None if replica is None or replica.value is None else orjson.loads(replica.value.json())
            assert (shown or []) == base, f"{key}: the view is not the base"
        votes: Counter[str] = Counter()
        for mutation, (home, name, variables) in self.begun.items():
            if name == "vote" and self.machines[home].mutations.queue.records[mutation].status == "success":
                votes[variables["project_id"]] += 1
        for key, project in zip(VOTES, PROJECTS, strict=True):
            assert (self.data(key) or {"n": 0})["n"] == votes[project], f"{key}: each vote counts once"
        for mutation, (home, name, _) in self.begun.items():
            record = self.machines[home].mutations.queue.records[mutation]
            assert record.status.is_settled, f"{mutation} {name}: {record.status}"
            assert self.service.carried_out[mutation] <= 1
            if record.status == "success" and name != "delete":  # somebody else's may have come first
                assert self.service.carried_out[mutation] == 1, f"{mutation} {name} was not carried out"
        assert not any(machine.mutations.laid.by_key for machine in self.machines)
        shares = [machine.mutations.queue._shares for machine in self.machines]
        assert not any(share.size or share._taken or share._accounts for share in shares)


class _Kind(random.Random):
    """Dice for a world in which nothing goes wrong."""

    def random(self) -> float:
        return 0.9


def play(dice: random.Random, steps: int = 120, *, kills: bool = True) -> World:
    """Let things happen, come to rest, and check."""
    world = World(dice)
    temporary = 0
    for number in range(steps):
        choice = dice.random()
        known = sorted({task["id"] for tasks in world.service.tasks.values() for task in tasks.values()})
        if choice < 0.22:
            project = dice.choice(PROJECTS)
            mutation = f"m{number}"
            kind = dice.random()
            if kind > 0.9:
                world.mutate("vote", {"project_id": project, "voter": mutation}, mutation)
            elif kind < 0.4 or not known:
                temporary += 1
                world.mutate(
                    "create", {"id": f"tmp{temporary}", "project_id": project, "title": f"n{number}"}, mutation
                )
            else:
                names = [*known, *(f"tmp{n}" for n in range(1, temporary + 1))]
                target = dice.choice(names)
                place = next((p for p, tasks in world.service.tasks.items() if target in tasks), project)
                variables = {"id": target, "project_id": place}
                if kind < 0.8:
                    title = "refused" if dice.random() < 0.15 else f"n{number}"
                    world.mutate("update", {**variables, "title": title}, mutation)
                else:
                    world.mutate("delete", variables, mutation)
        elif choice < 0.26 and world.begun:
            mutation = dice.choice(sorted(world.begun))
            world.mutate(*(world.begun[mutation][1:]), mutation=mutation)  # type: ignore[misc]
        elif choice < 0.3 and world.begun:
            world.undo(dice.choice(sorted(world.begun)))
        elif choice < 0.36 and known:
            task = next(tasks[dice.choice(sorted(tasks))] for tasks in world.service.tasks.values() if tasks)
            event = "deleted" if dice.random() < 0.2 else "updated"
            world.service.change(event, {**task, "title": f"other{number}"})
        elif choice < 0.55:
            late = [shard for shard in range(SHARDS) if world.heard[shard] < len(world.service.events)]
            if late:
                world.stream(dice.choice(late))
        elif choice < 0.85 and world.calls:
            world.call(dice.randrange(len(world.calls)))
        elif choice < 0.88 and kills:
            world.kill(dice.randrange(SHARDS))
        else:
            world.now += dice.choice([1.0, 50.0, 400.0, 2_500.0])
            for shard in range(SHARDS):
                due = world.machines[shard].deadline()
                if due is not None and due <= world.now:
                    world.wake(shard)
    world.rest()
    world.check()
    return world


if __name__ == "__main__":
    print(play(random.Random(int(sys.argv[1]))).statuses)
