"""The commands against a real cluster, as a user types them into a pipe."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.core.grants import ApiKeys, Grants
from cluster.core.query_key import normalized
from tests.live import Client, LiveCluster, eventually

HARBOR = [sys.executable, "-m", "cluster.cli"]


@pytest.fixture(scope="module")
def cluster(local_ray: None) -> Iterator[LiveCluster]:
    live = LiveCluster({"cluster": {"shards": 1}}).start()
    yield live
    live.stop()


def harbor(*arguments: str, url: str = "http://127.0.0.1:1") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "HARBOR_URL": url}
    return subprocess.run([*HARBOR, *arguments], capture_output=True, text=True, timeout=60, env=env, check=False)


@pytest.mark.cluster
def test_set_get_keys_invalidate_status(cluster: LiveCluster) -> None:
    done = harbor("set", '["note"]', '{"text":"hello"}', url=cluster.url)
    assert done.returncode == 0, done.stderr
    version = json.loads(done.stdout)["version"]
    entry = json.loads(harbor("get", '["note"]', url=cluster.url).stdout)
    assert (entry["data"], entry["version"], entry["status"]) == ({"text": "hello"}, version, "success")
    rows = [json.loads(line) for line in harbor("keys", url=cluster.url).stdout.splitlines()]
    assert [row["key"] for row in rows] == [["note"]]
    assert harbor("set", '["number"]', "-5", url=cluster.url).returncode == 0
    assert json.loads(harbor("get", '["number"]', url=cluster.url).stdout)["data"] == -5
    assert json.loads(harbor("invalidate", '["note"]', "--exact", url=cluster.url).stdout) == {"matched": 1}
    described = json.loads(harbor("status", "--json", url=cluster.url).stdout)
    assert described["name"] == cluster.name
    assert described["ready"] is True
    assert described["nodes"][0]["id"] == described["shards"][0]["node"]


@pytest.mark.cluster
async def test_it_is_shown_how_many_subscriptions_there_are(cluster: LiveCluster) -> None:
    clients = [await Client.open(cluster.url) for _ in range(3)]
    for client in clients:
        await client.subscribe(1, key=["counted"])
    await clients[0].subscribe(2, prefix=["counted"])
    await asyncio.to_thread(cluster.put, ["counted"], 1)
    (row,) = (await asyncio.to_thread(harbor, "keys", '["counted"]', url=cluster.url)).stdout.splitlines()
    described = (await asyncio.to_thread(harbor, "status", "--json", url=cluster.url)).stdout
    assert (json.loads(row)["subscribers"], json.loads(described)["shards"][0]["subscribers"]) == (4, 4)
    assert "subscriptions" not in json.loads(described)["gateways"][0]
    for client in clients:
        await client.close()


@pytest.mark.cluster
def test_get_why_says_where_data_came_from_and_why_it_is_stale(cluster: LiveCluster) -> None:
    cluster.put(["why"], 1)
    lines = harbor("get", '["why"]', "--why", url=cluster.url).stdout.splitlines()
    assert lines[0].startswith('["why"] is at version ')
    assert lines[1].startswith("value: written by a client, 2")
    assert lines[2] == "fresh: for good, unless it is invalidated"
    harbor("invalidate", '["why"]', "--exact", url=cluster.url)
    lines = harbor("get", '["why"]', "--why", url=cluster.url).stdout.splitlines()
    assert lines[2].startswith("stale: invalidated by api:invalidate, 2")


@pytest.mark.cluster
@pytest.mark.parametrize("root", ['["w"]', "[123456789012345678901234567890]"])
def test_watch_prints_changes_as_they_arrive(cluster: LiveCluster, root: str) -> None:
    command = [*HARBOR, "watch", root, "--prefix", "--patch", "--url", cluster.url]
    key = [json.loads(root)[0], 1]
    # Where the tests run in the background Ctrl-C is ignored, and who is started inherits that, but no handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    try:
        first: dict[str, Any] = json.loads(process.stdout.readline())
        assert first["type"] == "snapshot_end"
        assert harbor("set", json.dumps(key), '{"n":1}', url=cluster.url).returncode == 0
        message = json.loads(process.stdout.readline())
        assert normalized(json.dumps(message["key"])) == normalized(json.dumps(key))
        assert (message["type"], message["from"], message["data"]) == ("change", 0, {"n": 1})
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""


@pytest.mark.cluster
def test_watch_ends_without_a_word_when_its_reader_leaves(cluster: LiveCluster) -> None:
    command = [*HARBOR, "watch", '["left"]', "--prefix", "--url", cluster.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()

    def has_ended() -> bool:
        cluster.put(["left", 1], 1)
        return process.poll() is not None

    eventually(has_ended)
    assert process.stderr.read() == ""
    assert process.returncode == 0
    process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["get", "projects"], 2, "a query key is a JSON array"),
        (["set", '["a"]', "{nope"], 2, "the value is not JSON"),
        (["get", '["a"]'], 1, "no cluster answers at http://127.0.0.1:1"),
        (["watch", '["a"]'], 1, "no cluster answers at http://127.0.0.1:1"),
        (["invalidate", "[123456789012345678901234567890]"], 1, "no cluster answers at http://127.0.0.1:1"),
        (["get", '["a"]', "--url", "nonsense"], 2, "nonsense"),
        (["check", "/no/such/file.yaml"], 2, "cannot be read"),
        (["down", "--name", "no-such-cluster"], 1, "no cluster 'no-such-cluster' is running"),
    ],
)
def test_errors_are_one_line_without_a_traceback(arguments: list[str], code: int, says: str) -> None:
    done = harbor(*arguments)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("command", "says", "of"),
    [
        ("get", "missing argument 'key'", "harbor get"),
        ("dance", "no such command 'dance'", "harbor"),
        ("stat", "no such command 'stat'. Did you mean 'status'?", "harbor"),
        ("--loud", "no such option: --loud", "harbor"),
        ("get --loud", "no such option: --loud", "harbor get"),
        ("get --url", "option '--url' requires an argument", "harbor get"),
        ("get a b", "got unexpected extra argument(s) (b)", "harbor get"),
        ("up --port x", "invalid value for '--port': Input should be a valid integer", "harbor up"),
        ("up --port 65536", "invalid value for '--port': Input should be less than or equal to 65535", "harbor up"),
        ("up --demo=yes", "option '--demo' does not take a value", "harbor up"),
        ("key dance", "no such command 'dance'", "harbor key"),
        ("key new --loud", "no such option: --loud", "harbor key new"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(command: str, says: str, of: str) -> None:
    done = harbor(*command.split(" "))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"harbor: {says}")
    assert done.stderr.endswith(f" (see {of} --help)\n")
    assert len(done.stderr.splitlines()) == 1


def test_wrong_use_of_several_lines_is_one_line() -> None:
    done = harbor("get", "a", "b\nc\r\u2028d")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("command", "code"), [("", 2), ("key", 2), ("--help", 0), ("key --help", 0)])
@pytest.mark.parametrize("uses_rich", ["1", "0"])
def test_help_is_on_standard_output(command: str, code: int, uses_rich: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TYPER_USE_RICH", uses_rich)
    done = harbor(*command.split())
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.count("Usage: harbor ") == 1


@pytest.mark.parametrize(
    "command", ["up", "down", "check", "status", "get", "set", "watch", "keys", "invalidate", "mutations", "undo"]
)
def test_every_command_has_help(command: str) -> None:
    done = harbor(command, "--help")
    assert done.returncode == 0
    assert "Usage: " in done.stdout


def test_one_shot_commands_do_not_import_ray() -> None:
    program = "import sys, cluster.cli, cluster.client; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_a_new_key_is_printed_with_its_line_and_known_by_it() -> None:
    done = harbor("key", "new", "--name", "team", "--read", '["a","*"]', "--write", "[]", "--mutate", "x*", "--admin")
    assert (done.returncode, done.stderr) == (0, "")
    key, made = done.stdout.splitlines()
    assert re.fullmatch(r"hk_[\w-]{43}", key)
    principal = ApiKeys.parse(made).principal(key)
    assert principal is not None
    assert principal.subject == "team"
    assert principal.grants == Grants(read=[["a", "*"]], write=[[]], mutate=["x*"], admin=True)
    assert key not in made
    key, made = harbor("key", "new", "--tenant", "acme").stdout.splitlines()
    principal = ApiKeys.parse(made, tenants=True).principal(key)
    assert principal is not None
    assert principal.tenant.name == "acme"
    refused = harbor("key", "new", "--tenant", "*")
    assert (refused.returncode, "--tenant: expected 1 to 64" in refused.stderr) == (2, True)
    assert harbor("key", "new").stdout.splitlines()[0] != harbor("key", "new").stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("key", "new", "--read", "a"), "a query key is a JSON array, got a"),
        (("node", "--grace", "soon", "--", "--head"), "--grace: expected a duration"),
        (("node", "--", "--address=nowhere"), "--address: expected HOST:PORT, got 'nowhere'"),
        (("up", "--join"), "--join and --keep need --address"),
        (("down", "--join"), "--join needs --address"),
    ],
)
def test_wrong_use_of_the_cluster_s_own_commands_is_one_line(arguments: tuple[str, ...], reason: str) -> None:
    done = harbor(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_faults_of_an_app_and_a_file_together_name_both(tmp_path: Path) -> None:
    path = tmp_path / "harbor.yaml"
    path.write_text("cluster: {shard: 4}\n")
    done = harbor("up", str(path), "--app", "tests.app.sample_app:app")
    assert done.returncode == 2
    assert done.stderr.startswith(f"tests.app.sample_app:app, {path}: cluster.shard: unknown key")
