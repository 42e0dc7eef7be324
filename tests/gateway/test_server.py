import asyncio
import base64
import io
import os
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cluster.core import client_message, degradation, gateway_state, shard_state
from cluster.core.messages import Send, Write
from cluster.core.position import scope_of
from cluster.core.query_key import CanonicalKey
from cluster.errors import UpstreamError
from cluster.gateway import server
from tests.gateway.conftest import Harness, until
from tests.in_process import TOKENS

A = '["a",1]'


# --- entries -----------------------------------------------------------------------------------------------------


async def test_an_entry_is_written_read_and_removed(harness: Harness) -> None:
    assert await harness.get("/v1/entries", key=A) == (
        404,
        {
            "error": {
                "code": "NOT_FOUND",
                "message": 'no entry ["a",1], and no query is declared for it',
                "temporary": False,
            }
        },
    )
    version = await harness.put(A, {"x": [1, 2.5, None, "é"]})
    async with harness.http.get("/v1/entries", params={"key": '[ "a", 1.0 ]'}) as response:
        entry = orjson.loads(await response.read())
        assert response.headers["ETag"] == f'"{version}"'
        assert response.content_type == "application/json"
    updated_at = entry.pop("data_updated_at")
    assert abs(updated_at - harness.clock.now_ms()) < 5_000
    assert entry == {
        "key": ["a", 1],
        "data": {"x": [1, 2.5, None, "é"]},
        "version": version,
        "status": "success",
        "fetch_status": "idle",
        "is_stale": False,
        "is_invalidated": False,
        "is_offline": False,
        "origin": {"kind": "write", "at": updated_at},
    }
    for held, status in [(f'"{version}"', 304), (f'W/"{version}"', 304), ('"1", "2"', 200), ("*", 304)]:
        async with harness.http.get("/v1/entries", params={"key": A}, headers={"If-None-Match": held}) as response:
            assert response.status == status
    async with harness.http.delete("/v1/entries", params={"key": A}) as response:
        assert (response.status, await response.read()) == (204, b"")
    assert (await harness.get("/v1/entries", key=A))[0] == 404


async def test_conditional_writes_tell_the_loser_what_won(harness: Harness) -> None:
    version = await harness.put(A, 1)
    later = await harness.put(A, 2, headers={"If-Match": f'"{version}"'})
    async with harness.http.put("/v1/entries", params={"key": A, "base_version": str(version)}, data=b"3") as response:
        assert response.status == 409
        error = (await response.json())["error"]
    assert (error["code"], error["temporary"]) == ("VERSION_CONFLICT", False)
    assert (error["details"]["current"]["version"], error["details"]["current"]["data"]) == (later, 2)
    lost = {"key": A, "base_version": str(version)}
    headers = {"Content-Type": "application/json-patch+json"}
    current = (await harness.get("/v1/entries", key=A))[1]
    for sent in (
        harness.http.patch("/v1/entries", params=lost, data=b"[]", headers=headers),
        harness.http.patch("/v1/entries", params=lost, json={"operations": [{"set": {"value": 1}}]}),
        harness.http.delete("/v1/entries", params=lost),
        harness.http.delete("/v1/entries", params={"key": A}, headers={"If-Match": f'"{version}"'}),
        harness.http.put("/v1/entries", params={**lost, "merge": "three_way"}, json=3),
    ):
        async with sent as response:
            assert response.status == 409
            error = (await response.json())["error"]
        assert (error["code"], error["details"]["current"]) == ("VERSION_CONFLICT", current)
    assert error["details"]["conflicts"] == [""]
    async with harness.http.put("/v1/entries", params={"key": '["no"]', "base_version": "7"}, json=1) as response:
        assert (await response.json())["error"]["details"] == {"current": None}


async def test_an_edit_of_an_earlier_version_is_merged(harness: Harness) -> None:
    version = await harness.put(A, {"a": 1, "b": 1})
    await harness.put(A, {"a": 2, "b": 1})
    merge = {"key": A, "merge": "three_way"}
    async with harness.http.put(
        "/v1/entries", params=merge, json={"a": 1, "b": 2}, headers={"If-Match": f'"{version}"'}
    ) as response:
        answer = await response.json()
        assert response.headers["ETag"] == f'"{answer["version"]}"'
    assert answer["merged"] is True
    entry = (await harness.get("/v1/entries", key=A))[1]
    assert (entry["data"], entry["version"]) == ({"a": 2, "b": 2}, answer["version"])
    async with harness.http.put("/v1/entries", params=merge, json=1) as response:
        assert response.status == 400
    for method in ("patch", "delete"):
        async with getattr(harness.http, method)("/v1/entries", params={**merge, "base_version": "1"}) as response:
            assert response.status == 400


@pytest.mark.parametrize(("level", "status"), [("memory", 200), ("durable", 501), ("replicated", 501), ("disk", 400)])
async def test_what_cannot_be_promised_is_refused(harness: Harness, level: str, status: int) -> None:
    await harness.put(A, [])
    params = {"key": A, "ack": level}
    for sent in (
        harness.http.put("/v1/entries", params=params, json=[]),
        harness.http.patch("/v1/entries", params=params, json={"operations": [{"append": {"item": 1}}]}),
    ):
        async with sent as response:
            assert response.status == status
            if status == 501:
                assert ("storage.path" if level == "durable" else "standby") in (await response.json())["error"][
                    "message"
                ]
    async with harness.http.delete("/v1/entries", params=params) as response:
        assert response.status == (204 if status == 200 else status)


