"""The pair written by hand (`pair`) under the load, the subscribers and the clocks of the benchmark: a bar that moves with the machine."""

import importlib.util
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.bench.blaster import KEYS
from tests.bench.usage import usage
from tests.live import free_port


def missing() -> list[str]:
    """What is not installed of what it needs."""
    packages = ("fastapi", "uvicorn", "redis", "picows")
    lacking = [package for package in packages if importlib.util.find_spec(package) is None]
    return lacking if shutil.which("redis-server") else [*lacking, "redis-server"]


@contextmanager
def _redis() -> Iterator[tuple[int, int]]:
    """A Redis that keeps nothing. Gives its port and its pid."""
    port = free_port()
    command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.05)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def pair(
    child: Callable[..., Any], library: str, rate: int, subscribers: int, seconds: float, keys: int
) -> dict[str, Any]:
    """The pair with its upstream read by `library`; `child` starts a helper process."""
    with _redis() as (redis_port, redis_pid):
        blaster = child("tests.bench.blaster")
        served = child("tests.bench.pair", blaster.line(), redis_port, library)
        port = served.line()
        clients = child("tests.bench.subscribers", "127.0.0.1", port, subscribers, "data", keys)
        names = {served.process.pid: "fastapi", redis_pid: "redis"}

        def ages() -> list[float]:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ages") as response:
                return sorted(json.load(response))

        try:
            assert clients.line() == "ready"
            blaster.ask(f"blast {rate} 2")  # warm
            time.sleep(1)
            ages()
            before = usage(names)
            sent = blaster.ask(f"blast {rate} {seconds}")
            used, aged = usage(names), ages()
            final = clients.ask(f"final {sent['last']} {KEYS}")
        finally:
            clients.stop()
            served.stop()
            blaster.stop()
    cpu = {name: used[name][0] - before[name][0] for name in used}
    return {
        "events_per_s": round(sent["sent"] / sent["seconds"]),
        "exact_clients": final["exact"],
        "clients": subscribers,
        "closed": final["closed"],
        "age_p50_ms": round(aged[len(aged) // 2], 1),
        "age_p99_ms": round(aged[int(len(aged) * 0.99)], 1),
        "cpu_us_per_event": round(sum(cpu.values()) / sent["sent"] * 1e6, 2),
        "cpu_cores": {name: round(value / sent["seconds"], 3) for name, value in cpu.items()},
        "rss_mib": {name: round(rss / 2**20) for name, (_, rss) in used.items()},
    }
