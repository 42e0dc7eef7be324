"""The two ends of replication, whole effect lists, and both together over a store."""

from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from cluster.core.history import Life
from cluster.core.messages import (
    Answers,
    Check,
    Elsewhere,
    Failure,
    Noted,
    Refused,
    Replicate,
    Replicated,
    Send,
    Written,
)
from cluster.core.replication import (
    CHECK_MS,
    MAX_UNACKNOWLEDGED_BYTES,
    RETRY_MS,
    Following,
    Replication,
    Reply,
)
from cluster.core.role import DRIFT, HEARTBEAT_MS, LEASE_MS, Standing
from cluster.core.transaction import StoredEntry, Transaction
from cluster.errors import StoreError
from cluster.storage import LmdbStore, MemoryStore

STANDBY = "shard-0-b"
by_key = attrgetter("key")


def transaction(number: int, key: str = "", data: bytes = b"1") -> Transaction:
    name = key or f"k{number}"
    entry = StoredEntry(name, number, data, 0.0, 0.0, "", None, None)
    lives = [Life(1, 0, 0)]
    return Transaction(1, number, {name: entry}, {}, {}, {}, lives, number - 1, [(name, number - 1)], 0)


def record(number: int, **more: Any) -> bytes:
    return msgspec.msgpack.encode(transaction(number, **more))


def sent(effects: list[Any]) -> Replicate:
    (send,) = [each for each in effects if isinstance(each, Send)]
    assert send.to == STANDBY
    message: Replicate = send.message
    return message


def attached(primary: Replication, now_ms: float = 0.0) -> list[Any]:
    """Attach a standby of life 7, which answers at once; what the primary sends then."""
    opening = sent(primary.attach(STANDBY, 7, now_ms))
    assert opening == Replicate(primary.epoch, 7, 1, [], False)
    return primary.answered(opening, Replicated(7, primary.epoch, 0), now_ms)


def in_sync(store: MemoryStore | None = None, now_ms: float = 0.0) -> Replication:
    """A primary at epoch 5 whose standby, of life 7, has everything, acknowledged just now."""
    primary = Replication(5, store or MemoryStore())
    message = sent(attached(primary, now_ms))
    assert (message.first, message.is_whole) == (1, True)
    assert primary.answered(message, Replicated(7, 5, len(message.records)), now_ms) == []
    assert primary.is_in_sync
    return primary


def test_alone_everything_leaves_at_once() -> None:
    primary = Replication(5, None)
    assert primary.step(["change set"], 0.0, transaction=transaction(1), ticket=1, answer=Noted(1)) == [
        "change set",
        Reply(1, Noted(1)),
    ]
    assert (primary.is_alone, primary.serves(1e12), primary.deadline()) == (True, True, None)


def test_what_a_step_lets_out_waits_for_the_standby() -> None:
    primary = in_sync()
    out = primary.step(["change set"], 10.0, transaction=transaction(1), ticket=1, answer=Noted(1))
    message = Replicate(5, 7, 1, [record(1)], True)
    assert out == [Send(STANDBY, message)]
    assert primary.answered(sent(out), Replicated(7, 5, 1), 12.0) == ["change set", Reply(1, Noted(1))]
    assert primary.lag_ms == 2.0


def test_a_read_waits_for_what_it_may_have_read() -> None:
    primary = in_sync()
    first = sent(primary.step([], 10.0, transaction=transaction(1)))
    assert primary.step([], 10.0, ticket=2, answer=Noted(2)) == []
    second = primary.step(["sent"], 10.0, transaction=transaction(2))
    assert second == [], "one message is under way"
    assert primary.step([], 10.0, ticket=3, answer=Noted(3)) == []
    out = primary.answered(first, Replicated(7, 5, 1), 11.0)
    assert out == [Reply(2, Noted(2)), Send(STANDBY, Replicate(5, 7, 2, [record(2)], True))]
    assert primary.answered(sent(out), Replicated(7, 5, 2), 12.0) == ["sent", Reply(3, Noted(3))]


def test_what_is_committed_meanwhile_goes_with_the_next_message() -> None:
    primary = in_sync()
    first = sent(primary.step([], 10.0, transaction=transaction(1)))
    for number in (2, 3, 4):
        assert primary.step([], 10.0, transaction=transaction(number)) == []
    out = primary.answered(first, Replicated(7, 5, 1), 11.0)
    assert sent(out).records == [record(2), record(3), record(4)]


