"""Two documents become one, or a fault says what both say of the same thing."""

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.app.document import copied, duration, merge
from cluster.errors import ConfigError

API = {"base_url": "http://x"}
STREAM = {"source": "events", "channel": "a", "on": {"e": {"delete": {"key": ["a"]}}}}
RULE = STREAM["on"]["e"]  # type: ignore[index]
OTHER_RULE = {"delete": {"key": ["b"]}}


@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        ({}, {}, {}),
        ({"services": {"a": API}}, {"services": {"b": API}}, {"services": {"a": API, "b": API}}),
        ({"services": {"a": API}}, {"services": {"a": API}}, {"services": {"a": API}}),
        ({"cluster": {"shards": 2}}, {"cluster": {"name": "c", "shards": 2}}, {"cluster": {"shards": 2, "name": "c"}}),
        ({"queries": [{"key": ["a"]}]}, {"queries": [{"key": ["b"]}]}, {"queries": [{"key": ["a"]}, {"key": ["b"]}]}),
        ({"queries": [{"key": ["a"]}]}, {"queries": [{"key": ["a"]}]}, {"queries": [{"key": ["a"]}]}),
        ({"queries": [{"key": [1]}]}, {"queries": [{"key": [True]}]}, {"queries": [{"key": [1]}, {"key": [True]}]}),
        ({"queries": [{"key": ["a"]}, {"key": ["a"]}]}, {}, {"queries": [{"key": ["a"]}, {"key": ["a"]}]}),
        ({}, {"queries": [{"key": ["a"]}, {"key": ["a"]}]}, {"queries": [{"key": ["a"]}, {"key": ["a"]}]}),
        ({"nonsense": 1}, {"nonsense": 1.0, "more": None}, {"nonsense": 1, "more": None}),
        # What makes no sense is left for the loader to say.
        ({"queries": ["x"]}, {"queries": [7, {}]}, {"queries": ["x", 7, {}]}),
        ({"streams": ["x"]}, {"streams": [7, {"on": 1}]}, {"streams": ["x", 7, {"on": 1}]}),
    ],
)
def test_joining(one: Any, other: Any, joined: Any) -> None:
    assert merge(one, other) == joined


@pytest.mark.parametrize(
    ("held", "more", "joined"),
    [
        ([STREAM], [STREAM], [STREAM]),
        ([STREAM], [{**STREAM, "on": {"f": []}}], [{**STREAM, "on": {"e": RULE, "f": []}}]),
        ([], [STREAM, {**STREAM, "on": {"f": RULE}}], [STREAM, {**STREAM, "on": {"f": RULE}}]),
        ([STREAM], [{**STREAM, "channel": "b"}], [STREAM, {**STREAM, "channel": "b"}]),
        ([STREAM], [{**STREAM, "source": "others"}], [STREAM, {**STREAM, "source": "others"}]),
        ([STREAM], [{**STREAM, "on": {"f": RULE}}], [{**STREAM, "on": {"e": RULE, "f": RULE}}]),
        ([STREAM], [{**STREAM, "on": {"e": OTHER_RULE}}], [{**STREAM, "on": {"e": [RULE, OTHER_RULE]}}]),
        ([STREAM], [{**STREAM, "on": {"e": [RULE, OTHER_RULE]}}], [{**STREAM, "on": {"e": [RULE, OTHER_RULE]}}]),
        # One that says nothing else goes with whichever there is, as one of its own settings does.
        (
            [{**STREAM, "linger": "1s"}],
            [{**STREAM, "on": {"f": RULE}}],
            [{**STREAM, "linger": "1s", "on": {"e": RULE, "f": RULE}}],
        ),
        ([{**STREAM, "linger": "1s"}, STREAM], [STREAM], [{**STREAM, "linger": "1s"}, STREAM]),
        ([STREAM, {**STREAM, "linger": "1s"}], [{**STREAM, "linger": "1s"}], [STREAM, {**STREAM, "linger": "1s"}]),
        (
            [STREAM, {**STREAM, "on": {"f": RULE}}],
            [{**STREAM, "on": {"f": RULE}}],
            [STREAM, {**STREAM, "on": {"f": RULE}}],
        ),
        (
            [STREAM],
            [{**STREAM, "on": {"e": [RULE, OTHER_RULE]}}, STREAM],
            [{**STREAM, "on": {"e": [RULE, OTHER_RULE]}}],
        ),
        # But one with settings is not put where it would change what others mean.
        ([STREAM], [{**STREAM, "linger": "1s"}], [STREAM, {**STREAM, "linger": "1s"}]),
        (
            [{**STREAM, "linger": "2s"}],
            [{**STREAM, "linger": "1s"}],
            [{**STREAM, "linger": "2s"}, {**STREAM, "linger": "1s"}],
        ),
    ],
)
def test_joining_streams(held: Any, more: Any, joined: Any) -> None:
    assert merge({"streams": held}, {"streams": more}) == {"streams": joined}


