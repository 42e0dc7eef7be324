"""The oracle: every rule is broken once, by a trace made by hand, and found."""

from typing import Any

import pytest

from cluster.verify.contract_oracle import (
    KNOWN_VERSIONS,
    RECENT,
    Course,
    Rule,
    Seen,
    Truth,
    Violation,
    first_violation,
)

ROOT = ["v"]
KEY = ["v", "a"]
Message = dict[str, Any]


def snapshot(version: int, n: int, key: list[Any] = KEY) -> Message:
    return {"type": "snapshot", "key": key, "version": version, "data": {"n": n}}


def change(start: int, version: int, n: int, key: list[Any] = KEY) -> Message:
    return {"type": "change", "key": key, "from": start, "version": version, "data": {"n": n}, "coalesced": 1}


def patch(start: int, version: int, *operations: Message) -> Message:
    return {"type": "change", "key": KEY, "from": start, "version": version, "patch": list(operations), "coalesced": 1}


def to(n: int, path: str = "/n") -> Message:
    return {"op": "replace", "path": path, "value": n}


END = {"type": "snapshot_end", "position": "p1"}
POSITION = {"type": "position", "token": "p2"}
RESET = {"type": "reset"}
BEGUN = [snapshot(5, 1), END]
"""What every trace begins with: the entry at version 5."""


def course(mode: str = "data", *, prefix: bool = True) -> Course:
    made = Course(Truth(), ROOT if prefix else KEY, prefix=prefix, mode=mode)
    made.opened()
    return made


def broken(frames: list[list[Message]], mode: str = "data", *, prefix: bool = True) -> Violation:
    made = course(mode, prefix=prefix)
    for frame in frames[:-1]:
        made.frame(frame)
    with pytest.raises(Violation) as raised:
        made.frame(frames[-1])
    return raised.value


