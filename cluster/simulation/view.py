"""A client's view of its subscriptions, which insists on the delivery contract."""

from typing import Any

import orjson

from cluster.core import json_patch


class Violation(AssertionError):  # noqa: N818 - the word for it
    """The delivery contract did not hold."""


class View:
    """What a client knows of one subscription: feed it every message about it, in order."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[int, Any]] = {}
        """(version, data) by key; version 0 where the entry has no data yet."""
        self.statuses: dict[str, str] = {}
        self.complete = False
        """`snapshot_end` has come since the last whole reset."""
        self.token: str | None = None
        self.resets = 0
        self.changes = 0
        self.coalesced = 0
        self.invalidated: list[str] = []

    def data(self, *key: Any) -> Any:
        """The data of a key; KeyError where there is none."""
        return self.entries[orjson.dumps(list(key)).decode()][1]

    def take(self, message: dict[str, Any]) -> None:
        """Take a message about the subscription.

        Raises:
            Violation: the delivery contract forbids it here.
        """
        key = orjson.dumps(message["key"]).decode() if "key" in message else ""
        match message["type"]:
            case "snapshot":
                held = self.entries.get(key, (0, None))[0]
                if self.complete and held and message["version"] < held:
                    raise Violation(f"{key}: snapshot goes back from {held} to {message['version']}")
                self.entries[key] = (message["version"], message.get("data"))
                self.statuses[key] = message["status"]
            case "snapshot_end":
                self.complete = True
                self.token = message["position"]
            case "change":
                held, data = self.entries.get(key, (0, None))
                if message["from"] != held:
                    raise Violation(f"{key}: a change from {message['from']} while {held} is held: {message}")
                if message["version"] <= held:
                    raise Violation(f"{key}: versions must grow: {held} -> {message['version']}")
                if "patch" in message:
                    data = json_patch.apply(orjson.loads(orjson.dumps(data)), message["patch"])
                else:
                    data = message["data"]
                self.entries[key] = (message["version"], data)
                self.statuses[key] = "success"
                self.changes += 1
                self.coalesced += message["coalesced"]
            case "removed":
                held, _ = self.entries.pop(key, (0, None))
                if not held:
                    raise Violation(f"{key}: removed, but it was not held")
            case "invalidated":
                self.invalidated.append(key)
            case "reset":
                self.resets += 1
                if not key:
                    self.entries.clear()
                    self.complete = False
                else:
                    self.entries.pop(key, None)
            case "position":
                self.token = message["token"]
            case kind:
                raise Violation(f"unexpected message {kind}")
