"""What a gateway's sessions have joined, and what homes are told of it: news compared whole."""

from typing import Any

import pytest

from cluster.core import template
from cluster.core.grants import ANYBODY, Grants, Principal
from cluster.core.limits import Limits
from cluster.core.messages import PresenceDiff, PresenceMember, PresenceNews, Restored
from cluster.core.presence_news import BEAT_MS, SPACING_MS
from cluster.core.presence_room import Pattern
from cluster.core.presence_session import GRACE_MS, TOPICS, PresenceSessions, identity_of
from cluster.core.session_state import SessionState
from cluster.errors import ErrorCode, HarborError

TIMEOUT_MS = 75_000.0
START_MS = 10_000.0


class Gateway:
    """A gateway's sessions; the home of every topic is played by the test."""

    def __init__(self) -> None:
        self.now_ms = START_MS
        patterns = [
            Pattern(template.parse("doc:{id}"), 30_000.0, TIMEOUT_MS),
            Pattern(template.parse("quick:{id}"), 100.0, 1_000.0),
        ]
        self.presence = PresenceSessions(9, lambda topic: 0, 1, patterns)
        self.news()

    def session(self, name: str, principal: Principal = ANYBODY) -> SessionState:
        session = SessionState(name, server_sent=False, principal=principal, secret=f"secret-{name}")
        self.presence.opened(session)
        return session

    def join(self, session: SessionState, topic: str = "doc:1", state: bytes | None = b"1", watch: Any = None) -> None:
        self.presence.present(session, topic, state, watch, self.now_ms)

    def resume(self, session: SessionState, request: int) -> None:
        """Resume, and ask the home."""
        self.presence.resume(session, "secret", self.now_ms)
        assert session.attendance is not None
        session.attendance.restoring.add(request)

    def news(self, ms: float = SPACING_MS) -> PresenceNews | None:
        self.now_ms += ms
        self.presence.wake(self.now_ms)
        made = self.presence.news(0, self.now_ms)
        return made[0] if made else None

    def put(self, name: str, state: bytes = b"1", at: float = START_MS + SPACING_MS, subject: str = "anonymous") -> Any:
        return PresenceMember(name, subject, state, int(at))


def parts(news: PresenceNews | None) -> dict[str, Any]:
    """What is in news, beside what is empty."""
    assert news is not None
    assert (news.id, news.life) == (0, 9)
    named = {name: getattr(news, name) for name in ("begins", "ends", "put", "left", "heard", "watches")}
    return {name: value for name, value in named.items() if value}


def code_of(raised: pytest.ExceptionInfo[HarborError]) -> ErrorCode:
    return raised.value.code


def test_a_new_life_says_that_it_has_nobody() -> None:
    presence = PresenceSessions(9, lambda topic: 0, 1, [Pattern(template.parse("a"), 1.0, 2.0)])
    assert presence.due_at(0) == 0.0
    assert parts(presence.news(0, START_MS)[0]) == {"begins": True, "ends": True}
    assert presence.due_at(0) is None
    assert PresenceSessions(9, lambda topic: 0, 1).due_at(0) is None, "no topics are declared"


def test_joins_states_and_leaves_are_told_folded_and_spaced() -> None:
    gateway = Gateway()
    a, b = gateway.session("a"), gateway.session("b")
    gateway.join(a)
    gateway.join(b, state=b"2", watch="count")
    gateway.join(a, state=b"3")
    at = gateway.now_ms
    assert parts(gateway.news()) == {
        "put": [("doc:1", 1, gateway.put("a", b"3", at)), ("doc:1", 1, gateway.put("b", b"2", at))],
        "watches": [("doc:1", 1, "members")],
    }
    gateway.join(a, state=b"4")
    gateway.presence.leave(a, "doc:1")
    assert gateway.presence.due_at(0) == gateway.now_ms + SPACING_MS
    assert gateway.news(1) is None
    assert parts(gateway.news()) == {"left": [("doc:1", "a")], "watches": [("doc:1", 2, "count")]}
    gateway.presence.leave(b, "doc:1")
    assert parts(gateway.news()) == {"left": [("doc:1", "b")], "watches": [("doc:1", 0, "")]}
    parts(gateway.news(BEAT_MS))
    assert gateway.presence.due_at(0) is None
    assert gateway.presence._rooms == {}