def test_with_nothing_unacknowledged_a_step_leaves_at_once() -> None:
    assert in_sync().step([], 10.0, ticket=1, answer=Noted(1)) == [Reply(1, Noted(1))]


def test_nothing_leaves_once_the_lease_is_over() -> None:
    primary = in_sync()
    assert primary.serves(LEASE_MS - 1)
    late = LEASE_MS
    assert not primary.serves(late)
    out = primary.step(["change set"], late, ticket=1, answer=Noted(1))
    assert [type(each) for each in out] == [Send], "the heartbeat alone"
    assert primary.expirations == 1
    # The standby lives and has not been promoted: it acknowledges, and everything leaves.
    assert primary.answered(sent(out), Replicated(7, 5, 0), late + 1) == ["change set", Reply(1, Noted(1))]


def test_the_lease_runs_from_when_it_was_sent() -> None:
    primary = in_sync()
    message = sent(primary.wake(HEARTBEAT_MS))
    primary.answered(message, Replicated(7, 5, 0), 1_900.0)
    assert primary.serves(HEARTBEAT_MS + LEASE_MS - 1)
    assert not primary.serves(HEARTBEAT_MS + LEASE_MS)


def test_stopped_and_gone_on_it_acknowledges_nothing() -> None:
    """The standby's acknowledgement of before the stop is read after it."""
    primary = in_sync()
    message = sent(primary.step([], 10.0, transaction=transaction(1), ticket=1, answer=Noted(1)))
    assert primary.answered(message, Replicated(7, 5, 1), 10_000.0) != [Reply(1, Noted(1))]
    assert primary.wake(20_000.0) == []


def test_an_idle_primary_renews_its_lease() -> None:
    primary = in_sync()
    assert primary.deadline() == HEARTBEAT_MS
    assert primary.wake(HEARTBEAT_MS) == [Send(STANDBY, Replicate(5, 7, 1, [], True))]
    assert primary.deadline() is None


def test_a_call_that_failed_is_made_again_as_it_was() -> None:
    primary = in_sync()
    message = sent(primary.step([], 10.0, transaction=transaction(1)))
    assert primary.unanswered(message, 10.0) == []
    assert primary.deadline() == 10.0 + RETRY_MS
    assert primary.wake(10.0) == []
    assert primary.wake(10.0 + RETRY_MS) == [Send(STANDBY, message)]


@pytest.mark.parametrize("answer", [Refused(8), Elsewhere("")])
def test_a_standby_that_does_not_go_on_is_lost_and_nothing_leaves(answer: Any) -> None:
    primary = in_sync()
    message = sent(primary.step([], 10.0, transaction=transaction(1), ticket=1, answer=Noted(1)))
    assert primary.answered(message, answer, 11.0) == []
    assert primary.lost
    assert not primary.is_in_sync
    assert primary.step(["change set"], 12.0, transaction=transaction(2)) == []
    assert primary.deadline() is None


def test_what_is_committed_after_the_standby_was_lost_does_not_leave_though_the_lease_holds() -> None:
    primary = in_sync()
    message = sent(primary.wake(HEARTBEAT_MS))
    assert primary.answered(message, Elsewhere(STANDBY), HEARTBEAT_MS) == []
    assert primary.serves(HEARTBEAT_MS + 1)
    assert primary.step(["change set"], HEARTBEAT_MS + 1, transaction=transaction(1), ticket=1, answer=Noted(1)) == []
    assert primary.detach(6) == ["change set", Reply(1, Noted(1))]


@pytest.mark.parametrize("answer", [Replicated(6, 5, 1), Replicated(7, 4, 1)])
def test_an_acknowledgement_of_another_life_or_epoch_counts_for_nothing(answer: Replicated) -> None:
    primary = in_sync()
    message = sent(primary.step(["change set"], 10.0, transaction=transaction(1)))
    assert primary.answered(message, answer, 11.0) == []
    assert primary.deadline() == 11.0 + RETRY_MS


def test_only_a_higher_epoch_removes_the_standby() -> None:
    primary = in_sync()
    primary.step(["change set"], 10.0, transaction=transaction(1), ticket=1, answer=Noted(1))
    with pytest.raises(ValueError, match="epoch 5"):
        primary.detach(5)
    assert primary.detach(6) == ["change set", Reply(1, Noted(1))]
    assert (primary.epoch, primary.is_alone, primary.serves(1e12)) == (6, True, True)


