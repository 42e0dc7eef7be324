"""What a client may say: faults are answered and change nothing, a command's answer is a result or an error."""

from typing import Any

import orjson
import pytest

from cluster.core import gateway_state
from cluster.core.client_message import MAX_DEPTH, Command, answer, client_frame, depth, result
from cluster.core.gateway_state import Close, Deliver, GatewayState
from cluster.core.grants import ApiKeys, Grants, Principal, line
from cluster.core.limits import MIB, Limits
from cluster.core.messages import EntryView, Failure, Matched, Requests, Send, Write, Written
from tests.in_process import START_MS, InProcess


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "levels"),
    [
        (1, 0),
        ("[[", 0),
        (None, 0),
        ([], 1),
        ({}, 1),
        ([1, [2]], 2),
        ({"a": {"b": [1]}, "c": []}, 3),
        ([[], {"a": [{}]}], 4),
        (nested(500), 500),
    ],
)
def test_depth(value: Any, levels: int) -> None:
    assert depth(value) == levels


class Talk:
    """One session of a gateway, and what it is answered."""

    def __init__(self) -> None:
        self.state = InProcess().gateway
        self.session = self.state.open_session("s1")
        self.commands: list[Command] = []
        self.taken_back: list[int] = []

    def command(self, command: Command) -> int:
        self.commands.append(command)
        return len(self.commands)

    def say(self, frame: Any) -> list[Any]:
        text = frame if isinstance(frame, str | bytes) else orjson.dumps(frame)
        return client_frame(
            self.state, self.session, text, self.command, START_MS, lambda: "m-new", self.taken_back.append
        )

    def answers(self, frame: Any) -> list[dict[str, Any]]:
        self.session.control.clear()
        self.say(frame)
        return [orjson.loads(message) for message in self.session.control]


FAULTS: list[tuple[Any, str]] = [
    (7, "BAD_MESSAGE"),
    ({}, "UNKNOWN_TYPE"),
    ({"type": "dance"}, "UNKNOWN_TYPE"),
    ({"type": []}, "UNKNOWN_TYPE"),
    ({"type": "subscribe", "key": ["a"]}, "BAD_MESSAGE"),
    ({"type": "subscribe", "id": True, "key": ["a"]}, "BAD_MESSAGE"),
    ({"type": "subscribe", "id": "x" * 257, "key": ["a"]}, "BAD_MESSAGE"),
    ({"type": "subscribe", "id": 1}, "BAD_MESSAGE"),
    ({"type": "subscribe", "id": 1, "key": ["a"], "prefix": ["a"]}, "BAD_MESSAGE"),
    ({"type": "subscribe", "id": 1, "key": "a"}, "BAD_KEY"),
    ({"type": "subscribe", "id": 1, "key": ["x" * 2000]}, "TOO_LARGE"),
    ({"type": "subscribe", "id": 1, "key": ["a"], "mode": "diff"}, "BAD_REQUEST"),
    ({"type": "subscribe", "id": 1, "key": ["a"], "since": 5}, "BAD_REQUEST"),
    ({"type": "subscribe", "id": 1, "key": ["a"], "since": "p9"}, "BAD_REQUEST"),
    ({"type": "get", "id": 1}, "BAD_KEY"),
    ({"type": "get", "key": ["a"]}, "BAD_MESSAGE"),
    ({"type": "set", "id": 1, "key": ["a"]}, "BAD_MESSAGE"),
    ({"type": "set", "id": 1, "key": ["a"], "data": 1, "base_version": "1"}, "BAD_REQUEST"),
    ({"type": "set", "id": 1, "key": ["a"], "data": nested(40)}, "TOO_DEEP"),
    ({"type": "set", "id": 1, "key": ["a"], "data": 1, "ack": "maybe"}, "BAD_REQUEST"),
    ({"type": "set", "id": 1, "key": ["a"], "data": 1, "ack": ""}, "BAD_REQUEST"),
    ({"type": "set", "id": 1, "key": ["a"], "data": 1, "ack": ["durable"]}, "BAD_REQUEST"),
    ({"type": "set", "id": 1, "key": ["a"], "data": 1, "base_version": 1, "merge": "two_way"}, "BAD_REQUEST"),
    ({"type": "set", "id": 1, "key": ["a"], "data": 1, "base_version": 1, "merge": None}, "BAD_REQUEST"),
    ({"type": "set", "id": 1, "key": ["a"], "data": 1, "merge": "three_way"}, "BAD_REQUEST"),
    ({"type": "invalidate", "id": 1, "key": ["a"], "exact": 1}, "BAD_REQUEST"),
]


@pytest.mark.parametrize(("message", "code"), FAULTS)
def test_faults_are_answered_and_ask_nothing_of_shards(message: Any, code: str) -> None:
    talk = Talk()
    (answer,) = talk.answers(message)
    assert (answer["type"], answer["code"]) == ("error", code)
    name = message.get("id") if isinstance(message, dict) else None
    assert answer.get("re") == (None if isinstance(name, bool) else name)
    assert len(answer["message"]) < 300
    assert talk.commands == []
    assert not talk.session.subscriptions


