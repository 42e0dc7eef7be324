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


def test_a_wall_clock_that_is_set_moves_the_end_of_whoever_is_here():
    expiries, ann = Expiries(), session(NOTICE_MS * 10)
    expiries.begin(ann, 0.0)
    expiries.ahead_ms = NOTICE_MS * 2
    assert expiries.deadline() == NOTICE_MS * 7
    assert expiries.due(NOTICE_MS * 7) == [(ann, False)]
    expiries.ahead_ms = NOTICE_MS * -2
    assert expiries.due(NOTICE_MS * 10) == []
    assert expiries.deadline() == NOTICE_MS * 12
    bob = session(NOTICE_MS * 20, "bob")
    expiries.begin(bob, NOTICE_MS * 10)
    assert expiries.due(NOTICE_MS * 12) == [(ann, True)]
    assert expiries.deadline() == NOTICE_MS * 21
    assert expiries.due(NOTICE_MS * 22) == [(bob, False), (bob, True)]


def test_what_is_left_of_a_token_is_left_by_the_wall_clock():
    expiries = Expiries()
    expiries.ahead_ms = 1_000_000.0
    expiries.begin(session(1_004_000.0), 0.0)
    assert expiries.deadline() == 2_000.0


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


def test_who_says_the_same_token_again_is_kept_once():
    expiries, ann = Expiries(), session(4_000.0)
    for _ in range(3):
        expiries.begin(ann, 0.0)
    assert len(expiries._heap) == 2
    assert expiries.due(4_000.0) == [(ann, False), (ann, True)]
