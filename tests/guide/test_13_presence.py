"""Pattern 13: who is in a document, and where their cursors are; who is killed leaves, whoever else dies nobody blinks.

That nothing happens when a grace is over is shown on a clock of its own, in `tests/core/test_presence*.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from cluster.core.placement import assign_slots
from cluster.core.query_key import CanonicalKey
from tests.live import Client, LiveCluster, eventually

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(local_ray: None) -> Iterator[LiveCluster]:
    live = LiveCluster(
        {
            "cluster": {"gateways": 2},
            "presence": {
                "document:{id}": {"heartbeat": "30s", "timeout": "75s"},
                "quick:{id}": {"heartbeat": "1s", "timeout": "8s"},
            },
        }
    ).start()
    yield live
    live.stop()


class Person(Client):
    """A client that keeps the map of a topic, and every member it was told had left."""

    def map(self, topic: str) -> dict[str, Any]:
        held: dict[str, Any] = {}
        for message in self.log:
            if message["type"] == "presence" and message["topic"] == topic:
                if message.get("snapshot"):
                    held.clear()
                assert not message.get("snapshot") or not (message["left"] or message["updated"])
                held.update({row["member"]: row["state"] for row in message["joined"] + message["updated"]})
                for member in message["left"]:
                    del held[member]
                assert len(held) == message["count"]
        return held

    def left(self, topic: str) -> list[str]:
        told = (each for each in self.log if each["type"] == "presence" and each["topic"] == topic)
        return [member for message in told for member in message["left"]]

    async def me(self) -> str:
        await self.until(lambda: self.log)
        return str(next(each["session"] for each in reversed(self.log) if each["type"] == "welcome"))

    async def join(self, topic: str, state: Any, **more: Any) -> dict[str, Any]:
        return await self.ask(type="presence", id=f"join {topic}", topic=topic, state=state, **more)

    def kill(self) -> None:
        """As when its machine loses power, as far as a socket can tell."""
        self._socket.transport.abort()


@pytest.fixture
async def people(cluster: LiveCluster) -> AsyncIterator[list[Person]]:
    opened = [await open_person(cluster) for _ in range(3)]
    yield opened
    for each in opened:
        await each.close()


async def open_person(cluster: LiveCluster) -> Person:
    person = await Person.open(cluster.url)
    assert isinstance(person, Person)
    return person


async def met(people: list[Person], topic: str) -> list[str]:
    """All join, and see each other. Returns their ids."""
    for n, person in enumerate(people):
        answer = await person.join(topic, {"cursor": n})
        assert answer["type"] == "result"
    ids = [await person.me() for person in people]
    wanted = {member: {"cursor": n} for n, member in enumerate(ids)}
    for person in people:
        await person.until(lambda person=person: person.map(topic) == wanted)
    return ids


async def test_three_see_each_other_and_their_cursors_and_who_is_killed_leaves(people: list[Person]) -> None:
    topic = "document:1"
    first, second, third = await met(people, topic)
    await people[1].join(topic, {"cursor": 7, "selection": [1, 5]})
    for person in people:
        await person.until(lambda person=person: person.map(topic)[second] == {"cursor": 7, "selection": [1, 5]})
    people[2].kill()
    for person in people[:2]:
        await person.until(lambda person=person: set(person.map(topic)) == {first, second})
    assert people[0].left(topic) == people[1].left(topic) == [third]
    assert (await people[0].ask(type="leave", id="bye", topic=topic))["type"] == "result"
    await people[1].until(lambda: set(people[1].map(topic)) == {second})


async def test_who_is_silent_for_too_long_leaves_and_who_says_it_is_there_stays(people: list[Person]) -> None:
    topic = "quick:1"
    first, second, third = await met(people, topic)
    async with asyncio.timeout(60):
        while not people[0].left(topic):
            await people[0].ask(type="presence", id="beat", topic=topic)
            await people[1].join(topic, {"cursor": 1})
            await asyncio.sleep(0.4)
    await people[0].until(lambda: people[0].map(topic).keys() == {first, second})
    assert people[0].left(topic) == [third]
    assert {
        row["member"] for message in people[0].log if message["type"] == "presence" for row in message["updated"]
    } == set()


async def test_nobody_blinks_when_the_home_is_killed_and_no_ghost_stays(
    cluster: LiveCluster, people: list[Person]
) -> None:
    topic = "document:2"
    first, second, third = await met(people, topic)
    shards = len(cluster.supervisor.describe()["shards"])
    home = f"shard-{assign_slots(range(shards), 1).shard(CanonicalKey(topic))}"
    pid = cluster.kill(home)
    await people[2].ask(type="leave", id="bye", topic=topic)  # nobody is there to be told
    eventually(lambda: cluster.pids()[home] != pid)
    await people[0].join(topic, {"cursor": 100})
    for person in people[:2]:
        await person.until(lambda person=person: person.map(topic) == {first: {"cursor": 100}, second: {"cursor": 1}})
        assert person.left(topic) == [third]
    answer = httpx.get(f"{cluster.url}/v1/presence", params={"topic": topic, "limit": "1"}).json()
    assert (answer["count"], len(answer["members"]), "cursor" in answer) == (2, 1, True)


async def test_a_client_that_comes_back_within_the_grace_was_never_away(
    cluster: LiveCluster, people: list[Person]
) -> None:
    topic = "document:3"
    first, second, third = await met(people, topic)
    token = next(each["resume_token"] for each in people[2].log if each["type"] == "welcome")
    people[2].kill()
    back = await open_person(cluster)  # perhaps at the other gateway
    await back.send(type="hello", resume=token)
    await back.until(lambda: len([each for each in back.log if each["type"] == "welcome"]) == 2)
    assert await back.me() == third
    await people[0].join(topic, {"cursor": 50})
    await people[1].until(lambda: people[1].map(topic)[first] == {"cursor": 50})
    assert people[1].map(topic).keys() == {first, second, third}
    assert people[0].left(topic) == people[1].left(topic) == []
    await back.close()  # as who means it
    await people[1].until(lambda: people[1].map(topic).keys() == {first, second})


async def test_a_gateway_that_is_killed_takes_nobody_with_it_who_comes_back(cluster: LiveCluster) -> None:
    topic = "document:4"
    people = [await open_person(cluster) for _ in range(6)]

    def sessions() -> dict[int, int]:
        return {row["id"]: row["sessions"] for row in cluster.supervisor.describe()["gateways"]}

    while 0 in (held := sessions()).values():  # it is the kernel that divides them
        people.append(await open_person(cluster))
    ids = await met(people, topic)
    cluster.kill(f"gateway-{min(held, key=lambda each: held[each])}")
    await asyncio.wait([person._reader for person in people], timeout=2)  # those of the other one never end
    gone = [person for person in people if person._reader.done()]
    assert 0 < len(gone) < len(people)
    backs = []
    for person in gone:
        token = next(each["resume_token"] for each in person.log if each["type"] == "welcome")
        back = await open_person(cluster)
        await back.send(type="hello", resume=token)
        await back.until(lambda back=back: len([each for each in back.log if each["type"] == "welcome"]) == 2)
        backs.append(back)
    for person in people:
        if person not in gone:
            await person.until(lambda person=person: person.map(topic).keys() == set(ids))
            assert person.left(topic) == []
    answer = httpx.get(f"{cluster.url}/v1/presence", params={"topic": topic}).json()
    assert {row["member"] for row in answer["members"]} == set(ids)
    for person in [*people, *backs]:
        await person.close()
