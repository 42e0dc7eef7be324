"""What a client may say over a socket, and what it does.

A frame that is no JSON ends the connection (3501): there is no telling what else of it is wrong. Anything else that is wrong is
answered with an `error` naming the message's id, and changes nothing. Of a frame nothing is looked at after what ends the connection. Every message counts towards its session's rate, whatever it says.
"""

import re
from collections.abc import Callable
from typing import Any, NoReturn

import orjson
from msgspec import Struct

from cluster.core import presence_message, protocol
from cluster.core.acknowledgement import LEVELS
from cluster.core.gateway_mutations import mutation_id
from cluster.core.gateway_state import Close, Effect, GatewayState
from cluster.core.grants import Principal
from cluster.core.limits import FRAME_MESSAGES, refuse
from cluster.core.messages import Act, EntryView, Failure, Matched, MutationView, Payload, Read, Write, Written
from cluster.core.query_key import MAX_DEPTH, CanonicalKey, canonical, checked, depth
from cluster.core.rate import RateLimit
from cluster.core.session_state import SessionState
from cluster.core.tenant import NOBODYS, Tenant
from cluster.errors import ErrorCode, HarborError, LimitError, RequestError, UnauthorizedError, UnavailableError

PING_MS = 25_000
"""Between the server's pings on a socket; a peer that does not answer is gone."""


_TOKEN = re.compile(rb'"(?:hello|auth)"')
"""In a frame with a token, unless somebody writes letters as escapes, and has keys to fetch for others."""


class Command(Struct, frozen=True):
    """A request to shards whose answer is a `result` message."""

    session: str
    re: Any
    kind: str
    mutation: str = ""
    """The one it is about."""


def client_frame(
    state: GatewayState,
    session: SessionState,
    frame: bytes | str,
    command: Callable[[Command], int],
    now_ms: float,
    new_id: Callable[[], str],
    take_back: Callable[[int], None],
) -> list[Effect]:
    """Carry out a client's frame: one message or an array of them.

    `command` gives a ticket for what must wait for shards, and `take_back` takes one back that nothing waits for, since it was refused;
    `new_id` gives an id that nobody can guess for a mutation without one.
    """
    limits = state.limits
    try:
        messages = _messages(frame, limits.frame_bytes)
    except orjson.JSONDecodeError as error:
        return [Close(session.id, protocol.CLOSE_NOT_PARSEABLE, f"not JSON: {error}"[:120])]
    except LimitError as error:
        return _error(state, session, None, error)
    if session.pace is None:
        session.pace = RateLimit("commands", "messages", limits.commands, limits.commands_burst, now_ms)
    effects: list[Effect] = []
    given: list[int] = []

    def ticket(asked: Command) -> int:
        given.append(command(asked))
        return given[-1]

    for message in messages:
        name = message.get("id") if isinstance(message, dict) else None
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            name = None
        given.clear()
        try:
            session.pace.take(now_ms)
            if depth(message, MAX_DEPTH) > MAX_DEPTH:
                _too_deep()
            done = _carry_out(state, session, message, ticket, now_ms, new_id)
        except HarborError as error:
            for each in given:
                take_back(each)
            done = _error(state, session, name, error)
        effects.extend(done)
        if any(isinstance(each, Close) and each.session == session.id for each in done):
            break
    return effects


def _messages(frame: bytes | str, max_bytes: int) -> list[Any]:
    """Read a frame.

    Raises:
        orjson.JSONDecodeError: it is no JSON.
        LimitError: `TOO_LARGE`, `TOO_DEEP` or `TOO_MANY`.
    """
    if len(frame) > max_bytes:
        refuse(ErrorCode.TOO_LARGE, "frame", max_bytes, f"a frame has at most {max_bytes} bytes, got {len(frame)}")
    try:
        decoded = orjson.loads(frame)
    except orjson.JSONDecodeError as error:
        if is_too_deep(error):
            _too_deep()
        raise
    messages = decoded if isinstance(decoded, list) else [decoded]
    if len(messages) > FRAME_MESSAGES:
        most = f"a frame has at most {FRAME_MESSAGES} messages, got {len(messages)}"
        refuse(ErrorCode.TOO_MANY, "frame_messages", FRAME_MESSAGES, most)
    return messages


