"""An ingestor as an actor: the sources given to it, read into an `IngestionState`.

Crash: the next life goes on at the checkpoints that shards keep, and leaves out what they have committed; a source that cannot repeat begins
anew, and shards invalidate what it feeds. Retry: a blob that comes twice is taken once. Order: per feed.
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

import msgspec
import orjson

from cluster.actors.shell import Shell
from cluster.actors.specification import Specification
from cluster.app.functions import Functions
from cluster.clock import Millis
from cluster.config.model import SourceConfig
from cluster.core import template
from cluster.core.declared_query import FetchRequest
from cluster.core.dialect import dialect
from cluster.core.feed import EventId
from cluster.core.ingestion_state import (
    CLAIM_WAIT_MS,
    HIGH_WATER_BYTES,
    AskMissed,
    IngestionState,
    Join,
    Leave,
    Reconnect,
    Resume,
    SourceTraits,
    Start,
    Stop,
)
from cluster.core.messages import (
    Announce,
    Answer,
    Claimed,
    Demand,
    Gateways,
    HandOver,
    Members,
    Message,
    Rebalance,
    Take,
)
from cluster.core.overflow import Overflow
from cluster.core.retry import Backoff
from cluster.core.rule import Envelope, held_id
from cluster.errors import HarborError, UpstreamError
from cluster.observability.label_values import DROPPED
from cluster.observability.logs import trace_id
from cluster.observability.metrics import Metrics
from cluster.sources import Source, SourceState

if TYPE_CHECKING:
    from cluster.services import ServiceClient


class _Missed(msgspec.Struct):
    """An event, as an endpoint tells it."""

    event: str
    id: str | int | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    channel: str | None = None


class _MissedList(msgspec.Struct):
    events: list[_Missed]


class IngestionActor(Shell):
    """Shell of `IngestionState`; it listens to its sources (`SourceListener`)."""

    machine: IngestionState

    async def __init__(self, specification: bytes, index: int) -> None:  # type: ignore[misc]  # it is awaited, as Ray has it
        spec = Specification.decode(specification)
        super().__init__(f"ingestor-{index}", spec)
        config = spec.config
        self._functions = Functions(self.log)
        for reference in {each for name in config.sources for each in spec.compiled.transforms(name)}:
            with contextlib.suppress(HarborError):  # it is logged, and tried again with the first event
                self._functions.resolve(reference)
        self._routers = {name: spec.compiled.router(name, self._functions.transform) for name in config.sources}
        self._missed = {
            name: (*_missed_service(name, source.missed, source.headers), _backoff(source))
            for name, source in config.sources.items()
            if source.missed is not None
        }
        members = await self.peers.members()
        slots = await self.peers.slot_map()
        self.machine = IngestionState(
            self.identity,
            await self.begin_life(),
            routers=self._routers,
            always=spec.compiled.feeds.always(),
            slots=slots,
            shards=slots.shards,
            coordinators=slots.coordinators,
            profiles=spec.compiled.profiles,
            gateways=spec.gateways,
            traits={name: _traits(source) for name, source in config.sources.items()},
            members=members,
            # As long as a shard waits for its store, since each sequence goes on where all shards have come to, or nowhere.
            claim_wait_ms=CLAIM_WAIT_MS + (config.storage.wait_ms if config.storage.path is not None else 0.0),
        )
        self._metrics = Metrics(component="ingestor", actor=self.identity)
        self._begun: set[str] = set()
        """Sources whose drops were said to be none yet, by reason."""
        self._decode_errors: dict[str, int] = dict.fromkeys(config.sources, 0)
        self._refused: Counter[tuple[str, str]] = Counter()
        self._sources = {name: self._source(name, source) for name, source in config.sources.items()}
        self._load, self._was_paused = 0.0, False
        self._measured = (time.monotonic(), time.process_time(), 0)
        self._reasons: dict[str, str] = {}
        """Why sources are not connected."""
        self._running: dict[str, asyncio.Task[None]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        """Who asks for what was missed, by source: for its present connection."""
        self._unanswered: dict[str, str] = {}
        """Why that is not known yet."""
        self.run(())
        await self.listen()
        if self.specification.gateways != (names := await self.peers.gateways()):
            self.take(Gateways(names))

    def _source(self, name: str, config: SourceConfig) -> Source:
        backoff = _backoff(config)
        if config.type == "sse":
            from cluster.sources.sse import SseSource  # noqa: PLC0415 - see `cluster.sources`

            return SseSource(name, config.url, self, backoff=backoff, **_sse_options(config))
        if config.type == "http":
            from cluster.sources.http_lines import HttpLinesSource  # noqa: PLC0415

            return HttpLinesSource(name, config.url, self, backoff=backoff, **_sse_options(config))
        from cluster.sources.websocket import WebSocketSource  # noqa: PLC0415

        return WebSocketSource(name, config.url, self, backoff=backoff, **_websocket_options(config))

    # --- listening -----------------------------------------------------------------------------------------------

    def position(self, source: str, channel: str | None = None) -> EventId | None:
        """Return where a source, or a channel of it, is to go on."""
        return self.machine.resume_id(source, channel)

    def opened(self, source: str) -> None:
        """A connection is up."""
        self._reasons.pop(source, None)
        self.log.info("source_connected", source=source)
        self.run(self.machine.opened(source, self.now()))

    def received(self, source: str, frames: Sequence[bytes]) -> bool:
        """Take frames."""
        now_ms = self._read(source, frames=len(frames))
        return self._received(self.machine.receive(source, frames, now_ms))

    def received_events(self, source: str, events: Sequence[Envelope]) -> bool:
        """Take events that the transport or the dialect has read."""
        now_ms = self._read(source, events=len(events))
        return self._received(self.machine.receive_events(source, events, now_ms))

    def _read(self, source: str, **counts: int) -> Millis:
        """Return when something was read: now."""
        now_ms = self.clock.now_ms()
        if self.log.is_debug:
            self.log.debug("received", trace=trace_id(now_ms), source=source, **counts)
        return now_ms

    def _received(self, goes_on: bool) -> bool:
        self._count_faults()
        if self.machine.rearm:
            self.machine.rearm = False
            self.arm()
        return goes_on

    def _count_faults(self) -> None:
        for source, fault in self.machine.frame_faults:
            self._decode_errors[source] += 1
            self.log.sampled("frame_dropped", fault.reason, source=source, detail=str(fault)[:200])
        self.machine.frame_faults.clear()

    def refused(self, source: str, reason: str, size_bytes: int, detail: str = "was not read") -> None:
        """Something was dropped before it could be an event, or the upstream would not join a channel."""
        self._refused[source, reason] += 1
        self.machine.dead_letters.add(source, reason, self.now(), detail=detail, size_bytes=size_bytes)
        self.log.sampled("frame_dropped", reason, source=source, bytes=size_bytes)

    def closed(self, source: str, reason: str) -> None:
        """A connection is lost, or could not be made."""
        self.machine.closed(source)
        self._reasons[source] = reason
        self.log.sampled("source_disconnected", source, reason=reason)

    def state_changed(self, source: str, state: SourceState) -> None:
        """A source's state changed."""
        self.log.debug("source_state", source=source, state=state.value)
        self.run(self.machine.state_changed(source, state.value, self.now()))

    # --- calls ---------------------------------------------------------------------------------------------------

    def take(self, message: Message) -> Answer:
        """Take a message from another actor."""
        match message:
            case Demand():
                answer, effects = self.machine.demand(message, self.now())
            case Claimed():
                answer, effects = self.machine.claimed(message, self.now())
            case Announce():
                answer, effects = self.machine.announce(message, self.now())
            case Gateways():
                answer, effects = self.machine.gateways(message, self.now())
            case Members():
                answer, effects = self.machine.members(message, self.now())
            case Take():
                answer, effects = self.machine.take(message, self.now())
            case HandOver():
                answer, effects = self.machine.hand_over(message, self.now())
            case Rebalance():
                answer, effects = self.machine.rebalance(message, self.now())
            case _:
                raise AssertionError(f"an ingestor does not take {type(message).__name__}")
        self.run(effects)
        return answer

    def effect(self, effect: object) -> None:
        """Begin to read, join, leave, read on, ask for what was missed."""
        match effect:
            case Start(source=source):
                self._running[source] = self.spawn(self._sources[source].run())
            case Reconnect(source=source):
                self._sources[source].reconnect()
            case Stop(source=source):
                self._running[source].cancel()
                self._ask_no_more(source)
            case AskMissed(source=source):
                self._ask_no_more(source)  # of another connection
                self._asking[source] = self.spawn(self._ask_missed(effect))
            case Join(source=source, channel=channel):
                self._sources[source].join(channel)
            case Leave(source=source, channel=channel):
                self._sources[source].leave(channel)
            case Resume(source=source):
                self._sources[source].resume()
            case _:
                raise AssertionError(f"no such effect: {effect!r}")

    def _ask_no_more(self, source: str) -> None:
        if (asking := self._asking.pop(source, None)) is not None:
            asking.cancel()
        self._unanswered.pop(source, None)

    async def _ask_missed(self, asked: AskMissed) -> None:
        """Ask an endpoint for what was missed, until it says it, or that it will not, or nobody waits for it; cancelling is safe.

        While it cannot be reached, or answers that it may later, it is asked at the source's pace of reconnecting, without an end: nothing
        piles up here, since the source is not read meanwhile, and giving up would lose what comes back with the endpoint.
        """
        service, path, backoff = self._missed[asked.source]
        events: list[Envelope] | None = None
        failures = 0
        while self.machine.awaits(asked):
            try:
                response = await service.fetch(FetchRequest(service.name, path(asked.since)))
                assert response.body is not None
                found = msgspec.json.decode(response.body, type=list[_Missed] | _MissedList)
                listed = found.events if isinstance(found, _MissedList) else found
                events = [Envelope(each.event, each.data, each.channel, held_id(each.id)) for each in listed]
                break
            except msgspec.DecodeError as error:
                self.log.warning("missed_unusable", source=asked.source, reason=str(error))
                break
            except UpstreamError as error:
                self.log.warning("missed_failed", source=asked.source, reason=error.message)
                if not error.retryable:
                    break
                self._unanswered[asked.source] = f"what was missed is not known yet: {error.message}"
            failures += 1
            await asyncio.sleep(backoff.delay_ms(failures, random.random()) / 1000.0)
        self._unanswered.pop(asked.source, None)
        self.run(self.machine.missed(asked, events, self.now()))

    async def status(self) -> dict[str, object]:
        """Say what `/v1/cluster` shows of this actor."""
        machine = self.machine
        return {
            **self.about(),
            "units": machine.status(),
            "load": self._measure_load(),
            "paused": self._was_paused,
            "sources": [
                {
                    "name": name,
                    "state": source.state.value,
                    "transport": source.transport,
                    "events": self.machine.events_received[name],
                    "reconnects": source.reconnects,
                    "reason": self._reasons.get(name) or self._unanswered.get(name),
                }
                for name, source in self._sources.items()
                if machine.reads(name)
            ],
        }

    def _measure_load(self) -> float:
        """Return the share of one core that this process used, over a second or more, up to lately."""
        now, used = time.monotonic(), time.process_time()
        if now - self._measured[0] >= 1.0:
            self._load = round((used - self._measured[1]) / (now - self._measured[0]), 3)
            self._was_paused = self.machine.pauses > self._measured[2]
            self._measured = (now, used, self.machine.pauses)
        return self._load

    async def dead_letters(self) -> bytes:
        """Return the events that came to nothing, newest first, encoded."""
        return msgspec.msgpack.encode(self.machine.dead_letters.newest())

    async def samples(self) -> bytes:
        """Return the metrics, encoded."""
        machine, metrics = self.machine, self._metrics
        received = machine.events_received
        events, lags = machine.backlog(self.now())
        self._count_faults()  # of frames that had gathered
        for gauge in ("source_connected", "source_state", "source_lag_seconds"):
            metrics.forget(gauge)  # another ingestor may read the source now, and the worst of them counts
        for name, source in self._sources.items():
            if machine.reads(name):
                metrics.set("source_connected", float(source.state is SourceState.CONNECTED), source=name)
                for state in SourceState:
                    metrics.set("source_state", float(source.state is state), source=name, state=state.value)
                metrics.set("source_lag_seconds", lags[name] / 1000.0, source=name)
            elif not received[name]:
                continue
            metrics.set("events_received_total", received[name], source=name)
            metrics.set("source_gaps_total", machine.gaps[name], source=name)
            metrics.set("event_decode_errors_total", self._decode_errors[name], source=name)
            metrics.set("source_reconnects_total", source.reconnects, source=name)
            if name not in self._begun:
                self._begun.add(name)
                metrics.begin("events_dropped_total", "reason", DROPPED, source=name)
            for reason, count in self._routers[name].dropped.items():
                metrics.set("events_dropped_total", count, source=name, reason=reason)
        for (name, reason), count in [*machine.events_dropped.items(), *self._refused.items()]:
            metrics.set("events_dropped_total", count, source=name, reason=reason)
        for kind, count in machine.operations.items():
            metrics.set("operations_total", count, kind=kind)
        metrics.set("ingest_buffer_events", events)
        metrics.set("ingest_buffer_bytes", machine.bytes_pending)
        return metrics.encode()


