"""What each operation does to a value, what it says it did, and when it does nothing."""

from typing import Any

import orjson
import pytest

from cluster.core import json_patch
from cluster.core.entry import Value
from cluster.core.operation import (
    Append,
    Delete,
    Guard,
    Increment,
    Invalidate,
    Merge,
    MergeWhere,
    Missing,
    Operation,
    Outcome,
    Prepend,
    Remove,
    Set,
    Upsert,
    apply_all,
    held_bytes,
    json_equal,
    parse_operations,
)
from cluster.core.work import MAX_OPERATIONS, MAX_STEPS, Work
from cluster.errors import LimitError, RequestError

CREATE, SKIP = Missing.CREATE, Missing.SKIP


def run(document: Any, *operations: Operation) -> Outcome:
    """Apply to a present value, and check that the patch tells the same."""
    before = orjson.dumps(document)
    outcome = apply_all(list(operations), Value.from_json(before))
    if outcome.value is not None and outcome.patch is not None:
        patched = json_patch.apply(orjson.loads(before), [orjson.loads(member) for member in outcome.patch])
        assert patched == orjson.loads(outcome.value.json())
    return outcome


def result(document: Any, *operations: Operation) -> Any:
    outcome = run(document, *operations)
    assert outcome.dropped == []
    assert outcome.value is not None
    return orjson.loads(outcome.value.json())


def made(*operations: Operation) -> Any:
    outcome = apply_all(list(operations), None)
    if outcome.value is None:
        return None
    assert outcome.patch is None
    return [orjson.loads(outcome.value.json())]


def dropped(document: Any, operation: Operation) -> list[str]:
    outcome = run(document, operation)
    assert outcome.value is not None
    assert outcome.value.object() == document
    assert not outcome.changed
    return outcome.dropped


ITEMS = [{"id": 1, "v": "a"}, {"id": 2, "v": "b"}, 7]

PRESENT: list[tuple[Any, Operation, Any]] = [
    ({"a": 1}, Set(b"[2]"), [2]),
    ({"a": 1}, Set(b"2", "/a"), {"a": 2}),
    ({"a": 1}, Set(b"2", "/b"), {"a": 1, "b": 2}),
    ({"a/b~c": 1}, Set(b"2", "/a~1b~0c"), {"a/b~c": 2}),
    ([1, 2], Set(b"9", "/1"), [1, 9]),
    ([1, 2], Set(b"9", "/2"), [1, 2, 9]),
    ([1, 2], Set(b"9", "/-"), [1, 2, 9]),
    ({"a": 1}, Merge(b'{"a":2,"b":{"c":3}}'), {"a": 2, "b": {"c": 3}}),
    ({"a": {"x": 1}}, Merge(b'{"x":2}', "/a"), {"a": {"x": 2}}),
    ({}, Merge(b'{"x":2}', "/a"), {"a": {"x": 2}}),
    ([1], Append((b"2", b"3")), [1, 2, 3]),
    ({}, Append((b"2",), "/l"), {"l": [2]}),
    (ITEMS, Append((b'{"id":1,"v":"z"}',)), [{"id": 1, "v": "z"}, {"id": 2, "v": "b"}, 7]),
    ([1, 2, 3], Append((b"4", b"5"), max_items=3), [3, 4, 5]),
    ([1, 2, 3], Append((b"4",), max_items=2), [3, 4]),
    ([1, 2, 3], Append((b"4",) * 50, max_items=2), [4, 4]),
    ([{"id": 1}, {"id": 2}], Append((b'{"id":3}', b'{"id":1}'), max_items=2), [{"id": 3}, {"id": 1}]),
    ([{"id": 1}, 5, 6], Append((b'{"id":1,"n":0}',), max_items=2), [5, 6]),
    ([{"k": 1, "id": 1}], Append((b'{"k":2,"id":1}',), by="k"), [{"k": 1, "id": 1}, {"k": 2, "id": 1}]),
    ([{"id": 1}], Append((b'{"id":1.0,"n":0}',)), [{"id": 1.0, "n": 0}]),
    ([{"id": 1}], Append((b'{"id":true}',)), [{"id": 1}, {"id": True}]),
    ([{"id": 1}], Append((b'{"id":"1"}',)), [{"id": 1}, {"id": "1"}]),
    ([{"id": None}, {"id": [1]}], Append((b'{"id":null}', b'{"id":[1]}')), [{"id": None}, {"id": [1]}] * 2),
    ([1], Prepend((b"2", b"3")), [3, 2, 1]),
    ([1, 2, 3], Prepend((b"4", b"5"), max_items=3), [5, 4, 1]),
    (ITEMS, Prepend((b'{"id":2}',)), [{"id": 1, "v": "a"}, {"id": 2}, 7]),
    ({}, Prepend((b"1", b"2"), "/l"), {"l": [2, 1]}),
    (ITEMS, Upsert((b'{"id":2}', b'{"id":3}')), [{"id": 1, "v": "a"}, {"id": 2}, 7, {"id": 3}]),
    (ITEMS, MergeWhere(b'{"id":2}', b'{"w":0}'), [{"id": 1, "v": "a"}, {"id": 2, "v": "b", "w": 0}, 7]),
    (
        [{"g": 1}, {"g": 1.0}, {"g": True}],
        MergeWhere(b'{"g":1}', b'{"x":0}'),
        [{"g": 1, "x": 0}, {"g": 1.0, "x": 0}, {"g": True}],
    ),
    ([{"a": 1, "b": 1}, {"a": 1}], MergeWhere(b'{"a":1,"b":1}', b'{"x":0}'), [{"a": 1, "b": 1, "x": 0}, {"a": 1}]),
    (ITEMS, Remove(b'{"id":1}'), [{"id": 2, "v": "b"}, 7]),
    ([{"g": 1}, {"g": 2}, {"g": 1}], Remove(b'{"g":1}'), [{"g": 2}]),
    ({"n": 1}, Increment("/n", 2), {"n": 3}),
    ({"n": 1}, Increment("/n", 0.5), {"n": 1.5}),
    ({}, Increment("/n", -1), {"n": -1}),
    (4, Increment(""), 5),
    ({"n": 2**63 - 1}, Increment("/n"), {"n": float(2**63)}),
    ({"a": 1, "b": 2}, Delete("/a"), {"b": 2}),
    ([1, 2, 3], Delete("/1"), [1, 3]),
]


