"""Who is told what, whole effect lists; epochs are small numbers: the clock stands before their origin."""

from typing import Any

import pytest

from cluster.core.role import Grant, Role
from cluster.core.shard_roles import (
    BEGIN_MS,
    RENEW_MS,
    Ask,
    End,
    Keep,
    Missing,
    Record,
    Renew,
    Report,
    ShardRoles,
    Tell,
)

A, B = "shard-0", "shard-0-b"
WAIT_MS = 60_000.0


def shared(epoch: int, store: str, primary: str, since: int = 0) -> Record:
    return Record(epoch, store, primary, True, since)


def roles(record: Record | None = None, actors: tuple[str, ...] = (A, B)) -> ShardRoles:
    made = ShardRoles(0, record, wait_ms=WAIT_MS, now_ms=0.0)
    assert made.want(actors, 0.0) == []
    return made


def new(life: int = 1, store: str = "", epoch: int = 0, offset: int = 0, *, is_whole: bool = True) -> Report:
    """An actor without a role."""
    return Report(life, Role.NONE, epoch, store, is_whole, (epoch, offset))


def leads(epoch: int, store: str = "a", standby: str = "", **more: Any) -> Report:
    return Report(1, Role.PRIMARY, epoch, store, True, standby=standby, standby_life=1 if standby else 0, **more)


def follows(epoch: int, life: int = 1, store: str = "b", *, is_whole: bool = False) -> Report:
    return Report(life, Role.STANDBY, epoch, store, is_whole)


def tell(actor: str, life: int, role: Role, epoch: int, *other: Any, **more: Any) -> Tell:
    return Tell(0, actor, life, Grant(role, epoch, *other, **more))


def in_sync(epoch: int = 5) -> ShardRoles:
    """`A` leads, `B` has everything."""
    made = roles(shared(epoch, "a", A))
    made.reported(A, leads(epoch, standby=B, is_in_sync=True), 0.0)
    assert made.reported(B, follows(epoch, is_whole=True), 0.0) == []
    assert made.standby == B
    return made


def test_a_standby_that_began_anew_is_not_in_sync_whatever_its_primary_still_says() -> None:
    made = in_sync()
    made.reported(B, follows(5, life=2), 1.0)
    assert made.standby is None


def succeeds(made: ShardRoles, effects: list[Any], now_ms: float) -> list[Any]:
    """`B` is asked before it takes over, and is as it was."""
    assert effects == [Ask(0, B)]
    return made.reported(B, follows(5, is_whole=True), now_ms)


def test_a_new_cluster_begins_when_all_have_been_heard() -> None:
    made = roles()
    assert made.reported(A, new(), 1.0) == []
    record = shared(1, "", A, 1)
    assert made.reported(B, new(), 2.0) == [Keep(0, record), tell(A, 1, Role.PRIMARY, 1, is_dead=True)]


def test_a_new_cluster_begins_without_who_never_came() -> None:
    made = roles()
    assert made.reported(B, new(), 1.0) == []
    assert made.decide(WAIT_MS) == [Keep(0, shared(1, "", B, 1)), tell(B, 1, Role.PRIMARY, 1, is_dead=True)]


def test_what_was_granted_and_is_not_done_yet_is_told_again_under_the_same_epoch() -> None:
    made = roles()
    made.reported(A, new(), 1.0)
    (_, told) = made.reported(B, new(), 2.0)
    assert made.decide(3.0) == [told]
    assert made.reported(A, new(2), 4.0) == [Keep(0, shared(2, "", A, 2)), tell(A, 2, Role.PRIMARY, 2, is_dead=True)], (
        "anew"
    )


