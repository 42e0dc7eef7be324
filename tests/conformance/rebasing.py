"""What the rule of the cluster comes to where mutations are recorded, and why that is not always what was recorded.

The shard must hold exactly what `Bases` has, also where a case differs: that is the check on what no recording can check.

What must not live here: playing a case (`mutating`), comparing (`mutation_family`).
"""

from collections import defaultdict
from typing import Any

from tests.conformance.world import ABSENT, updated

LOST = "a failure takes its operations away and nothing else: a snapshot put back would lose what came meanwhile"
UNDER = "what comes while a mutation is pending goes under its operations, which are seen until it is settled"
KEPT = "a failure takes its operations away, also where no rollback is written"
UNDONE = "a failure takes its operations away, also where there was nothing before them"
BESIDE = (
    "what is written or settled during a fetch is applied over its response; a settled mutation causes one more fetch"
)
JOINED = "callers join a fetch in flight instead of restarting it; was the entry invalidated since it began, one more follows"
DOUBTED = "a mutation that succeeds after something else has changed what it is about has that fetched again"
MARKED = "a mutation makes nothing fresh: what was out of date, or became so while it was under way, is so until it is fetched or written"
ONLINE = "the online state is per service: a fetch goes on when its own is back, not when all mutations that were paused are settled"
UNAWAITED = "a mutation is settled by its service's answer; what it invalidates is fetched after that"
COUNTED = "the tries of a mutation count over its whole life: a restart does not give it new ones"
RESENT = "a mutation that was sent is stored: after a restart it is sent again, where query-core keeps only paused ones"
OF_DATA = (LOST, UNDER, KEPT, UNDONE, BESIDE)
"""Why an entry's data may differ."""
OF_FETCHES = (BESIDE, JOINED, DOUBTED, MARKED, ONLINE)
"""Why an entry may be out of date, or fetched, when it was not; then its data may differ as well."""
REASONS = (LOST, UNDER, KEPT, UNDONE, BESIDE, JOINED, DOUBTED, ONLINE, MARKED, UNAWAITED, COUNTED, RESENT)
"""A case to which several apply is counted under the first."""


class Bases:
    """What the rule of the cluster comes to: the data of keys, and the mutations whose operations lie over it."""

    def __init__(self) -> None:
        self.data: dict[str, Any] = {}
        self.laid: dict[str, dict[str, Any]] = defaultdict(dict)
        """Updaters by mutation, by key, in order."""
        self.since: dict[str, tuple[float, list[Any]]] = {}
        """(when the fetch under way began, what has happened since, in order), by key."""
        self.now = 0.0

    def change(self, key: str, updater: Any, *, is_repeated: bool = True) -> None:
        """Something certain happens to a key; `is_repeated`: a fetch under way may not know of it."""
        data = updated(updater, self.data.get(key, ABSENT))
        if data is not ABSENT:
            self.data[key] = data
            began, later = self.since.get(key, (self.now, []))
            if is_repeated and began < self.now:
                later.append(updater)

    def fetched(self, key: str, data: Any) -> None:
        """A fetch has brought a key's data, which may lack what happened meanwhile."""
        self.data[key] = data
        for updater in self.since.pop(key)[1]:
            self.change(key, updater)

    def view(self, key: str) -> Any:
        """Return what is to be seen of a key."""
        data = self.data.get(key, ABSENT)
        for updater in self.laid[key].values():
            made = updated(updater, data)
            data = data if made is ABSENT else made
        return data