@pytest.mark.parametrize(("document", "operation", "expected"), PRESENT)
def test_a_present_value(document: Any, operation: Operation, expected: Any) -> None:
    got = result(document, operation)
    assert got == expected
    assert json_equal(got, expected)


MISMATCHES: list[tuple[Any, Operation]] = [
    ({"a": 1}, Set(b"1", "/a/b")),
    ({}, Set(b"1", "/a/b")),
    ([1], Set(b"1", "/3")),
    ([1], Set(b"1", "/01")),
    ([1], Set(b"1", "/x")),
    ([1], Set(b"1", "no pointer")),
    ([1], Merge(b"{}")),
    ({}, Merge(b"[]")),
    ({}, Append((b"1",))),
    ({"a": 1}, Prepend((b"1",), "/a")),
    ({}, Upsert((b"1",), "/a/b")),
    ({}, MergeWhere(b'{"id":1}', b"{}", "/l")),
    ([{"id": 1}], MergeWhere(b'{"id":2}', b'{"n":1}')),
    ([{"id": 1}], MergeWhere(b"[]", b'{"n":1}')),
    ([{"id": 1}], MergeWhere(b'{"id":1}', b"3")),
    ([{"id": 1}], Remove(b'{"id":true}')),
    ([{"id": 1}], Remove(b"1")),
    ({"n": "1"}, Increment("/n")),
    ({"n": True}, Increment("/n")),
    ({"n": 1e308}, Increment("/n", 1e308)),
    ({"a": 1}, Delete("/b")),
    ([1], Delete("/-")),
]


@pytest.mark.parametrize(("document", "operation"), MISMATCHES)
def test_what_does_not_fit_does_nothing(document: Any, operation: Operation) -> None:
    assert dropped(document, operation) == ["mismatch"]


BAD = [b'{"id":"\xff"}', b'"\\ud800"', b"[1,", b"[" * 300 + b"]" * 300, b"[" * 2000 + b"]" * 2000]


