"""Templates: JSON values and texts with placeholders such as `{id}`, `{data.task.id}` or `{item.value}`.

A placeholder that is a whole string stands for a value and keeps its JSON type; inside a longer string it is written as text. Key and
channel templates also work backwards: given a key, `match` says what the placeholders must have been.

What must not live here: where values come from (`rule`, `declared_query`).
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from msgspec import Struct

from cluster.core.operation import json_equal
from cluster.core.query_key import number_text, partial_match
from cluster.errors import OperationError

Path = tuple[str, ...]
"""A placeholder's name, split at its dots."""
Lookup = Callable[[Path], Any]
"""Gives a placeholder's value; raises `MissingCapture` where there is none."""

_HOLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)*)\}")


class MissingCapture(Exception):  # noqa: N818 - an outcome that callers count
    """A placeholder has no value."""


class Hole(Struct, frozen=True):
    """A placeholder that is a whole value."""

    path: Path


class Text(Struct, frozen=True):
    """A string with placeholders in it."""

    parts: tuple[str | Path, ...]
    """Literal pieces and placeholders, in turn."""


class Literal(Struct, frozen=True):
    """A value without placeholders."""

    value: Any


class ListNode(Struct, frozen=True):
    """An array with placeholders somewhere inside."""

    items: tuple["Node", ...]


class DictNode(Struct, frozen=True):
    """An object with placeholders somewhere inside."""

    members: tuple[tuple[str, "Node"], ...]


Node = Hole | Text | Literal | ListNode | DictNode


def parse(value: Any) -> Node:
    """Compile a JSON value."""
    if isinstance(value, str):
        whole = _HOLE.fullmatch(value)
        if whole is not None:
            return Hole(tuple(whole[1].split(".")))
        parts: list[str | Path] = []
        last = 0
        for match in _HOLE.finditer(value):
            parts.extend((value[last : match.start()], tuple(match[1].split("."))))
            last = match.end()
        return Text((*parts, value[last:])) if parts else Literal(value)
    if isinstance(value, list):
        items = tuple(parse(item) for item in value)
        return Literal(value) if all(isinstance(item, Literal) for item in items) else ListNode(items)
    if isinstance(value, dict):
        members = tuple((name, parse(member)) for name, member in value.items())
        return Literal(value) if all(isinstance(member, Literal) for _, member in members) else DictNode(members)
    return Literal(value)


def holes(node: Node) -> Iterator[Path]:
    """Yield the placeholders of a template."""
    match node:
        case Hole(path=path):
            yield path
        case Text(parts=parts):
            yield from (part for part in parts if isinstance(part, tuple))
        case ListNode(items=items):
            for item in items:
                yield from holes(item)
        case DictNode(members=members):
            for _, member in members:
                yield from holes(member)
        case Literal():
            return


def build(node: Node, lookup: Lookup) -> Any:
    """Fill a template in.

    Raises:
        MissingCapture: a placeholder has no value.
    """
    match node:
        case Literal(value=value):
            return value
        case Hole(path=path):
            return lookup(path)
        case Text(parts=parts):
            return "".join(part if isinstance(part, str) else as_text(lookup(part)) for part in parts)
        case ListNode(items=items):
            return [build(item, lookup) for item in items]
        case DictNode(members=members):
            return {name: build(member, lookup) for name, member in members}


