"""Every fault of a `harbor.yaml` is found, in one line that names its place, the reason and the value."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import Config, check, compile_config, load, load_mapping
from cluster.config.load import ConfigFaults
from cluster.config.model import (
    AuthConfig,
    CacheConfig,
    ClusterConfig,
    GatewayConfig,
    HistoryConfig,
    QueryConfig,
    ReconnectConfig,
    ServiceConfig,
    SourceConfig,
    StorageConfig,
)
from cluster.config.rules import REQUIRED
from cluster.core.entity_index import EntityType
from cluster.core.gateway_scaling import GatewayScale
from cluster.core.grants import Grants, line
from cluster.core.infinite import OffsetPaging
from cluster.core.scaling import Autoscale
from cluster.core.staleness import STATIC
from cluster.core.window import Profile
from cluster.errors import ConfigError

DEMO = Path(__file__).parents[2] / "cluster" / "demo" / "harbor.yaml"
SERVICES = "services: {api: {base_url: 'http://x'}}\n"
SOURCES = "sources: {s: {type: websocket, url: 'ws://x'}, e: {type: sse, url: 'http://x'}}\n"


def lines(tmp_path: Path, text: str | bytes, env: dict[str, str] | None = None) -> list[str]:
    """What `harbor check` prints, without the file's name."""
    path = tmp_path / "harbor.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    printed = check(path, env or {})
    assert all(line.startswith(f"{path}: ") and "\n" not in line for line in printed)
    return [line.removeprefix(f"{path}: ") for line in printed]


def loaded(text: str, env: dict[str, str] | None = None) -> Config:
    return load_mapping(yaml.safe_load(text), env or {})


