"""Dialects: how upstreams that speak a protocol of their own over WebSocket are joined, and what their frames say.

A `Conversation` is one connection's: it is told what was heard and says what to answer, so it needs no socket. Plain JSON envelopes need none,
and take the short way (`ingestion_state.receive`). Another dialect is another class here and a name in `DIALECTS`.

What must not live here: sockets and reconnecting (`cluster.sources`), what an event means (`rule`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Raw, Struct

from cluster.core.feed import EventId
from cluster.core.rule import Envelope, FrameFault, held_id

DIALECTS: dict[str, tuple[str, ...]] = {
    "websocket": ("json", "ndjson", "socket.io", "graphql-transport-ws"),
    "sse": ("sse",),
    "http": ("ndjson",),
}
"""By type of source, the default first."""


class Heard(NamedTuple):
    """What a frame came to."""

    replies: tuple[str, ...] = ()
    events: tuple[Envelope, ...] = ()
    is_ready: bool = False
    """From now on channels can be joined."""
    refused: tuple[str, str] | None = None
    """(reason, detail): the frame was no event, or the upstream would not join a channel."""
    failure: str | None = None
    """The connection is of no use, and why."""


NOTHING = Heard()


class Conversation(Protocol):
    """One connection's. Channels are joined after `Heard.is_ready`."""

    def begin(self) -> tuple[str, ...]:
        """Return what to say when the socket is open."""
        ...

    def hear(self, frame: bytes) -> Heard:
        """Take a frame."""
        ...

    def join(self, channel: str, asked: str) -> str:
        """Return what to say to join a channel; `asked` is the configured message, filled in (JSON)."""
        ...

    def leave(self, channel: str, asked: str | None) -> str | None:
        """Return what to say to leave it; `asked`: the configured message, where there is one."""
        ...


class Dialect(Struct, frozen=True):
    """How to converse with one source."""

    name: str
    url: str
    subprotocols: tuple[str, ...]
    begin: Callable[[], Conversation]
    """Makes the conversation of a new connection."""


def dialect(name: str, url: str, *, envelope: Mapping[str, str], namespace: str, auth: Any) -> Dialect | None:
    """Return how to converse; None: frames are events.

    Args:
        name: As configured; see `DIALECTS`.
        url: `ws://` or `wss://`.
        envelope: Members of an event's data that hold its `channel` and `id`.
        namespace: Of Socket.IO.
        auth: What is sent with the handshake: Socket.IO's `auth`, GraphQL's `connection_init` payload. None: nothing.
    """
    members = _Members(envelope)
    said = "" if auth is None else msgspec.json.encode(auth).decode()
    if name == "socket.io":
        return Dialect(name, _engine_url(url), (), lambda: SocketIo(namespace, said, members))
    if name == "graphql-transport-ws":
        return Dialect(name, url, ("graphql-transport-ws",), lambda: GraphQl(said, members))
    return None


def _engine_url(url: str) -> str:
    parts = urlsplit(url)
    path = parts.path if parts.path not in ("", "/") else "/socket.io/"
    query = "&".join(filter(None, [parts.query, "EIO=4&transport=websocket"]))
    return urlunsplit((parts.scheme, parts.netloc, path, query, ""))


class _Members:
    """Reads the channel and the id out of an event's data."""

    def __init__(self, names: Mapping[str, str]) -> None:
        types: dict[str, Any] = {"channel": str | None, "id": str | int | None}
        known = {ours: theirs for ours, theirs in names.items() if ours in types}
        self._decoder: msgspec.json.Decoder[Any] | None = None
        if known:
            struct = msgspec.defstruct("EventMembers", [(ours, types[ours], None) for ours in known], rename=known)
            self._decoder = msgspec.json.Decoder(struct)

    def read(self, data: Raw | bytes) -> tuple[str | None, EventId | None]:
        """Return them; None: there is none, as in data that is no object.

        Raises:
            FrameFault: `no_event`, one is of the wrong type.
        """
        if self._decoder is None:
            return None, None
        try:
            found = self._decoder.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            if "`$." in str(error):
                raise FrameFault("no_event", str(error)) from None
            return None, None
        return getattr(found, "channel", None), held_id(getattr(found, "id", None))


_arguments = msgspec.json.Decoder(list[Raw])


