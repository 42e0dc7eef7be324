"""What a shard's actor holds: nothing, the standby, or the primary. How it takes a role, and what it says of itself.

It puts `ShardState`, `Replication` and `Following` together. A step of the primary ends in one commit, here and at the standby, whatever
began it; what the step lets out leaves when `Replication` says so. A standby begins with an empty store and keeps what else is here until it
has everything. Who is told another role than it can go on to from its own begins anew, since what it has in memory may be what nobody
else has. It is one thing: what an actor says, takes and lets out follows from the one role that it has.

Stores and machines are made at once (`Backing`), since what it does next depends on what came of it; all else that is to be done it returns.

What must not live here: who gets which role (`shard_roles`), files, waiting for a store, logs (`cluster.actors.shard`).
"""

from collections.abc import Iterable
from typing import Any, Generic, Protocol, TypeVar

from msgspec import Struct

from cluster.core.messages import Answer, Batch, Elsewhere, Full, Message, Replicate, Requests
from cluster.core.mutation_queue import StartMutation
from cluster.core.replication import Following, Replication
from cluster.core.role import Grant, Role, Standing, next_epoch
from cluster.core.shard_roles import Record, Report
from cluster.core.shard_state import Commit, ShardState, Sync
from cluster.core.transaction import Store, Stored, Transaction
from cluster.errors import StoreError

FULL_RETRY_MS = 100.0


class OwnStore(Protocol):
    """A store on the disk that is this process's own."""

    @property
    def id(self) -> str:
        """Its name, among all of the shard."""
        ...

    @property
    def store(self) -> Store:
        """What reads and writes it."""
        ...

    @property
    def standing(self) -> Standing:
        """In which role it was written before."""
        ...

    @property
    def come_to(self) -> tuple[int, int]:
        """(epoch, offset) of the last transaction before."""
        ...


T = TypeVar("T", bound=OwnStore)


class Backing(Protocol[T]):
    """What a holder needs at once."""

    def begin_store(self) -> T | None:
        """Begin an empty store on the disk; None: nothing is to be stored there, or it cannot be."""
        ...

    def load_store(self, taken: T) -> Stored | None:
        """Return what a store holds; None: nothing yet.

        Raises:
            StoreError: it cannot be read; it was closed, and set aside.
        """
        ...

    def memory_store(self) -> Store:
        """Return an empty store that ends with the process."""
        ...

    def made(self, epoch: int, *, keeps: bool, on_disk: bool) -> ShardState:
        """Return a new machine of the shard."""
        ...

    def owns(self, key: str) -> bool:
        """Whether the shard is, by configuration, where a key belongs."""
        ...


class News(Struct, frozen=True):
    """Effect: the report may be another now; say so to those who wait."""


class Follow(Struct, frozen=True):
    """Effect: it is the standby from now on; find out what a primary has to know at once."""


class Lead(Struct, frozen=True):
    """Effect: it is the primary from now on, with the machine in `shard`; say so, and ask for what it has to know."""

    epoch: int
    entries: int | None
    """That it has from its store; None: nothing was stored."""
    since_ms: float
    """When it began to load them."""


class StepDown(Struct, frozen=True):
    """Effect: end the process. It begins anew, and asks for a role."""

    reason: str


class Filled(Struct, frozen=True):
    """Effect: this standby has everything, after so many records: of the stores that nobody has taken what is in its own is not needed any longer."""

    records: int


class Diverged(Struct, frozen=True):
    """Effect: say that this standby is filled anew."""

    reason: str


class StandbyIs(Struct, frozen=True):
    """Effect: say what has become of the standby."""

    actor: str
    is_in_sync: bool
    lost: str
    """Why it cannot be used any longer, if so."""


class Committed(Struct, frozen=True):
    """Effect: something was committed; write it through in time."""


class StoreFailed(Struct, frozen=True):
    """Effect: say that the store could not be written; it is tried again with what comes next."""

    reason: str


class StoreLost(Struct, frozen=True):
    """Effect: say that the shard begins without the store that held it."""

    store: str
    """Its id; "": the supervisor has said which."""