@pytest.mark.parametrize(
    ("level", "is_behind", "is_lost"),
    [("replicated", False, True), ("", False, False), ("", True, True)],
    ids=["replicated", "the best there is", "the best there is, and the store does not take it"],
)
def test_without_the_standby_what_is_not_as_safe_as_was_asked_for_has_failed(
    level: str, is_behind: bool, is_lost: bool
) -> None:
    primary = in_sync()
    answer = Answers(1, 5, [(1, Written(3)), (2, Written(4))])
    primary.step([], 10.0, transaction=transaction(1), ticket="t", answer=answer, promised={2: level})
    primary.step([], 11.0, ticket="repeated", answer=answer)
    primary.is_behind = is_behind
    replies = primary.detach(6)
    assert [reply.ticket for reply in replies] == ["t", "repeated"]
    for reply in replies:
        assert reply.answer.items[0] == (1, Written(3))
        payload = reply.answer.items[1][1]
        if is_lost:
            assert isinstance(payload, Failure)
            assert "repeat it" in payload.message
        else:
            assert payload == Written(4)


def test_it_takes_no_more_when_too_much_waits() -> None:
    primary = in_sync()
    assert not primary.is_full
    primary.step([], 10.0, transaction=transaction(1, data=b"1" * (MAX_UNACKNOWLEDGED_BYTES + 1)))
    assert primary.is_full
    primary = in_sync()
    primary.step([], 10.0, transaction=transaction(1))
    for _ in range(20_002):
        primary.step(["x"], 10.0)
    assert primary.is_full


def test_while_a_standby_is_filled_nothing_waits_for_it() -> None:
    store = MemoryStore()
    for number in range(1, 301):
        store.commit(transaction(number, data=b"1" * 10_000))
    primary = Replication(5, store)
    first = sent(attached(primary))
    assert not first.is_whole
    store.commit(transaction(301))
    assert primary.step(["change set"], 1.0, transaction=transaction(301)) == ["change set"]
    assert (primary.holds, primary.is_in_sync) == (False, False)


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
def test_a_standby_is_filled_and_takes_over_what_was_committed_meanwhile(kind: str, tmp_path: Path) -> None:
    store: Any = MemoryStore() if kind == "memory" else LmdbStore(tmp_path / "a")
    kept: Any = MemoryStore() if kind == "memory" else LmdbStore(tmp_path / "b")
    for number in range(1, 1001):
        store.commit(transaction(number, data=b"1" * 5_000))
    primary, standby = Replication(5, store), Following("shard-0", 5, 7, kept)
    out = attached(primary)
    number, now_ms = 1000, 0.0
    while not primary.is_in_sync:
        now_ms += 1.0
        message = sent(out)
        if number < 1004:
            number += 1
            made = transaction(number, key=f"k{number % 7}")
            store.commit(made)
            assert primary.step([], now_ms, transaction=made) == []
        out = primary.answered(message, standby.replicate(message, now_ms), now_ms)
    assert number == 1004, "it took several messages"
    assert standby.is_whole
    assert (kept.standing if kind == "memory" else kept.standing()[0]) == Standing(5, is_whole=True)
    held, has = kept.load(), store.load()
    assert sorted(held.entries, key=by_key) == sorted(has.entries, key=by_key)
    assert replace(held, entries=[]) == replace(has, entries=[])
    store.close()
    kept.close()


def test_digests_go_round_and_tell_what_differs() -> None:
    store, kept = MemoryStore(), MemoryStore()
    for number in range(1, 2501):
        store.commit(transaction(number))
    primary, standby = Replication(5, store), Following("shard-0", 5, 7, kept)
    now_ms = 0.0
    checks: list[Check] = []

    def beat() -> Any:
        nonlocal now_ms
        now_ms += CHECK_MS
        message = sent(primary.wake(now_ms))
        checks.extend([message.check] if message.check else [])
        answer = standby.replicate(message, now_ms)
        primary.answered(message, answer, now_ms)
        return answer

    out = attached(primary)
    while out:
        message = sent(out)
        out = primary.answered(message, standby.replicate(message, 0.0), 0.0)
    for _ in range(12):
        assert isinstance(beat(), Replicated)
    assert [check.table for check in checks] == [0, 0, 0, 1, 2, 3, 4, 5, 5, 5, 6, 7]
    assert checks[2].until == checks[9].until == b"", "to the table's end, and then from the beginning"
    kept.commit(transaction(2501, key="k17"))
    assert beat() == Refused(8)
    assert (standby.divergences, standby.is_whole, standby.life) == (1, False, 8)
    assert kept.standing == Standing(5, is_whole=False)
    assert primary.lost


