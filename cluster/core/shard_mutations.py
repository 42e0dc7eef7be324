"""A shard's part in mutations: it is the home of some, and shows those of all homes over its entries.

What a mutation does to views travels from its home to the shards of its keys over links of their own (`Overlays`). The first message on a
link has all that counts, so whichever end starts anew, what the other showed or waited for is made good by it. A lift may come twice: a
shard notes in its store, with what it applied, that it has it.

It is one thing because what is laid, lifted and told shares the links to other shards and what is known of their lives.

What must not live here: when a mutation is sent (`mutation_queue`), how views come about (`overlay`), numbering changes (`shard_state`).
"""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import orjson

from cluster.core import broadcast
from cluster.core.declared_query import Response
from cluster.core.entry import Value
from cluster.core.link import Foreign, Incoming, New, Outgoing, Repeat
from cluster.core.messages import (
    Answer,
    Full,
    Lay,
    Lift,
    ListMutations,
    Mutate,
    MutationList,
    MutationView,
    Overlays,
    OverlaysTaken,
    Payload,
    Refused,
    Send,
    Undo,
)
from cluster.core.mutation import DeclaredMutation
from cluster.core.mutation_queue import LATE, MutationQueue, MutationRecord, StartMutation
from cluster.core.operation import Append, Delete, Invalidate, Operation, Set, is_unrepeatable
from cluster.core.overlay import Known, Laid, missing
from cluster.core.overlay import Overlays as AllLaid
from cluster.core.placement import shard_at
from cluster.core.slot_slice import MovedOverlay
from cluster.errors import UpstreamError

RETRY_MS = 150.0
EVENTS_MS, MAX_EVENTS = 10_000.0, 1_000
"""How long, and how many, events that may confirm a mutation are kept for one of which nothing has been heard yet here."""
ORIGIN = "mutation:"
"""Where data came from that a mutation has left; its name follows."""


class Bases(Protocol):
    """The entries that mutations are about."""

    def base(self, key: str) -> Value | None:
        """Return an entry without what lies over it."""
        ...

    def show(self, key: str, mutation: str) -> None:
        """What lies over an entry is another, for the sake of a mutation ("": of none that could be named)."""
        ...

    def settle(self, key: str, operations: list[Operation], mutation: str, *, is_doubtful: bool) -> None:
        """A mutation is settled: apply what lasts of it to the base, and show that, in one change.

        `is_doubtful`: streams have changed the base since it began, so what comes of it has to be looked at.
        """
        ...

    def broadcast(self, name: str, operations: list[Operation]) -> None:
        """Carry out what is not about one key."""
        ...

    def answer(self, gateway: str, request: int, payload: Payload) -> None:
        """Answer a gateway's request of before."""
        ...

    def tell(self, gateway: str, view: MutationView) -> None:
        """Tell a gateway that asked for a mutation how it is."""
        ...

    def changed_since(self, key: str, at_ms: float) -> bool:
        """Whether anything but a mutation has changed an entry's base since."""
        ...

    def has_lifted(self, lift: str) -> bool:
        """Note that a mutation's lift was applied. Returns whether it had been before."""
        ...

    def forget_lift(self, lift: str) -> None:
        """A mutation's lift will not come again."""
        ...