def is_too_deep(error: orjson.JSONDecodeError) -> bool:
    """Whether JSON was not read because it nests deeper than any may, rather than because it is none."""
    return "depth limit" in error.msg or "ecursion" in error.msg


def _too_deep() -> NoReturn:
    refuse(ErrorCode.TOO_DEEP, "depth", MAX_DEPTH, f"a message may nest {MAX_DEPTH} deep")


def _error(state: GatewayState, session: SessionState, name: Any, error: HarborError) -> list[Effect]:
    if isinstance(error, LimitError):
        state.limited[error.limit] += 1
    members = {**protocol.error_of(error), "message": session.tenant.text(error.message)}
    return state.say(session, protocol.message("error", **({} if name is None else {"re": name}), **members))


def _carry_out(
    state: GatewayState,
    session: SessionState,
    message: Any,
    command: Callable[[Command], int],
    now_ms: float,
    new_id: Callable[[], str],
) -> list[Effect]:
    if not isinstance(message, dict):
        raise RequestError(ErrorCode.BAD_MESSAGE, "a message is an object")
    kind = message.get("type")
    if kind == "hello":
        return _hello(state, session, message, now_ms)
    if session.principal is None:
        raise HarborError(ErrorCode.UNAUTHORIZED, "say hello with a token first")
    match kind:
        case "auth":
            return _auth(state, session, message, now_ms)
        case "ping":
            name = {"re": message["id"]} if "id" in message else {}
            return state.say(session, protocol.message("pong", **name))
        case "subscribe":
            return _subscribe(state, session, message, now_ms)
        case "unsubscribe":
            return state.unsubscribe(session, _name(message), now_ms)
        case "pause":
            return state.pause(session, _name(message), now_ms)
        case "resume":
            return state.resume(session, _name(message), now_ms)
        case "get":
            key = _key(session, message, "key")
            session.principal.require("read", key)
            ticket = command(Command(session.id, _id(message), "get"))
            return state.request(ticket, key, lambda request: Read(request, key), now_ms)
        case "set":
            return _set(state, session, message, command, now_ms)
        case "invalidate":
            key = _key(session, message, "key")
            exact = message.get("exact", False)
            if not isinstance(exact, bool):
                raise RequestError(ErrorCode.BAD_REQUEST, f"exact is true or false, got {exact!r:.60}")
            session.principal.require("write", key)
            ticket = command(Command(session.id, _id(message), "invalidate"))
            return state.request(
                ticket, key if exact else None, lambda request: Act(request, "invalidate", key, exact), now_ms
            )
        case "mutate":
            return _mutate(state, session, message, command, now_ms, new_id)
        case "undo":
            return _undo(state, session, message, command, now_ms)
        case "presence":
            return presence_message.presence(state, session, message, _id(message), now_ms)
        case "leave":
            return presence_message.leave(state, session, message, _id(message), now_ms)
        case _:
            raise RequestError(ErrorCode.UNKNOWN_TYPE, f"unknown message type {kind!r:.60}")


def _hello(state: GatewayState, session: SessionState, message: dict[str, Any], now_ms: float) -> list[Effect]:
    """Say whose a session is, where the handshake had no credentials and some are needed, and which it was before."""
    resume = presence_message.resume_token(message)
    effects: list[Effect] = []
    is_greeted = session.principal is not None
    if "token" not in message:
        if session.principal is None:
            raise HarborError(ErrorCode.UNAUTHORIZED, "hello needs a token here")
    elif state.authority is not None:  # else nobody asked
        try:
            principal = _recognised(state, session, message, now_ms)
        except UnauthorizedError as error:
            return [Close(session.id, protocol.CLOSE_BAD_TOKEN, f"bad token: {error.message}")]
        except (UnavailableError, LimitError) as error:
            if session.principal is not None:
                raise  # it goes on as it was
            if isinstance(error, LimitError):
                state.limited[error.limit] += 1
            return [Close(session.id, protocol.CLOSE_UNCHECKED, error.message)]
        effects.extend(state.admit(session, principal, now_ms))
    refused: HarborError | None = None
    if resume is not None:
        try:
            effects.extend(state.resume_session(session, resume, now_ms))
        except HarborError as error:
            refused = error  # it goes on as the new session that it is
    if not is_greeted or (resume is not None and refused is None):
        effects.extend(welcome(state, session, now_ms))
    if refused is not None:
        effects.extend(_error(state, session, message.get("id"), refused))
    return effects


