"""Reading `harbor.yaml`: every fault is found, and each names its place, the reason and the value.

It is one thing because sections refer to each other: streams to sources, queries to services, placeholders to captures.
What this version does not do is a fault, never ignored.
"""

import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from msgspec import Struct

from cluster.config import values
from cluster.config.auth import is_loopback, read_auth
from cluster.config.limits import limits, network, origin
from cluster.config.model import (
    AuthConfig,
    CacheConfig,
    ClusterConfig,
    Config,
    GatewayConfig,
    HistoryConfig,
    PresenceConfig,
    QueryConfig,
    ReconnectConfig,
    ServiceConfig,
    SourceConfig,
    StorageConfig,
    StreamConfig,
    masked_url,
)
from cluster.config.mutations import MutationReader
from cluster.config.resources import Resource, read_resource
from cluster.config.rules import parse_rule
from cluster.config.section import NEVER, Faults, Section, listed
from cluster.config.transforms import parse_transform
from cluster.config.values import duration, shown
from cluster.core import template
from cluster.core.dialect import DIALECTS
from cluster.core.entity_index import EntityType
from cluster.core.feed import Repeats
from cluster.core.gateway_scaling import GatewayScale
from cluster.core.infinite import OffsetPaging
from cluster.core.limits import Limits
from cluster.core.operation import is_number
from cluster.core.overflow import Overflow
from cluster.core.presence_room import MAX_TOPIC
from cluster.core.query_options import DEFAULT_OFFLINE_TIME_MS
from cluster.core.rule import BROADCAST
from cluster.core.scaling import MAX_INGESTORS, Autoscale
from cluster.core.session_state import OUTBOX_BYTES
from cluster.core.slot_move import MAX_SHARDS
from cluster.core.staleness import StaleTime
from cluster.core.tenant import VARIABLE, is_name
from cluster.core.window import Profile
from cluster.errors import ConfigError

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_WHOLE = re.compile(r"(?:0|[1-9][0-9]{0,17})\Z")
"""As JSON has whole numbers: of `0012` the text would be lost, and of more digits the number."""
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")
MIN_OUTBOX_BYTES = 64 * 1024
"""As much as one frame of a snapshot."""
MIN_SECRET = 32
"""Characters: 128 bits, written in hexadecimal."""
MAX_PARTITIONS = 64
MAX_NODES = 1_000_000
"""Values in a document with its aliases written out, which a few lines can make billions of."""
MAX_LEVELS = 200
"""Of nesting, with aliases written out; a chain of them gets deeper than the text is."""
OPERATION = frozenset({"query", "variables", "operationName", "extensions"})


class ConfigFaults(ConfigError):  # noqa: N818 - they are what the user calls them
    """All faults of one file."""

    def __init__(self, faults: list[ConfigError]) -> None:
        super().__init__(faults[0].path, faults[0].reason)
        self.faults = faults


def load(path: str | Path, env: Mapping[str, str]) -> Config:
    """Read and check a file.

    Raises:
        ConfigFaults: with every fault found.
    """
    return load_mapping(read_document(path), env)


def read_document(path: str | Path) -> Any:
    """Read a file without checking what it says; an empty one is an empty mapping.

    Raises:
        ConfigFaults: it cannot be read, or is no YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise ConfigFaults([ConfigError("", f"cannot be read: {reason}")]) from error
    try:
        document = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except RecursionError as error:
        raise ConfigFaults([ConfigError("", "nested too deep")]) from error
    except ValueError as error:  # `0b_`: YAML takes it for a number, Python does not
        raise ConfigFaults([ConfigError("", f"a value cannot be read: {error}")]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigFaults([ConfigError("", f"{where}{reason}")]) from error
    nodes, levels = _extent(document, {})
    if nodes > MAX_NODES or levels > MAX_LEVELS:
        reason = "nested too deep" if levels > MAX_LEVELS else f"more than {MAX_NODES} values, with aliases written out"
        raise ConfigFaults([ConfigError("", reason)])
    return {} if document is None else document


def _extent(node: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many values a node is and how many levels it has; what aliases share is looked at once."""
    if not isinstance(node, dict | list):
        return 1, 0
    found = known.get(id(node))
    if found is None:
        members = [_extent(each, known) for each in (node.values() if isinstance(node, dict) else node)]
        nodes, levels = 1 + sum(nodes for nodes, _ in members), 1 + max((levels for _, levels in members), default=0)
        found = known[id(node)] = nodes, levels
    return found


def check(path: str | Path, env: Mapping[str, str] | None = None) -> list[str]:
    """Return one line for each fault of a file."""
    try:
        load(path, os.environ if env is None else env)
    except ConfigFaults as error:
        return [f"{path}: {fault.message}" for fault in error.faults]
    return []


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader for which a repeated key is a fault, as YAML 1.2 has it."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        try:
            repeated = key in seen
            seen.add(key)
        except TypeError:
            raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark) from None
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is repeated", key_node.start_mark)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _whole_number(_loader: _UniqueKeyLoader, node: yaml.ScalarNode) -> int:
    return int(node.value, {"0o": 8, "0x": 16}.get(node.value[:2], 10))


