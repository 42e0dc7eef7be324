"""A resource is two queries, three mutations and the rules of a stream; nothing is left of it after reading."""

from typing import Any

import orjson
import pytest

from cluster.config import Compiled, Config, compile_config, load_mapping
from cluster.config.load import ConfigFaults
from cluster.core.mutation import DeclaredMutation, MutationRequest
from cluster.core.operation import Append, Delete, Invalidate, Merge, MergeWhere, Operation, Remove, Set, Upsert

BASE: dict[str, Any] = {
    "services": {"api": {"base_url": "http://x"}},
    "sources": {"events": {"type": "websocket", "url": "ws://x"}, "feed": {"type": "sse", "url": "http://x"}},
}
EVENTS = {"created": "message:new", "updated": "message:edited", "deleted": "message:deleted"}
MESSAGES: dict[str, Any] = {
    "service": "api",
    "path": "/messages",
    "id": "id",
    "stream": {"source": "events", "channel": "messages", "events": EVENTS},
}
OF_A_ROOM: dict[str, Any] = {
    **MESSAGES,
    "lists": [{"room": "{room}"}],
    "stream": {"source": "events", "channel": "room:{room}", "events": EVENTS},
}
ALL, DETAIL = '["messages","list",{}]', '["messages","detail",5]'
LISTS = ('#u["messages","list"]', Invalidate())


def loaded(resource: Any, **more: Any) -> Config:
    return load_mapping({**BASE, "resources": {"messages": resource}, **more}, {})


def compiled(resource: Any, **more: Any) -> Compiled:
    return compile_config(loaded(resource, **more))


def mutations(resource: Any) -> list[DeclaredMutation]:
    made = compiled(resource).mutations
    return [made[f"messages.{name}"] for name in ("create", "update", "delete")]


def heard(made: Compiled, event: str, channel: str | None, data: Any, source: str = "events") -> list[Any]:
    (route,) = made.router(source).route(event, channel)
    return [(key, operation) for key, operation in route.apply(orjson.dumps(data), None) if key[:2] != "#c"]


def test_its_queries() -> None:
    config = loaded({**MESSAGES, "stale_time": "infinity", "gc_time": "1m"})
    assert [(query.key, query.path, query.params) for query in config.queries] == [
        (["messages", "list", "{filters}"], "/messages", "{filters}"),
        (["messages", "detail", "{id}"], "/messages/{id}", None),
    ]
    assert {(query.stale_time, query.gc_time_ms) for query in config.queries} == {(None, 60_000.0)}
    queries = compile_config(config).queries
    query = queries.find(["messages", "list", {"room": "1"}])
    assert query is not None
    request = query.request_for(["messages", "list", {"room": "1"}])
    assert (request.service, getattr(request, "params", None)) == ("api", (("room", "1"),))


def test_creating() -> None:
    create, _, _ = mutations(MESSAGES)
    variables = create.completed({"text": "a"}, "m-1")
    assert variables == {"text": "a", "id": "m-1"}
    assert create.completed({"text": "a", "id": "temp"}, "m-1") == {"text": "a", "id": "temp"}
    assert create.temporary(variables) == "m-1"
    assert create.request(variables, "m-1") == MutationRequest("api", "POST", "/messages", (), b'{"text":"a"}', "m-1")
    assert create.optimistic_operations(variables, "m-1") == [(ALL, Append((b'{"text":"a","id":"m-1"}',)))]
    response = {"id": 5, "text": "a!"}
    assert create.assigned(response) == 5
    assert create.result_operations({"text": "a", "id": 5}, "m-1", response) == [
        (ALL, Upsert((b'{"id":5,"text":"a!"}',))),
        (DETAIL, Set(b'{"id":5,"text":"a!"}')),
    ]
    assert create.result_operations({"text": "a", "id": 5}, "m-1", None) == []
    assert create.invalidations(variables, "m-1", response) == [LISTS]
    assert create.confirms(variables, "m-1", "messages", {"id": 5, "mutation_id": "m-1"})
    assert create.confirms(variables, "m-1", "messages", {"id": 5, "text": "a"})
    assert not create.confirms(variables, "m-1", "messages", {"id": 5, "text": "b"})


