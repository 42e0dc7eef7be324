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
        self.complete = False
        """`snapshot_end` has come since the last whole reset."""
        self.token: str | None = None
        self.restoring: set[str] = set()
        """Keys that were reset and whose snapshot is to come."""
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
                if self.complete and message["version"] and key not in self.restoring:
                    raise Violation(f"{key}: a snapshot of what is held: {message}")
                self.restoring.discard(key)
                self.entries[key] = (message["version"], message.get("data"))
            case "snapshot_end":
                self.complete = True
                self.token = message["position"]
            case "change":
                held, data = self.entries.get(key, (0, None))
                if message["from"] != held:
                    raise Violation(f"{key}: a change from {message['from']} while {held} is held: {message}")
                if message["version"] <= held:
                    raise Violation(f"{key}: versions must grow: {held} -> {message['version']}")
                if message["coalesced"] < 1:
                    raise Violation(f"{key}: a change folds at least one operation: {message}")
                if "patch" in message:
                    if not held:
                        raise Violation(f"{key}: a patch of what is not held: {message}")
                    data = json_patch.apply(orjson.loads(orjson.dumps(data)), message["patch"])
                else:
                    data = message["data"]
                self.entries[key] = (message["version"], data)
                self.changes += 1
                self.coalesced += message["coalesced"]
            case "removed":
                held, _ = self.entries.pop(key, (0, None))
                if not held or message["version"] <= held:
                    raise Violation(f"{key}: removed at {message['version']} while {held} is held")
            case "invalidated":
                self.invalidated.append(key)
            case "reset":
                self.resets += 1
                if not key:
                    self.entries.clear()
                    self.restoring.clear()
                    self.complete = False
                else:
                    self.entries.pop(key, None)
                    self.restoring.add(key)
            case "position":
                self.token = message["token"]
            case kind:
                raise Violation(f"unexpected message {kind}")
