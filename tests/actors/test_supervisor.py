"""What the supervisor says of actors, given what they said of themselves."""

import pytest

from cluster.actors.supervisor import standby_row

STATUS = {"node": "n", "pid": 7, "life": 2}


@pytest.mark.parametrize(
    ("said", "is_in_sync"),
    [
        ({"actor": "shard-0-b", "life": 2, "in_sync": True}, True),
        ({"actor": "shard-0-b", "life": 2, "in_sync": False}, False),
        ({"actor": "shard-0-b", "life": 1, "in_sync": True}, False),  # it has begun anew since
        ({"actor": "shard-0", "life": 2, "in_sync": True}, False),
        ({}, False),
    ],
)
def test_a_standby_is_in_sync_if_its_primary_means_this_life_of_it(said: dict[str, object], is_in_sync: bool) -> None:
    assert standby_row("shard-0-b", STATUS, said) == {"node": "n", "pid": 7, "in_sync": is_in_sync}
    assert standby_row("shard-0-b", {}, said) == {"node": None, "pid": None, "in_sync": False}
