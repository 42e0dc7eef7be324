"""Who is whose primary and standby: the supervisor's part in failover.

For each shard there is a record: the epoch, and which store the shard was last held by. It is kept where it outlives the supervisor, and
written before anybody is told, so no epoch is granted twice, whatever dies in between. All else is asked of the actors: a new life of the
supervisor knows nothing more than their reports, and goes on from there.

A standby may be promoted when it says that it is whole under the epoch on record. It was made so by a primary that lets nothing out any
more without it; so what it has is all there is, whether or not the supervisor had heard before the primary died. A standby is
removed by a higher epoch on record, after which what it says does not count; then the primary is told, and goes on alone.

Where no actor has a role (all are new), stores decide. Of those that are whole under the epoch on record each has what was let out while
there was a standby, and the primary's own disk may have been full: the one that has come furthest goes on, for which both actors are waited
for a while, unless the primary is known to have been alone under that epoch. Without a record it is the one that is whole under the
highest epoch and has come furthest.

A primary without a standby in sync serves without a lease, and one that cannot be reached may do so still. So as long as its end is not
certain nobody begins with less than it has let out: when the store has been waited for, it is ended and made anew, and waited for once more.

What must not live here: how actors are asked and told, clocks (`cluster.actors.shard_keeper`).
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct, structs

from cluster.core.role import Grant, Role, next_epoch

RENEW_MS = 15_000.0
"""How long an actor is silent at least before it is ended, however short stores are waited for."""
BEGIN_MS = 600_000.0
"""As long where it was told to lead and has not said since that it does: it loads its store, 50 million entries in that time, and answers nothing meanwhile."""


class Record(Struct, frozen=True, array_like=True):
    """What lasts of a shard's roles."""

    epoch: int
    store: str
    """Id of the store that its primary has; "": it has none."""
    primary: str
    is_shared: bool = False
    """It has two actors: none of them may be the primary without being told."""
    since: int = 0
    """Of stores that were whole under this epoch or a later one, all that was let out is in what the shard has now. What earlier ones hold it may
    have gone on without."""


class Report(Struct, frozen=True, array_like=True):
    """What an actor says of itself."""

    life: int
    """Of its process; of a standby, rises also when it is filled anew."""
    role: Role
    epoch: int
    """Of its role, or under which its store was whole."""
    store: str = ""
    """Id of the store that it has; "": it has none."""
    is_whole: bool = False
    """A standby's, or the store of one without a role: it has all that was let out under `epoch`."""
    come_to: tuple[int, int] = (0, 0)
    """(epoch, offset) that its store has come to."""
    standby: str = ""
    """Of a primary: which standby it has."""
    standby_life: int = 0
    is_in_sync: bool = False
    """Of a primary: its standby has all, and said so."""
    is_lost: bool = False
    """Of a primary: its standby cannot be used any longer."""
    is_adopted: bool = False
    """Its store was put there from outside, by a restore: it counts, whatever is on record."""


class Keep(Struct, frozen=True):
    """Effect: write the record, before any effect after it."""

    shard: int
    record: Record


class Tell(Struct, frozen=True):
    """Effect: tell an actor its role, in this life of it."""

    shard: int
    actor: str
    life: int
    grant: Grant


class Missing(Struct, frozen=True):
    """Effect: the store on record is gone; the shard begins without what it held."""

    shard: int
    store: str


class End(Struct, frozen=True):
    """Effect: end the primary for good, and say when it has `died`: its standby has everything, and is to take over."""

    shard: int
    actor: str


class Renew(Struct, frozen=True):
    """Effect: end an actor that cannot be reached, make it anew, and say that it was `replaced`: for all that is known it serves."""

    shard: int
    actor: str


class Ask(Struct, frozen=True):
    """Effect: ask an actor how it is now, whether or not that is news."""

    shard: int
    actor: str


Effect = Keep | Tell | Missing | End | Renew | Ask


