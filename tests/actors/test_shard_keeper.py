"""How long a shard without replicas is led by nobody is measured, whoever notices first that its process has ended."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from ray.exceptions import ActorDiedError

from cluster.actors import shard_keeper
from cluster.actors.handles import Peers, Unreachable
from cluster.actors.shard_keeper import ShardKeeper
from cluster.actors.tasks import FAILED
from cluster.core import shard_roles
from cluster.core.role import Role
from cluster.core.shard_roles import Record, Report
from cluster.observability.logs import Log
from cluster.observability.metrics import decode

HERE, THERE = "here", "there"


class Neighbours:
    """Stands in for the actors: those that `statuses` name answer, and all say of every process that it has ended if `lies`."""

    def __init__(self) -> None:
        self.statuses: dict[str, dict[str, Any]] = {}
        self.lies = self.asked = 0
        self.reports: asyncio.Queue[Report] = asyncio.Queue()
        self.fails: Exception | None = None
        self.known: list[bytes] = []
        self.is_silent = False

    async def status(self, to: str, _timeout_s: float = 2.0) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(0)
        if to not in self.statuses:
            raise Unreachable(to)
        return self.statuses[to]

    async def report(self, _to: str, known: bytes, _timeout_s: float) -> bytes:
        self.known.append(known)
        if self.is_silent:
            raise Unreachable(_to)
        return msgspec.msgpack.encode(await self.reports.get())

    async def ended(self, _to: str, _node: str, _pid: int, _within_s: float) -> bool:
        self.lies -= 1
        if self.fails is not None:
            raise self.fails
        if self.lies < 0:
            await asyncio.Future()
        return True


async def nothing(*_: str) -> None:
    pass


@pytest.fixture
def actors() -> Neighbours:
    return Neighbours()


@pytest.fixture
async def keeper(actors: Neighbours, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ShardKeeper]:
    context = SimpleNamespace(get_node_id=lambda: HERE)
    monkeypatch.setattr(shard_keeper.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(shard_keeper, "PAUSE_S", 0.005)
    made = ShardKeeper(
        "test",
        cast(Peers, actors),
        Log(),
        wait_ms=0.0,
        end=nothing,
        make=nothing,
        changed=lambda: None,
        neighbour=lambda *_: "gateway-0",
    )
    yield made
    await made.stop()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as sleeper:
        yield sleeper
        sleeper.kill()


def status(pid: int, node: str = HERE, role: str = "primary") -> dict[str, Any]:
    return {"node": node, "pid": pid, "role": role, "epoch": 1}


def figures(keeper: ShardKeeper) -> tuple[int, float]:
    """Return how many times shards were without a primary, and how long in all (s)."""
    (of,) = [sample for sample in decode(keeper.metrics.encode()) if sample.name == "recovery_seconds"]
    return sum(of.buckets), of.value


async def until(holds: Any) -> None:
    async with asyncio.timeout(10.0):
        while not holds():
            await asyncio.sleep(0.005)


async def test_the_end_of_a_lone_process_is_noticed_at_once_and_its_return_counted(
    keeper: ShardKeeper, actors: Neighbours, process: subprocess.Popen[bytes]
) -> None:
    keeper.checked("shard-0", None)  # it starts
    keeper.checked("shard-0", status(process.pid))
    process.kill()
    await until(lambda: actors.asked)
    assert figures(keeper) == (0, 0.0), "nobody leads"
    actors.statuses["shard-0"] = status(2)
    await until(lambda: figures(keeper)[0])
    assert 0.0 < figures(keeper)[1] < 10.0
    keeper.checked("shard-0", status(2))
    assert figures(keeper)[0] == 1


async def test_an_end_that_was_none_is_not_counted_and_the_next_is(keeper: ShardKeeper, actors: Neighbours) -> None:
    actors.lies = 2
    actors.statuses["shard-0"] = status(1, THERE)
    keeper.checked("shard-0", status(1, THERE))
    await until(lambda: actors.lies == -1)  # asked again, after the answers that it is there
    assert figures(keeper) == (0, 0.0)


async def test_a_shard_that_is_no_more_is_not_waited_for(
    keeper: ShardKeeper, monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes], actors: Neighbours
) -> None:
    monkeypatch.setattr(shard_keeper.ray_head, "kept", lambda *_: None)
    keeper.checked("shard-0", status(process.pid))
    process.kill()
    await until(lambda: actors.asked > 2)
    await keeper.forget(0)
    actors.statuses["shard-0"] = status(2)
    await until(lambda: len(keeper._tasks._held) == 1)  # the last is that which carries out effects
    assert figures(keeper) == (0, 0.0)


async def test_shards_without_roles_have_failed_over_never(keeper: ShardKeeper) -> None:
    keeper.sample([0, 1])
    samples = decode(keeper.metrics.encode())
    found = {sample.labels: sample.value for sample in samples if sample.name == "failovers_total"}
    assert found == {("supervisor", "0"): 0, ("supervisor", "1"): 0}


async def test_not_to_learn_of_an_end_is_no_end(
    keeper: ShardKeeper, actors: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(shard_keeper.ray_head, "kept", lambda *_: None)
    monkeypatch.setattr(shard_keeper.ray_head, "keep", lambda *_: None)
    monkeypatch.setattr(shard_keeper.ray_head, "has_ended", lambda *_: False)
    actors.statuses["shard-0"] = status(1, THERE)
    actors.fails = ValueError("unforeseen")
    reports = [Report(life, Role.PRIMARY, 1) for life in (1, 2)]
    await keeper.follow(0, ("shard-0",))
    actors.reports.put_nowait(reports[0])
    await until(lambda: ended == [FAILED])
    actors.reports.put_nowait(reports[1])
    await until(lambda: len(actors.known) == 3)
    assert actors.known == [b"", *map(msgspec.msgpack.encode, reports)], "it is asked as one that was never lost"
    assert not await keeper._is_certain("shard-0", ActorDiedError())


async def test_a_report_of_another_version_is_none(
    keeper: ShardKeeper, actors: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_keeper.ray_head, "kept", lambda *_: None)
    monkeypatch.setattr(shard_keeper.ray_head, "keep", lambda *_: None)
    await keeper.follow(0, ("shard-0",))
    actors.reports.put_nowait(cast(Report, "of another version"))
    actors.reports.put_nowait(Report(1, Role.PRIMARY, 1))
    await until(lambda: keeper.life("shard-0") == 1)


async def test_the_end_of_an_actor_that_was_silent_before_is_certain(
    keeper: ShardKeeper, actors: Neighbours, monkeypatch: pytest.MonkeyPatch, process: subprocess.Popen[bytes]
) -> None:
    monkeypatch.setattr(shard_keeper.ray_head, "kept", lambda *_: Record(1, "a", "shard-0"))
    monkeypatch.setattr(shard_keeper.ray_head, "is_there", lambda *_: True)
    monkeypatch.setattr(shard_keeper.ray_head, "has_ended", lambda *_: False)
    actors.statuses["shard-0"] = status(process.pid)
    await keeper.follow(0, ("shard-0",))
    actors.reports.put_nowait(Report(1, Role.PRIMARY, 1, "a"))
    roles = keeper.shards[0]
    await until(lambda: "shard-0" in roles.reports)
    actors.is_silent = True
    actors.reports.put_nowait(Report(1, Role.PRIMARY, 1, "a"))
    await until(lambda: roles._dead == {"shard-0": False})
    process.kill()
    await until(lambda: roles._dead == {"shard-0": True})


@pytest.mark.parametrize("is_there", [True, False])
async def test_a_primary_that_answers_nothing_is_ended_once_and_made_anew(
    keeper: ShardKeeper, actors: Neighbours, monkeypatch: pytest.MonkeyPatch, *, is_there: bool
) -> None:
    done: list[tuple[str, ...]] = []

    async def note(*what: str) -> None:
        done.append(what)

    monkeypatch.setattr(shard_roles, "RENEW_MS", 0.0)
    monkeypatch.setattr(shard_keeper.ray_head, "kept", lambda *_: Record(5, "a", "shard-0", True))
    monkeypatch.setattr(shard_keeper.ray_head, "is_there", lambda *_: is_there)
    monkeypatch.setattr(keeper, "_end", note)
    monkeypatch.setattr(keeper, "_make", note)
    actors.is_silent = True
    await keeper.follow(0, ("shard-0", "shard-0-b"))
    await until(lambda: "shard-0" in keeper.shards[0]._replaced)
    asked = len(actors.known)
    await until(lambda: len(actors.known) > asked + 4)
    assert done == ([("shard-0",), ("shard-0", "")] if is_there else [])


@pytest.fixture
async def moved(keeper: ShardKeeper, actors: Neighbours, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Shard 0 has two actors, since a move of it took too long, and its second leads. Returns who is ended."""
    done: list[tuple[str, ...]] = []

    async def note(*what: str) -> None:
        done.append(what)

    monkeypatch.setattr(shard_keeper.ray_head, "kept", lambda *_: Record(5, "b", "shard-0-b", True))
    monkeypatch.setattr(shard_keeper.ray_head, "keep", lambda *_: None)
    monkeypatch.setattr(keeper, "_end", note)
    actors.is_silent = True
    await keeper.follow(0, ("shard-0", "shard-0-b"))
    roles = keeper.shards[0]
    roles.reported("shard-0-b", Report(1, Role.PRIMARY, 5, "b"), 1.0)
    monkeypatch.setattr(keeper, "_reported", lambda *_: None)
    monkeypatch.setattr(roles, "died", lambda *_, **__: [])
    return done


