import pytest

from cluster.demo.tracker import MAX_MESSAGES, MAX_TASKS, Tracker
from cluster.demo.traffic import WEIGHTS, Traffic


def test_everything_happens_and_stays_bounded():
    tracker = Tracker(3)
    traffic = Traffic(tracker)
    traffic.weigh({"user_updated": 1})
    events = {emission.event for _ in range(5000) for emission in traffic.act()}
    assert events == {
        *("task:created", "task:updated", "task:deleted", "message:new", "message:edited", "message:deleted"),
        *("metric:update", "metrics:batch", "metric:alert", "project:updated", "post:new", "user:updated"),
        *("notification:new", "activity"),
    }
    assert max(len(tasks) for tasks in tracker.tasks.values()) <= MAX_TASKS
    assert max(len(messages) for messages in tracker.messages.values()) <= MAX_MESSAGES


def test_weights_choose():
    traffic = Traffic(Tracker())
    traffic.weigh(dict.fromkeys(WEIGHTS, 0) | {"metric_update": 1})
    assert {emission.event for _ in range(50) for emission in traffic.act()} == {"metric:update"}


@pytest.mark.parametrize("weights", [{"nothing": 1}, dict.fromkeys(WEIGHTS, 0), {"post_new": -1}])
def test_impossible_weights_change_nothing(weights):
    traffic = Traffic(Tracker())
    with pytest.raises(ValueError, match=r"weights|unknown"):
        traffic.weigh(weights)
    assert traffic.weights == WEIGHTS