def test_a_digest_that_comes_again_late_is_not_compared_with_later_rows() -> None:
    store = MemoryStore()
    store.commit(transaction(1))
    following = Following("shard-0", 5, 7, MemoryStore())
    checked = Replicate(5, 7, 1, [record(1)], True, store.digest(0, b"", 10))
    assert following.replicate(checked, 0.0) == Replicated(7, 5, 1)
    assert following.replicate(checked, 1.0) == Replicated(7, 5, 1)
    assert following.replicate(Replicate(5, 7, 2, [record(2)], True), 2.0) == Replicated(7, 5, 2)
    assert following.replicate(checked, 3.0) == Replicated(7, 5, 2)
    assert following.divergences == 0


@pytest.mark.parametrize("kind", ["memory", "lmdb"])
def test_a_standby_of_a_store_without_rows_has_what_is_stored_once(kind: str, tmp_path: Path) -> None:
    store: Any = MemoryStore() if kind == "memory" else LmdbStore(tmp_path / "a")
    kept: Any = MemoryStore() if kind == "memory" else LmdbStore(tmp_path / "b")
    store.commit(Transaction(1, 9, {}, {}, {}, {}, [Life(1, 0, 0)], 0, [], 0))
    primary, standby = Replication(5, store), Following("shard-0", 5, 7, kept)
    out = primary.attach(STANDBY, 7, 0.0)
    while not primary.is_in_sync:
        message = sent(out)
        out = primary.answered(message, standby.replicate(message, 0.0), 0.0)
    for round_ in range(1, 9):  # more than there are tables
        now_ms = round_ * CHECK_MS
        message = sent(primary.wake(now_ms))
        assert message.check is not None
        primary.answered(message, standby.replicate(message, now_ms), now_ms)
        assert (primary.lost, standby.divergences) == ("", 0)
    assert kept.load() == store.load()


def test_what_could_not_be_stored_here_is_stored_there_before_anybody_hears_of_it() -> None:
    primary = in_sync()
    primary.is_behind = True
    out = primary.step(["change set"], CHECK_MS, transaction=transaction(1), ticket=1, answer=Noted(1))
    message = sent(out)
    assert (out, message.records, message.check) == ([Send(STANDBY, message)], [record(1)], None)
    assert primary.answered(message, Replicated(7, 5, 1), CHECK_MS) == ["change set", Reply(1, Noted(1))]
    primary.is_behind = False
    assert sent(primary.wake(2 * CHECK_MS)).check is not None


def test_nothing_is_filled_from_a_store_that_is_behind() -> None:
    store = MemoryStore()
    store.commit(transaction(1))
    primary = Replication(5, store)
    primary.is_behind = True
    assert attached(primary, HEARTBEAT_MS) == []
    assert not primary.holds
    assert primary.step([], HEARTBEAT_MS) == []
    primary.is_behind = False
    assert sent(primary.step([], HEARTBEAT_MS)).is_whole


def test_a_store_that_cannot_be_read_makes_no_standby_whole() -> None:
    class Torn(MemoryStore):
        def slices(self, size: int) -> Any:
            yield from [transaction(1)]
            raise StoreError("torn")

    primary = Replication(5, Torn())
    assert attached(primary) == []
    assert (primary.lost, primary.holds) == ("it cannot be filled: torn", False)
    assert primary.wake(1e6) == []


def test_what_is_committed_before_a_standby_first_answers_holds_up_nobody_and_is_in_its_slices() -> None:
    """A standby's process may be new, and its store large to clear: seconds."""
    store, kept = MemoryStore(), MemoryStore()
    primary, standby = Replication(5, store), Following("shard-0", 5, 7, kept)
    opening = sent(primary.attach(STANDBY, 7, 0.0))
    for number in range(1, 101):
        store.commit(transaction(number))
        assert primary.step(["change set"], 1.0, transaction=transaction(number)) == ["change set"]
    assert (primary.holds, primary.is_full) == (False, False)
    message = sent(primary.answered(opening, standby.replicate(opening, 2_000.0), 2_000.0))
    assert primary.answered(message, standby.replicate(message, 2_001.0), 2_001.0) == []
    assert primary.is_in_sync
    assert kept.content_digest() == store.content_digest()


