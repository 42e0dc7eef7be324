import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
import yaml

import cluster.demo
from cluster.demo.upstream import Upstream


@pytest.fixture
async def upstream():
    upstream = Upstream(rate=0)
    await upstream.start()
    yield upstream
    await upstream.stop()


@pytest.fixture
async def http(upstream):
    async with aiohttp.ClientSession(upstream.url, timeout=aiohttp.ClientTimeout(60)) as session:
        yield session


async def json_of(response):
    return response.status, await response.json()


async def test_rest_answers_what_is_true(upstream, http):
    truth = upstream.tracker.truth()
    for path, expected in {
        "/projects/1": truth["projects"]["1"],
        "/tasks?projectId=2": truth["tasks"]["2"],
        "/messages?channelId=1": truth["messages"]["1"],
        "/posts?feedId=1&offset=20&limit=3": truth["posts"]["1"][20:23],
        "/users": truth["users"],
        "/api/activity": truth["activity"],
        "/api/dashboards/1/metrics/cpu": truth["metrics"]["1"]["cpu"],
        "/api/dashboards/1/alerts": truth["alerts"]["1"],
        "/documents/1": truth["documents"]["1"],
        "/control/truth": truth,
    }.items():
        assert await json_of(await http.get(path)) == (200, expected), path
    _, projects = await json_of(await http.get("/projects?status=archived"))
    assert {project["status"] for project in projects} == {"archived"}
    for path, status in {"/projects/99": 404, "/tasks": 400, "/posts?feedId=1&limit=x": 400, "/nowhere": 404}.items():
        assert (await http.get(path)).status == status, path


async def test_a_mutation_is_broadcast_to_who_subscribed(upstream, http):
    async with http.ws_connect("/ws") as socket:
        await socket.send_json({"action": "subscribe", "channel": "project:1"})
        await socket.send_json({"action": "dance"})
        assert (await socket.receive_json())["event"] == "error"
        await http.post("/tasks", json={"projectId": "2", "title": "elsewhere"})
        status, task = await json_of(await http.post("/tasks", json={"projectId": "1", "title": "T"}))
        frame = await socket.receive_json()
        assert status == 201
        assert (frame["event"], frame["channel"], frame["data"]) == ("task:created", "project:1", task)
        assert isinstance(frame["id"], str)
        await http.patch(f"/tasks/{task['id']}", json={"status": "done"})
        assert (await socket.receive_json())["data"]["status"] == "done"
        assert (await http.delete(f"/tasks/{task['id']}")).status == 204
        assert (await socket.receive_json())["data"] == {"taskId": task["id"], "projectId": "1"}
        _, stats = await json_of(await http.get("/control/stats"))
        assert stats["joined"] == {"project:1": 1}
        assert stats["subscribes"] == {"project:1": 1}
        assert stats["requests"]["POST /tasks"] == 2
        await socket.send_json({"action": "unsubscribe", "channel": "project:1"})
        await socket.send_json({"action": "dance"})
        assert (await socket.receive_json())["event"] == "error"
        assert upstream.hub.unsubscribes == {"project:1": 1}


async def test_an_idempotency_key_acts_once(upstream, http):
    before = len(upstream.tracker.message_list("1"))
    answers = [
        await json_of(
            await http.post("/messages", json={"channelId": "1", "content": "x"}, headers={"Idempotency-Key": key})
        )
        for key in ("k1", "k1", "k2")
    ]
    assert answers[0] == answers[1]
    assert answers[1] != answers[2]
    assert len(upstream.tracker.message_list("1")) == before + 2


async def test_what_a_key_asked_for_says_so(upstream, http):
    async with http.ws_connect("/ws") as socket:
        for channel in ("project:1", "channel:1:messages"):
            await socket.send_json({"action": "subscribe", "channel": channel})
        while len(upstream.hub.joined()) < 2:
            await asyncio.sleep(0.01)

        async def ask(method, path, key, **body):
            answer = await http.request(method, path, json=body or None, headers={"Idempotency-Key": key})
            return None if answer.status == 204 else await answer.json()

        async def told():
            frame = await socket.receive_json()
            return frame["event"], frame["data"]

        task = await ask("POST", "/tasks", "k1", projectId="1", title="T")
        assert (task["mutation_id"], task["title"]) == ("k1", "T")
        assert await told() == ("task:created", task)
        task = await ask("PATCH", f"/tasks/{task['id']}", "k2", status="done")
        assert (task["mutation_id"], task["status"]) == ("k2", "done")
        assert await told() == ("task:updated", task)
        assert await ask("DELETE", f"/tasks/{task['id']}", "k3") is None
        assert await told() == ("task:deleted", {"taskId": task["id"], "projectId": "1", "mutation_id": "k3"})
        message = await ask("POST", "/messages", "k4", channelId="1", content="x")
        assert await told() == ("message:new", message)
        message = await ask("PATCH", f"/messages/{message['id']}", "k5", content="y")
        assert (message["mutation_id"], message["edited"]) == ("k5", True)
        assert await json_of(await http.get(f"/messages/{message['id']}")) == (200, message)
        assert await told() == ("message:edited", message)
        await ask("DELETE", f"/messages/{message['id']}", "k6")
        assert await told() == ("message:deleted", {"id": message["id"], "channelId": "1", "mutation_id": "k6"})
        assert upstream.applied == {f"k{number}": 1 for number in range(1, 7)}