def _message(node: Any) -> Callable[..., str] | None:
    """Return a function that makes a configured message for a channel; None where none is configured.

    Members that are the id of the last event are left out where none is known.
    """
    if node is None:
        return None
    whole, fresh = template.parse(node), template.parse(_without_id(node))

    def fill(channel: str, last: EventId | None = None) -> str:
        known: dict[tuple[str, ...], Any] = {("channel",): channel, ("last_event_id",): "" if last is None else last}
        return orjson.dumps(template.build(fresh if last is None else whole, known.__getitem__)).decode()

    return fill


def _operation(subscribe: Any) -> Callable[..., str] | None:
    """As `_message`, for an operation of GraphQL, whose text has braces of its own."""
    variables = _message(subscribe.get("variables", {})) if subscribe is not None else None
    if variables is None:
        return None
    rest = {name: value for name, value in subscribe.items() if name != "variables"}

    def fill(channel: str, last: EventId | None = None) -> str:
        return orjson.dumps({**rest, "variables": orjson.Fragment(variables(channel, last))}).decode()

    return fill


def _without_id(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: _without_id(member) for name, member in node.items() if member != "{last_event_id}"}
    return [_without_id(member) for member in node] if isinstance(node, list) else node


def _backoff(config: SourceConfig) -> Backoff:
    return Backoff(config.reconnect.initial_ms, config.reconnect.max_ms, config.reconnect.attempts)