async def test_a_repeated_request_acts_once(harness: Harness) -> None:
    await harness.put(A, [])
    versions = set()
    for _ in range(3):
        async with harness.http.patch(
            "/v1/entries",
            params={"key": A},
            json={"operations": [{"append": {"item": 1}}]},
            headers={"Idempotency-Key": "k1"},
        ) as response:
            versions.add((await response.json())["version"])
    assert len(versions) == 1
    assert (await harness.get("/v1/entries", key=A))[1]["data"] == [1]


async def test_a_request_id_is_another_one_for_each_entry(harness: Harness) -> None:
    keys = [f'["batch",{n}]' for n in range(8)]  # of two shards
    for key in keys:
        await harness.put(key, key, headers={"Idempotency-Key": "the batch"})
    for key in keys:
        assert (await harness.get("/v1/entries", key=key))[1]["data"] == key


async def test_a_request_id_that_is_not_utf_8_is_refused(harness: Harness) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
    writer.write(b'PUT /v1/entries?key=["a",1] HTTP/1.0\r\nIdempotency-Key: \xff\r\nContent-Length: 1\r\n\r\n1')
    assert (await reader.readline()).startswith(b"HTTP/1.0 400 ")
    writer.close()


async def test_a_body_that_is_not_encoded_as_it_says_is_refused(harness: Harness) -> None:
    async with harness.http.put(
        "/v1/entries", params={"key": A}, data=b"1", headers={"Content-Encoding": "gzip"}
    ) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "BAD_REQUEST"


async def test_patches(harness: Harness) -> None:
    await harness.put(A, {"tasks": []})
    headers = {"Content-Type": "application/json-patch+json"}
    patch = orjson.dumps(
        [{"op": "add", "path": "/tasks/-", "value": 7}, {"op": "test", "path": "/tasks/0", "value": 7}]
    )
    async with harness.http.patch("/v1/entries", params={"key": A}, data=patch, headers=headers) as response:
        assert response.status == 200
    async with harness.http.patch(
        "/v1/entries", params={"key": A}, data=b'[{"op":"remove","path":"/nothing"}]', headers=headers
    ) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "BAD_REQUEST"
    async with harness.http.patch("/v1/entries", params={"key": A}, json={"operation": []}) as response:
        assert response.status == 400
    assert (await harness.get("/v1/entries", key=A))[1]["data"] == {"tasks": [7]}


async def test_a_watched_key_is_read_without_a_call(harness: Harness) -> None:
    await harness.put(A, 1)
    async with harness.socket() as socket:
        await socket.send(orjson.dumps({"type": "subscribe", "id": 1, "key": ["a", 1]}).decode())
        await until(socket, "snapshot_end")
        calls = harness.calls
        for _ in range(5):
            assert (await harness.get("/v1/entries", key=A))[1]["data"] == 1
        assert harness.calls == calls
        for n in range(20):  # what a writer was told is what it reads
            version = await harness.put(A, n)
            entry = (await harness.get("/v1/entries", key=A))[1]
            assert (entry["version"], entry["data"]) == (version, n)


async def test_a_declared_query_is_fetched_once_for_all_callers(harness: Harness) -> None:
    reads = [asyncio.create_task(harness.get("/v1/entries", key='["q",1]')) for _ in range(3)]
    async with asyncio.timeout(60):
        while not harness.fetches:
            await asyncio.sleep(0)
        while sum(len(entry.fetch.waiters) for s in harness.shards.values() for entry in s.cache if entry.fetch) < 3:
            await asyncio.sleep(0)
    harness.fetched(b'{"n":1}')
    assert [(status, entry["data"]) for status, entry in await asyncio.gather(*reads)] == [(200, {"n": 1})] * 3
    assert not harness.fetches
    assert (await harness.get("/v1/entries", key='["q",2]', fetch="never"))[0] == 404
    forced = asyncio.create_task(harness.get("/v1/entries", key='["q",1]', fetch="force"))
    async with asyncio.timeout(60):
        while not harness.fetches:
            await asyncio.sleep(0)
    harness.fetched(b'{"n":2}')
    assert (await forced)[1]["data"] == {"n": 2}


async def test_a_failed_fetch_is_a_502(harness: Harness) -> None:
    read = asyncio.create_task(harness.get("/v1/entries", key='["q",1]'))
    async with asyncio.timeout(60):
        while not harness.fetches:
            await asyncio.sleep(0)
    harness.fetched(UpstreamError("the service answered 500", status=500))
    status, answer = await read
    assert (status, answer["error"]["code"], answer["error"]["temporary"]) == (502, "UPSTREAM_ERROR", True)


@pytest.mark.parametrize(
    ("path", "params", "code"),
    [
        ("/v1/entries", {}, "BAD_REQUEST"),
        ("/v1/entries", {"key": "{}"}, "BAD_KEY"),
        ("/v1/entries", {"key": "nonsense"}, "BAD_KEY"),
        ("/v1/entries", {"key": "[" * 40 + "]" * 40}, "TOO_DEEP"),
        ("/v1/entries", {"key": A, "fetch": "maybe"}, "BAD_REQUEST"),
        ("/v1/entries", {"key": A, "fetsch": "auto"}, "BAD_REQUEST"),
        ("/v1/entries", {"key": A, "page": "last"}, "BAD_REQUEST"),
        ("/v1/keys", {"limit": "0"}, "BAD_REQUEST"),
        ("/v1/stream", {}, "BAD_REQUEST"),
        ("/v1/stream", {"key": A, "mode": "full"}, "BAD_REQUEST"),
        ("/v1/missed", {"key": A}, "BAD_REQUEST"),
        ("/v1/missed", {"key": A, "since": "nonsense"}, "BAD_REQUEST"),
        ("/v1/socket", {}, "BAD_REQUEST"),
    ],
)
async def test_what_is_not_understood_is_refused(harness: Harness, path: str, params: Any, code: str) -> None:
    status, answer = await harness.get(path, **params)
    assert (status, answer["error"]["code"]) == (400, code)
    assert set(answer["error"]) - {"details"} == {"code", "message", "temporary"}


