"""The configuration as frozen groups. Built by `load`, passed explicitly, sent to actors as msgpack.

What may be a credential (values of headers, the user and the parameters inside a URL, texts of a subscribe message, fixed query
parameters) is never in a group's `repr`; `Config.redacted` gives a copy to display.
"""

import re
from abc import abstractmethod
from typing import Any, Self

import msgspec
from msgspec import Struct

from cluster.core.entity_index import EntityType
from cluster.core.feed import Repeats
from cluster.core.gateway_scaling import GatewayScale
from cluster.core.history import MAX_AGE_MS, MAX_BYTES
from cluster.core.infinite import OffsetPaging
from cluster.core.limits import Limits
from cluster.core.query_options import DEFAULT_OFFLINE_TIME_MS
from cluster.core.scaling import Autoscale
from cluster.core.session_state import OUTBOX_BYTES
from cluster.core.staleness import StaleTime
from cluster.core.template import Literal, holes, parse
from cluster.core.transform import Transform
from cluster.core.window import Profile

MASK = "***"
_URL_USER = re.compile(r"(?<=//)[^/?#]*@")
_URL_PARAMETER = re.compile(r"(?<=[?&])([^=&#]*)=[^&#]*")


def masked_url(url: str) -> str:
    """Return a URL, or what was meant to be one, without user, password and the values of its parameters."""
    return _URL_PARAMETER.sub(rf"\1={MASK}", _URL_USER.sub(f"{MASK}@", url))


