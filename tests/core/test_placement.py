"""Placement is stable, total and moves little."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.placement import SLOTS, assign_slots, coordinator_of, rendezvous, slot
from cluster.core.query_key import canonical

names = st.text(min_size=1, max_size=20)


def test_slots_are_fixed_for_ever() -> None:
    # crc32 of the UTF-8 text; stores and other languages rely on these very numbers.
    assert slot(canonical([])) == 809
    assert slot(canonical(["projects", "detail", "7"])) == 723
    assert slot(canonical(["größe", {"a": 1}])) == 1013


def test_a_map_is_the_same_wherever_it_is_made() -> None:
    slots = assign_slots(range(4), 7)
    assert slots.epoch == 7
    assert slots.owners == assign_slots([3, 1, 0, 2], 1).owners
    assert len(slots.owners) == SLOTS
    key = canonical(["metrics", 1])
    assert slots.shard(key) == slots.owners[slot(key)]


@pytest.mark.parametrize(("shards", "over"), [(1, 1.0), (2, 1.05), (4, 1.05), (8, 1.17), (16, 1.27), (32, 1.29)])
def test_shares_are_as_even_as_documented(shards: int, over: float) -> None:
    shares = Counter(assign_slots(range(shards), 1).owners)
    assert shares.keys() == set(range(shards))
    assert max(shares.values()) <= over * SLOTS / shards


def test_a_new_shard_only_receives() -> None:
    maps = [assign_slots(range(count), 1).owners for count in range(1, 9)]
    for new, (before, after) in enumerate(pairwise(maps), start=1):
        moved = [(old, to) for old, to in zip(before, after, strict=True) if old != to]
        assert {to for _, to in moved} == {new}
        assert {old for old, _ in moved} == set(range(new)), "every shard gives"


def test_a_map_needs_a_shard() -> None:
    with pytest.raises(ValueError, match="empty"):
        assign_slots([], 1)


@given(name=names, nodes=st.lists(names, min_size=1, max_size=6, unique=True), new=names)
def test_a_new_node_takes_names_only_to_itself(name: str, nodes: list[str], new: str) -> None:
    before = rendezvous(name, nodes)
    assert before in nodes
    assert rendezvous(name, [*nodes, new]) in {before, new}
    assert rendezvous(name, nodes[::-1]) == before


def test_sources_spread_over_ingestors() -> None:
    ingestors = [f"ingestor-{n}" for n in range(4)]
    shares = Counter(rendezvous(f"source-{n}", ingestors) for n in range(400))
    assert all(70 <= shares[ingestor] <= 130 for ingestor in ingestors)


def test_coordinators_divide_the_shards() -> None:
    assert [coordinator_of(shard, 3) for shard in range(7)] == [0, 1, 2, 0, 1, 2, 0]
