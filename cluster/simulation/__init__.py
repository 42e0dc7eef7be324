"""All state machines in one process, under a virtual clock and a seeded network: the same code as under Ray, thousands of times faster.

`World` runs a cluster; `View` is a client that insists on the delivery contract, `Writer` one that writes, `Oracle` the judge of both. A seed is a schedule: the same seed takes the same steps.
"""

from cluster.simulation.network import Faults
from cluster.simulation.oracle import Oracle
from cluster.simulation.view import View, Violation
from cluster.simulation.world import World
from cluster.simulation.writer import Writer

__all__ = ["Faults", "Oracle", "View", "Violation", "World", "Writer"]
