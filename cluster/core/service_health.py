"""Whether services can be reached, as one shard sees it: told from what its calls come to, and tried again while they cannot."""

from collections.abc import Iterator

OFFLINE_AFTER = 4
"""Calls in a row that did not reach a service before it counts as offline: the tries of one fetch with default retries. One that is alone
fails with its own error, and who watches hears why; of several at once the later ones are paused by the first four."""
PROBE_MS, MAX_PROBE_MS = 1_000.0, 30_000.0
"""First and longest wait between calls that try whether an offline service is back."""
UNREACHABLE = frozenset({502, 503, 504})
"""Statuses that a proxy gives in place of a service that it cannot reach."""


class _Service:
    __slots__ = ("delay_ms", "failures", "offline", "probe_at", "probing", "since_ms")

    def __init__(self) -> None:
        self.failures = 0
        self.offline = False
        self.since_ms = 0.0
        """When it went offline, if it is."""
        self.probe_at = 0.0
        self.delay_ms = PROBE_MS
        self.probing = False
        """It is being tried; what fails otherwise was under way before."""


class ServiceHealth:
    """See the module."""

    def __init__(self) -> None:
        self._services: dict[str, _Service] = {}

    def reached(self, service: str) -> bool:
        """A service has answered. Returns whether it was offline until now."""
        known = self._services.get(service)
        if known is None:
            return False
        known.failures = 0
        known.probing = False
        was_offline, known.offline = known.offline, False
        return was_offline

    def missed(self, service: str, now_ms: float, offline_after: int = OFFLINE_AFTER) -> bool:
        """A call has not reached a service, nor have so many in a row. Returns whether it counts as offline from now on."""
        known = self._services.setdefault(service, _Service())
        known.failures += 1
        if known.offline:
            if known.probing:
                known.probing = False
                known.delay_ms = min(known.delay_ms * 2, MAX_PROBE_MS)
                known.probe_at = now_ms + known.delay_ms
            return False
        if known.failures < offline_after:
            return False
        known.offline = True
        known.since_ms = now_ms
        known.delay_ms = PROBE_MS
        known.probe_at = now_ms + PROBE_MS
        return True

    def may_probe(self, service: str, now_ms: float) -> bool:
        """Whether an offline service may be called now to see whether it is back; if so, the next may after a wait."""
        known = self._services.get(service)
        if known is None or not known.offline or known.probe_at > now_ms:
            return False
        known.probe_at = now_ms + known.delay_ms
        known.probing = True
        return True

    def offline_ms(self, service: str, now_ms: float) -> float:
        """Return for how long a service has been offline; 0: it is not."""
        known = self._services.get(service)
        return max(0.0, now_ms - known.since_ms) if known is not None and known.offline else 0.0

    def offline(self) -> Iterator[tuple[str, float]]:
        """Yield (service, when it may be called next) of those that are offline."""
        for name, known in self._services.items():
            if known.offline:
                yield name, known.probe_at
