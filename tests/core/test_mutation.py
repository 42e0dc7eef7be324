"""What a declared mutation makes of variables: operations, a request, a scope; and what an event tells of it."""

from typing import Any

import pytest
from msgspec import structs

from cluster.core import template
from cluster.core.mutation import MAX_TEXT, Confirm, DeclaredMutation, MutationRequest, in_data, replaced
from cluster.core.operation import Append, Invalidate, MergeWhere, Set
from cluster.core.rule import RuleOperation
from cluster.core.template import Hole, Literal, Node
from cluster.core.variables import Schema
from cluster.errors import ErrorCode, RequestError, UpstreamError


def operation(kind: str, **arguments: Any) -> RuleOperation:
    """One as the configuration compiles it."""
    nodes: dict[str, Any] = {
        name: in_templates(value) if name != "optional" else value for name, value in arguments.items()
    }
    return RuleOperation(kind, **nodes)


def in_templates(value: Any) -> Node:
    return template.renamed(template.parse(value), lambda path: path if path[0] == "item" else in_data(path))


def update(**changes: Any) -> DeclaredMutation:
    made = DeclaredMutation("update", "api", "PATCH", template.parse("/tasks/{id}"), body=Hole(("variables",)))
    return structs.replace(made, **changes)


def refused(call: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        call()
    assert caught.value.code is ErrorCode.INVALID_VARIABLES
    return caught.value


# --- variables -------------------------------------------------------------------------------------------------------


def test_variables_that_are_wrong_say_where_and_why() -> None:
    mutation = update(schema=Schema(required=("id",)))
    mutation.validate({"id": 1, "more": 2})
    error = refused(lambda: mutation.validate({"ID": 1}))
    assert error.message == "variables/id: required"
    assert error.details == {"pointer": "/id", "reason": "required"}
    assert refused(lambda: update().validate([1])).message == "variables: expected an object, got [1]"
    update().validate({})


@pytest.mark.parametrize("path", [("id",), ("variables", "id")])
def test_without_a_temporary_id_the_mutations_own_is_it(path: tuple[str, ...]) -> None:
    mutation = update(temp_id=path)
    assert mutation.completed({"a": 1}, "m-1") == {"a": 1, "id": "m-1"}
    assert mutation.completed({"id": "t"}, "m-1") == {"id": "t"}
    assert mutation.temporary({"id": "t"}) == "t"
    assert refused(lambda: mutation.temporary({"id": 5})).message == "a temporary id is a text, got 5"
    assert mutation.temporary({"id": "x" * MAX_TEXT})
    assert "at most 512 characters" in refused(lambda: mutation.temporary({"id": "x" * (MAX_TEXT + 1)})).message
    assert update().completed({"a": 1}, "m-1") == {"a": 1}
    deep = update(temp_id=("task", "id"))
    assert deep.completed({"task": {}}, "m-1") == {"task": {}}
    assert "is missing" in refused(lambda: deep.temporary({"task": {}})).message


def test_the_id_that_a_response_gives() -> None:
    assert update().assigned({"id": 7}) == 7
    assert update(response_id="_id").assigned({"id": 7, "_id": "x"}) == "x"
    responses: list[Any] = [None, [], {}, {"id": None}, {"id": {}}]
    for response in responses:
        assert update().assigned(response) is None


# --- the request -----------------------------------------------------------------------------------------------------


def test_what_is_sent() -> None:
    mutation = update(params=template.parse({"a": "{variables.x.y}", "none": "{n}", "m": "{mutation_id}", "o": "{x}"}))
    variables = {"id": "a/b", "x": {"y": [1, "b"]}, "n": None}
    assert mutation.request(variables, "m-1") == MutationRequest(
        "api",
        "PATCH",
        "/tasks/a%2Fb",
        (("a", "1"), ("a", "b"), ("m", "m-1"), ("o", '{"y":[1,"b"]}')),
        b'{"id":"a/b","x":{"y":[1,"b"]},"n":null}',
        "m-1",
    )


def test_members_that_are_left_out_of_the_body_only() -> None:
    mutation = update(omit=("id", "secret"), body=template.parse({"of": "{id}", "all": "{variables}", "s": "{secret}"}))
    request = mutation.request({"id": 5, "secret": 1, "a": 2}, "m")
    assert (request.path, request.body) == ("/tasks/5", b'{"of":5,"all":{"a":2},"s":1}')


def test_a_function_is_called_with_the_variables() -> None:
    request = update(function="a:b", service="").request({"x": 1}, "m-1")
    assert (request.service, request.function, request.arguments, request.idempotency_key) == (
        *("", "a:b", {"x": 1}, "m-1"),
    )


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "path needs the variable id"),
        ({"id": ""}, "the path needs more than an empty id"),
        ({"id": ".."}, "the path /tasks/.. has a dot segment"),
        ({"id": "x" * 7_994}, "path and query are 8001 bytes, at most 8000 are sent"),
        ({"id": "é" * 2_000}, "path and query are 12007 bytes, at most 8000 are sent"),
        ({"id": "7", "q": "é" * 2_000}, "path and query are 12011 bytes, at most 8000 are sent"),
    ],
)
def test_variables_that_make_no_request(variables: dict[str, Any], message: str) -> None:
    declared = update(params=template.parse({"q": "{q}"})) if "q" in variables else update()
    assert refused(lambda: declared.request(variables, "m")).message == message


