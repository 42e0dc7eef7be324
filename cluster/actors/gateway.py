"""A gateway as an actor: a `GatewayState` and the server around it.

Crash: clients reconnect and resume with their tokens; shards hear of the new life when it first asks them. Order: per key, as the
shard sent.
"""

import asyncio
import ctypes
import resource
from contextlib import suppress
from typing import Any

import msgspec
import ray

from cluster.actors.reports import Reports
from cluster.actors.shell import Shell
from cluster.actors.specification import Specification
from cluster.core.degradation import LOOK_MS
from cluster.core.gateway_state import GatewayState
from cluster.core.limits import Limits
from cluster.core.messages import Announce, Answer, ChangeSet, Message, Rebalance, SourceStates
from cluster.core.position import Tokens
from cluster.core.url import origin
from cluster.gateway import GatewayServer, configured_authority
from cluster.observability.metrics import Metrics

EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - what to show in place of it
OTHER_FILES = 512
"""Of what a process may open is for what is no connection of a client: Ray, logs, links to shards."""
M_MMAP_THRESHOLD = -3
"""glibc's name of a setting (malloc.h)."""
LARGE_BYTES = 128 * 1024
"""Larger pieces of memory go back to the system as soon as they are free. By itself glibc raises that, up to 32 MiB, with the first that
goes, and what a flood of requests took would stay with the process."""
BIND_RETRY_S = 0.2
BIND_ATTEMPTS = 100
"""A restarted gateway may find its port still held by the process that was killed."""


class GatewayActor(Shell):
    """Shell of `GatewayState`."""

    machine: GatewayState

    async def __init__(self, specification: bytes, index: int) -> None:  # type: ignore[misc]  # it is awaited, as Ray has it
        spec = Specification.decode(specification)
        super().__init__(f"gateway-{index}", spec)
        with suppress(OSError, AttributeError):  # of another C library
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        config = spec.config.gateway
        slots = await self.peers.slot_map()
        self._authority = configured_authority(config)
        self._faults: list[str] = []
        self.machine = GatewayState(
            self.identity,
            await self.begin_life(),
            slots=slots,
            shards=slots.shards,
            tokens=Tokens(spec.token_secret, spec.name),
            concerns=spec.compiled.concerns,
            authority=self._authority,
            mutations=spec.compiled.mutations,
            patterns=spec.compiled.presence,
            limits=self._limits(config.limits),
            outbox_bytes=config.outbox_bytes,
        )
        self._server = GatewayServer(
            self.machine,
            self.clock,
            send=self.send,
            rearm=self.arm,
            describe=self.peers.describe,
            scale=self.peers.scale,
            dead_letters=self.peers.all_dead_letters,
            copy=self.peers.copy,
            origins=config.origins,
            **({} if self._authority is None else {"prepare": self._authority.prepare}),
            trusted_proxies=config.trusted_proxies,
            hsts_s=int(config.hsts_ms / 1000),
            demo_page=config.demo_page,
        )
        self._metrics = Metrics(component="gateway", actor=self.identity, gateway=str(index))
        self._ages = self._metrics.histogram("end_to_end_seconds")
        if self._authority is not None:
            self._looked(self._authority.look())
        self._shown_host = config.host if config.host not in EVERYWHERE else ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        self._port = await self._listen(config.host, config.port)
        if self._server.keeper is not None:
            self.tasks.hold(self._server.keeper)
        await self.listen()
        self.spawn(self._watch_sockets())
        self.spawn(Reports(self.machine, self._server, self.peers, self.clock, self.log).keep())
        if self._authority is not None:
            self.spawn(self._authority.keep(self._looked))

    def _limits(self, limits: Limits) -> Limits:
        """Return the limits with no more connections than the process may open files."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES
        if files >= limits.connections:
            return limits
        self.log.warning("fewer_connections", wanted=limits.connections, files=files)
        return msgspec.structs.replace(limits, connections=max(1, files))

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
        self._server.look_at_wall()
        if is_changed:
            self.log.info("credentials_read")
            self.run(self.machine.recheck(self.now()))
        before, self._faults = self._faults, self._authority.faults
        for reason in self._faults:
            if reason not in before:
                self.log.error("credentials_refused", reason=reason)
        self._server.not_ready = self._authority.not_ready

    async def _watch_sockets(self) -> None:
        while True:
            await asyncio.sleep(LOOK_MS / 1000.0)
            if self.machine.is_slowed:
                self._server.look()

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
        for shard, key, version, count in self.machine.diverged:
            self.log.error("replicas_diverged", shard=shard, key=key, version=version, replicas=count)
        self.machine.diverged.clear()

    async def status(self) -> dict[str, object]:
        """Say what `/v1/cluster` shows of this actor."""
        return {
            **self.about(),
            "address": origin(self._shown_host, self._port),
            "sessions": len(self.machine.sessions),
            "subscriptions": self.machine.subscriptions(),
            "draining": self._server.draining,
        }

    def reconfigured(self) -> None:
        """Take what the configuration says now; sessions go on."""
        self.machine.concerns = self.specification.compiled.concerns
        self.machine.mutations.declared = self.specification.compiled.mutations
        if self.machine.presence.patterns != self.specification.compiled.presence:
            self.run(self.machine.declare(self.specification.compiled.presence, self.now()))
        config = self.specification.config.gateway
        self._server.reconfigure(
            self._limits(config.limits),
            config.outbox_bytes,
            origins=config.origins,
            trusted_proxies=config.trusted_proxies,
            hsts_s=int(config.hsts_ms / 1000),
        )

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
        metrics.forget("shard_subscriptions")  # of shards that are no more
        for shard, count in machine.subscriptions().items():
            metrics.set("shard_subscriptions", count, shard=str(shard))
        for level, count in machine.degraded().items():
            metrics.set("sessions_degraded", count, level=level)
        metrics.set("replica_divergences_total", machine.anti_entropy.divergences)
        metrics.set("changes_delivered_total", machine.changes_delivered)
        for result, count in machine.resumes.items():
            metrics.set("resumes_total", count, result=result)
        for code, count in self._server.disconnects.items():
            metrics.set("disconnects_total", count, code=code)
        for why, count in machine.ended.items():
            metrics.set("sessions_barred_total", count, reason=why)
        if self._authority is not None:
            for why, count in self._authority.refusals.items():
                metrics.set("credentials_refused_total", count, reason=why)
            if self._authority.jwks is not None:
                for outcome, count in self._authority.jwks.fetches.items():
                    metrics.set("jwks_fetches_total", count, outcome=outcome)
        for limit, count in machine.limited.items():
            metrics.set("limited_total", count, limit=limit)
        for source, count in machine.reads.items():
            metrics.set("reads_total", count, result=source)
        return metrics.encode()
