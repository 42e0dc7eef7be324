"""Clusters with something to see, and the console in a browser, for its tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from playwright.async_api import Page, expect

from cluster.config import read_document
from tests.conftest import ServedUpstream
from tests.guide.conftest import DEMO
from tests.live import LiveCluster, text
from tests.tokens import SECRET, claims, signed
from tests.web.browser import Pages

WAIT_MS = 30_000.0
LARGE = {"body": "8MiB", "buffers": "64MiB"}
"""So that a test can write an entry of 5 MB."""
GUARDED = {"mode": "jwt", "algorithms": ["HS256"], "secret": SECRET}
PAGES = ("overview", "keys", "streams", "mutations", "presence", "notices")


@contextmanager
def demonstration(**gateway: Any) -> Iterator[tuple[LiveCluster, ServedUpstream]]:
    """The demonstration with a little traffic of its own."""
    upstream = ServedUpstream(seed=7, rate=40)
    env = {"UPSTREAM_URL": upstream.url, "UPSTREAM_WS": upstream.ws_url}
    document = read_document(DEMO)
    document["gateway"] = {"limits": LARGE, **gateway}
    live = LiveCluster(document, env).start()
    try:
        yield live, upstream
    finally:
        live.stop()
        upstream.stop()


def token(*, admin: bool, **more: Any) -> str:
    said = claims(**more)
    return signed({**said, "harbor": {**said["harbor"], "admin": admin}}, SECRET, "HS256")


async def opened(pages: Pages, live: LiveCluster, at: str = "", **options: Any) -> Page:
    """Open the console, and wait until it is live."""
    page = await pages.open(f"{live.url}/{at}", **options)
    page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    await expect(page.locator("#connection")).to_have_text("live")
    return page


async def go(page: Page, name: str) -> None:
    """Go to another page of the console, and wait until it is drawn."""
    await page.locator(f"#pages a[href='#/{name}']").click()
    await expect(page.locator("h1")).to_have_text(name.capitalize())


def at(*key: Any) -> str:
    """Where the console shows an entry."""
    return "#/keys?key=" + "".join(f"%{byte:02x}" for byte in text(*key).encode())


async def confirm(page: Page, title: str) -> None:
    """Say yes to what the console asks."""
    dialog = page.locator("dialog[open]")
    await expect(dialog.locator("h2")).to_have_text(title)
    await dialog.locator("#confirm-yes").click()


def fetched(upstream: ServedUpstream) -> list[str]:
    """What was asked of the upstream, by path."""
    found: Any = upstream.do(lambda up: orjson.loads(orjson.dumps(up.stats()["requests"])))
    return list(found)
