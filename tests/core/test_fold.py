"""How operations fold. That folding changes no effect is a property, held in `properties/`; here is how far it goes and where it stops."""

from typing import Any

import msgspec
import orjson
import pytest

from cluster.core.entry import Value
from cluster.core.fold import Fold
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
    Prepend,
    Remove,
    Set,
    Upsert,
    apply_all,
)

CREATE, SKIP = Missing.CREATE, Missing.SKIP


def fold(*operations: Operation) -> list[Operation]:
    folded = Fold()
    assert sum(folded.add(operation) for operation in operations) == folded.size
    assert folded.count == len(operations)
    return folded.operations()


def effect(operations: list[Operation], document: bytes | None) -> Any:
    value = None if document is None else Value.from_json(document)
    for operation in operations:
        value = apply_all([operation], value).value
    return None if value is None else [value.object()]


def assert_kept_apart(document: bytes | None, *operations: Operation) -> None:
    """The effect is that of the operations one by one, though a bolder fold would get it wrong."""
    assert effect(fold(*operations), document) == effect(list(operations), document)


class TestWholeValues:
    def test_a_set_makes_everything_before_it_void(self) -> None:
        last = Set(b"3")
        assert fold(Append((b"1",)), Set(b"2", guard=Guard("/v", b"1")), Increment("/n"), last) == [last]

    def test_a_removal_too(self) -> None:
        assert fold(Set(b"1"), Increment("/n"), Delete()) == [Delete()]

    def test_a_set_that_skips_absent_entries_does_not_create_what_was_removed(self) -> None:
        assert effect(fold(Delete(), Set(b"1", missing=SKIP)), b"0") is None

    def test_a_set_that_skips_keeps_the_creation_before_it(self) -> None:
        assert effect(fold(Append((b"1",), missing=CREATE), Set(b"[2]", missing=SKIP)), None) == [[2]]

    def test_a_guarded_set_voids_nothing(self) -> None:
        operations = [Set(b'{"v":1}'), Set(b'{"v":2}', guard=Guard("/v", b"2"))]
        assert fold(*operations) == operations


