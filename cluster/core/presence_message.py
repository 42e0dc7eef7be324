"""What a client may say about presence: `presence` and `leave`.

Members of a message that are not known are refused, not ignored: who names a member in the hope to speak for it is to hear that it
cannot.

What must not live here: what either does (`presence_session`), other messages (`client_message`).
"""

from typing import Any

import orjson

from cluster.core import protocol
from cluster.core.gateway_state import Effect, GatewayState
from cluster.core.presence_room import Mode, check_state, topic_of
from cluster.core.session_state import SessionState
from cluster.errors import ErrorCode, RequestError

MAX_TOKEN = 128
"""Characters of a resume token."""


def resume_token(message: dict[str, Any]) -> str | None:
    """Return the token that a `hello` resumes with.

    Raises:
        RequestError: `BAD_REQUEST`.
    """
    token = message.get("resume")
    if token is None:
        return None
    if not isinstance(token, str) or not 0 < len(token) <= MAX_TOKEN or not token.isascii():
        raise RequestError(ErrorCode.BAD_REQUEST, f"resume is the resume_token of a welcome, got {token!r:.60}")
    return token


def presence(
    state: GatewayState, session: SessionState, message: dict[str, Any], name: Any, now_ms: float
) -> list[Effect]:
    """Carry out `presence{id, topic, state?, watch?}`; `name` is its id.

    Raises:
        HarborError: it cannot be done.
    """
    topic = _checked(message, "topic", "state", "watch")
    watch: Mode | None = None
    match message.get("watch"):
        case None:
            pass
        case "members":
            watch = "members"
        case "count":
            watch = "count"
        case other:
            raise RequestError(ErrorCode.BAD_REQUEST, f"watch is members or count, got {other!r:.60}")
    said = None
    if "state" in message:
        said = orjson.dumps(message["state"])
        check_state(said)
    pattern, effects = state.present(session, session.tenant.inside_topic(topic), said, watch, now_ms)
    answer = protocol.message(
        "result", re=name, heartbeat_ms=int(pattern.heartbeat_ms), timeout_ms=int(pattern.timeout_ms)
    )
    return [*effects, *state.say(session, answer)]


def leave(
    state: GatewayState, session: SessionState, message: dict[str, Any], name: Any, now_ms: float
) -> list[Effect]:
    """Carry out `leave{id, topic}`; `name` is its id.

    Raises:
        HarborError: `NOT_FOUND`, or it is not understood.
    """
    effects = state.leave(session, session.tenant.inside_topic(_checked(message, "topic")), now_ms)
    return [*effects, *state.say(session, protocol.message("result", re=name))]


def _checked(message: dict[str, Any], *known: str) -> str:
    for member in message:
        if member not in ("type", "id", *known):
            raise RequestError(
                ErrorCode.BAD_REQUEST, f"unknown member {member!r:.60}, there are: {', '.join(('id', *known))}"
            )
    return topic_of(message.get("topic"))
