"""What a gateway's actor does whenever it has looked at its credentials."""

from types import SimpleNamespace
from typing import Any

from cluster.actors.gateway import GatewayActor


def test_with_the_credentials_it_looks_at_the_wall_clock_changed_or_not() -> None:
    looked: list[str] = []
    actor: Any = object.__new__(GatewayActor)
    actor._authority, actor._faults = SimpleNamespace(faults=[], not_ready=""), []
    actor._server = SimpleNamespace(look_at_wall=lambda: looked.append("wall"))
    actor._looked(False)
    assert looked == ["wall"]