class TestRuns:
    def test_additions_collect_their_items(self) -> None:
        assert fold(Append((b"1",), "/l"), Append((b"2", b"3"), "/l")) == [Append((b"1", b"2", b"3"), "/l")]
        assert fold(Prepend((b"1",)), Prepend((b"2",))) == [Prepend((b"1", b"2"))]

    @pytest.mark.parametrize("other", [Append((b"2",), max_items=2), Append((b"2",), by="k"), Prepend((b"2",))])
    def test_additions_of_another_kind_do_not_join(self, other: Operation) -> None:
        assert fold(Append((b"1",), max_items=3), other) == [Append((b"1",), max_items=3), other]

    def test_merges_merge(self) -> None:
        assert fold(Merge(b'{"a":1,"b":1}'), Merge(b'{"b":2}')) == [Merge(b'{"a":1,"b":2}')]

    def test_a_merge_of_something_else_spoils_nothing(self) -> None:
        assert effect(fold(Merge(b'{"a":1}'), Merge(b"5"), Merge(b'{"b":2}')), b"{}") == [{"a": 1, "b": 2}]

    def test_increments_add_up(self) -> None:
        assert fold(Increment("/n", 2), Increment("/n", 3)) == [Increment("/n", 5)]

    def test_increments_by_fractions_are_kept_apart(self) -> None:
        operations = [Increment("/n", 0.1)] * 3
        assert fold(*operations) == operations

    def test_sums_stay_within_what_messages_carry(self) -> None:
        operations = [Increment("/n", 2**63 - 1)] * 3
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(fold(*operations)), type=list[Increment]) == operations

    def test_a_set_replaces_what_its_pointer_held(self) -> None:
        assert fold(Set(b"1", "/a"), Append((b"2",), "/a"), Set(b"3", "/a")) == [Set(b"3", "/a")]

    def test_upserts_keep_the_first_place_and_the_last_content(self) -> None:
        made = [Upsert((orjson.dumps({"id": n % 2, "n": n}),)) for n in range(5)]
        assert fold(*made) == [Upsert((b'{"id":0,"n":4}', b'{"id":1,"n":3}'))]

    def test_conditional_merges_merge_by_condition(self) -> None:
        made = [MergeWhere(b'{"id":%d}' % (n % 2), b'{"n":%d}' % n) for n in range(5)]
        assert fold(*made) == [MergeWhere(b'{"id":0}', b'{"n":4}'), MergeWhere(b'{"id":1}', b'{"n":3}')]

    def test_conditional_merges_that_change_what_others_look_for_keep_their_order(self) -> None:
        assert_kept_apart(
            b'[{"id":1}]',
            MergeWhere(b'{"id":2}', b'{"n":1}'),
            MergeWhere(b'{"id":1}', b'{"id":2}'),
            MergeWhere(b'{"id":2}', b'{"n":3}'),
            MergeWhere(b'{"id":1}', b'{"n":4}'),
        )

    def test_conditional_merges_on_different_members_keep_their_order(self) -> None:
        assert_kept_apart(
            b'[{"id":1,"g":1},{"g":1}]',
            MergeWhere(b'{"id":1}', b'{"n":1}'),
            MergeWhere(b'{"g":1}', b'{"n":2}'),
            MergeWhere(b'{"id":1}', b'{"n":3}'),
            MergeWhere(b'{"g":1}', b'{"m":4}'),
        )

    def test_equal_removals_are_one(self) -> None:
        one, other = Remove(b'{"id":1}'), Remove(b'{"id":2}')
        assert fold(one, other, one) == [one, other]

    def test_equal_invalidations_are_one_and_come_last(self) -> None:
        assert fold(Invalidate(), Set(b"1"), Invalidate(), Invalidate(exact=True)) == [
            Set(b"1"),
            Invalidate(),
            Invalidate(exact=True),
        ]


class TestLanes:
    def test_pointers_that_part_fold_each_for_itself(self) -> None:
        made: list[Operation] = []
        for n in range(1000):
            made += [Set(b"%d" % n, "/value"), Append((b"%d" % n,), "/history", 3), Increment("/count", missing=CREATE)]
        folded = fold(*made)
        assert folded == [
            Set(b"999", "/value"),
            Append((b"997", b"998", b"999"), "/history", 3),
            Increment("/count", 1000, CREATE),
        ]

    def test_a_pointer_into_another_ends_both(self) -> None:
        assert_kept_apart(
            b'{"a":{"l":[]}}', Append((b"1",), "/a/l"), Set(b'{"l":[]}', "/a", SKIP), Append((b"2",), "/a/l")
        )

    def test_a_pointer_that_leads_to_another_ends_both(self) -> None:
        assert_kept_apart(
            b'{"a":0}', Set(b'{"l":[]}', "/a", SKIP), Append((b"1",), "/a/l"), Set(b'{"l":[0]}', "/a", SKIP)
        )

    def test_indexes_may_lengthen_their_array(self) -> None:
        assert_kept_apart(b'{"l":[0,1]}', Set(b"9", "/l/3"), Set(b"8", "/l/2"), Set(b"7", "/l/3"))

    def test_removing_an_index_moves_the_others(self) -> None:
        assert_kept_apart(b"[0,1,2,3]", Delete("/1"), Delete("/1"), Set(b"9", "/1"), Delete("/1"), Set(b"8", "/1"))

    def test_each_operation_beyond_the_end_adds_an_item(self) -> None:
        assert_kept_apart(
            b'{"l":[]}', Append((b"1",), "/l/-"), Append((b"2",), "/l/-"), Set(b"3", "/l/-"), Set(b"3", "/l/-")
        )

    def test_a_guard_ends_every_lane(self) -> None:
        assert_kept_apart(
            b'{"v":1,"n":1}',
            Increment("/v"),
            Set(b"9", "/n", guard=Guard("/v", b"3")),
            Increment("/v", 2),
            Increment("/n"),
        )

    def test_what_was_skipped_is_not_caught_up_on(self) -> None:
        assert_kept_apart(None, Append((b"1",), "/l"), Set(b"0", "/v"), Append((b"2",), "/l"))

    def test_different_defaults_are_kept_apart(self) -> None:
        assert_kept_apart(
            None, Set(b"1", "/a", default=b"5"), Set(b"2", "/a", default=b"{}"), Set(b"3", "/a", default=b"5")
        )

    def test_a_removal_that_follows_a_creation_keeps_it(self) -> None:
        assert_kept_apart(None, Set(b"1", "/a"), Delete("/a"))

    def test_what_looks_for_items_creates_nothing(self) -> None:
        assert_kept_apart(None, Remove(b'{"id":1}', "/l", CREATE), Set(b"[]", "/l", SKIP))


