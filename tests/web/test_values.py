"""What the client makes of values is what the cluster makes of them: patches, operations, keys."""

import copy
import random
from typing import Any

import orjson
import pytest

from cluster.core import json_patch
from cluster.core.entry import Value
from cluster.core.operation import apply_all, parse_operations
from cluster.core.query_key import KeyMatcher, canonical, checked
from cluster.errors import HarborError
from cluster.gateway.pages import WEB
from tests.web.node import Node

NAMES = ["a", "b", "id", "a/b", "m~n", "~1", "", "0", "é", "__proto__", "constructor"]
ROUNDS = 600


def escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


class Maker:
    """Makes values, and what may be done to them, some of which does not fit."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, depth: int = 3) -> Any:
        kind = self.random.randrange(8 if depth else 5)
        match kind:
            case 0:
                return self.random.choice([None, True, False])
            case 1 | 2:
                return self.random.choice([0, 1, -7, 2.5, 10**12])
            case 3 | 4:
                return self.random.choice(["", "x", "é", "a long text"])
            case 5 | 6:
                return {self.random.choice(NAMES): self.value(depth - 1) for _ in range(self.random.randrange(4))}
            case _:
                return [self.item(depth - 1) for _ in range(self.random.randrange(4))]

    def item(self, depth: int) -> Any:
        return (
            {"id": self.random.randrange(4), "v": self.value(max(0, depth - 1))}
            if self.random.random() < 0.6
            else self.value(depth)
        )

    def pointer(self, document: Any) -> str:
        path, value = "", document
        while isinstance(value, dict | list) and self.random.random() < 0.75:
            if isinstance(value, dict):
                name = self.random.choice([*value, self.random.choice(NAMES)])
                path, value = f"{path}/{escaped(name)}", value.get(name)
            else:
                place = self.random.choice([*range(len(value)), "-", len(value), "01", "1e0"])
                path, value = f"{path}/{place}", value[place] if isinstance(place, int) and place < len(value) else None
        return path

    def patch_member(self, document: Any) -> dict[str, Any]:
        op = self.random.choice(["add", "add", "replace", "remove", "move", "copy", "test"])
        member: dict[str, Any] = {"op": op, "path": self.pointer(document)}
        if op in ("add", "replace", "test"):
            member["value"] = self.value(2)
        if op in ("move", "copy"):
            member["from"] = self.pointer(document)
        return member

    def operation(self, document: Any) -> dict[str, Any]:
        kind = self.random.choice(
            ["set", "merge", "append", "prepend", "upsert", "merge_where", "remove", "increment", "delete"]
        )
        args: dict[str, Any] = {}
        if self.random.random() < 0.6 or kind == "increment":
            args["at"] = self.pointer(document)
        if kind in ("set", "merge", "merge_where"):
            args["value"] = (
                self.value(2)
                if kind == "set" or self.random.random() < 0.2
                else {self.random.choice(NAMES): self.value(1)}
            )
        if kind in ("append", "prepend", "upsert"):
            args["item"] = self.item(2)
        if kind in ("append", "prepend") and self.random.random() < 0.5:
            args["max_items"] = self.random.randrange(1, 4)
        if kind in ("merge_where", "remove"):
            args["where"] = {"id": self.random.randrange(4)}
        if kind == "increment" and self.random.random() < 0.5:
            args["by"] = 3
        if kind != "delete" and self.random.random() < 0.3:
            args["when_missing"] = self.random.choice(["skip", "create"])
        return {kind: args}


def patched(document: Any, patch: list[Any]) -> Any:
    try:
        return {"value": json_patch.apply(copy.deepcopy(document), copy.deepcopy(patch))}
    except HarborError:
        return None


@pytest.mark.parametrize("seed", range(3))
async def test_patches_do_what_they_do_on_the_cluster(node: Node, seed: int) -> None:
    make = Maker(seed)
    cases = []
    for _ in range(ROUNDS):
        document = make.value()
        patch: list[Any] = []
        for _ in range(make.random.randrange(1, 5)):
            now = patched(document, patch)
            patch.append(make.patch_member(document if now is None else now["value"]))
        cases.append([document, patch, patched(document, patch)])
    assert sum(case[2] is not None for case in cases) > ROUNDS / 5, "most do not fit"
    wrong = await node.run(
        """
        const text = (value) => client.hashKey([value]);
        return args.cases.filter(([document, patch, expected]) => {
          const before = text(document);
          let found = null;
          try { found = { value: client.applyPatch(document, patch) }; } catch (error) { if (!(error instanceof TypeError)) throw error; }
          return text(found) !== text(expected) || text(document) !== before;
        }).slice(0, 3);
        """,
        cases=cases,
    )
    assert wrong == []


@pytest.mark.parametrize("seed", range(3))
async def test_operations_do_what_they_do_on_the_cluster(node: Node, seed: int) -> None:
    make = Maker(seed)
    cases = []
    for number in range(ROUNDS):
        absent = number % 10 == 0
        document = None if absent else make.value()
        operation = make.operation(document)
        (parsed,) = parse_operations([operation])
        applied = apply_all([parsed], None if absent else Value.from_object(copy.deepcopy(document))).value
        cases.append([absent, document, operation, None if applied is None else {"value": applied.object()}])
    wrong = await node.run(
        """
        const text = (value) => client.hashKey([value]);
        return args.cases.filter(([absent, document, operation, expected]) => {
          const before = text(document);
          const found = client.applyOperation(absent ? undefined : document, operation);
          return text(found === undefined ? null : { value: found }) !== text(expected) || text(document) !== before;
        }).slice(0, 3);
        """,
        cases=cases,
    )
    assert wrong == []


async def test_what_a_patch_does_not_touch_keeps_its_identity(node: Node) -> None:
    assert (
        await node.run(
            """
        const old = { list: [{ id: 1, deep: { x: 1 } }, { id: 2, deep: {} }], other: { y: [1] } };
        const next = client.applyPatch(old, [{ op: 'replace', path: '/list/0/deep/x', value: 2 }, { op: 'add', path: '/list/-', value: 3 }]);
        const whole = client.applyPatch(old, [{ op: 'replace', path: '', value: { ...JSON.parse(JSON.stringify(old)), other: 5 } }]);
        const twice = client.applyPatch({ a: { x: 1 } }, [
          { op: 'replace', path: '/a/x', value: 2 }, { op: 'copy', from: '/a', path: '/b' }, { op: 'replace', path: '/a/x', value: 3 },
        ]);
        return [
          next.list[0] !== old.list[0], next.list[1] === old.list[1], next.other === old.other, old.list.length === 2,
          whole.list === old.list, client.applyPatch(old, []) === old, twice.b.x === 2 && twice.a.x === 3,
          client.share(old, JSON.parse(JSON.stringify(old))) === old, client.share([1, { a: 1 }], [1, { a: 1 }, 2]).length === 3,
          !Object.hasOwn(client.share({ a: 1 }, { b: 1 }), 'a'), ({}).polluted === undefined,
        ];
        """
        )
        == [True] * 11
    )


async def test_a_member_named_as_the_prototype_is_a_member(node: Node) -> None:
    assert (
        await node.run(
            """
        const next = client.applyPatch({}, [{ op: 'add', path: '/__proto__', value: { polluted: true } }]);
        const shared = client.share({ a: 1 }, JSON.parse('{"a": 2, "__proto__": {"polluted": true}}'));
        const merged = client.applyOperation({ a: 1 }, { merge: { value: JSON.parse('{"__proto__": {"polluted": true}}') } });
        return [next, shared, merged].map((each) => [Object.hasOwn(each, '__proto__'), each.polluted === undefined, ({}).polluted === undefined]);
        """
        )
        == [[True] * 3] * 3
    )


async def test_keys_are_hashed_and_matched_as_on_the_cluster(node: Node) -> None:
    make = Maker(5)
    keys = [[make.value(2), make.value(2)] for _ in range(200)]
    keys += [
        ["projects", {"status": "open", "page": 2}],
        ["projects"],
        [],
        ["projects", {"status": "open"}],
        ["projects", 1.0],
    ]
    pairs = [(make.random.choice(keys), make.random.choice(keys)) for _ in range(500)]
    pairs += [(["projects", {"status": "open"}], ["projects", {"page": 2, "status": "open"}]), ([], ["x"]), (["x"], [])]
    found = await node.run(
        "return [args.keys.map(client.hashKey), args.pairs.map(([prefix, key]) => client.matches(prefix, key))]",
        keys=keys,
        pairs=pairs,
    )
    assert [orjson.loads(each) for each in found[0]] == keys
    assert found[0] == [canonical(checked(key)) for key in keys]
    expected = [KeyMatcher(checked(prefix)).matches(canonical(checked(key)), checked(key)) for prefix, key in pairs]
    assert [pair for pair, a, b in zip(pairs, found[1], expected, strict=True) if a != b] == []


async def test_the_console_marks_all_that_was_appended_at_once(node: Node) -> None:
    appended = {"op": "add", "path": "/tasks/-", "value": {}}
    patch = [
        appended,
        {"op": "add", "path": "/tags/-", "value": "x"},
        {"op": "replace", "path": "/version", "value": 2},
        {"op": "remove", "path": "/gone"},
        appended,
    ]
    found = await node.run(
        "const { touchedBy } = await import(args.script); return [...touchedBy(args.patch, args.value)]",
        script=(WEB / "console" / "value.js").as_uri(),
        patch=patch,
        value={"tasks": [{}, {}, {}], "tags": ["x"], "version": 2},
    )
    assert sorted(found) == ["\0", "/tags/0", "/tasks/1", "/tasks/2", "/version"]
