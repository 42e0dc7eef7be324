"""The secret of tokens is made once, kept where only its owner can read it, and goes to actors alone."""

import stat
from pathlib import Path

import msgspec
import pytest

from cluster.actors.specification import Specification, encode
from cluster.actors.token_secret import token_secret
from cluster.config import Config, load_mapping

SAID = "what the configuration says, of 32 characters and more"


def config(path: Path | None, **gateway: str) -> Config:
    return load_mapping({"storage": {"path": None if path is None else str(path)}, "gateway": gateway}, {})


def test_it_is_made_once_and_kept_beside_the_stores(tmp_path: Path) -> None:
    made = token_secret(config(tmp_path))
    assert len(made) >= 32
    assert token_secret(config(tmp_path)) == made
    (kept,) = (tmp_path / "harbor").iterdir()
    assert (kept.name, kept.read_text(), stat.S_IMODE(kept.stat().st_mode)) == ("token_secret", made, 0o600)


def test_what_the_configuration_says_goes_first_and_is_not_kept(tmp_path: Path) -> None:
    token_secret(config(tmp_path))
    assert token_secret(config(tmp_path, token_secret=SAID)) == SAID
    assert SAID not in (tmp_path / "harbor" / "token_secret").read_text()


def test_without_a_store_it_is_another_at_each_start() -> None:
    assert token_secret(config(None)) != token_secret(config(None))


def test_where_it_cannot_be_kept_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert token_secret(config(tmp_path / "file")) != token_secret(config(tmp_path / "file"))
    assert "set gateway.token_secret" in capsys.readouterr().err
    (tmp_path / "harbor").mkdir()
    (tmp_path / "harbor" / "token_secret").write_text("")
    assert token_secret(config(tmp_path))
    assert "token_secret: it is empty" in capsys.readouterr().err


def test_a_cluster_keeps_the_secret_it_has_until_its_configuration_says_another() -> None:
    first, second = (Specification.decode(encode(config(None), revision)) for revision in (1, 2))
    kept = second.following(first)
    assert kept.token_secret == first.token_secret != second.token_secret
    assert Specification.decode(kept.encoded).token_secret == kept.token_secret
    said = Specification.decode(encode(config(None, token_secret=SAID), 3))
    assert said.following(kept).token_secret == SAID
    assert said.token_secret not in repr(said) + repr(said.config) + repr(said.config.redacted())
    assert said.token_secret.encode() not in msgspec.json.encode(said.config.redacted())
    assert kept.token_secret not in repr(kept)
