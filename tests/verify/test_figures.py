"""Percentiles from classes, and silences."""

from cluster.verify.figures import GROWTH, Ages, Silences


def test_percentiles_are_right_within_a_class() -> None:
    ages = Ages()
    for age in range(1, 1001):
        ages.add(age)
    for share in (0.5, 0.9, 0.99):
        assert 1000 * share <= ages.percentile(share) <= 1000 * share * GROWTH**2
    assert ages.told()["max_ms"] == 1000
    assert ages.percentile(1.0) == 1000


def test_none_and_clocks_that_differ() -> None:
    ages = Ages()
    assert ages.told() == {"count": 0, "p50_ms": 0.0, "p99_ms": 0.0, "max_ms": 0.0}
    ages.add(-5.0)
    assert ages.count == 1


def test_the_longest_silence_of_each_fault_counts() -> None:
    silences = Silences()
    for fault, seconds in (("flap", 0.2), ("kill shards", 1.234), ("flap", 0.1)):
        silences.add(fault, seconds)
    assert silences.told() == {"flap": 0.2, "kill shards": 1.23}
