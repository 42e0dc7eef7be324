"""Links apply every message once, whatever is repeated, lost or restarted."""

import random

import pytest

from cluster.core.link import LIFE_APART_MS, Announcements, Foreign, Incoming, New, Outgoing, Repeat, next_life
from cluster.core.messages import Announce, Header, Send


def send(link: Outgoing) -> Header:
    header = link.header()
    link.sent(header)
    return header


class TestLives:
    def test_a_life_is_when_it_began(self) -> None:
        assert next_life(1_700_000_000_000.7, None) == 1_700_000_000_000
        assert next_life(1_700_009_000_000.0, 1_700_000_000_000) == 1_700_009_000_000

    def test_it_is_above_all_that_the_last_one_has_numbered_though_the_clock_was_set_back(self) -> None:
        assert next_life(1_000.0, 5_000_000) == 5_000_000 + LIFE_APART_MS

    def test_a_link_of_the_next_life_is_a_new_one_however_often_that_of_the_last_was_started_over(self) -> None:
        before, receiver = Outgoing("shard-0", 5), Incoming(1)
        for _ in range(10):
            before.relink()
            assert receiver.admit(send(before)) == New(opened=True)
        late = before.in_flight
        assert receiver.admit(send(Outgoing("shard-0", 6))) == New(opened=True)
        assert receiver.admit(late) == Foreign()


class TestOutgoing:
    def test_messages_are_numbered_and_addressed(self) -> None:
        link = Outgoing("shard-0", 5)
        assert link.idle
        assert send(link) == Header("shard-0", 5, 0, 1)
        assert not link.idle
        link.acknowledged(9)
        assert (link.idle, link.peer) == (True, 9)
        assert send(link) == Header("shard-0", 5, 9, 2)

    def test_one_at_a_time(self) -> None:
        link = Outgoing("a", 1)
        send(link)
        with pytest.raises(AssertionError, match="one message in flight"):
            link.header()

    def test_a_failure_keeps_the_message(self) -> None:
        link = Outgoing("a", 1)
        header = send(link)
        link.failed(1000, 200)
        assert (link.in_flight, link.retry_at) == (header, 1200)
        link.sent(header)
        assert link.retry_at is None
        link.acknowledged(2)
        link.failed(2000, 200)
        assert link.retry_at is None, "nothing to send again"

    def test_relinking_begins_anew(self) -> None:
        link = Outgoing("a", 5)
        send(link)
        link.acknowledged(9)
        send(link)
        link.relink()
        assert link.idle
        assert send(link) == Header("a", 5, 0, 1, 1), "an opening that can be told from the last"


class TestIncoming:
    def opened(self) -> Incoming:
        link = Incoming(9)
        assert link.admit(Header("a", 5, 0, 1)) == New(opened=True)
        link.answered("one")
        return link

    def test_in_order(self) -> None:
        link = self.opened()
        assert link.admit(Header("a", 5, 9, 2)) == New(opened=False)
        link.answered("two")
        assert link.admit(Header("a", 5, 9, 3)) == New(opened=False)

    def test_a_repeat_gets_the_same_answer(self) -> None:
        link = self.opened()
        assert link.admit(Header("a", 5, 0, 1)) == Repeat("one")
        link.admit(Header("a", 5, 9, 2))
        assert link.answered("two") == "two"
        assert link.admit(Header("a", 5, 9, 2)) == Repeat("two")
        assert link.admit(Header("a", 5, 9, 2)) == Repeat("two")

    @pytest.mark.parametrize(
        "header",
        [
            Header("a", 5, 9, 3),
            Header("a", 5, 8, 2),
            Header("a", 5, 10, 2),
            Header("a", 5, 0, 2),
            Header("a", 4, 0, 1),
            Header("a", 6, 9, 2),
            Header("a", 6, 9, 1),
            Header("a", 6, 0, 2),
        ],
        ids=["skips", "former life", "later life", "unaddressed", "old sender", "unopened", "opened elsewhere", "late"],
    )
    def test_what_does_not_follow_is_refused(self, header: Header) -> None:
        link = self.opened()
        assert link.admit(header) == Foreign()
        assert link.admit(Header("a", 5, 9, 2)) == New(opened=False), "and changes nothing"

    def test_an_old_message_is_refused(self) -> None:
        link = self.opened()
        link.admit(Header("a", 5, 9, 2))
        assert link.admit(Header("a", 5, 0, 1)) == Foreign()

    def test_a_new_life_of_the_sender_opens_again(self) -> None:
        link = self.opened()
        assert link.admit(Header("a", 6, 0, 1)) == New(opened=True)
        link.answered("anew")
        assert link.admit(Header("a", 6, 0, 1)) == Repeat("anew")
        assert link.admit(Header("a", 5, 9, 2)) == Foreign(), "the old one is over"

    def test_the_first_message_must_open(self) -> None:
        assert Incoming(9).admit(Header("a", 5, 9, 1)) == Foreign()
        assert Incoming(9).admit(Header("a", 5, 0, 2)) == Foreign()
        assert Incoming(9).admit(Header("a", 5, 9, 4)) == Foreign()


