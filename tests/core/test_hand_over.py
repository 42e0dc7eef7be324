"""Units pass from one ingestor to another without an event lost or doubled where the upstream allows it, and with a told gap elsewhere."""

from collections.abc import Sequence
from typing import Any

import pytest

from cluster.config import compile_config, load_mapping
from cluster.core import unasked_channels
from cluster.core.feed import Repeats
from cluster.core.hand_over import AGAIN_MS, MAX_HELD, OPEN_WAIT_MS, OVERLAP_MS, RETRY_MS
from cluster.core.ingestion_state import (
    AskMissed,
    Effect,
    IngestionState,
    Join,
    Leave,
    Reconnect,
    SourceTraits,
    Start,
    Stop,
)
from cluster.core.messages import (
    Blob,
    BlobTaken,
    Checkpoint,
    Claimed,
    Demand,
    DemandMet,
    FeedRange,
    Full,
    HandOver,
    Header,
    Members,
    Moved,
    Noted,
    Send,
    Take,
)
from cluster.core.operation import Append
from cluster.core.overflow import Overflow
from cluster.core.placement import assign_slots

NOW = 1_000_000.0
ONE = Members(1, ["ingestor-0"])
TWO = Members(2, ["ingestor-0", "ingestor-1"], ["ingestor-0"])
CHANNEL, STAYS = "c:a", "c:b"
"""By rendezvous hashing the first goes to ingestor-1, as the source does, and the second stays."""
UNIT = f"events/{CHANNEL}"
DOCUMENT = {
    "sources": {"events": {"type": "websocket", "url": "ws://upstream"}},
    "streams": [
        {"source": "events", "channel": "c:{name}", "on": {"add": {"append": {"key": ["list"], "item": "{data}"}}}}
    ],
}
RESUMES = SourceTraits(Repeats.CHANNEL, has_ids=True)
WHOLE = SourceTraits(Repeats.SOURCE, has_ids=True)
ASKS = SourceTraits(Repeats.SOURCE, asks=True, has_ids=True)
IDS = SourceTraits(is_spread=True, has_ids=True)
NO_IDS = SourceTraits(is_spread=True)


class Ingestor:
    """A machine whose claims are answered at once, with one shard and one coordinator that commits what it gets."""

    def __init__(
        self,
        number: int,
        traits: SourceTraits,
        members: Members,
        cursors: Sequence[tuple[str, int, int]] = (),
        checkpoints: Sequence[Checkpoint] = (),
    ) -> None:
        compiled = compile_config(load_mapping(DOCUMENT, {}))
        self.machine = IngestionState(
            f"ingestor-{number}",
            10 + number,
            routers={"events": compiled.router("events")},
            always=[],
            slots=assign_slots(range(1), 1),
            shards=1,
            coordinators=1,
            profiles=compiled.profiles,
            traits={"events": traits},
            members=members,
        )
        self.now = NOW
        self.commits = True
        self.cursors = list(cursors)
        """What claims are answered with, as `checkpoints`."""
        self.checkpoints = list(checkpoints)
        self.effects: list[Any] = []
        """But for calls to the coordinator, and announcements."""
        self.items: list[int] = []
        self.ranges: list[FeedRange] = []
        self._sequence = 0
        self.run(self.machine.wake(self.now))

    def run(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send) and isinstance(effect.message, Blob):
                self._commit(effect)
            elif isinstance(effect, Send) and effect.to.startswith("shard-"):
                self.machine.answered(effect.to, effect.message, Noted(1), self.now)
            else:
                self.effects.append(effect)

    def _commit(self, send: Send) -> None:
        blob = send.message
        for part in blob.parts:
            self.ranges.extend(part.feeds)
            if part.claim is not None:
                claimed = Claimed(part.shard, part.claim.number, self.cursors, self.checkpoints)
                self.run(self.machine.claimed(claimed, self.now)[1])
            for key in part.keys:
                for operation in key.operations:
                    assert isinstance(operation, Append)
                    self.items.extend(int(item) for item in operation.items)
        self._sequence = blob.header.sequence
        committed = self._sequence if self.commits else 0
        self.run(self.machine.answered(send.to, blob, BlobTaken(9, 100.0, committed), self.now))

    def later(self, ms: float) -> None:
        self.now += ms
        self.run(self.machine.wake(self.now))

    def open(self) -> None:
        self.run(self.machine.opened("events", self.now))

    def demand(self, sequence: int, epoch: int, *channels: str) -> Any:
        header = Header("shard-0", epoch, 0 if sequence == 1 else self.machine.incarnation, sequence)
        message = Demand(header, epoch, False, [("events", channel) for channel in channels], [])
        answer, effects = self.machine.demand(message, self.now)
        self.run(effects)
        return answer

    def hear(self, *numbers: int, channel: str = CHANNEL) -> None:
        for n in numbers:
            frame = b'{"event":"add","channel":"%b","data":%d,"id":%d}' % (channel.encode(), n, n)
            self.machine.receive("events", [frame], self.now)
        self.later(100.0)

    def taken(self) -> list[Any]:
        effects, self.effects = self.effects, []
        return effects

    def said(self, kind: type) -> list[Any]:
        """What was sent to the other, of a kind; it was heard."""
        messages = [each for each in self.effects if isinstance(each, Send) and isinstance(each.message, kind)]
        self.effects = [each for each in self.effects if each not in messages]
        return [each.message for each in messages]


