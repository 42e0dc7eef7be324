"""An ingestor as an actor: the sources given to it, read into an `IngestionState`.

Crash: what was not sent is lost and so is what passes meanwhile; the new life opens its sources as new incarnations, and shards reset
what they feed. Retry: a blob that comes twice is taken once. Order: per feed.
"""

import os
from collections import Counter
from typing import Any

import orjson

from cluster.actors.shell import Shell
from cluster.actors.specification import Specification
from cluster.config.model import SourceConfig
from cluster.core import template
from cluster.core.ingestion_state import IngestionState, Join, Leave, Resume
from cluster.core.messages import Announce, Claimed, Demand
from cluster.core.retry import Backoff
from cluster.core.rule import FrameFault
from cluster.observability.metrics import Metrics
from cluster.sources import Source, SourceState, SseSource, WebSocketSource
from cluster.wire import blob


class IngestionActor(Shell):
    """Shell of `IngestionState`; it listens to its sources (`SourceListener`)."""

    machine: IngestionState

    async def __init__(self, specification: bytes, index: int) -> None:  # type: ignore[misc]  # Ray awaits it
        spec = Specification.decode(specification)
        super().__init__(f"ingestor-{index}", spec.name)
        config = spec.config
        mine = [name for name in config.sources if spec.ingestor_of(name) == self.identity]
        self._routers = {name: spec.compiled.router(name) for name in mine}
        always = spec.compiled.feeds.always()
        self.machine = IngestionState(
            self.identity,
            int(self.now()),
            routers=self._routers,
            always=always,
            slots=spec.slots,
            shards=config.cluster.shards,
            coordinators=config.cluster.coordinators,
            profiles=spec.compiled.profiles,
            gateways=spec.gateways,
        )
        self._metrics = Metrics(component="ingestion")
        self._decode_errors: dict[str, int] = dict.fromkeys(mine, 0)
        self._refused: Counter[tuple[str, str]] = Counter()
        self._sources = {name: self._source(name, config.sources[name]) for name in mine}
        self.run(())
        for name, source in self._sources.items():
            for owner, channel in always:
                if owner == name:
                    source.join(channel)
            self.spawn(source.run())

    def _source(self, name: str, config: SourceConfig) -> Source:
        backoff = Backoff(config.reconnect.initial_ms, config.reconnect.max_ms, config.reconnect.attempts)
        if config.type == "sse":
            return SseSource(name, config.url, self, backoff=backoff, **_sse_options(config))
        return WebSocketSource(name, config.url, self, backoff=backoff, **_websocket_options(config))

    # --- listening -----------------------------------------------------------------------------------------------

    def opened(self, source: str) -> None:
        """A connection is up."""
        self.log.info("source_connected", source=source)
        self.run(self.machine.opened(source, self.now()))

    def received(self, source: str, frame: bytes) -> bool:
        """Take a frame; the hot path."""
        machine = self.machine
        try:
            go_on = machine.receive(source, frame, self.clock.now_ms())
        except FrameFault as fault:
            self._fault(source, fault)
            return True
        if machine.rearm:
            machine.rearm = False
            self.arm()
        return go_on

    def received_event(self, source: str, event: str, data: bytes, event_id: str | None) -> bool:
        """Take a server-sent event."""
        try:
            go_on = self.machine.receive_event(source, event, data, event_id, self.clock.now_ms())
        except FrameFault as fault:
            self._fault(source, fault)
            return True
        if self.machine.rearm:
            self.machine.rearm = False
            self.arm()
        return go_on

    def _fault(self, source: str, fault: FrameFault) -> None:
        self._decode_errors[source] += 1
        self.log.sampled("frame_dropped", fault.reason, source=source, detail=str(fault)[:200])

    def refused(self, source: str, reason: str, size_bytes: int) -> None:
        """Something was dropped unread."""
        self._refused[source, reason] += 1
        self.log.sampled("frame_dropped", reason, source=source, bytes=size_bytes)

    def closed(self, source: str, reason: str) -> None:
        """A connection is lost, or could not be made."""
        self.log.sampled("source_disconnected", source, reason=reason)

    def state_changed(self, source: str, state: SourceState) -> None:
        """A source's state changed."""
        self.log.debug("source_state", source=source, state=state.value)
        self.run(self.machine.state_changed(source, state.value, self.now()))

    # --- calls ---------------------------------------------------------------------------------------------------

    async def call(self, *pieces: bytes) -> bytes:
        """Take a message from another actor."""
        message = blob.decode_message(pieces)
        match message:
            case Demand():
                answer, effects = self.machine.demand(message, self.now())
            case Claimed():
                answer, effects = self.machine.claimed(message, self.now())
            case Announce():
                answer, effects = self.machine.announce(message, self.now())
            case _:
                raise AssertionError(f"an ingestor does not take {type(message).__name__}")
        self.run(effects)
        return blob.encode_answer(answer)

    def effect(self, effect: object) -> None:
        """Join, leave, read on."""
        match effect:
            case Join(source=source, channel=channel):
                self._sources[source].join(channel)
            case Leave(source=source, channel=channel):
                self._sources[source].leave(channel)
            case Resume(source=source):
                self._sources[source].resume()
            case _:
                raise AssertionError(f"no such effect: {effect!r}")

    async def status(self) -> dict[str, object]:
        """Say what `/v1/cluster` shows of this actor."""
        return {
            "pid": os.getpid(),
            "node": self.node,
            "sources": [
                {
                    "name": name,
                    "state": source.state.value,
                    "events": self.machine.events_received[name],
                    "reconnects": source.reconnects,
                }
                for name, source in self._sources.items()
            ],
        }

    async def samples(self) -> bytes:
        """Return the metrics, encoded."""
        machine, metrics = self.machine, self._metrics
        for name, source in self._sources.items():
            metrics.set("events_received_total", machine.events_received[name], source=name)
            metrics.set("event_decode_errors_total", self._decode_errors[name], source=name)
            metrics.set("source_connected", float(source.state is SourceState.CONNECTED), source=name)
            metrics.set("source_reconnects_total", source.reconnects, source=name)
            for reason, count in self._routers[name].dropped.items():
                metrics.set("events_dropped_total", count, source=name, reason=reason)
        for (name, reason), count in [*machine.events_dropped.items(), *self._refused.items()]:
            metrics.set("events_dropped_total", count, source=name, reason=reason)
        for kind, count in machine.operations.items():
            metrics.set("operations_total", count, kind=kind)
        metrics.set("ingest_buffer_bytes", machine.bytes_pending)
        return metrics.encode()


def _message(node: Any) -> Any:
    """A function that fills `{channel}` into a configured message and encodes it; None where none is configured."""
    if node is None:
        return None
    parsed = template.parse(node)

    def fill(channel: str) -> str:
        return orjson.dumps(template.build(parsed, lambda _: channel)).decode()

    return fill


def _websocket_options(config: SourceConfig) -> dict[str, Any]:
    return {
        "headers": config.headers,
        "subscribe_message": _message(config.subscribe),
        "unsubscribe_message": _message(config.unsubscribe),
        "heartbeat_ms": config.heartbeat_ms,
        "max_frame_bytes": config.max_frame_bytes,
    }


def _sse_options(config: SourceConfig) -> dict[str, Any]:
    return {"headers": config.headers, "heartbeat_ms": config.heartbeat_ms, "max_event_bytes": config.max_frame_bytes}
