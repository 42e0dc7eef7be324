"""A case of mutations as a user would declare it: the configuration of a cluster that does the same.

What must not live here: what the cluster does with it (`mutating`).
"""

from typing import Any

from cluster.core.query_key import canonical, parse

PING = '["ping"]'
"""A key of no case, watched by the gateway: what an offline service is tried with."""


def document(case: dict[str, Any], services: list[str]) -> dict[str, Any]:
    """Return the configuration in which every key of a case can be fetched."""
    keys = {PING: parse(PING)}
    steps = [step["op"] for step in case["steps"]]
    for each in [*case.get("upstream", []), *case.get("queries", []), *steps]:
        if "key" in each:
            keys.setdefault(canonical(each["key"]), each["key"])
    for definition in case["mutations"].values():
        for part in ("optimistic", "write_result"):
            if part in definition:
                keys.setdefault(canonical(definition[part]["key"]), definition[part]["key"])
    query = {"service": "reads", "path": "/", "retry": 1_000, "retry_delay": "0ms"}
    fresh = {"stale_time": "infinity", "gc_time": "infinity"}
    return {
        "services": {name: {"base_url": f"http://{name}"} for name in services},
        "queries": [{"key": key, **query, **fresh} for key in keys.values()],
        "mutations": {name: declared(each) for name, each in case["mutations"].items()},
    }


def declared(definition: dict[str, Any]) -> dict[str, Any]:
    """Return a definition in the words of a configuration."""
    name = definition["id"]
    mode = definition.get("network_mode", "online")
    service = f"writes-{name}" if mode == "offlineFirst" else "writes"
    made: dict[str, Any] = {"request": {"service": service, "method": "POST", "path": f"/{name}"}}
    if mode == "always":
        made = {"function": f"recorded:{name}"}
    if "scope" in definition:
        made["scope"] = definition["scope"]
    if "retry" in definition:
        made["retry"] = definition["retry"]
    if "retry_delay" in definition:
        made["retry_delay"] = f"{definition['retry_delay']}ms"
    if "optimistic" in definition:
        made["optimistic"] = [operation(definition["optimistic"])]
    if "write_result" in definition:
        made["result"] = [{"set": {"key": definition["write_result"]["key"], "value": "{response}"}}]
    if "invalidate" in definition:
        made["invalidate"] = [definition["invalidate"]["key"]]
    return made


def operation(optimistic: dict[str, Any]) -> dict[str, Any]:
    """Return a recorded updater as an operation; where none is like it, as the call of a function."""
    key = optimistic["key"]
    match optimistic["updater"]:
        case {"kind": "append", "value": value}:
            return {"append": {"key": key, "item": value}}
        case {"kind": "const", "value": value}:
            return {"set": {"key": key, "value": value}}
        case {"kind": kind}:
            return {"call": f"recorded:{kind}", "key": key, "when_missing": "create"}
    raise AssertionError(optimistic)
