"""Reading and writing through a real gateway."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from cluster.client import Entry, HarborClient, harbor_client
from cluster.errors import ConflictError, ErrorCode, HarborError, RequestError, UnavailableError
from tests.client.conftest import CUT, NO_ANSWER, StandIn
from tests.gateway.conftest import Harness

A: list[Any] = ["a", 1]
ENTRY = {"key": A, "data": 1, "version": 7, "status": "success", "fetch_status": "idle", "of_a_later_version": {}}


@pytest.fixture
async def harbor(harness: Harness) -> AsyncIterator[HarborClient]:
    async with HarborClient(harness.url) as harbor:
        yield harbor


# --- entries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", [A, ["a b+c%20&key=1?#", {"filter": [1.5, None, True, {}], "z": '\n"\\/'}], ["é🐍"], [10**20, -0.0], []]
)
async def test_what_is_set_is_read(harbor: HarborClient, harness: Harness, key: list[Any]) -> None:
    version = await harbor.set(key, {"x": [1, 2.5, None, "é"]})
    entry = await harbor.get(key)
    assert abs(entry.data_updated_at - harness.clock.now_ms()) < 5_000
    assert entry == Entry(
        key=key,
        data={"x": [1, 2.5, None, "é"]},
        version=version,
        data_updated_at=entry.data_updated_at,
        status="success",
        origin=entry.origin,
    )
    await harbor.delete(key)
    with pytest.raises(HarborError) as caught:
        await harbor.get(key)
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_a_conditional_write_that_lost_says_what_won(harbor: HarborClient) -> None:
    version = await harbor.set(A, 1, base_version=0)
    assert await harbor.set(A, 2, base_version=version) > version
    for write in (
        harbor.set(A, 3, base_version=version),
        harbor.edit(A, patch=[], base_version=version),
        harbor.delete(A, base_version=version),
    ):
        with pytest.raises(ConflictError) as caught:
            await write
        current = caught.value.current
        assert current is not None
        assert (current["data"], current["key"], caught.value.conflicts) == (2, A, [])
    await harbor.delete(A)
    with pytest.raises(ConflictError) as caught:
        await harbor.set(A, 3, base_version=version)
    assert caught.value.current is None


async def test_edits_of_an_earlier_version_are_merged_or_say_where_they_cannot_be(harbor: HarborClient) -> None:
    version = await harbor.set(A, {"a": 1, "b": 1})
    await harbor.set(A, {"a": 2, "b": 1}, base_version=version)
    await harbor.set(A, {"a": 1, "b": 2}, base_version=version, merge="three_way")
    assert (await harbor.get(A)).data == {"a": 2, "b": 2}
    with pytest.raises(ConflictError) as caught:
        await harbor.set(A, {"a": 3, "b": 2}, base_version=version, merge="three_way")
    assert caught.value.conflicts == ["/a"]
    assert caught.value.current is not None
    assert caught.value.current["data"] == {"a": 2, "b": 2}


async def test_how_safe_a_write_is_to_be_is_said(harbor: HarborClient) -> None:
    await harbor.set(A, [], ack="memory")
    await harbor.edit(A, operations=[{"append": {"item": 1}}], ack="memory")
    for write in (
        harbor.set(A, 1, ack="durable"),
        harbor.edit(A, operations=[{"append": {"item": 1}}], ack="durable"),
        harbor.delete(A, ack="durable"),
    ):
        with pytest.raises(HarborError) as caught:
            await write
        assert caught.value.code is ErrorCode.UNSUPPORTED
    assert (await harbor.get(A)).data == [1]
    await harbor.delete(A, ack="memory")


async def test_edits(harbor: HarborClient) -> None:
    first = await harbor.set(A, {"tasks": []})
    second = await harbor.edit(A, operations=[{"append": {"at": "/tasks", "item": 7}}])
    third = await harbor.edit(A, patch=[{"op": "add", "path": "/tasks/-", "value": 8}])
    assert first < second < third
    assert (await harbor.get(A)).data == {"tasks": [7, 8]}
    with pytest.raises(HarborError) as caught:
        await harbor.edit(A, patch=[{"op": "remove", "path": "/nothing"}])
    assert caught.value.code is ErrorCode.BAD_REQUEST
    for edit in (harbor.edit(A), harbor.edit(A, operations=[], patch=[])):
        with pytest.raises(RequestError):
            await edit


async def test_a_repeat_acts_once(harbor: HarborClient) -> None:
    await harbor.set(A, [])
    append = [{"append": {"item": 1}}]
    versions = {await harbor.edit(A, operations=append, idempotency_key="k") for _ in range(3)}
    assert len(versions) == 1
    assert (await harbor.get(A)).data == [1]
    assert await harbor.edit(A, operations=append) not in versions


async def test_keys_are_listed_through_all_pages(harbor: HarborClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harbor_client, "PAGE_ROWS", 2)
    for n in range(5):
        await harbor.set(["k", n], n)
    await harbor.set(["other"], 0)
    rows = [row async for row in harbor.keys(["k"])]
    assert [row["key"] for row in rows] == [["k", n] for n in range(5)]
    assert {"version", "status", "is_stale", "subscribers"} <= set(rows[0])
    assert len([row async for row in harbor.keys([])]) == 6


async def test_invalidate(harbor: HarborClient) -> None:
    for n in range(3):
        await harbor.set(["i", n], n)
    assert await harbor.invalidate(["i"]) == 3
    assert await harbor.invalidate(["i"], exact=True) == 0
    assert await harbor.invalidate(["i", 1], exact=True, type="inactive", refetch="none") == 1
    assert await harbor.invalidate() == 3
    entry = await harbor.get(["i", 1])
    assert (entry.is_invalidated, entry.is_stale) == (True, True)


# --- what is sent and understood, against a stand-in -------------------------------------------------------------


async def test_only_what_is_not_the_default_is_sent(stand_in: StandIn) -> None:
    stand_in.answers = [(200, orjson.dumps({**ENTRY, "matched": 0, "keys": []}))]
    async with HarborClient(stand_in.url, "secret") as harbor:
        await harbor.invalidate()
        await harbor.invalidate(A, exact=True, type="active", refetch="all", stale=False, fetch_status="paused")
        await harbor.get(A)
        await harbor.get(A, fetch="never")
        await harbor.next_page(A)
        await harbor.previous_page(A)
        await harbor.set(A, None, base_version=0, idempotency_key="mine")
    assert [request[2:4] for request in stand_in.requests] == [
        ({}, {}),
        (
            {},
            {"key": A, "exact": True, "type": "active", "refetch": "all", "stale": False, "fetch_status": "paused"},
        ),
        ({"key": '["a",1]'}, None),
        ({"key": '["a",1]', "fetch": "never"}, None),
        ({"key": '["a",1]', "page": "next"}, None),
        ({"key": '["a",1]', "page": "previous"}, None),
        ({"key": '["a",1]', "base_version": "0"}, None),
    ]
    assert all(request[4]["Authorization"] == "Bearer secret" for request in stand_in.requests)
    assert stand_in.requests[-1][4]["Idempotency-Key"] == "mine"


async def test_members_of_other_versions_are_no_matter(stand_in: StandIn) -> None:
    stand_in.answers = [(200, orjson.dumps(ENTRY)), (200, orjson.dumps({**ENTRY, "origin": {"kind": "fetch"}}))]
    async with HarborClient(stand_in.url) as harbor:
        entry = await harbor.next_page(A)
        assert entry == Entry(key=A, data=1, version=7, status="success")
        assert (await harbor.get(A)).origin == {"kind": "fetch"}


@pytest.mark.parametrize(
    ("status", "content", "code"),
    [
        (502, b"<html>", ErrorCode.UNAVAILABLE),
        (504, b"", ErrorCode.UNAVAILABLE),
        (200, b"hello", ErrorCode.UNAVAILABLE),
        (200, b"{}", ErrorCode.UNAVAILABLE),
        (502, b'{"error":{"code":"UPSTREAM_ERROR","message":"down"}}', ErrorCode.UPSTREAM_ERROR),
    ],
)
async def test_bad_answers_are_errors_of_one_line(
    stand_in: StandIn, status: int, content: bytes, code: ErrorCode
) -> None:
    stand_in.answers = [(status, content)]
    async with HarborClient(stand_in.url) as harbor:
        for ask in (harbor.get(A), harbor.set(A, 1), harbor.invalidate()):
            with pytest.raises(HarborError) as caught:
                await ask
            assert caught.value.code is code
            assert "\n" not in caught.value.message


async def test_nobody_there_is_unavailable(nobody: str) -> None:
    async with HarborClient(nobody) as harbor:
        with pytest.raises(UnavailableError, match=f"no cluster answers at {nobody}"):
            await harbor.get(A)


async def test_no_answer_in_time_is_unavailable(stand_in: StandIn) -> None:
    stand_in.answers = [(NO_ANSWER, b"")]
    async with HarborClient(stand_in.url, timeout_s=0.05) as harbor:
        with pytest.raises(UnavailableError, match=r"did not answer within 0\.05 s"):
            await harbor.get(A)


@pytest.mark.parametrize("key", ["a", ("a",), [{1: 2}], [object()], [["x"] * 600], ["\ud800"]])
async def test_what_is_no_key_is_refused(harbor: HarborClient, key: Any) -> None:
    codes = (ErrorCode.BAD_KEY, ErrorCode.BAD_REQUEST, ErrorCode.TOO_LARGE)
    with pytest.raises(HarborError) as caught:
        await harbor.get(key)
    assert caught.value.code in codes
    with pytest.raises(RequestError) as refused:
        harbor.watch(key)
    assert refused.value.code in codes


async def test_a_key_with_a_large_number_is_as_good_as_any(harbor: HarborClient) -> None:
    key = [2**70]
    version = await harbor.set(key, 1)
    async with harbor.watching(key) as watch:
        assert (await anext(watch)).version == version
    assert await harbor.invalidate(key) == 1


async def test_an_idempotency_key_is_any_text(harbor: HarborClient) -> None:
    version = await harbor.set(A, 1, idempotency_key="Übung 1")
    assert await harbor.set(A, 2, idempotency_key="Übung 1") == version
    assert await harbor.set(A, 3, idempotency_key="Übung 3") > version


async def test_what_is_no_data_is_refused(harbor: HarborClient) -> None:
    with pytest.raises(RequestError, match="not JSON"):
        await harbor.set(A, object())
    with pytest.raises(RequestError, match="mode is data or patch"):
        harbor.watch(A, mode="both")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "ask",
    [
        lambda harbor: harbor.set(A, 1, idempotency_key="\udcff"),
        lambda harbor: harbor.delete(A, idempotency_key="a\nb"),
        lambda harbor: anext(harbor.members("\udcff")),
        lambda harbor: harbor.undo("\udcff"),
        lambda harbor: harbor.mutation("\udcff"),
        lambda harbor: harbor.mutate("m", {"a": "\udcff"}),
        lambda harbor: harbor.set(A, "\udcff"),
        lambda harbor: anext(harbor.keys(["\udcff"])),
    ],
)
async def test_what_cannot_be_sent_is_refused(harbor: HarborClient, ask: Any) -> None:
    with pytest.raises(HarborError) as caught:
        await ask(harbor)
    assert caught.value.code in (ErrorCode.BAD_REQUEST, ErrorCode.BAD_KEY)


@pytest.mark.parametrize("token", ["secrét", "secret\n", "\udcffsecret", lambda: "secrét"])
async def test_a_token_that_no_header_holds_is_said_and_not_shown(harness: Harness, token: Any) -> None:
    async with HarborClient(harness.url, token) as harbor:
        with pytest.raises(RequestError, match="the token has other characters than printable ASCII"):
            await harbor.get(A)
        with pytest.raises(RequestError, match="the token has other characters than printable ASCII"):
            await anext(harbor.watch(A))


@pytest.mark.parametrize(
    "url", ["", "x", "ftp://x", "http://", "http://[::1", "http://a b", "http://a..b", "http://x:99999"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match="not an http"):
        HarborClient(url)


# --- several gateways --------------------------------------------------------------------------------------------


async def test_the_next_gateway_is_asked_where_one_is_gone(harness: Harness, nobody: str) -> None:
    for _ in range(6):  # whichever is tried first
        async with HarborClient([nobody, harness.url]) as harbor:
            await harbor.set(A, 1)
            assert (await harbor.get(A)).data == 1
            assert harbor._gateways.all()[0] == harness.url


async def test_a_write_that_breaks_off_is_repeated_under_the_same_idempotency_key(stand_in: StandIn) -> None:
    other = await StandIn().start()
    stand_in.answers = [(CUT, b"")]
    other.answers = [(200, b'{"version":3}')]
    async with HarborClient([stand_in.url, other.url]) as harbor:
        harbor._gateways.failed(other.url)
        assert await harbor.set(A, 1) == 3
    keys = {request[4]["Idempotency-Key"] for request in [*stand_in.requests, *other.requests]}
    assert len(keys) == 1
    assert len(other.requests) == 1
    await other.stop()


# --- life --------------------------------------------------------------------------------------------------------


async def test_errors_of_the_body_pass_as_they_are(harness: Harness) -> None:
    async def fail() -> None:
        async with HarborClient(harness.url) as harbor:
            await anext(harbor.watch(A))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


async def test_it_is_used_inside_its_context(harness: Harness) -> None:
    harbor = HarborClient(harness.url)
    for _ in range(2):  # it may be entered again
        with pytest.raises(RuntimeError):
            harbor.watch(A)
        with pytest.raises(RuntimeError):
            await harbor.get(A)
        async with harbor:
            await anext(harbor.watch(A))
        assert harbor.state == "closed"