def joined(traits: SourceTraits) -> tuple[Ingestor, Ingestor]:
    """The first reads both channels, from which 1 and 2 have come; the second has just been made, and both know of each other."""
    first = Ingestor(0, traits, ONE)
    assert first.taken() == [Start("events")]
    first.open()
    first.demand(1, 1, CHANNEL, STAYS)
    assert first.taken() == [Join("events", CHANNEL), Join("events", STAYS)]
    first.hear(1, 2)
    second = Ingestor(1, traits, ONE)
    assert second.taken() == []
    for each in (first, second):
        answer, effects = each.machine.members(TWO, each.now)
        assert isinstance(answer, Noted)
        each.run(effects)
    return first, second


def asked(second: Ingestor, first: Ingestor) -> Moved:
    """The second asks for what is its own; returns what the first tells once that is committed."""
    (take,) = second.said(Take)
    answer, effects = first.machine.take(take, first.now)
    assert isinstance(answer, Noted)
    first.run(effects)
    first.later(0.0)
    (told,) = first.said(HandOver)
    first.run(first.machine.answered("ingestor-1", told, Noted(1), first.now))
    second.run(second.machine.hand_over(told, second.now)[1])
    (moved,) = told.moved
    assert isinstance(moved, Moved)
    return moved


def test_a_channel_that_can_be_repeated_is_joined_where_it_stopped() -> None:
    first, second = joined(RESUMES)
    assert second.taken() == [Start("events")], "it is the source's home now"
    second.open()
    assert second.demand(1, 2, CHANNEL) == DemandMet(11, [("events", CHANNEL)]), "its events come, if to the other"
    assert second.machine.resume_id("events", CHANNEL) is None
    moved = asked(second, first)
    assert (moved.unit, moved.is_known, moved.number, moved.id) == (UNIT, True, 2, 2)
    assert first.taken() == [Leave("events", CHANNEL)]
    assert second.taken() == [Join("events", CHANNEL)]
    assert second.machine.resume_id("events", CHANNEL) == 2
    first.hear(3)
    second.hear(3, 4)
    assert (first.items, second.items) == ([1, 2], [3, 4])
    ranges = [each for each in second.ranges if each.feed == UNIT]
    assert ranges == [FeedRange(UNIT, moved.incarnation, 3, 4, 0)], "in the same incarnation, counted on"
    assert second.machine.is_settled
    assert not first.machine.is_settled, "it has yet to hear what shards need of it now"
    first.demand(1, 2, STAYS)
    assert first.machine.is_settled


def test_nothing_is_told_before_all_is_committed() -> None:
    first, second = joined(RESUMES)
    second.open()
    second.demand(1, 2, CHANNEL)
    first.commits = False
    first.hear(3)
    (take,) = second.said(Take)
    first.run(first.machine.take(take, first.now)[1])
    first.later(300.0)
    assert first.said(HandOver) == []
    first.commits = True
    first.later(300.0)
    assert first.said(HandOver)[0].moved[0].number == 3


def test_what_both_have_heard_is_left_out() -> None:
    first, second = joined(IDS)
    second.open()
    second.demand(1, 2, CHANNEL)
    assert Join("events", CHANNEL) in second.taken(), "before the other has left"
    first.hear(3, 4)
    second.hear(3, 4, 5)
    assert second.items == []
    assert second.said(Take) == []
    second.later(OVERLAP_MS)
    asked(second, first)
    second.hear(6)
    assert (first.items, second.items) == ([1, 2, 3, 4], [5, 6])
    assert second.machine.gaps["events"] == 0