def _recognised(state: GatewayState, session: SessionState, message: dict[str, Any], now_ms: float) -> Principal:
    token = _token(message)
    with state.refusals_counted(session.address, now_ms):
        return state.recognise(token, state.expiries.wall_ms(now_ms))


def welcome(state: GatewayState, session: SessionState, now_ms: float) -> list[Effect]:
    """Greet a session, once it is known whose it is."""
    assert session.principal is not None
    return state.say(
        session,
        protocol.message(
            "welcome",
            session=session.identity,
            server_time=int(now_ms),
            ping_interval_ms=PING_MS,
            resume_token=state.tokens.session(session.secret, session.owner),
        ),
    )


def _auth(state: GatewayState, session: SessionState, message: dict[str, Any], now_ms: float) -> list[Effect]:
    """Take other credentials, without a new connection; what they do not cover is no longer watched."""
    name = _id(message)
    principal = _recognised(state, session, message, now_ms)  # where nobody bears it the session goes on as it was
    return [*state.admit(session, principal, now_ms), *state.say(session, protocol.message("result", re=name))]


def tokens_of(frame: bytes | str, max_bytes: int) -> list[str]:
    """Return the tokens that a frame brings: to recognise who bears one, its key may have to be fetched before the frame is carried out."""
    if not _TOKEN.search(frame if isinstance(frame, bytes) else frame.encode()) or len(frame) > max_bytes:
        return []
    try:
        decoded = orjson.loads(frame)
    except orjson.JSONDecodeError:
        return []
    messages = [each for each in (decoded if isinstance(decoded, list) else [decoded]) if isinstance(each, dict)]
    said = [each.get("token") for each in messages if each.get("type") in ("hello", "auth")]
    return [each for each in said if isinstance(each, str)]


def _token(message: dict[str, Any]) -> str:
    token = message.get("token")
    if not isinstance(token, str):
        raise RequestError(ErrorCode.BAD_MESSAGE, f"{message['type']} needs a token, a string")
    return token


def _subscribe(state: GatewayState, session: SessionState, message: dict[str, Any], now_ms: float) -> list[Effect]:
    name = _name(message)
    if ("key" in message) == ("prefix" in message):
        raise RequestError(ErrorCode.BAD_MESSAGE, "subscribe names a key or a prefix")
    prefix = "prefix" in message
    mode = message.get("mode", "data")
    if mode not in ("data", "patch"):
        raise RequestError(ErrorCode.BAD_REQUEST, f"mode is data or patch, got {mode!r:.60}")
    since = message.get("since")
    if since is not None and not isinstance(since, str):
        raise RequestError(ErrorCode.BAD_REQUEST, f"since is a position token, got {since!r:.60}")
    return state.subscribe(
        session,
        name,
        _key(session, message, "prefix" if prefix else "key"),
        prefix=prefix,
        mode=mode,
        since=since,
        now_ms=now_ms,
    )


def _set(
    state: GatewayState,
    session: SessionState,
    message: dict[str, Any],
    command: Callable[[Command], int],
    now_ms: float,
) -> list[Effect]:
    key = _key(session, message, "key")
    assert session.principal is not None
    session.principal.require("write", key)
    if "data" not in message:
        raise RequestError(ErrorCode.BAD_MESSAGE, "set needs data")
    base_version = message.get("base_version")
    if base_version is not None and (isinstance(base_version, bool) or not isinstance(base_version, int)):
        raise RequestError(ErrorCode.BAD_REQUEST, f"base_version is a version, got {base_version!r:.60}")
    ack = message.get("ack", "")
    if "ack" in message and ack not in LEVELS:
        raise RequestError(ErrorCode.BAD_REQUEST, f"ack is {' or '.join(LEVELS)}, got {ack!r:.60}")
    if message.get("merge", "three_way") != "three_way":
        raise RequestError(ErrorCode.BAD_REQUEST, f"merge is three_way, got {message['merge']!r:.60}")
    merges = "merge" in message
    if merges and base_version is None:
        raise RequestError(ErrorCode.BAD_REQUEST, "merge needs base_version, the version that was edited")
    name = _id(message)
    ticket = command(Command(session.id, name, "set"))
    request_id = f"{session.id}/{ticket}"
    data = orjson.dumps(message["data"])
    return state.request(
        ticket, key, lambda request: Write(request, request_id, key, data, base_version, ack, merges), now_ms
    )


