"""An outbox holds one pending change per key, and brings a reader from what it holds to what is."""

from typing import Any

import orjson
import pytest

from cluster.core import json_patch, protocol
from cluster.core.messages import Change, EntryView
from cluster.core.outbox import MAX_MUTATIONS, Outbox, Pending, encode
from cluster.core.replica import Replica

KEY = '["k"]'


def replica(data: Any, version: int = 9, *, status: str = "success") -> Replica:
    made = Replica(KEY, 0)
    json = None if data is ... else orjson.dumps(data)
    made.replace(EntryView(KEY, version, json, 1000, status, "idle"))
    return made


def told(pending: Pending, of: Replica | None, mode: str = "data") -> list[tuple[str, dict[str, Any]]]:
    return [
        (kind.decode(), orjson.loads(b"{%b}" % members)) for kind, members in encode(KEY, pending, of, mode, 2000.0)
    ]


def patched(from_version: int, *patches: bytes | None) -> Pending:
    pending = Pending(from_version)
    for patch in patches:
        pending.add_patch(patch)
        pending.coalesced += 1
    return pending


ADD = b'[{"op":"add","path":"/a","value":1}]'
MORE = b'[{"op":"add","path":"/b","value":2},{"op":"remove","path":"/a"}]'


class TestChanges:
    def test_data_is_what_the_replica_is_now(self) -> None:
        assert told(patched(3, ADD, MORE), replica({"b": 2})) == [
            ("change", {"key": ["k"], "from": 3, "version": 9, "data": {"b": 2}, "coalesced": 2})
        ]

    def test_patches_join(self) -> None:
        document = {"b": 2, "long": "x" * 100}
        ((_, change),) = told(patched(3, ADD, MORE), replica(document), "patch")
        assert (change["from"], change["version"]) == (3, 9)
        assert json_patch.apply({"long": "x" * 100}, change["patch"]) == document

    @pytest.mark.parametrize("pending", [patched(3, ADD, MORE), patched(3, ADD, None), patched(3, None, ADD)])
    def test_a_patch_that_is_longer_or_unknown_is_the_whole(self, pending: Pending) -> None:
        ((_, change),) = told(pending, replica({"b": 2}), "patch")
        assert change["patch"] == [{"op": "replace", "path": "", "value": {"b": 2}}]

    def test_a_reader_that_holds_nothing_gets_data(self) -> None:
        ((_, change),) = told(patched(0, ADD), replica({"long": "x" * 100}), "patch")
        assert change["data"] == {"long": "x" * 100}
        assert (change["from"], change["coalesced"]) == (0, 1)

    def test_who_holds_it_already_is_told_nothing(self) -> None:
        assert told(Pending(9), replica(1)) == []

    def test_one_change_at_least(self) -> None:
        ((_, change),) = told(Pending(3), replica(1))
        assert change["coalesced"] == 1


class TestMutations:
    def test_they_are_named_and_an_empty_patch_is_sent(self) -> None:
        pending = patched(3, b"[]", ADD, b"[]")
        pending.add_mutations(["m1"])
        ((_, change),) = told(pending, replica({"a": 1, "long": "x" * 100}), "patch")
        assert (change["patch"], change["mutations"]) == (orjson.loads(ADD), ["m1"])
        only = patched(8, b"[]")
        only.add_mutations(["m1"])
        ((_, change),) = told(only, replica({}), "patch")
        assert (change["patch"], change["from"], change["mutations"]) == ([], 8, ["m1"])
        ((_, change),) = told(only, replica({}))
        assert (change["data"], change["mutations"]) == ({}, ["m1"])

    def test_none_are_not_named(self) -> None:
        ((_, change),) = told(patched(3, ADD), replica({}))
        assert "mutations" not in change

    def test_they_fold_in_order_once_each(self) -> None:
        first, later = patched(3, ADD), patched(4, ADD)
        first.add_mutations(["b", "a"])
        later.add_mutations(["a", "c"])
        first.fold(later)
        assert first.mutations == ("b", "a", "c")

    def test_so_many_at_most(self) -> None:
        pending = Pending(3)
        for n in range(MAX_MUTATIONS + 5):
            pending.add_mutations([str(n)])
        assert pending.mutations == tuple(map(str, range(5, MAX_MUTATIONS + 5)))