@pytest.mark.parametrize("heard", [[], [9]])
def test_where_it_stopped_was_not_heard_and_cannot_be_repeated(heard: list[int]) -> None:
    first, second = joined(IDS)
    second.open()
    second.demand(1, 2, CHANNEL)
    second.hear(*heard)
    second.later(OVERLAP_MS)
    asked(second, first)
    second.hear(10)
    assert second.items == [*heard, 10]
    assert second.machine.gaps["events"] == 1
    assert UNIT in {each.feed for each in second.ranges if each.first > each.last}


def test_a_connection_lost_meanwhile_makes_what_was_heard_worthless() -> None:
    first, second = joined(IDS)
    second.open()
    second.demand(1, 2, CHANNEL)
    second.hear(2, 3)
    second.open()
    second.hear(5)
    second.later(OVERLAP_MS)
    asked(second, first)
    assert second.machine.gaps["events"] == 1


def test_too_much_to_keep_is_as_if_nothing_had_been_heard() -> None:
    first, second = joined(IDS)
    second.open()
    second.demand(1, 2, CHANNEL)
    frame = b'{"event":"add","channel":"c:a","data":2,"id":2}'
    for _ in range(MAX_HELD + 2):
        second.machine.receive("events", [frame], second.now)
    second.later(OVERLAP_MS)
    asked(second, first)
    assert second.machine.gaps["events"] == 1


def test_without_ids_it_is_left_then_joined_and_the_gap_is_told() -> None:
    first, second = joined(NO_IDS)
    second.open()
    second.taken()
    second.demand(1, 2, CHANNEL)
    assert Join("events", CHANNEL) not in second.effects
    asked(second, first)
    assert first.taken() == [Leave("events", CHANNEL)]
    assert second.taken() == [Join("events", CHANNEL)]
    assert second.machine.gaps["events"] == 1


def test_a_source_that_is_one_sequence_passes_as_a_whole() -> None:
    first, second = joined(WHOLE)
    assert [each for each in second.effects if isinstance(each, Start)] == []
    second.demand(1, 2, CHANNEL)
    asked(second, first)
    left = [Leave("events", CHANNEL), Leave("events", STAYS)]
    assert first.taken() == [*left, Stop("events")], "should it come back, it joins what is needed then"
    assert second.taken() == [Join("events", CHANNEL), Start("events")]
    assert second.machine.resume_id("events") == 2
    second.open()
    second.hear(2, 3)
    assert second.items == [3]
    assert second.machine.gaps["events"] == 0


def test_what_was_missed_is_asked_for_where_the_other_stopped() -> None:
    first, second = joined(ASKS)
    assert second.taken() == [Start("events")]
    second.open()
    second.later(OVERLAP_MS)
    assert second.said(Take) == [], "shards have not said which channels they need"
    second.demand(1, 2, CHANNEL)
    second.taken()
    second.later(OVERLAP_MS)
    asked(second, first)
    assert second.taken() == [AskMissed("events", 1, 2)]


def test_a_channel_that_comes_back_to_a_connection_needs_another_one() -> None:
    first, second = joined(RESUMES)
    second.open()
    second.demand(1, 2, CHANNEL)
    asked(second, first)
    back = Members(3, ["ingestor-0"], TWO.ingestors)
    for each in (first, second):
        each.taken()
        each.machine.members(Members(2, TWO.ingestors), each.now)
        each.run(each.machine.members(back, each.now)[1])
    first.demand(1, 3, CHANNEL, STAYS)
    second.hear(3)
    (take,) = first.said(Take)
    second.run(second.machine.take(take, second.now)[1])
    second.later(0.0)
    (told,) = second.said(HandOver)
    first.run(first.machine.hand_over(told, first.now)[1])
    assert first.taken() == [Reconnect("events"), Join("events", CHANNEL)]
    first.open()
    assert first.machine.resume_id("events", CHANNEL) == 3


