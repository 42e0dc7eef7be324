"""What Ray's head says of the end of a process is taken for an end only where it says so."""

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.actors import ray_head

HERE = {"NodeID": "here", "Alive": True}


@pytest.mark.parametrize(
    ("said", "nodes", "has_ended"),
    [
        ({"State": "ALIVE", "Pid": 7}, [HERE], False),
        ({"State": "ALIVE", "Pid": 8}, [HERE], True),
        ({"State": "PENDING_CREATION", "Pid": 0}, [HERE], False),
        ({"State": "RESTARTING", "Pid": 7}, [HERE], True),
        ({"State": "DEAD", "Pid": 7}, [HERE], True),
        ({"State": "DEAD", "Pid": 7}, [{**HERE, "Alive": False}], False),
        ({"State": "DEAD", "Pid": 7}, [], False),
        ({}, [HERE], False),  # Ray has forgotten the actor
    ],
)
def test_a_process_has_ended_where_its_node_says_so(
    monkeypatch: pytest.MonkeyPatch, said: dict[str, Any], nodes: list[dict[str, Any]], has_ended: bool
) -> None:
    handle = SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: "0a"))
    monkeypatch.setattr(ray_head.ray, "get_actor", lambda *_: handle)
    monkeypatch.setattr(ray_head.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray_head.ray_state, "actors", lambda _: said)
    assert ray_head.has_ended("test", "shard-0", "here", 7) is has_ended
