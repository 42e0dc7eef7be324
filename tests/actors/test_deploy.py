import json
import math
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ray.exceptions import GetTimeoutError

from cluster.actors import deploy
from cluster.actors.deploy import Reloading
from cluster.actors.specification import Specification
from cluster.config import Config, load_mapping
from cluster.errors import ErrorCode, HarborError
from tests.live import free_port


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


# --- notes ---


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where notes are; nothing is there yet."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"harbor-{os.getuid()}"


def leave_note(place: Path) -> None:
    note = {"pid": os.getpid(), "address": "127.0.0.1:1", "upstream": None}
    (place / "harbor.json").write_text(json.dumps(note))


def test_a_note_of_ours_is_read(notes: Path) -> None:
    assert deploy.running("harbor") is None
    notes.mkdir(mode=0o700)
    leave_note(notes)
    assert deploy.running("harbor") == {"pid": os.getpid(), "address": "127.0.0.1:1", "upstream": None}


def refuses(ask: Callable[[], object], place: Path) -> None:
    with pytest.raises(HarborError, match="nobody else") as raised:
        ask()
    assert str(place) in raised.value.message
    assert raised.value.code is ErrorCode.FORBIDDEN


@pytest.mark.parametrize("mode", [0o777, 0o750, 0o701])
def test_a_note_where_others_may_leave_one_is_not_believed(notes: Path, mode: int) -> None:
    notes.mkdir()
    notes.chmod(mode)
    leave_note(notes)
    refuses(lambda: deploy.running("harbor"), notes)
    refuses(lambda: deploy.down(None), notes)
    refuses(lambda: deploy.down(None, "harbor"), notes)


def test_a_link_to_notes_is_not_followed(notes: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    leave_note(elsewhere)
    notes.symlink_to(elsewhere)
    refuses(lambda: deploy.running("harbor"), notes)


def test_another_user_s_notes_are_not_believed(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: victim)
    place = notes.with_name(f"harbor-{victim}")
    place.mkdir(mode=0o700)
    leave_note(place)
    refuses(lambda: deploy.running("harbor"), place)


# --- places ---


@pytest.mark.parametrize("host", ["fe80::1%nowhere", "a..b", "x" * 64])
def test_a_host_that_is_none_is_said(host: str) -> None:
    with pytest.raises(HarborError, match="cannot be used") as raised:
        deploy._check_port(host, free_port())
    assert f"{host}:" in raised.value.message


@pytest.mark.parametrize("address", ["a..b:6379", "fe80::1%nowhere:6379"])
def test_an_address_that_is_none_is_said(address: str) -> None:
    with pytest.raises(HarborError, match="no Ray at") as raised:
        deploy.down(address)
    assert address in raised.value.message


@pytest.mark.parametrize("address", ["a..b:6379", "auto"])
def test_an_address_to_join_that_is_none_is_said_at_once(address: str) -> None:
    with pytest.raises(HarborError, match="expected HOST:PORT") as raised:
        deploy.down(address, joins=True)
    assert address in raised.value.message


def test_a_cluster_is_given_up_only_when_nothing_more_of_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    class Stop(threading.Event):
        def wait(self, _: float | None = None) -> bool:
            nonlocal now
            now += 1.0
            return False

    class Supervisor:
        def describe(self) -> dict[str, Any]:
            missing = [name for name, at in (("gateway-0", 50.0), ("shard-0", 100.0), ("shard-1", ends)) if now < at]
            return {"ready": not missing, "waits_for": missing}

    monkeypatch.setattr(deploy, "time", SimpleNamespace(monotonic=lambda: now))
    ends = 180.0
    assert deploy._await_ready(cast("Any", Supervisor()), Stop(), 90.0)["ready"]
    assert now == ends
    now, ends = 0.0, math.inf
    with pytest.raises(HarborError, match=r"nothing came for 90 s of what is missing: shard-1 \("):
        deploy._await_ready(cast("Any", Supervisor()), Stop(), 90.0)
    assert 190.0 < now < 195.0
