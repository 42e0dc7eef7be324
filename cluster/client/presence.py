"""Presence as a client has it: the topics it is in, over connections that come and go.

What the server says is kept as it is now; a consumer is handed the difference to what it was handed last. So a slow one holds up nobody
and costs one record per member, and over a reconnect, whose listing begins anew, it sees only what differs.

A client that has joined says so again every `heartbeat_ms`. After a reconnect it first says which session it was (`hello{resume}`), so
that others do not see it leave.

What must not live here: sockets (`connection`), the reading task (`watches`).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
import orjson
from msgspec import Struct

from cluster.client.answer import error_of
from cluster.client.connection import Connection, ConnectionState
from cluster.core.presence_room import check_state, topic_of
from cluster.errors import ErrorCode, HarborError, RequestError, UnavailableError

WatchMode = Literal["members", "count"]
HEARTBEAT_S = 30.0
"""Until the server has said how often."""
EARLY = 0.8
"""Of a heartbeat's time, after which it is sent."""
LIMITED_S = 1.0
"""After which a change that came too soon after others is said again, as it is by then."""


class Member(Struct, frozen=True, kw_only=True):
    """Somebody who is present.

    Attributes:
        member: The session; what is left of a client when it reconnects in time.
        subject: Whose it is.
        state: As it says.
        last_active: Unix ms of its last word, as of when it was told.
    """

    member: str
    subject: str
    state: Any
    last_active: int


class PresenceChange(Struct, frozen=True, kw_only=True):
    """What became of a topic since the last change.

    Attributes:
        joined: Who came; with the first change everybody.
        updated: Who has another state.
        left: Who went, as they were told last.
        count: How many there are.
        is_first: It is the first of this watch.
    """

    joined: list[Member]
    updated: list[Member]
    left: list[Member]
    count: int
    is_first: bool = False


