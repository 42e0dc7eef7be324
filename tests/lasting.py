"""Tests that say more the longer they run: short in `make test`, long in `make soak`."""

import os
from typing import TypeVar

SOAKS = os.environ.get("HARBOR_SOAK") == "1"
T = TypeVar("T")


def lasting(short: T, long: T) -> T:
    """Return how long, or how often, a test marked `soak` is to do what it does."""
    return long if SOAKS else short
