"""The console on a whole cluster: what its pages show is live, and what they can do is asked for first."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
from playwright.async_api import expect

from tests.conftest import ServedUpstream
from tests.live import Client, LiveCluster, eventually, text
from tests.web.browser import Pages
from tests.web.consoles import PAGES, at, confirm, demonstration, go, opened

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def demo(local_ray: None) -> Iterator[tuple[LiveCluster, ServedUpstream]]:
    with demonstration() as running:
        yield running


@pytest.fixture
def live(demo: tuple[LiveCluster, ServedUpstream]) -> LiveCluster:
    return demo[0]


@pytest.fixture
def tracker(demo: tuple[LiveCluster, ServedUpstream]) -> ServedUpstream:
    return demo[1]


@asynccontextmanager
async def somebody(live: LiveCluster) -> AsyncIterator[Client]:
    """A client that watches a project, so that events come in."""
    client = await Client.open(live.url)
    try:
        await client.subscribe("p", key=["projects", "detail", "1"])
        yield client
    finally:
        await client.close()


def requests(tracker: ServedUpstream, what: str) -> int:
    return int(tracker.do(lambda up: up.stats()["requests"].get(what, 0)))


async def test_the_overview_is_live_and_its_charts_move(pages: Pages, live: LiveCluster) -> None:
    page = await opened(pages, live)
    async with somebody(live):
        await expect(page.locator(".tile")).to_have_count(4)
        await expect(page.locator(".tile .badge.good")).to_have_count(4)
        await expect(page.locator("table[aria-label=Sources] tbody tr")).to_have_count(3)
        await expect(page.locator("table[aria-label=Sources] .badge.good")).to_have_count(3)
        await expect(page.locator("table[aria-label=Gateways] tbody tr")).to_contain_text(live.url)
        events = page.locator(".chart-card", has_text="Events per second")
        drawn: list[str] = []
        for _ in range(3):
            await expect(events.locator(".big")).not_to_have_text("0")
            await expect(events.locator("path.line")).not_to_have_attribute("d", drawn[-1] if drawn else "")
            drawn.append(str(await events.locator("path.line").get_attribute("d")))
        assert len(set(drawn)) == 3
        await expect(page.locator(".chart-card", has_text="Age of changes").locator(".big")).to_contain_text("ms")
        sessions = page.locator("table[aria-label=Gateways] tbody td[data-name=sessions]")
        await expect(sessions).to_have_text("2")
    await expect(sessions).to_have_text("1")  # the console itself


async def test_keys_are_unfolded_found_and_watched(pages: Pages, live: LiveCluster, tracker: ServedUpstream) -> None:
    async with somebody(live):
        page = await opened(pages, live, "#/keys")
        await page.get_by_role("button", name='Unfold "projects"').click()
        await page.get_by_role("button", name='Unfold "detail"').click()
        await page.get_by_role("link", name='"1"', exact=True).click()
        entry = page.locator(".entry")
        await expect(entry.locator("h2")).to_have_text('["projects","detail","1"]')
        await expect(entry.locator(".badge", has_text="fresh")).to_be_visible()
        await expect(entry.locator(".figures")).to_contain_text("· fetched ")
        await expect(entry.locator(".figures")).to_contain_text("2 subscriptions")  # somebody's, and this one
        eventually(lambda: tracker.do(lambda up: up.hub.joined().get("project:1", 0)))
        title = f"Seen at {time.monotonic_ns()}"
        tracker.do(lambda up: up.emit(up.tracker.create_task({"projectId": "1", "title": title})[1]))
        await expect(entry.locator(".json-line.touched", has_text=title)).to_be_visible()
        await expect(entry.locator(".changes li").first).to_contain_text("/tasks/")
        await expect(entry.locator(".json-line.touched", has_text=title)).to_have_count(0)  # it fades
        await page.locator("#find").fill("detail")
        await page.locator("#find").press("Enter")
        await expect(page.locator(".results li")).to_have_count(1)
        await page.locator("#find").fill('["projects","detail"]')
        await page.locator("#find").press("Enter")
        await expect(page.locator(".tree a")).to_have_text(['"1"'])
        await page.goto(f"{live.url}/{at('no', 'such', 'entry')}")
        await expect(entry).to_contain_text("There is no such entry")
        live.put(["no", "such", "entry"], {"now": "there"})
        await expect(entry.locator(".json")).to_contain_text('"there"')
        httpx.delete(f"{live.url}/v1/entries", params={"key": text("no", "such", "entry")})
        await expect(entry).to_contain_text("The entry was removed")


async def test_many_keys_come_a_page_at_a_time(pages: Pages, live: LiveCluster) -> None:
    for number in range(130):
        live.put(["many", f"{number:03}"], number)
    page = await opened(pages, live, "#/keys?prefix=%5B%22many%22%5D")
    await expect(page.locator(".tree li")).to_have_count(100)
    await page.get_by_role("button", name="More").click()
    await expect(page.locator(".tree li")).to_have_count(130)
    await expect(page.get_by_role("button", name="More")).to_have_count(0)


async def test_an_entry_is_invalidated_and_fetched_once_that_is_confirmed(
    pages: Pages, live: LiveCluster, tracker: ServedUpstream
) -> None:
    page = await opened(pages, live, at("users"))
    await expect(page.locator(".entry .json")).to_be_visible()
    before = requests(tracker, "GET /users")
    await page.get_by_role("button", name="Invalidate…").click()
    await expect(page.locator("dialog #confirm-what")).to_have_text('["users"]')
    await page.keyboard.press("Escape")
    await expect(page.locator("dialog[open]")).to_have_count(0)
    await page.get_by_role("button", name="Refetch…").click()
    await page.locator("#confirm-no").click()
    await expect(page.locator("dialog[open]")).to_have_count(0)
    assert requests(tracker, "GET /users") == before
    await page.get_by_role("button", name="Invalidate…").click()
    await confirm(page, "Invalidate")
    await expect(page.locator("#outcome")).to_have_text("The entry was invalidated.")
    eventually(lambda: requests(tracker, "GET /users") == before + 1)
    await page.get_by_role("button", name="Refetch…").click()
    await confirm(page, "Refetch")
    await expect(page.locator("#outcome")).to_have_text("The entry is being fetched.")
    eventually(lambda: requests(tracker, "GET /users") == before + 2)


async def test_a_mutation_that_waits_is_undone(pages: Pages, live: LiveCluster, tracker: ServedUpstream) -> None:
    page = await opened(pages, live, "#/mutations")
    task = tracker.do(lambda up: up.tracker.task_list("2")[0]["id"])
    ordered = {"name": "delete_task", "variables": {"id": task, "projectId": "2"}, "delay_ms": 600_000, "id": "waits"}
    httpx.post(f"{live.url}/v1/mutations", json=ordered).raise_for_status()
    row = page.locator("tbody tr", has_text="waits")
    await expect(row.locator(".badge")).to_have_text("scheduled")
    await expect(row).to_contain_text("is sent in")
    await row.get_by_role("button").click()
    await expect(page.locator("dialog #confirm-what")).to_have_text("delete_task · waits")
    await confirm(page, "Undo")
    await expect(page.locator("#outcome")).to_have_text("The mutation was undone.")
    await expect(row).to_have_count(0)
    assert httpx.get(f"{live.url}/v1/mutations/waits").json()["status"] == "cancelled"
    assert not requests(tracker, f"DELETE /tasks/{task}")


async def test_a_mutation_that_failed_is_shown_with_why(pages: Pages, live: LiveCluster) -> None:
    page = await opened(pages, live, "#/mutations")
    ordered = {"name": "update_task", "variables": {"id": "no such task", "projectId": "2"}, "id": "fails"}
    httpx.post(f"{live.url}/v1/mutations", json=ordered).raise_for_status()
    row = page.locator("tbody tr", has_text="fails")
    await expect(row.locator(".badge")).to_have_text("error")
    await expect(row).to_contain_text("UPSTREAM_ERROR")
    await expect(row.get_by_role("button")).to_have_count(0)


async def test_streams_show_rules_rates_and_what_came_to_nothing(
    pages: Pages, live: LiveCluster, tracker: ServedUpstream
) -> None:
    page = await opened(pages, live, "#/streams")
    async with somebody(live):
        rules = page.locator("table[aria-label='Rules of events project:{id}']")
        await expect(rules.locator("tr", has_text="task:deleted")).to_contain_text('{"remove":{"key":["projects"')
        rate = page.locator("table[aria-label=Sources] tr", has_text="events").locator("[data-name='events/s']")
        await expect(rate).not_to_have_text("0")
        eventually(lambda: tracker.do(lambda up: up.hub.joined().get("project:1", 0)))
        tracker.do(lambda up: up.hub.send_raw("project:1", b'{"event": "task:created", <b>no json</b>'))
        letters = page.locator("table[aria-label='Dead letters'] tbody tr")
        await expect(letters.filter(has_text="<b>no json</b>")).to_contain_text("not_json")


async def test_presence_lists_topics_and_the_members_of_one(pages: Pages, live: LiveCluster) -> None:
    page = await opened(pages, live, "#/presence")
    await expect(page.locator("main")).to_contain_text("Nobody is present anywhere.")
    client = await Client.open(live.url)
    await client.ask(type="presence", id=1, topic="project:9", state={"cursor": 3})
    await page.get_by_role("link", name="project:9").click()
    members = page.locator("table[aria-label=Members] tbody tr")
    await expect(members).to_have_count(1)
    await expect(members).to_contain_text('{"cursor":3}')
    await client.ask(type="presence", id=2, topic="project:9", state={"cursor": 4})
    await expect(members).to_contain_text('{"cursor":4}')
    await client.ask(type="leave", id=3, topic="project:9")
    await expect(page.locator("main")).to_contain_text("Nobody is there.")
    await client.close()


async def test_notices_tell_what_has_happened(pages: Pages, live: LiveCluster, tracker: ServedUpstream) -> None:
    page = await opened(pages, live, "#/notices")
    httpx.post(f"{tracker.url}/control", json={"ws": "down"}).raise_for_status()
    row = page.locator("tbody tr", has_text="source_disconnected").filter(has_text="the cluster")
    await expect(row.first).to_contain_text("the stream events is interrupted")
    httpx.post(f"{tracker.url}/control", json={"ws": "up"}).raise_for_status()
    await expect(page.locator("tbody tr", has_text="source_restored").first).to_be_visible()
    await page.get_by_label("Show").select_option("success")
    await expect(page.locator("tbody tr", has_text="source_disconnected")).to_have_count(0)


NASTY = [
    '<img src=x onerror="flag=1">',
    "</script><script>flag=1</script>",
    "\"quoted\" 'too' `${flag=1}`",
    "javascript:flag=1",
    "\u202egnp.exe\u202c",
    "\u0645\u0631\u062d\u0628\u0627 <b>",
    "__proto__",
    "\u0000\ud83d",
]


async def test_nothing_that_others_wrote_is_run_or_spills_over(pages: Pages, live: LiveCluster) -> None:
    for number, each in enumerate(NASTY):
        try:
            key = ["nasty", each.encode("utf-16", "surrogatepass").decode("utf-16")]
        except UnicodeDecodeError:
            continue  # httpx writes no lone surrogate; the next test does
        live.put(key, {key[1]: key[1], "list": [key[1]], "number": number}).raise_for_status()
    page = await opened(pages, live, "#/keys?prefix=%5B%22nasty%22%5D")
    asked: list[str] = []
    page.on("dialog", lambda dialog: asked.append(dialog.message))
    links = page.locator(".tree a")
    await expect(links).to_have_count(len(NASTY) - 1)
    for number in range(len(NASTY) - 1):
        await links.nth(number).click()
        await expect(page.locator(".entry .json")).to_contain_text('"number"')
        await expect(page.locator(".entry h2 bdi")).to_contain_text('["nasty",')
        await page.get_by_role("button", name="Invalidate…").click()
        await expect(page.locator("dialog #confirm-what")).to_contain_text('["nasty",')
        await page.locator("#confirm-no").click()
    await page.locator("#find").fill(NASTY[0])
    await page.locator("#find").press("Enter")
    await expect(page.locator(".crumbs")).to_contain_text(NASTY[0])
    for address in (
        f"#/{NASTY[0]}",
        f"#/keys?key={NASTY[0]}",
        "#/__proto__",
        "#/keys?key=%5B%5B%5B",
        "#/presence?topic=<b>",
    ):
        await page.goto(f"{live.url}/{address}")
        await expect(page.locator("h1")).to_be_visible()
    assert await page.evaluate("typeof window.flag") == "undefined"
    assert await page.locator("main img, main script, main b").count() == 0
    assert asked == []


async def test_an_entry_of_five_megabytes_is_clipped_and_nothing_freezes(pages: Pages, live: LiveCluster) -> None:
    rows = [{"id": number, "text": "x" * 60, "tags": ["a", "b"]} for number in range(40_000)]
    live.put(["large", "rows"], rows).raise_for_status()
    live.put(["large", "text"], "y" * 5_000_000).raise_for_status()
    page = await opened(pages, live, "#/overview")
    await page.evaluate(
        "() => { let last = performance.now(); window.longest = 0; setInterval(() => {"
        " const now = performance.now(); window.longest = Math.max(window.longest, now - last); last = now; }, 10); }"
    )
    await go(page, "keys")
    await page.evaluate(f"location.hash = {at('large', 'rows')!r}")
    await expect(page.locator(".json")).to_contain_text("40,000 items")
    await expect(page.locator(".json")).to_contain_text("more")
    assert await page.locator(".json-line").count() <= 401
    append = {"operations": [{"append": {"item": {"id": "the last"}}}]}
    httpx.patch(f"{live.url}/v1/entries", params={"key": text("large", "rows")}, json=append).raise_for_status()
    await expect(page.locator(".entry .changes li")).to_have_count(1)
    await page.evaluate(f"location.hash = {at('large', 'text')!r}")
    await expect(page.locator(".json")).to_contain_text("4,999,760 more characters")
    assert await page.evaluate("window.longest") < 3_000.0, "the page was held up"


async def test_a_chart_draws_what_numbers_there_are(pages: Pages, live: LiveCluster) -> None:
    page = await opened(pages, live)
    drawn = await page.evaluate(
        """async () => {
          const { chart, line } = await import('/console/chart.js');
          const format = String;
          const odd = [null, 'text', NaN, Infinity, -5, {}, undefined, 1e308, true];
          const shown = (series) => chart(series, { label: 'odd', format }).textContent;
          return [shown([{ values: odd }]), shown([{ values: 'none' }]), shown([{}]), shown([{ values: [] }]), line([1, null, 2, 3], 4)];
        }"""
    )
    assert drawn[0].startswith("1e+308")
    assert drawn[1:4] == ["Nothing to draw yet."] * 3
    assert drawn[4] == "M0.0 55.5h0.1M213.3 39.0L320.0 22.5"


async def test_a_page_that_was_left_watches_nothing(pages: Pages, live: LiveCluster) -> None:
    page = await opened(pages, live)
    said: list[dict[str, Any]] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda frame: said.extend(_messages(frame))))
    await page.reload()
    for name in PAGES:
        await go(page, name)
    await go(page, "overview")
    begun = {each["id"]: each["key"] for each in said if each["type"] == "subscribe"}
    assert {key[1] for key in begun.values()} == {"overview", "streams", "mutations", "presence", "notices"}
    left = {"streams", "mutations", "presence", "notices"}

    def ended() -> bool:
        return {begun[each["id"]][1] for each in said if each["type"] == "unsubscribe"} == left

    async with asyncio.timeout(30):
        while not ended():
            await page.evaluate("new Promise((done) => setTimeout(done, 50))")


def _messages(frame: Any) -> list[dict[str, Any]]:
    said = orjson.loads(frame)
    return said if isinstance(said, list) else [said]
