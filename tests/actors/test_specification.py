"""What actors are given: they run in directories of their own."""

from pathlib import Path

import msgspec
import pytest

from cluster.actors.specification import Specification, encode
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


def test_what_is_said_last_has_the_highest_number_whatever_clocks_say() -> None:
    one, other = load_mapping({}, {}), load_mapping({"cluster": {"shards": 3}}, {})
    before = Specification.decode(encode(one, 7))
    for config, said, counts in ((other, 9, 9), (other, 7, 8), (other, 3, 8), (one, 3, 7), (one, 9, 9)):
        after = Specification.decode(encode(config, said)).after(before)
        assert (after.config, after.revision) == (Specification.decode(encode(config, said)).config, counts)
        assert Specification.decode(after.encoded).revision == counts
        assert after.token_secret == Specification.decode(after.encoded).token_secret
