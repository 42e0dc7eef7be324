"""Sweeps take a step with every item, in order, a slice at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core import sweep
from cluster.core.sweep import SLICE, Sweeps


def test_a_slice_is_so_many_items() -> None:
    sweeps, taken, done = Sweeps(), [], []
    sweeps.begin(range(2 * SLICE), taken.append, lambda: done.append(len(taken)))
    assert (taken, bool(sweeps)) == ([], True)
    sweeps.advance()
    assert (len(taken), done, bool(sweeps)) == (SLICE, [], True)
    sweeps.advance()
    assert taken == list(range(2 * SLICE))
    sweeps.advance()
    assert (done, bool(sweeps)) == ([2 * SLICE], False)


def test_without_sweeps_there_is_nothing_to_do() -> None:
    sweeps = Sweeps()
    sweeps.advance()
    assert not sweeps


def test_one_of_nothing_is_over_at_once() -> None:
    sweeps, done = Sweeps(), []
    sweeps.begin([], done.append, lambda: done.append("done"))
    sweeps.advance()
    assert (done, bool(sweeps)) == (["done"], False)


def test_a_step_may_begin_another_sweep_which_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "SLICE", 3)
    sweeps, taken = Sweeps(), []

    def step(item: int) -> None:
        taken.append(item)
        if item < 2:
            sweeps.begin([item + 10], taken.append)

    sweeps.begin(range(4), step)
    while sweeps:
        sweeps.advance()
    assert taken == [0, 1, 2, 3, 10, 11]


def test_what_comes_after_the_last_may_begin_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "SLICE", 2)
    sweeps, taken = Sweeps(), []
    sweeps.begin([1], taken.append, lambda: sweeps.begin([2], taken.append))
    while sweeps:
        sweeps.advance()
    assert taken == [1, 2]


@given(st.lists(st.integers(0, 7), max_size=6), st.integers(1, 5))
def test_however_they_are_cut_all_is_done_in_order(sizes: list[int], size_of_slice: int) -> None:
    sweeps, told = Sweeps(), []
    expected: list[tuple[int, int | str]] = []
    for number, size in enumerate(sizes):
        sweeps.begin(
            range(size), lambda item, n=number: told.append((n, item)), lambda n=number: told.append((n, "done"))
        )
        expected += [*[(number, item) for item in range(size)], (number, "done")]
    slices = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "SLICE", size_of_slice)
        while sweeps:
            before = sum(item != "done" for _, item in told)
            sweeps.advance()
            assert sum(item != "done" for _, item in told) - before <= size_of_slice
            slices += 1
            assert slices <= sum(sizes) + 2, "it does not end"
    assert told == expected
