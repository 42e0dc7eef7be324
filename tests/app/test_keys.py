"""Keys of one kind come from one place."""

import orjson

from cluster.app import KeyFactory, keys
from cluster.core.query_key import canonical


def test_a_factory_gives_the_keys_of_a_kind():
    projects = keys("projects")
    assert isinstance(projects, KeyFactory)
    assert projects.lists() == ["projects", "list"]
    assert projects.list({"status": "open"}) == ["projects", "list", {"status": "open"}]
    assert projects.list() == projects.lists()
    assert projects.list(0) == ["projects", "list", 0]
    assert projects.details() == ["projects", "detail"]
    assert projects.detail(7) == ["projects", "detail", 7]
    assert projects.detail("{id}") == ["projects", "detail", "{id}"]
    assert projects.key() == ["projects"]
    assert projects.key("stats", 2026) == ["projects", "stats", 2026]
    assert repr(projects) == "keys('projects')"


def test_all_may_be_called_or_not():
    projects = keys("projects")
    assert projects.all == projects.all() == ["projects"]
    assert type(projects.all()) is list
    assert orjson.dumps(projects.all) == b'["projects"]'
    assert canonical(projects.all) == '["projects"]'
    assert [*projects.all, "detail"] == projects.details()


def test_every_key_is_a_list_of_its_own():
    projects = keys("projects")
    for make in (lambda: projects.all, projects.all, projects.lists, projects.list, projects.details, projects.key):
        make().append("more")
        assert "more" not in make()
