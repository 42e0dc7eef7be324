"""What `harbor up` looks at while the cluster runs."""

import sys
from pathlib import Path

import pytest

from cluster.cli.up import Given

FILE = "services: {api: {base_url: http://api}}\nqueries: [{key: [%s], service: api, path: /}]\n"


@pytest.mark.parametrize("is_named", [False, True])
def test_a_file_that_only_the_app_names_is_looked_at_too(
    is_named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "harbor.yaml"
    file.write_text(FILE % "first")
    module = f"looked_at_{is_named}"
    begins = "" if is_named else f"{str(file)!r}"
    (tmp_path / f"{module}.py").write_text(f"from cluster.app import Harbor\napp = Harbor({begins})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    given = Given(file if is_named else None, f"{module}:app", {}, None)
    assert [query.key for query in given.first().queries] == [["first"]]
    assert given.changed() is None
    file.write_text(FILE % "second")
    changed = given.changed()
    assert changed is not None
    assert [query.key for query in changed.queries] == [["second"]]
    del sys.modules[module]
