"""The console where credentials are asked for: who sees what, and what stands on the page when a token ends."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from playwright.async_api import expect
from websockets.asyncio.client import connect

from tests.live import LiveCluster, text
from tests.web.browser import Pages
from tests.web.consoles import GUARDED, WAIT_MS, at, go, opened, token

pytestmark = pytest.mark.cluster
UNAUTHORIZED = ("401", "3500")
"""What Chromium says on its console of a refusal that a test brings about."""


@pytest.fixture(scope="module")
def live(local_ray: None) -> Iterator[LiveCluster]:
    running = LiveCluster({"gateway": {"auth": GUARDED}}).start()
    headers = {"Authorization": f"Bearer {token(admin=True)}"}
    params = {"key": text("notes", "1")}
    httpx.put(f"{running.url}/v1/entries", params=params, json={"a": 1}, headers=headers).raise_for_status()
    yield running
    running.stop()


async def signed_in(pages: Pages, live: LiveCluster, said: str, where: str = "") -> Any:
    pages.forgiven = UNAUTHORIZED
    page = await pages.open(f"{live.url}/{where}")
    page.set_default_timeout(WAIT_MS)
    expect.set_options(timeout=WAIT_MS)
    await page.get_by_label("Token").fill(said)
    await page.get_by_role("button", name="Sign in").click()
    return page


async def test_without_a_token_it_asks_for_one_and_keeps_it_in_the_tab(pages: Pages, live: LiveCluster) -> None:
    admin = token(admin=True)
    page = await signed_in(pages, live, admin)
    await expect(page.locator("#connection")).to_have_text("live")
    await expect(page.locator(".tile")).to_have_count(2)
    assert await page.evaluate("Object.values(sessionStorage)") == [admin]
    assert await page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href") == f"{{}}{live.url}/"
    await page.reload()
    await expect(page.locator(".tile")).to_have_count(2)
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.locator("h1")).to_have_text("Sign in")
    assert await page.evaluate("sessionStorage.length") == 0


async def test_a_token_that_counts_for_nothing_is_said_so(pages: Pages, live: LiveCluster) -> None:
    page = await signed_in(pages, live, "no token at all")
    await expect(page.locator("main")).to_contain_text("The token does not count")
    await page.get_by_label("Token").fill(token(admin=True, seconds=-60))
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator("main")).to_contain_text("expired")
    await page.get_by_label("Token").fill(token(admin=True))
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator(".tile")).to_have_count(2)


async def test_when_a_token_expires_it_asks_for_another_and_goes_on(pages: Pages, live: LiveCluster) -> None:
    page = await signed_in(pages, live, token(admin=True, seconds=15), at("notes", "1"))
    await expect(page.locator(".entry .json")).to_be_visible()
    await expect(page.locator("h1")).to_have_text("Sign in")
    await expect(page.locator("main")).to_contain_text("expired")
    await expect(page.locator("#connection")).to_have_text("signed out")
    await page.get_by_label("Token").fill(token(admin=True))
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.locator(".entry .json")).to_be_visible()


async def test_without_the_admin_grant_there_are_keys_but_no_actions(pages: Pages, live: LiveCluster) -> None:
    reader = token(admin=False, subject="bob")
    page = await signed_in(pages, live, reader)
    for name in ("overview", "streams", "mutations", "presence", "notices"):
        await go(page, name)
        await expect(page.locator("main")).to_contain_text("no admin grant")
    await page.evaluate(f"location.hash = {at('notes', '1')!r}")
    await expect(page.locator(".entry .json")).to_be_visible()
    for name in ("Invalidate…", "Refetch…"):
        await expect(page.get_by_role("button", name=name)).to_be_disabled()
    await page.locator(".buttons button").first.evaluate("(button) => { button.disabled = false; button.click(); }")
    await expect(page.locator("dialog[open]")).to_have_count(0)
    url = live.url.replace("http", "ws", 1) + "/v1/socket"
    async with connect(url, additional_headers={"Authorization": f"Bearer {reader}"}, proxy=None) as socket:
        await socket.send('{"type":"subscribe","id":1,"key":["$harbor","overview"]}')
        while '"re":1' not in (frame := await socket.recv(decode=True)):
            pass
        assert "FORBIDDEN" in frame


async def test_who_may_read_some_keys_sees_those(pages: Pages, live: LiveCluster) -> None:
    pages.forgiven = ("403",)
    grants = {"read": [["notes"]], "write": [], "mutate": [], "presence": []}
    page = await signed_in(pages, live, token(admin=False, subject="eve", harbor=grants), "#/keys")
    pages.forgiven = ("401", "403")
    await expect(page.locator("main")).to_contain_text("no grant to read")
    await page.locator("#find").fill('["notes"]')
    await page.locator("#find").press("Enter")
    await page.get_by_role("link", name='"1"').click()
    await expect(page.locator(".entry .json")).to_contain_text('"a"')


async def test_where_none_are_asked_for_it_is_open_and_outlives_a_gateway(pages: Pages, local_ray: None) -> None:
    running = LiveCluster({}).start()
    try:
        page = await opened(pages, running)
        await expect(page.locator(".tile")).to_have_count(2)
        await expect(page.get_by_role("button", name="Sign out")).to_be_hidden()
        # The gateway ends: what is shown stays, with a word about it, and goes on by itself.
        running.kill("gateway-0")
        pages.forgiven = ("WebSocket", "ERR_")
        await expect(page.locator("#banner")).to_contain_text("lost")
        await expect(page.locator(".tile")).to_have_count(2)
        await expect(page.locator("#connection")).to_have_text("live")
    finally:
        running.stop()
