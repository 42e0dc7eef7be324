"""Folding loses nothing, and patches tell exactly what operations did."""

from itertools import pairwise
from typing import Any

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core import json_patch
from cluster.core.entry import Value
from cluster.core.fold import Fold
from cluster.core.operation import (
    Append,
    Delete,
    Guard,
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
    json_equal,
)

POINTERS = [
    "",
    "/a",
    "/a",
    "/b",
    "/a/b",
    "/list",
    "/list",
    "/list/0",
    "/list/1",
    "/list/-",
    "/list/0/n",
    "/x/y",
    "/x/z",
    "/0",
    "/-",
]

ids = st.sampled_from([1, 1.0, 2, 3, "1", True, None])
scalars = st.sampled_from([None, True, False, 0, 1, 1.5, -2, "", "s", 1.0])
objects = st.fixed_dictionaries(
    {},
    optional={
        "id": ids,
        "n": st.one_of(st.integers(-2, 2), st.just("x")),
        "g": st.sampled_from([1, True]),
        "b": scalars,
    },
)
lists = st.lists(st.one_of(objects, objects, scalars), max_size=5)
values = st.one_of(
    scalars,
    objects,
    lists,
    st.fixed_dictionaries(
        {},
        optional={
            "a": st.one_of(scalars, objects, lists),
            "b": scalars,
            "list": lists,
            "x": objects,
            "version": scalars,
        },
    ),
)
documents = st.one_of(
    st.none(),
    values,
    lists,
    st.fixed_dictionaries(
        {"list": lists, "a": st.one_of(objects, lists, scalars)}, optional={"b": scalars, "x": objects}
    ),
).map(lambda value: None if value is None else orjson.dumps(value))
json = values.map(orjson.dumps)
object_json = st.one_of(objects.map(orjson.dumps), objects.map(orjson.dumps), json)
where_json = st.one_of(
    st.fixed_dictionaries({"id": ids}), st.fixed_dictionaries({"g": st.sampled_from([1, True])}), objects
).map(orjson.dumps)
items = st.lists(st.one_of(objects, scalars).map(orjson.dumps), min_size=1, max_size=3).map(tuple)
guards = st.one_of(
    st.none(),
    st.none(),
    st.none(),
    st.builds(Guard, st.sampled_from(["", "/version", "/a"]), st.sampled_from([0, 1, 2, "1", "2"]).map(orjson.dumps)),
)
common: dict[str, Any] = {
    "at": st.sampled_from(POINTERS),
    "missing": st.sampled_from(list(Missing)),
    "default": st.one_of(st.none(), st.none(), st.sampled_from([b"{}", b"[]", b'{"a":[],"list":[1]}', b"5"])),
    "guard": guards,
}
by = st.sampled_from(["id", "id", "id", "n"])
bounds = st.sampled_from([0, 0, 1, 2, 3])
operations = st.one_of(
    st.builds(Set, json, **common),
    st.builds(Merge, object_json, **common),
    st.builds(Append, items, max_items=bounds, by=by, **common),
    st.builds(Prepend, items, max_items=bounds, by=by, **common),
    st.builds(Upsert, items, by=by, **common),
    st.builds(MergeWhere, where_json, object_json, **common),
    st.builds(Remove, where_json, **common),
    st.builds(Increment, by=st.sampled_from([1, -1, 2, 0.5]), **common),
    st.builds(Delete, st.sampled_from(POINTERS), guards),
)


numbered = st.fixed_dictionaries(
    {"id": st.sampled_from([1, 2, 3, 4, 5, "1", True, None])}, optional={"n": st.integers(0, 2), "l": st.just([])}
)
"""Items of lists that are gone through again and again."""


