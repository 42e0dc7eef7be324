"""Which processes are the cluster's, and that what was stopped goes on."""

import os
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import RequestError
from cluster.verify import faults


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(faults, "_PROC", tmp_path)
    return tmp_path


def process(proc: Path, pid: int, command: bytes) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cmdline").write_bytes(command)


DESCRIBED: dict[str, Any] = {
    "shards": [{"id": 0, "pid": 11, "store": "open"}, {"id": 1, "pid": 12, "store": "open"}, {"id": 2}],
    "gateways": [],
    "coordinators": [],
    "ingestors": [],
    "supervisor": {"pid": 20},
}


def test_a_pid_counts_where_such_an_actor_has_it(proc: Path) -> None:
    process(proc, 11, b"ray::ShardActor.call\0")
    process(proc, 12, b"/usr/bin/mail\0")  # of another host it is a shard's
    process(proc, 20, b"ray::SupervisorActor\0")
    assert faults.processes(DESCRIBED, "shards") == [11]
    assert faults.processes(DESCRIBED, "supervisor") == [20]
    faults.require_processes(DESCRIBED)


def test_where_there_are_none_it_is_said(proc: Path) -> None:
    with pytest.raises(RequestError, match="none of them is: run it on one of its nodes"):
        faults.require_processes(DESCRIBED)


def test_a_cluster_without_stores_is_known() -> None:
    assert not faults.keeps_nothing(DESCRIBED)
    assert faults.keeps_nothing({"shards": [{"id": 0, "store": "none"}]})


def test_what_was_stopped_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, str]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number.name)))
    made = faults.Faults([])
    made._stopped = {5, 6}
    made.end(5)
    made.end()
    assert sent == [(5, "SIGCONT"), (6, "SIGCONT")]
