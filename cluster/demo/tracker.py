"""The model behind the sample upstream: projects, tasks, messages, documents, posts, users, metrics and the activity feed.

Deterministic: the same seed and the same calls give the same state, ids and times (time here is a count of events, not a clock).
Every mutation returns what it broadcasts, and what it was asked for by a key says so: the member `mutation_id` of what it made. Tasks and messages are bounded, and one that must go is announced like any deletion, so that a
cache which follows the events always equals what REST answers.

It is one thing because it is one world: every kind of thing has its few mutations here. What must not live here: HTTP, sockets, when things
happen (`traffic`).
"""

from collections import deque
from random import Random
from typing import Any, NamedTuple

Json = dict[str, Any]

PROJECTS, USERS, CHANNELS, FEEDS, DOCUMENTS, DASHBOARDS = 8, 10, 4, 2, 3, 2
TASKS_AT_START, MESSAGES_AT_START, POSTS_AT_START = 6, 10, 120
MAX_TASKS, MAX_MESSAGES, MAX_POSTS = 40, 100, 2_000
ACTIVITY_LIST = 100
ACTIVITY_KEPT = 10_000
"""How far back a stream can be resumed."""
EPOCH_MS = 1_750_000_000_000
STEP_MS = 50
METRICS = ("cpu", "memory", "requests", "errors", "latency", "queue", "sessions", "throughput")
STATUSES = ("todo", "in_progress", "review", "done")
PRIORITIES = ("low", "medium", "high")
VERBS = ("Fix", "Design", "Write", "Review", "Ship", "Measure", "Refactor", "Document")
NOUNS = ("login form", "billing page", "search index", "import job", "mobile layout", "audit log", "release notes")
NAMES = ("Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Frances", "Ken", "Radia", "Tony")
WORDS = ("The", "build", "is", "green", "again", "please", "look", "at", "this", "before", "noon", "thanks", "shipped")


class Emission(NamedTuple):
    """One broadcast on one channel."""

    channel: str
    event: str
    data: Any


