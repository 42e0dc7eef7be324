"""Pattern 14: two writers of one document: nobody's edit is lost, whoever comes second is told, stale events are ignored, edits merge."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from typing import Any

import pytest

from cluster.client import HarborClient
from cluster.errors import ConflictError
from tests.live import Client, LiveCluster, eventually, websocket_source

pytestmark = pytest.mark.cluster
ROUNDS = 500
DOCUMENT: dict[str, Any] = {
    "title": "Plan",
    "body": "draft",
    "tags": ["a"],
    "tasks": [{"id": 1, "done": False}, {"id": 2, "done": False}],
}


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCluster]:
    live = LiveCluster(
        {
            "cluster": {"shards": 1},
            "storage": {"path": str(tmp_path_factory.mktemp("store"))},
            "sources": {"events": websocket_source(upstream.url)},
            "streams": [
                {
                    "source": "events",
                    "channel": "documents",
                    "join": "always",
                    "on": {
                        "document:updated": [
                            {
                                "set": {"key": ["document", "{data.id}"], "value": "{data}"},
                                "version": {"at": "/revision", "value": "{data.revision}"},
                            },
                            {"increment": {"key": ["seen", "{data.id}"], "at": "/n", "when_missing": "create"}},
                        ]
                    },
                }
            ],
        }
    ).start()
    # The stream's opening resets what it feeds; these tests begin after that.
    eventually(lambda: upstream.do(lambda up: up.hub.joined().get("documents", 0)))
    upstream.say("documents", "document:updated", {"id": "first", "revision": 1})
    eventually(lambda: live.get("document", "first").status_code == 200)
    yield live
    live.stop()


@pytest.fixture
async def harbor(cluster: LiveCluster) -> AsyncIterator[HarborClient]:
    async with HarborClient(cluster.url) as harbor:
        yield harbor


async def test_two_writers_race(cluster: LiveCluster, client: Client, harbor: HarborClient) -> None:
    """Each round both write over the same version, one by HTTP, one by its socket; the loser writes again over what it is told of."""
    key = ["document", "raced"]
    view = await client.subscribe("race", key=key)
    writer = await Client.open(cluster.url)
    number = 0

    async def by_http(data: dict[str, Any], base: int) -> tuple[int, dict[str, Any] | None]:
        try:
            return await harbor.set(key, data, base_version=base), None
        except ConflictError as error:
            return 0, error.current

    async def by_socket(data: dict[str, Any], base: int) -> tuple[int, dict[str, Any] | None]:
        nonlocal number
        number += 1
        answer = await writer.ask(type="set", id=number, key=key, data=data, base_version=base)
        if answer["type"] == "error":
            assert answer["code"] == "VERSION_CONFLICT"
            return 0, answer["details"]["current"]
        return answer["version"], None

    version = await harbor.set(key, {"a": 0, "b": 0}, base_version=0)
    steps = [(0, version)]
    document = {"a": 0, "b": 0}
    lost = {"a": 0, "b": 0}
    for _ in range(ROUNDS):
        tried = {name: {**document, name: document[name] + 1} for name in "ab"}
        answers = dict(
            zip("ab", await asyncio.gather(by_http(tried["a"], version), by_socket(tried["b"], version)), strict=True)
        )
        (winner,) = (name for name in "ab" if answers[name][0])
        (loser,) = (name for name in "ab" if name != winner)
        won = answers[winner][0]
        current = answers[loser][1]
        assert current is not None
        assert (current["key"], current["version"], current["data"]) == (key, won, tried[winner])
        steps.append((version, won))
        lost[loser] += 1
        again = {**current["data"], loser: current["data"][loser] + 1}
        version, _ = await (by_http if loser == "a" else by_socket)(again, won)
        assert version, "nobody else writes now"
        steps.append((won, version))
        document = again
    assert document == {"a": ROUNDS, "b": ROUNDS}, "no update is lost"
    assert (await harbor.get(key)).data == document
    assert all(earlier[1] == later[0] for earlier, later in pairwise(steps))
    assert all(after == before + 1 for before, after in steps[1:]), "versions are gapless"
    assert sum(lost.values()) == ROUNDS
    await client.until(lambda: view.data(*key) == document)
    assert view.entries['["document","raced"]'][0] == version
    assert view.resets == 0
    made = {after for _, after in steps}
    told = [message for message in client.log if message["type"] == "change"]
    assert all(earlier["version"] == later["from"] for earlier, later in pairwise(told)), "no step is skipped"
    assert {message["version"] for message in told} <= made
    await writer.close()


async def test_stale_events_are_ignored(
    cluster: LiveCluster, client: Client, harbor: HarborClient, upstream: Any
) -> None:
    key = ["document", "streamed"]
    view = await client.subscribe("doc", key=key)
    seen = await client.subscribe("seen", key=["seen", "streamed"])

    async def say(*revisions: int) -> None:
        before = seen.data("seen", "streamed")["n"] if seen.entries else 0
        for revision in revisions:
            event = {"id": "streamed", "revision": revision, "text": f"of {revision}"}
            await asyncio.to_thread(upstream.say, "documents", "document:updated", event)
        await client.until(lambda: seen.data("seen", "streamed")["n"] == before + len(revisions))

    await say(5)
    await client.until(lambda: view.data(*key)["revision"] == 5)
    version = view.entries['["document","streamed"]'][0]
    await say(3, 5, 4)
    entry = await harbor.get(key)
    assert (entry.version, entry.data["text"]) == (version, "of 5")
    await harbor.set(key, {**entry.data, "revision": 8, "text": "of a writer"}, base_version=version)
    await say(7)
    assert (await harbor.get(key)).data["text"] == "of a writer"
    await say(9, 8)
    await client.until(lambda: view.data(*key)["text"] == "of 9")
    shown = [m["data"]["revision"] for m in client.log if m.get("sub") == "doc" and m["type"] == "change"]
    assert shown == sorted(shown)


async def test_edits_of_other_places_are_merged(client: Client, harbor: HarborClient) -> None:
    key = ["document", "merged"]
    view = await client.subscribe("doc", key=key, mode="patch")
    base = await harbor.set(key, DOCUMENT)
    hers = {**DOCUMENT, "title": "The plan", "tasks": [{"id": 1, "done": True}, {"id": 2, "done": False}]}
    his = {**DOCUMENT, "body": "final", "tasks": [{"id": 1, "done": False}, {"id": 2, "done": True}, {"id": 3}]}
    await harbor.set(key, hers, base_version=base, merge="three_way")
    merged = await harbor.set(key, his, base_version=base, merge="three_way")
    both = {
        **DOCUMENT,
        "title": "The plan",
        "body": "final",
        "tasks": [{"id": 1, "done": True}, {"id": 2, "done": True}, {"id": 3}],
    }
    entry = await harbor.get(key)
    assert (entry.data, entry.version) == (both, merged)
    await client.until(lambda: view.entries['["document","merged"]'] == (merged, both))
    by_socket = {**DOCUMENT, "owner": "me"}
    answer = await client.ask(type="set", id=1, key=key, data=by_socket, base_version=base, merge="three_way")
    assert answer["merged"] is True
    assert (await harbor.get(key)).data == {**both, "owner": "me"}


async def test_edits_of_the_same_place_are_a_conflict_that_says_where(client: Client, harbor: HarborClient) -> None:
    key = ["document", "disputed"]
    base = await harbor.set(key, DOCUMENT)
    hers = {**DOCUMENT, "title": "Hers", "tags": ["a", "b"], "tasks": [{"id": 2, "done": 1}]}
    won = await harbor.set(key, hers, base_version=base)
    his = {**DOCUMENT, "title": "His", "body": "his", "tags": ["a", "c"], "tasks": [{"id": 2, "done": 2}, {"id": 3}]}
    with pytest.raises(ConflictError) as caught:
        await harbor.set(key, his, base_version=base, merge="three_way")
    places = ["/title", "/tags", "/tasks/0/done"]
    assert sorted(caught.value.conflicts) == sorted(places)
    assert caught.value.current is not None
    assert (caught.value.current["version"], caught.value.current["data"]) == (won, hers)
    answer = await client.ask(type="set", id=1, key=key, data=his, base_version=base, merge="three_way")
    assert answer["code"] == "VERSION_CONFLICT"
    assert sorted(answer["details"]["conflicts"]) == sorted(places)
    assert answer["details"]["current"]["version"] == won
    assert (await harbor.get(key)).version == won, "nothing was written"
