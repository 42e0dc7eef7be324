from cluster.core.grants import Grants, Principal
from cluster.core.session_expiry import KEPT, NOTICE_MS, Expiries, expiry_notice
from cluster.core.session_state import SessionState


def session(expires_ms: float | None, name: str = "s") -> SessionState:
    return SessionState(name, server_sent=False, principal=Principal("ann", Grants(), expires_ms=expires_ms))


def test_told_before_and_closed_at_the_end():
    expiries, ann = Expiries(), session(NOTICE_MS * 10)
    expiries.begin(ann, 0.0)
    assert expiries.deadline() == NOTICE_MS * 9
    assert expiries.due(NOTICE_MS * 9 - 1) == []
    assert expiries.due(NOTICE_MS * 9) == [(ann, False)]
    assert expiries.due(NOTICE_MS * 10) == [(ann, True)]
    assert expiries.deadline() is None


def test_a_short_token_is_told_of_after_half_of_it():
    expiries = Expiries()
    expiries.begin(session(4_000.0), 0.0)
    assert expiries.deadline() == 2_000.0


def test_another_token_overtakes():
    expiries, ann = Expiries(), session(4_000.0)
    expiries.begin(ann, 0.0)
    ann.principal = Principal("ann", Grants(), expires_ms=100_000.0)
    expiries.begin(ann, 1_000.0)
    assert expiries.due(5_000.0) == []
    assert expiries.due(100_000.0) == [(ann, False), (ann, True)]
    ann.principal = Principal("ann", Grants())
    expiries.begin(ann, 1_000.0)
    assert expiries.deadline() is None


def test_keys_do_not_expire_and_nobody_is_told_who_is_gone():
    expiries, ann = Expiries(), session(4_000.0)
    expiries.begin(session(None), 0.0)
    assert expiries.deadline() is None
    expiries.begin(ann, 0.0)
    expiries.end(ann)
    assert expiries.due(10_000.0) == []


def test_those_who_come_and_go_are_not_kept():
    expiries, stays = Expiries(), session(4_000.0, "stays")
    expiries.begin(stays, 0.0)
    for number in range(3 * KEPT):
        gone = session(5_000.0 + number)
        expiries.begin(gone, 0.0)
        expiries.end(gone)
    assert len(expiries._heap) <= KEPT + 8
    assert expiries.due(20_000.0) == [(stays, False), (stays, True)]


def test_the_notice_says_when():
    principal = session(4_000.5).principal
    assert principal is not None
    assert (expiry_notice(principal)["code"], expiry_notice(principal)["expires_at"]) == ("token_expires", 4_000)