@pytest.mark.parametrize("seed", range(60))
def test_every_message_is_applied_once_over_a_bad_network(seed: int) -> None:
    """Calls are repeated, reordered and lost, and the receiver restarts; what one life applied is what was sent, in order."""
    dice = random.Random(seed)
    life, count = 100, 0
    sender, receiver = Outgoing("a", 1), Incoming(life)
    applied: list[int] = []
    acknowledged: list[int] = []
    network: list[tuple[Header, int]] = []
    for _ in range(400):
        if sender.idle:
            count += 1
            sender.sent((sender.header(), count))
        network.append(sender.in_flight)
        dice.shuffle(network)
        if dice.random() < 0.02:
            life += 1
            receiver = Incoming(life)
            applied, acknowledged = [], []
        for header, number in [network.pop() for _ in range(min(len(network), dice.randint(1, 2)))]:
            match receiver.admit(header):
                case New(opened=opened):
                    applied = [number] if opened else [*applied, number]
                    acknowledged = [] if opened else acknowledged
                    answer = receiver.answered((life, number))
                case Repeat(answer=recorded):
                    answer = recorded
                case Foreign():
                    answer = None
            if dice.random() < 0.3 or sender.in_flight != (header, number):
                continue  # the answer is lost, or nobody waits for it any more
            if answer is None:
                sender.relink()
            else:
                assert answer[1] == number
                acknowledged.append(number)
                sender.acknowledged(answer[0])
        assert applied == list(range(applied[0], applied[0] + len(applied))) if applied else True
        assert set(acknowledged) <= set(applied)
    assert count > 50


class TestAnnouncements:
    def test_each_peer_is_told_until_it_has_heard(self) -> None:
        announcements = Announcements("a", 7, ["b", "c"])
        message = Announce("a", 7)
        assert announcements.deadline() == 0
        assert announcements.wake(1000) == [Send("b", message), Send("c", message)]
        assert announcements.deadline() is None, "both calls are under way"
        assert announcements.wake(1000) == []
        announcements.answered("b")
        announcements.unanswered("c", 1000, 200)
        assert announcements.deadline() == 1200
        assert announcements.wake(1199) == []
        assert announcements.wake(1200) == [Send("c", message)]
        announcements.answered("c")
        assert announcements.deadline() is None

    def test_a_late_failure_of_what_was_heard_is_ignored(self) -> None:
        announcements = Announcements("a", 7, ["b"])
        announcements.wake(0)
        announcements.answered("b")
        announcements.unanswered("b", 0, 200)
        announcements.unanswered("stranger", 0, 200)
        assert announcements.deadline() is None
