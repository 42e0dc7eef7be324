"""The configuration as frozen groups. Built by `load`, passed explicitly, sent to actors as msgpack."""

from typing import Any

from msgspec import Struct

from cluster.core.window import Profile


class ClusterConfig(Struct, frozen=True):
    """How many of what."""

    name: str = "harbor"
    shards: int = 4
    coordinators: int = 1
    ingestors: int = 1
    gateways: int = 1


class GatewayConfig(Struct, frozen=True):
    """Where clients and Prometheus connect."""

    host: str = "127.0.0.1"
    port: int = 8700
    admin_host: str = "127.0.0.1"
    admin_port: int = 8701
    origins: tuple[str, ...] = ()
    """Browser origins that may connect; empty: any."""


class ServiceConfig(Struct, frozen=True):
    """An upstream HTTP API."""

    base_url: str
    headers: dict[str, str] = {}
    timeout_ms: float = 10_000.0


class QueryConfig(Struct, frozen=True):
    """A declared query; `key`, `path` and `params` hold placeholders."""

    key: list[Any]
    service: str
    path: str
    params: Any = None
    stale_time_ms: float | None = 60_000.0
    gc_time_ms: float | None = 300_000.0
    retry: int = 3
    retry_delay_ms: float | None = None


class ReconnectConfig(Struct, frozen=True):
    """How a lost source is tried again."""

    attempts: int = 5
    initial_ms: float = 1_000.0
    max_ms: float = 30_000.0


class SourceConfig(Struct, frozen=True):
    """An upstream stream."""

    type: str
    """websocket | sse."""
    url: str
    headers: dict[str, str] = {}
    envelope: dict[str, str] | None = None
    """Our name (event, data, channel, id) -> the frame's member."""
    subscribe: Any = None
    unsubscribe: Any = None
    reconnect: ReconnectConfig = ReconnectConfig()
    heartbeat_ms: float | None = 30_000.0
    """Silence after which the connection counts as dead (WebSocket: after a ping of ours); None: never."""
    max_frame_bytes: int = 4 * 1024 * 1024


class StreamConfig(Struct, frozen=True):
    """Rules for the events of one channel (template) of a source."""

    source: str
    on: dict[str, list[dict[str, Any]]]
    channel: str | None = None
    always: bool = False
    linger_ms: float = 30_000.0
    batching: Profile | None = None


class Config(Struct, frozen=True):
    """A whole `harbor.yaml`."""

    cluster: ClusterConfig = ClusterConfig()
    batching: Profile = Profile()
    gateway: GatewayConfig = GatewayConfig()
    services: dict[str, ServiceConfig] = {}
    queries: tuple[QueryConfig, ...] = ()
    sources: dict[str, SourceConfig] = {}
    streams: tuple[StreamConfig, ...] = ()
