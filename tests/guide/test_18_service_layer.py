"""Pattern 18: one declared resource gives the whole loop: read, optimistic write, stream sync."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.guide.conftest import LATENCY_MS
from tests.live import Client, LiveCluster, eventually

pytestmark = pytest.mark.cluster


@pytest.fixture
async def client(demonstration: LiveCluster) -> AsyncIterator[Client]:
    opened = await Client.open(demonstration.url)
    yield opened
    await opened.close()


def mutate(live: LiveCluster, name: str, *, wait: bool = True, **variables: Any) -> dict[str, Any]:
    asked = {"name": name, "variables": variables}
    answer = httpx.post(f"{live.url}/v1/mutations", params={"wait": str(wait).lower()}, json=asked, timeout=60)
    assert answer.status_code in (200, 202), answer.text
    return dict(answer.json())


def truth(upstream: Any, channel: str) -> Any:
    return upstream.do(lambda up: up.tracker.message_list(channel))


async def test_a_resource_is_read_written_and_kept_in_step(
    demonstration: LiveCluster, client: Client, upstream: Any
) -> None:
    key = ["messages", "list", {"channelId": "3"}]
    view = await client.subscribe("list", key=key)
    await client.until(lambda: view.data(*key) == truth(upstream, "3"))
    before = len(truth(upstream, "3"))

    upstream.do(lambda up: up.control({"latency_ms": LATENCY_MS}))
    begun = mutate(demonstration, "messages.create", wait=False, channelId="3", content="first", authorId="u1")
    await client.until(lambda: view.data(*key)[-1]["content"] == "first")
    shown = view.data(*key)[-1]
    assert (shown["id"], len(truth(upstream, "3"))) == (begun["id"], before), "seen before the service has it"
    upstream.do(lambda up: up.control({"latency_ms": 0}))
    await client.until(lambda: view.data(*key) == truth(upstream, "3"))
    made = truth(upstream, "3")[-1]
    assert (made["content"], made["mutation_id"], len(truth(upstream, "3"))) == ("first", begun["id"], before + 1)
    assert begun["id"] not in [message["id"] for message in view.data(*key)]

    detail = ["messages", "detail", made["id"]]
    one = await client.subscribe("one", key=detail)
    await client.until(lambda: one.data(*detail) == made)
    updated = mutate(demonstration, "messages.update", id=made["id"], channelId="3", content="second")
    assert (updated["status"], updated["result"]["content"]) == ("success", "second")
    await client.until(lambda: view.data(*key) == truth(upstream, "3"))
    await client.until(lambda: one.data(*detail)["content"] == "second")

    upstream.do(lambda up: up.emit(up.tracker.create_message({"channelId": "3", "content": "by others"})[1]))
    await client.until(lambda: view.data(*key)[-1]["content"] == "by others")

    assert mutate(demonstration, "messages.delete", id=made["id"], channelId="3")["status"] == "success"
    await client.until(lambda: made["id"] not in [message["id"] for message in view.data(*key)])
    await client.until(lambda: view.data(*key) == truth(upstream, "3"))
    applied = upstream.do(lambda up: dict(up.applied))
    assert set(applied.values()) == {1}
    assert len(applied) == 3


async def test_what_the_service_refuses_is_taken_back(
    demonstration: LiveCluster, client: Client, upstream: Any
) -> None:
    key = ["messages", "list", {"channelId": "4"}]
    view = await client.subscribe("list", key=key)
    await client.until(lambda: view.data(*key) == truth(upstream, "4"))
    upstream.do(lambda up: up.fail(422, 1, "/messages", "POST"))
    refused = mutate(demonstration, "messages.create", channelId="4", content="never")
    assert (refused["status"], refused["error"]["code"]) == ("error", "UPSTREAM_ERROR")
    eventually(lambda: demonstration.get(*key).json()["data"] == truth(upstream, "4"))
    await client.until(lambda: view.data(*key) == truth(upstream, "4"))


async def test_tasks_of_the_demonstration(demonstration: LiveCluster, client: Client, upstream: Any) -> None:
    key = ["tasks", "5"]
    view = await client.subscribe("tasks", key=key)
    tasks = lambda: upstream.do(lambda up: up.tracker.task_list("5"))  # noqa: E731
    await client.until(lambda: view.data(*key) == tasks())
    created = mutate(demonstration, "create_task", projectId="5", title="T")
    assert (created["status"], created["result"]["title"]) == ("success", "T")
    await client.until(lambda: view.data(*key) == tasks())
    task = created["result"]["id"]
    mutate(demonstration, "update_task", id=task, projectId="5", status="done")
    await client.until(lambda: view.data(*key) == tasks() and view.data(*key)[-1]["status"] == "done")
    begun = mutate(demonstration, "delete_task", wait=False, id=task, projectId="5")
    assert begun["status"] == "scheduled"
    await client.until(lambda: task not in [each["id"] for each in view.data(*key)])
    assert httpx.delete(f"{demonstration.url}/v1/mutations/{begun['id']}", timeout=60).status_code == 200
    await client.until(lambda: view.data(*key) == tasks() and view.data(*key)[-1]["id"] == task)
    missing = httpx.post(
        f"{demonstration.url}/v1/mutations", json={"name": "update_task", "variables": {"id": task}}, timeout=60
    )
    assert (missing.status_code, missing.json()["error"]["code"]) == (400, "INVALID_VARIABLES")
    assert "projectId" in missing.json()["error"]["message"]
