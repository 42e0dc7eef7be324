"""Replication: how a shard's standby has everything before anybody else hears of it.

Clients must never see what a failover could lose. Were the standby told beside the clients, a primary that dies in between would have
shown what its successor never had: versions would go back. So each step's transaction goes to the standby as a record, and
everything that the step lets out (answers, change sets, requests to services) is held, in order, until the standby has committed it and
while the primary's lease holds. Steps without a transaction wait their turn too: what they read may not be replicated yet.
Waiting costs a round trip, not throughput: one message is under way, and what is committed meanwhile goes with the next.

A standby is filled while the primary serves: slices of the store's rows as they are, with the records committed meanwhile in between. A
slice has the latest rows, and every later change of a row follows as a record, so the order of slices and records does not matter as
long as records keep theirs. With the last slice the primary begins to hold, and only when the standby has all up to there is it
whole: it says so itself, in its store, and may be made the primary from then on. From then on, too, only the supervisor can remove it.
The first message has nothing in it: what a standby needs before it answers at all (its process is new, its store is cleared) holds up nobody.

Once a second a digest goes along, of some rows as the primary's store has them after the records sent by then. A standby that finds
others has diverged: it refuses everything, and is filled anew.

What must not live here: roles (`role`, `shard_roles`), what a step does (`shard_state`). Both machines read and write their store
through the port `Replicable`, since what they answer depends on what came of it. It is one thing: what either end may do follows from what the
other has said.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec
from msgspec import Struct

from cluster.core.messages import Answer, Answers, Check, Elsewhere, Failure, Refused, Replicate, Replicated, Send
from cluster.core.role import DRIFT, HEARTBEAT_MS, LEASE_MS, Lease, Standing
from cluster.core.transaction import Transaction
from cluster.errors import ErrorCode, StoreError

MAX_UNACKNOWLEDGED_BYTES = 16 * 1024 * 1024
"""Of records that the standby has not acknowledged; beyond it the shard takes no batches and requests (`is_full`)."""
MAX_HELD = 20_000
"""Steps that are held; beyond it likewise. Timers take some too, so it may be passed by a few."""
MESSAGE_BYTES = 1024 * 1024
"""Of records in one message. The standby answers when it has committed them all, so this bounds its pause as well."""
SLICE_BYTES = 256 * 1024
RETRY_MS = 100.0
CHECK_MS = 1_000.0
CHECK_ROWS = 1_000
"""Rows a digest covers; 100,000 entries are gone through in less than two minutes, at some milliseconds a second."""

_NOTHING: Mapping[int, str] = {}
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Transaction).decode


class Replicable(Protocol):
    """A store as replication needs it."""

    def commit(self, transaction: Transaction) -> None:
        """Store a transaction, or raise `StoreError`."""
        ...

    def slices(self, size: int) -> Iterator[Transaction]:
        """Return all rows, about `size` bytes at a time, each slice as the rows are when it is asked for."""
        ...

    def digest(self, table: int, after: bytes, rows: int) -> Check:
        """Return a digest of the rows that follow."""
        ...

    def matches(self, check: Check) -> bool:
        """Whether it has the very rows that a digest was made of."""
        ...

    def clear(self) -> None:
        """Forget everything, and not be whole from now on; or raise `StoreError`."""
        ...

    def stand(self, standing: Standing) -> None:
        """Note in which role the store is written, durably; or raise `StoreError`."""
        ...


class Reply(Struct, frozen=True):
    """Effect: the call that came with `ticket` is answered."""

    ticket: Any
    answer: Answer


class _Held(NamedTuple):
    number: int
    """The record that has to be acknowledged first."""
    ticket: Any
    """None: nobody waits for an answer."""
    answer: Answer | None
    promised: Mapping[int, str]
    """Requests whose writes are to be replicated (`Acknowledgements.promised`)."""
    effects: list[Any]


class Replication:
    """The primary's end. Without a standby everything passes at once."""

    def __init__(self, epoch: int, store: Replicable | None) -> None:
        self.epoch = epoch
        self.standby = ""
        """The actor; "": there is none."""
        self.life = 0
        self.lease = Lease()
        self._store = store
        self._held: deque[_Held] = deque()
        self._records: deque[bytes] = deque()
        """Not sent yet."""
        self._sizes: deque[int] = deque()
        """Of all that are not acknowledged."""
        self._bytes = 0
        self._number = self._sent = self._acknowledged = 0
        """Of the last record made, sent, acknowledged."""
        self._slices: Iterator[Transaction] | None = None
        self._is_filling = False
        """The standby has answered: what is committed from now on goes to it; what was before is in slices."""
        self._whole_at: int | None = None
        """The standby is whole when it has this record; None: there are slices to be sent."""
        self._whole = False
        self._in_flight: Replicate | None = None
        self._sent_ms = 0.0
        self._retry_at: float | None = None
        self._checked = Check(0, b"", b"", b"")
        self._checked_ms = 0.0
        self.lost = ""
        """Why the standby cannot be used any longer; the supervisor is to remove it."""
        self.lag_ms = 0.0
        """From when the last acknowledged message was sent until it was answered."""
        self.records_sent = 0
        self.expirations = 0
        """How often something had to be held since the lease was over."""
        self._is_suspended = False
        self.is_behind = False
        """The store here lacks something that was committed, since it could not be written: neither fillings nor digests are made of it."""

    @property
    def is_alone(self) -> bool:
        """Whether nothing is replicated."""
        return not self.standby

    @property
    def holds(self) -> bool:
        """Whether nothing gets out that the standby has not."""
        return self._whole_at is not None

    @property
    def is_in_sync(self) -> bool:
        """Whether the standby has all that was ever let out, and said so."""
        return self._whole and not self.lost

    @property
    def is_full(self) -> bool:
        """Whether too much waits for the standby already."""
        return self._bytes > MAX_UNACKNOWLEDGED_BYTES or len(self._held) > MAX_HELD

    def serves(self, now_ms: float) -> bool:
        """Whether this primary may let anything out now."""
        return not self.holds or self.lease.holds(now_ms)

    # --- roles ---------------------------------------------------------------------------------------------------

    def attach(self, standby: str, life: int, now_ms: float) -> list[Any]:
        """Begin to fill a standby; one that has been attached goes on."""
        if (standby, life) == (self.standby, self.life):
            return []
        assert not self.holds, "a standby that may take over is removed only under another epoch"
        assert self._store is not None
        self._forget()
        self.standby, self.life = standby, life
        return self._advance(now_ms)

    def detach(self, epoch: int) -> list[Any]:
        """The supervisor has removed the standby: go on alone, under a higher epoch. What was held leaves.

        Raises:
            ValueError: the epoch is not higher: that is no word of the supervisor's.
            StoreError: the store cannot note it. Nothing has changed: were all to begin anew, the store of the standby that is removed
                would pass for the later one.
        """
        if epoch <= self.epoch:
            raise ValueError(f"epoch {epoch} does not follow {self.epoch}")
        if self._store is not None:
            self._store.stand(Standing(epoch, is_whole=True))
        self.epoch = epoch
        effects: list[Any] = []
        for held in self._held:
            effects.extend(held.effects)
            if held.ticket is not None:
                assert held.answer is not None
                self._correct(held)
                effects.append(Reply(held.ticket, held.answer))
        self._forget()
        return effects

    def _correct(self, held: _Held) -> None:
        """The standby may not have a step: of its writes those have failed that asked to be replicated, or may not be stored here either.

        What asked for nothing is on the disk by now (`Replicable.stand`), as safe as it can be without a standby. The answer is corrected
        where it stands: who repeats the call is told the same.
        """
        if not isinstance(held.answer, Answers):
            return
        lost = Failure(
            ErrorCode.UNAVAILABLE, "the write was applied, but the standby is gone; repeat it to know that it is kept"
        )
        items = held.answer.items
        for at, (request, _) in enumerate(items):
            level = held.promised.get(request)
            if level == "replicated" or (level is not None and self.is_behind):
                items[at] = (request, lost)

    def _forget(self) -> None:
        self.standby, self.life, self.lost = "", 0, ""
        self._held.clear()
        self._records.clear()
        self._sizes.clear()
        self._bytes = self._number = self._sent = self._acknowledged = 0
        self._slices = self._whole_at = self._in_flight = self._retry_at = None
        self._whole = self._is_suspended = self._is_filling = False
        self.lease = Lease()

    # --- steps ---------------------------------------------------------------------------------------------------

    def step(
        self,
        effects: list[Any],
        now_ms: float,
        *,
        transaction: Transaction | None = None,
        ticket: Any = None,
        answer: Answer | None = None,
        promised: Mapping[int, str] = _NOTHING,
    ) -> list[Any]:
        """A step of the shard is done, and committed here: let out what may be.

        Args:
            effects: What it wants beside the commit.
            now_ms: The time.
            transaction: What was committed, or was to be (`is_behind`): the standby is to have it either way; None: nothing.
            ticket: Who waits for `answer`.
            answer: To the call that was this step.
            promised: Its requests that are to be replicated (`Acknowledgements.promised`).
        """
        if transaction is not None and self._is_filling:
            # A lost standby's too: it never has them, so what follows from them waits for another epoch.
            self._number += 1
            if not self.lost:
                record = _encode(transaction)
                self._records.append(record)
                self._sizes.append(len(record))
                self._bytes += len(record)
        if not self.holds:
            out = [*effects] if ticket is None or answer is None else [*effects, Reply(ticket, answer)]
        else:
            if effects or ticket is not None:
                self._held.append(_Held(self._number, ticket, answer, promised, effects))
            out = self._released(now_ms)
        return [*out, *self._advance(now_ms)]

    def _released(self, now_ms: float) -> list[Any]:
        effects: list[Any] = []
        while self._held and self._held[0].number <= self._acknowledged:
            if not self.lease.holds(now_ms):
                self.expirations += not self._is_suspended
                self._is_suspended = True
                break
            self._is_suspended = False
            held = self._held.popleft()
            effects.extend(held.effects)
            if held.ticket is not None and held.answer is not None:
                effects.append(Reply(held.ticket, held.answer))
        return effects

    # --- the link ------------------------------------------------------------------------------------------------

    def _advance(self, now_ms: float) -> list[Any]:
        """Send what there is, if nothing is under way."""
        if not self.standby or self.lost or self._in_flight is not None:
            return []
        if not self._is_filling:
            return [self._send(Replicate(self.epoch, self.life, 1, [], False), now_ms)]
        is_due = now_ms >= self._sent_ms + HEARTBEAT_MS
        if not (self._records or (self._slices is not None and not self.is_behind) or is_due):
            return []
        records: list[bytes] = []
        size = 0
        while self._records and size < MESSAGE_BYTES:
            records.append(self._records.popleft())
            size += len(records[-1])
        while self._slices is not None and not (self._records or self.is_behind) and size < MESSAGE_BYTES:
            try:
                slice_ = next(self._slices, None)
            except StoreError as error:
                self._slices, self.lost = None, f"it cannot be filled: {error}"
                return []
            if slice_ is None:
                self._slices = None
                self._whole_at = self._number
                break
            record = _encode(slice_)
            self._number += 1
            self._sizes.append(len(record))
            self._bytes += len(record)
            records.append(record)
            size += len(record)
        first = self._sent + 1
        self._sent += len(records)
        is_whole = self._whole_at is not None and self._sent >= self._whole_at
        check = None
        if (
            is_whole and now_ms >= self._checked_ms + CHECK_MS and not (self._records or self.is_behind)
        ):  # the store is just where the standby will be
            self._checked_ms = now_ms
            check = self._next_check()
        message = Replicate(self.epoch, self.life, first, records, is_whole, check)
        self.records_sent += len(records)
        return [self._send(message, now_ms)]

    def _send(self, message: Replicate, now_ms: float) -> Send:
        self._in_flight, self._sent_ms, self._retry_at = message, now_ms, None
        return Send(self.standby, message)

    def _next_check(self) -> Check | None:
        assert self._store is not None
        last = self._checked
        try:
            found = self._store.digest(last.table, last.until, CHECK_ROWS)
        except StoreError:
            return None  # the shard hears of it with its next commit
        self._checked = found if found.until else Check(found.table + 1, b"", b"", b"")
        return found

    def answered(self, message: Replicate, answer: Answer, now_ms: float) -> list[Any]:
        """The standby answered."""
        if self._in_flight is not message:
            return []
        self._in_flight = None
        match answer:
            case Replicated(life=life, epoch=epoch, number=number) if (life, epoch) == (self.life, self.epoch):
                self.lease.renewed(self._sent_ms)
                self.lag_ms = now_ms - self._sent_ms
                while self._acknowledged < number and self._sizes:
                    self._bytes -= self._sizes.popleft()
                    self._acknowledged += 1
                self._whole = self._whole or message.is_whole
                if not self._is_filling:
                    assert self._store is not None
                    self._is_filling, self._slices = True, self._store.slices(SLICE_BYTES)
                return [*self._released(now_ms), *self._advance(now_ms)]
            case Refused() | Elsewhere():
                # It lives anew, has diverged, or is to become the primary itself.
                self.lost = "it does not go on as standby"
                return []
            case _:
                self._in_flight = message  # it says nothing
                return self.unanswered(message, now_ms)

    def unanswered(self, message: Replicate, now_ms: float) -> list[Any]:
        """The call failed: it is made again."""
        if self._in_flight is message:
            self._retry_at = now_ms + RETRY_MS
        return []

    def deadline(self) -> float | None:
        """When anything is due."""
        if not self.standby or self.lost:
            return None
        if self._in_flight is not None:
            return self._retry_at
        return self._sent_ms + HEARTBEAT_MS

    def wake(self, now_ms: float) -> list[Any]:
        """Do what is due."""
        if self._in_flight is None:
            return self._advance(now_ms)
        if self._retry_at is not None and self._retry_at <= now_ms:
            return [self._send(self._in_flight, now_ms)]
        return []


