"""The app object adds to a document like a file's, and is checked as one."""

import asyncio
import importlib
import math
from datetime import timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

from cluster.app import Event, Harbor, keys, load_app
from cluster.config import load_mapping, read_document
from cluster.config.load import ConfigFaults
from cluster.core.staleness import STATIC
from cluster.errors import ConfigError
from tests.app.sample_app import app, count, total

EVENTS = {"sources": {"events": {"type": "websocket", "url": "ws://127.0.0.1:1"}}}
DEMO = Path(__file__).parents[2] / "cluster" / "demo" / "harbor.yaml"
HERE = "tests.app.test_harbor:"
DETAIL = ["projects", "detail", "{id}"]


def takes_x(x: Any) -> Any:
    return x


def takes_all(**captures: Any) -> Any:
    return captures


def takes_a_page(feed: Any, page_param: Any) -> Any:
    return [feed, page_param]


def takes_more(x: Any, *rest: Any, limit: int = 10) -> Any:
    return x


def takes_a_stranger(x: Any, session: Any) -> Any:
    return x


def takes_by_position(x: Any, /) -> Any:
    return x


async def fetches(id: Any) -> Any:
    return id


def add_task(old: Any, event: Any) -> Any:
    return old


def close_task(old: Any, event: Any, more: int = 0) -> Any:
    return old


async def waits(old: Any, event: Any) -> Any:
    return old


def of_one(old: Any) -> Any:
    return old


class Projects:
    @staticmethod
    def one(id: Any) -> Any:
        return id

    def two(self, id: Any) -> Any:
        return id


class Fetcher:
    def __call__(self, id: Any) -> Any:
        return id


def loudly(function: Any) -> Any:
    @wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        return function(*args, **options)

    return wrapped


def muffled(function: Any) -> Any:
    def wrapped(id: Any) -> Any:
        return function(id)

    return wrapped


@loudly
def wrapped_well(id: Any) -> Any:
    return id


@muffled
def wrapped_badly(id: Any) -> Any:
    return id


def nested(id: Any) -> Any:
    def inside(id: Any) -> Any:
        return id

    return inside


