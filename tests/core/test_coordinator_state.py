"""The coordinator: folds blobs into windows, sends one batch per shard and window, keeps one in flight."""

from cluster.core.coordinator_state import FULL_RETRY_MS, HIGH_WATER_BYTES, RETRY_MS, CoordinatorState
from cluster.core.messages import (
    Batch,
    BatchCommitted,
    Blob,
    BlobTaken,
    FeedRange,
    Full,
    Header,
    KeyOperations,
    Part,
    Rebalance,
    Refused,
    Send,
)
from cluster.core.operation import Append, Operation, Set
from cluster.core.placement import assign_slots
from cluster.core.window import Profile

START = 1_000_000.0


def state(**options: object) -> CoordinatorState:
    made = CoordinatorState("coordinator-0", 7, shards=[0, 1], profiles=options.get("profiles", (Profile(),)))
    assert made.deadline() is None
    return made


def blob(sequence: int, *parts: Part, receiver: int = 7, incarnation: int = 3) -> Blob:
    return Blob(Header("ingestor-0", incarnation, 0 if sequence == 1 else receiver, sequence), list(parts))


def part(
    shard: int, key: str, *operations: Operation, count: int = 1, oldest_ms: float = START, number: int = 1
) -> Part:
    feed = FeedRange("events/a", 5, number, number + count - 1, number - 1)
    return Part(shard, 0, [feed], [KeyOperations(key, list(operations), count)], oldest_ms)


def test_blobs_of_a_window_become_one_batch_per_shard_at_its_close() -> None:
    machine = state()
    answer, effects = machine.blob(blob(1, part(0, "k", Set(b"1")), part(1, "m", Set(b"5"))), START + 10)
    assert (answer, effects) == (BlobTaken(7, 90.0), [])
    answer, effects = machine.blob(blob(2, part(0, "k", Set(b"2"), number=2)), START + 60)
    assert (answer, effects) == (BlobTaken(7, 40.0), [])
    assert machine.deadline() == START + 100
    assert machine.wake(START + 99) == []
    feeds = [FeedRange("events/a", 5, 1, 2, 0)]
    assert machine.wake(START + 100) == [
        Send("shard-0", Batch(Header("coordinator-0", 7, 0, 1), feeds, [KeyOperations("k", [Set(b"2")], 2)], START)),
        Send(
            "shard-1",
            Batch(
                Header("coordinator-0", 7, 0, 1),
                [FeedRange("events/a", 5, 1, 1, 0)],
                [KeyOperations("m", [Set(b"5")], 1)],
                START,
            ),
        ),
    ]
    assert machine.deadline() is None


def test_a_late_word_of_an_earlier_map_loses_nothing_that_is_for_shards_of_the_next() -> None:
    machine = state()
    machine.blob(blob(1, part(2, "k", Set(b"1"))), START + 10)
    machine.rebalance(Rebalance("release", assign_slots(range(2), 1), 3))
    assert [send.to for send in machine.wake(START + 100)] == ["shard-2"]
    machine.rebalance(Rebalance("release", assign_slots(range(2), 1), 3))
    machine.unanswered("shard-2", machine._lanes[2].link.in_flight, START + 110)
    assert [send.to for send in machine.wake(START + 110 + RETRY_MS)] == ["shard-2"]


def test_shards_that_are_no_more_are_forgotten() -> None:
    machine = state()
    machine.blob(blob(1, part(1, "k", Set(b"1"))), START + 10)
    (sent,) = machine.wake(START + 100)
    machine.answered("shard-1", sent.message, BatchCommitted(4, 1), START + 110)
    machine.rebalance(Rebalance("release", assign_slots(range(1), 2), 3))
    assert list(machine._lanes) == [0]
    _, (again,) = machine.blob(blob(2, part(1, "k", Set(b"2"), number=2)), START + 120)
    assert again.message.header == Header("coordinator-0", 7, 0, 1, 1), (
        "which is no repeat, should it be the same shard"
    )


def test_the_beginning_of_a_sequence_stays_beside_the_events_that_follow_it() -> None:
    machine = state()
    mark = FeedRange("events/a", 5, 1, 0, 0)
    machine.blob(blob(1, Part(0, 0, [mark], [], START)), START + 10)
    machine.blob(blob(2, part(0, "k", Set(b"1"))), START + 20)
    machine.blob(blob(3, part(0, "k", Set(b"2"), number=2)), START + 30)
    (sent,) = machine.wake(START + 100)
    assert sent.message.feeds == [mark, FeedRange("events/a", 5, 1, 2, 0)]


