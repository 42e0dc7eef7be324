"""What entries were, as far as it is kept."""

from cluster.core.entry import Value
from cluster.core.recent_values import ENTRY_BYTES, FOLLOWED_BYTES, MAX_BYTES, MAX_VALUES, RecentValues


def value(text: bytes) -> Value:
    return Value.from_json(text)


def test_only_what_is_followed_is_kept() -> None:
    values = RecentValues()
    values.changed("a", 1, value(b"1"))
    values.follow("a", 2, b"2")
    values.changed("a", 3, value(b"3"))
    assert [values.at("a", version) for version in (1, 2, 3, 4)] == [None, b"2", b"3", None]
    values.removed("a")
    assert values.at("a", 2) is None
    assert values.bytes_held == 0
    values.removed("a")


def test_the_same_version_counts_once() -> None:
    values = RecentValues()
    values.follow("a", 1, b"1")
    held = values.bytes_held
    values.follow("a", 1, b"1")
    assert values.bytes_held == held


def test_an_entry_keeps_so_many() -> None:
    values = RecentValues()
    values.follow("a", 0, b"0")
    for version in range(1, MAX_VALUES + 1):
        values.changed("a", version, value(b"%d" % version))
    assert values.at("a", 0) is None
    assert values.at("a", 1) == b"1"


def test_an_entry_keeps_so_many_bytes_and_always_the_last() -> None:
    values = RecentValues()
    half = b"x" * (ENTRY_BYTES // 2)
    values.follow("a", 1, half)
    values.changed("a", 2, value(half))
    assert (values.at("a", 1), values.at("a", 2)) == (None, half)
    values.changed("a", 3, value(half * 3))
    assert (values.at("a", 2), values.at("a", 3)) == (None, half * 3)


def test_many_small_entries_are_bounded_too() -> None:
    values = RecentValues()
    for number in range(2 * MAX_BYTES // FOLLOWED_BYTES):
        values.follow(f"k{number}", 1, b"1")
    assert values.bytes_held <= MAX_BYTES
    assert len(values._followed) <= MAX_BYTES // FOLLOWED_BYTES
    for number in range(2 * MAX_BYTES // FOLLOWED_BYTES):
        values.removed(f"k{number}")
    assert values.bytes_held == 0


def test_those_written_longest_ago_give_way() -> None:
    values = RecentValues()
    size = ENTRY_BYTES - 1_000
    for number in range(MAX_BYTES // ENTRY_BYTES):
        values.follow(f"k{number}", 1, b"x" * size)
    values.follow("k0", 2, b"y")
    values.follow("more", 1, b"x" * size)
    assert values.bytes_held <= MAX_BYTES
    assert values.at("k0", 2) == b"y"
    assert values.at("k1", 1) is None
    assert values.at("more", 1) is not None
    values.changed("k1", 2, value(b"1"))
    assert values.at("k1", 2) is None, "it is no longer followed"
