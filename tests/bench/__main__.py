"""What the cluster does on this machine: events per second kept up, age, CPU, reads, start, idle.

Every figure is the median of `--runs` runs; ratios come from one run. Results go to a table and to bench.json.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from tests.bench.blaster import KEYS
from tests.bench.cache import shards_part, whole
from tests.bench.clients import idle_clients, reconnect, slow_clients
from tests.bench.console import console as open_console
from tests.bench.console import played, shown
from tests.bench.mutations import mutations
from tests.bench.page import page
from tests.bench.presence import presence
from tests.bench.recovery import kills, restart
from tests.bench.reference import missing, pair
from tests.bench.transport import transports
from tests.bench.usage import usage
from tests.live import free_port

console = Console(highlight=False)


class Harbor:
    """A cluster started as a user would, on a configuration of our own."""

    shards = 4

    def __init__(
        self, upstream_port: int, mode: str = "window", kind: str = "websocket", copies: int = 1, address: str = ""
    ) -> None:
        """`address`: of the Ray that it is to be on; by default it has one of its own, of one node."""
        self.admin_port = free_port()
        self.directory = tempfile.TemporaryDirectory()
        config = {
            "cluster": {"name": f"bench-{os.getpid()}", "shards": self.shards, "replicas": max(copies - 1, 0)},
            "storage": {"path": str(Path(self.directory.name) / "store") if copies else None},
            "batching": {"mode": mode},
            "gateway": {"port": 0, "admin_port": self.admin_port},
            "sources": {
                "blaster": {"type": "sse", "url": f"http://127.0.0.1:{upstream_port}/", "heartbeat": "infinity"}
                if kind == "sse"
                else {
                    "type": "websocket",
                    "transport": kind,
                    "url": f"ws://127.0.0.1:{upstream_port}/",
                    "subscribe": {"join": "{channel}"},
                }
            },
            "streams": [
                {
                    "source": "blaster",
                    **({} if kind == "sse" else {"channel": "metrics", "join": "always"}),
                    "on": {"metric": {"set": {"key": ["metrics", "{data.id}"], "value": "{data}"}}},
                }
            ],
        }
        path = Path(self.directory.name) / "harbor.yaml"
        path.write_text(yaml.safe_dump(config))
        started = time.perf_counter()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.cli", "up", str(path), *(["--address", address] if address else [])],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        self.ready_s = time.perf_counter() - started
        found = re.search(r"http://([\d.]+):(\d+)", line)
        assert found is not None, f"not ready: {line!r}"
        self.host, self.port = found[1], int(found[2])
        self.cluster = self.get("/v1/cluster")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}") as response:
            return json.load(response)

    def processes(self) -> dict[int, str]:
        """Every process of the system by pid, named."""
        described = self.get("/v1/cluster")
        names = {described["supervisor"]["pid"]: "supervisor", self.process.pid: "driver"}
        for kind in ("shards", "coordinators", "ingestors", "gateways"):
            for row in described[kind]:
                names[row["pid"]] = f"{kind[:-1]}-{row['id']}"
        for child in psutil.Process(self.process.pid).children(recursive=True):
            names.setdefault(child.pid, f"ray: {child.name()}")
        return names

    def usage(self) -> dict[str, tuple[float, int]]:
        """(CPU seconds, resident bytes) by process name."""
        return usage(self.processes())

    def histogram(self, name: str) -> dict[float, int]:
        """Cumulative counts of a histogram over all actors, by bound."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin_port}/metrics") as response:
            text = response.read().decode()
        counts: dict[float, int] = {}
        for bound, count in re.findall(rf'harbor_{name}_bucket\{{[^}}]*le="([^"]+)"[^}}]*\}} ([\d.e+]+)', text):
            counts[float(bound)] = counts.get(float(bound), 0) + int(float(count))
        return counts

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        self.directory.cleanup()


class Child:
    """A helper process that is told things by lines."""

    def __init__(self, module: str, *arguments: object) -> None:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        return json.loads(self.line())

    def ask(self, command: str) -> Any:
        self.tell(command)
        return self.answer()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def quantile(before: dict[float, int], after: dict[float, int], q: float) -> float:
    """The q-quantile, in ms, of what was observed between two readings of a histogram; linear within a bucket."""
    bounds = sorted(after)
    counts = [after[bound] - before.get(bound, 0) for bound in bounds]
    wanted = counts[-1] * q
    low, below = 0.0, 0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= wanted:
            if bound == float("inf"):
                return low * 1000
            return (low + (bound - low) * (wanted - below) / max(count - below, 1)) * 1000
        low, below = bound, count
    return low * 1000


