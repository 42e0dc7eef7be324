from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError

from cluster.actors.deploy import Reloading
from cluster.actors.specification import Specification
from cluster.config import Config, load_mapping


def configured(window: str) -> Config:
    return load_mapping({"batching": {"window": window}}, {})


class Supervisor:
    """Answers, or not."""

    def __init__(self) -> None:
        self.answers = True
        self.windows: list[float] = []
        self.served: list[Config] = []
        """What the admin port was told."""

    def apply(self, specification: bytes) -> None:
        if not self.answers:
            raise GetTimeoutError("Get timed out")
        self.windows.append(Specification.decode(specification).config.batching.window_ms)


def reloading(supervisor: Any, *says: Config | None) -> tuple[Reloading, Callable[[], None]]:
    said = iter(says)
    made = Reloading(configured("100ms"), lambda: next(said), supervisor, supervisor.served.append)
    return made, made.look


def test_a_change_is_applied_once() -> None:
    supervisor = Supervisor()
    made, look = reloading(supervisor, configured("200ms"), None)
    look()
    look()
    assert supervisor.windows == [200]
    assert supervisor.served == [made.config] == [configured("200ms")]


def test_a_supervisor_that_does_not_answer_is_told_again(capsys: pytest.CaptureFixture[str]) -> None:
    supervisor = Supervisor()
    supervisor.answers = False
    made, look = reloading(supervisor, configured("200ms"), None, None)
    look()
    assert made.config == configured("100ms")
    assert supervisor.served == []
    assert "configuration not applied: the supervisor does not answer" in capsys.readouterr().err
    supervisor.answers = True
    look()
    look()
    assert supervisor.windows == [200]
    assert made.config == configured("200ms")


def test_what_is_taken_back_before_the_supervisor_has_answered_is_told_too() -> None:
    supervisor = Supervisor()
    supervisor.answers = False
    _, look = reloading(supervisor, configured("200ms"), configured("100ms"), None)
    look()
    supervisor.answers = True
    look()
    look()
    assert supervisor.windows == [100]
