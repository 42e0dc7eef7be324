from pathlib import Path

import orjson
import pytest
import typer

from cluster.cli import commands
from cluster.cli.printable import printable, printable_json
from cluster.cli.up import Given

STEERS = "\x1b]0;owned\x07 \x9b2J \x7f \u202e \U000e0041 é[/red]"
"""Escape sequences, also as one character (C1), marks of direction, tags; and what is only text."""
SHOWN = r"\x1b]0;owned\x07 \x9b2J \x7f \u202e \U000e0041 é[/red]"


def test_what_steers_a_terminal_is_written_out() -> None:
    assert printable(STEERS) == SHOWN
    assert printable("é [/red]") == "é [/red]"
    assert printable(7) == "7"


def test_json_stays_the_same_value() -> None:
    shown = printable_json({"a": [STEERS, 1]})
    assert shown.isprintable()
    assert orjson.loads(shown) == {"a": [STEERS, 1]}


def test_an_error_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        commands._fail(STEERS, 1)
    assert capsys.readouterr().err == f"harbor: {SHOWN}\n"


def test_an_entry_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    commands._pretty({"a": STEERS})
    shown = capsys.readouterr().out
    assert orjson.loads(shown) == {"a": STEERS}
    assert all(line.isprintable() for line in shown.splitlines())


def test_lines_are_printable_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    commands._line({"a": STEERS})
    assert capsys.readouterr().out == orjson.dumps({"a": STEERS}).decode() + "\n"
    monkeypatch.setattr(commands, "_is_terminal", lambda: True)
    commands._line({"a": STEERS})
    assert capsys.readouterr().out.strip("\n").isprintable()
    commands._say(STEERS)
    assert capsys.readouterr().out == f"{SHOWN}\n"


def test_a_configuration_s_faults_are_printable(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "harbor.yaml").write_text(r'"\e]0;owned\a": {}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(typer.Exit):
        commands.check(Path("harbor.yaml"))
    with pytest.raises(typer.Exit):
        Given(Path("harbor.yaml"), None, {}, None).first()
    first, second = capsys.readouterr().err.splitlines()
    assert first == second
    assert first.startswith(r"harbor.yaml: \x1b]0;owned\x07: unknown key")
