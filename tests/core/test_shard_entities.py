"""The shard: entities are updated wherever they occur; what is related, or under a prefix, is put in doubt."""

from copy import deepcopy
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core import broadcast, shard_state, sweep
from cluster.core.messages import Act, Change, Erase, FeedRange, Matched, Meta, Reset
from cluster.core.operation import Invalidate, Merge, Operation, Set, json_equal
from cluster.core.query_key import canonical, parse, partial_match
from tests.core.shard import BASE, DOCUMENT, REPLAY_MS, START, Shard

TYPED: dict[str, Any] = {
    **DOCUMENT,
    "queries": [
        *DOCUMENT["queries"],
        {"key": ["users", "{filter}"], "service": "api", "path": "/users"},
        {"key": ["feed"], "service": "api", "path": "/feed", "infinite": {"page_size": 2}},
    ],
    "entities": {"user": {"keys": ["userId"], "objects": ["user", "author"], "queries": [["users"], ["feed"]]}},
    "relations": {"user": [["users", "{id}"], ["posts", {"author": "{id}"}]], "tag": [{"contains": "tag:{id}"}]},
    "streams": [
        {
            "source": "events",
            "channel": "people",
            "on": {
                "changed": {"entity": {"type": "user", "value": "{data}"}},
                "gone": {"relation": {"type": "user", "id": "{data.id}"}},
            },
        }
    ],
}


@pytest.fixture
def shard() -> Shard:
    return Shard(TYPED)


def entity(known: Any, **members: Any) -> tuple[str, list[Operation]]:
    return broadcast.name("entity", ["user", known]), [Merge(orjson.dumps({"id": known, **members}))]


