"""Ingestors know exactly the channels that watched keys need, whatever is lost, and are called only where something differs."""

import random

import pytest

from cluster.core.channel_demand import GREET_MS, RETRY_MS, Channel, ChannelDemand
from cluster.core.link import Foreign, Incoming, New, Repeat
from cluster.core.messages import Demand, DemandMet, Full, Header, Members, Refused, Send

A, B, C = ("y", "a"), ("y", "b"), ("x", "c")
OWNER = {"y": "ingestor-0", "x": "ingestor-1"}
"""By rendezvous hashing."""
LINGER = 1000.0


def demand() -> ChannelDemand:
    return ChannelDemand(
        "shard-0",
        5,
        now_ms=0.0,
        members=Members(1, ["ingestor-0", "ingestor-1"]),
        linger_ms=lambda source, channel: LINGER,
    )


def met(of: ChannelDemand, sends: list[Send], now_ms: float = 0.0) -> None:
    for send in sends:
        of.answered(send.to, send.message, DemandMet(9, send.message.add), now_ms)


def told(sends: list[Send]) -> list[tuple[str, bool, list[Channel], list[Channel]]]:
    return [(send.to, send.message.whole, send.message.add, send.message.drop) for send in sends]


def test_a_needed_channel_is_asked_for_where_its_source_is_read() -> None:
    of = demand()
    of.need([A, C], 0.0)
    sends = of.sends(0.0)
    assert told(sends) == [("ingestor-0", False, [A], []), ("ingestor-1", False, [C], [])]
    assert [send.message.header for send in sends] == [Header("shard-0", 5, 0, 1)] * 2
    assert not of.settled([A])
    met(of, sends)
    assert of.settled([A, C])
    assert of.sends(0.0) == []


def test_it_is_asked_for_once_and_left_after_its_last_key_and_linger() -> None:
    of = demand()
    of.need([A], 0.0)
    of.need([A], 0.0)
    met(of, of.sends(0.0))
    of.release([A], 100.0)
    assert of.expired(5000.0) == []
    of.release([A], 200.0)
    assert of.deadline() == 200.0 + LINGER
    assert of.expired(1199.0) == []
    assert of.expired(1200.0) == [A]
    assert told(of.sends(1200.0)) == [("ingestor-0", False, [], [A])]
    assert not of.settled([A])


def test_who_comes_back_within_the_linger_causes_nothing() -> None:
    of = demand()
    of.need([A], 0.0)
    met(of, of.sends(0.0))
    of.release([A], 100.0)
    of.need([A], 0.0)
    assert of.expired(9000.0) == []
    assert of.sends(9000.0) == []
    assert of.settled([A])


def test_one_call_in_flight_and_what_comes_meanwhile_folds() -> None:
    of = demand()
    of.need([A], 0.0)
    first = of.sends(0.0)
    of.need([B], 0.0)
    assert of.sends(0.0) == []
    met(of, first)
    assert told(of.sends(0.0)) == [("ingestor-0", False, [B], [])]


def test_what_came_and_went_between_two_calls_is_not_mentioned() -> None:
    of = demand()
    of.need([A], 0.0)
    first = of.sends(0.0)
    of.need([B], 0.0)
    of.release([B], 0.0)
    assert of.expired(LINGER) == [B]
    met(of, first)
    assert of.sends(LINGER) == []


def test_given_up_and_wanted_again_during_a_call_it_is_still_joined() -> None:
    of = demand()
    of.need([A], 0.0)
    met(of, of.sends(0.0))
    of.need([B], 0.0)
    busy = of.sends(0.0)
    of.release([A], 0.0)
    assert of.expired(LINGER) == [A]
    of.need([A], 0.0)
    met(of, busy)
    assert of.sends(LINGER) == []
    assert of.settled([A, B]), "the ingestor never left it"


def test_given_up_and_wanted_again_while_it_is_being_joined() -> None:
    of = demand()
    of.need([A], 0.0)
    joining = of.sends(0.0)
    of.release([A], 0.0)
    assert of.expired(LINGER) == [A]
    met(of, joining)
    of.need([A], 0.0)
    assert of.sends(LINGER) == []
    assert of.settled([A])