async def test_bodies_are_bounded_and_must_be_json(harness: Harness) -> None:
    for body, status, code in [
        (b"{", 400, "BAD_REQUEST"),
        (b"", 400, "BAD_REQUEST"),
        (b"[" * 40 + b"]" * 40, 400, "TOO_DEEP"),
        (b'"' + b"x" * 1_100_000 + b'"', 413, "TOO_LARGE"),
    ]:
        async with harness.http.put("/v1/entries", params={"key": A}, data=io.BytesIO(body)) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (status, code)
    key = orjson.dumps(["x" * 1100]).decode()
    async with harness.http.put("/v1/entries", params={"key": key}, data=b"1") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (413, "TOO_LARGE")
    number = b"123456789012345678901234567890"  # which no 64-bit integer holds
    async with harness.http.put("/v1/entries", params={"key": A}, data=number) as response:
        assert response.status == 200


async def test_keys_are_listed_in_pages(harness: Harness) -> None:
    for n in range(5):
        await harness.put(f'["k",{n}]', n)
    await harness.put('["other"]', 0)
    seen: list[Any] = []
    cursor: dict[str, str] = {}
    for _ in range(3):
        _, page = await harness.get("/v1/keys", prefix='["k"]', limit="2", **cursor)
        seen.extend(row["key"][1] for row in page["keys"])
        if "cursor" not in page:
            break
        cursor = {"cursor": page["cursor"]}
    assert seen == [0, 1, 2, 3, 4]
    assert set(page["keys"][0]) == {"key", "version", "status", "is_stale", "subscribers"}


@pytest.mark.parametrize("limit", ["1001", "9" * 30])
@pytest.mark.parametrize("branches", ["false", "true"])
async def test_a_page_may_be_asked_to_be_longer_than_any(harness: Harness, limit: str, branches: str) -> None:
    await harness.put('["k"]', 0)
    status, page = await harness.get("/v1/keys", limit=limit, branches=branches)
    assert (status, [len(rows) for rows in page.values()]) == (200, [1])


async def test_keys_are_found_by_text_and_listed_as_branches(harness: Harness) -> None:
    for key in ('["k",1]', '["k",2,"deep"]', '["k",2]', '["other"]', '["k","\\"q\\""]'):
        await harness.put(key, 1)
    _, found = await harness.get("/v1/keys", contains="deep")
    assert [row["key"] for row in found["keys"]] == [["k", 2, "deep"]]
    _, page = await harness.get("/v1/keys", branches="true", prefix='["k"]', limit="2")
    assert page["branches"] == [
        {"element": '"q"', "keys": 1, "is_entry": True},
        {"element": 1, "keys": 1, "is_entry": True},
    ]
    _, rest = await harness.get("/v1/keys", branches="true", prefix='["k"]', limit="2", cursor=page["cursor"])
    assert rest == {"branches": [{"element": 2, "keys": 2, "is_entry": True}]}  # of which each shard may have one
    _, root = await harness.get("/v1/keys", branches="true")
    assert {row["element"]: row["keys"] for row in root["branches"]} == {"k": 4, "other": 1}
    assert (await harness.get("/v1/keys", branches="true", contains="deep"))[0] == 400


async def test_a_reserved_entry_is_live_for_who_subscribes_to_it(harness: Harness) -> None:
    async with harness.socket() as socket:
        await socket.send(orjson.dumps({"type": "subscribe", "id": 1, "key": ["$harbor", "overview"]}).decode())
        await socket.send(orjson.dumps({"type": "ping", "id": 2}).decode())
        while not any(message.get("re") == 2 for message in orjson.loads(await socket.recv())):
            pass
        assert harness.state.reported() == ["overview"]
        harness.server.run(harness.state.report("overview", {"ready": True}, harness.clock.now_ms()))
        messages = orjson.loads(await socket.recv())
        assert (messages[0]["type"], messages[0]["data"]) == ("snapshot", {"ready": True})
    status, answer = await harness.get("/v1/entries", key='["$harbor","overview"]')
    assert (status, answer["error"]["code"]) == (404, "NOT_FOUND")
    async with harness.http.put("/v1/entries", params={"key": '["$harbor","overview"]'}, data=b"1") as response:
        assert response.status == 403


async def test_invalidate_counts_and_is_seen_by_the_next_read(harness: Harness) -> None:
    await harness.put(A, 1)
    await harness.put('["a",2]', 1)
    async with harness.socket() as socket:
        await socket.send(orjson.dumps({"type": "subscribe", "id": 1, "prefix": ["a"]}).decode())
        await until(socket, "snapshot_end")
        async with harness.http.post("/v1/invalidate", json={"key": ["a"]}) as response:
            assert await response.json() == {"matched": 2}
        assert (await harness.get("/v1/entries", key=A))[1]["is_invalidated"] is True
        messages = await until(socket, "position")
        assert sorted(m["key"][1] for m in messages if m["type"] == "invalidated") == [1, 2]
    async with harness.http.post("/v1/invalidate", json={"key": ["a"], "exact": True}) as response:
        assert await response.json() == {"matched": 0}
    async with harness.http.post("/v1/invalidate", json={"kee": 1}) as response:
        assert response.status == 400


async def act(harness: Harness, action: str, **body: Any) -> Any:
    async with harness.http.post(f"/v1/{action}", json=body) as response:
        answer = await response.json()
        return answer["matched"] if response.status == 200 else (response.status, answer["error"]["code"])


async def fetched(harness: Harness, key: str, result: bytes, **params: str) -> Any:
    """Read, with the fetch that this takes answered."""
    read = asyncio.create_task(harness.get("/v1/entries", key=key, **params))
    async with asyncio.timeout(60):
        while not harness.fetches:
            await asyncio.sleep(0)
    harness.fetched(result)
    return (await read)[1]


