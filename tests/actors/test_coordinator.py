"""What a coordinator's actor says: of the shards that there are."""

from cluster.actors.coordinator import CoordinatorActor
from cluster.actors.specification import encode
from cluster.config import load_mapping
from cluster.core.messages import Rebalance
from cluster.core.operation import Set
from cluster.core.placement import assign_slots
from cluster.observability.metrics import decode
from tests.core.test_coordinator_state import START, blob, part, state


async def mailboxes(actor: CoordinatorActor) -> set[str]:
    """Return the shards whose mailboxes it tells of."""
    return {each.labels[1] for each in decode(await actor.samples()) if each.name == "shard_mailbox_batches"}


async def test_a_shard_that_is_no_more_has_no_mailbox(without_ray: None) -> None:
    actor = object.__new__(CoordinatorActor)
    await actor.__init__(encode(load_mapping({}, {}), 2), 0)
    actor.machine = state()
    actor.machine.blob(blob(1, part(0, "k", Set(b"1"))), START)
    assert await mailboxes(actor) == {"0", "1"}
    actor.take(Rebalance("release", assign_slots(range(1), 2), 3))
    assert await mailboxes(actor) == {"0"}
