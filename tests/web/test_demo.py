"""The demonstration's page in Chromium, before a real cluster on the sample upstream."""

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from playwright.async_api import Page, expect

from cluster.config import read_document
from tests.live import LiveCluster
from tests.web.browser import Pages, until

pytestmark = pytest.mark.cluster
DEMO = Path(__file__).parents[2] / "cluster" / "demo" / "harbor.yaml"
_titles = itertools.count()

ORACLE = """
  globalThis.oracle = { faults: [], resets: 0, changes: 0, here: true };
  const versions = new Map();
  harbor.on('message', ({ type, sub, key, from, version }) => {
    if (type === 'reset') oracle.resets++;
    if (!key || sub === undefined) return;
    const name = JSON.stringify(key);
    if (type === 'change') oracle.changes++;
    if (type === 'change' && versions.has(name) && versions.get(name) !== from) oracle.faults.push([name, versions.get(name), from]);
    if (version) versions.set(name, version);
  });
  true // what `on` returns ends the listening, and a function that an expression comes to is called
"""
"""In the page: every change has to follow on the one before it, and the page has to stay the same page."""


@pytest.fixture(scope="module")
def tracker(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    document = read_document(DEMO)
    document["mutations"]["delete_task"]["delay"] = "60s"  # a slow machine takes long to come to the undo
    live = LiveCluster(document, {"UPSTREAM_URL": upstream.url, "UPSTREAM_WS": upstream.ws_url})
    live.config = replace(live.config, gateway=replace(live.config.gateway, demo_page=True))
    yield live.start()
    live.stop()


def new_title() -> str:
    return f"title {next(_titles)}"


async def shown(page: Page) -> list[str]:
    """The titles on a page, in order."""
    titles: list[str] = await page.evaluate(
        "[...document.querySelectorAll('#tasks input')].map((input) => input.value)"
    )
    return titles


async def at(pages: Pages, tracker: LiveCluster, project: str, **options: Any) -> Page:
    """A page of a project, which shows its tasks."""
    page = await pages.open(f"{tracker.url}/demo?project={project}", **options)
    await until(page, "document.querySelectorAll('#tasks li').length > 0 && harbor.state === 'connected'")
    return page


async def add(page: Page, title: str) -> None:
    await page.get_by_label("Title of a new task").fill(title)
    await page.get_by_role("button", name="Add").click()


def titles(upstream: Any, project: str) -> list[str]:
    return upstream.do(lambda up: [str(task["title"]) for task in up.tracker.task_list(project)])


CURSORS = "[...document.querySelectorAll('.cursor')].map(({ style }) => style.top).join() === args[0]"
SHOWN_TITLE = "[...document.querySelectorAll('#tasks input')].some((input) => input.value === args[0])"


async def test_two_tabs_stay_in_step(pages: Pages, tracker: LiveCluster, upstream: Any) -> None:
    one, two = await at(pages, tracker, "1"), await at(pages, tracker, "1")
    added, edited = new_title(), new_title()
    await add(one, added)
    assert added in await shown(one), "at once"
    await until(two, SHOWN_TITLE, added)
    field = two.get_by_label(f"Title of task {added}", exact=True)
    await field.fill(edited)
    await field.press("Enter")
    await until(one, SHOWN_TITLE, edited)
    await until(two, "!harbor.mutations.length")
    await one.get_by_role("button", name=f"Delete {edited}", exact=True).click()
    assert edited not in await shown(one)
    await until(two, f"!{SHOWN_TITLE}", edited)
    await one.get_by_role("button", name="Undo").click()
    await until(two, SHOWN_TITLE, edited)
    await until(one, SHOWN_TITLE, edited)
    await until(one, "!harbor.mutations.length")
    assert await shown(one) == await shown(two) == titles(upstream, "1")
    await until(one, "document.querySelector('#here').textContent === '2 people are here'")
    top = await one.evaluate("document.querySelector('#board').getBoundingClientRect().top")
    for y in (300, 400):
        await one.mouse.move(200, y)
        await until(two, CURSORS, f"{y - round(top)}px")


async def test_what_is_typed_outlives_a_temporary_id(pages: Pages, tracker: LiveCluster, upstream: Any) -> None:
    page = await at(pages, tracker, "7")
    added, edited = new_title(), new_title()
    await page.get_by_label("Offline").check()
    await add(page, added)
    await page.get_by_label(f"Title of task {added}", exact=True).fill(edited)
    await page.evaluate("harbor.reconnect()")
    newest = "queryClient.getQueryData(['tasks', '7']).at(-1)"
    await until(page, f"!harbor.mutations.length && !{newest}.id.startsWith('temp-')")
    await page.keyboard.press("Enter")
    await until(page, f"!harbor.mutations.length && {newest}.title === args[0]", edited)
    assert titles(upstream, "7")[-1] == edited


async def test_what_was_edited_offline_is_applied_once(pages: Pages, tracker: LiveCluster, upstream: Any) -> None:
    page, other = await at(pages, tracker, "2"), await at(pages, tracker, "2")
    first, second, renamed = new_title(), new_title(), new_title()
    await page.get_by_label("Offline").check()
    await expect(page.locator("#state")).to_have_text("disconnected")
    await add(page, first)
    await add(page, second)
    field = page.get_by_label(f"Title of task {first}", exact=True)
    await field.fill(renamed)
    await field.press("Enter")
    await expect(page.locator("#state")).to_have_text("disconnected, 3 to be sent")
    assert (await shown(page))[-2:] == [renamed, second]
    assert {first, second, renamed}.isdisjoint(titles(upstream, "2"))
    await page.get_by_label("Offline").uncheck()
    await until(page, "harbor.state === 'connected' && !harbor.mutations.length")
    for each in (page, other):
        await until(each, SHOWN_TITLE, renamed)
        await until(each, SHOWN_TITLE, second)
    found = titles(upstream, "2")
    assert [found.count(each) for each in (first, renamed, second)] == [0, 1, 1]
    assert await shown(page) == await shown(other) == found


async def test_the_queue_outlives_the_page(pages: Pages, tracker: LiveCluster, upstream: Any) -> None:
    page = await at(pages, tracker, "3")
    title = new_title()
    await page.get_by_label("Offline").check()
    await add(page, title)
    await until(page, "harbor.storage.all().then((items) => items.length === 1)")
    context = page.context
    await page.close()
    again = await pages.tab(context, f"{tracker.url}/demo?project=3")
    await until(
        again,
        "harbor.restored.then(() => harbor.state === 'connected' && document.querySelectorAll('#tasks li').length > 0 && !harbor.mutations.length)",
    )
    await until(again, SHOWN_TITLE, title)
    assert titles(upstream, "3").count(title) == 1
    assert await again.evaluate("harbor.storage.all()") == []


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_a_killed_gateway_is_survived_without_a_reload_or_a_gap(
    pages: Pages, tracker: LiveCluster, upstream: Any, transport: str
) -> None:
    pages.forgiven = ("ERR_CONNECTION", "ERR_INCOMPLETE", "ERR_SOCKET", "closed before the connection is established")
    page = await pages.open("about:blank")
    if transport == "sse":
        await page.add_init_script("delete globalThis.WebSocket")
    await page.goto(f"{tracker.url}/demo?project=4")
    await until(page, "document.querySelectorAll('#tasks li').length > 0 && harbor.state === 'connected'")
    assert await page.evaluate("harbor.transport") == transport
    await page.evaluate(ORACLE)

    def retitle(title: str) -> None:
        def act(up: Any) -> None:
            up.emit(up.tracker.update_task(up.tracker.task_list("4")[0]["id"], {"title": title})[1])

        upstream.do(act)

    for number in range(20):
        if number == 5:
            await asyncio.to_thread(tracker.kill, "gateway-0")
        title = new_title()
        await asyncio.to_thread(retitle, title)
        await asyncio.sleep(0.05)  # the pace of the events
    await until(page, "harbor.state === 'connected'")
    await until(page, SHOWN_TITLE, title)
    found = await page.evaluate("({ ...oracle })")
    assert (found["here"], found["faults"], found["resets"]) == (True, [], 0)
    assert found["changes"] > 1
    assert await shown(page) == titles(upstream, "4")
    await add(page, title + " too")
    await until(page, "!harbor.mutations.length")
    assert titles(upstream, "4").count(title + " too") == 1


async def test_what_people_write_is_text(pages: Pages, tracker: LiveCluster) -> None:
    page = await at(pages, tracker, "5")
    title = "<img src=x onerror=document.title='run'> \u202eright to left\" '"
    await add(page, title)
    await until(page, SHOWN_TITLE, title)
    assert await page.title() == "Project tracker · Harbor Cluster"
    assert await page.locator("img").count() == 0


async def test_it_can_be_used_on_a_narrow_screen_and_by_keyboard(pages: Pages, tracker: LiveCluster) -> None:
    page = await at(pages, tracker, "6", viewport={"width": 360, "height": 740}, color_scheme="dark")
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    title = new_title()
    await page.get_by_label("Title of a new task").focus()
    await page.keyboard.type(title)
    await page.keyboard.press("Enter")
    await until(page, SHOWN_TITLE, title)