class SocketIo:
    """Socket.IO 4 over Engine.IO 4, on its WebSocket transport.

    An event's data is the first argument; others are not taken. What the server wants acknowledged is. Binary events are refused.
    https://socket.io/docs/v4/socket-io-protocol/
    """

    def __init__(self, namespace: str, auth: str, members: _Members) -> None:
        self._place = "" if namespace == "/" else f"{namespace},"
        self._auth = auth
        self._members = members
        self._attachments = 0
        """Binary frames to come that belong to an event that was refused."""

    def begin(self) -> tuple[str, ...]:
        """Say nothing: the server begins."""
        return ()

    def hear(self, frame: bytes) -> Heard:
        """Take an Engine.IO packet."""
        if self._attachments:
            self._attachments -= 1
            return NOTHING
        match frame[:1]:
            case b"4":
                return self._message(frame)
            case b"2":
                return Heard(replies=("3" + frame[1:].decode("utf-8", "replace"),))
            case b"0":
                return Heard(replies=(f"40{self._place}{self._auth}",))
            case b"1":
                return Heard(failure="the server closed the session")
            case b"3" | b"6":
                return NOTHING
            case _:
                return Heard(refused=("not_a_packet", "no Engine.IO packet"))

    def _message(self, frame: bytes) -> Heard:
        kind, rest = frame[1:2], frame[2:]
        if kind in (b"5", b"6"):
            count, _, _ = rest.partition(b"-")
            self._attachments = int(count) if count.isdigit() and len(count) < 4 else 0
            return Heard(refused=("binary", "binary events are not taken"))
        place = self._place.encode()
        if rest[:1] == b"/":
            if not place or not (rest + b",").startswith(place):
                return NOTHING  # of a namespace that is not ours
            rest = rest[len(place) :]
        elif place:
            return NOTHING
        match kind:
            case b"2":
                return self._event(rest)
            case b"0":
                return Heard(is_ready=True)
            case b"4":
                return Heard(failure=f"the namespace was refused: {_error_message(rest)}")
            case b"1":
                return Heard(failure="the server disconnected the namespace")
            case b"3":
                return NOTHING  # nothing was asked to be acknowledged
            case _:
                return Heard(refused=("not_a_packet", "no Socket.IO packet"))

    def _event(self, rest: bytes) -> Heard:
        start = rest.find(b"[")
        acknowledge = rest[:start] if start > 0 else b""
        try:
            arguments = _arguments.decode(rest[max(start, 0) :])
            name = msgspec.json.decode(arguments[0], type=str)
        except (msgspec.DecodeError, RecursionError, IndexError, UnicodeDecodeError) as error:
            return Heard(refused=("not_json", str(error)))
        data = bytes(arguments[1]) if len(arguments) > 1 else b"null"
        replies = (f"43{self._place}{acknowledge.decode()}[]",) if acknowledge.isdigit() else ()
        try:
            channel, event_id = self._members.read(data)
        except FrameFault as fault:
            return Heard(replies, refused=(fault.reason, fault.detail))
        return Heard(replies, (Envelope(name, data, channel, event_id),))

    def join(self, channel: str, asked: str) -> str:  # noqa: ARG002 - the message names it
        """Emit the configured event: `[name, arguments...]`."""
        return f"42{self._place}{asked}"

    def leave(self, channel: str, asked: str | None) -> str | None:  # noqa: ARG002 - the message names it
        """Emit the configured event, where there is one."""
        return None if asked is None else f"42{self._place}{asked}"


class _Packet(Struct):
    type: str
    id: str = ""
    payload: Raw = Raw(b"null")


class _Result(Struct):
    data: dict[str, Raw] | None = None
    errors: Raw = Raw(b"")


_packets = msgspec.json.Decoder(_Packet)
_results = msgspec.json.Decoder(_Result)


class GraphQl:
    """GraphQL over WebSocket, subprotocol graphql-transport-ws: one subscription for each channel.

    An event's name is the root field that the operation selects, its data that field's value; several fields are several events.
    https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md
    """

    def __init__(self, auth: str, members: _Members) -> None:
        self._auth = auth
        self._members = members
        self._channels: dict[str, str] = {}
        """By the subscription's id."""
        self._faulty: set[str] = set()
        """Subscriptions whose last result was nothing but errors."""
        self._number = 0

    def begin(self) -> tuple[str, ...]:
        """Ask to be let in."""
        return (f'{{"type":"connection_init","payload":{self._auth}}}' if self._auth else '{"type":"connection_init"}',)

    def hear(self, frame: bytes) -> Heard:
        """Take a message."""
        try:
            packet = _packets.decode(frame)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            return Heard(refused=("not_json", str(error)))
        match packet.type:
            case "next":
                return self._next(packet)
            case "ping":
                return Heard(replies=('{"type":"pong"}',))
            case "connection_ack":
                return Heard(is_ready=True)
            case "error":
                channel = self._channels.pop(packet.id, None)
                return Heard(
                    refused=("subscribe_refused", f"{channel}: {bytes(packet.payload).decode('utf-8', 'replace')}")
                )
            case "complete":
                channel = self._channels.pop(packet.id, None)
                if channel is None or packet.id in self._faulty:
                    return NOTHING  # it was left, or refused
                return Heard(failure=f"the upstream ended the subscription of {channel}")  # connecting joins it again
            case "pong":
                return NOTHING
            case _:
                return Heard(refused=("not_a_packet", f"no such message: {packet.type[:40]}"))

    def _next(self, packet: _Packet) -> Heard:
        channel = self._channels.get(packet.id)
        if channel is None:
            return NOTHING  # it was left
        try:
            result = _results.decode(packet.payload)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            return Heard(refused=("not_json", str(error)))
        events: list[Envelope] = []
        refused: tuple[str, str] | None = None
        for name, data in (result.data or {}).items():
            try:
                events.append(Envelope(name, bytes(data), channel, self._members.read(data)[1]))
            except FrameFault as fault:
                refused = fault.reason, fault.detail
        if not bytes(result.errors) or refused is not None or any(event.data != b"null" for event in events):
            self._faulty.discard(packet.id)
            return Heard(events=tuple(events), refused=refused)
        self._faulty.add(packet.id)
        return Heard(refused=("subscribe_refused", f"{channel}: {bytes(result.errors).decode('utf-8', 'replace')}"))

    def join(self, channel: str, asked: str) -> str:
        """Subscribe; `asked` is the operation."""
        self._number += 1
        identity = str(self._number)
        self._channels[identity] = channel
        return f'{{"type":"subscribe","id":"{identity}","payload":{asked}}}'

    def leave(self, channel: str, asked: str | None) -> str | None:  # noqa: ARG002 - the protocol has its own
        """Complete the subscription."""
        identity = next((each for each, joined in self._channels.items() if joined == channel), None)
        if identity is None:
            return None
        del self._channels[identity]
        return f'{{"type":"complete","id":"{identity}"}}'


def _error_message(rest: bytes) -> str:
    try:
        return str(msgspec.json.decode(rest)["message"])
    except (msgspec.DecodeError, RecursionError, KeyError, TypeError, UnicodeDecodeError):
        return rest.decode("utf-8", "replace")[:100]
