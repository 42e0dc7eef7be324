"""What a page costs that is kept live: a Chromium whose TanStack Query takes 1,000 changes a second.

100 mounted queries, each an object with a list, change ten times a second each; every change goes through the client, into the query
cache and by an observer into the page. CPU is that of the page's own process (Chromium's renderer), drawing included.
"""

import asyncio
import time
from typing import Any

import psutil
import ray
import uvloop
from msgspec.structs import replace

from cluster.demo.tracker import Emission
from tests.conftest import ServedUpstream
from tests.live import LiveCluster, websocket_source
from tests.web.browser import chromium, until

KEYS = 100
EVERY_S = 0.1
ROWS = 20
MOUNT = """
  const { QueryObserver } = await import('/demo/query-core/index.js');
  globalThis.seen = 0;
  for (let n = 0; n < keys; n++) {
    const cell = document.body.appendChild(document.createElement('p'));
    new QueryObserver(queryClient, { queryKey: ['ticks', n] }).subscribe(({ data }) => {
      if (data?.value !== undefined) cell.textContent = data.value;
    });
  }
  harbor.on('message', ({ type, key }) => { if (type === 'change' && key[0] === 'ticks') seen++; });
"""


def page(seconds: float) -> dict[str, Any]:
    """Run a cluster, a browser and the measurement."""
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, object_store_memory=2**27)
    upstream = ServedUpstream(seed=1, rate=0)
    tick = {"merge": {"key": ["ticks", "{data.id}"], "value": "{data}"}}
    config = {
        "sources": {"events": websocket_source(upstream.url)},
        "streams": [{"source": "events", "channel": "ticks", "join": "always", "on": {"tick": tick}}],
    }
    live = LiveCluster(config)
    live.config = replace(live.config, gateway=replace(live.config.gateway, demo_page=True))
    live.start()
    try:
        return uvloop.run(_measure(live, upstream, seconds))
    finally:
        live.stop()
        upstream.stop()
        ray.shutdown()


async def _measure(live: LiveCluster, upstream: ServedUpstream, seconds: float) -> dict[str, Any]:
    rows = [{"id": n, "name": f"row {n}", "done": False} for n in range(ROWS)]
    for n in range(KEYS):
        await asyncio.to_thread(live.put, ["ticks", n], {"id": n, "value": 0, "rows": rows})
    async with chromium() as pages:
        before = {each.pid for each in psutil.process_iter()}
        shown = await pages.open(f"{live.url}/demo")
        await until(shown, "harbor.state === 'connected'")
        await shown.evaluate(f"async (keys) => {{ {MOUNT} }}", KEYS)
        renderers = [
            each for each in psutil.process_iter() if each.pid not in before and "--type=renderer" in each.cmdline()
        ]
        ticking = asyncio.create_task(_tick(upstream))
        await until(shown, "seen > 0")
        await asyncio.sleep(2)
        began, cpu, seen = time.monotonic(), _cpu_s(renderers), await shown.evaluate("seen")
        await asyncio.sleep(seconds)
        took = time.monotonic() - began
        found = {
            "changes_per_s": round((await shown.evaluate("seen") - seen) / took),
            "cores": round((_cpu_s(renderers) - cpu) / took, 3),
        }
        ticking.cancel()
        return found


def _cpu_s(processes: list[psutil.Process]) -> float:
    return max(sum(process.cpu_times()[:2]) for process in processes)


async def _tick(upstream: ServedUpstream) -> None:
    began = time.monotonic()
    for number in range(1, 1_000_000):
        events = [Emission("ticks", "tick", {"id": n, "value": number}) for n in range(KEYS)]
        await asyncio.to_thread(upstream.do, lambda up, events=events: up.emit(events))
        await asyncio.sleep(max(0.0, began + number * EVERY_S - time.monotonic()))
