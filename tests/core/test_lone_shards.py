"""How long a shard with one actor is led by nobody is measured, whoever notices first that its process has ended."""

import pytest

from cluster.core.lone_shards import AskAgain, AwaitEnd, LoneShards, Outages, Recovered, Said

A, B = "shard-0", "shard-1"
HERE, THERE, ELSEWHERE = ("n", 1), ("n", 2), ("m", 1)


def leads(place: tuple[str, int], epoch: int = 1) -> Said:
    return Said(place, True, epoch)


@pytest.fixture
def lone() -> LoneShards:
    """Shard 0 leads, as is known."""
    made = LoneShards(Outages())
    assert made.checked(A, None, 0.0) == [], "it starts"
    assert made.checked(A, Said(HERE, False, 0), 1.0) == [], "it has no role yet"
    assert made.checked(A, leads(HERE), 2.0) == [AwaitEnd(A, HERE)], "nobody has waited for it"
    assert made.checked(A, leads(HERE), 3.0) == []
    return made


def test_an_end_is_noticed_at_once_and_the_return_counted_once(lone: LoneShards) -> None:
    assert lone.ended(A, HERE, 10.0) == [AskAgain(A, HERE)]
    assert lone.checked(A, None, 11.0) == []
    assert lone.answered(A, HERE, None, 12.0) == []
    assert lone.answered(A, HERE, Said(THERE, False, 0), 13.0) == [], "nobody leads"
    assert lone.is_away(A, HERE)
    assert lone.answered(A, HERE, leads(THERE, 2), 14.0) == [Recovered(A, 2, 4.0), AwaitEnd(A, THERE)]
    assert not lone.is_away(A, HERE)
    assert lone.checked(A, leads(THERE, 2), 15.0) == []


def test_a_check_may_be_quicker(lone: LoneShards) -> None:
    lone.ended(A, HERE, 10.0)
    assert lone.checked(A, leads(THERE, 2), 14.0) == [Recovered(A, 2, 4.0), AwaitEnd(A, THERE)]
    assert lone.answered(A, HERE, leads(THERE, 2), 15.0) == []


def test_one_whose_node_is_lost_is_missed_by_a_check(lone: LoneShards) -> None:
    assert lone.checked(A, None, 10.0) == []
    assert lone.checked(A, None, 15.0) == []
    assert lone.checked(A, leads(ELSEWHERE, 2), 20.0) == [Recovered(A, 2, 10.0), AwaitEnd(A, ELSEWHERE)]


def test_one_that_was_slow_to_answer_was_not_lost(lone: LoneShards) -> None:
    lone.checked(A, None, 10.0)
    assert lone.checked(A, leads(HERE), 11.0) == []
    assert lone.checked(A, leads(THERE, 2), 20.0) == [AwaitEnd(A, THERE)], "of its end nobody has said anything"


def test_an_answer_from_before_the_end_does_not_undo_it(lone: LoneShards) -> None:
    lone.ended(A, HERE, 10.0)
    assert lone.checked(A, leads(HERE), 11.0) == []
    assert lone.answered(A, HERE, leads(THERE, 2), 12.0) == [Recovered(A, 2, 2.0), AwaitEnd(A, THERE)]


def test_an_end_that_was_none_is_not_counted_and_the_next_is(lone: LoneShards) -> None:
    lone.ended(A, HERE, 10.0)
    assert lone.answered(A, HERE, leads(HERE), 11.0) == [AwaitEnd(A, HERE)], "it was asked after that"
    assert not lone.is_away(A, HERE)
    assert lone.ended(A, HERE, 20.0) == [AskAgain(A, HERE)]
    assert lone.answered(A, HERE, leads(THERE, 2), 21.0) == [Recovered(A, 2, 1.0), AwaitEnd(A, THERE)]


def test_an_end_of_one_that_it_was_long_ago_says_nothing(lone: LoneShards) -> None:
    lone.checked(A, leads(THERE, 2), 10.0)
    assert lone.ended(A, HERE, 11.0) == []
    assert lone.checked(A, leads(ELSEWHERE, 3), 20.0) == [AwaitEnd(A, ELSEWHERE)]


def test_one_that_is_no_more_or_one_of_two_is_not_waited_for(lone: LoneShards) -> None:
    lone.ended(A, HERE, 10.0)
    assert lone.forget(A) == HERE
    assert not lone.is_away(A, HERE)
    assert lone.answered(A, HERE, leads(THERE, 2), 11.0) == []
    assert lone.ended(A, HERE, 12.0) == []
    assert lone.forget(A) is None


def test_each_shard_is_measured_by_itself(lone: LoneShards) -> None:
    lone.checked(B, leads(ELSEWHERE), 10.0)
    lone.ended(A, HERE, 10.0)
    lone.ended(B, ELSEWHERE, 12.0)
    assert lone.checked(B, leads(THERE, 2), 13.0) == [Recovered(B, 2, 1.0), AwaitEnd(B, THERE)]
    assert lone.checked(A, leads(THERE, 2), 13.0) == [Recovered(A, 2, 3.0), AwaitEnd(A, THERE)]


def test_an_outage_is_from_its_first_sign_and_may_have_been_none() -> None:
    outages = Outages()
    outages.begin(0, 1.0)
    outages.begin(0, 2.0)
    assert outages.end(A, 7, 5.0) == [Recovered(A, 7, 4.0)]
    assert outages.end(A, 7, 6.0) == []
    outages.begin(0, 7.0)
    outages.void(0)
    assert outages.end(A, 8, 9.0) == []
