"""The home of presence topics, fed by gateways that the test plays."""

from typing import Any

from cluster.core.messages import (
    ListMembers,
    MemberList,
    PresenceDiff,
    PresenceMember,
    PresenceNews,
    PresenceResume,
    PresenceWanted,
    Restored,
    TopicList,
)
from cluster.core.presence import GATEWAY_GRACE_MS, WINDOW_MS, PresenceOutbox, PresenceTopics

BIG = 1_000_000


def member(name: str, state: Any = 1, *, at: int = 5, subject: str = "s") -> PresenceMember:
    return PresenceMember(name, subject, str(state).encode(), at)


class Home:
    """A home and the outboxes of the gateways `a` and `b`."""

    def __init__(self, *, gateways: tuple[str, ...] = ("a", "b"), said: bool = True) -> None:
        self.now_ms = 1_000.0
        self.topics = PresenceTopics(gateways)
        self.boxes = {name: PresenceOutbox() for name in ("a", "b")}
        if said:
            for name in gateways:
                self.say(name, begins=True, ends=True)

    def say(self, gateway: str, *, life: int = 1, begins: bool = False, ends: bool = False, **more: Any) -> None:
        given: dict[str, Any] = {"put": [], "left": [], "heard": [], "heard_at": 0, "watches": [], **more}
        news = PresenceNews(0, life, begins, ends, **given)
        self.topics.news(gateway, self.boxes[gateway], news, self.now_ms)

    def join(self, gateway: str, *members: PresenceMember, **more: Any) -> None:
        self.say(gateway, put=[("t", 1, each) for each in members], **more)

    def watch(self, gateway: str, mode: str = "members", number: int = 1) -> None:
        self.say(gateway, watches=[("t", number, mode)])

    def told(self, gateway: str, budget: int = BIG) -> list[Any]:
        return self.boxes[gateway].items(self.now_ms, budget, settled=self.topics.settled)

    def later(self, gateway: str) -> list[Any]:
        self.now_ms += WINDOW_MS
        return self.told(gateway)


def diff(members: list[PresenceMember], left: list[str], count: int, *, whole: bool = False, number: int = 1) -> Any:
    return PresenceDiff("t", number, members, left, count, whole)


def test_a_watch_is_answered_by_all_there_are_and_then_by_what_changes() -> None:
    home = Home()
    home.join("a", member("m1"), member("m2"))
    home.watch("b")
    assert home.boxes["b"].due_at() == 0.0
    assert home.told("b") == [diff([member("m1"), member("m2")], [], 2, whole=True)]
    assert home.boxes["b"].due_at() is None
    home.join("a", member("m3"))
    assert home.told("b") == [diff([member("m3")], [], 3)], "the first after a quiet time leaves at once"
    home.join("a", member("m1", 9))
    home.say("a", left=[("t", "m2")])
    assert home.told("b") == []
    assert home.boxes["b"].due_at() == home.now_ms + WINDOW_MS
    assert home.later("b") == [diff([member("m1", 9)], ["m2"], 2)]


def test_what_comes_to_nothing_within_a_window_is_not_told() -> None:
    home = Home()
    home.watch("b")
    assert home.told("b") == [diff([], [], 0, whole=True)]
    home.join("a", member("m1"))
    home.say("a", left=[("t", "m1")])
    assert home.told("b") == []
    home.join("a", member("m1"))
    assert home.later("b") == [diff([member("m1")], [], 1)]
    home.say("a", left=[("t", "m1")])
    home.join("a", member("m1", 2))
    assert home.later("b") == [diff([member("m1", 2)], [], 1)]


def test_a_heartbeat_tells_nobody_and_moves_last_active() -> None:
    home = Home()
    home.watch("b")
    home.join("a", member("m1"))
    home.told("b")
    home.say("a", heard=[("t", ["m1", "unknown"]), ("nowhere", ["m1"])], heard_at=77)
    home.join("a", member("m1", at=80))
    assert home.later("b") == []
    answer = home.topics.ask("b", ListMembers(1, "t", "", 10), home.now_ms)
    assert answer == MemberList(1, [member("m1", at=80)], False)


def test_a_count_is_told_as_a_count() -> None:
    home = Home()
    home.join("a", member("m1"))
    home.watch("b", "count", number=4)
    assert home.told("b") == [diff([], [], 1, number=4)]
    home.join("a", member("m2"))
    assert home.later("b") == [diff([], [], 2, number=4)]
    home.watch("b", "")
    home.join("a", member("m3"))
    assert home.later("b") == []


def test_a_long_listing_is_sent_in_pieces_and_only_the_last_is_whole() -> None:
    home = Home()
    home.join("a", *(member(f"m{n}") for n in range(10)))
    home.watch("b")
    pieces = []
    while home.boxes["b"].due_at() is not None:
        pieces.extend(home.told("b", budget=250))
    assert [each.whole for each in pieces] == [False, False, False, True]
    assert [row.member for each in pieces for row in each.members] == [f"m{n}" for n in range(10)]


def test_topics_are_listed_by_how_many_are_in_them() -> None:
    home = Home()
    home.watch("b")
    home.join("a", member("m1"), member("m2"))
    home.say("a", put=[("u", 1, member("m1"))])
    assert home.topics.listed(1) == TopicList([("t", 2)], 2)
    assert home.topics.listed(9) == TopicList([("t", 2), ("u", 1)], 2)


def test_members_are_listed_by_pages() -> None:
    home = Home()
    home.join("a", member("b"), member("c"), member("a"))
    first = home.topics.ask("a", ListMembers(1, "t", "", 2), home.now_ms)
    assert first == MemberList(3, [member("a"), member("b")], True)
    assert home.topics.ask("a", ListMembers(1, "t", "b", 2), home.now_ms) == MemberList(3, [member("c")], False)
    assert home.topics.ask("a", ListMembers(1, "empty", "", 2), home.now_ms) == MemberList(0, [], False)