FAULTS: list[tuple[str, str]] = [
    # --- the document
    ("- a", "expected a mapping, got ['a']"),
    ("text", "expected a mapping, got 'text'"),
    ("clusters: {}", "clusters: unknown key, did you mean cluster?"),
    (
        "x1: {}",
        ("x1: unknown key, expected one of batching, cache, cluster, defaults, entities, gateway, mutations, presence, queries, "
        "relations, resources, services, sources, storage, streams"),
    ),
    ("1: {}", "1: expected a name in quotes, got 1"),
    ("cluster: {name: .nan}", "cluster.name: expected a number, got nan"),
    ("cluster: {shards: 99999999999999999999}", "cluster.shards: expected a number of at most 64 bits, got 99999999999999999999"),
    ("cluster: {name: !!binary aGk=}", "cluster.name: expected text, got b'hi'"),
    # --- cluster
    ("cluster: 4", "cluster: expected a mapping, got 4"),
    ("cluster: {shards: 0}", "cluster.shards: expected a whole number from 1 to 1024, got 0"),
    ("cluster: {shards: 1025}", "cluster.shards: expected a whole number from 1 to 1024, got 1025"),
    ("cluster: {shards: '4'}", "cluster.shards: expected a whole number from 1 to 1024, got '4'"),
    ("cluster: {ingestors: 1.5}", "cluster.ingestors: expected a whole number from 1 to 64, or {min, max, target, cool_down}, got 1.5"),
    # --- dialects, partitions, overflow
    (
        "sources: {s: {type: websocket, url: 'ws://x', dialect: phoenix}}",
        "sources.s.dialect: expected json or ndjson or socket.io or graphql-transport-ws where the type is websocket, got 'phoenix'",
    ),
    ("sources: {s: {type: sse, url: 'http://x', dialect: json}}", "sources.s.dialect: expected sse where the type is sse, got 'json'"),
    (
        "sources: {s: {type: websocket, url: 'ws://x', dialect: socket.io, subscribe: {join: x}}}",
        "sources.s.subscribe: expected an event to emit, such as [join, \"{channel}\"], got {'join': 'x'}",
    ),
    (
        "sources: {s: {type: websocket, url: 'ws://x', dialect: graphql-transport-ws, subscribe: {qery: x}}}",
        "sources.s.subscribe: expected {query: text, variables?, operationName?, extensions?}, got {'qery': 'x'}",
    ),
    (
        "sources: {s: {type: websocket, url: 'ws://x', dialect: graphql-transport-ws, subscribe: {query: 'a {b}', variables: {c: '{d}'}}}}",
        "sources.s.subscribe: no such placeholder {d}, there is {channel} and {last_event_id}",
    ),
    (
        "sources: {s: {type: websocket, url: 'ws://x', dialect: socket.io, subscribe: [join, '{last_event_id}']}}",
        "sources.s.envelope: events can be asked for again by their id only: name the member that holds it",
    ),
    ("sources: {s: {type: websocket, url: 'ws://x', namespace: /a}}", "sources.s.namespace: the dialect json has none"),
    (
        "sources: {s: {type: websocket, url: 'ws://x', dialect: socket.io, namespace: chat}}",
        "sources.s.namespace: expected a namespace that begins with '/', got 'chat'",
    ),
    ("sources: {s: {type: http, url: 'http://x', subscribe: {a: b}}}", "sources.s.subscribe: an HTTP stream has no channels to join"),
    ("sources: {s: {type: websocket, url: 'ws://x/{partition}'}}", "sources.s: there is no {partition} without partitions: how many are there?"),
    ("sources: {s: {type: websocket, url: 'ws://x', partitions: 2}}", "sources.s: nothing tells its partitions apart: put {partition} into the URL or the messages"),
    ("sources: {s: {type: websocket, url: 'ws://x/{partition}', partitions: 65}}", "sources.s.partitions: expected a whole number from 1 to 64, got 65"),
    ("sources: {s: {type: websocket, url: 'ws://x', overflow: drop}}", "sources.s.overflow: expected pause or drop_oldest or keep_latest or disconnect, got 'drop'"),
    ("sources: {s: {type: websocket, url: 'ws://x', max_rate: 0}}", "sources.s.max_rate: expected a number of events a second above 0, got 0"),
    ("cluster: {ingestors: {min: 3, max: 2}}", "cluster.ingestors.max: expected at least min (3), got 2"),
    ("cluster: {ingestors: {target: 0}}", "cluster.ingestors.target: expected a share of a core above 0, at most 1, got 0"),
    ("cluster: {ingestors: {cooldown: 5s}}", "cluster.ingestors.cooldown: unknown key, did you mean cool_down?"),
    ("cluster: {gateways: true}", "cluster.gateways: expected a whole number from 1 to 1024, auto, or {min, max, sessions, cool_down}, got True"),
    ("cluster: {gateways: {min: 3, max: 2}}", "cluster.gateways.max: expected at least min (3), got 2"),
    ("cluster: {gateways: {sessions: 0}}", "cluster.gateways.sessions: expected a whole number above 0, got 0"),
    ("cluster: {gateways: {min: auto}}", "cluster.gateways.min: expected a whole number from 1 to 1024, got 'auto'"),
    ("cluster: {gateways: {cooldown: 5s}}", "cluster.gateways.cooldown: unknown key, did you mean cool_down?"),
    ("cluster: {shards: 2, coordinators: 3}", "cluster.coordinators: expected at most one per shard (2), got 3"),
    ("cluster: {replicas: 2}", "cluster.replicas: expected 0 or 1, got 2"),
    ("cluster: {replicas: true}", "cluster.replicas: expected 0 or 1, got True"),
    ("cluster: {name: 'a b'}", "cluster.name: expected a name of letters, digits, '-' and '_', got 'a b'"),
    ("cluster: {name: ''}", "cluster.name: expected a name of letters, digits, '-' and '_', got ''"),
    ("cluster: {shard: 4}", "cluster.shard: unknown key, did you mean shards?"),
    # --- batching
    ("batching: {window: 100}", "batching.window: expected a duration such as 100ms, 60s, 5m or 24h, got 100"),
    ("batching: {window: 1 s}", "batching.window: expected a duration such as 100ms, 60s, 5m or 24h, got '1 s'"),
    ("batching: {window: -1s}", "batching.window: expected a duration such as 100ms, 60s, 5m or 24h, got '-1s'"),
    ("batching: {window: 0ms}", "batching.window: expected a duration above 0, got '0ms'"),
    ("batching: {window: infinity}", "batching.window: expected a duration such as 100ms, 60s, 5m or 24h, got 'infinity'"),
    ("batching: {mode: slow}", "batching.mode: expected window or leading or debounce, got 'slow'"),
    ("batching: {window: 2s}", "batching.max_wait: expected at least the window (2000ms), got 1000ms"),
    # --- gateway
    ("gateway: {port: 70000}", "gateway.port: expected a port from 0 to 65535, got 70000"),
    ("gateway: {port: '80'}", "gateway.port: expected a port from 0 to 65535, got '80'"),
    ("gateway: {host: ''}", "gateway.host: expected text, got ''"),
    (
        "gateway: {host: 0.0.0.0}",
        "gateway.host: without auth a loopback address is needed (127.0.0.1, ::1 or localhost), got '0.0.0.0'",
    ),
    (
        "gateway: {admin_host: example}",
        "gateway.admin_host: without auth a loopback address is needed (127.0.0.1, ::1 or localhost), got 'example'",
    ),
    ("gateway: {origins: 'http://x'}", "gateway.origins: expected a list, got 'http://x'"),
    ("gateway: {origins: [x]}", "gateway.origins.0: expected an origin such as https://app.example.com, got 'x'"),
    ("gateway: {outbox: 1KiB}", "gateway.outbox: expected at least 64KiB, got '1KiB'"),
    (
        "gateway: {token_secret: short-secret}",
        "gateway.token_secret: expected a text of at least 32 characters, such as openssl rand -hex 32 prints",
    ),
    ("gateway: {auth: {mode: api_keys}}", "gateway.auth.keys_file: required"),
    ("gateway: {auth: {mode: none, keys_file: x}}", "gateway.auth.keys_file: unknown key, expected one of mode"),
    (
        "gateway: {auth: {mode: api_keys, keys_file: /nonexistent/keys}}",
        "gateway.auth.keys_file: '/nonexistent/keys' cannot be read: No such file or directory",
    ),
    (
        f"gateway: {{auth: {{mode: api_keys, keys_file: {__file__}}}}}",
        (
            f"gateway.auth.keys_file: {__file__}, line 1: Expected `object`, got `str` "
            "(a line is what `harbor key new` prints)"
        ),
    ),
    ("storage: {nodes: [a, a]}", "storage.nodes: a node is there twice, in ['a', 'a']"),
    ("storage: {nodes: [a b]}", "storage.nodes.0: expected a name of letters, digits, '-' and '_', got 'a b'"),
    ("gateway: {auth: {mode: password}}", "gateway.auth.mode: expected none or api_keys or jwt, got 'password'"),
    ("gateway: {tenant_claim: org}", "gateway.tenant_claim: tenants are told apart by their credentials: auth.mode is none"),
    # --- storage and defaults
    ("storage: {path: 7}", "storage.path: expected text, got 7"),
    ("storage: {history: {max_bytes: 5}}", "storage.history.max_bytes: expected a size such as 64KiB or 1MiB, got 5"),
    ("storage: {history: {max_age: 5}}", "storage.history.max_age: expected a duration such as 100ms, 60s, 5m or 24h, got 5"),
    ("storage: {history: {age: 5m}}", "storage.history.age: unknown key, did you mean max_age?"),
    ("storage: {pth: x}", "storage.pth: unknown key, did you mean path?"),
    ("storage: {path: null, sync: maybe}", "storage.sync: expected always or window or never, got 'maybe'"),
    ("defaults: {stale_time: soon}", "defaults.stale_time: expected a duration such as 100ms, 60s, 5m or 24h, got 'soon'"),
    ("defaults: {retry: -1}", "defaults.retry: expected a whole number of at least 0, got -1"),
    # --- what later versions do
    # --- presence
    ("presence: []", "presence: expected a mapping of topics, got []"),
    ("presence: {'doc:{id}': 5s}", "presence.doc:{id}: expected a mapping, got '5s'"),
    ("presence: {'doc:{id}': {heartbeat: 5}}", "presence.doc:{id}.heartbeat: expected a duration such as 100ms, 60s, 5m or 24h, got 5"),
    ("presence: {a: {timeout: 30s}}", "presence.a.timeout: expected more than the heartbeat (30000ms), got 30000ms"),
    ("presence: {a: {heartbeats: 5s}}", "presence.a.heartbeats: unknown key, did you mean heartbeat?"),
    ("presence: {'': {}}", "presence.: expected a topic of 1 to 256 characters, got ''"),
    # --- services
    ("services: []", "services: expected a mapping of names, got []"),
    (
        "services: {a: {base_url: 'http://x/b?key=s'}}",
        "services.a.base_url: expected a URL that paths can follow, without '?' and '#', got 'http://x/b?key=***'",
    ),
    ("services: {'a b': {base_url: 'http://x'}}", "services.a b: expected a name of letters, digits, '-' and '_', got 'a b'"),
    ("services: {api: {}}", "services.api.base_url: required"),
    ("services: {api: {base_url: 'ftp://x'}}", "services.api.base_url: expected an http:// or https:// URL, got 'ftp://x'"),
    ("services: {api: {base_url: 'http://x:port'}}", "services.api.base_url: expected an http:// or https:// URL, got 'http://x:port'"),
    ("services: {api: {base_url: 'http://'}}", "services.api.base_url: expected an http:// or https:// URL, got 'http://'"),
    ("services: {api: {base_url: 'http://x', headers: [a]}}", "services.api.headers: expected a mapping of header names to values, got a list"),
    ("services: {api: {base_url: 'http://x', headers: {a: \"b\\nc\"}}}", "services.api.headers.a: expected ASCII text on one line"),
    ("services: {api: {base_url: 'http://x', headers: {a: ü}}}", "services.api.headers.a: expected ASCII text on one line"),
    ("services: {api: {base_url: 'http://x', headers: {a: true}}}", "services.api.headers.a: expected ASCII text on one line"),
    ("services: {api: {base_url: 'http://x', headers: {'a b': c}}}", "services.api.headers.a b: expected a header's name"),
    ("services: {api: {base_url: 'http://x', concurrency: 0}}", "services.api.concurrency: expected a whole number from 1 to 1024, got 0"),
    # --- queries
    (SERVICES + "queries: {}", "queries: expected a list, got {}"),
    (SERVICES + "queries: [7]", "queries.0: expected a mapping, got 7"),
    (SERVICES + "queries: [{service: api, path: /}]", "queries.0.key: required"),
    (SERVICES + "queries: [{key: [], service: api, path: /}]", "queries.0.key: expected an array with at least one element, got []"),
    (SERVICES + "queries: [{key: [$harbor, x], service: api, path: /}]", "queries.0.key: keys under \"$harbor\" are the cluster's own"),
    (SERVICES + "queries: [{key: a, service: api, path: /}]", "queries.0.key: expected an array with at least one element, got 'a'"),
    (SERVICES + "queries: [{key: [a], path: /}]", "queries.0.service: required"),
    (SERVICES + "queries: [{key: [a], service: other, path: /}]", "queries.0.service: no such service, there are api, got 'other'"),
    ("queries: [{key: [a], service: api, path: /}]", "queries.0.service: no such service, there are none, got 'api'"),
    (SERVICES + "queries: [{key: [a], service: api}]", "queries.0.path: required"),
    (SERVICES + "queries: [{key: [a], service: api, path: a}]", "queries.0.path: expected a path that begins with '/', got 'a'"),
    (SERVICES + "queries: [{key: [a, '{x}'], service: api, path: '/{y}'}]", "queries.0.path: no such placeholder {y}, the key has x"),
    (SERVICES + "queries: [{key: [a, '{x.y}'], service: api, path: /}]", "queries.0.key: a query's placeholder has no members, got {x.y}"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, params: {b: '{y}'}}]", "queries.0.params: no such placeholder {y}, the key has none"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, params: b}]", "queries.0.params: expected a mapping or one placeholder, got 'b'"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, infinite: 5}]", "queries.0.infinite: expected a mapping, got 5"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, infinite: {max_page: 5}}]", "queries.0.infinite.max_page: unknown key, did you mean max_pages?"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, infinite: {page_size: 0}}]", "queries.0.infinite.page_size: expected a whole number of at least 1, got 0"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, infinite: {step: -20}}]", "queries.0.infinite.step: expected a whole number of at least 1, got -20"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, infinite: {items: items}}]", "queries.0.infinite.items: a JSON Pointer is empty or begins with '/', got 'items'"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, infinite: {next: 5}}]", "queries.0.infinite.next: expected text, got 5"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, infinite: {initial: first}}]", "queries.0.infinite.initial: expected a number where pages are counted, got 'first'"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, persist: yes please}]", "queries.0.persist: expected true or false, got 'yes please'"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, offline_time: never}]", "queries.0.offline_time: expected a duration such as 100ms, 60s, 5m or 24h, got 'never'"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, refetch_interval: 0s}]", "queries.0.refetch_interval: expected a duration above 0, got '0s'"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, stale_time: never}]", "queries.0.stale_time: expected a duration such as 100ms, 60s, 5m or 24h, got 'never'"),
    (SERVICES + "queries: [{key: [a], function: f}]", "queries.0.function: expected module:function, got 'f'"),
    (SERVICES + "queries: [{key: [a], function: 'm:f', path: /}]", "queries.0.path: a query has a function or a service, not both"),
    (SERVICES + "queries: [{key: [a], function: 'm:f', service: api}]", "queries.0.service: a query has a function or a service, not both"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, as_of: x}]", "queries.0.as_of: not supported by this version, got 'x'"),
    (SERVICES + "queries: [{key: [a], service: api, path: /, stale: 5s}]", "queries.0.stale: unknown key, did you mean stale_time?"),
    # --- cache, entities, relations
    ("cache: {max_bytes: 5}", "cache.max_bytes: expected a size such as 64KiB or 1MiB, got 5"),
    ("cache: {max_entries: 0}", "cache.max_entries: expected a whole number of at least 1, got 0"),
    ("cache: {max_bites: 5}", "cache.max_bites: unknown key, did you mean max_bytes?"),
    ("entities: [user]", "entities: expected a mapping of names, got ['user']"),
    ("entities: {user: {key: [userId]}}", "entities.user.key: unknown key, did you mean keys?"),
    ("entities: {user: {keys: userId}}", "entities.user.keys: expected a list of members' names, got 'userId'"),
    ("entities: {user: {objects: [5]}}", "entities.user.objects: expected a list of members' names, got [5]"),
    ("entities: {user: {id: 5}}", "entities.user.id: expected text, got 5"),
    ("entities: {a: {keys: [x]}, b: {objects: [x]}}", "entities.b: the member 'x' belongs to a already"),
    ("entities: {user: {queries: [[]]}}", "entities.user.queries.0: expected an array with at least one element, got []"),
    ("entities: {user: {queries: [[users, {}]]}}", "entities.user.queries.0: expected texts and numbers, got ['users', {}]"),
    ("entities: {user: {queries: [[users, '{id}']]}}", "entities.user.queries.0: expected texts and numbers, got ['users', '{id}']"),
    ("relations: []", "relations: expected a mapping of names, got []"),
    ("relations: {user: 5}", "relations.user: expected a list, got 5"),
    ("relations: {user: [5]}", "relations.user.0: expected a key or {contains: element}, got 5"),
    ("relations: {user: [[a, '{user}']]}", "relations.user.0: no such placeholder {user}, there is {id}"),
    ("relations: {user: [{contains: 'user:{id.x}'}]}", "relations.user.0: no such placeholder {id.x}, there is {id}"),
    # --- sources
    ("sources: {s: {type: websocket, url: 'htp://x'}}", "sources.s.url: expected a ws:// or wss:// URL, got 'htp://x'"),
    ("sources: {s: {type: sse, url: 'ws://x'}}", "sources.s.url: expected an http:// or https:// URL, got 'ws://x'"),
    ("sources: {s: {type: kafka, url: 'ws://x'}}", "sources.s.type: expected websocket or sse or http, got 'kafka'"),
    ("sources: {s: {url: 'ws://x'}}", "sources.s.type: required"),
    ("sources: {s: {type: websocket}}", "sources.s.url: required"),
    ("sources: {s: {type: websocket, url: 'ws://x', envelope: {data: d}}}", "sources.s.envelope.event: required"),
    ("sources: {s: {type: websocket, url: 'ws://x', envelope: {event: e, date: d}}}", "sources.s.envelope.date: unknown key, did you mean data?"),
    ("sources: {s: {type: websocket, url: 'ws://x', envelope: {event: a, id: a}}}", "sources.s.envelope: two names read the same member, got {'event': 'a', 'id': 'a'}"),
    ("sources: {s: {type: websocket, url: 'ws://x', envelope: {event: 'a\"'}}}", "sources.s.envelope.event: expected a member's name without quotes and backslashes, got 'a\"'"),
    ("sources: {s: {type: websocket, url: 'ws://x', subscribe: {c: '{room}'}}}", "sources.s.subscribe: no such placeholder {room}, there is {channel} and {last_event_id}"),
    ("sources: {s: {type: websocket, url: 'ws://x', unsubscribe: {c: '{last_event_id}'}}}", "sources.s.unsubscribe: no such placeholder {last_event_id}, there is {channel}"),
    ("sources: {s: {type: websocket, url: 'ws://x', missed: 'http://y/{last_event_id}', envelope: {event: e}}}", "sources.s.envelope: events can be asked for again by their id only: name the member that holds it"),
    ("sources: {s: {type: sse, url: 'http://x', subscribe: {}}}", "sources.s.subscribe: a server-sent stream has no channels to join"),
    ("sources: {s: {type: websocket, url: 'ws://x', reconnect: {attempts: 0}}}", "sources.s.reconnect.attempts: expected a whole number from 1 to 1024, got 0"),
    ("sources: {s: {type: websocket, url: 'ws://x', reconnect: {max: 10ms}}}", "sources.s.reconnect.max: expected at least initial (1000ms), got 10ms"),
    ("sources: {s: {type: websocket, url: 'ws://x', max_frame: 1MB}}", "sources.s.max_frame: expected a size such as 64KiB or 1MiB, got '1MB'"),
    ("sources: {s: {type: sse, url: 'http://x', missed: 'http://y'}}", "sources.s.missed: expected one placeholder, {last_event_id}, got 'http://y'"),
    ("sources: {s: {type: websocket, url: 'ws://x', transport: slow}}", "sources.s.transport: expected auto or fast or websockets, got 'slow'"),
    ("sources: {s: {type: sse, url: 'http://x', transport: auto}}", "sources.s.transport: a server-sent stream has no choice of transport"),
    ("sources: {s: {type: websocket, url: 'ws://u:${T:-p}@x', transport: fast}}", "sources.s.transport: fast sends no user and password of a URL: use auto, websockets or a header"),
    # --- streams
    (SOURCES + "streams: [{on: {e: {delete: {key: [a]}}}}]", "streams.0.source: required"),
    (SOURCES + "streams: [{source: t, on: {e: {delete: {key: [a]}}}}]", "streams.0.source: no such source, there are e, s, got 't'"),
    (SOURCES + "streams: [{source: s}]", "streams.0.on: required"),
    (SOURCES + "streams: [{source: s, on: {}}]", "streams.0.on: expected rules by event name, got {}"),
    (SOURCES + "streams: [{source: s, on: {e: {}}}]", "streams.0.on.e: a rule has one operation, got 0"),
    (SOURCES + "streams: [{source: s, on: {e: [{delete: {key: [a]}}, 5]}}]", "streams.0.on.e.1: expected a rule such as {set: {key: [...], value: ...}}, got 5"),
    (SOURCES + "streams: [{source: s, channel: 'c:{a.b}', on: {e: {delete: {key: [a]}}}}]", "streams.0.channel: a channel's placeholder has no members"),
    (SOURCES + "streams: [{source: s, channel: 'c:{data}', on: {e: {delete: {key: [a]}}}}]", "streams.0.channel: {data} is not a channel's to capture"),
    (SOURCES + "streams: [{source: s, channel: '{a}:{a}', on: {e: {delete: {key: [a]}}}}]", "streams.0.channel: a channel captures a name once"),
    (SOURCES + "streams: [{source: e, channel: c, on: {e: {delete: {key: [a]}}}}]", "streams.0.channel: a server-sent stream has channels only with an envelope that names one"),
    (SOURCES + "streams: [{source: s, channel: 'c:{a}', on: {e: }}]", "streams.0.on.e: expected a rule such as {set: {key: [...], value: ...}}, got None"),
    ('storage: {path: "a\\0"}', "storage.path: expected the name of a place in the file system, got 'a\\x00'"),
    (SOURCES + "streams: [{source: s, channel: 'c:{a}', join: always, on: {e: {delete: {key: [a]}}}}]", "streams.0.join: a channel with placeholders cannot always be joined, got 'c:{a}'"),
    (SOURCES + "streams: [{source: s, join: never, on: {e: {delete: {key: [a]}}}}]", "streams.0.join: expected demand or always, got 'never'"),
    (SOURCES + "streams: [{source: s, linger: 5, on: {e: {delete: {key: [a]}}}}]", "streams.0.linger: expected a duration such as 100ms, 60s, 5m or 24h, got 5"),
    (SOURCES + "streams: [{source: s, batching: {window: 5s}, on: {e: {delete: {key: [a]}}}}]", "streams.0.batching.max_wait: expected at least the window (5000ms), got 1000ms"),
    (SOURCES + "entities: {user: {}}\nstreams: [{source: s, channel: 'c:{a}', on: {e: {entity: {type: user, value: '{data}'}}}}]",
     "streams.0.channel: its rules name no key, so it has to be joined always, which a channel with placeholders cannot be, got 'c:{a}'"),
    (SOURCES + "streams: [{source: s, channels: c, on: {e: {delete: {key: [a]}}}}]", "streams.0.channels: unknown key, did you mean channel?"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), FAULTS, ids=[line.split(": ")[0] for _, line in FAULTS])
