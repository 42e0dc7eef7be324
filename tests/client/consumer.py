"""Who watches: keeps what changes tell, and insists on what they promise."""

import copy
from typing import Any

import orjson

from cluster.client import Change
from cluster.core import json_patch


class Consumer:
    """Feed it every change of one watch, in order."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.entries: dict[str, tuple[int, Any]] = {}
        """(version, data) by key; version 0 where there is no data yet."""
        self.kinds: list[str] = []
        self.coalesced = 0
        self._handed: list[tuple[Any, Any]] = []

    def take(self, change: Change) -> None:
        self.kinds.append(change.kind)
        key = orjson.dumps(change.key).decode()
        held, data = self.entries.get(key, (0, None))
        match change.kind:
            case "snapshot":
                assert change.patch is None
                self.entries[key] = (change.version, change.data)
            case "change":
                assert change.from_version == held, (change, held)
                assert change.version > held
                assert change.coalesced >= 1
                if self.mode == "patch" and held:
                    assert json_patch.apply(copy.deepcopy(data), copy.deepcopy(change.patch)) == change.data
                else:
                    assert change.patch is None
                self.entries[key] = (change.version, change.data)
                self.coalesced += change.coalesced
            case "invalidated":
                assert (change.version, change.data) == (held, data)
            case "removed":
                assert key in self.entries
                assert change.version > held
                del self.entries[key]
            case "reset" if change.key is None:
                self.entries.clear()
            case "reset":
                self.entries.pop(key, None)
            case "ready":
                assert change.key is None
        self._handed.append((change.data, copy.deepcopy(change.data)))
        self._handed.append((change.patch, copy.deepcopy(change.patch)))

    def check_nothing_was_edited(self) -> None:
        assert all(now == then for now, then in self._handed)
