"""Mutations under any interleaving: what the service has is what is cached, and each was carried out once."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.simulation.mutations import play


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_any_interleaving_ends_in_what_the_service_has(seed: int) -> None:
    world = play(random.Random(seed), steps=60, kills=False)
    told = {mutation: statuses[-1] for mutation, statuses in world.statuses.items()}
    assert told.keys() == world.begun.keys()


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_killed_shards_change_nothing_of_it(seed: int) -> None:
    world = play(random.Random(seed), steps=60)
    assert all(count == 1 for count in world.service.carried_out.values())