def test_a_fault_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    assert lines(tmp_path, text) == [line]


def test_all_faults_are_found_at_once(tmp_path: Path) -> None:
    operations = ", ".join(REQUIRED)
    text = "cluster: {shards: 0, nam: x}\nbatching: {mode: a}\nstreams: [{source: s, on: {e: {dance: {}}}}]"
    assert lines(tmp_path, text) == [
        "cluster.shards: expected a whole number from 1 to 1024, got 0",
        "cluster.nam: unknown key, did you mean name?",
        "batching.mode: expected window or leading or debounce, got 'a'",
        "streams.0.source: no such source, there are none, got 's'",
        f"streams.0.on.e.dance: unknown operation, expected one of {operations}",
    ]


class TestFiles:
    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        path = tmp_path / "none.yaml"
        assert check(path, {}) == [f"{path}: cannot be read: No such file or directory"]

    def test_one_that_is_no_text(self, tmp_path: Path) -> None:
        assert lines(tmp_path, b"a: \xff") == ["cannot be read: is not UTF-8"]

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("a: [1", "line 1, column 6: expected ',' or ']', but got '<stream end>'"),
            ("cluster: {}\na: b: c", "line 2, column 5: mapping values are not allowed here"),
            ("a: !!python/object:os.system {}", "line 1, column 4: could not determine a constructor for the tag "),
            ("cluster: {name: a,\n  name: b}", "line 2, column 3: the key 'name' is repeated"),
            ("cluster: {}\ncluster: {}", "line 2, column 1: the key 'cluster' is repeated"),
            ("[1]: a", "line 1, column 1: a key must be text"),
            ("a: *b", "line 1, column 4: found undefined alias 'b'"),
            ("a: &b [*b]", "line 1, column 4: found unconstructable recursive node"),
            ("a: " + "1" * 5_000, "a value cannot be read: Exceeds the limit (4300 digits)"),
            ("a: " + "[" * 3000, "nested too deep"),
            ("a0: &a0 []\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3000)), "nested too deep"),
            (
                "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 10}]\n" for n in range(1, 10)),
                "more than 1000000 values, with aliases written out",
            ),
        ],
    )
    def test_one_that_is_no_yaml(self, tmp_path: Path, text: str, line: str) -> None:
        (printed,) = lines(tmp_path, text)
        assert printed.startswith(line)

    def test_an_empty_one_is_all_defaults(self, tmp_path: Path) -> None:
        path = tmp_path / "harbor.yaml"
        path.write_text("# nothing\n")
        assert load(path, {}) == Config()
        assert Config().cluster.shards == 4

    def test_words_that_only_old_yaml_takes_for_flags_or_dates_are_text(self, tmp_path: Path) -> None:
        path = tmp_path / "harbor.yaml"
        rule = "{set: {key: [k, no, 2024-01-01, yes], value: off}}"
        path.write_text(SOURCES + f"streams: [{{source: s, on: {{on: {rule}, off: {rule}}}}}]")
        (stream,) = load(path, {}).streams
        assert list(stream.on) == ["on", "off"]
        assert stream.on["on"] == [{"set": {"key": ["k", "no", "2024-01-01", "yes"], "value": "off"}}]

    def test_numbers_are_those_of_yaml_1_2(self, tmp_path: Path) -> None:
        path = tmp_path / "harbor.yaml"
        given = "[012, -7, +3, 0x1F, 0o17, 1e3, .5, 2., 0b1, 1_000, 12:30, 1:2.5, '012', =, 1., -, .]"
        path.write_text(SOURCES + f"streams: [{{source: s, on: {{e: {{set: {{key: {given}, value: 1}}}}}}}}]")
        (stream,) = load(path, {}).streams
        key = stream.on["e"][0]["set"]["key"]
        numbers = [12, -7, 3, 31, 15, 1000.0, 0.5, 2.0]
        assert key == [*numbers, "0b1", "1_000", "12:30", "1:2.5", "012", "=", 1.0, "-", "."]

    @pytest.mark.parametrize("number", [".inf", "-.Inf", ".NaN"])
    def test_what_is_no_number_of_json_is_a_fault(self, tmp_path: Path, number: str) -> None:
        (line,) = lines(tmp_path, f"cluster: {{shards: {number}}}")
        assert line.startswith("cluster.shards: expected a number, got ")

    def test_faults_are_an_exception_with_all_of_them(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigFaults) as caught:
            load_mapping({"a": 1, "b": 2}, {})
        assert [fault.path for fault in caught.value.faults] == ["a", "b"]
        assert isinstance(caught.value, ConfigError)


