"""The client protocol, `harbor.v1`: how messages look on the wire.

A change is encoded once and spliced into the frame of every subscriber, so messages are made as the text of an object's members,
without the braces and without what differs between subscribers (`sub`). `websocket` and `server_sent` put frames together.

Versions:
    1   first: hello, subscribe, unsubscribe, pause, resume, get, set, invalidate, mutate, undo, ping; welcome, snapshot, snapshot_end,
        change, invalidated, removed, reset, position, result, mutation, drain, error, pong; presence, leave.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from cluster.core.messages import EntryView, Failure, MutationView, PresenceMember
from cluster.core.tenant import NOBODYS, Tenant
from cluster.errors import TEMPORARY, ErrorCode, HarborError

VERSION = 1
SUBPROTOCOL = f"harbor.v{VERSION}"
Typed = tuple[bytes, bytes]
"""(message type, members as JSON text)."""

CLOSE_DRAIN = 3001
CLOSE_UNCHECKED = 3002
"""Whether a token counts cannot be said at the moment."""
CLOSE_TOO_SLOW = 3008
CLOSE_NO_PONG = 3012
CLOSE_BAD_TOKEN = 3500
CLOSE_NOT_PARSEABLE = 3501
CLOSE_FORBIDDEN = 3503
CLOSE_HELLO_LATE = 3504
CLOSE_RESUMED = 3505
"""Another connection has taken over this session's identity."""


def change(
    key: bytes,
    from_version: int,
    version: int,
    data: bytes | None,
    patch: bytes | None,
    coalesced: int,
    mutations: Sequence[str] = (),
) -> Typed:
    """An entry's step from one version to a later one; `mutations` came into it with this step, or left it."""
    content = b'"data":%b' % (data or b"null") if patch is None else b'"patch":%b' % patch
    return b"change", b'"key":%b,"from":%d,"version":%d,%b,"coalesced":%d%b' % (
        key,
        from_version,
        version,
        content,
        coalesced,
        b',"mutations":%b' % orjson.dumps(mutations) if mutations else b"",
    )


def snapshot(view: EntryView, now_ms: float, tenant: Tenant = NOBODYS) -> Typed:
    """An entry in full, as a client of `tenant` is told."""
    data = b"" if view.data is None else b'"data":%b,' % view.data
    error = b"" if view.error is None else b',"error":%b' % orjson.dumps(error_body(*view.error))
    return (
        b"snapshot",
        b'"key":%b,"version":%d,%b"data_updated_at":%d,"status":"%b","is_stale":%b,"is_offline":%b%b'
        % (
            tenant.outside(view.key).encode(),
            view.version,
            data,
            view.data_updated_at,
            view.status.encode(),
            b"true" if is_stale(view, now_ms) else b"false",
            b"true" if view.is_offline else b"false",
            error,
        ),
    )


def is_stale(view: EntryView, now_ms: float) -> bool:
    """Whether a reader should rather have the entry fetched."""
    return view.data is None or (view.stale_at is not None and view.stale_at <= now_ms)


def entry(view: EntryView, now_ms: float, tenant: Tenant = NOBODYS) -> bytes:
    """An entry as HTTP answers it, an object."""
    data = b"null" if view.data is None else view.data
    error = b"" if view.error is None else b',"error":%b' % orjson.dumps(error_body(*view.error))
    return (
        b'{"key":%b,"data":%b,"version":%d,"data_updated_at":%d,"status":"%b","fetch_status":"%b",'
        b'"is_stale":%b,"is_invalidated":%b,"is_offline":%b,"origin":%b%b}'
    ) % (
        tenant.outside(view.key).encode(),
        data,
        view.version,
        view.data_updated_at,
        view.status.encode(),
        view.fetch_status.encode(),
        b"true" if is_stale(view, now_ms) else b"false",
        b"true" if view.is_invalidated else b"false",
        b"true" if view.is_offline else b"false",
        orjson.dumps(origin_of(view)),
        error,
    )


def origin_of(view: EntryView) -> dict[str, Any] | None:
    """Where an entry's data came from, and why it is in doubt if it is; None: it has no data and nothing is known of it."""
    if view.data is None and view.doubt is None:
        return None
    kind, _, source = view.origin.rstrip("?").partition(":")
    origin: dict[str, Any] = {"kind": kind or None, "at": view.data_updated_at}
    if source:
        origin["from"] = source
    if view.fetched_at:
        origin["fetched_at"] = view.fetched_at
    if view.origin.endswith("?"):
        origin["uncertain"] = True
    if view.stale_at:
        origin["stale_at"] = int(view.stale_at)
    if view.doubt is not None:
        origin["invalidated"] = {"by": view.doubt[0], "at": view.doubt[1]}
    return origin


def snapshot_end(token: bytes) -> Typed:
    """Every matching entry was sent."""
    return b"snapshot_end", b'"position":"%b"' % token