class TestEntities:
    def test_every_occurrence_is_updated(self, shard: Shard) -> None:
        old = {"id": 7, "name": "old", "age": 5}
        shard.put('["users",{"role":"x"}]', [{"id": 6}, old, old])
        shard.put('["users",7]', old)
        shard.put('["feed"]', {"pages": [[{"id": 1}], [old]], "page_params": [0, 2]})
        shard.put('["posts"]', [{"author": old, "text": "t"}, {"userId": 7}, {"userId": 7, "user": old}, {"userId": 8}])
        shard.put('["other"]', {"x": old})
        shard.batch(entity(7, name="new"))
        new = {"id": 7, "name": "new", "age": 5}
        assert shard.data('["users",{"role":"x"}]') == [{"id": 6}, new, new]
        assert shard.data('["users",7]') == new
        assert shard.data('["feed"]')["pages"] == [[{"id": 1}], [new]]
        assert shard.data('["posts"]') == [
            {"author": new, "text": "t"},
            {"userId": 7, "user": {"id": 7, "name": "new"}},
            {"userId": 7, "user": new},
            {"userId": 8},
        ]
        assert shard.data('["other"]') == {"x": old}

    def test_watchers_are_sent_only_what_differs(self, shard: Shard) -> None:
        shard.watch('["list"]')
        shard.put('["list"]', [{"author": {"id": 7, "name": "old", "about": "x" * 200}, "text": "y" * 200}] * 2)
        version = shard.machine.offset
        shard.items()
        shard.batch(entity(7, name="new", about="x" * 200), count=3, origin=0)
        steps = [{"op": "replace", "path": f"/{n}/author/name", "value": "new"} for n in (0, 1)]
        (change,) = shard.items()
        assert isinstance(change, Change)
        assert change.patch is not None
        assert (change.from_version, change.version, change.coalesced) == (version, version + 1, 3)
        assert (orjson.loads(change.patch), change.origin) == (steps, "stream:events/people changed")

    def test_what_is_so_already_changes_nothing(self, shard: Shard) -> None:
        shard.watch('["users",7]')
        shard.fetched({"id": 7, "name": "a"})
        shard.items()
        offset = shard.machine.offset
        shard.batch(entity(7, name="a"))
        assert (shard.items(), shard.machine.offset) == ([], offset)

    def test_ids_are_told_apart_as_json_does(self, shard: Shard) -> None:
        held = [{"author": {"id": known}} for known in (1, "1", True)]
        shard.put('["list"]', held)
        shard.batch(entity(True, n="true"), entity("1", n="text"), entity(1, n="number"))
        assert [each["author"]["n"] for each in shard.data('["list"]')] == ["number", "text", "true"]

    def test_an_update_follows_the_changes_of_its_window(self, shard: Shard) -> None:
        shard.batch(('["users",7]', [Set(b'{"id":7,"name":"old"}')]), entity(7, name="new"))
        assert shard.data('["users",7]') == {"id": 7, "name": "new"}

    def test_an_update_is_not_lost_in_a_fetch_that_is_under_way(self, shard: Shard) -> None:
        shard.watch('["users",{}]')
        shard.fetched([{"id": 1}, {"id": 2, "name": "old"}])
        shard.ask(lambda n: Act(n, "refetch", '["users"]'))
        shard.batch(entity(2, name="new"))
        shard.fetched([{"id": 1}, {"id": 2, "name": "old"}])
        assert shard.data('["users",{}]') == [{"id": 1}, {"id": 2, "name": "new"}]

    def test_nor_does_it_meet_another_that_has_taken_its_place(self, shard: Shard) -> None:
        shard.watch('["users",{}]')
        shard.fetched([{"id": 1}, {"id": 2, "name": "old"}])
        shard.ask(lambda n: Act(n, "refetch", '["users"]'))
        shard.batch(entity(2, name="new"))
        shard.fetched([{"id": 3}, {"id": 1}, {"id": 2, "name": "old"}])
        assert shard.data('["users",{}]') == [{"id": 3}, {"id": 1}, {"id": 2, "name": "new"}]

    def test_nor_is_it_lost_in_the_first_fetch(self, shard: Shard) -> None:
        shard.watch('["users",{}]')
        shard.watch('["feed"]')
        shard.batch(entity(2, name="new"), entity(True, name="true"))
        shard.fetched([{"id": 1}, {"id": 2, "name": "old"}, {"author": {"id": 2}}])
        assert shard.data('["users",{}]') == [
            {"id": 1},
            {"id": 2, "name": "new"},
            {"author": {"id": 2, "name": "new"}},
        ]
        shard.fetched([{"id": 2}, {"id": True}])
        assert shard.data('["feed"]')["pages"] == [[{"id": 2, "name": "new"}, {"id": True, "name": "true"}]]

    def test_the_last_of_several_updates_counts(self, shard: Shard) -> None:
        shard.watch('["users",{}]')
        for name in ("a", "b", "c"):
            shard.batch(entity(2, name=name))
        shard.batch(entity(2, age=5))
        shard.fetched([{"id": 2, "name": "old"}])
        assert shard.data('["users",{}]') == [{"id": 2, "name": "c", "age": 5}]

    def test_one_from_long_before_a_fetch_is_not_brought_back(self, shard: Shard) -> None:
        shard.watch('["users",{}]')
        shard.fetched([{"id": 2}])
        shard.batch(entity(2, name="earlier"))
        shard.now += 2 * REPLAY_MS
        shard.ask(lambda n: Act(n, "refetch", '["users"]'))
        shard.fetched([{"id": 2, "name": "later"}])
        assert shard.data('["users",{}]') == [{"id": 2, "name": "later"}]

    def test_what_was_fetched_is_known(self, shard: Shard) -> None:
        shard.watch('["users",{}]')
        shard.fetched([{"id": 1}])
        shard.ask(lambda n: Act(n, "refetch", '["users"]'))
        shard.fetched([{"id": 2}, {"id": 1, "name": "x"}])
        shard.batch(entity(2, name="new"))
        assert shard.data('["users",{}]') == [{"id": 2, "name": "new"}, {"id": 1, "name": "x"}]

    def test_what_is_gone_is_forgotten(self, shard: Shard) -> None:
        shard.put('["users",7]', {"id": 7})
        shard.ask(lambda n: Act(n, "remove", '["users"]'))
        shard.batch(entity(7, name="new"))
        assert shard.machine.view('["users",7]') is None
        assert shard.machine.entities.entries("user", 7) == []

    def test_a_gap_of_its_source_concerns_every_entry_that_holds_one(self, shard: Shard) -> None:
        shard.put('["list"]', {"author": {"id": 7}})
        shard.put('["other"]', {"x": 1})
        shard.watch("[]", prefix=True)
        shard.items()
        shard.batch(feeds=(FeedRange("events", 9, 1, 0, 0),))
        assert [item.entry.key for item in shard.items() if isinstance(item, Reset)] == ['["list"]']

    def test_a_gap_that_concerns_an_entry_twice_has_it_fetched_once(self, shard: Shard) -> None:
        shard.watch('["users",7]')
        shard.fetched({"id": 7})
        shard.batch(feeds=(FeedRange("events", 9, 1, 0, 0),))
        shard.fetched({"id": 7, "name": "new"})
        assert shard.fetches == []
        assert shard.machine.resets == 1


