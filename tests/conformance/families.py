"""How each family of vectors is played against the core. A player raises `AssertionError` where the core does otherwise."""

from collections.abc import Callable
from typing import Any

import orjson
from msgspec import structs

from cluster.core import json_patch
from cluster.core.entry import Value
from cluster.core.hydration import dehydrate, hydrate
from cluster.core.query_cache import Entry, Observer
from cluster.core.query_key import KeyMatcher, canonical, exact_match, parse, partial_match
from cluster.core.query_options import QueryDefaults, QueryOptions
from cluster.core.retry import Retryer, Step
from cluster.core.structural_sharing import difference, share
from tests.conformance.mutation_family import mutations
from tests.conformance.paging import PagedWorld
from tests.conformance.vectors import Difference, key, same, skip_reason
from tests.conformance.world import World, described, filter_of, options


def hash_key(case: dict[str, Any]) -> None:
    """A key's canonical form."""
    same(canonical(key(case["key"])), case["hash"], case["id"])
    if "surrogate" not in case["tags"]:  # half a surrogate pair is no Unicode text: the JSON decoder refuses it
        same(canonical(parse(case["hash"])), case["hash"], f"{case['id']}, read back")


def match_key(case: dict[str, Any]) -> None:
    """Whether a key is under another, by the plain function and by the prepared matcher."""
    given, wanted = key(case["query_key"]), key(case["filter_key"])
    match = exact_match if case["exact"] else partial_match
    same(match(given, wanted), case["match"], case["id"])
    if not case["exact"]:
        entry = canonical(given)
        same(KeyMatcher(wanted).matches(entry, parse(entry)), case["match"], case["id"])
        same(KeyMatcher(wanted).matches(entry), case["match"], case["id"])


def filters(case: dict[str, Any]) -> None:
    """Which entries filters match."""
    world = World({"t0": case["now"]})
    entries = []
    for query in case["queries"]:
        entry = world.build(query["key"], QueryOptions())
        put(entry, query)
        for recorded in query["observers"]:
            world.cache.observe(entry, Observer(options(recorded)), mount=False)
        entry.fetch_status = query["fetch_status"]
        entries.append(entry)
    same([entry.is_stale(world.now) for entry in entries], case["is_stale"], f"{case['id']}: is_stale")
    same([entry.is_active for entry in entries], case["is_active"], f"{case['id']}: is_active")
    for each in case["filters"]:
        matched = [entries.index(entry) for entry in world.cache.find(filter_of(each["filter"]))]
        same(matched, each["matched"], f"{case['id']}: {each['filter']}")


def put(entry: Entry, recorded: dict[str, Any]) -> None:
    """Put a recorded state into an entry."""
    if "data" in recorded:
        entry.value = Value.from_object(recorded["data"])
        entry.data_updated_at, entry.data_update_count = float(recorded["updated_at"]), 1
    entry.is_invalidated = recorded.get("invalidated", False)
    entry.fetch_status = recorded.get("fetch_status", "idle")
    entry.status = "error" if recorded.get("error") else "success" if "data" in recorded else "pending"
    if recorded.get("error"):
        entry.error, entry.error_update_count = "E", 1


def structural_share(case: dict[str, Any]) -> None:
    """What of an old value a new one keeps, and that the patch between them leads from one to the other."""
    old, new = case["old"], case["new"]
    result = share(old, new)
    assert result == new, case["id"]
    root = "scalar"
    if isinstance(result, list | dict):
        root = "old" if result is old else "new" if result is new else "copy"
    same(root, case["root"], f"{case['id']}: root")
    shared: list[str] = []
    taken: list[str] = []
    topmost(result, old, new, "", shared, taken)
    same(sorted(shared), sorted(case["shared"]), f"{case['id']}: shared")
    same(sorted(taken), sorted(case["from_new"]), f"{case['id']}: from_new")
    if "depth" not in case["tags"]:
        patch = difference(old, result)
        if patch is not None:
            patched = json_patch.apply(orjson.loads(orjson.dumps(old)), [orjson.loads(each) for each in patch])
            same(patched, new, f"{case['id']}: patched")


def topmost(result: Any, old: Any, new: Any, at: str, shared: list[str], taken: list[str]) -> None:
    """Find the containers that are the same object as in `old`, or as in `new`, from the top."""
    if not isinstance(result, list | dict):
        return
    if result is old:
        shared.append(at)
        return
    if result is new:
        taken.append(at)
        return
    members = result.items() if isinstance(result, dict) else enumerate(result)
    for name, item in members:
        step = str(name).replace("~", "~0").replace("/", "~1")
        topmost(item, child(old, name), child(new, name), f"{at}/{step}", shared, taken)


def child(value: Any, name: Any) -> Any:
    """A member of a container, or something that no value is."""
    try:
        return value[name]
    except (KeyError, IndexError, TypeError):
        return Ellipsis


