"""Pattern 2: stream events change the cache: invalidate, append into a field, remove from a field by id."""

from typing import Any

import pytest

from tests.live import Client, LiveCluster, eventually

pytestmark = pytest.mark.cluster


def _requests(upstream: Any, path: str) -> int:
    return sum(count for name, count in upstream.do(lambda up: up.stats())["requests"].items() if path in name)


async def test_an_update_fetches_the_watched_entry_anew(cluster: LiveCluster, client: Client, upstream: Any) -> None:
    view = await client.subscribe("p", key=["projects", "detail", "1"])
    await client.until(lambda: view.data("projects", "detail", "1"))
    before = _requests(upstream, "/projects/1")
    project = view.data("projects", "detail", "1")
    upstream.do(lambda up: up.emit(up.tracker.update_project("1", {"name": "Renamed"})[1]))
    await client.until(lambda: view.data("projects", "detail", "1")["name"] == "Renamed")
    assert project["name"] != "Renamed"
    assert view.invalidated == ['["projects","detail","1"]']
    assert _requests(upstream, "/projects/1") == before + 1


async def test_tasks_are_edited_in_place_without_a_fetch(cluster: LiveCluster, client: Client, upstream: Any) -> None:
    view = await client.subscribe("p", key=["projects", "detail", "2"], mode="patch")
    await client.until(lambda: view.data("projects", "detail", "2"))
    before = _requests(upstream, "/projects/2")
    task = {"id": "t-new", "projectId": "2", "title": "Written by a test"}
    upstream.say("project:2", "task:created", task)
    await client.until(lambda: view.data("projects", "detail", "2")["tasks"][-1] == task)
    upstream.say("project:2", "task:deleted", {"taskId": "t-new"})
    await client.until(lambda: task not in view.data("projects", "detail", "2")["tasks"])
    assert _requests(upstream, "/projects/2") == before
    assert view.invalidated == []


async def test_an_entry_that_does_not_exist_stays_absent(cluster: LiveCluster, client: Client, upstream: Any) -> None:
    view = await client.subscribe("p", key=["projects", "detail", "3"])
    await client.until(lambda: view.data("projects", "detail", "3"))
    # Channel 3 is joined; an event on it that concerns nothing cached creates nothing.
    keys_before = eventually(lambda: cluster.get("projects", "detail", "3", fetch="never").json())
    upstream.say("channel:9:messages", "message:new", {"id": "m", "text": "hi"})
    upstream.say("project:3", "task:created", {"id": "t-marker"})
    await client.until(lambda: view.data("projects", "detail", "3")["tasks"][-1]["id"] == "t-marker")
    assert cluster.get("messages", "9", fetch="never").status_code == 404
    assert keys_before["version"] < cluster.get("projects", "detail", "3").json()["version"]
