"""A checked configuration becomes what machines are built from."""

from typing import Any

from cluster.config import Compiled, compile_config, load_mapping
from cluster.core.operation import Set
from cluster.core.window import Profile

SOURCES = {
    "s": {"type": "websocket", "url": "ws://x", "envelope": {"event": "t"}},
    "u": {"type": "sse", "url": "http://x"},
}
RULE = {"e": {"set": {"key": ["k"], "value": 1}}}


def compiled(**document: Any) -> Compiled:
    return compile_config(load_mapping({"sources": SOURCES, **document}, {}))


def test_equal_batchings_share_a_profile_and_the_default_is_first() -> None:
    made = compiled(
        batching={"window": "50ms"},
        streams=[
            {"source": "s", "on": RULE},
            {"source": "s", "on": RULE, "batching": {"mode": "leading"}},
            {"source": "s", "on": RULE, "batching": {"window": "50ms"}},
            {"source": "u", "on": RULE, "batching": {"mode": "leading", "window": "50ms"}},
        ],
    )
    assert made.profiles == (Profile(window_ms=50.0), Profile("leading", 50.0))
    assert [stream.profile for stream in made.streams] == [0, 1, 0, 1]


def test_a_router_has_the_rules_and_the_envelope_of_its_source() -> None:
    made = compiled(streams=[{"source": "s", "on": RULE}])
    (envelope,), _ = made.router("s").decode([b'{"t":"e"}'])
    (route,) = made.router("s").route(envelope.event, envelope.channel)
    assert route.apply(envelope.data, None) == [('["k"]', Set(b"1"))]
    assert made.router("u").route("e", None) == ()


def test_an_event_may_have_one_rule_or_several() -> None:
    rule = RULE["e"]
    made = compiled(streams=[{"source": "s", "on": {"one": rule, "two": [rule, rule], "none": []}}])
    assert [len(rules) for rules in made.streams[0].on.values()] == [1, 2, 0]


def test_queries_keep_their_times() -> None:
    made = compiled(
        services={"api": {"base_url": "http://x"}},
        defaults={"stale_time": "1s", "retry": 0},
        queries=[
            {"key": ["a", "{id}"], "service": "api", "path": "/a/{id}", "params": {"q": "{id}"}},
            {"key": ["b"], "service": "api", "path": "/b", "stale_time": "infinity", "retry": 2, "retry_delay": "5ms"},
        ],
    )
    first, second = made.queries.find(["a", 7]), made.queries.find(["b"])
    assert first is not None
    assert second is not None
    assert (first.stale_time, first.gc_time_ms, first.retry, first.retry_delay_ms) == (1000.0, 300_000.0, 0, None)
    assert (second.stale_time, second.retry, second.retry_delay_ms) == (None, 2, 5.0)
    request = first.request_for(["a", 7])
    assert (request.service, request.path, request.params) == ("api", "/a/7", (("q", "7"),))
    assert made.queries.find(["c"]) is None