@pytest.mark.parametrize(
    ("a", "b", "chosen"),
    [
        (new(store="a", epoch=5, offset=9), new(store="b", epoch=6, offset=1), B),
        (new(store="a", epoch=6, offset=9), new(store="b", epoch=6, offset=8), A),
        (new(store="a", epoch=7, offset=9, is_whole=False), new(store="b", epoch=6, offset=8), B),
        (new(store="a", epoch=7, is_whole=False), new(), A),
    ],
    ids=["the highest epoch", "the furthest", "a whole one", "none is whole"],
)
def test_without_a_record_stores_decide(a: Report, b: Report, chosen: str) -> None:
    made = roles()
    made.reported(A, a, 1.0)
    kept, told = made.reported(B, b, 1.0)
    assert kept.record.primary == told.actor == chosen
    assert kept.record.epoch > max(a.epoch, b.epoch)


def test_the_store_on_record_counts_not_another() -> None:
    made = roles(shared(5, "a", A))
    made.died(A, 0.0, is_certain=True)
    assert made.reported(B, new(store="b", epoch=4, offset=99), 1.0) == []
    assert made.reported(A, new(store="a", epoch=5), 2.0) == [
        Keep(0, shared(6, "a", A)),
        tell(A, 1, Role.PRIMARY, 6, is_dead=True),
    ]


def test_a_store_that_was_whole_under_the_epoch_on_record_is_as_good() -> None:
    made = roles(shared(5, "a", A))
    made.died(A, 0.0, is_certain=True)
    kept, told = made.reported(B, new(store="b", epoch=5), 1.0)
    assert (kept.record, told.actor) == (shared(6, "b", B, 6), B)


@pytest.mark.parametrize("first", [A, B])
@pytest.mark.parametrize(("a", "b", "chosen"), [(100, 150, B), (150, 100, A), (100, 100, A)])
def test_of_stores_whole_under_the_epoch_on_record_the_furthest_counts(first: str, a: int, b: int, chosen: str) -> None:
    """A primary whose disk was full is behind what its standby has acknowledged."""
    made = roles(shared(5, "a", A))
    reports = {A: new(2, "a", 5, a), B: new(2, "b", 5, b)}
    made.died(A, 0.0, is_certain=False)
    assert made.reported(first, reports.pop(first), 1.0) == []
    ((second, report),) = reports.items()
    assert made.reported(second, report, 2.0)[0] == Keep(0, shared(6, {A: "a", B: "b"}[chosen], chosen))


def test_the_store_on_record_waits_for_the_other_s_no_longer_than_for_itself() -> None:
    made = roles(shared(5, "a", A))
    made.died(B, 0.0, is_certain=True)
    assert made.reported(A, new(2, "a", 5, 100), 1.0) == []
    assert made.decide(WAIT_MS)[0] == Keep(0, shared(6, "a", A, 6))


def test_a_primary_that_is_known_to_have_been_alone_waits_for_nobody() -> None:
    made = in_sync()
    made.died(B, 1.0, is_certain=True)
    made.reported(A, leads(6), 2.0)
    made.died(A, 3.0, is_certain=True)
    assert made.reported(A, new(2, "a", 6, 100), 4.0)[0] == Keep(0, shared(7, "a", A))


def test_a_primary_that_was_named_a_standby_since_waits_for_that() -> None:
    made = in_sync()
    made.died(B, 1.0, is_certain=True)
    made.reported(A, leads(6), 2.0)
    assert made.reported(B, follows(6, 2), 3.0) == [tell(A, 1, Role.PRIMARY, 6, B, 2)]
    made.died(B, 4.0, is_certain=True)
    made.died(A, 4.0, is_certain=True)
    assert made.reported(A, new(2, "a", 6, 100), 5.0) == []
    assert made.reported(B, new(3, "b", 6, 150), 6.0)[0] == Keep(0, shared(7, "b", B))


def test_a_successor_that_never_led_waits_for_the_other_s_store_though_it_was_alone() -> None:
    made = in_sync()
    succeeds(made, made.died(A, 1.0, is_certain=True), 1.5)
    made.died(B, 2.0, is_certain=True)
    assert made.reported(B, new(2, "b", 5, 70), 3.0) == []
    assert made.reported(A, new(3, "a", 5, 75), 4.0)[0] == Keep(0, shared(7, "a", A))


