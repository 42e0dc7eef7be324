"""Settings, and the schedule that a seed gives."""

import pytest

from cluster.errors import RequestError
from cluster.verify.plan import ACTORS, FAULTS, QUIET_S, Choices, Settings, acks_of, checked, fault_plan, faults_of


def test_the_same_seed_gives_the_same() -> None:
    settings = Settings(seconds=120, faults=FAULTS, seed=4)
    assert list(fault_plan(settings)) == list(fault_plan(settings))
    assert list(fault_plan(settings)) != list(fault_plan(Settings(seconds=120, faults=FAULTS, seed=5)))
    first, second = Choices(4, 0), Choices(4, 0)
    assert [first.act() for _ in range(50)] == [second.act() for _ in range(50)]
    assert [Choices(4, 0).act() for _ in range(50)] != [Choices(4, 1).act() for _ in range(50)]


def test_every_fault_comes_to_every_kind_of_actor_in_turn() -> None:
    faults = list(fault_plan(Settings(seconds=200, faults=FAULTS)))
    for kind in ("pause", "kill"):
        actors = [fault.actors for fault in faults if fault.kind == kind]
        assert set(actors[: len(ACTORS)]) == set(ACTORS)
    assert [fault.kind for fault in faults[:4]] == list(FAULTS)
    assert faults[-1].at_s <= 200 - QUIET_S


def test_no_faults_is_load_alone() -> None:
    assert list(fault_plan(Settings(faults=faults_of("")))) == []


def test_faults_are_read() -> None:
    assert faults_of("kill, flap") == ("flap", "kill")
    with pytest.raises(RequestError, match="there is no 'flood'"):
        faults_of("flap,flood")


def test_levels_are_read() -> None:
    assert acks_of("durable, memory") == ("memory", "durable")
    assert acks_of("") == ()
    with pytest.raises(RequestError, match="there is no 'disk', expected some of memory, replicated, durable"):
        acks_of("disk")


@pytest.mark.parametrize(
    "settings",
    [
        Settings(seconds=0),
        Settings(rate=float("nan")),
        Settings(clients=0),
        Settings(keys=1),
        Settings(prefix=()),
        Settings(max_silence_s=0),
        Settings(max_age_p99_ms=0),
    ],
)
def test_what_cannot_be_followed_is_refused(settings: Settings) -> None:
    with pytest.raises(RequestError, match=r"^--\S+: expected"):
        checked(settings)


def test_defaults_can_be_followed() -> None:
    assert checked(Settings()) == Settings()
    assert 2 <= Settings(rate=1).writers <= Settings(rate=5000).writers <= 40
