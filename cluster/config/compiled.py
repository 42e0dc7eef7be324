"""A configuration made ready for the machines: rules, queries and profiles compiled."""

from msgspec import Struct

from cluster.config.model import Config
from cluster.config.rules import parse_rule
from cluster.core import template
from cluster.core.declared_query import DeclaredQueries, DeclaredQuery
from cluster.core.rule import FeedIndex, Router, RuleOperation, Stream
from cluster.core.window import Profile


class Compiled(Struct, frozen=True):
    """What the actors build their machines from."""

    profiles: tuple[Profile, ...]
    """Batching profiles; 0 is the default."""
    streams: tuple[Stream, ...]
    queries: DeclaredQueries
    feeds: FeedIndex
    envelopes: dict[str, dict[str, str] | None]

    def router(self, source: str) -> Router:
        """Return the rules of one source."""
        return Router(source, self.envelopes[source], self.streams)


def compile_config(config: Config) -> Compiled:
    """Compile a configuration that `load` has passed."""
    profiles = [config.batching]
    streams = []
    for stream in config.streams:
        profile = stream.batching or config.batching
        if profile not in profiles:
            profiles.append(profile)
        node = None if stream.channel is None else template.parse(stream.channel)
        captures = frozenset() if node is None else frozenset(hole[0] for hole in template.holes(node))
        on: dict[str, tuple[RuleOperation, ...]] = {}
        for event, rules in stream.on.items():
            parsed = [parse_rule("", rule, captures, []) for rule in rules]
            on[event] = tuple(rule for rule in parsed if rule is not None)
        streams.append(Stream(stream.source, node, on, profiles.index(profile), stream.always, stream.linger_ms))
    queries = [
        DeclaredQuery(
            template.parse(query.key),
            query.service,
            template.parse(query.path),
            None if query.params is None else template.parse(query.params),
            query.stale_time_ms,
            query.gc_time_ms,
            query.retry,
            query.retry_delay_ms,
        )
        for query in config.queries
    ]
    envelopes = {name: source.envelope for name, source in config.sources.items()}
    return Compiled(tuple(profiles), tuple(streams), DeclaredQueries(queries), FeedIndex(streams), envelopes)