def test_a_store_that_was_restored_counts_whatever_is_on_record() -> None:
    made = roles(shared(5, "gone", A))
    made.reported(A, new(store="a", epoch=5), 1.0)
    restored = Report(1, Role.NONE, 3, "restored", True, (3, 9), is_adopted=True)
    assert made.reported(B, restored, 2.0)[0] == Keep(0, shared(6, "restored", B, 6))


def test_after_the_wait_the_shard_begins_empty_and_says_so() -> None:
    made = roles(Record(5, "gone", A), actors=(A,))
    assert made.reported(A, new(store="new"), 1.0) == []
    assert made.decide(WAIT_MS - 1) == []
    assert made.decide(WAIT_MS) == [
        Missing(0, "gone"),
        Keep(0, Record(6, "", A, since=6)),
        tell(A, 1, Role.PRIMARY, 6, is_dead=True, begins_empty=True),
    ]


@pytest.mark.parametrize("record", [None, shared(5, "", A)])
def test_a_filling_that_was_broken_off_does_not_count(record: Record | None) -> None:
    made = roles(record)
    made.reported(A, new(store="a", epoch=0, offset=7, is_whole=False), 0.0)
    begun = 1 if record is None else 6
    assert made.reported(B, new(store="b"), 0.0)[-1] == tell(B, 1, Role.PRIMARY, begun, is_dead=True)
    made = roles(record)
    made.reported(A, new(store="a", epoch=4, offset=7, is_whole=False), 0.0)
    epoch = 5 if record is None else 6
    assert made.reported(B, new(), 0.0) == [
        Keep(0, shared(epoch, "", A, epoch)),
        tell(A, 1, Role.PRIMARY, epoch, is_dead=True, begins_empty=True),
    ]


def test_a_standby_is_made_then_given_to_the_primary() -> None:
    made = roles(shared(5, "a", A))
    assert made.reported(A, leads(5), 1.0) == []
    assert made.reported(B, new(3), 2.0) == [tell(B, 3, Role.STANDBY, 5, A)]
    assert made.reported(B, follows(5, 4), 3.0) == [tell(A, 1, Role.PRIMARY, 5, B, 4)]
    has_it = Report(1, Role.PRIMARY, 5, "a", True, standby=B, standby_life=4)
    assert made.reported(A, has_it, 4.0) == []


def test_a_word_that_was_not_heard_is_said_again() -> None:
    made = roles(shared(5, "a", A))
    made.reported(A, leads(5), 1.0)
    told = [tell(B, 3, Role.STANDBY, 5, A)]
    assert made.reported(B, new(3), 2.0) == told
    assert made.decide(3.0) == told


def test_a_dead_primary_is_followed_by_its_standby_at_once() -> None:
    made = in_sync()
    assert succeeds(made, made.died(A, 1.0, is_certain=True), 1.5) == [
        Keep(0, shared(6, "b", B)),
        tell(B, 1, Role.PRIMARY, 6, is_dead=True),
    ]
    assert made.promotions == 1


def test_a_standby_that_has_begun_anew_unheard_does_not_take_over_from_a_primary_that_has_everything() -> None:
    """The supervisor was cut off: what it knew of the standby is of a life that has lost its disk since."""
    made = in_sync()
    assert made.died(A, 1.0, is_certain=False) == [Ask(0, B)]
    assert made.reported(B, new(2), 2.0) == []
    assert made.reported(A, leads(5, standby=B, is_lost=True), 3.0)[0] == Keep(0, shared(6, "a", A))


def test_a_silent_primary_is_followed_when_its_lease_is_over() -> None:
    made = in_sync()
    promoted = succeeds(made, made.died(A, 1.0, is_certain=False), 1.5)
    assert promoted == [Keep(0, shared(6, "b", B)), tell(B, 1, Role.PRIMARY, 6)]
    assert made.died(A, 2.0, is_certain=True) == [tell(B, 1, Role.PRIMARY, 6, is_dead=True)], (
        "now there is no need to wait"
    )


