"""Spans of an event's way, received by a collector."""

import asyncio
import importlib.util
import logging
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from cluster.observability import traces
from cluster.observability.logs import Log, trace_id

RECEIVED = 1795527705974.25


class Collector:
    """What an OpenTelemetry collector takes over HTTP."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []

    async def start(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _take(self, request: web.Request) -> web.Response:
        body = ExportTraceServiceRequest.FromString(await request.read())
        for resource in body.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            self.spans += [(names["service.instance.id"], span) for each in resource.scope_spans for span in each.spans]
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def stop(self) -> None:
        await self._runner.cleanup()


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> Any:
    made = Collector()
    monkeypatch.setenv(traces.ENDPOINT, await made.start())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    yield made
    await made.stop()


async def walk(*received: float) -> None:
    """The steps of events' ways, as four actors take them."""
    for component, step in (
        ("ingestor-0", "blob"),
        ("coordinator-0", "batch"),
        ("shard-1", "change_set"),
        ("gateway-0", "delivery"),
    ):
        made: Any = traces.configured(component, "test", Log())
        for each in received:
            made.step(step, each, each + 100, to="next")
        await asyncio.to_thread(made.flush)


async def test_every_step_is_a_span_of_one_trace_under_the_first(collector):
    await walk(RECEIVED)
    found = {span.name: (component, span) for component, span in collector.spans}
    assert {name: component for name, (component, _) in found.items()} == {
        "blob": "ingestor-0",
        "batch": "coordinator-0",
        "change_set": "shard-1",
        "delivery": "gateway-0",
    }
    trace = trace_id(RECEIVED)
    assert {span.trace_id.hex() for _, span in found.values()} == {trace}
    root = found.pop("blob")[1]
    assert (root.span_id.hex(), root.parent_span_id) == (trace[:16], b"")
    assert {span.parent_span_id for _, span in found.values()} == {root.span_id}
    assert (root.end_time_unix_nano - root.start_time_unix_nano) // 1_000_000 == 100


async def test_all_steps_of_a_trace_are_sampled_or_none(collector, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    await walk(*(RECEIVED + n for n in range(40)))
    by_trace: dict[bytes, int] = {}
    for _, span in collector.spans:
        by_trace[span.trace_id] = by_trace.get(span.trace_id, 0) + 1
    assert set(by_trace.values()) == {4}
    assert 5 < len(by_trace) < 35


def test_it_is_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv(traces.ENDPOINT, raising=False)
    assert traces.configured("shard-0", "test", Log()) is None


def test_without_the_extra_it_says_so(monkeypatch, caplog):
    monkeypatch.setenv(traces.ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(logging.getLogger("harbor"), "propagate", True)
    assert traces.configured("shard-0", "test", Log()) is None
    assert [record.getMessage() for record in caplog.records] == ["traces_unavailable"]
