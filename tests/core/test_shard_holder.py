"""What a shard's actor makes of its role, whole effect lists; epochs are small numbers: the clock stands before their origin."""

from typing import Any, NamedTuple

import pytest

from cluster.core.history import Life
from cluster.core.messages import (
    Answers,
    Batch,
    Check,
    Elsewhere,
    Failure,
    Full,
    Gateways,
    Header,
    Noted,
    Refused,
    Replicate,
    Replicated,
    Requests,
    Send,
    Written,
)
from cluster.core.mutation_queue import StartMutation
from cluster.core.placement import SlotMap, assign_slots
from cluster.core.replication import RETRY_MS, Replication, Reply
from cluster.core.role import DRIFT, HEARTBEAT_MS, LEASE_MS, Grant, Role, Standing
from cluster.core.shard_holder import (
    FULL_RETRY_MS,
    Committed,
    Diverged,
    Filled,
    Follow,
    Lead,
    News,
    ShardHolder,
    StandbyIs,
    StepDown,
    StoreFailed,
    StoreLost,
)
from cluster.core.shard_roles import Record, Report
from cluster.core.shard_state import Commit, ShardState, Sync
from cluster.core.transaction import Store, Stored, StoredEntry, Transaction
from cluster.errors import StoreError
from cluster.storage import MemoryStore
from tests.in_process import new_shard

A, B = "shard-0", "shard-0-b"
NOW = 1_000.0
LIFE = 10


class Memory(MemoryStore):
    """A store that can fail."""

    def __init__(self) -> None:
        super().__init__()
        self.failures = 0
        """As often the next writes fail."""
        self.is_closed = False

    def _write(self) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreError("the disk is full")

    def commit(self, transaction: Transaction) -> None:
        self._write()
        super().commit(transaction)

    def stand(self, standing: Standing) -> None:
        self._write()
        super().stand(standing)

    def close(self) -> None:
        self.is_closed = True


class Disk(NamedTuple):
    id: str
    store: Memory
    standing: Standing
    come_to: tuple[int, int]


class Backing:
    """Stores in memory, as if they were on a disk."""

    def __init__(self, *, on_disk: bool) -> None:
        self.on_disk = on_disk
        self.begun: list[Disk] = []
        self.unreadable: list[Disk] = []
        self.failures = 0
        """Of the writes to what is begun next."""

    def begin_store(self) -> Disk | None:
        if not self.on_disk:
            return None
        self.begun.append(Disk(f"new{len(self.begun)}", Memory(), Standing(0, is_whole=False), (0, 0)))
        self.begun[-1].store.failures = self.failures
        return self.begun[-1]

    def load_store(self, taken: Disk) -> Stored | None:
        if taken in self.unreadable:
            raise StoreError("it is no store")
        return taken.store.load()

    def memory_store(self) -> Store:
        return Memory()

    def made(self, epoch: int, *, keeps: bool, on_disk: bool) -> ShardState:
        return new_shard(0, epoch, NOW, [], [], keeps=keeps, undurable="" if on_disk else "off")

    def owns(self, key: str) -> bool:
        return key != '["foreign"]'


class Holder(ShardHolder[Disk]):
    """One with its backing at hand."""

    def __init__(self, actor: str = A, *, on_disk: bool = True, is_replicated: bool = True) -> None:
        self.backing = Backing(on_disk=on_disk)
        super().__init__(actor, LIFE, self.backing, memory_id="memory", is_stored=on_disk, is_replicated=is_replicated)

    def tell(self, role: Role, epoch: int, *other: Any, **more: Any) -> list[Any]:
        """Have it granted a role in the life it has."""
        return self.grant(self.life, Grant(role, epoch, *other, **more), NOW)


def transaction(number: int, key: str = '["k"]', **more: Any) -> Transaction:
    entry = StoredEntry(key, number, b"1", 0.0, 0.0, "", None, None)
    lives = [Life(1, 0, 0)]
    return Transaction(1, number, {key: entry}, {}, {}, {}, lives, number - 1, [(key, number - 1)], 0, **more)


