"""What writes come to: every rule is broken once, and found."""

from typing import Any

import pytest

from cluster.verify.contract_oracle import Rule, Seen, Truth, Violation
from cluster.verify.write_oracle import Begun, Owned, Shared, check_repeat, stale_write_taken


def owned() -> Owned:
    made = Owned(Truth(), "k")
    made.wrote(5, {"n": 1})
    return made


def found(act: Any, *arguments: Any) -> Rule:
    with pytest.raises(Violation) as raised:
        act(*arguments)
    return raised.value.rule


def test_an_acknowledged_write_is_there() -> None:
    made = owned()
    made.rest(Seen(5, {"n": 1}))
    assert found(made.rest, None) is Rule.LOST_WRITE
    assert found(made.rest, Seen(4, {"n": 0})) is Rule.LOST_WRITE
    assert found(made.rest, Seen(9, {"n": 2})) is Rule.EXTRA_WRITE


def test_a_deleted_entry_is_gone() -> None:
    made = owned()
    made.wrote(None, None)
    made.rest(None)
    assert made.version == 0
    assert found(made.rest, Seen(5, {"n": 1})) is Rule.EXTRA_WRITE


def test_a_write_without_an_answer_may_have_happened() -> None:
    made = owned()
    made.unsure({"n": 2})
    assert not made.is_sure
    made.rest(Seen(5, {"n": 1}))
    made.rest(Seen(7, {"n": 2}))
    assert found(made.rest, Seen(8, {"n": 3})) is Rule.EXTRA_WRITE


def test_versions_of_writes_grow() -> None:
    made = owned()
    made.wrote(None, None)
    assert found(made.wrote, 5, {"n": 2}) is Rule.GROWTH


def test_conditions_are_kept() -> None:
    made = owned()
    made.refused(4, 5)
    assert found(made.refused, 5, 5) is Rule.CONFLICT
    assert stale_write_taken("k", 4, 5, 6).rule is Rule.STALE_WRITE


def test_what_several_count_up_counts_each_once() -> None:
    made = Shared(Truth(), "k")
    for _ in range(3):
        made.counted()
    made.rest(Seen(9, {"n": 3}))
    assert found(made.rest, Seen(9, {"n": 2})) is Rule.LOST_WRITE
    assert found(made.rest, Seen(9, {"n": 4})) is Rule.EXTRA_WRITE
    assert found(made.rest, None) is Rule.LOST_WRITE
    made.unsure()
    made.rest(Seen(9, {"n": 4}))


def test_one_conditional_write_wins() -> None:
    made = Shared(Truth(), "k")
    made.won(5, 6, {"n": 1})
    made.lost(5, 6)
    assert found(made.won, 5, 7, {"n": 1}) is Rule.LOST_UPDATE
    assert found(made.won, 6, 6, {"n": 2}) is Rule.STALE_WRITE
    assert found(made.lost, 6, 6) is Rule.CONFLICT


def test_repeats_get_the_first_answer() -> None:
    check_repeat("k", (200, {"version": 5}), (200, {"version": 5}))
    assert found(check_repeat, "k", (200, {"version": 5}), (200, {"version": 6})) is Rule.REPEAT


def test_a_mutation_is_known_and_settled_once() -> None:
    made = Begun("m")
    for status in ("queued", "pending", "paused", "pending"):
        made.told({"status": status})
    assert not made.is_settled
    for _ in range(2):
        made.told({"status": "success", "result": 1})
    assert made.is_settled
    assert found(made.told, None) is Rule.LOST_MUTATION
    assert found(made.told, {"status": "success", "result": 2}) is Rule.MUTATION
    assert found(made.told, {"status": "error"}) is Rule.MUTATION
    assert found(made.told, {"status": "pending"}) is Rule.MUTATION
