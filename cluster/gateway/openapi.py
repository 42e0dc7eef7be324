"""The HTTP API's description (OpenAPI 3.1). It is one thing because it is one document, written in the order in which it is read."""

from typing import Any

from cluster import __version__
from cluster.core.acknowledgement import LEVELS
from cluster.core.gateway_mutations import MAX_DELAY_MS
from cluster.core.mutation import MAX_ID, Status
from cluster.core.presence_room import MAX_TOPIC
from cluster.core.slot_move import MAX_ACTORS
from cluster.wire.backup import CONTENT_TYPE

_KEY = {
    "name": "key",
    "in": "query",
    "required": True,
    "schema": {"type": "string"},
    "description": "a query key, a JSON array",
    "example": '["projects","detail","7"]',
}


def _parameter(name: str, description: str, *, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": required,
        "description": description,
        "schema": {"type": "string", **schema},
    }


def _answer(description: str, schema: str | None = None) -> dict[str, Any]:
    if schema is None:
        return {"description": description}
    return {
        "description": description,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


_ERRORS = {
    "400": "bad request",
    "401": "no credentials that count",
    "403": "no grant, or a page of an origin that may not ask",
    "408": "the request did not come in time",
    "413": "larger than a body, a key, an entry or a mutation's variables may be",
    "414": "too long a request line",
    "429": "too many; LIMITED says when to try again, also in Retry-After",
    "431": "too many or too large headers",
    "503": "unavailable",
    "504": "the cluster did not answer in time",
}
"""What may come of any request."""


def _operation(summary: str, parameters: list[dict[str, Any]], answers: dict[str, Any], **more: Any) -> dict[str, Any]:
    errors = {status: _answer(description, "Error") for status, description in _ERRORS.items()}
    return {"summary": summary, "parameters": parameters, "responses": {**answers, **errors}, **more}


def _act(summary: str, more: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """What can be done with every entry that a filter matches; `more` are further members of the filter."""
    names = {"type": ["all", "active", "inactive"], "fetch_status": ["idle", "fetching", "paused"], **(more or {})}
    schema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "key": {"type": "array"},
            "exact": {"type": "boolean"},
            "stale": {"type": "boolean"},
            **{name: {"enum": choices} for name, choices in names.items()},
        },
    }
    answers = {"200": _answer("how many matched", "Matched")}
    return {"post": _operation(summary, [], answers, **_body(("application/json", schema)))}


def _body(*schemas: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {kind: {"schema": schema} for kind, schema in schemas}}}


_PREFIX = _parameter("prefix", "a key prefix, a JSON array")
_TEXTS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}
"""Of a parameter that may be repeated."""
_MUTATION = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
_CONDITION = [
    _parameter("base_version", "write only over this version (also If-Match)", pattern="^[0-9]+$"),
    _parameter(
        "ack",
        "when to answer: once it is applied (memory), on the disk (durable; the default where there is a store) or on another node",
        enum=list(LEVELS),
    ),
]
_MERGE = _parameter(
    "merge", "where the entry is at another version than base_version, merge with what it is now", enum=["three_way"]
)


