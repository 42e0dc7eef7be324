"""A headless Chromium for tests of pages, and what every page is held to."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, async_playwright

LOOK_S = 0.02
"""Between looks at a page."""
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Pages:
    """Opens pages, each in a context of its own, as another person's browser would be; `faults` is what went wrong in any of them."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.faults: list[str] = []
        self.forgiven: tuple[str, ...] = ()
        """Parts of faults that a test brings about."""

    async def open(self, url: str, **options: Any) -> Page:
        """Open a page; `options` are those of a Playwright context."""
        context = await self.browser.new_context(**options)
        return await self.tab(context, url)

    async def tab(self, context: Any, url: str) -> Page:
        """Open another tab of a context."""
        page: Page = await context.new_page()
        page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        page.on("console", lambda said: self.faults.extend([f"console: {said.text}"] if said.type == "error" else []))
        page.on("request", lambda asked: self._look(page.url, asked.url))
        await page.goto(url)
        return page

    def _look(self, page: str, url: str) -> None:
        asked = urlsplit(url)
        if asked.netloc and urlsplit(page).netloc not in ("", asked.netloc):
            self.faults.append(f"request elsewhere: {url}")

    def check(self) -> None:
        """No page may have failed, or asked another server for anything."""
        faults = [fault for fault in self.faults if not any(part in fault for part in self.forgiven)]
        assert not faults, faults


async def until(page: Page, holds: str, *args: Any, timeout_s: float = 30.0) -> None:
    """Wait until an expression over `args` holds in a page. (Playwright's own way to wait evaluates texts in the page, which its policy forbids.)

    Raises:
        TimeoutError: It did not; with what the page showed then.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while not await page.evaluate(f"(args) => {holds}", list(args)):
                await asyncio.sleep(LOOK_S)
    except TimeoutError:
        shown = await page.locator("body").aria_snapshot()
        raise TimeoutError(f"not within {timeout_s:g} s: {holds}, of {args}; {page.url} shows\n{shown}") from None


@asynccontextmanager
async def chromium(**options: Any) -> AsyncIterator[Pages]:
    """Run the browser. Skips the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], **options)
        try:
            pages = Pages(browser)
            yield pages
            pages.check()
        finally:
            await browser.close()