async def test_what_was_fetched_says_so(harness: Harness) -> None:
    entry = await fetched(harness, '["q",1]', b"1")
    assert entry["origin"]["kind"] == "fetch"
    assert entry["origin"]["from"] == "api"
    assert entry["origin"]["fetched_at"] == entry["origin"]["at"] == entry["data_updated_at"]
    assert await act(harness, "invalidate", key=["q"], refetch="none") == 1
    doubted = (await harness.get("/v1/entries", key='["q",1]', fetch="never"))[1]
    assert doubted["origin"]["invalidated"]["by"] == "api:invalidate"


async def test_entries_are_fetched_reset_and_removed_by_filter(harness: Harness) -> None:
    await fetched(harness, '["q",1]', b"1")
    await harness.put(A, 1)
    assert await act(harness, "refetch", key=["q"], stale=True) == 0
    assert await act(harness, "refetch", key=["q"], type="inactive", fetch_status="idle") == 1
    assert [fetch.key for _, fetch in harness.fetches] == ['["q",1]']
    assert await act(harness, "cancel", key=[], fetch_status="fetching") == 1
    harness.fetched(b"2")
    assert (await harness.get("/v1/entries", key='["q",1]', fetch="never"))[1]["data"] == 1
    assert await act(harness, "remove", key=["a", 1], exact=True) == 1
    assert await act(harness, "remove", key=["a", 1], exact=True) == 0
    assert await act(harness, "reset", key=[]) == 1
    assert (await harness.get("/v1/entries", key='["q",1]', fetch="never"))[0] == 404


@pytest.mark.parametrize("action", server.ACTIONS)
@pytest.mark.parametrize(
    "body", [{"kee": 1}, {"key": 5}, {"exact": 1}, {"type": "new"}, {"stale": "yes"}, {"fetch_status": "busy"}]
)
async def test_a_filter_that_is_not_understood_is_refused(harness: Harness, action: str, body: Any) -> None:
    status, code = await act(harness, action, **body)
    assert (status, code) == (400, "BAD_KEY" if "key" in body else "BAD_REQUEST")


async def test_only_an_invalidation_says_what_to_fetch_again(harness: Harness) -> None:
    assert await act(harness, "invalidate", key=[], refetch="all") == 0
    assert await act(harness, "remove", key=[], refetch="all") == (400, "BAD_REQUEST")


async def test_one_more_page_is_asked_for_where_there_are_pages(harness: Harness) -> None:
    status, answer = await harness.get("/v1/entries", key='["q",1]', page="next")
    assert (status, answer["error"]["code"]) == (400, "BAD_REQUEST")
    first = await fetched(harness, '["pages"]', b"[1,2]")
    assert first["data"] == {"pages": [[1, 2]], "page_params": [0]}
    for page, result, pages in (("next", b"[3]", [[1, 2], [3]]), ("previous", b"", [[1, 2], [3]])):
        if result:
            assert (await fetched(harness, '["pages"]', result, page=page))["data"]["pages"] == pages
        else:  # there is none
            assert (await harness.get("/v1/entries", key='["pages"]', page=page))[1]["data"]["pages"] == pages
    assert not harness.fetches


# --- live --------------------------------------------------------------------------------------------------------


async def test_a_socket_from_welcome_to_close(harness: Harness) -> None:
    version = await harness.put(A, {"n": 0})
    async with harness.socket() as socket:
        assert socket.subprotocol == "harbor.v1"
        (welcome,) = orjson.loads(await socket.recv())
        assert set(welcome) == {"type", "session", "server_time", "ping_interval_ms", "resume_token"}
        await socket.send(
            orjson.dumps(
                [
                    {"type": "hello"},
                    {"type": "ping", "id": "p"},
                    {"type": "subscribe", "id": 1, "prefix": ["a"], "mode": "patch"},
                    {"type": "get", "id": 2, "key": ["a", 1]},
                ]
            ).decode()
        )
        messages = await until(socket, "snapshot_end")
        if not any(m["type"] == "result" for m in messages):
            messages += await until(socket, "result")
        by_type = {m["type"]: m for m in messages}
        assert by_type["pong"] == {"type": "pong", "re": "p"}
        assert by_type["result"]["entry"]["version"] == version
        assert by_type["snapshot"]["data"] == {"n": 0}
        await socket.send(
            orjson.dumps({"type": "set", "id": 3, "key": ["a", 1], "data": {"n": 1}, "base_version": version}).decode()
        )
        messages = await until(socket, "change")
        if not any(m["type"] == "result" for m in messages):
            messages += await until(socket, "result")
        change = next(m for m in messages if m["type"] == "change")
        assert change["from"] == version
        assert change["patch"] == [{"op": "replace", "path": "", "value": {"n": 1}}]
        await socket.send(
            orjson.dumps({"type": "set", "id": 4, "key": ["a", 1], "data": 0, "base_version": version}).decode()
        )
        error = (await until(socket, "error"))[-1]
        assert (error["re"], error["code"]) == (4, "VERSION_CONFLICT")
        assert error["details"]["current"]["data"] == {"n": 1}
        assert len(harness.state.sessions) == 1
    async with asyncio.timeout(60):
        while harness.state.sessions:
            await asyncio.sleep(0.005)
    assert harness.state.replicas == {}
    assert not any(link.watches for shard in harness.shards.values() for link in shard._links.values())


