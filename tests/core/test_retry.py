import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.retry import Backoff, is_retryable_status, retry_after_ms, retry_delay_ms


def test_backoff_doubles_up_to_its_maximum_and_stays_there_when_failed():
    backoff = Backoff(initial_ms=1000, max_ms=30_000, attempts=5, jitter="none")
    assert [backoff.delay_ms(n, 0.0) for n in range(1, 8)] == [1000, 2000, 4000, 8000, 30_000, 30_000, 30_000]
    assert [backoff.failed(n) for n in (4, 5, 6)] == [False, True, True]


def test_backoff_takes_the_first_delay_that_the_peer_named():
    backoff = Backoff(initial_ms=1000, max_ms=5_000, attempts=9, jitter="none")
    assert [backoff.delay_ms(n, 0.0, initial_ms=300) for n in (1, 2, 3)] == [300, 600, 1200]
    assert backoff.delay_ms(1, 0.0, initial_ms=60_000) == 5_000
    assert [backoff.delay_ms(n, 0.0, initial_ms=0) for n in (1, 2, 3)] == [100, 200, 400], "there is a rest"


@pytest.mark.parametrize(("jitter", "low", "high"), [("full", 0, 2000), ("equal", 1000, 2000), ("none", 2000, 2000)])
def test_jitter_spans_its_range(jitter, low, high):
    backoff = Backoff(initial_ms=1000, jitter=jitter)
    assert backoff.delay_ms(2, 0.0) == low
    assert backoff.delay_ms(2, 1.0) == high


@given(st.integers(1, 10**9), st.floats(0, 1), st.integers(1, 10**9))
def test_backoff_is_always_within_bounds(failures, random, attempts):
    backoff = Backoff(initial_ms=100, max_ms=7_000, attempts=attempts)
    assert 50 <= backoff.delay_ms(failures, random) <= 7_000


def test_fetch_delay_is_query_cores():
    assert [retry_delay_ms(n) for n in range(7)] == [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]
    assert retry_delay_ms(10**6) == 30_000
    assert retry_delay_ms(3, configured=50) == 50


def test_which_statuses_are_retried():
    assert [
        s for s in (200, 301, 400, 401, 404, 408, 409, 418, 425, 429, 500, 502, 503, 599) if is_retryable_status(s)
    ] == [
        408,
        425,
        429,
        500,
        502,
        503,
        599,
    ]


@given(st.text(), *[st.integers(-(10**20), 10**20)] * 4)
def test_whatever_retry_after_says(text, day, year, second, zone):
    for value in (text, f"Mon, {day} Jan {year} 00:00:{second} {zone:+}"):
        assert 0 <= (retry_after_ms(value, 0.0) or 0.0) <= 300_000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("120", 120_000.0),
        (" 0 ", 0.0),
        ("Wed, 21 Oct 2015 07:28:10 GMT", 10_000.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("9" * 400, 300_000.0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 300_000.0),
    ],
)
def test_retry_after(value, expected):
    assert retry_after_ms(value, 1_445_412_480_000.0) == expected
