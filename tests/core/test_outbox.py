from typing import Any

import orjson

from cluster.core.messages import EntryView
from cluster.core.outbox import Outbox, Pending, encode
from cluster.core.replica import Replica

KEY = '["a"]'


def replica(version: int, data: Any) -> Replica:
    made = Replica(KEY, 0)
    made.replace(EntryView(KEY, version, None if data is None else orjson.dumps(data), 1, "success", "idle"))
    return made


def messages(pending: Pending, held: Replica | None, mode: str = "data") -> list[tuple[str, Any]]:
    return [
        (kind.decode(), orjson.loads(b"{" + members + b"}")) for kind, members in encode(KEY, pending, held, mode, 0.0)
    ]


def test_a_key_has_one_pending_change_from_the_version_first_held() -> None:
    outbox = Outbox()
    outbox.at(KEY, 3).add_patch(b"[1]")
    outbox.at(KEY, 4).add_patch(b"[2]")
    assert list(outbox) == [KEY]
    assert outbox[KEY].from_version == 3
    assert outbox[KEY].patches == [b"1", b"2"]


def test_folding_joins_patches_counts_and_marks() -> None:
    first, later = Pending(3), Pending(4)
    first.add_patch(b"[1]")
    first.coalesced = 1
    later.add_patch(b"[2,3]")
    later.coalesced, later.invalidated, later.reset, later.retold, later.gone_version = 2, True, True, True, 9
    first.fold(later)
    assert (first.patches, first.patch_bytes, first.coalesced) == ([b"1", b"2,3"], 4, 3)
    assert (first.invalidated, first.reset, first.retold, first.gone_version) == (True, True, True, 9)
    whole = Pending(5)
    whole.add_patch(None)
    first.fold(whole)
    assert first.patches is None


def test_a_change_in_either_mode() -> None:
    pending = Pending(3)
    pending.add_patch(b'[{"op":"add","path":"/x","value":1}]')
    held = replica(4, {"x": 1, "filler": "f" * 40})
    base = {"key": ["a"], "from": 3, "version": 4, "coalesced": 1}
    assert messages(pending, held) == [("change", {**base, "data": {"x": 1, "filler": "f" * 40}})]
    assert messages(pending, held, "patch") == [
        ("change", {**base, "patch": [{"op": "add", "path": "/x", "value": 1}]})
    ]
    held = replica(4, 1)  # shorter than its patch
    assert messages(pending, held, "patch")[0][1]["patch"] == [{"op": "replace", "path": "", "value": 1}]


def test_what_is_new_comes_whole_in_both_modes() -> None:
    for mode in ("data", "patch"):
        assert messages(Pending(0), replica(4, 1), mode) == [
            ("change", {"key": ["a"], "from": 0, "version": 4, "data": 1, "coalesced": 1})
        ]


def test_nothing_is_said_of_what_did_not_change_or_was_never_held() -> None:
    assert messages(Pending(4), replica(4, 1)) == []
    assert messages(Pending(0), None) == []
    assert messages(Pending(0), replica(0, None)) == [("snapshot", messages(Pending(0), replica(0, None))[0][1])]


def test_removal() -> None:
    pending = Pending(4)
    pending.gone_version = 9
    assert messages(pending, None) == [("removed", {"key": ["a"], "version": 9})]
    kinds = [kind for kind, _ in messages(pending, replica(0, None))]
    assert kinds == ["removed", "snapshot"]  # and being fetched anew


def test_what_was_missed_is_from_the_clients_version_and_whole() -> None:
    outbox = Outbox()
    outbox.at(KEY, 7).add_patch(b"[1]")
    outbox.missed(KEY, 5)
    assert messages(outbox[KEY], replica(8, 1), "patch")[0][1]["from"] == 5
    assert messages(outbox[KEY], None) == [("removed", {"key": ["a"], "version": 6})]


def test_a_reset_is_followed_by_the_entry() -> None:
    pending = Pending(4)
    pending.reset = True
    assert [kind for kind, _ in messages(pending, replica(4, 1))] == ["reset", "snapshot"]
