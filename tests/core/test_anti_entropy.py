"""Every replica is checked in its turn, at a bounded cost, and what differs is found out once."""

import pytest

from cluster.core import anti_entropy
from cluster.core.anti_entropy import CHECK_MS, AntiEntropy


def test_everything_is_checked_within_a_round_and_new_things_in_the_next() -> None:
    machine = AntiEntropy()
    machine.begin(0.0)
    machine.begin(1_000.0)
    held = [f"k{n}" for n in range(12)]
    assert machine.due(held, CHECK_MS - 1) == []
    rounds = [machine.due(held, CHECK_MS * n) for n in range(1, 5)]
    assert [key for keys in rounds for key in keys] == held
    assert max(map(len, rounds)) == 3
    assert machine.due(["new", "new"], CHECK_MS * 5) == ["new"]


def test_of_very_many_no_more_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anti_entropy, "CHECKED", 4)
    machine = AntiEntropy()
    machine.begin(0.0)
    held = [f"k{n}" for n in range(100)]
    checked = [machine.due(held, CHECK_MS * n) for n in range(1, 26)]
    assert [len(keys) for keys in checked] == [4] * 25
    assert [key for keys in checked for key in keys] == held


def test_where_nothing_is_held_nothing_is_due_until_something_is() -> None:
    machine = AntiEntropy()
    assert machine.due([], 10**9) == []
    machine.begin(0.0)
    assert machine.due([], CHECK_MS) == []
    assert machine.due_ms is None
    machine.begin(9_000.0)
    assert machine.due_ms == 9_000.0 + CHECK_MS


def test_a_shard_that_has_not_answered_is_not_asked_more() -> None:
    machine = AntiEntropy()
    assert machine.asks(0, ["a"])
    assert not machine.asks(0, ["b"])
    assert machine.asks(1, ["b"])
    machine.forget(0)
    assert machine.asks(0, ["b"])
    machine.compare(0, [], lambda _: 1)
    assert machine.asks(0, ["b"])


def test_what_differs_is_told_and_counted_and_known_when_it_differs_again() -> None:
    machine = AntiEntropy()
    held = {"a": 1, "b": 2, "gone": None}.get
    machine.asks(0, ["a", "b", "gone"])
    assert machine.compare(0, [("a", 1), ("b", 5), ("gone", 7)], held) == ([("b", 2)], False)
    assert machine.divergences == 1
    machine.asks(0, ["a", "b"])
    assert machine.compare(0, [("b", 6)], held) == ([("b", 2)], True)
    machine.asks(0, ["a", "b"])
    assert machine.compare(0, [], held) == ([], False)
    machine.asks(0, ["a", "b"])
    assert machine.compare(0, [("b", 7)], held) == ([("b", 2)], False), "it was sound meanwhile"
