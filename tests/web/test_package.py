"""The files for browsers as others get them: the package for npm, what README shows, and what the demonstration brings along."""

import asyncio
import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import __version__
from cluster.config import read_document
from cluster.gateway.pages import WEB
from tests.live import LiveCluster, eventually
from tests.web.node import HERE, WEBSOCKET, installed

ROOT = Path(__file__).parents[2]
MODULES = ("client", "guide", "react")


@pytest.fixture
def package() -> Any:
    installed()
    return json.loads((WEB / "package.json").read_text())


def test_npm_packs_the_modules_and_their_types(package: Any) -> None:
    packed = subprocess.run(
        ["npm", "pack", "--dry-run", "--json"], cwd=WEB, capture_output=True, text=True, check=True, timeout=60
    )
    (described,) = json.loads(packed.stdout)
    expected = {"package.json", *(f"{module}{end}" for module in MODULES for end in (".js", ".d.ts"))}
    assert {each["path"] for each in described["files"]} == expected
    assert package["version"] == __version__
    for entry in package["exports"].values():
        assert all((WEB / file).exists() for file in entry.values())


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_exports_is_declared(module: str) -> None:
    exported = set(
        re.findall(r"^export (?:const|function|class) (\w+)", (WEB / f"{module}.js").read_text(), re.MULTILINE)
    )
    declared = set(
        re.findall(r"^export (?:const|function|class) (\w+)", (WEB / f"{module}.d.ts").read_text(), re.MULTILINE)
    )
    assert exported == declared


def test_the_client_imports_nothing() -> None:
    assert not re.search(r"^import|\bimport\(", (WEB / "client.js").read_text(), re.MULTILINE)


def test_every_file_is_in_the_distribution() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["cluster"]
    packaged = {file for pattern in patterns for file in (ROOT / "cluster").glob(pattern)}
    assert [file for file in WEB.rglob("*") if file.is_file() and file not in packaged] == []


def test_tanstack_query_of_the_demonstration_is_the_published_one(package: Any) -> None:
    published = installed() / "node_modules" / "@tanstack" / "query-core"
    brought = WEB / "demo" / "query-core"
    version = json.loads((HERE / "package.json").read_text())["dependencies"]["@tanstack/query-core"]
    assert version in (ROOT / "docs/adr/0033-the-demonstration-brings-tanstack-query-along.md").read_text()
    assert {file.name: file.read_bytes() for file in brought.glob("*.js")} == {
        file.name: file.read_bytes() for file in (published / "build" / "modern").glob("*.js")
    }
    assert (brought / "LICENSE.txt").read_bytes() == (published / "LICENSE").read_bytes()


@pytest.fixture(scope="module")
def demonstration(local_ray: None, upstream: Any) -> Iterator[LiveCluster]:
    document = read_document(ROOT / "cluster" / "demo" / "harbor.yaml")
    live = LiveCluster(document, {"UPSTREAM_URL": upstream.url, "UPSTREAM_WS": upstream.ws_url}).start()
    yield live
    live.stop()


@pytest.mark.cluster
async def test_the_lines_of_the_readme_make_a_page_live(demonstration: LiveCluster, upstream: Any) -> None:
    place = installed()
    (code,) = re.findall(r"^```js\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10

    def tried() -> int:
        tasks = upstream.do(lambda up: up.tracker.task_list("1"))
        return [task["title"] for task in tasks].count("Try Harbor from a page")

    before = len(upstream.do(lambda up: up.tracker.task_list("1")))
    (place / "readme.mjs").write_text(code.replace("127.0.0.1:8700", f"127.0.0.1:{demonstration.port}"))
    process = await asyncio.create_subprocess_exec(
        "node", "--no-warnings", WEBSOCKET, "readme.mjs", cwd=place, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            said = ""
            while f"{before + 1} tasks" not in said:
                line = (await process.stdout.readline()).decode()
                assert line, said
                said += line
        # The page shows it before the upstream has heard of it.
        await asyncio.to_thread(eventually, lambda: tried() > 0)
    finally:
        process.kill()
        await process.wait()
    assert tried() == 1