@pytest.mark.parametrize("bad", BAD, ids=["utf-8", "surrogate", "cut", "deep", "deeper"])
def test_bytes_that_only_look_like_json_do_nothing(bad: bytes) -> None:
    document = {"l": [{"id": 1}], "n": 1}
    for operation in (
        Set(bad, "/n"),
        Merge(bad),
        Append((bad,), "/l"),
        Prepend((bad,), "/l"),
        Upsert((bad,), "/l"),
        MergeWhere(b'{"id":1}', bad, "/l"),
        MergeWhere(bad, b'{"n":1}', "/l"),
        Remove(bad, "/l"),
        Set(b"2", "/n", guard=Guard("/n", bad)),
    ):
        assert dropped(document, operation) == ["mismatch"], operation
    assert made(Set(b"1", "/a", default=bad)) is None
    assert result(document, Append((bad, b"5"), "/l")) == {"l": [{"id": 1}, 5], "n": 1}


@pytest.mark.parametrize("bad", BAD, ids=["utf-8", "surrogate", "cut", "deep", "deeper"])
def test_edits_of_such_a_value_do_nothing(bad: bytes) -> None:
    outcome = apply_all([Set(bad), Increment("/n"), Append((b"1",)), Delete("/n")], None)
    assert outcome.dropped == ["mismatch"] * 3
    assert outcome.value is not None
    assert outcome.value.json() == bad


def test_deep_values_that_are_accepted_can_be_written() -> None:
    edge = b"[" * 252 + b"]" * 252
    value = apply_all([Set(edge, "/a/b"), Append((edge,), "/c")], Value.from_json(b'{"a":{}}')).value
    assert value is not None
    assert value.json()
    pointer = "/a" * 300
    assert dropped({"a": {}}, Set(b"1", pointer)) == ["mismatch"]
    assert made(Set(b"1", pointer)) is None


class TestAbsent:
    @pytest.mark.parametrize(
        "operation",
        [
            Set(b"1", missing=SKIP),
            Set(b"1", "/a", SKIP),
            Merge(b"{}"),
            Append((b"1",)),
            Prepend((b"1",)),
            Upsert((b"1",)),
            MergeWhere(b"{}", b"{}"),
            Remove(b"{}"),
            Increment("/n"),
            Delete(),
            Delete("/a"),
        ],
    )
    def test_is_left_alone_unless_told(self, operation: Operation) -> None:
        outcome = apply_all([operation], None)
        assert (outcome.value, outcome.changed, outcome.dropped) == (None, False, ["skipped"])

    @pytest.mark.parametrize(
        ("operation", "expected"),
        [
            (Set(b"1"), 1),
            (Set(b"1", "/a/b"), {"a": {"b": 1}}),
            (Set(b"1", "/0"), {"0": 1}),
            (Set(b"1", "/a", default=b'{"z":0}'), {"z": 0, "a": 1}),
            (Merge(b'{"a":1}', missing=CREATE), {"a": 1}),
            (Merge(b'{"a":1}', "/x", CREATE), {"x": {"a": 1}}),
            (Append((b"1", b"2"), missing=CREATE), [1, 2]),
            (Append((b"1",), "/l", missing=CREATE), {"l": [1]}),
            (Append((b"1",), missing=CREATE, default=b"[0]"), [0, 1]),
            (Prepend((b"1", b"2"), missing=CREATE), [2, 1]),
            (Upsert((b'{"id":1}', b'{"id":1,"n":2}'), missing=CREATE), [{"id": 1, "n": 2}]),
            (Increment("", missing=CREATE), 1),
            (Increment("/a/n", 3, CREATE), {"a": {"n": 3}}),
            (Set(b"1", guard=Guard("/v", b"1")), 1),
        ],
    )
    def test_is_created(self, operation: Operation, expected: Any) -> None:
        assert made(operation) == [expected]

    def test_is_not_created_by_what_does_not_fit(self) -> None:
        assert made(Set(b"1", "/a", default=b"5")) is None
        assert made(Remove(b'{"id":1}', missing=CREATE)) is None

    def test_again_after_a_removal(self) -> None:
        outcome = run([1], Delete(), Append((b"2",)), Set(b"3"))
        assert outcome.value is not None
        assert outcome.value.json() == b"3"
        assert outcome.patch is None
        assert outcome.dropped == ["skipped"]


