"""A shard's part in moves of slots: it gives some away, takes others in, or looks on.

`copy`: entries leave in slices while the shard serves, those that change meanwhile again; the receiver keeps them aside. `seal`: nothing is
taken in any more, and what was under way comes to its end. `send`: what has changed since, and what has to be of one moment. `adopt`: the
receiver makes all of it its own: entries step by step, then the rest in one transaction with the new slot map. `drop`: the sender lets go,
step by step too, and takes the new map; who has no part in the move takes the map. `release`: things go on. The supervisor says when
(`slot_move`), and says each again until it is done, so a life that knows nothing of a move begins it anew.

Steps are small, since a step is one transaction, one record for the standby, and nobody is answered meanwhile. Until the map says so,
entries that have arrived are others': a next life does not take them from the store, and they go where the move is given up.

Until a receiver has adopted, everything may be given up (`abort`) and nothing has changed. From then on the move is completed: a sender has
let go of nothing before every receiver has stored what it got.

It is one thing because a shard may give and take in one move, and what it says and forgets is one state.

What must not live here: what entries and views are (`shard_state`), who moves what (`placement`).
"""

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from cluster.core.link import Foreign, Incoming, New, Outgoing, Repeat
from cluster.core.messages import Answer, Progress, Rebalance, Refused, Send, SliceTaken, SlotSlice
from cluster.core.placement import SlotMap, slot
from cluster.core.query_key import CanonicalKey
from cluster.core.slot_slice import SLICE_BYTES, Content, MovedEntry, MovedOverlay, decode, encode
from cluster.core.transaction import Result, Stored, Unstored

RETRY_MS = 50.0
FEW = 200
"""Entries that have changed since they were sent: with so many or fewer left the copy has caught up, and the rest goes at the cut, in a
few slices. Where more change while one slice is on its way, the copy never gets there: see `PASSES`."""
PASSES = 5
"""After all was sent once, and what had changed meanwhile so many times, the cut comes with whatever is left."""
STEP_BYTES = 1024 * 1024
"""Of entries that are taken in at a time: as much as goes to a standby in one message; some tens of milliseconds."""
STEP_ROWS = 2_000
"""Of entries that are let go of at a time, likewise."""
SORT_ROWS = 10_000
"""Of entries that are looked at in a step, as a copy begins, for whom they go to: some milliseconds."""
ENTRY_BYTES = 100
"""Of an entry in a slice beside its data and key, about."""


class Moving(Protocol):
    """What a move needs of the shard."""

    def all_keys(self) -> list[str]:
        """Return the keys of all entries."""
        ...

    def moved_keys(self, slots: frozenset[int]) -> Iterable[str]:
        """Return the keys of all entries in some slots."""
        ...

    def moved_entry(self, key: str) -> MovedEntry | None:
        """Return an entry as it goes to another shard; None: there is none, or it has no data."""
        ...

    def moved_results(self) -> dict[str, Result]:
        """Return the results of writes."""
        ...

    def last_content(self, slots: frozenset[int], to: int, next_map: SlotMap) -> list[Content]:
        """Return what has to be of one moment, in parts; the last one says so."""
        ...

    def lay(self, overlays: list[MovedOverlay]) -> None:
        """Have lie here what lay over entries that are about to move in."""
        ...

    def move_in(self, moved: MovedEntry) -> None:
        """Take in an entry that another shard has sent."""
        ...

    def move_out(self, keys: Iterable[str]) -> None:
        """Drop entries, and what lies over them, that are another shard's."""
        ...

    def empty(self, slots: frozenset[int]) -> None:
        """Drop all that there is in slots that are another shard's."""
        ...

    def adopt(self, contents: dict[int, list[Content]], next_map: SlotMap) -> None:
        """Make the rest of what others have sent, by sender, the shard's own."""
        ...

    def let_go(self, next_map: SlotMap) -> None:
        """Drop what is others' by a map."""
        ...

    def sync(self) -> None:
        """Write through what changes with this step, and say so to `synced`."""
        ...

    def is_quiet(self, sealed_ms: float) -> bool:
        """Whether nothing is under way, or is to be waited for, in a shard sealed at a time."""
        ...