# As YAML 1.2 has it, too (its core schema, section 10.3.2): `on:` is a section's name here, which YAML 1.1 would read as `true`, `012` is
# not ten and `12:30` no number, and JSON has no dates. What merges mappings (`<<`) is left of 1.1, as it is in use.
_TAG = "tag:yaml.org,2002:"
_UniqueKeyLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag.removeprefix(_TAG) in ("merge", "null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
):
    _UniqueKeyLoader.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_form})\Z"), list(_first))
_UniqueKeyLoader.add_constructor(f"{_TAG}int", _whole_number)


def _directory(path: str, value: Any) -> str | None:
    return None if value is None else values.place(path, value)


def _name(path: str, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.match(value):
        raise ConfigError(path, f"expected a name of letters, digits, '-' and '_', got {value!r}")
    return value


def _count(path: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024:
        raise ConfigError(path, f"expected a whole number from 1 to 1024, got {value!r}")
    return value


def _replicas(path: str, value: Any) -> int:
    if isinstance(value, bool) or value not in (0, 1):
        raise ConfigError(path, f"expected 0 or 1, got {value!r}")
    return int(value)


def _ingestors(path: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_INGESTORS:
        raise ConfigError(
            path,
            f"expected a whole number from 1 to {MAX_INGESTORS}, or {{min, max, target, cool_down}}, got {value!r}",
        )
    return value


def _share(path: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(path, f"expected a share of a core above 0, at most 1, got {value!r}")
    return float(value)


def _shards(path: str, value: Any) -> int:
    if _count(path, value) > MAX_SHARDS:
        raise ConfigError(
            path, f"expected at most {MAX_SHARDS}, so that a position token stays below 2 KiB, got {value!r}"
        )
    return int(value)


def _gateways(path: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1024:
        raise ConfigError(
            path,
            f"expected a whole number from 1 to 1024, auto, or {{min, max, sessions, cool_down}}, got {value!r}",
        )
    return value


def _sessions(path: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(path, f"expected a whole number above 0, got {value!r}")
    return value


def _port(path: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise ConfigError(path, f"expected a port from 0 to 65535, got {value!r}")
    return value


def _positive(path: str, value: Any) -> float:
    made = duration(path, value)
    if made <= 0 or not math.isfinite(made):
        raise ConfigError(path, f"expected a duration above 0, got {value!r}")
    return made


def _rate(path: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(path, f"expected a number of events a second above 0, got {value!r}")
    return float(value)


def _outbox(path: str, value: Any) -> int:
    size = values.size(path, value)
    if size < MIN_OUTBOX_BYTES:
        raise ConfigError(path, f"expected at least 64KiB, got {shown(value)}")
    return size


def _token_secret(path: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) < MIN_SECRET:  # which is not shown
        raise ConfigError(
            path, f"expected a text of at least {MIN_SECRET} characters, such as openssl rand -hex 32 prints"
        )
    return value


def _url(*schemes: str) -> Callable[[str, Any], str]:
    def parse(path: str, value: Any) -> str:
        wanted = " or ".join(f"{scheme}://" for scheme in schemes)
        try:
            parts = urlsplit(value) if isinstance(value, str) else None
            good = parts is not None and parts.scheme in schemes and bool(parts.hostname)
            _ = parts.port if parts is not None else None
        except ValueError:
            good = False
        if not good:
            article = "an" if wanted.startswith("http") else "a"
            shown = masked_url(value) if isinstance(value, str) else value
            raise ConfigError(path, f"expected {article} {wanted} URL, got {shown!r}")
        return str(value)

    return parse


def _base_url(path: str, value: Any) -> str:
    url = _url("http", "https")(path, value)
    if "?" in url or "#" in url:
        raise ConfigError(path, f"expected a URL that paths can follow, without '?' and '#', got {masked_url(url)!r}")
    return url


def _missed(path: str, value: Any) -> str:
    url = _url("http", "https")(path, value)
    holes = list(template.holes(template.parse(url)))
    if holes != [("last_event_id",)]:
        raise ConfigError(path, f"expected one placeholder, {{last_event_id}}, got {shown(value)}")
    return url


def _transport(kind: str | None, url: Any) -> Callable[[str, Any], str]:
    def parse(path: str, value: Any) -> str:
        chosen = values.one_of("auto", "fast", "websockets")(path, value)
        if kind == "sse":
            raise ConfigError(path, "a server-sent stream has no choice of transport")
        if chosen == "fast" and importlib.util.find_spec("picows") is None:
            raise ConfigError(path, "fast needs picows, which is not installed: pip install 'harbor-cluster[fast]'")
        if chosen == "fast" and isinstance(url, str) and "@" in urlsplit(url).netloc:
            raise ConfigError(path, "fast sends no user and password of a URL: use auto, websockets or a header")
        return chosen

    return parse


def _headers(path: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ConfigError(path, f"expected a mapping of header names to values, got a {type(value).__name__}")
    headers = {}
    for name, given in value.items():
        if not _HEADER.match(name):
            raise ConfigError(f"{path}.{name}", "expected a header's name")
        # A variable that holds digits has become a number.
        text = str(given) if isinstance(given, int) and not isinstance(given, bool) else given
        if not isinstance(text, str) or not text.isascii() or not text.isprintable():
            raise ConfigError(f"{path}.{name}", "expected ASCII text on one line")
        headers[name] = text
    return headers


class _Defaults(Struct, frozen=True):
    stale_time: StaleTime = 60_000.0
    gc_time_ms: float | None = 300_000.0
    offline_time_ms: float | None = DEFAULT_OFFLINE_TIME_MS
    retry: int | bool = 3


class _Reader(Faults):
    def __init__(self, env: Mapping[str, str]) -> None:
        super().__init__()
        self.env = env
        self.entities: dict[str, EntityType] = {}
        self.relations: dict[str, list[Any]] = {}
        self.is_tenanted = False

    def expand(self, path: str, value: Any) -> Any:
        """Put environment variables in; text that is nothing but one variable may become a whole number."""
        if isinstance(value, dict):
            return {name: self.expand(f"{path}.{name}" if path else str(name), each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.expand(f"{path}.{position}", each) for position, each in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value

        def put(match: re.Match[str]) -> str:
            found = self.env.get(match[1]) or match[2]
            if found is None:
                self.fault(path, f"the environment variable {match[1]} is not set")
                return ""
            return found

        if "${" in _VARIABLE.sub("", value):  # which may be a secret's beginning, and is not shown
            self.fault(path, "expected ${NAME} or ${NAME:-text}, a name of letters, digits and '_'")
        expanded = _VARIABLE.sub(put, value)
        is_whole = _VARIABLE.fullmatch(value) is not None and _WHOLE.match(expanded) is not None
        return int(expanded) if is_whole else expanded

    def plain(self, path: str, value: Any) -> None:
        """Find what YAML can say and JSON cannot: names that are no text, numbers without value, other types."""
        if isinstance(value, dict):
            for name, each in value.items():
                at = f"{path}.{name}" if path else str(name)
                if not isinstance(name, str):
                    self.fault(at, f"expected a name in quotes, got {name!r}")
                self.plain(at, each)
        elif isinstance(value, list):
            for position, each in enumerate(value):
                self.plain(f"{path}.{position}", each)
        elif isinstance(value, float) and not math.isfinite(value):
            self.fault(path, f"expected a number, got {value!r}")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            self.fault(path, f"expected a number of at most 64 bits, got {shown(value)}")
        elif not isinstance(value, str | int | float | None):
            self.fault(path, f"expected text, got {shown(value)}")

    def items(self, path: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            self.fault(path, f"expected a list, got {shown(value)}")
            return []
        return value

    def named(self, path: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            self.fault(path, f"expected a mapping of names, got {shown(value)}")
            return {}
        found = {}
        for name, each in value.items():
            try:
                found[_name(f"{path}.{name}", name)] = each
            except ConfigError as error:
                self.faults.append(error)
        return found

    # --- sections ------------------------------------------------------------------------------------------------

    def config(self, document: Any) -> Config:
        self.plain("", document)
        if self.faults:
            raise ConfigFaults(self.faults)
        root = Section(self, "", self.expand("", document))
        cluster = root.take("cluster", ClusterConfig(), self.cluster)
        batching = root.take("batching", Profile(), self.batching)
        gateway = root.take("gateway", GatewayConfig(), self.gateway)
        storage = root.take("storage", StorageConfig(), self.storage)
        defaults = root.take("defaults", _Defaults(), self.defaults)
        services = root.take("services", {}, self.services)
        sources = root.take("sources", {}, self.sources)
        resources = root.take("resources", (), lambda path, value: self.resources(path, value, services))
        if self.is_tenanted and resources:
            self.fault("resources", "keys of resources name no tenant: declare queries, mutations and streams instead")
            resources = ()
        queries = root.take("queries", (), lambda path, value: self.queries(path, value, services, defaults))
        cache = root.take("cache", CacheConfig(), self.cache)
        self.entities = root.take("entities", {}, self.entity_types)
        self.relations = root.take("relations", {}, self.relation_types)
        streams = root.take("streams", (), lambda path, value: self.streams(path, value, sources, batching))
        # What is declared by name comes before what a resource stands for.
        queries += tuple(
            self.query(each.path, query, services, defaults) for each in resources for query in each.queries
        )
        streams += tuple(
            stream
            for each in resources
            if each.stream is not None
            for stream in self.stream(f"{each.path}.stream", each.stream, sources, batching)
        )
        reader = MutationReader(self, services, sources, streams, self.entities, self.relations)
        mutations = root.take("mutations", {}, reader.mutations)
        for each in resources:
            for name, mutation in each.mutations.items():
                mutations.setdefault(name, reader.mutation(each.path, mutation))
        presence = root.take("presence", {}, self.presence)
        root.done()
        if self.faults:
            first: dict[str, ConfigError] = {}
            for fault in self.faults:
                first.setdefault(fault.path, fault)  # what is wrong already is often wrong in a second way
            raise ConfigFaults(list(first.values()))
        return Config(
            cluster,
            batching,
            gateway,
            services,
            queries,
            sources,
            streams,
            cache,
            storage,
            self.entities,
            self.relations,
            mutations,
            presence=presence,
        )

    def presence(self, path: str, value: Any) -> dict[str, PresenceConfig]:
        if not isinstance(value, dict):
            raise ConfigError(path, f"expected a mapping of topics, got {shown(value)}")
        found = {}
        for topic, each in value.items():
            section = Section(self, f"{path}.{topic}", each)
            if not topic or len(topic) > MAX_TOPIC:
                self.fault(section.path, f"expected a topic of 1 to {MAX_TOPIC} characters, got {shown(topic)}")
            default = PresenceConfig()
            found[topic] = made = PresenceConfig(
                section.take("heartbeat", default.heartbeat_ms, _positive),
                section.take("timeout", default.timeout_ms, _positive),
            )
            if made.timeout_ms <= made.heartbeat_ms:
                self.fault(
                    section.at("timeout"),
                    f"expected more than the heartbeat ({made.heartbeat_ms:g}ms), got {made.timeout_ms:g}ms",
                )
            section.done()
        return found

    def cluster(self, path: str, value: Any) -> ClusterConfig:
        section = Section(self, path, value)
        autoscale = (
            section.take("ingestors", None, self.autoscale)
            if isinstance(section.value.get("ingestors"), dict)
            else None
        )
        made = ClusterConfig(
            section.take("name", "harbor", _name),
            section.take("shards", 4, _shards),
            section.take("coordinators", 1, _count),
            autoscale.min if autoscale is not None else section.take("ingestors", 1, _ingestors),
            section.take("gateways", 1, self.gateways),
            autoscale,
            section.take("replicas", 0, _replicas),
        )
        if made.coordinators > made.shards:
            self.fault(
                f"{path}.coordinators", f"expected at most one per shard ({made.shards}), got {made.coordinators}"
            )
        section.done()
        return made

    def gateways(self, path: str, value: Any) -> int | GatewayScale | None:
        if not isinstance(value, dict):
            return None if value == "auto" else _gateways(path, value)
        section, default = Section(self, path, value), GatewayScale()
        made = GatewayScale(
            section.take("min", default.min, _count),
            section.take("max", default.max, _count),
            section.take("sessions", default.sessions, _sessions),
            section.take("cool_down", default.cool_down_ms, _positive),
        )
        if made.max < made.min:
            self.fault(f"{path}.max", f"expected at least min ({made.min}), got {made.max}")
        section.done()
        return made

    def autoscale(self, path: str, value: Any) -> Autoscale:
        section = Section(self, path, value)
        made = Autoscale(
            section.take("min", 1, _ingestors),
            section.take("max", 4, _ingestors),
            section.take("target", 0.7, _share),
            section.take("cool_down", 60_000.0, _positive),
        )
        if made.max < made.min:
            self.fault(f"{path}.max", f"expected at least min ({made.min}), got {made.max}")
        section.done()
        return made

    def batching(self, path: str, value: Any, base: Profile | None = None) -> Profile:
        base = base or Profile()
        section = Section(self, path, value)
        made = Profile(
            section.take("mode", base.mode, values.one_of("window", "leading", "debounce")),
            section.take("window", base.window_ms, _positive),
            section.take("max_wait", base.max_wait_ms, _positive),
        )
        if made.max_wait_ms < made.window_ms:
            self.fault(
                f"{path}.max_wait", f"expected at least the window ({made.window_ms:g}ms), got {made.max_wait_ms:g}ms"
            )
        section.done()
        return made

    def gateway(self, path: str, value: Any) -> GatewayConfig:
        section = Section(self, path, value)
        tenant_claim = section.take("tenant_claim", "", values.text)
        self.is_tenanted = bool(tenant_claim)
        made = GatewayConfig(
            section.take("host", "127.0.0.1", values.text),
            section.take("port", 8700, _port),
            section.take("admin_host", "127.0.0.1", values.text),
            section.take("admin_port", 8701, _port),
            section.take("origins", (), self.origins),
            section.take(
                "auth", AuthConfig(), lambda at, given: read_auth(self, at, given, tenants=bool(tenant_claim))
            ),
            tenant_claim,
            limits=section.take("limits", Limits(), lambda path, value: limits(Section(self, path, value))),
            trusted_proxies=section.take("trusted_proxies", (), self.networks),
            hsts_ms=section.take("hsts", 0.0, _positive),
            outbox_bytes=section.take("outbox", OUTBOX_BYTES, _outbox),
            token_secret=section.take("token_secret", "", _token_secret),
        )
        if tenant_claim and made.auth.mode == "none":
            self.fault(f"{path}.tenant_claim", "tenants are told apart by their credentials: auth.mode is none")
        section.done()
        if made.port == made.admin_port != 0 and made.host == made.admin_host:
            self.fault(f"{path}.admin_port", f"expected another port than gateway.port, got {made.port} for both")
        for name, host in (("host", made.host), ("admin_host", made.admin_host)):
            if made.auth.mode == "none" and not is_loopback(host):
                self.fault(
                    f"{path}.{name}",
                    f"without auth a loopback address is needed (127.0.0.1, ::1 or localhost), got {host!r}",
                )
        return made

    def origins(self, path: str, value: Any) -> tuple[str, ...]:
        return self._each(path, value, origin)

    def networks(self, path: str, value: Any) -> tuple[str, ...]:
        return self._each(path, value, network)

    def _each(self, path: str, value: Any, parse: Callable[[str, Any], str]) -> tuple[str, ...]:
        """Read the elements of a list, and note the fault of each that has one."""
        found = []
        for position, each in enumerate(self.items(path, value)):
            try:
                found.append(parse(f"{path}.{position}", each))
            except ConfigError as error:
                self.faults.append(error)
        return tuple(found)

    def store_nodes(self, path: str, value: Any) -> tuple[str, ...]:
        names = tuple(_name(f"{path}.{n}", each) for n, each in enumerate(self.items(path, value)))
        if len(set(names)) < len(names):
            raise ConfigError(path, f"a node is there twice, in {shown(value)}")
        return names

    def history(self, path: str, value: Any) -> HistoryConfig:
        section = Section(self, path, value)
        made = HistoryConfig(
            section.take("max_bytes", HistoryConfig().max_bytes, values.size),
            section.take("max_age", HistoryConfig().max_age_ms, values.endless),
        )
        section.done()
        return made

    def storage(self, path: str, value: Any) -> StorageConfig:
        section = Section(self, path, value)
        made = StorageConfig(
            section.take("path", ".harbor", _directory),
            section.take("sync", "window", values.one_of("always", "window", "never")),
            section.take("wait", 60_000.0, duration),
            section.take("nodes", (), self.store_nodes),
            section.take("history", HistoryConfig(), self.history),
        )
        section.done()
        return made

    def defaults(self, path: str, value: Any) -> _Defaults:
        section = Section(self, path, value)
        made = _Defaults(
            section.take("stale_time", 60_000.0, values.stale_time),
            section.take("gc_time", 300_000.0, values.endless),
            section.take("offline_time", DEFAULT_OFFLINE_TIME_MS, values.endless),
            section.take("retry", 3, values.retry),
        )
        section.done()
        return made

    def services(self, path: str, value: Any) -> dict[str, ServiceConfig]:
        found = {}
        for name, each in self.named(path, value).items():
            section = Section(self, f"{path}.{name}", each)
            found[name] = ServiceConfig(
                section.take("base_url", NEVER, _base_url) or "http://faulty",
                section.take("headers", {}, _headers),
                section.take("timeout", 10_000.0, _positive),
                section.take("concurrency", 32, _count),
            )
            section.done()
        return found

    def cache(self, path: str, value: Any) -> CacheConfig:
        section = Section(self, path, value)
        made = CacheConfig(
            section.take("max_bytes", None, values.size),
            section.take("max_entries", None, values.at_least_one),
        )
        section.done()
        return made

    def entity_types(self, path: str, value: Any) -> dict[str, EntityType]:
        found: dict[str, EntityType] = {}
        taken: dict[str, str] = {}
        for name, each in self.named(path, value).items():
            section = Section(self, f"{path}.{name}", each)
            plural = f"{name}s"
            found[name] = EntityType(
                name,
                section.take("id", "id", values.text),
                section.take("keys", (), values.names),
                section.take("objects", (), values.names),
                section.take("queries", ((plural,), (plural, "list"), (plural, "detail")), self.key_beginnings),
                self.is_tenanted,
            )
            section.done()
            for member in (*found[name].keys, *found[name].objects):
                if member in taken:
                    self.fault(section.path, f"the member {member!r} belongs to {taken[member]} already")
                taken[member] = name
        return found

    def key_beginnings(self, path: str, value: Any) -> tuple[tuple[Any, ...], ...]:
        found = []
        for position, each in enumerate(self.items(path, value)):
            key = values.key(f"{path}.{position}", each)
            if any(isinstance(element, list | dict) for element in key) or list(template.holes(template.parse(key))):
                self.fault(f"{path}.{position}", f"expected texts and numbers, got {shown(each)}")
            found.append(tuple(key))
        return tuple(found)

    def relation_types(self, path: str, value: Any) -> dict[str, list[Any]]:
        found = self.named(path, value)
        for name, members in found.items():
            for position, member in enumerate(self.items(f"{path}.{name}", members)):
                at = f"{path}.{name}.{position}"
                if isinstance(member, dict) and set(member) == {"contains"}:
                    parsed = template.parse(member["contains"])
                elif isinstance(member, list) and member:
                    parsed = template.parse(member)
                else:
                    self.fault(at, f"expected a key or {{contains: element}}, got {shown(member)}")
                    continue
                known = [("id",), (VARIABLE,)] if self.is_tenanted else [("id",)]
                for hole in template.holes(parsed):
                    if hole not in known:
                        there = " and ".join(f"{{{each[0]}}}" for each in known)
                        self.fault(at, f"no such placeholder {{{'.'.join(hole)}}}, there is {there}")
                first = parsed if isinstance(member, dict) else template.parse(member[0])
                if self.is_tenanted and isinstance(member, list) and list(template.holes(first)) != [(VARIABLE,)]:
                    self.fault(at, f"keys have a tenant, expected {{{VARIABLE}}} first, got {shown(member)}")
        return found

    def infinite(self, path: str, value: Any) -> OffsetPaging:
        section = Section(self, path, value)
        size = section.take("page_size", 20, values.at_least_one)
        made = OffsetPaging(
            section.take("param", "offset", values.text),
            section.take("initial", 0, values.anything),
            size,
            section.take("step", size, values.at_least_one),
            section.take("max_pages", 0, values.at_least_one),
            section.take("by", "id", values.text),
            section.take("items", None, values.pointer),
            section.take("next", None, values.pointer),
            section.take("previous", None, values.pointer),
        )
        if made.next is None and not is_number(made.initial):
            self.fault(section.at("initial"), f"expected a number where pages are counted, got {shown(made.initial)}")
        section.done()
        return made

    def queries(
        self, path: str, value: Any, services: dict[str, ServiceConfig], defaults: _Defaults
    ) -> tuple[QueryConfig, ...]:
        items = enumerate(self.items(path, value))
        return tuple(self.query(f"{path}.{position}", each, services, defaults) for position, each in items)

    def query(self, path: str, value: Any, services: dict[str, ServiceConfig], defaults: _Defaults) -> QueryConfig:
        section = Section(self, path, value)
        key = section.take("key", NEVER, values.key)
        captures = {hole[0] for hole in template.holes(template.parse(key))} if key is not None else set()
        if key is not None:
            self.placeholders(section.at("key"), key, captures)
            self.rooted(section.at("key"), key)
        function = section.take("function", None, values.function)
        service = section.take("service", None if section.has("function") else NEVER, values.text)
        if service is not None and service not in services:
            self.fault(section.at("service"), f"no such service, there are {listed(services)}, got {service!r}")
        request_path = section.take("path", None if section.has("function") else NEVER, values.path)
        if section.has("function"):
            for name in ("service", "path", "params"):
                if section.has(name):
                    self.fault(section.at(name), "a query has a function or a service, not both")
        if request_path is not None:
            self.placeholders(section.at("path"), request_path, captures)
        params = section.take("params", None, values.params)
        self.placeholders(section.at("params"), params, captures)
        made = QueryConfig(
            key or [],
            service or "",
            request_path or "/",
            params,
            section.take("stale_time", defaults.stale_time, values.stale_time),
            section.take("gc_time", defaults.gc_time_ms, values.endless),
            section.take("offline_time", defaults.offline_time_ms, values.endless),
            section.take("retry", defaults.retry, values.retry),
            section.take("retry_delay", None, duration),
            section.take("refetch_interval", 0.0, _positive),
            section.take("infinite", None, self.infinite),
            function,
            section.take("persist", True, values.flag),
        )
        section.later("as_of")
        section.done()
        return made

    def resources(self, path: str, value: Any, services: dict[str, ServiceConfig]) -> tuple[Resource, ...]:
        found = [
            read_resource(self, f"{path}.{name}", name, each, services)
            for name, each in self.named(path, value).items()
        ]
        return tuple(each for each in found if each is not None)

    def placeholders(self, path: str, value: Any, captures: set[str]) -> None:
        for hole in template.holes(template.parse(value)):
            if len(hole) > 1:
                self.fault(path, f"a query's placeholder has no members, got {{{'.'.join(hole)}}}")
            elif hole[0] not in captures:
                self.fault(path, f"no such placeholder {{{hole[0]}}}, the key has {listed(captures)}")

    def sources(self, path: str, value: Any) -> dict[str, SourceConfig]:
        found = {}
        for name, each in self.partitioned(path, value):
            section = Section(self, f"{path}.{name.partition('@')[0]}", each)
            section.take("partitions", None, values.anything)  # see `partitioned`
            kind = section.take("type", NEVER, values.one_of(*DIALECTS)) or "websocket"
            schemes = ("ws", "wss") if kind == "websocket" else ("http", "https")
            dialect = section.take("dialect", DIALECTS[kind][0], _dialect(kind))
            converses = dialect in ("socket.io", "graphql-transport-ws")
            found[name] = SourceConfig(
                kind,
                section.take("url", NEVER, _url(*schemes)) or "ws://faulty",
                section.take("headers", {}, _headers),
                section.take("envelope", None, self.event_members if converses else self.envelope),
                section.take("subscribe", None, values.anything),
                section.take("unsubscribe", None, values.anything),
                section.take("reconnect", ReconnectConfig(), self.reconnect),
                section.take("heartbeat", 30_000.0, values.endless),
                section.take("max_frame", 4 * 1024 * 1024, values.size),
                section.take("overflow", "pause", values.one_of(*(each.value for each in Overflow))),
                section.take("max_buffer", None, values.size),
                section.take("max_rate", None, _rate),
                dialect,
                section.take("namespace", "/", _namespace),
                section.take("auth", None, values.anything),
                section.take("missed", None, _missed),
                section.take("transport", "websockets", _transport(kind, section.value.get("url"))),
            )
            made = found[name]
            for message in ("subscribe", "unsubscribe"):
                if section.has(message):
                    self.dialect_message(section.at(message), section.value[message], dialect)
                    value = made.templates if message == "subscribe" else section.value[message]
                    self.channel_message(section.at(message), value, kind)
            for option in ("namespace", "auth"):
                if (section.has(option) and not converses) or (
                    option == "namespace" and dialect == "graphql-transport-ws" and section.has(option)
                ):
                    self.fault(section.at(option), f"the dialect {dialect} has none")
            if not made.has_ids and made.repeats is not Repeats.NOTHING and kind != "sse":
                self.fault(
                    section.at("envelope"),
                    "events can be asked for again by their id only: name the member that holds it",
                )
            section.done()
        return found

    def partitioned(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Yield (name, source): for each partition of those that have some, as `name@partition`, with its number filled in."""
        for name, each in self.named(path, value).items():
            holes = [member for member in ("{partition}", "{partitions}") if member in str(each)]
            if not isinstance(each, dict) or "partitions" not in each:
                if holes and isinstance(each, dict):
                    self.fault(f"{path}.{name}", f"there is no {holes[0]} without partitions: how many are there?")
                yield name, each
                continue
            try:
                count = _partitions(f"{path}.{name}.partitions", each["partitions"])
            except ConfigError as error:
                self.faults.append(error)
                count = 1
            if "{partition}" not in holes:
                self.fault(
                    f"{path}.{name}", "nothing tells its partitions apart: put {partition} into the URL or the messages"
                )
            for number in range(count):
                yield f"{name}@{number}", _filled(each, {"{partition}": number, "{partitions}": count})

    def dialect_message(self, path: str, value: Any, dialect: str) -> None:
        """Find out whether a message that joins or leaves has the form that its dialect wants."""
        if dialect == "socket.io" and not (isinstance(value, list) and value and isinstance(value[0], str)):
            self.fault(path, f'expected an event to emit, such as [join, "{{channel}}"], got {shown(value)}')
        if dialect == "graphql-transport-ws":
            if path.endswith("unsubscribe"):
                self.fault(path, "the dialect graphql-transport-ws has a message of its own to leave")
            elif not isinstance(value, dict) or not isinstance(value.get("query"), str) or not set(value) <= OPERATION:
                self.fault(
                    path, f"expected {{query: text, variables?, operationName?, extensions?}}, got {shown(value)}"
                )

    def event_members(self, path: str, value: Any) -> dict[str, str]:
        """Members of an event's data that tell what the dialect does not."""
        section = Section(self, path, value)
        names = {ours: section.take(ours, None, values.text) for ours in ("channel", "id")}
        section.done()
        return {ours: theirs for ours, theirs in names.items() if theirs is not None}

    def channel_message(self, path: str, value: Any, kind: str | None) -> None:
        if kind != "websocket":
            self.fault(path, f"{'a server-sent stream' if kind == 'sse' else 'an HTTP stream'} has no channels to join")
        for hole in template.holes(template.parse(value)):
            if hole not in (("channel",), ("last_event_id",)) or (
                path.endswith("unsubscribe") and hole != ("channel",)
            ):
                known = "{channel}" if path.endswith("unsubscribe") else "{channel} and {last_event_id}"
                self.fault(path, f"no such placeholder {{{'.'.join(hole)}}}, there is {known}")

    def envelope(self, path: str, value: Any) -> dict[str, str]:
        section = Section(self, path, value)
        names = {}
        for ours in ("event", "data", "channel", "id"):
            theirs = section.take(ours, None, values.text)
            if theirs is not None:
                names[ours] = theirs
        section.done()
        if "event" not in names and section.is_mapping:
            self.fault(f"{path}.event", "required")
        for ours, theirs in names.items():
            if not theirs.isprintable() or '"' in theirs or "\\" in theirs:
                self.fault(f"{path}.{ours}", f"expected a member's name without quotes and backslashes, got {theirs!r}")
        if len(set(names.values())) < len(names):
            self.fault(path, f"two names read the same member, got {value!r}")
        return names

    def reconnect(self, path: str, value: Any) -> ReconnectConfig:
        section = Section(self, path, value)
        made = ReconnectConfig(
            section.take("attempts", 5, _count),
            section.take("initial", 1_000.0, _positive),
            section.take("max", 30_000.0, _positive),
        )
        if made.max_ms < made.initial_ms:
            self.fault(f"{path}.max", f"expected at least initial ({made.initial_ms:g}ms), got {made.max_ms:g}ms")
        section.done()
        return made

    def streams(
        self, path: str, value: Any, sources: dict[str, SourceConfig], batching: Profile
    ) -> tuple[StreamConfig, ...]:
        items = enumerate(self.items(path, value))
        return tuple(
            stream for position, each in items for stream in self.stream(f"{path}.{position}", each, sources, batching)
        )

    def stream(
        self, path: str, value: Any, sources: dict[str, SourceConfig], batching: Profile
    ) -> tuple[StreamConfig, ...]:
        """Read a stream, which is one of each partition of its source."""
        parts: dict[str, list[str]] = {}
        for name in sources:
            parts.setdefault(name.partition("@")[0], []).append(name)
        section = Section(self, path, value)
        source = section.take("source", NEVER, values.text)
        if source is not None and source not in parts:
            self.fault(section.at("source"), f"no such source, there are {listed(parts)}, got {source!r}")
        names = parts.get(source or "", [source or ""])
        channel = section.take("channel", None, values.text)
        captures: frozenset[str] = frozenset()
        if channel is not None:
            node = template.parse(channel)
            captures = frozenset(hole[0] for hole in template.holes(node))
            self.channel(section.at("channel"), node, sources.get(names[0]))
        join = section.take("join", "demand", values.one_of("demand", "always"))
        if join == "always" and captures:
            self.fault(section.at("join"), f"a channel with placeholders cannot always be joined, got {channel!r}")
        on = section.take("on", NEVER, partial(self._on, captures))
        rules = [rule for rules in (on or {}).values() for rule in rules if isinstance(rule, dict)]
        if captures and rules and all(rule.keys() & BROADCAST for rule in rules):
            self.fault(
                section.at("channel"),
                f"its rules name no key, so it has to be joined always, which a channel with placeholders cannot be, "
                f"got {channel!r}",
            )
        linger_ms = section.take("linger", 30_000.0, duration)
        profile = section.take("batching", None, lambda at, given: self.batching(at, given, batching))
        max_rate = section.take("max_rate", None, _rate)
        transform = section.take("transform", None, partial(parse_transform, on or {}, self.faults))
        section.done()
        return tuple(
            StreamConfig(
                name,
                on or {},
                channel,
                join == "always",
                linger_ms,
                profile,
                max_rate,
                transform,
            )
            for name in names
        )

    def channel(self, path: str, node: template.Node, source: SourceConfig | None) -> None:
        names = [hole[0] for hole in template.holes(node)]
        if any(len(hole) > 1 for hole in template.holes(node)):
            self.fault(path, "a channel's placeholder has no members")
        for name in ("data", "item", "event", "event_id"):
            if name in names:
                self.fault(path, f"{{{name}}} is not a channel's to capture")
        if len(set(names)) < len(names):
            self.fault(path, "a channel captures a name once")
        if source is not None and source.type == "sse" and source.envelope is None:
            self.fault(path, "a server-sent stream has channels only with an envelope that names one")

    def _on(self, captures: frozenset[str], path: str, value: Any) -> dict[str, list[dict[str, Any]]]:
        if not isinstance(value, dict) or not value:
            raise ConfigError(path, f"expected rules by event name, got {shown(value)}")
        found = {}
        for event, rules in value.items():
            listed = rules if isinstance(rules, list) else [rules]
            for position, rule in enumerate(listed):
                at = f"{path}.{event}.{position}" if isinstance(rules, list) else f"{path}.{event}"
                parse_rule(at, rule, captures, self.faults, self.entities, self.relations)
                self.named_tenant(at, rule)
            found[str(event)] = listed
        return found

    def rooted(self, path: str, key: Any) -> None:
        """Where there are tenants, the first element of a key is a tenant's name. A text there would be for whoever bears it."""
        if self.is_tenanted and isinstance(key, list) and key and is_name(key[0]):
            self.fault(
                path,
                f"keys have a tenant, expected a placeholder for it first: whoever is called {key[0]!r} would have these",
            )

    def named_tenant(self, path: str, rule: Any) -> None:
        """Where there are tenants, a rule has to say whose entries it is about."""
        if isinstance(rule, dict):
            self.rooted(f"{path}.key", rule.get("key"))
            for kind, arguments in rule.items():
                if isinstance(arguments, dict):
                    self.rooted(f"{path}.{kind}.key", arguments.get("key"))
        for kind in ("entity", "relation") if self.is_tenanted and isinstance(rule, dict) else ():
            if isinstance(rule.get(kind), dict) and VARIABLE not in rule[kind]:
                self.fault(f"{path}.{kind}.{VARIABLE}", "required, since gateway.tenant_claim is set")


def _dialect(kind: str) -> Callable[[str, Any], str]:
    def parse(path: str, value: Any) -> str:
        if value not in DIALECTS[kind]:
            raise ConfigError(path, f"expected {' or '.join(DIALECTS[kind])} where the type is {kind}, got {value!r}")
        return str(value)

    return parse


def _namespace(path: str, value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"/[^,\s]*", value):
        raise ConfigError(path, f"expected a namespace that begins with '/', got {value!r}")
    return value


def _partitions(path: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_PARTITIONS:
        raise ConfigError(path, f"expected a whole number from 1 to {MAX_PARTITIONS}, got {value!r}")
    return value


def _filled(value: Any, numbers: dict[str, int]) -> Any:
    """Put numbers in place of placeholders, as numbers where they stand alone."""
    if isinstance(value, dict):
        return {name: _filled(each, numbers) for name, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, numbers) for each in value]
    if not isinstance(value, str):
        return value
    if value in numbers:
        return numbers[value]
    for hole, number in numbers.items():
        value = value.replace(hole, str(number))
    return value


def load_mapping(document: Any, env: Mapping[str, str]) -> Config:
    """Check a configuration given as plain data.

    Raises:
        ConfigFaults: with every fault found.
    """
    if not isinstance(document, dict):
        raise ConfigFaults([ConfigError("", f"expected a mapping, got {shown(document)}")])
    return _Reader(env).config(document)
