"""What entries take is known, and those go first that are missed least."""

import gc
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core import template
from cluster.core.declared_query import DeclaredQuery
from cluster.core.entry import Value
from cluster.core.memory import DECODED, ENTRY_BYTES, Memory
from cluster.core.operation import Append, apply_all
from cluster.core.query_cache import Entry, Observer, QueryCache
from cluster.core.query_key import CanonicalKey, canonical
from cluster.core.shard_entry import ShardEntry

QUERY = DeclaredQuery(template.parse(["q", "{id}"]), "api", template.parse("/q/{id}"))


def entry(number: int, size: int = 10, *, refetchable: bool = True) -> ShardEntry:
    made = ShardEntry(CanonicalKey(f'["q",{number}]'), QUERY if refetchable else None)
    made.value = Value.from_json(b'"' + b"x" * (size - 2) + b'"')
    return made


def order(memory: Memory) -> list[str]:
    return [each.key for each in memory.candidates() if isinstance(each, ShardEntry)]


def added(memory: Memory, *entries: ShardEntry) -> list[ShardEntry]:
    for each in entries:
        memory.added(each)
    return list(entries)


class TestOrder:
    def test_the_least_recently_used_goes_first(self) -> None:
        memory = Memory()
        first, second, third = added(memory, entry(1), entry(2), entry(3))
        assert order(memory) == [first.key, second.key, third.key]
        memory.use(first)
        memory.use(third)
        assert order(memory) == [second.key, first.key, third.key]

    def test_what_can_be_fetched_again_goes_before_all_others(self) -> None:
        memory = Memory()
        kept, fetched, other = added(memory, entry(1, refetchable=False), entry(2), entry(3, refetchable=False))
        memory.use(fetched)
        assert order(memory) == [fetched.key, kept.key, other.key]
        memory.use(kept)
        assert order(memory) == [fetched.key, other.key, kept.key]

    def test_what_is_watched_does_not_go(self) -> None:
        memory = Memory()
        watched, other = added(memory, entry(1), entry(2))
        memory.watch(watched)
        memory.use(watched)
        assert order(memory) == [other.key]
        memory.rest(watched)
        memory.rest(watched)
        assert order(memory) == [other.key, watched.key]

    def test_candidates_may_be_removed_while_they_come(self) -> None:
        memory = Memory()
        added(memory, *[entry(n) for n in range(5)])
        gone = []
        for each in memory.candidates():
            memory.removed(each)
            gone.append(each)
        assert (len(gone), order(memory), memory.entries, memory.bytes()) == (5, [], 0, 0)


class TestSizes:
    def test_of_text(self) -> None:
        memory = Memory()
        (only,) = added(memory, entry(1, 200))
        assert memory.bytes() == only.size == ENTRY_BYTES + len(only.key) + 200

    def test_of_what_was_decoded(self) -> None:
        memory = Memory()
        (only,) = added(memory, entry(1, 200))
        assert only.value is not None
        only.value.object()
        memory.replaced(only)
        assert memory.bytes() == ENTRY_BYTES + len(only.key) + 200 * (1 + DECODED)

    def test_of_what_has_no_data(self) -> None:
        memory = Memory()
        only = entry(1)
        only.value = None
        memory.added(only)
        assert memory.bytes() == ENTRY_BYTES + len(only.key)

    def test_an_edit_is_counted_at_once_and_known_exactly_when_it_matters(self) -> None:
        memory = Memory(max_bytes=100_000)
        only = ShardEntry(CanonicalKey('["q",1]'), QUERY)
        only.value = Value.from_json(b"[]")
        memory.added(only)
        grown = apply_all([Append((b'"' + b"x" * 98 + b'"',))], only.value)
        assert grown.patch is not None
        memory.edited(only, sum(map(len, grown.patch)))
        rough = only.size
        assert memory.excess() is None
        assert only.size == rough, "nobody needed to know"
        assert memory.bytes() == ENTRY_BYTES + len(only.key) + len(only.value.json()) * (1 + DECODED) < rough

    def test_an_edit_of_what_was_text_until_then_is_not_counted_too_low(self) -> None:
        memory = Memory()
        only = ShardEntry(CanonicalKey('["q",1]'), QUERY)
        only.value = Value.from_json(b'["' + b"x" * 1_000 + b'"]')
        memory.added(only)
        grown = apply_all([Append((b"1",))], only.value)
        assert grown.patch is not None
        memory.edited(only, sum(map(len, grown.patch)))
        assert memory._bytes >= only.bytes_held()


