"""Ingestors are added and taken away step by step, one change at a time; how many there are follows their load."""

import pytest

from cluster.core.messages import Members
from cluster.core.scaling import Autoscale, Autoscaler, Reported, Retire, Scaling, Tell

NAMES = [f"ingestor-{n}" for n in range(4)]
SHARDS = {"shard-0": 5, "shard-1": 5}


def reports(members: Members, *names: str, settled: bool = True, idle: bool = False) -> dict[str, Reported]:
    return {name: Reported(members, settled, idle) for name in names}


def test_nothing_to_do() -> None:
    scaling = Scaling(Members(5, NAMES[:2]))
    assert scaling.is_done
    assert scaling.step(reports(scaling.members, *NAMES[:2]), SHARDS) == []


def test_from_one_to_two_and_back() -> None:
    one = Members(5, NAMES[:1])
    scaling = Scaling(one)
    scaling.wanted = 2
    assert scaling.actors == NAMES[:2]
    assert scaling.step(reports(one, NAMES[0]), SHARDS) == [], "the new one does not answer yet"
    assert scaling.members == one
    moving = Members(6, NAMES[:2], NAMES[:1])
    told = scaling.step(reports(one, *NAMES[:2]), SHARDS)
    assert told == [Tell(name, moving) for name in [*NAMES[:2], *SHARDS]]
    shards = dict.fromkeys(SHARDS, 6)
    unsettled = {**reports(moving, NAMES[0]), **reports(moving, NAMES[1], settled=False)}
    assert scaling.step(unsettled, shards) == []
    assert scaling.step(reports(moving, *NAMES[:2]), {**shards, "shard-1": 5}) == [Tell("shard-1", moving)]
    assert scaling.step(reports(moving, *NAMES[:2]), {**shards, "shard-1": None}) == [], "a shard that does not answer"
    scaling.wanted = 1
    assert scaling.actors == NAMES[:2], "one change at a time"
    two = Members(6, NAMES[:2])
    assert scaling.step(reports(moving, *NAMES[:2]), shards) == [Tell(name, two) for name in NAMES[:2]]
    back = Members(7, NAMES[:1], NAMES[:2])
    scaling.step(reports(two, *NAMES[:2]), shards)
    assert scaling.members == back
    assert not scaling.is_done
    shards = dict.fromkeys(SHARDS, 7)
    end = Members(7, NAMES[:1])
    assert scaling.step(reports(back, *NAMES[:2]), shards) == [Tell(name, end) for name in NAMES[:2]]
    assert scaling.step(reports(end, *NAMES[:2]), shards) == [], "it has something left to do"
    assert scaling.actors == NAMES[:2]
    assert scaling.step(reports(end, *NAMES[:2], idle=True), shards) == [Retire(NAMES[1])]
    assert scaling.actors == NAMES[:1]
    assert scaling.is_done


def test_the_next_life_goes_on_from_what_ingestors_know() -> None:
    scaling = Scaling(Members(1, NAMES[:1]))
    scaling.recover({NAMES[0]: Members(5, NAMES[:1], NAMES[:3]), NAMES[1]: Members(4, NAMES[:3])})
    assert scaling.members == Members(5, NAMES[:1], NAMES[:3])
    assert scaling.actors == NAMES[:3]
    assert scaling.wanted == 1
    scaling = Scaling(Members(9, NAMES[:1]))
    scaling.recover({})
    assert scaling.is_done


def test_a_life_that_begins_later_keeps_the_ingestors_that_there_are() -> None:
    two = Members(5, NAMES[:2])
    scaling = Scaling(Members(9, NAMES[:1]))
    scaling.recover(dict.fromkeys(NAMES[:2], two))
    assert (scaling.members, scaling.wanted, scaling.is_done) == (two, 2, True)


def test_the_next_life_ends_ingestors_that_nobody_counts_on() -> None:
    """Made, and not told yet; or about to be ended."""
    one = Members(5, NAMES[:1])
    scaling = Scaling(Members(9, NAMES[:1]))
    scaling.recover(dict.fromkeys(NAMES[:2], one))
    assert scaling.actors == NAMES[:2]
    assert scaling.step(reports(one, *NAMES[:2], idle=True), dict.fromkeys(SHARDS, 5)) == [Retire(NAMES[1])]
    assert scaling.is_done


CALM = 60_000.0


@pytest.mark.parametrize(
    ("count", "loads", "wanted"),
    [
        (1, [(0.5, False)], 1),
        (1, [(0.71, False)], 2),
        (1, [(2.9, False)], 4),
        (2, [(0.2, False), (0.1, True)], 3),
        (4, [(0.9, True)] * 4, 4),
        (2, [(0.2, False), (0.1, False)], 1),
        (2, [(0.3, False), (0.2, False)], 2),
        (1, [(0.0, False)], 1),
        (7, [(0.5, False)] * 7, 4),
        (2, [(0.9, False)], 2),
    ],
    ids=[
        "fits",
        "more than the target",
        "far more",
        "one had to stop reading",
        "no more allowed",
        "one would do",
        "one would hardly do",
        "no fewer allowed",
        "above the most",
        "one has not said",
    ],
)
def test_how_many_follows_from_their_load(count: int, loads: list[tuple[float, bool]], wanted: int) -> None:
    assert Autoscaler(Autoscale(), 0.0).wanted(count, loads, CALM) == wanted


def test_changes_keep_their_distance() -> None:
    scaler = Autoscaler(Autoscale(cool_down_ms=1_000.0), 0.0)
    busy = [(0.9, False)]
    assert scaler.wanted(1, busy, 999.0) == 1
    assert scaler.wanted(1, busy, 1_000.0) == 2
    assert scaler.wanted(2, busy * 2, 1_999.0) == 2
    assert scaler.wanted(2, busy * 2, 2_000.0) == 3
