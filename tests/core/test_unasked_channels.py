"""Channels that nobody joined are so many at most, and silent ones make room."""

import pytest

from cluster.core import unasked_channels
from cluster.core.unasked_channels import LOOKS, SILENT_MS, UnaskedChannels

START = 1_000_000.0


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> UnaskedChannels:
    monkeypatch.setattr(unasked_channels, "MAX_CHANNELS", 5)
    channels = UnaskedChannels()
    for n in range(5):
        assert not channels.is_full
        channels.add(f"c{n}", START)
    return channels


def test_there_are_so_many_at_most(full: UnaskedChannels) -> None:
    assert full.is_full
    assert len(full) == 5
    assert "c0" in full
    full.discard("c0")
    full.discard("c0")
    assert "c0" not in full
    assert not full.is_full


def test_none_makes_room_that_was_heard_lately(full: UnaskedChannels) -> None:
    assert full.silent(lambda _: 0.0, START + SILENT_MS - 1) is None
    assert full.silent(lambda _: START + 1, START + SILENT_MS) is None
    assert len(full) == 5


def test_a_silent_one_is_found_within_few_looks(full: UnaskedChannels) -> None:
    asked: list[str] = []

    def used_ms(channel: str) -> float:
        asked.append(channel)
        return 0.0 if channel == "c4" else START + SILENT_MS

    found = [full.silent(used_ms, START + SILENT_MS) for _ in range(3)]
    assert found == [None, None, "c4"]
    assert asked == ["c0", "c1", "c2", "c3", "c4"]
    assert "c4" not in full
    assert full.silent(used_ms, START + SILENT_MS) is None, "those that talk stay"
    assert len(asked) == 5 + LOOKS
    assert len(full) == 4