IDS = [1, 2, "1", True]
USERS = st.fixed_dictionaries({"id": st.sampled_from(IDS)}, optional={"n": st.integers(0, 2)})
POSTS = st.fixed_dictionaries(
    {}, optional={"userId": st.sampled_from(IDS), "user": USERS | st.none(), "author": USERS, "other": USERS}
)
KEYED: dict[str, st.SearchStrategy[Any]] = {
    '["users",{}]': st.lists(USERS, max_size=4),
    '["users",1]': USERS,
    '["feed"]': st.lists(st.lists(USERS, max_size=2), max_size=3).map(
        lambda pages: {"pages": pages, "page_params": [2 * n for n in range(len(pages))]}
    ),
    '["posts"]': st.lists(POSTS, max_size=4),
    '["deep"]': st.recursive(POSTS, lambda inner: st.lists(inner, max_size=2) | st.fixed_dictionaries({"x": inner})),
}


def updated(value: Any, new: dict[str, Any], *, covered: bool) -> Any:
    """What becomes of a value when an entity changes, said without an index."""

    def is_it(item: Any) -> bool:
        return isinstance(item, dict) and json_equal(item.get("id"), new["id"])

    if covered:
        if isinstance(value, list):
            return [{**item, **new} if is_it(item) else item for item in value]
        if "pages" in value:
            return {**value, "pages": [updated(page, new, covered=True) for page in value["pages"]]}
        return {**value, **new} if is_it(value) else value
    if isinstance(value, list):
        return [updated(item, new, covered=False) for item in value]
    if not isinstance(value, dict):
        return value
    made = {name: updated(item, new, covered=False) for name, item in value.items()}
    for name in ("user", "author"):
        if is_it(value.get(name)):
            made[name] = {**value[name], **new}
    if json_equal(value.get("userId"), new["id"]) and not is_it(value.get("user")):
        made["user"] = dict(new)
    return made


@settings(max_examples=150)
@given(
    st.fixed_dictionaries({}, optional=KEYED),
    st.lists(st.tuples(st.sampled_from(IDS), st.integers(0, 4)), min_size=1, max_size=4),
)
def test_any_occurrence_anywhere(values: dict[str, Any], events: list[tuple[Any, int]]) -> None:
    shard = Shard(TYPED)
    shard.watch("[]", prefix=True)
    for key, value in values.items():
        shard.put(key, value)
    expected = deepcopy(values)
    for known, number in events:
        versions = {key: shard.machine.view(key).version for key in values}
        shard.batch(entity(known, n=number))
        for key, value in expected.items():
            after = updated(value, {"id": known, "n": number}, covered=key.startswith(('["users"', '["feed"')))
            assert (shard.machine.view(key).version > versions[key]) is not json_equal(after, value), key
            expected[key] = after
    assert {key: shard.data(key) for key in values} == expected
    assert {key: orjson.loads(replica.value.json()) for key, replica in shard.held.items()} == expected


# --- invalidations -----------------------------------------------------------------------------------------------

ELEMENTS = st.sampled_from(["users", "posts", "tag:1", "tag:x", "q", 1, "1", True]) | st.dictionaries(
    st.sampled_from(["author", "b"]), st.sampled_from([1, "1", "x"]), max_size=2
)
RELATED = st.sampled_from([1, "1", "x"]).flatmap(
    lambda known: st.sampled_from([["users", known], ["posts", {"author": known}], ["q", f"tag:{known}"]])
)
KEYS = st.lists(ELEMENTS, min_size=1, max_size=3) | st.builds(
    lambda key, more: [*key, *more], RELATED, st.lists(ELEMENTS, max_size=1)
)


