"""Windows: exact times per mode, and the bounds that hold for any sequence of offers."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cluster.core.window import Profile, Window

WINDOW = Profile()
LEADING = Profile(mode="leading")
DEBOUNCE = Profile(mode="debounce", window_ms=100, max_wait_ms=350)
GAPS = st.lists(st.integers(0, 260), min_size=1, max_size=40)


def run(profile: Profile, gaps: list[int], begin_ms: float = 1_000_000.0) -> tuple[list[float], list[float]]:
    """Offer after each gap and flush whenever due; return when each flush was and how long each offer waited."""
    window = Window(profile)
    now = begin_ms
    waiting: list[float] = []
    flushes: list[float] = []
    waits: list[float] = []

    def flush_until(limit: float) -> None:
        while (due := window.due()) is not None and due <= limit:
            window.flushed(due)
            flushes.append(due)
            waits.extend(due - offered for offered in waiting)
            waiting.clear()

    for gap in gaps:
        flush_until(now + gap)
        now += gap
        window.offered(now)
        waiting.append(now)
    flush_until(float("inf"))
    assert not waiting
    assert window.due() is None
    return flushes, waits


class TestWindow:
    def test_it_closes_at_the_next_point_of_the_grid(self) -> None:
        window = Window(WINDOW)
        assert window.due() is None
        window.offered(1_000_030)
        assert window.due() == 1_000_100
        window.offered(1_000_099)
        assert window.due() == 1_000_100
        window.flushed(1_000_100)
        assert window.due() is None

    def test_an_offer_on_the_grid_waits_for_the_next_point(self) -> None:
        window = Window(WINDOW)
        window.offered(1_000_100)
        assert window.due() == 1_000_200

    def test_all_shards_share_the_grid(self) -> None:
        first, second = Window(WINDOW), Window(WINDOW)
        first.offered(1_000_001)
        second.offered(1_000_098.5)
        assert first.due() == second.due() == 1_000_100

    def test_a_late_flush_does_not_shift_the_grid(self) -> None:
        window = Window(WINDOW)
        window.offered(1_000_050)
        window.flushed(1_000_137)
        window.offered(1_000_138)
        assert window.due() == 1_000_200

    def test_what_is_old_already_has_waited_for_its_window(self) -> None:
        window = Window(WINDOW)
        window.offered(1_000_010, 999_950)
        assert window.due() == 1_000_050
        window.flushed(1_000_050)
        window.offered(1_000_060, 999_900)
        assert window.due() == 1_000_060, "overdue, but never before it came"

    def test_what_is_fresh_keeps_to_the_grid(self) -> None:
        window = Window(WINDOW)
        window.offered(1_000_010, 1_000_005)
        assert window.due() == 1_000_100

    @given(GAPS)
    def test_bounds(self, gaps: list[int]) -> None:
        flushes, waits = run(WINDOW, gaps)
        assert all(0 < wait <= 100 for wait in waits)
        assert all(flush % 100 == 0 for flush in flushes)
        assert len(set(flushes)) == len(flushes), "one batch per window"


class TestLeading:
    def test_what_follows_a_quiet_window_goes_at_once(self) -> None:
        window = Window(LEADING)
        window.offered(1_000_030)
        assert window.due() == 1_000_030

    def test_what_follows_that_waits_for_the_grid(self) -> None:
        window = Window(LEADING)
        window.offered(1_000_030)
        window.flushed(1_000_030)
        window.offered(1_000_040)
        assert window.due() == 1_000_100
        window.flushed(1_000_100)
        window.offered(1_000_199)
        assert window.due() == 1_000_200

    def test_a_window_later_it_is_quiet_again(self) -> None:
        window = Window(LEADING)
        window.offered(1_000_030)
        window.flushed(1_000_030)
        window.offered(1_000_130)
        assert window.due() == 1_000_130

    @given(GAPS)
    def test_bounds(self, gaps: list[int]) -> None:
        flushes, waits = run(LEADING, gaps)
        assert all(0 <= wait <= 100 for wait in waits)
        # One batch per window, and one more where a quiet time ends: never three within one window's length.
        assert all(third - first >= 100 for first, third in zip(flushes, flushes[2:], strict=False))
        windows = [int(flush // 100) for flush in flushes]
        assert all(windows.count(number) <= 2 for number in windows)


class TestDebounce:
    def test_it_waits_for_silence(self) -> None:
        window = Window(DEBOUNCE)
        window.offered(1_000_000)
        assert window.due() == 1_000_100
        window.offered(1_000_080)
        assert window.due() == 1_000_180

    def test_but_not_for_ever(self) -> None:
        window = Window(DEBOUNCE)
        for now in range(1_000_000, 1_000_340, 20):
            window.offered(now)
        assert window.due() == 1_000_350
        window.flushed(1_000_350)
        window.offered(1_000_360)
        assert window.due() == 1_000_460, "the longest wait begins anew"

    @given(GAPS)
    def test_bounds(self, gaps: list[int]) -> None:
        flushes, waits = run(DEBOUNCE, gaps)
        assert min(waits) >= 0
        assert 100 <= max(waits) <= 350
        assert all(later - earlier >= 100 for earlier, later in pairwise(flushes))


@given(st.floats(0, 2e12), st.sampled_from([10.0, 100.0, 250.0]))
def test_window_left(now_ms: float, window_ms: float) -> None:
    left = Window(Profile(window_ms=window_ms)).window_left_ms(now_ms)
    assert 0 < left <= window_ms
    assert (now_ms + left) % window_ms < 1e-3 or window_ms - (now_ms + left) % window_ms < 1e-3


def test_window_left_is_exact_on_whole_milliseconds() -> None:
    window = Window(WINDOW)
    assert window.window_left_ms(1_000_000) == 100
    assert window.window_left_ms(1_000_001) == 99
    assert window.window_left_ms(1_000_099) == 1
