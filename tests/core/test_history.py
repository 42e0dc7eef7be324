"""History answers exactly what happened since, or that it does not know."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.core.history import History


def history(*changes: tuple[str, int], offset: int = 10, max_changes: int = 100) -> History:
    made = History(offset, max_changes)
    for key, version in changes:
        made.record(key, version)
    return made


def test_an_empty_history_stands_at_its_offset() -> None:
    made = history()
    assert made.offset == 10
    assert made.since(10) == {}
    assert made.since(9) is None
    assert made.since(11) is None


def test_each_key_once_with_what_was_held() -> None:
    made = history(("a", 3), ("b", 0), ("a", 12))
    assert made.offset == 13
    assert made.since(10) == {"a": 3, "b": 0}
    assert made.since(11) == {"b": 0, "a": 12}
    assert made.since(12) == {"a": 12}
    assert made.since(13) == {}
    assert made.since(14) is None, "not come so far"


def test_it_reaches_back_so_many_changes() -> None:
    made = history(*((f"k{n}", n) for n in range(5)), max_changes=3)
    assert made.offset == 15
    assert made.since(11) is None
    assert made.since(12) == {"k2": 2, "k3": 3, "k4": 4}


@given(
    st.lists(st.sampled_from("abc"), max_size=30),
    st.integers(0, 2**40),
    st.integers(1, 10),
    st.integers(-3, 35),
)
def test_against_a_full_record(keys: list[str], begin: int, bound: int, ahead: int) -> None:
    made = History(begin, bound)
    versions: dict[str, int] = {}
    states = [dict(versions)]
    for number, key in enumerate(keys, begin + 1):
        made.record(key, versions.get(key, 0))
        versions[key] = number
        states.append(dict(versions))
    assert made.offset == begin + len(keys)
    missed = made.since(begin + ahead)
    if not len(keys) - min(bound, len(keys)) <= ahead <= len(keys):
        assert missed is None
    else:
        changed = set(keys[ahead:])
        assert missed == {key: states[ahead].get(key, 0) for key in changed}
