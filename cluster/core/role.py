"""Roles of a shard's actors: who may serve it, under which epoch, for how long.

Two actors may hold a shard: its primary serves, its standby has every transaction that the primary has let anything out of. A process
that was stopped and goes on does not know how long it was away, and a network that is cut does not say so to either side. So roles are
given by one authority (the supervisor, `shard_roles`) under epochs that only rise; and a primary whose standby might take over serves
under a lease. The lease runs from when the primary *sent* what the standby then acknowledged; the standby counts from when it
*received* that, which is later, so its own clock tells it when the primary's lease is over. Neither compares clocks with the other.

What must not live here: records (`replication`), who gets which role (`shard_roles`).
"""

from enum import StrEnum
from typing import Any

from msgspec import Struct

LEASE_MS = 2_000.0
"""How long a primary may serve after what it sent last and had acknowledged. Long enough that a pause of a busy process does not
end it, short enough that a primary which is cut off and cannot be told is replaced within three seconds."""
HEARTBEAT_MS = 400.0
"""An idle primary renews so often: five may be lost."""
DRIFT = 1.05
"""Clocks of two machines do not run equally fast: the standby waits so much longer."""
EPOCH_ORIGIN_MS = 1_735_689_600_000
"""2025-01-01. An epoch is the milliseconds since then at which it began, or one more than the last where clocks disagree."""


class Role(StrEnum):
    """What an actor is to a shard."""

    NONE = "none"
    """It waits to be told."""
    STANDBY = "standby"
    PRIMARY = "primary"


class Grant(Struct, frozen=True):
    """What the supervisor tells an actor that it is."""

    role: Role
    epoch: int
    other: str = ""
    """Of a primary: the actor to make its standby, or that is; "": it serves alone. Of a standby: its primary."""
    other_life: int = 0
    """The life of the standby; another is not the one that was meant."""
    is_dead: bool = False
    """Of a standby that becomes the primary: the process of the one before is known to have ended."""
    begins_empty: bool = False
    """What it may find in stores does not count: the one that held the shard last is gone."""


class Standing(Struct, frozen=True, array_like=True):
    """What a store knows of the role it was written in."""

    epoch: int
    """The highest of roles under which it was whole."""
    is_whole: bool
    """It has all that was let out under that epoch; False while it is being filled."""


def next_epoch(now_ms: float, *before: int) -> int:
    """Return an epoch above those before."""
    return max(int(now_ms - EPOCH_ORIGIN_MS), *(epoch + 1 for epoch in before), 1)


class Lease:
    """The primary's side."""

    __slots__ = ("until_ms",)

    def __init__(self) -> None:
        self.until_ms = 0.0

    def renewed(self, sent_ms: float) -> None:
        """What was sent then was acknowledged."""
        self.until_ms = max(self.until_ms, sent_ms + LEASE_MS)

    def holds(self, now_ms: float) -> bool:
        """Whether the primary may serve."""
        return now_ms < self.until_ms


class Roleless:
    """What an actor runs that is not the primary: nothing."""

    def answered(self, _to: str, _message: Any, _answer: Any, _now_ms: float) -> list[Any]:
        """Return nothing."""
        return []

    def unanswered(self, _to: str, _message: Any, _now_ms: float) -> list[Any]:
        """Return nothing."""
        return []

    def deadline(self) -> float | None:
        """Return nothing."""
        return None

    def wake(self, _now_ms: float) -> list[Any]:
        """Return nothing."""
        return []
