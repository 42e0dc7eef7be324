"""Pattern 9: an optimistic create: its temporary id becomes the server's in place, it is never there twice, and what names it is sent with the real one."""

from itertools import groupby
from typing import Any

import pytest
import yaml

from tests.guide.conftest import DEMO, LATENCY_MS
from tests.live import Client

pytestmark = pytest.mark.cluster
_CREATE = yaml.safe_load(DEMO.read_text())["mutations"]["create_task"]
MUTATIONS = {"create_unconfirmed": {name: value for name, value in _CREATE.items() if name != "confirm_on"}}
"""As `create_task`, for a stream of which nothing says whose an item is."""


def tasks(upstream: Any, project: str) -> list[dict[str, Any]]:
    """What the server has now."""
    return [dict(each) for each in upstream.do(lambda up: up.tracker.task_list(project))]


async def watch(clients: list[Client], upstream: Any, project: str) -> list[Any]:
    key = ["tasks", project]
    for number, client in enumerate(clients):
        view = await client.subscribe("tasks", key=key, mode="patch" if number == 1 else "data")
        await client.until(lambda view=view: view.data(*key) == tasks(upstream, project))
    return key


def places(client: Client, key: list[Any], title: str) -> list[list[int]]:
    """Where a client was shown tasks of a title, one view after the other."""
    found = (
        [place for place, each in enumerate(data) if each["title"] == title] for _, data in client.shown("tasks", *key)
    )
    return [each for each, _ in groupby(found)]


def ids(client: Client, key: list[Any], title: str) -> list[str]:
    """The ids under which a client was shown a task, one after the other."""
    found = (each["id"] for _, data in client.shown("tasks", *key) for each in data if each["title"] == title)
    return [each for each, _ in groupby(found)]


async def settled(clients: list[Client], upstream: Any, key: list[Any]) -> None:
    """Wait until everybody is shown what the server has."""
    for client in clients:
        await client.until(lambda client=client: client.views["tasks"].data(*key) == tasks(upstream, key[1]))


async def test_a_temporary_id_becomes_the_servers_in_place(clients: list[Client], upstream: Any) -> None:
    key = await watch(clients, upstream, "1")
    place = len(tasks(upstream, "1"))
    upstream.do(lambda up: up.control({"latency_ms": LATENCY_MS}))
    await clients[0].mutate("answered", "create_task", id="temp-1", projectId="1", title="New")
    for client in clients:
        await client.until(lambda client=client: client.views["tasks"].data(*key)[-1]["id"] == "temp-1")
    assert len(tasks(upstream, "1")) == place, "the server does not have it yet"
    upstream.do(lambda up: up.control({"latency_ms": 0}))
    await clients[0].until(lambda: clients[0].statuses("answered") == ["pending", "success"])
    await settled(clients, upstream, key)
    real = tasks(upstream, "1")[-1]["id"]
    for client in clients:
        assert places(client, key, "New") == [[], [place]], "one item, which never moves and never blinks"
        assert ids(client, key, "New") == ["temp-1", real]


async def test_also_where_the_event_comes_and_the_answer_never(clients: list[Client], upstream: Any) -> None:
    key = await watch(clients, upstream, "2")
    place = len(tasks(upstream, "2"))
    upstream.do(lambda up: up.swallow(1, "/tasks", "POST"))
    await clients[0].mutate("streamed", "create_task", id="temp-2", projectId="2", title="New")
    await clients[0].until(lambda: clients[0].statuses("streamed")[-1:] == ["success"])
    await settled(clients, upstream, key)
    real = tasks(upstream, "2")[-1]["id"]
    for client in clients:
        assert places(client, key, "New") == [[], [place]]
        assert ids(client, key, "New")[-1] == real
    assert len(tasks(upstream, "2")) == place + 1
    assert upstream.do(lambda up: up.applied["streamed"]) == 1


