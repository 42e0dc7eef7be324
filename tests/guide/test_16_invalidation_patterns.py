"""Pattern 16: exact, by prefix, by relation: each marks precisely the right keys; watched ones refetch once, others on the next read."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.guide.conftest import LATENCY_MS
from tests.live import Client, LiveCluster, eventually, websocket_source

pytestmark = pytest.mark.cluster
KEYS: list[list[Any]] = [
    ["projects", "detail", "1"],
    ["projects", "detail", "2"],
    ["projects", "list", {"status": "open"}],
    ["tasks", {"projectId": "1", "done": False}],
    ["tasks", {"projectId": "2"}],
    ["users"],
    ["reports", "team", 7],
]


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    live = LiveCluster(
        {
            "cluster": {"shards": 3},
            "services": {"api": {"base_url": upstream.url}},
            "queries": [
                {"key": ["projects", "detail", "{id}"], "service": "api", "path": "/projects/{id}"},
                {"key": ["projects", "list", "{filters}"], "service": "api", "path": "/projects"},
                {"key": ["tasks", "{filters}"], "service": "api", "path": "/tasks", "params": "{filters}"},
                {"key": ["users"], "service": "api", "path": "/users"},
                {"key": ["reports", "team", "{id}"], "service": "api", "path": "/users"},
            ],
            "relations": {
                "project": [["projects", "detail", "{id}"], ["projects", "list"], ["tasks", {"projectId": "{id}"}]],
                "user": [{"contains": "users"}, {"contains": "team"}, {"contains": "members"}],
            },
            "sources": {"events": websocket_source(upstream.url)},
            "streams": [
                {
                    "source": "events",
                    "channel": "cache:invalidate",
                    "join": "always",
                    "on": {
                        "invalidate:exact": {"invalidate": {"key": "{data.queryKey}", "exact": True}},
                        "invalidate:prefix": {"invalidate": {"key": ["{data.prefix}"]}},
                        "entity:changed": {"relation": {"type": "{data.type}", "id": "{data.id}"}},
                    },
                }
            ],
        }
    ).start()
    eventually(lambda: upstream.do(lambda up: up.hub.joined().get("cache:invalidate", 0)))
    live.put(["warm"], 1)
    upstream.say("cache:invalidate", "invalidate:exact", {"queryKey": ["warm"]})
    eventually(lambda: live.get("warm").json()["is_invalidated"])  # what the stream's opening brings has come, too
    yield live
    live.stop()


@pytest.mark.parametrize(
    ("event", "data", "marked"),
    [
        ("invalidate:exact", {"queryKey": ["projects", "detail", "1"]}, [0]),
        ("invalidate:exact", {"queryKey": ["projects"]}, []),
        ("invalidate:prefix", {"prefix": "projects"}, [0, 1, 2]),
        ("entity:changed", {"type": "project", "id": "1"}, [0, 2, 3]),
        ("entity:changed", {"type": "user", "id": "u"}, [5, 6]),
        ("entity:changed", {"type": "no such type", "id": 1}, []),
    ],
)
async def test_exactly_the_right_keys_are_marked(
    cluster: LiveCluster, client: Client, upstream: Any, event: str, data: Any, marked: list[int]
) -> None:
    for key in KEYS:
        assert cluster.get(*key, fetch="force").json()["is_invalidated"] is False
    watched = await client.subscribe("watched", key=KEYS[0])
    told = len(_invalidations(client))
    before = upstream.do(lambda up: dict(up._requests))
    upstream.say("cache:invalidate", event, *[data] * 3)  # three at once are one
    upstream.say("cache:invalidate", "invalidate:exact", {"queryKey": ["end"]})
    if 0 in marked:
        await client.until(lambda: len(_invalidations(client)) > told)
        await client.until(lambda: _requests(upstream, before).get("GET /projects/1") == 1)
    for number, key in enumerate(KEYS[1:], 1):
        if number in marked:
            eventually(lambda key=key: cluster.get(*key, fetch="never").json()["is_invalidated"])
    entries = [cluster.get(*key, fetch="never").json() for key in KEYS[1:]]
    assert [number for number, entry in enumerate(entries, 1) if entry["is_invalidated"]] == [n for n in marked if n]
    assert _requests(upstream, before) == ({"GET /projects/1": 1} if 0 in marked else {}), (
        "only what is watched is fetched"
    )
    for number in marked[-1:]:
        assert cluster.get(*KEYS[number]).json()["is_invalidated"] is False, "the next read has it fetched"
    assert watched.data(*KEYS[0])["id"] == "1"


async def test_a_storm_of_invalidations_makes_one_more_fetch(
    cluster: LiveCluster, client: Client, upstream: Any
) -> None:
    await client.subscribe("p", key=["projects", "detail", "2"])
    upstream.do(lambda up: up.control({"latency_ms": LATENCY_MS}))
    before = upstream.do(lambda up: dict(up._requests))
    async with httpx.AsyncClient(base_url=cluster.url, timeout=60) as http:
        asked = [http.post("/v1/invalidate", json={"key": ["projects", "detail", "2"]}) for _ in range(30)]
        assert [answer.json() for answer in await asyncio.gather(*asked)] == [{"matched": 1}] * 30
    upstream.do(lambda up: up.control({"latency_ms": 0}))
    eventually(lambda: cluster.get("projects", "detail", "2", fetch="never").json()["fetch_status"] == "idle")
    assert _requests(upstream, before)["GET /projects/2"] == 2


def _invalidations(client: Client) -> list[Any]:
    return [message for message in client.log if message["type"] == "invalidated"]


def _requests(upstream: Any, before: dict[str, int]) -> dict[str, int]:
    now = upstream.do(lambda up: dict(up._requests))
    return {path: count - before.get(path, 0) for path, count in now.items() if count > before.get(path, 0)}
