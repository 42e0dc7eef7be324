"""The oracle: writes down what was acknowledged, at which level, and what watchers saw, and says what must not be.

Of each write that was acknowledged it knows the version. So every view of a key, whenever anybody saw it, can be judged: it has what was
written at or before its version, and nothing that was written later; and the same version is the same view, for whoever saw it and
however many lives of the shard lie between. In the end what is held must have every write whose level survives what has happened:

    memory      nothing but the life of the shard
    replicated  any loss that left another copy: the standby in sync, or what outlived its process
    durable     all but the loss of the last disk
    ""          as safe as could be had: what both of those survive

What must not live here: how writes are made (`writer`), what happens to shards (`world`, which says what was lost).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson

from cluster.simulation.view import Violation


@dataclass(slots=True)
class Wrote:
    """A write that was, or may have been, carried out."""

    key: str
    number: int
    kind: str
    """append | put | delete | step."""
    level: str
    version: int | None = None
    """As it was acknowledged; None: it was not."""
    is_refused: bool = False
    may_be_lost: bool = False
    """Since it was acknowledged something happened that its level does not survive."""


@dataclass(slots=True)
class Key:
    """What is known of one."""

    writes: dict[int, Wrote] = field(default_factory=dict)
    """By number."""
    seen: dict[int, bytes] = field(default_factory=dict)
    """By version."""


class Oracle:
    """See the module."""

    def __init__(self, shard_of_key: Callable[[str], int]) -> None:
        self._shard_of_key = shard_of_key
        self.keys: dict[str, Key] = {}
        self.tainted: set[int] = set()
        """Shards that have lost what nothing but a level promised to keep."""
        self.acknowledged = 0

    def _key(self, key: str) -> Key:
        found = self.keys.get(key)
        if found is None:
            found = self.keys[key] = Key()
        return found

    # --- what happens --------------------------------------------------------------------------------------------

    def asked(self, write: Wrote) -> None:
        """A client asks for a write."""
        self._key(write.key).writes[write.number] = write

    def wrote(self, write: Wrote, version: int) -> None:
        """It was acknowledged.

        Raises:
            Violation: as something else before: it was done twice.
        """
        if write.version is not None and write.version != version:
            raise Violation(f"{write.key}: write {write.number} was done twice, at {write.version} and {version}")
        write.version = version
        self.acknowledged += 1

    def refused(self, write: Wrote) -> None:
        """It was refused: nothing of it is to be seen, unless that is lost and a gateway asks for it once more."""
        write.is_refused = True

    def saw(self, key: str, version: int, data: Any) -> None:
        """A watcher has seen a version.

        Raises:
            Violation: with other data than before.
        """
        seen = self._key(key).seen
        text = orjson.dumps(data)
        if seen.setdefault(version, text) != text:
            raise Violation(f"{key}: version {version} is {seen[version]!r} and {text!r}")

    def lost(self, shard: int, levels: Iterable[str], *, is_tainted: bool = False) -> None:
        """Something has happened to a shard that writes acknowledged by now, at these levels, need not survive."""
        lost = set(levels)
        if is_tainted:
            self.tainted.add(shard)
        for key, known in self.keys.items():
            if self._shard_of_key(key) == shard:
                for write in known.writes.values():
                    if write.level in lost or write.version is None:
                        write.may_be_lost = True

    # --- what must be --------------------------------------------------------------------------------------------

    def judge(self, held: Callable[[str], tuple[int, Any] | None]) -> None:
        """Judge all that was seen, and what shards hold in the end, as (version, data).

        Raises:
            Violation: something is not as it must be.
        """
        for key, known in self.keys.items():
            now = held(key)
            data = None if now is None else now[1]
            match key.split('"')[1]:
                case "log":
                    self._judge_log(key, known, data or [])
                case "cell":
                    self._judge_cell(key, known, data)
                case "steps":
                    self._judge_steps(key, known, data)
                case _:
                    pass

    def _judge_log(self, key: str, known: Key, data: list[int]) -> None:
        writes = known.writes.values()
        if len(set(data)) != len(data):
            raise Violation(f"{key}: written twice: {data}")
        if unknown := {number for number in data if self._is_refused(known, number)}:
            raise Violation(f"{key}: refused, or never written: {unknown}")
        sure = [each for each in writes if each.version and not each.may_be_lost]
        if missing := [each for each in sure if each.number not in data]:
            raise Violation(f"{key}: acknowledged and lost: {missing} of {data}")
        placed = sorted((each.version or 0, each.number) for each in sure)
        order = [number for _, number in placed]
        if order != [number for number in data if number in set(order)]:
            raise Violation(f"{key}: versions are not in order of commits: {placed} {data}")
        for version, text in known.seen.items():
            seen = set(orjson.loads(text)) if text else set()
            for each in sure:
                assert each.version is not None
                if each.version > version and each.number in seen:
                    raise Violation(f"{key}: version {version} shows {each.number}, written at {each.version}")
                if each.version <= version and each.number not in seen:
                    raise Violation(f"{key}: version {version} lacks {each.number}, written at {each.version}")

    @staticmethod
    def _is_refused(known: Key, number: int) -> bool:
        write = known.writes.get(number)
        return write is None or (write.is_refused and not write.may_be_lost)

    def _judge_cell(self, key: str, known: Key, data: Any) -> None:
        sure = [each for each in known.writes.values() if each.version and not each.may_be_lost]
        last = max(sure, key=lambda each: each.version or 0, default=None)
        # One client writes here, one thing at a time; but what it gave up, or was lost, a gateway may still have asked for later.
        may_be = {
            None if each.kind == "delete" else each.number
            for each in known.writes.values()
            if not self._is_refused(known, each.number)
            if last is None or each.number >= last.number or each.version is None or each.may_be_lost
        }
        if last is None:
            may_be.add(None)
        if data not in may_be:
            raise Violation(f"{key}: holds {data}, last was {last}")
        for each in sure:
            text = known.seen.get(each.version or 0)
            if each.kind == "put" and text and orjson.loads(text) != each.number:
                raise Violation(f"{key}: version {each.version} is {text!r}, {each.number} was written")

    def _judge_steps(self, key: str, known: Key, data: Any) -> None:
        """Each step was made from the version before it: as many were made as there are."""
        done = [each for each in known.writes.values() if each.version]
        kept = sum(not each.may_be_lost for each in done)
        count = 0 if data is None else data
        asked = sum(not self._is_refused(known, number) for number in known.writes)
        if not kept <= count <= asked:
            raise Violation(f"{key}: {count} steps, {kept} were acknowledged of {asked}")
        if not any(each.may_be_lost for each in known.writes.values()):
            versions = [each.version for each in done]
            if len(set(versions)) != len(versions):
                raise Violation(
                    f"{key}: two steps were made at one version: {sorted(map(int, filter(None, versions)))}"
                )