async def test_also_where_the_event_beats_the_answer_and_does_not_say_whose_it_is(
    clients: list[Client], upstream: Any
) -> None:
    """The answer is lost, so the event comes first; the same request, sent again, is answered after it."""
    key = await watch(clients, upstream, "3")
    place = len(tasks(upstream, "3"))
    upstream.do(lambda up: up.swallow(1, "/tasks", "POST"))
    await clients[0].mutate("beaten", "create_unconfirmed", id="temp-3", projectId="3", title="New")
    await clients[0].until(lambda: clients[0].statuses("beaten") == ["pending", "paused", "pending", "success"])
    await settled(clients, upstream, key)
    real = tasks(upstream, "3")[-1]["id"]
    for client in clients:
        assert places(client, key, "New") == [[], [place]]
        assert ids(client, key, "New") == ["temp-3", real]
    assert upstream.do(lambda up: (up.applied["beaten"], up.keys_seen["beaten"])) == (1, 2)


async def test_what_names_the_temporary_id_is_sent_with_the_servers(clients: list[Client], upstream: Any) -> None:
    """In the same scope, and in another, whose home may be another shard; and once the real id is known, too."""
    key = await watch(clients, upstream, "4")
    before = upstream.do(lambda up: dict(up.stats()["requests"]))
    upstream.do(lambda up: up.control({"latency_ms": LATENCY_MS}))
    await clients[0].mutate("make", "create_task", id="temp-4", projectId="4", title="New")
    await clients[0].mutate("edit", "update_task", id="temp-4", projectId="4", status="done")
    await clients[0].mutate("follow", "create_task", id="temp-5", projectId="5", title="After", blockedBy="temp-4")
    await clients[1].until(lambda: clients[1].views["tasks"].data(*key)[-1]["status"] == "done")
    assert clients[1].views["tasks"].data(*key)[-1]["id"] == "temp-4", "seen before the server has any of it"
    upstream.do(lambda up: up.control({"latency_ms": 0}))
    await clients[0].until(lambda: clients[0].statuses("edit") == ["queued", "pending", "success"])
    await clients[0].mutate("late", "update_task", id="temp-4", projectId="4", title="Renamed")
    for mutation in ("make", "edit", "follow", "late"):
        await clients[0].until(lambda mutation=mutation: clients[0].statuses(mutation)[-1:] == ["success"])
    await settled(clients, upstream, key)
    made = tasks(upstream, "4")[-1]
    assert (made["title"], made["status"]) == ("Renamed", "done")
    assert tasks(upstream, "5")[-1]["blockedBy"] == made["id"]
    after = upstream.do(lambda up: dict(up.stats()["requests"]))
    assert after[f"PATCH /tasks/{made['id']}"] - before.get(f"PATCH /tasks/{made['id']}", 0) == 2
    assert not any("temp-" in route for route in after)


async def test_what_others_create_meanwhile_is_seen_once_too(clients: list[Client], upstream: Any) -> None:
    key = await watch(clients, upstream, "6")
    before = len(tasks(upstream, "6"))
    upstream.do(lambda up: up.control({"latency_ms": LATENCY_MS}))
    await clients[0].mutate("ours", "create_task", id="temp-6", projectId="6", title="Ours")
    upstream.do(lambda up: up.emit(up.tracker.create_task({"projectId": "6", "title": "Theirs"})[1]))
    for client in clients:
        await client.until(lambda client=client: places(client, key, "Theirs")[-1:] == [[before]])
    upstream.do(lambda up: up.control({"latency_ms": 0}))
    await clients[0].until(lambda: clients[0].statuses("ours") == ["pending", "success"])
    await settled(clients, upstream, key)
    assert [each["title"] for each in tasks(upstream, "6")][before:] == ["Theirs", "Ours"]
    for client in clients:
        assert all(len(each) <= 1 for title in ("Ours", "Theirs") for each in places(client, key, title))
        assert places(client, key, "Ours")[-1] == [before + 1]