def test_an_old_primary_that_goes_on_becomes_the_standby() -> None:
    made = in_sync()
    succeeds(made, made.died(A, 1.0, is_certain=False), 1.5)
    made.reported(B, leads(6, store="b"), 2.0)
    assert made.reported(A, leads(5, standby=B, is_lost=True), 3.0) == [tell(A, 1, Role.STANDBY, 6, B)]


def test_a_primary_that_was_started_anew_does_not_come_back_to_its_role() -> None:
    made = in_sync()
    assert succeeds(made, made.reported(A, new(2, store="a", epoch=5), 1.0), 1.5) == [
        Keep(0, shared(6, "b", B)),
        tell(B, 1, Role.PRIMARY, 6, is_dead=True),
    ]


def test_a_standby_counts_though_the_supervisor_had_not_heard_that_it_is_whole() -> None:
    made = roles(shared(5, "a", A))
    made.reported(A, leads(5, standby=B), 0.0)
    made.reported(B, follows(5, is_whole=True), 0.0)
    assert succeeds(made, made.died(A, 1.0, is_certain=True), 1.5)[0] == Keep(0, shared(6, "b", B))


def test_a_new_life_of_the_supervisor_hears_the_standby_before_the_primary_begins_anew() -> None:
    made = roles(shared(5, "a", A))
    assert made.reported(A, new(2, store="a", epoch=5), 1.0) == []
    assert made.reported(B, follows(5, is_whole=True), 2.0)[0] == Keep(0, shared(6, "b", B))
    made = roles(shared(5, "a", A))
    made.reported(A, new(2, store="a", epoch=5), 1.0)
    assert made.died(B, 2.0, is_certain=False) == [], "its store may have more"
    assert made.reported(B, new(9), 3.0)[0] == Keep(0, shared(6, "a", A)), "or it has none"


@pytest.mark.parametrize("report", [follows(5), follows(4, is_whole=True)], ids=["not whole", "of an earlier epoch"])
def test_others_are_not_promoted(report: Report) -> None:
    made = roles(shared(5, "a", A))
    made.reported(A, leads(5, standby=B), 0.0)
    made.reported(B, report, 0.0)
    assert made.died(A, 1.0, is_certain=True) == []


@pytest.mark.parametrize("how", ["died", "anew", "filled anew", "lost"])
def test_a_standby_is_removed_by_the_next_epoch(how: str) -> None:
    made = in_sync()
    match how:
        case "died":
            effects = made.died(B, 1.0, is_certain=True)
        case "anew":
            effects = made.reported(B, new(9), 1.0)
        case "filled anew":
            effects = made.reported(B, follows(5, 2), 1.0)
        case _:
            effects = made.reported(A, leads(5, standby=B, is_lost=True), 1.0)
    assert effects == [Keep(0, shared(6, "a", A)), tell(A, 1, Role.PRIMARY, 6)]
    assert made.decide(2.0) == [tell(A, 1, Role.PRIMARY, 6)], "until it has heard"


def test_a_standby_that_cannot_be_reached_is_removed_only_if_the_primary_can() -> None:
    made = in_sync()
    assert made.died(B, 1.0, is_certain=False) == [Ask(0, A)]
    removed = [Keep(0, shared(6, "a", A)), tell(A, 1, Role.PRIMARY, 6)]
    assert made.reported(A, leads(5, standby=B, is_in_sync=True), 2.0) == removed
    made = in_sync()
    assert made.died(B, 1.0, is_certain=False) == [Ask(0, A)]
    assert made.died(A, 2.0, is_certain=False) == []
    assert made.reported(B, follows(5, is_whole=True), 3.0) == [
        Keep(0, shared(6, "b", B)),
        tell(B, 1, Role.PRIMARY, 6),
    ], "it was the supervisor that was cut off"


