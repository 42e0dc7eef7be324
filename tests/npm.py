"""Packages from npm that tests need, installed once, outside the project."""

import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

import pytest

INSTALL_S = 90.0
"""For npm; below the limit of a test."""


def installed(package_json: Path, name: str, last: str, what: str) -> Path:
    """Return a directory with what a package.json needs; skips the test where that cannot be had.

    Args:
        package_json: What is needed.
        name: A part of the directory's; another is of what the file says.
        last: A package of these, which shows that they are there.
        what: They are, in words.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js and npm are not installed")
    place = Path(tempfile.gettempdir()) / f"harbor-test-{name}-{sha256(package_json.read_bytes()).hexdigest()[:12]}"
    place.mkdir(exist_ok=True)
    shutil.copy(package_json, place)
    if not (place / "node_modules" / last).exists():
        try:
            subprocess.run(
                ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--fetch-retries=1"],
                cwd=place,
                capture_output=True,
                text=True,
                check=True,
                timeout=INSTALL_S,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"npm cannot install {what}: {str(error.stderr)[-200:]}")
    return place