class TestBoundedLists:
    @pytest.mark.parametrize("kind", [Append, Prepend])
    def test_a_feed_carries_no_more_than_twice_its_bound(self, kind: Any) -> None:
        made: list[Operation] = [kind((orjson.dumps({"id": n}),), "", 100, "id", CREATE) for n in range(5000)]
        folded = fold(*made)
        (one,) = folded
        assert isinstance(one, Append | Prepend)
        assert len(one.items) == 200
        for document in (None, b"[]", orjson.dumps([{"id": n} for n in range(4850, 4960)])):
            assert effect(folded, document) == effect(made, document)

    def test_items_without_identity_need_only_themselves(self) -> None:
        assert fold(*[Append((b"%d" % n,), max_items=3) for n in range(100)]) == [
            Append((b"97", b"98", b"99"), max_items=3)
        ]

    def test_stored_items_may_live_on_by_being_replaced(self) -> None:
        made: list[Operation] = [
            Append((orjson.dumps({"id": known, "n": n}),), max_items=2) for n, known in enumerate([2, 2, 2, 2, 5, 3, 4])
        ]
        assert (
            effect(fold(*made), b'[{"id":2},{"id":3}]')
            == effect(made, b'[{"id":2},{"id":3}]')
            == [[{"id": 5, "n": 4}, {"id": 4, "n": 6}]]
        )

    def test_a_few_items_in_turns_are_kept(self) -> None:
        made: list[Operation] = [Append((orjson.dumps({"id": n % 3, "n": n}),), max_items=5) for n in range(100)]
        assert effect(fold(*made), b'[{"id":2},9]') == effect(made, b'[{"id":2},9]')


class TestBounds:
    def test_a_run_does_not_grow_with_what_it_overwrites(self) -> None:
        folded = Fold()
        for n in range(10_000):
            folded.add(Merge(b'{"a":%d,"b":%d}' % (n, n)))
            assert 0 < folded.size < 3000

    def test_bytes_that_are_not_json_are_passed_on(self) -> None:
        bad = b'{"id":"\xff"}'
        made: list[Operation] = [
            operation
            for n in range(200)
            for operation in (
                Upsert((bad, b'{"id":%d}' % (n % 3)), "/u"),
                Append((bad, b'{"id":%d}' % n), "/l", 5),
                Merge(bad, "/m"),
                Merge(b'{"a":1}', "/m"),
                MergeWhere(bad, bad, "/w"),
            )
        ]
        document = b'{"u":[],"l":[],"m":{},"w":[]}'
        assert effect(fold(*made), document) == effect(made, document)

    def test_a_set_too_deep_to_apply_does_not_replace_one_that_does(self) -> None:
        deep = b"[" * 300 + b"]" * 300
        assert effect(fold(Set(b"1", "/a"), Set(deep, "/a")), b"{}") == [{"a": 1}]

    def test_folded_folds_count_what_they_were_made_of(self) -> None:
        folded = Fold()
        assert folded.extend([Append((b"1", b"2"))], 2) == folded.size
        folded.extend([Append((b"3",))], 1)
        assert folded.count == 3
        assert folded.operations() == [Append((b"1", b"2", b"3"))]
