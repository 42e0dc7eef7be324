"""The shard: what gives way when entries are too many or too large, and that nobody who watches notices."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.core import shard_state
from cluster.core.memory import ENTRY_BYTES
from cluster.core.messages import Erase, Read, Write, Written
from cluster.core.operation import Append, Missing
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


class Played:
    """A shard whose entries are too many now and then, and what is expected of those that give way."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self.shard = limited(**limits)
        self.cache = self.shard.machine.cache
        self.watches: list[int] = []
        self.asked: set[int] = set()
        self.answered: dict[int, Any] = {}
        self.used: dict[str, int] = {}
        """When each entry was used last."""

    def use(self, keys: set[str]) -> None:
        """These were used now, in whatever order."""
        self.used.update(dict.fromkeys(keys, int(self.shard.now)))

    def rank(self, key: str) -> tuple[bool, int]:
        """Tell which of two gives way: the refetchable, and among equals what was used longest ago."""
        return (not key.startswith('["q"'), self.used[key])

    def keys(self) -> set[str]:
        return {str(entry.key) for entry in self.cache}

    def watched(self) -> set[str]:
        return {key for key in self.keys() if self.shard.wants(key)}

    def fetching(self) -> set[str]:
        return {str(entry.key) for entry in self.cache if entry.fetch is not None}

    def act(self, action: str, which: int, size: int) -> None:
        shard, name = self.shard, NAMES[which]
        match action:
            case "watch" if (name, False) not in shard.watches.values():
                self.watches.append(shard.watch(name))
            case "watch_all":
                self.watches.append(shard.watch('["d"]' if which % 2 else '["q"]', prefix=True))
            case "unwatch" if self.watches:
                shard.unwatch(self.watches.pop(which % len(self.watches)))
            case "write":
                shard.ask(lambda n: Write(n, f"w{n}", name, orjson.dumps("y" * size)))
            case "append":
                shard.batch((name, [Append((orjson.dumps("x" * size),), missing=Missing.CREATE)]))
            case "read":
                if name in self.keys() - self.watched():
                    self.use({name})
                if shard.ask(lambda n: Read(n, name)) is None:
                    self.asked.add(shard.next_id)
            case "answer" if shard.fetches:
                shard.fetched(["x" * size])
            case "erase":
                shard.ask(lambda n: Erase(n, f"e{n}", name))
            case "wake":
                shard.wake(shard.now)
            case _:
                pass

    def step(self, action: str, which: int, size: int) -> None:
        self.shard.now += 1
        before, watched, fetching = self.keys(), self.watched(), self.fetching()
        self.act(action, which, size)
        after = self.keys()
        self.use(after - before)
        self.use(watched & after - self.watched())
        gone = before - after - ({NAMES[which]} if action == "erase" else set())
        assert not any(self.shard.wants(key) for key in gone & watched), "what is watched was removed"
        free = after - self.watched() - self.fetching()
        for key in gone - fetching - watched:
            assert all(self.rank(key) <= self.rank(other) for other in free & before)
        assert self.shard.machine.memory.excess() is None or not free, "more could give way"

    def check_watchers(self) -> None:
        """Compare what the gateway holds, told by change sets alone, with what there is."""
        views = [self.shard.machine.view(key) for key in self.watched()]
        with_data = {view.key: (view.version, view.data) for view in views if view is not None and view.version}
        held = {
            key: (replica.version, replica.view().data) for key, replica in self.shard.held.items() if replica.version
        }
        assert held == with_data


@settings(max_examples=200, deadline=None)
@given(STEPS, st.sampled_from([{"max_entries": 5}, {"max_bytes": "8KiB"}, {"max_entries": 3, "max_bytes": "6KiB"}]))
def test_nobody_who_watches_notices_that_others_give_way(steps: list[tuple[str, int, int]], limits: Any) -> None:
    played = Played(limits)
    for action, which, size in steps:
        played.step(action, which, size)
        played.check_watchers()
        played.answered |= played.shard.answers()
    while played.shard.fetches:
        played.shard.fetched(1)
    played.check_watchers()
    assert played.asked <= {*played.answered, *played.shard.answers()}, "a reader was forgotten"
