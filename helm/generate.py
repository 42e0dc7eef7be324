"""Writes what of the chart follows from something else: `python -m helm.generate`; a test compares.

README.md             its table of values, from values.yaml and its comments
values.schema.json    from values.yaml, and what `harbor.yaml` may hold
files/                copies of Grafana's dashboards and Prometheus' rules, since a chart reads nothing outside itself
"""

import json
import re
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parent
GRAFANA = CHART.parent / "grafana"
MARK = "## Values\n"
FREE = {
    "affinity",
    "annotations",
    "labels",
    "monitoringNamespace",
    "nodeSelector",
    "podAnnotations",
    "podLabels",
    "podSecurityContext",
    "resources",
    "securityContext",
}
"""Values whose members are Kubernetes' or the user's."""
CHOICES = {
    "mode": ["static", "kuberay", "external"],
    "auth.mode": ["api_keys", "jwt"],
    "image.pullPolicy": ["Always", "IfNotPresent", "Never"],
    "gateways.service.type": ["ClusterIP", "NodePort", "LoadBalancer"],
}
PATTERNS = {
    "fullnameOverride": "^([a-z]([-a-z0-9]{0,38}[a-z0-9])?)?$",
    "auth.jwt.jwksUrl": "^(https?://[^ ]+)?$",
    "auth.jwt.secret": r"^(\$\{[A-Za-z_][A-Za-z0-9_]*\})?$",
    "app": r"^([\w.]+:[\w.]+)?$",
    "external.address": "^([^ :]+:[0-9]+)?$",
    "ray.redis.address": "^([^ :]+:[0-9]+)?$",
    "gateways.drain": "^[0-9]+(ms|s|m)$",
    "gateways.autoscaling.coolDown": "^[0-9]*[1-9][0-9]*(ms|s|m|h)$",
}
ITEMS = {
    "accessModes": "string",
    "algorithms": "string",
    "audience": "string",
    "hosts": "string",
    "hostnames": "string",
    "pullSecrets": "string",
}
"""Of lists that are empty or could be: what is in them; others hold objects."""
CONFIG: dict[str, Any] = {
    "cluster": {
        "name": "string",
        "shards": "integer",
        "coordinators": "integer",
        "ingestors": ["integer", {"min": "integer", "max": "integer", "target": "number", "cool_down": "string"}],
        "replicas": "integer",
    },
    "batching": {"window": "string", "max_wait": "string", "mode": "string"},
    "gateway": {
        **dict.fromkeys(("origins", "trusted_proxies"), "array"),
        **dict.fromkeys(("hsts", "outbox", "tenant_claim", "token_secret"), "string"),
        "limits": {
            **dict.fromkeys(
                (
                    *("frame", "body", "request_line", "header", "headers", "buffers"),
                    *("hello_within", "head_within", "body_within", "idle"),
                ),
                "string",
            ),
            **dict.fromkeys(
                (
                    *("header_count", "subscriptions", "connections", "connections_per_address"),
                    *("sessions_per_address", "sessions_per_subject", "streams"),
                ),
                "integer",
            ),
            **dict.fromkeys(("commands", "commands_burst", "requests_burst", "presence_updates"), "number"),
            "requests": ["number", "null"],
        },
    },
    "storage": {
        "sync": "string",
        "wait": "string",
        "history": {"max_bytes": "string", "max_age": "string"},
    },
    "cache": {"max_bytes": ["string", "null"], "max_entries": ["integer", "null"]},
    "defaults": {
        "stale_time": "string",
        "gc_time": "string",
        "offline_time": "string",
        "retry": ["integer", "boolean"],
    },
    "services": {
        "*": {"base_url": "string", "headers": "object", "timeout": "string", "concurrency": "integer"},
    },
    "queries": [
        {
            "key": "array",
            **dict.fromkeys(
                ("service", "path", "function", "gc_time", "stale_time", "offline_time", "refetch_interval"), "string"
            ),
            "infinite": "object",
            **dict.fromkeys(("params", "retry", "retry_delay", "persist", "as_of"), None),
        }
    ],
    "sources": {
        "*": {
            **dict.fromkeys(("type", "url", "dialect", "missed", "namespace", "overflow", "transport"), "string"),
            **dict.fromkeys(("envelope", "headers", "reconnect"), "object"),
            **dict.fromkeys(
                ("auth", "heartbeat", "max_buffer", "max_frame", "max_rate", "partitions", "subscribe", "unsubscribe"),
                None,
            ),
        }
    },
    "streams": [
        {
            **dict.fromkeys(("source", "channel", "join", "linger"), "string"),
            **dict.fromkeys(("on", "true", "batching", "transform"), "object"),  # Helm reads `on` as YAML 1.1 does
            "max_rate": "number",
        }
    ],
    "entities": "object",
    "relations": "object",
    "mutations": {
        "*": {
            "request": {
                **dict.fromkeys(("service", "method", "path"), "string"),
                **dict.fromkeys(("params", "body"), None),
                "omit": "array",
            },
            "confirm_on": {"stream": "string", "event": "string", "where": "object"},
            **dict.fromkeys(
                (
                    *("function", "scope", "temp_id", "response_id", "rollback", "conflict"),
                    *("retry_delay", "delay", "max_age"),
                ),
                "string",
            ),
            **{name: ["object", "array"] for name in ("optimistic", "result", "variables")},
            "invalidate": "array",
            "retry": ["integer", "boolean"],
        }
    },
    "presence": {"*": {"heartbeat": "string", "timeout": "string"}},
    "resources": {
        "*": {
            **dict.fromkeys(("service", "path", "id", "stale_time", "gc_time", "offline_time"), "string"),
            "lists": "array",
            "stream": {
                **dict.fromkeys(("source", "channel"), "string"),
                "events": dict.fromkeys(("created", "updated", "deleted"), "string"),
            },
        }
    },
}
"""`harbor.yaml`, without what the chart sets: a mapping's members, `*` for any name, a list's items, types; None: not looked at."""


