"""The shard: what gives way when entries are too many or too large, and that nobody who watches notices."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core import shard_state
from cluster.core.memory import ENTRY_BYTES
from cluster.core.messages import Answered, EntryView, Erase, Failure, Read, Write, Written
from cluster.core.operation import Append
from tests.core.shard import DOCUMENT, Shard


def limited(**limits: Any) -> Shard:
    return Shard({**DOCUMENT, "cache": limits})


def keys(shard: Shard) -> list[str]:
    return [entry.key for entry in shard.machine.cache]


def fetch(shard: Shard, key: str, data: Any = 1) -> None:
    shard.ask(lambda n: Read(n, key))
    shard.fetched(data, key)


class TestEntries:
    def test_the_least_recently_used_gives_way(self) -> None:
        shard = limited(max_entries=3)
        for name in ("a", "b", "c"):
            shard.put(f'["{name}"]', 1)
        shard.ask(lambda n: Read(n, '["a"]'))
        shard.put('["d"]', 1)
        assert keys(shard) == ['["a"]', '["c"]', '["d"]']
        assert shard.machine.evictions == {"entries": 1}

    def test_what_can_be_fetched_again_gives_way_first(self) -> None:
        shard = limited(max_entries=2)
        shard.put('["a"]', 1)
        fetch(shard, '["q","1"]')
        shard.put('["b"]', 1)
        assert keys(shard) == ['["a"]', '["b"]']

    def test_what_is_watched_stays_and_goes_when_it_no_longer_is(self) -> None:
        shard = limited(max_entries=1)
        watches = []
        for name in ("a", "b"):
            watches.append(shard.watch(f'["{name}"]'))
            shard.put(f'["{name}"]', 1)
        assert keys(shard) == ['["a"]', '["b"]']
        shard.unwatch(watches[0])
        assert keys(shard) == ['["b"]']

    def test_what_is_being_fetched_stays(self) -> None:
        shard = limited(max_entries=1)
        shard.ask(lambda n: Read(n, '["q","1"]'))
        shard.ask(lambda n: Read(n, '["q","2"]'))
        assert keys(shard) == ['["q","1"]', '["q","2"]']
        shard.fetched(1)
        shard.fetched(2)
        answers = shard.answers()
        assert [orjson.loads(answers[n].data) for n in (1, 2)] == [1, 2]
        assert keys(shard) == ['["q","2"]']

    def test_many_give_way_a_slice_at_a_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shard_state, "EVICT_SLICE", 3)
        shard = limited(max_entries=8)
        watch = shard.watch('["a"]', prefix=True)
        for number in range(16):
            shard.put(f'["a",{number}]', 1)
        shard.unwatch(watch)
        counts = [len(keys(shard))]
        while shard.machine.deadline() == shard.now:
            shard.wake(shard.now)
            counts.append(len(keys(shard)))
        assert counts == [13, 10, 8]

    def test_a_write_where_all_others_are_watched_is_answered(self) -> None:
        shard = limited(max_entries=1)
        shard.put('["a"]', 1)
        shard.watch('["a"]')
        assert isinstance(shard.ask(lambda n: Write(n, "w", '["b"]', b"1")), Written)
        assert keys(shard) == ['["a"]']


class TestBytes:
    def test_values_that_are_too_large_give_way(self) -> None:
        shard = limited(max_bytes="16KiB")
        for number in range(4):
            shard.put(f'["a",{number}]', "x" * 4_000)
        assert keys(shard) == [f'["a",{number}]' for number in (1, 2, 3)]
        assert shard.machine.evictions == {"bytes": 1}
        assert shard.machine.memory.bytes() == 3 * (ENTRY_BYTES + 7 + 4_002)

    def test_what_grows_by_edits_makes_others_give_way(self) -> None:
        shard = limited(max_bytes="16KiB")
        shard.put('["grows"]', [])
        shard.watch('["grows"]')
        for number in range(3):
            shard.put(f'["a",{number}]', 1)
        for _ in range(40):
            shard.batch(('["grows"]', [Append((b'"' + b"x" * 98 + b'"',))]))
        assert keys(shard) == ['["grows"]']
        assert len(shard.data('["grows"]')) == 40

    def test_what_is_left_of_a_value_counts(self) -> None:
        shard = limited(max_bytes="16KiB")
        for number in range(3):
            shard.put(f'["a",{number}]', "x" * 4_000)
        for number in range(3):
            shard.put(f'["a",{number}]', 1)
        for number in range(3, 10):
            shard.put(f'["a",{number}]', 1)
        assert len(keys(shard)) == 10


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["watch", "watch_all", "unwatch", "write", "append", "read", "answer", "erase", "wake"]),
        st.integers(0, 8),
        st.integers(0, 1_500),
    ),
    max_size=40,
)
NAMES = [*[f'["q","{number}"]' for number in range(5)], *[f'["d",{number}]' for number in range(4)]]


class Line:
    """Which entries give way before which: the refetchable first, and among equals what was used longest ago."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.used: dict[str, int] = {}
        self.clock = 0

    def use(self, keys: set[str]) -> None:
        """These were used now, in whatever order."""
        self.clock += 1
        self.used.update(dict.fromkeys(keys, self.clock))

    def rank(self, key: str) -> tuple[bool, int]:
        return (not key.startswith('["q"'), self.used[key])

    def free(self) -> set[str]:
        """Return the entries that may give way."""
        cache = self.shard.machine.cache
        return {entry.key for entry in cache if not self.shard.wants(entry.key) and entry.fetch is None}


