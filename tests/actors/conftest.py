"""What actors are made with where there is no Ray."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.actors import shell
from cluster.core.placement import assign_slots


async def answers(value: Any = None) -> Any:
    return value


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell is alone: nobody calls it, and calls of it are never answered."""
    monkeypatch.setattr(shell.ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n"))
    monkeypatch.setattr(shell, "configure_logs", lambda: None)  # they are the whole process's
    monkeypatch.setattr(shell.lives, "begin", lambda *_: answers(10))
    monkeypatch.setattr(shell.node_link, "listen", lambda *_: answers())
    peers = SimpleNamespace(
        members=answers,
        slot_map=lambda: answers(assign_slots(range(1), 1)),
        gateways=lambda: answers(["gateway-0"]),
        call=lambda *_: asyncio.get_running_loop().create_future(),
    )
    monkeypatch.setattr(shell, "Peers", lambda _: peers)