class TestEnvironment:
    def test_variables_are_put_in(self) -> None:
        text = "services: {api: {base_url: '${URL}', headers: {authorization: 'Bearer ${TOKEN}', x-n: '${N}'}}}"
        config = loaded(text, {"URL": "https://api", "TOKEN": "secret", "N": "12"})
        assert config.services["api"] == ServiceConfig("https://api", {"authorization": "Bearer secret", "x-n": "12"})

    @pytest.mark.parametrize(
        ("text", "env", "name"),
        [
            ("${NAME}", {"NAME": "given"}, "given"),
            ("${NAME:-fallback}", {"NAME": "given"}, "given"),
            ("${NAME:-fallback}", {}, "fallback"),
            ("${NAME:-fallback}", {"NAME": ""}, "fallback"),
            ("${A}-${B:-b}", {"A": "a"}, "a-b"),
            ("${A}${A}", {"A": "x"}, "xx"),
            ("${A}", {"A": "x"}, "x"),
        ],
    )
    def test_defaults(self, text: str, env: dict[str, str], name: str) -> None:
        assert load_mapping({"cluster": {"name": text}}, env).cluster.name == name

    def test_text_that_is_one_variable_may_be_a_number(self) -> None:
        config = loaded("{cluster: {shards: '${SHARDS}'}, gateway: {port: '${PORT:-9000}'}}", {"SHARDS": "8"})
        assert (config.cluster.shards, config.gateway.port) == (8, 9000)

    @pytest.mark.parametrize("text", ["0012", "9" * 19, "9" * 5_000, "٣", "-1", "1.5", ""])
    def test_a_variable_of_which_a_number_would_lose_something_stays_text(self, text: str) -> None:
        document = {"streams": [{"source": "s", "on": {"e": {"set": {"key": ["k"], "value": "${V:-}"}}}}]}
        config = load_mapping({**yaml.safe_load(SOURCES), **document}, {"V": text})
        assert config.streams[0].on["e"] == [{"set": {"key": ["k"], "value": text}}]

    @pytest.mark.parametrize("text", ["${MY.VAR}", "x ${MY-VAR}", "${}", "${A:b}", "${A"])
    def test_what_only_looks_like_a_variable_is_a_fault(self, tmp_path: Path, text: str) -> None:
        assert lines(tmp_path, f"services: {{api: {{base_url: 'http://x', headers: {{a: '{text}'}}}}}}") == [
            "services.api.headers.a: expected ${NAME} or ${NAME:-text}, a name of letters, digits and '_'"
        ]

    def test_one_that_is_not_set_is_a_fault(self, tmp_path: Path) -> None:
        text = "services: {api: {base_url: 'http://x', headers: {a: '${TOKEN}', b: 'x ${OTHER}'}}}"
        assert lines(tmp_path, text) == [
            "services.api.headers.a: the environment variable TOKEN is not set",
            "services.api.headers.b: the environment variable OTHER is not set",
        ]

    def test_what_a_variable_holds_is_not_expanded_again(self) -> None:
        text = "services: {api: {base_url: 'http://x', headers: {a: '${A}'}}}"
        assert loaded(text, {"A": "${B}", "B": "no"}).services["api"].headers == {"a": "${B}"}

    def test_the_process_environment_is_read_by_default(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "harbor.yaml"
        path.write_text("cluster: {name: '${HARBOR_TEST_NAME}'}")
        monkeypatch.delenv("HARBOR_TEST_NAME", raising=False)
        assert len(check(path)) == 1
        monkeypatch.setenv("HARBOR_TEST_NAME", "x")
        assert check(path) == []


class TestValues:
    def test_everything_at_once(self) -> None:
        config = loaded("""
            cluster: {name: c1, shards: 8, coordinators: 2, ingestors: 3, gateways: 2, replicas: 0}
            batching: {window: 50ms, mode: leading, max_wait: 0.5s}
            gateway: {host: "::1", port: 0, admin_host: localhost, admin_port: 1, origins: ["https://a"], auth: {mode: none}}
            storage: {path: null, sync: never, wait: 5s, history: {max_bytes: 1MiB, max_age: infinity}}
            defaults: {stale_time: infinity, gc_time: 24h, offline_time: 1h, retry: true}
            services: {api: {base_url: "http://x/base", timeout: 1m}}
            queries:
              - {key: [a, "{id}"], service: api, path: "/a/{id}", params: {x: "{id}"}, stale_time: 1d, retry: false, persist: false}
              - {key: [b], service: api, path: /b, gc_time: infinity, offline_time: infinity, retry: 7, retry_delay: 10ms}
            sources:
              s: {type: websocket, url: "wss://x", envelope: {event: t}, subscribe: {c: "{channel}"}, unsubscribe: "{channel}",
                  reconnect: {attempts: 2, initial: 10ms, max: 20ms}, heartbeat: infinity, max_frame: 64KiB}
            streams:
              - {source: s, channel: c, join: always, linger: 0s, batching: {mode: debounce}, "on": {e: {delete: {key: [a]}}}}
        """)
        assert config.cluster == ClusterConfig("c1", 8, 2, 3, 2)
        assert config.batching == Profile("leading", 50.0, 500.0)
        assert config.gateway == GatewayConfig("::1", 0, "localhost", 1, ("https://a",))
        assert config.storage.history == HistoryConfig(1024**2, None)
        assert config.services == {"api": ServiceConfig("http://x/base", {}, 60_000.0)}
        assert config.queries == (
            QueryConfig(
                ["a", "{id}"],
                "api",
                "/a/{id}",
                {"x": "{id}"},
                86_400_000.0,
                86_400_000.0,
                3_600_000.0,
                0,
                persist=False,
            ),
            QueryConfig(["b"], "api", "/b", None, None, None, None, 7, 10.0),
        )
        assert config.sources == {
            "s": SourceConfig(
                "websocket", "wss://x", {}, {"event": "t"}, {"c": "{channel}"}, "{channel}",
                ReconnectConfig(2, 10.0, 20.0), None, 65536,
            )
        }  # fmt: skip
        (stream,) = config.streams
        assert (stream.always, stream.linger_ms, stream.batching) == (True, 0.0, Profile("debounce", 50.0, 500.0))

    def test_what_a_section_leaves_out_is_the_default(self) -> None:
        assert loaded("storage: {history: {}}").storage == StorageConfig()
        assert loaded("storage: {history: {max_age: 5m}}").storage.history == HistoryConfig(max_age_ms=300_000.0)
        assert loaded("gateway: {port: 1}").gateway == GatewayConfig(port=1)

    def test_transports(self, monkeypatch: pytest.MonkeyPatch) -> None:
        text = "sources: {s: {type: websocket, url: 'ws://x', transport: %s}}"
        assert loaded("sources: {s: {type: websocket, url: 'ws://x'}}").sources["s"].transport == "websockets"
        for name in ("auto", "fast", "websockets"):
            assert loaded(text % name).sources["s"].transport == name
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert loaded(text % "auto").sources["s"].transport == "auto"
        with pytest.raises(ConfigFaults, match="fast needs picows, which is not installed"):
            loaded(text % "fast")

    def test_retry_true_is_for_ever(self) -> None:
        text = SERVICES + "queries: [{key: [a], service: api, path: /}]"
        assert loaded(text + "\ndefaults: {retry: true}").queries[0].retry is True
        assert loaded(text).queries[0].retry == 3

    def test_what_queries_have_besides(self) -> None:
        config = loaded("""
            defaults: {stale_time: static}
            services: {api: {base_url: "http://x", concurrency: 3}}
            queries:
              - {key: [a], service: api, path: /a, stale_time: 5s, refetch_interval: 30s, infinite: {page_size: 50, max_pages: 4}}
              - {key: [b, "{n}"], function: "package.module:make", infinite: {param: page, initial: 1, step: 1, by: number}}
              - {key: [c], service: api, path: /c, infinite: {initial: null, items: /data, next: /links/next, previous: /links/back}}
        """)
        assert config.services["api"].concurrency == 3
        counted, called, followed = config.queries
        assert (counted.stale_time, counted.refetch_interval_ms) == (5_000.0, 30_000.0)
        assert counted.infinite == OffsetPaging(page_size=50, step=50, max_pages=4)
        assert (called.function, called.service, called.stale_time) == ("package.module:make", "", STATIC)
        assert called.infinite == OffsetPaging("page", 1, 20, 1, by="number")
        assert followed.infinite == OffsetPaging(
            initial=None, items="/data", next="/links/next", previous="/links/back"
        )

    def test_cache_entities_and_relations(self) -> None:
        config = loaded("""
            cache: {max_bytes: 64MiB, max_entries: 1000}
            entities:
              user: {id: uid, keys: [userId], objects: [author, editor], queries: [[people], [team, 7]]}
              task: {}
            relations:
              user: [[users, "{id}"], [reports, {author: "{id}"}], {contains: "user:{id}"}]
        """)
        assert config.cache == CacheConfig(64 * 1024**2, 1000)
        assert config.entities == {
            "user": EntityType("user", "uid", ("userId",), ("author", "editor"), (("people",), ("team", 7))),
            "task": EntityType("task", queries=(("tasks",), ("tasks", "list"), ("tasks", "detail"))),
        }
        assert config.relations == {
            "user": [["users", "{id}"], ["reports", {"author": "{id}"}], {"contains": "user:{id}"}]
        }
        assert loaded("{}").cache == CacheConfig(None, None)

    def test_rules_that_name_no_key_have_their_channel_joined_always(self) -> None:
        rules = "{e: {entity: {type: user, value: '{data}'}}, f: {relation: {type: user, id: '{data.id}'}}}"
        declared = "entities: {user: {}}\nrelations: {user: [[users, '{id}']]}\n"
        config = loaded(SOURCES + declared + f'streams: [{{source: s, channel: c, "on": {rules}}}]')
        assert compile_config(config).feeds.always() == [("s", "c")]

    @pytest.mark.parametrize(
        "rule", ["{entity: {type: user, value: '{data}'}}", "{relation: {type: user, id: '{data.id}'}}"]
    )
    @pytest.mark.parametrize(("channel", "always"), [("c", [("s", "c")]), ("c:{id}", [])])
    def test_so_have_those_beside_which_others_do(self, rule: str, channel: str, always: list[Any]) -> None:
        rules = "{e: [{set: {key: [k, '{data.id}'], value: 1}}, " + rule + "], f: {delete: {key: [k, '{data.id}']}}}"
        declared = "entities: {user: {}}\nrelations: {user: [[users, '{id}']]}\n"
        feeds = compile_config(
            loaded(SOURCES + declared + f"streams: [{{source: s, channel: '{channel}', 'on': {rules}}}]")
        ).feeds
        assert feeds.always() == always
        assert feeds.channels_for(["k", 1]) == [], "it is joined already"


class TestSecrets:
    TEXT = """
        services: {api: {base_url: 'https://u:${T}@x/a', headers: {authorization: 'Bearer ${T}'}}}
        queries: [{key: [a, '{id}'], service: api, path: '/a/{id}?k=${T}', params: {id: '{id}', key: '${T}', n: 5}}]
        sources:
          s: {type: websocket, url: 'wss://${T}@x/ws?a=1&token=${T}#f', headers: {cookie: '${T}'}, subscribe: {key: '${T}', to: '{channel}'},
              unsubscribe: ['${T}']}
    """

    def test_are_loaded_and_not_shown(self) -> None:
        config = loaded(self.TEXT, {"T": "hunter2"})
        assert config.services["api"].headers == {"authorization": "Bearer hunter2"}
        assert config.sources["s"].url == "wss://hunter2@x/ws?a=1&token=hunter2#f"
        assert "hunter2" not in repr(config)
        assert "hunter2" not in repr(config.redacted())
        assert b"hunter2" not in msgspec.json.encode(config.redacted())

    def test_what_is_no_secret_is_shown(self) -> None:
        shown = loaded(self.TEXT, {"T": "hunter2"}).redacted()
        assert shown.services["api"].base_url == "https://***@x/a"
        assert shown.services["api"].headers == {"authorization": "***"}
        assert (shown.queries[0].path, shown.queries[0].params) == (
            "/a/{id}?k=***",
            {"id": "{id}", "key": "***", "n": 5},
        )
        source = shown.sources["s"]
        assert source.url == "wss://***@x/ws?a=***&token=***#f"
        assert (source.subscribe, source.unsubscribe) == ({"key": "***", "to": "{channel}"}, ["***"])

    @pytest.mark.parametrize(
        "text",
        [
            "sources: {s: {type: websocket, url: 'htp://u:${T}@x?t=${T}'}}",
            "sources: {s: {type: sse, url: 'http://x', missed: 'http://x?t=${T}'}}",
            "services: {a: {base_url: 'http://x', headers: '${T}'}}",
            "gateway: {auth: {mode: jwt, secret: '${T}'}}",
        ],
    )
    def test_no_fault_tells_them(self, tmp_path: Path, text: str) -> None:
        (line,) = lines(tmp_path, text, {"T": "hunter2"})
        assert "hunter2" not in line


def test_the_demo_loads_and_compiles() -> None:
    assert check(DEMO, {}) == []
    config = load(DEMO, {"UPSTREAM_URL": "http://up:1", "UPSTREAM_WS": "ws://up:1/ws"})
    assert config.services["api"].base_url == "http://up:1"
    assert config.sources["events"].url == "ws://up:1/ws"
    compiled = compile_config(config)
    assert compiled.feeds.channels_for(["projects", "detail", "1"]) == [("events", "project:1")]
    assert compiled.feeds.channels_for(["messages", "2"]) == [("events", "channel:2:messages")]
    for name in config.sources:
        compiled.router(name)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=Config) == config, "as actors get it"
    assert sorted(compiled.mutations) == [
        *("create_task", "delete_task", "messages.create", "messages.delete", "messages.update", "update_task"),
    ]
    assert compiled.feeds.channels_for(["messages", "list", {"channelId": "2"}]) == [("events", "channel:2:messages")]