def disk(id_: str = "old", epoch: int = 3, *keys: str, is_whole: bool = True) -> Disk:
    store = Memory()
    for number, key in enumerate(keys, 1):
        store.commit(transaction(number, key))
    return Disk(id_, store, Standing(epoch, is_whole=is_whole), (epoch, len(keys)))


def leading(*, epoch: int = 5, **more: Any) -> Holder:
    made = Holder(**more)
    made.tell(Role.PRIMARY, epoch)
    return made


def following(**more: Any) -> Holder:
    made = Holder(B, **more)
    assert made.tell(Role.STANDBY, 5, A) == [Follow(), News()]
    return made


def filled(primary: Replication, standby: Holder, now_ms: float = NOW) -> list[Any]:
    """Attach a standby and carry what is sent until it is whole; its last effects."""
    last: list[Any] = []
    out = primary.attach(standby.actor, standby.life, now_ms)
    while sent := [each for each in out if isinstance(each, Send)]:
        answer, last = standby.replicate(sent[0].message, now_ms)
        out = primary.answered(sent[0].message, answer, now_ms)
    return last


def whole(**more: Any) -> Holder:
    made = following(**more)
    filled(Replication(5, Memory()), made)
    return made


def in_sync() -> Holder:
    """A primary under epoch 5 whose standby, of life 7, has everything."""
    made = leading()
    (opening, _) = made.tell(Role.PRIMARY, 5, B, 7)
    (last,) = made.shipped(opening.message, Replicated(7, 5, 0), NOW)
    made.shipped(last.message, Replicated(7, 5, len(last.message.records)), NOW)
    assert made.replication.is_in_sync
    return made


class TestWithoutARole:
    def test_it_has_nothing(self) -> None:
        assert (made := Holder()).role is Role.NONE
        assert made.report() == Report(LIFE, Role.NONE, 0)
        assert made.deadline() is None
        assert made.wake(NOW) == []

    def test_it_says_what_its_store_is(self) -> None:
        made = Holder()
        assert made.found(disk("old", 3, '["k"]')) == [News()]
        assert made.report() == Report(LIFE, Role.NONE, 3, "old", True, (3, 1))

    def test_it_says_that_its_store_was_put_there(self) -> None:
        made = Holder()
        made.adopted = "old"
        made.found(disk())
        assert made.report().is_adopted

    def test_it_keeps_the_first_store(self) -> None:
        made, second = Holder(), disk("second")
        made.found(disk("first"))
        assert made.found(second) == []
        assert (made.report().store, second.store.is_closed) == ("first", True)

    @pytest.mark.parametrize("role", [Role.PRIMARY, Role.STANDBY])
    def test_a_store_that_is_found_under_a_role_is_let_go(self, role: Role) -> None:
        made, late = Holder(on_disk=False), disk()
        made.tell(role, 5, B)
        assert made.found(late) == []
        assert (made.taken, late.store.is_closed) == (None, True)

    def test_what_is_meant_for_another_life_is_not_taken(self) -> None:
        made = Holder()
        assert made.grant(LIFE + 1, Grant(Role.PRIMARY, 5), NOW) == []
        assert made.role is Role.NONE

    def test_to_be_nothing_is_no_news(self) -> None:
        assert Holder().tell(Role.NONE, 5) == []