@pytest.mark.parametrize(
    ("message", "code", "re"),
    [
        (b'"text"', "BAD_MESSAGE", None),
        (b"[1]", "BAD_MESSAGE", None),
        (b'{"type":"dance","id":1}', "UNKNOWN_TYPE", 1),
        (b'{"id":1}', "UNKNOWN_TYPE", 1),
        (b'{"type":"mutate","id":"m","name":"x"}', "UNKNOWN_MUTATION", "m"),
        (b'{"type":"auth","id":1}', "BAD_MESSAGE", 1),
        (b'{"type":"subscribe","key":["a"]}', "BAD_MESSAGE", None),
        (b'{"type":"subscribe","id":1,"key":"a"}', "BAD_KEY", 1),
        (b'{"type":"subscribe","id":1}', "BAD_MESSAGE", 1),
        (b'{"type":"subscribe","id":1,"key":["a"],"prefix":["a"]}', "BAD_MESSAGE", 1),
        (b'{"type":"subscribe","id":1,"key":["a"],"mode":"fast"}', "BAD_REQUEST", 1),
        (b'{"type":"subscribe","id":1,"key":["a"],"since":"x"}', "BAD_REQUEST", 1),
        (b'{"type":"get","id":1,"key":["' + b"k" * 1100 + b'"]}', "TOO_LARGE", 1),
        (b'{"type":"get","id":1,"key":' + b"[" * 40 + b"]" * 40 + b"}", "TOO_DEEP", 1),
        (b'{"type":"pause","id":9}', "NOT_FOUND", 9),
        (b'{"type":"set","id":1,"key":["a"]}', "BAD_MESSAGE", 1),
        (b'{"type":"invalidate","id":1,"key":["a"],"exact":1}', "BAD_REQUEST", 1),
        (b'{"type":"set","id":1,"key":["a"],"data":"' + b"x" * 1_100_000 + b'"}', "TOO_LARGE", None),
    ],
)
async def test_a_bad_message_is_answered_and_the_socket_goes_on(
    harness: Harness, message: bytes, code: str, re: Any
) -> None:
    async with harness.socket() as socket:
        await socket.send(message.decode())
        error = (await until(socket, "error"))[-1]
        assert (error["code"], error.get("re")) == (code, re)
        await socket.send('{"type":"ping"}')
        assert (await until(socket, "pong"))[-1] == {"type": "pong"}


@pytest.mark.parametrize("frame", ["{", "", "nope", b"\xff\xfe"])
async def test_what_is_no_json_closes_with_3501(harness: Harness, frame: str | bytes) -> None:
    async with harness.socket() as socket:
        await socket.recv()
        await socket.send(frame, text=True)
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 3501
    assert harness.server.disconnects == {"3501": 1}


async def test_codes_that_clients_make_up_are_counted_as_one(harness: Harness) -> None:
    for code in (1000, 1001, 3008, 3999, 4000, 4999):
        async with harness.socket() as socket:
            await until(socket, "welcome")
            await socket.close(code)
    while harness.state.sessions:
        await asyncio.sleep(0)
    assert harness.server.disconnects == {"1000": 1, "1001": 1, "other": 4}


async def test_limits_of_a_session(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "COMMANDS", 2)
    harness.reachable = False
    async with harness.socket() as socket:
        for n in range(3):
            await socket.send(orjson.dumps({"type": "get", "id": n, "key": ["a", n]}).decode())
        error = (await until(socket, "error"))[-1]
        assert (error["re"], error["code"]) == (2, "TOO_MANY")
        subscriptions = [{"type": "subscribe", "id": f"s{n}", "key": ["a"]} for n in range(129)]
        await socket.send(orjson.dumps(subscriptions).decode())
        error = (await until(socket, "error"))[-1]
        assert (error["re"], error["code"]) == ("s128", "TOO_MANY")


async def test_a_stream_of_too_many_prefixes_is_refused_before_they_are_compared(harness: Harness) -> None:
    params = [("prefix", "[]"), *(("prefix", f"[{n}]") for n in range(128))]
    async with harness.http.get("/v1/stream", params=params) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (429, "TOO_MANY")


async def test_answered_requests_make_room_for_others(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "COMMANDS", 2)
    async with harness.socket() as socket:
        for n in range(5):
            await socket.send(orjson.dumps({"type": "set", "id": n, "key": ["a"], "data": n}).decode())
            assert (await until(socket, "result"))[-1]["re"] == n


async def test_requests_that_shards_have_no_room_for_make_room_for_others(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "COMMANDS", 2)
    async with harness.socket() as socket:
        with monkeypatch.context() as full:
            full.setattr(gateway_state, "MAX_REQUESTS", 0)
            for n in range(3):
                await socket.send(orjson.dumps({"type": "get", "id": n, "key": ["a"]}).decode())
                assert (await until(socket, "error"))[-1]["code"] == "UNAVAILABLE"
        await socket.send(orjson.dumps({"type": "set", "id": 9, "key": ["a"], "data": 1}).decode())
        assert (await until(socket, "result"))[-1]["re"] == 9


class EventStream:
    def __init__(self, response: Any) -> None:
        self.response = response

    async def event(self) -> dict[str, Any]:
        event: dict[str, Any] = {}
        async with asyncio.timeout(60):
            while True:
                line = (await self.response.content.readline()).decode().rstrip("\n")
                if line == "":
                    if "event" in event:
                        return event
                    continue
                name, _, value = line.partition(": ")
                event[name] = orjson.loads(value) if name == "data" else value

    async def until(self, kind: str) -> list[dict[str, Any]]:
        events = [await self.event()]
        while events[-1]["event"] != kind:
            events.append(await self.event())
        return events