def refused(declare: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        declare()
    assert "\n" not in raised.value.message
    return str(raised.value.message)


async def renames(id: Any, name: Any, mutation_id: Any) -> Any:
    return {"id": id, "name": name}


# --- query functions -------------------------------------------------------------------------------------------------


def test_what_decorators_declare_is_what_a_file_would() -> None:
    assert app.document() == {
        "queries": [
            {
                "key": ["sums", "{a}", "{b}"],
                "function": "tests.app.sample_app:total",
                "stale_time": "60s",
                "gc_time": "infinity",
            },
            {
                "key": ["plain", "{name}"],
                "function": "tests.app.sample_app:plain",
                "stale_time": "infinity",
                "retry": 0,
            },
            {"key": ["blocks"], "function": "tests.app.sample_app:blocks", "retry": 0},
            {
                "key": ["numbers", "{upto}"],
                "function": "tests.app.sample_app:numbers",
                "infinite": {"initial": 0, "page_size": 3},
                "stale_time": "infinity",
            },
        ],
        "streams": [
            {
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
        ],
        "mutations": {
            "greet": {
                "function": "tests.app.sample_app:greet",
                "optimistic": [
                    {"set": {"key": ["greetings", "{name}"], "value": {"text": "...", "by": "{mutation_id}"}}}
                ],
                "result": [{"set": {"key": ["greetings", "{name}"], "value": "{response}"}}],
                "scope": "{name}",
                "variables": ["name"],
                "delay": "0s",
            }
        },
    }
    assert total.__name__ == "total"
    assert count.__name__ == "count"


def test_options_are_written_as_a_file_has_them() -> None:
    made = Harbor()
    made.query(
        ("projects", {"id": "{id}"}),
        stale_time="static",
        gc_time=math.inf,
        retry=True,
        retry_delay=0.25,
        refetch_interval=timedelta(minutes=5),
    )(fetches)
    assert made.document()["queries"] == [
        {
            "key": ["projects", {"id": "{id}"}],
            "function": HERE + "fetches",
            "stale_time": "static",
            "gc_time": "infinity",
            "retry": True,
            "retry_delay": "250ms",
            "refetch_interval": "300s",
        }
    ]


@pytest.mark.parametrize(
    ("key", "function", "options"),
    [
        (["a", "{x}"], takes_x, {}),
        (["a", "x:{x}"], takes_x, {}),
        (["a", {"deep": ["{x}"]}], takes_x, {}),
        (["a", "{x}", "{y}", "{not-a-name}"], takes_all, {}),
        (["a", "{x}"], takes_more, {}),
        (["a", "{x}", "{limit}"], takes_more, {}),
        (["a", "{feed}"], takes_a_page, {"infinite": {}}),
        (["a", "{x}"], takes_all, {"infinite": {}}),
        (["a", "{id}"], Projects.one, {}),
        (["a", "{id}"], wrapped_well, {}),
    ],
)
def test_a_function_takes_the_placeholders_of_its_key(key: Any, function: Any, options: Any) -> None:
    made = Harbor()
    assert made.query(key, **options)(function) is function
    (query,) = made.document()["queries"]
    assert query == {"key": key, "function": HERE + function.__qualname__, **options}


@pytest.mark.parametrize(
    ("key", "function", "options", "fault"),
    [
        (["a"], takes_x, {}, "takes_x: has a parameter 'x' that is no placeholder of its key, there are none"),
        (["a", "{y}"], takes_x, {}, "takes_x: has a parameter 'x' that is no placeholder of its key, there are {y}"),
        (["a", "{x}", "{y}"], takes_x, {}, "takes_x: has no parameter for the placeholder {y}"),
        (["a", "{x}"], takes_a_stranger, {}, "takes_a_stranger: has a parameter 'session' that is no placeholder"),
        (["a", "{x}"], takes_by_position, {}, "takes_by_position: takes 'x' by position only"),
        (["a", "{x}"], takes_x, {"infinite": {}}, "takes_x: has no parameter for the page, 'page_param'"),
        (["a", "{feed}"], takes_a_page, {}, "takes_a_page: has a parameter 'page_param' that is no placeholder"),
        (["a", "{id}"], Projects.two, {}, "Projects.two: has a parameter 'self' that is no placeholder"),
    ],
)
def test_a_function_that_does_not_fit_its_key_is_refused(key: Any, function: Any, options: Any, fault: str) -> None:
    made = Harbor()
    assert refused(lambda: made.query(key, **options)(function)).startswith(HERE + fault)
    assert made.document() == {}


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x, "<lambda>"),
        (nested(0), "nested.<locals>.inside"),
        (wrapped_badly, "muffled.<locals>.wrapped"),
        (partial(takes_x, 1), "functools.partial"),
        (Fetcher(), "<tests.app.test_harbor.Fetcher object"),
    ],
)
def test_a_function_that_shards_could_not_find_is_refused(function: Any, name: str) -> None:
    for declare in (Harbor().query(["a", "{id}"]), Harbor().on("events", "e", key=["a"])):
        fault = refused(lambda declare=declare: declare(function))
        assert fault.startswith(name)
        assert "shards import functions by name: it has to be a named one at the top of a module" in fault


def test_a_function_of_the_main_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takes_x, "__module__", "__main__")
    fault = refused(lambda: Harbor().query(["a", "{x}"])(takes_x))
    assert fault == "takes_x: shards import functions by name: put it into a module of its own, not the main one"


def test_two_functions_of_one_name_are_refused() -> None:
    made = Harbor()
    first: dict[str, Any] = {}
    for definition in ("def f(x): return 1", "\ndef f(x): return 2"):
        scope: dict[str, Any] = {"__name__": "shop"}
        exec(compile(definition, "shop.py", "exec"), scope)
        first.setdefault("f", scope["f"])
        if scope["f"] is first["f"]:
            made.query(["a", "{x}"])(scope["f"])
    fault = refused(lambda: made.query(["b", "{x}"])(scope["f"]))
    assert fault == "shop:f: is the name of two functions, at shop.py:1 and shop.py:2; shards would find one"
    # The same one may be declared for another key, also when its module was loaded anew.
    made.query(["b", "{x}"])(first["f"])
    scope = {"__name__": "shop"}
    exec(compile("def f(x): return 1", "shop.py", "exec"), scope)
    made.query(["b", "{x}"])(scope["f"])
    assert [query["key"] for query in made.document()["queries"]] == [["a", "{x}"], ["b", "{x}"]]


def test_a_key_is_declared_once() -> None:
    made = Harbor({"queries": [{"key": ["b", "{x}"], "service": "api", "path": "/b"}]})
    made.query(["a", "{x}"])(takes_x)
    fault = refused(lambda: made.query(["a", "{x}"], retry=1)(takes_all))
    assert (
        fault
        == f"queries.0: is declared twice: function is '{HERE}takes_x' and '{HERE}takes_all'; retry is absent and 1"
    )
    made.query(["b", "{x}"])(takes_x)
    assert refused(made.document).startswith(
        "queries.0: is declared twice: service is 'api' and absent; path is '/b' and"
    )


