"""A mutation that counts, once each: what is declared of it, and what has to be true of it in the end."""

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.core.mutation_queue import MutationQueue, MutationRecord
from cluster.simulation import Violation

DECLARED: dict[str, Any] = {
    "services": {"api": {"base_url": "http://upstream"}},
    "mutations": {
        "vote": {
            "request": {"service": "api", "method": "POST", "path": "/votes", "body": "{variables}"},
            "optimistic": [
                {
                    "increment": {
                        "key": ["votes", "{place}"],
                        "at": "/n",
                        "when_missing": "create",
                        "default": {"n": 0},
                    }
                }
            ],
            "retry": 20,
            "retry_delay": "100ms",
        }
    },
}


def check(
    homes: Iterable[MutationQueue],
    begun: Mapping[str, tuple[str, bool]],
    carried_out: Mapping[str, int],
    held: Mapping[str, tuple[int, Any]],
    places: int,
) -> None:
    """Each mutation that succeeded was carried out, and counts once; what was carried out is known.

    Raises:
        Violation: it is not so.
    """
    records: dict[str, MutationRecord] = {}
    for home in homes:
        records.update(home.records)
    votes: dict[str, int] = {}
    for mutation, record in records.items():
        if record.status == "success":
            place = begun[mutation][0]
            votes[place] = votes.get(place, 0) + 1
            if not carried_out[mutation]:
                raise Violation(f"{mutation} succeeded, and was not carried out")
    for mutation, (_, is_acknowledged) in begun.items():
        if is_acknowledged and mutation not in records:
            raise Violation(f"{mutation} was acknowledged and is forgotten")
    for mutation in carried_out:
        if mutation not in records:
            raise Violation(f"{mutation} was sent, and its home does not know it")
    for place in {str(n) for n in range(places)}:
        counted = held.get(f'["votes","{place}"]', (0, {"n": 0}))[1]["n"]
        if counted != votes.get(place, 0):
            raise Violation(f"votes of {place}: {counted}, {votes.get(place, 0)} succeeded")