async def test_a_swallowed_answer_was_acted_upon(upstream, http):
    upstream.swallow(2, "/tasks", "POST")
    before = len(upstream.tracker.task_list("1"))
    key = {"headers": {"Idempotency-Key": "k"}, "json": {"projectId": "1", "title": "T"}}
    assert (await http.get("/tasks?projectId=1")).status == 200
    for _ in range(2):
        with pytest.raises(aiohttp.ClientError):
            await http.post("/tasks", **key)
    status, task = await json_of(await http.post("/tasks", **key))
    assert (status, task["title"]) == (201, "T")
    assert len(upstream.tracker.task_list("1")) == before + 1
    _, stats = await json_of(await http.get("/control/stats"))
    assert (stats["applied"], stats["keys_seen"]) == ({"k": 1}, {"k": 3})


async def test_errors_of_one_method(upstream, http):
    await http.post("/control", json={"errors": {"status": 500, "count": 2, "path": "/tasks", "method": "PATCH"}})
    task = next(iter(upstream.tracker.tasks["1"]))
    assert (await http.get(f"/tasks/{task}")).status == 200
    statuses = [(await http.patch(f"/tasks/{task}", json={"status": "done"})).status for _ in range(3)]
    assert statuses == [500, 500, 200]
    await http.post("/control", json={"swallow": {"path": "/tasks"}})
    with pytest.raises(aiohttp.ClientError):
        await http.patch(f"/tasks/{task}", json={"status": "todo"})
    assert upstream.tracker.task(task)["status"] == "todo"


async def test_a_version_conflict(http):
    status, body = await json_of(await http.patch("/documents/1", json={"content": "x", "baseVersion": 9}))
    assert (status, body["code"], body["current"]["version"]) == (409, "VERSION_CONFLICT", 1)


async def read_events(response, count):
    events = []
    async for line in response.content:
        if line.startswith(b"data: "):
            events.append(json.loads(line[6:]))
            if len(events) == count:
                return events
    return events


async def test_the_activity_stream_resumes(upstream, http):
    newest = upstream.tracker.activity_list()[0]["id"]
    for _ in range(3):
        await http.post("/messages", json={"channelId": "1", "content": "x"})
    expected = list(reversed(upstream.tracker.activity_list()[:3]))
    async with http.get("/api/activity/stream", headers={"Last-Event-ID": newest}) as response:
        assert response.content_type == "text/event-stream"
        assert await read_events(response, 3) == expected
        await http.post("/messages", json={"channelId": "1", "content": "live"})
        assert (await read_events(response, 1))[0]["text"] == "live"
    _, missed = await json_of(await http.get(f"/api/activity/missed?since={newest}"))
    assert [item["data"] for item in missed[:3]] == expected
    assert missed[0]["event"] == "activity"
    assert (await http.get("/api/activity/missed?since=nonsense")).status == 410


async def test_metrics_stream(upstream, http):
    async with http.get("/api/dashboards/1/metrics/stream") as response:
        await response.content.readline()
        upstream.emit(upstream.tracker.measure("2", "cpu", 1.0))
        upstream.emit(upstream.tracker.measure("1", "cpu", 2.0))
        assert (await read_events(response, 1))[0]["value"] == 2.0


async def test_injected_errors_and_latency(upstream, http):
    assert (await http.post("/control", json={"errors": {"status": 503, "count": 2, "path": "/users"}})).status == 204
    assert [(await http.get(path)).status for path in ("/projects", "/users", "/users", "/users")] == [
        200,
        503,
        503,
        200,
    ]
    await http.post("/control", json={"latency_ms": 60_000})
    late = asyncio.ensure_future(http.get("/users"))
    assert (await http.get("/control/truth")).status == 200
    assert not late.done()
    await http.post("/control", json={"latency_ms": 1})
    assert (await late).status == 200
    assert (await http.get("/users")).status == 200