class TestFailures:
    def test_a_lost_call_is_made_again(self) -> None:
        of = demand()
        of.need([A], 0.0)
        (send,) = of.sends(0.0)
        of.unanswered(send.to, send.message, 50.0)
        assert of.deadline() == 50.0 + RETRY_MS
        assert of.sends(50.0) == []
        assert of.sends(50.0 + RETRY_MS) == [send], "the same message, so that it acts once"

    def test_one_that_is_full_says_when(self) -> None:
        of = demand()
        of.need([A], 0.0)
        (send,) = of.sends(0.0)
        of.answered(send.to, send.message, Full(700.0), 50.0)
        assert of.deadline() == 750.0

    def test_a_new_life_is_told_everything(self) -> None:
        of = demand()
        of.need([A, B], 0.0)
        met(of, of.sends(0.0))
        of.announced("ingestor-0", 10)
        assert not of.settled([A])
        (again,) = of.sends(0.0)
        assert told([again]) == [("ingestor-0", True, [A, B], [])]
        assert again.message.header == Header("shard-0", 5, 0, 1, 1)
        of.announced("ingestor-1", 9)

    def test_hearing_of_the_life_that_is_known_changes_nothing(self) -> None:
        of = demand()
        of.need([A], 0.0)
        met(of, of.sends(0.0))
        of.announced("ingestor-0", 9)
        assert of.sends(0.0) == []
        assert of.settled([A])

    def test_an_ingestor_that_is_back_is_told_on_a_new_link_of_the_same_incarnation(self) -> None:
        """The next life's may be the next number: it must not be refused for being lower, or the same."""
        of = demand()
        met(of, of.sends(0.0))
        of.members(Members(2, ["ingestor-1"]))
        met(of, of.sends(0.0))
        of.members(Members(3, ["ingestor-0", "ingestor-1"]))
        sends = of.sends(0.0)
        assert [send.message.header for send in sends] == [Header("shard-0", 5, 0, 1, 1), Header("shard-0", 5, 0, 1, 2)]

    def test_a_refusal_starts_over(self) -> None:
        of = demand()
        of.need([A], 0.0)
        (send,) = of.sends(0.0)
        of.need([B], 0.0)
        of.answered(send.to, send.message, Refused(11), 0.0)
        assert told(of.sends(0.0)) == [("ingestor-0", True, [A, B], [])]

    def test_what_a_lost_life_had_joined_is_not_joined(self) -> None:
        of = demand()
        of.need([A], 0.0)
        met(of, of.sends(0.0))
        of.release([A], 0.0)
        of.expired(LINGER)
        of.announced("ingestor-0", 10)
        of.need([A], 0.0)
        assert not of.settled([A])

    def test_answers_to_what_is_no_longer_in_flight_are_ignored(self) -> None:
        of = demand()
        of.need([A], 0.0)
        (send,) = of.sends(0.0)
        of.announced("ingestor-0", 10)
        of.answered(send.to, send.message, DemandMet(9, [A]), 0.0)
        of.unanswered(send.to, send.message, 0.0)
        assert not of.settled([A])

    def test_a_wrong_answer_is_a_bug(self) -> None:
        of = demand()
        of.need([A], 0.0)
        (send,) = of.sends(0.0)
        with pytest.raises(AssertionError):
            of.answered(send.to, send.message, object(), 0.0)  # type: ignore[arg-type]


def test_a_new_shard_says_the_whole_once_gateways_had_time_to_watch() -> None:
    of = demand()
    assert of.deadline() == GREET_MS
    of.need([A], 0.0)
    met(of, of.sends(0.0))
    assert of.sends(GREET_MS - 1) == []
    assert told(of.sends(GREET_MS)) == [("ingestor-0", True, [A], []), ("ingestor-1", True, [], [])]
    assert of.settled([A])
    assert of.deadline() is None
    assert of.knows("ingestor-1")
    assert not of.knows("ingestor-2")


class Ingestor:
    """The other end, as far as links and joined channels go."""

    def __init__(self, incarnation: int) -> None:
        self.incarnation = incarnation
        self.link = Incoming(incarnation)
        self.joined: set[Channel] = set()

    def hear(self, message: Demand) -> DemandMet | Refused:
        match self.link.admit(message.header):
            case Repeat(answer=answer):
                recorded: DemandMet = answer
                return recorded
            case Foreign():
                return Refused(self.incarnation)
            case New(opened=opened):
                if opened or message.whole:
                    self.joined.clear()
                self.joined.update(message.add)
                self.joined.difference_update(message.drop)
                answered: DemandMet = self.link.answered(DemandMet(self.incarnation, message.add))
                return answered


@pytest.mark.parametrize("seed", range(80))
def test_ingestors_end_up_with_what_is_needed(seed: int) -> None:
    dice = random.Random(seed)
    of = demand()
    ends = {"ingestor-0": Ingestor(20), "ingestor-1": Ingestor(20)}
    needed: list[Channel] = []
    flying: list[Send] = []
    now = 0.0

    def deliver(send: Send, *, lossy: bool) -> None:
        if lossy and dice.random() < 0.2:
            of.unanswered(send.to, send.message, now)
            return
        answer = ends[send.to].hear(send.message)
        if lossy and dice.random() < 0.2:
            of.unanswered(send.to, send.message, now)
        else:
            of.answered(send.to, send.message, answer, now)

    for _ in range(300):
        now += dice.choice([0, 10, 300, 1500])
        choice = dice.random()
        if choice < 0.35:
            channel = dice.choice([A, B, C])
            needed.append(channel)
            of.need([channel], 0.0)
        elif choice < 0.7 and needed:
            channel = needed.pop(dice.randrange(len(needed)))
            of.release([channel], now)
        elif choice < 0.73:
            address = dice.choice(list(ends))
            ends[address] = Ingestor(ends[address].incarnation + 1)
            of.announced(address, ends[address].incarnation)
        of.expired(now)
        flying += of.sends(now)
        while flying and dice.random() < 0.7:
            deliver(flying.pop(0), lossy=True)
        for channel in (A, B, C):
            if channel in needed and of.settled([channel]) and not flying:
                assert channel in ends[OWNER[channel[0]]].joined
    for _ in range(50):
        now += LINGER + RETRY_MS
        of.expired(now)
        flying += of.sends(now)
        while flying:
            deliver(flying.pop(0), lossy=False)
    assert of.sends(now + 10 * GREET_MS) == []
    assert ends["ingestor-0"].joined | ends["ingestor-1"].joined == set(needed)
    assert of.settled(needed)