class TestGuards:
    @pytest.mark.parametrize(("stored", "given"), [(5, b"5"), (5, b"4.9"), (5.0, b"5"), ("b", b'"b"'), ("b", b'"a"')])
    def test_what_is_not_greater_is_stale(self, stored: Any, given: bytes) -> None:
        assert dropped({"v": stored, "n": 0}, Set(b"1", "/n", guard=Guard("/v", given))) == ["stale"]

    @pytest.mark.parametrize(
        ("document", "given"),
        [
            ({"v": 5, "n": 0}, b"6"),
            ({"v": "a", "n": 0}, b'"b"'),
            ({"n": 0}, b"1"),
            ({"v": "9", "n": 0}, b"1"),
            ({"v": True, "n": 0}, b"1"),
        ],
        ids=["number", "text", "nothing stored", "other type", "boolean"],
    )
    def test_what_is_greater_or_cannot_be_compared_passes(self, document: Any, given: bytes) -> None:
        assert result(document, Set(b"1", "/n", guard=Guard("/v", given))) == {**document, "n": 1}

    def test_a_removal_may_be_guarded(self) -> None:
        assert dropped({"v": 5}, Delete(guard=Guard("/v", b"5"))) == ["stale"]
        assert run({"v": 5}, Delete(guard=Guard("/v", b"6"))).value is None


class TestWholeValues:
    def test_are_never_decoded(self) -> None:
        outcome = apply_all([Set(b"not json at all")], Value.from_json(b"nor this"))
        assert outcome.value is not None
        assert outcome.value.json() == b"not json at all"
        assert outcome.patch is None

    def test_are_edited_by_what_follows(self) -> None:
        outcome = run({}, Set(b"[1]"), Append((b"2",)))
        assert outcome.value is not None
        assert outcome.value.json() == b"[1,2]"
        assert outcome.patch is None

    def test_removal(self) -> None:
        outcome = run([1], Delete())
        assert (outcome.value, outcome.patch, outcome.changed) == (None, None, True)


class TestPatches:
    def test_tell_each_step(self) -> None:
        outcome = run({"l": [1, 2]}, Append((b"3",), "/l", 2), Increment("/n"))
        assert outcome.patch == [
            b'{"op":"add","path":"/l/-","value":3}',
            b'{"op":"remove","path":"/l/0"}',
            b'{"op":"add","path":"/n","value":1}',
        ]

    def test_of_many_additions_send_the_list(self) -> None:
        outcome = run({"l": [1, 2]}, Append(tuple(b"%d" % n for n in range(100)), "/l", 3))
        assert outcome.patch == [b'{"op":"replace","path":"/l","value":[97,98,99]}']

    def test_that_say_nothing_are_no_change(self) -> None:
        outcome = run({"a": 1}, Merge(b"{}"))
        assert (outcome.patch, outcome.changed, outcome.dropped) == ([], False, [])

    def test_items_merged_alike_share_nothing(self) -> None:
        got = result([{"g": 1}, {"g": 1}], MergeWhere(b'{"g":1}', b'{"t":[]}'), Append((b"1",), "/0/t"))
        assert got == [{"g": 1, "t": [1]}, {"g": 1, "t": []}]

    def test_stop_at_nothing_dropped_on_the_way(self) -> None:
        outcome = run({"n": 1}, Increment("/n"), Append((b"1",), "/n"), Increment("/n"))
        assert outcome.value is not None
        assert outcome.value.object() == {"n": 3}
        assert outcome.dropped == ["mismatch"]


def test_invalidations_are_the_shards() -> None:
    with pytest.raises(AssertionError):
        apply_all([Invalidate()], Value.from_json(b"1"))


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (None, False, False),
        ("1", 1, False),
        ({"a": 1, "b": 2}, {"b": 2.0, "a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ([1, [2]], [1, [2.0]], True),
        ([1], [1, 1], False),
        ([], {}, False),
    ],
)
def test_json_equality(left: Any, right: Any, equal: bool) -> None:
    assert json_equal(left, right) is equal