async def test_an_event_stream_resumes_with_its_last_id(harness: Harness) -> None:
    await harness.put(A, {"n": 0})
    await harness.put('["b"]', 0)
    params = [("prefix", '["a"]'), ("key", A), ("key", '["b"]')]
    async with harness.http.get("/v1/stream", params=params) as response:
        assert response.content_type == "text/event-stream"
        stream = EventStream(response)
        events = await stream.until("snapshot_end") + await stream.until("snapshot_end")
        assert sorted((e["event"], e["data"].get("key", ["~"])[0]) for e in events) == [
            ("snapshot", "a"),  # once, though both the key and the prefix name it
            ("snapshot", "b"),
            ("snapshot_end", "~"),
            ("snapshot_end", "~"),
        ]
        assert all("sub" not in e["data"] and "type" not in e["data"] for e in events)
        assert "id" in events[-1]
        await harness.put(A, {"n": 1})
        change = await stream.event()
        assert (change["event"], change["data"]["data"]) == ("change", {"n": 1})
    async with asyncio.timeout(60):
        while harness.state.sessions:  # the server notices at once, though nothing is written
            await asyncio.sleep(0.005)
    await harness.put('["b"]', 1)
    await harness.put('["a",2]', 2)
    async with harness.http.get("/v1/stream", params=params, headers={"Last-Event-ID": change["id"]}) as response:
        stream = EventStream(response)
        events = [await stream.event(), await stream.event()]
        assert sorted((e["event"], e["data"]["key"][0], e["data"]["data"]) for e in events) == [
            ("change", "a", 2),
            ("change", "b", 1),
        ]
        assert "id" in events[-1]


async def test_an_event_stream_survives_pretty_printed_data(harness: Harness) -> None:
    async with harness.http.put("/v1/entries", params={"key": A}, data=b'{\n  "x": "a\\nb"\n}'):
        pass
    async with harness.http.get("/v1/stream", params={"key": A}) as response:
        assert (await EventStream(response).event())["data"]["data"] == {"x": "a\nb"}


def unknown(key: str, *, prefix: bool = False) -> str:
    """A position of lives that no shard knows."""
    return TOKENS.position(scope_of([(key, prefix)]), [(0, (1, 1)), (1, (1, 1))]).decode()


async def test_missed_changes_are_told(harness: Harness) -> None:
    await harness.put(A, 1)
    await harness.put('["a",2]', 1)
    async with harness.socket() as socket:
        await socket.send(orjson.dumps({"type": "subscribe", "id": 1, "prefix": ["a"]}).decode())
        position = (await until(socket, "snapshot_end"))[-1]["position"]
    version = await harness.put(A, 2)
    async with harness.http.delete("/v1/entries", params={"key": '["a",2]'}):
        pass
    status, answer = await harness.get("/v1/missed", since=position, prefix='["a"]')
    assert status == 200
    changes = {change["key"][1]: change for change in answer["changes"]}
    assert (changes[1]["data"], changes[1]["version"], changes[1]["from"]) == (2, version, version - 1)
    assert changes[2]["removed"] is True
    assert await harness.get("/v1/missed", since=answer["position"], prefix='["a"]') == (
        200,
        {"changes": [], "position": answer["position"]},
    )
    status, answer = await harness.get("/v1/missed", since=unknown('["a"]', prefix=True), prefix='["a"]')
    assert answer["reset"] is True
    assert [(entry["key"], entry["data"]) for entry in answer["entries"]] == [(["a", 1], 2)]
    assert harness.state.sessions == {}


@pytest.mark.parametrize("since", [None, unknown(A)])
async def test_what_was_missed_is_told_as_the_upstream_wrote_it(harness: Harness, since: str | None) -> None:
    await harness.put(A, 1)
    async with harness.socket() as socket:
        await socket.send(orjson.dumps({"type": "subscribe", "id": 1, "key": ["a", 1]}).decode())
        position = (await until(socket, "snapshot_end"))[-1]["position"]
    data = b"[1e999," + b"[" * 300 + b"]" * 300 + b"]"
    await harness.server._ask(CanonicalKey(A), lambda n: Write(n, "r", CanonicalKey(A), data, None))
    async with harness.http.get("/v1/missed", params={"since": since or position, "key": A}) as response:
        assert response.status == 200
        assert b'"data":%b' % data in await response.read()


# --- slow, silent and unwelcome peers ----------------------------------------------------------------------------


