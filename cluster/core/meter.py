"""Rates: what the counters of actors came to a second, between the last two times that each was read.

Actors are read one after the other, so each has times of its own. A counter that is lower than before is that of a new life, which
began at nothing.

What must not live here: what counters there are (`cluster.observability`), how actors are read (`cluster.actors`).
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol

Labels = tuple[str, ...]


class Counted(Protocol):
    """One number of one actor, or a histogram's counts."""

    @property
    def name(self) -> str:
        """What it counts."""
        ...

    @property
    def labels(self) -> Labels:
        """Whose, `component` first."""
        ...

    @property
    def value(self) -> float:
        """How many; of a histogram the sum."""
        ...

    @property
    def buckets(self) -> tuple[int, ...]:
        """A histogram's counts, the last for what is above all bounds."""
        ...


class _Reading:
    __slots__ = ("at_ms", "buckets", "values")

    def __init__(self, at_ms: float, samples: Iterable[Counted]) -> None:
        self.at_ms = at_ms
        self.values: dict[str, dict[Labels, float]] = {}
        """By name."""
        self.buckets: dict[str, dict[Labels, tuple[int, ...]]] = {}
        for sample in samples:
            self.values.setdefault(sample.name, {})[sample.labels] = sample.value
            if sample.buckets:
                self.buckets.setdefault(sample.name, {})[sample.labels] = sample.buckets


class Meter:
    """See the module."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: the upper ends of histograms' buckets, the last bucket's left out."""
        self._bounds = bounds
        self._last: dict[str, _Reading] = {}
        self._before: dict[str, _Reading] = {}

    def take(self, actor: str, samples: Iterable[Counted], now_ms: float) -> None:
        """An actor was read."""
        last = self._last.get(actor)
        if last is not None:
            self._before[actor] = last
        self._last[actor] = _Reading(now_ms, samples)

    def keep(self, actors: Collection[str]) -> None:
        """Forget actors that there are no more."""
        for readings in (self._last, self._before):
            for actor in [actor for actor in readings if actor not in actors]:
                del readings[actor]

    @property
    def has_rates(self) -> bool:
        """Whether any actor was read twice."""
        return bool(self._before)

    def rates(self, name: str, label: int) -> dict[str, float]:
        """Return a counter's rate (1/s) by one of its labels, summed over the others."""
        rates: dict[str, float] = {}
        for labels, now, before, seconds in self._pairs(name):
            rates[labels[label]] = rates.get(labels[label], 0.0) + (now - before) / seconds
        return rates

    def rate(self, name: str) -> float:
        """Return a counter's rate (1/s) over all labels."""
        return sum(self.rates(name, 0).values())

    def values(self, name: str, label: int) -> dict[str, float]:
        """Return the newest values by one of the labels, summed over the others."""
        values: dict[str, float] = {}
        for reading in self._last.values():
            for labels, value in reading.values.get(name, {}).items():
                values[labels[label]] = values.get(labels[label], 0.0) + value
        return values

    def quantiles(self, name: str, *shares: float) -> list[float | None]:
        """Return what shares of a histogram's observations were at most (its unit), of all actors' since they were last read.

        Within a bucket they count as spread evenly. None: there was none; above the last bound it is the last bound.
        """
        counts = [0] * (len(self._bounds) + 1)
        for actor, now in self._last.items():
            before = self._before.get(actor)
            for labels, buckets in now.buckets.get(name, {}).items():
                if before is None or len(buckets) != len(counts):
                    continue
                held = before.buckets.get(name, {}).get(labels, ())
                is_anew = len(held) != len(buckets) or sum(held) > sum(buckets)
                for position, count in enumerate(buckets):
                    counts[position] += count - (0 if is_anew else held[position])
        return [self._quantile(counts, share) for share in shares]

    def _quantile(self, counts: list[int], share: float) -> float | None:
        wanted = sum(counts) * share
        if not wanted:
            return None
        below = 0.0
        for position, upper in enumerate(self._bounds):
            if counts[position] and below + counts[position] >= wanted:
                lower = self._bounds[position - 1] if position else 0.0
                return lower + (upper - lower) * (wanted - below) / counts[position]
            below += counts[position]
        return self._bounds[-1]

    def _pairs(self, name: str) -> Iterator[tuple[Labels, float, float, float]]:
        """Yield (labels, value, value before, seconds between) of those that were read twice."""
        for actor, now in self._last.items():
            before = self._before.get(actor)
            if before is None or now.at_ms <= before.at_ms:
                continue
            seconds = (now.at_ms - before.at_ms) / 1000.0
            known = before.values.get(name, {})
            for labels, value in now.values.get(name, {}).items():
                held = known.get(labels, 0.0)
                yield labels, value, held if held <= value else 0.0, seconds