# --- events ----------------------------------------------------------------------------------------------------------


def test_a_reducer_is_a_rule_of_its_stream() -> None:
    made = Harbor()
    assert made.on("events", "task:created", channel="project:{id}", key=DETAIL)(add_task) is add_task
    made.on(
        "events",
        "task:closed",
        channel="project:{id}",
        key="{data.key}",
        when_missing="create",
        default=None,
        each="{data.items}",
        when={"/done": True},
    )(close_task)
    made.on("events", "task:created", key=["tasks"])(add_task)
    assert made.document() == {
        "streams": [
            {
                "source": "events",
                "channel": "project:{id}",
                "on": {
                    "task:created": [{"call": {"function": HERE + "add_task", "key": DETAIL}}],
                    "task:closed": [
                        {
                            "each": "{data.items}",
                            "when": {"/done": True},
                            "call": {
                                "function": HERE + "close_task",
                                "key": "{data.key}",
                                "when_missing": "create",
                                "default": None,
                            },
                        }
                    ],
                },
            },
            {
                "source": "events",
                "on": {"task:created": [{"call": {"function": HERE + "add_task", "key": ["tasks"]}}]},
            },
        ]
    }


def test_rules_are_added_to_what_the_document_says_of_the_event() -> None:
    declared = {"invalidate": {"key": DETAIL}}
    stream = {"source": "events", "channel": "project:{id}", "join": "demand", "on": {"task:created": declared}}
    made = Harbor({"streams": [stream]})
    made.on("events", "task:created", channel="project:{id}", key=DETAIL)(add_task)
    made.on("events", "task:created", channel="project:{id}", key=DETAIL)(add_task)  # once is enough
    made.on("events", "task:created", channel="project:{id}", rule=declared)  # and is there already
    made.on("events", "task:gone", channel="project:{id}", rule=[{"delete": {"key": DETAIL}}, declared])
    call = {"call": {"function": HERE + "add_task", "key": DETAIL}}
    assert made.document() == {
        "streams": [
            {
                **stream,
                "on": {"task:created": [declared, call], "task:gone": [{"delete": {"key": DETAIL}}, declared]},
            }
        ]
    }
    assert stream["on"] == {"task:created": declared}


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (waits, "waits: is asynchronous, and nothing may wait for a reducer: it is called inside a commit"),
        (of_one, "of_one: cannot be called with (old, event): too many positional arguments"),
        (takes_a_page, None),
    ],
)
def test_a_reducer_takes_the_old_data_and_the_event(function: Any, fault: str | None) -> None:
    declare = Harbor().on("events", "e", key=["a"])
    if fault is None:
        assert declare(function) is function
    else:
        assert refused(lambda: declare(function)) == HERE + fault


def shapes(event: Any) -> Any:
    return event.data


def shapes_otherwise(event: Any) -> Any:
    return event.data


async def shapes_later(event: Any) -> Any:
    return event.data


STREAM = {"source": "events", "channel": "c:{id}", "on": {"e": {"invalidate": {"key": ["{id}"]}}}}


def test_a_transform_is_part_of_its_stream_wherever_that_is_declared() -> None:
    wanted = {"function": HERE + "shapes", "pick": ["a"]}
    in_file = Harbor({**EVENTS, "streams": [STREAM, {**STREAM, "channel": "d"}]})
    in_file.transform("events", channel="c:{id}", pick=["a"])(shapes)
    assert [stream.get("transform") for stream in in_file.document()["streams"]] == [wanted, None]
    assert in_file.document() == in_file.document()
    later = Harbor(EVENTS)
    assert later.transform("events", pick=("a",))(shapes) is shapes
    later.on("events", "e", rule={"invalidate": {"key": ["k"]}})
    assert [stream["transform"] for stream in later.document()["streams"]] == [wanted]
    beside = Harbor(EVENTS)
    beside.transform("events", channel="c:{id}", pick=["a"])(shapes)
    (stream,) = beside.document({"streams": [STREAM]})["streams"]
    assert stream["transform"] == wanted
    assert beside.config({}, {"streams": [STREAM]}).streams[0].transform is not None


