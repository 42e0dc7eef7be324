"""When data is too old to be shown without being fetched again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.staleness import STATIC, is_stale, stale_at

TIMES = st.floats(0, 1e12)
STALE_TIMES = st.none() | st.just(STATIC) | st.floats(0, 1e12)


@pytest.mark.parametrize(
    ("updated_at", "stale_time", "is_invalidated", "at"),
    [
        (None, 1_000.0, False, 0.0),
        (None, None, False, 0.0),
        (None, STATIC, False, 0.0),
        (500.0, 1_000.0, False, 1_500.0),
        (500.0, 0.0, False, 500.0),
        (500.0, None, False, None),
        (500.0, STATIC, False, None),
        (500.0, 1_000.0, True, 0.0),
        (500.0, None, True, 0.0),
        (500.0, STATIC, True, None),
    ],
)
def test_the_time_from_which_data_is_stale(
    updated_at: float | None, stale_time: Any, is_invalidated: bool, at: float | None
) -> None:
    assert stale_at(updated_at, stale_time, is_invalidated=is_invalidated) == at


def test_data_is_stale_from_that_millisecond_on() -> None:
    ages = {
        now: is_stale(500.0, 1_000.0, is_invalidated=False, now_ms=now) for now in (500.0, 1_499.0, 1_500.0, 2_000.0)
    }
    assert ages == {500.0: False, 1_499.0: False, 1_500.0: True, 2_000.0: True}


@given(st.none() | TIMES, STALE_TIMES, st.booleans(), TIMES)
def test_as_query_core_decides(updated_at: float | None, stale_time: Any, invalidated: bool, now_ms: float) -> None:
    """`isStaleByTime` of query-core, in its own order."""
    if updated_at is None:
        expected = True
    elif stale_time == STATIC:
        expected = False
    elif invalidated:
        expected = True
    else:
        expected = stale_time is not None and now_ms >= updated_at + stale_time
    assert is_stale(updated_at, stale_time, is_invalidated=invalidated, now_ms=now_ms) is expected