@contextmanager
def running(
    subscribers: int = 1,
    *,
    mode: str = "window",
    delivery: str = "data",
    keys: int = 0,
    kind: str = "websockets",
    copies: int = 1,
    address: str = "",
) -> Iterator[tuple[Child, Harbor, Child]]:
    """A blaster, a cluster on it, and subscribers that have their snapshots.

    `copies` of what shards hold are stored: 0 keeps nothing, 2 are a primary's and its standby's.
    """
    blaster = Child("tests.bench.blaster")
    harbor = Harbor(int(blaster.line()), mode, kind, copies, address)
    clients = Child("tests.bench.subscribers", harbor.host, harbor.port, subscribers, delivery, keys)
    try:
        assert clients.line() == "ready"
        yield blaster, harbor, clients
    finally:
        clients.stop()
        harbor.stop()
        blaster.stop()


def saturated(kind: str, per_frame: int, count: int, copies: int = 1, address: str = "") -> dict[str, Any]:
    """As many events as are taken, one client that watches everything: how long until it has the last of them."""
    with running(kind=kind, copies=copies, address=address) as (blaster, harbor, clients):
        apart = [row["node"] != row["standby"]["node"] for row in harbor.cluster["shards"]] if copies > 1 else []
        assert all(each == bool(address) for each in apart), "standbys are where they are to be"
        blaster.ask(f"flood {count // 10} {per_frame}")  # warm
        time.sleep(1)
        before, usage = harbor.get("/v1/cluster")["sources"][0]["events"], harbor.usage()
        started = time.perf_counter()
        sent = blaster.ask(f"flood {count} {per_frame}")
        while harbor.get("/v1/cluster")["sources"][0]["events"] - before < sent["sent"]:
            time.sleep(0.05)
        took = time.perf_counter() - started
        used = harbor.usage()
        cpu = {name: used[name][0] - usage.get(name, (0.0, 0))[0] for name in used}
        return {
            "events_per_s": round(sent["sent"] / took),
            "is_exact": clients.ask(f"final {sent['last']} {KEYS}")["exact"] == 1,
            "cpu_us_per_event": round(sum(cpu.values()) / sent["sent"] * 1e6, 2),
            "cpu_cores": {name: round(each / took, 3) for name, each in sorted(cpu.items(), key=lambda item: -item[1])},
        }


def throughput(rate: int, subscribers: int, seconds: float, mode: str, keys: int = 0) -> dict[str, Any]:
    with running(subscribers, delivery=mode, keys=keys) as (blaster, harbor, clients):
        blaster.ask(f"blast {rate} 2")  # warm
        time.sleep(1)
        usage, ages = harbor.usage(), harbor.histogram("end_to_end_seconds")
        waits = harbor.histogram("window_wait_seconds")
        sent = blaster.ask(f"blast {rate} {seconds}")
        used, aged = harbor.usage(), harbor.histogram("end_to_end_seconds")
        waited = harbor.histogram("window_wait_seconds")
        final = clients.ask(f"final {sent['last']} {KEYS}")
        cpu = {name: used[name][0] - usage.get(name, (0.0, 0))[0] for name in used}
        received = harbor.get("/v1/cluster")["sources"][0]["events"]
        return {
            "events_per_s": round(sent["sent"] / sent["seconds"]),
            "offered_per_s": rate,
            "exact_clients": final["exact"],
            "clients": subscribers,
            "closed": final["closed"],
            "events_received": received,
            "age_p50_ms": round(quantile(ages, aged, 0.5), 1),
            "age_p99_ms": round(quantile(ages, aged, 0.99), 1),
            "window_wait_p50_ms": round(quantile(waits, waited, 0.5), 1),
            "window_wait_p99_ms": round(quantile(waits, waited, 0.99), 1),
            "cpu_us_per_event": round(sum(cpu.values()) / sent["sent"] * 1e6, 2),
            "cpu_cores": {
                name: round(value / sent["seconds"], 3)
                for name, value in sorted(cpu.items(), key=lambda item: -item[1])
            },
            "rss_mib": {name: round(rss / 2**20) for name, (_, rss) in used.items()},
            "delivered_mb_per_s": round(final["bytes"] / sent["seconds"] / 1e6, 1),
            "ready_s": round(harbor.ready_s, 1),
        }


