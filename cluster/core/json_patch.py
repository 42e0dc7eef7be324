"""JSON Patch (RFC 6902): applying one.

Patches are made by what operations did (`operation`), never by comparing documents. `apply` edits in place; who must not keep half
of a patch that fails gives it a copy.
"""

from typing import Any

from cluster.core.json_pointer import index, resolve, step, tokens
from cluster.core.operation import json_equal
from cluster.errors import ErrorCode, OperationError, RequestError


def apply(document: Any, patch: Any) -> Any:
    """Apply a patch to `document`, editing it, and return the result.

    Raises:
        RequestError: `BAD_REQUEST`, naming the operation by its index; the document may be half edited.
    """
    if not isinstance(patch, list):
        raise RequestError(ErrorCode.BAD_REQUEST, "a JSON Patch is an array of operations")
    for position, operation in enumerate(patch):
        try:
            document = _apply_one(document, operation)
        except OperationError as error:
            raise RequestError(ErrorCode.BAD_REQUEST, f"{position}: {error.message}") from error
    return document


def _apply_one(document: Any, operation: Any) -> Any:
    if not isinstance(operation, dict):
        raise OperationError(f"an operation is an object, got {operation!r:.60}")
    op = operation.get("op")
    path = _pointer(operation, "path")
    match op:
        case "add":
            return _add(document, path, _value(operation))
        case "remove":
            return _remove(document, path)[0]
        case "replace":
            value = _value(operation)
            if not path:
                return value
            parent = resolve(document, path[:-1])
            step(parent, path[-1])
            if isinstance(parent, dict):
                parent[path[-1]] = value
            else:
                parent[index(path[-1], len(parent))] = value
            return document
        case "move":
            source = _pointer(operation, "from")
            if path[: len(source)] == source and len(path) > len(source):
                raise OperationError("a value cannot be moved into itself")
            document, value = _remove(document, source)
            return _add(document, path, value)
        case "copy":
            return _add(document, path, _copied(resolve(document, _pointer(operation, "from"))))
        case "test":
            if not json_equal(resolve(document, path), _value(operation)):
                raise OperationError(f"test of {operation['path']!r} failed")
            return document
        case _:
            raise OperationError(f"'op' is add, remove, replace, move, copy or test, got {op!r:.60}")


def _pointer(operation: dict[str, Any], name: str) -> tuple[str, ...]:
    pointer = operation.get(name)
    if not isinstance(pointer, str):
        raise OperationError(f"{name!r} is a JSON Pointer, got {pointer!r:.60}")
    return tokens(pointer)


def _value(operation: dict[str, Any]) -> Any:
    if "value" not in operation:
        raise OperationError(f"{operation['op']!r} needs a 'value'")
    return operation["value"]


def _add(document: Any, path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    parent = resolve(document, path[:-1])
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif isinstance(parent, list):
        parent.insert(index(path[-1], len(parent)), value)
    else:
        raise OperationError(f"{path[-1]!r} leads into a value that is neither object nor array")
    return document


def _remove(document: Any, path: tuple[str, ...]) -> tuple[Any, Any]:
    if not path:
        return None, document
    parent = resolve(document, path[:-1])
    value = step(parent, path[-1])
    if isinstance(parent, dict):
        del parent[path[-1]]
    else:
        del parent[index(path[-1], len(parent))]
    return document, value


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _copied(member) for name, member in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