def test_whoever_was_to_lead_and_cannot_be_reached_is_waited_for_from_then_on() -> None:
    made = in_sync()
    succeeds(made, made.died(A, 1.0, is_certain=True), 1.5)
    made.reported(A, new(2), 2.0)
    assert made.died(B, WAIT_MS, is_certain=False) == [], "it may have led until now"
    assert made.decide(WAIT_MS + BEGIN_MS - 1) == [], "it may be loading what nobody else has"
    assert made.decide(WAIT_MS + BEGIN_MS) == [Renew(0, B)]
    (missing, *_) = made.replaced(B, WAIT_MS + BEGIN_MS, was_there=False)
    assert missing == Missing(0, "b")


def filling() -> ShardRoles:
    """`A` leads without a lease, `B` has not everything yet, and `A` cannot be reached any more."""
    made = roles(shared(5, "a", A))
    made.reported(A, leads(5, standby=B), 0.0)
    made.reported(B, follows(5), 0.0)
    assert made.died(A, 0.0, is_certain=False) == []
    assert made.decide(WAIT_MS - 1) == []
    return made


def test_a_primary_that_may_serve_still_is_ended_before_the_shard_begins_empty() -> None:
    made = filling()
    assert made.reported(B, follows(5), WAIT_MS) == [Renew(0, A)]
    assert made.decide(WAIT_MS) == [Renew(0, A)], "until that is done"
    assert made.replaced(A, WAIT_MS, was_there=True) == []
    assert made.reported(B, follows(5), 2 * WAIT_MS - 1) == [], "its store can be had now"
    assert made.reported(A, new(2, "a", 5, 9), 2 * WAIT_MS - 1) == [
        Keep(0, shared(6, "a", A)),
        tell(A, 2, Role.PRIMARY, 6, is_dead=True),
    ]


def test_a_primary_that_comes_back_before_anybody_began_goes_on() -> None:
    made = filling()
    assert made.decide(WAIT_MS) == [Renew(0, A)]
    assert made.reported(A, leads(5, standby=B), WAIT_MS) == []
    assert made.record == shared(5, "a", A)
    made.died(A, 2 * WAIT_MS, is_certain=False)
    assert made.decide(3 * WAIT_MS - 1) == []
    assert made.decide(3 * WAIT_MS) == [Renew(0, A)], "it is another time"


def test_who_was_told_to_lead_loads_its_store_until_it_says_that_it_leads() -> None:
    made = roles(shared(5, "a", A))
    assert not made.is_beginning(A), "it was not told in this life"
    made.reported(B, new(store="b", epoch=5), 1.0)
    (_, told) = made.reported(A, new(store="a", epoch=5, offset=1), 2.0)
    assert told == tell(A, 1, Role.PRIMARY, 6, is_dead=True)
    assert made.died(A, 3.0, is_certain=False) == []
    assert (made.is_beginning(A), made.is_beginning(B)) == (True, False)
    assert made.decide(2.0 + BEGIN_MS) == []
    assert made.decide(3.0 + BEGIN_MS) == [Renew(0, A)], "it takes too long"
    made.reported(A, leads(6), 4.0 + BEGIN_MS)
    made.died(A, 5.0 + BEGIN_MS, is_certain=False)
    assert not made.is_beginning(A), "it has led, and was lost after that"
    assert made.decide(5.0 + BEGIN_MS + WAIT_MS) == [Renew(0, A)]


@pytest.mark.parametrize("how", ["its end is certain", "it was made anew"])
def test_who_was_told_to_lead_and_is_no_more_loads_nothing(how: str) -> None:
    made = in_sync()
    succeeds(made, made.died(A, 1.0, is_certain=True), 2.0)
    assert made.is_beginning(B)
    if how == "its end is certain":
        made.died(B, 3.0, is_certain=True)
    else:
        made.replaced(B, 3.0, was_there=False)
    assert not made.is_beginning(B)


