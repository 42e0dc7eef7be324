"""The Dockerfile, as far as it can be checked without Docker."""

import fnmatch
import json
import re

import pytest

from tests.helm.chart import ROOT, pods, rendered

LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
STEPS = [line.partition(" ")[::2] for line in LINES if line and not line.startswith("#")]
FINAL = STEPS[max(n for n, (step, _) in enumerate(STEPS) if step == "FROM") :]


def final(step: str) -> list[str]:
    return [rest for name, rest in FINAL if name == step]


def test_it_is_built_in_stages_on_a_base_that_can_be_chosen():
    assert [rest for name, rest in STEPS if name == "FROM"] == ["${BASE} AS build", "${BASE}"]
    assert ("ARG", "BASE=python:3.12-slim") in STEPS


def test_what_it_holds_is_pinned():
    installs = [rest for name, rest in STEPS if name == "RUN" and "pip install" in rest]
    assert len(installs) == 1
    assert "--constraint constraints.txt" in installs[0]


def test_it_runs_as_a_number_that_is_not_root():
    assert final("USER") == ["10001:10001"]
    assert FINAL.index(("USER", "10001:10001")) > max(n for n, (step, _) in enumerate(FINAL) if step == "RUN")
    for ci in ("static", "kuberay"):
        for _, _, spec in pods(rendered(ci)):
            assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (10001, 10001)


def test_signals_reach_the_command():
    assert [json.loads(rest) for rest in final("ENTRYPOINT")] == [["harbor"]]
    assert not final("CMD")


def test_it_leaves_health_to_the_probes():
    assert all(step != "HEALTHCHECK" for step, _ in STEPS)


def test_what_is_written_is_a_volume_and_mounted_in_every_pod():
    assert json.loads(final("VOLUME")[0]) == ["/tmp", "/var/lib/harbor"]
    environment = final("ENV")[0]
    assert "HOME=/tmp" in environment
    assert "RAY_TMPDIR=/tmp" in environment
    for name, _, spec in pods(rendered("static")):
        paths = {mount["mountPath"] for mount in spec["containers"][0].get("volumeMounts", [])}
        assert "/tmp" in paths or name.startswith("Pod/"), name
    workers = [spec for name, _, spec in pods(rendered("static")) if name.endswith("-worker")]
    assert all("/var/lib/harbor" in {m["mountPath"] for m in spec["containers"][0]["volumeMounts"]} for spec in workers)


@pytest.mark.parametrize("path", ["cluster/cli/up.py", "constraints.txt", "pyproject.toml", "README.md"])
def test_the_build_sees_what_it_copies(path):
    assert not ignored(path)


@pytest.mark.parametrize("path", [".git/config", ".venv/bin/python", "tests/live.py", "cluster/core/__pycache__/a.pyc"])
def test_and_nothing_else(path):
    assert ignored(path)


def ignored(path: str) -> bool:
    """As Docker reads .dockerignore: the last pattern that matches a path or a directory above it counts."""
    result = False
    parts = path.split("/")
    above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for line in (ROOT / ".dockerignore").read_text().split():
        pattern = line.removeprefix("!")
        if any(
            fnmatch.fnmatchcase(each, pattern) or fnmatch.fnmatchcase(each, pattern.replace("**/", "*/"))
            for each in above
        ):
            result = not line.startswith("!")
    return result