def invalidated(shard: Shard) -> set[str]:
    return {entry.key for entry in shard.machine.cache if entry.is_invalidated}


def is_related(key: list[Any], type_: str, known: Any) -> bool:
    if type_ == "tag":
        return isinstance(known, int | str) and f"tag:{known}" in [each for each in key if isinstance(each, str)]
    return partial_match(key, ["users", known]) or partial_match(key, ["posts", {"author": known}])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(KEYS, max_size=12),
    st.lists(
        st.sampled_from([1, "1", "x"]).flatmap(lambda k: st.tuples(st.sampled_from(["user", "tag"]), st.just(k))),
        max_size=2,
    ),
    st.lists(KEYS.map(lambda key: key[:2]) | st.just([]), max_size=2),
    st.booleans(),
)
def test_what_is_related_or_under_a_prefix_is_put_in_doubt_and_nothing_else(
    keys: list[list[Any]], relations: list[tuple[str, Any]], prefixes: list[list[Any]], in_slices: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if in_slices:
            patch.setattr(sweep, "SLICE", 2)
            patch.setattr(shard_state, "SLICE", 2)
        shard = Shard(TYPED)
        for key in keys:
            shard.put(canonical(key), 1)
        names = [broadcast.name("relation", list(each)) for each in relations]
        names += [broadcast.name("under", prefix) for prefix in prefixes]
        shard.batch(*[(name, [Invalidate(refetch="none")]) for name in names])
        shard.settle()
        assert not shard.machine._sweeps
        expected = {
            canonical(key)
            for key in keys
            if any(is_related(parse(canonical(key)), *each) for each in relations)
            or any(partial_match(parse(canonical(key)), prefix) for prefix in prefixes)
        }
        assert invalidated(shard) == expected


class TestInvalidations:
    @pytest.fixture(autouse=True)
    def cut(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Cut what is done with many entries into slices of two."""
        monkeypatch.setattr(sweep, "SLICE", 2)
        monkeypatch.setattr(shard_state, "SLICE", 2)

    def filled(self, count: int) -> Shard:
        shard = Shard(TYPED)
        for number in range(count):
            shard.put(f'["users",{number}]', number)
        return shard

    def test_a_slice_at_a_time(self) -> None:
        shard = self.filled(7)
        shard.batch(('#u["users"]', [Invalidate(refetch="none")]))
        counts = [len(invalidated(shard))]
        while shard.machine.deadline() == shard.now:
            shard.wake(shard.now)
            counts.append(len(invalidated(shard)))
        assert counts[:4] == [2, 4, 6, 7]

    def test_what_is_written_before_its_turn_is_not_in_doubt(self) -> None:
        shard = Shard()
        for number in range(6):
            shard.put(f'["x",{number}]', number)
        shard.now += 5
        shard.batch(('#u["x"]', [Invalidate()]))
        shard.now += 5
        shard.put('["x",5]', "new")
        shard.settle()
        assert invalidated(shard) == {f'["x",{number}]' for number in range(5)}

    def test_what_is_gone_or_has_come_before_its_turn_is_left_alone(self) -> None:
        shard = self.filled(6)
        shard.batch(('#u["users"]', [Invalidate(refetch="all")]))
        shard.ask(lambda n: Erase(n, "e", '["users",5]'))
        shard.put('["users",6]', "new")
        shard.settle()
        assert invalidated(shard) == {f'["users",{number}]' for number in range(5)}
        assert [fetch.key for fetch in shard.fetches] == [f'["users",{number}]' for number in range(5)]

    def test_watched_ones_are_fetched_and_told(self) -> None:
        shard = self.filled(5)
        for number in (0, 4):
            shard.watch(f'["users",{number}]')
        shard.items()
        shard.batch(
            ('#r["user",4]', [Invalidate()]), ('#u["users",0]', [Invalidate()]), ('#u["users",1]', [Invalidate()])
        )
        shard.settle()
        assert sorted(fetch.key for fetch in shard.fetches) == ['["users",0]', '["users",4]']
        told = [item.key for item in shard.items() if isinstance(item, Meta) and item.invalidated]
        assert sorted(told) == ['["users",0]', '["users",4]']

    @pytest.mark.parametrize(
        ("refetch", "fetched"), [("active", [0]), ("inactive", [1]), ("all", [0, 1]), ("none", [])]
    )
    def test_which_are_fetched(self, refetch: str, fetched: list[int]) -> None:
        shard = self.filled(2)
        shard.watch('["users",0]')
        shard.batch(('#u["users"]', [Invalidate(refetch=refetch)]))
        shard.settle()
        assert sorted(fetch.key for fetch in shard.fetches) == [f'["users",{number}]' for number in fetched]

    def test_an_answer_waits_for_the_last_slice(self) -> None:
        shard = self.filled(5)
        assert shard.ask(lambda n: Act(n, "invalidate", '["users"]')) is None
        asked = shard.next_id
        shard.settle()
        assert shard.answers() == {asked: Matched(5)}

    def test_actions_that_meet_half_done_ones_follow_them(self) -> None:
        shard = self.filled(5)
        assert shard.ask(lambda n: Act(n, "invalidate", '["users"]')) is None
        assert shard.ask(lambda n: Act(n, "remove", '["users"]', stale=True)) is None
        asked = shard.next_id
        shard.settle()
        assert shard.answers()[asked] == Matched(5)
        assert list(shard.machine.cache) == []


class TestRelations:
    def test_one_that_is_not_declared_is_counted(self, shard: Shard) -> None:
        shard.batch(('#r["order",7]', [Invalidate()]))
        assert shard.machine.operations_dropped == {"unknown_relation": 1}

    @pytest.mark.parametrize("type_", [[], {"a": 1}, 5, None])
    def test_nor_one_whose_type_is_no_text(self, shard: Shard, type_: Any) -> None:
        shard.batch((broadcast.name("relation", [type_, 7]), [Invalidate()]))
        assert shard.machine.operations_dropped == {"unknown_relation": 1}

    @pytest.mark.parametrize("known", [None, [], {"a": 1}, True])
    def test_an_id_may_be_anything(self, shard: Shard, known: Any) -> None:
        shard.put(canonical(["users", known]), 1)
        shard.put('["users",7]', 1)
        shard.batch((broadcast.name("relation", ["user", known]), [Invalidate(refetch="none")]))
        assert canonical(["users", known]) in invalidated(shard)


class TestKeysOfRules:
    def test_an_exact_invalidation_is_of_one_entry(self, shard: Shard) -> None:
        shard.put('["x"]', 1)
        shard.put('["x",1]', 1)
        shard.batch(('["x"]', [Invalidate(exact=True)]), ('["none"]', [Invalidate(exact=True)]))
        assert invalidated(shard) == {'["x"]'}

    def test_it_follows_what_its_window_did_with_the_entry(self, shard: Shard) -> None:
        shard.batch(('["x"]', [Invalidate(exact=True), Set(b"1")]))
        assert shard.data('["x"]') == 1
        assert invalidated(shard) == {'["x"]'}
        assert shard.machine.view('["x"]').version == BASE + 1

    def test_one_of_what_is_watched_and_static_fetches_nothing(self) -> None:
        query = {"key": ["s"], "service": "api", "path": "/s", "stale_time": "static"}
        shard = Shard({**DOCUMENT, "queries": [query]})
        shard.watch('["s"]')
        shard.fetched(1)
        shard.batch(('#u["s"]', [Invalidate(refetch="all")]))
        assert shard.fetches == []
        assert not shard.machine.view('["s"]').is_invalidated

    def test_doubts_say_since_when(self, shard: Shard) -> None:
        shard.put('["x"]', 1)
        shard.now += 500
        shard.batch(('#u["x"]', [Invalidate()]), origin=1)
        shard.now += 500
        shard.batch(('#u["x"]', [Invalidate()]))
        assert shard.machine.view('["x"]').doubt == ("stream:events/people gone", int(START + 500))