def test_the_longest_path_that_is_sent() -> None:
    assert len(update().request({"id": "x" * 7_993}, "m").path) == 8_000


def test_scopes() -> None:
    assert update().scope_of({}, "m-1") == "id:m-1"
    assert update(scope=template.parse("p:{id}")).scope_of({"id": 7}, "m-1") == "scope:p:7"
    assert update(scope=template.parse("p:{id}"), temp_id=("id",)).scope_of({}, "m-1") == "scope:p:m-1"
    long = refused(lambda: update(scope=template.parse("p:{id}")).scope_of({"id": "x" * MAX_TEXT}, "m-1"))
    assert (long.code, long.message) == (ErrorCode.INVALID_VARIABLES, "a scope has at most 512 characters")
    assert refused(lambda: update(scope=template.parse("p:{id}")).scope_of({}, "m-1")).message == (
        "scope needs the variable id"
    )
    assert (
        "texts or numbers" in refused(lambda: update(scope=template.parse("p:{id}")).scope_of({"id": []}, "m")).message
    )


# --- operations ------------------------------------------------------------------------------------------------------


def test_operations_are_over_the_variables() -> None:
    mutation = update(
        optimistic=(
            operation("merge_where", key=["tasks", "{p}"], where={"id": "{variables.id}"}, value="{variables}"),
            operation("set", key=["by", "{mutation_id}"], value="{a.b}"),
        )
    )
    variables = {"id": 1, "p": "7", "a": {"b": None}}
    assert mutation.optimistic_operations(variables, "m-1") == [
        ('["tasks","7"]', MergeWhere(b'{"id":1}', b'{"id":1,"p":"7","a":{"b":null}}')),
        ('["by","m-1"]', Set(b"null")),
    ]


def test_one_without_its_variable_is_refused_unless_it_may_be_left_out() -> None:
    needs = {"key": ["tasks", "{p}"], "value": 1}
    error = refused(lambda: update(optimistic=(operation("set", **needs),)).optimistic_operations({}, "m"))
    assert error.message == "optimistic: set needs {p}"
    optional = update(optimistic=(operation("set", **needs, optional=True), operation("set", key=["a"], value=2)))
    assert optional.optimistic_operations({}, "m") == [('["a"]', Set(b"2"))]
    assert optional.optimistic_operations({"p": 1}, "m") == [('["tasks",1]', Set(b"1")), ('["a"]', Set(b"2"))]