class TestToLead:
    def test_with_what_the_store_holds(self) -> None:
        made, old = Holder(), disk("old", 3, '["k"]', '["foreign"]')
        made.found(old)
        assert made.tell(Role.PRIMARY, 5) == [News(), Lead(5, 1, NOW)]
        assert made.report() == Report(LIFE, Role.PRIMARY, 5, "old", True)
        assert made.shard is not None
        assert [entry.key for entry in made.shard.cache] == ['["k"]']
        assert old.store.standing == Standing(5, is_whole=True)

    @pytest.mark.parametrize("slots", [None, assign_slots([0], 1)])
    def test_with_a_slot_map_that_was_stored_only_once_it_has_heard_whether_that_counts(
        self, slots: SlotMap | None
    ) -> None:
        made, old = Holder(), disk()
        old.store.commit(transaction(1, map=slots))
        made.found(old)
        made.tell(Role.PRIMARY, 5)
        assert made.shard is not None
        assert made.shard.slots.is_sealed == (slots is not None)

    def test_with_a_new_store(self) -> None:
        made = Holder()
        assert made.tell(Role.PRIMARY, 5) == [News(), Lead(5, None, NOW)]
        assert (made.report().store, made.store) == ("new0", made.backing.begun[0].store)

    def test_with_a_store_in_memory_for_a_standby_to_be_filled_from(self) -> None:
        made = leading(on_disk=False)
        assert made.report() == Report(LIFE, Role.PRIMARY, 5, "memory", True)

    def test_without_any(self) -> None:
        made = leading(on_disk=False, is_replicated=False)
        assert (made.store, made.report().store) == (None, "")

    def test_with_an_empty_one_where_another_is_gone(self) -> None:
        made, old = Holder(), disk("old", 3, '["k"]', is_whole=False)
        made.found(old)
        assert made.tell(Role.PRIMARY, 5, begins_empty=True) == [StoreLost(""), News(), Lead(5, None, NOW)]
        assert (made.report().store, old.store.is_closed) == ("new0", True)

    @pytest.mark.parametrize(("on_disk", "store"), [(True, "new0"), (False, "memory")])
    def test_with_an_empty_one_where_another_cannot_be_read(self, on_disk: bool, store: str) -> None:
        made, old = Holder(on_disk=on_disk), disk("old", 3, '["k"]')
        made.backing.unreadable.append(old)
        made.found(old)
        assert made.tell(Role.PRIMARY, 5) == [News(), Lead(5, None, NOW)]
        assert made.report().store == store

    def test_though_the_store_cannot_note_it(self) -> None:
        made = Holder()
        made.backing.failures = 1
        assert made.tell(Role.PRIMARY, 5) == [StoreFailed("the disk is full"), News(), Lead(5, None, NOW)]

    @pytest.mark.parametrize(("is_replicated", "standby"), [(True, "missing"), (False, "off")])
    def test_its_writes_know_of_the_standby(self, is_replicated: bool, standby: str) -> None:
        made = leading(is_replicated=is_replicated)
        assert made.shard is not None
        assert made.shard.acknowledgements.standby == standby


