"""Reads the recorded vectors: facts about TanStack query-core, one JSON object per case."""

import json
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).parent / "data"
SKIPPED = {
    "undefined": "JSON has no undefined",
    "nonfinite": "JSON has no NaN and no Infinity",
    "date": "JSON has no dates",
    "array_vs_object": "query-core takes an array for an object with integer names; here they differ",
    "quirk": "follows from JavaScript's coercions",
}
"""Why cases with a tag are not run. All others are."""
NEGATIVE_ZERO = {"$special": "-0"}


def cases(family: str) -> list[Any]:
    """Return every case of a family as a pytest parameter; those that cannot apply carry their reason."""
    recorded = json.loads((DATA / f"{family}.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["id"], marks=_marks(case["tags"])) for case in recorded]


def key(encoded: Any) -> Any:
    """Return a recorded key with its specials put in.

    Raises:
        ValueError: a special that JSON cannot say, which no case that is run may hold.
    """
    if encoded == NEGATIVE_ZERO:
        return -0.0
    if isinstance(encoded, list):
        return [key(item) for item in encoded]
    if isinstance(encoded, dict):
        if "$special" in encoded:
            raise ValueError(f"{encoded} in a case that is not skipped")
        return {name: key(item) for name, item in encoded.items()}
    return encoded


def _marks(tags: list[str]) -> list[pytest.MarkDecorator]:
    return [pytest.mark.skip(reason=f"{tag}: {SKIPPED[tag]}") for tag in tags if tag in SKIPPED]