def test_updating() -> None:
    _, update, _ = mutations(MESSAGES)
    variables = {"id": 5, "text": "b"}
    assert update.request(variables, "m") == MutationRequest("api", "PATCH", "/messages/5", (), b'{"text":"b"}', "m")
    edits: list[tuple[str, Operation]] = [
        (DETAIL, Merge(b'{"id":5,"text":"b"}')),
        (ALL, MergeWhere(b'{"id":5}', b'{"id":5,"text":"b"}')),
    ]
    assert update.optimistic_operations(variables, "m") == edits
    assert update.result_operations({"id": 5, "text": "?"}, "m", variables) == edits
    assert update.confirms(variables, "m", "messages", {"id": 5, "text": "b", "edited": True})
    assert not update.confirms(variables, "m", "messages", {"id": 6, "text": "b"})


def test_deleting() -> None:
    create, update, delete = mutations(MESSAGES)
    assert delete.request({"id": 5}, "m") == MutationRequest("api", "DELETE", "/messages/5", (), None, "m")
    assert delete.optimistic_operations({"id": 5}, "m") == [(DETAIL, Delete()), (ALL, Remove(b'{"id":5}'))]
    assert {each.scope_of({"id": 5}, "m") for each in (create, update, delete)} == {"scope:messages:5"}
    for each in (update, delete):
        with pytest.raises(Exception, match="variables/id: required"):
            each.validate({})


def test_what_its_stream_says() -> None:
    made = compiled(MESSAGES)
    data = {"id": 5, "text": "c"}
    json = orjson.dumps(data)
    assert heard(made, "message:new", "messages", data) == [(ALL, Append((json,))), LISTS]
    assert heard(made, "message:edited", "messages", data) == [
        (DETAIL, Merge(json)),
        (ALL, MergeWhere(b'{"id":5}', json)),
        LISTS,
    ]
    assert heard(made, "message:deleted", "messages", {"id": 5}) == [
        (DETAIL, Delete()),
        (ALL, Remove(b'{"id":5}')),
        LISTS,
    ]
    for key in (["messages", "list", {}], ["messages", "list", {"any": 1}], ["messages", "detail", 7]):
        assert made.feeds.channels_for(key) == [("events", "messages")]


def test_lists_that_are_named_are_edited_in_place_and_no_other_is_fetched() -> None:
    made = compiled(OF_A_ROOM)
    key = '["messages","list",{"room":"7"}]'
    assert heard(made, "message:new", "room:7", {"id": 5}) == [(key, Append((b'{"id":5}',)))]
    assert made.feeds.channels_for(["messages", "list", {"room": "7"}]) == [("events", "room:7")]
    create, update, delete = mutations(OF_A_ROOM)
    assert create.optimistic_operations({"id": "t", "room": "7"}, "m")[0][0] == key
    assert create.result_operations({"id": 5}, "m", {"id": 5, "room": "7"})[0][0] == key
    assert [each for each, _ in update.optimistic_operations({"id": 5, "room": "7"}, "m")] == [DETAIL, key]
    assert [each for each, _ in update.optimistic_operations({"id": 5}, "m")] == [DETAIL]
    assert [each for each, _ in delete.optimistic_operations({"id": 5}, "m")] == [DETAIL]
    assert create.invalidations({"id": "t", "room": "7"}, "m", {"id": 5}) == []
    assert create.confirms({"id": "t", "room": "7"}, "m", "room:7", {"mutation_id": "m"})