class TestParsing:
    @pytest.mark.parametrize(
        ("specification", "operation"),
        [
            ({"set": {"value": None}}, Set(b"null")),
            ({"set": {"value": 1, "at": "/a", "when_missing": "skip"}}, Set(b"1", "/a", SKIP)),
            (
                {"merge": {"value": {"a": 1}, "when_missing": "create", "default": {}}},
                Merge(b'{"a":1}', "", CREATE, b"{}"),
            ),
            ({"append": {"at": "/l", "item": {}, "max_items": 5, "by": "k"}}, Append((b"{}",), "/l", 5, "k")),
            ({"prepend": {"item": 1}}, Prepend((b"1",))),
            ({"upsert": {"item": 1, "by": "k"}}, Upsert((b"1",), by="k")),
            ({"merge_where": {"where": {"id": 1}, "value": {}}}, MergeWhere(b'{"id":1}', b"{}")),
            ({"remove": {"where": {"id": 1}}}, Remove(b'{"id":1}')),
            ({"increment": {"at": "/n"}}, Increment("/n")),
            ({"delete": {}}, Delete()),
        ],
    )
    def test_operations(self, specification: Any, operation: Operation) -> None:
        assert parse_operations([specification]) == [operation]

    @pytest.mark.parametrize(
        ("specifications", "message"),
        [
            ({}, "operations: expected a list"),
            ([], "operations: expected a list"),
            ([{"append": {"item": 1}}, {"append": {}}], "operations.1.append.item: required"),
            ([{"invalidate": {}}], "operations.0.invalidate: unknown operation"),
            ([{"set": {"value": 1}, "delete": {}}], "operations.0: expected one operation"),
            ([{"set": 1}], "operations.0.set: expected the operation's arguments"),
            ([{"set": {"value": 1, "key": []}}], "operations.0.set.key: unknown argument"),
            ([{"delete": {"default": 1}}], "operations.0.delete.default: unknown argument"),
            ([{"set": {"value": 1, "at": "a"}}], "operations.0.set.at: expected a JSON Pointer, got 'a'"),
            ([{"append": {"item": 1, "max_items": True}}], "operations.0.append.max_items: expected a whole number"),
            ([{"increment": {"at": "", "by": "1"}}], "operations.0.increment.by: expected a number"),
            ([{"upsert": {"item": 1, "by": ""}}], "operations.0.upsert.by: expected a member name"),
            ([{"remove": {"where": {}}}], "operations.0.remove.where: expected an object"),
            (
                [{"merge": {"value": {}, "when_missing": "maybe"}}],
                "operations.0.merge.when_missing: expected skip or create",
            ),
        ],
    )
    def test_faults(self, specifications: Any, message: str) -> None:
        with pytest.raises(RequestError) as caught:
            parse_operations(specifications)
        assert caught.value.message.startswith(message)


def test_merges_of_what_is_so_already_are_no_change() -> None:
    for operation in (Merge(b'{"a":1.0}', "/0"), MergeWhere(b'{"id":1}', b'{"a":1}')):
        outcome = run([{"id": 1, "a": 1}], operation)
        assert (outcome.patch, outcome.changed, outcome.dropped) == ([], False, [])
    assert result([{"a": 1}], Merge(b'{"a":true}', "/0")) == [{"a": True}]


def test_what_an_operation_holds() -> None:
    assert held_bytes(Set(b"12345", "/ab")) == 8
    assert held_bytes(Upsert((b"123", b"45"), default=b"[]", guard=Guard("/v", b"7"))) == 5 + 2 + 2 + 3, "`by` is id"
    assert held_bytes(MergeWhere(b'{"a":1}', b"{}")) == 9
    assert held_bytes(Delete()) == 0


