"""What waits is bounded, and what is given up is counted; rates hold over any second."""

import random

from cluster.core.overflow import EVENT_BYTES, Waiting
from cluster.core.rate import TokenBucket
from cluster.core.rule import Envelope


def event(data: bytes) -> Envelope:
    return Envelope("e", data, "c")


def drained(waiting: Waiting) -> list[bytes]:
    found = []
    while waiting:
        envelope, _ = waiting.pop()
        found.append(bytes(envelope.data))
    return found


def test_the_oldest_is_given_up_for_the_newest() -> None:
    waiting = Waiting(3 * (EVENT_BYTES + 1))
    assert [waiting.add(event(b"%d" % n), n) for n in range(5)] == [0, 0, 0, 1, 1]
    assert drained(waiting) == [b"2", b"3", b"4"]
    assert waiting.add(event(b"5"), 5) == 0, "there is room again"


def test_one_that_is_too_large_is_kept_alone() -> None:
    waiting = Waiting(100)
    waiting.add(event(b"1"), 1)
    assert waiting.add(event(b"x" * 1000), 2) == 1
    assert drained(waiting) == [b"x" * 1000]


def test_only_the_last_about_the_same_waits_in_its_own_place() -> None:
    waiting = Waiting()
    about = [("a",), ("b",), ("a",)]
    assert [waiting.add(event(b"%d" % n), n, what) for n, what in enumerate(about)] == [0, 0, 1]
    assert drained(waiting) == [b"1", b"2"]


def test_a_bucket_gives_what_comes_back() -> None:
    bucket = TokenBucket(10, 0.0)
    assert [bucket.take(1, 0.0) for _ in range(12)] == [True] * 10 + [False] * 2
    assert bucket.debt_ms(0.0) == 100.0
    assert not bucket.take(1, 0.0)
    assert bucket.take(1, 150.0)


def test_no_second_has_more_than_two_seconds_worth() -> None:
    dice = random.Random(5)
    bucket = TokenBucket(50, 0.0)
    taken: list[float] = []
    now = 0.0
    for _ in range(5_000):
        now += dice.expovariate(1 / 5)
        if bucket.take(1, now):
            taken.append(now)
    assert all(sum(at <= each < at + 1000 for each in taken) <= 101 for at in taken[::50])
    assert abs(len(taken) - 50 * now / 1000) < 60
