"""Node.js as a page: runs the client as a gateway sends it, beside the real TanStack Query."""

import asyncio
import itertools
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.gateway.pages import WEB
from cluster.gateway.script import sent
from tests import npm

HERE = Path(__file__).parent / "node"
WEBSOCKET = "--experimental-websocket"
"""Before version 22 Node.js has WebSocket only when asked; later ones take the option as well."""


def installed() -> Path:
    """Return a directory with what npm says is needed and the scripts as they are sent: outside the project, installed once."""
    place = npm.installed(HERE / "package.json", "web", "react-test-renderer", "TanStack Query")
    major = int(
        subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout[1:].split(".")[0]
    )
    if major < 20:
        pytest.skip(f"Node.js {major} has no WebSocket: 20 or later is needed")
    package = place / "node_modules" / "harbor-cluster"
    package.mkdir(exist_ok=True)
    shutil.copy(WEB / "package.json", package)
    for script in WEB.glob("*.js"):
        (package / script.name).write_text(sent(script.read_text()))
    for script in HERE.glob("*.mjs"):
        shutil.copy(script, place)
    return place


class Node:
    """A process of Node.js that does what it is told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())
        self.faults: list[str] = []

    async def run(self, code: str, **args: Any) -> Any:
        """Run the body of an asynchronous function; see `driver.mjs` for what is at hand there."""
        name = next(self._ids)
        answer = self._answers[name] = asyncio.get_running_loop().create_future()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": name, "code": code, "args": args}).encode() + b"\n")
        async with asyncio.timeout(120):
            return await answer

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            if "fault" in said:
                self.faults.append(said["fault"])
            elif "error" in said:
                self._answers.pop(said["id"]).set_exception(AssertionError(said["error"]))
            else:
                self._answers.pop(said["id"]).set_result(said["value"])
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(AssertionError("Node.js ended"))


@asynccontextmanager
async def running() -> AsyncIterator[Node]:
    """Run a Node.js. No promise may have been left rejected."""
    place = installed()
    process = await asyncio.create_subprocess_exec(
        "node",
        "--no-warnings",
        WEBSOCKET,
        "driver.mjs",
        cwd=place,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        limit=2**24,
    )
    node = Node(process)
    try:
        yield node
        assert not node.faults, node.faults
    finally:
        process.kill()
        await process.wait()
        await node._reader