class TestToBeginAlone:
    def test_anew(self) -> None:
        made = Holder(is_replicated=False)
        assert made.wanted(None) == ""
        assert made.begin_alone(None, NOW) == (Record(1, "new0", A, since=1), [News(), Lead(1, None, NOW)])

    def test_with_the_store_on_record_above_all_that_was(self) -> None:
        made, record = Holder(B, is_replicated=False), Record(7, "old", B)
        assert made.wanted(record) == "old"
        made.found(disk("old", 9, '["k"]'))
        assert made.begin_alone(record, NOW) == (Record(10, "old", B), [News(), Lead(10, 1, NOW)])

    @pytest.mark.parametrize(("standing", "come_to", "epoch"), [(3, 3, 8), (9, 3, 10), (3, 9, 10)])
    def test_above_all_that_record_and_store_know_of(self, standing: int, come_to: int, epoch: int) -> None:
        made = Holder(is_replicated=False)
        made.found(disk("old", standing)._replace(come_to=(come_to, 1)))
        assert made.begin_alone(Record(7, "old", A), NOW)[0].epoch == epoch

    def test_without_the_store_on_record(self) -> None:
        made = Holder(is_replicated=False)
        kept, effects = made.begin_alone(Record(7, "old", A), NOW)
        assert (kept, effects) == (Record(8, "new0", A, since=8), [StoreLost("old"), News(), Lead(8, None, NOW)])

    def test_with_another_store_than_that_on_record_empty(self) -> None:
        made, other = Holder(is_replicated=False), disk("other", 9, '["k"]')
        made.found(other)
        kept, effects = made.begin_alone(Record(7, "old", A), NOW, is_told=True)
        assert (kept, effects) == (Record(8, "new0", A, since=8), [News(), Lead(8, None, NOW)])
        assert other.store.is_closed

    @pytest.mark.parametrize("record", [None, Record(7, "old", A)])
    def test_without_a_store_that_was_being_filled(self, record: Record | None) -> None:
        made, partial = (
            Holder(is_replicated=False),
            disk("old", 9, '["k"]', is_whole=False),
        )
        made.found(partial)
        kept, effects = made.begin_alone(record, NOW)
        assert (kept, effects) == (Record(10, "new0", A, since=10), [StoreLost("old"), News(), Lead(10, None, NOW)])
        assert partial.store.is_closed

    @pytest.mark.parametrize(("record", "since"), [(None, 5), (Record(7, "old", A, since=3), 3)])
    @pytest.mark.parametrize("is_readable", [True, False])
    def test_it_knows_since_when_it_has_what_was_stored(
        self, record: Record | None, since: int, *, is_readable: bool
    ) -> None:
        made, old = Holder(is_replicated=False), disk("old", 5, '["k"]')
        made.found(old)
        if not is_readable:
            made.backing.unreadable.append(old)
        kept, _ = made.begin_alone(record, NOW)
        assert kept.since == (since if is_readable else kept.epoch)

    def test_with_a_store_in_which_nothing_was_written_yet(self) -> None:
        made = Holder(is_replicated=False)
        made.found(Disk("old", Memory(), Standing(0, is_whole=False), (0, 0)))
        assert made.begin_alone(Record(7, "old", A), NOW) == (Record(8, "old", A), [News(), Lead(8, None, NOW)])

    def test_with_the_store_that_was_put_there_whatever_is_on_record(self) -> None:
        made, record = Holder(is_replicated=False), Record(7, "old", A)
        made.adopted = "put"
        assert made.wanted(record) == "put"
        made.found(disk("put", 3, '["k"]'))
        assert made.begin_alone(record, NOW) == (Record(8, "put", A, since=8), [News(), Lead(8, 1, NOW)])

    def test_without_stores_none_is_missed(self) -> None:
        made, record = Holder(on_disk=False, is_replicated=False), Record(7, "old", A)
        assert made.wanted(record) == ""
        assert made.begin_alone(record, NOW) == (Record(8, "", A, since=8), [News(), Lead(8, None, NOW)])