class _Outward:
    """What goes to one shard."""

    __slots__ = ("bytes", "contents", "entries", "is_finishing", "keys", "link", "passes", "results", "slots", "to")

    def __init__(self, to: int, slots: frozenset[int], link: Outgoing) -> None:
        self.to = to
        self.slots = slots
        self.link = link
        self.keys: dict[str, None] = {}
        """To be sent."""
        self.results: dict[str, None] = {}
        self.contents: list[Content] | None = None
        """At the cut: what goes after the keys."""
        self.is_finishing = False
        self.passes = 0
        self.entries = 0
        self.bytes = 0

    @property
    def is_through(self) -> bool:
        """Whether nothing waits or is on its way."""
        return self.link.idle and not self.keys and not self.results and not self.contents


class ShardSlots:
    """See the module."""

    def __init__(self, identity: str, incarnation: int, shard: Moving, unstored: Unstored) -> None:
        self._identity = identity
        self._incarnation = incarnation
        self._index = int(identity.rpartition("-")[2])
        self._shard = shard
        self._unstored = unstored
        self.map: SlotMap | None = None
        """That counts; None: nobody has said, and nothing was stored."""
        self._next: SlotMap | None = None
        self._decided: SlotMap | None = None
        """To which slots may have moved already."""
        self._attempt = 0
        self._over = 0
        """The last attempt that is over."""
        self.sealed_ms: float | None = None
        """Since when nothing is taken in but from other shards; None: it is."""
        self.is_closed = False
        """Nothing at all is: what leaves is of one moment."""
        self._out: dict[int, _Outward] = {}
        self._unsorted: list[str] = []
        """Entries there were when the move began, of which it is yet to be seen to whom they go, if to anybody."""
        self._links: dict[int, Outgoing] = {}
        self._incoming: dict[str, Incoming] = {}
        self._taken: dict[str, list[Content]] = {}
        """What others have sent in this attempt."""
        self._arriving: deque[MovedEntry] | None = None
        """Of that, the entries that are yet to be taken in; None: adopting has not begun."""
        self._leaving: list[str] | None = None
        """Entries that are yet to be let go of; None: that has not begun."""
        self._waits_for_sync = self._lacks = False
        self._entries = self._bytes = 0
        """Sent in the last move."""

    @property
    def is_sealed(self) -> bool:
        """Whether nothing is taken in."""
        return self.sealed_ms is not None

    @property
    def is_new(self) -> bool:
        """Whether the shard was made for the move that is coming."""
        return self.map is None or self._index >= self.map.shards

    def is_outdated(self, epoch: int) -> bool:
        """Whether a message was made by a map that counts no longer."""
        return self.map is not None and 0 < epoch < self.map.epoch

    def restore(self, stored: Stored) -> None:
        """Begin with what was stored."""
        self.map, self._decided = stored.map, stored.next_map

    def await_word(self, now_ms: float) -> None:
        """Take nothing in before the supervisor has said how things are: slots may have been about to move when the last life ended."""
        self._seal(now_ms)

    # --- the supervisor's word -----------------------------------------------------------------------------------

    def rebalance(self, message: Rebalance, now_ms: float) -> Progress:
        """Do a part of a move, and say whether it is done."""
        is_done = self._do(message, now_ms)
        if self._out:
            self._entries = sum(each.entries for each in self._out.values())
            self._bytes = sum(each.bytes for each in self._out.values())
        return Progress(
            self.map,
            is_done,
            self.is_sealed,
            self._entries,
            self._bytes,
            self._decided or self._next,
            self._lacks,
            max(self._attempt, self._over),
        )

    def _do(self, message: Rebalance, now_ms: float) -> bool:  # noqa: PLR0915 - one case a phase
        next_map = message.map
        known = 0 if self.map is None else self.map.epoch
        is_done = True
        match message.phase:
            case "look":  # what an earlier life of the supervisor has said, and is still on its way, counts no longer
                self._over = max(self._over, message.attempt - 1)
            case "release" if self._next is not None and message.attempt < self._attempt and known >= next_map.epoch:
                is_done = False  # of an earlier attempt, or what it was told when it began: this one goes on
            case "release":
                self._over = max(self._over, message.attempt)
                self._stop_adopting()
                if known < next_map.epoch:
                    if self.map is not None:
                        self._shard.let_go(next_map)  # it was away, and comes back with what is others' by now
                    self._take(next_map)
                self._end()
            case _ if known >= next_map.epoch:
                is_done = self._is_stored
            case _ if known != next_map.epoch - 1 or message.attempt <= self._over or message.attempt < self._attempt:
                is_done = False  # it is yet to be told which map there is, or this comes late
            case "copy":
                self._begin(message)
                is_copied = all(each.passes > PASSES or self._has_caught_up(each) for each in self._out.values())
                is_done = is_copied and not self._unsorted
            case "seal":
                self._begin(message)
                self._seal(now_ms)
                assert self.sealed_ms is not None
                is_done = self._shard.is_quiet(self.sealed_ms)
            case "send":
                self._begin(message)
                self._seal(now_ms)
                self.is_closed = True
                for outward in self._out.values():
                    outward.is_finishing = True
                is_sent = all(each.contents == [] and each.is_through for each in self._out.values())
                is_done = is_sent and not self._unsorted
            case "adopt":
                self._begin(message)
                self._seal(now_ms)
                self.is_closed = True
                self._adopt(next_map)
                is_done = False  # it is to be stored first
            case "decide":
                assert self.map is not None
                is_done = self._decided == next_map and self._is_stored
                if self._decided != next_map:
                    self._decided = next_map
                    self._unstored.map(self.map, next_map)
                    self._waits_for_sync = self._unstored.keeps
                    self._shard.sync()
            case "drop":
                self._drop(next_map)
                is_done = False
            case phase:
                raise AssertionError(f"no such phase: {phase}")
        return is_done

    def _begin(self, message: Rebalance) -> None:
        """Begin a move, unless it has begun."""
        if (self._attempt, self._next) == (message.attempt, message.map) or self.map is None:
            return
        self._stop_adopting()
        self._out.clear()
        self._unsorted = []
        self.sealed_ms, self.is_closed = None, False
        self._attempt, self._next = message.attempt, message.map
        self._unstored.moving, self._unstored.new_results = {}, {}
        pairs = self.map.moves(message.map)
        receivers = {to: slots for (sender, to), slots in pairs.items() if sender == self._index}
        if self._index >= message.map.shards:
            receivers.setdefault(0, frozenset())  # which keeps the history
        elif self._index == 0:
            for made in range(self.map.shards, message.map.shards):
                receivers.setdefault(made, frozenset())  # to which that goes back
        for to, slots in receivers.items():
            link = self._links.setdefault(to, Outgoing(self._identity, self._incarnation))
            self._out[to] = _Outward(to, slots, link)
            self._restart(self._out[to], [])
        # Once for all receivers: there may be dozens of them, and of entries a million.
        self._unsorted = self._shard.all_keys() if any(receivers.values()) else []
        self._sort()

    def _sort(self) -> None:
        """Find out of some entries to whom they go. Those that change meanwhile are noted, whether or not they were looked at."""
        if not self._unsorted:
            return
        step = self._unsorted[-SORT_ROWS:]
        del self._unsorted[-SORT_ROWS:]
        keys_by_slot = {number: outward.keys for outward in self._out.values() for number in outward.slots}
        for key in step:
            if (keys := keys_by_slot.get(slot(CanonicalKey(key)))) is not None:
                keys[key] = None

    def _restart(self, outward: _Outward, keys: Iterable[str]) -> None:
        """Send everything from the beginning: these entries, and those that are yet to be looked at."""
        outward.link.relink()
        outward.keys = dict.fromkeys(keys)
        outward.results = dict.fromkeys(self._shard.moved_results())
        outward.contents = None
        outward.passes = 0

    def _end(self) -> None:
        """Nothing moves any more."""
        self._out.clear()
        self._unsorted = []
        self._taken.clear()
        self._incoming.clear()  # whoever sends still has to begin anew
        self._next = self.sealed_ms = self._leaving = None
        self.is_closed = False
        self._unstored.moving, self._unstored.new_results = None, {}

    def _seal(self, now_ms: float) -> None:
        if self.sealed_ms is None:
            self.sealed_ms = now_ms

    def _take(self, next_map: SlotMap) -> None:
        self.map, self._decided = next_map, None
        self._unstored.map(next_map)

    @property
    def _is_stored(self) -> bool:
        return not self._waits_for_sync and not self._unstored.has_map

    def synced(self, *, failed: bool) -> bool:
        """What was adopted is on the disk, or could not be written. Returns whether that is to be tried again."""
        self._waits_for_sync = failed
        return failed

    def _adopt(self, next_map: SlotMap) -> None:
        assert self.map is not None
        senders = {f"shard-{sender}" for sender, to in self.map.moves(next_map) if to == self._index}
        if self._index == 0:
            senders |= {f"shard-{gone}" for gone in range(next_map.shards, self.map.shards)}
        elif self.is_new:
            senders.add("shard-0")
        taken = {sender: contents for sender, contents in self._taken.items() if contents and contents[-1].is_last}
        self._lacks = not senders <= taken.keys()
        if self._lacks:
            return  # they are asked to send it anew
        contents = {int(each.rpartition("-")[2]): taken[each] for each in sorted(senders)}
        if self._arriving is None:
            self._arriving = self._begin_adopting(contents)
        size = 0
        while self._arriving and size < STEP_BYTES:
            moved = self._arriving.popleft()
            self._shard.move_in(moved)
            size += ENTRY_BYTES + len(moved.stored.key) + len(moved.stored.data)
        if self._arriving:
            return
        self._arriving = None
        self._shard.adopt(contents, next_map)
        self._take(next_map)
        self._waits_for_sync = self._unstored.keeps
        self._shard.sync()
        self._taken.clear()

    def _begin_adopting(self, contents: dict[int, list[Content]]) -> deque[MovedEntry]:
        entries: dict[str, MovedEntry] = {}
        for content in (content for each in contents.values() for content in each):
            for key in content.gone:
                entries.pop(key, None)
            entries.update((each.stored.key, each) for each in content.entries)
            self._shard.lay(content.overlays)
        return deque(entries.values())

    def _stop_adopting(self) -> None:
        """Others keep what has arrived."""
        if self._arriving is not None:
            assert self.map is not None
            self._arriving = None
            self._shard.empty(frozenset(n for n, owner in enumerate(self.map.owners) if owner != self._index))

    def _drop(self, next_map: SlotMap) -> None:
        assert self.map is not None
        if self._leaving is None:
            pairs = self.map.moves(next_map).items()
            slots = frozenset(each for (sender, _), slots in pairs if sender == self._index for each in slots)
            self._leaving = list(self._shard.moved_keys(slots)) if slots else []
        step, self._leaving = self._leaving[:STEP_ROWS], self._leaving[STEP_ROWS:]
        self._shard.move_out(step)
        if not self._leaving:
            self._shard.let_go(next_map)
            self._take(next_map)

    # --- sending -------------------------------------------------------------------------------------------------

    @staticmethod
    def _has_caught_up(outward: _Outward) -> bool:
        return outward.passes > 0 and len(outward.keys) <= FEW

    def _note(self) -> None:
        """Have sent again what has changed."""
        moving, results = self._unstored.moving, self._unstored.new_results
        if not moving and not results:
            return
        self._unstored.moving, self._unstored.new_results = {}, {}
        for key in moving or ():
            number = slot(CanonicalKey(key))
            for outward in self._out.values():
                if number in outward.slots:
                    outward.keys[key] = None
        for outward in self._out.values():
            outward.results.update(results)

    def sends(self, now_ms: float) -> list[Send]:
        """Send what waits, one slice at a time to each."""
        self._sort()
        self._note()
        effects = []
        for outward in self._out.values():
            if not outward.link.idle:
                message = outward.link.resend(now_ms)
            elif (content := self._next_content(outward)) is not None:
                assert self._next is not None
                message = SlotSlice(outward.link.header(), self._next.epoch, encode(content))
                outward.bytes += len(message.content)
                outward.link.sent(message)
            else:
                message = None
            if message is not None:
                effects.append(Send(f"shard-{outward.to}", message))
        return effects

    def _next_content(self, outward: _Outward) -> Content | None:
        if outward.keys or outward.results:
            content = self._slice(outward)
            outward.passes += not outward.keys and not outward.is_finishing and not self._unsorted
            return content
        if self._unsorted:
            return None
        outward.passes = max(outward.passes, 1)
        if not outward.is_finishing:
            return None
        if outward.contents is None:
            assert self._next is not None
            outward.contents = self._shard.last_content(outward.slots, outward.to, self._next)
        return outward.contents.pop(0) if outward.contents else None

    def _slice(self, outward: _Outward) -> Content:
        content, size = Content(), 0
        while outward.keys and size < SLICE_BYTES:
            key = next(iter(outward.keys))
            entry = self._shard.moved_entry(key)
            long = 0 if entry is None else len(entry.stored.data)
            if size and size + long > SLICE_BYTES:
                break
            del outward.keys[key]
            size += ENTRY_BYTES + len(key) + long
            if entry is None:
                content.gone.append(key)
            else:
                content.entries.append(entry)
                outward.entries += 1
        results = self._shard.moved_results()
        while outward.results and size < SLICE_BYTES:
            request, _ = outward.results.popitem()
            if (result := results.get(request)) is not None:
                content.results.append((request, result))
                size += ENTRY_BYTES + len(request)
        return content

    def answered(self, to: str, message: SlotSlice, answer: Answer, now_ms: float) -> None:
        """A receiver has a slice, or has begun anew."""
        outward = self._out.get(int(to.rpartition("-")[2]))
        if outward is None or outward.link.in_flight is not message:
            return
        if isinstance(answer, SliceTaken):
            outward.link.acknowledged(answer.incarnation)
        elif isinstance(answer, Refused):
            self._restart(outward, self._shard.moved_keys(outward.slots))
        else:
            outward.link.failed(now_ms, RETRY_MS)

    def unanswered(self, to: str, message: SlotSlice, now_ms: float) -> None:
        """The call failed."""
        outward = self._out.get(int(to.rpartition("-")[2]))
        if outward is not None and outward.link.in_flight is message:
            outward.link.failed(now_ms, RETRY_MS)

    def deadline(self) -> float | None:
        """When something is to be sent."""
        times: list[float | None] = [0.0] if self._unsorted else []
        for outward in self._out.values():
            if not outward.link.idle:
                times.append(outward.link.retry_at)
            elif outward.keys or outward.results or (outward.is_finishing and outward.contents != []):
                times.append(0.0)
        return min((at for at in times if at is not None), default=None)

    # --- receiving -----------------------------------------------------------------------------------------------

    def slice(self, message: SlotSlice) -> Answer:
        """Keep what another shard sends."""
        if self.map is not None and message.epoch <= self.map.epoch:
            return SliceTaken(self._incarnation)  # it is adopted, or was given up
        sender = message.header.sender
        incoming = self._incoming.setdefault(sender, Incoming(self._incarnation))
        match incoming.admit(message.header):
            case Foreign():
                return Refused(self._incarnation)
            case Repeat(answer):
                assert isinstance(answer, SliceTaken)
                return answer
            case New(opened=opened):
                if opened:
                    self._taken[sender] = []
                    self._stop_adopting()  # it sends what it has anew, in another life maybe
        self._taken.setdefault(sender, []).append(decode(message.content))
        taken: Answer = incoming.answered(SliceTaken(self._incarnation))
        return taken
