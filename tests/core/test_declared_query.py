"""Which query a key belongs to, and the request that fetches it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.declared_query import DeclaredQueries, DeclaredQuery
from cluster.core.query_key import canonical, parse
from cluster.core.template import parse as template


def query(key: list[Any], path: str, params: Any = None) -> DeclaredQuery:
    return DeclaredQuery(template(key), "api", template(path), None if params is None else template(params))


DETAIL = query(["projects", "detail", "{id}"], "/projects/{id}")
LIST = query(["projects", "list", "{filters}"], "/projects", "{filters}")
TASKS = query(["tasks", "{projectId}"], "/tasks", {"projectId": "{projectId}", "sort": "-age", "limit": 50})


@pytest.mark.parametrize(
    ("id_", "path"),
    [
        (7, "/projects/7"),
        ("7", "/projects/7"),
        (1.5, "/projects/1.5"),
        (True, "/projects/true"),
        (None, "/projects/null"),
        ("a b", "/projects/a%20b"),
        ("a/b?c#d%", "/projects/a%2Fb%3Fc%23d%25"),
        ("../admin", "/projects/..%2Fadmin"),
        ("größe", "/projects/gr%C3%B6%C3%9Fe"),
        ("\r\n", "/projects/%0D%0A"),
        ({"a": [1]}, "/projects/%7B%22a%22%3A%5B1%5D%7D"),
    ],
)
def test_captures_are_encoded_in_paths(id_: Any, path: str) -> None:
    request = DETAIL.request_for(["projects", "detail", id_])
    assert (request.service, request.method, request.path, request.params) == ("api", "GET", path, ())


@pytest.mark.parametrize("up", ["..", "."])
def test_no_key_leads_up(up: str) -> None:
    assert DeclaredQueries([DETAIL]).find(["projects", "detail", up]) is None
    assert query(["x", "{a}"], "/x/.{a}/y").captures(["x", "."]) is None
    assert query(["x", "{a}"], "/x/v{a}/y").captures(["x", up]) is not None


def test_an_empty_capture_does_not_ask_for_the_collection_above() -> None:
    collection = query(["projects", "detail", "{id}"], "/projects")
    assert DETAIL.captures(["projects", "detail", ""]) is None
    assert query(["x", "{a}"], "/x/v{a}/y").captures(["x", ""]) is None
    assert DeclaredQueries([DETAIL, collection]).find(["projects", "detail", ""]) is collection, "its path has none"
    assert query(["{a}"], "{a}").captures([""]) is None
    assert query(["x", "{a}"], "/x?of={a}").request_for(["x", ""]).path == "/x?of="
    assert TASKS.request_for(["tasks", ""]).params[0] == ("projectId", "")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_capture_stays_one_segment(capture: str) -> None:
    key = ["projects", "detail", capture]
    if DeclaredQueries([DETAIL]).find(key) is not None:
        path = DETAIL.request_for(key).path
        assert path.count("/") == 2
        assert path.isascii()
        assert not set("?#\r\n ") & set(path)


@pytest.mark.parametrize(
    ("filters", "params"),
    [
        ({}, ()),
        ({"status": "open"}, (("status", "open"),)),
        ({"b": 1, "a": True}, (("b", "1"), ("a", "true"))),
        ({"tag": ["x", "y"]}, (("tag", "x"), ("tag", "y"))),
        ({"none": None, "deep": {"a": 1}}, (("deep", '{"a":1}'),)),
        ({"page": 2.0}, (("page", "2"),)),
        ("not an object", ()),
    ],
)
def test_an_object_becomes_parameters(filters: Any, params: tuple[tuple[str, str], ...]) -> None:
    assert LIST.request_for(["projects", "list", filters]).params == params


def test_parameters_may_be_spelled_out() -> None:
    assert TASKS.request_for(["tasks", 3]).params == (("projectId", "3"), ("sort", "-age"), ("limit", "50"))


class TestFind:
    QUERIES = DeclaredQueries([DETAIL, LIST, TASKS, query(["tasks", "{other}"], "/never"), query(["n", 1], "/n")])

    @pytest.mark.parametrize(
        ("key", "path"),
        [
            (["projects", "detail", 1], "/projects/1"),
            (["projects", "list", {}], "/projects"),
            (["tasks", 1], "/tasks"),
            (["n", 1], "/n"),
        ],
    )
    def test_the_first_that_matches(self, key: list[Any], path: str) -> None:
        found = self.QUERIES.find(parse(canonical(key)))
        assert found is not None
        assert found.request_for(key).path == path

    @pytest.mark.parametrize(
        "key", [[], ["projects"], ["projects", "detail"], ["projects", "detail", 1, 2], ["n", True], ["n", "1"]]
    )
    def test_others_are_not_declared(self, key: list[Any]) -> None:
        assert self.QUERIES.find(key) is None

    def test_captures(self) -> None:
        assert LIST.captures(["projects", "list", {"a": 1}]) == {("filters",): {"a": 1}}
        assert LIST.captures(["projects", "detail", 1]) is None


def test_what_the_cluster_says_of_itself_is_no_query() -> None:
    any_pair = query(["{a}", "{b}"], "/{a}/{b}")
    assert DeclaredQueries([any_pair]).find(["harbor", "overview"]) is any_pair
    assert DeclaredQueries([any_pair]).find(["$harbor", "overview"]) is None
