"""No secret is told anywhere: a cluster with one in every place that takes one, driven into errors, and all it says searched."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import pytest
import yaml
from websockets.asyncio.client import connect

from tests.live import eventually, free_port
from tests.tokens import claims, signed

pytestmark = pytest.mark.cluster
SECRETS = {
    name: f"hunter2{name.lower().replace('_', '')}{'x' * 32}"
    for name in (
        "JWT_SECRET", "SERVICE_USER", "SERVICE_TOKEN", "SERVICE_KEY", "QUERY_KEY", "QUERY_PARAM", "SOURCE_PASSWORD",
        "SOURCE_TOKEN", "SOURCE_HEADER", "SUBSCRIBE_TOKEN", "UNSUBSCRIBE_TOKEN", "CONNECT_TOKEN", "MISSED_TOKEN", "MUTATION_KEY",
        "MUTATION_BODY", "TOKEN_SECRET", "JWKS_PASSWORD", "API_KEY", "RAY_AUTH_TOKEN",
    )
}  # fmt: skip


class Broken(BaseHTTPRequestHandler):
    """A service that answers everything with an error."""

    def answer(self) -> None:
        self.send_response(500)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"no")

    do_GET = do_POST = answer  # noqa: N815 - the base class's names

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def broken() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Broken)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join(5)


def document(service: int) -> dict[str, Any]:
    host = f"127.0.0.1:{free_port()}"
    return {
        "cluster": {"name": f"secrets-{os.getpid()}", "shards": 1},
        "storage": {"path": None},
        "gateway": {
            "port": 0,
            "admin_port": free_port(),
            "auth": {"mode": "jwt", "algorithms": ["HS256"], "secret": "${JWT_SECRET}"},
            "token_secret": "${TOKEN_SECRET}",
        },
        "services": {
            "api": {
                "base_url": f"http://${{SERVICE_USER}}:${{SERVICE_USER}}@127.0.0.1:{service}",
                "headers": {"authorization": "Bearer ${SERVICE_TOKEN}", "x-api-key": "${SERVICE_KEY}"},
                "timeout": "5s",
            }
        },
        "queries": [
            {"key": ["q", "{id}"], "service": "api", "path": "/q/{id}?k=${QUERY_KEY}", "params": {"p": "${QUERY_PARAM}"}, "retry": 0}
        ],
        "sources": {
            "events": {
                "type": "websocket",
                "url": f"ws://u:${{SOURCE_PASSWORD}}@{host}/ws?token=${{SOURCE_TOKEN}}",
                "headers": {"authorization": "Bearer ${SOURCE_HEADER}"},
                "subscribe": {"join": "{channel}", "token": "${SUBSCRIBE_TOKEN}"},
                "unsubscribe": {"leave": "{channel}", "token": "${UNSUBSCRIBE_TOKEN}"},
                "reconnect": {"attempts": 1, "initial": "50ms", "max": "100ms"},
            },
            "spoken": {
                "type": "websocket",
                "dialect": "socket.io",
                "url": f"ws://{host}/socket.io/",
                "auth": {"token": "${CONNECT_TOKEN}"},
                "reconnect": {"attempts": 1, "initial": "50ms", "max": "100ms"},
            },
            "more": {
                "type": "sse",
                "url": f"http://u:${{SOURCE_PASSWORD}}@{host}/sse?token=${{SOURCE_TOKEN}}",
                "missed": f"http://{host}/missed?token=${{MISSED_TOKEN}}&since={{last_event_id}}",
                "reconnect": {"attempts": 1, "initial": "50ms", "max": "100ms"},
            },
        },
        "streams": [
            {"source": name, "on": {"e": {"set": {"key": ["s"], "value": "{data}"}}}, **more}
            for name, more in (("events", {"channel": "c", "join": "always"}), ("spoken", {}), ("more", {}))
        ],
        "mutations": {
            "m": {
                "request": {"service": "api", "method": "POST", "path": "/m?k=${MUTATION_KEY}", "body": {"k": "${MUTATION_BODY}"}},
                "max_age": "1s",
            }
        },
    }  # fmt: skip


async def test_no_secret_is_told_anywhere(tmp_path: Path, broken: int) -> None:  # noqa: PLR0915 - one place after another
    given = document(broken)
    path = tmp_path / "harbor.yaml"
    path.write_text(yaml.safe_dump(given))
    short = tempfile.mkdtemp(prefix="sec", dir="/tmp")  # Ray's sockets are below it
    env = {**os.environ, **SECRETS, "HARBOR_LOG_LEVEL": "debug", "RAY_TMPDIR": short, "RAY_AUTH_MODE": "token"}
    env.pop("RAY_ADDRESS", None)
    good = signed(
        claims(harbor={"read": [[]], "write": [[]], "mutate": ["*"], "admin": True}), SECRETS["JWT_SECRET"], "HS256"
    )
    bad = signed(claims(seconds=-5), SECRETS["JWT_SECRET"], "HS256")
    said: dict[str, str] = {}
    errors = tmp_path / "stderr"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "up", str(path)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=env,
        )
    try:
        first = await asyncio.to_thread(process.stdout.readline)
        found = re.search(r"http://\S+", first)
        assert found is not None, first + errors.read_text()
        url = found[0]
        admin = f"http://127.0.0.1:{given['gateway']['admin_port']}"
        headers = {"Authorization": f"Bearer {good}"}

        def ask(name: str, method: str, target: str, token: str = good, **more: Any) -> httpx.Response:
            response = httpx.request(method, target, headers={"Authorization": f"Bearer {token}"}, timeout=60, **more)
            said[name] = f"{response.headers} {response.text}"
            return response

        def drive() -> None:
            assert ask("entry", "GET", f"{url}/v1/entries", params={"key": '["q","1"]'}).status_code == 502
            assert ask("expired", "GET", f"{url}/v1/keys", bad).status_code == 401
            assert ask("forged", "GET", f"{url}/v1/keys", good[:-4] + "AAAA").status_code == 401
            assert ask("nonsense", "GET", f"{admin}/v1/cluster", "nonsense").status_code == 401
            for port, where in (("a key", url), ("a key for the admin port", admin)):
                assert ask(port, "GET", f"{where}/v1/cluster", SECRETS["API_KEY"]).status_code == 401
            assert ask("bad body", "PUT", f"{url}/v1/entries", params={"key": '["w"]'}, content=b"{").status_code == 400
            settled = ask(
                "mutation", "POST", f"{url}/v1/mutations", params={"wait": "true"}, json={"name": "m", "variables": {}}
            )
            assert settled.json()["status"] == "error"
            ask("mutations", "GET", f"{url}/v1/mutations")
            eventually(
                lambda: (
                    {each["state"] for each in ask("cluster", "GET", f"{url}/v1/cluster").json()["sources"]}
                    == {"failed"}
                )
            )
            assert ask("dead letters", "GET", f"{url}/v1/cluster?dead_letters=true").status_code == 200
            assert ask("admin", "GET", f"{admin}/v1/cluster").status_code == 200
            assert "harbor_fetches_total" in ask("metrics", "GET", f"{admin}/metrics").text
            for command in (["status", "--json"],):
                arguments = [sys.executable, "-m", "cluster.cli", *command, "--url", url]
                done = subprocess.run(
                    arguments,
                    capture_output=True,
                    text=True,
                    timeout=60,
                    env={**env, "HARBOR_TOKEN": good},
                    check=False,
                )
                assert done.returncode == 0, done.stderr
                said[" ".join(command)] = done.stdout + done.stderr
            for name, scheme in (("check", ""), ("check keys", "http"), ("check bad keys", "htp")):
                other = tmp_path / f"{name}.yaml"
                auth = {
                    "mode": "jwt",
                    "algorithms": ["RS256"],
                    "jwks_url": f"{scheme}://u:${{JWKS_PASSWORD}}@127.0.0.1:{broken}/?k=${{JWKS_PASSWORD}}",
                }
                gateway = {**given["gateway"], "auth": auth} if scheme else given["gateway"]
                other.write_text(yaml.safe_dump({**given, "gateway": gateway}))
                checked = subprocess.run(
                    [sys.executable, "-m", "cluster.cli", "check", str(other)],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    env=env,
                    check=False,
                )
                said[name] = checked.stdout + checked.stderr
                assert (checked.returncode == 0) == (scheme != "htp"), said[name]

        await asyncio.to_thread(drive)
        async with connect(
            url.replace("http", "ws", 1) + "/v1/socket", additional_headers=headers, proxy=None
        ) as socket:
            await socket.send(
                orjson.dumps(
                    [{"type": "subscribe", "id": 1, "key": ["q", "1"]}, {"type": "auth", "id": 2, "token": bad}]
                ).decode()
            )
            heard = b""
            while b"UNAUTHORIZED" not in heard or b"snapshot_end" not in heard:
                frame = await asyncio.wait_for(socket.recv(), 60)
                heard += frame if isinstance(frame, bytes) else frame.encode()
            said["socket"] = heard.decode()
        # A fault while it runs, in a place with a secret, and a change of what holds secrets.
        path.write_text(
            yaml.safe_dump(
                {
                    **given,
                    "services": {
                        "api": {**given["services"]["api"], "base_url": "htp://u:${SERVICE_USER}@x?k=${SERVICE_KEY}"}
                    },
                }
            )
        )
        await asyncio.to_thread(eventually, lambda: "services.api.base_url" in errors.read_text())
        given["gateway"]["auth"]["secret"] = "${JWT_SECRET}2"
        given["gateway"]["token_secret"] = "${TOKEN_SECRET}2"
        path.write_text(yaml.safe_dump(given))
        await asyncio.to_thread(eventually, lambda: "gateway.auth" in errors.read_text())
        for child in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                said[f"process {child.pid}"] = " ".join(child.cmdline()) + child.name()
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        said["stdout"] = process.stdout.read()
        said["stderr"] = errors.read_text()
        logs = [
            each
            for each in Path(short).rglob("*")
            if each.is_file() and not each.is_symlink() and "/logs/" in str(each)
        ]
        for log in logs:
            said[log.name] = log.read_text(errors="replace")
        shutil.rmtree(short, ignore_errors=True)
    assert len(logs) > 5
    assert any('"event":"fetch_failed"' in text.replace(" ", "") for text in said.values()), "errors were logged"
    assert {place for place, text in said.items() if given["cluster"]["name"] in text} > {"cluster", "admin"}, (
        "it is looked at"
    )
    told = {**SECRETS, "a token": good.rpartition(".")[2], "an expired token": bad.rpartition(".")[2]}
    leaks = [(name, place) for name, secret in told.items() for place, text in said.items() if secret in text]
    assert leaks == []
