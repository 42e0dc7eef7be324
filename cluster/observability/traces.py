"""Whether events are traced: where `OTEL_EXPORTER_OTLP_ENDPOINT` asks for it and the extra `otel` is installed."""

import importlib.util
import os
from typing import Protocol

from cluster.observability.logs import Log

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Traces(Protocol):
    """What records steps (`spans.Traces`)."""

    def step(self, name: str, received_ms: float, now_ms: float, **attributes: str | float) -> None:
        """Record one step of the events received at a time, from then to now."""
        ...


def configured(component: str, cluster: str, log: Log) -> Traces | None:
    """Return what records an actor's steps, or None where nobody wants that."""
    if not os.environ.get(ENDPOINT):
        return None
    if importlib.util.find_spec("opentelemetry") is None:
        log.warning("traces_unavailable", reason=f"{ENDPOINT} is set, and the extra otel is not installed")
        return None
    from cluster.observability import spans  # noqa: PLC0415 - it needs the extra

    return spans.Traces(component, cluster)