class Following:
    """The standby's end: it commits records, and runs nothing."""

    def __init__(self, primary: str, epoch: int, life: int, store: Replicable) -> None:
        self.primary = primary
        self.epoch = epoch
        self.life = life
        """Rises when it has to be filled anew."""
        self._store = store
        self._number = 0
        self._is_begun = False
        self.is_whole = False
        self.renewed_ms: float | None = None
        """When it received the last message that it acknowledged."""
        self.may_lead_at: float | None = None
        """From when on it may be the primary; None: it is to go on following."""
        self.divergences = 0
        self.failure = ""
        """Why the last filling came to nothing."""
        self.records = 0

    def replicate(self, message: Replicate, now_ms: float) -> Answer:
        """Commit what the primary has."""
        if self.may_lead_at is not None or message.life != self.life or message.epoch < self.epoch:
            return Refused(self.life)
        if message.epoch > self.epoch and message.first > 1:
            return Refused(self.life)  # a primary of another epoch begins at the beginning
        self.epoch = message.epoch
        if message.first > self._number + 1:
            return Refused(self.life)  # what came before was lost with something else: all anew
        try:
            if not self._is_begun:
                self._store.clear()
                self._is_begun = True
            for record in message.records[self._number + 1 - message.first :]:
                self._store.commit(_decode(record))
                self._number += 1
                self.records += 1
            if message.is_whole and not self.is_whole:
                self._store.stand(Standing(self.epoch, is_whole=True))
                self.is_whole = True
            is_late = (
                message.first + len(message.records) <= self._number
            )  # a repeat: the rows are those of later records
            check = None if is_late or not self.is_whole else message.check
            matches = check is None or self._store.matches(check)
        except (StoreError, msgspec.DecodeError) as error:
            return self._anew(str(error))
        if not matches:
            self.divergences += 1
            return self._anew("its rows are not the primary's")
        self.renewed_ms = now_ms
        return Replicated(self.life, self.epoch, self._number)

    def _anew(self, reason: str) -> Refused:
        self.failure = reason
        self.is_whole = self._is_begun = False
        try:
            self._store.stand(Standing(self.epoch, is_whole=False))
        except StoreError as error:
            self.failure = f"{reason}; {error}"  # it is cleared before it is filled, as well
        self.life += 1
        self._number = 0
        return Refused(self.life)

    def lead(self, now_ms: float, *, is_dead: bool) -> float:
        """Stop following, for good. Returns from when on it may be the primary.

        Args:
            now_ms: The time.
            is_dead: The primary's process is known to have ended: there is nobody whose lease is to be waited for.

        Raises:
            ValueError: it does not have everything.
        """
        if not self.is_whole:
            raise ValueError("a standby that is not whole cannot lead")
        if self.may_lead_at is None:
            wait_ms = 0.0 if self.renewed_ms is None else self.renewed_ms + DRIFT * LEASE_MS - now_ms
            self.may_lead_at = now_ms + max(wait_ms, 0.0)
        if is_dead:
            self.may_lead_at = min(self.may_lead_at, now_ms)
        return self.may_lead_at
