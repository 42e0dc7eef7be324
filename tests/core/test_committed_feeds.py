"""Cursors: what is left is forgotten, and those of channels that nobody needs are so many at most, in the store too."""

import pytest

from cluster.core import committed_feeds
from cluster.core.committed_feeds import NONE, CommittedFeeds
from cluster.core.feed import OPENED, feed_name
from cluster.core.history import History
from cluster.core.messages import FeedRange
from cluster.core.transaction import Unstored


class Feeds:
    """With what a store would be told."""

    def __init__(self, needed: frozenset[tuple[str, str]] = frozenset()) -> None:
        self.unstored = Unstored(keeps=True)
        self.committed = CommittedFeeds(0, 1, self.unstored, needed.__contains__)

    def moved(self, feed: str, last: int = 1) -> bool:
        return self.committed.advance(FeedRange(feed, 3, last, last, last - 1))

    @property
    def gone(self) -> set[str]:
        return {feed for feed in self.unstored._cursors if feed not in self.committed.cursors}


def test_what_is_left_is_forgotten_in_every_profile_and_nothing_else() -> None:
    feeds = Feeds()
    left = [OPENED + "s/c", "s/c", feed_name("s/c", 2), OPENED + feed_name("s/c", 3)]
    stays = ["s", "s/cc", "s/c#2", "t/c", OPENED + "s"]
    for feed in [*left, *stays]:
        feeds.committed._move(feed, (3, 1))
    feeds.committed.forget([("s", "c"), ("s", "never")])
    assert set(feeds.committed.cursors) == set(stays)
    assert feeds.gone == set(left)


def test_profiles_of_an_earlier_life_are_known() -> None:
    before, feeds = Feeds(), Feeds()
    before.committed._move(feed_name("s/c", 4), (3, 1))
    stored = before.unstored.taken(1, 0, lambda _: None, before.committed.cursors, {}, {}, History(1, 0), {})
    assert stored is not None
    feeds.committed.restore(stored)  # type: ignore[arg-type]
    feeds.committed.forget([("s", "c")])
    assert feeds.committed.cursors == {}


def test_those_that_nobody_needs_are_bounded_and_the_ones_that_rest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed_feeds, "MAX_CURSORS", 10)
    needed = frozenset(("s", f"needed{n}") for n in range(4))
    feeds = Feeds(needed)
    feeds.moved("s")
    for _, channel in needed:
        feeds.moved(f"s/{channel}")
    feeds.moved("s/busy")
    for n in range(100):
        feeds.moved(f"s/new{n}")
        assert "s/busy" in feeds.committed.cursors
        feeds.moved("s/busy", n + 2)
        assert len(feeds.committed.cursors) <= 11, "one may be looked at later"
    kept = feeds.committed.cursors
    assert kept["s"] == (3, 1)
    assert all(f"s/{channel}" in kept for _, channel in needed)
    assert kept["s/busy"] == (3, 101)
    assert kept.get("s/new99", NONE) == (3, 1)
    assert {f"s/new{n}" for n in range(90)} <= feeds.gone


def test_one_that_went_is_begun_anew_without_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed_feeds, "MAX_CURSORS", 1)
    feeds = Feeds()
    feeds.moved("s/a", 1)
    feeds.moved("s/b", 1)
    assert "s/a" not in feeds.committed.cursors
    assert feeds.moved("s/a", 7) is False


def test_more_that_are_needed_than_the_bound_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committed_feeds, "MAX_CURSORS", 3)
    feeds = Feeds(frozenset(("s", str(n)) for n in range(10)))
    for n in range(10):
        feeds.moved(f"s/{n}")
    assert len(feeds.committed.cursors) == 10