@pytest.mark.parametrize(
    ("one", "other", "fault"),
    [
        (
            {"services": {"api": API}},
            {"services": {"api": {"base_url": "http://y", "timeout": "1s"}}},
            "services.api: is declared twice: base_url is 'http://x' and 'http://y'; timeout is absent and '1s'",
        ),
        (
            {"cluster": {"shards": 1}},
            {"cluster": {"shards": True}},
            "cluster.shards: is declared twice: as 1 and as True",
        ),
        (
            {"gateway": {"auth": {"mode": "none"}}},
            {"gateway": {"auth": {"mode": "jwt"}}},
            "gateway.auth: is declared twice: mode is 'none' and 'jwt'",
        ),
        (
            {"queries": [{"key": ["b"]}, {"key": ["a"], "path": "/a"}]},
            {"queries": [{"key": ["a"], "path": "/b"}]},
            "queries.1: is declared twice: path is '/a' and '/b'",
        ),
        (
            {"relations": {"a": [["x"]]}},
            {"relations": {"a": []}},
            "relations.a: is declared twice: as [['x']] and as []",
        ),
        ({"queries": []}, {"queries": {}}, "queries: is declared twice: as [] and as {}"),
        ({"streams": None}, {"streams": []}, "streams: is declared twice: as None and as []"),
        ({"version": "x" * 80}, {"version": 1}, f"version: is declared twice: as '{'x' * 56}... and as 1"),
    ],
)
def test_what_is_said_twice_and_differently(one: Any, other: Any, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        merge(one, other)
    assert raised.value.message == fault


@pytest.mark.parametrize(
    "secret",
    [
        {"services": {"api": {"base_url": "http://x", "headers": {"authorization": "Bearer %s"}}}},
        {"services": {"api": {"base_url": "http://user:%s@x"}}},
        {"sources": {"events": {"url": "ws://x?token=%s"}}},
        {"sources": {"events": {"subscribe": {"token": "%s"}}}},
        {"queries": [{"key": ["a"], "params": {"token": "%s"}}]},
        {"mutations": {"m": {"request": {"headers": {"x": "%s"}}}}},
        {"nonsense": ["http://x?token=%s"]},
    ],
)
def test_faults_show_no_credentials(secret: Any) -> None:
    with pytest.raises(ConfigError, match="declared twice") as raised:
        merge(filled(secret, "swordfish"), filled(secret, "marlinspike"))
    assert "swordfish" not in raised.value.message
    assert "marlinspike" not in raised.value.message


def filled(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {name: filled(each, text) for name, each in value.items()}
    if isinstance(value, list):
        return [filled(each, text) for each in value]
    return value.replace("%s", text)


names = st.sampled_from("ab")
members = st.dictionaries(names, st.integers(0, 1), max_size=2)
rules = st.one_of(members, st.lists(members, max_size=2))
documents = st.fixed_dictionaries(
    {},
    optional={
        "services": st.dictionaries(names, members, max_size=2),
        "cluster": members,
        "queries": st.lists(
            st.fixed_dictionaries({"key": st.lists(names, max_size=2)}, optional={"retry": st.integers(0, 1)}),
            max_size=2,
        ),
        "streams": st.lists(
            st.fixed_dictionaries(
                {"source": names, "on": st.dictionaries(names, rules, max_size=2)}, optional={"linger": names}
            ),
            max_size=2,
        ),
    },
)


@given(documents, documents)
def test_joining_changes_neither_and_says_nothing_twice(one: Any, other: Any) -> None:
    before = copied(one), copied(other)
    try:
        joined = merge(one, other)
    except ConfigError:
        return
    finally:
        assert (one, other) == before
    assert merge({}, one) == one
    assert merge(one, {}) == one
    # What came in is in already.
    assert merge(joined, one) == joined
    assert merge(joined, other) == joined
    _scribble(joined)
    assert (one, other) == before


def _scribble(value: Any) -> None:
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            _scribble(each)
    value.clear()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("5m", "5m"),
        ("static", "static"),
        ("soon", "soon"),
        (0, "0s"),
        (60, "60s"),
        (60.0, "60s"),
        (1.5, "1500ms"),
        (0.0005, "0.5ms"),
        (1e-9, "0ms"),
        (1e21, "1000000000000000000000s"),
        (timedelta(minutes=1), "60s"),
        (timedelta(milliseconds=20), "20ms"),
        (None, "infinity"),
        (math.inf, "infinity"),
    ],
)
def test_durations(given: Any, wanted: str) -> None:
    assert duration("d", given) == wanted


@pytest.mark.parametrize("given", [True, -1, -math.inf, math.nan, timedelta(seconds=-1), [], b"1s"])
def test_what_is_no_duration(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"d: expected a duration: text such as '60s', seconds, a timedelta or None"):
        duration("d", given)


def test_a_copy_is_plain() -> None:
    given: dict[str, Any] = {"a": ("b", {"c": timedelta(seconds=5)}), "d": None}
    assert copied(given) == {"a": ["b", {"c": "5s"}], "d": None}