def _mutate(
    state: GatewayState,
    session: SessionState,
    message: dict[str, Any],
    command: Callable[[Command], int],
    now_ms: float,
    new_id: Callable[[], str],
) -> list[Effect]:
    assert session.principal is not None
    name = _id(message)
    mutation = message.get("mutation_id")
    order = state.mutations.order(
        session.principal,
        message.get("name"),
        message.get("variables"),
        new_id() if mutation is None else mutation,
        message.get("delay_ms"),
    )
    state.mutations.require_room(session.id)
    ticket = command(Command(session.id, name, "mutate", order.mutation))
    return state.mutate(ticket, order, now_ms, session=session)


def _undo(
    state: GatewayState,
    session: SessionState,
    message: dict[str, Any],
    command: Callable[[Command], int],
    now_ms: float,
) -> list[Effect]:
    assert session.principal is not None
    name = _id(message)
    mutation = session.tenant.inside_id(mutation_id(message.get("mutation_id")))
    state.mutations.require_room(session.id)
    ticket = command(Command(session.id, name, "undo", mutation))
    return state.undo(ticket, session.principal, mutation, now_ms, session=session)


def _id(message: dict[str, Any]) -> Any:
    name = message.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int | float) or (isinstance(name, str) and len(name) > 256):
        raise RequestError(ErrorCode.BAD_MESSAGE, f"{message['type']} needs an id, a number or a string")
    return name


def _name(message: dict[str, Any]) -> bytes:
    return orjson.dumps(_id(message))


def _key(session: SessionState, message: dict[str, Any], member: str) -> CanonicalKey:
    return session.tenant.inside(canonical(checked(message.get(member))))


def answer(
    state: GatewayState, session: SessionState, command: Command, payloads: list[Payload], now_ms: float
) -> list[Effect]:
    """Answer a command, and go on with what waited for that."""
    first = payloads[0]
    assert session.principal is not None
    if isinstance(first, EntryView) and not session.principal.may("read", CanonicalKey(first.key)):
        payloads = [Failure(ErrorCode.FORBIDDEN, "no grant to read any more")]
    entry = first.current if isinstance(first, Failure) else first
    if session.control_bytes > state.outbox_limit and isinstance(entry, EntryView):
        payloads = [Failure(ErrorCode.LIMITED, "too much waits to be read by this client: read it, then ask again")]
    effects = state.say(session, result(command, payloads, now_ms, session.tenant))
    if command.mutation:
        view = payloads[0] if isinstance(payloads[0], MutationView) else None
        effects.extend(state.mutation_answered(session, command.mutation, view))
    return effects


def result(command: Command, payloads: list[Payload], now_ms: float, tenant: Tenant = NOBODYS) -> bytes:
    """Return the message that answers a command."""
    for payload in payloads:
        if isinstance(payload, Failure):
            details = protocol.details_of(payload, now_ms, tenant)
            body = protocol.error_body(payload.code, tenant.text(payload.message), details=details)
            return protocol.message("error", re=command.re, **body)
    first = payloads[0]
    match first:
        case EntryView():
            return protocol.message(
                "result", re=command.re, entry=orjson.Fragment(protocol.entry(first, now_ms, tenant))
            )
        case Written(version=version, is_merged=is_merged):
            return protocol.message("result", re=command.re, version=version, **({"merged": True} if is_merged else {}))
        case Matched():
            matched = sum(each.count for each in payloads if isinstance(each, Matched))
            return protocol.message("result", re=command.re, matched=matched)
        case MutationView(mutation=mutation):
            return protocol.message(
                "result",
                re=command.re,
                **({} if command.kind == "undo" else {"mutation_id": tenant.outside_id(mutation)}),
            )
        case _:
            raise AssertionError(f"no result is made of {first!r}")