class ShardRoles:
    """The roles of one shard."""

    def __init__(self, shard: int, record: Record | None, *, wait_ms: float, now_ms: float) -> None:
        """`wait_ms`: how long to wait for the store on record."""
        self.shard = shard
        self.record = record
        self.actors: tuple[str, ...] = ()
        """Those that the shard should have; the first is preferred."""
        self.reports: dict[str, Report] = {}
        self.is_handing_over = False
        """The primary is to be replaced by its standby as soon as that is in sync."""
        self._wait_ms = wait_ms
        self._began_ms = now_ms
        """Since when there was nobody to lead."""
        self._led_by: Tell | None = None
        """What the primary was told last."""
        self._alone_as = 0
        """The epoch that this life of the supervisor gave and under which it has named no standby: nobody else can be whole under it."""
        self._dead: dict[str, bool] = {}
        """Actors that are gone; whether their process is known to have ended."""
        self._missed: dict[str, None] = {}
        """Those that cannot be reached, since when the primary has not been heard."""
        self._replaced: set[str] = set()
        """Those that were ended, and not heard of since."""
        self._fresh: set[str] = set()
        """Those that were heard since the primary was last known to lead."""
        self.promotions = 0
        """Of standbys whose primaries were lost; hand-overs are none."""

    # --- what happens --------------------------------------------------------------------------------------------

    def want(self, actors: Sequence[str], now_ms: float) -> list[Effect]:
        """Set which actors there should be; those that are no longer to be have been ended."""
        for actor in self.actors:
            if actor not in actors:
                self.reports.pop(actor, None)
                self._dead[actor] = True
        for actor in actors:
            if actor not in self.actors:
                self._dead.pop(actor, None)
                self._replaced.discard(actor)
        self.actors = tuple(actors)
        kept: list[Effect] = []
        if self.record is not None and self.record.is_shared != self._is_shared:
            self.record = structs.replace(self.record, is_shared=self._is_shared)
            kept.append(Keep(self.shard, self.record))
        return [*kept, *self.decide(now_ms)]

    @property
    def _is_shared(self) -> bool:
        return len(self.actors) > 1

    def _record(self, epoch: int, store: str, primary: str, since: int) -> Record:
        return Record(epoch, store, primary, self._is_shared, since)

    def _raise(self, epoch: int, store: str, primary: str, since: int) -> None:
        """Have somebody lead under a new epoch: alone, until it is told of a standby."""
        self.record = self._record(epoch, store, primary, since)
        self._alone_as = epoch

    def reported(self, actor: str, report: Report, now_ms: float) -> list[Effect]:
        """An actor says how it is."""
        if actor not in self.actors:
            return []
        self._dead.pop(actor, None)
        self._missed.pop(actor, None)
        self._replaced.discard(actor)
        if actor == self.primary:
            self._missed.clear()
        self.reports[actor] = report
        self._fresh.add(actor)
        return self.decide(now_ms)

    def died(self, actor: str, now_ms: float, *, is_certain: bool) -> list[Effect]:
        """An actor's process has ended, or, where that is not certain, cannot be reached."""
        if actor in self.actors or actor == self.primary:
            self._dead[actor] = self._dead.get(actor, False) or is_certain
            if not is_certain:
                self._missed[actor] = None
            if self.reports.pop(actor, None) is not None and actor == self.primary:
                self._began_ms = now_ms
                self._fresh.clear()
        return self.decide(now_ms)

    def replaced(self, actor: str, now_ms: float, *, was_there: bool) -> list[Effect]:
        """An actor was ended and made anew; if it `was_there`, on a node that lives, its store can be had now, and is waited for."""
        self._replaced.add(actor)
        if was_there:
            self._began_ms = now_ms
        return self.decide(now_ms)

    # --- what follows --------------------------------------------------------------------------------------------

    @property
    def primary(self) -> str | None:
        """The actor that was last told to be the primary; None: nobody was, or the record is of another Ray's."""
        return None if self.record is None or not self.record.primary else self.record.primary

    @property
    def standby(self) -> str | None:
        """The actor that is a standby in sync with the primary, in the life that it was last heard in itself."""
        led = self.reports.get(self.primary or "")
        if led is None or led.role is not Role.PRIMARY or not led.is_in_sync:
            return None
        of = self.reports.get(led.standby)
        return led.standby if of is not None and of.life == led.standby_life else None

    def is_beginning(self, actor: str) -> bool:
        """Whether one of two was told to lead and has not said yet that it does: it loads its store, and answers nothing meanwhile.

        Should it never say so it is told of by `Renew`.
        """
        told = self._led_by
        is_told = told is not None and told.actor == actor == self.primary and self._is_shared
        return (
            is_told and actor not in self._replaced and not self._dead.get(actor, False)
        )  # its next life was told nothing

    def decide(self, now_ms: float) -> list[Effect]:
        """Return what is to be done. Idempotent: what was told and not done is told again."""
        primary = self.primary
        report = self.reports.get(primary or "")
        if primary is not None and self.record is not None:
            if report is not None and report.role is Role.PRIMARY and report.epoch > self.record.epoch:
                # It was alone, and began anew without asking anybody; it has kept that itself, perhaps over that it is not alone any more.
                since = self.record.since if report.store == self.record.store else report.epoch
                self.record = self._record(report.epoch, report.store, primary, since)
                if self._is_shared:
                    return [Keep(self.shard, self.record), *self._led(primary, report, now_ms)]
            if report is not None and report.role is Role.PRIMARY and report.epoch == self.record.epoch:
                kept: list[Effect] = []
                if self.record.store and report.store != self.record.store:  # it could not read that
                    self.record = self._record(report.epoch, report.store, primary, report.epoch)
                    kept.append(Keep(self.shard, self.record))
                return [*kept, *self._led(primary, report, now_ms)]
            if report is not None and report.role is Role.PRIMARY:
                # It has not heard of the last epoch yet, or an earlier word was lost: the same again.
                return [self._lead(primary, report)]
            is_told = report is not None and report.role is Role.STANDBY and report.is_whole
            if report is not None and is_told:
                return [self._lead(primary, report, is_dead=self._others_ended(primary))]
            told = self._led_by
            if report is not None and told is not None and (told.actor, told.life) == (primary, report.life):
                return [told]  # it has not done so yet
            if successor := self._successor():
                # What it said before may be of a life that has ended, and its store with it: then the primary's is the one that counts.
                return self._promoted(successor, now_ms) if successor in self._fresh else [Ask(self.shard, successor)]
            if report is None and primary in self.actors and primary not in self._dead:
                return []  # it was not heard of yet
        return self._begun(now_ms)

    def _led(self, primary: str, report: Report, now_ms: float) -> list[Effect]:
        """The primary serves: is its standby as it should be?"""
        assert self.record is not None
        self._began_ms = now_ms
        self._led_by = None
        self._fresh.clear()
        others = [actor for actor in self.actors if actor != primary]
        if report.standby:
            of = self.reports.get(report.standby)
            is_gone = (
                report.standby not in others
                or report.is_lost
                or report.standby in self._dead
                or (of is not None and of.life != report.standby_life)
            )
            if is_gone and not report.is_lost and report.standby in self._missed:
                # Perhaps it is the supervisor that is cut off, and the primary is gone: then this one is all there is.
                return [Ask(self.shard, primary)]
            if is_gone:
                return self._renewed(primary, report, now_ms)
            is_ready = self.is_handing_over and report.is_in_sync and of is not None and of.is_whole
            return [End(self.shard, primary)] if is_ready else []
        for actor in others:
            other = self.reports.get(actor)
            if other is None or actor in self._dead:
                continue
            if other.role is Role.STANDBY and other.epoch == self.record.epoch:
                grant = Grant(Role.PRIMARY, self.record.epoch, actor, other.life)
                self._alone_as = 0
                return [Tell(self.shard, primary, report.life, grant)]
            grant = Grant(Role.STANDBY, self.record.epoch, primary)
            return [Tell(self.shard, actor, other.life, grant)]
        return []

    def _renewed(self, primary: str, report: Report, now_ms: float) -> list[Effect]:
        """Remove the standby: the primary goes on alone, under the next epoch."""
        assert self.record is not None
        self._raise(next_epoch(now_ms, self.record.epoch), report.store, primary, self.record.since)
        return [Keep(self.shard, self.record), self._lead(primary, report)]

    def _successor(self) -> str | None:
        assert self.record is not None
        for actor in self.actors:
            report = self.reports.get(actor)
            if report is not None and report.role is Role.STANDBY and report.is_whole:
                if report.epoch == self.record.epoch and actor != self.record.primary and self._may_replace():
                    return actor
        return None

    def _may_replace(self) -> bool:
        """Whether the primary is gone: dead, silent, or alive without its role."""
        assert self.record is not None
        report = self.reports.get(self.record.primary)
        return self.record.primary in self._dead or (report is not None and report.role is not Role.PRIMARY)

    def _promoted(self, successor: str, now_ms: float) -> list[Effect]:
        assert self.record is not None
        report = self.reports[successor]
        is_dead = self._others_ended(successor)
        self._raise(next_epoch(now_ms, self.record.epoch), report.store, successor, self.record.since)
        self.promotions += not self.is_handing_over
        self.is_handing_over = False
        return [Keep(self.shard, self.record), self._lead(successor, report, is_dead=is_dead)]

    def _others_ended(self, actor: str) -> bool:
        """Whether no process but an actor's own can still be the primary."""
        return all(
            self._dead.get(other, False)
            or ((report := self.reports.get(other)) is not None and report.role is Role.NONE)
            for other in {*self.actors, *self._dead} - {actor}
        )

    def _lead(self, actor: str, report: Report, *, is_dead: bool = False, begins_empty: bool = False) -> Tell:
        assert self.record is not None
        grant = Grant(Role.PRIMARY, self.record.epoch, is_dead=is_dead, begins_empty=begins_empty)
        self._led_by = Tell(self.shard, actor, report.life, grant)
        return self._led_by

    def _begun(self, now_ms: float) -> list[Effect]:
        """Nobody leads, and there is no standby to do so: let stores decide."""
        ready = {actor: self.reports[actor] for actor in self.actors if actor in self.reports}
        has_waited = now_ms - self._began_ms >= self._wait_ms
        if replaced := [actor for actor, report in ready.items() if report.role is Role.PRIMARY]:
            return self._step_down(replaced, ready)
        is_beginning = self.record is not None and self.is_beginning(self.record.primary)
        may_renew = now_ms - self._began_ms >= (BEGIN_MS if is_beginning else max(self._wait_ms, RENEW_MS))
        if not ready and (self._others_gone(ready) or len(self.actors) == 1 or not may_renew):
            return []
        is_known = all(actor in ready or actor in self._dead for actor in self.actors)
        if not (has_waited or (is_known and self._others_gone(ready))):
            return []  # one that was not heard yet may be a standby that leads sooner
        whole = {actor: report for actor, report in ready.items() if report.store and report.is_whole}
        chosen: str | None = None
        missing: list[Effect] = []
        adopted = {actor: report for actor, report in whole.items() if report.is_adopted}
        if adopted:
            chosen = self._furthest(adopted)
        elif self.record is not None and self.record.store:
            of = next((actor for actor, report in whole.items() if report.store == self.record.store), None)
            if of is None or whole[of].epoch >= self.record.epoch:
                same = {actor: each for actor, each in whole.items() if actor == of or each.epoch == self.record.epoch}
            else:
                same = whole  # it was to lead, and never did: what it held is what they had in common
            chosen = self._furthest(same)
            if chosen is not None and chosen == of and len(ready) < len(self.actors) and not has_waited:
                if not self._was_alone(whole[chosen]):
                    return []  # the other may have more
        else:
            if len(ready) < len(self.actors) and not has_waited:
                return []  # another may have more
            chosen = self._furthest(whole)
        is_behind = chosen is None or (self.record is not None and whole[chosen].epoch < self.record.epoch)
        if is_behind and not adopted and not self._others_gone(ready):
            assert self.record is not None
            return [Renew(self.shard, self.record.primary)] if may_renew else []
        if chosen is None:
            if self.record is not None and self.record.store:
                if not has_waited:
                    return []
                missing = [Missing(self.shard, self.record.store)]
            chosen = next(iter(ready))
        report = ready[chosen]
        before = () if self.record is None else (self.record.epoch,)
        epoch = next_epoch(now_ms, *before, *(each.epoch for each in ready.values()), report.come_to[0])
        # A filling that was broken off has some rows and not others, and says that events are in that are not.
        begins_empty = bool(missing) or (not report.is_whole and report.come_to > (0, 0))
        goes_on = chosen in whole and not begins_empty and not adopted
        is_all = len(ready) == len(self.actors) or self._was_alone(report)
        since = report.epoch if self.record is None else self.record.since
        if not (goes_on and is_all and report.epoch >= since):
            since = epoch
        self._raise(epoch, "" if begins_empty else report.store, chosen, since)
        assert self.record is not None
        self._began_ms = now_ms
        told = self._lead(chosen, report, is_dead=True, begins_empty=begins_empty)
        return [*missing, Keep(self.shard, self.record), told]

    def _step_down(self, replaced: list[str], ready: Mapping[str, Report]) -> list[Effect]:
        """Primaries of earlier epochs are left, and their successor has lost its role: they are to begin anew, so that stores can decide."""
        if self.record is None or not (self.record.primary in ready or self._dead.get(self.record.primary, False)):
            return []  # it may lead, for all that is known
        grant = Grant(Role.STANDBY, self.record.epoch, self.record.primary)
        return [
            Tell(self.shard, actor, ready[actor].life, grant)
            for actor in replaced
            if ready[actor].epoch < self.record.epoch
        ]

    def _others_gone(self, ready: Mapping[str, Report]) -> bool:
        """Whether nobody who is not among `ready` may still be the primary."""
        primary = self.primary
        return (
            primary is None
            or primary in ready
            or primary in self._replaced
            or self._dead.get(primary, False)
            or primary not in self.actors
        )

    def _was_alone(self, report: Report) -> bool:
        """Whether nobody but who led with a store can be whole under the epoch on record."""
        return self.record is not None and self._alone_as == self.record.epoch <= report.epoch

    def _furthest(self, whole: Mapping[str, Report]) -> str | None:
        """Return who has the store that has come furthest, of two that have come as far the one on record."""
        on_record = None if self.record is None else self.record.store

        def rank(actor: str) -> tuple[int, tuple[int, int], bool]:
            report = whole[actor]
            return report.epoch, report.come_to, report.store == on_record

        return max(whole, key=rank, default=None)
