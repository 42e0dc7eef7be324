"""The core does as TanStack query-core was recorded to do."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from cluster.core.query_key import canonical
from tests.conformance.__main__ import main
from tests.conformance.families import PLAYERS, play
from tests.conformance.vectors import DATA, cases, key, skip_reason

CASES = [pytest.param(family, case, id=f"{family}-{case['id']}") for family in PLAYERS for case in cases(family)]
COUNTS = {
    "hash_key": 5,
    "match_key": 14,
    "filters": 0,
    "structural_share": 0,
    "retry": 0,
    "query_defaults": 0,
    "hydrate": 0,
    "infinite": 0,
    "cache_script": 15,
    "mutations": 83,
}
"""How many cases of each family are skipped, so that none comes to be skipped unnoticed."""


@pytest.mark.parametrize(("family", "case"), CASES)
def test_case(family: str, case: dict[str, Any]) -> None:
    reason = play(family, case)
    if reason is not None:
        pytest.skip(reason)


def test_keys_are_the_same_entry_exactly_within_a_class() -> None:
    hashes: dict[int, set[str]] = defaultdict(set)
    for case in cases("hash_key"):
        if skip_reason(case) is None:
            hashes[case["class"]].add(canonical(key(case["key"])))
    assert len(hashes) > 200
    assert all(len(same) == 1 for same in hashes.values())
    assert len(set[str]().union(*hashes.values())) == len(hashes)


def test_the_runner_counts_every_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(DATA) == 0
    printed = capsys.readouterr().out
    for family, skipped in COUNTS.items():
        total = len(cases(family))
        assert f"{family}: {total - skipped} passed, 0 failed, {skipped} skipped" in printed


def test_the_runner_fails_on_what_does_not_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = {"id": "h0", "tags": [], "key": ["a"], "hash": '["b"]', "class": 0}
    (tmp_path / "hash_key.json").write_text(json.dumps({"family": "hash_key", "cases": [case]}))
    (tmp_path / "presence.json").write_text(json.dumps({"family": "presence", "cases": [{"id": "m0"}]}))
    assert main(tmp_path) == 1
    printed = capsys.readouterr().out
    assert "hash_key: 0 passed, 1 failed, 0 skipped" in printed
    assert "presence: 0 passed, 0 failed, 1 skipped" in printed
