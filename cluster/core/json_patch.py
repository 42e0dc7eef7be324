"""JSON Patch (RFC 6902): applying one.

Patches are made by what operations did (`operation`), never by comparing documents. `apply` edits in place; who must not keep half
of a patch that fails gives it a copy.
"""

import math
from typing import Any

import orjson

from cluster.core.entry import MAX_DEPTH, written_bytes
from cluster.core.json_pointer import index, resolve, step, tokens
from cluster.core.operation import json_equal
from cluster.core.work import MAX_STEPS, SHIFTED, Work, check_count
from cluster.errors import ErrorCode, OperationError, RequestError

MAX_COPIED_BYTES = 4 * 1024 * 1024
"""What the copies of one patch may add up to. A patch that copies the whole into a part doubles it with every operation."""


def apply(document: Any, patch: Any, *, max_copied_bytes: int | None = MAX_COPIED_BYTES) -> Any:
    """Apply a patch to `document`, editing it, and return the result.

    `max_copied_bytes`: None for patches that were applied before, of which several may have been joined.

    Raises:
        RequestError: `BAD_REQUEST`, naming the operation by its index; the document may be half edited.
        LimitError: `TOO_LARGE`, it has too many operations, or they take too much work; the same.
    """
    if not isinstance(patch, list):
        raise RequestError(ErrorCode.BAD_REQUEST, "a JSON Patch is an array of operations")
    if max_copied_bytes is not None:
        check_count(len(patch))
    budget = _Budget(max_copied_bytes)
    for position, operation in enumerate(patch):
        try:
            document = _apply_one(document, operation, budget)
        except OperationError as error:
            raise RequestError(ErrorCode.BAD_REQUEST, f"{position}: {error.message}") from error
    return document


class _Budget:
    """Bytes that may still be copied, and the work that may be done."""

    __slots__ = ("left", "work")

    def __init__(self, limit: int | None) -> None:
        self.left = math.inf if limit is None else limit
        self.work = Work() if limit is None else Work(MAX_STEPS)


def _apply_one(document: Any, operation: Any, budget: _Budget) -> Any:
    if not isinstance(operation, dict):
        raise OperationError(f"an operation is an object, got {operation!r:.60}")
    op = operation.get("op")
    path = _pointer(operation, "path")
    match op:
        case "add":
            return _add(document, path, _placeable(_value(operation), path, budget.work), budget.work)
        case "remove":
            return _remove(document, path, budget.work)[0]
        case "replace":
            value = _placeable(_value(operation), path, budget.work)
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
            document, value = _remove(document, source, budget.work)
            if len(path) > len(source):  # else it can be written there as it could before
                _placeable(value, path, budget.work)
            return _add(document, path, value, budget.work)
        case "copy":
            value = resolve(document, _pointer(operation, "from"))
            return _add(document, path, _copied(value, path, budget), budget.work)
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


def _add(document: Any, path: tuple[str, ...], value: Any, work: Work) -> Any:
    if not path:
        return value
    parent = resolve(document, path[:-1])
    if isinstance(parent, dict):
        parent[path[-1]] = value
    elif isinstance(parent, list):
        work.spend(len(parent) // SHIFTED)
        parent.insert(index(path[-1], len(parent)), value)
    else:
        raise OperationError(f"{path[-1]!r} leads into a value that is neither object nor array")
    return document


def _remove(document: Any, path: tuple[str, ...], work: Work) -> tuple[Any, Any]:
    if not path:
        return None, document
    parent = resolve(document, path[:-1])
    value = step(parent, path[-1])
    if isinstance(parent, dict):
        del parent[path[-1]]
    else:
        work.spend(len(parent) // SHIFTED)
        del parent[index(path[-1], len(parent))]
    return document, value


def _placeable(value: Any, path: tuple[str, ...], work: Work) -> Any:
    if isinstance(value, dict | list):
        size = written_bytes(value, len(path))
        work.spend(size // SHIFTED)
        if not size:
            raise OperationError(f"deeper than {MAX_DEPTH} levels")
    return value


def _copied(value: Any, path: tuple[str, ...], budget: _Budget) -> Any:
    json = orjson.dumps(_placeable(value, path, budget.work))
    budget.left -= len(json)
    if budget.left < 0:
        raise OperationError("the copies of a patch add up to too much")
    return orjson.loads(json)