def test_another_id_and_a_stream_without_channel() -> None:
    resource = {
        "service": "api",
        "path": "/messages/",
        "id": "_id",
        "stream": {"source": "feed", "events": {"created": "new", "deleted": "new"}},
    }
    made = compiled(resource)
    assert [key for key, _ in heard(made, "new", None, {"_id": 5}, "feed")] == [ALL, LISTS[0], DETAIL, ALL, LISTS[0]]
    create, update, delete = mutations(resource)
    assert create.assigned({"id": 1, "_id": 5}) == 5
    assert create.request({"_id": "t"}, "m").path == "/messages"
    assert update.request({"_id": 5, "a": 1}, "m") == MutationRequest(
        "api", "PATCH", "/messages/5", (), b'{"a":1}', "m"
    )
    assert update.confirm is None
    assert delete.confirms({"_id": 5}, "m", "feed", {"_id": 5})


def test_a_resource_may_be_all_that_a_service_has() -> None:
    resource = {"service": "api", "path": "/"}
    assert [str(query.path) for query in loaded(resource).queries] == ["/", "/{id}"]
    assert mutations(resource)[0].request({"id": "t"}, "m").path == "/"


def test_without_a_stream() -> None:
    config = loaded({"service": "api", "path": "/messages"})
    assert config.streams == ()
    assert config.confirmations == {}
    assert compile_config(config).mutations["messages.create"].invalidate != ()


def test_what_is_declared_by_name_takes_the_place_of_what_it_stands_for() -> None:
    own = {"request": {"service": "api", "method": "PUT", "path": "/own"}}
    query = {"key": ["messages", "detail", "{id}"], "service": "api", "path": "/own/{id}"}
    made = compiled(MESSAGES, mutations={"messages.update": own}, queries=[query])
    assert made.mutations["messages.update"].method == "PUT"
    assert sorted(made.mutations) == ["messages.create", "messages.delete", "messages.update"]
    found = made.queries.find(["messages", "detail", 7])
    assert found is not None
    assert getattr(found.request_for(["messages", "detail", 7]), "path", None) == "/own/7"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"service": "ap"}, "service: no such service, there are api, got 'ap'"),
        ({"path": "messages"}, "path: expected a path that begins with '/', got 'messages'"),
        ({"path": "/a/{id}"}, "path: takes no placeholders, got '/a/{id}'"),
        ({"id": "a b"}, "id: expected a member's name of letters, digits, '-' and '_', got 'a b'"),
        ({"lists": {}}, "lists: expected a list of filters such as {} or {owner: '{owner}'}, got {}"),
        ({"stale": "1s"}, "stale: unknown key, did you mean stale_time?"),
        (
            {"stale_time": "soon"},
            "stale_time: expected a duration such as 100ms, 60s, 5m or 24h, got 'soon'",
        ),
        ({"stream": {"events": EVENTS}}, "stream.source: required"),
        (
            {"stream": {"source": "event", "channel": "c", "events": EVENTS}},
            "stream.source: no such source, there are events, feed, got 'event'",
        ),
        (
            {"stream": {"source": "feed", "channel": "c", "events": EVENTS}},
            "stream.channel: a server-sent stream has channels only with an envelope that names one",
        ),
        ({"stream": {"source": "feed", "channel": "c", "events": {}}},
         "stream.events: expected the names of created, deleted, updated"),
        (
            {"stream": {"source": "events", "channel": "c", "events": {"create": "x"}}},
            "stream.events.create: unknown key, did you mean created?",
        ),
    ],
)  # fmt: skip
def test_faults_keep_its_path(change: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigFaults) as caught:
        loaded({**MESSAGES, **change})
    assert [fault.message for fault in caught.value.faults] == [f"resources.messages.{line}"]


@pytest.mark.parametrize("value", [[], 5, None])
def test_one_that_is_no_mapping(value: Any) -> None:
    with pytest.raises(ConfigFaults, match=r"resources\.messages: expected a mapping"):
        loaded(value)
