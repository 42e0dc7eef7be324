"""Logs: their form, what they keep to themselves, and an event's way through the cluster."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cluster.observability import logs
from cluster.observability.logs import BURST, KINDS, Log, configure, redacted, trace_id
from tests.live import Client, eventually, free_port


@pytest.fixture
def harbor_logs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the loggers as they were."""
    held = [
        (each, each.handlers[:], each.level, each.propagate) for each in map(logging.getLogger, ("harbor", "cluster"))
    ]
    yield
    for each, handlers, level, propagate in held:
        each.handlers[:], each.propagate = handlers, propagate
        each.setLevel(level)


def written(capsys: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_an_event_with_fields(harbor_logs, capsys):
    configure()
    Log(cluster="c", component="shard-0").info("store_restored", entries=5)
    (line,) = written(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "info",
        "event": "store_restored",
        "cluster": "c",
        "component": "shard-0",
        "entries": 5,
    }


def test_the_environment_chooses_form_and_level(harbor_logs, capsys, monkeypatch):
    monkeypatch.setenv("HARBOR_LOG_FORMAT", "text")
    monkeypatch.setenv("HARBOR_LOG_LEVEL", "warning")
    configure()
    log = Log(component="gateway-0")
    log.info("unheard")
    log.warning("heard", n=1)
    assert re.fullmatch(r"\d\d:\d\d:\d\d warning heard component=gateway-0 n=1\n", capsys.readouterr().err)


def test_a_choice_that_there_is_not_is_said_and_the_default_taken(harbor_logs, capsys, monkeypatch):
    monkeypatch.setenv("HARBOR_LOG_LEVEL", "loud")
    configure()
    Log().info("heard")
    complaint, *lines = capsys.readouterr().err.splitlines()
    assert complaint == "harbor: HARBOR_LOG_LEVEL is debug or info or warning or error, not 'loud': it is info"
    assert json.loads(lines[-1])["event"] == "heard"


SECRETS = [
    "wss://user:hunter2@up.example/ws",
    "http://api.example/x?token=hunter2&a=hunter2",
    "Authorization: Bearer hunter2",
    "basic hunter2",
    "the key hk_hunter2hunter2 is not valid",
]


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("secret", SECRETS)
def test_credentials_are_masked_wherever_they_are(harbor_logs, capsys, monkeypatch, secret, form):
    monkeypatch.setenv("HARBOR_LOG_FORMAT", form)
    monkeypatch.setenv("HARBOR_LOG_LEVEL", "debug")
    configure()
    log = Log(bound=secret)
    log.debug("e", reason=secret)
    log.sampled("e", secret, detail=secret)
    log.error("e", error=ValueError(secret), nested={"in": [secret]})
    try:
        raise ValueError(secret)
    except ValueError as error:
        log.error("e", exc_info=error)  # noqa: TRY400 - a Log has no `exception`
    logging.getLogger("cluster.gateway.server").error("request_failed %s", secret)
    text = capsys.readouterr().err
    if form == "json":
        assert [json.loads(line)["level"] for line in text.splitlines()] == ["debug", "warning", *["error"] * 3]
    assert text.count("***") >= 8
    assert "hunter2" not in text


def test_what_is_no_credential_stays():
    for text in ("ws://127.0.0.1:80/ws", "a bearer of news", "hk_", "https://x/a/b#c"):
        assert redacted(text).replace("***", "of") == text


def test_what_happens_often_is_sampled(harbor_logs, capsys, monkeypatch):
    now = 100.0
    monkeypatch.setattr(logs.time, "monotonic", lambda: now)
    configure()
    log = Log()
    for _ in range(BURST + 10):
        log.sampled("frame_dropped", "not_json")
    log.sampled("frame_dropped", "too_long")
    now += logs.EVERY_S
    log.sampled("frame_dropped", "not_json")
    lines = [(line["kind"], line["left_out"]) for line in written(capsys)]
    assert lines == [("not_json", 0)] * BURST + [("too_long", 0), ("not_json", 10)]


def test_kinds_are_remembered_within_bounds(harbor_logs):
    configure()
    logging.getLogger("harbor").handlers.clear()
    logging.getLogger("harbor").addHandler(logging.NullHandler())
    log = Log()
    for n in range(3 * KINDS):
        log.sampled("e", str(n))
    assert len(log._kinds) <= KINDS


def test_every_event_that_is_logged_is_in_the_documentation():
    root = Path(logs.__file__).parent.parent
    said = {
        "".join(found)
        for path in root.rglob("*.py")
        for found in re.findall(
            r'log\.(?:debug|info|warning|error|sampled)\(\s*"(\w+)"|self\.trace\("(\w+)"', path.read_text()
        )
    }
    table = (root.parent / "docs" / "logging.md").read_text()
    listed = set(re.findall(r"^\| `(\w+)` \|", table.partition("## Events")[2], re.MULTILINE))
    assert said == listed
    assert len(said) > 20


@pytest.mark.cluster
async def test_an_event_can_be_followed_from_the_upstream_to_the_client(upstream: Any, tmp_path: Path) -> None:
    document = {
        "cluster": {"name": f"traced-{os.getpid()}", "shards": 2},
        "gateway": {"port": 0, "admin_port": free_port()},
        "storage": {"path": None},
        "sources": {"activity": {"type": "sse", "url": f"{upstream.url}/api/activity/stream"}},
        "streams": [{"source": "activity", "on": {"activity": {"set": {"key": ["last"], "value": "{data}"}}}}],
    }
    path = tmp_path / "harbor.yaml"
    path.write_text(yaml.safe_dump(document))
    short = tempfile.mkdtemp(prefix="log", dir="/tmp")  # Ray's sockets are below it
    env = {**os.environ, "HARBOR_LOG_LEVEL": "debug", "RAY_TMPDIR": short}
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "up", str(path)], stdout=subprocess.PIPE, text=True, env=env
    )
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        url = found[0]
        eventually(lambda: httpx.get(f"{url}/v1/cluster", timeout=60).json()["sources"][0]["state"] == "connected")
        client = await Client.open(url)
        view = await client.subscribe(1, key=["last"])

        def chain() -> str | None:
            ways = defaultdict(list)
            for log in Path(short).rglob("worker-*.err"):
                for text in log.read_text().splitlines():
                    if text.startswith("{") and "trace" in (line := json.loads(text)):
                        ways[line["trace"]].append((line["component"].partition("-")[0], line["event"]))
            stages = [("ingestor", "received"), ("ingestor", "sent"), ("coordinator", "sent"), ("shard", "sent")]
            whole = [*stages, ("gateway", "delivered")]
            return next((trace for trace, way in ways.items() if set(whole) <= set(way)), None)

        trace = None
        for number in range(20):  # one that shared its window with an older one, a gap say, goes by the other's
            upstream.say("activity", "activity", {"id": f"t{number}"})
            await client.until(lambda number=number: view.data("last")["id"] == f"t{number}")
            trace = trace or chain()
        assert trace is not None
        assert re.fullmatch("[0-9a-f]{32}", trace)
        await client.close()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        shutil.rmtree(short, ignore_errors=True)


def test_a_trace_is_the_same_wherever_it_is_made():
    assert trace_id(1795527705974.25) == trace_id(float("1795527705974.25")) != trace_id(1795527705974.5)
