"""`harbor backup` of a cluster under load, and what a cluster is after `harbor restore`: exactly that, and events go on counting once."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.cli.backup import make, put_back
from cluster.client import HttpClient
from cluster.errors import HarborError
from cluster.wire.backup import Failed, Frames
from tests.e2e.ledger_upstream import truth
from tests.e2e.test_exactly_once import document
from tests.live import LiveCluster, eventually, free_port

pytestmark = pytest.mark.cluster
RATE = 500
MUTATION = {
    "request": {"service": "api", "method": "POST", "path": "/notes", "body": "{variables}"},
    "optimistic": [{"set": {"key": ["notes", "{id}"], "value": "{variables}"}}],
    "scope": "notes",
}


@pytest.fixture
def ledger() -> Iterator[str]:
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "tests.e2e.ledger_upstream", str(port), str(RATE)]) as upstream:
        eventually(lambda: httpx.post(f"http://127.0.0.1:{port}/cut").is_success)
        yield f"127.0.0.1:{port}"
        upstream.kill()


def configured(ledger: str, store: Path) -> dict[str, Any]:
    return {
        **document("sse", ledger, store),
        "services": {"api": {"base_url": f"http://127.0.0.1:{free_port()}"}},
        "mutations": {"add_note": MUTATION},
    }


class Writing:
    """Writes one entry after the other, and remembers what was acknowledged."""

    def __init__(self, cluster: LiveCluster) -> None:
        self.acknowledged: list[int] = []
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def _write(self) -> None:
        number = 0
        while not self._stop.is_set():
            if self._cluster.put(["mine", number % 50], {"n": number}).is_success:
                self.acknowledged.append(number)
            number += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def data(cluster: LiveCluster, *key: Any) -> Any:
    answer = cluster.get(*key, fetch="never")
    return answer.json()["data"] if answer.is_success else None


def last_of(cluster: LiveCluster) -> int:
    return data(cluster, "last", "k0") or 0


@pytest.mark.timeout(300)
def test_what_was_there_is_there_again(local_ray: None, tmp_path: Path, ledger: str) -> None:
    given = configured(ledger, tmp_path / "store")
    cluster = LiveCluster(given).start()
    try:
        eventually(lambda: last_of(cluster) > 2 * RATE)
        begun = httpx.post(
            f"{cluster.url}/v1/mutations", json={"name": "add_note", "variables": {"id": "7"}, "id": "note-7"}
        )
        assert begun.is_success, begun.text
        writing = Writing(cluster)
        eventually(lambda: len(writing.acknowledged) > 100)
        before = list(writing.acknowledged)
        made = make(HttpClient(cluster.url), tmp_path / "backup")
        writing.stop()
        assert {each.shard for each in made.shards} == {0, 1}
    finally:
        cluster.stop()
    shutil.rmtree(tmp_path / "store")
    for shards in (3, 2):
        again = LiveCluster({**given, "cluster": {"shards": shards}})
        done = put_back(tmp_path / "backup", again.config, shards=[], replaces=False)
        assert done.is_exact == (shards == 2)
        again.start()
        try:
            require_what_was_acknowledged(again, before)
            if done.is_exact:
                require_the_ledger(again, ledger)
        finally:
            again.stop()


def require_what_was_acknowledged(cluster: LiveCluster, before: list[int]) -> None:
    for number in range(50):
        held = data(cluster, "mine", number)
        assert held is not None
        assert held["n"] >= max(each for each in before if each % 50 == number)
    waiting = httpx.get(f"{cluster.url}/v1/mutations").json()["mutations"]
    assert [each["id"] for each in waiting if each["status"] in ("queued", "paused", "pending")] == ["note-7"]


def require_the_ledger(cluster: LiveCluster, ledger: str) -> None:
    """Lists and counters equal what the upstream has sent, before the backup and since: an event that is missing or counts twice would show."""
    eventually(lambda: last_of(cluster) > 4 * RATE)
    wanted = truth(httpx.post(f"http://{ledger}/stop").json()["last"])
    held: dict[str, Any] = {}

    def is_there() -> bool:
        for key in wanted:
            if held.get(key) != wanted[key]:
                answer = httpx.get(f"{cluster.url}/v1/entries", params={"key": key}, timeout=60)
                held[key] = answer.json().get("data") if answer.is_success else None
        return held == wanted

    eventually(is_there)


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env={**os.environ, "HARBOR_TOKEN": ""},
    )


@pytest.mark.timeout(240)
def test_the_commands_say_what_is_wrong_in_one_line(local_ray: None, tmp_path: Path) -> None:
    cluster = LiveCluster({"storage": {"path": str(tmp_path / "store")}}).start()
    config = tmp_path / "harbor.yaml"
    config.write_text(
        yaml.safe_dump({"cluster": {"name": "fresh", "shards": 2}, "storage": {"path": str(tmp_path / "new")}})
    )
    directory = str(tmp_path / "backup")
    try:
        assert cluster.put(["a"], 1).is_success
        assert (made := run("backup", directory, "--url", cluster.url)).returncode == 0, made.stderr
        assert '"entries":1' in made.stdout
        again = run("backup", directory, "--url", cluster.url)
        assert (again.returncode, again.stderr.count("\n")) == (1, 1)
        assert "a backup overwrites nothing" in again.stderr
        require_one_at_a_time(cluster, tmp_path)
    finally:
        cluster.stop()
    gone = run("backup", str(tmp_path / "other"), "--url", cluster.url)
    assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "other").exists()
    assert (checked := run("restore", directory, "--check")).returncode == 0, checked.stderr
    nowhere = run("restore", directory, cwd=tmp_path / "store")
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)
    assert "expected either CONFIG" in nowhere.stderr
    assert run("restore", directory, str(config)).returncode == 0
    twice = run("restore", directory, cwd=tmp_path)
    assert (twice.returncode, "--replace sets it aside" in twice.stderr) == (1, True)
    assert run("restore", directory, str(config), "--replace").returncode == 0
    (tmp_path / "backup" / "shard-0.rows").write_bytes(b"")
    spoilt = run("restore", directory, "--check")
    assert (spoilt.returncode, "shard-0.rows: it has 0 bytes" in spoilt.stderr) == (1, True)


def require_one_at_a_time(cluster: LiveCluster, tmp_path: Path) -> None:
    """A second one is refused, one whose client is gone leaves nothing, and one whose shard dies says so."""
    for number in range(200):
        cluster.put(["a", number], "x" * 100_000, ack="memory")
    stream = HttpClient(cluster.url).backup()
    next(stream)  # which is far from its end
    with pytest.raises(HarborError, match="is being copied for another backup"):
        make(HttpClient(cluster.url), tmp_path / "second")
    stream.close()
    eventually(lambda: not list((tmp_path / "store").glob("**/copy")))
    stream = HttpClient(cluster.url).backup()
    frames = Frames()
    told = list(frames.feed(next(stream)))
    cluster.kill("shard-1")
    for chunk in stream:
        told += frames.feed(chunk)
    assert isinstance(told[-1], Failed)
    assert told[-1].code == "UNAVAILABLE"
    assert "shard-1" in told[-1].message