def test_what_a_response_does_and_that_none_is_not_null() -> None:
    mutation = update(
        result=(
            operation("append", key=["tasks"], value="{response}"),
            operation("set", key=["task", "{response.id}"], value=["{id}"]),
            operation("set", key=["always"], value=1),
        )
    )
    assert mutation.result_operations({"id": 3}, "m", {"id": 5}) == [
        ('["tasks"]', Append((b'{"id":5}',))),
        ('["task",5]', Set(b"[3]")),
        ('["always"]', Set(b"1")),
    ]
    assert mutation.result_operations({"id": 3, "response": "mine"}, "m", None) == [('["always"]', Set(b"1"))]


def test_what_is_out_of_date_afterwards() -> None:
    mutation = update(invalidate=tuple(map(template.parse, (["list", "{id}"], ["x", "{response.id}"], "{key}"))))
    assert mutation.invalidations({"id": 1, "key": ["k"]}, "m", {"id": 5}) == [
        ('#u["list",1]', Invalidate()),
        ('#u["x",5]', Invalidate()),
        ('#u["k"]', Invalidate()),
    ]
    assert mutation.invalidations({"id": 1, "key": "no key"}, "m", None) == [('#u["list",1]', Invalidate())]


# --- confirmation ----------------------------------------------------------------------------------------------------

CONFIRM = Confirm(template.parse("project:{p}"), "task:updated", template.parse({"id": "{id}"}))
VARIABLES = {"id": 5, "p": "7", "title": "x", "done": True}
WHOLE = {"id": 5, "projectId": "7", "title": "x", "done": True, "more": 1}


@pytest.mark.parametrize(
    ("channel", "data", "confirms"),
    [
        ("project:7", WHOLE, True),
        ("project:8", WHOLE, False),
        ("project:7", {**WHOLE, "id": 6}, False),
        ("project:7", {**WHOLE, "id": "5"}, True),
        ("project:7", {**WHOLE, "title": "y"}, False),
        ("project:7", {**WHOLE, "done": 1}, False),
        ("project:7", {**WHOLE, "projectId": "9"}, False),
        ("project:7", {"id": 5, "by": {"mutation": "m-1"}}, True),
        ("project:7", {"id": 6, "by": {"mutation": "m-1"}}, False),
        ("project:7", {"id": 5}, False),
        ("project:7", [WHOLE], False),
    ],
)
def test_an_event_confirms_if_it_names_the_mutation_or_holds_every_variable(
    channel: str, data: Any, confirms: bool
) -> None:
    assert update(confirm=CONFIRM).confirms(VARIABLES, "m-1", channel, data) is confirms


def test_without_what_it_needs_nothing_confirms() -> None:
    assert not update().confirms(VARIABLES, "m-1", "project:7", WHOLE)
    assert not update(confirm=CONFIRM).confirms({"id": 5}, "m-1", "project:7", WHOLE)
    everything = update(confirm=Confirm(Literal("project:7"), "e"))
    assert everything.confirms({"a": [1, {"b": "x"}]}, "m-1", "project:7", {"x": "x", "y": {"z": 1}})
    assert not everything.confirms({"a": [1, {"b": "x"}]}, "m-1", "project:7", {"x": "x"})


# --- tries -----------------------------------------------------------------------------------------------------------


def test_how_often_it_is_sent_again() -> None:
    again, never = UpstreamError("busy", retry_after_ms=9_000.0), UpstreamError("no", retryable=False)
    assert update().retry_after(0, again) is None
    assert update(retry=2, retry_delay_ms=50.0).retry_after(1, UpstreamError("busy")) == 50.0
    assert update(retry=2).retry_after(0, again) == 9_000.0
    assert update(retry=2).retry_after(2, again) is None
    assert update(retry=True).retry_after(99, again) is not None
    assert update(retry=True).retry_after(0, never) is None


def test_a_temporary_id_is_replaced_everywhere() -> None:
    assert replaced({"a": ["t", {"b": "t"}], "t": "tt"}, "t", 5) == {"a": [5, {"b": 5}], "t": "tt"}
