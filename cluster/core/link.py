"""Links: ordered, repeat-proof conversations between two actors.

Ray may deliver a call twice (it retries when it loses an answer), deliver it to a restarted actor, or lose the answer for good.
A naive sender that numbers nothing therefore doubles increments or skips changes. Here every message carries the sender's life
(incarnation), the receiver's life as the sender knows it, and a sequence; one message is in flight at a time:

- the same message again (same sequence) gets the recorded answer and is not applied;
- a message for another life of the receiver, or out of sequence, is refused; the sender then starts over with sequence 1,
  having re-established whatever the old link stood for.

What must not live here: what messages mean, and when to resend (the machines that own links decide).
"""

from dataclasses import dataclass
from typing import Any

from cluster.core.messages import Announce, Header, Send

LIFE_APART_MS = 1_000_000
"""Between the incarnations of two lives where the clock was set back: what a life numbers from its own (`IDS_PER_MS`) ends far below."""


def next_life(now_ms: float, last: int | None) -> int:
    """Return the incarnation of a new life of an actor, above all that its last one can have used: also where the clock was set back."""
    return max(int(now_ms), 0 if last is None else last + LIFE_APART_MS)


class Outgoing:
    """The sending end: at most one message in flight."""

    __slots__ = ("_incarnation", "_opening", "_sender", "_sequence", "in_flight", "peer", "retry_at")

    def __init__(self, sender: str, incarnation: int) -> None:
        self._sender = sender
        self._incarnation = incarnation
        self._opening = 0
        """Not told by the incarnation: that of a shard's next life may be the next number."""
        self._sequence = 0
        self.peer = 0
        """The receiver's incarnation; 0 while unknown."""
        self.in_flight: Any = None
        """The message that waits for its answer, kept for resending."""
        self.retry_at: float | None = None
        """When to send `in_flight` again, after a call that failed."""

    @property
    def idle(self) -> bool:
        """Whether a new message may be sent."""
        return self.in_flight is None

    def header(self) -> Header:
        """Return the header of the next message."""
        assert self.in_flight is None, "one message in flight per link"
        self._sequence += 1
        return Header(self._sender, self._incarnation, self.peer, self._sequence, self._opening)

    def sent(self, message: Any) -> None:
        """Remember `message` until it is answered."""
        self.in_flight = message
        self.retry_at = None

    def acknowledged(self, receiver_incarnation: int) -> None:
        """The message in flight was answered by this life of the receiver."""
        self.in_flight = None
        self.retry_at = None
        self.peer = receiver_incarnation

    def failed(self, now_ms: float, retry_ms: float) -> None:
        """The call failed without an answer: send the same message again in `retry_ms`."""
        if self.in_flight is not None:
            self.retry_at = now_ms + retry_ms

    def resend(self, now_ms: float) -> Any:
        """Return the message in flight if it is to be sent again now, else None."""
        if self.retry_at is None or self.retry_at > now_ms:
            return None
        self.retry_at = None
        return self.in_flight

    def relink(self) -> None:
        """Start over with whichever life answers next; what was in flight is dropped."""
        self.in_flight = None
        self.retry_at = None
        self._sequence = 0
        self._opening += 1  # tells this opening from the last one, should that be repeated late
        self.peer = 0


@dataclass(slots=True, frozen=True)
class New:
    """Apply the message, then call `Incoming.answered`. `opened`: it opens the link, anything from before is void."""

    opened: bool


@dataclass(slots=True, frozen=True)
class Repeat:
    """The message was applied before; give this answer again."""

    answer: Any


@dataclass(slots=True, frozen=True)
class Foreign:
    """The message belongs to another life of this end, or skips messages: refuse it."""


class Incoming:
    """The receiving end of one link."""

    __slots__ = ("_answer", "_incarnation", "_opened", "_sequence")

    def __init__(self, incarnation: int) -> None:
        self._incarnation = incarnation
        self._opened = (0, 0)
        """The sender's (incarnation, opening)."""
        self._sequence = 0
        self._answer: Any = None

    def is_repeat(self, header: Header) -> bool:
        """Whether a message was admitted before, and may be answered again whatever has changed since."""
        return (header.incarnation, header.opening) == self._opened and header.sequence <= self._sequence

    def admit(self, header: Header) -> New | Repeat | Foreign:
        """Judge a message by its header."""
        if header.receiver not in (0, self._incarnation):
            return Foreign()
        opened = (header.incarnation, header.opening)
        if opened < self._opened:
            return Foreign()
        if opened == self._opened:
            if header.sequence == self._sequence and (header.receiver != 0 or header.sequence == 1):
                return Repeat(self._answer)
            if header.sequence == self._sequence + 1 and header.receiver != 0:
                self._sequence = header.sequence
                return New(opened=False)
        elif header.receiver == 0 and header.sequence == 1:
            # A late repeat of this link's first message is not taken for another opening.
            self._opened = opened
            self._sequence = 1
            return New(opened=True)
        return Foreign()

    def answered(self, answer: Any) -> Any:
        """Record and return the answer to the message just admitted."""
        self._answer = answer
        return answer


class Announcements:
    """Tells peers that this actor lives anew, each until it has heard.

    Without them a peer that has nothing to send would never find out that what its link stood for (watches, joined channels, unsent
    windows) went down with the old life.
    """

    __slots__ = ("_due", "_message")

    def __init__(self, sender: str, incarnation: int, peers: list[str]) -> None:
        self._message = Announce(sender, incarnation)
        self._due: dict[str, float | None] = dict.fromkeys(peers, 0.0)

    def exchange(self, old: list[str], new: list[str]) -> None:
        """There are other peers: tell those of `new` that are not in `old`, and those of `old` only if they are in `new`."""
        for peer in old:
            if peer not in new:
                self._due.pop(peer, None)
        self._due.update(dict.fromkeys((peer for peer in new if peer not in old), 0.0))

    def deadline(self) -> float | None:
        """When a peer is to be told, or told again."""
        return min((due for due in self._due.values() if due is not None), default=None)

    def wake(self, now_ms: float) -> list[Send]:
        """Tell the peers that are due."""
        effects = []
        for peer, due in self._due.items():
            if due is not None and due <= now_ms:
                self._due[peer] = None
                effects.append(Send(peer, self._message))
        return effects

    def answered(self, peer: str) -> None:
        """`peer` has heard."""
        self._due.pop(peer, None)

    def unanswered(self, peer: str, now_ms: float, retry_ms: float) -> None:
        """`peer` could not be reached; it may itself be starting."""
        if peer in self._due:
            self._due[peer] = now_ms + retry_ms