def cache_script(case: dict[str, Any]) -> None:
    """Operations on a cache, with everything that is to be seen after each."""
    world = World(case)
    for number, step in enumerate(case["steps"]):
        world.calls.clear()
        world.settlements.clear()
        returned = world.run(number, step["op"])
        world.settle()
        after = step["after"]
        where = f"{case['id']} step {number} {step['op']}"
        same(int(world.now), after["now"], where)
        same(world.entries(), after.get("entries", []), f"{where}: entries")
        same(world.watched(), after.get("observers", {}), f"{where}: observers")
        calls = sorted((at, canonical(parsed)) for at, parsed in after.get("calls", []))
        same(sorted(world.calls), calls, f"{where}: calls")
        same(sorted(world.settlements, key=lambda each: each["op"]), after.get("settled", []), f"{where}: settled")
        if "ret" in after:
            same(returned, after["ret"], f"{where}: returned")


def infinite(case: dict[str, Any]) -> None:
    """Operations on an infinite list, with everything that is to be seen after each."""
    world = PagedWorld(case)
    for number, step in enumerate(case["steps"]):
        world.calls.clear()
        world.settlements.clear()
        world.run(number, step["op"])
        world.settle()
        after = step["after"]
        where = f"{case['id']} step {number} {step['op']}"
        same(int(world.now), after["now"], where)
        seen = world.seen()
        for name in ("pages", "page_params", "observer", *seen):
            same(seen.get(name, "absent"), after.get(name, "absent"), f"{where}: {name}")
        same(sorted(world.calls), sorted(map(tuple, after.get("calls", []))), f"{where}: calls")
        same(sorted(world.settlements, key=lambda each: each["op"]), after.get("settled", []), f"{where}: settled")


def query_defaults(case: dict[str, Any]) -> None:
    """What options a key has."""
    defaults = QueryDefaults(options(case["global"]))
    for each in case["registrations"]:
        defaults.register(each["key"], options(each["options"]))
    for each in case["resolved"]:
        same(defaults.registered(each["key"]), options(each["registered"]), f"{case['id']} {each['key']}: registered")
        effective = defaults.effective(each["key"], options(case.get("explicit", {})))
        same(effective, options(each["effective"]), f"{case['id']} {each['key']}: effective")


def hydration(case: dict[str, Any]) -> None:
    """Entries taken out of one cache and put into another, a while later."""
    source, target = World({"t0": case["t0"]}), World({"t0": case["t0"] + case["delay_ms"]})
    for world, recorded in ((source, case["source"]), (target, case["target"])):
        for each in recorded:
            put(world.build(each["key"], QueryOptions()), each)
    taken = [entry for entry in source.cache if case["include"] == "all" or entry.status == "success"]
    same([entry.parsed for entry in taken], case["dehydrated_keys"], f"{case['id']}: dehydrated")
    for entry in taken:
        hydrate(target.cache, dehydrate(entry), QueryOptions(stale_time=None))
    for entry, recorded in zip(target.cache, case["result"], strict=True):
        seen = described(entry, target.now)
        same({name: seen.get(name, "absent") for name in recorded}, recorded, f"{case['id']} {entry.key}")
        same("data" in seen, "data" in recorded, f"{case['id']} {entry.key}: data")


def retry(case: dict[str, Any]) -> None:
    """When a fetch, an observer's fetch, or a mutation is tried again."""
    if case["kind"] == "mutation":
        mutation_retry(case)
        return
    world = RetryWorld(case)
    given = QueryOptions(**retry_options(case))
    entry = world.build(["k"], given)
    world.entry = entry
    if case["kind"] == "fetch":
        world.cache.fetch(entry, given if "retry" in case else structs.replace(given, retry=False), waiter=(0, "value"))
    else:
        world.cache.observe(entry, Observer(given))
    events = [
        (at, lambda online=online: world.cache.set_online("", online=online)) for at, online in case.get("network", [])
    ]
    for at, act in [*events, (case["run_ms"], lambda: None)]:
        world.until(at)
        act()
        world.settle()
        world.look()
    same([at for at, _ in world.calls], case["attempts"], f"{case['id']}: attempts")
    same(world.seen, case["timeline"], f"{case['id']}: timeline")
    final = {"failure_count": entry.fetch_failure_count, "fetch_status": entry.fetch_status, "status": entry.status}
    same(final, case["final"], f"{case['id']}: final")
    if case["kind"] == "fetch":
        got = None
        if world.settlements:
            got = {"at": world.settled_at, **world.settlements[0]}
            del got["op"]
        same(got, case["result"], f"{case['id']}: result")


