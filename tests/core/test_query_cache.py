"""Entries are found by key and by prefix, and say when they are stale."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.declared_query import DeclaredQuery
from cluster.core.entry import Value
from cluster.core.query_cache import Fetch, QueryCache, new_entry
from cluster.core.query_key import KeyMatcher, canonical, partial_match
from cluster.core.template import parse as template

VALUES = st.recursive(
    st.sampled_from(["a", "b", 1, True, None]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=3,
)
KEYS = st.lists(VALUES, max_size=3)


@given(st.lists(KEYS, max_size=8), st.sets(st.integers(0, 7)), KEYS)
def test_a_prefix_finds_what_trying_all_would(keys: list[list[Any]], gone: set[int], prefix: list[Any]) -> None:
    cache = QueryCache()
    kept: dict[str, list[Any]] = {}
    for key in keys:
        if cache.get(canonical(key)) is None:
            cache.add(new_entry(canonical(key), None))
            kept[canonical(key)] = key
    for number, text in enumerate(list(kept)):
        if number in gone:
            entry = cache.get(text)
            assert entry is not None
            cache.remove(entry)
            del kept[text]
    assert len(cache) == len(kept)
    assert [entry.key for entry in cache] == list(kept)
    found = [entry.key for entry in cache.matching(KeyMatcher(prefix))]
    assert found == [text for text, key in kept.items() if partial_match(key, prefix)]


def test_an_empty_cache_keeps_no_index() -> None:
    cache = QueryCache()
    entry = new_entry(canonical(["a", 1]), None)
    cache.add(entry)
    cache.remove(entry)
    assert cache.get(entry.key) is None
    assert not cache._heads


QUERY = DeclaredQuery(template(["a", "{id}"]), "api", template("/a/{id}"), stale_time_ms=1000.0)
NEVER = DeclaredQuery(template(["a", "{id}"]), "api", template("/a/{id}"), stale_time_ms=None)


@pytest.mark.parametrize(
    ("query", "invalidated", "stale_at", "stale_at_5500", "stale_at_6000"),
    [
        (None, False, None, False, False),
        (None, True, 5000.0, True, True),
        (NEVER, False, None, False, False),
        (QUERY, False, 6000.0, False, True),
        (QUERY, True, 5000.0, True, True),
    ],
)
def test_staleness(
    query: DeclaredQuery | None,
    invalidated: bool,
    stale_at: float | None,
    stale_at_5500: bool,
    stale_at_6000: bool,
) -> None:
    entry = new_entry(canonical(["a", 1]), query)
    assert entry.is_stale(0.0), "it has no data"
    entry.value, entry.data_updated_at, entry.is_invalidated = Value.from_json(b"null"), 5000.0, invalidated
    assert entry.stale_at == stale_at
    assert (entry.is_stale(5500.0), entry.is_stale(6000.0)) == (stale_at_5500, stale_at_6000)


def test_what_readers_see() -> None:
    entry = new_entry(canonical(["a", {"b": 1}]), QUERY)
    assert entry.parsed == ["a", {"b": 1}]
    view = entry.view()
    assert (view.data, view.version, view.status, view.fetch_status) == (None, 0, "pending", "idle")
    entry.fetch = Fetch(1, 0.0)
    entry.value, entry.version, entry.status, entry.error = Value.from_object([1]), 4, "error", ("TIMEOUT", "late")
    view = entry.view()
    assert (view.data, view.version, view.status, view.fetch_status) == (b"[1]", 4, "error", "fetching")
    assert view.error == ("TIMEOUT", "late")
    info = entry.info(0.0, 3)
    assert (info.key, info.version, info.status, info.is_stale, info.subscribers) == (entry.key, 4, "error", False, 3)
