"""The delivery contract under random schedules: real gateway and shard machines, modelled clients, an oracle.

Each seed is one schedule of writes, removals, slow readers, pauses, lost frames, reconnects to the other gateway, lost answers and
restarted shards. `View` checks every message as it comes; in the end every view must equal what the shards hold.
"""

import random
from typing import Any

import orjson
import pytest

from cluster.core import anti_entropy, gateway_state, shard_state, template
from cluster.core.declared_query import DeclaredQuery, Response
from cluster.core.messages import Edit, KeyInfo
from cluster.core.operation import parse_operations
from cluster.errors import UpstreamError
from tests.in_process import Client, InProcess, View

KEYS = [["a", 1], ["a", 2], ["a", {"b": 1, "c": 2}], ["a"], ["b", 1], ["b", 2, 3], [1], ["q", 1], ["q", 2]]
PREFIXES = [["a"], [], ["b"], ["a", {"b": 1}], ["b", 2], ["q"]]
QUERY = DeclaredQuery(key=template.parse(["q", "{id}"]), service="api", path=template.parse("/q/{id}"), retry=0)


def text(key: Any) -> str:
    return orjson.dumps(key).decode()


class Schedule:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = InProcess(shards=self.random.choice([1, 2, 3]), queries=[QUERY], gateways=2)
        self.clients: list[Client] = []
        self.count = 0
        for key in KEYS:
            if self.random.random() < 0.5:
                self.world.write(text(key), {"n": 0, "list": []})

    def client(self) -> Client:
        self.count += 1
        client = Client(self.world, f"c{self.count}", self.random.choice(self.world.names))
        self.clients.append(client)
        return client

    def some_client(self) -> Client:
        return self.random.choice(self.clients) if self.clients else self.client()

    def act(self) -> None:
        getattr(self, "do_" + self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0])()

    def do_write(self) -> None:
        key = text(self.random.choice(KEYS))
        self.count += 1
        filler = "x" * self.random.choice([0, 0, 0, 300])
        self.world.write(key, {"n": self.count, "list": [], "filler": filler})

    def do_edit(self) -> None:
        key = text(self.random.choice(KEYS))
        self.count += 1
        operations = parse_operations(
            [{"append": {"at": "/list", "item": {"id": self.random.randrange(5), "n": self.count}}}]
        )
        self.world.commit(key, Edit(1, f"e{self.count}", key, None, operations))

    def do_erase(self) -> None:
        self.world.erase(text(self.random.choice(KEYS)))

    def do_subscribe(self) -> None:
        client = self.client() if len(self.clients) < 4 or self.random.random() < 0.2 else self.some_client()
        self.count += 1
        members: dict[str, Any] = {"mode": self.random.choice(["data", "patch"])}
        if self.random.random() < 0.5:
            members["prefix"] = self.random.choice(PREFIXES)
        else:
            members["key"] = self.random.choice(KEYS)
        client.subscribe(self.count, **members)

    def do_unsubscribe(self) -> None:
        client = self.some_client()
        if client.views:
            name = self.random.choice(list(client.views))
            del client.views[name]
            client.say(type="unsubscribe", id=name)

    def do_read(self) -> None:
        self.some_client().read(self.random.choice([1, 1, 5]))

    def do_block(self) -> None:
        """A frame is taken, and the socket does not take more for a while."""
        client = self.some_client()
        if client.session.busy:
            self.world.gateways[client.address].written(client.session, self.world.now_ms)
            return
        frame, effects = client.gateway.take(client.session, self.world.now_ms)
        self.world.run(client.address, effects)
        if frame is not None:
            client.got(frame)

    def do_pause(self) -> None:
        client = self.some_client()
        if client.views:
            kind = self.random.choice(["pause", "resume"])
            client.say(type=kind, id=self.random.choice(list(client.views)))

    def do_reconnect(self) -> None:
        client = self.some_client()
        if self.random.random() < 0.5:
            # What was on its way is lost.
            _, effects = client.gateway.take(client.session, self.world.now_ms)
            self.world.run(client.address, effects)
        client.close()
        self.clients.remove(client)
        again = self.client()
        again.views = client.views
        for name, view in list(again.views.items()):
            members = {member: value for member, value in view.wanted.items() if member != "since"}
            if view.token is not None and (view.complete or self.random.random() < 0.5):
                again.subscribe(name, **members, since=view.token)
            else:
                again.subscribe(name, **members)

    def do_invalidate(self) -> None:
        self.count += 1
        key = self.random.choice(KEYS)
        self.some_client().say(type="invalidate", id=-self.count, key=key, exact=self.random.random() < 0.5)

    def do_calls(self) -> None:
        for _ in range(self.random.randrange(1, 6)):
            self.world.step(lose=lambda: self.random.random() < 0.05)

    def do_time(self) -> None:
        self.world.advance(self.random.choice([1, 3, 12, 40, 200, 1200]))

    def do_restart(self) -> None:
        self.world.restart(self.random.choice(list(self.world.shards)))

    def do_gap(self) -> None:
        """Events of a feed were lost: the shard resets what it feeds."""
        name, shard = self.random.choice(list(self.world.shards.items()))
        shard._gap("events", None)
        shard._flush()
        self.world.run(name, shard._taken())

    def do_fetch(self) -> None:
        """A service answers."""
        if self.world.fetches:
            name, fetch = self.world.fetches.popleft()
            self.count += 1
            failed = self.random.random() < 0.3
            answer = UpstreamError("it is down") if failed else Response(orjson.dumps({"n": self.count, "list": []}))
            self.world.run(name, self.world.shards[name].fetched(fetch, answer, self.world.now_ms))

    def finish(self) -> None:
        for client in self.clients:
            for name in client.views:
                client.say(type="resume", id=name)
        for _ in range(8):
            while self.world.fetches:
                self.do_fetch()
            self.world.settle(800)
            for client in self.clients:
                client.gateway.written(client.session, self.world.now_ms)
                client.read()

    def check(self) -> None:
        for client in self.clients:
            for name, view in client.views.items():
                prefix = "prefix" in view.wanted
                key = text(view.wanted["prefix" if prefix else "key"])
                held = {key: entry for key, entry in view.entries.items() if entry[0]}
                wanted = {key: entry for key, entry in self.world.oracle(key, prefix).items() if entry[0]}
                assert held == wanted, (client.session.id, name, view.wanted)
                assert view.complete


