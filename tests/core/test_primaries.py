"""Who is called, and what is too old to be heard."""

import pytest

from cluster.core.primaries import Primaries, actors_of, shard_of


def test_names() -> None:
    assert actors_of("shard-3") == ("shard-3", "shard-3-b")
    assert [shard_of(each) for each in actors_of("shard-3")] == ["shard-3", "shard-3"]


def test_as_long_as_nothing_is_known_the_shard_s_namesake_is_called() -> None:
    assert Primaries().actor("shard-3") == "shard-3"


def test_who_says_that_it_leads_is_called_and_earlier_lives_are_over() -> None:
    primaries = Primaries()
    assert primaries.told("shard-3", "shard-3-b", 20)
    assert not primaries.told("shard-3", "shard-3-b", 20)
    assert not primaries.told("shard-3", "shard-3", 19), "a late word of an old primary"
    assert primaries.actor("shard-3") == "shard-3-b"
    assert [primaries.is_over("shard-3", life) for life in (19, 20, 21)] == [True, False, False]
    assert not primaries.is_over("shard-4", 1)
    assert list(primaries) == ["shard-3"]


@pytest.mark.parametrize("named", ["", "shard-9"])
def test_after_a_miss_the_other_is_tried_and_then_the_first_again(named: str) -> None:
    primaries = Primaries()
    primaries.missed("shard-3", "shard-3", named)
    assert primaries.actor("shard-3") == "shard-3-b"
    primaries.missed("shard-3", "shard-3-b")
    assert primaries.actor("shard-3") == "shard-3"


def test_who_names_the_primary_is_believed() -> None:
    primaries = Primaries()
    primaries.missed("shard-3", "shard-3", "shard-3")
    assert primaries.actor("shard-3") == "shard-3"


def test_a_miss_of_one_that_is_not_called_any_longer_changes_nothing() -> None:
    primaries = Primaries()
    primaries.told("shard-3", "shard-3-b", 20)
    primaries.missed("shard-3", "shard-3")
    assert primaries.actor("shard-3") == "shard-3-b"
