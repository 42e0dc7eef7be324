"""Where entities occur in what is cached: found after every change, wherever they are held or referred to."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core.entity_index import EntityIndex, EntityType, Identity
from cluster.core.entry import Value
from cluster.core.json_pointer import escape
from cluster.core.operation import (
    Append,
    Delete,
    Increment,
    Merge,
    MergeWhere,
    Missing,
    Operation,
    Prepend,
    Remove,
    Set,
    Upsert,
    apply_all,
)
from cluster.core.query_key import parse

USER = EntityType("user", "id", ("userId", "authorId"), ("user", "author"), (("users",), ("users", "list")))
ORDER = EntityType("order", "no", ("order/no",), ("order",), (("orders",),))
TYPES = {"user": USER, "order": ORDER}
KEYS = ['["users"]', '["users",1]', '["users","list",{}]', '["orders"]', '["mixed"]', '["other",1]']
IDS = [1, 2, "1", True, False, 1.5, "ü", None]
IDENTITIES: list[Identity] = [
    (name, (known,) if isinstance(known, bool) else known) for name in TYPES for known in IDS if known is not None
]
COUNTS = st.integers(0, 2)

NAMES = st.sampled_from(["id", "no", "user", "author", "userId", "authorId", "order", "order/no", "x"])
VALUES = st.recursive(
    st.sampled_from(IDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=10,
)
ENTITIES = st.fixed_dictionaries({"id": st.sampled_from(IDS)}, optional={"no": st.sampled_from(IDS), "x": VALUES})
REFERENCES = st.fixed_dictionaries({"userId": st.sampled_from(IDS)}, optional={"user": ENTITIES, "x": VALUES})
LISTS = st.lists(ENTITIES | REFERENCES, max_size=4)
PAGED = st.lists(LISTS, max_size=3).map(lambda pages: {"pages": pages, "page_params": list(range(len(pages)))})
DATA = VALUES | ENTITIES | REFERENCES | LISTS | PAGED


def pointers(value: Any, at: str = "") -> list[str]:
    """Return where anything stands in a value, and where something could be added."""
    found = [at]
    if isinstance(value, dict):
        found.append(f"{at}/x")
        for name, item in value.items():
            found.extend(pointers(item, f"{at}/{escape(name)}"))
    elif isinstance(value, list):
        found.append(f"{at}/-")
        for position, item in enumerate(value):
            found.extend(pointers(item, f"{at}/{position}"))
    return found


@st.composite
def operations(draw: Any, value: Any) -> Operation:
    at = draw(st.sampled_from([at for at in pointers(value) if at not in ("/pages", "/page_params")]))
    if draw(st.booleans()):
        at = f"{at}/{escape(draw(NAMES))}"
    data = orjson.dumps(draw(DATA))
    some = tuple(orjson.dumps(item) for item in draw(st.lists(VALUES | ENTITIES | REFERENCES, min_size=1, max_size=3)))
    members = orjson.dumps(draw(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3)))
    where = orjson.dumps(draw(st.dictionaries(st.sampled_from(["id", "userId"]), st.sampled_from(IDS), min_size=1)))
    bound = draw(st.integers(0, 3))
    return draw(
        st.sampled_from(
            [
                Set(data, at),
                Merge(members, at, Missing.CREATE),
                Append(some, at, bound, missing=Missing.CREATE),
                Prepend(some, at, bound),
                Upsert(some, at),
                MergeWhere(where, members, at),
                Remove(where, at),
                Increment(at, draw(st.sampled_from([1, -1, 0.5]))),
                Delete(at),
            ]
        )
    )


class Held:
    """Entries, and the index kept up as a shard keeps it."""

    def __init__(self, types: dict[str, EntityType]) -> None:
        self.index = EntityIndex(types)
        self.values: dict[str, Value] = {}

    def covering(self, key: str) -> tuple[EntityType, ...]:
        return self.index.covering(parse(key))

    def put(self, key: str, data: Any) -> None:
        self.values[key] = Value.from_json(orjson.dumps(data))
        self.index.replaced(key, self.covering(key), orjson.dumps(data))

    def drop(self, key: str) -> None:
        if self.values.pop(key, None) is not None:
            self.index.removed(key)

    def edit(self, key: str, *edits: Operation) -> None:
        outcome = apply_all(list(edits), self.values.get(key))
        if not outcome.changed:
            return
        if outcome.value is None:
            self.drop(key)
            return
        self.values[key] = outcome.value
        if outcome.patch is None:
            self.index.replaced(key, self.covering(key), outcome.value.json())
        else:
            self.index.edited(key, self.covering(key), outcome.patch)

    def expected(self, identity: Identity) -> dict[str, list[Any]]:
        """Look through everything."""
        found = {
            key: self.index.scan(self.covering(key), orjson.loads(value.json())).get(identity, [])
            for key, value in self.values.items()
        }
        return {key: places for key, places in found.items() if places}

    def found(self, identity: Identity) -> dict[str, list[Any]]:
        found = {
            key: self.index.places(key, self.covering(key), self.values[key].object(), *identity)
            for key in self.index.entries(*identity)
        }
        return {key: places for key, places in found.items() if places}

    def check(self) -> None:
        for identity in IDENTITIES:
            assert self.expected(identity).keys() <= set(self.index.entries(*identity)), identity

    def check_places(self) -> None:
        for identity in IDENTITIES:
            assert self.found(identity) == self.expected(identity), identity
        for identity in IDENTITIES:  # what was looked through is known exactly
            assert set(self.index.entries(*identity)) >= self.expected(identity).keys()


@settings(max_examples=300)
@given(st.data())
def test_after_any_changes_it_finds_what_looking_through_everything_finds(data: Any) -> None:
    held = Held(TYPES)
    for _ in range(data.draw(st.integers(1, 8))):
        key = data.draw(st.sampled_from(KEYS))
        action = data.draw(st.sampled_from(["put", "edit", "edit", "edit", "drop"]))
        if action == "put" or (action == "edit" and key not in held.values):
            held.put(key, data.draw(DATA))
        elif action == "drop":
            held.drop(key)
        else:
            value = held.values[key].object()
            held.edit(key, *data.draw(st.lists(operations(value), min_size=1, max_size=2)))
        held.check()
        if data.draw(st.booleans()):
            held.check_places()
    held.check_places()
    for key in list(held.values):
        held.drop(key)
    assert (held.index._entries, held.index._held, held.index._known, held.index._places) == ({}, {}, {}, {})


@pytest.fixture
def held() -> Held:
    return Held(TYPES)


def places(held: Held, type_: str, identity: Any) -> dict[str, list[Any]]:
    return held.found((type_, identity))


class TestOccurrences:
    def test_held_by_a_member_that_is_named(self, held: Held) -> None:
        held.put('["a"]', {"x": [{"author": {"id": 7}}], "user": {"id": 7}, "other": {"id": 7}})
        assert places(held, "user", 7) == {'["a"]': [("/user", True), ("/x/0/author", True)]}

    def test_held_by_one_that_holds_a_list_of_them(self, held: Held) -> None:
        held.put('["a"]', {"author": [{"id": 6}, {"id": 7}, [{"id": 7}], 7], "x": {"user": []}})
        assert places(held, "user", 7) == {'["a"]': [("/author/1", True)]}
        held.edit('["a"]', Remove(b'{"id":6}', "/author"), Append((b'{"id":8}',), "/x/user"))
        assert places(held, "user", 8) == {'["a"]': [("/x/user/0", True)]}
        assert places(held, "user", 7) == {'["a"]': [("/author/0", True)]}
        held.edit('["a"]', Set(b'{"id":9}', "/author/0"))
        assert places(held, "user", 9) == {'["a"]': [("/author/0", True)]}
        assert places(held, "user", 7) == {}

    def test_referred_to_by_a_key(self, held: Held) -> None:
        held.put('["a"]', [{"userId": 7}, {"authorId": 7, "user": {"id": 7}}, {"userId": 8, "user": {"id": 7}}])
        assert places(held, "user", 7) == {'["a"]': [("/0/user", False), ("/1/user", True), ("/2/user", True)]}
        assert places(held, "user", 8) == {'["a"]': [("/2/user", False)]}

    def test_held_under_the_name_of_the_type_where_no_object_members_are_named(self) -> None:
        held = Held({"tag": EntityType("tag", keys=("tagId",))})
        held.put('["a"]', [{"tagId": 1}, {"tagId": 1, "tag": {"id": 1}}, {"tag": {"id": 1}}])
        assert places(held, "tag", 1) == {'["a"]': [("/0/tag", False), ("/1/tag", True)]}

    @pytest.mark.parametrize("key", ['["users"]', '["users",{"role":"x"}]', '["users","list"]', '["users","list",1]'])
    def test_the_data_of_a_query_of_them(self, held: Held, key: str) -> None:
        held.put(key, {"id": 7})
        assert places(held, "user", 7) == {key: [("", True)]}
        held.put(key, [{"id": 6}, {"id": 7}, 5, {"id": 7}])
        assert places(held, "user", 7) == {key: [("/1", True), ("/3", True)]}
        held.put(key, {"pages": [[{"id": 6}], [{"id": 7}], 5], "page_params": [0, 1, 2]})
        assert places(held, "user", 7) == {key: [("/pages/1/0", True)]}

    def test_an_entity_may_have_pages_of_its_own(self, held: Held) -> None:
        held.put('["users",7]', {"id": 7, "pages": ["home", "blog"]})
        assert places(held, "user", 7) == {'["users",7]': [("", True)]}

    @pytest.mark.parametrize("key", ["[]", '["user"]', '["users","list",1,2]', '["users",1,2]', '[["users"]]'])
    def test_and_of_no_others(self, held: Held, key: str) -> None:
        held.put(key, [{"id": 7}])
        assert places(held, "user", 7) == {}
        assert held.index.entries("user", 7) == []

    def test_ids_are_told_apart_by_type_as_json_does(self, held: Held) -> None:
        held.put('["users"]', [{"id": 1}, {"id": "1"}, {"id": True}, {"id": 1.0}, {"id": None}, {"id": [1]}, {}])
        assert places(held, "user", 1) == {'["users"]': [("/0", True), ("/3", True)]}
        assert places(held, "user", "1") == {'["users"]': [("/1", True)]}
        assert places(held, "user", (True,)) == {'["users"]': [("/2", True)]}
        assert places(held, "user", None) == {}

    def test_names_with_slashes(self, held: Held) -> None:
        held.put('["a"]', {"a/b": {"order/no": 5}, "c~": {"order": {"no": 5}}})
        assert places(held, "order", 5) == {'["a"]': [("/a~1b/order", False), ("/c~0/order", True)]}

    def test_one_type_for_each_that_covers_a_key(self) -> None:
        both = {"a": EntityType("a", queries=(("k",),)), "b": EntityType("b", "no", queries=(("k",),))}
        held = Held(both)
        held.put('["k"]', {"id": 1, "no": 2})
        assert places(held, "a", 1) == places(held, "b", 2) == {'["k"]': [("", True)]}


class TestHolders:
    def test_are_the_entries_with_entities_of_some_types(self, held: Held) -> None:
        held.put('["a"]', {"userId": 1})
        held.put('["b"]', {"order": {"no": 1}})
        held.put('["c"]', {"user": {"id": 2}, "order": {"no": 1}})
        held.put('["d"]', {"x": 1})
        assert list(held.index.holders({"user"})) == ['["a"]', '["c"]']
        assert list(held.index.holders({"order"})) == ['["b"]', '["c"]']
        assert list(held.index.holders({"user", "order"})) == ['["a"]', '["b"]', '["c"]']
        assert list(held.index.holders(set())) == []


class TestChanges:
    def test_an_item_that_comes_is_found_and_one_that_goes_no_more(self, held: Held) -> None:
        held.put('["users"]', [{"id": 1}])
        held.edit('["users"]', Prepend((b'{"id":2}',)))
        assert places(held, "user", 2) == {'["users"]': [("/0", True)]}
        assert places(held, "user", 1) == {'["users"]': [("/1", True)]}
        held.edit('["users"]', Remove(b'{"id":2}'))
        assert places(held, "user", 2) == {}
        assert places(held, "user", 1) == {'["users"]': [("/0", True)]}

    def test_an_id_that_changes(self, held: Held) -> None:
        held.put('["a"]', {"author": {"id": 1}})
        held.edit('["a"]', Set(b"2", "/author/id"))
        assert places(held, "user", 2) == {'["a"]': [("/author", True)]}
        held.edit('["a"]', Increment("/author/id", 1))
        assert places(held, "user", 3) == {'["a"]': [("/author", True)]}
        assert places(held, "user", 1) == {}

    def test_a_reference_that_changes(self, held: Held) -> None:
        held.put('["a"]', {"userId": 1, "user": {"id": 1}})
        held.edit('["a"]', Set(b"2", "/userId"))
        assert places(held, "user", 1) == {'["a"]': [("/user", True)]}
        assert places(held, "user", 2) == {'["a"]': [("/user", False)]}

    def test_a_page_that_comes(self, held: Held) -> None:
        held.put('["users"]', {"pages": [[{"id": 1}]], "page_params": [0]})
        held.edit('["users"]', Set(b'[{"id":2}]', "/pages/1"))
        assert places(held, "user", 2) == {'["users"]': [("/pages/1/0", True)]}

    def test_all_pages_at_once(self, held: Held) -> None:
        held.put('["users"]', {"pages": [], "page_params": []})
        held.edit('["users"]', Set(b'[[{"id":2}]]', "/pages"))
        assert places(held, "user", 2) == {'["users"]': [("/pages/0/0", True)]}

    @pytest.mark.parametrize("json", [b"{", b'{"userId":', b'"\xff"', b"[" * 300, b'{"userId":1'])
    def test_what_only_looks_like_json_holds_nothing(self, held: Held, json: bytes) -> None:
        held.put('["users"]', {"id": 1})
        held.index.replaced('["users"]', held.covering('["users"]'), json)
        held.index.replaced('["a"]', (), json)
        assert held.index.entries("user", 1) == []

    @pytest.mark.parametrize("text", ['{"userId" : 1}', '{"x":"userId", "user": {"id": 1 }}', '{"\\u0075serId":1}'])
    def test_however_the_text_is_written(self, held: Held, text: str) -> None:
        held.index.replaced('["a"]', (), text.encode())
        assert held.index.entries("user", 1) == ['["a"]']

    @pytest.mark.parametrize("text", ['{"überId":1}', '{"\\u00fcberId":1}'])
    def test_names_that_are_not_ascii(self, text: str) -> None:
        held = Held({"user": EntityType("user", keys=("überId",))})
        held.values['["a"]'] = Value.from_json(text.encode())
        held.index.replaced('["a"]', (), text.encode())
        assert held.index.entries("user", 1) == ['["a"]']
        held.values['["b"]'] = Value.from_json(b"[]")
        held.edit('["b"]', Append((text.encode(),)))
        assert held.index.entries("user", 1) == ['["a"]', '["b"]']

    def test_what_mentions_no_declared_name_is_not_looked_at(self, held: Held) -> None:
        held.put('["a"]', {"x": [{"id": 1}], "y": "userId"})
        assert held.index._held == {}
        held.put('["a"]', {"userId": 1})
        held.put('["a"]', {"x": 1})
        assert held.index._held == {}
