"""A gateway's replica of a topic: what watchers in step are handed, what the others are owed."""

from typing import Any

import orjson
import pytest

from cluster.core import presence_room, template
from cluster.core.messages import PresenceDiff, PresenceMember
from cluster.core.presence_room import Pattern, Room, Seat
from cluster.core.tenant import NOBODYS


def member(name: str, state: Any = 1) -> PresenceMember:
    return PresenceMember(name, "s", str(state).encode(), 5)


class Session:
    def __init__(self, name: str) -> None:
        self.id = name
        self.out: list[bytes] = []
        self.out_bytes = 0
        self.in_step = True
        self.tenant = NOBODYS

    def read(self) -> list[dict[str, Any]]:
        texts, self.out, self.out_bytes = self.out, [], 0
        return [orjson.loads(text) for text in texts]


class Played:
    """A room, its watchers, and its home played by the test."""

    def __init__(self, *modes: str) -> None:
        self.room = Room("t", 0, Pattern(template.parse("t"), 1.0, 2.0))
        self.seats = [self.sit(mode) for mode in modes]
        self.room.watch(1)

    def sit(self, mode: str) -> Seat:
        seat = self.room.seats[str(len(self.room.seats))] = Seat(self.room, Session("s"), mode)  # type: ignore[arg-type]
        return seat

    def told(self, *members: PresenceMember, left: tuple[str, ...] = (), count: int = 0, **more: Any) -> list[Seat]:
        given = {"whole": False, "number": self.room.number, **more}
        diff = PresenceDiff("t", given["number"], list(members), list(left), count, given["whole"])
        return self.room.take(diff)

    def owed(self, seat: Seat) -> list[dict[str, Any]]:
        """All that a seat is owed."""
        messages, more = [], True
        while more:
            text, more = self.room.write(seat)
            if text:
                messages.append(orjson.loads(text))
        return messages


def row(name: str, state: Any = 1) -> dict[str, Any]:
    return {"member": name, "subject": "s", "state": state, "last_active": 5}


def message(count: int, joined: Any = (), updated: Any = (), left: Any = (), **more: Any) -> dict[str, Any]:
    lists = {"joined": list(joined), "updated": list(updated), "left": list(left)}
    return {"type": "presence", "topic": "t", **lists, "count": count, **more}


def test_watchers_are_told_when_all_are_known_and_then_of_each_change() -> None:
    played = Played("members", "count")
    members, count = played.seats
    assert played.told(member("m1")) == []
    assert played.owed(members) == played.owed(count) == []
    assert played.told(member("m2"), whole=True) == [members, count]
    assert played.owed(members) == [message(2, [row("m1"), row("m2")], snapshot=True)]
    assert played.owed(count) == [message(2, snapshot=True)]
    assert played.told(member("m1", 2), member("m3"), left=("m2", "unknown")) == []
    assert members.reader.read() == [message(2, [row("m3")], [row("m1", 2)], ["m2"])]  # type: ignore[attr-defined]
    assert count.reader.read() == [], "as many as before"  # type: ignore[attr-defined]
    assert played.told(left=("m1",)) == []
    assert count.reader.read() == [message(1)]  # type: ignore[attr-defined]


def test_a_diff_is_encoded_once_for_all_in_a_mode() -> None:
    played = Played("members", "members", "count", "count")
    for seat in played.told(whole=True):
        played.owed(seat)
    played.told(member("m1"))
    first, second, third, fourth = (seat.reader.out for seat in played.seats)
    assert first[0] is second[0]
    assert third[0] is fourth[0]
    assert first[0] != third[0]


