"""Plays a directory of vector files: `python -m tests.conformance [DIR]`."""

import sys
import traceback
from collections import Counter
from pathlib import Path

from tests.conformance.families import PLAYERS, play
from tests.conformance.vectors import DATA, cases


def main(directory: Path) -> int:
    """Print what came of each family; return the exit status."""
    files = sorted(directory.glob("*.json"))
    if not files:
        print(f"no vector files in {directory}", file=sys.stderr)
        return 2
    failures = 0
    for file in files:
        family = file.stem
        passed, failed, skipped = 0, [], Counter[str]()
        for case in cases(family, directory):
            if family not in PLAYERS:
                skipped["unknown family"] += 1
                continue
            try:
                reason = play(family, case)
            except AssertionError as error:
                failed.append(str(error))
            except Exception:  # noqa: BLE001 - any other end is a failure of the case too
                failed.append(f"{case['id']}: {traceback.format_exc(limit=-3)}")
            else:
                if reason is None:
                    passed += 1
                else:
                    skipped[reason] += 1
        print(f"{family}: {passed} passed, {len(failed)} failed, {skipped.total()} skipped")
        for reason, count in skipped.items():
            print(f"    skipped {count}: {reason}")
        for failure in failed:
            print(f"    failed {failure}")
        failures += len(failed)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DATA))