GOOD: dict[str, tuple[str, list[list[Message]]]] = {
    "changes": ("data", [BEGUN, [change(5, 7, 2), change(7, 8, 3), POSITION]]),
    "patches": ("patch", [BEGUN, [patch(5, 7, to(2)), POSITION]]),
    "new entries come with data": ("patch", [BEGUN, [change(0, 9, 1, ["v", "b"]), POSITION]]),
    "removed and made again": (
        "data",
        [BEGUN, [{"type": "removed", "key": KEY, "version": 6}, change(0, 7, 2), POSITION]],
    ),
    "reset and all anew": ("data", [BEGUN, [RESET, POSITION], [snapshot(5, 1)], [snapshot(6, 1, ["v", "b"]), END]]),
    "one entry reset": ("data", [BEGUN, [{"type": "reset", "key": KEY}, snapshot(5, 1), POSITION]]),
    "changes between the pieces of a snapshot": ("data", [[snapshot(5, 1)], [change(5, 6, 2)], [END]]),
    "none at all": ("data", [[END], [{"type": "invalidated", "key": KEY}, POSITION]]),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_right_is_let_pass(name: str) -> None:
    mode, frames = GOOD[name]
    made = course(mode)
    for frame in frames:
        made.frame(frame)


BAD: dict[Rule, list[list[Message]]] = {
    Rule.GAP: [BEGUN, [change(6, 7, 2), POSITION]],
    Rule.DUPLICATE: [BEGUN, [change(5, 7, 2), POSITION], [change(5, 7, 2), POSITION]],
    Rule.ORDER: [BEGUN, [change(5, 7, 2), POSITION], [change(5, 8, 3), POSITION]],
    Rule.GROWTH: [BEGUN, [change(5, 5, 2), POSITION]],
    Rule.FOREIGN: [BEGUN, [change(0, 7, 2, ["w"]), POSITION]],
    Rule.SNAPSHOT: [BEGUN, [snapshot(7, 2), POSITION]],
    Rule.UNFINISHED: [BEGUN, [END]],
    Rule.POSITION: [BEGUN, [change(5, 7, 2)]],
    Rule.TOKEN: [BEGUN, [change(5, 7, 2), {"type": "position", "token": "x" * 3000}]],
    Rule.MODE: [BEGUN, [patch(5, 7, to(2)), POSITION]],
    Rule.UNKNOWN: [BEGUN, [{"type": "surprise"}]],
    Rule.ENDED: [BEGUN, [{"type": "error", "code": "FORBIDDEN"}]],
    Rule.BACK: [BEGUN, [change(5, 7, 3), change(7, 8, 2), POSITION]],
    Rule.LOST_WRITE: [BEGUN, [change(5, 7, 2), POSITION], [RESET, POSITION], [snapshot(5, 1)]],
}


@pytest.mark.parametrize("rule", BAD, ids=lambda rule: rule.name)
def test_what_a_client_may_not_be_told_is_found(rule: Rule) -> None:
    found = broken(BAD[rule])
    assert found.rule is rule, found
    assert found.recent[-1] != "(connected)"


@pytest.mark.parametrize(
    ("frames", "rule"),
    [
        ([BEGUN, [patch(5, 7, to(2, "/missing/n")), POSITION]], Rule.PATCH),
        ([BEGUN, [patch(5, 7, {"op": "test", "path": "/n", "value": 9}), POSITION]], Rule.PATCH),
        ([BEGUN, [change(5, 7, 2), POSITION]], Rule.MODE),
        ([BEGUN, [patch(0, 7, to(2)), POSITION]], Rule.ORDER),
    ],
)
def test_patches(frames: list[list[Message]], rule: Rule) -> None:
    assert broken(frames, "patch").rule is rule


def test_a_snapshot_has_each_entry_once() -> None:
    assert broken([[snapshot(5, 1)], [snapshot(5, 1)]]).rule is Rule.DUPLICATE


def test_what_is_removed_was_there() -> None:
    gone = {"type": "removed", "key": KEY, "version": 6}
    assert broken([[END], [gone, POSITION]]).rule is Rule.GROWTH
    assert broken([BEGUN, [gone | {"version": 5}, POSITION]]).rule is Rule.GROWTH


def test_an_exact_key_is_not_a_prefix() -> None:
    assert broken([BEGUN, [change(0, 7, 2, [*KEY, "below"]), POSITION]], prefix=False).rule is Rule.FOREIGN


# --- over reconnects -------------------------------------------------------------------------------------------------


def returned(*frames: list[Message]) -> Course:
    made = course()
    made.frame(BEGUN)
    made.frame([change(5, 7, 2), POSITION])
    assert made.opened() == "p2"
    for frame in frames:
        made.frame(frame)
    return made


def test_a_subscription_goes_on_where_it_was() -> None:
    made = returned([change(7, 9, 3), POSITION])
    assert made.entries == {'["v","a"]': Seen(9, {"n": 3})}


def test_after_a_reset_everything_comes_anew() -> None:
    assert returned([RESET, POSITION], [snapshot(8, 3), END]).resets == 1


@pytest.mark.parametrize(
    ("frame", "rule"),
    [
        ([change(5, 7, 2), POSITION], Rule.DUPLICATE),
        ([change(8, 9, 3), POSITION], Rule.GAP),
        ([snapshot(7, 2), END], Rule.SNAPSHOT),
    ],
)
def test_what_came_before_does_not_come_again_and_nothing_is_left_out(frame: list[Message], rule: Rule) -> None:
    with pytest.raises(Violation) as raised:
        returned(frame)
    assert raised.value.rule is rule


def test_without_a_whole_snapshot_it_begins_from_nothing() -> None:
    made = course()
    made.frame([snapshot(5, 1)])
    assert made.opened() is None
    made.frame(BEGUN)
    made.frame([RESET, POSITION])
    assert made.opened() is None, "a reset voids the tokens before it"


def test_a_violation_shows_what_came_last() -> None:
    made = course()
    made.frame(BEGUN)
    for version in range(6, 60):
        made.frame([change(version - 1, version, version), POSITION])
    made.note("(lost)")
    with pytest.raises(Violation) as raised:
        made.frame([change(90, 91, 91), POSITION])
    assert len(raised.value.recent) == RECENT
    assert "(lost)" in raised.value.recent
    assert '"from":90' in raised.value.recent[-1]


def test_in_the_end_everybody_sees_what_is_stored() -> None:
    made = course()
    made.frame(BEGUN)
    made.rest('["v","a"]', Seen(5, {"n": 1}))
    made.rest('["v","b"]', None)
    for key, stored in (('["v","a"]', None), ('["v","a"]', Seen(6, {"n": 1})), ('["v","b"]', Seen(1, 1))):
        with pytest.raises(Violation) as raised:
            made.rest(key, stored)
        assert raised.value.rule is Rule.VIEW


# --- what is kept ----------------------------------------------------------------------------------------------------

ENTRY = '["v","a"]'


def test_one_entry_does_not_go_back_either() -> None:
    assert broken([BEGUN, [{"type": "reset", "key": KEY}, snapshot(4, 1), POSITION]]).rule is Rule.LOST_WRITE


def test_it_does_not_go_back_over_several_resets() -> None:
    frames = [BEGUN, [change(5, 7, 2), POSITION], [RESET, POSITION], [RESET, POSITION], [snapshot(5, 1)]]
    assert broken(frames).rule is Rule.LOST_WRITE


def test_another_gateway_may_be_behind() -> None:
    made = returned([RESET, POSITION], [snapshot(5, 1), END])
    made.opened()
    made.frame([RESET, POSITION])
    made.frame([snapshot(4, 0), END])


def test_a_gateway_that_has_said_to_be_as_far_is_not_behind_afterwards() -> None:
    with pytest.raises(Violation) as raised:
        returned([POSITION], [RESET, POSITION], [snapshot(5, 1), END])
    assert (raised.value.rule, raised.value.expected) == (
        Rule.LOST_WRITE,
        "version 7 or a later one, as before the reset",
    )


def kept(*, is_frail: bool = False) -> Course:
    made = Course(Truth(is_frail=is_frail), ROOT, prefix=True, mode="data")
    made.opened()
    made.frame(BEGUN)
    made._truth.acknowledged(ENTRY, 5)
    made.frame([change(5, 7, 2), POSITION])
    return made


def test_an_entry_that_nobody_deletes_is_in_each_snapshot() -> None:
    made = kept()
    made.frame([RESET, POSITION])
    with pytest.raises(Violation) as raised:
        made.frame([END])
    assert (raised.value.rule, raised.value.key) == (Rule.LOST_WRITE, ENTRY)
    made = kept()
    made._truth.deleting(ENTRY)
    made.frame([RESET, POSITION])
    made.frame([END])


def test_what_a_kill_may_lose_may_be_lost_and_nothing_else() -> None:
    made = kept(is_frail=True)
    made.frame([RESET, POSITION])
    made.frame([snapshot(5, 1), END])
    made = kept(is_frail=True)
    made._truth.acknowledged(ENTRY, 7)
    made.frame([RESET, POSITION])
    with pytest.raises(Violation) as raised:
        made.frame([snapshot(5, 1), END])
    assert raised.value.rule is Rule.LOST_WRITE


def test_what_was_acknowledged_is_there_until_it_is_deleted() -> None:
    truth = Truth()
    assert not truth.is_lost("k", truth.kept("k"), None)
    truth.saw("k", 5, {"n": 1})
    truth.acknowledged("k", 5)
    assert [truth.is_lost("k", truth.kept("k"), version) for version in (None, 4, 5, 6)] == [True, True, False, False]
    truth.deleting("k")
    assert [truth.is_lost("k", truth.kept("k"), version) for version in (None, 4, 5)] == [False, True, False]
    truth.acknowledged("k", None)
    assert [truth.is_lost("k", truth.kept("k"), version) for version in (None, 5, 9)] == [False, True, False]
    looked = truth.kept("k")
    truth.saw("k", 9, {"n": 2})
    truth.acknowledged("k", 9)
    assert not truth.is_lost("k", looked, None), "it was looked for while it was deleted"
    assert [truth.is_lost("k", truth.kept("k"), version) for version in (None, 5, 9)] == [True, True, False]


# --- values ----------------------------------------------------------------------------------------------------------


def test_a_version_is_one_value_for_everybody() -> None:
    truth = Truth()
    truth.saw("k", 5, {"n": 1, "t": 2})
    truth.saw("k", 5, {"t": 2, "n": 1})
    assert truth.compared == 1
    with pytest.raises(Violation) as raised:
        truth.saw("k", 5, {"n": 2})
    assert raised.value.rule is Rule.VALUE


@pytest.mark.parametrize(("version", "n"), [(9, 1), (1, 9)])
def test_later_versions_have_later_values(version: int, n: int) -> None:
    truth = Truth()
    truth.saw("k", 5, {"n": 4})
    truth.saw("k", 7, {"n": 4})
    truth.saw("k", 6, {"n": 4})
    with pytest.raises(Violation) as raised:
        truth.saw("k", version, {"n": n})
    assert raised.value.rule is Rule.BACK


def test_what_is_known_of_values_is_bounded() -> None:
    truth = Truth()
    for version in range(KNOWN_VERSIONS + 10):
        truth.saw("k", version, {"n": version})
    assert len(truth._values["k"]) == len(truth._versions["k"]) == KNOWN_VERSIONS


def test_the_first_violation_is_found_in_groups() -> None:
    violation = Violation(Rule.GAP, "k", 1, 2)
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [OSError(), violation])])
    assert first_violation(group) is violation
    assert first_violation(ExceptionGroup("", [ValueError()])) is None


def test_every_rule_of_a_trace_has_one() -> None:
    elsewhere = {
        Rule.PATCH,
        Rule.VALUE,
        Rule.EXTRA_WRITE,
        Rule.LOST_UPDATE,
        Rule.STALE_WRITE,
        Rule.CONFLICT,
        Rule.REPEAT,
        Rule.VIEW,
        Rule.MUTATION,
        Rule.LOST_MUTATION,
    }
    of_runs = {Rule.REFUSED, Rule.SILENCE, Rule.AGE}
    assert set(BAD) | elsewhere | of_runs == set(Rule)