class TestWork:
    """What the operations of one edit go through, counted."""

    ITEMS = orjson.dumps([{"id": number, "n": 0} for number in range(10_000)])

    def steps(self, *operations: Operation, document: bytes = ITEMS) -> int:
        work = Work()
        assert apply_all(list(operations), Value.from_json(document), work=work).dropped == []
        return work.done

    @pytest.mark.parametrize(
        "make",
        [
            lambda n: Upsert((b'{"id":%d,"n":1}' % n,)),
            lambda n: Append((b'{"id":%d,"n":1}' % (n * 100),)),
            lambda n: Append((b'{"id":%d}' % -n,), max_items=10_000),
            lambda n: MergeWhere(b'{"id":%d}' % n, b'{"n":1}'),
            lambda n: MergeWhere(b'{"n":0,"id":%d}' % n, b'{"n":1}'),
            lambda n: (Upsert((b'{"id":%d}' % n,)), MergeWhere(b'{"id":%d}' % n, b'{"n":2}'))[n % 2],
        ],
        ids=["upsert", "append", "bounded", "merge_where", "two members", "in turn"],
    )
    def test_of_one_array_is_looked_through_once(self, make: Any) -> None:
        one = self.steps(*(make(n) for n in range(1, 3)))
        assert one >= 10_000
        assert self.steps(*(make(n) for n in range(1, 201))) < one + 200 * 350

    @pytest.mark.parametrize(
        "make", [lambda n: Prepend((b'{"id":%d}' % -n,)), lambda n: Remove(b'{"id":%d}' % n)], ids=["prepend", "remove"]
    )
    def test_that_moves_items_is_counted_by_the_block(self, make: Any) -> None:
        assert self.steps(*(make(n) for n in range(1, 201))) < 3 * 10_000 + 200 * (10_000 // 64 + 10)

    def test_between_arrays_keeps_what_was_found(self) -> None:
        document = orjson.dumps(
            {"a": [{"id": n} for n in range(1_000)], "b": [{"id": n} for n in range(1_000)], "c": 0}
        )
        turns = [Upsert((b'{"id":1}',), "/a"), Upsert((b'{"id":1}',), "/b"), Increment("/c"), Set(b"1", "/a/3/x")]
        assert self.steps(*turns * 50, document=document) < 2_000 + 200

    def test_notices_a_list_that_was_put_between(self) -> None:
        said = [Upsert((b'{"id":2}',), "/l"), Append((b"3",), "/l/-"), Upsert((b'{"id":4}',), "/l")]
        again = Upsert((b'{"id":4,"n":1}',), "/l")
        assert result({"l": [{"id": 1}]}, *said, again) == {"l": [{"id": 1}, {"id": 2}, [3], {"id": 4, "n": 1}]}

    def test_without_what_identifies_an_item_looks_at_nothing(self) -> None:
        assert self.steps(Append((b"1",)), Append((b"2",))) == 2

    def test_beyond_what_is_allowed_is_refused(self) -> None:
        operations: list[Operation] = [MergeWhere(b'{"n":[%d]}' % n, b"{}") for n in range(MAX_OPERATIONS)]
        with pytest.raises(LimitError) as caught:
            apply_all(operations, Value.from_json(self.ITEMS), work=Work(MAX_STEPS))
        error = caught.value
        assert (error.code, error.limit, error.value) == ("TOO_LARGE", "edit_steps", MAX_STEPS)
        assert str(MAX_STEPS) in error.message
        assert len(apply_all(operations[:500], Value.from_json(self.ITEMS)).dropped) == 500

    @pytest.mark.parametrize(
        ("at", "operation"),
        [
            ("k" * 100_000, MergeWhere(b'{"n":0}', b'{"m":1}', "/" + "k" * 100_000)),
            ("k" * 100_000, Remove(b'{"n":0}', "/" + "k" * 100_000)),
            ("k", MergeWhere(b'{"n":0}', b'{"m":"%b"}' % (b"m" * 10_000), "/k")),
        ],
        ids=["merges", "removals", "values"],
    )
    def test_what_a_patch_would_say_counts(self, at: str, operation: Operation) -> None:
        document = orjson.dumps({at: [{"n": 0}] * 9_000})
        with pytest.raises(LimitError):
            apply_all([operation], Value.from_json(document), work=Work(MAX_STEPS))

    def test_one_operation_on_every_item_of_the_largest_entry_passes(self) -> None:
        items = orjson.dumps([{"id": number, "k": 1} for number in range(750_000)])
        assert 14_000_000 < len(items) < 16 * 1024 * 1024
        for operation in (
            MergeWhere(b'{"k":1}', b'{"k":2}'),
            Remove(b'{"k":1}'),
            Upsert((b'{"id":1}',)),
            Append((b'{"id":-1}',), max_items=1),
            Prepend((b'{"id":-1}',), max_items=375_000),
        ):
            work = Work(MAX_STEPS)
            assert apply_all([operation], Value.from_json(items), work=work).changed

    def test_many_removals_are_told_as_what_stays(self) -> None:
        document = orjson.dumps({"l": [{"id": number, "k": number % 2} for number in range(20_000)]})
        outcome = apply_all([Remove(b'{"k":1}', "/l")], Value.from_json(document))
        assert outcome.patch is not None
        (step,) = map(orjson.loads, outcome.patch)
        assert (step["op"], step["path"], len(step["value"])) == ("replace", "/l", 10_000)


def test_an_edit_has_so_many_operations_and_no_more() -> None:
    one = {"increment": {"at": "/a"}}
    assert len(parse_operations([one] * MAX_OPERATIONS)) == MAX_OPERATIONS
    with pytest.raises(LimitError) as caught:
        parse_operations([one] * (MAX_OPERATIONS + 1))
    assert (caught.value.code, caught.value.limit) == ("TOO_LARGE", "operations")