@pytest.mark.parametrize("frame", ["", "{", "hello", b"\xff", '{"type":"ping"} x'])
def test_what_is_no_json_ends_the_connection(frame: str | bytes) -> None:
    (effect,) = Talk().say(frame)
    assert isinstance(effect, Close)
    assert effect.code == 3501
    assert len(effect.reason.encode()) <= 123, "a close frame holds no more"


def test_a_frame_may_hold_several_and_a_bad_one_does_not_spoil_the_rest() -> None:
    answers = Talk().answers([{"type": "ping", "id": 1}, 7, {"type": "ping"}])
    assert [answer["type"] for answer in answers] == ["pong", "error", "pong"]
    assert answers[0]["re"] == 1
    assert "re" not in answers[2]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "get", "key": ["a"]},
        {"type": "set", "key": ["a"], "data": 1},
        {"type": "invalidate", "key": ["a"]},
        {"type": "undo", "mutation_id": "m1"},
    ],
)
def test_a_command_that_shards_have_no_room_for_is_taken_back(
    message: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Talk()
    monkeypatch.setattr(gateway_state, "MAX_REQUESTS", 0)
    refused, other = {**message, "id": 1}, {**message, "id": 2}
    answers = talk.answers([refused, {"type": "ping"}, other, {"type": "get", "id": 3}])
    assert [answer.get("code") for answer in answers] == ["UNAVAILABLE", None, "UNAVAILABLE", "BAD_KEY"]
    assert talk.taken_back == [1, 2], "each once, and none for what was not asked for"


def test_depth_counts_within_a_message() -> None:
    talk = Talk()
    fits = {"type": "ping", "id": 1, "extra": nested(MAX_DEPTH - 1)}
    assert [answer["type"] for answer in talk.answers([fits])] == ["pong"]
    assert talk.answers([{**fits, "extra": nested(MAX_DEPTH)}])[0]["code"] == "TOO_DEEP"


def test_too_large_a_frame_is_refused_unread() -> None:
    assert Talk().answers("x" * (MIB + 1))[0]["code"] == "TOO_LARGE"


def test_a_command_becomes_a_request_to_the_shard_of_its_key() -> None:
    talk = Talk()
    effects = talk.say({"type": "set", "id": "w", "key": [{"b": 1, "a": 2}], "data": {"n": None}, "base_version": 3})
    (send,) = [effect for effect in effects if isinstance(effect, Send)]
    assert isinstance(send.message, Requests)
    (write,) = send.message.items
    assert isinstance(write, Write)
    assert (write.key, write.data, write.base_version) == ('[{"a":2,"b":1}]', b'{"n":null}', 3)
    assert (write.ack, write.merges) == ("", False)
    assert talk.commands == [Command("s1", "w", "set")]
    assert [effect for effect in effects if isinstance(effect, Deliver)] == []


def test_a_set_says_how_safe_it_is_to_be_and_whether_to_merge() -> None:
    message = {
        "type": "set",
        "id": 1,
        "key": ["a"],
        "data": 1,
        "base_version": 3,
        "merge": "three_way",
        "ack": "durable",
    }
    (send,) = [effect for effect in Talk().say(message) if isinstance(effect, Send)]
    (write,) = send.message.items
    assert (write.ack, write.merges) == ("durable", True)


class TestResults:
    COMMAND = Command("s1", "c", "any")
    VIEW = EntryView('["a"]', 3, b"[1]", 1000, "success", "idle")

    def told(self, *payloads: Any) -> dict[str, Any]:
        answer: dict[str, Any] = orjson.loads(result(self.COMMAND, list(payloads), 2000.0))
        assert answer["re"] == "c"
        return answer

    def test_an_entry(self) -> None:
        answer = self.told(self.VIEW)
        assert (answer["type"], answer["entry"]["data"], answer["entry"]["version"]) == ("result", [1], 3)

    def test_a_write(self) -> None:
        assert self.told(Written(8)) == {"type": "result", "re": "c", "version": 8}
        assert self.told(Written(8, is_merged=True)) == {"type": "result", "re": "c", "version": 8, "merged": True}

    def test_matches_of_all_shards_add_up(self) -> None:
        assert self.told(Matched(2), Matched(0), Matched(5))["matched"] == 7

    def test_a_failure_of_one_shard_is_one_of_all(self) -> None:
        answer = self.told(Matched(2), Failure("UNAVAILABLE", "gone"))
        assert (answer["type"], answer["code"], answer["temporary"]) == ("error", "UNAVAILABLE", True)

    def test_a_conflict_shows_what_it_met(self) -> None:
        answer = self.told(Failure("VERSION_CONFLICT", "no", self.VIEW))
        assert answer["details"]["current"]["version"] == 3
        assert "conflicts" not in answer["details"]
        assert self.told(Failure("VERSION_CONFLICT", "no"))["details"] == {"current": None}
        answer = self.told(Failure("VERSION_CONFLICT", "no", self.VIEW, ["/a"]))
        assert (answer["details"]["current"]["data"], answer["details"]["conflicts"]) == ([1], ["/a"])
        assert "details" not in self.told(Failure("NOT_FOUND", "no"))


@pytest.mark.parametrize("lost", [False, True])
def test_no_more_entries_are_said_while_a_client_does_not_read_those_it_has(*, lost: bool) -> None:
    talk = Talk()
    entry = EntryView('["a"]', 1, b'"%b"' % (b"x" * 400_000), 1, "success", "idle")
    payload = Failure("VERSION_CONFLICT", "it has changed", current=entry) if lost else entry
    for n in range(10):
        answer(talk.state, talk.session, Command("s1", n, "set" if lost else "get"), [payload], START_MS)
    said = [orjson.loads(each) for each in talk.session.control]
    assert [each["re"] for each in said] == list(range(10))
    assert [each.get("code") == "LIMITED" for each in said] == [False] * 3 + [True] * 7
    assert talk.session.control_bytes < talk.state.outbox_limit + 500_000
    answer(talk.state, talk.session, Command("s1", 10, "set"), [Failure("VERSION_CONFLICT", "it is gone")], START_MS)
    assert orjson.loads(talk.session.control[-1])["code"] == "VERSION_CONFLICT", "which takes no room"


class Doorman(ApiKeys):
    """Knows one key, and remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def recognise(self, credentials: str, wall_ms: float) -> Principal:
        self.shown.append(credentials)
        return ApiKeys.parse(line("a", "hk_a", Grants(read=[[]]))).recognise(credentials, wall_ms)


def say_to(state: GatewayState, session_id: str, *messages: dict[str, Any], address: str, now_ms: float) -> list[Any]:
    """Open a session without credentials, and say something; what became of it."""
    session = state.open_session(session_id, principal=None, address=address)
    effects = client_frame(state, session, orjson.dumps(messages), lambda _: 0, now_ms, lambda: "", lambda _: None)
    said = [orjson.loads(each) for each in session.control]
    return [each for each in effects if isinstance(each, Close)] + [each.get("code", each["type"]) for each in said]


def test_nothing_is_looked_at_after_what_ends_the_connection() -> None:
    state = InProcess().gateway
    state.authority = doorman = Doorman()
    hellos = [{"type": "hello", "token": f"guess{n}"} for n in range(1000)]
    (close,) = say_to(state, "s", *hellos, {"type": "ping"}, address="192.0.2.1", now_ms=START_MS)
    assert close.code == 3500
    assert doorman.shown == ["guess0"]


def test_tokens_that_are_refused_on_sockets_count_by_address_and_then_nobody_looks_at_them() -> None:
    state = InProcess().gateway
    state.authority = doorman = Doorman()
    state.bound(Limits(requests=0.001, requests_burst=3), MIB, START_MS)
    guess, known = {"type": "hello", "token": "guess"}, {"type": "hello", "token": "hk_a"}

    def said(name: str, *messages: dict[str, Any], address: str = "192.0.2.1", now_ms: float = START_MS) -> list[Any]:
        return [
            each.code if isinstance(each, Close) else each
            for each in say_to(state, name, *messages, address=address, now_ms=now_ms)
        ]

    auths = [{"type": "auth", "id": n, "token": "guess"} for n in range(3)]
    assert said("s0", guess) == [3500]
    assert said("s1", known, *auths) == ["welcome", "UNAUTHORIZED", "UNAUTHORIZED", "LIMITED"]
    assert doorman.shown == ["guess", "hk_a", "guess", "guess"], "the last was refused unseen"
    assert said("s2", guess, guess) == [3002]
    assert said("s3", known) == [3002]
    assert doorman.shown[4:] == []
    assert state.limited == {"requests": 3}
    assert said("s4", known, address="192.0.2.2") == ["welcome"]
    assert said("s5", known, now_ms=START_MS + 1_000_000.0) == ["welcome"]


def test_what_a_get_waited_for_is_for_who_may_still_read_it() -> None:
    talk = Talk()
    authority = ApiKeys.parse("\n".join(line(name, name, Grants(read=[[name]])) for name in ("a", "b")))
    entry = EntryView('["a"]', 1, b"1", 1, "success", "idle")
    for name in ("a", "b"):
        talk.session.principal = authority.recognise(name, START_MS)
        answer(talk.state, talk.session, Command("s1", name, "get"), [entry], START_MS)
    assert [orjson.loads(each).get("code") for each in talk.session.control] == [None, "FORBIDDEN"]
