"""Files for browsers, from a real server."""

import re

from cluster.gateway.pages import POLICY, WEB, Pages
from tests.gateway.conftest import Harness


async def test_the_client_is_served_with_what_browsers_need(harness: Harness) -> None:
    async with harness.http.get("/client.js") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert response.headers["Vary"] == "Accept-Encoding, Origin"
        tag = response.headers["ETag"]
        assert "export let connect" in await response.text()
    async with harness.http.get("/client.js", headers={"If-None-Match": f'"other", W/{tag}'}) as response:
        assert (response.status, await response.read(), response.headers["ETag"]) == (304, b"", tag)
    async with harness.http.get("/client.d.ts") as response:
        assert await response.text() == (WEB / "client.d.ts").read_text()


async def test_what_is_packed_is_the_same_under_another_tag(harness: Harness) -> None:
    found = {}
    for encoding in ("gzip", "identity"):
        async with harness.http.get("/client.js", headers={"Accept-Encoding": encoding}) as response:
            assert response.headers.get("Content-Encoding", "identity") == encoding
            found[response.headers["ETag"]] = await response.read()
    assert len(found) == 2
    assert len(set(found.values())) == 1


async def test_the_console_may_run_what_the_gateway_serves_and_nothing_else(harness: Harness) -> None:
    async with harness.http.get("/") as response:
        text, headers = await response.text(), response.headers
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"] == POLICY
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["X-Frame-Options"] == "DENY"
    named = re.findall(r'(?:src|href)="(/[^"#]+)"', text)
    assert len(named) >= 4
    for path in named:
        async with harness.http.get(path) as response:
            assert response.status == 200, path
    assert not re.findall(r"<script>|<style|style=| on[a-z]+=|https?://", text)


def test_the_client_is_small() -> None:
    assert len(Pages()._pages["/client.js"].packed) <= 12 * 1024


async def test_nothing_else_is_served(harness: Harness) -> None:
    for path in ("/package.json", "/client.js/", "/client.JS", "/web/client.js", "/console"):
        async with harness.http.get(path) as response:
            assert response.status in (400, 404), path


def test_the_demonstration_is_only_there_where_it_runs() -> None:
    assert not [path for path in Pages().paths if path.startswith("/demo")]
    assert {"/demo", "/demo/"} <= Pages(demo=True).paths