def begins_empty(effects: list[Any]) -> bool:
    return effects == [
        Missing(0, "a"),
        Keep(0, shared(6, "", B, 6)),
        tell(B, 1, Role.PRIMARY, 6, is_dead=True, begins_empty=True),
    ]


@pytest.mark.parametrize("when", ["its end is certain", "there was none", "it does not come back"])
def test_the_shard_begins_empty_only_when_no_primary_can_be_left(when: str) -> None:
    made = filling()
    match when:
        case "its end is certain":
            assert made.died(A, 1.0, is_certain=True) == []
            effects = made.decide(WAIT_MS)
        case "there was none":
            assert made.decide(WAIT_MS) == [Renew(0, A)]
            effects = made.replaced(A, WAIT_MS, was_there=False)
        case _:
            made.replaced(A, WAIT_MS, was_there=True)
            effects = made.decide(2 * WAIT_MS)
    assert begins_empty(effects)


@pytest.mark.parametrize("store", ["a", ""], ids=["on record", "none on record"])
def test_a_primary_that_nobody_can_be_asked_for_is_ended_too(store: str) -> None:
    made = roles(shared(5, store, A))
    made.died(A, 0.0, is_certain=False)
    made.died(B, 0.0, is_certain=False)
    assert made.decide(WAIT_MS - 1) == []
    assert made.decide(WAIT_MS) == [Renew(0, A)]
    assert made.replaced(A, WAIT_MS, was_there=True) == []
    assert made.decide(3 * WAIT_MS) == [], "there is nobody to begin"


def test_who_was_ended_under_an_earlier_want_is_not_taken_for_ended() -> None:
    made = filling()
    made.replaced(A, WAIT_MS, was_there=True)
    made.want((B,), WAIT_MS)
    made.want((A, B), WAIT_MS)
    made.died(A, WAIT_MS, is_certain=False)
    assert made.decide(2 * WAIT_MS) == [Renew(0, A)]


def test_a_removed_standby_is_not_promoted_whatever_it_says() -> None:
    made = in_sync()
    made.died(B, 1.0, is_certain=True)
    made.reported(A, leads(6), 2.0)
    assert made.reported(B, follows(5, is_whole=True), 3.0) == [tell(B, 1, Role.STANDBY, 6, A)]
    assert made.died(A, 4.0, is_certain=True) == []


def test_a_new_life_of_the_supervisor_grants_nothing_anew() -> None:
    made = roles(shared(5, "a", A))
    assert made.reported(B, follows(5, is_whole=True), 1.0) == [], "the primary was not heard of yet"
    assert made.reported(A, leads(5, standby=B, is_in_sync=True), 2.0) == []
    assert made.record == shared(5, "a", A)


def test_what_was_kept_and_not_told_is_told_by_the_next_life() -> None:
    made = roles(shared(6, "b", B))
    assert made.reported(B, follows(5, is_whole=True), 1.0) == [tell(B, 1, Role.PRIMARY, 6)]


def test_both_dead_the_primary_s_own_store_goes_on() -> None:
    made = in_sync()
    made.died(B, 1.0, is_certain=True)
    made.died(A, 2.0, is_certain=True)
    assert made.reported(B, new(9, store="b", epoch=5), 3.0) == [], "it was removed before the primary died"
    assert made.reported(A, new(9, store="a", epoch=5), 4.0)[0] == Keep(0, shared(7, "a", A))


def test_a_hand_over_ends_the_primary_once_its_standby_has_everything() -> None:
    made = roles(shared(5, "a", A))
    made.is_handing_over = True
    made.reported(B, follows(5), 0.0)
    assert made.reported(A, leads(5, standby=B), 0.0) == []
    made.reported(B, follows(5, is_whole=True), 1.0)
    assert made.reported(A, leads(5, standby=B, is_in_sync=True), 1.0) == [End(0, A)]
    assert succeeds(made, made.died(A, 2.0, is_certain=True), 2.5)[0] == Keep(0, shared(6, "b", B))
    assert (made.is_handing_over, made.promotions) == (False, 0)