def test_heartbeats_are_one_list_a_period() -> None:
    gateway = Gateway()
    sessions = [gateway.session(f"s{n}") for n in range(5)]
    for session in sessions:
        gateway.join(session)
    gateway.news()
    for session in sessions:
        gateway.join(session)
        gateway.join(session, state=None)
    assert gateway.news(BEAT_MS - 2 * SPACING_MS) is None
    assert parts(gateway.news()) == {"heard": [("doc:1", [f"s{n}" for n in range(5)])]}
    assert parts(gateway.news(BEAT_MS)) == {}, "it lives, and nobody has said anything"


def test_who_is_silent_too_long_is_gone() -> None:
    gateway = Gateway()
    a, b = gateway.session("a"), gateway.session("b")
    gateway.join(a)
    gateway.join(b, "quick:1")
    gateway.news()
    assert gateway.presence.deadline() == gateway.now_ms - SPACING_MS + 1_000.0
    assert gateway.news(900.0) is None
    assert parts(gateway.news(1_000.0))["left"] == [("quick:1", "b")]
    gateway.join(a)
    assert "left" not in parts(gateway.news(TIMEOUT_MS - 1))
    assert parts(gateway.news(1 + SPACING_MS))["left"] == [("doc:1", "a")]
    assert gateway.presence.deadline() is None


def test_a_lost_connection_is_waited_for_and_a_closed_one_is_not() -> None:
    gateway = Gateway()
    a, b = gateway.session("a"), gateway.session("b")
    gateway.join(a)
    gateway.join(b)
    gateway.news()
    gateway.presence.gone(a, gateway.now_ms, lingers=True)
    gateway.presence.gone(b, gateway.now_ms, lingers=False)
    assert parts(gateway.news()) == {"left": [("doc:1", "b")], "watches": [("doc:1", 2, "")]}
    assert gateway.presence.deadline() == gateway.now_ms - SPACING_MS + GRACE_MS
    assert parts(gateway.news(GRACE_MS))["left"] == [("doc:1", "a")]


def test_who_comes_back_was_never_away() -> None:
    gateway = Gateway()
    a = gateway.session(identity_of("secret"))
    gateway.join(a)
    gateway.news()
    gateway.presence.gone(a, gateway.now_ms, lingers=True)
    gateway.news()
    back = gateway.session("other")
    assert gateway.presence.resume(back, "secret", gateway.now_ms) is None
    assert (back.identity, back.secret) == (a.id, "secret")
    assert "left" not in parts(gateway.news(GRACE_MS + 1))
    gateway.presence.leave(back, "doc:1")
    assert parts(gateway.news())["left"] == [("doc:1", a.id)]
    with pytest.raises(HarborError) as raised:
        gateway.presence.resume(back, "another", gateway.now_ms)
    assert code_of(raised) is ErrorCode.CONFLICT


def test_who_joins_again_after_coming_back_is_told_though_nothing_was_said_to_have_changed() -> None:
    gateway = Gateway()
    a = gateway.session(identity_of("secret"))
    gateway.join(a)
    gateway.news()
    gateway.presence.gone(a, gateway.now_ms, lingers=True)
    back = gateway.session("other")
    gateway.presence.resume(back, "secret", gateway.now_ms)
    gateway.join(back)
    assert [row[2].member for row in parts(gateway.news())["put"]] == [a.id], "it may have left at another gateway"
    gateway.join(back)
    assert gateway.news() is None


def test_who_comes_back_to_where_it_was_has_left_what_it_left_elsewhere() -> None:
    gateway = Gateway()
    a = gateway.session(identity_of("secret"))
    for topic in ("doc:1", "doc:2", "doc:3"):
        gateway.join(a, topic)
    gateway.news()
    gateway.presence.gone(a, gateway.now_ms, lingers=True)
    back = gateway.session("other")
    gateway.resume(back, 1)
    gateway.join(back, "doc:2")
    known = PresenceMember(a.id, "anonymous", b"1", 5)
    gateway.presence.restored(1, 0, a.id, Restored([("doc:3", 2, known)]), gateway.now_ms)
    assert back.attendance is not None
    assert list(back.attendance.joined) == ["doc:2", "doc:3"]
    assert [row[0] for row in parts(gateway.news())["put"]] == ["doc:2", "doc:3"]