WEIGHTS = {
    "write": 20,
    "edit": 20,
    "erase": 6,
    "subscribe": 8,
    "unsubscribe": 2,
    "read": 25,
    "block": 6,
    "pause": 4,
    "reconnect": 4,
    "invalidate": 2,
    "calls": 40,
    "time": 20,
    "gap": 0.5,
    "fetch": 4,
    "restart": 0.4,
}


@pytest.mark.parametrize("chunk", range(4))
@pytest.mark.parametrize("seed", range(60))
def test_every_view_ends_equal_to_the_shards(seed: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunk % 2:
        monkeypatch.setattr(gateway_state, "CHUNK_BYTES", 150)  # snapshots in many pieces
    if chunk // 2:
        monkeypatch.setattr(shard_state, "SLICE_BYTES", 200)  # change sets, too
        monkeypatch.setattr(shard_state, "SLICE_ENTRIES", 2)
    schedule = Schedule(seed * 4 + chunk)
    for _ in range(160):
        schedule.act()
    schedule.finish()
    schedule.check()


def test_the_model_client_notices_a_gap() -> None:
    view = View(prefix=False, mode="data", wanted={})
    view.take({"type": "snapshot", "key": ["a"], "version": 3, "data": 1})
    with pytest.raises(AssertionError):
        view.take({"type": "change", "key": ["a"], "from": 4, "version": 5, "data": 2, "coalesced": 1})


# --- anti-entropy ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "prefix"),
    [(broken, prefix) for broken in ("behind", "ahead", "ghost") for prefix in (True, False)] + [("gone", False)],
)
def test_a_replica_that_was_broken_is_made_anew_and_so_is_what_clients_hold(broken: str, prefix: bool) -> None:
    world = InProcess(shards=2)
    world.write('["a",1]', {"n": 1})
    world.write('["a",2]', {"n": 1})
    client = Client(world, "c")
    view = client.subscribe(1, **({"prefix": ["a"]} if prefix else {"key": ["a", 1]}))
    world.settle(100)
    client.read()
    replica = world.gateway.replicas['["a",1]']
    match broken:
        case "behind":
            replica.version -= 3
        case "ahead":
            replica.version += 3
        case "gone":
            del world.gateway.replicas[replica.key]
            replica.topics[0].replicas.clear()
        case "ghost":
            world.erase(replica.key)
            world.calls.clear()  # the shard takes it for told
            link = world.shard_of(replica.key)._links["gateway-0"]
            link.link.acknowledged(link.link.peer)
            world.gateway._by_address[f"shard-{replica.shard}"].incoming._sequence += 1
    world.settle(30_000)
    client.read()
    assert world.gateway.anti_entropy.divergences == 1
    assert [(each[0], each[1], each[3]) for each in world.gateway.diverged] == [
        (f"shard-{replica.shard}", replica.key, 1)
    ]
    expected = world.oracle('["a"]' if prefix else '["a",1]', prefix)
    assert {key: version for key, (version, _) in view.entries.items()} == {k: v for k, (v, _) in expected.items()}
    world.write('["a",1]', {"n": 2})
    world.settle(100)
    client.read()
    assert view.entries['["a",1]'][1] == {"n": 2}
    world.settle(60_000)
    assert world.gateway.anti_entropy.divergences == 1, "found once"