def test_an_actor_that_is_not_wanted_is_no_standby_any_longer() -> None:
    made = in_sync()
    assert made.want((A,), 1.0) == [
        Keep(0, Record(5, "a", A)),
        Keep(0, Record(6, "a", A)),
        tell(A, 1, Role.PRIMARY, 6),
    ]
    assert made.reported(B, follows(5, is_whole=True), 2.0) == []


def test_before_a_second_actor_is_told_anything_the_first_may_not_begin_by_itself() -> None:
    made = roles(Record(5, "a", A), actors=(A,))
    assert made.reported(A, leads(5), 0.0) == []
    assert made.want((A, B), 1.0) == [Keep(0, shared(5, "a", A))]


def test_a_shard_that_had_two_actors_and_has_one_goes_on_with_the_store_that_led() -> None:
    made = ShardRoles(0, shared(5, "b", B), wait_ms=WAIT_MS, now_ms=0.0)
    assert made.want((A,), 0.0) == [Keep(0, Record(5, "b", B))]
    assert made.reported(A, new(store="b", epoch=5), 1.0)[0] == Keep(0, Record(6, "b", A))


def test_a_primary_that_was_alone_has_begun_anew_by_itself() -> None:
    made = roles(Record(5, "a", A), actors=(A,))
    assert made.reported(A, leads(7), 0.0) == []
    assert made.record == Record(7, "a", A)


def test_a_primary_that_began_anew_as_it_got_a_second_is_kept_as_one_of_two() -> None:
    made = roles(shared(5, "a", A))
    assert made.reported(A, leads(7), 0.0) == [Keep(0, shared(7, "a", A))]
    assert made.reported(A, leads(7), 1.0) == []


def test_a_successor_that_died_before_it_led_leaves_nobody_waiting() -> None:
    made = in_sync()
    (kept, told) = succeeds(made, made.died(A, 1.0, is_certain=False), 1.5)
    assert (kept, told) == (Keep(0, shared(6, "b", B)), tell(B, 1, Role.PRIMARY, 6))
    assert made.reported(A, leads(5, standby=B, is_lost=True), 2.0) == [told], "it may be about to lead"
    assert made.died(B, 3.0, is_certain=False) == [], "it may lead, for all that is known"
    steps_down = tell(A, 1, Role.STANDBY, 6, B)
    assert made.died(B, 4.0, is_certain=True) == [steps_down]
    assert made.reported(B, new(2, "b", 5, 70), 5.0) == [steps_down]
    assert made.reported(A, new(3, "a", 5, 75), 6.0) == [
        Keep(0, shared(7, "a", A)),
        tell(A, 3, Role.PRIMARY, 7, is_dead=True),
    ], "what the one on record lost in a power cut, the other has"


def test_a_successor_that_led_counts_whoever_has_come_further() -> None:
    made = roles(shared(6, "b", B))
    made.reported(A, new(3, "a", 5, 75), 1.0)
    assert made.reported(B, new(2, "b", 6, 3), 2.0) == [
        Keep(0, shared(7, "b", B)),
        tell(B, 2, Role.PRIMARY, 7, is_dead=True),
    ]


def test_who_was_to_lead_and_never_did_waits_for_the_other_s_store() -> None:
    made = roles(shared(6, "b", B))
    assert made.reported(B, new(2, "b", 5, 70), 1.0) == []
    assert made.decide(WAIT_MS) == [Keep(0, shared(7, "b", B, 7)), tell(B, 2, Role.PRIMARY, 7, is_dead=True)]


def test_with_no_store_on_record_whoever_may_have_more_is_waited_for() -> None:
    made = roles(shared(5, "", A))
    made.reported(A, leads(5, "", B, is_in_sync=True), 0.0)
    made.reported(B, follows(5, is_whole=True), 0.0)
    assert made.died(B, 1.0, is_certain=False) == [Ask(0, A)]
    assert made.reported(A, new(2), 2.0) == [], "it has begun anew, with nothing"
    assert made.reported(B, follows(5, is_whole=True), 3.0) == [
        Keep(0, shared(6, "b", B)),
        tell(B, 1, Role.PRIMARY, 6, is_dead=True),
    ]