class RetryWorld(World):
    """A world that notes each change of state with its time."""

    def __init__(self, case: dict[str, Any]) -> None:
        super().__init__({"t0": 0, "upstream": [{"key": ["k"], "plan": case["plan"]}]})
        self.seen: list[list[Any]] = []
        self.settled_at = -1
        self.entry: Entry | None = None

    def settled(self, waiter: Any, entry: Entry, error: Any) -> None:
        super().settled(waiter, entry, error)
        self.settled_at = int(self.now)

    def look(self) -> None:
        assert self.entry is not None
        state = [int(self.now), self.entry.fetch_failure_count, self.entry.fetch_status, self.entry.status]
        if not self.seen or self.seen[-1][1:] != state[1:]:
            self.seen.append(state)

    def settle(self) -> None:
        super().settle()
        self.look()

    def until(self, at: float) -> None:
        self.look()
        self.advance(at - self.now)


def retry_options(case: dict[str, Any]) -> dict[str, Any]:
    """The recorded retry options as ours."""
    given: dict[str, Any] = {"gc_time": None}
    if "retry" in case:
        given["retry"] = retry_rule(case["retry"])
    if "retry_delay" in case:
        given["retry_delay"] = delay_rule(case["retry_delay"])
    if "network_mode" in case:
        given["network_mode"] = "offline_first" if case["network_mode"] == "offlineFirst" else case["network_mode"]
    return given


def retry_rule(recorded: Any) -> Any:
    """A recorded `retry` as ours."""
    match recorded:
        case {"kind": "count_lt", "n": n}:
            return lambda failures, _: failures < n
        case {"kind": "unless_error", "message": message, "n": n}:
            return lambda failures, error: error != message and failures < n
    return recorded


def delay_rule(recorded: Any) -> Any:
    """A recorded `retry_delay` as ours."""
    match recorded:
        case {"kind": "linear", "base": base}:
            return lambda failures, _: float(base * (failures + 1))
        case {"kind": "by_error", "message": message, "ms": ms, "other": other}:
            return lambda _, error: float(ms if error == message else other)
    return float(recorded)


def mutation_retry(case: dict[str, Any]) -> None:
    """The attempts of a mutation, which are not an entry's: only the retryer is played."""
    given = retry_options(case)
    retryer = Retryer(given.get("retry", 0), given.get("retry_delay"))
    mode = given.get("network_mode", "online")
    network = [tuple(each) for each in case.get("network", [])]
    online, now, attempts, status, failures = True, 0.0, [], "pending", 0
    timeline: list[list[Any]] = []
    result: dict[str, Any] | None = None
    answer: tuple[float, dict[str, Any]] | None = None

    def look() -> None:
        fetch_status = "idle" if status != "pending" else "paused" if retryer.paused else "fetching"
        state = [int(now), failures, fetch_status, status]
        if not timeline or timeline[-1][1:] != state[1:]:
            timeline.append(state)

    def attempt() -> None:
        nonlocal answer
        step = case["plan"][min(len(attempts), len(case["plan"]) - 1)]
        attempts.append(int(now))
        answer = (now + step["latency"], step)

    def go(step: Step) -> None:
        if step is Step.RUN:
            attempt()

    go(retryer.start(online=online or mode != "online"))
    look()
    while True:
        times = [
            at
            for at in (retryer.due, answer[0] if answer else None, network[0][0] if network else None)
            if at is not None
        ]
        if not times or min(times) > case["run_ms"]:
            break
        now = float(min(times))
        if network and network[0][0] <= now:
            online = network.pop(0)[1]
            if online and retryer.paused:
                go(retryer.resume())
        elif answer is not None and answer[0] <= now:
            step, answer = answer[1], None
            if "error" not in step:
                status, failures = "success", 0
                result = {"at": int(now), "result": "ok", "value": step["value"]}
            elif retryer.failed(step["error"], now) is Step.GIVE_UP:
                status, failures = "error", failures + 1
                result = {"at": int(now), "result": "error", "error": step["error"]}
            else:
                failures = retryer.failure_count
        else:
            go(retryer.wake(online=online or mode == "always"))
        look()
    same(attempts, case["attempts"], f"{case['id']}: attempts")
    same(timeline, case["timeline"], f"{case['id']}: timeline")
    same(result, case["result"], f"{case['id']}: result")


PLAYERS: dict[str, Callable[[dict[str, Any]], None]] = {
    "hash_key": hash_key,
    "match_key": match_key,
    "filters": filters,
    "structural_share": structural_share,
    "retry": retry,
    "query_defaults": query_defaults,
    "hydrate": hydration,
    "infinite": infinite,
    "cache_script": cache_script,
    "mutations": mutations,
}


def play(family: str, case: dict[str, Any]) -> str | None:
    """Play a case. Returns why it was skipped, None where it passed.

    Raises:
        AssertionError: the core does otherwise than recorded.
    """
    reason = skip_reason(case)
    if reason is not None:
        return reason
    try:
        PLAYERS[family](case)
    except Difference as difference:
        return str(difference)
    return None