def test_what_changes_all_the_time_is_no_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anti_entropy, "CHECK_MS", 50.0)
    world = InProcess(shards=2, gateways=2)
    clients = [Client(world, f"c{n}", f"gateway-{n}") for n in range(2)]
    for n in range(20):
        world.write(f'["a",{n}]', 0)
    for client in clients:
        client.subscribe(1, prefix=["a"])
    world.settle(100)
    for step in range(1_500):
        world.write(f'["a",{step % 20}]', step)
        if step % 50 == 7:
            world.erase(f'["a",{step % 19}]')
        for _ in range(step % 3):
            world.step()
        world.advance(20.0)
    world.settle(10_000)
    assert [gateway.anti_entropy.divergences for gateway in world.gateways.values()] == [0, 0]


# --- who watches -------------------------------------------------------------------------------------------------


def test_subscriptions_are_counted_by_entry_and_by_shard() -> None:
    world = InProcess(shards=2, gateways=2)
    world.write('["a",1]', 0)
    home = int(world.shard_of('["a",1]').identity.removeprefix("shard-"))
    for n in range(3):
        Client(world, f"c{n}").subscribe(1, key=["a", 1])
    prefixed = Client(world, "prefixed")
    prefixed.subscribe(1, prefix=["a"])
    Client(world, "elsewhere", "gateway-1").subscribe(1, key=["a", 1])
    world.settle(100)
    row = KeyInfo('["a",1]', 1, "success", is_stale=False, gateways=2)
    assert [gateway.subscribers(row) for gateway in world.gateways.values()] == [5, 2]
    assert world.gateway.subscriptions() == {home: 4, 1 - home: 1}
    unwatched = KeyInfo('["b",1]', 1, "success", is_stale=False, gateways=0)
    assert world.gateway.subscribers(unwatched) == 0
    prefixed.close()
    world.settle(100)
    assert world.gateway.subscribers(row) == 4
    assert world.gateway.subscriptions() == {home: 3, 1 - home: 0}
