"""Bad input, on a real cluster: a clear error, a count, and everything else goes on."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from cluster.observability import metrics
from tests.live import Client, LiveCluster, eventually, websocket_source

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    live = LiveCluster(
        {
            "cluster": {"shards": 1},
            "services": {"api": {"base_url": upstream.url}},
            "queries": [
                {
                    "key": ["project", "{id}"],
                    "service": "api",
                    "path": "/projects/{id}",
                    "retry": 1,
                    "retry_delay": "50ms",
                }
            ],
            "sources": {"events": websocket_source(upstream.url)},
            "streams": [
                {
                    "source": "events",
                    "channel": "things",
                    "join": "always",
                    "on": {"thing": {"set": {"key": ["thing", "{data.id}"], "value": "{data}"}}},
                }
            ],
        }
    ).start()
    yield live
    live.stop()


@pytest.fixture
async def client(cluster: LiveCluster) -> AsyncIterator[Client]:
    opened = await Client.open(cluster.url)
    yield opened
    await opened.close()


def _dropped(cluster: LiveCluster) -> dict[str, float]:
    """Drops of the source, by reason."""
    found: dict[str, float] = {}
    for _, encoded in cluster.metrics():
        for sample in metrics.decode(encoded):
            if sample.name == "events_dropped_total" and sample.labels[1] == "events":
                found[sample.labels[2]] = sample.value
    return found


async def test_bad_frames_are_counted_by_reason_and_the_stream_goes_on(
    cluster: LiveCluster, client: Client, upstream: Any
) -> None:
    view = await client.subscribe("t", key=["thing", "last"])
    await client.until(lambda: eventually(lambda: upstream.do(lambda up: up.hub.joined()).get("things")))
    frames = {
        "not_json": ["{nonsense", '{"event":"thing","data":{"id":"\\ud8"}}'],
        "not_object": ["17", '"text"'],
        "no_event": ["{}", '{"event":7}', '{"channel":"things","data":1}'],
        "no_rule": ['{"event":"unheard","channel":"things"}'],
        "missing_capture": ['{"event":"thing","channel":"things","data":{"name":"no id"}}'],
        "bad_data": ['{"event":"thing","channel":"things","data":[1,2]}'],
    }
    for raws in frames.values():
        for raw in raws:
            upstream.do(lambda up, raw=raw: up.control({"emit": {"channel": "things", "raw": raw}}))
    big = {"emit": {"channel": "things", "raw_bytes": 10 * 1024 * 1024}}
    upstream.do(lambda up: up.control(big))
    upstream.say("things", "thing", {"id": "last", "n": 1})
    await client.until(lambda: view.data("thing", "last")["n"] == 1)
    counted = _dropped(cluster)
    assert {reason: counted.get(reason) for reason in frames} == {reason: len(raws) for reason, raws in frames.items()}
    assert counted["too_large"] == 1
    assert cluster.supervisor.describe()["sources"][0]["reconnects"] == 0


async def test_a_nest_a_thousand_deep_harms_nobody(cluster: LiveCluster, client: Client, upstream: Any) -> None:
    view = await client.subscribe("t", prefix=["thing"])
    pids = cluster.pids()
    for depth in (100, 300, 900, 100_000):
        data = '{"id":"deep","nest":' + "[" * depth + "]" * depth + "}"
        raw = '{"event":"thing","channel":"things","data":' + data + "}"
        upstream.do(lambda up, raw=raw: up.control({"emit": {"channel": "things", "raw": raw}}))
    upstream.say("things", "thing", {"id": "after", "n": 1})
    await client.until(lambda: view.data("thing", "after")["n"] == 1)
    assert cluster.pids() == pids


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("17", "BAD_MESSAGE"),
        ('{"type":"dance","id":1}', "UNKNOWN_TYPE"),
        ('{"type":"subscribe","id":1}', "BAD_MESSAGE"),
        ('{"type":"subscribe","key":["a"]}', "BAD_MESSAGE"),
        ('{"type":"subscribe","id":1,"key":"a"}', "BAD_KEY"),
        ('{"type":"subscribe","id":1,"key":["a"],"mode":"loud"}', "BAD_REQUEST"),
        ('{"type":"subscribe","id":1,"key":["a"],"since":"yesterday"}', "BAD_REQUEST"),
        ('{"type":"unsubscribe","id":"never"}', "NOT_FOUND"),
        ('{"type":"mutate","id":1,"name":"x","variables":{}}', "UNKNOWN_MUTATION"),
        ('{"type":"set","id":1,"key":["a"]}', "BAD_MESSAGE"),
        ('{"type":"get","id":1,"key":["' + "k" * 2000 + '"]}', "TOO_LARGE"),
        ('{"type":"set","id":1,"key":["a"],"data":' + "[" * 60 + "]" * 60 + "}", "TOO_DEEP"),
        ('{"type":"set","id":1,"key":["a"],"data":"' + "x" * (1024 * 1024) + '"}', "TOO_LARGE"),
    ],
)
async def test_a_bad_message_is_answered_and_the_session_goes_on(
    client: Client, cluster: LiveCluster, message: str, code: str
) -> None:
    await client._socket.send(message)
    await client.until(lambda: client.log[-1]["type"] == "error")
    assert client.log[-1]["code"] == code
    assert client.log[-1]["temporary"] is False
    assert await client.ask(type="ping", id="still here") == {"type": "pong", "re": "still here"}


async def test_what_is_no_json_at_all_ends_the_session_with_3501(cluster: LiveCluster) -> None:
    url = cluster.url.replace("http", "ws", 1) + "/v1/socket"
    async with connect(url, subprotocols=["harbor.v1"], proxy=None) as socket:
        await socket.recv()
        await socket.send("{nonsense")
        with pytest.raises(ConnectionClosed) as closed:
            await socket.recv()
    assert closed.value.rcvd.code == 3501


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"),
    [
        ("GET", "/v1/entries", {"params": {"key": "projects"}}, 400, "BAD_KEY"),
        ("GET", "/v1/entries", {"params": {"key": '{"a":1}'}}, 400, "BAD_KEY"),
        ("GET", "/v1/entries", {}, 400, "BAD_REQUEST"),
        ("GET", "/v1/entries", {"params": {"key": '["nothing"]'}}, 404, "NOT_FOUND"),
        ("GET", "/v1/entries", {"params": {"key": '["a"]', "fetch": "maybe"}}, 400, "BAD_REQUEST"),
        ("GET", "/v1/entries", {"params": {"key": '["project","404"]'}}, 502, "UPSTREAM_ERROR"),
        ("PUT", "/v1/entries", {"params": {"key": '["a"]'}, "content": b"{"}, 400, "BAD_REQUEST"),
        ("PUT", "/v1/entries", {"params": {"key": '["a"]'}, "content": b'"' + b"x" * 2**21 + b'"'}, 413, "TOO_LARGE"),
        ("PUT", "/v1/entries", {"params": {"key": '["a"]', "ack": "durable"}, "json": 1}, 501, "UNSUPPORTED"),
        (
            "PATCH",
            "/v1/entries",
            {"params": {"key": '["a"]'}, "json": {"operations": [{"frob": {}}]}},
            400,
            "BAD_REQUEST",
        ),
        ("POST", "/v1/invalidate", {"json": {"refetch": "sometimes"}}, 400, "BAD_REQUEST"),
        ("GET", "/v1/stream", {}, 400, "BAD_REQUEST"),
        ("GET", "/v1/missed", {"params": {"key": '["a"]', "since": "x"}}, 400, "BAD_REQUEST"),
        ("GET", "/nowhere", {}, 404, "NOT_FOUND"),
    ],
)
def test_a_bad_request_has_a_status_and_a_code(
    cluster: LiveCluster, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    response = httpx.request(method, cluster.url + path, timeout=60, **options)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code


def test_a_conditional_write_that_loses_gets_the_current_entry(cluster: LiveCluster) -> None:
    first = cluster.put(["doc"], {"text": "one"}).json()["version"]
    second = cluster.put(["doc"], {"text": "two"}, base_version=first).json()["version"]
    assert second == first + 1
    lost = cluster.put(["doc"], {"text": "three"}, base_version=first)
    assert lost.status_code == 409
    error = lost.json()["error"]
    assert error["code"] == "VERSION_CONFLICT"
    assert error["details"]["current"]["data"] == {"text": "two"}
    assert error["details"]["current"]["version"] == second


def test_a_repeated_write_acts_once(cluster: LiveCluster) -> None:
    url = f"{cluster.url}/v1/entries"
    params = {"key": '["counter"]'}
    httpx.put(url, params=params, json={"n": 0})
    body = {"operations": [{"increment": {"at": "/n"}}]}
    answers = [
        httpx.patch(url, params=params, json=body, headers={"Idempotency-Key": "the same"}).json() for _ in range(3)
    ]
    assert answers[0] == answers[1] == answers[2]
    assert cluster.get("counter").json()["data"] == {"n": 1}
