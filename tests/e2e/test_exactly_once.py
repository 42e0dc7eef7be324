"""Every event takes effect once, while ingestors, coordinators, shards and connections are killed under load."""

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.e2e.ledger_upstream import KEPT, truth
from tests.lasting import lasting
from tests.live import LiveCluster, eventually, free_port

pytestmark = [pytest.mark.cluster, pytest.mark.soak]
SECONDS = lasting(8.0, 60.0)
RATE = lasting(2_500.0, 20_000.0)
PAUSE_S = 2.0
RULES = {
    "append": {
        "append": {
            "key": ["list", "{data.k}"],
            "item": "{data.n}",
            "max_items": KEPT,
            "when_missing": "create",
            "default": [],
        }
    },
    "bump": {"increment": {"key": ["count", "{data.k}"], "at": "/n", "when_missing": "create", "default": {"n": 0}}},
    "set": {"set": {"key": ["last", "{data.k}"], "value": "{data.n}"}},
}
RECONNECT = {"initial": "50ms", "max": "500ms"}


@pytest.fixture
def ledger() -> Iterator[str]:
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "tests.e2e.ledger_upstream", str(port), str(RATE)]) as upstream:
        yield f"127.0.0.1:{port}"
        upstream.kill()


def by_socket(at: str) -> dict[str, Any]:
    """The ledger as a source: its WebSocket, which goes on after an event."""
    return {
        "type": "websocket",
        "url": f"ws://{at}/ws",
        "subscribe": {"join": "{channel}", "after": "{last_event_id}"},
        "reconnect": RECONNECT,
    }


def document(transport: str, at: str, store: Path) -> dict[str, Any]:
    if transport == "sse":
        source: dict[str, Any] = {"type": "sse", "url": f"http://{at}/sse", "reconnect": RECONNECT}
        streams = [{"source": "ledger", "on": RULES}]
    else:
        source = by_socket(at)
        streams = [{"source": "ledger", "channel": f"ledger:{n}", "join": "always", "on": RULES} for n in range(2)]
    return {
        "cluster": {"shards": 2},
        "storage": {"path": str(store)},
        "sources": {"ledger": source},
        "streams": streams,
    }


@pytest.mark.parametrize("transport", ["sse", "websocket"])
async def test_lists_and_counters_equal_the_ledger(
    local_ray: None, tmp_path: Path, ledger: str, transport: str
) -> None:
    await asyncio.to_thread(eventually, lambda: httpx.post(f"http://{ledger}/cut").is_success)
    cluster = await asyncio.to_thread(LiveCluster(document(transport, ledger, tmp_path)).start)
    try:
        await asyncio.to_thread(eventually, lambda: _last(cluster, "k0") > 4 * RATE)  # checkpoints are told by then
        choose = random.Random(transport)
        loop = asyncio.get_running_loop()
        end = loop.time() + SECONDS
        while loop.time() < end:
            victim = choose.choice(["ingestor-0", "coordinator-0", "shard-0", "shard-1", "connection"])
            if victim == "connection":
                await asyncio.to_thread(httpx.post, f"http://{ledger}/cut")
            else:
                await asyncio.to_thread(cluster.kill, victim)
            await asyncio.sleep(PAUSE_S)  # the faults' rhythm
        await asyncio.to_thread(equals, cluster, ledger)
    finally:
        await asyncio.to_thread(cluster.stop)


def equals(cluster: LiveCluster, ledger: str) -> None:
    """End a ledger, and wait until entries are what it made them."""
    wanted = truth(httpx.post(f"http://{ledger}/stop").json()["last"])
    held: dict[str, Any] = {}

    def is_there() -> bool:
        held.update({key: _entry(cluster, key) for key in wanted if held.get(key) != wanted[key]})
        return held == wanted

    try:
        eventually(is_there)
    except AssertionError:
        wrong = {key: (held.get(key), wanted[key]) for key in wanted if held.get(key) != wanted[key]}
        pytest.fail(f"{len(wrong)} of {len(wanted)} entries, such as {str(dict(list(wrong.items())[:3]))[:600]}")


def _entry(cluster: LiveCluster, key: str) -> Any:
    try:
        answer = httpx.get(f"{cluster.url}/v1/entries", params={"key": key}, timeout=60)
    except httpx.HTTPError:
        return None
    return answer.json().get("data") if answer.is_success else None


def _last(cluster: LiveCluster, k: str) -> int:
    return _entry(cluster, orjson.dumps(["last", k]).decode()) or 0