def test_a_standby_is_kept_where_its_removal_cannot_be_noted() -> None:
    class Full(MemoryStore):
        def stand(self, standing: Standing) -> None:
            if standing.epoch == 6:
                raise StoreError("no space left")
            super().stand(standing)

    primary = in_sync(Full())
    primary.step(["change set"], 1.0, transaction=transaction(1))
    with pytest.raises(StoreError):
        primary.detach(6)
    assert (primary.epoch, primary.standby, primary.holds) == (5, STANDBY, True)
    assert primary.detach(7) == ["change set"]


def test_a_standby_that_cannot_read_what_it_has_is_filled_anew() -> None:
    class Torn(MemoryStore):
        def matches(self, check: Check) -> bool:
            raise StoreError("torn")

    standby = Following("shard-0", 5, 7, Torn())
    assert standby.replicate(Replicate(5, 7, 1, [record(1)], True), 1.0) == Replicated(7, 5, 1)
    check = Check(0, b"", b"", b"")
    assert standby.replicate(Replicate(5, 7, 2, [record(2)], True, check), 1.0) == Refused(8)
    assert (standby.failure, standby.divergences) == ("torn", 0)


def test_a_repeated_message_acts_once_and_is_acknowledged_again() -> None:
    kept = MemoryStore()
    standby = Following("shard-0", 5, 7, kept)
    message = Replicate(5, 7, 1, [record(1), record(2)], True)
    assert standby.replicate(message, 1.0) == Replicated(7, 5, 2)
    assert standby.replicate(message, 2.0) == Replicated(7, 5, 2)
    assert standby.records == 2


@pytest.mark.parametrize(
    "message",
    [
        Replicate(5, 6, 3, [], True),
        Replicate(4, 7, 3, [], True),
        Replicate(6, 7, 3, [], True),
        Replicate(5, 7, 4, [], True),
    ],
    ids=["another life", "an old epoch", "another primary in the middle", "one is missing"],
)
def test_what_does_not_follow_is_refused(message: Replicate) -> None:
    standby = Following("shard-0", 5, 7, MemoryStore())
    standby.replicate(Replicate(5, 7, 1, [record(1), record(2)], True), 1.0)
    assert standby.replicate(message, 2.0) == Refused(7)
    assert standby.renewed_ms == 1.0


def test_a_filling_clears_what_was_there() -> None:
    kept = MemoryStore()
    kept.commit(transaction(9, key="old"))
    Following("shard-0", 5, 7, kept).replicate(Replicate(5, 7, 1, [], True), 1.0)
    assert kept.load() is None


def test_a_commit_that_fails_is_not_acknowledged() -> None:
    class Full(MemoryStore):
        def commit(self, _: Transaction) -> None:
            raise StoreError("no space left")

    standby = Following("shard-0", 5, 7, Full())
    assert standby.replicate(Replicate(5, 7, 1, [record(1)], True), 1.0) == Refused(8)
    assert (standby.failure, standby.is_whole) == ("no space left", False)


def test_who_is_to_lead_renews_no_lease_and_waits_it_out() -> None:
    standby = Following("shard-0", 5, 7, MemoryStore())
    standby.replicate(Replicate(5, 7, 1, [], True), 1_000.0)
    assert standby.lead(1_500.0, is_dead=False) == 1_000.0 + DRIFT * LEASE_MS
    assert standby.replicate(Replicate(5, 7, 1, [], True), 1_600.0) == Refused(7)
    assert standby.lead(1_700.0, is_dead=False) == 1_000.0 + DRIFT * LEASE_MS
    assert standby.lead(1_800.0, is_dead=True) == 1_800.0


def test_who_is_not_whole_cannot_lead() -> None:
    standby = Following("shard-0", 5, 7, MemoryStore())
    standby.replicate(Replicate(5, 7, 1, [record(1)], False), 1.0)
    with pytest.raises(ValueError, match="whole"):
        standby.lead(2.0, is_dead=True)


def test_the_primary_s_lease_is_over_before_the_standby_leads() -> None:
    """Whatever is lost: the standby acknowledges last what the primary sent at some time, and hears of it no sooner."""
    primary, standby = Replication(5, MemoryStore()), Following("shard-0", 5, 7, MemoryStore())
    message = sent(primary.attach(STANDBY, 7, 0.0))
    message = sent(primary.answered(message, standby.replicate(message, 0.0), 0.0))
    message = sent(primary.answered(message, standby.replicate(message, 300.0), 600.0))
    leads_at = standby.lead(1_200.0, is_dead=False)
    primary.answered(message, standby.replicate(message, 1_300.0), 1_400.0)
    assert primary.lease.until_ms < leads_at
