"""The batching coordinator as an actor.

Crash: what its open windows held is lost; ingestors hear of the new life and tell shards what should have come. Retry: a blob that
comes twice is taken once. Order: per feed and shard, as the ingestor sent.
"""

from cluster.actors.shell import Shell
from cluster.actors.specification import Specification
from cluster.core.coordinator_state import CoordinatorState
from cluster.core.messages import Answer, Blob, Message, Rebalance
from cluster.observability.metrics import Metrics


class CoordinatorActor(Shell):
    """Shell of `CoordinatorState`."""

    machine: CoordinatorState

    async def __init__(self, specification: bytes, index: int) -> None:  # type: ignore[misc]  # it is awaited, as Ray has it
        spec = Specification.decode(specification)
        super().__init__(f"coordinator-{index}", spec)
        self.machine = CoordinatorState(self.identity, await self.begin_life(), profiles=spec.compiled.profiles)
        self._metrics = Metrics(component="coordinator", actor=self.identity, shard="")
        self._sizes = self._metrics.histogram("window_size_operations")
        self._waits = self._metrics.histogram("window_wait_seconds")
        self.run(())
        await self.listen()

    def take(self, message: Message) -> Answer:
        """Take a message from another actor."""
        match message:
            case Blob():
                answer, effects = self.machine.blob(message, self.now())
            case Rebalance():
                return self.machine.rebalance(message)
            case _:
                raise AssertionError(f"a coordinator does not take {type(message).__name__}")
        self.run(effects)
        for operations, waited_ms in self.machine.flushed:
            self._sizes.observe(operations)
            self._waits.observe(waited_ms / 1000.0)
        self.machine.flushed.clear()
        return answer

    async def status(self) -> dict[str, object]:
        """Say what `/v1/cluster` shows of this actor."""
        return self.about()

    async def samples(self) -> bytes:
        """Return the metrics, encoded."""
        machine = self.machine
        self._metrics.set("operations_coalesced_total", machine.operations_in - machine.operations_out)
        self._metrics.set("window_flushes_total", machine.flushes)
        self._metrics.forget("shard_mailbox_batches")  # of shards that are no more
        for shard, batches in machine.mailboxes(self.now()).items():
            self._metrics.set("shard_mailbox_batches", batches, shard=str(shard))
        return self._metrics.encode()
