"""How the supervisor moves slots, live: from the map that counts to the next, step by step, each said to everybody concerned until it is done.

    look      after the supervisor's start: which map do shards have? They store it, so one that was scaled comes back as it was.
    copy      senders send entries while they serve.
    hold      ingestors take nothing more, until shards have committed everything they took.
    seal      shards take nothing more, until nothing is under way among them and to gateways.
    send      senders send what has changed since, and what has to be of one moment.
    decide    shard 0, which there always is, stores that slots may have moved, so that a cluster that begins anew looks where they are.
    adopt     receivers make it their own, with the next map. From here on there is no way back.
    drop      senders let go of it; all shards have the next map now.
    release   everybody goes on, by the map that counts: the next, or where the move was given up the one before.

From `hold` to `release` the cluster pauses. The cut is one for all of it, though only some slots move: then one number a feed tells what a
shard has, nothing is on its way to where it no longer belongs, and one moment counts for positions. Up to `send` a cut that takes longer
than `CUT_MS` is given up and tried again later, the later the more of them were in a row; so it is where somebody does not answer, and where
sequences are being repeated. The next try has those ingestors hold first that could not: until they do the others take what comes.

A supervisor that begins anew looks: where some shards have a map that others have not, adopting had begun, and it goes on from `send`,
which begins anew in shards that have forgotten it. Else whatever was under way is given up.

What must not live here: calls (`cluster.actors.rebalancing`), what the others do (`shard_slots`, `ingestion_cut`, `gateway_state`).
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from msgspec import Struct

from cluster.core.messages import Progress, Rebalance
from cluster.core.placement import SlotMap, assign_slots
from cluster.core.scaling import MAX_INGESTORS

MAX_SHARDS = 64
"""A position names every shard, and has to fit into 2 KiB."""
MAX_ACTORS = {"shards": MAX_SHARDS, "coordinators": MAX_SHARDS, "ingestors": MAX_INGESTORS, "gateways": 64}
"""How many of each there may be."""
CUT_MS = 5_000.0
"""A cut takes a fraction of a second. Where somebody hangs it is better that everybody goes on, and it is tried again."""
AGAIN_MS = 2_000.0
"""After a cut that was given up: whoever was only just away is back. It doubles with each that is given up in a row."""
MAX_AGAIN_MS = 60_000.0
"""It doubles up to this: what keeps cuts from coming through, as an upstream that is away, may last for hours, and everybody stands still for
`CUT_MS` in each try, and all is copied anew for it. A move begins so late at most when that has ended."""
LOOK_MS = 10_000.0
"""For shards that have not answered. Where slots may have moved, one of them may have a newer map: then they are waited for."""
SILENT_MS = 10_000.0
"""At the end of a move somebody who does not answer is waited for so long; when it begins anew it asks for the map."""


class Phase(Enum):
    """What is being done."""

    LOOK = "look"
    IDLE = ""
    COPY = "copy"
    HOLD = "hold"
    SEAL = "seal"
    SEND = "send"
    DECIDE = "decide"
    ADOPT = "adopt"
    DROP = "drop"
    RELEASE = "release"


FOLLOWING = {
    Phase.COPY: Phase.HOLD,
    Phase.HOLD: Phase.SEAL,
    Phase.SEAL: Phase.SEND,
    Phase.SEND: Phase.DECIDE,
    Phase.DECIDE: Phase.ADOPT,
    Phase.ADOPT: Phase.DROP,
}
MAY_BE_GIVEN_UP = (Phase.HOLD, Phase.SEAL, Phase.SEND)


class Moved(Struct, frozen=True):
    """A move that is over."""

    map: SlotMap
    slots: int
    entries: int
    bytes: int
    pause_ms: float


class SlotMoves:
    """See the module."""

    def __init__(self, shards: int, coordinators: int, now_ms: float, *, found: int = 0, keeps: bool = False) -> None:
        """Begin by looking. `shards`, `coordinators`: how many there are to be; `keeps`: unless there are others, who stay as many.

        `found`: how many shards there are already.
        """
        self.map: SlotMap | None = None
        """That counts; None: it is being looked for."""
        self.next: SlotMap | None = None
        self.phase = Phase.LOOK
        self.wanted = (shards, coordinators)
        self.moves = 0
        self.given_up = 0
        self.finished: list[Moved] = []
        """Since the shell last took them."""
        self._keeps = keeps
        self._attempt = int(now_ms)
        self._since_ms = now_ms
        self._held_ms = 0.0
        self._not_before_ms = 0.0
        self._again_ms = AGAIN_MS
        """After the next cut that is given up."""
        self._hold_first: frozenset[str] = frozenset()
        """Ingestors that did not hold when the last cut was given up, and have not since."""
        self._is_decided = False
        """Some receiver may have adopted."""
        self._found: dict[str, Progress] = {}
        """What everybody last said, in this phase."""
        self._span = (found, 0)
        """Shards and coordinators there are while slots move, old and new."""
        self._ended: tuple[SlotMap, SlotMap] | None = None
        """The maps before and after the move that comes to its end."""
        self._moved = (0, 0)
        """Entries and bytes of it."""
        self._ends = False
        """Actors that are needed no longer are to be gone before others of their names are made, whom links would take for them."""
        self._released_ms = 0.0

    def want(self, shards: int, coordinators: int) -> None:
        """Have other numbers of shards and coordinators."""
        self.wanted, self._keeps = (shards, coordinators), False
        self._not_before_ms, self._again_ms = 0.0, AGAIN_MS

    @property
    def is_done(self) -> bool:
        """Whether there is what is wanted, and nothing moves."""
        return self.phase is Phase.IDLE and self._is_wanted

    @property
    def _is_wanted(self) -> bool:
        return self.map is not None and (self.map.shards, self.map.coordinators) == self.wanted

    @property
    def is_settled(self) -> bool:
        """Whether who asks, as it begins, may be told which map counts.

        Not while it is looked for, nor from the hold to the release: an ingestor whose earlier life was held would go on by a map that is about
        to count no longer, and send what it makes to shards that let go of it. The cut waits for it, or it for the end of the cut.
        """
        return self.phase in (Phase.IDLE, Phase.COPY, Phase.RELEASE) and not self._is_halfway

    @property
    def _is_halfway(self) -> bool:
        return self._is_decided and self.phase is not Phase.RELEASE

    def may_adjust(self, made: Iterable[str]) -> bool:
        """Whether other actors may be made and ended now, given which shards and coordinators were made.

        Not in a cut, unless it needs them itself: everything waits, and one that begins meanwhile asks for the map, so it would wait too.
        """
        is_cut = self.phase not in (Phase.LOOK, Phase.IDLE, Phase.COPY)
        needed = {*_names("shard", self._span[0]), *_names("coordinator", self._span[1])}
        return not is_cut or not needed <= set(made)

    @property
    def actors(self) -> list[str]:
        """Return the shards and coordinators that should exist now."""
        maps = [each for each in (self.map, self.next) if each is not None]
        if self.phase is Phase.LOOK:
            maps += [each for said in self._found.values() for each in (said.map, said.next) if each is not None]
        wanted = (1, 1) if self._ends or (self.phase is Phase.LOOK and self._keeps) else self.wanted
        shards = max([wanted[0], self._span[0], *(each.shards for each in maps)])
        coordinators = max([wanted[1], self._span[1], *(each.coordinators for each in maps)])
        return [*_names("shard", shards), *_names("coordinator", coordinators)]

    # --- saying --------------------------------------------------------------------------------------------------

    def asks(self, ingestors: Iterable[str], gateways: Iterable[str]) -> dict[str, Rebalance]:
        """Return what is to be said to whom now."""
        phase = self.phase
        if phase is Phase.LOOK:
            shards = [name for name in self.actors if name.startswith("shard")]
            return dict.fromkeys(shards, Rebalance("look", SlotMap(0, ()), self._attempt))
        assert self.map is not None
        if phase is Phase.IDLE:
            return {}
        shards = _names("shard", self._span[0])
        if phase is Phase.RELEASE:
            everybody = [*shards, *ingestors, *gateways, *_names("coordinator", self._span[1])]
            return dict.fromkeys(everybody, Rebalance("release", self.map, self._attempt))
        assert self.next is not None
        said = {}
        receivers = self.receivers
        for name in shards:
            if phase is Phase.HOLD or (phase is Phase.DECIDE and name != "shard-0"):
                continue
            found = self._found.get(name)
            if found is not None and (found.map is None or found.map.epoch < self.map.epoch):
                said[name] = Rebalance("release", self.map, 0)  # it has only just begun, or was about to end
            elif phase is Phase.ADOPT and name not in receivers:
                said[name] = Rebalance("send", self.next, self._attempt)
            elif not (phase is Phase.DROP and name in receivers):
                said[name] = Rebalance(phase.value, self.next, self._attempt)
        if phase in MAY_BE_GIVEN_UP and not self._is_decided:
            ingestors = list(ingestors)
            first = [name for name in ingestors if phase is Phase.HOLD and name in self._hold_first]
            said.update(dict.fromkeys(first or ingestors, Rebalance("hold", self.next, self._attempt)))
        return said

    @property
    def receivers(self) -> set[str]:
        """Return the shards to which something moves."""
        assert self.map is not None
        assert self.next is not None
        made = range(self.map.shards, self.next.shards)
        found = {to for _, to in self.map.moves(self.next)} | set(made)
        return {f"shard-{to}" for to in found | ({0} if self.next.shards < self.map.shards else set())}

    # --- hearing -------------------------------------------------------------------------------------------------

    def heard(self, asked: Mapping[str, Rebalance], said: Mapping[str, Progress | None], now_ms: float) -> None:
        """Take in what those that were asked have said (None: nothing), and go on where they are done."""
        self._found.update({name: each for name, each in said.items() if each is not None})
        is_done = all((each := said.get(name)) is not None and each.is_done for name in asked)
        match self.phase:
            case Phase.LOOK:
                self._look(now_ms)
            case Phase.IDLE:
                pass
            case Phase.RELEASE:
                holding = [name for name in asked if not name.startswith("gateway")]
                if not self._released_ms and all((each := said.get(name)) is not None for name in holding):
                    self._released_ms = now_ms
                if is_done or now_ms - self._since_ms > SILENT_MS:
                    self._over(now_ms)
            case phase if phase in MAY_BE_GIVEN_UP and not self._is_decided and now_ms - self._held_ms > CUT_MS:
                self._hold_first = self._not_held(asked, said)
                self._give_up(now_ms)
            case Phase.HOLD if self._hold_first:
                self._hold_first = self._not_held(asked, said)  # the others are told when nobody is left of these
            case Phase.DROP if is_done or not asked:
                assert self.map is not None
                assert self.next is not None
                shards = [each for name, each in self._found.items() if name.startswith("shard")]
                self._moved = (sum(each.entries for each in shards), sum(each.bytes for each in shards))
                self._ended = (self.map, self.next)
                self.map, self.next = self.next, None
                self._enter(Phase.RELEASE, now_ms)
            case Phase.ADOPT if not is_done and self._is_lacking(asked, said):
                self._attempt += 1  # senders begin anew, to those that have lost what they were sent
            case phase if is_done and all(each.phase != "release" for each in asked.values()):
                self._enter(FOLLOWING[phase], now_ms)
            case _:
                pass

    @staticmethod
    def _not_held(asked: Mapping[str, Rebalance], said: Mapping[str, Progress | None]) -> frozenset[str]:
        """Return those that were told to hold, and do not say that they do: they repeat sequences, are beginning, or do not answer."""
        told = [name for name, ask in asked.items() if ask.phase == "hold"]
        return frozenset(
            name for name in told if (each := said.get(name)) is None or not (each.is_held or each.is_done)
        )

    @staticmethod
    def _is_lacking(asked: Mapping[str, Rebalance], said: Mapping[str, Progress | None]) -> bool:
        """Whether all is sent, as senders see it, and not to all receivers that live now."""
        found = {name: each for name, each in said.items() if each is not None}
        is_sent = all(name in found and found[name].is_done for name, ask in asked.items() if ask.phase == "send")
        return is_sent and any(each.lacks for each in found.values())

    def _enter(self, phase: Phase, now_ms: float) -> None:
        if phase is Phase.HOLD:
            self._held_ms = now_ms
        if phase is Phase.DECIDE:
            self._is_decided = True
        if phase is Phase.RELEASE:
            self._released_ms = 0.0
        self.phase, self._since_ms = phase, now_ms
        self._found = {}

    def _give_up(self, now_ms: float) -> None:
        self.given_up += 1
        self._not_before_ms = now_ms + self._again_ms
        self._again_ms = min(2.0 * self._again_ms, MAX_AGAIN_MS)
        self.next = None
        self._enter(Phase.RELEASE, now_ms)

    def _over(self, now_ms: float) -> None:
        assert self.map is not None
        if self._ended is not None:
            before, after = self._ended
            slots = sum(map(len, before.moves(after).values()))
            pause_ms = (self._released_ms or now_ms) - self._held_ms
            self.finished.append(Moved(after, slots, *self._moved, pause_ms))
            self.moves += 1
            self._again_ms = AGAIN_MS
        counts = (self.map.shards, self.map.coordinators)
        self._ends = self._ends or (
            self._ended is not None and any(had > has for had, has in zip(self._span, counts, strict=True))
        )
        self._span = counts
        self._ended, self._is_decided = None, False
        self._enter(Phase.IDLE, now_ms)

    def _look(self, now_ms: float) -> None:
        """Decide which map counts."""
        shards = {name for name in self.actors if name.startswith("shard")}
        if "shard-0" not in self._found:
            return
        may_have_moved = any(each.next is not None for each in self._found.values())
        if not shards <= self._found.keys() and (may_have_moved or now_ms - self._since_ms < LOOK_MS):
            return
        # Later than all that was said before, whatever this life's clock says.
        self._attempt = max([self._attempt, *(each.attempt + 1 for each in self._found.values())])
        maps = [each.map for each in self._found.values() if each.map is not None]
        if not maps:
            self.map = assign_slots(range(self.wanted[0]), 1, self.wanted[1])
            self._span = self.wanted
            self._enter(Phase.RELEASE, now_ms)
            return
        newest = max(maps, key=lambda each: each.epoch)
        before = next((each for each in maps if each.epoch == newest.epoch - 1), None)
        next_maps = [each.next for each in self._found.values() if each.next is not None]
        if self._keeps:
            goal = max([newest, *next_maps], key=lambda each: each.epoch)
            self.wanted = (goal.shards, goal.coordinators)
        self.map = newest
        self._ends = self._span[0] > newest.shards  # perhaps: `begin` will see
        spans = [newest] if before is None else [newest, before]
        self._span = (max(each.shards for each in spans), max(each.coordinators for each in spans))
        if before is None:
            self._enter(Phase.RELEASE, now_ms)
            return
        self.map, self.next, self._is_decided, self._held_ms = before, newest, True, now_ms
        self._attempt = max(self._attempt + 1, int(now_ms))
        self._enter(Phase.SEND, now_ms)

    def begin(self, present: Sequence[str], now_ms: float) -> None:
        """Begin a move where one is wanted, it is time, and those it needs are there."""
        if self.phase is not Phase.IDLE:
            return
        assert self.map is not None
        here = {*_names("shard", self.map.shards), *_names("coordinator", self.map.coordinators)}
        self._ends = self._ends and any(
            name not in here for name in present if name.startswith(("shard", "coordinator"))
        )
        if self._ends or self._is_wanted or now_ms < self._not_before_ms:
            return
        shards, coordinators = self.wanted
        needed = {
            *_names("shard", max(shards, self.map.shards)),
            *_names("coordinator", max(coordinators, self.map.coordinators)),
        }
        if not needed <= set(present):
            return
        owners = self.map.owners
        if shards != self.map.shards:
            owners = assign_slots(range(shards), 0).owners
        self.next = SlotMap(self.map.epoch + 1, owners, shards, coordinators)
        self._span = (max(shards, self.map.shards), max(coordinators, self.map.coordinators))
        self._attempt = max(self._attempt + 1, int(now_ms))
        self._enter(Phase.COPY, now_ms)


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}-{n}" for n in range(count)]
