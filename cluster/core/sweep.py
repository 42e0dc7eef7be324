"""Work over many entries, cut into slices so that nothing else waits long for its turn."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
SLICE = 1_000
"""Items per slice: a few milliseconds of work."""


class _Sweep(Generic[T]):
    __slots__ = ("done", "items", "step")

    def __init__(self, items: Iterable[T], step: Callable[[T], None], done: Callable[[], None] | None) -> None:
        self.items: Iterator[T] = iter(items)
        self.step = step
        self.done = done


class Sweeps:
    """Sweeps under way, in the order they were begun."""

    def __init__(self) -> None:
        self._sweeps: deque[_Sweep[object]] = deque()

    def __bool__(self) -> bool:
        return bool(self._sweeps)

    def begin(self, items: Iterable[T], step: Callable[[T], None], done: Callable[[], None] | None = None) -> None:
        """Take `step` with every one of `items`, which must be a copy of whatever may change meanwhile; then call `done`."""
        self._sweeps.append(_Sweep(items, step, done))  # type: ignore[arg-type]  # each step takes its own items

    def advance(self) -> None:
        """Do a slice."""
        budget = SLICE
        while budget and self._sweeps:
            sweep = self._sweeps[0]
            for item in sweep.items:
                sweep.step(item)
                budget -= 1
                if not budget:
                    break
            else:
                self._sweeps.popleft()
                if sweep.done is not None:
                    sweep.done()
