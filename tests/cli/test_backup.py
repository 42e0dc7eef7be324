"""`harbor backup`: whatever the stream does, there is a whole backup afterwards, or none and a reason."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from cluster.cli.backup import look_over, make, put_back
from cluster.cli.commands import app
from cluster.config import load_mapping
from cluster.core.digest import digest_of
from cluster.core.placement import assign_slots
from cluster.core.stored_rows import frame, meta_frame, rows_of
from cluster.errors import HarborError, UnavailableError
from cluster.wire.backup import End, Failed, Part, Start, StreamFrame, Whole, encode_frame
from tests.core.test_stored_rows import meta_of, stored

HELD = stored()
ROWS = b"".join([meta_frame(meta_of(HELD)), *(frame(*row) for row in rows_of(HELD))])
COUNTS = {"entry": 3, "cursor": 1, "checkpoint": 1, "result": 1, "change": 2, "mutation": 2}
START = Start(1, "0.1.0", 2, "harbor", [0], 1, list(assign_slots([0], 1).owners))
WHOLE = Whole(0, HELD.epoch, HELD.offset, 5.0, COUNTS, digest_of(HELD))
STREAM: list[StreamFrame] = [START, Part(0, ROWS), WHOLE, End()]


class Streaming:
    """A client whose cluster says what a test wants; an exception among the frames is raised."""

    def __init__(self, *said: StreamFrame | bytes | Exception) -> None:
        self._said = said

    def backup(self) -> Iterator[bytes]:
        for each in self._said:
            if isinstance(each, Exception):
                raise each
            yield each if isinstance(each, bytes) else encode_frame(each)


def made(tmp_path: Path, *said: StreamFrame | bytes | Exception) -> Any:
    client: Any = Streaming(*said)
    return make(client, tmp_path / "backup")


def test_a_whole_stream_is_a_backup(tmp_path: Path) -> None:
    assert made(tmp_path, *STREAM).shards[0].digest == WHOLE.digest
    assert look_over(tmp_path / "backup") | {"made_at": ""} == {
        "cluster": "harbor",
        "made_at": "",
        "shards": 1,
        "entries": 3,
        "mutations": 2,
        "bytes": len(ROWS),
    }


@pytest.mark.parametrize(
    ("said", "code", "says"),
    [
        (STREAM[:-1], "INTERNAL", "the gateway ended the stream before its end"),
        ([*STREAM[:2], End()], "INTERNAL", "missing: shard-0"),
        ([*STREAM[:2], Failed("UNAVAILABLE", "shard-0 does not answer")], "UNAVAILABLE", "shard-0 does not answer"),
        ([*STREAM[:2], UnavailableError("it broke off")], "UNAVAILABLE", "it broke off"),
        ([b"<html>"], "INTERNAL", "what was sent is no backup"),
        ([START, Part(7, ROWS)], "INTERNAL", "it has not announced"),
        ([START, Part(0, ROWS[:-1])], "INTERNAL", "a frame has been cut short"),
        ([START, Part(0, ROWS[:-60]), WHOLE], "INTERNAL", "cut short"),
        ([*STREAM[:3], Part(0, ROWS)], "INTERNAL", "or has ended"),
    ],
    ids=["no end", "no shard", "failed", "broken", "no stream", "another", "cut", "cut far", "after its end"],
)
def test_anything_else_leaves_nothing(tmp_path: Path, said: Any, code: str, says: str) -> None:
    with pytest.raises(HarborError, match=says) as raised:
        made(tmp_path, *said)
    assert raised.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_which_file_is_wrong_and_where_it_has_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path, *STREAM)
    monkeypatch.chdir(tmp_path)

    def restore(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["restore", "backup", *arguments])

    missing = restore("nope.yaml")
    assert (missing.exit_code, missing.stderr) == (2, "nope.yaml: cannot be read: No such file or directory\n")
    Path("harbor.yaml").write_text("cluster: {name: fresh, shards: 1}")
    done = restore("harbor.yaml")
    assert (done.exit_code, orjson.loads(done.stdout)["directory"]) == (0, str(tmp_path / ".harbor" / "fresh"))
    again = restore("harbor.yaml")
    assert (again.exit_code, again.stderr.endswith("a store is there already; --replace sets it aside\n")) == (1, True)


def test_restore_takes_the_configuration_that_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, *STREAM)
    monkeypatch.chdir(tmp_path)

    def restore(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["restore", "backup", *arguments])

    none = restore()
    assert (none.exit_code, none.stdout) == (2, "")
    assert none.stderr == (
        "harbor: expected either CONFIG, the cluster to restore, or --check; there is no ./harbor.yaml (BAD_REQUEST)\n"
    )
    Path("harbor.yaml").write_text("cluster: {name: here, shards: 1}")
    checked = restore("--check")
    assert (checked.exit_code, orjson.loads(checked.stdout)["entries"]) == (0, 3)
    assert not Path(".harbor").exists()
    done = restore()
    assert (done.exit_code, orjson.loads(done.stdout)["directory"]) == (0, str(tmp_path / ".harbor" / "here"))
    both = restore("harbor.yaml", "--check")
    assert (both.exit_code, both.stderr) == (
        2,
        "harbor: expected either CONFIG, the cluster to restore, or --check (BAD_REQUEST)\n",
    )


def test_where_nothing_is_kept_nothing_is_put_back(tmp_path: Path) -> None:
    made(tmp_path, *STREAM)
    config = load_mapping({"cluster": {"shards": 2}, "storage": {"path": None}}, {})
    with pytest.raises(HarborError, match=r"storage\.path: this cluster keeps nothing"):
        put_back(tmp_path / "backup", config, shards=[], replaces=False)
    config = load_mapping({"cluster": {"shards": 2}, "storage": {"path": str(tmp_path / "s")}}, {})
    with pytest.raises(HarborError, match="--shard 2: there are 0 to 1"):
        put_back(tmp_path / "backup", config, shards=[2], replaces=False)
    assert put_back(tmp_path / "backup", config, shards=[1], replaces=False).shards == [1]
