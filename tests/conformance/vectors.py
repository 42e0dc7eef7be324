"""Reads the recorded vectors: facts about TanStack query-core, one JSON object per case, one file per family.

Every case passes, or is skipped for a reason that is one of `SKIPPED` (its tags) or one of the differences a player raises.
"""

import json
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
SKIPPED = {
    "undefined": "JSON has no undefined",
    "nonfinite": "JSON has no NaN and no Infinity",
    "date": "JSON has no dates",
    "quirk": "follows from JavaScript's coercions",
    "remove_observed": "removing a watched entry notifies its watchers, who then watch the key, not the removed entry",
    "orphan": "removing a watched entry notifies its watchers, who then watch the key, not the removed entry",
    "stale_boundary": "query-core's timer is a millisecond late on purpose; here data is stale when its stale time is over",
}
"""Why cases with a tag are not run. All others are."""
NEGATIVE_ZERO = {"$special": "-0"}


class Difference(Exception):  # noqa: N818 - not an error
    """A case has come to where the cluster differs from query-core on purpose; its text is the reason."""


def cases(family: str, directory: Path = DATA) -> list[dict[str, Any]]:
    """Return every case of a family."""
    recorded: list[dict[str, Any]] = json.loads((directory / f"{family}.json").read_text(encoding="utf-8"))["cases"]
    return recorded


def skip_reason(case: dict[str, Any]) -> str | None:
    """Return why a case is not run, if it is not."""
    return next((f"{tag}: {SKIPPED[tag]}" for tag in case.get("tags", []) if tag in SKIPPED), None)


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


def same(got: Any, wanted: Any, where: str) -> None:
    """Fail with what differs."""
    if got == wanted:
        return
    if isinstance(got, list) and isinstance(wanted, list) and len(got) == len(wanted):
        got, wanted = next((one, other) for one, other in zip(got, wanted, strict=True) if one != other)
    if isinstance(got, dict) and isinstance(wanted, dict):
        names = [name for name in {**got, **wanted} if got.get(name, "absent") != wanted.get(name, "absent")]
        got = {name: got.get(name, "absent") for name in names}
        wanted = {name: wanted.get(name, "absent") for name in names}
    raise AssertionError(f"{where}: got {got}, recorded {wanted}")