def test_who_is_not_in_step_is_owed_one_change() -> None:
    played = Played("members", "count")
    for seat in played.told(member("m1"), member("m2"), whole=True):
        played.owed(seat)
    members, count = played.seats
    members.reader.in_step = count.reader.in_step = False  # type: ignore[attr-defined,misc]
    assert played.told(member("m3"), member("m1", 2)) == [members, count]
    assert played.told(member("m4"), member("m1", 3), left=("m2", "m3")) == [members, count]
    members.reader.in_step = count.reader.in_step = True  # type: ignore[attr-defined,misc]
    assert played.told(left=("m4",)) == [members], "it is owed what was before"
    assert count.reader.read() == [message(1)]  # type: ignore[attr-defined]
    assert played.owed(members) == [message(1, [], [row("m1", 3)], ["m2"])]
    assert played.owed(count) == [message(1)]
    played.told(member("m5"))
    assert members.reader.read() == [message(2, [row("m5")])]  # type: ignore[attr-defined]


def test_a_long_listing_comes_in_pages_with_what_changed_meanwhile_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence_room, "PAGE_MEMBERS", 2)
    played = Played("members")
    (seat,) = played.seats
    played.told(*(member(f"m{n}") for n in range(1, 6)), whole=True)
    text, more = played.room.write(seat)
    assert (orjson.loads(text), more) == (message(5, [row("m1"), row("m2")], snapshot=True, more=True), True)
    # of those not listed yet one leaves and one changes; of those listed one leaves; one is new
    assert played.told(member("m4", 9), member("m6"), left=("m3", "m1")) == [seat]
    assert played.owed(seat) == [
        message(4, [row("m4", 9), row("m5")], snapshot=True),
        message(4, [row("m6")], [], ["m1"]),
    ]


def test_a_home_that_begins_anew_shows_only_what_differs_in_the_end() -> None:
    played = Played("members", "count")
    for seat in played.told(member("m1"), member("m2"), member("m3"), whole=True):
        played.owed(seat)
    members, count = played.seats
    played.room.watch(2)
    assert played.told(member("m9"), number=1) == [], "of the watch before"
    played.told(member("m1"))
    late = played.sit("members")
    assert members.reader.read() == []  # type: ignore[attr-defined]
    played.told(member("m2", 5), member("m4"))
    assert members.reader.read() == [message(4, [row("m4")], [row("m2", 5)])]  # type: ignore[attr-defined]
    assert count.reader.read() == []  # type: ignore[attr-defined]
    assert played.told(whole=True) == [late]
    assert members.reader.read() == [message(3, [], [], ["m3"])]  # type: ignore[attr-defined]
    assert count.reader.read() == [], "three before and after"  # type: ignore[attr-defined]
    assert played.owed(late) == [message(3, [row("m1"), row("m2", 5), row("m4")], snapshot=True)]


def test_a_count_is_watched_as_a_count_and_members_when_somebody_wants_them() -> None:
    played = Played("count")
    (seat,) = played.seats
    assert played.room.mode == "count"
    assert played.told(count=7) == [seat]
    assert played.owed(seat) == [message(7, snapshot=True)]
    assert played.told(count=7) == []
    assert played.told(count=8) == []
    assert seat.reader.read() == [message(8)]  # type: ignore[attr-defined]
    more = played.sit("members")
    played.room.watch(2)
    assert played.room.mode == "members"
    played.told(member("m1"))
    assert seat.reader.read() == [], "not all are known"  # type: ignore[attr-defined]
    assert played.told(member("m2"), whole=True) == [more]
    assert seat.reader.read() == [message(2)]  # type: ignore[attr-defined]


def test_a_count_that_could_not_be_handed_out_is_owed_over_a_new_beginning() -> None:
    played = Played("count")
    (seat,) = played.seats
    played.told(count=1)
    played.owed(seat)
    seat.reader.in_step = False  # type: ignore[misc]
    assert played.told(count=2) == [seat]
    played.room.watch(2)
    assert played.owed(seat) == []
    seat.reader.in_step = True  # type: ignore[misc]
    played.told(count=2)
    assert seat.reader.read() == [message(2)]  # type: ignore[attr-defined]