@contextmanager
def two_nodes() -> Iterator[str]:
    """A Ray of a head and two nodes, between which Ray carries the calls; on one node actors have sockets of their own. Yields its address."""
    nodes = Child("tests.soak.nodes")
    try:
        yield nodes.ask('["start", 2]')
    finally:
        nodes.process.communicate()


def durability(count: int = 8_000_000) -> dict[str, Any]:
    """What the store and a standby cost: events per second with none, one and two copies, and their ratios to none.

    On one node, then on two, each beside a cluster there that keeps nothing.
    """

    def rate(copies: int, address: str = "") -> int:
        return int(saturated("websockets", 1, count, copies, address)["events_per_s"])

    one = {copies: rate(copies) for copies in (0, 1, 2)}
    with two_nodes() as address:
        two = {copies: rate(copies, address) for copies in (0, 2)}
    return {
        "nothing_kept_per_s": one[0],
        "stored_per_s": one[1],
        "stored_and_replicated_per_s": one[2],
        "stored_ratio": round(one[1] / one[0], 2),
        "stored_and_replicated_ratio": round(one[2] / one[0], 2),
        "two_nodes_nothing_kept_per_s": two[0],
        "two_nodes_stored_and_replicated_per_s": two[2],
        "two_nodes_stored_and_replicated_ratio": round(two[2] / two[0], 2),
    }


def reference(seconds: float) -> dict[str, Any]:
    """The cluster, then the pair written by hand: the load is the same, and the machine is as busy."""
    ours = throughput(100_000, 20, seconds, "data", 10)
    theirs = pair(Child, "picows", 100_000, 20, seconds, 10)
    ratio = ours["cpu_us_per_event"] / theirs["cpu_us_per_event"]
    return {"cluster": ours, "pair": theirs, "ratio": round(ratio, 2)}


def leading(count: int) -> dict[str, Any]:
    with running(mode="leading") as (blaster, _harbor, clients):
        blaster.ask("lone 10 250")
        time.sleep(0.5)
        clients.ask("times")
        sent = blaster.ask(f"lone {count} 250")["times"]
        time.sleep(0.5)
        arrived = clients.ask("times")["times"]
        assert len(arrived) == len(sent), f"{len(sent)} events, {len(arrived)} frames"
        delays = sorted((there - here) * 1000 for here, there in zip(sent, arrived, strict=True))
        return {"p50_ms": round(statistics.median(delays), 1), "p99_ms": round(delays[int(len(delays) * 0.99)], 1)}


def reads(seconds: int) -> dict[str, Any]:
    with running() as (blaster, harbor, _clients):
        blaster.ask("blast 1000 1")
        key = urllib.parse.quote('["metrics","m007"]')
        url = f"http://{harbor.host}:{harbor.port}/v1/entries?key={key}"
        command = ["wrk", "-t2", "-c64", f"-d{seconds}s", "--latency", url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output)[1])
        p99, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", output).groups()
        errors = re.search(r"Non-2xx.*", output)
        assert errors is None, errors
        return {
            "requests_per_s": round(rate),
            "p99_ms": round(float(p99) * {"us": 0.001, "ms": 1, "s": 1000}[unit], 2),
        }


