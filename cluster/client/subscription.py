"""A subscription as its client sees it: the server's messages in, changes out. No I/O.

Two things stand between what arrives and what a consumer is handed.

*The delivery contract.* Each change starts from the version last told, each reconnect continues from the last token. `Course` holds
the two and says of every message whether it fits. One that does not means that something was lost: the subscription begins anew, and
its consumer is told `reset`.

*The consumer's pace.* The socket is shared, so it is read whether this consumer takes its changes or not. Up to `backlog` of them wait
as they came. Beyond that what comes folds into what waits for the same entry: the latest value wins, patches join while they are
short. So what waits is bounded by `backlog` and the number of entries, and per entry the order is kept.

In patch mode the value held is edited in place, and must not be seen to change by who was handed it. It is copied when it is handed
out, and before an edit when something that waits refers to it and is not replaced by the edit: once per change that is taken, not once
per patch that arrives.

What must not live here: sockets, reconnecting (`connection`), waiting for changes (`watches`).
"""

from collections import OrderedDict
from enum import Enum
from typing import Any, Literal

import orjson
from msgspec import Struct

from cluster.core import json_patch
from cluster.core.outbox import MAX_MUTATIONS
from cluster.core.position import MAX_TOKEN_BYTES
from cluster.errors import ErrorCode, HarborError

Mode = Literal["data", "patch"]
Kind = Literal["snapshot", "change", "invalidated", "removed", "reset", "ready"]
BACKLOG = 256
"""Changes that wait for a slow consumer one by one: some 20 s of one entry that changes in every window. What comes beyond folds."""
MAX_FOLDED_BYTES = 64 * 1024
"""Of the patches of one waiting change; beyond it the value replaces them, as on the server where they outgrow it."""


class Change(Struct, frozen=True, kw_only=True):
    """One step of what a watcher should show.

    Attributes:
        kind: `snapshot`: an entry in full. `change`: its next value. `invalidated`: it is out of date, a change follows if it is fetched
            anew. `removed`: it is gone. `reset`: changes may have been lost; forget what you show, of `key` or (None) all of it, it
            comes anew. `ready`: every matching entry has been told.
        key: The entry's; None for `ready` and a `reset` of everything.
        data: The whole current value in both modes; None where there is none yet (`status` tells that from null), and for `removed`,
            `reset` and `ready`. It is not changed later.
        version: The entry's version after this step; 0: it never had data.
        from_version: The version told before; 0: the entry is new to this watch.
        patch: In patch mode, RFC 6902 from `from_version` to `version`; None where the entry is new, and for other kinds.
        coalesced: Operations folded into a `change`.
        mutations: Ids of the mutations that came into a `change`, or left it.
        status: Of a `snapshot` and a `change`: `pending`, `success` or `error`.
        is_stale: A reader should rather have it fetched.
        is_offline: Of a `snapshot`: the service it is fetched from cannot be reached.
        data_updated_at: Unix ms; only with a `snapshot`, else None.
        error: `{code, message, temporary}` where the fetch failed that a `snapshot` tells of.
    """

    kind: Kind
    key: list[Any] | None = None
    data: Any = None
    version: int = 0
    from_version: int = 0
    patch: list[Any] | None = None
    coalesced: int = 0
    mutations: tuple[str, ...] = ()
    status: str | None = None
    is_stale: bool = False
    is_offline: bool = False
    data_updated_at: int | None = None
    error: dict[str, Any] | None = None


class Fit(Enum):
    """How a message fits what was told before."""

    TAKE = "take"
    DROP = "drop"
    """It was told before."""
    MISFIT = "misfit"
    """Something is missing between: subscribe anew."""


class Course:
    """How far a subscription has come: its token, and the version of each entry it was told of."""

    __slots__ = ("_begun", "_key", "_mode", "_prefix", "_since", "versions")

    def __init__(self, key: list[Any], *, prefix: bool, mode: str) -> None:
        self._key = key
        self._prefix = prefix
        self._mode = mode
        self._since: str | None = None
        self._begun = False
        self.versions: dict[bytes, int] = {}
        """By the key as JSON."""

    @property
    def lost(self) -> bool:
        """Whether `request` would begin anew though something was told: who was told has to forget it."""
        return self._since is None and self._begun

    def request(self, name: int) -> dict[str, Any]:
        """Return the `subscribe` that continues from here, or begins anew where there is nothing to continue from."""
        message = {"type": "subscribe", "id": name, "prefix" if self._prefix else "key": self._key, "mode": self._mode}
        if self._since is not None:
            return {**message, "since": self._since}
        self._begun = False
        self.versions.clear()
        return message

    def give_up(self) -> None:
        """What is held is not what the server thinks is held."""
        self._begun = True
        self._since = None

    def refused(self, code: str) -> bool:
        """A `request` was answered by an error. Returns whether that may be due to its token, so that another, from the start, is worth it."""
        if code != ErrorCode.BAD_REQUEST or self._since is None:
            return False
        self.give_up()
        return True

    def receive(self, message: dict[str, Any]) -> Fit:
        """Note a message about the subscription; after `MISFIT` nothing more of it counts until `request`."""
        key = orjson.dumps(message.get("key"))
        self._begun = True
        match message["type"]:
            case "snapshot":
                self.versions[key] = message["version"]
            case "change":
                held = self.versions.get(key, 0)
                if message["from"] != held:
                    if message["version"] <= held:
                        return Fit.DROP
                    self.give_up()
                    return Fit.MISFIT
                self.versions[key] = message["version"]
            case "removed":
                if self.versions.pop(key, None) is None:
                    return Fit.DROP
            case "reset" if "key" in message:
                self.versions.pop(key, None)
            case "reset":
                self.versions.clear()
                self._since = None
            case "snapshot_end":
                self._continue(message["position"])
            case "position":
                self._continue(message["token"])
            case _:
                pass
        return Fit.TAKE

    def _continue(self, token: str) -> None:
        # One too long is not taken back by the server.
        self._since = token if len(token) <= MAX_TOKEN_BYTES else None