async def raw_socket(harness: Harness) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket by hand: it answers no pings and reads when told to."""
    reader, writer = await asyncio.open_connection("127.0.0.1", harness.port, limit=1024)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        f"GET /v1/socket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


def masked(payload: bytes) -> bytes:
    assert len(payload) < 126
    return bytes([0x81, 0x80 | len(payload), 0, 0, 0, 0]) + payload


async def test_a_peer_that_does_not_answer_pings_is_closed_with_3012(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PING_S", 0.05)
    reader, writer = await raw_socket(harness)
    async with asyncio.timeout(60):
        received = await reader.read(-1)
    assert received.endswith(bytes([0x88, 2 + len("no pong")]) + (3012).to_bytes(2, "big") + b"no pong")
    writer.close()
    assert harness.state.sessions == {}


async def test_a_client_that_takes_nothing_folds_and_is_closed_with_3008(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(degradation, "STALL_MS", 1_000.0)
    monkeypatch.setattr(degradation, "DRAIN_MS", 100_000.0)
    monkeypatch.setattr(server, "FLUSH_S", 0.01)
    monkeypatch.setattr(server, "CLOSE_S", 0.05)
    reader, writer = await raw_socket(harness)
    writer.write(masked(b'{"type":"subscribe","id":1,"prefix":["a"]}'))
    async with asyncio.timeout(60):
        while not harness.state.replicas or not any(s.busy for s in harness.state.sessions.values()):
            await harness.put(A, "x" * 900_000)
        (session,) = harness.state.sessions.values()
        for n in range(5):
            await harness.put(A, "x" * 900_000 + str(n))
        assert harness.state.outbox_bytes() < 2_000_000
        assert session.busy
        while harness.state.sessions:
            harness.server.look()
            await asyncio.sleep(0.01)
        received = b""
        while chunk := await reader.read(1_000_000):
            received = (received + chunk)[-100:]
    assert received.endswith((3008).to_bytes(2, "big") + b"too slow")
    assert harness.server.disconnects == {"3008": 1}
    writer.close()


async def test_a_client_that_stops_reading_gets_a_snapshot_when_it_reads_again_and_others_never_wait(
    harness: Harness,
) -> None:
    now_ms = harness.clock.now_ms()

    def look() -> None:
        """As the clock of looks has it, which stands still while the socket takes what is due."""
        nonlocal now_ms
        now_ms += degradation.LOOK_MS
        harness.server.run(harness.state.look(now_ms, harness.server._unsent))

    reader, writer = await raw_socket(harness)
    writer.write(masked(b'{"type":"subscribe","id":1,"key":["a",1]}'))
    versions: list[int] = []
    async with asyncio.timeout(60), harness.socket() as other:
        await other.send(orjson.dumps({"type": "subscribe", "id": 1, "key": ["a", 1]}).decode())
        await until(other, "snapshot_end")
        slow = next(each for each in harness.state.sessions.values() if each.subscriptions and not versions)
        levels = set()
        while slow.step is not degradation.Step.ON_DRAIN:
            versions.append(await harness.put(A, "x" * 100_000))
            (got, *_) = [each for each in await until(other, "position") if each["type"] == "change"]
            assert got["version"] == versions[-1], "each of them at once"
            if slow.busy:
                look()
            levels.update(level for level, count in harness.state.degraded().items() if count)
        assert levels == {"250ms", "1000ms", "drain"}
        for n in range(5):
            versions.append(await harness.put(A, n))
            await until(other, "position")
        assert harness.state.outbox_bytes() == slow.frame_bytes, "nothing waits for it but that frame"
        text = b""
        while b'"type":"reset"' not in text or text.count(b'"type":"snapshot_end"') < 2:
            text = text[-1_000_000:] + await reader.read(1_000_000)
        _, _, after = text.rpartition(b'"type":"reset"')
        assert b'"code":"degraded"' in text
        assert b'"version":%d,"data":4' % versions[-1] in after
        while harness.state.is_slowed:
            look()
            await asyncio.sleep(0.01)
        version = await harness.put(A, "exact")
        while b"exact" not in after:
            after += await reader.read(1_000_000)
        assert b'"from":%d,"version":%d' % (versions[-1], version) in after
    writer.close()


async def test_answers_that_are_not_read_stop_the_reading_of_requests(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "CONTROL", 3)
    said: list[int] = []
    carry_out = server.client_frame
    monkeypatch.setattr(server, "client_frame", lambda *args: said.append(1) or carry_out(*args))
    monkeypatch.setattr(client_message.protocol, "message", lambda kind, **more: orjson.dumps({"type": "x" * 300_000}))
    _, writer = await raw_socket(harness)
    for _ in range(200):
        writer.write(masked(b'{"type":"ping"}'))
    async with asyncio.timeout(60):
        while not any(s.busy for s in harness.state.sessions.values()) or len(said) < 4:
            await asyncio.sleep(0.01)
        for _ in range(20):
            await asyncio.sleep(0.005)
    assert len(said) < 100
    writer.close()


async def test_origins(harness: Harness) -> None:
    strict = await Harness(origins=("https://app.example",)).start()
    try:
        async with strict.http.get("/v1/keys", headers={"Origin": "https://evil.example"}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (403, "FORBIDDEN")
        async with strict.http.get("/v1/socket", headers={"Origin": "https://evil.example"}) as response:
            assert response.status == 403
        async with strict.http.get("/v1/keys", headers={"Origin": "https://app.example"}) as response:
            assert response.status == 200
            assert response.headers["Access-Control-Allow-Origin"] == "https://app.example"
        async with strict.http.options("/v1/entries", headers={"Origin": "https://app.example"}) as response:
            assert response.status == 204
            assert "PATCH" in response.headers["Access-Control-Allow-Methods"]
        async with strict.http.get("/v1/keys") as response:
            assert response.status == 200
    finally:
        await strict.stop()
    for origin, status in [
        ("https://any.example", 403),
        ("null", 403),
        ("http://localhost:5173", 200),
        (harness.url, 200),
    ]:
        async with harness.http.get("/v1/keys", headers={"Origin": origin}) as response:
            assert response.status == status, origin
            assert "Access-Control-Allow-Origin" not in response.headers


# --- life --------------------------------------------------------------------------------------------------------


async def test_health_readiness_description_and_index(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    for path, status in [("/healthz", 200), ("/readyz", 200), ("/", 200), ("/openapi.json", 200)]:
        async with harness.http.get(path) as response:
            assert response.status == status
    described = await harness.describe()
    assert await harness.get("/v1/cluster") == (200, described)
    assert await harness.get("/v1/cluster?dead_letters=false") == (200, described)
    letter = {"time": 5, "source": "s", "channel": None, "event": "e", "reason": "not_json", "detail": "why"}
    letters = [{**letter, "sample": "\x1b[", "size_bytes": 2}]
    assert await harness.get("/v1/cluster?dead_letters=true") == (200, {**described, "dead_letters": letters})
    for query, message in [
        ("dead_letters=yes", "dead_letters is false or true, got 'yes'"),
        ("dead=true", "unknown parameter 'dead', there are: dead_letters"),
    ]:
        status, answer = await harness.get(f"/v1/cluster?{query}")
        assert (status, answer["error"]["code"], answer["error"]["message"]) == (400, "BAD_REQUEST", message)
    status, answer = await harness.get("/v1/nothing")
    assert (status, answer["error"]["code"]) == (404, "NOT_FOUND")
    _, description = await harness.get("/openapi.json")
    assert set(description["paths"]) >= {"/v1/entries", "/v1/keys", "/v1/invalidate", "/v1/stream", "/v1/missed"}
    monkeypatch.setattr(server, "READY_S", 0.05)
    monkeypatch.setattr(server, "READY_FOR_S", 0.0)
    harness.reachable = False
    status, answer = await harness.get("/readyz")
    assert (status, answer["error"]["code"]) == (503, "UNAVAILABLE")
    assert harness.state._gathers == {}


async def test_a_flood_of_questions_whether_it_is_ready_is_one_to_shards(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may ask: it may cost shards next to nothing, whatever they hold."""
    monkeypatch.setattr(server, "READY_FOR_S", 3_600.0)
    monkeypatch.setattr(shard_state, "SLICE", 2)
    for n in range(20):
        await harness.put(f'["a",{n}]', n)
    before = harness.calls
    for _ in range(3):
        answers = await asyncio.gather(*(_ready(harness) for _ in range(30)))
        assert {status for status, _ in answers} == {200}
    assert harness.calls - before == len(harness.shards), "one request to each, for all who ask within the time"
    assert not any(shard._sweeps for shard in harness.shards.values()), "and none that looks through its entries"
    monkeypatch.setattr(server, "READY_FOR_S", 0.0)
    assert (await _ready(harness))[0] == 200
    assert harness.calls - before == 2 * len(harness.shards), "then they are asked anew"