def removed(key: bytes, version: int) -> Typed:
    """The entry is gone."""
    return b"removed", b'"key":%b,"version":%d' % (key, version)


def invalidated(key: bytes) -> Typed:
    """The entry is out of date."""
    return b"invalidated", b'"key":%b' % key


def reset(key: bytes | None) -> Typed:
    """Forget what you hold, of `key` or of the whole subscription: it comes anew."""
    return b"reset", b"" if key is None else b'"key":%b' % key


def details_of(failure: Failure, now_ms: float, tenant: Tenant = NOBODYS) -> dict[str, Any] | None:
    """What a failed request's error says beside its message: the limit it met; of a write that lost, the entry (null: there is none)."""
    if failure.limit is not None:
        return dict(zip(("limit", "value"), failure.limit, strict=True))
    if failure.status:
        return {"status": failure.status}
    if failure.code != ErrorCode.VERSION_CONFLICT:
        return None
    current = None if failure.current is None else orjson.Fragment(entry(failure.current, now_ms, tenant))
    conflicts = {} if failure.conflicts is None else {"conflicts": failure.conflicts}
    return {"current": current, **conflicts}


def outcome(view: MutationView, tenant: Tenant = NOBODYS) -> dict[str, Any]:
    """How a mutation is, as members of a message or of a body."""
    members: dict[str, Any] = {"status": view.status}
    if view.result is not None:
        members["result"] = orjson.Fragment(view.result)
    if view.error is not None:
        code, message = view.error
        members["error"] = error_body(code, tenant.text(message))
    return members


def mutation(view: MutationView, tenant: Tenant = NOBODYS) -> dict[str, Any]:
    """A mutation as HTTP answers it."""
    due = {"due_at": view.due_at} if view.due_at else {}
    return {
        "id": tenant.outside_id(view.mutation),
        "name": view.name,
        "created_at": view.created_at,
        **due,
        **outcome(view, tenant),
    }


def presence_member(said: PresenceMember) -> bytes:
    """A member of a topic, an object."""
    subject = orjson.dumps(said.subject)
    return b'{"member":"%b","subject":%b,"state":%b,"last_active":%d}' % (
        said.member.encode(),
        subject,
        said.state,
        said.last_active,
    )


def presence(
    topic: str,
    joined: list[bytes],
    updated: list[bytes],
    left: list[str],
    count: int,
    *,
    is_snapshot: bool = False,
    is_more: bool = False,
) -> bytes:
    """What became of a topic, a whole message; `is_more`: other pages of the listing follow."""
    return b'{"type":"presence","topic":%b,"joined":[%b],"updated":[%b],"left":%b,"count":%d%b%b}' % (
        orjson.dumps(topic),
        b",".join(joined),
        b",".join(updated),
        orjson.dumps(left),
        count,
        b',"snapshot":true' if is_snapshot else b"",
        b',"more":true' if is_more else b"",
    )


def error_body(code: str, message: str, *, temporary: bool | None = None, details: Any = None) -> dict[str, Any]:
    """An error as clients see it."""
    body = {"code": str(code), "message": message, "temporary": code in TEMPORARY if temporary is None else temporary}
    return body if details is None else {**body, "details": details}


def error_of(error: HarborError) -> dict[str, Any]:
    """An exception as clients see it."""
    return error_body(error.code, error.message, temporary=error.temporary, details=error.details)


def message(kind: str, **members: Any) -> bytes:
    """Any other message, whole."""
    return orjson.dumps({"type": kind, **members})


def bodies(messages: list[Typed]) -> list[bytes]:
    """Prepare messages for `websocket`, once for all subscribers."""
    return [b'%b",%b' % (kind, members) if members else kind + b'"' for kind, members in messages]


def websocket(sub: bytes, prepared: list[bytes], token: bytes | None) -> bytes:
    """Messages about one subscription, as members of a frame's array; `token`: a position follows them.

    One join, whatever their number: this runs once for each subscriber and tick.
    """
    head = b'{"sub":%b,"type":"' % sub
    if token is not None:
        prepared = [*prepared, b'position","token":"%b"' % token]
    return head + (b"}," + head).join(prepared) + b"}"


def events(messages: list[Typed]) -> list[bytes]:
    """The same messages as server-sent events."""
    return [
        # JSON may be written over several lines; an event's data may not, and between tokens a space means the same.
        b"event: %b\ndata: {%b}\n\n"
        % (kind, members.replace(b"\r", b" ").replace(b"\n", b" ") if b"\n" in members or b"\r" in members else members)
        for kind, members in messages
    ]


def event_stream(parts: list[bytes], token: bytes | None) -> bytes:
    """Join events; the last carries the token as its id."""
    text = b"".join(parts)
    return text if token is None else b"%bid: %b\n\n" % (text[:-1], token)
