"""What one edit of a client may cost the shard that applies it, and nobody else is answered meanwhile.

The problem: an operation is a few bytes, and what it does may be as much as the entry is long: items are looked for, shifted, written.
A body that passes every limit of size could keep a shard busy for minutes.

The method: every piece that grows with the entry is counted before it is done. A step is about what it takes to look at one item
(some 0.3 µs); what is done at the speed of memory counts by the block.

What must not live here: what streams do by an operator's rules, which is never refused.
"""

from math import inf

from cluster.core.limits import refuse
from cluster.errors import ErrorCode

MAX_OPERATIONS = 1_000
"""Of one edit. Each is decoded, told as a step of a patch, and applied again by every reader; what is longer is a value to be written."""
MAX_STEPS = 4_000_000
"""Of one edit: a second or so. The largest entry that edits may make (16 MiB) holds 1.9 million of the shortest objects with an id, so
one operation on every item of it passes, and many do, as those on one array look through it once."""
SHIFTED = 64
"""Items of an array that are moved up or down in one step; of text to be written as JSON, so many bytes."""
WRITTEN = 8
"""Bytes of text that are decoded, or put into a patch, in one step."""


class Work:
    """Steps that were done, of so many that may be."""

    __slots__ = ("_most", "done")

    def __init__(self, most: float = inf) -> None:
        self._most = most
        self.done = 0

    def spend(self, steps: int) -> None:
        """Count what is about to be done.

        Raises:
            LimitError: `TOO_LARGE`, it is more than may be.
        """
        self.done += steps
        if self.done > self._most:
            message = (
                f"an edit takes at most {self._most} steps of work: it has too many operations for so large a value"
            )
            refuse(ErrorCode.TOO_LARGE, "edit_steps", self._most, message)


def check_count(operations: int) -> None:
    """Check how many operations an edit has.

    Raises:
        LimitError: `TOO_LARGE`.
    """
    if operations > MAX_OPERATIONS:
        message = f"an edit has at most {MAX_OPERATIONS} operations, got {operations}"
        refuse(ErrorCode.TOO_LARGE, "operations", MAX_OPERATIONS, message)
