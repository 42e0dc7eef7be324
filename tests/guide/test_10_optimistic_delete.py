"""Pattern 10: an optimistic delete with undo: undo puts back exactly what was there and keeps what came since; without, the server gets one DELETE."""

import time
from typing import Any

import httpx
import pytest

from tests.live import Client, LiveCluster

pytestmark = pytest.mark.cluster
DELAY_MS = 5_000
"""As the demonstration declares."""
LONG_MS = 60_000
"""Nobody is too late to undo."""


def tasks(upstream: Any, project: str) -> list[dict[str, Any]]:
    """What the server has now."""
    return [dict(each) for each in upstream.do(lambda up: up.tracker.task_list(project))]


def deletes(upstream: Any, task: str) -> int:
    """How many DELETEs the server got for a task."""
    return int(upstream.do(lambda up: up.stats()["requests"].get(f"DELETE /tasks/{task}", 0)))


async def watch(clients: list[Client], upstream: Any, project: str) -> list[Any]:
    key = ["tasks", project]
    for client in clients:
        view = await client.subscribe("tasks", key=key)
        await client.until(lambda view=view: view.data(*key) == tasks(upstream, project))
    return key


async def gone(clients: list[Client], key: list[Any], task: str) -> None:
    for client in clients:
        await client.until(
            lambda client=client: any(
                task not in [each["id"] for each in data] for _, data in client.shown("tasks", *key)
            )
        )


async def test_undo_restores_exactly_and_keeps_what_came_meanwhile(clients: list[Client], upstream: Any) -> None:
    key = await watch(clients, upstream, "1")
    author = clients[0]
    first, second, third, *_ = tasks(upstream, "1")
    asked_ms = time.time() * 1000
    await author.mutate("undone", "delete_task", delay_ms=LONG_MS, id=second["id"], projectId="1")
    await gone(clients, key, second["id"])
    await author.until(lambda: any(each.get("code") == "undo_available" for each in author.log))
    (notice,) = [each for each in author.log if each.get("code") == "undo_available"]
    assert (notice["type"], notice["level"], notice["mutation_id"]) == ("notice", "info", "undone")
    assert asked_ms + LONG_MS - 50 <= notice["until_ms"] <= time.time() * 1000 + LONG_MS
    assert [each for client in clients[1:] for each in client.log if each["type"] == "notice"] == [], "only its author"

    edits = [(second["id"], {"status": "reviewed"}), (third["id"], {"title": "Edited meanwhile"})]
    for task, edit in edits:
        upstream.do(lambda up, task=task, edit=edit: up.emit(up.tracker.update_task(task, edit)[1]))
    upstream.do(lambda up: up.emit(up.tracker.create_task({"projectId": "1", "title": "Added meanwhile"})[1]))
    expected = [each for each in tasks(upstream, "1") if each["id"] != second["id"]]
    for client in clients:
        await client.until(lambda client=client: client.views["tasks"].data(*key) == expected)

    answer = await author.ask(type="undo", id="u", mutation_id="undone")
    assert answer == {"type": "result", "re": "u"}
    for client in clients:
        await client.until(lambda client=client: client.views["tasks"].data(*key) == tasks(upstream, "1"))
    restored = clients[1].views["tasks"].data(*key)[1]
    edited = {"status": "reviewed", "version": second["version"] + 1, "updatedAt": restored["updatedAt"]}
    assert restored == {**second, **edited}, "in its place, with the edit of others"
    await author.until(lambda: author.statuses("undone") == ["scheduled", "cancelled"])
    again = await author.ask(type="undo", id="again", mutation_id="undone")
    assert again["type"] == "result", "undoing twice is undoing"

    # The same scope sends in order: once this later one is through, the undone one would have been sent.
    asked_ms = time.time() * 1000
    await author.mutate("clock", "delete_task", id=first["id"], projectId="1")
    await author.until(lambda: author.statuses("clock")[-1:] == ["success"])
    (later,) = [each for each in author.log if each.get("code") == "undo_available" and each["mutation_id"] == "clock"]
    assert later["until_ms"] >= asked_ms + DELAY_MS - 50
    assert (deletes(upstream, second["id"]), deletes(upstream, first["id"])) == (0, 1)
    assert "undone" not in upstream.do(lambda up: dict(up.keys_seen))


async def test_without_undo_the_server_gets_one_delete(
    clients: list[Client], demonstration: LiveCluster, upstream: Any
) -> None:
    key = await watch(clients, upstream, "2")
    author = clients[0]
    task = tasks(upstream, "2")[2]["id"]
    await author.mutate("sent", "delete_task", delay_ms=3_000, id=task, projectId="2")
    await author.mutate("sent", "delete_task", delay_ms=3_000, id=task, projectId="2")
    await gone(clients, key, task)
    await author.until(lambda: author.statuses("sent") == ["scheduled", "pending", "success"])
    assert deletes(upstream, task) == 1
    assert upstream.do(lambda up: (up.applied["sent"], up.keys_seen["sent"])) == (1, 1)
    for client in clients:
        await client.until(lambda client=client: client.views["tasks"].data(*key) == tasks(upstream, "2"))
        held = [task in [each["id"] for each in data] for _, data in client.shown("tasks", *key)]
        assert held == sorted(held, reverse=True), "once gone, it is not seen again"
    late = await author.ask(type="undo", id="late", mutation_id="sent")
    assert (late["type"], late["code"], late["details"]) == ("error", "CONFLICT", {"status": "success"})
    by_http = httpx.delete(f"{demonstration.url}/v1/mutations/sent", timeout=60)
    assert (by_http.status_code, by_http.json()["error"]["code"]) == (409, "CONFLICT")


async def test_an_author_whose_connection_broke_off_goes_on_with_it(
    clients: list[Client], demonstration: LiveCluster, upstream: Any
) -> None:
    key = await watch(clients, upstream, "1")
    author, *others = clients
    task = tasks(upstream, "1")[-1]["id"]
    await author.mutate("kept", "delete_task", delay_ms=LONG_MS, id=task, projectId="1")
    await gone(clients, key, task)
    (welcome,) = [each for each in author.log if each["type"] == "welcome"]
    author.break_off()

    back = await Client.open(demonstration.url)
    await back.send(type="hello", resume=welcome["resume_token"])
    await back.until(lambda: any(each.get("code") == "undo_available" for each in back.log))
    assert back.statuses("kept") == ["scheduled"]
    assert (await back.ask(type="undo", id="u", mutation_id="kept"))["type"] == "result"
    await back.until(lambda: back.statuses("kept") == ["scheduled", "cancelled"])
    for other in others:
        await other.until(lambda other=other: other.views["tasks"].data(*key) == tasks(upstream, "1"))
    assert [each for other in others for each in other.log if each["type"] == "mutation"] == []
    await back.close()


async def test_a_delete_that_the_server_refuses_is_taken_back(clients: list[Client], upstream: Any) -> None:
    key = await watch(clients, upstream, "3")
    task = tasks(upstream, "3")[0]["id"]
    upstream.do(lambda up: up.fail(403, 1, "/tasks", "DELETE"))
    await clients[0].mutate("refused", "delete_task", delay_ms=3_000, id=task, projectId="3")
    await gone(clients[:1], key, task)
    for client in clients:
        await client.until(lambda client=client: client.views["tasks"].data(*key) == tasks(upstream, "3"))
    await clients[0].until(lambda: clients[0].statuses("refused")[-1:] == ["error"])
    assert deletes(upstream, task) == 1
    assert tasks(upstream, "3")[0]["id"] == task
