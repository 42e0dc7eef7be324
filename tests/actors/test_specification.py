"""What actors are given: they run in directories of their own."""

from pathlib import Path

import msgspec
import pytest

from cluster.actors.specification import encode
from cluster.config import Config, load_mapping


def test_files_are_named_for_those_who_run_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("keys.txt", "revoked.txt"):
        (tmp_path / name).write_text("")
    auth = {"mode": "api_keys", "keys_file": "keys.txt", "revoked_file": "revoked.txt"}
    given = load_mapping({"gateway": {"auth": auth}, "storage": {"path": "stores"}}, {})
    _, made, _ = msgspec.msgpack.decode(encode(given, 1), type=tuple[int, Config, str])
    assert made.storage.path == str(tmp_path / "stores")
    assert made.gateway.auth.keys_file == str(tmp_path / "keys.txt")
    assert made.gateway.auth.revoked_file == str(tmp_path / "revoked.txt")


def test_what_is_not_given_stays_so() -> None:
    _, made, _ = msgspec.msgpack.decode(
        encode(load_mapping({"storage": {"path": None}}, {}), 1), type=tuple[int, Config, str]
    )
    assert (made.storage.path, made.gateway.auth.keys_file, made.gateway.auth.revoked_file) == (None, "", "")
