"""What shards tell each other of mutations, played by hand where its order matters."""

from typing import Any

import pytest

from cluster.core.messages import Overlays, Send
from cluster.core.mutation_queue import StartMutation
from cluster.core.transaction import Transaction
from cluster.errors import StoreError, UpstreamError
from cluster.storage.memory_store import MemoryStore
from tests.simulation.mutations import KEYS, PROJECTS, SHARDS, World, _Kind


def world_with(task: dict[str, Any]) -> tuple[World, str, int]:
    """A world whose shards know one another, with one task in a project whose updates have another home than its key."""
    project, key = next(
        (p, k) for p, k in zip(PROJECTS, KEYS, strict=True) if World.home(k) != World.home(f"scope:project:{p}")
    )
    world = World(_Kind())
    world.service.change("created", {**task, "project_id": project})
    world.rest()
    return world, project, World.home(key)


def call(world: World, kind: type, shard: int) -> None:
    """Let the oldest call of a kind that a shard waits for happen."""
    world.call(next(n for n, (waits, asked) in enumerate(world.calls) if waits == shard and isinstance(asked, kind)))


def test_what_came_after_the_confirming_event_is_not_undone_by_a_late_response() -> None:
    world, project, place = world_with({"id": "t1", "title": "old"})
    home = World.home(f"scope:project:{project}")
    world.mutate("update", {"id": "t1", "project_id": project, "title": "mine"}, "m")
    call(world, Send, home)
    key = KEYS[PROJECTS.index(project)]
    assert world.held[key].value is not None
    assert b"mine" in world.held[key].value.json(), "everybody sees it"
    assert world.data(key)[0]["title"] == "old"
    world.service.carry_out("m", "PATCH", {"id": "t1", "project_id": project, "title": "mine"})
    world.service.change("updated", {"id": "t1", "project_id": project, "title": "theirs"})
    world.stream(place)
    world.stream(place)
    call(world, StartMutation, home)  # the answer comes before the home has the event
    call(world, Send, home)
    assert world.data(key)[0]["title"] == "theirs"
    entry = world.machines[place].cache.get(key)
    assert entry is not None
    assert entry.fetch is None, "nothing is in doubt"
    world.rest()
    world.check()


def test_what_is_in_doubt_is_fetched_anew() -> None:
    world, project, place = world_with({"id": "t1", "title": "old"})
    home = World.home(f"scope:project:{project}")
    world.mutate("update", {"id": "t1", "project_id": project, "title": "mine"}, "m")
    call(world, Send, home)
    world.service.change("updated", {"id": "t1", "project_id": project, "title": "theirs"})
    world.stream(place)
    call(world, StartMutation, home)
    call(world, Send, home)
    entry = world.machines[place].cache.get(KEYS[PROJECTS.index(project)])
    assert entry is not None
    assert entry.fetch is not None
    world.rest()
    world.check()


def test_what_cannot_be_stored_is_not_sent_until_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(_Kind())
    world.rest()
    full = True

    def commit(store: MemoryStore, transaction: Transaction) -> None:
        if full:
            raise StoreError("no space left on device")
        taken(store, transaction)

    taken = MemoryStore.commit
    monkeypatch.setattr(MemoryStore, "commit", commit)
    world.mutate("vote", {"project_id": "1", "voter": "me"}, "v")
    home = World.home("id:v")
    world.now += 5_000.0
    world.wake(home)
    assert not any(isinstance(asked, StartMutation) for _, asked in world.calls)
    full = False
    world.now += 5_000.0
    world.wake(home)
    world.rest()
    world.check()
    assert world.service.carried_out == {"v": 1}


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_lift_counts_once_though_its_answer_is_lost(is_killed: bool) -> None:
    world = World(_Kind())
    world.rest()
    project = next(p for p in PROJECTS if World.home(f'["votes","{p}"]') != 0)
    place = World.home(f'["votes","{project}"]')
    mutation = next(f"v{n}" for n in range(99) if World.home(f"id:v{n}") == 0)
    world.mutate("vote", {"project_id": project, "voter": "me"}, mutation)
    call(world, Send, 0)
    call(world, StartMutation, 0)
    send = next(asked for _, asked in world.calls if isinstance(getattr(asked, "message", None), Overlays))
    _, effects = world.machines[place].overlays(send.message, world.now)
    world._take(place, effects)
    assert world.data(f'["votes","{project}"]') == {"n": 1}
    if is_killed:
        world.kill(place)
    world.rest()
    world.check()


def test_what_creates_something_is_answered_though_a_link_broke_and_it_was_settled_meanwhile() -> None:
    world = World(_Kind())
    world.rest()
    project = next(p for p in PROJECTS if World.home(f"scope:project:{p}") == 0)
    queue = world.machines[0].mutations
    world.mutate("create", {"id": "tmp", "project_id": project, "title": "new"}, "m")
    for peer in queue.peers:
        queue.announced(peer, 99_999)
    call(world, StartMutation, 0)
    assert queue.queue.records["m"].status == "success"
    world.rest()
    assert queue._announcing == {}, "nobody waits for the answer still"
    world.check()


def test_a_refusal_after_an_event_has_the_entry_fetched_and_names_the_mutation() -> None:
    world, project, place = world_with({"id": "t1", "title": "old"})
    home = World.home(f"scope:project:{project}")
    world.mutate("update", {"id": "t1", "project_id": project, "title": "mine"}, "m")
    call(world, Send, home)
    request = next(asked for _, asked in world.calls if isinstance(asked, StartMutation))
    world.calls.remove((home, request))
    world.service.carry_out("m", "PATCH", {"id": "t1", "project_id": project, "title": "mine"})
    for shard in range(SHARDS):
        world.stream(shard)
    for _ in range(20):
        if any(isinstance(asked, Send) for _, asked in world.calls):
            world.call(next(n for n, (_, asked) in enumerate(world.calls) if isinstance(asked, Send)))
    refused = UpstreamError("http 422", status=422, retryable=False)
    refused_at = world.now
    world._take(home, world.machines[home].mutated(request, refused, world.now))
    world.rest()
    assert world.named == {"m"}
    world.check()
    entry = world.machines[place].cache.get(KEYS[PROJECTS.index(project)])
    assert entry is not None
    assert entry.fetched_at >= refused_at
