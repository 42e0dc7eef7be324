"""Tells gateways how an ingestor's sources are: each change until it is heard, and the whole now and then for those that live anew."""

from collections.abc import Sequence

from cluster.core.messages import Send, SourceStates

RETRY_MS = 500.0
REPEAT_MS = 5_000.0
"""Between repeats of what has not changed: how long a gateway that was restarted may not know."""


class SourceNews:
    """See the module."""

    __slots__ = ("_due", "_in_flight", "_number", "_sender", "_states", "_untold")

    def __init__(self, sender: str, incarnation: int, gateways: Sequence[str]) -> None:
        self._sender = sender
        self._number = incarnation  # above what an earlier life has said
        self._states: dict[str, str] = {}
        self._due: dict[str, float] = dict.fromkeys(gateways, 0.0)
        """When each gateway is to be told next."""
        self._in_flight: set[str] = set()
        self._untold: set[str] = set()
        """Gateways that have not heard the last change."""

    def changed(self, source: str, state: str) -> None:
        """A source is in another state."""
        self._states[source] = state
        self._renew()

    def gateways(self, names: Sequence[str]) -> None:
        """There are other gateways."""
        self._due = {name: self._due.get(name, 0.0) for name in names}
        self._in_flight.intersection_update(names)
        self._untold.intersection_update(names)

    def gone(self, source: str) -> None:
        """A source is read here no longer."""
        if self._states.pop(source, None) is not None:
            self._renew()

    def _renew(self) -> None:
        self._number += 1
        self._due = dict.fromkeys(self._due, 0.0)
        self._untold = set(self._due)

    @property
    def is_told(self) -> bool:
        """Whether every gateway has heard the last change."""
        return not self._untold

    def deadline(self) -> float | None:
        """When a gateway is to be told (Unix ms)."""
        if not self._states and not self._untold:
            return None
        return min((at for gateway, at in self._due.items() if gateway not in self._in_flight), default=None)

    def wake(self, now_ms: float) -> list[Send]:
        """Tell the gateways that are due."""
        sends: list[Send] = []
        if not self._states and not self._untold:
            return sends
        for gateway, at in self._due.items():
            if at <= now_ms and gateway not in self._in_flight:
                self._in_flight.add(gateway)
                message = SourceStates(self._sender, self._number, list(self._states.items()))
                sends.append(Send(gateway, message))
                self._due[gateway] = now_ms + REPEAT_MS
        return sends

    def answered(self, gateway: str, message: SourceStates) -> None:
        """A gateway has heard."""
        self._in_flight.discard(gateway)
        if message.number == self._number:
            self._untold.discard(gateway)

    def unanswered(self, gateway: str, now_ms: float) -> None:
        """A gateway could not be reached."""
        self._in_flight.discard(gateway)
        if gateway in self._due:
            self._due[gateway] = min(self._due[gateway], now_ms + RETRY_MS)