def test_a_transform_joins_what_the_file_says() -> None:
    app = Harbor({**EVENTS, "streams": [{**STREAM, "transform": {"when": {"/a": 1}}}]})
    app.transform("events", channel="c:{id}")(shapes)
    assert app.document()["streams"][0]["transform"] == {"when": {"/a": 1}, "function": HERE + "shapes"}
    app.transform("events", channel="c:{id}")(shapes_otherwise)
    with pytest.raises(ConfigError, match=r"streams\.0\.transform\.function: is declared twice"):
        app.document()


def test_every_stream_of_a_source_and_channel_is_shaped() -> None:
    streams = [STREAM, {**STREAM, "batching": {"window": "50ms"}}, {**STREAM, "source": "other"}]
    app = Harbor({**EVENTS, "streams": streams})
    app.transform("events", channel="c:{id}")(shapes)
    assert ["transform" in stream for stream in app.document()["streams"]] == [True, True, False]


def test_a_transform_of_no_stream_is_refused() -> None:
    for channel, shown in [(None, "without a channel"), ("c:{x}", "of the channel 'c:{x}'")]:
        app = Harbor({**EVENTS, "streams": [STREAM]})
        app.transform("events", channel=channel)(shapes)
        with pytest.raises(ConfigError) as raised:
            app.document()
        assert raised.value.message == (
            f"{HERE}shapes: there is no stream of the source 'events' {shown}, whose events it could be given"
        )


@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (shapes_later, "is asynchronous, and nothing may wait for a transform: a stream is read through it"),
        (add_task, "cannot be called with (event): missing a required argument: 'event'"),
        (lambda event: event, "has to be a named one at the top of a module"),
    ],
)
def test_a_function_that_is_no_transform_is_refused(function: Any, fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Harbor(EVENTS).transform("events")(function)
    assert fault in raised.value.message


def test_steps_of_a_transform_are_checked_as_a_files_are() -> None:
    app = Harbor({**EVENTS, "streams": [STREAM]})
    app.transform("events", channel="c:{id}", pik=["a"])(shapes)
    with pytest.raises(ConfigFaults, match=r"streams\.0\.transform\.pik: unknown key, did you mean pick\?"):
        app.config({})


def test_on_needs_a_key_or_a_rule() -> None:
    made: Any = Harbor()
    assert refused(lambda: made.on("events", "e")).startswith("on('events', 'e'): needs the key of what")
    for more in (
        {"key": ["a"]},
        {"when_missing": "create"},
        {"default": None},
        {"each": "{data}"},
        {"when": {"/a": 1}},
    ):
        fault = refused(lambda more=more: made.on("events", "e", rule={"delete": {"key": ["a"]}}, **more))
        assert fault == "on('events', 'e'): a rule says everything itself"
    assert made.document() == {}


# --- what has a name -------------------------------------------------------------------------------------------------


def test_services_sources_entities_and_relations() -> None:
    made = Harbor()
    made.service("api", base_url="http://x", timeout=2.5, headers={"authorization": "${TOKEN}"})
    made.source(
        "events",
        type="websocket",
        url="ws://x",
        heartbeat=None,
        reconnect={"attempts": 2, "initial": 1, "max": timedelta(seconds=9)},
    )
    made.entity("user", id="uid", keys=("userId",), objects=["author"])
    made.relation("project", [DETAIL, ("tasks",), {"contains": "users"}])
    assert made.document() == {
        "services": {"api": {"base_url": "http://x", "timeout": "2500ms", "headers": {"authorization": "${TOKEN}"}}},
        "sources": {
            "events": {
                "type": "websocket",
                "url": "ws://x",
                "heartbeat": "infinity",
                "reconnect": {"attempts": 2, "initial": "1s", "max": "9s"},
            }
        },
        "entities": {"user": {"id": "uid", "keys": ["userId"], "objects": ["author"]}},
        "relations": {"project": [DETAIL, ["tasks"], {"contains": "users"}]},
    }


def test_a_name_is_declared_once_unless_it_is_the_same() -> None:
    made = Harbor()
    for _ in range(2):
        made.service("api", base_url="http://x")
        made.relation("project", [["projects"]])
    assert refused(lambda: made.service("api", base_url="http://y", timeout=1)) == (
        "services.api: is declared twice: base_url is 'http://x' and 'http://y'; timeout is absent and '1s'"
    )
    fault = refused(lambda: made.relation("project", []))
    assert fault == "relations.project: is declared twice: as [['projects']] and as []"
    with pytest.raises(ConfigError, match=r"services\.api\.timeout: expected a duration"):
        made.service("api", base_url="http://x", timeout=-1)


def test_an_apps_keys_are_a_factorys() -> None:
    assert app.keys("projects").detail(1) == keys("projects").detail(1) == ["projects", "detail", 1]


# --- documents -------------------------------------------------------------------------------------------------------


def test_documents_are_joined_and_shared_with_nobody() -> None:
    given: dict[str, Any] = {"services": {"api": {"base_url": "http://x", "headers": {}}}, "queries": []}
    made = Harbor(given)
    given["services"]["api"]["headers"]["x"] = "y"
    made.document()["services"]["api"]["headers"]["x"] = "y"
    assert made.document({"cluster": {"shards": 2}}, {"cluster": {"name": "c"}}) == {
        "services": {"api": {"base_url": "http://x", "headers": {}}},
        "queries": [],
        "cluster": {"shards": 2, "name": "c"},
    }
    assert Harbor().document() == {}


def test_a_file_and_decorators_make_one_configuration(tmp_path: Path) -> None:
    file = tmp_path / "harbor.yaml"
    both = Harbor(file)
    both.service("other", "http://y", timeout=2)
    both.query(["sums", "{a}", "{b}"])(total)
    both.on("events", "e", rule={"delete": {"key": ["a"]}})
    both.on("events", "e", rule={"delete": {"key": ["b"]}})
    both.source("events", "websocket", "ws://z")
    both.entity("user", keys=("userId",))
    both.relation("user", [["users"]])
    # It is read only when it is needed.
    file.write_text("services: {api: {base_url: 'http://${HOST}'}}\nqueries: [{key: [a], service: api, path: /a}]\n")
    config = both.config({"HOST": "x"})
    assert set(config.services) == {"api", "other"}
    assert config.services["api"].base_url == "http://x"
    assert config.services["other"].timeout_ms == 2_000.0
    assert [query.key[0] for query in config.queries] == ["a", "sums"]
    assert len(config.streams[0].on["e"]) == 2
    assert config.entities["user"].keys == ("userId",)
    # Nor does it matter if somebody names the file again.
    assert Harbor(str(file)).document(Harbor(file).document()) == Harbor(file).document()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "cannot be read: No such file or directory"),
        ("a: [", "line 2, column 1: "),
        ("- a", None),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, text: str | None, fault: str | None) -> None:
    file = tmp_path / "harbor.yaml"
    if text is not None:
        file.write_text(text + "\n")
    said = refused(Harbor(file).config)
    assert said.startswith(f"{file}: {fault}" if fault else "expected a mapping, got a list")
    with pytest.raises(ConfigError, match="expected a mapping"):
        Harbor().document([])  # type: ignore[arg-type]