def test_while_a_batch_is_in_flight_the_next_window_keeps_folding() -> None:
    machine = state()
    machine.blob(blob(1, part(0, "k", Append((b"1",)))), START + 10)
    (sent,) = machine.wake(START + 100)
    machine.blob(blob(2, part(0, "k", Append((b"2",)), number=2)), START + 110)
    assert machine.wake(START + 200) == []
    machine.blob(blob(3, part(0, "k", Append((b"3",)), number=3)), START + 210)
    (following,) = machine.answered("shard-0", sent.message, BatchCommitted(40, 9), START + 260)
    assert following.message.header == Header("coordinator-0", 7, 40, 2)
    assert following.message.keys == [KeyOperations("k", [Append((b"2", b"3"))], 2)]
    assert following.message.feeds == [FeedRange("events/a", 5, 2, 3, 1)]


def test_a_repeated_blob_is_taken_once_and_a_foreign_one_refused() -> None:
    machine = state()
    first, _ = machine.blob(blob(1, part(0, "k", Append((b"1",)))), START)
    again, _ = machine.blob(blob(1, part(0, "k", Append((b"1",)))), START + 50)
    assert again == first
    assert machine.blob(blob(2, part(0, "k", Set(b"9")), receiver=6), START)[0] == Refused(7)
    (sent,) = machine.wake(START + 100)
    assert sent.message.keys == [KeyOperations("k", [Append((b"1",))], 1)]


def test_an_unanswered_batch_is_sent_again_as_it_was() -> None:
    machine = state()
    machine.blob(blob(1, part(0, "k", Set(b"1"))), START)
    (sent,) = machine.wake(START + 100)
    assert machine.unanswered("shard-0", sent.message, START + 150) == []
    assert machine.deadline() == START + 150 + RETRY_MS
    assert machine.wake(START + 150 + RETRY_MS) == [sent]


def test_a_restarted_shard_gets_the_batch_in_flight_on_a_new_link() -> None:
    machine = state()
    machine.blob(blob(1, part(0, "k", Set(b"1"))), START)
    (sent,) = machine.wake(START + 100)
    (again,) = machine.answered("shard-0", sent.message, Refused(50), START + 120)
    assert again.message.header == Header("coordinator-0", 7, 0, 1, 1)
    assert again.message.keys == sent.message.keys


def test_over_the_high_water_mark_blobs_are_turned_away_untouched() -> None:
    machine = state()
    big = b'"' + b"x" * HIGH_WATER_BYTES + b'"'
    machine.blob(blob(1, part(0, "k", Set(big))), START)
    (sent,) = machine.wake(START + 100)
    machine.blob(blob(2, part(0, "k", Set(big))), START + 110)
    answer, effects = machine.blob(blob(3, part(0, "k", Set(b"1"))), START + 120)
    assert (answer, effects) == (Full(FULL_RETRY_MS), [])
    machine.answered("shard-0", sent.message, BatchCommitted(40, 1), START + 220)
    assert isinstance(machine.blob(blob(3, part(0, "k", Set(b"1"))), START + 230)[0], BlobTaken)


def test_leading_mode_sends_what_follows_a_quiet_window_at_once() -> None:
    machine = state(profiles=(Profile(mode="leading"),))
    _, effects = machine.blob(blob(1, part(0, "k", Set(b"1"), oldest_ms=START + 30)), START + 32)
    assert [effect.to for effect in effects] == ["shard-0"]
    machine.answered("shard-0", effects[0].message, BatchCommitted(40, 1), START + 36)
    _, effects = machine.blob(blob(2, part(0, "k", Set(b"2"), oldest_ms=START + 40)), START + 42)
    assert effects == []
    assert machine.deadline() == START + 100


def test_a_mailbox_holds_the_batch_on_its_way_and_those_whose_windows_have_closed() -> None:
    machine = state()
    machine.blob(blob(1, part(0, "k", Set(b"1"))), START + 10)
    assert machine.mailboxes(START + 50) == {0: 0, 1: 0}, "the window is open"
    assert machine.mailboxes(START + 100) == {0: 1, 1: 0}
    assert len(machine.wake(START + 100)) == 1
    machine.blob(blob(2, part(0, "k", Set(b"2"), oldest_ms=START + 110, number=2)), START + 110)
    assert machine.mailboxes(START + 150) == {0: 1, 1: 0}
    assert machine.mailboxes(START + 200) == {0: 2, 1: 0}, "the shard falls behind"
