"""The list of events that came to nothing: bounded, not flooded, and fit to be shown."""

import orjson
import pytest
from msgspec import Raw, to_builtins

from cluster.core.dead_letters import KEPT, PER_SECOND, DeadLetter, DeadLetters, Fault


def one(**given: object) -> DeadLetter:
    letters = DeadLetters()
    letters.add("s", "bad_data", 1_500.7, **given)  # type: ignore[arg-type]
    (letter,) = letters.newest()
    return letter


def test_a_letter() -> None:
    letter = one(event="e", channel="c", detail="why", sample=Raw(b'{"a":1}'))
    assert letter == DeadLetter(1500, "s", "c", "e", "bad_data", "why", '{"a":1}', 7)


def test_what_is_not_known_is_none() -> None:
    assert one() == DeadLetter(1500, "s", None, None, "bad_data", "", "", 0)
    assert one(size_bytes=5_000_000).size_bytes == 5_000_000


@pytest.mark.parametrize(
    ("sample", "shown"),
    [
        (b"\xff\xfe{", "\\xff\\xfe{"),
        (b"\xe2\x82", "\\xe2\\x82"),
        ("é日".encode(), "é日"),
        (b"x" * 256, "x" * 256),
        (b"x" * 257, "x" * 256),
        (b"x" * 255 + "é".encode(), "x" * 255),
        (b"x" * 254 + "é".encode() + b"x", "x" * 254 + "é"),
        (b"x" * 254 + "日".encode(), "x" * 254),
        (b"x" * 253 + "日".encode() + b"x", "x" * 253 + "日"),
        (b"x" * 253 + "😀".encode(), "x" * 253),
        (b"x" * 252 + "😀".encode() + b"x", "x" * 252 + "😀"),
        (b"x" * 255 + b"\xff\xff", "x" * 255),
        (b"\x80" * 300, "\\x80" * 256),
        (b"\x00\x1b[2J", "\x00\x1b[2J"),
    ],
)
def test_a_sample_is_clipped_between_characters(sample: bytes, shown: str) -> None:
    letter = one(sample=sample)
    assert (letter.sample, letter.size_bytes) == (shown, len(sample))


def test_names_are_clipped_and_can_be_written() -> None:
    letter = one(event="e" * 5000, channel="c" * 200, detail="\ud800" + "d" * 300)
    assert (letter.event, letter.channel) == ("e" * 197 + "...", "c" * 200)
    assert letter.detail.startswith("\\ud800dd")
    orjson.dumps(to_builtins(letter))


def test_the_newest_come_first_of_all_sources() -> None:
    letters = DeadLetters()
    for at, source in [(10, "a"), (20, "b"), (20, "b"), (30, "a")]:
        letters.add(source, "not_json", at, detail=f"{source}{at}-{len(letters.newest())}")
    assert [letter.detail for letter in letters.newest()] == ["a30-3", "b20-2", "b20-1", "a10-0"]


def test_a_source_keeps_so_many() -> None:
    letters = DeadLetters()
    for at in range(KEPT + 5):
        letters.add("s", "not_json", at * 1000.0)
    letters.add("other", "not_json", 0.0)
    kept = letters.newest()
    assert len(kept) == KEPT + 1
    assert (kept[0].time, kept[-2].time, kept[-1].source) == ((KEPT + 4) * 1000, 5000, "other")


def test_a_flood_of_one_reason_leaves_room_for_others() -> None:
    letters = DeadLetters()
    for n in range(10_000):
        letters.add("s", "not_json", 5_000.0 + n / 100)
    letters.add("s", "no_event", 5_500.0)
    letters.add("t", "not_json", 5_500.0)
    reasons = [(letter.source, letter.reason) for letter in letters.newest()]
    assert len(reasons) == PER_SECOND + 2
    assert {("s", "no_event"), ("t", "not_json")} < set(reasons)
    letters.add("s", "not_json", 6_000.0)
    assert len(letters.newest()) == PER_SECOND + 3


def test_faults_are_taken_once() -> None:
    letters = DeadLetters()
    faults = [Fault("bad_key", "e", "c", "why", b"5"), Fault("bad_data", "f", None, "", Raw(b"6"))]
    letters.take("s", faults, 9.0)
    assert faults == []
    assert letters.newest() == [
        DeadLetter(9, "s", None, "f", "bad_data", "", "6", 1),
        DeadLetter(9, "s", "c", "e", "bad_key", "why", "5", 1),
    ]