def test_a_silent_gateways_members_are_gone_after_the_grace_and_it_is_asked_for_them() -> None:
    home = Home()
    home.watch("b")
    home.join("a", member("m1"))
    home.told("b")
    home.now_ms += GATEWAY_GRACE_MS - 1
    home.topics.wake(home.now_ms)
    assert home.topics.deadline() == home.now_ms + 1
    assert home.later("b") == []
    home.topics.wake(home.now_ms)
    assert home.told("b") == [diff([], ["m1"], 0)]
    assert home.topics.member_count == 0
    assert home.topics.deadline() is None
    assert home.told("a") == [PresenceWanted()]
    home.join("a", member("m1"), begins=True, ends=True)
    assert home.later("b") == [diff([member("m1")], [], 1)]


def test_what_a_gateway_does_not_say_again_is_gone() -> None:
    home = Home()
    home.watch("b")
    home.join("a", member("m1"), member("m2"))
    home.told("b")
    home.join("a", member("m2"), begins=True)
    assert home.later("b") == []
    home.say("a", ends=True)
    assert home.later("b") == [diff([], ["m1"], 1)]


def test_a_new_life_of_a_gateway_does_not_end_what_the_last_one_had_before_the_grace_and_may_take_it_over() -> None:
    home = Home()
    home.watch("b")
    home.join("a", member("m1"), member("m2"))
    home.told("b")
    home.now_ms += 2_000
    home.say("a", life=2, begins=True, ends=True)
    restored = home.topics.ask("a", PresenceResume(1, 2, "m1"), home.now_ms)
    assert restored == Restored([("t", 2, member("m1"))])
    home.say("a", life=1, left=[("t", "m1")])
    assert home.later("b") == []
    home.now_ms += GATEWAY_GRACE_MS
    home.say("a", life=2)
    home.topics.wake(home.now_ms)
    assert home.later("b") == [diff([], ["m2"], 1)]


def test_a_home_that_begins_anew_takes_nobody_away_before_all_have_said_what_they_have() -> None:
    home = Home(said=False)
    home.watch("b")
    home.join("b", member("m1"), begins=True, ends=True)
    assert home.told("b") == [PresenceWanted(), diff([member("m1")], [], 1)]
    assert home.topics.ask("b", ListMembers(7, "t", "", 9), home.now_ms) is None
    assert list(home.topics.answers(home.now_ms)) == []
    home.join("a", member("m2"), begins=True, ends=True)
    assert home.told("b") == [diff([member("m2")], [], 2, whole=True)]
    assert list(home.topics.answers(home.now_ms)) == [("b", 7, MemberList(2, [member("m1"), member("m2")], False))]
    assert list(home.topics.answers(home.now_ms)) == []


def test_it_waits_no_longer_than_a_gateway_may_be_silent() -> None:
    for gateways in (("a", "b"), ()):
        home = Home(gateways=gateways, said=False)
        home.say("b", begins=True, ends=True)
        home.watch("b", "count")
        assert home.told("b") == []
        assert home.topics.deadline() == home.now_ms + GATEWAY_GRACE_MS
        home.now_ms += GATEWAY_GRACE_MS
        home.topics.wake(home.now_ms)
        assert home.told("b") == [diff([], [], 0)]
    home = Home(said=False)
    home.say("b", begins=True, ends=True)
    home.topics.gateways(["b"], home.now_ms)
    assert home.topics.settled


def test_of_two_that_claim_a_member_the_higher_generation_has_it() -> None:
    home = Home(said=False)
    home.say("a", begins=True, ends=True, put=[("t", 2, member("m1", 2))])
    home.say("b", begins=True, ends=True, put=[("t", 1, member("m1", 1))])
    home.say("b", left=[("t", "m1")])
    assert home.topics.ask("a", ListMembers(1, "t", "", 9), home.now_ms) == MemberList(1, [member("m1", 2)], False)
    home.say("b", put=[("t", 1, member("m1", 3))])
    home.say("a", left=[("t", "m1")])
    listed = home.topics.ask("a", ListMembers(1, "t", "", 9), home.now_ms)
    assert listed == MemberList(1, [member("m1", 3)], False), "who says so now is right"


def test_who_only_may_come_back_is_not_taken_from_where_it_is() -> None:
    home = Home()
    home.join("a", member("m1"))
    home.watch("b")
    home.told("b")
    assert home.topics.ask("b", PresenceResume(1, 1, "m1"), home.now_ms) == Restored([("t", 2, member("m1"))])
    home.say("a", put=[("t", 0, member("m1", 2))])
    home.say("a", left=[("t", "m1")])
    assert home.later("b") == []
    assert home.topics.member_count == 1


def test_a_closed_link_ends_watches_and_drops_what_waits() -> None:
    home = Home(said=False)
    home.watch("b")
    assert home.topics.ask("b", ListMembers(7, "t", "", 9), home.now_ms) is None
    home.topics.closed("b")
    home.boxes["b"].clear()
    home.join("a", member("m1"), begins=True, ends=True)
    home.say("b", begins=True, ends=True)
    assert list(home.topics.answers(home.now_ms)) == []
    assert home.told("b") == []


def test_what_nobody_is_in_and_nobody_watches_is_forgotten() -> None:
    home = Home()
    home.join("a", member("m1"))
    home.watch("b")
    home.say("a", left=[("t", "m1"), ("t", "m1"), ("u", "m1")])
    home.watch("b", "")
    home.watch("b", "")
    assert (home.topics._topics, home.topics._places, home.topics.member_count) == ({}, {}, 0)
