"""A configuration made ready for the machines: rules, queries and profiles compiled."""

from typing import Any

from msgspec import Struct, structs

from cluster.config.model import Config
from cluster.config.mutations import confirming, declared
from cluster.config.rules import parse_rule
from cluster.core import template
from cluster.core.declared_query import DeclaredQueries, DeclaredQuery
from cluster.core.entity_index import EntityType
from cluster.core.mutation import DeclaredMutation
from cluster.core.presence_room import Pattern
from cluster.core.relation import Contains, Member, Relations
from cluster.core.rule import BROADCAST, FeedIndex, Router, RuleOperation, Stream
from cluster.core.transform import TransformFunction
from cluster.core.window import Profile


class Concerns(Struct, frozen=True):
    """Which keys depend on which upstreams (`gateway_state.Concerns`)."""

    feeds: FeedIndex
    queries: DeclaredQueries

    def source(self, source: str, key: list[Any], *, prefix: bool) -> bool:
        """Whether a source feeds a key, or keys under a prefix."""
        return self.feeds.concerns(source, key, prefix=prefix)

    def service(self, service: str, key: list[Any], *, prefix: bool) -> bool:
        """Whether a service is asked for a key, or for keys under a prefix."""
        return self.queries.concerns(service, key, prefix=prefix)


class Compiled(Struct, frozen=True):
    """What the actors build their machines from."""

    profiles: tuple[Profile, ...]
    """Batching profiles; 0 is the default."""
    streams: tuple[Stream, ...]
    queries: DeclaredQueries
    feeds: FeedIndex
    envelopes: dict[str, dict[str, str] | None]
    entities: dict[str, EntityType]
    relations: Relations
    origins: tuple[str, ...]
    """What an entry's origin says of each rule, by number."""
    mutations: dict[str, DeclaredMutation]
    presence: tuple[Pattern, ...] = ()
    """Declared topics."""

    @property
    def reducers(self) -> set[str]:
        """Return the functions that rules call."""
        rules = [rule for stream in self.streams for rules in stream.on.values() for rule in rules]
        for mutation in self.mutations.values():
            rules.extend((*mutation.optimistic, *mutation.result))
        return {rule.function for rule in rules if rule.function}

    def transforms(self, source: str) -> set[str]:
        """Return the functions that transform events of a source."""
        shaped = (stream.transform for stream in self.streams if stream.source == source)
        return {transform.function for transform in shaped if transform is not None and transform.function}

    @property
    def concerns(self) -> Concerns:
        """Return which keys depend on which upstreams."""
        return Concerns(self.feeds, self.queries)

    def router(self, source: str, call: TransformFunction | None = None) -> Router:
        """Return the rules of one source; `call` runs the functions of its transforms."""
        return Router(source, self.envelopes[source], self.streams, call)


def compile_config(config: Config) -> Compiled:
    """Compile a configuration that `load` has passed."""
    profiles = [config.batching]
    streams: list[Stream] = []
    origins: list[str] = []
    for stream in config.streams:
        profile = stream.batching or config.batching
        if profile not in profiles:
            profiles.append(profile)
        node = None if stream.channel is None else template.parse(stream.channel)
        captures = frozenset() if node is None else frozenset(hole[0] for hole in template.holes(node))
        on: dict[str, tuple[RuleOperation, ...]] = {}
        numbers: dict[str, int] = {}
        for event, rules in stream.on.items():
            parsed = [parse_rule("", rule, captures, [], config.entities, config.relations) for rule in rules]
            on[event] = tuple(rule for rule in parsed if rule is not None)
            numbers[event] = len(origins)
            channel = f"/{stream.channel}" if stream.channel else ""
            origins.append(f"stream:{stream.source}{channel} {event}")
        always = stream.always or (
            not captures and any(rule.kind in BROADCAST for operations in on.values() for rule in operations)
        )
        for event, confirms in confirming(stream, config).items():
            on[event] = (*on.get(event, ()), *confirms)
        profile_number = profiles.index(profile)
        streams.append(
            Stream(
                stream.source,
                node,
                on,
                profile_number,
                always,
                stream.linger_ms,
                stream.max_rate,
                numbers,
                stream.transform,
            )
        )
    queries = [
        DeclaredQuery(
            template.parse(query.key),
            query.service,
            template.parse(query.path),
            None if query.params is None else template.parse(query.params),
            query.stale_time,
            query.gc_time_ms,
            query.offline_time_ms,
            query.retry,
            query.retry_delay_ms,
            query.refetch_interval_ms,
            query.infinite,
            query.function,
            query.persist,
        )
        for query in config.queries
    ]
    relations = Relations(
        {type_: [parse_member(member) for member in members] for type_, members in config.relations.items()}
    )
    return Compiled(
        tuple(profiles),
        tuple(streams),
        DeclaredQueries(queries),
        FeedIndex(streams, relations),
        {
            name: None if source.dialect in ("socket.io", "graphql-transport-ws") else source.envelope
            for name, source in config.sources.items()
        },
        config.entities,
        relations,
        tuple(origins),
        {
            name: structs.replace(
                declared(name, mutation, config.entities, config.relations),
                is_confined=bool(config.gateway.tenant_claim),
            )
            for name, mutation in config.mutations.items()
        },
        presence=tuple(
            Pattern(template.parse(topic), declared.heartbeat_ms, declared.timeout_ms)
            for topic, declared in config.presence.items()
        ),
    )


def parse_member(member: Any) -> Member:
    """Compile a member of a relation."""
    if isinstance(member, dict):
        return Contains(template.parse(member["contains"]))
    return template.parse(member)
