"""What a run does: its settings, and from a seed the order of writes and faults. The same seed gives the same; how long things take does not.

What must not live here: doing it (`load`, `watchers`, `faults`).
"""

import random
from collections.abc import Iterator
from typing import Any, Literal, TypeVar, get_args

from msgspec import Struct

from cluster.errors import ErrorCode, RequestError

Name = TypeVar("Name", bound=str)
FaultKind = Literal["flap", "slow", "pause", "kill"]
FAULTS: tuple[FaultKind, ...] = get_args(FaultKind)
ON_PROCESSES: frozenset[FaultKind] = frozenset({"pause", "kill"})
ACTORS = ("shards", "gateways", "coordinators", "ingestors", "supervisor")
"""Kinds of actors, as `/v1/cluster` names them, in the order in which they are killed and stopped."""
FIRST_FAULT_S = 2.0
"""Of load alone, so that there is something to lose."""
FAULT_PAUSE_S = 4.0
"""From one fault to the next."""
QUIET_S = 4.0
"""At the end without new faults, in which everything has to come back."""
PAUSED_S = 3.0
SLOW_S = (1.0, 3.0)
Act = Literal["set", "patch", "merge", "delete", "stale", "conditional", "count", "contend"]
OWN_ACTS: tuple[tuple[Act, float], ...] = (
    ("set", 40.0),
    ("patch", 20.0),
    ("merge", 15.0),
    ("conditional", 15.0),
    ("stale", 5.0),
    ("delete", 5.0),
)
"""What is done with a key that a writer has for itself, and how often."""
SHARED = 0.2
"""Share of writes that go to keys which several writers count up."""
REPEATED = 0.1
"""Share of writes that are asked for twice with one `Idempotency-Key`."""
PAD_BYTES = (0, 400)
"""Values are so much longer than what they say."""


Ack = Literal["memory", "replicated", "durable"]
ACKS: tuple[Ack, ...] = get_args(Ack)


class Settings(Struct, frozen=True):
    """What the user asks for. Rates are per second."""

    seconds: float = 30.0
    faults: tuple[FaultKind, ...] = ("flap", "slow")
    rate: float = 100.0
    clients: int = 12
    keys: int = 40
    prefix: tuple[Any, ...] = ("harbor-verify",)
    max_silence_s: float = 30.0
    max_age_p99_ms: float | None = None
    seed: int = 0
    acks: tuple[Ack, ...] = ()
    """Levels that writes ask for in turn; none: the cluster's default."""
    mutation: str = ""
    """Declared by the cluster, and begun again and again; "": none."""
    variables: dict[str, Any] = {}
    """Of it."""

    @property
    def writers(self) -> int:
        """How many write at once: one waits for its answer, which takes some milliseconds."""
        return max(2, min(32, round(self.rate / 25), self.keys))


def checked(settings: Settings) -> Settings:
    """Return settings that can be followed.

    Raises:
        RequestError: `BAD_REQUEST`, naming the option, what it may be and what it is.
    """
    bounds: list[tuple[str, float | None, float, float]] = [
        ("--seconds", settings.seconds, 1, 7 * 24 * 3600),
        ("--rate", settings.rate, 1, 5_000),
        ("--clients", settings.clients, 1, 500),
        ("--keys", settings.keys, 2, 10_000),
        ("--max-silence", settings.max_silence_s, 0.1, 3_600),
        ("--max-age-p99", settings.max_age_p99_ms, 1, 3_600_000),
    ]
    for name, value, least, most in bounds:
        if value is not None and not least <= value <= most:
            raise RequestError(ErrorCode.BAD_REQUEST, f"{name}: expected {least:g} to {most:g}, got {value:g}")
    if not settings.prefix:
        raise RequestError(ErrorCode.BAD_REQUEST, "--prefix: expected a key of its own, got [], which is every key")
    return settings


def faults_of(text: str) -> tuple[FaultKind, ...]:
    """Read `--faults`; none: load alone.

    Raises:
        RequestError: `BAD_REQUEST`, there is no such fault.
    """
    return _listed(text, FAULTS, "--faults")


def acks_of(text: str) -> tuple[Ack, ...]:
    """Read `--ack`; none: the cluster's default.

    Raises:
        RequestError: `BAD_REQUEST`, there is no such level.
    """
    return _listed(text, ACKS, "--ack")


def _listed(text: str, known: tuple[Name, ...], option: str) -> tuple[Name, ...]:
    """Return those of the known names that a text lists, in the order in which they are known."""
    named = [each.strip() for each in text.split(",") if each.strip()]
    for each in named:
        if each not in known:
            raise RequestError(
                ErrorCode.BAD_REQUEST, f"{option}: there is no {each!r}, expected some of {', '.join(known)}"
            )
    return tuple(each for each in known if each in named)


class Fault(Struct, frozen=True):
    """A fault to come."""

    at_s: float
    kind: FaultKind
    actors: str
    """Kind of actor, where it is one on processes."""
    choice: float
    """0 to 1: which of those there are then."""


def fault_plan(settings: Settings) -> Iterator[Fault]:
    """Yield the faults of a run, in order: each kind in turn, and on each kind of actor in turn."""
    if not settings.faults:
        return
    rng = random.Random(f"{settings.seed}/faults")
    last_s = max(settings.seconds - QUIET_S, FIRST_FAULT_S)
    turns = {kind: rng.randrange(len(ACTORS)) for kind in FAULTS}
    at_s = FIRST_FAULT_S
    number = 0
    while at_s <= last_s:
        kind = settings.faults[number % len(settings.faults)]
        actors = ""
        if kind in ON_PROCESSES:
            actors = ACTORS[turns[kind] % len(ACTORS)]
            turns[kind] += 1
        yield Fault(at_s, kind, actors, rng.random())
        number += 1
        at_s += FAULT_PAUSE_S if kind in ON_PROCESSES else FAULT_PAUSE_S / 2
    return


class Choices:
    """One writer's choices."""

    def __init__(self, seed: int, writer: int) -> None:
        self._rng = random.Random(f"{seed}/writer/{writer}")

    def act(self) -> Act:
        """What it does next."""
        if self._rng.random() < SHARED:
            return self._rng.choice(("count", "contend"))
        return self._rng.choices([act for act, _ in OWN_ACTS], [weight for _, weight in OWN_ACTS])[0]

    def one_of(self, count: int) -> int:
        """Return an index below `count`."""
        return self._rng.randrange(count)

    def repeats(self) -> bool:
        """Whether it asks twice."""
        return self._rng.random() < REPEATED

    def pad(self) -> str:
        """Return text by which a value is longer."""
        return "x" * self._rng.randint(*PAD_BYTES)