def idle(seconds: float) -> dict[str, Any]:
    with running() as (_blaster, harbor, _clients):
        time.sleep(5)
        before = harbor.usage()
        time.sleep(seconds)
        after = harbor.usage()
        cpu = {name: (after[name][0] - before.get(name, (0.0, 0))[0]) / seconds for name in after}
        return {
            "cores": round(sum(cpu.values()), 3),
            "cpu_cores": {
                name: round(value, 4) for name, value in sorted(cpu.items(), key=lambda item: -item[1]) if value > 0
            },
            "ready_s": round(harbor.ready_s, 1),
        }


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each number over the runs, with the runs beside it."""
    merged: dict[str, Any] = {}
    for name, value in runs[0].items():
        if isinstance(value, dict):
            merged[name] = median_of([{n: run[name].get(n, 0) for n in value} for run in runs])
        else:
            merged[name] = statistics.median([run[name] for run in runs])
    return merged


def show(results: dict[str, Any]) -> None:
    table = Table(title="Harbor Cluster, medians", title_justify="left")
    for column in ("case", "events/s", "exact", "age p50", "age p99", "CPU us/event", "cores"):
        table.add_column(column, justify="left" if column == "case" else "right")
    rows = dict(results["cases"])
    if compared := rows.pop("reference", None):
        rows |= {f"reference: {name}": compared[name] for name in ("cluster", "pair")}
        rows["reference: CPU of the cluster / CPU of the pair"] = {"ratio": compared["ratio"]}
    for name, result in rows.items():
        if "age_p50_ms" not in result:
            table.add_row(
                name, *["" for _ in range(5)], json.dumps({k: v for k, v in result.items() if k != "cpu_cores"})
            )
            continue
        table.add_row(
            name,
            f"{result['events_per_s']:,.0f}",
            f"{result['exact_clients']:.0f}/{result['clients']:.0f}",
            f"{result['age_p50_ms']:.0f} ms",
            f"{result['age_p99_ms']:.0f} ms",
            f"{result['cpu_us_per_event']:.2f}",
            f"{sum(result['cpu_cores'].values()):.2f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--shards", type=int, default=Harbor.shards, help="of the clusters that are measured")
    parser.add_argument("--output", default="bench.json")
    options = parser.parse_args()
    Harbor.shards = options.shards
    cases = {
        "100k events/s, 1 subscriber": lambda: throughput(100_000, 1, options.seconds, "data"),
        "100k events/s, 100 subscribers": lambda: throughput(100_000, 100, options.seconds, "data"),
        "100k events/s, 20 subscribers of 10 keys": lambda: throughput(100_000, 20, options.seconds, "data", 10),
        "saturated, websockets, 1 a frame": lambda: saturated("websockets", 1, 2_000_000),
        "saturated, fast, 1 a frame": lambda: saturated("fast", 1, 2_000_000),
        "saturated, websockets, 50 a frame": lambda: saturated("websockets", 50, 3_000_000),
        "saturated, sse, 1 a chunk": lambda: saturated("sse", 1, 1_000_000),
        "saturated, sse, 50 a chunk": lambda: saturated("sse", 50, 2_000_000),
        "durability, saturated": durability,
        "10k events/s, 1 subscriber": lambda: throughput(10_000, 1, options.seconds, "data"),
        "leading, lone events": lambda: leading(60),
        "idle, 1 subscriber": lambda: idle(15),
        "mutations": lambda: mutations(Child),
        "presence, 333 heartbeats/s, 100 watchers": lambda: presence(min(options.seconds, 15.0)),
        "page, 1,000 changes/s": lambda: page(min(options.seconds, 15.0)),
        "slow clients, 25 of 500 stop reading": lambda: slow_clients(options.seconds),
        "idle clients, 5,000": idle_clients,
        "reconnect, 1,000 at once": reconnect,
        "100,000 entries, shards": shards_part,
        "100,000 entries, cluster": whole,
        "an open console, 100,000 entries, no events": lambda: open_console(running, quantile, played, 0),
        "an open console, 100,000 entries, 50k events/s": lambda: open_console(running, quantile, played, 50_000),
        "an open console in Chromium, 100,000 entries, 50k events/s": lambda: open_console(
            running, quantile, shown, 50_000
        ),
        "transport": lambda: transports(Child),
        "kills": lambda: kills(0),
        "kills, with standbys": lambda: kills(1),
        "restart with 100,000 entries": lambda: restart(options.shards),
        "10,000 channels": lambda: json.loads(Child("tests.bench.channels", 10_000).line()),
    }
    if shutil.which("wrk"):
        cases["reads of a watched key, 64 connections"] = lambda: reads(10)
    else:
        console.print("wrk is not installed: reads are left out")
    if lacking := missing():
        console.print(f"{', '.join(lacking)} not installed: the reference written by hand is left out")
    else:
        cases["reference"] = lambda: reference(options.seconds)
        for library in ("aiohttp", "websockets"):
            cases[f"reference, its upstream by {library}"] = lambda library=library: pair(
                Child, library, 100_000, 20, options.seconds, 10
            )
    results: dict[str, Any] = {
        "machine": {
            "cpu": next(
                (
                    line.split(":")[1].strip()
                    for line in Path("/proc/cpuinfo").read_text().splitlines()
                    if "model name" in line
                ),
                platform.processor(),
            ),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30),
            "kernel": platform.release(),
        },
        "runs": options.runs,
        "cases": {},
    }
    for name, case in cases.items():
        if options.only in name:
            runs = []
            for _ in range(options.runs):
                runs.append(case())
                console.print(f"{name}: {json.dumps(runs[-1])}")
            results["cases"][name] = median_of(runs)
    Path(options.output).write_text(json.dumps(results, indent=2) + "\n")
    show(results)


if __name__ == "__main__":
    main()
