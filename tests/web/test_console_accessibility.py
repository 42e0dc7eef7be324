"""The console for everybody: rules of WCAG 2.2 AA that axe-core can check, the keyboard alone, a narrow screen, both themes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import Page, expect

from tests.live import LiveCluster
from tests.npm import installed
from tests.web.browser import Pages
from tests.web.consoles import GUARDED, PAGES, at, demonstration, go, opened

pytestmark = pytest.mark.cluster
PACKAGE = Path(__file__).parent / "axe" / "package.json"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
CHECK = """async (tags) => {
  const { violations } = await axe.run(document, { runOnly: tags });
  return violations.map(({ id, nodes }) => [id, nodes.map(({ html, failureSummary }) => `${html}: ${failureSummary}`)]);
}"""


@pytest.fixture(scope="module")
def live(local_ray: None) -> Iterator[LiveCluster]:
    with demonstration() as (running, _):
        running.put(["notes", "1"], {"text": "a", "list": [1, None, True], "long": "x" * 400}).raise_for_status()
        ordered = {
            "name": "delete_task",
            "variables": {"id": "1", "projectId": "1"},
            "delay_ms": 600_000,
            "id": "waits",
        }
        httpx.post(f"{running.url}/v1/mutations", json=ordered).raise_for_status()
        yield running


@pytest.fixture(scope="session")
def axe() -> str:
    """The text of axe-core, as npm has it: installed once, outside the project."""
    place = installed(PACKAGE, "axe", "axe-core", "axe-core")
    return (place / "node_modules" / "axe-core" / "axe.min.js").read_text()


async def check(page: Page, axe: str) -> None:
    await page.evaluate(axe)
    found = await page.evaluate(CHECK, RULES)
    assert not found, found


async def shown(page: Page, name: str) -> None:
    await go(page, name)
    await expect(page.locator("main .panel").first).to_be_visible()
    await expect(page.locator("main")).not_to_contain_text("Waiting for the cluster")


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_page_breaks_a_rule_that_can_be_checked(
    pages: Pages, live: LiveCluster, axe: str, scheme: Any
) -> None:
    page = await opened(pages, live, color_scheme=scheme)
    for name in PAGES:
        await shown(page, name)
        await check(page, axe)
    await page.evaluate(f"location.hash = {at('notes', '1')!r}")
    await expect(page.locator(".json")).to_be_visible()
    await check(page, axe)
    await page.get_by_role("button", name="Invalidate…").click()
    await expect(page.locator("dialog[open]")).to_be_visible()
    await check(page, axe)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_signing_in_breaks_none_either(pages: Pages, local_ray: None, axe: str, scheme: Any) -> None:
    running = LiveCluster({"gateway": {"auth": GUARDED}}).start()
    try:
        pages.forgiven = ("401", "3500")
        page = await pages.open(running.url, color_scheme=scheme)
        await expect(page.locator("h1")).to_have_text("Sign in")
        await check(page, axe)
    finally:
        running.stop()


async def test_a_theme_is_chosen_and_remembered(pages: Pages, live: LiveCluster) -> None:
    page = await opened(pages, live, color_scheme="light")
    back = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(back)
    button = page.locator("#theme")
    await button.click()
    await expect(button).to_have_text("Theme: light")
    assert await page.evaluate(back) == light
    await button.click()
    await expect(button).to_have_text("Theme: dark")
    dark = await page.evaluate(back)
    assert dark != light
    await page.reload()
    await expect(button).to_have_text("Theme: dark")
    assert await page.evaluate(back) == dark
    await page.emulate_media(color_scheme="dark")
    await button.click()
    await expect(button).to_have_text("Theme: system")
    assert await page.evaluate(back) == dark


@pytest.mark.parametrize("width", [360, 768])
async def test_nothing_overflows_a_narrow_screen(pages: Pages, live: LiveCluster, width: int) -> None:
    page = await opened(pages, live, viewport={"width": width, "height": 740})
    places = [*PAGES, "entry", "dialog"]
    for name in places:
        if name in PAGES:
            await shown(page, name)
        elif name == "entry":
            await page.evaluate(f"location.hash = {at('notes', '1')!r}")
            await expect(page.locator(".json")).to_be_visible()
        else:
            await page.get_by_role("button", name="Invalidate…").click()
        wide = await page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, f"{name} is {wide} wide"


async def test_the_keyboard_alone_will_do(pages: Pages, live: LiveCluster) -> None:
    page = await opened(pages, live)
    focused = "document.activeElement.textContent.trim()"
    await page.keyboard.press("Tab")
    assert await page.evaluate(focused) == "Skip to the content"
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"
    await expect(page.locator("h1")).to_have_text("Overview")
    await page.locator("#pages a").nth(1).focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_have_text("Keys")
    assert await page.evaluate("document.activeElement.id") == "main"
    for expected in ("find", "Find", "Refresh", "all keys"):
        await page.keyboard.press("Tab")
        assert expected in (await page.evaluate("document.activeElement.id"), await page.evaluate(focused))
    await page.get_by_role("button", name='Unfold "notes"').focus()
    await page.keyboard.press("Space")
    await expect(page.get_by_role("button", name='Fold "notes"')).to_be_focused()
    await expect(page.get_by_role("link", name='"1"', exact=True)).to_be_visible()
    await page.keyboard.press("Tab")
    assert await page.evaluate(focused) == '"1"'
    await page.keyboard.press("Enter")
    await expect(page.locator(".json")).to_be_visible()
    await page.get_by_role("button", name="Invalidate…").focus()
    await page.keyboard.press("Enter")
    await expect(page.locator("#confirm-no")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("button", name="Invalidate…")).to_be_focused()
    # What changes each second takes the focus from nobody.
    await page.get_by_role("button", name="Pause").focus()
    await page.evaluate("new Promise((done) => setTimeout(done, 2500))")
    await expect(page.get_by_role("button", name="Pause")).to_be_focused()
