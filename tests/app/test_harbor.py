"""The app object adds to a document like a file's, and is checked as one."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.app import Harbor, keys, load_app
from cluster.app.harbor import duration, merge
from cluster.config.load import ConfigFaults
from cluster.errors import ConfigError
from tests.app.sample_app import app, count, total

EVENTS = {"sources": {"events": {"type": "websocket", "url": "ws://127.0.0.1:1"}}}


def test_what_decorators_declare_is_what_a_file_would() -> None:
    document = app.document()
    assert document["queries"][0] == {
        "key": ["sums", "{a}", "{b}"],
        "function": "tests.app.sample_app:total",
        "stale_time": "60000ms",
        "gc_time": "infinity",
    }
    (stream,) = document["streams"]
    assert stream == {
        "source": "events",
        "channel": "counters",
        "on": {
            "count:up": [
                {
                    "call": {
                        "function": "tests.app.sample_app:count",
                        "key": ["counters", "{data.name}"],
                        "when_missing": "create",
                    }
                }
            ]
        },
    }
    config = app.config({}, EVENTS)
    assert config.queries[0].function == "tests.app.sample_app:total"
    assert total.__name__ == "total"
    assert count.__name__ == "count"


def test_a_file_and_decorators_make_one_configuration(tmp_path: Path) -> None:
    file = tmp_path / "harbor.yaml"
    file.write_text("services: {api: {base_url: 'http://x'}}\nqueries: [{key: [a], service: api, path: /a}]\n")
    both = Harbor(file)
    both.service("other", "http://y", timeout=2)
    both.query(["sums", "{a}", "{b}"])(total)
    both.on("events", "e", rule={"delete": {"key": ["a"]}})
    both.on("events", "e", rule={"delete": {"key": ["b"]}})
    both.source("events", "websocket", "ws://z")
    both.entity("user", keys=("userId",))
    both.relation("user", [["users"]])
    config = both.config({})
    assert set(config.services) == {"api", "other"}
    assert config.services["other"].timeout_ms == 2_000.0
    assert [query.key[0] for query in config.queries] == ["a", "sums"]
    assert len(config.streams[0].on["e"]) == 2
    assert config.entities["user"].keys == ("userId",)


def test_faults_are_the_loaders_with_their_paths() -> None:
    wrong = Harbor()
    wrong.query(["a", "{x}"], stale_time="soon")(_takes_x)
    wrong.on("nowhere", "e", rule={"set": {"key": ["a"]}})
    with pytest.raises(ConfigFaults) as raised:
        wrong.config({})
    assert {fault.path for fault in raised.value.faults} == {
        "queries.0.stale_time",
        "streams.0.source",
        "streams.0.on.e.0.set.value",
    }


def _takes_x(x: Any) -> Any:
    return x


def _takes_all(**captures: Any) -> Any:
    return captures


@pytest.mark.parametrize(
    ("key", "function", "fault"),
    [
        (["a"], _takes_x, "has a parameter 'x' that is no placeholder of its key"),
        (["a", "{x}", "{y}"], _takes_x, "has no parameter for the placeholder {y}"),
        (["a", "{x}"], lambda x: x, "at the top of a module"),
    ],
)
def test_a_function_that_does_not_fit_is_refused_where_it_is_declared(key: Any, function: Any, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Harbor().query(key)(function)
    assert fault in raised.value.message
    Harbor().query(["a", "{x}", "{y}"])(_takes_all)


def test_on_needs_a_key_or_a_rule() -> None:
    with pytest.raises(ConfigError, match="needs the key"):
        Harbor().on("events", "e")


def test_the_same_thing_twice_is_a_fault_unless_it_is_the_same() -> None:
    one = {"services": {"api": {"base_url": "http://x"}}}
    assert merge(one, one) == one
    with pytest.raises(ConfigError, match=r"services.api.base_url: is declared twice"):
        merge(one, {"services": {"api": {"base_url": "http://y"}}})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [("5m", "5m"), (1.5, "1500ms"), (timedelta(minutes=1), "60000ms"), (None, "infinity"), (float("inf"), "infinity")],
)
def test_durations(given: Any, wanted: str) -> None:
    assert duration(given) == wanted


def test_keys() -> None:
    projects = keys("projects")
    assert projects.all() == ["projects"]
    assert (projects.lists(), projects.list(), projects.list({"a": 1})) == (
        ["projects", "list"],
        ["projects", "list"],
        ["projects", "list", {"a": 1}],
    )
    assert (projects.details(), projects.detail(7)) == (["projects", "detail"], ["projects", "detail", 7])
    assert projects.key("stats", 1) == ["projects", "stats", 1]
    assert app.keys("x").detail(1) == keys("x").detail(1)


def test_an_app_is_found_by_name() -> None:
    assert load_app("tests.app.sample_app:app") is app


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("nonsense", "expected MODULE:NAME"),
        ("no.such.module:app", "no module no"),
        ("tests.app.sample_app:nothing", "has no nothing"),
        ("tests.app.sample_app:total", "expected a Harbor, got a function"),
        ("tests.app.broken_app:app", "importing it raised ZeroDivisionError"),
    ],
)
def test_an_app_that_cannot_be_had_is_one_line(reference: str, fault: str) -> None:
    with pytest.raises(ConfigFaults) as raised:
        load_app(reference)
    assert fault in raised.value.message
    assert "\n" not in raised.value.message
