"""What has happened to the cluster lately: notices made of the difference between one description of it and the next.

Clients are told what concerns their subscriptions, while they are there; this is for who comes to look afterwards. Codes are those of
the notices that clients get, where there is one.

What must not live here: notices to clients (`gateway_state`), logs (`cluster.observability`).
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any

KEPT = 200
KINDS = ("shard", "coordinator", "ingestor", "gateway")
_SOURCES = {
    "connected": ("success", "source_restored", "the stream {name} is connected"),
    "reconnecting": ("warning", "source_disconnected", "the stream {name} is interrupted"),
    "disconnected": ("warning", "source_disconnected", "the stream {name} asked not to be connected to again"),
    "failed": ("error", "source_failed", "the stream {name} cannot be reached; it is tried again"),
}
"""By the state a source has come to: level, code, text."""
Said = tuple[str, str, str]
"""(level, code, message)."""


class Chronicle:
    """See the module."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._number = 0
        self._before: Mapping[str, Any] | None = None
        self._offline: set[str] = set()
        self._lives: dict[str, tuple[Any, Any]] = {}
        """(process, epoch) by actor, as last known: of one that is being made anew nothing is, for a while."""

    def look(self, described: Mapping[str, Any], offline: Collection[str], now_ms: float) -> None:
        """Compare how the cluster is with how it was; `offline`: services that cannot be reached."""
        before, self._before = self._before, described
        if before is not None:
            for said in (*_sources(before, described), *_standbys(before, described), *_whole(before, described)):
                self._note(said, now_ms)
        for said in list(self._actors(described, is_first=before is None)):
            self._note(said, now_ms)
        for service in sorted(set(offline) ^ self._offline):
            if service in offline:
                self._note(("warning", "service_offline", f"the service {service} cannot be reached"), now_ms)
            else:
                self._note(("success", "service_online", f"the service {service} is back"), now_ms)
        self._offline = set(offline)

    def _actors(self, described: Mapping[str, Any], *, is_first: bool) -> Iterator[Said]:
        there = {f"{kind}-{each['id']}": each for kind in KINDS for each in described[f"{kind}s"]}
        for actor, each in there.items():
            pid, epoch = each.get("pid"), each.get("epoch")
            held = self._lives.get(actor)
            if held is None and not is_first:
                yield "info", "actor_added", f"{actor} has been added"
            elif held is not None and epoch and held[1] and epoch != held[1]:
                yield "warning", "shard_restarted", f"{actor} leads anew (epoch {epoch})"
            elif held is not None and pid and held[0] and pid != held[0]:
                yield "warning", "actor_restarted", f"{actor} runs as another process ({pid})"
            before = held or (None, None)
            self._lives[actor] = (pid or before[0], epoch or before[1])
        for gone in [actor for actor in self._lives if actor not in there]:
            del self._lives[gone]
            yield "info", "actor_removed", f"{gone} has been taken away"

    def _note(self, said: Said, now_ms: float) -> None:
        level, code, message = said
        self._number += 1
        self._kept.appendleft(
            {"number": self._number, "time": int(now_ms), "level": level, "code": code, "message": message}
        )

    def newest(self) -> list[dict[str, Any]]:
        """Return what is kept, newest first."""
        return list(self._kept)


def _sources(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Said]:
    known = {each["name"]: each for each in before["sources"]}
    for each in after["sources"]:
        earlier, state = known.get(each["name"], each), each["state"]
        held = earlier["state"]
        if state == held == "connected" and each.get("reconnects", 0) > earlier.get("reconnects", 0):
            yield "success", "source_restored", f"the stream {each['name']} was interrupted, and is connected again"
        if state == held or state not in _SOURCES or (held == "connecting" and state == "connected"):
            continue
        level, code, text = _SOURCES[state]
        reason = f": {each['reason']}" if each.get("reason") and level != "success" else ""
        yield level, code, text.format(name=each["name"]) + reason


def _standbys(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Said]:
    held = {each["id"]: each["standby"]["in_sync"] for each in before["shards"] if each.get("standby")}
    for each in after["shards"]:
        standby = each.get("standby")
        if not standby or held.get(each["id"], standby["in_sync"]) == standby["in_sync"]:
            continue
        if standby["in_sync"]:
            yield "success", "standby_in_sync", f"the standby of shard-{each['id']} has everything"
        else:
            yield "warning", "standby_behind", f"the standby of shard-{each['id']} does not have everything"


def _whole(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Said]:
    if before["ready"] and not after["ready"]:
        yield "error", "not_ready", f"the cluster waits for {', '.join(after['waits_for'])}"
    elif after["ready"] and not before["ready"]:
        yield "success", "ready", "the cluster is ready"
