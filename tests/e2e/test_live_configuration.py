"""A configuration that changes as the cluster runs, and the lives of those who hold it."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import ray

from cluster.actors.handles import namespace
from cluster.actors.specification import encode
from cluster.core.limits import Limits
from tests.live import Client, LiveCluster, eventually

pytestmark = pytest.mark.cluster


def document(url: str, path: Path, rule: dict[str, Any]) -> dict[str, Any]:
    return {
        "storage": {"path": str(path)},
        "sources": {"activity": {"type": "sse", "url": f"{url}/api/activity/stream"}},
        "streams": [{"source": "activity", "on": {"activity": {"set": {"key": ["last"], **rule}}}}],
    }


def settled(live: LiveCluster) -> bool:
    described = live.supervisor.describe()
    connected = bool(described["sources"]) and described["sources"][0]["state"] == "connected"
    return bool(described["ready"] and not described["reconfiguring"] and connected)


def killed_and_back(live: LiveCluster, actor: str) -> None:
    pid = live.kill(actor)
    eventually(lambda: settled(live) and live.pids()[actor] != pid)


def revision(live: LiveCluster, actor: str) -> int:
    status = ray.get(ray.get_actor(actor, namespace(live.name)).ask.remote("status"))
    return int(status["revision"])


async def test_rules_change_under_a_subscriber_and_stay_changed(local_ray: None, upstream: Any, tmp_path: Path) -> None:
    live = LiveCluster(document(upstream.url, tmp_path, {"value": "{data.id}"})).start()
    try:
        await asyncio.to_thread(eventually, lambda: settled(live))
        client = await Client.open(live.url)
        view = await client.subscribe(1, key=["last"])
        upstream.say("activity", "activity", {"id": "first", "n": 1})
        await client.until(lambda: view.data("last") == "first")
        before = live.pids()

        changed = LiveCluster(document(upstream.url, tmp_path, {"value": "{data.n}"})).config
        cluster = msgspec.structs.replace(changed.cluster, name=live.name)
        gateway = msgspec.structs.replace(
            changed.gateway, port=live.port, hsts_ms=60_000.0, limits=Limits(body_bytes=10), outbox_bytes=65536
        )
        encoded = encode(msgspec.structs.replace(changed, cluster=cluster, gateway=gateway), 2)
        live.supervisor.apply(encoded)
        await asyncio.to_thread(eventually, lambda: settled(live))
        upstream.say("activity", "activity", {"id": "second", "n": 2})
        await client.until(lambda: view.data("last") == 2)
        assert not view.resets
        answer = httpx.put(f"{live.url}/v1/entries", params={"key": '["a"]'}, content=b'"01234567890"')
        assert answer.json()["error"]["details"] == {"limit": "body", "value": 10}
        assert answer.headers["Strict-Transport-Security"] == "max-age=60"
        after = live.pids()
        assert {actor for actor in before if before[actor] == after[actor]} == {"supervisor", "gateway-0"}

        # Nothing that is already so is done again; who restarts is given what counts now.
        live.supervisor.apply(encoded)
        for actor in ("supervisor", "shard-0", "ingestor-0", "gateway-0"):
            await asyncio.to_thread(killed_and_back, live, actor)
        assert live.pids()["shard-1"] == after["shard-1"]

        # The same once more, as from a driver that is new: it is not news for ever.
        live.supervisor.apply(encode(msgspec.structs.replace(changed, cluster=cluster, gateway=gateway), 3))
        await asyncio.to_thread(eventually, lambda: revision(live, "shard-1") == 3)
        assert live.pids()["shard-1"] == after["shard-1"]
        again = await Client.open(live.url)
        seen = await again.subscribe(1, key=["last"])
        upstream.say("activity", "activity", {"id": "third", "n": 3})
        await again.until(lambda: seen.data("last") == 3)
        await again.close()
        await client.close()
    finally:
        live.stop()
