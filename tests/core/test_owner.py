"""Which shard a request is for."""

from typing import Any

import pytest

from cluster.core.messages import (
    Act,
    Edit,
    Erase,
    ListMembers,
    ListMutations,
    Mutate,
    PresenceResume,
    Read,
    Undo,
    Watch,
    Write,
)
from cluster.core.owner import owner
from cluster.core.placement import assign_slots
from cluster.core.query_key import CanonicalKey

SLOTS = assign_slots(range(4), 1)
KEY = next(key for key in (f'["note",{n}]' for n in range(50)) if SLOTS.shard(CanonicalKey(key)) == 3)


@pytest.mark.parametrize(
    "request_",
    [
        Read(1, KEY),
        Write(1, "once", KEY, b"1"),
        Edit(1, "once", KEY, b"[]", None),
        Erase(1, "once", KEY),
        Act(1, "invalidate", KEY, True),
        Watch(1, KEY, False),
        Mutate(1, "m1", "save", b"{}", KEY),
        ListMembers(1, KEY, "", 10),
    ],
)
def test_what_is_about_one_key_scope_or_topic_is_for_its_shard(request_: Any) -> None:
    assert owner(request_, SLOTS) == 3


@pytest.mark.parametrize(
    "request_",
    [
        Act(1, "invalidate", KEY),
        Watch(1, KEY, True),
        Undo(1, "m1"),
        ListMutations(1, "m1"),
        PresenceResume(1, 9, "member"),
    ],
)
def test_the_rest_is_for_any(request_: Any) -> None:
    assert owner(request_, SLOTS) is None
