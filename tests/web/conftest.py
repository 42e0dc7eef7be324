"""Fixtures of the tests of pages and of the client for browsers."""

from collections.abc import AsyncIterator

import pytest

from tests.web.browser import Pages, chromium
from tests.web.node import Node, running


@pytest.fixture
async def pages() -> AsyncIterator[Pages]:
    """A Chromium, whose pages are looked at for faults in the end."""
    async with chromium() as pages:
        yield pages


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    """A Node.js with the client and TanStack Query."""
    async with running() as node:
        yield node