names = st.sampled_from(
    ["cluster", "batching", "gateway", "defaults", "services", "queries", "sources", "streams", "storage", "api", "s",
     "shards", "window", "port", "key", "path", "service", "type", "url", "on", "e", "set", "value", "at", "each", "when",
     "version", "by", "where", "channel", "envelope", "event", "headers", "auth", "mode", "join", "increment", "source"]
)  # fmt: skip
anything = st.recursive(
    st.sampled_from([None, True, 0, 5, -1, 1.5, "", "a", "/a", "{x}", "{data.a}", "${V}", "100ms", "http://x", "ws://[", "sse", "s"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(names, anything, max_size=4))
def test_whatever_is_written_is_a_configuration_or_faults(document: dict[str, Any]) -> None:
    try:
        config = load_mapping(document, {"V": "3"})
    except ConfigFaults as caught:
        faults = caught.faults
    else:
        faults = []
        compile_config(config)
    assert all(fault.reason for fault in faults)


def test_a_source_in_partitions_is_one_source_for_each(tmp_path: Path) -> None:
    source = {
        "type": "websocket",
        "url": "ws://x/{partition}?of={partitions}",
        "partitions": 2,
        "subscribe": {"join": "{channel}", "part": "{partition}"},
    }
    stream = {"source": "ticks", "channel": "c:{id}", "on": {"e": {"set": {"key": ["k", "{id}"], "value": "{data}"}}}}
    config = load_mapping({"sources": {"ticks": source}, "streams": [stream]}, {})
    assert [each.url for each in config.sources.values()] == ["ws://x/0?of=2", "ws://x/1?of=2"]
    assert config.sources["ticks@1"].subscribe == {"join": "{channel}", "part": 1}
    channels = compile_config(config).feeds.channels_for(["k", "7"])
    assert channels == [("ticks@0", "c:7"), ("ticks@1", "c:7")]


def test_ingestors_may_follow_their_load() -> None:
    config = load_mapping({"cluster": {"ingestors": {"min": 2, "max": 6, "target": 0.5, "cool_down": "10s"}}}, {})
    assert (config.cluster.ingestors, config.cluster.autoscale) == (2, Autoscale(2, 6, 0.5, 10_000.0))


def test_with_keys_it_may_listen_everywhere(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(line("a", "hk_a", Grants(admin=True)))
    text = "gateway: {host: 0.0.0.0, admin_host: '::', auth: {mode: api_keys, keys_file: %s}}"
    assert load_mapping(yaml.safe_load(text % keys), {}).gateway.auth == AuthConfig("api_keys", str(keys))


def test_gateways_may_be_as_many_as_nodes_have_places_for() -> None:
    assert load_mapping({"cluster": {"gateways": "auto"}}, {}).cluster.gateways is None


def test_gateways_may_follow_their_sessions() -> None:
    given = {"min": 2, "max": 6, "sessions": 100, "cool_down": "10s"}
    assert load_mapping({"cluster": {"gateways": given}}, {}).cluster.gateways == GatewayScale(2, 6, 100, 10_000.0)
    assert load_mapping({"cluster": {"gateways": {}}}, {}).cluster.gateways == GatewayScale(1, 4, 5_000, 300_000.0)


def test_a_store_without_a_path_has_the_default_one():
    assert load_mapping({"storage": {"sync": "always"}}, {}).storage == StorageConfig(sync="always")
