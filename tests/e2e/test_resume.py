"""A client goes on from its token wherever the cluster still knows what it missed, and begins anew, told so, where it does not."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.core.position import Tokens, scope_of
from cluster.simulation.view import View
from tests.live import Client, LiveCluster, eventually

pytestmark = pytest.mark.cluster
SECRET = "a secret that is long enough for the test"


@pytest.fixture
def cluster(local_ray: None, tmp_path: Path) -> Iterator[LiveCluster]:
    storage = {"path": str(tmp_path), "sync": "always", "history": {"max_bytes": "1KiB"}}
    live = LiveCluster({"storage": storage, "gateway": {"token_secret": SECRET}}).start()
    yield live
    live.stop()


async def token_of(cluster: LiveCluster, **what: Any) -> tuple[str, dict[str, Any]]:
    """Subscribe, and return the token to go on from and what is held."""
    client = await Client.open(cluster.url)
    view = await client.subscribe(1, **what)
    await client.close()
    assert view.token is not None
    return view.token, dict(view.entries)


async def resumed(cluster: LiveCluster, token: str, held: dict[str, Any], **what: Any) -> list[dict[str, Any]]:
    """Go on from a token; return what came until it was said to be everything."""
    client = await Client.open(cluster.url)
    view = client.views[1] = View()
    view.entries, view.complete = dict(held), True
    await client.send(type="subscribe", id=1, since=token, **what)
    await client.until(lambda: any(each["type"] in ("snapshot_end", "position") for each in client.log[1:]))
    if any(each["type"] == "reset" for each in client.log):
        await client.until(lambda: any(each["type"] == "snapshot_end" for each in client.log))
    await client.close()
    return [each for each in client.log if each.get("sub") == 1]


async def test_tokens_outlive_a_gateway_and_the_whole_cluster(cluster: LiveCluster) -> None:
    put = lambda n: asyncio.to_thread(cluster.put, ["note", "a"], n)  # noqa: E731
    await put(1)
    token, held = await token_of(cluster, prefix=["note"])
    await put(2)
    old = await asyncio.to_thread(cluster.kill, "gateway-0")
    await asyncio.to_thread(eventually, lambda: cluster.pids().get("gateway-0") not in (None, old))
    await asyncio.to_thread(eventually, lambda: httpx.get(f"{cluster.url}/readyz", timeout=60).status_code == 200)
    told = await resumed(cluster, token, held, prefix=["note"])
    assert [(each["type"], each.get("data")) for each in told] == [("change", 2), ("position", None)]
    await asyncio.to_thread(cluster.stop)
    await asyncio.to_thread(cluster.start)
    await put(3)
    told = await resumed(cluster, token, held, prefix=["note"])
    assert [(each["type"], each.get("data")) for each in told] == [("change", 3), ("position", None)]


async def test_what_is_no_token_of_this_cluster_for_these_keys_is_refused_and_what_is_too_old_resets(
    cluster: LiveCluster,
) -> None:
    await asyncio.to_thread(cluster.put, ["note", "a"], 1)
    token, held = await token_of(cluster, key=["note", "a"])
    flipped = token[:10] + ("A" if token[10] != "A" else "B") + token[11:]
    others = Tokens(SECRET, "another").position(scope_of([('["note","a"]', False)])).decode()
    client = await Client.open(cluster.url)
    for n, wrong in enumerate((flipped, others, "p1.0-0-0", "p3.", "x" * 3_000)):
        answer = await client.ask(type="subscribe", id=n, key=["note", "a"], since=wrong)
        assert (answer["type"], answer["code"]) == ("error", "BAD_REQUEST")
    answer = await client.ask(type="subscribe", id="other", key=["note", "b"], since=token)
    assert answer["code"] == "BAD_REQUEST"
    await client.close()
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as http:
        params = {"key": '["note","a"]'}
        for path, more in (
            ("/v1/missed", {"params": {**params, "since": flipped}}),
            ("/v1/stream", {"params": params, "headers": {"Last-Event-ID": flipped}}),
        ):
            refused = await http.get(path, **more)
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "BAD_REQUEST")
            assert SECRET not in refused.text
        assert SECRET not in (await http.get("/v1/cluster")).text
        for n in range(20):  # of more than 100 bytes each, as history counts them
            await http.put("/v1/entries", params=params, json=n)
    told = await resumed(cluster, token, held, key=["note", "a"])
    assert told[0]["type"] == "reset"
    assert [each.get("data") for each in told if each["type"] == "snapshot"] == [19]
