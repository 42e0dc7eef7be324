"""A gateway as an actor: a `GatewayState` and the server around it.

Crash: clients reconnect and resume with their tokens; shards hear of the new life when it first asks them. Order: per key, as the
shard sent.
"""

import asyncio
from typing import Any

import ray

from cluster.actors.shell import Shell
from cluster.actors.specification import Specification
from cluster.core.gateway_state import GatewayState
from cluster.core.messages import Announce, Answer, ChangeSet, Message, Rebalance, SourceStates
from cluster.gateway import ConfiguredAuthority, GatewayServer
from cluster.observability.metrics import Metrics

EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - what to show in place of it
STALL_CHECK_S = 5.0
BIND_RETRY_S = 0.2
BIND_ATTEMPTS = 100
"""A restarted gateway may find its port still held by the process that was killed."""


class GatewayActor(Shell):
    """Shell of `GatewayState`."""

    machine: GatewayState

    async def __init__(self, specification: bytes, index: int) -> None:  # type: ignore[misc]  # Ray awaits it
        spec = Specification.decode(specification)
        super().__init__(f"gateway-{index}", spec)
        config = spec.config.gateway
        slots = await self.peers.slot_map()
        self._authority = None if config.auth.mode == "none" else ConfiguredAuthority(config)
        self._faults: list[str] = []
        self.machine = GatewayState(
            self.identity,
            int(self.now()),
            slots=slots,
            shards=slots.shards,
            concerns=spec.compiled.concerns,
            authority=self._authority,
            mutations=spec.compiled.mutations,
            patterns=spec.compiled.presence,
        )
        self._server = GatewayServer(
            self.machine,
            self.clock,
            send=self.send,
            rearm=self.arm,
            describe=self.peers.describe,
            scale=self.peers.scale,
            dead_letters=self.peers.all_dead_letters,
            origins=config.origins,
            **({} if self._authority is None else {"prepare": self._authority.prepare}),
        )
        self._metrics = Metrics(component="gateway", actor=self.identity, gateway=str(index))
        self._ages = self._metrics.histogram("end_to_end_seconds")
        if self._authority is not None:
            self._looked(self._authority.look())
        self._shown_host = config.host if config.host not in EVERYWHERE else ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._port = await self._listen(config.host, config.port)
        await self.listen()
        self.spawn(self._watch_stalls())
        if self._authority is not None:
            self.spawn(self._authority.keep(self._looked))

    async def _listen(self, host: str, port: int) -> int:
        for attempt in range(BIND_ATTEMPTS):
            try:
                return await self._server.start(host, port)
            except OSError:
                if attempt == BIND_ATTEMPTS - 1:
                    raise
                await asyncio.sleep(BIND_RETRY_S)
        raise AssertionError("unreachable")

    def _looked(self, is_changed: bool) -> None:
        """Credentials were looked at: those that no longer count end their sessions; faults leave things as they are, and are said."""
        assert self._authority is not None
        if is_changed:
            self.log.info("credentials_read")
            self.run(self.machine.recheck(self.now()))
        before, self._faults = self._faults, self._authority.faults
        for reason in self._faults:
            if reason not in before:
                self.log.error("credentials_refused", reason=reason)
        self._server.not_ready = self._authority.not_ready

    async def _watch_stalls(self) -> None:
        while True:
            await asyncio.sleep(STALL_CHECK_S)
            self._server.run(self.machine.stalled(self.now()))

    def take(self, message: Message) -> Answer:
        """Take a message from another actor."""
        match message:
            case ChangeSet():
                answer, effects = self.machine.change_set(message, self.now())
            case Announce():
                answer, effects = self.machine.announce(message, self.now())
            case SourceStates():
                answer, effects = self.machine.source_states(message, self.now())
            case Rebalance():
                answer, effects = self.machine.rebalance(message, self.now())
            case _:
                raise AssertionError(f"a gateway does not take {type(message).__name__}")
        self.run(effects)
        return answer

    def run(self, effects: Any) -> None:
        """Run effects: the server knows its own, and hands calls back."""
        self._server.run(effects)
        for received_ms, age_ms in self.machine.flushed:
            self._ages.observe(age_ms / 1000.0)
            if self.is_traced:
                self.trace("delivered", "delivery", received_ms, age_ms=round(age_ms, 1))
        self.machine.flushed.clear()

    async def status(self) -> dict[str, object]:
        """Say what `/v1/cluster` shows of this actor."""
        return {
            **self.about(),
            "address": f"http://{self._shown_host}:{self._port}",
            "sessions": len(self.machine.sessions),
            "draining": self._server.draining,
        }

    def reconfigured(self) -> None:
        """Take what the configuration says now of upstreams, mutations and origins; sessions go on."""
        self.machine.concerns = self.specification.compiled.concerns
        self.machine.mutations.declared = self.specification.compiled.mutations
        if self.machine.presence.patterns != self.specification.compiled.presence:
            self.run(self.machine.declare(self.specification.compiled.presence, self.now()))
        self._server.origins = frozenset(self.specification.config.gateway.origins)

    async def leave(self, grace_s: float) -> None:
        """Send clients elsewhere, over so many seconds, and stop listening."""
        self.log.info("draining", sessions=len(self.machine.sessions), grace_s=grace_s)
        await self._server.drain(grace_s)
        self.log.info("drained")

    async def samples(self) -> bytes:
        """Return the metrics, encoded."""
        machine, metrics = self.machine, self._metrics
        metrics.set("gateway_sessions", len(machine.sessions))
        metrics.set("gateway_outbox_bytes", machine.outbox_bytes())
        metrics.set("changes_delivered_total", machine.changes_delivered)
        for result, count in machine.resumes.items():
            metrics.set("resumes_total", count, result=result)
        for code, count in self._server.disconnects.items():
            metrics.set("disconnects_total", count, code=str(code))
        for why, count in machine.ended.items():
            metrics.set("sessions_barred_total", count, reason=why)
        if self._authority is not None:
            for why, count in self._authority.refusals.items():
                metrics.set("credentials_refused_total", count, reason=why)
            if self._authority.jwks is not None:
                for outcome, count in self._authority.jwks.fetches.items():
                    metrics.set("jwks_fetches_total", count, outcome=outcome)
        for source, count in machine.reads.items():
            metrics.set("reads_total", count, result=source)
        return metrics.encode()
