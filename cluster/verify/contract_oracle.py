"""The delivery contract as a judge: told everything that clients did and saw, it says the first thing that may not be.

A `Course` is one subscription of one client: whether what it is told follows from what it was told before. `Truth` is what all clients
together know of entries: one version is one value for everybody, versions go the way the writers counted, and no shard goes back behind
what was acknowledged. What writes come to is `write_oracle`'s.

Gateways may be behind one another, so it depends on who is asked what counts as lost: on one connection an entry never goes back, not over
a `reset` either; elsewhere only shards are held to what was acknowledged before they were asked.

Values written by the load are objects whose member `n` counts the writes of their key, which is how an old value under a new version is
found out. Pure: no clock, no I/O; what is remembered is bounded.

What must not live here: making load (`load`), connections (`watchers`).
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from enum import StrEnum
from hashlib import blake2b
from typing import Any

import orjson
from msgspec import Struct

from cluster.core import json_patch
from cluster.core.position import MAX_TOKEN_BYTES
from cluster.errors import HarborError

RECENT = 12
"""Messages of a client that a violation shows."""
KNOWN_VERSIONS = 5_000
"""Of each key; beyond it the oldest are forgotten, and not compared any more."""
SHOWN_BYTES = 400
"""Of a message in a report."""


class Rule(StrEnum):
    """What can be violated."""

    GAP = "a change starts after the version last sent: something was lost"
    DUPLICATE = "a change or snapshot of a version that was sent before"
    ORDER = "a change starts before the version last sent"
    GROWTH = "versions of an entry must grow"
    PATCH = "a patch does not apply to the value last sent"
    FOREIGN = "an entry that was not subscribed to"
    SNAPSHOT = "a snapshot that nothing announced: neither the beginning nor a reset"
    UNFINISHED = "a snapshot begins anew, or ends, where it may not"
    POSITION = "the last message about a subscription in a frame is not its position"
    TOKEN = "a position is no usable token"  # noqa: S105 - it is a sentence
    MODE = "a change without the data, or patch, of its mode"
    UNKNOWN = "a message that the protocol does not know"
    ENDED = "the subscription, or the connection, was ended for good"
    VALUE = "one version of an entry has two values"
    BACK = "a later version has an earlier value"
    LOST_WRITE = "an acknowledged write is not there"
    EXTRA_WRITE = "a write had effect more than once, or that was never made"
    LOST_UPDATE = "two conditional writes over one version were both acknowledged"
    STALE_WRITE = "a conditional write over another version than the entry's was acknowledged"
    CONFLICT = "a conditional write over the entry's version was refused"
    REPEAT = "a repeated request with one Idempotency-Key was answered otherwise"
    MUTATION = "a settled mutation is said to be otherwise"
    LOST_MUTATION = "an acknowledged mutation is not known"
    REFUSED = "a request was refused for good"
    VIEW = "after everything has come to rest, a client sees something else than what is stored"
    SILENCE = "nothing was delivered for longer than the limit"
    AGE = "deliveries are older than the limit"


class Violation(Exception):  # noqa: N818 - the word for it
    """The contract did not hold."""

    def __init__(self, rule: Rule, key: str, expected: object, got: object, recent: Sequence[str] = ()) -> None:
        super().__init__(f"{rule.value}: {key}: expected {expected}, got {got}")
        self.rule = rule
        self.key = key
        self.expected = str(expected)
        self.got = str(got)
        self.recent = list(recent)
        """The last messages of the client, oldest first."""
        self.client = ""
        """Who saw it, where it was a client that watches."""


def first_violation(raised: BaseException) -> Violation | None:
    """Return the first violation of a group, or None: there is none in it."""
    if isinstance(raised, BaseExceptionGroup):
        return next((found for each in raised.exceptions if (found := first_violation(each))), None)
    return raised if isinstance(raised, Violation) else None


class Seen(Struct, frozen=True):
    """An entry as somebody saw it."""

    version: int
    data: Any


class Truth:
    """What all clients know of entries together."""

    def __init__(self, *, is_frail: bool = False) -> None:
        """`is_frail`: writes are made that a kill may lose, so that it is no fault where what was only seen is gone."""
        self._is_frail = is_frail
        self._kept: dict[str, int] = {}
        self._deleted: dict[str, int] = {}
        """Of each key, a version over all that deletions may have removed."""
        self._versions: dict[str, list[int]] = {}
        self._values: dict[str, dict[int, tuple[bytes, int]]] = {}
        self.compared = 0
        """How many times a value was seen that had been seen before."""

    def saw(self, key: str, version: int, data: Any) -> None:
        """Somebody saw a value, or was told that it is there.

        Raises:
            Violation: `VALUE`, `BACK`.
        """
        digest = _digest(data)
        count = data.get("n") if isinstance(data, dict) else None
        number = count if isinstance(count, int) else -1
        values = self._values.setdefault(key, {})
        known = values.get(version)
        if known is not None:
            self.compared += 1
            if known[0] != digest:
                raise Violation(Rule.VALUE, key, f"n {known[1]} at version {version}, as others saw it", short(data))
            return
        versions = self._versions.setdefault(key, [])
        at = bisect_left(versions, version)
        if number >= 0:
            before = values[versions[at - 1]][1] if at else -1
            after = values[versions[at]][1] if at < len(versions) else -1
            if before > number or -1 < after < number:
                raise Violation(Rule.BACK, key, f"n from {before} on at version {version}", short(data))
        versions.insert(at, version)
        values[version] = (digest, number)
        if len(versions) > KNOWN_VERSIONS:
            del values[versions.pop(0)]

    def acknowledged(self, key: str, version: int | None) -> None:
        """A write was acknowledged at a level that no fault here takes back; None: a deletion."""
        self._kept[key] = max(self.kept(key), self._deleted[key] if version is None else version)

    def deleting(self, key: str) -> None:
        """Its only writer asks for an entry to be deleted, and has heard what came of all that it asked for before."""
        versions = self._versions.get(key)
        self._deleted[key] = versions[-1] + 1 if versions else 1

    def kept(self, key: str) -> int:
        """Return what a shard that is asked from now on has of an entry at least, until it is deleted; 0: nothing is known."""
        return self._kept.get(key, 0)

    def to_keep(self, key: str, version: int) -> int:
        """Return what is not to be lost any more once a version was seen."""
        if not self._is_frail:
            return version
        return kept if (kept := self.kept(key)) <= version else 0

    def is_lost(self, key: str, kept: int, version: int | None) -> bool:
        """Whether it may not be that an entry, of which `kept` was known before, is at a version, or (None) absent."""
        return version < kept if version is not None else self._deleted.get(key, 0) < kept

    def found(self, key: str, kept: int, version: int | None) -> None:
        """A shard said what it has of an entry; None: nothing. `kept` was known before it was asked.

        Raises:
            Violation: `LOST_WRITE`.
        """
        if self.is_lost(key, kept, version):
            got = "no entry" if version is None else f"version {version}"
            raise Violation(Rule.LOST_WRITE, key, f"version {kept} or a later one, as acknowledged", got)

    def follows(self, key: str, kept: int, version: int) -> None:
        """A write was acknowledged. `kept` was known before it was asked for.

        Raises:
            Violation: `LOST_WRITE`.
        """
        if version <= kept:
            raise Violation(Rule.LOST_WRITE, key, f"a write at a version over {kept}, as acknowledged before", version)


class Course:
    """One subscription of one client: feed it every message about it, frame by frame."""

    def __init__(self, truth: Truth, *roots: list[Any], prefix: bool, mode: str) -> None:
        """`roots`: the key or prefix; an event stream may have several, which share a token and a `reset`."""
        self._truth = truth
        self._roots = roots
        self._prefix = prefix
        self._mode = mode
        self.entries: dict[str, Seen] = {}
        self.token: str | None = None
        self.is_complete = False
        """Each `snapshot_end` has come, or a token was handed back, since the last reset."""
        self._ends = 0
        self._restoring: set[str] = set()
        self._sent: set[str] = set()
        """Entries of the snapshot under way."""
        self._before: dict[str, int] = {}
        """Versions that this connection had shown of entries before a reset, or what of them is not to be lost."""
        self._is_behind = False
        """A token was handed back, and what the connection has to say of the time since has not come yet."""
        self.resets = 0
        self.deliveries = 0
        self.recent: deque[str] = deque(maxlen=RECENT)

    def opened(self) -> str | None:
        """A subscription is asked for on a new connection. Returns the token to hand back; None: it begins from nothing."""
        self.note("(connected)")
        self._before.clear()
        self._is_behind = self.token is not None and self.is_complete
        if self._is_behind:
            return self.token
        self._forget()
        return None

    def note(self, what: str) -> None:
        """Something happened to the client that a reader of its messages should know."""
        self.recent.append(what)

    def frame(self, messages: Sequence[dict[str, Any]]) -> None:
        """Take the messages about this subscription that one frame held, in order.

        Raises:
            Violation: they may not come here.
        """
        for message in messages:
            self.recent.append(short(message))
            self._take(message)
        if messages and self.is_complete and messages[-1]["type"] not in ("position", "snapshot_end"):
            raise self._violation(Rule.POSITION, "", "position", messages[-1]["type"])

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        key = "" if "key" not in message else orjson.dumps(message["key"]).decode()
        if key and not self._covers(message["key"]):
            raise self._violation(Rule.FOREIGN, key, f"entries under {self._roots}", key)
        match kind:
            case "snapshot":
                self._snapshot(key, message)
            case "snapshot_end":
                if self.is_complete:
                    raise self._violation(Rule.UNFINISHED, key, "no second end of the snapshot", kind)
                self._ends += 1
                self.is_complete = self._ends == len(self._roots)
                if self.is_complete:
                    self._sent = set()
                    self._missing()
                self._position(message.get("position"))
            case "change":
                self._change(key, message)
            case "removed":
                held = self.entries.pop(key, None)
                self._before.pop(key, None)
                if held is None or message["version"] <= held.version:
                    expected = "an entry that was sent" if held is None else f"a version over {held.version}"
                    raise self._violation(Rule.GROWTH, key, expected, f"removed at {message['version']}")
                self.deliveries += 1
            case "invalidated":
                pass
            case "reset":
                self.resets += 1
                if not self._is_behind:
                    for each in [key] if key else self.entries:
                        if held := self.entries.get(each):
                            self._before[each] = self._truth.to_keep(each, held.version)
                if key:
                    self.entries.pop(key, None)
                    self._restoring.add(key)
                else:
                    self._forget()
                    self._is_behind = False
            case "position":
                self._position(message.get("token"))
                self._is_behind = False
            case "error":
                raise self._violation(Rule.ENDED, key, "a subscription", short(message))
            case "notice":
                pass
            case _:
                raise self._violation(Rule.UNKNOWN, key, "a message of harbor.v1", kind)

    def _covers(self, key: list[Any]) -> bool:
        return any(key[: len(root)] == root for root in self._roots) if self._prefix else key in self._roots

    def _snapshot(self, key: str, message: dict[str, Any]) -> None:
        if key in self._restoring:
            self._restoring.discard(key)
        elif self.is_complete:
            raise self._violation(Rule.SNAPSHOT, key, "a change, or a reset before", f"snapshot {message['version']}")
        elif key in self._sent:
            raise self._violation(Rule.DUPLICATE, key, "one snapshot of an entry", f"another at {message['version']}")
        self._sent.add(key)
        before = self._before.get(key, 0)
        if self._truth.is_lost(key, before, message["version"]):
            expected = f"version {before} or a later one, as before the reset"
            raise self._violation(Rule.LOST_WRITE, key, expected, f"snapshot {message['version']}")
        self._hold(key, message["version"], message.get("data"))

    def _missing(self) -> None:
        """A snapshot is whole: what was written and shown before is in it, if nobody deleted it."""
        for key, before in self._before.items():
            if key not in self.entries and self._truth.kept(key) and self._truth.is_lost(key, before, None):
                expected = f"version {before} or a later one, as before the reset"
                raise self._violation(Rule.LOST_WRITE, key, expected, "no snapshot of it")

    def _change(self, key: str, message: dict[str, Any]) -> None:
        start, version = message["from"], message["version"]
        held = self.entries.get(key)
        holds = 0 if held is None else held.version
        if start != holds:
            rule = Rule.GAP if start > holds else Rule.DUPLICATE if version <= holds else Rule.ORDER
            raise self._violation(rule, key, f"a change from {holds}", f"{start} to {version}")
        if version <= holds:
            raise self._violation(Rule.GROWTH, key, f"a version over {holds}", version)
        if "patch" in message and self._mode == "patch" and held is not None:
            try:
                data = json_patch.apply(orjson.loads(orjson.dumps(held.data)), message["patch"])
            except (HarborError, ValueError, KeyError, TypeError) as error:
                raise self._violation(Rule.PATCH, key, f"a patch of version {holds}", error) from error
        elif "data" in message and (self._mode == "data" or held is None):
            data = message["data"]
        else:
            raise self._violation(Rule.MODE, key, f"mode {self._mode}", sorted(message))
        self._hold(key, version, data)

    def _hold(self, key: str, version: int, data: Any) -> None:
        self.entries[key] = Seen(version, data)
        self.deliveries += 1
        try:
            self._truth.saw(key, version, data)
        except Violation as violation:
            violation.recent = list(self.recent)
            raise

    def _position(self, token: Any) -> None:
        if not isinstance(token, str) or not 0 < len(token.encode()) <= MAX_TOKEN_BYTES:
            raise self._violation(Rule.TOKEN, "", f"text of 1 to {MAX_TOKEN_BYTES} bytes", short(token))
        self.token = token

    def _forget(self) -> None:
        """Begin from nothing."""
        self.entries.clear()
        self._restoring.clear()
        self._sent = set()
        self.is_complete = False
        self._ends = 0
        self.token = None

    def _violation(self, rule: Rule, key: str, expected: object, got: object) -> Violation:
        return Violation(rule, key or orjson.dumps(self._roots[0]).decode(), expected, got, list(self.recent))

    def rest(self, key: str, stored: Seen | None) -> None:
        """Compare with what is stored, after everything has come to rest.

        Raises:
            Violation: `VIEW`.
        """
        held = self.entries.get(key)
        if held != stored:
            raise self._violation(Rule.VIEW, key, _shown(stored), _shown(held))


def _digest(data: Any) -> bytes:
    return blake2b(orjson.dumps(data, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def short(value: Any) -> str:
    """Return a value as a report shows it."""
    try:
        text = orjson.dumps(value).decode()
    except TypeError:
        text = str(value)
    return text if len(text) <= SHOWN_BYTES else f"{text[:SHOWN_BYTES]}..."


def _shown(entry: Seen | None) -> str:
    return "no entry" if entry is None else f"version {entry.version}: {short(entry.data)}"