def _missed_service(name: str, url: str, headers: dict[str, str]) -> tuple["ServiceClient", Callable[[EventId], str]]:
    """Return the service that tells what was missed, and the path to ask it."""
    from cluster.services import ServiceClient  # noqa: PLC0415 - half of a start to load, for what few sources have

    parts = urlsplit(url)
    rest = urlunsplit(("", "", parts.path, parts.query, ""))
    service = ServiceClient(f"{name}.missed", f"{parts.scheme}://{parts.netloc}", headers)
    return service, lambda since: rest.replace("{last_event_id}", quote(str(since), safe=""))


def _traits(config: SourceConfig) -> SourceTraits:
    return SourceTraits(
        config.repeats,
        config.missed is not None,
        config.is_spread,
        config.has_ids,
        Overflow(config.overflow),
        config.max_buffer or HIGH_WATER_BYTES,
        config.max_rate,
    )


def _websocket_options(config: SourceConfig) -> dict[str, Any]:
    graphql = config.dialect == "graphql-transport-ws"
    return {
        "headers": config.headers,
        "subscribe_message": _operation(config.subscribe) if graphql else _message(config.subscribe),
        "unsubscribe_message": _message(config.unsubscribe),
        "heartbeat_ms": config.heartbeat_ms,
        "max_frame_bytes": config.max_frame_bytes,
        "transport": config.transport,
        "is_lines": config.dialect == "ndjson",
        "dialect": dialect(
            config.dialect,
            config.url,
            envelope=config.envelope or {},
            namespace=config.namespace,
            auth=config.auth,
        ),
    }


def _sse_options(config: SourceConfig) -> dict[str, Any]:
    return {"headers": config.headers, "heartbeat_ms": config.heartbeat_ms, "max_event_bytes": config.max_frame_bytes}