async def test_a_standby_that_a_move_has_left_is_ended(keeper: ShardKeeper, moved: list[tuple[str, ...]]) -> None:
    keeper.look({}, {HERE, THERE}, set())
    await until(lambda: keeper.moves)
    assert (moved, keeper.actors(0)) == ([("shard-0",)], ("shard-0-b",))
    assert not keeper.shards[0].is_handing_over, "the one that leads stays"
    keeper.look({}, {HERE, THERE}, set())
    assert not keeper.is_moving


@pytest.mark.parametrize("why", ["keeps two", "nobody leads"])
async def test_a_standby_that_is_needed_stays(keeper: ShardKeeper, moved: list[tuple[str, ...]], why: str) -> None:
    if why == "keeps two":
        keeper.keeps_two = True
    else:
        keeper.shards[0].reports.clear()
    keeper.look({}, {HERE, THERE}, set())
    assert not keeper.is_moving
    assert (moved, len(keeper.actors(0))) == ([], 2)


async def test_standbys_that_are_wanted_by_the_end_of_a_move_stay(
    keeper: ShardKeeper, moved: list[tuple[str, ...]]
) -> None:
    keeper.look({}, {HERE, THERE}, set())
    assert keeper.is_moving
    keeper.shards[0].is_handing_over = True  # the move is on its way, and waits for the standby
    await asyncio.sleep(0.05)
    assert keeper.is_moving
    keeper.keeps_two = True
    keeper.shards[0].record = Record(6, "a", "shard-0", True)
    keeper.shards[0].reports = {"shard-0": Report(1, Role.PRIMARY, 6, "a")}
    await until(lambda: keeper.moves)
    assert (moved, len(keeper.actors(0))) == ([], 2)


async def test_a_hand_over_that_takes_too_long_is_not_gone_on_with(
    keeper: ShardKeeper, actors: Neighbours, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_keeper.ray_head, "kept", lambda *_: Record(5, "a", "shard-0", True))
    monkeypatch.setattr(keeper, "_is_well", lambda _: True)
    actors.is_silent = True
    await keeper.follow(0, ("shard-0", "shard-0-b"))
    leaving = asyncio.create_task(keeper.hand_over({"shard-0"}))
    await until(lambda: keeper.shards[0].is_handing_over)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert not keeper.shards[0].is_handing_over, "who comes back would be ended for it"
    await keeper.hand_over({"shard-0-b"})  # that leads nothing
