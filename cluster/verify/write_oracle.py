"""What writes and mutations come to, as a judge: what was acknowledged is there in the end, once, and conditions were kept.

Pure, as `contract_oracle`, whose rules these are. What must not live here: making requests (`load`).
"""

from typing import Any

from cluster.verify.contract_oracle import Rule, Seen, Truth, Violation, short

SETTLED = frozenset({"success", "error", "cancelled"})


class Owned:
    """A key that one writer has for itself: the last acknowledged write is what is there, or one after it that may have happened."""

    def __init__(self, truth: Truth, key: str) -> None:
        self._truth = truth
        self.key = key
        self.version = 0
        """Of the last acknowledged write; 0: it deleted the entry, or there was none."""
        self.value: Any = None
        """None: deleted."""
        self._may_be: list[Any] = []
        """What writes without an answer would have made of it."""
        self.acknowledged = 0
        self._highest = 0

    @property
    def is_sure(self) -> bool:
        """Whether the entry is known to be at `version`."""
        return not self._may_be

    def wrote(self, version: int | None, value: Any) -> None:
        """A write was acknowledged; `version` None, `value` None: a deletion.

        Raises:
            Violation: `GROWTH`, or what `Truth.saw` finds.
        """
        self.acknowledged += 1
        self.value, self._may_be = value, []
        if version is None:
            self.version = 0
            return
        if version <= self._highest:
            raise Violation(Rule.GROWTH, self.key, f"a write at a version over {self._highest}", version)
        self.version = self._highest = version
        self._truth.saw(self.key, version, value)

    def unsure(self, value: Any) -> None:
        """A write was given up without an answer."""
        self._may_be.append(value)

    def refused(self, base: int, current: int) -> None:
        """A conditional write lost.

        Raises:
            Violation: `CONFLICT`: nobody else writes here, and it was over the version that is there.
        """
        if current == base:
            raise Violation(Rule.CONFLICT, self.key, f"a write over version {base}, which it has", "VERSION_CONFLICT")

    def rest(self, stored: Seen | None) -> None:
        """Compare with what is stored in the end.

        Raises:
            Violation: `LOST_WRITE`, `EXTRA_WRITE`.
        """
        data = None if stored is None else stored.data
        if not any(data == each for each in (self.value, *self._may_be)):
            held, wanted = (each.get("n", -1) if isinstance(each, dict) else -1 for each in (data, self.value))
            rule = Rule.EXTRA_WRITE if held > wanted else Rule.LOST_WRITE
            raise Violation(rule, self.key, short(self.value), short(data))


class Shared:
    """A key that several writers count up, by conditional writes or by increments: each that was acknowledged counts once."""

    def __init__(self, truth: Truth, key: str) -> None:
        self._truth = truth
        self.key = key
        self.acknowledged = 0
        self._unsure = 0
        self._bases: dict[int, int] = {}

    def counted(self) -> None:
        """An increment was acknowledged."""
        self.acknowledged += 1

    def won(self, base: int, version: int, value: Any) -> None:
        """A conditional write was acknowledged.

        Raises:
            Violation: `LOST_UPDATE`, `STALE_WRITE`.
        """
        if base in self._bases:
            expected = f"one write over version {base}, which made it {self._bases[base]}"
            raise Violation(Rule.LOST_UPDATE, self.key, expected, f"another, which made it {version}")
        if version <= base:
            raise Violation(Rule.STALE_WRITE, self.key, f"a version over {base}", version)
        self._bases[base] = version
        self.acknowledged += 1
        self._truth.saw(self.key, version, value)

    def lost(self, base: int, current: int) -> None:
        """A conditional write was refused.

        Raises:
            Violation: `CONFLICT`.
        """
        if current == base:
            raise Violation(Rule.CONFLICT, self.key, f"a write over version {base}, which it has", "VERSION_CONFLICT")

    def unsure(self) -> None:
        """A write was given up without an answer."""
        self._unsure += 1

    def rest(self, stored: Seen | None) -> None:
        """Compare with what is stored in the end.

        Raises:
            Violation: `LOST_WRITE`, `EXTRA_WRITE`.
        """
        count = stored.data.get("n", 0) if stored is not None and isinstance(stored.data, dict) else 0
        least, most = self.acknowledged, self.acknowledged + self._unsure
        if not least <= count <= most:
            rule = Rule.LOST_WRITE if count < least else Rule.EXTRA_WRITE
            raise Violation(rule, self.key, f"n of {least}" if least == most else f"n of {least} to {most}", count)


class Begun:
    """A mutation that was acknowledged: it is known from then on, and settled once."""

    def __init__(self, mutation: str) -> None:
        self.mutation = mutation
        self._settled: tuple[str, object] | None = None

    @property
    def is_settled(self) -> bool:
        """Whether its outcome was told."""
        return self._settled is not None

    def told(self, answer: dict[str, Any] | None) -> None:
        """Somebody asked for it, by its id or by beginning it again; None: it is not known.

        Raises:
            Violation: `LOST_MUTATION`, `MUTATION`.
        """
        if answer is None:
            raise Violation(Rule.LOST_MUTATION, self.mutation, "the mutation", "NOT_FOUND")
        now = (str(answer["status"]), answer.get("result", answer.get("error")))
        if self._settled is not None and now != self._settled:
            raise Violation(Rule.MUTATION, self.mutation, short(self._settled), short(now))
        if now[0] in SETTLED:
            self._settled = now


def stale_write_taken(key: str, base: int, held: int, version: int) -> Violation:
    """Return the violation of a write over `base` that was acknowledged while the entry was at `held`."""
    return Violation(Rule.STALE_WRITE, key, f"a conflict: it was over {base}, the entry is at {held}", version)


def check_repeat(key: str, first: object, again: object) -> None:
    """Compare two answers to one request.

    Raises:
        Violation: `REPEAT`.
    """
    if first != again:
        raise Violation(Rule.REPEAT, key, short(first), short(again))
