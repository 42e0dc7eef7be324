"""Deliberate bugs, each of which schedules have to find: a simulation that never fails proves nothing.

A mutant replaces lines of one method for as long as it is tried. `python -m tests.simulation.mutants [NAME]` looks for the first seed that
finds each where the one pinned to it does not any more.
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.core import (
    acknowledgement,
    committed_feeds,
    coordinator_state,
    gateway_state,
    history,
    ingestion_state,
    link,
    primaries,
    replication,
    shard_roles,
    shard_slots,
    shard_state,
    transaction,
)
from cluster.simulation import Violation, world
from tests.simulation import moving_writes, rebalancing, schedule
from tests.simulation.failover import Failover, Removal
from tests.simulation.ledger import Ledger

SEEDS = 2_000
"""Tried for one that finds a bug."""


@dataclass(frozen=True)
class Edit:
    """In the source of a function, one text in place of another."""

    owner: Any
    """The class or module that has it."""
    function: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A bug."""

    name: str
    breaks: str
    """What it breaks."""
    edits: tuple[Edit, ...]
    seed: int
    """One that finds it."""
    shows: str
    """As what: an expression that the violation matches. Anything else that goes wrong is not what the bug breaks."""
    make: Callable[[int], Any] = Failover


MUTANTS = (
    Mutant(
        "acknowledges before the standby has it",
        "what was acknowledged is gone with the primary",
        (Edit(replication.Replication, "step", "if not self.holds:", "if True:"),),
        3,
        "acknowledged and lost",
    ),
    Mutant(
        "the standby acknowledges what it did not commit",
        "the same, from the other end",
        (Edit(replication.Following, "replicate", "self._store.commit(_decode(record))", "_decode(record)"),),
        3,
        "acknowledged and lost|has diverged",
    ),
    Mutant(
        "acknowledges a durable write before its sync",
        "a power cut takes what was durable",
        (Edit(acknowledgement.Acknowledgements, "is_durable", "return not self._undurable", "return False"),),
        6,
        "acknowledged and lost",
    ),
    Mutant(
        "promotes without waiting out the lease",
        "two primaries serve at once",
        (Edit(replication.Following, "lead", "now_ms + max(wait_ms, 0.0)", "now_ms"),),
        28,
        "lets something out",
    ),
    Mutant(
        "serves after the lease",
        "two primaries serve at once",
        (Edit(replication.Replication, "_released", "not self.lease.holds(now_ms)", "False"),),
        28,
        "lets something out",
    ),
    Mutant(
        "renews its lease when the answer comes",
        "the lease is longer than the standby believes",
        (
            Edit(
                replication.Replication,
                "answered",
                "self.lease.renewed(self._sent_ms)",
                "self.lease.renewed(now_ms + 1_000.0)",
            ),
        ),
        28,
        "lets something out",
    ),
    Mutant(
        "lets out what follows a lost standby",
        "what is acknowledged then is gone with the promotion",
        (
            Edit(
                replication.Replication,
                "step",
                "if transaction is not None and self._is_filling:",
                "if transaction is not None and self._is_filling and not self.lost:",
            ),
        ),
        85,
        "acknowledged and lost|in truth",
    ),
    Mutant(
        "promotes a standby that was removed",
        "what the primary acknowledged without it is gone",
        (Edit(shard_roles.ShardRoles, "_successor", "report.epoch == self.record.epoch and ", ""),),
        4,
        "acknowledged and lost|in truth",
        Removal,
    ),
    Mutant(
        "promotes a standby by what was heard of it long ago",
        "the primary, which has everything, loses its role to one that has lost its disk",
        (
            Edit(
                shard_roles.ShardRoles,
                "decide",
                " if successor in self._fresh else [Ask(self.shard, successor)]",
                "",
            ),
        ),
        503,
        "acknowledged and lost|in truth",
    ),
    Mutant(
        "shows after a restart the base alone under a version that mutations lay over",
        "one version has two values",
        (Edit(shard_state.ShardState, "_restored", "stored.is_overlaid and stored.shown", "False"),),
        56,
        "version .* is .* and ",
    ),
    Mutant(
        "a standby that is to lead takes records of the epoch before",
        "the primary that it replaces goes on beside it, under a lease that it renews",
        (
            Edit(
                replication.Following,
                "replicate",
                "self.may_lead_at is not None or message.life != self.life or message.epoch < self.epoch",
                "False",
            ),
        ),
        3,
        "lets something out",
    ),
    Mutant(
        "skips the fence: takes what an earlier life sends",
        "receivers go back to what a primary that was replaced has",
        (
            Edit(primaries.Primaries, "is_over", "incarnation < self._incarnations.get(shard, 0)", "False"),
            Edit(link.Incoming, "admit", "return Foreign()", "return New(opened=False)"),
            Edit(gateway_state.GatewayState, "change_set", "message.epoch < shard.position[0]", "False"),
        ),
        65,
        "went back to epoch|a change from",
    ),
    Mutant(
        "drops a cursor in the transaction",
        "after a restart events are counted twice",
        (Edit(transaction.Unstored, "cursor", "if self.keeps:", "if False:"),),
        23,
        "held and true",
        Ledger,
    ),
    Mutant(
        "applies a repeated batch twice",
        "events are counted twice",
        (
            Edit(
                shard_state.ShardState,
                "batch",
                "if not any(self._committed.has(feed) for feed in message.feeds):",
                "if True:",
            ),
        ),
        51,
        "held and true",
        Ledger,
    ),
    Mutant(
        "forgets what is claimed",
        "an ingestor's next life sends again what is committed",
        (Edit(committed_feeds.CommittedFeeds, "claim", "if owner(feed) in sources", "if False"),),
        3,
        "held and true",
        Ledger,
    ),
    Mutant(
        "does a repeated request again",
        "a write whose answer was lost is done twice",
        (Edit(shard_state.ShardState, "_write", "if known is not None:", "if False:"),),
        1,
        "written twice|was done twice",
    ),
    Mutant(
        "forgets the results of writes in the transaction",
        "a write whose answer was lost with the shard is done twice",
        (Edit(transaction.Unstored, "result", "if self.keeps:", "if False:"),),
        3,
        "written twice|was done twice",
    ),
    Mutant(
        "sends change sets before the commit",
        "watchers have seen what a restart takes back",
        (
            Edit(
                shard_state.ShardState,
                "_taken",
                "effects.insert(0, Commit(transaction))",
                "effects[:0] = self.__dict__.pop('late', []); self.late = [Commit(transaction)]",
            ),
        ),
        13,
        "version .* is .* and |acknowledged and lost",
    ),
    Mutant(
        "numbers on after a restart where the store is",
        "a version that was seen is used again, for something else",
        (
            Edit(
                shard_state.ShardState,
                "_number",
                "if from_version > self._begun else self.offset",
                "if from_version else self.offset",
            ),
        ),
        38,
        "version .* is .* and ",
    ),
    Mutant(
        "knows nothing of positions it does not know",
        "who comes back misses what changed",
        (Edit(history.History, "since", "return None", "return {}"),),
        38,
        "client-|a change from",
    ),
    Mutant(
        "sends a mutation that is not stored",
        "its home has forgotten what was carried out",
        (Edit(transaction.Unstored, "mutation", "if self.keeps:", "if False:"),),
        1,
        "is forgotten|its home does not know it",
    ),
    Mutant(
        "begins lives by the clock alone",
        "whoever began anew after its clock was set back is not heard",
        (
            Edit(
                world.World, "start", "next_life(process.now_ms(), self._last_life.get(name))", "int(process.now_ms())"
            ),
        ),
        92,
        "held and true",
        Ledger,
    ),
    Mutant(
        "lets an ingestor go on in the middle of a cut",
        "what it makes by the old map goes to shards that have let go of it",
        (Edit(ingestion_state.IngestionState, "rebalance", "message.attempt < self._cut.attempt", "False"),),
        21,
        "held and true| is at shard",
        rebalancing.make,
    ),
    Mutant(
        "begins a link to a shard that is back as it began the last",
        "by a late word the shard was the same, and takes what is new for a repeat",
        (
            Edit(
                coordinator_state.CoordinatorState,
                "_open",
                "link.relink()",
                "link = Outgoing(self.identity, self.incarnation)",
            ),
        ),
        6071,
        "held and true",
        rebalancing.make,
    ),
    Mutant(
        "does not wait for commits before slots move",
        "a shard that has got further hides what another has yet to commit",
        (
            Edit(
                ingestion_state.IngestionState,
                "_hold",
                "all(line.is_quiet for line in self._lines)",
                "True",
            ),
        ),
        0,
        "held and true",
        rebalancing.make,
    ),
    Mutant(
        "does not send again what has changed since it was copied",
        "the next owner has what entries were",
        (Edit(shard_slots.ShardSlots, "_note", "if not moving and not results:", "if True:"),),
        0,
        "a change from|held and true",
        rebalancing.make,
    ),
    Mutant(
        "takes a map without the cursors of those who had the slots",
        "events of before are counted again",
        (Edit(committed_feeds.CommittedFeeds, "inherit", "if cursor > ", "if False and cursor > "),),
        21,
        "held and true",
        rebalancing.make,
    ),
    Mutant(
        "drops what is under way to a shard that ends",
        "it is not done, and whoever asked is told nothing for a minute",
        (Edit(gateway_state.GatewayState, "_take_map", "shard.out.relink()", "pass"),),
        15,
        "no answer to",
        moving_writes.make,
    ),
    Mutant(
        "asks a shard that lives anew for what is another's by now",
        "it is written where the next life drops it",
        (
            Edit(gateway_state.GatewayState, "_relink", "self._ask_elsewhere(shard, effects)", "pass"),
            Edit(shard_state.ShardState, "requests", " or self._is_for_others(message, slots)", ""),
        ),
        29,
        "is at shard",
        moving_writes.make,
    ),
    Mutant(
        "makes one range of a beginning and the events after it",
        "nobody learns of the events that were lost before",
        (Edit(coordinator_state._Pending, "add", "new.is_beginning", "False"),),
        38,
        "in truth",
        schedule.make,
    ),
)


