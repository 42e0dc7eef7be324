"""How safe a write is before it is acknowledged, and the answers that wait for that.

    memory      applied: it is in the shard's transaction, which a killed process does not lose, but a machine might
    durable     the store has written it through to the disk
    replicated  the shard's standby has committed it; while there is one, nothing is answered before that, at whatever level

Syncing is slow and one sync covers all that was committed before it. So one is under way at a time; writes that are committed meanwhile
wait for the next, however many they are. Nothing else waits: the shard goes on with its steps.

A write that could not be stored is answered with a failure although it is applied in memory, and will be stored with what comes next. A
repeat of the request, with its id, tells.

What must not live here: disks (`cluster.storage`), what a write does (`shard_state`).
"""

from collections.abc import Container
from typing import Literal

from msgspec import Struct

from cluster.core.messages import Failure, Payload
from cluster.errors import ErrorCode, HarborError

LEVELS = ("memory", "replicated", "durable")
"""What a client may ask for; who asks for nothing gets the safest there is."""
Standby = Literal["off", "missing", "in_sync"]
"""Whether the shard has a standby: none is configured, or there is one to come, or it has everything."""
Undurable = Literal["", "off", "unavailable"]
"""Why nothing is on a disk, if so: by configuration, or since the store could not be opened."""


class Held(Struct):
    """An answer that waits: to request `id` of a gateway."""

    gateway: str
    id: int
    request_id: str
    payload: Payload


class Acknowledgements:
    """See the module."""

    __slots__ = ("_syncing", "_undurable", "_waiting", "promised", "standby")

    def __init__(self, undurable: Undurable) -> None:
        self._undurable = undurable
        self.standby: Standby = "off"
        self.promised: dict[int, str] = {}
        """Requests of this step whose writes are to be replicated when they are answered, with the level asked for; the shell takes them."""
        self._waiting: list[Held] = []
        self._syncing: list[Held] | None = None
        """Those that the sync under way is for; None: there is none."""

    def is_durable(self, level: str) -> bool:
        """Whether a write asked for at a level ("": the default) is to be on the disk when it is acknowledged.

        Raises:
            HarborError: the level cannot be had here; nothing is written then.
        """
        match level:
            case "replicated" if self.standby == "off":
                raise HarborError(ErrorCode.UNSUPPORTED, "ack=replicated needs a standby: cluster.replicas is 0")
            case "replicated" if self.standby == "missing":
                raise HarborError(ErrorCode.UNAVAILABLE, "ack=replicated: this shard's standby is being built")
            case "durable" if self._undurable == "off":
                raise HarborError(
                    ErrorCode.UNSUPPORTED, "ack=durable needs a store, and there is none: storage.path is null"
                )
            case "durable" if self._undurable == "unavailable":
                raise HarborError(ErrorCode.UNAVAILABLE, "ack=durable: the store of this shard could not be opened")
        if level == "durable" or (level == "" and self.standby != "in_sync"):
            return not self._undurable
        return False

    def promise(self, level: str, request: int) -> None:
        """A request has written at a level; note it where that means replicated."""
        if self.standby == "in_sync" and level in ("", "replicated"):
            self.promised[request] = level

    def hold(self, held: Held) -> None:
        """Let an answer wait for the next sync; what it speaks of is committed by the end of this step."""
        self._waiting.append(held)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting and self._syncing is None

    def begin(self) -> bool:
        """Return whether to sync now: somebody waits and no sync is under way. From now on one is."""
        if self._syncing is not None or not self._waiting:
            return False
        self._syncing, self._waiting = self._waiting, []
        return True

    def not_stored(self, request_ids: Container[str]) -> None:
        """Writes could not be committed."""
        for held in [*self._waiting, *(self._syncing or ())]:
            if held.request_id in request_ids:
                held.payload = _lost("stored")

    def synced(self, *, failed: bool = False) -> list[Held]:
        """The sync is over. Returns the answers that waited for it."""
        done, self._syncing = self._syncing or [], None
        if failed:
            for held in done:
                held.payload = _lost("written through to the disk")
        return done


def _lost(how: str) -> Failure:
    return Failure(
        ErrorCode.UNAVAILABLE, f"the write was applied, but could not be {how}; repeat it to know whether it was"
    )