class TestToFollow:
    def test_with_a_new_store(self) -> None:
        made, old = Holder(B), disk("old", 3, '["k"]')
        made.found(old)
        assert made.tell(Role.STANDBY, 5, A) == [Follow(), News()]
        assert made.report() == Report(LIFE + 1, Role.STANDBY, 5, "new0")
        assert old.store.is_closed

    def test_with_a_store_in_memory(self) -> None:
        made = Holder(B, on_disk=False)
        made.tell(Role.STANDBY, 5, A)
        assert made.report() == Report(LIFE + 1, Role.STANDBY, 5, "memory")

    def test_the_same_again_changes_nothing(self) -> None:
        made = following()
        assert made.tell(Role.STANDBY, 5, A) == []
        assert made.tell(Role.STANDBY, 4, A) == []
        assert made.life == LIFE + 1

    @pytest.mark.parametrize(("epoch", "primary"), [(6, A), (5, "shard-0-c")])
    def test_another_epoch_or_primary_begins_anew_in_the_same_store(self, epoch: int, primary: str) -> None:
        made = following()
        store = made.store
        assert made.tell(Role.STANDBY, epoch, primary) == [Follow(), News()]
        assert made.report() == Report(LIFE + 2, Role.STANDBY, epoch, "new0")
        assert (made.store, len(made.backing.begun)) == (store, 1)

    def test_it_says_when_it_has_everything(self) -> None:
        made, source = following(), Memory()
        source.commit(transaction(1))
        primary = Replication(5, source)
        assert filled(primary, made)[:2] == [Committed(), News()]
        assert made.report().is_whole
        assert made.following is not None
        message = Replicate(5, made.life, made.following.records + 1, [], True)
        assert made.replicate(message, NOW) == (Replicated(made.life, 5, made.following.records), [Committed()])

    def test_what_nobody_has_taken_goes_once_it_has_everything(self) -> None:
        made = following()
        assert filled(Replication(5, Memory()), made) == [Committed(), News(), Filled(0)]

    def test_one_that_has_diverged_lives_anew(self) -> None:
        made = whole()
        wrong = Replicate(5, made.life, 1, [], True, Check(0, b"", b"", b"other rows"))
        assert made.replicate(wrong, NOW) == (
            Refused(LIFE + 2),
            [Committed(), Diverged("its rows are not the primary's"), News()],
        )
        assert made.report() == Report(LIFE + 2, Role.STANDBY, 5, "new0")

    def test_how_often_it_has_diverged_is_counted_over_all_its_fillings(self) -> None:
        made = whole()
        for epoch in (5, 6):
            wrong = Replicate(epoch, made.life, 1, [], True, Check(0, b"", b"", b"other rows"))
            assert made.replicate(wrong, NOW)[0] == Refused(made.life)
            made.tell(Role.STANDBY, epoch + 1, A)
        assert made.divergences == 2

    def test_only_a_standby_takes_records(self) -> None:
        message = Replicate(5, LIFE, 1, [], False)
        assert Holder().replicate(message, NOW) == (Elsewhere(""), [])
        assert leading().replicate(message, NOW) == (Elsewhere(A), [])


class TestToSucceed:
    def test_when_the_lease_is_over(self) -> None:
        made = whole()
        assert made.deadline() is None
        assert made.tell(Role.PRIMARY, 6) == []
        due = NOW + DRIFT * LEASE_MS
        assert (made.role, made.deadline()) == (Role.STANDBY, due)
        made.tell(Role.PRIMARY, 7)
        assert made.deadline() == due, "it was told once"
        assert made.wake(due - 1) == []
        assert made.wake(due) == [News(), Lead(6, None, due)]
        assert made.report() == Report(LIFE + 2, Role.PRIMARY, 6, "new0", True)
        assert made.deadline() is None

    def test_with_what_it_was_filled_with(self) -> None:
        made, source = following(), Memory()
        source.commit(transaction(1))
        filled(Replication(5, source), made)
        made.tell(Role.PRIMARY, 6, is_dead=True)
        assert made.wake(NOW) == [News(), Lead(6, 1, NOW)]

    def test_with_what_it_has_in_memory(self) -> None:
        made, source = Holder(B, on_disk=False), Memory()
        made.tell(Role.STANDBY, 5, A)
        source.commit(transaction(1))
        filled(Replication(5, source), made)
        made.tell(Role.PRIMARY, 6, is_dead=True)
        assert made.wake(NOW) == [News(), Lead(6, 1, NOW)]
        assert made.report().store == "memory"

    def test_at_once_as_soon_as_the_primary_is_known_to_be_dead(self) -> None:
        made = whole()
        made.tell(Role.PRIMARY, 6)
        assert made.tell(Role.PRIMARY, 7, is_dead=True) == []
        assert made.deadline() == NOW
        assert made.wake(NOW) == [News(), Lead(7, None, NOW)]

    @pytest.mark.parametrize(("is_replicated", "store"), [(True, "memory"), (False, "")])
    def test_with_nothing_where_its_store_cannot_be_read(self, is_replicated: bool, store: str) -> None:
        made = whole(is_replicated=is_replicated)
        assert made.taken is not None
        made.backing.unreadable.append(made.taken)
        made.backing.on_disk = False
        unreadable = made.store
        made.tell(Role.PRIMARY, 6, is_dead=True)
        assert made.wake(NOW) == [News(), Lead(6, None, NOW)]
        assert made.report().store == store
        assert made.store is not unreadable

    def test_not_without_everything(self) -> None:
        assert following().tell(Role.PRIMARY, 6) == [
            StepDown("a standby that is not whole is to begin without what it lacks")
        ]

    def test_not_where_it_is_to_follow_after_all(self) -> None:
        made = whole()
        made.tell(Role.PRIMARY, 6)
        assert made.tell(Role.STANDBY, 7, A) == [Follow(), News()]
        assert made.deadline() is None
        assert made.wake(NOW + 2 * LEASE_MS) == []