class ShardMutations:
    """See the module."""

    def __init__(
        self,
        identity: str,
        incarnation: int,
        *,
        shards: int,
        place: Callable[[str], int],
        declared: Mapping[str, DeclaredMutation],
        bases: Bases,
        changed: Callable[[str], None],
    ) -> None:
        """`shards`: how many there are; `changed`: is told the id of a mutation that is to be stored anew, or forgotten."""
        self.shard = shard_at(identity)
        self._incarnation = incarnation
        self._bases = bases
        self._declared = declared
        self._unconfirmed: dict[tuple[str, str], dict[str, None]] = {}
        """Mutations laid here whose event has not come by yet, by (name, channel)."""
        self._events: deque[tuple[float, str, str, Any]] = deque()
        """(when, mutation's name, channel, data) of events that may confirm something, the newest."""
        self.queue = MutationQueue(self.shard, shards, place, declared, changed)
        self.laid = AllLaid()
        self._peers = (
            {f"shard-{n}": Outgoing(identity, incarnation) for n in range(shards) if n != self.shard}
            if declared
            else {}
        )
        self._incoming: dict[str, Incoming] = {}
        self._announcing: dict[str, tuple[str, int, set[str]]] = {}
        """Mutations with a temporary id of which other shards do not know yet: (gateway, its request, those shards)."""
        self._lifted: dict[int, list[str]] = {}
        """Of each home, the lifts that came with its last message."""

    @property
    def peers(self) -> list[str]:
        """Return the shards that are told of mutations."""
        return list(self._peers)

    # --- what comes in -------------------------------------------------------------------------------------------

    def request(self, gateway: str, request: Mutate | Undo | ListMutations, now_ms: float) -> Payload | None:
        """Carry out what a gateway asks. None: it is answered later (`Bases.answer`).

        What creates something under a temporary id is answered when every shard knows that id: else what names it, sent on that
        answer to another home, would be taken for what names nothing that is still to come.

        Raises:
            HarborError: see `MutationQueue.begin`.
        """
        match request:
            case Mutate():
                is_new = request.mutation not in self.queue.records
                view = self.queue.begin(request, gateway, now_ms)
                if not is_new or not self._peers or not self.queue.records[request.mutation].temporary:
                    return view
                self._announcing[request.mutation] = (gateway, request.id, set(self._peers))
                return None
            case Undo(mutation=mutation):
                return self.queue.undo(mutation, now_ms)
            case ListMutations(mutation=mutation, author=author) if mutation or author:
                # It goes the way of the news, so that none of these overtakes it.
                found = MutationList(self.queue.regained(author, gateway)) if author else self.queue.listed(request)
                self._bases.answer(gateway, request.id, found)
                return None
            case ListMutations():
                return self.queue.listed(request)

    def responded(self, call: StartMutation, answer: Response | UpstreamError, now_ms: float) -> None:
        """A request to a service ended."""
        self.queue.responded(call, answer, now_ms)

    def heard(self, mutation: str, operations: list[Operation], now_ms: float) -> None:
        """Streams have events that may confirm mutations of a name."""
        for operation in operations:
            assert isinstance(operation, Append)
            for item in operation.items:
                event = orjson.loads(item)
                channel, data = event["channel"], event["data"]
                self._confirm(mutation, channel, data)
                while self._events and (self._events[0][0] + EVENTS_MS < now_ms or len(self._events) >= MAX_EVENTS):
                    self._events.popleft()
                self._events.append((now_ms, mutation, channel, data))
                self.queue.heard(mutation, channel, data, now_ms)

    def _confirm(self, name: str, channel: str, data: Any) -> None:
        """Note of what is laid here that its own event has come by; one event is of one mutation."""
        waiting = self._unconfirmed.get((name, channel), {})
        for mutation in list(waiting):
            known = self.laid.mutations.get(mutation)
            if known is None:
                del waiting[mutation]
            elif self._declared[name].confirms(known.variables, mutation, channel, data):
                known.is_confirmed = True
                del waiting[mutation]
                if known.is_echo:
                    for key in self.laid.lift(mutation):
                        self._bases.show(key, "")
                break
        if not waiting:
            self._unconfirmed.pop((name, channel), None)

    def overlays(self, message: Overlays, now_ms: float) -> Answer:
        """Take what another shard, the home of mutations, says of them."""
        sender = message.header.sender
        incoming = self._incoming.setdefault(sender, Incoming(self._incarnation))
        match incoming.admit(message.header):
            case Foreign():
                return Refused(self._incarnation)
            case Repeat(answer):
                assert isinstance(answer, OverlaysTaken)
                return answer
            case New(opened=opened):
                home = shard_at(sender)
                before = self._clear(home) if opened else []
                lifted = self._lifted.pop(home, [])
                if not opened:  # it has noted, and stored, our answer to the last
                    for lift in lifted:
                        self._bases.forget_lift(lift)
                for item in message.items:
                    self._take(item, home, now_ms)
                self._lifted[home] = [_lift(home, item) for item in message.items if isinstance(item, Lift)]
                for key in before:
                    self._bases.show(key, "")
        taken: Answer = incoming.answered(OverlaysTaken(self._incarnation))
        return taken

    def _clear(self, home: int) -> list[str]:
        """Take away all that a shard has laid here. Returns the keys."""
        for mutation, known in self.laid.mutations.items():
            if known.home == home:
                self._look_out_no_more(mutation, known)
        return self.laid.clear(home)

    def _take(self, item: Lay | Lift, home: int, now_ms: float) -> None:
        known = self.laid.mutations.get(item.mutation)
        if known is not None and known.home != home:
            known = None  # a client gave two mutations one id: what is laid is the other
        if isinstance(item, Lay):
            self.queue.laid(item)
            if known is None and item.mutation in self.laid.mutations:
                return
            keys = dict.fromkeys(key for key, _ in item.operations)
            is_confirmed = known is not None and known.is_confirmed
            if known is not None and not is_confirmed:
                self._look_out_no_more(item.mutation, known)  # on the channel of what it named then
            for key in self.laid.lay(item, home, {key: self._bases.base(key) for key in keys}):
                self._bases.show(key, item.mutation)
            if not is_confirmed:
                self._catch_up(item)
            return
        if known is not None and known.is_echo:
            return  # it comes a second time
        is_confirmed = known is not None and known.is_confirmed
        held = {} if known is None else self.laid.lift(item.mutation, item.renamed)
        if known is not None and not is_confirmed and not self._echoes(item, known, held, now_ms):
            self._look_out_no_more(item.mutation, known)
        operations: dict[str, list[Operation]] = {key: [] for key in held}
        doubtful: set[str] = set()
        has_more = bool(item.lasting or item.result or item.failed)
        if has_more and (home == self.shard or not self._bases.has_lifted(_lift(home, item))):
            for key, operation in item.lasting:
                each = operations.setdefault(key, [])
                if is_confirmed:
                    continue  # the base has it, and what came after it
                each.extend(missing([operation], self._bases.base(key)))
                if self._bases.changed_since(key, item.created_ms):
                    doubtful.add(key)
            for key, operation in item.result:
                operations.setdefault(key, []).append(operation)
            for key, laid in held.items():
                if item.failed and laid.restores:
                    operations[key].append(Delete() if laid.before is None else Set(laid.before))
        for key, each in operations.items():
            if broadcast.is_broadcast(key):
                self._bases.broadcast(key, each)
            else:
                self._bases.settle(key, each, item.mutation.removesuffix(LATE), is_doubtful=key in doubtful)
        self.queue.rename(item, now_ms)

    def _echoes(self, item: Lift, known: Known, held: dict[str, Laid], now_ms: float) -> bool:
        """Let what a mutation did lie on over the bases until its event comes, if one can be told. Returns whether it does."""
        if not held or not item.lasting:
            return False
        declared = self._declared.get(known.name)
        is_told = declared is not None and declared.confirm_channel(known.variables, item.mutation) is not None
        did: dict[str, list[Operation]] = {}
        for key, operation in [*item.lasting, *item.result]:
            lies_on = is_told or ((over := self.laid.of(key)) is not None and over.has_echo)
            if lies_on and not broadcast.is_broadcast(key) and not isinstance(operation, Invalidate):
                did.setdefault(key, []).append(operation)
        did = {key: each for key, each in did.items() if not any(map(is_unrepeatable, each))}
        if not did:
            return False
        self.laid.echo(item.mutation, known, next(iter(held.values())).order, did, now_ms)
        return True

    def _look_out_no_more(self, mutation: str, known: Known) -> None:
        declared = self._declared.get(known.name)
        channel = None if declared is None else declared.confirm_channel(known.variables, mutation)
        if channel is not None and (waiting := self._unconfirmed.get((known.name, channel))) is not None:
            waiting.pop(mutation, None)
            if not waiting:
                del self._unconfirmed[known.name, channel]

    def _catch_up(self, lay: Lay) -> None:
        """Its event may have come by before it was laid; if not, look out for it."""
        known = self.laid.mutations.get(lay.mutation)
        declared = self._declared.get(lay.name)
        channel = None if known is None or declared is None else declared.confirm_channel(known.variables, lay.mutation)
        if known is None or declared is None or channel is None:
            return
        known.is_confirmed = any(
            name == lay.name and at >= lay.created_ms and declared.confirms(known.variables, lay.mutation, heard, data)
            for at, name, heard, data in self._events
        )
        if not known.is_confirmed:
            self._unconfirmed.setdefault((lay.name, channel), {})[lay.mutation] = None

    # --- what goes out -------------------------------------------------------------------------------------------

    def flush(self, now_ms: float) -> list[Send | StartMutation]:
        """Do what is to be done here, and return what is to be done elsewhere."""
        queue = self.queue
        while items := queue.items.pop(self.shard, []):
            for item in items:
                self._take(item, self.shard, now_ms)
                if isinstance(item, Lift):
                    queue.lifted(self.shard, item.mutation)
        effects: list[Send | StartMutation] = []
        for address, peer in self._peers.items():
            if not peer.idle:
                continue
            index = shard_at(address)
            waiting = queue.items.pop(index, [])
            if not peer.peer:
                waiting = queue.outstanding(index)
            elif not waiting:
                continue
            message = Overlays(peer.header(), waiting)
            peer.sent(message)
            effects.append(Send(address, message))
        told, queue.told = queue.told, {}
        for record in told.values():
            for gateway in (record.owner, *record.others):
                self._bases.tell(gateway, record.view())
        calls, queue.calls = queue.calls, []
        return [*effects, *calls]

    def announced(self, sender: str, incarnation: int) -> None:
        """Another shard lives anew: it is to be told everything."""
        peer = self._peers.get(sender)
        if peer is not None and peer.peer not in (0, incarnation):
            peer.relink()

    def answered(self, to: str, message: Overlays, answer: Answer, now_ms: float) -> None:
        """A shard has what it was told, or lives anew."""
        peer = self._peers.get(to)
        if peer is None or peer.in_flight is not message:
            return
        if isinstance(answer, Refused):
            peer.relink()
            return
        if isinstance(answer, Full):
            peer.failed(now_ms, RETRY_MS)
            return
        assert isinstance(answer, OverlaysTaken)
        peer.acknowledged(answer.incarnation)
        for item in message.items:
            if isinstance(item, Lift):
                self.queue.lifted(shard_at(to), item.mutation)
            self._knows(item.mutation, to)

    def unanswered(self, to: str, message: Overlays, now_ms: float) -> None:
        """The call failed."""
        peer = self._peers.get(to)
        if peer is not None and peer.in_flight is message:
            peer.failed(now_ms, RETRY_MS)
        for mutation in list(self._announcing):
            self._knows(mutation, to)  # it begins anew, with all that counts

    def _knows(self, mutation: str, peer: str) -> None:
        """A shard knows of a mutation's temporary id, or is not to be waited for."""
        announcing = self._announcing.get(mutation)
        if announcing is None:
            return
        gateway, request, peers = announcing
        peers.discard(peer)
        if not peers:
            del self._announcing[mutation]
            self._bases.answer(gateway, request, self.queue.records[mutation].view())

    # --- moves of slots ------------------------------------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Whether every shard has heard all there is, and nothing is to be sent."""
        queue = self.queue
        return not (any(queue.items.values()) or queue.calls) and all(
            peer.idle and peer.peer for peer in self._peers.values()
        )

    def take_in(self, overlays: list[MovedOverlay]) -> None:
        """Have lie here what lay over entries elsewhere."""
        for each in overlays:
            self.laid.take_in(each.key, each.laid, each.known, each.hidden)
            for mutation, known, _ in each.known:
                declared = self._declared.get(known.name)
                channel = None if declared is None else declared.confirm_channel(known.variables, mutation)
                if channel is not None and not known.is_confirmed:
                    self._unconfirmed.setdefault((known.name, channel), {})[mutation] = None

    def count_shards(self, identity: str, incarnation: int, shards: int) -> tuple[list[str], list[str]]:
        """There are so many shards now. Returns those that are told of mutations: before, and now."""
        before = self.peers
        if self._declared:
            for shard in range(shards):
                if shard != self.shard:
                    self._peers.setdefault(f"shard-{shard}", Outgoing(identity, incarnation))
            for gone in [address for address in self._peers if shard_at(address) >= shards]:
                del self._peers[gone]
        self.queue.count_shards(shards)
        return before, self.peers

    # --- time ----------------------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """When anything is due."""
        if any(peer.idle and not peer.peer for peer in self._peers.values()):
            return 0.0
        times = [self.queue.deadline(), self.laid.deadline(), *(peer.retry_at for peer in self._peers.values())]
        return min((at for at in times if at is not None), default=None)

    def wake(self, now_ms: float) -> list[Send]:
        """Do what is due; `flush` follows."""
        self.queue.wake(now_ms)
        for mutation in self.laid.faded(now_ms):
            self._look_out_no_more(mutation, self.laid.mutations[mutation])
            for key in self.laid.lift(mutation):
                self._bases.show(key, "")
        for key in self.laid.expired(now_ms):
            self._bases.show(key, "")
        return self.resends(now_ms)

    def resends_at(self) -> float | None:
        """When a shard is to be told again."""
        return min((at for peer in self._peers.values() if (at := peer.retry_at) is not None), default=None)

    def resends(self, now_ms: float) -> list[Send]:
        """Tell shards again that could not be told."""
        effects = []
        for address, peer in self._peers.items():
            message: Any = peer.resend(now_ms)
            if message is not None:
                effects.append(Send(address, message))
        return effects

    def restore(self, records: list[MutationRecord], now_ms: float) -> None:
        """Begin with what was stored."""
        self.queue.restore(records, now_ms)


def _lift(home: int, lift: Lift) -> str:
    """Return what a lift is noted as: clients choose the ids of mutations, so two homes may have the same."""
    return f"{home}/{lift.mutation}"