@settings(max_examples=200, deadline=None)
@given(STEPS, st.sampled_from([{"max_entries": 5}, {"max_bytes": "8KiB"}, {"max_entries": 3, "max_bytes": "6KiB"}]))
def test_nobody_who_watches_notices_that_others_give_way(steps: list[tuple[str, int, int]], limits: Any) -> None:
    shard = limited(**limits)
    machine = shard.machine
    line = Line(shard)
    watches: list[int] = []
    asked: set[int] = set()
    answered: dict[int, Any] = {}
    for number, (action, which, size) in enumerate(steps):
        shard.now += 1
        name = NAMES[which]
        before = {entry.key for entry in machine.cache}
        watched = {key for key in before if shard.wants(key)}
        evicted_before = machine.evictions.total()
        fetch_of = {entry.key for entry in machine.cache if entry.fetch is not None}
        match action:
            case "watch" if (name, False) not in shard.watches.values():
                watches.append(shard.watch(name))
            case "watch_all":
                watches.append(shard.watch('["d"]' if which % 2 else '["q"]', prefix=True))
            case "unwatch" if watches:
                watch = watches.pop(which % len(watches))
                shard.unwatch(watch)
            case "write":
                shard.ask(lambda n, r=f"w{number}", k=name, d=b'"%b"' % (b"y" * size): Write(n, r, k, d))
            case "append":
                shard.batch((name, [Append((b'"%b"' % (b"x" * size),), missing=1)]))
            case "read":
                known = machine.cache.get(name)
                if known is not None and name not in watched:
                    line.use({name})
                answer = shard.ask(lambda n, k=name: Read(n, k))
                if answer is None:
                    asked.add(shard.next_id)
                else:
                    assert isinstance(answer, EntryView | Failure)
            case "answer" if shard.fetches:
                shard.fetched(["x" * size])
            case "erase":
                shard.ask(lambda n, r=f"e{number}", k=name: Erase(n, r, k))
            case "wake":
                shard.wake(shard.now)
            case _:
                pass
        after = {entry.key for entry in machine.cache}
        line.use(after - before)
        line.use({key for key in watched & after if not shard.wants(key)})
        evicted = machine.evictions.total() - evicted_before
        gone = before - after - ({name} if action == "erase" else set())
        still_watched = {key for key in watched if shard.wants(key)}
        assert not gone & still_watched, "what is watched was removed"
        assert evicted >= len(gone)
        for key in gone - fetch_of - watched:
            assert all(line.rank(key) <= line.rank(other) for other in line.free() & before)
        over = machine.memory.excess()
        assert over is None or not line.free(), "more than is allowed, and something could give way"
        views = {key: machine.view(key) for key in after if shard.wants(key)}
        with_data = {key: (view.version, view.data) for key, view in views.items() if view.version}
        held = {key: (replica.version, replica.view().data) for key, replica in shard.held.items() if replica.version}
        assert held == with_data, "a watcher holds something else"
        answered |= {item.id: item.payload for item in shard.items() if isinstance(item, Answered)}
    while shard.fetches:
        shard.fetched(1)
    answered |= shard.answers()
    assert asked <= answered.keys(), "a reader was forgotten"