def test_the_environment_is_the_callers_the_apps_or_the_processs(monkeypatch: pytest.MonkeyPatch) -> None:
    document = {"services": {"api": {"base_url": "http://${HOST}"}}}
    monkeypatch.setenv("HOST", "process")
    assert Harbor(document).config().services["api"].base_url == "http://process"
    own = Harbor(document, env={"HOST": "app"})
    assert own.config().services["api"].base_url == "http://app"
    assert own.config({"HOST": "caller"}).services["api"].base_url == "http://caller"
    with pytest.raises(ConfigFaults, match="HOST is not set"):
        Harbor(document, env={}).config()


# --- the page about it -----------------------------------------------------------------------------------------------


def test_the_example_of_the_documentation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
    (tmp_path / "board.py").write_text(page.split("```python\n")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    config = load_app("board:app").config({}, read_document(DEMO))
    board = importlib.import_module("board")
    assert ["board", "detail", "{project}"] in [query.key for query in config.queries]
    (stream,) = [stream for stream in config.streams if stream.channel == "project:{id}"]
    assert stream.on["task:created"][-1] == {
        "call": {"function": "board:count_event", "key": ["board", "detail", "{id}"]}
    }
    opened = asyncio.run(board.open_board(project="1"))
    event = Event(event="task:created", data={"title": "Ship it"}, captures={"id": "1"}, id=None)
    assert board.count_event(opened, event) == {"project": "1", "events": 1, "last": "task:created Ship it"}


# --- what the loader makes of it -------------------------------------------------------------------------------------


def test_the_loader_takes_what_was_declared() -> None:
    config = app.config({}, EVENTS, {"cluster": {"name": "sample"}})
    assert config == load_mapping({**app.document(), **EVENTS, "cluster": {"name": "sample"}}, {})
    sums, *_, numbers = config.queries
    assert (sums.function, sums.stale_time, sums.gc_time_ms) == ("tests.app.sample_app:total", 60_000.0, None)
    assert numbers.infinite is not None
    assert numbers.infinite.page_size == 3
    assert config.streams[0].on["count:up"][0]["call"]["function"] == "tests.app.sample_app:count"


def test_the_loader_takes_every_option() -> None:
    made = Harbor(EVENTS)
    made.query(
        DETAIL, stale_time="static", gc_time=None, retry=2, retry_delay=1.5, refetch_interval=timedelta(hours=1)
    )(fetches)
    made.on(
        "events",
        "task:created",
        channel="project:{id}",
        key=DETAIL,
        when_missing="create",
        default={"tasks": []},
        each="{data.tasks}",
        when={"/ready": True},
    )(add_task)
    made.entity("user", keys=["userId"])
    made.relation("project", [DETAIL])
    made.on("events", "user:updated", rule={"entity": {"type": "user", "value": "{data}"}})
    made.on("events", "project:touched", rule={"relation": {"type": "project", "id": "{data.id}"}})
    config = made.config({})
    (query,) = config.queries
    assert (query.stale_time, query.gc_time_ms, query.retry) == (STATIC, None, 2)
    assert (query.retry_delay_ms, query.refetch_interval_ms) == (1_500.0, 3_600_000.0)
    assert [stream.channel for stream in config.streams] == ["project:{id}", None]
    assert set(config.streams[1].on) == {"user:updated", "project:touched"}


def test_faults_are_the_loaders_with_their_paths() -> None:
    wrong = Harbor()
    wrong.query(["a", "{x}"], stale_time="soon", stail_time=1)(takes_x)
    wrong.on("nowhere", "e", rule={"set": {"key": ["a"]}})
    with pytest.raises(ConfigFaults) as raised:
        wrong.config({})
    assert {fault.path for fault in raised.value.faults} == {
        "queries.0.stale_time",
        "queries.0.stail_time",
        "streams.0.source",
        "streams.0.on.e.0.set.value",
    }


# --- mutations and resources -----------------------------------------------------------------------------------------


def test_a_mutation_is_a_function_or_a_request() -> None:
    made = Harbor({**EVENTS, "services": {"api": {"base_url": "http://x"}}})
    options: Any = {
        "optimistic": [{"merge": {"key": DETAIL, "value": {"name": "{name}"}}}],
        "scope": "project:{id}",
        "delay": timedelta(seconds=5),
        "max_age": None,
    }
    assert made.mutation("rename", **options)(renames) is renames
    request = {"service": "api", "method": "PATCH", "path": "/projects/{id}"}
    assert made.mutation("touch", request=request, retry_delay=0.5) is None
    assert made.document()["mutations"] == {
        "rename": {"function": f"{HERE}renames", **options, "delay": "5s", "max_age": "infinity"},
        "touch": {"request": request, "retry_delay": "500ms"},
    }
    renamed, touched = made.config({}).mutations.values()
    assert (renamed.function, renamed.service, renamed.delay_ms) == (f"{HERE}renames", "", 5_000.0)
    assert (touched.function, touched.service, touched.method) == (None, "api", "PATCH")


def test_a_mutations_function_takes_variables_by_name() -> None:
    assert refused(lambda: Harbor().mutation("m")(takes_by_position)) == (
        f"{HERE}takes_by_position: takes 'x' by position only, and variables come by name"
    )
    assert "has to be a named one" in refused(lambda: Harbor().mutation("m")(lambda x: x))
    twice = Harbor()
    twice.mutation("m")(renames)
    assert "mutations.m: is declared twice" in refused(lambda: twice.mutation("m")(fetches))


def test_a_resource_gives_its_keys() -> None:
    made = Harbor({**EVENTS, "services": {"api": {"base_url": "http://x"}}})
    stream = {"source": "events", "channel": "notes", "events": {"created": "note:new"}}
    notes = made.resource("notes", service="api", path="/notes", stream=stream, stale_time=60)
    assert notes.detail(7) == ["notes", "detail", 7]
    assert made.document()["resources"] == {
        "notes": {"service": "api", "path": "/notes", "stream": stream, "stale_time": "60s"}
    }
    config = made.config({})
    assert [query.key for query in config.queries] == [["notes", "list", "{filters}"], ["notes", "detail", "{id}"]]
    assert list(config.mutations) == ["notes.create", "notes.update", "notes.delete"]