def on_lists(bound: int, *, is_calm: bool) -> st.SearchStrategy[Operation]:
    """Operations that go through a list; unless it is calm through two, and what changes items between them."""
    at = st.sampled_from(["/list"] if is_calm else ["/list", "/list", "/a"])
    parts = st.sampled_from([f"/list/{part}" for part in ("0", "1", "-", "0/id", "1/id", "1/n", "0/l")])
    one = numbered.map(orjson.dumps).map(lambda item: (item,))
    where = st.sampled_from([b'{"id":%d}' % known for known in (1, 2, 3, 4, 5)] + [b'{"n":1}', b'{"n":1,"id":2}'])
    limit = st.sampled_from([0, bound])
    by = st.sampled_from(["id"] if is_calm else ["id", "id", "id", "n"])
    return st.one_of(
        st.builds(Append, one, at, limit, by),
        st.builds(Prepend, one, at, limit, by),
        st.builds(Upsert, one, at, by),
        st.builds(MergeWhere, where, st.just(b'{"n":2}'), at),
        st.builds(Remove, where, at),
        st.builds(MergeWhere, where, numbered.map(orjson.dumps), at)
        if is_calm
        else st.one_of(
            st.builds(Set, st.one_of(numbered, st.integers(1, 5)).map(orjson.dumps), parts),
            st.builds(Merge, numbered.map(orjson.dumps), parts),
            st.builds(Append, one, parts),
            st.builds(Delete, parts),
        ),
    )


def similar(draw: Any) -> list[Operation]:
    """A run that a fold finds much to do in: few pointers, few ways to treat an absent entry."""
    missing = draw(st.sampled_from(list(Missing)))
    default = draw(common["default"])
    pointers = draw(st.lists(st.sampled_from(POINTERS), min_size=1, max_size=3))
    bound = draw(bounds)
    narrow = {
        "at": st.sampled_from(pointers),
        "missing": st.just(missing) if draw(st.booleans()) else common["missing"],
        "default": st.just(default),
    }
    kinds = st.one_of(
        st.builds(Set, json, **narrow),
        st.builds(Merge, object_json, **narrow),
        st.builds(Append, items, max_items=st.just(bound), **narrow),
        st.builds(Prepend, items, max_items=st.just(bound), **narrow),
        st.builds(Upsert, items, **narrow),
        st.builds(MergeWhere, where_json, object_json, **narrow),
        st.builds(Remove, where_json, **narrow),
        st.builds(Increment, by=st.sampled_from([1, -1, 2]), **narrow),
        st.builds(Delete, st.sampled_from(pointers)),
    )
    chosen: list[Operation] = draw(st.lists(kinds, max_size=14))
    return chosen


mixes = st.one_of(st.lists(operations, max_size=10), st.composite(similar)())


def after(operations: list[Operation], document: bytes | None) -> Any:
    value: Value | None = None if document is None else Value.from_json(document)
    for operation in operations:
        value = apply_all([operation], value).value
    return None if value is None else [value.object()]


def folded(operations: list[Operation]) -> Fold:
    fold = Fold()
    size = sum(fold.add(operation) for operation in operations)
    assert size == fold.size
    assert fold.count == len(operations)
    return fold


def assert_same(operations: list[Operation], fewer: list[Operation], document: bytes | None) -> None:
    want, got = after(operations, document), after(fewer, document)
    assert json_equal(want, got), f"one by one {want}, folded {got} by {fewer}"


shared = st.one_of(
    [
        st.lists(on_lists(bound, is_calm=is_calm), min_size=3, max_size=12)
        for bound in (2, 4)
        for is_calm in (True, False)
    ]
)
listed = st.fixed_dictionaries({"list": st.lists(numbered, max_size=8), "a": st.lists(numbered, max_size=3)})


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.tuples(shared, listed.map(orjson.dumps)), st.tuples(mixes, documents)))
def test_a_batch_is_its_operations_one_by_one(case: tuple[list[Operation], bytes | None]) -> None:
    batch, document = case
    one: Value | None = None if document is None else Value.from_json(document)
    patch: list[bytes] | None = []
    dropped: list[str] = []
    for operation in batch:
        outcome = apply_all([operation], one)
        one = outcome.value
        dropped += outcome.dropped
        if outcome.changed:
            patch = None if outcome.patch is None or patch is None else [*patch, *outcome.patch]
    value = None if document is None else Value.from_json(document)
    outcome = apply_all(batch, value)
    assert (None if one is None else one.json()) == (None if outcome.value is None else outcome.value.json())
    assert (outcome.patch, outcome.dropped) == (patch, dropped)


