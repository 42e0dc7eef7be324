"""What happens in the tracker by itself: a weighted choice of actions, one per call, decided by the tracker's seed alone.

What must not live here: when (`upstream` paces it).
"""

from collections.abc import Callable, Mapping

from cluster.demo.tracker import METRICS, STATUSES, Emission, Tracker

WEIGHTS: Mapping[str, float] = {
    "task_updated": 22,
    "task_created": 9,
    "task_deleted": 8,
    "message_new": 20,
    "message_edited": 6,
    "message_deleted": 3,
    "metric_update": 20,
    "metrics_batch": 3,
    "metric_alert": 1,
    "project_updated": 3,
    "post_new": 3,
    "notification": 1,
    "user_updated": 0,
}
"""Relative. Users do not change by themselves: they occur inside other data, which only entity rules keep current."""
FEWEST_TASKS, FEWEST_MESSAGES = 3, 3


class Traffic:
    """Lets things happen in a tracker."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._actions: dict[str, Callable[[], list[Emission]]] = {
            "task_updated": self._update_task,
            "task_created": self._create_task,
            "task_deleted": self._delete_task,
            "message_new": self._post_message,
            "message_edited": self._edit_message,
            "message_deleted": self._delete_message,
            "metric_update": self._measure,
            "metrics_batch": self._measure_all,
            "metric_alert": self._alert,
            "project_updated": self._update_project,
            "post_new": self._post,
            "notification": self._notify,
            "user_updated": self._update_user,
        }
        self.weights = dict(WEIGHTS)

    def weigh(self, weights: Mapping[str, float]) -> None:
        """Replace some weights.

        Raises:
            ValueError: no such action, or nothing would be left to happen.
        """
        unknown = set(weights) - set(self._actions)
        if unknown:
            raise ValueError(f"unknown actions: {', '.join(sorted(unknown))}")
        changed = {**self.weights, **weights}
        if min(changed.values()) < 0 or not sum(changed.values()):
            raise ValueError("weights must not be negative, nor all 0")
        self.weights = changed

    def act(self) -> list[Emission]:
        """Let one thing happen."""
        (name,) = self._tracker.random.choices(list(self.weights), list(self.weights.values()))
        return self._actions[name]()

    def _update_task(self) -> list[Emission]:
        tracker = self._tracker
        tasks = tracker.tasks[self._pick(tracker.projects)]
        if not tasks:
            return self._create_task()
        return tracker.update_task(self._pick(tasks), {"status": tracker.random.choice(STATUSES)})[1]

    def _create_task(self) -> list[Emission]:
        tracker = self._tracker
        return tracker.create_task({"projectId": self._pick(tracker.projects), **tracker.task_fields()})[1]

    def _delete_task(self) -> list[Emission]:
        tracker = self._tracker
        tasks = tracker.tasks[self._pick(tracker.projects)]
        return tracker.delete_task(self._pick(tasks)) if len(tasks) > FEWEST_TASKS else self._create_task()

    def _post_message(self) -> list[Emission]:
        tracker = self._tracker
        return tracker.create_message({"channelId": self._pick(tracker.messages), "content": tracker.sentence()})[1]

    def _edit_message(self) -> list[Emission]:
        tracker = self._tracker
        messages = tracker.messages[self._pick(tracker.messages)]
        if not messages:
            return self._post_message()
        return tracker.update_message(self._pick(messages), {"content": tracker.sentence()})[1]

    def _delete_message(self) -> list[Emission]:
        tracker = self._tracker
        messages = tracker.messages[self._pick(tracker.messages)]
        return tracker.delete_message(self._pick(messages)) if len(messages) > FEWEST_MESSAGES else self._post_message()

    def _measure(self) -> list[Emission]:
        tracker = self._tracker
        return tracker.measure(self._pick(tracker.metrics), tracker.random.choice(METRICS), self._value())

    def _measure_all(self) -> list[Emission]:
        return self._tracker.measure_all(self._pick(self._tracker.metrics), {name: self._value() for name in METRICS})

    def _alert(self) -> list[Emission]:
        metric = self._tracker.random.choice(METRICS)
        return self._tracker.alert(self._pick(self._tracker.metrics), metric, f"{metric} is over its threshold")

    def _update_project(self) -> list[Emission]:
        tracker = self._tracker
        return tracker.update_project(self._pick(tracker.projects), {"progress": tracker.random.randrange(101)})[1]

    def _post(self) -> list[Emission]:
        tracker = self._tracker
        return tracker.create_post({"feedId": self._pick(tracker.posts), "content": tracker.sentence()})[1]

    def _notify(self) -> list[Emission]:
        return self._tracker.notify(self._tracker.sentence())

    def _update_user(self) -> list[Emission]:
        tracker = self._tracker
        return tracker.update_user(self._pick(tracker.users), {"online": tracker.random.random() < 0.5})[1]

    def _pick(self, choices: Mapping[str, object]) -> str:
        return self._tracker.random.choice(list(choices))

    def _value(self) -> float:
        return round(self._tracker.random.random() * 100, 2)