async def test_whoever_hangs_up_leaves_others_their_answer_whether_it_is_ready(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "READY_FOR_S", 3_600.0)
    held: list[Send] = []
    monkeypatch.setattr(harness, "call", held.append)
    first, second = (asyncio.create_task(_ready(harness)) for _ in range(2))
    while len(held) < len(harness.shards):
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    monkeypatch.undo()
    for each in held:
        harness.call(each)
    assert (await second)[0] == 200


async def _ready(harness: Harness) -> tuple[int, str]:
    async with harness.http.get("/readyz") as response:
        return response.status, await response.text()


async def test_a_request_that_no_shard_answers_times_out(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_state, "REQUEST_MS", 50.0)
    harness.reachable = False
    status, answer = await harness.get("/v1/entries", key=A)
    assert (status, answer["error"]["code"], answer["error"]["temporary"]) == (504, "TIMEOUT", True)
    assert harness.state._gathers == {}


async def test_a_drain_sends_clients_elsewhere(harness: Harness) -> None:
    async with harness.socket() as socket:
        await socket.recv()
        draining = asyncio.create_task(harness.server.drain())
        (message,) = orjson.loads(await socket.recv())
        assert message["type"] == "drain"
        assert 1_000 <= message["reconnect_after_ms"] < 2_000
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 3001
        await draining
    assert harness.state.sessions == {}


async def test_a_drain_with_a_grace_goes_in_groups_and_answers_requests_meanwhile(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "GROUP", 2)
    turns: asyncio.Queue[asyncio.Event] = asyncio.Queue()

    async def pause(_: float) -> None:
        """Between groups: until the test lets it go on."""
        turn = asyncio.Event()
        turns.put_nowait(turn)
        await turn.wait()

    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(harness.socket()) for _ in range(5)]
        for socket in sockets:
            await until(socket, "welcome")
        slept = asyncio.sleep
        monkeypatch.setattr(server.asyncio, "sleep", lambda s: pause(s) if s == server.GROUP_S else slept(s))
        draining = asyncio.create_task(harness.server.drain(1.0))
        again = asyncio.create_task(harness.server.drain())
        for closed in (2, 4):
            turn = await asyncio.wait_for(turns.get(), 60)
            for socket in sockets[closed - 2 : closed]:
                assert (await until(socket, "drain"))[-1]["reconnect_after_ms"] >= server.RECONNECT_MS
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                assert socket.close_code == 3001
            assert len(harness.state.sessions) == 5 - closed
            assert (await harness.get("/readyz"))[0] == 503
            assert (await harness.get("/v1/keys"))[0] == 200
            with pytest.raises(InvalidStatus):
                async with harness.socket():
                    pass
            assert not again.done()
            turn.set()
        await draining
        await again
        with pytest.raises(ConnectionClosed):
            await until(sockets[4], "never")
        assert sockets[4].close_code == 3001


# --- scaling -----------------------------------------------------------------------------------------------------


async def test_numbers_of_actors_are_asked_for_together(harness: Harness) -> None:
    wanted = {"shards": 64, "coordinators": 2, "ingestors": 3, "gateways": 1}
    async with harness.http.post("/v1/scale", json=wanted) as response:
        assert (response.status, await response.json()) == (200, wanted)
    assert harness.scaled == wanted


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"shards": 0}, "shards: expected a whole number from 1 to 64, got 0"),
        ({"shards": 65}, "shards: expected a whole number from 1 to 64, got 65"),
        ({"gateways": -1}, "gateways: expected a whole number from 1 to 64, got -1"),
        ({"coordinators": 1.5}, "coordinators: expected a whole number from 1 to 64, got 1.5"),
        ({"ingestors": True}, "ingestors: expected a whole number from 1 to 64, got True"),
        ({"nodes": 2}, "unknown member 'nodes', there are: shards, coordinators, ingestors, gateways"),
        ({}, 'the body is an object such as {"ingestors": 4}'),
    ],
)
async def test_numbers_that_cannot_be_are_refused(harness: Harness, body: Any, message: str) -> None:
    async with harness.http.post("/v1/scale", json=body) as response:
        answer = await response.json()
    assert (response.status, answer["error"]["code"], answer["error"]["message"]) == (400, "BAD_REQUEST", message)
