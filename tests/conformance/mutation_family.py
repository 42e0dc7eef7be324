"""How the vectors of mutations are compared with what a shard does.

Statuses, tries and callbacks of every mutation are compared with no exception but by a mark on it or on one of its scope; entries and the
calls for them by a mark on their key. A mark is made where one of `REASONS` has happened, and holds until the key is as recorded again.

What must not live here: playing a case (`mutating`).
"""

from typing import Any

from cluster.core.query_key import canonical
from tests.conformance.mutating import MutatingWorld, seen_of
from tests.conformance.rebasing import OF_DATA, OF_FETCHES, REASONS
from tests.conformance.vectors import Difference, same
from tests.conformance.world import ABSENT

UNCOMPARED = ("context", "failure_reason")
"""Of recorded mutations: nothing is put back from a snapshot, and what a try failed with is kept for the last only."""


def mutations(case: dict[str, Any]) -> None:
    """Mutations of a whole shard, with everything that is to be seen after each step.

    Raises:
        Difference: somewhere it is not as recorded, for this reason; everything was played nevertheless.
    """
    differences = mutated(case)[1]
    if differences:
        raise Difference(min(differences, key=REASONS.index))


def mutated(case: dict[str, Any]) -> tuple[MutatingWorld, set[str]]:
    """Play a case of mutations to its end. Returns why it is not as recorded, too.

    Where a mutation differs, so does what follows from that: from there on only what the cluster's own rule says is held.
    """
    world = MutatingWorld(case)
    differences: set[str] = set()
    is_compared = True
    for number, step in enumerate(case["steps"]):
        world.log, world.calls, world.settlements = {}, [], []
        world.run(number, step["op"])
        world.settle()
        where = f"{case['id']} step {number} {step['op']}"
        same(int(world.now), step["after"]["now"], where)
        world.check(where)
        if is_compared:
            try:
                compare_mutations(world, step["after"], where)
            except Difference as difference:
                differences.add(str(difference))
                is_compared = False
            else:
                compare_queries(world, step["after"], where, differences)
    return world, differences


def compare_mutations(world: MutatingWorld, after: dict[str, Any], where: str) -> None:
    """Compare the mutations, what was called for them in which order, and what their callers were told.

    Raises:
        Difference: one is not as recorded, for a reason; what follows from it is not either, so nothing is compared after it.
    """
    held = world.mutations()
    recorded = {each["id"]: each for each in after["mutations"]}
    for mutation in held.keys() - recorded.keys():  # collected there
        if held[mutation]["status"] == "pending":
            raise_excuse(world, mutation, f"{where}: {mutation} is {held[mutation]}")
    told = {each.get("m", each.get("op")): each for each in world.settlements}
    settled = {each.get("m", each.get("op")): each for each in after.get("settled", [])}
    log = after.get("log", {})
    for name in {**held, **recorded, **log, **settled}:
        seen, wanted = [held.get(name), world.log.get(name)], [recorded.get(name), log.get(name)]
        if name in recorded:
            wanted[0] = {each: value for each, value in recorded[name].items() if each not in UNCOMPARED}
        else:
            seen[0] = None
        if name in world.begun:
            seen.append(told.get(name))
            wanted.append(settled.get(name))
        if seen != wanted:
            raise_excuse(world, name, f"{where}: {name} is {seen}, recorded {wanted}")


def raise_excuse(world: MutatingWorld, mutation: str, fault: str) -> None:
    """A mutation is not as recorded.

    Raises:
        Difference: for a reason.
        AssertionError: for none.
    """
    reason = world.excuse(mutation) if mutation in world.definitions else None
    if reason is None:
        raise AssertionError(fault)
    raise Difference(reason)


def compare_queries(world: MutatingWorld, after: dict[str, Any], where: str, differences: set[str]) -> None:
    """Compare the entries and the calls for them; `differences` gathers why some are not as recorded."""
    held = world.queries()
    recorded = {
        canonical(each["key"]): seen_of(each.get("data", ABSENT), each["fetch_status"], each["is_invalidated"])
        for each in after["queries"]
    }
    calls = [(at, canonical(parsed)) for at, parsed in after.get("calls", [])]
    for key in {*held, *recorded, *(key for _, key in (*calls, *world.calls))}:
        seen, wanted = dict(held.get(key, {})), dict(recorded.get(key, {}))
        seen["calls"] = sorted(at for at, called in world.calls if called == key)
        wanted["calls"] = sorted(at for at, called in calls if called == key)
        differing = {name for name in {*seen, *wanted} if seen.get(name, ABSENT) != wanted.get(name, ABSENT)}
        if not differing:
            world.agreed(key)
        if differing & {"calls", "fetch_status"}:
            world.strayed.add(key)
        for name in differing:
            excuses = OF_FETCHES
            if name == "data":
                excuses = (*OF_DATA, *(OF_FETCHES if key in world.strayed else ()))
            reasons = [reason for reason in excuses if reason in world.marks[key]]
            if not reasons:
                same(seen, wanted, f"{where}: {key}")
            differences.add(reasons[0])
