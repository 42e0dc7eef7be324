"""Rates of counters that are read one after the other."""

from typing import NamedTuple

import pytest

from cluster.core.meter import Meter


class Sample(NamedTuple):
    name: str
    labels: tuple[str, ...]
    value: float
    buckets: tuple[int, ...] = ()


def events(source: str, value: float) -> Sample:
    return Sample("events", ("ingestor", source), value)


def ages(*buckets: int) -> Sample:
    return Sample("age", ("gateway", "0"), 0.0, buckets)


def test_a_rate_is_what_came_between_the_last_two_readings_of_each_actor() -> None:
    meter = Meter(())
    meter.take("a", [events("s", 100.0)], 1_000.0)
    assert meter.rates("events", 1) == {}  # nobody knows since when
    meter.take("a", [events("s", 150.0), events("t", 10.0)], 3_000.0)
    meter.take("b", [events("s", 0.0)], 1_500.0)
    meter.take("b", [events("s", 30.0)], 2_000.0)
    assert meter.rates("events", 1) == {"s": 25.0 + 60.0, "t": 5.0}
    assert meter.rate("events") == 90.0
    meter.take("a", [events("s", 150.0), events("t", 10.0)], 4_000.0)
    assert meter.rates("events", 1) == {"s": 60.0, "t": 0.0}
    assert meter.values("events", 1) == {"s": 180.0, "t": 10.0}


def test_a_counter_that_fell_began_anew() -> None:
    meter = Meter(())
    meter.take("a", [events("s", 1_000.0)], 0.0)
    meter.take("a", [events("s", 40.0)], 2_000.0)
    assert meter.rate("events") == 20.0


def test_actors_that_are_gone_count_no_more() -> None:
    meter = Meter(())
    for at in (0.0, 1_000.0):
        meter.take("a", [events("s", at)], at)
        meter.take("b", [events("s", at)], at)
    meter.keep(["b"])
    assert meter.rate("events") == 1_000.0


@pytest.mark.parametrize(
    ("before", "after", "share", "found"),
    [
        ((0, 0, 0), (0, 10, 0), 0.5, 1.5),
        ((0, 0, 0), (10, 0, 0), 0.99, 0.99),
        ((5, 5, 5), (5, 5, 9), 0.5, 2.0),  # above all bounds
        ((5, 5, 5), (5, 5, 5), 0.5, None),
        ((9, 9, 9), (0, 2, 0), 0.5, 1.5),  # a new life
    ],
)
def test_quantiles_are_of_what_was_observed_in_between(
    before: tuple[int, ...], after: tuple[int, ...], share: float, found: float | None
) -> None:
    meter = Meter((1.0, 2.0))
    meter.take("g", [ages(*before)], 0.0)
    meter.take("g", [ages(*after)], 1_000.0)
    assert meter.quantiles("age", share) == [found if found is None else pytest.approx(found)]


def test_the_first_reading_tells_no_quantile() -> None:
    meter = Meter((1.0, 2.0))
    meter.take("g", [ages(3, 3, 3)], 0.0)
    assert meter.quantiles("age", 0.5, 0.99) == [None, None]