class _Waiting:
    """A change that is yet to be taken."""

    __slots__ = (
        "base",
        "coalesced",
        "data",
        "error",
        "is_offline",
        "is_stale",
        "key",
        "kind",
        "mutations",
        "patch",
        "patch_bytes",
        "sole",
        "status",
        "updated_at",
        "version",
    )

    def __init__(self, kind: Kind, key: list[Any] | None, base: int | None, version: int) -> None:
        self.kind = kind
        self.key = key
        self.base = base
        """The version the consumer holds when it comes to this; None: it has not heard of the entry."""
        self.version = version
        self.data: Any = None
        self.patch: list[Any] | None = None
        """None: the value replaces what was."""
        self.patch_bytes: int | None = None
        """Not counted before something folds into it."""
        self.coalesced = 0
        self.mutations: tuple[str, ...] = ()
        self.status: str | None = None
        self.is_stale = False
        self.is_offline = False
        self.updated_at: int | None = None
        self.error: dict[str, Any] | None = None
        self.sole = True
        """Nothing else that waits refers to `data`."""


class Subscription:
    """See the module. One key or prefix; feed it every message about it, in order."""

    def __init__(self, key: list[Any], *, prefix: bool = False, mode: Mode = "data", backlog: int = BACKLOG) -> None:
        """`backlog`: how many changes wait one by one before they fold, at least 1."""
        self._course = Course(key, prefix=prefix, mode=mode)
        self._patches = mode == "patch"
        self._backlog = backlog
        self._values: dict[bytes, Any] = {}
        self._waiting: OrderedDict[int, _Waiting] = OrderedDict()
        self._last: dict[bytes, int] = {}
        """The number of the last change that waits for a key."""
        self._number = 0

    def __len__(self) -> int:
        """Changes that wait to be taken."""
        return len(self._waiting)

    def request(self, name: int) -> dict[str, Any]:
        """Return the message that subscribes under a name, continuing where that is possible; else a `reset` is to be taken."""
        if self._course.lost:
            self._reset()
        return self._course.request(name)

    def refused(self, code: str) -> bool:
        """The request was refused. Returns whether to subscribe with a new one: a cluster may have lost the secret that tokens are signed with."""
        return self._course.refused(code)

    def receive(self, message: dict[str, Any]) -> bool:
        """Take a message about the subscription. False: it does not fit; unsubscribe, and subscribe with a new `request`.

        Raises:
            KeyError: the message lacks a member of its type.
        """
        name = message.get("key")
        key = orjson.dumps(name)
        base = self._course.versions.get(key)
        fit = self._course.receive(message)
        if fit is not Fit.TAKE:
            return fit is Fit.DROP
        match message["type"]:
            case "snapshot":
                self._values[key] = message.get("data")
                self._snapshot(key, base, message)
            case "change":
                return self._change(key, base, message)
            case "invalidated":
                self._invalidated(key, name, base)
            case "removed":
                self._values.pop(key, None)
                self._removed(key, name, base, message["version"])
            case "reset" if name is None:
                self._reset()
            case "reset":
                self._values.pop(key, None)
                waiting = self._folding(key)
                if waiting is None:
                    self._wait(key, _Waiting("reset", name, base, 0))
                else:
                    self._become(waiting, "reset", 0)
            case "snapshot_end":
                self._wait(None, _Waiting("ready", None, 0, 0))
            case _:
                pass
        return True

    def take(self) -> Change | None:
        """Return the next change; None where none waits."""
        if not self._waiting:
            return None
        number, waiting = self._waiting.popitem(last=False)
        data, patch = waiting.data, None
        if waiting.key is not None:
            key = orjson.dumps(waiting.key)
            if self._last.get(key) == number:
                del self._last[key]
            if self._patches and self._values.get(key) is data:
                data = _copy(data)  # what is held will be edited
        if self._patches and waiting.kind == "change" and waiting.base:
            whole = [{"op": "replace", "path": "", "value": data}]
            patch = whole if waiting.patch is None else waiting.patch
        return Change(
            kind=waiting.kind,
            key=waiting.key,
            data=data,
            version=waiting.version,
            from_version=waiting.base or 0,
            patch=patch,
            coalesced=waiting.coalesced,
            mutations=waiting.mutations,
            status=waiting.status,
            is_stale=waiting.is_stale,
            is_offline=waiting.is_offline,
            data_updated_at=waiting.updated_at,
            error=waiting.error,
        )

    # --- what messages do ----------------------------------------------------------------------------------------

    def _snapshot(self, key: bytes, base: int | None, message: dict[str, Any]) -> None:
        waiting = self._folding(key)
        if waiting is None:
            waiting = self._wait(key, _Waiting("snapshot", message["key"], base, 0))
        self._become(waiting, "snapshot", message["version"])
        waiting.data, waiting.sole = self._values[key], True
        waiting.status = message.get("status", "success")
        waiting.is_stale = message.get("is_stale", False)
        waiting.is_offline = message.get("is_offline", False)
        waiting.updated_at = message.get("data_updated_at")
        waiting.error = message.get("error")

    def _change(self, key: bytes, base: int | None, message: dict[str, Any]) -> bool:
        waiting = self._folding(key)
        patch = message.get("patch")
        if patch is None:
            self._values[key] = message["data"]
        else:
            value = self._values.get(key)
            number = self._last.get(key)
            if number is not None and not (waiting is not None and waiting.sole):
                value = _copy(value)
            try:
                # Copied: what it adds becomes part of the value, which later patches edit.
                self._values[key] = json_patch.apply(value, _copy(patch), max_copied_bytes=None)
            except HarborError:
                self._course.give_up()
                return False
        if waiting is None:
            waiting = self._wait(key, _Waiting("change", message["key"], base, 0))
            waiting.patch = patch
        else:
            self._join(waiting, patch)
            if waiting.kind != "snapshot":
                waiting.kind = "change"
        waiting.version = message["version"]
        waiting.data, waiting.sole = self._values[key], True
        waiting.coalesced += message.get("coalesced", 1)
        if named := message.get("mutations"):
            waiting.mutations = tuple(dict.fromkeys((*waiting.mutations, *named)))[-MAX_MUTATIONS:]
        waiting.status, waiting.is_stale, waiting.is_offline, waiting.error = "success", False, False, None
        return True

    def _invalidated(self, key: bytes, name: Any, base: int | None) -> None:
        waiting = self._folding(key)
        if waiting is None:
            alone = key not in self._last
            waiting = self._wait(key, _Waiting("invalidated", name, base, base or 0))
            waiting.data, waiting.sole = self._values.get(key), alone
        waiting.is_stale = True

    def _removed(self, key: bytes, name: Any, base: int | None, version: int) -> None:
        waiting = self._folding(key)
        if waiting is None:
            self._wait(key, _Waiting("removed", name, base, version))
        elif waiting.base is not None:
            self._become(waiting, "removed", version)
        else:  # who has not heard of it need not hear that it is gone
            del self._waiting[self._last.pop(key)]

    def _reset(self) -> None:
        self._values.clear()
        self._waiting.clear()
        self._last.clear()
        self._wait(None, _Waiting("reset", None, 0, 0))

    # --- what waits ----------------------------------------------------------------------------------------------

    def _wait(self, key: bytes | None, waiting: _Waiting) -> _Waiting:
        self._number += 1
        self._waiting[self._number] = waiting
        if key is not None:
            self._last[key] = self._number
        return waiting

    def _folding(self, key: bytes) -> _Waiting | None:
        """Return what a change of this key folds into; None: it waits by itself."""
        number = self._last.get(key)
        return None if number is None or len(self._waiting) < self._backlog else self._waiting[number]

    @staticmethod
    def _become(waiting: _Waiting, kind: Kind, version: int) -> None:
        """Say something else about the same entry; what the consumer held before stays."""
        waiting.kind, waiting.version = kind, version
        waiting.data = waiting.patch = waiting.patch_bytes = waiting.status = waiting.updated_at = waiting.error = None
        waiting.coalesced, waiting.mutations, waiting.is_stale, waiting.is_offline = 0, (), False, False

    @staticmethod
    def _join(waiting: _Waiting, patch: list[Any] | None) -> None:
        """Add a patch to those of a waiting change, unless they get too long."""
        if waiting.kind == "invalidated":
            waiting.patch, waiting.patch_bytes = patch, None
            return
        if patch is None or waiting.patch is None:
            waiting.patch = None
            return
        held = waiting.patch_bytes
        size = (len(orjson.dumps(waiting.patch)) if held is None else held) + len(orjson.dumps(patch))
        waiting.patch_bytes = size
        waiting.patch = [*waiting.patch, *patch] if size <= MAX_FOLDED_BYTES else None


def _copy(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value))
