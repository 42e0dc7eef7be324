"""History answers exactly what happened since, or that it does not know."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.core.history import RECORD_BYTES, History

EPOCH = 7


NOW = 1_000_000.0


def history(*changes: tuple[str, int], offset: int = 10, max_changes: int = 100, **bounds: Any) -> History:
    made = History(EPOCH, offset, max_changes, **bounds)
    for key, version in changes:
        made.record(key, version, NOW)
    return made


def test_an_empty_history_stands_at_its_offset() -> None:
    made = history()
    assert made.next == 0
    assert made.since(EPOCH, 10, NOW) == {}
    assert made.since(EPOCH, 9, NOW) is None
    assert made.since(EPOCH, 11, NOW) is None


def test_each_key_once_with_what_was_held() -> None:
    made = history(("a", 3), ("b", 0), ("a", 12))
    assert made.next == 3
    assert made.since(EPOCH, 10, NOW) == {"a": 3, "b": 0}
    assert made.since(EPOCH, 11, NOW) == {"b": 0, "a": 12}
    assert made.since(EPOCH, 12, NOW) == {"a": 12}
    assert made.since(EPOCH, 13, NOW) == {}
    assert made.since(EPOCH, 14, NOW) is None, "not come so far"


def test_it_reaches_back_so_many_changes() -> None:
    made = history(*((f"k{n}", n) for n in range(5)), max_changes=3)
    assert made.next == 5
    assert made.since(EPOCH, 11, NOW) is None
    assert made.since(EPOCH, 12, NOW) == {"k2": 2, "k3": 3, "k4": 4}


@given(
    st.lists(st.sampled_from("abc"), max_size=30),
    st.integers(0, 2**40),
    st.integers(1, 10),
    st.integers(-3, 35),
)
def test_against_a_full_record(keys: list[str], begin: int, bound: int, ahead: int) -> None:
    made = History(EPOCH, begin, bound)
    versions: dict[str, int] = {}
    states = [dict(versions)]
    for number, key in enumerate(keys, begin + 1):
        made.record(key, versions.get(key, 0), NOW)
        versions[key] = number
        states.append(dict(versions))
    assert made.next == len(keys)
    missed = made.since(EPOCH, begin + ahead, NOW)
    if not len(keys) - min(bound, len(keys)) <= ahead <= len(keys):
        assert missed is None
    else:
        changed = set(keys[ahead:])
        assert missed == {key: states[ahead].get(key, 0) for key in changed}


def test_it_goes_on_where_an_earlier_life_ended() -> None:
    old = history(("a", 3), ("b", 0), ("a", 12))
    new = History(EPOCH + 1, 1_000)
    new.restore(old.lives, old.first, old.numbered(0), NOW)
    new.record("c", 5, NOW)
    assert new.since(EPOCH, 11, NOW) == {"b": 0, "a": 12, "c": 5}
    assert new.since(EPOCH, 13, NOW) == {"c": 5}
    assert new.since(EPOCH, 14, NOW) is None, "that life has not come so far"
    assert new.since(EPOCH + 1, 1_000, NOW) == {"c": 5}
    assert new.since(EPOCH + 1, 999, NOW) is None
    assert new.numbered(2) == [("a", 12), ("c", 5)]


def test_a_life_of_which_nothing_is_left_is_forgotten() -> None:
    made = history(("a", 1), ("b", 2))
    for epoch in range(EPOCH + 1, EPOCH + 4):
        later = History(epoch, epoch * 1_000, 2)
        later.restore(made.lives, made.first, made.numbered(made.first), NOW)
        later.record("x", epoch, NOW)
        made = later
    assert [life.epoch for life in made.lives] == [EPOCH + 1, EPOCH + 2, EPOCH + 3]
    assert made.since(EPOCH + 1, (EPOCH + 1) * 1_000, NOW) is None
    assert made.since(EPOCH + 1, (EPOCH + 1) * 1_000 + 1, NOW) == {"x": EPOCH + 2}, "where that life ended"


def test_it_reaches_back_so_many_bytes() -> None:
    long = "k" * (1_000 - RECORD_BYTES)
    made = history(*((long, n) for n in range(5)), max_bytes=3_000)
    assert (len(made), made.bytes, made.first) == (3, 3_000, 2)
    assert made.since(EPOCH, 11, NOW) is None
    assert made.since(EPOCH, 12, NOW) == {long: 2}
    made.record("x" * 5_000, 0, NOW)
    assert (len(made), made.bytes) == (0, 0), "one that is longer than all may be is not kept"
    assert made.since(EPOCH, 16, NOW) == {}
    assert made.since(EPOCH, 15, NOW) is None


def test_it_reaches_back_so_long() -> None:
    made = history(max_age_ms=10_000.0)
    for n in range(8):
        made.record(f"k{n}", n, NOW + n * 2_000)
    assert made.since(EPOCH, 11, NOW + 14_000) is None, "also where nobody asked"
    assert made.since(EPOCH, 12, NOW + 14_000) == {f"k{n}": n for n in range(2, 8)}
    assert made.since(EPOCH, 12, NOW + 14_999) is not None, "within the second that marks are exact to"
    assert made.since(EPOCH, 12, NOW + 15_000) is None
    assert made.since(EPOCH, 13, NOW + 15_000) == {f"k{n}": n for n in range(3, 8)}
    assert made.since(EPOCH, 18, NOW + 10**9) == {}, "who has everything is no matter how old"
    assert made.since(EPOCH, 17, NOW + 10**9) is None
    assert (len(made), made.bytes) == (0, 0)
    made.record("again", 5, NOW + 10**9)
    assert made.since(EPOCH, 18, NOW + 10**9) == {"again": 5}


def test_without_an_age_it_forgets_nothing_for_that() -> None:
    made = history(("a", 1), max_age_ms=None)
    assert made.since(EPOCH, 10, NOW + 10**12) == {"a": 1}


def test_the_age_of_what_an_earlier_life_left_counts_from_its_end() -> None:
    old = history(("a", 1), ("b", 2))
    new = History(EPOCH + 1, 1_000, max_age_ms=10_000.0)
    new.restore(old.lives, old.first, [("a", 1), ("b", 2)], NOW + 10**9)
    assert (len(new), new.bytes) == (2, 2 + 2 * RECORD_BYTES)
    assert new.since(EPOCH, 10, NOW + 10**9 + 9_000) == {"a": 1, "b": 2}
    assert new.since(EPOCH, 10, NOW + 10**9 + 12_000) is None


def test_a_life_goes_on_at_a_higher_offset() -> None:
    made = history(("a", 3), ("b", 0))
    made.rise(50)
    made.record("c", 9, NOW)
    assert made.since(EPOCH, 11, NOW) == {"b": 0, "c": 9}
    assert made.since(EPOCH, 12, NOW) == made.since(EPOCH, 50, NOW) == {"c": 9}
    assert made.since(EPOCH, 51, NOW) == {}
    assert made.since(EPOCH, 30, NOW) is None, "nobody has been there"


def test_a_position_that_does_not_name_the_shard_counts_from_the_end_of_its_map() -> None:
    made = history(("a", 3))
    made.step(4, 5)
    made.record("b", 7, NOW)
    made.step(5, 6)
    made.record("c", 8, NOW)
    assert made.since_map(4) == {"b": 7, "c": 8}
    assert made.since_map(5) == {"c": 8}
    assert made.since_map(6) is None, "that map counts still"
    assert made.since_map(3) is None, "it was not there"


def test_a_shard_that_was_made_for_a_move_had_nothing_before() -> None:
    made = history()
    made.step(-1, 5)
    made.record("a", 3, NOW)
    assert made.since_map(1) == made.since_map(4) == {"a": 3}


def test_what_is_trimmed_is_not_known_of_a_map_either() -> None:
    made = history(max_changes=2)
    made.step(1, 2)
    for version in range(3):
        made.record("a", version, NOW)
    assert made.since_map(1) is None
    assert made.steps == []


def test_the_history_of_a_shard_that_ends_is_asked_and_given_back() -> None:
    ended = history(("a", 3))
    ended.step(1, 2)
    ended.record("b", 5, NOW)
    past = ended.past(3)
    asked = History.of(past)
    assert asked.since(EPOCH, 10, NOW) == {"a": 3, "b": 5}
    assert asked.since_map(1) == {"b": 5}
    assert asked.since_map(2) == {}
    again = History(9, 1_000)
    again.restore(past.lives, past.first, past.changes, NOW, past.steps)
    again.step(past.ended, 4)
    again.record("c", 7, NOW)
    assert again.since(EPOCH, 11, NOW) == {"b": 5, "c": 7}
    assert again.since(9, 1_000, NOW) == again.since_map(3) == {"c": 7}