class PresenceView:
    """One topic: the server's messages in, changes out. No I/O."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.count = 0
        self._shown: dict[str, Member] = {}
        self._shown_count = -1
        self._dirty: dict[str, None] = {}
        self._pages: dict[str, Member] | None = None
        """Of a listing that is under way."""
        self._is_listed = False

    def begin(self) -> None:
        """It is watched anew: a listing is to come, and what comes before it is void."""
        self._pages = None
        self._is_listed = False

    def receive(self, message: dict[str, Any]) -> None:
        """Take a message about the topic."""
        joined = {row["member"]: Member(**row) for row in message["joined"]}
        if message.get("snapshot"):
            self._pages = {**(self._pages or {}), **joined}
            if message.get("more"):
                return
            before, self.members, self._pages = self.members, self._pages, None
            self._is_listed = True
            self._dirty.update(dict.fromkeys([*before, *self.members]))
        elif not self._is_listed:
            return
        else:
            changed = {**joined, **{row["member"]: Member(**row) for row in message["updated"]}}
            self.members.update(changed)
            for member in message["left"]:
                self.members.pop(member, None)
            self._dirty.update(dict.fromkeys([*changed, *message["left"]]))
        self.count = message["count"]

    def take(self) -> PresenceChange | None:
        """Return what has changed; None: nothing has."""
        is_first = self._shown_count < 0
        if (is_first and not self._is_listed) or (not self._dirty and self.count == self._shown_count):
            return None
        joined, updated, left = [], [], []
        for member in self._dirty:
            before, after = self._shown.pop(member, None), self.members.get(member)
            if after is not None:
                self._shown[member] = after
                if before is None:
                    joined.append(after)
                elif (before.state, before.subject) != (after.state, after.subject):
                    updated.append(after)
            elif before is not None:
                left.append(before)
        self._dirty.clear()
        if not (joined or updated or left or is_first) and self.count == self._shown_count:
            return None
        self._shown_count = self.count
        return PresenceChange(joined=joined, updated=updated, left=left, count=self.count, is_first=is_first)


class Presence(AsyncIterator[PresenceChange]):
    """A topic that a client is in, or watches, for one consumer.

    Leaving it as a context, and `aclose`, leave the topic. It ends when its client is closed. Cancelling a wait for the next change is
    safe: nothing is lost.
    """

    def __init__(self, desk: "PresenceDesk", topic: str, mode: WatchMode, state: bytes | None) -> None:
        self.topic = topic
        self._desk = desk
        self._mode = mode
        self._state = state
        self._view = PresenceView()
        self._news = asyncio.Event()
        self._error: HarborError | None = None
        self._is_over = False
        self._heartbeat_s = HEARTBEAT_S
        self._timer: asyncio.TimerHandle | None = None

    @property
    def members(self) -> dict[str, Member]:
        """Who is there, by session, as the server said last; empty where only the count is watched."""
        return self._view.members

    @property
    def count(self) -> int:
        """How many are there."""
        return self._view.count

    @property
    def me(self) -> str | None:
        """This client's own session; None before the first connection."""
        return self._desk.identity

    def update(self, state: Any) -> None:
        """Be there with another state, or join where it was only watched. Others are told within a window.

        Raises:
            RequestError: `BAD_REQUEST`, it is no JSON; `TOO_LARGE`, more than 4 KiB of it.
        """
        self._state = encoded(state)
        self._say()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> PresenceChange:
        """Return the next change.

        Raises:
            HarborError: the cluster refuses, or (`UNAVAILABLE`) was never reached.
        """
        while not self._is_over:
            change = self._view.take()
            if change is not None:
                return change
            if self._error is not None:
                self._desk.leave(self)
                raise self._error
            self._news.clear()
            await self._news.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Leave the topic."""
        self._desk.leave(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # --- for the desk ---

    @property
    def is_joined(self) -> bool:
        """Whether it is there, and not only watches."""
        return self._state is not None

    def begin(self) -> None:
        """There is a connection, on which nothing was said of this topic yet."""
        self._view.begin()
        self._say()

    def _say(self) -> None:
        if self._is_over or self._error is not None:
            return
        state = {} if self._state is None else {"state": orjson.Fragment(self._state)}
        self._desk.say(self, {"type": "presence", "topic": self.topic, "watch": self._mode, **state})
        self._again(self._heartbeat_s * EARLY if self.is_joined else None)

    def _again(self, after_s: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if after_s is None else asyncio.get_running_loop().call_later(after_s, self._say)

    def receive(self, message: dict[str, Any]) -> None:
        """Take a message about the topic."""
        self._view.receive(message)
        self._news.set()

    def answered(self, message: dict[str, Any]) -> None:
        """Take the answer to what was said."""
        if message["type"] == "error" and message.get("code") == ErrorCode.LIMITED:
            self._again(LIMITED_S)
        elif message["type"] == "error":
            self.fail(error_of(message))
        elif self.is_joined:
            self._heartbeat_s = message.get("heartbeat_ms", HEARTBEAT_S * 1000.0) / 1000.0
            self._again(self._heartbeat_s * EARLY)

    def fail(self, error: HarborError) -> None:
        """Nothing more will come."""
        self._error = error
        self._again(None)
        self._news.set()

    def end(self) -> None:
        """It was left."""
        self._is_over = True
        self._again(None)
        self._news.set()


class PresenceDesk:
    """All topics of one client. `name` gives an id for a message, `wake` has the connection made if there is none."""

    def __init__(self, connection: Connection, name: Callable[[], int], wake: Callable[[], None]) -> None:
        self._connection = connection
        self._name = name
        self._wake = wake
        self._rooms: dict[str, Presence] = {}
        self._asked: dict[int, Presence] = {}
        self.identity: str | None = None
        """Its session, over connections."""
        self._token = ""
        self._resumes = False
        self._hello = 0
        """Id of the last `hello`."""
        self._welcome: dict[str, Any] = {}
        """Of the connection as it was before that."""

    def __bool__(self) -> bool:
        return bool(self._rooms)

    def open(self, topic: str, mode: WatchMode, state: bytes | None) -> Presence:
        """Join or watch a topic.

        Raises:
            RequestError: `CONFLICT`, this client is in it already; `TOO_LARGE`; `BAD_REQUEST`.
        """
        topic_of(topic)
        if mode not in ("members", "count"):
            raise RequestError(ErrorCode.BAD_REQUEST, f"watch is members or count, got {mode!r:.60}")
        if topic in self._rooms:
            raise RequestError(ErrorCode.CONFLICT, f"this client is in the topic {topic!r} already")
        room = self._rooms[topic] = Presence(self, topic, mode, state)
        if self._connection.state is ConnectionState.CONNECTED:
            room.begin()
        else:
            self._wake()
        return room

    def say(self, room: Presence, message: dict[str, Any]) -> None:
        """Send a message about a topic, where there is a connection; else it is said when there is one."""
        if self._connection.state is ConnectionState.CONNECTED:
            name = self._name()
            self._asked[name] = room
            self._connection.send({**message, "id": name})

    def leave(self, room: Presence) -> None:
        """Leave a topic. Repeats do nothing."""
        if self._rooms.get(room.topic) is room:
            del self._rooms[room.topic]
            if self._connection.state is ConnectionState.CONNECTED:
                self._connection.send({"type": "leave", "id": self._name(), "topic": room.topic})
        room.end()

    def welcome(self, message: dict[str, Any]) -> bool:
        """A connection begins, or (returned: True) has been made that of an earlier session."""
        if self._resumes and message["session"] == self.identity:
            self._resumes = False
            return True
        self._asked.clear()
        self._resumes = bool(self._token) and any(room.is_joined for room in self._rooms.values())
        if self._resumes:
            self._hello, self._welcome = self._name(), message
            self._connection.send({"type": "hello", "id": self._hello, "resume": self._token})
        else:
            self.identity, self._token = message["session"], message["resume_token"]
        for room in self._rooms.values():
            room.begin()
        return False

    def receive(self, message: dict[str, Any]) -> None:
        """Take a message about a topic; of one that was left it is late."""
        room = self._rooms.get(message["topic"])
        if room is not None:
            room.receive(message)

    def answered(self, message: dict[str, Any]) -> bool:
        """Take the answer to something that was said. False: it is none."""
        if self._hello and message.get("re") == self._hello:  # whoever it was is forgotten: it is somebody else now
            self._hello, self._resumes = 0, False
            self.identity, self._token = self._welcome["session"], self._welcome["resume_token"]
            return True
        room = self._asked.pop(message.get("re", -1), None)
        if room is not None:
            room.answered(message)
        return room is not None

    def fail(self, error: HarborError) -> None:
        """There is no connection and there will be none."""
        for room in list(self._rooms.values()):
            room.fail(error)
        self._rooms.clear()

    def stop(self) -> None:
        """Leave all."""
        for room in list(self._rooms.values()):
            self.leave(room)


def listed(answer: dict[str, Any]) -> list[Member]:
    """Return the members of a page.

    Raises:
        UnavailableError: it is none.
    """
    try:
        return msgspec.convert(answer.get("members"), list[Member])
    except msgspec.ValidationError as error:
        raise UnavailableError(f"what answers gives no members: {error}") from error


def encoded(state: Any) -> bytes:
    """Return a state as JSON.

    One that is too long is not left to the gateway, which cannot answer a frame that it does not read.

    Raises:
        RequestError: `BAD_REQUEST`; `TOO_LARGE`.
    """
    try:
        said = orjson.dumps(state)
    except TypeError as error:
        raise RequestError(ErrorCode.BAD_REQUEST, f"not JSON: {error}") from error
    check_state(said)
    return said