def as_text(value: Any) -> str:
    """Write a scalar inside a longer string.

    Raises:
        MissingCapture: it is no scalar, or null.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number_text(value)
    raise MissingCapture


def substitute(node: Node, known: dict[str, Any]) -> Node:
    """Fill in the placeholders whose first name is known, and keep the rest."""

    def lookup(path: Path) -> Any:
        value = known[path[0]]
        for name in path[1:]:
            if not isinstance(value, dict) or name not in value:
                raise MissingCapture
            value = value[name]
        return value

    paths = list(holes(node))
    if paths and all(path[0] in known for path in paths):
        return Literal(build(node, lookup))
    match node:
        case Text(parts=parts):
            filled: list[str | Path] = []
            for part in parts:
                piece = as_text(lookup(part)) if isinstance(part, tuple) and part[0] in known else part
                if isinstance(piece, str) and filled and isinstance(filled[-1], str):
                    filled[-1] += piece
                else:
                    filled.append(piece)
            return Text(tuple(filled))
        case ListNode(items=items):
            return ListNode(tuple(substitute(item, known) for item in items))
        case DictNode(members=members):
            return DictNode(tuple((name, substitute(member, known)) for name, member in members))
        case _:
            return node


def renamed(node: Node, rename: Callable[[Path], Path]) -> Node:
    """Return the template with other names in its placeholders."""
    match node:
        case Hole(path=path):
            return Hole(rename(path))
        case Text(parts=parts):
            return Text(tuple(part if isinstance(part, str) else rename(part) for part in parts))
        case ListNode(items=items):
            return ListNode(tuple(renamed(item, rename) for item in items))
        case DictNode(members=members):
            return DictNode(tuple((name, renamed(member, rename)) for name, member in members))
        case _:
            return node


def match(node: Node, value: Any, captures: dict[Path, Any], *, under: bool = False) -> bool:
    """Whether a template can have given `value`; what its placeholders then were is added to `captures`.

    With `under` it is enough that the template can have given a prefix of `value`, as `query_key.partial_match` has it: shorter arrays
    and objects with fewer members, at every depth.
    """
    match node:
        case Literal(value=literal):
            return partial_match(value, literal) if under else json_equal(literal, value)
        case Hole(path=path):
            if path in captures:
                return json_equal(captures[path], value)
            captures[path] = value
            return True
        case Text():
            return isinstance(value, str) and match_text(node, value, captures)
        case ListNode(items=items):
            if not isinstance(value, list) or len(items) > len(value) or (len(items) < len(value) and not under):
                return False
            return all(match(item, element, captures, under=under) for item, element in zip(items, value, strict=False))
        case DictNode(members=members):
            if not isinstance(value, dict) or (len(members) != len(value) and not under):
                return False
            return all(name in value and match(member, value[name], captures, under=under) for name, member in members)


def match_text(node: Node, text: str, captures: dict[Path, Any]) -> bool:
    """As `match`, for a text template; a placeholder takes as little as it can, and at least one character."""
    if isinstance(node, Literal):
        return bool(node.value == text)
    if isinstance(node, Hole):
        return match(node, text, captures)
    assert isinstance(node, Text)
    pattern = "".join("(.+?)" if isinstance(part, tuple) else re.escape(part) for part in node.parts)
    found = re.fullmatch(pattern, text, re.DOTALL)
    if found is None:
        return False
    paths = [part for part in node.parts if isinstance(part, tuple)]
    return all(match(Hole(path), group, captures) for path, group in zip(paths, found.groups(), strict=True))


def respelled(value: Any, rename: Callable[[Path], Path]) -> Any:
    """Return a JSON value with other names in its placeholders, still to be compiled."""
    if isinstance(value, str):
        return _HOLE.sub(lambda hole: f"{{{'.'.join(rename(tuple(hole[1].split('.'))))}}}", value)
    if isinstance(value, list):
        return [respelled(item, rename) for item in value]
    if isinstance(value, dict):
        return {name: respelled(member, rename) for name, member in value.items()}
    return value


_ONE, _MORE = object(), object()
"""Any character; any number of them."""


def overlaps(one: Node, other: Node) -> bool:
    """Whether some text fits both of two text templates, whose placeholders stand for anything of at least one character."""
    ours, theirs = _pattern(one), _pattern(other)
    # Whether what is left of both from there on can be the same: filled in from their ends.
    fits = [[False] * (len(theirs) + 1) for _ in range(len(ours) + 1)]
    fits[-1][-1] = True
    for i in range(len(ours), -1, -1):
        for j in range(len(theirs), -1, -1):
            mine, its = ours[i : i + 1], theirs[j : j + 1]
            if mine == [_MORE] or its == [_MORE]:
                fits[i][j] = bool(mine and fits[i + 1][j]) or bool(its and fits[i][j + 1])
            elif mine and its and (mine == its or _ONE in (*mine, *its)):
                fits[i][j] = fits[i + 1][j + 1]
    return fits[0][0]


def _pattern(node: Node) -> list[Any]:
    match node:
        case Text(parts=parts):
            pieces: list[str | Path] = list(parts)
        case Literal(value=value):
            pieces = [str(value)]
        case _:
            pieces = list(holes(node))
    return [sign for piece in pieces for sign in (piece if isinstance(piece, str) else (_ONE, _MORE))]


def compatible(node: Node, prefix: Any) -> bool:
    """Whether some key that a template gives is under `prefix`."""
    match node:
        case Hole() | Text():
            return isinstance(node, Hole) or isinstance(prefix, str)
        case Literal(value=literal) if not isinstance(literal, list | dict):
            return json_equal(literal, prefix)
        case Literal(value=literal):
            return compatible(_opened(literal), prefix)
        case ListNode(items=items):
            if not isinstance(prefix, list) or len(prefix) > len(items):
                return False
            return all(compatible(item, element) for item, element in zip(items, prefix, strict=False))
        case DictNode(members=members):
            given = dict(members)
            if not isinstance(prefix, dict):
                return False
            return all(name in given and compatible(given[name], wanted) for name, wanted in prefix.items())


T = TypeVar("T")


class HeadIndex(Generic[T]):
    """Things that belong to key templates, found by a key's first element, which tells most of them apart."""

    __slots__ = ("_by_head", "_open")

    def __init__(self, things: Iterable[tuple[Node, T]]) -> None:
        self._by_head: dict[str, list[T]] = {}
        self._open: list[T] = []
        for node, thing in things:
            first = head(node)
            if first is None:
                self._open.append(thing)
                for among in self._by_head.values():
                    among.append(thing)
            else:
                self._by_head.setdefault(first, [*self._open]).append(thing)

    def candidates(self, key: list[Any]) -> list[T]:
        """Return, in the order given, those whose template a key may match; not to be changed."""
        first = key[0] if key else None
        return self._by_head.get(first, self._open) if isinstance(first, str) else self._open


def head(node: Node) -> str | None:
    """Return the text that every key of a template begins with; None: it may begin with others."""
    match node:
        case ListNode(items=(Literal(value=str(first)), *_)) | Literal(value=[str(first), *_]):
            return first
        case _:
            return None


def _opened(literal: Any) -> Node:
    if isinstance(literal, list):
        return ListNode(tuple(Literal(item) for item in literal))
    if isinstance(literal, dict):
        return DictNode(tuple((name, Literal(member)) for name, member in literal.items()))
    raise OperationError("only containers open")
