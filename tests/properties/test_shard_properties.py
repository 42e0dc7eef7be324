"""Whatever is done to a shard, those who watch come to see what is there, and those who ask are answered."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from cluster.core import broadcast, shard_state, sweep
from cluster.core.declared_query import FetchRequest, Response
from cluster.core.memory import DECODED, ENTRY_BYTES
from cluster.core.messages import Act, Edit, EntryView, Erase, FeedRange, Read, Write
from cluster.core.operation import Append, Delete, Increment, Invalidate, Merge, Missing, Set
from cluster.errors import UpstreamError
from cluster.gateway.server import ACTIONS
from tests.core.shard import DOCUMENT, DOWN, Shard

SERVED: dict[str, Any] = {
    **DOCUMENT,
    "services": {"api": {"base_url": "http://api", "concurrency": 3}, "other": {"base_url": "http://other"}},
    "queries": [
        {"key": ["q", "{id}"], "service": "api", "path": "/q/{id}", "stale_time": "10s", "gc_time": "60s", "retry": 1},
        {"key": ["users", "{id}"], "service": "other", "path": "/u/{id}", "retry": 0, "refetch_interval": "40s"},
        {"key": ["list"], "service": "api", "path": "/list", "retry": 0, "infinite": {"page_size": 2, "max_pages": 3}},
    ],
    "entities": {"user": {"keys": ["userId"], "objects": ["author"], "queries": [["users"], ["list"]]}},
    "relations": {"user": [["users", "{id}"], {"contains": "user:{id}"}]},
}
NAMES = ['["q",1]', '["q",2]', '["users",1]', '["users",2]', '["list"]', '["plain"]', '["plain","user:1"]']
WATCHES = [*[(name, False) for name in NAMES], ("[]", True), ('["q"]', True), ('["users"]', True), ('["plain"]', True)]
USERS = st.fixed_dictionaries({"id": st.integers(1, 3)}, optional={"n": st.integers(0, 2)})
VALUES = st.one_of(
    st.integers(0, 2),
    st.lists(USERS, max_size=3),
    USERS,
    st.fixed_dictionaries({"userId": st.integers(1, 3)}, optional={"author": USERS, "n": st.integers(0, 2)}),
)
names, numbers = st.sampled_from(NAMES), st.integers(0, 30)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("watch"), st.sampled_from(WATCHES)),
        st.tuples(st.just("unwatch"), numbers),
        st.tuples(st.just("read"), names, st.sampled_from(["auto", "force", "never"])),
        st.tuples(st.just("page"), st.sampled_from(["next", "previous"])),
        st.tuples(st.just("answer"), numbers, VALUES, st.sampled_from([None, '"v1"', '"v2"'])),
        st.tuples(st.just("answer"), numbers, VALUES, st.none()),
        st.tuples(
            st.just("fail"), numbers, st.sampled_from([DOWN, UpstreamError("gone", status=404, retryable=False)])
        ),
        st.tuples(st.just("write"), names, VALUES),
        st.tuples(st.just("edit"), names, VALUES),
        st.tuples(st.just("erase"), names),
        st.tuples(
            st.just("operate"),
            names,
            st.one_of(
                VALUES.map(lambda value: Set(orjson.dumps(value))),
                USERS.map(lambda user: Append((orjson.dumps(user),), missing=Missing.CREATE)),
                USERS.map(lambda user: Append((orjson.dumps(user),), "/pages/0")),
                USERS.map(lambda user: Merge(orjson.dumps(user))),
                st.just(Increment("/n")),
                st.just(Delete()),
                st.just(Delete("/n")),
                st.builds(Invalidate, st.just(True), st.sampled_from(["active", "all", "none"])),
            ),
        ),
        st.tuples(st.just("entity"), st.integers(1, 3), st.integers(0, 2)),
        st.tuples(st.just("relation"), st.integers(1, 3), st.sampled_from(["active", "inactive", "all", "none"])),
        st.tuples(st.just("under"), st.sampled_from(["[]", '["q"]', '["users"]'])),
        st.tuples(
            st.just("act"),
            st.sampled_from(ACTIONS),
            st.sampled_from(["[]", '["q"]', '["users",1]', '["list"]']),
            st.sampled_from(["all", "active", "inactive"]),
        ),
        st.tuples(st.just("gap")),
        st.tuples(st.just("pass"), st.sampled_from([1, 500, 1_000, 11_000, 61_000])),
    ),
    min_size=8,
    max_size=50,
)


def decoded(view: EntryView) -> tuple[Any, EntryView]:
    """Return its data, whose members may be in another order where a patch has brought them, and the rest."""
    return None if view.data is None else orjson.loads(view.data), replace(view, data=None)


class Played:
    def __init__(self, limits: dict[str, Any]) -> None:
        self.shard = Shard({**SERVED, "cache": limits})
        self.watches: list[int] = []
        self.asked: set[int] = set()
        self.answered: set[int] = set()
        self.gaps = 0

    def step(self, action: str, *more: Any) -> None:
        shard = self.shard
        match action, *more:
            case "watch", (key, prefix) if (key, prefix) not in shard.watches.values():
                self.watches.append(shard.watch(key, prefix=prefix))
            case "unwatch", number if self.watches:
                shard.unwatch(self.watches.pop(number % len(self.watches)))
            case "read", key, fetch:
                self.ask(lambda n: Read(n, key, fetch))
            case "page", page:
                self.ask(lambda n: Read(n, '["list"]', "auto", page))
            case "answer", number, value, etag if shard.fetches:
                call = shard.fetches[number % len(shard.fetches)]
                assert isinstance(call.request, FetchRequest)
                body = orjson.dumps(value)
                if etag is not None and etag == call.request.etag:
                    shard.answer(call, Response(None, etag))
                else:
                    shard.answer(call, Response(body, etag))
            case "fail", number, error if shard.fetches:
                shard.answer(shard.fetches[number % len(shard.fetches)], error)
            case "write", key, value:
                self.ask(lambda n: Write(n, f"w{n}", key, orjson.dumps(value)))
            case "edit", key, value:
                patch = orjson.dumps([{"op": "add", "path": "/author", "value": value}])
                self.ask(lambda n: Edit(n, f"e{n}", key, patch, None))
            case "erase", key:
                self.ask(lambda n: Erase(n, f"r{n}", key))
            case "operate", key, operation:
                shard.batch((key, [operation]), origin=0)
            case "entity", known, number:
                value = orjson.dumps({"id": known, "n": number})
                shard.batch((broadcast.name("entity", ["user", known]), [Merge(value)]), origin=0)
            case "relation", known, refetch:
                shard.batch((broadcast.name("relation", ["user", known]), [Invalidate(refetch=refetch)]), origin=0)
            case "under", key:
                shard.batch(("#u" + key, [Invalidate()]), origin=0)
            case "act", name, key, which:
                self.ask(lambda n: Act(n, name, key, which=which))
            case ("gap",):
                self.gaps += 1
                shard.batch(feeds=(FeedRange("events", self.gaps, 1, 0, 0),))
            case "pass", ms:
                shard.wake(shard.now + ms)
            case _:
                pass
        self.answered |= shard.answers().keys()

    def ask(self, make: Any) -> None:
        if self.shard.ask(make) is None:
            self.asked.add(self.shard.next_id)

    def check(self) -> None:
        """Those who watch hold what readers see."""
        shard = self.shard
        views = [view for entry in shard.machine.cache if (view := shard.machine.view(entry.key)).version]
        seen = {view.key: decoded(view) for view in views if shard.wants(view.key)}
        held = {key: decoded(replica.view()) for key, replica in shard.held.items() if replica.version}
        assert held == seen

    def check_insides(self) -> None:
        machine = self.shard.machine
        for entry in machine.cache:
            if not machine._sweeps:  # which may have watches to end
                assert bool(entry.observers) == self.shard.wants(entry.key), entry.key
            assert (entry.fetch is None) == (entry.fetch_status == "idle"), entry.key
            assert (entry.value is None) == (entry.version == 0), entry.key
        assert machine.memory.entries == len(machine.cache)
        texts = sum(len(entry.key) + (0 if entry.value is None else entry.value.size()) for entry in machine.cache)
        accounted = machine.memory.bytes() - len(machine.cache) * ENTRY_BYTES
        assert texts <= accounted <= texts * (1 + DECODED)
        for type_, known in [("user", number) for number in (1, 2, 3)]:
            for entry in machine.cache:
                scanned = (
                    {}
                    if entry.value is None
                    else machine.entities.scan(entry.covering, orjson.loads(entry.value.json()))
                )
                if (type_, known) in scanned:
                    assert entry.key in machine.entities.entries(type_, known)

    def finish(self) -> None:
        """Have every fetch answered, and let time pass until nobody waits any longer."""
        shard = self.shard
        for _ in range(200):
            self.answered |= shard.answers().keys()
            if shard.fetches:
                shard.answer(shard.fetches[0], Response(b"[]"))
            elif shard.machine._sweeps:
                shard.wake(shard.now)
            elif self.asked <= self.answered:
                return
            else:
                due = shard.machine.deadline()
                assert due is not None, "somebody waits for an answer"
                shard.wake(max(due, shard.now))
        raise AssertionError("it does not come to rest")


@settings(max_examples=300, deadline=None)
@given(STEPS, st.sampled_from([{}, {"max_entries": 3}]), st.booleans())
def test_whatever_is_done_watchers_and_readers_are_served(
    steps: list[tuple[Any, ...]], limits: dict[str, Any], in_slices: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if in_slices:
            patch.setattr(sweep, "SLICE", 2)
            patch.setattr(shard_state, "SLICE", 2)
        played = Played(limits)
        for step in steps:
            played.step(*step)
            played.check()
            played.check_insides()
        played.finish()
        played.check()
        played.check_insides()
