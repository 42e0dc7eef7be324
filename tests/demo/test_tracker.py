import pytest

from cluster.demo.tracker import MAX_MESSAGES, MAX_TASKS, Emission, RefusedError, Tracker
from cluster.demo.traffic import Traffic


def test_the_same_seed_gives_the_same_world():
    def run(seed):
        tracker = Tracker(seed)
        traffic = Traffic(tracker)
        return [traffic.act() for _ in range(500)], tracker.truth()

    assert run(7) == run(7)
    assert run(7) != run(8)


def test_a_task_comes_changes_and_goes():
    tracker = Tracker()
    before = len(tracker.task_list("1"))
    task, emissions = tracker.create_task({"projectId": "1", "title": "T", "id": "mine"})
    assert task["id"] != "mine"
    assert emissions[0] == Emission("project:1", "task:created", task)
    assert emissions[1].channel == "activity"
    assert tracker.project("1")["tasks"][-1] == task
    changed, emissions = tracker.update_task(task["id"], {"status": "done", "id": "x", "projectId": "2"})
    assert (changed["status"], changed["version"], changed["id"], changed["projectId"]) == ("done", 2, task["id"], "1")
    assert emissions[0].event == "task:updated"
    emissions = tracker.delete_task(task["id"])
    assert emissions[0] == Emission("project:1", "task:deleted", {"taskId": task["id"], "projectId": "1"})
    assert len(tracker.task_list("1")) == before
    with pytest.raises(RefusedError) as caught:
        tracker.delete_task(task["id"])
    assert caught.value.status == 404


def test_what_a_bound_removes_is_announced():
    tracker = Tracker()
    held = {task["id"] for task in tracker.task_list("1")}
    for _ in range(MAX_TASKS + 5):
        for emission in tracker.create_task({"projectId": "1"})[1]:
            if emission.event == "task:created":
                held.add(emission.data["id"])
            elif emission.event == "task:deleted":
                held.remove(emission.data["taskId"])
    assert len(held) == MAX_TASKS
    assert held == {task["id"] for task in tracker.task_list("1")}
    for _ in range(MAX_MESSAGES + 1):
        tracker.create_message({"channelId": "1", "content": "x"})
    assert len(tracker.message_list("1")) == MAX_MESSAGES


def test_activity_can_be_resumed():
    tracker = Tracker()
    newest = tracker.activity_list()[0]["id"]
    tracker.create_message({"channelId": "1"})
    tracker.create_task({"projectId": "1"})
    assert [item["kind"] for item in tracker.activity_since(newest)] == ["message", "task"]
    assert tracker.activity_since(tracker.activity_list()[0]["id"]) == []
    assert tracker.activity_since("999999") is None
    assert tracker.activity_since("x") is None


def test_a_document_knows_its_version():
    tracker = Tracker()
    document, emissions = tracker.update_document("1", {"content": "a", "baseVersion": 1})
    assert (document["version"], emissions[0].data["content"]) == (2, "a")
    with pytest.raises(RefusedError) as caught:
        tracker.update_document("1", {"content": "b", "baseVersion": 1})
    assert (caught.value.status, caught.value.code, caught.value.details["current"]["version"]) == (
        409,
        "VERSION_CONFLICT",
        2,
    )


def test_authors_are_shown_as_they_are_now():
    tracker = Tracker()
    message, _ = tracker.create_message({"channelId": "1", "authorId": "u3"})
    _, emissions = tracker.update_user("u3", {"name": "New"})
    assert emissions == [Emission("global:entities", "user:updated", tracker.users["u3"])]
    assert message["author"]["name"] != "New"
    assert tracker.message_list("1")[-1]["author"]["name"] == "New"


def test_metrics_keep_a_hundred_samples():
    tracker = Tracker()
    for number in range(150):
        emissions = tracker.measure("1", "cpu", float(number))
    assert [emission.channel for emission in emissions] == ["dashboard:1", "metrics"]
    metric = tracker.metrics["1"]["cpu"]
    assert [sample["value"] for sample in metric["history"]] == list(range(50, 150))
    assert metric["currentValue"] == 149
    tracker.measure_all("1", {"cpu": 1.0, "memory": 2.0})
    assert tracker.metrics["1"]["memory"]["currentValue"] == 2.0
