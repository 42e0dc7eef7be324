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
from tests.e2e.ledger_upstream import truth
from tests.e2e.test_exactly_once import RULES, document
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


@pytest.mark.timeout(240)
@pytest.mark.parametrize("shards", [2, 3], ids=["as they were", "others"])
def test_what_was_there_is_there_again(local_ray: None, tmp_path: Path, ledger: str, shards: int) -> None:
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
    again = LiveCluster({**given, "cluster": {"shards": shards}})
    done = put_back(tmp_path / "backup", again.config, shards=[], replaces=False)
    assert done.is_exact == (shards == 2)
    again.start()
    try:
        for number in range(50):
            wanted = max(each for each in before if each % 50 == number)
            held = data(again, "mine", number)
            assert held is not None
            assert held["n"] >= wanted
        waiting = httpx.get(f"{again.url}/v1/mutations").json()["mutations"]
        assert [each["id"] for each in waiting if each["status"] in ("queued", "paused", "pending")] == ["note-7"]
        if shards != 2:
            return
        eventually(lambda: last_of(again) > 4 * RATE)
        wanted = truth(httpx.post(f"http://{ledger}/stop").json()["last"])
        held: dict[str, Any] = {}

        def is_there() -> bool:
            for key in wanted:
                answer = httpx.get(f"{again.url}/v1/entries", params={"key": key}, timeout=60)
                held[key] = answer.json().get("data") if answer.is_success else None
            return held == wanted

        eventually(is_there)
        assert (
            RULES
        )  # what the ledger feeds: lists and counters, which would show an event that is missing or counts twice
    finally:
        again.stop()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HARBOR_TOKEN": ""},
    )


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
    finally:
        cluster.stop()
    gone = run("backup", str(tmp_path / "other"), "--url", cluster.url)
    assert (gone.returncode, gone.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "other").exists()
    assert (checked := run("restore", directory, "--check")).returncode == 0, checked.stderr
    assert (wrong := run("restore", directory)).returncode == 2
    assert "expected either CONFIG" in wrong.stderr
    assert run("restore", directory, str(config)).returncode == 0
    twice = run("restore", directory, str(config))
    assert (twice.returncode, "--replace sets it aside" in twice.stderr) == (1, True)
    assert run("restore", directory, str(config), "--replace").returncode == 0
    (tmp_path / "backup" / "shard-0.rows").write_bytes(b"")
    spoilt = run("restore", directory, "--check")
    assert (spoilt.returncode, "shard-0.rows: it has 0 bytes" in spoilt.stderr) == (1, True)


def test_a_cluster_without_stores_has_nothing_to_back_up(local_ray: None, tmp_path: Path) -> None:
    cluster = LiveCluster({}).start()
    try:
        with pytest.raises(HarborError, match=r"shard-\d keeps nothing on a disk") as refused:
            make(HttpClient(cluster.url), tmp_path / "backup")
        assert refused.value.code == "UNSUPPORTED"
    finally:
        cluster.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_second_backup_waits_for_its_turn(local_ray: None, tmp_path: Path) -> None:
    cluster = LiveCluster({"storage": {"path": str(tmp_path / "store")}}).start()
    try:
        for number in range(200):
            cluster.put(["a", number], "x" * 100_000, ack="memory")
        stream = HttpClient(cluster.url).backup()
        next(stream)  # which is far from its end
        with pytest.raises(HarborError, match="is being copied for another backup"):
            make(HttpClient(cluster.url), tmp_path / "backup")
        stream.close()
        eventually(lambda: make(HttpClient(cluster.url), tmp_path / "backup"))
        assert not list((tmp_path / "store").glob("**/copy"))
    finally:
        cluster.stop()