class TestOthers:
    def test_removed(self) -> None:
        pending = Pending(3)
        pending.gone_version = 12
        assert told(pending, None) == [("removed", {"key": ["k"], "version": 12})]

    def test_removed_and_being_fetched_anew(self) -> None:
        pending = Pending(3)
        pending.gone_version = 12
        first, second = told(pending, replica(..., 0, status="pending"))
        assert first == ("removed", {"key": ["k"], "version": 12})
        assert (second[0], second[1]["status"]) == ("snapshot", "pending")

    def test_removed_before_it_was_known(self) -> None:
        assert told(Pending(0), None) == []

    def test_invalidated_comes_first(self) -> None:
        pending = patched(3, None)
        pending.invalidated = True
        assert [kind for kind, _ in told(pending, replica(1))] == ["invalidated", "change"]
        pending = Pending(9)
        pending.invalidated = True
        assert [kind for kind, _ in told(pending, replica(1))] == ["invalidated"]

    def test_a_reset_makes_everything_else_void(self) -> None:
        pending = patched(3, ADD)
        pending.reset = pending.invalidated = True
        first, second = told(pending, replica({"a": 1}))
        assert first == ("reset", {"key": ["k"]})
        assert second[0] == "snapshot"
        assert (second[1]["version"], second[1]["data"]) == (9, {"a": 1})

    def test_a_state_without_data_is_a_snapshot(self) -> None:
        pending = Pending(0)
        assert told(pending, replica(..., 0, status="error")) == []
        pending.retold = True
        ((kind, snapshot),) = told(pending, replica(..., 0, status="error"))
        assert (kind, snapshot["status"], "data" in snapshot) == ("snapshot", "error", False)


class TestOutbox:
    def test_a_pending_change_begins_where_the_reader_is(self) -> None:
        outbox = Outbox()
        first = outbox.at("k", 3)
        assert outbox.at("k", 5) is first
        assert first.from_version == 3

    def test_what_was_missed_is_sent_whole(self) -> None:
        outbox = Outbox()
        outbox.at("k", 7).add_patch(ADD)
        outbox.missed("k", 4)
        assert (outbox["k"].from_version, outbox["k"].patches) == (4, None)
        outbox.missed("gone", 4)
        assert told(outbox["gone"], None) == [("removed", {"key": ["k"], "version": 5})]

    @pytest.mark.parametrize("cut", range(5))
    def test_folding_is_the_same_as_going_on(self, cut: int) -> None:
        steps: list[bytes | None] = [ADD, MORE, ADD, MORE]
        for whole_at in (None, 0, 3):
            patches = [None if position == whole_at else step for position, step in enumerate(steps)]
            straight, early, late = patched(3, *patches), patched(3, *patches[:cut]), patched(5, *patches[cut:])
            early.fold(late)
            assert early.from_version == 3
            assert early.coalesced == straight.coalesced
            assert early.patches == straight.patches
            assert early.patches is None or early.patch_bytes == straight.patch_bytes

    def test_folding_keeps_every_sign(self) -> None:
        for name in ("invalidated", "reset", "retold"):
            for first, second in ((True, False), (False, True)):
                early, late = Pending(1), Pending(2)
                setattr(early, name, first)
                setattr(late, name, second)
                early.fold(late)
                assert getattr(early, name) is True
        early, late = Pending(1), Pending(2)
        early.gone_version, late.gone_version = 5, 8
        early.fold(late)
        assert early.gone_version == 8
        early.fold(Pending(9))
        assert early.gone_version == 8


def test_a_slow_reader_costs_no_more_than_the_value() -> None:
    held = {"long": "x" * 100}
    of = replica(held, 1)
    pending = Pending(1)
    for version in range(2, 500):
        patch = orjson.dumps([{"op": "add", "path": "/n", "value": version}])
        of.take(Change(KEY, version - 1, version, None, patch, 1, 1000))
        pending.add_patch(patch)
    ((_, change),) = told(pending, of, "patch")
    assert len(orjson.dumps(change)) < 300
    assert json_patch.apply(held, change["patch"]) == {"long": "x" * 100, "n": 499}


def test_messages_are_what_the_protocol_says() -> None:
    (message,) = encode(KEY, patched(3, None), replica(1), "data", 0.0)
    assert message == protocol.change(b'["k"]', 3, 9, b"1", None, 1)