class TestThePrimary:
    def test_attaches_a_standby(self) -> None:
        made = leading()
        assert made.tell(Role.PRIMARY, 5, B, 7) == [Send(B, Replicate(5, 7, 1, [], False)), News()]
        assert made.report() == Report(LIFE, Role.PRIMARY, 5, "new0", True, standby=B, standby_life=7)

    def test_attaches_none_while_it_has_one(self) -> None:
        made = in_sync()
        assert made.tell(Role.PRIMARY, 5, B, 8) == [News()]
        assert made.report().standby_life == 7

    def test_attaches_none_without_anything_to_fill_it_from(self) -> None:
        made = leading(on_disk=False, is_replicated=False)
        assert made.tell(Role.PRIMARY, 5, B, 7) == [News()]

    def test_attaches_none_under_an_earlier_epoch(self) -> None:
        assert leading().tell(Role.PRIMARY, 4, B, 7) == [News()]

    def test_goes_on_alone_under_a_higher_epoch(self) -> None:
        made = in_sync()
        made.wake(NOW + HEARTBEAT_MS)
        assert made.step(["change set"], NOW + LEASE_MS, ticket=1, answer=Noted(1)) == []
        assert made.tell(Role.PRIMARY, 6) == ["change set", Reply(1, Noted(1)), News()]
        assert made.report() == Report(LIFE, Role.PRIMARY, 6, "new0", True)
        assert made.shard is not None
        assert made.shard.acknowledgements.standby == "missing"

    def test_does_not_where_its_store_cannot_note_it(self) -> None:
        made = in_sync()
        made.backing.begun[0].store.failures = 1
        assert made.tell(Role.PRIMARY, 6) == [StoreFailed("the disk is full"), News()]
        assert (made.report().epoch, made.report().standby) == (5, B)

    @pytest.mark.parametrize("role", [Role.STANDBY, Role.NONE])
    def test_steps_down_for_another(self, role: Role) -> None:
        made = leading()
        assert made.tell(role, 5, B) == []
        assert made.tell(role, 6, B) == [StepDown("another is the primary")]

    def test_says_when_its_standby_has_everything(self) -> None:
        made = leading()
        (opening, _) = made.tell(Role.PRIMARY, 5, B, 7)
        (last,) = made.shipped(opening.message, Replicated(7, 5, 0), NOW)
        assert made.shipped(last.message, Replicated(7, 5, 0), NOW) == [StandbyIs(B, is_in_sync=True, lost=""), News()]
        assert made.report().is_in_sync
        assert made.shard is not None
        assert made.shard.acknowledgements.standby == "in_sync"

    def test_says_when_its_standby_is_lost(self) -> None:
        made = in_sync()
        (beat,) = made.wake(NOW + HEARTBEAT_MS)
        reason = "it does not go on as standby"
        assert made.shipped(beat.message, Refused(8), NOW) == [StandbyIs(B, is_in_sync=False, lost=reason), News()]
        assert made.report().is_lost

    def test_sends_again_what_was_not_answered(self) -> None:
        made = in_sync()
        assert made.deadline() == NOW + HEARTBEAT_MS
        (beat,) = made.wake(NOW + HEARTBEAT_MS)
        assert made.shipped(beat.message, None, NOW) == []
        assert made.deadline() == NOW + RETRY_MS
        assert made.wake(NOW + RETRY_MS) == [beat]


