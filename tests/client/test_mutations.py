"""Mutations of a program, through a real gateway before homes that do what the test says."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cluster.client import HarborClient, Mutation, mutation
from cluster.core.mutation import SETTLED, Status
from cluster.errors import ErrorCode, HarborError, RequestError, UnavailableError
from tests.client.conftest import CUT, StandIn
from tests.gateway.test_mutations import ODD, Homed


@pytest.fixture
async def homed() -> AsyncIterator[Homed]:
    homed = Homed()
    await homed.start()
    yield homed
    await homed.stop()


@pytest.fixture
async def harbor(homed: Homed) -> AsyncIterator[HarborClient]:
    async with HarborClient(homed.url) as harbor:
        yield harbor


def test_it_knows_which_statuses_are_for_good() -> None:
    assert set(mutation.SETTLED) == set(SETTLED)
    assert [Mutation(id="m", status=each).is_settled for each in ("success", "paused")] == [True, False]


async def test_it_begins_looks_and_undoes(harbor: HarborClient, homed: Homed) -> None:
    begun = await harbor.mutate("note", {"n": 1}, id=ODD, delay_ms=50)
    assert begun == Mutation(id=ODD, status="scheduled")
    assert homed.mutates[0].delay_ms == 50
    looked = Mutation(id=ODD, status="scheduled", name="note", created_at=5, due_at=99_000)
    assert await harbor.mutation(ODD) == looked
    made = await harbor.mutate("note", {})
    assert made.id != ODD
    assert {each.id for each in await harbor.mutations()} == {ODD, made.id}
    assert await harbor.mutations("scheduled") == [looked]
    assert await harbor.mutations([Status.SCHEDULED, "error"]) == [looked]
    assert (await harbor.undo(ODD)).status == "cancelled"


async def test_it_waits_for_the_outcome(harbor: HarborClient, homed: Homed) -> None:
    wait = asyncio.ensure_future(harbor.mutate("note", {}, id="m1", wait=True))
    await homed.until_known()
    assert [each.id for each in await harbor.mutations()] == ["m1"]  # what was answered before it has come by now
    assert not wait.done()
    homed.tell("m1", Status.SUCCESS, result=b'{"id":7}')
    assert await wait == Mutation(id="m1", status="success", result={"id": 7})


async def test_what_is_refused(harbor: HarborClient) -> None:
    with pytest.raises(HarborError) as caught:
        await harbor.mutate("none", {})
    assert caught.value.code is ErrorCode.UNKNOWN_MUTATION
    with pytest.raises(HarborError) as caught:
        await harbor.mutation("none")
    assert caught.value.code is ErrorCode.NOT_FOUND
    await harbor.mutate("note", {}, id="sent")
    with pytest.raises(HarborError) as caught:
        await harbor.undo("sent")
    assert (caught.value.code, caught.value.details) == (ErrorCode.CONFLICT, {"status": "pending"})
    with pytest.raises(RequestError, match="not JSON"):
        await harbor.mutate("note", {"n": object()})


async def test_one_that_breaks_off_is_repeated_under_the_same_id(stand_in: StandIn) -> None:
    other = await StandIn().start()
    stand_in.answers = [(CUT, b"")]
    other.answers = [(200, b'{"id":"x","status":"pending"}')]
    async with HarborClient([stand_in.url, other.url]) as harbor:
        harbor._gateways.failed(other.url)
        assert await harbor.mutate("note", {}) == Mutation(id="x", status="pending")
    bodies: list[Any] = [request[3] for request in [*stand_in.requests, *other.requests]]
    assert len({body["id"] for body in bodies}) == 1
    assert len(bodies) == 2
    await other.stop()


async def test_what_is_no_mutation_is_no_cluster(stand_in: StandIn) -> None:
    stand_in.answers = [(200, b'{"version":1}')]
    async with HarborClient(stand_in.url) as harbor:
        with pytest.raises(UnavailableError, match="no mutation"):
            await harbor.mutate("note", {})