class RefusedError(Exception):
    """A request the tracker does not accept."""

    def __init__(self, status: int, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.details = details


class Tracker:
    """See the module."""

    def __init__(self, seed: int = 1) -> None:
        self.random = Random(seed)
        self._ticks = 0
        self._ids: dict[str, int] = {}
        self.users: dict[str, Json] = {}
        self.projects: dict[str, Json] = {}
        self.tasks: dict[str, dict[str, Json]] = {}
        """Task by id, by project."""
        self.messages: dict[str, dict[str, Json]] = {}
        """Message by id, by channel."""
        self.posts: dict[str, deque[Json]] = {}
        """Newest first, by feed."""
        self.comments: dict[str, Json] = {}
        self.documents: dict[str, Json] = {}
        self.metrics: dict[str, dict[str, Json]] = {}
        self.alerts: dict[str, deque[Json]] = {}
        self.activity: deque[Json] = deque(maxlen=ACTIVITY_KEPT)
        """Oldest first."""
        self._fill()

    # --- reading -------------------------------------------------------------------------------------------------

    def project_list(self) -> list[Json]:
        """All projects, without their tasks."""
        return list(self.projects.values())

    def project(self, project_id: str) -> Json:
        """One project with its tasks."""
        return {**self._project(project_id), "tasks": self.task_list(project_id)}

    def task_list(self, project_id: str) -> list[Json]:
        """A project's tasks, oldest first."""
        self._project(project_id)
        return list(self.tasks[project_id].values())

    def task(self, task_id: str) -> Json:
        """One task.

        Raises:
            RefusedError: 404, there is none.
        """
        for tasks in self.tasks.values():
            if task_id in tasks:
                return tasks[task_id]
        raise RefusedError(404, "NOT_FOUND", f"no task {task_id}")

    def message(self, message_id: str) -> Json:
        """One message."""
        return self._with_author(self._message(message_id))

    def message_list(self, channel_id: str) -> list[Json]:
        """A channel's messages, oldest first."""
        return [self._with_author(message) for message in self._messages(channel_id).values()]

    def post_list(self, feed_id: str, offset: int = 0, limit: int = 20) -> list[Json]:
        """A page of a feed, newest first.

        Raises:
            RefusedError: 404, there is no such feed.
        """
        posts = self.posts.get(feed_id)
        if posts is None:
            raise RefusedError(404, "NOT_FOUND", f"no feed {feed_id}")
        return [self._with_author(post) for post in list(posts)[offset : offset + limit]]

    def activity_list(self) -> list[Json]:
        """The last `ACTIVITY_LIST` activities, newest first."""
        return list(reversed(self.activity))[:ACTIVITY_LIST]

    def activity_since(self, activity_id: str) -> list[Json] | None:
        """Activities after that one, oldest first; None where it is unknown or too old."""
        if not activity_id.isdigit() or not activity_id.isascii():
            return None
        newest = int(self.activity[-1]["id"])
        missed = newest - int(activity_id)
        if missed < 0 or missed > len(self.activity):
            return None
        return list(self.activity)[len(self.activity) - missed :]

    def truth(self) -> Json:
        """Everything, as REST would answer it now."""
        return {
            "projects": {key: self.project(key) for key in self.projects},
            "tasks": {key: self.task_list(key) for key in self.projects},
            "messages": {key: self.message_list(key) for key in self.messages},
            "posts": {key: self.post_list(key, 0, MAX_POSTS) for key in self.posts},
            "users": list(self.users.values()),
            "documents": self.documents,
            "comments": list(self.comments.values()),
            "activity": self.activity_list(),
            "metrics": self.metrics,
            "alerts": {key: list(alerts) for key, alerts in self.alerts.items()},
        }

    # --- tasks and projects --------------------------------------------------------------------------------------

    def update_project(self, project_id: str, changes: Json) -> tuple[Json, list[Emission]]:
        """Change members of a project."""
        project = self._project(project_id)
        self._change(project, changes)
        return project, [Emission(f"project:{project_id}", "project:updated", dict(project))]

    def create_task(self, fields: Json) -> tuple[Json, list[Emission]]:
        """Add a task to `projectId`; the oldest goes when there are too many."""
        project_id = str(fields.get("projectId", ""))
        self._project(project_id)
        task: Json = {
            "id": self._id("t"),
            "projectId": project_id,
            "title": "Untitled",
            "status": "todo",
            "priority": "medium",
            "assigneeId": None,
            **{name: value for name, value in fields.items() if name not in ("id", "projectId")},
            "version": 1,
            "updatedAt": self._now(),
        }
        tasks = self.tasks[project_id]
        tasks[task["id"]] = task
        emissions = [Emission(f"project:{project_id}", "task:created", dict(task))]
        if len(tasks) > MAX_TASKS:
            emissions += self.delete_task(next(iter(tasks)))
        return task, [*emissions, *self._acted("created", "task", task["id"], task["title"])]

    def update_task(self, task_id: str, changes: Json) -> tuple[Json, list[Emission]]:
        """Change members of a task."""
        task = self.task(task_id)
        self._change(task, changes)
        return task, [
            Emission(f"project:{task['projectId']}", "task:updated", dict(task)),
            *self._acted("updated", "task", task_id, task["title"]),
        ]

    def delete_task(self, task_id: str, asked: Json | None = None) -> list[Emission]:
        """Remove a task."""
        task = self.task(task_id)
        project_id = task["projectId"]
        del self.tasks[project_id][task_id]
        told = {"taskId": task_id, "projectId": project_id, **_asked_by(asked or {})}
        return [
            Emission(f"project:{project_id}", "task:deleted", told),
            *self._acted("deleted", "task", task_id, task["title"]),
        ]

    # --- messages, posts, comments -------------------------------------------------------------------------------

    def create_message(self, fields: Json) -> tuple[Json, list[Emission]]:
        """Add a message to `channelId`; the oldest goes when there are too many."""
        channel_id = str(fields.get("channelId", ""))
        messages = self._messages(channel_id)
        message: Json = {
            "id": self._id("m"),
            "channelId": channel_id,
            "authorId": self._author(fields),
            "content": str(fields.get("content", "")),
            "edited": False,
            "createdAt": self._now(),
            **_asked_by(fields),
        }
        messages[message["id"]] = message
        shown = self._with_author(message)
        emissions = [Emission(f"channel:{channel_id}:messages", "message:new", shown)]
        if len(messages) > MAX_MESSAGES:
            emissions += self.delete_message(next(iter(messages)))
        return shown, [*emissions, *self._acted("posted", "message", message["id"], message["content"])]

    def update_message(self, message_id: str, changes: Json) -> tuple[Json, list[Emission]]:
        """Edit a message's content."""
        message = self._message(message_id)
        message["content"] = str(changes.get("content", message["content"]))
        message["edited"] = True
        message.update(_asked_by(changes))
        shown = self._with_author(message)
        return shown, [Emission(f"channel:{message['channelId']}:messages", "message:edited", shown)]

    def delete_message(self, message_id: str, asked: Json | None = None) -> list[Emission]:
        """Remove a message."""
        message = self._message(message_id)
        channel_id = message["channelId"]
        del self.messages[channel_id][message_id]
        told = {"id": message_id, "channelId": channel_id, **_asked_by(asked or {})}
        return [Emission(f"channel:{channel_id}:messages", "message:deleted", told)]

    def create_post(self, fields: Json) -> tuple[Json, list[Emission]]:
        """Add a post at the top of `feedId`.

        Raises:
            RefusedError: 404, there is no such feed.
        """
        feed_id = str(fields.get("feedId", ""))
        posts = self.posts.get(feed_id)
        if posts is None:
            raise RefusedError(404, "NOT_FOUND", f"no feed {feed_id}")
        post: Json = {
            "id": self._id("post-"),
            "feedId": feed_id,
            "authorId": self._author(fields),
            "content": str(fields.get("content", "")),
            "createdAt": self._now(),
        }
        posts.appendleft(post)
        shown = self._with_author(post)
        return shown, [Emission(f"feed:{feed_id}", "post:new", shown)]

    def create_comment(self, fields: Json) -> tuple[Json, list[Emission]]:
        """Add a comment to `postId`."""
        comment: Json = {
            "id": self._id("c"),
            "postId": str(fields.get("postId", "")),
            "authorId": self._author(fields),
            "content": str(fields.get("content", "")),
            "createdAt": self._now(),
        }
        self.comments[comment["id"]] = comment
        shown = self._with_author(comment)
        return shown, [Emission(f"post:{comment['postId']}:comments", "comment:created", shown)]

    def update_comment(self, comment_id: str, changes: Json) -> tuple[Json, list[Emission]]:
        """Edit a comment's content."""
        comment = self._comment(comment_id)
        comment["content"] = str(changes.get("content", comment["content"]))
        shown = self._with_author(comment)
        return shown, [Emission(f"post:{comment['postId']}:comments", "comment:updated", shown)]

    def delete_comment(self, comment_id: str, _asked: Json | None = None) -> list[Emission]:
        """Remove a comment."""
        comment = self._comment(comment_id)
        del self.comments[comment_id]
        data = {"id": comment_id, "postId": comment["postId"]}
        return [Emission(f"post:{comment['postId']}:comments", "comment:deleted", data)]

    # --- documents and users -------------------------------------------------------------------------------------

    def document(self, document_id: str) -> Json:
        """One document.

        Raises:
            RefusedError: 404, there is none.
        """
        found = self.documents.get(document_id)
        if found is None:
            raise RefusedError(404, "NOT_FOUND", f"no document {document_id}")
        return found

    def create_document(self, fields: Json) -> tuple[Json, list[Emission]]:
        """Add a document."""
        document: Json = {
            "id": self._id("d"),
            "title": str(fields.get("title", "Untitled")),
            "content": str(fields.get("content", "")),
            "version": 1,
            "lastEditedBy": self._author(fields),
        }
        self.documents[document["id"]] = document
        return document, [Emission(f"document:{document['id']}", "document:update", dict(document))]

    def update_document(self, document_id: str, changes: Json) -> tuple[Json, list[Emission]]:
        """Change a document; with `baseVersion` only from that version.

        Raises:
            RefusedError: 404, there is none; 409, it is at another version.
        """
        document = self.document(document_id)
        base = changes.pop("baseVersion", None)
        if base is not None and base != document["version"]:
            raise RefusedError(
                409, "VERSION_CONFLICT", f"the document is at version {document['version']}", current=document
            )
        document["lastEditedBy"] = self._author(changes)
        self._change(document, {name: changes[name] for name in ("title", "content") if name in changes}, timed=False)
        return document, [Emission(f"document:{document_id}", "document:update", dict(document))]

    def delete_document(self, document_id: str, _asked: Json | None = None) -> list[Emission]:
        """Remove a document."""
        self.document(document_id)
        del self.documents[document_id]
        return [Emission(f"document:{document_id}", "document:deleted", {"id": document_id})]

    def update_user(self, user_id: str, changes: Json) -> tuple[Json, list[Emission]]:
        """Change members of a user.

        Raises:
            RefusedError: 404, there is none.
        """
        user = self.users.get(user_id)
        if user is None:
            raise RefusedError(404, "NOT_FOUND", f"no user {user_id}")
        self._change(user, changes, timed=False)
        return user, [Emission("global:entities", "user:updated", dict(user))]

    def notify(self, text: str) -> list[Emission]:
        """Broadcast a notification."""
        return [Emission("notifications", "notification:new", {"id": self._id("n"), "text": text, "at": self._now()})]

    # --- metrics -------------------------------------------------------------------------------------------------

    def measure(self, dashboard_id: str, metric_id: str, value: float) -> list[Emission]:
        """Take one sample."""
        timestamp = self._sample(dashboard_id, metric_id, value)
        data = {"dashboardId": dashboard_id, "metricId": metric_id, "value": value, "timestamp": timestamp}
        return [
            Emission(f"dashboard:{dashboard_id}", "metric:update", data),
            Emission("metrics", "metric:update", data),
        ]

    def measure_all(self, dashboard_id: str, values: dict[str, float]) -> list[Emission]:
        """Take a sample of several metrics at once."""
        batch = [
            {"id": metric, "value": value, "timestamp": self._sample(dashboard_id, metric, value)}
            for metric, value in values.items()
        ]
        return [
            Emission(f"dashboard:{dashboard_id}", "metrics:batch", batch),
            Emission("metrics", "metrics:batch", batch),
        ]

    def alert(self, dashboard_id: str, metric_id: str, message: str) -> list[Emission]:
        """Raise an alert."""
        alert = {"id": self._id("alert-"), "metricId": metric_id, "message": message, "at": self._now()}
        self.alerts[dashboard_id].appendleft(alert)
        return [
            Emission(f"dashboard:{dashboard_id}", "metric:alert", alert),
            Emission("metrics", "metric:alert", alert),
        ]

    # --- inside --------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        random = self.random
        for number in range(1, USERS + 1):
            name = NAMES[(number - 1) % len(NAMES)]
            user_id = f"u{number}"
            self.users[user_id] = {"id": user_id, "name": name, "email": f"{name.lower()}@example.com", "online": True}
        for number in range(1, PROJECTS + 1):
            project_id = str(number)
            self.projects[project_id] = {
                "id": project_id,
                "name": f"Project {number}",
                "status": "active" if number % 4 else "archived",
                "ownerId": random.choice(list(self.users)),
                "progress": random.randrange(100),
                "version": 1,
                "updatedAt": self._now(),
            }
            self.tasks[project_id] = {}
            for _ in range(TASKS_AT_START):
                self.create_task({"projectId": project_id, **self.task_fields()})
        for number in range(1, CHANNELS + 1):
            self.messages[str(number)] = {}
            for _ in range(MESSAGES_AT_START):
                self.create_message({"channelId": str(number), "content": self.sentence()})
        for number in range(1, FEEDS + 1):
            self.posts[str(number)] = deque(maxlen=MAX_POSTS)
            for _ in range(POSTS_AT_START):
                self.create_post({"feedId": str(number), "content": self.sentence()})
        for number in range(1, DOCUMENTS + 1):
            document_id = str(number)
            self.documents[document_id] = {
                "id": document_id,
                "title": f"Document {number}",
                "content": self.sentence(),
                "version": 1,
                "lastEditedBy": "u1",
            }
        for number in range(1, DASHBOARDS + 1):
            dashboard_id = str(number)
            self.metrics[dashboard_id] = {}
            self.alerts[dashboard_id] = deque(maxlen=50)
            for metric in METRICS:
                self._sample(dashboard_id, metric, float(random.randrange(100)))

    def task_fields(self) -> Json:
        """Members of a plausible task."""
        random = self.random
        return {
            "title": f"{random.choice(VERBS)} the {random.choice(NOUNS)}",
            "status": random.choice(STATUSES),
            "priority": random.choice(PRIORITIES),
            "assigneeId": random.choice(list(self.users)),
        }

    def sentence(self) -> str:
        """A plausible text."""
        return " ".join(self.random.choices(WORDS, k=self.random.randint(3, 9)))

    def _now(self) -> int:
        self._ticks += 1
        return EPOCH_MS + self._ticks * STEP_MS

    def _id(self, kind: str) -> str:
        number = self._ids[kind] = self._ids.get(kind, 0) + 1
        return f"{kind}{number}"

    def _project(self, project_id: str) -> Json:
        found = self.projects.get(project_id)
        if found is None:
            raise RefusedError(404, "NOT_FOUND", f"no project {project_id}")
        return found

    def _messages(self, channel_id: str) -> dict[str, Json]:
        found = self.messages.get(channel_id)
        if found is None:
            raise RefusedError(404, "NOT_FOUND", f"no channel {channel_id}")
        return found

    def _message(self, message_id: str) -> Json:
        for messages in self.messages.values():
            if message_id in messages:
                return messages[message_id]
        raise RefusedError(404, "NOT_FOUND", f"no message {message_id}")

    def _comment(self, comment_id: str) -> Json:
        found = self.comments.get(comment_id)
        if found is None:
            raise RefusedError(404, "NOT_FOUND", f"no comment {comment_id}")
        return found

    def _author(self, fields: Json) -> str:
        author = fields.get("authorId")
        return author if author in self.users else self.random.choice(list(self.users))

    def _with_author(self, item: Json) -> Json:
        return {**item, "author": dict(self.users[item["authorId"]])}

    def _change(self, item: Json, changes: Json, *, timed: bool = True) -> None:
        item.update({name: value for name, value in changes.items() if name not in ("id", "projectId", "version")})
        if "version" in item:
            item["version"] += 1
        if timed:
            item["updatedAt"] = self._now()

    def _acted(self, verb: str, kind: str, target: str, text: str) -> list[Emission]:
        number = int(self.activity[-1]["id"]) + 1 if self.activity else 1
        item = {
            "id": str(number),
            "verb": verb,
            "kind": kind,
            "target": target,
            "text": text,
            "userId": self.random.choice(list(self.users)),
            "at": self._now(),
        }
        self.activity.append(item)
        return [Emission("activity", "activity", item)]

    def _sample(self, dashboard_id: str, metric_id: str, value: float) -> int:
        timestamp = self._now()
        metrics = self.metrics.get(dashboard_id)
        if metrics is None:
            raise RefusedError(404, "NOT_FOUND", f"no dashboard {dashboard_id}")
        metric = metrics.setdefault(metric_id, {"currentValue": value, "lastUpdated": timestamp, "history": []})
        metric["currentValue"] = value
        metric["lastUpdated"] = timestamp
        metric["history"] = [*metric["history"][-99:], {"value": value, "timestamp": timestamp}]
        return timestamp


def _asked_by(fields: Json) -> Json:
    return {"mutation_id": fields["mutation_id"]} if "mutation_id" in fields else {}
