"""Pattern 15: one event about a user reaches every list and detail that holds them, in all shards."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.live import Client, LiveCluster, websocket_source

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    live = LiveCluster(
        {
            "cluster": {"shards": 3},
            "services": {"api": {"base_url": upstream.url}},
            "queries": [
                {"key": ["users"], "service": "api", "path": "/users"},
                {"key": ["messages", "{c}"], "service": "api", "path": "/messages", "params": {"channelId": "{c}"}},
                {
                    "key": ["posts", "{feed}"],
                    "service": "api",
                    "path": "/posts",
                    "params": {"feedId": "{feed}"},
                    "infinite": {"param": "offset", "initial": 0, "page_size": 20},
                },
            ],
            "entities": {"user": {"id": "id", "keys": ["userId"], "objects": ["author", "user"]}},
            "sources": {"events": websocket_source(upstream.url)},
            "streams": [
                {
                    "source": "events",
                    "channel": "global:entities",
                    "on": {"user:updated": {"entity": {"type": "user", "value": "{data}"}}},
                }
            ],
        }
    ).start()
    yield live
    live.stop()


def occurrences(value: Any, user: str) -> list[dict[str, Any]]:
    """Every object in a value that says it is the user."""
    if isinstance(value, list):
        return [found for item in value for found in occurrences(item, user)]
    if not isinstance(value, dict):
        return []
    own = [value] if value.get("id") == user else []
    return own + [found for item in value.values() for found in occurrences(item, user)]


async def test_every_occurrence_is_updated_and_nothing_else(
    cluster: LiveCluster, client: Client, upstream: Any
) -> None:
    user = upstream.do(lambda up: up.tracker.post_list("1")[0]["authorId"])
    keys: list[list[Any]] = [["users"], ["messages", "1"], ["messages", "2"], ["posts", "1"]]
    for number in range(6):
        keys.append(["note", number])
        cluster.put(
            ["note", number], {"userId": user, "text": f"by {number}", "of": [{"author": {"id": user, "name": "?"}}]}
        )
    other = cluster.put(["other"], {"author": {"id": "somebody else", "name": "?"}}).json()["version"]
    views = [await client.subscribe(n, key=key) for n, key in enumerate(keys)]
    await client.until(lambda: all(view.data(*key) is not None for view, key in zip(views, keys, strict=True)))
    counts = [len(occurrences(view.data(*key), user)) for view, key in zip(views, keys, strict=True)]
    assert counts[0] == 1
    assert sum(counts[1:4]) > 0, "the sample upstream has nothing by this user"
    requests = upstream.do(lambda up: dict(up._requests))

    upstream.do(lambda up: up.emit(up.tracker.update_user(user, {"name": "Another Name"})[1]))

    def updated() -> bool:
        found = [occurrences(view.data(*key), user) for view, key in zip(views, keys, strict=True)]
        return all(each["name"] == "Another Name" for of_key in found for each in of_key)

    await client.until(updated)
    for number, count in enumerate(counts):
        more = 1 if number >= 4 else 0  # who is named by `userId` is put beside it
        await client.until(lambda n=number, c=count + more: len(occurrences(views[n].data(*keys[n]), user)) == c)
    assert cluster.get("other").json()["version"] == other
    assert upstream.do(lambda up: dict(up._requests)) == requests, "nothing was fetched again"
    entry = cluster.get("note", 0).json()
    assert entry["origin"]["kind"] == "stream"
    assert entry["origin"]["from"] == "events/global:entities user:updated"
    subscribed = {shard["id"] for shard in httpx.get(f"{cluster.url}/v1/cluster").json()["shards"] if shard["keys"]}
    assert len(subscribed) == 3, "the keys are spread over all shards"