def _config(of: Any) -> dict[str, Any]:
    if of is None:
        return {}
    if isinstance(of, str):
        return {"type": of}
    if isinstance(of, list) and len(of) == 1:
        return {"type": "array", "items": _config(of[0])}
    if isinstance(of, list):
        return {"anyOf": [_config(each) for each in of]}
    if "*" in of:
        return {"type": "object", "additionalProperties": _config(of["*"])}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: _config(member) for name, member in of.items()},
    }


def _schema(path: str, value: Any) -> dict[str, Any]:
    name = path.rpartition(".")[2]
    if path == "config":
        return _config(CONFIG)
    if path in CHOICES:
        return {"enum": CHOICES[path]}
    if isinstance(value, dict):
        if name in FREE:
            return {"type": "object"}
        members = {each: _schema(f"{path}.{each}" if path else each, member) for each, member in value.items()}
        return {"type": "object", "additionalProperties": False, "properties": members}
    if isinstance(value, list):
        return {"type": "array", "items": {"type": ITEMS.get(name, "object")}}
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer", "minimum": 0}
    return {"type": "string", **({"pattern": PATTERNS[path]} if path in PATTERNS else {})}


def schema() -> str:
    """Return values.schema.json."""
    made = _schema("", yaml.safe_load((CHART / "values.yaml").read_text()))
    made["properties"]["global"] = {"type": "object"}
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **made}, indent=1) + "\n"


def _rows() -> list[tuple[str, str, str]]:
    """Return (path, default, comment) for each value; a comment stands above what it is about."""
    rows: list[tuple[str, str, str]] = []
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in (CHART / "values.yaml").read_text().splitlines():
        stripped = line.strip()
        if not stripped:
            comment = []
        elif stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
        elif found := re.match(r"( *)([\w./]+):(.*)$", line):
            depth = len(found[1])
            parents = [each for each in parents if each[0] < depth]
            path = ".".join([*(name for _, name in parents), found[2]])
            if found[3].strip() or comment:
                rows.append((path, found[3].strip(), " ".join(comment)))
            parents.append((depth, found[2]))
            comment = []
    return rows


def readme() -> str:
    """Return README.md: what is written there by hand, and the table."""
    head = (CHART / "README.md").read_text().partition(MARK)[0]
    rows = "\n".join(
        f"| `{path}` | {f'`{default}`' if default else ''} | {comment.replace('|', '&#124;')} |"
        for path, default, comment in _rows()
    )
    return f"{head}{MARK}Made by `python -m helm.generate` from values.yaml; a test compares.\n\n| value | default | |\n|---|---|---|\n{rows}\n"


def files() -> dict[str, str]:
    """Return what belongs into files/, by name."""
    made = {path.name: path.read_text() for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
    return {**made, "rules.yaml": (GRAFANA / "rules" / "harbor.yaml").read_text()}


def main() -> None:
    """Write all of it."""
    (CHART / "values.schema.json").write_text(schema())
    (CHART / "README.md").write_text(readme())
    for path in (CHART / "files").glob("*"):
        path.unlink()
    for name, text in files().items():
        (CHART / "files" / name).write_text(text)


if __name__ == "__main__":
    main()