@settings(max_examples=500, deadline=None)
@given(mixes, documents)
def test_a_fold_has_the_effect_of_its_operations(mix: list[Operation], document: bytes | None) -> None:
    fewer = folded(mix).operations()
    assert len(fewer) <= len(mix)
    assert_same(mix, fewer, document)


@settings(max_examples=250, deadline=None)
@given(mixes, documents, st.lists(st.integers(0, 14), max_size=3))
def test_folds_of_folds_do_too(mix: list[Operation], document: bytes | None, cuts: list[int]) -> None:
    whole = Fold()
    size = 0
    edges = sorted({0, len(mix), *(min(cut, len(mix)) for cut in cuts)})
    for start, end in pairwise(edges):
        size += whole.extend(folded(mix[start:end]).operations(), end - start)
    assert size == whole.size
    assert whole.count == len(mix)
    assert_same(mix, whole.operations(), document)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([Append, Prepend]),
    st.integers(1, 4),
    st.lists(
        st.one_of(
            st.integers(0, 30).map(lambda known: {"id": known}),
            st.integers(0, 6).map(lambda known: {"id": known}),
            st.integers(0, 3),
        ),
        min_size=60,
        max_size=160,
    ),
    lists,
    st.integers(0, 160),
)
def test_long_runs_on_bounded_lists(kind: Any, bound: int, added: list[Any], stored: list[Any], cut: int) -> None:
    run = [
        kind((orjson.dumps({**item, "v": n} if isinstance(item, dict) else item),), "", bound)
        for n, item in enumerate(added)
    ]
    document = orjson.dumps(stored)
    assert_same(run, folded(run).operations(), document)
    whole = Fold()
    whole.extend(folded(run[:cut]).operations(), cut)
    whole.extend(folded(run[cut:]).operations(), max(0, len(run) - cut))
    assert_same(run, whole.operations(), document)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=60, max_size=160), lists)
def test_long_runs_of_upserts_and_conditional_merges(changes: list[tuple[int, int]], stored: list[Any]) -> None:
    upserts: list[Operation] = [Upsert((orjson.dumps({"id": known, "n": n}),)) for known, n in changes]
    merges: list[Operation] = [MergeWhere(orjson.dumps({"id": known}), orjson.dumps({"n": n})) for known, n in changes]
    document = orjson.dumps(stored)
    for run in (upserts, merges, [*merges, *upserts]):
        fewer = folded(run).operations()
        assert sum(len(one.items) if isinstance(one, Upsert) else 1 for one in fewer) <= 13
        assert_same(run, fewer, document)


@settings(max_examples=350, deadline=None)
@given(mixes, documents)
def test_a_patch_leads_from_the_old_value_to_the_new(mix: list[Operation], document: bytes | None) -> None:
    value = None if document is None else Value.from_json(document)
    outcome = apply_all(mix, value)
    if document is None:
        if outcome.value is not None:
            assert outcome.patch is None
        return
    if outcome.value is None or outcome.patch is None:
        assert outcome.changed
        return
    patched = json_patch.apply(orjson.loads(document), [orjson.loads(member) for member in outcome.patch])
    assert json_equal(patched, orjson.loads(outcome.value.json()))
    assert outcome.changed == bool(outcome.patch)


@settings(max_examples=500, deadline=None)
@given(operations, documents)
def test_what_is_dropped_changes_nothing(operation: Operation, document: bytes | None) -> None:
    outcome = apply_all([operation], None if document is None else Value.from_json(document))
    if outcome.dropped:
        assert not outcome.changed
        assert (outcome.value is None) == (document is None)
        if document is not None and outcome.value is not None:
            assert json_equal(outcome.value.object(), orjson.loads(document))
