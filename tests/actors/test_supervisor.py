"""What the supervisor says of actors, given what they said of themselves; what it makes of configurations that follow each other closely."""

import asyncio
import threading
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.actors import shard_keeper, supervisor
from cluster.actors.specification import Specification, encode
from cluster.actors.supervisor import SupervisorActor, standby_row
from cluster.config import Config, load_mapping, refusals

STATUS = {"node": "n", "pid": 7, "life": 2}


@pytest.mark.parametrize(
    ("said", "is_in_sync"),
    [
        ({"actor": "shard-0-b", "life": 2, "in_sync": True}, True),
        ({"actor": "shard-0-b", "life": 2, "in_sync": False}, False),
        ({"actor": "shard-0-b", "life": 1, "in_sync": True}, False),  # it has begun anew since
        ({"actor": "shard-0", "life": 2, "in_sync": True}, False),
        ({}, False),
    ],
)
def test_a_standby_is_in_sync_if_its_primary_means_this_life_of_it(said: dict[str, object], is_in_sync: bool) -> None:
    assert standby_row("shard-0-b", STATUS, said) == {"node": "n", "pid": 7, "in_sync": is_in_sync}
    assert standby_row("shard-0-b", {}, said) == {"node": None, "pid": None, "in_sync": False}


class Cluster:
    """Stands in for Ray and for the actors, each known by the revision it works by. Shard 0 is to be made anew for any.

    `held`: who is made next once it `may_be_made`; `silent`: who answers nothing until it is made anew.
    """

    def __init__(self) -> None:
        self.actors: dict[str, int] = {}
        self.held = ""
        self.silent = ""
        self.is_being_made = threading.Event()
        self.may_be_made = threading.Event()

    def create(self, _kind: str, _cluster: str, actor: str, specification: bytes, *_: Any, **__: Any) -> None:
        if actor == self.held:
            self.held = ""
            self.is_being_made.set()
            assert self.may_be_made.wait(10.0)
        self.actors.setdefault(actor, Specification.decode(specification).revision)

    def get_actor(self, actor: str, _namespace: str) -> str:
        if actor not in self.actors:
            raise ValueError(actor)
        return actor

    def kill(self, actor: str) -> None:
        self.actors.pop(actor, None)
        self.silent = "" if self.silent == actor else self.silent

    def named(self, _: bool) -> list[dict[str, str]]:
        return [{"name": actor, "namespace": "harbor-harbor"} for actor in ("supervisor", *self.actors)]

    async def status(self, actor: str, _timeout_s: float = 2.0) -> dict[str, Any]:
        if actor not in self.actors or actor == self.silent:
            raise supervisor.Unreachable(actor)
        said = {"node": "n", "pid": 1, "role": "primary", "epoch": 1, "revision": self.actors[actor], "load": 0.0}
        return {**said, "paused": False, "sessions": 0}

    async def reconfigure(self, actor: str, specification: bytes) -> bool:
        if actor == "shard-0":
            return False
        if actor not in self.actors:
            raise supervisor.Unreachable(actor)
        self.actors[actor] = Specification.decode(specification).revision
        return True

    async def leave(self, *_: Any) -> bool:
        return True

    async def call(self, *_: Any) -> None:
        raise supervisor.Unreachable("nobody")

    async def ended(self, *_: Any) -> bool:
        return await asyncio.Future()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    context = SimpleNamespace(get_node_id=lambda: "n", gcs_address="")
    monkeypatch.setattr(supervisor.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(supervisor.ray, "get_actor", made.get_actor)
    monkeypatch.setattr(supervisor.ray.util, "list_named_actors", made.named)
    monkeypatch.setattr(supervisor.handles, "create", made.create)
    monkeypatch.setattr(supervisor.handles, "kill", made.kill)
    monkeypatch.setattr(supervisor, "Peers", lambda _: made)
    monkeypatch.setattr(supervisor, "configure_logs", lambda: None)  # they are the whole process's
    monkeypatch.setattr(supervisor, "SETTLE_S", 0.0)
    monkeypatch.setattr(shard_keeper.ray_head, "kept", lambda *_: None)
    return made


def configured(rule: str, storage: str | None = ".harbor", **cluster: Any) -> Config:
    stream = {"source": "a", "on": {"e": {"set": {"key": ["last"], "value": rule}}}}
    source = {"type": "sse", "url": "http://127.0.0.1:9/"}
    return load_mapping(
        {"sources": {"a": source}, "streams": [stream], "cluster": cluster, "storage": {"path": storage}}, {}
    )


@pytest.mark.parametrize(
    ("starting", "beginning", "is_replaced"), [("", "", True), ("shard-1", "", False), ("", "shard-1", False)]
)
@pytest.mark.parametrize("was_heard", [True, False])
async def test_who_says_nothing_is_made_anew_unless_it_is_just_beginning(
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    starting: str,
    beginning: str,
    *,
    is_replaced: bool,
    was_heard: bool,
) -> None:
    monkeypatch.setattr(supervisor.ray_head, "is_starting", lambda _, actor: actor == starting)
    cluster.silent = "" if was_heard else "shard-1"
    actor = SupervisorActor.__new__(SupervisorActor)
    await actor.__init__("harbor", encode(configured("{data.a}", shards=2), 1))  # type: ignore[misc]
    monkeypatch.setattr(actor._shards, "is_beginning", lambda of: of == beginning)
    await actor._check_all()
    assert actor._state.ready == was_heard
    cluster.silent = "shard-1"
    began_ms = actor._clock.now_ms()
    for after_ms in range(0, 20_000, 5_000):
        monkeypatch.setattr(actor, "_clock", SimpleNamespace(now_ms=lambda at=began_ms + after_ms: at))
        await actor._check("shard-1")
    assert (cluster.silent == "") == is_replaced
    await actor.stop()


@pytest.fixture
async def reconfiguring(cluster: Cluster) -> AsyncIterator[SupervisorActor]:
    """A supervisor that is just about to make a shard anew for its second configuration."""
    actor = SupervisorActor.__new__(SupervisorActor)
    await actor.__init__("harbor", encode(configured("{data.a}"), 1))  # type: ignore[misc]
    cluster.held = "shard-0"
    await actor.apply(encode(configured("{data.b}"), 2))
    await asyncio.to_thread(cluster.is_being_made.wait, 10.0)
    assert "shard-0" not in cluster.actors
    asyncio.get_running_loop().call_later(0.5, cluster.may_be_made.set)
    yield actor
    await actor.stop()


async def test_what_is_just_being_made_anew_is_ended_with_the_others(
    cluster: Cluster, reconfiguring: SupervisorActor
) -> None:
    await asyncio.gather(reconfiguring.stop(), reconfiguring.stop())
    await asyncio.to_thread(cluster.may_be_made.wait, 10.0)
    await asyncio.sleep(0)
    await reconfiguring.apply(encode(configured("{data.c}", shards=3), 3))
    assert not cluster.actors


@pytest.mark.parametrize("is_filled", [True, False])
async def test_who_is_filled_is_waited_for_however_long_that_takes(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, *, is_filled: bool
) -> None:
    monkeypatch.setattr(supervisor, "RESTART_TIMEOUT_S", 0.02)
    actor = SupervisorActor.__new__(SupervisorActor)
    await actor.__init__("harbor", encode(configured("{data.a}"), 1))  # type: ignore[misc]
    tries: list[int] = []

    async def settled(_: str, life: int) -> None:
        tries.append(life)
        if len(tries) < 5:
            await asyncio.Future()

    monkeypatch.setattr(actor._shards, "settled", settled)
    monkeypatch.setattr(actor._shards, "is_filled", lambda _: is_filled)
    await actor._settled("shard-0", 7)
    assert tries == [7] * (5 if is_filled else 1)
    await actor._settled("shard-9", 8)
    assert 8 not in tries, "it is no more"
    await actor.stop()


@pytest.mark.parametrize(("path", "is_kept"), [(".harbor", False), (None, True)])
async def test_what_is_in_one_memory_alone_is_not_ended_for_another_configuration(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, path: str | None, *, is_kept: bool
) -> None:
    actor = SupervisorActor.__new__(SupervisorActor)
    await actor.__init__("harbor", encode(configured("{data.a}", path), 1))  # type: ignore[misc]
    lacking = {"shard-0"}
    monkeypatch.setattr(actor._shards, "lacks_standby", lambda of: of in lacking)
    await actor.apply(encode(configured("{data.b}", path), 2))
    assert actor._reconfiguring is not None
    await asyncio.wait([actor._reconfiguring])
    assert cluster.actors["shard-0"] == (1 if is_kept else 2)
    await actor._check("shard-0")
    assert cluster.actors["shard-0"] == (1 if is_kept else 2)
    lacking.clear()
    await actor._check("shard-0")
    assert set(cluster.actors.values()) == {2}
    await actor.stop()


async def test_all_are_of_the_configuration_that_came_last(cluster: Cluster, reconfiguring: SupervisorActor) -> None:
    other = configured("{data.c}", name="other")
    assert refusals(configured("{data.b}"), other), "all are made anew for it"
    await reconfiguring.apply(encode(other, 3))
    await asyncio.to_thread(cluster.may_be_made.wait, 10.0)
    assert reconfiguring._reconfiguring is not None
    await asyncio.wait([reconfiguring._reconfiguring])
    assert set(cluster.actors.values()) == {3}
    assert {"shard-0", "shard-1"} <= cluster.actors.keys()