def test_what_waits_of_a_connection_that_another_takes_the_place_of_comes_again() -> None:
    first, second = joined(SourceTraits(Repeats.CHANNEL, has_ids=True, overflow=Overflow.DROP_OLDEST, max_buffer=100))
    second.open()
    second.demand(1, 2, CHANNEL)
    asked(second, first)
    back = Members(3, ["ingestor-0"], TWO.ingestors)
    for each in (first, second):
        each.machine.members(Members(2, TWO.ingestors), each.now)
        each.run(each.machine.members(back, each.now)[1])
    first.demand(1, 3, CHANNEL, STAYS)
    first.commits = False
    first.hear(*range(100), channel=STAYS)
    taken = first.machine.resume_id("events", STAYS)
    assert taken != 99, "else this tests nothing: the others wait"
    (take,) = first.said(Take)
    second.run(second.machine.take(take, second.now)[1])
    second.later(0.0)
    (told,) = second.said(HandOver)
    first.run(first.machine.hand_over(told, first.now)[1])
    assert Reconnect("events") in first.taken()
    first.commits = True
    first.later(1_000.0)
    assert first.machine.resume_id("events", STAYS) == taken


class TestFailures:
    def test_who_lives_anew_does_not_have_it_and_shards_say_where_it_stood(self) -> None:
        first, second = joined(RESUMES)
        second.open()
        second.demand(1, 2, CHANNEL)
        second.cursors = [(UNIT, 5, 4), ("events/c:b", 5, 1)]
        second.checkpoints = [Checkpoint(UNIT, 5, 3, 30)]
        again = Ingestor(0, RESUMES, TWO)
        moved = asked(second, again)
        assert not moved.is_known
        assert second.taken()[-1] == Join("events", CHANNEL)
        assert second.machine.resume_id("events", CHANNEL) == 30
        second.hear(31, 32)
        assert second.items == [32], "the first was number 4, which is committed"
        assert first.items == [1, 2]

    def test_who_was_still_being_repeated_to_lets_shards_say(self) -> None:
        first = Ingestor(0, RESUMES, ONE, [(UNIT, 5, 4)], [Checkpoint(UNIT, 5, 2, 20)])
        second = Ingestor(1, RESUMES, ONE)
        first.open()
        first.demand(1, 1, CHANNEL)
        for each in (first, second):
            each.run(each.machine.members(TWO, each.now)[1])
        second.open()
        second.demand(1, 2, CHANNEL)
        assert not asked(second, first).is_known

    def test_what_is_not_heard_is_asked_again(self) -> None:
        first, second = joined(RESUMES)
        second.open()
        second.demand(1, 2, CHANNEL)
        (take,) = second.said(Take)
        second.machine.unanswered("ingestor-0", take, second.now)
        second.later(RETRY_MS)
        assert second.said(Take) == [take]
        second.run(second.machine.answered("ingestor-0", take, Noted(1), second.now))
        second.later(AGAIN_MS)
        assert second.said(Take) == [take], "it was heard, and not answered"
        second.run(second.machine.answered("ingestor-0", take, Full(100.0), second.now))
        second.later(RETRY_MS)
        first.run(first.machine.take(take, first.now)[1])
        first.run(first.machine.take(take, first.now)[1])
        (told,) = first.said(HandOver)
        first.machine.unanswered("ingestor-1", told, first.now)
        first.later(RETRY_MS)
        assert first.said(HandOver) == [told]
        for _ in range(2):
            second.run(second.machine.hand_over(told, second.now)[1])
        second.hear(3)
        assert second.items == [3]

    def test_nothing_is_due_while_it_is_not_known_whether_it_was_heard(self) -> None:
        first, second = joined(RESUMES)
        second.open()
        second.demand(1, 2, CHANNEL)
        (take,) = second.said(Take)
        first.run(first.machine.take(take, first.now)[1])
        (told,) = first.said(HandOver)
        first.later(10 * AGAIN_MS)
        due = first.machine.deadline()
        assert due is None or due > first.now
        first.machine.unanswered("ingestor-1", told, first.now)
        first.later(RETRY_MS)
        assert first.said(HandOver) == [told]

    def test_what_another_life_was_told_is_not_taken_up_by_the_next(self) -> None:
        first, second = joined(RESUMES)
        second.open()
        second.demand(1, 2, CHANNEL)
        (take,) = second.said(Take)
        first.run(first.machine.take(take, first.now)[1])
        (told,) = first.said(HandOver)
        assert (take.life, told.life) == (11, 11)
        again = Ingestor(1, RESUMES, TWO)
        again.machine._moves._life = again.machine.incarnation = 99
        again.open()
        again.demand(1, 2, CHANNEL)
        again.run(again.machine.hand_over(told, again.now)[1])
        assert not again.machine.is_settled, "the life before has gone on from there"
        (asks,) = again.said(Take)
        first.run(first.machine.take(asks, first.now)[1])
        first.machine.unanswered("ingestor-1", told, first.now)
        first.later(RETRY_MS)
        (answer,) = first.said(HandOver)
        assert (answer.life, answer.moved) == (99, [Moved(UNIT, False)])

    def test_another_epochs_messages_are_not_taken(self) -> None:
        first, second = joined(RESUMES)
        assert first.demand(9, 1, CHANNEL) == Full(100.0)
        assert isinstance(first.machine.take(Take("ingestor-1", 3, [UNIT], 11), first.now)[0], Full)
        second.open()
        second.demand(1, 2, CHANNEL)
        second.machine.hand_over(HandOver("ingestor-0", 1, [Moved(UNIT, True, 5, 2, 2, 2)], 11), second.now)
        assert not second.machine.is_settled
        second.machine.members(ONE, second.now)
        assert second.machine.status()[0] == TWO

    def test_an_upstream_that_cannot_be_reached_does_not_keep_units_waiting(self) -> None:
        _, second = joined(RESUMES)
        second.demand(1, 2, CHANNEL)
        second.later(OPEN_WAIT_MS - 1)
        assert second.said(Take) == []
        second.later(1)
        assert [each.units for each in second.said(Take)] == [[UNIT]]