def _edited(function: Any, edits: list[Edit]) -> Any:
    """Return a function with other source.

    Raises:
        LookupError: it is not what the edit was made for.
    """
    source = textwrap.dedent(inspect.getsource(function))
    for edit in edits:
        if edit.old not in source:
            raise LookupError(f"{edit.function} has no {edit.old!r} any more")
        source = source.replace(edit.old, edit.new)
    made: dict[str, Any] = {}
    exec(compile(source, inspect.getfile(function), "exec"), function.__globals__, made)
    return made[function.__name__]


@contextmanager
def applied(mutant: Mutant) -> Iterator[None]:
    """Have a bug for a while."""
    with ExitStack() as undo:
        for owner, name in dict.fromkeys((edit.owner, edit.function) for edit in mutant.edits):
            function = getattr(owner, name)
            edits = [edit for edit in mutant.edits if (edit.owner, edit.function) == (owner, name)]
            setattr(owner, name, _edited(function, edits))
            undo.callback(setattr, owner, name, function)
        yield


def finds(mutant: Mutant, seed: int) -> tuple[bool, str]:
    """Return whether a seed finds a bug as what it is, and what it finds at all; "": nothing."""
    with applied(mutant):
        try:
            mutant.make(seed).run()
        except Violation as error:
            return re.search(mutant.shows, str(error)) is not None, str(error)
        except Exception as error:  # noqa: BLE001 - it broke down before it broke a promise
            return False, f"{type(error).__name__}: {error}"
    return False, ""


def find(mutant: Mutant, seeds: range) -> int | None:
    """Return the first seed that finds a bug, if any does."""
    return next((seed for seed in seeds if finds(mutant, seed)[0]), None)


if __name__ == "__main__":
    for each in MUTANTS:
        if not sys.argv[1:] or any(text in each.name for text in sys.argv[1:]):
            is_found, what = finds(each, each.seed)
            print(f"{each.name}: {each.seed}: {'' if is_found else 'NOT FOUND '}{what[:150]}", flush=True)
            if not is_found:
                print(f"    first: {find(each, range(SEEDS))}", flush=True)