async def test_an_outage_answers_nobody_and_ends(upstream, http):
    socket = await http.ws_connect("/ws")
    await http.post("/control", json={"outage": {"ms": 60_000}})
    assert (await socket.receive()).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR)
    for path in ("/users", "/ws", "/api/activity/stream"):
        with pytest.raises(aiohttp.ClientError):
            await http.get(path)
    assert (await http.get("/control/truth")).status == 200
    await http.post("/control", json={"outage": {"ms": 0}})
    assert (await http.get("/users")).status == 200


async def test_switching_streams_off(upstream, http):
    async with http.ws_connect("/ws") as socket, http.get("/api/activity/stream") as stream:
        await stream.content.readline()
        await http.post("/control", json={"ws": "down"})
        assert (await socket.receive()).type is not aiohttp.WSMsgType.TEXT
        await http.post("/messages", json={"channelId": "1", "content": "still"})
        assert (await read_events(stream, 1))[0]["text"] == "still"
        assert (await http.get("/ws")).status == 503
        await http.post("/control", json={"sse": "down", "ws": "up"})
        assert (await http.get("/api/activity/stream")).status == 503
        async with http.ws_connect("/ws"):
            pass


async def test_emitting_by_control(upstream, http):
    async with http.ws_connect("/ws", max_msg_size=0) as socket:
        await socket.send_json({"action": "subscribe", "channel": "c"})
        await socket.send_json({})
        await socket.receive()
        command = {"channel": "c", "event": "e", "data": {"id": "{n}", "k": 1}, "count": 3}
        await http.post("/control", json={"emit": command})
        assert [(await socket.receive_json())["data"] for _ in range(3)] == [{"id": n, "k": 1} for n in range(3)]
        await http.post("/control", json={"emit": {"channel": "c", "raw": "not json"}})
        assert (await socket.receive()).data == "not json"
        await http.post("/control", json={"emit": {"channel": "c", "raw_bytes": 10_000_000}})
        assert len((await socket.receive()).data) == 10_000_000
    for command in ({"emit": {}}, {"bang": 1}, {"ws": "sideways"}, {"weights": {"x": 1}}):
        assert (await http.post("/control", json=command)).status == 400, command


async def test_the_rate_is_kept(upstream):
    emitted = asyncio.Event()
    upstream.traffic.weigh(dict.fromkeys(upstream.traffic.weights, 0) | {"notification": 1})
    act, count, started = upstream.traffic.act, 0, time.monotonic()

    def counted():
        nonlocal count
        count += 1
        if count == 1000:
            emitted.set()
        return act()

    upstream.traffic.act = counted
    upstream.set_rate(2000)
    async with asyncio.timeout(60):
        await emitted.wait()
    assert time.monotonic() - started > 0.4
    upstream.set_rate(0)


def start(*arguments, code=None):
    command = [sys.executable, "-m", "cluster.demo.upstream", "--port", "0", *arguments]
    return subprocess.Popen(
        [sys.executable, "-c", code, *command] if code else command,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(cluster.demo.__file__).parents[2],
    )


def gone(pid, within_s=60.0):
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_says_when_it_is_ready_and_ends_when_told(number):
    process = start("--rate", "200")
    try:
        line = process.stdout.readline()
        assert line.startswith("upstream ready: http://127.0.0.1:")
        async with aiohttp.ClientSession(line.split()[-1]) as http, http.ws_connect("/ws") as socket:
            await socket.send_json({"action": "subscribe", "channel": "metrics"})
            assert (await socket.receive_json())["channel"] == "metrics"
            process.send_signal(number)
            assert await asyncio.to_thread(process.wait, 60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_it_does_not_outlive_its_parent():
    code = "import subprocess, sys; child = subprocess.Popen(sys.argv[1:]); print(child.pid, flush=True); child.wait()"
    parent = start(code=code)
    try:
        said = [parent.stdout.readline(), parent.stdout.readline()]
        pid = int(next(line for line in said if line.strip().isdigit()))
        assert any("upstream ready" in line for line in said)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert gone(pid)


def test_a_taken_port_is_said_plainly():
    first = start()
    try:
        port = first.stdout.readline().rsplit(":", 1)[1].strip()
        command = [sys.executable, "-m", "cluster.demo.upstream", "--port", port]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert second.stderr.startswith("upstream: ")
        assert "Traceback" not in second.stderr
    finally:
        first.terminate()
        first.wait()
        first.stdout.close()


def test_the_sample_configuration_is_yaml_and_names_this_server():
    config = yaml.safe_load((Path(cluster.demo.__file__).parent / "harbor.yaml").read_text())
    assert set(config) <= {
        "cluster",
        "batching",
        "entities",
        "presence",
        "relations",
        "gateway",
        "defaults",
        "mutations",
        "resources",
        "services",
        "queries",
        "sources",
        "storage",
        "streams",
    }
    assert config["sources"]["events"]["url"] == "${UPSTREAM_WS:-ws://127.0.0.1:8710/ws}"