class TestWhatIsForThePrimary:
    MESSAGE = Requests(Header("gateway-0", 1, 0, 1), [])

    def test_others_say_who_that_is(self) -> None:
        assert Holder().refusal(self.MESSAGE) == Elsewhere("")
        assert following().refusal(self.MESSAGE) == Elsewhere(A)
        assert leading().refusal(self.MESSAGE) is None

    def test_it_takes_no_more_work_than_its_standby_keeps_up_with(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = in_sync()
        monkeypatch.setattr("cluster.core.replication.MAX_HELD", 0)
        made.step(["change set"], NOW + LEASE_MS)
        assert made.refusal(self.MESSAGE) == Full(FULL_RETRY_MS)
        assert made.refusal(Batch(Header("coordinator-0", 1, 0, 1), [], [], NOW)) == Full(FULL_RETRY_MS)
        assert made.refusal(Gateways([])) is None


class TestAStep:
    def test_is_committed_before_anything_leaves_and_synced_after(self) -> None:
        made = leading()
        effects = [Sync(), Commit(transaction(1)), "change set"]
        assert made.step(effects, NOW, ticket=1, answer=Noted(1)) == [
            Committed(),
            "change set",
            Reply(1, Noted(1)),
            Sync(),
        ]
        assert (stored := made.backing.begun[0].store.load()) is not None
        assert [entry.key for entry in stored.entries] == ['["k"]']

    def test_waits_for_the_standby(self) -> None:
        made = in_sync()
        committed, sent = made.step([Commit(transaction(1)), "change set"], NOW, ticket=1, answer=Noted(1))
        assert (committed, len(sent.message.records)) == (Committed(), 1)
        number = sent.message.first
        assert made.shipped(sent.message, Replicated(7, 5, number), NOW) == ["change set", Reply(1, Noted(1))]

    def test_takes_along_what_it_has_promised(self) -> None:
        made = in_sync()
        assert made.shard is not None
        made.shard.acknowledgements.promise("replicated", 4)
        answer = Answers(1, 5, [(4, Written(1))])
        made.step([Commit(transaction(1))], NOW, ticket=1, answer=answer)
        assert made.shard.acknowledgements.promised == {}
        reply, news = made.tell(Role.PRIMARY, 6)
        assert (reply.ticket, news) == (1, News())
        assert isinstance(reply.answer.items[0][1], Failure), "the standby may not have it"

    def test_that_cannot_be_stored_goes_with_the_next(self) -> None:
        made = leading()
        assert made.shard is not None
        store = made.backing.begun[0].store
        store.failures = 1
        assert made.step([Commit(transaction(1)), "change set"], NOW) == [StoreFailed("the disk is full"), "change set"]
        assert made.replication.is_behind
        assert made.step([Commit(transaction(2, '["l"]'))], NOW) == [Committed()]
        assert not made.replication.is_behind

    def test_sends_no_mutation_that_is_not_stored(self) -> None:
        made = leading()
        made.backing.begun[0].store.failures = 1
        call = StartMutation("m", 1, None)  # type: ignore[arg-type]
        other = StartMutation("n", 1, None)  # type: ignore[arg-type]
        effects = made.step([Commit(transaction(1, mutations={"m": None})), call, other], NOW)
        assert effects[:2] == [StoreFailed("the disk is full"), other]
        assert call not in effects
        assert Committed() in effects, "it has been tried again"

    def test_without_a_role_is_none(self) -> None:
        assert Holder().step([], NOW) == []
