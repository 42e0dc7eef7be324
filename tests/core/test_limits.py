import pytest

from cluster.core.limits import Limits, SessionCounts, refuse
from cluster.errors import ErrorCode, LimitError

LIMITS = Limits(sessions_per_address=2, sessions_per_subject=2, streams=1)


def test_a_refusal_names_the_limit_and_its_value() -> None:
    with pytest.raises(LimitError) as raised:
        refuse(ErrorCode.TOO_MANY, "things", 3, "at most 3 things")
    error = raised.value
    assert (error.code, error.details, error.temporary) == (ErrorCode.TOO_MANY, {"limit": "things", "value": 3}, False)


def test_sessions_are_counted_by_address() -> None:
    counts = SessionCounts(LIMITS)
    for _ in range(2):
        counts.open("1.1.1.1", server_sent=False)
    with pytest.raises(LimitError) as raised:
        counts.open("1.1.1.1", server_sent=False)
    assert (raised.value.limit, raised.value.code) == ("sessions_per_address", ErrorCode.TOO_MANY)
    counts.open("2.2.2.2", server_sent=False)
    for _ in range(5):
        counts.open("", server_sent=False)
    counts.close("1.1.1.1", None, server_sent=False)
    counts.open("1.1.1.1", server_sent=False)


def test_event_streams_are_counted_and_a_refused_one_is_not() -> None:
    counts = SessionCounts(LIMITS)
    counts.open("1.1.1.1", server_sent=True)
    for _ in range(3):
        with pytest.raises(LimitError) as raised:
            counts.open("1.1.1.1", server_sent=True)
        assert raised.value.limit == "streams"
    counts.open("1.1.1.1", server_sent=False)
    counts.close("1.1.1.1", None, server_sent=True)
    counts.open("1.1.1.1", server_sent=True)


def test_subjects_are_counted_from_when_they_are_known() -> None:
    counts = SessionCounts(LIMITS)
    counts.identify(None, "a")
    counts.identify(None, "a")
    with pytest.raises(LimitError) as raised:
        counts.identify("b", "a")
    assert raised.value.limit == "sessions_per_subject"
    counts.identify("a", "a")  # as when the keys file is read again
    counts.identify("a", "c")
    counts.identify(None, "a")
    counts.close("", "a", server_sent=False)
    counts.close("", "a", server_sent=False)
    counts.close("", "c", server_sent=False)
    assert not counts._subjects
    assert not counts._addresses