def test_of_two_connections_with_one_identity_the_later_has_it() -> None:
    gateway = Gateway()
    a = gateway.session(identity_of("secret"))
    gateway.join(a)
    gateway.news()
    back = gateway.session("other")
    assert gateway.presence.resume(back, "secret", gateway.now_ms) is a
    again = gateway.session("third")
    assert gateway.presence.resume(again, "secret", gateway.now_ms) is back
    gateway.presence.gone(a, gateway.now_ms, lingers=False)
    gateway.presence.gone(back, gateway.now_ms, lingers=False)
    assert len({a.identity, back.identity, again.identity}) == 3
    assert gateway.presence._rooms["doc:1"].local.keys() == {again.identity}
    gateway.presence.gone(again, gateway.now_ms, lingers=False)
    assert parts(gateway.news())["left"] == [("doc:1", again.identity)]
    assert gateway.presence._here == {}


def test_who_comes_back_to_another_gateway_is_taken_up_from_what_homes_knew() -> None:
    gateway = Gateway()
    back = gateway.session("other")
    gateway.resume(back, 1)
    known = PresenceMember(identity_of("secret"), "anonymous", b"7", 5)
    gateway.presence.restored(1, 0, known.member, Restored([("doc:1", 3, known), ("gone:1", 2, known)]), gateway.now_ms)
    put = gateway.put(known.member, b"7", gateway.now_ms)
    assert parts(gateway.news()) == {"put": [("doc:1", 3, put)], "left": [("gone:1", known.member)]}
    gateway.presence.restored(2, 0, known.member, Restored([("doc:1", 5, known)]), gateway.now_ms)
    assert parts(gateway.news()) == {"put": [("doc:1", 5, put)]}, "what it is here may be newer than what the home knew"
    gateway.presence.restored(3, 0, "nobody", Restored([("doc:1", 3, known)]), gateway.now_ms)


def test_a_link_that_starts_over_is_told_all_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.core.presence_news.NEWS_BYTES", 150)
    gateway = Gateway()
    for n in range(3):
        gateway.join(gateway.session(f"s{n}"))
    while gateway.news():
        pass
    gateway.presence.relinked(0)
    first, second = parts(gateway.news()), parts(gateway.news())
    assert [row[2].member for row in first["put"]] == ["s0", "s1"]
    assert (first["begins"], first.get("ends"), first["watches"]) == (True, None, [("doc:1", 2, "members")])
    assert ([row[2].member for row in second["put"]], second["ends"]) == (["s2"], True)
    gateway.presence.wanted(0)
    assert parts(gateway.news())["begins"]


def test_changes_are_limited_and_heartbeats_are_not() -> None:
    gateway = Gateway()
    a = gateway.session("a")
    for n in range(int(Limits().presence_updates)):
        gateway.join(a, state=b"%d" % n)
    with pytest.raises(HarborError) as raised:
        gateway.join(a, state=b"more")
    assert (code_of(raised), raised.value.temporary) == (ErrorCode.LIMITED, True)
    for _ in range(100):
        gateway.join(a, state=None)
    gateway.now_ms += 51
    gateway.join(a, state=b"more")


def test_a_session_is_in_so_many_topics() -> None:
    gateway = Gateway()
    a = gateway.session("a")
    for n in range(TOPICS):
        gateway.join(a, f"doc:{n}", watch="count" if n % 2 else None)
        gateway.now_ms += 100
    with pytest.raises(HarborError) as raised:
        gateway.join(a, "doc:more")
    assert code_of(raised) is ErrorCode.TOO_MANY
    gateway.presence.leave(a, "doc:0")
    gateway.join(a, "doc:more")


