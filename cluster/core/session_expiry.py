"""When sessions end because what their clients were recognised by does.

A token's session is told some time before its `exp`, so that its client can say `auth` with a new one, and closed at `exp`.

`exp` is a date by the wall clock, which may be set as the gateway runs, or have gone on as its machine was suspended; timers run by a steady
one. So times are kept as dates, and `ahead_ms` leads from one clock to the other: when it is set anew all of them are due by it.

What must not live here: telling and closing (`gateway_state`).
"""

from heapq import heappop, heappush
from itertools import count
from typing import Any

from cluster.core.grants import Principal
from cluster.core.session_state import SessionState

NOTICE_MS = 60_000.0
"""Before the end a client is told: a request to whoever issues tokens takes a second, and may have to be repeated."""
NOTICE_SHARE = 0.5
"""Of what is left, where that is sooner: tokens of a minute are told of after half of it."""
KEPT = 1_000
"""Times that may be kept in vain."""
_When = tuple[float, int, SessionState, Principal, bool]


class Expiries:
    """See the module. What has been overtaken by another token stays in the heap until its time, and is passed over then."""

    def __init__(self) -> None:
        self._heap: list[_When] = []
        self._number = count()
        self._whose: dict[SessionState, Principal] = {}
        """Sessions whose principal's token ends."""
        self.ahead_ms = 0.0
        """By which the wall clock is ahead of the time that is handed in."""

    def begin(self, session: SessionState, now_ms: float) -> None:
        """A session is its principal's from now on."""
        principal = session.principal
        if principal is None or principal.expires_ms is None:
            self._whose.pop(session, None)
            return
        if self._whose.get(session) is principal:
            return  # it said the same token again
        self._whose[session] = principal
        left_ms = max(principal.expires_ms - self.wall_ms(now_ms), 0.0)
        notice_ms = principal.expires_ms - min(NOTICE_MS, left_ms * NOTICE_SHARE)
        heappush(self._heap, (notice_ms, next(self._number), session, principal, False))
        heappush(self._heap, (principal.expires_ms, next(self._number), session, principal, True))
        if len(self._heap) > KEPT + 4 * len(
            self._whose
        ):  # clients that come and go would be kept until their tokens end
            self._heap = sorted(each for each in self._heap if self._whose.get(each[2]) is each[3])

    def end(self, session: SessionState) -> None:
        """A session is gone."""
        self._whose.pop(session, None)

    def wall_ms(self, now_ms: float) -> float:
        """Return what the wall clock shows at a time."""
        return now_ms + self.ahead_ms

    def deadline(self) -> float | None:
        """When somebody is to be told or closed."""
        return self._heap[0][0] - self.ahead_ms if self._heap else None

    def due(self, now_ms: float) -> list[tuple[SessionState, bool]]:
        """Return the sessions to be told (False) or to be closed (True), each once."""
        found = []
        wall_ms = self.wall_ms(now_ms)
        while self._heap and self._heap[0][0] <= wall_ms:
            _, _, session, principal, is_over = heappop(self._heap)
            if self._whose.get(session) is principal:
                found.append((session, is_over))
        return found


def expiry_notice(principal: Principal) -> dict[str, Any]:
    """Return the members of the notice."""
    assert principal.expires_ms is not None
    return {
        "level": "warning",
        "code": "token_expires",
        "message": "the token expires soon: say auth with another",
        "expires_at": int(principal.expires_ms),
    }
