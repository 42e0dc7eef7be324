"""OpenTelemetry spans of events' ways. To be imported by `traces` only: it needs the extra `otel`.

A span for each step that `debug` would log: reading to sending a blob, folding it into a batch, committing that into a change set, handing
that to clients. Their trace is `logs.trace_id`, which every step can make by itself; the ingestor's span is the root, and its id is the
trace's first half, so that the others can name it as their parent. Whether a trace is sampled (`OTEL_TRACES_SAMPLER`) is decided by its
id, at every step alike. Spans are exported from a thread, in batches.
"""

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from cluster.observability.logs import trace_id

ROOT = "blob"
"""The step with which a trace begins."""


class _Ids(RandomIdGenerator):
    """Random ids, except where the next is given: a root's are not random."""

    next: tuple[int, int] | None = None

    def generate_trace_id(self) -> int:
        return super().generate_trace_id() if self.next is None else self.next[0]

    def generate_span_id(self) -> int:
        return super().generate_span_id() if self.next is None else self.next[1]


class Traces:
    """One actor's spans."""

    def __init__(self, component: str, cluster: str) -> None:
        self._ids = _Ids()
        resource = {"service.name": "harbor-cluster", "service.namespace": cluster, "service.instance.id": component}
        self._provider = TracerProvider(resource=Resource.create(resource), id_generator=self._ids)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("harbor")

    def step(self, name: str, received_ms: float, now_ms: float, **attributes: str | float) -> None:
        """Record one step of the events received at a time, from then to now."""
        of = trace_id(received_ms)
        number, root = int(of, 16), int(of[:16], 16)
        if self._provider.sampler.should_sample(None, number, name).decision is not Decision.RECORD_AND_SAMPLE:
            return
        context = None
        if name == ROOT:
            self._ids.next = (number, root)
        else:
            parent = SpanContext(number, root, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
            context = trace.set_span_in_context(NonRecordingSpan(parent))
        span = self._tracer.start_span(name, context, attributes=attributes, start_time=int(received_ms * 1e6))
        self._ids.next = None
        span.end(int(now_ms * 1e6))

    def flush(self) -> None:
        """Export what waits."""
        self._provider.force_flush()
