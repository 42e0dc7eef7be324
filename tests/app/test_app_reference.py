"""An app is found by its name, or one line says why not."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cluster.app import load_app
from cluster.config.load import ConfigFaults
from tests.app.sample_app import app


def refused(reference: str) -> str:
    with pytest.raises(ConfigFaults) as raised:
        load_app(reference)
    assert "\n" not in raised.value.message
    return str(raised.value.message)


def test_an_app_is_found_by_name() -> None:
    assert load_app("tests.app.sample_app:app") is app


@pytest.mark.parametrize(
    ("reference", "fault"),
    [
        ("nonsense", "expected MODULE:NAME, as in shop.cache:app, got "),
        ("shop.py:app:x", "expected MODULE:NAME, as in shop.cache:app, got "),
        (".shop:app", "expected MODULE:NAME, as in shop.cache:app, got "),
        ("no.such.module:app", "there is no module no"),
        ("tests.app.missing:app", "there is no module tests.app.missing"),
        ("tests.app.sample_app:ap", "there is no ap in the module tests.app.sample_app, did you mean app?"),
        ("tests.app.sample_app:zzz", "there is no zzz in the module tests.app.sample_app, did you mean app?"),
        ("tests.app.broken_app:NOTHING", "importing tests.app.broken_app raised ZeroDivisionError: division by zero"),
        ("tests.app.awkward:zzz", "there is no zzz in the module tests.app.awkward"),
        ("tests.app.sample_app:app.nothing", "there is no nothing in the Harbor"),
        ("tests.app.sample_app:total", "expected a Harbor, got a function"),
        ("tests.app.sample_app:projects.name", "expected a Harbor, got a str"),
    ],
)
def test_an_app_that_cannot_be_had_is_one_line(reference: str, fault: str) -> None:
    said = refused(reference)
    assert said.startswith(fault)
    assert said.endswith((fault, repr(reference), f"({Path(__file__).parent / 'broken_app.py'}:3)"))


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module into the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> Path:
        file = tmp_path / f"{name}.py"
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize(
    ("name", "text", "line", "fault"),
    [
        ("app_with_missing", "\nimport no_such_library\n", 2, "ModuleNotFoundError: No module named 'no_such_library'"),
        ("app_with_syntax", "x = 1\ny = (\n", 2, "SyntaxError: '(' was never closed"),
        ("app_that_exits", "import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
        ("app_that_says_much", "raise ValueError('one\\ntwo')\n", 1, "ValueError: one two"),
        ("app_that_says_nothing", "\n\nraise ValueError\n", 3, "ValueError"),
        ("app_by_a_library", "import yaml\nyaml.safe_load('[')\n", 2, "ParserError: while parsing a flow node"),
        ("app_by_others", "import json\njson.loads('{')\n", 2, "JSONDecodeError: Expecting property name enclosed in"),
    ],
)
def test_what_importing_raised_is_told_with_its_place(
    written: Any, name: str, text: str, line: int, fault: str
) -> None:
    file = written(name, text)
    said = refused(f"{name}:app")
    assert said.startswith(f"importing {name} raised {fault}")
    assert said.endswith(f" ({file}:{line})")


def test_a_fault_of_a_declaration_names_the_function(written: Any) -> None:
    written(
        "app_that_does_not_fit",
        "from cluster.app import Harbor\napp = Harbor()\n@app.query(['a', '{x}'])\ndef f(y): ...\n",
    )
    fault = "app_that_does_not_fit:f: has a parameter 'y' that is no placeholder of its key, there are {x}"
    assert refused("app_that_does_not_fit:app") == fault


def test_all_faults_of_a_checked_configuration_are_told(written: Any) -> None:
    written("app_checked", "from cluster.app import Harbor\nHarbor({'a': 1, 'b': 2}).config({})\n")
    with pytest.raises(ConfigFaults) as raised:
        load_app("app_checked:app")
    assert [fault.path for fault in raised.value.faults] == ["a", "b"]


def test_modules_of_the_working_directory_are_found(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written("app_of_the_directory", "from cluster.app import Harbor\napp = Harbor({'cluster': {'shards': 2}})\n")
    import sys

    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(file.parent))])
    assert load_app("app_of_the_directory:app").config({}).cluster.shards == 2
    assert isinstance(sys.modules["app_of_the_directory"], ModuleType)
    assert sys.path[0] == str(file.parent)
