"""`harbor down` without a name: the only cluster there, or the one that has the name of clusters by default, and no guess otherwise."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayError

from tests.live import LiveCluster, free_port


def note(name: str, *, pid: int, address: str, under: Path) -> None:
    """Leave the note of a driver, as `harbor up` does."""
    directory = under / f"harbor-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    (directory / f"{name}.json").write_text(json.dumps({"pid": pid, "address": address, "upstream": None}))


def pid_of_nobody() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def down(notes: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "down", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "TMPDIR": str(notes)},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_several_here_are_named(tmp_path: Path) -> None:
    for name in ("staging", "offline"):
        note(name, pid=os.getpid(), address="127.0.0.1:1", under=tmp_path)
    note("gone", pid=pid_of_nobody(), address="127.0.0.1:1", under=tmp_path)
    assert down(tmp_path) == (
        2,
        "",
        "harbor: several clusters are running here: offline, staging; say which with --name (BAD_REQUEST)\n",
    )


def test_of_several_the_one_with_the_default_name_is_meant(tmp_path: Path) -> None:
    for name in ("staging", "harbor"):
        note(name, pid=os.getpid(), address=f"127.0.0.1:{free_port()}", under=tmp_path)
    code, said, why = down(tmp_path)
    assert (code, said) == (1, "")
    assert re.fullmatch(r"harbor: no Ray at 127\.0\.0\.1:\d+: .*Connection refused \(UNAVAILABLE\)\n", why), why


def test_where_no_ray_is_there_one_line_says_so(tmp_path: Path) -> None:
    code, said, why = down(tmp_path, "--address", f"127.0.0.1:{free_port()}")
    assert (code, said, why.count("\n")) == (1, "", 1)
    assert "no Ray at" in why


def test_where_there_is_none_it_says_so(tmp_path: Path) -> None:
    none = (1, "", "harbor: no cluster is running (NOT_FOUND)\n")
    assert down(tmp_path) == none
    note("gone", pid=pid_of_nobody(), address="127.0.0.1:1", under=tmp_path)
    assert down(tmp_path) == none


@pytest.fixture
def clusters(local_ray: None) -> Iterator[tuple[LiveCluster, LiveCluster]]:
    made = LiveCluster({"cluster": {"shards": 1}}), LiveCluster({"cluster": {"shards": 1}})
    for each in made:
        each.start()
    yield made
    for each in made:
        with suppress(RayError):
            each.stop()


@pytest.mark.cluster
@pytest.mark.timeout(240)
def test_the_only_one_of_a_ray_needs_no_name(clusters: tuple[LiveCluster, LiveCluster]) -> None:
    address = ray.get_runtime_context().gcs_address
    notes = Path(tempfile.gettempdir())
    one, other = (each.name for each in clusters)
    assert down(notes, "--address", address) == (
        2,
        "",
        f"harbor: several clusters are running at {address}: {', '.join(sorted([one, other]))}; say which with --name (BAD_REQUEST)\n",
    )
    assert down(notes, "--address", address, "--name", one) == (0, f"harbor stopped: {one}\n", "")
    assert down(notes, "--address", address) == (0, f"harbor stopped: {other}\n", "")
    assert down(notes, "--address", address) == (1, "", f"harbor: no cluster is running at {address} (NOT_FOUND)\n")


@pytest.mark.cluster
@pytest.mark.timeout(240)
def test_the_only_one_noted_here_needs_no_name(clusters: tuple[LiveCluster, LiveCluster], tmp_path: Path) -> None:
    one, other = (each.name for each in clusters)
    address = ray.get_runtime_context().gcs_address
    note(one, pid=os.getpid(), address=address, under=tmp_path)
    note("gone", pid=pid_of_nobody(), address="127.0.0.1:1", under=tmp_path)
    assert down(tmp_path) == (0, f"harbor stopped: {one}\n", "")
    assert down(tmp_path, "--address", address) == (0, f"harbor stopped: {other}\n", "")