def document() -> dict[str, Any]:
    """Return the description."""
    written = {
        "200": _answer("written", "Written"),
        "409": _answer("VERSION_CONFLICT", "Conflict"),
        "404": _answer("no such entry", "Error"),
        "501": _answer("this cluster has no such ack", "Error"),
    }
    entries = {
        "get": _operation(
            "Read an entry; a missing one of a declared query is fetched",
            [
                _KEY,
                _parameter("fetch", "when to ask the service", enum=["auto", "never", "force"]),
                _parameter("page", "load one more page of an infinite list", enum=["next", "previous"]),
            ],
            {
                "200": _answer("the entry", "Entry"),
                "304": _answer("as in If-None-Match"),
                "404": _answer("no such entry", "Error"),
                "502": _answer("the service failed", "Error"),
            },
        ),
        "put": _operation(
            "Replace an entry's data", [_KEY, *_CONDITION, _MERGE], written, **_body(("application/json", {}))
        ),
        "patch": _operation(
            "Edit an entry, all or nothing",
            [_KEY, *_CONDITION],
            written,
            **_body(
                ("application/json-patch+json", {"type": "array", "items": {"type": "object"}}),
                (
                    "application/json",
                    {
                        "type": "object",
                        "required": ["operations"],
                        "properties": {"operations": {"type": "array", "items": {"type": "object"}}},
                    },
                ),
            ),
        ),
        "delete": _operation(
            "Remove an entry",
            [_KEY, *_CONDITION],
            {
                "204": _answer("removed"),
                "404": _answer("no such entry", "Error"),
                "409": _answer("VERSION_CONFLICT", "Conflict"),
                "501": _answer("this cluster has no such ack", "Error"),
            },
        ),
    }
    outcome = {
        "id": {"type": "string"},
        "status": {"enum": list(Status)},
        "result": {"description": "the service's answer"},
        "error": {"type": "object", "description": "why it failed, as in Error"},
    }
    stream = {
        "200": {"description": "server-sent events", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Harbor Cluster",
            "version": __version__,
            "description": "A distributed realtime query cache. The WebSocket protocol is at /v1/socket, subprotocol harbor.v1.",
        },
        "paths": {
            "/v1/entries": entries,
            "/v1/keys": {
                "get": _operation(
                    "List entries",
                    [
                        _PREFIX,
                        _parameter("limit", "rows", pattern="^[0-9]+$"),
                        _parameter("cursor", "from an earlier answer"),
                        _parameter("contains", "only keys with this in their text"),
                        _parameter(
                            "branches",
                            "the elements that follow the prefix, with how many entries are under each, in place of the entries",
                            enum=["false", "true"],
                        ),
                    ],
                    {"200": _answer("rows", "Keys")},
                )
            },
            "/v1/invalidate": _act("Mark entries as out of date", {"refetch": ["active", "inactive", "all", "none"]}),
            "/v1/refetch": _act("Fetch entries again, but for those that were never fetched and that nobody watches"),
            "/v1/reset": _act("Forget entries' data; watched ones are fetched anew"),
            "/v1/cancel": _act("Drop fetches under way; entries are as they were before"),
            "/v1/remove": _act("Remove entries"),
            "/v1/mutations": {
                "post": _operation(
                    "Begin a mutation; repeated with the same id (also Idempotency-Key) it tells how it is",
                    [_parameter("wait", "answer once it is settled, or after 60 s", enum=["false", "true"])],
                    {
                        "200": _answer("how it is", "Outcome"),
                        "403": _answer("no grant", "Error"),
                        "404": _answer("UNKNOWN_MUTATION", "Error"),
                        "409": _answer("its id is another mutation's, or its temporary id was used before", "Error"),
                        "429": _answer("too many wait, or too much", "Error"),
                    },
                    **_body(
                        (
                            "application/json",
                            {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["name", "variables"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "variables": {"type": "object"},
                                    "id": {"type": "string", "minLength": 1, "maxLength": MAX_ID},
                                    "delay_ms": {"type": "number", "minimum": 0, "maximum": MAX_DELAY_MS},
                                },
                            },
                        )
                    ),
                ),
                "get": _operation(
                    "List mutations, oldest first; those that settled over 10 minutes ago may be forgotten",
                    [
                        _parameter("status", f"statuses, with commas between: {', '.join(Status)}"),
                        _parameter("limit", "rows", pattern="^[0-9]+$"),
                        _parameter("cursor", "from an earlier answer"),
                    ],
                    {"200": _answer("those that the caller may begin, or with the admin grant all", "Mutations")},
                ),
            },
            "/v1/mutations/{id}": {
                "get": _operation(
                    "Look at a mutation",
                    [_MUTATION],
                    {"200": _answer("it", "Mutation"), "404": _answer("no such mutation", "Error")},
                ),
                "delete": _operation(
                    "Undo a mutation that was not sent yet",
                    [_MUTATION],
                    {
                        "200": _answer("it, cancelled", "Mutation"),
                        "403": _answer("no grant", "Error"),
                        "404": _answer("no such mutation", "Error"),
                        "409": _answer("it was sent; its status is in details", "Error"),
                    },
                ),
            },
            "/v1/presence": {
                "get": _operation(
                    "List the members of a presence topic",
                    [
                        _parameter("topic", "its name", required=True, minLength=1, maxLength=MAX_TOPIC),
                        _parameter("limit", "rows", pattern="^[0-9]+$"),
                        _parameter("cursor", "from an earlier answer"),
                    ],
                    {"200": _answer("members", "Presence"), "404": _answer("no such topic is declared", "Error")},
                )
            },
            "/v1/stream": {
                "get": _operation(
                    "Follow entries as server-sent events",
                    [
                        _parameter("key", "a query key, a JSON array", **_TEXTS),
                        _parameter("prefix", "a key prefix, a JSON array", **_TEXTS),
                        _parameter("mode", "whole values or patches", enum=["data", "patch"]),
                    ],
                    stream,
                )
            },
            "/v1/missed": {
                "get": _operation(
                    "What changed since a position",
                    [_parameter("since", "a position token", required=True), _parameter("key", "a query key"), _PREFIX],
                    {"200": _answer("changes, or everything", "Missed")},
                )
            },
            "/v1/socket": {
                "get": _operation(
                    "A WebSocket, subprotocol harbor.v1; its messages are described in docs/protocol.md",
                    [],
                    {"101": _answer("switching protocols")},
                )
            },
            "/v1/scale": {
                "post": _operation(
                    "Have other numbers of actors; /v1/cluster shows when it is so",
                    [],
                    {"200": _answer("what was asked for", "Object")},
                    **_body(
                        (
                            "application/json",
                            {
                                "type": "object",
                                "additionalProperties": False,
                                "properties": {
                                    name: {"type": "integer", "minimum": 1, "maximum": most}
                                    for name, most in MAX_ACTORS.items()
                                },
                            },
                        )
                    ),
                )
            },
            "/v1/backup": {
                "post": _operation(
                    "Copy all shards' stores, and stream the copies (docs/reliability.md)",
                    [],
                    {
                        "200": {"description": "frames", "content": {CONTENT_TYPE: {}}},
                        "409": _answer("another is being made", "Error"),
                        "501": _answer("this cluster stores nothing", "Error"),
                    },
                )
            },
            "/v1/cluster": {
                "get": _operation(
                    "What runs where",
                    [_parameter("dead_letters", "whether to add events that came to nothing", enum=["false", "true"])],
                    {"200": _answer("the cluster", "Cluster")},
                )
            },
            "/healthz": {"get": _operation("Alive", [], {"200": _answer("alive")})},
            "/readyz": {"get": _operation("Able to serve", [], {"200": _answer("ready")})},
            "/openapi.json": {"get": _operation("This description", [], {"200": _answer("it", "Object")})},
        },
        "security": [{}, {"key": []}, {"header": []}],
        "components": {
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "an API key, where the cluster asks for one",
                },
                "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
            "schemas": {
                "Entry": {
                    "type": "object",
                    "required": [
                        "key",
                        "data",
                        "version",
                        "data_updated_at",
                        "status",
                        "fetch_status",
                        "is_stale",
                        "is_invalidated",
                        "is_offline",
                    ],
                    "properties": {
                        "key": {"type": "array"},
                        "data": {},
                        "version": {"type": "integer"},
                        "data_updated_at": {"type": "integer", "description": "Unix ms"},
                        "status": {"enum": ["pending", "success", "error"]},
                        "fetch_status": {"enum": ["idle", "fetching", "paused"]},
                        "is_stale": {"type": "boolean"},
                        "is_invalidated": {"type": "boolean"},
                        "is_offline": {"type": "boolean", "description": "its service cannot be reached"},
                        "origin": {
                            "type": ["object", "null"],
                            "description": "where the data came from, and why it is stale",
                        },
                        "error": {"type": "object", "description": "of the last fetch, where it failed"},
                    },
                },
                "Written": {
                    "type": "object",
                    "required": ["version"],
                    "properties": {
                        "version": {"type": "integer"},
                        "merged": {"type": "boolean", "description": "what was written is not what was sent"},
                    },
                },
                "Conflict": {
                    "allOf": [
                        {"$ref": "#/components/schemas/Error"},
                        {
                            "properties": {
                                "error": {"properties": {"details": {"$ref": "#/components/schemas/ConflictDetails"}}}
                            }
                        },
                    ]
                },
                "ConflictDetails": {
                    "type": "object",
                    "required": ["current"],
                    "properties": {
                        "current": {
                            "anyOf": [{"$ref": "#/components/schemas/Entry"}, {"type": "null"}],
                            "description": "what the write met",
                        },
                        "conflicts": {
                            "type": "array",
                            "items": {"type": "string"},
                            "description": "where a merge failed, as JSON Pointers into the data of current",
                        },
                    },
                },
                "Matched": {"type": "object", "required": ["matched"], "properties": {"matched": {"type": "integer"}}},
                "Keys": {
                    "type": "object",
                    "properties": {
                        "keys": {"type": "array", "items": {"type": "object"}},
                        "branches": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["element", "keys", "is_entry"],
                                "properties": {
                                    "element": {"description": "any JSON"},
                                    "keys": {"type": "integer", "description": "entries whose key goes on with it"},
                                    "is_entry": {"type": "boolean", "description": "one ends with it"},
                                },
                            },
                        },
                        "cursor": {"type": "string"},
                    },
                },
                "Presence": {
                    "type": "object",
                    "required": ["topic", "count", "members"],
                    "properties": {
                        "topic": {"type": "string"},
                        "count": {"type": "integer"},
                        "members": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["member", "subject", "state", "last_active"],
                                "properties": {
                                    "member": {"type": "string", "description": "the session"},
                                    "subject": {"type": "string"},
                                    "state": {},
                                    "last_active": {"type": "integer", "description": "Unix ms"},
                                },
                            },
                        },
                        "cursor": {"type": "string"},
                    },
                },
                "Missed": {
                    "type": "object",
                    "required": ["position"],
                    "properties": {
                        "changes": {"type": "array"},
                        "reset": {"type": "boolean"},
                        "entries": {"type": "array"},
                        "position": {"type": "string"},
                    },
                },
                "Outcome": {"type": "object", "required": ["id", "status"], "properties": outcome},
                "Mutation": {
                    "type": "object",
                    "required": ["id", "name", "status", "created_at"],
                    "properties": {
                        **outcome,
                        "name": {"type": "string"},
                        "created_at": {"type": "integer", "description": "Unix ms"},
                        "due_at": {"type": "integer", "description": "Unix ms, when it is sent; where it was delayed"},
                    },
                },
                "Mutations": {
                    "type": "object",
                    "required": ["mutations"],
                    "properties": {
                        "mutations": {"type": "array", "items": {"$ref": "#/components/schemas/Mutation"}},
                        "cursor": {"type": "string"},
                    },
                },
                "Object": {"type": "object"},
                "Cluster": {
                    "type": "object",
                    "required": ["name", "ready"],
                    "properties": {
                        "name": {"type": "string"},
                        "ready": {"type": "boolean"},
                        "dead_letters": {
                            "type": "array",
                            "description": "newest first; where asked for",
                            "items": {"$ref": "#/components/schemas/DeadLetter"},
                        },
                    },
                },
                "DeadLetter": {
                    "type": "object",
                    "description": "an event that came to nothing since something was wrong with it",
                    "required": ["time", "source", "channel", "event", "reason", "detail", "sample", "size_bytes"],
                    "properties": {
                        "time": {"type": "integer", "description": "Unix ms"},
                        "source": {"type": "string"},
                        "channel": {"type": ["string", "null"]},
                        "event": {"type": ["string", "null"], "description": "null where it could not be read"},
                        "reason": {"type": "string", "description": "as in harbor_events_dropped_total"},
                        "detail": {"type": "string"},
                        "sample": {"type": "string", "description": "its first 256 bytes"},
                        "size_bytes": {"type": "integer", "description": "of what the sample begins"},
                    },
                },
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {
                        "error": {
                            "type": "object",
                            "required": ["code", "message", "temporary"],
                            "properties": {
                                "code": {"type": "string"},
                                "message": {"type": "string"},
                                "temporary": {"type": "boolean"},
                                "details": {},
                            },
                        }
                    },
                },
            },
        },
    }
