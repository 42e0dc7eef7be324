"""What an actor's process puts off: modules are loaded by their first use, and Ray's own start uses none of them."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from ray import cloudpickle

from cluster.actors.ray_worker import SELDOM, put_off


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package, put off, that says when it is loaded."""
    (tmp_path / "seldom").mkdir()
    (tmp_path / "seldom" / "__init__.py").write_text("import sys\nsys.loaded_seldom += 1\nANSWER = 42\n")
    (tmp_path / "seldom" / "part.py").write_text("from . import ANSWER\nPART = ANSWER + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "loaded_seldom", 0, raising=False)
    put_off("seldom")
    yield "seldom"
    for name in [name for name in sys.modules if name.partition(".")[0] == "seldom"]:
        del sys.modules[name]


def is_loaded() -> bool:
    return bool(sys.loaded_seldom)  # type: ignore[attr-defined]


def test_it_is_loaded_by_its_first_use(package: str) -> None:
    held = import_module(package)
    assert hasattr(held, "__file__")
    assert not is_loaded()
    assert held.ANSWER == 42
    assert is_loaded()
    assert import_module(package).ANSWER == 42
    assert import_module(package) is sys.modules[package] is not held


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    "statement", ["from seldom import ANSWER", "import seldom.part", "from seldom.part import PART"]
)
def test_any_import_of_something_in_it_is_a_use(statement: str) -> None:
    exec(statement, {})
    assert is_loaded()


def test_to_ask_for_it_is_no_use_of_it(package: str) -> None:
    put_off(package)
    assert find_spec(package) is not None
    assert inspect.getmodule(lambda: None) is not None
    assert not is_loaded()


@pytest.mark.parametrize("uses_it", [False, True])
def test_it_is_sent_by_name(package: str, *, uses_it: bool) -> None:
    held = import_module(package)
    assert not uses_it or held.ANSWER == 42
    assert cloudpickle.loads(cloudpickle.dumps(lambda: held))().ANSWER == 42


def test_threads_that_use_it_at_once_load_it_once(package: str) -> None:
    held = [import_module(package)] * 8
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda module: module.ANSWER, held)) == [42] * 8
    assert sys.loaded_seldom == 1  # type: ignore[attr-defined]


@pytest.mark.usefixtures("package")
def test_what_it_lacks_is_missed_as_ever() -> None:
    with pytest.raises(AttributeError, match="module 'seldom' has no attribute 'nothing'"):
        _ = import_module("seldom").nothing


def test_what_is_not_installed_stays_so() -> None:
    put_off("no_such_module")
    with pytest.raises(ModuleNotFoundError):
        import_module("no_such_module")


def test_rays_own_script_imports_none_of_them_for_use() -> None:
    code = f"""
import sys
from cluster.actors.ray_worker import put_off
for name in {SELDOM}: put_off(name)
import ray._private.workers.default_worker
print([name for name in {SELDOM} if type(sys.modules[name]).__name__ != "Later"], "urllib3" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[] False\n"
