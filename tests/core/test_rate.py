import pytest

from cluster.core.rate import RateLimit, RateLimits, TokenBucket
from cluster.errors import ErrorCode, LimitError


def test_tokens_come_back_up_to_the_burst() -> None:
    bucket = TokenBucket(10, 0.0, burst=3)
    assert [bucket.take(1, 0.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.debt_ms(0.0) == pytest.approx(100.0)
    assert bucket.take(1, 100.0)
    assert bucket.debt_ms(10_000.0) == 0.0
    assert [bucket.take(1, 10_000.0) for _ in range(4)] == [True, True, True, False]


def test_time_that_goes_back_gives_nothing() -> None:
    bucket = TokenBucket(10, 1_000.0, burst=1)
    assert bucket.take(1, 1_000.0)
    assert not bucket.take(1, 0.0)
    assert not bucket.take(1, 1_000.0)
    assert bucket.take(1, 1_100.0)


def rate(now_ms: float = 0.0) -> RateLimit:
    return RateLimit("commands", "messages", 10, 5, now_ms)


def test_too_much_is_refused_with_the_time_to_wait() -> None:
    limit = rate()
    for _ in range(5):
        limit.take(0.0)
    with pytest.raises(LimitError) as raised:
        limit.take(0.0)
    error = raised.value
    assert (error.code, error.temporary, error.limit, error.message) == (
        ErrorCode.LIMITED,
        True,
        "commands",
        "at most 10 messages a second",
    )
    assert error.details == {"limit": "commands", "value": 10, "retry_after_ms": 100}
    limit.take(100.0)


def test_who_is_refused_too_often_is_not_read_for_a_while_and_still_served_at_the_rate() -> None:
    limit, now_ms, accepted, refused = rate(), 0.0, 0, 0
    while now_ms < 10_000.0:
        try:
            limit.take(now_ms)
            accepted += 1
        except LimitError:
            refused += 1
        now_ms += limit.pause_ms(now_ms) or 0.01  # it sends 100,000 a second
    assert 100 <= accepted <= 110
    assert refused <= 110, "as many refusals as answers, not a hundred thousand"


def test_each_name_has_its_own_and_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RateLimits, "REMEMBERED", 2)
    limits = RateLimits("requests", "requests", 1, 1)
    limits.take("a", 0.0)
    limits.take("b", 0.0)
    for name in ("a", "b"):
        with pytest.raises(LimitError):
            limits.take(name, 0.0)
    limits.take("c", 0.0)
    assert list(limits._by_name) == ["b", "c"]
    limits.take("a", 0.0)  # forgotten, so anew