def _masked_texts(value: Any) -> Any:
    """Return JSON with all texts masked but those with placeholders."""
    if isinstance(value, dict):
        return {name: _masked_texts(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_masked_texts(item) for item in value]
    return MASK if isinstance(value, str) and isinstance(parse(value), Literal) else value


class _Confidential(Struct, frozen=True):
    """A group with credentials in it."""

    @abstractmethod
    def redacted(self) -> Self:
        """Return a copy without what may be a credential."""

    def __repr__(self) -> str:
        return Struct.__repr__(self.redacted())


class ClusterConfig(Struct, frozen=True):
    """How many of what."""

    name: str = "harbor"
    shards: int = 4
    coordinators: int = 1
    ingestors: int = 1
    """To begin with, where `autoscale` changes them."""
    gateways: int | GatewayScale | None = 1
    """None: one on each node that offers the Ray resource `harbor_gateway`; a `GatewayScale`: there too, as many as sessions need."""
    autoscale: Autoscale | None = None
    """Of ingestors."""
    replicas: int = 0
    """Standbys of each shard: 0 | 1."""


class AuthConfig(_Confidential, frozen=True):
    """Who may do what."""

    mode: str = "none"
    """none | api_keys | jwt."""
    keys_file: str = ""
    revoked_file: str = ""
    """What does not count before its time; empty: there is no such file."""
    algorithms: tuple[str, ...] = ()
    """Of tokens; others are refused."""
    secret: str = ""
    """What tokens are checked with: this, or"""
    public_key: str = ""
    """this, in PEM, or"""
    jwks_url: str = ""
    """what is read here."""
    audience: tuple[str, ...] = ()
    issuer: str = ""
    claim: str = "harbor"
    """Which one holds the grants."""

    def redacted(self) -> Self:
        """Return a copy without what may be a credential."""
        return msgspec.structs.replace(self, secret=MASK if self.secret else "", jwks_url=masked_url(self.jwks_url))


class GatewayConfig(_Confidential, frozen=True):
    """Where clients and Prometheus connect."""

    host: str = "127.0.0.1"
    port: int = 8700
    admin_host: str = "127.0.0.1"
    admin_port: int = 8701
    origins: tuple[str, ...] = ()
    """Browser origins that may connect; empty: see `cluster.gateway.browsers`."""
    auth: AuthConfig = AuthConfig()
    tenant_claim: str = ""
    """The claim that names somebody's tenant, under which all their keys are; empty: there are no tenants."""
    limits: Limits = Limits()
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose `X-Forwarded-For` is believed."""
    hsts_ms: float = 0.0
    """For how long browsers are told to use TLS only; 0: they are not told."""
    outbox_bytes: int = OUTBOX_BYTES
    """What may wait for one client."""
    token_secret: str = ""
    """What resume tokens are signed with; empty: one that the cluster makes."""
    demo_page: bool = False
    """Whether `/demo` is served: not said in a file, but by `harbor up --demo`."""

    def redacted(self) -> Self:
        """Return a copy without what may be a credential."""
        token_secret = MASK if self.token_secret else ""
        return msgspec.structs.replace(self, auth=self.auth.redacted(), token_secret=token_secret)


class ServiceConfig(_Confidential, frozen=True):
    """An upstream HTTP API."""

    base_url: str
    headers: dict[str, str] = {}
    timeout_ms: float = 10_000.0
    concurrency: int = 32
    """Requests under way at once, from one shard."""

    def redacted(self) -> Self:
        """Return a copy without what may be a credential."""
        return msgspec.structs.replace(
            self, base_url=masked_url(self.base_url), headers=dict.fromkeys(self.headers, MASK)
        )


class QueryConfig(_Confidential, frozen=True):
    """A declared query; `key`, `path` and `params` hold placeholders."""

    key: list[Any]
    service: str
    path: str
    params: Any = None
    stale_time: StaleTime = 60_000.0
    gc_time_ms: float | None = 300_000.0
    offline_time_ms: float | None = DEFAULT_OFFLINE_TIME_MS
    retry: int | bool = 3
    retry_delay_ms: float | None = None
    refetch_interval_ms: float = 0.0
    infinite: OffsetPaging | None = None
    function: str | None = None
    """In place of service and path."""
    persist: bool = True

    def redacted(self) -> Self:
        """Return a copy without what may be a credential."""
        return msgspec.structs.replace(self, path=masked_url(self.path), params=_masked_texts(self.params))


class ReconnectConfig(Struct, frozen=True):
    """How a lost source is tried again."""

    attempts: int = 5
    initial_ms: float = 1_000.0
    max_ms: float = 30_000.0


class SourceConfig(_Confidential, frozen=True):
    """An upstream stream."""

    type: str
    """websocket | sse | http."""
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
    overflow: str = "pause"
    """What to do when too much of it is on its way: pause | drop_oldest | keep_latest | disconnect."""
    max_buffer: int | None = None
    """Bytes of operations that may be on their way; None: as many as there may be of all."""
    max_rate: float | None = None
    """Events a second beyond which it is not read for a while."""
    dialect: str = "json"
    """What it speaks: see `core.dialect.DIALECTS`."""
    namespace: str = "/"
    """Of Socket.IO."""
    auth: Any = None
    """What is sent with the dialect's handshake."""
    missed: str | None = None
    """URL that tells what came after an event, with `{last_event_id}`."""
    transport: str = "websockets"
    """Of a WebSocket: auto | fast | websockets."""

    @property
    def is_spread(self) -> bool:
        """Return whether each channel is joined by a message of its own, and can so be read by any ingestor."""
        return self.subscribe is not None and self.missed is None

    @property
    def has_channels(self) -> bool:
        """Return whether its events may have channels."""
        if self.envelope is not None:
            return "channel" in self.envelope
        return self.dialect in ("json", "ndjson")

    @property
    def has_ids(self) -> bool:
        """Return whether its events may have ids."""
        if self.dialect in ("socket.io", "graphql-transport-ws"):
            return self.envelope is not None and "id" in self.envelope
        return self.envelope is None or "id" in self.envelope

    @property
    def repeats(self) -> Repeats:
        """Return what the upstream can repeat."""
        if self.type == "sse" or self.missed is not None or (self.type == "http" and "{last_event_id}" in self.url):
            return Repeats.SOURCE
        return Repeats.CHANNEL if ("last_event_id",) in holes(parse(self.templates)) else Repeats.NOTHING

    @property
    def templates(self) -> Any:
        """Return the part of `subscribe` in which there are placeholders."""
        if self.dialect == "graphql-transport-ws" and isinstance(self.subscribe, dict):
            return self.subscribe.get("variables")
        return self.subscribe

    def redacted(self) -> Self:
        """Return a copy without what may be a credential."""
        return msgspec.structs.replace(
            self,
            url=masked_url(self.url),
            missed=None if self.missed is None else masked_url(self.missed),
            headers=dict.fromkeys(self.headers, MASK),
            subscribe=_masked_texts(self.subscribe),
            unsubscribe=_masked_texts(self.unsubscribe),
            auth=None if self.auth is None else MASK,
        )


class StreamConfig(Struct, frozen=True):
    """Rules for the events of one channel (template) of a source."""

    source: str
    on: dict[str, list[dict[str, Any]]]
    channel: str | None = None
    always: bool = False
    linger_ms: float = 30_000.0
    batching: Profile | None = None
    max_rate: float | None = None
    """Events a second of each channel; more are left out."""
    transform: Transform | None = None


class ConfirmConfig(Struct, frozen=True):
    """Which event may confirm a mutation."""

    stream: str
    """Template of a channel, with variables."""
    event: str
    where: dict[str, Any] = {}
    """Members of the event's data."""


class MutationConfig(_Confidential, frozen=True, kw_only=True):
    """A declared mutation: a request of a service, or a Python function."""

    service: str = ""
    method: str = "POST"
    path: str = "/"
    params: Any = None
    body: Any = None
    omit: tuple[str, ...] = ()
    """Variables that are left out of `{variables}` in the body."""
    optimistic: list[dict[str, Any]] = []
    """Rules, with variables as placeholders."""
    result: list[dict[str, Any]] = []
    """Rules, with `{response}` too."""
    confirm: ConfirmConfig | None = None
    scope: str | None = None
    temp_id: str | None = None
    response_id: str = "id"
    rollback: str = "rebase"
    """rebase | snapshot."""
    conflict: str = "fail"
    """fail | overwrite | merge."""
    invalidate: list[Any] = []
    retry: int | bool = 0
    retry_delay_ms: float | None = None
    delay_ms: float = 0.0
    max_age_ms: float | None = None
    variables: Any = None
    """A schema, or names of those that are required."""
    function: str | None = None

    def redacted(self) -> Self:
        """Return a copy without what may be a credential."""
        return msgspec.structs.replace(
            self, path=masked_url(self.path), params=_masked_texts(self.params), body=_masked_texts(self.body)
        )


class HistoryConfig(Struct, frozen=True):
    """How far back a shard can say what a client missed; beside 100,000 changes."""

    max_bytes: int = MAX_BYTES
    max_age_ms: float | None = MAX_AGE_MS
    """None: however old."""


class StorageConfig(Struct, frozen=True):
    """Where shards keep what must survive them."""

    path: str | None = ".harbor"
    """A directory on each node, relative to where `harbor up` was run; None: nothing is kept."""
    sync: str = "window"
    """When what was committed is on the disk: always (at once) | window (within one) | never (when the system pleases)."""
    wait_ms: float = 60_000.0
    """How long a starting shard waits for its store."""
    nodes: tuple[str, ...] = ()
    """Nodes that keep stores, by what follows `harbor_store:` in a Ray resource each offers: shard i is on node i mod n; empty: anywhere."""
    history: HistoryConfig = HistoryConfig()


class CacheConfig(Struct, frozen=True):
    """How much one shard holds; None: as much as there is."""

    max_bytes: int | None = None
    max_entries: int | None = None


class PresenceConfig(Struct, frozen=True):
    """Presence topics of one pattern."""

    heartbeat_ms: float = 30_000.0
    """How often a member is to say that it is there."""
    timeout_ms: float = 75_000.0
    """After how long a silent one is gone."""


class Config(Struct, frozen=True):
    """A whole `harbor.yaml`."""

    cluster: ClusterConfig = ClusterConfig()
    batching: Profile = Profile()
    gateway: GatewayConfig = GatewayConfig()
    services: dict[str, ServiceConfig] = {}
    queries: tuple[QueryConfig, ...] = ()
    sources: dict[str, SourceConfig] = {}
    streams: tuple[StreamConfig, ...] = ()
    cache: CacheConfig = CacheConfig()
    storage: StorageConfig = StorageConfig()
    entities: dict[str, EntityType] = {}
    relations: dict[str, list[Any]] = {}
    mutations: dict[str, MutationConfig] = {}

    @property
    def confirmations(self) -> dict[str, ConfirmConfig]:
        """Return which events may confirm which mutations, by name."""
        return {name: each.confirm for name, each in self.mutations.items() if each.confirm is not None}

    presence: dict[str, PresenceConfig] = {}
    """By the topic's template."""

    def redacted(self) -> "Config":
        """Return a copy to display: without what may be a credential."""
        return msgspec.structs.replace(
            self,
            gateway=self.gateway.redacted(),
            services={name: service.redacted() for name, service in self.services.items()},
            queries=tuple(query.redacted() for query in self.queries),
            sources={name: source.redacted() for name, source in self.sources.items()},
            mutations={name: mutation.redacted() for name, mutation in self.mutations.items()},
        )