class TestExcess:
    def test_of_entries(self) -> None:
        memory = Memory(max_entries=2)
        first, *_ = added(memory, entry(1), entry(2))
        assert memory.excess() is None
        added(memory, entry(3))
        assert memory.excess() == "entries"
        memory.removed(first)
        assert memory.excess() is None

    def test_of_bytes(self) -> None:
        memory = Memory(max_bytes=2 * (ENTRY_BYTES + 7 + 10))
        first, second = added(memory, entry(1), entry(2))
        assert memory.excess() is None
        second.value = Value.from_json(b"'" * 11)
        memory.replaced(second)
        assert memory.excess() == "bytes"
        memory.removed(first)
        assert memory.excess() is None

    def test_a_rough_size_alone_is_no_excess(self) -> None:
        memory = Memory(max_bytes=ENTRY_BYTES + 100)
        (only,) = added(memory, entry(1, 50))
        memory.edited(only, 1_000)
        assert memory.excess() is None

    def test_without_limits_there_is_none(self) -> None:
        memory = Memory()
        added(memory, *[entry(n, 1_000) for n in range(100)])
        assert memory.excess() is None


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "replace", "edit", "rest", "watch", "use", "count"]),
        st.integers(0, 7),
        st.integers(2, 300),
    ),
    max_size=40,
)


@given(STEPS)
def test_sums_and_order_are_those_of_a_model(steps: list[tuple[str, int, int]]) -> None:
    memory = Memory()
    held: dict[int, ShardEntry] = {}
    line: list[int] = []
    """Unwatched entries, the least recently used first."""
    for action, number, size in steps:
        known = held.get(number)
        if action == "add" and known is None:
            held[number] = entry(number, size, refetchable=number % 2 == 0)
            memory.added(held[number])
            line.append(number)
        if known is None:
            continue
        match action:
            case "remove":
                memory.removed(held.pop(number))
                line = [each for each in line if each != number]
            case "replace":
                known.value = Value.from_json(b'"' + b"y" * (size - 2) + b'"')
                memory.replaced(known)
            case "edit":
                assert known.value is not None
                known.value.mutated("z" * (size - 2))
                memory.edited(known, size)
            case "rest" if number not in line:
                memory.rest(known)
                line.append(number)
            case "watch":
                memory.watch(known)
                line = [each for each in line if each != number]
            case "use" if number in line:
                memory.use(known)
                line = [*[each for each in line if each != number], number]
            case "use":
                memory.use(known)
            case "count":
                assert memory.bytes() == sum(each.bytes_held() for each in held.values())
        assert memory._bytes >= sum(each.bytes_held() for each in held.values()), "less than there is"
        expected = [n for n in line if n % 2 == 0] + [n for n in line if n % 2 == 1]
        assert order(memory) == [f'["q",{n}]' for n in expected]
        assert memory.entries == len(held)
    assert memory.bytes() == sum(each.bytes_held() for each in held.values())


class Silent:
    """An owner that is told and does nothing."""

    def touched(self, entry: Entry) -> None: ...

    def removed(self, entry: Entry) -> None: ...


COUNT, VALUE_BYTES = 5_000, 200


def overhead(query: DeclaredQuery | None, *, watched: bool = False) -> float:
    """Build entries; return the bytes each takes beside its key and its data."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    owner: Any = Silent()
    cache: QueryCache[ShardEntry] = QueryCache(owner)
    memory = Memory()
    data = 0
    for number in range(COUNT):
        cache.now_ms += 1.5
        made = ShardEntry(canonical(["q", number]), query)
        cache.add(made)
        memory.added(made)
        cache.written(made, Value.from_json(b'"%*d"' % (VALUE_BYTES - 2, number)))
        made.version, made.origin = 2**45 + number, "write:"
        memory.replaced(made)
        if watched:
            memory.watch(made)
            cache.observe(made, Observer(made.options), mount=False)
        data += len(made.key) + VALUE_BYTES
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert memory.bytes() == data + COUNT * ENTRY_BYTES
    return (taken - data) / COUNT


def test_an_entry_takes_what_is_accounted_for_it() -> None:
    written, fetched, watched = overhead(None), overhead(QUERY), overhead(QUERY, watched=True)
    assert written <= fetched <= watched <= 1_024
    assert fetched == pytest.approx(ENTRY_BYTES, rel=0.25)
    assert watched == pytest.approx(ENTRY_BYTES, rel=0.25)