def test_when_all_is_settled_what_nobody_asked_for_is_left() -> None:
    first, _ = joined(RESUMES)
    first.taken()
    first.run(first.machine.members(Members(2, TWO.ingestors), first.now)[1])
    assert first.taken() == [Leave("events", CHANNEL)]
    assert not first.machine.is_idle


def test_an_ingestor_that_is_no_longer_a_member_becomes_idle() -> None:
    first, second = joined(RESUMES)
    gone = Members(3, ["ingestor-1"], TWO.ingestors)
    first.run(first.machine.members(gone, first.now)[1])
    assert not first.machine.is_idle
    first.run(first.machine.members(Members(3, ["ingestor-1"]), first.now)[1])
    first.later(2_000.0)
    assert Stop("events") in first.taken()
    first.later(2_000.0)
    assert first.machine.is_idle
    assert not second.machine.is_idle


def test_channels_of_others_that_nobody_joined_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unasked_channels, "MAX_CHANNELS", 20)
    settled = Members(2, ["ingestor-0", "ingestor-1"])
    both = [Ingestor(number, RESUMES, settled) for number in range(2)]
    heard = [f"c:x{n}" for n in range(100)]
    for each in both:
        each.demand(1, 2, *([STAYS] if each is both[0] else [CHANNEL]))
        each.open()
        for channel in heard:
            each.hear(1, channel=channel)
        source = each.machine._sources["events"]
        assert len(source.feeds) == 20
        assert len(source.sequences) <= 22
    mine = [each.machine.events_received["events"] for each in both]
    assert sum(mine) == 100, "each counts its own"
    dropped = [each.machine.events_dropped["events", "too_many_channels"] for each in both]
    assert dropped == [count - 20 for count in mine]


def test_what_is_pushed_of_anothers_channel_is_counted_where_the_source_is_read_anyway() -> None:
    other, home = (Ingestor(number, NO_IDS, Members(2, TWO.ingestors)) for number in range(2))
    other.demand(1, 2, STAYS)
    for each in (other, home):
        each.open()
        each.hear(1, channel=STAYS)
        each.hear(2, channel=CHANNEL)
    assert (other.items, home.items) == ([1], [2])
    assert not other.machine.events_dropped
    assert home.machine.events_dropped == {("events", "elsewhere"): 1}


def test_a_channel_that_is_given_away_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unasked_channels, "MAX_CHANNELS", 1)
    giver = Ingestor(0, RESUMES, ONE)
    giver.demand(1, 1, STAYS)
    giver.open()
    giver.hear(1, channel=CHANNEL)
    giver.run(giver.machine.members(TWO, giver.now)[1])
    giver.run(giver.machine.take(Take("ingestor-1", 2, [UNIT], 11), giver.now)[1])
    mine = next(f"c:y{n}" for n in range(100) if giver.machine._moves.is_mine(f"events/c:y{n}"))
    giver.hear(1, channel=mine)
    assert giver.machine.events_dropped["events", "too_many_channels"] == 0
