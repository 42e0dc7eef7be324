"""What `mutations:` may say, what is wrong with what it may not, and what it becomes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import Compiled, Config, compile_config, load_mapping
from cluster.config.load import ConfigFaults
from cluster.config.model import ConfirmConfig
from cluster.core.mutation import MutationRequest
from cluster.core.operation import Append, MergeWhere, Set
from cluster.core.variables import TYPES, Schema

BASE: dict[str, Any] = {
    "services": {"api": {"base_url": "http://x"}},
    "sources": {
        "events": {"type": "websocket", "url": "ws://x"},
        "feed": {"type": "sse", "url": "http://x"},
        "parts": {"type": "websocket", "url": "ws://x/{partition}", "partitions": 2},
    },
    "streams": [
        {
            "source": "events",
            "channel": "project:{id}",
            "on": {
                "task:updated": {
                    "merge_where": {"key": ["tasks", "{id}"], "where": {"id": "{data.id}"}, "value": "{data}"}
                },
                "task": {"set": {"key": ["task", "{data.id}"], "value": "{data}"}},
            },
        }
    ],
}
REQUEST: dict[str, Any] = {"service": "api", "method": "PATCH", "path": "/tasks/{id}", "body": "{variables}"}
UPDATE_TASK: dict[str, Any] = {
    "request": REQUEST,
    "optimistic": [
        {"merge_where": {"key": ["tasks", "{project_id}"], "where": {"id": "{id}"}, "value": "{variables}"}}
    ],
    "confirm_on": {"stream": "project:{project_id}", "event": "task:updated", "where": {"id": "{id}"}},
    "scope": "project:{project_id}",
}
VARIABLES = {"id": "t1", "project_id": "7", "title": "x"}


def loaded(*mutations: dict[str, Any], **more: Any) -> Config:
    return load_mapping({**BASE, "mutations": {f"m{n}": each for n, each in enumerate(mutations)}, **more}, {})


def compiled(*mutations: dict[str, Any], **more: Any) -> Compiled:
    return compile_config(loaded(*mutations, **more))


def test_the_one_of_the_contract() -> None:
    mutation = compiled(UPDATE_TASK).mutations["m0"]
    assert mutation.request(VARIABLES, "m-1") == MutationRequest(
        "api", "PATCH", "/tasks/t1", (), b'{"id":"t1","project_id":"7","title":"x"}', "m-1"
    )
    assert mutation.optimistic_operations(VARIABLES, "m-1") == [
        ('["tasks","7"]', MergeWhere(b'{"id":"t1"}', b'{"id":"t1","project_id":"7","title":"x"}'))
    ]
    assert mutation.scope_of(VARIABLES, "m-1") == "scope:project:7"
    assert (mutation.rollback, mutation.conflict, mutation.retry, mutation.delay_ms) == ("rebase", "fail", 0, 0.0)
    assert (mutation.max_age_ms, mutation.schema, mutation.temp_id) == (None, None, None)


def test_all_that_it_may_say() -> None:
    config = loaded(
        {
            "request": {**REQUEST, "params": {"notify": "{notify}"}, "omit": ["id"]},
            "optimistic": {"each": "{variables.items}", "set": {"key": ["a", "{item.id}"], "value": "{item.v}"}},
            "result": [{"set": {"key": ["a", "{response.id}"], "value": "{response}"}}],
            "temp_id": "{variables.id}",
            "response_id": "_id",
            "rollback": "snapshot",
            "conflict": "merge",
            "invalidate": [["projects", "{project_id}"], "{response.key}"],
            "retry": 3,
            "retry_delay": "2s",
            "delay": "5s",
            "max_age": "24h",
            "variables": ["project_id"],
            "scope": "{project_id}",
        },
        {"function": "a.b:c", "max_age": "infinity", "retry": True},
    )
    first, second = config.mutations.values()
    assert (first.rollback, first.conflict, first.retry, first.retry_delay_ms) == ("snapshot", "merge", 3, 2_000.0)
    assert (first.delay_ms, first.max_age_ms, first.response_id) == (5_000.0, 86_400_000.0, "_id")
    assert (second.function, second.max_age_ms, second.retry) == ("a.b:c", None, True)
    made = compile_config(config).mutations["m0"]
    assert made.schema == Schema(required=("project_id",))
    assert made.optimistic_operations({"items": [{"id": 1, "v": "x"}, {"id": 2, "v": "y"}]}, "m") == [
        ('["a",1]', Set(b'"x"')),
        ('["a",2]', Set(b'"y"')),
    ]
    assert made.request({"id": 1, "notify": True, "t": 2}, "m").params == (("notify", "true"),)
    assert made.request({"id": 1, "notify": True, "t": 2}, "m").body == b'{"notify":true,"t":2}'


def test_variables_may_have_any_name_but_response() -> None:
    names = {"data": 1, "event": 2, "item": 3, "event_id": 4, "a-b": {"c": 5}}
    rule = {"set": {"key": ["k"], "value": ["{data}", "{event}", "{item}", "{event_id}", "{a-b.c}", "{mutation_id}"]}}
    mutation = compiled({"request": {**REQUEST, "path": "/x"}, "optimistic": rule}).mutations["m0"]
    assert mutation.optimistic_operations(names, "m-1") == [('["k"]', Set(b'[1,2,3,4,5,"m-1"]'))]


FAULTS: list[tuple[Any, str]] = [
    ([], "mutations: expected a mapping of names, got []"),
    ({"a b": UPDATE_TASK}, "mutations.a b: expected a name of letters, digits, '.', '-' and '_', got 'a b'"),
    ({"m": 5}, "mutations.m: expected a mapping, got 5"),
    ({"m": {}}, "mutations.m.request: required"),
]


@pytest.mark.parametrize(("mutations", "line"), FAULTS)
def test_a_section_that_is_none(mutations: Any, line: str) -> None:
    with pytest.raises(ConfigFaults) as caught:
        load_mapping({**BASE, "mutations": mutations}, {})
    assert [fault.message for fault in caught.value.faults] == [line]


OPERATIONS = (
    "set, merge, append, prepend, upsert, merge_where, remove, increment, delete, invalidate, entity, relation, call"
)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"optimist": []}, "optimist: unknown key, did you mean optimistic?"),
        ({"function": "a:b"}, "request: a mutation has a function or a request, not both"),
        ({"request": "x"}, "request: expected a mapping, got 'x'"),
        ({"request": {**REQUEST, "service": "ap"}}, "request.service: no such service, there are api, got 'ap'"),
        (
            {"request": {**REQUEST, "method": "GET"}},
            "request.method: expected POST or PUT or PATCH or DELETE, got 'GET'",
        ),
        ({"request": {"service": "api", "path": "/x"}}, "request.method: required"),
        ({"request": {**REQUEST, "path": "x"}}, "request.path: expected a path that begins with '/', got 'x'"),
        ({"request": {**REQUEST, "path": "/{response.id}"}}, "request.path: {response.id} is not known yet"),
        ({"request": {**REQUEST, "headers": {}}},
         "request.headers: unknown key, expected one of body, method, omit, params, path, service"),
        ({"request": {**REQUEST, "body": {"a": 1}, "omit": ["a"]}},
         "request.omit: is left out of {variables} in the body, which has none"),
        ({"optimistic": 5}, "optimistic: expected a rule such as {set: {key: [...], value: ...}}, got 5"),
        ({"optimistic": [{"sett": {}}]}, f"optimistic.0.sett: unknown operation, expected one of {OPERATIONS}"),
        (
            {"optimistic": [{"set": {"key": ["a"], "value": "{response.id}"}}]},
            "optimistic.0.set.value: {response.id} is not known yet",
        ),
        (
            {"optimistic": [{"invalidate": {"key": ["a"]}}]},
            "optimistic.0.invalidate: nothing that could be shown at once: say it in `result` or `invalidate`",
        ),
        (
            {"optimistic": {"set": {"key": ["a"], "value": 1}, "optional": "yes"}},
            "optimistic.optional: expected true or false, got 'yes'",
        ),
        (
            {"result": [{"each": "x", "set": {"key": ["a"], "value": 1}}]},
            "result.0.each: expected a placeholder that is an array, got 'x'",
        ),
        (
            {"confirm_on": {"stream": "task:{id}", "event": "e"}},
            "confirm_on.stream: no stream has such a channel, there are project:{id}, got 'task:{id}'",
        ),
        ({"confirm_on": {"stream": "project:1"}}, "confirm_on.event: required"),
        (
            {"confirm_on": {"stream": "project:{response.id}", "event": "e"}},
            "confirm_on.stream: {response.id} is not known yet",
        ),
        (
            {"confirm_on": {"stream": "project:1", "event": "e", "where": ["id"]}},
            "confirm_on.where: expected an object of members to match, got ['id']",
        ),
        ({"scope": 5}, "scope: expected text, got 5"),
        ({"scope": "{response.id}"}, "scope: {response.id} is not known yet"),
        ({"temp_id": "id"}, "temp_id: expected a variable such as {variables.id}, got 'id'"),
        ({"temp_id": "{mutation_id}"}, "temp_id: expected a variable such as {variables.id}, got '{mutation_id}'"),
        ({"response_id": "_id"}, "response_id: takes the place of a temporary id: say temp_id"),
        ({"rollback": "undo"}, "rollback: expected rebase or snapshot, got 'undo'"),
        ({"conflict": "win"}, "conflict: expected fail or overwrite or merge, got 'win'"),
        ({"invalidate": ["a"]}, "invalidate.0: expected a key or one placeholder, got 'a'"),
        ({"invalidate": {"key": ["a"]}}, "invalidate: expected a list of keys, got {'key': ['a']}"),
        ({"retry": -1}, "retry: expected a whole number of at least 0, got -1"),
        ({"delay": "soon"}, "delay: expected a duration such as 100ms, 60s, 5m or 24h, got 'soon'"),
        ({"variables": "id"}, "variables: expected a schema or a list of names, got 'id'"),
        (
            {"variables": {"properties": {"n": {"type": "int"}}}},
            f"variables.properties.n.type: expected {' or '.join(TYPES)}, got 'int'",
        ),
        ({"variables": {"items": {"requird": []}}}, "variables.items.requird: unknown key, did you mean required?"),
        ({"variables": {"enum": []}}, "variables.enum: expected a list of values, got []"),
        ({"variables": {"minimum": "1"}}, "variables.minimum: expected a number, got '1'"),
        ({"variables": {"properties": []}}, "variables.properties: expected schemas by name, got []"),
    ],
)  # fmt: skip
def test_a_fault_names_path_reason_and_value(change: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigFaults) as caught:
        load_mapping({**BASE, "mutations": {"m": {"request": REQUEST, **change}}}, {})
    assert [fault.message for fault in caught.value.faults] == [f"mutations.m.{line}"]


def test_templates_that_may_hold_credentials_are_not_shown() -> None:
    config = loaded({"request": {**REQUEST, "path": "/a?k=s3cret", "params": {"t": "s3cret"}, "body": {"t": "s3cret"}}})
    assert "s3cret" not in repr(config.redacted())
    assert "s3cret" not in repr(config.mutations["m0"])


# --- what confirms ---------------------------------------------------------------------------------------------------


def test_an_event_that_may_confirm_tells_so_beside_what_it_does() -> None:
    (route,) = compiled(UPDATE_TASK).router("events").route("task:updated", "project:7")
    made = route.apply(b'{"id":"t1"}', 9)
    assert made == [
        ('["tasks","7"]', MergeWhere(b'{"id":"t1"}', b'{"id":"t1"}')),
        ('#c["m0"]', Append((b'{"channel":"project:7","id":9,"data":{"id":"t1"}}',), by="")),
    ]


def test_one_that_the_stream_does_not_know_is_heard_for_it_alone() -> None:
    confirm = {"stream": "project:{p}", "event": "task:moved"}
    made = compiled({"request": REQUEST, "confirm_on": confirm}, {"request": REQUEST, "confirm_on": confirm})
    (route,) = made.router("events").route("task:moved", "project:7")
    assert [key for key, _ in route.apply(b"{}", None)] == ['#c["m0"]', '#c["m1"]']
    assert (route.keys, route.origin) == (None, -1)


def test_many_at_once_are_not_taken_at_once_where_one_also_confirms() -> None:
    (alone,) = compiled().router("events").route("task", "project:7")
    confirm = {"stream": "project:{p}", "event": "task"}
    (beside,) = compiled({"request": REQUEST, "confirm_on": confirm}).router("events").route("task", "project:7")
    assert alone.keys is not None
    assert beside.keys is None
    assert [key for key, _ in beside.apply(b'{"id":1}', None)] == ['["task",1]', '#c["m0"]']


def test_what_confirms_has_no_channel_joined() -> None:
    confirm = {"stream": "project:{p}", "event": "task:moved"}
    feeds = compiled({"request": REQUEST, "confirm_on": confirm}).feeds
    assert feeds.channels_for(["other", "7"]) == []
    assert feeds.always() == []
    assert feeds.channels_for(["tasks", "7"]) == [("events", "project:7")]
    assert feeds.heads_fed_by("events", "project:7") == ["tasks", "task"], "and it feeds nothing"


@pytest.mark.parametrize(
    ("stream", "channel", "told"),
    [
        ({"source": "feed"}, "feed", "feed"),
        ({"source": "parts"}, "anything:{x}", "parts"),
        ({"source": "events"}, "anything:{x}", "events"),
    ],
)
def test_streams_without_a_channel(stream: dict[str, Any], channel: str, told: str) -> None:
    """Their events have one all the same, or count as of one that is called as the source."""
    streams = [{**stream, "on": {"e": {"delete": {"key": ["k"]}}}}]
    confirm = {"stream": channel, "event": "e"}
    made = compiled({"request": REQUEST, "confirm_on": confirm}, streams=streams)
    source = next(name for name in made.envelopes if name.partition("@")[0] == stream["source"])
    (route,) = made.router(source).route("e", None)
    _, (name, operation) = route.apply(b"1", None)
    assert (name, operation) == ('#c["m0"]', Append((b'{"channel":"%b","id":null,"data":1}' % told.encode(),), by=""))


def test_an_sse_stream_has_no_channel_to_confirm_on() -> None:
    streams = [{"source": "feed", "on": {"e": {"delete": {"key": ["k"]}}}}]
    confirm = {"stream": "project:{x}", "event": "e"}
    with pytest.raises(ConfigFaults, match=r"no stream has such a channel, there are feed, got 'project:\{x\}'"):
        compiled({"request": REQUEST, "confirm_on": confirm}, streams=streams)


def test_what_ingestion_knows_of_a_mutation() -> None:
    config = loaded(UPDATE_TASK, {"request": REQUEST})
    assert config.confirmations == {
        "m0": ConfirmConfig("project:{project_id}", "task:updated", {"id": "{id}"}),
    }


anything = st.recursive(
    st.sampled_from([None, True, 0, 5, -1, 1.5, "", "a", "/a", "{x}", "{response}", "{variables}", "5s", "POST", "api"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["service", "method", "path", "stream", "event", "where", "set", "key", "value", "each", "type", "id"]),
        inner, max_size=3,
    ),
    max_leaves=6,
)  # fmt: skip
members = st.sampled_from([
    "request", "optimistic", "result", "confirm_on", "scope", "temp_id", "response_id", "rollback", "conflict", "invalidate",
    "retry", "retry_delay", "delay", "max_age", "variables", "function",
])  # fmt: skip


@given(st.dictionaries(members, anything, max_size=5), st.booleans())
def test_whatever_is_written_is_a_mutation_or_faults(mutation: dict[str, Any], sound: bool) -> None:
    if sound:
        mutation = {**mutation, "request": REQUEST}
    try:
        config = load_mapping({**BASE, "mutations": {"m": mutation}}, {})
    except ConfigFaults as caught:
        faults = caught.faults
    else:
        faults = []
        compile_config(config)
    assert all(fault.path.startswith("mutations") and fault.reason for fault in faults)