class ShardHolder(Generic[T]):
    """See the module."""

    def __init__(
        self, actor: str, life: int, backing: Backing[T], *, memory_id: str, is_stored: bool, is_replicated: bool
    ) -> None:
        """Begin without a role.

        Args:
            actor: Its name.
            life: Of its process.
            backing: See there.
            memory_id: Names its store where that ends with the process.
            is_stored: There are to be stores on a disk.
            is_replicated: The shard is to have a standby.
        """
        self.actor = actor
        self.life = life
        """Rises with each role as standby, with what ends it, and when it is filled anew."""
        self.shard: ShardState | None = None
        """The primary's."""
        self.replication = Replication(0, None)
        """The primary's."""
        self.following: Following | None = None
        """The standby's."""
        self.divergences = 0
        """How often it was found to differ from its primary, as whosever standby."""
        self.taken: T | None = None
        self.store: Store | None = None
        """Of a role: the one that is taken, or one in memory."""
        self.adopted = ""
        """Id of a store that was put here from outside: by a restore, or an earlier version. It counts, whatever is on record."""
        self._backing = backing
        self._memory_id = memory_id
        self._is_stored = is_stored
        self._is_replicated = is_replicated
        self._succeeds_as = 0
        """The epoch under which it leads when it need not follow any longer."""

    @property
    def role(self) -> Role:
        """What this actor is."""
        if self.shard is not None:
            return Role.PRIMARY
        return Role.NONE if self.following is None else Role.STANDBY

    def report(self) -> Report:
        """Say what it is."""
        taken, replication, following = self.taken, self.replication, self.following
        store = taken.id if taken is not None else self._memory_id if self.store is not None else ""
        if following is not None:
            return Report(self.life, Role.STANDBY, following.epoch, store, following.is_whole)
        if self.shard is not None:
            return Report(
                self.life,
                Role.PRIMARY,
                replication.epoch,
                store,
                True,
                standby=replication.standby,
                standby_life=replication.life,
                is_in_sync=replication.is_in_sync,
                is_lost=bool(replication.lost),
            )
        if taken is None:
            return Report(self.life, Role.NONE, 0)
        return Report(
            self.life,
            Role.NONE,
            taken.standing.epoch,
            taken.id,
            taken.standing.is_whole,
            taken.come_to,
            is_adopted=taken.id == self.adopted,
        )

    def _news(self) -> News:
        replication = self.replication
        if self.shard is not None and replication.epoch:
            self.shard.acknowledgements.standby = (
                "in_sync" if replication.is_in_sync else "missing" if self._is_replicated else "off"
            )
        return News()

    # --- the store -----------------------------------------------------------------------------------------------

    def found(self, taken: T) -> list[Any]:
        """A store was found here. It is kept where there is no role yet, and no other."""
        if self.role is not Role.NONE or self.taken is not None:
            taken.store.close()
            return []
        self.taken = taken
        return [News()]

    def wanted(self, record: Record | None) -> str:
        """Return the id of the store without which this actor would not begin alone; "": any will do."""
        return self.adopted or (record.store if record is not None and self._is_stored else "")

    def _begin_store(self) -> None:
        """Have a new, empty store."""
        if self.taken is not None:
            self.taken.store.close()
        self.taken = self._backing.begin_store()

    # --- roles ---------------------------------------------------------------------------------------------------

    def begin_alone(self, record: Record | None, now_ms: float, *, is_told: bool = False) -> tuple[Record, list[Any]]:
        """Be the primary whom nobody need tell, with the store that is wanted or, where that cannot be had, without.

        What was kept elsewhere since is not here, so of stores only the wanted one counts.

        Args:
            record: What is kept of the shard's roles.
            now_ms: The time.
            is_told: It was said already what is wrong with the store that is wanted.

        Returns:
            The record to keep, since with another the next life would not take this one's store; and the effects.
        """
        wanted = self.wanted(record)
        lost: list[Any] = []
        if wanted and (self.taken is None or self.taken.id != wanted):
            lost = [] if is_told else [StoreLost(wanted)]
            if self.taken is not None:
                self.taken.store.close()
                self.taken = None
        found = self.taken
        before = [] if record is None else [record.epoch]
        since = 0 if record is None else record.since
        if found is not None:
            before += [found.standing.epoch, found.come_to[0]]
            since = found.standing.epoch if record is None else since
            if not found.standing.is_whole and found.come_to > (0, 0):  # it has some rows and not others
                lost.append(StoreLost(found.id))
                self._begin_store()
        epoch = next_epoch(now_ms, *before)
        effects = [*lost, *self._lead(epoch, now_ms)]
        if found is None or found is not self.taken or found.id == self.adopted:
            since = epoch
        store = "" if self.taken is None else self.taken.id
        return Record(epoch, store, self.actor, since=since), effects

    def grant(self, life: int, grant: Grant, now_ms: float) -> list[Any]:
        """Take a role, if it is meant for this life."""
        if life != self.life:
            return []
        replication, following = self.replication, self.following
        match self.role, grant.role:
            case Role.PRIMARY, Role.PRIMARY:
                effects: list[Any] = []
                if grant.epoch > replication.epoch:
                    effects = self._go_alone(grant.epoch)
                elif grant.epoch == replication.epoch and grant.other and self._may_attach:
                    effects = replication.attach(grant.other, grant.other_life, now_ms)
                return [*effects, self._news()]
            case Role.PRIMARY, _ if grant.epoch > replication.epoch:
                return [StepDown("another is the primary")]
            case Role.NONE, Role.PRIMARY:
                if not grant.begins_empty:
                    return self._lead(grant.epoch, now_ms)
                self._begin_store()
                return [StoreLost(""), *self._lead(grant.epoch, now_ms)]
            case Role.STANDBY, Role.PRIMARY:
                assert following is not None
                if not following.is_whole:
                    return [StepDown("a standby that is not whole is to begin without what it lacks")]
                if following.may_lead_at is None or grant.is_dead:
                    following.lead(now_ms, is_dead=grant.is_dead)
                    self._succeeds_as = grant.epoch
                return []
            case Role.NONE | Role.STANDBY, Role.STANDBY:
                if following is None or grant.epoch > following.epoch or grant.other != following.primary:
                    return self._follow(grant)
        return []

    @property
    def _may_attach(self) -> bool:
        """Whether there is no standby yet, and something to fill one from."""
        return self.replication.is_alone and self.store is not None

    def _go_alone(self, epoch: int) -> list[Any]:
        try:
            return self.replication.detach(epoch)
        except StoreError as error:  # the supervisor says it again
            return [StoreFailed(error.message)]

    def _follow(self, grant: Grant) -> list[Any]:
        """Be the standby, with an empty store."""
        if self.following is None:
            self._begin_store()
            self.store = self._backing.memory_store() if self.taken is None else self.taken.store
        assert self.store is not None
        self.life += 1
        self.following = Following(grant.other, grant.epoch, self.life, self.store)
        return [Follow(), News()]

    def _lead(self, epoch: int, now_ms: float) -> list[Any]:
        """Be the primary, with what the store holds."""
        stored = self._loaded()
        failed: list[Any] = []
        if self.store is not None:
            try:
                self.store.stand(Standing(epoch, is_whole=True))
            except StoreError as error:  # by what is committed from now on it is known as the later one as well
                failed.append(StoreFailed(error.message))
        self.replication = Replication(epoch, self.store)
        shard = self.shard = self._backing.made(epoch, keeps=self.store is not None, on_disk=self.taken is not None)
        if stored is not None:
            shard.restore(stored, now_ms, self._backing.owns)
            if stored.map is not None:
                shard.slots.await_word(now_ms)
        entries = None if stored is None else len(shard.cache)
        return [*failed, self._news(), Lead(epoch, entries, now_ms)]

    def _loaded(self) -> Stored | None:
        """Settle which store it is from now on, and return what that holds."""
        stored: Stored | None = None
        if self.taken is not None:
            try:
                stored = self._backing.load_store(self.taken)
            except StoreError:
                self.taken = self.store = None
        elif self.store is not None:
            return self.store.load()
        if self.taken is None:
            self._begin_store()
        if self.taken is not None:
            self.store = self.taken.store
        elif self._is_replicated:
            self.store = self._backing.memory_store()
        return stored

    # --- the standby's end ---------------------------------------------------------------------------------------

    def replicate(self, message: Replicate, now_ms: float) -> tuple[Answer, list[Any]]:
        """Take what the primary has committed."""
        following = self.following
        if following is None:
            return Elsewhere("" if self.shard is None else self.actor), []
        was_whole, divergences = following.is_whole, following.divergences
        answer = following.replicate(message, now_ms)
        self.divergences += following.divergences - divergences
        effects: list[Any] = [Committed()]
        if following.life != self.life:
            self.life = following.life
            effects += [Diverged(following.failure), News()]
        elif following.is_whole != was_whole:
            effects += [News(), Filled(following.records)]
        return answer, effects

    # --- the primary's end ---------------------------------------------------------------------------------------

    def refusal(self, message: Message) -> Answer | None:
        """Return why a message that is for the primary is not taken; None: it is."""
        if self.shard is None:
            return Elsewhere("" if self.following is None else self.following.primary)
        if self.replication.is_full and isinstance(message, Batch | Requests):
            return Full(FULL_RETRY_MS)
        return None

    def step(
        self, effects: Iterable[Any], now_ms: float, *, ticket: Any = None, answer: Answer | None = None
    ) -> list[Any]:
        """The primary's machine has taken a step: commit it here and at the standby, and let out what may leave.

        Args:
            effects: What the machine wants.
            now_ms: The time.
            ticket: Who waits for `answer`, as in `Replication.step`.
            answer: To the call that was this step.
        """
        transaction: Transaction | None = None
        committed: list[Any] = []
        held: list[Any] = []
        unsent: list[StartMutation] = []
        syncs: list[Any] = []
        for effect in effects:
            match effect:
                case Commit():
                    transaction = effect.transaction
                    committed.append(self._commit(transaction))
                case Sync():
                    syncs.append(effect)
                case StartMutation() if not self._primary.may_send(effect):
                    unsent.append(effect)
                case _:
                    held.append(effect)
        promised: dict[int, str] = {}
        if ticket is not None:
            acknowledgements = self._primary.acknowledgements
            promised, acknowledgements.promised = acknowledgements.promised, promised
        out = self.replication.step(
            held, now_ms, transaction=transaction, ticket=ticket, answer=answer, promised=promised
        )
        for call in unsent:
            out += self.step(self._primary.unsent(call, now_ms), now_ms)
        return [*committed, *out, *syncs]

    @property
    def _primary(self) -> ShardState:
        assert self.shard is not None, "only the primary has a machine"
        return self.shard

    def _commit(self, transaction: Transaction) -> Committed | StoreFailed:
        """Store a transaction. What cannot be stored goes with the next."""
        assert self.store is not None
        try:
            self.store.commit(transaction)
        except StoreError as error:
            self.replication.is_behind = True
            self._primary.not_stored(transaction)
            return StoreFailed(error.message)
        self.replication.is_behind = False
        return Committed()

    def shipped(self, message: Replicate, answer: Answer | None, now_ms: float) -> list[Any]:
        """What was sent to the standby was answered; None: it was not."""
        replication = self.replication
        before = (replication.is_in_sync, replication.lost)
        if answer is None:
            effects = replication.unanswered(message, now_ms)
        else:
            effects = replication.answered(message, answer, now_ms)
        after = (replication.is_in_sync, replication.lost)
        return effects if after == before else [*effects, StandbyIs(replication.standby, *after), self._news()]

    # --- time ----------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When anything is due, beside what the primary's machine waits for."""
        return self.replication.deadline() if self.following is None else self.following.may_lead_at

    def wake(self, now_ms: float) -> list[Any]:
        """Do what is due: be the primary in place of the one that was followed, or tell the standby that this one lives."""
        following = self.following
        if following is None:
            return self.replication.wake(now_ms)
        if following.may_lead_at is None or now_ms < following.may_lead_at:
            return []
        self.following = None
        self.life += 1
        return self._lead(self._succeeds_as, now_ms)