def test_what_was_whole_under_the_epochs_of_a_record_is_in_what_the_shard_has() -> None:
    made = roles(shared(5, "a", A, 3))
    made.reported(A, new(2, "a", 5, 100), 1.0)
    made.reported(B, new(2, "b", 5, 150), 1.0)
    assert made.record == shared(6, "b", B, 3), "both were compared"
    made.reported(B, leads(6, "b", A, is_in_sync=True), 2.0)
    made.reported(A, follows(6, store="c", is_whole=True), 2.0)
    made.died(A, 3.0, is_certain=True)
    assert made.record == shared(7, "b", B, 3)
    made.want((B,), 4.0)
    assert made.record == Record(7, "b", B, since=3)


def test_what_a_store_that_was_not_heard_of_holds_may_be_nowhere_else() -> None:
    made = roles(shared(5, "a", A, 3))
    made.died(B, 0.0, is_certain=True)
    made.reported(A, new(2, "a", 5, 100), 1.0)
    made.decide(WAIT_MS)
    assert made.record == shared(6, "a", A, 6)
    made = in_sync()
    made.died(B, 1.0, is_certain=True)
    made.reported(A, leads(6), 2.0)
    made.died(A, 3.0, is_certain=True)
    made.reported(A, new(2, "a", 6, 100), 4.0)
    assert made.record == shared(7, "a", A), "it is known that there is none"


@pytest.mark.parametrize(("a", "since"), [(new(2, "a", 5, 100), 5), (new(2, "a", 4, 100), 5), (new(2), 5)])
def test_without_a_record_what_is_of_earlier_epochs_may_be_nowhere_else(a: Report, since: int) -> None:
    made = roles()
    made.reported(A, a, 1.0)
    made.reported(B, new(2, "b", 5, 150), 1.0)
    assert made.record == shared(6, "b", B, since)


def test_a_store_of_before_the_shard_began_empty_that_goes_on_after_all_has_not_what_came_since() -> None:
    made = roles(shared(9, "", A, 9))
    made.reported(A, new(2), 1.0)
    made.reported(B, new(2, "b", 5, 150), 1.0)
    assert made.record == shared(10, "b", B, 10)


@pytest.mark.parametrize("store", ["new", "memory"])
def test_a_primary_that_could_not_read_its_store_leaves_what_others_hold(store: str) -> None:
    made = roles(shared(5, "a", A, 3))
    assert made.reported(A, leads(5, store), 1.0) == [Keep(0, shared(5, store, A, 5))]
    assert made.reported(A, leads(5, store), 2.0) == []


def test_a_primary_that_began_alone_without_its_store_leaves_it() -> None:
    made = roles(shared(5, "a", A, 3))
    assert made.reported(A, leads(7, "new"), 0.0) == [Keep(0, shared(7, "new", A, 7))]


def test_who_alone_could_lead_is_left_to_come_back() -> None:
    made = ShardRoles(0, Record(5, "a", A), wait_ms=0.0, now_ms=0.0)
    made.want((A,), 0.0)
    assert made.died(A, 1.0, is_certain=False) == []
    assert made.decide(WAIT_MS) == []


@pytest.mark.parametrize("wait_ms", [0.0, 5_000.0])
def test_however_short_stores_are_waited_for_nobody_is_ended_for_loading_one(wait_ms: float) -> None:
    made = ShardRoles(0, shared(5, "a", A), wait_ms=wait_ms, now_ms=0.0)
    made.want((A, B), 0.0)
    made.reported(B, new(), 1.0)
    assert made.died(A, 1.0, is_certain=False) == []
    assert made.decide(RENEW_MS - 1) == []
    assert made.decide(RENEW_MS) == [Renew(0, A)]