def test_what_is_not_declared_granted_or_joined_is_refused_by_name() -> None:
    gateway = Gateway()
    a = gateway.session("a", Principal("me", Grants(presence=["doc:1*", "other"])))
    for act, code in (
        (lambda: gateway.join(a, "doc:2"), ErrorCode.FORBIDDEN),
        (lambda: gateway.join(a, "other"), ErrorCode.NOT_FOUND),
        (lambda: gateway.presence.leave(a, "doc:1"), ErrorCode.NOT_FOUND),
    ):
        with pytest.raises(HarborError) as raised:
            act()
        assert code_of(raised) is code
        assert any(topic in raised.value.message for topic in ("doc:2", "other", "doc:1"))
    gateway.join(a, "doc:12")
    with pytest.raises(HarborError):
        gateway.presence.leave(a, "doc:1")


def test_other_credentials_end_what_they_do_not_cover_and_rename_the_rest() -> None:
    gateway = Gateway()
    a = gateway.session("a")
    gateway.join(a, "doc:1")
    gateway.join(a, "doc:2")
    at = gateway.now_ms
    gateway.news()
    a.principal = Principal("me", Grants(presence=["doc:2"]))
    assert gateway.presence.admitted(a) == ["doc:1"]
    assert parts(gateway.news()) == {
        "left": [("doc:1", "a")],
        "put": [("doc:2", 1, gateway.put("a", at=at, subject="me"))],
        "watches": [("doc:1", 0, "")],
    }


def test_topics_that_are_declared_no_longer_end() -> None:
    gateway = Gateway()
    a, b = gateway.session("a"), gateway.session("b")
    gateway.join(a, "doc:1")
    gateway.join(a, "quick:1")
    gateway.join(b, "quick:2")
    gateway.presence.gone(b, gateway.now_ms, lingers=True)
    gateway.news()
    assert gateway.presence.declare([Pattern(template.parse("doc:{id}"), 1.0, 500.0)]) == [(a, "quick:1")]
    assert sorted(parts(gateway.news())["left"]) == [("quick:1", "a"), ("quick:2", "b")]
    assert parts(gateway.news(500.0))["left"] == [("doc:1", "a")], "by the timeout of today"


def test_who_is_silent_stays_so_when_topics_are_declared_anew() -> None:
    gateway = Gateway()
    alive, silent = gateway.session("alive"), gateway.session("silent")
    gateway.join(alive)
    gateway.join(silent)
    at = gateway.now_ms
    gateway.news(BEAT_MS)
    gateway.join(alive)
    gateway.presence.declare(gateway.presence.patterns)
    assert gateway.presence.deadline() == at + TIMEOUT_MS


def test_who_comes_back_twice_before_homes_have_answered_stays_out_of_what_was_left() -> None:
    gateway = Gateway()
    known = PresenceMember(identity_of("secret"), "anonymous", b"7", 5)
    answer = Restored([("doc:1", 2, known)])
    first, second, third = (gateway.session(name) for name in ("first", "second", "third"))
    gateway.resume(first, 1)
    gateway.presence.leave(first, "doc:1")
    gateway.presence.gone(first, gateway.now_ms, lingers=True)
    gateway.resume(second, 2)
    gateway.resume(third, 3)
    for request in (1, 2):
        gateway.presence.restored(request, 0, known.member, answer, gateway.now_ms)
        assert parts(gateway.news())["left"] == [("doc:1", known.member)]
        gateway.presence.leave(third, "doc:2")
    gateway.presence.restored(3, 0, known.member, answer, gateway.now_ms)
    with pytest.raises(HarborError) as raised:
        gateway.presence.leave(third, "doc:1")
    assert code_of(raised) is ErrorCode.NOT_FOUND


def test_a_home_wakes_those_who_watch() -> None:
    gateway = Gateway()
    a, b = gateway.session("a"), gateway.session("b")
    gateway.join(a, state=None)
    gateway.join(b, "doc:2", state=None)
    gateway.news()
    gateway.presence.diff(PresenceDiff("doc:1", 1, [], [], 0, True))
    assert gateway.presence.woken() == ["a"]
    assert gateway.presence.woken() == []
    assert a.attendance is not None
    assert len(gateway.presence.write(a.attendance, 1_000)) == 1
    assert gateway.presence.write(a.attendance, 1_000) == []
    assert gateway.presence.watches(0)
